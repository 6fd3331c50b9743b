//! A lane under everything that can befall it, many times over: the real supervisor, lane, ledger and policies, with a
//! made-up source, transforms and brokers, under paused time. A seed says what happens, and replays a failure:
//! `PENSTOCK_SEED=7 cargo test -p penstock simulator`.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::super::child::{ChildId, Stage};
use super::super::dead_letters;
use super::super::supervisor::{ChildScope, ChildSpec, Event, Supervisor};
use super::{Counters, Lane, SinkParts, run_sink, run_source};
use crate::change::{Batch, GroupKey, Position, Progress, Record, RecordBatch, Slice, StreamId};
use crate::checkpoint::{Checkpoints, Settlement};
use crate::config::settings::{Policies, Settings};
use crate::dead_letter::DeadLetter;
use crate::policy::Class;
use crate::policy::restart::{OnFailed, Settings as Supervision, Strategy};
use crate::policy::stage::StagePolicies;
use crate::sink::trouble::Troubles;
use crate::sink::{Delivered, Leave, Settle, SinkError, Ticket};
use crate::source::{ShardReader, Source, SourceError, SourceStatus};

/// Changes of a run.
const CHANGES: i64 = 120;
/// Changes that the lane may hold at once.
const MAX_IN_FLIGHT: usize = 16;
/// Far more than a run takes, of made-up time.
const ENDS_WITHIN: Duration = Duration::from_secs(3_600);

/// What is wrong with the brokers on purpose, to see that the simulator finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// A commit in doubt is taken for one that did not happen: what the topic says is not read.
    GuessesNo,
    /// … and for one that did.
    GuessesYes,
    /// The owner before is not fenced.
    Unfenced,
    /// The checkpoint is written although the records are not.
    CheckpointFirst,
    /// An aborted record stays visible.
    Leaks,
}

fn group() -> GroupKey {
    GroupKey("ks.t/1/00".into())
}

fn at(checkpoints: &Checkpoints) -> i64 {
    let checkpoint = checkpoints.get(&group());
    checkpoint.map_or(0, |c| c.complete_until_us)
}

/// The dice: whether and how long. Still once it is to go well to the end.
struct Dice {
    rng: Mutex<StdRng>,
    calm: AtomicBool,
}

impl Dice {
    fn hits(&self, percent: u32) -> bool {
        !self.calm.load(Relaxed) && self.rng.lock().random_range(0..100) < percent
    }

    /// Mostly short, now and then long.
    fn delay(&self) -> Duration {
        let mut rng = self.rng.lock();
        let most = if rng.random_range(0..20) == 0 {
            2_000
        } else {
            20
        };
        Duration::from_millis(rng.random_range(0..most))
    }
}

/// What the brokers have.
struct Brokers {
    dice: Arc<Dice>,
    atomic: bool,
    bug: Option<Bug>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    visible: Vec<i64>,
    checkpoint: Checkpoints,
    /// The furthest that it was: nobody fences a producer that delivers at least once, so a write of an earlier one that
    /// comes late puts the checkpoint back, which only repeats.
    furthest: i64,
    /// Of the producer that may write.
    epoch: u64,
    most_held: usize,
}

impl Kept {
    fn stands_at(&self, atomic: bool) -> i64 {
        match atomic {
            true => at(&self.checkpoint),
            false => self.furthest,
        }
    }
}

impl Brokers {
    fn commit(
        &self,
        epoch: u64,
        open: &Mutex<Vec<i64>>,
        progress: Checkpoints,
    ) -> Result<(), SinkError> {
        let mut kept = self.kept.lock();
        if self.atomic && self.bug != Some(Bug::Unfenced) && kept.epoch != epoch {
            return Err(lost("fenced"));
        }
        kept.visible.append(&mut open.lock());
        kept.furthest = kept.furthest.max(at(&progress));
        kept.checkpoint.extend(progress);
        Ok(())
    }
}

fn lost(what: &str) -> SinkError {
    SinkError::Delivery {
        topic: "t".into(),
        reason: what.into(),
        class: Class::Retryable,
    }
}

