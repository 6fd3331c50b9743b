//! The whole way, by the real program: ScyllaDB's stand-in → penstock → a broker, each in its own place.

#[path = "end_to_end/workload.rs"]
mod workload;

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use testkit::broker::Follower;
use testkit::machine::Span;
use testkit::process::{LONG, Running, World, complete_and_ordered};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn changes_arrive_in_order_and_a_clean_stop_repeats_nothing() {
    let world = World::new("").await;
    let keys: Vec<Uuid> = (0..8).map(|_| Uuid::new_v4()).collect();
    world.write(&keys, 0, 50).await;
    let mut first = world.start(1);
    first.await_line("all supervised stages started", LONG);
    world.await_records(8 * 50, LONG, &first);
    first.signal("-TERM");
    assert_eq!(first.wait(LONG).code(), Some(0), "{}", first.text());

    world.write(&keys, 50, 50).await;
    let mut second = world.start(2);
    world.await_records(8 * 100, LONG, &second);
    second.signal("-TERM");
    assert_eq!(second.wait(LONG).code(), Some(0), "{}", second.text());

    let repeats = complete_and_ordered(&world.seen(), &keys, 100);
    assert_eq!(repeats, 0, "a clean stop repeats nothing");
    let record = &world.records()[0];
    assert!(record.header("penstock-position").is_some());
    for header in ["penstock-table", "penstock-operation", "traceparent"] {
        assert!(record.header(header).is_none(), "{header} is not chosen");
    }
}

/// Short form of `cargo xtask restarts`: stops and kills at random moments, under load.
#[tokio::test(flavor = "multi_thread")]
async fn stops_and_kills_under_load_lose_nothing() {
    let rounds: u32 = std::env::var("PENSTOCK_TEST_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(6);
    let world = World::new("").await;
    let keys: Vec<Uuid> = (0..16).map(|_| Uuid::new_v4()).collect();
    let per_round = 60;
    let (mut kills, mut stops) = (0, 0);
    for round in 0..rounds {
        let mut running = world.start(round);
        world.write(&keys, round * per_round, per_round).await;
        // Any moment will do, so the clock is as good a dice as another.
        let pause = Uuid::new_v4().as_bytes()[0];
        std::thread::sleep(Duration::from_millis(u64::from(pause) * 3));
        if pause.is_multiple_of(2) {
            running.signal("-KILL");
            running.wait(LONG);
            kills += 1;
        } else {
            running.signal("-TERM");
            match running.wait(LONG).code() {
                // Before the handler is there a stop is a kill.
                None => kills += 1,
                code => {
                    assert_eq!(code, Some(0), "{}", running.text());
                    stops += 1;
                }
            }
        }
    }
    let total = rounds * per_round;
    let mut last = world.start(rounds);
    world.await_records(keys.len() * total as usize, LONG, &last);
    // All may have been there before it: a signal is to find its handler.
    last.await_metrics("it is up", LONG, |_| true).await;
    last.signal("-TERM");
    assert_eq!(last.wait(LONG).code(), Some(0), "{}", last.text());
    let repeats = complete_and_ordered(&world.seen(), &keys, total);
    println!(
        "{rounds} rounds: {stops} stops, {kills} kills, {} changes, {repeats} records repeated",
        keys.len() as u32 * total
    );
}

/// What a transaction may cost a reader of a quiet pipeline.
const COMMIT: Duration = Duration::from_millis(20);

async fn transactions(brokers: &str) -> FutureProducer {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("transactional.id", Uuid::new_v4().to_string())
        .set("linger.ms", "0")
        .create()
        .expect("a producer");
    let to_init = producer.clone();
    tokio::task::spawn_blocking(move || to_init.init_transactions(LONG))
        .await
        .expect("no panic")
        .expect("its id");
    producer
}

/// What a transaction of one record takes that nobody reads.
async fn transaction(producer: &FutureProducer, topic: &str) -> Duration {
    let began = Instant::now();
    producer.begin_transaction().expect("begun");
    let record = FutureRecord::<(), str>::to(topic).payload("");
    let sent = producer.send(record, LONG).await;
    sent.map_err(|(error, _)| error).expect("sent");
    let to_commit = producer.clone();
    tokio::task::spawn_blocking(move || {
        // Reported on, it is under way for a moment still, and then a commit waits for 100 ms (rdkafka polls in such steps).
        while to_commit.in_flight_count() > 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
        to_commit.commit_transaction(LONG)
    })
    .await
    .expect("no panic")
    .expect("committed");
    began.elapsed()
}

/// One record at a time, delivered both ways side by side: who reads what is committed has it no later than who reads what
/// is delivered at least once, but for one commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_a_quiet_pipeline_waits_for_one_commit_at_most() {
    let (mut once, mut least) = (World::new("").await, World::new("").await);
    once.set("pipeline.delivery", "exactly-once");
    least.set("pipeline.delivery", "at-least-once");
    let worlds = [&once, &least];
    let running = worlds.map(|world| world.start(1));
    let readers = worlds.map(|world| Follower::start(&world.cluster.brokers, &world.topic()));
    let keys = [Uuid::new_v4()];
    let mut number = 0;
    let arrival = async |world: &World, reader: &Follower, running: &Running, number: u32| {
        world.write(&keys, number, 1).await;
        let written = Instant::now();
        while reader.numbers().values().flatten().count() <= number as usize {
            assert!(written.elapsed() < LONG, "{}", running.text());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        written.elapsed()
    };
    // On a machine that is busy with other things a bare transaction takes longer, too.
    let bare = transactions(&once.cluster.brokers).await;
    let to_bare = format!("{}-bare", once.topic());
    let mut rounds = Vec::new();
    for round in 0..5 {
        let span = Span::of(&running[0]);
        let mut took = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..30 {
            let (a, b, c) = tokio::join!(
                arrival(worlds[0], &readers[0], &running[0], number),
                arrival(worlds[1], &readers[1], &running[1], number),
                transaction(&bare, &to_bare),
            );
            took[0].push(a);
            took[1].push(b);
            took[2].push(c);
            number += 1;
        }
        // The first of all waits for its topic to be made.
        if round == 0 {
            continue;
        }
        let [once, least, bare] = took.map(|mut took| {
            took.sort();
            took[took.len() / 2]
        });
        println!(
            "from a write to a reader, median of 30: {once:.1?}, at least once {least:.1?}; a bare transaction {bare:.1?}"
        );
        // And it holds up each of the thirty by its part.
        let bound = COMMIT.max(bare * 2) + span.held_up() / 30;
        rounds.push((once.saturating_sub(least), bound));
        if rounds.iter().any(|(more, bound)| more <= bound) {
            break;
        }
    }
    let holds = rounds.iter().any(|(more, bound)| more <= bound);
    assert!(holds, "more, and at most: {rounds:?}");
    for running in running {
        running.stop_cleanly();
    }
}

/// As in `penstock status | head`: that is no failure of the program to be told with a backtrace.
#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("pipeline.toml");
    let text = "[pipeline]\nname = \"p\"\n[source]\ntype = \"scylla-cdc\"\nkeyspace = \"k\"\ntables = [\"t\"]\n[sink]\ntype = \"redpanda\"\n";
    std::fs::write(&config, text).expect("pipeline.toml");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_penstock"))
        .args(["validate", "--config"])
        .arg(&config)
        .stdout(writer)
        .output()
        .expect("penstock runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
}
