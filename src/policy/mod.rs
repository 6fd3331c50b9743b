//! The policies that pipeline.toml sets per stage.
//!
//! | module | question it answers |
//! |---|---|
//! | [`breaker`] | may I call at all? |
//! | [`backoff`] | how long do I wait before I try again? |
//! | [`rate`] | how fast may I go? |
//! | [`restart`] | a stage crashed: start it again, or give up on it? |
//! | [`health`] | what do the observations add up to? |
//! | [`stage`] | the four of them bound to one stage, its live settings and tokio's clock |
//!
//! All but [`stage`] are pure state machines in `now`: no I/O, no clock, no random source of their own. What
//! they are told is all that they know, so a test replays a day of outages in a millisecond. What is absent
//! here is the point: no driver, no socket, no file, no task.
//!
//! How they nest around a call, from the outside in: rate limit, retry, breaker, the call. Retry is *outside*
//! the breaker and a refusal is a wait, not an attempt; so an outage cannot use up `max_attempts`.
//!
//! Every settings type is checked by its constructor, so an illegal threshold cannot exist; [`Invalid`] names
//! the key. Every state machine has a `retune` that keeps its state and its counts.

pub mod backoff;
pub mod breaker;
pub mod health;
pub mod rate;
pub mod restart;
pub mod stage;

use std::time::Duration;

/// The longest time that any policy setting may be. A day is the default time to live of ScyllaDB's change
/// log: waiting longer than that loses changes. It also keeps all sums with an `Instant` in range.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// The four policy tables of a stage. The default is what applies where `[policies]` says nothing: no rate
/// limit, and each other table's own default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policies {
    /// When to stop calling.
    pub breaker: breaker::Settings,
    /// How to try again.
    pub retry: backoff::Settings,
    /// How fast at most.
    pub rate_limit: Option<rate::Settings>,
    /// What happens when the stage crashes.
    pub supervision: restart::Settings,
}

/// A setting that cannot be: which key of its table, and what would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} {expected}")]
pub struct Invalid {
    /// The key in its table, e.g. `open_for`.
    pub key: &'static str,
    /// What it has to be, e.g. `must be longer than zero`.
    pub expected: &'static str,
}

/// Collects what is wrong with a table, so that all of it is reported at once.
#[derive(Default)]
pub(crate) struct Problems(Vec<Invalid>);

impl Problems {
    /// Notes `key` as invalid unless `holds`.
    pub(crate) fn require(&mut self, holds: bool, key: &'static str, expected: &'static str) {
        if !holds {
            self.0.push(Invalid { key, expected });
        }
    }

    /// The value, if nothing was noted.
    pub(crate) fn pass<T>(self, value: T) -> Result<T, Vec<Invalid>> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(self.0)
        }
    }
}

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
