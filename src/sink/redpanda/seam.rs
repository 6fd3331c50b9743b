//! The sink and its letters as the pipeline knows them ([`Sink`], [`LetterBox`]).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::membership::Member;
use super::opening::Prepared;
use super::tail::Tail;
use super::{DeadLetters, REPLAY_SHARD, RedpandaSink, ShardSink};
use crate::change::{Position, RecordBatch};
use crate::checkpoint::Checkpoints;
use crate::checkpoint::log::CheckpointLog;
use crate::checkpoint::topic::Owner;
use crate::dead_letter::{DeadLetter, Filter, Listed};
use crate::policy::health::Status;
use crate::policy::stage::StagePolicies;
use crate::sink::flight::Snapshot;
use crate::sink::{Ahead, LetterBox, Letters, Opened, Replay, Settle, Sink, SinkError, Ticket};

impl Sink for RedpandaSink {
    fn prepare(
        self: Arc<Self>,
        shards: Vec<u32>,
        others_run: bool,
    ) -> BoxFuture<'static, Result<Box<dyn Ahead>, SinkError>> {
        Box::pin(async move {
            let prepared = match others_run {
                true => self.prepare_beside(shards).await?,
                false => Self::prepare(&self, shards).await?,
            };
            let ahead: Box<dyn Ahead> = Box::new(Connected {
                sink: self,
                prepared,
            });
            Ok(ahead)
        })
    }

    fn producer(self: Arc<Self>, shard: u32) -> Result<Box<dyn Settle>, SinkError> {
        Ok(Box::new(Self::open_shard(&self, shard)?))
    }

    fn open_replay(self: Arc<Self>) -> Result<Box<dyn Replay>, SinkError> {
        // What a topic takes may have been raised for what is replayed.
        self.topics.forget();
        Ok(Box::new(Self::open_shard(&self, REPLAY_SHARD)?))
    }

    fn letters(self: Arc<Self>, policies: StagePolicies) -> Result<Arc<dyn LetterBox>, SinkError> {
        Ok(Arc::new(DeadLetters::open(&self, policies)?))
    }

    fn lacks<'a>(&'a self, checkpoints: &'a Checkpoints) -> BoxFuture<'a, Result<bool, SinkError>> {
        Box::pin(self.lacks(checkpoints))
    }

    fn carry<'a>(
        self: Arc<Self>,
        checkpoints: &'a Checkpoints,
    ) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move { Self::carry(&self, checkpoints).await })
    }

    fn guard(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move { Self::guard(&self).await })
    }

    fn follow_checkpoints(
        &self,
        log: &CheckpointLog,
        stop: &CancellationToken,
    ) -> Result<(), SinkError> {
        self.follow_checkpoints(log, stop)
    }

    fn member(&self) -> BoxFuture<'_, Result<Member, SinkError>> {
        Box::pin(self.member())
    }

    fn look_again(&self) {
        self.again.notify_one();
    }

    fn remade(&self) -> watch::Receiver<u64> {
        self.remade.subscribe()
    }

    fn placed_by_hash(&self) -> BTreeSet<String> {
        self.hashed.lock().clone()
    }

    fn owner(&self) -> Owner {
        let advertised = self.live.borrow().admin.advertise.clone();
        let listens = || {
            let address = (*self.admin.lock())?;
            (!address.ip().is_unspecified()).then(|| address.to_string())
        };
        Owner {
            instance: self.instance,
            admin: advertised.or_else(listens),
        }
    }

    fn listens_at(&self, admin: Option<SocketAddr>) {
        *self.admin.lock() = admin;
    }

    fn complaint(&self) -> Option<Status> {
        self.troubles.complaint()
    }

    fn refusals(&self) -> u64 {
        self.troubles.refusals()
    }

    fn snapshot(&self) -> Snapshot {
        let mut sum = Snapshot::default();
        for snapshot in self.snapshots().into_values() {
            sum += snapshot;
        }
        sum
    }

    fn tail(&self) -> Result<Tail, SinkError> {
        self.tail()
    }
}

/// Producers that are connected, and the sink that they are of.
struct Connected {
    sink: Arc<RedpandaSink>,
    prepared: Prepared,
}

impl Ahead for Connected {
    fn open(
        self: Box<Self>,
        shards: Vec<u32>,
    ) -> BoxFuture<'static, Result<Vec<Opened>, SinkError>> {
        Box::pin(async move { self.sink.open_shards(&shards, self.prepared).await })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(self.prepared.close())
    }
}

impl Replay for ShardSink {
    fn submit(&mut self, batch: Arc<RecordBatch>) -> BoxFuture<'_, Result<Ticket, SinkError>> {
        Box::pin(self.submit(batch))
    }

    fn take_away<'a>(
        &'a mut self,
        letters: &'a [Position],
    ) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(self.take_away(letters))
    }
}

impl Letters for DeadLetters {
    fn admit<'a>(&'a self, letters: &'a [DeadLetter]) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(self.admit(letters))
    }

    fn write<'a>(&'a self, letters: &'a [DeadLetter]) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(self.write(letters))
    }

    fn keep_closed(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.keep_closed())
    }
}

impl LetterBox for DeadLetters {
    fn read<'a>(&'a self, filter: &'a Filter) -> BoxFuture<'a, Result<Listed, SinkError>> {
        Box::pin(self.read(filter))
    }

    fn purge<'a>(&'a self, filter: &'a Filter) -> BoxFuture<'a, Result<(usize, usize), SinkError>> {
        Box::pin(self.purge(filter))
    }

    fn take_away<'a>(&'a self, changes: &'a [Position]) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(self.take_away(changes))
    }

    fn rewrite<'a>(&'a self, letters: &'a [DeadLetter]) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(self.rewrite(letters))
    }

    fn forget_flood(&self, stage: &str) {
        self.flood.lock().forget(stage);
    }
}
