//! From a write to ScyllaDB until a reader of committed records has it: percentiles, by delivery, by rate and by
//! `source.safety_interval`.
//!
//! `cargo xtask bench latency [full rate] [seconds a line] [--mock]`. The node, the writer, the real program and an Apache
//! Kafka (Java and Maven are needed; `--mock`: librdkafka's mock) run in processes of their own. Every row says when its
//! write was sent, and which of its key's it is, so a line tells also what was lost, what came twice, and what came out of
//! order. The writers are several, busy, and give their own timestamps, as the drivers of Java and Python do: that is what
//! makes writes late. What is due of one moment they write in batches of a partition each.
//!
//! The *full rate* is found by letting the writers write as fast as they can for a while: it is what comes through while
//! they do. The node, the writers, the broker, the reader and the program share the machine, so it is the machine's, not the
//! program's. How idle the processors were while a line's rows were written stands beside it: where they were not, rows wait for
//! a processor.
#![allow(missing_docs)]

#[allow(dead_code)]
#[path = "support/machine.rs"]
mod machine;
#[allow(dead_code)]
#[path = "support/rig.rs"]
mod rig;

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rdkafka::Message;
use rdkafka::message::Headers as _;
use rig::{
    Broker, INSERT, PAYLOAD, Process, VNODES, block_on, event_id, own, penstock, pipeline, read,
    scylla, serve_broker, stand_in, stay,
};
use scylla::client::session_builder::SessionBuilder;
use scylla::policies::timestamp_generator::MonotonicTimestampGenerator;
use scylla::statement::batch::{Batch, BatchType};
use tokio::task::JoinSet;
use uuid::Uuid;

const SECONDS: u64 = 12;
/// What is written in the first of them is not counted: connections are made, code is paged in.
const WARM: Duration = Duration::from_secs(2);
/// Keys a writer.
const KEYS: u64 = 500;
const WRITERS: usize = 4;
/// A writer's rows of one moment.
const TICK: Duration = Duration::from_millis(5);
/// … of which so many are in a batch, all of one partition.
const BATCH: u64 = 16;
/// Batches of a writer that are under way at a time.
const UNDER_WAY: usize = 32;
/// Between looks at the processes.
const LOOK: Duration = Duration::from_millis(20);
/// What is not there by then is lost.
const PATIENCE: Duration = Duration::from_secs(15);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let role: Vec<&str> = args.iter().map(String::as_str).collect();
    match role[..] {
        ["role", "node"] => block_on(serve_node()),
        ["role", "broker"] => serve_broker(),
        ["role", "write", node, writer, rate, seconds] => block_on(write(
            node,
            writer.parse()?,
            rate.parse()?,
            Duration::from_secs(seconds.parse()?),
        )),
        _ => {
            let mut numbers = args.iter().filter_map(|a| a.parse::<u64>().ok());
            if role.contains(&"--test") {
                return table(Some(200), 3, false, true);
            }
            let full = numbers.next().filter(|n| *n > 0);
            let seconds = numbers.next().unwrap_or(SECONDS);
            table(full, seconds, !role.contains(&"--mock"), false)
        }
    }
}

async fn serve_node() -> Result<()> {
    let (node, session, _) = scylla(VNODES).await?;
    let address = node.addr().to_string();
    tokio::task::spawn_blocking(move || stay(&address)).await??;
    drop((node, session));
    Ok(())
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_micros() as u64)
}

/// When it was sent, whose it is, and the how manieth of its key.
fn payload(key: u64, nth: u64) -> String {
    let head = format!("{:020}:{key:020}:{nth:020}:", now_us());
    format!("{head:x<PAYLOAD$}")
}

/// Writes at this rate (0: as fast as is taken), then prints how many rows it wrote.
async fn write(node: &str, writer: u64, rate: u64, time: Duration) -> Result<()> {
    let session = SessionBuilder::new()
        .known_node(node)
        .timestamp_generator(Arc::new(MonotonicTimestampGenerator::new()))
        .build()
        .await?;
    let session = Arc::new(session);
    let insert = session.prepare(INSERT).await?;
    let mut keys = (writer * KEYS..(writer + 1) * KEYS).cycle();
    let mut written: HashMap<u64, u64> = HashMap::new();
    let (mut row, mut under_way) = (0, JoinSet::new());
    let began = Instant::now();
    while began.elapsed() < time {
        let due = match rate {
            0 => row + BATCH,
            rate => (began.elapsed().as_secs_f64() * rate as f64) as u64,
        };
        while row < due {
            let n = (due - row).min(BATCH);
            let key = keys.next().context("a key")?;
            let nth = written.entry(key).or_default();
            let mut batch = Batch::new(BatchType::Unlogged);
            let mut values = Vec::new();
            for nth in *nth..*nth + n {
                batch.append_statement(insert.clone());
                let id = Uuid::from_u128(u128::from(key));
                values.push((id, event_id(), payload(key, nth)));
            }
            (row, *nth) = (row + n, *nth + n);
            let session = session.clone();
            under_way.spawn(async move { session.batch(&batch, values).await.map(drop) });
            while under_way.len() >= UNDER_WAY
                && let Some(done) = under_way.join_next().await
            {
                done??;
            }
        }
        if rate > 0 {
            tokio::time::sleep(TICK).await;
        }
    }
    while let Some(done) = under_way.join_next().await {
        done??;
    }
    println!("{row}");
    Ok(())
}

