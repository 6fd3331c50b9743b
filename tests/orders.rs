//! The order service by the real program: from the HTTP request to the event in the broker.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use reqwest::{Client, Method, Response};
use scylla_double::{Action, Fault, Operation};
use serde_json::{Value, json};
use testkit::process;
use testkit::process::{LONG, Setup, World, asked};

/// One connection, kept.
fn connection() -> Client {
    let client = Client::builder().pool_max_idle_per_host(1).timeout(LONG);
    client.build().expect("a client")
}

async fn send(client: &Client, method: Method, url: &str, body: Option<&Value>) -> Response {
    let mut request = client.request(method, url);
    if let Some(body) = body {
        request = request.json(body);
    }
    request.send().await.expect("an answer")
}

async fn body(response: Response) -> Value {
    response.json().await.expect("JSON")
}

fn order(n: u32) -> Value {
    json!({
        "customer_id": format!("c-{n}"), "currency": "EUR",
        "items": [{"sku": "bolt", "quantity": n % 7 + 1, "unit_price_minor": 250}],
    })
}

/// What each order's events say, in the order in which they stand in the topic.
fn events(world: &World) -> BTreeMap<String, Vec<(String, i64)>> {
    let mut events: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for record in world.records() {
        let event: Value = serde_json::from_str(record.text()).expect("JSON");
        let id = record.key_text().to_owned();
        assert_eq!(
            event["order"]["id"],
            id.as_str(),
            "the key is the order's id"
        );
        let kind = record.header("event-type").expect("a header").to_owned();
        let version = event["order"]["version"].as_i64().expect("a number");
        events.entry(id).or_default().push((kind, version));
    }
    events
}

/// Long form, 10,000 orders: `cargo xtask proof orders`.
#[tokio::test(flavor = "multi_thread")]
async fn every_order_becomes_an_event_and_its_changes_follow_in_order() {
    const CONNECTIONS: u32 = 50;
    let orders = asked("PENSTOCK_TEST_ORDERS", 1_000);
    let mut world = World::with_orders("").await;
    // The service stamps its writes, and one that takes longer than this to arrive is late, out of order.
    world.set("source.safety_interval", "3s");
    let running = world.start(1);
    let url = format!("http://{}/orders", running.orders());
    running.await_line("all supervised stages started", LONG);
    let began = Instant::now();
    // Every fourth order is changed, then cancelled, by whoever made it.
    let customers = (0..CONNECTIONS).map(|c| {
        let url = &url;
        async move {
            let client = connection();
            let mut expected = BTreeMap::new();
            for n in (c..orders).step_by(CONNECTIONS as usize) {
                let made = send(&client, Method::POST, url, Some(&order(n))).await;
                assert_eq!(made.status(), 201);
                let id = body(made).await["id"].as_str().expect("an id").to_owned();
                let mut kinds = vec![("order.created".to_owned(), 1)];
                if n.is_multiple_of(4) {
                    let one = format!("{url}/{id}");
                    let confirm = json!({"status": "confirmed"});
                    let changed = send(&client, Method::PATCH, &one, Some(&confirm)).await;
                    assert_eq!(changed.status(), 200);
                    let cancelled = send(&client, Method::DELETE, &one, None).await;
                    assert_eq!(cancelled.status(), 200);
                    kinds.push(("order.updated".to_owned(), 2));
                    kinds.push(("order.cancelled".to_owned(), 3));
                }
                expected.insert(id, kinds);
            }
            expected
        }
    });
    let expected: BTreeMap<_, _> = futures::future::join_all(customers)
        .await
        .into_iter()
        .flatten()
        .collect();
    let accepted = began.elapsed();
    assert_eq!(expected.len(), orders as usize);
    let total: usize = expected.values().map(Vec::len).sum();
    let metrics = running
        .await_metrics("all events are delivered", 10 * LONG, |m| {
            m.sum("penstock_records_acknowledged_total", &[]) >= total as f64
        })
        .await;
    let delivered = began.elapsed();
    running.stop_cleanly();
    let seen = events(&world);
    let late = metrics.sum("penstock_source_late_changes_total", &[]);
    let differing: Vec<_> = expected
        .iter()
        .filter(|(id, events)| seen.get(*id) != Some(events))
        .map(|(id, events)| (id, events, seen.get(id)))
        .collect();
    assert!(
        differing.is_empty() && seen.len() == expected.len(),
        "{} keys of {}, {late} changes late; order, asked for, seen: {differing:?}",
        seen.len(),
        expected.len(),
    );
    println!(
        "{orders} orders from {CONNECTIONS} connections in {accepted:.1?}, a quarter changed and cancelled: {total} \
         events, each once, {} keys, every order's in order, the last {:.1?} after the last answer",
        seen.len(),
        delivered - accepted,
    );
}

