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

use super::classify;
use super::error::SourceError;
use super::place;
use super::secure::Credentials;
use super::{ScyllaSource, consistency};
use crate::config::settings;
use crate::policy::breaker::State;
use crate::reach;

/// How often it is looked whether there is a connection, and asked for one while there is none.
const LOOK: Duration = Duration::from_millis(250);
/// A node that answers has the driver back by itself within this time, unless the driver pauses.
const DRIVER: Duration = Duration::from_millis(250);
/// Rotated credentials that are refused are tried again after this long: the other side may be rotated a moment later.
const RENEW: Duration = Duration::from_secs(2);
/// A connection that was not cut again for this long will do.
const SETTLED: Duration = Duration::from_secs(2);
/// A session is there within this time, or its nodes hang.
const SESSION: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Link {
    nodes: Vec<String>,
    session: Mutex<Arc<Session>>,
    /// With what the session connects.
    credentials: Mutex<Credentials>,
    /// Why what was rotated is not in force.
    refused: Mutex<Option<String>>,
    /// Since when there is no connection; `None`: there is one.
    lost: watch::Sender<Option<Instant>>,
    /// When a read failed last, if it was for want of a connection.
    cut: Mutex<Option<Instant>>,
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
            credentials: Mutex::new(Credentials::of(source)),
            refused: Mutex::default(),
            lost: watch::Sender::new(None),
            cut: Mutex::default(),
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

    /// Why what was rotated is not in force.
    pub(super) fn refusal(&self) -> Option<String> {
        let refused = self.refused.lock().clone();
        refused
            .map(|why| format!("the new credentials are not in force, the old ones go on: {why}"))
    }

    /// Takes in why a read failed.
    pub(super) fn failed(&self, error: &SourceError) {
        *self.cut.lock() = classify::is_cut(error).then(Instant::now);
    }

    /// Reads failed for want of a connection, which there is again: what opened the breaker is over. Not at once, or a
    /// connection that is cut whenever it is used would be called all the time.
    fn is_back(&self) -> bool {
        let cut = *self.cut.lock();
        cut.is_some_and(|at| at.elapsed() >= SETTLED) && self.is_connected()
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
    let credentials = Credentials::of(source);
    let answering = reach::cql(nodes, credentials.trust.as_ref())
        .await
        .map_err(unreachable)?;
    // Retries are the stage's business: it backs off, counts, and sees the first failure.
    let profile = ExecutionProfile::builder()
        .load_balancing_policy(place::policy(source))
        .consistency(consistency(source.consistency))
        .request_timeout(Some(source.read_timeout))
        .retry_policy(Arc::new(FallthroughRetryPolicy::new()))
        .build();
    let builder = SessionBuilder::new()
        .known_nodes(&answering)
        .keyspaces_to_fetch([source.keyspace.as_str()])
        .default_execution_profile_handle(profile.into_handle_with_label("penstock-source".into()));
    let builder = credentials.apply(builder, nodes).map_err(unreachable)?;
    let session = match tokio::time::timeout(SESSION, builder.build()).await {
        Ok(built) => built.map_err(|e| SourceError::connect(nodes, e))?,
        Err(_) => {
            let within = humantime::format_duration(SESSION);
            return Err(unreachable(format!("no session within {within}")));
        }
    };
    place::look(&session, source).map_err(|place::NoSuchPlace { wanted, there }| {
        SourceError::NoSuchPlace { wanted, there }
    })?;
    Ok(session)
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
        let mut try_at = Instant::now();
        loop {
            tokio::time::sleep(LOOK).await;
            if try_at <= Instant::now() && !self.renew().await {
                try_at = Instant::now() + RENEW;
            }
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
            if self.link.is_back() {
                self.policies.look_again();
            }
        }
    }

    /// Connects anew, beside the session that is there, where its credentials were rotated; whether all is as it should
    /// be. What is asked of the old session meanwhile is answered.
    async fn renew(&self) -> bool {
        let settings = self.live.borrow().source.clone();
        let wanted = Credentials::of(&settings);
        if wanted == *self.link.credentials.lock() {
            *self.link.refused.lock() = None;
            return true;
        }
        match open(&self.link.nodes, &settings).await {
            Ok(session) => {
                self.take(session, wanted);
                tracing::info!("connected to ScyllaDB with the new credentials");
                true
            }
            Err(error) => {
                let reason = error.to_string();
                let mut refused = self.link.refused.lock();
                if refused.as_ref() != Some(&reason) {
                    tracing::warn!(reason, "the new credentials are not in force");
                }
                *refused = Some(reason);
                false
            }
        }
    }

    fn take(&self, session: Session, credentials: Credentials) {
        *self.link.session.lock() = Arc::new(session);
        *self.link.credentials.lock() = credentials;
        *self.link.refused.lock() = None;
        self.tables.iter().for_each(|t| t.forget_statement());
    }

    async fn reconnect(&self) {
        let trust = self.link.credentials.lock().trust.clone();
        if reach::cql(&self.link.nodes, trust.as_ref()).await.is_err() {
            return;
        }
        tokio::time::sleep(DRIVER).await;
        if self.link.is_connected() {
            return;
        }
        let settings = self.live.borrow().source.clone();
        match open(&self.link.nodes, &settings).await {
            Ok(session) => self.take(session, Credentials::of(&settings)),
            Err(error) => tracing::debug!(%error, "not connected yet"),
        }
    }
}
