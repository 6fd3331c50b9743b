//! The circuit breaker: `closed` → `open` → `half-open`, the machine of Nygard's *Release It!* with one probe.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Invalid, LONGEST, Problems};

/// One that has just opened stays so for this long, or `open_for` if that is shorter, whatever is seen of the other side.
pub const HOLD: Duration = Duration::from_secs(2);

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
        let mut checks = Problems::default();
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

/// Where a breaker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Calls go through; failures in a row are counted.
    Closed,
    /// Calls are refused until `open_for` has passed.
    Open,
    /// One probe at a time goes through.
    HalfOpen,
}

impl State {
    /// `closed`, `open`, `half-open`.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half-open",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A change of state, to be logged once by whoever caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
}

/// Leave for one call. It is worth something only in the generation that gave it: every transition begins a
/// new one, so that a straggler's result from before it changes nothing.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a probe that is neither settled nor cancelled keeps the half-open breaker waiting"]
pub struct Token {
    generation: u64,
}

/// Why a call was refused, and for how long at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// [`State::Open`], or [`State::HalfOpen`] while the one probe is out.
    pub state: State,
    /// When it opened.
    pub since: Instant,
    /// When it lets a probe through; `None` while a probe is out: it depends on that.
    pub until: Option<Instant>,
}

/// What a breaker has seen since it was made. Never reset, so that metrics only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Times it became open.
    pub opened: u64,
    /// Times it became half-open.
    pub half_opened: u64,
    /// Times it became closed again.
    pub closed: u64,
    /// Calls refused.
    pub refusals: u64,
    /// Successes that it took into account.
    pub successes: u64,
    /// Failures that it took into account.
    pub failures: u64,
    /// Results that came too late to mean anything: from before the latest transition.
    pub stragglers: u64,
}

/// The state machine. Pure in `now`, which must not go back; a call with an older `now` is taken as it is
/// and never panics.
///
/// - Closed: a failure raises the count, a success sets it to 0; at `failure_threshold` it opens.
/// - Open: refuses; once `open_for` has passed since the opening, the next look at it makes it half-open.
/// - Half-open: one [`Token`] at a time. Only that token's result counts: `success_threshold` successes in a
///   row close it, one failure opens it again.
///
/// Results without a token ([`Breaker::observe`]) count while it is closed only: nobody can tell which side
/// of the opening they belong to.
#[derive(Debug)]
pub struct Breaker {
    settings: Settings,
    state: State,
    /// When the state was entered.
    since: Instant,
    /// When it last opened; `None` if it never did.
    opened_at: Option<Instant>,
    /// Failures in a row; goes on counting over failed probes.
    failures: u32,
    /// Probes in a row that succeeded.
    successes: u32,
    generation: u64,
    /// Half-open and the one token is out.
    probing: bool,
    /// Open because a probe failed: `open_for` has passed once since it opened first.
    reopened: bool,
    reason: Option<Arc<str>>,
    counters: Counters,
}

