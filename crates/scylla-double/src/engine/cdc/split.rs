//! Splitting a mutation into the changes that one log row each (or a pair, for a range) can tell.
//!
//! A change has one timestamp, at most one TTL and one kind. Within a timestamp the order is: static
//! row, inserts, updates, row deletions, range deletions, partition deletion. A mutation that is one
//! change already, or several of a kind, is left whole. Source: ScyllaDB `cdc/split.cc`.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use bytes::Bytes;

use super::super::cell::{
    AtomicCell, CellData, ColumnId, Element, Marker, NEVER, Partition, RangeTombstone, Row,
    Timestamp,
};

/// A clustered row that a group touches.
pub(super) struct AffectedRow {
    pub(super) key: Vec<Bytes>,
    pub(super) columns: BTreeSet<ColumnId>,
}

/// All changes of one timestamp.
pub(super) struct Group<'a> {
    pub(super) at: Timestamp,
    pub(super) statics: Option<BTreeSet<ColumnId>>,
    pub(super) rows: BTreeMap<Vec<u8>, AffectedRow>,
    pub(super) changes: Vec<Cow<'a, Partition>>,
}

/// The groups of a mutation, by rising timestamp. `regular` are the table's regular columns: a
/// deletion affects them all.
pub(super) fn groups<'a>(
    mutation: &'a Partition,
    regular: &[ColumnId],
    clustered: bool,
) -> Vec<Group<'a>> {
    match single_timestamp(mutation) {
        Some(at) => vec![whole(at, mutation, regular)],
        None => split(mutation, regular, clustered),
    }
}

fn whole<'a>(at: Timestamp, mutation: &'a Partition, regular: &[ColumnId]) -> Group<'a> {
    let statics = &mutation.static_row.cells;
    let rows = mutation.rows.iter().map(|(position, row)| {
        let columns = if row.tombstone == NEVER {
            row.cells.iter().map(|(id, _)| *id).collect()
        } else {
            regular.iter().copied().collect()
        };
        (
            position.clone(),
            AffectedRow {
                key: row.key.clone(),
                columns,
            },
        )
    });
    Group {
        at,
        statics: (!statics.is_empty()).then(|| statics.iter().map(|(id, _)| *id).collect()),
        rows: rows.collect(),
        changes: vec![Cow::Borrowed(mutation)],
    }
}

/// The one timestamp of a mutation that need not be split.
fn single_timestamp(mutation: &Partition) -> Option<Timestamp> {
    let mut scan = Scan::default();
    scan.mutation(mutation)?;
    scan.seen.map(|(at, _)| at)
}

/// Walks a mutation; `None` as soon as a second timestamp, TTL or kind shows up.
#[derive(Default)]
struct Scan {
    seen: Option<(Timestamp, i32)>,
    static_row: bool,
    clustered_row: bool,
    upsert: bool,
    /// Of any row so far: ScyllaDB keeps it from one row to the next.
    marked: bool,
    range: bool,
}

impl Scan {
    fn mutation(&mut self, mutation: &Partition) -> Option<()> {
        if !mutation.static_row.cells.is_empty() {
            self.static_row = true;
            self.cells(&mutation.static_row)?;
        }
        for row in mutation.rows.values() {
            if row.marker.is_some() || !row.cells.is_empty() {
                (!self.static_row).then_some(())?;
                (self.clustered_row, self.upsert) = (true, true);
                if let Some(marker) = row.marker {
                    self.marked = true;
                    self.visit(marker.timestamp, marker.ttl.seconds)?;
                }
                self.cells(row)?;
            }
            if row.tombstone != NEVER {
                (!self.static_row && !self.upsert).then_some(())?;
                self.clustered_row = true;
                self.visit(row.tombstone, 0)?;
            }
        }
        for range in mutation.ranges.iter() {
            (!self.static_row && !self.clustered_row).then_some(())?;
            self.range = true;
            self.visit(range.timestamp, 0)?;
        }
        // A partition deletion counts as no timestamp, so a mutation of nothing else is split too.
        (mutation.tombstone == NEVER || !(self.range || self.static_row || self.clustered_row))
            .then_some(())
    }

