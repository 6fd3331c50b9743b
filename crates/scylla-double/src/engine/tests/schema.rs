//! Statements that change the schema, and what the engine tells of them.

use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::engine::{
    ALREADY_EXISTS, CONFIG_ERROR, ErrorDetail, INVALID, SYNTAX_ERROR, UNAUTHORIZED,
};

#[test]
fn changes_are_told_of_with_the_log() {
    let engine = with_keyspace();
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let sink = told.clone();
    engine.on_schema_change(move |schema, changes| {
        for change in changes {
            let there = schema.table(&change.keyspace, &change.name).is_some();
            sink.lock().push(format!(
                "{} {} {} {there}",
                change.change.as_str(),
                change.target.as_str(),
                change.name
            ));
        }
    });
    run(
        &engine,
        "CREATE TABLE t (pk int PRIMARY KEY, v int) WITH cdc = {'enabled': true}",
    );
    run(&engine, "CREATE TABLE IF NOT EXISTS t (pk int PRIMARY KEY)");
    run(&engine, "ALTER TABLE t ADD w int");
    run(&engine, "DROP TABLE t");
    run(&engine, "CREATE TYPE ty (a int)");
    assert_eq!(
        *told.lock(),
        [
            "CREATED TABLE t true",
            "CREATED TABLE t_scylla_cdc_log true",
            "UPDATED TABLE t true",
            "UPDATED TABLE t_scylla_cdc_log true",
            "DROPPED TABLE t false",
            "DROPPED TABLE t_scylla_cdc_log false",
            "CREATED TYPE ty false",
        ]
    );
}

#[test]
fn refusals_have_their_codes() {
    let engine = with_keyspace();
    run(&engine, "CREATE TABLE t (pk int PRIMARY KEY, v int)");
    let code = |statement: &str| try_run(&engine, statement).expect_err(statement).code;
    for (statement, expected) in [
        ("SELECT * FROM missing", INVALID),
        ("SELECT * FROM missing.t", INVALID),
        ("SELECT nothing FROM t", INVALID),
        ("SELEKT 1", SYNTAX_ERROR),
        ("CREATE TABLE t (pk int PRIMARY KEY)", ALREADY_EXISTS),
        (
            "CREATE KEYSPACE k WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}",
            ALREADY_EXISTS,
        ),
        (
            "INSERT INTO system.cdc_timestamps (keyspace_name, table_name, \"timestamp\") VALUES ('a', 'b', 0)",
            UNAUTHORIZED,
        ),
        (
            "CREATE TABLE system.mine (pk int PRIMARY KEY)",
            UNAUTHORIZED,
        ),
        ("CREATE TABLE a (pk int)", INVALID),
        ("CREATE TABLE a (pk list<int> PRIMARY KEY)", INVALID),
        ("CREATE TABLE a (pk int PRIMARY KEY, s int static)", INVALID),
        ("ALTER TABLE t DROP pk", INVALID),
        ("DROP TABLE missing", INVALID),
    ] {
        assert_eq!(code(statement), expected, "{statement}");
    }
    let error = try_run(&engine, "SELECT * FROM missing").unwrap_err();
    assert_eq!(error.message, "unconfigured table missing");
    let error = try_run(&engine, "CREATE TABLE t (pk int PRIMARY KEY)").unwrap_err();
    assert_eq!(
        error.detail,
        ErrorDetail::AlreadyExists {
            keyspace: "k".into(),
            table: "t".into()
        }
    );
}

#[test]
fn prepared_statement_follows_the_schema() {
    let engine = with_keyspace();
    run(&engine, "CREATE TABLE t (pk int PRIMARY KEY, v int)");
    run(&engine, "INSERT INTO t (pk, v) VALUES (1, 2)");
    let prepared = engine.prepare("SELECT * FROM t", Some("k")).unwrap();
    assert!(engine.is_current(&prepared));
    run(&engine, "ALTER TABLE t ADD w int");
    assert!(!engine.is_current(&prepared));
    assert_eq!(
        table(engine.execute(&prepared, &params()).unwrap()),
        ["1, 2, null"]
    );
    run(&engine, "DROP TABLE t");
    assert_eq!(
        engine.execute(&prepared, &params()).unwrap_err().message,
        "unconfigured table t"
    );
}

