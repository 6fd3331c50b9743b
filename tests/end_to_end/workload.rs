//! What arrives in Redpanda against what was done: a random workload is written through the `scylla` driver, and
//! a plain model of two tables says, from the statements alone, which records it must have made, in which order
//! for each partition, with which images before and after.
//!
//! The model knows nothing of the change log: it knows rows, and the form of a record (`src/transform/render.rs`).
//! `PENSTOCK_SEED` chooses the workload, which a failure names.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use futures::StreamExt;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla_double::{Node, Options};
use serde_json::{Map, Value, json};

use testkit::broker::{Cluster, read_all, unique};
use testkit::process::Running;

/// Statements, of which some are batches of several.
const STATEMENTS: usize = 10_000;
const PARTITIONS: i32 = 24;
const LONG: Duration = Duration::from_secs(90);

/// Without a preimage of what is not touched; with full images before and after.
const TABLES: [(&str, bool, &str); 2] = [
    ("one", false, "'preimage': true"),
    ("two", true, "'preimage': 'full', 'postimage': true"),
];

/// Columns that are written as a whole, with their types.
const WHOLE: &[(&str, &str)] = &[
    ("ascii_", "ascii"),
    ("bigint_", "bigint"),
    ("blob_", "blob"),
    ("boolean_", "boolean"),
    ("date_", "date"),
    ("decimal_", "decimal"),
    ("double_", "double"),
    ("duration_", "duration"),
    ("float_", "float"),
    ("inet_", "inet"),
    ("int_", "int"),
    ("smallint_", "smallint"),
    ("text_", "text"),
    ("time_", "time"),
    ("timestamp_", "timestamp"),
    ("timeuuid_", "timeuuid"),
    ("tinyint_", "tinyint"),
    ("uuid_", "uuid"),
    ("varint_", "varint"),
    ("elements_z", "text"),
    ("fl", "frozen<list<int>>"),
    ("fs", "frozen<set<int>>"),
    ("fm", "frozen<map<text, int>>"),
    ("fu", "frozen<ut>"),
    ("tu", "tuple<int, text>"),
];
/// Columns of which parts can be written.
const PARTS: &[(&str, &str)] = &[
    ("l", "list<int>"),
    ("st", "set<text>"),
    ("m", "map<int, text>"),
    ("u", "ut"),
    ("nested", "map<int, frozen<list<text>>>"),
];

