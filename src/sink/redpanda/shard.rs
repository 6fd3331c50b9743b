//! One shard's way to the brokers: batches in order, and its checkpoints.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use rdkafka::config::ClientConfig;
use rdkafka::message::{BorrowedMessage, Message};
use tokio::time::Instant;

use super::judge::{Judge, Verdict};
use super::outlet::{Handed, Lane, Outgoing, Outlet};
use super::parts::{self, Parts};
use super::place::Place;
use super::{RedpandaSink, client, dead_letters};
use crate::change::{Position, RecordBatch};
use crate::checkpoint::topic::Owner;
use crate::checkpoint::{Checkpoints, Settlement, topic as checkpoint};
use crate::config::settings::Delivery;
use crate::crash::Crash;
use crate::dead_letter::DeadLetter;
use crate::policy::Class;
use crate::sink::flight::{BatchId, Report, Snapshot, Tag};
use crate::sink::trouble::{Cause, Help};
use crate::sink::{
    Delivered, Fit, Leave, Look, Recovery, Settle, SinkError, Ticket, is_topic_name,
};

/// The producer of replays has a number that no shard has.
pub(crate) const REPLAY_SHARD: u32 = u32::MAX;
/// Whoever takes a shard over says so in the checkpoint topic within this time.
const CLAIM_SHOWS: Duration = Duration::from_secs(1);
/// However short an attempt may be, taking a shard may take this long. A fresh producer's first look for its coordinator
/// is asked again only after 500 ms, so half a second is nothing wrong; three of them are.
const TAKING: Duration = Duration::from_millis(1_500);
/// A partition that was added is known to every broker by then.
const PARTITION_SHOWS: Duration = Duration::from_secs(10);
/// Bytes of the largest batch that librdkafka makes unless it is told otherwise (`batch.size`).
const WIDEST: usize = 1_000_000;
/// Waits for a full queue that holds nothing, before a record is taken to be larger than the queue.
const FULL_AND_EMPTY: u32 = 1000;

/// What comes within this time of a round's first records joins them: librdkafka's own `linger.ms`, before which none of
/// them is sent.
const GATHERING: Duration = Duration::from_millis(5);
/// … and what comes later waits for the round's reports, but no longer than this: brokers that are this far away are
/// kept busy.
const ROUND: Duration = Duration::from_millis(100);

/// A shard's producer.
///
/// It is the shard's alone, so its records keep their order. With `delivery = "exactly-once"` it is transactional: a
/// transaction begins with the first batch after a settlement and ends with the next, the letters and the checkpoint in
/// it, when every report has come in.
pub struct ShardSink {
    sink: Arc<RedpandaSink>,
    shard: u32,
    outlet: Outlet,
    /// Changes of which a record was refused together with others: sent alone next time.
    suspects: HashSet<Position>,
    /// What finds out which of them are refused; there once it had to.
    judge: Option<Judge>,
    /// … and those of which one was refused alone, with the reason: their transaction was aborted for it.
    condemned: HashMap<Position, String>,
    transaction: Transaction,
    /// Bytes of the largest batch that the producer makes, if it is bounded for a topic's sake.
    widest: Option<usize>,
    /// When the records that are under way began to be handed over.
    round: Instant,
    /// It has taken the shard, whose checkpoints were read after that, and has said so; nothing was done with it since.
    is_ready: bool,
}

/// Where a producer is with its transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transaction {
    /// It delivers at least once.
    Never,
    /// The shard has yet to be taken over, by this producer or another.
    Unopened,
    /// Open for the next batch.
    None {
        /// The checkpoint topic says whose the shard is.
        claimed: bool,
    },
    /// Begun.
    Begun {
        /// As above.
        claimed: bool,
    },
    /// Whether it is committed, only the broker knows until it answers.
    Committing,
}

impl ShardSink {
    pub(super) fn open(
        sink: Arc<RedpandaSink>,
        shard: u32,
        lane: Arc<Lane>,
        delivery: Delivery,
    ) -> Result<Self, SinkError> {
        let (made, widest) = sink.shard_config(shard, delivery);
        let transaction = match delivery {
            Delivery::AtLeastOnce => Transaction::Never,
            Delivery::ExactlyOnce => Transaction::Unopened,
        };
        Ok(Self {
            outlet: Outlet::new(made, lane)?,
            widest,
            round: Instant::now(),
            sink,
            shard,
            suspects: HashSet::new(),
            judge: None,
            condemned: HashMap::new(),
            transaction,
            is_ready: false,
        })
    }

