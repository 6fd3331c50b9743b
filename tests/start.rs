//! What a record waits for that nobody is ahead of: the start of the process, and company.

use std::time::{Duration, Instant};

use scylla_double::{Action, Fault, Operation};
use testkit::broker::{Flow, Follower, Valve};
use testkit::machine::Span;
use testkit::process::{LONG, Running, Setup, World, keys};

/// Starts that are measured, after one that makes the topics and compiles the plugins.
const STARTS: u32 = 5;
/// librdkafka asks for a producer's id, and for a transaction's coordinator, again only after half a second. Shards that
/// were opened within this time have met no such pause, and no start may.
const BOUND: Duration = Duration::from_millis(300);
/// … but for what a machine that is busy with something else has held up in it. Where that is not told, all are done again.
const SERIES: u32 = 3;

/// What the starts took, sorted.
struct Starts {
    /// From the process until the first record, and what of it the machine held up.
    first: Vec<(Duration, Duration)>,
    /// … of it, from having connected until the shards were open.
    opened: Vec<(Duration, Duration)>,
}

/// `PENSTOCK_TEST_TIMELINE`: print what the fastest start logs, at debug.
async fn starts(delivery: &str) -> Starts {
    let timeline = std::env::var_os("PENSTOCK_TEST_TIMELINE").is_some();
    let mut world = World::new("").await;
    world.set("pipeline.delivery", delivery);
    world.set("source.safety_interval", "10ms");
    if timeline {
        world.set(
            "log.filter",
            "debug,h2=info,hyper=info,scylla=info,tokio=info",
        );
    }
    let keys = keys(8);
    let follower = Follower::start(&world.cluster.brokers, &world.topic());
    let (mut written, mut took, mut opened) = (0, Vec::new(), Vec::new());
    for round in 0..=STARTS {
        let before = follower.arrivals().len();
        world.write(&keys, written, 10).await;
        written += 10;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let began = Instant::now();
        let mut running = world.start(round);
        let span = Span::of(&running);
        let all = keys.len() * written as usize;
        let first = loop {
            let arrivals = follower.arrivals();
            if arrivals.len() >= all {
                break arrivals[before];
            }
            assert!(began.elapsed() < LONG, "{}", running.text());
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let held_up = span.held_up();
        running.signal("-TERM");
        assert_eq!(running.wait(LONG).code(), Some(0), "{}", running.text());
        let first = first.duration_since(began);
        if timeline {
            println!(
                "--- {delivery}, start {round}: {first:?}\n{}",
                running.text()
            );
        }
        if round > 0 {
            took.push((first, held_up));
            opened.push((opening(&running.text()), held_up));
        }
    }
    for (key, numbers) in follower.numbers() {
        assert!(numbers.iter().copied().eq(0..written), "{key}: {numbers:?}");
    }
    took.sort_unstable();
    opened.sort_unstable();
    println!(
        "{delivery}: first record after {took:?}, shards open within {opened:?}, each with what the machine held up"
    );
    Starts {
        first: took,
        opened,
    }
}

/// What the log says that it took to open the shards.
fn opening(log: &str) -> Duration {
    let line = log.lines().find(|l| l.contains("shards opened"));
    let took = line.and_then(|l| l.rsplit_once("took=")?.1.split_whitespace().next());
    let took = took.unwrap_or_else(|| panic!("no shards were opened:\n{log}"));
    let digits = took.trim_end_matches(|c: char| c.is_alphabetic());
    let seconds = match &took[digits.len()..] {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        unit => panic!("{unit}: {line:?}"),
    };
    Duration::from_secs_f64(digits.parse::<f64>().expect("a number") * seconds)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_record_waits_for_no_pause_of_the_client() {
    for delivery in ["exactly-once", "at-least-once"] {
        let mut series = 0;
        loop {
            let Starts { first, opened } = starts(delivery).await;
            series += 1;
            if opened
                .iter()
                .all(|(took, held_up)| *took < BOUND + *held_up)
            {
                let (least, held_up) = first[0];
                assert!(least < 2 * BOUND + held_up, "{delivery}: {first:?}");
                break;
            }
            assert!(series < SERIES, "{delivery}: {opened:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_can_join_is_sent_at_once() {
    for delivery in ["exactly-once", "at-least-once"] {
        let mut world = World::new("").await;
        world.set("pipeline.delivery", delivery);
        world.set("source.safety_interval", "10ms");
        // Each record, and each checkpoint, would wait so long.
        world.set(r#"sink.properties."linger.ms""#, 25_000);
        let keys = keys(1);
        let follower = Follower::start(&world.cluster.brokers, &world.topic());
        let mut running = world.start(0);
        let began = Instant::now();
        for number in 0..3 {
            world.write(&keys, number, 1).await;
            while follower.arrivals().len() <= number as usize {
                assert!(began.elapsed() < LONG / 3, "{delivery}: {}", running.text());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        running.signal("-TERM");
        assert_eq!(running.wait(LONG).code(), Some(0), "{}", running.text());
        println!("{delivery}: all within {:?}", began.elapsed());
        assert!(began.elapsed() < LONG / 2, "{delivery}");
    }
}

/// What the program that has no answer says: in its log, and in health, whose own interval is an hour.
async fn await_word(running: &Running, what: &str) {
    running.await_line(what, LONG);
    let reason = what.trim_start_matches("what=").replace('"', "");
    let url = format!("http://{}/health", running.admin());
    let began = Instant::now();
    loop {
        let health = reqwest::get(&url).await.expect("an answer");
        let health = health.text().await.expect("text");
        if health.contains(&reason) {
            return;
        }
        assert!(began.elapsed() < LONG, "{health}\n{}", running.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Nothing else looks at health while the test runs.
const SELDOM: &str = "[health]\ncheck_interval = \"1h\"\n";

/// Starts while requests of a kind, by Kafka's number of them, get no answer.
async fn stalled(world: &World, valve: &Valve, round: u32, request: u16, what: &str) -> Running {
    valve.stall(Some(request));
    let running = world.start(round);
    await_word(&running, what).await;
    valve.stall(None);
    running
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_says_what_it_waits_for_whatever_brokers_do_not_answer() {
    let valve = Valve::start(Flow::Open);
    let world = World::with(Setup {
        brokers: Some(valve.brokers.clone()),
        extra: SELDOM.to_owned(),
        ..Setup::default()
    })
    .await;
    let keys = keys(4);
    world.write(&keys, 0, 5).await;
    for (round, (request, what)) in (1..).zip([
        (3, r#"what="reach the brokers""#),
        (32, r#"what="look at the checkpoint topic""#),
        (10, r#"what="take the shards""#),
        (22, r#"what="take the shards""#),
        (26, r#"what="commit whose the shards are""#),
        (1, r#"what="read the checkpoints""#),
    ]) {
        let running = stalled(&world, &valve, round, request, what).await;
        running.await_line("all supervised stages started", LONG);
        world.write(&keys, 5 * round, 5).await;
        world.await_records(4 * 5 * (round as usize + 1), LONG, &running);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_and_a_rebalance_say_what_they_wait_for() {
    let valve = Valve::start(Flow::Open);
    let mut world = World::with(Setup {
        brokers: Some(valve.brokers.clone()),
        extra: SELDOM.to_owned(),
        ..Setup::default()
    })
    .await;
    let keys = keys(4);
    world.write(&keys, 0, 5).await;
    let running = world.start(1);
    world.await_records(4 * 5, LONG, &running);
    valve.stall(Some(22));
    let text = std::fs::read_to_string(world.config()).expect("pipeline.toml");
    world.save(&text.replace(
        "type = \"redpanda\"",
        "type = \"redpanda\"\nproperties = { \"linger.ms\" = \"7\" }",
    ));
    await_word(&running, r#"what="take the shards""#).await;
    valve.stall(None);
    world.write(&keys, 5, 5).await;
    world.await_records(4 * 10, LONG, &running);
    running.stop_cleanly();

    world.set("pipeline.instances", "shared");
    let member = stalled(&world, &valve, 2, 11, "waiting for the group's share").await;
    drop(member);
    let member = stalled(&world, &valve, 3, 22, r#"what="take the shards""#).await;
    world.write(&keys, 10, 5).await;
    world.await_records(4 * 15, LONG, &member);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_says_what_it_waits_for_whatever_the_database_does_not_answer() {
    let mut world = World::new(SELDOM).await;
    let keys = keys(4);
    world.write(&keys, 0, 5).await;
    let generations = "system_distributed.cdc_generation_timestamps";
    let streams = "system_distributed.cdc_streams_descriptions_v2";
    for (round, (table, what)) in (1..).zip([
        (generations, r#"what="read the stream generations""#),
        (streams, r#"what="read the streams of a generation""#),
    ]) {
        let silence = Fault::new(Action::Silence).on(Operation::Select);
        let silence = world.node.faults().inject(silence.on_table(table));
        let running = world.start(round);
        await_word(&running, what).await;
        world.node.faults().clear(silence);
        world.write(&keys, 5 * round, 5).await;
        world.await_records(4 * 5 * (round as usize + 1), LONG, &running);
    }
    let valve = Valve::before(world.node.addr(), Flow::Silent);
    world.set("source.nodes", format!("[\"{}\"]", valve.brokers));
    let running = world.start(3);
    await_word(&running, r#"what="connect to ScyllaDB""#).await;
    valve.set(Flow::Open);
    running.await_line("all supervised stages started", LONG);
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_that_are_compiled_at_each_start_are_told_of_once() {
    let world = World::new("").await;
    // Nobody makes a folder below a file, whoever runs this.
    let file = tempfile::NamedTempFile::new().expect("a file");
    let file = file.path().to_str().expect("UTF-8");
    let running = world.start_with(0, &[("XDG_CACHE_HOME", file)]);
    running.await_line("all supervised stages started", LONG);
    let text = running.text();
    let told = text
        .lines()
        .filter(|l| l.contains("compiled plugins are not kept"));
    let told: Vec<&str> = told.collect();
    assert_eq!(told.len(), 1, "{text}");
    assert!(
        told[0].contains(file) && told[0].contains("XDG_CACHE_HOME"),
        "{told:?}"
    );
    running.stop_cleanly();

    let running = world.start(1);
    running.await_line("all supervised stages started", LONG);
    assert_eq!(running.count("compiled plugins are not kept"), 0);
    running.stop_cleanly();
}
