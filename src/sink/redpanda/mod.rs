//! The Redpanda sink, on librdkafka: everything that imports `rdkafka` is below here.
//!
//! Each shard has a producer of its own ([`ShardSink`]), idempotent and gapless: records of a shard are never
//! reordered, not even around one that fails. librdkafka alone resends, without a limit in time; its queue is
//! small, and a full queue makes [`ShardSink::submit`] wait. What it gives up on nevertheless fails the whole
//! window of the shard, which is then rewound to its checkpoint and produced again by a new producer: no
//! second resend on top.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::admin::AdminClient;
use rdkafka::config::ClientConfig;
use rdkafka::metadata::Metadata;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::config::settings::{self, Delivery, Instances, LiveSettings, Nodes};
use crate::policy::Class;
use crate::policy::breaker::State as Breaker;
use crate::policy::stage::{Permit, StagePolicies};
use crate::reach;
use crate::sink::flight::{Oldest, Snapshot, Window};
use crate::sink::trouble::{Cause, Help, Troubles};
use crate::sink::{SinkError, join_brokers};

mod aside;
pub mod by_hand;
mod carry;
mod classify;
mod client;
mod dead_letters;
pub mod examine;
mod follow;
mod guard;
mod header_list;
mod judge;
pub mod membership;
mod native;
pub mod opening;
mod parts;
mod place;
mod polling;
mod producer;
mod raw;
mod reader;
mod release;
mod seam;
mod security;
mod shard;
pub mod tail;
mod topics;
mod transaction;

pub use client::{check_properties, reserved_property};
pub use dead_letters::DeadLetters;
pub(crate) use shard::REPLAY_SHARD;
pub use shard::ShardSink;

use client::Quiet;
use producer::{Ends, Traffic};
use reader::{Ended, Reader};
use security::{InForce, Security};
use topics::Wanted;

/// A question about the checkpoint topic takes no longer.
const ASKING: Duration = Duration::from_secs(10);
/// Brokers that a round asks: more would not make it more certain.
const MOST_ADDRESSES: usize = 16;
/// At the start, how long brokers may take to answer before somebody looks why they do not.
const TURNED_AWAY: Duration = Duration::from_millis(500);
/// Of each topic of ours: a later record of a key takes the place of the one before, and nothing goes by age.
const COMPACTED: Wanted = Wanted {
    name: "cleanup.policy",
    value: "compact",
    fits: |is| is == "compact",
    otherwise: "by which records that are needed are deleted",
};
/// … and of the checkpoints: each commit leaves a marker, and each group that is finished a tombstone. Redpanda removes
/// them only where this is set, for a time.
const MARKERS: Wanted = Wanted {
    name: "delete.retention.ms",
    value: "86400000",
    fits: |is| {
        is.parse::<i64>()
            .is_ok_and(|ms| (0..=MOST_RETENTION_MS).contains(&ms))
    },
    otherwise: "by which the marker that each commit leaves is kept for too long",
};
/// A week: every start reads what is kept.
const MOST_RETENTION_MS: i64 = 7 * 86_400_000;

/// The brokers, as all shards share them.
pub struct RedpandaSink {
    live: LiveSettings,
    policies: StagePolicies,
    /// Without what [`security`] adds.
    base: ClientConfig,
    /// With what clients connect.
    security: InForce,
    topics: topics::Topics,
    /// What it waits for.
    troubles: Troubles,
    /// Rung when a connection is lost or refused.
    hint: Arc<Notify>,
    /// Where brokers are known to be, `host:port`.
    addresses: Mutex<Vec<String>>,
    /// Counts how often the checkpoint topic was made again.
    remade: watch::Sender<u64>,
    ends: Arc<Ends>,
    /// Rung when the topics of ours are to be looked at again.
    again: Notify,
    /// Generations that have groups in the checkpoint topic which are placed by their hash, as far as it was read.
    hashed: Mutex<std::collections::BTreeSet<String>>,
    /// Of the checkpoint topic; 0: yet to be asked for.
    partitions: AtomicU32,
    /// Who this process is, in the checkpoint topic.
    instance: uuid::Uuid,
    /// … and where it can be asked.
    admin: Mutex<Option<SocketAddr>>,
    /// What was read with.
    ended: Arc<Ended>,
    /// By shard; a lane stays when its shard is given up, so that counters never fall.
    traffic: Mutex<BTreeMap<u32, Arc<Traffic>>>,
}

