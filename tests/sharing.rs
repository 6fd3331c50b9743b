//! Several instances of one pipeline, each a process: started, stopped, killed and held up under load.
//!
//! What needs a group that misses a member who says nothing needs a real broker (`PENSTOCK_TEST_BROKERS`): the
//! stand-in's group waits for it for ever.

#[path = "support/broker.rs"]
mod broker;
#[allow(dead_code, unreachable_pub)]
#[path = "support/plugins.rs"]
mod plugins;
#[path = "support/process.rs"]
mod process;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use process::{LONG, Running, World, complete_and_ordered, keys};
use serde_json::Value;

const SHARDS: usize = 6;

async fn world() -> World {
    let mut world = World::new("").await;
    world.set("pipeline.instances", "shared");
    world.set("pipeline.session_timeout", "6s");
    world.set("pipeline.shards", SHARDS);
    world
}

/// Says so, and returns `false`, where the group is a stand-in's.
fn misses_the_silent() -> bool {
    let real = std::env::var_os("PENSTOCK_TEST_BROKERS").is_some();
    if !real {
        eprintln!(
            "skipped: needs a broker whose groups miss a silent member (PENSTOCK_TEST_BROKERS)"
        );
    }
    real
}

async fn get(running: &Running, path: &str) -> (u16, Value) {
    let answer = reqwest::get(format!("http://{}{path}", running.admin()))
        .await
        .expect("an answer");
    (answer.status().as_u16(), answer.json().await.expect("JSON"))
}

async fn owned(running: &Running) -> BTreeSet<u64> {
    let (_, status) = get(running, "/status").await;
    let owned = status["membership"]["owned"].as_array().cloned();
    let owned = owned.unwrap_or_default();
    owned.iter().filter_map(Value::as_u64).collect()
}

