//! Reading and writing.

use super::*;
use crate::engine::{ErrorDetail, INVALID, PROTOCOL_ERROR, UNAVAILABLE};

/// A table with rows (pk, ck) in {0, 1} × {0 … 3}, v = 10·pk + ck, and a static column in partition 0.
fn filled(order: &str) -> Engine {
    let engine = with_keyspace();
    run(
        &engine,
        &format!(
            "CREATE TABLE t (pk int, ck int, s int static, v int, PRIMARY KEY (pk, ck)) WITH CLUSTERING ORDER BY (ck {order})"
        ),
    );
    for pk in 0..2 {
        for ck in 0..4 {
            run(
                &engine,
                &format!(
                    "INSERT INTO t (pk, ck, v) VALUES ({pk}, {ck}, {})",
                    10 * pk + ck
                ),
            );
        }
    }
    run(&engine, "UPDATE t SET s = 7 WHERE pk = 0");
    engine
}

#[test]
fn select_by_key_range_and_limit() {
    let engine = filled("ASC");
    for (rest, expected) in [
        ("WHERE pk = 0", &["0", "1", "2", "3"][..]),
        ("WHERE pk = 0 AND ck = 2", &["2"]),
        ("WHERE pk = 0 AND ck IN (3, 1)", &["1", "3"]),
        ("WHERE pk = 0 AND ck > 1", &["2", "3"]),
        ("WHERE pk = 0 AND ck >= 1 AND ck < 3", &["1", "2"]),
        ("WHERE pk = 0 AND (ck) >= (2)", &["2", "3"]),
        ("WHERE pk = 0 ORDER BY ck DESC LIMIT 2", &["3", "2"]),
        ("WHERE pk IN (1, 0) AND ck < 1", &["0", "10"]),
        (
            "WHERE pk IN (0, 1) ORDER BY ck DESC LIMIT 3",
            &["3", "13", "2"],
        ),
        ("WHERE pk IN (0, 1) PER PARTITION LIMIT 1", &["0", "10"]),
        ("WHERE v = 12 ALLOW FILTERING", &["12"]),
        ("WHERE pk = 0 AND v > 1 ALLOW FILTERING", &["2", "3"]),
        (
            "WHERE token(pk) = token(1) AND ck = 3 ALLOW FILTERING",
            &["13"],
        ),
    ] {
        let mut rows = select(&engine, &format!("SELECT v FROM t {rest}"));
        if rest.contains("IN (0, 1) ORDER") {
            // Rows of one clustering key come in no certain order.
            rows.sort();
            let mut expected = expected.to_vec();
            expected.sort_unstable();
            assert_eq!(rows.len(), expected.len());
            continue;
        }
        assert_eq!(rows, expected, "{rest}");
    }
}

#[test]
fn descending_tables_read_the_other_way() {
    let engine = filled("DESC");
    for (rest, expected) in [
        ("WHERE pk = 0", &["3", "2", "1", "0"][..]),
        ("WHERE pk = 0 AND ck > 1", &["3", "2"]),
        ("WHERE pk = 0 AND ck >= 1 AND ck < 3", &["2", "1"]),
        ("WHERE pk = 0 ORDER BY ck ASC", &["0", "1", "2", "3"]),
    ] {
        assert_eq!(
            select(&engine, &format!("SELECT v FROM t {rest}")),
            expected,
            "{rest}"
        );
    }
    run(&engine, "DELETE FROM t WHERE pk = 0 AND ck <= 1");
    assert_eq!(select(&engine, "SELECT v FROM t WHERE pk = 0"), ["3", "2"]);
}

#[test]
fn filtering_must_be_allowed() {
    let engine = filled("ASC");
    for statement in [
        "SELECT * FROM t WHERE v = 1",
        "SELECT * FROM t WHERE ck = 1",
        "SELECT * FROM t WHERE pk > 1",
    ] {
        assert!(
            refusal(&engine, statement).contains("ALLOW FILTERING"),
            "{statement}"
        );
    }
}

#[test]
fn static_columns_are_of_the_partition() {
    let engine = filled("ASC");
    assert_eq!(
        select(&engine, "SELECT ck, s FROM t WHERE pk = 0 LIMIT 2"),
        ["0, 7", "1, 7"]
    );
    assert_eq!(
        select(&engine, "SELECT DISTINCT pk, s FROM t WHERE pk IN (0, 1)"),
        ["0, 7", "1, null"]
    );
    run(&engine, "INSERT INTO t (pk, s) VALUES (9, 8)");
    assert_eq!(
        select(&engine, "SELECT pk, ck, s, v FROM t WHERE pk = 9"),
        ["9, null, 8, null"]
    );
    assert_eq!(
        select(&engine, "SELECT * FROM t WHERE pk = 9 AND ck = 0"),
        Vec::<String>::new()
    );
    run(&engine, "DELETE s FROM t WHERE pk = 9");
    assert_eq!(
        select(&engine, "SELECT * FROM t WHERE pk = 9"),
        Vec::<String>::new()
    );
}

