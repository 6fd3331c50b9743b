//! One run of deliveries: what is handed to the sink, followed in order, and settled.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::super::child::Stage;
use super::super::dead_letters::Keeper;
use super::super::faults;
use super::super::supervisor::ChildScope;
use super::Lane;
use super::parking::{self, Waiting};
use super::traces::Holding;
use super::unsettled::{Bounds, Open, Unsaved, age_now, patience};
use super::work::Writes;
use crate::change::{Progress, RecordBatch};
use crate::checkpoint::Settlement;
use crate::config::LiveSettings;
use crate::dead_letter::DeadLetter;
use crate::dead_letter::flood::Flooded;
use crate::sink::{Delivered, Fit, Leave, Recovery, Settle, SinkError, Ticket};
use crate::source::Source;

/// Batches that may wait for their acknowledgement; `max_in_flight` bounds the changes in them.
const IN_FLIGHT_BATCHES: usize = 1_024;

/// What nothing can join is sent at once; on a machine that is busy the sink may miss that, so it is said again this often.
const HASTEN_AGAIN: Duration = Duration::from_millis(250);

/// Why the delivery of a lane ended before its time.
#[derive(Debug)]
pub(super) enum Ended {
    /// A batch was not delivered, or not settled.
    Delivery(SinkError),
    /// The child itself is at fault.
    Crash(anyhow::Error),
    /// A stage made too many dead letters, of changes that were read then.
    Flood(Flooded, std::time::Instant),
    /// Records of these groups wait for their topics. Nothing is under way.
    Park(Waiting),
    /// It was told to drain, and what it still holds cannot be settled: the stage for it was given up on.
    LetGo,
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

/// The batch after those in flight.
enum Next {
    /// None was there.
    Nothing,
    /// It waits for leave.
    Waiting(BoxFuture<'static, Result<Asked, Ended>>),
    /// It has leave, and waits for the settlement of those before.
    Ready(Ready),
    /// It has to wait for topics, and those before are to be settled first.
    Blocked(Arc<RecordBatch>, Vec<u32>),
}

/// A batch that may be handed over.
struct Ready {
    batch: Arc<RecordBatch>,
    fits: Vec<Fit>,
    leave: Leave,
    /// It tries a topic that refused records: alone, so that another refusal undoes nothing else.
    is_trial: bool,
}

/// What came of asking for leave.
enum Asked {
    Ready(Ready),
    Blocked(Arc<RecordBatch>, Vec<u32>),
}

impl From<Asked> for Next {
    fn from(asked: Asked) -> Self {
        match asked {
            Asked::Ready(ready) => Self::Ready(ready),
            Asked::Blocked(batch, topics) => Self::Blocked(batch, topics),
        }
    }
}

impl Next {
    /// Waits until the batch has leave. Cancel-safe.
    async fn leave(&mut self) -> Result<(), Ended> {
        if let Self::Waiting(waiting) = self {
            *self = waiting.await?.into();
        }
        Ok(())
    }

    fn is_waiting(&self) -> bool {
        matches!(self, Self::Waiting(_))
    }

    /// Whether it goes on only when all before it is settled.
    fn wants_settled(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Waiting(_) | Self::Blocked(..) => true,
            Self::Ready(ready) => ready.is_trial,
        }
    }
}

/// One run of the sink's child, from its start or a step back to the next failure.
pub(super) struct Delivery<'a> {
    lane: &'a Lane,
    source: &'a dyn Source,
    dead_letters: &'a Keeper,
    pipeline: &'a Arc<str>,
    scope: &'a ChildScope,
    next: Next,
    /// Waits for topics that groups are parked for.
    recovering: Option<BoxFuture<'static, Recovery>>,
    /// When what is in flight was sent at once last, for nothing is coming that could join it.
    hastened: Option<Instant>,
    /// When a batch was handed over last, and how old its changes were.
    handed: (Instant, Duration),
    /// The sink was told what the settlement will say.
    foreseen: bool,
    /// What is in flight tries a topic, and is to be settled before anything else is taken.
    is_trial: bool,
    /// What the producer has, oldest first; bounded by `max_in_flight`.
    in_flight: VecDeque<Submitted>,
    /// The changes in them.
    changes: usize,
    /// Of an atomic sink: the letters that go with the next settlement; bounded by `dead_letter.max`.
    letters: Vec<DeadLetter>,
    pub(super) settling: Open,
    unsaved: Unsaved,
    pub(super) traced: Holding,
    /// Failed deliveries since the last success.
    failures: &'a mut u32,
    /// The checkpoint topic was made again, and what was in it is not written into it yet.
    anew: &'a mut bool,
}

