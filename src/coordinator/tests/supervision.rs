//! What becomes of children that crash.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::super::Outcome;
use super::super::supervisor::Standing;
use super::Rig;

const PATIENT: &str = "[source.supervision]\nmax_restarts = 2\nwithin = \"60s\"\n";

#[test]
fn a_reader_that_crashes_is_started_again_and_loses_nothing() {
    Rig::run(PATIENT, async |rig| {
        rig.world.write(10);
        rig.until_seen("before").await;
        rig.world.source_crashes.store(2, Relaxed);
        rig.world.write(10);
        rig.until_seen("after").await;
        let restarts: u64 = rig.handle.children().iter().map(|c| c.restarts).sum();
        assert_eq!(restarts, 2);
        rig.reload(&format!("[source]\ntables = [\"t\", \"u\"]\n{PATIENT}"))
            .await;
        let restarts: u64 = rig.handle.children().iter().map(|c| c.restarts).sum();
        assert_eq!(restarts, 2, "a rebuild resets no count");
        assert_eq!(rig.stop().await, Outcome::Clean);
    });
}

#[test]
fn a_rebuild_forgets_no_crash_of_a_moment_ago() {
    Rig::run(PATIENT, async |rig| {
        rig.world.write(10);
        rig.until_seen("before").await;
        rig.world.source_crashes.store(2, Relaxed);
        rig.world.write(10);
        rig.until_seen("after two crashes, of two that it may have")
            .await;
        let rebuilt = format!("[source]\ntables = [\"t\", \"u\"]\n{PATIENT}");
        rig.reload(&rebuilt).await;
        rig.world.source_crashes.store(1, Relaxed);
        rig.world.write(10);
        let handle = rig.handle.clone();
        let failed = || {
            let children = handle.children();
            let mut readers = children.iter().filter(|c| c.stage == "source");
            readers.all(|c| c.state == Standing::Failed)
        };
        rig.until("it is given up on", failed).await;
        // What is given up on starts anew with a rebuild, as with any change.
        rig.reload(PATIENT).await;
        rig.until_seen("after").await;
        assert_eq!(rig.stop().await, Outcome::Clean);
    });
}

#[test]
fn a_stage_that_was_given_up_on_starts_anew_with_the_next_reload() {
    Rig::run(PATIENT, async |rig| {
        rig.world.source_crashes.store(u32::MAX, Relaxed);
        rig.world.write(10);
        let handle = rig.handle.clone();
        let failed = || {
            let children = handle.children();
            let mut readers = children.iter().filter(|c| c.stage == "source");
            readers.all(|c| c.state == Standing::Failed)
        };
        rig.until("it is given up on", failed).await;
        rig.until("health tells", || handle.ready().is_err()).await;

        rig.world.source_crashes.store(0, Relaxed);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(failed(), "nobody but a person starts it anew");
        rig.reload(&format!("{PATIENT}[sink.breaker]\nfailure_threshold = 9\n"))
            .await;
        rig.until_seen("after").await;
        rig.until("health tells", || handle.ready().is_ok()).await;
    });
}

#[test]
fn who_is_fenced_under_load_ends_at_once() {
    Rig::run("", async |rig| {
        rig.world.write(10);
        rig.until_seen("before").await;
        rig.world.outage();
        // More than the channels of a lane hold: its transforms wait for a sink that takes nothing any more.
        rig.world.write(100_000);
        tokio::time::sleep(Duration::from_secs(5)).await;
        for shard in 0..2 {
            rig.cluster().fence(shard);
        }
        let fenced = tokio::time::Instant::now();
        rig.world.outage_ends();
        assert_eq!(rig.ended().await, Outcome::Fenced);
        let took = fenced.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
    });
}
