//! A batch that is being made: what travels between two transforms, and what became of it. Knows no guest.

use std::collections::HashMap;
use std::sync::Arc;

use crate::change::{Batch, Record, RecordBatch, Slice, Traces};
use crate::config::settings::Settings;
use crate::topic;

/// What travels between two transforms.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// A change of the source batch, by its row.
    Change(u32),
    /// What a transform made of one.
    Record(Record),
}

impl Item {
    /// The row of the change that it is or came from.
    pub(crate) fn source(&self) -> u32 {
        match self {
            Item::Change(row) => *row,
            Item::Record(record) => record.source,
        }
    }
}

/// What became of an item.
#[derive(Clone, Debug)]
pub(crate) enum Made {
    /// A record.
    Record(Record),
    /// It goes on as it is.
    Forward,
    /// It is refused, with this message.
    Refused(String),
}

/// A transform wants to be handed an item, and all after it, again later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotYet {
    /// The item.
    pub(crate) item: u32,
    /// What it said.
    pub(crate) message: String,
}

/// A batch being made, with its topics by name.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) batch: RecordBatch,
    topics: HashMap<Arc<str>, u32>,
    /// What is in force for this batch: which topics are not for records.
    settings: Arc<Settings>,
}

impl Draft {
    /// Nothing made of a batch yet.
    pub(crate) fn of(source: Batch, settings: Arc<Settings>) -> Self {
        Self {
            batch: RecordBatch {
                source,
                output: Vec::new(),
                topics: Vec::new(),
                headers: Vec::new(),
                records: Vec::new(),
                rejected: Vec::new(),
                dropped: 0,
                traces: Traces::default(),
            },
            topics: HashMap::new(),
            settings,
        }
    }

    /// The number of a topic; an error if no broker would take the name, or it is not for records.
    pub(crate) fn topic(&mut self, name: &str) -> Result<u32, String> {
        if let Some(&index) = self.topics.get(name) {
            return Ok(index);
        }
        if !topic::is_name(name) {
            let shown = &name[..name.floor_char_boundary(topic::LONGEST)];
            return Err(format!("{shown:?} is not a topic's name: {}", topic::RULE));
        }
        if topic::is_of_checkpoints(name) {
            return Err(format!(
                "`{name}` is a topic of checkpoints: records there would be taken for some"
            ));
        }
        if name == self.settings.dead_letter.topic {
            return Err(format!(
                "`{name}` is the topic of this pipeline's dead letters: a record there would be taken for one; for a dead letter, \
                 refuse the change"
            ));
        }
        if topic::is_of_brokers(name) {
            return Err(format!(
                "`{name}` is a topic that brokers write themselves: records there would be taken for theirs"
            ));
        }
        let index = self.batch.topics.len() as u32;
        let name: Arc<str> = name.into();
        self.batch.topics.push(name.clone());
        self.topics.insert(name, index);
        Ok(index)
    }

    /// Lets go of the topics that came after the first `kept`.
    pub(crate) fn forget_topics(&mut self, kept: usize) {
        for name in self.batch.topics.drain(kept..) {
            self.topics.remove(&name);
        }
    }

    /// Keeps bytes that the host wrote.
    pub(crate) fn keep(&mut self, bytes: &[u8]) -> Slice {
        let start = self.batch.output.len() as u32;
        self.batch.output.extend_from_slice(bytes);
        Slice::Output {
            start,
            end: self.batch.output.len() as u32,
        }
    }

    /// A record's headers as a CQL `map<text, blob>`.
    pub(crate) fn encode_headers(&self, record: &Record) -> Vec<u8> {
        let headers =
            &self.batch.headers[record.headers.start as usize..record.headers.end as usize];
        let mut map = (headers.len() as i32).to_be_bytes().to_vec();
        for slice in headers.iter().flat_map(|(name, value)| [name, value]) {
            match self.batch.bytes(*slice) {
                Some(bytes) => {
                    map.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
                    map.extend_from_slice(bytes);
                }
                None => map.extend_from_slice(&(-1i32).to_be_bytes()),
            }
        }
        map
    }
}
