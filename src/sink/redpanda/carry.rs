//! A pipeline that moves to another cluster: whether its checkpoints are there, and taking them along.

use std::collections::HashSet;
use std::sync::Arc;

use super::RedpandaSink;
use crate::checkpoint::{Checkpoints, topic as checkpoint};
use crate::config::settings::Delivery;
use crate::sink::redpanda::ShardSink;
use crate::sink::{Settle, SinkError};
use rdkafka::Message;

impl RedpandaSink {
    /// Whether the cluster knows none of these groups.
    pub async fn lacks(&self, checkpoints: &Checkpoints) -> Result<bool, SinkError> {
        let (reader, topic) = (self.reader(), self.checkpoint_topic());
        let reading = super::blocking(move || {
            let mut known: HashSet<Vec<u8>> = HashSet::new();
            reader.read(&topic, |m| {
                let key = m.key().unwrap_or_default().to_vec();
                match m.payload() {
                    Some(_) => known.insert(key),
                    None => known.remove(&key),
                };
                Ok(())
            })?;
            Ok(known)
        });
        let waits = self.policies.waits();
        let known = waits.during("read the checkpoints", reading).await;
        let known = known.unwrap_or(Err(SinkError::Reset))?;
        let mut groups = checkpoints.keys();
        Ok(!checkpoints.is_empty() && !groups.any(|group| known.contains(group.0.as_bytes())))
    }

    /// Writes these checkpoints where the shards of this cluster look for them; back once they are acknowledged.
    pub async fn carry(self: &Arc<Self>, checkpoints: &Checkpoints) -> Result<(), SinkError> {
        let partitions = self.checkpoint_partitions().await?;
        let shards = self.live.borrow().pipeline.shards.get();
        let records: Vec<_> = checkpoints
            .iter()
            .map(|(group, at)| {
                let partition = (group.shard(shards) % partitions) as i32;
                (partition, group.0.to_string(), Some(checkpoint::encode(at)))
            })
            .collect();
        let mut producer: ShardSink = self.open_with(0, Delivery::AtLeastOnce)?;
        producer.move_checkpoints(&records).await?;
        Settle::close(&mut producer).await;
        tracing::info!(
            groups = records.len(),
            "checkpoints carried to the new brokers"
        );
        Ok(())
    }
}
