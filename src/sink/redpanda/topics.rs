//! Topics: looked up or made on first use, looked at now and then, and made again when they are gone.

mod settings;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::RwLock;
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewPartitions, NewTopic, TopicReplication,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::{Metadata, MetadataTopic};
use tokio::time::Instant;

pub(super) use self::settings::{Wanted, number};
use super::{classify, client::Quiet};
use crate::config::settings::Topics as Settings;
use crate::policy::Class;
use crate::sink::SinkError;
use crate::sink::trouble::{Cause, Help, Troubles};

/// The cluster id that every `noida-db` says it has.
const NOIDA: &str = "MkU3OEVBNTctOEUyRi00";
/// One request about topics takes no longer.
const REQUEST: Duration = Duration::from_secs(10);
/// `rd_kafka_AclOperation_t`
pub(super) const WRITE_TOPIC: i32 = 4;
/// One that a shard waits for, and that brokers may not know, takes no longer.
const SOON: Duration = Duration::from_secs(1);
/// What was just made is looked for again after this long at first, and twice as long each time, up to `LATER`: brokers that
/// are near have it at once, and a start waits for it.
const SOONER: Duration = Duration::from_millis(5);
const LATER: Duration = Duration::from_millis(50);

/// The pauses between looks for what was just made.
pub(super) struct Looks(Duration);

impl Looks {
    pub(super) const fn new() -> Self {
        Self(SOONER)
    }

    fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(LATER);
        pause
    }

    /// Waits until it is time for the next look.
    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.next()).await;
    }
}

/// Why a topic cannot be used.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    /// The brokers did not answer, or answered that they cannot now.
    Outage(SinkError),
    /// They answered, and someone has to help.
    Help(String),
    /// No broker of theirs will ever take the name.
    Never(String),
}

impl Refusal {
    /// For whoever retries everything that heals.
    pub(super) fn into_error(self, topic: &str) -> SinkError {
        let (reason, class) = match self {
            Self::Outage(error) => return error,
            Self::Help(reason) => (reason, Class::Retryable),
            Self::Never(reason) => (reason, Class::Poison),
        };
        SinkError::Topic {
            topic: topic.to_owned(),
            reason,
            class,
        }
    }
}

/// A topic that is in use here.
#[derive(Clone, Debug)]
struct Used {
    /// How it is made again.
    make: Settings,
    /// Bytes of a batch of records that it takes; `None`: the brokers do not say.
    takes: Option<usize>,
    /// Replicas that have to be in sync before it takes records (`min.insync.replicas`).
    in_sync: Option<usize>,
}

/// Looks topics up, creates them, and remembers which exist.
pub(super) struct Topics {
    admin: RwLock<Arc<AdminClient<Quiet>>>,
    troubles: Troubles,
    known: RwLock<HashSet<Arc<str>>>,
    used: RwLock<HashMap<Arc<str>, Used>>,
    /// Those of them that were seen to be gone.
    gone: RwLock<HashSet<Arc<str>>>,
    /// A partition of one of them that has too few replicas in sync.
    thin: RwLock<Option<Arc<str>>>,
    /// The broker has no CreateTopics: producing creates topics there.
    auto: AtomicBool,
    /// The broker's groups are never ready again after an incremental rebalance.
    eager: AtomicBool,
}

impl Topics {
    pub(super) fn new(admin: AdminClient<Quiet>, troubles: Troubles) -> Self {
        Self {
            admin: RwLock::new(Arc::new(admin)),
            troubles,
            known: RwLock::default(),
            used: RwLock::default(),
            gone: RwLock::default(),
            thin: RwLock::default(),
            auto: AtomicBool::new(false),
            eager: AtomicBool::new(false),
        }
    }

