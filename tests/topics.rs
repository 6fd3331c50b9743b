//! Topics under the running program: deleted, missing, made by somebody else, refused. It waits with a reason, and goes
//! on by itself.

use std::time::{Duration, Instant};

use testkit::broker;
use testkit::broker::Operator;
use testkit::machine::Span;
use testkit::process::{LONG, Running, Setup, World, complete_and_ordered, keys};
use uuid::Uuid;

const HASTY: &str = "[health]\ncheck_interval = \"100ms\"\n";

async fn health(running: &Running) -> serde_json::Value {
    let answer = reqwest::get(format!("http://{}/health", running.admin())).await;
    let text = answer.expect("an answer").text().await.expect("text");
    serde_json::from_str(&text).expect("JSON")
}

/// Waits until the sink's health says this.
async fn await_reason(running: &Running, reason: &str) {
    let deadline = Instant::now() + LONG;
    loop {
        let health = health(running).await;
        if health.to_string().contains(reason) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "no {reason:?} in {health}\n{}",
            running.text()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Row 29.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_is_told_of_and_made_again_within_5_s() {
    let world = World::new(HASTY).await;
    let operator = Operator::new(&world.cluster.brokers);
    let keys = keys(8);
    let running = world.start(1);
    world.write(&keys, 0, 20).await;
    world.await_records(8 * 20, LONG, &running);

    operator.delete(&world.topic()).await;
    let deleted_at = Span::of(&running);
    let within = |seconds| deleted_at.at_most(Duration::from_secs(seconds));
    world.write(&keys, 20, 100).await;
    running.await_line("it was deleted", LONG);
    let told = deleted_at.elapsed();
    assert!(told < within(3), "{told:?}");
    // What was in it is gone with it; what was written since is not.
    world.await_records(8 * 100, LONG, &running);
    let back = deleted_at.elapsed();
    println!("told after {told:.1?}, back after {back:.1?}");
    assert!(back < within(5), "{back:?}\n{}", running.text());
    running.stop_cleanly();
    for (key, numbers) in world.seen() {
        assert!(numbers.iter().copied().eq(20..120), "{key}: {numbers:?}");
    }
    assert_eq!(
        operator.partitions(&world.topic()),
        12,
        "made by sink.topics"
    );
}

/// Row 45: what the process knows is written into it at once, also of groups that nobody writes to.
#[tokio::test(flavor = "multi_thread")]
async fn deleted_checkpoints_are_written_anew() {
    let world = World::new(HASTY).await;
    let operator = Operator::new(&world.cluster.brokers);
    let keys = keys(16);
    let mut running = world.start(1);
    world.write(&keys, 0, 20).await;
    world.await_records(16 * 20, LONG, &running);
    running
        .await_metrics("all is settled", LONG, |m| {
            m.sum("penstock_in_flight_changes", &[]) == 0.0
        })
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;

    let topic = format!("penstock.{}.checkpoints", world.name);
    operator.delete(&topic).await;
    let deleted_at = Span::of(&running);
    let deadline = Instant::now() + LONG;
    // By each shard.
    while running.count("the checkpoints are written anew") < 2 {
        assert!(Instant::now() < deadline, "{}", running.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let back = deleted_at.elapsed();
    println!("written anew after {back:.1?}");
    assert!(
        back < deleted_at.at_most(Duration::from_secs(10)),
        "{back:?}"
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    running.signal("-KILL");
    running.wait(LONG);
    let second = world.start(2);
    world.write(&keys, 20, 10).await;
    world.await_records(16 * 30, LONG, &second);
    second.stop_cleanly();
    assert_eq!(
        complete_and_ordered(&world.seen(), &keys, 30),
        0,
        "nothing is repeated"
    );
}

/// Row 12: nobody may make it, so it is waited for, and the rest goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_waited_for_and_the_other_shard_goes_on() {
    let mut world = World::with(Setup {
        extra: HASTY.to_owned(),
        ..Setup::default()
    })
    .await;
    let operator = Operator::new(&world.cluster.brokers);
    let name = world.name.clone();
    let topic = |kind: &str| format!("{name}.{kind}");
    operator.create(&topic("order"), 4, &[]).await;
    let ours = [
        ("cleanup.policy", "compact"),
        ("delete.retention.ms", "86400000"),
    ];
    operator
        .create(&format!("penstock.{}.checkpoints", world.name), 2, &ours)
        .await;
    operator.create(&topic("dead-letters"), 1, &ours).await;
    world.set("sink.topics.create", "false");
    let keys = keys(32);
    let running = world.start(1);
    world.write(&keys, 0, 10).await;
    world.await_records(32 * 10, LONG, &running);

    // One change for a topic that is not there: its shard waits.
    let lost = Uuid::new_v4();
    world.write_one(lost, "missing", "0").await;
    running.await_line("sink.topics.create is false", LONG);
    await_reason(
        &running,
        &format!("waiting for topic {}.missing", world.name),
    )
    .await;
    world.write(&keys, 10, 10).await;
    let before = 32 * 10;
    let deadline = Instant::now() + LONG;
    while world.records().len() <= before {
        assert!(
            Instant::now() < deadline,
            "the other shard stands still\n{}",
            running.text()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let text = running.text();
    assert_eq!(text.matches("crashed").count(), 0, "{text}");

    let topic = topic("missing");
    operator.create(&topic, 1, &[]).await;
    let made_at = Span::of(&running);
    world.await_records(32 * 20, LONG, &running);
    let back = made_at.elapsed();
    println!("on its way again {back:.1?} after the topic was made");
    assert!(back < made_at.at_most(Duration::from_secs(6)), "{back:?}");
    running
        .await_metrics("the sink is healthy", LONG, |m| {
            m.sum("penstock_health", &["component=\"sink\""]) == 0.0
        })
        .await;
    running.stop_cleanly();
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 20), 0);
    assert_eq!(broker::read_all(&world.cluster.brokers, &topic).len(), 1);
}

/// Row 7: the file names another cluster, which knows nothing of the pipeline.
#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_is_refused_unless_the_checkpoints_come_along() {
    if std::env::var_os("PENSTOCK_TEST_BROKERS").is_some() {
        eprintln!("skipped: it takes two clusters, and PENSTOCK_TEST_BROKERS is one");
        return;
    }
    let world = World::new(HASTY).await;
    let other = broker::Cluster::start();
    let keys = keys(8);
    let running = world.start(1);
    world.write(&keys, 0, 20).await;
    world.await_records(8 * 20, LONG, &running);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let file = std::fs::read_to_string(world.config()).expect("the file");
    let moved = file.replace(&world.cluster.brokers, &other.brokers);
    world.save(&moved);
    running.await_line("these brokers have no checkpoints of this pipeline", LONG);
    world.write(&keys, 20, 10).await;
    world.await_records(8 * 30, LONG, &running);

    world.save(&moved.replace("[sink]\n", "[sink]\nnew_cluster = \"carry\"\n"));
    running.await_line("checkpoints carried to the new brokers", LONG);
    running.await_line("configuration applied", LONG);
    world.write(&keys, 30, 10).await;
    let deadline = Instant::now() + LONG;
    while !broker::has_topic(&other.brokers, &world.topic())
        || broker::read_all(&other.brokers, &world.topic()).len() < 8 * 10
    {
        assert!(Instant::now() < deadline, "{}", running.text());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    running.stop_cleanly();
    // Nothing of it was there before, and nothing is repeated.
    let there = broker::read_all(&other.brokers, &world.topic());
    assert_eq!(there.len(), 8 * 10);
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 30), 0);
}

/// Row 3: one 9 MiB blob, all defaults.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_too_large_for_anything_is_an_abridged_letter_and_replay_reads_it_again() {
    let world = World::with(Setup {
        tables: "large",
        transforms: Some(String::new()),
        extra: HASTY.to_owned(),
        ..Setup::default()
    });
    let mut world = world.await;
    // As brokers have it that take no larger messages, whatever a topic asks for.
    let letters = format!("{}.dead-letters", world.name);
    let small = [
        ("cleanup.policy", "compact"),
        ("max.message.bytes", "1000000"),
    ];
    Operator::new(&world.cluster.brokers)
        .create(&letters, 1, &small)
        .await;
    world.set("pipeline.delivery", "exactly-once");
    let table = "CREATE TABLE ks.large (id int PRIMARY KEY, b blob) WITH cdc = {'enabled': true}";
    world.session.query_unpaged(table, ()).await.expect(table);
    let insert = "INSERT INTO ks.large (id, b) VALUES (?, ?)";
    let insert = world.session.prepare(insert).await.expect("prepared");
    for (id, size) in [(1, 9 << 20), (2, 10)] {
        let row = (id, vec![7_u8; size]);
        world
            .session
            .execute_unpaged(&insert, row)
            .await
            .expect("written");
    }
    let running = world.start(1);
    running
        .await_metrics("both are done", LONG, |m| {
            m.sum("penstock_changes_done_total", &[]) >= 2.0
        })
        .await;
    // It is done before its transaction is committed.
    let deadline = Instant::now() + LONG;
    let list = loop {
        let (code, list) = running.penstock(&["dead-letters", "list"]);
        assert_eq!(code, Some(0), "{list}");
        if list.lines().count() == 1 {
            break list;
        }
        assert!(Instant::now() < deadline, "{list}");
    };
    let id = list.split_whitespace().next().expect("an id").to_owned();
    let (_, shown) = running.penstock(&["dead-letters", "show", &id]);
    assert!(
        shown.contains("abridged") && shown.len() < 100_000,
        "{}",
        shown.len()
    );
    // It is as large as before, but there is room now.
    let file = std::fs::read_to_string(world.config()).expect("the file");
    let roomy = "[sink]\nproperties = { \"message.max.bytes\" = 50000000 }\n\
                 topics.properties = { \"max.message.bytes\" = 50000000 }\ntopic = \"{pipeline}.roomy\"\n";
    world.save(&file.replace("[sink]\n", roomy));
    running.await_line("configuration applied", LONG);
    let (code, said) = running.penstock(&["dead-letters", "replay"]);
    // On a busy machine it says how far it is, too, after the outcome.
    let outcome = said.lines().next().unwrap_or_default();
    assert_eq!(
        (code, outcome),
        (Some(0), &*format!("{id}  delivered")),
        "{}",
        running.text()
    );
    let records = broker::read_all(&world.cluster.brokers, &format!("{}.roomy", world.name));
    assert_eq!(records.len(), 1);
    assert!(records[0].text().len() > 18 << 20);
    running.stop_cleanly();
}

/// Row 15: anybody may write into the topic of the dead letters.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_record_among_the_dead_letters_is_skipped_and_told() {
    let world = World::new(HASTY).await;
    let running = world.start(1);
    world.write_one(Uuid::new_v4(), "no such topic!", "0").await;
    running
        .await_metrics("it is a dead letter", LONG, |m| {
            m.sum("penstock_dead_letters_total", &[]) == 1.0
        })
        .await;
    let topic = format!("{}.dead-letters", world.name);
    broker::write(&world.cluster.brokers, &topic, "x", "x");
    let (code, list) = running.penstock(&["dead-letters", "list"]);
    assert_eq!((code, list.lines().count()), (Some(0), 2), "{list}");
    assert!(list.contains("skipped, for it is no dead letter"), "{list}");
    let (code, said) = running.penstock(&["dead-letters", "replay"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("failed: ") && said.contains("skipped, for it is"),
        "{said}"
    );
    let (code, said) = running.penstock(&["dead-letters", "purge"]);
    assert_eq!(
        (code, said.trim()),
        (Some(0), "1 purged\n1 skipped: no dead letters")
    );
    running.stop_cleanly();
}

/// Row 50: every row is larger than its topic takes; beside it a table that is not. One letter a change, at once.
#[tokio::test(flavor = "multi_thread")]
async fn rows_too_large_for_their_topic_are_letters_at_once_and_hold_up_no_other() {
    let world = World::new(HASTY).await;
    let operator = Operator::new(&world.cluster.brokers);
    let small = format!("{}.small", world.name);
    operator
        .create(&small, 1, &[("max.message.bytes", "1000")])
        .await;
    let keys = keys(8);
    let running = world.start(1);
    running.await_line("all supervised stages started", LONG);
    let began = Span::of(&running);
    let large = "x".repeat(1200);
    for n in 0..100 {
        world.write_one(keys[n % 8], "small", &large).await;
        world.write_one(keys[n % 8], "small", "fits").await;
    }
    world.write(&keys, 0, 25).await;
    world.await_records(8 * 25, LONG, &running);
    running
        .await_metrics("all are done", LONG, |m| {
            m.sum("penstock_changes_done_total", &[]) >= 400.0
        })
        .await;
    let took = began.elapsed();
    let metrics = running.metrics().await;
    let letters = metrics.sum("penstock_dead_letters_total", &[]);
    let rewinds = metrics.sum("penstock_rewinds_total", &[]);
    println!("400 changes, {letters} letters in {took:.1?}, {rewinds} rewinds");
    assert_eq!(letters, 100.0);
    assert!(took < began.at_most(Duration::from_secs(10)), "{took:?}");
    assert_eq!(broker::read_all(&world.cluster.brokers, &small).len(), 100);
    let topic = format!("{}.dead-letters", world.name);
    assert_eq!(
        broker::read_all(&world.cluster.brokers, &topic).len(),
        100,
        "one a change"
    );
    running.stop_cleanly();
}

/// Row 50, where nobody knows beforehand how large a record is: what is refused together is halved, and each that is
/// refused is one letter. Random text, which no compression makes small.
#[tokio::test(flavor = "multi_thread")]
async fn rows_whose_size_nobody_knows_are_halved_until_each_refusal_has_its_letter() {
    if std::env::var_os("PENSTOCK_TEST_BROKERS").is_none() {
        eprintln!("skipped: the broker in this process takes any size; set PENSTOCK_TEST_BROKERS");
        return;
    }
    for delivery in ["exactly-once", "at-least-once"] {
        let mut world = World::new(&format!(
            "{HASTY}[sink.properties]\n\"compression.type\" = \"lz4\"\n"
        ))
        .await;
        world.set("pipeline.delivery", delivery);
        let operator = Operator::new(&world.cluster.brokers);
        let small = format!("{}.small", world.name);
        operator
            .create(&small, 1, &[("max.message.bytes", "1000")])
            .await;
        let keys = keys(8);
        let running = world.start(1);
        running.await_line("all supervised stages started", LONG);
        let began = Instant::now();
        for n in 0..400 {
            let text: Vec<String> = (0..75)
                .map(|_| format!("{:016x}", rand::random::<u64>()))
                .collect();
            world
                .write_one(keys[n % 8], "small", &text.concat().repeat(2))
                .await;
            if n % 4 == 0 {
                world.write_one(keys[n % 8], "small", "fits").await;
            }
        }
        running
            .await_metrics("all are done", 3 * LONG, |m| {
                m.sum("penstock_changes_done_total", &[]) >= 500.0
            })
            .await;
        let took = began.elapsed();
        let metrics = running.metrics().await;
        let letters = metrics.sum("penstock_dead_letters_total", &[]);
        let rewinds = metrics.sum("penstock_rewinds_total", &[]);
        println!("{delivery}: 500 changes, {letters} letters in {took:.1?}, {rewinds} rewinds");
        running.stop_cleanly();
        let fitting = broker::read_all(&world.cluster.brokers, &small);
        let fitting: std::collections::BTreeSet<_> = fitting
            .iter()
            .map(|record| record.header("penstock-position").map(str::to_owned))
            .collect();
        let topic = format!("{}.dead-letters", world.name);
        let kept = broker::read_all(&world.cluster.brokers, &topic).len();
        assert_eq!(
            (letters, fitting.len(), kept),
            (400.0, 100, 400),
            "one a change"
        );
    }
}

/// Row 49: Kafka refuses a name that collides with another topic's. A shard with such a row waits, and says for what.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_collide_are_told_and_go_on_once_they_do_not() {
    if std::env::var_os("PENSTOCK_TEST_BROKERS").is_none() {
        eprintln!("skipped: the broker in this process refuses no name; set PENSTOCK_TEST_BROKERS");
        return;
    }
    let world = World::new(HASTY).await;
    let operator = Operator::new(&world.cluster.brokers);
    let (other, name) = (format!("{}.a.b", world.name), format!("{}.a_b", world.name));
    operator.create(&other, 1, &[]).await;
    let keys = keys(32);
    let running = world.start(1);
    world.write(&keys, 0, 10).await;
    world.await_records(320, LONG, &running);
    world.write_one(keys[0], "a_b", "0").await;
    running.await_line(&format!("beside the topic {other}"), LONG);
    await_reason(&running, &format!("waiting for topic {name}")).await;
    let metrics = running.metrics().await;
    assert!(metrics.sum("penstock_sink_refusals_total", &[]) > 0.0);
    operator.delete(&other).await;
    world.write(&keys, 10, 10).await;
    world.await_records(640, LONG, &running);
    running.stop_cleanly();
    assert_eq!(broker::read_all(&world.cluster.brokers, &name).len(), 1);
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 20), 0);
}

