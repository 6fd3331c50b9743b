//! One HTTP connection: where it is with its request, how long it may take for it, and how it is let go of.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::listen::Listening;

/// How long a client may take, and how much it may send. Generous to a slow client, and short enough that a few
/// hundred of them are no way to keep others out.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the first byte of a request's head to its last.
    pub head: Duration,
    /// … and of its body.
    pub body: Duration,
    /// Bytes of a body.
    pub most_body: usize,
    /// How long one that is told to go may take to send the request that it is about to send, if it is idle.
    pub linger: Duration,
    /// … and if the whole process stops, for which it keeps others waiting.
    pub linger_stopping: Duration,
    /// How long it may then be at sending a request, or at reading an answer.
    pub stopping: Duration,
    /// Connections at a time, of which the one that idles longest makes room for the next. Far above what a client's
    /// pool opens, far below what a process has descriptors for.
    pub most: usize,
    /// More of them, for probes, while each of the others has a request that is being answered.
    pub spare: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            body: Duration::from_secs(10),
            most_body: 64 << 10,
            linger: Duration::from_secs(5),
            linger_stopping: Duration::from_millis(200),
            stopping: Duration::from_secs(2),
            most: 256,
            spare: 32,
        }
    }
}

/// Bytes of a request's head: far above what a browser sends. hyper's own bound is six times that.
const MOST_HEAD: usize = 64 << 10;

/// How long a client that was refused may take to read so, while what it still sends is thrown away: closed at once,
/// the connection would be reset, and the answer with it (RFC 9112, 9.6).
const FAREWELL: Duration = Duration::from_secs(1);

/// Where a connection is with its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// No byte of the next request has come.
    Idle,
    /// A part of its head.
    Head,
    /// A part of its body.
    Body,
    /// All of it: it is being answered.
    Work,
}

/// A connection, as the one who made room for it sees it.
#[derive(Debug)]
pub(super) struct Peer {
    at: watch::Sender<(At, Instant)>,
    /// It has had an answer before: rather a client that keeps its connection than one that never asks.
    answered: AtomicBool,
    /// Answers probes only.
    pub(super) spare: bool,
    evicted: CancellationToken,
}

impl Peer {
    pub(super) fn new(spare: bool) -> Self {
        Self {
            at: watch::Sender::new((At::Idle, Instant::now())),
            answered: AtomicBool::new(false),
            spare,
            evicted: CancellationToken::new(),
        }
    }

    fn is_at(&self, at: At) {
        self.at.send_replace((at, Instant::now()));
    }

    fn received(&self) {
        self.at.send_if_modified(|state| {
            let begins = state.0 == At::Idle;
            if begins {
                *state = (At::Head, Instant::now());
            }
            begins
        });
    }

