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
  new-plugin <name> start a transform of your own in plugins/<name>
  clippy            lint everything, each plugin for what it is built for
  bench [name]      the benchmarks, each a printed table
  reloads [n]       n reloads under load: from save to in force, and the dip in throughput, as a table (200)
  restarts [rounds] stop and kill a loaded pipeline many times and count what arrived (long form)
  proof [name] [n]  what the pipeline promises, shown at length; each prints what it measured:
      outage [30]       seconds that the broker is cut off, silent, or answers errors
      faults            each stage panics, fails and hangs, alone and too often
      poison [100000]   changes, one of which panics the plugin; then its replay
      terms [20]        times SIGTERM under load
      orders [10000]    orders from 50 connections
      policies [100000] cases for each property of the policies
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
        "new-plugin" => new_plugin(rest),
        "clippy" => clippy(),
        "bench" => plugins().and_then(|()| bench(rest)),
        "reloads" => plugins().and_then(|()| reloads(rest)),
        "restarts" => plugins().and_then(|()| restarts(rest)),
        "proof" => plugins().and_then(|()| proof(rest)),
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

/// The packages below `plugins/`: each folder is named as its package.
fn plugin_names() -> Result<Vec<String>> {
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
fn plugins() -> Result<()> {
    ensure_target(WASM)?;
    let mut build = cargo();
    build.args(["build", "--quiet", "--profile", "plugin", "--target", WASM]);
    let names = plugin_names()?;
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
fn new_plugin(rest: &[String]) -> Result<()> {
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
fn clippy() -> Result<()> {
    ensure_target(WASM)?;
    let names = plugin_names()?;
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
fn ensure_target(target: &str) -> Result<()> {
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
    // For the test that takes a plugin as a component of its own making.
    ensure_target("wasm32-wasip2")?;
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

/// A test in its long form.
struct Proof {
    name: &'static str,
    /// The test's file, and a part of the names of those that are run.
    test: &'static str,
    filter: &'static str,
    /// The variable that makes it long, and how long where nobody says.
    variable: &'static str,
    n: &'static str,
}

const PROOFS: &[Proof] = &[
    Proof {
        name: "outage",
        test: "faults",
        filter: "a_broker_that",
        variable: "PENSTOCK_TEST_OUTAGE_SECONDS",
        n: "30",
    },
    Proof {
        name: "faults",
        test: "supervision",
        filter: "_",
        variable: "PENSTOCK_TEST_ROUNDS",
        n: "4",
    },
    Proof {
        name: "poison",
        test: "dead_letters",
        filter: "one_change",
        variable: "PENSTOCK_TEST_CHANGES",
        n: "100000",
    },
    Proof {
        name: "terms",
        test: "supervision",
        filter: "stops_under_load",
        variable: "PENSTOCK_TEST_ROUNDS",
        n: "20",
    },
    Proof {
        name: "orders",
        test: "orders",
        filter: "every_order",
        variable: "PENSTOCK_TEST_ORDERS",
        n: "10000",
    },
    Proof {
        name: "policies",
        test: "policies",
        filter: "",
        variable: "PROPTEST_CASES",
        n: "100000",
    },
];

fn proof(rest: &[String]) -> Result<()> {
    let asked = rest.first().map(String::as_str);
    if let Some(name) = asked
        && PROOFS.iter().all(|proof| proof.name != name)
    {
        bail!("no proof `{name}`\n\n{HELP}");
    }
    for proof in PROOFS.iter().filter(|p| asked.is_none_or(|a| a == p.name)) {
        let n = rest.get(1).map_or(proof.n, String::as_str);
        println!("proof {}: {}={n}", proof.name, proof.variable);
        check(
            cargo()
                .env(proof.variable, n)
                // A panic is part of some of them; where it came from is known.
                .env("RUST_BACKTRACE", "0")
                .args(["test", "--release", "--test", proof.test, proof.filter])
                .args(["--", "--nocapture"]),
        )?;
    }
    Ok(())
}