/// What a line is of.
struct Case {
    what: String,
    delivery: &'static str,
    /// `source.*` keys.
    source: String,
    rate: u64,
}

#[derive(Default)]
struct Seen {
    /// µs from the write to the reader, of what was written when all was warm.
    took: Vec<u64>,
    rows: u64,
    repeated: u64,
    disordered: u64,
    late: u64,
    /// By key: those that have come.
    keys: HashMap<u64, Came>,
    /// How many had come, and when, after the warm-up.
    warm: Option<Moment>,
    /// … and when the writers ended.
    over: Option<Moment>,
}

#[derive(Clone, Copy)]
struct Moment {
    rows: u64,
    at: Instant,
    /// Seconds that the processors had stood idle by then, all together, where the system tells it.
    idle: Option<f64>,
}

impl Moment {
    fn now(rows: u64) -> Self {
        Self {
            rows,
            at: Instant::now(),
            idle: idle(),
        }
    }
}

/// What has come of a key.
#[derive(Default)]
struct Came {
    last: Option<u64>,
    all: HashSet<u64>,
}

impl Seen {
    fn take(&mut self, payload: &[u8], late: bool, warm_us: u64) -> Result<()> {
        let now = now_us();
        let text = std::str::from_utf8(payload)?;
        let mut parts = text.split(':').map(str::parse::<u64>);
        let mut next = || parts.next().context("a part")?.context("a number");
        let (at, key, nth) = (next()?, next()?, next()?);
        let came = self.keys.entry(key).or_default();
        if !came.all.insert(nth) {
            self.repeated += 1;
            return Ok(());
        }
        self.disordered += u64::from(came.last.is_some_and(|last| last > nth));
        came.last = Some(nth);
        self.rows += 1;
        self.late += u64::from(late);
        if at >= warm_us {
            self.took.push(now.saturating_sub(at));
        }
        Ok(())
    }

    /// Rows a second that came through while the writers wrote.
    fn rate(&self) -> Option<f64> {
        let (warm, over) = self.warm.zip(self.over)?;
        Some((over.rows - warm.rows) as f64 / (over.at - warm.at).as_secs_f64())
    }

    /// The part of all processors' time, in percent, in which they stood idle meanwhile.
    fn idle(&self) -> Option<f64> {
        let (warm, over) = self.warm.zip(self.over)?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let all = (over.at - warm.at).as_secs_f64() * processors;
        Some((over.idle? - warm.idle?) / all * 100.0)
    }

    fn ms(&self, part: f64) -> f64 {
        let last = self.took.len().saturating_sub(1);
        let at = (last as f64 * part).round() as usize;
        self.took.get(at).copied().unwrap_or_default() as f64 / 1e3
    }
}

