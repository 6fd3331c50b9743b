//! Which writes of a stream group were handed on, for as long as late ones may still appear among them.
//!
//! A write appears in the log at its write timestamp, which a client may set and a coordinator may be late with;
//! a reader that only goes forward never sees one that appears behind it. So what has passed is looked at again,
//! keys only, up to a *horizon* behind the present, and what was not handed on before is late.
//!
//! That takes a fingerprint of 8 bytes a write. A count and a digest of each second would tell that something is
//! late, not what; and after a restart there is no other memory than the checkpoint's, so the fingerprints have to
//! be in it whenever they are needed at all. They are cheap there because they are written once: the newest few
//! stand in the group's checkpoint, which is rewritten, and move to a *leaf* of their own when they are many or a
//! second old. Every time is one of the database's clock, µs since the Unix epoch.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::change::{GroupKey, Memory, Progress};
use crate::checkpoint::GroupCheckpoint;

/// So many writes go to a leaf at once. The group's checkpoint holds fewer: 8 KiB at most are written again with
/// each of its records.
const LEAF: usize = 1024;
/// So few stay in the group's checkpoint, however old: a leaf costs a record and a tombstone.
const FEW: usize = 64;
/// More than those go to a leaf after this time.
const LEAF_AGE_US: i64 = 1_000_000;
/// A look back takes so many writes at the most, a page of keys: 48 bytes each are less than the megabyte at
/// which a server ends a page.
pub(super) const LOOK: usize = 20_000;
/// Late writes nearer together than this are read with one statement.
const NEAR_US: i64 = 10_000;
/// At most so many statements for what one look found.
const SPANS: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Past {
    key: GroupKey,
    /// What was written from here on and handed on is in here; nothing before this is late any more.
    since_us: i64,
    leaves: VecDeque<Leaf>,
    open: Leaf,
    /// When the first of `open` was handed on.
    open_at_us: i64,
    /// Where the next look that is not urgent begins.
    cursor_us: i64,
    /// `since_us` as last handed on.
    reported_us: i64,
    /// Leaves that are of no more use.
    stale: Vec<GroupKey>,
    /// The open leaf was let go of, which is to be handed on.
    emptied: bool,
}

#[derive(Debug)]
struct Leaf {
    number: u64,
    /// The earliest and the latest time of its writes.
    from_us: i64,
    to_us: i64,
    writes: Arc<Vec<u64>>,
}

impl Leaf {
    fn empty(number: u64) -> Self {
        Self {
            number,
            from_us: i64::MAX,
            to_us: i64::MIN,
            writes: Arc::default(),
        }
    }
}

/// A read of a span, in one page or many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// Inclusive.
    pub(super) from_us: i64,
    /// Exclusive.
    pub(super) to_us: i64,
    began_us: i64,
    /// What is older than this need not be remembered once the span is read: it began too long after that for
    /// more to come.
    settled_us: i64,
}

impl Reading {
    /// Of a span in which a look has found late writes.
    pub(super) fn of_late(from_us: i64, to_us: i64, now_us: i64) -> Self {
        Self {
            from_us,
            to_us,
            began_us: now_us,
            settled_us: i64::MIN,
        }
    }
}

/// What a write is that a read has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// It has not been passed yet.
    Ahead,
    /// It has been passed, and was not handed on.
    Late,
    /// It was handed on, or is too old for that to be known.
    Done,
}

/// The writes of some span that were handed on.
#[derive(Debug)]
pub(super) struct Known(Vec<u64>);

impl Known {
    pub(super) fn contains(&self, write: u64) -> bool {
        self.0.binary_search(&write).is_ok()
    }
}

impl Past {
    /// Of a group that is read from this time on for the first time.
    pub(super) fn new(key: GroupKey, from_us: i64) -> Self {
        Self {
            key,
            since_us: from_us,
            leaves: VecDeque::new(),
            open: Leaf::empty(0),
            open_at_us: i64::MAX,
            cursor_us: i64::MIN,
            reported_us: i64::MIN,
            stale: Vec::new(),
            emptied: false,
        }
    }

