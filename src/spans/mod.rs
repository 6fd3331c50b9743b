//! Traces: what became of a change, from an order's request to the record that a reader goes on from.
//!
//! Off, it costs a look at one flag a batch and a request. On, a change is traced if whoever wrote it says so (a W3C
//! context in a column, or in a header that a transform sets), and of those that come without a context a share. Only a
//! change that is traced has spans: all of them are made once it is done, from times that the batch carries.
//!
//! Spans wait in a bounded queue for the child that sends them ([`export`]). Nobody waits for it: what finds no room is
//! let go of, and counted.

mod context;
pub mod export;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use opentelemetry::trace::{
    Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use parking_lot::Mutex;
use penstock_plugin_encoding::ColumnTag;
use tokio::sync::Notify;
use twox_hash::XxHash3_128;

pub use context::Context;

use crate::change::{Batch, Position, RecordBatch, Traced};
use crate::config::settings::Tracing;

/// Header and column, as the standard calls it.
pub const TRACEPARENT: &str = "traceparent";
/// Spans that wait to be sent; about 1 KB each, so 8 MB while the collector is away.
const MOST_WAITING: usize = 8_192;
/// How many are sent at once, and wake who sends them.
const AT_ONCE: usize = 512;

/// What became of spans.
#[derive(Debug, Default)]
pub struct Counters {
    /// Sent and taken.
    pub exported: AtomicU64,
    /// Let go of because too many waited.
    pub dropped: AtomicU64,
    /// Let go of because the collector did not take them, however often it was tried.
    pub failed: AtomicU64,
}

/// What is traced, by the settings.
#[derive(Debug, Default)]
struct Rules {
    sampling: f64,
    column: String,
}

/// See the module. By default off.
#[derive(Debug, Default)]
pub struct Spans {
    on: AtomicBool,
    rules: ArcSwap<Rules>,
    waiting: Mutex<VecDeque<SpanData>>,
    more: Notify,
    /// What became of them.
    pub counters: Counters,
}

/// A span that is under way.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    /// Where it is: its own span.
    pub context: Context,
    parent: Option<u64>,
    began: SystemTime,
}

/// When a batch was handed to the brokers, and what came of it.
#[derive(Clone, Copy, Debug)]
pub struct Sent<'a> {
    /// When it was handed to the producer.
    pub handed: Instant,
    /// When the last of its records was acknowledged.
    pub acknowledged: Option<Instant>,
    /// Index of a record, and why the broker refused it for good.
    pub refused: &'a [(u32, String)],
    /// Why it has to be delivered again, if it has to.
    pub failed: Option<&'a str>,
}

fn new_span() -> u64 {
    rand::random::<u64>().max(1)
}

/// The trace of a change that comes without one: the same whoever asks, and however often. The XXH3 hash (128 bits, seed 0)
/// of the position's bytes: stream, time, big-endian sequence number. Records have it, so it must not change.
pub fn trace_of(position: &Position) -> u128 {
    let mut key = [0; 36];
    key[..16].copy_from_slice(&position.stream.0);
    key[16..32].copy_from_slice(position.time.as_bytes());
    key[32..].copy_from_slice(&position.seq.to_be_bytes());
    XxHash3_128::oneshot(&key).max(1)
}

impl Rules {
    /// Whether a trace that begins here is among the share that is recorded: by its lower half, as OpenTelemetry's
    /// `TraceIdRatioBased` has it, so that all who ask agree.
    fn takes(&self, trace: u128) -> bool {
        let share = (trace as u64 >> 1) as f64 / (1_u64 << 63) as f64;
        share < self.sampling
    }
}

impl Spans {
    /// Whether anything is traced.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    /// Goes by these settings from now on.
    pub(crate) fn retune(&self, tracing: &Tracing) {
        self.rules.store(Arc::new(Rules {
            sampling: tracing.sampling,
            column: tracing.column.clone(),
        }));
        self.on.store(tracing.endpoint.is_some(), Relaxed);
        if !self.is_on() {
            self.waiting.lock().clear();
        }
    }

