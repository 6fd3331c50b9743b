//! The source against the official `scylla-cdc` crate: a random workload of every operation and type is
//! written once, and what the two readers yield of its log must be the same, row by row.
//!
//! `PENSTOCK_SEED` chooses the workload, which a failure names.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use penstock::change::{Position, StreamId};
use penstock::checkpoint::Checkpoints;
use penstock::source::Source;
use penstock_plugin_encoding::{ColumnTag, Operation};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use scylla::deserialize::FrameSlice;
use scylla::deserialize::value::DeserializeValue;
use scylla::frame::response::result::ColumnType;
use scylla::value::CqlValue;
use scylla_cdc::consumer::{CDCRow, Consumer, ConsumerFactory, OperationType};
use scylla_cdc::log_reader::CDCLogReaderBuilder;
use tokio::sync::Mutex;
use uuid::Uuid;

use testkit::scylla::{Change, Db, Rig, changes, now_ms};

const COLUMNS: &str = "k int, c int, d text, \
    s int static, ss set<int> static, \
    ascii_ ascii, bigint_ bigint, blob_ blob, boolean_ boolean, date_ date, decimal_ decimal, double_ double, \
    duration_ duration, float_ float, inet_ inet, int_ int, smallint_ smallint, text_ text, time_ time, \
    timestamp_ timestamp, timeuuid_ timeuuid, tinyint_ tinyint, uuid_ uuid, varint_ varint, \
    l list<int>, st set<text>, m map<int, text>, u ut, \
    fl frozen<list<int>>, fs frozen<set<int>>, fm frozen<map<text, int>>, fu frozen<ut>, \
    tu tuple<int, text>, nested map<int, frozen<list<text>>>, elements_z text, \
    PRIMARY KEY (k, c, d)";

/// Statements, of which some are batches of several.
const STATEMENTS: usize = 10_500;

/// A literal of a column's type.
fn literal(r: &mut StdRng, column: &str) -> String {
    let n = r.random_range(-1000i32..1000);
    let small = r.random_range(0..4);
    let text = |n: i32| format!("'t{n}'");
    match column {
        "ascii_" | "text_" | "elements_z" => text(n),
        "bigint_" => (i64::from(n) << 40).to_string(),
        "blob_" => format!("0x{:08x}", n as u32),
        "boolean_" => (n > 0).to_string(),
        "date_" => format!(
            "'20{:02}-0{}-1{small}'",
            n.unsigned_abs() % 90 + 10,
            small + 1
        ),
        "decimal_" | "double_" | "float_" => format!("{n}.{small}"),
        "duration_" => format!("{}mo{small}d{}ns", n.unsigned_abs(), small * 7),
        "inet_" if n > 0 => format!("'10.0.{small}.{}'", n % 250),
        "inet_" => format!("'2001:db8::{small}'"),
        "int_" => n.to_string(),
        "smallint_" => (n * 3).to_string(),
        "tinyint_" => (n % 100).to_string(),
        "time_" => format!("'0{small}:10:20.12345{small}'"),
        "timestamp_" => (1_700_000_000_000i64 + i64::from(n)).to_string(),
        "timeuuid_" => "now()".into(),
        "uuid_" => Uuid::from_u128(r.random()).to_string(),
        "varint_" => format!("{n}000000000000000000000000"),
        "u" | "fu" => format!("{{a: {n}, b: {}}}", text(small)),
        "l" | "fl" => format!("[{n}, {small}, {n}]"),
        "fs" => format!("{{{n}, {small}}}"),
        "st" => format!("{{{}, {}}}", text(small), text(small + 1)),
        "m" => format!("{{{small}: {}, {}: {}}}", text(n), small + 1, text(small)),
        "fm" => format!("{{{}: {n}}}", text(small)),
        "tu" => format!("({n}, {})", text(small)),
        "nested" => format!("{{{small}: [{}, {}]}}", text(n), text(small)),
        other => panic!("no literal for {other}"),
    }
}

