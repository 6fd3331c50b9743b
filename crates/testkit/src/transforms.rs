//! Batches, settings and a running clock for tests of transforms.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock::change::{
    Batch, Column, ColumnKind, Position, RecordBatch, Slice, StreamId, TableSchema,
};
use penstock::config;
use penstock::config::settings::{Limits, OnError, Policies, Settings, Transform};
use penstock::transform::{Engine, TICK};
use penstock_plugin_encoding::{ColumnTag, Operation, RowMeta, RowsBuilder};
use uuid::Uuid;

/// A transform of these settings.
pub fn transform(name: &str, on_error: OnError, settings: &[(&str, &str)]) -> Transform {
    let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    Transform {
        name: name.to_owned(),
        plugin: PathBuf::new(),
        tables: None,
        when: None,
        on_error,
        limits: Limits {
            memory: 8 << 20,
            // Of the wall clock, and tests share the machine.
            deadline: Duration::from_secs(10),
        },
        settings: settings.iter().map(owned).collect(),
        policies: Policies::default(),
    }
}

/// Settings with these transforms; everything else is of no matter here.
pub fn settings(transforms: Vec<Transform>) -> Settings {
    let text = r#"
        [pipeline]
        name = "test"
        [source]
        type = "scylla-cdc"
        nodes = ["127.0.0.1:9042"]
        keyspace = "ks"
        tables = ["t"]
        [sink]
        type = "redpanda"
        brokers = ["127.0.0.1:9092"]
        topic = "{pipeline}.{keyspace}.{table}"
    "#;
    let loaded = config::parse(Path::new("test.toml"), text, config::Checks::default());
    let loaded = loaded.unwrap_or_else(|invalid| panic!("{invalid}"));
    Settings {
        transforms,
        ..(*loaded.settings).clone()
    }
}

/// An engine whose clock runs until the engine is dropped. Code is compiled once for all tests.
pub fn engine() -> Engine {
    let cache = crate::profile().join("plugin-code");
    let engine = Engine::new(Some(&cache), 64).expect("an engine");
    let ticker = engine.ticker();
    std::thread::spawn(move || {
        while ticker.tick() {
            std::thread::sleep(TICK);
        }
    });
    engine
}

/// A table of `name type [primary|clustering|static]` columns.
pub fn table(id: u32, name: &str, columns: &[&str]) -> Arc<TableSchema> {
    let column = |text: &&str| {
        let (name, rest) = text.split_once(' ').expect("name type");
        let (cql_type, kind) = match rest.rsplit_once(' ') {
            Some((t, "primary")) => (t, ColumnKind::PartitionKey),
            Some((t, "clustering")) => (t, ColumnKind::ClusteringKey),
            Some((t, "static")) => (t, ColumnKind::Static),
            _ => (rest, ColumnKind::Regular),
        };
        Column {
            name: name.to_owned(),
            cql_type: cql_type.to_owned(),
            kind,
        }
    };
    Arc::new(TableSchema {
        id,
        keyspace: "ks".to_owned(),
        name: name.to_owned(),
        columns: columns.iter().map(column).collect(),
    })
}

/// A cell of a row.
pub enum Cell<'a> {
    Set(&'a [u8]),
    Tagged(ColumnTag, &'a [u8]),
    Null,
    Unchanged,
}

/// Builds a batch.
pub struct BatchBuilder {
    rows: RowsBuilder,
    positions: Vec<Position>,
    tables: Vec<Arc<TableSchema>>,
    /// The write that the next rows belong to.
    pub write: u32,
}

impl BatchBuilder {
    pub fn new(tables: &[&Arc<TableSchema>]) -> Self {
        Self {
            rows: RowsBuilder::new(),
            positions: Vec::new(),
            tables: tables.iter().map(|t| Arc::clone(t)).collect(),
            write: 0,
        }
    }

    /// Adds a row to the current write.
    pub fn row(&mut self, table: &TableSchema, operation: Operation, cells: &[Cell<'_>]) -> u32 {
        let meta = RowMeta {
            operation,
            context: false,
            end_of_batch: true,
            table: table.id,
            time_us: 1_769_860_800_000_000 + i64::from(self.write),
            ttl: 0,
        };
        let row = self.rows.row(meta, cells.len() as u16);
        for cell in cells {
            match cell {
                Cell::Set(bytes) => self.rows.column(ColumnTag::Value, &[bytes]),
                Cell::Tagged(tag, bytes) => self.rows.column(*tag, &[bytes]),
                Cell::Null => self.rows.column(ColumnTag::Null, &[]),
                Cell::Unchanged => self.rows.column(ColumnTag::Unchanged, &[]),
            }
        }
        self.positions.push(Position {
            stream: StreamId([7; 16]),
            time: Uuid::from_u128(0x1000 << 64 | 8 << 60 | u128::from(self.write)),
            seq: row as i32,
        });
        row
    }

    /// Adds an insert as a write of its own.
    pub fn insert(&mut self, table: &TableSchema, cells: &[Cell<'_>]) -> u32 {
        self.write += 1;
        self.row(table, Operation::Insert, cells)
    }

    pub fn links(&mut self) -> &mut RowsBuilder {
        &mut self.rows
    }

    pub fn finish(self) -> Batch {
        Batch {
            shard: 0,
            epoch: 0,
            rows: self.rows.finish(),
            positions: self.positions,
            tables: self.tables,
            undecodable: Vec::new(),
            progress: Vec::new(),
            read_at: Instant::now(),
        }
    }
}

/// The text of a slice; `<null>` for null.
pub fn text(batch: &RecordBatch, slice: Slice) -> String {
    match batch.bytes(slice) {
        Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        None => "<null>".to_owned(),
    }
}

/// The values of all records, in order.
pub fn values(batch: &RecordBatch) -> Vec<String> {
    batch.records.iter().map(|r| text(batch, r.value)).collect()
}

/// The headers of a record.
pub fn headers(batch: &RecordBatch, record: usize) -> Vec<(String, String)> {
    let range = batch.records[record].headers.clone();
    batch.headers[range.start as usize..range.end as usize]
        .iter()
        .map(|(name, value)| (text(batch, *name), text(batch, *value)))
        .collect()
}