#[test]
fn dropped_column_comes_back_empty() {
    let engine = with_keyspace();
    run(&engine, "CREATE TABLE t (pk int PRIMARY KEY, v int)");
    run(&engine, "INSERT INTO t (pk, v) VALUES (1, 2)");
    run(&engine, "ALTER TABLE t DROP v");
    run(&engine, "ALTER TABLE t ADD v int");
    assert_eq!(select(&engine, "SELECT pk, v FROM t"), ["1, null"]);
    run(&engine, "ALTER TABLE t RENAME pk TO id");
    assert_eq!(select(&engine, "SELECT id FROM t"), ["1"]);
}

#[test]
fn a_column_comes_back_with_what_was_written_after_its_drop() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE t (pk int PRIMARY KEY, v int, m map<int, int>, n int)",
    );
    for at in [10, 20, 30] {
        run(
            &engine,
            &format!("INSERT INTO t (pk, v) VALUES ({at}, {at}) USING TIMESTAMP {at}"),
        );
    }
    engine
        .query(
            "ALTER TABLE t DROP v USING TIMESTAMP ?",
            &Params {
                values: vec![BoundValue::Bytes(Bytes::copy_from_slice(
                    &20_i64.to_be_bytes(),
                ))],
                ..params()
            },
        )
        .expect("it is dropped");
    run(&engine, "ALTER TABLE t ADD v int");
    let mut rows = select(&engine, "SELECT pk, v FROM t");
    rows.sort();
    assert_eq!(rows, ["10, null", "20, null", "30, 30"]);
    // Of another type: not a collection for another one, of which there may be parts left.
    run(&engine, "ALTER TABLE t DROP (m, n)");
    assert!(
        refusal(&engine, "ALTER TABLE t ADD m map<int, text>")
            .contains("a different type has already been used")
    );
    run(&engine, "ALTER TABLE t ADD m map<int, int>");
    run(&engine, "ALTER TABLE t ADD n text");
    assert_eq!(
        refusal(&engine, "ALTER TABLE t ADD pk int"),
        "Invalid column name pk because it conflicts with a PRIMARY KEY part"
    );
}

#[test]
fn user_types_grow_where_they_are_used() {
    let engine = with_keyspace();
    run(&engine, "CREATE TYPE inner_t (a int)");
    run(&engine, "CREATE TYPE outer_t (i frozen<inner_t>)");
    run(
        &engine,
        "CREATE TABLE t (pk int PRIMARY KEY, o frozen<outer_t>, i inner_t)",
    );
    run(
        &engine,
        "INSERT INTO t (pk, o, i) VALUES (1, {i: {a: 1}}, {a: 2})",
    );
    run(&engine, "ALTER TYPE inner_t ADD b text");
    run(&engine, "UPDATE t SET i.b = 'x' WHERE pk = 1");
    assert_eq!(
        select(&engine, "SELECT i, i.b, o.i FROM t"),
        ["{a: 2, b: 'x'}, 'x', {a: 1}"]
    );
    assert!(refusal(&engine, "DROP TYPE inner_t").contains("still used"));
}

#[test]
fn internal_rows_are_put_and_removed() {
    let engine = engine();
    engine
        .create_internal_table(
            "CREATE TABLE system.x (a text, b int, v set<text>, PRIMARY KEY (a, b))",
        )
        .unwrap();
    let text = |t: &str| Some(Bytes::copy_from_slice(t.as_bytes()));
    let number = |n: i32| Some(Bytes::copy_from_slice(&n.to_be_bytes()));
    let set = crate::types::Value::Set(vec![Value::Text("p".into())]).encode();
    for b in 0..3 {
        engine
            .put_internal(
                "system",
                "x",
                &[
                    ("a", text("k")),
                    ("b", number(b)),
                    ("v", Some(set.clone().into())),
                ],
            )
            .unwrap();
    }
    engine
        .put_internal("system", "x", &[("a", text("k")), ("b", number(1))])
        .unwrap();
    assert_eq!(
        select(&engine, "SELECT * FROM system.x"),
        ["'k', 0, {'p'}", "'k', 1, null", "'k', 2, {'p'}"]
    );
    engine
        .remove_internal("system", "x", &[("a", text("k")), ("b", number(0))])
        .unwrap();
    assert_eq!(select(&engine, "SELECT b FROM system.x").len(), 2);
    engine
        .remove_internal("system", "x", &[("a", text("k"))])
        .unwrap();
    assert_eq!(select(&engine, "SELECT b FROM system.x").len(), 0);
}

