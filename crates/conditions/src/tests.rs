use penstock_plugin_encoding::{ColumnTag, Operation, RowMeta, RowsBuilder};
use proptest::prelude::*;

use super::*;

fn meta(operation: Operation) -> RowMeta {
    RowMeta {
        operation,
        context: false,
        end_of_batch: true,
        table: 1,
        time_us: 5,
        ttl: 60,
    }
}

/// An update with its images: n from 1 to 2, a name, tags of which one was added, nothing of `gone`.
fn rows() -> Rows {
    let mut rows = RowsBuilder::new();
    let n = |n: i32| n.to_be_bytes();
    for (operation, n) in [
        (Operation::PreImage, n(1)),
        (Operation::Update, n(2)),
        (Operation::PostImage, n(2)),
    ] {
        rows.row(meta(operation), 4);
        rows.column(ColumnTag::Value, &[&n]);
        rows.column(ColumnTag::Value, &["Ada".as_bytes()]);
        rows.merged(&[0, 0, 0, 1, 0, 0, 0, 1, b'x'], &[0, 0, 0, 0]);
        rows.column(ColumnTag::Unchanged, &[]);
    }
    rows.link_preimage(1, 0);
    rows.link_end(1, 2);
    rows.finish()
}

fn holds(text: &str) -> Result<bool, String> {
    let condition = Condition::compile(text).map_err(|e| e.to_string())?;
    let columns = [
        ("n", "int"),
        ("name", "text"),
        ("tags", "set<text>"),
        ("gone", "double"),
    ];
    let columns = columns.map(|(name, cql_type)| (name.to_owned(), cql_type.parse().unwrap()));
    let table = condition.table("ks", "t", columns);
    let rows = rows();
    let change = Change {
        table: &table,
        rows: &rows,
        row: 1,
    };
    let record = Record {
        topic: "orders",
        key: Some(b"k"),
        value: Some(br#"{"total": 7, "lines": [{"sku": "nut"}]}"#),
        headers: vec![("event-type", Some(b"created")), ("empty", None)],
    };
    condition.holds(Some(change), Some(&record))
}

#[test]
fn every_name_has_its_value() {
    for text in [
        "op == 'update' && keyspace == 'ks' && table == 't'",
        "time_us == 5 && ttl == 60",
        "columns.n == 2 && before.n == 1 && after.n == 2",
        "before.n < columns.n",
        "columns.name.startsWith('A') && 'x' in columns.tags",
        "has(columns.n) && !has(columns.gone)",
        "'n' in columns && size(columns) == 3",
        "columns['n'] == 2",
        "columns.tags.exists(tag, tag == 'x')",
        "topic == 'orders' && key == 'k' && value.total == 7",
        "value.lines.all(line, line.sku == 'nut')",
        "headers['event-type'] == 'created' && headers.empty == null",
        "type(columns.n) == int",
    ] {
        assert_eq!(holds(text), Ok(true), "{text}");
    }
}

#[test]
fn what_cannot_be_told_is_an_error() {
    let error = |text| holds(text).unwrap_err();
    assert_eq!(
        error("columns.gone > 1.0"),
        "`columns.gone > 1.0`: No such key: gone"
    );
    assert_eq!(
        error("columns.n"),
        "`columns.n` is no true or false, but Int(2)"
    );
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let wrong = |text: &str| {
        let error = Condition::compile(text).unwrap_err();
        let at = &text[error.at..];
        (at.to_owned(), error.what)
    };
    let of = |text: &str| (wrong(text).0, wrong(text).1.clone());
    let (at, what) = of("op == 'insert' && colums.total > 10");
    assert_eq!(at, "colums.total > 10");
    assert!(
        what.starts_with("there is no `colums`: there are op, "),
        "{what}"
    );
    let (at, what) = of("columns.name.startWith('A')");
    assert_eq!(at, "startWith('A')");
    assert_eq!(what, "there is no function `startWith`");
    let (at, what) = of("op == 'insert' &&");
    assert_eq!((at.as_str(), what.as_str()), ("", "unexpected end"));
    let (at, what) = of("op = 'insert'");
    assert_eq!(at, "= 'insert'");
    assert_eq!(what, "a single `=` is nothing: `==` compares");
    let (at, _) = of("op == 'é' &&\n  columns.n > > 1");
    assert!(at.starts_with("> 1"), "{at}");
    assert_eq!(wrong("  ").1, "it is empty");
    let long = format!("op == '{}'", "x".repeat(LONGEST));
    assert!(
        Condition::compile(&long)
            .unwrap_err()
            .what
            .contains("4096 are the most")
    );
    let loops = "columns.a.all(x, columns.a.all(y, columns.a.all(z, x == y)))";
    assert!(wrong(loops).1.starts_with("more than 2 of all, exists"));
}

#[test]
fn what_is_deep_is_refused_and_overflows_nothing() {
    // Overflowing aborts, so that this test would not end at all. The stack is that of a runtime's thread.
    let on_a_small_stack = |text: String| {
        let small = std::thread::Builder::new().stack_size(2 << 20);
        small.spawn(move || holds(&text)).unwrap().join().unwrap()
    };
    let shapes = [
        ("(", "true", ")"),
        ("[", "true", "]"),
        ("!", "true", ""),
        ("-", "1", ""),
        ("{1: ", "true", "}"),
        ("", "columns", ".n"),
        ("", "1", " + 1"),
        ("", "1", " == 1"),
        ("", "1", "[0]"),
        ("true ? 1 : ", "true", ""),
        ("size(", "'a'", ")"),
        ("", "op", " in [op]"),
    ];
    for (before, middle, after) in shapes {
        for depth in [10, 25, 30, 100, 600] {
            let text = format!("{}{middle}{}", before.repeat(depth), after.repeat(depth));
            if text.len() <= LONGEST {
                let looked = on_a_small_stack(text);
                let deep = looked.is_err_and(|e| e.contains("32 operators and brackets"));
                assert!(deep || depth < 100, "{before}{after} {depth}");
            }
        }
    }
    // What stands beside each other is not deep.
    let wide =
        vec!["(op == 'it\\'s (((((((((((((((((((((((((((((((((((((((' || columns.n > 1)"; 40]
            .join(" && ");
    assert_eq!(on_a_small_stack(wide), Ok(true));
}

proptest! {
    #[test]
    fn any_text_is_taken_or_refused(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "op", "columns", ".", "n", "(", ")", "[", "]", "'a'", "'", "==", "&&", "||", "!", "1", "1.5", "has",
                "all", ",", "x", "?", ":", "{", "}", "in", "\\", "\n", "é", "b'", "0x", "-", "size", "matches", "null",
            ]),
            0..14,
        ),
    ) {
        let text = words.concat();
        match Condition::compile(&text) {
            Ok(_) => { let _ = holds(&text); }
            Err(error) => prop_assert!(text.is_char_boundary(error.at), "{error}"),
        }
    }
}

