//! How far each stream group is done, kept in Redpanda.

pub mod log;
pub mod topic;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use crate::change::{GroupKey, Position, Progress, StreamId, timeuuid_cmp};

/// Everything up to here is acknowledged or dead-lettered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupCheckpoint {
    /// All changes written before this time (µs since the Unix epoch) are done.
    pub complete_until_us: i64,
    /// Past `complete_until_us`: per stream, the last position that is done.
    pub streams: BTreeMap<StreamId, (Uuid, i32)>,
    /// Writes at or after this time (µs since the Unix epoch) that are not remembered were not handed on, even
    /// those before `complete_until_us`: they came late. `None`: nothing before that is known.
    pub remembered_since_us: Option<i64>,
    /// [`fingerprint`](crate::change::fingerprint)s of writes that are done: of a group the newest, of a leaf
    /// all that it stands for.
    pub writes: Arc<Vec<u64>>,
}

impl GroupCheckpoint {
    /// Whether a change is already done.
    pub fn covers(&self, position: &Position) -> bool {
        position.timestamp_us() < self.complete_until_us
            || self
                .streams
                .get(&position.stream)
                .is_some_and(|(time, seq)| {
                    timeuuid_cmp(&position.time, time)
                        .then(position.seq.cmp(seq))
                        .is_le()
                })
    }

    /// Moves on by what a finished batch says; never backwards. A write that came late is behind
    /// `complete_until_us`, so it moves no position: that it is done is remembered alone.
    pub fn apply(&mut self, progress: &Progress) {
        let memory = &progress.memory;
        if memory.moved {
            self.writes = Arc::default();
        }
        // Leaves are shared by whoever keeps them: they are most of what is remembered.
        if self.writes.is_empty() {
            self.writes = memory.writes.clone();
        } else if !memory.writes.is_empty() {
            Arc::make_mut(&mut self.writes).extend_from_slice(&memory.writes);
        }
        self.remembered_since_us = self.remembered_since_us.max(memory.since_us);
        for p in &progress.streams {
            if !self.covers(p) {
                self.streams.insert(p.stream, (p.time, p.seq));
            }
        }
        if let Some(until) = progress.complete_until_us {
            self.complete_until_us = self.complete_until_us.max(until);
            let until = self.complete_until_us;
            self.streams
                .retain(|_, (time, _)| crate::change::timeuuid_us(time) >= until);
        }
    }
}

/// The leaves of a group's memory, with their numbers.
pub fn leaves<'a>(
    checkpoints: &'a Checkpoints,
    group: &GroupKey,
) -> impl Iterator<Item = (u64, &'a GroupCheckpoint)> {
    // They stand behind their group, with nothing between them but what begins alike.
    let (group, name) = (group.clone(), group.clone());
    checkpoints
        .range(group.clone()..)
        .take_while(move |(key, _)| key.0.starts_with(&*group.0))
        .filter_map(move |(key, leaf)| {
            let (of, number) = key.leaf_of()?;
            (of == &*name.0).then_some((number, leaf))
        })
}

/// The checkpoints of a shard.
pub type Checkpoints = BTreeMap<GroupKey, GroupCheckpoint>;

/// What a commit says of a shard: where its groups are, and which of them are no more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settlement {
    /// The groups that moved on, and where they are.
    pub progress: Checkpoints,
    /// The groups of finished generations: their checkpoints go.
    pub forgotten: BTreeSet<GroupKey>,
}

impl Settlement {
    /// There is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.progress.is_empty() && self.forgotten.is_empty()
    }
}
