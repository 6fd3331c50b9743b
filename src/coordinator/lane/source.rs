//! The source's child.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::super::child::Stage;
use super::super::faults;
use super::super::supervisor::ChildScope;
use super::Lane;
use crate::policy::stage::StagePolicies;
use crate::source::Source;

/// The source's child: reads the shard's stream groups and hands batches on.
pub async fn run_source(
    lane: Arc<Lane>,
    source: Arc<dyn Source>,
    policies: StagePolicies,
    scope: ChildScope,
) -> anyhow::Result<()> {
    let mut epochs = lane.epoch.subscribe();
    loop {
        let (epoch, from) = lane.ledger.lock().resume();
        epochs.mark_unchanged();
        let mut reader = source
            .clone()
            .open_shard(lane.shard, lane.shards, epoch, from);
        reader.heed(lane.aside.subscribe());
        loop {
            let batch = tokio::select! {
                biased;
                () = scope.drain.cancelled() => return Ok(()),
                _ = epochs.changed() => break,
                batch = reader.next() => batch?,
            };
            let changes = batch.positions.len() as u32;
            let permit = tokio::select! {
                biased;
                () = scope.drain.cancelled() => return Ok(()),
                _ = epochs.changed() => break,
                permit = async {
                    policies.throttle(changes).await;
                    lane.batches.0.reserve().await
                } => permit?,
                never = reader.drive() => match never {},
            };
            let busy = scope.activity.busy();
            faults::point(&Stage::Source).await?;
            if !lane.ledger.lock().read(batch.epoch, &batch.progress) {
                break;
            }
            lane.counters.read.fetch_add(u64::from(changes), Relaxed);
            scope.activity.record(u64::from(changes).max(1));
            permit.send(batch);
            drop(busy);
        }
    }
}
