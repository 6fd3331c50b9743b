//! Whose a shard is: taking it, saying so, and having another producer for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::message::Message;

use super::super::{RedpandaSink, blocking};
use super::settling::CheckpointRecord;
use super::{REPLAY_SHARD, ShardSink, Transaction, corrupt};
use crate::checkpoint::topic::Owner;
use crate::checkpoint::{Checkpoints, topic as checkpoint};
use crate::config::settings::Delivery;
use crate::policy::Class;
use crate::sink::trouble::{Cause, Help};
use crate::sink::{Settle, Sink, SinkError, Standing};

/// Whoever takes a shard over says so in the checkpoint topic within this time.
const CLAIM_SHOWS: Duration = Duration::from_secs(1);
/// What this is, in words.
const SAYING: &str = "commit whose the shards are";
/// However short an attempt may be, taking a shard may take this long. A fresh producer's first look for its coordinator
/// is asked again only after 500 ms, so half a second is nothing wrong; three of them are.
const TAKING: Duration = Duration::from_millis(1_500);

impl ShardSink {
    /// Takes the shard: whoever had it before can do nothing any more. One that delivers at least once takes nothing.
    pub(in crate::sink::redpanda) async fn fence(
        &mut self,
        within: Duration,
    ) -> Result<(), SinkError> {
        if self.transaction == Transaction::Unopened {
            let topic = self.sink.checkpoint_topic();
            self.take(&topic, within).await?;
            self.transaction = Transaction::None { claimed: false };
        }
        Ok(())
    }

    /// Says that nobody has the shard, of one that is no more and that this producer has taken: see [`Self::fence`].
    pub(in crate::sink::redpanda) async fn give_up(&mut self) -> Result<(), SinkError> {
        if self.transaction == (Transaction::None { claimed: false }) {
            // Who says that nobody has it does not have it.
            self.transaction = Transaction::None { claimed: true };
        }
        let (key, nobody) = (checkpoint::OWNER_KEY, Owner::NOBODY.encode());
        let partition = i32::try_from(self.shard).unwrap_or(i32::MAX);
        let record = (partition, key.to_owned(), Some(nobody));
        self.write_by_hand(vec![record]).await?;
        tracing::info!(
            shard = self.shard,
            "a shard of an earlier number of shards was closed"
        );
        Ok(())
    }

    /// Says whose the shard is, within this time.
    pub(in crate::sink::redpanda) async fn claim_within(
        &mut self,
        within: Duration,
    ) -> Result<(), SinkError> {
        let said = tokio::time::timeout(within, self.say_whose()).await;
        said.unwrap_or(Err(SinkError::Reset))
    }

    async fn take(&self, topic: &str, within: Duration) -> Result<(), SinkError> {
        let taking = self.producer.take_over(self.shard, topic, within);
        let waits = self.sink.policies.waits();
        waits.during("take the shards", taking).await
    }

