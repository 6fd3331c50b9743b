//! Builds the plugins of this repository for tests, once a process and never twice at a time.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError};
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

/// Building that takes longer is told of, and again each time that it has taken twice as long.
const TOLD: Duration = Duration::from_secs(1);

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
    if lock.try_lock().is_err() {
        say(&format!(
            "another test builds the plugins, this one waits for {}",
            target.join("test.lock").display()
        ));
        lock.lock().expect("the lock");
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(crate::root())
        .args(["build", "--color", "never", "--profile", "plugin"])
        .args(["--target", triple])
        .args(packages.iter().flat_map(|name| ["-p", *name]))
        .arg("--target-dir")
        .arg(&target)
        .env_remove("RUSTFLAGS");
    let (status, words) = run(&mut cargo, say);
    assert!(
        status.success(),
        "the plugins do not build (`rustup target add {triple}`?):\n{words}"
    );
    target.join(triple).join("plugin")
}

/// Past what a test's output is captured with: whoever waits is to see it.
fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").ok();
}

/// Runs a program and says what it is at while it takes longer, in its own last words: a test that waits seems to hang
/// otherwise, be it for a compiler or for the lock of another cargo.
fn run(command: &mut Command, mut say: impl FnMut(&str)) -> (ExitStatus, String) {
    let begun = Instant::now();
    let spawned = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.expect("it runs");
    let stderr = child.stderr.take().expect("it is piped");
    let (heard, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(stderr).lines().map_while(Result::ok);
        lines.for_each(|line| _ = heard.send(line));
    });
    let (mut words, mut next) = (String::new(), TOLD);
    loop {
        match lines.recv_timeout(next.saturating_sub(begun.elapsed())) {
            Ok(line) => words = words + &line + "\n",
            Err(RecvTimeoutError::Timeout) => {
                let last = words.lines().last().unwrap_or("nothing said yet").trim();
                say(&format!("building the plugins, {next:.0?} by now: {last}"));
                next *= 2;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    reader.join().expect("reading ends with the program");
    (child.wait().expect("it ends"), words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_that_waits_says_for_what() {
        let folder = tempfile::tempdir().expect("a folder");
        let heard = folder.path().join("heard");
        let mut shell = Command::new("sh");
        let script = "echo '  Blocking waiting for a lock' >&2; until [ -e heard ]; do sleep 0.1; done; exit 3";
        shell.current_dir(folder.path()).args(["-c", script]);
        let (status, words) = run(&mut shell, |line| {
            if line.ends_with(" by now: Blocking waiting for a lock") {
                std::fs::write(&heard, "").expect("a file");
            }
        });
        assert_eq!(status.code(), Some(3));
        assert_eq!(words, "  Blocking waiting for a lock\n");
    }
}
