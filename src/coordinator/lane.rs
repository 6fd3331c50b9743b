//! A lane carries one shard's changes from the source to the sink, in order.
//!
//! Three children work on it, one a stage, joined by bounded channels. What they share lies here, outside any
//! of them, so that each can crash and be started again without taking the others down or losing a change:
//!
//! - `read` is what the source has handed to the transforms, `handed` what the transforms have handed to the
//!   sink, `acked` what Redpanda has acknowledged or the dead letters have taken in. All three are
//!   checkpoints; `acked ≤ handed ≤ read`.
//! - A crashed source goes on after `read`. A transform that crashed while it held a batch *rewinds* the lane
//!   to `handed`; a sink whose delivery failed rewinds it to `acked`. A rewind starts a new epoch: the source
//!   reads again from there, and what is still in the channels from earlier epochs is let go of.
//! - A sink that crashes has lost its producer's queue with it: it starts with a rewind to `acked`.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::child::Stage;
use super::dead_letters::Keeper;
use super::faults;
use super::supervisor::{Blamed, ChildScope};
use super::transforms::Handover;
use crate::change::{Batch, GroupKey, Progress, RecordBatch};
use crate::checkpoint::Checkpoints;
use crate::config::LiveSettings;
use crate::dead_letter::DeadLetter;
use crate::dead_letter::flood::Flooded;
use crate::policy::Class;
use crate::policy::stage::{Permit, StagePolicies};
use crate::sink::redpanda::ShardSink;
use crate::sink::{Delivered, SinkError, Ticket};
use crate::source::Source;
use crate::transform::Chain;

/// Batches that wait between two stages: one being worked on, one ready. More would only add memory, since
/// what bounds throughput is the sink's window (`max_in_flight`).
const CHANNEL: usize = 2;

/// What has gone through a lane since the process started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Changes that the source handed on.
    pub read: AtomicU64,
    /// Changes that the transforms are through with.
    pub transformed: AtomicU64,
    /// Changes that a transform dropped.
    pub dropped: AtomicU64,
    /// Records handed to the producer.
    pub records: AtomicU64,
    /// Changes that are done: acknowledged, dead-lettered or dropped.
    pub done: AtomicU64,
    /// Records that Redpanda acknowledged.
    pub acknowledged: AtomicU64,
    /// Dead letters written.
    pub dead_letters: AtomicU64,
    /// Rewinds after a failed delivery or a crash.
    pub rewinds: AtomicU64,
    /// Checkpoints written.
    pub commits: AtomicU64,
    /// `cdc$time` of the newest change that is done, µs since the Unix epoch.
    pub newest_done_us: AtomicU64,
}

/// Changes and batches that the sink has taken and not settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct InFlight {
    batches: usize,
    changes: usize,
}

#[derive(Default)]
struct State {
    epoch: u64,
    read: Checkpoints,
    handed: Checkpoints,
    acked: Checkpoints,
    /// Groups whose `acked` is newer than what the checkpoint topic has.
    dirty: BTreeSet<GroupKey>,
    /// Whether the transforms hold a batch that is in neither channel.
    transforming: bool,
    in_flight: InFlight,
}

/// See the module.
pub struct Lane {
    /// The slot.
    pub shard: u32,
    /// How many slots there are.
    pub shards: u32,
    /// What went through, also before a rebuild.
    pub counters: Arc<Counters>,
    /// Where a changed transform waits for the next batch boundary.
    pub handover: Handover,
    state: Mutex<State>,
    epoch: watch::Sender<u64>,
    batches: (
        mpsc::Sender<Batch>,
        tokio::sync::Mutex<mpsc::Receiver<Batch>>,
    ),
    records: (
        mpsc::Sender<Arc<RecordBatch>>,
        tokio::sync::Mutex<mpsc::Receiver<Arc<RecordBatch>>>,
    ),
}

fn apply(checkpoints: &mut Checkpoints, progress: &[Progress]) {
    for p in progress {
        checkpoints.entry(p.group.clone()).or_default().apply(p);
    }
}

impl Lane {
    /// A lane that goes on from its checkpoints, and from the counts of the one that it replaces.
    pub fn new(
        shard: u32,
        shards: u32,
        checkpoints: Checkpoints,
        counters: Arc<Counters>,
    ) -> Arc<Self> {
        let (batch_tx, batch_rx) = mpsc::channel(CHANNEL);
        let (record_tx, record_rx) = mpsc::channel(CHANNEL);
        Arc::new(Self {
            shard,
            shards,
            counters,
            handover: Handover::default(),
            state: Mutex::new(State {
                read: checkpoints.clone(),
                handed: checkpoints.clone(),
                acked: checkpoints,
                ..State::default()
            }),
            epoch: watch::Sender::new(0),
            batches: (batch_tx, tokio::sync::Mutex::new(batch_rx)),
            records: (record_tx, tokio::sync::Mutex::new(record_rx)),
        })
    }

