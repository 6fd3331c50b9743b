//! The batch that is being filled.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use penstock_plugin_encoding::{Mark, RowsBuilder};

use super::decode::{self, Cells, LogRow, Torn};
use crate::change::{Batch, GroupKey, Memory, Position, Progress, TableSchema, Undecodable};

/// A batch is handed on when it has grown to this many bytes, however few its rows: it is held whole, in a
/// guest's memory too (whose limit starts at 64 MiB).
pub(super) const MAX_BYTES: usize = 4 << 20;

/// The rows of one stream and time, or of them what is handed on together.
pub(super) struct Part<'a> {
    pub(super) rows: &'a [LogRow<'a>],
    pub(super) cells: &'a Cells<'a>,
    /// There is more of the write: what else is known of it.
    pub(super) torn: Option<&'a mut Torn>,
    /// It appeared behind what had been read.
    pub(super) late: bool,
}

/// Rows and progress that will go together.
#[derive(Debug, Default)]
pub(super) struct Segment {
    rows: RowsBuilder,
    positions: Vec<Position>,
    tables: Vec<Arc<TableSchema>>,
    undecodable: Vec<Undecodable>,
    progress: Vec<Progress>,
    by_group: HashMap<GroupKey, usize>,
    /// Whose progress was looked for last: that of one write after the other.
    last: Option<(GroupKey, usize)>,
}

impl Segment {
    pub(super) fn new() -> Self {
        Self {
            rows: RowsBuilder::new(),
            ..Self::default()
        }
    }

    /// Changes in it, decoded or not.
    pub(super) fn changes(&self) -> usize {
        self.positions.len() + self.undecodable.len()
    }

    pub(super) fn has_changes(&self) -> bool {
        self.changes() > 0
    }

    /// Nothing to hand on, not even progress.
    pub(super) fn is_empty(&self) -> bool {
        !self.has_changes() && self.progress.is_empty()
    }

    pub(super) fn is_full(&self, batch_size: usize) -> bool {
        self.changes() >= batch_size || self.rows.byte_len() >= MAX_BYTES
    }

    /// Adds the rows of one stream and time.
    pub(super) fn push(&mut self, group: &GroupKey, part: Part<'_>) {
        let Part {
            rows,
            cells,
            torn,
            late,
        } = part;
        let base = self.rows.len();
        decode::group(
            rows,
            cells,
            torn,
            &mut self.rows,
            &mut self.positions,
            &mut self.undecodable,
        );
        if late {
            for row in base..self.rows.len() {
                self.rows.mark(row as u32, Mark::Late);
            }
        }
        for row in rows {
            let table = &row.version.schema;
            if self.tables.last().is_none_or(|t| t.id != table.id)
                && !self.tables.iter().any(|t| t.id == table.id)
            {
                self.tables.push(table.clone());
            }
        }
        // A late write is behind what is complete: only what is remembered tells that it is done.
        if let Some(last) = rows.last() {
            let last = last.head.position;
            if late {
                let streams = &mut self.progress_of(group).late;
                if !streams.contains(&last.stream) {
                    streams.push(last.stream);
                }
                return;
            }
            let streams = &mut self.progress_of(group).streams;
            match streams.iter_mut().find(|p| p.stream == last.stream) {
                Some(p) => *p = last,
                None => streams.push(last),
            }
        }
    }

    /// A write of the group is to be remembered.
    pub(super) fn remember(&mut self, group: &GroupKey, write: u64) {
        Arc::make_mut(&mut self.progress_of(group).memory.writes).push(write);
    }

    /// Adds progress that goes with what is in here.
    pub(super) fn add(&mut self, progress: Progress) {
        let Memory {
            since_us,
            moved,
            writes,
        } = progress.memory;
        let own = self.progress_of(&progress.group);
        own.complete_until_us = own.complete_until_us.max(progress.complete_until_us);
        own.finished |= progress.finished;
        if moved {
            own.memory.moved = true;
            own.memory.writes = writes;
        } else if !writes.is_empty() {
            Arc::make_mut(&mut own.memory.writes).extend_from_slice(&writes);
        }
        own.memory.since_us = own.memory.since_us.max(since_us);
    }

    /// Adds a row of which not even the position is known.
    pub(super) fn push_unreadable(&mut self, row: Undecodable) {
        self.undecodable.push(row);
    }

    /// All of the group's changes before this time are in here, or were handed on earlier.
    pub(super) fn complete(&mut self, group: &GroupKey, until_us: i64) {
        self.progress_of(group).complete_until_us = Some(until_us);
    }

    /// Whether something of this group is in it.
    pub(super) fn touches(&self, group: &GroupKey) -> bool {
        self.by_group.contains_key(group)
    }

    /// The group is read to its end, and its successors have checkpoints.
    pub(super) fn finished(&mut self, group: &GroupKey) {
        self.progress_of(group).finished = true;
    }

    pub(super) fn seal(self, shard: u32, epoch: u64) -> Batch {
        Batch {
            shard,
            epoch,
            rows: self.rows.finish(),
            positions: self.positions,
            tables: self.tables,
            undecodable: self.undecodable,
            progress: self.progress,
            read_at: Instant::now(),
        }
    }

    fn progress_of(&mut self, group: &GroupKey) -> &mut Progress {
        let at = match &self.last {
            Some((last, at)) if Arc::ptr_eq(&last.0, &group.0) => *at,
            _ => {
                let at = *self.by_group.entry(group.clone()).or_insert_with(|| {
                    self.progress.push(Progress::new(group.clone()));
                    self.progress.len() - 1
                });
                self.last = Some((group.clone(), at));
                at
            }
        };
        &mut self.progress[at]
    }
}
