//! The program, its tests and its benchmarks.

use std::process::Command;

use anyhow::Result;

use crate::cargo::{cargo, check, root, target_dir};
use crate::kafka;
use crate::plugins::ensure_target;
use crate::suite;

pub(crate) fn demo(rest: &[String]) -> Result<()> {
    penstock("demo", rest)
}

pub(crate) fn run(rest: &[String]) -> Result<()> {
    penstock("run", rest)
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

pub(crate) fn test(rest: &[String]) -> Result<()> {
    // For the test that takes a plugin as a component of its own making.
    ensure_target("wasm32-wasip2")?;
    if rest.is_empty() {
        return suite::all();
    }
    check(
        cargo()
            .args(["test", "--workspace", "--no-fail-fast"])
            .args(rest),
    )
}

/// What builds the book, in the version that was tried.
const MDBOOK: [&str; 2] = ["mdbook", "0.5.4"];

/// Builds docs/ as a book. What can be wrong with its pages tests/docs.rs finds without mdBook, which takes some minutes to build.
pub(crate) fn book(_: &[String]) -> Result<()> {
    let [name, version] = MDBOOK;
    let found = Command::new(name).arg("--version").output();
    if !found.is_ok_and(|found| found.status.success()) {
        println!("installing {name} {version}");
        check(cargo().args([
            "install",
            "--locked",
            "--quiet",
            "--debug",
            name,
            "--version",
            version,
        ]))?;
    }
    let book = target_dir()?.join("book");
    check(
        Command::new(name)
            .current_dir(root())
            .args(["build", "docs", "--dest-dir"])
            .arg(&book),
    )?;
    println!("{}", book.join("index.html").display());
    Ok(())
}

pub(crate) fn bench(rest: &[String]) -> Result<()> {
    let mut bench = cargo();
    bench.arg("bench");
    match rest.split_first() {
        // What it measures, only a real broker can say.
        Some((name, more)) if name == "delivery" && kafka::at_hand().is_ok() => {
            bench.args(["--bench", name, "--"]).args(more);
            return kafka::with_broker(|broker| check(bench.envs(broker.iter().cloned())));
        }
        Some((name, _)) if name == "extism" => return extism(),
        Some((name, more)) if name == "peers" => bench
            .args(["--bench", "end_to_end", "--", "--peers"])
            .args(more),
        Some((name, more)) => bench.args(["--bench", name, "--"]).args(more),
        None => bench.arg("--benches"),
    };
    check(&mut bench)
}

/// Our plugin host, then Extism's call of the same router. What it is built of is a workspace of its own.
fn extism() -> Result<()> {
    const WASM: &str = "wasm32-unknown-unknown";
    check(cargo().args(["bench", "--bench", "plugin"]))?;
    let target = target_dir()?.join("extism");
    let own = |args: &[&str]| {
        let mut own = cargo();
        own.current_dir(root().join("benches/extism")).args(args);
        own.arg("--target-dir").arg(&target);
        own
    };
    let guest = [
        "build",
        "--profile",
        "plugin",
        "--target",
        WASM,
        "-p",
        "extism-guest",
    ];
    check(&mut own(&guest))?;
    let guest = target.join(WASM).join("plugin/extism_guest.wasm");
    let mut host = own(&["run", "--release", "-p", "extism-host"]);
    check(host.arg("--").arg(guest))
}
