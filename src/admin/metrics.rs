//! `GET /metrics`: what is observed, in Prometheus' text format.
//!
//! Nothing is counted here. Each scrape reads the counters that the parts keep for themselves, so a metric
//! cannot say something that the pipeline does not do. Names follow Prometheus' conventions: base units, the
//! unit in the name, `_total` for what only grows.

use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

use tokio::time::Instant;

use crate::coordinator::handle::{Handle, Phase};
use crate::coordinator::lane::Lane;
use crate::policy::breaker::State;
use crate::policy::health::Level;
use crate::sink::flight::LATENCY_BUCKETS;

/// Writes families in the exposition format, version 0.0.4.
struct Exposition {
    text: String,
}

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: f64) {
        self.text.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let text = text
                .replace('\\', r"\\")
                .replace('"', "\\\"")
                .replace('\n', r"\n");
            write!(
                self.text,
                "{}{label}=\"{text}\"",
                if i == 0 { '{' } else { ',' }
            )
            .ok();
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        writeln!(self.text, " {value}").ok();
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

/// Everything that there is to see, as one scrape.
pub fn render(handle: &Handle) -> String {
    let mut out = Exposition {
        text: String::with_capacity(16 * 1024),
    };
    process(&mut out, handle);
    policies(&mut out, handle);
    share(&mut out, handle);
    lanes(&mut out, handle);
    source(&mut out, handle);
    sink(&mut out, handle);
    orders(&mut out, handle);
    out.text
}

fn process(out: &mut Exposition, handle: &Handle) {
    out.family(
        "penstock_build_info",
        "gauge",
        "The version that runs; always 1.",
    );
    out.sample(
        "penstock_build_info",
        &[("version", env!("CARGO_PKG_VERSION"))],
        1.0,
    );
    out.one(
        "penstock_ready",
        "gauge",
        "1 while the pipeline runs, 0 while it starts or drains.",
        f64::from(u8::from(handle.phase() == Phase::Running)),
    );
    let health = handle.health().borrow().clone();
    out.family(
        "penstock_health",
        "gauge",
        "Health: 0 healthy, 1 degraded, 2 unhealthy, 3 starting.",
    );
    for entry in health.system.iter().chain(&health.components) {
        let value = match entry.status {
            Level::Healthy => 0.0,
            Level::Degraded => 1.0,
            Level::Unhealthy => 2.0,
            Level::Starting => 3.0,
        };
        out.sample("penstock_health", &[("component", &entry.name)], value);
    }
    out.family(
        "penstock_restarts_total",
        "counter",
        "Restarts of supervised children.",
    );
    for child in handle.children() {
        out.sample(
            "penstock_restarts_total",
            &[("child", &child.name), ("stage", &child.stage)],
            child.restarts as f64,
        );
    }
    out.family(
        "penstock_config_reloads_total",
        "counter",
        "Looks at a changed configuration, by what became of it.",
    );
    for (outcome, count) in handle.reloads().counts() {
        out.sample(
            "penstock_config_reloads_total",
            &[("outcome", outcome)],
            count as f64,
        );
    }
}

fn share(out: &mut Exposition, handle: &Handle) {
    let Some(share) = handle.share() else {
        return;
    };
    out.one(
        "penstock_group_joined",
        "gauge",
        "1 while the group that shares the shards out has given this instance its share.",
        f64::from(u8::from(share.joined)),
    );
    out.one(
        "penstock_shards_owned",
        "gauge",
        "Shards that are this instance's.",
        share.owned.len() as f64,
    );
}

fn policies(out: &mut Exposition, handle: &Handle) {
    let now = Instant::now();
    let snapshots: Vec<_> = handle.policies().iter().map(|p| p.snapshot()).collect();
    let mut each =
        |name: &str,
         kind: &str,
         help: &str,
         value: &dyn Fn(&crate::policy::stage::StageSnapshot) -> f64| {
            out.family(name, kind, help);
            for s in &snapshots {
                out.sample(name, &[("stage", &s.stage)], value(s));
            }
        };
    each(
        "penstock_breaker_state",
        "gauge",
        "The breaker: 0 closed, 1 half-open, 2 open.",
        &|s| match s.breaker {
            State::Closed => 0.0,
            State::HalfOpen => 1.0,
            State::Open => 2.0,
        },
    );
    each(
        "penstock_breaker_state_seconds",
        "gauge",
        "Time in this state.",
        &|s| now.saturating_duration_since(s.since).as_secs_f64(),
    );
    each(
        "penstock_breaker_failures",
        "gauge",
        "Failures in a row.",
        &|s| f64::from(s.failures),
    );
    each(
        "penstock_breaker_opened_total",
        "counter",
        "Times that the breaker opened.",
        &|s| s.counters.opened as f64,
    );
    each(
        "penstock_breaker_half_opened_total",
        "counter",
        "Times that the breaker half-opened.",
        &|s| s.counters.half_opened as f64,
    );
    each(
        "penstock_breaker_closed_total",
        "counter",
        "Times that the breaker closed.",
        &|s| s.counters.closed as f64,
    );
    each(
        "penstock_breaker_refused_total",
        "counter",
        "Calls refused because the breaker was open.",
        &|s| s.counters.refusals as f64,
    );
    each(
        "penstock_calls_succeeded_total",
        "counter",
        "Calls that the breaker counted as successes.",
        &|s| s.counters.successes as f64,
    );
    each(
        "penstock_calls_failed_total",
        "counter",
        "Calls that the breaker counted as failures.",
        &|s| s.counters.failures as f64,
    );
    each(
        "penstock_retries_total",
        "counter",
        "Tries after the first.",
        &|s| s.retries as f64,
    );
    each(
        "penstock_throttled_total",
        "counter",
        "Calls that waited for the rate limit.",
        &|s| s.throttled as f64,
    );
    each(
        "penstock_throttled_seconds_total",
        "counter",
        "Time that they waited.",
        &|s| s.throttled_for.as_secs_f64(),
    );
}

fn lanes(out: &mut Exposition, handle: &Handle) {
    let Some(pipeline) = handle.pipeline() else {
        return;
    };
    let lanes = pipeline.lanes();
    let mut each = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Lane) -> f64| {
        out.family(name, kind, help);
        for lane in &lanes {
            out.sample(name, &[("shard", &lane.shard.to_string())], value(lane));
        }
    };
    each(
        "penstock_changes_read_total",
        "counter",
        "Changes handed on by the source.",
        &|l| l.counters.read.load(Relaxed) as f64,
    );
    each(
        "penstock_changes_transformed_total",
        "counter",
        "Changes that the transforms are through with.",
        &|l| l.counters.transformed.load(Relaxed) as f64,
    );
    each(
        "penstock_changes_dropped_total",
        "counter",
        "Changes that a transform dropped.",
        &|l| l.counters.dropped.load(Relaxed) as f64,
    );
    each(
        "penstock_changes_done_total",
        "counter",
        "Changes acknowledged, dead-lettered or dropped.",
        &|l| l.counters.done.load(Relaxed) as f64,
    );
    each(
        "penstock_records_acknowledged_total",
        "counter",
        "Records that Redpanda acknowledged.",
        &|l| l.counters.acknowledged.load(Relaxed) as f64,
    );
    each(
        "penstock_dead_letters_total",
        "counter",
        "Dead letters written.",
        &|l| l.counters.dead_letters.load(Relaxed) as f64,
    );
    each(
        "penstock_rewinds_total",
        "counter",
        "Times that a shard went back to read again.",
        &|l| l.counters.rewinds.load(Relaxed) as f64,
    );
    each(
        "penstock_checkpoints_total",
        "counter",
        "Checkpoints written.",
        &|l| l.counters.commits.load(Relaxed) as f64,
    );
    each(
        "penstock_in_flight_changes",
        "gauge",
        "Changes that the sink holds unacknowledged.",
        &|l| l.in_flight().changes as f64,
    );
    each(
        "penstock_newest_done_timestamp_seconds",
        "gauge",
        "Write time of the newest change that is done.",
        &|l| l.counters.newest_done_us.load(Relaxed) as f64 / 1e6,
    );
    out.family(
        "penstock_queue_fill_ratio",
        "gauge",
        "How full the queue before a stage is, 0 to 1.",
    );
    let capacity = Lane::queue_capacity() as f64;
    for lane in &lanes {
        let (shard, (before_transforms, before_sink)) = (lane.shard.to_string(), lane.queued());
        let fill = [("transform", before_transforms), ("sink", before_sink)];
        for (stage, queued) in fill {
            out.sample(
                "penstock_queue_fill_ratio",
                &[("stage", stage), ("shard", &shard)],
                queued as f64 / capacity,
            );
        }
    }
}

