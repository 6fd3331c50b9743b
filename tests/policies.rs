//! The policies against plain models, written in another way: whole histories where the code keeps counters,
//! ticks where it multiplies, loops where it uses powers.
//!
//! 116,000 cases by default; `PROPTEST_CASES=n` makes it `n` for each property. Every run is random; a failure
//! prints the smallest case and writes its seed to `tests/policies.proptest-regressions`, which is replayed first
//! from then on (commit it). `PROPTEST_RNG_SEED=<u64>` makes a whole run repeat itself.

use std::io::Write;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use penstock::policy::restart::{Decision, OnFailed, RestartWindow, Strategy as Restarts};
use penstock::policy::{backoff, breaker, rate, restart};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};

/// Runs `property` over cases of `strategy`, and says how many there were.
fn check<S: Strategy>(
    name: &'static str,
    cases: u32,
    strategy: S,
    property: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let default = Config::default();
    let regressions = FileFailurePersistence::Direct("tests/policies.proptest-regressions");
    let config = Config {
        cases: if asked { default.cases } else { cases },
        failure_persistence: Some(Box::new(regressions)),
        test_name: Some(name),
        ..default
    };
    let ran = std::cell::Cell::new(0_u32);
    let started = Instant::now();
    let result = TestRunner::new(config).run(&strategy, |value| {
        ran.set(ran.get() + 1);
        property(value)
    });
    // Past the test harness's capture, so that a log of CI shows it.
    let (ran, took) = (ran.get(), started.elapsed());
    writeln!(std::io::stderr(), "{name}: {ran} cases in {took:.1?}").expect("stderr is open");
    if let Err(error) = result {
        panic!("{name}: {error}");
    }
}

