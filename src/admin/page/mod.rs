//! `GET /`: the pipeline as a page, out of the binary. Its files hold nothing secret and load nothing from elsewhere;
//! what it shows comes over `/events`, a server-sent event a second, and from the paths that programs ask too.
//!
//! It counts nothing: [`Picture`] is `/status` with the counters of queues, transforms and sink beside it.

pub mod session;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use serde::Serialize;

use super::status::Status;
use crate::coordinator::connection::problem;
use crate::coordinator::handle::{Handle, Phase};
use crate::coordinator::lane::{Lane, Work};
use crate::coordinator::trend::Point;
use crate::histogram::Reading;

/// Nothing from elsewhere, no script or style within the page, and in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// How often the page is told how things are.
const EVERY: Duration = Duration::from_secs(1);

/// Pages that are told at once; each holds a connection, of which there are 256 in all.
const MOST_PAGES: usize = 32;

/// One of the page's files, as the program was built with it.
#[derive(Clone, Copy)]
pub struct File {
    kind: &'static str,
    text: &'static str,
}

/// The page itself.
pub const PAGE: File = File {
    kind: "text/html; charset=utf-8",
    text: include_str!("page.html"),
};
/// How it looks.
pub const STYLE: File = File {
    kind: "text/css; charset=utf-8",
    text: include_str!("page.css"),
};
/// What moves in it.
pub const SCRIPT: File = File {
    kind: "text/javascript; charset=utf-8",
    text: include_str!("page.js"),
};
/// What stands in a browser's tab.
pub const ICON: File = File {
    kind: "image/svg+xml",
    text: include_str!("icon.svg"),
};
/// Asks for the token.
pub const LOGIN: File = File {
    kind: "text/html; charset=utf-8",
    text: include_str!("login.html"),
};

impl File {
    /// … with something put in the place of `{{message}}`.
    pub fn saying(self, message: &str) -> Response {
        self.answer(self.text.replace("{{message}}", message))
    }

