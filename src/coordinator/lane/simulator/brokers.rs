//! Made-up brokers: what each shard's producer has made visible, who may write, and the group.

use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Bug, CHANGES, OTHER, SHARDS, at, group, refused};
use crate::change::{Position, RecordBatch};
use crate::checkpoint::{Checkpoints, Settlement};
use crate::dead_letter::DeadLetter;
use crate::policy::Class;
use crate::sink::{
    Delivered, Fit, Leave, Letters, Look, Recovery, Settle, SinkError, Standing, Ticket,
};

/// The dice: whether and how long. Still once it is to go well to the end.
pub(super) struct Dice {
    rng: Mutex<StdRng>,
    calm: AtomicBool,
    /// Of what was thrown, and when: the same of a seed, whenever and wherever it runs.
    digest: Mutex<DefaultHasher>,
    begun: Instant,
}

thread_local! {
    /// What the policies of the run on this thread draw from: they take no more than a function.
    static JITTER: RefCell<StdRng> = RefCell::new(StdRng::seed_from_u64(0));
}

/// For the pauses of policies.
pub(super) fn jitter() -> f64 {
    JITTER.with_borrow_mut(|rng| rng.random())
}

impl Dice {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        JITTER.set(StdRng::seed_from_u64(seed));
        Arc::new(Self {
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            calm: AtomicBool::new(false),
            digest: Mutex::default(),
            begun: Instant::now(),
        })
    }

    /// What happened, in a number.
    pub(super) fn digest(&self) -> u64 {
        self.digest.lock().finish()
    }

    fn throw(&self, below: u64) -> u64 {
        let thrown = self.rng.lock().random_range(0..below);
        let mut digest = self.digest.lock();
        (below, thrown, self.begun.elapsed()).hash(&mut *digest);
        thrown
    }

    /// Nothing goes wrong any more.
    pub(super) fn calm(&self) {
        self.calm.store(true, Relaxed);
    }

    pub(super) fn hits(&self, percent: u32) -> bool {
        !self.calm.load(Relaxed) && self.throw(100) < percent.into()
    }

    pub(super) fn below(&self, n: usize) -> usize {
        self.throw(n as u64) as usize
    }

    /// Mostly short, now and then long.
    pub(super) fn delay(&self) -> Duration {
        let most = if self.throw(20) == 0 { 2_000 } else { 20 };
        Duration::from_millis(self.throw(most))
    }
}

/// What the brokers have.
pub(super) struct Brokers {
    pub(super) dice: Arc<Dice>,
    pub(super) atomic: bool,
    pub(super) bug: Option<Bug>,
    /// By shard.
    pub(super) kept: [Mutex<Kept>; SHARDS],
    /// The topic that some changes are for.
    pub(super) other: Mutex<Other>,
}

/// What is wrong with a topic.
#[derive(Default)]
pub(super) struct Other {
    /// It is not there.
    missing: bool,
    /// Records for it are refused.
    refuses: bool,
    /// … and that is known.
    refused: bool,
    /// How often a record had to wait, and how often one was refused.
    pub(super) waits: u32,
    pub(super) refusals: u32,
}

/// … of a shard.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) visible: Vec<i64>,
    /// Changes that have a letter, as often as one was written.
    pub(super) letters: Vec<i64>,
    pub(super) checkpoint: Checkpoints,
    /// The furthest that it was: nobody fences a producer that delivers at least once, so a write of an earlier one that
    /// comes late puts the checkpoint back, which only repeats.
    furthest: i64,
    /// Of the producer that may write.
    epoch: u64,
    /// The instance that had it last, by number, as the checkpoint topic says.
    owner: Option<usize>,
}

impl Brokers {
    pub(super) fn new(dice: Arc<Dice>, atomic: bool, bug: Option<Bug>) -> Arc<Self> {
        Arc::new(Self {
            dice,
            atomic,
            bug,
            kept: Default::default(),
            other: Mutex::default(),
        })
    }

