//! What the doctor looks at on the brokers' side. It writes nothing, makes no topic, and fences nobody.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::admin::ConfigResource;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::client::Quiet;
use super::security::Security;
use super::topics::WRITE_TOPIC;
use super::topics::number;
use super::{RedpandaSink, classify, client, release};
use crate::config::settings::{Delivery, Instances, LiveSettings, Settings};
use crate::finding::Finding;
use crate::policy::stage::StagePolicies;
use crate::reach::{self, Step};
use crate::words::Word;

/// One question takes no longer.
const WITHIN: Duration = Duration::from_secs(10);
/// Between two looks whether a group's coordinator was refused.
const LOOK: Duration = Duration::from_millis(500);
/// A producer is refused an id within this time, or is not: librdkafka asks for one every half second.
const NUMBERED: Duration = Duration::from_secs(2);
/// `rd_kafka_AclOperation_t`
const READ_TOPIC: i32 = 3;
/// A letter that nobody looked at for so long may go.
const LETTERS_STAY: u64 = 86_400_000;

/// What is found of the brokers, and how far the pipeline is.
#[derive(Debug, Default)]
pub struct Examined {
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// Up to when (µs since the Unix epoch) all is delivered; `None`: not known, or it never ran.
    pub complete_until_us: Option<i64>,
}

/// Looks at these brokers, and at what the settings name there.
pub async fn examine(brokers: &[String], live: LiveSettings, policies: StagePolicies) -> Examined {
    let mut examined = Examined::default();
    let settings = live.borrow().clone();
    let security = Security::of(&settings.sink);
    if !look_at_addresses(brokers, &security, false, &mut examined.findings).await {
        return examined;
    }
    let sink = match RedpandaSink::connect_at(&brokers.join(","), live, policies).await {
        Ok(sink) => sink,
        Err(error) => {
            let code = match security.is_plain() {
                true => "kafka",
                false => "login",
            };
            let help =
                "check sink.sasl, sink.username and its password or token, and the brokers' log";
            let finding = Finding::error(code, brokers.join(", "), error.to_string(), help);
            examined.findings.push(finding);
            return examined;
        }
    };
    let findings = &mut examined.findings;
    let others = sink.advertised(brokers);
    look_at_addresses(&others, &security, true, findings).await;
    let all: Vec<String> = brokers.iter().chain(&others).cloned().collect();
    release::look(&all, settings.pipeline.delivery, findings).await;
    sink.examine_cluster(&settings, findings).await;
    sink.examine_topics(&settings, findings).await;
    sink.examine_rights(&settings, findings).await;
    examined.complete_until_us = sink.complete_until().await;
    examined
}

/// Whether any of them can be used.
async fn look_at_addresses(
    brokers: &[String],
    security: &Security,
    advertised: bool,
    into: &mut Vec<Finding>,
) -> bool {
    let (trust, mechanism) = (security.trust(), security.mechanism().map(Word::word));
    let looks = brokers
        .iter()
        .map(|broker| reach::walk(broker, trust, reach::Ask::Kafka(mechanism)));
    let met = futures::future::join_all(looks).await;
    let all_fail = met.iter().all(Result::is_err);
    for (broker, met) in brokers.iter().zip(met) {
        let Err((step, found)) = met else { continue };
        let (code, help) = match step {
            Step::Dns => ("dns", "check sink.brokers, and what resolves names here"),
            Step::Tcp => (
                "tcp",
                "check sink.brokers, that the broker runs, and what filters connections between",
            ),
            Step::Tls => ("tls", "see [sink.tls]"),
            Step::Protocol if mechanism.is_some() || found.contains("login") => {
                ("sasl", "see sink.sasl, and which listener this port is")
            }
            Step::Protocol => (
                "kafka",
                "check that this is a listener for clients, and [sink.tls]",
            ),
        };
        into.push(if advertised {
            Finding::error(
                "advertised",
                broker,
                format!("the brokers tell clients to come here, and it {found}"),
                "set the brokers' advertised.listeners to what can be reached from here",
            )
        } else if all_fail {
            Finding::error(code, broker, found, help)
        } else {
            Finding::warning(code, broker, found, help)
        });
    }
    !all_fail
}

