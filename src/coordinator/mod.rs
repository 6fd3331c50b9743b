//! Owns everything that runs: starts it in dependency order, restarts it by policy, takes changes of the
//! configuration to it, watches its health, and stops it in flow order.
//!
//! - [`supervisor`]: the only place that spawns.
//! - [`lane`]: one shard's way from source to sink.
//! - [`ledger`]: how far a shard is, and what is in whose hands.
//! - [`child`]: what runs, by type: a stage, and a child of it.
//! - [`shard`]: opened, run, drained and released alone.
//! - [`sharing`]: which shards are ours, where several instances share them; [`membership`]: what there is to see of it.
//! - [`parts`]: where what it is built of comes from.
//! - [`pipeline`]: builds from settings what the shards have in common, and holds those that are open here.
//! - [`reload`]: what a change of the configuration does to what runs; `rebuild`: how a pipeline takes the place of another;
//!   `meanwhile`: what goes on while that waits, other changes too.
//! - [`listen`]: how a service takes an address over from the one that it replaces.
//! - [`health`]: what is observed of every component; [`report`]: what that comes to.
//! - [`dead_letters`]: the child that keeps what is poison.
//! - [`serve`]: HTTP as a child; [`connection`]: one connection of it; [`guard`]: whom it does not answer.
//! - [`trend`]: the last hour in numbers.
//! - [`watchdog`]: whether any of it hangs.
//! - [`shutdown`]: the order of a drain, and signals.

pub mod activity;
pub mod child;
pub mod connection;
pub mod dead_letters;
pub mod faults;
pub mod guard;
pub mod handle;
pub mod health;
pub mod lane;
pub mod ledger;
pub mod listen;
mod meanwhile;
pub mod membership;
pub mod parts;
pub mod pipeline;
pub mod plugins;
mod rebuild;
pub mod reload;
pub mod replay;
pub mod report;
pub mod serve;
pub mod shard;
pub mod sharing;
pub mod shutdown;
mod start;
pub mod supervisor;
#[cfg(test)]
mod tests;
pub mod transforms;
pub mod trend;
pub mod watchdog;

use std::collections::HashMap;
use std::sync::Arc;

use tokio::runtime::{Handle as Runtime, RuntimeFlavor};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use self::child::{ChildId, Stage};
use self::handle::{Command, Handle, Phase, Shared};
use self::health::HealthWatch;
use self::lane::{FailedStage, FailedStages};
use self::listen::Listening;
use self::meanwhile::UnderWay;
use self::parts::{Drivers, Parts};
use self::pipeline::{Feeds, Pipeline, PolicyRegistry};
use self::plugins::Plugins;
use self::reload::Reloads;
use self::shard::Shard;
use self::sharing::Sharing;
use self::shutdown::{Asked, Signals, Step};
use self::supervisor::{ChildSpec, Event, Standing, Supervisor};
use self::watchdog::Watchdog;
use crate::config::reload::Revision;
use crate::config::{LiveSettings, Settings};
use crate::orders;
use crate::policy::restart::OnFailed;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was drained.
    Clean,
    /// A stage failed, and its policy is to stop.
    Failed,
    /// Another process runs the pipeline, which is to be run by one.
    Fenced,
    /// The deadline passed, or a second signal came, before everything was drained.
    Forced,
}

/// Commands that wait for the coordinator. A caller whose command finds no room waits.
const COMMANDS: usize = 64;

