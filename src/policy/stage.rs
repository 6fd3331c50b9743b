//! The policies bound to one stage: the pure machines, the live settings, and tokio's clock.
//!
//! [`StagePolicies`] is a cheap handle; all clones share one breaker, one bucket and one set of counts. It
//! spawns nothing: time passes for it when someone looks ([`StagePolicies::snapshot`] does, so health checks
//! see a breaker half-open that nobody calls), and waiters sleep in their own task. A waiter sleeps until the
//! time it computed *or* until the settings change or another call settles, and then computes anew, so that a
//! retune acts on what is under way.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::breaker::{self, Breaker, Refusal, State, Token, Transition};
use super::rate::{Place, RateLimiter};
use super::{Class, Policies};
use crate::waits::Waits;

/// Settings that have policies for stages: what this module knows of them.
pub trait Tuned: Send + Sync + 'static {
    /// The policies of this stage, if there is one.
    fn policies(&self, stage: &str) -> Option<&Policies>;
}

/// The settings in force, whatever else they are.
trait Live: Send + Sync {
    /// The newest: another one is another `Arc`.
    fn newest(&self) -> Arc<dyn Tuned>;
    /// To wait for the next. What changed before counts as seen.
    fn follow(&self) -> Box<dyn Follow>;
}

trait Follow: Send {
    /// What there is counts as seen.
    fn mark_seen(&mut self);
    /// Waits for what has not been seen; for ever once nobody is left to change it.
    fn changed(&mut self) -> BoxFuture<'_, ()>;
}

impl<S: Tuned> Live for watch::Receiver<Arc<S>> {
    fn newest(&self) -> Arc<dyn Tuned> {
        self.borrow().clone()
    }

    fn follow(&self) -> Box<dyn Follow> {
        let mut follow = self.clone();
        follow.mark_unchanged();
        Box::new(follow)
    }
}

impl<S: Tuned> Follow for watch::Receiver<Arc<S>> {
    fn mark_seen(&mut self) {
        self.mark_unchanged();
    }

    fn changed(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(changed(self))
    }
}

/// The policies of one stage. See the module.
#[derive(Clone)]
pub struct StagePolicies(Arc<Inner>);

struct Inner {
    stage: Arc<str>,
    live: Box<dyn Live>,
    /// Draws evenly from 0 to 1.
    jitter: fn() -> f64,
    machine: Mutex<Machine>,
    /// Rung when a waiter may go sooner than it knows.
    bell: watch::Sender<()>,
    state: watch::Sender<State>,
    waits: Waits,
}

struct Machine {
    /// The settings that the others were last tuned to.
    tuned: Arc<dyn Tuned>,
    policies: Policies,
    breaker: Breaker,
    bucket: RateLimiter,
    retries: u64,
    throttled: u64,
    throttled_for: Duration,
}

/// A call refused because the breaker is open, or half-open with its probe out.
#[derive(Clone, Debug, thiserror::Error)]
#[error("Circuit breaker open: stage={stage} since={} until={}", rfc3339(.since),
    .until.as_ref().map_or_else(|| "the probe under way is answered".to_owned(), rfc3339))]
pub struct Refused {
    /// The stage.
    pub stage: Arc<str>,
    /// When it opened.
    pub since: Instant,
    /// When it lets a probe through; `None`: a probe is out, and it depends on that.
    pub until: Option<Instant>,
}

/// What a stage's policies look like at one moment.
#[derive(Clone, Debug)]
pub struct StageSnapshot {
    /// The stage.
    pub stage: Arc<str>,
    /// Of the breaker.
    pub breaker: State,
    /// When the breaker entered that state.
    pub since: Instant,
    /// When an open breaker lets a probe through.
    pub until: Option<Instant>,
    /// Failures in a row.
    pub failures: u32,
    /// Probes in a row that succeeded; 0 unless half-open.
    pub successes: u32,
    /// The last failure that counted.
    pub last_error: Option<Arc<str>>,
    /// Transitions by target, refusals, successes, failures, stragglers, since the process started.
    pub counters: breaker::Counters,
    /// Tries after the first, since the process started.
    pub retries: u64,
    /// Calls that had to wait for the rate limit, since the process started.
    pub throttled: u64,
    /// How long they waited in all.
    pub throttled_for: Duration,
    /// Whole tokens in the bucket, below zero if owed; `None`: no rate limit.
    pub rate_level: Option<i64>,
    /// The settings in force.
    pub policies: Policies,
}

