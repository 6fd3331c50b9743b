//! Stages that crash, hang and are stopped, by the real program: only the stage at fault restarts, too many crashes
//! fail it, a stop drains or says that it could not, and nothing is lost or reordered in any of it.

use std::time::{Duration, Instant};

use scylla_double::{Action, Fault, Operation};
use testkit::machine::free_port;
use testkit::process;
use testkit::process::{LONG, Running, World, asked, complete_and_ordered, keys};

/// The stages that have a child in each lane, upstream first, as the log and the metrics call them.
const STAGES: [(&str, &str); 3] = [
    ("source", "source"),
    ("transform", "transform.outbox-router"),
    ("sink", "sink"),
];

const KEYS: usize = 16;
const EVENTS: u32 = 80;

/// Small batches, so that a fault point is passed often. A busy machine takes a second for a moment's work, and that is no hang.
async fn world(supervision: &str) -> World {
    let extra = format!(
        "[health]\ncheck_interval = \"100ms\"\nstalled_after = \"4s\"\n\
         [policies.supervision]\nbackoff = \"20ms\"\n{supervision}"
    );
    let mut world = World::new(&extra).await;
    world.set("pipeline.batch_size", 8);
    world
}

async fn restarts(running: &Running, stage: &str) -> f64 {
    running
        .metrics()
        .await
        .stage("penstock_restarts_total", stage)
}