#[test]
fn aggregates_and_functions() {
    let engine = filled("ASC");
    assert_eq!(
        select(
            &engine,
            "SELECT count(*), count(s), min(v), max(v), sum(v), avg(v) FROM t"
        ),
        ["8, 4, 0, 13, 52, 6"]
    );
    assert_eq!(
        select(&engine, "SELECT count(*) FROM t WHERE pk = 77"),
        ["0"]
    );
    assert_eq!(
        select(
            &engine,
            "SELECT pk, count(*) FROM t WHERE pk IN (0, 1) GROUP BY pk"
        ),
        ["0, 4", "1, 4"]
    );
    run(
        &engine,
        "INSERT INTO t (pk, ck, v) VALUES (5, 5, 5) USING TIMESTAMP 77 AND TTL 100",
    );
    assert_eq!(
        select(&engine, "SELECT writetime(v), ttl(v) FROM t WHERE pk = 5"),
        ["77, 100"]
    );
    assert_eq!(
        select(
            &engine,
            "SELECT cast(v AS text), intAsBlob(v) FROM t WHERE pk = 5"
        ),
        ["'5', 0x00000005"]
    );
    let now =
        "SELECT toTimestamp(now()), toUnixTimestamp(now()), toDate(now()) FROM t WHERE pk = 5";
    assert_eq!(
        select(&engine, now),
        ["'2023-11-14T22:13:20.000Z', 1700000000000, '2023-11-14'"]
    );
}

#[test]
fn last_write_wins_by_cell() {
    let engine = with_keyspace();
    run(&engine, "CREATE TABLE t (pk int PRIMARY KEY, a int, b int)");
    run(
        &engine,
        "INSERT INTO t (pk, a, b) VALUES (1, 1, 1) USING TIMESTAMP 10",
    );
    run(
        &engine,
        "UPDATE t USING TIMESTAMP 20 SET a = 2 WHERE pk = 1",
    );
    run(
        &engine,
        "INSERT INTO t (pk, a, b) VALUES (1, 3, 3) USING TIMESTAMP 15",
    );
    assert_eq!(select(&engine, "SELECT * FROM t"), ["1, 2, 3"]);
    run(&engine, "DELETE FROM t USING TIMESTAMP 15 WHERE pk = 1");
    assert_eq!(select(&engine, "SELECT * FROM t"), ["1, 2, null"]);
    run(
        &engine,
        "INSERT INTO t (pk, b) VALUES (1, 9) USING TIMESTAMP 14",
    );
    assert_eq!(
        select(&engine, "SELECT * FROM t"),
        ["1, 2, null"],
        "a late write stays deleted"
    );
    run(&engine, "DELETE a FROM t USING TIMESTAMP 30 WHERE pk = 1");
    assert_eq!(
        select(&engine, "SELECT * FROM t"),
        Vec::<String>::new(),
        "no marker and no cell: no row"
    );
}

#[test]
fn unset_leaves_and_null_deletes() {
    let engine = with_keyspace();
    run(&engine, "CREATE TABLE t (pk int PRIMARY KEY, a int, b int)");
    run(&engine, "INSERT INTO t (pk, a, b) VALUES (1, 1, 1)");
    let prepared = engine
        .prepare("INSERT INTO t (pk, a, b) VALUES (?, :x, ?)", Some("k"))
        .unwrap();
    let names: Vec<_> = prepared
        .bind_variables()
        .iter()
        .map(|b| b.name.as_str())
        .collect();
    assert_eq!(
        (names, prepared.primary_key_indexes()),
        (vec!["pk", "x", "b"], &[0u16][..])
    );
    let params = Params {
        values: vec![int(1), BoundValue::Unset, BoundValue::Null],
        ..params()
    };
    engine.execute(&prepared, &params).unwrap();
    assert_eq!(select(&engine, "SELECT * FROM t"), ["1, 1, null"]);
    let short = Params {
        values: vec![int(1)],
        ..params
    };
    assert!(engine.execute(&prepared, &short).is_err());
}

#[test]
fn values_expire() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE t (pk int PRIMARY KEY, v int) WITH default_time_to_live = 50",
    );
    run(&engine, "INSERT INTO t (pk, v) VALUES (1, 1)");
    run(&engine, "INSERT INTO t (pk, v) VALUES (2, 2) USING TTL 10");
    run(&engine, "INSERT INTO t (pk, v) VALUES (3, 3) USING TTL 0");
    let left = |seconds: i64| {
        let mut rows = table(run_at(
            &engine,
            "SELECT pk FROM t",
            NOW + seconds * 1_000_000,
        ));
        rows.sort();
        rows
    };
    assert_eq!(left(9), ["1", "2", "3"]);
    assert_eq!(left(10), ["1", "3"]);
    assert_eq!(left(50), ["3"]);
}

