//! The node as the official Rust driver sees it.

mod support;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use scylla::{
    client::{Compression, session::Session},
    response::{PagingState, PagingStateResponse},
    statement::{
        Statement,
        batch::{Batch, BatchType},
    },
    value::{
        CqlDate, CqlDecimal, CqlDuration, CqlTime, CqlTimestamp, CqlTimeuuid, CqlValue, CqlVarint,
        Row,
    },
};
use support::{builder, keyspace, node, run, session, until};
use tracing::{Level, field::Visit};
use tracing_subscriber::{Layer, layer::SubscriberExt};

/// Keeps what is logged at WARN or above.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Text(String);
        impl Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.push_str(&format!(" {}={value:?}", field.name()));
            }
        }
        if *event.metadata().level() <= Level::WARN {
            let mut text = Text(event.metadata().target().to_owned());
            event.record(&mut text);
            self.0.lock().unwrap().push(text.0);
        }
    }
}

async fn rows(session: &Session, statement: &str) -> Vec<Row> {
    let result = session
        .query_unpaged(statement, ())
        .await
        .unwrap_or_else(|e| panic!("{statement}: {e}"));
    let result = result.into_rows_result().unwrap();
    result.rows::<Row>().unwrap().map(Result::unwrap).collect()
}

async fn count(session: &Session, statement: &str) -> i64 {
    let result = session
        .query_unpaged(statement, ())
        .await
        .unwrap()
        .into_rows_result()
        .unwrap();
    result.single_row::<(i64,)>().unwrap().0
}

// One thread, so that the subscriber sees what the driver's own tasks log.
#[tokio::test]
async fn connects_changes_the_schema_and_leaves_without_a_warning() {
    let warnings = Warnings::default();
    let _guard =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(warnings.clone()));
    let node = node().await;
    for compression in [None, Some(Compression::Lz4), Some(Compression::Snappy)] {
        let session = builder(&node)
            .compression(compression)
            .build()
            .await
            .unwrap();
        let name = compression.map_or("plain", |c| c.as_str());
        keyspace(&session, name, compression.is_some()).await;
        run(
            &session,
            "CREATE TYPE address (street text, codes frozen<set<int>>)",
        )
        .await;
        run(&session, "CREATE TABLE t (k int, c text, s int static, v frozen<address>, w map<text, frozen<address>>, PRIMARY KEY (k, c)) WITH CLUSTERING ORDER BY (c DESC) AND cdc = {'enabled': true}").await;
        run(&session, "INSERT INTO t (k, c, s) VALUES (1, 'a', 2)").await;
        session.refresh_metadata().await.unwrap();
        let state = session.get_cluster_state();
        let keyspace = state.get_keyspace(name).expect("the keyspace is known");
        assert_eq!(keyspace.user_defined_types["address"].field_types.len(), 2);
        let table = &keyspace.tables["t"];
        assert_eq!(
            (
                table.partition_key.as_slice(),
                table.clustering_key.as_slice()
            ),
            (&["k".to_owned()][..], &["c".to_owned()][..])
        );
        assert_eq!(table.columns.len(), 5);
        let log = &keyspace.tables["t_scylla_cdc_log"];
        assert_eq!(
            log.partitioner.as_deref(),
            Some("com.scylladb.dht.CDCPartitioner")
        );
        assert_eq!(log.partition_key, ["cdc$stream_id"]);
        assert_eq!(state.get_nodes_info().len(), 1);
        assert!(session.check_schema_agreement().await.unwrap().is_some());
    }
    node.shutdown().await;
    let warned: Vec<String> = warnings
        .0
        .lock()
        .unwrap()
        .iter()
        .filter(|w| !w.contains("onnect"))
        .cloned()
        .collect();
    assert_eq!(warned, Vec::<String>::new());
}

