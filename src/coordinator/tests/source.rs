//! A made-up source: a log of numbered changes a stream group, which a test writes to.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use futures::future::BoxFuture;
use penstock_plugin_encoding::{ColumnTag, Operation, RowMeta, RowsBuilder};
use tokio::sync::watch;
use uuid::Uuid;

use super::world::{GROUPS, World, group, of_shard, reached};
use crate::change::{
    Batch, Column, ColumnKind, GroupKey, Position, Progress, StreamId, TableSchema,
};
use crate::checkpoint::Checkpoints;
use crate::config::LiveSettings;
use crate::source::{Aside, ShardReader, Source, SourceError, SourceStatus, TableStatus};

/// Changes of a batch at most.
const BATCH: i64 = 4;

pub(super) struct Log {
    world: Arc<World>,
    /// Those that it was connected for.
    tables: Vec<String>,
    schema: Arc<TableSchema>,
    rows: AtomicU64,
}

impl Log {
    pub(super) fn new(world: &Arc<World>, live: &LiveSettings) -> Self {
        Self {
            world: world.clone(),
            tables: live.borrow().source.tables.clone(),
            schema: table(),
            rows: AtomicU64::new(0),
        }
    }
}

impl Source for Log {
    fn survey(self: Arc<Self>) -> BoxFuture<'static, Result<Infallible, SourceError>> {
        Box::pin(std::future::pending())
    }

    /// A table whose name begins so is not there.
    fn absent(&self) -> Vec<(Arc<str>, SourceError)> {
        let absent = self.tables.iter().filter(|t| t.starts_with("missing"));
        let told = absent.map(|table| {
            let error = SourceError::MissingTable {
                keyspace: "ks".into(),
                table: table.clone(),
                like: None,
            };
            (format!("ks.{table}").into(), error)
        });
        told.collect()
    }

    fn placed_by_hash(&self, _: &BTreeSet<String>) {}

    fn open_shard(
        self: Arc<Self>,
        shard: u32,
        shards: u32,
        epoch: u64,
        checkpoints: Checkpoints,
    ) -> Box<dyn ShardReader> {
        let groups = (0..GROUPS).filter(|g| of_shard(*g, shard, shards));
        Box::new(Reader {
            read: groups.map(|g| (g, reached(g, &checkpoints))).collect(),
            log: self,
            shard,
            epoch,
        })
    }

    fn acknowledged(&self, _: u32, _: &[Progress]) {}

    fn release_shard(&self, _: u32) {}

    fn read_again<'a>(
        &'a self,
        _: &'a str,
        _: Position,
    ) -> BoxFuture<'a, Result<Option<Batch>, SourceError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn status(&self) -> SourceStatus {
        let table = |table: &String| TableStatus {
            table: format!("ks.{table}"),
            ..TableStatus::default()
        };
        SourceStatus {
            tables: self.tables.iter().map(table).collect(),
            rows: self.rows.load(Relaxed),
            ..SourceStatus::default()
        }
    }
}

struct Reader {
    log: Arc<Log>,
    shard: u32,
    epoch: u64,
    /// Of each group of the shard, the last change that was handed on.
    read: Vec<(usize, i64)>,
}

impl Reader {
    /// The next changes of the first group that has some.
    fn take(&mut self) -> Option<(usize, RangeInclusive<i64>)> {
        let written = *self.log.world.written.borrow();
        let (group, read) = self.read.iter_mut().find(|(g, read)| *read < written[*g])?;
        let (first, last) = (*read + 1, (*read + BATCH).min(written[*group]));
        *read = last;
        Some((*group, first..=last))
    }
}

/// The table of made-up changes: a key, and nothing else.
pub(in super::super) fn table() -> Arc<TableSchema> {
    let column = Column {
        name: "pk".into(),
        cql_type: "text".into(),
        kind: ColumnKind::PartitionKey,
    };
    Arc::new(TableSchema {
        id: 7,
        keyspace: "ks".into(),
        name: "t".into(),
        columns: vec![column],
    })
}

/// Made-up changes, by their numbers: of a stream whose id is that byte, in this group.
pub(in super::super) fn batch(
    (shard, epoch): (u32, u64),
    (stream, group): (u8, GroupKey),
    table: &Arc<TableSchema>,
    changes: RangeInclusive<i64>,
) -> Batch {
    let (mut rows, mut positions) = (RowsBuilder::new(), Vec::new());
    let last = *changes.end();
    for n in changes {
        let meta = RowMeta {
            operation: Operation::Insert,
            context: false,
            end_of_batch: true,
            table: table.id,
            time_us: n,
            ttl: 0,
        };
        rows.row(meta, 1);
        rows.column(ColumnTag::Value, &[b"k"]);
        positions.push(Position {
            stream: StreamId([stream; 16]),
            time: Uuid::nil(),
            seq: n as i32,
        });
    }
    Batch {
        shard,
        epoch,
        rows: rows.finish(),
        tables: vec![table.clone()],
        undecodable: Vec::new(),
        progress: vec![Progress {
            complete_until_us: Some(last),
            streams: positions.last().copied().into_iter().collect(),
            ..Progress::new(group)
        }],
        positions,
        read_at: std::time::Instant::now(),
    }
}

impl ShardReader for Reader {
    fn next(&mut self) -> BoxFuture<'_, Result<Batch, SourceError>> {
        Box::pin(async move {
            let mut written = self.log.world.written.subscribe();
            loop {
                if let Some((of, changes)) = self.take() {
                    let crashes = &self.log.world.source_crashes;
                    let less = crashes.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
                    assert!(less.is_err(), "the reader of group {of} crashes");
                    let rows = changes.clone().count() as u64;
                    self.log.rows.fetch_add(rows, Relaxed);
                    let (shard, stream) = ((self.shard, self.epoch), (of as u8, group(of)));
                    return Ok(batch(shard, stream, &self.log.schema, changes));
                }
                if written.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        })
    }

    fn heed(&mut self, _: watch::Receiver<Arc<Aside>>) {}

    fn drive(&mut self) -> BoxFuture<'_, Infallible> {
        Box::pin(std::future::pending())
    }
}
