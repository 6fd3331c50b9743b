//! Restart intensity and strategy of a supervised stage.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Invalid, LONGEST, Problems};
use crate::words::words;

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
        let mut checks = Problems::default();
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

words! {
    /// `supervision.strategy`
    pub enum Strategy {
        /// Only the crashed stage.
        OneForOne = "one_for_one",
        /// All stages.
        OneForAll = "one_for_all",
        /// The crashed stage and those started after it.
        RestForOne = "rest_for_one",
    }
}

words! {
    /// `supervision.on_failed`
    pub enum OnFailed {
        /// The rest goes on.
        Isolate = "isolate",
        /// The process drains and exits with 1.
        Shutdown = "shutdown",
    }
}

/// What to do about a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start it again after a pause.
    Restart {
        /// The pause.
        after: Duration,
    },
    /// It crashed too often: leave it down and do what `on_failed` says.
    Failed,
}

/// A crash worth remembering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When it happened.
    pub at: Instant,
    /// The error, or the panic's message.
    pub error: Arc<str>,
}

/// The crashes of one stage, as Erlang's supervisors count them (`intensity` in `period`; OTP, supervisor(3)):
/// pure in `now`.
///
/// The first fault of a run of crashes is kept: later ones are often only its consequences. A run ends when a
/// whole window passes without a crash.
#[derive(Debug)]
pub struct RestartWindow {
    settings: Settings,
    /// The latest crashes, oldest first; bounded by [`MOST_RESTARTS`], not by the window, so that a retune to a
    /// longer window counts rightly at once.
    crashes: VecDeque<Instant>,
    first: Option<Fault>,
    last: Option<Fault>,
    failed: bool,
    restarts: u64,
}

impl RestartWindow {
    /// No crash yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            crashes: VecDeque::new(),
            first: None,
            last: None,
            failed: false,
            restarts: 0,
        }
    }

    /// Takes new settings; the crashes stay counted, a failed stage stays failed until [`RestartWindow::reset`].
    pub fn retune(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// The stage crashed. With this one more than `max_restarts` crashes younger than `within`: it failed.
    ///
    /// The pause doubles with each crash in the window, but never so far that the pauses alone would spread
    /// `max_restarts + 1` crashes over more than the window: a stage that crashes at every start is always
    /// found out.
    pub fn on_crash(&mut self, now: Instant, error: impl Into<Arc<str>>) -> Decision {
        let fault = Fault {
            at: now,
            error: error.into(),
        };
        let before = self.recent(now);
        if before == 0 && !self.failed {
            self.first = Some(fault.clone());
        }
        self.last = Some(fault);
        if self.crashes.len() > MOST_RESTARTS as usize {
            self.crashes.pop_front();
        }
        self.crashes.push_back(now);
        if self.failed || before >= self.settings.max_restarts {
            self.failed = true;
            return Decision::Failed;
        }
        self.restarts += 1;
        let doubled = self
            .settings
            .backoff
            .saturating_mul(2_u32.saturating_pow(before));
        let most = self.settings.within / (self.settings.max_restarts + 1);
        Decision::Restart {
            after: doubled.min(most),
        }
    }

    /// Crashes that count at `now`: younger than `within`.
    pub fn recent(&self, now: Instant) -> u32 {
        let young = |at: &&Instant| now.saturating_duration_since(**at) < self.settings.within;
        self.crashes.iter().rev().take_while(young).count() as u32
    }

    /// Whether it was given up on.
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    /// Restarts granted since it was made; never reset.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// The first fault of the latest run of crashes: the root cause.
    pub fn first_fault(&self) -> Option<&Fault> {
        self.first.as_ref()
    }

    /// The latest fault.
    pub fn last_fault(&self) -> Option<&Fault> {
        self.last.as_ref()
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Starts over by hand: a failed stage may be started again. The first fault stays until the next crash.
    pub fn reset(&mut self) {
        self.crashes.clear();
        self.failed = false;
    }
}
