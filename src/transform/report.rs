//! What a transform tells of its last batch.

use std::sync::Arc;
use std::time::Duration;

/// What a stage did with the last batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StageReport {
    /// `transform.<name>`
    pub stage: Arc<str>,
    /// Changes and records that it was handed.
    pub items: u32,
    /// Traps, missed deadlines, memory overruns and malformed outputs, one for each change that is to blame,
    /// however often it was tried; one for a batch that failed although none of its changes does; and one for each wish
    /// to be asked again later. These are what the stage's breaker counts.
    pub faults: Vec<String>,
    /// Changes that go to the dead letters.
    pub rejected: u32,
    /// Changes that `on_error = "drop"` let go of.
    pub dropped_on_error: u32,
    /// A table whose changes it refuses, all of them, and why: it cannot be opened, or the plugin does not take it. Stands
    /// from batch to batch, whether they have changes of it or not.
    pub refuses: Option<Arc<str>>,
    /// New instances that had to be made.
    pub renewed: u32,
    /// Lines that its plugin wrote and nobody sees, since it wrote too many.
    pub lines_left_out: u64,
    /// Time spent in it.
    pub elapsed: Duration,
    /// … and with its plugin.
    pub spent: Spent,
}

/// Where the time with a plugin goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Putting together what it is sent.
    pub encode: Duration,
    /// Its calls: in, through the guest, and out.
    pub call: Duration,
    /// Checking what it gave, and taking it.
    pub decode: Duration,
}
