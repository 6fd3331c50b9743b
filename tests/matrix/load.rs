//! Numbered events at a steady pace, and what has become of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::future::join_all;
use uuid::Uuid;

use testkit::broker::Follower;
use testkit::process::{World, keys};

const KEYS: usize = 8;
const PACE: Duration = Duration::from_millis(50);

/// A writer that goes on until it is told to stop, and readers of all that it may have caused.
pub(crate) struct Load {
    keys: Vec<Uuid>,
    state: Arc<State>,
    task: Option<tokio::task::JoinHandle<()>>,
    followers: Vec<Follower>,
}

#[derive(Default)]
struct State {
    stop: AtomicBool,
    /// Asked to write nothing for a while, and whether it does so.
    pause: AtomicBool,
    paused: AtomicBool,
    /// Events go to the second topic.
    late: AtomicBool,
    written: AtomicU32,
}

impl Load {
    /// Which aggregate types there are; each has its topic.
    pub(crate) const TYPES: [&str; 2] = ["order", "late"];

    pub(crate) fn new(world: &World, brokers: &Follow) -> Self {
        let topic = |kind: &str| format!("{}.{kind}", world.name);
        Self {
            keys: keys(KEYS),
            state: Arc::default(),
            task: None,
            followers: Self::TYPES
                .iter()
                .map(|kind| Follower::with(&brokers.brokers, &topic(kind), &brokers.properties))
                .collect(),
        }
    }

    /// Begins, or goes on after it was ended.
    pub(crate) fn start(&mut self, world: &Arc<World>) {
        self.state.stop.store(false, Relaxed);
        let (world, state, keys) = (world.clone(), self.state.clone(), self.keys.clone());
        self.task = Some(tokio::spawn(async move {
            let mut tick = tokio::time::interval(PACE);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while !state.stop.load(Relaxed) {
                tick.tick().await;
                let pause = state.pause.load(Relaxed);
                state.paused.store(pause, Relaxed);
                if pause {
                    continue;
                }
                let number = state.written.load(Relaxed).to_string();
                let kind = Self::TYPES[usize::from(state.late.load(Relaxed))];
                join_all(keys.iter().map(|key| write(&world, *key, kind, &number))).await;
                state.written.fetch_add(1, Relaxed);
            }
            state.paused.store(true, Relaxed);
        }));
    }

    pub(crate) fn switch_topics(&self) {
        self.state.late.store(true, Relaxed);
    }

    /// Back once nothing is being written.
    pub(crate) async fn pause(&self) {
        self.state.pause.store(true, Relaxed);
        while self.task.is_some() && !self.state.paused.load(Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn resume(&self) {
        self.state.pause.store(false, Relaxed);
    }

    pub(crate) async fn end(&mut self) {
        self.state.stop.store(true, Relaxed);
        if let Some(task) = self.task.take() {
            task.await.expect("the writer is well");
        }
    }

    /// How many events were written.
    pub(crate) fn written(&self) -> usize {
        KEYS * self.state.written.load(Relaxed) as usize
    }

    fn seen(&self) -> BTreeMap<String, Vec<u32>> {
        let mut all = BTreeMap::<String, Vec<u32>>::new();
        for (key, numbers) in self.followers.iter().flat_map(Follower::numbers) {
            all.entry(key).or_default().extend(numbers);
        }
        all
    }

    /// How many different events have arrived, and how many records were repeats.
    pub(crate) fn arrived(&self) -> (usize, usize) {
        let seen = self.seen();
        let distinct = seen
            .values()
            .map(|numbers| BTreeSet::from_iter(numbers).len())
            .sum();
        let all: usize = seen.values().map(Vec::len).sum();
        (distinct, all - distinct)
    }

    /// Waits until all that was written has arrived; whether it has.
    pub(crate) async fn all_arrived(&self, within: Duration) -> bool {
        self.arrive(None, within).await
    }

    /// Waits until so many events, or all, have arrived.
    pub(crate) async fn arrive(&self, events: Option<usize>, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while self.arrived().0 < events.unwrap_or_else(|| self.written()) {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        true
    }

    /// Keys of which something came for the first time after something newer, in one topic.
    pub(crate) fn disordered(&self) -> usize {
        let of_key = |numbers: &Vec<u32>| {
            let (mut seen, mut newest) = (BTreeSet::new(), None);
            numbers.iter().any(|n| {
                let first = seen.insert(*n);
                let late = first && newest.is_some_and(|newest| *n < newest);
                newest = newest.max(Some(*n));
                late
            })
        };
        self.followers
            .iter()
            .map(|f| f.numbers().values().filter(|n| of_key(n)).count())
            .sum()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.state.stop.store(true, Relaxed);
    }
}

/// Where the records can be read whatever is done to the pipeline.
pub(crate) struct Follow {
    pub(crate) brokers: String,
    pub(crate) properties: Vec<(String, String)>,
}

/// One event; asked again where the database is away for the writer as well.
async fn write(world: &World, key: Uuid, kind: &str, number: &str) {
    let deadline = Instant::now() + testkit::process::LONG;
    while let Err(error) = world.try_write_one(key, kind, number).await {
        assert!(Instant::now() < deadline, "writing: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
