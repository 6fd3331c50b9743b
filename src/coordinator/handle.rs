//! What the rest of the process may know of, and ask of, the coordinator.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};

use super::health::Report;
use super::pipeline::{Pipeline, PolicyRegistry};
use super::sharing::{Membership, Share};
use super::supervisor::ChildStatus;
use crate::config::LiveSettings;
use crate::config::reload::{ReloadHistory, Revision};
use crate::orders;
use crate::policy::stage::StagePolicies;

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Not everything has been started yet.
    Starting,
    /// At work.
    Running,
    /// A changed configuration is being taken to what runs.
    Rebuilding,
    /// Told to stop, finishing what it holds.
    Draining,
    /// Nothing runs any more.
    Stopped,
}

/// What can be asked of the coordinator.
#[derive(Debug)]
pub enum Command {
    /// Look at the configuration's sources now.
    Reload {
        /// Told what became of it.
        done: oneshot::Sender<Option<Revision>>,
    },
    /// Drain and stop.
    Stop,
}

/// The coordinator has stopped and takes no commands.
#[derive(Debug, thiserror::Error)]
#[error("the coordinator has stopped")]
pub struct Stopped;

pub(crate) struct Shared {
    live: LiveSettings,
    policies: PolicyRegistry,
    commands: mpsc::Sender<Command>,
    reloads: ReloadHistory,
    phase: watch::Sender<Phase>,
    pipeline: RwLock<Option<Arc<Pipeline>>>,
    membership: RwLock<Option<Arc<Membership>>>,
    orders: RwLock<Option<orders::Handle>>,
    children: Mutex<Vec<ChildStatus>>,
    health: watch::Sender<Report>,
}

impl Shared {
    pub(crate) fn new(
        live: LiveSettings,
        policies: PolicyRegistry,
        commands: mpsc::Sender<Command>,
        reloads: ReloadHistory,
    ) -> Self {
        Self {
            live,
            policies,
            commands,
            reloads,
            phase: watch::Sender::new(Phase::Starting),
            pipeline: RwLock::default(),
            membership: RwLock::default(),
            orders: RwLock::default(),
            children: Mutex::default(),
            health: watch::Sender::new(Report::default()),
        }
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    pub(crate) fn set_pipeline(&self, pipeline: Option<Arc<Pipeline>>) {
        *self.pipeline.write() = pipeline;
    }

    pub(crate) fn pipeline(&self) -> Option<Arc<Pipeline>> {
        self.pipeline.read().clone()
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(crate) fn set_membership(&self, membership: Arc<Membership>) {
        *self.membership.write() = Some(membership);
    }

    pub(crate) fn membership(&self) -> Option<Arc<Membership>> {
        self.membership.read().clone()
    }

    pub(crate) fn set_orders(&self, orders: Option<orders::Handle>) {
        *self.orders.write() = orders;
    }

    pub(crate) fn set_children(&self, children: Vec<ChildStatus>) {
        *self.children.lock() = children;
    }

    pub(crate) fn set_health(&self, report: Report) {
        self.health.send_replace(report);
    }

    pub(crate) fn policies(&self) -> &PolicyRegistry {
        &self.policies
    }

    pub(crate) fn reloads(&self) -> &ReloadHistory {
        &self.reloads
    }
}

/// A cheap handle to the coordinator and, typed, to its children.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// The settings in force.
    pub fn settings(&self) -> LiveSettings {
        self.0.live.clone()
    }

    /// Where the process is in its life.
    pub fn phase(&self) -> Phase {
        self.0.phase()
    }

    /// The last health report, and changes of it.
    pub fn health(&self) -> watch::Receiver<Report> {
        self.0.health.subscribe()
    }

    /// Every child, in the order of a start.
    pub fn children(&self) -> Vec<ChildStatus> {
        self.0.children.lock().clone()
    }

    /// What carries the changes: source, sink, dead letters, lanes. `None` while it is being built.
    pub fn pipeline(&self) -> Option<Arc<Pipeline>> {
        self.0.pipeline()
    }

    /// What of the shards is this instance's, where several share them.
    pub fn share(&self) -> Option<Share> {
        self.0.membership().map(|membership| membership.share())
    }

    /// The order service, if it is on.
    pub fn orders(&self) -> Option<orders::Handle> {
        self.0.orders.read().clone()
    }

    /// The policies of every stage.
    pub fn policies(&self) -> Vec<StagePolicies> {
        let all = self.0.policies.all().into_iter();
        all.map(|(_, policies)| policies).collect()
    }

    /// The policies of one stage, by its name in pipeline.toml (`sink`, `transform.<name>`, …).
    pub fn stage(&self, name: &str) -> Option<StagePolicies> {
        self.policies().into_iter().find(|p| p.stage() == name)
    }

    /// The applied and rejected revisions of the configuration.
    pub fn reloads(&self) -> ReloadHistory {
        self.0.reloads.clone()
    }

    /// Looks at the configuration's sources now and says what became of it; `None`: nothing had changed.
    pub async fn reload(&self) -> Result<Option<Revision>, Stopped> {
        let (done, answer) = oneshot::channel();
        self.0
            .commands
            .send(Command::Reload { done })
            .await
            .map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// Drains and stops.
    pub async fn stop(&self) -> Result<(), Stopped> {
        self.0
            .commands
            .send(Command::Stop)
            .await
            .map_err(|_| Stopped)
    }
}