/// See the module.
pub struct Coordinator {
    live: LiveSettings,
    /// What the pipeline's own parts read. Apart from `live`, so that a new pipeline can be connected by new
    /// settings, and an old one drained by its own, before anything is in force.
    feeds: Feeds,
    reloads: Reloads,
    parts: Arc<dyn Parts>,
    plugins: Arc<dyn Plugins>,
    policies: PolicyRegistry,
    supervisor: Supervisor,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    /// Who asked for a reload, and whether SIGHUP did, while the coordinator was busy with another one.
    asked: (Vec<oneshot::Sender<Option<Revision>>>, bool),
    /// … and who waits for what becomes of the one that is under way.
    askers: Vec<oneshot::Sender<Option<Revision>>>,
    /// The change that is being taken to what runs, if one is.
    under_way: Option<UnderWay>,
    failed: (FailedStages, mpsc::Receiver<FailedStage>),
    /// The lanes that wait for a stage that was given up on; each once, since it waits.
    waiting: Vec<oneshot::Sender<()>>,
    /// When each stage that was given up on was started anew last.
    revived: HashMap<Stage, std::time::Instant>,
    health: HealthWatch,
    sharing: Sharing,
    watchdog: Watchdog,
    /// Sockets of the services, to be taken over by those that replace them.
    listeners: Listeners,
    /// What the order service has done, whichever it was.
    orders_counted: Arc<orders::Counters>,
    started: Instant,
    /// A stage failed whose policy is to stop the process.
    failed_for_good: bool,
    /// Another process has taken the pipeline over.
    fenced: bool,
    /// What the start waits for, if it does.
    put_off: Option<start::PutOff>,
}

#[derive(Default)]
struct Listeners {
    admin: Option<Arc<Listening>>,
    orders: Option<Arc<Listening>>,
}

/// Another service is in force, if any: it finishes what waits at the socket of the one before.
fn hand_over(current: &mut Option<Arc<Listening>>, next: Option<Arc<Listening>>) {
    if let (Some(before), Some(next)) = (current.as_ref(), &next) {
        before.hand_over(next);
    }
    *current = next;
}

/// Why the coordinator stops, whatever it was at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopping {
    /// A signal, or a command.
    Asked,
    /// A stage failed, and its policy is to stop.
    Failed,
    /// Another process has taken the pipeline over.
    Fenced,
}

/// How far a step of a drain got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drained {
    /// All of it.
    All,
    /// Not in time.
    Late,
    /// A stop was asked for meanwhile.
    Stopped,
}

impl Coordinator {
    /// Builds the pipeline and starts every child. Returns once all supervised stages have started, or when that has to
    /// wait for something outside: [`Self::run`] goes on with it.
    ///
    /// # Errors
    /// What cannot be reached, found or compiled, in one line that says what would do.
    pub async fn start(reloads: Reloads) -> anyhow::Result<Self> {
        Self::start_with(reloads, Arc::new(Drivers)).await
    }

    /// As [`Self::start`], of parts from elsewhere.
    ///
    /// # Errors
    /// As there.
    pub async fn start_with(reloads: Reloads, parts: Arc<dyn Parts>) -> anyhow::Result<Self> {
        let started = Instant::now();
        let live = reloads.live();
        let settings = live.borrow().clone();
        let plugins = parts.plugins(&settings)?;
        let policies = PolicyRegistry::new(live.clone());
        let (command_tx, commands) = mpsc::channel(COMMANDS);
        let shared = Arc::new(Shared::new(
            live.clone(),
            policies.clone(),
            command_tx,
            reloads.history(),
        ));
        let mut this = Self {
            supervisor: Supervisor::new(live.clone()),
            health: HealthWatch::new(live.clone()),
            sharing: Sharing::new(),
            watchdog: Watchdog::start(shared.vitals().clone())?,
            live,
            feeds: Feeds::new(settings.clone()),
            reloads,
            parts,
            plugins,
            policies,
            shared,
            commands,
            asked: (Vec::new(), false),
            askers: Vec::new(),
            under_way: None,
            failed: mpsc::channel(COMMANDS),
            waiting: Vec::new(),
            revived: HashMap::new(),
            listeners: Listeners::default(),
            orders_counted: Arc::default(),
            started,
            failed_for_good: false,
            fenced: false,
            put_off: None,
        };
        // The admin interface first: it says `starting` while the rest is not there yet.
        if settings.admin.enabled {
            let admin = this.bind_admin(&settings).await?;
            this.run_admin(Some(admin));
        }
        this.run_tracing();
        match this.first_beginning().await {
            Ok(begun) => this.begin(begun),
            Err(error) => this.put_off(error)?,
        }
        this.reloads.watch();
        Ok(this)
    }

