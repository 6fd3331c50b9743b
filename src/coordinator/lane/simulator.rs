//! Instances of a pipeline under everything that can befall them, many times over: the real supervisor, lanes, ledger and
//! policies, with a made-up source, transforms, brokers and group, under paused time. Shards move, by drain or because
//! their owner was given up for dead and goes on; processes are killed, stopped and started; stages crash; answers are lost,
//! commits are in doubt; settings change, with and without a rebuild; changes are dropped, rejected, refused. A seed says
//! what happens, and replays a failure: `PENSTOCK_SEED=7 cargo test -p penstock simulator`.

mod brokers;
mod feed;
mod instance;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::Counters;
use crate::change::GroupKey;
use crate::checkpoint::Checkpoints;
use crate::config::settings::{Policies, Settings};
use crate::policy::restart::{OnFailed, Settings as Supervision, Strategy};
use brokers::{Brokers, Dice};
use feed::Log;
use instance::{Instance, Told};

/// Shards of a pipeline.
const SHARDS: usize = 3;
/// The index of a topic that is not always there, and does not always take what is for it.
const OTHER: u32 = 1;
/// Changes of a shard in a run.
const CHANGES: i64 = 60;
/// Changes that a lane may hold at once.
const MAX_IN_FLIGHT: usize = 16;
/// Instances that run at once at most.
const INSTANCES: usize = 3;
/// Far more than a run takes, of made-up time.
const ENDS_WITHIN: Duration = Duration::from_secs(3_600);

/// Seeds that found [`Bug::TakesForItsOwn`] when it was none on purpose.
const FOUND: [u64; 3] = [42_494, 46_231, 54_669];

/// What is wrong on purpose, to see that the simulator finds it.
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
    /// A letter is kept although the transaction of its change is not committed.
    LettersApart,
    /// A commit counts as soon as it is asked for.
    AnswersEarly,
    /// What another instance has committed is taken for one's own commit that was not answered.
    TakesForItsOwn,
}

fn group(shard: usize) -> GroupKey {
    GroupKey(format!("ks.t/1/{shard:02}").into())
}

fn at(shard: usize, checkpoints: &Checkpoints) -> i64 {
    let checkpoint = checkpoints.get(&group(shard));
    checkpoint.map_or(0, |c| c.complete_until_us)
}

/// Changes that the transforms drop, reject, and the brokers refuse.
fn dropped(id: i64) -> bool {
    id % 17 == 3
}
fn rejected(id: i64) -> bool {
    id % 11 == 5 && !dropped(id)
}
fn refused(id: i64) -> bool {
    id % 13 == 7 && !rejected(id) && !dropped(id)
}

struct World {
    dice: Arc<Dice>,
    brokers: Arc<Brokers>,
    live: watch::Sender<Arc<Settings>>,
    running: JoinSet<()>,
    /// By number, whom to tell.
    instances: BTreeMap<usize, mpsc::UnboundedSender<Told>>,
    /// … and what each was told that is settled.
    logs: Vec<Arc<Log>>,
    /// By shard, as the group has it.
    owners: [Option<usize>; SHARDS],
    started: usize,
}

