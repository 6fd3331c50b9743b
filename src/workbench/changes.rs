//! Changes from the JSON form in which they are rendered: what `plugin run`, `plugin test` and `penstock test` read.

use std::sync::Arc;
use std::time::Instant;

use penstock_conditions::exact;
use penstock_plugin_encoding::{
    ColumnKind, ColumnTag, CqlType, Mark, Operation, RowMeta, RowsBuilder, record_table, shape,
};
use serde_json::{Map, Value};
use uuid::{NoContext, Timestamp, Uuid};

use super::values;
use crate::change::{Batch, Column, Position, StreamId, TableSchema};
use crate::transform::{Given, Plain};

/// When a change without a time was written: 2026-01-01T00:00:00Z.
const EPOCH_US: i64 = 1_767_225_600_000_000;

/// The tables that changes are of.
#[derive(Clone, Debug, Default)]
pub struct Tables(Vec<Arc<TableSchema>>);

impl Tables {
    /// Adds a table, or puts another shape in the place of the one that it has: `keyspace.name`, and
    /// `column type [primary|clustering|static], …`.
    ///
    /// # Errors
    /// What is not so written.
    pub fn add(&mut self, name: &str, columns: &str) -> Result<(), String> {
        let Some((keyspace, table)) = name.split_once('.') else {
            return Err(format!("table {name:?}: expected keyspace.name"));
        };
        let columns = shape::columns(columns).map_err(|e| format!("table {name}: {e}"))?;
        let column = |column: shape::Column<'_>| Column {
            name: column.name.to_owned(),
            cql_type: column.cql_text.to_owned(),
            kind: column.kind,
        };
        let columns = columns.into_iter().map(column).collect();
        self.0.retain(|t| t.keyspace != keyspace || t.name != table);
        self.0.push(Arc::new(TableSchema {
            id: self.0.iter().map(|t| t.id).max().map_or(1, |id| id + 1),
            keyspace: keyspace.to_owned(),
            name: table.to_owned(),
            columns,
        }));
        Ok(())
    }

    /// These.
    pub fn of(tables: Vec<Arc<TableSchema>>) -> Self {
        Self(tables)
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<TableSchema>] {
        &self.0
    }

    /// The table of a change: by `keyspace.name`, by the name alone, or the only one there is.
    fn find(&self, name: Option<&str>) -> Result<&Arc<TableSchema>, String> {
        let known = || {
            let names: Vec<String> = self
                .0
                .iter()
                .map(|t| format!("{}.{}", t.keyspace, t.name))
                .collect();
            if names.is_empty() {
                "no table is described".to_owned()
            } else {
                format!("there are: {}", names.join(", "))
            }
        };
        match (name, &self.0[..]) {
            (None, [only]) => Ok(only),
            (None, _) => Err(format!("`table` is missing; {}", known())),
            (Some(name), tables) => tables
                .iter()
                .find(|t| name == t.name || name.split_once('.') == Some((&t.keyspace, &t.name)))
                .ok_or_else(|| format!("unknown table {name:?}; {}", known())),
        }
    }
}

/// A batch of changes and records, one item for each that was given.
#[derive(Debug)]
pub struct Sheet {
    /// What a chain is given.
    pub batch: Batch,
    /// The items, each with its row.
    pub given: Vec<Given>,
    /// The row of each item.
    pub rows: Vec<u32>,
}

/// Makes a batch of changes (and records, where `{"record": …}` stands for a change).
///
/// # Errors
/// The number of the change, counted from 1, the column, and what is wrong.
pub fn read(tables: &Tables, changes: &[Value]) -> Result<Sheet, String> {
    let mut sheet = Builder {
        tables,
        rows: RowsBuilder::new(),
        positions: Vec::new(),
        given: Vec::new(),
        items: Vec::new(),
    };
    for (change, number) in changes.iter().zip(1..) {
        sheet
            .item(change, number)
            .map_err(|e| format!("change {number}: {e}"))?;
    }
    Ok(sheet.finish())
}

struct Builder<'a> {
    tables: &'a Tables,
    rows: RowsBuilder,
    positions: Vec<Position>,
    given: Vec<Given>,
    items: Vec<u32>,
}