/// A keyspace whose name has upper-case letters, and one that is a word of CQL.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_need_quotes_are_quoted() {
    for keyspace in ["OrdersKS", "select"] {
        let mut world = World::with(Setup {
            tables: "outbox_messages",
            extra: "[orders]\nenabled = true\nlisten = \"127.0.0.1:0\"\n".to_owned(),
            ..Setup::default()
        })
        .await;
        world.set("source.keyspace", keyspace);
        let by_hand = |command: &str, flag: &str| {
            let mut done = Command::new(env!("CARGO_BIN_EXE_penstock"));
            done.args([command, "--config"]).arg(world.config());
            done.arg(format!("--set=source.keyspace={keyspace}"));
            done.args((!flag.is_empty()).then_some(flag));
            let done = done.output().expect("penstock starts");
            let said = [done.stdout, done.stderr].concat();
            (
                done.status.success(),
                String::from_utf8_lossy(&said).into_owned(),
            )
        };
        let (ready, said) = by_hand("validate", "--connect");
        assert!(!ready && said.contains("does not exist"), "{said}");
        let folded = said.contains("CQL makes a name that stands without double quotes lower-case");
        assert_eq!(folded, keyspace == "OrdersKS", "{said}");
        for _ in 0..2 {
            let (made, said) = by_hand("init-schema", "");
            assert!(made, "{said}");
        }
        let (ready, said) = by_hand("validate", "--connect");
        assert!(ready, "{said}");

        let running = world.start(1);
        let url = format!("http://{}/orders", running.orders());
        let made = send(&connection(), Method::POST, &url, Some(&order(1))).await;
        assert_eq!(made.status(), 201);
        let id = body(made).await["id"].as_str().expect("an id").to_owned();
        let one = format!("{url}/{id}");
        let read = send(&connection(), Method::GET, &one, None).await;
        assert_eq!(read.status(), 200);
        world.await_records(1, LONG, &running);
        running.stop_cleanly();
        assert_eq!(events(&world)[&id], [("order.created".to_owned(), 1)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_as_the_standards_say() {
    let world = World::with_orders("").await;
    let running = world.start(1);
    let url = format!("http://{}/orders", running.orders());
    let client = connection();

    // The same request under the same key is one order, however often and however many at once.
    let keyed = |n: u32| {
        let request = client.post(&url).header("idempotency-key", "key-1");
        async move { request.json(&order(n)).send().await.expect("an answer") }
    };
    let mut ids = std::collections::BTreeSet::new();
    for answer in futures::future::join_all((0..8).map(|_| keyed(1))).await {
        assert_eq!(answer.status(), 201);
        ids.insert(body(answer).await["id"].as_str().expect("an id").to_owned());
    }
    assert_eq!(ids.len(), 1, "{ids:?}");
    let id = ids.pop_first().expect("one");
    let reused = keyed(2).await;
    assert_eq!(reused.status(), 422);
    assert_eq!(body(reused).await["title"], "Idempotency-Key reused");

    // Everything that is wrong, at once, by RFC 9457.
    let wrong = json!({"customer_id": "", "currency": "euro", "items": [{"sku": "", "quantity": 0, "unit_price_minor": -1}]});
    let refused = send(&client, Method::POST, &url, Some(&wrong)).await;
    assert_eq!(refused.status(), 422);
    assert_eq!(
        refused.headers()["content-type"],
        "application/problem+json"
    );
    let problem = body(refused).await;
    assert_eq!(problem["type"], "about:blank");
    assert_eq!(problem["status"], 422);
    let pointers: Vec<_> = problem["errors"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|e| e["pointer"].as_str().expect("a pointer"))
        .collect();
    let expected = [
        "/customer_id",
        "/currency",
        "/items/0/sku",
        "/items/0/quantity",
        "/items/0/unit_price_minor",
    ];
    assert_eq!(pointers, expected);
    let one = format!("{url}/{id}");
    for (method, url, sent, status) in [
        (Method::POST, url.clone(), Some(json!({"nonsense": 1})), 400),
        // serde's other form of a struct is none here.
        (
            Method::POST,
            url.clone(),
            Some(json!(["c-1", "EUR", [["bolt", 1, 250]]])),
            400,
        ),
        (Method::GET, format!("{url}/no-uuid"), None, 400),
        (
            Method::GET,
            format!("{url}/{}", uuid::Uuid::new_v4()),
            None,
            404,
        ),
        (
            Method::PATCH,
            one.clone(),
            Some(json!({"status": "cancelled"})),
            422,
        ),
        (Method::GET, format!("{url}s"), None, 404),
        (Method::GET, one.clone(), None, 200),
        (Method::DELETE, one.clone(), None, 200),
        // Once more makes no event.
        (Method::DELETE, one.clone(), None, 200),
        (
            Method::PATCH,
            one.clone(),
            Some(json!({"status": "shipped"})),
            409,
        ),
    ] {
        let answer = send(&client, method.clone(), &url, sent.as_ref()).await;
        assert_eq!(answer.status(), status, "{method} {url}");
        if status >= 400 {
            let kind = answer.headers()["content-type"].clone();
            assert_eq!(kind, "application/problem+json", "{method} {url}");
            assert_eq!(body(answer).await["status"], status, "{method} {url}");
        }
    }
    world.await_records(2, LONG, &running);
    running.stop_cleanly();
    let events = events(&world);
    let expected = [("order.created", 1), ("order.cancelled", 2)];
    let expected = expected.map(|(kind, version)| (kind.to_owned(), version));
    assert_eq!(events, BTreeMap::from([(id, expected.to_vec())]));
}

/// The service's breaker is on ScyllaDB: open, it refuses at once and says when to come again.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_fails_opens_the_breaker_and_nothing_else() {
    let world = World::with_orders(
        "request_timeout = \"10s\"\n[orders.breaker]\nopen_for = \"600s\"\n[orders.retry]\nmax_attempts = 1\n",
    )
    .await;
    let running = world.start(1);
    let url = format!("http://{}/orders", running.orders());
    let client = connection();
    let fault = Fault::new(Action::Overloaded).on(Operation::Batch);
    let fault = world.node.faults().inject(fault);
    for _ in 0..5 {
        let failed = send(&client, Method::POST, &url, Some(&order(1))).await;
        assert_eq!(failed.status(), 503);
        assert_eq!(body(failed).await["title"], "Database unavailable");
    }
    let refused = send(&client, Method::POST, &url, Some(&order(1))).await;
    assert_eq!(refused.status(), 503);
    let after: u64 = refused.headers()["retry-after"]
        .to_str()
        .ok()
        .and_then(|s| s.parse().ok())
        .expect("seconds");
    assert!((500..=600).contains(&after), "{after}");
    let problem = body(refused).await;
    assert_eq!(problem["title"], "Circuit breaker open");
    let detail = problem["detail"].as_str().expect("text");
    assert!(
        detail.starts_with("Circuit breaker open: stage=orders since="),
        "{detail}"
    );
    let metrics = running.metrics().await;
    assert_eq!(metrics.stage("penstock_breaker_state", "orders"), 2.0);
    assert_eq!(metrics.stage("penstock_breaker_state", "sink"), 0.0);
    world.node.faults().clear(fault);
    let (code, said) = running.penstock(&["breaker", "reset", "orders"]);
    assert_eq!((code, said.trim()), (Some(0), "orders: breaker closed"));
    let made = send(&client, Method::POST, &url, Some(&order(1))).await;
    assert_eq!(made.status(), 201);
    world.await_records(1, LONG, &running);
    running.stop_cleanly();
}

/// A crash of the stage closes its connections and no one else's work; the socket stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_crashes_restarts_alone_and_given_up_on_takes_no_orders() {
    let world = World::with_orders(
        // A busy machine takes a second for a moment's work, and that is no hang.
        "[health]\ncheck_interval = \"100ms\"\nstalled_after = \"4s\"\n\
         [policies.supervision]\nbackoff = \"20ms\"\nmax_restarts = 3\n",
    )
    .await;
    let faults =
        "1*off->1*panic(a bug)->1*return(a full disk)->1*return(hang)->1*off->panic(a bug)";
    let running = world.start_faulty(1, &format!("stage::orders={faults}"));
    let url = format!("http://{}/orders", running.orders());
    let kept = connection();
    let attempt = async |client: &Client| {
        let request = client.post(&url).json(&order(1)).timeout(LONG / 2);
        request
            .send()
            .await
            .is_ok_and(|answer| answer.status() == 201)
    };
    assert!(attempt(&kept).await);
    // Each new connection meets a fault; once they are used up, one gets through.
    let mut refused = 0;
    while !attempt(&connection()).await {
        refused += 1;
        assert!(refused < 10, "{}", running.text());
    }
    assert_eq!(refused, 3, "{}", running.text());
    for fault in [
        "panicked: a bug",
        "fault point: a full disk",
        "hung: at one",
    ] {
        assert!(
            running.text().contains(fault),
            "{fault}\n{}",
            running.text()
        );
    }
    let metrics = running.metrics().await;
    assert_eq!(metrics.stage("penstock_restarts_total", "orders"), 3.0);
    assert_eq!(metrics.sum("penstock_restarts_total", &[]), 3.0);
    // The fourth crash within the window is the last; a connection from before it does not outlive it.
    let last = connection();
    assert!(!attempt(&last).await);
    running.await_line("stage failed: too many restarts stage=orders", LONG);
    assert!(!attempt(&kept).await, "given up on, it takes no orders");
    let (code, health) = running.penstock(&["health"]);
    assert_eq!(code, Some(0), "orders are not critical: {health}");
    assert!(health.contains("failed: panicked: a bug"), "{health}");
    world.await_records(2, LONG, &running);
    running.stop_cleanly();
}

/// Row 6: a write that timed out and was applied is not written again under another event id, by whoever tries again.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_timed_out_and_was_applied_is_one_event() {
    let world = World::with_orders("request_timeout = \"4s\"\n").await;
    let running = world.start(1);
    let url = format!("http://{}/orders", running.orders());
    let client = connection();
    let batch = |action| {
        let fault = Fault::new(action).on(Operation::Batch).times(1);
        world.node.faults().inject(fault)
    };
    // Tried again by the service itself.
    batch(Action::WriteTimeout);
    let made = send(&client, Method::POST, &url, Some(&order(1))).await;
    assert_eq!(made.status(), 201);
    let first = body(made).await["id"].as_str().expect("an id").to_owned();
    let one = format!("{url}/{first}");
    batch(Action::WriteTimeout);
    let confirm = json!({"status": "confirmed"});
    let changed = send(&client, Method::PATCH, &one, Some(&confirm)).await;
    assert_eq!(changed.status(), 200);
    batch(Action::BreakConnection);
    assert_eq!(
        send(&client, Method::DELETE, &one, None).await.status(),
        200
    );
    // Tried again by the client, which was told nothing.
    let keyed = async || {
        let request = client.post(&url).header("idempotency-key", "key");
        request.json(&order(2)).send().await.expect("an answer")
    };
    batch(Action::Silence);
    assert_eq!(keyed().await.status(), 504);
    let made = keyed().await;
    assert_eq!(made.status(), 201);
    let second = body(made).await["id"].as_str().expect("an id").to_owned();
    world.await_records(4, LONG, &running);
    running.stop_cleanly();
    let expected = |kinds: &[(&str, i64)]| {
        let kinds = kinds
            .iter()
            .map(|(kind, version)| (kind.to_string(), *version));
        kinds.collect::<Vec<_>>()
    };
    let all = [
        ("order.created", 1),
        ("order.updated", 2),
        ("order.cancelled", 3),
    ];
    let expected = BTreeMap::from([(first, expected(&all)), (second, expected(&all[..1]))]);
    assert_eq!(events(&world), expected);
    println!("four writes that were applied and not acknowledged: four events");
}

