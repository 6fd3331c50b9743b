//! The order service: writes orders and their outbox rows to ScyllaDB, from where CDC carries them on.
//!
//! Each request that changes an order writes the order's row and one outbox row in one logged batch: either
//! both are there or neither. The outbox is partitioned by the order's id, so that the events of one order
//! share a CDC stream; their write timestamps only grow within a process, so that they keep their order.

mod body;
mod clock;
pub mod http;
pub mod model;
pub mod store;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use self::store::{Store, StoreError};
use crate::config::{LiveSettings, Settings};
use crate::coordinator::child::Stage;
use crate::coordinator::connection::Limits;
use crate::coordinator::listen::{Bound, Listening, listen};
use crate::coordinator::serve::{Serving, serve};
use crate::coordinator::supervisor::{ChildScope, ChildSpec};
use crate::policy::stage::StagePolicies;
use crate::spans::Spans;

/// What the service has done since the process started, whichever of those that followed each other.
#[derive(Debug, Default)]
pub struct Counters {
    /// Orders created.
    pub created: AtomicU64,
    /// Orders updated.
    pub updated: AtomicU64,
    /// Orders cancelled.
    pub cancelled: AtomicU64,
    /// Requests refused for what they said (4xx).
    pub refused: AtomicU64,
    /// Requests that failed for a reason of ours (5xx).
    pub failed: AtomicU64,
}

/// A cheap handle to the running service.
#[derive(Clone)]
pub struct Handle {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it has done.
    pub counters: Arc<Counters>,
}

/// The service, bound and connected, not yet serving.
pub struct Service {
    state: http::State,
    bound: Bound,
}

/// The service could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("[orders] cannot listen on {address}: {error}; set `orders.listen` to a free address")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// ScyllaDB refused, or cannot be reached.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Service {
    /// Listens, connects to ScyllaDB and prepares the statements, as `settings` say; what it looks up later it
    /// takes from `live`. It goes on counting what it does where `counters` are, and listens also beside the listener of the service that it replaces.
    ///
    /// # Errors
    /// When somebody else listens there, or ScyllaDB or its schema is not as it should be.
    pub async fn start(
        settings: &Settings,
        live: LiveSettings,
        policies: StagePolicies,
        (spans, counters): (Arc<Spans>, Arc<Counters>),
        replaces: Option<&Arc<Listening>>,
    ) -> Result<Self, StartError> {
        let wanted = settings.orders.listen;
        let bound = listen(wanted, replaces)
            .await
            .map_err(|error| StartError::Listen {
                address: wanted,
                error,
            })?;
        let waits = policies.waits();
        let store = waits.during("connect to ScyllaDB", Store::connect(settings));
        let store = store.await?;
        Ok(Self {
            state: http::State::new(store, live, policies, (spans, counters)),
            bound,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.bound.listening().address()
    }

    /// Its socket.
    pub fn listening(&self) -> Arc<Listening> {
        self.bound.listening().clone()
    }

    /// A handle that outlives restarts of the child.
    pub fn handle(&self) -> Handle {
        Handle {
            address: self.local_addr(),
            counters: self.state.counters(),
        }
    }

    /// The child that serves; a restart keeps the socket and its backlog.
    pub fn into_child(self) -> ChildSpec {
        let listening = self.bound.in_force();
        let state = self.state.clone();
        let serving = Serving {
            stage: Stage::Orders,
            app: http::router(self.state, listening.address().ip().is_loopback()),
            probes: &[],
            limits: Limits {
                most_body: http::MAX_BODY,
                ..Limits::default()
            },
        }
        .at(&listening);
        ChildSpec::new(Stage::Orders, move |scope: ChildScope| {
            let (served, state) = (
                serve(serving.clone(), listening.clone(), scope),
                state.clone(),
            );
            async move {
                tokio::select! {
                    served = served => served,
                    never = state.keep_closed() => match never {},
                }
            }
        })
    }
}