impl StagePolicies {
    /// Binds the policies of `stage` (`source`, `transform.<name>`, `sink`, `dead_letter`, `orders`). A stage
    /// that the settings do not name gets the defaults; one that they no longer name keeps its last policies
    /// while it drains.
    pub fn new<S: Tuned>(stage: impl Into<Arc<str>>, live: watch::Receiver<Arc<S>>) -> Self {
        Self::with_jitter(stage, live, rand::random::<f64>)
    }

    /// As [`StagePolicies::new`], with a random source: `|| 1.0` makes every backoff its full length.
    pub fn with_jitter<S: Tuned>(
        stage: impl Into<Arc<str>>,
        live: watch::Receiver<Arc<S>>,
        jitter: fn() -> f64,
    ) -> Self {
        let stage = stage.into();
        let live: Box<dyn Live> = Box::new(live);
        let tuned = live.newest();
        let policies = tuned.policies(&stage).cloned().unwrap_or_default();
        let now = Instant::now().into_std();
        let machine = Machine {
            breaker: Breaker::new(policies.breaker, now),
            bucket: RateLimiter::new(policies.rate_limit, now),
            tuned,
            policies,
            retries: 0,
            throttled: 0,
            throttled_for: Duration::ZERO,
        };
        Self(Arc::new(Inner {
            waits: Waits::new(stage.clone()),
            stage,
            live,
            jitter,
            machine: Mutex::new(machine),
            bell: watch::Sender::new(()),
            state: watch::Sender::new(State::Closed),
        }))
    }

    /// The stage's name.
    pub fn stage(&self) -> &str {
        &self.0.stage
    }

    /// What it waits for.
    pub fn waits(&self) -> &Waits {
        &self.0.waits
    }

    /// The settings in force.
    pub fn policies(&self) -> Policies {
        self.with(|machine, _| machine.policies.clone())
    }

    /// Waits until the breaker lets a call through. However long it waits, that is one refusal.
    ///
    /// Cancel-safe: dropped while waiting, it leaves nothing behind.
    pub async fn admit(&self) -> Permit {
        let mut bell = self.0.bell.subscribe();
        let mut live = self.0.live.follow();
        let mut refused_before = false;
        loop {
            // Marked as seen before looking: what changes after the look wakes the wait.
            bell.borrow_and_update();
            live.mark_seen();
            let admitted = self.with(|machine, _| match machine.breaker.refusal() {
                Some(refusal) if refused_before => Err(refusal),
                _ => machine.breaker.admit(),
            });
            let refusal = match admitted {
                Ok(token) => return self.permit(token),
                Err(refusal) => refusal,
            };
            refused_before = true;
            tokio::select! {
                biased;
                () = sleep_until(refusal.until.map(Instant::from_std)) => {}
                () = changed(&mut bell) => {}
                () = live.changed() => {}
            }
        }
    }

    /// Leave for one call, now or not at all.
    pub fn try_admit(&self) -> Result<Permit, Refused> {
        self.with(|machine, _| machine.breaker.admit())
            .map(|token| self.permit(token))
            .map_err(|refusal| self.refused(refusal))
    }

    /// Waits until the breaker is half-open and nobody has asked it for anything for this long: then leave for a
    /// probe, so that it closes (or opens again) without traffic, too.
    ///
    /// Cancel-safe: the leave is taken last.
    pub async fn idle_probe(&self, quiet: Duration) -> Permit {
        let mut state = self.0.state.subscribe();
        let mut live = self.0.live.follow();
        loop {
            state.borrow_and_update();
            live.mark_seen();
            let before = self.snapshot();
            match before.breaker {
                State::HalfOpen => {
                    tokio::time::sleep(quiet).await;
                    if self.snapshot().counters == before.counters
                        && let Ok(permit) = self.try_admit()
                    {
                        return permit;
                    }
                }
                // An open one has a time; a closed one waits for a change.
                State::Open | State::Closed => tokio::select! {
                    biased;
                    () = sleep_until(before.until) => {}
                    () = changed(&mut state) => {}
                    () = live.changed() => {}
                },
            }
        }
    }

    /// A success that no permit belongs to. It counts while the breaker is closed; otherwise only a probe's
    /// permit says how the other side is.
    pub fn record_success(&self) {
        self.step(|breaker, now| breaker.observe(Ok::<_, Arc<str>>(()), now));
    }

    /// A failure that no permit belongs to. It counts while the breaker is closed; otherwise it may be the
    /// echo of what opened it.
    pub fn record_failure(&self, reason: impl Display) {
        self.step(|breaker, now| breaker.observe(Err(reason.to_string()), now));
    }

