//! A compiled plugin file, shared by all shards.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use penstock_plugin_encoding::{ENCODING_VERSION, OLDEST_VERSION};
use sha2::{Digest, Sha256};
use wasmtime::Store;
use wasmtime::component::{self, HasSelf, Linker};

use super::engine::Engine;
use super::instance::{HostState, Instance, arm, fault, shortened};
use super::loading::LoadsSource;
use super::{contract, source};
use crate::config::settings::Limits;
use crate::config::{LARGEST_PLUGIN, stock};
use crate::transform::guest::{Code, Fault, Guest};
use crate::transform::voice::Voice;

/// Why a plugin cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The file cannot be read.
    #[error("plugin {path} cannot be read: {reason}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file is something else.
    #[error("plugin {path} is not WebAssembly: {reason}", path = .path.display())]
    NotWasm {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It is WebAssembly, but not of the contract.
    #[error(
        "plugin {path} does not speak penstock:plugin@0.1.0: {reason}",
        path = .path.display()
    )]
    World {
        /// The file.
        path: PathBuf,
        /// What is missing or different.
        reason: String,
    },
    /// It speaks a version of the batches' encoding that this host does not.
    #[error(
        "plugin {path} speaks encoding {found}, this penstock {OLDEST_VERSION} to {ENCODING_VERSION}: {}",
        other_encoding(*found),
        path = .path.display()
    )]
    Encoding {
        /// The file.
        path: PathBuf,
        /// The plugin's.
        found: u16,
    },
    /// `configure` refused the settings.
    #[error("plugin {path} refused its settings: {message}", path = .path.display())]
    Configure {
        /// The file.
        path: PathBuf,
        /// What the plugin says.
        message: String,
    },
    /// It failed before its first batch.
    #[error("plugin {path} failed to start: {reason}", path = .path.display())]
    Start {
        /// The file.
        path: PathBuf,
        /// The trap, deadline or memory overrun.
        reason: String,
    },
}

/// What would make a plugin one of this contract.
pub(super) const REBUILD: &str = "`penstock plugin new --sdk-only .` in its project writes this penstock's SDK, and `penstock plugin build` builds it anew";

/// What helps a plugin of an encoding that is not ours.
fn other_encoding(found: u16) -> String {
    match found > ENCODING_VERSION {
        true => format!(
            "it is of a newer SDK, and a newer penstock would run it; {REBUILD}, as far as that SDK goes"
        ),
        false => format!("it is of an SDK that is not read any more; {REBUILD}"),
    }
}

/// Why a component with these exports cannot be linked.
fn lacking(exports: &[&str], error: &wasmtime::Error) -> String {
    let ours = |name: &&&str| name.starts_with("penstock:plugin/transform@");
    match exports.iter().find(ours) {
        Some(&OURS) => format!("{error:#}; {REBUILD}"),
        Some(other) => format!("it is of another version of the contract, {other}; {REBUILD}"),
        None => {
            let exports = match exports.is_empty() {
                true => "nothing".to_owned(),
                false => exports.join(", "),
            };
            format!(
                "it exports {exports}, and not {OURS}; `penstock plugin new` writes a project that does"
            )
        }
    }
}

/// The interface that a plugin has to have.
const OURS: &str = "penstock:plugin/transform@0.1.0";

/// What is in a plugin's file, or in the stock plugin that stands in its place.
fn content(path: &Path) -> Result<Cow<'static, [u8]>, String> {
    if let Some(name) = stock::name(path) {
        let bytes =
            stock::bytes(name).map_err(|absent| format!("{}; {}", absent.why, absent.help))?;
        return Ok(Cow::Borrowed(bytes));
    }
    let said = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => format!("{e}; {}", stock::meant(path)),
        _ => e.to_string(),
    };
    if std::fs::metadata(path).map_err(said)?.len() > LARGEST_PLUGIN {
        return Err(format!("it is larger than {LARGEST_PLUGIN} bytes"));
    }
    Ok(Cow::Owned(std::fs::read(path).map_err(said)?))
}

