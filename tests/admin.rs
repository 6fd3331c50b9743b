//! The admin interface by the real program: who may ask what, and who keeps whom from being answered. The tables of
//! docs/probes.md are read from the page, row by row.

#[path = "support/broker.rs"]
mod broker;
#[allow(dead_code, unreachable_pub)]
#[path = "support/plugins.rs"]
mod plugins;
#[path = "support/process.rs"]
mod process;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use process::{LONG, Running, Setup, World};
use reqwest::{Client, Method};

/// A client that gives up as a kubelet would, many times over.
fn client() -> Client {
    let client = Client::builder().timeout(Duration::from_secs(20));
    client.build().expect("a client")
}

/// The rows of a table of docs/probes.md, by its first heading.
fn table(first_heading: &str) -> Vec<Vec<String>> {
    let page = std::fs::read_to_string("docs/probes.md").expect("the page");
    let heading = format!("| {first_heading} |");
    let rows = page.lines().skip_while(|line| !line.starts_with(&heading));
    let rows: Vec<Vec<String>> = rows
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().replace('`', "")).collect()
        })
        .collect();
    assert!(!rows.is_empty(), "no table {first_heading:?}");
    rows
}

async fn world(extra: &str) -> World {
    World::with(Setup {
        extra: extra.to_owned(),
        ..Setup::default()
    })
    .await
}

