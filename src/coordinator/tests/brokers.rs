//! Made-up brokers: what is committed, who may write, and what a test has them do.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::world::{Cluster, World, is_of};
use crate::change::{Position, RecordBatch};
use crate::checkpoint::log::CheckpointLog;
use crate::checkpoint::topic::Owner;
use crate::checkpoint::{Checkpoints, Settlement};
use crate::config::LiveSettings;
use crate::dead_letter::{DeadLetter, Filter, Listed};
use crate::policy::health::Status;
use crate::policy::stage::StagePolicies;
use crate::sink::flight::Snapshot;
use crate::sink::redpanda::membership::Member;
use crate::sink::redpanda::tail::Tail;
use crate::sink::{
    Ahead, Delivered, Fit, Leave, LetterBox, Letters, Look, Opened, Recovery, Replay, Settle, Sink,
    SinkError, Standing, Ticket,
};

/// Connected to one of the world's clusters.
#[derive(Clone)]
pub(super) struct Brokers {
    world: Arc<World>,
    cluster: Arc<Cluster>,
    shards: u32,
    records: Arc<AtomicU64>,
}

impl Brokers {
    pub(super) fn new(world: &Arc<World>, live: &LiveSettings) -> Self {
        let settings = live.borrow();
        Self {
            world: world.clone(),
            cluster: world.cluster(&settings.sink.brokers),
            shards: settings.pipeline.shards.get(),
            records: Arc::default(),
        }
    }

    fn checkpoints(&self, shard: u32) -> Checkpoints {
        let kept = self.cluster.checkpoints.lock();
        let own = kept.iter().filter(|(g, _)| g.shard(self.shards) == shard);
        own.map(|(g, c)| (g.clone(), c.clone())).collect()
    }
}

fn nothing_made_up(what: &str) -> SinkError {
    SinkError::Client(format!("{what} is not made up here"))
}

impl Sink for Brokers {
    fn prepare(
        self: Arc<Self>,
        _: Vec<u32>,
        _: bool,
    ) -> BoxFuture<'static, Result<Box<dyn Ahead>, SinkError>> {
        let ahead: Box<dyn Ahead> = Box::new((*self).clone());
        Box::pin(std::future::ready(Ok(ahead)))
    }

    fn producer(self: Arc<Self>, shard: u32) -> Result<Box<dyn Settle>, SinkError> {
        Ok(Box::new(Producer {
            brokers: (*self).clone(),
            shard,
            epoch: 0,
            open: Vec::new(),
            rests: false,
        }))
    }

    fn open_replay(self: Arc<Self>) -> Result<Box<dyn Replay>, SinkError> {
        Err(nothing_made_up("a replay"))
    }

    fn letters(self: Arc<Self>, _: StagePolicies) -> Result<Arc<dyn LetterBox>, SinkError> {
        Ok(self)
    }

    fn lacks<'a>(&'a self, known: &'a Checkpoints) -> BoxFuture<'a, Result<bool, SinkError>> {
        let there = self.cluster.checkpoints.lock();
        let lacks = !known.is_empty() && !known.keys().any(|group| there.contains_key(group));
        Box::pin(std::future::ready(Ok(lacks)))
    }

    fn carry<'a>(
        self: Arc<Self>,
        checkpoints: &'a Checkpoints,
    ) -> BoxFuture<'a, Result<(), SinkError>> {
        self.cluster.checkpoints.lock().extend(checkpoints.clone());
        Box::pin(std::future::ready(Ok(())))
    }

    fn guard(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }

    fn follow_checkpoints(
        &self,
        _: &CheckpointLog,
        _: &CancellationToken,
    ) -> Result<(), SinkError> {
        Err(nothing_made_up("following checkpoints"))
    }

    fn member(&self) -> BoxFuture<'_, Result<Member, SinkError>> {
        Box::pin(std::future::ready(Err(nothing_made_up("a group"))))
    }

    fn look_again(&self) {}

    fn remade(&self) -> watch::Receiver<u64> {
        self.world.remade.subscribe()
    }

    fn placed_by_hash(&self) -> BTreeSet<String> {
        BTreeSet::new()
    }

    fn owner(&self) -> Owner {
        Owner::NOBODY
    }

    fn listens_at(&self, _: Option<SocketAddr>) {}

    fn complaint(&self) -> Option<Status> {
        None
    }

    fn refusals(&self) -> u64 {
        0
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            records: self.records.load(Relaxed),
            ..Snapshot::default()
        }
    }

    fn tail(&self) -> Result<Tail, SinkError> {
        Err(nothing_made_up("a tail"))
    }
}

