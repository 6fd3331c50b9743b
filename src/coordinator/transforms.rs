//! The compiled transforms of the pipeline, and how a changed one takes over without a pause.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::plugins::Plugins;
use crate::change::TableSchema;
use crate::config::settings::{LiveSettings, Settings, Transform};
use crate::transform::{Chain, Code, PluginError, Prepared, Taps};

/// The transforms in force: what a shard's chain is made of when its child (re)starts.
pub struct Transforms {
    plugins: Arc<dyn Plugins>,
    live: LiveSettings,
    loaded: RwLock<Vec<(Transform, Arc<dyn Code>)>>,
    taps: Arc<Taps>,
}

/// A shard's place for instances that wait to take over between two batches.
#[derive(Default)]
pub struct Handover {
    waiting: Mutex<Vec<Prepared>>,
    /// The table versions that the shard's chain has seen, to warm successors with.
    tables: Mutex<Vec<Arc<TableSchema>>>,
}

impl Handover {
    /// Lets what waits take over. Called by the chain's owner, between two batches.
    pub fn take_over(&self, chain: &mut Chain) {
        for prepared in self.waiting.lock().drain(..) {
            let name = prepared.name().to_owned();
            match chain.swap(prepared) {
                Ok(()) => tracing::info!(transform = name, "transform swapped"),
                Err(error) => tracing::error!(%error, "a transform could not be swapped"),
            }
        }
        let mut tables = self.tables.lock();
        if tables.len() != chain.tables().len() {
            *tables = chain.tables().to_vec();
        }
    }

    /// Lets go of what waits: whatever chain starts here next has the newest plugins anyway.
    pub fn clear(&self) {
        self.waiting.lock().clear();
    }
}

/// Instances made for a swap, not yet in force.
pub struct Swap {
    loaded: Vec<(Transform, Arc<dyn Code>)>,
    prepared: Vec<Vec<Prepared>>,
}

impl Transforms {
    /// Loads every plugin of the settings, and has each take its own settings once: what one refuses is told here, before anything runs on it.
    pub fn load(
        plugins: &Arc<dyn Plugins>,
        live: &LiveSettings,
        settings: &Settings,
        replaces: Option<&Self>,
    ) -> Result<Self, PluginError> {
        let loaded = load(&**plugins, settings)?;
        for (transform, plugin) in &loaded {
            Prepared::new(transform, plugin.clone(), &[])?;
        }
        Ok(Self {
            plugins: plugins.clone(),
            live: live.clone(),
            loaded: RwLock::new(loaded),
            // Whoever looks goes on looking.
            taps: replaces.map_or_else(Arc::default, |r| r.taps.clone()),
        })
    }

    /// Who looks at what passes.
    pub fn taps(&self) -> &Taps {
        &self.taps
    }

    /// A chain with instances of its own, for one shard.
    pub fn chain(&self, handover: &Handover) -> Result<Chain, PluginError> {
        let loaded = self.loaded.read().clone();
        // A chain that starts anew has the newest plugins already.
        handover.clear();
        let tables = handover.tables.lock().clone();
        let prepared: Result<Vec<_>, _> = loaded
            .iter()
            .map(|(transform, plugin)| Prepared::new(transform, plugin.clone(), &tables))
            .collect();
        Ok(Chain::new(prepared?, self.live.clone()).with_taps(self.taps.clone()))
    }

    /// Loads, configures and warms what the new settings change, aside. Nothing has changed if it fails.
    pub fn prepare(&self, new: &Settings, handovers: &[&Handover]) -> Result<Swap, PluginError> {
        let old = self.loaded.read().clone();
        let loaded = load(&*self.plugins, new)?;
        let changed: Vec<&(Transform, Arc<dyn Code>)> = loaded
            .iter()
            .filter(|(transform, plugin)| {
                !old.iter().any(|(t, p)| {
                    t.name == transform.name
                        && t.settings == transform.settings
                        && p.digest() == plugin.digest()
                })
            })
            .collect();
        let mut prepared = Vec::with_capacity(handovers.len());
        for handover in handovers {
            let tables = handover.tables.lock().clone();
            let instances: Result<Vec<_>, _> = changed
                .iter()
                .map(|(t, plugin)| Prepared::new(t, plugin.clone(), &tables))
                .collect();
            prepared.push(instances?);
        }
        Ok(Swap { loaded, prepared })
    }

    /// Puts a swap in force: each shard takes it up at its next batch boundary.
    pub fn commit(&self, swap: Swap, handovers: &[&Handover]) {
        *self.loaded.write() = swap.loaded;
        for (handover, prepared) in handovers.iter().zip(swap.prepared) {
            let mut waiting = handover.waiting.lock();
            waiting.retain(|w| prepared.iter().all(|p| p.name() != w.name()));
            waiting.extend(prepared);
        }
    }
}

fn load(
    plugins: &dyn Plugins,
    settings: &Settings,
) -> Result<Vec<(Transform, Arc<dyn Code>)>, PluginError> {
    let transforms = settings.transforms.iter();
    transforms
        .map(|t| Ok((t.clone(), plugins.load(&t.plugin)?)))
        .collect()
}
