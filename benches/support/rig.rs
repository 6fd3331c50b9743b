//! What the benchmarks run beside each other: the stand-ins, each in a process of its own, and contestants.
#![allow(unreachable_pub)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kafka_node::{Cluster, Java, Spec};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::mocking::MockCluster;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::value::CqlTimeuuid;
use uuid::Uuid;

/// Partitions of the outbox table.
pub const KEYS: u64 = 10_000;
pub const PAYLOAD: usize = 250;
/// Rows that were written before it are older than the default of `source.safety_interval`.
pub const SAFE: Duration = Duration::from_millis(1_200);
/// Stream groups.
pub const VNODES: u32 = 4;
/// `/proc/PID/stat` counts in these (Linux: USER_HZ is 100).
const TICKS_PER_SECOND: f64 = 100.0;

pub fn block_on(future: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(future)
}

pub async fn session(node: &str) -> Result<Session> {
    Ok(SessionBuilder::new().known_node(node).build().await?)
}

/// Says where it is, and stays until it is ended.
pub fn stay(address: &str) -> Result<()> {
    println!("{address}");
    std::io::stdout().flush()?;
    // The parent holds the other end; when it goes away, so does this process.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

/// What fills the outbox.
pub const INSERT: &str = "INSERT INTO ks.outbox (aggregate_id, event_id, aggregate_type, event_type, payload, created_at, \
     traceparent) VALUES (?, ?, 'order', 'order.updated', ?, toTimestamp(now()), \
     '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01')";

/// A node with so many stream groups and the outbox table, empty.
pub async fn scylla(vnodes: u32) -> Result<(scylla_double::Node, Arc<Session>, PreparedStatement)> {
    scylla_of(scylla_double::Options {
        vnodes,
        ..Default::default()
    })
    .await
}

/// [`scylla`] with these options.
pub async fn scylla_of(
    options: scylla_double::Options,
) -> Result<(scylla_double::Node, Arc<Session>, PreparedStatement)> {
    let node = scylla_double::Node::start(options).await?;
    let session = Arc::new(session(&node.addr().to_string()).await?);
    for cql in [
        "CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1} \
         AND tablets = {'enabled': false}",
        "CREATE TABLE ks.outbox (aggregate_id uuid, event_id timeuuid, aggregate_type text, event_type text, \
         payload text, created_at timestamp, traceparent text, PRIMARY KEY (aggregate_id, event_id)) \
         WITH cdc = {'enabled': true}",
    ] {
        session.query_unpaged(cql, ()).await?;
    }
    let insert = session.prepare(INSERT).await?;
    Ok((node, session, insert))
}

/// An event id of now.
pub fn event_id() -> CqlTimeuuid {
    CqlTimeuuid::from(Uuid::now_v1(&[1, 2, 3, 4, 5, 6]))
}

/// Writes so many rows, so many at once in a batch, some batches side by side. `place` says of the row by this number
/// which statement its batch is of, and which key it has; `at`, when its batch is written, µs since the epoch, where
/// that is not now.
pub async fn write<'a>(
    session: &Arc<Session>,
    rows: u64,
    at_once: u64,
    payload: usize,
    place: impl Fn(u64) -> (&'a PreparedStatement, u64),
    at: impl Fn(u64) -> Option<i64>,
) -> Result<()> {
    const BATCHES: usize = 16;
    let payload: Arc<str> = "x".repeat(payload).into();
    let mut written = 0;
    let mut under_way = tokio::task::JoinSet::new();
    while written < rows {
        let n = at_once.min(rows - written);
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.set_timestamp(at(written));
        let mut values = Vec::new();
        for i in written..written + n {
            let (insert, key) = place(i);
            batch.append_statement(insert.clone());
            let key = Uuid::from_u128(u128::from(key));
            values.push((key, event_id(), payload.clone()));
        }
        written += n;
        let session = Arc::clone(session);
        under_way.spawn(async move { session.batch(&batch, values).await.map(drop) });
        if under_way.len() >= BATCHES
            && let Some(done) = under_way.join_next().await
        {
            done??;
        }
    }
    while let Some(done) = under_way.join_next().await {
        done??;
    }
    Ok(())
}

pub async fn serve_scylla(rows: u64) -> Result<()> {
    let (node, session, insert) = scylla(VNODES).await?;
    let address = node.addr().to_string();
    // Different partitions in a batch: each row is a write of its own in the log.
    write(
        &session,
        rows,
        16,
        PAYLOAD,
        |i| (&insert, i % KEYS),
        |_| None,
    )
    .await?;
    tokio::task::spawn_blocking(move || stay(&address)).await??;
    drop(node);
    Ok(())
}

pub fn serve_broker() -> Result<()> {
    let mock = MockCluster::new(1)?;
    stay(&mock.bootstrap_servers())
}

/// A process that is ended with this.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

pub fn own(role: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("role").args(role);
    Ok(command)
}

/// Starts a stand-in and waits for its address.
pub fn stand_in(role: &[&str]) -> Result<(Process, String)> {
    let child = own(role)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut process = Process(child);
    let stdout = process.0.stdout.take().context("a pipe")?;
    let mut address = String::new();
    BufReader::new(stdout).read_line(&mut address)?;
    ensure!(!address.is_empty(), "{role:?} did not start");
    Ok((process, address.trim().to_owned()))
}

/// The CPU seconds that a process has used, and the most memory that it had, in bytes.
pub fn used(pid: u32) -> Result<(f64, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no stat")?;
    // utime and stime are fields 14 and 15; the name in brackets is the second.
    let ticks = fields.split(' ').skip(11).take(2);
    let cpu: f64 = ticks.filter_map(|f| f.parse::<f64>().ok()).sum();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next())
        .context("no peak")?;
    Ok((cpu / TICKS_PER_SECOND, peak.parse::<u64>()? * 1024))
}