/// Two tables in one shard, of which one has its topic.
struct Pair {
    world: World,
    operator: Operator,
    bad: String,
    good: String,
}

impl Pair {
    /// On a real Kafka, the topic of `a_b` collides with one that is there; else it is missing, and nobody may make it.
    async fn new(delivery: &str) -> Self {
        let mut world = World::with(Setup {
            tables: "a_b\", \"ok",
            transforms: Some(String::new()),
            extra: HASTY.to_owned(),
            ..Setup::default()
        })
        .await;
        world.set("pipeline.delivery", delivery);
        world.set("pipeline.shards", 1);
        for table in ["a_b", "ok"] {
            let cql = format!(
                "CREATE TABLE ks.{table} (k int, n int, PRIMARY KEY (k, n)) WITH cdc = {{'enabled': true}}"
            );
            world.session.query_unpaged(cql, ()).await.expect("a table");
        }
        let operator = Operator::new(&world.cluster.brokers);
        let topic = |table: &str| format!("{}.ks.{table}", world.name);
        let (bad, good) = (topic("a_b"), topic("ok"));
        match Self::collides() {
            true => operator.create(&topic("a.b"), 1, &[]).await,
            false => {
                let ours = [
                    ("cleanup.policy", "compact"),
                    ("delete.retention.ms", "86400000"),
                ];
                let checkpoints = format!("penstock.{}.checkpoints", world.name);
                operator.create(&checkpoints, 1, &ours).await;
                operator.create(&good, 4, &[]).await;
                world.set("sink.topics.create", "false");
            }
        }
        Self {
            world,
            operator,
            bad,
            good,
        }
    }

