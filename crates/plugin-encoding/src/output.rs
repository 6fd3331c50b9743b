//! The output of a transform: what became of each change of a batch.
//!
//! All integers are little-endian, all text is UTF-8. `u32 n`, then `n` entries, each with a `u8` kind:
//!
//! ```text
//! 0 topic    u16 len, name              topics are numbered from 0 in the order of these entries
//! 1 record   u32 source, u16 topic, u16 parts, then the parts:
//!              0 key     field
//!              1 value   field
//!              2 header  u16 len, name, field     names are numbered from 0 in the order of these parts
//!              3 header  u16 number, field        of a name that stood in an earlier part; 65,536 have one
//! 2 forward  u32 source                 hand the change on unchanged
//! 3 drop     u32 source                 let go of it; a change that is not named at all is dropped too
//! 4 error    u32 source, u32 len, text  this change can never succeed: dead-letter it
//! 5 retry    u32 source, u32 len, text  not now: hand this change, and all after it, again later
//!
//! field      u8 0                       null
//!            u8 1, u32 len, bytes
//!            u8 2, u32 row, u16 column  the bytes of a column of the input, copied by nobody; it need not
//!                                       have been sent, but must have a value (or null: a null field)
//!            u8 3, u32 row, u16 column  the same; where the change does not set the column: null
//! ```
//!
//! `source` is the index of a row of the input that is a change (no image, no range end, no context), and
//! sources never decrease: a transform keeps the order. A later key or value of a record replaces an earlier
//! one; absent ones are null. An error entry takes back all that the change made. So does a retry entry, which is the
//! last: what comes after it in the batch is not done, so that the order is kept and no change is seen twice.

use std::fmt;
use std::ops::Range;

use crate::bytes::{copy, same};

/// A field as its writer gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    /// Null.
    Null,
    /// These bytes.
    Bytes(&'a [u8]),
    /// The bytes of a column of the input; a null column is a null field.
    Column(ColumnRef),
    /// … so is one that the change does not set.
    ColumnOrNull(ColumnRef),
}

/// Names a column of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnRef {
    /// Index of the row in the input batch.
    pub row: u32,
    /// Index of the column in its table.
    pub column: u16,
}

impl<'a> From<&'a [u8]> for Field<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Field::Bytes(bytes)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Field<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Field::Bytes(bytes)
    }
}

impl<'a> From<&'a str> for Field<'a> {
    fn from(text: &'a str) -> Self {
        Field::Bytes(text.as_bytes())
    }
}

impl<'a> From<&'a String> for Field<'a> {
    fn from(text: &'a String) -> Self {
        Field::Bytes(text.as_bytes())
    }
}

impl<'a> From<&'a Vec<u8>> for Field<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Field::Bytes(bytes)
    }
}

impl From<ColumnRef> for Field<'_> {
    fn from(column: ColumnRef) -> Self {
        Field::Column(column)
    }
}

impl<'a, T: Into<Field<'a>>> From<Option<T>> for Field<'a> {
    fn from(field: Option<T>) -> Self {
        field.map_or(Field::Null, Into::into)
    }
}

const TOPIC: u8 = 0;
const RECORD: u8 = 1;
const FORWARD: u8 = 2;
const DROP: u8 = 3;
const ERROR: u8 = 4;
const RETRY: u8 = 5;

const KEY: u8 = 0;
const VALUE: u8 = 1;
const HEADER: u8 = 2;
const KNOWN_HEADER: u8 = 3;

/// Headers' names that have a number.
const NAMES: usize = 1 << 16;

/// Writes the output of one batch.
#[derive(Debug, Default)]
pub struct OutputWriter {
    /// What is written, then zeros up to where there is room.
    buf: Vec<u8>,
    /// Where what is written ends.
    at: usize,
    entries: u32,
    topics: Vec<String>,
    /// The topic of the last record.
    topic: usize,
    /// The numbered names of headers, where they stand.
    names: Vec<(u32, u16)>,
    /// The number of the name that comes next if this record's headers are those of the one before.
    name: usize,
    /// Where the part count of the record being written stands, and the count.
    parts: (usize, u16),
}

/// A point to which an [`OutputWriter`] can go back.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    at: usize,
    entries: u32,
    topics: usize,
    names: usize,
}

