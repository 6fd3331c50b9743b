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