    fn answer(self, body: impl IntoResponse) -> Response {
        let head = |name: HeaderName, value: &'static str| (name, HeaderValue::from_static(value));
        let heads = [
            head(header::CONTENT_TYPE, self.kind),
            head(header::CONTENT_SECURITY_POLICY, POLICY),
            head(header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            head(header::REFERRER_POLICY, "no-referrer"),
            // Another version of the program has another page.
            head(header::CACHE_CONTROL, "no-cache"),
        ];
        (heads, body).into_response()
    }
}

impl IntoResponse for File {
    fn into_response(self) -> Response {
        self.answer(self.text)
    }
}

/// What the page draws, once a second.
#[derive(Debug, Serialize)]
struct Picture {
    /// Seconds since the Unix epoch.
    at: f64,
    status: Status,
    /// The last few seconds.
    rates: Point,
    /// How full the queue before the transforms and before the sink is, 0 to 1: of the fullest shard.
    queues: [f64; 2],
    transforms: BTreeMap<String, Transform>,
    sink: Sink,
    source: Source,
    reloads: Reloads,
}

/// What a transform has done so far.
#[derive(Debug, Serialize)]
struct Transform {
    items: u64,
    seconds: f64,
    faults: u64,
    rejected: u64,
    dropped: u64,
}

#[derive(Debug, Default, Serialize)]
struct Source {
    rows: u64,
    bytes: u64,
    late: u64,
    failed_reads: u64,
    catching_up: bool,
    tables: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
struct Sink {
    bytes: u64,
    queued: u64,
    oldest_seconds: Option<f64>,
    transactions: u64,
    dead_letters: u64,
}

/// By which the page sees that there is something new to ask for.
#[derive(Debug, Serialize)]
struct Reloads {
    seen: u64,
    complaint: Option<String>,
    hash: String,
}

impl Picture {
    fn of(handle: &Handle) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let pipeline = handle.pipeline();
        let lanes = pipeline.as_ref().map(|p| p.lanes()).unwrap_or_default();
        let capacity = Lane::queue_capacity() as f64;
        let mut queues = [0.0f64; 2];
        let mut works = BTreeMap::<Arc<str>, Work>::new();
        for lane in &lanes {
            let (transform, sink) = lane.queued();
            for (fullest, queued) in queues.iter_mut().zip([transform, sink]) {
                *fullest = fullest.max(queued as f64 / capacity);
            }
            for (stage, work) in lane.counters.works.read() {
                *works.entry(stage).or_default() += &work;
            }
        }
        let transforms = works.into_iter().map(|(stage, w)| {
            let done = Transform {
                items: w.items,
                seconds: w.elapsed.as_secs_f64(),
                faults: w.faults,
                rejected: w.rejected,
                dropped: w.dropped,
            };
            (stage.to_string(), done)
        });
        let dead_letters = lanes.iter().map(|l| l.counters.dead_letters.load(Relaxed));
        let sink = pipeline.as_ref().map(|p| p.sink_counts());
        let sink = sink.map_or_else(Sink::default, |s| Sink {
            bytes: s.bytes,
            queued: s.queued,
            oldest_seconds: s.oldest.map(|o| o.as_secs_f64()),
            transactions: s.committed,
            dead_letters: dead_letters.sum(),
        });
        let source = pipeline.as_ref().map(|p| p.source_status());
        let source = source.map_or_else(Source::default, |s| Source {
            rows: s.rows,
            bytes: s.bytes,
            late: s.late,
            failed_reads: s.failed_reads,
            catching_up: s.shards.iter().any(|s| s.catching_up),
            tables: s.tables.iter().map(|t| t.table.clone()).collect(),
        });
        let reloads = handle.reloads();
        Self {
            at: now.unwrap_or_default().as_secs_f64(),
            status: Status::of(handle),
            rates: handle.rates(),
            queues,
            transforms: transforms.collect(),
            sink,
            source,
            reloads: Reloads {
                seen: reloads.counts().iter().map(|(_, n)| n).sum(),
                complaint: reloads.complaint(),
                hash: reloads.hash(),
            },
        }
    }
}

/// A page that is being told; counted until it is dropped.
struct Told(Arc<AtomicUsize>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// How many pages are being told.
#[derive(Clone, Default)]
pub struct Audience(Arc<AtomicUsize>);

impl Audience {
    fn join(&self) -> Option<Told> {
        let told = Told(self.0.clone());
        (self.0.fetch_add(1, Relaxed) < MOST_PAGES).then_some(told)
    }
}

/// `GET /events`.
pub async fn events(State(handle): State<Handle>, audience: Audience) -> Response {
    match audience.join() {
        Some(told) => Sse::new(pictures(handle, told)).into_response(),
        None => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{MOST_PAGES} pages are open already"),
        ),
    }
}

/// A picture a second. One that drains ends after each, so that nobody waits for an answer that has no end: a browser
/// asks again.
fn pictures(handle: Handle, told: Told) -> impl Stream<Item = Result<Event, Infallible>> {
    let ticks = tokio::time::interval(EVERY);
    futures::stream::unfold(Some((handle, told, ticks)), async |state| {
        let (handle, told, mut ticks) = state?;
        ticks.tick().await;
        let event = Event::default()
            .retry(EVERY)
            .json_data(Picture::of(&handle));
        // What cannot be written as JSON is not there: every value is a number, a text or a list of them.
        let event = event.unwrap_or_default();
        let ends = matches!(handle.phase(), Phase::Draining | Phase::Stopped);
        Some((Ok(event), (!ends).then_some((handle, told, ticks))))
    })
}

/// What an event holds, now. Every value of it is a number, a text or a list of them, so it is never `null`.
pub fn shown(handle: &Handle) -> serde_json::Value {
    serde_json::to_value(Picture::of(handle)).unwrap_or_default()
}

/// What became of changes of the configuration, the newest last.
pub fn reloads(handle: &Handle) -> Vec<serde_json::Value> {
    let list = handle.reloads().list();
    list.iter()
        .filter_map(|revision| serde_json::to_value(revision).ok())
        .collect()
}

/// `GET /picture`: what an event holds, once.
pub async fn picture(State(handle): State<Handle>) -> Response {
    axum::Json(shown(&handle)).into_response()
}

/// `GET /trend`: the last hour, and what the changes of each table took from write to done since the start.
pub async fn trend(State(handle): State<Handle>) -> Response {
    let mut tables = BTreeMap::<String, Reading>::new();
    for lane in handle.pipeline().iter().flat_map(|p| p.lanes()) {
        for (table, reading) in lane.counters.latencies.read() {
            *tables.entry(table).or_default() += &reading;
        }
    }
    let tables: Vec<_> = tables
        .into_iter()
        .map(|(table, r)| {
            serde_json::json!({
                "table": table, "changes": r.count(), "p50": r.quantile(0.5), "p99": r.quantile(0.99),
            })
        })
        .collect();
    axum::Json(serde_json::json!({ "points": handle.trend(), "tables": tables })).into_response()
}