#[test]
fn names_may_be_192_characters_long() {
    let engine = with_keyspace();
    for length in [49, 192] {
        let (table, column) = ("t".repeat(length), "c".repeat(length));
        run(
            &engine,
            &format!(
                "CREATE TABLE {table} (pk int PRIMARY KEY, {column} int) WITH cdc = {{'enabled': true}}"
            ),
        );
        run(
            &engine,
            &format!("INSERT INTO {table} (pk, {column}) VALUES (1, 2)"),
        );
        let log = format!("SELECT {column} FROM {table}_scylla_cdc_log");
        assert_eq!(select(&engine, &log), ["2"]);
    }
    let table = "t".repeat(193);
    assert_eq!(
        refusal(
            &engine,
            &format!("CREATE TABLE {table} (pk int PRIMARY KEY)")
        ),
        format!("Table names shouldn't be more than 192 characters long (got \"{table}\")")
    );
    assert_eq!(
        refusal(&engine, "CREATE TABLE \"a-b\" (pk int PRIMARY KEY)"),
        "\"a-b\" is not a valid table name (must be alphanumeric character only: [0-9A-Za-z]+)"
    );
}

/// An engine that makes keyspaces with tablets, as it does unless told otherwise, and keyspace `k`.
fn with_tablets() -> Engine {
    let engine = engine();
    run(
        &engine,
        "CREATE KEYSPACE k WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}",
    );
    engine
}

fn tablets(engine: &Engine, keyspace: &str) -> Option<u32> {
    engine.schema().keyspaces[keyspace].tablets
}

#[test]
fn a_keyspace_has_tablets_unless_it_or_the_engine_says_otherwise() {
    let engine = with_tablets();
    assert_eq!(tablets(&engine, "k"), Some(0));
    // No replication at all means a copy in each rack.
    run(&engine, "CREATE KEYSPACE bare");
    assert_eq!(tablets(&engine, "bare"), Some(0));
    assert_eq!(
        engine.schema().keyspaces["bare"].replication["datacenter1"],
        "1"
    );
    let nts = "replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 1}";
    for (name, clause, expected) in [
        ("off", "{'enabled': false}", None),
        ("yes", "{'enabled': true}", Some(0)),
        ("eight", "{'initial': 8}", Some(8)),
    ] {
        run(
            &engine,
            &format!("CREATE KEYSPACE {name} WITH {nts} AND tablets = {clause}"),
        );
        assert_eq!(tablets(&engine, name), expected, "{clause}");
    }
    let before = Engine::new(Options {
        tablets_by_default: false,
        ..Options::default()
    });
    run(&before, &format!("CREATE KEYSPACE k WITH {nts}"));
    run(
        &before,
        "CREATE KEYSPACE s WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}",
    );
    assert_eq!((tablets(&before, "k"), tablets(&before, "s")), (None, None));
}