#[test]
fn collections_by_element() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE t (pk int PRIMARY KEY, l list<int>, m map<text, int>, s set<int>)",
    );
    for (change, expected) in [
        (
            "l = [1, 2], m = {'a': 1}, s = {3, 1}",
            "[1, 2], {'a': 1}, {1, 3}",
        ),
        (
            "l = l + [3], m = m + {'b': 2}, s = s + {2}",
            "[1, 2, 3], {'a': 1, 'b': 2}, {1, 2, 3}",
        ),
        (
            "l = [8, 9] + l",
            "[8, 9, 1, 2, 3], {'a': 1, 'b': 2}, {1, 2, 3}",
        ),
        (
            "l[1] = 7, m['a'] = 5",
            "[8, 7, 1, 2, 3], {'a': 5, 'b': 2}, {1, 2, 3}",
        ),
        (
            "l = l - [7, 3], m = m - {'b'}, s = s - {1}",
            "[8, 1, 2], {'a': 5}, {2, 3}",
        ),
        ("l = l + [4], s = s - {2}", "[8, 1, 2, 4], {'a': 5}, {3}"),
        ("m = {}, s = null", "[8, 1, 2, 4], null, null"),
    ] {
        run(&engine, &format!("UPDATE t SET {change} WHERE pk = 1"));
        assert_eq!(
            select(&engine, "SELECT l, m, s FROM t"),
            [expected],
            "{change}"
        );
    }
    assert_eq!(
        refusal(&engine, "UPDATE t SET l[9] = 1 WHERE pk = 1"),
        "List index 9 out of bound, list has size 4"
    );
    assert_eq!(
        select(
            &engine,
            "SELECT pk FROM t WHERE l CONTAINS 4 ALLOW FILTERING"
        ),
        ["1"]
    );
    assert_eq!(
        select(
            &engine,
            "SELECT pk FROM t WHERE l CONTAINS 5 ALLOW FILTERING"
        ),
        Vec::<String>::new()
    );
}

#[test]
fn counters_add_up() {
    let engine = with_keyspace();
    run(&engine, "CREATE TABLE c (pk int PRIMARY KEY, n counter)");
    run(&engine, "UPDATE c SET n = n + 5 WHERE pk = 1");
    run(&engine, "UPDATE c SET n = n - 2 WHERE pk = 1");
    assert_eq!(select(&engine, "SELECT n FROM c"), ["3"]);
    let add = "UPDATE c SET n = n + 10 WHERE pk = 1";
    run(
        &engine,
        &format!("BEGIN COUNTER BATCH {add}; {add}; APPLY BATCH"),
    );
    assert_eq!(select(&engine, "SELECT n FROM c"), ["23"]);
    assert!(refusal(&engine, &format!("BEGIN BATCH {add}; APPLY BATCH")).contains("logged batch"));
    assert!(refusal(&engine, "INSERT INTO c (pk, n) VALUES (1, 1)").contains("counter"));
}

#[test]
fn conditions_answer_with_the_row_as_it_was() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE t (pk int, ck int, v int, w int, PRIMARY KEY (pk, ck))",
    );
    for (statement, expected) in [
        (
            "INSERT INTO t (pk, ck, v) VALUES (1, 1, 1) IF NOT EXISTS",
            "true, null, null, null, null",
        ),
        (
            "INSERT INTO t (pk, ck, v) VALUES (1, 1, 9) IF NOT EXISTS",
            "false, 1, 1, 1, null",
        ),
        (
            "UPDATE t SET v = 2 WHERE pk = 1 AND ck = 1 IF v = 1",
            "true, 1",
        ),
        (
            "UPDATE t SET v = 3 WHERE pk = 1 AND ck = 1 IF v = 1",
            "false, 2",
        ),
        (
            "UPDATE t SET v = 3 WHERE pk = 1 AND ck = 1 IF v > 1 AND w = null",
            "true, 2, null",
        ),
        (
            "UPDATE t SET v = 3 WHERE pk = 1 AND ck = 1 IF v IN (3, 4)",
            "true, 3",
        ),
        (
            "UPDATE t SET v = 3 WHERE pk = 5 AND ck = 1 IF EXISTS",
            "false, null, null, null, null",
        ),
        (
            "DELETE FROM t WHERE pk = 1 AND ck = 1 IF v != 3",
            "false, 3",
        ),
        (
            "DELETE FROM t WHERE pk = 1 AND ck = 1 IF EXISTS",
            "true, 1, 1, 3, null",
        ),
        (
            "BEGIN BATCH INSERT INTO t (pk, ck, v) VALUES (2, 1, 1) IF NOT EXISTS; \
             INSERT INTO t (pk, ck, v) VALUES (2, 2, 2); APPLY BATCH",
            "true, null, null, null, null",
        ),
    ] {
        assert_eq!(select(&engine, statement)[0], expected, "{statement}");
    }
    assert_eq!(
        select(&engine, "SELECT pk, ck, v FROM t"),
        ["2, 1, 1", "2, 2, 2"]
    );
    assert!(
        refusal(
            &engine,
            "UPDATE t USING TIMESTAMP 1 SET v = 1 WHERE pk = 1 AND ck = 1 IF v = 1"
        )
        .contains("timestamp")
    );
}

