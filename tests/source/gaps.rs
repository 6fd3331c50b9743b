//! Tables that are dropped, made again, and not logged for a while, under the reader's feet.

use std::time::{Duration, Instant};

use penstock::checkpoint::Checkpoints;
use penstock::policy::health::Status;
use penstock::source::Source;

use crate::{TABLE, write};
use testkit::machine::Span;
use testkit::scylla::{Db, Rig, changes};

async fn until(rig: &Rig, what: &str, holds: impl Fn(&penstock::source::SourceStatus) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = rig.source.status();
        if holds(&status) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn complains(status: &penstock::source::SourceStatus, of: &str) -> bool {
    let reason = status.complaint.as_ref().and_then(|c| c.reason().cloned());
    reason.is_some_and(|r| r.contains(of))
}

#[tokio::test]
async fn a_dropped_table_waits_for_its_new_log_and_the_other_goes_on() {
    let db = Db::start(false).await;
    for table in ["a", "b"] {
        db.run(&format!("CREATE TABLE {table} {TABLE}")).await;
    }
    let rig = Rig::connect(db.settings(&["a", "b"], 2)).await.unwrap();
    let story = async {
        write(&db, "a", 0..20).await;
        write(&db, "b", 0..20).await;
        until(&rig, "both are read", |s| s.rows >= 40).await;
        db.run("DROP TABLE a").await;
        until(&rig, "it is said", |s| {
            complains(s, ".a: the table or its change log does not exist")
        })
        .await;
        write(&db, "b", 20..40).await;
        until(&rig, "the other goes on", |s| s.rows >= 60).await;
        db.run(&format!("CREATE TABLE a {TABLE}")).await;
        write(&db, "a", 100..120).await;
    };
    let nowhere = Checkpoints::new();
    let (batches, ()) = tokio::join!(rig.read(0, &nowhere, 80), story);
    let again = changes(&batches);
    let again = again.iter().filter(|c| c.int("c") >= Some(100)).count();
    assert_eq!(again, 20);
    until(&rig, "all is well again", |s| s.complaint.is_none()).await;
    let status = rig.source.status();
    let gaps: Vec<u64> = status.tables.iter().map(|t| t.gaps).collect();
    assert_eq!(gaps, [1, 0]);
    assert!(status.tables[0].gaps_for > Duration::from_millis(100));
}

/// What is not there when the process starts is waited for, and what is there is read meanwhile.
async fn made_later(tablets: bool) {
    let mut db = Db::start(tablets).await;
    db.run(&format!("CREATE TABLE a {TABLE}")).await;
    db.run("CREATE TABLE c (k int, c int, v int, PRIMARY KEY (k, c))")
        .await;
    let rig = Rig::connect(db.settings(&["a", "b", "c"], 2))
        .await
        .unwrap();
    let story = async {
        write(&db, "a", 0..20).await;
        until(&rig, "what is there is read", |s| s.rows >= 20).await;
        until(&rig, "b is waited for", |s| {
            complains(s, ".b does not exist")
        })
        .await;
        until(&rig, "c is waited for", |s| {
            complains(s, "has no change log")
        })
        .await;
        let status = rig.source.status().complaint;
        assert!(matches!(status, Some(Status::Degraded(_))), "{status:?}");
        db.run(&format!("CREATE TABLE b {TABLE}")).await;
        db.run("ALTER TABLE c WITH cdc = {'enabled': true}").await;
        write(&db, "b", 100..120).await;
        write(&db, "c", 200..220).await;
    };
    let nowhere = Checkpoints::new();
    let (batches, ()) = tokio::join!(rig.read(0, &nowhere, 60), story);
    assert_eq!(changes(&batches).len(), 60);
    until(&rig, "all is well", |s| s.complaint.is_none()).await;
    let laid_out: Vec<bool> = rig
        .source
        .status()
        .tables
        .iter()
        .map(|t| t.tablets)
        .collect();
    assert_eq!(laid_out, [tablets; 3]);

    // Not even the keyspace.
    db.keyspace = format!("ks_{}", uuid::Uuid::new_v4().simple());
    let rig = Rig::connect(db.settings(&["t"], 2)).await.unwrap();
    let story = async {
        until(&rig, "it is waited for", |s| {
            complains(s, "keyspace") && matches!(s.complaint, Some(Status::Unhealthy(_)))
        })
        .await;
        let ks = &db.keyspace;
        db.run(&format!(
            "CREATE KEYSPACE {ks} WITH replication = {{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}} \
             AND tablets = {{'enabled': {tablets}}}"
        ))
        .await;
        db.run(&format!("CREATE TABLE {ks}.t {TABLE}")).await;
        write(&db, &format!("{ks}.t"), 0..20).await;
    };
    let nowhere = Checkpoints::new();
    let (batches, ()) = tokio::join!(rig.read(0, &nowhere, 20), story);
    assert_eq!(changes(&batches).len(), 20);
}

#[tokio::test]
async fn a_table_or_keyspace_that_is_made_later_is_waited_for_vnodes() {
    made_later(false).await;
}

#[tokio::test]
async fn a_table_or_keyspace_that_is_made_later_is_waited_for_tablets() {
    made_later(true).await;
}

/// The log keeps what it has when its table is truncated, and does not say so; its own truncation takes what is unread.
#[tokio::test]
async fn a_truncate_is_told_of() {
    let db = Db::start(false).await;
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    let mut settings = db.settings(&["t"], 2);
    settings.source.safety_interval = Duration::from_secs(2);
    let rig = Rig::connect(settings).await.unwrap();
    let told = |gaps| move |s: &penstock::source::SourceStatus| s.tables[0].gaps == gaps;
    let story = async {
        write(&db, "t", 0..20).await;
        // So that the first look is before it.
        until(&rig, "read", |s| s.rows >= 20).await;
        write(&db, "t", 20..40).await;
        db.run("TRUNCATE t").await;
        until(&rig, "the table's is told of", told(1)).await;
        assert_eq!(rig.source.status().tables[0].gaps_for, Duration::ZERO);
        until(&rig, "what was logged is read", |s| s.rows >= 40).await;
        write(&db, "t", 40..60).await;
        let span = Span::here();
        db.run("TRUNCATE t_scylla_cdc_log").await;
        until(&rig, "the log's is told of", told(2)).await;
        // Up to the look that finds it reading goes on.
        let (lost_for, busy) = (rig.source.status().tables[0].gaps_for, span.held_up());
        let least = Duration::from_secs(1).saturating_sub(busy);
        assert!(lost_for >= least, "{lost_for:?}, held up for {busy:?}");
        write(&db, "t", 60..80).await;
    };
    let nowhere = Checkpoints::new();
    let (batches, ()) = tokio::join!(rig.read(0, &nowhere, 60), story);
    let seen: Vec<_> = changes(&batches)
        .iter()
        .filter_map(|c| c.int("c"))
        .collect();
    let seen: std::collections::BTreeSet<i32> = seen.into_iter().collect();
    assert_eq!(seen, (0..40).chain(60..80).collect());
    assert_eq!(rig.source.status().tables[0].gaps, 2, "each is told once");
}

#[tokio::test]
async fn a_table_that_is_made_anew_at_once_or_not_logged_for_a_while_is_told_of() {
    let db = Db::start(false).await;
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    let rig = Rig::connect(db.settings(&["t"], 2)).await.unwrap();
    let story = async {
        write(&db, "t", 0..20).await;
        until(&rig, "read", |s| s.rows >= 20).await;
        db.run("DROP TABLE t").await;
        db.run(&format!("CREATE TABLE t {TABLE}")).await;
        write(&db, "t", 20..30).await;
        until(&rig, "the gap is counted", |s| s.tables[0].gaps == 1).await;
        until(&rig, "read again", |s| s.rows >= 30).await;
        db.run("ALTER TABLE t WITH cdc = {'enabled': false}").await;
        until(&rig, "it is said", |s| complains(s, ".t: ")).await;
        write(&db, "t", 30..40).await;
        db.run("ALTER TABLE t WITH cdc = {'enabled': true}").await;
        until(&rig, "the gap is counted", |s| s.tables[0].gaps == 2).await;
        write(&db, "t", 40..50).await;
    };
    let nowhere = Checkpoints::new();
    let (batches, ()) = tokio::join!(rig.read(0, &nowhere, 40), story);
    let seen: std::collections::BTreeSet<_> = changes(&batches)
        .iter()
        .filter_map(|c| c.int("c"))
        .collect();
    let logged: std::collections::BTreeSet<i32> = (0..30).chain(40..50).collect();
    assert_eq!(seen, logged);
}
