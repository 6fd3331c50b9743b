//! A pipeline takes the place of the one that runs: connected beside it, opened where that one was drained to.
//!
//! Until it is open nothing of it is in force, so it can be given up at every point, and what ran goes on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::child::{ChildId, Stage};
use super::handle::Phase;
use super::pipeline::{Keeps, Pipeline, Replaces};
use super::plugins::Plugins;
use super::reload::Unapplied;
use super::shutdown::Signals;
use super::{Coordinator, Drained, Stopping, names};
use crate::checkpoint::Checkpoints;
use crate::config::Settings;
use crate::config::settings::NewCluster;
use crate::policy::breaker::State as Breaker;
use crate::policy::stage::StagePolicies;
use crate::sink::redpanda::membership::Member;

/// How often it is looked whether what is in flight can be delivered.
const LOOKS: Duration = Duration::from_millis(50);

impl Coordinator {
    /// Connects a new pipeline beside the one that runs, but for what of that one it keeps, drains that one to its
    /// checkpoints and has the new one go on from there. Until then nothing is in force, so whatever fails, the old one
    /// goes on: it is still there, knows how far it is, and needs nobody's answer to be started again.
    pub(super) async fn rebuild(
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
        self.coming(&settings);
        let (connected, member) = self.unless_given_up(signals, made).await??;
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
                .unless_given_up(signals, lacks)
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
        let replaces = self.shared.pipeline();
        if let Some(runs) = replaces.as_ref().filter(|_| keeps.sink) {
            // The producers go on, so what they have in flight is not given up for it: what runs goes on until it can be
            // drained, and other changes are not held up.
            let waiting = delivers(self.policies.stage(&Stage::Sink), runs.clone());
            self.reloads
                .history
                .step("waiting until the brokers take what is in flight");
            self.unless_given_up(signals, waiting).await?;
        }
        self.shared.set_phase(Phase::Rebuilding);
        self.forget_openings();
        self.reloads.history.step("draining what runs");
        let shards = replaces.as_ref().map(|p| p.shards()).unwrap_or_default();
        // They go on in the new pipeline, or in the old one if that is gone back to; or they end once another one runs.
        if let Some(replaced) = &replaces {
            replaced.keep_producers(true);
        }
        let drained = loop {
            let timeout = self.live.borrow().shutdown.timeout;
            let deadline = Instant::now() + timeout;
            match self.drain_shards(&shards, deadline, signals).await {
                // The brokers went away meanwhile: as above.
                Drained::Late if keeps.sink && !self.is_given_up() && !self.sink_is_closed() => {}
                drained => break drained,
            }
        };
        match drained {
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
        if self.is_given_up() {
            self.go_back(replaces, false);
            return Err(Unapplied::GivenUp);
        }
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
        let opened = match self.unless_given_up(signals, opened).await {
            Ok(opened) => opened.map_err(|error| Unapplied::from(anyhow::Error::from(error))),
            Err(Unapplied::Stopping(stopping)) => return Err(stopping.into()),
            Err(given_up) => Err(given_up),
        };
        match opened {
            Ok(()) => {
                // What was retuned until now is in it.
                let new = &self.to_be_in_force();
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
            Err(unapplied) => {
                if let Unapplied::Failed(error) = &unapplied {
                    tracing::error!(error = %error, "rebuild failed, going back to what ran");
                }
                // The new ones may have fenced those that ran.
                self.go_back(replaces, !keeps.sink);
                Err(unapplied)
            }
        }
    }

    /// Has what ran go on, from where it is.
    fn go_back(&mut self, replaced: Option<Arc<Pipeline>>, fenced: bool) {
        self.reloads.history.step("going back to what ran");
        if let Some(pipeline) = replaced {
            pipeline.keep_producers(false);
            if fenced {
                self.let_go(pipeline.kept());
            }
            self.release_others(&pipeline);
            self.run_pipeline(pipeline);
        }
        self.shared.set_phase(Phase::Running);
        self.open_missing(Duration::ZERO);
    }

    fn sink_is_closed(&self) -> bool {
        let breaker = self.policies.stage(&Stage::Sink).snapshot().breaker;
        breaker == Breaker::Closed
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

/// Waits until what a pipeline has in flight can be delivered, for all that is known.
async fn delivers(sink: StagePolicies, pipeline: Arc<Pipeline>) {
    loop {
        let lanes = pipeline.lanes();
        let is_idle = lanes.iter().all(|lane| lane.in_flight().changes == 0);
        if is_idle || sink.snapshot().breaker == Breaker::Closed {
            return;
        }
        tokio::time::sleep(LOOKS).await;
    }
}
