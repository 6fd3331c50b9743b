//! A made-up log, and what stands in the place of the transforms.

use std::convert::Infallible;
use std::sync::Arc;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::super::super::supervisor::ChildScope;
use super::super::super::tests::source::{batch, table};
use super::super::{Counters, Lane, Ledger};
use super::brokers::Dice;
use super::{CHANGES, OTHER, SHARDS, at, dropped, group, rejected};
use crate::change::{
    Batch, Position, Progress, Record, RecordBatch, Rejected, Slice, TableSchema, Traces,
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
        Arc::new(Self {
            dice,
            settled: Default::default(),
            counters: Default::default(),
            schema: table(),
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
            let changes = self.read + 1..=last;
            self.read = last;
            let stream = (self.shard as u8, own);
            let shard = (self.shard, self.epoch);
            Ok(batch(shard, stream, &self.log.schema, changes))
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
