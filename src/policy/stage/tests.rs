use std::cell::Cell;
use std::io;
use std::num::NonZeroU32;

use tokio::time::{advance, timeout};

use super::*;
use crate::policy::{backoff, rate};

const SECOND: Duration = Duration::from_secs(1);

fn some(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

fn breaker(failures: u32, open_for: Duration, successes: u32) -> Policies {
    Policies {
        breaker: breaker::Settings::new(some(failures), open_for, some(successes)).unwrap(),
        ..Policies::default()
    }
}

fn retry(initial: Duration, max_attempts: Option<u32>) -> Policies {
    Policies {
        retry: backoff::Settings::new(initial, 30 * SECOND, 2.0, max_attempts.map(some)).unwrap(),
        ..Policies::default()
    }
}

fn rate(per_second: u32, burst: u32) -> Policies {
    Policies {
        rate_limit: Some(rate::Settings {
            per_second: some(per_second),
            burst: some(burst),
        }),
        ..Policies::default()
    }
}

/// Settings with one stage, of this name.
struct One(&'static str, Policies);

impl Tuned for One {
    fn policies(&self, stage: &str) -> Option<&Policies> {
        (stage == self.0).then_some(&self.1)
    }
}

/// Stage `sink` without jitter, and the sender that retunes it.
fn sink(policies: Policies) -> (StagePolicies, watch::Sender<Arc<One>>) {
    let (sender, live) = watch::channel(Arc::new(One("sink", policies)));
    (StagePolicies::with_jitter("sink", live, || 1.0), sender)
}

fn retune(sender: &watch::Sender<Arc<One>>, policies: Policies) {
    sender.send_replace(Arc::new(One("sink", policies)));
}

async fn open(stage: &StagePolicies) {
    let failures = stage.policies().breaker.failure_threshold().get();
    for _ in 0..failures {
        stage.admit().await.failure("broker down");
    }
    assert_eq!(stage.snapshot().breaker, State::Open);
}

/// How long `future` takes by the paused clock.
async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let started = Instant::now();
    let value = future.await;
    (value, started.elapsed())
}

#[tokio::test(start_paused = true)]
async fn whoever_is_seen_to_be_back_is_asked_before_open_for_is_over() {
    let (stage, _sender) = sink(breaker(2, 30 * SECOND, 1));
    open(&stage).await;
    stage.look_again();
    assert_eq!(stage.snapshot().breaker, State::Open, "it has just opened");
    advance(crate::policy::breaker::HOLD).await;
    assert_eq!(stage.snapshot().breaker, State::Open, "nobody was seen");
    stage.look_again();
    assert_eq!(stage.snapshot().breaker, State::HalfOpen);
    // A probe that fails has it wait for whoever is seen again, and for nothing else.
    stage.try_admit().unwrap().failure("still down");
    assert_eq!(stage.snapshot().breaker, State::Open);
    stage.look_again();
    assert_eq!(stage.snapshot().breaker, State::HalfOpen);
}

/// Row 14: without traffic nobody else would ever ask.
#[tokio::test(start_paused = true)]
async fn a_half_open_breaker_that_nobody_calls_is_probed() {
    let (stage, sender) = sink(breaker(2, 30 * SECOND, 3));
    let closed = timeout(3_600 * SECOND, stage.idle_probe(SECOND)).await;
    assert!(closed.is_err(), "nothing to find out");
    open(&stage).await;
    let (permit, took) = timed(stage.idle_probe(SECOND)).await;
    assert_eq!(took, 31 * SECOND);
    permit.failure("still down");
    for _ in 0..3 {
        let (permit, _) = timed(stage.idle_probe(SECOND)).await;
        permit.success();
    }
    assert_eq!(stage.snapshot().breaker, State::Closed);

    // Where somebody calls, that call is the probe.
    open(&stage).await;
    advance(30 * SECOND).await;
    let busy = async {
        loop {
            tokio::time::sleep(SECOND / 2).await;
            drop(stage.try_admit());
            stage.try_admit().unwrap().failure("still down");
            tokio::time::sleep(30 * SECOND).await;
        }
    };
    tokio::select! {
        _ = stage.idle_probe(SECOND) => panic!("it was called all the while"),
        () = busy => {}
        () = tokio::time::sleep(600 * SECOND) => {}
    }
    // Open for less from now on: the probe comes at once.
    stage.reset_breaker();
    open(&stage).await;
    let tuned = async {
        tokio::time::sleep(2 * SECOND).await;
        retune(&sender, breaker(2, SECOND, 3));
        std::future::pending::<()>().await;
    };
    let (_, took) = timed(async {
        tokio::select! {
            permit = stage.idle_probe(SECOND) => drop(permit),
            () = tuned => {}
        }
    })
    .await;
    assert_eq!(took, 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn opens_after_five_failures_probes_after_30_s_and_closes_after_three() {
    let log = Log::default();
    let _capture = log.capture();
    let (stage, _live) = sink(Policies::default());
    for failure in 1..=5 {
        assert_eq!(stage.snapshot().breaker, State::Closed, "at {failure}");
        stage.admit().await.failure("broker down");
    }
    let refused = stage.try_admit().unwrap_err();
    assert_eq!(refused.until, Some(refused.since + 30 * SECOND));
    let text = refused.to_string();
    assert!(text.starts_with("Circuit breaker open: stage=sink since="));

    let (probe, waited) = timed(stage.admit()).await;
    assert_eq!(waited, 30 * SECOND);
    let refused = stage.try_admit().unwrap_err();
    assert_eq!(refused.until, None);
    probe.success();
    stage.admit().await.success();
    assert_eq!(stage.snapshot().breaker, State::HalfOpen);
    stage.admit().await.success();

    let seen = stage.snapshot();
    assert_eq!((seen.breaker, seen.failures), (State::Closed, 0));
    assert_eq!(seen.last_error.as_deref(), Some("broker down"));
    let counters = seen.counters;
    let transitions = (counters.opened, counters.half_opened, counters.closed);
    assert_eq!(transitions, (1, 1, 1));
    assert_eq!((counters.failures, counters.successes), (5, 3));
    // Twice try_admit; the one wait is one refusal however often it looked.
    assert_eq!(counters.refusals, 3);
    assert_eq!(
        log.lines(),
        [
            "WARN breaker opened stage=sink failures=5 open_for=30s error=\"broker down\"",
            "INFO breaker half-open stage=sink",
            "INFO breaker closed stage=sink from=half-open",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_stragglers_result_changes_nothing() {
    let (stage, _live) = sink(breaker(2, 30 * SECOND, 2));
    let (late_success, late_failure, later) = (
        stage.admit().await,
        stage.admit().await,
        stage.admit().await,
    );
    open(&stage).await;
    late_failure.failure("late");
    let probe = stage.admit().await;
    // While the probe is out: neither its slot nor its verdict is a straggler's.
    late_success.success();
    assert!(stage.try_admit().is_err());
    later.failure("later");
    let seen = stage.snapshot();
    assert_eq!((seen.breaker, seen.successes), (State::HalfOpen, 0));
    assert_eq!(seen.last_error.as_deref(), Some("broker down"));
    assert_eq!(seen.counters.stragglers, 3);
    probe.success();
    assert_eq!(stage.snapshot().successes, 1);
}

#[tokio::test(start_paused = true)]
async fn half_open_lets_one_probe_through_at_a_time() {
    let (stage, _live) = sink(breaker(1, SECOND, 3));
    open(&stage).await;
    let probe = stage.admit().await;
    // Two wait; that an hour passes at all shows that they sleep: a task that spins would stop paused time.
    let (first, second) = (stage.admit(), stage.admit());
    tokio::pin!(first, second);
    let both = async { tokio::join!(first.as_mut(), second.as_mut()) };
    assert!(timeout(3600 * SECOND, both).await.is_err());
    // A dropped probe gives its slot back, to one of them.
    drop(probe);
    let next = timeout(SECOND, first).await.unwrap();
    assert!(timeout(SECOND, second.as_mut()).await.is_err());
    next.success();
    let probe = timeout(SECOND, second).await.unwrap();
    probe.failure("still down");
    let seen = stage.snapshot();
    assert_eq!((seen.breaker, seen.failures), (State::Open, 1));
    assert_eq!(seen.since, Instant::now());
    assert_eq!(timed(stage.admit()).await.1, SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_takes_a_retune_at_once() {
    let (stage, live) = sink(breaker(1, 30 * SECOND, 1));
    open(&stage).await;
    let shorter = async {
        advance(10 * SECOND).await;
        retune(&live, breaker(1, 5 * SECOND, 1));
    };
    let ((permit, waited), ()) = tokio::join!(timed(stage.admit()), shorter);
    assert_eq!(waited, 10 * SECOND);
    permit.failure("still down");

    let longer = async {
        advance(2 * SECOND).await;
        retune(&live, breaker(1, 60 * SECOND, 1));
    };
    let ((_permit, waited), ()) = tokio::join!(timed(stage.admit()), longer);
    assert_eq!(waited, 60 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_retune_keeps_state_and_counts() {
    let (stage, live) = sink(breaker(5, 30 * SECOND, 3));
    for _ in 0..4 {
        stage.record_failure("broker down");
    }
    retune(&live, breaker(2, 30 * SECOND, 3));
    let seen = stage.snapshot();
    assert_eq!((seen.breaker, seen.failures), (State::Closed, 4));
    // Past the new threshold already: the next failure opens it, not the retune.
    stage.record_failure("broker down");
    assert_eq!(stage.snapshot().breaker, State::Open);
    advance(20 * SECOND).await;
    retune(&live, breaker(9, 30 * SECOND, 1));
    assert_eq!(stage.snapshot().breaker, State::Open);
    let (permit, waited) = timed(stage.admit()).await;
    assert_eq!(waited, 10 * SECOND);
    permit.success();
    assert_eq!(stage.snapshot().breaker, State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_reset_by_hand_lets_waiters_go() {
    let (stage, _live) = sink(breaker(1, 30 * SECOND, 3));
    let mut states = stage.watch();
    open(&stage).await;
    assert_eq!(*states.borrow_and_update(), State::Open);
    let reset = async {
        advance(SECOND).await;
        stage.reset_breaker();
    };
    let ((_permit, waited), ()) = tokio::join!(timed(stage.admit()), reset);
    assert_eq!(waited, SECOND);
    assert_eq!(*states.borrow_and_update(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn signals_without_a_permit_count_only_while_closed() {
    let (stage, _live) = sink(breaker(2, SECOND, 1));
    stage.record_failure("one");
    stage.record_success();
    stage.record_failure("one again");
    assert_eq!(stage.snapshot().breaker, State::Closed);
    stage.record_failure("two");
    let probe = stage.admit().await;
    stage.record_failure("echo");
    stage.record_success();
    assert_eq!(stage.snapshot().breaker, State::HalfOpen);
    probe.success();
    assert_eq!(stage.snapshot().breaker, State::Closed);
}

#[tokio::test(start_paused = true)]
async fn without_a_config_watcher_waiters_still_sleep() {
    let (stage, live) = sink(breaker(1, 30 * SECOND, 1));
    drop(live);
    open(&stage).await;
    assert_eq!(timed(stage.admit()).await.1, 30 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_a_wait_and_not_an_attempt() {
    let policies = Policies {
        retry: retry(SECOND, Some(7)).retry,
        ..breaker(5, 600 * SECOND, 1)
    };
    let (stage, _live) = sink(policies);
    let (calls, started) = (Cell::new(0), Instant::now());
    let op = || async {
        calls.set(calls.get() + 1);
        match calls.get() {
            7 => Ok(started.elapsed()),
            _ => Err("broker down"),
        }
    };
    let took = stage.run(op, |_| Class::Retryable).await.unwrap();
    // 1 + 2 + 4 + 8 s; the fifth opens it for 600 s, and so does the sixth, a probe.
    assert_eq!(took, 1215 * SECOND);
    let seen = stage.snapshot();
    assert_eq!((seen.breaker, seen.retries), (State::Closed, 6));
    assert_eq!(seen.counters.opened, 2);
}

#[tokio::test(start_paused = true)]
async fn attempts_run_out_and_poison_and_fatal_return_at_once() {
    let (stage, _live) = sink(retry(SECOND, Some(3)));
    for (class, expected) in [
        (Class::Retryable, (3, 3)),
        (Class::Poison, (1, 3)),
        (Class::Fatal, (1, 3)),
    ] {
        let calls = Cell::new(0);
        let op = || async {
            calls.set(calls.get() + 1);
            Err::<(), _>("no")
        };
        assert_eq!(stage.run(op, |_| class).await, Err("no"));
        let failures = stage.snapshot().failures;
        assert_eq!((calls.get(), failures), expected, "{class:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_poison_probe_is_no_verdict() {
    let (stage, _live) = sink(breaker(1, SECOND, 1));
    open(&stage).await;
    let poison = stage.run(|| async { Err::<(), _>("too large") }, |_| Class::Poison);
    assert_eq!(poison.await, Err("too large"));
    assert_eq!(stage.snapshot().breaker, State::HalfOpen);
    let fine = stage.run(|| async { Ok::<_, &str>(()) }, |_| Class::Retryable);
    assert_eq!(fine.await, Ok(()));
    assert_eq!(stage.snapshot().breaker, State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_probe_gives_its_slot_back() {
    let (stage, _live) = sink(breaker(1, SECOND, 1));
    open(&stage).await;
    let hangs = stage.run(std::future::pending::<Result<(), &str>>, |_| {
        Class::Retryable
    });
    assert!(timeout(10 * SECOND, hangs).await.is_err());
    stage.try_admit().unwrap().success();
    assert_eq!(stage.snapshot().breaker, State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_backoff_under_way_takes_a_retune() {
    let (stage, live) = sink(retry(30 * SECOND, None));
    let shorter = async {
        advance(2 * SECOND).await;
        retune(&live, retry(5 * SECOND, None));
    };
    let ((again, waited), ()) = tokio::join!(timed(stage.back_off(1)), shorter);
    assert_eq!((again, waited), (true, 5 * SECOND));

    let last = async {
        advance(SECOND).await;
        retune(&live, retry(5 * SECOND, Some(2)));
    };
    let ((again, waited), ()) = tokio::join!(timed(stage.back_off(2)), last);
    assert_eq!((again, waited), (false, SECOND));
}

#[tokio::test(start_paused = true)]
async fn jitter_shortens_a_backoff_and_never_lengthens_it() {
    let settings = One("sink", retry(8 * SECOND, None));
    let (_sender, live) = watch::channel(Arc::new(settings));
    let half = StagePolicies::with_jitter("sink", live.clone(), || 0.5);
    assert_eq!(timed(half.back_off(1)).await.1, 4 * SECOND);
    assert_eq!(timed(half.back_off(9)).await.1, 15 * SECOND);
    let drawn = StagePolicies::new("sink", live);
    let (_, one) = timed(drawn.back_off(9)).await;
    let (_, other) = timed(drawn.back_off(9)).await;
    assert!(one <= 30 * SECOND && other <= 30 * SECOND);
    // Two equal draws out of 30,000 milliseconds are possible, three are not to be expected.
    assert!(one != other || timed(drawn.back_off(9)).await.1 != one);
}

#[tokio::test(start_paused = true)]
async fn the_rate_limit_holds_over_time_and_a_large_batch_passes_late() {
    let (stage, _live) = sink(rate(10, 5));
    let hundred = async {
        for _ in 0..105 {
            stage.throttle(1).await;
        }
    };
    assert_eq!(timed(hundred).await.1, 10 * SECOND);
    // 30 of a burst of 5: leaves when the bucket is full, and the next one pays for it.
    assert_eq!(timed(stage.throttle(30)).await.1, SECOND / 2);
    assert_eq!(timed(stage.throttle(1)).await.1, 26 * SECOND / 10);
    let seen = stage.snapshot();
    assert_eq!(seen.throttled, 102);
    assert_eq!(seen.throttled_for, 131 * SECOND / 10);
    assert_eq!(seen.rate_level, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_throttled_waiter_takes_a_retune_and_the_level_stays() {
    let (stage, live) = sink(rate(1, 10));
    stage.throttle(10).await;
    let faster = async {
        advance(2 * SECOND).await;
        retune(&live, rate(8, 100));
    };
    // Two tokens by then; the other eight come within a second of the new rate. None were given by the retune.
    let (((), waited), ()) = tokio::join!(timed(stage.throttle(10)), faster);
    assert_eq!(waited, 3 * SECOND);
    let none = async {
        advance(SECOND).await;
        retune(&live, Policies::default());
    };
    let (((), waited), ()) = tokio::join!(timed(stage.throttle(1000)), none);
    assert_eq!(waited, SECOND);
    assert_eq!(stage.snapshot().rate_level, None);
}

/// Calls for `piece` again and again until `until`, busy for a while between two calls as a real caller is.
async fn press(stage: &StagePolicies, piece: u32, busy: Duration, until: Instant, log: &Served) {
    while Instant::now() < until {
        stage.throttle(piece).await;
        log.borrow_mut().push((Instant::now(), u64::from(piece)));
        tokio::time::sleep(busy).await;
    }
}

type Served = std::cell::RefCell<Vec<(Instant, u64)>>;

/// From 1/s to 100,000/s, by one caller or several: within 5 % of what is set, and no more at once than that
/// allows. The paused clock counts in milliseconds, so that wake-ups are late at high rates, as in life.
#[tokio::test(start_paused = true)]
async fn what_goes_through_is_what_is_set() {
    for (per_second, burst) in [
        (1, 1),
        (3, 1),
        (7, 20),
        (200, 1),
        (200, 200),
        (1_700, 64),
        (30_000, 1),
        (100_000, 1),
        (100_000, 100_000),
    ] {
        for callers in [1, 4] {
            let (stage, _live) = sink(rate(per_second, burst));
            let limit = stage.policies().rate_limit.unwrap();
            let piece = limit.at_once().get().min(500);
            let busy = (SECOND * piece / per_second / 2).min(SECOND / 200);
            // What is there after a pause is not the rate.
            stage.throttle(burst).await;
            let until = Instant::now() + (100 * SECOND / per_second).max(2 * SECOND);
            let log = Served::default();
            let press = || press(&stage, piece, busy, until, &log);
            futures::future::join_all((0..callers).map(|_| press())).await;

            let served = log.into_inner();
            let told = format!("{per_second}/s, burst {burst}, {callers} callers");
            let (first, last) = (served[0], served[served.len() - 1]);
            let total: u64 = served[1..].iter().map(|(_, n)| n).sum();
            let share = total as f64 / (last.0 - first.0).as_secs_f64() / f64::from(per_second);
            println!("{told}: {:.1} % of what is set", 100.0 * share);
            assert!((0.95..1.05).contains(&share), "{told}: {share}");
            for (i, (from, _)) in served.iter().enumerate() {
                let mut sum = 0;
                for (at, n) in served[i..]
                    .iter()
                    .take_while(|(at, _)| *at - *from < SECOND)
                {
                    sum += n;
                    let most = f64::from(burst + piece)
                        + f64::from(per_second) * ((*at - *from).as_secs_f64() + 0.021);
                    assert!(sum as f64 <= most, "{told}: {sum} in {:?}", *at - *from);
                }
            }
        }
    }
}

/// Pauses that an outage has grown are not waited out when it is over, and somebody is there to probe.
#[tokio::test(start_paused = true)]
async fn a_pause_ends_when_the_breaker_is_open_no_longer() {
    let policies = Policies {
        retry: retry(20 * SECOND, None).retry,
        ..breaker(1, 5 * SECOND, 1)
    };
    let (stage, _live) = sink(policies);
    open(&stage).await;
    let ((goes_on, waited), probe) = tokio::join!(timed(stage.back_off(9)), stage.admit());
    assert_eq!((goes_on, waited), (true, 5 * SECOND));
    let closes = async {
        tokio::time::sleep(SECOND).await;
        probe.success();
    };
    let ((goes_on, waited), ()) = tokio::join!(timed(stage.back_off(9)), closes);
    assert_eq!((goes_on, waited), (true, SECOND));
    // One that opens meanwhile is no reason to go on sooner.
    let opens = async {
        tokio::time::sleep(SECOND).await;
        open(&stage).await;
    };
    let ((goes_on, waited), ()) = tokio::join!(timed(stage.back_off(1)), opens);
    assert_eq!((goes_on, waited), (true, 20 * SECOND));
}

/// A batch larger than the burst passes, late, and whoever gives up waiting costs nobody else anything.
#[tokio::test(start_paused = true)]
async fn who_leaves_the_line_takes_nothing_with_it() {
    let (stage, _live) = sink(rate(10, 10));
    stage.throttle(10).await;
    let gives_up = timeout(SECOND / 2, stage.throttle(1000));
    let (gone, ((), waited)) = tokio::join!(gives_up, timed(stage.throttle(10)));
    assert!(gone.is_err());
    assert_eq!(waited, SECOND);
    // It was served and not polled since: what it took comes back.
    let mut unpolled = Box::pin(stage.throttle(5));
    assert!(futures::poll!(&mut unpolled).is_pending());
    advance(SECOND / 2).await;
    assert_eq!(stage.snapshot().rate_level, Some(0));
    drop(unpolled);
    assert_eq!(stage.snapshot().rate_level, Some(5));
}

#[tokio::test(start_paused = true)]
async fn small_takers_do_not_overtake_a_large_one() {
    let (stage, _live) = sink(rate(1, 10));
    stage.throttle(10).await;
    let started = Instant::now();
    let at = async |n| {
        stage.throttle(n).await;
        started.elapsed()
    };
    let (large, small) = tokio::join!(at(10), at(1));
    assert_eq!((large, small), (10 * SECOND, 11 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_removed_stage_keeps_its_last_policies_and_an_unknown_one_has_the_defaults() {
    let with = One("transform.router", breaker(9, SECOND, 9));
    let (sender, live) = watch::channel(Arc::new(with));
    let stage = StagePolicies::new("transform.router", live.clone());
    retune(&sender, Policies::default());
    assert_eq!(stage.policies(), breaker(9, SECOND, 9));
    let unknown = StagePolicies::new("transform.other", live);
    assert_eq!(unknown.policies(), Policies::default());
}

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn capture(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn lines(&self) -> Vec<String> {
        let bytes = self.0.lock();
        let text = std::str::from_utf8(&bytes).unwrap();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
