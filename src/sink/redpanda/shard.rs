//! One shard's way to the brokers: batches in order, and its checkpoints.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use penstock_plugin_encoding::Mark;
use rdkafka::message::{Header, Message, OwnedHeaders};

use super::outlet::{Handed, Lane, Outgoing, Outlet};
use super::{RedpandaSink, reader};
use crate::change::{GroupKey, Position, RecordBatch};
use crate::checkpoint::{Checkpoints, topic as checkpoint};
use crate::config::settings::Delivery;
use crate::crash::Crash;
use crate::sink::flight::{BatchId, Oldest, Report, Snapshot, Tag};
use crate::sink::{Delivered, SinkError, Ticket, headers, is_topic_name};

/// A partition that was added is known to every broker by then.
const PARTITION_SHOWS: Duration = Duration::from_secs(10);
/// Waits for a full queue that holds nothing, before a record is taken to be larger than the queue.
const FULL_AND_EMPTY: u32 = 1000;

/// A shard's producer.
///
/// The producer is the shard's alone, so its records keep their order, and a transaction around them is the
/// shard's too. `exactly-once` comes in at two places: [`Self::submit`] begins a transaction where none is
/// open, and [`Self::commit`] ends it with the checkpoint inside, once every ticket is resolved.
pub struct ShardSink {
    sink: Arc<RedpandaSink>,
    shard: u32,
    outlet: Outlet,
    /// Changes of which a record was refused together with others: sent alone next time.
    suspects: HashSet<Position>,
}

impl ShardSink {
    pub(super) fn open(
        sink: Arc<RedpandaSink>,
        shard: u32,
        lane: Arc<Lane>,
    ) -> Result<Self, SinkError> {
        if sink.live.borrow().pipeline.delivery == Delivery::ExactlyOnce {
            return Err(SinkError::ExactlyOnce);
        }
        let outlet = Outlet::new(sink.producer_config(&shard.to_string()), lane)?;
        Ok(Self {
            sink,
            shard,
            outlet,
            suspects: HashSet::new(),
        })
    }

    /// Hands a batch over; waits for the rate limit, the breaker, missing topics and a full queue, and for
    /// nothing else. The ticket resolves with its delivery; a batch without records is delivered at once.
    ///
    /// An error, of this or of a ticket, leaves the shard's producer with a gap: [`Self::reset`] it and go
    /// back to the checkpoint. Dropping the future before it is done does the same.
    pub async fn submit(&mut self, batch: Arc<RecordBatch>) -> Result<Ticket, SinkError> {
        if let Some(broken) = self.outlet.window().broken() {
            return Err(broken);
        }
        if batch.records.is_empty() {
            let (done, ticket) = Ticket::new();
            done.send(Ok(Delivered::default())).ok();
            return Ok(ticket);
        }
        self.sink
            .policies
            .throttle(batch.records.len() as u32)
            .await;
        let named = self.check_topics(&batch).await?;
        let permit = self.sink.gate().await;
        let window = Arc::clone(self.outlet.window());
        let (submission, ticket) = window.open(Some(Arc::clone(&batch)), Some(permit))?;
        Crash::AfterBegin.here();
        self.hand_over(submission.id, &batch, &named).await?;
        submission.seal();
        Ok(ticket)
    }

    /// Per topic of the batch, whether Kafka would take its name; makes those that are missing.
    async fn check_topics(&self, batch: &RecordBatch) -> Result<Vec<bool>, SinkError> {
        let mut named = Vec::with_capacity(batch.topics.len());
        for topic in &batch.topics {
            let good = is_topic_name(topic);
            if good && !self.sink.topics.knows(topic) {
                self.sink.find_topic(topic).await?;
            }
            named.push(good);
        }
        Ok(named)
    }

