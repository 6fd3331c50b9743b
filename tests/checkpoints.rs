//! `penstock checkpoint` by the real program: what is shown, and that nothing is changed while the pipeline runs.
//!
//! On `noida-db`, or on what `PENSTOCK_TEST_BROKERS` names.

use std::collections::BTreeMap;

use serde_json::Value;
use testkit::broker::{Cluster, read_all};
use testkit::process::{LONG, Running, World, complete_and_ordered, keys};
use uuid::Uuid;

async fn world(delivery: &str) -> World {
    let mut world = World::new("").await;
    world.set("pipeline.delivery", delivery);
    world
}

fn ready(running: &Running) {
    running.await_line("all supervised stages started", LONG);
}

/// What it prints as JSON.
fn json(world: &World, args: &[&str]) -> Value {
    let (code, printed) = world.penstock(args);
    assert_eq!(code, Some(0), "{printed}");
    let from = printed.find(['[', '{']).expect("JSON");
    // A warning may stand behind it.
    let mut values = serde_json::Deserializer::from_str(&printed[from..]).into_iter();
    let value = values.next().expect("a value");
    value.unwrap_or_else(|e| panic!("{e}: {printed}"))
}

fn fails(world: &World, args: &[&str], why: &str) {
    let (code, printed) = world.penstock(args);
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains(why), "{why:?}: {printed}");
}

/// How often each number of a key stands in the topic.
fn times(world: &World, key: Uuid) -> BTreeMap<u32, usize> {
    let mut times = BTreeMap::new();
    for number in world.seen().remove(&key.to_string()).unwrap_or_default() {
        *times.entry(number).or_default() += 1;
    }
    times
}

async fn goes_back_and_forth(delivery: &str) {
    let world = world(delivery).await;
    let keys = keys(8);
    let (running, all) = (world.start(1), 8 * 5);
    ready(&running);
    world.write(&keys, 0, 5).await;
    world.await_records(all, LONG, &running);

    // It runs, so it is asked, and nothing is changed.
    fails(&world, &["checkpoint", "reset", "--to", "earliest"], "runs");
    let shown = json(&world, &["checkpoint", "show", "-o", "json"]);
    let shown = shown.as_array().expect("a list");
    let shards: Vec<i64> = shown.iter().filter_map(|p| p["shard"].as_i64()).collect();
    assert!(shards.contains(&0) && shards.contains(&1), "{shown:?}");
    for place in shown {
        assert_eq!(place["table"], "ks.outbox");
        assert_eq!(place["owner"]["admin"], running.admin(), "{place}");
    }
    running.stop_cleanly();

    // Back to the beginning: everything once more.
    let done = json(
        &world,
        &["checkpoint", "reset", "--to", "earliest", "-o", "json"],
    );
    assert_eq!(done["starts_from"], "earliest");
    assert!(done["groups"].as_u64() > Some(0), "{done}");
    let between = now();
    let running = world.start(2);
    let deadline = std::time::Instant::now() + LONG;
    while world.records().len() < 2 * all {
        assert!(std::time::Instant::now() < deadline, "{}", running.text());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    world.write(&keys, 5, 5).await;
    world.await_records(2 * all, LONG, &running);
    running.stop_cleanly();
    for key in &keys {
        let wanted = (0..10).map(|n| (n, if n < 5 { 2 } else { 1 }));
        assert_eq!(times(&world, *key), wanted.collect());
    }

    // To a time: what was written since.
    json(
        &world,
        &["checkpoint", "reset", "--to", &between, "-o", "json"],
    );
    let running = world.start(3);
    let deadline = std::time::Instant::now() + LONG;
    while world.records().len() < 4 * all {
        assert!(std::time::Instant::now() < deadline, "{}", running.text());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    running.stop_cleanly();

    // To now: only what comes.
    world.write(&keys, 10, 5).await;
    json(
        &world,
        &["checkpoint", "reset", "--to", "latest", "-o", "json"],
    );
    let running = world.start(4);
    ready(&running);
    world.write(&keys, 15, 5).await;
    world.await_records(3 * all, LONG, &running);
    running.stop_cleanly();
    for key in &keys {
        let wanted = (0..10).map(|n| (n, 2)).chain((15..20).map(|n| (n, 1)));
        assert_eq!(times(&world, *key), wanted.collect());
    }
}

/// This moment, as RFC 3339 has it.
fn now() -> String {
    humantime::format_rfc3339_micros(std::time::SystemTime::now()).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_goes_back_and_forth_and_is_refused_while_it_runs() {
    goes_back_and_forth("exactly-once").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_goes_back_and_forth_at_least_once() {
    goes_back_and_forth("at-least-once").await;
}

/// Of one that could not be asked nothing is visible any more, and it ends by itself.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_could_not_be_asked_before_a_reset_is_fenced() {
    let mut world = world("exactly-once").await;
    world.set("admin.enabled", false);
    let keys = keys(8);
    let mut running = world.start(1);
    ready(&running);
    world.write(&keys, 0, 5).await;
    world.await_records(8 * 5, LONG, &running);
    json(
        &world,
        &["checkpoint", "reset", "--to", "earliest", "-o", "json"],
    );
    world.write(&keys, 5, 5).await;
    let status = running.wait(LONG);
    assert_eq!(status.code(), Some(69), "{}", running.text());
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 5), 0);
    let running = world.start(2);
    world.await_records(8 * 10, LONG, &running);
    running.stop_cleanly();
    for key in &keys {
        let wanted = (0..10).map(|n| (n, if n < 5 { 2 } else { 1 }));
        assert_eq!(times(&world, *key), wanted.collect());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_go_to_another_cluster_and_nothing_is_repeated_there() {
    let world = world("exactly-once").await;
    let other = Cluster::embedded();
    let keys = keys(8);
    let running = world.start(1);
    world.write(&keys, 0, 5).await;
    world.await_records(8 * 5, LONG, &running);
    let there = world.dir.path().join("there.toml");
    let text = std::fs::read_to_string(world.config()).expect("pipeline.toml");
    let here = world.cluster.brokers.replace(',', "\", \"");
    let text = text.replace(&here, &other.brokers);
    std::fs::write(&there, text).expect("written");
    let to = there.to_str().expect("UTF-8");
    let copy = ["checkpoint", "copy", "--to", to, "-o", "json"];
    fails(&world, &copy, "runs");
    running.stop_cleanly();
    world.write(&keys, 5, 5).await;
    let copied = json(&world, &copy);
    assert!(copied["groups"].as_u64() > Some(0), "{copied}");
    fails(&world, &copy, "--overwrite");

    let log = world.dir.path().join("log-there");
    let running = Running::start(&there, &log);
    let deadline = std::time::Instant::now() + LONG;
    while read_all(&other.brokers, &world.topic()).len() < 8 * 5 {
        assert!(std::time::Instant::now() < deadline, "{}", running.text());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    running.stop_cleanly();
    let seen = read_all(&other.brokers, &world.topic());
    let mut numbers: Vec<&str> = seen.iter().map(|r| r.text()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers.len(), 8 * 5);
    assert_eq!(
        numbers[0], "5",
        "what was delivered here is not delivered there"
    );
}
