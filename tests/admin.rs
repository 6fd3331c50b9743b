//! The admin interface by the real program: who may ask what, and who keeps whom from being answered. The tables of
//! docs/probes.md are read from the page, row by row.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use penstock::admin::metrics;
use reqwest::{Client, Method};
use serde_json::Value;
use testkit::process;
use testkit::process::{LONG, Running, Setup, World};

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
    let world = World::with_orders("").await;
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
    let world = World::with_orders("").await;
    let running = world.start(0);
    started(&running);
    running.await_line("component=\"system\" from=starting", LONG);
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

/// What a probe was answered, as the page writes it.
async fn code(to: &str, path: &str) -> String {
    let client = Client::builder().timeout(Duration::from_secs(2)).build();
    let answer = client.expect("a client").get(format!("http://{to}{path}"));
    match answer.send().await {
        Ok(answer) => answer.status().as_u16().to_string(),
        Err(_) => "-".to_owned(),
    }
}

/// Rows of docs/probes.md that have been seen.
#[derive(Default)]
struct Seen(Vec<String>);

impl Seen {
    /// Waits until the probes answer as the page says of this row.
    async fn row(&mut self, what: &str, running: &Running) {
        let rows = table("what is so");
        let row = rows.iter().find(|row| row[0].starts_with(what));
        let row = row.unwrap_or_else(|| panic!("no row {what:?}"));
        let deadline = Instant::now() + LONG;
        let admin = running.admin();
        loop {
            let mut seen = Vec::new();
            for path in ["/healthz", "/readyz", "/health"] {
                seen.push(code(&admin, path).await);
            }
            if seen == row[1..] {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{row:?}, but {seen:?}\n{}",
                running.text()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.0.push(row[0].clone());
    }
}

const QUICK: &str = "[health]\ncheck_interval = \"100ms\"\n";

/// Row 13: each row of the page's table, made so and looked at.
#[tokio::test(flavor = "multi_thread")]
async fn probes_fail_as_the_page_says() {
    let mut seen = Seen::default();

    // A node that takes connections and says nothing.
    let mut waiting = world(QUICK).await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("an address");
    waiting.set("source.nodes", format!("[\"{address}\"]"));
    let running = waiting.start(0);
    seen.row("a side does not answer", &running).await;
    drop(running);

    let well = world(QUICK).await;
    let running = well.start(0);
    started(&running);
    seen.row("all is well", &running).await;
    let text = std::fs::read_to_string(well.config()).expect("pipeline.toml");
    well.save(&format!("{text}\nnonsense = 1\n"));
    running.await_line("configuration rejected", LONG);
    seen.row("the newest configuration is rejected", &running)
        .await;
    well.save(&text);

    // Reads fail until the breaker is open; it stays so for longer than this takes.
    let failing = scylla_double::Fault::new(scylla_double::Action::ServerError("asked to".into()))
        .on(scylla_double::Operation::Select);
    let fault = well.node.faults().inject(failing);
    running
        .await_metrics("an open breaker", LONG, |m| {
            m.stage("penstock_breaker_state", "source") == 2.0
        })
        .await;
    seen.row("a critical stage's breaker is open", &running)
        .await;
    let worse = text.replace("[health]\n", "[health]\nopen_breaker = \"unhealthy\"\n");
    well.save(&worse);
    seen.row("a critical stage's breaker is open, health", &running)
        .await;
    well.node.faults().clear(fault);
    drop(running);

    let failed = |stage: &str| format!("stage::{stage}=return(a full disk)");
    let at_once = "[policies.supervision]\nmax_restarts = 0\n";
    let critical = world(&format!("{QUICK}useless_after = \"0s\"\n{at_once}")).await;
    let running = critical.start_faulty(0, &failed("source"));
    started(&running);
    critical.write(&process::keys(4), 0, 1).await;
    seen.row("a critical stage has failed", &running).await;
    let text = std::fs::read_to_string(critical.config()).expect("pipeline.toml");
    critical.save(&text.replace("useless_after = \"0s\"", "useless_after = \"1s\""));
    seen.row("not ready for longer", &running).await;
    drop(running);

    let other = world(&format!("{QUICK}critical = [\"sink\"]\n{at_once}")).await;
    let running = other.start_faulty(0, &failed("source"));
    started(&running);
    other.write(&process::keys(4), 0, 1).await;
    running.await_line("stage failed", LONG);
    seen.row("a stage that is not critical has failed", &running)
        .await;
    drop(running);

    let hung = world(&format!("{QUICK}stalled_after = \"2s\"\n")).await;
    let running = hung.start_faulty(0, "coordinator=return(hang)");
    started(&running);
    seen.row("the coordinator has not answered", &running).await;
    running.await_line(
        "the process hangs, liveness fails who=\"the coordinator",
        LONG,
    );
    drop(running);

    // The one worker is taken for good, a minute at a time.
    let stuck = world(&format!("{QUICK}stalled_after = \"2s\"\n")).await;
    let blocked = [
        ("FAILPOINTS", "stage::sink=sleep(60000)"),
        ("TOKIO_WORKER_THREADS", "1"),
    ];
    let running = stuck.start_with(0, &blocked);
    started(&running);
    stuck.write(&process::keys(4), 0, 1).await;
    seen.row("the runtime hangs", &running).await;
    running.await_line("the process hangs, liveness fails who=\"the runtime", LONG);
    drop(running);

    // What hangs in the sink holds the drain.
    let draining = world(&format!("{QUICK}stalled_after = \"60s\"\n")).await;
    let running = draining.start_faulty(0, "stage::sink=return(hang)");
    started(&running);
    draining.write(&process::keys(4), 0, 1).await;
    running
        .await_metrics("read", LONG, |m| {
            m.sum("penstock_changes_read_total", &[]) >= 4.0
        })
        .await;
    running.signal("-TERM");
    running.await_line("stopping", LONG);
    seen.row("the process drains", &running).await;
    drop(running);

    let mut all: Vec<String> = table("what is so")
        .into_iter()
        .map(|row| row[0].clone())
        .collect();
    all.sort();
    seen.0.sort();
    assert_eq!(seen.0, all, "a row that nobody has looked at");
    println!("{} rows of docs/probes.md, each seen", all.len());
}

/// The families of a scrape: name, kind, and the labels that its samples bear.
fn families(scrape: &str) -> Vec<(String, String, BTreeSet<String>)> {
    let mut families: Vec<(String, String, BTreeSet<String>)> = Vec::new();
    for line in scrape.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a kind");
            families.push((name.to_owned(), kind.to_owned(), BTreeSet::new()));
        } else if let Some((name, labels)) = line.split_once('{') {
            let family = families.last_mut().expect("a family");
            assert!(name.starts_with(&family.0), "{line} below {}", family.0);
            // What stands before `="` and after the last separator is a label's name.
            let names = labels
                .split("=\"")
                .filter_map(|part| part.rsplit([',', '"', '{']).next());
            let named = |name: &&str| {
                *name != "le"
                    && !name.is_empty()
                    && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            };
            family.2.extend(names.filter(named).map(str::to_owned));
        }
    }
    families
}

