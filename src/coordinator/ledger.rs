//! How far a shard is, and what is in whose hands. Pure: no I/O, no clock, no channel.
//!
//! Four marks, each a position for every stream group: `committed ≤ delivered ≤ handed ≤ read`.
//!
//! - `read`: handed by the source to the transforms. A crashed source goes on here.
//! - `handed`: handed by the transforms to the sink. A transform that crashed with a batch goes back here.
//! - `delivered`: acknowledged by the brokers, kept as dead letters, or dropped. A sink that delivers at least once
//!   goes back here.
//! - `committed`: what the checkpoint topic says. Only this moves the source's barrier, the metrics, and what a
//!   restart goes back to. A transaction that is aborted goes back here.
//!
//! Going back begins a new *epoch*: what belongs to an earlier one is let go of wherever it turns up.

use std::collections::BTreeSet;

use crate::change::{GroupKey, Progress};
use crate::checkpoint::{Checkpoints, Settlement};

/// Changes and batches that the sink has taken and not delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Batches.
    pub batches: usize,
    /// The changes in them.
    pub changes: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    epoch: u64,
    committed: Checkpoints,
    delivered: Checkpoints,
    handed: Checkpoints,
    read: Checkpoints,
    /// Groups of which `delivered` is ahead of `committed`.
    dirty: BTreeSet<GroupKey>,
    /// Groups that are finished, delivered, and still in the checkpoint topic.
    forgotten: BTreeSet<GroupKey>,
    /// Batches of this epoch that the source has handed on and the transforms have not.
    with_transforms: usize,
    /// Batches that the transforms have handed on and the sink has not taken.
    before_sink: usize,
    /// The transforms hold a batch that is in neither channel.
    transforming: bool,
    /// What was handed on in an epoch before this one is let go of by the sink.
    sink_since: u64,
    in_flight: InFlight,
}

fn apply(mark: &mut Checkpoints, progress: &[Progress]) {
    for p in progress {
        if p.finished {
            mark.remove(&p.group);
        } else {
            mark.entry(p.group.clone()).or_default().apply(p);
        }
    }
}

impl Ledger {
    /// All four marks stand where the checkpoint topic says.
    pub fn new(checkpoints: Checkpoints) -> Self {
        Self {
            committed: checkpoints.clone(),
            delivered: checkpoints.clone(),
            handed: checkpoints.clone(),
            read: checkpoints,
            ..Self::default()
        }
    }

    /// The epoch, and where a source that starts now goes on.
    pub fn resume(&self) -> (u64, Checkpoints) {
        (self.epoch, self.read.clone())
    }

    /// The epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What the checkpoint topic says.
    pub fn committed(&self) -> &Checkpoints {
        &self.committed
    }

    /// What is acknowledged, kept as letters, or dropped.
    pub fn delivered(&self) -> &Checkpoints {
        &self.delivered
    }

    /// What the sink has taken and not delivered.
    pub fn in_flight(&self) -> InFlight {
        self.in_flight
    }

    /// Whether nothing that the source has handed on is still on its way to the sink.
    pub fn is_idle_upstream(&self) -> bool {
        self.with_transforms + self.before_sink == 0
    }

    /// Whether the transforms hold a batch; after a crash of theirs it is lost.
    pub fn is_transforming(&self) -> bool {
        self.transforming
    }

    /// The source hands a batch on; `false`: it is of an earlier epoch, let go of it.
    #[must_use]
    pub fn read(&mut self, epoch: u64, progress: &[Progress]) -> bool {
        if epoch != self.epoch {
            return false;
        }
        apply(&mut self.read, progress);
        self.with_transforms += 1;
        true
    }

    /// The transforms take a batch; `false`: let go of it.
    #[must_use]
    pub fn take(&mut self, epoch: u64) -> bool {
        self.transforming = epoch == self.epoch;
        self.transforming
    }

    /// The transforms hand on what they made of the batch that they took; `false`: let go of it.
    #[must_use]
    pub fn hand(&mut self, epoch: u64, progress: &[Progress]) -> bool {
        self.transforming = false;
        if epoch != self.epoch {
            return false;
        }
        apply(&mut self.handed, progress);
        self.with_transforms -= 1;
        self.before_sink += 1;
        true
    }

