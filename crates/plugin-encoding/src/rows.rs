//! The input of a transform: rows of a CDC log.
//!
//! All integers are little-endian. A batch is `u32 n`, then `n` rows:
//!
//! ```text
//! u32 len       bytes of the row after this field
//! u8  op        the CDC operation (an i8)
//! u8  flags     bit 0: context only, bit 1: cdc$end_of_batch, bits 2 to 4: see [`Mark`]
//! u16 ncols
//! u32 table     the id given to open-table
//! i64 time      cdc$time in µs since the Unix epoch
//! u32 ttl       cdc$ttl in seconds, 0: none
//! u32 link_a    index + 1 of this row's preimage in the batch, 0: none
//! u32 link_b    index + 1 of this row's postimage, or of a range delete's end; 0: none
//! ncols × u32   end of the column's bytes, counted from the start of the data
//! ncols × u8    tag, see [`ColumnTag`]
//! data
//! ```

/// The row header after `len`: bytes before the column ends.
const HEADER: usize = 28;

/// What a log row says of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ColumnTag {
    /// Not declared by the plugin, so not sent. Never means null.
    Unsent = 0,
    /// The statement did not touch it, or an image does not tell it.
    Unchanged = 1,
    /// Set to null (`cdc$deleted_c`), or null in an image.
    Null = 2,
    /// Set to this value. Of a non-frozen collection or UDT: these elements were added, the others stay.
    Value = 3,
    /// A non-frozen collection or UDT was overwritten as a whole by this value.
    Replaced = 4,
    /// These elements were removed (`cdc$deleted_elements_c`), none added.
    Removed = 5,
    /// `u32` length of the added elements, the added elements, then the removed ones.
    Merged = 6,
}

impl ColumnTag {
    /// The tag of this number.
    #[inline]
    pub fn from_u8(tag: u8) -> Option<Self> {
        Some(match tag {
            0 => Self::Unsent,
            1 => Self::Unchanged,
            2 => Self::Null,
            3 => Self::Value,
            4 => Self::Replaced,
            5 => Self::Removed,
            6 => Self::Merged,
            _ => return None,
        })
    }
}

/// What a column is in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ColumnKind {
    /// Part of the partition key.
    PartitionKey = 0,
    /// Part of the clustering key.
    ClusteringKey = 1,
    /// One value a partition.
    Static = 2,
    /// Any other.
    Regular = 3,
}

/// `cdc$operation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i8)]
pub enum Operation {
    /// A delete of a row that ScyllaDB made by itself.
    TtlPartitionDelete = -4,
    /// A delete of a partition that ScyllaDB made by itself.
    TtlRowDelete = -3,
    /// The row before the change.
    PreImage = 0,
    /// Columns were set or deleted.
    Update = 1,
    /// As an update, and the row now exists.
    Insert = 2,
    /// One row was deleted.
    RowDelete = 3,
    /// A whole partition was deleted.
    PartitionDelete = 4,
    /// A range was deleted from this bound on, which belongs to it.
    RangeDeleteStartInclusive = 5,
    /// A range was deleted from this bound on, which does not belong to it.
    RangeDeleteStartExclusive = 6,
    /// The end of the range, which belongs to it.
    RangeDeleteEndInclusive = 7,
    /// The end of the range, which does not belong to it.
    RangeDeleteEndExclusive = 8,
    /// The row after the change.
    PostImage = 9,
}

impl Operation {
    /// The operation of this number; `None` for one that this version does not know.
    #[inline]
    pub fn from_i8(op: i8) -> Option<Self> {
        Some(match op {
            -4 => Self::TtlPartitionDelete,
            -3 => Self::TtlRowDelete,
            0 => Self::PreImage,
            1 => Self::Update,
            2 => Self::Insert,
            3 => Self::RowDelete,
            4 => Self::PartitionDelete,
            5 => Self::RangeDeleteStartInclusive,
            6 => Self::RangeDeleteStartExclusive,
            7 => Self::RangeDeleteEndInclusive,
            8 => Self::RangeDeleteEndExclusive,
            9 => Self::PostImage,
            _ => return None,
        })
    }

