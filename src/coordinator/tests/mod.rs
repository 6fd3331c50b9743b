//! The coordinator in process, under paused time: the real supervisor, lanes, ledger, policies, transforms and reloads, by a
//! real pipeline.toml, with a made-up source, brokers and plugins. No process, no broker, no database.
//!
//! A test of a reload ([`reload`]) or of supervision ([`supervision`]) is a function here:
//!
//! ```ignore
//! #[test]
//! fn a_retune_drains_nothing() {
//!     Rig::run("", async |rig| {
//!         rig.world.write(10);
//!         rig.until_seen("before").await;
//!         let revision = rig.reload("[sink.breaker]\nfailure_threshold = 9").await;
//!         assert_eq!(revision.outcome, Verdict::Applied);
//!     });
//! }
//! ```

mod brokers;
mod plugins;
mod reload;
pub(super) mod source;
mod supervision;
mod tables;
mod waits;
mod world;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, LocalSet};

use super::handle::Handle;
use super::reload::Reloads;
use super::shutdown::Signals;
use super::{Coordinator, Outcome};
use crate::config::Inputs;
use crate::config::reload::Revision;
use crate::config::settings::Nodes;
use world::{Cluster, GROUPS, MadeUp, World};

/// What every pipeline here is made of.
const BASE: &str = r#"
[pipeline]
name = "made-up"
shards = 2
[source]
type = "scylla-cdc"
nodes = ["made-up:9042"]
keyspace = "ks"
tables = ["t"]
[sink]
type = "redpanda"
brokers = ["made-up:9092"]
[orders]
enabled = false
[admin]
enabled = false
[reload]
watch = false
"#;

fn at(folder: &Path, text: &str) -> String {
    text.replace("FOLDER", &folder.display().to_string())
}

/// Of made-up time: far more than anything here takes.
const LONG: Duration = Duration::from_secs(600);

/// A running coordinator, and all that it knows of the world.
struct Rig {
    world: Arc<World>,
    handle: Handle,
    folder: tempfile::TempDir,
    running: JoinHandle<Outcome>,
}

impl Rig {
    /// Runs a test with a pipeline that has this beside [`BASE`].
    fn run(more: &str, test: impl AsyncFnOnce(&mut Rig)) {
        Self::run_with(&[], more, test);
    }

    /// … and these plugins, each a name and its words: in the file, `FOLDER/<name>.wasm`.
    fn run_with(plugins: &[(&str, &str)], more: &str, test: impl AsyncFnOnce(&mut Rig)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let mut rig = Self::start(plugins, more).await;
            test(&mut rig).await;
        });
    }

    async fn start(plugins: &[(&str, &str)], more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        for (name, words) in plugins {
            write(&format!("{name}.wasm"), words);
        }
        let inputs = Inputs {
            files: vec![
                write("base.toml", BASE),
                write("more.toml", &at(folder.path(), more)),
            ],
            ..Inputs::default()
        };
        let world = World::new();
        let reloads = match Reloads::load_first(inputs) {
            Ok(reloads) => reloads,
            Err(invalid) => panic!("{invalid}"),
        };
        let started = Coordinator::start_with(reloads, Arc::new(MadeUp(world.clone())));
        let coordinator = started.await.expect("it starts");
        let handle = coordinator.handle();
        let running = tokio::task::spawn_local(coordinator.run(Signals::none()));
        Self {
            world,
            handle,
            folder,
            running,
        }
    }

    /// Has a plugin's file say something else.
    fn rebuild(&self, plugin: &str, words: &str) {
        let path = self.folder.path().join(format!("{plugin}.wasm"));
        std::fs::write(path, words).expect("written");
    }

    /// Puts this beside [`BASE`], instead of what was there, and says what became of it.
    async fn reload(&self, more: &str) -> Revision {
        self.edit(more);
        let revision = self.handle.reload().await.expect("it runs");
        revision.expect("something changed")
    }

    /// As [`Self::reload`], without asking for it.
    fn edit(&self, more: &str) {
        let folder = self.folder.path();
        std::fs::write(folder.join("more.toml"), at(folder, more)).expect("written");
    }

    /// The cluster that [`BASE`] names.
    fn cluster(&self) -> Arc<Cluster> {
        self.cluster_at("made-up:9092")
    }

    fn cluster_at(&self, brokers: &str) -> Arc<Cluster> {
        self.world.cluster(&Nodes::At(vec![brokers.to_owned()]))
    }

    /// Waits, in made-up time, until this holds.
    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let holding = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(LONG, holding).await.is_err() {
            let children: Vec<String> = (self.handle.children().iter())
                .map(|c| format!("{} {:?} {:?}", c.name, c.state, c.last_fault))
                .collect();
            panic!("not within {LONG:?}: {what}; {children:#?}");
        }
    }

    /// … until something is in the hands of every shard's sink.
    async fn in_flight(&self) {
        let lanes = self.handle.pipeline().expect("it runs").lanes();
        let all = || lanes.iter().all(|lane| lane.in_flight().changes > 0);
        self.until("something is in flight", all).await;
    }

    /// … until readers have seen all that was written, and says that each was seen once and in order.
    async fn until_seen(&self, what: &str) {
        self.until_seen_in(&self.cluster(), what).await;
    }

    async fn until_seen_in(&self, cluster: &Cluster, what: &str) {
        let written = *self.world.written.borrow();
        let last = |group: usize| cluster.seen(group).last().copied().unwrap_or_default();
        let all = || (0..GROUPS).all(|group| last(group) >= written[group]);
        self.until(what, all).await;
        for (group, last) in written.into_iter().enumerate() {
            let wanted: Vec<i64> = (1..=last).collect();
            assert_eq!(cluster.seen(group), wanted, "{what}: group {group}");
        }
    }

    /// Stops it, and says how that went.
    async fn stop(&mut self) -> Outcome {
        self.handle.stop().await.expect("it runs");
        self.ended().await
    }

    /// Waits until it has stopped.
    async fn ended(&mut self) -> Outcome {
        (&mut self.running).await.expect("it did not panic")
    }
}
