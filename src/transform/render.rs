//! What becomes of a change that no transform routed: a record with the change as JSON.
//!
//! Topic: `[sink] topic`. Key: the partition key's columns as a JSON object, so that the changes of a partition
//! stay in order; with `sink.key = "primary-key"` the clustering key's as well, so that compaction keeps every row.
//! A change that is not of one row (of a partition, a range, static columns) has the partition key then, too: with
//! the bound of a range as its key it would take the place of the row that stands there. Value, which a delete of
//! exactly what the key names does without where `sink.tombstones` is set:
//!
//! ```json
//! {"operation": "update", "time": "2026-01-31T12:00:00.123456Z", "table": "ks.t", "ttl": 60,
//!  "columns": {"id": 1, "name": null, "tags": {"added": ["a"], "removed": ["b"]}},
//!  "preimage": {…}, "postimage": {…}, "range_end": {"operation": "range-delete-end-inclusive", "columns": {…}}}
//! ```
//!
//! A change that came late has `"late": true`. One whose image the log has, but the source could not hold together
//! with it, has `"missing": "preimage; …"`, which says why.
//!
//! Columns that the change did not touch are left out. Values have the JSON form of
//! [`penstock_plugin_encoding::cql`]. A non-frozen collection or UDT that was overwritten as a whole, or that
//! stands in an image, is a plain value; else it is an object of what was `added` and `removed`. There, and only
//! there, a list is an object by timeuuid, as the log has it.

use std::collections::HashMap;
use std::fmt::Write as _;

use penstock_plugin_encoding::cql::write_json_string;
use penstock_plugin_encoding::{ColumnKind, ColumnTag, CqlType, CqlValue, Mark, Operation, Row};

use super::draft::Draft;
use crate::change::{Batch, Record, Slice, TableSchema};
use crate::config::settings::{RecordKey, Sink};
use crate::sink::headers;

/// Renders changes; keeps the parsed types of the tables that it saw.
#[derive(Debug, Default)]
pub(super) struct Renderer {
    types: HashMap<u32, Vec<Result<ColumnType, String>>>,
    key: String,
    value: String,
}

#[derive(Debug)]
struct ColumnType {
    cql: CqlType,
    log: CqlType,
    removed: Option<CqlType>,
}

impl Renderer {
    /// A change as JSON, in one line.
    ///
    /// # Errors
    /// A value that is not of its column's type.
    pub(super) fn line(&mut self, batch: &Batch, change: u32) -> Result<String, String> {
        let row = batch.rows.get(change as usize).ok_or("no such row")?;
        let table = batch.table(row.table()).ok_or("its table is not known")?;
        let types = self
            .types
            .entry(table.id)
            .or_insert_with(|| parse_types(table));
        let mut line = String::new();
        write_change(batch, &row, table, types, &mut line)?;
        Ok(line)
    }

    /// The record of a change: `sink` says its topic, its key, and whether a delete has a value.
    ///
    /// # Errors
    /// A value that is not of its column's type, or a topic that no broker would take.
    pub(super) fn render(
        &mut self,
        draft: &mut Draft,
        change: u32,
        sink: &Sink,
        pipeline: &str,
    ) -> Result<Record, String> {
        let batch = &draft.batch.source;
        let row = batch.rows.get(change as usize).ok_or("no such row")?;
        let table = batch.table(row.table()).ok_or("its table is not known")?;
        let types = self
            .types
            .entry(table.id)
            .or_insert_with(|| parse_types(table));
        self.key.clear();
        self.value.clear();
        let kind = |index: usize| table.columns[index].kind;
        let by_row = sink.key == RecordKey::Primary && is_of_one_row(&row, table);
        write_columns(&row, table, types, &mut self.key, &|i| match kind(i) {
            ColumnKind::PartitionKey => true,
            ColumnKind::ClusteringKey => by_row,
            ColumnKind::Static | ColumnKind::Regular => false,
        })?;
        let tombstone = sink.tombstones && deletes_what_it_names(&row, table, by_row);
        if !tombstone {
            write_change(batch, &row, table, types, &mut self.value)?;
        }
        let name = sink
            .topic
            .replace("{pipeline}", pipeline)
            .replace("{keyspace}", &table.keyspace)
            .replace("{table}", &table.name);
        let topic = draft.topic(&name)?;
        let headers = draft.batch.headers.len() as u32;
        Ok(Record {
            source: change,
            topic,
            key: draft.keep(self.key.as_bytes()),
            value: match tombstone {
                true => Slice::Null,
                false => draft.keep(self.value.as_bytes()),
            },
            headers: headers..headers,
        })
    }
}