    /// Its name in headers, logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::TtlPartitionDelete => "ttl-partition-delete",
            Self::TtlRowDelete => "ttl-row-delete",
            Self::PreImage => "preimage",
            Self::Update => "update",
            Self::Insert => "insert",
            Self::RowDelete => "row-delete",
            Self::PartitionDelete => "partition-delete",
            Self::RangeDeleteStartInclusive => "range-delete-start-inclusive",
            Self::RangeDeleteStartExclusive => "range-delete-start-exclusive",
            Self::RangeDeleteEndInclusive => "range-delete-end-inclusive",
            Self::RangeDeleteEndExclusive => "range-delete-end-exclusive",
            Self::PostImage => "postimage",
        }
    }
}

/// What the source has to say of a row beside what the log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mark {
    /// It appeared in the log behind what had been read already, so later changes of its key may have gone
    /// before it: the client gave an earlier timestamp, or the write was under way for long.
    Late = 1 << 2,
    /// The log has a preimage of it, but the write was too large to be held together with it.
    PreimageMissing = 1 << 3,
    /// The log has a postimage of it, or the end of its range, but the write was too large to be held together
    /// with it.
    EndMissing = 1 << 4,
}

impl Mark {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Late, Self::PreimageMissing, Self::EndMissing];
}

/// The fixed part of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowMeta {
    /// The operation.
    pub operation: Operation,
    /// The row is there only so that links resolve: nothing is to be made of it.
    pub context: bool,
    /// `cdc$end_of_batch`.
    pub end_of_batch: bool,
    /// The table version's id.
    pub table: u32,
    /// Microseconds since the Unix epoch.
    pub time_us: i64,
    /// Seconds; 0: none.
    pub ttl: u32,
}

/// Columns of a table to be sent; the others are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projection {
    mask: Vec<bool>,
    /// Those that stand together, the first and what follows the last, in order.
    runs: Vec<(u16, u16)>,
}

impl Projection {
    /// The columns at whose index this is true.
    pub fn new(mask: Vec<bool>) -> Self {
        let mut runs: Vec<(u16, u16)> = Vec::new();
        for (column, _) in (0..=u16::MAX).zip(&mask).filter(|(_, kept)| **kept) {
            match runs.last_mut().filter(|(_, end)| *end == column) {
                Some((_, end)) => *end += 1,
                None => runs.push((column, column + 1)),
            }
        }
        Self { mask, runs }
    }

    /// Whether the column at this index is to be sent.
    pub fn has(&self, column: usize) -> bool {
        self.mask.get(column).copied().unwrap_or(false)
    }
}

/// Builds [`Rows`] with one copy of each column's bytes.
#[derive(Debug, Default)]
pub struct RowsBuilder {
    buf: Vec<u8>,
    starts: Vec<u32>,
    column: usize,
    ncols: usize,
    data: usize,
}

impl RowsBuilder {
    /// An empty batch.
    pub fn new() -> Self {
        Self::with_capacity(0, 0)
    }

    /// An empty batch with room.
    pub fn with_capacity(rows: usize, bytes: usize) -> Self {
        let mut buf = Vec::with_capacity(bytes + 4);
        buf.extend_from_slice(&0u32.to_le_bytes());
        Self {
            buf,
            starts: Vec::with_capacity(rows),
            column: 0,
            ncols: 0,
            data: 0,
        }
    }

    /// Starts a row; exactly `ncols` calls of [`Self::column`] follow. Returns the row's index.
    pub fn row(&mut self, meta: RowMeta, ncols: u16) -> u32 {
        debug_assert_eq!(self.column, self.ncols, "the row before is not finished");
        self.finish_row();
        let index = self.starts.len() as u32;
        self.starts.push(self.buf.len() as u32);
        let b = &mut self.buf;
        b.extend_from_slice(&[0; 4]);
        b.push(meta.operation as i8 as u8);
        b.push(u8::from(meta.context) | u8::from(meta.end_of_batch) << 1);
        b.extend_from_slice(&ncols.to_le_bytes());
        b.extend_from_slice(&meta.table.to_le_bytes());
        b.extend_from_slice(&meta.time_us.to_le_bytes());
        b.extend_from_slice(&meta.ttl.to_le_bytes());
        b.extend_from_slice(&[0; 8]);
        b.resize(b.len() + usize::from(ncols) * 5, 0);
        self.column = 0;
        self.ncols = usize::from(ncols);
        self.data = self.buf.len();
        index
    }