/// Until nobody takes a connection, or whoever does closes it at once, as what stands before a broker that is away does:
/// librdkafka would go on for its whole timeout without a word. Of one that only takes its time there is a line.
async fn turned_away(addresses: &[String]) -> String {
    let mut told = false;
    loop {
        // No start that goes well is kept up by it.
        tokio::time::sleep(TURNED_AWAY).await;
        let reason = match reach::look(addresses).await {
            reach::Found::Refused(reason) => return reason,
            reach::Found::Silent(reason) => reason,
            reach::Found::Open => "they take connections, and have not answered yet".to_owned(),
        };
        if !told {
            told = true;
            let brokers = addresses.join(", ");
            tracing::warn!(brokers, reason, "waiting for the brokers");
        }
    }
}

impl RedpandaSink {
    /// Connects to `sink.brokers`, or says in one line why that fails, within about 13 s.
    pub async fn connect(
        live: LiveSettings,
        policies: StagePolicies,
    ) -> Result<Arc<Self>, SinkError> {
        let brokers = match &live.borrow().sink.brokers {
            Nodes::At(brokers) => join_brokers(brokers),
            Nodes::Embedded => {
                return Err(SinkError::Unreachable {
                    brokers: "embedded".into(),
                    reason: "the embedded broker was not started".into(),
                });
            }
        };
        Self::connect_at(&brokers, live, policies).await
    }

    /// As [`Self::connect`], but to the brokers named here: `host:port`, separated by commas.
    pub async fn connect_at(
        brokers: &str,
        live: LiveSettings,
        policies: StagePolicies,
    ) -> Result<Arc<Self>, SinkError> {
        let hint = Arc::<Notify>::default();
        let (base, security, admin) = {
            let settings = live.borrow();
            let id = format!("penstock.{}", settings.pipeline.name);
            let base = client::base(brokers, &id, &settings.sink.properties)?;
            let security = InForce::new(Security::of(&settings.sink));
            let quiet = Quiet::hinting(&security, hint.clone());
            let mut asking = base.clone();
            security.get().apply(&mut asking);
            // A broker would make a topic that it is asked for: by its own settings, and where none is to be made.
            asking.set("allow.auto.create.topics", "false");
            let admin: AdminClient<Quiet> = asking
                .create_with_context(quiet)
                .map_err(client::creation)?;
            // Made once to find properties that librdkafka refuses for a producer.
            client::producer(&asking, 1)
                .create_native_config()
                .map_err(client::creation)?;
            security.hand_token(admin.inner())?;
            (base, security, admin)
        };
        let troubles = Troubles::default();
        let remade = watch::Sender::new(0);
        let topic = crate::checkpoint::topic::topic_name(&live.borrow().pipeline.name);
        let sink = Self {
            live,
            policies,
            base,
            security,
            topics: topics::Topics::new(admin, troubles.clone()),
            troubles,
            addresses: Mutex::new(split(brokers)),
            ends: Arc::new(Ends::new(topic, remade.clone())),
            remade,
            again: Notify::new(),
            hint: hint.clone(),
            hashed: Mutex::default(),
            partitions: AtomicU32::new(0),
            instance: uuid::Uuid::new_v4(),
            admin: Mutex::default(),
            ended: Arc::default(),
            traffic: Mutex::default(),
        };
        let waits = sink.policies.waits();
        waits
            .during("reach the brokers", sink.reach(brokers))
            .await?;
        if sink.topics.makes_by_asking() {
            sink.renew_admin()?;
        }
        Ok(Arc::new(sink))
    }

    /// Whether anything there speaks Kafka's protocol.
    async fn reach(&self, brokers: &str) -> Result<(), SinkError> {
        let addresses = split(brokers);
        let unreachable = |reason| SinkError::Unreachable {
            brokers: addresses.join(", "),
            reason,
        };
        // librdkafka only says that nobody answered in time; a plain connection tells why, and at once.
        reach::any(&addresses).await.map_err(unreachable)?;
        let security = self.security.get();
        if !security.is_plain()
            && let Some(reason) = self.why_not(&addresses, &security).await
        {
            return Err(unreachable(reason));
        }
        let answer = tokio::select! {
            biased;
            answer = self.topics.metadata(None) => answer,
            reason = turned_away(&addresses) => return Err(unreachable(reason)),
        };
        let metadata = match answer {
            Ok(metadata) => metadata,
            Err(error) => {
                let reason = self.why_not(&addresses, &security).await;
                return Err(unreachable(reason.unwrap_or_else(|| {
                    format!("connected, but got no metadata: {error} (is this a Kafka listener?)")
                })));
            }
        };
        self.note_addresses(&metadata);
        self.topics.look_at_cluster().await;
        tracing::info!(
            brokers,
            nodes = metadata.brokers().len(),
            topics = metadata.topics().len(),
            "connected to the brokers"
        );
        Ok(())
    }

