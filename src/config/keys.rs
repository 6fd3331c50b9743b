//! Every key of pipeline.toml, from the rows of [`super::sections`].
//!
//! They drive validation, the JSON Schema, the reload classes and the documentation, so that none of them can know
//! a key that another does not.

use std::sync::LazyLock;

pub use super::key::{Fallback, Key, Kind, ReloadClass};
use super::settings::Settings;

/// What stages are called in pipeline.toml; `*` stands for a transform's name.
pub const STAGES: [&str; 5] = ["source", "transform.*", "sink", "dead_letter", "orders"];

/// What stands for the transforms and their order among the values in force.
pub const TRANSFORMS: &str = "transform";

/// Every shard holds an instance of each, and a change passes all of them: far fewer are meant.
pub const MOST_TRANSFORMS: usize = 64;

/// All keys, policy tables expanded for each stage, in the order in which they are documented.
pub fn all() -> &'static [Key] {
    static ALL: LazyLock<Vec<Key>> = LazyLock::new(Settings::keys);
    &ALL
}

/// The key with this pattern.
pub fn get(pattern: &str) -> Option<&'static Key> {
    all().iter().find(|key| key.path == pattern)
}

/// The pattern of a concrete path: a transform's name becomes `*`.
pub fn pattern(path: &[String]) -> String {
    let mut out: Vec<&str> = path.iter().map(String::as_str).collect();
    if out.len() > 1 && out[0] == "transform" {
        out[1] = "*";
    }
    out.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{mask, raw};

    /// Where the table is wrong, nothing else can be right.
    #[test]
    fn every_key_is_documented_and_its_default_and_example_are_legal() {
        for key in all() {
            assert!(
                key.doc.len() > 10 && !key.doc.ends_with('.'),
                "{}",
                key.path
            );
            let same = all().iter().filter(|k| k.path == key.path).count();
            assert_eq!(same, 1, "{}", key.path);
            for text in match key.fallback {
                Fallback::Value(default) => vec![default, key.example],
                _ => vec![key.example],
            } {
                let value = raw::from_text(text, false);
                if let Err(fault) = key.kind.decode(&value) {
                    panic!("{} = {text}: {fault:?}", key.path);
                }
            }
            // A value that goes on as a u32 is in its range.
            if let Kind::Int(min, max) = key.kind {
                assert!(min <= max && u32::try_from(max).is_ok(), "{}", key.path);
            }
            // Only secrets are masked, and all of them.
            let steps: Vec<String> = key.path.split('.').map(str::to_owned).collect();
            assert_eq!(
                mask::is_secret(&steps),
                matches!(key.kind, Kind::Secret),
                "{}",
                key.path
            );
        }
    }

    #[test]
    fn each_stage_takes_each_policy_and_inherits_it() {
        let policies = all()
            .iter()
            .filter_map(|k| k.path.strip_prefix("policies."));
        for policy in policies {
            for stage in STAGES {
                let key = get(&format!("{stage}.{policy}")).expect("each stage takes it");
                assert_eq!(
                    (key.fallback, key.class),
                    (Fallback::Policies, ReloadClass::Live)
                );
            }
        }
    }
}
