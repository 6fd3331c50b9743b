//! Traces by the real program: from an order's HTTP request to the record, as a collector gets them.

#[path = "traces/collector.rs"]
mod collector;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use collector::{Collector, Told};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span, SpanBuilder, SpanKind, Tracer, TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use scylla::value::CqlTimeuuid;
use serde_json::{Value, json};
use testkit::broker::read_all;
use testkit::process::{LONG, Running, World};
use uuid::Uuid;

async fn world(tracing: &str, log: &str) -> World {
    World::with_orders(&format!("[log]\n{log}\n[tracing]\n{tracing}")).await
}

/// Sends an order that comes with this trace context: its id.
async fn order(running: &Running, traceparent: Option<&str>) -> String {
    let order = json!({
        "customer_id": "c-1", "currency": "EUR",
        "items": [{"sku": "bolt", "quantity": 1, "unit_price_minor": 250}],
    });
    let url = format!("http://{}/orders", running.orders());
    let mut request = reqwest::Client::new().post(url).json(&order);
    if let Some(context) = traceparent {
        request = request.header("traceparent", context);
    }
    let answer = request.send().await.expect("an answer");
    assert_eq!(answer.status(), 201);
    let order: Value = answer.json().await.expect("JSON");
    order["id"].as_str().expect("an id").to_owned()
}

/// A context of a client's: its trace, and its `traceparent`.
fn context(sampled: &str) -> (String, String) {
    let trace = Uuid::new_v4().simple().to_string();
    let context = format!("00-{trace}-00f067aa0ba902b7-{sampled}");
    (trace, context)
}

