//! Log rows as they come from the wire → rows in the plugins' encoding, each byte copied once.
//!
//! The unit is the *group*: the rows of one stream and time, which one write made. Links never leave it: a
//! delta is tied to its preimage and postimage by key (in a batch they stand apart), the start of a range
//! delete to its end.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use penstock_plugin_encoding::{ColumnTag, Mark, Operation, RowMeta, RowsBuilder};
use uuid::Uuid;

use super::schema::{Role, Version};
use crate::change::{ColumnKind, Position, StreamId, Undecodable, timeuuid_us};

/// The cells of one log row, in the order of its version's `wire`.
pub(super) type Cells<'f> = [Option<&'f [u8]>];

/// What says where a row stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) position: Position,
    pub(super) end_of_batch: bool,
}

/// One row of a group: its version and its cells.
#[derive(Clone, Copy)]
pub(super) struct LogRow<'f> {
    pub(super) version: &'f Version,
    pub(super) head: Head,
    /// Its first cell in the group's cells.
    pub(super) start: usize,
}

/// Reads a row's position. `Err` holds what could be read, for the dead letter, and what is wrong.
pub(super) fn head(version: &Version, cells: &Cells<'_>) -> Result<Head, (Position, String)> {
    let stream = exact::<16>(cells[version.stream]);
    let time = exact::<16>(cells[version.time]).map(Uuid::from_bytes);
    let seq = exact::<4>(cells[version.seq]).map(i32::from_be_bytes);
    let position = Position {
        stream: StreamId(stream.unwrap_or_default()),
        time: time.unwrap_or_default(),
        seq: seq.unwrap_or_default(),
    };
    let wrong = match (stream, time, seq) {
        (None, ..) => Some("cdc$stream_id is not 16 bytes"),
        (_, None, _) => Some("cdc$time is not 16 bytes"),
        (_, Some(time), _) if time.get_version_num() != 1 => {
            Some("cdc$time is not a version 1 uuid")
        }
        (.., None) => Some("cdc$batch_seq_no is not 4 bytes"),
        _ => None,
    };
    match wrong {
        Some(what) => Err((position, what.to_owned())),
        None => Ok(Head {
            position,
            end_of_batch: matches!(cells[version.end_of_batch], Some([b]) if *b != 0),
        }),
    }
}

fn exact<const N: usize>(cell: Option<&[u8]>) -> Option<[u8; N]> {
    cell?.try_into().ok()
}

/// Appends one row; leaves `out` as it was when the row cannot be decoded.
pub(super) fn row(
    version: &Version,
    head: &Head,
    cells: &Cells<'_>,
    out: &mut RowsBuilder,
) -> Result<Operation, String> {
    let operation = match exact::<1>(cells[version.operation]) {
        Some([op]) => Operation::from_i8(op as i8)
            .ok_or_else(|| format!("unknown cdc$operation {}", op as i8))?,
        None => return Err("cdc$operation is not 1 byte".into()),
    };
    let ttl = match cells[version.ttl] {
        None => 0,
        some => exact::<8>(some)
            .and_then(|b| u32::try_from(i64::from_be_bytes(b)).ok())
            .ok_or("cdc$ttl is not a number of seconds")?,
    };
    if cells[version.end_of_batch].is_some_and(|c| c.len() != 1) {
        return Err("cdc$end_of_batch is not 1 byte".into());
    }
    let ncols = u16::try_from(version.roles.len()).map_err(|_| "more than 65535 columns")?;
    out.row(
        RowMeta {
            operation,
            context: false,
            end_of_batch: head.end_of_batch,
            table: version.schema.id,
            time_us: timeuuid_us(&head.position.time),
            ttl,
        },
        ncols,
    );
    for (i, role) in version.roles.iter().enumerate() {
        if let Err(what) = column(version, operation, role, cells, out) {
            out.undo_row();
            return Err(format!("column {}: {what}", version.schema.columns[i].name));
        }
    }
    Ok(operation)
}

