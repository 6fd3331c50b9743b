//! A real Apache Kafka by TLS: every mechanism, certificates of clients, what does not fit, and a password that is rotated
//! under load.

use std::time::Duration;

use kafka_node::{Cluster as Kafka, Secure, Spec};
use testkit::process::{LONG, World, keys};
use testkit::secure::Authority;

use super::{await_all, flags, plain, said, seen, topic};

fn unsigned(claims: &serde_json::Value) -> String {
    use base64::Engine as _;
    let part = |json: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json);
    format!(
        "{}.{}.",
        part(r#"{"alg":"none"}"#),
        part(&claims.to_string())
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_kafka_takes_every_login_says_what_does_not_fit_and_rotates_under_load() {
    if std::env::var_os("PENSTOCK_TEST_BROKERS").is_none() {
        eprintln!("skipped: no Kafka is asked for; `cargo xtask test --kafka secure` does");
        return;
    }
    kafka_node::available().unwrap();
    let state = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../kafka");
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (trusted, clients, other) = (
        Authority::new("Trusted"),
        Authority::new("Clients"),
        Authority::new("Other"),
    );
    let node = trusted.issue("node", &["localhost"], 9);
    let mut spec = Spec::one(kafka_node::jars(&state).unwrap(), dir.path().join("kafka"));
    // Where there is no TLS, PLAIN alone is offered.
    spec.users = vec![("admin".into(), "plain".into())];
    spec.secure = Some(Secure {
        identity: file("node.pem", &node.together()),
        authorities: file("clients.pem", &clients.pem()),
        users: vec![("penstock".into(), "first".into())],
    });
    spec.properties = vec![(
        "super.users".into(),
        "User:admin;User:ANONYMOUS;User:penstock;User:CN=penstock".into(),
    )];
    let kafka = tokio::task::block_in_place(|| Kafka::start(&spec)).unwrap();
    let (certified, login) = kafka.secure().expect("it is secure");

    let trusts = file("trusted.pem", &trusted.pem()).display().to_string();
    let trusts_other = file("other.pem", &other.pem()).display().to_string();
    let password = file("password", "first");
    let wrong = file("wrong", "wrong");
    let token = file(
        "token",
        &unsigned(&serde_json::json!({ "sub": "penstock", "iat": 1, "exp": 4_000_000_000_u64 })),
    );
    let client = clients.issue("penstock", &[], 9);
    let (crt, key) = (
        file("tls.crt", &client.certificate),
        file("tls.key", &client.locked("sesame")),
    );
    let sesame = file("sesame", "sesame");

    let mut world = World::with(plain(Some(login.clone()))).await;
    let secured = |at: &str, ca: &str, more: &[(&str, &dyn std::fmt::Display)]| {
        let brokers = format!("[\"{at}\"]");
        let tls: [(&str, &dyn std::fmt::Display); 3] = [
            ("sink.brokers", &brokers),
            ("sink.tls.enabled", &true),
            ("sink.tls.ca_file", &ca),
        ];
        flags(&[&tls[..], more].concat())
    };
    let connect = |flags: &[String]| {
        tokio::task::block_in_place(|| said(&world, &["validate", "--connect"], flags))
    };
    let name: (&str, &dyn std::fmt::Display) = ("sink.username", &"penstock");
    let (password_shown, wrong_shown) = (password.display(), wrong.display());
    let logs_in: (&str, &dyn std::fmt::Display) = ("sink.password_file", &password_shown);
    let wrongly: (&str, &dyn std::fmt::Display) = ("sink.password_file", &wrong_shown);
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN"] {
        let all = secured(&login, &trusts, &[("sink.sasl", &mechanism), name, logs_in]);
        let (code, text) = connect(&all);
        assert_eq!(code, Some(0), "{mechanism}: {text}");
        println!("{mechanism}: good");
    }
    let (code, text) = connect(&secured(
        &login,
        &trusts,
        &[
            ("sink.sasl", &"OAUTHBEARER"),
            ("sink.token_file", &token.display()),
        ],
    ));
    assert_eq!(code, Some(0), "OAUTHBEARER: {text}");
    println!("OAUTHBEARER: good");
    let certificate: [(&str, &dyn std::fmt::Display); 3] = [
        ("sink.tls.certificate_file", &crt.display()),
        ("sink.tls.key_file", &key.display()),
        ("sink.tls.key_password_file", &sesame.display()),
    ];
    let (code, text) = connect(&secured(&certified, &trusts, &certificate));
    assert_eq!(code, Some(0), "mTLS: {text}");
    println!("mTLS: good");

    let scram: (&str, &dyn std::fmt::Display) = ("sink.sasl", &"SCRAM-SHA-512");
    let by_address = login.replace("localhost", "127.0.0.1");
    let open_port = kafka.brokers();
    let open = flags(&[
        ("sink.brokers", &format!("[\"{open_port}\"]")),
        scram,
        name,
        logs_in,
    ]);
    let wrong_setups = [
        (
            "wrong authority",
            secured(&login, &trusts_other, &[scram, name, logs_in]),
            "by Trusted, who is not trusted",
        ),
        (
            "another host",
            secured(&by_address, &trusts, &[scram, name, logs_in]),
            "for localhost, not for 127.0.0.1",
        ),
        (
            "wrong password",
            secured(&login, &trusts, &[scram, name, wrongly]),
            "check sink.username and the password",
        ),
        (
            "no such mechanism",
            open,
            "does not offer SCRAM-SHA-512, but PLAIN",
        ),
        (
            "a port without TLS",
            secured(&open_port, &trusts, &[]),
            "is it a port without TLS?",
        ),
        (
            "no client certificate",
            secured(&certified, &trusts, &[]),
            "asks for a client certificate",
        ),
        (
            "no login",
            secured(&login, &trusts, &[]),
            "wants a login (SASL; it offers",
        ),
        (
            "a login where certificates are asked for",
            secured(
                &certified,
                &trusts,
                &[&certificate[..], &[scram, name, logs_in]].concat(),
            ),
            "asks nobody to log in there",
        ),
        (
            "no TLS where it is spoken",
            flags(&[("sink.brokers", &format!("[\"{certified}\"]"))]),
            "speaks TLS there: set sink.tls.enabled = true",
        ),
    ];
    for (what, flags, words) in wrong_setups {
        let (code, text) = connect(&flags);
        assert_eq!(code, Some(1), "{what}: {text}");
        let errors: Vec<&str> = text.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{what}: {text}");
        println!("{what}: {}", errors[0]);
        assert!(errors[0].contains(words), "{what}: {text}");
    }
    let over = clients.issue("penstock", &[], -1);
    let over = (
        file("over.crt", &over.certificate),
        file("over.key", &over.key),
    );
    let (code, text) = connect(&secured(
        &certified,
        &trusts,
        &[
            ("sink.tls.certificate_file", &over.0.display()),
            ("sink.tls.key_file", &over.1.display()),
        ],
    ));
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("the certificate expired on"), "{text}");

    // Under load: the password is another in Kafka, then in the file, and then every connection is made anew.
    world.set("pipeline.delivery", "exactly-once");
    world.set("sink.tls.enabled", true);
    world.set("sink.tls.ca_file", &trusts);
    world.set("sink.sasl", "SCRAM-SHA-512");
    world.set("sink.username", "penstock");
    world.set("sink.password_file", password.display());
    let running = world.start(0);
    let keys = keys(8);
    let mut from = 0;
    let mut load = async |rounds: u32| {
        for _ in 0..rounds {
            world.write(&keys, from, 5).await;
            from += 5;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        from
    };
    load(20).await;
    running.await_line("all supervised stages started", LONG);
    let admin = file(
        "admin.properties",
        "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.jaas.config=\
         org.apache.kafka.common.security.plain.PlainLoginModule required username=\"admin\" password=\"plain\";\n",
    );
    let changed = tokio::task::block_in_place(|| {
        kafka.tool(
            "kafka.admin.ConfigCommand",
            &[
                "--bootstrap-server",
                &open_port,
                "--command-config",
                admin.to_str().unwrap(),
                "--alter",
                "--add-config",
                "SCRAM-SHA-512=[password=second]",
                "--entity-type",
                "users",
                "--entity-name",
                "penstock",
            ],
        )
    });
    changed.unwrap();
    load(10).await;
    std::fs::write(&password, "second").unwrap();
    running.await_line("the new credentials are in force", LONG);
    load(10).await;
    tokio::task::block_in_place(|| {
        kafka.end(0, "-TERM").unwrap();
        kafka.restart(0).unwrap();
    });
    let n = load(10).await;
    let properties = [
        ("security.protocol", "sasl_ssl"),
        ("ssl.ca.location", &*trusts),
        ("sasl.mechanism", "SCRAM-SHA-512"),
        ("sasl.username", "penstock"),
        ("sasl.password", "second"),
    ];
    let read = || seen(&login, &topic(&world), &properties);
    let repeated = tokio::task::block_in_place(|| await_all(&keys, n, read));
    assert_eq!(repeated, 0, "exactly once");
    let log = running.stop_cleanly();
    assert!(!log.contains("draining what runs"), "{log}");
    println!(
        "{} records through a rotated password and a restarted Kafka, 0 lost, {repeated} repeated",
        keys.len() * n as usize
    );
}
