//! A lane whose batches find no room stops asking its reader for more. Nothing that others need may stop with it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use penstock::checkpoint::Checkpoints;
use penstock::coordinator::child::{ChildId, Stage};
use penstock::coordinator::lane::{self, Lane};
use penstock::coordinator::supervisor::{ChildSpec, Supervisor};
use penstock::policy::breaker::{self, State};
use penstock::source::Source;
use scylla_double::{Action, Fault};

use crate::TABLE;
use testkit::scylla::{Db, Rig, positions};

/// With so many groups and keys that no shard goes without: which is whose depends on names made up for the test.
async fn database() -> Db {
    let options = scylla_double::Options {
        vnodes: 64,
        ..scylla_double::Options::default()
    };
    let db = Db::with(false, options).await;
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    db
}

async fn write(db: &Db, keys: std::ops::Range<i32>) {
    for k in keys {
        db.run(&format!("INSERT INTO t (k, c, v) VALUES ({k}, 0, 0)"))
            .await;
    }
}

/// Reads from a shard until it has this many changes.
macro_rules! goes_on {
    ($reader:expr, $changes:expr) => {
        let mut seen = 0;
        while seen < $changes {
            let batch = tokio::time::timeout(Duration::from_secs(20), $reader.next()).await;
            let batch = batch.expect("the other shard goes on").unwrap();
            seen += positions(&[batch]).len();
        }
    };
}

#[tokio::test]
async fn a_slow_answer_about_generations_to_a_blocked_shard_holds_no_other_back() {
    let db = database().await;
    let Some(node) = db.stand_in() else { return };
    write(&db, 0..60).await;
    let rig = Rig::connect(db.settings(&["t"], 2)).await.unwrap();
    let slow = node.faults().inject(
        Fault::new(Action::Delay(Duration::from_millis(300)))
            .on_table("system_distributed.cdc_generation_timestamps"),
    );
    let mut blocked = rig.source.clone().open_shard(0, 2, 0, Checkpoints::new());
    while node.faults().hits(slow) == Some(0) {
        let moment = Duration::from_millis(5);
        tokio::time::timeout(moment, blocked.next()).await.ok();
    }
    // From here on nobody asks it for a batch.
    let mut other = rig.source.clone().open_shard(1, 2, 0, Checkpoints::new());
    goes_on!(other, 10);
    drop(blocked);
}

#[tokio::test]
async fn a_slow_answer_about_the_schema_to_a_blocked_shard_holds_no_other_back() {
    let db = database().await;
    let Some(node) = db.stand_in() else { return };
    let rig = Rig::connect(db.settings(&["t"], 2)).await.unwrap();
    // The source's driver hears of the change late, as when nodes are busy.
    let slow = node.faults().inject(
        Fault::new(Action::Delay(Duration::from_millis(1500))).on_table("system_schema.columns"),
    );
    db.run("ALTER TABLE t ADD later int").await;
    write(&db, 0..60).await;
    let mut blocked = rig.source.clone().open_shard(0, 2, 0, Checkpoints::new());
    let asked = Duration::from_millis(700);
    let early = tokio::time::timeout(asked, async {
        while positions(&[blocked.next().await.unwrap()]).is_empty() {}
    });
    assert!(early.await.is_err(), "the schema was known all the same");
    let mut other = rig.source.clone().open_shard(1, 2, 0, Checkpoints::new());
    goes_on!(other, 10);
    assert!(node.faults().hits(slow) > Some(0));
    drop(blocked);
}

#[tokio::test]
async fn the_reads_of_a_blocked_lane_come_to_their_end_and_so_does_the_breakers_probe() {
    let db = database().await;
    let Some(node) = db.stand_in() else { return };
    write(&db, 0..200).await;
    let mut settings = db.settings(&["t"], 2);
    settings.source.read_timeout = Duration::from_secs(1);
    settings.source.policies.breaker =
        breaker::Settings::new(NonZeroU32::MIN, Duration::from_millis(200), NonZeroU32::MIN)
            .unwrap();
    let rig = Rig::connect(settings).await.unwrap();
    // One read is not answered; by the time it has timed out, others have filled the lane.
    let silent = node.faults().inject(
        Fault::new(Action::Silence)
            .on_table("t_scylla_cdc_log")
            .times(1),
    );
    let lane = Lane::new(0, 2, Checkpoints::new(), Arc::default(), Arc::default());
    let mut supervisor = Supervisor::new(rig.retune.subscribe());
    let (taken, source, policies) = (lane.clone(), rig.source.clone(), rig.policies.clone());
    supervisor.start(ChildSpec::new(
        ChildId::of_shard(Stage::Source, 0),
        move |scope| lane::run_source(taken.clone(), source.clone(), policies.clone(), scope),
    ));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        // Nobody takes what the lane holds.
        let event = tokio::time::timeout(Duration::from_millis(20), supervisor.next_event());
        assert!(event.await.is_err(), "the source crashed");
        let seen = rig.policies.snapshot();
        let blocked = lane.queued().0 == Lane::queue_capacity();
        let tried = node.faults().hits(silent) == Some(1);
        if blocked && tried && seen.breaker == State::Closed && seen.counters.opened > 0 {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{seen:?}");
    }
    let mut other = rig.source.clone().open_shard(1, 2, 0, Checkpoints::new());
    goes_on!(other, 10);
}

/// Generations of vnodes are announced ahead, so a window may end later than the last look at them. Otherwise a row would
/// be read after the next look has been answered, however short `source.safety_interval` is.
#[tokio::test]
async fn a_slow_answer_about_generations_holds_no_row_back() {
    const SLOW: Duration = Duration::from_millis(600);
    // So few groups that none rests for long.
    let db = Db::start(false).await;
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    let Some(node) = db.stand_in() else { return };
    let mut settings = db.settings(&["t"], 1);
    settings.source.safety_interval = Duration::ZERO;
    settings.source.poll_interval = Duration::from_millis(5);
    let rig = Rig::connect(settings).await.unwrap();
    let (_tasks, mut batches) = rig.follow(0, &Checkpoints::new());
    let slow = Fault::new(Action::Delay(SLOW));
    node.faults()
        .inject(slow.on_table("system_distributed.cdc_generation_timestamps"));
    let mut written = 0;
    for series in 1.. {
        let mut took = Vec::new();
        for _ in 0..5 {
            let began = std::time::Instant::now();
            write(&db, written..written + 1).await;
            written += 1;
            let mut seen = 0;
            while seen == 0 {
                seen = positions(&[batches.recv().await.expect("it goes on")]).len();
            }
            took.push(began.elapsed());
        }
        took.sort_unstable();
        println!("rows are read after {took:?}");
        if took[2] < SLOW {
            break;
        }
        // A machine that is busy with something else may hold some of them up.
        assert!(series < 5, "{took:?}");
    }
}
