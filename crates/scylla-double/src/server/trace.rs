//! Traces of requests: who asks for one (a flag of the frame) is told its id, and finds what was done in
//! `system_traces.sessions` and `.events`.
//!
//! Columns, parameters and the names of activities are ScyllaDB's (docs/using-scylla/tracing.rst,
//! `tracing/trace_keyspace_helper.cc`, `tracing/trace_state.cc`), as far as this node does the like. ScyllaDB
//! writes traces a while after the answer and keeps them for a day; here they are there when the answer is, and
//! the last [`KEPT`] of them stay.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use uuid::Uuid;

use super::request::QueryParams;
use crate::{
    engine::{BoundValue, ColumnSpec, CqlError, Engine, consistency_name, timeuuid_at},
    system::{inet, int, map, text, timestamp, timeuuid, uuid},
    types::Value,
};

const KEYSPACE: &str = "system_traces";
/// Traces kept; one takes some kilobytes.
const KEPT: usize = 10_000;
/// The most of a bound value that a trace shows, characters (`trace_state::raw_value_to_sstring`).
const SHOWN: usize = 64;

/// Writes traces down, and lets go of the oldest.
pub(crate) struct Traces {
    /// Where the node is.
    address: IpAddr,
    /// When each began, ms since the epoch, and its id; the oldest first.
    kept: Mutex<VecDeque<(i64, Uuid)>>,
}

/// The trace of one request, if it is to have one.
pub(crate) struct Tracer(Option<Box<Trace>>);

struct Trace {
    id: Uuid,
    client: IpAddr,
    username: String,
    request: String,
    request_size: usize,
    /// µs since the epoch.
    began_us: i64,
    began: Instant,
    parameters: BTreeMap<String, String>,
    events: Vec<(String, Duration)>,
}

impl Tracer {
    /// None.
    pub(crate) fn off() -> Self {
        Self(None)
    }

    /// One, which begins now.
    pub(crate) fn begin(
        engine: &Engine,
        client: SocketAddr,
        user: Option<&str>,
        size: usize,
    ) -> Self {
        let began_us = (engine.options().clock)();
        Self(Some(Box::new(Trace {
            id: timeuuid_at(began_us),
            client: client.ip(),
            username: user.unwrap_or("anonymous").to_owned(),
            request: String::new(),
            request_size: size,
            began_us,
            began: Instant::now(),
            parameters: BTreeMap::new(),
            events: Vec::new(),
        })))
    }

    /// Says what the request is, in ScyllaDB's words.
    pub(crate) fn request(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.0 {
            trace.request = what();
        }
    }

    /// Says what is done.
    pub(crate) fn note(&mut self, activity: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.0 {
            trace.events.push((activity(), trace.began.elapsed()));
        }
    }

    /// Tells of the statement, or of the `n`th of a batch of several.
    pub(crate) fn query(&mut self, n: Option<usize>, text: &str, table: Option<(&str, &str)>) {
        let Some(trace) = &mut self.0 else { return };
        let key = |of: &str| n.map_or_else(|| of.to_owned(), |n| format!("{of}[{n}]"));
        trace.parameters.insert(key("query"), text.to_owned());
        if let Some((keyspace, table)) = table {
            trace
                .parameters
                .insert(key("table"), format!("{keyspace}.{table}"));
        }
    }

    /// Tells of what a prepared statement, or the `n`th of a batch of several, was given.
    pub(crate) fn values(
        &mut self,
        n: Option<usize>,
        markers: &[ColumnSpec],
        given: &[BoundValue],
    ) {
        let Some(trace) = &mut self.0 else { return };
        let of = n.map_or_else(String::new, |n| format!("[{n}]"));
        for (i, (marker, value)) in markers.iter().zip(given).enumerate() {
            trace
                .parameters
                .insert(format!("param{of}[{i}]"), shown(marker, value));
        }
    }

    /// Tells of what came with the statement.
    pub(crate) fn params(&mut self, params: &QueryParams) {
        let Some(trace) = &mut self.0 else { return };
        let mut tell = |key: &str, value: String| trace.parameters.insert(key.to_owned(), value);
        tell("consistency_level", consistency_name(params.consistency));
        if let Some(serial) = params.serial_consistency {
            tell("serial_consistency_level", consistency_name(serial));
        }
        if let Some(size) = params.page_size {
            tell("page_size", size.to_string());
        }
        if let Some(at) = params.timestamp {
            tell("user_timestamp", at.to_string());
        }
    }
}

