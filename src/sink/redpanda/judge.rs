//! Which of the records that were refused together are refused.
//!
//! A broker refuses a whole request for one record in it, and does not say which; to librdkafka, a refusal ends the
//! transaction that it was in. So the suspects are tried in transactions that are always aborted, by a producer of their
//! own that puts each record into a request by itself: no reader of committed records sees any of it, nothing else is
//! undone, and a refusal names its record. A try goes on until its first refusals, of what is in flight at that moment;
//! so one bad record among any number costs two tries, and *n* bad ones a fifth of *n*.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::ClientConfig;

use super::parts::{self, Parts};
use super::producer::{Outgoing, Producer, Traffic};
use crate::change::RecordBatch;
use crate::config::settings::Sink;
use crate::sink::SinkError;

/// What was found out about the suspects of a batch, by the index of their records.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Those that are refused, and why.
    pub(super) refused: HashMap<u32, String>,
    /// Those that may be taken only by themselves.
    pub(super) alone: HashSet<u32>,
    /// They were tried. Else each of `alone` may still be refused.
    pub(super) is_proven: bool,
}

impl Verdict {
    /// Nothing is known but that each is to be sent by itself.
    pub(super) fn unknown(suspects: &[u32]) -> Self {
        Self {
            alone: suspects.iter().copied().collect(),
            ..Self::default()
        }
    }
}

/// What became of a try.
struct Refused {
    indices: Vec<u32>,
    reason: String,
    too_large: bool,
}

/// The producer that tries.
pub(super) struct Judge {
    producer: Producer,
    shard: u32,
    opened: bool,
}

impl Judge {
    /// For a shard. `config`: transactional, with an id of its own.
    pub(super) fn new(
        shard: u32,
        (mut config, version): (ClientConfig, u64),
        traffic: Arc<Traffic>,
    ) -> Result<Self, SinkError> {
        config.set("batch.num.messages", "1");
        Ok(Self {
            producer: Producer::new((config, version), traffic)?,
            shard,
            opened: false,
        })
    }

    /// Finds out which records of a batch are refused: of all that are for the topics of these, for others may be like
    /// them. `takes`: bytes that a topic is known to take.
    pub(super) async fn judge(
        &mut self,
        batch: &Arc<RecordBatch>,
        suspects: &[u32],
        settings: &Sink,
        takes: impl Fn(&str) -> Option<usize>,
        (topic, within): (&str, Duration),
    ) -> Result<Verdict, SinkError> {
        if !self.opened {
            self.producer.take_over(self.shard, topic, within).await?;
            self.opened = true;
        }
        let topic_of = |index: u32| batch.records[index as usize].topic;
        let topics: HashSet<u32> = suspects.iter().map(|&index| topic_of(index)).collect();
        let mut parts = Parts::new(batch, settings);
        let mut size = |index: u32| {
            let record = &batch.records[index as usize];
            let headers = parts.headers(batch, index as usize);
            parts::size(batch.bytes(record.key), batch.bytes(record.value), &headers)
        };
        let suspected: HashSet<u32> = suspects.iter().copied().collect();
        let mut left: Vec<(u32, usize)> = (0..batch.records.len() as u32)
            .filter(|index| topics.contains(&topic_of(*index)))
            .map(|index| (index, size(index)))
            // Compressed, a record is not larger: who is small enough as it is is not refused for its size.
            .filter(|(index, size)| {
                let takes = takes(&batch.topics[topic_of(*index) as usize]);
                suspected.contains(index) || takes.is_none_or(|takes| *size > takes)
            })
            .collect();
        let mut verdict = Verdict {
            is_proven: true,
            ..Verdict::default()
        };
        let mut tries = 0_u32;
        while !left.is_empty() {
            let found = self.attempt(batch, &left, settings).await?;
            tries += 1;
            let Some(found) = found else { break };
            let limits: HashMap<u32, usize> = left
                .iter()
                .filter(|(index, _)| found.indices.contains(index))
                .map(|(index, size)| (topic_of(*index), *size))
                .collect();
            let (reason, measured) = (found.reason, found.too_large && !settings.compresses());
            let refused = left.extract_if(.., |(index, size)| {
                let limit = limits.get(&topic_of(*index));
                found.indices.contains(index)
                    || (measured && limit.is_some_and(|limit| *size >= *limit))
            });
            verdict
                .refused
                .extend(refused.map(|(index, _)| (index, reason.clone())));
        }
        if verdict.refused.is_empty() {
            // It was for what they were together.
            verdict.alone = suspected;
        }
        let (shard, refused, taken) = (self.shard, verdict.refused.len(), left.len());
        tracing::info!(
            shard,
            refused,
            taken,
            tries,
            "it is known which records are refused"
        );
        Ok(verdict)
    }

    /// Sends these, and aborts. `None`: all were taken.
    async fn attempt(
        &mut self,
        batch: &Arc<RecordBatch>,
        records: &[(u32, usize)],
        settings: &Sink,
    ) -> Result<Option<Refused>, SinkError> {
        self.producer.begin(self.shard)?;
        let sent = self.send(batch, records, settings).await;
        let window = Arc::clone(self.producer.window());
        window.fail(SinkError::Reset);
        // After it, every report has come in.
        self.producer.abort(self.shard).await?;
        let mut indices = window.refused();
        window.reopen();
        match sent {
            Ok(poison) if poison.is_empty() => Ok(None),
            // librdkafka looked at each of them alone.
            Ok(poison) => {
                let reason = poison[0].1.clone();
                indices.extend(poison.into_iter().map(|(index, _)| index));
                Ok(Some(Refused {
                    indices,
                    reason,
                    too_large: false,
                }))
            }
            Err(SinkError::Suspect {
                reason, too_large, ..
            }) if !indices.is_empty() => Ok(Some(Refused {
                indices,
                reason,
                too_large,
            })),
            Err(error) => Err(error),
        }
    }

    /// Returns those that librdkafka refused by itself.
    async fn send(
        &self,
        batch: &Arc<RecordBatch>,
        records: &[(u32, usize)],
        settings: &Sink,
    ) -> Result<Vec<(u32, String)>, SinkError> {
        let mut parts = Parts::new(batch, settings);
        let (submission, ticket) = self.producer.window().open(Some(Arc::clone(batch)), None)?;
        for &(index, _) in records {
            let record = &batch.records[index as usize];
            let out = Outgoing {
                topic: &batch.topics[record.topic as usize],
                partition: None,
                key: batch.bytes(record.key),
                value: batch.bytes(record.value),
                headers: Some(parts.headers(batch, index as usize)),
                timestamp: parts.timestamp(batch, index as usize),
            };
            if let Err(error) = self.producer.send(&submission, index, out).await {
                // A refusal of one before it is what this is about.
                drop(submission);
                return Err(match self.producer.window().broken() {
                    Some(SinkError::Reset) | None => error,
                    Some(first) => first,
                });
            }
        }
        submission.seal();
        Ok(ticket.await?.poison)
    }

    /// Ends the producer.
    pub(super) async fn close(mut self) {
        self.producer.stop().await;
    }
}
