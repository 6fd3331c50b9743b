//! What the columns of a change log mean, worked out once for each version of a table.
//!
//! A log table has no trace of its base table's keys, and its column names are ambiguous: beside a column
//! `x`, `cdc$deleted_elements_x` holds the removed elements of a collection `x`, or tells that the column
//! `elements_x` was deleted. So roles come from the base table's schema and the log's result metadata
//! together. <https://docs.scylladb.com/manual/stable/features/cdc/cdc-log-table.html>

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use scylla::cluster::metadata::{ColumnKind as DriverKind, Table};
use scylla::frame::response::result::{CollectionType, ColumnType, NativeType};

use crate::change::{Column, ColumnKind, TableSchema};

/// Lengths that a non-null cell of a type may have, beside none at all (CQL's empty value).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Any,
    Exactly(usize),
    /// 4 or 16 bytes.
    Inet,
}

impl Width {
    fn of(typ: &ColumnType<'_>) -> Self {
        use NativeType::*;
        let ColumnType::Native(native) = typ else {
            return Self::Any;
        };
        match native {
            Boolean | TinyInt => Self::Exactly(1),
            SmallInt => Self::Exactly(2),
            Int | Float | Date => Self::Exactly(4),
            BigInt | Counter | Double | Time | Timestamp => Self::Exactly(8),
            Uuid | Timeuuid => Self::Exactly(16),
            Inet => Self::Inet,
            _ => Self::Any,
        }
    }

    pub(super) fn allows(self, len: usize) -> bool {
        len == 0
            || match self {
                Self::Any => true,
                Self::Exactly(n) => len == n,
                Self::Inet => len == 4 || len == 16,
            }
    }
}

/// Where one base column's news stand in a log row.
#[derive(Clone, Debug)]
pub(super) struct Role {
    pub(super) kind: ColumnKind,
    /// The cell with the value.
    pub(super) value: usize,
    /// The cell of `cdc$deleted_<c>`; keys have none.
    pub(super) deleted: Option<usize>,
    /// The cell of `cdc$deleted_elements_<c>`; only multi-cell columns have one.
    pub(super) elements: Option<usize>,
    pub(super) width: Width,
}

/// One shape of a log table, and what its cells mean.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) schema: Arc<TableSchema>,
    /// The result metadata that it was made from.
    pub(super) wire: Vec<(String, ColumnType<'static>)>,
    pub(super) stream: usize,
    pub(super) time: usize,
    pub(super) seq: usize,
    pub(super) operation: usize,
    pub(super) ttl: usize,
    pub(super) end_of_batch: usize,
    /// In the order of `schema.columns`.
    pub(super) roles: Vec<Role>,
    pub(super) has_clustering: bool,
    pub(super) has_static: bool,
}

impl Version {
    /// Whether rows with this metadata are of this version.
    pub(super) fn fits<'a, 'b: 'a>(
        &self,
        mut specs: impl ExactSizeIterator<Item = (&'a str, &'a ColumnType<'b>)>,
    ) -> bool {
        specs.len() == self.wire.len()
            && self
                .wire
                .iter()
                .all(|(name, typ)| specs.next().is_some_and(|(n, t)| n == name && t == typ))
    }
}

/// The rows do not look like those of a change log.
#[derive(Debug, thiserror::Error)]
#[error("the log has no column {0} of the documented type")]
pub(super) struct NotALog(&'static str);

/// A column of the base table, as the driver knows it.
pub(super) struct BaseColumn<'a> {
    pub(super) kind: ColumnKind,
    /// Its place in the key, 0 for others.
    pub(super) order: usize,
    pub(super) typ: &'a ColumnType<'static>,
}

/// The base table by column name.
pub(super) type Base<'a> = HashMap<&'a str, BaseColumn<'a>>;

