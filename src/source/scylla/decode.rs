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
mod tests {
    use super::super::schema::{self, Base, tests as make};
    use super::*;
    use bytes::Bytes;
    use penstock_plugin_encoding::{Row, Rows};
    use scylla::deserialize::FrameSlice;
    use scylla::deserialize::row::ColumnIterator;
    use scylla::frame::response::result::{ColumnSpec, NativeType, TableSpec};

    const STREAM: [u8; 16] = [3; 16];

    fn time(us: i64) -> [u8; 16] {
        *super::super::log::min_timeuuid(us).as_bytes()
    }

    /// `k int, c int, v int, tags set<int>`, with a static column on request.
    fn version(with_static: bool) -> Version {
        let (int, tags) = (make::native(NativeType::Int), make::set(NativeType::Int));
        let mut base = Base::from([
            ("k", make::column(ColumnKind::PartitionKey, 0, &int)),
            ("c", make::column(ColumnKind::ClusteringKey, 0, &int)),
            ("v", make::column(ColumnKind::Regular, 0, &int)),
            ("tags", make::column(ColumnKind::Regular, 0, &tags)),
        ]);
        let boolean = make::native(NativeType::Boolean);
        let mut wire = vec![
            ("c", int.clone()),
            ("cdc$deleted_elements_tags", make::set(NativeType::Int)),
            ("cdc$deleted_tags", boolean.clone()),
            ("cdc$deleted_v", boolean.clone()),
            ("k", int.clone()),
            ("tags", tags.clone()),
            ("v", int.clone()),
        ];
        if with_static {
            base.insert("s", make::column(ColumnKind::Static, 0, &int));
            wire.extend([("s", int.clone()), ("cdc$deleted_s", boolean)]);
        }
        schema::resolve("ks", "t", Some(&base), make::wire(wire))
            .unwrap()
            .version
    }

    type Owned = Vec<Option<Vec<u8>>>;

    /// A row of `version(false)`: everything null but its place, its key and what `set` gives.
    fn cells(
        version: &Version,
        seq: i32,
        op: i8,
        key: Option<i32>,
        set: &[(&str, Vec<u8>)],
    ) -> Owned {
        let mut cells: Owned = vec![None; version.wire.len()];
        let mut put = |name: &str, bytes: &[u8]| {
            let at = version.wire.iter().position(|(n, _)| n == name).unwrap();
            cells[at] = Some(bytes.to_vec());
        };
        put("cdc$stream_id", &STREAM);
        put("cdc$time", &time(1000));
        put("cdc$batch_seq_no", &seq.to_be_bytes());
        put("cdc$operation", &op.to_be_bytes());
        put("k", &1i32.to_be_bytes());
        if let Some(c) = key {
            put("c", &c.to_be_bytes());
        }
        for (name, bytes) in set {
            put(name, bytes);
        }
        cells
    }

    fn int(n: i32) -> Vec<u8> {
        n.to_be_bytes().to_vec()
    }

    /// Decodes rows as one group.
    fn decode(version: &Version, rows: &[Owned]) -> (Rows, Vec<Undecodable>) {
        decode_part(version, rows, None)
    }

    /// Decodes rows as a part of one group.
    fn decode_part(
        version: &Version,
        rows: &[Owned],
        torn: Option<&mut Torn>,
    ) -> (Rows, Vec<Undecodable>) {
        let flat: Vec<Option<&[u8]>> = rows.iter().flatten().map(|c| c.as_deref()).collect();
        let ncells = version.wire.len();
        let rows: Vec<_> = (0..rows.len())
            .map(|i| LogRow {
                version,
                head: head(version, &flat[i * ncells..(i + 1) * ncells]).unwrap(),
                start: i * ncells,
            })
            .collect();
        let (mut out, mut positions, mut bad) = (RowsBuilder::new(), Vec::new(), Vec::new());
        group(&rows, &flat, torn, &mut out, &mut positions, &mut bad);
        let rows = Rows::parse(out.finish().as_bytes().to_vec()).unwrap();
        assert_eq!(rows.len(), positions.len());
        (rows, bad)
    }

    fn tags(row: Row<'_>) -> Vec<ColumnTag> {
        (0..row.columns())
            .map(|i| row.column(i).unwrap().0)
            .collect()
    }

