//! Edits that are saved while a rebuild waits for brokers that are away: none holds up another.

use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::broker::{Flow, Valve};
use testkit::process::Setup;

use super::{Rig, World, set, value};

const PAUSE: Duration = Duration::from_millis(20);
/// What takes a second at most on a machine that has nothing else to do; a drain, and a read that is given up on, take 30.
const AT_ONCE: Duration = Duration::from_secs(10);
const WAITS: &str = "waiting until the brokers take what is in flight";

/// What health says of a component.
async fn said(rig: &Rig, component: &str) -> String {
    let status = rig.get("/status").await;
    let all = status["health"]["components"].as_array().cloned();
    let all = all.unwrap_or_default();
    let found = all.iter().find(|c| c["name"] == component);
    let reason = found.and_then(|c| c["reason"].as_str());
    reason.unwrap_or_default().to_owned()
}

async fn threshold(rig: &Rig) -> Value {
    let status = rig.get("/status").await;
    let stages = status["stages"].as_array().cloned().unwrap_or_default();
    let sink = stages.iter().find(|s| s["stage"] == "sink");
    sink.map(|s| s["failure_threshold"].clone())
        .unwrap_or_default()
}

async fn waits(rig: &Rig) {
    rig.until("the rebuild waits", async || {
        let status = rig.get("/status").await;
        (status["reload"]["step"] == WAITS).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_waits_for_brokers_holds_up_no_other_edit() {
    let valve = Valve::start(Flow::Open);
    let world = World::with(Setup {
        brokers: Some(valve.brokers.clone()),
        ..Setup::default()
    })
    .await;
    let cql = "CREATE TABLE ks.more (pk int PRIMARY KEY, v int) WITH cdc = {'enabled': true}";
    world.session.query_unpaged(cql, ()).await.expect(cql);
    let text = std::fs::read_to_string(world.config()).expect("pipeline.toml");
    let mut base: toml::Table = toml::from_str(&text).expect("TOML");
    let with = |base: &toml::Table, tables: &str| {
        let mut table = base.clone();
        set(&mut table, "source.tables", value(tables));
        table.to_string()
    };
    let rig = Rig::start(world, PAUSE).await;
    rig.until("changes are delivered", async || {
        let done = rig.metric("penstock_changes_done_total", "").await;
        (done > 50.0).then_some(())
    })
    .await;
    valve.set(Flow::Cut);
    rig.until("the breaker opens", async || {
        let opened = rig.metric("penstock_breaker_opened_total", "sink").await;
        (opened >= 1.0).then_some(())
    })
    .await;

    rig.world.save(&with(&base, r#"["outbox", "more"]"#));
    waits(&rig).await;
    rig.until("health names it", async || {
        said(&rig, "config").await.contains(WAITS).then_some(())
    })
    .await;

    // What retunes is in force at once, and what is wrong is told at once.
    set(&mut base, "sink.breaker.failure_threshold", value("9"));
    let saved = Instant::now();
    let retuned = rig.save(&with(&base, r#"["outbox", "more"]"#)).await;
    let took = saved.elapsed();
    assert_eq!(retuned["outcome"], "applied", "{retuned}");
    assert_eq!(retuned["class"], "live", "{retuned}");
    assert_eq!(threshold(&rig).await, 9);
    let saved = Instant::now();
    let bad = rig.save(&with(&base, r#"["outbox", 7]"#)).await;
    let told = saved.elapsed();
    assert_eq!(bad["outcome"], "rejected", "{bad}");
    assert!(took < AT_ONCE && told < AT_ONCE, "{took:?}, {told:?}");
    rig.until("health tells both", async || {
        let why = said(&rig, "config").await;
        (why.contains("tables") && why.contains(WAITS)).then_some(())
    })
    .await;
    let source = said(&rig, "source").await;
    assert!(!source.contains("what time it is"), "{source}");

    // Letters cannot be read now, which is said soon.
    let asked = Instant::now();
    let (code, letters) = rig.running.penstock(&["dead-letters", "list"]);
    let answered = asked.elapsed();
    assert!(
        code != Some(0) && answered < AT_ONCE * 2,
        "{answered:?}: {letters}"
    );
    assert!(letters.contains("brokers"), "{letters}");

    // Another one takes its place; taken back, nothing waits any more.
    let saved = Instant::now();
    let replaced = rig.save(&with(&base, r#"["more", "outbox"]"#)).await;
    assert_eq!(replaced["outcome"], "superseded", "{replaced}");
    waits(&rig).await;
    let back = rig.save(&base.to_string()).await;
    assert_eq!(back["outcome"], "superseded", "{back}");
    rig.until("nothing is under way", async || {
        let status = rig.get("/status").await;
        status["reload"].is_null().then_some(())
    })
    .await;
    assert!(saved.elapsed() < AT_ONCE * 2, "{:?}", saved.elapsed());
    rig.no_complaint().await;

    // … and with the brokers the last one is in force, with what was retuned.
    rig.world.save(&with(&base, r#"["more", "outbox"]"#));
    waits(&rig).await;
    let before = rig.newest().await;
    valve.set(Flow::Open);
    let applied = rig.next(&before).await;
    assert_eq!(applied["outcome"], "applied", "{applied}");
    assert_eq!(applied["class"], "rebuild", "{applied}");
    assert_eq!(threshold(&rig).await, 9);
    rig.no_complaint().await;
    let topic = rig.world.topic();
    let total = rig.finish(&[topic]).await;
    println!(
        "retuned after {took:.1?}, told after {told:.1?}, no letters after {answered:.1?} while a rebuild waited; {total} \
         events, none lost or repeated"
    );
}