fn nonzero(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("the strategy makes no zero")
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

mod breaker_model {
    use super::*;
    use penstock::policy::breaker::{Breaker, Settings, State, Token, Transition};

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Wait(u64),
        Admit,
        /// Settles the `n`th (modulo) token that is out.
        Settle(usize, Outcome),
        Observe(bool),
        Reset,
        Retune(Settings),
    }

    #[derive(Clone, Copy, Debug)]
    enum Outcome {
        Success,
        Failure,
        Cancelled,
    }

    fn settings() -> impl Strategy<Value = Settings> {
        (1..5_u32, 1..60_u64, 1..4_u32).prop_map(|(failures, open_for, successes)| {
            Settings::new(nonzero(failures), ms(open_for), nonzero(successes)).expect("legal")
        })
    }

    fn op() -> impl Strategy<Value = Op> {
        let outcome = prop_oneof![
            4 => Just(Outcome::Failure),
            3 => Just(Outcome::Success),
            1 => Just(Outcome::Cancelled),
        ];
        prop_oneof![
            3 => (0..40_u64).prop_map(Op::Wait),
            6 => Just(Op::Admit),
            6 => (0..4_usize, outcome).prop_map(|(n, outcome)| Op::Settle(n, outcome)),
            1 => any::<bool>().prop_map(Op::Observe),
            1 => Just(Op::Reset),
            1 => settings().prop_map(Op::Retune),
        ]
    }

    /// A stay in one state, with all that happened in it.
    struct Stay {
        state: State,
        since: u64,
        /// Results that count, in order.
        results: Vec<bool>,
        /// Half-open: the call that is the probe.
        probe: Option<usize>,
        /// Begun, or its failures forgotten, by hand.
        wiped: bool,
    }

    /// Every stay there ever was. A call is worth something while the stay that admitted it is the last.
    struct Model {
        settings: Settings,
        stays: Vec<Stay>,
        now: u64,
        refusals: u64,
        stragglers: u64,
    }

    impl Model {
        fn last(&mut self) -> &mut Stay {
            self.stays.last_mut().expect("there is always one")
        }

        fn begin(&mut self, state: State, wiped: bool) {
            let since = self.now;
            self.stays.push(Stay {
                state,
                since,
                results: Vec::new(),
                probe: None,
                wiped,
            });
        }

        fn poll(&mut self) {
            let open_for = self.settings.open_for().as_millis() as u64;
            let (now, last) = (self.now, self.last());
            if last.state == State::Open && now - last.since >= open_for {
                self.begin(State::HalfOpen, false);
            }
        }

        /// Failures in a row, looking back until a success or a reset by hand.
        fn failures(&self) -> usize {
            let mut count = 0;
            for stay in self.stays.iter().rev() {
                for result in stay.results.iter().rev() {
                    if *result {
                        return count;
                    }
                    count += 1;
                }
                if stay.wiped {
                    break;
                }
            }
            count
        }

        fn admit(&mut self, call: usize) -> Option<usize> {
            let stay = self.stays.len() - 1;
            let last = self.last();
            let yes = match last.state {
                State::Closed => true,
                State::Open => false,
                State::HalfOpen => last.probe.is_none(),
            };
            if !yes {
                self.refusals += 1;
                return None;
            }
            if self.last().state == State::HalfOpen {
                self.last().probe = Some(call);
            }
            Some(stay)
        }

        fn settle(&mut self, call: usize, stay: usize, outcome: Outcome) {
            let current = stay + 1 == self.stays.len();
            if self.last().probe == Some(call) {
                self.last().probe = None;
            }
            match outcome {
                Outcome::Cancelled => {}
                _ if !current => self.stragglers += 1,
                Outcome::Success => self.result(true),
                Outcome::Failure => self.result(false),
            }
        }

        fn result(&mut self, success: bool) {
            self.last().results.push(success);
            let (state, in_row) = (self.last().state, self.last().results.len());
            match (state, success) {
                (State::Closed, false)
                    if self.failures() >= self.settings.failure_threshold().get() as usize =>
                {
                    self.begin(State::Open, false);
                }
                (State::HalfOpen, false) => self.begin(State::Open, false),
                // Any failure ends the stay, so all of its results are successes.
                (State::HalfOpen, true)
                    if in_row >= self.settings.success_threshold().get() as usize =>
                {
                    self.begin(State::Closed, false);
                }
                _ => {}
            }
        }

        fn times(&self, state: State) -> u64 {
            let stays = self.stays.windows(2);
            // A reset of a closed one begins a stay, but is no transition.
            stays
                .filter(|pair| pair[1].state == state && pair[0].state != state)
                .count() as u64
        }
    }

    #[test]
    fn breaker() {
        let case = (settings(), prop::collection::vec(op(), 1..26));
        check("breaker", 34_000, case, |(settings, ops)| {
            let start = Instant::now();
            let mut real = Breaker::new(settings, start);
            let mut model = Model {
                settings,
                stays: Vec::new(),
                now: 0,
                refusals: 0,
                stragglers: 0,
            };
            model.begin(State::Closed, true);
            let mut out: Vec<(usize, usize, Token)> = Vec::new();
            let mut transitions: Vec<Transition> = Vec::new();
            for (call, op) in ops.into_iter().enumerate() {
                let now = start + ms(model.now);
                match op {
                    Op::Wait(time) => model.now += time,
                    Op::Admit => {
                        let admitted = model.admit(call);
                        match real.admit() {
                            Ok(token) => {
                                prop_assert!(admitted.is_some());
                                out.push((call, admitted.unwrap_or_default(), token));
                            }
                            Err(refusal) => {
                                prop_assert_eq!(admitted, None);
                                prop_assert_eq!(refusal.state, real.state());
                            }
                        }
                    }
                    Op::Settle(n, outcome) if !out.is_empty() => {
                        let (call, stay, token) = out.remove(n % out.len());
                        model.settle(call, stay, outcome);
                        transitions.extend(match outcome {
                            Outcome::Success => real.success(token, now),
                            Outcome::Failure => real.failure(token, "it failed", now),
                            Outcome::Cancelled => {
                                real.cancel(token);
                                None
                            }
                        });
                    }
                    Op::Settle(..) => {}
                    Op::Observe(success) => {
                        if model.last().state == State::Closed {
                            model.result(success);
                        } else {
                            model.stragglers += 1;
                        }
                        let result = if success { Ok(()) } else { Err("it failed") };
                        transitions.extend(real.observe(result, now));
                    }
                    Op::Reset => {
                        model.begin(State::Closed, true);
                        transitions.extend(real.reset(now));
                    }
                    Op::Retune(settings) => {
                        model.settings = settings;
                        real.retune(settings);
                    }
                }
                model.poll();
                transitions.extend(real.poll(start + ms(model.now)));

                let last = model.stays.last().expect("there is always one");
                prop_assert_eq!(real.state(), last.state);
                prop_assert_eq!(real.failures() as usize, model.failures());
                let until = (last.state == State::Open)
                    .then(|| start + ms(last.since) + model.settings.open_for());
                prop_assert_eq!(real.until(), until);
                if last.state == State::HalfOpen {
                    prop_assert_eq!(real.successes() as usize, last.results.len());
                    prop_assert_eq!(real.refusal().is_some(), last.probe.is_some());
                }
            }
            let counters = real.counters();
            let results = model.stays.iter().flat_map(|stay| &stay.results);
            prop_assert_eq!(
                counters.successes,
                results.clone().filter(|ok| **ok).count() as u64
            );
            prop_assert_eq!(counters.failures, results.filter(|ok| !**ok).count() as u64);
            prop_assert_eq!(counters.refusals, model.refusals);
            prop_assert_eq!(counters.stragglers, model.stragglers);
            prop_assert_eq!(counters.opened, model.times(State::Open));
            prop_assert_eq!(counters.half_opened, model.times(State::HalfOpen));
            prop_assert_eq!(counters.closed, model.times(State::Closed));
            prop_assert_eq!(
                transitions.len() as u64,
                counters.opened + counters.half_opened + counters.closed
            );
            prop_assert!(
                transitions
                    .windows(2)
                    .all(|pair| pair[0].to == pair[1].from)
            );
            Ok(())
        });
    }
}