impl OutputWriter {
    /// An empty output with room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            buf: vec![0; bytes + 4],
            at: 4,
            ..Self::default()
        }
    }

    /// Room for so many bytes more, to be written now.
    #[inline]
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        // The number of entries stands first.
        let start = self.at.max(4);
        let end = start + bytes;
        if end > self.buf.len() {
            self.grow(end);
        }
        self.at = end;
        &mut self.buf[start..end]
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, end: usize) {
        self.buf.resize((end * 2).max(64), 0);
    }

    #[inline]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.room(N).copy_from_slice(&bytes);
    }

    /// Starts a record of this change; [`Self::key`], [`Self::value`] and [`Self::header`] then add to it.
    ///
    /// # Panics
    /// On a topic longer than 65,535 bytes and on the 65,537th topic of a batch.
    #[inline]
    pub fn record(&mut self, source: u32, topic: &str) {
        self.end_record();
        // A batch has few topics, and mostly the same one again.
        let known = self.topics.get(self.topic);
        if known.is_none_or(|known| !same(known.as_bytes(), topic.as_bytes())) {
            self.topic = self.topic(topic);
        }
        let [t, u] = (self.topic as u16).to_le_bytes();
        let [a, b, c, d] = source.to_le_bytes();
        self.entries += 1;
        self.put([RECORD, a, b, c, d, t, u, 0, 0]);
        self.parts = (self.at - 2, 0);
        self.name = 0;
    }

    fn topic(&mut self, name: &str) -> usize {
        if let Some(known) = self.topics.iter().rposition(|t| t == name) {
            return known;
        }
        let len = u16::try_from(name.len()).expect("a topic's name of less than 64 KiB");
        let number = self.topics.len();
        assert!(number < 1 << 16, "at most 65,536 topics a batch");
        self.entries += 1;
        let [a, b] = len.to_le_bytes();
        self.put([TOPIC, a, b]);
        copy(self.room(name.len()), name.as_bytes());
        self.topics.push(name.to_owned());
        number
    }

    #[inline]
    fn entry(&mut self, kind: u8, source: u32) {
        self.end_record();
        self.entries += 1;
        let [a, b, c, d] = source.to_le_bytes();
        self.put([kind, a, b, c, d]);
    }

    /// Counts a part of the last record.
    #[inline]
    fn part(&mut self) {
        let (_, parts) = &mut self.parts;
        *parts = parts.checked_add(1).expect("at most 65,535 parts a record");
    }

    #[inline]
    fn end_record(&mut self) {
        let (at, parts) = std::mem::take(&mut self.parts);
        if parts > 0 {
            self.buf[at..at + 2].copy_from_slice(&parts.to_le_bytes());
        }
    }

    /// Writes what a part begins with, and its field.
    #[inline]
    fn field<const N: usize>(&mut self, head: [u8; N], field: Field<'_>) {
        match field {
            Field::Null => {
                let room = self.room(N + 1);
                room[..N].copy_from_slice(&head);
                room[N] = 0;
            }
            Field::Bytes(bytes) => {
                let room = self.room(N + 5 + bytes.len());
                let (start, rest) = room.split_at_mut(N + 5);
                start[..N].copy_from_slice(&head);
                start[N] = 1;
                start[N + 1..].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
                copy(rest, bytes);
            }
            Field::Column(column) | Field::ColumnOrNull(column) => {
                let room = self.room(N + 7);
                room[..N].copy_from_slice(&head);
                room[N] = if matches!(field, Field::Column(_)) {
                    2
                } else {
                    3
                };
                room[N + 1..N + 5].copy_from_slice(&column.row.to_le_bytes());
                room[N + 5..].copy_from_slice(&column.column.to_le_bytes());
            }
        }
    }

    /// Sets the key of the last record.
    #[inline]
    pub fn key(&mut self, field: Field<'_>) {
        self.part();
        self.field([KEY], field);
    }

    /// Sets the value of the last record.
    #[inline]
    pub fn value(&mut self, field: Field<'_>) {
        self.part();
        self.field([VALUE], field);
    }

    /// Adds a header to the last record.
    ///
    /// # Panics
    /// On a name longer than 65,535 bytes.
    #[inline]
    pub fn header(&mut self, name: &str, field: Field<'_>) {
        self.part();
        // Records mostly have the headers of the one before, in its order.
        let number = match self.is_named(self.name, name) {
            true => Some(self.name),
            false => self.number(name),
        };
        match number {
            Some(number) => {
                self.name = number + 1;
                let [a, b] = (number as u16).to_le_bytes();
                self.field([KNOWN_HEADER, a, b], field);
            }
            None => self.named_header(name, field),
        }
    }

    #[inline]
    fn is_named(&self, number: usize, name: &str) -> bool {
        let Some(&(at, len)) = self.names.get(number) else {
            return false;
        };
        let known = self.buf.get(at as usize..at as usize + usize::from(len));
        known.is_some_and(|known| same(known, name.as_bytes()))
    }

    fn number(&self, name: &str) -> Option<usize> {
        // Where there are many, whoever writes them makes them up as it goes.
        const LOOKED_AT: usize = 32;
        (0..self.names.len().min(LOOKED_AT)).find(|number| self.is_named(*number, name))
    }

    fn named_header(&mut self, name: &str, field: Field<'_>) {
        let len = u16::try_from(name.len()).expect("a header's name of less than 64 KiB");
        let [a, b] = len.to_le_bytes();
        self.put([HEADER, a, b]);
        let at = self.at as u32;
        copy(self.room(name.len()), name.as_bytes());
        if self.names.len() < NAMES {
            self.names.push((at, len));
            self.name = self.names.len();
        }
        self.field([], field);
    }

    /// Hands the change on unchanged.
    #[inline]
    pub fn forward(&mut self, source: u32) {
        self.entry(FORWARD, source);
    }

    /// Lets go of the change.
    #[inline]
    pub fn drop_change(&mut self, source: u32) {
        self.entry(DROP, source);
    }

    /// Refuses the change.
    pub fn error(&mut self, source: u32, message: &str) {
        self.message(ERROR, source, message);
    }

    /// Asks to be handed the change, and all after it, again later. Nothing may be written after it.
    pub fn retry(&mut self, source: u32, message: &str) {
        self.message(RETRY, source, message);
    }

    fn message(&mut self, kind: u8, source: u32, message: &str) {
        self.entry(kind, source);
        self.put((message.len() as u32).to_le_bytes());
        copy(self.room(message.len()), message.as_bytes());
    }

    /// Remembers this point, which is after the last record.
    #[inline]
    pub fn mark(&mut self) -> Mark {
        self.end_record();
        Mark {
            at: self.at,
            entries: self.entries,
            topics: self.topics.len(),
            names: self.names.len(),
        }
    }

    /// Takes back all that was written since.
    pub fn undo_to(&mut self, mark: Mark) {
        self.parts = (0, 0);
        self.at = mark.at;
        self.entries = mark.entries;
        self.topics.truncate(mark.topics);
        self.names.truncate(mark.names);
    }

    /// The finished bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.end_record();
        self.room(0);
        self.buf.truncate(self.at);
        self.buf[..4].copy_from_slice(&self.entries.to_le_bytes());
        self.buf
    }
}

