//! Keyspaces, tables, columns and user-defined types, as they are at one moment.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use indexmap::IndexMap;
use uuid::Uuid;

use super::cell::ColumnId;
use crate::types::CqlType;

/// What a column is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ColumnKind {
    /// Part of the partition key.
    PartitionKey,
    /// Part of the clustering key.
    Clustering,
    /// One value a partition.
    Static,
    /// One value a row.
    Regular,
}

impl ColumnKind {
    /// As `system_schema.columns.kind` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            ColumnKind::PartitionKey => "partition_key",
            ColumnKind::Clustering => "clustering",
            ColumnKind::Static => "static",
            ColumnKind::Regular => "regular",
        }
    }
}

/// What a non-frozen collection or user-defined type is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MultiKind {
    /// Keys only.
    Set,
    /// Keys are timeuuids.
    List,
    /// Keys and values.
    Map,
    /// Keys are field indexes.
    Udt {
        /// How many fields the type has.
        fields: usize,
    },
}

/// What a column of this type is when its elements are written one by one.
pub(crate) fn multi_kind(ty: &CqlType) -> Option<MultiKind> {
    match ty {
        CqlType::List { frozen: false, .. } => Some(MultiKind::List),
        CqlType::Set { frozen: false, .. } => Some(MultiKind::Set),
        CqlType::Map { frozen: false, .. } => Some(MultiKind::Map),
        CqlType::Udt {
            frozen: false,
            fields,
            ..
        } => Some(MultiKind::Udt {
            fields: fields.len(),
        }),
        _ => None,
    }
}

/// A column of a table.
#[derive(Debug, Clone)]
pub struct Column {
    /// As written, without quotes.
    pub name: String,
    /// Its CQL type.
    pub ty: CqlType,
    /// What it is for.
    pub kind: ColumnKind,
    /// Place in the partition or clustering key, or −1 (as in `system_schema.columns.position`).
    pub position: i32,
    /// Whether the clustering order is descending.
    pub descending: bool,
    /// Set when its elements are written one by one.
    pub multi: Option<MultiKind>,
    pub(crate) id: ColumnId,
}

/// Which images of a row a log has before a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Images {
    /// None.
    Off,
    /// The columns affected.
    On,
    /// All columns.
    Full,
}

/// The `cdc` option of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CdcOptions {
    /// Whether writes are logged.
    pub enabled: bool,
    /// Rows before a change.
    pub preimage: Images,
    /// Rows after a change.
    pub postimage: bool,
    /// Log the keys of a change only.
    pub delta_keys: bool,
    /// Seconds a log row lives; 0: for ever.
    pub ttl: i32,
}

impl Default for CdcOptions {
    fn default() -> Self {
        Self {
            enabled: false,
            preimage: Images::Off,
            postimage: false,
            delta_keys: false,
            ttl: 86_400,
        }
    }
}

impl CdcOptions {
    /// As `system_schema.scylla_tables.cdc` has it; empty when the option was never set.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        let preimage = match self.preimage {
            Images::Off => "false",
            Images::On => "true",
            Images::Full => "full",
        };
        [
            ("enabled", self.enabled.to_string()),
            ("preimage", preimage.to_owned()),
            ("postimage", self.postimage.to_string()),
            (
                "delta",
                if self.delta_keys { "keys" } else { "full" }.to_owned(),
            ),
            ("ttl", self.ttl.to_string()),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into()
    }
}

/// The options of a table, with ScyllaDB's defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct TableOptions {
    /// `default_time_to_live`, seconds; 0: none.
    pub default_ttl: i32,
    /// `gc_grace_seconds`.
    pub gc_grace_seconds: i32,
    /// `comment`.
    pub comment: String,
    /// `cdc`; `None` when it was never set.
    pub cdc: Option<CdcOptions>,
    /// The others that hold a map (`caching`, `compaction`, `compression`), as given.
    pub maps: BTreeMap<String, BTreeMap<String, String>>,
    /// The others that hold one value, as given.
    pub values: BTreeMap<String, String>,
}

