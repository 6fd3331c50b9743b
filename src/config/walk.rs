//! The walk over what was read: types, ranges, words, unknown keys, and what is missing.

use std::collections::BTreeSet;

use figment::value::Value;

use super::error::Reason;
use super::key::{self, Fallback, Fault, Kind, Step};
use super::keys;
use super::mask;
use super::raw::show_path;
use super::reading::{Got, Reading};

impl Reading<'_> {
    pub(super) fn walk(&mut self, path: &mut Vec<String>, value: &Value) {
        let pattern = keys::pattern(path);
        if let Some(key) = keys::get(&pattern) {
            return match key.kind.decode(value) {
                Ok(leaf) => {
                    let place = self.raw.place(value, path);
                    self.leaves.insert(path.join("."), Got { leaf, place });
                }
                Err(fault) => {
                    self.failed.insert(path.join("."));
                    self.fault(&key.kind, path, value, fault);
                }
            };
        }
        if !is_section(&pattern) {
            return self.unknown(path, value);
        }
        match value.as_dict() {
            Some(dict) => {
                for (key, value) in dict {
                    path.push(key.clone());
                    self.walk(path, value);
                    path.pop();
                }
            }
            None => {
                let reason = Reason::WrongType {
                    key: show_path(path),
                    found: found(path, value),
                };
                self.failed.insert(path.join("."));
                self.problem(
                    reason,
                    self.raw.place(value, path),
                    ["a table is expected".to_owned()],
                );
            }
        }
    }

    fn fault(&mut self, kind: &Kind, path: &[String], value: &Value, fault: Fault) {
        let (key, place) = (show_path(path), self.raw.place(value, path));
        let found = found(path, value);
        let expected = format!("expected {}", kind.expected());
        let (reason, help) = match fault {
            Fault::In(step, fault) => {
                let (step, inner) = match &step {
                    Step::Index(i) => (format!("[{i}]"), value.as_array().and_then(|a| a.get(*i))),
                    Step::Key(k) => (k.clone(), value.as_dict().and_then(|d| d.get(k))),
                };
                let path: Vec<String> = path.iter().cloned().chain([step]).collect();
                return self.fault(kind, &path, inner.unwrap_or(value), *fault);
            }
            Fault::Several(faults) => {
                for fault in faults {
                    self.fault(kind, path, value, fault);
                }
                return;
            }
            Fault::Type => (Reason::WrongType { key, found }, expected),
            Fault::Range => (Reason::OutOfRange { key, found }, expected),
            Fault::Malformed => (Reason::Malformed { key, found }, expected),
            Fault::Rule(rule) => (
                Reason::IllegalValue { key, found },
                format!("expected {rule}"),
            ),
            Fault::Empty => (Reason::EmptyList { key }, "name at least one".to_owned()),
            Fault::Twice(first) => {
                let list = show_path(&path[..path.len() - 1]);
                let first = format!("{list}[{first}]");
                (
                    Reason::Duplicate { key, found, first },
                    "name it once".to_owned(),
                )
            }
            Fault::Choice => {
                let (Kind::Choice(words) | Kind::Words(words)) = kind else {
                    return;
                };
                let nearest = nearest(value.as_str().unwrap_or_default(), words.iter().copied());
                let help = match nearest {
                    Some(word) => format!("{expected}; did you mean {word:?}?"),
                    None => expected,
                };
                (Reason::UnknownChoice { key, found }, help)
            }
        };
        self.problem(reason, place, [help]);
    }

    fn unknown(&mut self, path: &[String], value: &Value) {
        let key = show_path(path);
        let place = self.raw.key_place(value, path);
        let parent = keys::pattern(path)
            .rsplit_once('.')
            .map_or(String::new(), |(p, _)| format!("{p}."));
        let siblings: BTreeSet<&str> = keys::all()
            .iter()
            .filter_map(|k| k.path.strip_prefix(&parent))
            .map(|rest| rest.split('.').next().unwrap_or(rest))
            .filter(|step| *step != "*")
            .collect();
        let last = path.last().map_or("", String::as_str);
        let help = if let Some(near) = nearest(last, siblings.iter().copied()) {
            format!("did you mean `{near}`?")
        } else if let Some(other) = keys::all()
            .iter()
            .find(|k| k.path.rsplit('.').next() == Some(last) && !k.path.starts_with("policies."))
        {
            format!(
                "there is `{}`",
                other.path.replace("transform.*", "transform.<name>")
            )
        } else {
            let siblings: Vec<&str> = siblings.into_iter().collect();
            format!("known here: {}", siblings.join(", "))
        };
        self.problem(Reason::UnknownKey { key }, place, [help]);
    }

    pub(super) fn missing(&mut self) {
        if self.raw.broken {
            return;
        }
        let mut absent = Vec::new();
        for key in keys::all()
            .iter()
            .filter(|k| k.fallback == Fallback::Required)
        {
            for (path, table) in self.concrete(key) {
                let above = self
                    .failed
                    .iter()
                    .any(|f| path == *f || path.starts_with(&format!("{f}.")));
                if !self.leaves.contains_key(&path) && !above {
                    absent.push((key, path, table));
                }
            }
        }
        for (key, path, table) in absent {
            let last = key.path.rsplit('.').next().unwrap_or_default();
            let help = format!(
                "expected {}, e.g. {last} = {}",
                key.kind.expected(),
                key.example
            );
            self.problem(
                Reason::Missing {
                    key: path.replace(".[", "["),
                },
                self.raw.table_place(&table),
                [help],
            );
        }
    }
}

fn is_section(pattern: &str) -> bool {
    let prefix = format!("{pattern}.");
    keys::all().iter().any(|k| k.path.starts_with(&prefix))
}

pub(super) fn found(path: &[String], value: &Value) -> String {
    if mask::is_secret(path) {
        "***".to_owned()
    } else {
        key::show(value)
    }
}

/// The nearest word, if it is near enough to have been meant.
pub fn nearest<'w>(word: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let word = word.to_ascii_lowercase();
    if word.len() > 64 {
        return None;
    }
    words
        .map(|w| (strsim::damerau_levenshtein(&word, w), w))
        .filter(|(distance, w)| *distance <= w.len().max(word.len()) / 3)
        .min()
        .map(|(_, w)| w)
}