    /// Finds out whether the broker is a stand-in, by its cluster id. librdkafka's mock
    /// (`rd_kafka_mock_cluster_new`) answers no CreateTopics, not even with an error; `noida-db` completes no round of a
    /// group whose members rejoin one by one.
    pub(super) async fn look_at_cluster(&self) {
        let admin = self.admin();
        let id = super::blocking(move || admin.inner().fetch_cluster_id(REQUEST)).await;
        let id = id.flatten().unwrap_or_default();
        self.auto.store(id.starts_with("mockCluster"), Relaxed);
        self.eager.store(id == NOIDA, Relaxed);
    }

    /// Whether the broker's groups take KIP-429's incremental rebalances.
    pub(super) fn takes_incremental_rebalances(&self) -> bool {
        !self.eager.load(Relaxed)
    }

    /// Whether clients have to make topics by asking for them.
    pub(super) fn makes_by_asking(&self) -> bool {
        self.auto.load(Relaxed)
    }

    /// Goes on with another client.
    pub(super) fn ask_with(&self, admin: AdminClient<Quiet>) {
        *self.admin.write() = Arc::new(admin);
    }

    fn admin(&self) -> Arc<AdminClient<Quiet>> {
        self.admin.read().clone()
    }

    /// Whether [`Self::ensure_within`] has nothing to do.
    pub(super) fn knows(&self, topic: &str) -> bool {
        self.known.read().contains(topic) && self.used.read().contains_key(topic)
    }

    /// Forgets what exists: a topic may have been deleted.
    pub(super) fn forget(&self) {
        self.known.write().clear();
    }

    /// Bytes of a batch of records that a topic takes, as far as its brokers say.
    pub(super) fn takes(&self, topic: &str) -> Option<usize> {
        self.used.read().get(topic)?.takes
    }

    /// … and the least of all topics in use.
    pub(super) fn narrowest(&self) -> Option<usize> {
        self.used.read().values().filter_map(|u| u.takes).min()
    }

    /// Makes sure that a topic exists, each question about it answered in this time.
    pub(super) async fn ensure_within(
        &self,
        topic: &str,
        settings: &Settings,
        within: Duration,
    ) -> Result<(), Refusal> {
        self.ensure_and_look(topic, settings, within)
            .await
            .map(drop)
    }

    /// … and gives what it is set to, if that had to be asked.
    pub(super) async fn ensure_and_look(
        &self,
        topic: &str,
        settings: &Settings,
        within: Duration,
    ) -> Result<Option<ConfigResource>, Refusal> {
        if self.knows(topic) {
            return Ok(None);
        }
        let within = within.min(REQUEST);
        if !self.known.read().contains(topic) {
            // Asking for all names creates none, and finds those that this client has no right to create.
            let all = self
                .metadata_within(None, within)
                .await
                .map_err(|e| refusal(topic, &e))?;
            self.known
                .write()
                .extend(all.topics().iter().map(|t| t.name().into()));
            if !self.known.read().contains(topic) {
                self.make(topic, settings, within, &all).await?;
                self.known.write().insert(topic.into());
            }
        }
        let found = self.describe(topic, within).await;
        let used = Used {
            make: settings.clone(),
            takes: found.as_ref().and_then(|f| number(f, "max.message.bytes")),
            in_sync: found
                .as_ref()
                .and_then(|f| number(f, "min.insync.replicas")),
        };
        self.used.write().insert(topic.into(), used);
        Ok(found)
    }

    async fn make(
        &self,
        topic: &str,
        settings: &Settings,
        within: Duration,
        all: &Metadata,
    ) -> Result<(), Refusal> {
        if !settings.create {
            let reason = "it does not exist, and sink.topics.create is false: create it";
            return Err(Refusal::Help(reason.into()));
        }
        if self.makes_by_asking() {
            return Ok(());
        }
        self.create(topic, settings, within, all).await
    }

