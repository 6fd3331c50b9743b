//! `penstock doctor` against set-ups that are broken, one thing at a time, and against a good one.

#[path = "doctor/kafka.rs"]
mod kafka;

use std::process::Command;

use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::Value;
use testkit::broker::{Faulty, Operator, unique};
use testkit::process::{LONG, Setup, World, keys};
use testkit::secure::{Authority, Door};

/// The findings, and the exit code. `before`: a command of the shell's before the program is run.
fn doctor(world: &World, before: &str, more: &[String]) -> (Option<i32>, Vec<Value>) {
    let output = Command::new("sh")
        .args(["-c", &format!("{before} exec \"$0\" \"$@\"")])
        .arg(testkit::penstock())
        .args(["doctor", "--json", "--config"])
        .arg(world.config())
        .args(world.flags())
        .args(more)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found: Value = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), found.as_array().cloned().unwrap())
}

fn flags(all: &[(&str, &dyn std::fmt::Display)]) -> Vec<String> {
    all.iter()
        .map(|(key, value)| format!("--set={key}={value}"))
        .collect()
}

/// Exactly these findings: code and what it is about.
fn finds(what: &str, (code, found): (Option<i32>, Vec<Value>), wanted: &[(&str, &str)], exit: i32) {
    let told: Vec<(&str, &str)> = found
        .iter()
        .map(|f| (f["code"].as_str().unwrap(), f["about"].as_str().unwrap()))
        .collect();
    assert_eq!(told, wanted, "{what}: {found:#?}");
    assert_eq!(code, Some(exit), "{what}: {found:#?}");
    for finding in &found {
        println!(
            "{what}: {}[{}] {}: {} — {}",
            finding["severity"].as_str().unwrap(),
            finding["code"].as_str().unwrap(),
            finding["about"].as_str().unwrap(),
            finding["found"].as_str().unwrap(),
            finding["help"].as_str().unwrap()
        );
        assert!(finding["help"].as_str().is_some_and(|help| help.len() > 5));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_broken_set_up_is_found_for_what_it_is_and_a_good_one_is_met_with_silence() {
    // Without a plugin: the program is run often.
    let mut world = World::with(Setup {
        transforms: Some(String::new()),
        ..Setup::default()
    })
    .await;
    world.set("pipeline.delivery", "exactly-once");
    let (node, broker) = (world.node.addr().to_string(), world.cluster.brokers.clone());
    let list = |address: &str| format!("[\"{address}\"]");
    // Nobody listens there.
    let closed = "127.0.0.1:1".to_owned();
    let run = |more: &[(&str, &dyn std::fmt::Display)]| doctor(&world, "", &flags(more));

    finds("good, before the first start", run(&[]), &[], 0);
    let running = world.start(0);
    world.write(&keys(4), 0, 5).await;
    running
        .await_metrics("all delivered", LONG, |m| {
            m.sum("penstock_sink_records_total", &[]) >= 20.0
        })
        .await;
    finds("good, while it runs", run(&[]), &[], 0);
    running.stop_cleanly();
    finds(
        "it lags behind by more than is to be left",
        run(&[("health.headroom_degraded", &0.999_999_9)]),
        &[("headroom", &format!("pipeline {}", world.name))],
        0,
    );

    let nowhere = "nowhere.invalid:9042";
    finds(
        "1 no such host",
        run(&[("source.nodes", &list(nowhere))]),
        &[("dns", nowhere)],
        1,
    );
    finds(
        "2 nobody listens",
        run(&[("sink.brokers", &list(&closed))]),
        &[("tcp", &closed)],
        1,
    );
    let half = format!("[\"{node}\", \"{closed}\"]");
    finds(
        "3 one node of two is away",
        run(&[("source.nodes", &half)]),
        &[("tcp", &closed)],
        0,
    );
    let (authority, other) = (Authority::new("Trusted"), Authority::new("Other"));
    let door = Door::before(
        world.node.addr(),
        &authority.issue("node", &["localhost"], 9),
        &[],
    )
    .await;
    let by_tls = format!("localhost:{}", door.address.port());
    let ca = world.dir.path().join("other.pem");
    std::fs::write(&ca, other.pem()).unwrap();
    finds(
        "4 a certificate that nobody trusts",
        run(&[
            ("source.nodes", &list(&by_tls)),
            ("source.tls.enabled", &true),
            ("source.tls.ca_file", &ca.display()),
        ]),
        &[("tls", &by_tls)],
        1,
    );
    finds(
        "5 TLS where none is spoken",
        run(&[("sink.tls.enabled", &true)]),
        &[("tls", &broker)],
        1,
    );
    let password = world.dir.path().join("password");
    std::fs::write(&password, "wrong").unwrap();
    world
        .node
        .set_users(vec![("penstock".to_owned(), "right".to_owned())]);
    finds(
        "6 a wrong password",
        run(&[
            ("source.username", &"penstock"),
            ("source.password_file", &password.display()),
        ]),
        &[("login", &node)],
        1,
    );
    world.node.set_users(Vec::new());
    let elsewhere = run(&[("source.datacenter", &"dc1"), ("source.rack", &"r1")]);
    let said = elsewhere.1[0]["found"].to_string();
    assert!(
        said.contains("no node of ScyllaDB's is in dc1 (r1), there are datacenter1 (rack1)"),
        "{said}"
    );
    finds(
        "no such data centre",
        elsewhere,
        &[("datacenter", &node)],
        1,
    );
    finds(
        "the data centre and the rack that there are",
        run(&[
            ("source.datacenter", &"datacenter1"),
            ("source.rack", &"rack1"),
        ]),
        &[],
        0,
    );
    finds(
        "7 no such table",
        run(&[("source.tables", &"[\"outbox\", \"outbux\"]")]),
        &[("table", "ks.outbux")],
        1,
    );
    for cql in [
        "CREATE TABLE ks.silent (id int PRIMARY KEY)",
        "CREATE TABLE ks.brief (id int PRIMARY KEY) WITH cdc = {'enabled': true, 'ttl': 300}",
    ] {
        world.session.query_unpaged(cql, ()).await.unwrap();
    }
    finds(
        "8 no change log",
        run(&[("source.tables", &"[\"outbox\", \"silent\"]")]),
        &[("cdc", "ks.silent")],
        1,
    );
    finds(
        "9 changes that go too soon",
        run(&[
            ("source.tables", &"[\"outbox\", \"brief\"]"),
            ("health.headroom_unhealthy", &0.000_01),
            ("health.headroom_degraded", &0.000_02),
        ]),
        &[("ttl", "ks.brief")],
        0,
    );
    finds(
        "10 more copies wanted than there are",
        run(&[("source.consistency", &"two")]),
        &[("consistency", "keyspace ks")],
        1,
    );
    finds(
        "11 more replicas wanted than there are brokers",
        run(&[("sink.topics.replication_factor", &3)]),
        &[("replication", "sink.topics.replication_factor")],
        1,
    );
    let operator = Operator::new(&broker);
    let name = unique("emptied");
    let checkpoints = format!("penstock.{name}.checkpoints");
    operator
        .create(&checkpoints, 2, &[("cleanup.policy", "delete")])
        .await;
    finds(
        "12 checkpoints that are deleted",
        run(&[("pipeline.name", &name)]),
        &[("cleanup", &checkpoints)],
        1,
    );
    let name = unique("missing");
    finds(
        "13 topics that nobody makes",
        run(&[("pipeline.name", &name), ("sink.topics.create", &false)]),
        &[
            ("topic", &format!("penstock.{name}.checkpoints")),
            ("topic", &format!("{name}.dead-letters")),
            ("topic", &format!("{name}.ks.outbox")),
        ],
        1,
    );
    let broken: [(&str, i32, &[(&str, &str)], &str, i32); 5] = [
        (
            "15 checkpoints of another number of shards",
            3,
            &[("cleanup.policy", "compact")],
            "partitions",
            1,
        ),
        (
            "16 letters that do not stay",
            1,
            &[("retention.ms", "1000")],
            "retention",
            0,
        ),
        (
            "17 more replicas in sync than there are",
            1,
            &[("min.insync.replicas", "2"), ("retention.ms", "-1")],
            "in-sync",
            1,
        ),
        (
            "18 a topic of small records",
            1,
            &[("max.message.bytes", "1000"), ("retention.ms", "-1")],
            "size",
            0,
        ),
        (
            "21 a leader that lacks what was acknowledged",
            1,
            &[
                ("unclean.leader.election.enable", "true"),
                ("retention.ms", "-1"),
            ],
            "unclean",
            0,
        ),
    ];
    for (what, partitions, settings, code, exit) in broken {
        let name = unique("broken");
        let topic = match code {
            "partitions" => format!("penstock.{name}.checkpoints"),
            _ => format!("{name}.dead-letters"),
        };
        operator.create(&topic, partitions, settings).await;
        let found = run(&[("pipeline.name", &name), ("pipeline.instances", &"shared")]);
        finds(what, found, &[(code, &topic)], exit);
    }
    finds(
        "19 no such keyspace",
        run(&[("source.keyspace", &"kz")]),
        &[("keyspace", "kz.outbox")],
        1,
    );
    world
        .session
        .query_unpaged(
            "ALTER TABLE ks.brief WITH cdc = {'enabled': false, 'ttl': 86400}",
            (),
        )
        .await
        .unwrap();
    finds(
        "20 a change log that is written no more",
        run(&[("source.tables", &"[\"outbox\", \"brief\"]")]),
        &[("cdc", "ks.brief")],
        0,
    );
    finds(
        "14 too few files",
        doctor(&world, "ulimit -n 256;", &[]),
        &[("files", "open files")],
        0,
    );
    finds(
        "15 TLS where this side speaks none",
        run(&[("source.nodes", &list(&by_tls))]),
        &[("tls", &by_tls)],
        1,
    );

    // A plugin that does not load, as validation says it.
    let broken = format!("\n[[transform]]\nname = \"broken\"\nplugin = {ca:?}\n");
    let good = std::fs::read_to_string(world.config()).unwrap();
    world.save(&(good.clone() + &broken));
    let (code, found) = run(&[]);
    assert_eq!(code, Some(64));
    assert_eq!(found[0]["code"], "plugin-rejected");
    world.save(&good);
    // And for people: nothing at all.
    let output = Command::new(testkit::penstock())
        .args(["doctor", "--config"])
        .arg(world.config())
        .args(world.flags())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

/// What the stand-in cannot be made to answer librdkafka's mock can.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_without_a_leader_and_a_client_that_may_number_nothing_are_found() {
    let broker = Faulty::start();
    let mut world = World::with(Setup {
        brokers: Some(broker.brokers.clone()),
        transforms: Some(String::new()),
        ..Setup::default()
    })
    .await;
    let letters = format!("{}.dead-letters", world.name);
    for topic in [
        format!("penstock.{}.checkpoints", world.name),
        format!("{}.ks.outbox", world.name),
        letters.clone(),
    ] {
        broker.mock.create_topic(&topic, 2, 1).expect("made");
    }
    let found = |what: &str, world: &World| {
        let (code, found) = doctor(world, "", &[]);
        let told = found.iter().map(|f| {
            let text = |key: &str| f[key].as_str().unwrap_or_default();
            println!(
                "{what}: {}[{}] {}: {} — {}",
                text("severity"),
                text("code"),
                text("about"),
                text("found"),
                text("help")
            );
            (text("code").to_owned(), text("about").to_owned())
        });
        let told: Vec<(String, String)> = told.collect();
        (code, told)
    };
    let has = |told: &[(String, String)], code: &str, about: &str| {
        told.iter().any(|(c, a)| c == code && a.contains(about))
    };
    let (_, told) = found("good", &world);
    assert!(
        !has(&told, "leader", "") && !has(&told, "acl-idempotent-write", ""),
        "{told:?}"
    );

    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
    for delivery in ["exactly-once", "at-least-once"] {
        world.set("pipeline.delivery", delivery);
        broker
            .mock
            .request_errors(RDKafkaApiKey::InitProducerId, &[refused; 5]);
        let (code, told) = found(delivery, &world);
        assert!(has(&told, "acl-idempotent-write", ""), "{told:?}");
        assert_eq!(code, Some(1));
        broker
            .mock
            .clear_request_errors(RDKafkaApiKey::InitProducerId);
    }
    broker
        .mock
        .partition_leader(&letters, 1, None)
        .expect("taken away");
    let (code, told) = found("no leader", &world);
    assert!(has(&told, "leader", &letters), "{told:?}");
    assert_eq!(code, Some(1));
}

/// No contract says what a transform makes use of: it is tried on made-up changes.
#[tokio::test(flavor = "multi_thread")]
async fn images_are_held_against_what_the_transforms_make_use_of() {
    let envelope = testkit::plugins::plugin("debezium-envelope");
    let router = testkit::plugins::plugin("outbox-router");
    let transform = |plugin: &std::path::Path| {
        format!("[[transform]]\nname = \"plugin\"\nplugin = {plugin:?}\n")
    };
    let world = World::with(Setup {
        transforms: Some(transform(&envelope)),
        ..Setup::default()
    })
    .await;
    let asks = |what: &str, words: &[&str]| {
        let about = vec![("images", "ks.outbox"); words.len()];
        let found = doctor(&world, "", &[]);
        let told: Vec<String> = found.1.iter().map(|f| f["found"].to_string()).collect();
        finds(what, found, &about, 0);
        for (told, words) in told.iter().zip(words) {
            assert!(told.contains(words), "{words}: {told}");
        }
    };
    let alter = async |images: &str| {
        let cql = format!("ALTER TABLE ks.outbox WITH cdc = {{'enabled': true, {images}}}");
        world.session.query_unpaged(cql, ()).await.expect("altered");
    };
    asks(
        "an envelope without what was before and after",
        &[
            "of a change with a preimage",
            "of a change with a postimage",
        ],
    );
    alter("'preimage': true, 'postimage': true").await;
    asks("an envelope that has both", &[]);
    // The router copies a payload, whatever was there before.
    let text = std::fs::read_to_string(world.config()).expect("pipeline.toml");
    world.save(&text.replace(&transform(&envelope), &transform(&router)));
    asks(
        "images that nobody reads",
        &[
            "its log has a preimage of each change",
            "its log has a postimage of each change",
        ],
    );
    alter("'preimage': false, 'postimage': false").await;
    asks("a router without", &[]);
}