/// A field as its reader finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldSpan {
    /// Null.
    Null,
    /// These bytes of the output.
    Bytes(Range<u32>),
    /// A column of the input. Whether it exists is for the host to check.
    Column(ColumnRef),
    /// … which is null where the change does not set it.
    ColumnOrNull(ColumnRef),
}

/// One step of reading an output. The parts of a record follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Defines the next topic.
    Topic(Range<u32>),
    /// Starts a record; `topic` was defined before.
    Record {
        /// Row of the input.
        source: u32,
        /// Number of its topic.
        topic: u16,
    },
    /// The key of the record.
    Key(FieldSpan),
    /// The value of the record.
    Value(FieldSpan),
    /// A header of the record; the name is UTF-8.
    Header(Range<u32>, FieldSpan),
    /// The change goes on unchanged.
    Forward(u32),
    /// The change is let go of.
    Drop(u32),
    /// The change is refused; the message is UTF-8.
    Error(u32, Range<u32>),
    /// The change, and all after it, is to be handed out again later; the message is UTF-8. The last event.
    Retry(u32, Range<u32>),
}

/// The bytes are not an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidOutput {
    /// The byte at which it was seen.
    pub at: usize,
    /// What is wrong.
    pub what: &'static str,
}

impl fmt::Display for InvalidOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}", self.at, self.what)
    }
}

impl std::error::Error for InvalidOutput {}

/// Reads an output as a stream of [`Event`]s, checking every length against the bytes.
#[derive(Debug)]
pub struct OutputReader<'a> {
    buf: &'a [u8],
    at: usize,
    entries: u32,
    parts: u16,
    topics: u32,
    /// The numbered names of headers, which were looked at.
    names: Vec<Range<u32>>,
}

impl<'a> OutputReader<'a> {
    /// Starts reading.
    pub fn new(buf: &'a [u8]) -> Result<Self, InvalidOutput> {
        let mut reader = Self {
            buf,
            at: 0,
            entries: 0,
            parts: 0,
            topics: 0,
            names: Vec::new(),
        };
        if u32::try_from(buf.len()).is_err() {
            return Err(reader.bad("more than 4 GiB"));
        }
        reader.entries = reader.u32()?;
        Ok(reader)
    }