    async fn create(
        &self,
        topic: &str,
        settings: &Settings,
        within: Duration,
        all: &Metadata,
    ) -> Result<(), Refusal> {
        let replicas = settings.replication_factor.map_or(-1, |n| n.get() as i32);
        let mut new = NewTopic::new(
            topic,
            settings.partitions.get() as i32,
            TopicReplication::Fixed(replicas),
        );
        for (name, value) in &settings.properties {
            new = new.set(name, value);
        }
        let options = options(within);
        let outcome = match self.admin().create_topics([&new], &options).await {
            Ok(results) => results.into_iter().next().map(|r| r.map_err(|(_, c)| c)),
            Err(KafkaError::AdminOp(code)) => Some(Err(code)),
            Err(error) => return Err(refusal(topic, &error)),
        };
        match outcome {
            Some(Ok(_)) => {
                tracing::info!(topic, partitions = settings.partitions, "topic created");
                self.await_leaders(topic, settings.partitions.get(), within)
                    .await
                    .map_err(Refusal::Outage)
            }
            // Another instance made it, perhaps just now.
            Some(Err(Code::TopicAlreadyExists)) | None => {
                let there = self.await_leaders(topic, 1, within).await;
                there.map_err(Refusal::Outage)
            }
            Some(Err(Code::InvalidTopic)) => {
                let names = all.topics().iter().map(MetadataTopic::name);
                Err(match colliding(topic, names) {
                    Some(other) => Refusal::Help(format!(
                        "it cannot be created beside the topic {other}: in the names of Kafka's metrics '.' and '_' \
                         are one, so the two collide; have one of them another name"
                    )),
                    None => Refusal::Never("the brokers refuse the name of the topic".into()),
                })
            }
            Some(Err(code)) => {
                let error = KafkaError::AdminOp(code);
                Err(match classify::refused(&error) {
                    true => Refusal::Help(format!("it cannot be created: {error}")),
                    false => refusal(topic, &error),
                })
            }
        }
    }

    /// Looks whether the topics in use are among those that the brokers named (`all`, or the one that was asked for),
    /// and makes those again that are gone and may be made. Returns those that were.
    pub(super) async fn review(
        &self,
        found: &Metadata,
        all: bool,
        within: Duration,
    ) -> Vec<Arc<str>> {
        // One that is there and has trouble of its own, such as a leader to be elected, is there.
        let gone = |t: &MetadataTopic| {
            t.error().is_some_and(|e| {
                matches!(e.into(), Code::UnknownTopicOrPartition | Code::UnknownTopic)
            })
        };
        let asked: HashSet<&str> = found.topics().iter().map(MetadataTopic::name).collect();
        let there: HashSet<&str> = found
            .topics()
            .iter()
            .filter(|t| !gone(t))
            .map(MetadataTopic::name)
            .collect();
        let used: Vec<(Arc<str>, Used)> = self
            .used
            .read()
            .iter()
            .filter(|(topic, _)| all || asked.contains(&***topic))
            .map(|(topic, used)| (Arc::clone(topic), used.clone()))
            .collect();
        let thin = used
            .iter()
            .find_map(|(topic, used)| too_thin(found, topic, used.in_sync?));
        *self.thin.write() = thin.map(Arc::from);
        let mut made = Vec::new();
        for (topic, used) in used {
            let cause = Cause::Topic(Arc::clone(&topic));
            if there.contains(&*topic) {
                if self.gone.write().remove(&topic) {
                    self.troubles.clear(&cause);
                }
                continue;
            }
            self.gone.write().insert(Arc::clone(&topic));
            self.known.write().remove(&topic);
            if self.makes_by_asking() {
                continue;
            }
            let help = match used.make.create {
                true => Help::None,
                false => Help::Needed,
            };
            self.troubles.raise(cause.clone(), help, "it was deleted");
            match self.make(&topic, &used.make, within, found).await {
                Ok(()) => {
                    self.known.write().insert(Arc::clone(&topic));
                    self.gone.write().remove(&topic);
                    self.troubles.clear(&cause);
                    made.push(topic);
                }
                Err(Refusal::Outage(error)) => {
                    tracing::debug!(%error, "a topic could not be made again")
                }
                Err(Refusal::Help(reason) | Refusal::Never(reason)) => {
                    self.troubles.raise(cause, Help::Needed, reason);
                }
            }
        }
        made
    }

