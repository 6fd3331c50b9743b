//! Cells, rows and partitions with write timestamps, and how two versions of them merge.
//!
//! The same types hold what is stored and what a statement wants to write (a mutation); what differs
//! is that stored data is compacted (what a tombstone covers is removed at once, so that reads need
//! not look at tombstones), while a mutation keeps everything, for the CDC log shows it all.
//!
//! Rules of precedence: the higher timestamp wins; at equal timestamps a dead cell beats a live one,
//! an expiring one beats one without TTL, a later expiry beats an earlier one, of one expiry the shorter
//! TTL (it was written later) beats a longer one, and then the greater value wins (ScyllaDB
//! `compare_atomic_cell_for_merge`).

use std::{
    cmp::Ordering,
    collections::{BTreeMap, btree_map::Entry},
};

use bytes::Bytes;

/// Identifies a column for the life of its table; never used again once the column is dropped.
pub(crate) type ColumnId = u32;

/// A write timestamp, µs since the epoch.
pub(crate) type Timestamp = i64;

/// "No tombstone": older than anything a client may write.
pub(crate) const NEVER: Timestamp = i64::MIN;

/// How long a value lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Ttl {
    /// Seconds from the write; 0 means for ever.
    pub(crate) seconds: i32,
    /// Seconds since the epoch at which it ends; 0 when `seconds` is.
    pub(crate) expires_at: i64,
}

impl Ttl {
    /// A TTL that begins at `now`, seconds since the epoch.
    pub(crate) fn from(now: i64, seconds: i32) -> Self {
        if seconds <= 0 {
            return Self::default();
        }
        Self {
            seconds,
            expires_at: now + i64::from(seconds),
        }
    }

    /// Which of two of one timestamp wins, the greater one, as far as the TTL tells.
    fn precedence(self, other: Self) -> Ordering {
        (self.seconds > 0)
            .cmp(&(other.seconds > 0))
            .then_with(|| self.expires_at.cmp(&other.expires_at))
            .then_with(|| other.seconds.cmp(&self.seconds))
    }

    /// Whether something with this TTL is still there at `now` (seconds since the epoch).
    pub(crate) fn alive(self, now: i64) -> bool {
        self.seconds == 0 || self.expires_at > now
    }
}

/// A value, or the mark that it was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AtomicCell {
    pub(crate) timestamp: Timestamp,
    /// `None`: a tombstone.
    pub(crate) value: Option<Bytes>,
    pub(crate) ttl: Ttl,
}

impl AtomicCell {
    pub(crate) fn live(timestamp: Timestamp, value: Bytes, ttl: Ttl) -> Self {
        Self {
            timestamp,
            value: Some(value),
            ttl,
        }
    }

    pub(crate) fn dead(timestamp: Timestamp) -> Self {
        Self {
            timestamp,
            value: None,
            ttl: Ttl::default(),
        }
    }

    /// The value as a reader at `now` sees it.
    pub(crate) fn get(&self, now: i64) -> Option<&Bytes> {
        self.value.as_ref().filter(|_| self.ttl.alive(now))
    }

    fn merge(&mut self, other: AtomicCell) {
        if self.precedence(&other) == Ordering::Less {
            *self = other;
        }
    }

    fn precedence(&self, other: &Self) -> Ordering {
        self.timestamp
            .cmp(&other.timestamp)
            .then_with(|| self.value.is_none().cmp(&other.value.is_none()))
            .then_with(|| self.ttl.precedence(other.ttl))
            .then_with(|| self.value.cmp(&other.value))
    }
}

/// An element of a collection or a field of a user-defined type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    /// The serialised key: a set's element, a map's key, a list's timeuuid, a UDT's field index (i16).
    pub(crate) key: Bytes,
    pub(crate) cell: AtomicCell,
}

/// A non-frozen collection or user-defined type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Collection {
    /// Everything up to this timestamp is deleted.
    pub(crate) tombstone: Timestamp,
    /// By the order-preserving encoding of the key.
    pub(crate) cells: BTreeMap<Vec<u8>, Element>,
}

impl Default for Collection {
    fn default() -> Self {
        Self {
            tombstone: NEVER,
            cells: BTreeMap::new(),
        }
    }
}

