//! A chain looked at stage by stage: for tests of transforms, and for whoever writes one. Slower than the way that
//! changes go in a running pipeline, since it copies what it shows; it takes the same calls.

use serde_json::{Map, Value, json};

use super::draft::{Draft, Item};
use super::report::StageReport;
use super::stage::{Ran, Work};
use super::{Chain, TransformError};
use crate::change::{Batch, Record, Rejected, Slice};

/// A record with its own bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plain {
    /// The topic.
    pub topic: String,
    /// `None`: null.
    pub key: Option<Vec<u8>>,
    /// `None`: null, a tombstone.
    pub value: Option<Vec<u8>>,
    /// Names and values, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// What a stage is given.
#[derive(Clone, Debug)]
pub enum Given {
    /// A change, by its row in the batch.
    Change(u32),
    /// A record, as if an earlier transform had made it of this row.
    Record(u32, Plain),
}

/// What a stage passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passed {
    /// The change as it was.
    Change(u32),
    /// A record, made of the change of this row.
    Record(u32, Plain),
}

/// What one stage did.
#[derive(Clone, Debug)]
pub struct Step {
    /// The name of the transform; `sink` for what renders the changes that no transform routed.
    pub name: String,
    /// What it passed on, in order.
    pub passed: Vec<Passed>,
    /// What it refused.
    pub rejected: Vec<Rejected>,
    /// What it would be handed again later, which is here refused after the first try: the rows, and what it said.
    pub not_yet: Vec<(u32, String)>,
    /// Its count of what happened; of `sink` an empty one.
    pub report: StageReport,
}

impl Chain {
    /// Runs what is given through the stages from `first` on, and says what each made of it.
    ///
    /// # Errors
    /// See [`TransformError`].
    pub fn trace(
        &mut self,
        batch: Batch,
        given: Vec<Given>,
        first: usize,
    ) -> Result<Vec<Step>, TransformError> {
        let settings = self.live.borrow().clone();
        let mut draft = Draft::of(batch, settings.clone());
        let mut items = Vec::with_capacity(given.len());
        let mut steps = Vec::new();
        let mut refused = Vec::new();
        for given in given {
            match given {
                Given::Change(row) => items.push(Item::Change(row)),
                Given::Record(source, plain) => match keep(&mut draft, source, &plain) {
                    Ok(record) => items.push(Item::Record(record)),
                    Err(error) => refused.push(Rejected {
                        source,
                        stage: "given".into(),
                        error,
                        attempts: 1,
                    }),
                },
            }
        }
        for stage in self.stages.iter_mut().skip(first) {
            let (mut work, mut not_yet) = (Work::new(items), Vec::new());
            let outcome = loop {
                match stage.run(&mut draft, work, &settings, &|| {})? {
                    Ran::Done(outcome) => break outcome,
                    Ran::NotYet(put_off) => {
                        let (_, said) = put_off.put_off();
                        not_yet.extend(put_off.source().map(|row| (row, said.to_owned())));
                        work = put_off;
                        work.give_up();
                    }
                }
            };
            items = outcome.items;
            let mut rejected = outcome.rejected;
            rejected.retain(|r| not_yet.iter().all(|(row, _)| *row != r.source));
            rejected.append(&mut refused);
            steps.push(Step {
                name: stage.name().to_owned(),
                passed: items.iter().map(|item| plain(&draft, item)).collect(),
                rejected,
                not_yet,
                report: stage.report.clone(),
            });
        }
        let mut step = Step {
            name: "sink".to_owned(),
            passed: Vec::new(),
            rejected: refused,
            not_yet: Vec::new(),
            report: StageReport::default(),
        };
        for item in items {
            let item = match item {
                Item::Record(_) => item,
                Item::Change(change) => {
                    let (sink, pipeline) = (&settings.sink, &settings.pipeline.name);
                    match self.renderer.render(&mut draft, change, sink, pipeline) {
                        Ok(record) => Item::Record(record),
                        Err(error) => {
                            step.rejected.push(Rejected {
                                source: change,
                                stage: "sink".into(),
                                error,
                                attempts: 1,
                            });
                            continue;
                        }
                    }
                }
            };
            step.passed.push(plain(&draft, &item));
        }
        steps.push(step);
        Ok(steps)
    }
}