const SCALARS: &[&str] = &[
    "ascii_",
    "bigint_",
    "blob_",
    "boolean_",
    "date_",
    "decimal_",
    "double_",
    "duration_",
    "float_",
    "inet_",
    "int_",
    "smallint_",
    "text_",
    "time_",
    "timestamp_",
    "timeuuid_",
    "tinyint_",
    "uuid_",
    "varint_",
    "elements_z",
];
const COLLECTIONS: &[&str] = &["l", "st", "m", "u", "nested", "fl", "fs", "fm", "fu", "tu"];

fn some<'a>(r: &mut StdRng, of: &[&'a str]) -> &'a str {
    of[r.random_range(0..of.len())]
}

/// Several different columns.
fn columns(r: &mut StdRng) -> Vec<&'static str> {
    let mut picked = vec![some(r, SCALARS)];
    for _ in 0..r.random_range(0..4) {
        picked.push(some(r, SCALARS));
        picked.push(some(r, COLLECTIONS));
    }
    picked.sort_unstable();
    picked.dedup();
    picked
}

fn statement(r: &mut StdRng, in_batch: bool) -> String {
    let table = ["one", "two"][r.random_range(0..2)];
    let k = r.random_range(0..40);
    statement_on(r, table, k, in_batch)
}

fn statement_on(r: &mut StdRng, table: &str, k: i32, in_batch: bool) -> String {
    let (c, d) = (r.random_range(0..5), r.random_range(0..3));
    let row = format!("k = {k} AND c = {c} AND d = 'd{d}'");
    let ttl = r.random_bool(0.15);
    let using = if ttl {
        format!(" USING TTL {}", r.random_range(100..1000))
    } else {
        String::new()
    };
    let (n, small) = (r.random_range(0..1000), r.random_range(0..4));
    let update = |set: String| format!("UPDATE {table}{using} SET {set} WHERE {row}");
    match r.random_range(0..if in_batch { 22 } else { 26 }) {
        0..4 => {
            let names = columns(r);
            let values: Vec<_> = names.iter().map(|name| literal(r, name)).collect();
            let (names, values) = (names.join(", "), values.join(", "));
            format!(
                "INSERT INTO {table} (k, c, d, {names}) VALUES ({k}, {c}, 'd{d}', {values}){using}"
            )
        }
        4 => format!("INSERT INTO {table} (k, c, d) VALUES ({k}, {c}, 'd{d}')"),
        5..8 => {
            let sets: Vec<_> = columns(r)
                .into_iter()
                .map(|name| match r.random_bool(0.2) {
                    true => format!("{name} = null"),
                    false => format!("{name} = {}", literal(r, name)),
                })
                .collect();
            update(sets.join(", "))
        }
        8 => update(format!("l = l + [{n}, {small}]")),
        9 => update(format!("l = [{n}] + l")),
        10 => update(format!("st = st + {{'t{small}'}}, m = m - {{{small}}}")),
        11 => update(format!(
            "st = st - {{'t{small}'}}, m = m + {{{small}: 'x{n}'}}"
        )),
        12 => update(format!("m[{small}] = 'y{n}', u.a = {n}")),
        13 => update("u.b = null, nested = nested - {1}".into()),
        14 => format!("UPDATE {table}{using} SET s = {n}, ss = ss + {{{small}}} WHERE k = {k}"),
        15 => format!("UPDATE {table} SET ss = ss - {{{small}}} WHERE k = {k}"),
        16 => format!(
            "DELETE {}, {} FROM {table} WHERE {row}",
            some(r, SCALARS),
            some(r, COLLECTIONS)
        ),
        17 => format!("DELETE m[{small}] FROM {table} WHERE {row}"),
        18 => format!("DELETE FROM {table} WHERE {row}"),
        19 => format!(
            "DELETE FROM {table} WHERE k = {k} AND c > {small} AND c <= {}",
            small + 1
        ),
        20 => format!("DELETE FROM {table} WHERE k = {k} AND c = {c}"),
        21 => format!("DELETE FROM {table} WHERE k = {k} AND c < {small}"),
        22 => format!("DELETE FROM {table} WHERE k = {k}"),
        23 => update(format!("l = l - [{n}, {small}]")),
        24 => format!("DELETE s, ss FROM {table} WHERE k = {k}"),
        _ => {
            // Mostly into one partition: then its rows share a stream and a time.
            let inner: Vec<_> = (0..r.random_range(2..8))
                .map(|_| match r.random_bool(0.8) {
                    true => statement_on(r, table, k, true),
                    false => statement(r, true),
                })
                .collect();
            format!("BEGIN UNLOGGED BATCH {}; APPLY BATCH", inner.join("; "))
        }
    }
}