impl Collection {
    fn merge(&mut self, other: Collection) {
        if other.tombstone > self.tombstone {
            self.tombstone = other.tombstone;
            self.cells.retain(|_, e| e.cell.timestamp > other.tombstone);
        }
        for (at, element) in other.cells {
            if element.cell.timestamp <= self.tombstone {
                continue;
            }
            match self.cells.entry(at) {
                Entry::Vacant(v) => drop(v.insert(element)),
                Entry::Occupied(mut o) => o.get_mut().cell.merge(element.cell),
            }
        }
    }

    /// The elements a reader at `now` sees, in the key's order.
    pub(crate) fn live(&self, now: i64) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.cells
            .values()
            .filter_map(move |e| Some((&e.key, e.cell.get(now)?)))
    }
}

/// What a row has for one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CellData {
    Atomic(AtomicCell),
    Multi(Box<Collection>),
}

impl CellData {
    fn merge(&mut self, other: CellData) {
        match (self, other) {
            (CellData::Atomic(a), CellData::Atomic(b)) => a.merge(b),
            (CellData::Multi(a), CellData::Multi(b)) => a.merge(*b),
            // A column never changes between the two: its id would be another.
            (a, b) => *a = b,
        }
    }

    /// Whether a reader at `now` sees anything.
    pub(crate) fn is_live(&self, now: i64) -> bool {
        match self {
            CellData::Atomic(cell) => cell.get(now).is_some(),
            CellData::Multi(collection) => collection.live(now).next().is_some(),
        }
    }

    /// Removes what a tombstone at `timestamp` covers; false when nothing is left.
    fn shadow(&mut self, timestamp: Timestamp) -> bool {
        match self {
            CellData::Atomic(cell) => cell.timestamp > timestamp,
            CellData::Multi(collection) => {
                collection.cells.retain(|_, e| e.cell.timestamp > timestamp);
                if collection.tombstone <= timestamp {
                    collection.tombstone = NEVER;
                }
                collection.tombstone != NEVER || !collection.cells.is_empty()
            }
        }
    }
}

/// That the row was inserted: it exists even when all its cells are null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) timestamp: Timestamp,
    pub(crate) ttl: Ttl,
}

/// A row: a clustered one, or the static one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// Serialised clustering key components; empty for a static row and where there are none.
    pub(crate) key: Vec<Bytes>,
    /// Everything up to this timestamp is deleted.
    pub(crate) tombstone: Timestamp,
    pub(crate) marker: Option<Marker>,
    /// Ascending by column.
    pub(crate) cells: Vec<(ColumnId, CellData)>,
}

impl Default for Row {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Row {
    pub(crate) fn new(key: Vec<Bytes>) -> Self {
        Self {
            key,
            tombstone: NEVER,
            marker: None,
            cells: Vec::new(),
        }
    }

    pub(crate) fn cell(&self, column: ColumnId) -> Option<&CellData> {
        let at = self
            .cells
            .binary_search_by_key(&column, |(id, _)| *id)
            .ok()?;
        Some(&self.cells[at].1)
    }

    /// Merges one column's data in.
    pub(crate) fn set(&mut self, column: ColumnId, data: CellData) {
        match self.cells.binary_search_by_key(&column, |(id, _)| *id) {
            Ok(at) => self.cells[at].1.merge(data),
            Err(at) => self.cells.insert(at, (column, data)),
        }
    }

    /// The collection to write elements of, made when there is none.
    pub(crate) fn collection_mut(&mut self, column: ColumnId) -> &mut Collection {
        let at = match self.cells.binary_search_by_key(&column, |(id, _)| *id) {
            Ok(at) => at,
            Err(at) => {
                self.cells
                    .insert(at, (column, CellData::Multi(Box::default())));
                at
            }
        };
        let slot = &mut self.cells[at].1;
        if !matches!(slot, CellData::Multi(_)) {
            *slot = CellData::Multi(Box::default());
        }
        match slot {
            CellData::Multi(collection) => collection,
            CellData::Atomic(_) => unreachable!("replaced above"),
        }
    }