    /// Changes that the sink holds and Redpanda has not acknowledged.
    pub fn in_flight(&self) -> usize {
        self.state.lock().in_flight.changes
    }

    /// Batches that wait before the transforms and before the sink, each out of [`Self::queue_capacity`].
    pub fn queued(&self) -> (usize, usize) {
        (
            CHANNEL - self.batches.0.capacity(),
            CHANNEL - self.records.0.capacity(),
        )
    }

    /// The room of a queue between two stages, in batches.
    pub fn queue_capacity() -> usize {
        CHANNEL
    }

    /// What is done, group by group.
    pub fn acked(&self) -> Checkpoints {
        self.state.lock().acked.clone()
    }

    /// Notes that the transforms hold a batch of this epoch; `false`: the lane was rewound since it was read.
    fn take_in_hand(&self, epoch: u64) -> bool {
        let mut state = self.state.lock();
        state.transforming = state.epoch == epoch;
        state.transforming
    }

    fn rewind(&self, why: &str, to: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        to(&mut state);
        state.epoch += 1;
        state.transforming = false;
        self.counters.rewinds.fetch_add(1, Relaxed);
        tracing::info!(
            shard = self.shard,
            epoch = state.epoch,
            why,
            "shard rewound"
        );
        self.epoch.send_replace(state.epoch);
    }

    fn rewind_to_handed(&self, why: &str) {
        self.rewind(why, |state| state.read = state.handed.clone());
    }

    fn rewind_to_acked(&self, why: &str) {
        self.rewind(why, |state| {
            state.in_flight = InFlight::default();
            state.handed = state.acked.clone();
            state.read = state.acked.clone();
        });
    }
}

