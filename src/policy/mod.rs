//! The policies that pipeline.toml sets per stage.
//!
//! The state machines are pure in `now`: no I/O, no clock of their own. [`stage::StagePolicies`] binds them
//! to a stage and to the live settings.

pub mod backoff;
pub mod breaker;
pub mod rate;
pub mod restart;

/// What a failure means for the work that met it. Each driver classifies its errors in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// It may pass by itself: try again.
    Retryable,
    /// This change can never succeed: dead-letter it. The other side answered, so no breaker counts it.
    Poison,
    /// It will not pass without someone's help: fail the stage.
    Fatal,
}
