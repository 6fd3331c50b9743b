//! The circuit breaker: `closed` → `open` → `half-open`.

use std::num::NonZeroU32;
use std::time::Duration;

use super::{Checks, Invalid, LONGEST};

/// `[<stage>.breaker]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    failure_threshold: NonZeroU32,
    open_for: Duration,
    success_threshold: NonZeroU32,
}

impl Settings {
    /// Checks `open_for`: longer than zero, at most [`LONGEST`].
    pub fn new(
        failure_threshold: NonZeroU32,
        open_for: Duration,
        success_threshold: NonZeroU32,
    ) -> Result<Self, Vec<Invalid>> {
        let mut checks = Checks::default();
        checks.require(!open_for.is_zero(), "open_for", "must be longer than zero");
        checks.require(open_for <= LONGEST, "open_for", "must be at most 24h");
        checks.pass(Self {
            failure_threshold,
            open_for,
            success_threshold,
        })
    }

    /// Consecutive failures that open it.
    pub fn failure_threshold(&self) -> NonZeroU32 {
        self.failure_threshold
    }

    /// How long it stays open before it lets a probe through.
    pub fn open_for(&self) -> Duration {
        self.open_for
    }

    /// Successes in a row that close it again.
    pub fn success_threshold(&self) -> NonZeroU32 {
        self.success_threshold
    }
}

/// 5 failures, 30 s, 3 successes.
impl Default for Settings {
    fn default() -> Self {
        Self {
            failure_threshold: const { NonZeroU32::new(5).unwrap() },
            open_for: Duration::from_secs(30),
            success_threshold: const { NonZeroU32::new(3).unwrap() },
        }
    }
}