impl World {
    fn new(seed: u64, atomic: bool, bug: Option<Bug>) -> Self {
        let dice = Dice::new(seed);
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
            brokers: Brokers::new(dice.clone(), atomic, bug),
            dice,
            live: watch::Sender::new(Arc::new(settings)),
            running: JoinSet::new(),
            instances: BTreeMap::new(),
            logs: Vec::new(),
            owners: [None; SHARDS],
            started: 0,
        }
    }

    fn start(&mut self) {
        let (tell, told) = mpsc::unbounded_channel();
        let instance = Instance::new(self.started, &self.brokers, self.live.subscribe());
        self.logs.push(instance.log.clone());
        self.instances.insert(self.started, tell);
        self.started += 1;
        self.running.spawn_local(instance.run(told));
    }

    fn any(&self) -> Option<usize> {
        let numbers: Vec<usize> = self.instances.keys().copied().collect();
        match numbers.len() {
            0 => None,
            n => Some(numbers[self.dice.below(n)]),
        }
    }

    fn tell(&self, number: usize, told: Told) {
        if let Some(tell) = self.instances.get(&number) {
            // It may have ended meanwhile.
            tell.send(told).ok();
        }
    }

    fn assign(&mut self, shard: usize, to: usize) {
        self.owners[shard] = Some(to);
        self.tell(to, Told::Assigned(shard));
    }

    /// Shards that nobody has go to whoever is there.
    fn share_out(&mut self) {
        for shard in 0..SHARDS {
            if self.owners[shard].is_none()
                && let Some(to) = self.any()
            {
                self.assign(shard, to);
            }
        }
    }

    /// The group hears that it is gone.
    fn forget(&mut self, number: usize) {
        self.instances.remove(&number);
        for owner in &mut self.owners {
            owner.take_if(|owner| *owner == number);
        }
    }

    /// A shard goes from its owner to another, in good order.
    async fn hand_on(&mut self, shard: usize, to: usize) {
        let Some(from) = self.owners[shard].filter(|from| *from != to) else {
            return;
        };
        let (done, given_back) = oneshot::channel();
        self.tell(from, Told::Revoked(shard, done));
        given_back.await.ok();
        self.assign(shard, to);
    }

    fn retune(&mut self) {
        let (most, commit, checkpoint) = (
            1 + self.dice.below(MAX_IN_FLIGHT) as u32,
            1 + self.dice.below(200) as u64,
            10 + self.dice.below(2_000) as u64,
        );
        self.live.send_modify(|settings| {
            let settings = Arc::make_mut(settings);
            settings.pipeline.max_in_flight = NonZeroU32::new(most).expect("at least one");
            settings.sink.commit_interval = Duration::from_millis(commit);
            settings.sink.checkpoint_interval = Duration::from_millis(checkpoint);
        });
    }

    /// Something happens.
    async fn happens(&mut self) {
        let shard = self.dice.below(SHARDS);
        match self.dice.below(8) {
            0 | 1 if self.instances.len() < INSTANCES => self.start(),
            0 | 2 => {
                if let Some(number) = self.any() {
                    // Whoever tells it anything is gone: it ends there and then.
                    self.forget(number);
                }
            }
            3 => {
                if let Some(number) = self.any() {
                    self.tell(number, Told::Stop);
                    self.forget(number);
                }
            }
            1 | 4 => {
                if let Some(to) = self.any() {
                    self.hand_on(shard, to).await;
                }
            }
            // The group gives it up for dead, and it goes on: nothing but the fence keeps it from writing. At least once
            // there is none, so keys may see older changes again.
            5 if self.brokers.atomic => {
                if let (Some(to), Some(from)) = (self.any(), self.owners[shard])
                    && to != from
                {
                    self.assign(shard, to);
                    tokio::time::sleep(self.dice.delay() * 3).await;
                    self.tell(from, Told::Lost(shard));
                }
            }
            6 => {
                if let Some(number) = self.any() {
                    self.tell(number, Told::Rebuild);
                }
            }
            _ => self.retune(),
        }
        self.share_out();
        tokio::time::sleep(self.dice.delay() * 2).await;
    }

    /// What is wrong with what a reader of committed records has, if something is.
    async fn run(&mut self) -> Result<(), String> {
        for _ in 0..self.dice.below(12) {
            self.happens().await;
        }
        self.dice.calm();
        if self.instances.is_empty() {
            self.start();
        }
        self.share_out();
        let brokers = self.brokers.clone();
        let done = async {
            while !brokers.is_done() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let ended = tokio::time::timeout(ENDS_WITHIN, done).await;
        self.instances.clear();
        while let Some(ended) = self.running.join_next().await {
            ended.map_err(|error| error.to_string())?;
        }
        if ended.is_err() {
            let stand: Vec<i64> = (0..SHARDS).map(|s| self.brokers.stands_at(s)).collect();
            return Err(format!("they stand at {stand:?}"));
        }
        (0..SHARDS).try_for_each(|shard| self.judge(shard))
    }

    fn judge(&self, shard: usize) -> Result<(), String> {
        let kept = self.brokers.kept[shard].lock();
        let poison = |id: &i64| rejected(*id) || refused(*id);
        let wanted: Vec<i64> = (1..=CHANGES)
            .filter(|id| !dropped(*id) && !poison(id))
            .collect();
        let letters: Vec<i64> = (1..=CHANGES).filter(poison).collect();
        let (seen, written) = match self.brokers.atomic {
            true => (kept.visible.clone(), kept.letters.clone()),
            // A letter's key is its change's position, so of several one stays.
            false => (firsts(&kept.visible), firsts(&kept.letters)),
        };
        let sorted = |mut ids: Vec<i64>| {
            ids.sort_unstable();
            ids
        };
        if seen != wanted {
            return Err(format!("shard {shard}: seen: {seen:?}"));
        }
        if sorted(written) != letters {
            return Err(format!("shard {shard}: letters: {:?}", kept.letters));
        }
        let stands_at = at(shard, &kept.checkpoint);
        let told = self.logs.iter().map(|log| *log.settled[shard].lock());
        if self.brokers.atomic && told.max() > Some(stands_at) {
            return Err(format!(
                "shard {shard}: a source was told more than is committed"
            ));
        }
        // What was killed before it was told may be missing; what was undone, or done elsewhere, is not counted.
        let counted = |of: fn(&Counters) -> &AtomicU64| -> u64 {
            let logs = self.logs.iter();
            logs.map(|log| of(&log.counters[shard]).load(Relaxed)).sum()
        };
        let (done, written) = (counted(|c| &c.done), counted(|c| &c.dead_letters));
        if self.brokers.atomic && (done > CHANGES as u64 || written > letters.len() as u64) {
            return Err(format!(
                "shard {shard}: {done} changes and {written} letters are counted"
            ));
        }
        Ok(())
    }
}

