//! What a change costs as everything around it grows: processor time and memory by streams, tables, shards, the size of
//! rows, and rows of one write; and what a day's backlog takes.
//!
//! `cargo xtask bench scale [rounds] [name of a row …]`. Each line has the medians of so many rounds (3), and of the CPU the
//! least and the most. A round is a stand-in of its own, filled before, and the real program with the router, delivering at
//! least once to librdkafka's mock, which start with it. One thing at a time differs from
//! the first line. CPU is the program's own, user and system, of the later two thirds of the records, when all shards are
//! open and all groups are read; what its start and the first third took stands beside it. Lines of many streams or shards
//! have more rows, so that each of those has a hundred at least: a read of ten rows costs what one of a thousand does.
//!
//! The second table is of a pipeline that starts a day behind: its rows have times of the last day, by timestamps that their
//! writer gave, and nothing is written meanwhile. Its CPU, rate and reads are of all from its start on.
#![allow(missing_docs)]

#[allow(dead_code)]
#[path = "support/machine.rs"]
mod machine;
#[allow(dead_code)]
#[path = "support/rig.rs"]
mod rig;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rig::{
    Broker, Process, SAFE, block_on, make_topic, penstock, pipeline, records, scylla_of,
    serve_broker, stand_in, stay, used,
};

const ROUNDS: usize = 3;
/// No line is waited for longer.
const BOUND: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(10);
const HOUR_US: u64 = 3_600_000_000;
/// The log keeps what is younger than a day, so what is oldest is this old when it is written.
const BACKLOG_US: u64 = 23 * HOUR_US + HOUR_US * 3 / 4;

/// What a line is of.
#[derive(Clone, Copy, Debug)]
struct Case {
    rows: u64,
    /// Stream groups.
    vnodes: u32,
    tables: u64,
    shards: u32,
    payload: usize,
    /// Rows of one partition in one write.
    together: u64,
    written: Written,
}

/// When the rows of a line were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Written {
    Now,
    /// Evenly over the day before.
    Day,
    /// In the first minute of the day before, one in the middle of it and its last.
    ThreeMinutes,
}

impl Written {
    /// The time of one of so many rows, µs since the epoch.
    fn at(self, row: u64, rows: u64, now_us: u64) -> Option<i64> {
        const MINUTE_US: u64 = 60_000_000;
        let since = match self {
            Self::Now => return None,
            Self::Day => row * BACKLOG_US / rows,
            Self::ThreeMinutes => {
                let (minute, nth) = (3 * row / rows, 3 * row % rows);
                minute * (BACKLOG_US - MINUTE_US) / 2 + nth * MINUTE_US / rows
            }
        };
        i64::try_from(now_us - BACKLOG_US + since).ok()
    }
}

const FIRST: Case = Case {
    rows: 100_000,
    vnodes: 16,
    tables: 1,
    shards: 4,
    payload: 250,
    together: 1,
    written: Written::Now,
};

/// Each line but the first: its name, and how it differs.
fn cases() -> Vec<(String, Case)> {
    let mut all = vec![("first".to_owned(), FIRST)];
    let mut add = |name: String, case| all.push((name, case));
    for vnodes in [1, 256, 1_000, 10_000] {
        let rows = FIRST.rows.max(100 * u64::from(vnodes));
        let case = Case {
            vnodes,
            rows,
            ..FIRST
        };
        add(format!("{vnodes} streams"), case);
    }
    for tables in [10, 100] {
        add(format!("{tables} tables"), Case { tables, ..FIRST });
    }
    for shards in [1, 16, 64, 256] {
        let vnodes = FIRST.vnodes.max(shards);
        add(
            format!("{shards} shards"),
            Case {
                shards,
                vnodes,
                rows: FIRST.rows.max(2_000 * u64::from(shards)),
                ..FIRST
            },
        );
    }
    for (payload, rows) in [
        (100, 100_000),
        (1_000, 100_000),
        (10_000, 20_000),
        (100_000, 2_000),
        (900_000, 300),
    ] {
        let case = Case {
            payload,
            rows,
            ..FIRST
        };
        add(format!("{payload} B a row"), case);
    }
    for together in [10, 100, 1_000, 10_000] {
        let name = format!("{together} rows a write");
        add(name, Case { together, ..FIRST });
    }
    all
}

