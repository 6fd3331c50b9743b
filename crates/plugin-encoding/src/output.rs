//! The output of a transform: what became of each change of a batch.
//!
//! All integers are little-endian, all text is UTF-8. `u32 n`, then `n` entries, each with a `u8` kind:
//!
//! ```text
//! 0 topic    u16 len, name              topics are numbered from 0 in the order of these entries
//! 1 record   u32 source, u16 topic, u16 parts, then the parts:
//!              0 key     field
//!              1 value   field
//!              2 header  u16 len, name, field
//! 2 forward  u32 source                 hand the change on unchanged
//! 3 drop     u32 source                 let go of it; a change that is not named at all is dropped too
//! 4 error    u32 source, u32 len, text  this change can never succeed: dead-letter it
//! 5 retry    u32 source, u32 len, text  not now: hand this change, and all after it, again later
//!
//! field      u8 0                       null
//!            u8 1, u32 len, bytes
//!            u8 2, u32 row, u16 column  the bytes of a column of the input, copied by nobody; it need not
//!                                       have been sent, but must have a value (or null: a null field)
//! ```
//!
//! `source` is the index of a row of the input that is a change (no image, no range end, no context), and
//! sources never decrease: a transform keeps the order. A later key or value of a record replaces an earlier
//! one; absent ones are null. An error entry takes back all that the change made. So does a retry entry, which is the
//! last: what comes after it in the batch is not done, so that the order is kept and no change is seen twice.

use std::fmt;
use std::ops::Range;

/// A field as its writer gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    /// Null.
    Null,
    /// These bytes.
    Bytes(&'a [u8]),
    /// The bytes of a column of the input; a null column is a null field.
    Column(ColumnRef),
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

/// Bytes that are copied in place in a guest. A copy whose length is known only as it runs is a call into the host
/// there (`memory.copy`), which costs more than so many bytes.
const SHORT: usize = 96;

/// Appends bytes.
#[inline]
fn put(buf: &mut Vec<u8>, bytes: &[u8]) {
    if !cfg!(target_arch = "wasm32") || bytes.len() > SHORT {
        return buf.extend_from_slice(bytes);
    }
    buf.reserve(bytes.len());
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        buf.extend_from_slice(word);
    }
    let (half, rest) = rest.as_chunks::<4>();
    for word in half {
        buf.extend_from_slice(word);
    }
    for byte in rest {
        buf.push(*byte);
    }
}

/// Writes the output of one batch.
#[derive(Debug)]
pub struct OutputWriter {
    buf: Vec<u8>,
    entries: u32,
    topics: Vec<String>,
    /// Where the part count of the record being written stands.
    parts_at: usize,
}

/// A point to which an [`OutputWriter`] can go back.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    len: usize,
    entries: u32,
    topics: usize,
}

impl Default for OutputWriter {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl OutputWriter {
    /// An empty output with room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut buf = Vec::with_capacity(bytes + 4);
        buf.extend_from_slice(&[0; 4]);
        Self {
            buf,
            entries: 0,
            topics: Vec::new(),
            parts_at: 0,
        }
    }

    /// Starts a record of this change; [`Self::key`], [`Self::value`] and [`Self::header`] then add to it.
    ///
    /// # Panics
    /// On a topic longer than 65,535 bytes and on the 65,537th topic of a batch.
    pub fn record(&mut self, source: u32, topic: &str) {
        let topic = self.topic(topic);
        self.entry(RECORD, source);
        self.buf.extend_from_slice(&topic.to_le_bytes());
        self.parts_at = self.buf.len();
        self.buf.extend_from_slice(&[0; 2]);
    }

    fn topic(&mut self, name: &str) -> u16 {
        // A batch has few topics, and mostly the same one again.
        let found = self.topics.iter().rposition(|t| t == name);
        let index = found.unwrap_or_else(|| {
            let len = u16::try_from(name.len()).expect("a topic's name of less than 64 KiB");
            self.entries += 1;
            self.buf.push(TOPIC);
            self.buf.extend_from_slice(&len.to_le_bytes());
            put(&mut self.buf, name.as_bytes());
            self.topics.push(name.to_owned());
            self.topics.len() - 1
        });
        u16::try_from(index).expect("at most 65,536 topics a batch")
    }

    #[inline]
    fn entry(&mut self, kind: u8, source: u32) {
        self.entries += 1;
        let [a, b, c, d] = source.to_le_bytes();
        self.buf.extend_from_slice(&[kind, a, b, c, d]);
    }

    #[inline]
    fn part(&mut self, role: u8) {
        let at = self.parts_at;
        let parts = u16::from_le_bytes([self.buf[at], self.buf[at + 1]])
            .checked_add(1)
            .expect("at most 65,535 parts a record");
        self.buf[at..at + 2].copy_from_slice(&parts.to_le_bytes());
        self.buf.push(role);
    }

    #[inline]
    fn field(&mut self, field: Field<'_>) {
        match field {
            Field::Null => self.buf.push(0),
            Field::Bytes(bytes) => {
                let [a, b, c, d] = (bytes.len() as u32).to_le_bytes();
                self.buf.extend_from_slice(&[1, a, b, c, d]);
                put(&mut self.buf, bytes);
            }
            Field::Column(column) => {
                let [a, b, c, d] = column.row.to_le_bytes();
                let [e, f] = column.column.to_le_bytes();
                self.buf.extend_from_slice(&[2, a, b, c, d, e, f]);
            }
        }
    }

    /// Sets the key of the last record.
    pub fn key(&mut self, field: Field<'_>) {
        self.part(KEY);
        self.field(field);
    }

    /// Sets the value of the last record.
    pub fn value(&mut self, field: Field<'_>) {
        self.part(VALUE);
        self.field(field);
    }

    /// Adds a header to the last record.
    ///
    /// # Panics
    /// On a name longer than 65,535 bytes.
    #[inline]
    pub fn header(&mut self, name: &str, field: Field<'_>) {
        self.part(HEADER);
        let len = u16::try_from(name.len()).expect("a header's name of less than 64 KiB");
        self.buf.extend_from_slice(&len.to_le_bytes());
        put(&mut self.buf, name.as_bytes());
        self.field(field);
    }

    /// Hands the change on unchanged.
    pub fn forward(&mut self, source: u32) {
        self.entry(FORWARD, source);
    }

    /// Lets go of the change.
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
        self.buf
            .extend_from_slice(&(message.len() as u32).to_le_bytes());
        self.buf.extend_from_slice(message.as_bytes());
    }

    /// Remembers this point.
    pub fn mark(&self) -> Mark {
        Mark {
            len: self.buf.len(),
            entries: self.entries,
            topics: self.topics.len(),
        }
    }

    /// Takes back all that was written since.
    pub fn undo_to(&mut self, mark: Mark) {
        self.buf.truncate(mark.len);
        self.entries = mark.entries;
        self.topics.truncate(mark.topics);
    }

    /// The finished bytes.
    pub fn finish(mut self) -> Vec<u8> {
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
        };
        if u32::try_from(buf.len()).is_err() {
            return Err(reader.bad("more than 4 GiB"));
        }
        reader.entries = reader.u32()?;
        Ok(reader)
    }

    /// The next event; `None` once all entries are read.
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

    fn read_part(&mut self) -> Result<Event, InvalidOutput> {
        Ok(match self.u8()? {
            KEY => Event::Key(self.field()?),
            VALUE => Event::Value(self.field()?),
            HEADER => {
                let len = self.u16()?;
                let name = self.text(u32::from(len))?;
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
            2 => FieldSpan::Column(ColumnRef {
                row: self.u32()?,
                column: self.u16()?,
            }),
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
