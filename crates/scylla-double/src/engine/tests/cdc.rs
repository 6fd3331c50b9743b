//! The change log: what each statement leaves in it.
//!
//! Expectations are those of ScyllaDB's documentation (docs/features/cdc) and sources (`cdc/log.cc`,
//! `cdc/split.cc`), not of this code.

use super::*;
use crate::engine::{INVALID, UNAUTHORIZED, types::timeuuid_micros};

/// A table with one column of each kind.
const TABLE: &str = "CREATE TABLE t (pk int, ck int, s int static, v int, w int, m map<int, int>, st set<int>, \
                     l list<int>, u ut, f frozen<list<int>>, PRIMARY KEY (pk, ck)) WITH cdc = ";

fn logged(cdc: &str) -> Engine {
    let engine = with_keyspace();
    run(&engine, "CREATE TYPE ut (a int, b int)");
    run(&engine, &format!("{TABLE}{cdc}"));
    engine
}

/// The log, one line a row: µs after the first row, operation / number in the batch, `E` at the end of
/// the batch, `ttl=`, values, `-c` for `cdc$deleted_c`, `c-=` for `cdc$deleted_elements_c`. Times and
/// list keys are random in part, so keys of lists are left out.
fn log(engine: &Engine, table: &str) -> Vec<String> {
    let (columns, rows) = parts(run(
        engine,
        &format!("SELECT * FROM {table}_scylla_cdc_log"),
    ));
    let mut lines: Vec<(i64, i32, String)> = rows
        .iter()
        .map(|row| {
            let get = |name: &str| {
                columns
                    .iter()
                    .zip(row)
                    .find(|(c, _)| c.name == name)
                    .and_then(|(_, v)| v.clone())
            };
            let time = timeuuid_micros(&get("cdc$time").expect("a time")).expect("a timeuuid");
            let number = i32::from_be_bytes(
                get("cdc$batch_seq_no").expect("a number")[..]
                    .try_into()
                    .expect("an int"),
            );
            let operation = get("cdc$operation").expect("an operation")[0] as i8;
            let mut line = format!("{operation}/{number}");
            if let Some(end) = get("cdc$end_of_batch") {
                assert_eq!(end[..], [1], "it is true or null");
                line.push('E');
            }
            if let Some(ttl) = get("cdc$ttl") {
                line.push_str(&format!(
                    " ttl={}",
                    i64::from_be_bytes(ttl[..].try_into().expect("a bigint"))
                ));
            }
            for (column, value) in columns.iter().zip(row).filter(|(_, v)| v.is_some()) {
                let text = match (&column.ty, value) {
                    (CqlType::Map { key, .. }, Some(bytes)) if **key == CqlType::Timeuuid => {
                        match Value::decode(&column.ty, bytes).expect("a map") {
                            Value::Map(entries) => {
                                let values: Vec<_> =
                                    entries.iter().map(|(_, v)| v.to_string()).collect();
                                format!("[{}]", values.join(", "))
                            }
                            other => other.to_string(),
                        }
                    }
                    (CqlType::Set { element, .. }, Some(bytes))
                        if **element == CqlType::Timeuuid =>
                    {
                        match Value::decode(&column.ty, bytes).expect("a set") {
                            Value::Set(keys) => format!("{} keys", keys.len()),
                            other => other.to_string(),
                        }
                    }
                    (ty, value) => shown(ty, value.as_ref()),
                };
                let name = &column.name;
                if let Some(of) = name.strip_prefix("cdc$deleted_elements_") {
                    line.push_str(&format!(" {of}-={text}"));
                } else if let Some(of) = name.strip_prefix("cdc$deleted_") {
                    line.push_str(&format!(" -{of}"));
                } else if !name.starts_with("cdc$") {
                    line.push_str(&format!(" {name}={text}"));
                }
            }
            (time, number, line)
        })
        .collect();
    lines.sort();
    let first = lines.first().map_or(0, |l| l.0);
    lines
        .iter()
        .map(|(time, _, line)| format!("+{} {line}", time - first))
        .collect()
}

/// Runs each statement list on a fresh table and compares what the last one adds to the log.
fn check(cdc: &str, cases: &[(&[&str], &[&str])]) {
    for (statements, expected) in cases {
        let engine = logged(cdc);
        let (last, before) = statements.split_last().expect("a statement");
        before.iter().for_each(|s| drop(run(&engine, s)));
        let skip = log(&engine, "t").len();
        run(&engine, last);
        let lines = log(&engine, "t");
        let mut added: Vec<String> = lines[skip..].to_vec();
        // Times count from the first row that is added.
        let offset = |line: &str| line[1..line.find(' ').unwrap()].parse::<i64>().unwrap();
        let first = added.first().map_or(0, |l| offset(l));
        for line in &mut added {
            let rest = line[line.find(' ').unwrap()..].to_owned();
            *line = format!("+{}{rest}", offset(line) - first);
        }
        assert_eq!(added, *expected, "{last} after {before:?} with {cdc}");
    }
}

#[test]
fn each_kind_of_statement_has_its_row() {
    check(
        "{'enabled': true}",
        &[
            (
                &["INSERT INTO t (pk, ck, v) VALUES (0, 1, 2)"],
                &["+0 2/0E ck=1 pk=0 v=2"],
            ),
            (
                &["INSERT INTO t (pk, ck) VALUES (0, 1)"],
                &["+0 2/0E ck=1 pk=0"],
            ),
            (
                &["INSERT INTO t (pk, ck, v, w) VALUES (0, 1, 2, null)"],
                &["+0 2/0E -w ck=1 pk=0 v=2"],
            ),
            (
                &["INSERT INTO t (pk, ck, v) VALUES (0, 1, 2) USING TTL 9"],
                &["+0 2/0E ttl=9 ck=1 pk=0 v=2"],
            ),
            (
                &["UPDATE t SET v = 3 WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E ck=1 pk=0 v=3"],
            ),
            (
                &["UPDATE t SET v = null WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E -v ck=1 pk=0"],
            ),
            (
                &["DELETE v FROM t WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E -v ck=1 pk=0"],
            ),
            (
                &["DELETE FROM t WHERE pk = 0 AND ck = 1"],
                &["+0 3/0E ck=1 pk=0"],
            ),
            (&["DELETE FROM t WHERE pk = 0"], &["+0 4/0E pk=0"]),
            (&["UPDATE t SET s = 5 WHERE pk = 0"], &["+0 1/0E pk=0 s=5"]),
            (
                &["INSERT INTO t (pk, s) VALUES (0, 5)"],
                &["+0 1/0E pk=0 s=5"],
            ),
            (
                &["INSERT INTO t (pk, ck, s, v) VALUES (0, 1, 5, 6)"],
                &["+0 1/0 pk=0 s=5", "+0 2/1E ck=1 pk=0 v=6"],
            ),
            (
                &["INSERT INTO t (pk, ck, f) VALUES (0, 1, [3, 1])"],
                &["+0 2/0E ck=1 f=[3, 1] pk=0"],
            ),
        ],
    );
}

