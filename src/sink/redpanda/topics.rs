//! Topics, looked up or made on first use.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;

use super::{classify, client::Quiet};
use crate::config::settings::Topics as Settings;
use crate::policy::Class;
use crate::sink::SinkError;

/// The cluster id that every `noida-db` says it has.
const NOIDA: &str = "MkU3OEVBNTctOEUyRi00";
/// One request about topics takes no longer.
const REQUEST: Duration = Duration::from_secs(10);
/// A new partition's leader is asked again after this long.
const LEADER_POLL: Duration = Duration::from_millis(20);

/// Looks topics up, creates them, and remembers which exist.
pub(super) struct Topics {
    admin: Arc<AdminClient<Quiet>>,
    known: RwLock<HashSet<Arc<str>>>,
    /// The broker has no CreateTopics: producing creates topics there.
    auto: AtomicBool,
    /// The broker's groups are never ready again after an incremental rebalance.
    eager: AtomicBool,
}

impl Topics {
    pub(super) fn new(admin: AdminClient<Quiet>) -> Self {
        Self {
            admin: Arc::new(admin),
            known: RwLock::default(),
            auto: AtomicBool::new(false),
            eager: AtomicBool::new(false),
        }
    }

    /// Finds out whether the broker is a stand-in, by its cluster id. librdkafka's mock
    /// (`rd_kafka_mock_cluster_new`) answers no CreateTopics, not even with an error; `noida-db` completes no round of a
    /// group whose members rejoin one by one.
    pub(super) async fn look_at_cluster(&self) {
        let admin = Arc::clone(&self.admin);
        let id = super::blocking(move || admin.inner().fetch_cluster_id(REQUEST)).await;
        let id = id.flatten().unwrap_or_default();
        self.auto.store(id.starts_with("mockCluster"), Relaxed);
        self.eager.store(id == NOIDA, Relaxed);
    }

    /// Whether the broker's groups take KIP-429's incremental rebalances.
    pub(super) fn takes_incremental_rebalances(&self) -> bool {
        !self.eager.load(Relaxed)
    }

    /// Whether [`Self::ensure`] has nothing to do.
    pub(super) fn knows(&self, topic: &str) -> bool {
        self.known.read().contains(topic)
    }

    /// Forgets what exists: a topic may have been deleted.
    pub(super) fn forget(&self) {
        self.known.write().clear();
    }

    /// Makes sure that a topic exists.
    pub(super) async fn ensure(&self, topic: &str, settings: &Settings) -> Result<(), SinkError> {
        self.ensure_within(topic, settings, REQUEST).await
    }

    /// … each question about it answered in this time.
    pub(super) async fn ensure_within(
        &self,
        topic: &str,
        settings: &Settings,
        within: Duration,
    ) -> Result<(), SinkError> {
        if self.knows(topic) {
            return Ok(());
        }
        let within = within.min(REQUEST);
        // Asking for all names creates none, and finds those that this client has no right to create.
        let all = self
            .metadata_within(None, within)
            .await
            .map_err(|e| failed(topic, &e))?;
        self.known
            .write()
            .extend(all.topics().iter().map(|t| t.name().into()));
        if self.knows(topic) {
            return Ok(());
        }
        if !settings.create {
            return Err(SinkError::Topic {
                topic: topic.to_owned(),
                reason: "it does not exist, and sink.topics.create is false: create it".into(),
                class: Class::Fatal,
            });
        }
        if !self.auto.load(Relaxed) {
            self.create(topic, settings, within).await?;
        }
        self.known.write().insert(topic.into());
        Ok(())
    }

    async fn create(
        &self,
        topic: &str,
        settings: &Settings,
        within: Duration,
    ) -> Result<(), SinkError> {
        let replicas = settings.replication_factor.map_or(-1, |n| n.get() as i32);
        let mut new = NewTopic::new(
            topic,
            settings.partitions.get() as i32,
            TopicReplication::Fixed(replicas),
        );
        for (name, value) in &settings.properties {
            new = new.set(name, value);
        }
        let options = AdminOptions::new()
            .request_timeout(Some(within))
            .operation_timeout(Some(within));
        let outcome = match self.admin.create_topics([&new], &options).await {
            Ok(results) => results.into_iter().next().map(|r| r.map_err(|(_, c)| c)),
            Err(KafkaError::AdminOp(code)) => Some(Err(code)),
            Err(error) => return Err(failed(topic, &error)),
        };
        match outcome {
            Some(Ok(_)) => {
                tracing::info!(topic, partitions = settings.partitions, "topic created");
                self.await_leaders(topic, settings.partitions.get(), within)
                    .await
            }
            // Another instance made it, perhaps just now.
            Some(Err(Code::TopicAlreadyExists)) | None => {
                self.await_leaders(topic, 1, within).await
            }
            Some(Err(code)) => Err(failed(topic, &KafkaError::AdminOp(code))),
        }
    }

    /// Gives a topic at least this many partitions; returns how many it has.
    pub(super) async fn widen(&self, topic: &str, partitions: u32) -> Result<u32, SinkError> {
        let have = self.partitions(topic).await?;
        if have == 0 || have >= partitions || self.auto.load(Relaxed) {
            return Ok(have);
        }
        let more = NewPartitions::new(topic, partitions as usize);
        let options = AdminOptions::new()
            .request_timeout(Some(REQUEST))
            .operation_timeout(Some(REQUEST));
        let results = self
            .admin
            .create_partitions([&more], &options)
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
                Err(_) => tokio::time::sleep(LEADER_POLL).await,
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
        let (admin, topic) = (Arc::clone(&self.admin), topic.to_owned());
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

    async fn metadata_within(
        &self,
        topic: Option<String>,
        within: Duration,
    ) -> Result<Metadata, KafkaError> {
        let admin = Arc::clone(&self.admin);
        super::blocking(move || admin.inner().fetch_metadata(topic.as_deref(), within))
            .await
            .unwrap_or(Err(KafkaError::Canceled))
    }
}

fn failed(topic: &str, error: &KafkaError) -> SinkError {
    SinkError::Topic {
        topic: topic.to_owned(),
        reason: error.to_string(),
        class: classify::class(error),
    }
}
