//! The sink's child: has batches delivered, keeps what can never be, and settles.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::super::child::Stage;
use super::super::dead_letters::Keeper;
use super::super::ledger::Ledger;
use super::super::supervisor::ChildScope;
use super::Lane;
use super::delivery::{Delivery, Ended, committed};
use super::work::Undone;
use crate::config::LiveSettings;
use crate::dead_letter::flood::Flooded;
use crate::policy::Class;
use crate::policy::stage::StagePolicies;
use crate::sink::{Settle, SinkError, Standing};
use crate::source::Source;

/// Refusals that are followed by another try at once: which topics take nothing is known by then.
const AT_ONCE: u32 = 2;
/// What is refused is tried again after this long, so that a right that was given is noticed.
const REFUSED: Duration = Duration::from_secs(1);

/// What the sink's child works with.
pub struct SinkParts {
    /// Told what is committed.
    pub source: Arc<dyn Source>,
    /// The shard's producer.
    pub sink: Box<dyn Settle>,
    /// Where poison goes.
    pub dead_letters: Keeper,
    /// Of stage `sink`.
    pub policies: StagePolicies,
    /// For intervals and bounds.
    pub live: LiveSettings,
    /// `pipeline.name`
    pub pipeline: Arc<str>,
    /// Told of stages that are to fail, and why.
    pub failed: FailedStages,
    /// How often the checkpoint topic was made again.
    pub remade: watch::Receiver<u64>,
}

/// Where a lane says that a stage is to fail, and why.
pub type FailedStages = mpsc::Sender<FailedStage>;

/// A stage that is to fail.
#[derive(Debug)]
pub struct FailedStage {
    /// Which.
    pub stage: Stage,
    /// Why.
    pub cause: String,
    /// When the changes were read that say so: if the stage was started anew since, they say nothing of what it is now.
    pub read_at: std::time::Instant,
    /// Kept until the stage is started anew: the lane waits for that.
    pub revived: oneshot::Sender<()>,
}

/// The sink's child: opens the shard, then delivers until it is told to drain, going back where it must.
pub async fn run_sink(
    lane: Arc<Lane>,
    mut parts: SinkParts,
    scope: ChildScope,
) -> anyhow::Result<()> {
    let mut records = lane.records.1.lock().await;
    let (atomic, mut failures, mut anew) = (parts.sink.is_atomic(), 0, false);
    let opened = tokio::select! {
        biased;
        opened = open(&lane, &mut parts, &mut failures) => opened?,
        // Nothing is in its hands yet, and the brokers may be away for long.
        () = scope.drain.cancelled() => return Ok(()),
    };
    go_back(
        &lane,
        atomic,
        opened,
        "the sink crashed with batches in flight",
    );
    loop {
        let mut delivery = Delivery::new(
            &lane,
            &*parts.source,
            &parts.dead_letters,
            &parts.pipeline,
            &scope,
            &mut failures,
            &mut anew,
        );
        let ended = delivery
            .run(
                &mut *parts.sink,
                &parts.live,
                &mut parts.remade,
                &mut records,
            )
            .await;
        let open = delivery.settling;
        if let Err(Ended::Delivery(error)) = &ended {
            delivery.traced.failed(&lane.spans, error);
        }
        let why = match ended {
            Ok(()) => {
                match lane.keeps_producer.load(Relaxed) && parts.sink.rest() {
                    true => lane.keep(parts.sink),
                    false => parts.sink.close().await,
                }
                return Ok(());
            }
            Err(Ended::Crash(error)) => return Err(error),
            Err(Ended::LetGo) => {
                if !atomic {
                    settle_rest(&lane, &mut parts).await?;
                }
                return Ok(());
            }
            Err(Ended::Delivery(error)) if error.class() == Class::Fatal => {
                return Err(error.into());
            }
            Err(Ended::Park(waiting)) => {
                // Nothing is in flight, and all that was delivered is settled.
                lane.park(waiting);
                lane.rewind(
                    "stream groups wait for a topic",
                    Ledger::rewind_to_delivered,
                );
                continue;
            }
            Err(Ended::Delivery(error)) => {
                let error = parts.sink.explain(error).await;
                let tried = match &error {
                    SinkError::Refused { topic, .. } => lane.parking.lock().refused(topic),
                    _ => false,
                };
                if tried {
                    lane.tell_source();
                }
                lane.did_not_fit(&error, open.changes, open.since.map(|at| at.elapsed()));
                failures += 1;
                tracing::warn!(shard = lane.shard, %error, failures, "delivery failed, going back");
                // An answer is not an outage: what follows from it is done at once, and a topic's records wait for their
                // topic. But nothing waits for a topic of ours: the lane does.
                match error {
                    SinkError::Suspect { .. } | SinkError::Narrower { .. } => {}
                    SinkError::Refused { .. } if tried || failures <= AT_ONCE => {}
                    SinkError::Refused { .. } | SinkError::Forbidden { .. } => {
                        tokio::time::sleep(REFUSED).await;
                    }
                    error if !parts.policies.back_off(failures).await => return Err(error.into()),
                    _ => {}
                }
                "delivery failed"
            }
            Err(Ended::Flood(flood, read_at)) => {
                // Nothing stays open while it waits: readers of committed records would wait with it.
                let found = reset(&lane, &mut parts, &mut failures).await?;
                if !fail_stage(flood, read_at, &parts.failed, &scope).await? {
                    return Ok(());
                }
                go_back(
                    &lane,
                    atomic,
                    found,
                    "the stage that the lane waited for was mended",
                );
                continue;
            }
        };
        let found = tokio::select! {
            biased;
            found = reset(&lane, &mut parts, &mut failures) => found?,
            () = scope.drain.cancelled() => return Ok(()),
        };
        // A topic that was just made again says nothing of where the shard is.
        let found = found.filter(|_| parts.remade.has_changed().is_ok_and(|changed| !changed));
        go_back(&lane, atomic, found, why);
    }
}

