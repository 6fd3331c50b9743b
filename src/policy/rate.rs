//! The rate limit: a token bucket with a waiting line, pure in `now`.
//!
//! Own code rather than `governor`: its limiters are immutable, and `RateLimiter::new` with a saved state store
//! counts that state from a new start, so a retune would refill the bucket (or drain it); and a batch larger
//! than the burst is an error there (`InsufficientCapacity`), where here it has to pass, late. What is left to
//! write is a multiplication, and whole numbers keep it exact: the level is counted in billionths of a token,
//! so that `per_second` of them come in each nanosecond.
//!
//! The line is kept here and not in a lock that waiters hold: each is served at its time whether or not anybody
//! polls it, so a waiter that is not polled keeps nobody else waiting.

use std::collections::VecDeque;
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

impl Settings {
    /// The most that should come in one piece: the burst, or what comes in a hundredth of a second, which
    /// nobody tells from a steady flow and which keeps the cost of a piece from mattering.
    pub fn at_once(&self) -> NonZeroU32 {
        let moment = NonZeroU32::new(self.per_second.get() / 100);
        moment.map_or(self.burst, |moment| moment.max(self.burst))
    }
}

/// Billionths in a token: nanoseconds in a second, which makes the two cancel out.
const TOKEN: i128 = 1_000_000_000;

/// A timer rings late: by a millisecond where time is counted in milliseconds, by more on a busy machine. What
/// comes in that time is kept for whoever is next, or each wait would cost some of the rate; but not of a longer
/// time, or a process that stood still would make up for it all at once.
const LATE: Duration = Duration::from_millis(20);

/// A place in the line. It belongs to the limiter that gave it, and is given back ([`RateLimiter::leave`]) or
/// used up ([`RateLimiter::wait`]). A greater one is further back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

/// A bucket that holds `burst` tokens and gains `per_second`; or no limit at all.
///
/// `n` tokens are taken when `min(n, burst)` are there; what more was taken is owed. So a batch larger than the
/// burst passes when the bucket is full, and whoever comes after it waits: over any time, no more than
/// `burst + per_second · time` go through, plus one batch, plus what comes in [`LATE`].
#[derive(Clone, Debug)]
pub struct RateLimiter {
    settings: Option<Settings>,
    /// Billionths of a token; below zero is owed.
    level: i128,
    at: Instant,
    /// Who waits for how many tokens, first come, first served.
    line: VecDeque<(Place, u32)>,
    /// Who was served and has not heard of it yet.
    served: Vec<(Place, u32)>,
    places: u64,
}

impl RateLimiter {
    /// A full bucket.
    pub fn new(settings: Option<Settings>, now: Instant) -> Self {
        Self {
            settings,
            level: settings.map_or(0, |s| capacity(&s)),
            at: now,
            line: VecDeque::new(),
            served: Vec::new(),
            places: 0,
        }
    }

    /// Takes new settings; the level stays (spilling what a smaller bucket cannot hold), and so does a debt.
    /// Time until `now` still counts at the old rate. A limit where there was none begins with a full bucket.
    pub fn retune(&mut self, settings: Option<Settings>, now: Instant) {
        self.refill(now);
        self.level = match (self.settings, settings) {
            (Some(_), Some(s)) => self.level.min(capacity(&s)),
            (_, settings) => settings.map_or(0, |s| capacity(&s)),
        };
        self.settings = settings;
        self.refill(now);
    }

    /// Takes `n` tokens, or a place in the line for them.
    pub fn take(&mut self, n: u32, now: Instant) -> Result<(), Place> {
        self.refill(now);
        let Some(settings) = self.settings else {
            return Ok(());
        };
        if n == 0 {
            return Ok(());
        }
        if self.line.is_empty() && self.level >= needed(&settings, n) {
            self.level -= tokens(n);
            return Ok(());
        }
        let place = Place(self.places);
        self.places += 1;
        self.line.push_back((place, n));
        Err(place)
    }

    /// Whether the tokens for this place were taken, which uses it up, or how long it takes until they are if
    /// nobody before it leaves. The answer is rounded up to a nanosecond: asking again after exactly that time
    /// succeeds.
    pub fn wait(&mut self, place: Place, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        if let Some(index) = self.served.iter().position(|(p, _)| *p == place) {
            self.served.swap_remove(index);
            return Ok(());
        }
        let Some(settings) = self.settings else {
            return Ok(());
        };
        let (mut level, mut wait) = (self.level, 0_u64);
        for (before, n) in &self.line {
            let nanos = nanos_until(&settings, level, *n);
            level += gain(&settings, nanos) - tokens(*n);
            wait = wait.saturating_add(nanos);
            if *before == place {
                break;
            }
        }
        Err(Duration::from_nanos(wait))
    }

    /// Gives a place up, and its tokens back if they were taken.
    pub fn leave(&mut self, place: Place, now: Instant) {
        self.refill(now);
        if let Some(index) = self.served.iter().position(|(p, _)| *p == place) {
            let (_, n) = self.served.swap_remove(index);
            if let Some(settings) = &self.settings {
                let most = self.level.max(capacity(settings));
                self.level = (self.level + tokens(n)).min(most);
            }
        }
        self.line.retain(|(p, _)| *p != place);
        self.refill(now);
    }

    /// Whole tokens there at `now`; below zero is owed. `None`: no limit.
    pub fn level(&mut self, now: Instant) -> Option<i64> {
        self.refill(now);
        self.settings?;
        Some(self.level.div_euclid(TOKEN) as i64)
    }

    /// Lets time pass: who waits is served at the very nanosecond, whenever it is asked.
    fn refill(&mut self, now: Instant) {
        // A `now` before the last one adds nothing, and its time is not counted twice later.
        let passed = now.saturating_duration_since(self.at).as_nanos();
        self.at = self.at.max(now);
        let Some(settings) = self.settings else {
            self.served.extend(self.line.drain(..));
            return;
        };
        let mut left = u64::try_from(passed).unwrap_or(u64::MAX);
        while let Some((place, n)) = self.line.front().copied() {
            let nanos = nanos_until(&settings, self.level, n);
            if nanos > left {
                self.level += gain(&settings, left);
                return;
            }
            left -= nanos;
            self.level += gain(&settings, nanos) - tokens(n);
            self.line.pop_front();
            self.served.push((place, n));
        }
        let mut most = capacity(&settings);
        if !self.served.is_empty() {
            most += gain(&settings, LATE.as_nanos() as u64);
        }
        self.level = (self.level + gain(&settings, left)).min(most.max(self.level));
    }
}

fn tokens(n: u32) -> i128 {
    i128::from(n) * TOKEN
}

fn capacity(settings: &Settings) -> i128 {
    tokens(settings.burst.get())
}

/// What has to be there for `n` to be taken.
fn needed(settings: &Settings, n: u32) -> i128 {
    tokens(n).min(capacity(settings))
}

fn gain(settings: &Settings, nanos: u64) -> i128 {
    i128::from(nanos) * i128::from(settings.per_second.get())
}

/// Nanoseconds until `n` can be taken, rounded up.
fn nanos_until(settings: &Settings, level: i128, n: u32) -> u64 {
    let missing = (needed(settings, n) - level).max(0);
    let rate = i128::from(settings.per_second.get());
    u64::try_from((missing + rate - 1) / rate).unwrap_or(u64::MAX)
}
