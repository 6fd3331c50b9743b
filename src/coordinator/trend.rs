//! The last hour in numbers, kept in memory: a point every few seconds, of what the parts count anyway.
//!
//! The coordinator looks once a second, when it answers the watchdog. It knows nobody who reads it.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::pipeline::Pipeline;
use crate::histogram::Reading;

/// How far apart points are.
const STEP: Duration = Duration::from_secs(5);
/// How many are kept: an hour, in 40 KB.
const POINTS: usize = 720;

/// What was so between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Point {
    /// When it ended, in seconds since the Unix epoch.
    pub at: f64,
    /// Changes read a second.
    pub read: f32,
    /// Changes done a second.
    pub done: f32,
    /// Records acknowledged a second.
    pub acknowledged: f32,
    /// How far behind now the shard that is furthest behind reads, in seconds.
    pub lag: f32,
    /// From write to done, in seconds: what half of the changes do not pass; `null` when none was done.
    pub p50: Option<f32>,
    /// … and 99 of 100.
    pub p99: Option<f32>,
}

/// What is counted, at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    read: u64,
    done: u64,
    acknowledged: u64,
    latency: Reading,
}

impl Totals {
    fn of(pipeline: &Pipeline) -> Self {
        let mut totals = Self::default();
        for lane in pipeline.lanes() {
            let c = &lane.counters;
            totals.read += c.read.load(Relaxed);
            totals.done += c.done.load(Relaxed);
            totals.acknowledged += c.acknowledged.load(Relaxed);
            for (_, reading) in c.latencies.read() {
                totals.latency += &reading;
            }
        }
        totals
    }

    /// As rates; a lane that went to another instance meanwhile takes its counts along, which is no negative rate.
    fn since(&self, earlier: &Self, span: Duration) -> Point {
        let rate = |now: u64, then: u64| {
            (now.saturating_sub(then) as f64 / span.as_secs_f64().max(1e-3)) as f32
        };
        let latency = self.latency.since(&earlier.latency);
        Point {
            at: 0.0,
            read: rate(self.read, earlier.read),
            done: rate(self.done, earlier.done),
            acknowledged: rate(self.acknowledged, earlier.acknowledged),
            lag: 0.0,
            p50: latency.quantile(0.5).map(|s| s as f32),
            p99: latency.quantile(0.99).map(|s| s as f32),
        }
    }
}

#[derive(Default)]
struct Inner {
    points: VecDeque<Point>,
    /// The looks of the last step, the oldest first.
    looks: VecDeque<(Instant, Totals)>,
    noted: Option<Instant>,
    latest: Point,
}

/// See the module.
#[derive(Default)]
pub struct Trend(Mutex<Inner>);

impl Trend {
    /// Looks at what is counted now; called about once a second.
    pub fn look(&self, pipeline: Option<&Pipeline>) {
        let Some(pipeline) = pipeline else {
            return;
        };
        let lags = pipeline.source.status().shards;
        let lag = lags.iter().map(|s| s.lag).max().unwrap_or_default();
        self.note(Instant::now(), Totals::of(pipeline), lag);
    }

    fn note(&self, now: Instant, totals: Totals, lag: Duration) {
        let mut inner = self.0.lock();
        while inner.looks.len() > 1 && now.duration_since(inner.looks[1].0) >= STEP {
            inner.looks.pop_front();
        }
        if let Some((then, earlier)) = inner.looks.front() {
            let at = SystemTime::now().duration_since(UNIX_EPOCH);
            inner.latest = Point {
                at: at.unwrap_or_default().as_secs_f64(),
                lag: lag.as_secs_f32(),
                ..totals.since(earlier, now.duration_since(*then))
            };
        }
        inner.looks.push_back((now, totals));
        let due = |noted: Instant| now.duration_since(noted) >= STEP;
        if inner.noted.is_none_or(due) && inner.latest.at > 0.0 {
            inner.noted = Some(now);
            if inner.points.len() == POINTS {
                inner.points.pop_front();
            }
            let latest = inner.latest;
            inner.points.push_back(latest);
        }
    }

    /// The last hour, the newest last.
    pub fn points(&self) -> Vec<Point> {
        self.0.lock().points.iter().copied().collect()
    }

    /// The last few seconds.
    pub fn latest(&self) -> Point {
        self.0.lock().latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(n: u64) -> Totals {
        Totals {
            read: n,
            done: n,
            acknowledged: n,
            ..Totals::default()
        }
    }

    #[test]
    fn rates_are_of_the_last_seconds_and_an_hour_is_kept() {
        let (trend, start) = (Trend::default(), Instant::now());
        for s in 0..8_000u64 {
            let at = start + Duration::from_secs(s);
            trend.note(at, totals(100 * s), Duration::from_secs(1));
        }
        let points = trend.points();
        assert_eq!(points.len(), POINTS);
        assert!(points.iter().all(|p| (p.read - 100.0).abs() < 0.1));
        assert!(trend.0.lock().looks.len() <= 7, "bounded");
        assert_eq!(trend.latest().lag, 1.0);
        assert_eq!(trend.latest().p99, None);
    }

    #[test]
    fn counts_that_fall_are_no_negative_rate() {
        let (trend, start) = (Trend::default(), Instant::now());
        trend.note(start, totals(1_000), Duration::ZERO);
        trend.note(start + Duration::from_secs(1), totals(10), Duration::ZERO);
        assert_eq!(trend.latest().read, 0.0);
    }
}