    /// Whether it could make room, and how gladly: the least first. `None`: it is being answered, or goes already.
    pub(super) fn reluctance(&self) -> Option<(bool, Instant)> {
        let (at, since) = *self.at.borrow();
        let spared = at == At::Work || self.evicted.is_cancelled();
        (!spared).then(|| (self.answered.load(Relaxed), since))
    }

    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.is_cancelled()
    }

    pub(super) fn evict(&self) {
        self.evicted.cancel();
    }

    /// Waits until the head of a request has been on its way for longer than this.
    async fn slow_head(&self, limit: Duration) {
        let mut at = self.at.subscribe();
        loop {
            let (state, since) = *at.borrow_and_update();
            let late = async {
                match state {
                    At::Head => tokio::time::sleep_until(since + limit).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                () = late => return,
                changed = at.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Waits until a request has come in full, or this long for one that has not begun to.
    async fn next_request(&self, linger: Duration) {
        let mut at = self.at.subscribe();
        let idle_until = Instant::now() + linger;
        loop {
            let state = at.borrow_and_update().0;
            let over = async {
                match state {
                    At::Idle => tokio::time::sleep_until(idle_until).await,
                    At::Work => {}
                    // Their own deadlines end them.
                    At::Head | At::Body => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => return,
                changed = at.changed() => if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(
    stream: TcpStream,
    app: Router,
    peer: Arc<Peer>,
    limits: Limits,
    drain: CancellationToken,
    listening: Arc<Listening>,
) {
    // Answers are small and somebody waits for each.
    stream.set_nodelay(true).ok();
    let stream = Arc::new(stream);
    let io = TokioIo::new(Io {
        stream: stream.clone(),
        peer: peer.clone(),
    });
    let service = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
        let peer = peer.clone();
        request.extensions_mut().insert(peer.clone());
        let app = listening.app().unwrap_or_else(|| app.clone());
        let response = TowerToHyperService::new(app).call(request);
        let drain = &drain;
        async move {
            let mut response = response.await;
            if drain.is_cancelled()
                && let Ok(response) = &mut response
            {
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            peer.answered.store(true, Relaxed);
            peer.is_at(At::Idle);
            response
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        // hyper's own also ends a connection that is idle, just when its client sends the next request.
        .header_read_timeout(None)
        .max_buf_size(MOST_HEAD);
    let mut connection = pin!(http.serve_connection(io, service));
    let leaves = async {
        drain.cancelled().await;
        let (idle, sending) = match listening.is_replaced() {
            true => (limits.linger, limits.head + limits.body),
            false => (limits.linger_stopping, limits.stopping),
        };
        // Late or not, it goes.
        tokio::time::timeout(sending, peer.next_request(idle))
            .await
            .ok();
        sending
    };
    // First whoever has sent something is heard.
    let served = tokio::select! {
        biased;
        served = connection.as_mut() => served,
        () = peer.evicted.cancelled() => return,
        () = peer.slow_head(limits.head) => return too_slow(&stream).await,
        patience = leaves => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                biased;
                served = connection.as_mut() => served,
                () = peer.evicted.cancelled() => return,
                // It does not read its answer, or sends another request so late that it is not to be answered.
                () = stuck(&peer, patience) => return,
            }
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}

/// Waits until it has been without a request for this long.
async fn stuck(peer: &Peer, limit: Duration) {
    let mut at = peer.at.subscribe();
    loop {
        let (state, since) = *at.borrow_and_update();
        let late = async {
            match state {
                At::Work => std::future::pending().await,
                _ => tokio::time::sleep_until(since + limit).await,
            }
        };
        tokio::select! {
            () = late => return,
            changed = at.changed() => if changed.is_err() {
                return;
            }
        }
    }
}

/// Says 408, which hyper does not, and closes.
async fn too_slow(stream: &TcpStream) {
    const ANSWER: &[u8] =
        b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    // Less than any send buffer, and nothing else is in it: whole or not at all.
    if stream.try_write(ANSWER).is_err()
        || SockRef::from(stream)
            .shutdown(std::net::Shutdown::Write)
            .is_err()
    {
        return;
    }
    let read_off = async {
        let mut rest = [0; 1024];
        while stream.readable().await.is_ok() {
            match stream.try_read(&mut rest) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    tokio::time::timeout(FAREWELL, read_off).await.ok();
}

/// What an extractor says of a request, at most: a line or two.
const LONGEST_WORDS: usize = 4 << 10;

/// What every request passes first: its body is taken in full, in time and within bounds, so that a request that is
/// being answered waits for its client no more. `probes` are answered over a spare connection, too.
pub(super) async fn take_in(
    State((limits, probes)): State<(Limits, &'static [&'static str])>,
    Extension(peer): Extension<Arc<Peer>>,
    request: Request,
    next: Next,
) -> Response {
    let (head, body) = request.into_parts();
    if peer.spare && !probes.contains(&head.uri.path()) {
        let mut busy = refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "all connections are at work; try again in a moment",
        );
        busy.headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        return busy;
    }
    peer.is_at(At::Body);
    let too_long = || {
        let detail = format!("the body is longer than {} bytes", limits.most_body);
        refuse(StatusCode::PAYLOAD_TOO_LARGE, &detail)
    };
    if body.size_hint().lower() > limits.most_body as u64 {
        return too_long();
    }
    let body = axum::body::to_bytes(body, limits.most_body);
    let body = match tokio::time::timeout(limits.body, body).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => {
            use std::error::Error;
            let limit = error
                .source()
                .is_some_and(|e| e.is::<http_body_util::LengthLimitError>());
            return match limit {
                true => too_long(),
                false => refuse(StatusCode::BAD_REQUEST, "the body cannot be read"),
            };
        }
        Err(_) => {
            return refuse(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");
        }
    };
    peer.is_at(At::Work);
    let answer = next.run(Request::from_parts(head, Body::from(body))).await;
    in_our_words(answer).await
}

/// What the router and its extractors refuse by themselves, in plain text or without a word, as a problem like the others.
async fn in_our_words(answer: Response) -> Response {
    let said_so = answer
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| !kind.as_bytes().starts_with(b"text/plain"));
    let theirs = [
        StatusCode::BAD_REQUEST,
        StatusCode::METHOD_NOT_ALLOWED,
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        StatusCode::UNPROCESSABLE_ENTITY,
    ];
    let status = answer.status();
    if said_so || !theirs.contains(&status) {
        return answer;
    }
    let detail = match status {
        // It names them; the router adds it to whatever goes out.
        StatusCode::METHOD_NOT_ALLOWED => {
            "another method would do here: see the header Allow".into()
        }
        _ => {
            let text = axum::body::to_bytes(answer.into_body(), LONGEST_WORDS).await;
            String::from_utf8_lossy(&text.unwrap_or_default()).into_owned()
        }
    };
    problem(status, detail)
}

/// The answer to a request that was not taken in, after which the connection is of no use.
fn refuse(status: StatusCode, detail: &str) -> Response {
    let mut response = problem(status, detail);
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// An RFC 9457 problem.
pub fn problem(status: StatusCode, detail: impl Into<String>) -> Response {
    let body = json!({
        "type": "about:blank", "title": status.canonical_reason(), "status": status.as_u16(), "detail": detail.into(),
    });
    (
        status,
        [(header::CONTENT_TYPE, "application/problem+json")],
        body.to_string(),
    )
        .into_response()
}

/// A stream that tells when a request begins.
struct Io {
    stream: Arc<TcpStream>,
    peer: Arc<Peer>,
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read(buf.initialize_unfilled()) {
                Ok(n) => {
                    buf.advance(n);
                    if n > 0 {
                        self.peer.received();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Io {
    fn write(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.stream).shutdown(std::net::Shutdown::Write))
    }
}
