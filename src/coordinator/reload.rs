//! Takes a changed configuration to what runs: all of it, or nothing.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::child::{ChildId, Stage};
use super::handle::Phase;
use super::pipeline::{Keeps, Pipeline, Replaces};
use super::plugins::Plugins;
use super::shutdown::Signals;
use super::{Coordinator, Drained, Stopping, blocking, names};
use crate::checkpoint::Checkpoints;
use crate::config::reload::{Changed, ReloadHistory, Revision, Verdict, diff, revision};
use crate::config::settings::{NewCluster, Nodes};
use crate::config::watch::Watch;
use crate::config::{
    Checks, Inputs, Invalid, LiveSettings, Loaded, ReloadClass, Settings, Sources,
};
use crate::embedded::StandIns;
use crate::orders::Service;
use crate::sink::redpanda::membership::Member;
use crate::transform::PluginError;

/// The configuration in force, where it came from, and what became of changes of it.
pub struct Reloads {
    inputs: Inputs,
    loaded: Loaded,
    history: ReloadHistory,
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
    ///
    /// # Errors
    /// A stop was asked for meanwhile, or called for.
    pub(super) async fn reload(
        &mut self,
        why: &str,
        signals: &mut Signals,
    ) -> Result<Option<Revision>, Stopping> {
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
                return Ok(self.reloads.history.last());
            }
        };
        self.reloads.watch_these(&loaded.sources);
        let changed = diff(&self.reloads.loaded.effective, &loaded.effective);
        if changed.is_empty() {
            self.reloads.history.unchanged(&loaded);
            self.reloads.loaded = loaded;
            self.look_at_topics_again();
            self.check_health();
            return Ok(None);
        }
        self.reloads.history.begin(&changed);
        let applied = self.apply(&loaded, &changed, signals).await;
        let took = began.elapsed();
        let revision = match applied {
            Ok(()) => {
                for c in &changed {
                    let (old, new) = (
                        c.old.as_deref().unwrap_or("-"),
                        c.new.as_deref().unwrap_or("-"),
                    );
                    tracing::info!(key = c.key, old, new, class = %c.class, "setting changed");
                }
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
        self.check_health();
        Ok(Some(revision))
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
        if let Some(refused) = changed.iter().find(|c| c.class == ReloadClass::Refused) {
            let error = anyhow::anyhow!(
                "{} cannot change while running: restart to change it",
                refused.key
            );
            return Err(error.into());
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
            let service = async {
                let service = Service::start(&new, live, policies, spans, replaces.as_ref()).await;
                service.map_err(anyhow::Error::from)
            };
            Some(match new.orders.enabled {
                true => Some(self.meanwhile(signals, service).await??),
                false => None,
            })
        } else {
            None
        };

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

    /// Connects a new pipeline beside the one that runs, but for what of that one it keeps, drains that one to its
    /// checkpoints and has the new one go on from there. Until then nothing is in force, so whatever fails, the old one
    /// goes on: it is still there, knows how far it is, and needs nobody's answer to be started again.
    async fn rebuild(
        &mut self,
        (old, new): (&Arc<Settings>, &Arc<Settings>),
        keeps: Keeps,
        signals: &mut Signals,
    ) -> Result<(), Unapplied> {
        let settings = watch::Sender::new(new.clone());
        let plugins = match self.plugins.suffices(new) {
            true => self.plugins.clone(),
            false => self.parts.plugins(new)?,
        };
        self.reloads.history.step("connecting to both sides");
        // One that shares them may be asked for some meanwhile: they are not to be taken from whoever has them then.
        let own = match self.is_shared() {
            true => Vec::new(),
            false => (0..new.pipeline.shards.get()).collect(),
        };
        let connected = Pipeline::connect(
            settings.subscribe(),
            self.policies.clone(),
            (self.parts.clone(), plugins.clone()),
            self.shared.spans().clone(),
            own,
            self.shared
                .pipeline()
                .map(|pipeline| Replaces { pipeline, keeps }),
        );
        let (shared, admin) = (self.is_shared(), self.admin_address());
        let made = async {
            let connected = connected.await?;
            connected.sink.listens_at(admin);
            let member = match shared {
                true => Some(connected.sink.member().await?),
                false => None,
            };
            anyhow::Ok((connected, member))
        };
        let (connected, member) = self.meanwhile(signals, made).await??;
        let connected = Arc::new(connected);
        let made = Made {
            connected: connected.clone(),
            keeps,
            member,
            settings,
            plugins,
        };
        let replaced = self.replace((old, new), made, signals).await;
        if replaced.is_err() {
            self.let_go(connected);
        }
        replaced
    }

    /// Has a pipeline that is connected take the place of the one that runs.
    async fn replace(
        &mut self,
        (old, new): (&Arc<Settings>, &Arc<Settings>),
        made: Made,
        signals: &mut Signals,
    ) -> Result<(), Unapplied> {
        let Made {
            connected,
            keeps,
            member,
            settings,
            plugins,
        } = made;
        let committed = |pipeline: Option<Arc<Pipeline>>| -> Checkpoints {
            let lanes = pipeline.iter().flat_map(|p| p.lanes());
            lanes.flat_map(|lane| lane.committed()).collect()
        };
        let mut carries = false;
        if old.sink.brokers != new.sink.brokers {
            let known = committed(self.shared.pipeline());
            let lacks = connected.sink.lacks(&known);
            if self
                .meanwhile(signals, lacks)
                .await?
                .map_err(anyhow::Error::from)?
            {
                match new.sink.new_cluster {
                    NewCluster::Carry => carries = true,
                    NewCluster::StartOver => tracing::warn!(
                        "the new brokers have no checkpoints of this pipeline: it starts over there"
                    ),
                    NewCluster::Refuse => {
                        let error = anyhow::anyhow!(
                            "sink.brokers: these brokers have no checkpoints of this pipeline, so it would start over \
                             there by source.start_from. Set sink.new_cluster = \"carry\" to take its checkpoints \
                             along, or \"start-over\" if that is meant"
                        );
                        return Err(error.into());
                    }
                }
            }
        }
        self.shared.set_phase(Phase::Rebuilding);
        self.forget_openings();
        self.reloads.history.step("draining what runs");
        let deadline = Instant::now() + old.shutdown.timeout;
        let replaces = self.shared.pipeline();
        let shards = replaces.as_ref().map(|p| p.shards()).unwrap_or_default();
        // They go on in the new pipeline, or in the old one if that is gone back to; or they end once another one runs.
        if let Some(replaced) = &replaces {
            replaced.keep_producers(true);
        }
        match self.drain_shards(&shards, deadline, signals).await {
            Drained::All => {}
            // What is in flight is read again from the checkpoint: late, and at worst repeated, but not lost.
            Drained::Late => {
                let of_shards = |id: &ChildId| shards.iter().any(|s| s.owns(id));
                let unfinished = names(self.supervisor.unfinished(of_shards));
                tracing::warn!(
                    unfinished,
                    "not drained in time for the rebuild, going back to the checkpoint"
                );
            }
            // The drain of the whole process goes on from here.
            Drained::Stopped => {
                if let Some(replaced) = &replaces {
                    replaced.keep_producers(false);
                    self.let_go(replaced.kept());
                }
                return Err(Stopping::Asked.into());
            }
        }
        if self.failed_for_good {
            return Err(Stopping::Failed.into());
        }
        if self.fenced {
            return Err(Stopping::Fenced.into());
        }
        self.supervisor.remove(|id| id.stage.is_of_pipeline()).await;
        // There is room for the new ones' instead.
        for lane in replaces.iter().flat_map(|p| p.lanes()) {
            lane.handover.clear();
        }
        self.health.rebuilt();
        self.reloads.history.step("reading the checkpoints");
        // One that has to join anew is given its shards anew.
        let joins = member.filter(|member| self.joins_anew(member));
        let own = match joins {
            Some(_) => Vec::new(),
            None => self.own_shards(&connected),
        };
        let carried = carries.then(|| committed(replaces.clone()));
        let opened = async {
            if let Some(checkpoints) = &carried {
                connected.sink.clone().carry(checkpoints).await?;
            }
            connected.open(own, replaces.as_deref()).await
        };
        match self.meanwhile(signals, opened).await? {
            Ok(()) => {
                self.release_others(&connected);
                if let Some(replaced) = &replaces {
                    connected.count_on_from(replaced);
                }
                self.feeds.add(settings);
                self.feeds.send(new);
                self.plugins = plugins;
                self.reloads.sender.send_replace(new.clone());
                self.run_pipeline(connected.clone());
                self.shared.set_phase(Phase::Running);
                if let Some(replaced) = replaces {
                    let open = connected.shards();
                    let goes_on =
                        |number| keeps.source && open.iter().any(|shard| shard.number == number);
                    for shard in shards.iter().filter(|s| !goes_on(s.number)) {
                        replaced.release(shard.number);
                    }
                    self.let_go((replaced.kept(), replaced));
                }
                match joins {
                    Some(member) => self.join(member),
                    None => self.open_missing(Duration::ZERO),
                }
                Ok(())
            }
            Err(error) => {
                tracing::error!(error = %error, "rebuild failed, going back to what ran");
                self.reloads.history.step("going back to what ran");
                if let Some(pipeline) = replaces {
                    pipeline.keep_producers(false);
                    if !keeps.sink {
                        // The new ones may have fenced them.
                        self.let_go(pipeline.kept());
                    }
                    self.release_others(&pipeline);
                    self.run_pipeline(pipeline);
                }
                self.shared.set_phase(Phase::Running);
                self.open_missing(Duration::ZERO);
                Err(anyhow::Error::from(error).into())
            }
        }
    }
}

/// What a rebuild makes aside of what runs.
struct Made {
    connected: Arc<Pipeline>,
    /// What it has of the one that runs.
    keeps: Keeps,
    /// Its part in the group, where instances share the shards.
    member: Option<Member>,
    /// What its parts read their settings from.
    settings: watch::Sender<Arc<Settings>>,
    plugins: Arc<dyn Plugins>,
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

/// Why a configuration is not in force.
enum Unapplied {
    /// Everything stops; it does not matter any more.
    Stopping(Stopping),
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
