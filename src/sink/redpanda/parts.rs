//! What a record has beside its key and its value.

use penstock_plugin_encoding::Mark;

use super::header_list::{HeaderList, Pair};
use crate::change::RecordBatch;
use crate::config::settings::{RecordHeaders, RecordTime, Sink};
use crate::sink::headers;
use crate::spans::Context;

/// Headers of a record that are held without an allocation.
const FEW: usize = 8;

/// Makes the headers and timestamps of a batch's records. What they share is made once, so that a record's
/// headers cost no allocation of ours.
pub(super) struct Parts {
    chosen: RecordHeaders,
    time: RecordTime,
    /// `keyspace.table` by schema id.
    tables: Vec<(u32, String)>,
    /// The change of the last record, and what of its headers is chosen.
    change: Option<(u32, Option<headers::PositionText>, Option<[u8; 55]>)>,
}

/// The headers of one record, before they are librdkafka's.
struct Pairs<'a> {
    few: [Pair<'a>; FEW],
    len: usize,
    /// All of them, if they are not few.
    many: Vec<Pair<'a>>,
}

impl<'a> Pairs<'a> {
    fn new() -> Self {
        Self {
            few: [(b"", None); FEW],
            len: 0,
            many: Vec::new(),
        }
    }

    fn push(&mut self, name: &'a [u8], value: Option<&'a [u8]>) {
        match self.few.get_mut(self.len) {
            Some(place) => *place = (name, value),
            None => {
                if self.many.is_empty() {
                    self.many.extend_from_slice(&self.few);
                }
                self.many.push((name, value));
            }
        }
        self.len += 1;
    }

    fn all(&self) -> &[Pair<'a>] {
        match self.few.get(..self.len) {
            Some(few) => few,
            None => &self.many,
        }
    }
}

impl Parts {
    pub(super) fn new(batch: &RecordBatch, sink: &Sink) -> Self {
        let tables = match sink.headers.table {
            true => &batch.source.tables[..],
            false => &[],
        };
        Self {
            chosen: sink.headers,
            time: sink.timestamp,
            tables: tables
                .iter()
                .map(|t| (t.id, format!("{}.{}", t.keyspace, t.name)))
                .collect(),
            change: None,
        }
    }

    /// Milliseconds since the Unix epoch; `None`: when it is sent. So is a change from before the epoch, for which
    /// the protocol has no number.
    pub(super) fn timestamp(&self, batch: &RecordBatch, index: usize) -> Option<i64> {
        let source = batch.records.get(index)?.source as usize;
        let time = batch.source.positions.get(source)?.timestamp_us() / 1000;
        (self.time == RecordTime::Change && time > 0).then_some(time)
    }

    pub(super) fn headers(&mut self, batch: &RecordBatch, index: usize) -> HeaderList {
        let record = &batch.records[index];
        let custom = batch
            .headers
            .get(record.headers.start as usize..record.headers.end as usize)
            .unwrap_or_default();
        let mut out = Pairs::new();
        let source = record.source as usize;
        let Some(position) = batch.source.positions.get(source) else {
            debug_assert!(false, "a record without a change");
            return HeaderList::of(&[]);
        };
        let (_, text, trace) = match self.change {
            Some(change) if change.0 == record.source => change,
            _ => *self.change.insert((
                record.source,
                (self.chosen.position).then(|| headers::PositionText::new(position)),
                (self.chosen.traceparent).then(|| headers::traceparent(position, !batch.traces.on)),
            )),
        };
        if let Some(text) = &text {
            out.push(headers::POSITION.as_bytes(), Some(text.as_bytes()));
        }
        if let Some(row) = batch.source.rows.get(source) {
            let table = row.table();
            if let Some((_, name)) = self.tables.iter().find(|(id, _)| *id == table) {
                out.push(headers::TABLE.as_bytes(), Some(name.as_bytes()));
            }
            if self.chosen.operation {
                let operation = row.operation().name();
                out.push(headers::OPERATION.as_bytes(), Some(operation.as_bytes()));
            }
            // What a reader has to know of this very record is no choice.
            if row.is_marked(Mark::Late) {
                out.push(headers::LATE.as_bytes(), Some(b"true"));
            }
            if let Some(missing) = headers::missing(&row) {
                out.push(headers::MISSING.as_bytes(), Some(missing.as_bytes()));
            }
        }
        // Whoever reads the record goes on from its way to the brokers.
        let own = batch.traces.of(record.source).map(|traced| {
            let context = Context {
                trace: traced.trace,
                span: traced.sent,
                sampled: true,
            };
            context.text()
        });
        let mut traced = false;
        for (name, value) in custom {
            let Some(name) = batch.bytes(*name) else {
                continue;
            };
            if headers::is_reserved(name) {
                continue;
            }
            if name == headers::TRACEPARENT.as_bytes() {
                traced = true;
                if own.is_some() {
                    continue;
                }
            }
            out.push(name, batch.bytes(*value));
        }
        let trace = own.or(trace.filter(|_| !traced));
        if let Some(trace) = &trace {
            out.push(headers::TRACEPARENT.as_bytes(), Some(trace));
        }
        HeaderList::of(out.all())
    }
}

/// Bytes of a batch before its first record: Kafka's format 2
/// (<https://kafka.apache.org/documentation/#recordbatch>).
const BATCH_HEAD: usize = 61;

/// Bytes of a record as a batch of its own, uncompressed: what a topic's `max.message.bytes` is held against.
pub(super) fn size(key: Option<&[u8]>, value: Option<&[u8]>, headers: &HeaderList) -> usize {
    let part = |bytes: Option<&[u8]>| match bytes {
        Some(bytes) => varint(bytes.len() as i64) + bytes.len(),
        None => varint(-1),
    };
    let count = headers.iter().count();
    let headers = headers.iter();
    let headers: usize = headers
        .map(|(name, value)| part(Some(name)) + part(value))
        .sum();
    // Attributes, and the differences to the batch's time and offset, which are none.
    let body = 3 + part(key) + part(value) + varint(count as i64) + headers;
    BATCH_HEAD + varint(body as i64) + body
}

/// Bytes of a number in the zigzag form of Protocol Buffers.
fn varint(n: i64) -> usize {
    let zigzag = ((n << 1) ^ (n >> 63)) as u64;
    (64 - (zigzag | 1).leading_zeros() as usize).div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_what_kafka_counts() {
        // As `DefaultRecordBatch.sizeInBytes` has it for one record.
        let none = HeaderList::of(&[]);
        assert_eq!(size(Some(b"k"), Some(b"v"), &none), 61 + 1 + 3 + 2 + 2 + 1);
        assert_eq!(size(None, None, &none), 61 + 1 + 3 + 1 + 1 + 1);
        let long = [0; 1000];
        assert_eq!(size(None, Some(&long), &none), 61 + 2 + 3 + 1 + 1002 + 1);
        let one = HeaderList::of(&[(b"h", Some(b"vv"))]);
        assert_eq!(size(None, None, &one), 61 + 1 + 3 + 1 + 1 + 1 + 2 + 3);
    }
}