    /// Adds the next column of the row; `parts` are written one after the other.
    pub fn column(&mut self, tag: ColumnTag, parts: &[&[u8]]) {
        debug_assert!(self.column < self.ncols, "more columns than announced");
        for part in parts {
            self.buf.extend_from_slice(part);
        }
        let ends = self.data - self.ncols * 5;
        let end = (self.buf.len() - self.data) as u32;
        self.buf[ends + self.column * 4..][..4].copy_from_slice(&end.to_le_bytes());
        self.buf[self.data - self.ncols + self.column] = tag as u8;
        self.column += 1;
    }

    /// Adds a column with added and removed elements.
    pub fn merged(&mut self, added: &[u8], removed: &[u8]) {
        self.column(
            ColumnTag::Merged,
            &[&(added.len() as u32).to_le_bytes(), added, removed],
        );
    }

    /// Copies a whole row without its links. Columns that are not among those to `keep` become
    /// [`ColumnTag::Unsent`]; `None` keeps all. Returns the row's index.
    pub fn copy_row(&mut self, row: &Row<'_>, keep: Option<&Projection>) -> u32 {
        debug_assert_eq!(self.column, self.ncols, "the row before is not finished");
        self.finish_row();
        let index = self.starts.len() as u32;
        self.starts.push(self.buf.len() as u32);
        self.buf.extend_from_slice(&[0; 4]);
        let start = self.buf.len();
        match keep {
            None => self.buf.extend_from_slice(row.bytes),
            Some(keep) => self.copy_columns(row, &keep.runs),
        }
        self.buf[start + 20..start + 28].fill(0);
        self.column = 0;
        self.ncols = 0;
        index
    }

    fn copy_columns(&mut self, row: &Row<'_>, runs: &[(u16, u16)]) {
        let ncols = row.columns();
        let runs = runs
            .iter()
            .map(|(from, to)| (usize::from(*from), usize::from(*to).min(ncols)))
            .take_while(|(from, to)| from < to);
        let (head, columns) = row.bytes.split_at(HEADER);
        let (ends, columns) = columns.split_at(ncols * 4);
        let (tags, data) = columns.split_at(ncols);
        let (ends, _) = ends.as_chunks::<4>();
        let begin = |from: usize| {
            from.checked_sub(1)
                .map_or(0, |c| u32::from_le_bytes(ends[c]))
        };
        self.buf.reserve(row.bytes.len());
        self.buf.extend_from_slice(head);
        let start = self.buf.len();
        self.buf.resize(start + ncols * 5, ColumnTag::Unsent as u8);
        let (new_ends, new_tags) = self.buf[start..].split_at_mut(ncols * 4);
        let (new_ends, _) = new_ends.as_chunks_mut::<4>();
        let (mut end, mut next) = (0u32, 0);
        for (from, to) in runs.clone() {
            new_ends[next..from].fill(end.to_le_bytes());
            let shift = end.wrapping_sub(begin(from));
            for (new, old) in new_ends[from..to].iter_mut().zip(&ends[from..to]) {
                end = u32::from_le_bytes(*old).wrapping_add(shift);
                *new = end.to_le_bytes();
            }
            new_tags[from..to].copy_from_slice(&tags[from..to]);
            next = to;
        }
        new_ends[next..].fill(end.to_le_bytes());
        for (from, to) in runs {
            let run = begin(from) as usize..begin(to) as usize;
            self.buf.extend_from_slice(&data[run]);
        }
    }