fn source(out: &mut Exposition, handle: &Handle) {
    let Some(pipeline) = handle.pipeline() else {
        return;
    };
    let status = pipeline.source.status();
    out.one(
        "penstock_source_rows_total",
        "counter",
        "Rows read from the change logs.",
        status.rows as f64,
    );
    out.one(
        "penstock_source_bytes_total",
        "counter",
        "Bytes of these rows.",
        status.bytes as f64,
    );
    out.one(
        "penstock_source_pages_total",
        "counter",
        "Pages read.",
        status.pages as f64,
    );
    out.one(
        "penstock_source_looks_total",
        "counter",
        "Pages of keys read to see what came late.",
        status.looks as f64,
    );
    out.one(
        "penstock_source_late_changes_total",
        "counter",
        "Rows that appeared in the log behind what had been read.",
        status.late as f64,
    );
    out.one(
        "penstock_source_windows_total",
        "counter",
        "Windows read to their end.",
        status.windows as f64,
    );
    out.one(
        "penstock_source_failed_reads_total",
        "counter",
        "Reads that failed.",
        status.failed_reads as f64,
    );
    out.one(
        "penstock_source_undecodable_total",
        "counter",
        "Rows that could not be decoded.",
        status.undecodable as f64,
    );
    out.family(
        "penstock_source_unreadable_gaps_total",
        "counter",
        "How often changes of a table could not be read: its log was dropped, or nothing was logged.",
    );
    for table in &status.tables {
        out.sample(
            "penstock_source_unreadable_gaps_total",
            &[("table", &table.table)],
            table.gaps as f64,
        );
    }
    out.family(
        "penstock_source_unreadable_seconds_total",
        "counter",
        "How long these times were.",
    );
    for table in &status.tables {
        out.sample(
            "penstock_source_unreadable_seconds_total",
            &[("table", &table.table)],
            table.gaps_for.as_secs_f64(),
        );
    }
    if let Some(headroom) = status.retention_headroom() {
        out.one(
            "penstock_retention_headroom_ratio",
            "gauge",
            "Share of the change log's time to live that is left before unread changes expire.",
            headroom,
        );
    }
    out.family(
        "penstock_source_lag_seconds",
        "gauge",
        "How far behind now a shard reads.",
    );
    for shard in &status.shards {
        out.sample(
            "penstock_source_lag_seconds",
            &[("shard", &shard.shard.to_string())],
            shard.lag.as_secs_f64(),
        );
    }
}