/// Whether the change is of the one row that its clustering key names. A write of static columns names none.
fn is_of_one_row(row: &Row<'_>, table: &TableSchema) -> bool {
    let single = matches!(
        row.operation(),
        Operation::Insert | Operation::Update | Operation::RowDelete | Operation::TtlRowDelete
    );
    let named = |(index, column): (usize, &crate::change::Column)| {
        column.kind != ColumnKind::ClusteringKey
            || matches!(row.column(index), Some((ColumnTag::Value, _)))
    };
    single && table.columns.iter().enumerate().all(named)
}

/// Whether all that the record's key stands for is gone with this change: the row, or the partition.
fn deletes_what_it_names(row: &Row<'_>, table: &TableSchema, by_row: bool) -> bool {
    let clustered = || {
        let mut kinds = table.columns.iter().map(|c| c.kind);
        kinds.any(|kind| kind == ColumnKind::ClusteringKey)
    };
    match row.operation() {
        Operation::RowDelete | Operation::TtlRowDelete => by_row || !clustered(),
        Operation::PartitionDelete | Operation::TtlPartitionDelete => true,
        _ => false,
    }
}

fn parse_types(table: &TableSchema) -> Vec<Result<ColumnType, String>> {
    let parse = |column: &crate::change::Column| {
        let cql: CqlType = column.cql_type.parse().map_err(|e| format!("{e}"))?;
        Ok(ColumnType {
            log: cql.log_type(),
            removed: cql.removed_type(),
            cql,
        })
    };
    table.columns.iter().map(parse).collect()
}

type Types = [Result<ColumnType, String>];

fn write_change(
    batch: &Batch,
    row: &Row<'_>,
    table: &TableSchema,
    types: &Types,
    out: &mut String,
) -> Result<(), String> {
    let meta = row.meta();
    let time = jiff::Timestamp::from_microsecond(meta.time_us).map_err(|e| e.to_string())?;
    let name = meta.operation.name();
    put(
        out,
        format_args!("{{\"operation\":\"{name}\",\"time\":\"{time}\",\"table\":"),
    );
    write_json_string(&format!("{}.{}", table.keyspace, table.name), out);
    if meta.ttl > 0 {
        put(out, format_args!(",\"ttl\":{}", meta.ttl));
    }
    if row.is_marked(Mark::Late) {
        out.push_str(",\"late\":true");
    }
    if let Some(missing) = headers::missing(row) {
        out.push_str(",\"missing\":");
        write_json_string(missing, out);
    }
    out.push_str(",\"columns\":");
    write_columns(row, table, types, out, &|_| true)?;
    let linked = |index: Option<u32>| batch.rows.get(index? as usize);
    if let Some(image) = linked(row.preimage()) {
        out.push_str(",\"preimage\":");
        write_columns(&image, table, types, out, &|_| true)?;
    }
    if let Some(end) = linked(row.end()) {
        if end.operation() == Operation::PostImage {
            out.push_str(",\"postimage\":");
            write_columns(&end, table, types, out, &|_| true)?;
        } else {
            let name = end.operation().name();
            put(
                out,
                format_args!(",\"range_end\":{{\"operation\":\"{name}\",\"columns\":"),
            );
            write_columns(&end, table, types, out, &|_| true)?;
            out.push('}');
        }
    }
    out.push('}');
    Ok(())
}