impl<'a> Delivery<'a> {
    /// With nothing under way.
    pub(super) fn new(
        lane: &'a Lane,
        source: &'a dyn Source,
        dead_letters: &'a Keeper,
        pipeline: &'a Arc<str>,
        scope: &'a ChildScope,
        failures: &'a mut u32,
        anew: &'a mut bool,
    ) -> Self {
        Self {
            lane,
            source,
            dead_letters,
            pipeline,
            scope,
            next: Next::Nothing,
            recovering: None,
            hastened: None,
            handed: (Instant::now(), Duration::ZERO),
            foreseen: false,
            is_trial: false,
            in_flight: VecDeque::new(),
            changes: 0,
            letters: Vec::new(),
            settling: Open::default(),
            unsaved: Unsaved::default(),
            traced: Holding::default(),
            failures,
            anew,
        }
    }

    /// Takes records from the transforms, hands them to the producer within the bound on what is in flight, follows
    /// the acknowledgements in order, and settles: an atomic sink as soon as nothing more is on its way to it, and
    /// at bounds of count, bytes and time; another at intervals.
    pub(super) async fn run(
        &mut self,
        sink: &mut dyn Settle,
        live: &LiveSettings,
        remade: &mut watch::Receiver<u64>,
        records: &mut mpsc::Receiver<Arc<RecordBatch>>,
    ) -> Result<(), Ended> {
        let mut live = live.clone();
        let (mut settled_at, mut commits) = (None, 0_u32);
        let mut at_once = *self.anew;
        if at_once {
            self.lane.ledger.lock().say_again();
        }
        loop {
            let (max, bounds, checkpoint_interval, patience) = {
                let settings = live.borrow_and_update();
                let max = settings.pipeline.max_in_flight.get() as usize;
                let bounds = Bounds::of(&settings, self.settling.age, commits);
                let patience = patience(&settings, self.handed.1);
                (max, bounds, settings.sink.checkpoint_interval, patience)
            };
            let (idle, settled) = {
                let ledger = self.lane.ledger.lock();
                let idle = ledger.is_idle_upstream() || self.next.wants_settled();
                (idle || self.is_trial, ledger.is_settled())
            };
            let save_at = self.unsaved.due(settled_at, checkpoint_interval);
            let most = self.lane.appetite.lock().most();
            let most = most.map_or(bounds.changes, |most| most.min(bounds.changes));
            let close_at = self.settling.since.map(|since| since + bounds.open_for);
            let closing =
                close_at.is_some_and(|at| at <= Instant::now()) || self.settling.is_full(most);
            let due = match (sink.is_atomic(), close_at) {
                (true, Some(_)) => self.in_flight.is_empty() && (closing || idle),
                _ => !settled && (at_once || save_at <= Instant::now()),
            };
            if due {
                self.settle(sink, bounds.changes).await?;
                settled_at = Some(Instant::now());
                commits = commits.saturating_add(u32::from(close_at.is_some()));
                at_once = false;
                if std::mem::take(self.anew) {
                    tracing::info!(shard = self.lane.shard, "the checkpoints are written anew");
                }
                continue;
            }
            let alone = (idle || closing) && !self.in_flight.is_empty();
            // The first records of all are not kept from anybody.
            let patient =
                !closing && !self.is_trial && !self.next.wants_settled() && settled_at.is_some();
            let patience = if patient { patience } else { Duration::ZERO };
            let again_at = self.hastened.map(|at| at + HASTEN_AGAIN);
            let mut hasten_at = alone.then(|| again_at.unwrap_or(self.handed.0 + patience));
            if hasten_at.is_some_and(|at| at <= Instant::now()) {
                let now = Instant::now();
                self.hastened = Some(now);
                hasten_at = Some(now + HASTEN_AGAIN);
                if sink.is_atomic() && (closing || !self.foreseen) {
                    self.foreseen = true;
                    self.foresee(sink);
                }
                sink.hasten();
            }
            let nothing_open = self.in_flight.is_empty() && self.settling.since.is_none();
            if nothing_open {
                self.is_trial = false;
                if let Next::Blocked(batch, topics) = &self.next {
                    let waiting = parking::groups_for(batch, topics);
                    let waiting = waiting.filter(|waiting| !waiting.is_empty());
                    return Err(match waiting {
                        Some(waiting) => Ended::Park(waiting),
                        None => anyhow::anyhow!("a change of no stream group").into(),
                    });
                }
            }
            let room = self.changes < max
                && self.in_flight.len() < IN_FLIGHT_BATCHES
                && !closing
                && !self.is_trial
                && (nothing_open || !matches!(&self.next, Next::Ready(ready) if ready.is_trial))
                && !matches!(self.next, Next::Blocked(..));
            if self.recovering.is_none() {
                let topics = self.lane.parking.lock().topics();
                self.recovering = (!topics.is_empty()).then(|| sink.recovery(topics));
            }
            let look_again = match close_at {
                Some(at) if !closing => Some(at),
                None if !settled => Some(save_at),
                _ => None,
            };
            let look_again = look_again.into_iter().chain(hasten_at).min();
            let none_next = matches!(self.next, Next::Nothing);
            tokio::select! {
                biased;
                () = at(look_again), if look_again.is_some() => {}
                delivered = next_delivered(&mut self.in_flight), if !self.in_flight.is_empty() => {
                    self.delivered(sink.is_atomic(), delivered?).await?;
                }
                Recovery { topic, is_certain } = recovered(&mut self.recovering) => {
                    self.recovering = None;
                    match is_certain {
                        true => self.lane.unpark(&topic),
                        false => {
                            self.lane.parking.lock().try_again(&topic);
                            self.lane.tell_source();
                        }
                    }
                }
                left = self.next.leave(), if room && !none_next => {
                    left?;
                    if let Next::Ready(ready) = &self.next
                        && (nothing_open || !ready.is_trial)
                        && let Next::Ready(ready) = std::mem::replace(&mut self.next, Next::Nothing)
                    {
                        self.submit(sink, ready).await?;
                    }
                }
                Some(batch) = records.recv(), if room && none_next => {
                    self.take(sink, batch).await?;
                }
                // Another interval or another bound: both are looked at anew. Without a sender nothing changes.
                Ok(()) = live.changed() => {}
                Ok(()) = remade.changed() => {
                    self.lane.ledger.lock().say_again();
                    *self.anew = true;
                    at_once = true;
                }
                // Only once there is nothing left to do: the transforms are through before the sink drains.
                () = self.scope.drain.cancelled(),
                    if self.in_flight.is_empty() && none_next && records.is_empty() =>
                {
                    return self.settle(sink, bounds.changes).await;
                }
            }
        }
    }

