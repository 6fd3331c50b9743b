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
fn cells(version: &Version, seq: i32, op: i8, key: Option<i32>, set: &[(&str, Vec<u8>)]) -> Owned {
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