impl Breaker {
    /// A closed one.
    pub fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            state: State::Closed,
            since: now,
            opened_at: None,
            failures: 0,
            successes: 0,
            generation: 0,
            probing: false,
            reopened: false,
            reason: None,
            counters: Counters::default(),
        }
    }

    /// Takes new thresholds; state and counts stay. Times are compared at every look: one that has waited
    /// 10 s of 30 s becomes half-open at the next [`Breaker::poll`] when `open_for` is now 5 s. Counts are
    /// compared when they change: with a threshold lowered to or below the count, the *next* failure opens it
    /// (the next success closes it), because a change of settings is no evidence about the other side.
    pub fn retune(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Lets time pass: an open one whose time is over becomes half-open.
    pub fn poll(&mut self, now: Instant) -> Option<Transition> {
        match self.until() {
            Some(until) if until <= now => Some(self.enter(State::HalfOpen, now)),
            _ => None,
        }
    }

    /// The other side was seen to be there again: the next probe is let through at once, or as soon as it has been open for
    /// [`HOLD`] if no probe has failed yet, or a flapping side would be called all the time.
    pub fn look_again(&mut self, now: Instant) -> Option<Transition> {
        let held = now.saturating_duration_since(self.since) >= HOLD;
        let early = self.state == State::Open && (self.reopened || held);
        early.then(|| self.enter(State::HalfOpen, now))
    }

    /// Asks leave for one call. Call [`Breaker::poll`] with the same `now` before it.
    pub fn admit(&mut self) -> Result<Token, Refusal> {
        if let Some(refusal) = self.refusal() {
            self.counters.refusals += 1;
            return Err(refusal);
        }
        self.probing = self.state == State::HalfOpen;
        Ok(Token {
            generation: self.generation,
        })
    }

    /// What [`Breaker::admit`] would refuse with; counts nothing.
    pub fn refusal(&self) -> Option<Refusal> {
        let refuses = match self.state {
            State::Closed => false,
            State::HalfOpen => self.probing,
            State::Open => true,
        };
        refuses.then(|| Refusal {
            state: self.state,
            since: self.opened_at.unwrap_or(self.since),
            until: self.until(),
        })
    }

    /// The call worked.
    pub fn success(&mut self, token: Token, now: Instant) -> Option<Transition> {
        if !self.is_current(&token) {
            return None;
        }
        self.counters.successes += 1;
        self.failures = 0;
        if self.state != State::HalfOpen {
            return None;
        }
        self.probing = false;
        self.successes = self.successes.saturating_add(1);
        (self.successes >= self.settings.success_threshold.get())
            .then(|| self.enter(State::Closed, now))
    }

    /// The call failed. `reason` is kept as the last one.
    pub fn failure(
        &mut self,
        token: Token,
        reason: impl Into<Arc<str>>,
        now: Instant,
    ) -> Option<Transition> {
        if !self.is_current(&token) {
            return None;
        }
        self.fail(reason.into(), now)
    }

    /// The call ended without a result (its task was cancelled): gives a probe's slot back.
    pub fn cancel(&mut self, token: Token) {
        if token.generation == self.generation {
            self.probing = false;
        }
    }

    /// A result that no token belongs to: `Err` holds the reason. Counts only while closed.
    pub fn observe<R: Into<Arc<str>>>(
        &mut self,
        result: Result<(), R>,
        now: Instant,
    ) -> Option<Transition> {
        if self.state != State::Closed {
            self.counters.stragglers += 1;
            return None;
        }
        match result {
            Ok(()) => {
                self.counters.successes += 1;
                self.failures = 0;
                None
            }
            Err(reason) => self.fail(reason.into(), now),
        }
    }

    /// Closes it by hand and forgets the failures in a row. Tokens that are out become stragglers.
    pub fn reset(&mut self, now: Instant) -> Option<Transition> {
        self.failures = 0;
        if self.state == State::Closed {
            self.generation += 1;
            return None;
        }
        Some(self.enter(State::Closed, now))
    }

    /// Where it is; as of the last [`Breaker::poll`].
    pub fn state(&self) -> State {
        self.state
    }

    /// When it entered its state.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// When an open one will let a probe through; `None` in the other states.
    pub fn until(&self) -> Option<Instant> {
        (self.state == State::Open).then(|| self.since + self.settings.open_for)
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Probes in a row that succeeded; 0 unless half-open.
    pub fn successes(&self) -> u32 {
        self.successes
    }

    /// The last failure that counted.
    pub fn reason(&self) -> Option<&Arc<str>> {
        self.reason.as_ref()
    }

    /// What it has seen so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn is_current(&mut self, token: &Token) -> bool {
        let current = token.generation == self.generation;
        if !current {
            self.counters.stragglers += 1;
        }
        current
    }

    fn fail(&mut self, reason: Arc<str>, now: Instant) -> Option<Transition> {
        self.counters.failures += 1;
        self.failures = self.failures.saturating_add(1);
        self.reason = Some(reason);
        let opens = match self.state {
            State::Closed => self.failures >= self.settings.failure_threshold.get(),
            State::HalfOpen => true,
            State::Open => false,
        };
        opens.then(|| self.enter(State::Open, now))
    }

    fn enter(&mut self, to: State, now: Instant) -> Transition {
        let from = std::mem::replace(&mut self.state, to);
        self.since = now;
        self.generation += 1;
        self.probing = false;
        match to {
            State::Open => {
                self.reopened = from == State::HalfOpen;
                self.opened_at = Some(now);
                self.counters.opened += 1;
            }
            State::HalfOpen => self.counters.half_opened += 1,
            State::Closed => self.counters.closed += 1,
        }
        self.successes = 0;
        Transition { from, to }
    }
}