    /// Takes the last row back, finished or not.
    pub fn undo_row(&mut self) {
        if let Some(start) = self.starts.pop() {
            self.buf.truncate(start as usize);
        }
        self.column = 0;
        self.ncols = 0;
    }

    /// Marks a row. Its copies have the mark as well.
    pub fn mark(&mut self, row: u32, mark: Mark) {
        let flags = self.starts[row as usize] as usize + 4 + 1;
        self.buf[flags] |= mark as u8;
    }

    /// Links a row to its preimage.
    pub fn link_preimage(&mut self, row: u32, preimage: u32) {
        self.link(row, 20, preimage);
    }

    /// Links a row to its postimage, or a range delete's start to its end.
    pub fn link_end(&mut self, row: u32, end: u32) {
        self.link(row, 24, end);
    }

    fn link(&mut self, row: u32, at: usize, to: u32) {
        let start = self.starts[row as usize] as usize + 4 + at;
        self.buf[start..start + 4].copy_from_slice(&(to + 1).to_le_bytes());
    }

    /// The number of rows so far.
    #[inline]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is no row yet.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Bytes so far.
    pub fn byte_len(&self) -> usize {
        self.buf.len()
    }

    fn finish_row(&mut self) {
        if let Some(&start) = self.starts.last() {
            let start = start as usize;
            let len = (self.buf.len() - start - 4) as u32;
            self.buf[start..start + 4].copy_from_slice(&len.to_le_bytes());
        }
    }

    /// The finished batch.
    pub fn finish(mut self) -> Rows {
        self.finish_row();
        let n = (self.starts.len() as u32).to_le_bytes();
        self.buf[..4].copy_from_slice(&n);
        Rows {
            buf: self.buf,
            starts: self.starts,
        }
    }
}

/// A checked batch of rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    buf: Vec<u8>,
    starts: Vec<u32>,
}

/// The bytes are not a batch of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidRows {
    /// The row in which it was seen.
    pub row: u32,
    /// What is wrong.
    pub what: &'static str,
}

impl std::fmt::Display for InvalidRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "row {}: {}", self.row, self.what)
    }
}

impl std::error::Error for InvalidRows {}

impl Rows {
    /// Takes the bytes of a batch, checking every length once.
    pub fn parse(buf: Vec<u8>) -> Result<Self, InvalidRows> {
        let bad = |row: usize, what| InvalidRows {
            row: row as u32,
            what,
        };
        let n = buf.get(..4).map(le_u32).ok_or(bad(0, "no row count"))? as usize;
        let mut starts = Vec::with_capacity(n.min(buf.len() / (HEADER + 4)));
        let mut at = 4usize;
        for i in 0..n {
            let len = buf.get(at..at + 4).map(le_u32).ok_or(bad(i, "truncated"))? as usize;
            let row = buf.get(at + 4..at + 4 + len).ok_or(bad(i, "truncated"))?;
            check_row(row).map_err(|what| bad(i, what))?;
            starts.push(at as u32);
            at += 4 + len;
        }
        if at != buf.len() {
            return Err(bad(n, "bytes after the last row"));
        }
        Ok(Self { buf, starts })
    }

    /// Takes the bytes of a batch from whoever made them by [`RowsBuilder`]: finds the rows, and leaves it to
    /// [`Row::column`] to look at a column where it is read. That is what a guest does with what its host sends.
    pub fn of_host(buf: Vec<u8>) -> Result<Self, InvalidRows> {
        let bad = |row: usize, what| InvalidRows {
            row: row as u32,
            what,
        };
        let n = buf.get(..4).map(le_u32).ok_or(bad(0, "no row count"))? as usize;
        let mut starts = Vec::with_capacity(n.min(buf.len() / (HEADER + 4)));
        let mut at = 4usize;
        for i in 0..n {
            let rest = buf.get(at..).unwrap_or_default();
            let (len, rest) = rest.split_first_chunk().ok_or(bad(i, "truncated"))?;
            let len = u32::from_le_bytes(*len) as usize;
            let row = rest.get(..len).ok_or(bad(i, "truncated"))?;
            check_head(row).map_err(|what| bad(i, what))?;
            starts.push(at as u32);
            at += 4 + len;
        }
        if at != buf.len() {
            return Err(bad(n, "bytes after the last row"));
        }
        Ok(Self { buf, starts })
    }

