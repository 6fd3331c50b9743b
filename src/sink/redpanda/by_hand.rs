//! The checkpoints in an operator's hands: shown, set, copied.
//!
//! Nothing that runs may be in between. Who is asked first whether the pipeline runs, the caller decides; what it rests on
//! is [`RedpandaSink::take_all`]: with exactly-once it takes every transactional id that the pipeline has, so whoever is
//! still there can commit nothing any more, and finds out that it has lost its shards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::shard::CheckpointRecord;
use super::{RedpandaSink, ShardSink, classify, client, client::Quiet};
use crate::change::GroupKey;
use crate::checkpoint::topic::{self as checkpoint, Owner};
use crate::checkpoint::{Checkpoints, GroupCheckpoint};
use crate::sink::{Settle, SinkError};

/// A question about the group takes no longer.
const ASKING: Duration = Duration::from_secs(10);

/// What one partition of the checkpoint topic holds.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Who took its shard last.
    pub owner: Option<Owner>,
    /// Groups, their leaves, and where tables begin.
    pub checkpoints: Checkpoints,
}

/// Every shard of a pipeline, taken from whoever had them.
pub struct Taken {
    shards: Vec<ShardSink>,
}

impl RedpandaSink {
    /// All that the checkpoint topic says, as committed, by partition. Without the topic there is nothing.
    ///
    /// # Errors
    /// It cannot be read, or a later version wrote in it.
    pub async fn read_all_checkpoints(&self) -> Result<BTreeMap<i32, Held>, SinkError> {
        let (reader, topic) = (self.reader(), self.checkpoint_topic());
        let reading = super::blocking(move || {
            let mut held: BTreeMap<i32, Held> = BTreeMap::new();
            reader.read(&topic, |m| {
                let (partition, key, value) = (m.partition(), m.key(), m.payload());
                let held = held.entry(partition).or_default();
                if key == Some(checkpoint::OWNER_KEY.as_bytes()) {
                    held.owner = Owner::decode(value);
                    return Ok(());
                }
                match checkpoint::decode(key, value) {
                    Ok((group, Some(at))) => {
                        held.checkpoints.insert(group, at);
                    }
                    Ok((group, None)) => {
                        held.checkpoints.remove(&group);
                    }
                    Err(error) if error.is_foreign(key) => {}
                    Err(error) => {
                        return Err(SinkError::Corrupt {
                            topic: topic.clone(),
                            partition,
                            offset: m.offset(),
                            what: "checkpoint",
                            reason: error.to_string(),
                        });
                    }
                }
                Ok(())
            })?;
            Ok(held)
        });
        let waits = self.policies.waits();
        let read = waits.during("read the checkpoints", reading).await;
        read.unwrap_or(Err(SinkError::Reset))
    }

    /// How many instances take part in the group by which they share the shards.
    ///
    /// # Errors
    /// The brokers do not say.
    pub async fn members(&self) -> Result<usize, SinkError> {
        let group = format!("penstock.{}", self.live.borrow().pipeline.name);
        let (config, security) = (self.reader_config(), self.security.clone());
        super::blocking(move || {
            let consumer: BaseConsumer<Quiet> = config
                .create_with_context(Quiet::of(&security))
                .map_err(client::creation)?;
            let found = consumer.fetch_group_list(Some(&group), ASKING);
            let found = found.map_err(|error| SinkError::Group {
                reason: error.to_string(),
                class: classify::class(&error),
            })?;
            let of_ours = found.groups().iter().filter(|g| g.name() == group);
            Ok(of_ours.map(|g| g.members().len()).sum())
        })
        .await
        .unwrap_or(Err(SinkError::Reset))
    }

    /// Takes every shard that the pipeline has or had, whoever has it.
    ///
    /// # Errors
    /// What the brokers have against it.
    pub async fn take_all(self: &Arc<Self>) -> Result<Taken, SinkError> {
        let partitions = self.checkpoint_partitions().await?;
        let shards = self.live.borrow().pipeline.shards.get().max(partitions);
        let taking = (0..shards).map(|number| async move {
            let mut shard = self.open_shard(number)?;
            Settle::open(&mut shard).await?;
            Ok::<_, SinkError>(shard)
        });
        let shards = futures::future::try_join_all(taking).await?;
        Ok(Taken { shards })
    }

    /// The records that put a checkpoint where the shards of this pipeline look for it: of a group one, of a table's
    /// start one a partition.
    ///
    /// # Errors
    /// The checkpoint topic cannot be asked about.
    pub async fn records_of(
        &self,
        key: &GroupKey,
        at: Option<&GroupCheckpoint>,
    ) -> Result<Vec<CheckpointRecord>, SinkError> {
        let partitions = self.checkpoint_partitions().await?;
        let shards = self.live.borrow().pipeline.shards.get();
        let to: Vec<u32> = match key.is_start() {
            true => (0..partitions).collect(),
            false => vec![key.shard(shards) % partitions],
        };
        let record = |partition: u32| {
            let value = at.map(checkpoint::encode);
            (partition as i32, key.0.to_string(), value)
        };
        Ok(to.into_iter().map(record).collect())
    }
}

impl Taken {
    /// Writes these records: with exactly-once all of them or none.
    ///
    /// # Errors
    /// What the brokers have against it.
    pub async fn write(&mut self, records: Vec<CheckpointRecord>) -> Result<(), SinkError> {
        match self.shards.first_mut() {
            Some(first) => first.write_by_hand(records).await,
            None => Ok(()),
        }
    }

    /// Lets go of the shards: whoever starts may have them.
    pub async fn release(self) {
        let closing = self.shards.into_iter().map(|mut shard| async move {
            Settle::close(&mut shard).await;
        });
        futures::future::join_all(closing).await;
    }
}
