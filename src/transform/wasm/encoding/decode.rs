//! What a guest gave, checked and taken over.

use std::ops::Range;

use penstock_plugin_encoding::output::{Entry, FieldSpan, OutputReader, Role};
use penstock_plugin_encoding::{ColumnRef, ColumnTag};

use super::Origin;
use crate::change::{Record, Slice};
use crate::transform::draft::{Draft, Item, Made, NotYet};
use crate::transform::wasm::instance::shortened;

/// Bytes that all transforms together may write for one batch: far more than a guest's memory holds, and a
/// bound on what references to records' columns are copied into.
pub(super) const MAX_OUTPUT: usize = 512 << 20;

/// Entries, keys, values, headers and topics that are made of one batch: the smallest take a byte or two, what we make of them dozens.
pub(super) const MAX_PARTS: usize = 1 << 21;

/// One change may take such a part of what is left for its batch, so that one that floods leaves room for the others: after
/// thirty of those there is a fiftieth of it.
pub(super) const SHARE: usize = 8;

/// Why an output is refused as a whole.
pub(super) type Malformed = String;

/// What is known of an input after it was sent.
#[derive(Debug)]
pub(crate) struct Sent(pub(super) Vec<Origin>);

impl Sent {
    /// Checks a guest's output and appends what it makes of the items to `made`, in order; says from which item on it
    /// wants to be asked again.
    ///
    /// # Errors
    /// Says where the output is not well-formed; nothing of it is kept then.
    pub(crate) fn decode(
        &self,
        output: Vec<u8>,
        draft: &mut Draft,
        items: &[Item],
        made: &mut Vec<(u32, Made)>,
    ) -> Result<Option<NotYet>, Malformed> {
        let (headers, topics) = (draft.batch.headers.len(), draft.batch.topics.len());
        let kept = made.len();
        let parts = MAX_PARTS.saturating_sub(headers + topics + kept);
        let bytes = MAX_OUTPUT.saturating_sub(draft.batch.output.len());
        // Most have fewer, and take some thirty bytes each, with their part of a record; more make room as they come.
        let likely = (output.len() / 32).min(items.len().saturating_mul(4));
        draft.batch.headers.reserve(likely);
        let mut sink = Sink {
            sent: self,
            items,
            base: draft.batch.output.len(),
            output: &output,
            copied: Vec::new(),
            draft,
            made,
            topics: Vec::new(),
            last_source: 0,
            refused: None,
            not_yet: None,
            parts,
            one: Size::default(),
            most: Size {
                parts: parts / SHARE,
                held: bytes / SHARE,
                named: MAX_OUTPUT,
            },
        };
        let read = sink.read();
        let copied = std::mem::take(&mut sink.copied);
        let not_yet = sink.not_yet.take();
        match read {
            // Tried for ever, it must not take room for ever.
            Ok(()) if not_yet.is_some() && made.len() == kept => {
                draft.batch.headers.truncate(headers);
                draft.forget_topics(topics);
                return Ok(not_yet);
            }
            Ok(()) if draft.batch.output.is_empty() => draft.batch.output = output,
            Ok(()) => draft.batch.output.extend_from_slice(&output),
            Err(lie) => {
                draft.batch.headers.truncate(headers);
                draft.forget_topics(topics);
                made.truncate(kept);
                return Err(lie);
            }
        }
        draft.batch.output.extend_from_slice(&copied);
        Ok(not_yet)
    }

    /// The item that a guest names as a source.
    #[inline]
    fn item(&self, source: u32) -> Result<u32, Malformed> {
        match self.0.get(source as usize) {
            Some(Origin::Item(item)) => Ok(*item),
            _ => Err(self.no_item(source)),
        }
    }

    #[cold]
    fn no_item(&self, source: u32) -> Malformed {
        match self.0.get(source as usize) {
            Some(_) => format!("source {source} is an image, a range's end or context"),
            None => format!("source {source} of {} rows", self.0.len()),
        }
    }
}

/// How much is made of one item.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    /// Entries, keys, values and headers.
    parts: usize,
    /// Bytes that we keep for it.
    held: usize,
    /// Bytes of its keys, values and headers: references to columns take no room here, and are sent as often as they stand there.
    named: usize,
}

/// Turns the entries of an output into what was made.
struct Sink<'a> {
    sent: &'a Sent,
    items: &'a [Item],
    /// Where the output will stand in the batch's.
    base: usize,
    output: &'a [u8],
    /// What the host copies for column references; it will stand after the output.
    copied: Vec<u8>,
    draft: &'a mut Draft,
    made: &'a mut Vec<(u32, Made)>,
    topics: Vec<Result<u32, String>>,
    last_source: u32,
    /// The item that is refused: what else is said of it does not count.
    refused: Option<u32>,
    not_yet: Option<NotYet>,
    /// What is left for the batch.
    parts: usize,
    /// What is made of the item at hand, and the most that may be.
    one: Size,
    most: Size,
}

