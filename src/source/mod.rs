//! Where changes come from.
//!
//! The traits are the seam: the coordinator and its tests know these, and only [`scylla`] knows a driver.
//! A snapshot reader or an eager tail would be another [`Source`].

pub mod scylla;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::change::{Batch, GroupKey, Position, Progress};
use crate::checkpoint::Checkpoints;
use crate::checkpoint::log::CheckpointLog;
use crate::policy::health::Status;

pub use scylla::{ScyllaSource, SourceError, examine};

/// A connected source, shared by the shards.
pub trait Source: Send + Sync {
    /// Asks, until it is dropped, what all shards have to know. Nobody else asks, so it has to be polled for as
    /// long as a shard is open. Ends only with what is no use trying again; it may be begun again after that.
    fn survey(self: Arc<Self>) -> BoxFuture<'static, Result<Infallible, SourceError>>;

    /// The tables that are not there, or have no change log, by `keyspace.name`, with what would help. They are waited
    /// for: that a name is wrong cannot be told from that its table is not made yet.
    fn absent(&self) -> Vec<(Arc<str>, SourceError)> {
        Vec::new()
    }

    /// Finds out ahead what shards will ask; what is not answered in this time they wait for.
    fn look_ahead(&self, _within: Duration) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// What other instances have done is to be told to this log, by whoever reads the checkpoint topic: from now on a
    /// stream generation is left only when they have finished it too. `None`: it has no generations to leave.
    fn checkpoint_log(&self) -> Option<Arc<CheckpointLog>> {
        None
    }

    /// Says which generations (`keyspace.table/generation`) have groups in the checkpoint topic, of whichever shard, that
    /// are placed by their hash: they stay so to their end. Has to be said before a shard is opened.
    fn placed_by_hash(&self, generations: &BTreeSet<String>);

    /// Starts (or, after a rewind, restarts) the lane of a shard behind its checkpoints. No I/O happens here.
    ///
    /// `checkpoints` are those of the shard's groups. After a change of `shards`, hand all that there are to
    /// every shard: the others' tell whether an old stream generation is finished, without which a change of
    /// `shards` in the middle of a switch of generations repeats changes (it never loses any).
    fn open_shard(
        self: Arc<Self>,
        shard: u32,
        shards: u32,
        epoch: u64,
        checkpoints: Checkpoints,
    ) -> Box<dyn ShardReader>;

    /// Says that a batch with this progress is done: acknowledged, dead-lettered or dropped.
    ///
    /// Must be called for every batch of every shard: a new stream generation is opened only when the
    /// old one is done in all shards of the process, else a key whose stream moved to another shard could
    /// be overtaken by its own later changes.
    fn acknowledged(&self, shard: u32, progress: &[Progress]);

    /// This process no longer owns the shard; nobody waits for it any more.
    fn release_shard(&self, shard: u32);

    /// Reads the write again that a change is of, with what it links to; `None`: its log has it no more.
    fn read_again<'a>(
        &'a self,
        table: &'a str,
        position: Position,
    ) -> BoxFuture<'a, Result<Option<Batch>, SourceError>>;

    /// What health, metrics and the admin interface show.
    fn status(&self) -> SourceStatus;
}

/// What a lane asks of its reader beside the next batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aside {
    /// Groups that are not read: what comes of them has to wait.
    pub parked: BTreeSet<GroupKey>,
    /// Groups that are read in batches of their own: whether what comes of them is taken is to be seen.
    pub apart: BTreeSet<GroupKey>,
    /// Changes in a batch, if fewer than is set.
    pub most: Option<usize>,
}

/// Reads one shard, in order.
pub trait ShardReader: Send {
    /// Waits for the next batch: rows, or progress alone. Cancel-safe: a dropped call loses nothing.
    ///
    /// Failures are retried inside, by the stage's policies and for each stream group by itself. What comes
    /// out is fatal, or has used up `max_attempts`; the reader may be called again after it.
    fn next(&mut self) -> BoxFuture<'_, Result<Batch, SourceError>>;

