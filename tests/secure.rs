//! Connections by TLS, and logins: what is trusted and shown on both sides, what is rotated under load, and what is said
//! where something does not fit.

#[path = "secure/kafka.rs"]
mod kafka;

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use testkit::broker::{Flow, Valve};
use testkit::process::{LONG, Setup, World, complete_and_ordered, keys};
use testkit::secure::{Authority, Door, Identity};

/// A folder of secrets as Kubernetes mounts it: files that lead through `..data`, which is swapped.
struct Secrets {
    dir: PathBuf,
}

impl Secrets {
    fn new(dir: &Path, files: &[(&str, &str)]) -> Self {
        let secrets = Self {
            dir: dir.join("secrets"),
        };
        std::fs::create_dir(&secrets.dir).unwrap();
        secrets.swap("1", files);
        for (name, _) in files {
            symlink(Path::new("..data").join(name), secrets.path(name)).unwrap();
        }
        secrets
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn swap(&self, version: &str, files: &[(&str, &str)]) {
        let folder = self.dir.join(format!("..{version}"));
        std::fs::create_dir(&folder).unwrap();
        for (name, text) in files {
            std::fs::write(folder.join(name), text).unwrap();
        }
        let aside = self.dir.join("..data_tmp");
        symlink(&folder, &aside).unwrap();
        std::fs::rename(aside, self.dir.join("..data")).unwrap();
    }
}

/// The numbers of each key, as a reader of committed records has them who connects with these properties. No plugin had
/// them in hand, so that none has to be built: the sink's own JSON.
fn seen(brokers: &str, topic: &str, properties: &[(&str, &str)]) -> BTreeMap<String, Vec<u32>> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("group.id", "seen")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed");
    for (name, value) in properties {
        config.set(*name, *value);
    }
    let consumer: BaseConsumer = config.create().unwrap();
    let found = consumer.fetch_metadata(Some(topic), LONG).unwrap();
    let mut all = rdkafka::TopicPartitionList::new();
    let mut open = 0;
    for partition in found.topics()[0].partitions() {
        all.add_partition_offset(topic, partition.id(), rdkafka::Offset::Beginning)
            .unwrap();
        open += 1;
    }
    consumer.assign(&all).unwrap();
    let mut seen: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    while open > 0 {
        match consumer.poll(LONG).expect("a record or an end") {
            Ok(record) => {
                let value: serde_json::Value =
                    serde_json::from_slice(record.payload().unwrap()).unwrap();
                let column = |name: &str| value["columns"][name].as_str().unwrap().to_owned();
                let number = column("payload").parse().unwrap();
                seen.entry(column("aggregate_id")).or_default().push(number);
            }
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => open -= 1,
            Err(error) => panic!("{error}"),
        }
    }
    seen
}