    /// The sink takes a batch of so many changes; `false`: let go of it.
    #[must_use]
    pub fn submit(&mut self, epoch: u64, changes: usize) -> bool {
        if epoch < self.sink_since {
            return false;
        }
        self.before_sink -= 1;
        self.in_flight.batches += 1;
        self.in_flight.changes += changes;
        true
    }

    /// The oldest batch in flight is delivered.
    pub fn deliver(&mut self, changes: usize, progress: &[Progress]) {
        self.in_flight.batches -= 1;
        self.in_flight.changes -= changes;
        apply(&mut self.delivered, progress);
        for p in progress {
            if p.finished {
                self.dirty.remove(&p.group);
                self.forgotten.insert(p.group.clone());
            } else {
                self.forgotten.remove(&p.group);
                self.dirty.insert(p.group.clone());
            }
        }
    }

    /// What a settlement is to say.
    pub fn settlement(&self) -> Settlement {
        let of = |g: &GroupKey| self.delivered.get(g).map(|c| (g.clone(), c.clone()));
        Settlement {
            progress: self.dirty.iter().filter_map(of).collect(),
            forgotten: self.forgotten.clone(),
        }
    }

    /// What it is to say once what is in flight is delivered too, oldest first.
    pub fn settlement_with<'a>(&self, coming: impl Iterator<Item = &'a [Progress]>) -> Settlement {
        let mut settlement = self.settlement();
        for p in coming.flatten() {
            let (progress, forgotten) = (&mut settlement.progress, &mut settlement.forgotten);
            if p.finished {
                progress.remove(&p.group);
                forgotten.insert(p.group.clone());
                continue;
            }
            let known = match forgotten.remove(&p.group) {
                true => None,
                false => self.delivered.get(&p.group),
            };
            let entry = progress.entry(p.group.clone());
            entry
                .or_insert_with(|| known.cloned().unwrap_or_default())
                .apply(p);
        }
        settlement
    }

    /// Whether [`Self::settlement`] says anything.
    pub fn is_settled(&self) -> bool {
        self.dirty.is_empty() && self.forgotten.is_empty()
    }

    /// The checkpoint topic has lost what it said: all of it is to be said again.
    pub fn say_again(&mut self) {
        self.dirty.extend(self.delivered.keys().cloned());
    }

    /// A settlement is committed. What was delivered while it was under way is for the next one.
    pub fn commit(&mut self, settled: &Settlement) {
        for (group, checkpoint) in &settled.progress {
            if self.delivered.get(group) == Some(checkpoint) {
                self.dirty.remove(group);
            }
            self.committed.insert(group.clone(), checkpoint.clone());
        }
        for group in &settled.forgotten {
            self.forgotten.remove(group);
            self.committed.remove(group);
        }
    }

    /// A batch that the transforms had is lost: they are handed it again. What they handed on before stays good.
    pub fn rewind_to_handed(&mut self) {
        self.read = self.handed.clone();
        self.epoch += 1;
        self.with_transforms = 0;
        self.transforming = false;
    }

    /// What is in flight is lost, what is delivered is not.
    pub fn rewind_to_delivered(&mut self) {
        self.read = self.delivered.clone();
        self.handed = self.delivered.clone();
        self.begin_again();
    }

    /// Everything since the last commit is lost, or only the checkpoint topic knows how far it went.
    pub fn rewind_to(&mut self, checkpoints: Checkpoints) {
        *self = Self {
            epoch: self.epoch,
            ..Self::new(checkpoints)
        };
        self.begin_again();
    }

    /// Nothing that anybody holds is good any more.
    fn begin_again(&mut self) {
        self.epoch += 1;
        self.sink_since = self.epoch;
        self.with_transforms = 0;
        self.before_sink = 0;
        self.transforming = false;
        self.in_flight = InFlight::default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn group() -> GroupKey {
        GroupKey("ks.t/1/0".into())
    }

    /// The progress of a batch that ends with change `n`.
    fn upto(n: i64) -> Vec<Progress> {
        vec![Progress {
            complete_until_us: Some(n),
            ..Progress::new(group())
        }]
    }

    fn at(checkpoints: &Checkpoints) -> i64 {
        checkpoints.get(&group()).map_or(0, |c| c.complete_until_us)
    }

    /// What each child does, and what befalls it.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Read,
        Take,
        Hand,
        CrashTransforms,
        Submit,
        Deliver,
        Settle,
        CrashSource,
        /// The sink crashes, delivering at least once.
        CrashSink,
        /// A transaction is aborted.
        Abort,
        /// A commit is in doubt, and turns out to have happened, or not.
        Doubt(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Read),
            4 => Just(Step::Take),
            4 => Just(Step::Hand),
            4 => Just(Step::Submit),
            4 => Just(Step::Deliver),
            2 => Just(Step::Settle),
            1 => Just(Step::CrashTransforms),
            1 => Just(Step::CrashSource),
            1 => Just(Step::CrashSink),
            1 => Just(Step::Abort),
            1 => any::<bool>().prop_map(Step::Doubt),
        ]
    }

    /// A lane as the children make one of a ledger: two channels, a hand, the brokers. Change `n` is batch `n`.
    #[derive(Default)]
    struct Model {
        ledger: Ledger,
        /// (epoch, next change) of the reader that is open.
        reader: (u64, i64),
        before_transforms: VecDeque<(u64, i64)>,
        hand: Option<(u64, i64)>,
        before_sink: VecDeque<(u64, i64)>,
        in_flight: VecDeque<i64>,
        /// Delivered since the last settlement.
        open: Vec<i64>,
        /// What a reader of committed records sees, and the checkpoint beside it.
        visible: Vec<i64>,
        topic: i64,
    }

    impl Model {
        fn reopen(&mut self) {
            let (epoch, from) = self.ledger.resume();
            self.reader = (epoch, at(&from));
        }

        fn settle(&mut self) {
            let unsettled = self.ledger.settlement();
            self.visible.append(&mut self.open);
            if let Some(c) = unsettled.progress.get(&group()) {
                self.topic = c.complete_until_us;
            }
            self.ledger.commit(&unsettled);
        }

        fn step(&mut self, step: Step) {
            match step {
                Step::Read if self.before_transforms.len() < 2 => {
                    let (epoch, from) = self.reader;
                    if self.ledger.read(epoch, &upto(from + 1)) {
                        self.before_transforms.push_back((epoch, from + 1));
                        self.reader.1 += 1;
                    } else {
                        self.reopen();
                    }
                }
                Step::Take if self.hand.is_none() => {
                    if let Some((epoch, n)) = self.before_transforms.pop_front()
                        && self.ledger.take(epoch)
                    {
                        self.hand = Some((epoch, n));
                    }
                }
                Step::Hand if self.before_sink.len() < 2 => {
                    if let Some((epoch, n)) = self.hand.take()
                        && self.ledger.hand(epoch, &upto(n))
                    {
                        self.before_sink.push_back((epoch, n));
                    }
                }
                Step::CrashTransforms => {
                    self.hand = None;
                    if self.ledger.is_transforming() {
                        self.ledger.rewind_to_handed();
                        self.reopen();
                    }
                }
                Step::Submit => {
                    if let Some((epoch, n)) = self.before_sink.pop_front()
                        && self.ledger.submit(epoch, 1)
                    {
                        self.in_flight.push_back(n);
                    }
                }
                Step::Deliver => {
                    if let Some(n) = self.in_flight.pop_front() {
                        self.ledger.deliver(1, &upto(n));
                        self.open.push(n);
                    }
                }
                Step::Settle => self.settle(),
                Step::CrashSource => self.reopen(),
                Step::CrashSink => {
                    // What was delivered stays delivered: it is visible already.
                    self.in_flight.clear();
                    self.ledger.rewind_to_delivered();
                    self.reopen();
                }
                Step::Abort | Step::Doubt(false) => {
                    self.in_flight.clear();
                    self.open.clear();
                    self.ledger.rewind_to(self.ledger.committed().clone());
                    self.reopen();
                }
                Step::Doubt(true) => {
                    // Everything in flight made it after all.
                    let unsettled = self.ledger.settlement();
                    let read_back = unsettled.progress;
                    self.visible.append(&mut self.open);
                    self.topic = self.topic.max(at(&read_back));
                    self.in_flight.clear();
                    let known = match at(&read_back) {
                        0 => self.ledger.committed().clone(),
                        _ => read_back,
                    };
                    self.ledger.rewind_to(known);
                    self.reopen();
                }
                _ => {}
            }
            let l = &self.ledger;
            let marks = [&l.committed, &l.delivered, &l.handed, &l.read].map(at);
            assert!(marks.is_sorted(), "{marks:?} after {step:?}");
            assert_eq!(at(&l.committed), self.topic, "after {step:?}");
            assert_eq!(l.in_flight.batches, self.in_flight.len());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn no_change_is_lost_and_none_is_seen_twice(
            steps in prop::collection::vec(step(), 1..200)
        ) {
            let mut model = Model::default();
            for s in steps {
                model.step(s);
            }
            // Nothing goes wrong any more: it flows to its end.
            for _ in 0..8 {
                for s in [Step::Read, Step::Take, Step::Hand, Step::Submit, Step::Deliver] {
                    model.step(s);
                }
            }
            model.settle();
            let expected: Vec<i64> = (1..=model.topic).collect();
            prop_assert_eq!(model.visible, expected);
        }
    }

    #[test]
    fn what_a_settlement_will_say_is_what_it_says_once_all_is_delivered() {
        let of = |name: &str, until: Option<i64>| Progress {
            complete_until_us: until,
            finished: until.is_none(),
            ..Progress::new(GroupKey(name.into()))
        };
        let first = [of("a", Some(1)), of("b", Some(1)), of("c", Some(1))];
        let batches = [
            vec![of("a", Some(2)), of("b", None), of("d", Some(1))],
            vec![of("a", Some(3)), of("c", None), of("d", None)],
            vec![of("c", Some(9)), of("a", Some(4))],
        ];
        let mut ledger = Ledger::default();
        for progress in [&first[..]]
            .into_iter()
            .chain(batches.iter().map(|b| &b[..]))
        {
            assert!(ledger.read(0, progress) && ledger.take(0) && ledger.hand(0, progress));
            assert!(ledger.submit(0, 1));
        }
        ledger.deliver(1, &first);
        ledger.commit(&ledger.settlement());
        for left in (0..=batches.len()).rev() {
            let (delivered, coming) = batches.split_at(batches.len() - left);
            let foreseen = ledger.settlement_with(coming.iter().map(|b| &b[..]));
            assert_eq!(foreseen.progress.len(), 2, "{foreseen:?}");
            assert_eq!(foreseen.forgotten.len(), 2, "{foreseen:?}");
            if let Some(next) = coming.first() {
                ledger.deliver(1, next);
                let then = ledger.settlement_with(coming[1..].iter().map(|b| &b[..]));
                assert_eq!(foreseen, then, "{} delivered", delivered.len());
            }
        }
        assert_eq!(ledger.settlement_with([].into_iter()), ledger.settlement());
    }

    #[test]
    fn what_was_handed_on_survives_a_crash_of_the_transforms() {
        let mut model = Model::default();
        for s in [
            Step::Read,
            Step::Take,
            Step::Hand,
            Step::Read,
            Step::Take,
            Step::CrashTransforms,
            Step::Submit,
            Step::Deliver,
            Step::Settle,
        ] {
            model.step(s);
        }
        assert_eq!(model.visible, [1], "it waited before the sink");
    }

    #[test]
    fn a_finished_group_is_forgotten_once() {
        let mut ledger = Ledger::default();
        assert!(ledger.read(0, &upto(5)) && ledger.take(0) && ledger.hand(0, &upto(5)));
        assert!(ledger.submit(0, 1));
        ledger.deliver(1, &upto(5));
        let first = ledger.settlement();
        ledger.commit(&first);
        assert_eq!(at(ledger.committed()), 5);

        let mut end = upto(5);
        end[0].finished = true;
        assert!(ledger.read(0, &end) && ledger.take(0) && ledger.hand(0, &end));
        assert!(ledger.submit(0, 0));
        ledger.deliver(0, &end);
        let last = ledger.settlement();
        assert!(last.progress.is_empty());
        assert_eq!(last.forgotten, BTreeSet::from([group()]));
        ledger.commit(&last);
        assert!(ledger.is_settled() && ledger.committed().is_empty());
    }
}