    /// Waits for the rate limit's leave for `n` changes or requests; at once where there is no limit. First
    /// come, first served.
    ///
    /// Cancel-safe: dropped before it returns, it gives back what it took.
    pub async fn throttle(&self, n: u32) {
        let Err(place) = self.with(|machine, now| machine.bucket.take(n, now)) else {
            return;
        };
        let mut in_line = InLine {
            policies: self,
            place: Some(place),
            since: Instant::now(),
        };
        let mut bell = self.0.bell.subscribe();
        let mut live = self.0.live.follow();
        loop {
            bell.borrow_and_update();
            live.mark_seen();
            let Err(wait) = self.with(|machine, now| machine.bucket.wait(place, now)) else {
                in_line.place = None;
                return;
            };
            tokio::select! {
                biased;
                () = tokio::time::sleep(wait) => {}
                () = changed(&mut bell) => {}
                () = live.changed() => {}
            }
        }
    }

    /// Calls `op` until it succeeds, `classify` says that trying again is no use, or `max_attempts` are used
    /// up. Retries are outside the breaker: an attempt is a call that the breaker let through; a refusal is a
    /// wait.
    ///
    /// What counts for the breaker: success and [`Class::Retryable`]. A [`Class::Poison`] answer is no failure
    /// of the other side, and no proof of its health either (a client may refuse a record by itself); a
    /// [`Class::Fatal`] one does not pass with time, which is all that a breaker could give it. Both return at
    /// once and give a probe's slot back.
    ///
    /// Cancel-safe as far as `op` is: a permit dropped with it counts as neither.
    pub async fn run<T, E, F>(
        &self,
        mut op: impl FnMut() -> F,
        classify: impl Fn(&E) -> Class,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: Display,
    {
        let mut attempt = 0_u32;
        loop {
            let permit = self.admit().await;
            attempt = attempt.saturating_add(1);
            let error = match op().await {
                Ok(value) => {
                    permit.success();
                    return Ok(value);
                }
                Err(error) => error,
            };
            match classify(&error) {
                Class::Retryable => permit.failure(&error),
                Class::Poison | Class::Fatal => return Err(error),
            }
            if !self.back_off(attempt).await {
                return Err(error);
            }
        }
    }

    /// Waits after the `attempt`th failed try (from 1); `false`: there is no further one. For loops that
    /// cannot use [`StagePolicies::run`].
    ///
    /// A breaker that is open no longer ends the wait: what has grown the pauses is over, or is about to be probed, which
    /// somebody has to be there for.
    pub async fn back_off(&self, attempt: u32) -> bool {
        let mut live = self.0.live.follow();
        let mut state = self.0.state.subscribe();
        let started = Instant::now();
        let jitter = (self.0.jitter)();
        loop {
            live.mark_seen();
            let retry = self.with(|machine, _| machine.policies.retry);
            if retry.is_exhausted(attempt) {
                return false;
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(started + retry.delay(attempt, jitter)) => {
                    self.with(|machine, _| machine.retries += 1);
                    return true;
                }
                () = no_longer_open(&mut state) => {
                    self.with(|machine, _| machine.retries += 1);
                    return true;
                }
                () = live.changed() => {}
            }
        }
    }

    /// Closes the breaker by hand and forgets the failures in a row.
    pub fn reset_breaker(&self) {
        let stage = &self.0.stage;
        tracing::info!(%stage, "breaker reset by hand");
        self.step(Breaker::reset);
    }

    /// The other side was seen to be there again: see [`Breaker::look_again`].
    pub fn look_again(&self) {
        self.step(Breaker::look_again);
    }

    /// What it looks like now.
    pub fn snapshot(&self) -> StageSnapshot {
        self.with(|machine, now| {
            let breaker = &machine.breaker;
            StageSnapshot {
                stage: self.0.stage.clone(),
                breaker: breaker.state(),
                since: Instant::from_std(breaker.since()),
                until: breaker.until().map(Instant::from_std),
                failures: breaker.failures(),
                successes: breaker.successes(),
                last_error: breaker.reason().cloned(),
                counters: breaker.counters(),
                retries: machine.retries,
                throttled: machine.throttled,
                throttled_for: machine.throttled_for,
                rate_level: machine.bucket.level(now),
                policies: machine.policies.clone(),
            }
        })
    }

    /// The breaker's state as it changes. An open breaker becomes half-open when somebody looks or waits.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.0.state.subscribe()
    }

    fn permit(&self, token: Token) -> Permit {
        Permit {
            policies: self.clone(),
            token: Some(token),
        }
    }

    fn refused(&self, refusal: Refusal) -> Refused {
        Refused {
            stage: self.0.stage.clone(),
            since: Instant::from_std(refusal.since),
            until: refusal.until.map(Instant::from_std),
        }
    }

