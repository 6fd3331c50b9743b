//! Penstock as a process, with the stand-ins outside of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
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
    flags: Vec<String>,
}

pub struct Running {
    child: Child,
    pub log: PathBuf,
    config: PathBuf,
    flags: Vec<String>,
}

/// What a [`World`] is made of where a test wants it otherwise.
#[derive(Default)]
pub struct Setup {
    /// Where the pipeline writes; `None`: a broker of its own.
    pub brokers: Option<String>,
    /// More columns of the outbox table, each with a comma after it.
    pub columns: &'static str,
    /// `source.tables`; empty: the outbox table.
    pub tables: &'static str,
    /// The `[[transform]]` tables; `None`: the outbox router. `{name}` is filled in.
    pub transforms: Option<String>,
    /// Appended to pipeline.toml.
    pub extra: String,
    /// The keyspace lays its streams out by tablets.
    pub tablets: bool,
}

/// How long anything may take that is no part of what a test is about.
pub const LONG: Duration = Duration::from_secs(60);

impl World {
    /// With an outbox table, and nothing running yet. `extra` is appended to pipeline.toml.
    pub async fn new(extra: &str) -> Self {
        Self::with(Setup {
            extra: extra.to_owned(),
            ..Setup::default()
        })
        .await
    }

    pub async fn with(setup: Setup) -> Self {
        let options = Options {
            // Enough for every shard to have keys.
            vnodes: 16,
            shards_per_vnode: 2,
            ..Options::default()
        };
        let node = Node::start(options).await.expect("the stand-in starts");
        let session = SessionBuilder::new()
            .known_node_addr(node.addr())
            .build()
            .await
            .expect("a session");
        let outbox = format!(
            "CREATE TABLE ks.outbox (aggregate_id uuid, event_id timeuuid, aggregate_type text, event_type text, \
             payload text, created_at timestamp, traceparent text, {}PRIMARY KEY (aggregate_id, event_id)) \
             WITH cdc = {{'enabled': true}}",
            setup.columns
        );
        let keyspace = format!(
            "CREATE KEYSPACE ks WITH replication = {{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}} \
             AND tablets = {{'enabled': {}}}",
            setup.tablets
        );
        for cql in [&keyspace, &outbox] {
            session.query_unpaged(cql.as_str(), ()).await.expect(cql);
        }
        let insert = "INSERT INTO ks.outbox (aggregate_id, event_id, aggregate_type, event_type, payload) \
                      VALUES (?, ?, 'order', 'order.created', ?)";
        let insert = session.prepare(insert).await.expect("prepared");
        let cluster = match &setup.brokers {
            Some(brokers) => Cluster {
                brokers: brokers.clone(),
            },
            None => Cluster::start(),
        };
        let world = Self {
            node,
            cluster,
            name: unique("e2e"),
            dir: tempfile::tempdir().expect("a folder"),
            session,
            insert,
            flags: Vec::new(),
        };
        std::fs::write(world.config(), world.toml(&setup)).expect("pipeline.toml");
        world
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("pipeline.toml")
    }

    pub fn topic(&self) -> String {
        format!("{}.order", self.name)
    }

