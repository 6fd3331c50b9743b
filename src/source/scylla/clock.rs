//! What time it is, for a reader that must never pass it.
//!
//! A window that ends too late skips the changes written into it afterwards, for good. The wall clock may
//! step: back, and windows just wait for it; forward, and a step that is corrected soon (a bad NTP source, a
//! virtual machine resumed) would have been believed. So a forward step counts only after it has stood for a
//! while; until then the monotonic clock goes on from before it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A step smaller than this is drift.
const STEP: Duration = Duration::from_millis(500);

/// The wall clock with forward steps held back.
#[derive(Debug)]
pub(crate) struct Clock {
    /// Wall time in µs since the Unix epoch, and the monotonic time at which it was so.
    anchor: (i64, Instant),
    stepped: Option<Instant>,
}

impl Clock {
    pub(crate) fn new(wall_us: i64, now: Instant) -> Self {
        Self {
            anchor: (wall_us, now),
            stepped: None,
        }
    }

    /// The time to rely on, in µs since the Unix epoch; `hold` is how long a step forward must stand.
    pub(crate) fn now_us(&mut self, wall_us: i64, now: Instant, hold: Duration) -> i64 {
        let (anchor_us, at) = self.anchor;
        let expected = anchor_us + now.saturating_duration_since(at).as_micros() as i64;
        if wall_us - expected <= STEP.as_micros() as i64 {
            self.stepped = None;
            self.anchor = (wall_us, now);
            return wall_us;
        }
        let since = *self.stepped.get_or_insert_with(|| {
            tracing::warn!(
                step_ms = (wall_us - expected) / 1000,
                "clock stepped forward, holding back"
            );
            now
        });
        if now.saturating_duration_since(since) >= hold {
            self.stepped = None;
            self.anchor = (wall_us, now);
            return wall_us;
        }
        expected
    }
}

/// The wall clock in µs since the Unix epoch.
pub(crate) fn wall_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_micros() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(2);

    #[test]
    fn a_step_back_is_followed_at_once() {
        let start = Instant::now();
        let mut clock = Clock::new(10_000_000, start);
        assert_eq!(clock.now_us(4_000_000, start + STEP, HOLD), 4_000_000);
    }

    #[test]
    fn a_step_forward_counts_only_once_it_has_stood() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut clock = Clock::new(0, start);
        assert_eq!(clock.now_us(100_000, at(100), HOLD), 100_000);
        assert_eq!(clock.now_us(9_000_000, at(200), HOLD), 200_000);
        assert_eq!(clock.now_us(10_000_000, at(1200), HOLD), 1_200_000);
        assert_eq!(clock.now_us(11_000_000, at(2200), HOLD), 11_000_000);
        assert_eq!(clock.now_us(11_100_000, at(2300), HOLD), 11_100_000);
    }

    #[test]
    fn a_step_forward_that_is_taken_back_was_never_believed() {
        let start = Instant::now();
        let mut clock = Clock::new(0, start);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(clock.now_us(50_000_000, at(10), HOLD), 10_000);
        assert_eq!(clock.now_us(1_000_000, at(1000), HOLD), 1_000_000);
        assert_eq!(clock.now_us(3_000_000, at(3000), HOLD), 3_000_000);
    }
}
