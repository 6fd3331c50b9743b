//! Outages of the broker, end to end by the real program: reading pauses, memory stays where it is, nothing is
//! lost, repeated or dead-lettered.

use std::time::{Duration, Instant};

use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use testkit::broker::{Faulty, Flow, Valve};
use testkit::machine::Span;
use testkit::process::{LONG, Metrics, Running, Setup, World, asked, complete_and_ordered, keys};
use testkit::{broker, plugins};
use uuid::Uuid;

const ATTEMPT: Duration = Duration::from_millis(200);
const OPEN_FOR: Duration = Duration::from_millis(700);
const MAX_IN_FLIGHT: u32 = 500;
const BATCH: u32 = 50;
const SHARDS: u32 = 2;

/// What two shards may have read and not delivered: what is in flight, the batch that overshoots, and those in
/// the two queues and in the hands of the three stages.
const MOST_AHEAD: u32 = SHARDS * (MAX_IN_FLIGHT + BATCH * (1 + 2 + 2 + 3));

/// Thresholds are the defaults, 5 and 3; only the times are short.
fn quick(open_for: Duration) -> String {
    format!(
        r#"
[health]
check_interval = "200ms"

[policies.retry]
max = "500ms"

[sink.breaker]
open_for = "{}ms"
"#,
        open_for.as_millis()
    )
}

async fn world(brokers: &str, open_for: Duration) -> World {
    let mut world = World::with(Setup {
        brokers: Some(brokers.to_owned()),
        extra: quick(open_for),
        ..Setup::default()
    })
    .await;
    world.set("pipeline.max_in_flight", MAX_IN_FLIGHT);
    world.set("pipeline.batch_size", BATCH);
    world.set("sink.attempt_timeout", format!("{}ms", ATTEMPT.as_millis()));
    world
}

fn is_open(metrics: &Metrics) -> bool {
    metrics.stage("penstock_breaker_opened_total", "sink") >= 1.0
}

fn read(metrics: &Metrics) -> f64 {
    metrics.sum("penstock_changes_read_total", &[])
}