    fn collides() -> bool {
        std::env::var_os("PENSTOCK_TEST_BROKERS").is_some()
    }

    async fn write(&self, table: &str, numbers: std::ops::Range<i32>) {
        for n in numbers {
            let cql = format!("INSERT INTO ks.{table} (k, n) VALUES ({}, {n})", n % 16);
            self.world
                .session
                .query_unpaged(cql, ())
                .await
                .expect("written");
        }
    }

    fn arrived(&self, topic: &str) -> usize {
        match broker::has_topic(&self.world.cluster.brokers, topic) {
            true => broker::read_all(&self.world.cluster.brokers, topic).len(),
            false => 0,
        }
    }

    async fn await_arrived(&self, topic: &str, n: usize, running: &Running) {
        let deadline = Instant::now() + LONG;
        loop {
            let arrived = self.arrived(topic);
            if arrived >= n {
                assert_eq!(arrived, n, "each once\n{}", running.text());
                return;
            }
            let log = || {
                let found = broker::read_all(&self.world.cluster.brokers, topic);
                let found: Vec<String> = found.iter().map(|r| r.text().to_owned()).collect();
                format!("{found:?}\n{}", running.text())
            };
            assert!(
                Instant::now() < deadline,
                "{arrived} of {n} in {topic}\n{}",
                log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn mend(&self) {
        match Self::collides() {
            true => {
                self.operator
                    .delete(&format!("{}.ks.a.b", self.world.name))
                    .await
            }
            false => self.operator.create(&self.bad, 1, &[]).await,
        }
    }
}

/// Row 49: the other table goes on in the same shard, nothing is repeated, it can be seen, a stop is clean meanwhile.
async fn one_tables_trouble(delivery: &str) {
    let pair = Pair::new(delivery).await;
    let running = pair.world.start(1);
    pair.write("ok", 0..50).await;
    pair.write("a_b", 0..20).await;
    pair.write("ok", 50..300).await;
    pair.await_arrived(&pair.good, 300, &running).await;
    await_reason(&running, &format!("waiting for topic {}", pair.bad)).await;
    if Pair::collides() {
        running.await_line(
            &format!("beside the topic {}.ks.a.b", pair.world.name),
            LONG,
        );
    }
    let lags = |least: f64| {
        move |m: &testkit::process::Metrics| m.sum("penstock_source_lag_seconds", &[]) > least
    };
    running
        .await_metrics("the lag tells", LONG, lags(2.0))
        .await;
    // But for the moments in which it is tried again.
    let metrics = running
        .await_metrics("nothing is held", LONG, |m| {
            m.sum("penstock_in_flight_changes", &[]) == 0.0
        })
        .await;
    assert!(metrics.sum("penstock_sink_refusals_total", &[]) > 0.0);
    println!(
        "{delivery}: 300 of 300 arrived beside it, {} rewinds, lag {:.1} s",
        metrics.sum("penstock_rewinds_total", &[]),
        metrics.sum("penstock_source_lag_seconds", &[]),
    );
    // Nobody waits for the topic: the deadline is 30 s.
    let began = Instant::now();
    running.stop_cleanly();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");

    let running = pair.world.start(2);
    pair.write("ok", 300..400).await;
    pair.await_arrived(&pair.good, 400, &running).await;
    assert_eq!(pair.arrived(&pair.bad), 0);
    pair.mend().await;
    let mended_at = Instant::now();
    pair.await_arrived(&pair.bad, 20, &running).await;
    println!(
        "on its way again {:.1?} after it was mended",
        mended_at.elapsed()
    );
    pair.write("a_b", 20..40).await;
    pair.write("ok", 400..500).await;
    pair.await_arrived(&pair.bad, 40, &running).await;
    pair.await_arrived(&pair.good, 500, &running).await;
    running
        .await_metrics("the sink is healthy", LONG, |m| {
            m.sum("penstock_health", &["component=\"sink\""]) == 0.0
        })
        .await;
    running.stop_cleanly();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tables_trouble_stops_no_other_table_in_its_shard_exactly_once() {
    one_tables_trouble("exactly-once").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tables_trouble_stops_no_other_table_in_its_shard_at_least_once() {
    one_tables_trouble("at-least-once").await;
}

/// Row 45: what is written of poison is lost with its topic; what comes then is kept again.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_of_dead_letters_is_made_again_under_load() {
    let mut world = World::new(HASTY).await;
    world.set("pipeline.delivery", "exactly-once");
    let operator = Operator::new(&world.cluster.brokers);
    let keys = keys(8);
    let running = world.start(1);
    let letters = format!("{}.dead-letters", world.name);
    let poison = |n: u32| {
        let world = &world;
        async move {
            world
                .write_one(Uuid::new_v4(), "no such topic!", &n.to_string())
                .await
        }
    };
    poison(0).await;
    world.write(&keys, 0, 20).await;
    let kept = |n: usize| {
        let (brokers, letters, running) = (&world.cluster.brokers, &letters, &running);
        async move {
            let deadline = Instant::now() + LONG;
            while !broker::has_topic(brokers, letters)
                || broker::read_all(brokers, letters).len() < n
            {
                assert!(Instant::now() < deadline, "{}", running.text());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    kept(1).await;
    operator.delete(&letters).await;
    for n in 1..11 {
        world.write(&keys, n * 20, 20).await;
        poison(n).await;
    }
    kept(10).await;
    world.await_records(8 * 220, LONG, &running);
    running.await_line("it was deleted", LONG);
    running.stop_cleanly();
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 220), 0);
}

/// Row 8: what was set otherwise after the start is seen by any reload, also of a file that did not change.
#[tokio::test(flavor = "multi_thread")]
async fn every_reload_looks_at_the_topics_of_ours_again() {
    let world = World::new(HASTY).await;
    let operator = Operator::new(&world.cluster.brokers);
    let running = world.start(1);
    running.await_line("all supervised stages started", LONG);
    let topic = format!("penstock.{}.checkpoints", world.name);
    let wrong = [
        ("cleanup.policy", "delete"),
        ("delete.retention.ms", "999999999999"),
    ];
    operator.alter(&topic, &wrong).await;
    let (code, said) = running.penstock(&["reload"]);
    assert_eq!(code, Some(0), "{said}");
    running.await_line("the topic's settings are mended", LONG);
    for (name, value) in [
        ("cleanup.policy", "compact"),
        ("delete.retention.ms", "86400000"),
    ] {
        let deadline = Instant::now() + LONG;
        while operator.property(&topic, name).await.as_deref() != Some(value) {
            assert!(Instant::now() < deadline, "{name}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    running.stop_cleanly();
}

/// Row 4: groups of finished generations are forgotten, so what is alive in the checkpoint topic does not grow.
#[tokio::test(flavor = "multi_thread")]
async fn the_checkpoints_of_twenty_generations_are_as_few_as_those_of_one() {
    const GENERATIONS: usize = 20;
    let mut world = World::new(HASTY).await;
    world.set("pipeline.delivery", "exactly-once");
    let keys = keys(8);
    let running = world.start(1);
    running.await_line("all supervised stages started", LONG);
    for n in 0..GENERATIONS {
        world.write(&keys, n as u32 * 4, 4).await;
        let now = std::time::UNIX_EPOCH
            .elapsed()
            .expect("after 1970")
            .as_millis() as i64;
        let begins = world.node.engine().new_generation(Some(now + 100));
        tokio::time::sleep(Duration::from_millis((begins - now).max(0) as u64 + 20)).await;
    }
    world.write(&keys, GENERATIONS as u32 * 4, 4).await;
    world.await_records(8 * 4 * (GENERATIONS + 1), LONG, &running);
    let topic = format!("penstock.{}.checkpoints", world.name);
    let deadline = Instant::now() + LONG;
    // 16 vnodes of 2 streams each, the memory of late writes beside them, and whose the shards are.
    let groups = 16;
    loop {
        let (mut alive, mut written) = (std::collections::BTreeSet::new(), 0);
        for record in broker::read_all(&world.cluster.brokers, &topic) {
            written += 1;
            match &record.value {
                Some(_) => alive.insert((record.partition, record.key.clone())),
                None => alive.remove(&(record.partition, record.key.clone())),
            };
        }
        let generations: std::collections::BTreeSet<_> = alive
            .iter()
            .filter_map(|(_, key)| {
                Some(
                    String::from_utf8_lossy(key.as_ref()?)
                        .split('/')
                        .nth(1)?
                        .to_owned(),
                )
            })
            .collect();
        if generations.len() == 1 && running.count("reading a stream generation") > 2 * GENERATIONS
        {
            println!(
                "{GENERATIONS} generations: {} keys alive of {written} records written",
                alive.len()
            );
            assert!(alive.len() <= 3 * groups, "{alive:?}");
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{generations:?}\n{}",
            running.text()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    running.stop_cleanly();
    assert_eq!(
        complete_and_ordered(&world.seen(), &keys, (GENERATIONS as u32 + 1) * 4),
        0
    );
}

/// A quota under which no transaction of the usual size gets done in its time (30 s): they shrink until they do, and what
/// was never committed is not seen. A real Kafka of its own, for quotas are by client.
#[tokio::test(flavor = "multi_thread")]
async fn a_severe_quota_makes_transactions_smaller_and_neither_loses_nor_repeats() {
    if std::env::var_os("PENSTOCK_TEST_BROKERS").is_none() {
        eprintln!("skipped: the broker in this process has no quotas; set PENSTOCK_TEST_BROKERS");
        return;
    }
    let state = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../kafka");
    let dir = tempfile::tempdir().expect("a folder");
    let jars = kafka_node::jars(&state).expect("Kafka's jars");
    let spec = kafka_node::Spec::one(jars, dir.path().join("kafka"));
    let kafka = kafka_node::Cluster::start(&spec).expect("a Kafka");
    let mut world = World::with(Setup {
        brokers: Some(kafka.brokers()),
        extra: HASTY.to_owned(),
        ..Setup::default()
    })
    .await;
    world.set("pipeline.delivery", "exactly-once");
    world.set("pipeline.shards", 1);
    let quota = |change: [&str; 2]| {
        let brokers = kafka.brokers();
        let of = ["--alter", "--entity-type", "clients", "--entity-default"];
        let args = [&["--bootstrap-server", &brokers][..], &of, &change].concat();
        let done = kafka.tool("kafka.admin.ConfigCommand", &args);
        done.expect("a quota");
    };
    let keys = keys(8);
    let running = world.start(1);
    world.write(&keys, 0, 5).await;
    world.await_records(8 * 5, LONG, &running);
    // About 100 bytes a record: 600 KB, of which 8 KB/s get through.
    quota(["--add-config", "producer_byte_rate=8000"]);
    let n = 750;
    world.write(&keys, 5, n).await;
    running.await_line("a transaction did not get done in its time", 4 * LONG);
    let before = world.records().len();
    let goes_on = Instant::now();
    while world.records().len() == before {
        assert!(goes_on.elapsed() < 3 * LONG, "{}", running.text());
        std::thread::sleep(Duration::from_millis(200));
    }
    println!(
        "{before} before, on its way {:.1?} later",
        goes_on.elapsed()
    );
    quota(["--delete-config", "producer_byte_rate"]);
    world.await_records(8 * (5 + n as usize), 2 * LONG, &running);
    running.stop_cleanly();
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 5 + n), 0);
}
