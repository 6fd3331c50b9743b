//! Restart intensity and strategy of a supervised stage.

use std::time::Duration;

use super::{Checks, Invalid, LONGEST};

/// The most that `max_restarts` may be: that many crash times are remembered, and a stage that crashes more
/// often in any window is not being supervised but ignored.
pub const MOST_RESTARTS: u32 = 1_000;

/// `[<stage>.supervision]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    strategy: Strategy,
    max_restarts: u32,
    within: Duration,
    backoff: Duration,
    on_failed: OnFailed,
}

impl Settings {
    /// Checks them: `max_restarts ≤` [`MOST_RESTARTS`] (0: the first crash fails the stage),
    /// `0 < within ≤` [`LONGEST`], `backoff ≤` [`LONGEST`] (0: restart at once).
    pub fn new(
        strategy: Strategy,
        max_restarts: u32,
        within: Duration,
        backoff: Duration,
        on_failed: OnFailed,
    ) -> Result<Self, Vec<Invalid>> {
        let mut checks = Checks::default();
        checks.require(
            max_restarts <= MOST_RESTARTS,
            "max_restarts",
            "must be at most 1000",
        );
        // In a window of nothing no crash ever counts, and a crash loop would go on for ever.
        checks.require(!within.is_zero(), "within", "must be longer than zero");
        checks.require(within <= LONGEST, "within", "must be at most 24h");
        checks.require(backoff <= LONGEST, "backoff", "must be at most 24h");
        checks.pass(Self {
            strategy,
            max_restarts,
            within,
            backoff,
            on_failed,
        })
    }

    /// Who else is restarted.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// More than this many restarts …
    pub fn max_restarts(&self) -> u32 {
        self.max_restarts
    }

    /// … in this time fail the stage.
    pub fn within(&self) -> Duration {
        self.within
    }

    /// Pause before the first restart; doubles with each further one in `within`.
    pub fn backoff(&self) -> Duration {
        self.backoff
    }

    /// What a failed stage does to the rest.
    pub fn on_failed(&self) -> OnFailed {
        self.on_failed
    }
}

/// One for one, 5 restarts in 60 s, 100 ms before the first; a failed stage leaves the rest alone.
impl Default for Settings {
    fn default() -> Self {
        Self {
            strategy: Strategy::OneForOne,
            max_restarts: 5,
            within: Duration::from_secs(60),
            backoff: Duration::from_millis(100),
            on_failed: OnFailed::Isolate,
        }
    }
}

/// `supervision.strategy`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Only the crashed stage.
    OneForOne,
    /// All stages.
    OneForAll,
    /// The crashed stage and those started after it.
    RestForOne,
}

/// `supervision.on_failed`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailed {
    /// The rest goes on.
    Isolate,
    /// The process drains and exits with 1.
    Shutdown,
}
