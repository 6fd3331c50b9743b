//! The rows of an answer, laid out as the protocol sends them, so that a value is copied once from where it is stored.

use bytes::Bytes;

use super::layout::{put_bytes, take};

/// Rows of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// Values a row.
    width: usize,
    count: usize,
    /// Row by row, each value as a `[bytes]` (native protocol v4, section 3): four bytes of length, big-endian, and
    /// the value; −1 and nothing for a null.
    cells: Vec<u8>,
}

impl Rows {
    /// None yet, of so many values each.
    pub(crate) fn new(width: usize) -> Self {
        Self {
            width,
            ..Self::default()
        }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All values, as the protocol lays them out.
    pub(crate) fn cells(&self) -> &[u8] {
        &self.cells
    }

    /// Adds a row: `put` appends its values, each by [`put_bytes`]. Where it fails nothing is added.
    pub(crate) fn push<E>(
        &mut self,
        put: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let from = self.cells.len();
        match put(&mut self.cells) {
            Ok(()) => self.count += 1,
            Err(e) => {
                self.cells.truncate(from);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Adds a row of these values.
    pub(crate) fn push_values(&mut self, values: &[Option<Bytes>]) {
        debug_assert_eq!(values.len(), self.width);
        for value in values {
            put_bytes(&mut self.cells, value.as_deref());
        }
        self.count += 1;
    }

    /// No more rows than this.
    pub(crate) fn truncate(&mut self, most: usize) {
        if most >= self.count {
            return;
        }
        let mut rest = &self.cells[..];
        for _ in 0..most * self.width {
            take(&mut rest);
        }
        let kept = self.cells.len() - rest.len();
        self.cells.truncate(kept);
        self.count = most;
    }

    /// Row by row, the values taken apart.
    pub fn iter(&self) -> impl Iterator<Item = Vec<Option<Bytes>>> {
        let mut rest = &self.cells[..];
        (0..self.count).map(move |_| {
            (0..self.width)
                .map(|_| take(&mut rest).flatten().map(Bytes::copy_from_slice))
                .collect()
        })
    }
}

/// Of rows that have as many values as the first.
impl FromIterator<Vec<Option<Bytes>>> for Rows {
    fn from_iter<I: IntoIterator<Item = Vec<Option<Bytes>>>>(rows: I) -> Self {
        let mut rows = rows.into_iter().peekable();
        let mut all = Self::new(rows.peek().map_or(0, Vec::len));
        rows.for_each(|row| all.push_values(&row));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_given_back_and_cut() {
        let value = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
        let given = vec![
            vec![value("one"), None],
            vec![value(""), value("two")],
            vec![None, None],
        ];
        let mut rows: Rows = given.iter().cloned().collect();
        assert_eq!(rows.iter().collect::<Vec<_>>(), given);
        let failed = rows.push(|out| {
            put_bytes(out, Some(b"half"));
            Err(())
        });
        assert_eq!((failed, rows.iter().count()), (Err(()), 3));
        for most in [4, 3, 2, 0] {
            rows.truncate(most);
            assert_eq!(rows.len(), most.min(3));
            assert_eq!(
                rows.iter().collect::<Vec<_>>(),
                given[..most.min(3)],
                "{most}"
            );
        }
        assert!(rows.is_empty() && rows.cells().is_empty());
    }
}
