//! `[sink]`: what is written, and how.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::key::Fallback::{Absent, Value};
use crate::config::key::Kind;
use crate::config::key::ReloadClass::{Live, Rebuild};
use crate::config::rules;
use crate::config::section::{FromKey, Values, section};
use crate::config::value::{Nodes, Secret};

use super::tls::Tls;
use crate::policy::Policies;
use crate::words::{Word, words};

words! {
    /// `sink.type`
    pub enum SinkType {
        /// Redpanda, and whatever speaks Kafka's protocol as it does.
        Redpanda = "redpanda",
    }
}

words! {
    /// `sink.sasl`
    pub enum SaslMechanism {
        /// User and password as they are.
        Plain = "PLAIN",
        /// A proof of the password.
        ScramSha256 = "SCRAM-SHA-256",
        /// A proof of the password.
        ScramSha512 = "SCRAM-SHA-512",
        /// A token that somebody else issues.
        OauthBearer = "OAUTHBEARER",
    }
}

words! {
    /// `sink.new_cluster`
    pub enum NewCluster {
        /// The change of brokers is refused.
        Refuse = "refuse",
        /// The checkpoints are written to the new cluster.
        Carry = "carry",
        /// The pipeline starts there as if it were new.
        StartOver = "start-over",
    }
}

words! {
    /// `sink.key`
    pub enum RecordKey {
        /// The partition key: all changes of a partition keep their order.
        Partition = "partition-key",
        /// The primary key: each row is compacted by itself, and keeps its order by itself only.
        Primary = "primary-key",
    }
}

words! {
    /// `sink.timestamp`
    pub enum RecordTime {
        /// When the change was written to ScyllaDB.
        Change = "change",
        /// When the record was handed to the producer.
        Send = "send",
    }
}

words! {
    /// Headers of the sink's own that a record may carry, in the order in which it carries them.
    pub enum RecordHeader {
        /// Where the change stands in the log.
        Position = "position",
        /// `keyspace.table`
        Table = "table",
        /// What kind of change it is.
        Operation = "operation",
        /// A W3C trace context made of the position, where the transform set none.
        Traceparent = "traceparent",
    }
}

/// `sink.headers`: which of the sink's own headers a record carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordHeaders {
    /// See [`RecordHeader::Position`].
    pub position: bool,
    /// See [`RecordHeader::Table`].
    pub table: bool,
    /// See [`RecordHeader::Operation`].
    pub operation: bool,
    /// See [`RecordHeader::Traceparent`].
    pub traceparent: bool,
}

impl FromKey for RecordHeaders {
    fn from_key(from: &dyn Values, path: &str) -> Self {
        let names: Vec<String> = FromKey::from_key(from, path);
        let has = |header: RecordHeader| names.iter().any(|name| name == header.word());
        Self {
            position: has(RecordHeader::Position),
            table: has(RecordHeader::Table),
            operation: has(RecordHeader::Operation),
            traceparent: has(RecordHeader::Traceparent),
        }
    }
}

impl FromKey for Option<SaslMechanism> {
    fn from_key(from: &dyn Values, path: &str) -> Self {
        from.leaf(path)?;
        Some(SaslMechanism::from_key(from, path))
    }
}

impl Sink {
    /// Whether the producers compress: how large a record is then, nobody knows before it is sent.
    pub fn compresses(&self) -> bool {
        let mut set = ["compression.type", "compression.codec"]
            .into_iter()
            .filter_map(|name| self.properties.get(name));
        set.any(|codec| codec != "none")
    }

    /// Whether topics are made compacted while changes that no transform routed have the partition key: of all
    /// rows of a partition, compaction then keeps one.
    pub fn loses_rows(&self) -> bool {
        let policy = self.topics.properties.get("cleanup.policy");
        self.key == RecordKey::Partition
            && policy.is_some_and(|p| p.split(',').any(|p| p.trim() == "compact"))
    }
}

