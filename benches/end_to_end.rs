//! From ScyllaDB's log to an acknowledgement by the broker: Penstock beside a bare loop and beside the obvious
//! program, on the same rows.
//!
//! `cargo xtask bench end_to_end [rows] [rounds]`. The stand-ins run in processes of their own and are filled
//! before; so does each contestant, in turns, so that a disturbance hits all alike:
//!
//! - *bare loop*: raw rows of the `scylla` crate → `rdkafka` with a counter of acknowledgements. No plugin, no
//!   checkpoint, no policy, and no headers, or headers as long as Penstock's;
//! - *one send a row*: the `scylla-cdc` crate, and for each row a `FutureProducer` send that is awaited
//!   (`linger.ms = 0`, which suits it best). It is stopped after [`SEED_BOUND`], its rate counts;
//! - *penstock*: the real program with `outbox_router.wasm`, checkpoints and policies at their defaults.
//!
//! A run's time is from the start of the process to the last record in the topic, as the broker counts them.
//! CPU and peak memory are the contestant's own (`/proc`, Linux). The stand-ins use the same cores, so rates
//! are of everything together; what counts is the ratios.
#![allow(missing_docs)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseRecord, FutureProducer, FutureRecord, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode as Code;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::deserialize::row::ColumnIterator;
use scylla::response::{PagingState, PagingStateResponse};
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::value::CqlTimeuuid;
use scylla_cdc::consumer::{CDCRow, Consumer, ConsumerFactory};
use scylla_cdc::log_reader::CDCLogReaderBuilder;
use testkit::acks::Acks;
use uuid::Uuid;

const ROWS: u64 = 400_000;
const ROUNDS: usize = 5;
/// Partitions of the outbox table.
const KEYS: u64 = 10_000;
const PAYLOAD: usize = 250;
/// Rows a page, as Penstock's default has it.
const PAGE: i32 = 1_000;
/// Stream groups that the bare loop reads at once: all.
const VNODES: u32 = 4;
/// The slow contestant is not waited for longer than this.
const SEED_BOUND: Duration = Duration::from_secs(15);
/// … and no contestant longer than this.
const BOUND: Duration = Duration::from_secs(180);
/// `/proc/PID/stat` counts in these (Linux: USER_HZ is 100).
const TICKS_PER_SECOND: f64 = 100.0;

const CONTESTANTS: [&str; 4] = ["bare", "bare-headers", "penstock", "seed"];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let role: Vec<&str> = args.iter().map(String::as_str).collect();
    match role[..] {
        ["role", "scylla", rows] => block_on(serve_scylla(rows.parse()?)),
        ["role", "broker"] => serve_broker(),
        ["role", "bare", node, brokers, topic] => block_on(bare(node, brokers, topic, false)),
        ["role", "bare-headers", node, brokers, topic] => {
            block_on(bare(node, brokers, topic, true))
        }
        ["role", "seed", node, brokers, topic] => block_on(seed(node, brokers, topic)),
        _ => {
            let mut numbers = args.iter().filter_map(|a| a.parse::<u64>().ok());
            // `cargo test` runs benches too, with this argument, to see that they work.
            let (rows, rounds) = if role.contains(&"--test") {
                (2_000, 1)
            } else {
                (
                    numbers.next().unwrap_or(ROWS),
                    numbers.next().map_or(ROUNDS, |n| n as usize),
                )
            };
            compare(rows, rounds)
        }
    }
}

fn block_on(future: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(future)
}

// ---- The stand-ins, each in a process of its own ----