    /// Has the producer connect, so that it answers at once when it is needed.
    ///
    /// Metadata is what makes librdkafka ask for a producer's id and for a transaction's coordinator at once
    /// (`rd_kafka_idemp_pid_fsm`): of a fresh producer it does so after 500 ms only, for nobody is connected yet.
    pub(super) async fn warm(&self, within: Duration) {
        let topic = self.sink.checkpoint_topic();
        if let Err(error) = self.outlet.find(topic, within).await {
            tracing::debug!(shard = self.shard, %error, "the producer has yet to connect");
        }
    }

    /// Takes the shard: whoever had it before can do nothing any more. One that delivers at least once takes nothing.
    pub(super) async fn fence(&mut self, within: Duration) -> Result<(), SinkError> {
        if self.transaction == Transaction::Unopened {
            let topic = self.sink.checkpoint_topic();
            self.outlet.take_over(self.shard, &topic, within).await?;
            self.transaction = Transaction::None { claimed: false };
        }
        Ok(())
    }

    /// Says whose the shard is, within this time.
    pub(super) async fn claim_within(&mut self, within: Duration) -> Result<(), SinkError> {
        let said = tokio::time::timeout(within, self.say_whose()).await;
        said.unwrap_or(Err(SinkError::Reset))
    }

    /// The shard's checkpoints were read after [`Self::fence`], so [`Settle::open`] has nothing to do.
    pub(super) fn is_read(&mut self) {
        self.outlet.show();
        self.is_ready = true;
    }

    /// Waits for the turn of the next batch.
    ///
    /// Of an idempotent producer, librdkafka has one request of a partition under way at a time, for it holds the
    /// *messages* under way against the five requests that it allows (`rd_kafka_toppar_producer_serve`, 2.12); and as
    /// long as there are more of them whose `linger.ms` is over, the thread that would send them asks whether it may
    /// without a pause, a processor for each shard. So there are none: batches go in rounds, and what comes while a
    /// round is under way waits here, where waiting costs nothing.
    async fn turn(&mut self) -> Result<(), SinkError> {
        let window = self.outlet.window();
        if window.messages() > 0 {
            if self.round.elapsed() < GATHERING {
                return Ok(());
            }
            if let Ok(over) = tokio::time::timeout(ROUND, window.room(0)).await {
                over?;
            }
        }
        self.round = Instant::now();
        Ok(())
    }

    /// Waits for leave and hands a batch over; the ticket resolves with its delivery.
    pub async fn submit(&mut self, batch: Arc<RecordBatch>) -> Result<Ticket, SinkError> {
        if let Some(broken) = self.outlet.window().broken() {
            return Err(broken);
        }
        let fits = loop {
            let look = self.look(batch.clone(), true).await?;
            if look.waits.is_empty() {
                break look.fits;
            }
            let topics = look.waits.iter().map(|i| batch.topics[*i as usize].clone());
            self.recovery(topics.collect()).await;
        };
        let leave = self.leave(batch.clone()).await?;
        self.hand(batch, fits, leave).await
    }

    async fn take_over(&mut self) -> Result<Checkpoints, SinkError> {
        let within = self.patience();
        let permit = self.sink.gate().await;
        // A probe that others would wait for one after the other, for what each takes half a second: half-open, all go
        // at once, and what each meets counts.
        let permit = Some(permit).filter(|_| self.sink.is_closed());
        let topic = self.sink.checkpoint_topic();
        let taken = async {
            let partition = self.sink.own_partition(self.shard).await?;
            self.outlet.take_over(self.shard, &topic, within).await?;
            self.sink.read_shard(self.shard, partition, within).await
        };
        match taken.await {
            Ok((checkpoints, _)) => {
                if let Some(permit) = self.sink.counting(permit) {
                    permit.success();
                }
                // A replay is of no shard, so there is nothing to claim.
                let claimed = self.shard == REPLAY_SHARD;
                self.transaction = Transaction::None { claimed };
                Ok(checkpoints)
            }
            Err(error) => {
                if error.class() == Class::Retryable
                    && let Some(permit) = self.sink.counting(permit)
                {
                    permit.failure(&error);
                }
                self.unopen();
                Err(error)
            }
        }
    }

