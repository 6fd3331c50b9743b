//! Exponential backoff with full jitter.

use std::num::NonZeroU32;
use std::time::Duration;

/// `[<stage>.retry]`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The first pause, before jitter.
    pub initial: Duration,
    /// The longest pause.
    pub max: Duration,
    /// Growth a try, at least 1 and finite.
    pub multiplier: f64,
    /// `None`: for ever (`max_attempts = 0`).
    pub max_attempts: Option<NonZeroU32>,
}
