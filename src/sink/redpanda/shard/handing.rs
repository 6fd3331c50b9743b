//! Handing records over: in rounds, those that may be refused alone.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::Instant;

use super::super::classify;
use super::super::judge::{Judge, Verdict};
use super::super::parts::{self, Parts};
use super::super::producer::{Handed, Outgoing, Traffic};
use super::{ShardSink, Transaction, WIDEST};
use crate::change::RecordBatch;
use crate::crash::Crash;
use crate::policy::Class;
use crate::sink::flight::{Report, Submission, Tag};
use crate::sink::trouble::{Cause, Help};
use crate::sink::{Fit, Settle, SinkError};

/// Waits for a full queue that holds nothing, before a record is taken to be larger than the queue.
const FULL_AND_EMPTY: u32 = 1000;

/// A round waits for its reports no longer than this: brokers that are this far away are kept busy.
const ROUND: Duration = Duration::from_millis(100);

impl ShardSink {
    /// Waits for the turn of the next batch: see [`Round`](super::round::Round).
    pub(super) async fn turn(&mut self) -> Result<(), SinkError> {
        let window = self.producer.window();
        let waits = window.messages() > 0;
        if waits {
            if self.round.is_open(Instant::now()) {
                return Ok(());
            }
            if let Ok(over) = tokio::time::timeout(ROUND, window.room(0)).await {
                over?;
            }
        }
        if let Some(sending) = self.sending.get_mut().take() {
            sending.await;
        }
        self.round.next(Instant::now(), waits);
        Ok(())
    }

    /// Has the round sent; `again`: although it is.
    pub(super) fn send_round(&mut self, again: bool) {
        let any = self.producer.window().messages() > 0;
        if any && (self.round.close(Instant::now()) || again) {
            let mut sending = self.producer.hasten();
            // It begins when it is first asked.
            if (&mut sending).now_or_never().is_none() {
                *self.sending.get_mut() = Some(sending);
            }
        }
    }

    /// What the topics in use take, if that is less than the batches that the producer makes.
    pub(super) fn narrower(&self) -> Option<usize> {
        let narrowest = self.sink.topics.narrowest()?.min(WIDEST);
        (narrowest < self.widest.unwrap_or(WIDEST)).then_some(narrowest)
    }

    pub(super) async fn hand_over(
        &mut self,
        submission: &Submission<'_>,
        batch: &RecordBatch,
        fits: &[Fit],
        verdict: &Verdict,
    ) -> Result<(), SinkError> {
        let window = Arc::clone(self.producer.window());
        let mut parts = Parts::new(batch, &self.sink.live.borrow().sink);
        let total = batch.records.len();
        let (mut index, mut bytes, mut empty) = (0, 0, 0);
        // What is under way may be taken only by itself.
        let mut alone = false;
        // The records from `index` on are announced to the window whenever it is not being waited for.
        submission.expect(total as u32);
        let mut back = None;
        while index < total {
            let record = &batch.records[index];
            let tag = Tag::new(submission.id, index as u32);
            let left = (total - index) as u32;
            let topic = record.topic as usize;
            let fit = fits.get(topic).unwrap_or(&Fit::Any);
            if let Fit::Never(reason) = fit {
                window.report(tag, Report::Poison(reason.to_string()));
                index += 1;
                continue;
            }
            let refused = verdict.refused.get(&(index as u32)).cloned();
            if let Some(reason) = refused.or_else(|| self.condemned(batch, index)) {
                window.report(tag, Report::Poison(reason));
                index += 1;
                continue;
            }
            let key = batch.bytes(record.key);
            let value = batch.bytes(record.value);
            let headers = back.take().unwrap_or_else(|| parts.headers(batch, index));
            if let Fit::Within(most) = fit
                && let size = parts::size(key, value, &headers)
                && size > *most
            {
                let reason = format!(
                    "it has {size} bytes, and the topic takes {most} (its max.message.bytes)"
                );
                window.report(tag, Report::Poison(reason));
                index += 1;
                continue;
            }
            let out = Outgoing {
                topic: &batch.topics[topic],
                partition: None,
                key,
                value,
                headers: Some(headers),
                timestamp: parts.timestamp(batch, index),
            };
            let by_itself = verdict.alone.contains(&(index as u32));
            if by_itself && !verdict.is_proven {
                submission.unexpect(left);
                self.send_alone(submission, index as u32, out).await?;
                submission.expect(left - 1);
                index += 1;
                continue;
            }
            if by_itself || alone {
                submission.unexpect(left);
                window.room(0).await?;
                submission.expect(left);
                alone = by_itself;
            }
            match self.producer.hand(tag, out)? {
                Handed::Taken => {
                    Crash::MidSend.here();
                    bytes += key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
                    (index, empty) = (index + 1, 0);
                }
                Handed::Reported => {
                    if let Some(broken) = window.broken() {
                        return Err(broken);
                    }
                    index += 1;
                }
                Handed::Full(_) if empty >= FULL_AND_EMPTY => {
                    let reason = "larger than the producer's queue (queue.buffering.max.kbytes)";
                    window.report(tag, Report::Poison(reason.to_owned()));
                    (index, empty) = (index + 1, 0);
                }
                Handed::Full(headers) => {
                    back = headers;
                    submission.unexpect(left);
                    empty += u32::from(window.messages() == 0);
                    self.producer.room().await?;
                    submission.expect(left);
                }
            }
        }
        if alone {
            window.room(0).await?;
        }
        if !self.suspects.is_empty() {
            for position in &batch.source.positions {
                self.suspects.remove(position);
            }
        }
        self.producer
            .traffic()
            .counters()
            .produced(total as u64, bytes as u64);
        if self.round.add(total, bytes) {
            self.send_round(false);
        }
        Ok(())
    }

