//! Every key of pipeline.toml: what it holds, its default, what a change of it does, and what it is for.
//!
//! This one table drives validation, the JSON Schema, the reload classes and the documentation, so that
//! none of them can know a key that another does not.

use std::sync::LazyLock;

use super::value::{self, Rule};
use crate::policy::restart;

/// What applying a changed value takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// The next use sees it; nothing is drained or reset.
    Live,
    /// A new plugin instance is built aside and takes over at a batch boundary.
    Swap,
    /// What the table names is drained, committed and rebuilt from its checkpoint.
    Rebuild,
    /// Needs a restart.
    Refused,
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Class::Live => "live",
            Class::Swap => "swap",
            Class::Rebuild => "rebuild",
            Class::Refused => "refused",
        })
    }
}

/// What a key holds.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`
    Bool,
    /// A whole number in an inclusive range.
    Int(u64, u64),
    /// A finite number in an inclusive range.
    Float(f64, f64),
    /// A duration such as `"30s"`, in an inclusive range of milliseconds.
    Duration(u64, u64),
    /// A size such as `"64MiB"`, in an inclusive range of bytes.
    Size(u64, u64),
    /// `"5000/s"`, `{ per_second, burst }` or `"off"`.
    Rate,
    /// `"earliest"`, `"latest"` or an RFC 3339 time.
    StartFrom,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A string that keeps a rule.
    Text(Rule),
    /// A string that may only come from the environment or a `…_file`.
    Secret,
    /// A path, relative to the folder of the file that names it.
    Path,
    /// `ip:port`
    Address,
    /// A list of `host:port`, or `"embedded"`.
    Nodes,
    /// A list of distinct strings that keep a rule.
    List(Rule),
    /// Names with scalar values, handed on as strings.
    Properties,
    /// Any table, handed on as strings (JSON for what is not one).
    Table,
}

/// Where a key's value comes from when nobody sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// It must be set.
    Required,
    /// It may be absent; the documentation says what that means.
    Absent,
    /// A TOML value.
    Value(&'static str),
    /// The key of the same name under `[policies]`.
    Policies,
}

/// One key.
#[derive(Clone, Debug)]
pub struct Key {
    /// Dotted; `*` stands for a transform's name.
    pub path: String,
    /// What it holds.
    pub kind: Kind,
    /// Its default.
    pub fallback: Fallback,
    /// What a change of it does.
    pub class: Class,
    /// What it is for.
    pub doc: &'static str,
    /// A TOML value that is legal here.
    pub example: &'static str,
}

/// What stages are called in pipeline.toml; `*` stands for a transform's name.
pub const STAGES: [&str; 5] = ["source", "transform.*", "sink", "dead_letter", "orders"];

/// What stands for the transforms and their order among the values in force.
pub const TRANSFORMS: &str = "transform";

/// Every shard holds an instance of each, and a change passes all of them: far fewer are meant.
pub const MOST_TRANSFORMS: usize = 64;

const DAY: u64 = 86_400_000;
const COUNT: Kind = Kind::Int(1, u32::MAX as u64);

type Row = (
    &'static str,
    Kind,
    Fallback,
    Class,
    &'static str,
    &'static str,
);

use Class::{Live, Rebuild, Refused, Swap};
use Fallback::{Absent, Required, Value};

