//! What is outside: logs and clusters that outlive whoever is connected to them, and what a test has go wrong.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::super::parts::Parts;
use super::super::plugins::Plugins;
use super::brokers::Brokers;
use super::plugins::Words;
use super::source::Log;
use crate::change::{GroupKey, Position};
use crate::checkpoint::Checkpoints;
use crate::config::settings::Nodes;
use crate::config::{LiveSettings, Settings};
use crate::dead_letter::DeadLetter;
use crate::policy::stage::StagePolicies;
use crate::sink::{Sink, SinkError};
use crate::source::{Source, SourceError};

/// Stream groups of the log.
pub(super) const GROUPS: usize = 4;

pub(super) fn group(number: usize) -> GroupKey {
    GroupKey(format!("ks.t/1/{number:02}").into()).numbered(number as u32)
}

pub(super) fn of_shard(number: usize, shard: u32, shards: u32) -> bool {
    group(number).shard(shards) == shard
}

/// The last change of a group that its checkpoint covers.
pub(super) fn reached(number: usize, checkpoints: &Checkpoints) -> i64 {
    let checkpoint = checkpoints.get(&group(number));
    checkpoint.map_or(0, |c| c.complete_until_us)
}

/// One cluster's topics.
#[derive(Default)]
pub(super) struct Cluster {
    /// In the order of their commit.
    pub(super) records: Mutex<Vec<(Arc<str>, Position)>>,
    pub(super) letters: Mutex<Vec<DeadLetter>>,
    pub(super) checkpoints: Mutex<Checkpoints>,
    /// By shard: the producer that may write.
    epochs: Mutex<BTreeMap<u32, u64>>,
}

impl Cluster {
    /// Whoever had the shard can do nothing any more.
    pub(super) fn fence(&self, shard: u32) -> u64 {
        let mut epochs = self.epochs.lock();
        let epoch = epochs.entry(shard).or_default();
        *epoch += 1;
        *epoch
    }

    /// How often shards were taken.
    pub(super) fn taken(&self) -> u64 {
        self.epochs.lock().values().sum()
    }

    /// The changes of a group that readers have seen, in order.
    pub(super) fn seen(&self, group: usize) -> Vec<i64> {
        let records = self.records.lock();
        let of = records.iter().filter(|(_, p)| p.stream.0[0] == group as u8);
        of.map(|(_, position)| position.seq.into()).collect()
    }

    /// The topic of the newest record.
    pub(super) fn newest_topic(&self) -> Option<Arc<str>> {
        Some(self.records.lock().last()?.0.clone())
    }
}

pub(super) fn is_of(cluster: &Cluster, shard: u32, epoch: u64) -> bool {
    cluster.epochs.lock().get(&shard) == Some(&epoch)
}

pub(super) struct World {
    /// The last change of each group.
    pub(super) written: watch::Sender<[i64; GROUPS]>,
    clusters: Mutex<BTreeMap<String, Arc<Cluster>>>,
    /// How often each side was connected to.
    sources: AtomicU32,
    sinks: AtomicU32,
    pub(super) remade: watch::Sender<u64>,
    /// Readers that are yet to panic with changes in hand.
    pub(super) source_crashes: AtomicU32,
    /// Why no shard can be opened.
    pub(super) no_opening: Mutex<Option<String>>,
    /// Commits are answered.
    answering: watch::Sender<bool>,
}

impl World {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            written: watch::Sender::default(),
            clusters: Mutex::default(),
            sources: AtomicU32::new(0),
            sinks: AtomicU32::new(0),
            remade: watch::Sender::default(),
            source_crashes: AtomicU32::new(0),
            no_opening: Mutex::default(),
            answering: watch::Sender::new(true),
        })
    }

    /// So many more changes in each group.
    pub(super) fn write(&self, changes: i64) {
        self.written
            .send_modify(|written| written.iter_mut().for_each(|last| *last += changes));
    }

    /// How often the source and the sink were connected to.
    pub(super) fn connected(&self) -> (u32, u32) {
        (self.sources.load(Relaxed), self.sinks.load(Relaxed))
    }

    /// … of these brokers.
    pub(super) fn cluster(&self, brokers: &Nodes) -> Arc<Cluster> {
        let mut clusters = self.clusters.lock();
        clusters.entry(format!("{brokers:?}")).or_default().clone()
    }

    /// From now on no commit is answered, nor happens, until [`Self::outage_ends`].
    pub(super) fn outage(&self) {
        self.answering.send_replace(false);
    }

    pub(super) fn outage_ends(&self) {
        self.answering.send_replace(true);
    }

    pub(super) async fn answers(&self) {
        let mut answering = self.answering.subscribe();
        // The sender is ours.
        answering.wait_for(|answering| *answering).await.ok();
    }
}

/// The parts that a test has instead of drivers.
pub(super) struct MadeUp(pub(super) Arc<World>);

impl Parts for MadeUp {
    fn plugins(&self, _: &Settings) -> anyhow::Result<Arc<dyn Plugins>> {
        Ok(Arc::new(Words))
    }

    fn source(
        &self,
        live: LiveSettings,
        _: StagePolicies,
    ) -> BoxFuture<'static, Result<Arc<dyn Source>, SourceError>> {
        self.0.sources.fetch_add(1, Relaxed);
        let source: Arc<dyn Source> = Arc::new(Log::new(&self.0, &live));
        Box::pin(std::future::ready(Ok(source)))
    }

    fn sink(
        &self,
        live: LiveSettings,
        _: StagePolicies,
    ) -> BoxFuture<'static, Result<Arc<dyn Sink>, SinkError>> {
        self.0.sinks.fetch_add(1, Relaxed);
        let sink: Arc<dyn Sink> = Arc::new(Brokers::new(&self.0, &live));
        Box::pin(std::future::ready(Ok(sink)))
    }
}
