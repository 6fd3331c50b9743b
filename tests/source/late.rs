//! Writes that appear in the log behind what has been read, and clocks that lie.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use penstock::change::Batch;
use penstock::checkpoint::{Checkpoints, topic};
use penstock::source::Source;
use penstock_plugin_encoding::Mark;
use scylla_double::{Action, Fault};

use crate::{TABLE, exactly, write};
use testkit::machine::is_alone;
use testkit::scylla::{Db, Key, Rig, apply, key, now_ms, positions};

/// The positions of the rows that are marked late.
fn late(batches: &[Batch]) -> BTreeSet<Key> {
    let mut all = BTreeSet::new();
    for batch in batches {
        let rows = batch.rows.iter().zip(&batch.positions);
        let marked = rows.filter(|(row, _)| row.is_marked(Mark::Late));
        all.extend(marked.map(|(_, position)| key(position)));
    }
    all
}

/// Writes a row as of so many ms ago.
async fn write_behind(db: &Db, k: i32, c: i32, ago_ms: i64) {
    let at_us = (now_ms() - ago_ms) * 1000;
    db.run(&format!(
        "INSERT INTO t (k, c, v) VALUES ({k}, {c}, 0) USING TIMESTAMP {at_us}"
    ))
    .await;
}

/// As they come back from the topic, in which the forgotten have tombstones.
fn reread(checkpoints: &Checkpoints) -> Checkpoints {
    let again = |(key, checkpoint): (&penstock::change::GroupKey, _)| {
        let record = topic::encode(checkpoint);
        let (key, read) = topic::decode(Some(key.0.as_bytes()), Some(&record)).unwrap();
        (key, read.unwrap())
    };
    checkpoints.iter().map(again).collect()
}

