//! The metrics, a row each. To add one is to add a row, and to renew docs/metrics.md by `UPDATE_GOLDEN=1`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::{Kind, Metric, Samples, Scrape, Unit};
use crate::coordinator::handle::Phase;
use crate::coordinator::lane::{Lane, Work};
use crate::histogram::{BOUNDS_US, Reading};
use crate::policy::breaker::State;
use crate::policy::health::Level;
use crate::policy::stage::StageSnapshot;
use crate::sink::flight::{LATENCY_BUCKETS, Snapshot};
use crate::source::SourceStatus;

type Read = fn(&Scrape<'_>, &mut Samples<'_>);

const NONE: &[&str] = &[];
const STAGE: &[&str] = &["stage"];
const SHARD: &[&str] = &["shard"];
const OF_TABLE: &[&str] = &["table"];
const TRANSFORM: &[&str] = &["transform"];
const OUTCOME: &[&str] = &["outcome"];

const fn metric(
    kind: Kind,
    name: &'static str,
    unit: Unit,
    labels: &'static [&'static str],
    help: &'static str,
    read: Read,
) -> Metric {
    Metric {
        name,
        kind,
        unit,
        labels,
        help,
        read,
    }
}

const fn gauge(
    name: &'static str,
    unit: Unit,
    labels: &'static [&'static str],
    help: &'static str,
    read: Read,
) -> Metric {
    metric(Kind::Gauge, name, unit, labels, help, read)
}

const fn counter(
    name: &'static str,
    unit: Unit,
    labels: &'static [&'static str],
    help: &'static str,
    read: Read,
) -> Metric {
    metric(Kind::Counter, name, unit, labels, help, read)
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

impl Scrape<'_> {
    fn each_stage(&self, to: &mut Samples<'_>, value: impl Fn(&StageSnapshot) -> f64) {
        for s in &self.stages {
            to.of(&[&s.stage], value(s));
        }
    }

    fn each_lane(&self, to: &mut Samples<'_>, value: impl Fn(&Lane) -> f64) {
        for lane in self.pipeline.iter().flat_map(|p| &p.lanes) {
            to.of(&[&lane.shard.to_string()], value(lane));
        }
    }

    fn source(&self, to: &mut Samples<'_>, value: impl Fn(&SourceStatus) -> f64) {
        if let Some(p) = &self.pipeline {
            to.one(value(&p.source));
        }
    }

    fn sink(&self, to: &mut Samples<'_>, value: impl Fn(&Snapshot) -> f64) {
        if let Some(p) = &self.pipeline {
            to.one(value(&p.sink));
        }
    }

    fn each_transform(&self, to: &mut Samples<'_>, value: impl Fn(&Work) -> f64) {
        let mut all = BTreeMap::<Arc<str>, Work>::new();
        for lane in self.pipeline.iter().flat_map(|p| &p.lanes) {
            for (stage, work) in lane.counters.works.read() {
                *all.entry(stage).or_default() += &work;
            }
        }
        for (stage, work) in all {
            let name = stage.strip_prefix("transform.").unwrap_or(&stage);
            to.of(&[name], value(&work));
        }
    }

    fn latencies(&self) -> BTreeMap<String, Reading> {
        let mut all = BTreeMap::<String, Reading>::new();
        for lane in self.pipeline.iter().flat_map(|p| &p.lanes) {
            for (table, reading) in lane.counters.latencies.read() {
                *all.entry(table).or_default() += &reading;
            }
        }
        all
    }
}

