//! Puts the stock plugins into the program, as far as they are built. `cargo xtask` builds them before it builds the
//! program; `cargo build` alone needs no target for WebAssembly, and makes a program that says that it has none.

use std::fmt::Write as _;
use std::path::Path;

fn main() {
    // The folder: a file that is yet to be built would count as changed in each build.
    println!("cargo::rerun-if-changed=plugins");
    println!("cargo::rerun-if-changed=build.rs");
    let folder = |name: &str| std::env::var_os(name).unwrap_or_default();
    let plugins = Path::new(&folder("CARGO_MANIFEST_DIR")).join("plugins");
    let mut code = String::from("&[\n");
    for name in [
        "cloudevents",
        "debezium-envelope",
        "dedupe",
        "filter",
        "outbox-router",
        "project",
        "redact",
        "route",
    ] {
        let file = plugins.join(name.replace('-', "_")).with_extension("wasm");
        if file.is_file() {
            writeln!(code, "    ({name:?}, include_bytes!({file:?})),").expect("a text takes all");
        }
    }
    code.push_str("]\n");
    let out = Path::new(&folder("OUT_DIR")).join("stock.rs");
    std::fs::write(out, code).expect("the folder that Cargo gave");
}
