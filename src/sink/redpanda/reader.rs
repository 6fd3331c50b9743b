//! Reads partitions from their start to their end, as committed, in no group.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::security::InForce;
use super::{classify, client, client::Quiet};
use crate::policy::Class;
use crate::progress::Progress;
use crate::sink::SinkError;

/// Without a record or an end of partition for this long, reading is given up.
pub(super) const STALLED: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
/// One question about a topic takes no longer.
const ASKING: Duration = Duration::from_secs(5);
/// A broker that has nothing more of a partition says so after this long, in ms, and not of another one before: the next
/// end is waited for, as often as there are partitions.
const NOTHING_MORE: &str = "1";

/// Clients that are done. Each looks now and then whether it is to end, or has ended, which nobody is to wait for.
#[derive(Debug, Default)]
pub(super) struct Ended(Mutex<Vec<JoinHandle<()>>>);

impl Ended {
    pub(super) fn end(&self, client: impl Send + 'static) {
        // Whoever is dropped when all is over ends where it is.
        let Ok(runtime) = Handle::try_current() else {
            drop(client);
            return;
        };
        let ended = runtime.spawn_blocking(move || drop(client));
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

/// A client that is connected, and has read nothing yet: one that has would not tell again of the ends that it met.
pub(super) struct Connected {
    /// There until it is dropped.
    consumer: Option<BaseConsumer<Quiet>>,
    quiet: Quiet,
    ended: Arc<Ended>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        if let Some(consumer) = self.consumer.take() {
            self.ended.end(consumer);
        }
    }
}

/// What of a topic is read.
#[derive(Clone, Copy)]
enum What<'a> {
    /// Every partition that there is, from this offset on where one is named.
    All(&'a BTreeMap<i32, i64>),
    /// One, which has to be there.
    One(i32),
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
        self.read_from(None, topic, STALLED, &BTreeMap::new(), each)
    }

    /// … of each partition from the offset that is named here on, if one is, and with whoever is connected already.
    pub(super) fn read_from(
        &self,
        connected: Option<Connected>,
        topic: &str,
        stalled: Duration,
        from: &BTreeMap<i32, i64>,
        each: impl FnMut(&BorrowedMessage<'_>) -> Result<(), SinkError>,
    ) -> Result<(), SinkError> {
        self.read_with(connected, topic, stalled, What::All(from), each)
    }

    /// … every record of one partition, which has to be there: without it nobody knows what was in it.
    pub(super) fn read_partition(
        &self,
        topic: &str,
        partition: i32,
        stalled: Duration,
        each: impl FnMut(&BorrowedMessage<'_>) -> Result<(), SinkError>,
    ) -> Result<(), SinkError> {
        self.read_with(None, topic, stalled, What::One(partition), each)
    }

    fn read_with(
        &self,
        connected: Option<Connected>,
        topic: &str,
        stalled: Duration,
        what: What<'_>,
        each: impl FnMut(&BorrowedMessage<'_>) -> Result<(), SinkError>,
    ) -> Result<(), SinkError> {
        let connected = match connected {
            Some(connected) => connected,
            None => self.make()?,
        };
        match &connected.consumer {
            Some(consumer) => read(consumer, &connected.quiet, topic, stalled, what, each),
            None => Err(SinkError::Reset),
        }
    }

    fn make(&self) -> Result<Connected, SinkError> {
        let quiet = Quiet::of(&self.security);
        let mut config = self.config.clone();
        config.set("fetch.wait.max.ms", NOTHING_MORE);
        let consumer: BaseConsumer<Quiet> = config
            .create_with_context(quiet.clone())
            .map_err(client::creation)?;
        Ok(Connected {
            consumer: Some(consumer),
            quiet,
            ended: Arc::clone(&self.ended),
        })
    }

    /// A client that is connected to all who have something of a topic, so that it reads at once. Blocks.
    pub(super) fn connect(&self, topic: &str, within: Duration) -> Result<Connected, SinkError> {
        let connected = self.make()?;
        let Some(consumer) = &connected.consumer else {
            return Err(SinkError::Reset);
        };
        let until = Instant::now() + within;
        let left = || until.saturating_duration_since(Instant::now());
        let asked = || -> Result<(), KafkaError> {
            let found = consumer.fetch_metadata(Some(topic), left())?;
            let partitions = found.topics().iter().flat_map(|topic| topic.partitions());
            let led = partitions.filter(|p| p.leader() >= 0);
            let leaders: BTreeMap<i32, i32> = led.map(|p| (p.leader(), p.id())).collect();
            for partition in leaders.into_values() {
                consumer.fetch_watermarks(topic, partition, left())?;
            }
            Ok(())
        };
        asked().map_err(|error| SinkError::Read {
            topic: topic.to_owned(),
            reason: error.to_string(),
            class: classify::class(&error),
        })?;
        Ok(connected)
    }
}

fn read(
    consumer: &BaseConsumer<Quiet>,
    quiet: &Quiet,
    topic: &str,
    stalled: Duration,
    what: What<'_>,
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

    let wanted = match what {
        What::All(_) => None,
        What::One(partition) => Some(partition),
    };
    // Knowing the leaders first saves the half second that an assignment to unknown ones waits.
    let deadline = Instant::now() + stalled;
    let mut partitions = loop {
        match partitions(consumer, topic, stalled.min(ASKING)) {
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
        let from = match what {
            What::All(from) => from.get(&partition).copied(),
            What::One(_) => None,
        };
        let begin = from.map_or(Offset::Beginning, Offset::Offset);
        assignment
            .add_partition_offset(topic, partition, begin)
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
fn partitions(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    within: Duration,
) -> Result<Option<Vec<i32>>, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(topic), within)?;
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