#[test]
fn incomplete_keys_are_refused() {
    let engine = filled("ASC");
    for (statement, wording) in [
        (
            "INSERT INTO t (ck, v) VALUES (1, 1)",
            "Missing mandatory PRIMARY KEY part pk",
        ),
        (
            "INSERT INTO t (pk, v) VALUES (1, 1)",
            "Missing mandatory PRIMARY KEY part ck",
        ),
        (
            "UPDATE t SET v = 1 WHERE pk = 1",
            "Missing mandatory PRIMARY KEY part ck",
        ),
        (
            "UPDATE t SET v = 1 WHERE pk = 1 AND ck = 1 AND v = 2",
            "non PRIMARY KEY columns",
        ),
        (
            "UPDATE t SET s = 1 WHERE pk = 1 AND ck = 1",
            "modifies only static columns",
        ),
        (
            "DELETE s FROM t WHERE pk = 1 AND ck = 1",
            "modifies only static columns",
        ),
        (
            "SELECT s FROM t WHERE pk = 1 AND ck = 1",
            "selecting only static columns",
        ),
        (
            "UPDATE t SET ck = 1 WHERE pk = 1",
            "PRIMARY KEY part ck found in SET part",
        ),
        (
            "DELETE FROM t WHERE ck = 1",
            "Missing mandatory PRIMARY KEY part pk",
        ),
        (
            "INSERT INTO t (pk, ck, v) VALUES (null, 1, 1)",
            "Invalid null value",
        ),
        (
            "INSERT INTO t (pk, ck, v) VALUES ('x', 1, 1)",
            "Invalid STRING constant",
        ),
        (
            "INSERT INTO t (pk, ck, nope) VALUES (1, 1, 1)",
            "Unknown identifier nope",
        ),
    ] {
        let refused = refusal(&engine, statement);
        assert!(refused.contains(wording), "{statement}: {refused}");
    }
}

#[test]
fn pages_join_to_the_whole() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE t (pk int, ck int, s int static, PRIMARY KEY (pk, ck))",
    );
    for pk in 0..20 {
        for ck in 0..pk % 5 {
            run(
                &engine,
                &format!("INSERT INTO t (pk, ck) VALUES ({pk}, {ck})"),
            );
        }
        run(&engine, &format!("UPDATE t SET s = 1 WHERE pk = {pk}"));
    }
    for statement in [
        "SELECT * FROM t",
        "SELECT * FROM t LIMIT 17",
        "SELECT * FROM t PER PARTITION LIMIT 2",
        "SELECT DISTINCT pk FROM t",
        "SELECT * FROM t WHERE pk IN (4, 9, 14, 3) AND ck > 0",
        "SELECT * FROM t WHERE pk = 4 ORDER BY ck DESC",
        "SELECT * FROM t WHERE ck IN (0, 2) ALLOW FILTERING",
    ] {
        let whole = select(&engine, statement);
        for size in [1, 2, 3, 7, 100] {
            let mut params = Params {
                page_size: Some(size),
                ..params()
            };
            let mut joined = Vec::new();
            let mut pages = 0;
            loop {
                let outcome = engine.query(statement, &params).unwrap();
                let Outcome::Rows { paging_state, .. } = &outcome else {
                    panic!("no rows")
                };
                params.paging_state = paging_state.clone();
                joined.extend(table(outcome));
                pages += 1;
                if params.paging_state.is_none() {
                    break;
                }
            }
            assert_eq!(joined, whole, "{statement} by {size}");
            assert_eq!(
                pages,
                whole.len().div_ceil(size as usize).max(1),
                "no empty page: {statement} by {size}"
            );
        }
    }
}

#[test]
fn extreme_timestamps_are_taken() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE t (pk int PRIMARY KEY, v int, l list<int>)",
    );
    run(
        &engine,
        "CREATE TABLE c (pk int PRIMARY KEY, l list<int>) WITH cdc = {'enabled': true}",
    );
    for at in [i64::MIN + 1, -1, 0, NOW + 3 * 86_400_000_000] {
        run(
            &engine,
            &format!("UPDATE t USING TIMESTAMP {at} SET v = 1, l = l + [1] WHERE pk = 1"),
        );
        run(
            &engine,
            &format!("UPDATE t USING TIMESTAMP {at} SET l = [1] WHERE pk = 1"),
        );
        run(
            &engine,
            &format!("DELETE l FROM t USING TIMESTAMP {at} WHERE pk = 1"),
        );
        assert!(
            refusal(
                &engine,
                &format!("DELETE l FROM c USING TIMESTAMP {at} WHERE pk = 1")
            )
            .contains("cdc")
        );
    }
    assert!(
        refusal(
            &engine,
            &format!("DELETE FROM t USING TIMESTAMP {} WHERE pk = 1", i64::MIN)
        )
        .contains("timestamp")
    );
}