impl Builder<'_> {
    fn item(&mut self, value: &Value, number: u32) -> Result<(), String> {
        let change = value.as_object().ok_or("expected an object")?;
        if let Some(record) = change.get("record") {
            known(change, &["record"])?;
            let plain = plain(record)?;
            let meta = meta(Operation::Insert, record_table::ID, EPOCH_US, 0);
            let row = self.row(meta, number, &[]);
            self.given.push(Given::Record(row, plain));
            self.items.push(row);
            return Ok(());
        }
        known(
            change,
            &[
                "operation",
                "table",
                "time",
                "ttl",
                "late",
                "missing",
                "columns",
                "nulls",
                "preimage",
                "postimage",
                "range_end",
            ],
        )?;
        let table = self.tables.find(text(change, "table")?)?.clone();
        let operation = match text(change, "operation")? {
            None => Operation::Insert,
            Some(name) => operation(name)?,
        };
        let time_us = match text(change, "time")? {
            None => EPOCH_US + i64::from(number),
            Some(time) => time
                .parse::<jiff::Timestamp>()
                .map_err(|_| {
                    format!("`time` is {time:?}: expected e.g. \"2026-01-31T12:00:00.123456Z\"")
                })?
                .as_microsecond(),
        };
        let ttl = match change.get("ttl") {
            None => 0,
            Some(ttl) => ttl
                .as_u64()
                .and_then(|ttl| u32::try_from(ttl).ok())
                .ok_or_else(|| format!("`ttl` is {ttl}: expected seconds"))?,
        };
        let meta = |operation| meta(operation, table.id, time_us, ttl);
        let preimage = match change.get("preimage") {
            None => None,
            Some(columns) => Some(self.image(
                meta(Operation::PreImage),
                number,
                &table,
                columns,
                "preimage",
            )?),
        };
        let mut cells = cells(&table, change.get("columns"), false)?;
        for name in nulls(change)? {
            cells[column(&table, name)?] = (ColumnTag::Null, Vec::new());
        }
        let part = |c: &Column| c.kind == ColumnKind::PartitionKey;
        let mut parts = table.columns.iter().zip(&cells).filter(|(c, _)| part(c));
        if let Some((key, _)) = parts.find(|(_, (tag, _))| *tag != ColumnTag::Value) {
            return Err(format!(
                "column `{}` has no value: every change has its partition key, e.g. columns = {{ {} = … }}",
                key.name, key.name
            ));
        }
        let row = self.row(meta(operation), number, &cells);
        let end = match (change.get("postimage"), change.get("range_end")) {
            (Some(_), Some(_)) => {
                return Err("a change has `postimage` or `range_end`, not both".to_owned());
            }
            (Some(columns), None) => Some(self.image(
                meta(Operation::PostImage),
                number,
                &table,
                columns,
                "postimage",
            )?),
            (None, Some(end)) => {
                let end = end.as_object().ok_or("`range_end`: expected an object")?;
                known(end, &["operation", "columns"])?;
                let name = text(end, "operation")?.unwrap_or("range-delete-end-inclusive");
                let cells = self::cells(&table, end.get("columns"), false)
                    .map_err(|e| format!("`range_end`: {e}"))?;
                Some(self.row(meta(self::operation(name)?), number, &cells))
            }
            (None, None) => None,
        };
        if let Some(preimage) = preimage {
            self.rows.link_preimage(row, preimage);
        }
        if let Some(end) = end {
            self.rows.link_end(row, end);
        }
        match change.get("late") {
            None | Some(Value::Bool(false)) => {}
            Some(Value::Bool(true)) => self.rows.mark(row, Mark::Late),
            Some(late) => return Err(format!("`late` is {late}: expected true or false")),
        }
        if let Some(missing) = text(change, "missing")? {
            let mark = if missing.starts_with("preimage") {
                Mark::PreimageMissing
            } else {
                Mark::EndMissing
            };
            self.rows.mark(row, mark);
        }
        self.given.push(Given::Change(row));
        self.items.push(row);
        Ok(())
    }

    fn image(
        &mut self,
        meta: RowMeta,
        number: u32,
        table: &TableSchema,
        columns: &Value,
        what: &str,
    ) -> Result<u32, String> {
        let cells = cells(table, Some(columns), true).map_err(|e| format!("`{what}`: {e}"))?;
        Ok(self.row(meta, number, &cells))
    }

    fn row(&mut self, meta: RowMeta, number: u32, cells: &[(ColumnTag, Vec<u8>)]) -> u32 {
        let row = self.rows.row(meta, cells.len() as u16);
        for (tag, bytes) in cells {
            self.rows.column(*tag, &[bytes]);
        }
        let seconds = meta.time_us.div_euclid(1_000_000);
        let nanos = meta.time_us.rem_euclid(1_000_000) * 1000;
        let at = Timestamp::from_unix(NoContext, seconds as u64, nanos as u32);
        self.positions.push(Position {
            stream: StreamId([7; 16]),
            time: Uuid::new_v1(at, &node(number)),
            seq: row as i32,
        });
        row
    }

    fn finish(self) -> Sheet {
        Sheet {
            batch: Batch {
                shard: 0,
                epoch: 0,
                rows: self.rows.finish(),
                positions: self.positions,
                tables: self.tables.0.clone(),
                undecodable: Vec::new(),
                progress: Vec::new(),
                read_at: Instant::now(),
            },
            given: self.given,
            rows: self.items,
        }
    }
}