    /// Tells the sink what the settlement says if nothing more is handed over before it, which saves it a way to the brokers
    /// and back. Once a transaction, and once more when it takes nothing more: otherwise it would be told with every batch.
    fn foresee(&self, sink: &mut dyn Settle) {
        let coming = self
            .in_flight
            .iter()
            .map(|(batch, _)| &batch.source.progress[..]);
        let settlement = self.lane.ledger.lock().settlement_with(coming);
        sink.foresee(&settlement);
    }

    /// Takes a batch and asks for leave to hand it over.
    async fn take(&mut self, sink: &mut dyn Settle, batch: Arc<RecordBatch>) -> Result<(), Ended> {
        let changes = batch.source.positions.len();
        if !self.lane.ledger.lock().submit(batch.source.epoch, changes) {
            return Ok(());
        }
        let busy = self.scope.activity.busy();
        faults::point(&Stage::Sink).await?;
        drop(busy);
        let letters = match sink.is_atomic() {
            true => dead_letters(self.pipeline, &batch, &[]),
            false => Vec::new(),
        };
        let (keeper, scope) = (self.dead_letters.clone(), self.scope.clone());
        let apart = self.lane.parking.lock().is_apart(&batch);
        let look = sink.look(batch.clone(), apart);
        let leave = sink.leave(batch.clone());
        let mut waiting = Box::pin(async move {
            // First of all: what has to wait is asked about again, and its letters would count twice.
            let look = look.await?;
            if !look.waits.is_empty() {
                return Ok(Asked::Blocked(batch, look.waits));
            }
            if !letters.is_empty() {
                keep(&keeper, &scope, &batch, letters).await?;
            }
            Ok(Asked::Ready(Ready {
                leave: leave.await?,
                batch,
                fits: look.fits,
                is_trial: look.is_trial,
            }))
        });
        self.next = match (&mut waiting).now_or_never() {
            Some(asked) => asked?.into(),
            None => Next::Waiting(waiting),
        };
        Ok(())
    }