/// Says where it is, and stays until it is ended.
fn stay(address: &str) -> Result<()> {
    println!("{address}");
    std::io::stdout().flush()?;
    // The parent holds the other end; when it goes away, so does this process.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

async fn serve_scylla(rows: u64) -> Result<()> {
    let options = scylla_double::Options {
        vnodes: VNODES,
        ..Default::default()
    };
    let node = scylla_double::Node::start(options).await?;
    let address = node.addr().to_string();
    let session = Arc::new(session(&address).await?);
    for cql in [
        "CREATE KEYSPACE ks WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1} \
         AND tablets = {'enabled': false}",
        "CREATE TABLE ks.outbox (aggregate_id uuid, event_id timeuuid, aggregate_type text, event_type text, \
         payload text, created_at timestamp, traceparent text, PRIMARY KEY (aggregate_id, event_id)) \
         WITH cdc = {'enabled': true}",
    ] {
        session.query_unpaged(cql, ()).await?;
    }
    let insert = "INSERT INTO ks.outbox (aggregate_id, event_id, aggregate_type, event_type, payload, created_at, \
                  traceparent) VALUES (?, ?, 'order', 'order.updated', ?, toTimestamp(now()), \
                  '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01')";
    let insert = session.prepare(insert).await?;
    let payload: String = "x".repeat(PAYLOAD);
    // Different partitions in a batch: each row is a write of its own in the log.
    const TOGETHER: u64 = 16;
    let mut written = 0;
    let mut under_way = tokio::task::JoinSet::new();
    while written < rows {
        let n = TOGETHER.min(rows - written);
        let mut batch = Batch::new(BatchType::Unlogged);
        let mut values = Vec::new();
        for i in written..written + n {
            batch.append_statement(insert.clone());
            let event = CqlTimeuuid::from(Uuid::now_v1(&[1, 2, 3, 4, 5, 6]));
            values.push((
                Uuid::from_u128(u128::from(i % KEYS)),
                event,
                payload.clone(),
            ));
        }
        written += n;
        let session = Arc::clone(&session);
        under_way.spawn(async move { session.batch(&batch, values).await.map(drop) });
        if under_way.len() >= 32
            && let Some(done) = under_way.join_next().await
        {
            done??;
        }
    }
    while let Some(done) = under_way.join_next().await {
        done??;
    }
    tokio::task::spawn_blocking(move || stay(&address)).await??;
    drop(node);
    Ok(())
}

fn serve_broker() -> Result<()> {
    let mock = MockCluster::new(1)?;
    stay(&mock.bootstrap_servers())
}

// ---- The contestants ----

async fn session(node: &str) -> Result<Session> {
    Ok(SessionBuilder::new().known_node(node).build().await?)
}

fn producer_config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "0")
        .set("partitioner", "murmur2_random");
    config
}

/// Stays, so that its memory and its time can be read.
async fn done() -> Result<()> {
    tokio::time::sleep(BOUND).await;
    Ok(())
}

