//! What tests and benchmarks of the `penstock` package share: servers, a process, batches and settings.
//!
//! It knows penstock's library and the stand-ins, and no test. A test that needs a new kind of server or load puts
//! it here once somebody else needs it too.

use std::path::{Path, PathBuf};

pub mod acks;
pub mod batches;
pub mod broker;
pub mod browser;
pub mod machine;
pub mod plugins;
pub mod process;
pub mod scylla;
pub mod secure;
pub mod settings;
pub mod tally;
pub mod transforms;

/// The program: what cargo says to the tests of its package that it is, or what lies beside this one.
///
/// # Panics
/// If it is not there: it was not built with the test.
pub fn penstock() -> PathBuf {
    let told = std::env::var_os("CARGO_BIN_EXE_penstock").map(PathBuf::from);
    let program = told.unwrap_or_else(|| profile().join("penstock"));
    assert!(program.is_file(), "no {}: not built", program.display());
    program
}

/// Where cargo puts what it builds with the profile of this test: `target/debug`.
fn profile() -> PathBuf {
    let this = std::env::current_exe().expect("the path of this test");
    let deps = this.parent().expect("a test lies in target/<profile>/deps");
    deps.parent().expect("target/<profile>").to_owned()
}

/// The root of the repository.
pub fn root() -> &'static Path {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    root.expect("crates/testkit lies in the repository")
}
