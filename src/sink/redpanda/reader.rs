//! Reads partitions from their start to their end, as committed, in no group.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::task::JoinHandle;

use super::security::InForce;
use super::{classify, client, client::Quiet};
use crate::policy::Class;
use crate::progress::Progress;
use crate::sink::SinkError;

/// Without a record or an end of partition for this long, reading is given up.
const STALLED: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
/// A broker that has nothing more of a partition says so after this long, in ms, and not of another one before: the next
/// end is waited for, as often as there are partitions.
const NOTHING_MORE: &str = "1";

/// Clients that are done. Each looks every 100 ms whether it is to end, or has ended, which nobody is to wait for.
#[derive(Debug, Default)]
pub(super) struct Ended(Mutex<Vec<JoinHandle<()>>>);

impl Ended {
    pub(super) fn end(&self, client: impl Send + 'static) {
        let ended = tokio::task::spawn_blocking(move || drop(client));
        let mut all = self.0.lock();
        all.retain(|ending| !ending.is_finished());
        all.push(ended);
    }
}

/// What topics are read with.
pub(super) struct Reader {
    pub(super) config: ClientConfig,
    pub(super) security: InForce,
    pub(super) ended: Arc<Ended>,
}

impl Reader {
    /// Hands every record of a topic to `each`, per partition in order. Blocks, on a thread of the runtime for that; a
    /// topic that does not exist is empty. The end is the broker's end-of-partition, not the high watermark less one:
    /// behind the last record there may be the markers of a transaction.
    pub(super) fn read(
        &self,
        topic: &str,
        each: impl FnMut(&BorrowedMessage<'_>) -> Result<(), SinkError>,
    ) -> Result<(), SinkError> {
        self.read_within(topic, STALLED, None, each)
    }

    /// … every record of one partition, which has to be there: without it nobody knows what was in it.
    pub(super) fn read_partition(
        &self,
        topic: &str,
        partition: i32,
        stalled: Duration,
        each: impl FnMut(&BorrowedMessage<'_>) -> Result<(), SinkError>,
    ) -> Result<(), SinkError> {
        self.read_within(topic, stalled, Some(partition), each)
    }

    fn read_within(
        &self,
        topic: &str,
        stalled: Duration,
        wanted: Option<i32>,
        each: impl FnMut(&BorrowedMessage<'_>) -> Result<(), SinkError>,
    ) -> Result<(), SinkError> {
        let quiet = Quiet::of(&self.security);
        let mut config = self.config.clone();
        config.set("fetch.wait.max.ms", NOTHING_MORE);
        let consumer: BaseConsumer<Quiet> = config
            .create_with_context(quiet.clone())
            .map_err(client::creation)?;
        let read = read(&consumer, &quiet, topic, stalled, wanted, each);
        self.ended.end(consumer);
        read
    }
}

fn read(
    consumer: &BaseConsumer<Quiet>,
    quiet: &Quiet,
    topic: &str,
    stalled: Duration,
    wanted: Option<i32>,
    mut each: impl FnMut(&BorrowedMessage<'_>) -> Result<(), SinkError>,
) -> Result<(), SinkError> {
    let failed = |error: &KafkaError| SinkError::Read {
        topic: topic.to_owned(),
        reason: match quiet.last_error() {
            Some(last) => format!("{error} ({last})"),
            None => error.to_string(),
        },
        class: classify::class(error),
    };

    // Knowing the leaders first saves the half second that an assignment to unknown ones waits.
    let deadline = Instant::now() + stalled;
    let mut partitions = loop {
        match partitions(consumer, topic) {
            Ok(Some(partitions)) => break partitions,
            Ok(None) if wanted.is_none() => return Ok(()),
            Ok(None) => return Err(failed(&KafkaError::MetadataFetch(Code::UnknownTopic))),
            Err(e) if classify::class(&e) == Class::Retryable && Instant::now() < deadline => {
                std::thread::sleep(POLL);
            }
            Err(e) => return Err(failed(&e)),
        }
    };
    partitions.retain(|&p| wanted.is_none_or(|wanted| p == wanted));
    if wanted.is_some() && partitions.is_empty() {
        return Err(failed(&KafkaError::MetadataFetch(Code::UnknownPartition)));
    }
    let mut assignment = TopicPartitionList::with_capacity(partitions.len());
    for &partition in &partitions {
        assignment
            .add_partition_offset(topic, partition, Offset::Beginning)
            .map_err(|e| failed(&e))?;
    }
    consumer.assign(&assignment).map_err(|e| failed(&e))?;

    let mut open: HashSet<i32> = partitions.iter().copied().collect();
    let mut progress = Instant::now();
    let mut so_far = Progress::begin(format!("reading {topic}"), progress);
    let mut last = KafkaError::NoMessageReceived;
    while !open.is_empty() {
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                progress = Instant::now();
                each(&message)?;
                so_far.step(|| behind(consumer, topic, &partitions), progress);
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                progress = Instant::now();
                open.remove(&partition);
            }
            Some(Err(error)) if classify::class(&error) == Class::Retryable => last = error,
            Some(Err(error)) => return Err(failed(&error)),
            None => {}
        }
        if progress.elapsed() >= stalled {
            return Err(failed(&last));
        }
    }
    Ok(())
}

/// How many offsets there are, of records and of markers; compacted ones are missing, so it is the most there can be.
fn behind(consumer: &BaseConsumer<Quiet>, topic: &str, partitions: &[i32]) -> Option<u64> {
    const WITHIN: Duration = Duration::from_secs(1);
    partitions
        .iter()
        .map(|&partition| {
            let (low, high) = consumer.fetch_watermarks(topic, partition, WITHIN).ok()?;
            u64::try_from(high - low).ok()
        })
        .sum()
}

/// A topic's partitions once each has a leader; `None`: no such topic.
fn partitions(consumer: &BaseConsumer<Quiet>, topic: &str) -> Result<Option<Vec<i32>>, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(5))?;
    let Some(found) = metadata.topics().iter().find(|t| t.name() == topic) else {
        return Ok(None);
    };
    if let Some(error) = found.error() {
        return match Code::from(error) {
            Code::UnknownTopicOrPartition | Code::UnknownTopic => Ok(None),
            code => Err(KafkaError::MetadataFetch(code)),
        };
    }
    if found.partitions().is_empty() || found.partitions().iter().any(|p| p.leader() < 0) {
        return Err(KafkaError::MetadataFetch(Code::LeaderNotAvailable));
    }
    Ok(Some(found.partitions().iter().map(|p| p.id()).collect()))
}
