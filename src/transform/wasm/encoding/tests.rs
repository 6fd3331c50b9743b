use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use penstock_plugin_encoding::{ColumnRef, Field, OutputWriter};
use proptest::prelude::*;
use testkit::tally::Tally;

use super::decode::{MAX_OUTPUT, MAX_PARTS, Malformed, SHARE};
use super::*;
use crate::change::{Batch, Position, Slice, StreamId};
use crate::config::settings::{Policies, Settings};
use crate::transform::draft::Made;

/// Two changes with an image between, then a record made of the first.
fn draft() -> (Draft, Vec<Item>) {
    draft_of(b"value")
}

/// The same with another value in the first column.
fn draft_of(value: &[u8]) -> (Draft, Vec<Item>) {
    let meta = |operation| RowMeta {
        operation,
        context: false,
        end_of_batch: true,
        table: 1,
        time_us: 5,
        ttl: 0,
    };
    let mut rows = RowsBuilder::new();
    for operation in [Operation::Insert, Operation::PreImage, Operation::Update] {
        rows.row(meta(operation), 3);
        rows.column(ColumnTag::Value, &[value]);
        rows.column(ColumnTag::Null, &[]);
        rows.column(ColumnTag::Unchanged, &[]);
    }
    rows.link_preimage(2, 1);
    let position = |seq| Position {
        stream: StreamId([0; 16]),
        time: uuid::Uuid::nil(),
        seq,
    };
    let batch = Batch {
        shard: 0,
        epoch: 0,
        rows: rows.finish(),
        positions: (0..3).map(position).collect(),
        tables: vec![Arc::new(crate::change::TableSchema {
            id: 1,
            keyspace: "ks".into(),
            name: "t".into(),
            columns: ["a", "b", "c"]
                .map(|name| crate::change::Column {
                    name: name.into(),
                    cql_type: "blob".into(),
                    kind: crate::change::ColumnKind::Regular,
                })
                .into(),
        })],
        undecodable: Vec::new(),
        progress: Vec::new(),
        read_at: Instant::now(),
    };
    let mut draft = Draft::of(batch, Arc::new(Settings::for_tests(Policies::default())));
    let key = draft.keep(b"key");
    draft.batch.headers.push((key, Slice::Null));
    let topic = draft.topic("first").unwrap();
    let record = Record {
        source: 0,
        topic,
        key,
        value: Slice::Null,
        headers: 0..1,
    };
    (
        draft,
        vec![Item::Change(0), Item::Record(record), Item::Change(2)],
    )
}

fn sent(draft: &Draft, items: &[Item]) -> Sent {
    let chunk: Vec<u32> = (0..items.len() as u32).collect();
    Input::of_chunk(draft, items, &chunk, |_| Some(&Interest::All)).sent()
}

fn decode(output: Vec<u8>) -> (Draft, Result<Vec<(u32, Made)>, Malformed>) {
    let (mut draft, items) = draft();
    let mut made = Vec::new();
    let sent = sent(&draft, &items);
    let decoded = sent.decode(output, &mut draft, &items, &mut made);
    (draft, decoded.map(|_| made))
}

/// Whether everything that was made can be read.
fn is_sound(draft: &Draft, made: &[(u32, Made)]) -> bool {
    let batch = &draft.batch;
    let sound = |slice: Slice| slice == Slice::Null || batch.bytes(slice).is_some();
    made.iter().all(|(item, made)| {
        *item < 3
            && match made {
                Made::Record(r) => {
                    let headers = r.headers.start as usize..r.headers.end as usize;
                    (r.topic as usize) < batch.topics.len()
                        && sound(r.key)
                        && sound(r.value)
                        && batch.headers.get(headers).is_some_and(|h| {
                            h.iter()
                                .all(|(n, v)| *n != Slice::Null && sound(*n) && sound(*v))
                        })
                }
                Made::Forward | Made::Refused(_) => true,
            }
    })
}

#[test]
fn columns_of_changes_images_and_records_are_found() {
    let mut w = OutputWriter::default();
    let at = |row, column| Field::Column(ColumnRef { row, column });
    w.record(0, "t");
    w.key(at(0, 0));
    w.value(at(0, 1));
    // The row of the image; the change that it belongs to is sent after it.
    w.header("image", at(2, 0));
    for column in 0..4 {
        w.record(1, "t");
        w.value(at(1, column));
    }
    w.record(3, "t");
    w.value(at(3, 2));
    let (draft, made) = decode(w.finish());
    let made = made.unwrap();
    assert!(is_sound(&draft, &made));
    let shown = |slice| draft.batch.bytes(slice);
    let values: Vec<_> = made
        .iter()
        .map(|(item, made)| match made {
            Made::Record(record) => (*item, shown(record.value)),
            Made::Refused(message) => (*item, Some(message.as_bytes())),
            Made::Forward => (*item, None),
        })
        .collect();
    let headers = [
        &1i32.to_be_bytes()[..],
        &3i32.to_be_bytes(),
        b"key",
        &(-1i32).to_be_bytes(),
    ]
    .concat();
    let expected: [(u32, Option<&[u8]>); 6] = [
        (0, None),
        (1, Some(b"first")),
        (1, Some(b"key")),
        (1, None),
        (1, Some(&headers)),
        (2, Some(b"column `c` of ks.t has no value")),
    ];
    assert_eq!(values, expected);
    let Made::Record(first) = &made[0].1 else {
        panic!("{made:?}")
    };
    assert!(matches!(first.key, Slice::Source { .. }));
    let (name, value) = draft.batch.headers[first.headers.start as usize];
    assert_eq!(shown(name), Some(&b"image"[..]));
    assert_eq!(shown(value), Some(&b"value"[..]));
}

