//! What a shard's way to the broker has done since the process started: counts, and what is read of them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// Upper bounds of the buckets of [`Snapshot::ack_latency`], in seconds; the last bucket is above them all.
pub const LATENCY_BUCKETS: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
];

/// What a shard has done since the process started; survives its producers.
#[derive(Debug, Default)]
pub struct Counters {
    records: AtomicU64,
    bytes: AtomicU64,
    acked: AtomicU64,
    batches: AtomicU64,
    poison: AtomicU64,
    failed: AtomicU64,
    waits: AtomicU64,
    resets: AtomicU64,
    committed: AtomicU64,
    aborted: AtomicU64,
    latency_sum_us: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS.len() + 1],
}

/// The counters of a shard, or of all, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Records handed to librdkafka.
    pub records: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Records acknowledged.
    pub acked: u64,
    /// Batches of which every record was acknowledged or refused.
    pub batches: u64,
    /// Records refused for their content.
    pub poison: u64,
    /// Windows broken by a delivery error.
    pub failed: u64,
    /// Times that a full queue made a batch wait.
    pub waits: u64,
    /// Producers replaced.
    pub resets: u64,
    /// Transactions that the broker says are committed.
    pub committed: u64,
    /// Transactions that were aborted.
    pub aborted: u64,
    /// Seconds from submission to the last acknowledgement, summed over `batches`.
    pub ack_latency_sum: f64,
    /// Batches by that time: one count a bucket of [`LATENCY_BUCKETS`], and one for the rest. Not cumulative.
    pub ack_latency: [u64; LATENCY_BUCKETS.len() + 1],
    /// Records handed over and not yet reported on.
    pub queued: u64,
    /// The longest that a batch has been waiting for its acknowledgement.
    pub oldest: Option<Duration>,
}

impl Counters {
    pub(super) fn produced(&self, records: u64, bytes: u64) {
        self.records.fetch_add(records, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn waited(&self) {
        self.waits.fetch_add(1, Relaxed);
    }

    pub(super) fn reset(&self) {
        self.resets.fetch_add(1, Relaxed);
    }

    pub(super) fn committed(&self) {
        self.committed.fetch_add(1, Relaxed);
    }

    pub(super) fn aborted(&self) {
        self.aborted.fetch_add(1, Relaxed);
    }

    pub(super) fn completed(&self, took: Duration) {
        self.batches.fetch_add(1, Relaxed);
        self.latency_sum_us
            .fetch_add(took.as_micros() as u64, Relaxed);
        let bucket = LATENCY_BUCKETS.partition_point(|&b| b < took.as_secs_f64());
        self.latency[bucket].fetch_add(1, Relaxed);
    }

    pub(super) fn acked(&self) {
        self.acked.fetch_add(1, Relaxed);
    }

    pub(super) fn refused(&self) {
        self.poison.fetch_add(1, Relaxed);
    }

    pub(super) fn broken(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    /// Reads them, with what is under way: so many records, the oldest batch since then.
    pub fn snapshot(&self, queued: usize, oldest: Option<Instant>) -> Snapshot {
        Snapshot {
            records: self.records.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            acked: self.acked.load(Relaxed),
            batches: self.batches.load(Relaxed),
            poison: self.poison.load(Relaxed),
            failed: self.failed.load(Relaxed),
            waits: self.waits.load(Relaxed),
            resets: self.resets.load(Relaxed),
            committed: self.committed.load(Relaxed),
            aborted: self.aborted.load(Relaxed),
            ack_latency_sum: self.latency_sum_us.load(Relaxed) as f64 / 1e6,
            ack_latency: std::array::from_fn(|i| self.latency[i].load(Relaxed)),
            queued: queued as u64,
            oldest: oldest.map(|since| Instant::now().saturating_duration_since(since)),
        }
    }
}

impl std::ops::AddAssign for Snapshot {
    /// Sums the counts, keeps the longer wait.
    fn add_assign(&mut self, o: Self) {
        self.records += o.records;
        self.bytes += o.bytes;
        self.acked += o.acked;
        self.batches += o.batches;
        self.poison += o.poison;
        self.failed += o.failed;
        self.waits += o.waits;
        self.resets += o.resets;
        self.committed += o.committed;
        self.aborted += o.aborted;
        self.ack_latency_sum += o.ack_latency_sum;
        for (a, b) in self.ack_latency.iter_mut().zip(o.ack_latency) {
            *a += b;
        }
        self.queued += o.queued;
        self.oldest = self.oldest.max(o.oldest);
    }
}
