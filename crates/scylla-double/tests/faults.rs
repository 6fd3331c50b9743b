//! Every fault, as the official driver sees it.

mod support;

use std::time::{Duration, Instant};

use scylla::{
    client::session::Session,
    errors::{DbError, ExecutionError, RequestAttemptError},
};
use scylla_double::{Action, Fault, Operation};
use support::{builder, keyspace, node, run, session, until};

async fn table(session: &Session) {
    keyspace(session, "ks", false).await;
    run(session, "CREATE TABLE t (k int PRIMARY KEY, v int)").await;
    run(session, "CREATE TABLE u (k int PRIMARY KEY, v int)").await;
}

async fn outcome(session: &Session, statement: &str) -> Result<(), ExecutionError> {
    session.query_unpaged(statement, ()).await.map(|_| ())
}

async fn db_error(session: &Session, statement: &str) -> DbError {
    match outcome(session, statement).await {
        Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(e, _))) => e,
        other => panic!("{statement}: {other:?}"),
    }
}

/// Whether the driver finds nobody to talk to; it waits for a minute by itself.
async fn nobody_answers(node: &scylla_double::Node) -> bool {
    tokio::time::timeout(Duration::from_millis(300), builder(node).build())
        .await
        .is_err()
}

const READ: &str = "SELECT * FROM t";
const WRITE: &str = "INSERT INTO t (k, v) VALUES (1, 1)";

#[tokio::test]
async fn errors_of_the_server_and_its_replicas() {
    let node = node().await;
    let session = session(&node).await;
    table(&session).await;
    type Check = fn(&DbError) -> bool;
    let cases: [(Action, &str, Check); 8] = [
        (Action::Overloaded, READ, |e| {
            matches!(e, DbError::Overloaded)
        }),
        (Action::Unavailable, READ, |e| {
            matches!(
                e,
                DbError::Unavailable {
                    required: 1,
                    alive: 0,
                    ..
                }
            )
        }),
        (Action::ReadTimeout, READ, |e| {
            matches!(
                e,
                DbError::ReadTimeout {
                    received: 0,
                    required: 1,
                    data_present: false,
                    ..
                }
            )
        }),
        (Action::ReadFailure, READ, |e| {
            matches!(e, DbError::ReadFailure { numfailures: 1, .. })
        }),
        (Action::WriteTimeout, WRITE, |e| {
            matches!(e, DbError::WriteTimeout { .. })
        }),
        (Action::WriteFailure, WRITE, |e| {
            matches!(e, DbError::WriteFailure { numfailures: 1, .. })
        }),
        (Action::ServerError("on purpose".into()), READ, |e| {
            matches!(e, DbError::ServerError)
        }),
        (
            Action::Error {
                code: 0x1002,
                message: "not yet".into(),
            },
            READ,
            |e| matches!(e, DbError::IsBootstrapping),
        ),
    ];
    for (action, statement, check) in cases {
        let id = node
            .faults()
            .inject(Fault::new(action.clone()).on_table("ks.t").times(1));
        assert_eq!(
            outcome(&session, "SELECT * FROM u").await.ok(),
            Some(()),
            "another table"
        );
        let e = db_error(&session, statement).await;
        assert!(check(&e), "{action:?}: {e:?}");
        outcome(&session, statement)
            .await
            .unwrap_or_else(|e| panic!("{action:?} is spent: {e}"));
        assert_eq!(node.faults().hits(id), Some(1));
        node.faults().clear_all();
    }
}

#[tokio::test]
async fn a_fault_of_writes_lets_reads_pass_until_it_is_cleared() {
    let node = node().await;
    let session = session(&node).await;
    table(&session).await;
    let id = node.faults().inject(
        Fault::new(Action::Overloaded)
            .on(Operation::Insert)
            .on(Operation::Batch),
    );
    let prepared = session.prepare(WRITE).await.unwrap();
    for _ in 0..3 {
        assert_eq!(db_error(&session, WRITE).await, DbError::Overloaded);
        assert!(session.execute_unpaged(&prepared, ()).await.is_err());
        assert!(
            outcome(&session, &format!("BEGIN BATCH {WRITE}; APPLY BATCH"))
                .await
                .is_err()
        );
        outcome(&session, READ).await.unwrap();
        outcome(&session, "UPDATE t SET v = 2 WHERE k = 1")
            .await
            .unwrap();
    }
    assert_eq!(node.faults().hits(id), Some(9));
    node.faults().clear(id);
    outcome(&session, WRITE).await.unwrap();
}

