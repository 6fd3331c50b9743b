//! Builds what pipeline.toml describes, from validated settings: connections, plugins, and the shards that are ours.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::child::Stage;
use super::dead_letters::{self, Keeper, Requests};
use super::lane::{Counters, FailedStages, Lane};
use super::plugins::PluginHost;
use super::shard::Shard;
use super::sharing::on_a_thread;
use super::supervisor::ChildSpec;
use super::transforms::Transforms;
use crate::checkpoint::log::CheckpointLog;
use crate::checkpoint::topic::Owner;
use crate::config::settings::{Delivery, Instances};
use crate::config::{LiveSettings, Settings};
use crate::dead_letter::DeadLetters;
use crate::policy::stage::StagePolicies;
use crate::sink::SinkError;
use crate::sink::redpanda::RedpandaSink;
use crate::sink::redpanda::opening::Prepared;
use crate::source::{ScyllaSource, Source};
use crate::spans::Spans;

/// What the source can find out before it is needed is found out in this time, or later.
const LOOKING_AHEAD: Duration = Duration::from_secs(1);

/// The policies of every stage, made once a stage: a rebuild neither resets a breaker nor its counts.
#[derive(Clone)]
pub struct PolicyRegistry {
    live: LiveSettings,
    stages: Arc<Mutex<BTreeMap<String, (Stage, StagePolicies)>>>,
}

impl PolicyRegistry {
    /// An empty registry.
    pub fn new(live: LiveSettings) -> Self {
        Self {
            live,
            stages: Arc::default(),
        }
    }

    /// The policies of a stage.
    pub fn stage(&self, stage: &Stage) -> StagePolicies {
        let name = stage.to_string();
        let mut stages = self.stages.lock();
        let new = || StagePolicies::new(name.as_str(), self.live.clone());
        let (_, policies) = stages
            .entry(name.clone())
            .or_insert_with(|| (stage.clone(), new()));
        policies.clone()
    }

    /// Those of the stages that the settings have now, by name.
    pub fn all(&self) -> Vec<(Stage, StagePolicies)> {
        let settings = self.live.borrow().clone();
        self.stages
            .lock()
            .values()
            .filter(|(_, p)| settings.policies(p.stage()).is_some())
            .cloned()
            .collect()
    }
}

/// A running pipeline's parts: what its shards have in common, and the shards that are open here.
pub struct Pipeline {
    /// What its parts read their settings from.
    live: LiveSettings,
    policies: PolicyRegistry,
    /// Where traces go.
    pub spans: Arc<Spans>,
    /// Kept for as long as a plugin may run.
    _plugins: Arc<PluginHost>,
    /// The reader's shared part.
    pub source: Arc<dyn Source>,
    /// The producers' shared part.
    pub sink: Arc<RedpandaSink>,
    /// What other instances have committed, where there may be some.
    log: Option<Arc<CheckpointLog>>,
    /// Where poison goes.
    pub dead_letters: Arc<DeadLetters>,
    /// … and how the shards' sinks have it go there.
    letters: (Keeper, Arc<Requests>),
    /// The compiled transforms, in order.
    pub transforms: Arc<Transforms>,
    /// By number.
    shards: RwLock<BTreeMap<u32, Arc<Shard>>>,
    /// What the shards that are opened first are opened with.
    prepared: Mutex<Prepared>,
    /// Of every shard that was ever open here: one that comes back goes on counting.
    counters: Mutex<BTreeMap<u32, Arc<Counters>>>,
    /// Held by the replay under way.
    pub(super) replaying: tokio::sync::Mutex<()>,
}

