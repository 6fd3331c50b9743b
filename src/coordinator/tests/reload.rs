//! What a changed file does to what runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::Outcome;
use super::super::handle::Phase;
use super::{LONG, Rig};
use crate::config::reload::Verdict;

/// A transform by the plugin `p`.
const TRANSFORM: &str = "[[transform]]\nname = \"one\"\nplugin = \"FOLDER/p.wasm\"\n";

#[test]
fn a_retune_is_read_where_it_is_used_and_drains_nothing() {
    Rig::run("", async |rig| {
        rig.world.write(10);
        rig.until_seen("before").await;
        let taken = rig.cluster().taken();

        let revision = rig.reload("[sink.breaker]\nfailure_threshold = 9\n").await;
        assert_eq!(revision.outcome, Verdict::Applied);
        let now = rig.handle.settings().borrow().clone();
        let breaker = now.policies("sink").expect("a stage").breaker;
        assert_eq!(u32::from(breaker.failure_threshold()), 9);

        rig.world.write(10);
        rig.until_seen("after").await;
        assert_eq!(rig.world.connected(), (1, 1));
        assert_eq!(rig.cluster().taken(), taken);
        assert_eq!(rig.stop().await, Outcome::Clean);
    });
}

#[test]
fn a_bad_file_changes_nothing_and_is_told_until_a_good_one_comes() {
    Rig::run("", async |rig| {
        let config = |rig: &Rig| {
            let report = rig.handle.health().borrow().clone();
            let entry = report.components.into_iter().find(|c| &*c.name == "config");
            entry.and_then(|entry| entry.reason)
        };
        let bad = "[sink.breaker]\nfailure_threshold = 0\n";
        let revision = rig.reload(bad).await;
        assert_eq!(revision.outcome, Verdict::Rejected);
        let reason = config(rig).expect("health tells");
        assert!(reason.contains("failure_threshold"), "{reason}");

        rig.world.write(10);
        rig.until_seen("the last good one goes on").await;
        rig.edit("");
        let unchanged = rig.handle.reload().await.expect("it runs");
        assert!(unchanged.is_none(), "{unchanged:?}");
        assert_eq!(config(rig), None);
    });
}

#[test]
fn other_tables_leave_the_producers_alone() {
    Rig::run("", async |rig| {
        rig.world.write(10);
        rig.until_seen("before").await;
        let taken = rig.cluster().taken();
        rig.world.write(7);

        let revision = rig.reload("[source]\ntables = [\"t\", \"u\"]\n").await;
        assert_eq!(revision.outcome, Verdict::Applied, "{revision:?}");
        rig.world.write(10);
        rig.until_seen("after").await;
        assert_eq!(rig.world.connected(), (2, 1));
        assert_eq!(rig.cluster().taken(), taken, "no shard was taken again");
        assert_eq!(rig.stop().await, Outcome::Clean);
    });
}

#[test]
fn no_total_falls_at_a_rebuild() {
    Rig::run("", async |rig| {
        let counts = |rig: &Rig| {
            let pipeline = rig.handle.pipeline().expect("it runs");
            (
                pipeline.source_status().rows,
                pipeline.sink_counts().records,
            )
        };
        rig.world.write(10);
        rig.until_seen("before").await;
        let (read, sent) = counts(rig);
        assert!(read > 0 && sent > 0);
        // Another source; another sink; both; and back, after which each has followed twice.
        for more in [
            "[source]\ntables = [\"t\", \"u\"]\n",
            "[source]\ntables = [\"t\", \"u\"]\n[sink.properties]\n\"linger.ms\" = 7\n",
            "[pipeline]\nshards = 3\n",
            "",
        ] {
            let revision = rig.reload(more).await;
            assert_eq!(revision.outcome, Verdict::Applied, "{revision:?}");
            assert_eq!(counts(rig), (read, sent), "after {more:?}");
        }
        rig.world.write(10);
        rig.until_seen("after").await;
        assert_eq!(counts(rig), (2 * read, 2 * sent));
        assert_eq!(rig.stop().await, Outcome::Clean);
    });
}

#[test]
fn more_shards_go_on_where_fewer_were() {
    Rig::run("", async |rig| {
        rig.world.write(10);
        let revision = rig.reload("[pipeline]\nshards = 3\n").await;
        assert_eq!(revision.outcome, Verdict::Applied, "{revision:?}");
        rig.world.write(10);
        rig.until_seen("after").await;
        assert_eq!(rig.handle.pipeline().expect("it runs").lanes().len(), 3);
        assert_eq!(rig.world.connected(), (2, 2));
    });
}

