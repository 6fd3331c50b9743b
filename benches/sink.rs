//! What the sink costs over a bare producer: the same records, the same broker, side by side in one run.
//!
//! `cargo bench --bench sink [records]`. The broker is librdkafka's mock, a thread in this process, so the
//! rates are of client and broker together; what counts is the ratio.
#![allow(missing_docs)]

#[path = "support/machine.rs"]
mod machine;

use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock::change::RecordBatch;
use penstock::policy::stage::StagePolicies;
use penstock::sink::Settle as _;
use penstock::sink::redpanda::RedpandaSink;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use testkit::acks::Acks;
use testkit::batches::{Maker, position};
use testkit::settings;

const BATCH: u32 = 256;
const VALUE: usize = 400;
const ROUNDS: usize = 3;

/// As tight as a loop over rdkafka gets, with the sink's own settings; with as many header bytes, or none.
fn bare(
    brokers: &str,
    topic: &str,
    batches: &[Arc<RecordBatch>],
    rounds: u32,
    headers: bool,
) -> Duration {
    let producer: ThreadedProducer<Acks> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "0")
        .set("queue.buffering.max.messages", "10000")
        .set("partitioner", "murmur2_random")
        .create_with_context(Acks::default())
        .expect("a producer");
    let started = Instant::now();
    let mut sent = 0;
    for _ in 0..rounds {
        for batch in batches {
            for record in &batch.records {
                let mut out = headers.then(|| {
                    let header = |key, value| Header {
                        key,
                        value: Some(value),
                    };
                    OwnedHeaders::new_with_capacity(4)
                        .insert(header("penstock-position", &[b'p'; 71][..]))
                        .insert(header("penstock-table", b"ks.t"))
                        .insert(header("penstock-operation", b"insert"))
                        .insert(header("traceparent", &[b't'; 55]))
                });
                loop {
                    let mut r = BaseRecord::<[u8], [u8]>::to(topic);
                    r.key = batch.bytes(record.key);
                    r.payload = batch.bytes(record.value);
                    r.headers = out.take();
                    match producer.send(r) {
                        Ok(()) => break,
                        Err((e, back)) => {
                            assert_eq!(e.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull));
                            out = back.headers;
                            std::thread::sleep(Duration::from_micros(500));
                        }
                    }
                }
                sent += 1;
            }
        }
    }
    while producer.client().context().count() < sent {
        std::thread::sleep(Duration::from_micros(200));
    }
    started.elapsed()
}

async fn sink(brokers: &str, batches: &[Arc<RecordBatch>], rounds: u32) -> Duration {
    let (_retune, live) = settings::live(settings::settings("bench", brokers, 1));
    let policies = StagePolicies::new("sink", live.clone());
    let sink = RedpandaSink::connect(live, policies).await.expect("a sink");
    let mut shard = sink.open_shard(0).expect("a shard");
    let mut tickets = std::collections::VecDeque::new();
    let started = Instant::now();
    for _ in 0..rounds {
        for batch in batches {
            tickets.push_back(shard.submit(Arc::clone(batch)).await.expect("taken"));
            if tickets.len() > 64 {
                let ticket = tickets.pop_front().expect("65 of them");
                assert!(ticket.await.expect("delivered").poison.is_empty());
            }
        }
    }
    for ticket in tickets {
        assert!(ticket.await.expect("delivered").poison.is_empty());
    }
    let took = started.elapsed();
    shard.close().await;
    took
}

fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|a| a.parse::<u32>().ok());
    let wanted = numbers.next().unwrap_or(1_000_000);
    let mock = MockCluster::new(1).expect("a mock cluster");
    let brokers = mock.bootstrap_servers();
    let topic = "bench";
    mock.create_topic(topic, 4, 1).expect("a topic");
    let value = [b'x'; VALUE];
    let batches: Vec<_> = (0..64)
        .map(|b| {
            (0..BATCH)
                .fold(Maker::default(), |maker, n| {
                    let key = format!("key-{}", (b * BATCH + n) % 1000);
                    maker.record(position(1, b * BATCH + n), topic, &key, &value, &[])
                })
                .batch()
        })
        .collect();
    let rounds = wanted.div_ceil(64 * BATCH);
    let records = u64::from(rounds * 64 * BATCH);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    machine::print();
    let mut rates: [Vec<f64>; 3] = Default::default();
    // In turns, so that a disturbance hits all alike.
    for _ in 0..ROUNDS {
        let took = [
            bare(&brokers, topic, &batches, rounds, false),
            bare(&brokers, topic, &batches, rounds, true),
            runtime.block_on(sink(&brokers, &batches, rounds)),
        ];
        for (rates, took) in rates.iter_mut().zip(took) {
            rates.push(records as f64 / took.as_secs_f64());
        }
    }
    println!("{records} records of {VALUE} B, medians of {ROUNDS} rounds (least to most)\n");
    println!("| | records/s | of the bare loop with headers |");
    println!("|---|---|---|");
    let names = [
        "bare loop, no headers",
        "bare loop, headers as long",
        "sink",
    ];
    for (name, own) in names.iter().zip(&rates) {
        // Round by round, so that what the machine did meanwhile cancels out.
        let ratios = own.iter().zip(&rates[1]).map(|(own, bare)| own / bare);
        let (ratio, ..) = machine::spread(ratios.collect());
        let (rate, least, most) = machine::spread(own.clone());
        println!("| {name} | {rate:.0} ({least:.0} to {most:.0}) | {ratio:.2} |");
    }
}
