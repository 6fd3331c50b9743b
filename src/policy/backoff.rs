//! Exponential backoff with full jitter (Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog,
//! 2015: of the variants, full jitter makes the fewest calls and finishes first).
//!
//! Own code rather than `backon`: its backoffs are iterators that hold their settings from the start, so a
//! retune could not reach a retry that is under way, and its jitter is added *on top of* the pause
//! (`pause..2·pause`), which keeps clients that failed together apart less well. What is left to write is one
//! formula.

use std::num::NonZeroU32;
use std::time::Duration;

use super::{Invalid, LONGEST, Problems};

/// `[<stage>.retry]`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    initial: Duration,
    max: Duration,
    multiplier: f64,
    max_attempts: Option<NonZeroU32>,
}

impl Settings {
    /// Checks them: `0 < initial ≤ max ≤` [`LONGEST`], `1 ≤ multiplier < ∞`. `max_attempts` counts the first
    /// try too; `None` (`0` in the file) is for ever.
    pub fn new(
        initial: Duration,
        max: Duration,
        multiplier: f64,
        max_attempts: Option<NonZeroU32>,
    ) -> Result<Self, Vec<Invalid>> {
        let mut checks = Problems::default();
        // A pause of zero would make a failing call spin.
        checks.require(!initial.is_zero(), "initial", "must be longer than zero");
        checks.require(max >= initial, "max", "must be at least `initial`");
        checks.require(max <= LONGEST, "max", "must be at most 24h");
        // False for NaN too.
        let grows = multiplier >= 1.0 && multiplier.is_finite();
        checks.require(grows, "multiplier", "must be a finite number, at least 1");
        checks.pass(Self {
            initial,
            max,
            multiplier,
            max_attempts,
        })
    }

    /// The first pause, before jitter.
    pub fn initial(&self) -> Duration {
        self.initial
    }

    /// The longest pause.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// Growth a try, at least 1 and finite.
    pub fn multiplier(&self) -> f64 {
        self.multiplier
    }

    /// The longest that the pause after the `attempt`th failed try can be; `attempt` counts from 1.
    pub fn ceiling(&self, attempt: u32) -> Duration {
        let exponent = f64::from(attempt.saturating_sub(1));
        let grown = self.initial.as_secs_f64() * self.multiplier.powf(exponent);
        // Infinite from some attempt on, which is more than `max` too.
        if grown < self.max.as_secs_f64() {
            Duration::from_secs_f64(grown)
        } else {
            self.max
        }
    }

    /// The pause after the `attempt`th failed try (from 1): `jitter` times its ceiling. `jitter` is drawn
    /// evenly from 0 to 1; what lies outside is taken as the nearer end, NaN as 1.
    pub fn delay(&self, attempt: u32, jitter: f64) -> Duration {
        let share = if jitter.is_nan() {
            1.0
        } else {
            jitter.clamp(0.0, 1.0)
        };
        self.ceiling(attempt).mul_f64(share)
    }

    /// Whether there is no further try after the `attempt`th failed (from 1).
    pub fn is_exhausted(&self, attempt: u32) -> bool {
        self.max_attempts.is_some_and(|most| attempt >= most.get())
    }

    /// Tries in all, the first included; `None`: for ever (`max_attempts = 0`).
    pub fn max_attempts(&self) -> Option<NonZeroU32> {
        self.max_attempts
    }
}

/// 100 ms doubling up to 30 s, for ever: the right thing in an outage.
impl Default for Settings {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(100),
            max: Duration::from_secs(30),
            multiplier: 2.0,
            max_attempts: None,
        }
    }
}
