//! Writing: from an `INSERT`, `UPDATE` or `DELETE` to mutations of partitions.
//!
//! What each statement writes follows ScyllaDB's `cql3/{constants,lists,sets,maps,user_types}.cc`,
//! for the CDC log tells of every cell and tombstone.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    cdc::images::timeuuid,
    cell::{AtomicCell, CellData, Element, Marker, Partition, RangeTombstone, Row, Timestamp, Ttl},
    error::CqlError,
    order,
    plan::{Change, Context, Evaluated, Expr, ModifyKind, ModifyPlan},
    schema::{Column, ColumnKind, MultiKind, TableSchema},
    select::{KeyRange, Partitions, key_ranges, partitions},
    storage::{RingKey, TableData},
    types::{self, Shape, shape},
};
use crate::types::CqlType;

/// The longest TTL, seconds (20 years).
const MAX_TTL: i32 = 630_720_000;

/// How far ahead of the clock a timestamp may be that a statement gives itself, µs
/// (`restrict_future_timestamp`).
const MAX_AHEAD_US: i64 = 3 * 86_400_000_000;

/// A change of one partition.
#[derive(Debug)]
pub(crate) struct Mutation {
    pub(crate) table: Arc<TableSchema>,
    pub(crate) key: RingKey,
    pub(crate) components: Vec<Bytes>,
    pub(crate) data: Partition,
}

/// Numbers the list elements made by one statement or batch, so that they keep their order though
/// all have the same timestamp.
#[derive(Debug, Default)]
pub(crate) struct ListSequence {
    appended: u32,
    prepended: u32,
}

/// How many list elements one timestamp can tell apart (`UUID_gen::SUBMICRO_LIMIT`).
const SUBMICROS: u32 = 1 << 17;
/// 2010-01-01, µs: elements are prepended at times mirrored about it.
const PREPEND_REFERENCE: Timestamp = 1_262_304_000_000_000;

impl ListSequence {
    fn append(&mut self, at: Timestamp, count: usize) -> Result<Vec<Bytes>, CqlError> {
        let first = self.appended;
        let count = within(first, count)?;
        self.appended += count;
        Ok((first..first + count).map(|n| list_key(at, n)).collect())
    }

    fn prepend(&mut self, at: Timestamp, count: usize) -> Result<Vec<Bytes>, CqlError> {
        if at <= PREPEND_REFERENCE {
            return Err(CqlError::invalid(
                "List prepend custom timestamp must be greater than Jan 1 2010 00:00:00",
            ));
        }
        self.prepended += within(self.prepended, count)?;
        let first = SUBMICROS - self.prepended;
        let mirrored = 2 * PREPEND_REFERENCE - at;
        Ok((first..first + count as u32)
            .map(|n| list_key(mirrored, n))
            .collect())
    }
}

fn within(used: u32, count: usize) -> Result<u32, CqlError> {
    let limit = SUBMICROS - used;
    u32::try_from(count)
        .ok()
        .filter(|c| *c <= limit)
        .ok_or_else(|| CqlError::invalid("Too many list values per single CQL statement or batch"))
}

/// A timeuuid of a time in µs and a number below it (`get_time_UUID_bytes_from_micros_and_submicros`):
/// three of its bits are tenths of a µs, the others the clock sequence, whose low byte is flipped
/// because timeuuids compare by signed bytes.
fn list_key(at: Timestamp, number: u32) -> Bytes {
    /// Any node will do: there is one.
    const NODE: u64 = 0x0200_5343_594c;
    let ticks = at
        .wrapping_mul(10)
        .wrapping_add(i64::from(number >> 14 & 7));
    let sequence = u64::from(number & 0x3fff ^ 0x80) | 0x8000;
    Bytes::copy_from_slice(timeuuid(ticks, sequence << 48 | NODE).as_bytes())
}

/// The timestamp a statement gives itself.
pub(crate) fn own_timestamp(
    plan: &ModifyPlan,
    context: &Context<'_>,
) -> Result<Option<Timestamp>, CqlError> {
    let Some(expr) = &plan.timestamp else {
        return Ok(None);
    };
    timestamp_value(expr, context)
}