/// Row 11: an idempotency key is kept beside the order, for as long as is set.
#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_outlives_a_restart_and_ends_when_it_is_told_to() {
    let world = World::with_orders("idempotency_ttl = \"1h\"\n").await;
    // As a version made it that kept no event beside the key.
    for cql in [
        "DROP TABLE ks.order_requests",
        "CREATE TABLE ks.order_requests (idempotency_key text PRIMARY KEY, order_id uuid, request_hash blob, \
         created_at timestamp) WITH default_time_to_live = 86400",
    ] {
        world.session.query_unpaged(cql, ()).await.expect(cql);
    }
    let mut refused = world.start(0);
    assert_eq!(refused.wait(LONG).code(), Some(1));
    let told = refused.text();
    assert!(
        told.contains("event_id") && told.contains("`penstock init-schema`"),
        "{told}"
    );
    for _ in 0..2 {
        world.init_schema();
    }

    let client = connection();
    let keyed = async |running: &process::Running, n: u32| {
        let url = format!("http://{}/orders", running.orders());
        let request = client.post(url).header("idempotency-key", "key");
        let answer = request.json(&order(n)).send().await.expect("an answer");
        (answer.status().as_u16(), body(answer).await["id"].clone())
    };
    let running = world.start(1);
    let first = keyed(&running, 1).await;
    assert_eq!(first.0, 201);
    let cql = "SELECT TTL(order_id) FROM ks.order_requests WHERE idempotency_key = 'key'";
    let rows = world.session.query_unpaged(cql, ()).await.expect(cql);
    let rows = rows.into_rows_result().expect("rows");
    let (ttl,) = rows.single_row::<(i32,)>().expect("a row");
    assert!((3_500..=3_600).contains(&ttl), "{ttl}");
    running.stop_cleanly();
    let running = world.start(2);
    assert_eq!(keyed(&running, 1).await, first, "forgotten by the restart");
    assert_eq!(keyed(&running, 2).await.0, 422);

    // From now on it is kept for a second.
    let text = std::fs::read_to_string(world.config()).expect("pipeline.toml");
    world.save(&text.replace("idempotency_ttl = \"1h\"", "idempotency_ttl = \"1s\""));
    running.await_line("configuration applied", LONG);
    world
        .session
        .query_unpaged("TRUNCATE ks.order_requests", ())
        .await
        .expect("truncated");
    let second = keyed(&running, 1).await;
    assert_eq!(second.0, 201);
    assert_ne!(second.1, first.1);
    let deadline = Instant::now() + LONG;
    let third = loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let again = keyed(&running, 1).await;
        if again.1 != second.1 {
            break again;
        }
        assert!(Instant::now() < deadline, "kept for ever");
    };
    assert_eq!(third.0, 201);
    world.await_records(3, LONG, &running);
    running.stop_cleanly();
    assert_eq!(events(&world).len(), 3);
}

