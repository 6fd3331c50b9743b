//! How shards are opened: side by side, and with what can be done before they are ours done before.
//!
//! Who writes is fenced first, and what is read after that is where a shard stands, whoever had it. So each shard is
//! read once, and all of them by one reader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{join_all, try_join_all};

use super::aside::Aside;
use super::reader::STALLED;
use super::{RedpandaSink, ShardSink};
use crate::checkpoint::{Checkpoints, topic as checkpoint};
use crate::config::settings::Delivery;
use crate::sink::{Opened, Settle, SinkError};

/// Whoever opens shards waits no longer than this for their producers; the shards' sinks go on with it, by the stage's
/// policies.
const CONNECTING: Duration = Duration::from_secs(2);

/// What shards are about to be opened with: their producers, which are connected and have fenced nobody.
#[derive(Default)]
pub struct Prepared {
    producers: BTreeMap<u32, ShardSink>,
    aside: Aside,
}

impl Prepared {
    /// Ends what is of no use.
    pub async fn close(self) {
        tokio::join!(close(self.producers.into_values()), self.aside.close());
    }
}

/// Side by side: librdkafka takes up to half a second for one.
async fn close(producers: impl Iterator<Item = ShardSink>) {
    let closing = producers.map(|mut producer| async move {
        Settle::close(&mut producer).await;
    });
    join_all(closing).await;
}

