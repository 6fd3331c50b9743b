//! One shard's way to the brokers: batches in order, and its checkpoints.

mod handing;
mod owning;
mod round;
mod settling;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use rdkafka::config::ClientConfig;
use rdkafka::message::{BorrowedMessage, Message};
use tokio::time::Instant;

use self::round::Round;
pub(super) use self::settling::CheckpointRecord;
use self::settling::{Foreseen, checkpoint_records};
use super::judge::Judge;
use super::place::Place;
use super::producer::{Producer, Traffic};
use super::{RedpandaSink, client};
use crate::change::{Position, RecordBatch};
use crate::checkpoint::{Settlement, topic as checkpoint};
use crate::config::settings::Delivery;
use crate::crash::Crash;
use crate::dead_letter::DeadLetter;
use crate::sink::flight::Snapshot;
use crate::sink::{
    Delivered, Fit, Leave, Look, Recovery, Settle, SinkError, Standing, Ticket, is_topic_name,
};

/// The producer of replays has a number that no shard has.
pub(crate) const REPLAY_SHARD: u32 = u32::MAX;
/// Bytes of the largest batch that librdkafka makes unless it is told otherwise (`batch.size`).
const WIDEST: usize = 1_000_000;
/// A producer is had to connect for no longer than the pause that this saves: librdkafka asks for its id by itself then.
const PAUSE: Duration = Duration::from_millis(500);