mod restart_model {
    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Op {
        CrashAfter(u64),
        Retune(restart::Settings),
        Reset,
    }

    fn settings() -> impl Strategy<Value = restart::Settings> {
        (0..6_u32, 1..100_u64, 0..20_u64).prop_map(|(max, within, backoff)| {
            let (strategy, on_failed) = (Restarts::OneForOne, OnFailed::Isolate);
            restart::Settings::new(strategy, max, ms(within), ms(backoff), on_failed)
                .expect("legal")
        })
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            8 => (0..60_u64).prop_map(Op::CrashAfter),
            1 => settings().prop_map(Op::Retune),
            1 => Just(Op::Reset),
        ]
    }

    #[test]
    fn restart_intensity() {
        let case = (settings(), prop::collection::vec(op(), 1..30));
        check("restart intensity", 36_000, case, |(mut settings, ops)| {
            let start = Instant::now();
            let mut real = RestartWindow::new(settings);
            // The model: every crash ever, in milliseconds; failed or not; where the latest run began.
            let (mut crashes, mut failed, mut first) = (Vec::<u64>::new(), false, None);
            let mut now = 0_u64;
            for (id, op) in ops.into_iter().enumerate() {
                match op {
                    Op::CrashAfter(time) => {
                        now += time;
                        let within = settings.within().as_millis() as u64;
                        let young = crashes.iter().filter(|at| now - **at < within).count();
                        if young == 0 && !failed {
                            first = Some(id.to_string());
                        }
                        crashes.push(now);
                        failed = failed || young + 1 > settings.max_restarts() as usize;
                        let decision = real.on_crash(start + ms(now), id.to_string());
                        let mut pause = settings.backoff();
                        for _ in 0..young {
                            pause *= 2;
                        }
                        let share = settings.within() / (settings.max_restarts() + 1);
                        let expected = match failed {
                            true => Decision::Failed,
                            false => Decision::Restart {
                                after: if pause < share { pause } else { share },
                            },
                        };
                        prop_assert_eq!(decision, expected);
                    }
                    Op::Retune(to) => {
                        settings = to;
                        real.retune(to);
                    }
                    Op::Reset => {
                        crashes.clear();
                        failed = false;
                        real.reset();
                    }
                }
                prop_assert_eq!(real.is_failed(), failed);
                let root = real.first_fault().map(|fault| fault.error.to_string());
                prop_assert_eq!(root, first.clone());
            }
            Ok(())
        });
    }

    /// Whatever the settings: a stage that crashes at every start is given up on after exactly `max_restarts`.
    #[test]
    fn a_crash_loop_is_always_found_out() {
        check("crash loop", 6_000, settings(), |settings| {
            let mut window = RestartWindow::new(settings);
            let mut now = Instant::now();
            for _ in 0..settings.max_restarts() {
                match window.on_crash(now, "at start") {
                    Decision::Restart { after } => now += after,
                    Decision::Failed => return Err(TestCaseError::fail("gave up early")),
                }
            }
            prop_assert_eq!(window.on_crash(now, "at start"), Decision::Failed);
            Ok(())
        });
    }
}