fn firsts(ids: &[i64]) -> Vec<i64> {
    let mut firsts = Vec::new();
    for id in ids {
        if !firsts.contains(id) {
            firsts.push(*id);
        }
    }
    firsts
}

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ran {
    /// How often a record had to wait for its topic, and how often one was refused.
    waits: u32,
    refusals: u32,
    /// Of all that happened, and when.
    digest: u64,
}

fn simulate(seed: u64, atomic: bool, bug: Option<Bug>) -> Result<Ran, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let run = async {
        let mut world = World::new(seed, atomic, bug);
        world.run().await?;
        let other = world.brokers.other.lock();
        Ok(Ran {
            waits: other.waits,
            refusals: other.refusals,
            digest: world.dice.digest(),
        })
    };
    tokio::task::LocalSet::new().block_on(&runtime, run)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seeds() -> std::ops::Range<u64> {
    let from = number("PENSTOCK_TEST_FIRST_SEED").unwrap_or_default();
    match number("PENSTOCK_SEED") {
        Some(seed) => seed..seed + 1,
        None => from..from + number("PENSTOCK_TEST_SEEDS").unwrap_or(2_000),
    }
}

#[test]
fn whatever_happens_no_change_is_lost_or_seen_twice() {
    let begun = std::time::Instant::now();
    let mut troubles = (0, 0);
    for atomic in [true, false] {
        for seed in seeds() {
            match simulate(seed, atomic, None) {
                Ok(ran) => troubles = (troubles.0 + ran.waits, troubles.1 + ran.refusals),
                Err(wrong) => panic!("PENSTOCK_SEED={seed}, atomic {atomic}: {wrong}"),
            }
        }
    }
    println!("{:?}, each both ways, in {:.1?}", seeds(), begun.elapsed());
    let (waits, refusals) = troubles;
    println!("{waits} times a topic was waited for, {refusals} times it refused");
    assert!(waits > 0 && refusals > 0 || seeds().count() < 100);
}

#[test]
fn what_is_wrong_on_purpose_is_found() {
    for (bug, from) in [
        (Bug::GuessesNo, 0),
        (Bug::GuessesYes, 0),
        (Bug::Unfenced, 0),
        (Bug::CheckpointFirst, 0),
        (Bug::Leaks, 0),
        (Bug::LettersApart, 0),
        (Bug::AnswersEarly, 0),
        // One seed in thirty thousand.
        (Bug::TakesForItsOwn, FOUND[0]),
    ] {
        let found = (from..from + 2_000)
            .find_map(|seed| Some((seed, simulate(seed, true, Some(bug)).err()?)));
        let (seed, wrong) = found.unwrap_or_else(|| panic!("{bug:?} is not found"));
        println!("{bug:?}: seed {seed}: {}", &wrong[..wrong.len().min(120)]);
    }
}

/// What was found once stays mended.
#[test]
fn seeds_that_found_something_once_hold() {
    for (seed, atomic) in FOUND
        .into_iter()
        .flat_map(|seed| [(seed, true), (seed, false)])
    {
        let ran = simulate(seed, atomic, None);
        assert!(
            ran.is_ok(),
            "PENSTOCK_SEED={seed}, atomic {atomic}: {ran:?}"
        );
    }
}

/// Throw for throw, to the millisecond of made-up time: or a seed that fails once would tell nothing.
#[test]
fn a_seed_replays_what_happened() {
    for atomic in [true, false] {
        for seed in 0..50 {
            let (first, again) = (simulate(seed, atomic, None), simulate(seed, atomic, None));
            assert_eq!(first, again, "seed {seed}, atomic {atomic}");
        }
    }
}
