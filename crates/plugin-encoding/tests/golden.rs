//! The bytes themselves: what a plugin of an older SDK reads and writes stays what it was.

use penstock_plugin_encoding::output::{Entry, FieldSpan, InvalidOutput, OutputReader, Role};
use penstock_plugin_encoding::{
    ColumnRef, ColumnTag, Field, Mark, Operation, OutputWriter, RowMeta, Rows, RowsBuilder,
};

/// Of version 1: every kind of entry, part and field.
const OUTPUT_1: &[&[u8]] = &[
    b"\x07\0\0\0",
    b"\0\x01\0a",
    b"\x01\0\0\0\0\0\0\x03\0",
    b"\0\x01\x01\0\0\0k",
    b"\x01\x02\0\0\0\0\x07\0",
    b"\x02\x01\0h\0",
    b"\x01\x01\0\0\0\0\0\x01\0",
    b"\x03\0\0\x01\x02\0\0\0vv",
    b"\x02\x02\0\0\0",
    b"\x03\x03\0\0\0",
    b"\x04\x04\0\0\0\x03\0\0\0bad",
    b"\x05\x05\0\0\0\x05\0\0\0later",
];

/// What came with version 2: a column, or null where the change does not set it.
const OUTPUT_2: &[&[u8]] = &[
    b"\x02\0\0\0",
    b"\0\x01\0a",
    b"\x01\0\0\0\0\0\0\x02\0",
    b"\0\x03\x01\0\0\0\x02\0",
    b"\x02\x01\0h\x03\x01\0\0\0\x03\0",
];

/// A preimage without columns, and an insert that is late, with a link to it.
const ROWS_1: &[&[u8]] = &[
    b"\x02\0\0\0",
    b"\x1c\0\0\0\0\x02\0\0\x09\0\0\0",
    b"\xfb\xff\xff\xff\xff\xff\xff\xff\x3c\0\0\0",
    b"\0\0\0\0\0\0\0\0",
    b"\x34\0\0\0\x02\x06\x03\0\x09\0\0\0",
    b"\xfb\xff\xff\xff\xff\xff\xff\xff\x3c\0\0\0",
    b"\x01\0\0\0\0\0\0\0",
    b"\x03\0\0\0\x03\0\0\0\x09\0\0\0",
    b"\x03\x02\x06",
    b"abc\x01\0\0\0xy",
];

/// An output as text, a line an entry or part.
fn shown(buf: &[u8]) -> Vec<String> {
    let text = |s: std::ops::Range<u32>| {
        String::from_utf8_lossy(&buf[s.start as usize..s.end as usize]).into_owned()
    };
    let mut reader = OutputReader::new(buf).unwrap();
    let mut lines = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        lines.push(match entry {
            Entry::Topic(name) => format!("topic {}", text(name)),
            Entry::Record {
                source,
                topic,
                parts,
            } => format!("record of {source} to {topic}, parts: {parts}"),
            Entry::Forward(source) => format!("forward {source}"),
            Entry::Drop(source) => format!("drop {source}"),
            Entry::Error(source, why) => format!("error {source} {}", text(why)),
            Entry::Retry(source, why) => format!("retry {source} {}", text(why)),
        });
        let parts = reader.parts(|role, field| {
            let role = match role {
                Role::Key => "key".to_owned(),
                Role::Value => "value".to_owned(),
                Role::Header(name) => format!("header {}", text(name)),
            };
            let field = match field {
                FieldSpan::Null => "null".to_owned(),
                FieldSpan::Bytes(bytes) => text(bytes),
                FieldSpan::Column(c) => format!("{}.{}", c.row, c.column),
                FieldSpan::ColumnOrNull(c) => format!("{}.{} or null", c.row, c.column),
            };
            lines.push(format!("{role}: {field}"));
            Ok::<_, InvalidOutput>(())
        });
        parts.unwrap();
    }
    lines
}

#[test]
fn an_output_of_version_1_is_read_and_written_as_it_was() {
    let lines = [
        "topic a",
        "record of 0 to 0, parts: 3",
        "key: k",
        "value: 0.7",
        "header h: null",
        "record of 1 to 0, parts: 1",
        "header h: vv",
        "forward 2",
        "drop 3",
        "error 4 bad",
        "retry 5 later",
    ];
    assert_eq!(shown(&OUTPUT_1.concat()), lines);
    let mut w = OutputWriter::default();
    w.record(0, "a");
    w.key("k".into());
    w.value(ColumnRef { row: 0, column: 7 }.into());
    w.header("h", Field::Null);
    w.record(1, "a");
    w.header("h", "vv".into());
    w.forward(2);
    w.drop_change(3);
    w.error(4, "bad");
    w.retry(5, "later");
    assert_eq!(w.finish(), OUTPUT_1.concat());
}

#[test]
fn an_output_of_version_2_is_read_and_written_as_it_was() {
    let lines = [
        "topic a",
        "record of 0 to 0, parts: 2",
        "key: 1.2 or null",
        "header h: 1.3 or null",
    ];
    assert_eq!(shown(&OUTPUT_2.concat()), lines);
    let mut w = OutputWriter::default();
    let at = |column| Field::ColumnOrNull(ColumnRef { row: 1, column });
    w.record(0, "a");
    w.key(at(2));
    w.header("h", at(3));
    assert_eq!(w.finish(), OUTPUT_2.concat());
}

#[test]
fn a_uuid_is_written_as_its_text() {
    let id = *b"\0\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";
    let text = "00112233-4455-6677-8899-aabbccddeeff";
    let written = |field| {
        let mut w = OutputWriter::default();
        w.record(0, "a");
        w.header("h", field);
        w.header("h", field);
        w.finish()
    };
    assert_eq!(written(Field::Uuid(&id)), written(text.into()));
}

#[test]
fn a_batch_of_version_1_is_read_and_written_as_it_was() {
    let meta = |operation| RowMeta {
        operation,
        context: false,
        end_of_batch: true,
        table: 9,
        time_us: -5,
        ttl: 60,
    };
    let mut b = RowsBuilder::new();
    let preimage = b.row(meta(Operation::PreImage), 0);
    let row = b.row(meta(Operation::Insert), 3);
    b.column(ColumnTag::Value, &[b"abc"]);
    b.column(ColumnTag::Null, &[]);
    b.merged(b"x", b"y");
    b.link_preimage(row, preimage);
    b.mark(row, Mark::Late);
    assert_eq!(b.finish().as_bytes(), ROWS_1.concat());

    let rows = Rows::parse(ROWS_1.concat()).unwrap();
    let row = rows.get(1).unwrap();
    assert_eq!(row.meta(), meta(Operation::Insert));
    assert_eq!((row.preimage(), row.end()), (Some(0), None));
    assert!(row.is_marked(Mark::Late));
    let columns: Vec<_> = (0..4).map(|c| row.column(c)).collect();
    let expected = [
        Some((ColumnTag::Value, &b"abc"[..])),
        Some((ColumnTag::Null, b"")),
        Some((ColumnTag::Merged, b"\x01\0\0\0xy")),
        None,
    ];
    assert_eq!(columns, expected);
}
