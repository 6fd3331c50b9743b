//! Builds the plugins of this repository for tests, once a process and never twice at a time.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The file of a plugin, by its package's name: `outbox-router`, `test-faults`.
///
/// # Panics
/// If it cannot be built; the compiler's words are in the panic.
pub fn plugin(package: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let dir = BUILT.get_or_init(build);
    dir.join(format!("{}.wasm", package.replace('-', "_")))
}

fn build() -> PathBuf {
    // A target directory of its own: the one that runs this test may be locked by its cargo.
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("plugins");
    std::fs::create_dir_all(&target).expect("a directory for the plugins");
    let lock = std::fs::File::create(target.join("test.lock")).expect("the lock's file");
    lock.lock().expect("the lock");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--profile", "plugin"])
        .args(["--target", "wasm32-unknown-unknown"])
        .args(["-p", "outbox-router", "-p", "test-faults"])
        .arg("--target-dir")
        .arg(&target)
        .env_remove("RUSTFLAGS")
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "the plugins do not build (`rustup target add wasm32-unknown-unknown`?):\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    target.join("wasm32-unknown-unknown/plugin")
}