fn every_type() -> Vec<(&'static str, CqlValue)> {
    let int = CqlValue::Int;
    let text = |s: &str| CqlValue::Text(s.into());
    let timeuuid: CqlTimeuuid = "8e14e760-7fa8-11eb-bc66-000000000001".parse().unwrap();
    let address = |street: Option<&str>| CqlValue::UserDefinedType {
        keyspace: "types".into(),
        name: "address".into(),
        fields: vec![
            ("street".into(), street.map(text)),
            ("number".into(), Some(int(-5))),
        ],
    };
    vec![
        ("ascii", CqlValue::Ascii("plain".into())),
        ("bigint", CqlValue::BigInt(i64::MIN)),
        ("blob", CqlValue::Blob(vec![0, 255, 1])),
        ("boolean", CqlValue::Boolean(true)),
        ("date", CqlValue::Date(CqlDate((1 << 31) + 20_000))),
        (
            "decimal",
            CqlValue::Decimal(CqlDecimal::from_signed_be_bytes_slice_and_exponent(
                &[0x80, 1],
                3,
            )),
        ),
        ("double", CqlValue::Double(-1.5e300)),
        (
            "duration",
            CqlValue::Duration(CqlDuration {
                months: 1,
                days: -2,
                nanoseconds: 3_000_000_000,
            }),
        ),
        ("float", CqlValue::Float(0.25)),
        ("inet", CqlValue::Inet("2001:db8::1".parse().unwrap())),
        ("int", int(i32::MAX)),
        ("smallint", CqlValue::SmallInt(-300)),
        ("text", text("grüße ☃")),
        ("time", CqlValue::Time(CqlTime(86_399_999_999_999))),
        ("timestamp", CqlValue::Timestamp(CqlTimestamp(-1))),
        ("timeuuid", CqlValue::Timeuuid(timeuuid)),
        ("tinyint", CqlValue::TinyInt(-128)),
        ("uuid", CqlValue::Uuid(uuid::Uuid::from_u128(7))),
        ("varchar", text("")),
        (
            "varint",
            CqlValue::Varint(CqlVarint::from_signed_bytes_be_slice(&[0x7f; 20])),
        ),
        ("list<int>", CqlValue::List(vec![int(2), int(1), int(2)])),
        ("set<text>", CqlValue::Set(vec![text("a"), text("b")])),
        (
            "map<int, text>",
            CqlValue::Map(vec![(int(-1), text("x")), (int(3), text("y"))]),
        ),
        (
            "frozen<list<frozen<set<int>>>>",
            CqlValue::List(vec![
                CqlValue::Set(vec![int(1)]),
                CqlValue::Set(vec![int(2), int(3)]),
            ]),
        ),
        (
            "frozen<map<text, frozen<list<bigint>>>>",
            CqlValue::Map(vec![(text("k"), CqlValue::List(vec![CqlValue::BigInt(1)]))]),
        ),
        (
            "tuple<int, text, frozen<set<int>>>",
            CqlValue::Tuple(vec![Some(int(1)), None, Some(CqlValue::Set(vec![int(9)]))]),
        ),
        ("address", address(Some("Main"))),
        ("frozen<address>", address(None)),
        (
            "list<frozen<address>>",
            CqlValue::List(vec![address(Some("a")), address(None)]),
        ),
    ]
}

#[tokio::test]
async fn values_of_every_type_come_back_as_they_were_bound() {
    let node = node().await;
    let session = session(&node).await;
    keyspace(&session, "types", false).await;
    run(&session, "CREATE TYPE address (street text, number int)").await;
    let types = every_type();
    let columns: Vec<String> = types
        .iter()
        .enumerate()
        .map(|(i, (ty, _))| format!("c{i} {ty}"))
        .collect();
    run(
        &session,
        &format!("CREATE TABLE t (k int PRIMARY KEY, {})", columns.join(", ")),
    )
    .await;
    let names: Vec<String> = (0..types.len()).map(|i| format!("c{i}")).collect();
    let marks = vec!["?"; types.len() + 1].join(", ");
    let insert = session
        .prepare(format!(
            "INSERT INTO t (k, {}) VALUES ({marks})",
            names.join(", ")
        ))
        .await
        .unwrap();
    let select = session
        .prepare(format!("SELECT {} FROM t WHERE k = ?", names.join(", ")))
        .await
        .unwrap();
    assert!(select.is_token_aware());
    let mut values = vec![Some(CqlValue::Int(1))];
    values.extend(types.iter().map(|(_, value)| Some(value.clone())));
    session.execute_unpaged(&insert, values).await.unwrap();
    let mut nulls = vec![None; types.len() + 1];
    nulls[0] = Some(CqlValue::Int(2));
    session.execute_unpaged(&insert, nulls).await.unwrap();
    for k in [1, 2] {
        let result = session
            .execute_unpaged(&select, (k,))
            .await
            .unwrap()
            .into_rows_result()
            .unwrap();
        let row = result.single_row::<Row>().unwrap();
        for (got, (ty, sent)) in row.columns.iter().zip(&types) {
            assert_eq!(got.as_ref(), (k == 1).then_some(sent), "{ty}");
        }
    }
}

