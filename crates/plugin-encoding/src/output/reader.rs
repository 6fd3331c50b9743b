//! Reading an output, which may be anything.

use std::fmt;
use std::ops::Range;

use super::{
    ColumnRef, DROP, ERROR, FORWARD, HEADER, KEY, KNOWN_HEADER, NAMES, RECORD, RETRY, TOPIC, VALUE,
};

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

/// An entry of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Defines the next topic; the name is UTF-8.
    Topic(Range<u32>),
    /// A record, of which so many parts follow ([`OutputReader::parts`]); `topic` was defined before.
    Record {
        /// Row of the input.
        source: u32,
        /// Number of its topic.
        topic: u16,
        /// How many parts it has.
        parts: u16,
    },
    /// The change goes on unchanged.
    Forward(u32),
    /// The change is let go of.
    Drop(u32),
    /// The change is refused; the message is UTF-8.
    Error(u32, Range<u32>),
    /// The change, and all after it, is to be handed out again later; the message is UTF-8. The last entry.
    Retry(u32, Range<u32>),
}

/// What a part of a record is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its key.
    Key,
    /// Its value.
    Value,
    /// A header; the name is UTF-8.
    Header(Range<u32>),
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

impl From<InvalidOutput> for String {
    fn from(invalid: InvalidOutput) -> Self {
        invalid.to_string()
    }
}

/// Reads an output entry by entry, checking every length against the bytes.
#[derive(Debug)]
pub struct OutputReader<'a> {
    buf: &'a [u8],
    at: usize,
    entries: u32,
    /// Parts of the last record that were not read.
    parts: u16,
    topics: u32,
    /// The numbered names of headers, which were looked at.
    names: Vec<Range<u32>>,
}

impl<'a> OutputReader<'a> {
    /// Starts reading.
    pub fn new(buf: &'a [u8]) -> Result<Self, InvalidOutput> {
        let mut cursor = Cursor { buf, at: 0 };
        if u32::try_from(buf.len()).is_err() {
            return Err(cursor.bad("more than 4 GiB"));
        }
        Ok(Self {
            entries: cursor.u32()?,
            buf,
            at: cursor.at,
            parts: 0,
            topics: 0,
            names: Vec::new(),
        })
    }

    /// The next entry; `None` once all are read. Parts of a record before it that were not read are passed over.
    ///
    /// # Errors
    /// The bytes are not an output.
    #[inline]
    pub fn next_entry(&mut self) -> Result<Option<Entry>, InvalidOutput> {
        if self.parts > 0 {
            self.pass_over()?;
        }
        let mut cursor = self.cursor();
        if self.entries == 0 {
            return match cursor.at == self.buf.len() {
                true => Ok(None),
                false => Err(cursor.bad("bytes after the last entry")),
            };
        }
        self.entries -= 1;
        let entry = match cursor.u8()? {
            TOPIC => {
                let len = cursor.u16()?;
                self.topics += 1;
                Entry::Topic(cursor.text(u32::from(len))?)
            }
            RECORD => {
                let source = cursor.u32()?;
                let topic = cursor.u16()?;
                if u32::from(topic) >= self.topics {
                    return Err(cursor.bad("a topic that was not defined before"));
                }
                self.parts = cursor.u16()?;
                Entry::Record {
                    source,
                    topic,
                    parts: self.parts,
                }
            }
            FORWARD => Entry::Forward(cursor.u32()?),
            DROP => Entry::Drop(cursor.u32()?),
            ERROR => {
                let source = cursor.u32()?;
                let len = cursor.u32()?;
                Entry::Error(source, cursor.text(len)?)
            }
            RETRY => {
                let source = cursor.u32()?;
                let len = cursor.u32()?;
                let text = cursor.text(len)?;
                if self.entries > 0 {
                    return Err(cursor.bad("an entry after a retry, which is the last"));
                }
                Entry::Retry(source, text)
            }
            _ => return Err(cursor.bad("unknown kind of entry")),
        };
        self.at = cursor.at;
        Ok(Some(entry))
    }

    /// Hands out the parts of the record that was read last, one after the other.
    ///
    /// # Errors
    /// The bytes are not an output, or `take` has one.
    #[inline]
    pub fn parts<E: From<InvalidOutput>>(
        &mut self,
        mut take: impl FnMut(Role, FieldSpan) -> Result<(), E>,
    ) -> Result<(), E> {
        // Where it stands stays in a register: what a record takes is mostly waiting for what was just written.
        let mut cursor = self.cursor();
        for _ in 0..std::mem::take(&mut self.parts) {
            let role = match cursor.u8()? {
                KEY => Role::Key,
                VALUE => Role::Value,
                KNOWN_HEADER => {
                    let number = cursor.u16()?;
                    match self.names.get(usize::from(number)) {
                        Some(name) => Role::Header(name.clone()),
                        None => {
                            let unknown = "a header's name that did not stand before";
                            return Err(cursor.bad(unknown).into());
                        }
                    }
                }
                HEADER => {
                    let len = cursor.u16()?;
                    let name = cursor.text(u32::from(len))?;
                    if self.names.len() < NAMES {
                        self.names.push(name.clone());
                    }
                    Role::Header(name)
                }
                _ => return Err(cursor.bad("unknown part of a record").into()),
            };
            take(role, cursor.field()?)?;
        }
        self.at = cursor.at;
        Ok(())
    }

    #[cold]
    fn pass_over(&mut self) -> Result<(), InvalidOutput> {
        self.parts(|_, _| Ok(()))
    }

    #[inline]
    fn cursor(&self) -> Cursor<'a> {
        Cursor {
            buf: self.buf,
            at: self.at,
        }
    }
}

/// A place in an output.
struct Cursor<'a> {
    buf: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
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

    #[inline]
    fn bad(&self, what: &'static str) -> InvalidOutput {
        InvalidOutput { at: self.at, what }
    }

    #[inline]
    fn span(&mut self, len: u32) -> Result<Range<u32>, InvalidOutput> {
        let start = self.at as u32;
        let end = start
            .checked_add(len)
            .filter(|&end| end as usize <= self.buf.len());
        let Some(end) = end else {
            return Err(self.bad("a length beyond the end"));
        };
        self.at = end as usize;
        Ok(start..end)
    }

    #[inline]
    fn text(&mut self, len: u32) -> Result<Range<u32>, InvalidOutput> {
        let span = self.span(len)?;
        let bytes = &self.buf[span.start as usize..span.end as usize];
        match std::str::from_utf8(bytes) {
            Ok(_) => Ok(span),
            Err(_) => Err(self.bad("text that is not UTF-8")),
        }
    }

    #[inline]
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], InvalidOutput> {
        let rest = self.buf.get(self.at..);
        let Some(bytes) = rest.and_then(<[u8]>::first_chunk) else {
            return Err(self.bad("truncated"));
        };
        self.at += N;
        Ok(*bytes)
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
