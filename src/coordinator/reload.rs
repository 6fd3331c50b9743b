//! Takes a changed configuration to what runs: all of it, or nothing.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::child::Stage;
use super::meanwhile::UnderWay;
use super::pipeline::Keeps;
use super::shutdown::Signals;
use super::{Coordinator, Stopping, blocking};
use crate::config::reload::{Changed, ReloadHistory, Revision, Verdict, diff, revision};
use crate::config::settings::Nodes;
use crate::config::watch::Watch;
use crate::config::{
    Checks, Inputs, Invalid, LiveSettings, Loaded, ReloadClass, Settings, Sources,
};
use crate::embedded::StandIns;
use crate::orders::Service;
use crate::transform::PluginError;

/// The configuration in force, where it came from, and what became of changes of it.
pub struct Reloads {
    inputs: Inputs,
    pub(super) loaded: Loaded,
    pub(super) history: ReloadHistory,
    stand_ins: Rc<StandIns>,
    pub(super) sender: watch::Sender<Arc<Settings>>,
    watch: Option<Watch>,
}

/// Behind a window that ends too close to now come writes that a slower node has yet to apply: late, out of their key's order.
const LEAST_SAFETY: Duration = Duration::from_millis(500);

/// Without transforms it is refused; with some it depends on what they leave.
fn warn_of_compaction(settings: &Settings) {
    if settings.sink.loses_rows() {
        tracing::warn!(
            "compacted topics keep one record a key: what no transform routes has the partition key, so of a \
             partition's rows one is left; sink.key = \"primary-key\" keeps all"
        );
    }
}

fn warn_of_haste(settings: &Settings) {
    let safety_interval = settings.source.safety_interval;
    if settings.source.nodes != Nodes::Embedded && safety_interval < LEAST_SAFETY {
        tracing::warn!(
            ?safety_interval,
            "source.safety_interval is short for a cluster: a write that a node applies later comes late, after those that \
             followed it; \"1s\" would do"
        );
    }
}