#[tokio::test]
async fn batches_pages_and_named_values() {
    let node = node().await;
    let session = session(&node).await;
    keyspace(&session, "ks", false).await;
    run(
        &session,
        "CREATE TABLE t (k int, c int, v text, PRIMARY KEY (k, c))",
    )
    .await;
    let insert = session
        .prepare("INSERT INTO t (k, c, v) VALUES (?, ?, ?)")
        .await
        .unwrap();
    for kind in [BatchType::Logged, BatchType::Unlogged] {
        let mut batch = Batch::new(kind);
        batch.append_statement(insert.clone());
        batch.append_statement("INSERT INTO t (k, c, v) VALUES (7, 7, 'seven')");
        batch.append_statement("UPDATE t SET v = ? WHERE k = ? AND c = ?");
        session
            .batch(&batch, ((1, 1, "one"), (), ("two", 1, 2)))
            .await
            .unwrap();
        assert_eq!(count(&session, "SELECT count(*) FROM t").await, 3);
        run(&session, "TRUNCATE t").await;
    }
    for c in 0..250 {
        session
            .execute_unpaged(&insert, (c % 5, c, "x"))
            .await
            .unwrap();
    }
    let mut select = session.prepare("SELECT k, c FROM t").await.unwrap();
    select.set_page_size(7);
    for cached in [false, true] {
        select.set_use_cached_result_metadata(cached);
        let (mut state, mut seen, mut pages) = (PagingState::start(), Vec::new(), 0);
        loop {
            let (page, next) = session
                .execute_single_page(&select, (), state)
                .await
                .unwrap();
            let page = page.into_rows_result().unwrap();
            assert!(page.rows_num() <= 7);
            seen.extend(page.rows::<(i32, i32)>().unwrap().map(Result::unwrap));
            pages += 1;
            match next {
                PagingStateResponse::HasMorePages { state: next } => state = next,
                PagingStateResponse::NoMorePages => break,
            }
        }
        assert!(pages >= 250 / 7, "{pages} pages");
        assert_eq!(seen.len(), 250);
        assert_eq!(
            seen.iter().map(|(_, c)| *c).collect::<HashSet<_>>().len(),
            250
        );
    }
    let by_stream = session
        .execute_iter(select, ())
        .await
        .unwrap()
        .rows_stream::<(i32, i32)>()
        .unwrap();
    assert_eq!(by_stream.try_collect::<Vec<_>>().await.unwrap().len(), 250);
    let named = session
        .prepare("SELECT v FROM t WHERE k = :key AND c = :cluster")
        .await
        .unwrap();
    let values = std::collections::HashMap::from([("cluster", 6), ("key", 1)]);
    let result = session
        .execute_unpaged(&named, values)
        .await
        .unwrap()
        .into_rows_result()
        .unwrap();
    assert_eq!(result.single_row::<(String,)>().unwrap().0, "x");
}