#[test]
fn backoff() {
    let case = (
        1..2_000_u64,
        0..100_000_u64,
        1..5_u32,
        prop::option::of(1..10_u32),
        1..80_u32,
        0.0..=1.0_f64,
    );
    check(
        "backoff",
        20_000,
        case,
        |(initial, more, multiplier, most, attempt, jitter)| {
            let most = most.map(nonzero);
            let max = initial + more;
            let settings =
                backoff::Settings::new(ms(initial), ms(max), f64::from(multiplier), most)
                    .expect("legal");
            // The model multiplies whole nanoseconds, one try at a time.
            let mut ceiling = u128::from(initial) * 1_000_000;
            for _ in 1..attempt {
                ceiling = (ceiling * u128::from(multiplier)).min(u128::from(max) * 1_000_000);
            }
            let near = |real: Duration, model: f64| {
                let off = (real.as_nanos() as f64 - model).abs();
                off <= 1.0 + model * 1e-9
            };
            prop_assert!(near(settings.ceiling(attempt), ceiling as f64));
            prop_assert!(near(
                settings.delay(attempt, jitter),
                ceiling as f64 * jitter
            ));
            prop_assert!(settings.delay(attempt, jitter) <= settings.max());
            prop_assert!(settings.ceiling(attempt) <= settings.ceiling(attempt + 1));
            let tries = (1..=20).take_while(|n| !settings.is_exhausted(*n)).count() as u32;
            prop_assert_eq!(tries + 1, most.map_or(21, NonZeroU32::get));
            Ok(())
        },
    );
}