impl Sink<'_> {
    fn read(&mut self) -> Result<(), Malformed> {
        self.room(0)?;
        let mut reader = OutputReader::new(self.output)?;
        while let Some(entry) = reader.next_entry()? {
            match entry {
                Entry::Record {
                    source,
                    topic,
                    parts,
                } => self.record(&mut reader, source, topic, parts)?,
                Entry::Topic(name) => {
                    self.count(1)?;
                    let topic = self.draft.topic(&self.text(name)?);
                    self.topics.push(topic);
                }
                Entry::Forward(source) => {
                    let item = self.begin(source, 1)?;
                    if self.refused != Some(item) {
                        self.made.push((item, Made::Forward));
                    }
                }
                Entry::Drop(source) => {
                    self.begin(source, 1)?;
                }
                Entry::Error(source, message) => {
                    let item = self.begin(source, 1)?;
                    let message = shortened(self.text(message)?);
                    self.refuse(item, message);
                }
                Entry::Retry(source, message) => {
                    let item = self.begin(source, 1)?;
                    let message = shortened(self.text(message)?);
                    self.take_back(item);
                    self.not_yet = Some(NotYet { item, message });
                }
            }
        }
        Ok(())
    }

    /// Counts so many entries, keys, values and headers.
    fn count(&mut self, parts: usize) -> Result<(), Malformed> {
        let Some(left) = self.parts.checked_sub(parts) else {
            return Err(format!(
                "more than {MAX_PARTS} entries, keys, values and headers for one batch"
            ));
        };
        self.parts = left;
        self.one.parts += parts;
        self.moderate()
    }

    /// Goes on to this source with so many entries and parts; gives its item.
    fn begin(&mut self, source: u32, parts: usize) -> Result<u32, Malformed> {
        if source < self.last_source {
            return Err(format!("source {source} after source {}", self.last_source));
        }
        if source > self.last_source {
            self.one = Size::default();
        }
        self.last_source = source;
        self.count(parts)?;
        self.sent.item(source)
    }

    /// Refuses to make more of one item.
    #[inline]
    fn moderate(&self) -> Result<(), Malformed> {
        let (one, most) = (self.one, self.most);
        match one.parts > most.parts || one.held > most.held || one.named > most.named {
            true => Err(self.too_much()),
            false => Ok(()),
        }
    }

    #[cold]
    fn too_much(&self) -> Malformed {
        let (one, most) = (self.one, self.most);
        let (what, most) = if one.parts > most.parts {
            ("entries, keys, values and headers", most.parts)
        } else if one.held > most.held {
            ("bytes", most.held)
        } else {
            ("bytes of keys, values and headers", most.named)
        };
        format!("more than {most} {what} for one change")
    }

    /// Refuses to hold so many bytes more.
    fn room(&self, more: usize) -> Result<(), Malformed> {
        if self.base + self.output.len() + self.copied.len() + more > MAX_OUTPUT {
            return Err(format!("more than {MAX_OUTPUT} bytes for one batch"));
        }
        Ok(())
    }

    /// Where bytes of the output will stand in the batch's.
    #[inline]
    fn moved(&self, span: Range<u32>) -> Slice {
        Slice::Output {
            start: span.start + self.base as u32,
            end: span.end + self.base as u32,
        }
    }

    fn copy(&mut self, bytes: &[u8]) -> Result<Slice, Malformed> {
        self.room(bytes.len())?;
        self.one.held += bytes.len();
        self.moderate()?;
        let start = self.base + self.output.len() + self.copied.len();
        self.copied.extend_from_slice(bytes);
        Ok(Slice::Output {
            start: start as u32,
            end: (start + bytes.len()) as u32,
        })
    }

    fn record(
        &mut self,
        reader: &mut OutputReader<'_>,
        source: u32,
        topic: u16,
        parts: u16,
    ) -> Result<(), Malformed> {
        let item = self.begin(source, 1 + usize::from(parts))?;
        let topic = match self.topics.get(usize::from(topic)) {
            Some(Ok(topic)) => *topic,
            Some(Err(why)) => {
                let why = why.clone();
                self.refuse(item, why);
                0
            }
            None => return Err(format!("topic {topic} was not defined")),
        };
        let first = self.draft.batch.headers.len() as u32;
        let change = self.items[item as usize].source();
        // Nearly all columns that a record names are set in the change that it is made of.
        let own = matches!(self.items[item as usize], Item::Change(_)).then_some(source);
        let (mut key, mut value) = (Slice::Null, Slice::Null);
        let (mut held, mut named) = (0, 0);
        let mut lacks = None;
        reader.parts(|role, field| {
            let slice = match field {
                FieldSpan::Null => Slice::Null,
                FieldSpan::Bytes(span) => {
                    held += span.len();
                    self.moved(span)
                }
                FieldSpan::Column(at) | FieldSpan::ColumnOrNull(at) => {
                    match self.column(change, at.column) {
                        Some((ColumnTag::Value | ColumnTag::Replaced, span))
                            if own == Some(at.row) =>
                        {
                            Slice::Source {
                                start: span.start,
                                end: span.end,
                            }
                        }
                        _ => self.any_column(&field, at, &mut lacks)?,
                    }
                }
            };
            named += slice.size();
            match role {
                Role::Key => key = slice,
                Role::Value => value = slice,
                Role::Header(name) => {
                    named += name.len();
                    let name = self.moved(name);
                    self.draft.batch.headers.push((name, slice));
                }
            }
            Ok::<_, Malformed>(())
        })?;
        self.one.held += held;
        self.one.named += named;
        self.moderate()?;
        if let Some(at) = lacks {
            self.refuse(item, format!("{} has no value", self.name_of(at)));
        }
        if self.refused != Some(item) {
            let record = Record {
                source: change,
                topic,
                key,
                value,
                headers: first..self.draft.batch.headers.len() as u32,
            };
            self.made.push((item, Made::Record(record)));
        }
        Ok(())
    }

    /// What a column is called, with its table, for people.
    fn name_of(&self, at: ColumnRef) -> String {
        let source = &self.draft.batch.source;
        let row = match self.sent.0.get(at.row as usize) {
            Some(Origin::Linked(change)) => Some(*change),
            Some(Origin::Item(item)) => match &self.items[*item as usize] {
                Item::Change(change) => Some(*change),
                Item::Record(_) => None,
            },
            None => None,
        };
        let table = row
            .and_then(|row| source.rows.get(row as usize))
            .and_then(|row| source.table(row.table()));
        match table.and_then(|t| Some((t, t.columns.get(usize::from(at.column))?))) {
            Some((table, column)) => {
                format!(
                    "column `{}` of {}.{}",
                    column.name, table.keyspace, table.name
                )
            }
            None => format!("column {} of row {}", at.column, at.row),
        }
    }

    fn text(&self, span: Range<u32>) -> Result<String, Malformed> {
        let bytes = &self.output[span.start as usize..span.end as usize];
        String::from_utf8(bytes.to_vec()).map_err(|_| "text that is not UTF-8".to_owned())
    }

    /// Takes back what was made of this item.
    fn take_back(&mut self, item: u32) {
        while self.made.last().is_some_and(|(made, _)| *made == item) {
            self.made.pop();
        }
    }

    #[cold]
    fn refuse(&mut self, item: u32, message: String) {
        if self.refused == Some(item) {
            return;
        }
        self.take_back(item);
        self.made.push((item, Made::Refused(message)));
        self.refused = Some(item);
    }

    /// A column of a change.
    #[inline(always)]
    fn column(&self, change: u32, column: u16) -> Option<(ColumnTag, Range<u32>)> {
        let row = self.draft.batch.source.rows.get(change as usize)?;
        row.column_span(usize::from(column))
    }

    /// The bytes of any column of the input. One without a value is no lie, for the plugin need not have been sent it: it is
    /// what the record lacks, if that is the first.
    #[inline(never)]
    fn any_column(
        &mut self,
        field: &FieldSpan,
        at: ColumnRef,
        lacks: &mut Option<ColumnRef>,
    ) -> Result<Slice, Malformed> {
        let change = match self.sent.0.get(at.row as usize) {
            None => return Err(no_column(at)),
            Some(Origin::Linked(change)) => *change,
            Some(Origin::Item(item)) => match &self.items[*item as usize] {
                Item::Change(change) => *change,
                Item::Record(record) => {
                    return match at.column {
                        0 => {
                            let topics = &self.draft.batch.topics;
                            let topic = topics.get(record.topic as usize).cloned();
                            let topic = topic.ok_or_else(|| no_column(at))?;
                            self.copy(topic.as_bytes())
                        }
                        1 => Ok(record.key),
                        2 => Ok(record.value),
                        3 => {
                            let headers = self.draft.encode_headers(record);
                            self.copy(&headers)
                        }
                        _ => Err(no_column(at)),
                    };
                }
            },
        };
        let (tag, span) = self
            .column(change, at.column)
            .ok_or_else(|| no_column(at))?;
        Ok(match (tag, field) {
            (ColumnTag::Value | ColumnTag::Replaced, _) => Slice::Source {
                start: span.start,
                end: span.end,
            },
            (ColumnTag::Null, _) => Slice::Null,
            (ColumnTag::Unsent | ColumnTag::Unchanged, FieldSpan::ColumnOrNull(_)) => Slice::Null,
            _ => {
                lacks.get_or_insert(at);
                Slice::Null
            }
        })
    }
}

fn no_column(at: ColumnRef) -> Malformed {
    let ColumnRef { row, column } = at;
    format!("column {column} of row {row}, which is not there")
}
