//! One process: the real supervisor, and of each shard that it has a real lane. It does what the coordinator does with what
//! the group says.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::super::super::child::{ChildId, Stage};
use super::super::super::dead_letters;
use super::super::super::shard::{Shard, relieved};
use super::super::super::supervisor::{ChildSpec, Event, Supervisor};
use super::super::{Lane, SinkParts, run_sink, run_source};
use super::brokers::{Brokers, Producer, jitter};
use super::feed::{Log, pass_on};
use super::{MAX_IN_FLIGHT, SHARDS};
use crate::checkpoint::Checkpoints;
use crate::config::settings::Settings;
use crate::policy::stage::StagePolicies;
use crate::sink::{Letters, Settle};

/// How long a shard that goes to another may take to be settled.
const PATIENCE: Duration = Duration::from_secs(6);
/// Before a shard is taken again that another producer has taken, although the group says that it is ours.
const SESSION: Duration = Duration::from_secs(6);

/// What the group, or somebody else, tells an instance.
pub(super) enum Told {
    /// This shard is yours.
    Assigned(usize),
    /// It goes to another: settle it, let go of it, and say so.
    Revoked(usize, oneshot::Sender<()>),
    /// It has been another's for some time.
    Lost(usize),
    /// Something about the configuration changed: what runs is drained and made anew.
    Rebuild,
    /// Drain, and end.
    Stop,
}

pub(super) struct Instance {
    number: usize,
    brokers: Arc<Brokers>,
    pub(super) log: Arc<Log>,
    live: watch::Receiver<Arc<Settings>>,
    supervisor: Supervisor,
    keeper: dead_letters::Keeper,
    /// By shard, what is open; ours, and not open: since when it may be opened.
    open: BTreeMap<usize, Arc<Shard>>,
    ours: BTreeMap<usize, Instant>,
    /// What happened during a drain, to be seen to after it.
    heard: VecDeque<Event>,
}

impl Instance {
    pub(super) fn new(
        number: usize,
        brokers: &Arc<Brokers>,
        live: watch::Receiver<Arc<Settings>>,
    ) -> Self {
        let mut supervisor = Supervisor::new(live.clone());
        let (keeper, requests) = dead_letters::channel();
        let atomic = brokers.atomic;
        let keeps: Arc<dyn Letters> = brokers.clone();
        supervisor.start(ChildSpec::new(Stage::DeadLetter, move |scope| {
            dead_letters::run(requests.clone(), keeps.clone(), atomic, scope)
        }));
        Self {
            number,
            log: Log::new(brokers.dice.clone()),
            brokers: brokers.clone(),
            live,
            supervisor,
            keeper,
            open: BTreeMap::new(),
            ours: BTreeMap::new(),
            heard: VecDeque::new(),
        }
    }

    /// Until it is told to stop, or whoever tells is gone: that is a kill.
    pub(super) async fn run(mut self, mut told: mpsc::UnboundedReceiver<Told>) {
        loop {
            while let Some(event) = self.heard.pop_front() {
                self.see(event).await;
            }
            self.open_missing();
            let due = self.ours.iter().filter(|(s, _)| !self.open.contains_key(s));
            let due = due.map(|(_, at)| *at).min();
            // A crash from outside, of whichever stage: it is started again as after a panic.
            let crash = tokio::time::sleep(self.brokers.dice.delay() * 40);
            tokio::select! {
                biased;
                told = told.recv() => match told {
                    None => break,
                    Some(Told::Stop) => {
                        for shard in self.open.keys().copied().collect::<Vec<_>>() {
                            self.drain(shard).await;
                        }
                        break;
                    }
                    Some(told) => self.hear(told).await,
                },
                event = self.supervisor.next_event() => self.see(event).await,
                () = sleep_until(due) => {}
                () = crash => self.crash(),
            }
            for shard in self.open.values() {
                let held = shard.lane.in_flight().changes;
                // A batch is taken whole, and one more may wait for leave.
                assert!(held <= MAX_IN_FLIGHT + 8, "{held} changes in flight");
            }
        }
        self.supervisor.remove(|_| true).await;
    }

    fn crash(&mut self) {
        let open: Vec<usize> = self.open.keys().copied().collect();
        if open.is_empty() || !self.brokers.dice.hits(30) {
            return;
        }
        let shard = open[self.brokers.dice.below(open.len())] as u32;
        let id = match self.brokers.dice.below(4) {
            0 => ChildId::of_shard(Stage::Sink, shard),
            1 => ChildId::of_shard(Stage::Untransformed, shard),
            2 => ChildId::of_shard(Stage::Source, shard),
            _ => Stage::DeadLetter.into(),
        };
        self.supervisor.restart(&id);
    }

