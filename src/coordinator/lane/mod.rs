//! A lane carries one shard's changes from the source to the sink, in order.
//!
//! Three children work on it, one a stage, joined by bounded channels: [`source`], [`transforms`], [`sink`]. What they
//! share lies here, outside any of them, so that each can crash and be started again without taking the others
//! down or losing a change: the channels, and the [`Ledger`], which knows how far everything is and what is in whose
//! hands.

mod delivery;
mod parking;
#[cfg(test)]
mod simulator;
mod sink;
mod source;
mod traces;
mod transforms;
mod unsettled;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

pub use sink::{FailedStage, FailedStages, SinkParts, run_sink};
pub use source::run_source;
pub use transforms::run_transforms;
use work::Undone;
pub use work::{Latencies, Work, Works};

use super::ledger::{InFlight, Ledger};
use super::transforms::Handover;
use crate::change::{Batch, RecordBatch};
use crate::checkpoint::Checkpoints;
use crate::sink::{Settle, SinkError};
use crate::source::Aside;
use crate::spans::Spans;
use parking::{Appetite, Parking, Waiting};

/// Batches that wait between two stages: one being worked on, one ready. More would only add memory, since
/// what bounds throughput is the sink's window (`max_in_flight`).
const CHANNEL: usize = 2;

/// What has gone through a lane since the process started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Changes that the source handed on.
    pub read: AtomicU64,
    /// Changes that the transforms are through with.
    pub transformed: AtomicU64,
    /// Changes that a transform dropped.
    pub dropped: AtomicU64,
    /// Changes that are done: acknowledged, dead-lettered or dropped, and that is committed.
    pub done: AtomicU64,
    /// Records that Redpanda acknowledged.
    pub acknowledged: AtomicU64,
    /// Dead letters written; with exactly-once, committed.
    pub dead_letters: AtomicU64,
    /// Rewinds after a failed delivery or a crash.
    pub rewinds: AtomicU64,
    /// Checkpoints written.
    pub commits: AtomicU64,
    /// How fast changes are done.
    pub rate: Mutex<Rate>,
    /// `cdc$time` of the newest change that is done, µs since the Unix epoch.
    pub newest_done_us: AtomicU64,
    /// From the write to being seen by a reader, by table.
    pub latencies: Latencies,
    /// By transform.
    pub works: Works,
}

/// Seconds over which a rate is taken.
const RATE_OVER: usize = 10;

/// What happened a second, over the last [`RATE_OVER`] whole ones.
#[derive(Clone, Debug)]
pub struct Rate {
    began: Instant,
    /// By second since then, modulo; and the newest of them.
    seconds: [u64; RATE_OVER + 1],
    newest: u64,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            seconds: [0; RATE_OVER + 1],
            newest: 0,
        }
    }
}

impl Rate {
    fn turn(&mut self, now: Instant) -> usize {
        let second = now.saturating_duration_since(self.began).as_secs();
        let len = self.seconds.len() as u64;
        for passed in (self.newest + 1..=second).rev().take(self.seconds.len()) {
            self.seconds[(passed % len) as usize] = 0;
        }
        self.newest = self.newest.max(second);
        (self.newest % len) as usize
    }

    /// So many more.
    pub fn add(&mut self, n: u64, now: Instant) {
        let at = self.turn(now);
        self.seconds[at] += n;
    }

    /// How many a second; the one under way does not count.
    pub fn per_second(&mut self, now: Instant) -> f64 {
        let under_way = self.turn(now);
        let whole = self.seconds.iter().sum::<u64>() - self.seconds[under_way];
        whole as f64 / self.newest.clamp(1, RATE_OVER as u64) as f64
    }
}

/// See the module.
pub struct Lane {
    /// The slot.
    pub shard: u32,
    /// How many slots there are.
    pub shards: u32,
    /// What went through, also before a rebuild.
    pub counters: Arc<Counters>,
    /// Where a changed transform waits for the next batch boundary.
    pub handover: Handover,
    /// Where traces go.
    pub spans: Arc<Spans>,
    ledger: Mutex<Ledger>,
    /// Of what is between its marks `committed` and `delivered`, what is to be counted.
    undone: Mutex<Undone>,
    /// Groups that wait for a topic.
    parking: Mutex<Parking>,
    appetite: Mutex<Appetite>,
    /// What follows from both for the source.
    aside: watch::Sender<Arc<Aside>>,
    /// The ledger's, for whoever waits for another one.
    epoch: watch::Sender<u64>,
    /// A producer that is ready for the sink's child.
    producer: Mutex<Option<Box<dyn Settle>>>,
    /// It is kept when the lane has drained.
    keeps_producer: AtomicBool,
    batches: (
        mpsc::Sender<Batch>,
        tokio::sync::Mutex<mpsc::Receiver<Batch>>,
    ),
    records: (
        mpsc::Sender<Arc<RecordBatch>>,
        tokio::sync::Mutex<mpsc::Receiver<Arc<RecordBatch>>>,
    ),
}

