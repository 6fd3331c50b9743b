//! A collector of traces on loopback, over HTTP and over gRPC: it keeps what it is sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use parking_lot::Mutex;
use prost::Message;
use tokio::net::{TcpListener, TcpStream};

/// A span as it came.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) service: String,
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    pub(crate) name: String,
    pub(crate) attributes: BTreeMap<String, String>,
    /// Of an error, what is said of it.
    pub(crate) error: Option<String>,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) events: Vec<String>,
}

#[derive(Default)]
struct Kept {
    spans: Mutex<Vec<Told>>,
    headers: Mutex<HeaderMap>,
    refuses: AtomicBool,
}

/// It keeps what it is sent for as long as it is kept.
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    kept: Arc<Kept>,
    serving: tokio::task::JoinHandle<()>,
}

fn text(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let value = |kv: &KeyValue| match kv.value.clone()?.value? {
        any_value::Value::StringValue(text) => Some(text),
        any_value::Value::IntValue(n) => Some(n.to_string()),
        other => Some(format!("{other:?}")),
    };
    let pairs = attributes.iter();
    pairs
        .map(|kv| (kv.key.clone(), value(kv).unwrap_or_default()))
        .collect()
}

impl Kept {
    fn take(&self, headers: &HeaderMap, body: &[u8]) {
        *self.headers.lock() = headers.clone();
        let request = ExportTraceServiceRequest::decode(body).expect("a request");
        let mut spans = self.spans.lock();
        for of_resource in request.resource_spans {
            let resource = text(&of_resource.resource.unwrap_or_default().attributes);
            let all = of_resource.scope_spans.into_iter().flat_map(|s| s.spans);
            spans.extend(all.map(|span| Told {
                service: resource["service.name"].clone(),
                trace: hex::encode(span.trace_id),
                id: hex::encode(span.span_id),
                parent: hex::encode(span.parent_span_id),
                name: span.name,
                attributes: text(&span.attributes),
                error: span.status.filter(|s| s.code == 2).map(|s| s.message),
                start: span.start_time_unix_nano,
                end: span.end_time_unix_nano,
                events: span.events.into_iter().map(|e| e.name).collect(),
            }));
        }
    }
}

impl Collector {
    /// Over HTTP, in Protocol Buffers.
    pub(crate) async fn http() -> Self {
        let (listener, kept) = (listen().await, Arc::<Kept>::default());
        let address = listener.local_addr().expect("an address");
        let state = kept.clone();
        let app = Router::new().route(
            "/v1/traces",
            post(async move |headers: HeaderMap, body: Bytes| {
                if state.refuses.load(Relaxed) {
                    return StatusCode::SERVICE_UNAVAILABLE;
                }
                assert_eq!(headers["content-type"], "application/x-protobuf");
                state.take(&headers, &body);
                StatusCode::OK
            }),
        );
        let serving = tokio::spawn(async move {
            axum::serve(listener, app).await.expect("served");
        });
        Self {
            address,
            kept,
            serving,
        }
    }

    /// Over gRPC.
    pub(crate) async fn grpc() -> Self {
        let (listener, kept) = (listen().await, Arc::<Kept>::default());
        let address = listener.local_addr().expect("an address");
        let state = kept.clone();
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(answer(stream, state.clone()));
            }
        });
        Self {
            address,
            kept,
            serving,
        }
    }

    /// Has it refuse what comes, or take it again.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.kept.refuses.store(refuses, Relaxed);
    }

    /// What came with the last request.
    pub(crate) fn headers(&self) -> HeaderMap {
        self.kept.headers.lock().clone()
    }

    /// All that it has.
    pub(crate) fn spans(&self) -> Vec<Told> {
        self.kept.spans.lock().clone()
    }

    /// The spans of a trace, once there are so many.
    pub(crate) async fn trace(&self, trace: &str, spans: usize) -> Vec<Told> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let mut found = self.spans();
            found.retain(|span| span.trace == trace);
            if found.len() >= spans {
                found.sort_by_key(|span| span.start);
                return found;
            }
            assert!(Instant::now() < deadline, "of {trace} only {found:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a port")
}

/// A unary call of gRPC is a POST with one message, behind five bytes, and an answer with trailers.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
async fn answer(stream: TcpStream, kept: Arc<Kept>) {
    let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let kept = kept.clone();
        // The connection has to be driven meanwhile.
        tokio::spawn(async move {
            let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
            assert_eq!(request.uri().path(), path);
            let (parts, mut body) = request.into_parts();
            let mut message = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                body.flow_control()
                    .release_capacity(data.len())
                    .expect("room");
                message.extend_from_slice(&data);
            }
            kept.take(&parts.headers, &message[5..]);
            let head = Response::builder().header("content-type", "application/grpc");
            let mut sending = respond
                .send_response(head.body(()).expect("a response"), false)
                .expect("sent");
            sending
                .send_data(Bytes::from_static(&[0; 5]), false)
                .expect("sent");
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            sending.send_trailers(trailers).expect("sent");
        });
    }
}