/// What of the log tells the story.
fn story(running: &Running) -> String {
    let tells = |line: &&str| {
        ["breaker", "health changed"]
            .iter()
            .any(|what| line.contains(what))
    };
    let text = running.text();
    text.lines()
        .filter(tells)
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The whole scene: `fail` begins the outage, `mend` ends it.
async fn outage(world: &World, what: &str, fail: impl FnOnce(), mend: impl FnOnce()) {
    let keys = keys(16);
    let (before, after) = (20, 600);
    world.write(&keys, 0, before).await;
    let running = world.start(1);
    world.await_records(keys.len() * before as usize, LONG, &running);
    let settled = running
        .await_metrics("all is settled", LONG, |m| {
            m.sum("penstock_in_flight_changes", &[]) == 0.0
        })
        .await;
    // librdkafka looks for a transaction's coordinator a second time only after half a second, which is more than an
    // attempt may take here: the breaker may have opened and closed over the start.
    let closed = |m: &Metrics| m.stage("penstock_breaker_closed_total", "sink");
    let at_the_start = closed(&settled);

    fail();
    let failed_at = Instant::now();
    let (_, opened) = tokio::join!(
        world.write(&keys, before, after),
        running.await_metrics("the breaker opens", LONG, is_open)
    );
    let opened_after = failed_at.elapsed();
    // A probe that failed before anybody looked counts as well; that it took exactly five is in the line.
    assert!(opened.stage("penstock_calls_failed_total", "sink") >= 5.0);
    let line = "breaker opened stage=sink failures=5 ";
    assert!(running.text().contains(line), "{}", running.text());

    // Reading goes on until what may be in flight is, and then stops: for as long as is looked, in which it is probed.
    let seconds = asked("PENSTOCK_TEST_OUTAGE_SECONDS", 3);
    let lasts = Duration::from_secs(seconds.into());
    let probed = |m: &Metrics| m.stage("penstock_breaker_half_opened_total", "sink");
    let mut last = (Instant::now(), -1.0, 0);
    let during = running
        .await_metrics("reading pauses, and it is probed", LONG + lasts, |m| {
            let since = match read(m) == last.1 {
                true => last.0,
                false => Instant::now(),
            };
            // What was just read finds its place yet.
            let resident = match since.elapsed() < Duration::from_millis(500) {
                true => running.resident(),
                false => last.2,
            };
            last = (since, read(m), resident);
            since.elapsed() > lasts
                && m.sum("penstock_queue_fill_ratio", &[r#"stage="sink""#]) > 0.0
                && probed(m) >= 1.0
        })
        .await;
    let (_, paused, resident) = last;
    let written = f64::from(keys.len() as u32 * (before + after));
    let most = f64::from(keys.len() as u32 * before + MOST_AHEAD);
    assert!(
        paused <= most && most < written,
        "{what}: {paused} > {most}"
    );
    let grown = running.resident().saturating_sub(resident);
    assert!(grown < 8 << 20, "{what}: grew by {grown} bytes");
    assert_eq!(during.sum("penstock_dead_letters_total", &[]), 0.0);
    let probes = probed(&during);
    assert_eq!(closed(&during), at_the_start, "{what}: {}", running.text());

    mend();
    let mended_at = Instant::now();
    running
        .await_metrics("the breaker closes", LONG, |m| {
            m.stage("penstock_breaker_state", "sink") == 0.0
        })
        .await;
    let closed_after = mended_at.elapsed();
    let total = before + after;
    world.await_records(keys.len() * total as usize, LONG, &running);
    let end = running.metrics().await;
    // An attempt takes 200 ms here: where a second passes without an acknowledgement while all that waited is sent, as on a
    // machine that is busy with other things, it opens and closes once more. At the defaults it does not: `back_soon`.
    assert!(closed(&end) > at_the_start, "{what}: {}", running.text());
    assert_eq!(end.sum("penstock_dead_letters_total", &[]), 0.0);
    assert_eq!(end.sum("penstock_restarts_total", &[]), 0.0);
    let story = story(&running);
    running.stop_cleanly();
    let repeats = complete_and_ordered(&world.seen(), &keys, total);
    assert_eq!(repeats, 0, "{what}: every change is delivered once");
    println!(
        "{what}: {written} changes; opened {opened_after:.1?} into the outage with {paused} read; in {seconds} s \
         more 0 read, {} KiB resident memory more, {probes} probes; closed {closed_after:.1?} after its end; \
         0 lost, 0 repeated, 0 dead letters\n{story}",
        grown >> 10,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_away_and_comes_back() {
    let valve = Valve::start(Flow::Open);
    let world = world(&valve.brokers, OPEN_FOR).await;
    let (cut, open) = (|| valve.set(Flow::Cut), || valve.set(Flow::Open));
    outage(&world, "connections cut", cut, open).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_falls_silent() {
    let valve = Valve::start(Flow::Open);
    let world = world(&valve.brokers, OPEN_FOR).await;
    let (silence, open) = (|| valve.set(Flow::Silent), || valve.set(Flow::Open));
    outage(&world, "no answers", silence, open).await;
}

/// librdkafka's own broker: every produce request is answered with an error that asks to try again.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_answers_errors() {
    let faulty = Faulty::start();
    let world = world(&faulty.brokers, OPEN_FOR).await;
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS;
    // More than can be asked for in the time of the test.
    let errors = vec![error; 50_000];
    outage(
        &world,
        "answers of NOT_ENOUGH_REPLICAS",
        || faulty.mock.request_errors(RDKafkaApiKey::Produce, &errors),
        || faulty.mock.clear_request_errors(RDKafkaApiKey::Produce),
    )
    .await;
}

/// All the defaults that users get, but for the pace of the source: nothing that this is about.
async fn default_world(valve: &Valve, extra: &str) -> World {
    World::with(Setup {
        brokers: Some(valve.brokers.clone()),
        extra: extra.to_owned(),
        ..Setup::default()
    })
    .await
}

/// Writes until the breaker is open; how long after `failed_at` that was.
async fn opened(world: &World, running: &Running, failed_at: &Span) -> Duration {
    let keys = keys(8);
    for n in 0.. {
        world.write(&keys, n, 1).await;
        if running.text().contains("breaker opened stage=sink") {
            break;
        }
        assert!(failed_at.elapsed() < LONG, "{}", running.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    failed_at.elapsed()
}

/// Row 28: with the defaults, refused connections are failures as they happen.
#[tokio::test(flavor = "multi_thread")]
async fn with_the_defaults_refused_connections_open_the_breaker_within_5_s() {
    let valve = Valve::start(Flow::Open);
    let world = default_world(&valve, "").await;
    let running = world.start(1);
    world.write(&keys(8), 0, 20).await;
    world.await_records(8 * 20, LONG, &running);
    let failed_at = Span::of(&running);
    let within = |seconds| failed_at.at_most(Duration::from_secs(seconds));
    valve.set(Flow::Cut);
    running.await_line("waiting for the brokers", LONG);
    let told = failed_at.elapsed();
    assert!(told < within(2), "{told:?}");
    let opened = opened(&world, &running, &failed_at).await;
    assert!(opened < within(5), "{opened:?}");
    running.await_line("health changed component=\"sink\"", LONG);
    let health = failed_at.elapsed();
    println!("cut: told after {told:.1?}, open after {opened:.1?}, health after {health:.1?}");
    // One check_interval, and the time that it takes to look.
    assert!(health < within(11), "{health:?}");
}

/// … and so is silence, within 15 s.
#[tokio::test(flavor = "multi_thread")]
async fn with_the_defaults_a_silent_broker_opens_the_breaker_within_15_s() {
    let valve = Valve::start(Flow::Open);
    let world = default_world(&valve, "").await;
    let running = world.start(1);
    world.write(&keys(8), 0, 20).await;
    world.await_records(8 * 20, LONG, &running);
    let failed_at = Span::of(&running);
    valve.set(Flow::Silent);
    let opened = opened(&world, &running, &failed_at).await;
    println!("silent: open after {opened:.1?}");
    assert!(
        opened < failed_at.at_most(Duration::from_secs(15)),
        "{opened:?}"
    );
    valve.set(Flow::Open);
}

/// … and once it has been open for its time, the flow is back when the broker is, not a whole time later.
#[tokio::test(flavor = "multi_thread")]
async fn after_its_time_the_flow_is_back_within_2_s_of_the_broker() {
    // It is open, half-open, and open for another time.
    back_soon("[sink.breaker]\nopen_for = \"4s\"\n", 2.0).await;
}

/// … and an outage that is shorter than `open_for` ends when the broker is back, too.
#[tokio::test(flavor = "multi_thread")]
async fn before_its_time_the_flow_is_back_within_2_s_of_the_broker() {
    back_soon("", 1.0).await;
}

async fn back_soon(more: &str, opened: f64) {
    let valve = Valve::start(Flow::Open);
    let world = default_world(&valve, more).await;
    let running = world.start(1);
    let keys = keys(8);
    world.write(&keys, 0, 20).await;
    world.await_records(8 * 20, LONG, &running);
    valve.set(Flow::Cut);
    world.write(&keys, 20, 200).await;
    let open = |m: &Metrics| m.stage("penstock_breaker_opened_total", "sink") >= opened;
    running
        .await_metrics("the breaker is open", LONG, open)
        .await;
    let mended_at = Span::of(&running);
    valve.set(Flow::Open);
    running
        .await_metrics("changes are delivered", LONG, |m| {
            m.sum("penstock_changes_done_total", &[]) > 8.0 * 20.0
        })
        .await;
    let back = mended_at.elapsed();
    // What has opened a moment ago stays open for 2 s.
    let held = if opened > 1.0 { 0 } else { 2 };
    let most = mended_at.at_most(Duration::from_secs(2 + held));
    running.await_line("breaker closed stage=sink from=half-open", LONG);
    let opened_before = running.metrics().await;
    let opened_before = opened_before.stage("penstock_breaker_opened_total", "sink");
    println!("the flow is back {back:.1?} after the broker");
    assert!(back < most, "{back:?}\n{}", story(&running));
    world.await_records(8 * 220, LONG, &running);
    let end = running.metrics().await;
    let opened_at_the_end = end.stage("penstock_breaker_opened_total", "sink");
    assert_eq!(opened_at_the_end, opened_before, "{}", story(&running));
    running.stop_cleanly();
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 220), 0);
}

/// The coordinator of transactions refuses the partitions before anything is sent: librdkafka says of the records only that
/// it has let go of them. It is a refusal all the same: told, no failure of the brokers, and tried again soon.
#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_refused_is_told_and_found_again_soon() {
    let faulty = Faulty::start();
    let world = World::with(Setup {
        brokers: Some(faulty.brokers.clone()),
        ..Setup::default()
    })
    .await;
    let keys = keys(8);
    world.write(&keys, 0, 20).await;
    let running = world.start(1);
    world.await_records(8 * 20, LONG, &running);
    let asked = RDKafkaApiKey::AddPartitionsToTxn;
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    faulty.mock.request_errors(asked, &vec![refused; 10_000]);
    world.write(&keys, 20, 20).await;
    let told = Instant::now();
    running.await_line("TopicAuthorizationFailed", LONG);
    running.await_line("health changed component=\"sink\"", LONG);
    let told = told.elapsed();
    // Pauses that grow would have grown by then.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let (_, health) = running.penstock(&["health"]);
    assert!(health.contains("TopicAuthorizationFailed"), "{health}");
    let during = running.metrics().await;
    assert_eq!(during.stage("penstock_breaker_opened_total", "sink"), 0.0);
    let mended = Span::of(&running);
    faulty.mock.clear_request_errors(asked);
    world.await_records(8 * 40, LONG, &running);
    let back = mended.elapsed();
    println!("refused: told after {told:.1?}, all is there {back:.1?} after its end");
    assert!(
        back < mended.at_most(Duration::from_secs(6)),
        "{back:?}\n{}",
        running.text()
    );
    running.stop_cleanly();
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 40), 0);
}

/// Whoever watches health learns of an outage, and of its end, as soon as whoever reads the log, and not an interval later.
#[tokio::test(flavor = "multi_thread")]
async fn health_follows_the_breaker_at_once() {
    let valve = Valve::start(Flow::Open);
    let world = default_world(&valve, "[health]\ncheck_interval = \"1h\"\n").await;
    let running = world.start(1);
    let keys = keys(8);
    world.write(&keys, 0, 20).await;
    world.await_records(8 * 20, LONG, &running);
    let says = |level: &'static str| {
        let running = &running;
        async move {
            let began = Instant::now();
            loop {
                let (_, said) = running.penstock(&["health", "--json"]);
                let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
                let components = said["components"].as_array().cloned().unwrap_or_default();
                let sink = components.iter().find(|c| c["name"] == "sink");
                if sink.is_some_and(|s| s["status"] == level) {
                    return began.elapsed();
                }
                assert!(began.elapsed() < LONG, "not {level}: {said:#}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    says("healthy").await;
    valve.set(Flow::Cut);
    world.write(&keys, 20, 40).await;
    running.await_line("breaker opened stage=sink", LONG);
    let learnt = says("degraded").await;
    valve.set(Flow::Open);
    running.await_line("breaker closed stage=sink", LONG);
    let well = says("healthy").await;
    println!("health says so {learnt:.1?} after the log, and that it is over {well:.1?} after it");
    world.await_records(8 * 60, LONG, &running);
    running.stop_cleanly();
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 60), 0);
}

/// Row 12: the process is up, says what it waits for, and goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_that_begins_before_the_start_is_waited_for() {
    let valve = Valve::start(Flow::Cut);
    let world = world(&valve.brokers, OPEN_FOR).await;
    let keys = keys(4);
    world.write(&keys, 0, 50).await;
    let running = world.start(1);
    running.await_line("admin interface listens", LONG);
    let up = Span::of(&running);
    running.await_line("waiting for what the pipeline needs stage=sink", LONG);
    // librdkafka alone would try for its own timeout of 10 s.
    let told = up.elapsed();
    assert!(told < up.at_most(Duration::from_secs(4)), "{told:?}");
    let told = format!("no Redpanda or Kafka broker answers at {}", valve.brokers);
    assert!(running.text().contains(&told), "{}", running.text());
    let (code, health) = running.penstock(&["health"]);
    assert_eq!(code, Some(1), "{health}");
    assert!(health.contains(&format!("waiting: {told}")), "{health}");

    valve.set(Flow::Open);
    let mended_at = Instant::now();
    running.await_line("all supervised stages started", LONG);
    println!(
        "started {:.1?} after the broker answered",
        mended_at.elapsed()
    );
    world.await_records(200, LONG, &running);
    running.stop_cleanly();
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 50), 0);
}

