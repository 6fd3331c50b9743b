//! The window of time that a group reads.

use scylla::response::PagingState;

use super::super::past::Reading;

/// What a window is for.
pub(super) enum Kind {
    Forward,
    /// To see what is late; with the times of the writes found.
    Look(Vec<i64>),
    /// To read what is late.
    Late,
}

pub(super) struct Window {
    pub(super) reading: Reading,
    pub(super) kind: Kind,
    /// Where it was to end; it ends earlier if the database has too much to do.
    pub(super) wanted_us: i64,
    /// The span, not the present, set its end.
    pub(super) limited: bool,
    pub(super) paging: PagingState,
    pub(super) pages: u32,
    /// No row was in it so far.
    pub(super) empty: bool,
}

impl Window {
    pub(super) fn new(reading: Reading, kind: Kind, limited: bool) -> Self {
        Self {
            wanted_us: reading.to_us,
            reading,
            kind,
            limited,
            paging: PagingState::start(),
            pages: 0,
            empty: true,
        }
    }
}