#[test]
fn range_deletion_is_two_rows() {
    check(
        "{'enabled': true}",
        &[
            (
                &["DELETE FROM t WHERE pk = 0 AND ck > 1 AND ck <= 5"],
                &["+0 6/0 ck=1 pk=0", "+0 7/1E ck=5 pk=0"],
            ),
            (
                &["DELETE FROM t WHERE pk = 0 AND ck >= 1 AND ck < 5"],
                &["+0 5/0 ck=1 pk=0", "+0 8/1E ck=5 pk=0"],
            ),
            (
                &["DELETE FROM t WHERE pk = 0 AND ck < 3"],
                &["+0 5/0 pk=0", "+0 8/1E ck=3 pk=0"],
            ),
            (
                &["DELETE FROM t WHERE pk = 0 AND ck >= 3"],
                &["+0 5/0 ck=3 pk=0", "+0 7/1E pk=0"],
            ),
        ],
    );
}

#[test]
fn collections_tell_of_overwriting_adding_and_removing() {
    check(
        "{'enabled': true}",
        &[
            (
                &["UPDATE t SET m = {1: 2} WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E -m ck=1 m={1: 2} pk=0"],
            ),
            (
                &["UPDATE t SET m = m + {1: 2} WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E ck=1 m={1: 2} pk=0"],
            ),
            (
                &["UPDATE t SET m[1] = 2 WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E ck=1 m={1: 2} pk=0"],
            ),
            (
                &["UPDATE t SET m[1] = null WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E m-={1} ck=1 pk=0"],
            ),
            (
                &["UPDATE t SET m = m - {3, 1} WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E m-={1, 3} ck=1 pk=0"],
            ),
            (
                &["DELETE m[7] FROM t WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E m-={7} ck=1 pk=0"],
            ),
            (
                &["UPDATE t SET m = null WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E -m ck=1 pk=0"],
            ),
            (
                &["INSERT INTO t (pk, ck, m) VALUES (0, 1, {1: 2})"],
                &["+0 2/0E -m ck=1 m={1: 2} pk=0"],
            ),
            (
                &["UPDATE t SET st = st + {2, 1} WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E ck=1 pk=0 st={1, 2}"],
            ),
            (
                &["UPDATE t SET st = st - {2} WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E st-={2} ck=1 pk=0"],
            ),
            (
                &["UPDATE t SET l = [5, 6] WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E -l ck=1 l=[5, 6] pk=0"],
            ),
            (
                &["UPDATE t SET l = l + [5, 6] WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E ck=1 l=[5, 6] pk=0"],
            ),
            (
                &["UPDATE t SET l = [5, 6] + l WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E ck=1 l=[5, 6] pk=0"],
            ),
            (
                &[
                    "UPDATE t SET l = [5, 6, 5] WHERE pk = 0 AND ck = 1",
                    "UPDATE t SET l = l - [5] WHERE pk = 0 AND ck = 1",
                ],
                &["+0 1/0E l-=2 keys ck=1 pk=0"],
            ),
            (
                &[
                    "UPDATE t SET l = [5, 6] WHERE pk = 0 AND ck = 1",
                    "UPDATE t SET l[1] = 7 WHERE pk = 0 AND ck = 1",
                ],
                &["+0 1/0E ck=1 l=[7] pk=0"],
            ),
            (
                &[
                    "UPDATE t SET l = [5, 6] WHERE pk = 0 AND ck = 1",
                    "DELETE l[0] FROM t WHERE pk = 0 AND ck = 1",
                ],
                &["+0 1/0E l-=1 keys ck=1 pk=0"],
            ),
            (
                &["UPDATE t SET u = {a: 1, b: 2} WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E -u ck=1 pk=0 u={a: 1, b: 2}"],
            ),
            (
                &["UPDATE t SET u.a = 1 WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E ck=1 pk=0 u={a: 1, b: null}"],
            ),
            (
                &["UPDATE t SET u.b = null WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E u-={1} ck=1 pk=0 u={a: null, b: null}"],
            ),
        ],
    );
}

#[test]
fn time_to_live_splits_what_has_none() {
    check(
        "{'enabled': true}",
        &[
            (
                &["UPDATE t USING TTL 5 SET v = 1, w = null WHERE pk = 0 AND ck = 1"],
                &["+0 1/0 -w ck=1 pk=0", "+0 1/1E ttl=5 ck=1 pk=0 v=1"],
            ),
            (
                &["UPDATE t USING TTL 5 SET m = {1: 1} WHERE pk = 0 AND ck = 1"],
                &["+0 1/0 -m ck=1 pk=0", "+0 1/1E ttl=5 ck=1 m={1: 1} pk=0"],
            ),
            (
                &["INSERT INTO t (pk, ck, m) VALUES (0, 1, {1: 1}) USING TTL 5"],
                &[
                    "+0 2/0 ttl=5 ck=1 pk=0",
                    "+0 1/1 -m ck=1 pk=0",
                    "+0 1/2E ttl=5 ck=1 m={1: 1} pk=0",
                ],
            ),
        ],
    );
}

#[test]
fn batches_are_split_by_time_and_kind() {
    check(
        "{'enabled': true}",
        &[
            (
                &[
                    "BEGIN BATCH INSERT INTO t (pk, ck, v) VALUES (0, 2, 2); INSERT INTO t (pk, ck, v) VALUES (0, 1, 1); \
                   APPLY BATCH",
                ],
                &["+0 2/0 ck=1 pk=0 v=1", "+0 2/1E ck=2 pk=0 v=2"],
            ),
            (
                &[
                    "BEGIN BATCH DELETE FROM t WHERE pk = 0 AND ck = 1; UPDATE t SET v = 1 WHERE pk = 0 AND ck = 2; \
                   INSERT INTO t (pk, ck) VALUES (0, 3); DELETE FROM t WHERE pk = 0 AND ck > 7; \
                   UPDATE t SET s = 1 WHERE pk = 0; APPLY BATCH",
                ],
                &[
                    "+0 1/0 pk=0 s=1",
                    "+0 2/1 ck=3 pk=0",
                    "+0 1/2 ck=2 pk=0 v=1",
                    "+0 3/3 ck=1 pk=0",
                    "+0 6/4 ck=7 pk=0",
                    "+0 7/5E pk=0",
                ],
            ),
            // Deleting a collection is told one microsecond after the rest.
            (
                &[
                    "BEGIN BATCH UPDATE t SET v = 1 WHERE pk = 0 AND ck = 1; DELETE m FROM t WHERE pk = 0 AND ck = 1; \
                   APPLY BATCH",
                ],
                &["+0 1/0E ck=1 pk=0 v=1", "+1 1/0E -m ck=1 pk=0"],
            ),
            (
                &[
                    "BEGIN BATCH INSERT INTO t (pk, ck, v) VALUES (0, 1, 1) USING TIMESTAMP 1700000000000001; \
                   UPDATE t USING TIMESTAMP 1700000000000005 SET v = 2 WHERE pk = 0 AND ck = 2; APPLY BATCH",
                ],
                &["+0 2/0E ck=1 pk=0 v=1", "+4 1/0E ck=2 pk=0 v=2"],
            ),
        ],
    );
}

