//! Batches in, outputs out. Every index and length of a guest is checked here; nothing else reads its bytes.

use std::borrow::Cow;

use penstock_plugin_encoding::output::{Event, FieldSpan, OutputReader};
use penstock_plugin_encoding::{
    ColumnRef, ColumnTag, Operation, Projection, RowMeta, RowsBuilder, record_table,
};

use super::instance::shortened;
use crate::change::{Record, RecordBatch, Slice};
use crate::transform::draft::{Draft, Item, Made, NotYet};
use crate::transform::guest::Interest;

/// Bytes that all transforms together may write for one batch: far more than a guest's memory holds, and a
/// bound on what references to records' columns are copied into.
const MAX_OUTPUT: usize = 512 << 20;

/// Entries, keys, values, headers and topics that are made of one batch: the smallest take a byte or two, what we make of them dozens.
const MAX_PARTS: usize = 1 << 21;

/// One change may take such a part of what is left for its batch, so that one that floods leaves room for the others: after
/// thirty of those there is a fiftieth of it.
const SHARE: usize = 8;

/// Where a row that was sent comes from.
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// An item; something is to be made of it.
    Item(u32),
    /// A row of the source batch that others refer to: an image, or the end of a range.
    Linked(u32),
}

/// An encoded batch, and where its rows come from.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    bytes: Cow<'a, [u8]>,
    origins: Vec<Origin>,
}

/// Why an output is refused as a whole.
type Malformed = String;

impl<'a> Input<'a> {
    /// All rows of the source batch as they are; `items` are all its changes.
    pub(crate) fn whole(batch: &'a RecordBatch, items: &[Item]) -> Self {
        let mut origins: Vec<_> = (0..batch.source.rows.len() as u32)
            .map(Origin::Linked)
            .collect();
        for (item, index) in items.iter().zip(0..) {
            origins[item.source() as usize] = Origin::Item(index);
        }
        Self {
            bytes: Cow::Borrowed(batch.source.rows.as_bytes()),
            origins,
        }
    }

    /// The columns of interest of the items that `chunk` names, with the rows that they are linked to.
    pub(crate) fn of_chunk<'i>(
        draft: &Draft,
        items: &[Item],
        chunk: &[u32],
        interest: impl Fn(u32) -> Option<&'i Interest>,
    ) -> Self {
        let source = &draft.batch.source.rows;
        let mask = |table| match interest(table) {
            Some(Interest::Columns(columns)) => Some(&**columns),
            _ => None,
        };
        // Rows of a batch are alike: what the whole takes is a good guess.
        let size = source.as_bytes().len() / source.len().max(1) * chunk.len();
        let mut rows = RowsBuilder::with_capacity(chunk.len(), size + 64);
        let mut origins = Vec::with_capacity(chunk.len());
        for &index in chunk {
            match &items[index as usize] {
                Item::Change(change) => {
                    let Some(row) = source.get(*change as usize) else {
                        continue;
                    };
                    let mask = mask(row.table());
                    let linked =
                        |link: Option<u32>, rows: &mut RowsBuilder, origins: &mut Vec<_>| {
                            let link = link.filter(|link| link != change)?;
                            let copied = rows.copy_row(&source.get(link as usize)?, mask);
                            origins.push(Origin::Linked(link));
                            Some(copied)
                        };
                    let preimage = linked(row.preimage(), &mut rows, &mut origins);
                    let copied = rows.copy_row(&row, mask);
                    origins.push(Origin::Item(index));
                    let end = linked(row.end(), &mut rows, &mut origins);
                    if let Some(preimage) = preimage {
                        rows.link_preimage(copied, preimage);
                    }
                    if let Some(end) = end {
                        rows.link_end(copied, end);
                    }
                }
                Item::Record(record) => {
                    record_row(draft, record, mask(record_table::ID), &mut rows);
                    origins.push(Origin::Item(index));
                }
            }
        }
        Self {
            bytes: Cow::Owned(rows.finish().into_bytes()),
            origins,
        }
    }

    /// What the guest is sent.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Lets go of the bytes, which borrow the batch, and keeps what decoding needs.
    pub(crate) fn sent(self) -> Sent {
        Sent(self.origins)
    }
}