    /// How long each step of taking the shard may take.
    fn patience(&self) -> Duration {
        self.sink.live.borrow().sink.attempt_timeout.max(TAKING)
    }

    /// The record that says whose the shard is.
    fn claim(&self, partition: i32) -> CheckpointRecord {
        let owner = self.sink.owner();
        let key = checkpoint::OWNER_KEY.to_owned();
        (partition, key, Some(owner.encode()))
    }

    /// Says at once whose the shard is, so that everybody knows it of a shard that has nothing to do, too.
    async fn say_whose(&mut self) -> Result<(), SinkError> {
        if self.shard == REPLAY_SHARD {
            return Ok(());
        }
        let said = match self.is_atomic() {
            true => self.commit(&[], Vec::new()).await,
            false => {
                let partition = self.sink.own_partition(self.shard).await?;
                self.write_checkpoints(&[self.claim(partition)]).await
            }
        };
        if said.is_err() {
            let fenced = self.outlet.is_fenced();
            self.unopen();
            // Of two that start at once one is late: it is not to take the shard back.
            if fenced {
                self.check_owner().await?;
            }
        }
        said
    }

    /// Whatever state it is in: the next try has another producer.
    fn unopen(&mut self) {
        if self.is_atomic() {
            self.transaction = Transaction::Unopened;
        }
        self.outlet.window().fail(SinkError::Reset);
    }

    /// Fails if the shard was claimed by another instance since this producer took it.
    async fn check_owner(&self) -> Result<(), SinkError> {
        // Whoever fenced this producer says so in the topic with its first settlement.
        tokio::time::sleep(CLAIM_SHOWS).await;
        let within = self.patience();
        let partition = self.sink.own_partition(self.shard).await?;
        let (_, owner) = self.sink.read_shard(self.shard, partition, within).await?;
        self.is_ours(owner)
    }

    fn is_ours(&self, owner: Option<Owner>) -> Result<(), SinkError> {
        match owner {
            Some(owner) if owner.instance != self.sink.instance => {
                let at = owner.admin.map_or(String::new(), |at| format!(" at {at}"));
                Err(SinkError::Fenced {
                    shard: self.shard,
                    reason: format!(
                        "its checkpoints are written by {}{at}, this is {}",
                        owner.instance, self.sink.instance
                    ),
                })
            }
            _ => Ok(()),
        }
    }

    /// Aborts, and says whether the producer is as good as new.
    async fn abort(&mut self) -> bool {
        self.outlet.window().fail(SinkError::Reset);
        if self.outlet.is_outdated() {
            return false;
        }
        let within = self.sink.live.borrow().sink.attempt_timeout;
        let aborted = tokio::time::timeout(within, self.outlet.abort(self.shard)).await;
        let good = matches!(aborted, Ok(Ok(()))) && !self.outlet.is_finished();
        if !good || self.narrower().is_some() {
            return false;
        }
        self.learn();
        self.outlet.window().reopen();
        self.sink.topics.forget();
        true
    }

    /// What the topics in use take, if that is less than the batches that the producer makes.
    fn narrower(&self) -> Option<usize> {
        let narrowest = self.sink.topics.narrowest()?.min(WIDEST);
        (narrowest < self.widest.unwrap_or(WIDEST)).then_some(narrowest)
    }

    fn begin(&mut self) -> Result<(), SinkError> {
        if let Transaction::None { claimed } = self.transaction {
            self.outlet.begin(self.shard)?;
            self.transaction = Transaction::Begun { claimed };
        }
        Ok(())
    }

    /// Sends the letters, the checkpoints and, once, whose the shard is, and commits. What it takes for the answer to
    /// come counts as for a batch: each `attempt_timeout` without one is a failure.
    async fn commit(
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
        if !claimed {
            let partition = self.sink.own_partition(self.shard).await?;
            records.push(self.claim(partition));
        }
        let window = Arc::clone(self.outlet.window());
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
            self.outlet.send(submission.id, index, out).await?;
        }
        self.send_checkpoints(submission.id, letters.len() as u32, &records)
            .await?;
        submission.seal();
        self.kept(ticket.await?)?;
        Crash::BeforeCommit.here();
        self.transaction = Transaction::Committing;
        let mut committing = std::pin::pin!(self.outlet.commit(self.shard));
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
    pub(super) async fn write_by_hand(
        &mut self,
        records: Vec<CheckpointRecord>,
    ) -> Result<(), SinkError> {
        match self.is_atomic() {
            true => self.commit(&[], records).await,
            false => self.move_checkpoints(&records).await,
        }
    }

