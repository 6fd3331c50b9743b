//! The circuit breaker: `closed` → `open` → `half-open`.

use std::num::NonZeroU32;
use std::time::Duration;

/// `[<stage>.breaker]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Consecutive failures that open it.
    pub failure_threshold: NonZeroU32,
    /// How long it stays open before it lets a probe through.
    pub open_for: Duration,
    /// Successes in a row that close it again.
    pub success_threshold: NonZeroU32,
}
