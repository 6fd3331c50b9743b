//! The validated settings: what every other module reads.
//!
//! Only [`crate::config`] makes them, from a raw file; whoever holds one may rely on it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// The settings in force, read where they are used; hold no guard across an await.
pub type LiveSettings = watch::Receiver<Arc<Settings>>;

/// All of pipeline.toml.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `[pipeline]`
    pub pipeline: Pipeline,
    /// `[source]`
    pub source: Source,
    /// `[[transform]]`, in order.
    pub transforms: Vec<Transform>,
    /// `[sink]`
    pub sink: Sink,
    /// `[dead_letter]`
    pub dead_letter: DeadLetter,
    /// `[orders]`
    pub orders: Orders,
    /// `[admin]`
    pub admin: Admin,
    /// `[health]`
    pub health: Health,
    /// `[shutdown]`
    pub shutdown: Shutdown,
    /// `[log]`
    pub log: Log,
    /// `[reload]`
    pub reload: Reload,
    /// `[embedded]`
    pub embedded: Embedded,
}

impl Settings {
    /// The policies of a stage by its name: `source`, `transform.<name>`, `sink`, `dead_letter`, `orders`.
    pub fn policies(&self, stage: &str) -> Option<&Policies> {
        match stage {
            "source" => Some(&self.source.policies),
            "sink" => Some(&self.sink.policies),
            "dead_letter" => Some(&self.dead_letter.policies),
            "orders" => Some(&self.orders.policies),
            other => {
                let name = other.strip_prefix("transform.")?;
                self.transforms
                    .iter()
                    .find(|t| t.name == name)
                    .map(|t| &t.policies)
            }
        }
    }

    /// The most changes to hand on together: `pipeline.batch_size`, and no more than the rate limits on the way
    /// to the sink let through at once, so that what they bound does not come in bursts all the same.
    pub fn batch_size(&self) -> NonZeroU32 {
        let transforms = self.transforms.iter().map(|t| &t.policies);
        [&self.source.policies, &self.sink.policies]
            .into_iter()
            .chain(transforms)
            .filter_map(|policies| Some(policies.rate_limit?.at_once()))
            .fold(self.pipeline.batch_size, NonZeroU32::min)
    }
}

/// `[pipeline]`
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// Names topics, groups and transactions; cannot change while running.
    pub name: String,
    /// What a crash may cost.
    pub delivery: Delivery,
    /// Ordered lanes.
    pub shards: NonZeroU32,
    /// Whether others run the same pipeline.
    pub instances: Instances,
    /// How long one that shares may be silent before its shards go to the others.
    pub session_timeout: Duration,
    /// Bound on what one lane holds unacknowledged, in changes.
    pub max_in_flight: NonZeroU32,
    /// The most changes in a batch.
    pub batch_size: NonZeroU32,
}

/// `pipeline.delivery`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Records and checkpoint in one transaction. Refused by validation until it is built.
    ExactlyOnce,
    /// A crash may repeat records.
    AtLeastOnce,
}

/// `pipeline.instances`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instances {
    /// One alone, which has every shard.
    One,
    /// As many as are started: they share the shards.
    Shared,
}

/// A list of addresses, or the in-process stand-in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// `"embedded"`
    Embedded,
    /// `["host:port", …]`
    At(Vec<String>),
}

/// `[source]`, `type = "scylla-cdc"`
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// ScyllaDB's contact points.
    pub nodes: Nodes,
    /// The keyspace of the tables.
    pub keyspace: String,
    /// Base tables with CDC enabled.
    pub tables: Vec<String>,
    /// Where to start without a checkpoint.
    pub start_from: StartFrom,
    /// Pause between windows when caught up.
    pub poll_interval: Duration,
    /// The span of time one read covers; up to 64 times as much while behind, less under pressure.
    pub window: Duration,
    /// How far behind now a window may end.
    pub safety_interval: Duration,
    /// One CQL read takes no longer.
    pub read_timeout: Duration,
    /// Rows a page.
    pub page_size: NonZeroU32,
    /// Stream groups read at once in a shard, at most.
    pub concurrency: NonZeroU32,
    /// Of the log reads.
    pub consistency: Consistency,
    /// Credentials.
    pub username: Option<String>,
    /// Never printed.
    pub password: Option<Secret>,
    /// Policies of stage `source`.
    pub policies: Policies,
}