    /// Makes true, together, that what was handed over is delivered and that the letters of these changes are gone. Of
    /// an atomic sink only.
    pub(crate) async fn take_away(&mut self, letters: &[Position]) -> Result<(), SinkError> {
        let tombstones: Vec<_> = letters.iter().map(|position| (*position, None)).collect();
        self.commit(&tombstones, Vec::new()).await
    }

    async fn send_checkpoints(
        &self,
        id: BatchId,
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
            self.outlet.send(id, index, out).await?;
        }
        Ok(())
    }

    /// Nothing of ours may be refused.
    fn kept(&self, delivered: Delivered) -> Result<(), SinkError> {
        match delivered.poison.into_iter().next() {
            None => Ok(()),
            Some((_, reason)) => Err(SinkError::Topic {
                topic: self.sink.checkpoint_topic(),
                reason: format!("a checkpoint or a dead letter was refused: {reason}"),
                class: Class::Fatal,
            }),
        }
    }

    async fn hand_over(
        &mut self,
        id: BatchId,
        batch: &RecordBatch,
        fits: &[Fit],
        verdict: &Verdict,
    ) -> Result<(), SinkError> {
        let window = Arc::clone(self.outlet.window());
        let mut parts = Parts::new(batch, &self.sink.live.borrow().sink);
        let total = batch.records.len();
        let (mut index, mut bytes, mut empty) = (0, 0, 0);
        // What is under way may be taken only by itself.
        let mut alone = false;
        // The records from `index` on are announced to the window whenever it is not being waited for.
        window.expect(id, total as u32);
        let mut back = None;
        while index < total {
            let record = &batch.records[index];
            let tag = Tag::new(id, index as u32);
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
                window.unexpect(id, left);
                self.send_alone(id, index as u32, out).await?;
                window.expect(id, left - 1);
                index += 1;
                continue;
            }
            if by_itself || alone {
                window.unexpect(id, left);
                window.room(0).await?;
                window.expect(id, left);
                alone = by_itself;
            }
            match self.outlet.hand(tag, out)? {
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
                    window.unexpect(id, left);
                    empty += u32::from(window.messages() == 0);
                    self.outlet.room().await?;
                    window.expect(id, left);
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
        self.outlet
            .lane()
            .counters()
            .produced(total as u64, bytes as u64);
        Ok(())
    }

    /// Finds out which records of a batch are refused, if some of it were refused together with others.
    async fn judge(&mut self, batch: &Arc<RecordBatch>) -> Result<Verdict, SinkError> {
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
                let lane = Lane::new(
                    self.sink.troubles.clone(),
                    self.sink.ends.clone(),
                    self.sink.security.clone(),
                );
                Judge::new(
                    self.shard,
                    self.sink.judge_config(self.shard),
                    Arc::new(lane),
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

    fn is_suspect(&self, batch: &RecordBatch, index: usize) -> bool {
        !self.suspects.is_empty()
            && batch
                .source
                .positions
                .get(batch.records[index].source as usize)
                .is_some_and(|p| self.suspects.contains(p))
    }

    fn condemned(&self, batch: &RecordBatch, index: usize) -> Option<String> {
        if self.condemned.is_empty() {
            return None;
        }
        let source = batch.records[index].source as usize;
        let position = batch.source.positions.get(source)?;
        self.condemned.get(position).cloned()
    }

    /// Sends a record with nothing else under way, so that a refusal is about it and nothing can overtake it.
    async fn send_alone(
        &mut self,
        id: BatchId,
        index: u32,
        out: Outgoing<'_>,
    ) -> Result<(), SinkError> {
        let window = Arc::clone(self.outlet.window());
        window.room(0).await?;
        window.set_alone(Some((id, index)));
        self.outlet.send(id, index, out).await?;
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
        if self.outlet.is_finished() {
            // To librdkafka the refusal left a gap; here it is known, and goes to the dead letters.
            self.outlet.replace_producer().await?;
        }
        Ok(())
    }

    async fn write_checkpoints(&mut self, records: &[CheckpointRecord]) -> Result<(), SinkError> {
        if records.is_empty() {
            return Ok(());
        }
        let permit = self.sink.gate().await;
        let window = Arc::clone(self.outlet.window());
        let (submission, ticket) = window.open(None, Some(permit))?;
        self.send_checkpoints(submission.id, 0, records).await?;
        submission.seal();
        self.kept(ticket.await?)
    }

    /// Writes checkpoints into partitions that may have been added a moment ago: not every broker knows them yet,
    /// and a producer that has been told "unknown" has to be made anew to ask again.
    pub(super) async fn move_checkpoints(
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

    /// Counts, queue fill and age of this shard, over all its producers.
    pub fn snapshot(&self) -> Snapshot {
        self.outlet.lane().snapshot()
    }

    /// Lets go of everything under way, its tickets resolving as [`SinkError::Reset`], and starts over with a new
    /// producer.
    async fn let_go(&mut self) -> Result<(), SinkError> {
        self.outlet.stop().await;
        // Only now every report has come in.
        self.learn();
        self.sink.topics.forget();
        let delivery = match self.transaction {
            Transaction::Never => Delivery::AtLeastOnce,
            _ => Delivery::ExactlyOnce,
        };
        let (made, widest) = self.sink.shard_config(self.shard, delivery);
        self.widest = widest;
        self.outlet.restart_with(made).await
    }

    /// Between two transactions: goes on with a producer that has the credentials that are in force now. Nothing is under
    /// way then, so nothing is lost, repeated or read again.
    async fn renew(&mut self) -> Result<(), SinkError> {
        let delivery = match self.transaction {
            Transaction::Never => Delivery::AtLeastOnce,
            Transaction::None { .. } => Delivery::ExactlyOnce,
            _ => return Ok(()),
        };
        let window = Arc::clone(self.outlet.window());
        window.room(0).await?;
        let renewed = async {
            let within = self.sink.live.borrow().sink.attempt_timeout;
            if delivery == Delivery::ExactlyOnce && self.shard != REPLAY_SHARD {
                // Whoever has the shard by now must not be fenced for a password's sake.
                let partition = self.sink.own_partition(self.shard).await?;
                let (_, owner) = self.sink.read_shard(self.shard, partition, within).await?;
                self.is_ours(owner)?;
            }
            let (made, widest) = self.sink.shard_config(self.shard, delivery);
            self.widest = widest;
            self.outlet.replace_producer_with(made).await?;
            if delivery == Delivery::ExactlyOnce {
                let topic = self.sink.checkpoint_topic();
                self.outlet.take_over(self.shard, &topic, within).await?;
            }
            tracing::info!(shard = self.shard, "the producer has the new credentials");
            Ok(())
        };
        let renewed: Result<(), SinkError> = renewed.await;
        if renewed.is_err() {
            if delivery == Delivery::ExactlyOnce {
                self.transaction = Transaction::Unopened;
            }
            window.fail(SinkError::Reset);
        }
        renewed
    }

    /// Learns from the reports that have come in which records are refused, or may be.
    fn learn(&mut self) {
        self.condemned.extend(self.outlet.window().condemned());
        let suspects = self.outlet.window().suspects();
        if !suspects.is_empty() {
            tracing::warn!(
                shard = self.shard,
                records = suspects.len(),
                "records were refused together for the content of one, which is looked for"
            );
        }
        self.suspects.extend(suspects);
        if let Some(SinkError::Refused { topic, reason }) = self.outlet.window().broken() {
            let cause = Cause::Writing(topic.into());
            self.sink.troubles.raise(cause, Help::Needed, reason);
        }
    }
}

impl Settle for ShardSink {
    fn is_atomic(&self) -> bool {
        self.transaction != Transaction::Never
    }

    fn open(&mut self) -> BoxFuture<'_, Result<Option<Checkpoints>, SinkError>> {
        Box::pin(async move {
            let is_broken = self.outlet.window().broken().is_some();
            if std::mem::take(&mut self.is_ready) && !is_broken {
                return Ok(None);
            }
            if is_broken {
                self.outlet.stop().await;
                self.outlet.restart().await?;
            }
            let found = match self.transaction {
                Transaction::Never => None,
                _ => Some(self.take_over().await?),
            };
            self.say_whose().await?;
            Ok(found)
        })
    }

    fn look(
        &self,
        batch: Arc<RecordBatch>,
        apart: bool,
    ) -> BoxFuture<'static, Result<Look, SinkError>> {
        let sink = Arc::clone(&self.sink);
        let mut positions = batch.source.positions.iter();
        // What is to be tried is tried alone: what was before it is settled.
        let is_trial = !self.suspects.is_empty() && positions.any(|p| self.suspects.contains(p));
        Box::pin(async move {
            let mut look = Look {
                is_trial,
                ..Look::default()
            };
            if batch.records.is_empty() {
                return Ok(look);
            }
            for (index, topic) in (0..).zip(&batch.topics) {
                look.fits.push(match is_topic_name(topic) {
                    true => match sink.find_topic(topic, apart).await? {
                        Place::There(fit) => fit,
                        Place::ToBeTried(fit) => {
                            look.is_trial = true;
                            fit
                        }
                        Place::Waits => {
                            look.waits.push(index);
                            Fit::Any
                        }
                    },
                    false => Fit::Never(format!("{topic:?} is not a name for a topic").into()),
                });
            }
            Ok(look)
        })
    }

    fn leave(&self, batch: Arc<RecordBatch>) -> BoxFuture<'static, Result<Leave, SinkError>> {
        let sink = Arc::clone(&self.sink);
        Box::pin(async move {
            if batch.records.is_empty() {
                return Ok(Leave::default());
            }
            sink.policies.throttle(batch.records.len() as u32).await;
            let permit = Some(sink.gate().await);
            Ok(Leave { permit })
        })
    }

    fn recovery(&self, topics: Vec<Arc<str>>) -> BoxFuture<'static, Recovery> {
        let sink = Arc::clone(&self.sink);
        Box::pin(async move { sink.recovery(&topics).await })
    }

    fn hand(
        &mut self,
        batch: Arc<RecordBatch>,
        fits: Vec<Fit>,
        leave: Leave,
    ) -> BoxFuture<'_, Result<Ticket, SinkError>> {
        Box::pin(async move {
            if let Some(broken) = self.outlet.window().broken() {
                return Err(broken);
            }
            if batch.records.is_empty() {
                let (done, ticket) = Ticket::new();
                done.send(Ok(Delivered::default())).ok();
                return Ok(ticket);
            }
            if let Some(bytes) = self.narrower() {
                let error = SinkError::Narrower { bytes };
                self.outlet.window().fail(error.clone());
                return Err(error);
            }
            if self.outlet.is_outdated() {
                self.renew().await?;
            }
            self.turn().await?;
            let verdict = self.judge(&batch).await?;
            self.begin()?;
            let window = Arc::clone(self.outlet.window());
            let (submission, ticket) = window.open(Some(Arc::clone(&batch)), leave.permit)?;
            Crash::AfterBegin.here();
            self.hand_over(submission.id, &batch, &fits, &verdict)
                .await?;
            submission.seal();
            Ok(ticket)
        })
    }

    fn settle<'a>(
        &'a mut self,
        letters: &'a [DeadLetter],
        settlement: &'a Settlement,
    ) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            let partition = self.sink.own_partition(self.shard).await?;
            let records = checkpoint_records(partition, settlement);
            if self.is_atomic() {
                let letters: Vec<_> = letters.iter().map(|l| (l.position, Some(l))).collect();
                return self.commit(&letters, records).await;
            }
            Crash::BeforeCommit.here();
            self.write_checkpoints(&records).await?;
            self.condemned.clear();
            Crash::AfterCommit.here();
            Ok(())
        })
    }

    fn reset(&mut self) -> BoxFuture<'_, Result<Option<Checkpoints>, SinkError>> {
        Box::pin(async move {
            let was = self.transaction;
            match was {
                Transaction::Never => return self.let_go().await.map(|()| None),
                Transaction::None { .. } if self.outlet.window().broken().is_none() => {
                    return Ok(None);
                }
                // No commit is in doubt, so an abort tells it all, and is quicker than another producer.
                Transaction::Begun { claimed } if self.abort().await => {
                    self.transaction = Transaction::None { claimed };
                    return Ok(None);
                }
                _ => {}
            }
            self.transaction = Transaction::Unopened;
            if self.outlet.is_fenced() {
                self.check_owner().await?;
            }
            self.let_go().await?;
            self.open().await
        })
    }

    fn rest(&mut self) -> bool {
        let window = self.outlet.window();
        let is_settled = match self.transaction {
            Transaction::Never => true,
            Transaction::None { claimed } => claimed,
            _ => false,
        };
        self.is_ready = is_settled
            && window.messages() == 0
            && window.broken().is_none()
            && !self.outlet.is_finished();
        self.is_ready
    }

    fn close(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some(judge) = self.judge.take() {
                judge.close().await;
            }
            self.outlet.stop().await;
        })
    }
}