    /// Which partition of a topic in use had too few replicas in sync when they were looked at last.
    pub(super) fn thin(&self) -> Option<Arc<str>> {
        self.thin.read().clone()
    }

    /// Gives a topic at least this many partitions; returns how many it has.
    pub(super) async fn widen(&self, topic: &str, partitions: u32) -> Result<u32, SinkError> {
        let have = self.partitions(topic).await?;
        if have == 0 || have >= partitions || self.makes_by_asking() {
            return Ok(have);
        }
        let more = NewPartitions::new(topic, partitions as usize);
        let results = self
            .admin()
            .create_partitions([&more], &options(REQUEST))
            .await
            .map_err(|e| failed(topic, &e))?;
        if let Some(Err((_, code))) = results.into_iter().next() {
            // Another instance may have been quicker: what counts is what there is.
            let have = self.partitions(topic).await?;
            if have < partitions {
                return Err(failed(topic, &KafkaError::AdminOp(code)));
            }
            return Ok(have);
        }
        tracing::info!(topic, from = have, to = partitions, "partitions added");
        self.await_leaders(topic, partitions, REQUEST).await?;
        Ok(partitions)
    }

    /// Waits until a topic has this many partitions and each one's leader serves it: a broker answers for a new one
    /// before that, and what is sent meanwhile may arrive out of order (KAFKA-15591).
    async fn await_leaders(
        &self,
        topic: &str,
        partitions: u32,
        within: Duration,
    ) -> Result<(), SinkError> {
        let deadline = Instant::now() + within;
        let mut looks = Looks::new();
        loop {
            let done = match self.partitions(topic).await? {
                have if have < partitions => Err(KafkaError::MetadataFetch(Code::UnknownPartition)),
                have => self.ask_leaders(topic, have, deadline).await,
            };
            match done {
                Ok(()) => return Ok(()),
                Err(error)
                    if Instant::now() >= deadline
                        || classify::class(&error) != Class::Retryable =>
                {
                    return Err(failed(topic, &error));
                }
                Err(_) => looks.pause().await,
            }
        }
    }

    /// Asks each partition's leader for its offsets, which it has once it serves.
    async fn ask_leaders(
        &self,
        topic: &str,
        partitions: u32,
        deadline: Instant,
    ) -> Result<(), KafkaError> {
        let (admin, topic) = (self.admin(), topic.to_owned());
        let asked = super::blocking(move || {
            (0..partitions).try_for_each(|partition| {
                let left = deadline.saturating_duration_since(Instant::now());
                let client = admin.inner();
                client
                    .fetch_watermarks(&topic, partition as i32, left)
                    .map(|_| ())
            })
        });
        asked.await.unwrap_or(Err(KafkaError::Canceled))
    }

    /// How many partitions a topic has; 0 if there is no such topic.
    pub(super) async fn partitions(&self, topic: &str) -> Result<u32, SinkError> {
        let metadata = self
            .metadata(Some(topic.to_owned()))
            .await
            .map_err(|e| failed(topic, &e))?;
        Ok(metadata
            .topics()
            .iter()
            .find(|t| t.name() == topic)
            .map_or(0, |t| t.partitions().len() as u32))
    }

    /// The cluster's metadata, or one topic's. librdkafka blocks for it, at most for [`REQUEST`].
    pub(super) async fn metadata(&self, topic: Option<String>) -> Result<Metadata, KafkaError> {
        self.metadata_within(topic, REQUEST).await
    }

    /// What this client may do with these topics, where the brokers say, see [`super::native::allowed`].
    pub(super) async fn allowed(&self, topics: Vec<String>) -> BTreeMap<String, Vec<i32>> {
        self.allowed_within(topics, REQUEST).await
    }

