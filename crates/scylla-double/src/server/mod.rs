//! The node's network side: frames, connections, prepared statements, events.

mod connection;
mod error;
mod execute;
mod frame;
mod prepared;
mod request;
mod response;
mod session;
mod trace;
mod wire;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{net::TcpListener, sync::broadcast};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{frame::Compression, prepared::PreparedStatements, response::EventType, trace::Traces};
use crate::{
    engine::{Engine, SchemaChange},
    faults::Faults,
};

/// Events that a slow client may be behind; one that is further behind is disconnected.
const EVENT_QUEUE: usize = 4096;
/// How long to wait after a failed accept (no file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bounds on what a client may ask for.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// A request's body, bytes.
    pub(crate) request_bytes: usize,
    /// Requests under way on one connection.
    pub(crate) in_flight_per_connection: usize,
    /// Connections at a time; more wait in the listener's backlog.
    pub(crate) connections: usize,
    /// Prepared statements kept.
    pub(crate) prepared_statements: usize,
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) engine: Arc<Engine>,
    pub(crate) faults: Arc<Faults>,
    pub(crate) limits: Limits,
    supported: Vec<(&'static str, Vec<String>)>,
    prepared: PreparedStatements,
    traces: Traces,
    events: broadcast::Sender<(EventType, Arc<[u8]>)>,
    /// Who may log in, and with which password; empty: nobody is asked.
    users: Mutex<Vec<(String, String)>>,
}

impl Shared {
    pub(crate) fn new(
        engine: Arc<Engine>,
        faults: Arc<Faults>,
        limits: Limits,
        host_id: uuid::Uuid,
        address: SocketAddr,
    ) -> Self {
        let one = |value: &str| vec![value.to_owned()];
        let supported = vec![
            ("CQL_VERSION", one(crate::system::CQL_VERSION)),
            (
                "COMPRESSION",
                Compression::ALL.map(|c| c.name().to_owned()).to_vec(),
            ),
            ("PROTOCOL_VERSIONS", one("4/v4")),
            // One shard, so that a shard-aware client has nothing to choose. No shard-aware port, no
            // METADATA_ID and no tablet routing: those are not spoken.
            ("SCYLLA_SHARD", one("0")),
            ("SCYLLA_NR_SHARDS", one("1")),
            ("SCYLLA_PARTITIONER", one(crate::system::PARTITIONER)),
            ("SCYLLA_SHARDING_ALGORITHM", one("biased-token-round-robin")),
            ("SCYLLA_SHARDING_IGNORE_MSB", one("12")),
            ("SCYLLA_HOST_ID", vec![host_id.to_string()]),
        ];
        let prepared = PreparedStatements::new(limits.prepared_statements);
        Self {
            engine,
            faults,
            limits,
            supported,
            prepared,
            traces: Traces::new(address),
            events: broadcast::Sender::new(EVENT_QUEUE),
            users: Mutex::default(),
        }
    }

    pub(crate) fn set_users(&self, users: Vec<(String, String)>) {
        *self.users() = users;
    }

    fn asks_for_login(&self) -> bool {
        !self.users().is_empty()
    }

    fn knows(&self, name: &[u8], password: &[u8]) -> bool {
        let known = |(n, p): &(String, String)| (n.as_bytes(), p.as_bytes()) == (name, password);
        self.users().iter().any(known)
    }

    fn users(&self) -> MutexGuard<'_, Vec<(String, String)>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push_schema(&self, change: &SchemaChange) {
        self.push(EventType::Schema, response::schema_event(change));
    }

    pub(crate) fn push_status(&self, up: bool, node: SocketAddr) {
        self.push(EventType::Status, response::status_event(up, node));
    }

    pub(crate) fn push_topology(&self, new: bool, node: SocketAddr) {
        self.push(EventType::Topology, response::topology_event(new, node));
    }

    fn push(&self, kind: EventType, frame: Vec<u8>) {
        if self.events.send((kind, frame.into())).is_err() {
            tracing::trace!(?kind, "an event and nobody to hear it");
        }
    }
}

/// Takes connections until `end`, then waits for those there are.
pub(crate) async fn listen(listener: TcpListener, shared: Arc<Shared>, end: CancellationToken) {
    let connections = TaskTracker::new();
    let mut door = shared.faults.door();
    let room = Arc::new(tokio::sync::Semaphore::new(shared.limits.connections));
    let accept = async {
        loop {
            if door.wait_for(|door| door.open).await.is_err() {
                return;
            }
            let Ok(place) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            let socket = tokio::select! {
                socket = listener.accept() => socket,
                // Seen at once, so that a pause holds from the moment it is asked for.
                changed = door.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            match socket {
                Ok((socket, _)) => {
                    let serve = connection::serve(socket, Arc::clone(&shared), end.clone());
                    connections.spawn(async move {
                        serve.await;
                        drop(place);
                    });
                }
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    end.run_until_cancelled(accept).await;
    drop(listener);
    connections.close();
    connections.wait().await;
}
