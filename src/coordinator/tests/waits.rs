//! What health says of waits.

use std::time::Duration;

use super::super::Outcome;
use super::Rig;

/// As it was seen on a Kafka that made a hundred topics at once, for four shards: what one takes, ms.
const TOOK: [u64; 8] = [240, 1_150, 310, 870, 90, 760, 1_900, 420];
const TOPICS: usize = 100;

#[test]
fn health_does_not_flap_while_topics_are_made() {
    Rig::run("[health]\ncheck_interval = \"1s\"\n", async |rig| {
        let sink = rig.handle.stage("sink").expect("a sink");
        let mut health = rig.handle.health();
        let said = |report: &crate::coordinator::report::Report| {
            let mut all = report.components.iter();
            all.find(|c| &*c.name == "sink")?.reason.clone()
        };
        rig.world.write(1);
        rig.until_seen("before").await;
        let shards = (0..4).map(|shard| {
            let waits = sink.waits();
            async move {
                for topic in 0..TOPICS / 4 {
                    let took = Duration::from_millis(TOOK[(topic * 3 + shard) % TOOK.len()]);
                    waits
                        .during("look for a topic", tokio::time::sleep(took))
                        .await;
                }
            }
        });
        let mut told = vec![None];
        let over = async {
            futures::future::join_all(shards).await;
            tokio::time::sleep(Duration::from_secs(10)).await;
        };
        let mut over = std::pin::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => break,
                changed = health.changed() => changed.expect("it runs"),
            }
            let now = said(&health.borrow_and_update());
            if told.last() != Some(&now) {
                told.push(now);
            }
        }
        let reason = Some("waiting to look for a topic".into());
        assert_eq!(told, [None, reason, None]);
        assert_eq!(rig.stop().await, Outcome::Clean);
    });
}