/// … takes another configuration meanwhile, and obeys a stop.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_takes_other_brokers_and_obeys_a_stop() {
    let (nobody, valve) = (Valve::start(Flow::Cut), Valve::start(Flow::Open));
    let world = world(&nobody.brokers, OPEN_FOR).await;
    let keys = keys(4);
    world.write(&keys, 0, 10).await;
    let first = world.start(1);
    first.await_line("waiting for what the pipeline needs stage=sink", LONG);
    let text = first.stop_cleanly();
    assert!(!text.contains("panicked"), "{text}");

    let second = world.start(2);
    second.await_line("waiting for what the pipeline needs stage=sink", LONG);
    let file = std::fs::read_to_string(world.config()).expect("the file");
    world.save(&file.replace(&nobody.brokers, &valve.brokers));
    second.await_line("all supervised stages started", LONG);
    second.await_line("configuration applied", LONG);
    second
        .await_metrics("all is delivered", LONG, |m| {
            m.sum("penstock_changes_done_total", &[]) >= 40.0
        })
        .await;
    second.stop_cleanly();
    let seen = broker::read_all(&valve.brokers, &world.topic());
    assert_eq!(seen.len(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_breaker_is_closed_by_hand() {
    let valve = Valve::start(Flow::Open);
    // It would stay open for far longer than the test.
    let world = world(&valve.brokers, Duration::from_secs(600)).await;
    let keys: Vec<Uuid> = keys(8);
    let running = world.start(1);
    running.await_line("all supervised stages started", LONG);
    // The shards meet it with a question about a topic that they do not know yet.
    valve.set(Flow::Silent);
    world.write(&keys, 0, 300).await;
    running
        .await_metrics("the breaker opens", LONG, is_open)
        .await;
    // Too early: it closes, finds the broker silent, and opens again after five more.
    let (code, said) = running.penstock(&["breaker", "reset", "sink"]);
    assert_eq!((code, said.trim()), (Some(0), "sink: breaker closed"));
    running
        .await_metrics("the breaker opens again", LONG, |m| {
            m.stage("penstock_breaker_opened_total", "sink") == 2.0
        })
        .await;
    valve.set(Flow::Open);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let open = running.metrics().await;
    assert_eq!(open.stage("penstock_breaker_state", "sink"), 2.0);

    // An attempt takes 200 ms here: where a second passes without an acknowledgement while all that waited is sent, as on a
    // machine that is busy with other things, it opens once more.
    let deadline = Instant::now() + LONG;
    let closed = loop {
        let now = running.metrics().await;
        let is_open = now.stage("penstock_breaker_state", "sink") == 2.0;
        if is_open {
            let (code, said) = running.penstock(&["breaker", "reset", "sink"]);
            assert_eq!((code, said.trim()), (Some(0), "sink: breaker closed"));
        } else if world.records().len() >= 8 * 300 {
            break now;
        }
        assert!(Instant::now() < deadline, "{}", running.text());
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(closed.stage("penstock_breaker_closed_total", "sink") >= 2.0);
    let (code, said) = running.penstock(&["breaker", "reset", "snik"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("no stage \"snik\"; there are"), "{said}");
    let text = running.stop_cleanly();
    for line in [
        "breaker reset by hand stage=sink",
        "breaker opened stage=sink failures=5",
        "breaker closed stage=sink from=open",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 300), 0);
}

/// Nothing can be flushed to a broker that is away: the stop is forced at its deadline, and the restart makes good.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_amid_an_outage_is_forced_and_loses_nothing() {
    let valve = Valve::start(Flow::Open);
    let mut world = world(&valve.brokers, OPEN_FOR).await;
    world.set("shutdown.timeout", "1s");
    let keys = keys(8);
    world.write(&keys, 0, 50).await;
    let mut first = world.start(1);
    world.await_records(8 * 50, LONG, &first);
    valve.set(Flow::Cut);
    world.write(&keys, 50, 250).await;
    first
        .await_metrics("the breaker opens", LONG, is_open)
        .await;
    first.signal("-TERM");
    let asked = Instant::now();
    let code = first.wait(LONG / 2).code();
    assert_eq!(code, Some(75), "{}", first.text());
    assert!(
        asked.elapsed() >= Duration::from_secs(1),
        "it tried until the deadline"
    );

    valve.set(Flow::Open);
    let second = world.start(2);
    world.await_records(8 * 300, LONG, &second);
    second.stop_cleanly();
    complete_and_ordered(&world.seen(), &keys, 300);
}

/// … and so is the right to take a shard, by its transactional id.
#[tokio::test(flavor = "multi_thread")]
async fn a_right_to_the_shards_that_is_refused_is_told_and_found_again_soon() {
    let faulty = Faulty::start();
    let world = World::with(Setup {
        brokers: Some(faulty.brokers.clone()),
        ..Setup::default()
    })
    .await;
    let keys = keys(8);
    world.write(&keys, 0, 20).await;
    let asked = RDKafkaApiKey::InitProducerId;
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED;
    faulty.mock.request_errors(asked, &vec![refused; 10_000]);
    let running = world.start(1);
    running.await_line("waiting for a topic", LONG);
    tokio::time::sleep(Duration::from_secs(8)).await;
    let (_, health) = running.penstock(&["health"]);
    assert!(health.contains("Transactional"), "{health}");
    let during = running.metrics().await;
    assert_eq!(during.stage("penstock_breaker_opened_total", "sink"), 0.0);
    let mended = Span::of(&running);
    faulty.mock.clear_request_errors(asked);
    world.await_records(8 * 20, LONG, &running);
    let back = mended.elapsed();
    println!("no right to the shards: all is there {back:.1?} after it was given");
    assert!(
        back < mended.at_most(Duration::from_secs(6)),
        "{back:?}\n{}",
        running.text()
    );
    running.stop_cleanly();
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 20), 0);
}

