//! A dead letter and its JSON.
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
use std::time::{Instant, SystemTime};

use penstock_plugin_encoding::{
    ColumnKind, ColumnTag, CqlType, CqlValue, Mark, Operation, Row, RowMeta, RowsBuilder,
};
use serde::{Deserialize, Serialize};
use sha2::Digest;

use crate::change::{Batch, Column, Position, RecordBatch, Rejected, TableSchema, Undecodable};

/// The highest version that this build reads.
pub const VERSION: u32 = 2;
/// That of an abridged change: builds that read up to 1 know no such.
const ABRIDGED_VERSION: u32 = 2;
/// … and of all others.
const FULL_VERSION: u32 = 1;
/// Bytes of an error that a letter carries.
const LONGEST_ERROR: usize = 4 << 10;

/// A change that was given up on.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Names it.
    pub position: Position,
    /// `keyspace.table`.
    pub table: String,
    /// [`Operation::name`]; empty for a row that could not be decoded.
    pub operation: String,
    /// The stage that gave up.
    pub stage: Arc<str>,
    /// What went wrong.
    pub error: String,
    /// How often it was tried, replays included.
    pub attempts: u32,
    /// When it failed first.
    pub first_at: SystemTime,
    /// When it failed last.
    pub last_at: SystemTime,
    /// `pipeline.name`.
    pub pipeline: String,
    /// The original, in full.
    pub change: Change,
}

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

impl DeadLetter {
    /// Says in the log that it is kept.
    pub fn log(&self) {
        tracing::warn!(
            stage = &*self.stage, table = self.table, position = %self.position,
            attempts = self.attempts, error = self.error, "change dead-lettered"
        );
    }

    /// Of a change that a stage rejected.
    pub fn of_rejected(pipeline: &str, batch: &Batch, rejected: &Rejected) -> Option<Self> {
        let index = rejected.source as usize;
        let position = *batch.positions.get(index)?;
        let row = batch.rows.get(index)?;
        let schema = batch.table(row.table())?;
        let now = SystemTime::now();
        Some(Self {
            position,
            table: format!("{}.{}", schema.keyspace, schema.name),
            operation: row.operation().name().to_owned(),
            stage: Arc::clone(&rejected.stage),
            error: rejected.error.clone(),
            attempts: rejected.attempts,
            first_at: read_at(batch, now),
            last_at: now,
            pipeline: pipeline.to_owned(),
            change: Change::of(batch, index, schema),
        })
    }

    /// Of a change of which the broker refused a record for good. `poison` is from
    /// [`Delivered`](crate::sink::Delivered).
    pub fn of_poison(pipeline: &str, batch: &RecordBatch, poison: &(u32, String)) -> Option<Self> {
        let record = batch.records.get(poison.0 as usize)?;
        let topic = batch.topics.get(record.topic as usize)?;
        let rejected = Rejected {
            source: record.source,
            stage: "sink".into(),
            error: format!("topic {topic}: {}", poison.1),
            attempts: 1,
        };
        Self::of_rejected(pipeline, &batch.source, &rejected)
    }

    /// Of a row that the source could not decode.
    pub fn of_undecodable(pipeline: &str, batch: &Batch, row: &Undecodable) -> Self {
        let now = SystemTime::now();
        let undecodable = serde_json::from_slice(&row.raw)
            .unwrap_or_else(|_| serde_json::Value::String(hex::encode(&row.raw)));
        Self {
            position: row.position,
            table: row.table.clone(),
            operation: String::new(),
            stage: "source".into(),
            error: row.error.clone(),
            attempts: 1,
            first_at: read_at(batch, now),
            last_at: now,
            pipeline: pipeline.to_owned(),
            change: Change {
                v: FULL_VERSION,
                content: Content::Raw { undecodable },
            },
        }
    }

    /// This letter after a replay that failed as well.
    pub fn failed_again(&self, stage: Arc<str>, error: String) -> Self {
        Self {
            stage,
            error,
            attempts: self.attempts.saturating_add(1),
            last_at: SystemTime::now(),
            ..self.clone()
        }
    }

    /// Whether only an abridgement of the change was kept.
    pub fn is_abridged(&self) -> bool {
        matches!(self.change.content, Content::Abridged { .. })
    }

