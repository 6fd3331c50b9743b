//! What is true together: transactions, and the checkpoints of what is delivered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;

use super::super::dead_letters;
use super::super::producer::Outgoing;
use super::{ShardSink, Transaction};
use crate::change::Position;
use crate::checkpoint::{Settlement, topic as checkpoint};
use crate::crash::Crash;
use crate::dead_letter::DeadLetter;
use crate::policy::Class;
use crate::progress::Progress;
use crate::sink::flight::Submission;
use crate::sink::{Delivered, Settle, SinkError, Ticket};

/// A partition that was added is known to every broker by then.
const PARTITION_SHOWS: Duration = Duration::from_secs(10);
/// How often it is looked how far long work is.
const LOOK: Duration = Duration::from_millis(100);

/// Checkpoints that were sent before their transaction's end, beside its records.
pub(super) struct Foreseen {
    records: Vec<CheckpointRecord>,
    ticket: Ticket,
}

impl ShardSink {
    /// Sends checkpoints of the transaction that is begun, if the producer takes them now. Others that follow count for more.
    pub(super) fn send_ahead(&mut self, records: Vec<CheckpointRecord>) {
        let is_begun = matches!(self.transaction, Transaction::Begun { .. });
        if !is_begun || records.is_empty() {
            return;
        }
        let window = Arc::clone(self.producer.window());
        // What is wrong with it is told when the transaction ends.
        let Ok((submission, ticket)) = window.open(None, None) else {
            return;
        };
        let sent = self
            .send_checkpoints(&submission, 0, &records)
            .now_or_never();
        match sent {
            Some(Ok(())) => {
                submission.seal();
                self.foreseen = Some(Foreseen { records, ticket });
            }
            // The queue is full: what is in it stays, and all is said again in the end.
            None => submission.seal(),
            Some(Err(_)) => {}
        }
    }

    /// Aborts, and says whether the producer is as good as new.
    pub(super) async fn abort(&mut self) -> bool {
        self.producer.window().fail(SinkError::Reset);
        if self.producer.is_outdated() {
            return false;
        }
        let within = self.sink.live.borrow().sink.attempt_timeout;
        let aborting = tokio::time::timeout(within, self.producer.abort(self.shard));
        let waits = self.sink.policies.waits();
        let aborted = waits.during("abort a transaction", aborting).await;
        let good = matches!(aborted, Ok(Ok(()))) && !self.producer.is_finished();
        if !good || self.narrower().is_some() {
            return false;
        }
        self.learn();
        self.producer.window().reopen();
        self.sink.topics.forget();
        true
    }

    pub(super) fn begin(&mut self) -> Result<(), SinkError> {
        if let Transaction::None { claimed } = self.transaction {
            self.producer.begin(self.shard)?;
            self.foreseen = None;
            self.transaction = Transaction::Begun { claimed };
        }
        Ok(())
    }

    /// Sends the letters, the checkpoints and, once, whose the shard is, and commits. What it takes for the answer to
    /// come counts as for a batch: each `attempt_timeout` without one is a failure.
    pub(super) async fn commit(
        &mut self,
        letters: &[(Position, Option<&DeadLetter>)],
        mut records: Vec<CheckpointRecord>,
    ) -> Result<(), SinkError> {
        let permit = match self.transaction {
            Transaction::Begun { .. } => None,
            _ => Some(self.sink.gate().await),
        };
        self.begin()?;
        let Transaction::Begun { claimed } = self.transaction else {
            return Err(SinkError::Reset);
        };
        let topic = self.sink.live.borrow().dead_letter.topic.clone();
        if !letters.is_empty() {
            self.sink.find_dead_letter_topic(&topic).await?;
        }
        let room = self.sink.letter_room(&topic, self.sink.largest_message());
        let foreseen = self.foreseen.take().filter(|f| f.records == records);
        if foreseen.is_some() {
            records.clear();
        }
        if !claimed {
            let partition = self.sink.own_partition(self.shard).await?;
            records.push(self.claim(partition));
        }
        let window = Arc::clone(self.producer.window());
        let (submission, ticket) = window.open(None, permit)?;
        for (index, (position, letter)) in (0_u32..).zip(letters) {
            let key = position.to_string();
            let value = letter.map(|l| l.change.to_json_within(room));
            let out = Outgoing {
                topic: &topic,
                partition: None,
                key: Some(key.as_bytes()),
                value: value.as_deref(),
                headers: letter.map(dead_letters::headers_of),
                timestamp: None,
            };
            self.producer.send(&submission, index, out).await?;
        }
        self.send_checkpoints(&submission, letters.len() as u32, &records)
            .await?;
        submission.seal();
        let tickets = foreseen.map(|f| f.ticket).into_iter().chain([ticket]);
        for mut ticket in tickets {
            let delivered = match (&mut ticket).now_or_never() {
                Some(delivered) => delivered,
                // Nothing joins them.
                None => self.producer.in_haste(ticket).await,
            };
            self.kept(delivered?)?;
        }
        Crash::BeforeCommit.here();
        self.transaction = Transaction::Committing;
        let mut committing = std::pin::pin!(self.producer.commit(self.shard));
        let committed = loop {
            let within = self.sink.live.borrow().sink.attempt_timeout;
            match tokio::time::timeout(within, &mut committing).await {
                Ok(committed) => break committed,
                Err(_) => self.sink.policies.record_failure("no answer to a commit"),
            }
        };
        committed.inspect_err(|error| self.sink.policies.record_failure(error))?;
        Crash::AfterCommit.here();
        self.transaction = Transaction::None { claimed: true };
        self.condemned.clear();
        for letter in letters.iter().filter_map(|(_, letter)| *letter) {
            letter.log();
        }
        Ok(())
    }