#[test]
fn preimage_has_what_is_affected_and_only_of_rows_that_are() {
    let row = "INSERT INTO t (pk, ck, v, m) VALUES (0, 1, 2, {1: 1, 2: 2})";
    check(
        "{'enabled': true, 'preimage': true}",
        &[
            (&[row], &["+0 2/0E -m ck=1 m={1: 1, 2: 2} pk=0 v=2"]),
            (
                &[row, "UPDATE t SET v = 3 WHERE pk = 0 AND ck = 1"],
                &["+0 0/0 ck=1 pk=0 v=2", "+0 1/1E ck=1 pk=0 v=3"],
            ),
            (
                &[row, "UPDATE t SET w = 3 WHERE pk = 0 AND ck = 1"],
                &["+0 0/0 -w ck=1 pk=0", "+0 1/1E ck=1 pk=0 w=3"],
            ),
            (
                &[row, "UPDATE t SET m[1] = 9 WHERE pk = 0 AND ck = 1"],
                &[
                    "+0 0/0 ck=1 m={1: 1, 2: 2} pk=0",
                    "+0 1/1E ck=1 m={1: 9} pk=0",
                ],
            ),
            (
                &[row, "DELETE FROM t WHERE pk = 0 AND ck = 1"],
                &[
                    "+0 0/0 -f -l -st -u -w ck=1 m={1: 1, 2: 2} pk=0 v=2",
                    "+0 3/1E ck=1 pk=0",
                ],
            ),
            (
                &[row, "DELETE FROM t WHERE pk = 0 AND ck > 0"],
                &["+0 6/0 ck=0 pk=0", "+0 7/1E pk=0"],
            ),
            (&[row, "DELETE FROM t WHERE pk = 0"], &["+0 4/0E pk=0"]),
            (
                &[row, "UPDATE t SET v = 3 WHERE pk = 0 AND ck = 2"],
                &["+0 1/0E ck=2 pk=0 v=3"],
            ),
            (
                &[
                    "UPDATE t SET s = 1 WHERE pk = 0",
                    "UPDATE t SET s = 2 WHERE pk = 0",
                ],
                &["+0 0/0 pk=0 s=1", "+0 1/1E pk=0 s=2"],
            ),
            // A batch that is not split: preimages first, then the changes.
            (
                &[
                    "BEGIN BATCH INSERT INTO t (pk, ck, v) VALUES (0, 1, 1); INSERT INTO t (pk, ck, v) VALUES (0, 2, 2); \
                     APPLY BATCH",
                    "BEGIN BATCH UPDATE t SET v = 3 WHERE pk = 0 AND ck = 1; UPDATE t SET v = 4 WHERE pk = 0 AND ck = 2; \
                     APPLY BATCH",
                ],
                &[
                    "+0 0/0 ck=1 pk=0 v=1",
                    "+0 0/1 ck=2 pk=0 v=2",
                    "+0 1/2 ck=1 pk=0 v=3",
                    "+0 1/3E ck=2 pk=0 v=4",
                ],
            ),
        ],
    );
}

#[test]
fn full_preimage_and_postimage_have_all_columns() {
    let row = "INSERT INTO t (pk, ck, v, w) VALUES (0, 1, 2, 3)";
    check(
        "{'enabled': true, 'preimage': 'full'}",
        &[(
            &[row, "UPDATE t SET v = 4 WHERE pk = 0 AND ck = 1"],
            &[
                "+0 0/0 -f -l -m -st -u ck=1 pk=0 v=2 w=3",
                "+0 1/1E ck=1 pk=0 v=4",
            ],
        )],
    );
    check(
        "{'enabled': true, 'postimage': true}",
        &[
            (
                &[row],
                &["+0 2/0 ck=1 pk=0 v=2 w=3", "+0 9/1E ck=1 pk=0 v=2 w=3"],
            ),
            (
                &[
                    row,
                    "UPDATE t SET v = 4, m = {1: 1} WHERE pk = 0 AND ck = 1",
                ],
                &[
                    "+0 1/0 -m ck=1 m={1: 1} pk=0 v=4",
                    "+0 9/1E ck=1 m={1: 1} pk=0 v=4 w=3",
                ],
            ),
            (
                &[row, "DELETE FROM t WHERE pk = 0 AND ck = 1"],
                &["+0 3/0E ck=1 pk=0"],
            ),
            (
                &["UPDATE t SET s = 1 WHERE pk = 0"],
                &["+0 1/0 pk=0 s=1", "+0 9/1E pk=0 s=1"],
            ),
            // The tombstone has no TTL and comes first, so the postimage has the new elements alone.
            (
                &[
                    "UPDATE t SET m = {7: 7} WHERE pk = 0 AND ck = 1",
                    "UPDATE t USING TTL 5 SET m = {1: 1} WHERE pk = 0 AND ck = 1",
                ],
                &[
                    "+0 1/0 -m ck=1 pk=0",
                    "+0 1/1 ttl=5 ck=1 m={1: 1} pk=0",
                    "+0 9/2E ck=1 m={1: 1} pk=0",
                ],
            ),
        ],
    );
    check(
        "{'enabled': true, 'preimage': true, 'postimage': true}",
        &[(
            &[row, "UPDATE t SET v = 4 WHERE pk = 0 AND ck = 1"],
            &[
                "+0 0/0 ck=1 pk=0 v=2",
                "+0 1/1 ck=1 pk=0 v=4",
                "+0 9/2E ck=1 pk=0 v=4 w=3",
            ],
        )],
    );
}