/// CQL consistency of log reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Consistency {
    One,
    Two,
    Three,
    Quorum,
    LocalQuorum,
    LocalOne,
    All,
}

/// `source.start_from`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFrom {
    /// The oldest change that the log still has.
    Earliest,
    /// Changes from the start of the process on.
    Latest,
    /// Microseconds since the Unix epoch.
    At(i64),
}

/// One `[[transform]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Transform {
    /// Unique.
    pub name: String,
    /// A component, or a core module with the WIT embedded.
    pub plugin: PathBuf,
    /// What becomes of a change that the plugin fails on.
    pub on_error: OnError,
    /// What the guest may use.
    pub limits: Limits,
    /// Handed to `configure`, values as strings (TOML values other than strings in JSON form).
    pub settings: BTreeMap<String, String>,
    /// Policies of stage `transform.<name>`.
    pub policies: Policies,
}

/// `transform.on_error`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// Keep the change with its error.
    DeadLetter,
    /// Let go of it, counted.
    Drop,
    /// Fail the stage.
    Stop,
}

/// `transform.limits`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of linear memory.
    pub memory: u64,
    /// Time for one batch.
    pub deadline: Duration,
}

/// `[sink]`, `type = "redpanda"`
#[derive(Clone, Debug, PartialEq)]
pub struct Sink {
    /// Bootstrap servers.
    pub brokers: Nodes,
    /// librdkafka properties of the producer.
    pub properties: BTreeMap<String, String>,
    /// SASL user; `None`: no authentication.
    pub username: Option<String>,
    /// Never printed.
    pub password: Option<Secret>,
    /// A batch not acknowledged in this time is a failed attempt.
    pub attempt_timeout: Duration,
    /// Topic for changes that no transform routed: `{pipeline}`, `{keyspace}`, `{table}` are filled in.
    pub topic: String,
    /// How topics are created.
    pub topics: Topics,
    /// Least time between checkpoints of a shard.
    pub checkpoint_interval: Duration,
    /// Longest that a transaction is kept open under load.
    pub commit_interval: Duration,
    /// Policies of stage `sink`.
    pub policies: Policies,
}

/// `[sink.topics]`
#[derive(Clone, Debug, PartialEq)]
pub struct Topics {
    /// Create topics that are missing.
    pub create: bool,
    /// Partitions of a created topic.
    pub partitions: NonZeroU32,
    /// Replicas; `None`: the broker's default.
    pub replication_factor: Option<NonZeroU32>,
    /// Topic properties such as `retention.ms`.
    pub properties: BTreeMap<String, String>,
}

/// `[dead_letter]`
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Default: `<pipeline>.dead-letters`.
    pub topic: String,
    /// More than this many …
    pub max: NonZeroU32,
    /// … in this time fail the stage that made them.
    pub within: Duration,
    /// Policies of stage `dead_letter`.
    pub policies: Policies,
}

/// `[orders]`
#[derive(Clone, Debug, PartialEq)]
pub struct Orders {
    /// Off by default.
    pub enabled: bool,
    /// Of its HTTP interface.
    pub listen: SocketAddr,
    /// Where the orders are.
    pub keyspace: String,
    /// Default TTL of outbox rows.
    pub outbox_ttl: Duration,
    /// One request takes no longer.
    pub request_timeout: Duration,
    /// Policies of stage `orders`.
    pub policies: Policies,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    /// `false`: no admin interface.
    pub enabled: bool,
    /// Loopback unless a token is set.
    pub listen: SocketAddr,
    /// Bearer token.
    pub token: Option<Secret>,
    /// Bearer token for `/metrics` alone.
    pub metrics_token: Option<Secret>,
}

/// `[health]`
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// Between looks at each component.
    pub check_interval: Duration,
    /// Between logged reports.
    pub report_interval: Duration,
    /// No progress for this long while there is work: degraded.
    pub stalled_after: Duration,
    /// Components whose being unhealthy makes the system unhealthy.
    pub critical: Vec<String>,
    /// Headroom (share of the CDC TTL left) below which health is degraded.
    pub headroom_degraded: f64,
    /// … and unhealthy.
    pub headroom_unhealthy: f64,
    /// What an open breaker makes of its component.
    pub open_breaker: OpenBreaker,
}

/// `health.open_breaker`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum OpenBreaker {
    Degraded,
    Unhealthy,
}

