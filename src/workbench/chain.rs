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
    /// What is put in besides, one after the other.
    #[serde(default)]
    inputs: Vec<Input>,
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

/// What is put in at one transform.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The transform; the first, if none is named.
    at: Option<String>,
    #[serde(default)]
    changes: Vec<Value>,
    changes_from: Option<PathBuf>,
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
                let own = Input {
                    at: test.input_at.take(),
                    changes: std::mem::take(&mut test.changes),
                    changes_from: test.changes_from.take(),
                };
                if own.at.is_some() || own.changes_from.is_some() || !own.changes.is_empty() {
                    test.inputs.insert(0, own);
                }
                for input in &mut test.inputs {
                    input.changes_from = input.changes_from.as_ref().map(|from| beside.join(from));
                }
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
    let mut prepared = Vec::new();
    for transform in &settings.transforms {
        let plugin = Plugin::load(engine, &transform.plugin).map_err(|e| here(e.to_string()))?;
        prepared.push((transform, plugin));
    }
    let mut inputs = Vec::new();
    for input in &test.inputs {
        let first = input.at.as_deref().map_or(Ok(0), place)?;
        let mut changes = input.changes.clone();
        if let Some(from) = &input.changes_from {
            let lines = std::fs::read_to_string(from)
                .map_err(|e| here(format!("{}: {e}", from.display())))?;
            changes.extend(read_lines(&lines, &mut tables).map_err(here)?);
        }
        inputs.push((first, changes));
    }
    if inputs.iter().all(|(_, changes)| changes.is_empty()) {
        return Err(here("it puts in no changes".to_owned()));
    }
    let prepared = prepared.into_iter().map(|(transform, plugin)| {
        Prepared::new(transform, plugin, tables.all()).map_err(|e| here(e.to_string()))
    });
    let prepared = prepared.collect::<Result<_, _>>()?;
    let mut chain = Chain::new(prepared, watch::channel(settings.clone()).1);
    let (mut runs, mut from) = (Vec::new(), 1);
    for (first, changes) in inputs {
        let Sheet { batch, given, rows } = changes::read(&tables, &changes).map_err(here)?;
        let steps = chain.trace(batch, given, first);
        runs.push(Run {
            first,
            from,
            steps: steps.map_err(|e| here(e.to_string()))?,
            rows,
        });
        from += changes.len();
    }
    let mut wrong = Vec::new();
    // What went through a stage, of each input that did.
    let at = |name: &str| -> Result<Vec<(&Run, &Step)>, String> {
        let place = place(name)?;
        let through = runs
            .iter()
            .filter_map(|run| run.step(place))
            .collect::<Vec<_>>();
        match through.is_empty() {
            true => Err(here(format!("{name:?} stands before the input"))),
            false => Ok(through),
        }
    };
    let letters: Vec<Value> = runs.iter().flat_map(Run::letters).collect();
    for (name, expected) in &test.expect {
        let seen = match name == DEAD_LETTERS {
            true => letters.clone(),
            false => at(name)?
                .iter()
                .flat_map(|(run, step)| run.outcomes(step))
                .collect(),
        };
        if let Some(differs) = compare(expected, &seen) {
            wrong.push(format!("  at {name}:\n{differs}"));
        }
    }
    for (name, conditions) in &test.holds {
        for text in conditions {
            let condition = Condition::compile(text)
                .map_err(|e| here(format!("holds.{name}: `{text}`: {e}")))?;
            let mut through = at(name)?.into_iter();
            let fails = through.find_map(|(run, step)| run.fails(&condition, step));
            wrong.extend(fails.map(|said| format!("  at {name}: {said}")));
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
        let through = at(name)?;
        let made = through.iter().flat_map(|(_, step)| &step.passed);
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

/// One input on its way.
struct Run {
    /// The stage that it was given to.
    first: usize,
    /// The number of its first change; they are counted through all inputs.
    from: usize,
    steps: Vec<Step>,
    rows: Vec<u32>,
}

impl Run {
    fn step(&self, place: usize) -> Option<(&Self, &Step)> {
        let step = self.steps.get(place.checked_sub(self.first)?)?;
        Some((self, step))
    }

    /// What a stage made of what reached it.
    fn outcomes(&self, step: &Step) -> Vec<Value> {
        // What an earlier transform dropped or refused never reached this one.
        let at = self.steps.iter().position(|s| s.name == step.name);
        let before = at.and_then(|at| self.steps.get(at.checked_sub(1)?));
        let reached = |row: u32| match before {
            None => true,
            Some(before) => before.passed.iter().any(|p| match p {
                Passed::Change(of) | Passed::Record(of, _) => *of == row,
            }),
        };
        let outcomes = trial::outcomes(step, &self.rows, self.from, &reached);
        outcomes.iter().map(trial::Outcome::to_json).collect()
    }

    /// What was refused and is kept, which `on_error = "drop"` does not do: `{"change": 1, "stage": …, "error": …}`, in order.
    fn letters(&self) -> Vec<Value> {
        let mut letters = Vec::new();
        for (row, number) in self.rows.iter().zip(self.from..) {
            for step in &self.steps {
                for rejected in step.rejected.iter().filter(|r| r.source == *row) {
                    letters.push(
                        json!({ "change": number, "stage": step.name, "error": rejected.error }),
                    );
                }
            }
        }
        letters
    }

    /// The first record of a stage for which a condition does not hold.
    fn fails(&self, condition: &Condition, step: &Step) -> Option<String> {
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
            let at = self.rows.iter().position(|of| of == row);
            let number = at.map_or(0, |at| at + self.from);
            Some(format!(
                "{what} for a record of change {number}: {}",
                plain.to_json()
            ))
        })
    }
}