#[test]
fn a_lie_keeps_nothing() {
    let mut w = OutputWriter::default();
    w.record(0, "t");
    w.header("h", "v".into());
    w.forward(2);
    let (draft, made) = decode(w.finish());
    let lie = made.unwrap_err();
    assert_eq!(lie, "source 2 is an image, a range's end or context");
    assert_eq!(draft.batch.output, b"key");
    assert_eq!(draft.batch.headers.len(), 1);
    assert_eq!(draft.batch.topics.len(), 1, "the one of the draft");
}

/// What is read as something else by whoever looks there costs the change that wants to write it, and says which topic.
#[test]
fn a_topic_that_is_not_for_records_takes_none() {
    let long = "x".repeat(250);
    for (topic, says) in [
        (
            "penstock.orders.checkpoints",
            "`penstock.orders.checkpoints` is a topic of checkpoints",
        ),
        (
            "test.dead-letters",
            "`test.dead-letters` is the topic of this pipeline's dead letters",
        ),
        (
            "__consumer_offsets",
            "`__consumer_offsets` is a topic that brokers write themselves",
        ),
        (
            "__transaction_state",
            "`__transaction_state` is a topic that brokers write themselves",
        ),
        ("", "\"\" is not a topic's name"),
        (".", "\".\" is not a topic's name"),
        ("..", "\"..\" is not a topic's name"),
        ("a b", "\"a b\" is not a topic's name"),
        ("a\nb", "\"a\\nb\" is not a topic's name"),
        (&long, "is not a topic's name: 1 to 249"),
    ] {
        let mut w = OutputWriter::default();
        w.record(0, topic);
        w.record(3, "t");
        let made = decode(w.finish()).1.unwrap();
        assert!(
            matches!(&made[0], (0, Made::Refused(why)) if why.contains(says)),
            "{topic}: {made:?}"
        );
        assert!(matches!(made[1], (2, Made::Record(_))), "{topic}: {made:?}");
    }
}

/// An output that makes so many records of a change.
fn flood(source: u32, records: usize) -> Vec<u8> {
    let mut w = OutputWriter::default();
    for _ in 0..records {
        w.record(source, "t");
    }
    w.finish()
}

/// It is refused by itself, nothing of it is kept, and there is room for the others however many such there are.
#[test]
fn a_change_that_floods_leaves_room_for_the_others() {
    let (mut draft, items) = draft();
    let sent = sent(&draft, &items);
    let mut made = Vec::new();
    let (headers, mut records) = (draft.batch.headers.len(), MAX_PARTS / SHARE);
    for _ in 0..6 {
        // As much as is just taken.
        loop {
            let kept = (made.len(), draft.batch.output.len());
            match sent.decode(flood(0, records), &mut draft, &items, &mut made) {
                Ok(_) => break,
                Err(lie) => {
                    assert!(lie.ends_with("values and headers for one change"), "{lie}");
                    assert_eq!((made.len(), draft.batch.output.len()), kept);
                    records = records * 9 / 10;
                }
            }
        }
        sent.decode(flood(3, 100), &mut draft, &items, &mut made)
            .unwrap();
    }
    assert!(made.len() < MAX_PARTS * 6 / SHARE, "{}", made.len());
    assert_eq!(draft.batch.headers.len(), headers);
}

/// A reference takes no room here, but each is sent.
#[test]
fn a_change_that_names_a_column_without_end_is_refused() {
    const LARGE: usize = 1 << 20;
    let (mut draft, items) = draft_of(&[b'x'; LARGE]);
    let sent = sent(&draft, &items);
    let mut made = Vec::new();
    for (times, fits) in [(MAX_OUTPUT / LARGE, true), (MAX_OUTPUT / LARGE + 1, false)] {
        let mut w = OutputWriter::default();
        for _ in 0..times {
            w.record(0, "t");
            w.value(Field::Column(ColumnRef { row: 0, column: 0 }));
        }
        let decoded = sent.decode(w.finish(), &mut draft, &items, &mut made);
        assert_eq!(decoded.is_ok(), fits, "{decoded:?}");
    }
}

