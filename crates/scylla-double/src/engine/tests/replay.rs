//! A log says all there is to say: replayed, it makes the table it is of.

use std::collections::HashMap;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::engine::types::timeuuid_micros;

const COLUMNS: &str = "(pk int, ck int, s int static, v int, m map<int, int>, st set<int>, l list<int>, u ut, \
                       f frozen<set<int>>, PRIMARY KEY (pk, ck))";

/// A statement on two partitions of table `t`, without the semicolon.
fn statement(random: &mut StdRng, batch: bool) -> String {
    let mut n = |below: i32| random.random_range(0..below);
    let key = format!("pk = {}", n(2));
    let row = format!("{key} AND ck = {}", n(4));
    let (a, b, c) = (n(5), n(5), n(5));
    match n(if batch { 20 } else { 24 }) {
        0 => format!(
            "INSERT INTO t (pk, ck, v, m) VALUES ({}, {}, {a}, {{{b}: {c}}})",
            n(2),
            n(4)
        ),
        1 => format!(
            "INSERT INTO t (pk, ck, s, l) VALUES ({}, {}, {a}, [{b}, {c}])",
            n(2),
            n(4)
        ),
        2 => format!("INSERT INTO t (pk, ck) VALUES ({}, {})", n(2), n(4)),
        3 => format!("UPDATE t SET v = {a}, f = {{{b}, {c}}} WHERE {row}"),
        4 => format!("UPDATE t SET v = null, m = m + {{{a}: {b}}} WHERE {row}"),
        5 => format!("UPDATE t SET m = {{{a}: {b}}} WHERE {row}"),
        6 => format!("UPDATE t SET m = m - {{{a}, {b}}}, st = st + {{{c}}} WHERE {row}"),
        7 => format!("UPDATE t SET st = {{{a}, {b}}}, u = {{a: {c}}} WHERE {row}"),
        8 => format!("UPDATE t SET st = st - {{{a}}}, u.b = {c} WHERE {row}"),
        9 => format!("UPDATE t SET l = l + [{a}, {b}] WHERE {row}"),
        10 => format!("UPDATE t SET l = [{a}] + l WHERE {row}"),
        11 => format!("UPDATE t SET l = [{a}, {b}, {c}] WHERE {row}"),
        12 => format!("UPDATE t SET u.a = null, s = {a} WHERE {row}"),
        13 => format!("DELETE m, v FROM t WHERE {row}"),
        14 => format!("DELETE l, u FROM t WHERE {row}"),
        15 => format!("DELETE s FROM t WHERE {key}"),
        16 => format!("DELETE FROM t WHERE {row}"),
        17 => format!("DELETE FROM t WHERE {key} AND ck > {a} AND ck <= {b}"),
        18 => format!("DELETE FROM t WHERE {key} AND ck < {a}"),
        19 => format!("DELETE m[{a}] FROM t WHERE {row}"),
        20 => format!("DELETE FROM t WHERE {key}"),
        21 => format!("UPDATE t SET l = l - [{a}] WHERE {row}"),
        22 => format!("UPDATE t SET v = {a} WHERE {row} IF v = {b}"),
        _ => {
            let inner: Vec<_> = (0..3).map(|_| statement(random, true)).collect();
            format!("BEGIN BATCH {}; APPLY BATCH", inner.join("; "))
        }
    }
}

