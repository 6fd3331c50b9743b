//! How shards are opened: side by side, and with what can be done before they are ours done before.
//!
//! Who writes is fenced first, and what is read after that is where a shard stands, whoever had it. So each shard is
//! read once, and all of them by one reader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use rdkafka::message::Message as _;

use super::shard::corrupt;
use super::{RedpandaSink, ShardSink};
use crate::checkpoint::{Checkpoints, topic as checkpoint};
use crate::config::settings::Delivery;
use crate::sink::{Opened, Settle, SinkError};

/// Whoever opens shards waits no longer than this for their producers; the shards' sinks go on with it, by the stage's
/// policies.
const CONNECTING: Duration = Duration::from_secs(2);

/// The producers of shards that are about to be opened: they are connected, and have fenced nobody.
#[derive(Default)]
pub struct Prepared(BTreeMap<u32, ShardSink>);

impl Prepared {
    /// Ends those that are of no use, side by side: librdkafka takes up to half a second for one.
    pub async fn close(self) {
        let closing = self.0.into_values().map(|mut producer| async move {
            Settle::close(&mut producer).await;
        });
        join_all(closing).await;
    }
}

impl RedpandaSink {
    /// Looks for the checkpoint topic, which is made where it is missing. What is wrong with it is told when the shards
    /// are opened.
    pub async fn find_checkpoints(&self) {
        if let Err(error) = self.checkpoint_partitions().await {
            tracing::debug!(%error, "the checkpoint topic is not there yet");
        }
    }

    /// Makes the producers of these shards and has them connect, while the shards may still be somebody else's.
    ///
    /// # Errors
    /// A producer cannot be made.
    pub async fn prepare(
        self: &Arc<Self>,
        shards: impl IntoIterator<Item = u32>,
    ) -> Result<Prepared, SinkError> {
        let made: Result<_, SinkError> = shards
            .into_iter()
            .map(|shard| Ok((shard, self.open_shard(shard)?)))
            .collect();
        let prepared = Prepared(made?);
        join_all(prepared.0.values().map(|p| p.warm(CONNECTING))).await;
        Ok(prepared)
    }

    /// Opens shards that nobody else may be writing any more, side by side: all of them, or none. A producer that cannot
    /// be had now is left to the shard's sink, which takes the shard and reads again.
    ///
    /// # Errors
    /// What the brokers have against it.
    pub async fn open_shards(
        self: &Arc<Self>,
        shards: &[u32],
        Prepared(mut prepared): Prepared,
    ) -> Result<Vec<Opened>, SinkError> {
        let rest = prepared.extract_if(.., |shard, _| !shards.contains(shard));
        let rest = Prepared(rest.collect());
        let fencing = prepared
            .into_iter()
            .map(|(shard, mut producer)| async move {
                match producer.fence(CONNECTING).await {
                    Ok(()) => Ok((shard, producer)),
                    Err(error) => {
                        tracing::debug!(shard, %error, "the shard is left to its sink to take");
                        Err((shard, producer))
                    }
                }
            });
        let (mut taken, mut useless) = (Vec::new(), rest.0);
        for fenced in join_all(fencing).await {
            match fenced {
                Ok(producer) => taken.push(producer),
                Err((shard, producer)) => drop(useless.insert(shard, producer)),
            };
        }
        // What is read ends before the claims, whichever is quicker: they are committed by those who fenced.
        let claiming = taken.into_iter().map(|(shard, mut producer)| async move {
            let said = producer.claim_within(CONNECTING).await;
            if let Err(error) = &said {
                tracing::debug!(shard, %error, "whose the shard is its sink will say");
            }
            (shard, producer, said.is_ok())
        });
        let (found, claimed) = tokio::join!(self.load(shards), join_all(claiming));
        let mut taken = BTreeMap::new();
        for (shard, producer, is_said) in claimed {
            match is_said && found.is_ok() {
                true => taken.insert(shard, producer),
                false => useless.insert(shard, producer),
            };
        }
        Prepared(useless).close().await;
        let found = found?;
        let opened = found.into_iter().map(|(shard, checkpoints)| {
            let producer = taken.remove(&shard).map(|mut producer| -> Box<dyn Settle> {
                producer.is_read();
                Box::new(producer)
            });
            Opened {
                shard,
                checkpoints,
                producer,
            }
        });
        Ok(opened.collect())
    }

    /// Reads the checkpoints of these shards, all in one go, and moves those to their partitions that an earlier number
    /// of shards left in others. Only for that it makes producers.
    ///
    /// # Errors
    /// What the brokers have against it.
    pub async fn load(
        self: &Arc<Self>,
        numbers: &[u32],
    ) -> Result<Vec<(u32, Checkpoints)>, SinkError> {
        if numbers.is_empty() {
            return Ok(Vec::new());
        }
        let shards = self.live.borrow().pipeline.shards.get();
        let mut own = BTreeMap::new();
        for shard in numbers {
            // Looked up once, whichever asks.
            own.insert(*shard, self.own_partition(*shard).await?);
        }
        let topic = self.checkpoint_topic();
        let reader = self.reader();
        let mut fold = checkpoint::Fold::new(own.keys().copied(), shards);
        let partitions = own.clone();
        let reading = super::blocking(move || {
            reader.read(&topic, |m| {
                fold.record(m.partition(), m.key(), m.payload())
                    .map_err(|reason| corrupt(&topic, m, &reason))
            })?;
            // Of several that read all, one tells.
            let tells = partitions.contains_key(&0);
            if let Some((records, first)) = fold.foreign().filter(|_| tells) {
                tracing::warn!(
                    topic,
                    records,
                    first,
                    "records that are no checkpoints are skipped"
                );
            }
            Ok(fold.finish(&partitions))
        });
        let waits = self.policies.waits();
        let loaded = waits.during("read the checkpoints", reading).await;
        let loaded = loaded.unwrap_or(Err(SinkError::Reset))?;
        let gathering = loaded.into_iter().map(|(shard, loaded)| {
            let own = own.get(&shard).copied().unwrap_or_default();
            async move {
                self.hashed.lock().extend(loaded.hashed.iter().cloned());
                self.gather(shard, own, &loaded).await?;
                Ok::<_, SinkError>((shard, loaded.checkpoints))
            }
        });
        try_join_all(gathering).await
    }

    /// Moves a shard's checkpoints to its partition.
    async fn gather(
        self: &Arc<Self>,
        shard: u32,
        own: i32,
        loaded: &checkpoint::Loaded,
    ) -> Result<(), SinkError> {
        if loaded.strays.is_empty() {
            return Ok(());
        }
        tracing::info!(
            shard,
            groups = loaded.strays.len(),
            "moving checkpoints from the partitions of an earlier number of shards"
        );
        let moved = loaded.strays.iter().filter_map(|(_, group)| {
            let checkpoint = loaded.checkpoints.get(group)?;
            let value = Some(checkpoint::encode(checkpoint));
            Some((own, group.0.to_string(), value))
        });
        // First here, acknowledged, then there: a crash in between leaves two, of which the furthest counts.
        let mut producer = self.open_with(shard, Delivery::AtLeastOnce)?;
        producer.warm(CONNECTING).await;
        producer
            .move_checkpoints(&moved.collect::<Vec<_>>())
            .await?;
        let cleared = loaded.strays.iter();
        let cleared = cleared.map(|(partition, group)| (*partition, group.0.to_string(), None));
        producer
            .move_checkpoints(&cleared.collect::<Vec<_>>())
            .await?;
        self.ended.end(producer);
        Ok(())
    }
}