/// Row 14: nobody orders anything, and yet it is found out that ScyllaDB is well again.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_breaker_closes_without_traffic() {
    let world = World::with_orders(
        "request_timeout = \"5s\"\n[orders.breaker]\nopen_for = \"300ms\"\n[orders.retry]\nmax_attempts = 1\n\
         [health]\ncheck_interval = \"100ms\"\n",
    )
    .await;
    let running = world.start(1);
    let url = format!("http://{}/orders", running.orders());
    let client = connection();
    let fault = Fault::new(Action::Overloaded).on(Operation::Batch);
    let fault = world.node.faults().inject(fault);
    for _ in 0..5 {
        let failed = send(&client, Method::POST, &url, Some(&order(1))).await;
        assert_eq!(failed.status(), 503);
    }
    let state = |m: &process::Metrics| m.stage("penstock_breaker_state", "orders");
    // Asked while it is not well, it opens again.
    running
        .await_metrics("a probe that fails", LONG, |m| {
            m.stage("penstock_breaker_opened_total", "orders") > 1.0
        })
        .await;
    world.node.faults().clear(fault);
    running
        .await_metrics("closed by probes of its own", LONG, |m| state(m) == 0.0)
        .await;
    // A busy machine may not have looked while it was half-open.
    let said = "health changed component=\"orders\" from=degraded(breaker ";
    running.await_line(said, LONG);
    running
        .await_metrics("health says so", LONG, |m| {
            m.sum("penstock_health", &["component=\"orders\""]) == 0.0
        })
        .await;
    let made = send(&client, Method::POST, &url, Some(&order(1))).await;
    assert_eq!(made.status(), 201);
    world.await_records(1, LONG, &running);
    running.stop_cleanly();
    assert_eq!(world.records().len(), 1, "a probe is no order");
}

/// Orders go where the source reads: a place without nodes is told of, and there is no failover to another.
#[tokio::test(flavor = "multi_thread")]
async fn they_are_written_where_the_source_reads() {
    let world = World::with_orders("").await;
    let made = |datacenter: &str, rack: &str| {
        let made = Command::new(env!("CARGO_BIN_EXE_penstock"))
            .args(["init-schema", "--config"])
            .arg(world.config())
            .args(["--set", &format!("source.datacenter={datacenter}")])
            .args(["--set", &format!("source.rack={rack}")])
            .output()
            .expect("penstock starts");
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        (made.status.success(), said)
    };
    let (well, said) = made("datacenter1", "rack1");
    assert!(well, "{said}");
    let (well, said) = made("datacenter1", "rack2");
    let reason = "no node of ScyllaDB's is in datacenter1 (rack2) for the orders, there are datacenter1 (rack1); check \
                  source.datacenter and source.rack";
    assert!(!well && said.contains(reason), "{said}");
}