/// What is known of an input after it was sent.
#[derive(Debug)]
pub(crate) struct Sent(Vec<Origin>);

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
            record: None,
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
    fn item(&self, source: u32) -> Result<u32, Malformed> {
        match self.0.get(source as usize) {
            Some(Origin::Item(item)) => Ok(*item),
            Some(Origin::Linked(_)) => Err(format!(
                "source {source} is an image, a range's end or context"
            )),
            None => Err(format!("source {source} of {} rows", self.0.len())),
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

/// Turns the events of an output into what was made.
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
    record: Option<(u32, Record)>,
    not_yet: Option<NotYet>,
    /// What is left for the batch.
    parts: usize,
    /// What is made of the item at hand, and the most that may be.
    one: Size,
    most: Size,
}

impl Sink<'_> {
    fn read(&mut self) -> Result<(), Malformed> {
        let lie = |e: penstock_plugin_encoding::output::InvalidOutput| e.to_string();
        self.room(0)?;
        let mut reader = OutputReader::new(self.output).map_err(lie)?;
        while let Some(event) = reader.next_event().map_err(lie)? {
            self.parts = self.parts.checked_sub(1).ok_or_else(|| {
                format!("more than {MAX_PARTS} entries, keys, values and headers for one batch")
            })?;
            self.one.parts += 1;
            self.take(event)?;
            self.moderate()?;
        }
        self.end_record();
        Ok(())
    }

    /// Refuses to make more of one item.
    fn moderate(&self) -> Result<(), Malformed> {
        let (one, most) = (self.one, self.most);
        let (what, most) = if one.parts > most.parts {
            ("entries, keys, values and headers", most.parts)
        } else if one.held > most.held {
            ("bytes", most.held)
        } else if one.named > most.named {
            ("bytes of keys, values and headers", most.named)
        } else {
            return Ok(());
        };
        Err(format!("more than {most} {what} for one change"))
    }

    /// Refuses to hold so many bytes more.
    fn room(&self, more: usize) -> Result<(), Malformed> {
        if self.base + self.output.len() + self.copied.len() + more > MAX_OUTPUT {
            return Err(format!("more than {MAX_OUTPUT} bytes for one batch"));
        }
        Ok(())
    }

    /// Where bytes of the output will stand in the batch's.
    fn moved(&self, span: std::ops::Range<u32>) -> Slice {
        Slice::Output {
            start: span.start + self.base as u32,
            end: span.end + self.base as u32,
        }
    }

    fn copy(&mut self, bytes: &[u8]) -> Result<Slice, Malformed> {
        self.room(bytes.len())?;
        self.one.held += bytes.len();
        let start = self.base + self.output.len() + self.copied.len();
        self.copied.extend_from_slice(bytes);
        Ok(Slice::Output {
            start: start as u32,
            end: (start + bytes.len()) as u32,
        })
    }

    fn take(&mut self, event: Event) -> Result<(), Malformed> {
        if let Event::Record { source, .. }
        | Event::Forward(source)
        | Event::Drop(source)
        | Event::Error(source, _)
        | Event::Retry(source, _) = event
        {
            self.end_record();
            if source < self.last_source {
                return Err(format!("source {source} after source {}", self.last_source));
            }
            if source > self.last_source {
                self.one = Size {
                    parts: 1,
                    ..Size::default()
                };
            }
            self.last_source = source;
        }
        match event {
            Event::Topic(name) => {
                self.end_record();
                let name = self.text(name)?;
                let topic = self.draft.topic(&name);
                self.topics.push(topic);
            }
            Event::Record { source, topic } => {
                let item = self.sent.item(source)?;
                let headers = self.draft.batch.headers.len() as u32;
                let known = self.topics.get(usize::from(topic));
                let topic = known.ok_or_else(|| format!("topic {topic} was not defined"))?;
                let topic = match topic {
                    Ok(topic) => *topic,
                    Err(message) => {
                        let message = message.clone();
                        self.refuse(item, message);
                        0
                    }
                };
                let record = Record {
                    source: self.items[item as usize].source(),
                    topic,
                    key: Slice::Null,
                    value: Slice::Null,
                    headers: headers..headers,
                };
                self.record = Some((item, record));
            }
            Event::Key(field) => {
                let key = self.field(field)?;
                self.record.iter_mut().for_each(|(_, r)| r.key = key);
            }
            Event::Value(field) => {
                let value = self.field(field)?;
                self.record.iter_mut().for_each(|(_, r)| r.value = value);
            }
            Event::Header(name, field) => {
                let value = self.field(field)?;
                self.one.named += name.len();
                let name = self.moved(name);
                self.draft.batch.headers.push((name, value));
                let end = self.draft.batch.headers.len() as u32;
                self.record
                    .iter_mut()
                    .for_each(|(_, r)| r.headers.end = end);
            }
            Event::Forward(source) => {
                let item = self.sent.item(source)?;
                self.push(item, Made::Forward);
            }
            Event::Drop(source) => {
                self.sent.item(source)?;
            }
            Event::Error(source, message) => {
                let item = self.sent.item(source)?;
                let message = shortened(self.text(message)?);
                self.refuse(item, message);
            }
            Event::Retry(source, message) => {
                let item = self.sent.item(source)?;
                let message = shortened(self.text(message)?);
                while self.made.last().is_some_and(|(made, _)| *made == item) {
                    self.made.pop();
                }
                self.not_yet = Some(NotYet { item, message });
            }
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

    fn text(&self, span: std::ops::Range<u32>) -> Result<String, Malformed> {
        let bytes = &self.output[span.start as usize..span.end as usize];
        String::from_utf8(bytes.to_vec()).map_err(|_| "text that is not UTF-8".to_owned())
    }

    fn push(&mut self, item: u32, made: Made) {
        if self.refused != Some(item) {
            self.made.push((item, made));
        }
    }

    fn end_record(&mut self) {
        if let Some((item, record)) = self.record.take() {
            self.push(item, Made::Record(record));
        }
    }

    fn refuse(&mut self, item: u32, message: String) {
        if self.refused == Some(item) {
            return;
        }
        while self.made.last().is_some_and(|(made, _)| *made == item) {
            self.made.pop();
        }
        self.made.push((item, Made::Refused(message)));
        self.refused = Some(item);
    }

    fn field(&mut self, field: FieldSpan) -> Result<Slice, Malformed> {
        match field {
            FieldSpan::Null => Ok(Slice::Null),
            FieldSpan::Bytes(span) => {
                self.one.held += span.len();
                self.one.named += span.len();
                Ok(self.moved(span))
            }
            FieldSpan::Column(at) => self.named(at, None),
            FieldSpan::ColumnOrNull(at) => self.named(at, Some(Slice::Null)),
        }
    }

    /// A column as a field, and what it is where the change does not set it.
    fn named(&mut self, at: ColumnRef, unset: Option<Slice>) -> Result<Slice, Malformed> {
        let slice = self.column(at, unset)?;
        self.one.named += slice.map_or(0, Slice::size);
        // A column without a value is no lie: the plugin need not have been sent it.
        Ok(slice.unwrap_or_else(|| {
            if let Some((item, _)) = self.record {
                self.refuse(item, format!("{} has no value", self.name_of(at)));
            }
            Slice::Null
        }))
    }

    /// The bytes of a column of the input; `None` if it has no value, not even null.
    fn column(&mut self, at: ColumnRef, unset: Option<Slice>) -> Result<Option<Slice>, Malformed> {
        let ColumnRef { row, column } = at;
        let lie = || format!("column {column} of row {row}, which is not there");
        let change = match self.sent.0.get(row as usize).ok_or_else(lie)? {
            Origin::Linked(change) => *change,
            Origin::Item(item) => match &self.items[*item as usize] {
                Item::Change(change) => *change,
                Item::Record(record) => {
                    return match column {
                        0 => {
                            let topics = &self.draft.batch.topics;
                            let topic = topics.get(record.topic as usize).ok_or_else(lie)?.clone();
                            Ok(Some(self.copy(topic.as_bytes())?))
                        }
                        1 => Ok(Some(record.key)),
                        2 => Ok(Some(record.value)),
                        3 => {
                            let headers = self.draft.encode_headers(record);
                            Ok(Some(self.copy(&headers)?))
                        }
                        _ => Err(lie()),
                    };
                }
            },
        };
        let rows = &self.draft.batch.source.rows;
        let row = rows.get(change as usize).ok_or_else(lie)?;
        let (tag, span) = row.column_span(usize::from(column)).ok_or_else(lie)?;
        Ok(match tag {
            ColumnTag::Null => Some(Slice::Null),
            ColumnTag::Value | ColumnTag::Replaced => Some(Slice::Source {
                start: span.start,
                end: span.end,
            }),
            ColumnTag::Unsent | ColumnTag::Unchanged => unset,
            ColumnTag::Removed | ColumnTag::Merged => None,
        })
    }
}

/// Writes a record as a row of the pseudo-table.
fn record_row(draft: &Draft, record: &Record, mask: Option<&Projection>, rows: &mut RowsBuilder) {
    let batch = &draft.batch;
    let source = batch.source.rows.get(record.source as usize);
    let meta = RowMeta {
        operation: Operation::Insert,
        context: false,
        end_of_batch: true,
        table: record_table::ID,
        time_us: source.map_or(0, |row| row.meta().time_us),
        ttl: 0,
    };
    rows.row(meta, record_table::COLUMNS.len() as u16);
    let headers;
    let columns = [
        batch
            .topics
            .get(record.topic as usize)
            .map(|t| t.as_bytes()),
        batch.bytes(record.key),
        batch.bytes(record.value),
        {
            headers = draft.encode_headers(record);
            Some(&headers[..])
        },
    ];
    for (index, bytes) in columns.into_iter().enumerate() {
        let sent = mask.is_none_or(|mask| mask.has(index));
        match bytes {
            _ if !sent => rows.column(ColumnTag::Unsent, &[]),
            Some(bytes) => rows.column(ColumnTag::Value, &[bytes]),
            None => rows.column(ColumnTag::Null, &[]),
        }
    }
}

#[cfg(test)]
mod tests;