    /// Begins the span of a request that came with this `traceparent`, or with none; `None` when off.
    pub fn begin(&self, traceparent: Option<&[u8]>) -> Option<Begun> {
        if !self.is_on() {
            return None;
        }
        let given = traceparent.and_then(Context::parse);
        let trace = given.map_or_else(|| rand::random::<u128>().max(1), |g| g.trace);
        let sampled = given.map_or_else(|| self.rules.load().takes(trace), |g| g.sampled);
        Some(Begun {
            context: Context {
                trace,
                span: new_span(),
                sampled,
            },
            parent: given.map(|g| g.span),
            began: SystemTime::now(),
        })
    }

    /// … and ends it now.
    pub fn end(
        &self,
        begun: &Begun,
        kind: SpanKind,
        name: impl Into<Cow<'static, str>>,
        attributes: Vec<KeyValue>,
        failed: Option<String>,
    ) {
        let Begun {
            context,
            parent,
            began,
        } = *begun;
        if context.sampled {
            let mut span = span(context.trace, context.span, parent, kind, name.into());
            (span.start_time, span.end_time) = (began, SystemTime::now());
            span.attributes = attributes;
            span.status = status(failed);
            self.queue([span]);
        }
    }

    /// Which changes of a batch are traced; those that a transform may yet give a context are not among them.
    pub fn choose(&self, batch: &Batch) -> Vec<Traced> {
        let rules = self.rules.load();
        let columns = batch.tables.iter().map(|table| {
            let named = table.columns.iter().position(|c| c.name == rules.column);
            (table.id, named)
        });
        let columns: Vec<(u32, Option<usize>)> = columns.collect();
        let mut chosen = Vec::new();
        let rows = batch.rows.iter().zip(&batch.positions).zip(0..);
        for ((row, position), source) in rows.filter(|((row, _), _)| row.is_change()) {
            let table = row.table();
            let column = columns.iter().find(|(id, _)| *id == table);
            let given = column
                .and_then(|(_, column)| row.column((*column)?))
                .filter(|(tag, _)| *tag == ColumnTag::Value)
                .and_then(|(_, text)| Context::parse(text));
            let trace = given.map_or_else(|| trace_of(position), |g| g.trace);
            if given.map_or_else(|| rules.takes(trace), |g| g.sampled) {
                chosen.push(traced(source, trace, given.map(|g| g.span)));
            }
        }
        chosen
    }

    /// Adds those that a transform gave a context.
    pub fn adopt(&self, batch: &mut RecordBatch) {
        let mut more = Vec::new();
        for record in &batch.records {
            let headers = record.headers.start as usize..record.headers.end as usize;
            let headers = batch.headers.get(headers).unwrap_or_default();
            let given = headers.iter().find_map(|(name, value)| {
                let ours = batch.bytes(*name)? == TRACEPARENT.as_bytes();
                ours.then(|| batch.bytes(*value)).flatten()
            });
            let Some(given) = given.and_then(Context::parse).filter(|g| g.sampled) else {
                continue;
            };
            let source = record.source;
            let known = |t: &Traced| t.source == source;
            if batch.traces.of(source).is_none() && !more.iter().any(known) {
                more.push(traced(source, given.trace, Some(given.span)));
            }
        }
        batch.traces.changes.extend(more);
        batch.traces.changes.sort_unstable_by_key(|t| t.source);
    }

    /// The traced changes of a batch are done, or have to be delivered again.
    pub fn sent(&self, batch: &RecordBatch, sent: &Sent<'_>) {
        let clock = Clock::now();
        for traced in &batch.traces.changes {
            if self.is_full() {
                let (lost, steps) = (3, batch.traces.steps.len());
                self.counters
                    .dropped
                    .fetch_add((lost + steps) as u64, Relaxed);
                continue;
            }
            self.queue(way(batch, traced, sent, &clock));
        }
    }

