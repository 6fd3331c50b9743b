//! The engine that plugins run in, with room for every shard's instances, and the clock without which one that
//! loops is never stopped.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use crate::config::Settings;
use crate::transform::{Engine, TICK};

/// An engine whose clock runs for as long as this is held.
pub struct PluginHost {
    engine: Engine,
    instances: u32,
    stop: Arc<AtomicBool>,
    clock: Option<JoinHandle<()>>,
}

/// Of every transform in every shard the instance that runs, the one that waits to take over at the next batch, which on
/// an idle table may be long in coming, and the one that is made to take over instead of that; and one that only tries
/// what a file says.
fn instances(settings: &Settings) -> u32 {
    let transforms = u32::try_from(settings.transforms.len()).unwrap_or(u32::MAX);
    let shards = settings.pipeline.shards.get();
    let each = shards.saturating_mul(transforms);
    each.saturating_mul(3).saturating_add(1)
}

/// Where compiled plugins are kept from one start to the next, as the system has it for caches: without it a start
/// takes some 100 ms longer.
fn cache() -> Option<PathBuf> {
    let dir = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let caches = dir("XDG_CACHE_HOME").or_else(|| Some(dir("HOME")?.join(".cache")))?;
    caches
        .is_absolute()
        .then(|| caches.join("penstock/plugins"))
}

impl PluginHost {
    /// With room for what these settings ask for.
    ///
    /// # Errors
    /// When the system gives no engine, or no thread.
    pub fn new(settings: &Settings) -> anyhow::Result<Arc<Self>> {
        let instances = instances(settings);
        let engine = match cache() {
            Some(cache) => Engine::new(Some(&cache), instances).or_else(|error| {
                tracing::debug!(%error, "plugins are compiled at each start");
                Engine::new(None, instances)
            })?,
            None => Engine::new(None, instances)?,
        };
        let (ticker, stop) = (engine.ticker(), Arc::<AtomicBool>::default());
        // A thread of its own: a busy runtime must not stop the clock.
        let clock = std::thread::Builder::new().name("plugin-clock".into());
        let stopped = stop.clone();
        let clock = clock.spawn(move || {
            while !stopped.load(Relaxed) && ticker.tick() {
                std::thread::sleep(TICK);
            }
        })?;
        Ok(Arc::new(Self {
            engine,
            instances,
            stop,
            clock: Some(clock),
        }))
    }

    /// Whether it has room for what these settings ask for.
    pub fn suffices(&self, settings: &Settings) -> bool {
        instances(settings) <= self.instances
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }
}

impl Drop for PluginHost {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(clock) = self.clock.take()
            && clock.join().is_err()
        {
            tracing::error!("the plugins' clock panicked");
        }
    }
}
