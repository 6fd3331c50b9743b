//! What standing still costs, and what it costs the groups that do not.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use penstock::change::Batch;
use penstock::checkpoint::Checkpoints;
use penstock::source::Source as _;
use scylla_double::Options;
use tokio::sync::mpsc::Receiver;

use testkit::machine::Span;
use testkit::scylla::{Db, Rig, changes};

const GROUPS: u32 = 256;
/// A round over all groups takes 5.12 s.
const BUDGET: u32 = 50;
const ACTIVE: i32 = 12;

async fn rig() -> (Db, Rig) {
    let options = Options {
        vnodes: GROUPS,
        ..Options::default()
    };
    let db = Db::with(false, options).await;
    db.run("CREATE TABLE t (k int, c int, PRIMARY KEY (k, c)) WITH cdc = {'enabled': true}")
        .await;
    let mut settings = db.settings(&["t"], 4);
    settings.source.poll_interval = Duration::from_millis(100);
    settings.source.idle_reads = NonZeroU32::new(BUDGET).expect("not zero");
    let rig = Rig::connect(settings).await.expect("a source");
    (db, rig)
}

fn reads(rig: &Rig) -> u64 {
    let status = rig.source.status();
    status.pages + status.looks
}

/// Takes what comes for so long.
async fn stand_still(batches: &mut Receiver<Batch>, time: Duration) -> Vec<Batch> {
    let until = tokio::time::Instant::now() + time;
    let mut taken = Vec::new();
    while let Ok(Some(batch)) = tokio::time::timeout_at(until, batches.recv()).await {
        taken.push(batch);
    }
    taken
}

/// 2,489 reads a second it was once, ten for each group.
#[tokio::test(flavor = "multi_thread")]
async fn idle_groups_cost_their_budget_and_an_active_one_is_seen_at_once() {
    let (db, rig) = rig().await;
    let (_tasks, mut batches) = rig.follow(0, &Checkpoints::new());
    // All are read once at the start, and each finds its moment within the next round.
    let found = stand_still(&mut batches, Duration::from_secs(7)).await;
    assert!(changes(&found).is_empty());
    let (before, from) = (reads(&rig), Instant::now());
    stand_still(&mut batches, Duration::from_secs(4)).await;
    let rate = (reads(&rig) - before) as f64 / from.elapsed().as_secs_f64();
    println!("{GROUPS} idle groups: {rate:.0} reads a second of {BUDGET}");
    let budget = f64::from(BUDGET);
    // A busy machine gets less done, and never more.
    assert!(rate > budget / 10.0 && rate < budget * 1.3, "{rate}");

    // The first row waits for the group's turn, those after it do not.
    let mut waits = Vec::new();
    let span = Span::here();
    for c in 0..ACTIVE {
        let written = Instant::now();
        db.run(&format!("INSERT INTO t (k, c) VALUES (1, {c})"))
            .await;
        while !changes(&[batches.recv().await.expect("a batch")])
            .iter()
            .any(|change| change.int("c") == Some(c))
        {
            assert!(written.elapsed() < Duration::from_secs(60), "row {c}");
        }
        waits.push(written.elapsed());
    }
    let (first, rest) = (waits[0], &mut waits[1..]);
    rest.sort();
    let median = rest[rest.len() / 2];
    println!("the first row after {first:?}, then {median:?} in the middle");
    // `safety_interval` and `poll_interval` make 200 ms; a round takes 5 s.
    assert!(
        median
            < span
                .at_most(Duration::from_secs(1))
                .min(Duration::from_secs(3)),
        "{median:?}"
    );
}