fn write_columns(
    row: &Row<'_>,
    table: &TableSchema,
    types: &Types,
    out: &mut String,
    wanted: &dyn Fn(usize) -> bool,
) -> Result<(), String> {
    let image = matches!(row.operation(), Operation::PreImage | Operation::PostImage);
    out.push('{');
    let mut first = true;
    for (index, column) in table.columns.iter().enumerate() {
        let Some((tag, bytes)) = row.column(index) else {
            continue;
        };
        if matches!(tag, ColumnTag::Unchanged | ColumnTag::Unsent) || !wanted(index) {
            continue;
        }
        if !std::mem::take(&mut first) {
            out.push(',');
        }
        write_json_string(&column.name, out);
        out.push(':');
        let written = match &types[index] {
            Ok(types) => write_column(types, tag, bytes, image, out),
            Err(e) => Err(e.clone()),
        };
        written.map_err(|e| format!("column {}: {e}", column.name))?;
    }
    out.push('}');
    Ok(())
}

fn write_column(
    types: &ColumnType,
    tag: ColumnTag,
    bytes: &[u8],
    image: bool,
    out: &mut String,
) -> Result<(), String> {
    let write = |t: &CqlType, bytes: &[u8], out: &mut String| {
        let value = CqlValue::decode(t, bytes).map_err(|e| e.to_string())?;
        value.write_json(out).map_err(|e| e.to_string())
    };
    let removed = |bytes: &[u8], out: &mut String| match &types.removed {
        Some(t) => write(t, bytes, out),
        None => Err("has no elements to remove".to_owned()),
    };
    match tag {
        ColumnTag::Unchanged | ColumnTag::Unsent | ColumnTag::Null => out.push_str("null"),
        ColumnTag::Value if types.cql.is_multi_cell() && !image => {
            out.push_str("{\"added\":");
            write(&types.log, bytes, out)?;
            out.push('}');
        }
        ColumnTag::Value | ColumnTag::Replaced => {
            let value = CqlValue::decode(&types.log, bytes).map_err(|e| e.to_string())?;
            let value = match value {
                value if types.cql.is_multi_cell() && is_nothing(&value) => CqlValue::Null,
                // In the order of their timeuuids, which is the list's.
                CqlValue::Map(cells) if matches!(types.cql, CqlType::List(_)) => {
                    CqlValue::Sequence(cells.into_iter().map(|(_, value)| value).collect())
                }
                value => value,
            };
            value.write_json(out).map_err(|e| e.to_string())?;
        }
        ColumnTag::Removed => {
            out.push_str("{\"removed\":");
            removed(bytes, out)?;
            out.push('}');
        }
        ColumnTag::Merged => {
            let (len, rest) = bytes.split_first_chunk::<4>().ok_or("truncated")?;
            let len = u32::from_le_bytes(*len) as usize;
            let (added, gone) = rest.split_at_checked(len).ok_or("truncated")?;
            out.push_str("{\"added\":");
            write(&types.log, added, out)?;
            out.push_str(",\"removed\":");
            removed(gone, out)?;
            out.push('}');
        }
    }
    Ok(())
}

/// A non-frozen collection without elements, or UDT without fields, does not exist: it reads as null. The log has
/// it all the same where its last part was removed.
fn is_nothing(value: &CqlValue<'_>) -> bool {
    match value {
        CqlValue::Sequence(elements) => elements.is_empty(),
        CqlValue::Map(cells) => cells.is_empty(),
        CqlValue::Udt(fields) => fields.iter().all(|(_, value)| *value == CqlValue::Null),
        _ => false,
    }
}

fn put(out: &mut String, args: std::fmt::Arguments<'_>) {
    out.write_fmt(args).expect("a string takes all text");
}
