//! `[[tests]]` of pipeline.toml: a whole chain of transforms, with changes or records put in at one and expectations of
//! others. They are no part of the configuration: an edit of theirs reloads nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use penstock_conditions::{Condition, Record};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::cases::{Verdict, compare};
use super::changes::{self, Sheet, Tables, read_lines};
use super::trial;
use crate::config::Settings;
use crate::transform::{Chain, Engine, Passed, Plugin, Prepared, Step};

#[derive(Debug, Deserialize)]
struct File {
    #[serde(default)]
    tests: Vec<Test>,
}

/// One `[[tests]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Test {
    name: String,
    /// `keyspace.name` and its columns.
    #[serde(default)]
    tables: BTreeMap<String, String>,
    /// The transform that is given the changes; the first, if none is named.
    input_at: Option<String>,
    #[serde(default)]
    changes: Vec<Value>,
    /// A file beside this one with a change a line, as `penstock record` writes it.
    changes_from: Option<PathBuf>,
    /// By transform, or `sink`, what has become of what reached it; by `dead_letter`, what is kept there.
    #[serde(default)]
    expect: BTreeMap<String, Vec<Value>>,
    /// By transform, or `sink`, expressions that hold for each record that it makes.
    #[serde(default)]
    holds: BTreeMap<String, Vec<String>>,
    /// Transforms, or `sink`, that make no record; `dead_letter`, which keeps none.
    #[serde(default)]
    no_records_from: Vec<String>,
}

impl Test {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The tests of configuration files, and of the `*.toml` of folders, in order.
///
/// # Errors
/// A file cannot be read, or its tests are not well-formed.
pub fn tests(paths: &[PathBuf]) -> Result<Vec<Test>, String> {
    let mut tests = Vec::new();
    for path in paths {
        let files = match path.is_dir() {
            true => super::cases::files(path)?,
            false => vec![path.clone()],
        };
        for file in files {
            let said = |e: String| format!("{}: {e}", file.display());
            let text = std::fs::read_to_string(&file).map_err(|e| said(e.to_string()))?;
            let mut found: File = toml::from_str(&text).map_err(|e| said(e.to_string()))?;
            let beside = file.parent().unwrap_or(Path::new(""));
            for test in &mut found.tests {
                test.changes_from = test.changes_from.as_ref().map(|from| beside.join(from));
            }
            tests.extend(found.tests);
        }
    }
    Ok(tests)
}

/// Runs one test over the transforms of these settings.
///
/// # Errors
/// It is not well-formed, or no plugin can be made of a file.
pub fn run(engine: &Engine, settings: &Arc<Settings>, test: &Test) -> Result<Verdict, String> {
    let here = |e: String| format!("test {:?}: {e}", test.name);
    let mut tables = Tables::default();
    for (name, columns) in &test.tables {
        tables.add(name, columns).map_err(here)?;
    }
    let mut changes = test.changes.clone();
    if let Some(from) = &test.changes_from {
        let lines =
            std::fs::read_to_string(from).map_err(|e| here(format!("{}: {e}", from.display())))?;
        changes.extend(read_lines(&lines, &mut tables).map_err(here)?);
    }
    let names: Vec<&str> = settings
        .transforms
        .iter()
        .map(|t| t.name.as_str())
        .collect();
    let place = |name: &str| -> Result<usize, String> {
        let all = || names.iter().copied().chain(["sink"]);
        all().position(|n| n == name).ok_or_else(|| {
            let help = match crate::config::nearest(name, all()) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("there are: {}", all().collect::<Vec<_>>().join(", ")),
            };
            here(format!("unknown transform {name:?}; {help}"))
        })
    };
    let first = test.input_at.as_deref().map_or(Ok(0), place)?;
    let mut prepared = Vec::new();
    for transform in &settings.transforms {
        let plugin = Plugin::load(engine, &transform.plugin).map_err(|e| here(e.to_string()))?;
        let made = Prepared::new(transform, plugin, tables.all());
        prepared.push(made.map_err(|e| here(e.to_string()))?);
    }
    let mut chain = Chain::new(prepared, watch::channel(settings.clone()).1);
    let sheet = changes::read(&tables, &changes).map_err(here)?;
    let Sheet { batch, given, rows } = sheet;
    let steps = chain
        .trace(batch, given, first)
        .map_err(|e| here(e.to_string()))?;
    let mut wrong = Vec::new();
    let step_of =
        |name: &str| place(name).map(|at| at.checked_sub(first).and_then(|at| steps.get(at)));
    let letters = letters(&steps, &rows);
    if let Some(expected) = test.expect.get(DEAD_LETTERS)
        && let Some(differs) = compare(expected, &letters)
    {
        wrong.push(format!("  at {DEAD_LETTERS}:\n{differs}"));
    }
    for (name, expected) in test.expect.iter().filter(|(name, _)| *name != DEAD_LETTERS) {
        let Some(step) = step_of(name)? else {
            return Err(here(format!("{name:?} stands before the input")));
        };
        // What an earlier transform dropped or refused never reached this one.
        let at = steps.iter().position(|s| s.name == step.name).unwrap_or(0);
        let reached = |row: u32| match at.checked_sub(1).map(|before| &steps[before].passed) {
            None => true,
            Some(passed) => passed.iter().any(|p| match p {
                Passed::Change(of) | Passed::Record(of, _) => *of == row,
            }),
        };
        let outcomes = trial::outcomes(step, &rows, &reached);
        let seen: Vec<Value> = outcomes.iter().map(trial::Outcome::to_json).collect();
        if let Some(differs) = compare(expected, &seen) {
            wrong.push(format!("  at {name}:\n{differs}"));
        }
    }
    for (name, conditions) in &test.holds {
        let Some(step) = step_of(name)? else {
            return Err(here(format!("{name:?} stands before the input")));
        };
        for text in conditions {
            let condition = Condition::compile(text)
                .map_err(|e| here(format!("holds.{name}: `{text}`: {e}")))?;
            wrong.extend(fails(&condition, step, &rows).map(|said| format!("  at {name}: {said}")));
        }
    }
    for name in &test.no_records_from {
        if name == DEAD_LETTERS {
            if !letters.is_empty() {
                let said = compare(&[], &letters).unwrap_or_default();
                wrong.push(format!("  no dead letters were expected:\n{said}"));
            }
            continue;
        }
        let made = step_of(name)?.into_iter().flat_map(|step| &step.passed);
        let made = made.filter(|p| matches!(p, Passed::Record(..))).count();
        if made > 0 {
            wrong.push(format!(
                "  no records were expected from {name}, and there are {made}"
            ));
        }
    }
    Ok(Verdict {
        name: test.name.clone(),
        wrong: (!wrong.is_empty()).then(|| wrong.join("\n")),
    })
}