/// Reads again until `n` of each key are there; how many are there more than once.
fn await_all(keys: &[uuid::Uuid], n: u32, read: impl Fn() -> BTreeMap<String, Vec<u32>>) -> usize {
    let begun = std::time::Instant::now();
    loop {
        let seen = read();
        let count: usize = seen.values().map(Vec::len).sum();
        if count >= keys.len() * n as usize || begun.elapsed() > LONG {
            return complete_and_ordered(&seen, keys, n);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A pipeline without a transform.
fn plain(brokers: Option<String>) -> Setup {
    Setup {
        brokers,
        transforms: Some(String::new()),
        ..Setup::default()
    }
}

fn topic(world: &World) -> String {
    format!("{}.ks.outbox", world.name)
}

fn port(door: &Door) -> String {
    format!("localhost:{}", door.address.port())
}

/// What the program says to these flags besides the world's.
fn said(world: &World, command: &[&str], flags: &[String]) -> (Option<i32>, String) {
    let output = Command::new(testkit::penstock())
        .args(command)
        .arg("--config")
        .arg(world.config())
        .args(world.flags())
        .args(flags)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn flags(all: &[(&str, &dyn std::fmt::Display)]) -> Vec<String> {
    all.iter()
        .map(|(key, value)| format!("--set={key}={value}"))
        .collect()
}

/// Server and client certificates, the trusted authority and a password are rotated while orders flow; then only the new
/// ones are taken, and every connection is cut.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_rotated_under_load_is_in_force_at_the_next_connection_and_nothing_is_lost() {
    let servers = [Authority::new("servers one"), Authority::new("servers two")];
    let clients = [Authority::new("clients one"), Authority::new("clients two")];
    let hosts = ["localhost", "127.0.0.1"];
    let server: Vec<Identity> = servers
        .iter()
        .map(|a| a.issue("server", &hosts, 9))
        .collect();
    let client: Vec<Identity> = clients
        .iter()
        .map(|a| a.issue("penstock", &[], 9))
        .collect();

    let broker = Door::before_broker(&server[0], &[&clients[0]]).await;
    let mut world = World::with(plain(Some(port(&broker)))).await;
    let scylla = Door::before(world.node.addr(), &server[0], &[&clients[0]]).await;
    let user = |password: &str| ("penstock".to_owned(), password.to_owned());
    world.node.set_users(vec![user("first")]);

    let old = servers[0].pem();
    let locked = client[0].locked("sesame");
    let secrets = Secrets::new(
        world.dir.path(),
        &[
            ("ca.pem", &old),
            ("tls.crt", &client[0].certificate),
            ("tls.key", &locked),
            ("key-password", "sesame\n"),
            ("password", "first\n"),
        ],
    );
    world.set("pipeline.delivery", "exactly-once");
    // One of several brokers that is down keeps nobody out.
    let brokers = format!("[\"127.0.0.1:1\", \"{}\"]", port(&broker));
    world.set("sink.brokers", brokers);
    world.set("source.nodes", format!("[\"{}\"]", port(&scylla)));
    world.set("source.username", "penstock");
    world.set("source.password_file", secrets.path("password").display());
    for stage in ["source", "sink"] {
        world.set(&format!("{stage}.tls.enabled"), true);
        for (key, file) in [
            ("ca_file", "ca.pem"),
            ("certificate_file", "tls.crt"),
            ("key_file", "tls.key"),
            ("key_password_file", "key-password"),
        ] {
            world.set(&format!("{stage}.tls.{key}"), secrets.path(file).display());
        }
    }
    let running = world.start(0);
    let keys = keys(8);
    world.write(&keys, 0, 20).await;
    running.await_line("all supervised stages started", LONG);

    // The servers take both for a while, as whoever rotates has it.
    broker.set(&server[0], &[&clients[0], &clients[1]]);
    scylla.set(&server[0], &[&clients[0], &clients[1]]);
    world.node.set_users(vec![user("first"), user("second")]);
    let both = format!("{old}{}", servers[1].pem());
    let locked = client[1].locked("open");
    let mut from = 20;
    let mut load = async |rounds: u32| {
        for _ in 0..rounds {
            world.write(&keys, from, 5).await;
            from += 5;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        from
    };
    load(10).await;
    secrets.swap(
        "2",
        &[
            ("ca.pem", &both),
            ("tls.crt", &client[1].certificate),
            ("tls.key", &locked),
            ("key-password", "open\n"),
            ("password", "second\n"),
        ],
    );
    load(25).await;
    running.await_line("the new credentials are in force", LONG);
    running.await_line("connected to ScyllaDB with the new credentials", LONG);
    load(10).await;

    // Nothing that was is taken any more.
    broker.set(&server[1], &[&clients[1]]);
    scylla.set(&server[1], &[&clients[1]]);
    world.node.set_users(vec![user("second")]);
    broker.cut();
    scylla.cut();
    let n = load(25).await;

    let ca = servers[1].pem();
    let properties = [
        ("security.protocol", "ssl"),
        ("ssl.ca.pem", &*ca),
        ("ssl.certificate.pem", &client[1].certificate),
        ("ssl.key.pem", &client[1].key),
    ];
    let read = || seen(&port(&broker), &topic(&world), &properties);
    let repeated = tokio::task::block_in_place(|| await_all(&keys, n, read));
    assert_eq!(repeated, 0, "exactly once");
    let log = running.stop_cleanly();
    assert!(!log.contains("draining what runs"), "{log}");
    assert!(
        log.contains("the producer has the new credentials"),
        "{log}"
    );
    for secret in ["sesame", "second", "BEGIN"] {
        assert!(!log.contains(secret), "{secret} is told:\n{log}");
    }
    println!(
        "{} records through two rotations of certificates, an authority and a password: 0 lost, {repeated} repeated",
        keys.len() * n as usize
    );
}

/// What does not fit is said in one line: which side, what it is, what would help.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_said_in_one_line_each() {
    let (trusted, other) = (Authority::new("Trusted"), Authority::new("Other"));
    let hosts = ["localhost", "127.0.0.1"];
    let good = trusted.issue("server", &hosts, 9);
    let expired = trusted.issue("server", &hosts, -1);
    let elsewhere = trusted.issue("server", &["elsewhere.example"], 9);
    let stranger = other.issue("penstock", &[], 9);

    let world = World::with(plain(None)).await;
    let file = |name: &str, text: &str| {
        let path = world.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let trusts = file("trusted.pem", &trusted.pem());
    let trusts_other = file("other.pem", &other.pem());
    let (crt, key) = (
        file("stranger.crt", &stranger.certificate),
        file("stranger.key", &stranger.key),
    );
    let wrong_password = file("wrong", "wrong");
    world
        .node
        .set_users(vec![("penstock".to_owned(), "right".to_owned())]);
    let right_password = file("right", "right");

    let broker = Door::before_broker(&good, &[]).await;
    let scylla = Door::before(world.node.addr(), &good, &[]).await;
    let plain_broker = testkit::broker::Cluster::embedded().brokers;
    let sides = [
        ("source", &scylla, world.node.addr().to_string()),
        ("sink", &broker, plain_broker.clone()),
    ];
    // With these, both sides are well.
    let node = |address: &str| format!("[\"{address}\"]");
    let well = flags(&[
        ("source.nodes", &node(&port(&scylla))),
        ("source.username", &"penstock"),
        ("source.password_file", &right_password),
        ("source.tls.enabled", &true),
        ("source.tls.ca_file", &trusts),
        ("sink.brokers", &node(&port(&broker))),
        ("sink.tls.enabled", &true),
        ("sink.tls.ca_file", &trusts),
    ]);
    let connect = |more: &[(&str, &dyn std::fmt::Display)]| {
        let all = [well.clone(), flags(more)].concat();
        said(&world, &["validate", "--connect"], &all)
    };
    let (code, text) = connect(&[]);
    assert_eq!(code, Some(0), "{text}");
    let complains = |what: &str, (code, text): (Option<i32>, String), words: &[&str]| {
        assert_eq!(code, Some(1), "{what}: {text}");
        let errors: Vec<&str> = text.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{what}: {text}");
        println!("{what}: {}", errors[0]);
        for word in words {
            assert!(errors[0].contains(word), "{what}: not {word:?}: {text}");
        }
    };
    for (stage, door, plain) in &sides {
        let name = |key: &str| format!("{stage}.{key}");
        let at = match *stage {
            "source" => "source.nodes",
            _ => "sink.brokers",
        };
        complains(
            &format!("{stage}: wrong authority"),
            connect(&[(&name("tls.ca_file"), &trusts_other)]),
            &["by Trusted, who is not trusted", "ca_file"],
        );
        door.set(&expired, &[]);
        complains(
            &format!("{stage}: expired certificate"),
            connect(&[]),
            &["its certificate expired on", "have the server renew it"],
        );
        door.set(&elsewhere, &[]);
        complains(
            &format!("{stage}: another host's certificate"),
            connect(&[]),
            &["is for elsewhere.example, not for localhost"],
        );
        let (code, text) = connect(&[(&name("tls.verify_hostname"), &false)]);
        assert_eq!(code, Some(0), "{text}");
        door.set(&good, &[&trusted]);
        complains(
            &format!("{stage}: client certificate required"),
            connect(&[]),
            &["asks for a client certificate: set certificate_file and key_file"],
        );
        complains(
            &format!("{stage}: client certificate by a stranger"),
            connect(&[
                (&name("tls.certificate_file"), &crt),
                (&name("tls.key_file"), &key),
            ]),
            &["does not trust who signed the client certificate"],
        );
        door.set(&good, &[]);
        complains(
            &format!("{stage}: a port without TLS"),
            connect(&[(at, &node(plain))]),
            &["is it a port without TLS?"],
        );
        complains(
            &format!("{stage}: a port with TLS"),
            {
                let kept = well
                    .iter()
                    .filter(|flag| !flag.contains(&format!("{stage}.tls.")));
                let kept: Vec<String> = kept.cloned().collect();
                said(&world, &["validate", "--connect"], &kept)
            },
            &[&format!("speaks TLS there: set {stage}.tls.enabled = true")],
        );
    }
    complains(
        "source: wrong password",
        connect(&[("source.password_file", &wrong_password)]),
        &["refused the credentials", "source.username"],
    );
    // What cannot be used in itself is refused without asking anybody.
    let over = trusted.issue("penstock", &[], -1);
    let (over_crt, over_key) = (
        file("over.crt", &over.certificate),
        file("over.key", &over.key),
    );
    let (code, text) = connect(&[
        ("source.tls.certificate_file", &over_crt),
        ("source.tls.key_file", &over_key),
    ]);
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("the certificate expired on"), "{text}");
    // The order service connects as the source does.
    let (code, text) = said(&world, &["init-schema"], &well);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = said(
        &world,
        &["init-schema"],
        &[
            well.clone(),
            flags(&[("source.password_file", &wrong_password)]),
        ]
        .concat(),
    );
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("Username and/or password are incorrect"),
        "{text}"
    );
    let (code, text) = said(
        &world,
        &["init-schema"],
        &[well, flags(&[("source.tls.ca_file", &trusts_other)])].concat(),
    );
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("by Trusted, who is not trusted"), "{text}");
}

/// What was rotated and is refused changes nothing, is said, and is in force as soon as the other side takes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_password_that_is_refused_waits_beside_the_old_one() {
    let mut world = World::with(plain(None)).await;
    let password = world.dir.path().join("password");
    std::fs::write(&password, "first").unwrap();
    let user = |password: &str| ("penstock".to_owned(), password.to_owned());
    world.node.set_users(vec![user("first")]);
    let way = Valve::before(world.node.addr(), Flow::Open);
    world.set("source.nodes", format!("[\"{}\"]", way.brokers));
    world.set("source.username", "penstock");
    world.set("source.password_file", password.display());
    world.set("health.check_interval", "200ms");
    let running = world.start(0);
    let keys = keys(4);
    let (brokers, topic) = (world.cluster.brokers.clone(), topic(&world));
    let all = |n| {
        let read = || seen(&brokers, &topic, &[]);
        tokio::task::block_in_place(|| await_all(&keys, n, read))
    };
    world.write(&keys, 0, 10).await;
    all(10);

    std::fs::write(&password, "second").unwrap();
    running.await_line("the new credentials are not in force", LONG);
    world.write(&keys, 10, 10).await;
    all(20);
    running.await_line(
        "degraded(the new credentials are not in force, the old ones go on: ScyllaDB at",
        LONG,
    );
    assert!(running.text().contains("refused the credentials"));

    world.node.set_users(vec![user("second")]);
    running.await_line("connected to ScyllaDB with the new credentials", LONG);
    way.set(Flow::Cut);
    way.set(Flow::Open);
    world.write(&keys, 20, 10).await;
    all(30);
    let log = running.stop_cleanly();
    assert!(!log.contains("draining what runs"), "{log}");
}