/// The source's child: reads the shard's stream groups and hands batches on.
pub async fn run_source(
    lane: Arc<Lane>,
    source: Arc<dyn Source>,
    policies: StagePolicies,
    scope: ChildScope,
) -> anyhow::Result<()> {
    let mut epochs = lane.epoch.subscribe();
    loop {
        let (epoch, from) = {
            let state = lane.state.lock();
            (state.epoch, state.read.clone())
        };
        epochs.mark_unchanged();
        let mut reader = source
            .clone()
            .open_shard(lane.shard, lane.shards, epoch, from);
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
            let mut state = lane.state.lock();
            if state.epoch != batch.epoch {
                break;
            }
            apply(&mut state.read, &batch.progress);
            drop(state);
            lane.counters.read.fetch_add(u64::from(changes), Relaxed);
            scope.activity.record(u64::from(changes).max(1));
            permit.send(batch);
            drop(busy);
        }
    }
}

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
    if lane.state.lock().transforming {
        lane.rewind_to_handed("the transforms crashed with a batch in hand");
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
        if !lane.take_in_hand(batch.epoch) {
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
        if !lane.take_in_hand(batch.epoch) {
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
        let mut state = lane.state.lock();
        state.transforming = false;
        if state.epoch == records.source.epoch {
            apply(&mut state.handed, &records.source.progress);
            drop(state);
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

/// What the sink's child works with.
pub struct SinkParts {
    /// Told what is done.
    pub source: Arc<dyn Source>,
    /// The shard's producer.
    pub sink: ShardSink,
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
    /// Kept until the stage is started anew: the lane waits for that.
    pub mended: oneshot::Sender<()>,
}

/// Batches that may wait for their acknowledgement; `max_in_flight` bounds the changes in them.
const IN_FLIGHT_BATCHES: usize = 1_024;

/// The sink's child: produces, waits for acknowledgements, writes dead letters and checkpoints.
pub async fn run_sink(
    lane: Arc<Lane>,
    mut parts: SinkParts,
    scope: ChildScope,
) -> anyhow::Result<()> {
    let mut records = lane.records.1.lock().await;
    if lane.state.lock().in_flight.batches > 0 {
        lane.rewind_to_acked("the sink crashed with batches in flight");
    }
    let mut failures = 0;
    loop {
        let mut delivery = Delivery {
            lane: &lane,
            source: &*parts.source,
            dead_letters: &parts.dead_letters,
            pipeline: &parts.pipeline,
            failed: &parts.failed,
            scope: &scope,
            in_flight: VecDeque::new(),
            failures: &mut failures,
        };
        match delivery
            .run(&mut parts.sink, &parts.live, &mut records)
            .await
        {
            Ok(()) => return Ok(()),
            Err(Ended::Crash(error)) => return Err(error),
            Err(Ended::LetGo) => return Ok(commit(&lane, &mut parts.sink).await?),
            Err(Ended::Mended) => {
                parts.sink.reset().await?;
                lane.rewind_to_acked("the stage that the lane waited for was mended");
            }
            Err(Ended::Delivery(error)) if error.class() == Class::Fatal => {
                return Err(error.into());
            }
            Err(Ended::Delivery(error)) => {
                failures += 1;
                tracing::warn!(shard = lane.shard, %error, failures, "delivery failed, rewinding");
                parts.sink.reset().await?;
                lane.rewind_to_acked("delivery failed");
                if !parts.policies.back_off(failures).await {
                    return Err(error.into());
                }
            }
        }
    }
}

/// Why the delivery of a lane ended before its time.
#[derive(Debug)]
enum Ended {
    /// A batch was not delivered.
    Delivery(SinkError),
    /// The child itself is at fault.
    Crash(anyhow::Error),
    /// It was told to drain, and what it still holds cannot be settled: the stage for it was given up on.
    LetGo,
    /// The stage that it waited for was started anew.
    Mended,
}

impl From<SinkError> for Ended {
    fn from(error: SinkError) -> Self {
        Self::Delivery(error)
    }
}

impl From<anyhow::Error> for Ended {
    fn from(error: anyhow::Error) -> Self {
        Self::Crash(error)
    }
}

type Submitted = (Arc<RecordBatch>, Ticket);

/// One run of the sink's child, from its start or a rewind to the next failure.
struct Delivery<'a> {
    lane: &'a Lane,
    source: &'a dyn Source,
    dead_letters: &'a Keeper,
    pipeline: &'a str,
    failed: &'a FailedStages,
    scope: &'a ChildScope,
    /// What the producer has, oldest first; bounded by `max_in_flight`.
    in_flight: VecDeque<Submitted>,
    /// Failed deliveries since the last success.
    failures: &'a mut u32,
}

impl Delivery<'_> {
    /// Takes records from the transforms, hands them to the producer within the bound on what is in flight,
    /// follows the acknowledgements in order and, at intervals, writes checkpoints.
    async fn run(
        &mut self,
        sink: &mut ShardSink,
        live: &LiveSettings,
        records: &mut mpsc::Receiver<Arc<RecordBatch>>,
    ) -> Result<(), Ended> {
        let mut committed_at = Instant::now();
        let mut live = live.clone();
        loop {
            let (room, commit_due) = {
                let settings = live.borrow_and_update();
                let room = self.lane.in_flight() < settings.pipeline.max_in_flight.get() as usize;
                (
                    room && self.in_flight.len() < IN_FLIGHT_BATCHES,
                    committed_at + settings.sink.checkpoint_interval,
                )
            };
            let dirty = !self.lane.state.lock().dirty.is_empty();
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(commit_due.into()), if dirty => {
                    commit(self.lane, sink).await?;
                    committed_at = Instant::now();
                }
                delivered = next_delivered(&mut self.in_flight), if !self.in_flight.is_empty() => {
                    self.settle(delivered?).await?;
                }
                Some(batch) = records.recv(), if room => self.submit(sink, batch).await?,
                // Another interval or another bound: both are looked at anew. Without a sender nothing changes.
                Ok(()) = live.changed() => {}
                // Only once there is nothing left to do: the transforms are through before the sink drains.
                () = self.scope.drain.cancelled(), if self.in_flight.is_empty() && records.is_empty() => {
                    return Ok(commit(self.lane, sink).await?);
                }
            }
        }
    }

    /// Hands a batch to the producer. That may wait for the breaker or a full queue; what was handed over
    /// before is followed meanwhile.
    async fn submit(&mut self, sink: &mut ShardSink, batch: Arc<RecordBatch>) -> Result<(), Ended> {
        {
            let mut state = self.lane.state.lock();
            if state.epoch != batch.source.epoch {
                return Ok(());
            }
            state.in_flight.batches += 1;
            state.in_flight.changes += batch.source.positions.len();
        }
        let busy = self.scope.activity.busy();
        faults::point(&Stage::Sink).await?;
        drop(busy);
        let mut handed = std::pin::pin!(sink.submit(batch.clone()));
        let ticket = loop {
            tokio::select! {
                biased;
                ticket = &mut handed => break ticket?,
                delivered = next_delivered(&mut self.in_flight), if !self.in_flight.is_empty() => {
                    self.settle(delivered?).await?;
                }
            }
        };
        self.lane
            .counters
            .records
            .fetch_add(batch.records.len() as u64, Relaxed);
        self.in_flight.push_back((batch, ticket));
        Ok(())
    }

    /// Has the stage that flooded the dead letters failed. Its changes stay unacknowledged, so this lane waits
    /// here until the stage is started anew and goes back to read them again, or until it is stopped.
    async fn fail_stage(&self, flood: Flooded) -> Ended {
        let (mended, waiting) = oneshot::channel();
        let stage = match flood.stage.parse() {
            Ok(stage) => stage,
            Err(error) => return Ended::Crash(anyhow::Error::from(flood).context(error)),
        };
        let failed = FailedStage {
            stage,
            cause: flood.to_string(),
            mended,
        };
        if self.failed.send(failed).await.is_err() {
            return Ended::Crash(flood.into());
        }
        tokio::select! {
            biased;
            () = self.scope.drain.cancelled() => Ended::LetGo,
            // Dropped or sent: nobody holds it for failed any more.
            _ = waiting => Ended::Mended,
        }
    }

    /// Has the stage `dead_letter` keep what is poison. It is never given up on but in a drain, when that stage
    /// has failed.
    async fn keep(&self, letters: Vec<DeadLetter>) -> Result<(), Ended> {
        let kept = tokio::select! {
            kept = self.dead_letters.keep(letters) => kept,
            () = self.scope.stranded(&Stage::DeadLetter) => return Err(Ended::LetGo),
        };
        match kept {
            Ok(()) => Ok(()),
            Err(flood) => Err(self.fail_stage(flood).await),
        }
    }

    /// A batch is delivered: what was refused goes to the dead letters, then the batch is done.
    async fn settle(
        &mut self,
        (batch, delivered): (Arc<RecordBatch>, Delivered),
    ) -> Result<(), Ended> {
        let letters = dead_letters(self.pipeline, &batch, &delivered.poison);
        let counters = &self.lane.counters;
        if !letters.is_empty() {
            let count = letters.len() as u64;
            self.keep(letters).await?;
            counters.dead_letters.fetch_add(count, Relaxed);
        }
        let changes = batch.source.positions.len();
        {
            let mut state = self.lane.state.lock();
            state.in_flight.batches -= 1;
            state.in_flight.changes -= changes;
            apply(&mut state.acked, &batch.source.progress);
            state
                .dirty
                .extend(batch.source.progress.iter().map(|p| p.group.clone()));
        }
        self.source
            .acknowledged(self.lane.shard, &batch.source.progress);
        *self.failures = 0;
        counters.acknowledged.fetch_add(
            (batch.records.len() - delivered.poison.len()) as u64,
            Relaxed,
        );
        counters.done.fetch_add(changes as u64, Relaxed);
        if let Some(newest) = batch
            .source
            .positions
            .iter()
            .map(|p| p.timestamp_us())
            .max()
        {
            counters
                .newest_done_us
                .fetch_max(newest.max(0) as u64, Relaxed);
        }
        self.scope.activity.record((changes as u64).max(1));
        Ok(())
    }
}

/// Waits for the oldest batch and takes it out once it is delivered. Cancel-safe.
async fn next_delivered(
    in_flight: &mut VecDeque<Submitted>,
) -> Result<(Arc<RecordBatch>, Delivered), SinkError> {
    let Some((_, ticket)) = in_flight.front_mut() else {
        return std::future::pending().await;
    };
    let delivered = ticket.await?;
    let Some((batch, _)) = in_flight.pop_front() else {
        return std::future::pending().await;
    };
    Ok((batch, delivered))
}

async fn commit(lane: &Lane, sink: &mut ShardSink) -> Result<(), SinkError> {
    let checkpoints: Checkpoints = {
        let state = lane.state.lock();
        let of = |g: &GroupKey| state.acked.get(g).map(|c| (g.clone(), c.clone()));
        state.dirty.iter().filter_map(of).collect()
    };
    if checkpoints.is_empty() {
        return Ok(());
    }
    sink.commit(&checkpoints, &[]).await?;
    let mut state = lane.state.lock();
    // What moved on while this was written is written with the next one.
    for (group, written) in &checkpoints {
        if state.acked.get(group) == Some(written) {
            state.dirty.remove(group);
        }
    }
    drop(state);
    lane.counters.commits.fetch_add(1, Relaxed);
    Ok(())
}

/// Everything of a batch that can never succeed, in the order of its changes.
fn dead_letters(pipeline: &str, batch: &RecordBatch, poison: &[(u32, String)]) -> Vec<DeadLetter> {
    let source = &batch.source;
    let undecodable = source
        .undecodable
        .iter()
        .map(|row| DeadLetter::of_undecodable(pipeline, source, row));
    let rejected = batch
        .rejected
        .iter()
        .filter_map(|r| DeadLetter::of_rejected(pipeline, source, r));
    let refused = poison
        .iter()
        .filter_map(|p| DeadLetter::of_poison(pipeline, batch, p));
    undecodable.chain(rejected).chain(refused).collect()
}