/// The value of a `USING TIMESTAMP`; unset counts as absent.
pub(crate) fn timestamp_value(
    expr: &Expr,
    context: &Context<'_>,
) -> Result<Option<Timestamp>, CqlError> {
    match expr.eval(context)? {
        Evaluated::Unset => Ok(None),
        Evaluated::Null => Err(CqlError::invalid("Invalid null value of timestamp")),
        Evaluated::Value(bytes) => {
            let at = types::bigint(&bytes)
                .ok_or_else(|| CqlError::invalid("Invalid timestamp value"))?;
            if at == i64::MIN {
                return Err(CqlError::invalid("Out of bound timestamp value"));
            }
            if at.saturating_sub(context.now) > MAX_AHEAD_US {
                return Err(CqlError::invalid(
                    "Cannot provide a timestamp more than 3 days into the future. If this was not intended, make sure the \
                     timestamp is in microseconds. You can also disable this check by setting the \
                     restrict_future_timestamp configuration option to false.",
                ));
            }
            Ok(Some(at))
        }
    }
}

fn ttl(plan: &ModifyPlan, context: &Context<'_>) -> Result<Ttl, CqlError> {
    let default = plan.table.options.default_ttl;
    let seconds = match &plan.ttl {
        None => default,
        Some(expr) => match expr.eval(context)? {
            Evaluated::Unset => default,
            Evaluated::Null => return Err(CqlError::invalid("Invalid null value of TTL")),
            Evaluated::Value(bytes) => {
                types::int(&bytes).ok_or_else(|| CqlError::invalid("Invalid TTL value"))?
            }
        },
    };
    if seconds < 0 {
        return Err(CqlError::invalid("A TTL must be greater or equal to 0"));
    }
    if seconds > MAX_TTL {
        return Err(CqlError::invalid(format!(
            "ttl is too large. requested ({seconds}) maximum ({MAX_TTL})"
        )));
    }
    Ok(Ttl::from(context.seconds(), seconds))
}

/// The mutations of one statement, all at `timestamp`.
pub(crate) fn mutations(
    plan: &ModifyPlan,
    data: &TableData,
    context: &Context<'_>,
    timestamp: Timestamp,
    sequence: &mut ListSequence,
) -> Result<Vec<Mutation>, CqlError> {
    let table = &plan.table;
    let Partitions::Keys(keys) = partitions(table, &plan.restrictions, context)? else {
        let name = table
            .partition_key()
            .first()
            .map_or("", |c| c.name.as_str());
        return Err(CqlError::invalid(format!(
            "Missing mandatory PRIMARY KEY part {name}"
        )));
    };
    let ttl = ttl(plan, context)?;
    let ranges = key_ranges(table, &plan.restrictions, context)?;
    let mut all = Vec::with_capacity(keys.len());
    for (key, components) in keys {
        let stored = data.get(&key).map(|s| &s.data);
        let mut writer = Writer {
            plan,
            context,
            timestamp,
            ttl,
            stored,
            sequence,
            out: Partition::default(),
        };
        writer.partition(&ranges)?;
        let data = writer.out;
        if !data.is_blank() {
            all.push(Mutation {
                table: table.clone(),
                key,
                components,
                data,
            });
        }
    }
    Ok(all)
}

struct Writer<'a> {
    plan: &'a ModifyPlan,
    context: &'a Context<'a>,
    timestamp: Timestamp,
    ttl: Ttl,
    /// The partition as it is, for what must read before it writes.
    stored: Option<&'a Partition>,
    sequence: &'a mut ListSequence,
    out: Partition,
}

