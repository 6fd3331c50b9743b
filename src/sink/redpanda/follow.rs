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
        let mut trouble = None;
        while !stop.is_cancelled() {
            let mut next = consumer.poll(POLL);
            let mut news = false;
            while let Some(read) = next {
                match read {
                    Ok(m) => {
                        (news, trouble) = (true, None);
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
}