    async fn hand_over(
        &mut self,
        id: BatchId,
        batch: &RecordBatch,
        named: &[bool],
    ) -> Result<(), SinkError> {
        let window = Arc::clone(self.outlet.window());
        let mut common = Common::new(batch);
        let total = batch.records.len();
        let (mut index, mut bytes, mut empty) = (0, 0, 0);
        // The records from `index` on are announced to the window whenever it is not being waited for.
        window.expect(id, total as u32);
        let mut back = None;
        while index < total {
            let record = &batch.records[index];
            let tag = Tag::new(id, index as u32);
            let left = (total - index) as u32;
            let topic = record.topic as usize;
            if !named.get(topic).copied().unwrap_or(false) {
                let name = batch.topics.get(topic).map_or("", |t| t);
                let reason = format!("{name:?} is not a name for a topic");
                window.report(tag, Report::Poison(reason));
                index += 1;
                continue;
            }
            let key = batch.bytes(record.key);
            let value = batch.bytes(record.value);
            let out = Outgoing {
                topic: &batch.topics[topic],
                partition: None,
                key,
                value,
                headers: Some(back.take().unwrap_or_else(|| common.headers(batch, index))),
            };
            if self.is_suspect(batch, index) {
                window.unexpect(id, left);
                self.send_alone(id, index as u32, out).await?;
                window.expect(id, left - 1);
                index += 1;
                continue;
            }
            match self.outlet.hand(tag, out)? {
                Handed::Taken => {
                    Crash::MidSend.here();
                    bytes += key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
                    (index, empty) = (index + 1, 0);
                }
                Handed::Reported => {
                    if let Some(broken) = window.broken() {
                        return Err(broken);
                    }
                    index += 1;
                }
                Handed::Full(_) if empty >= FULL_AND_EMPTY => {
                    let reason = "larger than the producer's queue (queue.buffering.max.kbytes)";
                    window.report(tag, Report::Poison(reason.to_owned()));
                    (index, empty) = (index + 1, 0);
                }
                Handed::Full(headers) => {
                    back = headers;
                    window.unexpect(id, left);
                    empty += u32::from(window.messages() == 0);
                    self.outlet.room().await?;
                    window.expect(id, left);
                }
            }
        }
        if !self.suspects.is_empty() {
            for position in &batch.source.positions {
                self.suspects.remove(position);
            }
        }
        self.outlet
            .lane()
            .counters()
            .produced(total as u64, bytes as u64);
        Ok(())
    }

    fn is_suspect(&self, batch: &RecordBatch, index: usize) -> bool {
        !self.suspects.is_empty()
            && batch
                .source
                .positions
                .get(batch.records[index].source as usize)
                .is_some_and(|p| self.suspects.contains(p))
    }

    /// Sends a record with nothing else under way, so that a refusal is about it and nothing can overtake it.
    async fn send_alone(
        &mut self,
        id: BatchId,
        index: u32,
        out: Outgoing<'_>,
    ) -> Result<(), SinkError> {
        let window = Arc::clone(self.outlet.window());
        window.room(0).await?;
        window.set_alone(true);
        self.outlet.send(id, index, out).await?;
        window.room(0).await?;
        window.set_alone(false);
        if self.outlet.is_finished() {
            // To librdkafka the refusal left a gap; here it is known, and goes to the dead letters.
            self.outlet.replace_producer().await?;
        }
        Ok(())
    }

    /// Lets go of everything under way, its tickets resolving as [`SinkError::Reset`], and starts over with a
    /// new producer. The shard then goes on from its checkpoint.
    pub async fn reset(&mut self) -> Result<(), SinkError> {
        self.outlet.stop().await;
        let suspects = self.outlet.window().suspects();
        if !suspects.is_empty() {
            tracing::warn!(
                shard = self.shard,
                records = suspects.len(),
                "records were refused together, each is sent alone to find the one that is refused"
            );
        }
        self.suspects.extend(suspects);
        self.sink.topics.forget();
        self.outlet.restart().await
    }