#[test]
fn delta_of_keys_has_keys_alone() {
    check(
        "{'enabled': true, 'delta': 'keys'}",
        &[
            (
                &["INSERT INTO t (pk, ck, v, m) VALUES (0, 1, 2, {1: 1})"],
                &["+0 2/0E ck=1 pk=0"],
            ),
            (
                &["DELETE v FROM t WHERE pk = 0 AND ck = 1"],
                &["+0 1/0E ck=1 pk=0"],
            ),
        ],
    );
}

#[test]
fn conditional_statement_is_logged_only_when_it_applies() {
    let engine = logged("{'enabled': true}");
    run(
        &engine,
        "INSERT INTO t (pk, ck, v) VALUES (0, 1, 2) IF NOT EXISTS",
    );
    assert_eq!(log(&engine, "t").len(), 1);
    run(
        &engine,
        "INSERT INTO t (pk, ck, v) VALUES (0, 1, 3) IF NOT EXISTS",
    );
    run(
        &engine,
        "UPDATE t SET v = 3 WHERE pk = 0 AND ck = 1 IF v = 9",
    );
    assert_eq!(log(&engine, "t").len(), 1);
    run(
        &engine,
        "UPDATE t SET v = 3 WHERE pk = 0 AND ck = 1 IF v = 2",
    );
    assert_eq!(log(&engine, "t")[1], "+1 1/0E ck=1 pk=0 v=3");
}

#[test]
fn partition_of_a_table_without_clustering_key_has_its_preimage() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE p (pk int PRIMARY KEY, v int) WITH cdc = {'enabled': true, 'preimage': true}",
    );
    run(&engine, "INSERT INTO p (pk, v) VALUES (1, 2)");
    run(&engine, "DELETE FROM p WHERE pk = 1");
    assert_eq!(
        log(&engine, "p"),
        ["+0 2/0E pk=1 v=2", "+1 0/0 pk=1 v=2", "+1 4/1E pk=1"]
    );
}

#[test]
fn log_has_the_documented_columns() {
    let engine = logged("{'enabled': true}");
    let schema = engine.schema();
    let log = schema.table("k", "t_scylla_cdc_log").expect("a log");
    let columns: Vec<String> = log
        .columns
        .iter()
        .map(|c| format!("{} {} {}", c.name, c.ty, c.kind.as_str()))
        .collect();
    for expected in [
        "cdc$stream_id blob partition_key",
        "cdc$time timeuuid clustering",
        "cdc$batch_seq_no int clustering",
        "cdc$operation tinyint regular",
        "cdc$ttl bigint regular",
        "cdc$end_of_batch boolean regular",
        "pk int regular",
        "s int regular",
        "cdc$deleted_s boolean regular",
        "m frozen<map<int, int>> regular",
        "cdc$deleted_m boolean regular",
        "cdc$deleted_elements_m frozen<set<int>> regular",
        "l frozen<map<timeuuid, int>> regular",
        "cdc$deleted_elements_l frozen<set<timeuuid>> regular",
        "u frozen<ut> regular",
        "cdc$deleted_elements_u frozen<set<smallint>> regular",
        "cdc$deleted_f boolean regular",
    ] {
        assert!(
            columns.iter().any(|c| c == expected),
            "{expected} is not in {columns:#?}"
        );
    }
    for absent in [
        "cdc$deleted_pk",
        "cdc$deleted_elements_f",
        "cdc$deleted_elements_v",
    ] {
        assert!(log.column(absent).is_none(), "{absent}");
    }
}

#[test]
fn log_rows_expire() {
    let engine = with_keyspace();
    for (name, option) in [("a", "'ttl': 10"), ("b", "'ttl': 0")] {
        run(
            &engine,
            &format!(
                "CREATE TABLE {name} (pk int PRIMARY KEY) WITH cdc = {{'enabled': true, {option}}}"
            ),
        );
        run(&engine, &format!("INSERT INTO {name} (pk) VALUES (1)"));
    }
    let left = |table: &str, seconds: i64| {
        let statement = format!("SELECT pk FROM {table}_scylla_cdc_log");
        super::table(run_at(&engine, &statement, NOW + seconds * 1_000_000)).len()
    };
    assert_eq!(
        (left("a", 9), left("a", 10), left("b", 1_000_000)),
        (1, 0, 1)
    );
}

#[test]
fn log_follows_the_table() {
    let engine = with_keyspace();
    run(&engine, "CREATE TABLE a (pk int PRIMARY KEY, v int)");
    assert!(engine.schema().table("k", "a_scylla_cdc_log").is_none());
    run(&engine, "ALTER TABLE a WITH cdc = {'enabled': true}");
    run(&engine, "INSERT INTO a (pk, v) VALUES (1, 2)");
    run(&engine, "ALTER TABLE a ADD w text");
    run(&engine, "INSERT INTO a (pk, w) VALUES (1, 'x')");
    run(&engine, "ALTER TABLE a DROP v");
    run(&engine, "UPDATE a SET w = 'y' WHERE pk = 1");
    assert_eq!(
        log(&engine, "a"),
        ["+0 2/0E pk=1", "+1 2/0E pk=1 w='x'", "+2 1/0E pk=1 w='y'"]
    );
    run(&engine, "ALTER TABLE a WITH cdc = {'enabled': false}");
    run(&engine, "UPDATE a SET w = 'z' WHERE pk = 1");
    assert_eq!(
        log(&engine, "a").len(),
        3,
        "the log stays but is not written to"
    );
    run(&engine, "ALTER TABLE a WITH cdc = {'enabled': true}");
    run(&engine, "UPDATE a SET w = 'z' WHERE pk = 1");
    assert_eq!(log(&engine, "a").len(), 4);
    run(&engine, "DROP TABLE a");
    assert!(engine.schema().table("k", "a_scylla_cdc_log").is_none());
}

#[test]
fn what_cannot_be_logged_is_refused() {
    let engine = with_keyspace();
    let refused = refusal(
        &engine,
        "CREATE TABLE c (pk int PRIMARY KEY, n counter) WITH cdc = {'enabled': true}",
    );
    assert!(
        refused.contains("Counter support not implemented"),
        "{refused}"
    );
    run(
        &engine,
        "CREATE TABLE a (pk int PRIMARY KEY, v int) WITH cdc = {'enabled': true}",
    );
    let refused = refusal(
        &engine,
        "ALTER TABLE a_scylla_cdc_log WITH cdc = {'enabled': true}",
    );
    assert!(refused.contains("nested CDC logs"), "{refused}");
    run(
        &engine,
        "CREATE TABLE b_scylla_cdc_log (pk int PRIMARY KEY)",
    );
    let refused = refusal(
        &engine,
        "CREATE TABLE b (pk int PRIMARY KEY) WITH cdc = {'enabled': true}",
    );
    assert!(refused.contains("already exists"), "{refused}");
    for (ahead, wording) in [
        (6_000_000, "from the future"),
        (-20_000_000, "from the past"),
    ] {
        let statement = format!(
            "INSERT INTO a (pk, v) VALUES (1, 1) USING TIMESTAMP {}",
            NOW + ahead
        );
        let refused = refusal(&engine, &statement);
        assert!(refused.contains(wording), "{refused}");
    }
    assert_eq!(
        select(&engine, "SELECT * FROM a"),
        Vec::<String>::new(),
        "nothing of it is written"
    );
}