impl Pipeline {
    /// Connects to both sides, with a producer for each of `own`, and compiles the plugins that the pipeline that this
    /// one is to replace has not compiled; touches nothing that runs. No shard is open yet: another pipeline may still be
    /// at work on them. They go on counting from those of the one that this one replaces.
    ///
    /// # Errors
    /// What cannot be reached, found or compiled.
    pub async fn connect(
        live: LiveSettings,
        policies: PolicyRegistry,
        plugins: Arc<PluginHost>,
        spans: Arc<Spans>,
        own: Vec<u32>,
        replaces: Option<Arc<Self>>,
    ) -> anyhow::Result<Self> {
        let started = Instant::now();
        let settings = live.borrow().clone();
        let shared = settings.pipeline.instances == Instances::Shared;
        let mut transforms = {
            let (plugins, live, settings) = (plugins.clone(), live.clone(), settings.clone());
            let known = replaces.as_ref().map(|p| p.transforms.clone());
            tokio::task::spawn_blocking(move || {
                let known = known.as_deref();
                let loaded = Transforms::load(plugins.engine(), &live, &settings, known);
                tracing::info!(transforms = settings.transforms.len(), took = ?started.elapsed(), "transforms ready");
                loaded
            })
        };
        let counters = replaces.as_ref().map(|p| p.counters.lock().clone());
        let connecting = async {
            let (source, sink) = tokio::try_join!(
                async {
                    let policies = policies.stage(&Stage::Source);
                    let source = ScyllaSource::connect(live.clone(), policies).await;
                    source.map_err(anyhow::Error::from)
                },
                async {
                    let policies = policies.stage(&Stage::Sink);
                    let sink = RedpandaSink::connect(live.clone(), policies).await?;
                    sink.find_checkpoints().await;
                    anyhow::Ok(sink)
                },
            )?;
            // Only now: producers take their time to end, should there be no ScyllaDB.
            let ahead = source.look_ahead(LOOKING_AHEAD);
            let (prepared, ()) = tokio::join!(sink.prepare(own), ahead);
            let prepared = prepared?;
            anyhow::Ok((source, sink, prepared))
        };
        // What is wrong with a plugin is told first: it is nothing to wait for.
        let (transforms, sides) = {
            let mut connecting = std::pin::pin!(connecting);
            tokio::select! {
                transforms = &mut transforms => (transforms??, connecting.await),
                sides = &mut connecting => match (transforms.await?, sides) {
                    (Ok(transforms), sides) => (transforms, sides),
                    (Err(error), Ok((_, _, prepared))) => {
                        prepared.close().await;
                        return Err(error.into());
                    }
                    (Err(error), Err(_)) => return Err(error.into()),
                },
            }
        };
        let (source, sink, prepared) = sides?;
        tracing::info!(took = ?started.elapsed(), "connected to ScyllaDB and Redpanda");
        // What runs is not given up for a name that may be wrong; at a start there is nothing else to do than wait.
        if let Some(runs) = replaces {
            let read: Vec<String> = runs
                .source
                .status()
                .tables
                .into_iter()
                .map(|t| t.table)
                .collect();
            let new = |(table, _): &(Arc<str>, _)| !read.iter().any(|t| **t == **table);
            if let Some((_, error)) = source.absent().into_iter().find(new) {
                prepared.close().await;
                return Err(error.into());
            }
        }
        let log = shared.then(|| source.checkpoint_log());
        let dead_letters = DeadLetters::open(&sink, policies.stage(&Stage::DeadLetter))?;
        Ok(Self {
            live,
            policies,
            spans,
            _plugins: plugins,
            source,
            sink,
            log,
            dead_letters: Arc::new(dead_letters),
            letters: dead_letters::channel(),
            transforms: Arc::new(transforms),
            shards: RwLock::default(),
            prepared: Mutex::new(prepared),
            counters: Mutex::new(counters.unwrap_or_default()),
            replaying: tokio::sync::Mutex::default(),
        })
    }

    /// Opens these shards, side by side: all of them, or none. Starts nothing.
    ///
    /// # Errors
    /// What the brokers have against it.
    pub async fn open(
        &self,
        numbers: impl IntoIterator<Item = u32>,
    ) -> Result<Vec<Arc<Shard>>, SinkError> {
        let started = Instant::now();
        let numbers: Vec<u32> = numbers.into_iter().collect();
        let prepared = std::mem::take(&mut *self.prepared.lock());
        if self.settings().pipeline.instances == Instances::One
            && let Err(error) = self.sink.retire_surplus().await
        {
            prepared.close().await;
            return Err(error);
        }
        let opened = self.sink.open_shards(&numbers, prepared).await?.into_iter();
        let opened: Vec<Arc<Shard>> = opened.map(|o| Arc::new(Shard::new(self, o))).collect();
        let mut shards = self.shards.write();
        shards.extend(opened.iter().map(|s| (s.number, s.clone())));
        drop(shards);
        tracing::info!(shards = opened.len(), took = ?started.elapsed(), "checkpoints read");
        Ok(opened)
    }

