//! Penstock as a process, with the stand-ins outside of it.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla_double::{Node, Options};
use uuid::Uuid;

use crate::broker::{Cluster, Seen, read_all, unique};

/// ScyllaDB and Redpanda, or what stands in for them, and a folder with a pipeline.toml.
pub struct World {
    pub node: Node,
    pub cluster: Cluster,
    pub name: String,
    pub dir: tempfile::TempDir,
    pub session: Session,
    insert: PreparedStatement,
}

pub struct Running {
    child: Child,
    pub log: PathBuf,
}

impl World {
    /// With an outbox table, and nothing running yet. `extra` is appended to pipeline.toml.
    pub async fn new(extra: &str) -> Self {
        let options = Options {
            vnodes: 4,
            shards_per_vnode: 2,
            ..Options::default()
        };
        let node = Node::start(options).await.expect("the stand-in starts");
        let session = SessionBuilder::new()
            .known_node_addr(node.addr())
            .build()
            .await
            .expect("a session");
        for cql in [
            "CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}",
            "CREATE TABLE ks.outbox (aggregate_id uuid, event_id timeuuid, aggregate_type text, event_type text, \
             payload text, created_at timestamp, traceparent text, PRIMARY KEY (aggregate_id, event_id)) \
             WITH cdc = {'enabled': true}",
        ] {
            session.query_unpaged(cql, ()).await.expect(cql);
        }
        let insert = "INSERT INTO ks.outbox (aggregate_id, event_id, aggregate_type, event_type, payload) \
                      VALUES (?, ?, 'order', 'order.created', ?)";
        let insert = session.prepare(insert).await.expect("prepared");
        let world = Self {
            node,
            cluster: Cluster::start(),
            name: unique("e2e"),
            dir: tempfile::tempdir().expect("a folder"),
            session,
            insert,
        };
        std::fs::write(world.config(), world.toml(extra)).expect("pipeline.toml");
        world
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("pipeline.toml")
    }

    pub fn topic(&self) -> String {
        format!("{}.order", self.name)
    }

    pub fn toml(&self, extra: &str) -> String {
        format!(
            r#"
[pipeline]
name = "{name}"
delivery = "at-least-once"
shards = 2

[source]
type = "scylla-cdc"
nodes = ["{node}"]
keyspace = "ks"
tables = ["outbox"]
safety_interval = "50ms"
poll_interval = "20ms"

[[transform]]
name = "outbox-router"
plugin = "{plugin}"
settings = {{ topic_prefix = "{name}." }}

[sink]
type = "redpanda"
brokers = ["{brokers}"]

[admin]
listen = "127.0.0.1:0"
{extra}
"#,
            name = self.name,
            node = self.node.addr(),
            plugin = crate::plugins::plugin("outbox-router").display(),
            brokers = self.cluster.brokers,
        )
    }

    /// Writes `n` events of each of `keys`, numbered from `from`, payload `<n>`.
    pub async fn write(&self, keys: &[Uuid], from: u32, n: u32) {
        let mut batch = Batch::new(BatchType::Unlogged);
        for _ in keys {
            batch.append_statement(self.insert.clone());
        }
        for i in from..from + n {
            let values: Vec<_> = keys
                .iter()
                .map(|key| {
                    (
                        *key,
                        scylla::value::CqlTimeuuid::from(event_id()),
                        i.to_string(),
                    )
                })
                .collect();
            self.session.batch(&batch, values).await.expect("written");
        }
    }

    /// Replaces pipeline.toml as an editor does: written aside, then renamed over it.
    pub fn save(&self, text: &str) {
        let aside = self.dir.path().join(".pipeline.toml.new");
        std::fs::write(&aside, text).expect("written");
        std::fs::rename(&aside, self.config()).expect("renamed");
    }

    /// Writes one event of this type.
    pub async fn write_one(&self, key: Uuid, aggregate_type: &str, payload: &str) {
        let cql = "INSERT INTO ks.outbox (aggregate_id, event_id, aggregate_type, event_type, payload) \
                   VALUES (?, ?, ?, 'order.created', ?)";
        let id = scylla::value::CqlTimeuuid::from(event_id());
        let values = (key, id, aggregate_type, payload);
        self.session
            .query_unpaged(cql, values)
            .await
            .expect("written");
    }

    pub fn start(&self, round: u32) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_penstock"));
        command
            .args(["run", "--quiet", "--config"])
            .arg(self.config());
        self.spawn(round, command)
    }

    /// Runs a command that becomes penstock, its output in a log of its own.
    pub fn spawn(&self, round: u32, mut command: Command) -> Running {
        let log = self.dir.path().join(format!("log-{round}"));
        let file = std::fs::File::create(&log).expect("a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a handle"))
            .stderr(file)
            .spawn()
            .expect("penstock starts");
        Running { child, log }
    }

    /// The payload numbers of each key, in the order in which they stand in the topic.
    pub fn seen(&self) -> BTreeMap<String, Vec<u32>> {
        self.seen_in(&self.topic())
    }

    /// As [`Self::seen`], in any topic of numbered events.
    pub fn seen_in(&self, topic: &str) -> BTreeMap<String, Vec<u32>> {
        let mut by_key: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for record in read_all(&self.cluster.brokers, topic) {
            let number = record.text().parse().expect("a numbered payload");
            by_key
                .entry(record.key_text().to_owned())
                .or_default()
                .push(number);
        }
        by_key
    }

    pub fn records(&self) -> Vec<Seen> {
        read_all(&self.cluster.brokers, &self.topic())
    }

    /// Waits until the topic has this many records, repeats not counted, or panics with the log.
    pub fn await_records(&self, n: usize, within: Duration, running: &Running) {
        let deadline = Instant::now() + within;
        loop {
            let records = self.records();
            let distinct: BTreeSet<(&str, &str)> =
                records.iter().map(|r| (r.key_text(), r.text())).collect();
            let have = distinct.len();
            if have >= n {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{have} of {n} records after {within:?}\n{}",
                running.text()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// A version 1 UUID of this moment; unique in the process.
fn event_id() -> Uuid {
    Uuid::now_v1(&[1, 2, 3, 4, 5, 6])
}

impl Running {
    /// Where its admin interface listens now, by its log.
    pub fn admin(&self) -> String {
        let text = self.text();
        let said = "admin interface listens listen=";
        let at = text
            .rfind(said)
            .unwrap_or_else(|| panic!("no admin interface:\n{text}"));
        let rest = &text[at + said.len()..];
        rest.split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How often its log says this.
    pub fn count(&self, what: &str) -> usize {
        self.text().matches(what).count()
    }

    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a line of the log.
    pub fn await_line(&self, what: &str, within: Duration) {
        let deadline = Instant::now() + within;
        while !self.text().contains(what) {
            assert!(
                Instant::now() < deadline,
                "no {what:?} within {within:?}:\n{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status()
            .expect("kill");
        assert!(status.success());
    }

    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "still running after {within:?}:\n{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only this child, which was started here; it may have ended before.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
