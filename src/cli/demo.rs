//! `penstock demo`: the pipeline, orders at a chosen rate, and what arrives in Redpanda.
//!
//! Everything goes the real way: orders by HTTP to the order service, from there to ScyllaDB, through CDC and
//! the transform to Redpanda, from where they are read back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Value, json};

use super::ConfigArgs;
use super::output::Output;
use super::run::start;
use super::terminal::Terminal;
use crate::coordinator::child::{Demo, Stage};
use crate::coordinator::handle::Handle;
use crate::coordinator::supervisor::{ChildScope, ChildSpec};
use crate::sink::redpanda::tail::Seen;

/// `penstock demo`
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Orders a second (created, updated and cancelled ones together)
    #[arg(long, default_value_t = 5.0, value_parser = rate)]
    pub rate: f64,
    /// Stop by itself after this long, e.g. 30s
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub stop_after: Option<Duration>,
    /// With JSON what arrives is printed as an object a record, all of them, and the log has an object a line.
    #[command(flatten)]
    pub output: Output,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.1..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("0.1 to 100000 would do".to_owned()),
    }
}

/// Records a second that are shown one by one; more would scroll away unread.
const SHOWN_PER_SECOND: u64 = 10;
/// One request may take no longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// What is ordered.
const SKUS: [&str; 4] = ["bolt", "nut", "washer", "bracket"];
/// Orders that the feeder remembers to update and cancel.
const REMEMBERED: usize = 1_000;

/// Runs the demo; the exit code says how it ended.
pub fn run(config: &ConfigArgs, args: DemoArgs) -> u8 {
    let began = Instant::now();
    let mut inputs = config.inputs();
    inputs.set.push("orders.enabled=true".to_owned());
    let json = args.output.is_json();
    start(
        inputs,
        args.output,
        Box::new(move |handle, terminal| {
            let shown = Shown {
                terminal: terminal.clone(),
                began,
                json,
            };
            let mut children = vec![tail(handle.clone(), shown), feed(handle.clone(), args.rate)];
            children.push(terminal.picture(handle.clone()));
            if let Some(after) = args.stop_after {
                children.push(stop_after(handle.clone(), after));
            }
            children
        }),
    )
}

fn stop_after(handle: Handle, after: Duration) -> ChildSpec {
    ChildSpec::new(Stage::Demo(Demo::Clock), move |scope: ChildScope| {
        let handle = handle.clone();
        async move {
            tokio::select! {
                () = tokio::time::sleep(after) => handle.stop().await?,
                () = scope.drain.cancelled() => {}
            }
            Ok(())
        }
    })
}

/// Writes orders: mostly new ones, some changes, a few cancellations. Part of the step that stops orders.
fn feed(handle: Handle, per_second: f64) -> ChildSpec {
    let sent = Arc::new(AtomicU64::new(0));
    ChildSpec::new(Stage::Demo(Demo::Feed), move |scope: ChildScope| {
        let (handle, sent) = (handle.clone(), sent.clone());
        async move {
            let Some(orders) = handle.orders() else {
                anyhow::bail!("the order service is off")
            };
            let url = format!("http://{}/orders", orders.address);
            let client = reqwest::Client::builder()
                .timeout(REQUEST_TIMEOUT)
                .build()?;
            let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / per_second));
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
            let mut known: Vec<String> = Vec::new();
            loop {
                let next = async {
                    ticks.tick().await;
                    order(&client, &url, sent.fetch_add(1, Relaxed), &mut known).await
                };
                // An order that is cut off by the stop is either in ScyllaDB as a whole or not at all.
                let taken = tokio::select! {
                    () = scope.drain.cancelled() => return Ok(()),
                    taken = next => taken,
                };
                if let Err(error) = taken {
                    tracing::warn!(error = %format!("{error:#}"), "an order was not taken");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                scope.activity.record(1);
            }
        }
    })
}

