//! From ScyllaDB's log to an acknowledgement by the broker: Penstock beside a bare loop and beside the obvious
//! program, on the same rows.
//!
//! `cargo xtask bench end_to_end [rows] [rounds] [--kafka] [contestant …]`, and `cargo xtask bench peers [rows] [rounds]
//! [--connect-plugins folder]`, which holds it against what there is beside it, on a real Kafka. The stand-ins run in processes of their own and are filled
//! before; so does each contestant, in turns, so that a disturbance hits all alike:
//!
//! - *bare*: raw rows of the `scylla` crate → `rdkafka` with a counter of acknowledgements. No plugin, no
//!   checkpoint, no policy, and no headers, or (*bare-headers*) headers as long as Penstock's;
//! - *seed*: one send a row: the `scylla-cdc` crate, and for each row a `FutureProducer` send that is awaited
//!   (`linger.ms = 0`, which suits it best). It is stopped after [`SEED_BOUND`], its rate counts;
//! - *penstock*: the real program with `outbox_router.wasm`, checkpoints and policies at their defaults, delivering at
//!   least once, and (*penstock-once*) exactly once, which is the default;
//! - *connect*, in `peers` alone: Kafka Connect, of its Maven artifacts, with ScyllaDB's connector, which has to lie in
//!   the folder that is given (a jar with what it depends on); without a folder it is left out. `peers` goes on with
//!   few rows, and how soon each of them is there.
//!
//! Then Penstock's starts are told apart: of a pipeline that is new, of one whose plugins are yet to be compiled, of one that is
//! started again.
//!
//! The broker is librdkafka's mock, or with `--kafka` a real Apache Kafka (Java and Maven are needed).
//! A run's time is from the start of the process to the last record in the topic, as the broker counts them; of a
//! transaction's, once it is committed. A real Kafka is warmed by rounds that do not count. CPU and peak memory are the contestant's own (`/proc`, Linux). The stand-ins use
//! the same cores, so rates are of everything together; what counts is the ratios.
#![allow(missing_docs)]

#[path = "support/connect.rs"]
mod connect;
#[path = "support/contestants.rs"]
mod contestants;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/rig.rs"]
mod rig;
#[path = "support/starts.rs"]
mod starts;
#[path = "support/trickle.rs"]
mod trickle;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use contestants::{BOUND, bare, seed};
use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rig::{
    Broker, PAYLOAD, Process, VNODES, block_on, make_topic, own, penstock, pipeline, records,
    serve_broker, serve_scylla, stand_in, used,
};

const ROWS: u64 = 400_000;
const ROUNDS: usize = 5;
/// The slow contestant is not waited for longer than this.
const SEED_BOUND: Duration = Duration::from_secs(15);
/// How often the broker is asked.
const LOOK: Duration = Duration::from_millis(10);
/// Rounds before any that counts, on a real broker: by then what it takes for a record falls no more (benches/README.md).
const WARMING: usize = 8;

const CONTESTANTS: [&str; 5] = ["bare", "bare-headers", "penstock", "penstock-once", "seed"];
/// What comes after it is the folder with ScyllaDB's connector.
const PLUGINS: &str = "--connect-plugins";

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
            let peers = role.contains(&"--peers");
            let mut contestants = CONTESTANTS.to_vec();
            if role.iter().any(|a| CONTESTANTS.contains(a)) {
                contestants.retain(|c| role.contains(c));
            }
            let folder = role.iter().position(|a| *a == PLUGINS);
            let folder = folder.and_then(|at| role.get(at + 1)).copied();
            match folder {
                Some(_) => contestants.push("connect"),
                None if peers => println!(
                    "without {PLUGINS} <folder>, Kafka Connect with ScyllaDB's connector is not measured\n"
                ),
                None => {}
            }
            let rules = Rules {
                contestants,
                plugins: folder.unwrap_or_default(),
                rows,
                trickle: peers,
                kafka: peers || folder.is_some() || role.contains(&"--kafka"),
            };
            compare(&rules, rounds)
        }
    }
}

struct Rules<'a> {
    contestants: Vec<&'a str>,
    /// The folder with ScyllaDB's connector.
    plugins: &'a str,
    rows: u64,
    /// Few rows, too.
    trickle: bool,
    kafka: bool,
}

#[derive(Clone, Debug)]
struct Run {
    records: u64,
    first: f64,
    seconds: f64,
    cpu: f64,
    peak: u64,
    /// CPU seconds of what is beside it.
    beside: Beside,
}

/// CPU seconds of processes that are no contestant's.
#[derive(Clone, Copy, Debug)]
struct Beside {
    scylla: f64,
    broker: f64,
    /// This one, which looks at the topic's end.
    looks: f64,
}

