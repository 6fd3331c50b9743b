//! From a mutation of a base table to rows of its log: deltas, preimages and postimages.
//!
//! Source: ScyllaDB `cdc/log.cc` (`transformer`, `process_row_visitor`, `log_mutation_builder`).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use uuid::Uuid;

use super::{
    super::{
        cell::{AtomicCell, CellData, ColumnId, NEVER, Partition, Row, Timestamp, Ttl},
        error::CqlError,
        order,
        schema::{Column, Images, MultiKind, TableSchema},
        types,
    },
    LogLayout, Operation,
    split::{Group, groups},
};

/// Rows to be added to one stream of a log.
pub(crate) struct LogRows {
    pub(crate) stream: Bytes,
    pub(crate) rows: Partition,
}

/// A base column's value for images.
#[derive(Clone)]
enum Image {
    Atomic(Bytes),
    /// By the encoded key: key and value.
    Multi(BTreeMap<Vec<u8>, (Bytes, Bytes)>),
}

/// `None`: the column is null now, though it was not always.
type RowState = BTreeMap<ColumnId, Option<Image>>;

/// What is needed to make the log rows of one mutation.
pub(crate) struct Source<'a> {
    pub(crate) base: &'a TableSchema,
    pub(crate) layout: &'a LogLayout,
    pub(crate) key: &'a [Bytes],
    /// The partition before the mutation.
    pub(crate) stored: Option<&'a Partition>,
    /// µs since the epoch.
    pub(crate) now: Timestamp,
}

/// The log rows of one mutation, for each timestamp in it; `stream` chooses the stream for one.
pub(crate) fn log_rows(
    source: &Source<'_>,
    mutation: &Partition,
    stream: impl Fn(Timestamp) -> Result<Bytes, CqlError>,
) -> Result<Vec<LogRows>, CqlError> {
    let options = source.base.cdc();
    let preimage = options.preimage != Images::Off;
    let regular: Vec<ColumnId> = source.base.regular().map(|c| c.id).collect();
    let mut state = State::default();
    if preimage || options.postimage {
        state.load(source, mutation);
    }
    let groups = groups(mutation, &regular, source.base.has_clustering());
    let last = groups.len().saturating_sub(1);
    let mut all = Vec::with_capacity(groups.len());
    for (i, group) in groups.iter().enumerate() {
        let mut log = Builder::new(source, group.at);
        log.track = options.postimage || (preimage && i != last);
        if preimage {
            let wanted = |columns: &'_ BTreeSet<ColumnId>| {
                (options.preimage == Images::On).then(|| columns.clone())
            };
            if let Some(columns) = &group.statics {
                log.image(&state, Operation::Preimage, None, wanted(columns));
            }
            for (position, row) in &group.rows {
                log.image(
                    &state,
                    Operation::Preimage,
                    Some((position, &row.key)),
                    wanted(&row.columns),
                );
            }
        }
        for change in &group.changes {
            log.change(&mut state, change);
        }
        if options.postimage {
            postimages(&mut log, &state, group);
        }
        if let Some(rows) = log.finish() {
            all.push(LogRows {
                stream: stream(group.at)?,
                rows,
            });
        }
    }
    Ok(all)
}

fn postimages(log: &mut Builder<'_>, state: &State, group: &Group<'_>) {
    if group.statics.is_some() {
        log.image(state, Operation::Postimage, None, None);
    }
    for (position, row) in &group.rows {
        log.image(
            state,
            Operation::Postimage,
            Some((position, &row.key)),
            None,
        );
    }
}

/// The rows as they are before, and then after, each change.
#[derive(Default)]
struct State {
    statics: RowState,
    rows: BTreeMap<Vec<u8>, RowState>,
    static_touched: bool,
}