    /// Writes the checkpoints that changed, and forgets the groups that are finished; back once acknowledged.
    /// Call it with checkpoints of delivered batches only.
    pub async fn commit(
        &mut self,
        changed: &Checkpoints,
        forgotten: &[GroupKey],
    ) -> Result<(), SinkError> {
        let partition = self.sink.own_partition(self.shard).await?;
        let changed = changed
            .iter()
            .map(|(group, c)| (partition, group, Some(checkpoint::encode(c))));
        let forgotten = forgotten.iter().map(|group| (partition, group, None));
        let records: Vec<_> = changed.chain(forgotten).collect();
        Crash::BeforeCommit.here();
        self.write_checkpoints(&records).await?;
        Crash::AfterCommit.here();
        Ok(())
    }

    async fn write_checkpoints(
        &mut self,
        records: &[(i32, &GroupKey, Option<Vec<u8>>)],
    ) -> Result<(), SinkError> {
        if records.is_empty() {
            return Ok(());
        }
        let topic = self.sink.checkpoint_topic();
        let permit = self.sink.gate().await;
        let window = Arc::clone(self.outlet.window());
        let (submission, ticket) = window.open(None, Some(permit))?;
        for (i, (partition, group, value)) in records.iter().enumerate() {
            let out = Outgoing {
                topic: &topic,
                partition: Some(*partition),
                key: Some(group.0.as_bytes()),
                value: value.as_deref(),
                headers: None,
            };
            self.outlet.send(submission.id, i as u32, out).await?;
        }
        submission.seal();
        match ticket.await?.poison.into_iter().next() {
            None => Ok(()),
            Some((_, reason)) => Err(SinkError::Topic {
                topic,
                reason: format!("a checkpoint was refused: {reason}"),
                class: crate::policy::Class::Fatal,
            }),
        }
    }

    /// Writes checkpoints into partitions that may have been added a moment ago: not every broker knows them yet,
    /// and a producer that has been told "unknown" has to be made anew to ask again.
    async fn move_checkpoints(
        &mut self,
        records: &[(i32, &GroupKey, Option<Vec<u8>>)],
    ) -> Result<(), SinkError> {
        let deadline = tokio::time::Instant::now() + PARTITION_SHOWS;
        loop {
            match self.write_checkpoints(records).await {
                Err(error)
                    if error.class() == crate::policy::Class::Retryable
                        && tokio::time::Instant::now() < deadline =>
                {
                    tracing::debug!(shard = self.shard, %error, "moving checkpoints again");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    self.reset().await?;
                }
                done => return done,
            }
        }
    }

    /// When the batch was submitted that has been waiting longest.
    pub fn oldest_unacked(&self) -> Option<Oldest> {
        self.outlet.window().oldest()
    }

    /// Counts, queue fill and age of this shard, over all its producers.
    pub fn snapshot(&self) -> Snapshot {
        self.outlet.lane().snapshot()
    }

    /// Ends the producer without waiting for what is under way: await the tickets first.
    pub async fn close(mut self) {
        self.outlet.stop().await;
    }
}

impl RedpandaSink {
    /// Reads a shard's checkpoints, and moves those to its partition that an earlier number of shards left in
    /// others. Only for that it makes a producer, which takes up to half a second to end.
    pub async fn load(self: &Arc<Self>, shard: u32) -> Result<Checkpoints, SinkError> {
        let own = self.own_partition(shard).await?;
        let shards = self.live.borrow().pipeline.shards.get();
        let topic = self.checkpoint_topic();
        let config = self.reader_config();
        let mut fold = checkpoint::Fold::new(shard, shards);
        let loaded = super::blocking(move || {
            reader::read(&config, &topic, |m| {
                fold.record(m.partition(), m.key(), m.payload())
                    .map_err(|reason| SinkError::Corrupt {
                        topic: topic.clone(),
                        partition: m.partition(),
                        offset: m.offset(),
                        what: "checkpoint",
                        reason: reason.to_string(),
                    })?;
                Ok(())
            })?;
            Ok(fold.finish(own))
        })
        .await
        .unwrap_or(Err(SinkError::Reset))?;
        if !loaded.strays.is_empty() {
            tracing::info!(
                shard,
                groups = loaded.strays.len(),
                "moving checkpoints from the partitions of an earlier number of shards"
            );
            let moved = loaded.strays.iter().filter_map(|(_, group)| {
                let checkpoint = loaded.checkpoints.get(group)?;
                Some((own, group, Some(checkpoint::encode(checkpoint))))
            });
            // First here, acknowledged, then there: a crash in between leaves two, of which the furthest counts.
            let mut producer = self.open_shard(shard)?;
            producer
                .move_checkpoints(&moved.collect::<Vec<_>>())
                .await?;
            let cleared = loaded.strays.iter().map(|(p, group)| (*p, group, None));
            producer
                .move_checkpoints(&cleared.collect::<Vec<_>>())
                .await?;
            producer.close().await;
        }
        Ok(loaded.checkpoints)
    }