    fn step(&self, step: impl FnOnce(&mut Breaker, std::time::Instant) -> Option<Transition>) {
        self.with(|machine, now| {
            let transition = step(&mut machine.breaker, now);
            self.note(machine, transition);
            // What settled while half-open gave the probe's slot back.
            if machine.breaker.state() == State::HalfOpen {
                self.0.bell.send_replace(());
            }
        });
    }

    /// The one way in: takes the newest settings, lets time pass, then does `step`.
    fn with<R>(&self, step: impl FnOnce(&mut Machine, std::time::Instant) -> R) -> R {
        let mut machine = self.0.machine.lock();
        // Read under the lock: neither time nor the settings go back between two callers.
        let now = Instant::now().into_std();
        machine.retune(&self.0.stage, &*self.0.live, now);
        let transition = machine.breaker.poll(now);
        self.note(&machine, transition);
        step(&mut machine, now)
    }

    /// Makes a transition known, and wakes refused waiters. Under the lock, so that the log has the order of
    /// what happened.
    fn note(&self, machine: &Machine, transition: Option<Transition>) {
        let (stage, breaker) = (&self.0.stage, &machine.breaker);
        let Some(Transition { from, to }) = transition else {
            return;
        };
        match to {
            State::Open => {
                let failures = breaker.failures();
                let open_for = machine.policies.breaker.open_for();
                let error = breaker.reason().map_or("", |reason| reason);
                tracing::warn!(%stage, failures, ?open_for, error, "breaker opened");
            }
            State::HalfOpen => tracing::info!(%stage, "breaker half-open"),
            State::Closed => tracing::info!(%stage, %from, "breaker closed"),
        }
        self.0.state.send_replace(to);
        self.0.bell.send_replace(());
    }
}

impl std::fmt::Debug for StagePolicies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("StagePolicies").field(&self.0.stage).finish()
    }
}

impl Machine {
    fn retune(&mut self, stage: &str, live: &dyn Live, now: std::time::Instant) {
        let newest = live.newest();
        if std::ptr::addr_eq(Arc::as_ptr(&newest), Arc::as_ptr(&self.tuned)) {
            return;
        }
        self.tuned = newest;
        let Some(policies) = self.tuned.policies(stage) else {
            return;
        };
        self.breaker.retune(policies.breaker);
        self.bucket.retune(policies.rate_limit, now);
        self.policies = policies.clone();
    }
}

/// A waiter in the rate limit's line; dropped before its turn, it leaves the line and lets the others know.
struct InLine<'a> {
    policies: &'a StagePolicies,
    /// `None` once its turn has come.
    place: Option<Place>,
    since: Instant,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let waited = self.since.elapsed();
        let left = self.place;
        self.policies.with(|machine, now| {
            machine.throttled += 1;
            machine.throttled_for += waited;
            if let Some(place) = left {
                machine.bucket.leave(place, now);
            }
        });
        if left.is_some() {
            self.policies.0.bell.send_replace(());
        }
    }
}

/// Leave for one call. Say how it went; dropped, it counts as neither and gives a probe's slot back. A permit
/// from before the breaker's latest transition changes nothing.
#[derive(Debug)]
#[must_use = "dropped, it counts as neither success nor failure"]
pub struct Permit {
    policies: StagePolicies,
    /// `None` once settled.
    token: Option<Token>,
}

impl Permit {
    /// The other side did what it was asked.
    pub fn success(mut self) {
        if let Some(token) = self.token.take() {
            self.policies
                .step(|breaker, now| breaker.success(token, now));
        }
    }

    /// It did not, or not in time.
    pub fn failure(mut self, reason: impl Display) {
        if let Some(token) = self.token.take() {
            self.policies
                .step(|breaker, now| breaker.failure(token, reason.to_string(), now));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            self.policies.step(|breaker, _| {
                breaker.cancel(token);
                None
            });
        }
    }
}

/// An instant of tokio's clock as a time of day, for people.
pub fn wall_clock(at: Instant) -> SystemTime {
    let now = Instant::now();
    let today = SystemTime::now();
    let moved = if at > now {
        today.checked_add(at - now)
    } else {
        today.checked_sub(now - at)
    };
    moved.unwrap_or(today)
}

fn rfc3339(at: &Instant) -> String {
    humantime::format_rfc3339_millis(wall_clock(*at)).to_string()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Waits until an open breaker is half-open, or closed, from now on.
async fn no_longer_open(state: &mut watch::Receiver<State>) {
    loop {
        changed(state).await;
        if *state.borrow_and_update() != State::Open {
            return;
        }
    }
}

/// Waits for a change; for ever once nobody is left to make one, rather than returning at once in a loop.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