#[test]
fn what_a_keyspace_or_its_tablets_cannot_be_is_refused() {
    let engine = with_tablets();
    run(
        &engine,
        "CREATE KEYSPACE off WITH replication = {'class': 'NetworkTopologyStrategy'} AND tablets = {'enabled': false}",
    );
    run(
        &engine,
        "CREATE KEYSPACE three WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 3}",
    );
    let create = |rest: &str| format!("CREATE KEYSPACE r WITH replication = {rest}");
    let table = |name: &str, rest: &str| format!("CREATE TABLE {name} (k int PRIMARY KEY) {rest}");
    for (statement, code, expected) in [
        (
            create("{'class': 'SimpleStrategy', 'replication_factor': 1}"),
            CONFIG_ERROR,
            "SimpleStrategy doesn't support tablet replication",
        ),
        (
            create("{'class': 'NetworkTopologyStrategy', 'dc2': 1}"),
            CONFIG_ERROR,
            "Unrecognized strategy option {dc2} passed to org.apache.cassandra.locator.NetworkTopologyStrategy",
        ),
        (
            create("{'class': 'NetworkTopologyStrategy'} AND tablets = {'bogus': 1}"),
            CONFIG_ERROR,
            "Unrecognized tablets option bogus",
        ),
        (
            create("{'class': 'NetworkTopologyStrategy'} AND tablets = {'enabled': 2}"),
            CONFIG_ERROR,
            "Tablets enabled value must be true or false; found: 2",
        ),
        (
            "ALTER KEYSPACE k WITH tablets = {'enabled': false}".into(),
            INVALID,
            "Cannot alter replication strategy vnode/tablets flavor",
        ),
        (
            table("t", "WITH tablets = {'bogus': 1}"),
            SYNTAX_ERROR,
            "Unknown tablet hint 'bogus'",
        ),
        (
            table("t", "WITH tablets = {'min_tablet_count': -1}"),
            CONFIG_ERROR,
            "Invalid value '-1' for min_tablet_count",
        ),
        (
            table("off.t", "WITH tablets = {'min_tablet_count': 4}"),
            CONFIG_ERROR,
            "tablet options cannot be used when tablets are disabled for the keyspace",
        ),
        (
            table("three.t", ""),
            CONFIG_ERROR,
            "Datacenter datacenter1 doesn't have enough token-owning nodes for replication_factor=3",
        ),
    ] {
        let e = try_run(&engine, &statement).expect_err(&statement);
        assert_eq!(
            (e.code, e.message.as_str()),
            (code, expected),
            "{statement}"
        );
    }
}

fn described(engine: &Engine, statement: &str) -> Vec<String> {
    let (columns, rows) = parts(run(engine, statement));
    assert!(
        columns
            .iter()
            .all(|c| c.keyspace == "system" && c.table == "describe")
    );
    rows.iter()
        .map(|row| {
            let last = row.last().expect("a column").as_ref().expect("a text");
            String::from_utf8(last.to_vec()).expect("UTF-8")
        })
        .collect()
}

#[test]
fn what_is_described_makes_the_same_again() {
    let engine = with_tablets();
    run(&engine, "CREATE TYPE \"Inner\" (\"a!\" int)");
    run(&engine, "CREATE TYPE a_outer (i frozen<\"Inner\">, n int)");
    run(
        &engine,
        "CREATE TABLE t (p1 int, p2 text, c timeuuid, s int STATIC, v map<int, text>, u frozen<a_outer>, \"Q\" int, \
         PRIMARY KEY ((p1, p2), c)) WITH CLUSTERING ORDER BY (c DESC) AND comment = 'it''s' AND default_time_to_live = 9 \
         AND cdc = {'enabled': true, 'preimage': 'full'} AND tablets = {'min_tablet_count': 8}",
    );
    let made = described(&engine, "DESC KEYSPACE k");
    assert_eq!(
        made[..3],
        [
            "CREATE KEYSPACE k WITH replication = {'class': 'org.apache.cassandra.locator.NetworkTopologyStrategy', \
             'datacenter1': '1'} AND durable_writes = true AND tablets = {'enabled': true};",
            "CREATE TYPE k.\"Inner\" (\n    \"a!\" int\n);",
            "CREATE TYPE k.a_outer (\n    i frozen<\"Inner\">,\n    n int\n);",
        ]
    );
    assert!(
        made[3].starts_with(
            "CREATE TABLE k.t (\n    p1 int,\n    p2 text,\n    c timeuuid,\n    s int STATIC,\n    \"Q\" int,\n    \
             u frozen<a_outer>,\n    v map<int, text>,\n    PRIMARY KEY ((p1, p2), c)\n) WITH CLUSTERING ORDER BY (c DESC)\n    \
             AND bloom_filter_fp_chance = 0.01\n    AND caching = {'keys': 'ALL', 'rows_per_partition': 'ALL'}\n    \
             AND comment = 'it''s'\n"
        ),
        "{}",
        made[3]
    );
    for part in [
        "AND tablets = {'min_tablet_count': '8'}",
        "AND cdc = {'delta': 'full', 'enabled': 'true', 'postimage': 'false', 'preimage': 'full', 'ttl': '86400'}",
    ] {
        assert!(made[3].contains(part), "{}", made[3]);
    }
    // The log is made with its table; what is told of it are its options.
    assert!(
        made[4].starts_with("ALTER TABLE k.t_scylla_cdc_log WITH bloom_filter"),
        "{}",
        made[4]
    );
    let log = described(&engine, "DESC TABLE t_scylla_cdc_log");
    assert!(
        log[0].starts_with("/* Do NOT execute this statement!") && log[0].ends_with(";\n\n*/"),
        "{}",
        log[0]
    );

    let again = engine_of(&made);
    assert_eq!(described(&again, "DESC KEYSPACE k"), made);
    assert_eq!(described(&engine, "DESC TABLES"), ["t"]);
    assert_eq!(described(&engine, "DESC TYPES"), ["\"Inner\"", "a_outer"]);
    assert_eq!(described(&engine, "DESCRIBE ONLY KEYSPACE"), made[..1]);
    assert_eq!(described(&engine, "DESCRIBE SCHEMA"), made);
    assert!(described(&engine, "DESC FULL SCHEMA").len() > made.len());
    assert_eq!(described(&engine, "DESC k.t"), made[3..]);
    for (statement, expected) in [
        ("DESC TABLE k.no", "Table 'no' not found in keyspace 'k'"),
        ("DESC KEYSPACE no", "'no' not found in keyspaces"),
        ("DESC no.t", "'t' not found in keyspaces"),
        ("DESC no", "'no' not found in keyspace 'k'"),
        (
            "DESC TABLE t WITH INTERNALS AND PASSWORDS",
            "Option WITH PASSWORDS is only allowed with DESC SCHEMA",
        ),
    ] {
        assert_eq!(refusal(&engine, statement), expected, "{statement}");
    }
}