#[test]
fn keys_sort_by_their_type() {
    for (ty, ascending) in [
        ("int", &["-5", "0", "7"][..]),
        ("bigint", &["-9000000000", "-1", "9000000000"]),
        ("text", &["''", "'a'", "'aa'", "'b'"]),
        ("blob", &["0x", "0x00", "0x0000", "0x01", "0xff"]),
        ("double", &["-2.5", "-0.5", "0.5", "100.0"]),
        ("varint", &["-70000", "-1", "0", "255", "256", "70000"]),
        (
            "decimal",
            &["-1000E0", "-12E-1", "0E0", "12E-1", "13E-1", "1000E0"],
        ),
        ("boolean", &["false", "true"]),
        (
            "timeuuid",
            &[
                "50554d6e-29bb-11e5-b345-feff819cdc9f",
                "50554d6f-29bb-11e5-b345-feff819cdc9f",
            ],
        ),
        (
            "frozen<tuple<int, text>>",
            &["(1, 'a')", "(1, 'b')", "(2, 'a')"],
        ),
        ("frozen<list<int>>", &["[1]", "[1, 2]", "[2]"]),
        ("date", &["'1969-12-31'", "'1970-01-01'"]),
    ] {
        let engine = with_keyspace();
        run(
            &engine,
            &format!("CREATE TABLE t (pk int, ck {ty}, PRIMARY KEY (pk, ck))"),
        );
        for value in ascending.iter().rev() {
            run(
                &engine,
                &format!("INSERT INTO t (pk, ck) VALUES (1, {value})"),
            );
        }
        assert_eq!(
            select(&engine, "SELECT ck FROM t WHERE pk = 1"),
            ascending,
            "{ty}"
        );
        let after = select(
            &engine,
            &format!("SELECT ck FROM t WHERE pk = 1 AND ck > {}", ascending[0]),
        );
        assert_eq!(after, &ascending[1..], "{ty}");
    }
}

#[test]
fn malformed_values_are_refused_or_kept_but_never_panic() {
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    let random = &mut StdRng::seed_from_u64(7);
    let engine = with_keyspace();
    run(&engine, "CREATE TYPE ut (a int, b text)");
    let types = [
        "int",
        "text",
        "timeuuid",
        "uuid",
        "decimal",
        "varint",
        "duration",
        "inet",
        "date",
        "boolean",
        "double",
        "list<int>",
        "set<timeuuid>",
        "map<text, int>",
        "tuple<int, decimal>",
        "ut",
        "frozen<list<frozen<ut>>>",
    ];
    for (i, ty) in types.iter().enumerate() {
        let keyed = if [
            "duration",
            "list<int>",
            "set<timeuuid>",
            "map<text, int>",
            "ut",
        ]
        .contains(ty)
        {
            "int"
        } else {
            *ty
        };
        run(
            &engine,
            &format!(
                "CREATE TABLE t{i} (pk int, ck {keyed}, v {ty}, PRIMARY KEY (pk, ck)) WITH cdc = {{'enabled': true, 'postimage': true}}"
            ),
        );
        let insert = engine
            .prepare(
                &format!("INSERT INTO t{i} (pk, ck, v) VALUES (1, ?, ?)"),
                Some("k"),
            )
            .unwrap();
        let read = engine
            .prepare(
                &format!("SELECT * FROM t{i} WHERE pk = 1 AND ck > ?"),
                Some("k"),
            )
            .unwrap();
        for _ in 0..300 {
            let mut bytes = || {
                let length = random.random_range(0..24);
                let mut bytes: Vec<u8> = (0..length).map(|_| random.random()).collect();
                // Lengths and counts that nearly make sense.
                for (at, byte) in bytes.iter_mut().enumerate() {
                    if at % 4 != 3 && random.random_range(0..4) > 0 {
                        *byte = 0;
                    }
                }
                BoundValue::Bytes(bytes.into())
            };
            let (a, b, c) = (bytes(), bytes(), bytes());
            let run = |prepared, values| engine.execute(prepared, &Params { values, ..params() });
            drop(run(&insert, vec![a, b]));
            drop(run(&read, vec![c]));
        }
        run(
            &engine,
            &format!("SELECT count(*) FROM t{i}_scylla_cdc_log"),
        );
    }
    for length in 0..40 {
        let paging_state = Some(
            (0..length)
                .map(|_| random.random::<u8>() % 3)
                .collect::<Vec<u8>>()
                .into(),
        );
        drop(engine.query(
            "SELECT * FROM t0",
            &Params {
                paging_state,
                page_size: Some(1),
                ..params()
            },
        ));
    }
}

#[test]
fn of_two_writes_of_one_time_and_expiry_the_shorter_ttl_wins() {
    let engine = with_keyspace();
    run(&engine, "CREATE TABLE t (pk int PRIMARY KEY, v int)");
    let write = |key: i32, value: i32, ttl: i32, at: i64| {
        let ttl = if ttl > 0 {
            format!(" AND TTL {ttl}")
        } else {
            String::new()
        };
        run_at(
            &engine,
            &format!("INSERT INTO t (pk, v) VALUES ({key}, {value}) USING TIMESTAMP 5{ttl}"),
            at,
        );
    };
    // Both end at the same second, and the second was written later.
    write(1, 9, 30, NOW);
    write(1, 1, 20, NOW + 10_000_000);
    write(2, 1, 20, NOW + 10_000_000);
    write(2, 9, 30, NOW);
    // Without a TTL the greater value wins, whenever they were written.
    write(3, 9, 0, NOW);
    write(3, 1, 0, NOW + 10_000_000);
    let at = |key: i32| {
        table(run_at(
            &engine,
            &format!("SELECT v FROM t WHERE pk = {key}"),
            NOW + 11_000_000,
        ))
    };
    assert_eq!(
        (at(1), at(2), at(3)),
        (vec!["1".into()], vec!["1".into()], vec!["9".into()])
    );
}