    fn is_full(&self) -> bool {
        self.waiting.lock().len() >= MOST_WAITING
    }

    fn queue(&self, spans: impl IntoIterator<Item = SpanData>) {
        let mut waiting = self.waiting.lock();
        for span in spans {
            if waiting.len() < MOST_WAITING {
                waiting.push_back(span);
            } else {
                self.counters.dropped.fetch_add(1, Relaxed);
            }
        }
        let due = waiting.len() >= AT_ONCE;
        drop(waiting);
        if due {
            self.more.notify_one();
        }
    }
}

fn traced(source: u32, trace: u128, parent: Option<u64>) -> Traced {
    Traced {
        source,
        trace,
        parent,
        span: new_span(),
        sent: new_span(),
    }
}

/// What the monotonic clock says, as time of day.
struct Clock(Instant, SystemTime);

impl Clock {
    fn now() -> Self {
        Self(Instant::now(), SystemTime::now())
    }

    fn at(&self, at: Instant) -> SystemTime {
        let before = self.0.saturating_duration_since(at);
        self.1.checked_sub(before).unwrap_or(UNIX_EPOCH)
    }
}

fn status(failed: Option<String>) -> Status {
    failed.map_or(Status::Unset, Status::error)
}

fn span(
    trace: u128,
    id: u64,
    parent: Option<u64>,
    kind: SpanKind,
    name: Cow<'static, str>,
) -> SpanData {
    let (trace, id) = (
        TraceId::from_bytes(trace.to_be_bytes()),
        SpanId::from_bytes(id.to_be_bytes()),
    );
    let sampled = TraceFlags::SAMPLED;
    SpanData {
        span_context: SpanContext::new(trace, id, sampled, false, TraceState::NONE),
        parent_span_id: SpanId::from_bytes(parent.unwrap_or_default().to_be_bytes()),
        // A server and a consumer are told by somebody else.
        parent_span_is_remote: parent.is_some()
            && matches!(kind, SpanKind::Server | SpanKind::Consumer),
        span_kind: kind,
        name,
        start_time: UNIX_EPOCH,
        end_time: UNIX_EPOCH,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("penstock")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build(),
    }
}

/// An attribute.
pub fn attribute(name: &'static str, value: impl Into<Value>) -> KeyValue {
    KeyValue::new(name, value)
}

