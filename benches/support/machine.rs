//! What a benchmark ran on and of what: the first lines of its output, so that a table can be read later.
#![allow(unreachable_pub)]

use std::process::Command;

/// The lock file says which versions were built.
const LOCK: &str = include_str!("../../Cargo.lock");

/// Prints the machine, its load, the commit and the versions of what is measured.
pub fn print() {
    println!("machine: {}", machine());
    println!("load before: {}", load());
    println!("commit: {}", commit());
    let versions = ["rdkafka", "rdkafka-sys", "scylla", "wasmtime", "tokio"];
    let versions: Vec<String> = versions
        .iter()
        .filter_map(|name| Some(format!("{name} {}", version(name)?)))
        .collect();
    println!("built of: {}\n", versions.join(", "));
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let model = read("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into());
    let memory = read("/proc/meminfo", "MemTotal")
        .and_then(|kib| kib.split(' ').next()?.parse::<u64>().ok())
        .map_or_else(String::new, |kib| format!(", {} GiB", kib >> 20));
    let system = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{cores} × {model}{memory}, {} {}",
        std::env::consts::OS,
        system.trim()
    )
}

/// The value of a line `key : value`.
fn read(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let minute = load.split(' ').next().filter(|l| !l.is_empty());
    minute.map_or_else(|| "unknown".into(), |l| format!("{l} (1 min)"))
}

fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(args)
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    match git(&["rev-parse", "--short", "HEAD"]) {
        Some(commit) => {
            let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
            let changed = changed.is_none_or(|c| !c.is_empty());
            commit + if changed { ", and changes since" } else { "" }
        }
        None => "unknown".into(),
    }
}

fn version(name: &str) -> Option<&'static str> {
    let entry = LOCK.split("[[package]]").find(|entry| {
        let first = entry.trim_start().lines().next();
        first.is_some_and(|line| line == format!("name = \"{name}\""))
    })?;
    let version = entry.lines().find_map(|l| l.strip_prefix("version = "))?;
    Some(version.trim_matches('"'))
}

/// The median, and the least and the most beside it, of numbers of which there is at least one.
pub fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    (values[values.len() / 2], values[0], values[last])
}
