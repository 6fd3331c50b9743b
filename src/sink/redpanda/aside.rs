//! What is ready when shards are opened in the place of others that ran until a moment ago: their checkpoints as they were
//! then, whoever reads what has come since, and the producers that are needed once. Nothing flows while shards are opened,
//! and a topic that is yet to be compacted takes its time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use rdkafka::message::Message as _;
use tokio::time::Instant;

use super::reader::Connected;
use super::shard::corrupt;
use super::{RedpandaSink, ShardSink};
use crate::checkpoint::topic::{Fold, InvalidCheckpoint, Owner};
use crate::config::settings::{Delivery, Instances};
use crate::sink::{Settle, SinkError};

/// What was read longer ago is read again, all of it: brokers let go of tombstones some time after they were written, and who
/// has not seen one by then would never know.
const FRESH: Duration = Duration::from_secs(30);

/// A record that was read, as it can be known again.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    offset: i64,
    timestamp: Option<i64>,
    key: Option<Vec<u8>>,
}

/// Of some shards, whose own partitions these are, all that was read of the checkpoints.
pub(super) struct Read {
    pub(super) fold: Fold,
    pub(super) own: BTreeMap<u32, i32>,
    since: Instant,
    /// The last record of each partition that has one.
    marks: BTreeMap<i32, Mark>,
    /// Those of them that were not met again yet by whoever reads on.
    unmet: BTreeMap<i32, Mark>,
}

/// Why a record is not taken.
#[derive(Debug)]
enum Untaken {
    /// It is not the one that was read there: the topic was made again, or compacted.
    Another,
    /// It is none of ours.
    Invalid(InvalidCheckpoint),
}

impl Read {
    /// Nothing yet, for these of so many shards.
    pub(super) fn nothing(own: BTreeMap<u32, i32>, shards: u32) -> Self {
        Self {
            fold: Fold::new(own.keys().copied(), shards),
            own,
            since: Instant::now(),
            marks: BTreeMap::new(),
            unmet: BTreeMap::new(),
        }
    }

    /// Whether it says of these shards all that there is to say of the time before.
    fn serves(&self, own: &BTreeMap<u32, i32>) -> bool {
        self.own == *own && self.since.elapsed() < FRESH
    }

    /// From where each partition is read on: from the last record, which has to be there still.
    fn read_on(&mut self) -> BTreeMap<i32, i64> {
        self.unmet.clone_from(&self.marks);
        self.unmet.iter().map(|(p, m)| (*p, m.offset)).collect()
    }

    /// The next record of a partition.
    fn take(&mut self, partition: i32, mark: Mark, value: Option<&[u8]>) -> Result<(), Untaken> {
        if let Some(before) = self.unmet.remove(&partition) {
            return match before == mark {
                true => Ok(()),
                false => Err(Untaken::Another),
            };
        }
        self.fold
            .record(partition, mark.key.as_deref(), value)
            .map_err(Untaken::Invalid)?;
        self.marks.insert(partition, mark);
        Ok(())
    }

