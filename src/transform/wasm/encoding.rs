//! Batches in, outputs out. Every index and length of a guest is checked here; nothing else reads its bytes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use penstock_plugin_encoding::output::{Event, FieldSpan, OutputReader};
use penstock_plugin_encoding::{
    ColumnRef, ColumnTag, Operation, RowMeta, RowsBuilder, record_table,
};

use super::instance::Interest;
use crate::change::{Record, RecordBatch, Slice};

/// What travels between two transforms.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// A change of the source batch, by its row.
    Change(u32),
    /// What a transform made of one.
    Record(Record),
}

impl Item {
    /// The row of the change that it is or came from.
    pub(crate) fn source(&self) -> u32 {
        match self {
            Item::Change(row) => *row,
            Item::Record(record) => record.source,
        }
    }
}

/// What became of an item.
#[derive(Clone, Debug)]
pub(crate) enum Made {
    /// A record.
    Record(Record),
    /// It goes on as it is.
    Forward,
    /// It is refused, with this message.
    Refused(String),
}

/// A batch being made, with its topics by name.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) batch: RecordBatch,
    topics: HashMap<Arc<str>, u32>,
}

/// Kafka's limit on the length of a topic's name.
const MAX_TOPIC: usize = 249;

impl Draft {
    pub(crate) fn new(batch: RecordBatch) -> Self {
        Self {
            batch,
            topics: HashMap::new(),
        }
    }

    /// The number of a topic; an error if no broker would take the name.
    pub(crate) fn topic(&mut self, name: &str) -> Result<u32, String> {
        if let Some(&index) = self.topics.get(name) {
            return Ok(index);
        }
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty()
            || name.len() > MAX_TOPIC
            || matches!(name, "." | "..")
            || !name.bytes().all(legal)
        {
            let shown = &name[..name.floor_char_boundary(MAX_TOPIC)];
            return Err(format!(
                "{shown:?} is not a topic's name: 1 to {MAX_TOPIC} letters, digits, '.', '_' and '-'"
            ));
        }
        let index = self.batch.topics.len() as u32;
        let name: Arc<str> = name.into();
        self.batch.topics.push(name.clone());
        self.topics.insert(name, index);
        Ok(index)
    }

    /// Keeps bytes that the host wrote.
    pub(crate) fn keep(&mut self, bytes: &[u8]) -> Slice {
        let start = self.batch.output.len() as u32;
        self.batch.output.extend_from_slice(bytes);
        Slice::Output {
            start,
            end: self.batch.output.len() as u32,
        }
    }

    /// A record's headers as a CQL `map<text, blob>`.
    fn encode_headers(&self, record: &Record) -> Vec<u8> {
        let headers =
            &self.batch.headers[record.headers.start as usize..record.headers.end as usize];
        let mut map = (headers.len() as i32).to_be_bytes().to_vec();
        for slice in headers.iter().flat_map(|(name, value)| [name, value]) {
            match self.batch.bytes(*slice) {
                Some(bytes) => {
                    map.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
                    map.extend_from_slice(bytes);
                }
                None => map.extend_from_slice(&(-1i32).to_be_bytes()),
            }
        }
        map
    }
}

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
type Lie = String;

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
            Some(Interest::Columns(mask)) => Some(&mask[..]),
            _ => None,
        };
        let mut rows = RowsBuilder::with_capacity(chunk.len(), 128 * chunk.len());
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

    /// Lets go of the bytes, which borrow the batch, and keeps what [`Self::decode`] needs.
    pub(crate) fn sent(self) -> Sent {
        Sent(self.origins)
    }
}

/// What is known of an input after it was sent.
#[derive(Debug)]
pub(crate) struct Sent(Vec<Origin>);

impl Sent {
    /// Checks a guest's output and appends what it makes of the items to `made`, in order.
    ///
    /// # Errors
    /// Says where the output is not well-formed; nothing of it is kept then.
    pub(crate) fn decode(
        &self,
        output: Vec<u8>,
        draft: &mut Draft,
        items: &[Item],
        made: &mut Vec<(u32, Made)>,
    ) -> Result<(), Lie> {
        let (bytes, headers) = (draft.batch.output.len(), draft.batch.headers.len());
        let kept = made.len();
        let decoded = self.try_decode(output, draft, items, made);
        if decoded.is_err() {
            draft.batch.output.truncate(bytes);
            draft.batch.headers.truncate(headers);
            made.truncate(kept);
        }
        decoded
    }