impl Beside {
    fn now(scylla: u32, broker: &Broker) -> Result<Self> {
        Ok(Self {
            scylla: used(scylla)?.0,
            broker: broker.cpu()?,
            looks: used(std::process::id())?.0,
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            scylla: self.scylla - before.scylla,
            broker: self.broker - before.broker,
            looks: self.looks - before.looks,
        }
    }
}

impl Run {
    fn rate(&self) -> f64 {
        self.records as f64 / self.seconds
    }

    /// Of each run by itself, beside the table: what grows or falls from run to run no median shows.
    fn tell(&self, round: &str, name: &str) {
        let each = |seconds: f64| seconds * 1e6 / self.records as f64;
        eprintln!(
            "{round} {name}: {:.0} records/s; CPU µs a record: {:.2}, stand-in {:.2}, broker {:.2}",
            self.rate(),
            each(self.cpu),
            each(self.beside.scylla),
            each(self.beside.broker),
        );
    }
}

fn topic(name: &str, prefix: &str) -> String {
    match name {
        "connect" => connect::topic(prefix),
        _ => format!("{prefix}.order"),
    }
}

/// Runs a contestant until `rows` records are in its topic, or its bound is reached.
fn run(
    name: &str,
    (scylla, node): (u32, &str),
    broker: &Broker,
    rules: &Rules<'_>,
    round: &str,
    dir: &Path,
) -> Result<Run> {
    let rows = rules.rows;
    let prefix = format!("{round}-{name}");
    let topic = topic(name, &prefix);
    let brokers = &broker.address;
    let mut command = match name {
        "penstock" => penstock(dir, &pipeline(node, brokers, &prefix, "at-least-once", ""))?,
        "penstock-once" => penstock(dir, &pipeline(node, brokers, &prefix, "exactly-once", ""))?,
        "connect" => connect::command(dir, rules.plugins, node, brokers, &prefix, connect::WIDE)?,
        _ => own(&[name, node, brokers, &topic])?,
    };
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("isolation.level", "read_committed")
        .set("group.id", "bench")
        .create()?;
    // So that all begin alike, the topic is there.
    make_topic(broker, &consumer, &topic)?;
    let log = std::fs::File::create(dir.join("log"))?;
    let before = Beside::now(scylla, broker)?;
    let began = Instant::now();
    let child = command
        .stdout(log.try_clone()?)
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()?;
    let mut process = Process(child);
    let bound = if name == "seed" { SEED_BOUND } else { BOUND };
    // A real broker counts the ends of transactions as well: all is there when there is enough and no more comes.
    let settles = name == "penstock-once" && broker.is_real();
    let (mut first, mut have, mut seconds) = (0.0, 0, 0.0);
    while began.elapsed() < bound {
        std::thread::sleep(LOOK);
        let now = records(&consumer, &topic);
        if now > have {
            seconds = began.elapsed().as_secs_f64();
            if first == 0.0 {
                first = seconds;
            }
        }
        have = now;
        let quiet = began.elapsed().as_secs_f64() - seconds > 1.0;
        if have >= rows && (quiet || !settles) {
            break;
        }
        if let Some(status) = process.0.try_wait()? {
            let said = std::fs::read_to_string(dir.join("log"))?;
            anyhow::bail!("{name} ended with {status}:\n{said}");
        }
    }
    ensure!(
        have == rows || (name == "seed" && have > 0) || (settles && have > rows),
        "{name}: {have} of {rows} records after {seconds:.0} s:\n{}",
        std::fs::read_to_string(dir.join("log"))?
    );
    let (cpu, peak) = used(process.0.id())?;
    Ok(Run {
        records: have.min(rows),
        first,
        seconds,
        cpu,
        peak,
        beside: Beside::now(scylla, broker)?.since(before),
    })
}

fn compare(rules: &Rules<'_>, rounds: usize) -> Result<()> {
    let (rows, contestants) = (rules.rows, &rules.contestants);
    machine::print();
    let dir = tempfile::tempdir()?;
    let broker = Broker::start(rules.kafka)?;
    let filling = Instant::now();
    let (scylla, node) = stand_in(&["scylla", &rows.to_string()])?;
    println!(
        "{rows} rows, 7 columns, {PAYLOAD} B of payload, {VNODES} stream groups, filled in {:.0} s; {}; {rounds} rounds, \
         medians (least to most)",
        filling.elapsed().as_secs_f64(),
        broker.name(),
    );
    let nodes = (scylla.0.id(), node.as_str());
    if rules.kafka {
        // What comes first finds code that is yet to be compiled, the broker's above all; transactions have their own.
        for (nth, name) in (0..WARMING).zip(["bare-headers", "penstock-once"].iter().cycle()) {
            let round = format!("warm{nth}");
            let run = run(name, nodes, &broker, rules, &round, dir.path())?;
            run.tell(&round, name);
        }
    }
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); contestants.len()];
    for round in 0..rounds {
        for (runs, name) in runs.iter_mut().zip(contestants) {
            // The slow ones are not worth more than one round.
            if !["seed", "connect"].contains(name) || round == 0 {
                let round = format!("bench{round}");
                let run = run(name, nodes, &broker, rules, &round, dir.path())?;
                run.tell(&round, name);
                runs.push(run);
            }
        }
    }
    let of = |name: &str| {
        let at = contestants.iter().position(|c| *c == name);
        at.map_or(&[][..], |at| &runs[at])
    };
    println!(
        "\n| | records | first record s | seconds | records/s | CPU µs a record | peak MB | of the bare loop | … with headers | of at-least-once | × one send a row |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let median = |values: &mut dyn Iterator<Item = f64>| machine::spread(values.collect()).0;
    for (name, own) in contestants.iter().zip(&runs) {
        // Pair by pair, so that what the machine did meanwhile cancels out; the slow ones have one run.
        let against = |base: &str| {
            let pairs = own.iter().zip(of(base).iter().cycle());
            let ratios: Vec<f64> = pairs.map(|(a, b)| a.rate() / b.rate()).collect();
            match ratios.is_empty() {
                true => String::new(),
                false => format!("{:.2}", machine::spread(ratios).0),
            }
        };
        let (rate, least, most) = machine::spread(own.iter().map(Run::rate).collect());
        println!(
            "| {name} | {} | {:.2} | {:.2} | {rate:.0} ({least:.0} to {most:.0}) | {:.2} | {:.0} | {} | {} | {} | {} |",
            own[0].records,
            median(&mut own.iter().map(|r| r.first)),
            median(&mut own.iter().map(|r| r.seconds)),
            median(&mut own.iter().map(|r| r.cpu * 1e6 / r.records as f64)),
            median(&mut own.iter().map(|r| r.peak as f64 / 1e6)),
            against("bare"),
            against("bare-headers"),
            against("penstock"),
            against("seed"),
        );
    }
    shares(contestants, &runs);
    match rules.trickle {
        true => trickle(rules, &broker, dir.path()),
        false => starts::table(&broker, dir.path(), rounds),
    }
}