/// A number that 64 bits do not hold is the text of its digits: equal to none that is close to it, and less or greater than none.
#[test]
fn a_number_is_not_taken_for_one_that_is_close_to_it() {
    let holds = |text: &str, value: &str| {
        let condition = Condition::compile(text).map_err(|e| e.to_string())?;
        let record = Record {
            topic: "t",
            key: None,
            value: Some(value.as_bytes()),
            headers: Vec::new(),
        };
        condition.holds(None, Some(&record))
    };
    let long = r#"{"n": 12345678901234567890123, "p": 10000000000000000.01, "all": [12345678901234567890123], "u": 18446744073709551615}"#;
    for (text, expected) in [
        ("value.n == '12345678901234567890123'", true),
        ("value.n == '12345678901234567890124'", false),
        ("value.n == 12345678901234567000000.0", false),
        ("value.p == 10000000000000000.0", false),
        ("value.p == '10000000000000000.01'", true),
        ("'12345678901234567890123' in value.all", true),
        ("value.u == 18446744073709551615u", true),
        ("value.u == 18446744073709551614u", false),
        ("value.u > 5", true),
    ] {
        assert_eq!(holds(text, long), Ok(expected), "{text}");
    }
    let refused = holds("value.n > 5", long).unwrap_err();
    assert!(
        refused.contains("'_>_' applied to '(string, int)'"),
        "{refused}"
    );
    let small = r#"{"n": 5, "p": 12.50, "e": 1E3}"#;
    for text in [
        "value.n > 4",
        "value.p == 12.5",
        "value.p > 12",
        "value.e == 1000",
    ] {
        assert_eq!(holds(text, small), Ok(true), "{text}");
    }
}
