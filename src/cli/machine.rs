//! What this machine gives the process, and what a pipeline may need of it: open files and memory.

use crate::config::Settings;
use crate::finding::Finding;

/// Threads, files of the program itself, and what else is open before anything is connected.
const FILES_AT_REST: u64 = 64;
/// Connections to the two HTTP servers, see docs/probes.md.
const HTTP_FILES: u64 = 2 * (256 + 32);
/// A client of librdkafka has a connection to each of a few brokers, and a pair of pipes.
const FILES_A_CLIENT: u64 = 8;
/// What the process takes at rest, and what the sources' pages and the late writes' memory take at most.
const MEMORY_AT_REST: u64 = (64 + 64 + 64) << 20;
/// A change of usual size, decoded and rendered.
const BYTES_A_CHANGE: u64 = 4 << 10;

/// Raises the soft limit of open files to the hard one, as it is 1,024 on most machines for the sake of programs that
/// use `select(2)`, of which this is none; says what is still too low.
pub(super) fn open_files(settings: &Settings) -> Option<Finding> {
    let shards = u64::from(settings.pipeline.shards.get());
    let files = FILES_AT_REST + HTTP_FILES + (shards + 4) * FILES_A_CLIENT;
    let limit = rlimit::increase_nofile_limit(rlimit::INFINITY).ok()?;
    (limit < files).then(|| {
        Finding::warning(
            "files",
            "open files",
            format!("this process may have {limit} open, and {files} may be needed"),
            format!(
                "ulimit -Hn {}, or LimitNOFILE= of the unit",
                files.next_power_of_two()
            ),
        )
    })
}

/// Says whether the control group's limit is below what may be needed.
pub(super) fn memory(settings: &Settings) -> Option<Finding> {
    below(memory_limit()?, settings)
}

/// … whether this limit, in bytes, is.
fn below(limit: u64, settings: &Settings) -> Option<Finding> {
    let shards = u64::from(settings.pipeline.shards.get());
    let plugins: u64 = settings.transforms.iter().map(|t| t.limits.memory).sum();
    let in_flight = u64::from(settings.pipeline.max_in_flight.get()) * BYTES_A_CHANGE;
    let memory = MEMORY_AT_REST + shards * (plugins + in_flight);
    let mib = |bytes: u64| bytes >> 20;
    (limit < memory).then(|| {
        Finding::warning(
            "memory",
            "memory limit",
            format!(
                "it is {} MiB, and {shards} shards may take {} MiB: max_in_flight changes and the memory of the \
                 plugins each",
                mib(limit),
                mib(memory)
            ),
            "raise the limit, or lower pipeline.max_in_flight, pipeline.shards or transform limits.memory",
        )
    })
}

/// Of the control group, where there is one.
fn memory_limit() -> Option<u64> {
    let files = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let read = |file: &&str| std::fs::read_to_string(file).ok()?.trim().parse().ok();
    // Without a limit the second says one that no machine has.
    files
        .iter()
        .find_map(read)
        .filter(|limit: &u64| *limit < 1 << 50)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Checks, parse};

    #[test]
    fn a_limit_of_memory_is_held_against_what_may_be_needed() {
        let text = crate::cli::init::template();
        let loaded = parse(
            std::path::Path::new("pipeline.toml"),
            &text,
            Checks::default(),
        );
        let settings = loaded
            .unwrap_or_else(|e| panic!("{}", e.render(false)))
            .settings;
        assert_eq!(below(8 << 30, &settings), None);
        let found = below(64 << 20, &settings).expect("too little").found;
        assert!(
            found.starts_with("it is 64 MiB, and 4 shards may take "),
            "{found}"
        );
    }
}