/// A record of the checkpoint topic: partition, key, value.
pub(super) type CheckpointRecord = (i32, String, Option<Vec<u8>>);

/// … those of a settlement.
fn checkpoint_records(partition: i32, settlement: &Settlement) -> Vec<CheckpointRecord> {
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

/// What a shard is called in a transactional id.
fn name(shard: u32) -> String {
    match shard {
        REPLAY_SHARD => "replay".to_owned(),
        shard => shard.to_string(),
    }
}

impl RedpandaSink {
    /// What a shard's producer is made with, and the largest batch that it makes, if a topic in use takes less than
    /// usual: a batch that is refused for its size would take the good records in it along.
    fn shard_config(&self, shard: u32, delivery: Delivery) -> ((ClientConfig, u64), Option<usize>) {
        let (mut config, version) = self.producer_config(&shard.to_string());
        let widest = self.topics.narrowest().filter(|bytes| *bytes < WIDEST);
        if let Some(bytes) = widest {
            config.set("batch.size", bytes.to_string());
        }
        let config = match delivery {
            Delivery::AtLeastOnce => config,
            Delivery::ExactlyOnce => {
                let id = format!("{}-{}", self.live.borrow().pipeline.name, name(shard));
                client::transactional(config, &id)
            }
        };
        ((config, version), widest)
    }

    /// What finds out for a shard which records are refused is made with this.
    fn judge_config(&self, shard: u32) -> (ClientConfig, u64) {
        let ((config, version), _) = self.shard_config(shard, Delivery::AtLeastOnce);
        let id = format!("{}-{}-judge", self.live.borrow().pipeline.name, name(shard));
        (client::transactional(config, &id), version)
    }

    /// Reads a shard's own partition to its end: its checkpoints, and who wrote them.
    async fn read_shard(
        &self,
        shard: u32,
        partition: i32,
        within: Duration,
    ) -> Result<(Checkpoints, Option<Owner>), SinkError> {
        let shards = self.live.borrow().pipeline.shards.get();
        let topic = self.checkpoint_topic();
        let reader = self.reader();
        let mut fold = checkpoint::Fold::new([shard], shards);
        super::blocking(move || {
            reader.read_partition(&topic, partition, within, |m| {
                fold.record(m.partition(), m.key(), m.payload())
                    .map_err(|reason| corrupt(&topic, m, &reason))
            })?;
            let owner = fold.owner(partition);
            let found = fold.finish(&BTreeMap::from([(shard, partition)]));
            let found = found.into_values().next().unwrap_or_default();
            Ok((found.checkpoints, owner))
        })
        .await
        .unwrap_or(Err(SinkError::Reset))
    }

    /// The shard's partition of the checkpoint topic, made where it is missing.
    pub(super) async fn own_partition(&self, shard: u32) -> Result<i32, SinkError> {
        let partitions = self.checkpoint_partitions().await?;
        // More shards than partitions where partitions cannot be added: shards then share them, which `load`
        // copes with because it tells groups apart by their key.
        Ok((shard % partitions) as i32)
    }
}

pub(super) fn corrupt(
    topic: &str,
    message: &BorrowedMessage<'_>,
    reason: &checkpoint::InvalidCheckpoint,
) -> SinkError {
    SinkError::Corrupt {
        topic: topic.to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        what: "checkpoint",
        reason: reason.to_string(),
    }
}