/// Each line that starts a day behind.
fn backlogs() -> Vec<(&'static str, Case)> {
    let day = |written, vnodes| Case {
        rows: 1_000_000,
        vnodes,
        written,
        ..FIRST
    };
    vec![
        ("a day, 16 streams", day(Written::Day, 16)),
        ("a day, 256 streams", day(Written::Day, 256)),
        ("a silent day, 16 streams", day(Written::ThreeMinutes, 16)),
        ("a silent day, 256 streams", day(Written::ThreeMinutes, 256)),
    ]
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let role: Vec<&str> = args.iter().map(String::as_str).collect();
    match role[..] {
        ["role", "broker"] => serve_broker(),
        [
            "role",
            "scylla",
            rows,
            vnodes,
            tables,
            payload,
            together,
            written,
        ] => block_on(serve(Case {
            rows: rows.parse()?,
            vnodes: vnodes.parse()?,
            tables: tables.parse()?,
            payload: payload.parse()?,
            together: together.parse()?,
            written: Written::from_str(written, true).map_err(anyhow::Error::msg)?,
            ..FIRST
        })),
        _ => {
            // `cargo test` runs benches too, with this argument, to see that they work.
            let short = role.contains(&"--test");
            let rounds = role.iter().find_map(|a| a.parse().ok());
            let asked: Vec<&str> = role
                .iter()
                .copied()
                .filter(|a| !a.starts_with('-') && a.parse::<usize>().is_err())
                .collect();
            let rounds = rounds.unwrap_or(ROUNDS).max(1);
            let rounds = if short { 1 } else { rounds };
            machine::print();
            table(short, rounds, &asked)?;
            backlog_table(short, rounds, &asked)
        }
    }
}

fn table_name(table: u64) -> String {
    match table {
        0 => "outbox".to_owned(),
        n => format!("outbox{n}"),
    }
}

async fn serve(case: Case) -> Result<()> {
    let (node, session, first) = scylla_of(scylla_double::Options {
        vnodes: case.vnodes,
        // Older than anything that is written, or it would be refused.
        first_generation_age: match case.written {
            Written::Now => scylla_double::Options::default().first_generation_age,
            _ => Duration::from_secs(48 * 3_600),
        },
        ..Default::default()
    })
    .await?;
    let address = node.addr().to_string();
    let mut inserts = vec![first];
    for table in 1..case.tables {
        let name = table_name(table);
        let cql = format!(
            "CREATE TABLE ks.{name} (aggregate_id uuid, event_id timeuuid, aggregate_type text, event_type text, \
             payload text, created_at timestamp, traceparent text, PRIMARY KEY (aggregate_id, event_id)) \
             WITH cdc = {{'enabled': true}}"
        );
        session.query_unpaged(cql, ()).await?;
        let insert = rig::INSERT.replace("ks.outbox", &format!("ks.{name}"));
        inserts.push(session.prepare(insert).await?);
    }
    // Writes that are sent in one request, of different partitions unless rows belong together.
    let at_once = match case.together {
        1 => (1 << 20) / case.payload as u64,
        together => together,
    };
    let at_once = at_once
        .clamp(1, 10_000)
        .min(if case.together == 1 { 16 } else { 10_000 });
    let place = |i: u64| {
        let batch = i / at_once;
        let key = if case.together == 1 { i } else { batch };
        let insert = &inserts[(batch % case.tables) as usize];
        (insert, key % rig::KEYS)
    };
    let now_us = std::time::UNIX_EPOCH.elapsed()?.as_micros() as u64;
    let at = |i| case.written.at(i, case.rows, now_us);
    rig::write(&session, case.rows, at_once, case.payload, place, at).await?;
    tokio::task::spawn_blocking(move || stay(&address)).await??;
    drop(node);
    Ok(())
}

/// Processor time a change and the most memory, in µs and bytes, and the rate.
struct Cost {
    cpu_us: f64,
    /// CPU seconds until then: the start and the first third.
    before: f64,
    peak: u64,
    rate: f64,
}