    /// Writes these checkpoints, of whichever shards: of an atomic sink all of them or none.
    pub(in crate::sink::redpanda) async fn write_by_hand(
        &mut self,
        records: Vec<CheckpointRecord>,
    ) -> Result<(), SinkError> {
        let (of, traffic) = (records.len() as u64, Arc::clone(self.producer.traffic()));
        let acknowledged = || traffic.snapshot().acked;
        let before = acknowledged();
        let mut progress = Progress::begin("writing checkpoints", Instant::now());
        let writing = async {
            match self.is_atomic() {
                true => self.commit(&[], records).await,
                false => self.move_checkpoints(&records).await,
            }
        };
        tokio::pin!(writing);
        loop {
            match tokio::time::timeout(LOOK, &mut writing).await {
                Ok(written) => return written,
                Err(_) => {
                    let done = acknowledged().saturating_sub(before);
                    progress.reach(done.min(of), || Some(of), Instant::now());
                }
            }
        }
    }

    /// Makes true, together, that what was handed over is delivered and that the letters of these changes are gone. Of
    /// an atomic sink only.
    pub(crate) async fn take_away(&mut self, letters: &[Position]) -> Result<(), SinkError> {
        let tombstones: Vec<_> = letters.iter().map(|position| (*position, None)).collect();
        self.commit(&tombstones, Vec::new()).await
    }

    pub(super) async fn send_checkpoints(
        &self,
        submission: &Submission<'_>,
        from: u32,
        records: &[CheckpointRecord],
    ) -> Result<(), SinkError> {
        let topic = self.sink.checkpoint_topic();
        for (index, (partition, key, value)) in (from..).zip(records) {
            let out = Outgoing {
                topic: &topic,
                partition: Some(*partition),
                key: Some(key.as_bytes()),
                value: value.as_deref(),
                headers: None,
                timestamp: None,
            };
            self.producer.send(submission, index, out).await?;
        }
        Ok(())
    }

    /// Nothing of ours may be refused.
    pub(super) fn kept(&self, delivered: Delivered) -> Result<(), SinkError> {
        match delivered.poison.into_iter().next() {
            None => Ok(()),
            Some((_, reason)) => Err(SinkError::Topic {
                topic: self.sink.checkpoint_topic(),
                reason: format!("a checkpoint or a dead letter was refused: {reason}"),
                class: Class::Fatal,
            }),
        }
    }

    pub(super) async fn write_checkpoints(
        &mut self,
        records: &[CheckpointRecord],
    ) -> Result<(), SinkError> {
        if records.is_empty() {
            return Ok(());
        }
        let permit = self.sink.gate().await;
        let window = Arc::clone(self.producer.window());
        let (submission, ticket) = window.open(None, Some(permit))?;
        self.send_checkpoints(&submission, 0, records).await?;
        submission.seal();
        if window.messages() > records.len() {
            return self.kept(ticket.await?);
        }
        let delivered = self.producer.in_haste(ticket).await;
        self.kept(delivered?)
    }

    /// Writes checkpoints into partitions that may have been added a moment ago: not every broker knows them yet,
    /// and a producer that has been told "unknown" has to be made anew to ask again.
    pub(in crate::sink::redpanda) async fn move_checkpoints(
        &mut self,
        records: &[CheckpointRecord],
    ) -> Result<(), SinkError> {
        let deadline = tokio::time::Instant::now() + PARTITION_SHOWS;
        loop {
            match self.write_checkpoints(records).await {
                Err(error)
                    if error.class() == Class::Retryable
                        && tokio::time::Instant::now() < deadline =>
                {
                    tracing::debug!(shard = self.shard, %error, "moving checkpoints again");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    self.let_go().await?;
                }
                done => return done,
            }
        }
    }
}

/// A record of the checkpoint topic: partition, key, value.
pub(in crate::sink::redpanda) type CheckpointRecord = (i32, String, Option<Vec<u8>>);

/// … those of a settlement.
pub(super) fn checkpoint_records(partition: i32, settlement: &Settlement) -> Vec<CheckpointRecord> {
    let moved = settlement
        .progress
        .iter()
        .map(|(group, c)| (partition, group.0.to_string(), Some(checkpoint::encode(c))));
    let forgotten = settlement
        .forgotten
        .iter()
        .map(|group| (partition, group.0.to_string(), None));
    moved.chain(forgotten).collect()
}