fn engine_of(statements: &[String]) -> Engine {
    let engine = engine();
    for statement in statements {
        run(&engine, statement);
    }
    engine
}

#[test]
fn internals_tell_of_identity_and_of_dropped_columns() {
    let engine = with_keyspace();
    run(&engine, "CREATE TABLE t (pk int PRIMARY KEY, v int, w int)");
    run(&engine, "ALTER TABLE t DROP v USING TIMESTAMP 7");
    run(&engine, "ALTER TABLE t DROP w USING TIMESTAMP 8");
    run(&engine, "ALTER TABLE t ADD v int");
    let made = &described(&engine, "DESC TABLE t WITH INTERNALS")[0];
    let id = engine.schema().table("k", "t").expect("a table").id;
    assert!(
        made.starts_with(&format!(
            "CREATE TABLE k.t (\n    pk int,\n    w int,\n    v int,\n    PRIMARY KEY (pk)\n) WITH ID = {id}\nAND bloom"
        )),
        "{made}"
    );
    assert!(
        made.ends_with(
            "\nALTER TABLE k.t DROP w USING TIMESTAMP 8;\nALTER TABLE k.t DROP v USING TIMESTAMP 7;\nALTER TABLE k.t ADD v int;"
        ),
        "{made}"
    );
    let again = with_keyspace();
    for statement in made.split_inclusive(";\n").filter(|s| s.trim() != "") {
        run(&again, statement.trim());
    }
    // In another order, as they were dropped in another one.
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let made_again = &described(&again, "DESC TABLE t WITH INTERNALS")[0];
    assert_eq!(sorted(made_again), sorted(made));
    let plain = &described(&engine, "DESC TABLE t")[0];
    assert!(
        !plain.contains("ID =") && !plain.contains("w int"),
        "{plain}"
    );
}

#[test]
fn speculative_retry_is_kept_as_scylladb_keeps_it() {
    let engine = with_keyspace();
    run(&engine, "CREATE TABLE t (pk int PRIMARY KEY)");
    for (given, kept) in [
        ("none", "NONE"),
        ("200ms", "200.00ms"),
        ("99percentile", "99.0PERCENTILE"),
        ("+0PERCENTILE", "0.0PERCENTILE"),
    ] {
        run(
            &engine,
            &format!("ALTER TABLE t WITH speculative_retry = '{given}'"),
        );
        let schema = engine.schema();
        assert_eq!(
            schema.table("k", "t").expect("a table").options.values["speculative_retry"],
            kept
        );
    }
    for bad in [
        "",
        "ms",
        "dog",
        "nanms",
        "-1ms",
        "101PERCENTILE",
        "infPERCENTILE",
    ] {
        let e = try_run(
            &engine,
            &format!("ALTER TABLE t WITH speculative_retry = '{bad}'"),
        )
        .expect_err(bad);
        assert_eq!(e.code, CONFIG_ERROR, "{bad}: {e}");
    }
}
