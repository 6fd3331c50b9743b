//! The change log of a table: its schema, its rows and its streams.
//!
//! Everything here follows ScyllaDB's own sources (`cdc/log.cc`, `cdc/split.cc`, `cdc/generation.cc`,
//! `cdc/metadata.cc`) and documentation (docs/features/cdc), read at f4a4091c of August 2026.

pub(crate) mod images;
mod split;
pub(crate) mod streams;

use std::collections::BTreeMap;

use bytes::Bytes;
use indexmap::IndexMap;
use uuid::Uuid;

use super::{
    cell::{NEVER, Timestamp},
    error::CqlError,
    schema::{
        CdcOptions, Column, ColumnKind, DataColumns, DroppedColumn, Images, LogLayout, Schema,
        TableOptions, TableSchema,
    },
    types,
};
use crate::types::CqlType;

/// What a log table's name ends with.
pub const LOG_SUFFIX: &str = "_scylla_cdc_log";

/// The values of `cdc$operation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i8)]
pub enum Operation {
    /// The row before the change.
    Preimage = 0,
    /// `UPDATE`, also of the static row.
    Update = 1,
    /// `INSERT`.
    Insert = 2,
    /// `DELETE` of one clustered row.
    RowDelete = 3,
    /// `DELETE` of a partition.
    PartitionDelete = 4,
    /// Start of a range deletion, inclusive.
    RangeStartInclusive = 5,
    /// Start of a range deletion, exclusive.
    RangeStartExclusive = 6,
    /// End of a range deletion, inclusive.
    RangeEndInclusive = 7,
    /// End of a range deletion, exclusive.
    RangeEndExclusive = 8,
    /// The row after the change.
    Postimage = 9,
}

impl Operation {
    /// As the log has it, a `tinyint`.
    fn serialised(self) -> Bytes {
        static CODES: [u8; 10] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
        let at = self as usize;
        Bytes::from_static(&CODES[at..=at])
    }
}

/// The name of a table's log.
pub fn log_name(table: &str) -> String {
    format!("{table}{LOG_SUFFIX}")
}

/// The table that a table is the log of, by its name.
pub(crate) fn base_of<'s>(schema: &'s Schema, log: &TableSchema) -> Option<&'s TableSchema> {
    let base = log.name.strip_suffix(LOG_SUFFIX)?;
    schema.table(&log.keyspace, base).map(|base| &**base)
}

/// Reads the `cdc` option of a `CREATE TABLE` or `ALTER TABLE`; `None` when it does not say whether
/// writes are logged, which is as if it was never set (`cdc::options::to_map`).
pub(crate) fn parse_options(
    map: &BTreeMap<String, String>,
) -> Result<Option<CdcOptions>, CqlError> {
    let mut options = CdcOptions::default();
    let mut said = false;
    for (name, given) in map {
        let value = given.to_lowercase();
        let bad = || {
            CqlError::config(format!(
                "Invalid value for CDC option \"{}\": {given}",
                name.to_lowercase()
            ))
        };
        let flag = match value.as_str() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        };
        match name.to_lowercase().as_str() {
            "enabled" => {
                options.enabled = flag.ok_or_else(bad)?;
                said = true;
            }
            "preimage" if value == "full" => options.preimage = Images::Full,
            "preimage" => {
                options.preimage = if flag.ok_or_else(bad)? {
                    Images::On
                } else {
                    Images::Off
                }
            }
            "postimage" => options.postimage = flag.ok_or_else(bad)?,
            "delta" => {
                options.delta_keys = match value.as_str() {
                    "keys" => true,
                    "full" => false,
                    _ => return Err(bad()),
                }
            }
            "ttl" => {
                options.ttl = value.parse().map_err(|_| bad())?;
                if options.ttl < 0 {
                    return Err(CqlError::config("Invalid CDC option: ttl must be >= 0"));
                }
            }
            _ => return Err(CqlError::config(format!("Invalid CDC option: {name}"))),
        }
    }
    Ok(said.then_some(options))
}

/// The columns a log of `base` has, in the order of their making: name, type, kind.
fn log_columns(base: &TableSchema) -> Vec<(String, CqlType, ColumnKind)> {
    let mut columns = vec![
        (
            "cdc$stream_id".to_owned(),
            CqlType::Blob,
            ColumnKind::PartitionKey,
        ),
        (
            "cdc$time".to_owned(),
            CqlType::Timeuuid,
            ColumnKind::Clustering,
        ),
        (
            "cdc$batch_seq_no".to_owned(),
            CqlType::Int,
            ColumnKind::Clustering,
        ),
        (
            "cdc$operation".to_owned(),
            CqlType::Tinyint,
            ColumnKind::Regular,
        ),
        ("cdc$ttl".to_owned(), CqlType::Bigint, ColumnKind::Regular),
        (
            "cdc$end_of_batch".to_owned(),
            CqlType::Boolean,
            ColumnKind::Regular,
        ),
    ];
    for column in base.partition_key().iter().chain(base.clustering_key()) {
        columns.push((column.name.clone(), column.ty.clone(), ColumnKind::Regular));
    }
    for column in base.statics().chain(base.regular()) {
        let logged = if column.multi.is_some() {
            types::log_type(&column.ty)
        } else {
            column.ty.clone()
        };
        columns.push((column.name.clone(), logged, ColumnKind::Regular));
        columns.push((
            deleted_name(&column.name),
            CqlType::Boolean,
            ColumnKind::Regular,
        ));
        if column.multi.is_some() {
            let keys = types::deleted_elements_type(&column.ty);
            columns.push((
                deleted_elements_name(&column.name),
                keys,
                ColumnKind::Regular,
            ));
        }
    }
    columns
}

