//! `[sink]`: what is written, and how.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::key::Class::{Live, Rebuild};
use crate::config::key::Fallback::{Absent, Value};
use crate::config::key::Kind;
use crate::config::rules;
use crate::config::section::section;
use crate::config::value::{Nodes, Secret};
use crate::policy::Policies;
use crate::words::{Word, words};

words! {
    /// `sink.type`
    pub enum SinkType {
        /// Redpanda, and whatever speaks Kafka's protocol as it does.
        Redpanda = "redpanda",
    }
}

section! {
    /// `[sink]`, `type = "redpanda"`
    pub struct Sink {
        /// What is written to
        kind as "type": SinkType = { Kind::Choice(SinkType::WORDS), Value(r#""redpanda""#), Rebuild, r#""redpanda""# },
        /// Bootstrap servers, or "embedded" for the in-process stand-in
        brokers: Nodes = { Kind::Nodes, Value(r#""embedded""#), Rebuild, r#"["redpanda:9092"]"# },
        /// librdkafka properties, except those that would break a guarantee
        properties: BTreeMap<String, String> = { Kind::Properties, Value("{}"), Rebuild, r#"{ "compression.type" = "lz4" }"# },
        /// Logs in to Redpanda by SASL; the mechanism and the protocol are properties
        username: Option<String> = { Kind::Text(rules::nonempty), Absent, Rebuild, r#""penstock""# },
        /// The password, by PENSTOCK_SINK__PASSWORD only
        password: Option<Secret> = { Kind::Secret, Absent, Rebuild, r#""…""# },
        /// A file with the password; a newline at its end is not part of it
        password_file: Option<PathBuf> = { Kind::Path, Absent, Rebuild, r#""/run/secrets/redpanda""# },
        /// A batch not acknowledged in this time is a failed attempt for the breaker
        attempt_timeout: Duration = { Kind::Duration(10, 3_600_000), Value(r#""10s""#), Live, r#""10s""# },
        /// Topic of changes that no transform routed; {pipeline}, {keyspace} and {table} are filled in
        topic: String = { Kind::Text(rules::topic_template), Value(r#""{pipeline}.{keyspace}.{table}""#), Live, r#""cdc.{keyspace}.{table}""# },
        /// `[sink.topics]`
        topics: Topics = table,
        /// Least time between two checkpoints of a shard: with at-least-once delivery, what a crash may repeat
        checkpoint_interval: Duration = { Kind::Duration(10, 3_600_000), Value(r#""1s""#), Live, r#""1s""# },
        /// Longest that a transaction is kept open for more records under load; with none on their way it is
        /// committed at once
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
