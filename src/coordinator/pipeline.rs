//! Builds what pipeline.toml describes, from validated settings: connections, plugins, lanes, children.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::dead_letters;
use super::lane::{self, FailedStages, Lane, SinkParts};
use super::plugins::PluginHost;
use super::supervisor::ChildSpec;
use super::transforms::Transforms;
use crate::config::LiveSettings;
use crate::dead_letter::DeadLetters;
use crate::policy::stage::StagePolicies;
use crate::sink::SinkError;
use crate::sink::redpanda::RedpandaSink;
use crate::source::{ScyllaSource, Source};

/// The policies of every stage, made once a name: a rebuild neither resets a breaker nor its counts.
#[derive(Clone)]
pub struct PolicyRegistry {
    live: LiveSettings,
    stages: Arc<Mutex<BTreeMap<Arc<str>, StagePolicies>>>,
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
    pub fn stage(&self, name: &str) -> StagePolicies {
        let mut stages = self.stages.lock();
        match stages.get(name) {
            Some(policies) => policies.clone(),
            None => {
                let policies = StagePolicies::new(name, self.live.clone());
                stages.insert(name.into(), policies.clone());
                policies
            }
        }
    }

    /// Those of the stages that the settings have now, by name.
    pub fn all(&self) -> Vec<StagePolicies> {
        let settings = self.live.borrow().clone();
        self.stages
            .lock()
            .values()
            .filter(|p| settings.policies(p.stage()).is_some())
            .cloned()
            .collect()
    }
}

/// A running pipeline's parts.
pub struct Pipeline {
    /// What its parts read their settings from.
    live: LiveSettings,
    policies: PolicyRegistry,
    /// Kept for as long as a plugin may run.
    _plugins: Arc<PluginHost>,
    /// The reader's shared part.
    pub source: Arc<dyn Source>,
    /// The producers' shared part.
    pub sink: Arc<RedpandaSink>,
    /// Where poison goes.
    pub dead_letters: Arc<DeadLetters>,
    /// The compiled transforms, in order.
    pub transforms: Arc<Transforms>,
    /// One a shard.
    pub lanes: Vec<Arc<Lane>>,
    /// Held by the replay under way.
    pub(super) replaying: tokio::sync::Mutex<()>,
}

/// A pipeline that is connected and has its plugins, and has not looked at the checkpoints yet: another one
/// may still be at work on them.
pub struct Connected {
    live: LiveSettings,
    policies: PolicyRegistry,
    plugins: Arc<PluginHost>,
    source: Arc<dyn Source>,
    sink: Arc<RedpandaSink>,
    dead_letters: Arc<DeadLetters>,
    transforms: Arc<Transforms>,
}

impl Connected {
    /// Connects to both sides and compiles the plugins that the pipeline that this one is to replace has not
    /// compiled; touches nothing that runs.
    ///
    /// # Errors
    /// What cannot be reached, found or compiled.
    pub async fn new(
        live: LiveSettings,
        policies: PolicyRegistry,
        plugins: Arc<PluginHost>,
        replaces: Option<Arc<Pipeline>>,
    ) -> anyhow::Result<Self> {
        let started = Instant::now();
        let settings = live.borrow().clone();
        let transforms = tokio::task::block_in_place(|| {
            Transforms::load(
                plugins.engine(),
                &live,
                &settings,
                replaces.as_deref().map(|p| &*p.transforms),
            )
        })?;
        drop(replaces);
        tracing::info!(transforms = settings.transforms.len(), took = ?started.elapsed(), "transforms ready");
        let (source, sink) = tokio::try_join!(
            async {
                ScyllaSource::connect(live.clone(), policies.stage("source"))
                    .await
                    .map_err(anyhow::Error::from)
            },
            async {
                RedpandaSink::connect(live.clone(), policies.stage("sink"))
                    .await
                    .map_err(anyhow::Error::from)
            },
        )?;
        tracing::info!(took = ?started.elapsed(), "connected to ScyllaDB and Redpanda");
        let dead_letters = Arc::new(DeadLetters::open(&sink, policies.stage("dead_letter"))?);
        Ok(Self {
            live,
            policies,
            plugins,
            source,
            sink,
            dead_letters,
            transforms: Arc::new(transforms),
        })
    }