    /// The encoded batch.
    pub fn as_bytes(&self) -> &[u8] {
        &self.buf
    }

    /// The encoded batch, taken.
    pub fn into_bytes(self) -> Vec<u8> {
        self.buf
    }

    /// The number of rows.
    #[inline]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The row at this index.
    #[inline]
    pub fn get(&self, index: usize) -> Option<Row<'_>> {
        let start = *self.starts.get(index)? as usize + 4;
        let end = self
            .starts
            .get(index + 1)
            .map_or(self.buf.len(), |&s| s as usize);
        Some(Row {
            bytes: &self.buf[start..end],
            at: start as u32,
        })
    }

    /// All rows.
    #[inline]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        (0..self.len()).map(|i| self.get(i).expect("index within len"))
    }
}

#[inline]
fn le_u32(b: &[u8]) -> u32 {
    u32::from_le_bytes([b[0], b[1], b[2], b[3]])
}

/// Gives the number of columns and where their data begins.
#[inline]
fn check_head(row: &[u8]) -> Result<(usize, usize), &'static str> {
    if row.len() < HEADER {
        return Err("shorter than its header");
    }
    Operation::from_i8(row[0] as i8).ok_or("unknown operation")?;
    let ncols = usize::from(u16::from_le_bytes([row[2], row[3]]));
    let data = HEADER + ncols * 5;
    match row.len() < data {
        true => Err("shorter than its columns"),
        false => Ok((ncols, data)),
    }
}

fn check_row(row: &[u8]) -> Result<(), &'static str> {
    let (ncols, data) = check_head(row)?;
    let mut last = 0;
    for i in 0..ncols {
        let end = le_u32(&row[HEADER + i * 4..]);
        if end < last || end as usize > row.len() - data {
            return Err("column end out of bounds");
        }
        last = end;
        ColumnTag::from_u8(row[HEADER + ncols * 4 + i]).ok_or("unknown column tag")?;
    }
    Ok(())
}

/// A view of one row.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    bytes: &'a [u8],
    at: u32,
}

impl<'a> Row<'a> {
    /// The fixed part.
    #[inline]
    pub fn meta(&self) -> RowMeta {
        let b = self.bytes;
        RowMeta {
            operation: Operation::from_i8(b[0] as i8).expect("checked"),
            context: b[1] & 1 != 0,
            end_of_batch: b[1] & 2 != 0,
            table: le_u32(&b[4..]),
            time_us: i64::from_le_bytes(b[8..16].try_into().expect("eight bytes")),
            ttl: le_u32(&b[16..]),
        }
    }

    /// Whether something is to be made of it: it is no image, no end of a range, no context.
    #[inline]
    pub fn is_change(&self) -> bool {
        let linked = matches!(
            self.operation(),
            Operation::PreImage
                | Operation::PostImage
                | Operation::RangeDeleteEndInclusive
                | Operation::RangeDeleteEndExclusive
        );
        !linked && self.bytes[1] & 1 == 0
    }

    /// Whether the source has marked it so.
    #[inline]
    pub fn is_marked(&self, mark: Mark) -> bool {
        self.bytes[1] & mark as u8 != 0
    }

    /// The operation.
    #[inline]
    pub fn operation(&self) -> Operation {
        Operation::from_i8(self.bytes[0] as i8).expect("checked")
    }

    /// The table version's id.
    #[inline]
    pub fn table(&self) -> u32 {
        le_u32(&self.bytes[4..])
    }

    /// The index in the batch of this row's preimage.
    #[inline]
    pub fn preimage(&self) -> Option<u32> {
        le_u32(&self.bytes[20..]).checked_sub(1)
    }

    /// The index in the batch of this row's postimage, or of the end of its range.
    #[inline]
    pub fn end(&self) -> Option<u32> {
        le_u32(&self.bytes[24..]).checked_sub(1)
    }

