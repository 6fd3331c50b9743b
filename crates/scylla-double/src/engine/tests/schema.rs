//! Statements that change the schema, and what the engine tells of them.

use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::engine::{ALREADY_EXISTS, ErrorDetail, INVALID, SYNTAX_ERROR, UNAUTHORIZED};

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
            "CREATE KEYSPACE k WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}",
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
