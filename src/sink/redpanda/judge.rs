//! Which of the records that were refused together are refused.
//!
//! A broker refuses a whole request for one record in it, and does not say which; to librdkafka, a refusal ends the
//! transaction that it was in. So the suspects are tried in transactions that are always aborted, by a producer of their
//! own: no reader of committed records sees any of it, and nothing else is undone. Half of them at first; a part that is
//! taken is followed by one of twice its size, a part that is refused by half of it, down to the one that it is about.
//! One bad record among *n* costs about log₂ *n* refusals, and *n* bad ones hardly more than *n*.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::ClientConfig;

use super::outlet::{Lane, Outgoing, Outlet};
use super::parts::{self, Parts};
use crate::change::RecordBatch;
use crate::config::settings::Sink;
use crate::sink::SinkError;

/// What was found out about the suspects of a batch, by the index of their records.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Those that are refused, and why.
    pub(super) refused: HashMap<u32, String>,
    /// To which part, of those that were taken whole, the others belong.
    pub(super) taken: HashMap<u32, usize>,
    /// They were tried. Else each may still be refused.
    pub(super) is_proven: bool,
}

impl Verdict {
    /// Nothing is known but that each is to be sent by itself.
    pub(super) fn unknown(suspects: &[u32]) -> Self {
        Self {
            refused: HashMap::new(),
            is_proven: false,
            taken: suspects.iter().copied().zip(0..).collect(),
        }
    }
}

/// What became of a part.
enum Answer {
    Taken,
    Refused { reason: String, too_large: bool },
}

/// Halving, as the module has it. Pure: what to try next, and what follows from the answer.
#[derive(Debug)]
struct Search {
    left: Vec<u32>,
    size: usize,
    parts: usize,
    verdict: Verdict,
}

impl Search {
    /// All of them together were refused. The first `innocent` are probably not meant.
    fn new(suspects: Vec<u32>, innocent: usize) -> Self {
        let half = suspects.len() / 2;
        let size = match innocent {
            0 => half,
            n if n == suspects.len() => half,
            n => n,
        };
        Self {
            left: suspects,
            size: size.max(1),
            parts: 0,
            verdict: Verdict {
                is_proven: true,
                ..Verdict::default()
            },
        }
    }

    /// What is to be tried; empty: it is all known.
    fn next(&self) -> &[u32] {
        &self.left[..self.size.min(self.left.len())]
    }

    fn answered(&mut self, answer: Answer) {
        let tried = self.size.min(self.left.len());
        match answer {
            Answer::Taken => {
                let part = self.parts;
                let taken = self.left.drain(..tried).map(|index| (index, part));
                self.verdict.taken.extend(taken);
                self.parts += 1;
                self.size = tried * 2;
            }
            Answer::Refused { reason, .. } if tried == 1 => {
                let index = self.left.remove(0);
                self.verdict.refused.insert(index, reason);
            }
            Answer::Refused { .. } => self.size = tried / 2,
        }
    }

    /// What goes for one of them goes for these as well.
    fn refused_too(&mut self, reason: &str, like_it: impl Fn(u32) -> bool) {
        let refused = self.left.extract_if(.., |index| like_it(*index));
        let refused = refused.map(|index| (index, reason.to_owned()));
        self.verdict.refused.extend(refused);
    }
}

/// The producer that tries.
pub(super) struct Judge {
    outlet: Outlet,
    shard: u32,
    opened: bool,
}

impl Judge {
    /// For a shard. `config`: transactional, with an id of its own.
    pub(super) fn new(
        shard: u32,
        config: ClientConfig,
        lane: Arc<Lane>,
    ) -> Result<Self, SinkError> {
        Ok(Self {
            outlet: Outlet::new(config, lane)?,
            shard,
            opened: false,
        })
    }