/// Every metric, in the order in which they are served.
pub const TABLE: &[Metric] = &[
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
        "penstock_changes_read_total",
        Unit::None,
        SHARD,
        "Changes handed on by the source.",
        |s, to| s.each_lane(to, |l| l.counters.read.load(Relaxed) as f64),
    ),
    counter(
        "penstock_changes_transformed_total",
        Unit::None,
        SHARD,
        "Changes that the transforms are through with.",
        |s, to| s.each_lane(to, |l| l.counters.transformed.load(Relaxed) as f64),
    ),
    counter(
        "penstock_changes_dropped_total",
        Unit::None,
        SHARD,
        "Changes that a transform dropped.",
        |s, to| s.each_lane(to, |l| l.counters.dropped.load(Relaxed) as f64),
    ),
    counter(
        "penstock_changes_done_total",
        Unit::None,
        SHARD,
        "Changes that are done: acknowledged, dead-lettered or dropped, and that is committed.",
        |s, to| s.each_lane(to, |l| l.counters.done.load(Relaxed) as f64),
    ),
    counter(
        "penstock_records_acknowledged_total",
        Unit::None,
        SHARD,
        "Records that Redpanda acknowledged.",
        |s, to| s.each_lane(to, |l| l.counters.acknowledged.load(Relaxed) as f64),
    ),
    counter(
        "penstock_dead_letters_total",
        Unit::None,
        SHARD,
        "Dead letters written.",
        |s, to| s.each_lane(to, |l| l.counters.dead_letters.load(Relaxed) as f64),
    ),
    counter(
        "penstock_rewinds_total",
        Unit::None,
        SHARD,
        "Times that a shard went back to read again.",
        |s, to| s.each_lane(to, |l| l.counters.rewinds.load(Relaxed) as f64),
    ),
    counter(
        "penstock_checkpoints_total",
        Unit::None,
        SHARD,
        "Checkpoints written.",
        |s, to| s.each_lane(to, |l| l.counters.commits.load(Relaxed) as f64),
    ),
    gauge(
        "penstock_in_flight_changes",
        Unit::None,
        SHARD,
        "Changes that the sink holds unacknowledged.",
        |s, to| s.each_lane(to, |l| l.in_flight().changes as f64),
    ),
    gauge(
        "penstock_newest_done_timestamp_seconds",
        Unit::Seconds,
        SHARD,
        "Write time of the newest change that is done.",
        |s, to| s.each_lane(to, |l| l.counters.newest_done_us.load(Relaxed) as f64 / 1e6),
    ),
    gauge(
        "penstock_queue_fill_ratio",
        Unit::Ratio,
        &["stage", "shard"],
        "How full the queue before a stage is, 0 to 1.",
        |s, to| {
            let capacity = Lane::queue_capacity() as f64;
            for lane in s.pipeline.iter().flat_map(|p| &p.lanes) {
                let (shard, (transform, sink)) = (lane.shard.to_string(), lane.queued());
                for (stage, queued) in [("transform", transform), ("sink", sink)] {
                    to.of(&[stage, &shard], queued as f64 / capacity);
                }
            }
        },
    ),
    metric(
        Kind::Histogram,
        "penstock_change_latency_seconds",
        Unit::Seconds,
        OF_TABLE,
        "Time from a change's write in ScyllaDB to when readers see what became of it: a record, a dead letter, or nothing.",
        |s, to| {
            let bounds = BOUNDS_US.map(|us| us as f64 / 1e6);
            for (table, reading) in s.latencies() {
                to.histogram(&[&table], &bounds, reading.counts(), reading.sum());
            }
        },
    ),
    counter(
        "penstock_transform_items_total",
        Unit::None,
        TRANSFORM,
        "Changes and records that a transform was handed.",
        |s, to| s.each_transform(to, |w| w.items as f64),
    ),
    counter(
        "penstock_transform_seconds_total",
        Unit::Seconds,
        TRANSFORM,
        "Time spent in a transform.",
        |s, to| s.each_transform(to, |w| w.elapsed.as_secs_f64()),
    ),
    counter(
        "penstock_transform_faults_total",
        Unit::None,
        TRANSFORM,
        "Traps, missed deadlines, memory overruns and malformed answers of a transform.",
        |s, to| s.each_transform(to, |w| w.faults as f64),
    ),
    counter(
        "penstock_transform_rejected_total",
        Unit::None,
        TRANSFORM,
        "Changes that went to the dead letters because of a transform.",
        |s, to| s.each_transform(to, |w| w.rejected as f64),
    ),
    counter(
        "penstock_transform_dropped_on_error_total",
        Unit::None,
        TRANSFORM,
        "Changes let go of by `on_error = \"drop\"`.",
        |s, to| s.each_transform(to, |w| w.dropped as f64),
    ),
    counter(
        "penstock_transform_instances_renewed_total",
        Unit::None,
        TRANSFORM,
        "Instances that were made anew after a fault.",
        |s, to| s.each_transform(to, |w| w.renewed as f64),
    ),
    counter(
        "penstock_source_rows_total",
        Unit::None,
        NONE,
        "Rows read from the change logs.",
        |s, to| s.source(to, |s| s.rows as f64),
    ),
    counter(
        "penstock_source_bytes_total",
        Unit::Bytes,
        NONE,
        "Bytes of these rows.",
        |s, to| s.source(to, |s| s.bytes as f64),
    ),
    counter(
        "penstock_source_pages_total",
        Unit::None,
        NONE,
        "Pages read.",
        |s, to| s.source(to, |s| s.pages as f64),
    ),
    counter(
        "penstock_source_looks_total",
        Unit::None,
        NONE,
        "Pages of keys read to see what came late.",
        |s, to| s.source(to, |s| s.looks as f64),
    ),
    counter(
        "penstock_source_late_changes_total",
        Unit::None,
        NONE,
        "Rows that appeared in the log behind what had been read.",
        |s, to| s.source(to, |s| s.late as f64),
    ),
    counter(
        "penstock_source_windows_total",
        Unit::None,
        NONE,
        "Windows read to their end.",
        |s, to| s.source(to, |s| s.windows as f64),
    ),
    counter(
        "penstock_source_failed_reads_total",
        Unit::None,
        NONE,
        "Reads that failed.",
        |s, to| s.source(to, |s| s.failed_reads as f64),
    ),
    counter(
        "penstock_source_undecodable_total",
        Unit::None,
        NONE,
        "Rows that could not be decoded.",
        |s, to| s.source(to, |s| s.undecodable as f64),
    ),
    counter(
        "penstock_source_unreadable_gaps_total",
        Unit::None,
        OF_TABLE,
        "How often changes of a table could not be read: its log was dropped, or nothing was logged.",
        |s, to| {
            for table in s.pipeline.iter().flat_map(|p| &p.source.tables) {
                to.of(&[&table.table], table.gaps as f64);
            }
        },
    ),
    counter(
        "penstock_source_unreadable_seconds_total",
        Unit::Seconds,
        OF_TABLE,
        "How long these times were.",
        |s, to| {
            for table in s.pipeline.iter().flat_map(|p| &p.source.tables) {
                to.of(&[&table.table], table.gaps_for.as_secs_f64());
            }
        },
    ),
    gauge(
        "penstock_retention_headroom_ratio",
        Unit::Ratio,
        NONE,
        "Share of the change log's time to live that is left before unread changes expire.",
        |s, to| {
            let headroom = s.pipeline.as_ref().map(|p| p.source.retention_headroom());
            if let Some(headroom) = headroom.flatten() {
                to.one(headroom);
            }
        },
    ),
    gauge(
        "penstock_source_lag_seconds",
        Unit::Seconds,
        SHARD,
        "How far behind now a shard reads.",
        |s, to| {
            for shard in s.pipeline.iter().flat_map(|p| &p.source.shards) {
                to.of(&[&shard.shard.to_string()], shard.lag.as_secs_f64());
            }
        },
    ),
    counter(
        "penstock_sink_records_total",
        Unit::None,
        NONE,
        "Records handed to the producer.",
        |s, to| s.sink(to, |s| s.records as f64),
    ),
    counter(
        "penstock_sink_bytes_total",
        Unit::Bytes,
        NONE,
        "Bytes of their keys and values.",
        |s, to| s.sink(to, |s| s.bytes as f64),
    ),
    counter(
        "penstock_sink_poison_total",
        Unit::None,
        NONE,
        "Records that the broker refused for their content.",
        |s, to| s.sink(to, |s| s.poison as f64),
    ),
    counter(
        "penstock_sink_refusals_total",
        Unit::None,
        NONE,
        "Refusals that the sink waited for: a topic that is missing, a right, a quota; and outages.",
        |s, to| {
            if let Some(p) = &s.pipeline {
                to.one(p.pipeline.sink.troubles().refusals() as f64);
            }
        },
    ),
    counter(
        "penstock_sink_queue_waits_total",
        Unit::None,
        NONE,
        "Times that a full queue made a batch wait.",
        |s, to| s.sink(to, |s| s.waits as f64),
    ),
    counter(
        "penstock_sink_producers_replaced_total",
        Unit::None,
        NONE,
        "Producers that took another one's place after a failure.",
        |s, to| s.sink(to, |s| s.resets as f64),
    ),
    counter(
        "penstock_sink_transactions_total",
        Unit::None,
        OUTCOME,
        "Transactions, by what became of them.",
        |s, to| {
            if let Some(p) = &s.pipeline {
                to.of(&["committed"], p.sink.committed as f64);
                to.of(&["aborted"], p.sink.aborted as f64);
            }
        },
    ),
    gauge(
        "penstock_sink_queued_records",
        Unit::None,
        NONE,
        "Records handed over and not yet reported on.",
        |s, to| s.sink(to, |s| s.queued as f64),
    ),
    gauge(
        "penstock_sink_oldest_unacknowledged_seconds",
        Unit::Seconds,
        NONE,
        "Age of the oldest unacknowledged batch.",
        |s, to| s.sink(to, |s| s.oldest.map_or(0.0, |d| d.as_secs_f64())),
    ),
    metric(
        Kind::Histogram,
        "penstock_sink_ack_latency_seconds",
        Unit::Seconds,
        NONE,
        "Time from handing a batch over to its last acknowledgement.",
        |s, to| {
            if let Some(p) = &s.pipeline {
                let (counts, sum) = (&p.sink.ack_latency, p.sink.ack_latency_sum);
                to.histogram(&[], &LATENCY_BUCKETS, counts, sum);
            }
        },
    ),
    counter(
        "penstock_orders_total",
        Unit::None,
        OUTCOME,
        "Requests to the order service, by what became of them.",
        |s, to| {
            let Some(orders) = s.handle.orders() else {
                return;
            };
            let c = &orders.counters;
            for (outcome, count) in [
                ("created", &c.created),
                ("updated", &c.updated),
                ("cancelled", &c.cancelled),
                ("refused", &c.refused),
                ("failed", &c.failed),
            ] {
                to.of(&[outcome], count.load(Relaxed) as f64);
            }
        },
    ),
];
