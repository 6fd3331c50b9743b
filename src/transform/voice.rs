//! How a guest is heard in our log: under its stage's name, and not without bounds.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::policy::rate::{RateLimiter, Settings};

/// A guest's line in our log is cut there.
const MAX_LINE: usize = 4 << 10;

/// Each begun KiB of a line counts as one: 20 KiB a second and shard is what a disk takes for days, and nobody reads more.
const PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("it is not zero");

/// What says something of each change of a small batch is heard in full.
const BURST: NonZeroU32 = NonZeroU32::new(64).expect("it is not zero");

/// How often it is said that lines were left out.
const SAID_EVERY: Duration = Duration::from_secs(1);

/// How urgent a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// An error, such as a panic.
    Error,
    /// A warning.
    Warn,
    /// Worth knowing.
    Info,
    /// For whoever looks for something.
    Debug,
}

/// The voice of all instances, one after the other, of a transform in a shard: one that fails for every change is heard no
/// oftener for that.
#[derive(Debug)]
pub struct Voice {
    stage: Arc<str>,
    state: Mutex<State>,
    /// Lines left out that were not counted anywhere yet.
    uncounted: AtomicU64,
}

#[derive(Debug)]
struct State {
    bucket: RateLimiter,
    /// Lines left out of which nothing was said yet.
    unsaid: u64,
    said_at: Option<Instant>,
}

/// Lines of a guest, of which none but the first begins where one of the log does.
struct Indented<'a>(&'a str);

impl fmt::Display for Indented<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, line) in self.0.split(['\r', '\n']).enumerate() {
            f.write_str(if at > 0 { "\n  " } else { "" })?;
            f.write_str(line)?;
        }
        Ok(())
    }
}

impl Voice {
    /// That of a stage.
    pub fn of(stage: impl Into<Arc<str>>) -> Self {
        let limit = Settings {
            per_second: PER_SECOND,
            burst: BURST,
        };
        Self {
            stage: stage.into(),
            state: Mutex::new(State {
                bucket: RateLimiter::new(Some(limit), Instant::now()),
                unsaid: 0,
                said_at: None,
            }),
            uncounted: AtomicU64::new(0),
        }
    }

    /// The stage.
    pub fn stage(&self) -> &Arc<str> {
        &self.stage
    }

    /// Writes a line to the log, cut, unless there were too many. What the log's filter leaves out counts for nothing.
    pub fn say(&self, urgency: Urgency, line: &str) {
        let shown = match urgency {
            Urgency::Error => tracing::enabled!(tracing::Level::ERROR),
            Urgency::Warn => tracing::enabled!(tracing::Level::WARN),
            Urgency::Info => tracing::enabled!(tracing::Level::INFO),
            Urgency::Debug => tracing::enabled!(tracing::Level::DEBUG),
        };
        let line = &line[..line.floor_char_boundary(MAX_LINE)];
        if !shown || !self.is_heard(line.len(), Instant::now()) {
            return;
        }
        let (stage, said) = (&*self.stage, Indented(line));
        match urgency {
            Urgency::Error => tracing::error!(stage, "plugin: {said}"),
            Urgency::Warn => tracing::warn!(stage, "plugin: {said}"),
            Urgency::Info => tracing::info!(stage, "plugin: {said}"),
            Urgency::Debug => tracing::debug!(stage, "plugin: {said}"),
        }
    }

    /// Whether there is room for a line of so many bytes; if not, it is counted.
    fn is_heard(&self, bytes: usize, now: Instant) -> bool {
        let mut state = self.state.lock();
        match state.bucket.take(1 + (bytes >> 10) as u32, now) {
            Ok(()) => true,
            Err(place) => {
                state.bucket.leave(place, now);
                state.unsaid += 1;
                self.uncounted.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }

    /// How many lines were left out since this was asked last. Says so in the log, now and then.
    pub fn left_out(&self, now: Instant) -> u64 {
        if self.uncounted.load(Ordering::Relaxed) > 0 {
            self.own_up(now);
        }
        self.uncounted.swap(0, Ordering::Relaxed)
    }

    fn own_up(&self, now: Instant) {
        let lines = {
            let mut state = self.state.lock();
            let lately = state.said_at.is_some_and(|at| now < at + SAID_EVERY);
            if lately || state.unsaid == 0 {
                return;
            }
            state.said_at = Some(now);
            std::mem::take(&mut state.unsaid)
        };
        self.tell(lines);
    }

    fn tell(&self, lines: u64) {
        let stage = &*self.stage;
        tracing::warn!(stage, lines, "plugin logs too much, lines were left out");
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        let lines = self.state.lock().unsaid;
        if lines > 0 {
            self.tell(lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_begins_no_line_of_the_log() {
        let said = "a\n2026-11-27T03:00:00Z ERROR all is lost\r\nb";
        let shown = Indented(said).to_string();
        assert_eq!(
            shown,
            "a\n  2026-11-27T03:00:00Z ERROR all is lost\n  \n  b"
        );
    }

    /// However often it speaks, and however long: a burst, then so much a second, and each line left out is counted once.
    #[test]
    fn a_flood_of_lines_is_bounded_and_what_is_left_out_is_counted() {
        for bytes in [10, MAX_LINE] {
            let voice = Voice::of("transform.t");
            let start = Instant::now();
            let (mut heard, mut asked, mut left_out) = (0, 0, 0);
            for ms in 0..10_000 {
                let now = start + Duration::from_millis(ms);
                for _ in 0..10 {
                    asked += 1;
                    heard += u64::from(voice.is_heard(bytes, now));
                }
                if ms % 100 == 0 {
                    left_out += voice.left_out(now);
                }
            }
            left_out += voice.left_out(start);
            let cost = 1 + (bytes >> 10) as u64;
            let most = u64::from(BURST.get()) + 10 * u64::from(PER_SECOND.get());
            assert!(heard * cost <= most, "{heard} of {bytes} bytes");
            assert!(
                (heard + 2) * cost > most * 9 / 10,
                "{heard} of {bytes} bytes"
            );
            assert_eq!(heard + left_out, asked);
        }
    }
}