/// How many records a topic of [`VNODES`] partitions has, by their ends. One request: who asks often asks beside a contestant.
pub fn records(consumer: &BaseConsumer, topic: &str) -> u64 {
    let mut ends = TopicPartitionList::with_capacity(VNODES as usize);
    for partition in 0..VNODES as i32 {
        // A time that means the end (`ListOffsets`, Kafka's protocol).
        ends.add_partition_offset(topic, partition, Offset::End)
            .ok();
    }
    let Ok(ends) = consumer.offsets_for_times(ends, Duration::from_secs(1)) else {
        return 0;
    };
    let end = |e: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match e.offset() {
        Offset::Offset(end) => end.max(0) as u64,
        _ => 0,
    };
    ends.elements().iter().map(end).sum()
}

/// The configuration of the real program on these two, `more` after its tables.
pub fn pipeline(node: &str, brokers: &str, name: &str, delivery: &str, more: &str) -> String {
    let plugin = testkit::root().join("plugins/outbox_router.wasm");
    format!(
        r#"
[pipeline]
name = "{name}"
delivery = "{delivery}"
shards = {VNODES}
[source]
type = "scylla-cdc"
nodes = ["{node}"]
keyspace = "ks"
tables = ["outbox"]
[[transform]]
name = "outbox-router"
plugin = "{plugin}"
settings = {{ topic_prefix = "{name}." }}
[sink]
type = "redpanda"
brokers = ["{brokers}"]
[admin]
enabled = false
{more}
"#,
        plugin = plugin.display()
    )
}

/// The real program with this configuration, which is written to `dir`.
pub fn penstock(dir: &Path, config: &str) -> Result<Command> {
    let path = dir.join("pipeline.toml");
    std::fs::write(&path, config)?;
    let mut command = Command::new(testkit::penstock());
    command.args(["run", "--quiet", "--config"]).arg(path);
    Ok(command)
}

/// Where records go: librdkafka's mock in a process of its own, or a real Kafka.
pub struct Broker {
    pub address: String,
    kafka: Option<(Cluster, tempfile::TempDir)>,
    mock: Option<Process>,
}

impl Broker {
    /// Starts one; it ends with this.
    pub fn start(kafka: bool) -> Result<Self> {
        if !kafka {
            let (mock, address) = stand_in(&["broker"])?;
            return Ok(Self {
                address,
                kafka: None,
                mock: Some(mock),
            });
        }
        kafka_node::available()?;
        let state = testkit::root().join("target/kafka");
        std::fs::create_dir_all(&state)?;
        let dir = tempfile::tempdir()?;
        let spec = Spec {
            heap: "1g".into(),
            java: Java::Served,
            ..Spec::one(kafka_node::jars(&state)?, dir.path().to_owned())
        };
        let cluster = Cluster::start(&spec)?;
        Ok(Self {
            address: cluster.brokers(),
            kafka: Some((cluster, dir)),
            mock: None,
        })
    }

    pub fn is_real(&self) -> bool {
        self.kafka.is_some()
    }

    /// The CPU seconds that it has used.
    pub fn cpu(&self) -> Result<f64> {
        let kafka = self.kafka.as_ref().and_then(|(cluster, _)| cluster.pid(0));
        let pid = kafka.or(self.mock.as_ref().map(|mock| mock.0.id()));
        Ok(used(pid.context("it does not run")?)?.0)
    }

    /// For people.
    pub fn name(&self) -> String {
        match self.is_real() {
            true => format!("Apache Kafka {}", kafka_node::VERSION),
            false => "librdkafka's mock broker".into(),
        }
    }
}

/// Makes a topic, and reads it as committed from its first record on: what comes is there at once.
pub fn read(broker: &Broker, topic: &str) -> Result<BaseConsumer> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &broker.address)
        .set("isolation.level", "read_committed")
        .set("group.id", "bench")
        .set("fetch.wait.max.ms", "10")
        .set("fetch.queue.backoff.ms", "1")
        .create()?;
    make_topic(broker, &consumer, topic)?;
    let mut all = TopicPartitionList::new();
    for partition in 0..VNODES as i32 {
        // By number: who has to ask where the beginning is, of a topic that was just made, asks again after half a second.
        all.add_partition_offset(topic, partition, Offset::Offset(0))?;
    }
    consumer.assign(&all)?;
    Ok(consumer)
}

/// Makes a topic of [`VNODES`] partitions. The mock makes it on the first question about it.
pub fn make_topic(broker: &Broker, consumer: &BaseConsumer, topic: &str) -> Result<()> {
    if broker.is_real() {
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", &broker.address)
            .create()?;
        let new = NewTopic::new(topic, VNODES as i32, TopicReplication::Fixed(1));
        let made = admin.create_topics([&new], &AdminOptions::new());
        let made = tokio::runtime::Runtime::new()?.block_on(made)?;
        for topic in made {
            topic.map_err(|(topic, error)| anyhow::anyhow!("{topic}: {error}"))?;
        }
    }
    consumer.fetch_metadata(Some(topic), Duration::from_secs(5))?;
    Ok(())
}
