//! Batches of records without a source and without a plugin.

use std::sync::Arc;
use std::time::Instant;

use penstock::change::{
    Batch, Column, ColumnKind, Position, Record, RecordBatch, Slice, StreamId, TableSchema, Traces,
};
use penstock_plugin_encoding::{ColumnTag, Operation, RowMeta, RowsBuilder};
use uuid::{NoContext, Timestamp, Uuid};

/// The n-th change of a stream.
pub fn position(stream: u8, n: u32) -> Position {
    let time = Timestamp::from_unix(NoContext, 1_764_000_000 + u64::from(n), 0);
    Position {
        stream: StreamId([stream; 16]),
        time: Uuid::new_v1(time, &[2; 6]),
        seq: 0,
    }
}

/// Makes a [`RecordBatch`] record by record, one change each.
pub struct Maker {
    rows: RowsBuilder,
    positions: Vec<Position>,
    output: Vec<u8>,
    topics: Vec<Arc<str>>,
    headers: Vec<(Slice, Slice)>,
    records: Vec<Record>,
}

impl Default for Maker {
    fn default() -> Self {
        Self {
            rows: RowsBuilder::new(),
            positions: Vec::new(),
            output: Vec::new(),
            topics: Vec::new(),
            headers: Vec::new(),
            records: Vec::new(),
        }
    }
}

impl Maker {
    fn bytes(&mut self, bytes: &[u8]) -> Slice {
        let start = self.output.len() as u32;
        self.output.extend_from_slice(bytes);
        let end = self.output.len() as u32;
        Slice::Output { start, end }
    }

    /// Adds a change at a position and the record that it makes.
    pub fn record(
        mut self,
        at: Position,
        topic: &str,
        key: &str,
        value: &[u8],
        headers: &[(&str, &str)],
    ) -> Self {
        let meta = RowMeta {
            operation: Operation::Insert,
            context: false,
            end_of_batch: true,
            table: 7,
            time_us: at.timestamp_us(),
            ttl: 0,
        };
        let source = self.rows.row(meta, 1);
        self.rows.column(ColumnTag::Value, &[key.as_bytes()]);
        self.positions.push(at);
        let topic = match self.topics.iter().position(|t| **t == *topic) {
            Some(index) => index,
            None => {
                self.topics.push(topic.into());
                self.topics.len() - 1
            }
        } as u32;
        let first = self.headers.len() as u32;
        for (name, value) in headers {
            let header = (self.bytes(name.as_bytes()), self.bytes(value.as_bytes()));
            self.headers.push(header);
        }
        let record = Record {
            source,
            topic,
            key: self.bytes(key.as_bytes()),
            value: self.bytes(value),
            headers: first..self.headers.len() as u32,
        };
        self.records.push(record);
        self
    }

    pub fn batch(self) -> Arc<RecordBatch> {
        let schema = TableSchema {
            id: 7,
            keyspace: "ks".into(),
            name: "t".into(),
            columns: vec![Column {
                name: "pk".into(),
                cql_type: "text".into(),
                kind: ColumnKind::PartitionKey,
            }],
        };
        Arc::new(RecordBatch {
            source: Batch {
                shard: 0,
                epoch: 0,
                rows: self.rows.finish(),
                positions: self.positions,
                tables: vec![Arc::new(schema)],
                undecodable: Vec::new(),
                progress: Vec::new(),
                read_at: Instant::now(),
            },
            output: self.output,
            topics: self.topics,
            headers: self.headers,
            records: self.records,
            rejected: Vec::new(),
            dropped: 0,
            traces: Traces::default(),
        })
    }
}

/// Changes `from..to` of stream 1 to one topic: key `k<n % keys>`, value `n`.
pub fn numbered(topic: &str, from: u32, to: u32, keys: u32) -> Arc<RecordBatch> {
    (from..to)
        .fold(Maker::default(), |maker, n| {
            let key = format!("k{}", n % keys);
            maker.record(position(1, n), topic, &key, n.to_string().as_bytes(), &[])
        })
        .batch()
}