/// A literal of a column's type, and the JSON that a record has for it.
fn literal(r: &mut StdRng, column: &str) -> (String, Value) {
    let n = r.random_range(-1000i32..1000);
    let small = r.random_range(0..4);
    let (plain, quoted) = (
        |n: i64| (n.to_string(), json!(n)),
        |s: String| (format!("'{s}'"), json!(s)),
    );
    match column {
        "ascii_" | "text_" | "elements_z" => quoted(format!("t{n}")),
        "bigint_" => plain(i64::from(n) << 40),
        "blob_" => {
            let text = format!("0x{n:08x}");
            (text.clone(), json!(text))
        }
        "boolean_" => ((n > 0).to_string(), json!(n > 0)),
        "date_" => quoted(format!(
            "20{:02}-0{}-1{small}",
            n.unsigned_abs() % 90 + 10,
            small + 1
        )),
        "decimal_" | "double_" | "float_" => (
            format!("{n}.5"),
            json!(f64::from(n) + 0.5_f64.copysign(if n < 0 { -1.0 } else { 1.0 })),
        ),
        "duration_" => {
            let text = format!("{}mo{small}d{}ns", n.unsigned_abs(), small * 7);
            (text.clone(), json!(text))
        }
        "inet_" if n > 0 => quoted(format!("10.0.{small}.{}", n % 250)),
        "inet_" => quoted(format!("2001:db8::{}", small + 1)),
        "int_" => plain(n.into()),
        "smallint_" => plain((n * 3).into()),
        "tinyint_" => plain((n % 100).into()),
        "time_" => (
            format!("'0{small}:10:20.12345{small}'"),
            json!(format!("0{small}:10:20.12345{small}000")),
        ),
        "timestamp_" => {
            let ms = 1_700_000_000_000 + i64::from(n);
            // 1.7 · 10⁹ s is 22:13:20 of that day.
            let (s, ms_of_s) = (20 + i64::from(n).div_euclid(1000), ms.rem_euclid(1000));
            (
                ms.to_string(),
                json!(format!("2023-11-14T22:13:{s:02}.{ms_of_s:03}Z")),
            )
        }
        "timeuuid_" => {
            let text = format!(
                "{:08x}-1111-11ee-8000-0000000000{small:02}",
                r.random::<u32>()
            );
            (text.clone(), json!(text))
        }
        "uuid_" => {
            let text = uuid::Uuid::from_u128(r.random()).to_string();
            (text.clone(), json!(text))
        }
        "varint_" => {
            // Beyond what 64 bits hold.
            let text = format!("{}000000000000000000001", n.abs() + 1);
            let value = serde_json::from_str(&text).expect("a number");
            (text, value)
        }
        "u" | "fu" => (
            format!("{{a: {n}, b: 't{small}'}}"),
            json!({"a": n, "b": format!("t{small}")}),
        ),
        "l" | "fl" => (format!("[{n}, {small}, {n}]"), json!([n, small, n])),
        "fs" => {
            let sorted = BTreeSet::from([n, small]);
            (format!("{{{n}, {small}}}"), json!(sorted))
        }
        "st" => {
            let (a, b) = (format!("t{small}"), format!("t{}", small + 1));
            (format!("{{'{b}', '{a}'}}"), json!([a, b]))
        }
        "m" => (
            format!("{{{small}: 't{n}', {}: 't{small}'}}", small + 1),
            json!({small.to_string(): format!("t{n}"), (small + 1).to_string(): format!("t{small}")}),
        ),
        "fm" => (
            format!("{{'t{small}': {n}}}"),
            json!({format!("t{small}"): n}),
        ),
        "tu" => (
            format!("({n}, 't{small}')"),
            json!([n, format!("t{small}")]),
        ),
        "nested" => (
            format!("{{{small}: ['t{n}', 't{small}']}}"),
            json!({small.to_string(): [format!("t{n}"), format!("t{small}")]}),
        ),
        other => panic!("no literal for {other}"),
    }
}

type Columns = BTreeMap<&'static str, Value>;

/// A row as a reader would see it. Null columns are left out.
#[derive(Clone, Default)]
struct Row {
    inserted: bool,
    columns: Columns,
}

impl Row {
    fn lives(&self) -> bool {
        self.inserted || !self.columns.is_empty()
    }

    fn set(&mut self, column: &'static str, value: Value) {
        let empty = match &value {
            Value::Array(elements) => {
                elements.is_empty() && PARTS.iter().any(|(n, _)| *n == column)
            }
            Value::Object(entries) => {
                PARTS.iter().any(|(n, _)| *n == column) && entries.values().all(Value::is_null)
            }
            other => other.is_null(),
        };
        if empty {
            self.columns.remove(column);
        } else {
            self.columns.insert(column, value);
        }
    }

    fn array(&self, column: &str) -> Vec<Value> {
        let found = self.columns.get(column).and_then(Value::as_array);
        found.cloned().unwrap_or_default()
    }

    fn object(&self, column: &str) -> Map<String, Value> {
        let found = self.columns.get(column).and_then(Value::as_object);
        found.cloned().unwrap_or_default()
    }
}

/// Clustering key: `c` and the number in `d`.
type At = (i32, i32);

#[derive(Default)]
struct Partition {
    rows: BTreeMap<At, Row>,
    statics: Row,
    /// The records that it must have made, in their order, without the time.
    records: Vec<Value>,
}

/// One change of one row, before its images are known.
struct Delta {
    operation: &'static str,
    ttl: Option<u32>,
    columns: Columns,
}

impl Delta {
    fn new(operation: &'static str, columns: Columns) -> Self {
        Self {
            operation,
            ttl: None,
            columns,
        }
    }
}

