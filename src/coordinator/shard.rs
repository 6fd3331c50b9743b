//! One shard of the pipeline: opened, run, drained and released alone, whatever the others do.

use std::sync::Arc;

use super::blocking;
use super::child::{ChildId, Stage};
use super::lane::{self, FailedStages, Lane, SinkParts};
use super::pipeline::Pipeline;
use super::shutdown::Step;
use super::supervisor::{ChildSpec, Relieved, Supervisor};
use crate::checkpoint::Checkpoints;
use crate::policy::stage::StagePolicies;
use crate::sink::{Opened, Settle, SinkError};

/// An open shard. Its children can be made again after they have ended: they go on where those left off.
pub struct Shard {
    /// The slot.
    pub number: u32,
    /// Its way from source to sink.
    pub lane: Arc<Lane>,
}

impl Shard {
    /// Opens a shard by itself: reads its checkpoints, which nobody else may be writing any more; starts nothing.
    ///
    /// # Errors
    /// What the brokers have against it.
    pub async fn open(pipeline: &Pipeline, number: u32) -> Result<Self, SinkError> {
        let opening = pipeline.sink.clone().prepare(Vec::new(), false).await?;
        let opened = opening
            .open(vec![number])
            .await?
            .pop()
            .ok_or(SinkError::Reset)?;
        Ok(Self::opened(pipeline, opened))
    }

    /// As the brokers say where it stands.
    pub(super) fn opened(pipeline: &Pipeline, opened: Opened) -> Self {
        let Opened {
            shard,
            checkpoints,
            producer,
        } = opened;
        if checkpoints.is_empty() {
            let start_from = pipeline.settings().source.start_from;
            tracing::info!(
                shard,
                ?start_from,
                "the brokers have no checkpoints of the shard: it begins where source.start_from says"
            );
        }
        Self::new(pipeline, shard, checkpoints, producer)
    }

    /// One that stands there, as its producer does if there is one. It goes on counting where the pipeline's counters of
    /// it are.
    pub(super) fn new(
        pipeline: &Pipeline,
        number: u32,
        checkpoints: Checkpoints,
        producer: Option<Box<dyn Settle>>,
    ) -> Self {
        pipeline
            .source
            .placed_by_hash(&pipeline.sink.placed_by_hash());
        let shards = pipeline.settings().pipeline.shards.get();
        let counters = pipeline.counters(number);
        let lane = Lane::new(
            number,
            shards,
            checkpoints,
            counters,
            pipeline.spans.clone(),
        );
        if let Some(producer) = producer {
            lane.keep(producer);
        }
        Self { number, lane }
    }

    /// The children that carry its changes, downstream first: whoever starts finds its taker ready.
    pub fn children(&self, pipeline: &Pipeline, failed: &FailedStages) -> Vec<ChildSpec> {
        vec![
            self.sink(pipeline, failed.clone()),
            self.transforms(pipeline),
            self.source(pipeline),
        ]
    }

    fn sink(&self, pipeline: &Pipeline, failed: FailedStages) -> ChildSpec {
        let (lane, live) = (self.lane.clone(), pipeline.live());
        let name: Arc<str> = pipeline.settings().pipeline.name.as_str().into();
        let (policies, keeper) = (pipeline.policies(&Stage::Sink), pipeline.keeper());
        let (source, sink) = (pipeline.source.clone(), pipeline.sink.clone());
        let remade = sink.remade();
        let id = ChildId::of_shard(Stage::Sink, self.number);
        ChildSpec::new(id, move |scope| {
            let kept = lane.kept();
            let producer = kept.map_or_else(|| sink.clone().producer(lane.shard), Ok);
            let parts = producer.map(|sink| SinkParts {
                source: source.clone(),
                sink,
                dead_letters: keeper.clone(),
                policies: policies.clone(),
                live: live.clone(),
                pipeline: name.clone(),
                failed: failed.clone(),
                remade: remade.clone(),
            });
            let lane = lane.clone();
            async move {
                let ran = lane::run_sink(lane, parts?, scope).await;
                ran.map_err(relieved)
            }
        })
    }

    /// The transforms share one child; it answers to the first one's supervision policy.
    fn transforms(&self, pipeline: &Pipeline) -> ChildSpec {
        let settings = pipeline.settings();
        let stages: Vec<Stage> = settings
            .transforms
            .iter()
            .map(|t| Stage::transform(&t.name))
            .collect();
        let policies: Vec<StagePolicies> = stages.iter().map(|s| pipeline.policies(s)).collect();
        let stage = stages.into_iter().next().unwrap_or(Stage::Untransformed);
        let (lane, transforms) = (self.lane.clone(), pipeline.transforms.clone());
        ChildSpec::new(ChildId::of_shard(stage, self.number), move |scope| {
            let (lane, transforms, policies) = (lane.clone(), transforms.clone(), policies.clone());
            async move {
                let chain = blocking(|| transforms.chain(&lane.handover))?;
                lane::run_transforms(lane, chain, policies, scope).await
            }
        })
    }

    fn source(&self, pipeline: &Pipeline) -> ChildSpec {
        let (lane, source) = (self.lane.clone(), pipeline.source.clone());
        let policies = pipeline.policies(&Stage::Source);
        let id = ChildId::of_shard(Stage::Source, self.number);
        ChildSpec::new(id, move |scope| {
            lane::run_source(lane.clone(), source.clone(), policies.clone(), scope)
        })
    }

    /// Whether this child carries its changes.
    pub fn owns(&self, id: &ChildId) -> bool {
        id.shard == Some(self.number)
    }

    /// Takes its drain as far as it goes without waiting, upstream first; `true`: all that it had is settled and
    /// committed, or was let go of. To be called again whenever a child has ended.
    pub fn drain(&self, supervisor: &Supervisor) -> bool {
        Step::OF_SHARD.into_iter().all(|step| {
            let of = |id: &ChildId| self.owns(id) && step.takes(id);
            supervisor.drain(of);
            supervisor.is_drained(of)
        })
    }

    /// Gives the shard up: its children have ended, and another process may take it.
    pub fn release(&self, pipeline: &Pipeline) {
        pipeline.source.release_shard(self.number);
    }
}

/// Being fenced is no crash.
pub(super) fn relieved(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<SinkError>() {
        Some(SinkError::Fenced { .. }) => Relieved(error).into(),
        _ => error,
    }
}