#[test]
fn a_rebuild_that_is_refused_drains_nothing() {
    Rig::run("", async |rig| {
        rig.world.write(10);
        rig.until_seen("before").await;
        let (taken, runs) = (rig.cluster().taken(), rig.handle.pipeline());

        let revision = rig.reload("[source]\ntables = [\"missing\"]\n").await;
        assert_eq!(revision.outcome, Verdict::Failed);
        let error = revision.error.expect("a reason");
        assert!(error.contains("ks.missing does not exist"), "{error}");
        let (before, now) = (runs.expect("it ran"), rig.handle.pipeline());
        assert!(std::sync::Arc::ptr_eq(&before, &now.expect("it runs")));

        rig.world.write(10);
        rig.until_seen("after").await;
        assert_eq!(rig.cluster().taken(), taken);
        assert_eq!(rig.handle.phase(), Phase::Running);
    });
}

#[test]
fn a_rebuild_whose_shards_do_not_open_goes_back_to_what_ran() {
    Rig::run("", async |rig| {
        rig.world.write(10);
        rig.until_seen("before").await;
        *rig.world.no_opening.lock() = Some("made up".to_owned());
        let more = "[sink]\nbrokers = [\"made-up:9092\", \"made-up:9093\"]\nnew_cluster = \"start-over\"\n";
        let revision = rig.reload(more).await;
        assert_eq!(revision.outcome, Verdict::Failed);
        assert!(revision.error.is_some_and(|e| e.contains("made up")));
        assert_eq!(rig.handle.phase(), Phase::Running);

        rig.world.write(10);
        rig.until_seen("what ran goes on").await;
        assert_eq!(rig.stop().await, Outcome::Clean);
    });
}

#[test]
fn other_brokers_without_the_checkpoints_are_refused_or_given_them() {
    Rig::run("", async |rig| {
        rig.world.write(10);
        rig.until_seen("before").await;
        let there = "[sink]\nbrokers = [\"elsewhere:9092\"]\n";
        let revision = rig.reload(there).await;
        assert_eq!(revision.outcome, Verdict::Failed);
        assert!(
            revision
                .error
                .is_some_and(|e| e.contains("sink.new_cluster"))
        );
        rig.world.write(1);
        rig.until_seen("where it was").await;

        let carried = rig
            .reload(&format!("{there}new_cluster = \"carry\"\n"))
            .await;
        assert_eq!(carried.outcome, Verdict::Applied, "{carried:?}");
        rig.world.write(2);
        let elsewhere = rig.cluster_at("elsewhere:9092");
        rig.until("there", || (0..4).all(|g| elsewhere.seen(g) == [12, 13]))
            .await;
    });
}

#[test]
fn what_is_not_drained_in_time_is_read_again_from_its_checkpoint() {
    Rig::run("[shutdown]\ntimeout = \"5s\"\n", async |rig| {
        rig.world.write(10);
        rig.until_seen("before").await;
        rig.world.outage();
        rig.world.write(10);
        rig.in_flight().await;
        let began = tokio::time::Instant::now();
        let more = "[shutdown]\ntimeout = \"5s\"\n[source]\ntables = [\"t\", \"u\"]\n";
        let revision = rig.reload(more).await;
        assert_eq!(revision.outcome, Verdict::Applied, "{revision:?}");
        let took = began.elapsed();
        assert!(
            took >= Duration::from_secs(5) && took < Duration::from_secs(8),
            "{took:?}"
        );

        rig.world.outage_ends();
        rig.until_seen("each once all the same").await;
        assert_eq!(rig.stop().await, Outcome::Clean);
    });
}

#[test]
fn a_stop_during_a_rebuild_drains_with_everything_else() {
    Rig::run("", async |rig| {
        rig.world.write(10);
        rig.until_seen("before").await;
        rig.world.outage();
        rig.world.write(10);
        rig.in_flight().await;
        rig.edit("[source]\ntables = [\"t\", \"u\"]\n");
        let handle = rig.handle.clone();
        let reloading = tokio::task::spawn_local(async move { handle.reload().await });
        let (rebuilding, handle) = (Phase::Rebuilding, rig.handle.clone());
        rig.until("the drain", || handle.phase() == rebuilding)
            .await;

        rig.handle.stop().await.expect("it runs");
        rig.until("the stop", || handle.phase() == Phase::Draining)
            .await;
        rig.world.outage_ends();
        assert_eq!(rig.ended().await, Outcome::Clean);
        let told = tokio::time::timeout(LONG, reloading).await;
        let told = told.expect("whoever asked is told").expect("no panic");
        assert!(told.is_err(), "it has stopped: {told:?}");
        rig.until_seen("all that was read").await;
    });
}