impl Ahead for Brokers {
    fn open(
        self: Box<Self>,
        shards: Vec<u32>,
    ) -> BoxFuture<'static, Result<Vec<Opened>, SinkError>> {
        Box::pin(async move {
            if let Some(reason) = self.world.no_opening.lock().clone() {
                let (topic, class) = ("checkpoints".into(), crate::policy::Class::Retryable);
                return Err(SinkError::Topic {
                    topic,
                    reason,
                    class,
                });
            }
            let opened = shards.into_iter().map(|shard| Opened {
                shard,
                checkpoints: self.checkpoints(shard),
                producer: None,
            });
            Ok(opened.collect())
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// With exactly-once they are kept by the shards' own transactions.
impl Letters for Brokers {
    fn admit<'a>(&'a self, _: &'a [DeadLetter]) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn write<'a>(&'a self, letters: &'a [DeadLetter]) -> BoxFuture<'a, Result<(), SinkError>> {
        self.cluster.letters.lock().extend(letters.iter().cloned());
        Box::pin(std::future::ready(Ok(())))
    }

    fn keep_closed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

impl LetterBox for Brokers {
    fn read<'a>(&'a self, filter: &'a Filter) -> BoxFuture<'a, Result<Listed, SinkError>> {
        let kept = self.cluster.letters.lock();
        let letters = kept.iter().filter(|l| filter.matches(l)).cloned();
        let listed = Listed {
            letters: letters.collect(),
            ..Listed::default()
        };
        Box::pin(std::future::ready(Ok(listed)))
    }

    fn purge<'a>(&'a self, filter: &'a Filter) -> BoxFuture<'a, Result<(usize, usize), SinkError>> {
        let mut kept = self.cluster.letters.lock();
        let before = kept.len();
        kept.retain(|l| !filter.matches(l));
        Box::pin(std::future::ready(Ok((before - kept.len(), 0))))
    }

    fn take_away<'a>(&'a self, changes: &'a [Position]) -> BoxFuture<'a, Result<(), SinkError>> {
        let mut kept = self.cluster.letters.lock();
        kept.retain(|l| !changes.contains(&l.position));
        Box::pin(std::future::ready(Ok(())))
    }

    fn rewrite<'a>(&'a self, letters: &'a [DeadLetter]) -> BoxFuture<'a, Result<(), SinkError>> {
        self.write(letters)
    }

    fn forget_flood(&self, _: &str) {}
}

/// A shard's transactional producer.
struct Producer {
    brokers: Brokers,
    shard: u32,
    epoch: u64,
    /// In the open transaction.
    open: Vec<(Arc<str>, Position)>,
    rests: bool,
}

impl Settle for Producer {
    fn is_atomic(&self) -> bool {
        true
    }

    fn open(&mut self) -> BoxFuture<'_, Result<Option<Standing>, SinkError>> {
        Box::pin(async move {
            if std::mem::take(&mut self.rests) {
                return Ok(None);
            }
            self.open.clear();
            self.epoch = self.brokers.cluster.fence(self.shard);
            Ok(Some(Standing {
                checkpoints: self.brokers.checkpoints(self.shard),
                is_ours: true,
            }))
        })
    }

    fn look(&self, _: Arc<RecordBatch>, _: bool) -> BoxFuture<'static, Result<Look, SinkError>> {
        Box::pin(std::future::ready(Ok(Look::default())))
    }

    fn leave(&self, _: Arc<RecordBatch>) -> BoxFuture<'static, Result<Leave, SinkError>> {
        Box::pin(std::future::ready(Ok(Leave::default())))
    }

    fn recovery(&self, _: Vec<Arc<str>>) -> BoxFuture<'static, Recovery> {
        Box::pin(std::future::pending())
    }

    fn hand(
        &mut self,
        batch: Arc<RecordBatch>,
        _: Vec<Fit>,
        _: Leave,
    ) -> BoxFuture<'_, Result<Ticket, SinkError>> {
        let records = batch.records.iter().map(|record| {
            let topic = batch.topics[record.topic as usize].clone();
            (topic, batch.source.positions[record.source as usize])
        });
        self.open.extend(records);
        let handed = batch.records.len() as u64;
        self.brokers.records.fetch_add(handed, Relaxed);
        let (done, ticket) = Ticket::new();
        // Nobody may wait for it any more.
        done.send(Ok(Delivered::default())).ok();
        Box::pin(std::future::ready(Ok(ticket)))
    }

    fn settle<'a>(
        &'a mut self,
        letters: &'a [DeadLetter],
        settlement: &'a Settlement,
    ) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            // Dropped while it waits, it has not happened.
            self.brokers.world.answers().await;
            let cluster = &self.brokers.cluster;
            if !is_of(cluster, self.shard, self.epoch) {
                return Err(SinkError::Fenced {
                    shard: self.shard,
                    reason: "another has it".into(),
                });
            }
            cluster.records.lock().append(&mut self.open);
            cluster.letters.lock().extend(letters.iter().cloned());
            let progress = settlement.progress.clone();
            cluster.checkpoints.lock().extend(progress);
            Ok(())
        })
    }

    fn reset(&mut self) -> BoxFuture<'_, Result<Option<Standing>, SinkError>> {
        self.rests = false;
        self.open()
    }

    fn rest(&mut self) -> bool {
        self.rests = self.open.is_empty();
        self.rests
    }

    fn close(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