fn started(running: &Running) {
    running.await_line("all supervised stages started", LONG);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_open_what_the_page_says() {
    let world = world("").await;
    let client = client();
    let rows = table("tokens set");
    let mut sets: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    sets.dedup();
    for (round, set) in sets.iter().enumerate() {
        let tokens: Vec<(String, String)> = set
            .split(", ")
            .filter(|token| *token != "none")
            .map(|token| {
                let key = match token {
                    "metrics" => "METRICS_TOKEN",
                    _ => "TOKEN",
                };
                (format!("PENSTOCK_ADMIN__{key}"), format!("the {token}"))
            })
            .collect();
        let environment: Vec<(&str, &str)> = tokens
            .iter()
            .map(|(key, token)| (key.as_str(), token.as_str()))
            .collect();
        let running = world.start_with(round as u32, &environment);
        started(&running);
        // The first look at each component has been.
        running.await_line("component=\"system\" from=starting", LONG);
        for row in rows.iter().filter(|row| row[0] == *set) {
            let given = [None, Some("wrong"), Some("the metrics"), Some("the token")];
            for (given, wanted) in given.into_iter().zip(&row[2..]) {
                let mut request = client.get(format!("http://{}{}", running.admin(), row[1]));
                if let Some(given) = given {
                    request = request.bearer_auth(given);
                }
                let code = request.send().await.expect("an answer").status().as_u16();
                assert_eq!(&code.to_string(), wanted, "{row:?} with {given:?}");
            }
        }
        running.stop_cleanly();
    }
    println!(
        "{} rows of docs/probes.md, each with four tokens",
        rows.len()
    );
}

/// What has to be refused on loopback without a token, and with what; nothing of it does anything.
const FOREIGN: [(&str, &str, u16); 5] = [
    ("host", "evil.example", 421),
    ("host", "evil.example:9180", 421),
    ("origin", "https://evil.example", 403),
    ("origin", "null", 403),
    ("sec-fetch-site", "cross-site", 403),
];

#[tokio::test(flavor = "multi_thread")]
async fn no_page_of_a_stranger_asks_anything() {
    let world = World::with(Setup {
        tables: "outbox_messages",
        extra: "[orders]\nenabled = true\nlisten = \"127.0.0.1:0\"\n".to_owned(),
        ..Setup::default()
    })
    .await;
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_penstock"))
        .args(["init-schema", "--config"])
        .arg(world.config())
        .output()
        .expect("penstock starts");
    assert!(made.status.success(), "{made:?}");
    let running = world.start(0);
    started(&running);
    let client = client();
    let (admin, orders) = (running.admin(), running.orders());
    let order = r#"{"customer_id": "c", "currency": "EUR", "items": [{"sku": "s", "quantity": 1, "unit_price_minor": 1}]}"#;
    let asked = [
        (format!("http://{admin}/breakers/sink/reset"), "", 200),
        (format!("http://{admin}/-/reload"), "", 200),
        (format!("http://{orders}/orders"), order, 201),
    ];
    for (url, body, well) in &asked {
        for (name, value, code) in FOREIGN {
            let request = client.post(url).header(name, value).body(body.to_owned());
            let answer = request.send().await.expect("an answer");
            assert_eq!(answer.status(), code, "{url} {name}: {value}");
            let kind = answer.headers()["content-type"].clone();
            assert_eq!(kind, "application/problem+json", "{url}");
        }
        let read = client.get(url).header("host", "evil.example").send().await;
        assert_eq!(read.expect("an answer").status(), 421, "{url}");
        let own = url.replace("127.0.0.1", "localhost");
        let origin = own.split('/').take(3).collect::<Vec<_>>().join("/");
        for request in [
            client.request(Method::POST, url),
            client.post(&own).header("origin", &origin),
        ] {
            let answer = request
                .body(body.to_owned())
                .send()
                .await
                .expect("an answer");
            assert_eq!(answer.status(), *well, "{url}");
        }
    }
    assert_eq!(running.count("breaker reset by hand"), 2);
    world.await_records(2, LONG, &running);
    // A probe names whatever host it likes.
    let probe = client
        .get(format!("http://{admin}/healthz"))
        .header("host", "10.0.0.7:9180");
    assert_eq!(probe.send().await.expect("an answer").status(), 200);
    running.stop_cleanly();
    assert_eq!(world.records().len(), 2);
}

/// 640 connections that say nothing, or begin to: more than there is room for, and more than that.
#[tokio::test(flavor = "multi_thread")]
async fn who_idles_keeps_no_probe_and_no_order_out() {
    const SILENT: usize = 640;
    let world = World::with(Setup {
        tables: "outbox_messages",
        extra: "[orders]\nenabled = true\nlisten = \"127.0.0.1:0\"\n".to_owned(),
        ..Setup::default()
    })
    .await;
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_penstock"))
        .args(["init-schema", "--config"])
        .arg(world.config())
        .output()
        .expect("penstock starts");
    assert!(made.status.success(), "{made:?}");
    let running = world.start(0);
    started(&running);
    let (admin, orders) = (running.admin(), running.orders());
    let urls = [
        (format!("http://{admin}/healthz"), 200),
        (format!("http://{admin}/readyz"), 200),
        (format!("http://{admin}/metrics"), 200),
        (format!("http://{orders}/orders/x"), 400),
    ];
    let mut silent = Vec::new();
    let mut slowest = Duration::ZERO;
    for n in 0..SILENT {
        let mut stream =
            TcpStream::connect(if n % 2 == 0 { &admin } else { &orders }).expect("a connection");
        if n % 3 == 0 {
            stream.write_all(b"GET /healthz HT").expect("a beginning");
        }
        silent.push(stream);
        if n % 40 == 39 {
            for (url, code) in &urls {
                let began = Instant::now();
                let answer = client().get(url).send().await.expect("an answer");
                assert_eq!(answer.status(), *code, "{url} beside {n}");
                slowest = slowest.max(began.elapsed());
            }
        }
    }
    for to in [&admin, &orders] {
        let more: Vec<_> = (0..SILENT)
            .map(|_| TcpStream::connect(to).expect("a connection"))
            .collect();
        for (url, code) in &urls {
            let began = Instant::now();
            let answer = client().get(url).send().await.expect("an answer");
            assert_eq!(answer.status(), *code, "{url} beside {SILENT} more");
            slowest = slowest.max(began.elapsed());
        }
        drop(more);
    }
    running.stop_cleanly();
    println!(
        "beside {SILENT} silent connections and as many more, the slowest answer took {slowest:?}"
    );
}
