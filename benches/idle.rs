//! What tables that stand still cost, and how soon their rows are seen: by the number of stream groups.
//!
//! `cargo xtask bench idle [idle_reads]`. One table of the stand-in, all other settings at their defaults; latency is
//! from before the write is sent to when its batch is there. The second table has every group read at each poll, as
//! without a budget.
#![allow(missing_docs)]

#[allow(dead_code)]
#[path = "support/machine.rs"]
mod machine;

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use penstock::change::Batch;
use penstock::checkpoint::Checkpoints;
use penstock::source::Source as _;
use scylla_double::Options;
use testkit::scylla::{Change, Db, Rig, changes};
use tokio::sync::mpsc::Receiver;

/// First rows, each in a group that has had none for long.
const FIRST: i32 = 12;
/// Rows of one active group.
const ACTIVE: i32 = 50;
const MEASURED: Duration = Duration::from_secs(4);

struct Scene {
    db: Db,
    rig: Rig,
    batches: Receiver<Batch>,
    _tasks: tokio::task::JoinSet<()>,
}

impl Scene {
    async fn new(groups: u32, idle_reads: u32) -> Self {
        let options = Options {
            vnodes: groups,
            ..Options::default()
        };
        let db = Db::with(false, options).await;
        db.run("CREATE TABLE t (k int, c int, PRIMARY KEY (k, c)) WITH cdc = {'enabled': true}")
            .await;
        let mut settings = db.settings(&["t"], 4);
        let source = &mut settings.source;
        source.poll_interval = Duration::from_millis(100);
        source.safety_interval = Duration::from_secs(1);
        source.page_size = NonZeroU32::new(1000).expect("not zero");
        source.idle_reads = NonZeroU32::new(idle_reads).expect("not zero");
        let rig = Rig::connect(settings).await.expect("a source");
        let (tasks, batches) = rig.follow(0, &Checkpoints::new());
        Self {
            db,
            rig,
            batches,
            _tasks: tasks,
        }
    }

    async fn stand_still(&mut self, time: Duration) {
        let until = tokio::time::Instant::now() + time;
        while let Ok(Some(_)) = tokio::time::timeout_at(until, self.batches.recv()).await {}
    }

    async fn reads_a_second(&mut self) -> f64 {
        let reads = |rig: &Rig| {
            let status = rig.source.status();
            status.pages + status.looks
        };
        let (before, from) = (reads(&self.rig), Instant::now());
        self.stand_still(MEASURED).await;
        (reads(&self.rig) - before) as f64 / from.elapsed().as_secs_f64()
    }

    /// How long a row takes.
    async fn row(&mut self, k: i32, c: i32) -> Duration {
        let written = Instant::now();
        self.db
            .run(&format!("INSERT INTO t (k, c) VALUES ({k}, {c})"))
            .await;
        loop {
            let batch = self.batches.recv().await.expect("a batch");
            let mine = |change: &Change| (change.int("k"), change.int("c")) == (Some(k), Some(c));
            if changes(&[batch]).iter().any(mine) {
                return written.elapsed();
            }
        }
    }
}

fn percentile(of: &mut [Duration], share: f64) -> u128 {
    of.sort();
    of[((of.len() - 1) as f64 * share) as usize].as_millis()
}

async fn measure(groups: u32, idle_reads: u32) {
    let mut scene = Scene::new(groups, idle_reads).await;
    // The first round, and the one in which each group finds its moment.
    let round = Duration::from_secs_f64(f64::from(groups) / f64::from(idle_reads));
    scene.stand_still(Duration::from_secs(2) + round * 2).await;
    let reads = scene.reads_a_second().await;
    let mut first = Vec::new();
    for n in 0..FIRST {
        first.push(scene.row(1000 + n, 0).await);
    }
    let mut active = Vec::new();
    for c in 0..ACTIVE {
        active.push(scene.row(1, c).await);
    }
    println!(
        "{groups:>6} {reads:>8.0} {:>9} {:>9} {:>10} {:>10}",
        percentile(&mut first, 0.5),
        percentile(&mut first, 1.0),
        percentile(&mut active[1..], 0.5),
        percentile(&mut active[1..], 0.99),
    );
}

fn main() {
    machine::print();
    let given = std::env::args().skip(1).find_map(|a| a.parse().ok());
    let idle_reads = given.unwrap_or(250);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for (budget, what) in [
        (idle_reads, format!("source.idle_reads = {idle_reads}")),
        (1_000_000, "without a budget".to_owned()),
    ] {
        println!("{what}; milliseconds; safety_interval 1 s, poll_interval 100 ms, 4 shards");
        println!("groups  reads/s  first p50 first max active p50 active p99");
        for groups in [16, 64, 256, 1024] {
            runtime.block_on(measure(groups, budget));
        }
    }
}