#[test]
fn streams_of_a_generation_cover_the_ring_and_writes_go_where_they_say() {
    let engine = logged("{'enabled': true}");
    let generations = select(
        &engine,
        "SELECT time FROM system_distributed.cdc_generation_timestamps WHERE key = 'timestamps'",
    );
    assert_eq!(generations, ["'2023-11-14T22:13:10.000Z'"]);
    let streams = "SELECT range_end, streams FROM system_distributed.cdc_streams_descriptions_v2 WHERE time = ";
    let (_, rows) = parts(run(&engine, &format!("{streams}{}", generations[0])));
    assert_eq!(rows.len(), 4, "one row a vnode");
    for pk in 0..200 {
        run(&engine, &format!("INSERT INTO t (pk, ck) VALUES ({pk}, 0)"));
    }
    let told: Vec<String> = select(&engine, &format!("{streams}{}", generations[0]));
    let used = select(
        &engine,
        "SELECT DISTINCT \"cdc$stream_id\" FROM t_scylla_cdc_log",
    );
    assert_eq!(used.len(), 8, "200 keys reach all streams");
    for stream in &used {
        assert!(
            told.iter().any(|row| row.contains(stream)),
            "{stream} is told of"
        );
    }
    let at = engine.new_generation(None);
    assert_eq!(at, NOW / 1_000 + 2_000);
    run_at(
        &engine,
        "INSERT INTO t (pk, ck) VALUES (0, 1)",
        NOW + 3_000_000,
    );
    assert_eq!(
        select(
            &engine,
            "SELECT DISTINCT \"cdc$stream_id\" FROM t_scylla_cdc_log"
        )
        .len(),
        9
    );
    let generations = select(
        &engine,
        "SELECT time FROM system_distributed.cdc_generation_timestamps WHERE key = 'timestamps'",
    );
    assert_eq!(generations.len(), 2);
    assert!(generations[0] > generations[1], "newest first");
}

#[test]
fn tablets_have_streams_of_their_own() {
    let engine = engine();
    run(
        &engine,
        "CREATE KEYSPACE k WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1} AND \
         tablets = {'initial': 2}",
    );
    run(
        &engine,
        "CREATE TABLE t (pk int PRIMARY KEY) WITH cdc = {'enabled': true}",
    );
    let streams = |engine: &Engine| {
        select(
            engine,
            "SELECT \"timestamp\", stream_state, stream_id FROM system.cdc_streams WHERE keyspace_name = 'k' AND \
             table_name = 't'",
        )
    };
    let state = |rows: &[String], state: u8| {
        rows.iter()
            .filter(|r| r.contains(&format!("', {state}, ")))
            .count()
    };
    let first = streams(&engine);
    assert_eq!((first.len(), state(&first, 0)), (2, 2), "{first:?}");
    for pk in 0..50 {
        run(&engine, &format!("INSERT INTO t (pk) VALUES ({pk})"));
    }
    assert_eq!(
        select(
            &engine,
            "SELECT DISTINCT \"cdc$stream_id\" FROM t_scylla_cdc_log"
        )
        .len(),
        2
    );
    assert!(engine.split_tablets("k", "t", None).is_some());
    let second = streams(&engine);
    assert_eq!(
        (state(&second, 0), state(&second, 1), state(&second, 2)),
        (2 + 4, 2, 4)
    );
    let times = "SELECT \"timestamp\" FROM system.cdc_timestamps WHERE keyspace_name = 'k' AND table_name = 't'";
    assert_eq!(select(&engine, times).len(), 2);
    run(&engine, "DROP TABLE t");
    assert_eq!(
        (streams(&engine).len(), select(&engine, times).len()),
        (0, 0)
    );
}

#[test]
fn log_is_read_by_streams_and_times_in_pages() {
    let engine = logged("{'enabled': true}");
    for ck in 0..25 {
        run(&engine, &format!("INSERT INTO t (pk, ck) VALUES (0, {ck})"));
    }
    let prepared = engine
        .prepare(
            "SELECT * FROM k.\"t_scylla_cdc_log\" WHERE \"cdc$stream_id\" IN ? AND \"cdc$time\" >= minTimeuuid(?) AND \
             \"cdc$time\" < minTimeuuid(?) BYPASS CACHE",
            None,
        )
        .expect("it prepares");
    let types: Vec<String> = prepared
        .bind_variables()
        .iter()
        .map(|b| b.ty.to_string())
        .collect();
    assert_eq!(types[1..], ["timestamp", "timestamp"]);
    let (_, streams) = parts(run(
        &engine,
        "SELECT DISTINCT \"cdc$stream_id\" FROM t_scylla_cdc_log",
    ));
    let stream = streams[0][0].clone().expect("an id");
    let list = super::super::types::collection([stream].iter());
    let time = |ms: i64| BoundValue::Bytes(Bytes::copy_from_slice(&ms.to_be_bytes()));
    let values = vec![
        BoundValue::Bytes(list),
        time(NOW / 1_000),
        time(NOW / 1_000 + 1),
    ];
    let mut params = Params {
        values,
        page_size: Some(10),
        ..params()
    };
    let mut sizes = Vec::new();
    loop {
        let Outcome::Rows {
            rows, paging_state, ..
        } = engine.execute(&prepared, &params).expect("rows")
        else {
            panic!("no rows")
        };
        sizes.push(rows.len());
        params.paging_state = paging_state;
        if params.paging_state.is_none() {
            break;
        }
    }
    assert_eq!(sizes, [10, 10, 5]);
}

