//! What a dead letter keeps of its change: JSON, of which the very bytes that the source read can be made again. It
//! does not know why the change was given up on.
//!
//! ```json
//! {
//!   "v": 1,
//!   "table": {"keyspace": "shop", "name": "orders",
//!             "columns": [{"name": "id", "type": "uuid", "kind": "partition-key"}, …]},
//!   "row": 1,
//!   "rows": [
//!     {"position": "<stream>:<cdc$time>:<cdc$batch_seq_no>", "operation": "preimage",
//!      "time_us": 1764000000000000, "context": true, …,
//!      "columns": [{"name": "id", "tag": "value", "hex": "…", "value": "…"}, …]},
//!     …
//!   ]
//! }
//! ```
//!
//! `rows[row]` is the change; the others are there because it links to them (its preimage, its postimage, the
//! end of its range). `tag` and `hex` are the column as the plugins' encoding has it
//! ([`penstock_plugin_encoding::rows`]), byte for byte; `value` is the same for people, where it can be
//! decoded. A change that does not fit into its topic is *abridged*: `"abridged"` in place of `table`, `row` and `rows`
//! holds its keys, the size of each column, and a digest by which it is known again when a replay reads it from the
//! log once more. A row that the source could not decode has `"undecodable"` in place of `table`, `row` and `rows`:
//! the raw row as the source gave it.

use std::sync::Arc;
use std::time::Instant;

use penstock_plugin_encoding::{
    ColumnKind, ColumnTag, CqlType, CqlValue, Mark, Operation, Row, RowMeta, RowsBuilder,
};
use serde::{Deserialize, Serialize};
use sha2::Digest;

use crate::change::{Batch, Column, TableSchema};

/// The highest version that this build reads.
const VERSION: u32 = 2;
/// That of an abridged change: builds that read up to 1 know no such.
const ABRIDGED_VERSION: u32 = 2;
/// … and of all others.
const FULL_VERSION: u32 = 1;
/// What a dead letter keeps of its change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    v: u32,
    #[serde(flatten)]
    content: Content,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Content {
    Decoded {
        table: Table,
        row: u32,
        rows: Vec<RowJson>,
    },
    Abridged {
        abridged: Abridged,
    },
    Raw {
        undecodable: serde_json::Value,
    },
}

