//! A lane carries one shard's changes from the source to the sink, in order.
//!
//! Three children work on it, one a stage, joined by bounded channels: [`source`], [`transforms`], [`sink`]. What they
//! share lies here, outside any of them, so that each can crash and be started again without taking the others
//! down or losing a change: the channels, and the [`Ledger`], which knows how far everything is and what is in whose
//! hands.

#[cfg(test)]
mod simulator;
mod sink;
mod source;
mod transforms;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

pub use sink::{FailedStage, FailedStages, SinkParts, run_sink};
pub use source::run_source;
pub use transforms::run_transforms;

use super::ledger::{InFlight, Ledger};
use super::transforms::Handover;
use crate::change::{Batch, RecordBatch};
use crate::checkpoint::Checkpoints;

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
    /// Changes that are done: acknowledged, dead-lettered or dropped.
    pub done: AtomicU64,
    /// Records that Redpanda acknowledged.
    pub acknowledged: AtomicU64,
    /// Dead letters written.
    pub dead_letters: AtomicU64,
    /// Rewinds after a failed delivery or a crash.
    pub rewinds: AtomicU64,
    /// Checkpoints written.
    pub commits: AtomicU64,
    /// `cdc$time` of the newest change that is done, µs since the Unix epoch.
    pub newest_done_us: AtomicU64,
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
    ledger: Mutex<Ledger>,
    /// The ledger's, for whoever waits for another one.
    epoch: watch::Sender<u64>,
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
    ) -> Arc<Self> {
        let (batch_tx, batch_rx) = mpsc::channel(CHANNEL);
        let (record_tx, record_rx) = mpsc::channel(CHANNEL);
        Arc::new(Self {
            shard,
            shards,
            counters,
            handover: Handover::default(),
            ledger: Mutex::new(Ledger::new(checkpoints)),
            epoch: watch::Sender::new(0),
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

    fn rewind(&self, why: &str, back: impl FnOnce(&mut Ledger)) {
        let mut ledger = self.ledger.lock();
        back(&mut ledger);
        let epoch = ledger.epoch();
        self.counters.rewinds.fetch_add(1, Relaxed);
        tracing::info!(shard = self.shard, epoch, why, "shard rewound");
        self.epoch.send_replace(epoch);
    }
}