mod rate_model {
    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Wait(u64),
        Take(u32),
        Retune(rate::Settings),
    }

    fn settings() -> impl Strategy<Value = rate::Settings> {
        (200..3_000_u32, 1..40_u32).prop_map(|(per_second, burst)| rate::Settings {
            per_second: nonzero(per_second),
            burst: nonzero(burst),
        })
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0..30_u64).prop_map(Op::Wait),
            8 => (0..60_u32).prop_map(Op::Take),
            1 => settings().prop_map(Op::Retune),
        ]
    }

    /// Thousandths of a token, filled tick by tick of a millisecond.
    struct Model {
        settings: rate::Settings,
        level: i64,
    }

    impl Model {
        fn tick(&mut self) {
            // What came while somebody was on the way stays; nothing is added to it.
            let most = self.most().max(self.level);
            self.gain();
            self.level = self.level.min(most);
        }

        fn gain(&mut self) {
            self.level += i64::from(self.settings.per_second.get());
        }

        fn most(&self) -> i64 {
            i64::from(self.settings.burst.get()) * 1_000
        }

        fn spill(&mut self) {
            self.level = self.level.min(self.most());
        }

        fn has(&self, n: u32) -> bool {
            let enough = n.min(self.settings.burst.get());
            n == 0 || self.level >= i64::from(enough) * 1_000
        }
    }

    #[test]
    fn rate_limit() {
        let case = (settings(), prop::collection::vec(op(), 1..24));
        check("rate limit", 20_000, case, |(settings, ops)| {
            let start = Instant::now();
            let mut real = rate::RateLimiter::new(Some(settings), start);
            let level = i64::from(settings.burst.get()) * 1_000;
            let mut model = Model { settings, level };
            let mut at = 0_u64;
            for op in ops {
                match op {
                    Op::Wait(ticks) => {
                        at += ticks;
                        (0..ticks).for_each(|_| model.tick());
                        // No look at the real one: a retune that comes next has to let time pass itself.
                        continue;
                    }
                    Op::Take(n) => {
                        if let Err(place) = real.take(n, start + ms(at)) {
                            prop_assert!(!model.has(n));
                            let Err(wait) = real.wait(place, start + ms(at)) else {
                                return Err(TestCaseError::fail("served at once, from the line"));
                            };
                            // A nanosecond less is too early, that long is enough.
                            let exactly = real.clone().wait(place, start + ms(at) + wait);
                            prop_assert_eq!(exactly, Ok(()));
                            let early = start + ms(at) + wait - Duration::from_nanos(1);
                            prop_assert!(real.wait(place, early).is_err());
                            // It is served within a tick: what comes in the rest of it is there for the next.
                            let mut waited = 0_u64;
                            while !model.has(n) {
                                model.gain();
                                waited += 1;
                            }
                            prop_assert_eq!(wait.as_nanos().div_ceil(1_000_000), waited.into());
                            at += waited;
                            prop_assert_eq!(real.wait(place, start + ms(at)), Ok(()));
                        }
                        prop_assert!(model.has(n));
                        model.level -= i64::from(n) * 1_000;
                    }
                    Op::Retune(to) => {
                        model.settings = to;
                        model.spill();
                        real.retune(Some(to), start + ms(at));
                    }
                }
                let level = model.level.div_euclid(1_000);
                prop_assert_eq!(real.level(start + ms(at)), Some(level));
            }
            Ok(())
        });
    }

    #[derive(Clone, Copy, Debug)]
    enum Arrival {
        /// Asks for so many.
        Asks(u32),
        /// One of those who wait goes away.
        Leaves(usize),
        /// One of those who wait is not polled any more: it holds up nobody.
        Sleeps(usize),
    }

    /// Many at one bucket: served in the order of their asking, never more than is allowed in any span of time,
    /// and never less than there is while somebody waits.
    #[test]
    fn rate_limit_line() {
        let arrival = prop_oneof![
            6 => (1..60_u32).prop_map(Arrival::Asks),
            1 => any::<usize>().prop_map(Arrival::Leaves),
            1 => any::<usize>().prop_map(Arrival::Sleeps),
        ];
        let case = (
            settings(),
            prop::collection::vec((0..25_u64, arrival), 1..40),
        );
        check("rate limit line", 800, case, |(settings, arrivals)| {
            let start = Instant::now();
            let rate = u64::from(settings.per_second.get());
            let mut real = rate::RateLimiter::new(Some(settings), start);
            let mut arrivals = arrivals.into_iter();
            let mut next = arrivals.next();
            let (mut waiting, mut asleep) = (Vec::new(), 0_u64);
            // When, and how many; and since when somebody has been waiting all the time.
            let mut served: Vec<(u64, u64)> = Vec::new();
            let mut pressed: Option<(u64, u64)> = None;
            for at in 0..20_000_u64 {
                let now = start + ms(at);
                loop {
                    let (done, still): (Vec<_>, Vec<_>) = waiting
                        .drain(..)
                        .partition(|(place, _)| real.wait(*place, now).is_ok());
                    let last = done.iter().map(|(place, _)| *place).max();
                    let first = still.iter().map(|(place, _)| *place).min();
                    prop_assert!(last < first || first.is_none(), "a later one was served");
                    served.extend(done.iter().map(|(_, n)| (at, u64::from(*n))));
                    waiting = still;
                    let Some((_, arrival)) = next.filter(|(pause, _)| at % (pause + 1) == 0) else {
                        break;
                    };
                    next = arrivals.next();
                    match arrival {
                        Arrival::Asks(n) => match real.take(n, now) {
                            Ok(()) => {
                                prop_assert!(waiting.is_empty(), "it overtook those who wait");
                                served.push((at, u64::from(n)));
                            }
                            Err(place) => waiting.push((place, n)),
                        },
                        Arrival::Leaves(which) if !waiting.is_empty() => {
                            let (place, _) = waiting.remove(which % waiting.len());
                            real.leave(place, now);
                            pressed = None;
                        }
                        Arrival::Sleeps(which) if !waiting.is_empty() => {
                            let (_, n) = waiting.remove(which % waiting.len());
                            asleep += u64::from(n);
                            pressed = None;
                        }
                        Arrival::Leaves(_) | Arrival::Sleeps(_) => {}
                    }
                }
                let total: u64 = served.iter().map(|(_, n)| n).sum();
                match (&pressed, waiting.is_empty()) {
                    (_, true) => pressed = None,
                    (None, false) => pressed = Some((at, total)),
                    (Some((since, before)), false) => {
                        // One that is not polled was served too, and a batch may be owed for.
                        let least = ((at - since) * rate / 1_000).saturating_sub(60 + 60);
                        prop_assert!(total - before + asleep >= least);
                    }
                }
                if next.is_none() && waiting.is_empty() {
                    break;
                }
            }
            prop_assert!(waiting.is_empty(), "it waits for ever");
            let burst = u64::from(settings.burst.get());
            for (i, (from, _)) in served.iter().enumerate() {
                let mut sum = 0;
                for (until, n) in &served[i..] {
                    sum += n;
                    // One batch more, what comes while a timer is late, and a tick of this test's own clock.
                    let most = burst + 60 + (until - from + 20 + 1) * rate / 1_000 + 1;
                    prop_assert!(sum <= most, "{sum} in {} ms", until - from);
                }
            }
            Ok(())
        });
    }
}