#[test]
fn statements_of_cdc_readers_prepare() {
    let engine = logged("{'enabled': true}");
    let log = "FROM k.t_scylla_cdc_log WHERE \"cdc$stream_id\"";
    for (statement, types) in [
        // The `scylla-cdc` crate.
        (
            "SELECT time FROM system_distributed.cdc_generation_timestamps WHERE key = 'timestamps';",
            "",
        ),
        (
            "SELECT time FROM system_distributed.cdc_generation_timestamps WHERE key = 'timestamps' AND time <= ? \
             ORDER BY time DESC LIMIT 1;",
            "timestamp",
        ),
        (
            "SELECT time FROM system_distributed.cdc_generation_timestamps WHERE key = 'timestamps' AND time > ? \
             ORDER BY time ASC LIMIT 1;",
            "timestamp",
        ),
        (
            "SELECT streams FROM system_distributed.cdc_streams_descriptions_v2 WHERE time = ?;",
            "timestamp",
        ),
        (
            "SELECT timestamp FROM system.cdc_timestamps WHERE keyspace_name = ? AND table_name = ?;",
            "text, text",
        ),
        (
            "SELECT timestamp FROM system.cdc_timestamps WHERE keyspace_name = ? AND table_name = ? AND timestamp > ? \
             ORDER BY timestamp ASC LIMIT 1;",
            "text, text, timestamp",
        ),
        (
            "SELECT stream_id FROM system.cdc_streams WHERE keyspace_name = ? AND table_name = ? AND timestamp = ? AND \
             stream_state = ?;",
            "text, text, timestamp, tinyint",
        ),
        (
            &format!(
                "SELECT * {log} in ? AND \"cdc$time\" >= minTimeuuid(?) AND \"cdc$time\" < minTimeuuid(?)  BYPASS CACHE"
            ),
            "frozen<list<blob>>, timestamp, timestamp",
        ),
        (
            &format!(
                "SELECT * {log} IN ? AND \"cdc$time\" >= ? AND \"cdc$time\" < minTimeuuid(?) BYPASS CACHE"
            ),
            "frozen<list<blob>>, timeuuid, timestamp",
        ),
        (
            &format!(
                "SELECT \"cdc$operation\"{log} = ? AND (\"cdc$time\", \"cdc$batch_seq_no\") > (?, ?)"
            ),
            "blob, timeuuid, int",
        ),
        (
            "SELECT * FROM k.t_scylla_cdc_log WHERE \"cdc$operation\" = 2 AND pk = 1 AND ck = 0 ALLOW FILTERING",
            "",
        ),
        (
            "SELECT * FROM t WHERE token(pk) > ? AND token(pk) <= ?",
            "bigint, bigint",
        ),
        (
            "UPDATE t USING TIMESTAMP ? AND TTL ? SET v = ?, m = m + ?, u.a = ? WHERE pk = ? AND ck IN ?",
            "bigint, int, int, map<int, int>, int, int, frozen<list<int>>",
        ),
        (
            "DELETE m[?], l[?] FROM t USING TIMESTAMP ? WHERE (pk) = (?) AND ck = ?",
            "",
        ),
    ] {
        let prepared = match engine.prepare(statement, Some("k")) {
            Ok(prepared) => prepared,
            Err(e) if types.is_empty() && statement.starts_with("DELETE") => {
                assert!(e.message.contains("Multi-column"), "{e}");
                continue;
            }
            Err(e) => panic!("{statement}: {e}"),
        };
        let bound: Vec<String> = prepared
            .bind_variables()
            .iter()
            .map(|b| b.ty.to_string())
            .collect();
        assert_eq!(bound.join(", "), types, "{statement}");
    }
}

#[test]
fn a_log_is_not_altered_by_hand_whether_its_base_still_writes_it_or_not() {
    let engine = logged("{'enabled': true}");
    let refused = |cql: &str, text: &str| {
        let e = engine
            .query(cql, &params())
            .expect_err("a log keeps its columns");
        assert_eq!(e.code, INVALID);
        assert!(e.message.contains(text), "{}", e.message);
    };
    for (off, more) in [
        (false, "Modify the base table instead."),
        (true, "Although the base table has deactivated CDC"),
    ] {
        if off {
            run(&engine, "ALTER TABLE t WITH cdc = {'enabled': false}");
        }
        refused("ALTER TABLE t_scylla_cdc_log ADD x int", more);
        refused("ALTER TABLE t_scylla_cdc_log DROP v", more);
        refused(
            "ALTER TABLE t_scylla_cdc_log RENAME v TO x",
            "rename a column of a CDC log table.",
        );
    }
    // What only looks like a log is a table like another.
    run(
        &engine,
        "CREATE TABLE fake_scylla_cdc_log (p int PRIMARY KEY, v int)",
    );
    run(&engine, "ALTER TABLE fake_scylla_cdc_log DROP v");
}

#[test]
fn a_range_between_tuples_of_different_widths_is_one_deletion() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE t (p int, a int, b int, c int, PRIMARY KEY (p, a, b, c)) WITH cdc = {'enabled': true}",
    );
    for (a, b, c) in [(2, 2, 2), (2, 2, 3), (3, 2, 9), (3, 3, 0)] {
        run(
            &engine,
            &format!("INSERT INTO t (p, a, b, c) VALUES (0, {a}, {b}, {c})"),
        );
    }
    let before = log(&engine, "t").len();
    run(
        &engine,
        "DELETE FROM t WHERE p = 0 AND (a, b) < (3, 3) AND (a, b, c) > (2, 2, 2)",
    );
    assert_eq!(
        select(&engine, "SELECT a, b, c FROM t WHERE p = 0"),
        ["2, 2, 2", "3, 3, 0"]
    );
    let added: Vec<String> = log(&engine, "t")[before..]
        .iter()
        .map(|l| l[l.find(' ').unwrap() + 1..].to_owned())
        .collect();
    assert_eq!(added, ["6/0 a=2 b=2 c=2 p=0", "8/1E a=3 b=3 p=0"]);
}

#[test]
fn the_place_in_a_list_is_a_uuid() {
    let engine = logged("{'enabled': true}");
    let prepared = engine
        .prepare(
            "UPDATE t SET l[SCYLLA_TIMEUUID_LIST_INDEX(?)] = ? WHERE pk = 0 AND ck = 1",
            Some("k"),
        )
        .unwrap();
    assert_eq!(prepared.bind_variables()[0].ty, CqlType::Uuid);
}