    /// Hands a batch to the producer. That may wait for a full queue; what was handed over before is followed
    /// meanwhile.
    async fn submit(
        &mut self,
        sink: &mut dyn Settle,
        Ready {
            batch,
            fits,
            leave,
            is_trial,
        }: Ready,
    ) -> Result<(), Ended> {
        self.is_trial = is_trial;
        self.hastened = None;
        let atomic = sink.is_atomic();
        let carries = !batch.records.is_empty()
            || !batch.rejected.is_empty()
            || !batch.source.undecodable.is_empty();
        self.settling.add(&batch, atomic && carries);
        self.handed = (Instant::now(), age_now(&batch.source.positions));
        self.traced.handed(&batch);
        let mut handed = sink.hand(batch.clone(), fits, leave);
        let ticket = loop {
            tokio::select! {
                biased;
                ticket = &mut handed => break ticket?,
                delivered = next_delivered(&mut self.in_flight), if !self.in_flight.is_empty() => {
                    self.delivered(atomic, delivered?).await?;
                }
            }
        };
        drop(handed);
        self.changes += batch.source.positions.len();
        self.in_flight.push_back((batch, ticket));
        Ok(())
    }

    /// A batch is delivered: what was refused goes to the dead letters.
    async fn delivered(
        &mut self,
        atomic: bool,
        (batch, delivered): (Arc<RecordBatch>, Delivered),
    ) -> Result<(), Ended> {
        self.traced.delivered(&batch, &delivered);
        let letters = dead_letters(self.pipeline, &batch, &delivered.poison);
        let count = letters.len() as u64;
        if atomic {
            let refused = letters.len() - delivered.poison.len()..;
            let refused = letters.get(refused).unwrap_or_default();
            if !refused.is_empty() {
                keep(self.dead_letters, self.scope, &batch, refused.to_vec()).await?;
            }
            self.letters.extend(letters);
        } else if count > 0 {
            keep(self.dead_letters, self.scope, &batch, letters).await?;
        }
        let counters = &self.lane.counters;
        counters.acknowledged.fetch_add(
            (batch.records.len() - delivered.poison.len()) as u64,
            Relaxed,
        );
        let changes = batch.source.positions.len();
        self.changes -= changes;
        self.unsaved.delivered(&batch.source.positions);
        self.lane.undone.lock().add(&batch.source, count, atomic);
        self.lane
            .ledger
            .lock()
            .deliver(changes, &batch.source.progress);
        *self.failures = 0;
        if self.is_trial {
            for topic in &batch.topics {
                self.lane.unpark(topic);
            }
        }
        if !atomic {
            let mut writes = Writes::default();
            writes.add(&batch.source);
            counters.latencies.seen(&writes);
            counters.dead_letters.fetch_add(count, Relaxed);
        }
        if !atomic {
            self.traced.settled(self.lane);
        }
        self.scope.activity.record((changes as u64).max(1));
        Ok(())
    }

