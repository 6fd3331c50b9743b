//! The transforms' child.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::super::child::Stage;
use super::super::faults;
use super::super::supervisor::{Blamed, ChildScope};
use super::Lane;
use crate::policy::stage::{Permit, StagePolicies};
use crate::transform::Chain;

/// Waits for the leave of every transform's rate limit and breaker.
async fn admit(policies: &[StagePolicies], changes: u32) -> Vec<Permit> {
    let mut permits = Vec::with_capacity(policies.len());
    if changes > 0 {
        for policy in policies {
            policy.throttle(changes).await;
            permits.push(policy.admit().await);
        }
    }
    permits
}

/// The transforms' child: makes records of batches.
pub async fn run_transforms(
    lane: Arc<Lane>,
    mut chain: Chain,
    policies: Vec<StagePolicies>,
    scope: ChildScope,
) -> anyhow::Result<()> {
    let mut batches = lane.batches.1.lock().await;
    let transforming = lane.ledger.lock().is_transforming();
    if transforming {
        lane.rewind(
            "the transforms crashed with a batch in hand",
            super::Ledger::rewind_to_handed,
        );
    }
    loop {
        let batch = tokio::select! {
            biased;
            batch = batches.recv() => batch,
            () = scope.drain.cancelled() => return Ok(()),
        };
        let Some(batch) = batch else { return Ok(()) };
        // From here on the batch is nowhere but in this child's hands: a crash, or a restart for another
        // stage's sake, has to bring it back, even one that comes while the policies make it wait.
        if !lane.ledger.lock().take(batch.epoch) {
            continue;
        }
        let changes = batch.positions.len() as u32;
        let permits = tokio::select! {
            biased;
            permits = admit(&policies, changes) => permits,
            // Nothing of it has left the process, so a drain need not wait for a breaker: it is read again.
            () = scope.drain.cancelled() => return Ok(()),
        };
        // The lane may have been rewound meanwhile.
        if !lane.ledger.lock().take(batch.epoch) {
            continue;
        }
        let busy = scope.activity.busy();
        faults::point(&Stage::Untransformed).await?;
        lane.handover.take_over(&mut chain);
        let made = tokio::task::block_in_place(|| chain.process_watched(batch, &|| busy.goes_on()));
        drop(busy);
        for (report, (permit, policy)) in chain
            .reports()
            .iter()
            .zip(permits.into_iter().zip(&policies))
        {
            let mut faults = report.faults.iter();
            match faults.next() {
                None => permit.success(),
                Some(first) => permit.failure(first),
            }
            faults.for_each(|fault| policy.record_failure(fault));
        }
        let records = Arc::new(made.map_err(|error| {
            match error.stage().parse() {
                Ok(stage) => Blamed {
                    stage,
                    error: error.into(),
                }
                .into(),
                Err(_) => anyhow::Error::from(error),
            }
        })?);
        scope.activity.record(u64::from(changes).max(1));
        let permit = tokio::select! {
            permit = lane.records.0.reserve() => permit?,
            () = scope.stranded(&Stage::Sink) => return Ok(()),
        };
        let source = &records.source;
        if lane.ledger.lock().hand(source.epoch, &source.progress) {
            lane.counters
                .transformed
                .fetch_add(u64::from(changes), Relaxed);
            lane.counters
                .dropped
                .fetch_add(u64::from(records.dropped), Relaxed);
            permit.send(records);
        }
    }
}