/// Takes what is needed out of the driver's metadata.
pub(super) fn base(table: &Table) -> Base<'_> {
    let place = |keys: &[String], name: &str| keys.iter().position(|k| k == name);
    let columns = table.columns.iter().map(|(name, column)| {
        let (kind, order) = match column.kind {
            DriverKind::PartitionKey => {
                (ColumnKind::PartitionKey, place(&table.partition_key, name))
            }
            DriverKind::Clustering => (
                ColumnKind::ClusteringKey,
                place(&table.clustering_key, name),
            ),
            DriverKind::Static => (ColumnKind::Static, None),
            _ => (ColumnKind::Regular, None),
        };
        let column = BaseColumn {
            kind,
            order: order.unwrap_or(0),
            typ: &column.typ,
        };
        (name.as_str(), column)
    });
    columns.collect()
}

/// A version, and whether base table and log agree on it. Where they do not, one side's metadata is older.
pub(super) struct Resolved {
    pub(super) version: Version,
    pub(super) agrees: bool,
}

/// Works out the roles of `wire`, the log's result metadata.
pub(super) fn resolve(
    keyspace: &str,
    name: &str,
    base: Option<&Base<'_>>,
    wire: Vec<(String, ColumnType<'static>)>,
) -> Result<Resolved, NotALog> {
    let index: HashMap<&str, usize> = wire
        .iter()
        .enumerate()
        .map(|(i, (n, _))| (n.as_str(), i))
        .collect();
    let meta = |name: &'static str, native: NativeType| {
        index
            .get(name)
            .copied()
            .filter(|&i| wire[i].1 == ColumnType::Native(native))
            .ok_or(NotALog(name))
    };
    let stream = meta("cdc$stream_id", NativeType::Blob)?;
    let time = meta("cdc$time", NativeType::Timeuuid)?;
    let seq = meta("cdc$batch_seq_no", NativeType::Int)?;
    let operation = meta("cdc$operation", NativeType::TinyInt)?;
    let ttl = meta("cdc$ttl", NativeType::BigInt)?;
    let end_of_batch = meta("cdc$end_of_batch", NativeType::Boolean)?;

    // ScyllaDB keeps names that start with `cdc$` to itself, so all others are the base table's.
    let mut agrees = base
        .is_some_and(|b| b.len() == wire.iter().filter(|(n, _)| !n.starts_with("cdc$")).count());
    let mut found = Vec::new();
    for (i, (name, wire_type)) in wire.iter().enumerate() {
        if name.starts_with("cdc$") {
            continue;
        }
        let deleted = index
            .get(format!("cdc$deleted_{name}").as_str())
            .copied()
            .filter(|&i| wire[i].1 == ColumnType::Native(NativeType::Boolean));
        let elements = index
            .get(format!("cdc$deleted_elements_{name}").as_str())
            .copied()
            .filter(|&i| {
                matches!(
                    &wire[i].1,
                    ColumnType::Collection {
                        typ: CollectionType::Set(_),
                        ..
                    }
                )
            });
        let column = base.and_then(|b| b.get(name.as_str()));
        let (kind, order) = column.map_or((ColumnKind::Regular, 0), |c| (c.kind, c.order));
        let multi_cell = column.map_or(elements.is_some(), |c| is_multi_cell(c.typ));
        let text = match column {
            Some(c) if same_in_log(c.typ, wire_type) => type_text(c.typ),
            _ => {
                agrees = false;
                type_text(wire_type)
            }
        };
        agrees &= multi_cell == elements.is_some();
        found.push((
            (kind as u8, order, i),
            Column {
                name: name.clone(),
                cql_type: text,
                kind,
            },
            Role {
                kind,
                value: i,
                deleted,
                elements: elements.filter(|_| multi_cell),
                width: Width::of(wire_type),
            },
        ));
    }
    found.sort_by_key(|(order, ..)| *order);
    let (columns, roles): (Vec<_>, Vec<_>) = found.into_iter().map(|(_, c, r)| (c, r)).unzip();
    let has = |kind| columns.iter().any(|c: &Column| c.kind == kind);
    Ok(Resolved {
        agrees,
        version: Version {
            stream,
            time,
            seq,
            operation,
            ttl,
            end_of_batch,
            has_clustering: has(ColumnKind::ClusteringKey),
            has_static: has(ColumnKind::Static),
            schema: Arc::new(TableSchema {
                id: next_id(),
                keyspace: keyspace.to_owned(),
                name: name.to_owned(),
                columns,
            }),
            roles,
            wire,
        },
    })
}