/// What is served is what the table of metrics says, of which docs/metrics.md is made; in either format. Only what
/// there is but at times is left out: what shared shards have.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_those_of_the_table() {
    let world = World::with_orders("").await;
    let running = world.start(0);
    started(&running);
    running.await_line("component=\"system\" from=starting", LONG);
    let url = format!("http://{}/metrics", running.admin());
    let scrape = async |accept: &str| {
        let request = client().get(&url).header("accept", accept);
        let answer = request.send().await.expect("an answer");
        let kind = answer.headers()["content-type"].to_str().expect("text");
        let kind = kind.split(';').next().unwrap_or_default().to_owned();
        (kind, answer.text().await.expect("text"))
    };
    let (kind, text) = scrape("*/*").await;
    assert_eq!(kind, "text/plain");
    let served = families(&text);
    let at_times = [
        "penstock_group_joined",
        "penstock_shards_owned",
        "penstock_change_latency_seconds",
        "penstock_retention_headroom_ratio",
    ];
    for metric in metrics::table() {
        let Some((_, kind, labels)) = served.iter().find(|(name, ..)| name == metric.name) else {
            let transforms = metric.labels == ["transform"];
            assert!(
                transforms || at_times.contains(&metric.name),
                "{} is not served",
                metric.name
            );
            continue;
        };
        assert_eq!(kind, metric.kind.word(), "{}", metric.name);
        let said: BTreeSet<String> = metric.labels.iter().map(|l| (*l).to_owned()).collect();
        assert_eq!(labels, &said, "{}", metric.name);
    }
    for (name, ..) in &served {
        assert!(
            metrics::table().any(|m| m.name == name),
            "{name} is in no row"
        );
    }
    let (kind, open) = scrape("application/openmetrics-text;version=1.0.0,text/plain;q=0.5").await;
    assert_eq!(kind, "application/openmetrics-text");
    assert!(open.ends_with("\n# EOF\n"), "{open}");
    assert!(open.contains("# TYPE penstock_source_rows counter\n"));
    assert!(open.contains("# UNIT penstock_source_bytes bytes\n"));
    assert_eq!(families(&open).len(), served.len());
    running.stop_cleanly();
}

