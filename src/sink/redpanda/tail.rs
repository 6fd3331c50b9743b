//! Follows topics as they are written: what the demo shows a person.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Headers;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{RedpandaSink, client, client::Quiet};
use crate::sink::SinkError;

/// How often new topics and partitions are looked for.
const LOOK: Duration = Duration::from_millis(200);

/// A record as it was read.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its key; bytes that are no UTF-8 are replaced.
    pub key: Option<String>,
    /// Its value, likewise.
    pub value: Option<String>,
    /// Its headers, likewise.
    pub headers: Vec<(String, String)>,
}

/// Follows every topic but Penstock's own from its beginning, outside of any consumer group.
pub struct Tail {
    consumer: BaseConsumer<Quiet>,
    assigned: HashSet<(String, i32)>,
    looked: Option<Instant>,
}

impl RedpandaSink {
    /// A tail of these brokers.
    pub fn tail(&self) -> Result<Tail, SinkError> {
        let mut config = self.reader_config();
        config
            .set("fetch.wait.max.ms", "50")
            .set("enable.partition.eof", "false");
        let consumer = config
            .create_with_context(Quiet::of(&self.security))
            .map_err(client::creation)?;
        Ok(Tail {
            consumer,
            assigned: HashSet::new(),
            looked: None,
        })
    }
}

impl Tail {
    /// The next record, or `None` if none came in this time. Blocks.
    pub fn next(&mut self, wait: Duration) -> Result<Option<Seen>, SinkError> {
        if self.looked.is_none_or(|at| at.elapsed() >= LOOK) {
            self.look()?;
            self.looked = Some(Instant::now());
        }
        // What librdkafka reports here passes by itself: it reconnects and goes on where it was.
        let Some(Ok(message)) = self.consumer.poll(wait) else {
            return Ok(None);
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = message.headers().map(|headers| {
            headers
                .iter()
                .map(|h| (h.key.to_owned(), h.value.map(text).unwrap_or_default()))
                .collect()
        });
        Ok(Some(Seen {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(text),
            value: message.payload().map(text),
            headers: headers.unwrap_or_default(),
        }))
    }

    fn look(&mut self) -> Result<(), SinkError> {
        let Ok(metadata) = self.consumer.fetch_metadata(None, Duration::from_secs(1)) else {
            return Ok(());
        };
        let mut new = TopicPartitionList::new();
        for topic in metadata.topics().iter().filter(|t| !is_internal(t.name())) {
            for partition in topic.partitions() {
                if self
                    .assigned
                    .insert((topic.name().to_owned(), partition.id()))
                {
                    let added =
                        new.add_partition_offset(topic.name(), partition.id(), Offset::Beginning);
                    added.map_err(client::creation)?;
                }
            }
        }
        if new.count() > 0 {
            self.consumer
                .incremental_assign(&new)
                .map_err(client::creation)?;
        }
        Ok(())
    }
}

fn is_internal(topic: &str) -> bool {
    topic.starts_with("__") || topic.starts_with("penstock.") || topic.ends_with(".dead-letters")
}
