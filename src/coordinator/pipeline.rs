//! Builds what pipeline.toml describes, from validated settings: connections, plugins, and the shards that are ours.

mod before;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use self::before::Before;
use super::child::Stage;
use super::dead_letters::{self, Keeper, Requests};
use super::lane::{Counters, FailedStages, Lane};
use super::parts::Parts;
use super::plugins::Plugins;
use super::shard::Shard;
use super::supervisor::{ChildSpec, on_a_thread};
use super::transforms::Transforms;
use crate::checkpoint::log::CheckpointLog;
use crate::checkpoint::topic::Owner;
use crate::config::reload::Changed;
use crate::config::settings::{Delivery, Instances};
use crate::config::{LiveSettings, ReloadClass, Settings};
use crate::policy::stage::StagePolicies;
use crate::progress::HowFar;
use crate::sink::{Ahead, LetterBox, Letters, Settle, Sink, SinkError};
use crate::source::{Source, SourceError};
use crate::spans::Spans;

/// What the source can find out before it is needed is found out in this time, or later.
const LOOKING_AHEAD: Duration = Duration::from_secs(1);

/// The policies of every stage, made once a stage: a rebuild neither resets a breaker nor its counts.
#[derive(Clone)]
pub struct PolicyRegistry {
    live: LiveSettings,
    stages: Arc<Mutex<BTreeMap<String, (Stage, StagePolicies)>>>,
}

impl PolicyRegistry {
    /// An empty registry.
    pub fn new(live: LiveSettings) -> Self {
        Self {
            live,
            stages: Arc::default(),
        }
    }

    /// The policies of a stage.
    pub fn stage(&self, stage: &Stage) -> StagePolicies {
        let name = stage.to_string();
        let mut stages = self.stages.lock();
        let new = || StagePolicies::new(name.as_str(), self.live.clone());
        let (_, policies) = stages
            .entry(name.clone())
            .or_insert_with(|| (stage.clone(), new()));
        policies.clone()
    }

    /// Those of the stages that the settings have now, by name.
    pub fn all(&self) -> Vec<(Stage, StagePolicies)> {
        let settings = self.live.borrow().clone();
        self.stages
            .lock()
            .values()
            .filter(|(_, p)| settings.policies(p.stage()).is_some())
            .cloned()
            .collect()
    }
}

/// The sides of a pipeline that go on in the one that takes its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keeps {
    /// The reader, connected as it is.
    pub source: bool,
    /// The brokers' connections, and the shards' producers.
    pub sink: bool,
}

impl Keeps {
    /// What these changes leave as it is.
    pub fn after(changed: &[Changed]) -> Self {
        let spares = |sections: &[&str]| {
            let mut rebuilt = changed.iter().filter(|c| c.class == ReloadClass::Rebuild);
            rebuilt.all(|c| sections.iter().any(|section| c.key.starts_with(section)))
        };
        // Which generations are finished the source knows from the checkpoints, which other brokers have others of.
        let elsewhere = changed.iter().any(|c| c.key == "sink.brokers");
        let others = ["transform", "orders.", "admin."];
        Self {
            source: spares(&[&others[..], &["sink.", "dead_letter."]].concat()) && !elsewhere,
            sink: spares(&[&others[..], &["source."]].concat()),
        }
    }
}

/// A pipeline whose place another one takes.
pub struct Replaces {
    /// It runs.
    pub pipeline: Arc<Pipeline>,
    /// What of it goes on.
    pub keeps: Keeps,
}

/// What the parts of the pipeline read their settings from. A part that goes on when others are made anew has its own.
pub struct Feeds {
    newest: watch::Sender<Arc<Settings>>,
    others: Vec<watch::Sender<Arc<Settings>>>,
}

impl Feeds {
    /// Of these settings.
    pub fn new(settings: Arc<Settings>) -> Self {
        Self {
            newest: watch::Sender::new(settings),
            others: Vec::new(),
        }
    }

    /// For a pipeline that is made by the settings in force.
    pub fn subscribe(&self) -> LiveSettings {
        self.newest.subscribe()
    }

