//! What exactly-once costs over at-least-once: the real program, the same changes, the same broker, by commit interval.
//!
//! `cargo xtask bench delivery [changes] [rounds]`, on an Apache Kafka that is started for it, or on what
//! `PENSTOCK_TEST_BROKERS` names. Three things are measured of each: how fast a backlog becomes visible to a
//! `read_committed` reader; how long after its write a change is visible at a steady load; and in a quiet pipeline.
#![allow(missing_docs)]

#[path = "support/machine.rs"]
mod machine;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use testkit::broker::Operator;
use testkit::process::{LONG, World, keys};

const KEYS: usize = 64;
/// Writes a second of the steady load, each of one change.
const STEADY: u32 = 300;
const STEADY_FOR: u32 = 5 * STEADY;
const QUIET: u32 = 25;
const QUIET_EVERY: Duration = Duration::from_millis(200);

/// A way to deliver.
#[derive(Clone, Copy)]
struct Way {
    delivery: &'static str,
    commit_ms: Option<u64>,
}

const WAYS: &[Way] = &[
    Way::least(),
    Way::once(10),
    Way::once(50),
    Way::once(100),
    Way::once(500),
    Way::once(2_000),
];

impl Way {
    const fn least() -> Self {
        Self {
            delivery: "at-least-once",
            commit_ms: None,
        }
    }

    const fn once(commit_ms: u64) -> Self {
        Self {
            delivery: "exactly-once",
            commit_ms: Some(commit_ms),
        }
    }
}

/// Reads what becomes visible in a topic from now on.
struct Reader(BaseConsumer);

impl Reader {
    fn at_the_end(brokers: &str, topic: &str) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "bench")
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "5")
            .set("fetch.queue.backoff.ms", "1")
            .create()
            .expect("a consumer");
        let found = consumer
            .fetch_metadata(Some(topic), LONG)
            .expect("metadata");
        let mut all = TopicPartitionList::new();
        for partition in found.topics()[0].partitions() {
            let (_, high) = consumer
                .fetch_watermarks(topic, partition.id(), LONG)
                .expect("watermarks");
            all.add_partition_offset(topic, partition.id(), Offset::Offset(high))
                .expect("an offset");
        }
        consumer.assign(&all).expect("assigned");
        Self(consumer)
    }

    /// The next record's number and when it was there.
    fn next(&self, within: Duration) -> Option<(u32, Instant)> {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if let Some(Ok(message)) = self.0.poll(Duration::from_millis(100)) {
                let text = message.payload().and_then(|p| std::str::from_utf8(p).ok());
                let number = text.and_then(|t| t.parse().ok()).expect("a number");
                return Some((number, Instant::now()));
            }
        }
        None
    }
}

#[derive(Default)]
struct Found {
    per_second: Vec<f64>,
    steady: Vec<Duration>,
    quiet: Vec<Duration>,
}