#[test]
fn a_stop_that_nobody_answers_ends_at_its_deadline() {
    Rig::run("[shutdown]\ntimeout = \"5s\"\n", async |rig| {
        rig.world.outage();
        rig.world.write(10);
        // Of made-up time: by then each sink waits for its commit.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = tokio::time::Instant::now();
        assert_eq!(rig.stop().await, Outcome::Forced);
        let took = began.elapsed();
        assert!(
            took >= Duration::from_secs(5) && took < Duration::from_secs(7),
            "{took:?}"
        );
    });
}

#[test]
fn a_plugin_that_is_rebuilt_takes_over_and_one_that_refuses_does_not() {
    Rig::run_with(&[("p", "to one")], TRANSFORM, async |rig| {
        rig.world.write(10);
        rig.until_seen("before").await;
        assert_eq!(rig.cluster().newest_topic().as_deref(), Some("one"));
        let taken = rig.cluster().taken();

        rig.rebuild("p", "to two");
        let swapped = rig.reload(TRANSFORM).await;
        assert_eq!(swapped.outcome, Verdict::Applied, "{swapped:?}");
        rig.world.write(10);
        rig.until_seen("after").await;
        assert_eq!(rig.cluster().newest_topic().as_deref(), Some("two"));

        rig.rebuild("p", "refuses");
        let refused = rig.reload(TRANSFORM).await;
        assert_eq!(refused.outcome, Verdict::Rejected);
        rig.world.write(10);
        rig.until_seen("the one before goes on").await;
        assert_eq!(rig.cluster().newest_topic().as_deref(), Some("two"));
        assert_eq!(rig.cluster().taken(), taken);
        assert_eq!(rig.world.connected(), (1, 1));
    });
}

#[test]
fn a_transform_that_comes_leaves_both_sides_alone() {
    Rig::run_with(&[("p", "to one")], "", async |rig| {
        rig.world.write(10);
        rig.until_seen("before").await;
        let taken = rig.cluster().taken();
        let revision = rig.reload(TRANSFORM).await;
        assert_eq!(revision.outcome, Verdict::Applied, "{revision:?}");
        rig.world.write(10);
        rig.until_seen("after").await;
        assert_eq!(rig.cluster().newest_topic().as_deref(), Some("one"));
        assert_eq!(rig.world.connected(), (1, 1));
        assert_eq!(rig.cluster().taken(), taken);
    });
}

const TABLES: &str = "[source]\ntables = [\"t\", \"u\"]\n";

fn threshold(rig: &Rig) -> u32 {
    let now = rig.handle.settings().borrow().clone();
    let breaker = now.policies("sink").expect("a stage").breaker;
    breaker.failure_threshold().into()
}

/// What health says of the configuration.
fn said(rig: &Rig) -> Option<Arc<str>> {
    let report = rig.handle.health().borrow().clone();
    let entry = report.components.into_iter().find(|c| &*c.name == "config");
    entry.and_then(|entry| entry.reason)
}

/// Something is in flight that nobody acknowledges, and a rebuild is drained for.
async fn rebuild_that_waits(rig: &mut Rig) -> tokio::task::JoinHandle<Option<Verdict>> {
    rig.world.write(10);
    rig.until_seen("before").await;
    rig.world.outage();
    rig.world.write(10);
    rig.in_flight().await;
    rig.edit(TABLES);
    let handle = rig.handle.clone();
    let rebuilding = tokio::task::spawn_local(async move {
        let revision = handle.reload().await.expect("it runs");
        revision.map(|r| r.outcome)
    });
    let handle = rig.handle.clone();
    rig.until("the drain", || handle.phase() == Phase::Rebuilding)
        .await;
    rebuilding
}

#[test]
fn what_is_retuned_while_a_rebuild_waits_is_in_force_at_once_and_after_it() {
    Rig::run("", async |rig| {
        let rebuilding = rebuild_that_waits(rig).await;
        let began = Instant::now();
        let nine = format!("{TABLES}[sink.breaker]\nfailure_threshold = 9\n");
        let retuned = rig.reload(&nine).await;
        assert_eq!(retuned.outcome, Verdict::Applied, "{retuned:?}");
        let keys: Vec<&str> = retuned.changed.iter().map(|c| c.key.as_str()).collect();
        assert_eq!(keys, ["sink.breaker.failure_threshold"]);
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(threshold(rig), 9);

        let bad = rig
            .reload(&format!("{TABLES}[sink.breaker]\nfailure_threshold = 0\n"))
            .await;
        assert_eq!(bad.outcome, Verdict::Rejected, "{bad:?}");
        assert!(began.elapsed() < Duration::from_secs(1));
        assert!(said(rig).is_some_and(|why| why.contains("failure_threshold")));
        assert_eq!(rig.handle.phase(), Phase::Rebuilding);
        assert!(!rebuilding.is_finished());

        rig.world.outage_ends();
        assert_eq!(rebuilding.await.expect("no panic"), Some(Verdict::Applied));
        assert_eq!(threshold(rig), 9, "in the new one too");
        assert_eq!(rig.world.connected(), (2, 1));
        let why = said(rig).expect("what was saved last is bad still");
        assert!(why.contains("failure_threshold"), "{why}");
        rig.edit(&nine);
        assert!(rig.handle.reload().await.expect("it runs").is_none());
        assert_eq!(said(rig), None);
        rig.until_seen("after").await;
        assert_eq!(rig.stop().await, Outcome::Clean);
    });
}

