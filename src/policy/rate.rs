//! The rate limit: a token bucket, pure in `now`.
//!
//! Own code rather than `governor`: its limiters are immutable, and `RateLimiter::new` with a saved state store
//! counts that state from a new start, so a retune would refill the bucket (or drain it); and a batch larger
//! than the burst is an error there (`InsufficientCapacity`), where here it has to pass, late. What is left to
//! write is a multiplication, and whole numbers keep it exact: the level is counted in billionths of a token,
//! so that `per_second` of them come in each nanosecond.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// `[<stage>.rate_limit]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Changes or requests a second.
    pub per_second: NonZeroU32,
    /// How many may come at once after a pause.
    pub burst: NonZeroU32,
}

/// Billionths in a token: nanoseconds in a second, which makes the two cancel out.
const TOKEN: i128 = 1_000_000_000;

/// A bucket that holds `burst` tokens and gains `per_second`.
///
/// `n` tokens may be taken when `min(n, burst)` are there; what more was taken is owed. So a batch larger than
/// the burst passes when the bucket is full, and whoever comes after it waits: over any time, no more than
/// `burst + per_second · time` go through, plus one batch.
#[derive(Clone, Debug)]
pub struct RateLimiter {
    settings: Settings,
    /// Billionths of a token; below zero is owed.
    level: i128,
    at: Instant,
}

impl RateLimiter {
    /// A full bucket.
    pub fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            level: capacity(&settings),
            at: now,
        }
    }

    /// Takes new settings; the level stays (spilling what a smaller bucket cannot hold), and so does a debt.
    /// Time until `now` still counts at the old rate.
    pub fn retune(&mut self, settings: Settings, now: Instant) {
        self.refill(now);
        self.settings = settings;
        self.level = self.level.min(capacity(&settings));
    }

    /// Takes `n` tokens, or says how long it takes until they can be taken if nobody else comes before. The
    /// answer is rounded up to a nanosecond: asking again after exactly that time succeeds.
    pub fn take(&mut self, n: u32, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        let need = i128::from(n) * TOKEN;
        let missing = need.min(capacity(&self.settings)) - self.level;
        if missing <= 0 || n == 0 {
            self.level -= need;
            return Ok(());
        }
        let rate = i128::from(self.settings.per_second.get());
        // At most (2^32 + 2^32) tokens at 1 a second: fits u64 nanoseconds.
        Err(Duration::from_nanos(((missing + rate - 1) / rate) as u64))
    }

    /// Whole tokens there at `now`; below zero is owed.
    pub fn level(&mut self, now: Instant) -> i64 {
        self.refill(now);
        self.level.div_euclid(TOKEN) as i64
    }

    fn refill(&mut self, now: Instant) {
        // A `now` before the last one adds nothing, and its time is not counted twice later.
        let passed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        let gained = passed.as_nanos() as i128 * i128::from(self.settings.per_second.get());
        self.level = (self.level + gained).min(capacity(&self.settings));
    }
}

fn capacity(settings: &Settings) -> i128 {
    i128::from(settings.burst.get()) * TOKEN
}