/// Not on a terminal: a line each time, and the picture itself for programs; every answer can be had as JSON.
#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_watched_without_a_terminal_and_every_answer_can_be_json() {
    let world = World::new("").await;
    let running = world.start(1);
    running.await_line("all supervised stages started", LONG);
    let config = world.config();
    let listen = format!("--set=admin.listen={}", running.admin());
    let watched = |more: &[&str]| {
        let child = Command::new(testkit::penstock())
            .args(["status", "--watch", "100ms", "--config"])
            .arg(&config)
            .arg(&listen)
            .args(more)
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.expect("penstock starts");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let lines: Vec<String> = out.lines().take(3).map(|l| l.expect("text")).collect();
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        lines
    };
    for line in watched(&[]) {
        let begins = format!("{} {} — running · ", world.name, env!("CARGO_PKG_VERSION"));
        assert!(line.starts_with(&begins), "{line}");
        assert!(
            line.contains("read ") && line.contains("breakers closed"),
            "{line}"
        );
    }
    for line in watched(&["-o", "json"]) {
        let picture: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(picture["status"]["pipeline"], world.name.as_str());
    }
    let answers: &[&[&str]] = &[
        &["status"],
        &["status", "--all"],
        &["health"],
        &["health", "--ready"],
        &["breaker", "list"],
        &["breaker", "reset", "sink"],
        &["reload"],
        &["reloads"],
        &["dead-letters", "list"],
        &["dead-letters", "replay"],
        &["dead-letters", "purge"],
        &["config"],
        &["validate"],
    ];
    for answer in answers {
        let (code, said) = running.penstock(&[answer, &["-o", "json"][..]].concat());
        let json: Result<Value, _> = serde_json::from_str(&said);
        assert!(
            code == Some(0) && json.is_ok(),
            "{answer:?}: {code:?} {said}"
        );
    }
    running.stop_cleanly();
}

/// Changes a second while a backlog is carried, and how many pictures, events and lines of a tap were shown meanwhile.
async fn carries(changes: u32, watched: bool) -> (f64, usize) {
    const KEYS: usize = 48;
    let world = World::new("").await;
    world
        .write(&process::keys(KEYS), 0, changes / KEYS as u32)
        .await;
    let began = Instant::now();
    let running = world.start(1);
    let base = format!("http://{}", running.admin());
    let looking = async {
        let (client, mut shown) = (client(), 0);
        let mut events = client
            .get(format!("{base}/events"))
            .send()
            .await
            .expect("events");
        loop {
            let tap = client.get(format!("{base}/tap?id=watched&stage=sink&rate=1000"));
            let picture = client.get(format!("{base}/picture"));
            let (tap, picture, event) = tokio::join!(tap.send(), picture.send(), async {
                let next = tokio::time::timeout(Duration::from_millis(250), events.chunk());
                next.await
                    .is_ok_and(|event| event.is_ok_and(|event| event.is_some()))
            });
            shown += usize::from(event);
            if let Ok(taken) = tap.and_then(reqwest::Response::error_for_status) {
                let taken: Value = taken.json().await.unwrap_or_default();
                shown += taken["lines"].as_array().map_or(0, Vec::len);
            }
            shown += usize::from(picture.is_ok_and(|p| p.status().is_success()));
            if began.elapsed() > LONG {
                return shown;
            }
            LOOKED.store(shown, Relaxed);
        }
    };
    let done = async {
        let done =
            |m: &process::Metrics| m.sum("penstock_changes_done_total", &[]) >= f64::from(changes);
        running.await_metrics("all is done", LONG, done).await;
        began.elapsed()
    };
    LOOKED.store(0, Relaxed);
    let took = if watched {
        tokio::select! {
            took = done => took,
            shown = looking => panic!("not done within {LONG:?}; {shown} were shown"),
        }
    } else {
        done.await
    };
    running.stop_cleanly();
    (
        f64::from(changes) / took.as_secs_f64(),
        LOOKED.load(Relaxed),
    )
}

static LOOKED: AtomicUsize = AtomicUsize::new(0);

/// Long form, more rounds of more changes: `cargo xtask proof watched`.
#[tokio::test(flavor = "multi_thread")]
async fn watched_from_all_sides_it_carries_as_much() {
    let asked = process::asked("PENSTOCK_TEST_ROUNDS", 1);
    let is_long = asked > 1;
    let changes = if is_long { 96_000 } else { 9_600 };
    // One round on a machine that does other things says little: only that it does not stand still, in the best of a few.
    let (least, rounds) = if is_long { (0.85, asked) } else { (0.2, 4) };
    let (mut alone, mut watched) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let (a, _) = carries(changes, false).await;
        let (w, shown) = carries(changes, true).await;
        println!("round {round}: alone {a:.0}/s, watched {w:.0}/s, {shown} shown");
        assert!(shown > 0, "nobody saw anything");
        if !is_long && w > a * least {
            return;
        }
        alone.push(a);
        watched.push(w);
    }
    let median = |all: &mut Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (a, w) = (median(&mut alone), median(&mut watched));
    println!(
        "{rounds} rounds of {changes} changes: alone {a:.0}/s, watched {w:.0}/s: {:.0} %",
        w / a * 100.0
    );
    assert!(w > a * least, "alone {a:.0}/s, watched {w:.0}/s");
}
