//! Every test of the workspace: built once, then several test programs at a time, since most of them wait.
//!
//! `cargo test` runs one program after the other, and two thirds of that time no processor does anything.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cargo::{cargo, check};

/// What takes longest starts first, so that nothing long is left for the end. Only the order hangs on it.
const LONG: [&str; 10] = [
    "reload",
    "source",
    "workbench",
    "admin",
    "sharing",
    "faults",
    "topics",
    "database",
    "page",
    "checkpoints",
];

/// A program that was built of tests.
struct Tests {
    /// As cargo names it: the target's source file below its package.
    name: String,
    target: String,
    program: PathBuf,
    /// Where cargo would start it.
    package: PathBuf,
}

/// What is read of cargo's messages about what it built.
#[derive(serde::Deserialize)]
struct Artifact {
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(serde::Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
    src_path: PathBuf,
}

#[derive(serde::Deserialize)]
struct Profile {
    test: bool,
}

/// Builds and runs all, and says at the end what failed.
pub(crate) fn all() -> Result<()> {
    let (mut tests, binaries) = build()?;
    let rank = |tests: &Tests| LONG.iter().position(|name| *name == tests.target);
    tests.sort_by_key(|tests| rank(tests).unwrap_or(LONG.len()));
    let lanes = std::thread::available_parallelism().map_or(2, |n| n.get().max(2));
    let failed = Mutex::new(Vec::new());
    let waiting = Mutex::new(tests.iter());
    let outcome: Result<()> = std::thread::scope(|scope| {
        let lane = || -> Result<()> {
            loop {
                let next = waiting.lock().expect("no lane panics").next();
                let Some(tests) = next else {
                    return Ok(());
                };
                if !tests.run(&binaries)? {
                    let mut failed = failed.lock().expect("no lane panics");
                    failed.push(tests.name.clone());
                }
            }
        };
        let lanes: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        lanes
            .into_iter()
            .try_for_each(|lane| lane.join().expect("no lane panics"))
    });
    outcome?;
    let documented = check(cargo().args(["test", "--workspace", "--doc", "--no-fail-fast"]));
    let mut failed = failed.into_inner().expect("no lane panics");
    if documented.is_err() {
        failed.push("documentation".into());
    }
    if !failed.is_empty() {
        bail!("tests failed in: {}", failed.join(", "));
    }
    Ok(())
}

/// Every program of tests, and the programs that they start, by name.
fn build() -> Result<(Vec<Tests>, Vec<(String, PathBuf)>)> {
    let mut build = cargo();
    build.args(["test", "--workspace", "--no-run"]);
    build.arg("--message-format=json-render-diagnostics");
    let mut building = build
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo could not be started")?;
    let output = building.stdout.take().context("a pipe was asked for")?;
    let (mut tests, mut binaries) = (Vec::new(), Vec::new());
    for line in BufReader::new(output).lines() {
        // Messages of other kinds have none of this.
        let Ok(artifact) = serde_json::from_str::<Artifact>(&line?) else {
            continue;
        };
        let (Some(target), Some(profile)) = (artifact.target, artifact.profile) else {
            continue;
        };
        let (Some(program), Some(manifest)) = (artifact.executable, artifact.manifest_path) else {
            continue;
        };
        let package = manifest.parent().unwrap_or(Path::new(".")).to_owned();
        if profile.test {
            let file = target.src_path.strip_prefix(&package);
            let file = file.unwrap_or(&target.src_path).display();
            let of = package.file_name().unwrap_or_default().to_string_lossy();
            tests.push(Tests {
                name: format!("{of}: {file}"),
                target: target.name,
                program,
                package,
            });
        } else if target.kind.iter().any(|kind| kind == "bin") {
            binaries.push((format!("CARGO_BIN_EXE_{}", target.name), program));
        }
    }
    let status = building.wait()?;
    if !status.success() {
        bail!("the tests do not build");
    }
    Ok((tests, binaries))
}

impl Tests {
    /// Runs it to its end, prints what it wrote as one piece, and says whether all passed.
    fn run(&self, binaries: &[(String, PathBuf)]) -> Result<bool> {
        println!("     Started {}", self.name);
        let started = Instant::now();
        // A file, because a pipe that a child of a test keeps open would be waited for.
        let mut output = tempfile::tempfile()?;
        let status = Command::new(&self.program)
            .current_dir(&self.package)
            .env("CARGO_MANIFEST_DIR", &self.package)
            .envs(binaries.iter().map(|(name, path)| (name, path)))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?)
            .status()
            .with_context(|| format!("could not start {}", self.program.display()))?;
        let took = Duration::from_millis(u64::try_from(started.elapsed().as_millis())?);
        let mut text = Vec::new();
        output.seek(SeekFrom::Start(0))?;
        output.read_to_end(&mut text)?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "     Running {} ({took:?})", self.name)?;
        out.write_all(&text)?;
        if !status.success() {
            writeln!(out, "error: {} ended with {status}", self.name)?;
        }
        Ok(status.success())
    }
}