impl State {
    /// Reads what images need, as ScyllaDB's preimage query does: for a plain preimage the columns
    /// of the mutation's *first* row only (`pre_image_select`, which says so itself).
    fn load(&mut self, source: &Source<'_>, mutation: &Partition) {
        let Some(stored) = source.stored else { return };
        let (base, now) = (source.base, source.now.div_euclid(1_000_000));
        let options = base.cdc();
        let everything = options.postimage || options.preimage == Images::Full;
        let whole_row_deleted = !base.has_clustering() && mutation.tombstone != NEVER;
        let named = |row: &Row, id: ColumnId| row.cell(id).is_some();
        if !mutation.static_row.cells.is_empty() {
            for column in base
                .statics()
                .filter(|c| everything || named(&mutation.static_row, c.id))
            {
                if let Some(image) = image_of(&stored.static_row, column, now) {
                    self.statics.insert(column.id, Some(image));
                }
            }
        }
        let deleted = mutation.rows.values().any(|r| r.tombstone != NEVER);
        let first = mutation.rows.values().next();
        let columns: Vec<&Column> = base
            .regular()
            .filter(|c| {
                everything || deleted || whole_row_deleted || first.is_some_and(|r| named(r, c.id))
            })
            .collect();
        let whole = whole_row_deleted.then(Vec::new);
        for position in mutation.rows.keys().chain(whole.as_ref()) {
            let Some(row) = stored.rows.get(position).filter(|r| r.is_live(now)) else {
                continue;
            };
            let cells = columns
                .iter()
                .filter_map(|c| Some((c.id, Some(image_of(row, c, now)?))))
                .collect();
            self.rows.insert(position.clone(), cells);
        }
    }
}

fn image_of(row: &Row, column: &Column, now: i64) -> Option<Image> {
    match row.cell(column.id)? {
        CellData::Atomic(cell) => cell.get(now).cloned().map(Image::Atomic),
        CellData::Multi(collection) => {
            let live: BTreeMap<_, _> = collection
                .cells
                .iter()
                .filter_map(|(at, e)| Some((at.clone(), (e.key.clone(), e.cell.get(now)?.clone()))))
                .collect();
            (!live.is_empty()).then_some(Image::Multi(live))
        }
    }
}

/// Makes the log rows of one timestamp, which share one `cdc$time`.
struct Builder<'a> {
    source: &'a Source<'a>,
    at: Timestamp,
    ttl: Ttl,
    time: Bytes,
    next: i32,
    rows: Partition,
    /// Whether changes must be brought into the state, for images to come.
    track: bool,
}

impl<'a> Builder<'a> {
    fn new(source: &'a Source<'a>, at: Timestamp) -> Self {
        let ttl = Ttl::from(source.now.div_euclid(1_000_000), source.base.cdc().ttl);
        let time = Bytes::copy_from_slice(random_timeuuid(at).as_bytes());
        Self {
            source,
            at,
            ttl,
            time,
            next: 0,
            rows: Partition::default(),
            track: false,
        }
    }

    fn finish(mut self) -> Option<Partition> {
        let mut last = self.rows.rows.last_entry()?;
        let cell = AtomicCell::live(self.at, Bytes::from_static(&[1]), self.ttl);
        last.get_mut()
            .set(self.source.layout.end_of_batch, CellData::Atomic(cell));
        Some(self.rows)
    }

    /// Begins a row with the next `cdc$batch_seq_no`, and gives its place.
    fn row(&mut self, operation: Operation, key: &[Bytes]) -> Vec<u8> {
        let (source, number) = (self.source, self.next);
        self.next += 1;
        let mut position = Vec::with_capacity(24);
        order::put_timeuuid(&self.time, &mut position);
        order::put_int(number, &mut position);
        let number = if number == 0 {
            Bytes::from_static(&[0; 4])
        } else {
            Bytes::copy_from_slice(&number.to_be_bytes())
        };
        let key_bytes = [self.time.clone(), number];
        self.rows.row_mut(position.clone(), &key_bytes);
        self.set(&position, source.layout.operation, operation.serialised());
        for (column, value) in source.layout.partition_key.iter().zip(source.key) {
            self.set(&position, *column, value.clone());
        }
        for (column, value) in source.layout.clustering_key.iter().zip(key) {
            self.set(&position, *column, value.clone());
        }
        position
    }

    fn set(&mut self, position: &[u8], column: ColumnId, value: Bytes) {
        let cell = AtomicCell::live(self.at, value, self.ttl);
        if let Some(row) = self.rows.rows.get_mut(position) {
            row.set(column, CellData::Atomic(cell));
        }
    }

    fn set_value(&mut self, position: &[u8], column: &Column, value: Bytes) {
        if let Some(log) = self.source.layout.data.get(&column.id) {
            self.set(position, log.value, value);
        }
    }

