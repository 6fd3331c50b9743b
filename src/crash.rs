//! Points at which a test makes the process end as `kill -9` ends it: nothing is flushed, told or cleaned up.
//!
//! `FAILPOINTS="crash::before-commit=20*off->return"` ends it the 21st time that it comes there. Compiled to nothing
//! unless the crate is built for tests (the `failpoints` feature of `fail`). It knows nothing of who calls it.

use std::sync::LazyLock;

/// Where a settlement stands, or a shard on its way from one instance to another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Crash {
    /// The brokers know of a batch, or of a transaction, that has no record yet.
    AfterBegin,
    /// Some records of a batch have been handed to the producer, others not.
    MidSend,
    /// Every record is acknowledged, the checkpoint not written or the transaction not committed.
    BeforeCommit,
    /// The brokers have the checkpoint, and nobody here knows yet.
    AfterCommit,
    /// Shards that go to another instance are settled, and not given back yet.
    MidHandOver,
    /// A shard that came from another instance is open, and nothing runs for it yet.
    MidTakeOver,
}

impl Crash {
    fn name(self) -> &'static str {
        match self {
            Self::AfterBegin => "crash::after-begin",
            Self::MidSend => "crash::mid-send",
            Self::BeforeCommit => "crash::before-commit",
            Self::AfterCommit => "crash::after-commit",
            Self::MidHandOver => "crash::mid-hand-over",
            Self::MidTakeOver => "crash::mid-take-over",
        }
    }

    /// Ends the process here if a test wants it.
    pub(crate) fn here(self) {
        // Benchmarks are built with fault points too, and come by here with each record.
        static POINTS: LazyLock<String> =
            LazyLock::new(|| std::env::var("FAILPOINTS").unwrap_or_default());
        let is_armed = || !POINTS.is_empty() && POINTS.contains(self.name());
        if fail::has_failpoints() && is_armed() {
            fail::fail_point!(self.name(), |_| std::process::abort());
        }
    }
}