    /// Starts one more child, which is stopped when everything else is.
    pub fn add(&mut self, child: ChildSpec) {
        self.supervisor.start(child);
    }

    /// Typed handles to the children.
    pub fn handle(&self) -> Handle {
        Handle::new(self.shared.clone())
    }

    fn run_pipeline(&mut self, pipeline: Arc<Pipeline>) {
        for child in pipeline.children(&self.failed.0) {
            self.supervisor.start(child);
        }
        self.shared.set_pipeline(Some(pipeline));
    }

    /// Lets go of a pipeline that another one has replaced, or of parts of one. Clients take their time to close their
    /// connections, for which nothing else is to wait.
    fn let_go(&mut self, parts: impl Send + 'static) {
        let mut parts = Some(parts);
        self.supervisor
            .start(ChildSpec::new(Stage::LetGo, move |_| {
                let parts = parts.take();
                async move {
                    blocking(|| drop(parts));
                    Ok(())
                }
            }));
        self.supervisor.retire(|id| id.stage == Stage::LetGo);
    }

    fn run_tracing(&mut self) {
        let (spans, live) = (self.shared.spans().clone(), self.live.clone());
        self.supervisor
            .start(ChildSpec::new(Stage::Tracing, move |scope| {
                let (spans, live) = (spans.clone(), live.clone());
                async move { crate::spans::export::run(spans, live, scope.drain.cancelled()).await }
            }));
    }

    async fn bind_admin(&self, settings: &Settings) -> anyhow::Result<crate::admin::Server> {
        let (handle, wanted) = (self.handle(), settings.admin.listen);
        let replaces = self.listeners.admin.as_ref();
        Ok(crate::admin::Server::bind(handle, self.live.clone(), wanted, replaces).await?)
    }

    /// Where the admin interface listens.
    fn admin_address(&self) -> Option<std::net::SocketAddr> {
        self.listeners.admin.as_ref().map(|admin| admin.address())
    }

    /// Serves the admin interface from here on, if there is one; the one before finishes its answers.
    fn run_admin(&mut self, admin: Option<crate::admin::Server>) {
        let listening = admin.as_ref().map(crate::admin::Server::listening);
        hand_over(&mut self.listeners.admin, listening);
        self.supervisor.retire(|id| id.stage == Stage::Admin);
        if let Some(admin) = admin {
            tracing::info!(listen = %admin.local_addr(), "admin interface listens");
            self.supervisor.start(admin.into_child());
        }
    }

    /// … and likewise the order service.
    fn run_orders(&mut self, orders: Option<crate::orders::Service>) {
        let listening = orders.as_ref().map(crate::orders::Service::listening);
        hand_over(&mut self.listeners.orders, listening);
        self.supervisor.retire(|id| id.stage == Stage::Orders);
        self.shared
            .set_orders(orders.as_ref().map(crate::orders::Service::handle));
        if let Some(orders) = orders {
            tracing::info!(listen = %orders.local_addr(), "order service listens");
            self.supervisor.start(orders.into_child());
        }
    }

    /// Runs until it is told to stop, then drains.
    pub async fn run(mut self, mut signals: Signals) -> Outcome {
        let mut begun = self.begin_late(&mut signals).await;
        loop {
            if let Err(stopping) = std::mem::replace(&mut begun, Ok(())) {
                self.failed_for_good |= stopping == Stopping::Failed;
                self.fenced |= stopping == Stopping::Fenced;
                break;
            }
            if let Err(stopping) = self.turn(&mut signals).await {
                self.failed_for_good |= stopping == Stopping::Failed;
                self.fenced |= stopping == Stopping::Fenced;
                break;
            }
            self.publish();
        }
        let drained = self.drain(&mut signals).await;
        match drained {
            _ if self.fenced => Outcome::Fenced,
            _ if self.failed_for_good => Outcome::Failed,
            false => Outcome::Forced,
            true => Outcome::Clean,
        }
    }

