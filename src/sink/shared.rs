//! The sink as all shards share it, and as the pipeline knows it: connected, before and beside what a shard's own
//! [`Settle`] does. Knows no driver but by what the group and the tail hand on.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::flight::Snapshot;
use super::redpanda::membership::Member;
use super::redpanda::tail::Tail;
use super::{Settle, SinkError, Ticket};
use crate::change::{Position, RecordBatch};
use crate::checkpoint::Checkpoints;
use crate::checkpoint::log::CheckpointLog;
use crate::checkpoint::topic::Owner;
use crate::dead_letter::{DeadLetter, Filter, Listed};
use crate::policy::health::Status;
use crate::policy::stage::StagePolicies;

/// A connected sink, shared by the shards.
pub trait Sink: Send + Sync {
    /// Does ahead what can be done for these shards while they may still be somebody else's. `others_run`: others do their
    /// work until they are opened, and stand still meanwhile.
    ///
    /// # Errors
    /// A producer cannot be made.
    fn prepare(
        self: Arc<Self>,
        shards: Vec<u32>,
        others_run: bool,
    ) -> BoxFuture<'static, Result<Box<dyn Ahead>, SinkError>>;

    /// A shard's producer, made anew. A shard is open at most once at a time.
    ///
    /// # Errors
    /// It cannot be made.
    fn producer(self: Arc<Self>, shard: u32) -> Result<Box<dyn Settle>, SinkError>;

    /// What dead letters are sent again with.
    ///
    /// # Errors
    /// It cannot be made.
    fn open_replay(self: Arc<Self>) -> Result<Box<dyn Replay>, SinkError>;

    /// Where the pipeline's dead letters are kept; `policies` are those of the stage `dead_letter`.
    ///
    /// # Errors
    /// What they are written with cannot be made.
    fn letters(self: Arc<Self>, policies: StagePolicies) -> Result<Arc<dyn LetterBox>, SinkError>;

    /// Whether there is none of these checkpoints there.
    fn lacks<'a>(&'a self, checkpoints: &'a Checkpoints) -> BoxFuture<'a, Result<bool, SinkError>>;

    /// Writes these checkpoints, of another cluster's, there.
    fn carry<'a>(
        self: Arc<Self>,
        checkpoints: &'a Checkpoints,
    ) -> BoxFuture<'a, Result<(), SinkError>>;

    /// Looks after what is in flight in all shards, and after the topics of ours. Never ends.
    fn guard(self: Arc<Self>) -> BoxFuture<'static, ()>;

    /// Tells the log what is written to the checkpoints, until `stop`. Blocks.
    ///
    /// # Errors
    /// A record is none of ours.
    fn follow_checkpoints(
        &self,
        log: &CheckpointLog,
        stop: &CancellationToken,
    ) -> Result<(), SinkError>;

    /// This instance's part in the group that shares the shards out.
    fn member(&self) -> BoxFuture<'_, Result<Member, SinkError>>;

    /// Has the guard look at the topics of ours again.
    fn look_again(&self);

    /// Counts how often the checkpoint topic was made again: what was in it has to be written anew.
    fn remade(&self) -> watch::Receiver<u64>;

    /// The generations whose groups are placed by their hash, of all shards, as the checkpoints that were loaded say.
    fn placed_by_hash(&self) -> BTreeSet<String>;

    /// Who this process is to others, and where it can be asked.
    fn owner(&self) -> Owner;

    /// Where this process's admin interface listens: said of shards that are taken from here on.
    fn listens_at(&self, admin: Option<SocketAddr>);

    /// What the sink waits for, and why: for health.
    fn complaint(&self) -> Option<Status>;

    /// How often a topic refused records since the start.
    fn refusals(&self) -> u64;

    /// Counts, queue fill and age, of all shards together.
    fn snapshot(&self) -> Snapshot;

    /// Follows what is written, from its beginning.
    ///
    /// # Errors
    /// There is no client to be had.
    fn tail(&self) -> Result<Tail, SinkError>;
}

/// Shards that are about to be opened: what of it fences nobody is done.
pub trait Ahead: Send {
    /// Opens these shards, which nobody else may be writing any more: all of them, or none. What was prepared for others is
    /// ended, and whoever has shards that there are no more of writes no more.
    ///
    /// # Errors
    /// What the brokers have against it.
    fn open(
        self: Box<Self>,
        shards: Vec<u32>,
    ) -> BoxFuture<'static, Result<Vec<Opened>, SinkError>>;

    /// Ends what was prepared.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// A shard that is open.
pub struct Opened {
    /// Its number.
    pub shard: u32,
    /// Where it stands.
    pub checkpoints: Checkpoints,
    /// Its producer, if that is there already: it has taken the shard, and said so.
    pub producer: Option<Box<dyn Settle>>,
}

/// Sends dead letters again, one after the other.
pub trait Replay: Settle {
    /// Hands a batch over, whatever its topics have to be waited for.
    fn submit(&mut self, batch: Arc<RecordBatch>) -> BoxFuture<'_, Result<Ticket, SinkError>>;

    /// Takes these letters away with what was handed over.
    fn take_away<'a>(&'a mut self, letters: &'a [Position])
    -> BoxFuture<'a, Result<(), SinkError>>;
}

/// Where letters go, and who looks at them first.
pub trait Letters: Send + Sync {
    /// Looks whether these are a flood.
    fn admit<'a>(&'a self, letters: &'a [DeadLetter]) -> BoxFuture<'a, Result<(), SinkError>>;

    /// … and writes them.
    fn write<'a>(&'a self, letters: &'a [DeadLetter]) -> BoxFuture<'a, Result<(), SinkError>>;

    /// Back when there is something to see to without a request.
    fn keep_closed(&self) -> BoxFuture<'_, ()>;
}

/// … and what people do with those that are kept.
pub trait LetterBox: Letters {
    /// Those that are meant, and what else is there.
    fn read<'a>(&'a self, filter: &'a Filter) -> BoxFuture<'a, Result<Listed, SinkError>>;

    /// Takes away those that are meant; says how many, and how many records were skipped that are none.
    fn purge<'a>(&'a self, filter: &'a Filter) -> BoxFuture<'a, Result<(usize, usize), SinkError>>;

    /// Takes the letters of these changes away.
    fn take_away<'a>(&'a self, changes: &'a [Position]) -> BoxFuture<'a, Result<(), SinkError>>;

    /// Writes letters that were kept before: they are none that a stage has just made.
    fn rewrite<'a>(&'a self, letters: &'a [DeadLetter]) -> BoxFuture<'a, Result<(), SinkError>>;

    /// A stage that failed over a flood starts anew with a clean slate.
    fn forget_flood(&self, stage: &str);
}
