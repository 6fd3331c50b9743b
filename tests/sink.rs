//! The sink against brokers: what arrives, what is refused, what an outage does, where checkpoints are.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock::change::{GroupKey, RecordBatch, Rejected, StreamId};
use penstock::checkpoint::{Checkpoints, GroupCheckpoint, Settlement};
use penstock::config::settings::{LiveSettings, RecordHeaders, RecordTime, Settings};
use penstock::dead_letter::{DeadLetter, Filter};
use penstock::policy::Class;
use penstock::policy::breaker::{self, State};
use penstock::policy::stage::StagePolicies;
use penstock::sink::redpanda::{DeadLetters, RedpandaSink, ShardSink};
use penstock::sink::{Delivered, Settle, Sink, SinkError};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use testkit::batches::{Maker, numbered, position};
use testkit::broker::{Cluster, Faulty, Operator, read_all, unique};
use testkit::machine::Span;
#[cfg(target_os = "linux")]
use testkit::machine::is_alone;
use testkit::{broker, settings};
use tokio::sync::watch;

struct Bench {
    sink: Arc<RedpandaSink>,
    policies: StagePolicies,
    /// Kept: dropping it would end the retunes.
    retune: watch::Sender<Arc<Settings>>,
}

async fn connect(settings: Settings) -> Result<Bench, SinkError> {
    let (retune, live): (_, LiveSettings) = settings::live(settings);
    let policies = StagePolicies::new("sink", live.clone());
    let sink = RedpandaSink::connect(live, policies.clone()).await?;
    Ok(Bench {
        sink,
        policies,
        retune,
    })
}

async fn bench(settings: Settings) -> Bench {
    connect(settings).await.expect("a sink")
}

