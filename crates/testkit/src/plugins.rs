//! Builds the plugins of this repository for tests, once a process and never twice at a time.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Those that come with the program.
pub const STOCK: [&str; 8] = [
    "outbox-router",
    "debezium-envelope",
    "filter",
    "redact",
    "project",
    "cloudevents",
    "route",
    "dedupe",
];
/// The others: an example, and what goes wrong on purpose.
const OTHERS: [&str; 2] = ["event-filter", "test-faults"];

/// Building that takes longer is told of.
const TOLD: Duration = Duration::from_secs(5);

/// The file of a plugin, by its package's name: `outbox-router`, `test-faults`.
///
/// # Panics
/// If it cannot be built; the compiler's words are in the panic.
pub fn plugin(package: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    // Together, once.
    let all = || [&STOCK[..], &OTHERS].concat();
    let dir = BUILT.get_or_init(|| build("wasm32-unknown-unknown", &all()));
    dir.join(format!("{}.wasm", package.replace('-', "_")))
}

/// The same as a component of `wasm32-wasip2`; `None` where that target is not installed.
pub fn wasip2_plugin(package: &str) -> Option<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let libdir = Command::new(rustc)
        .current_dir(crate::root())
        .args(["--print", "target-libdir", "--target", "wasm32-wasip2"])
        .output()
        .expect("rustc runs");
    let libdir = PathBuf::from(String::from_utf8_lossy(&libdir.stdout).trim());
    let installed = libdir.is_dir();
    installed.then(|| {
        build("wasm32-wasip2", &[package]).join(format!("{}.wasm", package.replace('-', "_")))
    })
}

fn build(triple: &str, packages: &[&str]) -> PathBuf {
    // A target directory of its own: the one that runs this test may be locked by its cargo.
    let target = crate::profile().join("test-plugins");
    std::fs::create_dir_all(&target).expect("a directory for the plugins");
    let lock = std::fs::File::create(target.join("test.lock")).expect("the lock's file");
    lock.lock().expect("the lock");
    let begun = Instant::now();
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(crate::root())
        .args(["build", "--quiet", "--profile", "plugin"])
        .args(["--target", triple])
        .args(packages.iter().flat_map(|name| ["-p", *name]))
        .arg("--target-dir")
        .arg(&target)
        .env_remove("RUSTFLAGS")
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "the plugins do not build (`rustup target add {triple}`?):\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // A test that waits for it seems to hang otherwise.
    if begun.elapsed() > TOLD {
        eprintln!("building the plugins took {:.0?}", begun.elapsed());
    }
    target.join(triple).join("plugin")
}
