//! The rows of a page, cell by cell, as they lie in the bytes that came.
//!
//! The driver goes over each row twice, once for where it ends and once for its cells, and says of each cell what its type is.
//! Here what a column is stands in the page's version, so a row is gone over once.

use scylla::deserialize::row::ColumnIterator;
use scylla::response::query_result::QueryRowsResult;

use super::error::SourceError;

const WHAT: &str = "cannot decode a page of the log";

/// Rows that have yet to be read.
pub(super) struct Rows<'p> {
    rest: &'p [u8],
    columns: usize,
    left: usize,
}

impl<'p> Rows<'p> {
    pub(super) fn of(page: &'p QueryRowsResult) -> Result<Self, SourceError> {
        let none = Self {
            rest: &[],
            columns: page.column_specs().len(),
            left: 0,
        };
        let answer = |error: &dyn std::fmt::Display| SourceError::answer(WHAT, error.to_string());
        let mut rows = page
            .rows::<ColumnIterator<'_, '_>>()
            .map_err(|e| answer(&e))?;
        let Some(row) = rows.next() else {
            return Ok(none);
        };
        let cell = row.map_err(|e| answer(&e))?.next().transpose();
        // Where a cell is, its length stands before it; the first is of the stream, which is a key.
        let cell = cell.map_err(|e| answer(&e))?.and_then(|cell| cell.slice);
        let cell = cell.ok_or_else(|| answer(&"its first cell is null"))?;
        let all = cell.as_original_frame_bytes();
        let at = cell
            .as_slice()
            .as_ptr()
            .addr()
            .checked_sub(all.as_ptr().addr());
        let rest = at.and_then(|at| all.get(at.checked_sub(4)?..));
        Ok(Self {
            rest: rest.ok_or_else(|| answer(&"its rows are not in its frame"))?,
            left: page.rows_num(),
            ..none
        })
    }

    /// Adds the cells of the next row; `false`: there is none.
    pub(super) fn next(&mut self, cells: &mut Vec<Option<&'p [u8]>>) -> Result<bool, SourceError> {
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(false);
        };
        self.left = left;
        cells.reserve(self.columns);
        for _ in 0..self.columns {
            let cell = cell(&mut self.rest);
            cells.push(cell.ok_or_else(|| SourceError::answer(WHAT, "it ends within a row"))?);
        }
        Ok(true)
    }

    /// Passes over so many rows.
    pub(super) fn skip(mut self, rows: usize) -> Result<Self, SourceError> {
        let mut cells = Vec::new();
        for _ in 0..rows {
            cells.clear();
            self.next(&mut cells)?;
        }
        Ok(self)
    }
}

/// The next cell, `None` inside if it is null (`[bytes]` of the protocol, version 4, section 3).
fn cell<'p>(rest: &mut &'p [u8]) -> Option<Option<&'p [u8]>> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
        return Some(None);
    };
    let (cell, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(Some(cell))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(cells: &[Option<&[u8]>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for cell in cells {
            let length = cell.map_or(-1, |c| i32::try_from(c.len()).unwrap());
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(cell.unwrap_or_default());
        }
        bytes
    }

    #[test]
    fn cells_are_read_row_by_row() {
        let all = [Some(&b"one"[..]), None, Some(b""), Some(b"four")];
        let bytes = bytes(&all);
        let rows = |left| Rows {
            rest: &bytes,
            columns: 2,
            left,
        };
        let (mut read, mut cells) = (rows(2), Vec::new());
        assert!(read.next(&mut cells).unwrap() && cells == all[..2]);
        assert!(read.next(&mut cells).unwrap() && cells == all);
        assert!(!read.next(&mut cells).unwrap() && cells == all);
        cells.clear();
        assert!(rows(2).skip(1).unwrap().next(&mut cells).unwrap() && cells == all[2..]);
        let past = rows(3).skip(2).unwrap().next(&mut cells);
        assert!(
            past.unwrap_err()
                .to_string()
                .contains("it ends within a row")
        );
    }

    #[test]
    fn what_is_cut_short_is_no_cell() {
        let whole = bytes(&[Some(b"one")]);
        for cut in 0..whole.len() {
            assert_eq!(cell(&mut &whole[..cut]), None, "{cut}");
        }
        assert_eq!(cell(&mut &whole[..]), Some(Some(&b"one"[..])));
    }
}
