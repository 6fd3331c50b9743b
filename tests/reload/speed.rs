//! From save to in force, and what it costs: a printed table. `cargo xtask reloads` is the long form.

use std::time::{Duration, Instant};

use super::{Rig, World, set, value};

/// Reloads of each kind in the short form; `PENSTOCK_TEST_RELOADS` sets how many live ones there are.
const SHORT: u32 = 12;
/// How often it is looked at what is done.
const LOOK: Duration = Duration::from_millis(100);

/// Changes done in each [`LOOK`], as rates a second, until `end` is done.
async fn rates<T>(rig: &Rig, end: impl Future<Output = T>) -> (Vec<f64>, T) {
    let mut end = std::pin::pin!(end);
    let mut rates = Vec::new();
    let (mut before, mut at) = (
        rig.metric("penstock_changes_done_total", "").await,
        Instant::now(),
    );
    loop {
        tokio::select! {
            done = &mut end => return (rates, done),
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = rig.metric("penstock_changes_done_total", "").await;
        rates.push((now - before) / at.elapsed().as_secs_f64());
        (before, at) = (now, Instant::now());
    }
}

/// A new producer takes up to a second until its first batch is acknowledged, and a drain waits for that batch: a
/// rebuild right after a rebuild would measure the one before.
const SETTLE: Duration = Duration::from_millis(1_500);

/// Saves `n` versions, `pause` apart, and how long each took until it was in force, in ms, sorted.
async fn reloads(rig: &Rig, n: u32, pause: Duration, version: impl Fn(u32) -> String) -> Vec<f64> {
    let mut took = Vec::new();
    for i in 0..n {
        let before = rig.newest().await;
        let text = version(i);
        let saved = jiff::Timestamp::now();
        rig.world.save(&text);
        let revision = rig.next(&before).await;
        assert_eq!(revision["outcome"], "applied", "{revision}");
        let at: jiff::Timestamp = revision["at"]
            .as_str()
            .unwrap_or_default()
            .parse()
            .expect("a time");
        let since = at.duration_since(saved);
        took.push(since.as_secs_f64() * 1e3);
        tokio::time::sleep(pause).await;
    }
    took.sort_by(f64::total_cmp);
    took
}

fn percentile(sorted: &[f64], p: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * p).round() as usize)
        .copied()
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_save_to_in_force() {
    let wanted = std::env::var("PENSTOCK_TEST_RELOADS")
        .ok()
        .and_then(|n| n.parse().ok());
    let n: u32 = wanted.unwrap_or(SHORT);
    let world = World::new("").await;
    let (name, topic) = (world.name.clone(), world.topic());
    let text = std::fs::read_to_string(world.config()).expect("pipeline.toml");
    let base: toml::Table = toml::from_str(&text).expect("TOML");
    let with = |path: &str, new: String| {
        let mut table = base.clone();
        set(&mut table, path, value(&new));
        table.to_string()
    };
    let rig = Rig::start(world, Duration::from_millis(5)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    let live = |i: u32| with("sink.breaker.failure_threshold", (6 + i % 90).to_string());
    let settings = |i: u32| {
        let tables = ["outbox", "ks.outbox"][i as usize % 2];
        with(
            "transform.outbox-router.settings",
            format!("{{ topic_prefix = \"{name}.\", tables = \"{tables}\" }}"),
        )
    };
    let shards = |i: u32| {
        with(
            "sink.properties",
            format!("{{ \"linger.ms\" = {} }}", 1 + i % 9),
        )
    };
    let undisturbed = Duration::from_millis((u64::from(n) * 150).clamp(2_000, 30_000));
    let (quiet, ()) = rates(&rig, tokio::time::sleep(undisturbed)).await;
    let (during_live, live) = rates(&rig, reloads(&rig, n, Duration::ZERO, live)).await;
    let (during_swap, swap) =
        rates(&rig, reloads(&rig, n.div_ceil(4), Duration::ZERO, settings)).await;
    let (during_rebuild, rebuild) = rates(&rig, reloads(&rig, n.div_ceil(8), SETTLE, shards)).await;
    let (quiet_again, ()) = rates(&rig, tokio::time::sleep(undisturbed)).await;
    let total = rig.finish(&[topic]).await;

    println!(
        "\n{:<22} {:>5} {:>9} {:>9} {:>9}   changes/s: mean, least of 10 looks in a row, p5 look",
        "", "n", "p50 ms", "p99 ms", "max ms"
    );
    let line = |what: &str, took: &[f64], rates: &[f64]| {
        let mean = rates.iter().sum::<f64>() / rates.len().max(1) as f64;
        let second = rates
            .windows(10)
            .map(|w| w.iter().sum::<f64>() / 10.0)
            .min_by(f64::total_cmp);
        let mut sorted = rates.to_vec();
        sorted.sort_by(f64::total_cmp);
        let time = |p: f64| match took {
            [] => "-".to_owned(),
            took => format!("{:.1}", percentile(took, p)),
        };
        println!(
            "{what:<22} {:>5} {:>9} {:>9} {:>9}   {mean:>9.0} {:>9.0} {:>9.0}",
            took.len(),
            time(0.5),
            time(0.99),
            time(1.0),
            second.unwrap_or(mean),
            percentile(&sorted, 0.05)
        );
    };
    line("undisturbed", &[], &quiet);
    line("live", &live, &during_live);
    line("swap", &swap, &during_swap);
    line("rebuild", &rebuild, &during_rebuild);
    line("undisturbed again", &[], &quiet_again);
    println!("{total} changes: none lost, none repeated\n");
}