#[rustfmt::skip]
const KEYS: &[Row] = &[
    ("pipeline.name", Kind::Text(value::pipeline_name), Required, Refused,
     "Names the topics, the consumer group and the transactions of this pipeline; two pipelines on one Redpanda must differ in it", r#""orders""#),
    ("pipeline.delivery", Kind::Choice(&["exactly-once", "at-least-once"]), Value(r#""exactly-once""#), Rebuild,
     "What a crash may cost: exactly-once neither loses nor repeats, for readers with isolation.level=read_committed; at-least-once may repeat records", r#""exactly-once""#),
    ("pipeline.shards", Kind::Int(1, 1024), Value("4"), Rebuild,
     "Ordered lanes from source to sink, and partitions of the checkpoint topic; instances share them", "4"),
    ("pipeline.instances", Kind::Choice(&["one", "shared"]), Value(r#""one""#), Refused,
     "Who runs this pipeline: one process alone, which has every shard, or as many as are started, which share the shards out by a consumer group", r#""shared""#),
    ("pipeline.session_timeout", Kind::Duration(6_000, 300_000), Value(r#""10s""#), Rebuild,
     "With instances = \"shared\": how long an instance may be silent before its shards go to the others; the brokers bound it too", r#""10s""#),
    ("pipeline.max_in_flight", Kind::Int(1, 1_000_000), Value("10000"), Live,
     "The most changes that one shard holds unacknowledged; bounds memory", "10000"),
    ("pipeline.batch_size", Kind::Int(1, 100_000), Value("500"), Live,
     "The most changes handed on together", "500"),

    ("source.type", Kind::Choice(&["scylla-cdc"]), Value(r#""scylla-cdc""#), Rebuild,
     "What is read", r#""scylla-cdc""#),
    ("source.nodes", Kind::Nodes, Value(r#""embedded""#), Rebuild,
     "ScyllaDB's contact points, or \"embedded\" for the in-process stand-in", r#"["scylla:9042"]"#),
    ("source.keyspace", Kind::Text(value::cql_name), Required, Rebuild,
     "The keyspace of the tables", r#""orders_ks""#),
    ("source.tables", Kind::List(value::cql_name), Required, Rebuild,
     "The base tables to read; each needs CDC enabled", r#"["outbox_messages"]"#),
    ("source.start_from", Kind::StartFrom, Value(r#""earliest""#), Live,
     "Where to start where there is no checkpoint: \"earliest\", \"latest\" or an RFC 3339 time", r#""earliest""#),
    ("source.poll_interval", Kind::Duration(1, 3_600_000), Value(r#""100ms""#), Live,
     "Pause between reads when caught up; while behind there is none", r#""100ms""#),
    ("source.window", Kind::Duration(10, DAY), Value(r#""10s""#), Live,
     "The longest span of log time that one read covers", r#""10s""#),
    ("source.safety_interval", Kind::Duration(0, 3_600_000), Value(r#""1s""#), Live,
     "How far behind now a window may end: covers writes that arrive late and clocks that differ", r#""1s""#),
    ("source.read_timeout", Kind::Duration(10, 3_600_000), Value(r#""10s""#), Live,
     "A CQL read that takes longer counts as failed", r#""10s""#),
    ("source.page_size", Kind::Int(1, 100_000), Value("1000"), Live,
     "Rows a page of a log read", "1000"),
    ("source.concurrency", Kind::Int(1, 4096), Value("16"), Live,
     "Stream groups that one shard reads at once, at most", "16"),
    ("source.consistency", Kind::Choice(&["one", "two", "three", "quorum", "local-quorum", "local-one", "all"]), Value(r#""quorum""#), Live,
     "Consistency of the log reads; with that of the writes it must exceed the replication factor", r#""local-quorum""#),
    ("source.username", Kind::Text(value::nonempty), Absent, Rebuild,
     "Logs in to ScyllaDB; absent: no authentication", r#""penstock""#),
    ("source.password", Kind::Secret, Absent, Rebuild,
     "The password, by PENSTOCK_SOURCE__PASSWORD only", r#""…""#),
    ("source.password_file", Kind::Path, Absent, Rebuild,
     "A file with the password; a newline at its end is not part of it", r#""/run/secrets/scylla""#),

    ("transform.*.name", Kind::Text(value::transform_name), Required, Rebuild,
     "Unique; names the stage transform.<name>", r#""outbox-router""#),
    ("transform.*.plugin", Kind::Path, Required, Swap,
     "The WASM plugin; rebuilt in place it is swapped too", r#""plugins/outbox_router.wasm""#),
    ("transform.*.on_error", Kind::Choice(&["dead-letter", "drop", "stop"]), Value(r#""dead-letter""#), Live,
     "What becomes of a change that the plugin rejects: keep it with its error, let go of it (counted as failed), or fail the stage", r#""dead-letter""#),
    ("transform.*.limits.memory", Kind::Size(1 << 16, 4 << 30), Value(r#""64MiB""#), Live,
     "The most linear memory that the plugin may grow to", r#""64MiB""#),
    ("transform.*.limits.deadline", Kind::Duration(1, 60_000), Value(r#""100ms""#), Live,
     "The longest that the plugin may take for one batch", r#""100ms""#),
    ("transform.*.settings", Kind::Table, Value("{}"), Swap,
     "Handed to the plugin as strings, other values in JSON form; what is legal is up to the plugin", r#"{ topic_prefix = "events." }"#),

    ("sink.type", Kind::Choice(&["redpanda"]), Value(r#""redpanda""#), Rebuild,
     "What is written to", r#""redpanda""#),
    ("sink.brokers", Kind::Nodes, Value(r#""embedded""#), Rebuild,
     "Bootstrap servers, or \"embedded\" for the in-process stand-in", r#"["redpanda:9092"]"#),
    ("sink.properties", Kind::Properties, Value("{}"), Rebuild,
     "librdkafka properties, except those that would break a guarantee", r#"{ "compression.type" = "lz4" }"#),
    ("sink.username", Kind::Text(value::nonempty), Absent, Rebuild,
     "Logs in to Redpanda by SASL; the mechanism and the protocol are properties", r#""penstock""#),
    ("sink.password", Kind::Secret, Absent, Rebuild,
     "The password, by PENSTOCK_SINK__PASSWORD only", r#""…""#),
    ("sink.password_file", Kind::Path, Absent, Rebuild,
     "A file with the password; a newline at its end is not part of it", r#""/run/secrets/redpanda""#),
    ("sink.attempt_timeout", Kind::Duration(10, 3_600_000), Value(r#""10s""#), Live,
     "A batch not acknowledged in this time is a failed attempt for the breaker", r#""10s""#),
    ("sink.topic", Kind::Text(value::topic_template), Value(r#""{pipeline}.{keyspace}.{table}""#), Live,
     "Topic of changes that no transform routed; {pipeline}, {keyspace} and {table} are filled in", r#""cdc.{keyspace}.{table}""#),
    ("sink.topics.create", Kind::Bool, Value("true"), Live,
     "Create topics that are missing", "true"),
    ("sink.topics.partitions", Kind::Int(1, 10_000), Value("12"), Live,
     "Partitions of a topic that is created", "12"),
    ("sink.topics.replication_factor", Kind::Int(1, 32), Absent, Live,
     "Replicas of a topic that is created; absent: the broker's default", "3"),
    ("sink.topics.properties", Kind::Properties, Value("{}"), Live,
     "Properties of a topic that is created", r#"{ "retention.ms" = 604800000 }"#),
    ("sink.checkpoint_interval", Kind::Duration(10, 3_600_000), Value(r#""1s""#), Live,
     "Least time between two checkpoints of a shard: with at-least-once delivery, what a crash may repeat", r#""1s""#),
    ("sink.commit_interval", Kind::Duration(1, 10_000), Value(r#""100ms""#), Live,
     "Longest that a transaction is kept open for more records under load; with none on their way it is committed at once", r#""100ms""#),

    ("dead_letter.topic", Kind::Text(value::dead_letter_template), Value(r#""{pipeline}.dead-letters""#), Rebuild,
     "Topic of the changes that can never succeed; {pipeline} and {keyspace} are filled in", r#""orders.dead-letters""#),
    ("dead_letter.max", COUNT, Value("1000"), Live,
     "More dead letters than this within the time below fail the stage that made them", "1000"),
    ("dead_letter.within", Kind::Duration(1_000, DAY), Value(r#""60s""#), Live,
     "The time that dead letters are counted over", r#""60s""#),

    ("orders.enabled", Kind::Bool, Value("false"), Rebuild,
     "Run the order service in this process", "true"),
    ("orders.listen", Kind::Address, Value(r#""127.0.0.1:8080""#), Rebuild,
     "Where its HTTP interface listens", r#""127.0.0.1:8080""#),
    ("orders.keyspace", Kind::Text(value::cql_name), Absent, Rebuild,
     "Where the orders are; absent: the source's keyspace", r#""orders_ks""#),
    ("orders.outbox_ttl", Kind::Duration(1_000, 630_720_000_000), Value(r#""1day""#), Live,
     "How long an outbox row is kept (whole seconds)", r#""1day""#),
    ("orders.request_timeout", Kind::Duration(10, 3_600_000), Value(r#""5s""#), Live,
     "One request takes no longer", r#""5s""#),

    ("admin.enabled", Kind::Bool, Value("true"), Rebuild,
     "Serve health, metrics and the admin interface", "true"),
    ("admin.listen", Kind::Address, Value(r#""127.0.0.1:9180""#), Rebuild,
     "Where it listens; anything but loopback needs a token", r#""127.0.0.1:9180""#),
    ("admin.token", Kind::Secret, Absent, Live,
     "Bearer token for every path but /healthz and /readyz, by PENSTOCK_ADMIN__TOKEN only", r#""…""#),
    ("admin.token_file", Kind::Path, Absent, Live,
     "A file with the token; a newline at its end is not part of it", r#""/run/secrets/penstock""#),
    ("admin.metrics_token", Kind::Secret, Absent, Live,
     "Bearer token that reads /metrics and nothing else, by PENSTOCK_ADMIN__METRICS_TOKEN only", r#""…""#),
    ("admin.metrics_token_file", Kind::Path, Absent, Live,
     "A file with the token for /metrics; a newline at its end is not part of it", r#""/run/secrets/penstock-metrics""#),

    ("health.check_interval", Kind::Duration(10, 3_600_000), Value(r#""10s""#), Live,
     "Time between looks at each component", r#""10s""#),
    ("health.report_interval", Kind::Duration(10, DAY), Value(r#""30s""#), Live,
     "Time between logged reports; a change is logged at once", r#""30s""#),
    ("health.stalled_after", Kind::Duration(100, DAY), Value(r#""30s""#), Live,
     "A component with work that makes no progress for this long is degraded", r#""30s""#),
    ("health.critical", Kind::List(value::stage_name), Value(r#"["source", "sink"]"#), Live,
     "Stages whose being unhealthy makes the system unhealthy; a transform is transform.<name>", r#"["source", "sink"]"#),
    ("health.headroom_degraded", Kind::Float(0.0, 1.0), Value("0.5"), Live,
     "Share of the CDC log's TTL left below which health is degraded", "0.5"),
    ("health.headroom_unhealthy", Kind::Float(0.0, 1.0), Value("0.2"), Live,
     "Share of the CDC log's TTL left below which health is unhealthy; below headroom_degraded", "0.2"),
    ("health.open_breaker", Kind::Choice(&["degraded", "unhealthy"]), Value(r#""degraded""#), Live,
     "What an open breaker makes of its component", r#""unhealthy""#),

    ("shutdown.timeout", Kind::Duration(100, 3_600_000), Value(r#""30s""#), Live,
     "Deadline of the whole drain; past it the process stops with exit code 75", r#""30s""#),

    ("log.filter", Kind::Text(value::log_filter), Value(r#""info""#), Live,
     "Filter directives, as in RUST_LOG", r#""info,penstock::source=debug""#),
    ("log.format", Kind::Choice(&["text", "json"]), Value(r#""text""#), Refused,
     "How log lines look", r#""json""#),

    ("reload.watch", Kind::Bool, Value("true"), Live,
     "Watch the configuration's files, plugins and secrets; SIGHUP and POST /-/reload work regardless", "true"),
    ("reload.poll_interval", Kind::Duration(100, 3_600_000), Value(r#""30s""#), Live,
     "Look this often where no event comes", r#""30s""#),
    ("reload.debounce", Kind::Duration(1, 60_000), Value(r#""100ms""#), Live,
     "Quiet time after an event before loading", r#""100ms""#),

    ("embedded.scylla_listen", Kind::Address, Value(r#""127.0.0.1:0""#), Refused,
     "Where the ScyllaDB stand-in listens; port 0: any", r#""127.0.0.1:9042""#),
    ("embedded.redpanda_listen", Kind::Address, Value(r#""127.0.0.1:0""#), Refused,
     "Where the Redpanda stand-in listens; port 0: any", r#""127.0.0.1:9092""#),
    ("embedded.vnodes", Kind::Int(1, 4096), Value("4"), Refused,
     "CQL streams of the stand-in are laid out as vnodes × shards", "4"),
    ("embedded.shards_per_vnode", Kind::Int(1, 256), Value("2"), Refused,
     "Streams a vnode", "2"),
];

/// The four policy tables; every stage takes them, `[policies]` gives the defaults.
#[rustfmt::skip]
const POLICIES: &[Row] = &[
    ("breaker.failure_threshold", COUNT, Value("5"), Live,
     "Consecutive failures that open the breaker", "5"),
    ("breaker.open_for", Kind::Duration(1, DAY), Value(r#""30s""#), Live,
     "How long it stays open before one probe is let through", r#""30s""#),
    ("breaker.success_threshold", COUNT, Value("3"), Live,
     "Successes in a row that close it", "3"),
    ("retry.initial", Kind::Duration(1, 3_600_000), Value(r#""100ms""#), Live,
     "The first pause, before full jitter", r#""100ms""#),
    ("retry.max", Kind::Duration(1, DAY), Value(r#""30s""#), Live,
     "The longest pause; not below initial", r#""30s""#),
    ("retry.multiplier", Kind::Float(1.0, 100.0), Value("2.0"), Live,
     "Growth of the pause from try to try", "2.0"),
    ("retry.max_attempts", Kind::Int(0, u32::MAX as u64), Value("0"), Live,
     "Tries before giving up; 0: for ever", "0"),
    ("rate_limit", Kind::Rate, Value(r#""off""#), Live,
     "Records a second: \"5000/s\", { per_second = 5000, burst = 10000 } or \"off\"; burst is per_second where not given", r#""5000/s""#),
    ("supervision.strategy", Kind::Choice(&["one_for_one", "one_for_all", "rest_for_one"]), Value(r#""one_for_one""#), Live,
     "Which stages restart when this one crashes", r#""one_for_one""#),
    ("supervision.max_restarts", Kind::Int(0, restart::MOST_RESTARTS as u64), Value("5"), Live,
     "More restarts than this within the time below fail the stage", "5"),
    ("supervision.within", Kind::Duration(1, DAY), Value(r#""60s""#), Live,
     "The time that restarts are counted over", r#""60s""#),
    ("supervision.backoff", Kind::Duration(0, 3_600_000), Value(r#""100ms""#), Live,
     "Pause before the first restart; doubles with each further one", r#""100ms""#),
    ("supervision.on_failed", Kind::Choice(&["isolate", "shutdown"]), Value(r#""isolate""#), Live,
     "What a failed stage does to the rest", r#""isolate""#),
];

/// All keys, policy tables expanded for each stage, in the order in which they are documented.
pub fn all() -> &'static [Key] {
    static ALL: LazyLock<Vec<Key>> = LazyLock::new(|| {
        let key = |path: String, row: &Row, fallback| Key {
            path,
            kind: row.1,
            fallback,
            class: row.3,
            doc: row.4,
            example: row.5,
        };
        let policies = |stage: &str, of: fn(&Row) -> Fallback| {
            POLICIES
                .iter()
                .map(|row| key(format!("{stage}.{}", row.0), row, of(row)))
                .collect::<Vec<_>>()
        };
        let mut all = policies("policies", |row| row.2);
        for (i, row) in KEYS.iter().enumerate() {
            all.push(key(row.0.to_owned(), row, row.2));
            let section = |row: &Row| {
                STAGES
                    .into_iter()
                    .find(|s| row.0.starts_with(&format!("{s}.")))
            };
            let (here, next) = (section(row), KEYS.get(i + 1).and_then(section));
            if let Some(stage) = here.filter(|_| here != next) {
                all.extend(policies(stage, |_| Fallback::Policies));
            }
        }
        all
    });
    &ALL
}

/// The key with this pattern.
pub fn get(pattern: &str) -> Option<&'static Key> {
    all().iter().find(|key| key.path == pattern)
}

/// The pattern of a concrete path: a transform's name becomes `*`.
pub fn pattern(path: &[String]) -> String {
    let mut out: Vec<&str> = path.iter().map(String::as_str).collect();
    if out.len() > 1 && out[0] == "transform" {
        out[1] = "*";
    }
    out.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw;

    /// Where the table is wrong, nothing else can be right.
    #[test]
    fn every_key_is_documented_and_its_default_and_example_are_legal() {
        for key in all() {
            assert!(
                key.doc.len() > 10 && !key.doc.ends_with('.'),
                "{}",
                key.path
            );
            let same = all().iter().filter(|k| k.path == key.path).count();
            assert_eq!(same, 1, "{}", key.path);
            for text in match key.fallback {
                Fallback::Value(default) => vec![default, key.example],
                _ => vec![key.example],
            } {
                let value = raw::from_text(text, false);
                if let Err(fault) = key.kind.decode(&value) {
                    panic!("{} = {text}: {fault:?}", key.path);
                }
            }
            // A value that goes on as a u32 is in its range.
            if let Kind::Int(min, max) = key.kind {
                assert!(min <= max && u32::try_from(max).is_ok(), "{}", key.path);
            }
            // Only secrets are masked, and all of them.
            let steps: Vec<String> = key.path.split('.').map(str::to_owned).collect();
            assert_eq!(
                raw::is_secret(&steps),
                matches!(key.kind, Kind::Secret),
                "{}",
                key.path
            );
        }
    }

    #[test]
    fn each_stage_takes_each_policy_and_inherits_it() {
        for policy in POLICIES {
            assert!(get(&format!("policies.{}", policy.0)).is_some());
            for stage in STAGES {
                let key = get(&format!("{stage}.{}", policy.0)).expect("each stage takes it");
                assert_eq!((key.fallback, key.class), (Fallback::Policies, Class::Live));
            }
        }
    }
}