    /// … by others, that are to be in force.
    pub fn add(&mut self, feed: watch::Sender<Arc<Settings>>) {
        self.others.push(std::mem::replace(&mut self.newest, feed));
        self.others.retain(|feed| feed.receiver_count() > 0);
    }

    /// Puts settings in force.
    pub fn send(&self, settings: &Arc<Settings>) {
        for feed in self.others.iter().chain([&self.newest]) {
            feed.send_replace(settings.clone());
        }
    }
}

/// What runs is not given up for a name that may be wrong; at a start there is nothing else to do than wait.
fn all_there(source: &dyn Source, runs: &Pipeline) -> Result<(), SourceError> {
    let read = runs.source.status().tables;
    let new = |(table, _): &(Arc<str>, _)| !read.iter().any(|t| *t.table == **table);
    match source.absent().into_iter().find(new) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// A running pipeline's parts: what its shards have in common, and the shards that are open here.
pub struct Pipeline {
    /// What its parts read their settings from.
    live: LiveSettings,
    policies: PolicyRegistry,
    /// Where traces go.
    pub spans: Arc<Spans>,
    /// Kept for as long as a plugin may run.
    _plugins: Arc<dyn Plugins>,
    /// The reader's shared part.
    pub source: Arc<dyn Source>,
    /// The producers' shared part.
    pub sink: Arc<dyn Sink>,
    /// What other instances have committed, where there may be some.
    log: Option<Arc<CheckpointLog>>,
    /// Where poison goes.
    pub dead_letters: Arc<dyn LetterBox>,
    /// … and how the shards' sinks have it go there.
    letters: (Keeper, Arc<Requests>),
    /// The compiled transforms, in order.
    pub transforms: Arc<Transforms>,
    /// By number.
    shards: RwLock<BTreeMap<u32, Arc<Shard>>>,
    /// What the shards that are opened first are opened with.
    prepared: Mutex<Option<Box<dyn Ahead>>>,
    /// Of every shard that was ever open here: one that comes back goes on counting.
    counters: Mutex<BTreeMap<u32, Arc<Counters>>>,
    /// What both sides of those before this one counted.
    before: Mutex<Before>,
    /// Held by the replay under way.
    pub(super) replaying: tokio::sync::Mutex<()>,
    /// How far it is.
    pub(super) replayed: Mutex<Option<HowFar>>,
}

impl Pipeline {
    /// Connects to both sides, with a producer for each of `own`, and compiles the plugins that the pipeline that this
    /// one is to replace has not compiled; touches nothing that runs. No shard is open yet: another pipeline may still be
    /// at work on them. They go on counting from those of the one that this one replaces.
    ///
    /// # Errors
    /// What cannot be reached, found or compiled.
    pub async fn connect(
        live: LiveSettings,
        policies: PolicyRegistry,
        (parts, plugins): (Arc<dyn Parts>, Arc<dyn Plugins>),
        spans: Arc<Spans>,
        own: Vec<u32>,
        replaces: Option<Replaces>,
    ) -> anyhow::Result<Self> {
        let started = Instant::now();
        let settings = live.borrow().clone();
        let shared = settings.pipeline.instances == Instances::Shared;
        let mut transforms = {
            let (plugins, live, settings) = (plugins.clone(), live.clone(), settings.clone());
            let known = replaces.as_ref().map(|r| r.pipeline.transforms.clone());
            tokio::task::spawn_blocking(move || {
                let known = known.as_deref();
                let loaded = Transforms::load(&plugins, &live, &settings, known);
                tracing::info!(transforms = settings.transforms.len(), took = ?started.elapsed(), "transforms ready");
                loaded
            })
        };
        let runs = replaces.as_ref().map(|r| &*r.pipeline);
        let (goes_on, stays) = match &replaces {
            Some(Replaces { pipeline, keeps }) => (
                keeps.source.then(|| pipeline.source.clone()),
                keeps.sink.then(|| pipeline.sink.clone()),
            ),
            None => (None, None),
        };
        let connecting = async {
            let source = async {
                if let Some(source) = goes_on {
                    return Ok((source, None));
                }
                let policies = policies.stage(&Stage::Source);
                let source = parts.source(live.clone(), policies).await?;
                if let Some(runs) = runs {
                    all_there(&*source, runs)?;
                }
                anyhow::Ok((source.clone(), Some(source)))
            };
            let sink = async {
                if let Some(sink) = stays {
                    return Ok((sink, Vec::new()));
                }
                let policies = policies.stage(&Stage::Sink);
                let sink = parts.sink(live.clone(), policies).await?;
                anyhow::Ok((sink, own))
            };
            let ((source, new), (sink, own)) = tokio::try_join!(source, sink)?;
            let log = match &new {
                Some(source) if shared => source.checkpoint_log(),
                Some(_) => None,
                None => runs.and_then(|runs| runs.log.clone()),
            };
            // Only now: producers take their time to end, should there be no ScyllaDB.
            let ahead = async {
                if let Some(source) = new {
                    source.look_ahead(LOOKING_AHEAD).await;
                }
            };
            let preparing = sink.clone().prepare(own, runs.is_some());
            let (prepared, ()) = tokio::join!(preparing, ahead);
            let prepared = prepared?;
            anyhow::Ok((source, log, sink, prepared))
        };
        // What is wrong with a plugin is told first: it is nothing to wait for.
        let (transforms, sides) = {
            let mut connecting = std::pin::pin!(connecting);
            tokio::select! {
                transforms = &mut transforms => (transforms??, connecting.await),
                sides = &mut connecting => match (transforms.await?, sides) {
                    (Ok(transforms), sides) => (transforms, sides),
                    (Err(error), Ok((.., prepared))) => {
                        prepared.close().await;
                        return Err(error.into());
                    }
                    (Err(error), Err(_)) => return Err(error.into()),
                },
            }
        };
        let (source, log, sink, prepared) = sides?;
        let kept = replaces.as_ref().map(|r| r.keeps).unwrap_or_default();
        tracing::info!(
            keeps_source = kept.source,
            keeps_sink = kept.sink,
            took = ?started.elapsed(),
            "connected to ScyllaDB and Redpanda"
        );
        let dead_letters = match &replaces {
            Some(Replaces { pipeline, keeps }) if keeps.sink => pipeline.dead_letters.clone(),
            _ => {
                let policies = policies.stage(&Stage::DeadLetter);
                sink.clone().letters(policies)?
            }
        };
        let counters = runs.map(|p| p.counters.lock().clone());
        Ok(Self {
            live,
            policies,
            spans,
            _plugins: plugins,
            source,
            sink,
            log,
            dead_letters,
            letters: dead_letters::channel(),
            transforms: Arc::new(transforms),
            shards: RwLock::default(),
            prepared: Mutex::new(Some(prepared)),
            counters: Mutex::new(counters.unwrap_or_default()),
            before: Mutex::default(),
            replaying: tokio::sync::Mutex::default(),
            replayed: Mutex::default(),
        })
    }

    /// Opens these shards, side by side: all of them, or none. Starts nothing. Those of the pipeline that this one
    /// replaces whose producers go on here, drained, are where that one's lanes are: nobody is asked.
    ///
    /// # Errors
    /// What the brokers have against it.
    pub async fn open(
        &self,
        numbers: impl IntoIterator<Item = u32>,
        replaces: Option<&Self>,
    ) -> Result<(), SinkError> {
        let started = Instant::now();
        let goes_on = replaces.filter(|runs| Arc::ptr_eq(&runs.sink, &self.sink));
        let rests = |number: u32| {
            let shards = goes_on?.shards.read();
            shards
                .get(&number)
                .map(|s| s.lane.clone())
                .filter(|l| l.keeps())
        };
        let (rest, missing): (Vec<_>, Vec<_>) = numbers
            .into_iter()
            .map(|number| (number, rests(number)))
            .partition(|(_, lane)| lane.is_some());
        let missing: Vec<u32> = missing.into_iter().map(|(number, _)| number).collect();
        let prepared = self.prepared.lock().take();
        let opening = match prepared {
            Some(prepared) => prepared,
            None => self.sink.clone().prepare(Vec::new(), false).await?,
        };
        let opened = opening.open(missing).await?;
        // From here on nothing fails, so no producer is taken in vain.
        let mut shards = self.shards.write();
        let (read, kept) = (opened.len(), rest.len());
        for shard in opened {
            shards.insert(shard.shard, Arc::new(Shard::opened(self, shard)));
        }
        for (number, lane) in rest {
            let Some(lane) = lane else { continue };
            let shard = Shard::new(self, number, lane.committed(), lane.kept());
            shards.insert(number, Arc::new(shard));
        }
        drop(shards);
        tracing::info!(read, kept, took = ?started.elapsed(), "shards opened");
        Ok(())
    }

    /// Whether the sinks of its shards keep their producers when they have drained, for whoever goes on.
    pub fn keep_producers(&self, keeps: bool) {
        self.lanes()
            .iter()
            .for_each(|lane| lane.keep_producer(keeps));
    }

    /// The producers that were kept, to be let go of.
    pub fn kept(&self) -> Vec<Box<dyn Settle>> {
        self.lanes().iter().filter_map(|lane| lane.kept()).collect()
    }

    /// Counts a shard that was opened by itself among those that are open here.
    pub fn adopt(&self, shard: Arc<Shard>) {
        self.shards.write().insert(shard.number, shard);
    }

    /// Gives a shard up whose children have ended.
    pub fn release(&self, number: u32) {
        if let Some(shard) = self.shards.write().remove(&number) {
            shard.release(self);
        }
    }

    /// The shards that are open here, by number.
    pub fn shards(&self) -> Vec<Arc<Shard>> {
        self.shards.read().values().cloned().collect()
    }

    /// … and their lanes.
    pub fn lanes(&self) -> Vec<Arc<Lane>> {
        self.shards
            .read()
            .values()
            .map(|s| s.lane.clone())
            .collect()
    }

    /// Who has which shard, by number, as far as it is known here.
    pub fn owners(&self) -> BTreeMap<u32, Owner> {
        let told = self.log.as_ref().map(|log| log.owners());
        let told = told.into_iter().flatten();
        let mut owners: BTreeMap<u32, Owner> = told
            .filter_map(|(partition, owner)| Some((u32::try_from(partition).ok()?, owner)))
            .collect();
        let ours = self.shards.read();
        owners.extend(ours.keys().map(|shard| (*shard, self.sink.owner())));
        owners
    }

    /// The numbers of all shards that there are, here or elsewhere.
    pub fn numbers(&self) -> std::ops::Range<u32> {
        0..self.settings().pipeline.shards.get()
    }

    pub(super) fn live(&self) -> LiveSettings {
        self.live.clone()
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.live.borrow().clone()
    }

    pub(super) fn policies(&self, stage: &Stage) -> StagePolicies {
        self.policies.stage(stage)
    }

    pub(super) fn keeper(&self) -> Keeper {
        self.letters.0.clone()
    }

    pub(super) fn counters(&self, shard: u32) -> Arc<Counters> {
        self.counters.lock().entry(shard).or_default().clone()
    }

    /// What a transform that put a change off waits for, in any shard.
    pub(super) fn transform_waits(&self, stage: &str) -> Option<Arc<str>> {
        let counters = self.counters.lock();
        counters.values().find_map(|c| c.works.waiting(stage))
    }

    /// The table whose changes a transform refuses, all of them, in any shard.
    pub(super) fn transform_refuses(&self, stage: &str) -> Option<Arc<str>> {
        let counters = self.counters.lock();
        counters.values().find_map(|c| c.works.refusing(stage))
    }

    /// The children that serve all shards, then those of the shards that are open. Made again after they have
    /// ended, they go on where those left off.
    pub fn children(&self, failed: &FailedStages) -> Vec<ChildSpec> {
        let shards = self.shards();
        let of_shards = shards.iter().flat_map(|s| s.children(self, failed));
        [self.guard(), self.letters(), self.survey()]
            .into_iter()
            .chain(self.checkpoints())
            .chain(of_shards)
            .collect()
    }

    fn checkpoints(&self) -> Option<ChildSpec> {
        let (log, sink) = (self.log.clone()?, self.sink.clone());
        Some(ChildSpec::new(Stage::Checkpoints, move |scope| {
            let (log, sink) = (log.clone(), sink.clone());
            on_a_thread(scope, move |stop| sink.follow_checkpoints(&log, stop))
        }))
    }

    fn guard(&self) -> ChildSpec {
        let sink = self.sink.clone();
        ChildSpec::new(Stage::Guard, move |scope| {
            let sink = sink.clone();
            async move {
                tokio::select! {
                    () = sink.guard() => Ok(()),
                    () = scope.drain.cancelled() => Ok(()),
                }
            }
        })
    }

    fn letters(&self) -> ChildSpec {
        let requests = self.letters.1.clone();
        let letters: Arc<dyn Letters> = self.dead_letters.clone();
        let atomic = self.settings().pipeline.delivery == Delivery::ExactlyOnce;
        ChildSpec::new(Stage::DeadLetter, move |scope| {
            dead_letters::run(requests.clone(), letters.clone(), atomic, scope)
        })
    }

    fn survey(&self) -> ChildSpec {
        let source = self.source.clone();
        ChildSpec::new(Stage::Source, move |scope| {
            let source = source.clone();
            async move {
                tokio::select! {
                    ended = source.survey() => match ended? {},
                    () = scope.drain.cancelled() => Ok(()),
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Policies;

    fn keeps(changes: &[(&str, ReloadClass)]) -> (bool, bool) {
        let changed: Vec<Changed> = changes
            .iter()
            .map(|(key, class)| Changed {
                key: (*key).to_owned(),
                old: None,
                new: None,
                class: *class,
            })
            .collect();
        let Keeps { source, sink } = Keeps::after(&changed);
        (source, sink)
    }

    #[test]
    fn only_what_differs_is_made_anew() {
        use ReloadClass::{Live, Rebuild, Swap};
        let both = (true, true);
        assert_eq!(keeps(&[("transform", Rebuild)]), both);
        let renamed = [("transform", Rebuild), ("transform.a.plugin", Rebuild)];
        assert_eq!(keeps(&renamed), both);
        assert_eq!(keeps(&[("source.tables", Rebuild)]), (false, true));
        assert_eq!(keeps(&[("sink.properties", Rebuild)]), (true, false));
        assert_eq!(keeps(&[("dead_letter.topic", Rebuild)]), (true, false));
        // Other brokers have other checkpoints, and what is placed by shards is placed anew.
        for key in ["sink.brokers", "pipeline.shards", "pipeline.delivery"] {
            assert_eq!(keeps(&[(key, Rebuild)]), (false, false), "{key}");
        }
        // What a part takes while it runs is no reason to make it anew.
        let retuned = [
            ("transform", Rebuild),
            ("source.window", Live),
            ("sink.breaker.open_for", Live),
            ("transform.a.settings", Swap),
        ];
        assert_eq!(keeps(&retuned), both);
        let several = [("source.tables", Rebuild), ("sink.properties", Rebuild)];
        assert_eq!(keeps(&several), (false, false));
        assert_eq!(keeps(&[("what.will.come", Rebuild)]), (false, false));
    }

    #[test]
    fn a_part_that_goes_on_is_told_what_is_in_force() {
        let settings = |shards: u32| {
            let mut settings = Settings::for_tests(Policies::default());
            settings.pipeline.shards = shards.try_into().unwrap();
            Arc::new(settings)
        };
        let seen = |part: &LiveSettings| part.borrow().pipeline.shards.get();
        let mut feeds = Feeds::new(settings(1));
        let (goes_on, ends) = (feeds.subscribe(), feeds.subscribe());
        let made = watch::Sender::new(settings(2));
        let new = made.subscribe();
        // Until it is in force, only what is made by it knows.
        assert_eq!((seen(&goes_on), seen(&new)), (1, 2));
        feeds.add(made);
        feeds.send(&settings(2));
        assert_eq!((seen(&goes_on), seen(&new)), (2, 2));
        drop((ends, new));
        feeds.add(watch::Sender::new(settings(3)));
        feeds.send(&settings(4));
        assert_eq!(seen(&goes_on), 4);
        assert_eq!(
            feeds.others.len(),
            1,
            "those that nobody reads from are gone"
        );
    }
}
