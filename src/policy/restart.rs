//! Restart intensity and strategy of a supervised stage.

use std::time::Duration;

/// `[<stage>.supervision]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Who else is restarted.
    pub strategy: Strategy,
    /// More than this many restarts …
    pub max_restarts: u32,
    /// … in this time fail the stage.
    pub within: Duration,
    /// Pause before the first restart; doubles with each further one in `within`.
    pub backoff: Duration,
    /// What a failed stage does to the rest.
    pub on_failed: OnFailed,
}

/// `supervision.strategy`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Only the crashed stage.
    OneForOne,
    /// All stages.
    OneForAll,
    /// The crashed stage and those started after it.
    RestForOne,
}

/// `supervision.on_failed`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailed {
    /// The rest goes on.
    Isolate,
    /// The process drains and exits with 1.
    Shutdown,
}