    /// The number of columns.
    #[inline]
    pub fn columns(&self) -> usize {
        usize::from(u16::from_le_bytes([self.bytes[2], self.bytes[3]]))
    }

    /// A column's tag and bytes; `None` past the last column, and where those of [`Rows::of_host`] do not hold.
    #[inline]
    pub fn column(&self, index: usize) -> Option<(ColumnTag, &'a [u8])> {
        let (tag, range) = self.column_range(index)?;
        Some((tag, self.bytes.get(range)?))
    }

    /// A column's tag; `None` past the last column.
    #[inline]
    pub fn tag(&self, index: usize) -> Option<ColumnTag> {
        let ncols = self.columns();
        let tag = self.bytes.get(HEADER + ncols * 4 + index)?;
        (index < ncols).then_some(ColumnTag::from_u8(*tag)?)
    }

    /// Where a column's bytes stand in [`Rows::as_bytes`].
    #[inline]
    pub fn column_span(&self, index: usize) -> Option<(ColumnTag, std::ops::Range<u32>)> {
        let (tag, range) = self.column_range(index)?;
        Some((
            tag,
            self.at + range.start as u32..self.at + range.end as u32,
        ))
    }

    #[inline]
    fn column_range(&self, index: usize) -> Option<(ColumnTag, std::ops::Range<usize>)> {
        let ncols = self.columns();
        if index >= ncols {
            return None;
        }
        let data = HEADER + ncols * 5;
        // The end of the column before it stands before its own; before that of the first stands a link.
        let ends = self.bytes.get(HEADER - 4 + index * 4..)?;
        let ends = ends.first_chunk::<8>()?;
        let start = match index {
            0 => 0,
            _ => le_u32(ends),
        };
        let range = data + start as usize..data + le_u32(&ends[4..]) as usize;
        let tag = *self.bytes.get(HEADER + ncols * 4 + index)?;
        Some((ColumnTag::from_u8(tag)?, range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(operation: Operation) -> RowMeta {
        RowMeta {
            operation,
            context: false,
            end_of_batch: true,
            table: 9,
            time_us: -5,
            ttl: 60,
        }
    }

    #[test]
    fn rows_survive_their_encoding() {
        let mut b = RowsBuilder::new();
        let pre = b.row(meta(Operation::PreImage), 1);
        b.column(ColumnTag::Value, &[b"old"]);
        let row = b.row(meta(Operation::Update), 3);
        b.column(ColumnTag::Value, &[b"ab", b"c"]);
        b.column(ColumnTag::Unchanged, &[]);
        b.merged(b"added", b"gone");
        b.link_preimage(row, pre);
        b.row(meta(Operation::Insert), 0);
        b.undo_row();
        let rows = b.finish();
        let rows = Rows::parse(rows.as_bytes().to_vec()).unwrap();
        assert_eq!(rows.len(), 2);
        let row = rows.get(1).unwrap();
        assert_eq!(row.meta(), meta(Operation::Update));
        assert_eq!((row.preimage(), row.end()), (Some(0), None));
        assert_eq!(row.column(0), Some((ColumnTag::Value, &b"abc"[..])));
        assert_eq!(row.column(1), Some((ColumnTag::Unchanged, &b""[..])));
        assert_eq!(
            row.column(2),
            Some((ColumnTag::Merged, &b"\x05\0\0\0addedgone"[..]))
        );
        assert_eq!(row.column(3), None);
        assert_eq!((row.tag(2), row.tag(3)), (Some(ColumnTag::Merged), None));
        let (_, span) = row.column_span(0).unwrap();
        assert_eq!(
            &rows.as_bytes()[span.start as usize..span.end as usize],
            b"abc"
        );
    }

    #[test]
    fn a_copied_row_keeps_only_what_is_asked_for() {
        let mut b = RowsBuilder::new();
        let pre = b.row(meta(Operation::PreImage), 0);
        let row = b.row(meta(Operation::Update), 4);
        b.column(ColumnTag::Value, &[b"one"]);
        b.column(ColumnTag::Null, &[]);
        b.column(ColumnTag::Value, &[b"three"]);
        b.column(ColumnTag::Replaced, &[b"four"]);
        b.link_preimage(row, pre);
        b.mark(row, Mark::Late);
        let rows = b.finish();

        let mut b = RowsBuilder::new();
        b.copy_row(&rows.get(1).unwrap(), None);
        let some = Projection::new(vec![false, true, true]);
        b.copy_row(&rows.get(1).unwrap(), Some(&some));
        let copy = Rows::parse(b.finish().as_bytes().to_vec()).unwrap();
        let all = copy.get(0).unwrap();
        assert_eq!(all.preimage(), None, "links are the new batch's business");
        assert_eq!(all.meta(), meta(Operation::Update));
        assert_eq!(all.column(3), Some((ColumnTag::Replaced, &b"four"[..])));
        let some = copy.get(1).unwrap();
        assert_eq!(some.column(0), Some((ColumnTag::Unsent, &b""[..])));
        assert_eq!(some.column(1), Some((ColumnTag::Null, &b""[..])));
        assert_eq!(some.column(2), Some((ColumnTag::Value, &b"three"[..])));
        assert_eq!(some.column(3), Some((ColumnTag::Unsent, &b""[..])));
        let marks = Mark::ALL.map(|mark| some.is_marked(mark));
        assert_eq!(marks, [true, false, false]);
    }

    #[test]
    fn every_projection_keeps_its_columns_and_no_other() {
        let mut b = RowsBuilder::new();
        b.row(meta(Operation::Insert), 5);
        for value in [&b"one"[..], b"", b"three", b"4", b"five"] {
            b.column(ColumnTag::Value, &[value]);
        }
        let rows = b.finish();
        let row = rows.get(0).unwrap();
        for bits in 0..64u8 {
            // A mask of another length is one of another version of the table: what it does not name is not sent.
            let mask: Vec<bool> = (0..6).map(|c| bits >> c & 1 == 1).collect();
            let projection = Projection::new(mask.clone());
            let mut b = RowsBuilder::new();
            b.copy_row(&row, Some(&projection));
            let copy = Rows::parse(b.finish().into_bytes()).unwrap();
            for (column, kept) in mask.iter().take(5).enumerate() {
                assert_eq!(projection.has(column), *kept);
                let expected = match kept {
                    true => row.column(column),
                    false => Some((ColumnTag::Unsent, &b""[..])),
                };
                assert_eq!(copy.get(0).unwrap().column(column), expected);
            }
        }
    }

    #[test]
    fn bytes_cut_anywhere_are_refused() {
        let mut b = RowsBuilder::new();
        b.row(meta(Operation::Insert), 1);
        b.column(ColumnTag::Value, &[b"abc"]);
        let whole = b.finish().as_bytes().to_vec();
        for cut in 0..whole.len() {
            assert!(Rows::parse(whole[..cut].to_vec()).is_err(), "cut at {cut}");
            let unread = Rows::of_host(whole[..cut].to_vec());
            assert!(unread.is_err(), "cut at {cut}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_spoilt_batch_is_refused_or_read_without_a_panic(
            at in proptest::prelude::any::<proptest::sample::Index>(),
            to in proptest::prelude::any::<u8>(),
        ) {
            let mut b = RowsBuilder::new();
            for _ in 0..2 {
                b.row(meta(Operation::Insert), 2);
                b.column(ColumnTag::Value, &[b"abc"]);
                b.merged(b"x", b"y");
            }
            let mut bytes = b.finish().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = to;
            for rows in [Rows::parse(bytes.clone()), Rows::of_host(bytes)].into_iter().flatten() {
                for row in rows.iter() {
                    row.meta();
                    let linked = [row.preimage(), row.end()];
                    linked.into_iter().flatten().for_each(|i| { rows.get(i as usize); });
                    for column in 0..=row.columns() {
                        row.column(column);
                        row.column_span(column);
                        row.tag(column);
                    }
                }
            }
        }
    }
}