/// `[shutdown]`
#[derive(Clone, Debug, PartialEq)]
pub struct Shutdown {
    /// For the whole drain.
    pub timeout: Duration,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// `tracing` filter directives.
    pub filter: String,
    /// How lines look.
    pub format: LogFormat,
}

/// `log.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LogFormat {
    Text,
    Json,
}

/// `[reload]`
#[derive(Clone, Debug, PartialEq)]
pub struct Reload {
    /// Watch the config's sources.
    pub watch: bool,
    /// Where no event comes, look this often.
    pub poll_interval: Duration,
    /// Quiet time after an event before loading.
    pub debounce: Duration,
}

/// `[embedded]`: the in-process stand-ins
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// Where the ScyllaDB stand-in listens (port 0: any).
    pub scylla_listen: SocketAddr,
    /// Where the Redpanda stand-in listens (port 0: any).
    pub redpanda_listen: SocketAddr,
    /// CQL streams are laid out as vnodes × shards.
    pub vnodes: NonZeroU32,
    /// Streams a vnode.
    pub shards_per_vnode: NonZeroU32,
}

/// The four policy tables of a stage. The default is what applies where `[policies]` says nothing: no rate
/// limit, and each other table's own default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policies {
    /// When to stop calling.
    pub breaker: crate::policy::breaker::Settings,
    /// How to try again.
    pub retry: crate::policy::backoff::Settings,
    /// How fast at most.
    pub rate_limit: Option<crate::policy::rate::Settings>,
    /// What happens when the stage crashes.
    pub supervision: crate::policy::restart::Settings,
}

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The value, for the driver that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
impl Settings {
    /// Settings for tests that need some: stand-ins on both ends, no transform, `policies` for every stage.
    pub(crate) fn for_tests(policies: Policies) -> Self {
        let some = |n| NonZeroU32::new(n).unwrap();
        let second = Duration::from_secs(1);
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            pipeline: Pipeline {
                name: "test".into(),
                delivery: Delivery::AtLeastOnce,
                shards: some(1),
                instances: Instances::One,
                session_timeout: 10 * second,
                max_in_flight: some(1024),
                batch_size: some(64),
            },
            source: Source {
                nodes: Nodes::Embedded,
                keyspace: "orders_ks".into(),
                tables: vec!["outbox_messages".into()],
                start_from: StartFrom::Earliest,
                poll_interval: second / 10,
                window: 10 * second,
                safety_interval: second,
                read_timeout: 10 * second,
                page_size: some(1000),
                concurrency: some(8),
                consistency: Consistency::LocalQuorum,
                username: None,
                password: None,
                policies: policies.clone(),
            },
            transforms: Vec::new(),
            sink: Sink {
                brokers: Nodes::Embedded,
                properties: BTreeMap::new(),
                username: None,
                password: None,
                attempt_timeout: 10 * second,
                topic: "{keyspace}.{table}".into(),
                topics: Topics {
                    create: true,
                    partitions: some(1),
                    replication_factor: None,
                    properties: BTreeMap::new(),
                },
                checkpoint_interval: second,
                commit_interval: Duration::from_millis(100),
                policies: policies.clone(),
            },
            dead_letter: DeadLetter {
                topic: "test.dead-letters".into(),
                max: some(100),
                within: 60 * second,
                policies: policies.clone(),
            },
            orders: Orders {
                enabled: false,
                listen: loopback,
                keyspace: "orders_ks".into(),
                outbox_ttl: 86_400 * second,
                request_timeout: 5 * second,
                policies,
            },
            admin: Admin {
                enabled: false,
                listen: loopback,
                token: None,
                metrics_token: None,
            },
            health: Health {
                check_interval: 10 * second,
                report_interval: 30 * second,
                stalled_after: 60 * second,
                critical: vec!["source".into(), "sink".into(), "transform".into()],
                headroom_degraded: 0.5,
                headroom_unhealthy: 0.2,
                open_breaker: OpenBreaker::Unhealthy,
            },
            shutdown: Shutdown {
                timeout: 30 * second,
            },
            log: Log {
                filter: "info".into(),
                format: LogFormat::Text,
            },
            reload: Reload {
                watch: false,
                poll_interval: 5 * second,
                debounce: second / 10,
            },
            embedded: Embedded {
                scylla_listen: loopback,
                redpanda_listen: loopback,
                vnodes: some(4),
                shards_per_vnode: some(2),
            },
        }
    }
}