/// Polls until it holds, at most for `seconds`.
async fn until(what: &str, seconds: u64, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn records_arrive_with_their_headers() {
    let cluster = Cluster::start();
    let mut settings = settings::settings(&unique("p"), &cluster.brokers, 1);
    settings.sink.headers = RecordHeaders {
        position: true,
        table: true,
        operation: true,
        traceparent: true,
    };
    let b = bench(settings).await;
    let mut shard = b.sink.open_shard(0).unwrap();
    let topic = unique("headers");
    let batch = Maker::default()
        .record(position(1, 1), &topic, "a", b"one", &[])
        .record(
            position(1, 2),
            &topic,
            "b",
            b"two",
            &[
                ("event", "created"),
                ("traceparent", "00-1-2-01"),
                ("penstock-table", "forged"),
            ],
        )
        .batch();
    let delivered = shard.submit(batch).await.unwrap().await.unwrap();
    assert!(delivered.poison.is_empty());

    let mut seen = read_all(&cluster.brokers, &topic);
    seen.sort_by(|a, b| a.key.cmp(&b.key));
    let [one, two] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!((one.key_text(), one.text()), ("a", "one"));
    assert_eq!(
        one.header("penstock-position"),
        Some(&*position(1, 1).to_string())
    );
    assert_eq!(one.header("penstock-table"), Some("ks.t"));
    assert_eq!(one.header("penstock-operation"), Some("insert"));
    assert_eq!(one.header("traceparent").map(str::len), Some(55));
    assert_eq!(two.header("event"), Some("created"));
    assert_eq!(two.header("traceparent"), Some("00-1-2-01"));
    assert_eq!(two.header("penstock-table"), Some("ks.t"));
    assert_eq!(two.headers.len(), 5);

    let counts = shard.snapshot();
    assert_eq!(
        (counts.records, counts.acked, counts.batches, counts.bytes),
        (2, 2, 1, 8)
    );
    assert_eq!((counts.queued, counts.oldest), (0, None));
    assert_eq!(counts.ack_latency.iter().sum::<u64>(), 1);
}

/// Row 56. The change is an hour old; both choices are live.
#[tokio::test]
async fn a_record_has_the_changes_time_and_the_position_alone_unless_told() {
    let cluster = Cluster::start();
    let mut settings = settings::settings(&unique("p"), &cluster.brokers, 1);
    settings.sink.timestamp = RecordTime::Change;
    let b = bench(settings).await;
    let mut shard = b.sink.open_shard(0).unwrap();
    let topic = unique("times");
    let hour_ago = (now_ms() - position(1, 0).timestamp_us() / 1000) as u32 / 1000 - 3600;
    let one = |n| {
        let n = hour_ago + n;
        Maker::default()
            .record(position(1, n), &topic, "a", b"v", &[("own", "kept")])
            .batch()
    };
    shard.submit(one(1)).await.unwrap().await.unwrap();
    b.retune.send_modify(|settings| {
        let sink = &mut Arc::make_mut(settings).sink;
        sink.timestamp = RecordTime::Send;
        sink.headers = RecordHeaders::default();
    });
    let before = now_ms();
    shard.submit(one(2)).await.unwrap().await.unwrap();
    let seen = read_all(&cluster.brokers, &topic);
    let [change, send] = &seen[..] else {
        panic!("{seen:?}")
    };
    let of_change = position(1, hour_ago + 1).timestamp_us() / 1000;
    assert_eq!(change.timestamp, Some(of_change));
    assert!(send.timestamp >= Some(before), "{send:?}");
    let names = |s: &broker::Seen| s.headers.iter().map(|h| h.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(change), ["penstock-position", "own"]);
    assert_eq!(names(send), ["own"]);
}

fn now_ms() -> i64 {
    std::time::UNIX_EPOCH
        .elapsed()
        .expect("after 1970")
        .as_millis() as i64
}

#[tokio::test]
async fn per_key_order_holds_across_batches_and_partitions() {
    let cluster = Cluster::start();
    let b = bench(settings::settings(&unique("p"), &cluster.brokers, 1)).await;
    let mut shard = b.sink.open_shard(0).unwrap();
    let topic = unique("order");
    let mut tickets = Vec::new();
    // More than the queue holds, so that a full queue is met on the way.
    for n in 0..120 {
        let batch = numbered(&topic, n * 250, (n + 1) * 250, 40);
        tickets.push(shard.submit(batch).await.unwrap());
    }
    for ticket in tickets {
        ticket.await.unwrap();
    }
    let seen = read_all(&cluster.brokers, &topic);
    assert_eq!(seen.len(), 30_000);
    let partitions: std::collections::BTreeSet<_> = seen.iter().map(|s| s.partition).collect();
    assert_eq!(partitions.len(), 4, "created with sink.topics.partitions");
    let mut last: BTreeMap<String, u32> = BTreeMap::new();
    for s in &seen {
        let n: u32 = s.text().parse().unwrap();
        let before = last.insert(s.key_text().to_owned(), n);
        assert!(before.is_none_or(|b| b + 40 == n), "{before:?} then {n}");
    }
    assert_eq!(shard.snapshot().acked, 30_000);
}

#[tokio::test]
async fn a_record_that_librdkafka_refuses_is_poison_and_the_rest_goes_on() {
    let cluster = Cluster::start();
    let mut settings = settings::settings(&unique("p"), &cluster.brokers, 1);
    let limit = ("message.max.bytes".to_owned(), "2000".to_owned());
    settings.sink.properties.extend([limit]);
    let b = bench(settings).await;
    let mut shard = b.sink.open_shard(0).unwrap();
    let topic = unique("large");
    let batch = Maker::default()
        .record(position(1, 1), &topic, "a", b"small", &[])
        .record(position(1, 2), &topic, "a", &[b'x'; 5000], &[])
        .record(position(1, 3), "no such name!", "a", b"lost", &[])
        .record(position(1, 4), &topic, "a", b"small too", &[])
        .batch();
    let delivered = shard.submit(batch).await.unwrap().await.unwrap();
    let [(1, large), (2, name)] = &delivered.poison[..] else {
        panic!("{delivered:?}")
    };
    let says = "the client takes 2000 (message.max.bytes in sink.properties)";
    assert!(large.contains(says), "{large}");
    assert!(name.contains("not a name for a topic"), "{name}");
    let values: Vec<_> = read_all(&cluster.brokers, &topic)
        .iter()
        .map(|s| s.text().to_owned())
        .collect();
    assert_eq!(values, ["small", "small too"]);
    assert_eq!(shard.snapshot().poison, 2);
    assert_eq!(b.policies.snapshot().failures, 0, "poison is an answer");
}

/// The broker refuses requests without saying which record is to blame.
#[tokio::test]
async fn a_refusal_of_many_condemns_only_the_one_that_is_refused_alone() {
    let faulty = Faulty::start();
    let b = bench(settings::settings(&unique("p"), &faulty.brokers, 1)).await;
    let mut shard = b.sink.open_shard(0).unwrap();
    let topic = unique("suspects");
    faulty.mock.create_topic(&topic, 1, 1).unwrap();
    shard
        .submit(numbered(&topic, 0, 5, 1))
        .await
        .unwrap()
        .await
        .unwrap();

    // Not for its size, by which the others would be as bad.
    let bad = RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD;
    faulty.mock.request_errors(RDKafkaApiKey::Produce, &[bad]);
    let batch = numbered(&topic, 5, 8, 1);
    let refused = shard.submit(Arc::clone(&batch)).await.unwrap().await;
    let error = refused.expect_err("refused together");
    assert!(matches!(error, SinkError::Suspect { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Retryable);
    let again = shard.submit(Arc::clone(&batch)).await;
    assert!(
        again.is_err(),
        "a broken shard takes nothing before a reset"
    );

    shard.reset().await.unwrap();
    // Alone, the second is refused and the others are not.
    faulty.mock.request_errors(
        RDKafkaApiKey::Produce,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR, bad],
    );
    let delivered = shard.submit(batch).await.unwrap().await.unwrap();
    assert_eq!(delivered.poison.len(), 1, "{delivered:?}");
    assert_eq!(delivered.poison[0].0, 1);
    let after = shard.submit(numbered(&topic, 8, 10, 1)).await.unwrap();
    after.await.unwrap();
    // The mock shows what was aborted, too, by which the refused one was found.
    let values: std::collections::BTreeSet<_> = read_all(&faulty.brokers, &topic)
        .iter()
        .map(|s| s.text().to_owned())
        .collect();
    let values: Vec<_> = values.iter().map(String::as_str).collect();
    assert_eq!(values, ["0", "1", "2", "3", "4", "5", "7", "8", "9"]);
    assert_eq!(b.policies.snapshot().failures, 0, "poison is an answer");
}

/// The same against a broker that refuses for a reason: the topic takes less than the client would send.
#[tokio::test]
async fn a_topic_that_takes_less_than_the_client_sends_costs_only_the_large_record() {
    let cluster = Cluster::start();
    let mut settings = settings::settings(&unique("p"), &cluster.brokers, 1);
    let limit = ("max.message.bytes".to_owned(), "3000".to_owned());
    settings.sink.topics.properties.extend([limit]);
    settings.sink.topics.partitions = NonZeroU32::new(1).unwrap();
    let b = bench(settings).await;
    let mut shard = b.sink.open_shard(0).unwrap();
    let topic = unique("limited");
    let small = |maker: Maker, n| maker.record(position(1, n), &topic, "k", b"small", &[]);
    let maker = (0..5).fold(Maker::default(), small);
    let maker = maker.record(position(1, 5), &topic, "k", &[b'x'; 4000], &[]);
    let batch = (6..10).fold(maker, small).batch();
    let (mut rewinds, delivered) = loop_until_delivered(&mut shard, &batch).await;
    assert_eq!(delivered.poison.len(), 1, "{delivered:?}");
    assert_eq!(delivered.poison[0].0, 5);
    assert!(rewinds >= 1);
    // A second large one later: its neighbours go through as well, and the shard is as good as before.
    let maker = Maker::default().record(position(1, 11), &topic, "k", &[b'y'; 4000], &[]);
    let batch = (12..15).fold(maker, small).batch();
    let (more, delivered) = loop_until_delivered(&mut shard, &batch).await;
    rewinds += more;
    assert_eq!((delivered.poison.len(), delivered.poison[0].0), (1, 0));
    let values: Vec<_> = read_all(&cluster.brokers, &topic)
        .iter()
        .map(|s| s.text().to_owned())
        .collect();
    assert!(
        values.len() >= 12 && values.iter().all(|v| v == "small"),
        "{values:?}"
    );
    assert_eq!(b.policies.snapshot().counters.failures, 0);
    assert!(rewinds <= 4, "{rewinds} rewinds for two records");
}

/// What a lane does: rewind and try again.
async fn loop_until_delivered(shard: &mut ShardSink, batch: &Arc<RecordBatch>) -> (u32, Delivered) {
    for rewinds in 0..10 {
        let error = match shard.submit(Arc::clone(batch)).await {
            Ok(ticket) => match ticket.await {
                Ok(delivered) => return (rewinds, delivered),
                Err(error) => error,
            },
            Err(error) => error,
        };
        let answered = matches!(
            error,
            SinkError::Suspect { .. } | SinkError::Narrower { .. }
        );
        assert!(answered, "{error:?}");
        shard.reset().await.unwrap();
    }
    panic!("never delivered");
}

#[tokio::test]
async fn a_delivery_error_fails_all_in_flight_once_and_a_reset_starts_over() {
    let faulty = Faulty::start();
    let b = bench(settings::settings(&unique("p"), &faulty.brokers, 1)).await;
    let mut shard = b.sink.open_shard(0).unwrap();
    let topic = unique("fails");
    faulty.mock.create_topic(&topic, 1, 1).unwrap();
    faulty.mock.request_errors(
        RDKafkaApiKey::Produce,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED],
    );
    let mut tickets = Vec::new();
    for n in 0..3 {
        tickets.push(shard.submit(numbered(&topic, n, n + 1, 1)).await.unwrap());
    }
    for ticket in tickets {
        let error = ticket.await.expect_err("refused");
        assert!(matches!(error, SinkError::Refused { .. }), "{error:?}");
        assert_eq!(
            error.class(),
            Class::Retryable,
            "someone may give the right"
        );
    }
    assert_eq!(
        b.policies.snapshot().failures,
        0,
        "the broker answered: no other topic's records wait for it"
    );
    shard.reset().await.unwrap();
    let complaint = b.sink.complaint().expect("health tells").to_string();
    assert!(
        complaint.starts_with("unhealthy(waiting for topic fails"),
        "{complaint}"
    );
    faulty.mock.clear_request_errors(RDKafkaApiKey::Produce);
    let ticket = shard.submit(numbered(&topic, 0, 3, 1)).await.unwrap();
    ticket.await.unwrap();
    assert_eq!(read_all(&faulty.brokers, &topic).len(), 3);
    assert_eq!(b.sink.complaint(), None);
    assert_eq!(shard.snapshot().resets, 1);
}

/// librdkafka's threads for brokers.
#[cfg(target_os = "linux")]
const BROKERS: &str = "rdk:broker";

/// What threads whose names begin so have used of the processor.
#[cfg(target_os = "linux")]
fn ran(threads: &str) -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("this process's threads");
    let of = |name: std::ffi::OsString| {
        let dir = std::path::Path::new("/proc/self/task").join(name);
        let comm = std::fs::read_to_string(dir.join("comm")).ok()?;
        let ran = std::fs::read_to_string(dir.join("schedstat")).ok()?;
        let ns: u64 = ran.split(' ').next()?.parse().ok()?;
        comm.starts_with(threads).then(|| Duration::from_nanos(ns))
    };
    tasks.flatten().filter_map(|t| of(t.file_name())).sum()
}