/// Tells changes of one time apart, so that each is a write of its own.
fn node(number: u32) -> [u8; 6] {
    let [a, b, c, d] = number.to_be_bytes();
    [2, 0, a, b, c, d]
}

fn meta(operation: Operation, table: u32, time_us: i64, ttl: u32) -> RowMeta {
    RowMeta {
        operation,
        context: false,
        end_of_batch: true,
        table,
        time_us,
        ttl,
    }
}

fn known(object: &Map<String, Value>, keys: &[&str]) -> Result<(), String> {
    match object.keys().find(|key| !keys.contains(&key.as_str())) {
        None => Ok(()),
        Some(unknown) => Err(
            match crate::config::nearest(unknown, keys.iter().copied()) {
                Some(near) => format!("unknown key `{unknown}`; did you mean `{near}`?"),
                None => format!("unknown key `{unknown}`; there are: {}", keys.join(", ")),
            },
        ),
    }
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match object.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("`{key}` is {other}: expected a string")),
    }
}

/// Those that a change may be, images and ends of ranges apart.
fn operation(name: &str) -> Result<Operation, String> {
    let all = || (-4..=9).filter_map(Operation::from_i8);
    all().find(|op| op.name() == name).ok_or_else(|| {
        let names: Vec<&str> = all().map(Operation::name).collect();
        match crate::config::nearest(name, names.iter().copied()) {
            Some(near) => format!("unknown operation {name:?}; did you mean {near:?}?"),
            None => format!(
                "unknown operation {name:?}; there are: {}",
                names.join(", ")
            ),
        }
    })
}

fn plain(record: &Value) -> Result<Plain, String> {
    let record = record.as_object().ok_or("`record`: expected an object")?;
    known(
        record,
        &["topic", "key", "key_hex", "value", "value_hex", "headers"],
    )?;
    let mut headers = Vec::new();
    match record.get("headers") {
        None => {}
        Some(Value::Object(all)) => {
            for (name, value) in all {
                let value = match value {
                    Value::Null => None,
                    Value::String(text) => Some(text.clone().into_bytes()),
                    other => Some(other.to_string().into_bytes()),
                };
                headers.push((name.clone(), value));
            }
        }
        Some(other) => return Err(format!("`headers` is {other}: expected an object")),
    }
    Ok(Plain {
        topic: text(record, "topic")?
            .ok_or("`topic` is missing")?
            .to_owned(),
        key: field(record, "key")?,
        value: field(record, "value")?,
        headers,
    })
}

/// Bytes: a string is text, an object or an array stands for its JSON, `<name>_hex` for anything.
pub(super) fn field(record: &Map<String, Value>, name: &str) -> Result<Option<Vec<u8>>, String> {
    let hex = format!("{name}_hex");
    if let Some(text) = text(record, &hex)? {
        return match hex::decode(text) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(_) => Err(format!("`{hex}` is {text:?}: expected hex digits")),
        };
    }
    Ok(match record.get(name) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone().into_bytes()),
        Some(json) => Some(json.to_string().into_bytes()),
    })
}

/// The columns that a change sets to null, for files whose form has no null.
fn nulls(change: &Map<String, Value>) -> Result<Vec<&str>, String> {
    let Some(nulls) = change.get("nulls") else {
        return Ok(Vec::new());
    };
    let names = nulls.as_array().map(|all| all.iter().map(Value::as_str));
    names
        .and_then(Iterator::collect)
        .ok_or_else(|| format!("`nulls` is {nulls}: expected the names of columns"))
}

/// Where a column stands.
fn column(table: &TableSchema, name: &str) -> Result<usize, String> {
    let names = || table.columns.iter().map(|c| c.name.as_str());
    if let Some(at) = names().position(|known| known == name) {
        return Ok(at);
    }
    let help = match crate::config::nearest(name, names()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("it has: {}", names().collect::<Vec<_>>().join(", ")),
    };
    let (keyspace, table) = (&table.keyspace, &table.name);
    Err(format!("{keyspace}.{table} has no column `{name}`; {help}"))
}