/// A line's world, and the real program in it.
struct World {
    _scylla: Process,
    _broker: Broker,
    consumer: BaseConsumer,
    program: Process,
    log: PathBuf,
    admin: u16,
    began: Instant,
}

const TOPIC: &str = "scale.order";

fn start(case: Case, dir: &Path) -> Result<World> {
    let numbers = [
        case.rows.to_string(),
        case.vnodes.to_string(),
        case.tables.to_string(),
        case.payload.to_string(),
        case.together.to_string(),
        case.written
            .to_possible_value()
            .context("a value")?
            .get_name()
            .to_owned(),
    ];
    let mut role = vec!["scylla"];
    role.extend(numbers.iter().map(String::as_str));
    let (scylla, node) = stand_in(&role)?;
    // Who follows what is just being written reads each group every `poll_interval` for what came meanwhile, which `idle` and
    // `latency` are about.
    std::thread::sleep(SAFE);
    let broker = Broker::start(false)?;
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &broker.address)
        .set("group.id", "bench")
        .create()?;
    make_topic(&broker, &consumer, TOPIC)?;
    let tables: Vec<String> = (0..case.tables)
        .map(|t| format!("{:?}", table_name(t)))
        .collect();
    let config = pipeline(&node, &broker.address, "scale", "at-least-once", "")
        .replace("[\"outbox\"]", &format!("[{}]", tables.join(", ")))
        .replace(
            &format!("shards = {}", rig::VNODES),
            &format!("shards = {}", case.shards),
        );
    let admin = testkit::machine::free_port();
    let config = match case.written {
        Written::Now => config,
        _ => config.replace(
            "enabled = false",
            &format!("listen = \"127.0.0.1:{admin}\""),
        ),
    };
    let path = dir.join("log");
    let log = std::fs::File::create(&path)?;
    let child = penstock(dir, &config)?
        .stdout(log.try_clone()?)
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()?;
    Ok(World {
        _scylla: scylla,
        _broker: broker,
        consumer,
        program: Process(child),
        log: path,
        admin,
        began: Instant::now(),
    })
}

impl World {
    /// Waits a moment, and says how many of so many records are there.
    fn look(&mut self, rows: u64) -> Result<u64> {
        std::thread::sleep(LOOK);
        let have = records(&self.consumer, TOPIC);
        let said = || std::fs::read_to_string(&self.log).unwrap_or_default();
        if let Some(status) = self.program.0.try_wait()? {
            anyhow::bail!("it ended with {status}:\n{}", said());
        }
        ensure!(
            have >= rows || self.began.elapsed() < BOUND,
            "{have} of {rows} after {BOUND:?}:\n{}",
            said()
        );
        Ok(have)
    }

    /// The program's metrics, by name.
    fn metrics(&self) -> Result<impl Fn(&str) -> f64> {
        let url = format!("http://127.0.0.1:{}/metrics", self.admin);
        let asked = async { reqwest::get(url).await?.error_for_status()?.text().await };
        let text = tokio::runtime::Runtime::new()?.block_on(asked)?;
        Ok(move |name: &str| {
            let of = |line: &str| line.strip_prefix(name)?.trim().parse().ok();
            text.lines().find_map(of).unwrap_or(f64::NAN)
        })
    }
}

fn run(case: Case, dir: &Path) -> Result<Cost> {
    let mut world = start(case, dir)?;
    let (pid, began) = (world.program.0.id(), world.began);
    let mut first = None;
    loop {
        let have = world.look(case.rows)?;
        let now = (Instant::now(), used(pid)?.0, have);
        let begun = *first.get_or_insert(now);
        if begun.2 < case.rows / 3 {
            first = None;
        }
        if have >= case.rows {
            let (_, peak) = used(pid)?;
            // All came within one look: the start is in it.
            let begun = if begun.2 >= case.rows {
                (began, 0.0, 0)
            } else {
                begun
            };
            let changes = (case.rows - begun.2) as f64;
            return Ok(Cost {
                cpu_us: (now.1 - begun.1) * 1e6 / changes,
                before: begun.1,
                peak,
                rate: changes / (now.0 - begun.0).as_secs_f64(),
            });
        }
    }
}

