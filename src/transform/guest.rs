//! What a transform runs on: code that is handed batches in the plugins' encoding and answers in it.
//!
//! Knows no engine: [`wasm`](super::wasm) is where there is one.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use penstock_plugin_encoding::Projection;

use super::PluginError;
use super::voice::Voice;
use crate::change::TableSchema;
use crate::config::settings::Limits;

/// A plugin's code, shared by all shards.
pub trait Code: Debug + Send + Sync {
    /// The file it was read from.
    fn path(&self) -> &Path;

    /// SHA-256 of the file: tells a rebuilt plugin from the old one.
    fn digest(&self) -> &[u8; 32];

    /// One that has taken these settings, for one shard, and speaks with this voice. Blocks.
    ///
    /// # Errors
    /// The settings are refused, or it fails on start.
    fn instance(
        &self,
        voice: &Arc<Voice>,
        settings: &BTreeMap<String, String>,
        limits: Limits,
    ) -> Result<Box<dyn Guest>, PluginError>;
}

/// A plugin at work in one shard.
pub trait Guest: Debug + Send {
    /// Whether it has processed nothing yet, so that no batch can have left anything in it.
    fn is_fresh(&self) -> bool;

    /// Bytes of its memory, which only grows.
    fn memory_in_use(&self) -> u64;

    /// What was said of a table that was opened.
    fn interest(&self, table: u32) -> Option<&Interest>;

    /// Opens a table unless it is open. After a fault it must not be used again.
    ///
    /// # Errors
    /// What went wrong in the call.
    fn open_table(&mut self, table: &TableSchema, limits: Limits) -> Result<Interest, Fault>;

    /// Processes an encoded batch. After any fault but [`Fault::Error`] it must not be used again.
    ///
    /// # Errors
    /// What went wrong in the call.
    fn process(&mut self, batch: &[u8], limits: Limits) -> Result<Vec<u8>, Fault>;
}

/// What of a table an instance wants to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Nothing: its changes pass by.
    Ignore,
    /// Every column.
    All,
    /// These columns.
    Columns(Arc<Projection>),
    /// The plugin cannot work with the table: each of its changes is refused so.
    Refused(String),
}

/// What went wrong in a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The guest trapped.
    #[error("trapped: {0}")]
    Trap(String),
    /// It took too long.
    #[error("deadline of {0:?} exceeded")]
    Deadline(std::time::Duration),
    /// It wanted too much memory.
    #[error("memory limit of {0} bytes exceeded")]
    Memory(u64),
    /// Its output is not well-formed.
    #[error("invalid output: {0}")]
    Output(String),
    /// It returned an error for the whole batch.
    #[error("{0}")]
    Error(String),
}

impl Fault {
    /// Whether the stage's breaker counts it: an error that a guest returns in good order is an answer.
    pub fn counts(&self) -> bool {
        !matches!(self, Self::Error(_))
    }
}
