//! Of the process: health, configuration, children, and the policies of every stage.

use std::sync::atomic::Ordering::Relaxed;

use super::{Metric, NONE, OUTCOME, STAGE, Samples, Scrape, Unit, counter, flag, gauge};
use crate::coordinator::handle::Phase;
use crate::policy::breaker::State;
use crate::policy::health::Level;
use crate::policy::stage::StageSnapshot;

impl Scrape<'_> {
    fn each_stage(&self, to: &mut Samples<'_>, value: impl Fn(&StageSnapshot) -> f64) {
        for s in &self.stages {
            to.of(&[&s.stage], value(s));
        }
    }
}

/// The rows.
pub(super) const ROWS: &[Metric] = &[
    gauge(
        "penstock_build_info",
        Unit::None,
        &["version"],
        "The version that runs; always 1.",
        |_, to| to.of(&[env!("CARGO_PKG_VERSION")], 1.0),
    ),
    gauge(
        "penstock_ready",
        Unit::None,
        NONE,
        "1 while the pipeline runs, 0 while it starts or drains.",
        |s, to| to.one(flag(s.handle.phase() == Phase::Running)),
    ),
    gauge(
        "penstock_health",
        Unit::None,
        &["component"],
        "Health: 0 healthy, 1 degraded, 2 unhealthy, 3 starting.",
        |s, to| {
            for entry in s.health.system.iter().chain(&s.health.components) {
                let value = match entry.status {
                    Level::Healthy => 0.0,
                    Level::Degraded => 1.0,
                    Level::Unhealthy => 2.0,
                    Level::Starting => 3.0,
                };
                to.of(&[&entry.name], value);
            }
        },
    ),
    counter(
        "penstock_restarts_total",
        Unit::None,
        &["child", "stage"],
        "Restarts of supervised children.",
        |s, to| {
            for child in &s.children {
                to.of(&[&child.name, &child.stage], child.restarts as f64);
            }
        },
    ),
    counter(
        "penstock_config_reloads_total",
        Unit::None,
        OUTCOME,
        "Looks at a changed configuration, by what became of it.",
        |s, to| {
            for (outcome, count) in s.handle.reloads().counts() {
                to.of(&[outcome], count as f64);
            }
        },
    ),
    gauge(
        "penstock_config_in_force",
        Unit::None,
        NONE,
        "1 while the newest configuration is in force, 0 while an older one goes on because it is not valid.",
        |s, to| to.one(flag(s.handle.reloads().complaint().is_none())),
    ),
    gauge(
        "penstock_breaker_state",
        Unit::None,
        STAGE,
        "The breaker: 0 closed, 1 half-open, 2 open.",
        |s, to| {
            s.each_stage(to, |s| match s.breaker {
                State::Closed => 0.0,
                State::HalfOpen => 1.0,
                State::Open => 2.0,
            });
        },
    ),
    gauge(
        "penstock_breaker_state_seconds",
        Unit::Seconds,
        STAGE,
        "Time in this state.",
        |s, to| {
            s.each_stage(to, |stage| {
                s.now.saturating_duration_since(stage.since).as_secs_f64()
            });
        },
    ),
    gauge(
        "penstock_breaker_failures",
        Unit::None,
        STAGE,
        "Failures in a row.",
        |s, to| s.each_stage(to, |s| f64::from(s.failures)),
    ),
    counter(
        "penstock_breaker_opened_total",
        Unit::None,
        STAGE,
        "Times that the breaker opened.",
        |s, to| s.each_stage(to, |s| s.counters.opened as f64),
    ),
    counter(
        "penstock_breaker_half_opened_total",
        Unit::None,
        STAGE,
        "Times that the breaker half-opened.",
        |s, to| s.each_stage(to, |s| s.counters.half_opened as f64),
    ),
    counter(
        "penstock_breaker_closed_total",
        Unit::None,
        STAGE,
        "Times that the breaker closed.",
        |s, to| s.each_stage(to, |s| s.counters.closed as f64),
    ),
    counter(
        "penstock_breaker_refused_total",
        Unit::None,
        STAGE,
        "Calls refused because the breaker was open.",
        |s, to| s.each_stage(to, |s| s.counters.refusals as f64),
    ),
    counter(
        "penstock_calls_succeeded_total",
        Unit::None,
        STAGE,
        "Calls that the breaker counted as successes.",
        |s, to| s.each_stage(to, |s| s.counters.successes as f64),
    ),
    counter(
        "penstock_calls_failed_total",
        Unit::None,
        STAGE,
        "Calls that the breaker counted as failures.",
        |s, to| s.each_stage(to, |s| s.counters.failures as f64),
    ),
    counter(
        "penstock_retries_total",
        Unit::None,
        STAGE,
        "Tries after the first.",
        |s, to| s.each_stage(to, |s| s.retries as f64),
    ),
    counter(
        "penstock_throttled_total",
        Unit::None,
        STAGE,
        "Calls that waited for the rate limit.",
        |s, to| s.each_stage(to, |s| s.throttled as f64),
    ),
    counter(
        "penstock_throttled_seconds_total",
        Unit::Seconds,
        STAGE,
        "Time that they waited.",
        |s, to| s.each_stage(to, |s| s.throttled_for.as_secs_f64()),
    ),
    gauge(
        "penstock_group_joined",
        Unit::None,
        NONE,
        "1 while the group that shares the shards out has given this instance its share.",
        |s, to| {
            if let Some(share) = s.handle.share() {
                to.one(flag(share.joined));
            }
        },
    ),
    gauge(
        "penstock_shards_owned",
        Unit::None,
        NONE,
        "Shards that are this instance's.",
        |s, to| {
            if let Some(share) = s.handle.share() {
                to.one(share.owned.len() as f64);
            }
        },
    ),
    counter(
        "penstock_trace_spans_total",
        Unit::None,
        OUTCOME,
        "Spans of traces, by what became of them: sent, let go of because too many waited, or not taken.",
        |s, to| {
            let spans = s.handle.spans();
            let c = &spans.counters;
            for (outcome, count) in [
                ("exported", &c.exported),
                ("dropped", &c.dropped),
                ("failed", &c.failed),
            ] {
                to.of(&[outcome], count.load(Relaxed) as f64);
            }
        },
    ),
];