/// Puts a record into the batch that is being made.
fn keep(draft: &mut Draft, source: u32, plain: &Plain) -> Result<Record, String> {
    let topic = draft.topic(&plain.topic)?;
    let bytes = |bytes: &Option<Vec<u8>>, draft: &mut Draft| match bytes {
        Some(bytes) => draft.keep(bytes),
        None => Slice::Null,
    };
    let (key, value) = (bytes(&plain.key, draft), bytes(&plain.value, draft));
    let start = draft.batch.headers.len() as u32;
    for (name, value) in &plain.headers {
        let header = (draft.keep(name.as_bytes()), bytes(value, draft));
        draft.batch.headers.push(header);
    }
    Ok(Record {
        source,
        topic,
        key,
        value,
        headers: start..draft.batch.headers.len() as u32,
    })
}

fn plain(draft: &Draft, item: &Item) -> Passed {
    match item {
        Item::Change(row) => Passed::Change(*row),
        Item::Record(record) => Passed::Record(record.source, plain_of(draft, record)),
    }
}

/// A record with its own bytes.
pub(super) fn plain_of(draft: &Draft, record: &Record) -> Plain {
    let batch = &draft.batch;
    let bytes = |slice| batch.bytes(slice).map(<[u8]>::to_vec);
    let headers = &batch.headers[record.headers.start as usize..record.headers.end as usize];
    let header = |(name, value): &(Slice, Slice)| {
        let name = bytes(*name).unwrap_or_default();
        (String::from_utf8_lossy(&name).into_owned(), bytes(*value))
    };
    let topic = batch.topics.get(record.topic as usize);
    Plain {
        topic: topic.map_or_else(String::new, |topic| topic.to_string()),
        key: bytes(record.key),
        value: bytes(record.value),
        headers: headers.iter().map(header).collect(),
    }
}

/// Bytes as people read them: JSON objects and arrays as such, text as a string; `None` for what is neither.
fn shown(bytes: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(bytes).ok()?;
    let parsed = serde_json::from_str::<Value>(&penstock_conditions::exact(text)).ok();
    Some(match parsed {
        Some(json @ (Value::Object(_) | Value::Array(_))) => json,
        _ => text.into(),
    })
}

impl Plain {
    /// `{"topic": …, "key": …, "value": …, "headers": {…}}`: what is null is left out, what is no text is in hex under
    /// `key_hex` or `value_hex`.
    pub fn to_json(&self) -> Value {
        let mut record = Map::new();
        record.insert("topic".to_owned(), self.topic.clone().into());
        for (name, bytes) in [("key", &self.key), ("value", &self.value)] {
            if let Some(bytes) = bytes {
                match shown(bytes) {
                    Some(value) => record.insert(name.to_owned(), value),
                    None => record.insert(format!("{name}_hex"), hex::encode(bytes).into()),
                };
            }
        }
        let mut headers = Map::new();
        for (name, value) in &self.headers {
            let value =
                value
                    .as_deref()
                    .map_or(Value::Null, |value| match std::str::from_utf8(value) {
                        Ok(text) => text.into(),
                        Err(_) => format!("0x{}", hex::encode(value)).into(),
                    });
            // A name that stands there twice has its values in order.
            match headers.get_mut(name) {
                Some(Value::Array(all)) => all.push(value),
                Some(one) => *one = json!([one.take(), value]),
                None => {
                    headers.insert(name.clone(), value);
                }
            }
        }
        if !headers.is_empty() {
            record.insert("headers".to_owned(), headers.into());
        }
        record.into()
    }
}