fn column(
    version: &Version,
    operation: Operation,
    role: &Role,
    cells: &Cells<'_>,
    out: &mut RowsBuilder,
) -> Result<(), &'static str> {
    let value = cells[role.value];
    if value.is_some_and(|v| !role.width.allows(v.len())) {
        return Err("length does not fit its type");
    }
    match role.kind {
        ColumnKind::PartitionKey => {
            out.column(ColumnTag::Value, &[value.ok_or("null partition key")?]);
            return Ok(());
        }
        ColumnKind::ClusteringKey => {
            match value {
                Some(v) => out.column(ColumnTag::Value, &[v]),
                None if may_lack_clustering(version, operation) => out.column(ColumnTag::Null, &[]),
                None => return Err("null clustering key"),
            }
            return Ok(());
        }
        ColumnKind::Static | ColumnKind::Regular => {}
    }
    let deleted = match role.deleted.and_then(|i| cells[i]) {
        None => false,
        Some([b]) => *b != 0,
        Some(_) => return Err("cdc$deleted_ is not 1 byte"),
    };
    if matches!(operation, Operation::PreImage | Operation::PostImage) {
        match value {
            Some(v) => out.column(ColumnTag::Value, &[v]),
            None if deleted || null_after(version, operation, role.kind, cells) => {
                out.column(ColumnTag::Null, &[]);
            }
            // A plain preimage does not tell what the change leaves alone.
            None => out.column(ColumnTag::Unchanged, &[]),
        }
        return Ok(());
    }
    let elements = role.elements.and_then(|i| cells[i]);
    match (value, elements) {
        // A tombstone with a value: of a multi-cell column it wiped what was there before the value.
        (Some(v), _) if deleted && role.elements.is_some() => out.column(ColumnTag::Replaced, &[v]),
        (None, _) if deleted => out.column(ColumnTag::Null, &[]),
        (Some(v), Some(gone)) => out.merged(v, gone),
        (Some(v), None) => out.column(ColumnTag::Value, &[v]),
        (None, Some(gone)) => out.column(ColumnTag::Removed, &[gone]),
        (None, None) => out.column(ColumnTag::Unchanged, &[]),
    }
    Ok(())
}

/// A postimage has every column of its row, and of the static row and the others each has its own; so what
/// it lacks is null. A preimage marks what is null as deleted.
fn null_after(
    version: &Version,
    operation: Operation,
    kind: ColumnKind,
    cells: &Cells<'_>,
) -> bool {
    let clustering = |role: &Role| role.kind == ColumnKind::ClusteringKey;
    let of_static_row = || {
        let key = version.roles.iter().find(|r| clustering(r));
        key.is_some_and(|key| cells[key.value].is_none())
    };
    operation == Operation::PostImage && (kind == ColumnKind::Static) == of_static_row()
}

/// Static rows, partition deletes and open range bounds have no clustering key, or a prefix of one.
fn may_lack_clustering(version: &Version, operation: Operation) -> bool {
    use Operation::*;
    match operation {
        PartitionDelete | TtlPartitionDelete => true,
        RangeDeleteStartInclusive
        | RangeDeleteStartExclusive
        | RangeDeleteEndInclusive
        | RangeDeleteEndExclusive => true,
        Insert | Update | PreImage | PostImage => version.has_static,
        RowDelete | TtlRowDelete => false,
    }
}

/// The rows of a key's preimage and postimage.
type Images = (Option<u32>, Option<u32>);

/// Up to this many rows a search from the front beats a hash table.
const FEW: usize = 16;

/// What is known of a write that is too large to be held whole, beside the part at hand.
#[derive(Debug, Default)]
pub(super) struct Torn {
    /// The keys of preimages in the parts so far, hashed.
    preimages: HashSet<u64>,
    /// The table logs postimages.
    postimages: bool,
}

impl Torn {
    pub(super) fn new(postimages: bool) -> Self {
        Self {
            postimages,
            ..Self::default()
        }
    }
}

/// What a row is, as far as it can be told.
pub(super) fn operation(version: &Version, cells: &Cells<'_>) -> Option<Operation> {
    exact::<1>(cells[version.operation]).and_then(|[op]| Operation::from_i8(op as i8))
}