fn checks() -> Checks<'static> {
    // Plugins are compiled and configured where they are put to use, aside of what runs.
    Checks {
        properties: &|p| crate::sink::redpanda::check_properties(p).map_err(|e| e.to_string()),
        reserved: &crate::sink::redpanda::reserved_property,
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
        warn_of_compaction(&self.loaded.settings);
        self.stand_ins = Rc::new(StandIns::start(&self.loaded.settings).await?);
        self.sender
            .send_replace(self.resolve(&self.loaded.settings));
        Ok(self.stand_ins.clone())
    }

    pub(super) fn resolve(&self, settings: &Settings) -> Arc<Settings> {
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
    ///
    /// # Errors
    /// A stop was asked for meanwhile, or called for.
    pub(super) async fn reload(
        &mut self,
        why: &str,
        signals: &mut Signals,
    ) -> Result<Option<Revision>, Stopping> {
        let mut began = Instant::now();
        let mut next = self.load(why, began);
        let mut revision = match next {
            Some(_) => None,
            None => self.reloads.history.last(),
        };
        while let Some(loaded) = next {
            (revision, next) = self.take(loaded, (why, began), signals).await?;
            began = Instant::now();
        }
        for done in self.askers.drain(..) {
            // Whoever asked may have gone away meanwhile; it is in the history all the same.
            drop(done.send(revision.clone()));
        }
        Ok(revision)
    }

    /// Loads what the sources say now. `None`: it is not valid, which is noted.
    pub(super) fn load(&mut self, why: &str, began: Instant) -> Option<Loaded> {
        let invalid = match crate::config::load(&self.reloads.inputs, checks()) {
            Ok(loaded) => {
                self.reloads.watch_these(&loaded.sources);
                return Some(loaded);
            }
            Err(invalid) => invalid,
        };
        let error = invalid.to_string();
        tracing::error!(
            why,
            error,
            problems = invalid.problems.len(),
            "configuration rejected, the last good one goes on"
        );
        let took = began.elapsed();
        let revision = revision(Verdict::Rejected, None, Vec::new(), Some(error), took);
        self.reloads.history.note(revision, None);
        self.reloads.watch_these(&invalid.sources);
        self.check_health();
        None
    }

    /// Takes what was loaded to what runs; says what became of it, and what is to take its place, if something is.
    async fn take(
        &mut self,
        loaded: Loaded,
        (why, began): (&str, Instant),
        signals: &mut Signals,
    ) -> Result<(Option<Revision>, Option<Loaded>), Stopping> {
        let changed = diff(&self.reloads.loaded.effective, &loaded.effective);
        if changed.is_empty() {
            self.reloads.history.unchanged(&loaded);
            self.reloads.loaded = loaded;
            self.look_at_topics_again();
            self.check_health();
            return Ok((None, None));
        }
        self.reloads.history.begin(&changed);
        self.under_way = Some(UnderWay::new(loaded.clone()));
        let applied = self.apply(&loaded, &changed, signals).await;
        self.reloads.history.end();
        let (loaded, next, complaint) = match self.under_way.take() {
            Some(work) => work.done(),
            None => (loaded, None, None),
        };
        // Some of it may be in force by now.
        let changed = diff(&self.reloads.loaded.effective, &loaded.effective);
        let took = began.elapsed();
        let revision = match applied {
            Ok(()) => {
                tell(&changed);
                self.revive();
                self.look_at_topics_again();
                tracing::info!(
                    why,
                    keys = changed.len(),
                    ?took,
                    hash = loaded.hash,
                    "configuration applied"
                );
                let revision = revision(Verdict::Applied, Some(&loaded), changed, None, took);
                self.reloads.history.note(revision.clone(), Some(&loaded));
                self.reloads.loaded = loaded;
                revision
            }
            Err(Unapplied::Stopping(stopping)) => {
                tracing::warn!(why, ?took, "stopping, so the configuration is not applied");
                return Err(stopping);
            }
            Err(Unapplied::GivenUp) => {
                tracing::info!(
                    why,
                    ?took,
                    "configuration not applied: another one takes its place"
                );
                let revision = revision(Verdict::Superseded, Some(&loaded), changed, None, took);
                self.reloads.history.note(revision.clone(), None);
                revision
            }
            Err(Unapplied::Failed(error)) => {
                let error = format!("{error:#}");
                tracing::error!(
                    why,
                    error,
                    ?took,
                    "configuration not applied, the last good one goes on"
                );
                self.not_in_force(Verdict::Failed, &loaded, changed, error, took)
            }
            Err(Unapplied::Rejected(error)) => {
                let error = error.to_string();
                tracing::error!(
                    why,
                    error,
                    problems = 1,
                    "configuration rejected, the last good one goes on"
                );
                self.not_in_force(Verdict::Rejected, &loaded, changed, error, took)
            }
        };
        if complaint.is_some() {
            // The newest is a bad one still.
            self.reloads.history.complain(complaint);
        }
        self.check_health();
        Ok((Some(revision), next))
    }

    fn not_in_force(
        &self,
        verdict: Verdict,
        loaded: &Loaded,
        changed: Vec<Changed>,
        error: String,
        took: Duration,
    ) -> Revision {
        let revision = revision(verdict, Some(loaded), changed, Some(error), took);
        self.reloads.history.note(revision.clone(), None);
        revision
    }

    /// Makes everything that can fail aside of what runs, then puts all of it in force, or none.
    async fn apply(
        &mut self,
        loaded: &Loaded,
        changed: &[Changed],
        signals: &mut Signals,
    ) -> Result<(), Unapplied> {
        if let Some(why) = refusal(changed) {
            return Err(why.into());
        }
        let old = self.live.borrow().clone();
        let new = self.reloads.resolve(&loaded.settings);
        if self.is_shared() && old.pipeline.shards != new.pipeline.shards {
            let error = anyhow::anyhow!(
                "pipeline.shards cannot change while instances share the shards: all must agree on it. To raise it, stop \
                 all, run one with pipeline.instances = \"one\" until it has moved the checkpoints, and start all again"
            );
            return Err(error.into());
        }
        if !old.sink.loses_rows() {
            warn_of_compaction(&new);
        }

        let admin =
            if (old.admin.enabled, old.admin.listen) != (new.admin.enabled, new.admin.listen) {
                Some(match new.admin.enabled {
                    true => Some(self.bind_admin(&new).await?),
                    false => None,
                })
            } else {
                None
            };
        let orders = if self.put_off.is_none() && orders_differ(&old, &new) {
            let (replaces, live) = (self.listeners.orders.clone(), self.live.clone());
            let policies = self.policies.stage(&Stage::Orders);
            let spans = self.shared.spans().clone();
            let counted = self.orders_counted.clone();
            let service = async {
                let more = (spans, counted);
                let service = Service::start(&new, live, policies, more, replaces.as_ref()).await;
                service.map_err(anyhow::Error::from)
            };
            Some(match new.orders.enabled {
                true => Some(self.unless_given_up(signals, service).await??),
                false => None,
            })
        } else {
            None
        };

        // What was retuned while it waited is in force already.
        let new = self.to_be_in_force();
        if self.put_off.is_some() {
            self.take_up(&new)?;
            if let Some(admin) = admin {
                self.run_admin(admin);
            }
            return Ok(());
        }
        let services = |key: &str| key.starts_with("orders.") || key.starts_with("admin.");
        if changed
            .iter()
            .any(|c| c.class == ReloadClass::Rebuild && !services(&c.key))
        {
            let keeps = Keeps::after(changed);
            self.rebuild((&old, &new), keeps, signals).await?;
        } else {
            if changed.iter().any(|c| c.class == ReloadClass::Swap) {
                self.swap(&new)?;
            }
            self.feeds.send(&new);
            self.reloads.sender.send_replace(new);
        }
        if let Some(admin) = admin {
            self.run_admin(admin);
        }
        if let Some(orders) = orders {
            self.run_orders(orders);
        }
        Ok(())
    }

    /// New plugin instances are made and warmed aside; each shard takes its own up at a batch boundary.
    fn swap(&mut self, new: &Settings) -> anyhow::Result<()> {
        let Some(pipeline) = self.shared.pipeline() else {
            return Ok(());
        };
        let lanes = pipeline.lanes();
        let handovers: Vec<_> = lanes.iter().map(|l| &l.handover).collect();
        let swap = blocking(|| pipeline.transforms.prepare(new, &handovers))?;
        pipeline.transforms.commit(swap, &handovers);
        Ok(())
    }
}