/// Waits until these share all shards, none of them without one if there are enough, and every shard is open.
async fn settled(instances: &[&Running]) {
    let deadline = Instant::now() + LONG;
    loop {
        let (mut all, mut least, mut open) = (Vec::new(), SHARDS, 0);
        for running in instances {
            let own = owned(running).await;
            least = least.min(own.len());
            all.extend(own);
            let (_, status) = get(running, "/status").await;
            open += status["shards"].as_array().map_or(0, Vec::len);
        }
        let distinct: BTreeSet<u64> = all.iter().copied().collect();
        let fair = least >= SHARDS / instances.len();
        if all.len() == SHARDS && distinct.len() == SHARDS && open == SHARDS && fair {
            return;
        }
        let logs: Vec<String> = instances.iter().map(|r| r.text()).collect();
        assert!(
            Instant::now() < deadline,
            "not shared out within {LONG:?}: {all:?}, {open} open\n{}",
            logs.join("\n----\n")
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_come_and_go_share_the_shards_and_repeat_nothing() {
    let world = world().await;
    let keys = keys(24);
    let first = world.start(1);
    first.await_line("all supervised stages started", LONG);
    settled(&[&first]).await;
    world.write(&keys, 0, 20).await;
    // Under load: what the shards that move have in hand is settled before they do.
    let second = world.start(2);
    world.write(&keys, 20, 20).await;
    settled(&[&first, &second]).await;
    world.write(&keys, 40, 20).await;
    let third = world.start(3);
    world.write(&keys, 60, 20).await;
    settled(&[&first, &second, &third]).await;
    world.write(&keys, 80, 20).await;
    let log = first.stop_cleanly();
    assert!(log.contains("left the group"), "{log}");
    world.write(&keys, 100, 20).await;
    settled(&[&second, &third]).await;
    second.stop_cleanly();
    world.write(&keys, 120, 20).await;
    settled(&[&third]).await;
    world.await_records(24 * 140, LONG, &third);
    third.stop_cleanly();
    let repeats = complete_and_ordered(&world.seen(), &keys, 140);
    assert_eq!(repeats, 0, "shards were settled before they were handed on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_without_shards_is_a_standby_and_ready() {
    let mut world = world().await;
    world.set("pipeline.shards", 1);
    let first = world.start(1);
    first.await_line("shard taken over", LONG);
    let second = world.start(2);
    second.await_line("shards assigned to this instance", LONG);
    let (mut owners, mut standbys) = (0, 0);
    let deadline = Instant::now() + LONG;
    while (owners, standbys) != (1, 1) {
        assert!(
            Instant::now() < deadline,
            "{}{}",
            first.text(),
            second.text()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
        (owners, standbys) = (0, 0);
        for running in [&first, &second] {
            let (code, ready) = get(running, "/readyz").await;
            match (code, ready["membership"]["owned"].as_array().map(Vec::len)) {
                (200, Some(0)) => standbys += 1,
                (200, Some(1)) => owners += 1,
                // In the middle of a change.
                _ => {}
            }
        }
    }
    // The standby's stages have nothing to do, and nothing is wrong with them.
    for running in [&first, &second] {
        let well = |report: &Value| report["system"]["status"] == "healthy";
        let deadline = Instant::now() + LONG;
        loop {
            let (_, report) = get(running, "/health").await;
            if well(&report) {
                break;
            }
            assert!(Instant::now() < deadline, "{report}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let (code, printed) = second.penstock(&["status"]);
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("shared"), "{printed}");
    second.stop_cleanly();
    first.stop_cleanly();
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_would_not_agree_on_the_shards_do_not_start() {
    let mut world = world().await;
    let running = world.start(1);
    settled(&[&running]).await;
    running.stop_cleanly();
    for other in [SHARDS - 1, SHARDS + 1] {
        world.set("pipeline.shards", other);
        let mut refused = world.start(2);
        let status = refused.wait(LONG);
        assert_eq!(status.code(), Some(1), "{}", refused.text());
        let reason = format!("it has {SHARDS} partitions, and pipeline.shards is {other}");
        assert!(refused.text().contains(&reason), "{}", refused.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_keeps_an_instances_shards_and_repeats_nothing() {
    let world = world().await;
    let keys = keys(24);
    let (first, second) = (world.start(1), world.start(2));
    settled(&[&first, &second]).await;
    let before = (owned(&first).await, owned(&second).await);
    world.write(&keys, 0, 20).await;
    let text = std::fs::read_to_string(world.config()).expect("pipeline.toml");
    let renamed = text.replace("name = \"outbox-router\"", "name = \"router\"");
    world.save(&renamed);
    for running in [&first, &second] {
        running.await_line("configuration applied", LONG);
    }
    world.write(&keys, 20, 20).await;
    settled(&[&first, &second]).await;
    assert_eq!(before, (owned(&first).await, owned(&second).await));
    // Other clients join anew.
    world.save(&format!(
        "{renamed}\n[sink.properties]\n\"linger.ms\" = 7\n"
    ));
    for running in [&first, &second] {
        let deadline = Instant::now() + LONG;
        while running.count("configuration applied") < 2 {
            assert!(Instant::now() < deadline, "{}", running.text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    world.write(&keys, 40, 20).await;
    settled(&[&first, &second]).await;
    world.await_records(24 * 60, LONG, &first);
    first.stop_cleanly();
    second.stop_cleanly();
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 60), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shards_of_one_that_is_killed_go_to_the_others() {
    if !misses_the_silent() {
        return;
    }
    let world = world().await;
    let keys = keys(24);
    let (mut first, second) = (world.start(1), world.start(2));
    settled(&[&first, &second]).await;
    world.write(&keys, 0, 40).await;
    first.signal("-KILL");
    first.wait(LONG);
    let killed = Instant::now();
    world.write(&keys, 40, 40).await;
    settled(&[&second]).await;
    eprintln!(
        "the other had all shards {:?} after the kill",
        killed.elapsed()
    );
    world.await_records(24 * 80, LONG, &second);
    second.stop_cleanly();
    let repeats = complete_and_ordered(&world.seen(), &keys, 80);
    eprintln!("{repeats} repeats");
}
