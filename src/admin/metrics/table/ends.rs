//! Of both ends: the change logs, the brokers, and the order service.

use std::sync::atomic::Ordering::Relaxed;

use super::{
    Kind, Metric, NONE, OF_TABLE, OUTCOME, SHARD, Samples, Scrape, Unit, counter, gauge, metric,
};
use crate::sink::flight::{LATENCY_BUCKETS, Snapshot};
use crate::source::SourceStatus;

impl Scrape<'_> {
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
}

/// The rows.
pub(super) const ROWS: &[Metric] = &[
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
                to.one(p.pipeline.refusals() as f64);
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
                let counts = (&p.sink.ack_latency[..], p.sink.ack_latency_sum);
                to.histogram(&[], &LATENCY_BUCKETS, counts, &[]);
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
