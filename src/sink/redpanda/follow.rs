//! Follows the checkpoint topic, in no group, as committed.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::client::{self, Quiet};
use super::{RedpandaSink, classify};
use crate::checkpoint::log::CheckpointLog;
use crate::sink::SinkError;

/// How long one look for news takes at most; a stop waits for it.
const POLL: Duration = Duration::from_millis(100);

impl RedpandaSink {
    /// Reads the checkpoint topic from its beginning, and on as it is written, until `stop`. Blocks: for a thread of its
    /// own. Brokers that are away, or refuse, are waited for.
    ///
    /// # Errors
    /// A record is none of ours, or there is no client to be had.
    pub fn follow_checkpoints(
        &self,
        log: &CheckpointLog,
        stop: &CancellationToken,
    ) -> Result<(), SinkError> {
        let topic = self.checkpoint_topic();
        let shards = self.live.borrow().pipeline.shards.get();
        // The next offset of each partition that had a record: from there another consumer goes on.
        let mut read = BTreeMap::new();
        let (mut consumer, mut version) = self.follower(&topic, shards, &read)?;
        let mut trouble = None;
        while !stop.is_cancelled() {
            if self.security.version() != version {
                (consumer, version) = self.follower(&topic, shards, &read)?;
            }
            let mut next = consumer.poll(POLL);
            let mut news = false;
            while let Some(met) = next {
                match met {
                    Ok(m) => {
                        (news, trouble) = (true, None);
                        read.insert(m.partition(), m.offset() + 1);
                        log.record(m.partition(), m.key(), m.payload())
                            .map_err(|reason| SinkError::Corrupt {
                                topic: topic.clone(),
                                partition: m.partition(),
                                offset: m.offset(),
                                what: "checkpoint",
                                reason: reason.to_string(),
                            })?;
                    }
                    // librdkafka tries again by itself, and a right may be given later.
                    Err(error) => {
                        let reason = error.to_string();
                        if trouble.as_ref() != Some(&reason) {
                            tracing::warn!(
                                reason,
                                "the checkpoints of other instances cannot be read"
                            );
                            trouble = Some(reason);
                        }
                    }
                }
                next = consumer.poll(Duration::ZERO);
            }
            if news {
                log.tell();
            }
        }
        Ok(())
    }

    /// A consumer that goes on behind what was read, and which version of the credentials it has.
    fn follower(
        &self,
        topic: &str,
        shards: u32,
        read: &BTreeMap<i32, i64>,
    ) -> Result<(BaseConsumer<Quiet>, u64), SinkError> {
        let failed = |error: KafkaError| SinkError::Read {
            topic: topic.to_owned(),
            reason: error.to_string(),
            class: classify::class(&error),
        };
        let version = self.security.version();
        let mut config = self.reader_config();
        config.set("enable.partition.eof", "false");
        let consumer: BaseConsumer<Quiet> = config
            .create_with_context(Quiet::of(&self.security))
            .map_err(client::creation)?;
        let mut partitions = TopicPartitionList::new();
        for partition in (0..shards).map(|shard| shard as i32) {
            let from = read.get(&partition);
            let from = from.map_or(Offset::Beginning, |next| Offset::Offset(*next));
            partitions
                .add_partition_offset(topic, partition, from)
                .map_err(failed)?;
        }
        consumer.assign(&partitions).map_err(failed)?;
        Ok((consumer, version))
    }
}