    /// Counts a shard that was opened by itself among those that are open here.
    pub fn adopt(&self, shard: Arc<Shard>) {
        self.shards.write().insert(shard.number, shard);
    }

    /// Gives a shard up whose children have ended.
    pub fn release(&self, number: u32) {
        if let Some(shard) = self.shards.write().remove(&number) {
            shard.release(self);
        }
    }

    /// The shards that are open here, by number.
    pub fn shards(&self) -> Vec<Arc<Shard>> {
        self.shards.read().values().cloned().collect()
    }

    /// … and their lanes.
    pub fn lanes(&self) -> Vec<Arc<Lane>> {
        self.shards
            .read()
            .values()
            .map(|s| s.lane.clone())
            .collect()
    }

    /// Who has which shard, by number, as far as it is known here.
    pub fn owners(&self) -> BTreeMap<u32, Owner> {
        let told = self.log.as_ref().map(|log| log.owners());
        let told = told.into_iter().flatten();
        let mut owners: BTreeMap<u32, Owner> = told
            .filter_map(|(partition, owner)| Some((u32::try_from(partition).ok()?, owner)))
            .collect();
        let ours = self.shards.read();
        owners.extend(ours.keys().map(|shard| (*shard, self.sink.owner())));
        owners
    }

    /// The numbers of all shards that there are, here or elsewhere.
    pub fn numbers(&self) -> std::ops::Range<u32> {
        0..self.settings().pipeline.shards.get()
    }

    pub(super) fn live(&self) -> LiveSettings {
        self.live.clone()
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.live.borrow().clone()
    }

    pub(super) fn policies(&self, stage: &Stage) -> StagePolicies {
        self.policies.stage(stage)
    }

    pub(super) fn keeper(&self) -> Keeper {
        self.letters.0.clone()
    }

    pub(super) fn counters(&self, shard: u32) -> Arc<Counters> {
        self.counters.lock().entry(shard).or_default().clone()
    }

    /// What a transform that put a change off waits for, in any shard.
    pub(super) fn transform_waits(&self, stage: &str) -> Option<Arc<str>> {
        let counters = self.counters.lock();
        counters.values().find_map(|c| c.works.waiting(stage))
    }

    /// The children that serve all shards, then those of the shards that are open. Made again after they have
    /// ended, they go on where those left off.
    pub fn children(&self, failed: &FailedStages) -> Vec<ChildSpec> {
        let shards = self.shards();
        let of_shards = shards.iter().flat_map(|s| s.children(self, failed));
        [self.guard(), self.letters(), self.survey()]
            .into_iter()
            .chain(self.checkpoints())
            .chain(of_shards)
            .collect()
    }

    fn checkpoints(&self) -> Option<ChildSpec> {
        let (log, sink) = (self.log.clone()?, self.sink.clone());
        Some(ChildSpec::new(Stage::Checkpoints, move |scope| {
            let (log, sink) = (log.clone(), sink.clone());
            on_a_thread(scope, move |stop| sink.follow_checkpoints(&log, stop))
        }))
    }

    fn guard(&self) -> ChildSpec {
        let sink = self.sink.clone();
        ChildSpec::new(Stage::Guard, move |scope| {
            let sink = sink.clone();
            async move {
                tokio::select! {
                    () = sink.guard() => Ok(()),
                    () = scope.drain.cancelled() => Ok(()),
                }
            }
        })
    }

    fn letters(&self) -> ChildSpec {
        let requests = self.letters.1.clone();
        let letters: Arc<dyn dead_letters::Keeps> = self.dead_letters.clone();
        let atomic = self.settings().pipeline.delivery == Delivery::ExactlyOnce;
        ChildSpec::new(Stage::DeadLetter, move |scope| {
            dead_letters::run(requests.clone(), letters.clone(), atomic, scope)
        })
    }

    fn survey(&self) -> ChildSpec {
        let source = self.source.clone();
        ChildSpec::new(Stage::Source, move |scope| {
            let source = source.clone();
            async move {
                tokio::select! {
                    ended = source.survey() => match ended? {},
                    () = scope.drain.cancelled() => Ok(()),
                }
            }
        })
    }
}