    /// Reads the checkpoints, which nobody else may be writing any more; starts nothing. Lanes go on counting
    /// from those of the pipeline that this one replaces.
    ///
    /// # Errors
    /// What the brokers have against it.
    pub async fn open(self, replaces: Option<&Pipeline>) -> anyhow::Result<Pipeline> {
        let started = Instant::now();
        let counted = |shard: u32| {
            let lanes = replaces.into_iter().flat_map(|p| &p.lanes);
            let mut counters = lanes
                .filter(|l| l.shard == shard)
                .map(|l| l.counters.clone());
            counters.next().unwrap_or_default()
        };
        let shards = self.live.borrow().pipeline.shards.get();
        let loads = (0..shards).map(|shard| {
            let (sink, counters) = (self.sink.clone(), counted(shard));
            async move {
                let checkpoints = sink.load(shard).await?;
                Ok::<_, SinkError>(Lane::new(shard, shards, checkpoints, counters))
            }
        });
        let lanes = futures::future::try_join_all(loads).await?;
        tracing::info!(shards, took = ?started.elapsed(), "checkpoints read");
        Ok(Pipeline {
            live: self.live,
            policies: self.policies,
            _plugins: self.plugins,
            source: self.source,
            sink: self.sink,
            dead_letters: self.dead_letters,
            transforms: self.transforms,
            lanes,
            replaying: tokio::sync::Mutex::default(),
        })
    }
}

impl Pipeline {
    /// The children that carry the changes, downstream first: whoever starts finds its taker ready. Made again
    /// after they have ended, they go on where those left off.
    pub fn children(&self, failed: &FailedStages) -> Vec<ChildSpec> {
        let (live, policies) = (&self.live, &self.policies);
        let settings = live.borrow().clone();
        let name: Arc<str> = settings.pipeline.name.as_str().into();
        let mut children = Vec::new();
        let sink = self.sink.clone();
        children.push(ChildSpec::new("sink/guard", "guard", move |scope| {
            let sink = sink.clone();
            async move {
                tokio::select! {
                    () = sink.guard() => Ok(()),
                    () = scope.drain.cancelled() => Ok(()),
                }
            }
        }));
        let (keeper, requests) = dead_letters::channel();
        let letters = self.dead_letters.clone();
        children.push(ChildSpec::new("dead_letter", "dead_letter", move |scope| {
            dead_letters::run(requests.clone(), letters.clone(), scope)
        }));
        for lane in &self.lanes {
            let (lane, live, policies) = (lane.clone(), live.clone(), policies.stage("sink"));
            let (name, failed, keeper) = (name.clone(), failed.clone(), keeper.clone());
            let (source, sink) = (self.source.clone(), self.sink.clone());
            children.push(ChildSpec::new(
                format!("sink/{}", lane.shard),
                "sink",
                move |scope| {
                    let parts = sink.open_shard(lane.shard).map(|sink| SinkParts {
                        source: source.clone(),
                        sink,
                        dead_letters: keeper.clone(),
                        policies: policies.clone(),
                        live: live.clone(),
                        pipeline: name.clone(),
                        failed: failed.clone(),
                    });
                    let lane = lane.clone();
                    async move { lane::run_sink(lane, parts?, scope).await }
                },
            ));
        }
        // The transforms of a shard share one child; it answers to the first one's supervision policy.
        let stage = settings.transforms.first().map_or_else(
            || "transform".to_owned(),
            |t| format!("transform.{}", t.name),
        );
        let stages: Vec<StagePolicies> = settings
            .transforms
            .iter()
            .map(|t| policies.stage(&format!("transform.{}", t.name)))
            .collect();
        for lane in &self.lanes {
            let (lane, transforms, stages) =
                (lane.clone(), self.transforms.clone(), stages.clone());
            children.push(ChildSpec::new(
                format!("transform/{}", lane.shard),
                stage.as_str(),
                move |scope| {
                    let (lane, transforms, stages) =
                        (lane.clone(), transforms.clone(), stages.clone());
                    async move {
                        let chain =
                            tokio::task::block_in_place(|| transforms.chain(&lane.handover))?;
                        lane::run_transforms(lane, chain, stages, scope).await
                    }
                },
            ));
        }
        for lane in &self.lanes {
            let (lane, source, policies) =
                (lane.clone(), self.source.clone(), policies.stage("source"));
            children.push(ChildSpec::new(
                format!("source/{}", lane.shard),
                "source",
                move |scope| {
                    lane::run_source(lane.clone(), source.clone(), policies.clone(), scope)
                },
            ));
        }
        children
    }
}