#[test]
fn a_row_marker_counts_for_the_rows_after_it_in_a_batch() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE t (pk int, ck int, v int, st set<int>, PRIMARY KEY (pk, ck)) WITH cdc = {'enabled': true}",
    );
    // The elements of a collection cannot be told with an INSERT, and the marker of any row before is enough to
    // split the whole: inserts come first then (`should_split_visitor::_had_row_marker`).
    run(
        &engine,
        "BEGIN UNLOGGED BATCH USING TIMESTAMP 1700000000000000 INSERT INTO t (pk, ck, v) VALUES (0, 1, 1); \
         UPDATE t SET st = st + {1} WHERE pk = 0 AND ck = 2; INSERT INTO t (pk, ck, v) VALUES (0, 3, 3); APPLY BATCH",
    );
    assert_eq!(
        log(&engine, "t"),
        [
            "+0 2/0 ck=1 pk=0 v=1",
            "+0 2/1 ck=3 pk=0 v=3",
            "+0 1/2E ck=2 pk=0 st={1}",
        ]
    );
    // A marker after the elements splits nothing.
    let skip = log(&engine, "t").len();
    run(
        &engine,
        "BEGIN UNLOGGED BATCH USING TIMESTAMP 1700000000000001 UPDATE t SET st = st + {1} WHERE pk = 1 AND ck = 2; \
         INSERT INTO t (pk, ck, v) VALUES (1, 3, 3); APPLY BATCH",
    );
    assert_eq!(
        log(&engine, "t")[skip..],
        ["+1 1/0 ck=2 pk=1 st={1}", "+1 2/1E ck=3 pk=1 v=3"]
    );
}

#[test]
fn altering_the_cdc_option_must_say_whether_it_is_enabled() {
    let engine = logged("{'enabled': true}");
    for cdc in ["{'preimage': true}", "{}"] {
        assert_eq!(
            try_run(&engine, &format!("ALTER TABLE t WITH cdc = {cdc}"))
                .expect_err(cdc)
                .message,
            "Altering CDC options requires specifying \"enabled\" flag"
        );
    }
    run(&engine, "INSERT INTO t (pk, ck) VALUES (0, 0)");
    assert_eq!(log(&engine, "t").len(), 1, "it is still on");
    // Where there is nothing to alter it is off.
    run(
        &engine,
        "CREATE TABLE off (pk int PRIMARY KEY) WITH cdc = {'preimage': true}",
    );
    let schema = engine.schema();
    assert!(schema.table("k", "off_scylla_cdc_log").is_none());
    assert_eq!(schema.table("k", "off").expect("a table").options.cdc, None);
}

#[test]
fn dropping_an_active_log_is_unauthorized() {
    let engine = logged("{'enabled': true}");
    let drop_log = "DROP TABLE t_scylla_cdc_log";
    let e = try_run(&engine, drop_log).expect_err("a log in use");
    assert_eq!(
        (e.code, e.message.as_str()),
        (UNAUTHORIZED, "Cannot DROP cdc log table t_scylla_cdc_log")
    );
    run(&engine, "ALTER TABLE t WITH cdc = {'enabled': false}");
    run(&engine, drop_log);
}

#[test]
fn collections_are_stored_and_logged_in_order_however_they_are_bound() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE f (pk int PRIMARY KEY, s frozen<set<int>>, m frozen<map<int, frozen<set<int>>>>, \
         t frozen<tuple<int, frozen<list<frozen<set<int>>>>>>) WITH cdc = {'enabled': true}",
    );
    let ints = |items: &[i32]| -> Vec<u8> {
        let mut out = (items.len() as i32).to_be_bytes().to_vec();
        for item in items {
            out.extend([0, 0, 0, 4]);
            out.extend(item.to_be_bytes());
        }
        out
    };
    let sized = |bytes: &[u8]| [&(bytes.len() as i32).to_be_bytes()[..], bytes].concat();
    let unsorted = ints(&[3, 1, 2, 1]);
    let list = [&[0, 0, 0, 1][..], &sized(&unsorted)].concat();
    let key = |k: i32| sized(&k.to_be_bytes());
    let map = [
        &[0, 0, 0, 2][..],
        &key(9),
        &sized(&unsorted),
        &key(4),
        &sized(&unsorted),
    ]
    .concat();
    let tuple = [sized(&[0, 0, 0, 7]), sized(&list)].concat();
    let values = [&unsorted, &map, &tuple].map(|v| BoundValue::Bytes(Bytes::copy_from_slice(v)));
    engine
        .query(
            "INSERT INTO f (pk, s, m, t) VALUES (0, ?, ?, ?)",
            &Params {
                values: values.into(),
                ..params()
            },
        )
        .expect("it is sorted");
    let expected = "{1, 2, 3}, {4: {1, 2, 3}, 9: {1, 2, 3}}, (7, [{1, 2, 3}])";
    assert_eq!(select(&engine, "SELECT s, m, t FROM f"), [expected]);
    assert_eq!(
        select(&engine, "SELECT s, m, t FROM f_scylla_cdc_log"),
        [expected]
    );
}

/// The sets of streams that a table with tablets has had: when each began, ms after [`NOW`], and how many
/// streams are current, closed and opened with it.
fn tablet_sets(engine: &Engine) -> Vec<(i64, [usize; 3])> {
    let times = select(
        engine,
        "SELECT toUnixTimestamp(timestamp) FROM system.cdc_timestamps WHERE keyspace_name = 'k' AND table_name = 't'",
    );
    let mut times: Vec<i64> = times.iter().map(|t| t.parse().expect("a time")).collect();
    times.sort_unstable();
    let count = |at: i64, state: usize| {
        let found = select(
            engine,
            &format!(
                "SELECT count(*) FROM system.cdc_streams WHERE keyspace_name = 'k' AND table_name = 't' \
                 AND timestamp = {at} AND stream_state = {state}"
            ),
        );
        found[0].parse().expect("a number")
    };
    let all = times.into_iter();
    all.map(|at| (at - NOW / 1_000, [0, 1, 2].map(|state| count(at, state))))
        .collect()
}

#[test]
fn tablet_counts_asked_for_by_a_client_begin_new_streams() {
    let engine = engine();
    run(
        &engine,
        "CREATE KEYSPACE k WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}",
    );
    run(
        &engine,
        "CREATE TABLE t (pk int PRIMARY KEY, v int) WITH cdc = {'enabled': true} AND tablets = {'min_tablet_count': 5}",
    );
    assert_eq!(tablet_sets(&engine), [(-5_000, [8, 0, 0])]);
    run(
        &engine,
        "ALTER TABLE t WITH tablets = {'min_tablet_count': 8}",
    );
    assert_eq!(tablet_sets(&engine).len(), 1, "there are as many already");
    // Split in two and in two again, one after the other.
    run(
        &engine,
        "ALTER TABLE t WITH tablets = {'min_tablet_count': 32}",
    );
    assert_eq!(
        tablet_sets(&engine)[1..],
        [(2_000, [16, 8, 16]), (4_000, [32, 16, 32])]
    );
    // A write goes to the streams of its time.
    for (v, at) in [(0, NOW), (1, NOW + 4_000_000)] {
        for pk in 0..40 {
            let insert = format!("INSERT INTO t (pk, v) VALUES ({pk}, {v}) USING TIMESTAMP {at}");
            run(&engine, &insert);
        }
    }
    let streams = |v: i32| {
        let found = select(
            &engine,
            &format!(
                "SELECT \"cdc$stream_id\" FROM t_scylla_cdc_log WHERE v = {v} ALLOW FILTERING"
            ),
        );
        found.into_iter().collect::<std::collections::BTreeSet<_>>()
    };
    let (old, new) = (streams(0), streams(1));
    assert!(
        old.is_disjoint(&new) && old.len() <= 8 && new.len() > 8,
        "{old:?} {new:?}"
    );
    // And merged when nobody asks for so many.
    run(
        &engine,
        "ALTER TABLE t WITH tablets = {'max_tablet_count': 16}",
    );
    assert_eq!(
        tablet_sets(&engine)[3..],
        [
            (4_001, [16, 32, 16]),
            (4_002, [8, 16, 8]),
            (6_000, [4, 8, 4])
        ]
    );
}

