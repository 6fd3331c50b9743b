//! What becomes of tables that a plugin cannot be asked about, or does not take.

use std::sync::Arc;
use std::time::Duration;

use super::super::Outcome;
use super::Rig;

/// A transform by the plugin `p`, whose breaker opens after some batches more than come first.
const TRANSFORM: &str = "[[transform]]\nname = \"one\"\nplugin = \"FOLDER/p.wasm\"\n\
    [transform.breaker]\nfailure_threshold = 40\nopen_for = \"5m\"\n";

/// What health says of the transform.
fn said(rig: &Rig) -> Option<Arc<str>> {
    let report = rig.handle.health().borrow().clone();
    let mut all = report.components.into_iter();
    all.find(|c| &*c.name == "transform.one")?.reason
}

fn says(rig: &Rig, words: &str) -> bool {
    said(rig).is_some_and(|said| said.starts_with(words))
}

/// Has changes come until health says nothing of the transform.
async fn until_well(rig: &Rig) {
    let well = || {
        rig.world.write(1);
        said(rig).is_none()
    };
    rig.until("it is well", well).await;
}

#[test]
fn a_table_that_cannot_be_opened_is_told_by_name_and_opens_the_breaker() {
    Rig::run_with(&[("p", "opens nothing")], TRANSFORM, async |rig| {
        rig.world.write(1);
        let told = "all changes of ks.t are refused: open-table: deadline of ";
        rig.until("it is told from the first on", || says(rig, told))
            .await;
        let opened = || {
            rig.world.write(1);
            says(rig, "breaker open: ks.t: open-table: deadline of ")
        };
        rig.until("the breaker opens", opened).await;

        // What was let in before is through.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let letters = rig.cluster().letters.lock().len();
        rig.world.write(100);
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(rig.cluster().letters.lock().len(), letters, "they wait");

        rig.rebuild("p", "pass");
        rig.handle.reload().await.expect("it runs");
        // A probe meets the one that was rebuilt.
        tokio::time::sleep(Duration::from_secs(300)).await;
        until_well(rig).await;
        assert_eq!(rig.stop().await, Outcome::Clean);
    });
}

#[test]
fn a_table_that_a_plugin_does_not_take_is_told_by_name_and_counts_for_no_breaker() {
    Rig::run_with(&[("p", "declines")], TRANSFORM, async |rig| {
        for _ in 0..60 {
            rig.world.write(1);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let told = "all changes of ks.t are refused: not this table";
        assert_eq!(said(rig).as_deref(), Some(told));
        rig.handle.ready().expect("others may be served");

        rig.rebuild("p", "pass");
        rig.handle.reload().await.expect("it runs");
        until_well(rig).await;
        assert_eq!(rig.stop().await, Outcome::Clean);
    });
}