    pub(super) async fn take_over(&mut self) -> Result<Standing, SinkError> {
        let within = self.patience();
        let permit = self.sink.gate().await;
        // A probe that others would wait for one after the other, for what each takes half a second: half-open, all go
        // at once, and what each meets counts.
        let permit = Some(permit).filter(|_| self.sink.is_closed());
        let topic = self.sink.checkpoint_topic();
        let taken = async {
            let partition = self.sink.own_partition(self.shard).await?;
            self.take(&topic, within).await?;
            self.sink.read_shard(self.shard, partition, within).await
        };
        match taken.await {
            Ok((checkpoints, owner)) => {
                if let Some(permit) = self.sink.counting(permit) {
                    permit.success();
                }
                // A replay is of no shard, so there is nothing to claim.
                let claimed = self.shard == REPLAY_SHARD;
                self.transaction = Transaction::None { claimed };
                // Once it says that it is ours, nobody sees any more whose it was: so that is kept until it is told.
                self.was_taken |= owner.is_none_or(|o| o.instance != self.sink.instance);
                Ok(Standing {
                    checkpoints,
                    is_ours: !self.was_taken,
                })
            }
            Err(error) => {
                if let SinkError::Forbidden { reason, .. } = &error {
                    // An answer: no failure of the brokers. What follows is a record in this topic, which tells its end.
                    let cause = Cause::Writing(topic.into());
                    let sink = &self.sink;
                    sink.troubles.raise(cause, Help::Needed, reason.as_str());
                } else if error.class() == Class::Retryable
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
    pub(in crate::sink::redpanda) fn patience(&self) -> Duration {
        self.sink.live.borrow().sink.attempt_timeout.max(TAKING)
    }

    /// The record that says whose the shard is.
    pub(super) fn claim(&self, partition: i32) -> CheckpointRecord {
        let owner = self.sink.owner();
        let key = checkpoint::OWNER_KEY.to_owned();
        (partition, key, Some(owner.encode()))
    }

    /// Says at once whose the shard is, so that everybody knows it of a shard that has nothing to do, too.
    pub(super) async fn say_whose(&mut self) -> Result<(), SinkError> {
        if self.shard == REPLAY_SHARD {
            return Ok(());
        }
        let sink = Arc::clone(&self.sink);
        let saying = async {
            match self.is_atomic() {
                true => self.commit(&[], Vec::new()).await,
                false => {
                    let partition = self.sink.own_partition(self.shard).await?;
                    self.write_checkpoints(&[self.claim(partition)]).await
                }
            }
        };
        let said = sink.policies.waits().during(SAYING, saying).await;
        if said.is_err() {
            let fenced = self.producer.is_fenced();
            self.unopen();
            // Of two that start at once one is late: it is not to take the shard back.
            if fenced {
                self.check_owner().await?;
            }
        }
        said
    }

    /// Whatever state it is in: the next try has another producer.
    pub(super) fn unopen(&mut self) {
        if self.is_atomic() {
            self.transaction = Transaction::Unopened;
        }
        self.producer.window().fail(SinkError::Reset);
    }

    /// Fails if the shard was claimed by another instance since this producer took it.
    pub(super) async fn check_owner(&self) -> Result<(), SinkError> {
        // Whoever fenced this producer says so in the topic with its first settlement.
        tokio::time::sleep(CLAIM_SHOWS).await;
        let within = self.patience();
        let partition = self.sink.own_partition(self.shard).await?;
        let (_, owner) = self.sink.read_shard(self.shard, partition, within).await?;
        self.is_ours(owner)
    }

    pub(super) fn is_ours(&self, owner: Option<Owner>) -> Result<(), SinkError> {
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

    /// Lets go of everything under way, its tickets resolving as [`SinkError::Reset`], and starts over with a new
    /// producer.
    pub(super) async fn let_go(&mut self) -> Result<(), SinkError> {
        self.producer.stop().await;
        // Only now every report has come in.
        self.learn();
        self.sink.topics.forget();
        let delivery = match self.transaction {
            Transaction::Never => Delivery::AtLeastOnce,
            _ => Delivery::ExactlyOnce,
        };
        let (made, widest) = self.sink.shard_config(self.shard, delivery);
        self.widest = widest;
        self.producer.restart_with(made).await
    }

    /// Between two transactions: goes on with a producer that has the credentials that are in force now. Nothing is under
    /// way then, so nothing is lost, repeated or read again.
    pub(super) async fn renew(&mut self) -> Result<(), SinkError> {
        let delivery = match self.transaction {
            Transaction::Never => Delivery::AtLeastOnce,
            Transaction::None { .. } => Delivery::ExactlyOnce,
            _ => return Ok(()),
        };
        let window = Arc::clone(self.producer.window());
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
            self.producer.replace_producer_with(made).await?;
            if delivery == Delivery::ExactlyOnce {
                let topic = self.sink.checkpoint_topic();
                self.producer.take_over(self.shard, &topic, within).await?;
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
}

impl RedpandaSink {
    /// Reads a shard's own partition to its end: its checkpoints, and who wrote them.
    pub(super) async fn read_shard(
        &self,
        shard: u32,
        partition: i32,
        within: Duration,
    ) -> Result<(Checkpoints, Option<Owner>), SinkError> {
        let shards = self.live.borrow().pipeline.shards.get();
        let topic = self.checkpoint_topic();
        let reader = self.reader();
        let mut fold = checkpoint::Fold::new([shard], shards);
        let reading = blocking(move || {
            reader.read_partition(&topic, partition, within, |m| {
                fold.record(m.partition(), m.key(), m.payload())
                    .map_err(|reason| corrupt(&topic, m, &reason))
            })?;
            let owner = fold.owner(partition);
            let found = fold.finish(&BTreeMap::from([(shard, partition)]));
            let found = found.into_values().next().unwrap_or_default();
            Ok((found.checkpoints, owner))
        });
        let waits = self.policies.waits();
        let read = waits.during("read the checkpoints", reading).await;
        read.unwrap_or(Err(SinkError::Reset))
    }
}