#[test]
fn a_projection_sends_only_what_is_wanted() {
    let (draft, items) = draft();
    let interest = Interest::Columns(Projection::new(vec![false, true, false]).into());
    let input = Input::of_chunk(&draft, &items, &[1, 2], |_| Some(&interest));
    let rows = penstock_plugin_encoding::Rows::parse(input.bytes().to_vec()).unwrap();
    assert_eq!(rows.len(), 3, "the record, the image, the change");
    let record = rows.get(0).unwrap();
    assert_eq!(record.column(0), Some((ColumnTag::Unsent, &b""[..])));
    assert_eq!(record.column(1), Some((ColumnTag::Value, &b"key"[..])));
    let change = rows.get(2).unwrap();
    assert_eq!(change.preimage(), Some(1));
    assert_eq!(change.column(0), Some((ColumnTag::Unsent, &b""[..])));
    assert_eq!(change.column(1), Some((ColumnTag::Null, &b""[..])));
}

/// Entries that may lie: most are of changes that were sent, in order, and point at what is there.
fn output() -> impl Strategy<Value = Vec<u8>> {
    let at = (0u32..4, 0u16..4).prop_map(|(row, column)| Some(ColumnRef { row, column }));
    let nowhere = (0u32..6, 0u16..5).prop_map(|(row, column)| Some(ColumnRef { row, column }));
    let field = prop_oneof![8 => Just(None), 7 => at, 1 => nowhere];
    let source = prop_oneof![30 => prop::sample::select(vec![0u32, 1, 3]), 1 => 0u32..5];
    let topic = prop::sample::select(vec!["a", "b", "c.d", "no topic", ""]);
    let entries = prop::collection::vec((0u8..6, source, topic, field), 0..8);
    (entries, 0u8..10).prop_map(|(mut entries, order)| {
        if order > 0 {
            entries.sort_by_key(|(_, source, ..)| *source);
        }
        let mut w = OutputWriter::default();
        for (kind, source, topic, field) in entries {
            match kind {
                0 => w.forward(source),
                1 => w.error(source, topic),
                2 => w.drop_change(source),
                _ => {
                    w.record(source, topic);
                    w.key("k".into());
                    w.value(field.into());
                    w.header(topic, field.into());
                }
            }
        }
        w.finish()
    })
}

/// More in the long form: `cargo xtask proof fuzz`.
fn cases() -> ProptestConfig {
    let asked = std::env::var("PENSTOCK_TEST_FUZZ").ok();
    ProptestConfig {
        cases: asked.and_then(|n| n.parse().ok()).unwrap_or(256),
        max_global_rejects: u32::MAX,
        ..ProptestConfig::default()
    }
}

/// What a guest's answer has come to, in a word.
fn outcome(made: &Result<Vec<(u32, Made)>, Malformed>) -> &str {
    match made {
        Ok(made) if made.is_empty() => "taken, and nothing is made",
        Ok(made) if made.iter().any(|(_, m)| matches!(m, Made::Refused(_))) => {
            "taken, and a change is refused"
        }
        Ok(_) => "taken",
        Err(lie) => lie,
    }
}

#[test]
fn a_guests_answers_at_random_can_be_read() {
    let tally = RefCell::new(Tally::of("answers with lies"));
    let flips = || prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2);
    proptest!(cases(), |(mut output in output(), flips in flips())| {
        for (at, to) in flips {
            let at = at.index(output.len());
            output[at] = to;
        }
        let (draft, made) = decode(output);
        tally.borrow_mut().count(outcome(&made));
        match made {
            Ok(made) => {
                prop_assert!(is_sound(&draft, &made), "{made:?}");
                let refused = |item| made.iter().filter(|(i, m)| {
                    *i == item && matches!(m, Made::Refused(_))
                }).count();
                for item in 0..3 {
                    let all = made.iter().filter(|(i, _)| *i == item).count();
                    prop_assert!(refused(item) == 0 || all == 1, "refused is all there is");
                }
                prop_assert!(made.is_sorted_by_key(|(item, _)| *item), "order is kept");
            }
            Err(_) => prop_assert_eq!(&draft.batch.output[..], b"key"),
        }
    });
    let tally = tally.into_inner();
    println!("{tally}");
    assert!(tally.ended("taken") > 0, "none was good");
}

/// Most of any byte, some of those that an answer is made of, behind a number of entries.
#[test]
fn bytes_at_random_that_a_guest_answers_never_panic() {
    let tally = RefCell::new(Tally::of("answers of any bytes"));
    let small = prop_oneof![3 => 0u8..4, 1 => any::<u8>()];
    let likely = (0u32..6, prop::collection::vec(small, 0..60));
    let output = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..100),
        likely.prop_map(|(entries, bytes)| [&entries.to_le_bytes()[..], &bytes].concat()),
    ];
    proptest!(cases(), |(output in output)| {
        let (draft, made) = decode(output);
        tally.borrow_mut().count(outcome(&made));
        prop_assert!(made.is_err() || is_sound(&draft, &made.unwrap()));
    });
    println!("{}", tally.into_inner());
}