impl Default for TableOptions {
    fn default() -> Self {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        Self {
            default_ttl: 0,
            gc_grace_seconds: 864_000,
            comment: String::new(),
            cdc: None,
            maps: [
                (
                    "caching".to_owned(),
                    map(&[("keys", "ALL"), ("rows_per_partition", "ALL")]),
                ),
                (
                    "compaction".to_owned(),
                    map(&[("class", "IncrementalCompactionStrategy")]),
                ),
                (
                    "compression".to_owned(),
                    map(&[("sstable_compression", "LZ4WithDictsCompressor")]),
                ),
                (
                    "tombstone_gc".to_owned(),
                    map(&[
                        ("mode", "timeout"),
                        ("propagation_delay_in_seconds", "3600"),
                    ]),
                ),
            ]
            .into(),
            values: BTreeMap::new(),
        }
    }
}

/// The log's columns for one static or regular column of the base table.
#[derive(Debug)]
pub(crate) struct DataColumns {
    pub(crate) value: ColumnId,
    pub(crate) deleted: ColumnId,
    /// Only of a multi-cell column.
    pub(crate) deleted_elements: Option<ColumnId>,
}

/// Where in the log's rows things go.
#[derive(Debug)]
pub(crate) struct LogLayout {
    pub(crate) operation: ColumnId,
    pub(crate) ttl: ColumnId,
    pub(crate) end_of_batch: ColumnId,
    pub(crate) partition_key: Vec<ColumnId>,
    pub(crate) clustering_key: Vec<ColumnId>,
    /// By the base table's column.
    pub(crate) data: HashMap<ColumnId, DataColumns>,
}

/// A column that was dropped.
#[derive(Debug, Clone)]
pub struct DroppedColumn {
    /// Its type.
    pub ty: CqlType,
    /// What it was for.
    pub kind: ColumnKind,
    /// What was written to it up to this time is gone, also when the column is added again; µs since the
    /// epoch.
    pub at: i64,
    pub(crate) id: ColumnId,
}

/// A table.
#[derive(Debug, Clone)]
pub struct TableSchema {
    /// Its keyspace.
    pub keyspace: String,
    /// Its name.
    pub name: String,
    /// Its identity: another for a table created anew with the same name.
    pub id: Uuid,
    /// Its version: another after each change.
    pub version: Uuid,
    /// Partition key, clustering key, static columns by name, regular columns by name: the order in
    /// which `SELECT *` gives them.
    pub columns: Vec<Column>,
    /// How many of them make the partition key.
    pub partition_key_len: usize,
    /// How many make the clustering key.
    pub clustering_key_len: usize,
    /// Columns that were dropped, by name, in that order; also those that have been added again since.
    pub dropped: IndexMap<String, DroppedColumn>,
    /// Its options.
    pub options: TableOptions,
    /// Whether it holds counters.
    pub counter: bool,
    /// Whether it is a CDC log, whose partition key is its own token.
    pub is_log: bool,
    /// How log columns are found; only while CDC is on.
    pub(crate) log: Option<Arc<LogLayout>>,
    pub(crate) next_column: ColumnId,
}

impl TableSchema {
    /// The partition key's columns.
    pub fn partition_key(&self) -> &[Column] {
        &self.columns[..self.partition_key_len]
    }

    /// The clustering key's columns.
    pub fn clustering_key(&self) -> &[Column] {
        &self.columns[self.partition_key_len..self.partition_key_len + self.clustering_key_len]
    }

    /// The static columns.
    pub fn statics(&self) -> impl Iterator<Item = &Column> {
        self.of_kind(ColumnKind::Static)
    }

    /// The regular columns.
    pub fn regular(&self) -> impl Iterator<Item = &Column> {
        self.of_kind(ColumnKind::Regular)
    }

    fn of_kind(&self, kind: ColumnKind) -> impl Iterator<Item = &Column> {
        self.columns[self.partition_key_len + self.clustering_key_len..]
            .iter()
            .filter(move |c| c.kind == kind)
    }

    /// Whether a partition may have more than one row.
    pub fn has_clustering(&self) -> bool {
        self.clustering_key_len > 0
    }