    fn cells(&mut self, row: &Row) -> Option<()> {
        for (_, data) in &row.cells {
            match data {
                CellData::Atomic(cell) => self.visit(cell.timestamp, cell.ttl.seconds)?,
                CellData::Multi(collection) => {
                    if collection.tombstone != NEVER {
                        self.visit(collection.tombstone.saturating_add(1), 0)?;
                    }
                    for element in collection.cells.values() {
                        // An INSERT cannot tell of single elements.
                        if element.cell.value.is_some() && self.marked {
                            return None;
                        }
                        self.visit(element.cell.timestamp, element.cell.ttl.seconds)?;
                    }
                }
            }
        }
        Some(())
    }

    fn visit(&mut self, at: Timestamp, ttl: i32) -> Option<()> {
        match self.seen.replace((at, ttl)) {
            Some(seen) if seen != (at, ttl) => None,
            _ => Some(()),
        }
    }
}

/// Parts of a row, or the static row, that share a timestamp and a TTL.
#[derive(Default)]
struct Update {
    atomic: Vec<(ColumnId, AtomicCell)>,
    multi: Vec<MultiUpdate>,
}

struct MultiUpdate {
    column: ColumnId,
    tombstone: Timestamp,
    cells: Vec<(Vec<u8>, Element)>,
}

impl Update {
    fn multi(&mut self, column: ColumnId) -> &mut MultiUpdate {
        if self.multi.last().is_none_or(|m| m.column != column) {
            self.multi.push(MultiUpdate {
                column,
                tombstone: NEVER,
                cells: Vec::new(),
            });
        }
        let at = self.multi.len() - 1;
        &mut self.multi[at]
    }

    fn into_row(self, key: Vec<Bytes>, marker: Option<Marker>) -> Row {
        let mut row = Row::new(key);
        row.marker = marker;
        for (column, cell) in self.atomic {
            row.set(column, CellData::Atomic(cell));
        }
        for multi in self.multi {
            let collection = row.collection_mut(multi.column);
            collection.tombstone = multi.tombstone;
            collection.cells.extend(multi.cells);
        }
        row
    }
}

fn updates(row: &Row) -> BTreeMap<(Timestamp, i32), Update> {
    let mut updates: BTreeMap<(Timestamp, i32), Update> = BTreeMap::new();
    for (column, data) in &row.cells {
        match data {
            CellData::Atomic(cell) => {
                updates
                    .entry((cell.timestamp, cell.ttl.seconds))
                    .or_default()
                    .atomic
                    .push((*column, cell.clone()));
            }
            CellData::Multi(collection) => {
                if collection.tombstone != NEVER {
                    // Made by `SET c = {…}` one microsecond before the elements, so told with them.
                    updates
                        .entry((collection.tombstone.saturating_add(1), 0))
                        .or_default()
                        .multi(*column)
                        .tombstone = collection.tombstone;
                }
                for (position, element) in &collection.cells {
                    let key = (element.cell.timestamp, element.cell.ttl.seconds);
                    updates
                        .entry(key)
                        .or_default()
                        .multi(*column)
                        .cells
                        .push((position.clone(), element.clone()));
                }
            }
        }
    }
    updates
}

/// A row's place and its key.
type Keyed<T> = (Vec<u8>, Vec<Bytes>, T);

#[derive(Default)]
struct Kinds {
    statics: Vec<Update>,
    inserts: Vec<Keyed<(Marker, Update)>>,
    updates: Vec<Keyed<Update>>,
    row_deletions: Vec<Keyed<Timestamp>>,
    ranges: Vec<RangeTombstone>,
    partition: Option<Timestamp>,
}

fn split<'a>(mutation: &'a Partition, regular: &[ColumnId], clustered: bool) -> Vec<Group<'a>> {
    let mut by_time: BTreeMap<Timestamp, Kinds> = BTreeMap::new();
    for ((at, _), update) in updates(&mutation.static_row) {
        by_time.entry(at).or_default().statics.push(update);
    }
    for (position, row) in &mutation.rows {
        extract_row(&mut by_time, position, row);
        if row.tombstone != NEVER {
            let deletion = (position.clone(), row.key.clone(), row.tombstone);
            by_time
                .entry(row.tombstone)
                .or_default()
                .row_deletions
                .push(deletion);
        }
    }
    for range in mutation.ranges.iter() {
        by_time
            .entry(range.timestamp)
            .or_default()
            .ranges
            .push(range.clone());
    }
    if mutation.tombstone != NEVER {
        by_time.entry(mutation.tombstone).or_default().partition = Some(mutation.tombstone);
    }
    by_time
        .into_iter()
        .map(|(at, kinds)| group(at, kinds, regular, clustered))
        .collect()
}