/// The `traceparent` of the record of this order.
async fn header(world: &World, running: &Running, order: &str) -> String {
    let deadline = std::time::Instant::now() + LONG;
    loop {
        let records = world.records();
        if let Some(record) = records.iter().find(|r| r.key_text() == order) {
            return record.header("traceparent").expect("a header").to_owned();
        }
        assert!(
            std::time::Instant::now() < deadline,
            "no record of {order}\n{}",
            running.text()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One line a span, below its parent: when it began, how long it was, its name, who and whose child it is.
fn print(spans: &[Told]) {
    println!("trace {}", spans[0].trace);
    let begin = spans.iter().map(|s| s.start).min().unwrap_or_default();
    let depths: BTreeMap<&str, &str> = spans.iter().map(|s| (&*s.id, &*s.parent)).collect();
    for span in spans {
        let mut depth = 0;
        let mut at = &*span.parent;
        while let Some(parent) = depths.get(at) {
            (depth, at) = (depth + 1, parent);
        }
        let ms = |ns: u64| ns as f64 / 1e6;
        println!(
            "{:>9.1} ms {:>8.1} ms  {}{} ({})  {} of {}  {:?} {:?}",
            ms(span.start - begin),
            ms(span.end - span.start),
            "  ".repeat(depth),
            span.name,
            span.service,
            span.id,
            span.parent,
            span.attributes,
            span.events,
        );
    }
}

/// What a reader of the record does, by the SDK of OpenTelemetry: its span is a child of what the header says.
fn consume(collector: &Collector, header: &str) {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("http://{}/v1/traces", collector.address))
        .build()
        .expect("an exporter");
    let provider = SdkTracerProvider::builder()
        .with_resource(Resource::builder().with_service_name("reader").build())
        .with_simple_exporter(exporter)
        .build();
    let headers = HashMap::from([("traceparent".to_owned(), header.to_owned())]);
    let parent = TraceContextPropagator::new().extract(&headers);
    let tracer = provider.tracer("reader");
    let span = SpanBuilder::from_name("process order").with_kind(SpanKind::Consumer);
    // Its end hands it to the exporter, which wants the runtime.
    tokio::task::block_in_place(|| tracer.build_with_context(span, &parent).end());
}

/// An order's trace: each span is the child of the one before it on the way, and the record's header, which is returned, is
/// the last.
async fn is_whole(
    world: &World,
    running: &Running,
    collector: &Collector,
    service: &str,
) -> String {
    let (trace, context) = context("01");
    let id = order(running, Some(&context)).await;
    let carried = header(world, running, &id).await;
    let spans = collector.trace(&trace, 6).await;
    print(&spans);
    let one = |name: &str| {
        let named: Vec<&Told> = spans.iter().filter(|s| s.name == name).collect();
        let [span] = named[..] else {
            panic!("not one {name}: {spans:#?}")
        };
        assert_eq!(span.service, service);
        assert_eq!(span.error, None);
        assert!(span.start <= span.end);
        span.clone()
    };
    let request = one("POST /orders");
    assert_eq!(request.parent, "00f067aa0ba902b7");
    assert_eq!(request.attributes["http.response.status_code"], "201");
    let write = one("write order");
    assert_eq!(write.parent, request.id);
    let change = one("change ks.outbox_messages");
    assert_eq!(
        change.parent, write.id,
        "the row carries the span of its write"
    );
    assert_eq!(change.attributes["penstock.operation"], "insert");
    for name in ["source", "transform.outbox-router", "sink"] {
        assert_eq!(one(name).parent, change.id, "{name}");
    }
    let sink = one("sink");
    assert_eq!(sink.attributes["messaging.destination.name"], world.topic());
    assert_eq!(sink.events, ["acknowledged"]);
    println!("the record's header: traceparent: {carried}");
    let parts: Vec<&str> = carried.split('-').collect();
    assert_eq!(parts, ["00", &trace, &sink.id, "01"]);
    carried
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orders_trace_goes_from_its_request_to_the_record_over_http_and_over_grpc() {
    let (http, grpc) = (Collector::http().await, Collector::grpc().await);
    let secret = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(secret.path(), "x-tenant = blue\n").expect("written");
    let tracing = format!(
        "endpoint = \"http://{}\"\nsampling = 1.0\nsecret_headers_file = \"{}\"\n",
        http.address,
        secret.path().display()
    );
    let world = world(&tracing, "").await;
    let running = world.start_with(1, &[("PENSTOCK_TRACING__TOKEN", "hunter2")]);
    running.await_line("all supervised stages started", LONG);
    let metrics = running.metrics().await;
    let carried = is_whole(&world, &running, &http, &world.name).await;
    assert_eq!(http.headers()["authorization"], "Bearer hunter2");
    assert_eq!(http.headers()["x-tenant"], "blue");
    // The histogram leads to it.
    let metrics_url = format!("http://{}/metrics", running.admin());
    let scrape = reqwest::Client::new().get(metrics_url);
    let scrape = scrape.header("accept", "application/openmetrics-text");
    let text = scrape.send().await.expect("an answer").text().await;
    let text = text.expect("text");
    let trace = &http.spans()[0].trace;
    let exemplar = format!("# {{trace_id=\"{trace}\"}}");
    let shown = |line: &str| line.starts_with("penstock_change_latency_seconds_bucket{");
    assert!(
        text.lines().any(|l| shown(l) && l.contains(&exemplar)),
        "{text}"
    );
    drop(metrics);
    // Whoever reads the record goes on with the trace.
    consume(&http, &carried);
    let whole = http.trace(trace, 7).await;
    print(&whole);
    let of = |name: &str| whole.iter().find(|s| s.name == name).expect("a span");
    assert_eq!(of("process order").service, "reader");
    assert_eq!(of("process order").parent, of("sink").id);

    // Another collector, another protocol: nothing is drained for it.
    let text = std::fs::read_to_string(world.config()).expect("pipeline.toml");
    let to_grpc = text.replace(
        &format!("endpoint = \"http://{}\"", http.address),
        &format!(
            "protocol = \"grpc\"\nendpoint = \"http://{}\"",
            grpc.address
        ),
    );
    world.save(&to_grpc);
    running.await_line("configuration applied", LONG);
    is_whole(&world, &running, &grpc, &world.name).await;
    assert_eq!(grpc.headers()["x-tenant"], "blue");

    // Who does not record its trace does not have it recorded here; and it is carried on as that.
    let (untraced, context) = context("00");
    let id = order(&running, Some(&context)).await;
    let carried = header(&world, &running, &id).await;
    assert!(carried.starts_with(&format!("00-{untraced}-")) && carried.ends_with("-00"));
    // Without a context one is begun, for the share that is asked for: all.
    let id = order(&running, None).await;
    let carried = header(&world, &running, &id).await;
    let begun = carried.split('-').nth(1).expect("a trace").to_owned();
    assert!(carried.ends_with("-01"), "{carried}");
    grpc.trace(&begun, 6).await;
    world.save(&to_grpc.replace("sampling = 1.0", "sampling = 0.0"));
    running
        .await_metrics("sampling is live", LONG, |m| {
            m.sum("penstock_config_reloads_total", &["applied"]) == 2.0
        })
        .await;
    let id = order(&running, None).await;
    assert!(header(&world, &running, &id).await.ends_with("-00"));
    // What is left is sent before the end.
    let (last, context) = self::context("01");
    let id = order(&running, Some(&context)).await;
    header(&world, &running, &id).await;
    running.stop_cleanly();
    grpc.trace(&last, 6).await;
    assert!(grpc.spans().iter().all(|s| s.trace != untraced));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_holds_nobody_up_and_the_log_carries_the_traces() {
    let collector = Collector::http().await;
    collector.refuse(true);
    let tracing = format!(
        "endpoint = \"http://{}/v1/traces\"\nsampling = 1.0\n",
        collector.address
    );
    let world = world(&tracing, "format = \"json\"").await;
    let running = world.start(1);
    running.await_line("all supervised stages started", LONG);
    let (trace, context) = context("01");
    let id = order(&running, Some(&context)).await;
    header(&world, &running, &id).await;
    running.await_line("traces cannot be sent", LONG);

    // A change that can never succeed: its letter goes on with its trace, and so does what the log says of it.
    let (bad, row) = self::context("01");
    let cql = "INSERT INTO ks.outbox_messages (aggregate_id, event_id, aggregate_type, event_type, payload, traceparent) \
               VALUES (?, ?, 'no topic', 'x', '{}', ?)";
    let event = CqlTimeuuid::from(Uuid::now_v1(&[1; 6]));
    let values = (Uuid::new_v4(), event, row.as_str());
    world
        .session
        .query_unpaged(cql, values)
        .await
        .expect("written");
    running.await_line("change dead-lettered", LONG);
    let log = running.text();
    let line = log.lines().find(|l| l.contains("change dead-lettered"));
    let line: Value = serde_json::from_str(line.expect("a line")).expect("JSON");
    assert_eq!(line["fields"]["trace_id"], bad.as_str());
    let letters = read_all(
        &world.cluster.brokers,
        &format!("{}.dead-letters", world.name),
    );
    let carried = letters[0].header("traceparent").expect("a header");
    assert!(carried.starts_with(&format!("00-{bad}-")), "{carried}");

    // It is tried again, and nothing was lost meanwhile.
    collector.refuse(false);
    collector.trace(&trace, 6).await;
    let spans = collector.trace(&bad, 3).await;
    let failed: Vec<&Told> = spans.iter().filter(|s| s.error.is_some()).collect();
    assert!(
        failed[0].name == "change ks.outbox_messages"
            && failed[0]
                .error
                .as_ref()
                .is_some_and(|e| e.starts_with("dead letter of ")),
        "{failed:?}"
    );
    let once = running.count("traces cannot be sent");
    running.await_line("traces are taken again", LONG);
    assert_eq!(once, 1, "{}", running.text());

    // Gone for good: a stop does not wait for it for long, and is clean.
    collector.refuse(true);
    let (_, context) = self::context("01");
    let id = order(&running, Some(&context)).await;
    header(&world, &running, &id).await;
    let said = running.stop_cleanly();
    assert!(
        said.contains("traces could not be sent before the end"),
        "{said}"
    );
}