    /// Commits what is delivered. Whoever waits for leave goes on waiting meanwhile.
    async fn settle(&mut self, sink: &mut dyn Settle, max: usize) -> Result<(), Ended> {
        let settlement = self.lane.ledger.lock().settlement();
        if settlement.is_empty() && self.letters.is_empty() && self.settling.since.is_none() {
            return Ok(());
        }
        {
            let mut settling = sink.settle(&self.letters, &settlement);
            loop {
                tokio::select! {
                    biased;
                    settled = &mut settling => break settled?,
                    left = self.next.leave(), if self.next.is_waiting() => left?,
                }
            }
        }
        self.letters.clear();
        let open = std::mem::take(&mut self.settling);
        self.foreseen = false;
        self.unsaved = Unsaved::default();
        if let Some(since) = open.since {
            self.lane.fitted(open.changes, since.elapsed(), max);
        }
        self.lane.ledger.lock().commit(&settlement);
        committed(self.lane, self.source, &settlement);
        self.traced.settled(self.lane);
        Ok(())
    }
}

/// Tells what a commit moved.
pub(super) fn committed(lane: &Lane, source: &dyn Source, settlement: &Settlement) {
    let progress: Vec<Progress> = settlement
        .progress
        .iter()
        .map(|(group, checkpoint)| Progress {
            complete_until_us: Some(checkpoint.complete_until_us),
            ..Progress::new(group.clone())
        })
        .collect();
    source.acknowledged(lane.shard, &progress);
    lane.counters.commits.fetch_add(1, Relaxed);
    let undone = std::mem::take(&mut *lane.undone.lock());
    undone.count(&lane.counters);
}

/// Has the stage `dead_letter` keep what is poison, or of an atomic sink, look at it. It is never given up on but in a
/// drain, when that stage has failed.
async fn keep(
    keeper: &Keeper,
    scope: &ChildScope,
    of: &RecordBatch,
    letters: Vec<DeadLetter>,
) -> Result<(), Ended> {
    let read_at = of.source.read_at;
    tokio::select! {
        biased;
        kept = keeper.keep(letters) => kept.map_err(|flood| Ended::Flood(flood, read_at)),
        () = scope.stranded(&Stage::DeadLetter) => Err(Ended::LetGo),
    }
}

async fn recovered(recovering: &mut Option<BoxFuture<'static, Recovery>>) -> Recovery {
    match recovering {
        Some(recovering) => recovering.await,
        None => std::future::pending().await,
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
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

/// Everything of a batch that can never succeed, in the order of its changes.
fn dead_letters(pipeline: &str, batch: &RecordBatch, poison: &[(u32, String)]) -> Vec<DeadLetter> {
    let source = &batch.source;
    let undecodable = source
        .undecodable
        .iter()
        .map(|row| DeadLetter::of_undecodable(pipeline, source, row));
    let rejected = batch.rejected.iter().filter_map(|r| {
        let letter = DeadLetter::of_rejected(pipeline, source, r)?;
        Some(letter.traced(batch.traces.of(r.source)))
    });
    let refused = poison
        .iter()
        .filter_map(|p| DeadLetter::of_poison(pipeline, batch, p));
    undecodable.chain(rejected).chain(refused).collect()
}