/// Appends the rows of one group and links them, and says of a part of one what could not be linked.
pub(super) fn group(
    rows: &[LogRow<'_>],
    cells: &Cells<'_>,
    torn: Option<&mut Torn>,
    out: &mut RowsBuilder,
    positions: &mut Vec<Position>,
    undecodable: &mut Vec<Undecodable>,
) {
    let base = out.len();
    let mut operations: Vec<(usize, Operation)> = Vec::new();
    for (i, log_row) in rows.iter().enumerate() {
        let own = &cells[log_row.start..log_row.start + log_row.version.wire.len()];
        match row(log_row.version, &log_row.head, own, out) {
            Ok(operation) => {
                positions.push(log_row.head.position);
                // A single row has nothing to be linked to: the usual case allocates nothing.
                if rows.len() > 1 || torn.is_some() {
                    operations.push((i, operation));
                }
            }
            Err(error) => undecodable.push(unreadable(
                log_row.version,
                log_row.head.position,
                own,
                error,
            )),
        }
    }
    if !operations.is_empty() {
        link(rows, cells, &operations, torn, base as u32, out);
    }
}

fn link(
    rows: &[LogRow<'_>],
    cells: &Cells<'_>,
    operations: &[(usize, Operation)],
    mut torn: Option<&mut Torn>,
    base: u32,
    out: &mut RowsBuilder,
) {
    use Operation::*;
    let mut range_start: Option<u32> = None;
    let mut images = false;
    for (nth, &(_, operation)) in operations.iter().enumerate() {
        let at = base + nth as u32;
        match operation {
            RangeDeleteStartInclusive | RangeDeleteStartExclusive => range_start = Some(at),
            RangeDeleteEndInclusive | RangeDeleteEndExclusive => {
                if let Some(start) = range_start.take() {
                    out.link_end(start, at);
                }
            }
            PreImage | PostImage => images = true,
            _ => {}
        }
    }
    if !images && torn.is_none() {
        return;
    }
    let key = |i: usize| {
        let row = &rows[i];
        row.version
            .roles
            .iter()
            .take_while(|r| matches!(r.kind, ColumnKind::PartitionKey | ColumnKind::ClusteringKey))
            .map(move |r| cells[row.start + r.value])
    };
    let mut by_key: HashMap<Vec<Option<&[u8]>>, Images> = HashMap::new();
    let many = operations.len() > FEW;
    if many {
        for (nth, &(i, operation)) in operations.iter().enumerate() {
            let at = Some(base + nth as u32);
            match operation {
                PreImage => {
                    by_key.entry(key(i).collect()).or_default().0 = at;
                }
                PostImage => {
                    by_key.entry(key(i).collect()).or_default().1 = at;
                }
                _ => {}
            }
        }
    }
    let image = |i: usize, kind: Operation| {
        if many {
            let (pre, post) = by_key.get(&key(i).collect::<Vec<_>>()).copied()?;
            return if kind == PreImage { pre } else { post };
        }
        operations
            .iter()
            .position(|&(j, op)| op == kind && key(i).eq(key(j)))
            .map(|nth| base + nth as u32)
    };
    for (nth, &(i, operation)) in operations.iter().enumerate() {
        let linked = match operation {
            Insert | Update | RowDelete | TtlRowDelete => true,
            // Without a clustering key a partition is a row.
            PartitionDelete | TtlPartitionDelete => !rows[i].version.has_clustering,
            _ => false,
        };
        if !linked {
            continue;
        }
        let at = base + nth as u32;
        let (pre, post) = (image(i, PreImage), image(i, PostImage));
        if let Some(pre) = pre {
            out.link_preimage(at, pre);
        }
        if let Some(post) = post {
            out.link_end(at, post);
        }
        let Some(torn) = &torn else { continue };
        if pre.is_none() && torn.preimages.contains(&hash(key(i))) {
            out.mark(at, Mark::PreimageMissing);
        }
        if post.is_none() && torn.postimages && matches!(operation, Insert | Update) {
            out.mark(at, Mark::EndMissing);
        }
    }
    if let Some(torn) = &mut torn {
        if let Some(start) = range_start {
            out.mark(start, Mark::EndMissing);
        }
        let preimages = operations.iter().filter(|(_, op)| *op == PreImage);
        torn.preimages.extend(preimages.map(|&(i, _)| hash(key(i))));
    }
}

fn hash<'c>(key: impl Iterator<Item = Option<&'c [u8]>>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for cell in key {
        cell.hash(&mut hasher);
    }
    hasher.finish()
}

/// What is known of a row that cannot be decoded.
pub(super) fn unreadable(
    version: &Version,
    position: Position,
    cells: &Cells<'_>,
    error: String,
) -> Undecodable {
    let raw: serde_json::Map<String, serde_json::Value> = version
        .wire
        .iter()
        .zip(cells)
        .map(|((name, _), cell)| (name.clone(), cell.map(hex::encode).into()))
        .collect();
    Undecodable {
        position,
        table: format!("{}.{}", version.schema.keyspace, version.schema.name),
        error,
        raw: serde_json::Value::Object(raw).to_string().into(),
    }
}

#[cfg(test)]
mod tests;