    pub(super) fn stands_at(&self, shard: usize) -> i64 {
        let kept = self.kept[shard].lock();
        match self.atomic {
            true => at(shard, &kept.checkpoint),
            false => kept.furthest,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        (0..SHARDS).all(|shard| self.stands_at(shard) >= CHANGES)
    }

    fn commit(
        &self,
        shard: usize,
        epoch: u64,
        open: &Mutex<Vec<i64>>,
        letters: &[i64],
        progress: Checkpoints,
    ) -> Result<(), SinkError> {
        let mut kept = self.kept[shard].lock();
        if self.atomic && self.bug != Some(Bug::Unfenced) && kept.epoch != epoch {
            return Err(lost("fenced"));
        }
        kept.visible.append(&mut open.lock());
        if self.bug != Some(Bug::LettersApart) {
            kept.letters.extend(letters);
        }
        kept.furthest = kept.furthest.max(at(shard, &progress));
        kept.checkpoint.extend(progress);
        Ok(())
    }
}

/// At least once the stage writes the letters itself, one after the other.
impl Letters for Brokers {
    fn admit<'a>(&'a self, _: &'a [DeadLetter]) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            tokio::time::sleep(self.dice.delay()).await;
            Ok(())
        })
    }

    fn write<'a>(&'a self, letters: &'a [DeadLetter]) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            for letter in letters {
                let Position { stream, seq, .. } = letter.position;
                let kept = &self.kept[usize::from(stream.0[0])];
                kept.lock().letters.push(seq.into());
                tokio::time::sleep(self.dice.delay()).await;
            }
            Ok(())
        })
    }

    fn keep_closed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
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
pub(super) struct Producer {
    brokers: Arc<Brokers>,
    shard: usize,
    /// Whose it is, by number.
    instance: usize,
    epoch: u64,
    /// In the open transaction.
    open: Arc<Mutex<Vec<i64>>>,
    in_doubt: bool,
    broken: bool,
    /// It was kept, and nothing was done with it since.
    rests: bool,
}

impl Producer {
    pub(super) fn new(brokers: &Arc<Brokers>, shard: usize, instance: usize) -> Self {
        Self {
            brokers: brokers.clone(),
            shard,
            instance,
            epoch: 0,
            open: Arc::default(),
            in_doubt: false,
            broken: false,
            rests: false,
        }
    }

    fn kept(&self) -> parking_lot::MutexGuard<'_, Kept> {
        self.brokers.kept[self.shard].lock()
    }

    fn is_fenced(&self) -> bool {
        self.brokers.atomic
            && self.brokers.bug != Some(Bug::Unfenced)
            && self.kept().epoch != self.epoch
    }

    /// As the real one, which looks whether another instance has claimed the shard.
    fn given_up(&self) -> Result<(), SinkError> {
        match self.epoch > 0 && self.is_fenced() {
            true => Err(SinkError::Fenced {
                shard: self.shard as u32,
                reason: "another has it".into(),
            }),
            false => Ok(()),
        }
    }
}

impl Settle for Producer {
    fn is_atomic(&self) -> bool {
        self.brokers.atomic
    }