fn extract_row(by_time: &mut BTreeMap<Timestamp, Kinds>, position: &[u8], row: &Row) {
    let mut updates = updates(row);
    let marked = row.marker.map(|m| (m.timestamp, m.ttl.seconds));
    if let Some(key) = marked {
        updates.entry(key).or_default();
    }
    for (key, mut update) in updates {
        let kinds = by_time.entry(key.0).or_default();
        let keyed = |update| (position.to_vec(), row.key.clone(), update);
        match row.marker {
            Some(marker) if marked == Some(key) => {
                // An INSERT always deletes a collection first, so elements without the tombstone
                // (it has no TTL, they have) can only be told by an update of their own.
                let (inserted, added) =
                    update.multi.into_iter().partition(|m| m.tombstone != NEVER);
                update.multi = inserted;
                let (position, key, update) = keyed(update);
                kinds.inserts.push((position, key, (marker, update)));
                let added: Vec<MultiUpdate> = added;
                if !added.is_empty() {
                    kinds.updates.push(keyed(Update {
                        atomic: Vec::new(),
                        multi: added,
                    }));
                }
            }
            _ => kinds.updates.push(keyed(update)),
        }
    }
}

fn group<'a>(at: Timestamp, kinds: Kinds, regular: &[ColumnId], clustered: bool) -> Group<'a> {
    let mut statics = BTreeSet::new();
    let mut rows: BTreeMap<Vec<u8>, AffectedRow> = BTreeMap::new();
    let all = || regular.iter().copied().collect::<BTreeSet<_>>();
    let mut affect = |position: &[u8], key: &[Bytes], columns: BTreeSet<ColumnId>| {
        rows.entry(position.to_vec())
            .or_insert_with(|| AffectedRow {
                key: key.to_vec(),
                columns: BTreeSet::new(),
            })
            .columns
            .extend(columns);
    };
    fn touched(update: &Update) -> BTreeSet<ColumnId> {
        let atomic = update.atomic.iter().map(|(id, _)| *id);
        atomic
            .chain(update.multi.iter().map(|m| m.column))
            .collect()
    }
    let mut changes = Vec::new();
    let mut change = |fill: &mut dyn FnMut(&mut Partition)| {
        let mut part = Partition::default();
        fill(&mut part);
        changes.push(Cow::Owned(part));
    };
    for update in kinds.statics {
        statics.extend(touched(&update));
        let mut row = Some(update.into_row(Vec::new(), None));
        change(&mut |p| p.static_row = row.take().unwrap_or_default());
    }
    for (position, key, (marker, update)) in kinds.inserts {
        affect(&position, &key, touched(&update));
        let mut row = Some(update.into_row(key, Some(marker)));
        change(&mut |p| {
            drop(
                p.rows
                    .insert(position.clone(), row.take().unwrap_or_default()),
            )
        });
    }
    for (position, key, update) in kinds.updates {
        affect(&position, &key, touched(&update));
        let mut row = Some(update.into_row(key, None));
        change(&mut |p| {
            drop(
                p.rows
                    .insert(position.clone(), row.take().unwrap_or_default()),
            )
        });
    }
    for (position, key, timestamp) in kinds.row_deletions {
        affect(&position, &key, all());
        change(&mut |p| p.row_mut(position.clone(), &key).tombstone = timestamp);
    }
    for range in kinds.ranges {
        change(&mut |p| p.ranges.add(range.clone()));
    }
    if let Some(timestamp) = kinds.partition {
        if !clustered {
            affect(&[], &[], all());
        }
        change(&mut |p| p.tombstone = timestamp);
    }
    Group {
        at,
        statics: (!statics.is_empty()).then_some(statics),
        rows,
        changes,
    }
}