/// Does to table `r` what a log row says was done to `t`.
fn replay(
    engine: &Engine,
    row: &HashMap<String, (CqlType, Bytes)>,
    next: Option<&HashMap<String, (CqlType, Bytes)>>,
) {
    let at = timeuuid_micros(&row["cdc$time"].1).expect("a time");
    let value = |name: &str| {
        row.get(name)
            .map(|(ty, bytes)| Value::decode(ty, bytes).expect("a value"))
    };
    let pk = value("pk").expect("a partition key");
    let using = format!("USING TIMESTAMP {at}");
    let ck = value("ck");
    let place = match &ck {
        Some(ck) => format!("pk = {pk} AND ck = {ck}"),
        None => format!("pk = {pk}"),
    };
    let set = |what: String| {
        drop(run(
            engine,
            &format!("UPDATE r {using} SET {what} WHERE {place}"),
        ))
    };
    match row["cdc$operation"].1[0] {
        operation @ (1 | 2) => {
            if let (2, Some(ck)) = (operation, &ck) {
                run(
                    engine,
                    &format!("INSERT INTO r (pk, ck) VALUES ({pk}, {ck}) {using}"),
                );
            }
            for column in ["s", "v", "f", "m", "st", "l", "u"] {
                if row.contains_key(&format!("cdc$deleted_{column}")) {
                    set(format!("{column} = null"));
                }
                match (column, value(&format!("cdc$deleted_elements_{column}"))) {
                    (_, None) => {}
                    ("l", Some(Value::Set(keys))) => {
                        keys.iter().for_each(|k| {
                            set(format!("l[SCYLLA_TIMEUUID_LIST_INDEX({k})] = null"))
                        });
                    }
                    ("u", Some(Value::Set(indexes))) => {
                        indexes.iter().for_each(|i| {
                            set(format!(
                                "u.{} = null",
                                ["a", "b"][i.to_string().parse::<usize>().unwrap()]
                            ))
                        });
                    }
                    (_, Some(keys)) => set(format!("{column} = {column} - {keys}")),
                }
                match (column, value(column)) {
                    (_, None) => {}
                    ("s" | "v" | "f", Some(value)) => set(format!("{column} = {value}")),
                    ("l", Some(Value::Map(entries))) => {
                        entries.iter().for_each(|(k, v)| {
                            set(format!("l[SCYLLA_TIMEUUID_LIST_INDEX({k})] = {v}"))
                        });
                    }
                    ("u", Some(Value::Udt(fields))) => {
                        for (field, value) in
                            fields.iter().filter_map(|(f, v)| Some((f, v.as_ref()?)))
                        {
                            set(format!("u.{field} = {value}"));
                        }
                    }
                    (_, Some(value)) => set(format!("{column} = {column} + {value}")),
                }
            }
        }
        3 | 4 => drop(run(engine, &format!("DELETE FROM r {using} WHERE {place}"))),
        start @ (5 | 6) => {
            let end = next.expect("a range has an end");
            let mut place = format!("pk = {pk}");
            if let Some(ck) = ck {
                place.push_str(&format!(
                    " AND ck {} {ck}",
                    if start == 5 { ">=" } else { ">" }
                ));
            }
            if let Some((ty, bytes)) = end.get("ck") {
                let sign = if end["cdc$operation"].1[0] == 7 {
                    "<="
                } else {
                    "<"
                };
                place.push_str(&format!(
                    " AND ck {sign} {}",
                    Value::decode(ty, bytes).expect("a key")
                ));
            }
            run(engine, &format!("DELETE FROM r {using} WHERE {place}"));
        }
        7 | 8 => {}
        other => panic!("operation {other}"),
    }
}

#[test]
fn replaying_the_log_makes_the_table() {
    let mut compared = 0;
    for seed in 0..12 {
        let random = &mut StdRng::seed_from_u64(seed);
        let engine = with_keyspace();
        run(&engine, "CREATE TYPE ut (a int, b int)");
        run(
            &engine,
            &format!("CREATE TABLE t {COLUMNS} WITH cdc = {{'enabled': true}}"),
        );
        run(&engine, &format!("CREATE TABLE r {COLUMNS}"));
        let mut statements = Vec::new();
        for _ in 0..120 {
            let text = statement(random, false);
            // Steps of 10 µs, so that the microseconds about a collection's tombstone are its own.
            let at = NOW + 10 * statements.len() as i64;
            run_at(&engine, &text, at);
            statements.push(text);
        }
        let (columns, rows) = parts(run(&engine, "SELECT * FROM t_scylla_cdc_log"));
        let mut rows: Vec<HashMap<String, (CqlType, Bytes)>> = rows
            .into_iter()
            .map(|row| {
                let present = columns
                    .iter()
                    .zip(row)
                    .filter_map(|(c, v)| Some((c.name.clone(), (c.ty.clone(), v?))));
                present.collect()
            })
            .collect();
        rows.sort_by_key(|row| {
            let number: [u8; 4] = row["cdc$batch_seq_no"].1[..].try_into().expect("an int");
            (
                timeuuid_micros(&row["cdc$time"].1),
                row["cdc$stream_id"].1.clone(),
                row["cdc$time"].1.clone(),
                i32::from_be_bytes(number),
            )
        });
        for (i, row) in rows.iter().enumerate() {
            replay(&engine, row, rows.get(i + 1));
        }
        let original = select(&engine, "SELECT * FROM t");
        compared += original.len();
        assert_eq!(
            select(&engine, "SELECT * FROM r"),
            original,
            "seed {seed}: {statements:#?}"
        );
    }
    assert!(compared > 12, "the tables are not empty");
}