/// The stage that keeps what was refused.
const DEAD_LETTERS: &str = "dead_letter";

/// What was refused and is kept, which `on_error = "drop"` does not do: `{"change": 1, "stage": …, "error": …}`, in order.
fn letters(steps: &[Step], rows: &[u32]) -> Vec<Value> {
    let mut letters = Vec::new();
    for (row, number) in rows.iter().zip(1..) {
        for step in steps {
            for rejected in step.rejected.iter().filter(|r| r.source == *row) {
                letters
                    .push(json!({ "change": number, "stage": step.name, "error": rejected.error }));
            }
        }
    }
    letters
}

/// The first record of a stage for which a condition does not hold.
fn fails(condition: &Condition, step: &Step, rows: &[u32]) -> Option<String> {
    step.passed.iter().find_map(|passed| {
        let Passed::Record(row, plain) = passed else {
            return None;
        };
        let headers = plain.headers.iter();
        let record = Record {
            topic: &plain.topic,
            key: plain.key.as_deref(),
            value: plain.value.as_deref(),
            headers: headers
                .map(|(name, value)| (&**name, value.as_deref()))
                .collect(),
        };
        let what = match condition.holds(None, Some(&record)) {
            Ok(true) => return None,
            Ok(false) => format!("`{}` does not hold", condition.text()),
            Err(error) => error,
        };
        let number = rows.iter().position(|of| of == row).map_or(0, |at| at + 1);
        Some(format!(
            "{what} for a record of change {number}: {}",
            plain.to_json()
        ))
    })
}