/// A shard's producer.
struct Producer {
    brokers: Arc<Brokers>,
    epoch: u64,
    /// In the open transaction.
    open: Arc<Mutex<Vec<i64>>>,
    in_doubt: bool,
    broken: bool,
}

impl Producer {
    fn new(brokers: &Arc<Brokers>) -> Self {
        Self {
            brokers: brokers.clone(),
            epoch: 0,
            open: Arc::default(),
            in_doubt: false,
            broken: false,
        }
    }

    fn is_fenced(&self) -> bool {
        self.brokers.atomic
            && self.brokers.bug != Some(Bug::Unfenced)
            && self.brokers.kept.lock().epoch != self.epoch
    }
}

impl Settle for Producer {
    fn is_atomic(&self) -> bool {
        self.brokers.atomic
    }

    fn open(&mut self) -> BoxFuture<'_, Result<Option<Checkpoints>, SinkError>> {
        Box::pin(async move {
            tokio::time::sleep(self.brokers.dice.delay()).await;
            if self.brokers.dice.hits(10) {
                return Err(lost("not opened"));
            }
            let mut kept = self.brokers.kept.lock();
            kept.epoch += 1;
            self.epoch = kept.epoch;
            // The owner before may still hold its list: this one has another.
            self.open = Arc::default();
            (self.in_doubt, self.broken) = (false, false);
            Ok(self.brokers.atomic.then(|| kept.checkpoint.clone()))
        })
    }

    fn leave(&self, _: Arc<RecordBatch>) -> BoxFuture<'static, Result<Leave, SinkError>> {
        let brokers = self.brokers.clone();
        Box::pin(async move {
            if brokers.dice.hits(20) {
                tokio::time::sleep(brokers.dice.delay()).await;
            }
            Ok(Leave::default())
        })
    }

    fn hand(
        &mut self,
        batch: Arc<RecordBatch>,
        _: Leave,
    ) -> BoxFuture<'_, Result<Ticket, SinkError>> {
        Box::pin(async move {
            if self.broken || self.is_fenced() || self.brokers.dice.hits(2) {
                self.broken = true;
                return Err(lost("not taken"));
            }
            let (done, ticket) = Ticket::new();
            let (brokers, open) = (self.brokers.clone(), self.open.clone());
            let ids: Vec<i64> = batch
                .source
                .positions
                .iter()
                .map(|p| p.seq.into())
                .collect();
            let arrives = !brokers.dice.hits(3);
            let answered = !brokers.dice.hits(3);
            let (delay, fate) = (brokers.dice.delay(), self.epoch);
            // Records of one producer arrive in order; the order of the answers is the lane's to keep.
            if arrives {
                match brokers.atomic {
                    true => open.lock().extend(&ids),
                    false => brokers.kept.lock().visible.extend(&ids),
                }
            }
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let fenced = brokers.atomic && brokers.kept.lock().epoch != fate;
                let answer = match arrives && answered && !fenced {
                    true => Ok(Delivered::default()),
                    false => Err(lost("no answer")),
                };
                done.send(answer).ok();
            });
            self.broken |= !arrives;
            Ok(ticket)
        })
    }

    fn settle<'a>(
        &'a mut self,
        _: &'a [DeadLetter],
        settlement: &'a Settlement,
    ) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            let brokers = self.brokers.clone();
            if brokers.bug == Some(Bug::CheckpointFirst) {
                let progress = settlement.progress.clone();
                brokers.kept.lock().checkpoint.extend(progress);
            }
            if self.is_fenced() || brokers.dice.hits(3) {
                return Err(lost("not committed"));
            }
            // From here on it is on its way, whatever becomes of this process.
            self.in_doubt = true;
            let (answer, answered) = oneshot::channel();
            let (open, epoch, progress) =
                (self.open.clone(), self.epoch, settlement.progress.clone());
            tokio::spawn(async move {
                tokio::time::sleep(brokers.dice.delay()).await;
                let silent = brokers.dice.hits(5);
                let done = brokers.commit(epoch, &open, progress);
                tokio::time::sleep(brokers.dice.delay()).await;
                // Nobody may be there to hear it.
                answer
                    .send(if silent { Err(lost("no answer")) } else { done })
                    .ok();
            });
            answered.await.unwrap_or(Err(SinkError::Reset))?;
            self.in_doubt = false;
            Ok(())
        })
    }

    fn reset(&mut self) -> BoxFuture<'_, Result<Option<Checkpoints>, SinkError>> {
        Box::pin(async move {
            let brokers = self.brokers.clone();
            if !brokers.atomic {
                self.broken = false;
                return Ok(None);
            }
            let aborted = std::mem::take(&mut *self.open.lock());
            if brokers.bug == Some(Bug::Leaks) {
                brokers.kept.lock().visible.extend(aborted);
            }
            if self.in_doubt && brokers.bug == Some(Bug::GuessesNo) {
                (self.in_doubt, self.broken) = (false, false);
                return Ok(None);
            }
            if self.broken && brokers.bug == Some(Bug::GuessesYes) {
                self.open().await?;
                let mut kept = brokers.kept.lock();
                let seen = kept.checkpoint.entry(group()).or_default();
                seen.complete_until_us = (seen.complete_until_us + 1).min(CHANGES);
                return Ok(Some(kept.checkpoint.clone()));
            }
            // An abort that is answered tells all; else another producer has to ask.
            if self.in_doubt || self.is_fenced() || brokers.dice.hits(50) {
                return self.open().await;
            }
            self.broken = false;
            Ok(None)
        })
    }

    fn close(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// The log: changes 1 to [`CHANGES`] of one stream.
struct Log {
    dice: Arc<Dice>,
    /// As the lane was told that it is settled.
    settled: Mutex<i64>,
}

impl Source for Log {
    fn survey(self: Arc<Self>) -> BoxFuture<'static, Result<Infallible, SourceError>> {
        Box::pin(std::future::pending())
    }

    fn open_shard(
        self: Arc<Self>,
        shard: u32,
        _: u32,
        epoch: u64,
        checkpoints: Checkpoints,
    ) -> Box<dyn ShardReader> {
        Box::new(Reader {
            log: self,
            shard,
            epoch,
            read: at(&checkpoints),
        })
    }

    fn acknowledged(&self, _: u32, progress: &[Progress]) {
        let until = progress.iter().filter_map(|p| p.complete_until_us).max();
        let mut settled = self.settled.lock();
        *settled = (*settled).max(until.unwrap_or_default());
    }

    fn release_shard(&self, _: u32) {}

    fn read_again<'a>(
        &'a self,
        _: &'a str,
        _: Position,
    ) -> BoxFuture<'a, Result<Option<Batch>, SourceError>> {
        Box::pin(async { Ok(None) })
    }

    fn status(&self) -> SourceStatus {
        SourceStatus::default()
    }
}

