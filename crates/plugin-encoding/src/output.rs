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
//!            u8 3, u32 row, u16 column  the same; where the change does not set the column: null (version 2)
//! ```
//!
//! `source` is the index of a row of the input that is a change (no image, no range end, no context), and
//! sources never decrease: a transform keeps the order. A later key or value of a record replaces an earlier
//! one; absent ones are null. An error entry takes back all that the change made. So does a retry entry, which is the
//! last: what comes after it in the batch is not done, so that the order is kept and no change is seen twice.

mod reader;

use crate::bytes::{copy, hyphenated, same};

pub use reader::{Entry, FieldSpan, InvalidOutput, OutputReader, Role};

/// A field as its writer gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    /// Null.
    Null,
    /// These bytes.
    Bytes(&'a [u8]),
    /// The text of this UUID, in lower case with hyphens.
    Uuid(&'a [u8; 16]),
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

/// What a part and its field begin with, in one: it is written in whole words so.
#[inline]
fn headed<const N: usize>(head: [u8; N], kind: u8, number: u32, column: u16) -> [u8; 16] {
    let head = head
        .iter()
        .rev()
        .fold(0, |word, byte| word << 8 | u128::from(*byte));
    let field = u128::from(kind) | u128::from(number) << 8 | u128::from(column) << 40;
    (head | field << (8 * N)).to_le_bytes()
}

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
                start.copy_from_slice(&headed(head, 1, bytes.len() as u32, 0)[..N + 5]);
                copy(rest, bytes);
            }
            Field::Uuid(id) => {
                let text = hyphenated(id);
                let room = self.room(N + 5 + text.len());
                let (start, rest) = room.split_at_mut(N + 5);
                start.copy_from_slice(&headed(head, 1, text.len() as u32, 0)[..N + 5]);
                rest.copy_from_slice(&text);
            }
            Field::Column(ColumnRef { row, column }) => {
                let room = self.room(N + 7);
                room.copy_from_slice(&headed(head, 2, row, column)[..N + 7]);
            }
            Field::ColumnOrNull(ColumnRef { row, column }) => {
                let room = self.room(N + 7);
                room.copy_from_slice(&headed(head, 3, row, column)[..N + 7]);
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
        match self.is_named(self.name, name) {
            true => self.numbered_header(self.name, field),
            false => self.other_header(name, field),
        }
    }

    #[inline]
    fn numbered_header(&mut self, number: usize, field: Field<'_>) {
        self.name = number + 1;
        let [a, b] = (number as u16).to_le_bytes();
        self.field([KNOWN_HEADER, a, b], field);
    }

    #[inline(never)]
    fn other_header(&mut self, name: &str, field: Field<'_>) {
        match self.number(name) {
            Some(number) => self.numbered_header(number, field),
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

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use proptest::prelude::*;

    use super::*;

    /// Entries, each with its parts.
    type Entries = Vec<(Entry, Vec<(Role, FieldSpan)>)>;

    fn read(buf: &[u8]) -> Result<Entries, InvalidOutput> {
        let mut reader = OutputReader::new(buf)?;
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut parts = Vec::new();
            reader.parts(|role, field| {
                parts.push((role, field));
                Ok::<_, InvalidOutput>(())
            })?;
            entries.push((entry, parts));
        }
        Ok(entries)
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
        let mut shown: Vec<String> = Vec::new();
        for (entry, parts) in read(&buf).unwrap() {
            shown.push(match entry {
                Entry::Topic(t) => format!("topic {}", text(&t)),
                Entry::Record {
                    source,
                    topic,
                    parts: n,
                } => {
                    assert_eq!(usize::from(n), parts.len());
                    format!("record {source} {topic}")
                }
                Entry::Error(s, m) => format!("error {s} {}", text(&m)),
                Entry::Retry(s, m) => format!("retry {s} {}", text(&m)),
                other => format!("{other:?}"),
            });
            for (role, field) in parts {
                let role = match role {
                    Role::Key => "key".to_owned(),
                    Role::Value => "value".to_owned(),
                    Role::Header(name) => format!("header {}", text(&name)),
                };
                let field = match field {
                    FieldSpan::Null => "null".to_owned(),
                    FieldSpan::Bytes(b) => text(&b),
                    FieldSpan::Column(c) => format!("{}.{}", c.row, c.column),
                    FieldSpan::ColumnOrNull(c) => format!("{}.{}?", c.row, c.column),
                };
                shown.push(format!("{role} {field}"));
            }
        }
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
    fn parts_that_nobody_reads_are_passed_over() {
        let buf = sample();
        let mut reader = OutputReader::new(&buf).unwrap();
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            entries.push(entry);
        }
        let all: Vec<_> = read(&buf).unwrap().into_iter().map(|(e, _)| e).collect();
        assert_eq!(entries, all);
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
            .flat_map(|(_, parts)| parts)
            .filter_map(|(role, _)| match role {
                Role::Header(name) => Some(&buf[name.start as usize..name.end as usize]),
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
        let entries = read(&buf).unwrap();
        assert_eq!((entries.len(), entries[1].1.len()), (2, 2));
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
            let inside = |s: Range<u32>| s.start <= s.end && s.end as usize <= buf.len();
            for (entry, parts) in read(&buf).into_iter().flatten() {
                if let Entry::Topic(s) | Entry::Error(_, s) | Entry::Retry(_, s) = entry {
                    prop_assert!(inside(s));
                }
                for (role, field) in parts {
                    if let Role::Header(s) = role {
                        prop_assert!(inside(s));
                    }
                    if let FieldSpan::Bytes(s) = field {
                        prop_assert!(inside(s));
                    }
                }
            }
        }
    }
}
