//! A made-up log, and what stands in the place of the transforms.

use std::convert::Infallible;
use std::sync::Arc;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use penstock_plugin_encoding::{ColumnTag, Operation, RowMeta, RowsBuilder};
use tokio::sync::watch;
use uuid::Uuid;

use super::super::super::supervisor::ChildScope;
use super::super::{Counters, Lane, Ledger};
use super::brokers::Dice;
use super::{CHANGES, OTHER, SHARDS, at, dropped, group, rejected};
use crate::change::{
    Batch, Column, ColumnKind, Position, Progress, Record, RecordBatch, Rejected, Slice, StreamId,
    TableSchema, Traces,
};
use crate::checkpoint::Checkpoints;
use crate::source::{Aside, ShardReader, Source, SourceError, SourceStatus};

/// The log of an instance: changes 1 to [`CHANGES`] of a stream a shard.
pub(super) struct Log {
    pub(super) dice: Arc<Dice>,
    /// By shard, as the lanes were told that it is settled.
    pub(super) settled: [Mutex<i64>; SHARDS],
    /// … and what they count.
    pub(super) counters: [Arc<Counters>; SHARDS],
    schema: Arc<TableSchema>,
}

impl Log {
    pub(super) fn new(dice: Arc<Dice>) -> Arc<Self> {
        let column = Column {
            name: "pk".into(),
            cql_type: "text".into(),
            kind: ColumnKind::PartitionKey,
        };
        Arc::new(Self {
            dice,
            settled: Default::default(),
            counters: Default::default(),
            schema: Arc::new(TableSchema {
                id: 7,
                keyspace: "ks".into(),
                name: "t".into(),
                columns: vec![column],
            }),
        })
    }
}

impl Source for Log {
    fn survey(self: Arc<Self>) -> BoxFuture<'static, Result<Infallible, SourceError>> {
        Box::pin(std::future::pending())
    }

    fn placed_by_hash(&self, _: &std::collections::BTreeSet<String>) {}

    fn open_shard(
        self: Arc<Self>,
        shard: u32,
        _: u32,
        epoch: u64,
        checkpoints: Checkpoints,
    ) -> Box<dyn ShardReader> {
        Box::new(Reader {
            log: self,
            shard,
            epoch,
            read: at(shard as usize, &checkpoints),
            aside: watch::Sender::default().subscribe(),
        })
    }

    fn acknowledged(&self, shard: u32, progress: &[Progress]) {
        let until = progress.iter().filter_map(|p| p.complete_until_us).max();
        let mut settled = self.settled[shard as usize].lock();
        *settled = (*settled).max(until.unwrap_or_default());
    }

    fn release_shard(&self, _: u32) {}

    fn read_again<'a>(
        &'a self,
        _: &'a str,
        _: Position,
    ) -> BoxFuture<'a, Result<Option<Batch>, SourceError>> {
        Box::pin(async { Ok(None) })
    }

    fn status(&self) -> SourceStatus {
        SourceStatus::default()
    }
}

struct Reader {
    log: Arc<Log>,
    shard: u32,
    epoch: u64,
    read: i64,
    aside: watch::Receiver<Arc<Aside>>,
}

impl ShardReader for Reader {
    fn next(&mut self) -> BoxFuture<'_, Result<Batch, SourceError>> {
        Box::pin(async move {
            if self.read >= CHANGES {
                return std::future::pending().await;
            }
            let own = group(self.shard as usize);
            while self.aside.borrow_and_update().parked.contains(&own) {
                if self.aside.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
            if self.log.dice.hits(40) {
                tokio::time::sleep(self.log.dice.delay()).await;
            }
            let last = (self.read + 1 + self.log.dice.below(4) as i64).min(CHANGES);
            let mut rows = RowsBuilder::new();
            let mut positions = Vec::new();
            for n in self.read + 1..=last {
                let meta = RowMeta {
                    operation: Operation::Insert,
                    context: false,
                    end_of_batch: true,
                    table: self.log.schema.id,
                    time_us: n,
                    ttl: 0,
                };
                rows.row(meta, 1);
                rows.column(ColumnTag::Value, &[b"k"]);
                positions.push(Position {
                    stream: StreamId([self.shard as u8; 16]),
                    time: Uuid::nil(),
                    seq: n as i32,
                });
            }
            self.read = last;
            let streams = positions.last().copied().into_iter().collect();
            Ok(Batch {
                shard: self.shard,
                epoch: self.epoch,
                rows: rows.finish(),
                positions,
                tables: vec![self.log.schema.clone()],
                undecodable: Vec::new(),
                progress: vec![Progress {
                    complete_until_us: Some(last),
                    streams,
                    ..Progress::new(group(self.shard as usize))
                }],
                read_at: std::time::Instant::now(),
            })
        })
    }

    fn heed(&mut self, aside: watch::Receiver<Arc<Aside>>) {
        self.aside = aside;
    }

    fn drive(&mut self) -> BoxFuture<'_, Infallible> {
        Box::pin(std::future::pending())
    }
}

/// In the place of the transforms, whose plugins are not made up: what their child does with channels and ledger.
pub(super) async fn pass_on(
    lane: Arc<Lane>,
    dice: Arc<Dice>,
    scope: ChildScope,
) -> anyhow::Result<()> {
    let mut batches = lane.batches.1.lock().await;
    let transforming = lane.ledger.lock().is_transforming();
    if transforming {
        lane.rewind("crashed", Ledger::rewind_to_handed);
    }
    loop {
        let batch = tokio::select! {
            biased;
            batch = batches.recv() => batch,
            () = scope.drain.cancelled() => return Ok(()),
        };
        let Some(batch) = batch else { return Ok(()) };
        if !lane.ledger.lock().take(batch.epoch) {
            continue;
        }
        if dice.hits(30) {
            tokio::time::sleep(dice.delay()).await;
        }
        anyhow::ensure!(!dice.hits(2), "crashed with a batch in hand");
        let made = Arc::new(transformed(batch));
        let permit = lane.records.0.reserve().await?;
        let source = &made.source;
        if lane.ledger.lock().hand(source.epoch, &source.progress) {
            permit.send(made);
        }
    }
}

fn transformed(batch: Batch) -> RecordBatch {
    let mut made = RecordBatch {
        records: Vec::new(),
        output: Vec::new(),
        topics: vec!["t".into(), "u".into()],
        headers: Vec::new(),
        rejected: Vec::new(),
        dropped: 0,
        traces: Traces::default(),
        source: batch,
    };
    for (source, position) in (0..).zip(&made.source.positions) {
        let id = i64::from(position.seq);
        if dropped(id) {
            made.dropped += 1;
        } else if rejected(id) {
            made.rejected.push(Rejected {
                source,
                stage: "transform.t".into(),
                error: "never".into(),
                attempts: 1,
            });
        } else {
            made.records.push(Record {
                source,
                topic: if id % 9 == 4 { OTHER } else { 0 },
                key: Slice::Null,
                value: Slice::Null,
                headers: 0..0,
            });
        }
    }
    made
}
