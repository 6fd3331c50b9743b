//! Takes a changed configuration to what runs: all of it, or nothing.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Coordinator;
use super::handle::Phase;
use super::pipeline::Pipeline;
use super::shutdown::belongs;
use crate::config::reload::{Changed, ReloadHistory, Revision, Verdict, diff, revision};
use crate::config::settings::Nodes;
use crate::config::watch::Watch;
use crate::config::{Checks, Class, Inputs, Invalid, LiveSettings, Loaded, Settings, Sources};
use crate::embedded::StandIns;

/// The stages of the pipeline itself, upstream first.
const PIPELINE: [&[&str]; 3] = [&["source"], &["transform"], &["sink"]];
/// … and what goes with them when they are rebuilt.
const REBUILT: [&str; 5] = ["source", "transform", "sink", "dead_letter", "guard"];

/// The configuration in force, where it came from, and what became of changes of it.
pub struct Reloads {
    inputs: Inputs,
    loaded: Loaded,
    history: ReloadHistory,
    stand_ins: Rc<StandIns>,
    sender: watch::Sender<Arc<Settings>>,
    watch: Option<Watch>,
}

/// How often, and after which pause, an address is tried that the predecessor is about to let go of.
const ADDRESS_TRIES: u32 = 20;
const ADDRESS_PAUSE: Duration = Duration::from_millis(50);

/// A window that ends too close to now misses writes that a slower node has yet to apply.
const LEAST_SAFETY: Duration = Duration::from_millis(500);

fn warn_of_haste(settings: &Settings) {
    let safety_interval = settings.source.safety_interval;
    if settings.source.nodes != Nodes::Embedded && safety_interval < LEAST_SAFETY {
        tracing::warn!(
            ?safety_interval,
            "source.safety_interval is short for a cluster: a write that a node applies later is missed; \"1s\" would do"
        );
    }
}

fn checks() -> Checks<'static> {
    // Plugins are compiled and configured where they are put to use, aside of what runs.
    Checks {
        properties: &|p| crate::sink::redpanda::check_properties(p).map_err(|e| e.to_string()),
        ..Checks::default()
    }
}

impl Reloads {
    /// Loads the configuration that the process starts with.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load_first(inputs: Inputs) -> Result<Self, Invalid> {
        let loaded = crate::config::load(&inputs, checks())?;
        let sender = watch::Sender::new(loaded.settings.clone());
        let history = ReloadHistory::new(&loaded);
        Ok(Self {
            inputs,
            loaded,
            history,
            stand_ins: Rc::default(),
            sender,
            watch: None,
        })
    }

    /// The settings as they were loaded: stand-ins by name, not by address.
    pub fn settings(&self) -> Arc<Settings> {
        self.loaded.settings.clone()
    }

    /// Starts the stand-ins that the settings ask for; from then on their addresses take the place of their name.
    pub async fn start_stand_ins(&mut self) -> anyhow::Result<Rc<StandIns>> {
        warn_of_haste(&self.loaded.settings);
        self.stand_ins = Rc::new(StandIns::start(&self.loaded.settings).await?);
        self.sender
            .send_replace(self.resolve(&self.loaded.settings));
        Ok(self.stand_ins.clone())
    }

    fn resolve(&self, settings: &Settings) -> Arc<Settings> {
        Arc::new(self.stand_ins.resolve(settings))
    }

    /// The settings in force, now and later.
    pub fn live(&self) -> LiveSettings {
        self.sender.subscribe()
    }

    /// What became of changes.
    pub fn history(&self) -> ReloadHistory {
        self.history.clone()
    }

    /// Begins to watch the configuration's sources.
    pub(super) fn watch(&mut self) {
        self.watch = Some(Watch::new(self.live(), &self.loaded.sources));
    }

    fn watch_these(&mut self, sources: &Sources) {
        if let Some(watch) = &mut self.watch {
            watch.set_sources(sources);
        }
    }

    /// Waits until a source of the configuration has other content. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        match &mut self.watch {
            Some(watch) => {
                watch.next().await;
            }
            None => std::future::pending().await,
        }
    }
}