    /// The next event; `None` once all entries are read.
    #[inline]
    pub fn next_event(&mut self) -> Result<Option<Event>, InvalidOutput> {
        if self.parts > 0 {
            self.parts -= 1;
            return self.read_part().map(Some);
        }
        if self.entries == 0 {
            return if self.at == self.buf.len() {
                Ok(None)
            } else {
                Err(self.bad("bytes after the last entry"))
            };
        }
        self.entries -= 1;
        let event = match self.u8()? {
            TOPIC => {
                let len = self.u16()?;
                self.topics += 1;
                Event::Topic(self.text(u32::from(len))?)
            }
            RECORD => {
                let source = self.u32()?;
                let topic = self.u16()?;
                if u32::from(topic) >= self.topics {
                    return Err(self.bad("a topic that was not defined before"));
                }
                self.parts = self.u16()?;
                Event::Record { source, topic }
            }
            FORWARD => Event::Forward(self.u32()?),
            DROP => Event::Drop(self.u32()?),
            ERROR => {
                let source = self.u32()?;
                let len = self.u32()?;
                Event::Error(source, self.text(len)?)
            }
            RETRY => {
                let source = self.u32()?;
                let len = self.u32()?;
                let text = self.text(len)?;
                if self.entries > 0 {
                    return Err(self.bad("an entry after a retry, which is the last"));
                }
                Event::Retry(source, text)
            }
            _ => return Err(self.bad("unknown kind of entry")),
        };
        Ok(Some(event))
    }

    #[inline]
    fn read_part(&mut self) -> Result<Event, InvalidOutput> {
        Ok(match self.u8()? {
            KEY => Event::Key(self.field()?),
            VALUE => Event::Value(self.field()?),
            KNOWN_HEADER => {
                let number = self.u16()?;
                let name = self.names.get(usize::from(number)).cloned();
                let name =
                    name.ok_or_else(|| self.bad("a header's name that did not stand before"))?;
                Event::Header(name, self.field()?)
            }
            HEADER => {
                let len = self.u16()?;
                let name = self.text(u32::from(len))?;
                if self.names.len() < NAMES {
                    self.names.push(name.clone());
                }
                Event::Header(name, self.field()?)
            }
            _ => return Err(self.bad("unknown part of a record")),
        })
    }

    #[inline]
    fn field(&mut self) -> Result<FieldSpan, InvalidOutput> {
        Ok(match self.u8()? {
            0 => FieldSpan::Null,
            1 => {
                let len = self.u32()?;
                FieldSpan::Bytes(self.span(len)?)
            }
            kind @ (2 | 3) => {
                let column = ColumnRef {
                    row: self.u32()?,
                    column: self.u16()?,
                };
                match kind {
                    2 => FieldSpan::Column(column),
                    _ => FieldSpan::ColumnOrNull(column),
                }
            }
            _ => return Err(self.bad("unknown kind of field")),
        })
    }

    fn bad(&self, what: &'static str) -> InvalidOutput {
        InvalidOutput { at: self.at, what }
    }

    #[inline]
    fn span(&mut self, len: u32) -> Result<Range<u32>, InvalidOutput> {
        let start = self.at as u32;
        let end = start
            .checked_add(len)
            .filter(|&end| end as usize <= self.buf.len())
            .ok_or_else(|| self.bad("a length beyond the end"))?;
        self.at = end as usize;
        Ok(start..end)
    }

    #[inline]
    fn text(&mut self, len: u32) -> Result<Range<u32>, InvalidOutput> {
        let span = self.span(len)?;
        let bytes = &self.buf[span.start as usize..span.end as usize];
        std::str::from_utf8(bytes).map_err(|_| self.bad("text that is not UTF-8"))?;
        Ok(span)
    }

