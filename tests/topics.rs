//! Topics under the running program: deleted, missing, made by somebody else, refused. It waits with a reason, and goes
//! on by itself.

#[path = "support/broker.rs"]
mod broker;
#[allow(dead_code, unreachable_pub)]
#[path = "support/plugins.rs"]
mod plugins;
#[path = "support/process.rs"]
mod process;

use std::time::{Duration, Instant};

use broker::Operator;
use process::{LONG, Running, Setup, World, complete_and_ordered, keys};
use uuid::Uuid;

const HASTY: &str = "[health]\ncheck_interval = \"100ms\"\n";

async fn health(running: &Running) -> serde_json::Value {
    let answer = reqwest::get(format!("http://{}/health", running.admin())).await;
    let text = answer.expect("an answer").text().await.expect("text");
    serde_json::from_str(&text).expect("JSON")
}

/// Waits until the sink's health says this.
async fn await_reason(running: &Running, reason: &str) {
    let deadline = Instant::now() + LONG;
    loop {
        let health = health(running).await;
        if health.to_string().contains(reason) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "no {reason:?} in {health}\n{}",
            running.text()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Row 29.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_is_told_of_and_made_again_within_5_s() {
    let world = World::new(HASTY).await;
    let operator = Operator::new(&world.cluster.brokers);
    let keys = keys(8);
    let running = world.start(1);
    world.write(&keys, 0, 20).await;
    world.await_records(8 * 20, LONG, &running);

    operator.delete(&world.topic()).await;
    let deleted_at = Instant::now();
    world.write(&keys, 20, 100).await;
    running.await_line("it was deleted", LONG);
    let told = deleted_at.elapsed();
    // What was in it is gone with it; what was written since is not.
    world.await_records(8 * 100, LONG, &running);
    let back = deleted_at.elapsed();
    println!("told after {told:.1?}, back after {back:.1?}");
    assert!(told < Duration::from_secs(3), "{told:?}");
    assert!(
        back < Duration::from_secs(5),
        "{back:?}\n{}",
        running.text()
    );
    running.stop_cleanly();
    for (key, numbers) in world.seen() {
        assert!(numbers.iter().copied().eq(20..120), "{key}: {numbers:?}");
    }
    assert_eq!(
        operator.partitions(&world.topic()),
        12,
        "made by sink.topics"
    );
}

/// Row 45: what the process knows is written into it at once, also of groups that nobody writes to.
#[tokio::test(flavor = "multi_thread")]
async fn deleted_checkpoints_are_written_anew() {
    let world = World::new(HASTY).await;
    let operator = Operator::new(&world.cluster.brokers);
    let keys = keys(16);
    let mut running = world.start(1);
    world.write(&keys, 0, 20).await;
    world.await_records(16 * 20, LONG, &running);
    running
        .await_metrics("all is settled", LONG, |m| {
            m.sum("penstock_in_flight_changes", &[]) == 0.0
        })
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;

    let topic = format!("penstock.{}.checkpoints", world.name);
    operator.delete(&topic).await;
    let deleted_at = Instant::now();
    running.await_line("the checkpoints are written anew", LONG);
    let back = deleted_at.elapsed();
    println!("written anew after {back:.1?}");
    assert!(back < Duration::from_secs(10), "{back:?}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    running.signal("-KILL");
    running.wait(LONG);
    let second = world.start(2);
    world.write(&keys, 20, 10).await;
    world.await_records(16 * 30, LONG, &second);
    second.stop_cleanly();
    assert_eq!(
        complete_and_ordered(&world.seen(), &keys, 30),
        0,
        "nothing is repeated"
    );
}

/// Row 12: nobody may make it, so it is waited for, and the rest goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_waited_for_and_the_other_shard_goes_on() {
    let mut world = World::with(Setup {
        extra: HASTY.to_owned(),
        ..Setup::default()
    })
    .await;
    let operator = Operator::new(&world.cluster.brokers);
    let name = world.name.clone();
    let topic = |kind: &str| format!("{name}.{kind}");
    operator.create(&topic("order"), 4, &[]).await;
    let ours = [
        ("cleanup.policy", "compact"),
        ("delete.retention.ms", "86400000"),
    ];
    operator
        .create(&format!("penstock.{}.checkpoints", world.name), 2, &ours)
        .await;
    operator.create(&topic("dead-letters"), 1, &ours).await;
    world.set("sink.topics.create", "false");
    let keys = keys(32);
    let running = world.start(1);
    world.write(&keys, 0, 10).await;
    world.await_records(32 * 10, LONG, &running);

    // One change for a topic that is not there: its shard waits.
    let lost = Uuid::new_v4();
    world.write_one(lost, "missing", "0").await;
    running.await_line("sink.topics.create is false", LONG);
    await_reason(
        &running,
        &format!("waiting for topic {}.missing", world.name),
    )
    .await;
    world.write(&keys, 10, 10).await;
    let before = 32 * 10;
    let deadline = Instant::now() + LONG;
    while world.records().len() <= before {
        assert!(
            Instant::now() < deadline,
            "the other shard stands still\n{}",
            running.text()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let text = running.text();
    assert_eq!(text.matches("crashed").count(), 0, "{text}");

    let topic = topic("missing");
    operator.create(&topic, 1, &[]).await;
    let made_at = Instant::now();
    world.await_records(32 * 20, LONG, &running);
    println!(
        "on its way again {:.1?} after the topic was made",
        made_at.elapsed()
    );
    assert!(made_at.elapsed() < Duration::from_secs(6));
    running
        .await_metrics("the sink is healthy", LONG, |m| {
            m.sum("penstock_health", &["component=\"sink\""]) == 0.0
        })
        .await;
    running.stop_cleanly();
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 20), 0);
    assert_eq!(broker::read_all(&world.cluster.brokers, &topic).len(), 1);
}