impl Lane {
    /// A lane that goes on from its checkpoints, and from the counts of the one that it replaces.
    pub fn new(
        shard: u32,
        shards: u32,
        checkpoints: Checkpoints,
        counters: Arc<Counters>,
        spans: Arc<Spans>,
    ) -> Arc<Self> {
        let (batch_tx, batch_rx) = mpsc::channel(CHANNEL);
        let (record_tx, record_rx) = mpsc::channel(CHANNEL);
        Arc::new(Self {
            shard,
            shards,
            counters,
            handover: Handover::default(),
            spans,
            ledger: Mutex::new(Ledger::new(checkpoints)),
            undone: Mutex::default(),
            parking: Mutex::default(),
            appetite: Mutex::default(),
            aside: watch::Sender::default(),
            epoch: watch::Sender::new(0),
            producer: Mutex::default(),
            keeps_producer: AtomicBool::new(false),
            batches: (batch_tx, tokio::sync::Mutex::new(batch_rx)),
            records: (record_tx, tokio::sync::Mutex::new(record_rx)),
        })
    }

    /// What the sink holds and has not delivered.
    pub fn in_flight(&self) -> InFlight {
        self.ledger.lock().in_flight()
    }

    /// Batches that wait before the transforms and before the sink, each out of [`Self::queue_capacity`].
    pub fn queued(&self) -> (usize, usize) {
        (
            CHANNEL - self.batches.0.capacity(),
            CHANNEL - self.records.0.capacity(),
        )
    }

    /// The room of a queue between two stages, in batches.
    pub fn queue_capacity() -> usize {
        CHANNEL
    }

    /// What is committed, group by group.
    pub fn committed(&self) -> Checkpoints {
        self.ledger.lock().committed().clone()
    }

    /// Keeps a producer that stands where the lane does, for the sink's next child.
    pub fn keep(&self, producer: Box<dyn Settle>) {
        *self.producer.lock() = Some(producer);
    }

    /// Whether the sink's child keeps its producer when it has drained, rather than ending it.
    pub fn keep_producer(&self, keeps: bool) {
        self.keeps_producer.store(keeps, Relaxed);
    }

    /// Whether there is a producer that was kept.
    pub fn keeps(&self) -> bool {
        self.producer.lock().is_some()
    }

    /// The producer that was kept.
    pub fn kept(&self) -> Option<Box<dyn Settle>> {
        self.producer.lock().take()
    }

    /// Has these groups wait for their topics.
    fn park(&self, waiting: Waiting) {
        for (topic, groups) in &waiting {
            let (shard, topic, groups) = (self.shard, &**topic, groups.len());
            tracing::warn!(
                shard,
                topic,
                groups,
                "stream groups wait for a topic, the others go on"
            );
        }
        self.parking.lock().park(waiting);
        self.tell_source();
    }

    /// A topic is there, or takes records again.
    fn unpark(&self, topic: &str) {
        if self.parking.lock().over(topic) {
            tracing::info!(
                shard = self.shard,
                topic,
                "no stream group waits for the topic any more"
            );
            self.tell_source();
        }
    }

    /// A delivery failed with so many changes in an open transaction: the next are smaller if it was open for too long.
    fn did_not_fit(&self, error: &SinkError, changes: usize, after: Option<Duration>) {
        let Some(after) = after else { return };
        let most = self.appetite.lock().failed(changes, after);
        if let Some(most) = most {
            let after = humantime::format_duration(Duration::from_secs(after.as_secs()));
            tracing::warn!(shard = self.shard, changes, %after, most, %error, "a transaction did not get done in its time, the next are smaller");
            self.tell_source();
        }
    }

    /// A transaction of so many changes was committed.
    fn fitted(&self, changes: usize, after: Duration, max: usize) {
        if self.appetite.lock().committed(changes, after, max) {
            self.tell_source();
        }
    }

    /// Publishes what the source is to heed.
    fn tell_source(&self) {
        let mut aside = self.parking.lock().aside();
        aside.most = self.appetite.lock().most();
        self.aside.send_replace(Arc::new(aside));
    }

    fn rewind(&self, why: &str, back: impl FnOnce(&mut Ledger)) {
        let mut ledger = self.ledger.lock();
        back(&mut ledger);
        let epoch = ledger.epoch();
        self.counters.rewinds.fetch_add(1, Relaxed);
        tracing::info!(shard = self.shard, epoch, why, "shard rewound");
        self.epoch.send_replace(epoch);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_is_of_the_last_ten_seconds() {
        let mut rate = Rate::default();
        let at = |s: f64| rate.began + Duration::from_secs_f64(s);
        let (first, later, gone) = ([at(0.1), at(0.9)], at(4.5), at(60.0));
        let (second, tenth) = (at(1.5), at(14.5));
        for now in first {
            rate.add(50, now);
        }
        assert_eq!(rate.per_second(second), 100.0);
        assert_eq!(rate.per_second(later), 25.0);
        rate.add(30, later);
        assert_eq!(
            rate.per_second(tenth),
            3.0,
            "the first second is too long ago"
        );
        assert_eq!(rate.per_second(gone), 0.0);
    }
}