    #[inline]
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], InvalidOutput> {
        let bytes = self
            .buf
            .get(self.at..self.at + N)
            .ok_or_else(|| self.bad("truncated"))?;
        self.at += N;
        Ok(bytes.try_into().expect("N bytes"))
    }

    #[inline]
    fn u8(&mut self) -> Result<u8, InvalidOutput> {
        self.bytes::<1>().map(|[b]| b)
    }

    #[inline]
    fn u16(&mut self) -> Result<u16, InvalidOutput> {
        self.bytes().map(u16::from_le_bytes)
    }

    #[inline]
    fn u32(&mut self) -> Result<u32, InvalidOutput> {
        self.bytes().map(u32::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(buf: &[u8]) -> Result<Vec<Event>, InvalidOutput> {
        let mut reader = OutputReader::new(buf)?;
        let mut events = Vec::new();
        while let Some(event) = reader.next_event()? {
            events.push(event);
        }
        Ok(events)
    }

    fn sample() -> Vec<u8> {
        let mut w = OutputWriter::default();
        w.record(0, "a");
        w.key("k".into());
        w.header("h", Field::Null);
        w.forward(1);
        let mark = w.mark();
        w.record(2, "undone");
        w.value("gone".into());
        w.undo_to(mark);
        w.error(2, "bad");
        w.drop_change(3);
        w.record(4, "b");
        w.value(ColumnRef { row: 4, column: 7 }.into());
        w.key(Field::ColumnOrNull(ColumnRef { row: 4, column: 8 }));
        w.retry(5, "later");
        w.finish()
    }

    #[test]
    fn an_output_survives_its_encoding() {
        let buf = sample();
        let text = |r: &Range<u32>| {
            std::str::from_utf8(&buf[r.start as usize..r.end as usize])
                .unwrap()
                .to_owned()
        };
        let events = read(&buf).unwrap();
        let shown: Vec<String> = events
            .iter()
            .map(|e| match e {
                Event::Topic(t) => format!("topic {}", text(t)),
                Event::Record { source, topic } => format!("record {source} {topic}"),
                Event::Key(FieldSpan::Bytes(b)) => format!("key {}", text(b)),
                Event::Header(n, FieldSpan::Null) => format!("header {} null", text(n)),
                Event::Value(FieldSpan::Column(c)) => format!("value {}.{}", c.row, c.column),
                Event::Key(FieldSpan::ColumnOrNull(c)) => format!("key {}.{}?", c.row, c.column),
                Event::Error(s, m) => format!("error {s} {}", text(m)),
                Event::Retry(s, m) => format!("retry {s} {}", text(m)),
                other => format!("{other:?}"),
            })
            .collect();
        assert_eq!(
            shown,
            [
                "topic a",
                "record 0 0",
                "key k",
                "header h null",
                "Forward(1)",
                "error 2 bad",
                "Drop(3)",
                "topic b",
                "record 4 1",
                "value 4.7",
                "key 4.8?",
                "retry 5 later"
            ]
        );
    }

    #[test]
    fn a_retry_is_the_last() {
        let mut w = OutputWriter::default();
        w.retry(0, "later");
        w.forward(1);
        let error = read(&w.finish()).unwrap_err();
        assert_eq!(error.what, "an entry after a retry, which is the last");
    }

    #[test]
    fn a_name_is_written_once_and_known_by_its_number() {
        let mut w = OutputWriter::default();
        w.record(0, "t");
        w.header("one", "1".into());
        w.header("two", "2".into());
        let mark = w.mark();
        w.record(1, "t");
        w.header("late", Field::Null);
        w.undo_to(mark);
        w.record(1, "t");
        w.header("two", "22".into());
        w.header("", Field::Null);
        w.header("one", "11".into());
        w.header("late", Field::Null);
        let buf = w.finish();
        let names: Vec<&[u8]> = read(&buf)
            .unwrap()
            .iter()
            .filter_map(|event| match event {
                Event::Header(name, _) => Some(&buf[name.start as usize..name.end as usize]),
                _ => None,
            })
            .collect();
        let expected = [&b"one"[..], b"two", b"two", b"", b"one", b"late"];
        assert_eq!(names, expected);
        for name in ["one", "two", "late"] {
            let found = buf.windows(name.len()).filter(|w| *w == name.as_bytes());
            assert_eq!(found.count(), 1, "{name}");
        }
    }

    #[test]
    fn a_name_that_did_not_stand_before_is_refused() {
        let mut w = OutputWriter::default();
        w.record(0, "t");
        w.header("h", Field::Null);
        w.header("h", Field::Null);
        let mut buf = w.finish();
        assert_eq!(read(&buf).unwrap().len(), 4);
        // The last part: its role, the number, the field.
        let at = buf.len() - 3;
        buf[at] = 1;
        assert!(read(&buf).is_err());
    }

    #[test]
    fn an_output_cut_anywhere_is_refused() {
        let whole = sample();
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut]).is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }

        #[test]
        fn a_flipped_byte_never_panics_and_spans_stay_inside(at in 0..200usize, to in any::<u8>()) {
            let mut buf = sample();
            let at = at % buf.len();
            buf[at] = to;
            for event in read(&buf).into_iter().flatten() {
                if let Event::Topic(s) | Event::Error(_, s) | Event::Value(FieldSpan::Bytes(s)) = event {
                    prop_assert!(s.start <= s.end && s.end as usize <= buf.len());
                }
            }
        }
    }
}
