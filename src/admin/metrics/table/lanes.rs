//! Of the lanes between source and sink, and of the transforms on them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::{
    Kind, Metric, OF_TABLE, SHARD, Samples, Scrape, TRANSFORM, Unit, counter, gauge, metric,
};
use crate::coordinator::lane::{Lane, Work};
use crate::histogram::{BOUNDS_US, Exemplars, Reading};

impl Scrape<'_> {
    fn each_lane(&self, to: &mut Samples<'_>, value: impl Fn(&Lane) -> f64) {
        for lane in self.pipeline.iter().flat_map(|p| &p.lanes) {
            to.of(&[&lane.shard.to_string()], value(lane));
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

    fn latencies(&self) -> BTreeMap<String, (Reading, Exemplars)> {
        let mut all = BTreeMap::<String, (Reading, Exemplars)>::new();
        for lane in self.pipeline.iter().flat_map(|p| &p.lanes) {
            let latencies = &lane.counters.latencies;
            for (table, reading) in latencies.read() {
                all.entry(table).or_default().0 += &reading;
            }
            for (table, exemplars) in latencies.exemplars() {
                all.entry(table).or_default().1 += &exemplars;
            }
        }
        all
    }
}

/// The rows.
pub(super) const ROWS: &[Metric] = &[
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
            for (table, (reading, exemplars)) in s.latencies() {
                let counts = (reading.counts(), reading.sum());
                to.histogram(&[&table], &bounds, counts, exemplars.by_bucket());
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
        "penstock_transform_log_lines_left_out_total",
        Unit::None,
        TRANSFORM,
        "Lines that a plugin wrote to the log and that were left out: more than 20 a second, a long one counting for several.",
        |s, to| s.each_transform(to, |w| w.lines_left_out as f64),
    ),
];