    /// Waits for the next thing to do and does it.
    async fn turn(&mut self, signals: &mut Signals) -> Result<(), Stopping> {
        let (waiting, hangup) = std::mem::take(&mut self.asked);
        if hangup || !waiting.is_empty() {
            let why = if hangup { "SIGHUP" } else { "asked for" };
            self.askers.extend(waiting);
            self.reload(why, signals).await?;
            return Ok(());
        }
        if self.attend(signals, true).await? {
            self.reload("a source of it changed", signals).await?;
        }
        self.see_to_shards(signals).await
    }

    /// Waits for the next thing that happens, and sees to it. Who asks for a reload is noted, since one may be
    /// under way. Says, if `watching`, whether a source of the configuration has other content. Cancel-safe.
    async fn attend(&mut self, signals: &mut Signals, watching: bool) -> Result<bool, Stopping> {
        self.watchdog.answer();
        let check = self.health.next_check(&self.shared);
        tokio::select! {
            event = self.supervisor.next_event() => {
                if let Some(stopping) = self.note(event) {
                    return Err(stopping);
                }
            }
            asked = signals.next() => match asked {
                Asked::Stop => return Err(Stopping::Asked),
                Asked::Reload => self.asked.1 = true,
            },
            () = self.reloads.changed(), if watching => return Ok(true),
            Some(command) = self.commands.recv(), if self.asked.0.len() < COMMANDS => match command {
                Command::Reload { done } => self.asked.0.push(done),
                Command::Stop => return Err(Stopping::Asked),
            },
            Some(failed) = self.failed.1.recv() => self.fail(failed),
            news = self.sharing.next() => self.hear(news),
            () = tokio::time::sleep_until(check) => self.check_health(),
            () = self.watchdog.asked() => {
                self.shared.look();
                if self.health.is_due(&self.shared) {
                    self.check_health();
                }
                faults::coordinator().await;
            }
        }
        Ok(false)
    }

    /// Logs an event of a child; says whether everything is to stop for it.
    fn note(&mut self, event: Event) -> Option<Stopping> {
        match event {
            Event::Finished { child } => {
                tracing::debug!(%child, "child finished");
                None
            }
            Event::Restarting { .. } => {
                self.check_health();
                None
            }
            Event::Failed {
                stage,
                cause,
                on_failed,
            } => {
                self.health.stage_failed(&stage, &cause);
                self.check_health();
                (on_failed == OnFailed::Shutdown).then_some(Stopping::Failed)
            }
            Event::Relieved { child, cause } => self.relieved(&child, &cause),
        }
    }

    fn fail(&mut self, failed: FailedStage) {
        let stage = &failed.stage;
        let revived = self.revived.get(stage);
        if revived.is_some_and(|revived| failed.read_at <= *revived) {
            tracing::info!(%stage, cause = failed.cause, "a fault from before the stage was started anew");
            self.forget_flood(stage);
            failed.revived.send(()).ok();
            return;
        }
        self.supervisor
            .fail(stage, |id| id.stage.serves(stage), &failed.cause);
        self.waiting.retain(|lane| !lane.is_closed());
        self.waiting.push(failed.revived);
    }

    /// Has the topics of ours looked at again, which may have been set otherwise since the start.
    fn look_at_topics_again(&self) {
        if let Some(pipeline) = self.shared.pipeline() {
            pipeline.sink.look_again();
        }
    }