#[test]
fn keys_too_long_and_batches_too_large_are_refused() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE t (p blob, c blob, v blob, PRIMARY KEY (p, c))",
    );
    let bytes = |length: usize| BoundValue::Bytes(vec![7; length].into());
    let query =
        |text: &str, values: Vec<BoundValue>| engine.query(text, &Params { values, ..params() });
    let insert = "INSERT INTO t (p, c) VALUES (?, ?)";
    query(insert, vec![bytes(65_533), bytes(65_533)]).expect("as long as it can be");
    for values in [vec![bytes(65_536), bytes(1)], vec![bytes(1), bytes(65_536)]] {
        let e = query(insert, values).expect_err("too long");
        assert_eq!(
            (e.code, e.message.as_str()),
            (
                INVALID,
                "Key length of 65538 is longer than maximum of 65535"
            )
        );
    }
    let e = query("SELECT * FROM t WHERE p = ?", vec![bytes(65_536)]).expect_err("too long");
    assert!(e.message.starts_with("Key length of 65538"), "{e}");

    let batch = "BEGIN UNLOGGED BATCH INSERT INTO t (p, c, v) VALUES (0x01, 0x01, ?); \
                 INSERT INTO t (p, c, v) VALUES (?, 0x02, ?); APPLY BATCH";
    let half = |partition: u8| {
        let value = bytes(600 * 1024);
        vec![
            value.clone(),
            BoundValue::Bytes(vec![partition].into()),
            value,
        ]
    };
    query(batch, half(1)).expect("one partition may be as large as it likes");
    assert_eq!(
        query(batch, half(2)).expect_err("over 1 MiB").message,
        "Batch too large"
    );
    assert_eq!(
        select(&engine, "SELECT count(*) FROM t WHERE p = 0x02"),
        ["0"]
    );
}

#[test]
fn consistency_is_refused_where_it_cannot_be_or_cannot_be_reached() {
    let engine = with_keyspace();
    run(&engine, "CREATE TABLE t (pk int PRIMARY KEY, v int)");
    run(&engine, "CREATE TABLE c (pk int PRIMARY KEY, n counter)");
    run(
        &engine,
        "CREATE KEYSPACE three WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 3} \
         AND tablets = {'enabled': false}",
    );
    run(&engine, "CREATE TABLE three.t (pk int PRIMARY KEY, v int)");
    let [any, one, quorum, each_quorum, serial, local_serial] = [0, 1, 4, 7, 8, 9];
    let try_at = |statement: &str, consistency: u16, serial_consistency: Option<u16>| {
        let params = Params {
            consistency,
            serial_consistency,
            ..params()
        };
        engine.query(statement, &params)
    };
    for level in [one, 4, 5, 6, each_quorum, 10, any] {
        try_at("INSERT INTO t (pk, v) VALUES (1, 1)", level, None).expect("a write");
    }
    for level in [one, 4, 5, 6, serial, local_serial, 10] {
        try_at("SELECT * FROM t WHERE pk = 1", level, None).expect("a read");
    }
    try_at(
        "INSERT INTO t (pk) VALUES (2) IF NOT EXISTS",
        one,
        Some(local_serial),
    )
    .expect("a condition");
    for (statement, level, serial_level, expected) in [
        (
            "INSERT INTO t (pk) VALUES (1)",
            serial,
            None,
            "You must use conditional updates for serializable writes",
        ),
        (
            "SELECT * FROM t WHERE pk = 1",
            each_quorum,
            None,
            "EACH_QUORUM ConsistencyLevel is only supported for writes",
        ),
        (
            "SELECT * FROM t WHERE pk = 1",
            any,
            None,
            "ANY ConsistencyLevel is only supported for writes",
        ),
        (
            "SELECT * FROM t",
            serial,
            None,
            "SERIAL/LOCAL_SERIAL consistency may only be requested for one partition",
        ),
        (
            "INSERT INTO t (pk) VALUES (3) IF NOT EXISTS",
            local_serial,
            None,
            "LOCAL_SERIAL is not supported as conditional",
        ),
        (
            "INSERT INTO t (pk) VALUES (3) IF NOT EXISTS",
            one,
            Some(quorum),
            "Invalid consistency for conditional update",
        ),
        (
            "UPDATE c SET n = n + 1 WHERE pk = 1",
            serial,
            None,
            "Counter operations are inherently non-serializable",
        ),
        (
            "UPDATE c SET n = n + 1 WHERE pk = 1",
            any,
            None,
            "Consistency level ANY is not yet supported for counter",
        ),
    ] {
        let e = try_at(statement, level, serial_level).expect_err(statement);
        assert_eq!(e.code, INVALID, "{statement}: {e}");
        assert!(e.message.starts_with(expected), "{statement}: {e}");
    }
    // Three copies on one node: one of them is there.
    for statement in [
        "INSERT INTO three.t (pk) VALUES (1)",
        "SELECT * FROM three.t",
    ] {
        try_at(statement, one, None).expect(statement);
        let e = try_at(statement, quorum, None).expect_err(statement);
        assert_eq!(
            e.message,
            "Cannot achieve consistency level for cl QUORUM. Requires 2, alive 1"
        );
        let detail = ErrorDetail::Unavailable {
            consistency: quorum,
            required: 2,
            alive: 1,
        };
        assert_eq!((e.code, e.detail), (UNAVAILABLE, detail));
    }
    let e = try_at(
        "INSERT INTO three.t (pk) VALUES (1) IF NOT EXISTS",
        one,
        None,
    )
    .expect_err("no quorum");
    assert_eq!(e.code, UNAVAILABLE);
    assert_eq!(
        try_at("SELECT * FROM t", 11, None)
            .expect_err("no level")
            .code,
        PROTOCOL_ERROR
    );
}

