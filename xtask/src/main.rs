//! The project's own commands, run as `cargo xtask <command>`: what a shell script would do, anywhere.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

const WASM: &str = "wasm32-unknown-unknown";

const HELP: &str = "\
cargo xtask <command>

  demo [options]    build everything, then run the pipeline on the embedded stand-ins and feed it orders
  run [options]     build everything, then `penstock run`
  test [options]    build everything, then run every test (options go to `cargo test`)
  plugins           build the plugins into plugins/*.wasm
  bench [name]      the benchmarks, each a printed table
  reloads [n]       n reloads under load: from save to in force, and the dip in throughput, as a table (200)
  restarts [rounds] stop and kill a loaded pipeline many times and count what arrived (long form)
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, rest)) = args.split_first() else {
        eprint!("{HELP}");
        return ExitCode::from(2);
    };
    let done = match command.as_str() {
        "demo" | "run" => plugins().and_then(|()| penstock(command, rest)),
        "test" => plugins().and_then(|()| test(rest)),
        "plugins" => plugins(),
        "bench" => plugins().and_then(|()| bench(rest)),
        "reloads" => plugins().and_then(|()| reloads(rest)),
        "restarts" => plugins().and_then(|()| restarts(rest)),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(anyhow::anyhow!("no command `{other}`\n\n{HELP}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
        .to_owned()
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

fn check(command: &mut Command) -> Result<()> {
    let shown = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("could not start {shown}"))?;
    if !status.success() {
        bail!(
            "{shown} {:?} ended with {status}",
            command
                .get_args()
                .map(OsStr::to_string_lossy)
                .collect::<Vec<_>>()
        );
    }
    Ok(())
}

/// The folder that cargo builds into, whatever the environment and the user's own configuration say.
fn target_dir() -> Result<PathBuf> {
    let output = cargo()
        .args(["metadata", "--format-version=1", "--no-deps"])
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let (_, rest) = text
        .split_once(r#""target_directory":""#)
        .context("cargo metadata names no target folder")?;
    let (dir, _) = rest
        .split_once('"')
        .context("cargo metadata is cut short")?;
    Ok(PathBuf::from(dir))
}

/// Builds every plugin for wasm and puts it beside the config that names it.
fn plugins() -> Result<()> {
    ensure_wasm_target()?;
    let mut build = cargo();
    build.args(["build", "--quiet", "--profile", "plugin", "--target", WASM]);
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("plugins"))? {
        let dir = entry?.path();
        if dir.join("Cargo.toml").is_file() {
            let name = dir
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            build.args(["-p", &name]);
            names.push(name.replace('-', "_"));
        }
    }
    check(&mut build)?;
    let built = target_dir()?.join(WASM).join("plugin");
    for name in names {
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

/// Installs the wasm target where rustup does not do so by itself.
fn ensure_wasm_target() -> Result<()> {
    let sysroot = Command::new("rustc")
        .current_dir(root())
        .args(["--print", "sysroot"])
        .output()?;
    let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout)?.trim());
    if sysroot.join("lib/rustlib").join(WASM).join("lib").is_dir() {
        return Ok(());
    }
    check(
        Command::new("rustup")
            .current_dir(root())
            .args(["target", "add", WASM]),
    )
    .context(
        "plugins need the wasm target; with a toolchain that is not rustup's, install it by hand",
    )
}

fn penstock(command: &str, rest: &[String]) -> Result<()> {
    check(cargo().args(["build", "--release", "--package", "penstock"]))?;
    let program = target_dir()?.join("release/penstock");
    let mut run = Command::new(program);
    run.current_dir(root()).arg(command).args(rest);
    exec(run)
}

/// Becomes the program, so that signals and the exit code are its own.
#[cfg(unix)]
fn exec(mut command: Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    Err(command.exec().into())
}

#[cfg(not(unix))]
fn exec(mut command: Command) -> Result<()> {
    check(&mut command)
}

fn test(rest: &[String]) -> Result<()> {
    check(
        cargo()
            .args(["test", "--workspace", "--no-fail-fast"])
            .args(rest),
    )
}

fn bench(rest: &[String]) -> Result<()> {
    let mut bench = cargo();
    bench.arg("bench");
    match rest.split_first() {
        Some((name, more)) => bench.args(["--bench", name, "--"]).args(more),
        None => bench.arg("--benches"),
    };
    check(&mut bench)
}

fn reloads(rest: &[String]) -> Result<()> {
    let reloads = rest.first().map_or("200", String::as_str);
    check(cargo().env("PENSTOCK_TEST_RELOADS", reloads).args([
        "test",
        "--release",
        "--test",
        "reload",
        "from_save_to_in_force",
        "--",
        "--nocapture",
    ]))
}

fn restarts(rest: &[String]) -> Result<()> {
    let rounds = rest.first().map_or("20", String::as_str);
    check(cargo().env("PENSTOCK_TEST_ROUNDS", rounds).args([
        "test",
        "--release",
        "--test",
        "end_to_end",
        "under_load",
        "--",
        "--nocapture",
    ]))
}
