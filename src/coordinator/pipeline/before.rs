//! What a pipeline counts goes on from the one whose place it takes: a rebuild resets no total.

use std::sync::Arc;

use super::Pipeline;
use crate::sink::flight::Snapshot;
use crate::source::{SourceStatus, TableStatus};

/// What the sides counted that are no more.
#[derive(Clone, Default)]
pub(super) struct Before {
    /// … with the tables that are read no more: one that comes back goes on counting.
    source: SourceStatus,
    sink: Snapshot,
    refusals: u64,
}

impl Pipeline {
    /// Goes on counting from the one whose place it takes. A side that goes on here counts by itself.
    pub(in super::super) fn count_on_from(&self, replaced: &Self) {
        let mut before = replaced.before.lock().clone();
        if !Arc::ptr_eq(&self.source, &replaced.source) {
            let mut source = replaced.source_status();
            let is_read = |t: &TableStatus| source.tables.iter().any(|s| s.table == t.table);
            before.source.tables.retain(|t| !is_read(t));
            source.tables.append(&mut before.source.tables);
            before.source = source;
        }
        if !Arc::ptr_eq(&self.sink, &replaced.sink) {
            before.refusals = replaced.refusals();
            before.sink = replaced.sink_counts();
            (before.sink.queued, before.sink.oldest) = (0, None);
        }
        *self.before.lock() = before;
    }

    /// What the reading has done since the process started, and how far it is.
    pub fn source_status(&self) -> SourceStatus {
        let mut status = self.source.status();
        status.count_on_from(&self.before.lock().source);
        status
    }

    /// What the sink has done since the process started, and what is under way.
    pub fn sink_counts(&self) -> Snapshot {
        let mut counts = self.sink.snapshot();
        counts += self.before.lock().sink.clone();
        counts
    }

    /// How often the sink has waited for a refusal to end since the process started.
    pub fn refusals(&self) -> u64 {
        self.sink.refusals() + self.before.lock().refusals
    }
}