struct Reader {
    log: Arc<Log>,
    shard: u32,
    epoch: u64,
    read: i64,
}

impl ShardReader for Reader {
    fn next(&mut self) -> BoxFuture<'_, Result<Batch, SourceError>> {
        Box::pin(async move {
            if self.read >= CHANGES {
                return std::future::pending().await;
            }
            if self.log.dice.hits(40) {
                tokio::time::sleep(self.log.dice.delay()).await;
            }
            let last = (self.read + self.log.dice.rng.lock().random_range(1..5)).min(CHANGES);
            let position = |n: i64| Position {
                stream: StreamId([0; 16]),
                time: Uuid::nil(),
                seq: n as i32,
            };
            let positions = (self.read + 1..=last).map(position).collect();
            self.read = last;
            Ok(Batch {
                shard: self.shard,
                epoch: self.epoch,
                rows: Default::default(),
                positions,
                tables: Vec::new(),
                undecodable: Vec::new(),
                progress: vec![Progress {
                    complete_until_us: Some(last),
                    ..Progress::new(group())
                }],
                read_at: std::time::Instant::now(),
            })
        })
    }

    fn drive(&mut self) -> BoxFuture<'_, Infallible> {
        Box::pin(std::future::pending())
    }
}

/// In the place of the transforms, whose plugins are not made up: what their child does with channels and ledger.
async fn pass_on(lane: Arc<Lane>, dice: Arc<Dice>, scope: ChildScope) -> anyhow::Result<()> {
    let mut batches = lane.batches.1.lock().await;
    let transforming = lane.ledger.lock().is_transforming();
    if transforming {
        lane.rewind("crashed", super::Ledger::rewind_to_handed);
    }
    loop {
        let batch = tokio::select! {
            biased;
            batch = batches.recv() => batch,
            () = scope.drain.cancelled() => return Ok(()),
        };
        let Some(batch) = batch else { return Ok(()) };
        if !lane.ledger.lock().take(batch.epoch) {
            continue;
        }
        if dice.hits(30) {
            tokio::time::sleep(dice.delay()).await;
        }
        anyhow::ensure!(!dice.hits(2), "crashed with a batch in hand");
        let records = (0..batch.positions.len() as u32).map(|source| Record {
            source,
            topic: 0,
            key: Slice::Null,
            value: Slice::Null,
            headers: 0..0,
        });
        let made = Arc::new(RecordBatch {
            records: records.collect(),
            source: batch,
            output: Vec::new(),
            topics: vec!["t".into()],
            headers: Vec::new(),
            rejected: Vec::new(),
            dropped: 0,
        });
        let permit = lane.records.0.reserve().await?;
        let source = &made.source;
        if lane.ledger.lock().hand(source.epoch, &source.progress) {
            permit.send(made);
        }
    }
}