    fn open(&mut self) -> BoxFuture<'_, Result<Option<Standing>, SinkError>> {
        Box::pin(async move {
            if std::mem::take(&mut self.rests) {
                return Ok(None);
            }
            tokio::time::sleep(self.brokers.dice.delay()).await;
            if self.brokers.dice.hits(10) {
                return Err(lost("not opened"));
            }
            let brokers = self.brokers.clone();
            let mut kept = brokers.kept[self.shard].lock();
            kept.epoch += 1;
            self.epoch = kept.epoch;
            // The owner before may still hold its list: this one has another.
            self.open = Arc::default();
            (self.in_doubt, self.broken) = (false, false);
            // The real one commits that at once.
            let owner = kept.owner.replace(self.instance);
            Ok(brokers.atomic.then(|| Standing {
                checkpoints: kept.checkpoint.clone(),
                is_ours: owner == Some(self.instance) || brokers.bug == Some(Bug::TakesForItsOwn),
            }))
        })
    }

    fn look(
        &self,
        batch: Arc<RecordBatch>,
        apart: bool,
    ) -> BoxFuture<'static, Result<Look, SinkError>> {
        let brokers = self.brokers.clone();
        Box::pin(async move {
            if !batch.records.iter().any(|r| r.topic == OTHER) {
                return Ok(Look::default());
            }
            if brokers.dice.hits(20) {
                tokio::time::sleep(brokers.dice.delay()).await;
            }
            let mut other = brokers.other.lock();
            other.missing |= brokers.dice.hits(20);
            other.refuses |= brokers.dice.hits(20);
            let waits = other.missing || (other.refused && !apart);
            other.waits += u32::from(waits);
            Ok(Look {
                waits: if waits { vec![OTHER] } else { Vec::new() },
                is_trial: other.refused,
                ..Look::default()
            })
        })
    }

    fn recovery(&self, topics: Vec<Arc<str>>) -> BoxFuture<'static, Recovery> {
        let brokers = self.brokers.clone();
        Box::pin(async move {
            loop {
                tokio::time::sleep(brokers.dice.delay()).await;
                let mut other = brokers.other.lock();
                if brokers.dice.hits(50) {
                    continue;
                }
                other.missing = false;
                other.refuses &= brokers.dice.hits(50);
                return Recovery {
                    topic: topics[0].clone(),
                    is_certain: !other.refused,
                };
            }
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
        _: Vec<Fit>,
        _: Leave,
    ) -> BoxFuture<'_, Result<Ticket, SinkError>> {
        Box::pin(async move {
            if self.broken || self.is_fenced() || self.brokers.dice.hits(2) {
                self.broken = true;
                return Err(lost("not taken"));
            }
            let (done, ticket) = Ticket::new();
            if batch.records.iter().any(|r| r.topic == OTHER) {
                let mut other = self.brokers.other.lock();
                other.refused = other.refuses;
                if other.refuses {
                    other.refusals += 1;
                    self.broken = true;
                    let (topic, reason) = ("u".to_owned(), "no right".to_owned());
                    done.send(Err(SinkError::Refused { topic, reason })).ok();
                    return Ok(ticket);
                }
            }
            let (brokers, open) = (self.brokers.clone(), self.open.clone());
            let change = |position: &Position| i64::from(position.seq);
            let positions = &batch.source.positions;
            let mut ids = Vec::new();
            let mut delivered = Delivered::default();
            for (index, record) in (0..).zip(&batch.records) {
                let id = change(&positions[record.source as usize]);
                match refused(id) {
                    true => delivered.poison.push((index, "never".into())),
                    false => ids.push(id),
                }
            }
            let arrives = !brokers.dice.hits(3);
            let answered = !brokers.dice.hits(3);
            let (delay, shard, fate) = (brokers.dice.delay(), self.shard, self.epoch);
            // Records of one producer arrive in order; the order of the answers is the lane's to keep.
            if arrives {
                match brokers.atomic {
                    true => open.lock().extend(&ids),
                    false => self.kept().visible.extend(&ids),
                }
            }
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let fenced = brokers.atomic && brokers.kept[shard].lock().epoch != fate;
                let answer = match arrives && answered && !fenced {
                    true => Ok(delivered),
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
        letters: &'a [DeadLetter],
        settlement: &'a Settlement,
    ) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            let (brokers, shard) = (self.brokers.clone(), self.shard);
            if brokers.bug == Some(Bug::CheckpointFirst) {
                let progress = settlement.progress.clone();
                self.kept().checkpoint.extend(progress);
            }
            let letters: Vec<i64> = letters.iter().map(|l| l.position.seq.into()).collect();
            if brokers.bug == Some(Bug::LettersApart) {
                self.kept().letters.extend(&letters);
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
                let done = brokers.commit(shard, epoch, &open, &letters, progress);
                tokio::time::sleep(brokers.dice.delay()).await;
                // Nobody may be there to hear it.
                answer
                    .send(if silent { Err(lost("no answer")) } else { done })
                    .ok();
            });
            if self.brokers.bug != Some(Bug::AnswersEarly) {
                answered.await.unwrap_or(Err(SinkError::Reset))?;
            }
            self.in_doubt = false;
            Ok(())
        })
    }

    fn reset(&mut self) -> BoxFuture<'_, Result<Option<Standing>, SinkError>> {
        Box::pin(async move {
            let brokers = self.brokers.clone();
            if !brokers.atomic {
                self.broken = false;
                return Ok(None);
            }
            self.given_up()?;
            let aborted = std::mem::take(&mut *self.open.lock());
            if brokers.bug == Some(Bug::Leaks) {
                self.kept().visible.extend(aborted);
            }
            if self.in_doubt && brokers.bug == Some(Bug::GuessesNo) {
                (self.in_doubt, self.broken) = (false, false);
                return Ok(None);
            }
            if self.broken && brokers.bug == Some(Bug::GuessesYes) {
                self.open().await?;
                let mut kept = brokers.kept[self.shard].lock();
                let seen = kept.checkpoint.entry(group(self.shard)).or_default();
                seen.complete_until_us = (seen.complete_until_us + 1).min(CHANGES);
                return Ok(Some(Standing {
                    checkpoints: kept.checkpoint.clone(),
                    is_ours: true,
                }));
            }
            // An abort that is answered tells all; else another producer has to ask.
            if self.in_doubt || brokers.dice.hits(50) {
                return self.open().await;
            }
            self.broken = false;
            Ok(None)
        })
    }

    fn rest(&mut self) -> bool {
        self.rests = !self.broken && !self.in_doubt && self.open.lock().is_empty();
        self.rests
    }

    fn close(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