    fn try_decode(
        &self,
        output: Vec<u8>,
        draft: &mut Draft,
        items: &[Item],
        made: &mut Vec<(u32, Made)>,
    ) -> Result<(), Lie> {
        let base = draft.batch.output.len();
        // What refers to columns of records may add to it, hence a half.
        if base + output.len() > (u32::MAX / 2) as usize {
            return Err("more than 2 GiB for one batch".to_owned());
        }
        if base == 0 {
            draft.batch.output = output;
        } else {
            draft.batch.output.extend_from_slice(&output);
        }
        let end = draft.batch.output.len();
        // The reader borrows nothing: the bytes are taken out while it runs.
        let whole = std::mem::take(&mut draft.batch.output);
        let events = read_events(&whole[base..end], base as u32);
        draft.batch.output = whole;
        let mut sink = Sink {
            sent: self,
            items,
            draft,
            made,
            topics: Vec::new(),
            last_source: 0,
            refused: None,
            record: None,
        };
        for event in events? {
            sink.take(event)?;
        }
        sink.end_record();
        Ok(())
    }

    /// The item that a guest names as a source.
    fn item(&self, source: u32) -> Result<u32, Lie> {
        match self.0.get(source as usize) {
            Some(Origin::Item(item)) => Ok(*item),
            Some(Origin::Linked(_)) => Err(format!(
                "source {source} is an image, a range's end or context"
            )),
            None => Err(format!("source {source} of {} rows", self.0.len())),
        }
    }
}

/// Reads all events, their spans moved by `base`.
fn read_events(output: &[u8], base: u32) -> Result<Vec<Event>, Lie> {
    let lie = |e: penstock_plugin_encoding::output::InvalidOutput| e.to_string();
    let moved = |span: std::ops::Range<u32>| span.start + base..span.end + base;
    let field = |field| match field {
        FieldSpan::Bytes(span) => FieldSpan::Bytes(moved(span)),
        other => other,
    };
    let mut reader = OutputReader::new(output).map_err(lie)?;
    let mut events = Vec::with_capacity(output.len() / 24);
    while let Some(event) = reader.next_event().map_err(lie)? {
        events.push(match event {
            Event::Topic(name) => Event::Topic(moved(name)),
            Event::Key(key) => Event::Key(field(key)),
            Event::Value(value) => Event::Value(field(value)),
            Event::Header(name, value) => Event::Header(moved(name), field(value)),
            Event::Error(source, message) => Event::Error(source, moved(message)),
            other => other,
        });
    }
    Ok(events)
}

/// Turns events into what was made.
struct Sink<'a> {
    sent: &'a Sent,
    items: &'a [Item],
    draft: &'a mut Draft,
    made: &'a mut Vec<(u32, Made)>,
    topics: Vec<Result<u32, String>>,
    last_source: u32,
    /// The item that is refused: what else is said of it does not count.
    refused: Option<u32>,
    record: Option<(u32, Record)>,
}

impl Sink<'_> {
    fn take(&mut self, event: Event) -> Result<(), Lie> {
        if let Event::Record { source, .. }
        | Event::Forward(source)
        | Event::Drop(source)
        | Event::Error(source, _) = event
        {
            self.end_record();
            if source < self.last_source {
                return Err(format!("source {source} after source {}", self.last_source));
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
                let name = Slice::Output {
                    start: name.start,
                    end: name.end,
                };
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
                let message = self.text(message)?;
                self.refuse(item, message);
            }
        }
        Ok(())
    }

    fn text(&self, span: std::ops::Range<u32>) -> Result<String, Lie> {
        let bytes = &self.draft.batch.output[span.start as usize..span.end as usize];
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

    fn field(&mut self, field: FieldSpan) -> Result<Slice, Lie> {
        match field {
            FieldSpan::Null => Ok(Slice::Null),
            FieldSpan::Bytes(span) => Ok(Slice::Output {
                start: span.start,
                end: span.end,
            }),
            FieldSpan::Column(at) => {
                let slice = self.column(at)?;
                // A column without a value is no lie: the plugin need not have been sent it.
                Ok(slice.unwrap_or_else(|| {
                    if let Some((item, _)) = self.record {
                        self.refuse(item, format!("column {} has no value", at.column));
                    }
                    Slice::Null
                }))
            }
        }
    }

    /// The bytes of a column of the input; `None` if it has no value, not even null.
    fn column(&mut self, at: ColumnRef) -> Result<Option<Slice>, Lie> {
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
                            Ok(Some(self.draft.keep(topic.as_bytes())))
                        }
                        1 => Ok(Some(record.key)),
                        2 => Ok(Some(record.value)),
                        3 => {
                            let headers = self.draft.encode_headers(record);
                            Ok(Some(self.draft.keep(&headers)))
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
            ColumnTag::Unsent | ColumnTag::Unchanged | ColumnTag::Removed | ColumnTag::Merged => {
                None
            }
        })
    }
}

/// Writes a record as a row of the pseudo-table.
fn record_row(draft: &Draft, record: &Record, mask: Option<&[bool]>, rows: &mut RowsBuilder) {
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
        let sent = mask.is_none_or(|mask| mask.get(index).copied().unwrap_or(false));
        match bytes {
            _ if !sent => rows.column(ColumnTag::Unsent, &[]),
            Some(bytes) => rows.column(ColumnTag::Value, &[bytes]),
            None => rows.column(ColumnTag::Null, &[]),
        }
    }
}
