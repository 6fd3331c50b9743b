//! What the machine does to a test: other programs that it runs meanwhile, ports that they take, threads that are not the test's.

use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::process::Running;

/// How long the threads of a process have been ready to run and waited for a processor, all together: more than a machine that is
/// busy with other things has added to whatever they did. Nothing where the kernel does not count it.
pub fn held_up(process: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
    let waited = |task: std::fs::DirEntry| -> Option<u64> {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split_whitespace().nth(1)?.parse().ok()
    };
    let tasks = tasks.into_iter().flatten().flatten();
    Duration::from_nanos(tasks.filter_map(waited).sum())
}

/// A time that is measured, and what the machine has held up in it: the program, and this process with its servers.
pub struct Span {
    began: Instant,
    processes: [u32; 2],
    before: Duration,
}

impl Span {
    /// From now on, of this program.
    pub fn of(running: &Running) -> Self {
        Self::within([running.id(), std::process::id()])
    }

    /// From now on, where all takes place in the test's own process.
    pub fn here() -> Self {
        Self::within([std::process::id(), 0])
    }

    fn within(processes: [u32; 2]) -> Self {
        Self {
            began: Instant::now(),
            processes,
            before: processes.map(held_up).iter().sum(),
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// How long that was so far.
    pub fn held_up(&self) -> Duration {
        let now: Duration = self.processes.map(held_up).iter().sum();
        now.saturating_sub(self.before)
    }

    /// What may take so long on a machine that does nothing else, may here.
    pub fn at_most(&self, quiet: Duration) -> Duration {
        quiet + self.held_up()
    }
}

/// A port that nobody listens on, for who is told it and listens later: below those that connections and servers of other tests
/// are given meanwhile, and no other process's until this one ends.
///
/// # Panics
/// If nothing can be written below the folder for temporary files.
pub fn free_port() -> u16 {
    const PORTS: (u16, u16) = (12_000, 20_000);
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Each process begins elsewhere.
    let begin = std::process::id().wrapping_mul(97);
    let taken = std::env::temp_dir().join("penstock-test-ports");
    std::fs::create_dir_all(&taken).expect("a folder for temporary files");
    loop {
        let n = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let offset = begin.wrapping_add(n) % u32::from(PORTS.1 - PORTS.0);
        let port = PORTS.0 + u16::try_from(offset).expect("it is less than their number");
        let lock = std::fs::File::create(taken.join(port.to_string())).expect("a file of a port");
        if lock.try_lock().is_ok() && std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            // Unlocked by the process's end.
            std::mem::forget(lock);
            return port;
        }
    }
}

/// Whether the test of this name has a process of its own, where what a process has one of is its own; if not, it is run in one here.
///
/// # Panics
/// If it fails there.
pub fn is_alone(name: &str) -> bool {
    const ALONE: &str = "PENSTOCK_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let this = std::env::current_exe().expect("the path of this test");
    let mut alone = Command::new(this);
    alone.args([name, "--exact", "--nocapture"]);
    let status = alone.env(ALONE, "1").status().expect("it runs");
    assert!(status.success(), "{status}");
    false
}
