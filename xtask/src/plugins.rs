//! The plugins: built for wasm, linted for wasm, and a new one started from the example.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::{cargo, check, root, target_dir};

const WASM: &str = "wasm32-unknown-unknown";

/// The packages below `plugins/`: each folder is named as its package.
fn names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("plugins"))? {
        let dir = entry?.path();
        if dir.join("Cargo.toml").is_file() {
            let name = dir.file_name().unwrap_or_default();
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Builds every plugin for wasm and puts it beside the config that names it.
pub(crate) fn build() -> Result<()> {
    ensure_target(WASM)?;
    let mut build = cargo();
    build.args(["build", "--quiet", "--profile", "plugin", "--target", WASM]);
    let names = names()?;
    build.args(names.iter().flat_map(|name| ["-p", name]));
    check(&mut build)?;
    let built = target_dir()?.join(WASM).join("plugin");
    for name in names {
        let name = name.replace('-', "_");
        let from = built.join(format!("{name}.wasm"));
        let to = root().join("plugins").join(format!("{name}.wasm"));
        // Only a changed file is written: a running pipeline swaps a plugin when its file changes.
        if fs::read(&from)? != fs::read(&to).unwrap_or_default() {
            let aside = to.with_extension("wasm.new");
            fs::copy(&from, &aside)?;
            fs::rename(&aside, &to)?;
        }
    }
    Ok(())
}

/// What a new plugin is a copy of.
const EXAMPLE: &str = "event-filter";

/// Starts a plugin: the example under another name, its test with it.
pub(crate) fn start(rest: &[String]) -> Result<()> {
    let [name] = rest else {
        bail!("cargo xtask new-plugin <name>");
    };
    let good = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if !good {
        bail!("{name:?}: a name of lower-case letters, digits and '-' would do, e.g. redact-email");
    }
    let plugins = root().join("plugins");
    let (from, to) = (plugins.join(EXAMPLE), plugins.join(name));
    if to.exists() {
        bail!("plugins/{name} is there already");
    }
    let words = |name: &str| -> String {
        let capital = |word: &str| {
            let mut chars = word.chars();
            let first = chars.next().map(|c| c.to_ascii_uppercase());
            first.into_iter().chain(chars).collect::<String>()
        };
        name.split('-').map(capital).collect()
    };
    fs::create_dir_all(to.join("src"))?;
    for file in ["Cargo.toml", "src/lib.rs"] {
        let text = fs::read_to_string(from.join(file))?;
        let text = text.replace(&words(EXAMPLE), &words(name));
        fs::write(to.join(file), text.replace(EXAMPLE, name))?;
    }
    let wasm = format!("plugins/{}.wasm", name.replace('-', "_"));
    let test = format!("cargo test -p {name}");
    println!(
        "plugins/{name}/src/lib.rs is yours now. Then:\n\n  \
         {test:<28} its tests, natively\n  \
         {build:<28} builds {wasm}\n\n\
         and in pipeline.toml, before the transform that routes:\n\n  \
         [[transform]]\n  name = \"{name}\"\n  plugin = \"{wasm}\"\n  settings = {{ drop = \"order.cancelled\" }}",
        build = "cargo xtask plugins",
    );
    Ok(())
}

/// Plugins are linted for wasm, everything else natively.
pub(crate) fn clippy() -> Result<()> {
    ensure_target(WASM)?;
    let names = names()?;
    let mut native = cargo();
    native.args(["clippy", "--workspace", "--all-targets"]);
    native.args(names.iter().flat_map(|name| ["--exclude", name]));
    check(native.args(["--", "-D", "warnings"]))?;
    let mut wasm = cargo();
    wasm.args(["clippy", "--profile", "plugin", "--target", WASM]);
    wasm.args(names.iter().flat_map(|name| ["-p", name]));
    check(wasm.args(["--", "-D", "warnings"]))
}

/// Installs a wasm target where rustup does not do so by itself.
pub(crate) fn ensure_target(target: &str) -> Result<()> {
    let sysroot = Command::new("rustc")
        .current_dir(root())
        .args(["--print", "sysroot"])
        .output()?;
    let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout)?.trim());
    if sysroot
        .join("lib/rustlib")
        .join(target)
        .join("lib")
        .is_dir()
    {
        return Ok(());
    }
    check(
        Command::new("rustup")
            .current_dir(root())
            .args(["target", "add", target]),
    )
    .with_context(|| {
        format!(
            "plugins need the target {target}; with a toolchain that is not rustup's, install it by hand"
        )
    })
}
