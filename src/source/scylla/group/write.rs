//! One write as it is read: its rows and cells, until all of it is seen or it is too large.

use penstock_plugin_encoding::Operation;
use uuid::Uuid;

use super::super::decode::{self, LogRow};
use super::super::error::SourceError;
use super::super::log::Page;
use super::super::schema::Version;
use crate::change::{Position, StreamId};

/// The rows of one stream and time stay together in a batch, so that their links hold, up to this size; a larger
/// write is handed on in parts, which say what of their images is in another one. A write is one mutation, and
/// ScyllaDB takes none larger than half a segment of its commit log, 32 MiB unless set otherwise.
pub(super) const MAX_WRITE: usize = 32 << 20;
/// What a row takes beside its values: its head, and 5 bytes a column.
const ROW: usize = 64;
const COLUMN: usize = 5;

/// A write is known by its stream and time.
pub(super) type WriteId = (StreamId, Uuid);

/// The rows of one write (one stream and time), as far as they have been seen, and their cells.
#[derive(Default)]
pub(super) struct Write<'p> {
    pub(super) rows: Vec<LogRow<'p>>,
    pub(super) cells: Vec<Option<&'p [u8]>>,
    pub(super) bytes: usize,
    pub(super) late: bool,
    pub(super) postimages: bool,
    /// The page and the row in it with which it began, and those of its last row.
    pub(super) begun: (usize, usize),
    pub(super) last: (usize, usize),
}

/// The bytes of a page's rows if all are of this write, and its end is not among them.
pub(super) fn goes_on(page: &Page, write: WriteId) -> Result<Option<usize>, SourceError> {
    let mut bytes = 0;
    let mut cells = Vec::new();
    let mut rows = page.rows_from(0)?;
    while rows.next(&mut cells)? {
        match decode::head(&page.version, &cells) {
            Ok(head)
                if (head.position.stream, head.position.time) == write && !head.end_of_batch =>
            {
                bytes += size(&cells);
            }
            _ => return Ok(None),
        }
        cells.clear();
    }
    Ok(Some(bytes))
}

/// What a row takes.
fn size(cells: &[Option<&[u8]>]) -> usize {
    let values = cells.iter().flatten().map(|c| c.len()).sum::<usize>();
    ROW + cells.len() * COLUMN + values
}

impl<'p> Write<'p> {
    /// Whether a row with this position begins another one.
    pub(super) fn is_another(&self, position: &Position) -> bool {
        self.rows.first().is_some_and(|first| {
            let first = &first.head.position;
            (first.stream, first.time) != (position.stream, position.time)
        })
    }

    /// Adds the row whose cells were added last.
    pub(super) fn push(&mut self, version: &'p Version, head: decode::Head, place: (usize, usize)) {
        if self.rows.is_empty() {
            self.begun = place;
        }
        self.last = place;
        let start = self.cells.len() - version.wire.len();
        self.bytes += size(&self.cells[start..]);
        self.rows.push(LogRow {
            version,
            head,
            start,
        });
    }

    /// It is handed on in parts.
    pub(super) fn is_large(&self) -> bool {
        self.bytes >= MAX_WRITE
    }

    pub(super) fn id(&self) -> Option<WriteId> {
        let position = self.rows.first()?.head.position;
        Some((position.stream, position.time))
    }

    /// The rows and cells before its last row, if that begins a range.
    pub(super) fn open_range(&self) -> Option<(usize, usize)> {
        let last = self.rows.last().filter(|_| self.rows.len() > 1)?;
        let operation = decode::operation(last.version, &self.cells[last.start..]);
        let begins = matches!(
            operation,
            Some(Operation::RangeDeleteStartInclusive | Operation::RangeDeleteStartExclusive)
        );
        begins.then_some((self.rows.len() - 1, last.start))
    }
}