    /// Whether nothing is missing of what was there before.
    fn is_continued(&self) -> bool {
        self.unmet.is_empty()
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Aside {
    read: Option<Read>,
    /// Connected, and has read nothing.
    reader: Option<Connected>,
    /// Who takes the shards of an earlier number of them.
    pub(super) surplus: BTreeMap<u32, ShardSink>,
    /// Who moves checkpoints from one partition to another.
    mover: Option<ShardSink>,
}

impl Aside {
    /// What is read on from.
    pub(super) fn keep(&mut self, read: Read) {
        self.read = Some(read);
    }

    /// Who moves checkpoints, if one is ready.
    pub(super) fn mover(&mut self) -> Option<ShardSink> {
        self.mover.take()
    }

    /// Ends what was of no use.
    pub(super) async fn close(self) {
        let producers = self.surplus.into_values().chain(self.mover);
        let closing = producers.map(|mut producer| async move {
            Settle::close(&mut producer).await;
        });
        join_all(closing).await;
    }
}

/// A partition as Kafka numbers it.
fn partition_of(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

impl RedpandaSink {
    /// The checkpoints of these shards, whose own partitions these are: of what was read aside on, or all of them.
    pub(super) async fn read_for(
        &self,
        own: &BTreeMap<u32, i32>,
        aside: &mut Aside,
        stalled: Duration,
    ) -> Result<Read, SinkError> {
        let shards = self.live.borrow().pipeline.shards.get();
        let reader = aside.reader.take();
        if let Some(before) = aside.read.take().filter(|read| read.serves(own)) {
            match self.read_on(before, reader, stalled).await? {
                Some(read) => return Ok(read),
                None => tracing::info!(
                    topic = self.checkpoint_topic(),
                    "what was read of the checkpoints is there no more: they are read anew"
                ),
            }
        }
        let whole = Read::nothing(own.clone(), shards);
        let read = self.read_on(whole, None, stalled).await?;
        read.ok_or(SinkError::Reset)
    }

    /// Reads on from what was read. `None`: that is not there any more.
    pub(super) async fn read_on(
        &self,
        mut read: Read,
        connected: Option<Connected>,
        stalled: Duration,
    ) -> Result<Option<Read>, SinkError> {
        let (reader, topic) = (self.reader(), self.checkpoint_topic());
        let reading = super::blocking(move || {
            let (from, mut is_another) = (read.read_on(), false);
            let done = reader.read_from(connected, &topic, stalled, &from, |m| {
                let mark = Mark {
                    offset: m.offset(),
                    timestamp: m.timestamp().to_millis(),
                    key: m.key().map(<[u8]>::to_vec),
                };
                match read.take(m.partition(), mark, m.payload()) {
                    Ok(()) => Ok(()),
                    Err(Untaken::Invalid(reason)) => Err(corrupt(&topic, m, &reason)),
                    Err(Untaken::Another) => {
                        is_another = true;
                        Err(SinkError::Reset)
                    }
                }
            });
            match done {
                _ if is_another => Ok(None),
                Ok(()) => Ok(read.is_continued().then_some(read)),
                Err(error) => Err(error),
            }
        });
        let waits = self.policies.waits();
        let read = waits.during("read the checkpoints", reading).await;
        read.unwrap_or(Err(SinkError::Reset))
    }

    /// Has ready what these shards will be opened with, as far as it can be had in about this time, or more if there is much
    /// to read; the rest is made when it is needed.
    pub(super) async fn set_aside(self: &Arc<Self>, numbers: &[u32], within: Duration) -> Aside {
        let Some(first) = numbers.first().copied() else {
            return Aside::default();
        };
        let reading = async {
            let mut own = BTreeMap::new();
            for shard in numbers {
                own.insert(*shard, self.own_partition(*shard).await?);
            }
            let read = self.read_for(&own, &mut Aside::default(), within).await?;
            let surplus = self.surplus(&read).await?;
            Ok::<_, SinkError>((read, surplus))
        };
        let (reader, topic) = (self.reader(), self.checkpoint_topic());
        let connecting = super::blocking(move || reader.connect(&topic, within));
        let (read, reader) = tokio::join!(reading, connecting);
        let reader = match reader.unwrap_or(Err(SinkError::Reset)) {
            Ok(connected) => Some(connected),
            Err(error) => {
                tracing::debug!(%error, "who reads the checkpoints has yet to connect");
                None
            }
        };
        let (read, surplus) = match read {
            Ok(read) => read,
            Err(error) => {
                tracing::debug!(%error, "the checkpoints are read when the shards are opened");
                return Aside {
                    reader,
                    ..Aside::default()
                };
            }
        };
        let moves = read.fold.has_strays(&read.own).then(|| {
            let made = self.open_with(first, Delivery::AtLeastOnce);
            (None, made)
        });
        let taking = surplus.into_iter().map(|number| {
            let made = self.open_shard(number);
            (Some(number), made)
        });
        let making = taking.chain(moves).map(|(number, made)| async move {
            let producer = made?;
            producer.warm(within).await;
            Ok::<_, SinkError>((number, producer))
        });
        let mut aside = Aside {
            read: Some(read),
            reader,
            ..Aside::default()
        };
        for made in join_all(making).await {
            match made {
                Ok((Some(number), producer)) => drop(aside.surplus.insert(number, producer)),
                Ok((None, producer)) => aside.mover = Some(producer),
                Err(error) => tracing::debug!(%error, "a producer is made when it is needed"),
            }
        }
        aside
    }

    /// The shards of an earlier number of them that somebody may still have, as what was read says. One that delivers at
    /// least once takes nobody's, and what instances share has always the same number.
    pub(super) async fn surplus(&self, read: &Read) -> Result<BTreeSet<u32>, SinkError> {
        let partitions = self.checkpoint_partitions().await?;
        let (shards, takes) = {
            let pipeline = &self.live.borrow().pipeline;
            let takes =
                pipeline.delivery == Delivery::ExactlyOnce && pipeline.instances == Instances::One;
            (pipeline.shards.get(), takes)
        };
        let is_retired = |number: &u32| {
            let owner = read.fold.owner(partition_of(*number));
            owner.is_none_or(|owner| owner == Owner::NOBODY)
        };
        Ok((shards..partitions)
            .filter(|number| takes && !is_retired(number))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::GroupKey;
    use crate::checkpoint::GroupCheckpoint;
    use crate::checkpoint::topic::encode;

    const GROUP: &str = "ks.t/10/00";

    fn mark(offset: i64, timestamp: i64) -> Mark {
        Mark {
            offset,
            timestamp: Some(timestamp),
            key: Some(GROUP.into()),
        }
    }

    fn value(us: i64) -> Vec<u8> {
        encode(&GroupCheckpoint {
            complete_until_us: us,
            ..GroupCheckpoint::default()
        })
    }

    /// The first, of which the last is at offset 4.
    fn read() -> Read {
        let mut read = Read::nothing(BTreeMap::from([(0, 0)]), 1);
        for offset in [2, 4] {
            read.take(0, mark(offset, offset), Some(&value(offset)))
                .expect("it is taken");
        }
        assert_eq!(read.read_on(), BTreeMap::from([(0, 4)]));
        read
    }

    fn reaches(read: Read) -> i64 {
        let own = read.own.clone();
        let shards = read.fold.finish(&own);
        shards[&0].checkpoints[&GroupKey(GROUP.into())].complete_until_us
    }

    #[test]
    fn who_reads_on_begins_with_the_record_that_was_last() {
        let mut read = read();
        assert!(!read.is_continued());
        read.take(0, mark(4, 4), Some(&value(4))).expect("the same");
        assert!(read.is_continued());
        read.take(0, mark(7, 7), Some(&value(7))).expect("another");
        assert_eq!(read.read_on(), BTreeMap::from([(0, 7)]));
        assert_eq!(reaches(read), 7);
    }

    #[test]
    fn a_topic_that_was_made_again_or_compacted_is_not_read_on() {
        // Made again: shorter, so that it is read from its beginning; longer, with another record in that place, or with
        // a transaction's marker there. Compacted: the next one that is left.
        for other in [mark(0, 9), mark(4, 9), mark(5, 5)] {
            let taken = read().take(0, other.clone(), Some(&value(1)));
            assert!(matches!(taken, Err(Untaken::Another)), "{other:?}");
        }
        let empty = read();
        assert!(!empty.is_continued(), "nothing is there any more");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_for_others_or_long_ago_is_of_no_use() {
        let read = read();
        assert!(read.serves(&BTreeMap::from([(0, 0)])));
        assert!(!read.serves(&BTreeMap::from([(0, 0), (1, 1)])));
        tokio::time::advance(FRESH).await;
        assert!(!read.serves(&BTreeMap::from([(0, 0)])));
    }
}