    fn toml(&self, setup: &Setup) -> String {
        // Built for those who want it.
        let router = || {
            format!(
                "[[transform]]\nname = \"outbox-router\"\nplugin = \"{}\"\nsettings = {{ topic_prefix = \"{{name}}.\" }}",
                crate::plugins::plugin("outbox-router").display()
            )
        };
        let transforms = setup.transforms.clone().unwrap_or_else(router);
        let tables = if setup.tables.is_empty() {
            "outbox"
        } else {
            setup.tables
        };
        format!(
            r#"
[pipeline]
name = "{name}"
shards = 2

[source]
type = "scylla-cdc"
nodes = ["{node}"]
keyspace = "ks"
tables = ["{tables}"]
safety_interval = "50ms"
poll_interval = "20ms"

{transforms}

[sink]
type = "redpanda"
brokers = ["{brokers}"]

[admin]
listen = "127.0.0.1:0"
{extra}
"#,
            name = self.name,
            node = self.node.addr(),
            transforms = transforms.replace("{name}", &self.name),
            brokers = self.cluster.brokers.replace(',', "\", \""),
            extra = setup.extra,
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

    /// Sets a key for whatever is started from now on, by `--set`.
    pub fn set(&mut self, key: &str, value: impl std::fmt::Display) {
        self.flags.push(format!("--set={key}={value}"));
    }

    /// Replaces pipeline.toml as an editor does: written aside, then renamed over it.
    pub fn save(&self, text: &str) {
        let aside = self.dir.path().join(".pipeline.toml.new");
        std::fs::write(&aside, text).expect("written");
        std::fs::rename(&aside, self.config()).expect("renamed");
    }

    /// Writes one event of this type.
    pub async fn write_one(&self, key: Uuid, aggregate_type: &str, payload: &str) {
        self.try_write_one(key, aggregate_type, payload)
            .await
            .expect("written");
    }

    /// … if the database takes it.
    pub async fn try_write_one(
        &self,
        key: Uuid,
        aggregate_type: &str,
        payload: &str,
    ) -> Result<(), scylla::errors::ExecutionError> {
        let cql = "INSERT INTO ks.outbox (aggregate_id, event_id, aggregate_type, event_type, payload) \
                   VALUES (?, ?, ?, 'order.created', ?)";
        let id = scylla::value::CqlTimeuuid::from(event_id());
        let values = (key, id, aggregate_type, payload);
        self.session.query_unpaged(cql, values).await?;
        Ok(())
    }

    /// What is set for whatever is started.
    pub fn flags(&self) -> &[String] {
        &self.flags
    }

    pub fn start(&self, round: u32) -> Running {
        self.start_with(round, &[])
    }

    /// With fault points in force, as `FAILPOINTS` has them.
    pub fn start_faulty(&self, round: u32, faults: &str) -> Running {
        self.start_with(round, &[("FAILPOINTS", faults)])
    }

    pub fn start_with(&self, round: u32, environment: &[(&str, &str)]) -> Running {
        let log = self.dir.path().join(format!("log-{round}"));
        Running::start_with(&self.config(), &log, &self.flags, environment)
    }

    /// Runs a command that becomes penstock, its output in a log of its own.
    pub fn spawn(&self, round: u32, command: Command) -> Running {
        let log = self.dir.path().join(format!("log-{round}"));
        Running::spawn(&self.config(), &log, &self.flags, command)
    }

    /// With the order service on, the tables that it needs made, and its outbox read. `more` is appended to its table of
    /// pipeline.toml.
    pub async fn with_orders(more: &str) -> Self {
        let world = Self::with(Setup {
            tables: "outbox_messages",
            extra: format!("[orders]\nenabled = true\nlisten = \"127.0.0.1:0\"\n{more}"),
            ..Setup::default()
        })
        .await;
        world.init_schema();
        world
    }

    /// Makes the tables that the order service needs, where they are missing.
    pub fn init_schema(&self) {
        let (code, said) = self.penstock(&["init-schema"]);
        assert_eq!(code, Some(0), "{said}");
    }

    /// Runs `penstock <args>` with this pipeline's settings: its exit code, and all that it printed.
    pub fn penstock(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(crate::penstock())
            .args(args)
            .arg("--config")
            .arg(self.config())
            .args(&self.flags)
            .output()
            .expect("penstock starts");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (output.status.code(), text)
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
    /// Runs the pipeline of a file; what it says goes to `log`.
    pub fn start(config: &Path, log: &Path) -> Self {
        Self::start_with(config, log, &[], &[])
    }

    fn start_with(
        config: &Path,
        log: &Path,
        flags: &[String],
        environment: &[(&str, &str)],
    ) -> Self {
        let mut command = Command::new(crate::penstock());
        command
            .args(["run", "--quiet", "--config"])
            .arg(config)
            .args(flags)
            .envs(environment.iter().copied());
        Self::spawn(config, log, flags, command)
    }

    /// Runs a command that becomes penstock; what it says goes to `log`.
    pub fn spawn(config: &Path, log: &Path, flags: &[String], mut command: Command) -> Self {
        let file = std::fs::File::create(log).expect("a log file");
        let child = command
            // To name every frame of a program of this size takes a busy machine a second, for which a test takes it to hang; the
            // panic's place is told without.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a handle"))
            .stderr(file)
            .spawn()
            .expect("penstock starts");
        Self {
            child,
            log: log.to_owned(),
            config: config.to_owned(),
            flags: flags.to_vec(),
        }
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended; `None`: it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait")
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

    /// The address that the log names in this line, the last time that it is there.
    fn address(&self, line: &str) -> String {
        self.await_line(line, LONG);
        let text = self.text();
        let at = text.rfind(line).expect("the line is there");
        let line = text[at..].lines().next().unwrap_or_default();
        // As text or as JSON.
        let fields = line.split(['=', ' ', '"', ',', '}']);
        let mut after = fields.skip_while(|field| *field != "listen").skip(1);
        let address = after.find(|field| field.contains(':') && field.len() > 1);
        address.expect("a field listen").to_owned()
    }

    /// The admin interface's address.
    pub fn admin(&self) -> String {
        self.address("admin interface listens")
    }

    /// The order service's address.
    pub fn orders(&self) -> String {
        self.address("order service listens")
    }

    /// All that `/metrics` says, by series.
    pub async fn metrics(&self) -> Metrics {
        let answer = reqwest::get(format!("http://{}/metrics", self.admin()))
            .await
            .expect("an answer");
        let text = answer.text().await.expect("text");
        let series = text.lines().filter(|line| !line.starts_with('#'));
        Metrics(
            series
                .filter_map(|line| line.rsplit_once(' '))
                .map(|(series, value)| (series.to_owned(), value.parse().expect("a number")))
                .collect(),
        )
    }

    /// Waits until the metrics are as wanted, and returns them.
    pub async fn await_metrics(
        &self,
        what: &str,
        within: Duration,
        mut holds: impl FnMut(&Metrics) -> bool,
    ) -> Metrics {
        let deadline = Instant::now() + within;
        loop {
            let metrics = self.metrics().await;
            if holds(&metrics) {
                return metrics;
            }
            assert!(
                Instant::now() < deadline,
                "not within {within:?}: {what}\n{}",
                self.text()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Resident memory, bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        kib.and_then(|kib| kib.parse::<u64>().ok())
            .expect("VmRSS in kB")
            * 1024
    }

    /// Runs `penstock <args>` against this process: its exit code, and all that it printed.
    pub fn penstock(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.beside(args);
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    /// … and what it answered, without what it says besides: of work that takes its time, as on a busy machine, how far it is.
    pub fn answer(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.beside(args);
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    fn beside(&self, args: &[&str]) -> Output {
        Command::new(crate::penstock())
            .args(args)
            .arg("--config")
            .arg(&self.config)
            .args(&self.flags)
            .arg(format!("--set=admin.listen={}", self.admin()))
            .output()
            .expect("penstock starts")
    }

    /// Asks it to drain, and demands that it ends well.
    pub fn stop_cleanly(mut self) -> String {
        self.signal("-TERM");
        let status = self.wait(LONG);
        assert_eq!(status.code(), Some(0), "{}", self.text());
        self.text()
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

/// One scrape.
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// The sum of a family's series that have all these labels (`stage="sink"`).
    pub fn sum(&self, family: &str, labels: &[&str]) -> f64 {
        let of_family = |series: &&String| {
            series
                .strip_prefix(family)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
        };
        self.0
            .iter()
            .filter(|(series, _)| of_family(series))
            .filter(|(series, _)| labels.iter().all(|label| series.contains(label)))
            .map(|(_, value)| value)
            .sum()
    }

    pub fn stage(&self, family: &str, stage: &str) -> f64 {
        self.sum(family, &[&format!("stage=\"{stage}\"")])
    }
}

/// In each key's records: every number up to `n` is there, and nothing older comes for the first time after
/// something newer. Returns how many records were repeats.
pub fn complete_and_ordered(seen: &BTreeMap<String, Vec<u32>>, keys: &[Uuid], n: u32) -> usize {
    let mut repeats = 0;
    for key in keys {
        let numbers = seen
            .get(&key.to_string())
            .unwrap_or_else(|| panic!("nothing of {key}"));
        let mut next = 0;
        for &number in numbers {
            assert!(
                number <= next,
                "{key}: {number} came before {next}: lost or out of order"
            );
            if number == next {
                next += 1
            } else {
                repeats += 1
            }
        }
        assert_eq!(next, n, "{key}: events are missing at the end");
    }
    repeats
}

/// Some keys.
pub fn keys(n: usize) -> Vec<Uuid> {
    (0..n).map(|_| Uuid::new_v4()).collect()
}

/// A number from the environment: what the long form of a test asks for.
pub fn asked(variable: &str, otherwise: u32) -> u32 {
    match std::env::var(variable) {
        Ok(n) => n
            .parse()
            .unwrap_or_else(|_| panic!("{variable}={n:?} is no number")),
        Err(_) => otherwise,
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only this child, which was started here; it may have ended before.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