/// What a backlog took, from the start of the program on.
struct CaughtUp {
    seconds: f64,
    cpu_us: f64,
    peak: u64,
    pages: f64,
    looks: f64,
    windows: f64,
    late: f64,
}

fn catch_up(case: Case, dir: &Path) -> Result<CaughtUp> {
    let mut world = start(case, dir)?;
    while world.look(case.rows)? < case.rows {}
    let seconds = world.began.elapsed().as_secs_f64();
    let (cpu, peak) = used(world.program.0.id())?;
    let metric = world.metrics()?;
    Ok(CaughtUp {
        seconds,
        cpu_us: cpu * 1e6 / case.rows as f64,
        peak,
        pages: metric("penstock_source_pages_total"),
        looks: metric("penstock_source_looks_total"),
        windows: metric("penstock_source_windows_total"),
        late: metric("penstock_source_late_changes_total"),
    })
}

fn table(short: bool, rounds: usize, asked: &[&str]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    println!(
        "first: {} rows of {} B, {} stream groups, {} table, {} shards, a row a write; {rounds} rounds\n",
        FIRST.rows, FIRST.payload, FIRST.vnodes, FIRST.tables, FIRST.shards
    );
    println!("| | rows | CPU µs a change | of the first | CPU s before | changes/s | peak MB |");
    println!("|---|---|---|---|---|---|---|");
    let mut first = None;
    for (name, case) in cases() {
        if !asked.is_empty() && name != "first" && !asked.contains(&name.as_str()) {
            continue;
        }
        let rows = if short { case.rows.min(200) } else { case.rows };
        let round = |_| run(Case { rows, ..case }, dir.path()).with_context(|| name.clone());
        let costs = match (0..rounds).map(round).collect::<Result<Vec<Cost>>>() {
            Ok(costs) => costs,
            Err(error) if !short => {
                println!("| {name} | {rows} | {error:#} | | | | |");
                continue;
            }
            Err(error) => return Err(error),
        };
        let of = |part: fn(&Cost) -> f64| machine::spread(costs.iter().map(part).collect());
        let (cpu_us, least, most) = of(|c| c.cpu_us);
        let base = *first.get_or_insert(cpu_us);
        println!(
            "| {name} | {rows} | {cpu_us:.2} ({least:.2} to {most:.2}) | {:.2} | {:.2} | {:.0} | {:.0} |",
            cpu_us / base,
            of(|c| c.before).0,
            of(|c| c.rate).0,
            of(|c| c.peak as f64 / 1e6).0,
        );
        if short {
            break;
        }
    }
    Ok(())
}

fn backlog_table(short: bool, rounds: usize, asked: &[&str]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    println!(
        "\n{} B a row, {} shards, {} hours behind at the start; {rounds} rounds\n",
        FIRST.payload,
        FIRST.shards,
        BACKLOG_US as f64 / HOUR_US as f64
    );
    println!(
        "| | rows | changes/s | seconds | CPU µs a change | pages read | looks back | windows | late | peak MB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (name, case) in backlogs() {
        if !asked.is_empty() && !asked.contains(&name) {
            continue;
        }
        let rows = if short { 200 } else { case.rows };
        let round = |_| catch_up(Case { rows, ..case }, dir.path()).context(name);
        let all = (0..rounds).map(round).collect::<Result<Vec<CaughtUp>>>()?;
        let of =
            |part: fn(&CaughtUp) -> f64| machine::spread(all.iter().map(part).collect::<Vec<_>>());
        let (seconds, least, most) = of(|c| c.seconds);
        println!(
            "| {name} | {rows} | {:.0} | {seconds:.1} ({least:.1} to {most:.1}) | {:.2} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |",
            rows as f64 / seconds,
            of(|c| c.cpu_us).0,
            of(|c| c.pages).0,
            of(|c| c.looks).0,
            of(|c| c.windows).0,
            of(|c| c.late).0,
            of(|c| c.peak as f64 / 1e6).0,
        );
        if short {
            break;
        }
    }
    Ok(())
}