impl Writer<'_> {
    fn partition(&mut self, ranges: &[KeyRange]) -> Result<(), CqlError> {
        let plan = self.plan;
        let table = &plan.table;
        if plan.kind == ModifyKind::Delete && plan.changes.is_empty() {
            if plan.restrictions.clustering.is_empty() {
                self.out.tombstone = self.timestamp;
                return Ok(());
            }
            for range in ranges {
                if range.full {
                    let at = order::key(table.clustering_key(), &range.start.prefix);
                    self.out.row_mut(at, &range.start.prefix).tombstone = self.timestamp;
                } else {
                    self.out.ranges.add(RangeTombstone {
                        start: range.start.clone(),
                        end: range.end.clone(),
                        timestamp: self.timestamp,
                    });
                }
            }
            return Ok(());
        }
        let is_static = |at: usize| table.columns[at].kind == ColumnKind::Static;
        let (statics, regular): (Vec<_>, Vec<_>) =
            plan.changes.iter().partition(|(at, _)| is_static(*at));
        if !statics.is_empty() {
            let mut row = Row::default();
            for (at, change) in statics {
                self.change(&mut row, None, &table.columns[*at], change)?;
            }
            self.out.static_row = row;
        }
        let marked = plan.kind == ModifyKind::Insert
            && (!table.has_clustering() || !plan.restrictions.clustering.is_empty());
        if regular.is_empty() && !marked {
            return Ok(());
        }
        for range in ranges {
            let key = &range.start.prefix;
            let position = order::key(table.clustering_key(), key);
            let mut row = Row::new(key.clone());
            if marked {
                row.marker = Some(Marker {
                    timestamp: self.timestamp,
                    ttl: self.ttl,
                });
            }
            for (at, change) in &regular {
                self.change(&mut row, Some(&position), &table.columns[*at], change)?;
            }
            if !row.is_blank() {
                self.out.rows.insert(position, row);
            }
        }
        Ok(())
    }

    /// The stored cell of a column, for changes that depend on it.
    fn before(&self, position: Option<&Vec<u8>>, column: &Column) -> Option<&CellData> {
        let stored = self.stored?;
        match position {
            None => stored.static_row.cell(column.id),
            Some(position) => stored.rows.get(position)?.cell(column.id),
        }
    }

    fn change(
        &mut self,
        row: &mut Row,
        position: Option<&Vec<u8>>,
        column: &Column,
        change: &Change,
    ) -> Result<(), CqlError> {
        match column.multi {
            None => self.change_atomic(row, position, column, change),
            Some(kind) => self.change_multi(row, position, column, kind, change),
        }
    }

    fn change_atomic(
        &mut self,
        row: &mut Row,
        position: Option<&Vec<u8>>,
        column: &Column,
        change: &Change,
    ) -> Result<(), CqlError> {
        let cell = match change {
            Change::Set(expr) => match expr.eval(self.context)? {
                Evaluated::Unset => return Ok(()),
                Evaluated::Null => AtomicCell::dead(self.timestamp),
                Evaluated::Value(bytes) => AtomicCell::live(self.timestamp, bytes, self.ttl),
            },
            Change::Delete => AtomicCell::dead(self.timestamp),
            Change::Add(expr) | Change::Remove(expr) => {
                let delta = match expr.eval(self.context)? {
                    Evaluated::Unset => return Ok(()),
                    Evaluated::Null => {
                        return Err(CqlError::invalid(
                            "Invalid null value for counter increment",
                        ));
                    }
                    Evaluated::Value(bytes) => types::bigint(&bytes)
                        .ok_or_else(|| CqlError::invalid("Invalid value for counter increment"))?,
                };
                let delta = if matches!(change, Change::Remove(_)) {
                    delta.wrapping_neg()
                } else {
                    delta
                };
                let before = match self.before(position, column) {
                    Some(CellData::Atomic(cell)) => Some(cell),
                    _ => None,
                };
                let value = before
                    .and_then(|c| c.get(self.context.seconds()))
                    .and_then(|b| types::bigint(b));
                // Concurrent increments all count, whatever their order.
                let timestamp = before.map_or(self.timestamp, |c| {
                    self.timestamp.max(c.timestamp.saturating_add(1))
                });
                let sum = value.unwrap_or(0).wrapping_add(delta);
                AtomicCell::live(
                    timestamp,
                    Bytes::copy_from_slice(&sum.to_be_bytes()),
                    Ttl::default(),
                )
            }
            Change::Plus(expr) | Change::Minus(expr) => {
                let other = match expr.eval(self.context)? {
                    Evaluated::Unset => return Ok(()),
                    other => other.bytes(),
                };
                let before = match self.before(position, column) {
                    Some(CellData::Atomic(cell)) => cell.get(self.context.seconds()),
                    _ => None,
                };
                // With a null it is null.
                match (before, other) {
                    (Some(a), Some(b)) => {
                        let minus = matches!(change, Change::Minus(_));
                        self.cell(Some(types::calculate(&column.ty, a, &b, minus)?))
                    }
                    _ => self.cell(None),
                }
            }
            _ => {
                return Err(CqlError::invalid(format!(
                    "Invalid operation on column {}: it is not a collection",
                    column.name
                )));
            }
        };
        row.set(column.id, CellData::Atomic(cell));
        Ok(())
    }

    fn cell(&self, value: Option<Bytes>) -> AtomicCell {
        match value {
            Some(bytes) => AtomicCell::live(self.timestamp, bytes, self.ttl),
            None => AtomicCell::dead(self.timestamp),
        }
    }

    fn put(&self, row: &mut Row, column: &Column, key: Bytes, value: Option<Bytes>) {
        let element = Element {
            cell: self.cell(value),
            key: key.clone(),
        };
        row.collection_mut(column.id)
            .cells
            .insert(element_position(column, &key), element);
    }

    fn change_multi(
        &mut self,
        row: &mut Row,
        position: Option<&Vec<u8>>,
        column: &Column,
        kind: MultiKind,
        change: &Change,
    ) -> Result<(), CqlError> {
        let value = |expr: &Expr| expr.eval(self.context);
        let key = |expr: &Expr, what: &str| {
            value(expr)?
                .bytes()
                .ok_or_else(|| CqlError::invalid(format!("Invalid null {what}")))
        };
        match change {
            Change::Set(expr) => {
                let value = value(expr)?;
                if value == Evaluated::Unset {
                    return Ok(());
                }
                row.collection_mut(column.id).tombstone = self.timestamp - 1;
                if let Evaluated::Value(bytes) = value {
                    self.add(row, column, kind, &bytes)?;
                }
            }
            Change::Add(expr) => {
                if let Evaluated::Value(bytes) = value(expr)? {
                    row.collection_mut(column.id);
                    self.add(row, column, kind, &bytes)?;
                }
            }
            Change::Prepend(expr) => {
                if let Evaluated::Value(bytes) = value(expr)? {
                    let items = types::elements(&bytes);
                    let keys = self.sequence.prepend(self.timestamp, items.len())?;
                    row.collection_mut(column.id);
                    for (key, item) in keys.into_iter().zip(items) {
                        self.put(row, column, key, Some(bytes.slice_ref(item)));
                    }
                }
            }
            Change::Remove(expr) => {
                let Evaluated::Value(bytes) = value(expr)? else {
                    return Ok(());
                };
                let items = types::elements(&bytes);
                if kind == MultiKind::List {
                    let found = self.matching(position, column, &items);
                    if !found.is_empty() {
                        row.collection_mut(column.id);
                    }
                    for key in found {
                        self.put(row, column, key, None);
                    }
                } else {
                    row.collection_mut(column.id);
                    for item in items {
                        self.put(row, column, bytes.slice_ref(item), None);
                    }
                }
            }
            Change::SetElement(at, expr) => {
                let value = value(expr)?;
                if value == Evaluated::Unset {
                    return Ok(());
                }
                let key = match kind {
                    MultiKind::List => self.list_element(
                        position,
                        column,
                        &key(at, "value for list index")?,
                        "set",
                    )?,
                    _ => key(at, "map key")?,
                };
                self.put(row, column, key, value.bytes());
            }
            Change::SetListElement(at, expr) => {
                let value = value(expr)?;
                if value != Evaluated::Unset {
                    let key = key(at, "value for list index")?;
                    self.put(row, column, key, value.bytes());
                }
            }
            Change::DeleteElement(at) => {
                let key = match kind {
                    MultiKind::List => self.list_element(
                        position,
                        column,
                        &key(at, "value for list index")?,
                        "delete",
                    )?,
                    MultiKind::Set => key(at, "set element")?,
                    _ => key(at, "map key")?,
                };
                self.put(row, column, key, None);
            }
            Change::SetField(index, expr) => {
                let value = value(expr)?;
                if value != Evaluated::Unset {
                    self.put(row, column, field_key(*index), value.bytes());
                }
            }
            Change::DeleteField(index) => self.put(row, column, field_key(*index), None),
            Change::Delete => row.collection_mut(column.id).tombstone = self.timestamp,
            Change::Plus(_) | Change::Minus(_) => {
                return Err(CqlError::invalid(format!(
                    "Invalid operation on column {}: it is not a number",
                    column.name
                )));
            }
        }
        Ok(())
    }

    /// Adds all elements of a serialised collection.
    fn add(
        &mut self,
        row: &mut Row,
        column: &Column,
        kind: MultiKind,
        bytes: &Bytes,
    ) -> Result<(), CqlError> {
        let own = |part: &[u8]| bytes.slice_ref(part);
        match kind {
            MultiKind::Set => {
                for item in types::elements(bytes) {
                    self.put(row, column, own(item), Some(Bytes::new()));
                }
            }
            MultiKind::List => {
                let items = types::elements(bytes);
                let keys = self.sequence.append(self.timestamp, items.len())?;
                for (key, item) in keys.into_iter().zip(items) {
                    self.put(row, column, key, Some(own(item)));
                }
            }
            MultiKind::Map => {
                for (key, value) in types::map_entries(bytes) {
                    self.put(row, column, own(key), Some(own(value)));
                }
            }
            MultiKind::Udt { fields } => {
                for (index, field) in types::tuple_fields(bytes)
                    .into_iter()
                    .take(fields)
                    .enumerate()
                {
                    if let Some(field) = field {
                        self.put(row, column, field_key(index), Some(own(field)));
                    }
                }
            }
        }
        Ok(())
    }

    fn live_list(&self, position: Option<&Vec<u8>>, column: &Column) -> Vec<(Bytes, Bytes)> {
        match self.before(position, column) {
            Some(CellData::Multi(collection)) => collection
                .live(self.context.seconds())
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
            _ => Vec::new(),
        }
    }

    fn matching(&self, position: Option<&Vec<u8>>, column: &Column, items: &[&[u8]]) -> Vec<Bytes> {
        let Shape::List(element) = shape(&column.ty) else {
            return Vec::new();
        };
        let wanted: Vec<_> = items.iter().map(|i| order::value(element, i)).collect();
        let list = self.live_list(position, column);
        list.into_iter()
            .filter(|(_, v)| wanted.contains(&order::value(element, v)))
            .map(|(k, _)| k)
            .collect()
    }

    fn list_element(
        &self,
        position: Option<&Vec<u8>>,
        column: &Column,
        index: &Bytes,
        what: &str,
    ) -> Result<Bytes, CqlError> {
        let list = self.live_list(position, column);
        if list.is_empty() {
            let preposition = if what == "set" { "on" } else { "from" };
            return Err(CqlError::invalid(format!(
                "Attempted to {what} an element {preposition} a list which is null"
            )));
        }
        let index = types::int(index).unwrap_or(-1);
        usize::try_from(index)
            .ok()
            .and_then(|i| list.get(i))
            .map(|(key, _)| key.clone())
            .ok_or_else(|| {
                CqlError::invalid(format!(
                    "List index {index} out of bound, list has size {}",
                    list.len()
                ))
            })
    }
}

pub(crate) fn field_key(index: usize) -> Bytes {
    Bytes::copy_from_slice(&(index as i16).to_be_bytes())
}

/// Where an element stands among those of its column.
pub(crate) fn element_position(column: &Column, key: &[u8]) -> Vec<u8> {
    match (column.multi, shape(&column.ty)) {
        (Some(MultiKind::List), _) => order::value(&CqlType::Timeuuid, key),
        (Some(MultiKind::Set), Shape::List(element)) => order::value(element, key),
        (_, Shape::Map(key_type, _)) => order::value(key_type, key),
        _ => key.to_vec(),
    }
}
