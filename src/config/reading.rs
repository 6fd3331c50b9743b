//! The checked values by their paths: what is in force, where it stands, and what stands in for what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::error::{Place, Problem, Reason};
use super::key::{Fallback, Key, Kind, Leaf};
use super::keys;
use super::raw::{self, Raw};
use super::section::{FromKey, Values};
use super::seen::Sources;
use super::stock;
use super::value::{Contents, Secret};

/// A decoded value and where it stands.
pub(super) struct Got {
    pub(super) leaf: Leaf,
    pub(super) place: Place,
}

/// The raw values, checked one by one, and what was found wrong with them so far.
pub(super) struct Reading<'a> {
    pub(super) raw: &'a Raw,
    pub(super) leaves: BTreeMap<String, Got>,
    /// Keys that are wrong already: nothing more is said about them.
    pub(super) failed: BTreeSet<String>,
    /// What files that keys name contain.
    pub(super) contents: BTreeMap<String, [u8; 32]>,
    pub(super) problems: Vec<Problem>,
    pub(super) sources: Sources,
    /// By the path of the key; read before the sections are.
    pub(super) secrets: BTreeMap<String, Secret>,
    /// Likewise.
    pub(super) files: BTreeMap<String, Contents>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(raw: &'a Raw) -> Self {
        Self {
            problems: raw.problems.clone(),
            sources: raw.sources.clone(),
            raw,
            leaves: BTreeMap::new(),
            failed: BTreeSet::new(),
            contents: BTreeMap::new(),
            secrets: BTreeMap::new(),
            files: BTreeMap::new(),
        }
    }
}

impl Reading<'_> {
    pub(super) fn problem(
        &mut self,
        reason: Reason,
        place: Place,
        help: impl IntoIterator<Item = String>,
    ) {
        let problem = Problem {
            reason,
            place,
            help: help.into_iter().collect(),
        };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// The paths that a key has, one a transform for `*`, each with the path of its table.
    pub(super) fn concrete(&self, key: &Key) -> Vec<(String, Vec<String>)> {
        let steps: Vec<String> = key.path.split('.').map(str::to_owned).collect();
        let of = |steps: Vec<String>| {
            let table = steps[..steps.len() - 1].to_vec();
            (steps.join("."), table)
        };
        if steps.get(1).map(String::as_str) != Some("*") {
            return vec![of(steps)];
        }
        self.raw
            .transforms
            .iter()
            .map(|name| {
                let mut steps = steps.clone();
                steps[1].clone_from(name);
                of(steps)
            })
            .collect()
    }

    /// The value of a key as this type.
    pub(super) fn get<T: FromKey>(&self, path: &str) -> T {
        T::from_key(self, path)
    }

    pub(super) fn place(&self, path: &str) -> Place {
        self.leaves
            .get(path)
            .map_or(Place::Nowhere, |got| got.place.clone())
    }

    /// None of these keys is wrong already.
    pub(super) fn ok(&self, keys: &[&str]) -> bool {
        !keys.iter().any(|k| self.failed.contains(*k))
    }
}

impl Values for Reading<'_> {
    fn leaf(&self, path: &str) -> Option<Leaf> {
        if let Some(got) = self.leaves.get(path) {
            return Some(got.leaf.clone());
        }
        let key = key_of(path)?;
        match key.fallback {
            Fallback::Absent => None,
            Fallback::Required => Some(builtin(&key.kind, key.example)),
            Fallback::Value(default) => Some(builtin(&key.kind, default)),
            Fallback::Policies => self.leaf(&policies_path(key)),
        }
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        let Some(Leaf::Text(text)) = self.leaf(key) else {
            return None;
        };
        if stock::name(Path::new(&text)).is_some() {
            return Some(PathBuf::from(text));
        }
        Some(match self.place(key) {
            Place::File(file, _) => file.path.parent().unwrap_or(Path::new("")).join(text),
            _ => PathBuf::from(text),
        })
    }

    fn secret(&self, path: &str) -> Option<Secret> {
        self.secrets.get(path).cloned()
    }

    fn file(&self, path: &str) -> Option<Contents> {
        self.files.get(path).cloned()
    }
}

/// The stage of a transform, as it is called among the decoded values.
pub(super) fn stage_of(name: &str) -> String {
    format!("transform.{name}")
}

/// The key under `[policies]` that a stage's policy falls back to.
pub(super) fn policies_path(key: &Key) -> String {
    let stage = keys::STAGES
        .iter()
        .find_map(|stage| key.path.strip_prefix(stage)?.strip_prefix('.'));
    format!("policies.{}", stage.unwrap_or(&key.path))
}

fn key_of(path: &str) -> Option<&'static Key> {
    if let Some(rest) = path.strip_prefix("transform.") {
        // The longest pattern that ends the path.
        return keys::all()
            .iter()
            .filter_map(|k| Some((k, k.path.strip_prefix("transform.*")?)))
            .filter(|(_, tail)| rest.ends_with(tail))
            .max_by_key(|(_, tail)| tail.len())
            .map(|(k, _)| k);
    }
    keys::get(path)
}

/// A default or an example of the table; a test decodes each.
pub(super) fn builtin(kind: &Kind, text: &str) -> Leaf {
    let value = raw::from_text(text, false);
    kind.decode(&value)
        .unwrap_or_else(|fault| unreachable!("{text} in the table of keys: {fault:?}"))
}