#[tokio::test]
async fn statements_are_prepared_again_when_their_table_changes() {
    let node = node().await;
    let (session, other) = (session(&node).await, session(&node).await);
    keyspace(&session, "ks", false).await;
    other.use_keyspace("ks", false).await.unwrap();
    run(&session, "CREATE TABLE t (k int PRIMARY KEY, v int)").await;
    run(&session, "INSERT INTO t (k, v) VALUES (1, 2)").await;
    let select = session.prepare("SELECT * FROM t").await.unwrap();
    let columns = async || {
        let result = session
            .execute_unpaged(&select, ())
            .await
            .unwrap()
            .into_rows_result()
            .unwrap();
        let names: Vec<String> = result
            .column_specs()
            .iter()
            .map(|c| c.name().to_owned())
            .collect();
        (names.join(","), result.single_row::<Row>().unwrap().columns)
    };
    let int = |n| Some(CqlValue::Int(n));
    assert_eq!(columns().await, ("k,v".into(), vec![int(1), int(2)]));
    run(&other, "ALTER TABLE t ADD a text").await;
    assert_eq!(
        columns().await,
        ("k,a,v".into(), vec![int(1), None, int(2)])
    );
    run(&other, "ALTER TABLE t DROP v").await;
    assert_eq!(columns().await, ("k,a".into(), vec![int(1), None]));
    let insert = session
        .prepare("INSERT INTO t (k, a) VALUES (?, ?)")
        .await
        .unwrap();
    run(&other, "ALTER TABLE t ADD b blob").await;
    let mut batch = Batch::new(BatchType::Logged);
    batch.append_statement(insert);
    session.batch(&batch, ((2, "x"),)).await.unwrap();
    assert_eq!(count(&session, "SELECT count(*) FROM t").await, 2);
}

#[tokio::test]
async fn a_schema_change_is_pushed_to_other_sessions() {
    let node = node().await;
    let session = session(&node).await;
    // The driver reads anew only the keyspaces that events named, and that once an interval.
    let interval = Duration::from_millis(50);
    let other = builder(&node)
        .cluster_metadata_refresh_interval(interval)
        .build()
        .await
        .unwrap();
    keyspace(&session, "pushed", false).await;
    run(&session, "CREATE TABLE t (k int PRIMARY KEY)").await;
    until("the table is known", async || {
        other
            .get_cluster_state()
            .get_keyspace("pushed")?
            .tables
            .get("t")
            .map(|_| ())
    })
    .await;
    run(&session, "DROP TABLE t").await;
    until("the table is forgotten", async || {
        other
            .get_cluster_state()
            .get_keyspace("pushed")?
            .tables
            .is_empty()
            .then_some(())
    })
    .await;
    run(&session, "DROP KEYSPACE pushed").await;
    until("the keyspace is forgotten", async || {
        other
            .get_cluster_state()
            .get_keyspace("pushed")
            .is_none()
            .then_some(())
    })
    .await;
    assert!(
        rows(
            &session,
            "SELECT * FROM system_schema.columns WHERE keyspace_name = 'pushed'"
        )
        .await
        .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_at_a_time_and_large_results() {
    let node = node().await;
    for compression in [None, Some(Compression::Lz4), Some(Compression::Snappy)] {
        let session = builder(&node)
            .compression(compression)
            .build()
            .await
            .unwrap();
        let name = compression.map_or("plain", |c| c.as_str());
        keyspace(&session, name, false).await;
        run(
            &session,
            "CREATE TABLE t (k int, c int, v blob, PRIMARY KEY (k, c))",
        )
        .await;
        let insert = session
            .prepare("INSERT INTO t (k, c, v) VALUES (?, ?, ?)")
            .await
            .unwrap();
        let value = |c: i32| {
            (0..2000)
                .map(|i| (c.wrapping_mul(31).wrapping_add(i) % 251) as u8)
                .collect::<Vec<u8>>()
        };
        futures::stream::iter(0..4000)
            .for_each_concurrent(500, |c| {
                let (session, insert) = (&session, &insert);
                async move {
                    session
                        .execute_unpaged(insert, (1, c, value(c)))
                        .await
                        .unwrap();
                }
            })
            .await;
        // 8 MB in one frame.
        let result = session
            .query_unpaged("SELECT c, v FROM t WHERE k = 1", ())
            .await
            .unwrap()
            .into_rows_result()
            .unwrap();
        assert_eq!(result.rows_num(), 4000);
        for (row, expected) in result.rows::<(i32, Vec<u8>)>().unwrap().zip(0..) {
            assert_eq!(row.unwrap(), (expected, value(expected)));
        }
        // A request of 4 MB.
        session
            .execute_unpaged(&insert, (2, 1, vec![5_u8; 4 << 20]))
            .await
            .unwrap();
        let result = session
            .query_unpaged("SELECT v FROM t WHERE k = 2", ())
            .await
            .unwrap()
            .into_rows_result()
            .unwrap();
        assert_eq!(result.single_row::<(Vec<u8>,)>().unwrap().0.len(), 4 << 20);
    }
}

#[tokio::test]
async fn errors_are_told_as_the_protocol_has_them() {
    use scylla::errors::{DbError, ExecutionError, RequestAttemptError};
    let node = node().await;
    let session = session(&node).await;
    keyspace(&session, "ks", false).await;
    let error_of =
        async |statement: &str| match session.query_unpaged(Statement::new(statement), ()).await {
            Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(e, message))) => {
                (e, message)
            }
            other => panic!("{statement}: {other:?}"),
        };
    assert_eq!(error_of("SELECT * FROM nowhere").await.0, DbError::Invalid);
    assert_eq!(error_of("SELEKT 1").await.0, DbError::SyntaxError);
    run(&session, "CREATE TABLE t (k int PRIMARY KEY)").await;
    let exists = error_of("CREATE TABLE t (k int PRIMARY KEY)").await.0;
    assert_eq!(
        exists,
        DbError::AlreadyExists {
            keyspace: "ks".into(),
            table: "t".into()
        }
    );
    let refused = error_of("INSERT INTO system.local (key) VALUES ('x')")
        .await
        .0;
    assert_eq!(refused, DbError::Unauthorized);
}