/// Takes the shard, however long the brokers are away.
async fn open(
    lane: &Lane,
    parts: &mut SinkParts,
    failures: &mut u32,
) -> anyhow::Result<Option<Standing>> {
    loop {
        let error = match parts.sink.open().await {
            Ok(found) => return Ok(found),
            Err(error) if error.class() == Class::Fatal => return Err(error.into()),
            Err(error) => error,
        };
        *failures += 1;
        tracing::warn!(shard = lane.shard, %error, failures = *failures, "the shard could not be opened");
        if matches!(error, SinkError::Forbidden { .. }) {
            tokio::time::sleep(REFUSED).await;
        } else if !parts.policies.back_off(*failures).await {
            return Err(error.into());
        }
    }
}

/// Lets go of what is not settled and takes the shard again.
async fn reset(
    lane: &Lane,
    parts: &mut SinkParts,
    failures: &mut u32,
) -> anyhow::Result<Option<Standing>> {
    match parts.sink.reset().await {
        Ok(found) => Ok(found),
        Err(error) if error.class() == Class::Fatal => Err(error.into()),
        Err(error) => {
            tracing::warn!(shard = lane.shard, %error, "the shard could not be taken again at once");
            open(lane, parts, failures).await
        }
    }
}

/// Has the lane go on from where the sink is.
fn go_back(lane: &Lane, atomic: bool, found: Option<Standing>, why: &str) {
    let (known, in_flight) = {
        let ledger = lane.ledger.lock();
        let committed = ledger.committed();
        let known = found.as_ref().is_none_or(|f| f.checkpoints == *committed);
        (known && ledger.is_settled(), ledger.in_flight().batches > 0)
    };
    match found {
        // Nobody has done anything since the lane was made or settled.
        _ if known && !in_flight => {}
        Some(Standing {
            checkpoints,
            is_ours,
        }) => {
            // A commit that was not answered: did it happen, it covers all that was delivered. But whoever had the shard
            // meanwhile may have done the same, and has counted it.
            let happened = is_ours && checkpoints == *lane.ledger.lock().delivered();
            let undone = std::mem::take(&mut *lane.undone.lock());
            if happened {
                undone.count(&lane.counters);
            }
            lane.rewind(why, |ledger| ledger.rewind_to(checkpoints));
        }
        None if atomic => {
            *lane.undone.lock() = Undone::default();
            lane.rewind(why, |ledger| ledger.rewind_to(ledger.committed().clone()));
        }
        None => lane.rewind(why, Ledger::rewind_to_delivered),
    }
}

/// Has the stage that flooded the dead letters failed. Its changes stay unacknowledged, so this lane waits here
/// until the stage is started anew; `false`: until it is stopped.
async fn fail_stage(
    flood: Flooded,
    read_at: std::time::Instant,
    failed: &FailedStages,
    scope: &ChildScope,
) -> anyhow::Result<bool> {
    let (revived, waiting) = oneshot::channel();
    let stage = match flood.stage.parse() {
        Ok(stage) => stage,
        Err(error) => return Err(anyhow::Error::from(flood).context(error)),
    };
    let stage = FailedStage {
        stage,
        cause: flood.to_string(),
        read_at,
        revived,
    };
    if failed.send(stage).await.is_err() {
        return Err(flood.into());
    }
    tokio::select! {
        biased;
        () = scope.drain.cancelled() => Ok(false),
        // Dropped or sent: nobody holds it for failed any more.
        _ = waiting => Ok(true),
    }
}

/// Commits what is delivered although more is in flight, of which nothing will come any more.
async fn settle_rest(lane: &Lane, parts: &mut SinkParts) -> Result<(), SinkError> {
    let settlement = lane.ledger.lock().settlement();
    if !settlement.is_empty() {
        parts.sink.settle(&[], &settlement).await?;
        lane.ledger.lock().commit(&settlement);
        committed(lane, &*parts.source, &settlement);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::source::{batch, table};
    use super::*;
    use crate::change::GroupKey;
    use crate::checkpoint::Checkpoints;

    /// A lane that has delivered three changes, and whose commit of them was not answered.
    fn in_doubt() -> Arc<Lane> {
        let lane = Lane::new(0, 1, Checkpoints::new(), Arc::default(), Arc::default());
        let group = GroupKey("ks.t/1/00".into());
        let made = batch((0, 0), (0, group), &table(), 1..=3);
        {
            let mut ledger = lane.ledger.lock();
            assert!(ledger.read(0, &made.progress) && ledger.take(0));
            assert!(ledger.hand(0, &made.progress) && ledger.submit(0, 3));
            ledger.deliver(3, &made.progress);
        }
        lane.undone.lock().add(&made, 0, true);
        lane
    }

    #[test]
    fn a_commit_in_doubt_counts_only_where_nobody_else_can_have_done_it() {
        for (is_ours, done) in [(true, 3), (false, 0)] {
            let lane = in_doubt();
            let checkpoints = lane.ledger.lock().delivered().clone();
            let found = Standing {
                checkpoints: checkpoints.clone(),
                is_ours,
            };
            go_back(&lane, true, Some(found), "an answer was lost");
            assert_eq!(lane.committed(), checkpoints);
            assert_eq!(lane.counters.done.load(Relaxed), done, "is_ours {is_ours}");
        }
    }
}