/// Everything arrives; what each stage is restarted for is told by the log.
async fn survives(point: &str, stage: &str, faults: &str, said: &[&str]) {
    let world = world("").await;
    let keys = keys(KEYS);
    let running = world.start_faulty(1, &format!("stage::{point}={faults}"));
    world.write(&keys, 0, EVENTS).await;
    world.await_records(KEYS * EVENTS as usize, LONG, &running);
    for text in said {
        running.await_line(text, LONG);
    }
    let metrics = running.metrics().await;
    for (_, other) in STAGES.iter().chain([&("", "dead_letter")]) {
        let expected = if *other == stage { said.len() } else { 0 };
        let restarts = metrics.stage("penstock_restarts_total", other);
        assert_eq!(restarts, expected as f64, "{other}\n{}", running.text());
    }
    running.stop_cleanly();
    let repeats = complete_and_ordered(&world.seen(), &keys, EVENTS);
    println!(
        "{stage}: {} crashes, {repeats} records repeated",
        said.len()
    );
    // What the sink had not yet been acknowledged is sent again; the others' crashes are nobody's but theirs.
    assert!(repeats == 0 || stage == "sink", "{stage}: {repeats}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_panics_fails_and_hangs_restarts_alone() {
    // On the way there: as often as this the point is passed before a fault.
    let faults = "6*off->1*panic(a bug)->6*off->1*return(a full disk)->6*off->1*return(hang)->off";
    let said = [
        "panicked: a bug",
        "fault point: a full disk",
        "hung: at one",
    ];
    let [source, transform, sink] = STAGES;
    tokio::join!(
        survives(source.0, source.1, faults, &said),
        survives(transform.0, transform.1, faults, &said),
        survives(sink.0, sink.1, faults, &said),
    );
}

/// While one shard's child is down, the other shard goes on.
#[tokio::test(flavor = "multi_thread")]
async fn the_other_shard_goes_on_meanwhile() {
    for (point, stage) in STAGES {
        // The crashed child stays down for longer than the test looks.
        let world = world("within = \"600s\"\n").await;
        let (keys, half) = (keys(2 * KEYS), EVENTS / 2);
        let mut world = world;
        world.set("policies.supervision.backoff", "20s");
        let running = world.start_faulty(1, &format!("stage::{point}=4*off->1*panic->off"));
        running.await_line("all supervised stages started", LONG);
        world.write(&keys, 0, half).await;
        running.await_line("child crashed", LONG);
        let text = running.text();
        let crashed = text
            .lines()
            .find_map(|l| l.split("child=").nth(1))
            .and_then(|l| l.split_whitespace().next())
            .expect("the log names the child");
        let down: u32 = crashed
            .rsplit('/')
            .next()
            .and_then(|n| n.trim_matches('"').parse().ok())
            .expect("a shard's number");
        let other = format!("shard=\"{}\"", 1 - down);
        let done = |m: &process::Metrics| m.sum("penstock_changes_done_total", &[&other]);
        let before = done(&running.metrics().await);
        world.write(&keys, half, half).await;
        running
            .await_metrics("the other shard goes on", Duration::from_secs(15), |m| {
                done(m) > before
            })
            .await;
        let restarted = running.metrics().await;
        assert_eq!(restarted.stage("penstock_restarts_total", stage), 1.0);
        // The mended one takes up where it was.
        drop(running);
        let second = world.start(2);
        world.await_records(keys.len() * EVENTS as usize, LONG, &second);
        second.stop_cleanly();
        complete_and_ordered(&world.seen(), &keys, EVENTS);
    }
}

/// Five restarts in the window are granted; the sixth crash fails the stage.
async fn gives_up(point: &str, stage: &str, on_failed: &str) {
    let world = world(&format!("on_failed = \"{on_failed}\"\n")).await;
    let keys = keys(KEYS);
    let mut running = world.start_faulty(1, &format!("stage::{point}=6*off->panic(a bug)"));
    world.write(&keys, 0, EVENTS).await;
    running.await_line("stage failed: too many restarts", LONG);
    let text = running.text();
    assert_eq!(text.matches("child crashed").count(), 5, "{stage}\n{text}");
    assert!(text.contains("root_cause=\"panicked: a bug\""), "{text}");
    if on_failed == "shutdown" {
        assert_eq!(running.wait(LONG).code(), Some(1), "{}", running.text());
    } else {
        // At the next look at it.
        let deadline = Instant::now() + LONG;
        let critical = stage != "transform.outbox-router";
        loop {
            let (code, health) = running.penstock(&["health"]);
            let line = health.lines().find(|l| l.starts_with(stage));
            let line = line.expect("the stage's line");
            let is_told = line.contains("unhealthy") && line.contains("failed: panicked: a bug");
            if code == Some(i32::from(critical)) && is_told {
                break;
            }
            assert!(Instant::now() < deadline, "{code:?} {health}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (_, status) = running.penstock(&["status", "--json"]);
        let others = status.matches("\"state\": \"running\"").count();
        assert!(others >= 5, "the other stages' children run: {status}");
        assert_eq!(restarts(&running, stage).await, 5.0);
        // What it holds for a stage that is gone it lets go of at once: the deadline is 30 s.
        running.signal("-TERM");
        let asked = Instant::now();
        let code = running.wait(Duration::from_secs(20)).code();
        let left = running.text().contains("changes were left in flight");
        assert_eq!(code, Some(if left { 75 } else { 0 }), "{}", running.text());
        println!(
            "{stage}: stopped {:.1?} after it was asked",
            asked.elapsed()
        );
    }
    let mended = world.start(2);
    world.await_records(KEYS * EVENTS as usize, LONG, &mended);
    mended.stop_cleanly();
    complete_and_ordered(&world.seen(), &keys, EVENTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sixth_crash_isolates_the_stage() {
    for (point, stage) in STAGES {
        gives_up(point, stage, "isolate").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sixth_crash_stops_the_process() {
    for (point, stage) in STAGES {
        gives_up(point, stage, "shutdown").await;
    }
}

/// Which children one crash of the transforms restarts, strategy by strategy.
#[tokio::test(flavor = "multi_thread")]
async fn the_strategy_says_who_else_restarts() {
    for strategy in ["one_for_one", "rest_for_one", "one_for_all"] {
        let world = world(&format!("strategy = \"{strategy}\"\n")).await;
        let keys = keys(KEYS);
        let running = world.start_faulty(1, "stage::transform=6*off->1*panic->off");
        world.write(&keys, 0, EVENTS).await;
        world.await_records(KEYS * EVENTS as usize, LONG, &running);
        let metrics = running.metrics().await;
        let restarts = |child: &str| {
            let label = format!("child=\"{child}\"");
            metrics.sum("penstock_restarts_total", &[&label]) as u32
        };
        let crashed = [restarts("transform/0"), restarts("transform/1")];
        // Downstream starts first, so the sources come after the transforms, and the second shard after the first.
        let expected: &[(&str, u32)] = match (strategy, crashed) {
            ("one_for_one", [1, 0] | [0, 1]) => &[("sink/0", 0), ("source/0", 0), ("source/1", 0)],
            ("rest_for_one", [1, 1] | [0, 1]) => &[("sink/0", 0), ("source/0", 1), ("source/1", 1)],
            ("one_for_all", [1, 1]) => &[("sink/0", 1), ("source/0", 1), ("source/1", 1)],
            other => panic!("{other:?}\n{}", running.text()),
        };
        for (child, n) in expected.iter().chain(&[("admin", 0), ("log", 0)]) {
            assert_eq!(
                restarts(child),
                *n,
                "{strategy}: {child}\n{}",
                running.text()
            );
        }
        println!("{strategy}: transforms {crashed:?}, others {expected:?}");
        running.stop_cleanly();
        complete_and_ordered(&world.seen(), &keys, EVENTS);
    }
}

/// Long form: `cargo xtask proof terms`.
#[tokio::test(flavor = "multi_thread")]
async fn stops_under_load_lose_and_repeat_nothing() {
    let rounds = asked("PENSTOCK_TEST_ROUNDS", 4);
    let world = World::new("").await;
    let keys = keys(16);
    let (mut written, mut behind) = (0, 0);
    let mut took = Duration::ZERO;
    for round in 0..rounds {
        let mut running = world.start(round);
        running.await_line("all supervised stages started", LONG);
        // Any moment will do, so the clock is as good a dice as another.
        let dice = uuid::Uuid::new_v4().as_bytes()[0];
        let moment = Instant::now() + Duration::from_millis(u64::from(dice) * 4);
        // Written to before, while and after it is asked.
        let mut asked = None;
        while asked.is_none_or(|at: Instant| at.elapsed() < Duration::from_millis(150)) {
            world.write(&keys, written, 10).await;
            written += 10;
            if asked.is_none() && Instant::now() >= moment {
                running.signal("-TERM");
                asked = Some(Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let asked = asked.expect("the loop ends after it");
        assert_eq!(running.wait(LONG).code(), Some(0), "{}", running.text());
        took = took.max(asked.elapsed());
        behind += u32::from(world.records().len() < keys.len() * written as usize);
        for step in [
            "stop reading",
            "drain transforms",
            "flush and commit",
            "close",
        ] {
            assert!(running.text().contains(step), "{}", running.text());
        }
    }
    let total = written;
    let last = world.start(rounds);
    world.await_records(keys.len() * total as usize, LONG, &last);
    last.stop_cleanly();
    let repeats = complete_and_ordered(&world.seen(), &keys, total);
    println!(
        "{rounds} times SIGTERM under load: each exit code 0, at most {took:.1?} later, {behind} times with \
         changes yet to be read; {} changes, 0 lost, {repeats} repeated",
        keys.len() as u32 * total
    );
    assert_eq!(repeats, 0);
    assert!(behind > 0, "there was no load");
}

/// A stage that hangs keeps the drain: at the deadline, or when asked a second time, the process stops all the same
/// and says so by its exit code.
async fn forced(point: &str, child: &str, deadline: &str, asked_twice: bool) {
    let mut world = World::new("").await;
    world.set("shutdown.timeout", deadline);
    world.set("pipeline.batch_size", 8);
    let keys = keys(KEYS);
    let mut running = world.start_faulty(1, &format!("stage::{point}=6*off->return(hang)"));
    world.write(&keys, 0, EVENTS).await;
    running.await_line("all supervised stages started", LONG);
    // Both shards hang before they are through: for so long nothing moves any more.
    let moved = |m: &process::Metrics| {
        ["read", "transformed", "done"]
            .map(|what| m.sum(&format!("penstock_changes_{what}_total"), &[]))
    };
    let mut last = (Instant::now(), 0, [0.0; 3]);
    running
        .await_metrics("everything hangs", LONG, |m| {
            if moved(m) != last.2 {
                last = (Instant::now(), 0, moved(m));
            }
            // It answers all the while, so the machine has let it run.
            last.1 += 1;
            last.0.elapsed() > Duration::from_millis(1_500) && last.1 > 20
        })
        .await;
    let done = last.2[2];
    assert!(done < f64::from(KEYS as u32 * EVENTS), "{}", running.text());
    running.signal("-TERM");
    let asked = Instant::now();
    running.await_line("stopping", LONG);
    if asked_twice {
        // Two that come together are one stop.
        tokio::time::sleep(Duration::from_millis(300)).await;
        running.signal("-TERM");
    }
    let code = running.wait(LONG / 2).code();
    let (took, text) = (asked.elapsed(), running.text());
    assert_eq!(code, Some(75), "{text}");
    let line = text
        .lines()
        .find(|l| l.contains("stopped before everything was drained"))
        .unwrap_or_else(|| panic!("{text}"));
    // The stage that hangs is named, be it that the drain waits for it or for one that waits for it.
    let at_work = line.split("at_work=").nth(1).unwrap_or_default();
    assert!(at_work.contains(child), "{line}");
    let restart = world.start(2);
    world.await_records(KEYS * EVENTS as usize, LONG, &restart);
    restart.stop_cleanly();
    let repeats = complete_and_ordered(&world.seen(), &keys, EVENTS);
    println!(
        "hung {point}: exit code 75 after {took:.1?}, and the restart made good ({repeats} repeated)\n{line}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_stage_is_forced_at_the_deadline() {
    forced("source", "source/", "1s", false).await;
    forced("transform", "transform/", "1s", false).await;
    forced("sink", "sink/", "1s", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_stops_at_once() {
    forced("sink", "sink/", "60s", true).await;
}

/// A rate limit holds its own stage to its rate, and through the queues, which are short, all before it.
#[tokio::test(flavor = "multi_thread")]
async fn each_stage_keeps_its_own_rate_limit() {
    // Far below what a busy machine gets done, or nobody would have to wait.
    let (limit, events) = ("60/s", 14);
    for (_, limited) in STAGES {
        let mut world = world("").await;
        world.set(&format!("{limited}.rate_limit"), limit);
        let keys = keys(KEYS);
        world.write(&keys, 0, events).await;
        let began = Instant::now();
        let running = world.start(1);
        world.await_records(KEYS * events as usize, LONG, &running);
        let took = began.elapsed();
        // The burst is a second's worth.
        let least = Duration::from_millis(2_500);
        assert!(
            took >= least,
            "{limited}: {} changes in {took:?}",
            KEYS as u32 * events
        );
        let metrics = running.metrics().await;
        for (_, stage) in STAGES {
            let waits = metrics.stage("penstock_throttled_total", stage);
            assert_eq!(
                waits > 0.0,
                stage == limited,
                "{stage} with {limited} limited"
            );
        }
        running.stop_cleanly();
        assert_eq!(complete_and_ordered(&world.seen(), &keys, events), 0);
    }
}

/// ScyllaDB refuses every read for a while: by default that is waited out, for ever; with `max_attempts` the stage
/// gives up on it, which is a crash.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_database_is_waited_out_unless_attempts_are_bounded() {
    for bounded in [false, true] {
        let mut world = world("").await;
        world.set("source.breaker.open_for", "300ms");
        world.set("source.retry.max", "100ms");
        if bounded {
            world.set("source.retry.max_attempts", 3);
        }
        let keys = keys(KEYS);
        world.write(&keys, 0, EVENTS / 2).await;
        let running = world.start(1);
        world.await_records(KEYS * EVENTS as usize / 2, LONG, &running);
        let refuse = Fault::new(Action::Overloaded)
            .on(Operation::Select)
            .on_table("ks.outbox_scylla_cdc_log");
        let refused = world.node.faults().inject(refuse);
        world.write(&keys, EVENTS / 2, EVENTS / 2).await;
        if bounded {
            running.await_line("child crashed", LONG);
        } else {
            running
                .await_metrics("it is probed again and again", LONG, |m| {
                    m.stage("penstock_breaker_half_opened_total", "source") >= 2.0
                })
                .await;
        }
        let during = running.metrics().await;
        let restarts = during.stage("penstock_restarts_total", "source");
        assert_eq!(restarts > 0.0, bounded, "{}", running.text());
        assert!(during.stage("penstock_retries_total", "source") > 0.0);
        assert_eq!(during.stage("penstock_breaker_opened_total", "sink"), 0.0);
        world.node.faults().clear(refused);
        world.await_records(KEYS * EVENTS as usize, LONG, &running);
        running.stop_cleanly();
        assert_eq!(complete_and_ordered(&world.seen(), &keys, EVENTS), 0);
    }
}

/// The admin interface moves while a request to the old one, the very one that asked for it, is under way.
#[tokio::test(flavor = "multi_thread")]
async fn the_admin_interface_moves_without_losing_the_answer() {
    let mut world = World::new("").await;
    world.set("reload.watch", false);
    let running = world.start(1);
    running.await_line("all supervised stages started", LONG);
    let moved = format!("127.0.0.1:{}", free_port());
    let text = std::fs::read_to_string(world.config()).expect("the file");
    let text = text.replace("listen = \"127.0.0.1:0\"", &format!("listen = \"{moved}\""));
    std::fs::write(world.config(), text).expect("written");
    let old = running.admin();
    let answer = reqwest::Client::new()
        .post(format!("http://{old}/-/reload"))
        .timeout(LONG)
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 200, "{}", running.text());
    let ready = reqwest::get(format!("http://{moved}/readyz")).await;
    assert_eq!(ready.expect("it listens").status(), 200);
    let gone = reqwest::get(format!("http://{old}/readyz")).await;
    assert!(gone.is_err(), "the old address is free");
    let status = reqwest::get(format!("http://{moved}/status")).await;
    let status = status.expect("an answer").text().await.expect("text");
    assert_eq!(status.matches("\"name\":\"admin\"").count(), 1, "{status}");
    running.stop_cleanly();
}