    /// Brokers that the cluster names, beside those that were named here.
    fn note_addresses(&self, found: &Metadata) {
        let mut addresses = self.addresses.lock();
        for broker in found.brokers() {
            let host = broker.host();
            let address = match host.contains(':') {
                true => format!("[{host}]:{}", broker.port()),
                false => format!("{host}:{}", broker.port()),
            };
            if !addresses.contains(&address) && addresses.len() < MOST_ADDRESSES {
                addresses.push(address);
            }
        }
    }

    /// Opens a shard's producer. A shard is open at most once at a time.
    pub fn open_shard(self: &Arc<Self>, shard: u32) -> Result<ShardSink, SinkError> {
        let delivery = self.live.borrow().pipeline.delivery;
        self.open_with(shard, delivery)
    }

    fn open_with(self: &Arc<Self>, shard: u32, delivery: Delivery) -> Result<ShardSink, SinkError> {
        let traffic = Arc::clone(
            self.traffic
                .lock()
                .entry(shard)
                .or_insert_with(|| Arc::new(Traffic::of(self))),
        );
        ShardSink::open(Arc::clone(self), shard, traffic, delivery)
    }

    /// Waits for the breaker's permission for a new batch.
    async fn gate(&self) -> Permit {
        // While the breaker is not closed, what is out already is the probe.
        while !self.is_closed() && self.oldest().is_some() {
            tokio::time::sleep(self.look_every()).await;
        }
        self.policies.admit().await
    }

    /// The permit that an outcome counts by: the one that was kept, or what there is now.
    fn counting(&self, kept: Option<Permit>) -> Option<Permit> {
        kept.or_else(|| self.policies.try_admit().ok())
    }

    fn is_closed(&self) -> bool {
        matches!(self.policies.snapshot().breaker, Breaker::Closed)
    }

    fn windows(&self) -> Vec<Arc<Window>> {
        self.traffic.lock().values().map(|l| l.window()).collect()
    }

    /// The batch of any shard that has been waiting longest.
    pub fn oldest(&self) -> Option<Oldest> {
        self.windows()
            .iter()
            .filter_map(|w| w.oldest())
            .min_by_key(|o| o.submitted)
    }

    /// Counts, queue fill and age: of each shard that was ever open here.
    pub fn snapshots(&self) -> BTreeMap<u32, Snapshot> {
        let traffic = self.traffic.lock();
        traffic.iter().map(|(s, l)| (*s, l.snapshot())).collect()
    }

    fn checkpoint_topic(&self) -> String {
        crate::checkpoint::topic::topic_name(&self.live.borrow().pipeline.name)
    }

    /// How many partitions the checkpoint topic has. Made where it is missing, when the pipeline starts; after
    /// that nobody has to ask, least of all in an outage.
    async fn checkpoint_partitions(&self) -> Result<u32, SinkError> {
        match self.partitions.load(Relaxed) {
            // Whoever asks does so for itself: none of the others waits for it.
            0 => {
                let looked = self.ensure_checkpoint_topic();
                let waits = self.policies.waits();
                let partitions = waits.during("look at the checkpoint topic", looked).await?;
                self.partitions.store(partitions, Relaxed);
                Ok(partitions)
            }
            partitions => Ok(partitions),
        }
    }

    /// Looks at the topics of ours anew: they may have been set otherwise since the start. Mends what may be mended; what
    /// is wrong then is told in health.
    async fn look_at_ours_again(&self) {
        if let Err(error) = self.ensure_checkpoint_topic().await {
            tracing::warn!(%error, "the checkpoint topic could not be looked at");
        }
        let topic = self.live.borrow().dead_letter.topic.clone();
        let create = self.live.borrow().sink.topics.create;
        if self.topics.knows(&topic) {
            let checked = self.topics.check(&topic, &[COMPACTED], create).await;
            if let Err(refusal) = self.told(&topic, checked) {
                tracing::warn!(error = %refusal, "the topic of the dead letters could not be looked at");
            }
        }
    }