#[test]
fn a_null_is_equal_to_null_in_a_condition_and_to_nothing_where_rows_are_selected() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE t (pk int, ck int, s int static, v int, m map<int, int>, PRIMARY KEY (pk, ck))",
    );
    run(&engine, "INSERT INTO t (pk, ck, s) VALUES (1, 1, 1)");
    let query = |text: &str, values: Vec<BoundValue>| {
        table(
            engine
                .query(text, &Params { values, ..params() })
                .unwrap_or_else(|e| panic!("{text}: {e}")),
        )
    };
    let with_null = BoundValue::Bytes(Bytes::from_static(&[
        0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 5, 0xff, 0xff, 0xff, 0xff,
    ]));
    assert_eq!(
        query(
            "UPDATE t SET s = 2 WHERE pk = 1 AND ck = 1 IF v IN ?",
            vec![with_null.clone()]
        ),
        ["true, null"]
    );
    for (rest, value) in [
        ("pk IN ?", BoundValue::Null),
        ("pk = 1 AND ck IN ?", BoundValue::Null),
        ("v IN ? ALLOW FILTERING", BoundValue::Null),
        ("v IN ? ALLOW FILTERING", with_null),
        ("v = ? ALLOW FILTERING", BoundValue::Null),
        ("v > ? ALLOW FILTERING", BoundValue::Null),
        ("m CONTAINS ? ALLOW FILTERING", BoundValue::Null),
        ("m[?] = 3 ALLOW FILTERING", BoundValue::Null),
        ("pk = 1 AND ck > ?", BoundValue::Null),
    ] {
        let found = query(&format!("SELECT pk FROM t WHERE {rest}"), vec![value]);
        assert_eq!(found, Vec::<String>::new(), "{rest}");
    }
    let refused = |text: &str, value: BoundValue| {
        engine
            .query(
                text,
                &Params {
                    values: vec![value],
                    ..params()
                },
            )
            .expect_err(text)
            .message
    };
    assert_eq!(
        refused("DELETE FROM t WHERE pk IN ?", BoundValue::Null),
        "Invalid null value in condition for column pk"
    );
    assert!(
        refused(
            "SELECT * FROM t WHERE v = ? ALLOW FILTERING",
            BoundValue::Unset
        )
        .contains("unset")
    );
    // Which row a condition is about must be said, unless it is about the partition alone.
    run(&engine, "UPDATE t SET s = 3 WHERE pk = 1 IF s = 2");
    assert_eq!(
        refusal(&engine, "UPDATE t SET s = 4 WHERE pk = 1 IF v = 1"),
        "Missing mandatory PRIMARY KEY part ck"
    );
    assert!(
        refusal(&engine, "DELETE s FROM t WHERE pk = 1 IF v = 1")
            .contains("IF condition on non static columns")
    );
    assert_eq!(select(&engine, "SELECT DISTINCT s FROM t"), ["3"]);
}