struct Model {
    table: &'static str,
    full: bool,
    keyspace: String,
    partitions: BTreeMap<i32, Partition>,
}

fn keys(k: i32, at: Option<At>) -> Map<String, Value> {
    let mut keys = Map::from_iter([("k".to_owned(), json!(k))]);
    let (c, d) = at.map_or((Value::Null, Value::Null), |(c, d)| {
        (json!(c), json!(format!("d{d}")))
    });
    keys.insert("c".into(), c);
    keys.insert("d".into(), d);
    keys
}

fn with(mut keys: Map<String, Value>, columns: &Columns) -> Value {
    keys.extend(columns.iter().map(|(n, v)| ((*n).to_owned(), v.clone())));
    Value::Object(keys)
}

/// All columns of a row, those that are null too.
fn everything(row: &Row, statics: bool) -> Columns {
    let names: Vec<&'static str> = if statics {
        vec!["s", "ss"]
    } else {
        WHOLE.iter().chain(PARTS).map(|(n, _)| *n).collect()
    };
    let value = |n| row.columns.get(n).cloned().unwrap_or_default();
    names.into_iter().map(|n| (n, value(n))).collect()
}

impl Model {
    fn record(&self, operation: &str, columns: Value) -> Value {
        json!({"operation": operation, "table": format!("{}.{}", self.keyspace, self.table), "columns": columns})
    }

    /// What becomes of changes of rows of one partition that are made at once. `at` is `None` for the static row.
    fn change(&mut self, k: i32, changes: Vec<(Option<At>, Vec<Delta>, Option<Row>)>) {
        let mut made = Vec::new();
        let partition = self.partitions.entry(k).or_default();
        let mut after = Vec::new();
        for (at, deltas, becomes) in changes {
            let before = match at {
                Some(at) => partition.rows.get(&at).cloned().unwrap_or_default(),
                None => partition.statics.clone(),
            };
            let deleted = deltas.iter().any(|d| d.operation == "row-delete");
            let touched: BTreeSet<&str> = deltas
                .iter()
                .flat_map(|d| d.columns.keys().copied())
                .collect();
            let whole = everything(&before, at.is_none());
            let told: Columns = if self.full || deleted {
                whole
            } else {
                whole
                    .into_iter()
                    .filter(|(n, _)| touched.contains(n))
                    .collect()
            };
            // Of a static row there is an image only if one of the columns that it is made of has a value.
            let seen = match at {
                Some(_) => before.lives(),
                None => told.values().any(|v| !v.is_null()),
            };
            let preimage = seen.then(|| with(keys(k, at), &told));
            let postimage = (self.full && !deleted)
                .then(|| everything(becomes.as_ref().unwrap_or(&Row::default()), at.is_none()))
                .map(|columns| with(keys(k, at), &columns));
            for delta in deltas {
                made.push((delta, at, preimage.clone(), postimage.clone()));
            }
            after.push((at, becomes.unwrap_or_default()));
        }
        for (at, row) in after {
            match at {
                Some(at) if row.lives() => drop(partition.rows.insert(at, row)),
                Some(at) => drop(partition.rows.remove(&at)),
                None => partition.statics = row,
            }
        }
        for (delta, at, preimage, postimage) in made {
            let mut record = self.record(delta.operation, with(keys(k, at), &delta.columns));
            for (name, value) in [
                ("ttl", delta.ttl.map(|t| json!(t))),
                ("preimage", preimage),
                ("postimage", postimage),
            ] {
                if let Some(value) = value {
                    record[name] = value;
                }
            }
            self.partitions.entry(k).or_default().records.push(record);
        }
    }

    fn push(&mut self, k: i32, record: Value) {
        self.partitions.entry(k).or_default().records.push(record);
    }

    fn row(&mut self, k: i32, at: At) -> Row {
        let partition = self.partitions.entry(k).or_default();
        partition.rows.get(&at).cloned().unwrap_or_default()
    }