#[test]
fn a_generation_of_vnode_streams_is_begun_by_a_client() {
    let engine = logged("{'enabled': true}");
    let at = NOW / 1_000 + 1_000;
    let timestamps = "system_distributed.cdc_generation_timestamps";
    let begin = format!("INSERT INTO {timestamps} (key, time) VALUES ('timestamps', {at})");
    let write = |ck: i32, now: i64| {
        run_at(
            &engine,
            &format!("INSERT INTO t (pk, ck) VALUES (0, {ck}) USING TIMESTAMP {now}"),
            now,
        );
        let rest = format!("WHERE ck = {ck} ALLOW FILTERING");
        let found = select(
            &engine,
            &format!("SELECT \"cdc$stream_id\" FROM t_scylla_cdc_log {rest}"),
        );
        found[0].clone()
    };
    let (first, second) = (0xaa, 0xbb);
    let id = |byte: u8| format!("0x{}", format!("{byte:02x}").repeat(16));
    let describe = |end: i64, byte: u8| {
        run(
            &engine,
            &format!(
                "INSERT INTO system_distributed.cdc_streams_descriptions_v2 (time, range_end, streams) \
                 VALUES ({at}, {end}, {{{}}})",
                id(byte)
            ),
        );
    };
    // One of nothing is told of and not used, as readers meet it.
    run(&engine, &begin);
    assert_eq!(
        select(&engine, &format!("SELECT time FROM {timestamps}")).len(),
        2
    );
    let old = write(0, NOW + 1_000_000);
    assert!(old != id(first) && old != id(second));
    run(
        &engine,
        &format!("DELETE FROM {timestamps} WHERE key = 'timestamps' AND time = {at}"),
    );

    describe(i64::MAX / 2, first);
    describe(i64::MAX, second);
    run(&engine, &begin);
    assert_eq!(write(1, NOW + 999_999), old, "not yet");
    // The token of 0 is −3485513579396041028: before the first end.
    assert_eq!(write(2, NOW + 1_000_000), id(first));
    // Taken back, it is as if it had not been.
    run(
        &engine,
        &format!("DELETE FROM {timestamps} WHERE key = 'timestamps' AND time = {at}"),
    );
    assert_eq!(write(3, NOW + 1_000_000), old);
    for (statement, what) in [
        (
            "DROP TABLE system_distributed.cdc_generation_timestamps",
            "its schema",
        ),
        (
            "INSERT INTO system.cdc_timestamps (keyspace_name, table_name, timestamp) VALUES ('k', 't', 0)",
            "another table",
        ),
    ] {
        assert_eq!(
            try_run(&engine, statement).expect_err(what).code,
            UNAUTHORIZED
        );
    }
}

#[test]
fn a_column_of_a_log_does_not_come_back_at_once_and_keeps_its_values_through_a_change_of_type() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE t (pk int PRIMARY KEY, v int, w int) WITH cdc = {'enabled': true}",
    );
    run(&engine, "INSERT INTO t (pk, v, w) VALUES (1, 2, 3)");
    run(&engine, "ALTER TABLE t ALTER w TYPE blob");
    run(&engine, "INSERT INTO t (pk, w) VALUES (2, 0x04)");
    let mut logged = select(&engine, "SELECT pk, v, w FROM t_scylla_cdc_log");
    logged.sort();
    assert_eq!(logged, ["1, 2, 0x00000003", "2, null, 0x04"]);

    run_at(&engine, "ALTER TABLE t DROP v", NOW);
    let add = |at: i64| {
        let params = Params {
            now: Some(at),
            ..params()
        };
        engine.query("ALTER TABLE t ADD v int", &params)
    };
    let refused = |at: i64| add(at).expect_err("too early").message;
    assert_eq!(
        refused(NOW),
        "Cannot add column v because a column with the same name was dropped too recently. Please retry after 6 seconds"
    );
    assert!(refused(NOW + 4_999_999).ends_with("after 1 seconds"));
    add(NOW + 5_000_000).expect("late enough");
    run(&engine, "INSERT INTO t (pk, v) VALUES (3, 4)");
    let mut logged = select(&engine, "SELECT pk, v FROM t_scylla_cdc_log");
    logged.sort();
    assert_eq!(logged, ["1, null", "2, null", "3, 4"]);
    // Without a log it may.
    run(&engine, "CREATE TABLE plain (pk int PRIMARY KEY, v int)");
    run(&engine, "ALTER TABLE plain DROP v");
    run(&engine, "ALTER TABLE plain ADD v int");
}

#[test]
fn vectors_are_stored_and_logged_as_one_value() {
    let engine = with_keyspace();
    run(
        &engine,
        "CREATE TABLE t (pk int PRIMARY KEY, f vector<float, 3>, s vector<text, 2>) WITH cdc = {'enabled': true}",
    );
    run(
        &engine,
        "INSERT INTO t (pk, f, s) VALUES (1, [1.5, -2, 0], ['a', 'bc'])",
    );
    let expected = ["[1.5, -2.0, 0.0], ['a', 'bc']"];
    assert_eq!(select(&engine, "SELECT f, s FROM t"), expected);
    assert_eq!(
        select(&engine, "SELECT f, s FROM t_scylla_cdc_log"),
        expected
    );
    assert_eq!(
        refusal(&engine, "INSERT INTO t (pk, f) VALUES (1, [1])"),
        "Invalid vector literal for f: type vector<float, 3> expects 3 elements but got 1"
    );
    let bound = |bytes: &'static [u8]| {
        let values = vec![BoundValue::Bytes(Bytes::from_static(bytes))];
        engine.query(
            "INSERT INTO t (pk, f) VALUES (2, ?)",
            &Params { values, ..params() },
        )
    };
    bound(&[0; 12]).expect("three floats");
    assert_eq!(bound(&[0; 11]).expect_err("not three floats").code, INVALID);
}
