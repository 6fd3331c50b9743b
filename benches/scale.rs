//! What a change costs as everything around it grows: processor time and memory by streams, tables, shards, the size of
//! rows, and rows of one write.
//!
//! `cargo xtask bench scale [rounds] [name of a row …]`. Each line has the medians of so many rounds (3), and of the CPU the
//! least and the most. A round is a stand-in of its own, filled before, and the real program with the router, delivering at
//! least once to librdkafka's mock, which start with it. One thing at a time differs from
//! the first line. CPU is the program's own, user and system, of the later two thirds of the records, when all shards are
//! open and all groups are read; what its start and the first third took stands beside it. Lines of many streams or shards
//! have more rows, so that each of those has a hundred at least: a read of ten rows costs what one of a thousand does.
#![allow(missing_docs)]

#[allow(dead_code)]
#[path = "support/machine.rs"]
mod machine;
#[allow(dead_code)]
#[path = "support/rig.rs"]
mod rig;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rig::{
    Broker, Process, block_on, make_topic, penstock, pipeline, records, scylla, serve_broker,
    stand_in, stay, used,
};

const ROUNDS: usize = 3;
/// No line is waited for longer.
const BOUND: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(10);

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
}

const FIRST: Case = Case {
    rows: 100_000,
    vnodes: 16,
    tables: 1,
    shards: 4,
    payload: 250,
    together: 1,
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

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let role: Vec<&str> = args.iter().map(String::as_str).collect();
    match role[..] {
        ["role", "broker"] => serve_broker(),
        ["role", "scylla", rows, vnodes, tables, payload, together] => block_on(serve(Case {
            rows: rows.parse()?,
            vnodes: vnodes.parse()?,
            tables: tables.parse()?,
            payload: payload.parse()?,
            together: together.parse()?,
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
            table(short, if short { 1 } else { rounds }, &asked)
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
    let (node, session, first) = scylla(case.vnodes).await?;
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
    rig::write(&session, case.rows, at_once, case.payload, place).await?;
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

fn run(case: Case, dir: &Path) -> Result<Cost> {
    let numbers = [
        case.rows.to_string(),
        case.vnodes.to_string(),
        case.tables.to_string(),
        case.payload.to_string(),
        case.together.to_string(),
    ];
    let mut role = vec!["scylla"];
    role.extend(numbers.iter().map(String::as_str));
    let (_scylla, node) = stand_in(&role)?;
    let broker = Broker::start(false)?;
    let topic = "scale.order";
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &broker.address)
        .set("group.id", "bench")
        .create()?;
    make_topic(&broker, &consumer, topic)?;
    let tables: Vec<String> = (0..case.tables)
        .map(|t| format!("{:?}", table_name(t)))
        .collect();
    let config = pipeline(&node, &broker.address, "scale", "at-least-once", "")
        .replace("[\"outbox\"]", &format!("[{}]", tables.join(", ")))
        .replace(
            &format!("shards = {}", rig::VNODES),
            &format!("shards = {}", case.shards),
        );
    let log = std::fs::File::create(dir.join("log"))?;
    let child = penstock(dir, &config)?
        .stdout(log.try_clone()?)
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()?;
    let mut process = Process(child);
    let pid = process.0.id();
    let began = Instant::now();
    let mut first = None;
    loop {
        std::thread::sleep(LOOK);
        let have = records(&consumer, topic);
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
        let said = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        if let Some(status) = process.0.try_wait()? {
            anyhow::bail!("it ended with {status}:\n{}", said());
        }
        ensure!(
            began.elapsed() < BOUND,
            "{have} of {} after {BOUND:?}:\n{}",
            case.rows,
            said()
        );
    }
}

fn table(short: bool, rounds: usize, asked: &[&str]) -> Result<()> {
    machine::print();
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
