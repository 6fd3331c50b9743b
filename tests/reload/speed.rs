//! From save to in force, and what it costs: a printed table. `cargo xtask reloads` is the long form.

use std::time::{Duration, Instant};

use super::{Rig, World, set, value};
use testkit::broker::Follower;
use testkit::machine::Span;

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

/// What a rebuild leaves behind it (clients that end) is no part of the next one.
const SETTLE: Duration = Duration::from_millis(1_000);
/// Nothing came for less than this in the best rebuild of those that keep the producers: far below what it takes to make
/// some, far above what a machine takes for everything else.
const PAUSE: Duration = Duration::from_millis(500);

/// The longest that nothing came from `from` on, and until now at the latest, ms.
fn longest_gap(arrivals: &[Instant], from: Instant) -> f64 {
    let first = arrivals.partition_point(|at| *at < from).saturating_sub(1);
    let gaps = arrivals[first..].windows(2).map(|two| two[1] - two[0]);
    gaps.max().unwrap_or_default().as_secs_f64() * 1e3
}

/// An edit that takes a rebuild: what it is of, and what of what runs is to be kept.
struct Edit<'a> {
    what: &'static str,
    version: &'a dyn Fn(u32) -> String,
    keeps_source: bool,
    keeps_sink: bool,
}

/// What rebuilds took, ms.
struct Rebuilds {
    /// Until each was in force, sorted.
    took: Vec<f64>,
    /// The longest that nothing came meanwhile, sorted.
    gaps: Vec<f64>,
    /// The least of those without what a busy machine has held up.
    least: f64,
}

/// Saves `n` versions of one edit.
async fn rebuilds(rig: &Rig, follower: &Follower, n: u32, edit: &Edit<'_>) -> Rebuilds {
    let (mut took, mut gaps, mut least) = (Vec::new(), Vec::new(), f64::INFINITY);
    let (source, sink) = (edit.keeps_source, edit.keeps_sink);
    let kept = format!("keeps_source={source} keeps_sink={sink}");
    let before = (rig.running.count(&kept), rig.running.count("read=0 kept="));
    for i in 0..n {
        let (from, span) = (Instant::now(), Span::of(&rig.running));
        took.extend(reloads(rig, 1, Duration::ZERO, |_| (edit.version)(i)).await);
        tokio::time::sleep(SETTLE).await;
        let gap = longest_gap(&follower.arrivals(), from);
        gaps.push(gap);
        least = least.min(gap - span.held_up().as_secs_f64() * 1e3);
    }
    let after = (rig.running.count(&kept), rig.running.count("read=0 kept="));
    let rebuilt = n as usize;
    assert_eq!(after.0 - before.0, rebuilt, "{}: {kept}", edit.what);
    let unread = if sink { rebuilt } else { 0 };
    assert_eq!(after.1 - before.1, unread, "{}: nobody is asked", edit.what);
    for all in [&mut took, &mut gaps] {
        all.sort_by(f64::total_cmp);
    }
    Rebuilds { took, gaps, least }
}

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
    let address = world.cluster.brokers.clone();
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
    let transforms = |i: u32| {
        with(
            "transform.outbox-router.name",
            format!("\"router-{}\"", i % 2),
        )
    };
    let tables = |i: u32| {
        let all = [r#"["outbox", "more"]"#, r#"["more", "outbox"]"#];
        with("source.tables", all[i as usize % 2].to_owned())
    };
    let producers = |i: u32| {
        with(
            "sink.properties",
            format!("{{ \"linger.ms\" = {} }}", 1 + i % 9),
        )
    };
    // Other listeners, by their names, of the same cluster: another would be another's checkpoints.
    let brokers = |i: u32| {
        let port = address.rsplit(':').next().unwrap_or_default();
        let all = [
            format!("[\"localhost:{port}\"]"),
            format!("[\"localhost:{port}\", \"{address}\"]"),
        ];
        with("sink.brokers", all[i as usize % 2].clone())
    };
    let shards = |i: u32| with("pipeline.shards", (3 + i % 2).to_string());
    let edits = [
        Edit {
            what: "transforms",
            version: &transforms,
            keeps_source: true,
            keeps_sink: true,
        },
        Edit {
            what: "tables",
            version: &tables,
            keeps_source: false,
            keeps_sink: true,
        },
        Edit {
            what: "producers",
            version: &producers,
            keeps_source: true,
            keeps_sink: false,
        },
        Edit {
            what: "brokers",
            version: &brokers,
            keeps_source: false,
            keeps_sink: false,
        },
        Edit {
            what: "shards",
            version: &shards,
            keeps_source: false,
            keeps_sink: false,
        },
    ];
    let undisturbed = Duration::from_millis((u64::from(n) * 150).clamp(2_000, 30_000));
    let (quiet, ()) = rates(&rig, tokio::time::sleep(undisturbed)).await;
    let (during_live, live) = rates(&rig, reloads(&rig, n, Duration::ZERO, live)).await;
    let (during_swap, swap) =
        rates(&rig, reloads(&rig, n.div_ceil(4), Duration::ZERO, settings)).await;
    rig.save(&base.to_string()).await;
    let cql = "CREATE TABLE ks.more (pk int PRIMARY KEY, v int) WITH cdc = {'enabled': true}";
    rig.world.session.query_unpaged(cql, ()).await.expect(cql);
    let follower = Follower::start(&rig.world.cluster.brokers, &topic);
    tokio::time::sleep(SETTLE).await;
    let from = Instant::now();
    tokio::time::sleep(SETTLE).await;
    let usual = longest_gap(&follower.arrivals(), from);
    let mut rebuilt = Vec::new();
    for edit in &edits {
        let rebuilding = rebuilds(&rig, &follower, n.div_ceil(8).max(2), edit);
        let (rates, rebuilds) = rates(&rig, rebuilding).await;
        rebuilt.push((edit, rates, rebuilds));
        // Back to where all of them begin, which none of them is.
        rig.save(&base.to_string()).await;
        tokio::time::sleep(SETTLE).await;
    }
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
    for (edit, rates, rebuilds) in &rebuilt {
        line(&format!("rebuild: {}", edit.what), &rebuilds.took, rates);
    }
    line("undisturbed again", &[], &quiet_again);
    println!(
        "\nthe longest that nothing came, ms (without a rebuild {usual:.0}): least, median, most"
    );
    for (edit, _, rebuilds) in &rebuilt {
        let at = |p: f64| percentile(&rebuilds.gaps, p);
        println!(
            "{:<22} {:>6.0} {:>6.0} {:>6.0}",
            edit.what,
            at(0.0),
            at(0.5),
            at(1.0)
        );
    }
    println!("{total} changes: none lost, none repeated\n");
    for (edit, _, rebuilds) in &rebuilt {
        let is_short = rebuilds.least < PAUSE.as_secs_f64() * 1e3;
        let gaps = &rebuilds.gaps;
        assert!(is_short || !edit.keeps_sink, "{}: {gaps:?}", edit.what);
    }
}