    /// Makes the checkpoint topic where it is missing; returns how many partitions it has, at least one.
    async fn ensure_checkpoint_topic(&self) -> Result<u32, SinkError> {
        let topic = self.checkpoint_topic();
        let (settings, shards) = {
            let live = self.live.borrow();
            let shards = live.pipeline.shards;
            let topics = settings::Topics {
                create: live.sink.topics.create,
                partitions: shards,
                replication_factor: live.sink.topics.replication_factor,
                properties: BTreeMap::from([
                    ("cleanup.policy".to_owned(), "compact".to_owned()),
                    (MARKERS.name.to_owned(), MARKERS.value.to_owned()),
                    // Compaction spares the newest segment, which is read whole on every start: keep it small.
                    ("segment.bytes".to_owned(), (16 << 20).to_string()),
                ]),
            };
            (topics, shards.get())
        };
        self.ensure_ours(&topic, &settings, &[COMPACTED, MARKERS], ASKING)
            .await?;
        let alone = self.live.borrow().pipeline.instances == Instances::One;
        // A topic that was just made, or is made by this very question, takes a moment to show.
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut looks = topics::Looks::new();
        loop {
            let partitions = match alone {
                true => self.topics.widen(&topic, shards).await,
                // Others rely on their number.
                false => self.topics.partitions(&topic).await,
            };
            match partitions {
                Ok(0) if Instant::now() < deadline => {
                    looks.pause().await;
                }
                Ok(0) => {
                    return Err(SinkError::Topic {
                        topic,
                        reason: "it was created and is not there".into(),
                        class: Class::Retryable,
                    });
                }
                Ok(partitions) => return Ok(partitions),
                Err(e) if e.class() != Class::Retryable => return Err(e),
                Err(e) if Instant::now() >= deadline => return Err(e),
                Err(_) => looks.pause().await,
            }
        }
    }

    /// Makes sure that a topic of ours is there, and set as its records need it.
    async fn ensure_ours(
        &self,
        topic: &str,
        settings: &settings::Topics,
        wanted: &[Wanted],
        within: Duration,
    ) -> Result<(), SinkError> {
        let found = async {
            let topics = &self.topics;
            match topics.ensure_and_look(topic, settings, within).await? {
                Some(found) => topics.mend(topic, &found, wanted, settings.create).await,
                None => topics.check(topic, wanted, settings.create).await,
            }
        };
        self.told(topic, found.await)
    }

    /// Tells in health what is wrong with a topic, or that it is well.
    fn told(&self, topic: &str, found: Result<(), topics::Refusal>) -> Result<(), SinkError> {
        let cause = Cause::Topic(topic.into());
        match found {
            Ok(()) => {
                self.troubles.clear(&cause);
                Ok(())
            }
            Err(refusal) => {
                if let topics::Refusal::Help(reason) = &refusal {
                    self.troubles.raise(cause, Help::Needed, reason.as_str());
                }
                Err(refusal.into_error(topic))
            }
        }
    }

    /// … and of which version of the credentials.
    fn producer_config(&self, who: &str) -> (ClientConfig, u64) {
        let live = self.live.borrow();
        // Before they are read: at worst they are taken for older than they are.
        let version = self.security.version();
        let mut config = client::producer(&self.base(), live.pipeline.shards.get());
        config.set(
            "client.id",
            format!("penstock.{}.{who}", live.pipeline.name),
        );
        if !self.topics.makes_by_asking() {
            config.set("allow.auto.create.topics", "false");
        }
        (config, version)
    }

    fn reader_config(&self) -> ClientConfig {
        let group = format!("penstock.{}.reader", self.live.borrow().pipeline.name);
        client::reader(&self.base(), &group)
    }

    fn reader(&self) -> Reader {
        Reader {
            config: self.reader_config(),
            security: self.security.clone(),
            ended: self.ended.clone(),
        }
    }
}

fn split(brokers: &str) -> Vec<String> {
    brokers.split(',').map(|b| b.trim().to_owned()).collect()
}

/// Runs what blocks off the runtime's threads, and waits for it: nothing is detached. `None`: it panicked, or
/// the runtime is going down.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(f).await {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::error!(%error, "blocking work did not finish");
            None
        }
    }
}
