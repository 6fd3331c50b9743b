//! An in-process stand-in for one ScyllaDB node: a **test double**, in memory, that speaks the CQL
//! native protocol v4 to unchanged clients (`scylla`, `scylla-cdc`, Python's `cassandra-driver` and
//! `scylla-driver`, `cqlsh`) and writes a CDC log as ScyllaDB documents it.
//!
//! It is for tests, demonstrations and benchmarks. It is **not** a database:
//! - nothing is kept: what was written is gone with the [`Node`];
//! - one node, one shard, one replica: a consistency that needs more is refused, token ranges and CDC
//!   streams are told as a node with [`Options::vnodes`] and [`Options::shards_per_vnode`], or a table
//!   of so many tablets, would have them, but all data is in one place;
//! - no TLS, no roles beyond names and passwords ([`Node::set_users`]), no materialized views, secondary
//!   indexes, functions or aggregates of users, no protocol version but 4;
//! - a trace that a client asks for tells of what this node does, which is little; the last 10,000 are kept;
//! - what it does not know it refuses with a CQL error; it never pretends.
//!
//! Faults (slow, failing, silent, broken) are injected on demand: see [`Faults`].
//!
//! ```no_run
//! # async fn demo() -> std::io::Result<()> {
//! let node = scylla_double::Node::start(scylla_double::Options::default()).await?;
//! println!("connect to {}", node.addr());
//! node.shutdown().await;
//! # Ok(())
//! # }
//! ```

pub mod cql;
pub mod engine;
pub mod faults;
mod server;
mod system;
pub mod types;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

pub use crate::{
    engine::Engine,
    faults::{Action, Fault, FaultId, Faults, Operation},
};
use crate::{
    server::{Limits, Shared},
    system::{Identity, SystemTables},
};

/// How a node is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The cluster's name, as clients show it.
    pub cluster_name: String,
    /// Token ranges of the node, which is also how many groups of streams a vnode keyspace's CDC
    /// generation has; at least 1.
    pub vnodes: u32,
    /// CDC streams in each group, one a shard; at least 1. To clients the node has one shard.
    pub shards_per_vnode: u32,
    /// Whether a keyspace that is made without a `tablets` clause uses tablets, as in ScyllaDB since
    /// 2025. A client chooses by `AND tablets = {'enabled': false}`, or `true`.
    pub tablets: bool,
    /// Tablets, and so CDC streams, of a table in a keyspace with tablets, unless the keyspace's
    /// `initial` or the table's `min_tablet_count` says; at least 1.
    pub initial_tablets: u32,
    /// How long before the start the first generation of vnode streams began: a write from before it is refused, as
    /// ScyllaDB does. To have it older is to let a client write a log's past, by timestamps of its own.
    pub first_generation_age: Duration,
    /// Bound on a request's body, bytes, before and after decompression.
    pub max_request_bytes: usize,
    /// Bound on connections at a time; more wait to be accepted.
    pub max_connections: usize,
    /// Bound on requests under way on one connection; more wait to be read.
    pub max_in_flight_per_connection: usize,
    /// Bound on statements kept prepared; past it the oldest must be prepared again.
    pub max_prepared_statements: usize,
}

impl Default for Options {
    /// `127.0.0.1`, a free port, tablets, 4 of them a table, or 4 vnodes of 2 streams each; bounds far
    /// above what tests reach.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            cluster_name: "scylla-double".into(),
            vnodes: 4,
            shards_per_vnode: 2,
            tablets: true,
            initial_tablets: 4,
            first_generation_age: engine::Options::default().first_generation_age,
            // A mutation is at most 16 MiB in ScyllaDB by default.
            max_request_bytes: 32 << 20,
            max_connections: 1024,
            // Stream ids are 15 bits wide; clients use a few thousand at most.
            max_in_flight_per_connection: 2048,
            max_prepared_statements: 10_000,
        }
    }
}

/// A running node. Dropped, it ends without waiting; [`Node::shutdown`] waits.
pub struct Node {
    addr: SocketAddr,
    engine: Arc<Engine>,
    faults: Arc<Faults>,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    end: CancellationToken,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Starts to listen; the tasks that serve run on the current tokio runtime and are the node's.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen).await?;
        let addr = listener.local_addr()?;
        let engine = Arc::new(Engine::new(engine::Options {
            vnodes: options.vnodes.max(1),
            shards_per_vnode: options.shards_per_vnode.max(1),
            tablets_by_default: options.tablets,
            initial_tablets: options.initial_tablets.max(1),
            first_generation_age: options.first_generation_age,
            ..engine::Options::default()
        }));
        let identity = Identity {
            cluster_name: options.cluster_name,
            host_id: Uuid::new_v4(),
            address: reachable(addr),
            tokens: engine.tokens(),
        };
        let host_id = identity.host_id;
        let system = SystemTables::create(&engine, identity).map_err(io::Error::other)?;
        let faults = Arc::<Faults>::default();
        let limits = Limits {
            request_bytes: options.max_request_bytes,
            in_flight_per_connection: options.max_in_flight_per_connection.max(1),
            connections: options.max_connections.max(1),
            prepared_statements: options.max_prepared_statements.max(1),
        };
        let shared = Arc::new(Shared::new(
            Arc::clone(&engine),
            Arc::clone(&faults),
            limits,
            host_id,
            reachable(addr),
        ));
        let listeners = Arc::downgrade(&shared);
        engine.on_schema_change(move |_, changes| {
            let Some(shared) = listeners.upgrade() else {
                return;
            };
            if let Err(e) = system.refresh(&shared.engine) {
                tracing::error!(error = %e, "the system tables cannot be brought to the schema");
            }
            changes.iter().for_each(|change| shared.push_schema(change));
        });
        let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(server::listen(listener, Arc::clone(&shared), end.clone()));
        tasks.close();
        tracing::debug!(%addr, "scylla double listens");
        Ok(Self {
            addr,
            engine,
            faults,
            shared,
            tasks,
            end,
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What keeps the data, for looks and writes beside the network.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// What goes wrong on demand.
    pub fn faults(&self) -> &Arc<Faults> {
        &self.faults
    }

    /// Who may log in from now on, and with which password; with nobody, nobody is asked. Connections that are there
    /// stay.
    pub fn set_users(&self, users: Vec<(String, String)>) {
        self.shared.set_users(users);
    }

    /// Starts a new CDC generation of vnode keyspaces, as a change of the cluster's topology does; a
    /// short while ahead, as ScyllaDB does, so that no write of now is late for it. Gives the time it
    /// begins, ms since the epoch. [`Engine::new_generation`] takes a time.
    pub fn new_generation(&self) -> i64 {
        self.engine.new_generation(None)
    }

    /// Tells registered clients that this node went up or down, whatever it does.
    pub fn push_status(&self, up: bool) {
        self.shared.push_status(up, self.addr);
    }

    /// Tells registered clients that a node joined or left; there is none at `node`.
    pub fn push_topology(&self, joined: bool, node: SocketAddr) {
        self.shared.push_topology(joined, node);
    }

    /// Takes no more requests, answers what is under way within a second, closes all connections, and
    /// returns when every task has ended.
    pub async fn shutdown(self) {
        self.end.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// What clients on this machine can connect to.
fn reachable(addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() {
        SocketAddr::from(([127, 0, 0, 1], addr.port()))
    } else {
        addr
    }
}