    /// A column by name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.name == name)
    }

    /// A column's place in [`TableSchema::columns`].
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == name)
    }

    pub(crate) fn column_by_id(&self, id: ColumnId) -> Option<&Column> {
        self.columns.iter().find(|c| c.id == id)
    }

    /// The `cdc` option, or what its absence means.
    pub fn cdc(&self) -> CdcOptions {
        self.options.cdc.unwrap_or_default()
    }

    /// Whether writes are logged.
    pub fn cdc_enabled(&self) -> bool {
        self.options.cdc.as_ref().is_some_and(|c| c.enabled)
    }

    /// Adds a column; [`TableSchema::arrange`] must follow.
    pub(crate) fn push_column(&mut self, name: &str, ty: CqlType, kind: ColumnKind) {
        let id = self.next_column;
        self.next_column += 1;
        let multi = match kind {
            ColumnKind::PartitionKey | ColumnKind::Clustering => None,
            ColumnKind::Static | ColumnKind::Regular => multi_kind(&ty),
        };
        self.columns.push(Column {
            name: name.into(),
            ty,
            kind,
            position: -1,
            descending: false,
            multi,
            id,
        });
    }

    /// Takes a column's place in the table away, as of a time in µs since the epoch;
    /// [`TableSchema::arrange`] must follow.
    pub(crate) fn drop_column(&mut self, at: usize, time: i64) {
        let column = self.columns.remove(at);
        let dropped = DroppedColumn {
            ty: column.ty,
            kind: column.kind,
            at: time,
            id: column.id,
        };
        self.drop_as(column.name, dropped);
    }

    /// Notes a column as dropped; of two times the later counts.
    pub(crate) fn drop_as(&mut self, name: String, dropped: DroppedColumn) {
        if self.dropped.get(&name).is_none_or(|d| d.at < dropped.at) {
            self.dropped.insert(name, dropped);
        }
    }

    /// Puts the columns in their order; key columns must have been pushed in the order of the key.
    pub(crate) fn arrange(&mut self) {
        self.columns.sort_by(|a, b| {
            a.kind.cmp(&b.kind).then_with(|| match a.kind {
                ColumnKind::PartitionKey | ColumnKind::Clustering => std::cmp::Ordering::Equal,
                ColumnKind::Static | ColumnKind::Regular => a.name.cmp(&b.name),
            })
        });
        let count = |kind| self.columns.iter().filter(|c| c.kind == kind).count();
        (self.partition_key_len, self.clustering_key_len) = (
            count(ColumnKind::PartitionKey),
            count(ColumnKind::Clustering),
        );
        let keys = self.partition_key_len + self.clustering_key_len;
        for (i, column) in self.columns[..keys].iter_mut().enumerate() {
            let position = if column.kind == ColumnKind::Clustering {
                i - self.partition_key_len
            } else {
                i
            };
            column.position = position as i32;
        }
        self.version = Uuid::new_v4();
    }
}

/// A user-defined type.
#[derive(Debug, Clone)]
pub struct UserType {
    /// Its keyspace.
    pub keyspace: String,
    /// Its name.
    pub name: String,
    /// Its fields, in order.
    pub fields: Vec<(String, CqlType)>,
}

/// A keyspace.
#[derive(Debug, Clone)]
pub struct KeyspaceSchema {
    /// Its name.
    pub name: String,
    /// `replication`, as given.
    pub replication: IndexMap<String, String>,
    /// `durable_writes`.
    pub durable_writes: bool,
    /// The tablets a table starts with, when the keyspace uses tablets; 0: as many as the node likes.
    pub tablets: Option<u32>,
    /// Made by the node itself; statements of clients cannot change it.
    pub internal: bool,
    /// By name.
    pub tables: BTreeMap<String, Arc<TableSchema>>,
    /// By name.
    pub types: BTreeMap<String, Arc<UserType>>,
}

/// All there is.
#[derive(Debug, Clone, Default)]
pub struct Schema {
    /// By name.
    pub keyspaces: BTreeMap<String, Arc<KeyspaceSchema>>,
}

impl Schema {
    /// A table by keyspace and name.
    pub fn table(&self, keyspace: &str, table: &str) -> Option<&Arc<TableSchema>> {
        self.keyspaces.get(keyspace)?.tables.get(table)
    }
}