    /// The shard's partition of the checkpoint topic, made where it is missing.
    async fn own_partition(&self, shard: u32) -> Result<i32, SinkError> {
        let partitions = self.checkpoint_partitions().await?;
        // More shards than partitions where partitions cannot be added: shards then share them, which `load`
        // copes with because it tells groups apart by their key.
        Ok((shard % partitions) as i32)
    }
}

/// What the records of a batch share, so that building headers costs no allocation of ours.
struct Common {
    /// `keyspace.table` by schema id.
    tables: Vec<(u32, String)>,
    change: Option<(u32, headers::PositionText, [u8; 55])>,
}

impl Common {
    fn new(batch: &RecordBatch) -> Self {
        let name =
            |t: &Arc<crate::change::TableSchema>| (t.id, format!("{}.{}", t.keyspace, t.name));
        Self {
            tables: batch.source.tables.iter().map(name).collect(),
            change: None,
        }
    }

    fn headers(&mut self, batch: &RecordBatch, index: usize) -> OwnedHeaders {
        let record = &batch.records[index];
        let custom = batch
            .headers
            .get(record.headers.start as usize..record.headers.end as usize)
            .unwrap_or_default();
        let mut out = OwnedHeaders::new_with_capacity(4 + custom.len());
        let source = record.source as usize;
        let Some(position) = batch.source.positions.get(source) else {
            debug_assert!(false, "a record without a change");
            return out;
        };
        let (_, text, trace) = match self.change {
            Some(change) if change.0 == record.source => change,
            _ => *self.change.insert((
                record.source,
                headers::PositionText::new(position),
                headers::traceparent(position),
            )),
        };
        out = insert(out, headers::POSITION, Some(text.as_bytes()));
        if let Some(row) = batch.source.rows.get(source) {
            let table = row.table();
            if let Some((_, name)) = self.tables.iter().find(|(id, _)| *id == table) {
                out = insert(out, headers::TABLE, Some(name.as_bytes()));
            }
            let operation = row.operation().name();
            out = insert(out, headers::OPERATION, Some(operation.as_bytes()));
            if row.is_marked(Mark::Late) {
                out = insert(out, headers::LATE, Some(b"true"));
            }
            if let Some(missing) = headers::missing(&row) {
                out = insert(out, headers::MISSING, Some(missing.as_bytes()));
            }
        }
        let mut traced = false;
        for (name, value) in custom {
            let Some(name) = batch.bytes(*name).and_then(|n| std::str::from_utf8(n).ok()) else {
                continue;
            };
            if headers::is_reserved(name.as_bytes()) {
                continue;
            }
            traced |= name == headers::TRACEPARENT;
            out = insert(out, name, batch.bytes(*value));
        }
        if traced {
            out
        } else {
            insert(out, headers::TRACEPARENT, Some(&trace))
        }
    }
}

fn insert(headers: OwnedHeaders, key: &str, value: Option<&[u8]>) -> OwnedHeaders {
    headers.insert(Header { key, value })
}