/// Runs one line: a new pipeline, and a node of its own.
fn run(case: &Case, nth: usize, broker: &Broker, seconds: u64, dir: &Path) -> Result<(u64, Seen)> {
    let (_node, node) = stand_in(&["node"])?;
    let node = node.as_str();
    let name = format!("latency{nth}");
    let topic = format!("{name}.order");
    let consumer = read(broker, &topic)?;
    let config = pipeline(node, &broker.address, &name, case.delivery, "").replace(
        "[[transform]]",
        &format!("start_from = \"latest\"\n{}\n[[transform]]", case.source),
    );
    let log = std::fs::File::create(dir.join("log"))?;
    let said = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
    let child = penstock(dir, &config)?
        .stdout(log.try_clone()?)
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()?;
    let mut program = Process(child);
    let up = Instant::now();
    while !said().contains("all supervised stages started") {
        ensure!(up.elapsed() < PATIENCE, "it does not start:\n{}", said());
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let (writer, rate) = (
            writer.to_string(),
            case.rate.div_ceil(WRITERS as u64).to_string(),
        );
        let child = own(&["write", node, &writer, &rate, &seconds.to_string()])?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        writers.push(Process(child));
    }
    let warm = Instant::now() + WARM;
    let warm_us = now_us() + WARM.as_micros() as u64;
    let mut seen = Seen::default();
    let mut written = None;
    let mut over: Option<Instant> = None;
    let mut looked = Instant::now();
    loop {
        if let Some(message) = consumer.poll(Duration::from_millis(5)) {
            let message = message?;
            let is_late = |name: &str| name == "penstock-late";
            let late = message
                .headers()
                .is_some_and(|headers| headers.iter().any(|h| is_late(h.key)));
            seen.take(message.payload().unwrap_or_default(), late, warm_us)?;
        }
        let now = Instant::now();
        if now - looked > LOOK {
            looked = now;
            if let Some(status) = program.0.try_wait()? {
                anyhow::bail!("it ended with {status}:\n{}", said());
            }
            if now >= warm && seen.warm.is_none() {
                seen.warm = Some(Moment::now(seen.rows));
            }
            if over.is_none() && all_ended(&mut writers)? {
                let mut sum = 0;
                for writer in &mut writers {
                    let mut line = String::new();
                    let out = writer.0.stdout.as_mut().context("a pipe")?;
                    BufReader::new(out).read_line(&mut line)?;
                    sum += line.trim().parse::<u64>().context("a count")?;
                }
                written = Some(sum);
                over = Some(now);
                seen.over = Some(Moment::now(seen.rows));
            }
        }
        let done = written.is_some_and(|written| seen.rows >= written);
        if done || over.is_some_and(|over| over.elapsed() > PATIENCE) {
            seen.took.sort_unstable();
            return Ok((written.unwrap_or_default(), seen));
        }
    }
}

/// Seconds that the processors have stood idle since the system started, all together (`/proc/stat`, Linux, whose USER_HZ is
/// 100).
fn idle() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let all = stat.lines().next()?;
    let ticks: f64 = all.split_whitespace().nth(4)?.parse().ok()?;
    Some(ticks / 100.0)
}

fn all_ended(processes: &mut [Process]) -> Result<bool> {
    for process in processes {
        if process.0.try_wait()?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn table(full: Option<u64>, seconds: u64, kafka: bool, short: bool) -> Result<()> {
    machine::print();
    let dir = tempfile::tempdir()?;
    let broker = Broker::start(kafka)?;
    const FAST: &str = "safety_interval = \"0ms\"\npoll_interval = \"10ms\"";
    let case = |what: &str, delivery, source: &str, rate| Case {
        what: what.to_owned(),
        delivery,
        source: source.to_owned(),
        rate,
    };
    let mut nth = 0;
    let mut measure = |case: Case, seconds| {
        nth += 1;
        let (written, seen) = run(&case, nth, &broker, seconds, dir.path())?;
        let million = |n: u64| n as f64 * 1e6 / seen.rows.max(1) as f64;
        println!(
            "| {} | {} | {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {} | {} | {} |",
            case.what,
            case.delivery,
            case.rate,
            written,
            seen.ms(0.5),
            seen.ms(0.99),
            seen.ms(0.999),
            million(seen.late),
            million(seen.disordered),
            written.saturating_sub(seen.rows),
            seen.repeated,
            seen.idle()
                .map_or_else(String::new, |idle| format!("{idle:.0}")),
        );
        anyhow::Ok(seen)
    };
    println!(
        "{}; {WRITERS} writers, {} keys, {seconds} s a line, the first {} of them not counted\n",
        broker.name(),
        KEYS * WRITERS as u64,
        WARM.as_secs()
    );
    println!(
        "| | delivery | rows/s asked | rows | p50 ms | p99 ms | p99.9 ms | late a million | out of order a million | lost | repeated | processors idle % |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    let full = match full {
        Some(full) => full,
        None => {
            let seen = measure(
                case("as fast as is taken", "exactly-once", FAST, 0),
                seconds,
            )?;
            seen.rate().context("rows that came through")? as u64
        }
    };
    let rates: &[u64] = if short { &[100] } else { &[1, 50, 90] };
    for (what, source) in [("defaults", ""), ("fast", FAST)] {
        for delivery in ["exactly-once", "at-least-once"] {
            for percent in rates {
                let what = format!("{what}, {percent} % of {full}/s");
                measure(case(&what, delivery, source, full * percent / 100), seconds)?;
            }
        }
    }
    let intervals: &[u64] = match short {
        true => &[],
        false => &[0, 10, 50, 100, 200, 500, 1_000, 2_000],
    };
    for ms in intervals {
        let source = format!("safety_interval = \"{ms}ms\"");
        let what = format!("safety_interval {ms} ms, 50 %");
        measure(case(&what, "exactly-once", &source, full / 2), seconds)?;
    }
    Ok(())
}