async fn order(
    client: &reqwest::Client,
    url: &str,
    n: u64,
    known: &mut Vec<String>,
) -> anyhow::Result<()> {
    let pick = (!known.is_empty()).then(|| rand::random_range(0..known.len()));
    let answer = match (n % 10, pick) {
        (3 | 6, Some(at)) => {
            let status = ["confirmed", "shipped"][usize::from(n % 10 == 6)];
            client
                .patch(format!("{url}/{}", known[at]))
                .json(&json!({ "status": status }))
                .send()
                .await?
        }
        (9, Some(at)) => {
            client
                .delete(format!("{url}/{}", known.swap_remove(at)))
                .send()
                .await?
        }
        _ => {
            let item = json!({
                "sku": SKUS[rand::random_range(0..SKUS.len())],
                "quantity": rand::random_range(1..=9),
                "unit_price_minor": rand::random_range(5..=9_999),
            });
            let order = json!({ "customer_id": format!("customer-{}", n % 97), "currency": "EUR", "items": [item] });
            let answer = client
                .post(url)
                .header(
                    "idempotency-key",
                    format!("demo-{}-{n}", std::process::id()),
                )
                .json(&order)
                .send()
                .await?;
            if answer.status().is_success() {
                let body: Value = answer.json().await?;
                if known.len() == REMEMBERED {
                    known.swap_remove(0);
                }
                known.extend(body["id"].as_str().map(str::to_owned));
                return Ok(());
            }
            answer
        }
    };
    let status = answer.status();
    anyhow::ensure!(status.is_success(), "{status}: {}", answer.text().await?);
    Ok(())
}

/// Where, and how, what arrives is shown.
#[derive(Clone)]
struct Shown {
    terminal: Terminal,
    /// When the process did.
    began: Instant,
    json: bool,
}

/// Reads back what arrives, on a thread that may block.
fn tail(handle: Handle, shown: Shown) -> ChildSpec {
    ChildSpec::new(Stage::Demo(Demo::Tail), move |scope: ChildScope| {
        let (handle, shown) = (handle.clone(), shown.clone());
        async move {
            let Some(pipeline) = handle.pipeline() else {
                anyhow::bail!("the pipeline is not there")
            };
            let tail = pipeline.sink.tail()?;
            let follow = tokio::task::spawn_blocking(move || follow(tail, &shown, &scope));
            follow.await?
        }
    })
}

fn follow(
    mut tail: crate::sink::redpanda::tail::Tail,
    to: &Shown,
    scope: &ChildScope,
) -> anyhow::Result<()> {
    let terminal = &to.terminal;
    let mut seen = 0_u64;
    let (mut second, mut shown, mut hidden) = (Instant::now(), 0, 0);
    while !scope.drain.is_cancelled() {
        let record = tail.next(Duration::from_millis(50))?;
        if second.elapsed() >= Duration::from_secs(1) {
            if hidden > 0 {
                terminal.line(&format!("           … and {hidden} more"));
            }
            (second, shown, hidden) = (Instant::now(), 0, 0);
        }
        let Some(record) = record else { continue };
        seen += 1;
        scope.activity.record(1);
        if to.json {
            say!("{}", as_json(&record));
            continue;
        }
        if seen == 1 {
            terminal.line(&format!(
                "first record {:.2} s after the start",
                to.began.elapsed().as_secs_f64()
            ));
        }
        if shown < SHOWN_PER_SECOND {
            shown += 1;
            terminal.line(&describe(&record));
        } else {
            hidden += 1;
        }
    }
    Ok(())
}

fn as_json(record: &Seen) -> Value {
    let headers: Vec<_> = record
        .headers
        .iter()
        .map(|(k, v)| json!({ "key": k, "value": v }))
        .collect();
    let text = record.value.as_deref();
    // A value that is no JSON is a text.
    let value = text.map(|text| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)));
    json!({
        "topic": record.topic, "partition": record.partition, "offset": record.offset, "key": record.key,
        "value": value, "headers": headers,
    })
}

fn describe(record: &Seen) -> String {
    let value: Value = record
        .value
        .as_deref()
        .and_then(|v| serde_json::from_str(v).ok())
        .unwrap_or_default();
    let order = &value["order"];
    let what = match (value["event_type"].as_str(), order["total_minor"].as_i64()) {
        (Some(event), Some(total)) => format!(
            "{event:<15} {:>9}.{:02} {} v{}",
            total / 100,
            total % 100,
            order["currency"].as_str().unwrap_or("?"),
            order["version"],
        ),
        _ => record
            .value
            .as_deref()
            .unwrap_or("(tombstone)")
            .chars()
            .take(80)
            .collect(),
    };
    let age = value["occurred_at_ms"]
        .as_u64()
        .map_or_else(String::new, |at| {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_millis() as u64);
            format!(" {:>5} ms after the write", now.saturating_sub(at))
        });
    let key = record.key.as_deref().unwrap_or("(no key)");
    let place = format!("{}[{}]@{}", record.topic, record.partition, record.offset);
    format!("{place:<21} {key} {what}{age}")
}