/// What is kept of a change that is too large to be kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Abridged {
    keyspace: String,
    table: String,
    /// The columns of its keys; without their values where even those are too large.
    keys: Vec<CellJson>,
    /// The bytes of each of its columns, and of those of its images.
    sizes: Vec<Size>,
    /// SHA-256 of what the columns of all its rows hold.
    digest: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Size {
    row: String,
    column: String,
    bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Table {
    keyspace: String,
    name: String,
    columns: Vec<ColumnJson>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ColumnJson {
    name: String,
    #[serde(rename = "type")]
    cql_type: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    PartitionKey,
    ClusteringKey,
    Static,
    Regular,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Tag {
    Unsent,
    Unchanged,
    Null,
    Value,
    Replaced,
    Removed,
    Merged,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct RowJson {
    position: String,
    operation: String,
    time_us: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    ttl: u32,
    #[serde(default, skip_serializing_if = "is_false")]
    context: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    end_of_batch: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    preimage: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    marks: Vec<MarkJson>,
    columns: Vec<CellJson>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum MarkJson {
    Late,
    PreimageMissing,
    EndMissing,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct CellJson {
    name: String,
    tag: Tag,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    hex: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<serde_json::Value>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

fn is_false(b: &bool) -> bool {
    !b
}

impl From<Mark> for MarkJson {
    fn from(mark: Mark) -> Self {
        match mark {
            Mark::Late => Self::Late,
            Mark::PreimageMissing => Self::PreimageMissing,
            Mark::EndMissing => Self::EndMissing,
        }
    }
}

impl From<MarkJson> for Mark {
    fn from(mark: MarkJson) -> Self {
        match mark {
            MarkJson::Late => Self::Late,
            MarkJson::PreimageMissing => Self::PreimageMissing,
            MarkJson::EndMissing => Self::EndMissing,
        }
    }
}

impl From<ColumnKind> for Kind {
    fn from(kind: ColumnKind) -> Self {
        match kind {
            ColumnKind::PartitionKey => Self::PartitionKey,
            ColumnKind::ClusteringKey => Self::ClusteringKey,
            ColumnKind::Static => Self::Static,
            ColumnKind::Regular => Self::Regular,
        }
    }
}

impl From<Kind> for ColumnKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::PartitionKey => Self::PartitionKey,
            Kind::ClusteringKey => Self::ClusteringKey,
            Kind::Static => Self::Static,
            Kind::Regular => Self::Regular,
        }
    }
}

impl From<ColumnTag> for Tag {
    fn from(tag: ColumnTag) -> Self {
        match tag {
            ColumnTag::Unsent => Self::Unsent,
            ColumnTag::Unchanged => Self::Unchanged,
            ColumnTag::Null => Self::Null,
            ColumnTag::Value => Self::Value,
            ColumnTag::Replaced => Self::Replaced,
            ColumnTag::Removed => Self::Removed,
            ColumnTag::Merged => Self::Merged,
        }
    }
}

impl From<Tag> for ColumnTag {
    fn from(tag: Tag) -> Self {
        match tag {
            Tag::Unsent => Self::Unsent,
            Tag::Unchanged => Self::Unchanged,
            Tag::Null => Self::Null,
            Tag::Value => Self::Value,
            Tag::Replaced => Self::Replaced,
            Tag::Removed => Self::Removed,
            Tag::Merged => Self::Merged,
        }
    }
}

/// A dead letter cannot be made into a batch again.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The source could not decode the row, so there is no change to go through the pipeline again.
    #[error("the row could not be decoded: there is no change to replay")]
    Undecodable,
    /// Only an abridgement was kept.
    #[error("only its keys were kept: it has to be read from the log again")]
    Abridged,
    /// The value is not what [`Change`] writes.
    #[error("the dead letter is damaged: {0}")]
    Damaged(String),
}

fn operation(name: &str) -> Option<Operation> {
    (i8::MIN..=i8::MAX)
        .filter_map(Operation::from_i8)
        .find(|o| o.name() == name)
}

impl Change {
    /// Of a row that nobody could decode.
    pub(super) fn undecodable(undecodable: serde_json::Value) -> Self {
        Self {
            v: FULL_VERSION,
            content: Content::Raw { undecodable },
        }
    }

    /// Whether it is but an abridgement.
    pub(super) fn is_abridged(&self) -> bool {
        matches!(self.content, Content::Abridged { .. })
    }

    /// Whether it is the abridgement of this one.
    pub(super) fn is_abridged_from(&self, full: &Self) -> bool {
        match &self.content {
            Content::Abridged { abridged } => full.digest().as_ref() == Some(&abridged.digest),
            Content::Decoded { .. } | Content::Raw { .. } => false,
        }
    }

    /// Whether both are of one version of one table.
    pub(super) fn has_table_of(&self, other: &Self) -> bool {
        match (&self.content, &other.content) {
            (Content::Decoded { table: own, .. }, Content::Decoded { table, .. }) => own == table,
            _ => false,
        }
    }

    /// As a batch of its own, with the very bytes that the source read. `schema` becomes the id of
    /// its table version.
    pub(super) fn rebuild(
        &self,
        shard: u32,
        epoch: u64,
        schema: u32,
    ) -> Result<Batch, RebuildError> {
        let (table, rows) = match &self.content {
            Content::Decoded { table, rows, .. } => (table, rows),
            Content::Abridged { .. } => return Err(RebuildError::Abridged),
            Content::Raw { .. } => return Err(RebuildError::Undecodable),
        };
        let damaged = |what: String| RebuildError::Damaged(what);
        let columns = table.columns.iter().map(|c| Column {
            name: c.name.clone(),
            cql_type: c.cql_type.clone(),
            kind: c.kind.into(),
        });
        let mut builder = RowsBuilder::new();
        let mut positions = Vec::with_capacity(rows.len());
        for row in rows {
            let position = row.position.parse();
            positions.push(position.map_err(|e| damaged(format!("{e}")))?);
            let meta = RowMeta {
                operation: operation(&row.operation)
                    .ok_or_else(|| damaged(format!("no operation {:?}", row.operation)))?,
                context: row.context,
                end_of_batch: row.end_of_batch,
                table: schema,
                time_us: row.time_us,
                ttl: row.ttl,
            };
            let ncols = u16::try_from(row.columns.len())
                .map_err(|_| damaged(format!("{} columns", row.columns.len())))?;
            let index = builder.row(meta, ncols);
            for mark in &row.marks {
                builder.mark(index, (*mark).into());
            }
            for cell in &row.columns {
                let bytes = hex::decode(&cell.hex)
                    .map_err(|e| damaged(format!("column {:?}: {e}", cell.name)))?;
                builder.column(cell.tag.into(), &[&bytes]);
            }
        }
        let linked = |to: u32| ((to as usize) < rows.len()).then_some(to);
        for (index, row) in (0u32..).zip(rows) {
            if let Some(to) = row.preimage {
                let to = linked(to).ok_or_else(|| damaged(format!("no row {to}")))?;
                builder.link_preimage(index, to);
            }
            if let Some(to) = row.end {
                let to = linked(to).ok_or_else(|| damaged(format!("no row {to}")))?;
                builder.link_end(index, to);
            }
        }
        Ok(Batch {
            shard,
            epoch,
            rows: builder.finish(),
            positions,
            tables: vec![Arc::new(TableSchema {
                id: schema,
                keyspace: table.keyspace.clone(),
                name: table.name.clone(),
                columns: columns.collect(),
            })],
            undecodable: Vec::new(),
            progress: Vec::new(),
            read_at: Instant::now(),
        })
    }

    /// The change at `index` and the rows that it links to.
    pub(super) fn of(batch: &Batch, index: usize, schema: &TableSchema) -> Self {
        let row = batch.rows.get(index);
        let links = row.map(|r| [r.preimage(), r.end()]);
        // In the batch's order, so that what was before the change stays before it.
        let mut kept: Vec<u32> = links.into_iter().flatten().flatten().collect();
        kept.push(index as u32);
        kept.sort_unstable();
        kept.dedup();
        let place = |at: u32| kept.binary_search(&at).ok().map(|p| p as u32);
        let types: Vec<Option<CqlType>> = schema
            .columns
            .iter()
            .map(|c| c.cql_type.parse().ok())
            .collect();
        let rows = kept.iter().filter_map(|&at| {
            let row = batch.rows.get(at as usize)?;
            let position = batch.positions.get(at as usize)?;
            let meta = row.meta();
            Some(RowJson {
                position: position.to_string(),
                operation: meta.operation.name().to_owned(),
                time_us: meta.time_us,
                ttl: meta.ttl,
                context: meta.context,
                end_of_batch: meta.end_of_batch,
                preimage: row.preimage().and_then(place),
                end: row.end().and_then(place),
                marks: Mark::ALL
                    .into_iter()
                    .filter(|mark| row.is_marked(*mark))
                    .map(MarkJson::from)
                    .collect(),
                columns: cells(&row, schema, &types),
            })
        });
        Self {
            v: FULL_VERSION,
            content: Content::Decoded {
                row: place(index as u32).unwrap_or(0),
                rows: rows.collect(),
                table: Table {
                    keyspace: schema.keyspace.clone(),
                    name: schema.name.clone(),
                    columns: schema
                        .columns
                        .iter()
                        .map(|c| ColumnJson {
                            name: c.name.clone(),
                            cql_type: c.cql_type.clone(),
                            kind: c.kind.into(),
                        })
                        .collect(),
                },
            },
        }
    }

    /// As the topic has it if it takes no more bytes than these: in full; without what is there for people alone; or
    /// abridged.
    pub fn to_json_within(&self, most: usize) -> Vec<u8> {
        let full = self.to_json();
        if full.len() <= most {
            return full;
        }
        let (plain, Some(digest)) = (self.without_values(), self.digest()) else {
            return full;
        };
        let bare = plain.to_json();
        if bare.len() <= most {
            return bare;
        }
        let abridged = plain.abridged(digest, true).map(|c| c.to_json());
        match abridged {
            Some(json) if json.len() > most => {
                let digest = self.digest().unwrap_or_default();
                plain.abridged(digest, false).map_or(json, |c| c.to_json())
            }
            Some(json) => json,
            None => bare,
        }
    }

    fn without_values(&self) -> Self {
        let mut plain = self.clone();
        if let Content::Decoded { rows, .. } = &mut plain.content {
            for cell in rows.iter_mut().flat_map(|row| &mut row.columns) {
                cell.value = None;
            }
        }
        plain
    }

    /// Of what was set or taken away, whatever else the table has by now.
    fn digest(&self) -> Option<String> {
        let Content::Decoded { rows, .. } = &self.content else {
            return None;
        };
        let mut digest = sha2::Sha256::new();
        for row in rows {
            digest.update(row.position.as_bytes());
            let cells = row.columns.iter();
            for cell in cells.filter(|c| !matches!(c.tag, Tag::Unsent | Tag::Unchanged)) {
                for part in [&*cell.name, &*format!("{:?}", cell.tag), &*cell.hex] {
                    digest.update((part.len() as u64).to_be_bytes());
                    digest.update(part.as_bytes());
                }
            }
        }
        Some(hex::encode(digest.finalize()))
    }

    fn abridged(&self, digest: String, with_keys: bool) -> Option<Self> {
        let Content::Decoded { table, row, rows } = &self.content else {
            return None;
        };
        let is_key = |name: &str| {
            let column = table.columns.iter().find(|c| c.name == name);
            column.is_some_and(|c| matches!(c.kind, Kind::PartitionKey | Kind::ClusteringKey))
        };
        let own = rows.get(*row as usize)?;
        let keys = own.columns.iter().filter(|c| is_key(&c.name));
        let set = |c: &&CellJson| !matches!(c.tag, Tag::Unsent | Tag::Unchanged);
        let size = |row: &RowJson, cell: &CellJson| Size {
            row: row.operation.clone(),
            column: cell.name.clone(),
            bytes: cell.hex.len() / 2,
        };
        Some(Self {
            v: ABRIDGED_VERSION,
            content: Content::Abridged {
                abridged: Abridged {
                    keyspace: table.keyspace.clone(),
                    table: table.name.clone(),
                    keys: match with_keys {
                        true => keys.cloned().collect(),
                        false => Vec::new(),
                    },
                    sizes: rows
                        .iter()
                        .flat_map(|row| row.columns.iter().filter(set).map(move |c| size(row, c)))
                        .collect(),
                    digest,
                },
            },
        })
    }

    /// As the topic has it.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps with string keys are JSON")
    }

    /// Reads it back.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let change: Self = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        if change.v > VERSION {
            return Err(format!(
                "it has version {}, this build reads up to {VERSION}: upgrade penstock",
                change.v
            ));
        }
        Ok(change)
    }
}

fn cells(row: &Row<'_>, schema: &TableSchema, types: &[Option<CqlType>]) -> Vec<CellJson> {
    (0..row.columns())
        .filter_map(|i| {
            let (tag, bytes) = row.column(i)?;
            let cql_type = types.get(i).and_then(Option::as_ref);
            let shown = match tag {
                ColumnTag::Value | ColumnTag::Replaced => cql_type.map(CqlType::log_type),
                ColumnTag::Removed => cql_type.and_then(CqlType::removed_type),
                _ => None,
            };
            let value = shown.and_then(|t| {
                let json = CqlValue::decode(&t, bytes).ok()?.to_json().ok()?;
                serde_json::from_str(&json).ok()
            });
            Some(CellJson {
                name: schema
                    .columns
                    .get(i)
                    .map_or_else(String::new, |c| c.name.clone()),
                tag: tag.into(),
                hex: hex::encode(bytes),
                value,
            })
        })
        .collect()
}