    async fn allowed_within(
        &self,
        topics: Vec<String>,
        within: Duration,
    ) -> BTreeMap<String, Vec<i32>> {
        let admin = self.admin();
        let asked =
            super::blocking(move || super::native::allowed(admin.inner(), &topics, within)).await;
        asked.and_then(Result::ok).unwrap_or_default()
    }

    /// Those of these topics that this client may not write, where the brokers say so.
    pub(super) async fn forbidden(&self, topics: Vec<String>) -> Vec<String> {
        let allowed = self.allowed_within(topics, SOON).await.into_iter();
        let may_not = |may: &Vec<i32>| !may.is_empty() && !may.contains(&WRITE_TOPIC);
        let forbidden = allowed.filter(|(_, may)| may_not(may));
        forbidden.map(|(topic, _)| topic).collect()
    }

    /// Whether a topic could be made so, and why not; makes none.
    pub(super) async fn could_make(&self, topic: &str, settings: &Settings) -> Option<Code> {
        if self.makes_by_asking() {
            return None;
        }
        let replicas = settings.replication_factor.map_or(-1, |n| n.get() as i32);
        let new = NewTopic::new(
            topic,
            settings.partitions.get() as i32,
            TopicReplication::Fixed(replicas),
        );
        let options = options(REQUEST).validate_only(true);
        match self.admin().create_topics([&new], &options).await {
            Ok(results) => results.into_iter().next()?.err().map(|(_, code)| code),
            Err(KafkaError::AdminOp(code)) => Some(code),
            Err(_) => None,
        }
    }

    pub(super) async fn metadata_within(
        &self,
        topic: Option<String>,
        within: Duration,
    ) -> Result<Metadata, KafkaError> {
        let admin = self.admin();
        super::blocking(move || admin.inner().fetch_metadata(topic.as_deref(), within))
            .await
            .unwrap_or(Err(KafkaError::Canceled))
    }
}

/// A partition of the topic that takes no records for want of replicas.
fn too_thin(found: &Metadata, topic: &str, wanted: usize) -> Option<String> {
    let topic = found.topics().iter().find(|t| t.name() == topic)?;
    let mut partitions = topic.partitions().iter();
    let thin = partitions.find(|p| p.isr().len() < wanted)?;
    Some(format!(
        "partition {} of topic {} has {} of its replicas in sync, and min.insync.replicas is {wanted}",
        thin.id(),
        topic.name(),
        thin.isr().len()
    ))
}

fn options(within: Duration) -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(within))
        .operation_timeout(Some(within))
}

/// The topic of another name that Kafka takes for the same in its metrics
/// (`org.apache.kafka.common.internals.Topic.hasCollision`).
fn colliding<'a>(topic: &str, mut names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let unified = |name: &str| name.replace('.', "_");
    names.find(|name| *name != topic && unified(name) == unified(topic))
}

fn refusal(topic: &str, error: &KafkaError) -> Refusal {
    match classify::refused(error) {
        true => Refusal::Help(error.to_string()),
        false => Refusal::Outage(failed(topic, error)),
    }
}

fn failed(topic: &str, error: &KafkaError) -> SinkError {
    SinkError::Topic {
        topic: topic.to_owned(),
        reason: error.to_string(),
        class: classify::class(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_just_made_is_looked_for_soon_and_then_less_often() {
        let mut looks = Looks::new();
        let pauses: Vec<u128> = (0..6).map(|_| looks.next().as_millis()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 50, 50]);
    }

    #[test]
    fn names_that_kafka_takes_for_one_collide() {
        let names = ["a.b", "a-b", "ab"];
        assert_eq!(colliding("a_b", names.into_iter()), Some("a.b"));
        assert_eq!(colliding("a.b", names.into_iter()), None);
        assert_eq!(colliding("a-b", names.into_iter()), None);
    }
}
