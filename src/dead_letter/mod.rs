//! Changes that can never succeed, kept with their error until someone replays or purges them.
//!
//! A dead letter is a record of the compacted topic `<pipeline>.dead-letters`. Its key is the change's
//! position, so that a change that fails again replaces its letter, and a tombstone purges it. Its value holds
//! the original change in full ([`change`]): a [`Batch`](crate::change::Batch) made from it has the very bytes
//! that the source read. Its headers say what happened.
//!
//! An outage makes no dead letters: only what is poison by the classification of its stage gets here. Too many
//! in a short time are not single bad changes but a broken stage; [`flood`] tells the two apart.
//!
//! Knows no driver: the topic is written and read where the sink's is.

mod change;
pub mod flood;
pub mod letter;

pub use change::{Change, RebuildError};
pub use letter::{DeadLetter, Filter};

/// What is in the topic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listed {
    /// The letters that are meant, the oldest first.
    pub letters: Vec<DeadLetter>,
    /// What is no letter, or one of a later version.
    pub foreign: Vec<Foreign>,
}

/// A record that is no dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// `topic[partition]@offset`
    pub place: String,
    /// What is wrong with it as a letter.
    pub reason: String,
}

/// Names of a dead letter's headers, beside those of every record ([`crate::sink::headers`]).
pub mod headers {
    /// The stage that gave up: `source`, `transform.<name>`, `sink`.
    pub const STAGE: &str = "penstock-stage";
    /// What went wrong, as the stage said it.
    pub const ERROR: &str = "penstock-error";
    /// How often the change was tried, replays included.
    pub const ATTEMPTS: &str = "penstock-attempts";
    /// When it failed first, RFC 3339.
    pub const FIRST_AT: &str = "penstock-first-at";
    /// When it failed last, RFC 3339.
    pub const LAST_AT: &str = "penstock-last-at";
    /// `pipeline.name`.
    pub const PIPELINE: &str = "penstock-pipeline";
}
