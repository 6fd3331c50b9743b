//! Owns everything that runs: starts it in dependency order, restarts it by policy, takes changes of the
//! configuration to it, watches its health, and stops it in flow order.
//!
//! - [`supervisor`]: the only place that spawns.
//! - [`lane`]: one shard's way from source to sink.
//! - [`pipeline`]: builds lanes and children from settings.
//! - [`reload`]: what a change of the configuration does to what runs.
//! - [`health`]: what is observed of every component.
//! - [`dead_letters`]: the child that keeps what is poison.
//! - [`serve`]: HTTP as a child.
//! - [`shutdown`]: the order of a drain, and signals.

pub mod activity;
pub mod dead_letters;
pub mod faults;
pub mod handle;
pub mod health;
pub mod lane;
pub mod pipeline;
pub mod reload;
pub mod replay;
pub mod serve;
pub mod shutdown;
pub mod supervisor;
pub mod transforms;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use self::handle::{Command, Handle, Phase, Shared};
use self::health::HealthWatch;
use self::lane::{FailedStage, FailedStages};
use self::pipeline::{Pipeline, PolicyRegistry};
use self::reload::Reloads;
use self::shutdown::{Asked, STEPS, Signals, belongs};
use self::supervisor::{ChildSpec, Event, Supervisor};
use crate::config::{LiveSettings, Settings};
use crate::policy::restart::OnFailed;
use crate::transform::Engine;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was drained.
    Clean,
    /// A stage failed, and its policy is to stop.
    Failed,
    /// The deadline passed, or a second signal came, before everything was drained.
    Forced,
}

/// Commands that wait for the coordinator. A caller whose command finds no room waits.
const COMMANDS: usize = 64;

/// See the module.
pub struct Coordinator {
    live: LiveSettings,
    reloads: Reloads,
    engine: Engine,
    policies: PolicyRegistry,
    supervisor: Supervisor,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    failed: (FailedStages, mpsc::Receiver<FailedStage>),
    /// The lanes that wait for a stage that was given up on; each once, since it waits.
    waiting: Vec<oneshot::Sender<()>>,
    health: HealthWatch,
    started: Instant,
    /// A stage failed whose policy is to stop the process.
    failed_for_good: bool,
}

impl Coordinator {
    /// Builds the pipeline and starts every child. Returns once all supervised stages have started.
    ///
    /// # Errors
    /// What cannot be reached, found or compiled, in one line that says what would do.
    pub async fn start(reloads: Reloads) -> anyhow::Result<Self> {
        let started = Instant::now();
        let live = reloads.live();
        let settings = live.borrow().clone();
        let instances = settings.pipeline.shards.get() * settings.transforms.len() as u32 * 2;
        let engine = Engine::new(None, instances.max(1))?;
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
            live,
            reloads,
            engine,
            policies,
            shared,
            commands,
            failed: mpsc::channel(COMMANDS),
            waiting: Vec::new(),
            started,
            failed_for_good: false,
        };
        // The admin interface first: it says `starting` while the rest is not there yet.
        this.start_admin(&settings).await?;
        let pipeline = Pipeline::build(&settings, &this.live, &this.policies, &this.engine).await?;
        this.run_pipeline(pipeline, &settings);
        this.start_orders(&settings).await?;
        this.reloads.watch();
        this.shared.set_phase(Phase::Running);
        this.publish();
        tracing::info!(
            children = this.supervisor.status().len(),
            took = ?started.elapsed(),
            "all supervised stages started"
        );
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

    fn run_pipeline(&mut self, pipeline: Pipeline, settings: &Settings) {
        for child in pipeline.children(settings, &self.live, &self.policies, &self.failed.0) {
            self.supervisor.start(child);
        }
        self.shared.set_pipeline(Some(Arc::new(pipeline)));
    }

    async fn start_admin(&mut self, settings: &Settings) -> anyhow::Result<()> {
        if settings.admin.enabled {
            let admin = crate::admin::Server::bind(self.handle(), self.live.clone()).await?;
            tracing::info!(listen = %admin.local_addr(), "admin interface listens");
            self.supervisor.start(admin.into_child());
        }
        Ok(())
    }