    fn set_deleted(&mut self, position: &[u8], column: &Column) {
        if let Some(log) = self.source.layout.data.get(&column.id) {
            self.set(position, log.deleted, Bytes::from_static(&[1]));
        }
    }

    /// Makes an update an insert, which only its marker tells.
    fn set_insert(&mut self, position: &[u8]) {
        let column = self.source.layout.operation;
        if let Some(row) = self.rows.rows.get_mut(position)
            && let Ok(at) = row.cells.binary_search_by_key(&column, |(id, _)| *id)
        {
            let code = Operation::Insert.serialised();
            row.cells[at].1 = CellData::Atomic(AtomicCell::live(self.at, code, self.ttl));
        }
    }

    fn set_ttl(&mut self, position: &[u8], ttl: i32) {
        if ttl > 0 {
            self.set(
                position,
                self.source.layout.ttl,
                Bytes::copy_from_slice(&i64::from(ttl).to_be_bytes()),
            );
        }
    }

    fn change(&mut self, state: &mut State, change: &Partition) {
        if !change.static_row.cells.is_empty() {
            state.static_touched = true;
            let position = self.row(Operation::Update, &[]);
            let mut statics = std::mem::take(&mut state.statics);
            let ttl = self.cells(&position, &change.static_row, &mut statics);
            state.statics = statics;
            self.set_ttl(&position, ttl);
        }
        for (at, row) in &change.rows {
            if row.marker.is_some() || !row.cells.is_empty() {
                self.upsert(state, at, row);
            }
            if row.tombstone != NEVER {
                self.row(Operation::RowDelete, &row.key);
                if self.track {
                    state.rows.remove(at);
                }
            }
        }
        for range in change.ranges.iter() {
            let start = if range.start.after {
                Operation::RangeStartExclusive
            } else {
                Operation::RangeStartInclusive
            };
            self.row(start, &range.start.prefix);
            let end = if range.end.after {
                Operation::RangeEndInclusive
            } else {
                Operation::RangeEndExclusive
            };
            self.row(end, &range.end.prefix);
            if self.track {
                state.rows.retain(|at, _| !range.covers(at));
            }
        }
        if change.tombstone != NEVER {
            self.row(Operation::PartitionDelete, &[]);
            if self.track {
                state.rows.clear();
            }
        }
    }

    fn upsert(&mut self, state: &mut State, at: &[u8], row: &Row) {
        let position = self.row(Operation::Update, &row.key);
        let mut known = state.rows.remove(at);
        let mut fresh = RowState::new();
        let mut ttl = row.marker.map_or(0, |m| m.ttl.seconds);
        let seen = self.cells(&position, row, known.as_mut().unwrap_or(&mut fresh));
        if !row.cells.is_empty() && seen >= 0 {
            ttl = seen;
        }
        if known.is_some() || self.track {
            state.rows.insert(at.to_vec(), known.unwrap_or(fresh));
        }
        if row.marker.is_some() {
            self.set_insert(&position);
        }
        self.set_ttl(&position, ttl);
    }

    /// Writes the delta of a row's cells; gives the TTL of the last live one, or −1.
    fn cells(&mut self, position: &[u8], row: &Row, state: &mut RowState) -> i32 {
        let full = !self.source.base.cdc().delta_keys;
        let mut ttl = -1;
        for (id, data) in &row.cells {
            let Some(column) = self.source.base.column_by_id(*id) else {
                continue;
            };
            match data {
                CellData::Atomic(cell) => {
                    match &cell.value {
                        Some(value) => {
                            ttl = cell.ttl.seconds;
                            if full {
                                self.set_value(position, column, value.clone());
                            }
                        }
                        None if full => self.set_deleted(position, column),
                        None => {}
                    }
                    if self.track {
                        state.insert(*id, cell.value.clone().map(Image::Atomic));
                    }
                }
                CellData::Multi(collection) => {
                    let Some(kind) = column.multi else { continue };
                    let mut added: BTreeMap<Vec<u8>, (Bytes, Bytes)> = BTreeMap::new();
                    let mut removed: Vec<(&Vec<u8>, &Bytes)> = Vec::new();
                    for (at, element) in &collection.cells {
                        match &element.cell.value {
                            Some(value) => {
                                ttl = element.cell.ttl.seconds;
                                added.insert(at.clone(), (element.key.clone(), value.clone()));
                            }
                            None => removed.push((at, &element.key)),
                        }
                    }
                    let cleared = collection.tombstone != NEVER;
                    // A UDT is told even when no field was set: all its fields are null then.
                    let told = !added.is_empty() || matches!(kind, MultiKind::Udt { .. });
                    if full {
                        if cleared {
                            self.set_deleted(position, column);
                        }
                        let log = self
                            .source
                            .layout
                            .data
                            .get(id)
                            .and_then(|l| l.deleted_elements);
                        if let (Some(log), false) = (log, removed.is_empty()) {
                            self.set(
                                position,
                                log,
                                types::collection(removed.iter().map(|(_, k)| *k)),
                            );
                        }
                        if told {
                            self.set_value(position, column, serialise(kind, &added));
                        }
                    }
                    if self.track {
                        let before = state.remove(id).flatten().filter(|_| !cleared);
                        let next = (told || (!removed.is_empty() && before.is_some())).then(|| {
                            let mut merged = match before {
                                Some(Image::Multi(before)) => before,
                                _ => BTreeMap::new(),
                            };
                            merged.extend(added);
                            for (at, _) in removed {
                                merged.remove(at);
                            }
                            Image::Multi(merged)
                        });
                        state.insert(*id, next);
                    }
                }
            }
        }
        ttl
    }

