//! What came of it: the problems in order, or every value in force with where it comes from.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::error::{Invalid, Place, Problem, Reason};
use super::key::{self, Fallback, Key, Kind, Leaf, ReloadClass};
use super::reading::{Reading, policies_path};
use super::section::Values;
use super::settings::Settings;
use super::validate::{Effective, Loaded};
use super::value::{Nodes, StartFrom};
use super::{keys, mask};
use crate::policy::rate;

impl Reading<'_> {
    pub(super) fn report(self, settings: Settings) -> Result<Loaded, Invalid> {
        if !self.problems.is_empty() {
            return Err(Invalid {
                problems: in_order(self.problems, self.raw.broken),
                sources: self.sources,
            });
        }
        let mut effective: Vec<Effective> = keys::all()
            .iter()
            .flat_map(|key| {
                self.concrete(key)
                    .into_iter()
                    .map(move |(path, _)| (key, path))
            })
            .filter_map(|(key, path)| self.effective(key, path))
            .collect();
        // The order of the transforms counts and is in no single value.
        let order = toml::Value::from(self.raw.transforms.clone()).to_string();
        effective.push(Effective {
            key: keys::TRANSFORMS.to_owned(),
            origin: self.raw.table_place(&["transform".to_owned()]).to_string(),
            class: ReloadClass::Rebuild,
            fingerprint: Sha256::digest(order.as_bytes()).into(),
            value: order,
        });
        let mut hash = Sha256::new();
        for entry in &effective {
            hash.update(entry.key.as_bytes());
            hash.update([0]);
            hash.update(entry.fingerprint);
        }
        Ok(Loaded {
            settings: Arc::new(settings),
            effective,
            sources: self.sources,
            hash: hex::encode(hash.finalize()),
            at: SystemTime::now(),
        })
    }

    fn effective(&self, key: &Key, path: String) -> Option<Effective> {
        let leaf = self.leaf(&path)?;
        let shown = show_leaf(&key.kind, &leaf);
        let mut fingerprint = Sha256::new();
        fingerprint.update(shown.as_bytes());
        if let Some(content) = self.contents.get(&path) {
            fingerprint.update(content);
        }
        let value = match &leaf {
            _ if matches!(key.kind, Kind::Secret) => "***".to_owned(),
            // A plugin's settings are free: what is called a secret is treated as one.
            Leaf::Map(map) => {
                let masked = map.iter().map(|(k, v)| {
                    let secret = mask::is_secret(std::slice::from_ref(k));
                    (k.clone(), if secret { "***".to_owned() } else { v.clone() })
                });
                show_leaf(&key.kind, &Leaf::Map(masked.collect()))
            }
            _ => shown,
        };
        Some(Effective {
            origin: self.origin(key, &path),
            class: key.class,
            key: path,
            value,
            fingerprint: fingerprint.finalize().into(),
        })
    }

    fn origin(&self, key: &Key, path: &str) -> String {
        match (self.leaves.get(path), key.fallback) {
            (Some(got), _) => got.place.to_string(),
            (None, Fallback::Policies) => {
                let policies = policies_path(key);
                match self.leaves.get(&policies) {
                    Some(got) => format!("{} ({policies})", got.place),
                    None => "default".to_owned(),
                }
            }
            (None, _) => "default".to_owned(),
        }
    }
}

/// In the order of files and lines. Where a file is not TOML, what else is said about the same line is
/// noise: the parser guessed how to go on.
fn in_order(mut problems: Vec<Problem>, broken: bool) -> Vec<Problem> {
    let line = |p: &Problem| match &p.place {
        Place::File(text, span) => Some((text.path.clone(), text.line_column(span.start).0)),
        _ => None,
    };
    if broken {
        let lines: Vec<_> = problems
            .iter()
            .filter(|p| matches!(p.reason, Reason::Syntax { .. }))
            .filter_map(line)
            .collect();
        problems.retain(|p| {
            matches!(p.reason, Reason::Syntax { .. }) || line(p).is_none_or(|l| !lines.contains(&l))
        });
    }
    problems.sort_by_cached_key(|p| match &p.place {
        Place::Nowhere => (0, PathBuf::new(), 0),
        Place::Path(path) => (1, path.clone(), 0),
        Place::File(text, span) => (1, text.path.clone(), span.start + 1),
        Place::Variable(name) => (2, name.into(), 0),
        Place::Flag(flag) => (3, flag.into(), 0),
    });
    problems
}

/// As it would stand in the file.
fn show_leaf(kind: &Kind, leaf: &Leaf) -> String {
    let quoted = |s: &str| toml::Value::from(s).to_string();
    match leaf {
        Leaf::Bool(b) => b.to_string(),
        Leaf::Int(n) if matches!(kind, Kind::Size(..)) => quoted(&key::show_size(*n)),
        Leaf::Int(n) => n.to_string(),
        Leaf::Float(n) => toml::Value::from(*n).to_string(),
        Leaf::Duration(d) if matches!(kind, Kind::DurationOrOff(..)) && d.is_zero() => {
            quoted("off")
        }
        Leaf::Duration(d) => quoted(&humantime::format_duration(*d).to_string()),
        Leaf::Rate(None) => quoted("off"),
        Leaf::Rate(Some(rate::Settings { per_second, burst })) if per_second == burst => {
            quoted(&format!("{per_second}/s"))
        }
        Leaf::Rate(Some(rate::Settings { per_second, burst })) => {
            format!("{{ per_second = {per_second}, burst = {burst} }}")
        }
        Leaf::StartFrom(StartFrom::Earliest) => quoted("earliest"),
        Leaf::StartFrom(StartFrom::Latest) => quoted("latest"),
        Leaf::StartFrom(StartFrom::At(us)) => quoted(
            &jiff::Timestamp::from_microsecond(*us)
                .map_or_else(|_| us.to_string(), |t| t.to_string()),
        ),
        Leaf::Text(text) => quoted(text),
        Leaf::Address(address) => quoted(&address.to_string()),
        Leaf::Nodes(Nodes::Embedded) => quoted("embedded"),
        Leaf::Nodes(Nodes::At(list)) | Leaf::List(list) => {
            toml::Value::from(list.clone()).to_string()
        }
        Leaf::Map(map) if map.is_empty() => "{}".to_owned(),
        Leaf::Map(map) => {
            let entries = map
                .iter()
                .map(|(k, v)| format!("{} = {}", quoted_key(k), quoted(v)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
    }
}

fn quoted_key(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !key.is_empty() && key.chars().all(bare) {
        key.to_owned()
    } else {
        toml::Value::from(key).to_string()
    }
}