    /// Somebody changed the configuration: what was given up on may have been mended by it, so it is tried again.
    fn revive(&mut self) {
        for stage in self.supervisor.revive(|_| true) {
            tracing::info!(%stage, "failed stage started anew");
            self.health.revived(&stage);
            self.forget_flood(&stage);
            self.revived.insert(stage, std::time::Instant::now());
        }
        for lane in self.waiting.drain(..) {
            // One that was stopped meanwhile does not wait any more.
            lane.send(()).ok();
        }
    }

    fn forget_flood(&self, stage: &Stage) {
        if let Some(pipeline) = self.shared.pipeline() {
            pipeline.dead_letters.forget_flood(&stage.to_string());
        }
    }

    fn check_health(&mut self) {
        let report = self.health.check(&self.supervisor, &self.shared);
        self.shared.set_health(report);
    }

    fn publish(&self) {
        self.shared.set_children(self.supervisor.status());
    }

    /// Stops in flow order. Returns whether everything was drained in time.
    async fn drain(&mut self, signals: &mut Signals) -> bool {
        let timeout = self.live.borrow().shutdown.timeout;
        let deadline = Instant::now() + timeout;
        self.shared.set_phase(Phase::Draining);
        self.publish();
        tracing::info!(timeout = ?timeout, uptime = ?self.started.elapsed(), "stopping");
        for step in Step::ALL {
            let began = Instant::now();
            let drained = self.drain_step(step, deadline, signals);
            if drained.await != Drained::All {
                let unfinished = names(self.supervisor.unfinished(|id| step.takes(id)));
                let at_work: Vec<String> = self
                    .supervisor
                    .at_work()
                    .iter()
                    .map(|(child, since)| format!("{child} for {:.1} s", since.as_secs_f64()))
                    .collect();
                tracing::error!(
                    %step,
                    unfinished,
                    at_work = at_work.join(", "),
                    "stopped before everything was drained; a restart makes good"
                );
                return false;
            }
            if step == Step::Commit {
                self.sharing.settled();
            }
            tracing::info!(%step, took = ?began.elapsed(), "done");
        }
        let failed = (self.supervisor.status().iter()).any(|c| c.state == Standing::Failed);
        let left: usize = self
            .shared
            .pipeline()
            .map_or(0, |p| p.lanes().iter().map(|l| l.in_flight().changes).sum());
        self.supervisor.remove(|_| true).await;
        self.shared.set_pipeline(None);
        self.shared.set_phase(Phase::Stopped);
        tracing::info!(step = "close", "done");
        if left > 0 {
            tracing::error!(
                left,
                failed,
                "changes were left in flight; a restart makes good"
            );
        }
        left == 0
    }

    /// Lets the children of this step finish.
    async fn drain_step(
        &mut self,
        step: Step,
        deadline: Instant,
        signals: &mut Signals,
    ) -> Drained {
        let drained = move |supervisor: &Supervisor| {
            supervisor.drain(|id| step.takes(id));
            supervisor.is_drained(|id| step.takes(id))
        };
        self.until(drained, deadline, signals).await
    }

    /// Drains these shards, each at its own pace, while the others go on.
    async fn drain_shards(
        &mut self,
        shards: &[Arc<Shard>],
        deadline: Instant,
        signals: &mut Signals,
    ) -> Drained {
        let history = self.shared.reloads().clone();
        let drained = |supervisor: &Supervisor| {
            let ours = |id: &ChildId| shards.iter().any(|s| s.owns(id));
            let unfinished = supervisor.unfinished(ours);
            history.waits_for(unfinished.map(|id| id.to_string()));
            let waiting = shards.iter().filter(|s| !s.drain(supervisor)).count();
            waiting == 0
        };
        self.until(drained, deadline, signals).await
    }
}

/// Does what takes a while and may block: whatever else this thread would do goes on on another one, where the runtime has
/// more than one.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Runtime::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => work(),
        _ => tokio::task::block_in_place(work),
    }
}

/// In a line of the log.
fn names<'a>(children: impl Iterator<Item = &'a ChildId>) -> String {
    let names: Vec<String> = children.map(ChildId::to_string).collect();
    names.join(", ")
}