    /// About how much memory it takes, bytes.
    pub(crate) fn size(&self) -> usize {
        let value =
            |cell: &AtomicCell| size_of::<AtomicCell>() + cell.value.as_ref().map_or(0, Bytes::len);
        let cells = self.cells.iter().map(|(_, data)| match data {
            CellData::Atomic(cell) => value(cell),
            CellData::Multi(all) => all
                .cells
                .values()
                .map(|e| e.key.len() + value(&e.cell))
                .sum(),
        });
        size_of::<Self>() + self.key.iter().map(Bytes::len).sum::<usize>() + cells.sum::<usize>()
    }

    /// Whether nothing at all is known of it, so that it need not be kept.
    pub(crate) fn is_blank(&self) -> bool {
        self.tombstone == NEVER && self.marker.is_none() && self.cells.is_empty()
    }

    /// Whether a reader at `now` sees the row.
    pub(crate) fn is_live(&self, now: i64) -> bool {
        self.marker.is_some_and(|m| m.ttl.alive(now))
            || self.cells.iter().any(|(_, c)| c.is_live(now))
    }

    fn merge(&mut self, other: Row) {
        self.tombstone = self.tombstone.max(other.tombstone);
        if let Some(theirs) = other.marker {
            let newer = self.marker.is_none_or(|ours| {
                ours.timestamp
                    .cmp(&theirs.timestamp)
                    .then_with(|| ours.ttl.precedence(theirs.ttl))
                    .is_lt()
            });
            if newer {
                self.marker = Some(theirs);
            }
        }
        if self.cells.is_empty() {
            self.cells = other.cells;
        } else {
            for (column, data) in other.cells {
                self.set(column, data);
            }
        }
    }

    /// Removes what was written to a column up to a time.
    pub(crate) fn forget(&mut self, column: ColumnId, up_to: Timestamp) {
        if let Ok(at) = self.cells.binary_search_by_key(&column, |(id, _)| *id)
            && !self.cells[at].1.shadow(up_to)
        {
            self.cells.remove(at);
        }
    }

    fn shadow(&mut self, timestamp: Timestamp) {
        if timestamp == NEVER {
            return;
        }
        self.marker = self.marker.filter(|m| m.timestamp > timestamp);
        self.cells.retain_mut(|(_, c)| c.shadow(timestamp));
        if self.tombstone <= timestamp {
            self.tombstone = NEVER;
        }
    }
}

/// Where a range of clustering keys starts or ends: just before or just after a prefix.
///
/// Positions compare as bytes, see [`super::order`]; a key lies in a range when
/// `start.position <= key < end.position`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The order-preserving encoding, with a last byte 0xFF when `after`.
    pub(crate) position: Vec<u8>,
    /// Serialised components; none: open.
    pub(crate) prefix: Vec<Bytes>,
    /// After all keys with the prefix, else before them.
    pub(crate) after: bool,
}

/// A range deletion: all rows in `[start, end)` written up to `timestamp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RangeTombstone {
    pub(crate) start: Bound,
    pub(crate) end: Bound,
    pub(crate) timestamp: Timestamp,
}

impl RangeTombstone {
    fn between(start: &Bound, end: &Bound, timestamp: Timestamp) -> Option<Self> {
        (start.position < end.position).then(|| Self {
            start: start.clone(),
            end: end.clone(),
            timestamp,
        })
    }

    pub(crate) fn covers(&self, key: &[u8]) -> bool {
        self.start.position.as_slice() <= key && key < self.end.position.as_slice()
    }

    /// The parts of `self` outside of `other`.
    fn without(&self, other: &Self) -> impl Iterator<Item = Self> {
        let earlier = |a: &'_ Bound, b: &'_ Bound| {
            if a.position <= b.position {
                a.clone()
            } else {
                b.clone()
            }
        };
        let later = |a: &'_ Bound, b: &'_ Bound| {
            if a.position >= b.position {
                a.clone()
            } else {
                b.clone()
            }
        };
        let left = Self::between(
            &self.start,
            &earlier(&self.end, &other.start),
            self.timestamp,
        );
        let right = Self::between(&later(&self.start, &other.end), &self.end, self.timestamp);
        left.into_iter().chain(right)
    }
}