async fn arrives_once_and_marked(tablets: bool) {
    let db = Db::start(tablets).await;
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    let rig = Rig::connect(db.settings(&["t"], 2)).await.unwrap();
    let writing = async {
        // Into groups with other writes just before, and into groups without.
        for c in 0..40 {
            write(&db, "t", c..c + 1).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let before = db.log("t").await;
        for k in 0..30 {
            write_behind(&db, k, 1000 + k, 5_000).await;
        }
        before
    };
    let start = Checkpoints::new();
    let (batches, before) = tokio::join!(rig.read(0, &start, 70), writing);
    let log = db.log("t").await;
    exactly(&positions(&batches), &log, "at once");
    let behind: BTreeSet<Key> = log.difference(&before).copied().collect();
    assert_eq!(late(&batches), behind);
    let status = rig.source.status();
    assert_eq!(status.late, 30);
    println!("30 of 70 written 5 s behind: 30 late, marked and counted, 0 lost, 0 repeated");
    let note = status.complaint.expect("a note").to_string();
    assert!(note.contains("came late"), "{note}");
}

#[tokio::test]
async fn a_late_write_arrives_once_and_marked_with_vnodes() {
    arrives_once_and_marked(false).await;
}

#[tokio::test]
async fn a_late_write_arrives_once_and_marked_with_tablets() {
    arrives_once_and_marked(true).await;
}

#[tokio::test]
async fn switched_off_it_is_lost_and_nothing_is_looked_at_twice() {
    let db = Db::start(false).await;
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    let mut settings = db.settings(&["t"], 1);
    settings.source.late_horizon = Duration::ZERO;
    let rig = Rig::connect(settings).await.unwrap();
    let writing = async {
        write(&db, "t", 0..40).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        write_behind(&db, 1, 1000, 5_000).await;
        write(&db, "t", 100..101).await;
    };
    let start = Checkpoints::new();
    let (batches, ()) = tokio::join!(rig.read(0, &start, 41), writing);
    assert_eq!(positions(&batches).len(), 41);
    assert!(late(&batches).is_empty());
    let mut checkpoints = Checkpoints::new();
    apply(&mut checkpoints, &batches);
    assert!(checkpoints.values().all(|c| c.writes.is_empty()));
    let status = rig.source.status();
    assert_eq!((status.late, status.looks), (0, 0));
}

#[tokio::test]
async fn across_a_restart_what_came_late_arrives_once() {
    let db = Db::start(false).await;
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    let settings = db.settings(&["t"], 2);
    let rig = Rig::connect(settings.clone()).await.unwrap();
    let writing = async {
        // More than a leaf holds, some of them late already.
        for c in 0..300 {
            write(&db, "t", c..c + 1).await;
            if c % 10 == 0 {
                write_behind(&db, c % 11, 10_000 + c, 3_000).await;
            }
        }
    };
    let start = Checkpoints::new();
    let (batches, ()) = tokio::join!(rig.read(0, &start, 330), writing);
    drop(rig);
    // While nobody reads, there come late ones and others.
    for k in 0..25 {
        write_behind(&db, k, 1000 + k, 6_000).await;
        write(&db, "t", 2000 + k..2001 + k).await;
    }
    let log = db.log("t").await;
    // A clean stop has all in its checkpoint; a kill what happened to be written.
    let cuts = [batches.len(), batches.len() * 9 / 10, batches.len() / 2];
    for (epoch, cut) in (1..).zip(cuts) {
        let mut checkpoints = Checkpoints::new();
        apply(&mut checkpoints, &batches[..cut]);
        let done = positions(&batches[..cut]);
        let rig = Rig::connect(settings.clone()).await.unwrap();
        let left = log.len() - done.len();
        let rest = rig.read(epoch, &reread(&checkpoints), left).await;
        let mut all = done;
        all.extend(positions(&rest));
        exactly(
            &all,
            &log,
            &format!("cut after batch {cut} of {}", batches.len()),
        );
        println!(
            "restarted after batch {cut} of {}: {left} read, {} of them late, 0 lost, 0 repeated",
            batches.len(),
            late(&rest).len()
        );
        if cut == batches.len() {
            assert_eq!(late(&rest).len(), 25);
        }
    }
}

/// Clients give their writes the time at which they begin them, and the writes take a while.
#[tokio::test]
async fn writes_with_the_time_of_their_clients_are_not_lost() {
    const WRITERS: i32 = 16;
    let db = Arc::new(Db::start(false).await);
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    let mut settings = db.settings(&["t"], 2);
    settings.source.page_size = 1000.try_into().unwrap();
    settings.pipeline.batch_size = 256.try_into().unwrap();
    let rig = Rig::connect(settings).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    let began = Instant::now();
    for writer in 0..WRITERS {
        let db = db.clone();
        writers.spawn(async move {
            let text = "INSERT INTO t (k, c, v) VALUES (?, ?, 0) USING TIMESTAMP ?";
            let insert = db.session.prepare(text).await.unwrap();
            for n in 0..500 {
                let at_us = now_ms() * 1000 + i64::from(writer);
                // Now and then, as long as a busy coordinator may take.
                if n % 25 == 0 {
                    tokio::time::sleep(Duration::from_millis(150)).await;
                }
                let values = (n % 97, writer * 1000 + n, at_us);
                db.session.execute_unpaged(&insert, values).await.unwrap();
            }
        });
    }
    let start = Checkpoints::new();
    let all = WRITERS as usize * 500;
    let (batches, _) = tokio::join!(rig.read(0, &start, all), writers.join_all());
    let took = began.elapsed().as_secs_f64();
    exactly(&positions(&batches), &db.log("t").await, "with late ones");
    let status = rig.source.status();
    println!(
        "{all} writes in {took:.1} s, {} late, 0 lost; {} looks behind beside {} pages ({:.1} %)",
        status.late,
        status.looks,
        status.pages,
        100.0 * status.looks as f64 / status.pages as f64
    );
    assert!(status.late > 0, "the test is of no use without");
    // A tenth of the reads, and once each group what is due.
    assert!(status.looks <= status.pages / 10 + 16, "{status:?}");
}

#[tokio::test]
async fn a_step_of_this_machines_clock_loses_nothing_and_is_told() {
    // All readers of the process see it.
    if !is_alone("late::a_step_of_this_machines_clock_loses_nothing_and_is_told") {
        return;
    }
    let db = Arc::new(Db::start(false).await);
    let Some(node) = db.stand_in() else { return };
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    let mut settings = db.settings(&["t"], 2);
    // Nothing may hide what goes wrong.
    settings.source.late_horizon = Duration::ZERO;
    let rig = Rig::connect(settings).await.unwrap();
    let stepped = AtomicBool::new(false);
    let writing = async {
        for c in 0..600 {
            write(&db, "t", c..c + 1).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            // Some come after all of it.
            while c == 550 && !stepped.load(Relaxed) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let stepping = async {
        let until = async |what: &str, wanted: bool| {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                let doubt = rig.source.status().complaint.map(|c| c.to_string());
                if doubt.as_ref().is_some_and(|d| d.contains("this machine")) == wanted {
                    return;
                }
                assert!(Instant::now() < deadline, "{what}: {doubt:?}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::sleep(Duration::from_millis(500)).await;
        // The database is slow to say what time it is, so that the doubt can be seen.
        let slow = Fault::new(Action::Delay(Duration::from_secs(2))).on_table("system.local");
        let slow = node.faults().inject(slow);
        fail::cfg("clock::wall", "return(20000)").unwrap();
        until("in doubt", true).await;
        node.faults().clear(slow);
        until("heard", false).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        fail::remove("clock::wall");
        tokio::time::sleep(Duration::from_millis(700)).await;
        stepped.store(true, Relaxed);
    };
    let start = Checkpoints::new();
    let (batches, ..) = tokio::join!(rig.read(0, &start, 600), writing, stepping);
    exactly(&positions(&batches), &db.log("t").await, "over two steps");
    println!("600 changes over a step of 20 s forward and one back: 0 lost, 0 repeated");
}