#[test]
fn a_page_ends_at_about_a_megabyte_also_when_all_of_it_is_filtered_out() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE t (pk int, ck int, n int, v blob, PRIMARY KEY (pk, ck))",
    );
    let value = BoundValue::Bytes(vec![7; 100_000].into());
    for ck in 0..45 {
        let insert = format!(
            "INSERT INTO t (pk, ck, n, v) VALUES ({}, {ck}, {ck}, ?)",
            ck / 15
        );
        let values = vec![value.clone()];
        engine
            .query(&insert, &Params { values, ..params() })
            .expect("a row");
    }
    let pages = |statement: &str, page_size: Option<i32>| {
        let (mut pages, mut paging_state) = (Vec::new(), None);
        loop {
            let params = Params {
                page_size,
                paging_state,
                ..params()
            };
            let Ok(Outcome::Rows {
                rows,
                paging_state: next,
                ..
            }) = engine.query(statement, &params)
            else {
                panic!("no rows")
            };
            pages.push(rows.len());
            paging_state = next;
            if paging_state.is_none() {
                return pages;
            }
        }
    };
    // The row that goes over the bound is the last of its page.
    assert_eq!(
        pages("SELECT ck, v FROM t WHERE pk = 0", Some(100_000)),
        [11, 4]
    );
    assert_eq!(pages("SELECT ck FROM t WHERE pk = 0", Some(3)), [3; 5]);
    assert_eq!(
        pages("SELECT ck FROM t WHERE pk = 0", None),
        [15],
        "not asked for pages"
    );
    assert_eq!(
        pages("SELECT ck FROM t", Some(100_000))
            .iter()
            .sum::<usize>(),
        45
    );
    assert_eq!(
        pages(
            "SELECT ck FROM t WHERE n = 14 ALLOW FILTERING",
            Some(100_000)
        )
        .iter()
        .sum::<usize>(),
        1
    );
    // Nothing is found, but only the last page says so.
    assert_eq!(
        pages(
            "SELECT ck FROM t WHERE n = 99 ALLOW FILTERING",
            Some(100_000)
        ),
        [0; 5]
    );
    assert_eq!(
        pages(
            "SELECT ck FROM t WHERE pk = 0 ORDER BY ck DESC",
            Some(100_000)
        ),
        [11, 4]
    );
    assert_eq!(
        pages("SELECT count(*) FROM t", Some(10)),
        [1],
        "an aggregate is of all pages"
    );
    assert_eq!(
        pages("SELECT ck FROM t WHERE pk = 0 LIMIT 12", Some(100_000)),
        [11, 1]
    );
}

#[test]
fn a_timestamp_is_at_most_three_days_ahead_and_not_the_least_there_is() {
    let engine = with_keyspace();
    run(&engine, "CREATE TABLE t (pk int PRIMARY KEY, v int)");
    let insert = |at: i64| format!("INSERT INTO t (pk, v) VALUES (1, 1) USING TIMESTAMP {at}");
    let latest = NOW + 3 * 86_400_000_000;
    run(&engine, &insert(latest));
    assert!(refusal(&engine, &insert(latest + 1)).contains("more than 3 days into the future"));
    assert!(refusal(&engine, &insert(i64::MIN)).contains("bound"));
}

#[test]
fn parts_of_collections_and_types_have_their_time_and_ttl() {
    let engine = with_keyspace();
    run(&engine, "CREATE TYPE ut (a int, b int)");
    run(
        &engine,
        "CREATE TABLE t (pk int PRIMARY KEY, u ut, m map<int, int>, st set<int>, f frozen<ut>, v int, l list<int>)",
    );
    run(
        &engine,
        "UPDATE t USING TIMESTAMP 5 SET u.a = 1, m[7] = 1 WHERE pk = 1",
    );
    run(
        &engine,
        "UPDATE t USING TIMESTAMP 6 AND TTL 100 SET u.b = 1, st = st + {3} WHERE pk = 1",
    );
    assert_eq!(
        select(
            &engine,
            "SELECT writetime(u.a), writetime(u.b), writetime(m[7]), writetime(m[8]), writetime(st[3]), ttl(u.a), ttl(u.b) FROM t"
        ),
        ["5, 6, 5, null, 6, null, 100"]
    );
    for (what, expected) in [
        ("writetime(v[3])", "Column v is not a map/set"),
        ("ttl(l[0])", "Column l is not a map/set"),
        ("writetime(v.a)", "user type"),
        ("ttl(f.a)", "part of column f"),
        ("writetime(m)", "on collections"),
        ("ttl(pk)", "PRIMARY KEY part pk"),
    ] {
        let message = refusal(&engine, &format!("SELECT {what} FROM t"));
        assert!(message.contains(expected), "{what}: {message}");
    }
}

#[test]
fn a_conditional_update_calculates() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE t (pk int PRIMARY KEY, i tinyint, d decimal, f double, n varint)",
    );
    run(
        &engine,
        "INSERT INTO t (pk, i, d, f, n) VALUES (1, 126, 1.5, 0.25, 10)",
    );
    let update = |set: &str| format!("UPDATE t SET {set} WHERE pk = 1 IF EXISTS");
    run(
        &engine,
        &update("i = i + 1, d = d - 0.25, f = f + 1, n = n - 20"),
    );
    assert_eq!(
        select(&engine, "SELECT i, d, f, n FROM t"),
        ["127, 125E-2, 1.25, -10"]
    );
    assert!(refusal(&engine, &update("i = i + 1")).contains("overflow"));
    assert!(
        refusal(&engine, "UPDATE t SET i = i + 1 WHERE pk = 1")
            .contains("requires an LWT condition")
    );
    run(&engine, "UPDATE t SET n = null WHERE pk = 1");
    run(&engine, &update("n = n + 1"));
    assert_eq!(select(&engine, "SELECT n FROM t"), ["null"]);
}