fn sink(out: &mut Exposition, handle: &Handle) {
    let Some(pipeline) = handle.pipeline() else {
        return;
    };
    let s = pipeline.sink.snapshot();
    out.one(
        "penstock_sink_records_total",
        "counter",
        "Records handed to the producer.",
        s.records as f64,
    );
    out.one(
        "penstock_sink_bytes_total",
        "counter",
        "Bytes of their keys and values.",
        s.bytes as f64,
    );
    out.one(
        "penstock_sink_poison_total",
        "counter",
        "Records that the broker refused for their content.",
        s.poison as f64,
    );
    out.one(
        "penstock_sink_refusals_total",
        "counter",
        "Refusals that the sink waited for: a topic that is missing, a right, a quota; and outages.",
        pipeline.sink.troubles().refusals() as f64,
    );
    out.one(
        "penstock_sink_queue_waits_total",
        "counter",
        "Times that a full queue made a batch wait.",
        s.waits as f64,
    );
    out.one(
        "penstock_sink_queued_records",
        "gauge",
        "Records handed over and not yet reported on.",
        s.queued as f64,
    );
    let oldest = s.oldest.map_or(0.0, |d| d.as_secs_f64());
    out.one(
        "penstock_sink_oldest_unacknowledged_seconds",
        "gauge",
        "Age of the oldest unacknowledged batch.",
        oldest,
    );
    let name = "penstock_sink_ack_latency_seconds";
    out.family(
        name,
        "histogram",
        "Time from handing a batch over to its last acknowledgement.",
    );
    let mut below = 0;
    for (bound, count) in LATENCY_BUCKETS.iter().zip(&s.ack_latency) {
        below += count;
        out.sample(
            &format!("{name}_bucket"),
            &[("le", &bound.to_string())],
            below as f64,
        );
    }
    out.sample(
        &format!("{name}_bucket"),
        &[("le", "+Inf")],
        s.batches as f64,
    );
    out.sample(&format!("{name}_sum"), &[], s.ack_latency_sum);
    out.sample(&format!("{name}_count"), &[], s.batches as f64);
}

fn orders(out: &mut Exposition, handle: &Handle) {
    let Some(orders) = handle.orders() else {
        return;
    };
    let c = &orders.counters;
    out.family(
        "penstock_orders_total",
        "counter",
        "Requests to the order service, by what became of them.",
    );
    let outcomes = [
        ("created", &c.created),
        ("updated", &c.updated),
        ("cancelled", &c.cancelled),
        ("refused", &c.refused),
        ("failed", &c.failed),
    ];
    for (outcome, count) in outcomes {
        out.sample(
            "penstock_orders_total",
            &[("outcome", outcome)],
            count.load(Relaxed) as f64,
        );
    }
}