async fn bare(node: &str, brokers: &str, topic: &str, headers: bool) -> Result<()> {
    let session = Arc::new(session(node).await?);
    let generations = session
        .query_unpaged(
            "SELECT time FROM system_distributed.cdc_generation_timestamps WHERE key = 'timestamps'",
            (),
        )
        .await?
        .into_rows_result()?;
    let (generation,) = generations.first_row::<(scylla::value::CqlTimestamp,)>()?;
    let groups = session
        .query_unpaged(
            "SELECT streams FROM system_distributed.cdc_streams_descriptions_v2 WHERE time = ?",
            (generation,),
        )
        .await?
        .into_rows_result()?;
    let mut statement = session
        .prepare(
            "SELECT * FROM ks.outbox_scylla_cdc_log WHERE \"cdc$stream_id\" IN ? AND \"cdc$time\" >= minTimeuuid(0) \
             AND \"cdc$time\" < now() BYPASS CACHE",
        )
        .await?;
    statement.set_page_size(PAGE);
    let producer: Arc<ThreadedProducer<Acks>> =
        Arc::new(producer_config(brokers).create_with_context(Acks::default())?);
    let mut tasks = tokio::task::JoinSet::new();
    for row in groups.rows::<(Vec<Vec<u8>>,)>()? {
        let (streams,) = row?;
        let (session, statement, producer) = (session.clone(), statement.clone(), producer.clone());
        let topic = topic.to_owned();
        tasks.spawn(async move {
            bare_group(session, statement, streams, producer, &topic, headers).await
        });
    }
    let mut sent = 0;
    while let Some(group) = tasks.join_next().await {
        sent += group??;
    }
    use rdkafka::producer::Producer as _;
    while producer.client().context().count() < sent {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    done().await
}

async fn bare_group(
    session: Arc<Session>,
    statement: PreparedStatement,
    streams: Vec<Vec<u8>>,
    producer: Arc<ThreadedProducer<Acks>>,
    topic: &str,
    headers: bool,
) -> Result<u64> {
    let streams = Arc::new(streams);
    let page = |paging: PagingState| {
        let (session, statement, streams) = (session.clone(), statement.clone(), streams.clone());
        tokio::spawn(async move {
            session
                .execute_single_page(&statement, (&*streams,), paging)
                .await
        })
    };
    let mut next = Some(page(PagingState::start()));
    let mut sent = 0;
    while let Some(asked) = next.take() {
        let (result, paging) = asked.await??;
        // The next page comes while this one is worked on.
        if let PagingStateResponse::HasMorePages { state } = paging {
            next = Some(page(state));
        }
        let rows = result.into_rows_result()?;
        let at = |name: &str| {
            let specs = rows.column_specs();
            specs
                .iter()
                .position(|s| s.name() == name)
                .with_context(|| format!("no column {name}"))
        };
        let (id_at, payload_at) = (at("aggregate_id")?, at("payload")?);
        for row in rows.rows::<ColumnIterator<'_, '_>>()? {
            let (mut id, mut payload) = (None, None);
            for (i, column) in row?.enumerate() {
                let slice = column?.slice.map(|s| s.as_slice());
                if i == id_at {
                    id = slice;
                } else if i == payload_at {
                    payload = slice;
                }
            }
            let mut key = [0; 36];
            let id = Uuid::from_slice(id.context("a key")?)?;
            id.hyphenated().encode_lower(&mut key);
            let mut out = headers.then(|| {
                let header = |key, value| Header {
                    key,
                    value: Some(value),
                };
                OwnedHeaders::new_with_capacity(6)
                    .insert(header("penstock-position", &[b'p'; 71][..]))
                    .insert(header("penstock-table", b"ks.outbox"))
                    .insert(header("penstock-operation", b"insert"))
                    .insert(header("event-id", &[b'e'; 36]))
                    .insert(header("event-type", b"order.updated"))
                    .insert(header("traceparent", &[b't'; 55]))
            });
            loop {
                let mut record = BaseRecord::<[u8], [u8]>::to(topic).key(&key[..]);
                record.payload = payload;
                record.headers = out.take();
                match producer.send(record) {
                    Ok(()) => break,
                    Err((KafkaError::MessageProduction(Code::QueueFull), back)) => {
                        out = back.headers;
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    Err((error, _)) => return Err(error.into()),
                }
            }
            sent += 1;
        }
    }
    Ok(sent)
}

/// One awaited send a row.
#[derive(Clone)]
struct Seed {
    producer: FutureProducer,
    topic: Arc<str>,
}

#[async_trait]
impl ConsumerFactory for Seed {
    async fn new_consumer(&self) -> Box<dyn Consumer> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Consumer for Seed {
    async fn consume_cdc(&mut self, mut row: CDCRow<'_>) -> Result<()> {
        let id = row
            .take_value("aggregate_id")
            .and_then(|v| v.as_uuid())
            .context("a key")?;
        let payload = row
            .take_value("payload")
            .and_then(|v| v.into_string())
            .unwrap_or_default();
        let key = id.to_string();
        let record = FutureRecord::to(&self.topic).key(&key).payload(&payload);
        let sent = self.producer.send(record, Duration::from_secs(10)).await;
        sent.map_err(|(error, _)| error)?;
        Ok(())
    }
}

async fn seed(node: &str, brokers: &str, topic: &str) -> Result<()> {
    let session = Arc::new(session(node).await?);
    let seed = Seed {
        producer: producer_config(brokers).set("linger.ms", "0").create()?,
        topic: topic.into(),
    };
    let now = std::time::UNIX_EPOCH.elapsed()?;
    let (_reader, read) = CDCLogReaderBuilder::new()
        .session(session)
        .keyspace("ks")
        .table_name("outbox")
        .start_timestamp(now.saturating_sub(Duration::from_secs(3600)))
        .end_timestamp(now)
        .window_size(Duration::from_secs(3600))
        .safety_interval(Duration::from_millis(10))
        .sleep_interval(Duration::from_millis(1))
        .consumer_factory(Arc::new(seed))
        .build()
        .await?;
    read.await?;
    done().await
}

// ---- The comparison ----

/// A process that is ended with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn own(role: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("role").args(role);
    Ok(command)
}

/// Starts a stand-in and waits for its address.
fn stand_in(role: &[&str]) -> Result<(Process, String)> {
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
fn used(pid: u32) -> Result<(f64, u64)> {
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

fn records(consumer: &BaseConsumer, topic: &str) -> u64 {
    let second = Duration::from_secs(1);
    let Ok(metadata) = consumer.fetch_metadata(Some(topic), second) else {
        return 0;
    };
    let partitions = metadata
        .topics()
        .first()
        .map_or(0, |t| t.partitions().len());
    (0..partitions as i32)
        .filter_map(|p| consumer.fetch_watermarks(topic, p, second).ok())
        .map(|(_, high)| high.max(0) as u64)
        .sum()
}

#[derive(Clone, Debug)]
struct Run {
    records: u64,
    first: f64,
    seconds: f64,
    cpu: f64,
    peak: u64,
}

impl Run {
    fn rate(&self) -> f64 {
        self.records as f64 / self.seconds
    }
}

/// Runs a contestant until `rows` records are in its topic, or its bound is reached.
fn run(name: &str, node: &str, brokers: &str, rows: u64, round: usize, dir: &Path) -> Result<Run> {
    let prefix = format!("bench{round}-{name}");
    let topic = format!("{prefix}.order");
    let mut command = if name == "penstock" {
        let config = dir.join("pipeline.toml");
        std::fs::write(&config, pipeline(node, brokers, &prefix))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_penstock"));
        command.args(["run", "--quiet", "--config"]).arg(config);
        command
    } else {
        own(&[name, node, brokers, &topic])?
    };
    // librdkafka would make the topic on the first question about it; so that all begin alike, it is there.
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "bench")
        .create()?;
    records(&consumer, &topic);
    let log = std::fs::File::create(dir.join("log"))?;
    let began = Instant::now();
    let child = command
        .stdout(log.try_clone()?)
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()?;
    let mut process = Process(child);
    let bound = if name == "seed" { SEED_BOUND } else { BOUND };
    let (mut first, mut have) = (0.0, 0);
    while have < rows && began.elapsed() < bound {
        std::thread::sleep(Duration::from_millis(20));
        have = records(&consumer, &topic);
        if have > 0 && first == 0.0 {
            first = began.elapsed().as_secs_f64();
        }
        if let Some(status) = process.0.try_wait()? {
            let said = std::fs::read_to_string(dir.join("log"))?;
            anyhow::bail!("{name} ended with {status}:\n{said}");
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    ensure!(
        have == rows || (name == "seed" && have > 0),
        "{name}: {have} of {rows} records after {seconds:.0} s"
    );
    let (cpu, peak) = used(process.0.id())?;
    Ok(Run {
        records: have,
        first,
        seconds,
        cpu,
        peak,
    })
}

fn pipeline(node: &str, brokers: &str, name: &str) -> String {
    let plugin = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/outbox_router.wasm");
    format!(
        r#"
[pipeline]
name = "{name}"
delivery = "at-least-once"
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
"#,
        plugin = plugin.display()
    )
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn compare(rows: u64, rounds: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let filling = Instant::now();
    let (_scylla, node) = stand_in(&["scylla", &rows.to_string()])?;
    let (_broker, brokers) = stand_in(&["broker"])?;
    println!(
        "{rows} rows, 7 columns, {PAYLOAD} B of payload, {VNODES} stream groups, filled in {:.0} s; {rounds} rounds, medians",
        filling.elapsed().as_secs_f64()
    );
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); CONTESTANTS.len()];
    for round in 0..rounds {
        for (runs, name) in runs.iter_mut().zip(CONTESTANTS) {
            // The slow one is not worth more than one round.
            if name != "seed" || round == 0 {
                runs.push(run(name, &node, &brokers, rows, round, dir.path())?);
            }
        }
    }
    let of = |name: &str| {
        let at = CONTESTANTS.iter().position(|c| *c == name).unwrap_or(0);
        &runs[at]
    };
    println!(
        "\n| | records | first record s | seconds | records/s | CPU µs a record | peak MB | of the bare loop | … with headers | × one send a row |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let seed = median(of("seed").iter().map(Run::rate));
    for (name, own) in CONTESTANTS.iter().zip(&runs) {
        // Pair by pair, so that what the machine did meanwhile cancels out.
        let against = |base: &[Run]| {
            median(
                own.iter()
                    .zip(base.iter())
                    .map(|(a, b)| a.rate() / b.rate()),
            )
        };
        println!(
            "| {name} | {} | {:.2} | {:.2} | {:.0} | {:.2} | {:.0} | {:.2} | {:.2} | {:.1} |",
            own[0].records,
            median(own.iter().map(|r| r.first)),
            median(own.iter().map(|r| r.seconds)),
            median(own.iter().map(Run::rate)),
            median(own.iter().map(|r| r.cpu * 1e6 / r.records as f64)),
            median(own.iter().map(|r| r.peak as f64 / 1e6)),
            against(of("bare")),
            against(of("bare-headers")),
            median(own.iter().map(Run::rate)) / seed,
        );
    }
    Ok(())
}