fn percentile(sorted: &[Duration], p: usize) -> f64 {
    let at = (sorted.len() * p / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(f64::NAN, |d| d.as_secs_f64() * 1e3)
}

/// Writes single changes at a pace, and sees when each is visible.
async fn latencies(
    world: &World,
    reader: Reader,
    n: u32,
    every: Duration,
) -> (Reader, Vec<Duration>) {
    let key = keys(1);
    let sent = Arc::new(Mutex::new(HashMap::new()));
    let reading = {
        let sent = sent.clone();
        std::thread::spawn(move || {
            let (mut taken, mut left) = (Vec::new(), n);
            while left > 0 {
                let Some((number, at)) = reader.next(LONG) else {
                    eprintln!("{left} of {n} did not come within {LONG:?}");
                    break;
                };
                let written: Option<Instant> = sent.lock().expect("no panic").remove(&number);
                if let Some(written) = written {
                    taken.push(at.duration_since(written));
                    left -= 1;
                }
            }
            taken.sort();
            (reader, taken)
        })
    };
    let mut tick = tokio::time::interval(every);
    for number in 0..n {
        tick.tick().await;
        sent.lock()
            .expect("no panic")
            .insert(number, Instant::now());
        world.write(&key, number, 1).await;
    }
    tokio::task::block_in_place(|| reading.join().expect("it reads"))
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args()
        .skip(1)
        .filter_map(|a| a.parse::<u32>().ok());
    let changes = args.next().unwrap_or(200_000) / KEYS as u32 * KEYS as u32;
    let rounds = args.next().unwrap_or(3).max(1);
    machine::print();
    if std::env::var_os("PENSTOCK_TEST_BROKERS").is_none() {
        println!(
            "on the embedded broker, which is no judge of this: PENSTOCK_TEST_BROKERS names a real one"
        );
    }
    let mut world = World::new("").await;
    let topic = world.topic();
    Operator::new(&world.cluster.brokers)
        .create(&topic, 4, &[])
        .await;
    let all = keys(KEYS);
    world.write(&all, 0, changes / KEYS as u32).await;
    // Behind the safety interval.
    tokio::time::sleep(Duration::from_millis(500)).await;
    println!(
        "{changes} changes of backlog, {rounds} rounds, then {STEADY} a second, then one each {QUIET_EVERY:?}"
    );
    world.set("source.late_horizon", "off");
    let mut found: Vec<Found> = WAYS.iter().map(|_| Found::default()).collect();
    for round in 0..rounds {
        for (n, way) in WAYS.iter().enumerate() {
            let name = format!("{}-{round}-{n}", world.name);
            world.set("pipeline.name", &name);
            world.set("pipeline.delivery", way.delivery);
            world.set(
                "sink.commit_interval",
                format!("{}ms", way.commit_ms.unwrap_or(100)),
            );
            let reader = Reader::at_the_end(&world.cluster.brokers, &topic);
            let running = world.start(round * 100 + n as u32);
            // Not at the first record that is seen: by then a whole transaction is done.
            running.await_line("all supervised stages started", LONG);
            let begun = Instant::now();
            let mut last = begun;
            // What was written one by one for the latencies is in the log since.
            let measured = if round == 0 { n } else { WAYS.len() } as u32;
            let backlog = changes + measured * (STEADY_FOR + QUIET);
            for _ in 0..backlog {
                let next = tokio::task::block_in_place(|| reader.next(LONG));
                last = next.unwrap_or_else(|| panic!("{}", running.text())).1;
            }
            let took = last.duration_since(begun).as_secs_f64();
            found[n].per_second.push(f64::from(backlog) / took);
            // Each takes its time: who waits sees that it goes on.
            eprintln!(
                "round {round}, {} {:?} ms: {backlog} in {took:.1} s",
                way.delivery, way.commit_ms
            );
            if round == 0 {
                let every = Duration::from_secs(1) / STEADY;
                let (reader, steady) = latencies(&world, reader, STEADY_FOR, every).await;
                let (_, quiet) = latencies(&world, reader, QUIET, QUIET_EVERY).await;
                (found[n].steady, found[n].quiet) = (steady, quiet);
            }
            running.stop_cleanly();
        }
    }
    let (base, ..) = machine::spread(found[0].per_second.clone());
    println!(
        "| delivery | commit_interval | records/s | of at-least-once | p50 ms | p99 ms at {STEADY}/s | quiet p50 ms | quiet p99 ms |\n\
         |---|---|---|---|---|---|---|---|"
    );
    for (way, found) in WAYS.iter().zip(&found) {
        let (rate, least, most) = machine::spread(found.per_second.clone());
        println!(
            "| {} | {} | {rate:.0} ({least:.0} to {most:.0}) | {:.2} | {:.1} | {:.1} | {:.1} | {:.1} |",
            way.delivery,
            way.commit_ms
                .map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms")),
            rate / base,
            percentile(&found.steady, 50),
            percentile(&found.steady, 99),
            percentile(&found.quiet, 50),
            percentile(&found.quiet, 99),
        );
    }
}
