//! What only a real Apache Kafka shows the doctor: rights, logins, addresses that brokers tell of, and bounds of theirs.

use std::collections::BTreeSet;

use kafka_node::{Cluster as Kafka, Spec};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use serde_json::Value;
use testkit::process::{Setup, World};

use super::{doctor, flags};

const PASSWORD: &str = "secret";

fn codes((_, found): &(Option<i32>, Vec<Value>)) -> BTreeSet<String> {
    for f in found {
        println!(
            "{}[{}] {}: {} — {}",
            f["severity"], f["code"], f["about"], f["found"], f["help"]
        );
    }
    found
        .iter()
        .filter_map(|f| f["code"].as_str())
        .map(str::to_owned)
        .collect()
}

fn set(codes: &[&str]) -> BTreeSet<String> {
    codes.iter().map(|&code| code.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_real_kafka_refuses_or_tells_wrongly_is_found() {
    if std::env::var_os("PENSTOCK_TEST_BROKERS").is_none() {
        eprintln!(
            "skipped: no Kafka is asked for; `PENSTOCK_TEST_BROKERS=own cargo test --test doctor` does"
        );
        return;
    }
    kafka_node::available().expect("Java and Maven");
    let state = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../kafka");
    let dir = tempfile::tempdir().expect("a folder");
    let jars = kafka_node::jars(&state).expect("Kafka");
    let mut spec = Spec::one(jars, dir.path().join("kafka"));
    spec.users = ["admin", "guest"]
        .map(|user| (user.to_owned(), PASSWORD.to_owned()))
        .to_vec();
    spec.relays = 1;
    // Below what a transaction of ours may take.
    spec.properties = vec![("transaction.max.timeout.ms".into(), "10000".into())];
    let kafka = tokio::task::block_in_place(|| Kafka::start(&spec)).expect("it starts");
    let broker = kafka.brokers();
    let mut world = World::with(Setup {
        brokers: Some(broker.clone()),
        transforms: Some(String::new()),
        ..Setup::default()
    })
    .await;
    let password = dir.path().join("password");
    std::fs::write(&password, PASSWORD).expect("written");
    world.set("sink.password_file", password.display());
    let run = |more: &[(&str, &dyn std::fmt::Display)]| {
        tokio::task::block_in_place(|| codes(&doctor(&world, "", &flags(more))))
    };
    let admin: (&str, &dyn std::fmt::Display) = ("sink.username", &"admin");
    let plain: (&str, &dyn std::fmt::Display) = ("sink.sasl", &"PLAIN");

    // Who may do anything meets what the brokers have set alone.
    assert_eq!(run(&[admin, plain]), set(&["transaction-timeout"]));
    // A login that this port does not offer.
    assert_eq!(
        run(&[admin, ("sink.sasl", &"SCRAM-SHA-512")]),
        set(&["sasl"])
    );
    // A listener that tells clients of an address where nobody is.
    let relays = kafka.relays().expect("a relay");
    let (_, back) = relays.split_once('/').expect("front and back");
    let back = format!("[\"127.0.0.1:{back}\"]");
    let found = run(&[admin, plain, ("sink.brokers", &back)]);
    assert!(found.contains("advertised"), "{found:?}");

    // A guest who sees the topics, and may do nothing with them.
    let mut login = ClientConfig::new();
    login
        .set("bootstrap.servers", &broker)
        .set("security.protocol", "sasl_plaintext")
        .set("sasl.mechanism", "PLAIN")
        .set("sasl.username", "admin")
        .set("sasl.password", PASSWORD);
    let client: AdminClient<DefaultClientContext> = login.create().expect("a client");
    let names = [
        format!("penstock.{}.checkpoints", world.name),
        format!("{}.dead-letters", world.name),
        format!("{}.ks.outbox", world.name),
    ];
    let topics: Vec<NewTopic<'_>> = names
        .iter()
        .map(|name| NewTopic::new(name, 2, TopicReplication::Fixed(1)))
        .collect();
    let made = client.create_topics(&topics, &AdminOptions::new()).await;
    assert!(made.expect("asked").iter().all(Result::is_ok));
    let properties = dir.path().join("admin.properties");
    let text = format!(
        "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.jaas.config=\
         org.apache.kafka.common.security.plain.PlainLoginModule required username=\"admin\" \
         password=\"{PASSWORD}\";\n"
    );
    std::fs::write(&properties, text).expect("written");
    let properties = properties.to_str().expect("UTF-8");
    let server = [
        "--bootstrap-server",
        &broker,
        "--command-config",
        properties,
    ];
    let allow = ["--add", "--force", "--allow-principal", "User:guest"];
    let what = ["--operation", "Describe", "--topic", "*"];
    let allowed = tokio::task::block_in_place(|| {
        let args = [&server[..], &allow, &what].concat();
        kafka.tool("org.apache.kafka.tools.AclCommand", &args)
    });
    allowed.expect("allowed");
    let guest: (&str, &dyn std::fmt::Display) = ("sink.username", &"guest");
    let shared: (&str, &dyn std::fmt::Display) = ("pipeline.instances", &"shared");
    let found = run(&[guest, plain, shared]);
    for code in ["acl-topic", "acl-transactional-id", "acl-group"] {
        assert!(found.contains(code), "{code}: {found:?}");
    }
}