/// The spans of a change's way: from its write on, what it took to read it, each transform, the brokers.
fn way(batch: &RecordBatch, traced: &Traced, sent: &Sent<'_>, clock: &Clock) -> Vec<SpanData> {
    let Traced {
        source,
        trace,
        parent,
        span: own,
        sent: on_its_way,
    } = *traced;
    let read = &batch.source;
    let at = |index: u32| index as usize;
    let (row, position) = (read.rows.get(at(source)), read.positions.get(at(source)));
    let table = row.as_ref().and_then(|row| read.table(row.table()));
    let written = position.map_or(0, Position::timestamp_us);
    let written = UNIX_EPOCH + Duration::from_micros(written.max(0) as u64);
    // The clock that stamped it may be ahead of ours.
    let written = written.min(clock.at(read.read_at));
    let child = |name: Cow<'static, str>, from: SystemTime, to: SystemTime| SpanData {
        start_time: from,
        end_time: to.max(from),
        ..span(trace, new_span(), Some(own), SpanKind::Internal, name)
    };

    let mut records = batch
        .records
        .iter()
        .zip(0..)
        .filter(|(r, _)| r.source == source);
    let first = records.clone().next();
    let refused = records.find_map(|(_, index)| {
        let refused = sent.refused.iter().find(|(of, _)| *of == index);
        refused.map(|(_, why)| format!("dead letter of sink: {why}"))
    });
    let rejected = batch.rejected.iter().find(|r| r.source == source);
    let rejected = rejected.map(|r| format!("dead letter of {}: {}", r.stage, r.error));
    let failed = sent.failed.map(str::to_owned);

    let name = table.map_or_else(
        || "change".into(),
        |t| format!("change {}.{}", t.keyspace, t.name).into(),
    );
    let mut root = span(trace, own, parent, SpanKind::Consumer, name);
    (root.start_time, root.end_time) = (written, clock.1.max(written));
    root.attributes = vec![
        attribute("db.system.name", "scylladb"),
        attribute("penstock.shard", i64::from(read.shard)),
    ];
    if let Some(table) = table {
        root.attributes.extend([
            attribute("db.namespace", table.keyspace.clone()),
            attribute("db.collection.name", table.name.clone()),
        ]);
    }
    if let (Some(row), Some(position)) = (row, position) {
        root.attributes.extend([
            attribute("penstock.operation", row.operation().name()),
            attribute("penstock.position", position.to_string()),
        ]);
    }
    root.status = status(failed.clone().or(rejected).or(refused.clone()));

    let mut source_span = child("source".into(), written, clock.at(read.read_at));
    source_span.attributes = vec![attribute(
        "penstock.batch.changes",
        read.positions.len() as i64,
    )];
    let mut spans = vec![root, source_span];
    for step in &batch.traces.steps {
        let (from, to) = (clock.at(step.began), clock.at(step.began + step.took));
        let mut of_step = child(step.stage.to_string().into(), from, to);
        of_step.attributes = vec![attribute("penstock.batch.items", i64::from(step.items))];
        spans.push(of_step);
    }
    if let Some((record, _)) = first {
        let mut sink = span(
            trace,
            on_its_way,
            Some(own),
            SpanKind::Producer,
            "sink".into(),
        );
        let handed = clock.at(sent.handed);
        (sink.start_time, sink.end_time) = (handed, clock.1.max(handed));
        sink.attributes = vec![attribute("messaging.system", "kafka")];
        if let Some(topic) = batch.topics.get(record.topic as usize) {
            sink.attributes
                .push(attribute("messaging.destination.name", topic.to_string()));
        }
        if let Some(at) = sent.acknowledged {
            let at = clock.at(at);
            sink.events.events = vec![Event::new("acknowledged", at, Vec::new(), 0)];
        }
        sink.status = status(failed.or(refused));
        spans.push(sink);
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(sampling: f64) -> Spans {
        let spans = Spans::default();
        spans.rules.store(Arc::new(Rules {
            sampling,
            column: TRACEPARENT.into(),
        }));
        spans.on.store(true, Relaxed);
        spans
    }

    #[test]
    fn a_share_of_the_traces_that_begin_here_is_taken_and_all_that_are_asked_for() {
        let spans = on(0.25);
        let taken = (0..4_000).filter(|_| spans.begin(None).is_some_and(|b| b.context.sampled));
        let taken = taken.count();
        assert!((800..1_200).contains(&taken), "{taken}");
        let given = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        for sampling in [0.0, 1.0] {
            let begun = on(sampling).begin(Some(given)).expect("it is on");
            assert!(begun.context.sampled);
            assert_eq!(begun.parent, Some(0x00f0_67aa_0ba9_02b7));
            let untraced = [&given[..54], b"0"].concat();
            let begun = on(sampling).begin(Some(&untraced)).expect("it is on");
            assert!(!begun.context.sampled, "who began it does not record it");
        }
        assert!(Spans::default().begin(Some(given)).is_none());
    }

    #[test]
    fn what_finds_no_room_is_counted_and_nobody_waits() {
        let spans = on(1.0);
        let begun = spans.begin(None).expect("it is on");
        for _ in 0..MOST_WAITING + 7 {
            spans.end(&begun, SpanKind::Server, "GET", Vec::new(), None);
        }
        assert_eq!(spans.waiting.lock().len(), MOST_WAITING);
        assert_eq!(spans.counters.dropped.load(Relaxed), 7);
    }
}
