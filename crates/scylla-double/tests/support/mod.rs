//! What the tests share: a node, and the official driver connected to it.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use scylla::client::{
    execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder,
};
use scylla::policies::retry::FallthroughRetryPolicy;
use scylla_double::{Node, Options};

pub async fn node() -> Node {
    Node::start(Options::default())
        .await
        .expect("a free port on loopback")
}

/// A session that hides nothing: no retries.
pub fn builder(node: &Node) -> SessionBuilder {
    let profile = ExecutionProfile::builder()
        .retry_policy(Arc::new(FallthroughRetryPolicy::new()))
        .request_timeout(Some(Duration::from_secs(20)))
        .build();
    SessionBuilder::new()
        .known_node_addr(node.addr())
        .default_execution_profile_handle(profile.into_handle())
        .schema_agreement_interval(Duration::from_millis(5))
}

pub async fn session(node: &Node) -> Session {
    builder(node).build().await.expect("the driver connects")
}

/// Runs a statement with no values and no rows to look at.
pub async fn run(session: &Session, statement: &str) {
    if let Err(e) = session.query_unpaged(statement, ()).await {
        panic!("{statement}: {e}");
    }
}

pub async fn keyspace(session: &Session, name: &str, tablets: bool) {
    run(
        session,
        &format!(
            "CREATE KEYSPACE {name} WITH replication = {{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}} \
             AND tablets = {{'enabled': {tablets}}}"
        ),
    )
    .await;
    session
        .use_keyspace(name, false)
        .await
        .expect("the keyspace is there");
}

/// Polls until `probe` gives something, for at most 20 s.
pub async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within 20 s"))
}

/// Since the epoch.
pub fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
}