    #[test]
    fn a_delta_says_what_became_of_each_column() {
        use ColumnTag::*;
        let v = version(false);
        let yes = vec![1];
        let cases: &[(&[(&str, Vec<u8>)], ColumnTag, ColumnTag)] = &[
            (&[], Unchanged, Unchanged),
            (&[("v", int(5)), ("tags", int(7))], Value, Value),
            (
                &[
                    ("cdc$deleted_v", yes.clone()),
                    ("cdc$deleted_tags", yes.clone()),
                ],
                Null,
                Null,
            ),
            (
                &[("tags", int(7)), ("cdc$deleted_tags", yes.clone())],
                Unchanged,
                Replaced,
            ),
            (&[("cdc$deleted_elements_tags", int(8))], Unchanged, Removed),
            (
                &[("tags", int(7)), ("cdc$deleted_elements_tags", int(8))],
                Unchanged,
                Merged,
            ),
        ];
        for (set, v_tag, tags_tag) in cases {
            let (rows, bad) = decode(&v, &[cells(&v, 0, 1, Some(2), set)]);
            assert!(bad.is_empty());
            let row = rows.get(0).unwrap();
            let at = |name: &str| {
                v.schema
                    .columns
                    .iter()
                    .position(|c| c.name == name)
                    .unwrap()
            };
            assert_eq!(row.column(at("v")).unwrap().0, *v_tag, "{set:?}");
            assert_eq!(row.column(at("tags")).unwrap().0, *tags_tag, "{set:?}");
            assert_eq!(row.column(0), Some((Value, &int(1)[..])));
            assert_eq!(row.column(1), Some((Value, &int(2)[..])));
            assert_eq!(row.meta().time_us, 1000);
        }
    }

    #[test]
    fn images_pair_with_their_delta_by_key_and_not_by_neighbour() {
        let v = version(false);
        for many in [1, 20] {
            // PRE × n, DELTA × n, POST × n, as an unsplit batch has them; the deltas in reverse.
            let n = 2 * many;
            let ops = [(0i8, false), (1, true), (9, false)];
            let rows: Vec<Owned> = ops
                .iter()
                .flat_map(|&(op, reverse)| {
                    let keys: Vec<i32> = if reverse {
                        (0..n).rev().collect()
                    } else {
                        (0..n).collect()
                    };
                    keys.into_iter().map(move |k| (op, k))
                })
                .enumerate()
                .map(|(seq, (op, k))| cells(&v, seq as i32, op, Some(k), &[]))
                .collect();
            let (rows, _) = decode(&v, &rows);
            let n = n as usize;
            for i in 0..n {
                let key = n - 1 - i;
                let row = rows.get(n + i).unwrap();
                assert_eq!(row.preimage(), Some(key as u32));
                assert_eq!(row.end(), Some((2 * n + key) as u32));
            }
            assert_eq!(
                (rows.get(0).unwrap().preimage(), rows.get(0).unwrap().end()),
                (None, None)
            );
        }
    }

    #[test]
    fn a_part_says_which_images_are_in_another_one() {
        let v = version(false);
        let row = |op, key| cells(&v, 0, op, Some(key), &[]);
        let mut torn = Torn::new(true);
        let first = [row(0, 1), row(0, 2), row(1, 1)];
        let (first, _) = decode_part(&v, &first, Some(&mut torn));
        let second = [row(1, 2), row(2, 3), row(3, 2), row(9, 3), row(5, 7)];
        let (second, _) = decode_part(&v, &second, Some(&mut torn));
        let marks = |rows: &Rows, at| {
            let row = rows.get(at).unwrap();
            [Mark::PreimageMissing, Mark::EndMissing].map(|m| row.is_marked(m))
        };
        assert_eq!(first.get(2).unwrap().preimage(), Some(0));
        assert_eq!(marks(&first, 2), [false, true], "its postimage is to come");
        assert_eq!(marks(&second, 0), [true, true]);
        assert_eq!(
            marks(&second, 1),
            [false, false],
            "a new row has no preimage"
        );
        assert_eq!(
            marks(&second, 2),
            [true, false],
            "a delete has no postimage"
        );
        assert_eq!(marks(&second, 4), [false, true], "a range without its end");
        let (whole, _) = decode(&v, &[row(1, 2), row(2, 3)]);
        assert_eq!(marks(&whole, 0), [false, false]);
    }

    #[test]
    fn the_start_of_a_range_delete_is_linked_to_its_end() {
        let v = version(false);
        let rows = [
            cells(&v, 0, 5, Some(1), &[]),
            cells(&v, 1, 8, Some(4), &[]),
            cells(&v, 2, 6, Some(9), &[]),
            cells(&v, 3, 7, None, &[]),
        ];
        let (rows, bad) = decode(&v, &rows);
        assert!(bad.is_empty(), "an open bound has no key");
        assert_eq!(
            (rows.get(0).unwrap().end(), rows.get(2).unwrap().end()),
            (Some(1), Some(3))
        );
        assert_eq!(tags(rows.get(3).unwrap())[1], ColumnTag::Null);
    }