/// Range deletions that do not overlap, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct RangeTombstones(Vec<RangeTombstone>);

impl RangeTombstones {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &RangeTombstone> {
        self.0.iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds one; where ranges overlap the newer wins, and neighbours of one time become one.
    pub(crate) fn add(&mut self, new: RangeTombstone) {
        let mut kept = Vec::with_capacity(self.0.len() + 2);
        let mut rest = vec![new.clone()];
        for old in self.0.drain(..) {
            if old.timestamp < new.timestamp {
                kept.extend(old.without(&new));
            } else {
                rest = rest.iter().flat_map(|piece| piece.without(&old)).collect();
                kept.push(old);
            }
        }
        kept.append(&mut rest);
        kept.sort_by(|a, b| a.start.position.cmp(&b.start.position));
        for range in kept {
            match self.0.last_mut() {
                Some(last)
                    if last.timestamp == range.timestamp
                        && last.end.position == range.start.position =>
                {
                    last.end = range.end;
                }
                _ => self.0.push(range),
            }
        }
    }

    fn covering(&self, key: &[u8]) -> Timestamp {
        let after = self
            .0
            .partition_point(|r| r.start.position.as_slice() <= key);
        self.0[..after]
            .last()
            .filter(|r| r.covers(key))
            .map_or(NEVER, |r| r.timestamp)
    }
}

/// All of a partition but its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    /// Everything up to this timestamp is deleted.
    pub(crate) tombstone: Timestamp,
    pub(crate) static_row: Row,
    /// By the order-preserving encoding of the clustering key.
    pub(crate) rows: BTreeMap<Vec<u8>, Row>,
    pub(crate) ranges: RangeTombstones,
}

impl Default for Partition {
    fn default() -> Self {
        Self {
            tombstone: NEVER,
            static_row: Row::default(),
            rows: BTreeMap::new(),
            ranges: RangeTombstones::default(),
        }
    }
}

impl Partition {
    /// Whether nothing at all is known of it.
    pub(crate) fn is_blank(&self) -> bool {
        self.tombstone == NEVER
            && self.static_row.is_blank()
            && self.rows.is_empty()
            && self.ranges.is_empty()
    }

    /// About how much memory it takes, bytes, as ScyllaDB measures a batch by.
    pub(crate) fn size(&self) -> usize {
        /// What ScyllaDB's trees of rows and cells take for each row.
        const ROW: usize = 256;
        let rows: usize = self.rows.values().map(|row| ROW + row.size()).sum();
        let ranges = self.ranges.iter();
        self.static_row.size()
            + rows
            + ranges
                .map(|r| r.start.position.len() + r.end.position.len())
                .sum::<usize>()
    }

    /// The row at an encoded clustering key, made when there is none.
    pub(crate) fn row_mut(&mut self, at: Vec<u8>, key: &[Bytes]) -> &mut Row {
        self.rows
            .entry(at)
            .or_insert_with(|| Row::new(key.to_vec()))
    }

    /// Merges without removing what tombstones cover: for mutations of one batch.
    pub(crate) fn merge(&mut self, other: Partition) {
        self.tombstone = self.tombstone.max(other.tombstone);
        self.static_row.merge(other.static_row);
        for (at, row) in other.rows {
            match self.rows.entry(at) {
                Entry::Vacant(v) => drop(v.insert(row)),
                Entry::Occupied(mut o) => o.get_mut().merge(row),
            }
        }
        for range in other.ranges.0 {
            self.ranges.add(range);
        }
    }

