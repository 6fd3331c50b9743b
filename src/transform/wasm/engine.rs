//! One wasmtime engine a process, its clock, and the cache of compiled code.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use sha2::{Digest, Sha256};
use wasmtime::component::Component;
use wasmtime::{Config, EngineWeak, InstanceAllocationStrategy, PoolingAllocationConfig};

/// How often [`Ticker::tick`] is to be called. A deadline is kept to within two ticks.
pub const TICK: Duration = Duration::from_millis(5);

/// The engine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// wasmtime refuses this machine.
    #[error("the WebAssembly engine cannot start: {0}")]
    Start(String),
    /// The cache's directory cannot be used.
    #[error("the cache of compiled plugins {path} cannot be used: {reason}", path = .path.display())]
    Cache {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

impl EngineError {
    fn cache(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Cache {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// Compiles plugins and holds their instances' memory. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: wasmtime::Engine,
    cache: Cache,
    /// That compiled code is not kept was told.
    told: Arc<AtomicBool>,
}

/// Where compiled code is kept.
#[derive(Clone, Debug)]
enum Cache {
    /// Nowhere, and nobody asked for it.
    Unwanted,
    /// In this folder.
    At(PathBuf),
    /// Nowhere, for this reason.
    Unusable(String),
}

/// What would have compiled code kept.
const KEEP: &str = "have XDG_CACHE_HOME name a folder that this user may write to, and nobody else";

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

/// Moves the engine's clock, without which a guest that loops is never stopped. The coordinator drives it from
/// a thread of its own: a busy runtime must not stop the clock.
#[derive(Clone)]
pub struct Ticker(EngineWeak);

impl Ticker {
    /// To be called every [`TICK`]; `false` once the engine is gone.
    pub fn tick(&self) -> bool {
        self.0.upgrade().map(|e| e.increment_epoch()).is_some()
    }
}

/// Ends the clock's thread even where the work panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

impl std::fmt::Debug for Ticker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticker")
    }
}

impl Engine {
    /// An engine for up to `instances` instances at a time (shards × transforms, and twice that while swapping).
    /// With `cache`, a directory that only this user may write to, compiled code is kept there.
    pub fn new(cache: Option<&Path>, instances: u32) -> Result<Self, EngineError> {
        let cache = match cache {
            Some(path) => Cache::At(prepare_cache(path)?),
            None => Cache::Unwanted,
        };
        let mut config = Config::new();
        config.concurrency_support(false);
        config.epoch_interruption(true);
        // The guest's text is in its log; a trap's backtrace would cost a table of every instruction.
        config.wasm_backtrace_max_frames(None);
        config.generate_address_map(false);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(instances)));
        let inner = match wasmtime::Engine::new(&config) {
            Ok(inner) => inner,
            Err(error) => {
                // The pool reserves address space, which some containers ration.
                tracing::warn!(%error, "no pool for plugin instances, they are allocated one by one");
                config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
                wasmtime::Engine::new(&config).map_err(|e| EngineError::Start(format!("{e:#}")))?
            }
        };
        Ok(Self {
            inner,
            cache,
            told: Arc::default(),
        })
    }

    /// Like [`new`](Self::new), with compiled code kept as the system has it for caches, where that can be: a plugin is
    /// compiled by whoever meets it first.
    ///
    /// # Errors
    /// When this machine has no engine.
    pub fn caching(instances: u32) -> Result<Self, EngineError> {
        let reason = match usual_cache() {
            Some(cache) => match Self::new(Some(&cache), instances) {
                Ok(engine) => return Ok(engine),
                Err(error) => error.to_string(),
            },
            None => "neither XDG_CACHE_HOME nor HOME names a folder".to_owned(),
        };
        Ok(Self {
            cache: Cache::Unusable(reason),
            ..Self::new(None, instances)?
        })
    }

    /// Says that compiled code is not kept, of however many plugins.
    fn tell(&self, reason: &str) {
        if !self.told.swap(true, Relaxed) {
            tracing::warn!(
                reason,
                help = KEEP,
                "compiled plugins are not kept: each start compiles them anew"
            );
        }
    }

    /// The clock's handle. It does not keep the engine alive.
    pub fn ticker(&self) -> Ticker {
        Ticker(self.inner.weak())
    }

    /// Does work with the clock running, for commands that have no coordinator to drive it.
    pub fn with_clock<R>(&self, work: impl FnOnce() -> R) -> R {
        let done = AtomicBool::new(false);
        let ticker = self.ticker();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Relaxed) && ticker.tick() {
                    std::thread::sleep(TICK);
                }
            });
            let _stops_the_clock = Done(&done);
            work()
        })
    }

    pub(super) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.inner
    }

    /// Where the compiled code of a plugin's file with this digest is kept.
    fn path(&self, digest: &[u8; 32]) -> Option<PathBuf> {
        let mut config = DefaultHasher::new();
        self.inner.precompile_compatibility_hash().hash(&mut config);
        let name = format!("{}-{:016x}.bin", hex::encode(digest), config.finish());
        match &self.cache {
            Cache::At(cache) => Some(cache.join(name)),
            Cache::Unwanted | Cache::Unusable(_) => None,
        }
    }

    /// What was compiled of a plugin's file with this digest before, by whichever process.
    pub(super) fn cached(&self, digest: &[u8; 32]) -> Option<Component> {
        let path = self.path(digest)?;
        match deserialize(&self.inner, &read_cached(&path)?) {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cached plugin code is not usable");
                None
            }
        }
    }

    /// Compiles the component that was made of a plugin's file with this digest, and keeps it.
    pub(super) fn compile(
        &self,
        digest: &[u8; 32],
        component: &[u8],
    ) -> wasmtime::Result<Component> {
        let compiled = Component::from_binary(&self.inner, component)?;
        if let Some(path) = self.path(digest)
            && let Err(error) = write_cached(&path, &compiled.serialize()?)
        {
            let path = path.parent().unwrap_or(&path);
            self.tell(&EngineError::cache(path, &error).to_string());
        }
        match &self.cache {
            Cache::At(cache) => prune(cache),
            Cache::Unusable(reason) => self.tell(reason),
            Cache::Unwanted => {}
        }
        Ok(compiled)
    }
}

