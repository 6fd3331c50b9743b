//! The engine that plugins run in, with room for every shard's instances, and the clock without which one that
//! loops is never stopped.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use crate::config::Settings;
use crate::transform::{Code, Engine, Plugin, PluginError, TICK};
use parking_lot::Mutex;

/// Where the transforms' code comes from.
pub trait Plugins: Send + Sync {
    /// The code of this file, or what was made of it before, if somebody still has that and the file is the same. Blocks.
    ///
    /// # Errors
    /// It cannot be read, or is no plugin.
    fn load(&self, path: &Path) -> Result<Arc<dyn Code>, PluginError>;

    /// Whether there is room for what these settings ask for.
    fn suffices(&self, settings: &Settings) -> bool;
}

/// An engine whose clock runs for as long as this is held.
pub struct PluginHost {
    engine: Engine,
    instances: u32,
    compiled: Mutex<Vec<Weak<Plugin>>>,
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

impl PluginHost {
    /// With room for what these settings ask for.
    ///
    /// # Errors
    /// When the system gives no engine, or no thread.
    pub fn new(settings: &Settings) -> anyhow::Result<Arc<Self>> {
        let instances = instances(settings);
        let engine = Engine::caching(instances)?;
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
            compiled: Mutex::default(),
            stop,
            clock: Some(clock),
        }))
    }
}

impl Plugins for PluginHost {
    fn load(&self, path: &Path) -> Result<Arc<dyn Code>, PluginError> {
        let known = self.compiled.lock().clone();
        let mut known: Vec<Arc<Plugin>> = known.iter().filter_map(Weak::upgrade).collect();
        let plugin = Plugin::load_once(&self.engine, path, &mut known)?;
        *self.compiled.lock() = known.iter().map(Arc::downgrade).collect();
        Ok(plugin)
    }

    fn suffices(&self, settings: &Settings) -> bool {
        instances(settings) <= self.instances
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
