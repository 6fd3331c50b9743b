//! The headers that a record carries beside the transform's own: those that `sink.headers` names.

use penstock_plugin_encoding::Operation::{RangeDeleteStartExclusive, RangeDeleteStartInclusive};
use penstock_plugin_encoding::bytes::{hex, hyphenated};
use penstock_plugin_encoding::{Mark, Row};

use crate::change::Position;
use crate::spans::{Context, trace_of};

/// Where the change stands in the log: `<stream>:<cdc$time>:<cdc$batch_seq_no>`.
pub const POSITION: &str = "penstock-position";
/// `keyspace.table` of the base table.
pub const TABLE: &str = "penstock-table";
/// [`penstock_plugin_encoding::Operation::name`].
pub const OPERATION: &str = "penstock-operation";
/// `true`: the change appeared in the log behind what had been read already; later changes of its key may stand
/// before it.
pub const LATE: &str = "penstock-late";
/// What of the change's images could not be had, `preimage`, `postimage` or both, and why.
pub const MISSING: &str = "penstock-missing";
/// W3C trace context.
pub use crate::spans::TRACEPARENT;

/// Whether only the sink may set a header of this name.
pub fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(b"penstock-")
}

/// The value of [`MISSING`]; `None` if nothing is missing.
pub fn missing(row: &Row<'_>) -> Option<&'static str> {
    match (
        row.is_marked(Mark::PreimageMissing),
        row.is_marked(Mark::EndMissing),
        row.operation(),
    ) {
        (false, false, _) => None,
        (true, false, _) => Some("preimage; the write is too large to be held together"),
        (_, true, RangeDeleteStartInclusive | RangeDeleteStartExclusive) => {
            Some("range end; the write is too large to be held together")
        }
        (false, true, _) => Some("postimage; the write is too large to be held together"),
        (true, true, _) => {
            Some("preimage and postimage; the write is too large to be held together")
        }
    }
}

/// The text of a [`Position`] without an allocation: 32 + 1 + 36 + 1 + at most 11 bytes.
#[derive(Clone, Copy, Debug)]
pub struct PositionText {
    bytes: [u8; 81],
    len: u8,
}

impl PositionText {
    /// Writes it out.
    pub fn new(position: &Position) -> Self {
        let mut bytes = [b':'; 81];
        bytes[..32].copy_from_slice(&hex(&position.stream.0));
        bytes[33..69].copy_from_slice(&hyphenated(position.time.as_bytes()));
        let mut digits = itoa::Buffer::new();
        let seq = digits.format(position.seq).as_bytes();
        bytes[70..70 + seq.len()].copy_from_slice(seq);
        Self {
            bytes,
            len: 70 + seq.len() as u8,
        }
    }

    /// The text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// A trace context that is the same for a position whoever makes it and however often, so that a repeated record joins
/// the trace of the first. Its span id is the lower half of [`trace_of`], made odd: the standard forbids zero. While traces
/// are sent, one that nobody records is not `sampled`.
pub fn traceparent(position: &Position, sampled: bool) -> [u8; 55] {
    let trace = trace_of(position);
    let span = trace as u64 | 1;
    let context = Context {
        trace,
        span,
        sampled,
    };
    context.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::StreamId;

    fn position(seq: i32) -> Position {
        Position {
            stream: StreamId([0xab; 16]),
            time: "8e3d2f00-e86c-11f0-9d3d-0242ac120002".parse().unwrap(),
            seq,
        }
    }

    #[test]
    fn the_text_is_the_one_that_display_writes() {
        for seq in [0, 7, i32::MAX, i32::MIN] {
            let p = position(seq);
            assert_eq!(PositionText::new(&p).as_bytes(), p.to_string().as_bytes());
        }
    }

    #[test]
    fn a_traceparent_is_stable_and_differs_by_position() {
        let one = traceparent(&position(1), true);
        let text = std::str::from_utf8(&one).unwrap();
        let parts: Vec<_> = text.split('-').collect();
        assert_eq!(
            parts.iter().map(|p| p.len()).collect::<Vec<_>>(),
            [2, 32, 16, 2]
        );
        assert!(
            parts
                .iter()
                .all(|p| p.bytes().all(|b| b.is_ascii_hexdigit()))
        );
        assert_eq!((parts[0], parts[3]), ("00", "01"));
        // Written down: records already in Redpanda carry it, so the derivation must not change.
        assert_eq!(one, traceparent(&position(1), true));
        assert_ne!(one, traceparent(&position(2), true));
    }
}