    #[test]
    fn what_cannot_be_decoded_is_kept_with_its_bytes_and_leaves_its_neighbours_alone() {
        let v = version(false);
        let bad_rows = [
            ("unknown cdc$operation 42", cells(&v, 1, 42, Some(1), &[])),
            (
                "column v: length",
                cells(&v, 1, 1, Some(1), &[("v", vec![1, 2, 3])]),
            ),
            ("column c: null clustering key", cells(&v, 1, 2, None, &[])),
            (
                "cdc$ttl",
                cells(
                    &v,
                    1,
                    2,
                    Some(1),
                    &[("cdc$ttl", (-1i64).to_be_bytes().to_vec())],
                ),
            ),
            (
                "column v: cdc$deleted_",
                cells(&v, 1, 1, Some(1), &[("cdc$deleted_v", vec![])]),
            ),
        ];
        for (what, row) in bad_rows {
            let around = |seq| cells(&v, seq, 1, Some(1), &[("v", int(seq))]);
            let (rows, bad) = decode(&v, &[around(0), row, around(2)]);
            assert_eq!((rows.len(), bad.len()), (2, 1), "{what}");
            assert!(bad[0].error.starts_with(what), "{}", bad[0].error);
            assert_eq!((bad[0].position.seq, bad[0].table.as_str()), (1, "ks.t"));
            let raw: serde_json::Value = serde_json::from_slice(&bad[0].raw).unwrap();
            assert_eq!(raw["k"], "00000001");
            assert!(raw["tags"].is_null());
        }
    }

    #[test]
    fn a_static_row_has_no_clustering_key() {
        let v = version(true);
        let (rows, bad) = decode(&v, &[cells(&v, 0, 1, None, &[("s", int(4))])]);
        assert!(bad.is_empty());
        assert_eq!(tags(rows.get(0).unwrap())[1], ColumnTag::Null);
        let (_, bad) = decode(&v, &[cells(&v, 0, 3, None, &[])]);
        assert_eq!(bad.len(), 1, "a deleted row has a key");
    }

    #[test]
    fn an_image_tells_what_is_null_from_what_it_leaves_out() {
        use ColumnTag::*;
        let of = |statics, operation, key, set: &[(&str, Vec<u8>)], name: &str| {
            let v = version(statics);
            let (rows, bad) = decode(&v, &[cells(&v, 0, operation, key, set)]);
            assert!(bad.is_empty());
            let columns = &v.schema.columns;
            let at = columns.iter().position(|c| c.name == name).unwrap();
            tags(rows.get(0).unwrap())[at]
        };
        let set = [("tags", int(1)), ("cdc$deleted_v", vec![1])];
        assert_eq!(of(false, 0, Some(1), &set, "tags"), Value);
        assert_eq!(of(false, 0, Some(1), &set, "v"), Null);
        assert_eq!(of(false, 0, Some(1), &set[..1], "v"), Unchanged);
        // A postimage has all of its row, and nothing of the other kind of row.
        assert_eq!(of(false, 9, Some(1), &set[..1], "v"), Null);
        assert_eq!(of(true, 9, Some(1), &[], "s"), Unchanged);
        assert_eq!(of(true, 9, None, &[], "s"), Null);
        assert_eq!(of(true, 9, None, &[], "v"), Unchanged);
    }

    #[test]
    fn a_position_that_cannot_be_read_is_said() {
        let v = version(false);
        let mut row = cells(&v, 7, 1, Some(1), &[]);
        row[v.time] = Some(uuid::Uuid::from_u128(1 << 78).as_bytes().to_vec());
        let flat: Vec<_> = row.iter().map(|c| c.as_deref()).collect();
        let (position, error) = head(&v, &flat).unwrap_err();
        assert_eq!((position.stream.0, position.seq), (STREAM, 7));
        assert!(error.contains("version 1"), "{error}");
    }

    /// The driver's row iterator over a frame made by hand gives the cells that the decoder expects.
    #[test]
    fn cells_of_a_frame_are_decoded_without_copies_between() {
        let v = version(false);
        let row = cells(
            &v,
            0,
            2,
            Some(6),
            &[("v", int(-1)), ("cdc$end_of_batch", vec![1])],
        );
        let mut frame = Vec::new();
        for cell in &row {
            match cell {
                Some(bytes) => {
                    frame.extend((bytes.len() as i32).to_be_bytes());
                    frame.extend(bytes);
                }
                None => frame.extend((-1i32).to_be_bytes()),
            }
        }
        let frame = Bytes::from(frame);
        let specs: Vec<ColumnSpec<'_>> = v
            .wire
            .iter()
            .map(|(n, t)| ColumnSpec::borrowed(n, t.clone(), TableSpec::borrowed("ks", "t")))
            .collect();
        let flat: Vec<Option<&[u8]>> = ColumnIterator::new(&specs, FrameSlice::new(&frame))
            .map(|c| c.unwrap().slice.map(|s| s.as_slice()))
            .collect();
        let head = head(&v, &flat).unwrap();
        assert!(head.end_of_batch);
        let mut out = RowsBuilder::new();
        assert_eq!(
            super::row(&v, &head, &flat, &mut out),
            Ok(Operation::Insert)
        );
        let rows = out.finish();
        assert_eq!(
            rows.get(0)
                .unwrap()
                .column(3)
                .or(rows.get(0).unwrap().column(2))
                .map(|c| c.0),
            Some(ColumnTag::Value)
        );
    }
}