/// 60 a second, which a slow machine gets done too, of far more that are there, in stages of two shards: neither paid
/// twice nor lost to waits of their own making. How exact it is is `policy::rate`'s to show, whose clock is its own;
/// here it is counted at the far end, by the changes that are done.
#[tokio::test(flavor = "multi_thread")]
async fn each_stage_lets_through_what_its_rate_limit_says() {
    const RATE: f64 = 60.0;
    let limited = async |stage: &str, table: &str| {
        // The sink stands still while it commits, for as long as the machine makes that take.
        let burst = if stage == "sink" { 15 } else { 1 };
        let extra = format!(
            "[{table}.rate_limit]\nper_second = {RATE}\nburst = {burst}\n[dead_letter]\nmax = 100_000\n"
        );
        let transforms = (stage == "transform.outbox-router").then(|| {
            format!(
                "[[transform]]\nname = \"outbox-router\"\nplugin = \"{}\"\n\
                 settings = {{ topic_prefix = \"{{name}}.\" }}\n\
                 rate_limit = {{ per_second = {RATE}, burst = 1 }}",
                plugins::plugin("outbox-router").display()
            )
        });
        let extra = if transforms.is_some() {
            String::new()
        } else {
            extra
        };
        let mut world = World::with(Setup {
            transforms,
            extra,
            ..Setup::default()
        })
        .await;
        if stage == "dead_letter" {
            // Its limit makes no batches smaller, and they are counted whole.
            world.set("pipeline.batch_size", 4);
            // Of a type that no topic can be named by: the router refuses each.
            let cql = "INSERT INTO ks.outbox (aggregate_id, event_id, aggregate_type, event_type) \
                       VALUES (uuid(), now(), 'no topic', 'order.created')";
            for _ in 0..2_000 {
                world.session.query_unpaged(cql, ()).await.expect("written");
            }
        } else {
            world.write(&keys(16), 0, 125).await;
        }
        let running = world.start(1);
        let done = |m: &Metrics| m.sum("penstock_changes_done_total", &[]);
        running
            .await_metrics("it flows", LONG, |m| done(m) >= 60.0)
            .await;
        // A span's ends may be a commit off each; a limit that is not obeyed, or paid twice, is far off in all of them.
        let mut rates = Vec::new();
        while !rates
            .last()
            .is_some_and(|rate| (0.75 * RATE..1.25 * RATE).contains(rate))
        {
            assert!(rates.len() < 6, "{stage}: {rates:.1?} a second of {RATE}");
            let (from, begun) = (Instant::now(), done(&running.metrics().await));
            tokio::time::sleep(Duration::from_secs(3)).await;
            let passed = done(&running.metrics().await) - begun;
            rates.push(passed / from.elapsed().as_secs_f64());
        }
        println!("{stage}: {rates:.1?} a second of {RATE}");
    };
    tokio::join!(
        limited("source", "source"),
        limited("transform.outbox-router", ""),
        limited("sink", "sink"),
        limited("dead_letter", "dead_letter"),
    );
}