    /// Finds out which of these records of a batch are refused. `takes`: bytes that their topics are known to take.
    pub(super) async fn judge(
        &mut self,
        batch: &Arc<RecordBatch>,
        suspects: Vec<u32>,
        settings: &Sink,
        takes: impl Fn(&str) -> Option<usize>,
        (topic, within): (&str, Duration),
    ) -> Result<Verdict, SinkError> {
        if !self.opened {
            self.outlet.take_over(self.shard, topic, within).await?;
            self.opened = true;
        }
        let mut parts = Parts::new(batch, settings);
        let sizes: HashMap<u32, usize> = suspects
            .iter()
            .map(|&index| {
                let record = &batch.records[index as usize];
                let headers = parts.headers(batch, index as usize);
                let size =
                    parts::size(batch.bytes(record.key), batch.bytes(record.value), &headers);
                (index, size)
            })
            .collect();
        let topic_of = |index: u32| batch.records[index as usize].topic;
        // Compressed, a record is not larger: who is small enough as it is is not refused for its size.
        let small = |index: &u32| {
            let takes = takes(&batch.topics[topic_of(*index) as usize]);
            takes.is_some_and(|takes| sizes[index] <= takes)
        };
        let (mut ordered, large): (Vec<u32>, Vec<u32>) = suspects.into_iter().partition(small);
        let innocent = ordered.len();
        ordered.extend(large);
        let mut search = Search::new(ordered, innocent);
        let mut tries = 0_u32;
        while !search.next().is_empty() {
            let one = search.next()[0];
            let alone = search.next().len() == 1;
            let answer = self.attempt(batch, search.next(), &mut parts).await?;
            tries += 1;
            let like_it = match &answer {
                Answer::Refused {
                    reason,
                    too_large: true,
                } if alone && !settings.compresses() => Some(reason.clone()),
                _ => None,
            };
            search.answered(answer);
            if let Some(reason) = like_it {
                search.refused_too(&reason, |index| {
                    topic_of(index) == topic_of(one) && sizes[&index] >= sizes[&one]
                });
            }
        }
        let verdict = search.verdict;
        let (shard, refused, taken) = (self.shard, verdict.refused.len(), verdict.taken.len());
        tracing::info!(
            shard,
            refused,
            taken,
            tries,
            "it is known which records are refused"
        );
        Ok(verdict)
    }

    /// Sends these, and aborts.
    async fn attempt(
        &mut self,
        batch: &Arc<RecordBatch>,
        indices: &[u32],
        parts: &mut Parts,
    ) -> Result<Answer, SinkError> {
        self.outlet.begin(self.shard)?;
        let sent = self.send(batch, indices, parts).await;
        let window = Arc::clone(self.outlet.window());
        window.fail(SinkError::Reset);
        self.outlet.abort(self.shard).await?;
        window.reopen();
        match sent {
            Ok(None) => Ok(Answer::Taken),
            // librdkafka looked at it alone.
            Ok(Some(reason)) => Ok(Answer::Refused {
                reason,
                too_large: false,
            }),
            Err(SinkError::Suspect {
                reason, too_large, ..
            }) => Ok(Answer::Refused { reason, too_large }),
            Err(error) => Err(error),
        }
    }

    async fn send(
        &self,
        batch: &Arc<RecordBatch>,
        indices: &[u32],
        parts: &mut Parts,
    ) -> Result<Option<String>, SinkError> {
        let (submission, ticket) = self.outlet.window().open(Some(Arc::clone(batch)), None)?;
        for &index in indices {
            let record = &batch.records[index as usize];
            let out = Outgoing {
                topic: &batch.topics[record.topic as usize],
                partition: None,
                key: batch.bytes(record.key),
                value: batch.bytes(record.value),
                headers: Some(parts.headers(batch, index as usize)),
                timestamp: parts.timestamp(batch, index as usize),
            };
            self.outlet.send(submission.id, index, out).await?;
        }
        submission.seal();
        Ok(ticket
            .await?
            .poison
            .into_iter()
            .next()
            .map(|(_, reason)| reason))
    }

    /// Ends the producer.
    pub(super) async fn close(mut self) {
        self.outlet.stop().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of so many records, those that `bad` says: what is found, and how many tries it took.
    fn found(n: u32, innocent: usize, bad: impl Fn(u32) -> bool) -> (Verdict, u32) {
        let mut search = Search::new((0..n).collect(), innocent);
        let mut tries = 0;
        while !search.next().is_empty() {
            let answer = match search.next().iter().any(|index| bad(*index)) {
                true => Answer::Refused {
                    reason: "bad".into(),
                    too_large: false,
                },
                false => Answer::Taken,
            };
            search.answered(answer);
            tries += 1;
        }
        (search.verdict, tries)
    }

    #[test]
    fn exactly_the_bad_ones_are_found_and_one_among_many_in_few_tries() {
        for n in 1..40 {
            for step in 1..=n {
                let bad = |index: u32| index % step == step / 2;
                let (verdict, tries) = found(n, 0, bad);
                for index in 0..n {
                    assert_eq!(verdict.refused.contains_key(&index), bad(index));
                    assert_eq!(verdict.taken.contains_key(&index), !bad(index));
                }
                assert!(tries <= 3 * n, "{tries} tries for {n}, every {step}th bad");
            }
        }
        let (_, one) = found(1_000, 0, |index| index == 617);
        assert!(one <= 22, "{one}");
        let (_, all) = found(400, 0, |_| true);
        assert!(all <= 410, "{all}");
        let (_, sorted) = found(400, 300, |index| index >= 300);
        assert!(sorted <= 112, "{sorted}");
    }
}