    /// Of a group that goes on from its checkpoint and the leaves beside it.
    pub(super) fn restore<'a>(
        key: GroupKey,
        at: &GroupCheckpoint,
        leaves: impl IntoIterator<Item = (u64, &'a GroupCheckpoint)>,
    ) -> Self {
        let ahead = at
            .streams
            .values()
            .map(|(time, _)| crate::change::timeuuid_us(time) + 1);
        let read_us = ahead.fold(at.complete_until_us, i64::max);
        // Without a memory of what was handed on past `complete_until_us` (an earlier version had none), it cannot
        // be told from what comes late.
        let since_us = match at.remembered_since_us {
            Some(since_us) if !at.writes.is_empty() || at.streams.is_empty() => since_us,
            _ => read_us,
        };
        let mut past = Self::new(key, since_us);
        for (number, leaf) in leaves {
            past.open.number = past.open.number.max(number + 1);
            let mut writes = leaf.writes.clone();
            if !writes.is_sorted() {
                Arc::make_mut(&mut writes).sort_unstable();
            }
            past.leaves.push_back(Leaf {
                number,
                from_us: leaf.remembered_since_us.unwrap_or(i64::MIN),
                to_us: leaf.complete_until_us,
                writes,
            });
        }
        past.leaves.make_contiguous().sort_by_key(|l| l.number);
        past.reported_us = at.remembered_since_us.unwrap_or(i64::MIN);
        if !at.writes.is_empty() {
            past.open.writes = at.writes.clone();
            (past.open.from_us, past.open.to_us) = (past.since_us, read_us);
            past.open_at_us = i64::MIN;
        }
        past.forget();
        past
    }

    /// Writes in memory.
    pub(super) fn len(&self) -> usize {
        self.open.writes.len() + self.leaves.iter().map(|l| l.writes.len()).sum::<usize>()
    }

    /// Begins to read forward from `complete_us`, or, while no write is remembered, from as far back as late ones may
    /// be: that costs nothing then.
    pub(super) fn forward(
        &self,
        complete_us: i64,
        to_us: i64,
        now_us: i64,
        horizon_us: i64,
    ) -> Reading {
        let from_us = match self.len() {
            0 => complete_us.min(self.since_us),
            _ => complete_us,
        };
        self.begin(from_us, to_us, now_us, horizon_us)
    }

    fn begin(&self, from_us: i64, to_us: i64, now_us: i64, horizon_us: i64) -> Reading {
        let joins = from_us <= self.since_us;
        Reading {
            from_us,
            to_us,
            began_us: now_us,
            settled_us: if joins {
                now_us.saturating_sub(horizon_us)
            } else {
                i64::MIN
            },
        }
    }

    /// Notes that a write is handed on. Gives the progress of a leaf when one is full: it belongs into the same
    /// batch, and `moved` into the group's own progress.
    pub(super) fn remember(&mut self, write: u64, time_us: i64, reading: &Reading) -> Remembered {
        // A write's parts are one.
        if time_us < reading.settled_us || self.open.writes.last() == Some(&write) {
            return Remembered::default();
        }
        let now_us = reading.began_us;
        let open = &mut self.open;
        Arc::make_mut(&mut open.writes).push(write);
        open.from_us = open.from_us.min(time_us);
        open.to_us = open.to_us.max(time_us);
        if open.writes.len() == 1 {
            self.open_at_us = now_us;
        }
        let many = open.writes.len() >= LEAF;
        let old = open.writes.len() >= FEW && now_us.saturating_sub(self.open_at_us) >= LEAF_AGE_US;
        Remembered {
            noted: true,
            leaf: (many || old).then(|| self.close()),
        }
    }

    fn close(&mut self) -> Progress {
        let next = Leaf::empty(self.open.number + 1);
        let mut leaf = std::mem::replace(&mut self.open, next);
        let writes = Arc::make_mut(&mut leaf.writes);
        writes.sort_unstable();
        writes.shrink_to_fit();
        let progress = Progress {
            complete_until_us: Some(leaf.to_us),
            memory: Memory {
                since_us: Some(leaf.from_us),
                moved: true,
                writes: leaf.writes.clone(),
            },
            ..Progress::new(self.key.leaf(leaf.number))
        };
        self.leaves.push_back(leaf);
        progress
    }

    /// The writes of `[from_us, to_us)` that were handed on.
    pub(super) fn known(&self, from_us: i64, to_us: i64) -> Known {
        let of_span = self
            .leaves
            .iter()
            .chain([&self.open])
            .filter(|l| l.from_us < to_us && l.to_us >= from_us);
        let mut writes: Vec<u64> = of_span.flat_map(|l| &*l.writes).copied().collect();
        writes.sort_unstable();
        Known(writes)
    }

