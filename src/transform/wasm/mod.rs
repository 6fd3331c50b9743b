//! Transforms in WebAssembly: the only module that knows wasmtime.
//!
//! - [`describe`]: what a file and its plugin say of themselves.
//! - [`engine`]: one engine a process, its clock, and the cache of compiled code.
//! - [`plugin`]: a compiled file, shared by all shards.
//! - [`instance`]: a plugin at work in one shard: a store of its own, reused.
//! - [`limits`]: what a guest may use.
//! - [`source`]: the author's code as data, while a transform is being written.
//! - [`encoding`]: batches in, outputs out; no index of a guest is believed.
//! - [`swap`]: a configured, warmed instance, ready to take over.

mod describe;
pub(super) mod encoding;
pub mod engine;
pub mod instance;
pub mod limits;
pub mod plugin;
pub mod source;
pub mod swap;

pub use describe::{Facts, Wanted};
pub use engine::{Engine, EngineError, TICK, Ticker};
pub use plugin::{Plugin, PluginError};
pub use swap::Prepared;

/// The world of plugins/wit/penstock.wit.
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod contract {
    wasmtime::component::bindgen!({ path: "plugins/wit", world: "plugin" });
}

/// The world of what describes itself, which a plugin may leave out.
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod describing {
    wasmtime::component::bindgen!({ path: "plugins/wit", world: "describes-itself" });
}

/// The world of what is handed its code as data.
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod loading {
    wasmtime::component::bindgen!({ path: "plugins/wit", world: "loads-source" });
}