/// A shard's producer.
///
/// It is the shard's alone, so its records keep their order. With `delivery = "exactly-once"` it is transactional: a
/// transaction begins with the first batch after a settlement and ends with the next, the letters and the checkpoint in
/// it, when every report has come in.
pub struct ShardSink {
    sink: Arc<RedpandaSink>,
    shard: u32,
    producer: Producer,
    /// Changes of which a record was refused together with others: sent alone next time.
    suspects: HashSet<Position>,
    /// What finds out which of them are refused; there once it had to.
    judge: Option<Judge>,
    /// … and those of which one was refused alone, with the reason: their transaction was aborted for it.
    condemned: HashMap<Position, String>,
    transaction: Transaction,
    /// Bytes of the largest batch that the producer makes, if it is bounded for a topic's sake.
    widest: Option<usize>,
    /// The records that are under way.
    round: Round,
    /// … are being sent. Only ever had by whoever has all of this.
    sending: Mutex<Option<BoxFuture<'static, ()>>>,
    /// What the transaction's end will say, as far as that is known: it is on its way.
    foreseen: Option<Foreseen>,
    /// It has taken the shard, whose checkpoints were read after that, and has said so; nothing was done with it since.
    is_ready: bool,
    /// Another had the shard before, and that is yet to be told.
    was_taken: bool,
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
        traffic: Arc<Traffic>,
        delivery: Delivery,
    ) -> Result<Self, SinkError> {
        let (made, widest) = sink.shard_config(shard, delivery);
        let transaction = match delivery {
            Delivery::AtLeastOnce => Transaction::Never,
            Delivery::ExactlyOnce => Transaction::Unopened,
        };
        let shards = sink.live.borrow().pipeline.shards.get();
        Ok(Self {
            producer: Producer::new(made, traffic)?,
            widest,
            round: Round::new(Instant::now(), shards),
            sending: Mutex::default(),
            sink,
            shard,
            suspects: HashSet::new(),
            judge: None,
            foreseen: None,
            condemned: HashMap::new(),
            transaction,
            is_ready: false,
            was_taken: false,
        })
    }

    /// Has the producer connect, so that it answers at once when it is needed: see [`Producer::find`].
    pub(super) async fn warm(&self, within: Duration) {
        let topic = self.sink.checkpoint_topic();
        let finding = self.producer.find(topic, within);
        let waits = self.sink.policies.waits();
        if let Err(error) = waits.during("connect the producers", finding).await {
            tracing::debug!(shard = self.shard, %error, "the producer has yet to connect");
        }
    }

    /// The shard's checkpoints were read after [`Self::fence`], so [`Settle::open`] has nothing to do.
    pub(super) fn is_read(&mut self) {
        self.producer.show();
        self.is_ready = true;
    }

    /// Waits for leave and hands a batch over; the ticket resolves with its delivery.
    pub async fn submit(&mut self, batch: Arc<RecordBatch>) -> Result<Ticket, SinkError> {
        if let Some(broken) = self.producer.window().broken() {
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

    /// Counts, queue fill and age of this shard, over all its producers.
    pub fn snapshot(&self) -> Snapshot {
        self.producer.traffic().snapshot()
    }
}

impl Settle for ShardSink {
    fn is_atomic(&self) -> bool {
        self.transaction != Transaction::Never
    }

    fn open(&mut self) -> BoxFuture<'_, Result<Option<Standing>, SinkError>> {
        Box::pin(async move {
            let is_broken = self.producer.window().broken().is_some();
            if std::mem::take(&mut self.is_ready) && !is_broken {
                return Ok(None);
            }
            if is_broken {
                self.producer.stop().await;
                self.producer.restart().await?;
            }
            let found = match self.transaction {
                Transaction::Never => {
                    self.warm(PAUSE).await;
                    None
                }
                _ => Some(self.take_over().await?),
            };
            self.say_whose().await?;
            self.was_taken = false;
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
            if let Some(broken) = self.producer.window().broken() {
                return Err(broken);
            }
            if batch.records.is_empty() {
                let (done, ticket) = Ticket::new();
                done.send(Ok(Delivered::default())).ok();
                return Ok(ticket);
            }
            if let Some(bytes) = self.narrower() {
                let error = SinkError::Narrower { bytes };
                self.producer.window().fail(error.clone());
                return Err(error);
            }
            if self.producer.is_outdated() {
                self.renew().await?;
            }
            self.turn().await?;
            let verdict = self.judge(&batch).await?;
            self.begin()?;
            let window = Arc::clone(self.producer.window());
            let (submission, ticket) = window.open(Some(Arc::clone(&batch)), leave.permit)?;
            Crash::AfterBegin.here();
            self.hand_over(&submission, &batch, &fits, &verdict).await?;
            submission.seal();
            Ok(ticket)
        })
    }

    fn hasten(&mut self) {
        self.send_round(true);
    }

    fn foresee(&mut self, settlement: &Settlement) {
        if let Some(partition) = self.sink.known_partition(self.shard) {
            self.send_ahead(checkpoint_records(partition, settlement));
        }
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

    fn explain(&mut self, error: SinkError) -> BoxFuture<'_, SinkError> {
        Box::pin(async move {
            match error {
                SinkError::Purged { topic } => self.why_purged(topic).await,
                error => error,
            }
        })
    }

    fn reset(&mut self) -> BoxFuture<'_, Result<Option<Standing>, SinkError>> {
        Box::pin(async move {
            let was = self.transaction;
            match was {
                Transaction::Never => return self.let_go().await.map(|()| None),
                Transaction::None { .. } if self.producer.window().broken().is_none() => {
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
            if self.producer.is_fenced() {
                self.check_owner().await?;
            }
            self.let_go().await?;
            self.open().await
        })
    }

    fn rest(&mut self) -> bool {
        let window = self.producer.window();
        let is_settled = match self.transaction {
            Transaction::Never => true,
            Transaction::None { claimed } => claimed,
            _ => false,
        };
        self.is_ready = is_settled
            && window.messages() == 0
            && window.broken().is_none()
            && !self.producer.is_finished();
        self.is_ready
    }

    fn close(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some(judge) = self.judge.take() {
                judge.close().await;
            }
            self.producer.stop().await;
        })
    }
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

    /// The shard's partition of the checkpoint topic, made where it is missing.
    pub(super) async fn own_partition(&self, shard: u32) -> Result<i32, SinkError> {
        let partitions = self.checkpoint_partitions().await?;
        // More shards than partitions where partitions cannot be added: shards then share them, which `load`
        // copes with because it tells groups apart by their key.
        Ok((shard % partitions) as i32)
    }

    /// … unless that would have to be asked.
    fn known_partition(&self, shard: u32) -> Option<i32> {
        Some(shard.checked_rem(self.partitions.load(Relaxed))? as i32)
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