/// Whether this client may not be of its group. Who its coordinator is is not told to it then: that comes as an event, while
/// what is asked of the coordinator only waits. Blocks.
fn is_kept_out(consumer: &BaseConsumer<Quiet>, partitions: &TopicPartitionList) -> bool {
    let refused =
        |error: &KafkaError| error.rdkafka_error_code() == Some(Code::GroupAuthorizationFailed);
    let until = Instant::now() + WITHIN;
    while Instant::now() < until {
        match consumer.committed_offsets(partitions.clone(), LOOK) {
            Ok(_) => return false,
            Err(error) if refused(&error) => return true,
            Err(_) => {}
        }
        while let Some(event) = consumer.poll(Duration::ZERO) {
            if event.is_err_and(|error| refused(&error)) {
                return true;
            }
        }
    }
    false
}

impl RedpandaSink {
    /// Where the brokers say that they are, beside where they were looked for.
    fn advertised(&self, brokers: &[String]) -> Vec<String> {
        let known: BTreeSet<&String> = brokers.iter().collect();
        let addresses = self.addresses.lock();
        let others = addresses.iter().filter(|a| !known.contains(a));
        others.cloned().collect()
    }

    async fn examine_cluster(&self, settings: &Settings, into: &mut Vec<Finding>) {
        let Ok(found) = self.topics.metadata(None).await else {
            return;
        };
        let brokers = found.brokers().len();
        if let Some(wanted) = settings.sink.topics.replication_factor
            && wanted.get() as usize > brokers
        {
            into.push(Finding::error(
                "replication",
                "sink.topics.replication_factor",
                format!("it is {wanted}, and there are {brokers} brokers: no topic can be made"),
                format!("set it to {brokers} at most"),
            ));
        }
    }

    async fn examine_topics(&self, settings: &Settings, into: &mut Vec<Finding>) {
        let Ok(found) = self.topics.metadata(None).await else {
            return;
        };
        let checkpoints = self.checkpoint_topic();
        let letters = settings.dead_letter.topic.clone();
        let shards = settings.pipeline.shards.get();
        let there = |topic: &str| found.topics().iter().find(|t| t.name() == topic);
        for name in ours(settings, &checkpoints) {
            let Some(topic) = there(&name) else {
                self.examine_missing(&name, settings, into).await;
                continue;
            };
            let partitions = topic.partitions().len() as u32;
            if topic.partitions().iter().any(|p| p.leader() < 0) {
                into.push(Finding::error(
                    "leader",
                    &name,
                    "a partition of it has no leader",
                    "bring the brokers back that have its replicas",
                ));
            }
            if name == checkpoints
                && settings.pipeline.instances == Instances::Shared
                && partitions != shards
            {
                into.push(Finding::error(
                    "partitions",
                    &name,
                    format!("it has {partitions} partitions, and pipeline.shards is {shards}"),
                    "set pipeline.shards to the number of its partitions",
                ));
            }
            if let Some(set) = self.topics.describe(&name, WITHIN).await {
                let replicas = topic.partitions().iter().map(|p| p.replicas().len()).min();
                let replicas = replicas.unwrap_or_default();
                look_at_settings(
                    &name,
                    (&checkpoints, &letters),
                    &set,
                    replicas,
                    settings,
                    into,
                );
            }
        }
    }