struct World {
    dice: Arc<Dice>,
    brokers: Arc<Brokers>,
    log: Arc<Log>,
    live: watch::Sender<Arc<Settings>>,
}

impl World {
    fn new(seed: u64, atomic: bool, bug: Option<Bug>) -> Self {
        let dice = Arc::new(Dice {
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            calm: AtomicBool::new(false),
        });
        let brokers = Arc::new(Brokers {
            dice: dice.clone(),
            atomic,
            bug,
            kept: Mutex::default(),
        });
        let log = Arc::new(Log {
            dice: dice.clone(),
            settled: Mutex::default(),
        });
        let patient = Supervision::new(
            Strategy::OneForOne,
            1_000,
            Duration::from_secs(1),
            Duration::from_millis(10),
            OnFailed::Isolate,
        );
        let policies = Policies {
            supervision: patient.expect("legal"),
            ..Policies::default()
        };
        let mut settings = Settings::for_tests(policies);
        settings.pipeline.max_in_flight = (MAX_IN_FLIGHT as u32).try_into().expect("not zero");
        Self {
            dice,
            brokers,
            log,
            live: watch::Sender::new(Arc::new(settings)),
        }
    }

    /// One process: from its start until it is killed, or until everything is settled.
    async fn process(&self, killed_after: Option<Duration>) {
        let known = self.brokers.kept.lock().checkpoint.clone();
        let lane = Lane::new(0, 1, known, Arc::<Counters>::default());
        let live = self.live.subscribe();
        let mut supervisor = Supervisor::new(live.clone());
        let (keeper, _requests) = dead_letters::channel();
        let (failed, _waiting) = mpsc::channel(1);
        let policies = StagePolicies::new("sink", live.clone());
        let remade = watch::Sender::new(0);
        let id = |stage| ChildId::of_shard(stage, 0);
        {
            let (lane, log, brokers) = (lane.clone(), self.log.clone(), self.brokers.clone());
            supervisor.start(ChildSpec::new(id(Stage::Sink), move |scope| {
                let parts = SinkParts {
                    source: log.clone(),
                    sink: Box::new(Producer::new(&brokers)),
                    dead_letters: keeper.clone(),
                    policies: policies.clone(),
                    live: live.clone(),
                    pipeline: "p".into(),
                    failed: failed.clone(),
                    troubles: Troubles::default(),
                    remade: remade.subscribe(),
                };
                run_sink(lane.clone(), parts, scope)
            }));
        }
        {
            let (lane, dice) = (lane.clone(), self.dice.clone());
            supervisor.start(ChildSpec::new(id(Stage::Untransformed), move |scope| {
                pass_on(lane.clone(), dice.clone(), scope)
            }));
        }
        {
            let (lane, log) = (lane.clone(), self.log.clone());
            let policies = StagePolicies::new("source", self.live.subscribe());
            supervisor.start(ChildSpec::new(id(Stage::Source), move |scope| {
                run_source(lane.clone(), log.clone(), policies.clone(), scope)
            }));
        }
        let end = tokio::time::Instant::now() + killed_after.unwrap_or(ENDS_WITHIN);
        loop {
            // A crash from outside, of whichever stage: it is started again as after a panic.
            let crash = tokio::time::sleep(self.dice.delay() * 40);
            tokio::select! {
                () = tokio::time::sleep_until(end) => break,
                () = crash => {
                    if self.dice.hits(30) {
                        let which = self.dice.rng.lock().random_range(0..3);
                        let stage = match which {
                            0 => Stage::Sink,
                            1 => Stage::Untransformed,
                            _ => Stage::Source,
                        };
                        supervisor.restart(&id(stage));
                    }
                }
                event = supervisor.next_event() => {
                    assert!(!matches!(event, Event::Failed { .. }), "{event:?}");
                }
            }
            let held = lane.in_flight().changes;
            let mut kept = self.brokers.kept.lock();
            kept.most_held = kept.most_held.max(held);
            if killed_after.is_none() && kept.stands_at(self.brokers.atomic) >= CHANGES {
                break;
            }
        }
        supervisor.remove(|_| true).await;
    }