    /// The letter with its change in full, out of the write that was read from the log again; `None`: that is not the
    /// change that was abridged.
    pub fn restored(&self, write: &Batch) -> Option<Self> {
        let Content::Abridged { abridged } = &self.change.content else {
            return None;
        };
        let index = write.positions.iter().position(|p| *p == self.position)?;
        let schema = write.table(write.rows.get(index)?.table())?;
        let change = Change::of(write, index, schema);
        (change.digest()? == abridged.digest).then(|| Self {
            change,
            ..self.clone()
        })
    }

    /// The error, cut to what a header may well hold.
    pub fn short_error(&self) -> &str {
        &self.error[..self.error.floor_char_boundary(LONGEST_ERROR)]
    }

    /// Whether both are changes of one version of one table, and so may share its id.
    pub fn has_table_of(&self, other: &Self) -> bool {
        match (&self.change.content, &other.change.content) {
            (Content::Decoded { table: own, .. }, Content::Decoded { table, .. }) => own == table,
            _ => false,
        }
    }

    /// The change as a batch of its own, with the very bytes that the source read. `schema` becomes the id of
    /// its table version.
    pub fn rebuild(&self, shard: u32, epoch: u64, schema: u32) -> Result<Batch, RebuildError> {
        let (table, rows) = match &self.change.content {
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
}

/// When the source had the batch, as a time of day.
fn read_at(batch: &Batch, now: SystemTime) -> SystemTime {
    now.checked_sub(batch.read_at.elapsed()).unwrap_or(now)
}

fn operation(name: &str) -> Option<Operation> {
    (i8::MIN..=i8::MAX)
        .filter_map(Operation::from_i8)
        .find(|o| o.name() == name)
}

impl Change {
    /// The change at `index` and the rows that it links to.
    fn of(batch: &Batch, index: usize, schema: &TableSchema) -> Self {
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

/// Which dead letters; what is not set matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// These alone, if there are any.
    pub positions: Vec<Position>,
    /// Exactly this stage.
    pub stage: Option<String>,
    /// `keyspace.table`, or the table's name.
    pub table: Option<String>,
    /// Contained in the error, whatever the case.
    pub error: Option<String>,
    /// Failed last at this time or later.
    pub since: Option<SystemTime>,
    /// Failed last before this time.
    pub until: Option<SystemTime>,
    /// No more than this many, the oldest first.
    pub limit: Option<usize>,
}

impl Filter {
    /// Whether a letter is meant, whatever the limit.
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        // A name may have dots of its own.
        let table = |t: &String| {
            let rest = letter.table.strip_suffix(t.as_str());
            rest.is_some_and(|keyspace| keyspace.is_empty() || keyspace.ends_with('.'))
        };
        (self.positions.is_empty() || self.positions.contains(&letter.position))
            && self.stage.as_ref().is_none_or(|s| *letter.stage == **s)
            && self.table.as_ref().is_none_or(table)
            && self
                .error
                .as_ref()
                .is_none_or(|e| letter.error.to_lowercase().contains(&e.to_lowercase()))
            && self.since.is_none_or(|t| letter.last_at >= t)
            && self.until.is_none_or(|t| letter.last_at < t)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::StreamId;
    use std::time::Duration;
    use uuid::Uuid;

    fn position(seq: i32) -> Position {
        Position {
            stream: StreamId([7; 16]),
            time: Uuid::parse_str("8e3d2f00-e86c-11f0-9d3d-0242ac120002").unwrap(),
            seq,
        }
    }

    /// Unrelated row, preimage, update with every tag, postimage, unrelated row.
    fn batch() -> Batch {
        let column = |name: &str, cql_type: &str, kind| Column {
            name: name.into(),
            cql_type: cql_type.into(),
            kind,
        };
        let columns = vec![
            column("id", "int", ColumnKind::PartitionKey),
            column("name", "text", ColumnKind::Regular),
            column("tags", "set<text>", ColumnKind::Regular),
            column("more", "set<text>", ColumnKind::Static),
            column("note", "text", ColumnKind::Regular),
            column("odd", "not a type", ColumnKind::Regular),
        ];
        let meta = |operation, context| RowMeta {
            operation,
            context,
            end_of_batch: !context,
            table: 3,
            time_us: -17,
            ttl: u32::from(context) * 60,
        };
        let mut b = RowsBuilder::new();
        let other = |b: &mut RowsBuilder| {
            b.row(meta(Operation::Insert, false), 1);
            b.column(ColumnTag::Value, &[&9i32.to_be_bytes()]);
        };
        other(&mut b);
        let pre = b.row(meta(Operation::PreImage, true), 6);
        for _ in 0..6 {
            b.column(ColumnTag::Null, &[]);
        }
        let update = b.row(meta(Operation::Update, false), 6);
        b.column(ColumnTag::Value, &[&5i32.to_be_bytes()]);
        b.column(ColumnTag::Value, &["zwölf".as_bytes()]);
        b.column(
            ColumnTag::Removed,
            &[&1i32.to_be_bytes(), &1i32.to_be_bytes(), b"x"],
        );
        b.merged(b"added", b"removed");
        b.column(ColumnTag::Unchanged, &[]);
        b.column(ColumnTag::Value, &[&[0, 255, 0]]);
        let post = b.row(meta(Operation::PostImage, true), 1);
        b.column(ColumnTag::Value, &[&5i32.to_be_bytes()]);
        other(&mut b);
        b.link_preimage(update, pre);
        b.link_end(update, post);
        b.mark(update, Mark::Late);
        Batch {
            shard: 2,
            epoch: 1,
            rows: b.finish(),
            positions: (0..5).map(position).collect(),
            tables: vec![Arc::new(TableSchema {
                id: 3,
                keyspace: "shop".into(),
                name: "orders".into(),
                columns,
            })],
            undecodable: Vec::new(),
            progress: Vec::new(),
            read_at: Instant::now(),
        }
    }

    fn letter(batch: &Batch, source: u32) -> DeadLetter {
        let rejected = Rejected {
            source,
            stage: "transform.router".into(),
            error: "No such Thing".into(),
            attempts: 2,
        };
        DeadLetter::of_rejected("p", batch, &rejected).unwrap()
    }

    #[test]
    fn a_change_comes_back_byte_for_byte_with_what_it_links_to() {
        let before = batch();
        let mut letter = letter(&before, 2);
        letter.change = Change::from_json(&letter.change.to_json()).unwrap();
        let after = letter.rebuild(0, 9, 3).unwrap();
        assert_eq!(after.rows.len(), 3);
        assert_eq!(after.positions, (1..4).map(position).collect::<Vec<_>>());
        assert_eq!(after.tables, before.tables);
        for (now, then) in (0..3).zip(1..4) {
            let (a, b) = (after.rows.get(now).unwrap(), before.rows.get(then).unwrap());
            assert_eq!(a.meta(), b.meta());
            assert_eq!(a.columns(), b.columns());
            for c in 0..b.columns() {
                assert_eq!(a.column(c), b.column(c), "row {then} column {c}");
            }
        }
        let update = after.rows.get(1).unwrap();
        assert_eq!((update.preimage(), update.end()), (Some(0), Some(2)));
    }

    #[test]
    fn the_json_is_for_people_too() {
        let json: serde_json::Value =
            serde_json::from_slice(&letter(&batch(), 2).change.to_json()).unwrap();
        assert_eq!(json["row"], 1);
        assert_eq!(json["table"]["columns"][0]["kind"], "partition-key");
        let columns = &json["rows"][1]["columns"];
        assert_eq!(columns[0]["value"], 5);
        assert_eq!(columns[1]["value"], "zwölf");
        assert_eq!(columns[1]["hex"], hex::encode("zwölf"));
        assert_eq!(columns[2]["value"], serde_json::json!(["x"]));
        assert_eq!(
            columns[4],
            serde_json::json!({"name": "note", "tag": "unchanged"})
        );
        assert_eq!(columns[5]["value"], serde_json::Value::Null);
    }

    #[test]
    fn what_was_never_decoded_is_kept_and_not_replayed() {
        let raw = Undecodable {
            position: position(4),
            table: "shop.orders".into(),
            error: "three bytes for an int".into(),
            raw: bytes::Bytes::from_static(br#"{"id":"000000"}"#),
        };
        let letter = DeadLetter::of_undecodable("p", &batch(), &raw);
        let back = Change::from_json(&letter.change.to_json()).unwrap();
        assert_eq!(back, letter.change);
        assert!(
            String::from_utf8(letter.change.to_json())
                .unwrap()
                .contains("000000")
        );
        assert!(matches!(
            letter.rebuild(0, 0, 0),
            Err(RebuildError::Undecodable)
        ));
    }

    /// Row 3: a letter always fits.
    #[test]
    fn what_does_not_fit_is_abridged_and_known_again() {
        let before = batch();
        let full = letter(&before, 2);
        let whole = full.change.to_json();
        assert_eq!(full.change.to_json_within(whole.len()), whole);
        // Without what is there for people alone it is still all there.
        let bare = full.change.to_json_within(whole.len() - 1);
        let kept = DeadLetter {
            change: Change::from_json(&bare).unwrap(),
            ..full.clone()
        };
        assert!(!kept.is_abridged() && kept.rebuild(0, 0, 3).is_ok());

        let json = full.change.to_json_within(bare.len() - 1);
        assert!(json.len() < bare.len(), "{} and {}", json.len(), bare.len());
        let abridged = DeadLetter {
            change: Change::from_json(&json).unwrap(),
            ..full.clone()
        };
        assert!(matches!(
            abridged.rebuild(0, 0, 0),
            Err(RebuildError::Abridged)
        ));
        let shown: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(shown["abridged"]["keys"][0]["hex"], "00000005");
        let sizes = shown["abridged"]["sizes"].as_array().unwrap();
        assert!(
            sizes
                .iter()
                .any(|s| s["column"] == "name" && s["bytes"] == 6),
            "{shown}"
        );
        let again = abridged.restored(&before).expect("it is the same change");
        assert_eq!(again.change, full.change);
        // The log has something else at this position: not that.
        let mut other = DeadLetter {
            position: position(0),
            ..abridged
        };
        assert_eq!(other.restored(&before), None);
        other.position = position(9);
        assert_eq!(other.restored(&before), None);
        // And however little there is room for, something is kept.
        assert!(full.change.to_json_within(10).len() < json.len());
    }

    #[test]
    fn damage_is_an_error_and_not_another_change() {
        let letter = letter(&batch(), 2);
        let json = String::from_utf8(letter.change.to_json()).unwrap();
        for (from, to) in [
            (r#""operation":"update""#, r#""operation":"upset""#),
            (r#""preimage":0"#, r#""preimage":7"#),
            (r#""hex":"00000005""#, r#""hex":"0000000""#),
            ("8e3d2f00", "8e3d2f0"),
        ] {
            assert!(json.contains(from), "{from} in {json}");
            let damaged = DeadLetter {
                change: Change::from_json(json.replacen(from, to, 1).as_bytes()).unwrap(),
                ..letter.clone()
            };
            let rebuilt = damaged.rebuild(0, 0, 0);
            assert!(matches!(rebuilt, Err(RebuildError::Damaged(_))), "{to}");
        }
        assert!(
            Change::from_json(json.replace(r#""v":1"#, r#""v":3"#).as_bytes())
                .unwrap_err()
                .contains("upgrade")
        );
    }

    #[test]
    fn filters_combine() {
        let letter = letter(&batch(), 2);
        let matches = |f: Filter| f.matches(&letter);
        assert!(matches(Filter::default()));
        let table = |t: &str| Filter {
            table: Some(t.into()),
            ..Filter::default()
        };
        assert!(matches(table("orders")) && matches(table("shop.orders")));
        assert!(!matches(table("order")));
        let error = Some("no such".to_owned());
        assert!(matches(Filter {
            error: error.clone(),
            stage: Some("transform.router".into()),
            ..Filter::default()
        }));
        assert!(!matches(Filter {
            error,
            since: Some(letter.last_at + Duration::from_secs(1)),
            ..Filter::default()
        }));
        assert!(!matches(Filter {
            positions: vec![position(1)],
            ..Filter::default()
        }));
    }

    #[test]
    fn a_replay_that_fails_keeps_the_first_time() {
        let letter = letter(&batch(), 2);
        let again = letter.failed_again("sink".into(), "too large".into());
        assert_eq!((again.attempts, again.first_at), (3, letter.first_at));
        assert_eq!((&*again.stage, &*again.error), ("sink", "too large"));
        assert!(again.last_at >= letter.last_at);
    }
}