    async fn examine_missing(&self, name: &str, settings: &Settings, into: &mut Vec<Finding>) {
        if !settings.sink.topics.create {
            into.push(Finding::error(
                "topic",
                name,
                "it is not there, and sink.topics.create is false",
                "create it, or set sink.topics.create = true",
            ));
            return;
        }
        let Some(code) = self.topics.could_make(name, &settings.sink.topics).await else {
            return;
        };
        if code == Code::InvalidReplicationFactor
            && settings.sink.topics.replication_factor.is_some()
        {
            // Told of the cluster.
            return;
        }
        let help = match code {
            Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
                "allow this client Create on it (or on the cluster), or create it"
            }
            Code::InvalidReplicationFactor => {
                "set sink.topics.replication_factor to what there are brokers for"
            }
            _ => "create it as the brokers have it, or change [sink.topics]",
        };
        into.push(Finding::error(
            "topic",
            name,
            format!("it is not there, and cannot be made: {code}"),
            help,
        ));
    }

    /// What this client is allowed, without doing it.
    async fn examine_rights(&self, settings: &Settings, into: &mut Vec<Finding>) {
        let checkpoints = self.checkpoint_topic();
        let names = ours(settings, &checkpoints);
        let allowed = self.topics.allowed(names.clone()).await;
        for (name, operations) in &allowed {
            // A broker that does not say says nothing.
            if operations.is_empty() {
                continue;
            }
            let reads = *name == checkpoints || *name == settings.dead_letter.topic;
            let needs = [(WRITE_TOPIC, "Write", true), (READ_TOPIC, "Read", reads)];
            for (operation, word, needed) in needs {
                if needed && !operations.contains(&operation) {
                    into.push(Finding::error(
                        "acl-topic",
                        name,
                        format!("this client may not {word} it"),
                        format!("allow it: kafka-acls --add --allow-principal … --operation {word} --topic {name}"),
                    ));
                }
            }
        }
        let pipeline = &settings.pipeline.name;
        if settings.pipeline.delivery == Delivery::ExactlyOnce {
            // An id of its own: that of a shard would fence whoever runs it.
            let id = format!("{pipeline}-doctor");
            let (config, _) = self.producer_config("doctor");
            let config = client::transactional(config, &id);
            let quiet = Quiet::of(&self.security);
            let security = self.security.clone();
            let made = super::blocking(move || {
                let producer: BaseProducer<Quiet> = config.create_with_context(quiet).ok()?;
                security.hand_token(producer.client()).ok()?;
                producer.init_transactions(WITHIN).err()
            });
            if let Some(error) = made.await.flatten() {
                let about = format!("transactional ids {pipeline}-*");
                let (code, help) = match error.rdkafka_error_code() {
                    Some(Code::TransactionalIdAuthorizationFailed) => (
                        "acl-transactional-id",
                        format!("allow Write and Describe on the transactional ids with the prefix {pipeline}-"),
                    ),
                    Some(Code::ClusterAuthorizationFailed) => (
                        "acl-idempotent-write",
                        "allow IdempotentWrite on the cluster".to_owned(),
                    ),
                    Some(Code::InvalidTransactionTimeout) => (
                        "transaction-timeout",
                        "raise the brokers' transaction.max.timeout.ms to 30000 at least".to_owned(),
                    ),
                    _ => (
                        "transactions",
                        "see the brokers' log; delivery = \"at-least-once\" does without transactions"
                            .to_owned(),
                    ),
                };
                let severity = match classify::refused(&error) {
                    true => Finding::error,
                    false => Finding::warning,
                };
                into.push(severity(
                    code,
                    about,
                    format!("no transaction is to be had: {error}"),
                    help,
                ));
            }
        }
        if settings.pipeline.delivery == Delivery::AtLeastOnce {
            let (config, _) = self.producer_config("doctor");
            let quiet = Quiet::of(&self.security);
            let security = self.security.clone();
            let refused = super::blocking(move || {
                let producer: BaseProducer<Quiet> = config.create_with_context(quiet).ok()?;
                security.hand_token(producer.client()).ok()?;
                refused_to_number(&producer)
            });
            if let Some(error) = refused.await.flatten() {
                into.push(Finding::error(
                    "acl-idempotent-write",
                    "the cluster",
                    format!("this client's records are not numbered against repetition: {error}"),
                    "allow IdempotentWrite on the cluster, or Write on the topics",
                ));
            }
        }
        if settings.pipeline.instances == Instances::Shared {
            let group = format!("penstock.{pipeline}");
            let (config, quiet) = (
                client::reader(&self.base(), &group),
                Quiet::of(&self.security),
            );
            let refused = super::blocking(move || {
                let consumer: BaseConsumer<Quiet> = config.create_with_context(quiet).ok()?;
                let mut partitions = TopicPartitionList::new();
                partitions.add_partition(&checkpoints, 0);
                is_kept_out(&consumer, &partitions).then_some(())
            });
            if refused.await.flatten().is_some() {
                into.push(Finding::error(
                    "acl-group",
                    format!("group penstock.{pipeline}"),
                    "this client may not join it, so it gets no shards",
                    format!("allow Read and Describe on the group penstock.{pipeline}"),
                ));
            }
        }
    }

    /// How far the pipeline is, by its checkpoints.
    async fn complete_until(&self) -> Option<i64> {
        let held = self.read_all_checkpoints().await.ok()?;
        let groups = held.values().flat_map(|held| held.checkpoints.values());
        groups
            .map(|c| c.complete_until_us)
            .filter(|us| *us > 0)
            .min()
    }
}