#[test]
fn a_rebuild_that_waits_is_given_up_for_another_or_taken_back() {
    Rig::run("", async |rig| {
        let runs = rig.handle.pipeline().expect("it runs");
        let rebuilding = rebuild_that_waits(rig).await;
        rig.edit("");
        let handle = rig.handle.clone();
        let taken_back = tokio::task::spawn_local(async move { handle.reload().await });
        rig.until("health names it", || said(rig).is_some()).await;
        let why = said(rig).expect("named");
        assert!(
            why.contains("draining what runs, waiting for sink/"),
            "{why}"
        );
        rig.world.outage_ends();
        assert!(
            taken_back
                .await
                .expect("no panic")
                .expect("it runs")
                .is_none()
        );
        assert_eq!(rebuilding.await.expect("no panic"), None);
        let now = rig.handle.pipeline().expect("it runs");
        assert!(Arc::ptr_eq(&runs, &now), "what ran goes on");
        assert_eq!((rig.handle.phase(), said(rig)), (Phase::Running, None));
        rig.until_seen("what ran goes on").await;

        let rebuilding = rebuild_that_waits(rig).await;
        rig.edit("[source]\ntables = [\"t\", \"v\"]\n[sink.breaker]\nfailure_threshold = 9\n");
        let handle = rig.handle.clone();
        let another = tokio::task::spawn_local(async move { handle.reload().await });
        rig.world.outage_ends();
        let another = another.await.expect("no panic").expect("it runs");
        assert_eq!(another.map(|r| r.outcome), Some(Verdict::Applied));
        assert_eq!(rebuilding.await.expect("no panic"), Some(Verdict::Applied));
        let tables = rig.handle.settings().borrow().source.tables.clone();
        assert_eq!(tables, ["t", "v"]);
        assert_eq!(threshold(rig), 9);
        let outcomes: Vec<Verdict> = rig
            .handle
            .reloads()
            .list()
            .iter()
            .map(|r| r.outcome)
            .collect();
        use Verdict::{Applied, Superseded};
        assert_eq!(outcomes, [Superseded, Superseded, Applied]);
        rig.until_seen("after").await;
        assert_eq!(rig.stop().await, Outcome::Clean);
    });
}

#[test]
fn while_the_breaker_is_open_nothing_is_drained_and_a_rebuild_is_taken_back_at_once() {
    Rig::run("", async |rig| {
        rig.world.write(10);
        rig.until_seen("before").await;
        rig.world.outage();
        rig.world.write(10);
        rig.in_flight().await;
        let sink = rig.handle.stage("sink").expect("a stage");
        (0..5).for_each(|_| sink.record_failure("made up"));
        rig.edit(TABLES);
        let handle = rig.handle.clone();
        let rebuilding = tokio::task::spawn_local(async move { handle.reload().await });
        rig.until("health names it", || said(rig).is_some()).await;
        let why = said(rig).expect("named");
        assert!(why.contains("waiting until the brokers take"), "{why}");
        // However long it takes: far more than a drain may.
        tokio::time::sleep(LONG).await;
        assert_eq!(rig.handle.phase(), Phase::Running);
        let began = Instant::now();
        rig.edit("");
        assert!(rig.handle.reload().await.expect("it runs").is_none());
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(said(rig), None);
        assert!(
            rebuilding
                .await
                .expect("no panic")
                .expect("it runs")
                .is_none()
        );

        rig.edit(TABLES);
        let handle = rig.handle.clone();
        let rebuilding = tokio::task::spawn_local(async move { handle.reload().await });
        rig.until("health names it", || said(rig).is_some()).await;
        rig.world.outage_ends();
        let rebuilt = rebuilding.await.expect("no panic").expect("it runs");
        assert_eq!(rebuilt.map(|r| r.outcome), Some(Verdict::Applied));
        rig.until_seen("after").await;
        assert_eq!(rig.stop().await, Outcome::Clean);
    });
}
