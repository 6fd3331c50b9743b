//! What the rest of the process may know of, and ask of, the coordinator.

use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::membership::{Membership, Share};
use super::pipeline::{Pipeline, PolicyRegistry};
use super::report::Report;
use super::supervisor::ChildStatus;
use super::trend::{Point, Trend};
use super::watchdog::Vitals;
use crate::config::LiveSettings;
use crate::config::reload::{ReloadHistory, Revision};
use crate::orders;
use crate::policy::health::Level;
use crate::policy::stage::StagePolicies;
use crate::spans::Spans;

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

/// `running`
impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Rebuilding => "rebuilding",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        })
    }
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
    trend: Trend,
    spans: Arc<Spans>,
    vitals: Vitals,
    /// Since when the pipeline has not been ready; `None`: it is.
    unready: Mutex<Option<Instant>>,
}

impl Shared {
    pub(crate) fn new(
        live: LiveSettings,
        policies: PolicyRegistry,
        commands: mpsc::Sender<Command>,
        reloads: ReloadHistory,
    ) -> Self {
        Self {
            vitals: Vitals::new(live.clone()),
            unready: Mutex::new(Some(Instant::now())),
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
            trend: Trend::default(),
            spans: Arc::default(),
        }
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
        self.look_whether_ready();
    }

    pub(crate) fn vitals(&self) -> &Vitals {
        &self.vitals
    }

    /// Why it does not do what it is there for.
    fn unready(&self) -> Option<String> {
        let phase = self.phase();
        if !matches!(phase, Phase::Running | Phase::Rebuilding) {
            return Some(phase.to_string());
        }
        // One without shards is a standby, and ready to take some. One that has yet to hear from the group is not.
        if self.membership().is_some_and(|m| !m.share().joined) {
            return Some("the group has not given it its share of the shards".to_owned());
        }
        match &self.health.borrow().system {
            None => Some("no component has been looked at yet".to_owned()),
            Some(system) if system.status == Level::Unhealthy => {
                Some(system.reason.as_deref().unwrap_or("unhealthy").to_owned())
            }
            Some(_) => None,
        }
    }

    fn look_whether_ready(&self) {
        let ready = self.unready().is_none();
        let mut since = self.unready.lock();
        *since = match ready {
            true => None,
            false => Some(since.unwrap_or_else(Instant::now)),
        };
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
        self.look_whether_ready();
    }

    /// Notes what is counted now, for the plots.
    pub(crate) fn look(&self) {
        self.trend.look(self.pipeline().as_deref());
    }

    pub(crate) fn spans(&self) -> &Arc<Spans> {
        &self.spans
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

    /// Whether the pipeline runs and no critical stage has stopped working; else why not.
    ///
    /// # Errors
    /// The reason, for people.
    pub fn ready(&self) -> Result<(), String> {
        match self.0.vitals.hung().or_else(|| self.0.unready()) {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    /// Whether a restart of the process would be no help: it answers itself, and has been ready within
    /// `health.useless_after`. One that is told to stop has a deadline of its own.
    ///
    /// # Errors
    /// The reason, for people.
    pub fn alive(&self) -> Result<(), String> {
        if let Some(who) = self.0.vitals.hung() {
            return Err(who);
        }
        let limit = self.0.live.borrow().health.useless_after;
        let stops = matches!(self.phase(), Phase::Draining | Phase::Stopped);
        let since = self.0.unready.lock().map(|since| since.elapsed());
        match since.filter(|since| !limit.is_zero() && !stops && *since > limit) {
            Some(since) => Err(format!(
                "not ready for {} s: {}",
                since.as_secs(),
                self.0.unready().unwrap_or_default()
            )),
            None => Ok(()),
        }
    }

    /// Whether anything of the process hangs.
    pub fn hung(&self) -> Option<String> {
        self.0.vitals.hung()
    }

    /// The last hour in numbers, the newest last.
    pub fn trend(&self) -> Vec<Point> {
        self.0.trend.points()
    }

    /// … and the last few seconds.
    pub fn rates(&self) -> Point {
        self.0.trend.latest()
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

    /// Where traces go.
    pub fn spans(&self) -> &Spans {
        &self.0.spans
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