    async fn start_orders(&mut self, settings: &Settings) -> anyhow::Result<()> {
        if settings.orders.enabled {
            let orders =
                crate::orders::Service::start(self.live.clone(), self.policies.stage("orders"))
                    .await?;
            tracing::info!(listen = %orders.local_addr(), "order service listens");
            self.shared.set_orders(Some(orders.handle()));
            self.supervisor.start(orders.into_child());
        }
        Ok(())
    }

    /// Runs until it is told to stop, then drains.
    pub async fn run(mut self, mut signals: Signals) -> Outcome {
        loop {
            let check = self.health.next_check();
            tokio::select! {
                event = self.supervisor.next_event() => {
                    if self.note(event) == Some(OnFailed::Shutdown) {
                        self.failed_for_good = true;
                        break;
                    }
                }
                asked = signals.next() => match asked {
                    Asked::Stop => break,
                    Asked::Reload => { self.reload("SIGHUP").await; }
                },
                () = self.reloads.changed() => { self.reload("a source of it changed").await; }
                Some(command) = self.commands.recv() => match command {
                    Command::Reload { done } => {
                        let revision = self.reload("asked for").await;
                        // Whoever asked may have gone away meanwhile; it is in the history all the same.
                        drop(done.send(revision));
                    }
                    Command::Stop => break,
                },
                Some(failed) = self.failed.1.recv() => self.fail(failed),
                () = tokio::time::sleep_until(check.into()) => self.check_health(),
            }
            self.publish();
        }
        let drained = self.drain(&mut signals).await;
        match (drained, self.failed_for_good) {
            (_, true) => Outcome::Failed,
            (false, false) => Outcome::Forced,
            (true, false) => Outcome::Clean,
        }
    }

    /// Logs an event of a child; says what a failed stage asks for.
    fn note(&mut self, event: Event) -> Option<OnFailed> {
        match event {
            Event::Finished { child } => {
                tracing::debug!(child, "child finished");
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
                Some(on_failed)
            }
        }
    }

    fn fail(&mut self, failed: FailedStage) {
        self.supervisor.fail(&failed.stage, &failed.cause);
        self.waiting.retain(|lane| !lane.is_closed());
        self.waiting.push(failed.mended);
    }

    /// Somebody changed the configuration: what was given up on may have been mended by it, so it is tried again.
    fn revive(&mut self) {
        for stage in self.supervisor.revive() {
            tracing::info!(stage = &*stage, "failed stage started anew");
            self.health.mended(&stage);
            if let Some(pipeline) = self.shared.pipeline() {
                pipeline.dead_letters.forget_flood(&stage);
            }
        }
        for lane in self.waiting.drain(..) {
            // One that was stopped meanwhile does not wait any more.
            lane.send(()).ok();
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
        for (what, stages) in STEPS {
            let began = Instant::now();
            if !self.drain_step(stages, deadline, Some(&mut *signals)).await {
                let unfinished = self
                    .supervisor
                    .unfinished(|s| belongs(s, stages))
                    .join(", ");
                let at_work: Vec<String> = self
                    .supervisor
                    .at_work()
                    .iter()
                    .map(|(child, since)| format!("{child} for {:.1} s", since.as_secs_f64()))
                    .collect();
                tracing::error!(
                    step = what,
                    unfinished,
                    at_work = at_work.join(", "),
                    "stopped before everything was drained; a restart makes good"
                );
                return false;
            }
            tracing::info!(step = what, took = ?began.elapsed(), "done");
        }
        let failed = self.supervisor.status().iter().any(|c| c.state == "failed");
        let left: usize = self
            .shared
            .pipeline()
            .map_or(0, |p| p.lanes.iter().map(|l| l.in_flight()).sum());
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

    /// Lets the children of these stages finish. `false`: the deadline passed, or a signal came meanwhile.
    async fn drain_step(
        &mut self,
        stages: &[&str],
        deadline: Instant,
        mut signals: Option<&mut Signals>,
    ) -> bool {
        self.supervisor.drain(|s| belongs(s, stages));
        while !self.supervisor.is_drained(|s| belongs(s, stages)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            let asked = async {
                match signals.as_mut() {
                    Some(signals) => while signals.next().await != Asked::Stop {},
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = self.supervisor.next_event() => {
                    self.failed_for_good |= self.note(event) == Some(OnFailed::Shutdown);
                }
                Some(failed) = self.failed.1.recv() => self.fail(failed),
                () = asked => return false,
                () = tokio::time::sleep(left) => {}
            }
        }
        true
    }
}
