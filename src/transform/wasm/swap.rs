//! A configured, warmed instance, made aside and ready to take over between two batches.

use std::collections::BTreeMap;
use std::sync::Arc;

use penstock_plugin_encoding::RowsBuilder;

use super::instance::record_schema;
use super::plugin::PluginError;
use crate::change::TableSchema;
use crate::config::settings::{Limits, Transform};
use crate::transform::guest::{Code, Fault, Guest};
use crate::transform::voice::Voice;

/// A plugin with its settings and a first instance, for one shard.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) name: String,
    pub(crate) plugin: Arc<dyn Code>,
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) limits: Limits,
    pub(crate) instance: Box<dyn Guest>,
    pub(crate) voice: Arc<Voice>,
}

impl Prepared {
    /// Instantiates and configures the plugin, opens the tables that are known, and runs an empty batch, so
    /// that the first real one finds everything warm. Blocks for a few milliseconds; may be called anywhere.
    ///
    /// # Errors
    /// The settings are refused, or the plugin fails on start. Nothing has changed then.
    pub fn new(
        transform: &Transform,
        plugin: Arc<dyn Code>,
        tables: &[Arc<TableSchema>],
    ) -> Result<Self, PluginError> {
        let limits = transform.limits;
        let voice = Arc::new(Voice::of(stage_name(&transform.name)));
        let mut instance = plugin.instance(&voice, &transform.settings, limits)?;
        let start = |fault: Fault| PluginError::Start {
            path: plugin.path().to_owned(),
            reason: fault.to_string(),
        };
        for table in tables {
            instance.open_table(table, limits).map_err(start)?;
        }
        let output = instance.process(RowsBuilder::new().finish().as_bytes(), limits);
        output.map_err(start)?;
        Ok(Self {
            name: transform.name.clone(),
            plugin,
            settings: transform.settings.clone(),
            limits,
            instance,
            voice,
        })
    }

    /// The transform that it is for.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The name of a transform's stage.
pub(crate) fn stage_name(transform: &str) -> Arc<str> {
    format!("transform.{transform}").into()
}

/// The pseudo-table, for a stage that may see records.
pub(crate) fn records() -> Arc<TableSchema> {
    Arc::new(record_schema())
}