/// Has these producers take their shards, side by side: those that have, and those that have not.
async fn fence(
    producers: impl IntoIterator<Item = (u32, ShardSink)>,
) -> (BTreeMap<u32, ShardSink>, Vec<ShardSink>) {
    let fencing = producers
        .into_iter()
        .map(|(shard, mut producer)| async move {
            match producer.fence(CONNECTING).await {
                Ok(()) => Ok((shard, producer)),
                Err(error) => {
                    tracing::debug!(shard, %error, "the shard is left to others to take");
                    Err(producer)
                }
            }
        });
    let (mut taken, mut useless) = (BTreeMap::new(), Vec::new());
    for fenced in join_all(fencing).await {
        match fenced {
            Ok((shard, producer)) => drop(taken.insert(shard, producer)),
            Err(producer) => useless.push(producer),
        }
    }
    (taken, useless)
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
        let producers: BTreeMap<u32, ShardSink> = made?;
        join_all(producers.values().map(|p| p.warm(CONNECTING))).await;
        Ok(Prepared {
            producers,
            aside: Aside::default(),
        })
    }

    /// … beside others that run until these are opened, and stand still meanwhile: so what takes its time then is done now.
    ///
    /// # Errors
    /// As there.
    pub async fn prepare_beside(self: &Arc<Self>, shards: Vec<u32>) -> Result<Prepared, SinkError> {
        let preparing = self.prepare(shards.iter().copied());
        let (prepared, aside) = tokio::join!(preparing, self.set_aside(&shards, CONNECTING));
        match prepared {
            Ok(Prepared { producers, .. }) => Ok(Prepared { producers, aside }),
            Err(error) => {
                aside.close().await;
                Err(error)
            }
        }
    }

    /// Opens shards that nobody else may be writing any more, side by side: all of them, or none. A producer that cannot
    /// be had now is left to the shard's sink, which takes the shard and reads again. Where there were more shards once,
    /// whoever still has those that are no more can write nothing from here on either.
    ///
    /// # Errors
    /// What the brokers have against it.
    pub async fn open_shards(
        self: &Arc<Self>,
        shards: &[u32],
        Prepared {
            mut producers,
            mut aside,
        }: Prepared,
    ) -> Result<Vec<Opened>, SinkError> {
        let rest = producers.extract_if(.., |shard, _| !shards.contains(shard));
        let mut useless: Vec<ShardSink> = rest.map(|(_, producer)| producer).collect();
        let surplus = std::mem::take(&mut aside.surplus);
        let ((taken, failed), (surplus, not_taken)) =
            tokio::join!(fence(producers), fence(surplus));
        useless.extend(failed);
        useless.extend(not_taken);
        // What is read ends before the claims, whichever is quicker: they are committed by those who fenced.
        let claiming = taken.into_iter().map(|(shard, mut producer)| async move {
            let said = producer.claim_within(CONNECTING).await;
            if let Err(error) = &said {
                tracing::debug!(shard, %error, "whose the shard is its sink will say");
            }
            (shard, producer, said.is_ok())
        });
        let retired: BTreeSet<u32> = surplus.keys().copied().collect();
        let (found, claimed, given_up) = tokio::join!(
            self.load_with(shards, aside, &retired),
            join_all(claiming),
            self.give_up(surplus),
        );
        let found = given_up.and(found);
        let mut taken = BTreeMap::new();
        for (shard, producer, is_said) in claimed {
            match is_said && found.is_ok() {
                true => drop(taken.insert(shard, producer)),
                false => useless.push(producer),
            }
        }
        close(useless.into_iter()).await;
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

    /// Says of these shards, which are no more and were taken, that nobody has them.
    async fn give_up(&self, surplus: BTreeMap<u32, ShardSink>) -> Result<(), SinkError> {
        let giving_up = surplus.into_values().map(|mut producer| async move {
            producer.give_up().await?;
            self.ended.end(producer);
            Ok(())
        });
        try_join_all(giving_up).await.map(drop)
    }

    /// Takes shards that are no more, and says that nobody has them.
    async fn retire(self: &Arc<Self>, numbers: &BTreeSet<u32>) -> Result<(), SinkError> {
        let taking = numbers.iter().map(|number| async move {
            let mut producer = self.open_shard(*number)?;
            producer.fence(producer.patience()).await?;
            Ok::<_, SinkError>((*number, producer))
        });
        let taken = try_join_all(taking).await?;
        self.give_up(taken.into_iter().collect()).await
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
        self.load_with(numbers, Aside::default(), &BTreeSet::new())
            .await
    }

    /// … with what is ready for it. Nobody has these of the shards that are no more; the others of those are taken first.
    async fn load_with(
        self: &Arc<Self>,
        numbers: &[u32],
        mut aside: Aside,
        retired: &BTreeSet<u32>,
    ) -> Result<Vec<(u32, Checkpoints)>, SinkError> {
        if numbers.is_empty() {
            return Ok(Vec::new());
        }
        let mut own = BTreeMap::new();
        for shard in numbers {
            // Looked up once, whichever asks.
            own.insert(*shard, self.own_partition(*shard).await?);
        }
        let mut read = self.read_for(&own, &mut aside, STALLED).await?;
        let surplus = &self.surplus(&read).await? - retired;
        if !surplus.is_empty() {
            self.retire(&surplus).await?;
            // They may have written until then.
            aside.keep(read);
            read = self.read_for(&own, &mut aside, STALLED).await?;
        }
        // Of several that read all, one tells.
        let tells = own.contains_key(&0);
        if let Some((records, first)) = read.fold.foreign().filter(|_| tells) {
            tracing::warn!(
                topic = self.checkpoint_topic(),
                records,
                first,
                "records that are no checkpoints are skipped"
            );
        }
        let loaded = read.fold.finish(&own);
        for loaded in loaded.values() {
            self.hashed.lock().extend(loaded.hashed.iter().cloned());
        }
        self.gather(&own, &loaded, aside.mover()).await?;
        let loaded = loaded.into_iter();
        Ok(loaded.map(|(shard, l)| (shard, l.checkpoints)).collect())
    }

    /// Moves checkpoints to the partitions of their shards.
    async fn gather(
        self: &Arc<Self>,
        own: &BTreeMap<u32, i32>,
        loaded: &BTreeMap<u32, checkpoint::Loaded>,
        ready: Option<ShardSink>,
    ) -> Result<(), SinkError> {
        let (mut moved, mut cleared) = (Vec::new(), Vec::new());
        for (shard, loaded) in loaded.iter().filter(|(_, l)| !l.strays.is_empty()) {
            tracing::info!(
                shard,
                groups = loaded.strays.len(),
                "moving checkpoints from the partitions of an earlier number of shards"
            );
            let own = own.get(shard).copied().unwrap_or_default();
            for (partition, group) in &loaded.strays {
                if let Some(checkpoint) = loaded.checkpoints.get(group) {
                    let value = Some(checkpoint::encode(checkpoint));
                    moved.push((own, group.0.to_string(), value));
                }
                cleared.push((*partition, group.0.to_string(), None));
            }
        }
        let mut producer = match (ready, own.keys().next()) {
            (Some(ready), _) => ready,
            (None, Some(first)) if !cleared.is_empty() => {
                let producer = self.open_with(*first, Delivery::AtLeastOnce)?;
                producer.warm(CONNECTING).await;
                producer
            }
            (None, _) => return Ok(()),
        };
        // First here, acknowledged, then there: a crash in between leaves two, of which the furthest counts.
        for records in [moved, cleared] {
            if !records.is_empty() {
                producer.move_checkpoints(&records).await?;
            }
        }
        self.ended.end(producer);
        Ok(())
    }
}