/// What a log row says, in a form that both readers can be brought to.
#[derive(Debug, PartialEq)]
struct Row {
    operation: i8,
    end_of_batch: bool,
    ttl: Option<i64>,
    columns: BTreeMap<String, News>,
}

#[derive(Debug, Default, PartialEq)]
struct News {
    value: Option<CqlValue>,
    deleted: bool,
    elements: Vec<CqlValue>,
}

impl News {
    /// Where a column was wiped, elements removed from it besides say nothing more.
    fn wiped(mut self) -> Self {
        if self.deleted {
            self.elements.clear();
        }
        self
    }
}

type Rows = BTreeMap<(String, Uuid, i32), Row>;

#[derive(Clone, Default)]
struct Official(Arc<Mutex<Rows>>);

#[async_trait]
impl ConsumerFactory for Official {
    async fn new_consumer(&self) -> Box<dyn Consumer> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Consumer for Official {
    async fn consume_cdc(&mut self, mut row: CDCRow<'_>) -> anyhow::Result<()> {
        let mut operation = match row.operation {
            OperationType::PreImage => 0,
            OperationType::RowUpdate => 1,
            OperationType::RowInsert => 2,
            OperationType::RowDelete => 3,
            OperationType::PartitionDelete => 4,
            OperationType::RowRangeDelInclLeft => 5,
            OperationType::RowRangeDelExclLeft => 6,
            OperationType::RowRangeDelInclRight => 7,
            OperationType::RowRangeDelExclRight => 8,
            OperationType::PostImage => 9,
        };
        if row.is_expiration {
            operation = -operation;
        }
        let names: Vec<String> = row.get_non_cdc_column_names().map(str::to_owned).collect();
        let columns = names.into_iter().map(|name| {
            let news = News {
                deleted: row.column_deletable(&name) && row.is_value_deleted(&name),
                elements: row.take_deleted_elements(&name),
                value: row.take_value(&name),
            };
            (name, news.wiped())
        });
        let columns = columns.collect();
        let key = (row.stream_id.to_string(), row.time, row.batch_seq_no);
        let row = Row {
            operation,
            end_of_batch: row.end_of_batch,
            ttl: row.ttl,
            columns,
        };
        let before = self.0.lock().await.insert(key, row);
        anyhow::ensure!(before.is_none(), "a row twice");
        Ok(())
    }
}

async fn official(db: &Db, table: &str, start: Duration) -> Rows {
    let official = Official::default();
    let tick = Duration::from_millis(20);
    let (_reader, done) = CDCLogReaderBuilder::new()
        .session(Arc::clone(&db.session))
        .keyspace(&db.keyspace)
        .table_name(table)
        .start_timestamp(start)
        .end_timestamp(Duration::from_millis(now_ms() as u64 + 200))
        .window_size(Duration::from_secs(60))
        .safety_interval(tick)
        .sleep_interval(tick)
        .consumer_factory(Arc::new(official.clone()))
        .build()
        .await
        .expect("the official reader starts");
    tokio::time::timeout(Duration::from_secs(120), done)
        .await
        .expect("the official reader ends")
        .expect("without an error");
    std::mem::take(&mut *official.0.lock().await)
}

/// Our changes of a table in the same form; the log's types say what the bytes are.
fn ours(changes: &[Change], types: &HashMap<String, ColumnType<'static>>) -> Rows {
    let value = |column: &str, bytes: &[u8]| {
        let frame = Bytes::copy_from_slice(bytes);
        let typ = &types[column];
        CqlValue::deserialize(typ, Some(FrameSlice::new(&frame))).expect("a value of its type")
    };
    let elements = |column: &str, bytes: &[u8]| match value(
        &format!("cdc$deleted_elements_{column}"),
        bytes,
    ) {
        CqlValue::Set(elements) => elements,
        other => panic!("not a set: {other:?}"),
    };
    let news = |column: &str, tag: ColumnTag, bytes: &[u8]| match tag {
        ColumnTag::Unchanged => News::default(),
        ColumnTag::Value => News {
            value: Some(value(column, bytes)),
            ..News::default()
        },
        ColumnTag::Null => News {
            deleted: true,
            ..News::default()
        },
        ColumnTag::Replaced => News {
            value: Some(value(column, bytes)),
            deleted: true,
            ..News::default()
        },
        ColumnTag::Removed => News {
            elements: elements(column, bytes),
            ..News::default()
        },
        ColumnTag::Merged => {
            let (len, rest) = bytes.split_at(4);
            let (added, removed) =
                rest.split_at(u32::from_le_bytes(len.try_into().unwrap()) as usize);
            News {
                value: Some(value(column, added)),
                elements: elements(column, removed),
                deleted: false,
            }
        }
        ColumnTag::Unsent => panic!("a source sends everything"),
    };
    let mut rows = Rows::new();
    for change in changes {
        let columns = change
            .columns
            .iter()
            .map(|(name, tag, bytes)| (name.clone(), news(name, *tag, bytes)));
        let row = Row {
            operation: change.operation as i8,
            end_of_batch: change.end_of_batch,
            ttl: (change.ttl > 0).then_some(i64::from(change.ttl)),
            columns: columns.collect(),
        };
        let (stream, time, seq) = change.key;
        assert!(
            rows.insert((stream.to_string(), time, seq), row).is_none(),
            "a change twice"
        );
    }
    rows
}

/// Differences that are in the form and not in the log: a null in an image or a key is not a deletion, and
/// the official reader takes `cdc$deleted_elements_z`, which tells that `elements_z` was deleted, for elements
/// removed from a column `z`.
fn settle(rows: &mut Rows) {
    for row in rows.values_mut() {
        for (name, news) in &mut row.columns {
            if matches!(row.operation, 0 | 9) || matches!(&name[..], "k" | "c" | "d" | "elements_z")
            {
                news.deleted = false;
            }
        }
    }
}

/// Every delta is linked to the image of its key in its group, and to nothing else.
fn check_links(changes: &[Change]) -> usize {
    let key = |c: &Change| ["k", "c", "d"].map(|n| c.column(n).1.to_vec());
    let mut groups: HashMap<(StreamId, Uuid), Vec<&Change>> = HashMap::new();
    for change in changes {
        groups
            .entry((change.key.0, change.key.1))
            .or_default()
            .push(change);
    }
    let mut links = 0;
    for group in groups.values() {
        for change in group {
            let image = |kind| {
                let found = group
                    .iter()
                    .find(|c| c.operation == kind && key(c) == key(change));
                found.map(|c| c.key.2)
            };
            let (pre, post) = match change.operation {
                Operation::Insert | Operation::Update | Operation::RowDelete => {
                    (image(Operation::PreImage), image(Operation::PostImage))
                }
                Operation::RangeDeleteStartInclusive | Operation::RangeDeleteStartExclusive => {
                    (None, Some(change.key.2 + 1))
                }
                _ => (None, None),
            };
            assert_eq!((change.preimage, change.end), (pre, post), "{change:?}");
            links += usize::from(pre.is_some()) + usize::from(post.is_some());
        }
    }
    links
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_equals_what_the_official_reader_reads() {
    let seed = std::env::var("PENSTOCK_SEED").map_or(20_260_731, |s| s.parse().expect("a number"));
    eprintln!("PENSTOCK_SEED={seed}");
    let db = Db::start(false).await;
    db.run("CREATE TYPE ut (a int, b text)").await;
    let options = [
        ("one", "'preimage': true"),
        ("two", "'preimage': 'full', 'postimage': true"),
    ];
    for (table, images) in options {
        db.run(&format!(
            "CREATE TABLE {table} ({COLUMNS}) WITH cdc = {{'enabled': true, {images}}}"
        ))
        .await;
    }
    let start = Duration::from_millis(now_ms() as u64 - 1000);
    let mut r = StdRng::seed_from_u64(seed);
    let statements: Vec<String> = (0..STATEMENTS).map(|_| statement(&mut r, false)).collect();
    for (nth, part) in statements.chunks(STATEMENTS / 3).enumerate() {
        futures::stream::iter(part)
            .for_each_concurrent(16, |statement| db.run(statement))
            .await;
        if let Some(node) = &db.node
            && nth < 2
        {
            let at = node.engine().new_generation(Some(now_ms() + 100));
            while now_ms() <= at {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    let mut logs = HashMap::new();
    for (table, _) in options {
        logs.insert(table, db.log(table).await);
    }
    let all: usize = logs.values().map(|l| l.len()).sum();
    assert!(all > STATEMENTS, "{all}");
    let mut settings = db.settings(&["one", "two"], 3);
    settings.pipeline.batch_size = 64.try_into().unwrap();
    settings.source.page_size = 100.try_into().unwrap();
    let rig = Rig::connect(settings).await.unwrap();
    let batches = rig.read(0, &Checkpoints::new(), all).await;
    assert!(batches.iter().all(|b| b.undecodable.is_empty()));
    let changes = changes(&batches);
    // Each stream in its order.
    let mut last: HashMap<(String, StreamId), Position> = HashMap::new();
    for change in &changes {
        let (stream, time, seq) = change.key;
        let position = Position { stream, time, seq };
        if let Some(before) = last.insert((change.table.clone(), stream), position) {
            assert!(before < position, "{before} then {position}");
        }
    }
    if db.node.is_some() {
        assert_eq!(rig.source.status().tables[0].generations, 3);
    }
    for (table, _) in options {
        let own: Vec<Change> = changes
            .iter()
            .filter(|c| c.table.ends_with(&format!(".{table}")))
            .cloned()
            .collect();
        let links = check_links(&own);
        assert!(links > 1000, "{links} links");
        let statement = format!("SELECT * FROM {table}_scylla_cdc_log");
        let prepared = db.session.prepare(statement).await.expect("the log");
        let specs = prepared.get_current_result_set_col_specs();
        let types = specs
            .get()
            .iter()
            .map(|spec| (spec.name().to_owned(), spec.typ().clone()))
            .collect();
        let mut official = official(&db, table, start).await;
        let mut ours = ours(&own, &types);
        settle(&mut official);
        settle(&mut ours);
        assert_eq!(ours.len(), logs[table].len());
        for (key, theirs) in &official {
            assert_eq!(
                ours.get(key),
                Some(theirs),
                "table {table}, row {key:?}, seed {seed}"
            );
        }
        assert_eq!(ours.len(), official.len());
        let kinds: std::collections::BTreeSet<i8> =
            official.values().map(|r| r.operation).collect();
        let expected: &[i8] = if table == "one" {
            &[0, 1, 2, 3, 4, 5, 6, 7, 8]
        } else {
            &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
        };
        assert!(expected.iter().all(|k| kinds.contains(k)), "{kinds:?}");
        eprintln!("{table}: {} changes, {links} links", ours.len());
    }
}