/// As `setTracing` of any driver: the answer has an id, and the trace can be read by it.
#[tokio::test]
async fn what_is_traced_can_be_looked_up() {
    let node = node().await;
    let session = builder(&node)
        .compression(Some(Compression::Snappy))
        .build()
        .await
        .unwrap();
    keyspace(&session, "ks", false).await;
    run(&session, "CREATE TABLE t (k int PRIMARY KEY, v text)").await;
    let insert = session
        .prepare("INSERT INTO t (k, v) VALUES (?, ?)")
        .await
        .unwrap();
    let quiet = session.execute_unpaged(&insert, (1, "a")).await.unwrap();
    assert_eq!(quiet.tracing_id(), None);

    let mut traced = insert.clone();
    traced.set_tracing(true);
    let long = "x".repeat(4096);
    let written = session.execute_unpaged(&traced, (2, &long)).await.unwrap();
    let id = written.tracing_id().expect("a trace");
    let trace = session.get_tracing_info(&id).await.unwrap();
    let request = trace.request.expect("a request");
    assert!(
        request.starts_with("Execute CQL3 prepared query ["),
        "{request}"
    );
    assert_eq!(trace.command.as_deref(), Some("QUERY"));
    assert_eq!(trace.client, Some(node.addr().ip()));
    assert_eq!(trace.coordinator, Some(node.addr().ip()));
    assert!(trace.duration.is_some_and(|us| us > 0));
    let parameters = trace.parameters.expect("parameters");
    assert_eq!(parameters["query"], "INSERT INTO t (k, v) VALUES (?, ?)");
    assert_eq!(parameters["table"], "ks.t");
    assert_eq!(parameters["param[0]"], "2");
    assert_eq!(parameters["param[1]"], format!("{}...", "x".repeat(64)));
    assert_eq!(parameters["consistency_level"], "LOCAL_QUORUM");
    let activities: Vec<&str> = trace
        .events
        .iter()
        .filter_map(|event| event.activity.as_deref())
        .collect();
    assert_eq!(
        activities,
        [
            "Processing a statement for authenticated user: anonymous",
            "Executing a mutation locally",
            "Mutation successfully completed",
            "Done processing - preparing a result",
        ]
    );
    assert!(trace.events.is_sorted_by_key(|event| event.source_elapsed));

    // A large answer, packed, and rows behind the id.
    let mut read = Statement::new("SELECT v FROM ks.t WHERE k = 2");
    read.set_tracing(true);
    let found = session.query_unpaged(read, ()).await.unwrap();
    let id = found.tracing_id().expect("a trace");
    let found = found.into_rows_result().unwrap();
    assert_eq!(found.single_row::<(String,)>().unwrap().0, long);
    let trace = session.get_tracing_info(&id).await.unwrap();
    assert_eq!(trace.request.as_deref(), Some("Execute CQL3 query"));

    let mut batch = Batch::new(BatchType::Logged);
    batch.append_statement("INSERT INTO ks.t (k) VALUES (3)");
    batch.append_statement(insert);
    batch.set_tracing(true);
    let done = session.batch(&batch, ((), (4, "d"))).await.unwrap();
    let trace = session
        .get_tracing_info(&done.tracing_id().expect("a trace"))
        .await
        .unwrap();
    let parameters = trace.parameters.expect("parameters");
    assert_eq!(parameters["query[0]"], "INSERT INTO ks.t (k) VALUES (3)");
    assert_eq!(parameters["param[1][0]"], "4");
}