    async fn hear(&mut self, told: Told) {
        match told {
            Told::Assigned(shard) => {
                self.ours.insert(shard, Instant::now());
            }
            Told::Revoked(shard, done) => {
                self.ours.remove(&shard);
                self.drain(shard).await;
                self.let_go(shard).await;
                // Nobody waits for it any more if the group has lost patience.
                done.send(()).ok();
            }
            Told::Lost(shard) => {
                self.ours.remove(&shard);
                self.let_go(shard).await;
            }
            Told::Rebuild => {
                for shard in self.open.keys().copied().collect::<Vec<_>>() {
                    self.rebuild(shard).await;
                }
            }
            Told::Stop => {}
        }
    }

    async fn see(&mut self, event: Event) {
        match event {
            // It was given up on, as the transforms are after five crashes in a minute; somebody sees to it.
            Event::Failed { .. } => {
                self.supervisor.revive(|_| true);
            }
            Event::Relieved { child, .. } => {
                let Some(shard) = child.shard.map(|s| s as usize) else {
                    return;
                };
                self.let_go(shard).await;
                if let Some(at) = self.ours.get_mut(&shard) {
                    *at = Instant::now() + SESSION;
                }
            }
            Event::Finished { .. } | Event::Restarting { .. } => {}
        }
    }

    async fn drain(&mut self, shard: usize) {
        let Some(open) = self.open.get(&shard).cloned() else {
            return;
        };
        let until = Instant::now() + PATIENCE;
        while !open.drain(&self.supervisor) {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(until) => return,
                event = self.supervisor.next_event() => self.heard.push_back(event),
            }
        }
    }

    /// Goes on with another lane, and with the producer of the one before if that has drained in time.
    async fn rebuild(&mut self, shard: usize) {
        let before = self.open.get(&shard).map(|s| s.lane.clone());
        if let Some(lane) = &before {
            lane.keep_producer(true);
        }
        self.drain(shard).await;
        self.let_go(shard).await;
        let Some((lane, producer)) = before.and_then(|l| Some((l.clone(), l.kept()?))) else {
            return;
        };
        if self.ours.contains_key(&shard) {
            let goes_on = self.lane(shard, lane.committed());
            goes_on.keep(producer);
            self.begin(shard, goes_on);
        }
    }

    async fn let_go(&mut self, shard: usize) {
        let of_shard = |id: &ChildId| id.shard == Some(shard as u32);
        self.supervisor.remove(of_shard).await;
        self.open.remove(&shard);
    }

    fn open_missing(&mut self) {
        let now = Instant::now();
        let due: Vec<usize> = self
            .ours
            .iter()
            .filter(|(shard, at)| **at <= now && !self.open.contains_key(shard))
            .map(|(shard, _)| *shard)
            .collect();
        for shard in due {
            let known = self.brokers.kept[shard].lock().checkpoint.clone();
            let lane = self.lane(shard, known);
            self.begin(shard, lane);
        }
    }

    fn lane(&self, shard: usize, known: Checkpoints) -> Arc<Lane> {
        let counters = self.log.counters[shard].clone();
        Lane::new(shard as u32, SHARDS as u32, known, counters, Arc::default())
    }

    fn begin(&mut self, shard: usize, lane: Arc<Lane>) {
        self.start(shard, lane.clone());
        let number = shard as u32;
        self.open.insert(shard, Arc::new(Shard { number, lane }));
    }

    fn start(&mut self, shard: usize, lane: Arc<Lane>) {
        let id = |stage| ChildId::of_shard(stage, shard as u32);
        let (failed, _waiting) = mpsc::channel(1);
        let remade = watch::Sender::new(0);
        let policies = StagePolicies::with_jitter("sink", self.live.clone(), jitter);
        {
            let (lane, log, brokers) = (lane.clone(), self.log.clone(), self.brokers.clone());
            let (keeper, live, number) = (self.keeper.clone(), self.live.clone(), self.number);
            self.supervisor
                .start(ChildSpec::new(id(Stage::Sink), move |scope| {
                    let new =
                        || -> Box<dyn Settle> { Box::new(Producer::new(&brokers, shard, number)) };
                    let parts = SinkParts {
                        source: log.clone(),
                        sink: lane.kept().unwrap_or_else(new),
                        dead_letters: keeper.clone(),
                        policies: policies.clone(),
                        live: live.clone(),
                        pipeline: "p".into(),
                        failed: failed.clone(),
                        remade: remade.subscribe(),
                    };
                    let lane = lane.clone();
                    async move { run_sink(lane, parts, scope).await.map_err(relieved) }
                }));
        }
        {
            let (lane, dice) = (lane.clone(), self.brokers.dice.clone());
            self.supervisor
                .start(ChildSpec::new(id(Stage::Untransformed), move |scope| {
                    pass_on(lane.clone(), dice.clone(), scope)
                }));
        }
        let log = self.log.clone();
        let policies = StagePolicies::with_jitter("source", self.live.clone(), jitter);
        self.supervisor
            .start(ChildSpec::new(id(Stage::Source), move |scope| {
                run_source(lane.clone(), log.clone(), policies.clone(), scope)
            }));
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