/// Threads that fetch reports wait for them: whoever waits in whole milliseconds for a part of one asks without a pause.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn idle_producers_take_no_processor() {
    if !is_alone("idle_producers_take_no_processor") {
        return;
    }
    const SHARDS: u32 = 8;
    let faulty = Faulty::start();
    let b = bench(settings::settings(&unique("p"), &faulty.brokers, SHARDS)).await;
    let shards: Vec<_> = (0..SHARDS).map(|n| b.sink.open_shard(n).unwrap()).collect();
    let used = || ran("reports") + ran("producer pollin");
    let before = used();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let used = used() - before;
    println!("{SHARDS} idle producers fetched their reports for {used:.1?} of a second");
    assert!(used < Duration::from_millis(30), "{used:?}");
    drop(shards);
}

/// librdkafka's thread asks without a pause whether it may send what waits for an answer about what went before: a
/// processor for each shard, while brokers are slower than the source. Only in a process of its own are these threads
/// the test's.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_backlog_takes_no_processor() {
    if !is_alone("a_backlog_takes_no_processor") {
        return;
    }
    let faulty = Faulty::start();
    let b = bench(settings::settings(&unique("p"), &faulty.brokers, 1)).await;
    let mut shard = b.sink.open_shard(0).unwrap();
    let topic = unique("backlog");
    faulty.mock.create_topic(&topic, 1, 1).unwrap();
    let first = shard.submit(numbered(&topic, 0, 1, 1)).await.unwrap();
    first.await.unwrap();
    let slow = Duration::from_millis(60);
    faulty.mock.broker_round_trip_time(1, slow).unwrap();
    // A machine that is busy otherwise may spoil one backlog; of threads that never pause none is cheap.
    let mut shares = Vec::new();
    for backlog in 0..5 {
        let (began, before) = (Instant::now(), ran(BROKERS));
        let mut tickets = Vec::new();
        for batch in 0..60 {
            let from = 1 + (backlog * 60 + batch) * 50;
            let batch = numbered(&topic, from, from + 50, 7);
            tickets.push(shard.submit(batch).await.unwrap());
        }
        for ticket in tickets {
            ticket.await.unwrap();
        }
        let (took, used) = (began.elapsed(), ran(BROKERS) - before);
        println!("3000 records in {took:.1?}, of which the threads for brokers ran {used:.1?}");
        assert!(took > slow, "there was a backlog");
        shares.push(used.as_secs_f64() / took.as_secs_f64());
        if shares.last() < Some(&0.15) {
            return;
        }
    }
    panic!("{shares:?}");
}