#[tokio::test]
async fn a_slow_answer_holds_up_no_other() {
    let node = node().await;
    let session = session(&node).await;
    table(&session).await;
    let slow = Duration::from_secs(2);
    node.faults().inject(
        Fault::new(Action::Delay(slow))
            .on_table("t")
            .on(Operation::Select)
            .times(1),
    );
    let start = Instant::now();
    let (first, second) = tokio::join!(
        async {
            outcome(&session, READ).await.unwrap();
            start.elapsed()
        },
        async {
            // After the slow one on any connection.
            outcome(&session, "SELECT * FROM u").await.unwrap();
            start.elapsed()
        }
    );
    assert!(first >= slow, "{first:?}");
    assert!(second < first, "{second:?} and {first:?}");
}

#[tokio::test]
async fn a_write_that_times_out_was_done_and_one_that_fails_was_not() {
    let node = node().await;
    let session = session(&node).await;
    table(&session).await;
    node.faults()
        .inject(Fault::new(Action::WriteFailure).times(1));
    db_error(&session, "INSERT INTO t (k) VALUES (1)").await;
    node.faults()
        .inject(Fault::new(Action::WriteTimeout).times(1));
    db_error(&session, "INSERT INTO t (k) VALUES (2)").await;
    let result = session
        .query_unpaged("SELECT k FROM t", ())
        .await
        .unwrap()
        .into_rows_result()
        .unwrap();
    assert_eq!(result.single_row::<(i32,)>().unwrap().0, 2);
}

#[tokio::test]
async fn a_connection_broken_amid_an_answer_is_made_anew() {
    let node = node().await;
    let session = session(&node).await;
    table(&session).await;
    node.faults()
        .inject(Fault::new(Action::BreakConnection).on_table("t").times(2));
    let e = outcome(&session, READ).await.unwrap_err();
    assert!(
        matches!(
            e,
            ExecutionError::LastAttemptError(RequestAttemptError::BrokenConnectionError(_))
        ),
        "{e:?}"
    );
    until("the driver is back", async || {
        outcome(&session, READ).await.ok()
    })
    .await;
    node.faults().drop_connections();
    until("the driver is back again", async || {
        outcome(&session, READ).await.ok()
    })
    .await;
}

#[tokio::test]
async fn silence_is_ended_by_the_clients_timeout() {
    let node = node().await;
    let session = session(&node).await;
    table(&session).await;
    let id = node.faults().inject(
        Fault::new(Action::Silence)
            .on_table("t")
            .on(Operation::Select),
    );
    let mut read = scylla::statement::Statement::new(READ);
    read.set_request_timeout(Some(Duration::from_millis(100)));
    let e = session.query_unpaged(read, ()).await.unwrap_err();
    assert!(matches!(e, ExecutionError::RequestTimeout(_)), "{e:?}");
    node.faults().clear(id);
    session.query_unpaged(READ, ()).await.unwrap();
}

#[tokio::test]
async fn a_node_that_takes_no_connections() {
    let node = node().await;
    let connected = session(&node).await;
    table(&connected).await;
    node.faults().pause_accepting();
    assert!(nobody_answers(&node).await);
    outcome(&connected, READ).await.unwrap();
    node.faults().resume_accepting();
    let later = session(&node).await;
    later.use_keyspace("ks", false).await.unwrap();
    outcome(&later, READ).await.unwrap();
    let addr = node.addr();
    node.shutdown().await;
    assert!(
        tokio::net::TcpStream::connect(addr).await.is_err(),
        "nobody listens"
    );
    let e = outcome(&connected, READ).await;
    assert!(e.is_err(), "{e:?}");
    drop(later);
}

#[tokio::test]
async fn a_handshake_that_fails() {
    let node = node().await;
    node.faults()
        .inject(Fault::new(Action::Silence).on(Operation::Control));
    assert!(nobody_answers(&node).await);
    node.faults().clear_all();
    node.faults().inject(
        Fault::new(Action::ServerError("no".into()))
            .on(Operation::Control)
            .times(1),
    );
    assert!(builder(&node).build().await.is_err());
    session(&node).await;
}
