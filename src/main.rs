//! Arguments, exit codes, signals, the allocator. Everything else is in the library.

use std::process::ExitCode;

/// librdkafka and OpenSSL take theirs from it too: a record is eight allocations there, most of them freed by another
/// thread, which is where it is quicker. How it is built and set stands in `.cargo/config.toml`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    penstock::cli::main()
}
