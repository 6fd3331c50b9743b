//! Exponential backoff with full jitter.

use std::num::NonZeroU32;
use std::time::Duration;

use super::{Checks, Invalid, LONGEST};

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
        let mut checks = Checks::default();
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