    fn delete_rows(&mut self, k: i32, gone: impl Fn(&At) -> bool) {
        let partition = self.partitions.entry(k).or_default();
        partition.rows.retain(|at, _| !gone(at));
    }
}

/// Several different columns of `of`.
fn pick(r: &mut StdRng, of: &[(&'static str, &str)], most: usize) -> Vec<&'static str> {
    let n = r.random_range(1..=most);
    let names: BTreeSet<_> = (0..n).map(|_| of[r.random_range(0..of.len())].0).collect();
    names.into_iter().collect()
}

/// A statement, which the model has followed.
fn statement(r: &mut StdRng, model: &mut Model, k: i32) -> String {
    let table = model.table;
    let at: At = (r.random_range(0..5), r.random_range(0..3));
    let (c, d) = at;
    let place = format!("k = {k} AND c = {c} AND d = 'd{d}'");
    let (n, small) = (r.random_range(0..1000), r.random_range(0..4));
    let mut row = model.row(k, at);
    let text = |n: i32| format!("t{n}");
    let one = |delta: Delta, row: Row| vec![(Some(at), vec![delta], Some(row))];
    match r.random_range(0..24) {
        // Whole values, of which some may be null or live for a time.
        kind @ 0..=6 => {
            let mut names = pick(r, WHOLE, 4);
            let ttl = r.random_bool(0.2).then(|| r.random_range(10_000..20_000));
            if ttl.is_none() {
                names.extend(pick(r, PARTS, 2));
            }
            let insert = kind < 4;
            let (mut delta, mut values) = (Columns::new(), Vec::new());
            for name in &names {
                let whole = WHOLE.iter().any(|(n, _)| n == name);
                let (cql, value) = if ttl.is_none() && whole && r.random_bool(0.15) {
                    ("null".to_owned(), Value::Null)
                } else {
                    literal(r, name)
                };
                row.set(name, value.clone());
                delta.insert(name, value);
                values.push(cql);
            }
            row.inserted |= insert;
            let mut delta = Delta::new(if insert { "insert" } else { "update" }, delta);
            delta.ttl = ttl;
            model.change(k, one(delta, row));
            let using = ttl.map_or_else(String::new, |t| format!(" USING TTL {t}"));
            if insert {
                let (names, values) = (names.join(", "), values.join(", "));
                format!(
                    "INSERT INTO {table} (k, c, d, {names}) VALUES ({k}, {c}, 'd{d}', {values}){using}"
                )
            } else {
                let sets = names.iter().zip(values).map(|(n, v)| format!("{n} = {v}"));
                let sets: Vec<_> = sets.collect();
                format!(
                    "UPDATE {table}{using} SET {} WHERE {place}",
                    sets.join(", ")
                )
            }
        }
        7 => {
            row.inserted = true;
            model.change(k, one(Delta::new("insert", Columns::new()), row));
            format!("INSERT INTO {table} (k, c, d) VALUES ({k}, {c}, 'd{d}')")
        }
        // A collection that lives for a time: its old value goes for ever, so that is a change of its own.
        8 => {
            let (cql, value) = literal(r, "m");
            row.set("m", value.clone());
            row.inserted = true;
            let ttl = Some(10_000 + n as u32);
            let mut inserted = Delta::new("insert", Columns::new());
            inserted.ttl = ttl;
            let cleared = Delta::new("update", Columns::from([("m", Value::Null)]));
            let mut added = Delta::new("update", Columns::from([("m", json!({"added": value}))]));
            added.ttl = ttl;
            model.change(
                k,
                vec![(Some(at), vec![inserted, cleared, added], Some(row))],
            );
            format!(
                "INSERT INTO {table} (k, c, d, m) VALUES ({k}, {c}, 'd{d}', {cql}) USING TTL {}",
                10_000 + n
            )
        }
        9 => {
            let name = pick(r, PARTS, 1)[0];
            row.set(name, Value::Null);
            model.change(
                k,
                one(
                    Delta::new("update", Columns::from([(name, Value::Null)])),
                    row,
                ),
            );
            format!("DELETE {name} FROM {table} WHERE {place}")
        }
        10 | 11 => {
            let mut list = row.array("l");
            let append = r.random_bool(0.5);
            let new = [json!(n), json!(small)];
            match append {
                true => list.extend(new.clone()),
                false => drop(list.splice(0..0, new.clone())),
            }
            row.set("l", json!(list));
            let delta = Columns::from([("l", json!({"added": new}))]);
            model.change(k, one(Delta::new("update", delta), row));
            match append {
                true => format!("UPDATE {table} SET l = l + [{n}, {small}] WHERE {place}"),
                false => format!("UPDATE {table} SET l = [{n}, {small}] + l WHERE {place}"),
            }
        }
        12 if !row.array("l").is_empty() => {
            let mut list = row.array("l");
            let gone = list[r.random_range(0..list.len())].clone();
            let before = list.len();
            list.retain(|e| *e != gone);
            // Which cells they were only the log knows.
            let delta = Columns::from([("l", json!({"removed": before - list.len()}))]);
            row.set("l", json!(list));
            model.change(k, one(Delta::new("update", delta), row));
            format!("UPDATE {table} SET l = l - [{gone}] WHERE {place}")
        }
        12 | 13 => {
            let mut set: BTreeSet<String> = row
                .array("st")
                .iter()
                .filter_map(|v| Some(v.as_str()?.to_owned()))
                .collect();
            let mut map = row.object("m");
            set.insert(text(small));
            map.insert(small.to_string(), json!(format!("x{n}")));
            row.set("st", json!(set));
            row.set("m", Value::Object(map));
            let delta = Columns::from([
                ("st", json!({"added": [text(small)]})),
                ("m", json!({"added": {small.to_string(): format!("x{n}")}})),
            ]);
            model.change(k, one(Delta::new("update", delta), row));
            format!(
                "UPDATE {table} SET st = st + {{'t{small}'}}, m[{small}] = 'x{n}' WHERE {place}"
            )
        }
        14 => {
            let mut set = row.array("st");
            let mut map = row.object("m");
            set.retain(|e| *e != json!(text(small)));
            map.remove(&small.to_string());
            row.set("st", json!(set));
            row.set("m", Value::Object(map));
            let delta = Columns::from([
                ("st", json!({"removed": [text(small)]})),
                ("m", json!({"removed": [small]})),
            ]);
            model.change(k, one(Delta::new("update", delta), row));
            format!(
                "UPDATE {table} SET st = st - {{'t{small}'}}, m = m - {{{small}}} WHERE {place}"
            )
        }
        15 => {
            let mut fields = row.object("u");
            fields.entry("b").or_insert(Value::Null);
            fields.insert("a".into(), json!(n));
            row.set("u", Value::Object(fields));
            let delta = Columns::from([("u", json!({"added": {"a": n, "b": null}}))]);
            model.change(k, one(Delta::new("update", delta), row));
            format!("UPDATE {table} SET u.a = {n} WHERE {place}")
        }
        16 => {
            model.change(
                k,
                vec![(
                    Some(at),
                    vec![Delta::new("row-delete", Columns::new())],
                    None,
                )],
            );
            format!("DELETE FROM {table} WHERE {place}")
        }
        // Ranges: of `c`, open at one end or not, and of `d`.
        17 => {
            let (low, high) = (small, small + 1);
            model.delete_rows(k, |(c, _)| *c > low && *c <= high);
            let bound = |c: i32| json!({"k": k, "c": c, "d": null});
            let mut record = model.record("range-delete-start-exclusive", bound(low));
            record["range_end"] =
                json!({"operation": "range-delete-end-inclusive", "columns": bound(high)});
            model.push(k, record);
            format!("DELETE FROM {table} WHERE k = {k} AND c > {low} AND c <= {high}")
        }
        18 => {
            model.delete_rows(k, |(c, _)| *c < small);
            let bound = |c: Value| json!({"k": k, "c": c, "d": null});
            let mut record = model.record("range-delete-start-inclusive", bound(Value::Null));
            record["range_end"] =
                json!({"operation": "range-delete-end-exclusive", "columns": bound(json!(small))});
            model.push(k, record);
            format!("DELETE FROM {table} WHERE k = {k} AND c < {small}")
        }
        19 => {
            model.delete_rows(k, |other| other.0 == c);
            let bound = json!({"k": k, "c": c, "d": null});
            let mut record = model.record("range-delete-start-inclusive", bound.clone());
            record["range_end"] =
                json!({"operation": "range-delete-end-inclusive", "columns": bound});
            model.push(k, record);
            format!("DELETE FROM {table} WHERE k = {k} AND c = {c}")
        }
        20 if r.random_bool(0.3) => {
            let partition = model.partitions.entry(k).or_default();
            partition.rows.clear();
            partition.statics = Row::default();
            let record = model.record("partition-delete", json!({"k": k, "c": null, "d": null}));
            model.push(k, record);
            format!("DELETE FROM {table} WHERE k = {k}")
        }
        20 | 21 => {
            let mut statics = model.partitions.entry(k).or_default().statics.clone();
            let mut set: BTreeSet<i64> = statics
                .array("ss")
                .iter()
                .filter_map(Value::as_i64)
                .collect();
            set.insert(small.into());
            statics.columns.insert("s", json!(n));
            statics.columns.insert("ss", json!(set));
            let delta = Columns::from([("s", json!(n)), ("ss", json!({"added": [small]}))]);
            model.change(
                k,
                vec![(None, vec![Delta::new("update", delta)], Some(statics))],
            );
            format!("UPDATE {table} SET s = {n}, ss = ss + {{{small}}} WHERE k = {k}")
        }
        // Conditions: what is not applied leaves nothing.
        22 if r.random_bool(0.5) => {
            let (cql, value) = literal(r, "int_");
            if !row.lives() {
                row.inserted = true;
                row.set("int_", value.clone());
                let delta = Columns::from([("int_", value)]);
                model.change(k, one(Delta::new("insert", delta), row));
            }
            format!(
                "INSERT INTO {table} (k, c, d, int_) VALUES ({k}, {c}, 'd{d}', {cql}) IF NOT EXISTS"
            )
        }
        22 => {
            let (cql, value) = literal(r, "text_");
            if row.lives() {
                row.set("text_", value.clone());
                let delta = Columns::from([("text_", value)]);
                model.change(k, one(Delta::new("update", delta), row));
            }
            format!("UPDATE {table} SET text_ = {cql} WHERE {place} IF EXISTS")
        }
        _ => batch(r, model, k),
    }
}

/// Inserts and updates of the same columns in several rows of one partition, or deletions of rows.
fn batch(r: &mut StdRng, model: &mut Model, k: i32) -> String {
    let names = pick(r, WHOLE, 3);
    let rows: BTreeSet<At> = (0..r.random_range(2..6))
        .map(|_| (r.random_range(0..5), r.random_range(0..3)))
        .collect();
    let deletes = r.random_bool(0.3);
    let (mut changes, mut statements) = (Vec::new(), Vec::new());
    let table = model.table;
    for at in rows {
        let (c, d) = at;
        if deletes {
            changes.push((
                Some(at),
                vec![Delta::new("row-delete", Columns::new())],
                None,
            ));
            statements.push(format!(
                "DELETE FROM {table} WHERE k = {k} AND c = {c} AND d = 'd{d}'"
            ));
            continue;
        }
        let mut row = model.row(k, at);
        let insert = r.random_bool(0.5);
        row.inserted |= insert;
        let (mut delta, mut values) = (Columns::new(), Vec::new());
        for name in &names {
            let (cql, value) = literal(r, name);
            row.set(name, value.clone());
            delta.insert(name, value);
            values.push(cql);
        }
        changes.push((
            Some(at),
            vec![Delta::new(if insert { "insert" } else { "update" }, delta)],
            Some(row),
        ));
        statements.push(if insert {
            format!(
                "INSERT INTO {table} (k, c, d, {}) VALUES ({k}, {c}, 'd{d}', {})",
                names.join(", "),
                values.join(", ")
            )
        } else {
            let sets: Vec<_> = names
                .iter()
                .zip(values)
                .map(|(n, v)| format!("{n} = {v}"))
                .collect();
            format!(
                "UPDATE {table} SET {} WHERE k = {k} AND c = {c} AND d = 'd{d}'",
                sets.join(", ")
            )
        });
    }
    model.change(k, changes);
    format!(
        "BEGIN UNLOGGED BATCH {}; APPLY BATCH",
        statements.join("; ")
    )
}

/// Brings a record to the model's form: the cells of a list have names that only the log knows.
fn settle(record: &mut Value) {
    let list = &mut record["columns"]["l"];
    if let Some(added) = list.get_mut("added")
        && let Some(cells) = added.as_object()
    {
        let mut cells: Vec<_> = cells.iter().collect();
        // The first 16 digits of a version 1 UUID, put in order, are its time.
        cells.sort_by_key(|(id, _)| {
            format!("{}{}{}{}", &id[14..18], &id[9..13], &id[..8], &id[18..])
        });
        *added = cells.into_iter().map(|(_, v)| v.clone()).collect();
    }
    if let Some(removed) = list.get_mut("removed") {
        *removed = json!(removed.as_array().map(Vec::len));
    }
}

async fn session(node: &Node) -> Session {
    let session = SessionBuilder::new()
        .known_node_addr(node.addr())
        .build()
        .await;
    session.expect("a session")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_what_the_statements_imply() {
    let seed = std::env::var("PENSTOCK_SEED").map_or(20_260_731, |s| s.parse().expect("a number"));
    eprintln!("PENSTOCK_SEED={seed}");
    let node = Node::start(Options::default())
        .await
        .expect("the stand-in starts");
    let db = session(&node).await;
    let run = async |cql: &str| {
        if let Err(e) = db.query_unpaged(cql, ()).await {
            panic!("{cql}: {e}");
        }
    };
    run("CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1} AND tablets = {'enabled': false}").await;
    db.use_keyspace("ks", false)
        .await
        .expect("the keyspace is there");
    run("CREATE TYPE ut (a int, b text)").await;
    let columns: String = WHOLE
        .iter()
        .chain(PARTS)
        .map(|(n, t)| format!("{n} {t}, "))
        .collect();
    for (table, _, images) in TABLES {
        run(&format!(
            "CREATE TABLE {table} (k int, c int, d text, s int static, ss set<int> static, {columns} \
             PRIMARY KEY (k, c, d)) WITH cdc = {{'enabled': true, {images}}}"
        ))
        .await;
    }

    let cluster = Cluster::start();
    let name = unique("workload");
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("pipeline.toml");
    let toml = format!(
        "[pipeline]\nname = \"{name}\"\ndelivery = \"exactly-once\"\nshards = 2\n\
         [source]\ntype = \"scylla-cdc\"\nnodes = [\"{}\"]\nkeyspace = \"ks\"\ntables = [\"one\", \"two\"]\n\
         safety_interval = \"50ms\"\npoll_interval = \"20ms\"\n\
         [sink]\ntype = \"redpanda\"\nbrokers = [\"{}\"]\nheaders = [\"operation\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n",
        node.addr(),
        cluster.brokers
    );
    std::fs::write(&config, toml).expect("pipeline.toml");
    let mut running = Running::start(&config, &dir.path().join("log"));

    let mut r = StdRng::seed_from_u64(seed);
    let mut models = TABLES.map(|(table, full, _)| Model {
        table,
        full,
        keyspace: "ks".into(),
        partitions: BTreeMap::new(),
    });
    // Generations: the partitions' statements go on side by side, those of one partition one after the other.
    for third in 0..3 {
        let mut queues: BTreeMap<(&str, i32), Vec<String>> = BTreeMap::new();
        for _ in 0..STATEMENTS / 3 + 1 {
            let model = &mut models[r.random_range(0..2)];
            let k = r.random_range(0..PARTITIONS);
            let cql = statement(&mut r, model, k);
            queues.entry((model.table, k)).or_default().push(cql);
        }
        futures::stream::iter(queues.into_values())
            .for_each_concurrent(8, async |queue| {
                for cql in queue {
                    run(&cql).await;
                }
            })
            .await;
        if third < 2 {
            let now = || {
                std::time::UNIX_EPOCH
                    .elapsed()
                    .expect("after 1970")
                    .as_millis() as i64
            };
            let at = node.engine().new_generation(Some(now() + 100));
            while now() <= at {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    let mut operations = HashSet::new();
    for model in &models {
        let wanted: usize = model.partitions.values().map(|p| p.records.len()).sum();
        let topic = format!("{name}.ks.{}", model.table);
        let deadline = Instant::now() + LONG;
        let records = loop {
            let records = read_all(&cluster.brokers, &topic);
            if records.len() >= wanted {
                break records;
            }
            assert!(
                Instant::now() < deadline,
                "{} of {wanted} records\n{}",
                records.len(),
                running.text()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert_eq!(
            records.len(),
            wanted,
            "{}: repeats, seed {seed}",
            model.table
        );
        let mut found: BTreeMap<i32, Vec<Value>> = BTreeMap::new();
        let mut last: BTreeMap<i32, String> = BTreeMap::new();
        for record in &records {
            let key: Value = serde_json::from_str(record.key_text()).expect("a JSON key");
            let k = key["k"].as_i64().expect("the partition key") as i32;
            let mut value: Value = serde_json::from_str(record.text()).expect("a JSON value");
            let fields = value.as_object_mut().expect("an object");
            let time = fields
                .remove("time")
                .expect("a time")
                .as_str()
                .expect("a text")
                .to_owned();
            let time = time
                .parse::<jiff::Timestamp>()
                .expect("a time")
                .as_microsecond();
            assert_eq!(record.timestamp, Some(time / 1000), "the change's time");
            let time = format!("{time:020}");
            let before = last.insert(k, time.clone());
            assert!(
                before.is_none_or(|b| b <= time),
                "{}: partition {k} goes back in time",
                model.table
            );
            let operation = value["operation"]
                .as_str()
                .expect("an operation")
                .to_owned();
            assert_eq!(record.header("penstock-operation"), Some(&operation[..]));
            operations.insert(operation);
            if value["columns"].get("l").is_some() {
                settle(&mut value);
            }
            found.entry(k).or_default().push(value);
        }
        for (k, partition) in &model.partitions {
            let found = found.remove(k).unwrap_or_default();
            for (i, (found, wanted)) in found.iter().zip(&partition.records).enumerate() {
                assert_eq!(
                    found, wanted,
                    "{}, partition {k}, record {i}, seed {seed}",
                    model.table
                );
            }
            assert_eq!(
                found.len(),
                partition.records.len(),
                "{}, partition {k}, seed {seed}",
                model.table
            );
        }
        assert!(
            found.is_empty(),
            "records of partitions that were not written: {found:?}"
        );
        let images = |name| {
            records
                .iter()
                .filter(|r| r.text().contains(&format!("\"{name}\":")))
                .count()
        };
        let (before, after) = (images("preimage"), images("postimage"));
        assert!(
            before > 1000 && (after > 1000) == model.full,
            "{before} and {after} images"
        );
        eprintln!(
            "{}: {wanted} records as implied, {before} preimages, {after} postimages",
            model.table
        );
    }
    let all = [
        "insert",
        "update",
        "row-delete",
        "partition-delete",
        "range-delete-start-inclusive",
        "range-delete-start-exclusive",
    ];
    assert_eq!(
        operations,
        all.map(str::to_owned).into(),
        "every operation came, and no image by itself"
    );
    running.signal("-TERM");
    assert_eq!(running.wait(LONG).code(), Some(0), "{}", running.text());
}