type Cells = Vec<(ColumnTag, Vec<u8>)>;

fn cells(table: &TableSchema, columns: Option<&Value>, image: bool) -> Result<Cells, String> {
    let mut cells = vec![(ColumnTag::Unchanged, Vec::new()); table.columns.len()];
    let columns = match columns {
        None => return Ok(cells),
        Some(columns) => columns.as_object().ok_or("`columns`: expected an object")?,
    };
    for (name, value) in columns {
        let at = column(table, name)?;
        let cql_type: CqlType = table.columns[at]
            .cql_type
            .parse()
            .map_err(|e| format!("column `{name}`: {e}"))?;
        cells[at] = cell(&cql_type, value, image).map_err(|e| format!("column `{name}`: {e}"))?;
    }
    Ok(cells)
}

fn cell(t: &CqlType, value: &Value, image: bool) -> Result<(ColumnTag, Vec<u8>), String> {
    let encoded =
        |t: &CqlType, value: &Value| Ok::<_, String>(values::encode(t, value)?.unwrap_or_default());
    if value.is_null() {
        return Ok((ColumnTag::Null, Vec::new()));
    }
    if !t.is_multi_cell() {
        return Ok((ColumnTag::Value, encoded(t, value)?));
    }
    // Elements that were added or removed, as the log tells them; anything else overwrote the whole.
    let parts = value.as_object().filter(|o| {
        !image
            && !o.is_empty()
            && o.keys()
                .all(|key| matches!(key.as_str(), "added" | "removed"))
    });
    let Some(parts) = parts else {
        let tag = if image {
            ColumnTag::Value
        } else {
            ColumnTag::Replaced
        };
        return Ok((tag, whole(t, value)?));
    };
    let added = parts
        .get("added")
        .map(|added| elements(t, added))
        .transpose()?;
    let removed = match (parts.get("removed"), t.removed_type()) {
        (Some(removed), Some(t)) => Some(encoded(&t, removed)?),
        _ => None,
    };
    Ok(match (added, removed) {
        (Some(added), None) => (ColumnTag::Value, added),
        (None, Some(removed)) => (ColumnTag::Removed, removed),
        (Some(added), Some(removed)) => {
            let len = (added.len() as u32).to_le_bytes();
            (ColumnTag::Merged, [&len[..], &added, &removed].concat())
        }
        (None, None) => (ColumnTag::Unchanged, Vec::new()),
    })
}

/// Added elements: those of a list by timeuuid, or in their order.
fn elements(t: &CqlType, added: &Value) -> Result<Vec<u8>, String> {
    match (t, added) {
        (CqlType::List(_), Value::Object(_)) => {
            Ok(values::encode(&t.log_type(), added)?.unwrap_or_default())
        }
        _ => whole(t, added),
    }
}

/// A collection as the log has it: a list's elements by timeuuids, in their order.
fn whole(t: &CqlType, value: &Value) -> Result<Vec<u8>, String> {
    let value = match (t, value) {
        (CqlType::List(_), Value::Array(elements)) => {
            let cell = |(at, value): (u32, &Value)| {
                // 100 ns apart: their text is in their order.
                let at = Timestamp::from_unix(NoContext, EPOCH_US as u64 / 1_000_000, at * 100);
                (Uuid::new_v1(at, &[7; 6]).to_string(), value.clone())
            };
            Value::Object((0..).zip(elements).map(cell).collect())
        }
        (CqlType::List(inner), _) => {
            return Err(format!(
                "expected an array for list<{inner}>, found {value}"
            ));
        }
        _ => value.clone(),
    };
    Ok(values::encode(&t.log_type(), &value)?.unwrap_or_default())
}

/// Changes that were written one a line, as `penstock record` does: a line with `columns` as a text describes a table.
///
/// # Errors
/// The number of the line and what is wrong.
pub fn read_lines(text: &str, tables: &mut Tables) -> Result<Vec<Value>, String> {
    let mut changes = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        if line.trim().is_empty() {
            continue;
        }
        let value: Value = serde_json::from_str(&exact(line))
            .map_err(|e| format!("line {number}: not JSON: {e}"))?;
        match (value["table"].as_str(), value["columns"].as_str()) {
            (Some(table), Some(columns)) => tables
                .add(table, columns)
                .map_err(|e| format!("line {number}: {e}"))?,
            _ => changes.push(value),
        }
    }
    Ok(changes)
}