/// Where the time of all processors goes, for each record.
fn shares(contestants: &[&str], runs: &[Vec<Run>]) {
    println!(
        "\n| µs a record | of all processors | contestant | ScyllaDB's stand-in | broker | looks at the topic's end | idle, or others' |"
    );
    println!("|---|---|---|---|---|---|---|");
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    for (name, runs) in contestants.iter().zip(runs) {
        let of = |part: &dyn Fn(&Run) -> f64| {
            let each = runs.iter().map(|r| part(r) * 1e6 / r.records as f64);
            machine::spread(each.collect()).0
        };
        let parts: [f64; 5] = [
            of(&|r| processors * r.seconds),
            of(&|r| r.cpu),
            of(&|r| r.beside.scylla),
            of(&|r| r.beside.broker),
            of(&|r| r.beside.looks),
        ];
        let rest = parts[0] - parts[1..].iter().sum::<f64>();
        let parts = parts.map(|part| format!("{part:.2}"));
        println!("| {name} | {} | {rest:.2} |", parts.join(" | "));
    }
}

/// How soon a row is there when few are written. Those that read a log once have no part in it.
fn trickle(rules: &Rules<'_>, broker: &Broker, dir: &Path) -> Result<()> {
    println!(
        "\n{} rows/s, from a write until a reader of committed records has it\n",
        trickle::RATE
    );
    println!("| | rows | p50 ms | p99 ms | most ms | lost |");
    println!("|---|---|---|---|---|---|");
    let cases = [
        ("penstock", "penstock, at least once", ""),
        ("penstock-once", "penstock, exactly once", ""),
        ("connect", "connect, narrow windows", connect::NARROW),
        ("connect", "connect, its own defaults", ""),
    ];
    let brokers = &broker.address;
    let took_part = |(name, ..): &(&str, &str, &str)| rules.contestants.contains(name);
    for (nth, (name, shown, properties)) in cases.into_iter().filter(took_part).enumerate() {
        let prefix = format!("trickle{nth}");
        let topic = topic(name, &prefix);
        let took = trickle::run(broker, &topic, dir, |node| match name {
            "connect" => connect::command(dir, rules.plugins, node, brokers, &prefix, properties),
            "penstock" => penstock(dir, &pipeline(node, brokers, &prefix, "at-least-once", "")),
            _ => penstock(dir, &pipeline(node, brokers, &prefix, "exactly-once", "")),
        })?;
        println!(
            "| {shown} | {} | {:.0} | {:.0} | {:.0} | {} |",
            took.ms.len(),
            took.part(0.5),
            took.part(0.99),
            took.part(1.0),
            took.lost,
        );
    }
    Ok(())
}