    /// Finds out which records of a batch are refused, if some of it were refused together with others.
    pub(super) async fn judge(&mut self, batch: &Arc<RecordBatch>) -> Result<Verdict, SinkError> {
        let suspects: Vec<u32> = (0..batch.records.len())
            .filter(|i| self.is_suspect(batch, *i) && self.condemned(batch, *i).is_none())
            .map(|i| i as u32)
            .collect();
        if suspects.len() < 2 {
            return Ok(Verdict::unknown(&suspects));
        }
        let mut judge = match self.judge.take() {
            Some(judge) => judge,
            None => {
                let traffic = Traffic::of(&self.sink);
                Judge::new(
                    self.shard,
                    self.sink.judge_config(self.shard),
                    Arc::new(traffic),
                )?
            }
        };
        let (settings, within) = {
            let live = self.sink.live.borrow();
            (live.sink.clone(), live.sink.attempt_timeout)
        };
        let takes = |topic: &str| self.sink.topics.takes(topic);
        let topic = self.sink.checkpoint_topic();
        let judged = judge
            .judge(batch, &suspects, &settings, takes, (&topic, within))
            .await;
        match judged {
            Ok(verdict) => {
                self.judge = Some(judge);
                // Should their transaction fail for another reason, they need not be tried again.
                for (index, reason) in &verdict.refused {
                    let source = batch.records[*index as usize].source as usize;
                    if let Some(position) = batch.source.positions.get(source) {
                        self.condemned.insert(*position, reason.clone());
                    }
                }
                Ok(verdict)
            }
            Err(error) => {
                judge.close().await;
                match error {
                    // No right to a transaction, perhaps, which delivery at least once does not need.
                    SinkError::Transaction { .. } => {
                        tracing::warn!(shard = self.shard, %error, "records that were refused together are sent one by one");
                        Ok(Verdict::unknown(&suspects))
                    }
                    error => Err(error),
                }
            }
        }
    }

    pub(super) fn is_suspect(&self, batch: &RecordBatch, index: usize) -> bool {
        !self.suspects.is_empty()
            && batch
                .source
                .positions
                .get(batch.records[index].source as usize)
                .is_some_and(|p| self.suspects.contains(p))
    }

    pub(super) fn condemned(&self, batch: &RecordBatch, index: usize) -> Option<String> {
        if self.condemned.is_empty() {
            return None;
        }
        let source = batch.records[index].source as usize;
        let position = batch.source.positions.get(source)?;
        self.condemned.get(position).cloned()
    }

    /// Sends a record with nothing else under way, so that a refusal is about it and nothing can overtake it.
    pub(super) async fn send_alone(
        &mut self,
        submission: &Submission<'_>,
        index: u32,
        out: Outgoing<'_>,
    ) -> Result<(), SinkError> {
        let window = Arc::clone(self.producer.window());
        window.room(0).await?;
        window.set_alone(Some((submission.id, index)));
        self.producer.send(submission, index, out).await?;
        window.room(0).await?;
        if self.is_atomic()
            && let Some((_, reason)) = window.condemned()
        {
            // It has broken its transaction: the next one has a letter in its place.
            let error = SinkError::Suspect {
                records: 1,
                too_large: false,
                reason,
            };
            window.fail(error.clone());
            return Err(error);
        }
        window.set_alone(None);
        if self.producer.is_finished() {
            // To librdkafka the refusal left a gap; here it is known, and goes to the dead letters.
            self.producer.replace_producer().await?;
        }
        Ok(())
    }

    /// What a transaction failed for whose records librdkafka let go of: this one is for `topic`. The coordinator refuses
    /// partitions where the records of others were not even sent, so what is refused is looked for.
    pub(super) async fn why_purged(&self, topic: String) -> SinkError {
        let broken_by = match self.transaction {
            Transaction::Begun { .. } => self.producer.broken_by(),
            _ => None,
        };
        let sink = &self.sink;
        let Some(error) = broken_by.filter(classify::refused) else {
            let reason = "its transaction failed".to_owned();
            let error = SinkError::Delivery {
                topic,
                reason,
                class: Class::Retryable,
            };
            if let Some(permit) = sink.counting(None) {
                permit.failure(&error);
            }
            return error;
        };
        let own = sink.checkpoint_topic();
        let mut topics: Vec<String> = self.producer.window().topics().into_iter().collect();
        topics.push(own.clone());
        let forbidden = sink.topics.forbidden(topics.clone()).await;
        let topic = match forbidden.contains(&topic) {
            true => topic,
            // Where the brokers do not say, what is ours is the least likely.
            false => match forbidden.into_iter().next() {
                Some(forbidden) => forbidden,
                None if topic == own => topics.swap_remove(0),
                None => topic,
            },
        };
        let reason = error.to_string();
        let cause = Cause::Writing(topic.as_str().into());
        sink.troubles.raise(cause, Help::Needed, reason.as_str());
        SinkError::Refused { topic, reason }
    }

    /// Learns from the reports that have come in which records are refused, or may be.
    pub(super) fn learn(&mut self) {
        self.condemned.extend(self.producer.window().condemned());
        let suspects = self.producer.window().suspects();
        if !suspects.is_empty() {
            tracing::warn!(
                shard = self.shard,
                records = suspects.len(),
                "records were refused together for the content of one, which is looked for"
            );
        }
        self.suspects.extend(suspects);
        if let Some(SinkError::Refused { topic, reason }) = self.producer.window().broken() {
            let cause = Cause::Writing(topic.into());
            self.sink.troubles.raise(cause, Help::Needed, reason);
        }
    }
}
