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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checkpoint::Checkpoints;

    const S: i64 = 1_000_000;
    const HORIZON: i64 = 30 * S;

    fn group() -> GroupKey {
        GroupKey("ks.t/10/00".into())
    }

    /// A reader of one stream, as the source reads, and what is acknowledged of its batches.
    struct Reader {
        past: Past,
        complete_us: i64,
        acked: Checkpoints,
        /// Handed on: writes, and the progress that goes with them.
        batches: VecDeque<(Vec<(u64, bool)>, Vec<Progress>)>,
        delivered: Vec<(u64, bool)>,
        horizon_us: i64,
    }

    /// Write, its timestamp and when it appears.
    type Log = Vec<(u64, i64, i64)>;

    impl Reader {
        fn new(start_us: i64) -> Self {
            Self {
                past: Past::new(group(), start_us),
                complete_us: start_us,
                acked: Checkpoints::new(),
                batches: VecDeque::new(),
                delivered: Vec::new(),
                horizon_us: HORIZON,
            }
        }

        fn take(&mut self, log: &Log, now_us: i64, reading: &Reading, only_late: bool) {
            let known = self.past.known(reading.from_us, self.complete_us);
            let mut own = Progress::new(group());
            let (mut writes, mut others) = (Vec::new(), Vec::new());
            for &(write, time, visible) in log {
                if visible > now_us || !(reading.from_us..reading.to_us).contains(&time) {
                    continue;
                }
                let met = self.past.meet(write, time, self.complete_us, &known);
                if met == Met::Done || (only_late && met != Met::Late) {
                    continue;
                }
                writes.push((write, met == Met::Late));
                let remembered = self.past.remember(write, time, reading);
                if remembered.noted {
                    Arc::make_mut(&mut own.memory.writes).push(write);
                }
                if let Some(leaf) = remembered.leaf {
                    own.memory.writes = Arc::default();
                    own.memory.moved = true;
                    others.push(leaf);
                }
            }
            others.push(own);
            self.batches.push_back((writes, others));
        }

        /// Together with the last batch.
        fn hand_on(&mut self, progress: Vec<Progress>) {
            match self.batches.back_mut() {
                Some((_, last)) => last.extend(progress),
                None => self.batches.push_back((Vec::new(), progress)),
            }
        }

        fn forward(&mut self, log: &Log, now_us: i64) {
            let to_us = now_us - S / 10;
            if to_us <= self.complete_us {
                return;
            }
            let (complete_us, horizon_us) = (self.complete_us, self.horizon_us);
            let reading = self.past.forward(complete_us, to_us, now_us, horizon_us);
            self.take(log, now_us, &reading, false);
            self.past.finished(&reading);
            self.complete_us = to_us;
            let mut news = self.past.news();
            news.push(Progress {
                complete_until_us: Some(to_us),
                ..Progress::new(group())
            });
            self.hand_on(news);
        }

        fn look(&mut self, log: &Log, now_us: i64, free: bool) -> bool {
            let (complete_us, horizon_us) = (self.complete_us, self.horizon_us);
            let plan = self.past.plan(now_us, horizon_us, complete_us, free);
            let Some(reading) = plan else { return false };
            let known = self.past.known(reading.from_us, reading.to_us);
            let found = log
                .iter()
                .filter(|(write, time, visible)| {
                    *visible <= now_us
                        && (reading.from_us..reading.to_us).contains(time)
                        && self.past.meet(*write, *time, complete_us, &known) == Met::Late
                })
                .map(|(_, time, _)| *time)
                .collect();
            for (from, to) in spans(found) {
                self.take(log, now_us, &Reading::of_late(from, to, now_us), true);
            }
            self.past.finished(&reading);
            let news = self.past.news();
            self.hand_on(news);
            true
        }

        fn acknowledge(&mut self, batches: usize) {
            for _ in 0..batches {
                let Some((writes, progress)) = self.batches.pop_front() else {
                    return;
                };
                self.delivered.extend(writes);
                for p in progress {
                    match p.finished {
                        true => drop(self.acked.remove(&p.group)),
                        false => self.acked.entry(p.group.clone()).or_default().apply(&p),
                    }
                }
            }
        }

        /// What is not acknowledged is lost with the process.
        fn restart(&mut self) {
            self.batches.clear();
            let key = group();
            // As it comes back from its record.
            let record = crate::checkpoint::topic::encode(&self.acked[&key]);
            let (_, at) =
                crate::checkpoint::topic::decode(Some(key.0.as_bytes()), Some(&record)).unwrap();
            let at = at.unwrap();
            let leaves = crate::checkpoint::leaves(&self.acked, &key);
            self.past = Past::restore(key.clone(), &at, leaves);
            self.complete_us = at.complete_until_us;
        }
    }

    fn once(log: &Log, delivered: &[(u64, bool)]) -> Result<(), TestCaseError> {
        let mut seen: Vec<u64> = delivered.iter().map(|(w, _)| *w).collect();
        seen.sort_unstable();
        let mut all: Vec<u64> = log.iter().map(|(w, ..)| *w).collect();
        all.sort_unstable();
        prop_assert_eq!(seen, all);
        Ok(())
    }

    #[test]
    fn a_late_write_is_delivered_once_and_marked() {
        let mut reader = Reader::new(100 * S);
        let log = vec![
            (1, 101 * S, 101 * S),
            (2, 102 * S, 102 * S),
            (3, 101 * S + 1, 106 * S),
        ];
        for s in 101..170 {
            reader.forward(&log, s * S);
            reader.look(&log, s * S, true);
        }
        reader.acknowledge(usize::MAX);
        assert_eq!(reader.delivered, [(1, false), (2, false), (3, true)]);
        assert_eq!(reader.past.len(), 0, "what is over is forgotten");
        let left: Vec<_> = reader.acked.keys().collect();
        assert_eq!(left, [&group()], "and its leaves with it");
    }

    #[test]
    fn while_nothing_is_remembered_late_writes_cost_no_look() {
        let mut reader = Reader::new(100 * S);
        let log = vec![(1, 120 * S, 140 * S)];
        for s in 101..141 {
            reader.forward(&log, s * S);
            assert_eq!(s == 140, reader.look(&log, s * S, true));
        }
        reader.acknowledge(usize::MAX);
        assert_eq!(reader.delivered, [(1, true)]);
    }

    #[test]
    fn a_backlog_is_not_remembered() {
        let mut reader = Reader::new(100 * S);
        let log: Log = (0..5_000).map(|i| (i, 100 * S + i as i64, 0)).collect();
        reader.forward(&log, 400 * S);
        assert_eq!(reader.past.len(), 0);
        assert!(!reader.look(&log, 401 * S, true));
    }

    #[test]
    fn switched_off_it_remembers_nothing_and_looks_at_nothing() {
        let mut reader = Reader::new(100 * S);
        let log: Log = (0..3_000).map(|i| (i, 100 * S + i as i64, 0)).collect();
        reader.forward(&log, 101 * S);
        assert_eq!(reader.past.len(), 3_000);
        reader.horizon_us = 0;
        assert!(!reader.look(&log, 102 * S, true));
        reader.past.let_go(reader.complete_us);
        assert_eq!(reader.past.len(), 0);
        let news = reader.past.news();
        reader.hand_on(news);
        reader.acknowledge(usize::MAX);
        assert!(reader.acked.keys().all(|k| k.leaf_of().is_none()));
        assert!(reader.acked[&group()].writes.is_empty());
        reader.forward(&log, 103 * S);
        assert_eq!(reader.past.len(), 0);
        // And on again: what was handed on meanwhile is not taken for late.
        reader.horizon_us = HORIZON;
        for s in 104..150 {
            reader.forward(&log, s * S);
            reader.look(&log, s * S, true);
        }
        reader.acknowledge(usize::MAX);
        assert_eq!(reader.delivered.len(), 3_000);
    }

    #[test]
    fn the_first_version_of_a_checkpoint_makes_nothing_late() {
        let at = GroupCheckpoint {
            complete_until_us: 100 * S,
            ..GroupCheckpoint::default()
        };
        let past = Past::restore(group(), &at, []);
        let known = past.known(0, 100 * S);
        assert_eq!(past.meet(1, 99 * S, 100 * S, &known), Met::Done);
    }

    #[test]
    fn a_look_takes_about_a_page_and_the_next_goes_on_there() {
        let mut reader = Reader::new(100 * S);
        let log: Log = (0..100_000)
            .map(|i| (i, 100 * S + i as i64 * 100, 0))
            .collect();
        for s in 101..112 {
            reader.forward(&log, s * S);
        }
        let (complete_us, mut from_us) = (reader.complete_us, 100 * S);
        let mut looks = 0;
        while from_us < complete_us {
            let look = reader.past.plan(111 * S, HORIZON, complete_us, true);
            let look = look.unwrap();
            assert_eq!(look.from_us, from_us);
            assert!(look.to_us - look.from_us <= 23_000 * 100 || look.to_us == complete_us);
            from_us = look.to_us;
            looks += 1;
        }
        assert!((5..=6).contains(&looks), "{looks}");
        let plan = |past: &mut Past, s| past.plan(s * S, HORIZON, complete_us, false);
        assert_eq!(plan(&mut reader.past, 111), None);
        let due = plan(&mut reader.past, 136).map(|look| look.from_us);
        assert_eq!(due, Some(100 * S), "before it can be forgotten");
    }

    #[test]
    fn many_late_writes_are_read_in_few_spans() {
        assert!(spans(vec![]).is_empty());
        assert_eq!(spans(vec![5, 5, 90_000, 7]), [(5, 8), (90_000, 90_001)]);
        let many = spans((0..10_000).map(|i| i * 20_000).collect());
        assert!(many.len() <= SPANS && !many.is_empty());
        let covered = |t: i64| many.iter().any(|(from, to)| (*from..*to).contains(&t));
        assert!((0..10_000).all(|i| covered(i * 20_000)));
    }

    /// Writes this often, in µs, for 20 s: the bytes of the group's own record and of the leaves, and the leaves,
    /// each second.
    fn cost(every_us: i64) -> (usize, usize, usize) {
        let mut reader = Reader::new(100 * S);
        let log: Log = (0..20 * S / every_us)
            .map(|i| (i as u64 * 7_919, 100 * S + i * every_us, 0))
            .collect();
        let (mut own, mut leaves, mut records) = (0, 0, 0);
        for s in 101..121 {
            for tenth in 0..10 {
                reader.forward(&log, s * S + tenth * S / 10);
            }
            let before: Vec<GroupKey> = reader.acked.keys().cloned().collect();
            reader.acknowledge(usize::MAX);
            for (key, checkpoint) in &reader.acked {
                let bytes = crate::checkpoint::topic::encode(checkpoint).len();
                if key.leaf_of().is_none() {
                    own += bytes;
                } else if !before.contains(key) {
                    leaves += bytes;
                    records += 1;
                }
            }
        }
        (own / 20, leaves / 20, records / 20)
    }

    #[test]
    fn checkpoints_stay_small() {
        for (every_us, most_own, most_bytes_a_write) in
            [(10_000, 1_500, 30), (1_000, 11_500, 24), (100, 11_500, 13)]
        {
            let (own, leaves, records) = cost(every_us);
            let a_second = (S / every_us) as usize;
            eprintln!(
                "{a_second} writes/s: a checkpoint of {own} bytes, {records} leaves/s of {leaves} bytes together"
            );
            assert!(own <= most_own, "{own}");
            assert!(own + leaves <= most_bytes_a_write * a_second);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whenever writes come, whatever is acknowledged when the process ends: each is delivered once.
        #[test]
        fn no_write_is_lost_or_repeated(
            steps in prop::collection::vec(
                (0u8..10, 1i64..2_000, prop_oneof![Just(0i64), 0..2_000i64, 0..29_000i64], 1usize..200),
                1..300,
            ),
        ) {
            let mut reader = Reader::new(100 * S);
            let (mut now, mut log, mut next) = (130 * S, Log::new(), 0u64);
            // A first checkpoint, as the reader hands one on when it starts.
            reader.forward(&log, now);
            reader.acknowledge(usize::MAX);
            for (what, wait_ms, late_ms, many) in steps {
                match what {
                    0..4 => for i in 0..many {
                        let time = now - late_ms * 1_000 - i as i64;
                        log.push((next.wrapping_mul(0x9e37_79b9_7f4a_7c15), time, now));
                        next += 1;
                    },
                    4..6 => reader.forward(&log, now),
                    6 => drop(reader.look(&log, now, true)),
                    7 => drop(reader.look(&log, now, false)),
                    8 => reader.acknowledge(many),
                    _ => reader.restart(),
                }
                now += wait_ms * 1_000;
            }
            for _ in 0..90 {
                now += S;
                reader.forward(&log, now);
                reader.look(&log, now, true);
            }
            reader.acknowledge(usize::MAX);
            once(&log, &reader.delivered)?;
            prop_assert_eq!(reader.past.len(), 0);
            prop_assert_eq!(reader.acked.len(), 1);
        }
    }
}
