//! `GET /status`: the pipeline as a person wants to see it, in one answer.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;
use tokio::time::Instant;

use crate::checkpoint::topic::Owner;
use crate::config::reload::UnderWay;
use crate::config::settings::Nodes;
use crate::coordinator::handle::{Handle, Phase};
use crate::coordinator::membership::Share;
use crate::coordinator::report::Report;
use crate::coordinator::supervisor::ChildStatus;
use crate::policy::breaker::State;
use crate::policy::stage::StageSnapshot;
use crate::words::Word;

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
    /// How it tries again.
    pub retry: Retry,
    /// How fast it may go; `null`: as fast as it can.
    pub rate_limit: Option<RateLimit>,
    /// What becomes of it when it crashes.
    pub supervision: Supervision,
}

/// `[<stage>.retry]` in force.
#[derive(Clone, Debug, Serialize)]
pub struct Retry {
    /// The first pause, in seconds.
    pub initial_seconds: f64,
    /// The longest, in seconds.
    pub max_seconds: f64,
    /// Growth from try to try.
    pub multiplier: f64,
    /// Tries before giving up; 0: for ever.
    pub max_attempts: u32,
}

/// `rate_limit` in force.
#[derive(Clone, Debug, Serialize)]
pub struct RateLimit {
    /// Records a second.
    pub per_second: u32,
    /// How many may come at once.
    pub burst: u32,
    /// Calls that have waited for it.
    pub throttled: u64,
}

/// `[<stage>.supervision]` in force.
#[derive(Clone, Debug, Serialize)]
pub struct Supervision {
    /// `one_for_one`, `one_for_all` or `rest_for_one`.
    pub strategy: &'static str,
    /// Restarts within the time below that are too many when passed.
    pub max_restarts: u32,
    /// In seconds.
    pub within_seconds: f64,
    /// Before the first restart, in seconds.
    pub backoff_seconds: f64,
    /// `isolate` or `shutdown`.
    pub on_failed: &'static str,
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
            retry: Retry {
                initial_seconds: s.policies.retry.initial().as_secs_f64(),
                max_seconds: s.policies.retry.max().as_secs_f64(),
                multiplier: s.policies.retry.multiplier(),
                max_attempts: s.policies.retry.max_attempts().map_or(0, |n| n.get()),
            },
            rate_limit: s.policies.rate_limit.map(|limit| RateLimit {
                per_second: limit.per_second.get(),
                burst: limit.burst.get(),
                throttled: s.throttled,
            }),
            supervision: Supervision {
                strategy: s.policies.supervision.strategy().word(),
                max_restarts: s.policies.supervision.max_restarts(),
                within_seconds: s.policies.supervision.within().as_secs_f64(),
                backoff_seconds: s.policies.supervision.backoff().as_secs_f64(),
                on_failed: s.policies.supervision.on_failed().word(),
            },
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
    /// Changes done a second, over the last ten.
    pub per_second: f64,
}

/// Who has a shard.
#[derive(Clone, Debug, Serialize)]
pub struct Ownership {
    /// The shard's number.
    pub shard: u32,
    /// Who.
    #[serde(flatten)]
    pub owner: Owner,
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
    /// Lanes that are open here.
    pub shards: Vec<Shard>,
    /// How many the pipeline has in all, whosever they are.
    pub shards_total: u32,
    /// Who this instance is among those that run the pipeline; `null` until it is connected.
    pub instance: Option<uuid::Uuid>,
    /// Who has which shard, as far as this instance knows.
    pub owners: Vec<Ownership>,
    /// What of the shards is this instance's, where several share them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub membership: Option<Share>,
    /// Share of the CDC TTL that is left.
    pub retention_headroom: Option<f64>,
    /// What runs.
    pub children: Vec<ChildStatus>,
    /// The change of the configuration that is being taken to what runs, if one is.
    pub reload: Option<UnderWay>,
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
            .map(|p| p.source_status())
            .unwrap_or_default();
        let lag = |shard: u32| {
            source
                .shards
                .iter()
                .find(|s| s.shard == shard)
                .map_or(0.0, |s| s.lag.as_secs_f64())
        };
        let lanes = pipeline.iter().flat_map(|p| p.lanes());
        let shards = lanes
            .map(|lane| Shard {
                shard: lane.shard,
                read: lane.counters.read.load(Relaxed),
                done: lane.counters.done.load(Relaxed),
                in_flight: lane.in_flight().changes,
                acknowledged: lane.counters.acknowledged.load(Relaxed),
                dead_letters: lane.counters.dead_letters.load(Relaxed),
                rewinds: lane.counters.rewinds.load(Relaxed),
                lag_seconds: lag(lane.shard),
                per_second: lane.counters.rate.lock().per_second(Instant::now()),
            })
            .collect();
        let owners = pipeline.iter().flat_map(|p| p.owners());
        let owners = owners
            .map(|(shard, owner)| Ownership { shard, owner })
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
            shards_total: settings.pipeline.shards.get(),
            instance: pipeline.as_ref().map(|p| p.sink.owner().instance),
            owners,
            membership: handle.share(),
            retention_headroom: source.retention_headroom(),
            children: handle.children(),
            reload: handle.reloads().under_way(),
        }
    }
}