impl Coordinator {
    /// Looks at the configuration's sources and puts in force what changed; says what became of it.
    pub(super) async fn reload(&mut self, why: &str) -> Option<Revision> {
        let began = Instant::now();
        let loaded = match crate::config::load(&self.reloads.inputs, checks()) {
            Ok(loaded) => loaded,
            Err(invalid) => {
                let error = invalid.to_string();
                tracing::error!(
                    why,
                    error,
                    problems = invalid.problems.len(),
                    "configuration rejected, the last good one goes on"
                );
                let revision = revision(
                    Verdict::Rejected,
                    None,
                    Vec::new(),
                    Some(error),
                    began.elapsed(),
                );
                self.reloads.history.note(revision, None);
                self.reloads.watch_these(&invalid.sources);
                self.check_health();
                return self.reloads.history.last();
            }
        };
        self.reloads.watch_these(&loaded.sources);
        let changed = diff(&self.reloads.loaded.effective, &loaded.effective);
        if changed.is_empty() {
            self.reloads.history.unchanged();
            self.reloads.loaded = loaded;
            self.check_health();
            return None;
        }
        let applied = self.apply(&loaded, &changed).await;
        let took = began.elapsed();
        for c in &changed {
            let (old, new) = (
                c.old.as_deref().unwrap_or("-"),
                c.new.as_deref().unwrap_or("-"),
            );
            tracing::info!(key = c.key, old, new, class = %c.class, "setting changed");
        }
        let revision = match applied {
            Ok(()) => {
                self.revive();
                tracing::info!(
                    why,
                    keys = changed.len(),
                    ?took,
                    hash = loaded.hash,
                    "configuration applied"
                );
                let revision = revision(Verdict::Applied, Some(&loaded), changed, None, took);
                self.reloads
                    .history
                    .note(revision.clone(), Some(&loaded.effective));
                self.reloads.loaded = loaded;
                revision
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(
                    why,
                    error,
                    ?took,
                    "configuration not applied, the last good one goes on"
                );
                let revision = revision(Verdict::Failed, Some(&loaded), changed, Some(error), took);
                self.reloads.history.note(revision.clone(), None);
                revision
            }
        };
        self.check_health();
        Some(revision)
    }

    async fn apply(&mut self, loaded: &Loaded, changed: &[Changed]) -> anyhow::Result<()> {
        if let Some(refused) = changed.iter().find(|c| c.class == Class::Refused) {
            anyhow::bail!(
                "{} cannot change while running: restart to change it",
                refused.key
            );
        }
        let new = self.reloads.resolve(&loaded.settings);
        let services =
            |c: &&Changed, table: &str| c.class == Class::Rebuild && c.key.starts_with(table);
        let orders = changed.iter().any(|c| services(&c, "orders."));
        let admin = changed.iter().any(|c| services(&c, "admin."));
        let rebuild = changed.iter().any(|c| {
            c.class == Class::Rebuild
                && !c.key.starts_with("orders.")
                && !c.key.starts_with("admin.")
        });
        let old = self.live.borrow().clone();
        if rebuild {
            self.rebuild(&old, &new).await?;
        } else if changed.iter().any(|c| c.class == Class::Swap) {
            self.swap(&new)?;
            self.reloads.sender.send_replace(new.clone());
        } else {
            self.reloads.sender.send_replace(new.clone());
        }
        if admin {
            // Not stopped: who asked for this reload may be waiting for its answer there.
            self.supervisor.retire("admin");
            for left in (0..ADDRESS_TRIES).rev() {
                match self.start_admin(&new).await {
                    Err(error) if left == 0 => return Err(error),
                    // The old one may not have let go of the address yet.
                    Err(_) => tokio::time::sleep(ADDRESS_PAUSE).await,
                    Ok(()) => break,
                }
            }
        }
        if orders {
            // Whoever has sent an order gets an answer.
            let deadline = Instant::now() + old.orders.request_timeout;
            self.drain_step(&["orders"], deadline, None).await;
            self.supervisor.remove(|s| s == "orders").await;
            self.shared.set_orders(None);
            self.start_orders(&new).await?;
        }
        Ok(())
    }

    /// New plugin instances are made and warmed aside; each shard takes its own up at a batch boundary.
    fn swap(&mut self, new: &Settings) -> anyhow::Result<()> {
        let Some(pipeline) = self.shared.pipeline() else {
            return Ok(());
        };
        let handovers: Vec<_> = pipeline.lanes.iter().map(|l| &l.handover).collect();
        let swap = tokio::task::block_in_place(|| pipeline.transforms.prepare(new, &handovers))?;
        pipeline.transforms.commit(swap, &handovers);
        Ok(())
    }

    /// Drains the pipeline to its checkpoints and builds it anew; if that fails, what ran is built again.
    async fn rebuild(&mut self, old: &Arc<Settings>, new: &Arc<Settings>) -> anyhow::Result<()> {
        // What can fail without touching what runs is tried first.
        tokio::task::block_in_place(|| {
            super::transforms::Transforms::load(&self.engine, &self.live, new)
        })?;
        self.shared.set_phase(Phase::Rebuilding);
        let deadline = Instant::now() + old.shutdown.timeout;
        for stages in PIPELINE {
            if !self.drain_step(stages, deadline, None).await {
                // What is in flight is read again from the checkpoint: late, and at worst repeated, but not lost.
                tracing::warn!(stages = ?stages, "not drained in time for the rebuild, going back to the checkpoint");
            }
        }
        self.supervisor.remove(|s| belongs(s, &REBUILT)).await;
        self.shared.set_pipeline(None);
        self.health.rebuilt();
        self.reloads.sender.send_replace(new.clone());
        let built = match Pipeline::build(new, &self.live, &self.policies, &self.engine).await {
            Ok(pipeline) => {
                self.run_pipeline(pipeline, new);
                Ok(())
            }
            Err(error) => {
                tracing::error!(error = %format!("{error:#}"), "rebuild failed, going back to what ran");
                self.reloads.sender.send_replace(old.clone());
                let pipeline =
                    Pipeline::build(old, &self.live, &self.policies, &self.engine).await?;
                self.run_pipeline(pipeline, old);
                Err(error)
            }
        };
        self.shared.set_phase(Phase::Running);
        built
    }
}