/// Whether the order service has to be made anew: it connects by itself to where the source reads.
fn orders_differ(old: &Settings, new: &Settings) -> bool {
    let service = |s: &Settings| (s.orders.enabled, s.orders.listen, s.orders.keyspace.clone());
    let database = |s: &Settings| {
        let source = &s.source;
        (
            source.nodes.clone(),
            source.username.clone(),
            source.password.clone(),
            source.tls.clone(),
        )
    };
    service(old) != service(new) || (new.orders.enabled && database(old) != database(new))
}

/// Why a change can only be had by another start, if it can.
pub(super) fn refusal(changed: &[Changed]) -> Option<anyhow::Error> {
    let refused = changed.iter().find(|c| c.class == ReloadClass::Refused)?;
    Some(anyhow::anyhow!(
        "{} cannot change while running: restart to change it",
        refused.key
    ))
}

/// Says in the log what changed.
pub(super) fn tell(changed: &[Changed]) {
    for c in changed {
        let (old, new) = (
            c.old.as_deref().unwrap_or("-"),
            c.new.as_deref().unwrap_or("-"),
        );
        tracing::info!(key = c.key, old, new, class = %c.class, "setting changed");
    }
}

/// Why a configuration is not in force.
pub(super) enum Unapplied {
    /// Everything stops; it does not matter any more.
    Stopping(Stopping),
    /// Another one takes its place.
    GivenUp,
    /// What it says is at fault: a plugin cannot be used, or not with these settings, as `validate` says too.
    Rejected(PluginError),
    /// It cannot be.
    Failed(anyhow::Error),
}

impl From<Stopping> for Unapplied {
    fn from(stopping: Stopping) -> Self {
        Self::Stopping(stopping)
    }
}

impl From<anyhow::Error> for Unapplied {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast() {
            Ok(of_plugin) => Self::Rejected(of_plugin),
            Err(other) => Self::Failed(other),
        }
    }
}
