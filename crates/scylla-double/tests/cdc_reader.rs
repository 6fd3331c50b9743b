//! The log as the official `scylla-cdc` reader reads it, with vnodes and with tablets.

mod support;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use scylla::value::CqlValue;
use scylla_cdc::{
    consumer::{CDCRow, Consumer, ConsumerFactory, OperationType},
    log_reader::CDCLogReaderBuilder,
};
use support::{keyspace, node, now, run, session};
use tokio::sync::Mutex;

/// What was read: operation, key, clustering key, value.
type Read = (OperationType, i32, Option<i32>, Option<String>);

#[derive(Clone, Default)]
struct Keeper(Arc<Mutex<Vec<Read>>>);

#[async_trait]
impl Consumer for Keeper {
    async fn consume_cdc(&mut self, mut row: CDCRow<'_>) -> anyhow::Result<()> {
        let int = |value: Option<CqlValue>| value.and_then(|v| v.as_int());
        let read = (
            row.operation.clone(),
            int(row.take_value("k")).expect("a partition key"),
            int(row.take_value("c")),
            row.take_value("v").and_then(CqlValue::into_string),
        );
        self.0.lock().await.push(read);
        Ok(())
    }
}

#[async_trait]
impl ConsumerFactory for Keeper {
    async fn new_consumer(&self) -> Box<dyn Consumer> {
        Box::new(self.clone())
    }
}

async fn read_log(tablets: bool) {
    let node = node().await;
    let session = Arc::new(session(&node).await);
    keyspace(&session, "ks", tablets).await;
    run(
        &session,
        "CREATE TABLE t (k int, c int, v text, PRIMARY KEY (k, c)) WITH cdc = {'enabled': true, 'preimage': true, 'postimage': true}",
    )
    .await;
    let start = now();
    for k in 0..20 {
        run(
            &session,
            &format!("INSERT INTO t (k, c, v) VALUES ({k}, 1, 'first')"),
        )
        .await;
        run(
            &session,
            &format!("UPDATE t SET v = 'second' WHERE k = {k} AND c = 1"),
        )
        .await;
        run(&session, &format!("DELETE FROM t WHERE k = {k} AND c = 1")).await;
        run(&session, &format!("DELETE FROM t WHERE k = {k} AND c > 5")).await;
        run(&session, &format!("DELETE FROM t WHERE k = {k}")).await;
    }
    let keeper = Keeper::default();
    let tick = Duration::from_millis(50);
    let (_reader, done) = CDCLogReaderBuilder::new()
        .session(Arc::clone(&session))
        .keyspace("ks")
        .table_name("t")
        .start_timestamp(start - Duration::from_secs(1))
        .end_timestamp(now() + Duration::from_millis(200))
        .window_size(Duration::from_secs(2))
        .safety_interval(tick)
        .sleep_interval(tick)
        .consumer_factory(Arc::new(keeper.clone()))
        .build()
        .await
        .expect("the reader starts");
    tokio::time::timeout(Duration::from_secs(30), done)
        .await
        .expect("the reader ends")
        .expect("without an error");
    let read = keeper.0.lock().await;
    for key in 0..20 {
        let of_key: Vec<_> = read
            .iter()
            .filter(|r| r.1 == key)
            .map(|r| (r.0.clone(), r.2, r.3.as_deref()))
            .collect();
        use OperationType::*;
        let expected = [
            (RowInsert, Some(1), Some("first")),
            (PostImage, Some(1), Some("first")),
            (PreImage, Some(1), Some("first")),
            (RowUpdate, Some(1), Some("second")),
            (PostImage, Some(1), Some("second")),
            (PreImage, Some(1), Some("second")),
            (RowDelete, Some(1), None),
            (RowRangeDelExclLeft, Some(5), None),
            (RowRangeDelInclRight, None, None),
            (PartitionDelete, None, None),
        ];
        assert_eq!(of_key, expected, "key {key}");
    }
    assert_eq!(read.len(), 200);
}

#[tokio::test]
async fn of_a_table_with_vnodes() {
    read_log(false).await;
}

#[tokio::test]
async fn of_a_table_with_tablets() {
    read_log(true).await;
}
