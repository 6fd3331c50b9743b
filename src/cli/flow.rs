//! What flows through a pipeline, from one moment to the next: a line of it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::coordinator::handle::Handle;

/// The sums of all lanes at one moment.
pub(super) struct Flow {
    at: Instant,
    read: u64,
    /// Changes, as those read are: acknowledged, dropped or dead-lettered, and that committed.
    done: u64,
    in_flight: usize,
    dead_letters: u64,
    lag: Duration,
    catching_up: bool,
    breakers: String,
}

impl Flow {
    pub(super) fn of(handle: &Handle) -> Self {
        let pipeline = handle.pipeline();
        let lanes = || pipeline.iter().flat_map(|p| p.lanes());
        let status = pipeline
            .as_ref()
            .map(|p| p.source_status())
            .unwrap_or_default();
        let open: Vec<String> = crate::admin::status::stages(handle)
            .iter()
            .filter(|s| s.breaker != "closed")
            .map(|s| format!("{} {}", s.stage, s.breaker))
            .collect();
        Self {
            at: Instant::now(),
            read: lanes().map(|l| l.counters.read.load(Relaxed)).sum(),
            done: lanes().map(|l| l.counters.done.load(Relaxed)).sum(),
            in_flight: lanes().map(|l| l.in_flight().changes).sum(),
            dead_letters: lanes().map(|l| l.counters.dead_letters.load(Relaxed)).sum(),
            lag: status
                .shards
                .iter()
                .map(|s| s.lag)
                .max()
                .unwrap_or_default(),
            catching_up: status.shards.iter().any(|s| s.catching_up),
            breakers: if open.is_empty() {
                "closed".to_owned()
            } else {
                open.join(", ")
            },
        }
    }

    fn rate(&self, before: &Self) -> (f64, f64) {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(1e-3);
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        (rate(self.read, before.read), rate(self.done, before.done))
    }

    /// While a backlog is caught up with: when it will be over, at the pace of now.
    fn left(&self, before: &Self) -> Option<String> {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(1e-3);
        let pace = (before.lag.as_secs_f64() - self.lag.as_secs_f64()) / seconds;
        let left = self.lag.as_secs_f64() / pace;
        let left = Duration::try_from_secs_f64(left.ceil()).ok()?;
        (self.catching_up && pace > 0.0).then(|| humantime::format_duration(left).to_string())
    }

    /// What flowed since that moment, in one line.
    pub(super) fn since(&self, before: &Self) -> String {
        let (read, done) = self.rate(before);
        let left = self.left(before);
        let left = left.map_or_else(String::new, |left| format!(", caught up in {left}"));
        format!(
            "read {} ({read:.0}/s) → done {} ({done:.0}/s) · in flight {} · lag {:.1} s{left} · breakers {} · dead letters {}",
            self.read,
            self.done,
            self.in_flight,
            self.lag.as_secs_f64(),
            self.breakers,
            self.dead_letters,
        )
    }

    /// … in the log.
    pub(super) fn log(&self, before: &Self) {
        let (read, done) = self.rate(before);
        tracing::info!(
            read = self.read,
            read_per_second = read.round(),
            done = self.done,
            done_per_second = done.round(),
            in_flight = self.in_flight,
            lag_seconds = (self.lag.as_secs_f64() * 10.0).round() / 10.0,
            caught_up_in = self.left(before),
            breakers = self.breakers,
            dead_letters = self.dead_letters,
            "progress"
        );
    }
}