fn deleted_name(column: &str) -> String {
    format!("cdc$deleted_{column}")
}

fn deleted_elements_name(column: &str) -> String {
    format!("cdc$deleted_elements_{column}")
}

/// How long a column of a log stays dropped at the least, µs: writes under way may still know it
/// (`column_drop_leeway`).
const DROP_LEEWAY_US: i64 = 5_000_000;

/// The schema of the log of `base`. A log that is there already keeps its identity, its options and its
/// columns, also one that has another type now; what is not in the base table any more is dropped, a while
/// from `now` on, and cannot come back before that.
pub(crate) fn log_schema(
    base: &TableSchema,
    old: Option<&TableSchema>,
    now: Timestamp,
) -> Result<TableSchema, CqlError> {
    let ttl = base.cdc().ttl;
    let name = log_name(&base.name);
    let mut log = TableSchema {
        keyspace: base.keyspace.clone(),
        id: old.map_or_else(|| Uuid::now_v1(&[2, 0, 0, 0, 0, 1]), |o| o.id),
        version: Uuid::new_v4(),
        columns: Vec::new(),
        partition_key_len: 1,
        clustering_key_len: 2,
        options: old.map_or_else(|| log_options(base, ttl), |o| o.options.clone()),
        counter: false,
        is_log: true,
        log: None,
        next_column: old.map_or(0, |o| o.next_column),
        dropped: old.map_or_else(IndexMap::new, |o| o.dropped.clone()),
        name,
    };
    for (name, ty, kind) in log_columns(base) {
        let dropped = log.dropped.get(&name).map_or(NEVER, |d| d.at);
        if dropped > now {
            return Err(CqlError::invalid(format!(
                "Cannot add column {name} because a column with the same name was dropped too recently. Please retry \
                 after {} seconds",
                (dropped - now).div_euclid(1_000_000) + 1
            )));
        }
        match old.and_then(|o| o.column(&name)) {
            Some(known) => log.columns.push(Column {
                ty,
                ..known.clone()
            }),
            None => log.push_column(&name, ty, kind),
        }
    }
    for gone in old.iter().flat_map(|o| &o.columns) {
        if log.column(&gone.name).is_none() {
            let dropped = DroppedColumn {
                ty: gone.ty.clone(),
                kind: gone.kind,
                at: now + DROP_LEEWAY_US,
                id: gone.id,
            };
            log.drop_as(gone.name.clone(), dropped);
        }
    }
    log.arrange();
    Ok(log)
}

fn log_options(base: &TableSchema, ttl: i32) -> TableOptions {
    let text = |pairs: &[(&str, String)]| {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.clone()))
            .collect()
    };
    let mut options = TableOptions {
        comment: format!("CDC log for {}.{}", base.keyspace, base.name),
        gc_grace_seconds: if ttl > 0 { 0 } else { 864_000 },
        ..TableOptions::default()
    };
    let mut compaction = vec![("class", "TimeWindowCompactionStrategy".to_owned())];
    if ttl > 0 {
        // The least window that makes no more than 24 sstables.
        let window = (ttl + 23) / 24;
        compaction.push(("compaction_window_unit", "MINUTES".to_owned()));
        compaction.push(("compaction_window_size", ((window + 59) / 60).to_string()));
        compaction.push((
            "expired_sstable_check_frequency_seconds",
            (window / 2).max(1).to_string(),
        ));
    }
    options.maps.insert("compaction".into(), text(&compaction));
    options.maps.insert(
        "caching".into(),
        text(&[
            ("enabled", "false".into()),
            ("keys", "NONE".into()),
            ("rows_per_partition", "NONE".into()),
        ]),
    );
    options
}

/// How to find the columns of `log` for rows of `base`.
pub(crate) fn layout(base: &TableSchema, log: &TableSchema) -> Option<LogLayout> {
    let id = |name: &str| log.column(name).map(|c| c.id);
    let data = base.statics().chain(base.regular()).map(|column| {
        let columns = DataColumns {
            value: id(&column.name)?,
            deleted: id(&deleted_name(&column.name))?,
            deleted_elements: column
                .multi
                .and_then(|_| id(&deleted_elements_name(&column.name))),
        };
        Some((column.id, columns))
    });
    Some(LogLayout {
        operation: id("cdc$operation")?,
        ttl: id("cdc$ttl")?,
        end_of_batch: id("cdc$end_of_batch")?,
        partition_key: base
            .partition_key()
            .iter()
            .map(|c| id(&c.name))
            .collect::<Option<_>>()?,
        clustering_key: base
            .clustering_key()
            .iter()
            .map(|c| id(&c.name))
            .collect::<Option<_>>()?,
        data: data.collect::<Option<_>>()?,
    })
}
