//! `INSERT … JSON`, `SELECT JSON`, `fromJson` and `toJson`. Values type by type: `types/json.rs`.

use super::{refusal, run, select, try_run, with_keyspace};
use crate::engine::{ErrorDetail, FUNCTION_FAILURE, INVALID};

#[test]
fn documents_are_written_and_read() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE t (k int, c text, s int STATIC, v int, m map<int, text>, \"Foo\" set<int>, PRIMARY KEY (k, c))",
    );
    run(
        &engine,
        r#"INSERT INTO t JSON '{"K": 1, "c": "a", "v": "7", "m": {"2": "b", "1": "a"}, "\"Foo\"": [3, 1, 3]}'"#,
    );
    run(&engine, "UPDATE t SET s = 5 WHERE k = 1");
    assert_eq!(
        select(&engine, "SELECT JSON * FROM t"),
        [r#"'{"k": 1, "c": "a", "s": 5, "\"Foo\"": [1, 3], "m": {"1": "a", "2": "b"}, "v": 7}'"#]
    );
    // What a document does not name becomes null, or stays.
    run(
        &engine,
        r#"INSERT INTO t JSON '{"k": 1, "c": "a", "v": null}' DEFAULT UNSET"#,
    );
    assert_eq!(
        select(&engine, "SELECT v, m FROM t"),
        ["null, {1: 'a', 2: 'b'}"]
    );
    run(&engine, r#"INSERT INTO t JSON '{"k": 1, "c": "a"}'"#);
    assert_eq!(select(&engine, "SELECT s, v, m FROM t"), ["5, null, null"]);
    // As any INSERT: conditions, timestamps, batches.
    let again = r#"INSERT INTO t JSON '{"k": 1, "c": "a", "v": 9}' IF NOT EXISTS"#;
    assert!(select(&engine, again)[0].starts_with("false"));
    run(
        &engine,
        r#"BEGIN BATCH INSERT INTO t JSON '{"k": 2, "c": "b", "v": 2}' USING TIMESTAMP 5; INSERT INTO t (k, c) VALUES (2, 'c'); APPLY BATCH"#,
    );
    assert_eq!(
        select(
            &engine,
            "SELECT JSON writetime(v), v AS \"Vee\", count(*) FROM t WHERE k = 2 AND c = 'b'"
        ),
        [r#"'{"writetime(v)": 5, "\"Vee\"": 2, "count": 1}'"#]
    );
    for (document, expected) in [
        (r#"{"k": 1}"#, "Missing mandatory PRIMARY KEY part c"),
        (
            r#"{"k": 1, "c": null}"#,
            "Missing mandatory PRIMARY KEY part c",
        ),
        (
            r#"{"k": 1, "c": "a", "foo": []}"#,
            "unrecognized column: foo",
        ),
        (r#"{"k": "x", "c": "a"}"#, "marshaling error"),
        ("3", "Could not decode JSON string as a map"),
        ("null", "Got null for INSERT JSON values"),
        ("{", "Could not decode JSON string as a map"),
    ] {
        let message = refusal(&engine, &format!("INSERT INTO t JSON '{document}'"));
        assert!(message.contains(expected), "{document}: {message}");
    }
    run(&engine, "CREATE TABLE n (k int PRIMARY KEY, n counter)");
    assert!(
        refusal(&engine, r#"INSERT INTO n JSON '{"k": 1, "n": 1}'"#).contains("counter column n")
    );
}

#[test]
fn functions_of_json_take_the_type_of_what_they_are_for() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE t (k int PRIMARY KEY, l list<text>, v int)",
    );
    run(
        &engine,
        "INSERT INTO t (k, l, v) VALUES (fromJson('1'), fromJson('[\"a\"]'), fromJson(null))",
    );
    run(
        &engine,
        "UPDATE t SET l = l + fromJson('[\"b\"]') WHERE k = fromJson('1')",
    );
    assert_eq!(
        select(
            &engine,
            "SELECT toJson(l), toJson(v), tojson(k) FROM t WHERE k = fromJson('1')"
        ),
        [r#"'["a", "b"]', 'null', '1'"#]
    );
    for argument in ["dog", "\"dog\"", "1.2"] {
        let text = format!("INSERT INTO t (k, v) VALUES (1, fromJson('{argument}'))");
        let e = try_run(&engine, &text).expect_err(&text);
        assert_eq!(e.code, FUNCTION_FAILURE, "{argument}: {e}");
        assert!(matches!(e.detail, ErrorDetail::FunctionFailure { .. }));
    }
    for (text, expected) in [
        ("SELECT fromJson(l) FROM t", "receiver type is known"),
        (
            "INSERT INTO t (k, v) VALUES (1, fromJson('1', '2'))",
            "1 argument only",
        ),
        ("SELECT toJson(k, v) FROM t", "1 argument only"),
        (
            "INSERT INTO t (k, l) VALUES (1, [toJson(1)])",
            "only valid in SELECT",
        ),
    ] {
        let e = try_run(&engine, text).expect_err(text);
        assert_eq!(e.code, INVALID, "{text}: {e}");
        assert!(e.message.contains(expected), "{text}: {e}");
    }
}