/// Pages end at about a megabyte, also where nothing was found: the driver goes on. Vectors come by the
/// name of their class.
#[tokio::test]
async fn short_and_empty_pages_vectors_and_descriptions() {
    let node = node().await;
    let session = session(&node).await;
    keyspace(&session, "ks", true).await;
    run(
        &session,
        "CREATE TABLE t (k int, c int, v blob, f vector<float, 2>, s vector<text, 2>, PRIMARY KEY (k, c))",
    )
    .await;
    let insert = session
        .prepare("INSERT INTO t (k, c, v, f, s) VALUES (1, ?, ?, ?, ?)")
        .await
        .unwrap();
    let blob = vec![7_u8; 100_000];
    for c in 0..30 {
        let words = ["a".to_owned(), format!("word {c}")];
        let values = (c, &blob, vec![0.5_f32, c as f32], words.to_vec());
        session.execute_unpaged(&insert, values).await.unwrap();
    }
    let mut select = Statement::new("SELECT c, f, s FROM t WHERE f = [0.5, 29] ALLOW FILTERING");
    select.set_page_size(1_000);
    let (mut state, mut pages, mut seen) = (PagingState::start(), Vec::new(), Vec::new());
    loop {
        let (page, next) = session
            .query_single_page(select.clone(), (), state)
            .await
            .unwrap();
        let page = page.into_rows_result().unwrap();
        pages.push(page.rows_num());
        let rows = page.rows::<(i32, Vec<f32>, Vec<String>)>().unwrap();
        seen.extend(rows.map(Result::unwrap));
        match next {
            PagingStateResponse::HasMorePages { state: next } => state = next,
            PagingStateResponse::NoMorePages => break,
        }
    }
    assert!(pages.len() > 1 && pages[0] == 0, "{pages:?}");
    assert_eq!(
        seen,
        [(
            29,
            vec![0.5, 29.0],
            vec!["a".to_owned(), "word 29".to_owned()]
        )]
    );
    let mut rows = session
        .query_iter(select, ())
        .await
        .unwrap()
        .rows_stream::<(i32, Vec<f32>, Vec<String>)>()
        .unwrap();
    assert_eq!(rows.next().await.unwrap().unwrap().0, 29);
    assert!(rows.next().await.is_none());

    let made = session.query_unpaged("DESC TABLE ks.t", ()).await.unwrap();
    let made = made.into_rows_result().unwrap();
    let (keyspace, kind, name, statement) = made
        .first_row::<(String, String, String, String)>()
        .unwrap();
    assert_eq!(
        (keyspace.as_str(), kind.as_str(), name.as_str()),
        ("ks", "table", "t")
    );
    assert!(
        statement.contains("    f vector<float, 2>,\n"),
        "{statement}"
    );
}