fn shown(marker: &ColumnSpec, value: &BoundValue) -> String {
    let bytes = match value {
        BoundValue::Null => return "null".into(),
        BoundValue::Unset => return "unset value".into(),
        BoundValue::Bytes(bytes) => bytes,
    };
    let text = match Value::decode(&marker.ty, bytes) {
        Ok(Value::Text(text) | Value::Ascii(text)) => text,
        Ok(value) => value.to_string(),
        Err(_) => bytes.iter().map(|b| format!("{b:02x}")).collect(),
    };
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

impl Traces {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address: address.ip(),
            kept: Mutex::default(),
        }
    }

    /// Ends a trace and writes it down; gives its id, which begins the answer of `size` bytes.
    pub(crate) fn end(&self, engine: &Engine, tracer: Tracer, size: usize) -> Option<Uuid> {
        let trace = tracer.0?;
        let began_ms = trace.began_us.div_euclid(1_000);
        let mut kept = self.kept.lock();
        let written = self.write(engine, &trace, size).and_then(|()| {
            kept.push_back((began_ms, trace.id));
            if kept.len() > KEPT
                && let Some((began_ms, id)) = kept.pop_front()
            {
                return forget(engine, began_ms, id);
            }
            Ok(())
        });
        if let Err(e) = written {
            tracing::error!(error = %e, "a trace cannot be written down");
        }
        Some(trace.id)
    }

    fn write(&self, engine: &Engine, trace: &Trace, size: usize) -> Result<(), CqlError> {
        let duration = trace.began.elapsed();
        let began_ms = trace.began_us.div_euclid(1_000);
        let id = uuid(trace.id);
        // A place in time of its own for each, in their order.
        let mut at = trace.began_us - 1;
        for (activity, elapsed) in &trace.events {
            at = (at + 1).max(trace.began_us.saturating_add(micros(*elapsed).into()));
            let row = [
                ("session_id", id.clone()),
                ("event_id", timeuuid(at)),
                ("activity", text(activity)),
                ("scylla_parent_id", long(0)),
                ("scylla_span_id", long(1)),
                ("source", inet(self.address)),
                ("source_elapsed", int(micros(*elapsed))),
                ("thread", text("shard 0")),
            ];
            engine.put_internal(KEYSPACE, "events", &row)?;
        }
        let minute = began_ms - began_ms.rem_euclid(60_000);
        let row = [
            ("minute", timestamp(minute)),
            ("started_at", timestamp(began_ms)),
            ("session_id", id.clone()),
        ];
        engine.put_internal(KEYSPACE, "sessions_time_idx", &row)?;
        // Last: clients take a trace for whole once its duration is there.
        let narrow = |n: usize| int(i32::try_from(n).unwrap_or(i32::MAX));
        let row = [
            ("session_id", id),
            ("client", inet(trace.client)),
            ("command", text("QUERY")),
            ("coordinator", inet(self.address)),
            ("duration", int(micros(duration))),
            (
                "parameters",
                map(trace.parameters.iter().map(|(k, v)| (k, v.as_bytes()))),
            ),
            ("request", text(&trace.request)),
            ("request_size", narrow(trace.request_size)),
            ("response_size", narrow(size)),
            ("started_at", timestamp(began_ms)),
            ("username", text(&trace.username)),
        ];
        engine.put_internal(KEYSPACE, "sessions", &row)
    }
}

fn forget(engine: &Engine, began_ms: i64, id: Uuid) -> Result<(), CqlError> {
    let id = uuid(id);
    for table in ["sessions", "events"] {
        engine.remove_internal(KEYSPACE, table, &[("session_id", id.clone())])?;
    }
    let row = [
        ("minute", timestamp(began_ms - began_ms.rem_euclid(60_000))),
        ("started_at", timestamp(began_ms)),
        ("session_id", id),
    ];
    engine.remove_internal(KEYSPACE, "sessions_time_idx", &row)
}

fn micros(elapsed: Duration) -> i32 {
    i32::try_from(elapsed.as_micros()).unwrap_or(i32::MAX)
}

fn long(value: i64) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(&value.to_be_bytes()))
}
