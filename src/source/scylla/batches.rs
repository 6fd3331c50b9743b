//! Batches on their way out: the one that is being filled, and those that are full.

use std::collections::VecDeque;

use super::segment::{Part, Segment};
use crate::change::{Batch, GroupKey, Progress, Undecodable};

/// See the module.
pub(super) struct Batches {
    shard: u32,
    epoch: u64,
    /// Changes in a batch, as it is set now.
    pub(super) size: usize,
    filling: Segment,
    /// What is being filled is to go out although it has no rows.
    urgent: bool,
    late: u64,
    full: VecDeque<Batch>,
}

impl Batches {
    pub(super) fn new(shard: u32, epoch: u64) -> Self {
        Self {
            shard,
            epoch,
            size: 1,
            filling: Segment::new(),
            urgent: false,
            late: 0,
            full: VecDeque::new(),
        }
    }

    /// Adds the rows of one write; the batch before is full if they would make it too large.
    pub(super) fn push(&mut self, group: &GroupKey, part: Part<'_>) {
        let filling = &self.filling;
        if filling.has_changes()
            && (filling.changes() + part.rows.len() > self.size || filling.is_full(self.size))
        {
            self.seal();
        }
        if part.late {
            self.late += part.rows.len() as u64;
        }
        self.filling.push(group, part);
    }

    /// A write of the group, which was added last, is to be remembered.
    pub(super) fn remember(&mut self, group: &GroupKey, write: u64) {
        self.filling.remember(group, write);
    }

    /// Adds progress that goes with what was added last.
    pub(super) fn add(&mut self, progress: Progress) {
        self.filling.add(progress);
    }

    /// Rows that came late, since the last call.
    pub(super) fn take_late(&mut self) -> u64 {
        std::mem::take(&mut self.late)
    }

    /// Adds a row of which not even the position is known.
    pub(super) fn unreadable(&mut self, row: Undecodable) {
        self.filling.push_unreadable(row);
    }

    /// All of the group's changes before this time are in here, or were handed on earlier.
    pub(super) fn complete(&mut self, group: &GroupKey, until_us: i64) {
        self.filling.complete(group, until_us);
    }

    /// The group is read to its end, and its successors have checkpoints.
    pub(super) fn finished(&mut self, group: &GroupKey) {
        self.filling.finished(group);
    }

    /// Whether something of this group is in the batch that is being filled.
    pub(super) fn touches(&self, group: &GroupKey) -> bool {
        self.filling.touches(group)
    }

    /// What there is goes out soon, rows or none.
    pub(super) fn hurry(&mut self) {
        self.urgent = true;
    }

    pub(super) fn is_urgent(&self) -> bool {
        self.urgent
    }

    /// Changes wait in the batch that is being filled.
    pub(super) fn has_changes(&self) -> bool {
        self.filling.has_changes()
    }

    /// Nothing more is there now for the batch that is being filled, or it is full enough.
    pub(super) fn seal(&mut self) {
        self.urgent = false;
        if self.filling.is_empty() {
            return;
        }
        let full = std::mem::replace(&mut self.filling, Segment::new());
        self.full.push_back(full.seal(self.shard, self.epoch));
    }

    /// A batch is ready.
    pub(super) fn is_ready(&self) -> bool {
        !self.full.is_empty()
    }

    /// Takes the next one that is ready.
    pub(super) fn pop(&mut self) -> Option<Batch> {
        self.full.pop_front()
    }
}
