//! The connection to the cluster: whether there is one, and a new one where the driver would only pause.
//!
//! When all nodes are gone the driver tries each of them again after pauses of up to ten seconds, and a breaker
//! that probes in such a pause finds nobody although the cluster is back. So whoever has no connection asks the
//! contact points itself, and connects anew as soon as one answers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::policies::retry::FallthroughRetryPolicy;
use tokio::sync::watch;

use super::error::SourceError;
use super::{ScyllaSource, consistency};
use crate::config::settings;
use crate::policy::breaker::State;
use crate::reach;

/// How often it is looked whether there is a connection, and asked for one while there is none.
const LOOK: Duration = Duration::from_millis(250);
/// A node that answers has the driver back by itself within this time, unless the driver pauses.
const DRIVER: Duration = Duration::from_millis(250);
/// A session is there within this time, or its nodes hang.
const SESSION: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Link {
    nodes: Vec<String>,
    session: Mutex<Arc<Session>>,
    /// Since when there is no connection; `None`: there is one.
    lost: watch::Sender<Option<Instant>>,
}

impl Link {
    /// Connects. One attempt, which says within ten seconds that nobody answers.
    pub(super) async fn connect(
        nodes: &[String],
        source: &settings::Source,
    ) -> Result<Self, SourceError> {
        Ok(Self {
            nodes: nodes.to_vec(),
            session: Mutex::new(Arc::new(open(nodes, source).await?)),
            lost: watch::Sender::new(None),
        })
    }

    /// The driver's session. Not to be kept: another one may take its place.
    pub(super) fn session(&self) -> Arc<Session> {
        self.session.lock().clone()
    }

    /// What is missing, in words that do not change while it is.
    pub(super) fn complaint(&self) -> Option<String> {
        self.lost
            .borrow()
            .map(|_| format!("no connection to ScyllaDB at {}", self.nodes.join(", ")))
    }

    fn is_connected(&self) -> bool {
        let state = self.session().get_cluster_state();
        state.get_nodes_info().iter().any(|n| n.is_connected())
    }

    /// Waits until there is a connection. Cancel-safe.
    async fn connected(&self) {
        let mut lost = self.lost.subscribe();
        // Its sender lives as long as `self`.
        if lost.wait_for(Option::is_none).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Connects to those nodes that answer: the driver would wait for one that only takes connections.
async fn open(nodes: &[String], source: &settings::Source) -> Result<Session, SourceError> {
    let unreachable = |reason: String| SourceError::Unreachable {
        nodes: nodes.join(", "),
        reason,
    };
    // The driver says the same in several lines of its log, and less plainly.
    let answering = reach::cql(nodes).await.map_err(unreachable)?;
    // Retries are the stage's business: it backs off, counts, and sees the first failure.
    let profile = ExecutionProfile::builder()
        .consistency(consistency(source.consistency))
        .request_timeout(Some(source.read_timeout))
        .retry_policy(Arc::new(FallthroughRetryPolicy::new()))
        .build();
    let mut builder = SessionBuilder::new()
        .known_nodes(&answering)
        .keyspaces_to_fetch([source.keyspace.as_str()])
        .default_execution_profile_handle(profile.into_handle_with_label("penstock-source".into()));
    if let Some(user) = &source.username {
        let password = source.password.as_ref().map_or("", |p| p.expose());
        builder = builder.user(user, password);
    }
    match tokio::time::timeout(SESSION, builder.build()).await {
        Ok(built) => built.map_err(|e| SourceError::connect(nodes, e)),
        Err(_) => {
            let within = humantime::format_duration(SESSION);
            Err(unreachable(format!("no session within {within}")))
        }
    }
}

impl ScyllaSource {
    /// The driver's session. Not to be kept: another one may take its place.
    pub(super) fn session(&self) -> Arc<Session> {
        self.link.session()
    }

    /// Before an attempt: a breaker's probe is not spent on a cluster that is known to be away, since the breaker
    /// would be open again for all its time when the cluster comes back.
    pub(super) async fn probe_waits(&self) {
        let half_open = *self.policies.watch().borrow() == State::HalfOpen;
        if half_open {
            self.link.connected().await;
        }
    }

    /// Sees that there is a connection, and says when there is none.
    pub(super) async fn follow_link(&self) -> Result<Infallible, SourceError> {
        loop {
            tokio::time::sleep(LOOK).await;
            let lost = *self.link.lost.borrow();
            match (self.link.is_connected(), lost) {
                (true, None) => {}
                (true, Some(since)) => {
                    tracing::info!(after = ?since.elapsed(), "connected to ScyllaDB again");
                    self.link.lost.send_replace(None);
                }
                (false, None) => {
                    self.link.lost.send_replace(Some(Instant::now()));
                    let nodes = self.link.nodes.join(", ");
                    tracing::warn!(nodes, "no connection to ScyllaDB, waiting for it");
                }
                (false, Some(_)) => self.reconnect().await,
            }
        }
    }

    async fn reconnect(&self) {
        if reach::cql(&self.link.nodes).await.is_err() {
            return;
        }
        tokio::time::sleep(DRIVER).await;
        if self.link.is_connected() {
            return;
        }
        let settings = self.live.borrow().source.clone();
        match open(&self.link.nodes, &settings).await {
            Ok(session) => {
                *self.link.session.lock() = Arc::new(session);
                self.tables.iter().for_each(|t| t.forget_statement());
            }
            Err(error) => tracing::debug!(%error, "not connected yet"),
        }
    }
}