    /// From now on what is asked here is heeded, as it changes. A group that was read further than it may be goes back
    /// only with the lane, by another reader.
    fn heed(&mut self, aside: watch::Receiver<Arc<Aside>>);

    /// Keeps what is under way going while no batch is wanted. Never ends; cancel-safe.
    ///
    /// Whoever waits for something else than [`next`](Self::next) polls this meanwhile: a read that nobody
    /// polls may hold the breaker's one probe.
    fn drive(&mut self) -> BoxFuture<'_, Infallible>;
}

/// What a source did and how far it is.
#[derive(Clone, Debug, Default)]
pub struct SourceStatus {
    /// Rows handed on since the start.
    pub rows: u64,
    /// Bytes of these rows in the plugins' encoding.
    pub bytes: u64,
    /// Rows that could not be decoded.
    pub undecodable: u64,
    /// Pages read.
    pub pages: u64,
    /// Pages of keys read to see what came late.
    pub looks: u64,
    /// Rows that appeared behind what had been read; they are among [`rows`](Self::rows).
    pub late: u64,
    /// What is not as it should be without anything having failed.
    pub complaint: Option<Status>,
    /// Windows read to their end.
    pub windows: u64,
    /// Reads that failed, each attempt counted.
    pub failed_reads: u64,
    /// Open shards, by number.
    pub shards: Vec<ShardStatus>,
    /// The tables that are read.
    pub tables: Vec<TableStatus>,
    /// The last failure and when it was; stays after recovery.
    pub last_error: Option<(SystemTime, String)>,
}

impl SourceStatus {
    /// Adds what the reader that this one took the place of had counted.
    pub fn count_on_from(&mut self, before: &Self) {
        self.rows += before.rows;
        self.bytes += before.bytes;
        self.undecodable += before.undecodable;
        self.pages += before.pages;
        self.looks += before.looks;
        self.late += before.late;
        self.windows += before.windows;
        self.failed_reads += before.failed_reads;
        for table in &mut self.tables {
            if let Some(known) = before.tables.iter().find(|t| t.table == table.table) {
                table.gaps += known.gaps;
                table.gaps_for += known.gaps_for;
            }
        }
    }

    /// The least share (0 to 1) of a change log's TTL that is left before unread changes expire; `None`
    /// when no log expires.
    pub fn retention_headroom(&self) -> Option<f64> {
        let lag = self.shards.iter().map(|s| s.lag).max()?.as_secs_f64();
        self.tables
            .iter()
            .filter_map(|t| t.cdc_ttl)
            .map(|ttl| (1.0 - lag / ttl.as_secs_f64()).clamp(0.0, 1.0))
            .min_by(f64::total_cmp)
    }
}

/// One shard's reading.
#[derive(Clone, Debug, Default)]
pub struct ShardStatus {
    /// Its number.
    pub shard: u32,
    /// Now minus the time up to which all of its groups are read (reading waits for what comes after it,
    /// so at most `pipeline.max_in_flight` changes more are unacknowledged).
    pub lag: Duration,
    /// Reads longer spans than its poll interval because it is behind.
    pub catching_up: bool,
    /// Stream groups that it reads now.
    pub groups: usize,
    /// Rows handed on.
    pub rows: u64,
    /// Reads allowed at once by its congestion control.
    pub concurrency: u32,
    /// Waits for other shards to finish the old stream generation.
    pub waiting_for_generation: bool,
}

/// One table's log.
#[derive(Clone, Debug, Default)]
pub struct TableStatus {
    /// `keyspace.table`.
    pub table: String,
    /// How long a change stays in the log; `None`: for ever, or unknown.
    pub cdc_ttl: Option<Duration>,
    /// Lays out its streams by tablets, not vnodes.
    pub tablets: bool,
    /// The oldest stream generation that a shard still reads, ms since the Unix epoch.
    pub generation_ms: Option<i64>,
    /// Generations known.
    pub generations: usize,
    /// Versions of its schema seen since the start.
    pub schema_versions: usize,
    /// How often changes of it could not be read: its log was dropped, or nothing was logged.
    pub gaps: u64,
    /// How long these times were in all.
    pub gaps_for: Duration,
}