fn next_id() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Stored cell by cell, so that a statement can change a part of it.
fn is_multi_cell(typ: &ColumnType<'_>) -> bool {
    matches!(
        typ,
        ColumnType::Collection { frozen: false, .. }
            | ColumnType::UserDefinedType { frozen: false, .. }
    )
}

/// Whether a column of this type in the base table has that type in the log.
fn same_in_log(base: &ColumnType<'_>, log: &ColumnType<'_>) -> bool {
    let plain = |t: &str| t.replace("frozen<", "").replace('>', "");
    plain(&log_type_text(base)) == plain(&type_text(log))
}

/// The type in the log: a non-frozen `list<V>` is a `map<timeuuid, V>` there, in deltas and in images; the keys
/// are the cells' positions in the list, in ascending order. Plugins are told the column's own type, from which
/// they work out the same.
fn log_type_text(typ: &ColumnType<'_>) -> String {
    match typ {
        ColumnType::Collection {
            frozen: false,
            typ: CollectionType::List(element),
        } => format!("map<timeuuid, {}>", type_text(element)),
        other => type_text(other),
    }
}

/// A type in CQL notation, a UDT written out as `udt<keyspace.name, field: type, …>`.
pub(super) fn type_text(typ: &ColumnType<'_>) -> String {
    let freeze = |frozen: bool, text: String| {
        if frozen {
            format!("frozen<{text}>")
        } else {
            text
        }
    };
    match typ {
        ColumnType::Native(native) => native_text(native).to_owned(),
        ColumnType::Collection { frozen, typ } => freeze(
            *frozen,
            match typ {
                CollectionType::List(e) => format!("list<{}>", type_text(e)),
                CollectionType::Set(e) => format!("set<{}>", type_text(e)),
                CollectionType::Map(k, v) => format!("map<{}, {}>", type_text(k), type_text(v)),
                other => format!("{other:?}").to_lowercase(),
            },
        ),
        ColumnType::Vector { typ, dimensions } => {
            format!("vector<{}, {dimensions}>", type_text(typ))
        }
        ColumnType::UserDefinedType { frozen, definition } => {
            let (keyspace, name) = (named(&definition.keyspace), named(&definition.name));
            let mut text = format!("udt<{keyspace}.{name}");
            for (field, typ) in &definition.field_types {
                text.push_str(&format!(", {}: {}", named(field), type_text(typ)));
            }
            freeze(*frozen, text + ">")
        }
        ColumnType::Tuple(types) => {
            let types: Vec<_> = types.iter().map(type_text).collect();
            format!("tuple<{}>", types.join(", "))
        }
        other => format!("{other:?}").to_lowercase(),
    }
}

/// A name as the notation has it: in double quotes where it must be.
fn named(name: &str) -> std::borrow::Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !name.is_empty() && name.chars().all(plain) {
        name.into()
    } else {
        crate::cql::quoted(name).into()
    }
}

fn native_text(native: &NativeType) -> &'static str {
    use NativeType::*;
    match native {
        Ascii => "ascii",
        Boolean => "boolean",
        Blob => "blob",
        Counter => "counter",
        Date => "date",
        Decimal => "decimal",
        Double => "double",
        Duration => "duration",
        Float => "float",
        Int => "int",
        BigInt => "bigint",
        Text => "text",
        Timestamp => "timestamp",
        Inet => "inet",
        SmallInt => "smallint",
        TinyInt => "tinyint",
        Time => "time",
        Timeuuid => "timeuuid",
        Uuid => "uuid",
        Varint => "varint",
        // A type of a later driver: its bytes are handed on as they are.
        _ => "blob",
    }
}

#[cfg(test)]
pub(super) mod tests;
