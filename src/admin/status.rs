//! `GET /status`: the pipeline as a person wants to see it, in one answer.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;
use tokio::time::Instant;

use crate::config::settings::Nodes;
use crate::coordinator::handle::{Handle, Phase};
use crate::coordinator::health::Report;
use crate::coordinator::supervisor::ChildStatus;
use crate::policy::breaker::State;
use crate::policy::stage::StageSnapshot;

/// One stage's policies.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// `sink`, `transform.<name>`, …
    pub stage: Arc<str>,
    /// `closed`, `open` or `half-open`.
    pub breaker: &'static str,
    /// How long it has been in that state, in seconds.
    pub for_seconds: f64,
    /// Seconds until an open breaker lets a probe through.
    pub probe_in_seconds: Option<f64>,
    /// Failures in a row.
    pub failures: u32,
    /// … and how many open it.
    pub failure_threshold: u32,
    /// How long it then stays open, in seconds.
    pub open_for_seconds: f64,
    /// Successful probes that close it.
    pub success_threshold: u32,
    /// Times it opened.
    pub opened: u64,
    /// Calls refused.
    pub refused: u64,
    /// Tries after the first.
    pub retries: u64,
    /// The last failure that counted.
    pub last_error: Option<Arc<str>>,
}

/// The breaker's state as it is written everywhere.
pub fn breaker_name(state: State) -> &'static str {
    match state {
        State::Closed => "closed",
        State::Open => "open",
        State::HalfOpen => "half-open",
    }
}

impl Stage {
    /// From a snapshot.
    pub fn of(s: &StageSnapshot) -> Self {
        let now = Instant::now();
        let breaker = &s.policies.breaker;
        Self {
            stage: s.stage.clone(),
            breaker: breaker_name(s.breaker),
            for_seconds: now.saturating_duration_since(s.since).as_secs_f64(),
            probe_in_seconds: s
                .until
                .map(|until| until.saturating_duration_since(now).as_secs_f64()),
            failures: s.failures,
            failure_threshold: breaker.failure_threshold().get(),
            open_for_seconds: breaker.open_for().as_secs_f64(),
            success_threshold: breaker.success_threshold().get(),
            opened: s.counters.opened,
            refused: s.counters.refusals,
            retries: s.retries,
            last_error: s.last_error.clone(),
        }
    }
}

/// The policies of every stage.
pub fn stages(handle: &Handle) -> Vec<Stage> {
    handle
        .policies()
        .iter()
        .map(|p| Stage::of(&p.snapshot()))
        .collect()
}

/// One lane.
#[derive(Clone, Debug, Serialize)]
pub struct Shard {
    /// Its number.
    pub shard: u32,
    /// Changes read, done and on their way.
    pub read: u64,
    /// Changes acknowledged, dead-lettered or dropped.
    pub done: u64,
    /// Changes that the sink holds.
    pub in_flight: usize,
    /// Records acknowledged.
    pub acknowledged: u64,
    /// Dead letters written.
    pub dead_letters: u64,
    /// Times it went back.
    pub rewinds: u64,
    /// How far behind now it reads.
    pub lag_seconds: f64,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// `pipeline.name`
    pub pipeline: String,
    /// Of the program.
    pub version: &'static str,
    /// Where the process is in its life.
    pub phase: Phase,
    /// Where it reads from, as host:port; of a stand-in its address.
    pub nodes: Vec<String>,
    /// Where it writes to, likewise.
    pub brokers: Vec<String>,
    /// Of every component.
    pub health: Report,
    /// Policies by stage.
    pub stages: Vec<Stage>,
    /// Lanes.
    pub shards: Vec<Shard>,
    /// Share of the CDC TTL that is left.
    pub retention_headroom: Option<f64>,
    /// What runs.
    pub children: Vec<ChildStatus>,
}

fn addresses(nodes: &Nodes) -> Vec<String> {
    match nodes {
        Nodes::At(addresses) => addresses.clone(),
        // Only before the stand-ins have started: then their addresses are in its place.
        Nodes::Embedded => vec!["embedded".to_owned()],
    }
}

impl Status {
    /// What is so right now.
    pub fn of(handle: &Handle) -> Self {
        let pipeline = handle.pipeline();
        let source = pipeline
            .as_ref()
            .map(|p| p.source.status())
            .unwrap_or_default();
        let lag = |shard: u32| {
            source
                .shards
                .iter()
                .find(|s| s.shard == shard)
                .map_or(0.0, |s| s.lag.as_secs_f64())
        };
        let lanes = pipeline.iter().flat_map(|p| &p.lanes);
        let shards = lanes
            .map(|lane| Shard {
                shard: lane.shard,
                read: lane.counters.read.load(Relaxed),
                done: lane.counters.done.load(Relaxed),
                in_flight: lane.in_flight(),
                acknowledged: lane.counters.acknowledged.load(Relaxed),
                dead_letters: lane.counters.dead_letters.load(Relaxed),
                rewinds: lane.counters.rewinds.load(Relaxed),
                lag_seconds: lag(lane.shard),
            })
            .collect();
        let settings = handle.settings().borrow().clone();
        Self {
            pipeline: settings.pipeline.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            phase: handle.phase(),
            nodes: addresses(&settings.source.nodes),
            brokers: addresses(&settings.sink.brokers),
            health: handle.health().borrow().clone(),
            stages: stages(handle),
            shards,
            retention_headroom: source.retention_headroom(),
            children: handle.children(),
        }
    }
}