/// Kafka takes any first sequence of a producer in a partition. So where the first request is refused, as while the
/// partition's leader is not ready yet, and the second, already on its way, is taken, librdkafka takes the first for
/// acknowledged by the second, and its records are gone (KAFKA-15591).
#[tokio::test]
async fn what_the_brokers_gave_no_place_to_is_not_acknowledged() {
    let faulty = Faulty::start();
    let b = bench(settings::settings(&unique("p"), &faulty.brokers, 1)).await;
    let mut shard = b.sink.open_shard(0).unwrap();
    let topic = unique("overtaken");
    faulty.mock.create_topic(&topic, 1, 1).unwrap();
    // The mock takes any sequence at any time.
    let known = shard.submit(numbered(&topic, 0, 1, 1)).await.unwrap();
    known.await.unwrap();
    // Both requests are under way before the first is answered, also where the machine is busy.
    let slow = Duration::from_millis(2_000);
    faulty.mock.broker_round_trip_time(1, slow).unwrap();
    let unready = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    faulty
        .mock
        .request_errors(RDKafkaApiKey::Produce, &[unready]);
    let first = shard.submit(numbered(&topic, 1, 3, 1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let second = shard.submit(numbered(&topic, 3, 6, 1)).await.unwrap();
    let first = first.await;
    second.await.ok();
    let values = |brokers: &str| -> Vec<String> {
        let seen = read_all(brokers, &topic);
        seen.iter().map(|s| s.text().to_owned()).collect()
    };
    faulty
        .mock
        .broker_round_trip_time(1, Duration::ZERO)
        .unwrap();
    assert_eq!(
        values(&faulty.brokers),
        ["0", "3", "4", "5"],
        "the scene is set"
    );
    let error = first.expect_err("it is not there");
    assert_eq!(error.class(), Class::Retryable);

    shard.reset().await.unwrap();
    let again = shard.submit(numbered(&topic, 1, 6, 1)).await.unwrap();
    again.await.unwrap();
    assert_eq!(values(&faulty.brokers)[4..], ["1", "2", "3", "4", "5"]);
}

/// What the coordinator drives beside the shards.
fn guard(sink: &Arc<RedpandaSink>) -> tokio::task::JoinHandle<()> {
    let sink = Arc::clone(sink);
    tokio::spawn(async move { sink.guard().await })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_late_ends_the_run_of_failures() {
    let faulty = Faulty::start();
    let mut settings = settings::settings(&unique("p"), &faulty.brokers, 1);
    settings.sink.attempt_timeout = Duration::from_millis(600);
    let b = bench(settings).await;
    let topic = unique("late");
    faulty.mock.create_topic(&topic, 2, 1).unwrap();
    let mut shard = b.sink.open_shard(0).unwrap();
    let guard = guard(&b.sink);
    let first = shard.submit(numbered(&topic, 0, 10, 10)).await.unwrap();
    first.await.unwrap();
    faulty
        .mock
        .broker_round_trip_time(1, Duration::from_millis(1_000))
        .unwrap();
    let late = shard.submit(numbered(&topic, 10, 20, 10)).await.unwrap();
    until("a failure", 10, || b.policies.snapshot().failures > 0).await;
    late.await.unwrap();
    until("none any more", 10, || b.policies.snapshot().failures == 0).await;
    assert_eq!(b.policies.snapshot().breaker, State::Closed);
    guard.abort();
}

/// The issue's scene: silence → open after exactly five timeouts → nothing more is taken → half-open →
/// closed after three → everything once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_opens_the_breaker_loses_nothing_and_ends_by_itself() {
    let faulty = Faulty::start();
    let mut settings = settings::settings(&unique("p"), &faulty.brokers, 1);
    let timeout = Duration::from_millis(400);
    let open_for = Duration::from_millis(600);
    let threshold = |n| NonZeroU32::new(n).unwrap();
    settings.sink.attempt_timeout = timeout;
    settings.sink.policies.breaker =
        breaker::Settings::new(threshold(5), open_for, threshold(3)).unwrap();
    let b = bench(settings).await;
    let topic = unique("outage");
    faulty.mock.create_topic(&topic, 2, 1).unwrap();
    let mut shard = b.sink.open_shard(0).unwrap();
    let guard = guard(&b.sink);
    shard
        .submit(numbered(&topic, 0, 100, 10))
        .await
        .unwrap()
        .await
        .unwrap();

    let down = Span::here();
    faulty.down();
    // Ever more batches, as a lane would, until the breaker or the queue says stop.
    let (stop, mut stopped) = watch::channel(false);
    let sink = Arc::clone(&b.sink);
    let feed = tokio::spawn({
        let topic = topic.clone();
        async move {
            let (mut tickets, mut next) = (Vec::new(), 100);
            while !*stopped.borrow_and_update() {
                let batch = numbered(&topic, next, next + 100, 10);
                tickets.push(shard.submit(batch).await.expect("waits, does not fail"));
                next += 100;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            for ticket in tickets {
                ticket.await.expect("delivered after the outage");
            }
            next
        }
    });
    let mut counts = b.policies.snapshot();
    until("open", 30, || {
        counts = b.policies.snapshot();
        counts.breaker == State::Open
    })
    .await;
    let opened = down.elapsed();
    // A probe that failed before anybody looked counts as well.
    let probed = counts.counters.half_opened;
    assert!(
        counts.failures == 5 || probed > 0,
        "{}, {probed}",
        counts.failures
    );
    // Far below what librdkafka itself waits for.
    assert!(
        opened < down.at_most(timeout * 6),
        "opened {opened:?} after the broker went away"
    );
    let age = sink.snapshot().oldest.expect("something is waiting");
    assert!(age <= down.elapsed(), "age {age:?}");

    let queued = sink.snapshot().queued;
    assert!(queued > 0 && queued <= 10_000, "{queued} queued");
    // The first half-open probe finds the broker still away: open again, and nothing new is taken meanwhile.
    let opens = b.policies.snapshot().counters.opened;
    until("open again", 30, || {
        b.policies.snapshot().counters.opened > opens
    })
    .await;
    let held = sink.snapshot().queued;
    assert!(
        held <= queued + 100,
        "an open breaker lets nothing in: {queued} → {held}"
    );

    faulty.up();
    until("closed", 20, || {
        b.policies.snapshot().breaker == State::Closed
    })
    .await;
    stop.send(true).unwrap();
    let sent = feed.await.unwrap();
    assert_eq!(sink.snapshot().queued, 0);
    let seen = read_all(&faulty.brokers, &topic);
    let mut last: BTreeMap<String, u32> = BTreeMap::new();
    for s in &seen {
        let n: u32 = s.text().parse().unwrap();
        let before = last.insert(s.key_text().to_owned(), n);
        assert!(before.is_none_or(|b| b + 10 == n), "{before:?} then {n}");
    }
    assert_eq!(seen.len(), sent as usize, "every record once");
    assert_eq!(sink.snapshot().resets, 0);
    guard.abort();
}

fn group(n: u32) -> GroupKey {
    GroupKey(format!("ks.t/1764000000000/{n:032x}").into())
}

fn checkpoint(until_us: i64) -> GroupCheckpoint {
    let at = position(1, 4_000_000);
    GroupCheckpoint {
        complete_until_us: until_us,
        streams: BTreeMap::from([(StreamId([1; 16]), (at.time, 3))]),
        ..GroupCheckpoint::default()
    }
}

async fn load(name: &str, brokers: &str, shards: u32) -> Checkpoints {
    let b = bench(settings::settings(name, brokers, shards)).await;
    let mut all = Checkpoints::new();
    let numbers: Vec<u32> = (0..shards).collect();
    for (shard, mine) in b.sink.load(&numbers).await.unwrap() {
        assert!(mine.keys().all(|g| g.shard(shards) == shard));
        all.extend(mine);
    }
    all
}

fn moved(progress: &Checkpoints) -> Settlement {
    Settlement {
        progress: progress.clone(),
        ..Settlement::default()
    }
}

#[tokio::test]
async fn checkpoints_survive_restarts_and_other_numbers_of_shards() {
    let cluster = Cluster::start();
    let name = unique("checkpoints");
    assert_eq!(load(&name, &cluster.brokers, 4).await, Checkpoints::new());

    let mut expected = Checkpoints::new();
    {
        let b = bench(settings::settings(&name, &cluster.brokers, 4)).await;
        for shard in 0..4 {
            let mut sink = b.sink.open_shard(shard).unwrap();
            let mine = (0..40).map(group).filter(|g| g.shard(4) == shard);
            let mut changed: Checkpoints = mine.map(|g| (g, checkpoint(1))).collect();
            sink.settle(&[], &moved(&changed)).await.unwrap();
            for (n, c) in changed.values_mut().enumerate() {
                c.complete_until_us = 1000 + n as i64;
            }
            sink.settle(&[], &moved(&changed)).await.unwrap();
            let (gone, _) = changed.pop_first().expect("each shard has groups");
            let forgotten = Settlement {
                forgotten: [gone].into(),
                ..Settlement::default()
            };
            sink.settle(&[], &forgotten).await.unwrap();
            expected.extend(changed);
        }
    }
    assert_eq!(expected.len(), 36);
    assert_eq!(load(&name, &cluster.brokers, 4).await, expected);
    for shards in [6, 2, 4] {
        assert_eq!(load(&name, &cluster.brokers, shards).await, expected);
    }
    // What moved is where it belongs now, and nowhere else.
    let mut live: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    let mut last = BTreeMap::new();
    for s in read_all(&cluster.brokers, &format!("penstock.{name}.checkpoints")) {
        last.insert((s.key_text().to_owned(), s.partition), s.value.is_some());
    }
    for ((key, partition), _) in last.into_iter().filter(|(_, alive)| *alive) {
        live.entry(key).or_default().push(partition);
    }
    assert_eq!(live.len(), 36);
    for (key, partitions) in live {
        let shard = GroupKey(key.as_str().into()).shard(4) as i32;
        assert_eq!(partitions, [shard], "{key}");
    }
}

#[tokio::test]
async fn a_foreign_checkpoint_is_skipped_and_one_of_a_later_version_named_by_its_offset() {
    let cluster = Cluster::start();
    let name = unique("corrupt");
    load(&name, &cluster.brokers, 1).await;
    let topic = format!("penstock.{name}.checkpoints");
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &cluster.brokers)
        .create()
        .unwrap();
    let write = |key: &str, value: &str| {
        let record = BaseRecord::to(&topic).key(key).payload(value);
        producer.send(record.partition(0)).unwrap();
        producer.flush(Duration::from_secs(10)).unwrap();
    };
    let group = "ks.t/1764000000000/00";
    write(group, r#"{"v":1,"complete_until_us":5}"#);
    // What somebody else writes there is skipped.
    write("x", "x");
    let b = bench(settings::settings(&name, &cluster.brokers, 1)).await;
    let found = b.sink.load(&[0]).await.unwrap();
    assert_eq!(found[0].1[&GroupKey(group.into())].complete_until_us, 5);
    // What a later version writes is not: its place would be lost.
    write(group, r#"{"v":99,"complete_until_us":7}"#);
    let error = b.sink.load(&[0]).await.unwrap_err();
    assert_eq!(error.class(), Class::Fatal);
    let text = error.to_string();
    assert!(
        text.starts_with(&format!(
            "topic {topic}, partition 0, offset 2: not a checkpoint:"
        )),
        "{text}"
    );
}

#[tokio::test]
async fn wrong_brokers_are_one_clear_line_in_bounded_time() {
    let started = Instant::now();
    let error = |brokers: String| async move {
        match connect(settings::settings("p", &brokers, 1)).await {
            Ok(_) => panic!("connected to {brokers}"),
            Err(error) => error.to_string(),
        }
    };
    // Nobody listens there.
    let free = "127.0.0.1:1";
    let refused = error(free.to_owned()).await;
    assert!(
        refused.starts_with(&format!(
            "no Redpanda or Kafka broker answers at {free}: {free}: "
        )) && refused.contains("refused"),
        "{refused}"
    );
    let unknown = error("no-such-host.invalid:9092".into()).await;
    assert!(unknown.contains("cannot be resolved"), "{unknown}");
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "{:?}",
        started.elapsed()
    );
    // Something listens and is no broker.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = error(mute.local_addr().unwrap().to_string()).await;
    assert!(silent.contains("does not answer within"), "{silent}");
    assert!(
        started.elapsed() < Duration::from_secs(30),
        "{:?}",
        started.elapsed()
    );
    for line in [refused, unknown, silent] {
        assert!(!line.contains('\n'), "{line}");
    }
}

#[tokio::test]
async fn a_missing_topic_is_waited_for_where_none_may_be_created() {
    let cluster = Cluster::start();
    let mut settings = settings::settings(&unique("p"), &cluster.brokers, 1);
    settings.sink.topics.create = false;
    let b = bench(settings).await;
    let mut shard = b.sink.open_shard(0).unwrap();
    let topic = unique("missing");
    let submitted = shard.submit(numbered(&topic, 0, 1, 1));
    let operator = async {
        until("health tells", 10, || b.sink.complaint().is_some()).await;
        let said = b
            .sink
            .complaint()
            .map(|c| c.to_string())
            .unwrap_or_default();
        assert!(said.contains("sink.topics.create is false"), "{said}");
        Operator::new(&cluster.brokers).create(&topic, 1, &[]).await;
    };
    let (ticket, ()) = tokio::join!(submitted, operator);
    ticket.unwrap().await.unwrap();
    assert_eq!(b.sink.complaint(), None);
    assert_eq!(b.policies.snapshot().counters.failures, 0);
}

fn rejected(source: u32, stage: &str, error: &str) -> Rejected {
    Rejected {
        source,
        stage: stage.into(),
        error: error.into(),
        attempts: 1,
    }
}

fn dead_letters(b: &Bench) -> DeadLetters {
    let policies = StagePolicies::new("dead_letter", b.retune.subscribe());
    DeadLetters::open(&b.sink, policies).unwrap()
}

#[tokio::test]
async fn dead_letters_are_kept_listed_rebuilt_and_purged() {
    let cluster = Cluster::start();
    let name = unique("dead");
    let b = bench(settings::settings(&name, &cluster.brokers, 1)).await;
    let dead = dead_letters(&b);
    assert_eq!(dead.list(&Filter::default()).await.unwrap(), []);

    let batch = numbered("t", 0, 4, 1);
    let letters: Vec<_> = [(0, "transform.a", "a trap"), (2, "transform.b", "Too odd")]
        .iter()
        .map(|(i, stage, error)| {
            DeadLetter::of_rejected(&name, &batch.source, &rejected(*i, stage, error)).unwrap()
        })
        .collect();
    dead.write(&letters).await.unwrap();
    let poison = DeadLetter::of_poison(&name, &batch, &(3, "too large".into())).unwrap();
    dead.write(&[poison]).await.unwrap();

    // As any Kafka client sees them.
    let seen = read_all(&cluster.brokers, &format!("{name}.dead-letters"));
    assert_eq!(seen.len(), 3);
    let b_letter = seen
        .iter()
        .find(|s| s.header("penstock-error") == Some("Too odd"));
    let b_letter = b_letter.expect("the second one");
    assert_eq!(b_letter.key_text(), position(1, 2).to_string());
    assert_eq!(b_letter.header("penstock-stage"), Some("transform.b"));
    assert_eq!(b_letter.header("penstock-operation"), Some("insert"));
    assert_eq!(b_letter.header("penstock-attempts"), Some("1"));
    assert_eq!(b_letter.header("penstock-pipeline"), Some(&*name));
    assert!(b_letter.text().contains(&hex::encode("k0")));

    let all = dead.list(&Filter::default()).await.unwrap();
    assert_eq!(all.len(), 3);
    let of_sink = Filter {
        stage: Some("sink".into()),
        ..Filter::default()
    };
    let found = dead.list(&of_sink).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].error, "topic t: too large");

    // What is read back is what was written, and makes the change again.
    let read = dead
        .get(position(1, 2))
        .await
        .unwrap()
        .expect("it is there");
    assert_eq!(read.change, letters[1].change);
    let rebuilt = read.rebuild(0, 1, 7).unwrap();
    let original = batch.source.rows.get(2).unwrap();
    assert_eq!(rebuilt.positions, [position(1, 2)]);
    assert_eq!(rebuilt.rows.get(0).unwrap().meta(), original.meta());
    assert_eq!(rebuilt.rows.get(0).unwrap().column(0), original.column(0));
    assert_eq!(rebuilt.tables, batch.source.tables);

    // A replay that fails replaces the letter.
    let again = read.failed_again("transform.b".into(), "still odd".into());
    dead.write(&[again]).await.unwrap();
    let read = dead
        .get(position(1, 2))
        .await
        .unwrap()
        .expect("it is there");
    assert_eq!((read.attempts, &*read.error), (2, "still odd"));
    assert_eq!(dead.list(&Filter::default()).await.unwrap().len(), 3);

    assert_eq!(dead.purge(&of_sink).await.unwrap(), (1, 0));
    assert_eq!(dead.list(&of_sink).await.unwrap(), []);
    assert_eq!(dead.purge(&Filter::default()).await.unwrap(), (2, 0));
    assert_eq!(dead.list(&Filter::default()).await.unwrap(), []);
}

#[tokio::test]
async fn a_change_too_large_for_its_topic_is_not_too_large_for_its_dead_letter() {
    let cluster = Cluster::start();
    let name = unique("huge");
    let b = bench(settings::settings(&name, &cluster.brokers, 1)).await;
    let mut shard = b.sink.open_shard(0).unwrap();
    // Random, so that compression does not make it small; more than a record may have, and doubled as hex.
    let noise: Vec<u8> = (0..700_000).map(|_| rand::random()).collect();
    let key = String::from_utf8_lossy(&noise).into_owned();
    let batch = Maker::default()
        .record(position(1, 1), &unique("t"), &key, b"", &[])
        .batch();
    let delivered = shard
        .submit(Arc::clone(&batch))
        .await
        .unwrap()
        .await
        .unwrap();
    assert_eq!(delivered.poison.len(), 1);
    let dead = dead_letters(&b);
    let letter = DeadLetter::of_poison(&name, &batch, &delivered.poison[0]).unwrap();
    dead.write(&[letter]).await.unwrap();
    let read = dead.get(position(1, 1)).await.unwrap().expect("kept");
    let rebuilt = read.rebuild(0, 0, 7).unwrap();
    let column = rebuilt.rows.get(0).unwrap().column(0).unwrap().1.to_vec();
    assert!(column == key.as_bytes(), "byte for byte");
}

#[tokio::test]
async fn a_flood_is_a_broken_stage_and_writes_nothing() {
    let cluster = Cluster::start();
    let name = unique("flood");
    let mut settings = settings::settings(&name, &cluster.brokers, 1);
    settings.dead_letter.max = NonZeroU32::new(3).unwrap();
    let b = bench(settings).await;
    let dead = dead_letters(&b);
    let batch = numbered("t", 0, 8, 1);
    let letters = |range: std::ops::Range<u32>, stage: &str| -> Vec<_> {
        range
            .map(|i| {
                let rejected = rejected(i, stage, "no");
                DeadLetter::of_rejected(&name, &batch.source, &rejected).unwrap()
            })
            .collect()
    };
    dead.write(&letters(0..3, "transform.a")).await.unwrap();
    let error = dead.write(&letters(3..4, "transform.a")).await.unwrap_err();
    let SinkError::Flood(flooded) = &error else {
        panic!("{error:?}")
    };
    assert_eq!((&*flooded.stage, flooded.count), ("transform.a", 4));
    assert_eq!(error.class(), Class::Fatal);
    dead.write(&letters(4..5, "transform.b")).await.unwrap();
    assert_eq!(dead.list(&Filter::default()).await.unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_waits_for_the_broker() {
    let faulty = Faulty::start();
    let name = unique("patient");
    let mut settings = settings::settings(&name, &faulty.brokers, 1);
    settings.sink.attempt_timeout = Duration::from_millis(200);
    let b = bench(settings).await;
    let dead = dead_letters(&b);
    let batch = numbered("t", 0, 2, 1);
    let letter = |i| {
        let rejected = rejected(i, "transform.a", "no");
        DeadLetter::of_rejected(&name, &batch.source, &rejected).unwrap()
    };
    dead.write(&[letter(0)]).await.unwrap();
    faulty.down();
    let second = [letter(1)];
    let mut write = Box::pin(dead.write(&second));
    let early = tokio::time::timeout(Duration::from_millis(700), &mut write).await;
    assert!(early.is_err(), "acknowledged by nobody: {early:?}");
    faulty.up();
    write.await.unwrap();
    assert_eq!(dead.list(&Filter::default()).await.unwrap().len(), 2);
}

/// Row 8: what is there already is not taken as it is.
#[tokio::test]
async fn a_checkpoint_topic_that_deletes_is_mended_or_refused() {
    let cluster = Cluster::start();
    let name = unique("p");
    let topic = format!("penstock.{name}.checkpoints");
    let operator = Operator::new(&cluster.brokers);
    operator
        .create(
            &topic,
            1,
            &[("cleanup.policy", "delete"), ("retention.ms", "3600000")],
        )
        .await;
    let mut settings = settings::settings(&name, &cluster.brokers, 3);
    settings.sink.topics.create = false;
    let b = bench(settings.clone()).await;
    let error = b
        .sink
        .load(&[0])
        .await
        .expect_err("it would lose checkpoints");
    let said = error.to_string();
    assert!(
        said.contains("cleanup.policy is \"delete\"") && said.contains("set it to \"compact\""),
        "{said}"
    );
    assert_eq!(error.class(), Class::Retryable, "someone may set it");
    assert!(
        b.sink
            .complaint()
            .is_some_and(|c| c.to_string().contains("cleanup.policy"))
    );

    settings.sink.topics.create = true;
    let b = bench(settings).await;
    b.sink.load(&[0]).await.expect("mended");
    assert_eq!(b.sink.complaint(), None);
    let property = async |name: &str| operator.property(&topic, name).await;
    assert_eq!(property("cleanup.policy").await.as_deref(), Some("compact"));
    assert_eq!(
        property("retention.ms").await.as_deref(),
        Some("3600000"),
        "what was set stays"
    );
    assert_eq!(operator.partitions(&topic), 3);
}

/// Row 28: too few replicas in sync. The brokers answer, so nothing is refused or cut, and librdkafka tries again by itself.
#[tokio::test]
async fn a_wait_for_acknowledgements_has_its_reason_long_before_it_is_a_failure() {
    let faulty = Faulty::start();
    let b = bench(settings::settings(&unique("p"), &faulty.brokers, 1)).await;
    let mut shard = b.sink.open_shard(0).unwrap();
    let topic = unique("thin");
    faulty.mock.create_topic(&topic, 1, 1).unwrap();
    let sink = b.sink.clone();
    let guard = tokio::spawn(async move { sink.guard().await });
    let first = shard.submit(numbered(&topic, 0, 1, 1)).await.unwrap();
    first.await.unwrap();
    assert_eq!(b.sink.complaint(), None);

    let errors = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 25];
    faulty.mock.request_errors(RDKafkaApiKey::Produce, &errors);
    let began = Span::here();
    let waits = shard.submit(numbered(&topic, 1, 2, 1)).await.unwrap();
    until("a reason", 30, || b.sink.complaint().is_some()).await;
    let (told, said) = (began.elapsed(), b.sink.complaint().map(|c| c.to_string()));
    println!("told after {told:.1?}: {said:?}");
    assert!(said.is_some_and(|said| said.contains("no acknowledgement for more than 1 s")));
    assert!(told < began.at_most(Duration::from_secs(2)), "{told:?}");
    waits.await.unwrap();
    until("it is over", 30, || b.sink.complaint().is_none()).await;
    guard.abort();
}
