//! The rate limit.

use std::num::NonZeroU32;

/// `[<stage>.rate_limit]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Changes or requests a second.
    pub per_second: NonZeroU32,
    /// How many may come at once after a pause.
    pub burst: NonZeroU32,
}