#[test]
fn an_illegal_threshold_cannot_be_made() {
    let keys = |errors: Vec<penstock::policy::Invalid>| -> Vec<&str> {
        errors.into_iter().map(|error| error.key).collect()
    };
    let one = NonZeroU32::MIN;
    let day = Duration::from_secs(24 * 60 * 60);
    let breaker = |open_for| breaker::Settings::new(one, open_for, one);
    assert_eq!(keys(breaker(Duration::ZERO).unwrap_err()), ["open_for"]);
    assert_eq!(keys(breaker(day + ms(1)).unwrap_err()), ["open_for"]);
    assert!(breaker(day).is_ok());

    let retry =
        |initial, max, multiplier| backoff::Settings::new(ms(initial), ms(max), multiplier, None);
    for multiplier in [f64::NAN, f64::INFINITY, 0.99, -2.0] {
        let all = keys(retry(0, 100_000_000_000, multiplier).unwrap_err());
        assert_eq!(all, ["initial", "max", "multiplier"]);
    }
    assert_eq!(keys(retry(10, 9, 1.0).unwrap_err()), ["max"]);
    assert!(retry(10, 10, 1.0).is_ok());

    let restart = |max, within, backoff| {
        restart::Settings::new(
            Restarts::OneForAll,
            max,
            within,
            backoff,
            OnFailed::Shutdown,
        )
    };
    let all = restart(1_001, Duration::ZERO, day + ms(1)).unwrap_err();
    assert_eq!(keys(all), ["max_restarts", "within", "backoff"]);
    assert!(restart(0, ms(1), Duration::ZERO).is_ok());
    let message = breaker(Duration::ZERO).unwrap_err()[0].to_string();
    assert_eq!(message, "open_for must be longer than zero");
}

/// What the page above promises of seeds: one repeats a run, and a failure is written down and tried first.
#[test]
fn a_seed_reproduces() {
    use proptest::test_runner::RngSeed;
    let drawn = |seed| {
        let config = Config {
            cases: 50,
            rng_seed: RngSeed::Fixed(seed),
            failure_persistence: None,
            ..Config::default()
        };
        let drawn = std::cell::RefCell::new(Vec::new());
        TestRunner::new(config)
            .run(&any::<u64>(), |value| {
                drawn.borrow_mut().push(value);
                Ok(())
            })
            .expect("nothing fails");
        drawn.into_inner()
    };
    assert_eq!(drawn(7), drawn(7));
    assert_ne!(drawn(7), drawn(8));

    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_str().expect("a path").to_owned();
    let path: &'static str = path.leak();
    // Fails for one value in 1,000 or so; told how many were tried until then.
    let tried = || {
        let config = Config {
            cases: 100_000,
            failure_persistence: Some(Box::new(FileFailurePersistence::Direct(path))),
            max_shrink_iters: 0,
            ..Config::default()
        };
        let tried = std::cell::Cell::new(0);
        TestRunner::new(config)
            .run(&any::<u64>(), |value| {
                tried.set(tried.get() + 1);
                prop_assert!(value % 1_000 != 0);
                Ok(())
            })
            .expect_err("one in 100,000 is a multiple of 1,000");
        tried.get()
    };
    tried();
    let written = std::fs::read_to_string(path).expect("the seeds");
    assert!(
        written.lines().any(|line| line.starts_with("cc ")),
        "{written}"
    );
    assert_eq!(tried(), 1, "the written seed is tried first:\n{written}");
}