    /// What is wrong with what a reader of committed records has, if something is.
    async fn run(&self) -> Result<(), String> {
        let killed = self.dice.rng.lock().random_range(0..4);
        for _ in 0..killed {
            let life = self.dice.delay() * 3;
            self.process(Some(life)).await;
        }
        self.dice.calm.store(true, Relaxed);
        let ended = tokio::time::timeout(ENDS_WITHIN, self.process(None)).await;
        let kept = self.brokers.kept.lock();
        let stands_at = kept.stands_at(self.brokers.atomic);
        if ended.is_err() || stands_at < CHANGES {
            return Err(format!("it stands at {stands_at}"));
        }
        let wanted: Vec<i64> = (1..=CHANGES).collect();
        let mut firsts = Vec::new();
        for id in &kept.visible {
            if !firsts.contains(id) {
                firsts.push(*id);
            }
        }
        let seen = if self.brokers.atomic {
            &kept.visible
        } else {
            &firsts
        };
        if *seen != wanted {
            return Err(format!("seen: {seen:?}"));
        }
        // A batch is taken whole, and one more may wait for leave.
        if kept.most_held > MAX_IN_FLIGHT + 8 {
            return Err(format!("{} changes in flight", kept.most_held));
        }
        if self.brokers.atomic && *self.log.settled.lock() > at(&kept.checkpoint) {
            return Err("the source was told more than is committed".into());
        }
        Ok(())
    }
}

fn simulate(seed: u64, atomic: bool, bug: Option<Bug>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(World::new(seed, atomic, bug).run())
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    match number("PENSTOCK_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PENSTOCK_TEST_SEEDS").unwrap_or(1_000),
    }
}

#[test]
fn whatever_happens_no_change_is_lost_or_seen_twice() {
    for atomic in [true, false] {
        for seed in seeds() {
            if let Err(wrong) = simulate(seed, atomic, None) {
                panic!("PENSTOCK_SEED={seed}, atomic {atomic}: {wrong}");
            }
        }
    }
}

#[test]
fn what_is_wrong_on_purpose_is_found() {
    for bug in [
        Bug::GuessesNo,
        Bug::GuessesYes,
        Bug::Unfenced,
        Bug::CheckpointFirst,
        Bug::Leaks,
    ] {
        let found =
            (0..2_000).find_map(|seed| Some((seed, simulate(seed, true, Some(bug)).err()?)));
        let (seed, wrong) = found.unwrap_or_else(|| panic!("{bug:?} is not found"));
        println!("{bug:?}: seed {seed}: {}", &wrong[..wrong.len().min(120)]);
    }
}