    /// Merges a mutation into stored data and removes what tombstones cover.
    pub(crate) fn apply(&mut self, mutation: Partition) {
        if mutation.tombstone > self.tombstone {
            self.tombstone = mutation.tombstone;
            self.static_row.shadow(mutation.tombstone);
            self.rows.retain(|_, row| {
                row.shadow(mutation.tombstone);
                !row.is_blank()
            });
        }
        self.static_row.merge(mutation.static_row);
        self.static_row.shadow(self.tombstone);
        for range in mutation.ranges.0 {
            let mut emptied = Vec::new();
            for (at, row) in self
                .rows
                .range_mut(range.start.position.clone()..range.end.position.clone())
            {
                row.shadow(range.timestamp);
                if row.is_blank() {
                    emptied.push(at.clone());
                }
            }
            for at in emptied {
                self.rows.remove(&at);
            }
            self.ranges.add(range);
        }
        for (at, new) in mutation.rows {
            let covered = self.tombstone.max(self.ranges.covering(&at));
            match self.rows.entry(at) {
                Entry::Vacant(v) => {
                    let mut row = new;
                    row.settle(covered);
                    if !row.is_blank() {
                        v.insert(row);
                    }
                }
                Entry::Occupied(mut o) => {
                    let row = o.get_mut();
                    row.merge(new);
                    row.settle(covered);
                    if row.is_blank() {
                        o.remove();
                    }
                }
            }
        }
    }
}

impl Row {
    /// Removes what the row's own tombstone and one from outside cover.
    fn settle(&mut self, covered: Timestamp) {
        let own = self.tombstone;
        self.shadow(own.max(covered));
        self.tombstone = if own > covered { own } else { NEVER };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(position: &str) -> Bound {
        Bound {
            position: position.into(),
            prefix: vec![],
            after: false,
        }
    }

    fn range(start: &str, end: &str, timestamp: i64) -> RangeTombstone {
        RangeTombstone {
            start: bound(start),
            end: bound(end),
            timestamp,
        }
    }

    fn shown(ranges: &RangeTombstones) -> Vec<(String, String, i64)> {
        let text = |b: &Bound| String::from_utf8(b.position.clone()).unwrap();
        ranges
            .iter()
            .map(|r| (text(&r.start), text(&r.end), r.timestamp))
            .collect()
    }

    #[test]
    fn newer_range_deletion_cuts_older_ones_and_equal_ones_join() {
        let mut ranges = RangeTombstones::default();
        for r in [
            range("a", "f", 1),
            range("c", "d", 2),
            range("e", "h", 1),
            range("b", "z", 0),
        ] {
            ranges.add(r);
        }
        let own = |s: &str, e: &str, t| (s.to_owned(), e.to_owned(), t);
        assert_eq!(
            shown(&ranges),
            [
                own("a", "c", 1),
                own("c", "d", 2),
                own("d", "h", 1),
                own("h", "z", 0)
            ]
        );
        assert_eq!(ranges.covering(b"cc"), 2);
        assert_eq!(ranges.covering(b"zz"), NEVER);
    }

    #[test]
    fn late_write_stays_deleted() {
        let mut stored = Partition::default();
        let mut delete = Partition::default();
        delete.ranges.add(range("a", "f", 10));
        stored.apply(delete);
        for (key, timestamp, seen) in [("b", 9, false), ("b", 11, true), ("g", 9, true)] {
            let mut insert = Partition::default();
            let row = insert.row_mut(key.into(), &[]);
            row.set(
                1,
                CellData::Atomic(AtomicCell::live(
                    timestamp,
                    Bytes::from_static(b"x"),
                    Ttl::default(),
                )),
            );
            stored.apply(insert);
            assert_eq!(
                stored.rows.contains_key(key.as_bytes()),
                seen,
                "{key} at {timestamp}"
            );
        }
    }

    #[test]
    fn precedence_of_cells_at_one_timestamp() {
        let plain = AtomicCell::live(1, Bytes::from_static(b"b"), Ttl::default());
        let less = AtomicCell::live(1, Bytes::from_static(b"a"), Ttl::default());
        let expiring = AtomicCell::live(
            1,
            Bytes::from_static(b"a"),
            Ttl {
                seconds: 5,
                expires_at: 100,
            },
        );
        let shorter = AtomicCell::live(
            1,
            Bytes::from_static(b"0"),
            Ttl {
                seconds: 4,
                expires_at: 100,
            },
        );
        let dead = AtomicCell::dead(1);
        let order = [less, plain, expiring, shorter, dead];
        for (i, weak) in order.iter().enumerate() {
            for strong in &order[i + 1..] {
                for (mut first, second) in [
                    (weak.clone(), strong.clone()),
                    (strong.clone(), weak.clone()),
                ] {
                    first.merge(second);
                    assert_eq!(&first, strong);
                }
            }
        }
    }
}