    /// Adds a preimage or postimage row; `columns` limits a preimage to what is affected.
    fn image(
        &mut self,
        state: &State,
        operation: Operation,
        row: Option<(&Vec<u8>, &Vec<Bytes>)>,
        columns: Option<BTreeSet<ColumnId>>,
    ) {
        let cells = match row {
            Some((at, _)) => match state.rows.get(at) {
                Some(cells) => cells,
                None => return,
            },
            None if state.statics.is_empty() && !state.static_touched => return,
            None => &state.statics,
        };
        let position = self.row(operation, row.map_or(&[], |(_, key)| key));
        let source = self.source;
        let all: Vec<&Column> = match row {
            Some(_) => source.base.regular().collect(),
            None => source.base.statics().collect(),
        };
        for column in all
            .into_iter()
            .filter(|c| columns.as_ref().is_none_or(|wanted| wanted.contains(&c.id)))
        {
            match (cells.get(&column.id).and_then(Option::as_ref), column.multi) {
                (Some(Image::Atomic(value)), _) => self.set_value(&position, column, value.clone()),
                (Some(Image::Multi(cells)), Some(kind)) => {
                    self.set_value(&position, column, serialise(kind, cells))
                }
                // Tells "was null" from "was not asked for".
                _ if operation == Operation::Preimage => self.set_deleted(&position, column),
                _ => {}
            }
        }
    }
}

/// A multi-cell value as the log's column has it: a set; a map, also for a list (by timeuuid); a UDT.
fn serialise(kind: MultiKind, cells: &BTreeMap<Vec<u8>, (Bytes, Bytes)>) -> Bytes {
    match kind {
        MultiKind::Set => types::collection(cells.values().map(|(key, _)| key)),
        MultiKind::List | MultiKind::Map => {
            types::map(cells.values().map(|(key, value)| (key, value)))
        }
        MultiKind::Udt { fields } => {
            types::udt(fields, cells.values().map(|(key, value)| (key, value)))
        }
    }
}

/// A version 1 UUID of a time in µs since the epoch, unique by random low bytes
/// (`UUID_gen::get_random_time_UUID_from_micros`).
pub(crate) fn random_timeuuid(at: Timestamp) -> Uuid {
    timeuuid(
        at.wrapping_mul(10),
        rand::random::<u64>() & 0x3fff_ffff_ffff_ffff | 0x8000_0000_0000_0000,
    )
}

/// A version 1 UUID from 100 ns steps since the Unix epoch and the low eight bytes.
pub(crate) fn timeuuid(ticks: i64, low: u64) -> Uuid {
    /// 100 ns steps from 1582-10-15 to 1970-01-01.
    const GREGORIAN: i64 = 0x01b2_1dd2_1381_4000;
    let ticks = ticks.wrapping_add(GREGORIAN) as u64;
    let high = ticks << 32 | (ticks >> 16 & 0xffff_0000) | 0x1000 | (ticks >> 48 & 0x0fff);
    Uuid::from_u64_pair(high, low)
}
