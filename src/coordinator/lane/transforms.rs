//! The transforms' child.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::super::blocking;
use super::super::child::Stage;
use super::super::faults;
use super::super::supervisor::{Blamed, ChildScope};
use super::Lane;
use crate::change::RecordBatch;
use crate::policy::stage::{Permit, StagePolicies};
use crate::transform::{Chain, TransformError};

/// Waits for the leave of every transform's rate limit and breaker. The leaves of the breakers are taken together: one
/// may be the only probe of its breaker, and is not kept while another one is waited for.
async fn admit(policies: &[StagePolicies], changes: u32) -> Vec<Permit> {
    if changes == 0 {
        return Vec::new();
    }
    for policy in policies {
        policy.throttle(changes).await;
    }
    admit_all(policies).await
}

async fn admit_all(policies: &[StagePolicies]) -> Vec<Permit> {
    'anew: loop {
        let mut permits = Vec::with_capacity(policies.len());
        for policy in policies {
            match policy.try_admit() {
                Ok(permit) => permits.push(permit),
                Err(_) => {
                    drop(permits);
                    // Only its turn is waited for: it is taken with the others.
                    drop(policy.admit().await);
                    continue 'anew;
                }
            }
        }
        return permits;
    }
}

/// The transforms' child: makes records of batches.
pub async fn run_transforms(
    lane: Arc<Lane>,
    mut chain: Chain,
    policies: Vec<StagePolicies>,
    scope: ChildScope,
) -> anyhow::Result<()> {
    let mut batches = lane.batches.1.lock().await;
    let _telling = lane.counters.works.telling();
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
        let traces = lane.traces(&batch);
        let began = Instant::now();
        let epoch = batch.epoch;
        let made = blocking(|| {
            let _logged = traces.logged();
            chain.process_watched(batch, &|| busy.goes_on())
        });
        drop(busy);
        settle(&lane, &chain, permits, &policies);
        let made = tokio::select! {
            biased;
            made = until_done(&lane, &mut chain, &policies, &scope, epoch, made) => made,
            // As above: nothing of it has left the process.
            () = scope.drain.cancelled() => return Ok(()),
        };
        let Some(made) = made else { continue };
        let mut records = made.map_err(|error| match error.stage().parse() {
            Ok(stage) => Blamed {
                stage,
                error: error.into(),
            }
            .into(),
            Err(_) => anyhow::Error::from(error),
        })?;
        lane.trace(&mut records, traces, began, chain.reports());
        let records = Arc::new(records);
        scope.activity.record(u64::from(changes).max(1));
        let permit = tokio::select! {
            biased;
            permit = lane.records.0.reserve() => permit?,
            () = scope.stranded(&Stage::Sink) => return Ok(()),
            // The sink may wait for a letter to be kept, and is asked to drain only after this.
            () = scope.stranded(&Stage::DeadLetter) => return Ok(()),
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

/// Tells the policies of the transforms how it went.
fn settle(lane: &Lane, chain: &Chain, permits: Vec<Permit>, policies: &[StagePolicies]) {
    let reports = chain.reports();
    // A batch without changes needs no leave, and tells of a transform that was swapped.
    reports.iter().for_each(|r| lane.counters.works.note(r));
    let permits = permits.into_iter().zip(policies);
    for (report, (permit, policy)) in reports.iter().zip(permits) {
        let mut faults = report.faults.iter();
        match faults.next() {
            None => permit.success(),
            Some(first) => permit.failure(first),
        }
        faults.for_each(|fault| policy.record_failure(fault));
    }
}

/// As long as a transform says "not yet" to a change: waits as its retry policy has it, and for the breakers, and asks
/// again. Once that policy has an end, the change is refused. `None`: the lane was rewound meanwhile.
async fn until_done(
    lane: &Lane,
    chain: &mut Chain,
    policies: &[StagePolicies],
    scope: &ChildScope,
    epoch: u64,
    mut made: Result<RecordBatch, TransformError>,
) -> Option<Result<RecordBatch, TransformError>> {
    let mut waits = None;
    while let Err(TransformError::NotYet {
        stage,
        place,
        error,
        tries,
    }) = &made
    {
        let (place, Some(policy)) = (*place, policies.get(*place)) else {
            break;
        };
        if waits.is_none() {
            let shard = lane.shard;
            tracing::warn!(shard, %stage, error, "a transform puts a change off, it is tried again");
        }
        let waits = waits.get_or_insert_with(|| lane.counters.works.waits());
        waits.say(stage, error);
        let again = policy.back_off(*tries).await;
        if !again {
            tracing::warn!(%stage, error, tries, "a transform put a change off too often, it is refused");
        }
        let permits = admit_all(policies.get(place..)?).await;
        if !lane.ledger.lock().take(epoch) {
            return None;
        }
        let busy = scope.activity.busy();
        lane.handover.take_over(chain);
        let pulse = || busy.goes_on();
        made = blocking(|| chain.go_on(!again, &pulse))?;
        drop(busy);
        settle(lane, chain, permits, &policies[place..]);
    }
    Some(made)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::watch;

    use super::*;
    use crate::config::settings::{Policies, Settings};
    use crate::policy::breaker::State;

    /// Two shards, two transforms: the first's breaker is half-open, the second's open.
    #[tokio::test(start_paused = true)]
    async fn the_probe_of_one_transform_is_not_kept_while_another_is_waited_for() {
        let live = watch::Sender::new(std::sync::Arc::new(
            Settings::for_tests(Policies::default()),
        ));
        let policies = ["transform.one", "transform.two"]
            .map(|stage| StagePolicies::new(stage, live.subscribe()));
        let open = |policy: &StagePolicies| {
            while policy.snapshot().breaker == State::Closed {
                policy.record_failure("broken");
            }
        };
        open(&policies[0]);
        tokio::time::sleep(Duration::from_secs(20)).await;
        open(&policies[1]);
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(policies[0].snapshot().breaker, State::HalfOpen);
        assert_eq!(policies[1].snapshot().breaker, State::Open);

        let mut waiting = Box::pin(admit(&policies, 1));
        let early = tokio::time::timeout(Duration::from_secs(1), &mut waiting).await;
        assert!(early.is_err(), "the second is open");
        let probe = policies[0].try_admit();
        probe.expect("another shard may probe the first").success();
        let both = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        assert_eq!(both.expect("it is half-open by then").len(), 2);
    }
}
