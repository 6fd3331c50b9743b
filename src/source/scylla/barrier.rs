//! Keeps the shards of a process together at the end of a stream generation.
//!
//! A new generation spreads the keys anew over the streams, so over the shards: were one shard in the new
//! generation while another still has changes of the old one under way, a key's later change could overtake
//! an earlier one. So a generation is left only when every shard has read it out and all of it is
//! acknowledged.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::generations::Generation;
use crate::change::{GroupKey, Progress};

/// One table in one shard: who has to have finished.
#[derive(Debug)]
struct Member {
    /// `Generation::MIN` until it is known where the member goes on.
    generation: Generation,
    /// All of the generation is handed on.
    read_out: bool,
    /// What of it is still to be acknowledged: group → the end of its reading.
    outstanding: HashMap<GroupKey, i64>,
}

impl Member {
    fn is_done(&self) -> bool {
        self.read_out && self.outstanding.is_empty()
    }
}

/// The members of all open shards.
#[derive(Debug)]
pub(super) struct Barrier {
    members: Mutex<HashMap<(Arc<str>, u32), Member>>,
    changed: watch::Sender<()>,
}

impl Barrier {
    pub(super) fn new() -> Self {
        Self {
            members: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// A shard starts, or starts again: nothing is known of its members.
    pub(super) fn open<'a>(&self, shard: u32, tables: impl Iterator<Item = &'a Arc<str>>) {
        let mut members = self.members.lock();
        members.retain(|(_, s), _| *s != shard);
        for table in tables {
            let member = Member {
                generation: Generation::MIN,
                read_out: false,
                outstanding: HashMap::new(),
            };
            members.insert((table.clone(), shard), member);
        }
    }

    /// The shard is no longer ours.
    pub(super) fn release(&self, shard: u32) {
        self.members.lock().retain(|(_, s), _| *s != shard);
        self.changed.send_replace(());
    }

    /// A member reads this generation from now on.
    pub(super) fn enter(&self, table: &Arc<str>, shard: u32, generation: Generation) {
        self.with(table, shard, |member| {
            member.generation = generation;
            member.read_out = false;
            member.outstanding.clear();
        });
    }

    /// All of the generation is handed on; these groups are to be acknowledged up to these times.
    pub(super) fn read_out(
        &self,
        table: &Arc<str>,
        shard: u32,
        outstanding: HashMap<GroupKey, i64>,
    ) {
        self.with(table, shard, |member| {
            member.read_out = true;
            member.outstanding = outstanding;
        });
    }

    /// A batch of the shard is done.
    pub(super) fn acknowledged(&self, shard: u32, progress: &[Progress]) {
        let mut emptied = false;
        for ((_, s), member) in self.members.lock().iter_mut() {
            if *s != shard || member.outstanding.is_empty() {
                continue;
            }
            for p in progress {
                let end = member.outstanding.get(&p.group);
                if end.is_some_and(|end| p.complete_until_us.is_some_and(|until| until >= *end)) {
                    member.outstanding.remove(&p.group);
                }
            }
            emptied |= member.outstanding.is_empty();
        }
        if emptied {
            self.changed.send_replace(());
        }
    }

    /// Whether the member may go on to the next generation, as far as this process goes: then the shards that have
    /// been asked.
    pub(super) fn may_leave(&self, table: &Arc<str>, shard: u32) -> Option<BTreeSet<u32>> {
        let members = self.members.lock();
        let generation = members.get(&(table.clone(), shard))?.generation;
        let of_table = members.iter().filter(|((t, _), _)| t == table);
        let left =
            |l: &Member| l.generation > generation || (l.generation == generation && l.is_done());
        of_table
            .map(|((_, shard), member)| left(member).then_some(*shard))
            .collect()
    }

    /// For whoever else has news of what may be left.
    pub(super) fn bell(&self) -> watch::Sender<()> {
        self.changed.clone()
    }

    /// Tells when [`Self::may_leave`] may have changed.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The oldest generation in which a member of the table is.
    pub(super) fn oldest(&self, table: &Arc<str>) -> Option<Generation> {
        let members = self.members.lock();
        let of_table = members.iter().filter(|((t, _), _)| t == table);
        of_table
            .map(|(_, l)| l.generation)
            .min()
            .filter(|&g| g != Generation::MIN)
    }

    fn with(&self, table: &Arc<str>, shard: u32, change: impl FnOnce(&mut Member)) {
        if let Some(member) = self.members.lock().get_mut(&(table.clone(), shard)) {
            change(member);
        }
        self.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> GroupKey {
        GroupKey(name.into())
    }

    fn done(name: &str, until: i64) -> Progress {
        Progress {
            complete_until_us: Some(until),
            ..Progress::new(key(name))
        }
    }

    #[test]
    fn a_generation_is_left_once_all_shards_are_acknowledged() {
        let table: Arc<str> = "ks.t".into();
        let barrier = Barrier::new();
        for shard in 0..2 {
            barrier.open(shard, [&table].into_iter());
        }
        barrier.enter(&table, 0, 10);
        barrier.read_out(&table, 0, HashMap::from([(key("a"), 500)]));
        assert!(
            barrier.may_leave(&table, 0).is_none(),
            "its own last batch is under way"
        );
        barrier.acknowledged(0, &[done("a", 499)]);
        barrier.acknowledged(1, &[done("a", 500)]);
        assert!(
            barrier.may_leave(&table, 0).is_none(),
            "neither is the acknowledgement meant"
        );
        barrier.acknowledged(0, &[done("a", 500)]);
        assert!(
            barrier.may_leave(&table, 0).is_none(),
            "it is not known where shard 1 is"
        );
        barrier.enter(&table, 1, 10);
        barrier.read_out(&table, 1, HashMap::new());
        assert!(barrier.may_leave(&table, 0).is_some() && barrier.may_leave(&table, 1).is_some());
        barrier.enter(&table, 0, 20);
        assert!(
            barrier.may_leave(&table, 1).is_some(),
            "who is ahead holds nobody up"
        );
        barrier.read_out(&table, 0, HashMap::new());
        assert!(barrier.may_leave(&table, 0).is_none());
        barrier.release(1);
        assert!(barrier.may_leave(&table, 0).is_some());
    }

    #[test]
    fn a_shard_that_is_rewound_holds_the_others_until_it_is_back() {
        let table: Arc<str> = "ks.t".into();
        let barrier = Barrier::new();
        for shard in 0..2 {
            barrier.open(shard, [&table].into_iter());
            barrier.enter(&table, shard, 10);
            barrier.read_out(&table, shard, HashMap::new());
        }
        barrier.open(1, [&table].into_iter());
        assert!(barrier.may_leave(&table, 0).is_none());
    }
}