/// What the brokers have against a producer's asking for an id, which it does by itself once it is connected; `None`: nothing that
/// was said within [`NUMBERED`].
fn refused_to_number(producer: &BaseProducer<Quiet>) -> Option<KafkaError> {
    let until = Instant::now() + NUMBERED;
    while Instant::now() < until {
        producer.poll(LOOK / 5);
        if let Some((code, _)) = producer.client().fatal_error() {
            return Some(KafkaError::MessageProduction(code));
        }
    }
    None
}

/// Topics that the pipeline is known to use: what a transform routes to is its own to say.
fn ours(settings: &Settings, checkpoints: &str) -> Vec<String> {
    let mut all = vec![checkpoints.to_owned(), settings.dead_letter.topic.clone()];
    if settings.transforms.is_empty() {
        let tables = settings.source.tables.iter();
        all.extend(tables.map(|table| settings.default_topic(table)));
    }
    all
}

fn look_at_settings(
    name: &str,
    (checkpoints, letters): (&str, &str),
    set: &ConfigResource,
    replicas: usize,
    settings: &Settings,
    into: &mut Vec<Finding>,
) {
    let is = |key: &str| {
        set.get(key)
            .and_then(|e| e.value.as_deref())
            .unwrap_or_default()
    };
    let policy = is("cleanup.policy");
    if name == checkpoints && !policy.is_empty() && policy != "compact" {
        into.push(Finding::error(
            "cleanup",
            name,
            format!("its cleanup.policy is {policy}: checkpoints that are needed are deleted"),
            format!("kafka-configs --alter --topic {name} --add-config cleanup.policy=compact"),
        ));
    }
    let retention = number(set, "retention.ms").map(|ms| ms as u64);
    if name == letters && policy.contains("delete") && retention.is_some_and(|ms| ms < LETTERS_STAY)
    {
        into.push(Finding::warning(
            "retention",
            name,
            format!("dead letters are gone after {} ms", retention.unwrap_or_default()),
            "keep them for as long as somebody may need to look and replay: retention.ms=-1, or a week",
        ));
    }
    let in_sync = number(set, "min.insync.replicas").unwrap_or(1);
    if replicas > 0 && in_sync > replicas {
        into.push(Finding::error(
            "in-sync",
            name,
            format!("min.insync.replicas is {in_sync}, and it has {replicas} replicas: nothing is acknowledged"),
            format!("set min.insync.replicas to {replicas} at most, or give it more replicas"),
        ));
    } else if replicas > 2 && in_sync < 2 {
        into.push(Finding::warning(
            "in-sync",
            name,
            "one replica is enough to acknowledge, so what is acknowledged is lost with one broker",
            "set min.insync.replicas=2",
        ));
    }
    if is("unclean.leader.election.enable") == "true" {
        into.push(Finding::warning(
            "unclean",
            name,
            "a replica that lacks records may come to lead it, and what was acknowledged is gone",
            format!("kafka-configs --alter --topic {name} --add-config unclean.leader.election.enable=false"),
        ));
    }
    let ours = settings.sink.properties.get(client::LARGEST_MESSAGE);
    let ours = client::largest_message(ours.map(String::as_str));
    if let Some(takes) = number(set, "max.message.bytes").filter(|takes| *takes < ours / 10) {
        into.push(Finding::warning(
            "size",
            name,
            format!("it takes batches of {takes} bytes, and records of up to {ours} may come: larger ones are dead letters"),
            "raise its max.message.bytes",
        ));
    }
}