    /// What a write of this time is, all before `complete_us` having been passed.
    pub(super) fn meet(&self, write: u64, time_us: i64, complete_us: i64, known: &Known) -> Met {
        if time_us >= complete_us {
            Met::Ahead
        } else if time_us < self.since_us || known.contains(write) {
            Met::Done
        } else {
            Met::Late
        }
    }

    /// What to look at again, of what was written before `complete_us`: keys only, at most [`LOOK`] writes or so.
    /// `free`: a look costs nothing else its turn. Without it only what is due, because memory that is not
    /// looked at cannot be forgotten.
    pub(super) fn plan(
        &mut self,
        now_us: i64,
        horizon_us: i64,
        complete_us: i64,
        free: bool,
    ) -> Option<Reading> {
        if horizon_us == 0 || self.len() == 0 || self.since_us >= complete_us {
            return None;
        }
        let overdue_us = now_us
            .saturating_sub(horizon_us)
            .saturating_sub(self.since_us);
        let due = overdue_us >= (horizon_us / 8).max(LEAF_AGE_US);
        if !due && !free {
            return None;
        }
        if due || !(self.since_us..complete_us).contains(&self.cursor_us) {
            self.cursor_us = self.since_us;
        }
        let from_us = self.cursor_us;
        let (mut writes, mut reached_us) = (0, from_us);
        let mut to_us = complete_us;
        for leaf in self.leaves.iter().filter(|l| l.to_us >= from_us) {
            if writes > 0 && writes + leaf.writes.len() > LOOK {
                to_us = reached_us.saturating_add(1).min(complete_us);
                break;
            }
            writes += leaf.writes.len();
            reached_us = reached_us.max(leaf.to_us);
        }
        self.cursor_us = to_us;
        Some(self.begin(from_us, to_us, now_us, horizon_us))
    }

    /// A span is read, and what was late in it is handed on.
    pub(super) fn finished(&mut self, reading: &Reading) {
        if reading.from_us <= self.since_us {
            let settled_us = reading.to_us.min(reading.settled_us);
            self.since_us = self.since_us.max(settled_us);
            self.forget();
        }
    }

    /// Nothing before `complete_us` is looked at again.
    pub(super) fn let_go(&mut self, complete_us: i64) {
        self.since_us = self.since_us.max(complete_us);
        self.forget();
    }

    fn forget(&mut self) {
        let since_us = self.since_us;
        let (key, stale) = (&self.key, &mut self.stale);
        self.leaves.retain(|leaf| {
            let keep = leaf.to_us >= since_us;
            if !keep {
                stale.push(key.leaf(leaf.number));
            }
            keep
        });
        if !self.open.writes.is_empty() && self.open.to_us < since_us {
            self.open = Leaf::empty(self.open.number);
            self.emptied = true;
        }
    }

    /// What is to be handed on beside the writes themselves: what begins later, and what is forgotten.
    pub(super) fn news(&mut self) -> Vec<Progress> {
        let mut news = Vec::new();
        if self.since_us > self.reported_us || self.emptied {
            self.reported_us = self.since_us;
            news.push(Progress {
                memory: Memory {
                    since_us: Some(self.since_us),
                    moved: std::mem::take(&mut self.emptied),
                    writes: Arc::default(),
                },
                ..Progress::new(self.key.clone())
            });
        }
        news.extend(self.stale.drain(..).map(|leaf| Progress {
            finished: true,
            ..Progress::new(leaf)
        }));
        news
    }

    /// Everything that is remembered goes with its group.
    pub(super) fn into_leaves(self) -> impl Iterator<Item = GroupKey> {
        let Self {
            key, leaves, stale, ..
        } = self;
        let leaves = leaves.into_iter().map(move |l| key.leaf(l.number));
        leaves.chain(stale)
    }
}

/// What became of a write that was handed on.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// It is to be in the group's progress.
    pub(super) noted: bool,
    /// A leaf that is full with it.
    pub(super) leaf: Option<Progress>,
}

/// The spans to read for writes of these times, each end exclusive: few, and little beside them.
pub(super) fn spans(mut times: Vec<i64>) -> VecDeque<(i64, i64)> {
    times.sort_unstable();
    let mut near_us = NEAR_US;
    loop {
        let mut spans: VecDeque<(i64, i64)> = VecDeque::new();
        for &time in &times {
            match spans.back_mut() {
                Some((_, to)) if time < to.saturating_add(near_us) => *to = (*to).max(time + 1),
                _ => spans.push_back((time, time + 1)),
            }
        }
        if spans.len() <= SPANS {
            return spans;
        }
        near_us *= 10;
    }
}

#[cfg(test)]
mod tests;