fn usual_cache() -> Option<PathBuf> {
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

/// Files that are kept: a machine runs few plugins, and whoever writes one compiles many.
const KEPT: usize = 64;

/// Removes the files that are more, the oldest first. Best effort.
fn prune(cache: &Path) {
    let Ok(entries) = std::fs::read_dir(cache) else {
        return;
    };
    let aged =
        |entry: std::fs::DirEntry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()));
    let mut files: Vec<_> = entries.flatten().filter_map(aged).collect();
    files.sort_unstable();
    for (_, path) in files.iter().take(files.len().saturating_sub(KEPT)) {
        std::fs::remove_file(path).ok();
    }
}

fn pool(instances: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    // A Rust guest is a few core instances; those of Python and JavaScript link some dozens.
    pool.total_component_instances(instances)
        .max_core_instances_per_component(64)
        // Only counted. A component of Python's has some forty.
        .total_core_instances(instances.saturating_mul(64))
        .max_memories_per_component(2)
        .total_memories(instances.saturating_mul(2))
        .max_tables_per_component(16)
        .total_tables(instances.saturating_mul(8))
        .table_elements(super::limits::MAX_TABLE_ELEMENTS)
        .max_component_instance_size(4 << 20)
        .max_core_instance_size(4 << 20)
        .linear_memory_keep_resident(256 << 10);
    pool
}

fn prepare_cache(path: &Path) -> Result<PathBuf, EngineError> {
    let bad = |reason: String| EngineError::cache(path, reason);
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|e| bad(e.to_string()))?;
    #[cfg(unix)]
    {
        // Machine code is run as it is found there, so nobody else may put it there.
        let metadata = std::fs::metadata(path).map_err(|e| bad(e.to_string()))?;
        let mode = std::os::unix::fs::MetadataExt::mode(&metadata);
        if mode & 0o022 != 0 {
            return Err(bad("others may write to it; chmod go-w it".to_owned()));
        }
    }
    Ok(path.to_owned())
}

/// A cache file is the SHA-256 of the code, then the code.
fn read_cached(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let (sum, code) = bytes.split_at_checked(32)?;
    (Sha256::digest(code)[..] == *sum).then(|| code.to_vec())
}

fn write_cached(path: &Path, code: &[u8]) -> std::io::Result<()> {
    // Two processes may write at once: each its own file, and the last rename wins.
    let temporary = path.with_extension(format!("{}.tmp", uuid::Uuid::new_v4().simple()));
    let written = std::fs::File::create_new(&temporary).and_then(|mut file| {
        file.write_all(&Sha256::digest(code))?;
        file.write_all(code)?;
        std::fs::rename(&temporary, path)
    });
    if written.is_err() {
        // Best effort: the first error is the one that is reported.
        std::fs::remove_file(&temporary).ok();
    }
    written
}

/// Loads compiled code of our own cache.
#[allow(unsafe_code)]
fn deserialize(engine: &wasmtime::Engine, compiled: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: `Component::deserialize` asks for bytes that `Component::serialize` of this wasmtime made.
    // They come from a file in our own cache, a directory that nobody else may write to, under a name that is
    // the hash of the plugin and of the engine's version and settings, and their own checksum held.
    unsafe { Component::deserialize(engine, compiled) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_cache_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.bin");
        write_cached(&path, b"code").unwrap();
        assert_eq!(read_cached(&path).as_deref(), Some(&b"code"[..]));
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(read_cached(&path), None, "cut at {cut}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_cache_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = Engine::new(Some(dir.path()), 1).unwrap_err();
        assert!(matches!(error, EngineError::Cache { .. }), "{error}");
    }

    #[test]
    fn what_is_compiled_and_not_kept_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("plugins");
        let engine = Engine::new(Some(&cache), 1).unwrap();
        // An empty component.
        let component = *b"\0asm\x0d\0\x01\0";
        let compile = |digest: u8| {
            let compiled = engine.compile(&[digest; 32], &component);
            compiled.expect("it compiles, kept or not");
            engine.told.load(Relaxed)
        };
        assert!(!compile(1), "it is kept");
        std::fs::remove_dir_all(&cache).unwrap();
        assert!(compile(2));
    }

    #[test]
    fn a_ticker_ends_with_its_engine() {
        let engine = Engine::new(None, 1).unwrap();
        let ticker = engine.ticker();
        assert!(ticker.tick());
        drop(engine);
        assert!(!ticker.tick());
    }
}
