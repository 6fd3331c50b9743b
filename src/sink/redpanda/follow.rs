//! Follows the checkpoint topic, in no group, as committed.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::client::{self, Quiet};
use super::{RedpandaSink, classify};
use crate::checkpoint::log::CheckpointLog;
use crate::policy::Class;
use crate::sink::SinkError;

/// How long one look for news takes at most; a stop waits for it.
const POLL: Duration = Duration::from_millis(100);

impl RedpandaSink {
    /// Reads the checkpoint topic from its beginning, and on as it is written, until `stop`. Blocks: for a thread of its
    /// own. Brokers that are away are waited for.
    ///
    /// # Errors
    /// What waiting does not mend.
    pub fn follow_checkpoints(
        &self,
        log: &CheckpointLog,
        stop: &CancellationToken,
    ) -> Result<(), SinkError> {
        let topic = self.checkpoint_topic();
        let shards = self.live.borrow().pipeline.shards.get();
        let mut config = self.reader_config();
        config.set("enable.partition.eof", "false");
        let consumer: BaseConsumer<Quiet> = config
            .create_with_context(Quiet::default())
            .map_err(client::creation)?;
        let failed = |error: &KafkaError| SinkError::Read {
            topic: topic.clone(),
            reason: error.to_string(),
            class: classify::class(error),
        };
        let mut partitions = TopicPartitionList::new();
        for partition in 0..shards {
            partitions
                .add_partition_offset(&topic, partition as i32, Offset::Beginning)
                .map_err(|e| failed(&e))?;
        }
        consumer.assign(&partitions).map_err(|e| failed(&e))?;
        while !stop.is_cancelled() {
            let mut next = consumer.poll(POLL);
            let mut news = false;
            while let Some(read) = next {
                match read {
                    Ok(m) => {
                        news = true;
                        log.record(m.partition(), m.key(), m.payload())
                            .map_err(|reason| SinkError::Corrupt {
                                topic: topic.clone(),
                                partition: m.partition(),
                                offset: m.offset(),
                                what: "checkpoint",
                                reason: reason.to_string(),
                            })?;
                    }
                    Err(error) if classify::class(&error) == Class::Retryable => {
                        tracing::debug!(%error, "following the checkpoints");
                    }
                    Err(error) => return Err(failed(&error)),
                }
                next = consumer.poll(Duration::ZERO);
            }
            if news {
                log.tell();
            }
        }
        Ok(())
    }
}