section! {
    /// `[sink]`, `type = "redpanda"`
    pub struct Sink {
        /// What is written to
        kind as "type": SinkType = { Kind::Choice(SinkType::WORDS), Value(r#""redpanda""#), Rebuild, r#""redpanda""# },
        /// Bootstrap servers, or "embedded" for the in-process stand-in
        brokers: Nodes = { Kind::Nodes, Value(r#""embedded""#), Rebuild, r#"["redpanda:9092"]"# },
        /// What becomes of a change of brokers, while running, to a cluster that has none of this pipeline's checkpoints:
        /// refuse it, carry the checkpoints there (what was read is not read again), or start over by source.start_from
        new_cluster: NewCluster = { Kind::Choice(NewCluster::WORDS), Value(r#""refuse""#), Live, r#""carry""# },
        /// librdkafka properties, except those that would break a guarantee
        properties: BTreeMap<String, String> = { Kind::Properties, Value("{}"), Rebuild, r#"{ "compression.type" = "lz4" }"# },
        /// How it logs in (SASL); absent: it does not. PLAIN and SCRAM take sink.username and a password, OAUTHBEARER a
        /// token; PLAIN and OAUTHBEARER show them to whoever listens unless sink.tls is enabled
        sasl: Option<SaslMechanism> = { Kind::Choice(SaslMechanism::WORDS), Absent, Rebuild, r#""SCRAM-SHA-512""# },
        /// Who logs in
        username: Option<String> = { Kind::Text(rules::nonempty), Absent, Rebuild, r#""penstock""# },
        /// The password, by PENSTOCK_SINK__PASSWORD only
        password: Option<Secret> = { Kind::Secret, Absent, Live, r#""…""# },
        /// A file with the password; a newline at its end is not part of it
        password_file: Option<PathBuf> = { Kind::Path, Absent, Live, r#""/run/secrets/redpanda""# },
        /// The token of OAUTHBEARER, by PENSTOCK_SINK__TOKEN only
        token: Option<Secret> = { Kind::Secret, Absent, Live, r#""…""# },
        /// A file with the token (a JWT), written anew by whoever issues it before it expires
        token_file: Option<PathBuf> = { Kind::Path, Absent, Live, r#""/run/secrets/tokens/redpanda""# },
        /// `[sink.tls]`
        tls: Tls = table,
        /// A batch not acknowledged in this time is a failed attempt for the breaker
        attempt_timeout: Duration = { Kind::Duration(10, 3_600_000), Value(r#""10s""#), Live, r#""10s""# },
        /// Topic of changes that no transform routed; {pipeline}, {keyspace} and {table} are filled in
        topic: String = { Kind::Text(rules::topic_template), Value(r#""{pipeline}.{keyspace}.{table}""#), Live, r#""cdc.{keyspace}.{table}""# },
        /// Key of changes that no transform routed: by the partition key all changes of a partition keep their
        /// order; by the primary key a compacted topic keeps every row, and order holds within a row only (changes of
        /// a whole partition, of a range or of static columns have the partition key)
        key: RecordKey = { Kind::Choice(RecordKey::WORDS), Value(r#""partition-key""#), Live, r#""primary-key""# },
        /// A delete of exactly what the key names (a row by its primary key, a partition by its partition key) that no
        /// transform routed is a record without a value, so that compaction forgets it
        tombstones: bool = { Kind::Bool, Value("false"), Live, "true" },
        /// What a record's timestamp says: when the change was written to ScyllaDB, which stream processors window by
        /// and retention.ms counts from, or when it was sent
        timestamp: RecordTime = { Kind::Choice(RecordTime::WORDS), Value(r#""change""#), Live, r#""send""# },
        /// Headers of every record beside the transform's own; each costs space in every record
        headers: RecordHeaders = { Kind::Words(RecordHeader::WORDS), Value(r#"["position"]"#), Live, r#"["position", "operation"]"# },
        /// `[sink.topics]`
        topics: Topics = table,
        /// Least time between two checkpoints of a shard: with at-least-once delivery, what a crash may repeat
        checkpoint_interval: Duration = { Kind::Duration(10, 3_600_000), Value(r#""1s""#), Live, r#""1s""# },
        /// Longest that a transaction is kept open for more records under load; with none on their way it is
        /// committed at once, and a shard that is behind takes a tenth of the time by which it is, up to 1 s
        commit_interval: Duration = { Kind::Duration(1, 10_000), Value(r#""100ms""#), Live, r#""100ms""# },
        /// Policies of stage `sink`
        policies: Policies = flat,
    }
}

section! {
    /// `[sink.topics]`: how topics are created
    pub struct Topics {
        /// Create topics that are missing
        create: bool = { Kind::Bool, Value("true"), Live, "true" },
        /// Partitions of a topic that is created
        partitions: NonZeroU32 = { Kind::Int(1, 10_000), Value("12"), Live, "12" },
        /// Replicas of a topic that is created; absent: the broker's default
        replication_factor: Option<NonZeroU32> = { Kind::Int(1, 32), Absent, Live, "3" },
        /// Properties of a topic that is created
        properties: BTreeMap<String, String> = { Kind::Properties, Value("{}"), Live, r#"{ "retention.ms" = 604800000 }"# },
    }
}