/// A compiled plugin.
pub struct Plugin {
    pub(super) engine: Engine,
    pub(super) pre: contract::PluginPre<HostState>,
    path: PathBuf,
    digest: [u8; 32],
    size: usize,
    /// What each instance is handed before anything else.
    source: Option<Arc<str>>,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Plugin {
    /// Reads and compiles a file: a component, or a core module with the contract embedded. Blocks, for some
    /// 100 ms if the code is not cached.
    pub fn load(engine: &Engine, path: impl Into<PathBuf>) -> Result<Arc<Self>, PluginError> {
        Self::load_once(engine, path, &mut Vec::new())
    }

    /// As [`Self::load`], but takes one of `compiled` where the file is still the one that it was compiled from,
    /// and adds to it what was not there: one compilation a file, however many transforms name it.
    pub fn load_once(
        engine: &Engine,
        path: impl Into<PathBuf>,
        compiled: &mut Vec<Arc<Self>>,
    ) -> Result<Arc<Self>, PluginError> {
        let path = path.into();
        let read_error = |reason: String| PluginError::Read {
            path: path.clone(),
            reason,
        };
        let bytes = content(&path).map_err(read_error)?;
        let digest = <[u8; 32]>::from(Sha256::digest(&bytes));
        let same = |p: &&Arc<Self>| {
            p.digest == digest
                && p.path == path
                && wasmtime::Engine::same(p.engine.wasmtime(), engine.wasmtime())
        };
        if let Some(plugin) = compiled.iter().find(same) {
            return Ok(plugin.clone());
        }
        let plugin = Self::of(engine, path, &bytes, digest)?;
        compiled.push(plugin.clone());
        Ok(plugin)
    }

    /// As [`Self::load`], of bytes that were read from `path`.
    pub fn from_bytes(
        engine: &Engine,
        path: PathBuf,
        bytes: &[u8],
    ) -> Result<Arc<Self>, PluginError> {
        Self::of(engine, path, bytes, Sha256::digest(bytes).into())
    }

    fn of(
        engine: &Engine,
        path: PathBuf,
        bytes: &[u8],
        digest: [u8; 32],
    ) -> Result<Arc<Self>, PluginError> {
        let world = |reason: String| PluginError::World {
            path: path.clone(),
            reason,
        };
        let not_wasm = |reason: String| PluginError::NotWasm {
            path: path.clone(),
            reason,
        };
        let size = bytes.len();
        let (bytes, source) = source::split(bytes);
        // Another source is no other code.
        let code = match source {
            Some(_) => Sha256::digest(bytes).into(),
            None => digest,
        };
        let component = || match bytes {
            // The magic number, then a version and a layer: 0 for a core module, 1 for a component.
            [0, b'a', b's', b'm', _, _, 0, 0, ..] => {
                // The encoder panics on a file that is not all there yet.
                wasmtime::Module::validate(engine.wasmtime(), bytes)
                    .map_err(|e| not_wasm(format!("{e:#}")))?;
                wit_component::ComponentEncoder::default()
                    .module(bytes)
                    .and_then(|encoder| encoder.validate(true).encode())
                    .map_err(|e| world(format!("{e:#}")))
            }
            [0, b'a', b's', b'm', _, _, 1, 0, ..] => Ok(bytes.to_vec()),
            [] => Err(not_wasm("it is empty".to_owned())),
            _ => Err(not_wasm("it does not begin with \"\\0asm\"".to_owned())),
        };
        let component = match engine.cached(&code) {
            Some(component) => component,
            None => engine
                .compile(&code, &component()?)
                .map_err(|e| not_wasm(format!("{e:#}")))?,
        };
        let mut linker = Linker::new(engine.wasmtime());
        contract::Plugin::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)
            .map_err(|e| world(format!("{e:#}")))?;
        // Guests of wasm32-wasip2 import WASI even where they do not use it. There is none.
        linker
            .define_unknown_imports_as_traps(&component)
            .map_err(|e| world(format!("{e:#}")))?;
        let pre = linker
            .instantiate_pre(&component)
            .and_then(contract::PluginPre::new)
            .map_err(|e| {
                let kind = component.component_type();
                let exports: Vec<_> = kind.exports(engine.wasmtime()).map(|(n, _)| n).collect();
                world(lacking(&exports, &e))
            })?;
        Ok(Arc::new(Self {
            engine: engine.clone(),
            pre,
            digest,
            size,
            path,
            source: source.map(Arc::from),
        }))
    }

    /// An instance that has taken its source, if its file holds one.
    pub(super) fn instantiate(
        &self,
        store: &mut Store<HostState>,
        limits: Limits,
    ) -> Result<component::Instance, Fault> {
        arm(store, limits);
        let instance = self.pre.instance_pre().instantiate(&mut *store);
        let instance = instance.map_err(|e| fault(store, limits, &e))?;
        if let Some(source) = &self.source {
            arm(store, limits);
            let loads = LoadsSource::new(&mut *store, &instance);
            loads
                .and_then(|guest| {
                    guest
                        .penstock_plugin_development()
                        .call_load(&mut *store, source)
                })
                .map_err(|e| fault(store, limits, &e))?
                .map_err(|message| Fault::Error(shortened(message)))?;
        }
        Ok(instance)
    }

    /// How many bytes its file has.
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// Whether it is its language's engine with a source in its file: the form for development.
    pub fn is_for_development(&self) -> bool {
        self.source.is_some()
    }
}

impl Code for Plugin {
    fn path(&self) -> &Path {
        &self.path
    }

    fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    fn instance(
        &self,
        voice: &Arc<Voice>,
        settings: &BTreeMap<String, String>,
        limits: Limits,
    ) -> Result<Box<dyn Guest>, PluginError> {
        let instance = Instance::new(self, voice.clone(), settings, limits)?;
        Ok(Box::new(instance))
    }
}
