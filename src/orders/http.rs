//! The HTTP interface: `POST /orders`, `GET`, `PATCH` and `DELETE /orders/{id}`.
//!
//! Errors are problem details (RFC 9457). A POST with an `Idempotency-Key` header may be repeated: the same
//! request is answered with the same order, another request under the same key is refused.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{MatchedPath, Path, State as AxumState};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::FutureExt;
use opentelemetry::trace::SpanKind;
use serde::Serialize;
use tokio::sync::{Mutex, MutexGuard};
use tracing::Instrument;
use uuid::Uuid;

use super::Counters;
use super::body::Body;
use super::model::{CreateOrder, EventType, FieldError, Order, Request, Status, UpdateOrder};
use super::store::{Claim, OrderChange, Store, StoreError};
use crate::change::timeuuid_us;
use crate::config::LiveSettings;
use crate::coordinator::guard;
use crate::coordinator::supervisor::panic_message;
use crate::policy::Class;
use crate::policy::stage::{Refused, StagePolicies};
use crate::spans::{Context, Spans, TRACEPARENT, attribute};

/// The largest request body: the most lines of an order with room to spare.
pub(super) const MAX_BODY: usize = 1 << 20;
/// Locks that keep the changes of one order apart; orders share them by hash.
const STRIPES: usize = 256;
/// How long a half-open breaker waits for a request before it is closed without one.
const QUIET: Duration = Duration::from_secs(1);
/// Longest accepted Idempotency-Key.
const MAX_KEY: usize = 255;

struct Inner {
    store: Store,
    live: LiveSettings,
    policies: StagePolicies,
    counters: Arc<Counters>,
    spans: Arc<Spans>,
    stripes: Vec<Mutex<()>>,
}

/// What the handlers share.
#[derive(Clone)]
pub struct State(Arc<Inner>);

impl State {
    pub(super) fn new(
        store: Store,
        live: LiveSettings,
        policies: StagePolicies,
        (spans, counters): (Arc<Spans>, Arc<Counters>),
    ) -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::new(())).collect();
        Self(Arc::new(Inner {
            store,
            live,
            policies,
            counters,
            spans,
            stripes,
        }))
    }

    pub(super) fn counters(&self) -> Arc<Counters> {
        self.0.counters.clone()
    }

    /// Waits for the order's turn: its changes are written one at a time. Not for longer than the request may take,
    /// nor is it kept for longer: every question to the store in between has the same deadline.
    async fn turn(&self, id: Uuid, deadline: Instant) -> Result<MutexGuard<'_, ()>, Problem> {
        let stripe = &self.0.stripes[id.as_u128() as usize % STRIPES];
        let left = deadline.saturating_duration_since(Instant::now());
        let turn = tokio::time::timeout(left, stripe.lock()).await;
        turn.map_err(|_| Problem::timeout())
    }

    /// Runs a statement under the stage's breaker, retry and the request's deadline.
    async fn call<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        deadline: Instant,
        mut statement: impl FnMut() -> F,
    ) -> Result<T, Problem> {
        let mut attempt = 0;
        loop {
            let permit = self.0.policies.try_admit()?;
            attempt += 1;
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match tokio::time::timeout(left, statement()).await {
                Ok(Ok(value)) => {
                    permit.success();
                    return Ok(value);
                }
                Ok(Err(error)) if error.class() == Class::Poison => {
                    permit.success();
                    return Err(error.into());
                }
                Ok(Err(error)) => {
                    permit.failure(&error);
                    if error.class() == Class::Fatal {
                        return Err(error.into());
                    }
                    error
                }
                Err(_) => {
                    permit.failure("no answer within the request timeout");
                    return Err(Problem::timeout());
                }
            };
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.0.policies.back_off(attempt)).await {
                Ok(true) => {}
                Ok(false) | Err(_) => return Err(error.into()),
            }
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.0.live.borrow().orders.request_timeout
    }

    fn outbox_ttl(&self) -> Duration {
        self.0.live.borrow().orders.outbox_ttl
    }

    /// Writes a change, once: whether an attempt that failed was applied all the same is looked up before another.
    async fn write(&self, deadline: Instant, change: &OrderChange<'_>) -> Result<(), Problem> {
        let (store, spans) = (&self.0.store, &self.0.spans);
        // The row carries the span of its write.
        let begun = spans.begin(Some(change.traceparent.as_bytes()));
        let carried = begun.map(|begun| begun.context.to_string());
        let change = &OrderChange {
            traceparent: carried.as_deref().unwrap_or(change.traceparent),
            ..*change
        };
        let mut again = false;
        let written = self.call(deadline, || {
            let look = std::mem::replace(&mut again, true);
            async move {
                match look && store.is_written(change).await? {
                    true => Ok(()),
                    false => store.write(change).await,
                }
            }
        });
        let written = written.await;
        if let Some(begun) = begun {
            let attributes = vec![
                attribute("db.system.name", "scylladb"),
                attribute("db.operation.name", "BATCH"),
                attribute("db.collection.name", "outbox_messages"),
                attribute("penstock.event", change.event.name()),
            ];
            let failed = written.as_ref().err().map(|p| p.detail.clone());
            spans.end(&begun, SpanKind::Client, "write order", attributes, failed);
        }
        written
    }

    /// Closes the stage's breaker where no request comes that would, for as long as it is awaited.
    pub(super) async fn keep_closed(&self) -> std::convert::Infallible {
        loop {
            let permit = self.0.policies.idle_probe(QUIET).await;
            let timeout = self.0.live.borrow().orders.request_timeout;
            match tokio::time::timeout(timeout, self.0.store.probe()).await {
                Ok(Ok(())) => permit.success(),
                Ok(Err(error)) => permit.failure(error),
                Err(_) => permit.failure("no answer within the request timeout"),
            }
        }
    }
}

/// An RFC 9457 problem.
#[derive(Debug, Serialize)]
pub struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    #[serde(skip)]
    retry_after: Option<Duration>,
}

impl Problem {
    fn new(status: StatusCode, title: &'static str, detail: impl Into<String>) -> Self {
        let (status, detail) = (status.as_u16(), detail.into());
        Self {
            kind: "about:blank",
            title,
            status,
            detail,
            errors: Vec::new(),
            retry_after: None,
        }
    }

    fn timeout() -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "Database timeout",
            "ScyllaDB did not answer in time",
        )
    }

    fn unprocessable(errors: Vec<FieldError>) -> Self {
        let detail = format!(
            "{} field(s) of the request cannot be accepted",
            errors.len()
        );
        Self {
            errors,
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid order", detail)
        }
    }

    fn not_found(id: Uuid) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "No such order",
            format!("there is no order {id}"),
        )
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let retry_after = refused
            .until
            .map(|until| until.saturating_duration_since(tokio::time::Instant::now()));
        Self {
            retry_after,
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "Circuit breaker open",
                refused.to_string(),
            )
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error.class() {
            Class::Retryable => Self {
                retry_after: Some(Duration::from_secs(1)),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "Database unavailable",
                    error.to_string(),
                )
            },
            Class::Poison | Class::Fatal => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Database error",
                error.to_string(),
            ),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&self)).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(after) = self.retry_after {
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from(after.as_secs().max(1)),
            );
        }
        response
    }
}

/// The interface; `here_only`: it listens on loopback.
pub(super) fn router(state: State, here_only: bool) -> Router {
    let orders = Router::new()
        .route("/orders", post(create))
        .route("/orders/{id}", get(read).patch(update).delete(cancel))
        .fallback(async || {
            Problem::new(
                StatusCode::NOT_FOUND,
                "No such resource",
                "see POST /orders",
            )
        })
        .layer(axum::middleware::from_fn_with_state(state.clone(), count))
        .layer(axum::middleware::from_fn_with_state(state.clone(), traced))
        .with_state(state);
    match here_only {
        true => orders.layer(axum::middleware::from_fn(own_pages)),
        false => orders,
    }
}

/// No page of a stranger, in a browser on this machine, orders anything.
async fn own_pages(request: axum::extract::Request, next: axum::middleware::Next) -> Response {
    match guard::check(&request) {
        Ok(()) => next.run(request).await,
        Err(foreign) => {
            let (status, title) = match foreign {
                guard::Foreign::Host(_) => (StatusCode::MISDIRECTED_REQUEST, "Misdirected request"),
                guard::Foreign::Origin(_) => (StatusCode::FORBIDDEN, "Forbidden"),
            };
            Problem::new(status, title, foreign.to_string()).into_response()
        }
    }
}

async fn count(
    AxumState(state): AxumState<State>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    state.0.policies.throttle(1).await;
    // A panic is the failure of this request, and of no other on the connection or beside it.
    let response = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let response = response.unwrap_or_else(|panic| {
        let panic = panic_message(panic.as_ref());
        tracing::error!(stage = "orders", panic, "a request panicked");
        let detail = "the order service failed on this request; its log says more";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal error", detail).into_response()
    });
    let counters = &state.0.counters;
    if response.status().is_client_error() {
        counters.refused.fetch_add(1, Relaxed);
    } else if response.status().is_server_error() {
        counters.failed.fetch_add(1, Relaxed);
    }
    response
}

fn parse<T: Request>(body: &[u8]) -> Result<T, Problem> {
    let malformed = |detail| Problem::new(StatusCode::BAD_REQUEST, "Malformed request", detail);
    let json: Body = serde_json::from_slice(body)
        .map_err(|error| malformed(format!("the body is not JSON: {error}")))?;
    T::read(&json).map_err(|errors| {
        let detail = match errors.first() {
            Some(FieldError { pointer, detail }) if pointer.is_empty() => {
                format!("the body {detail}")
            }
            Some(FieldError { pointer, detail }) => format!("{pointer} {detail}"),
            None => "the body is not what is expected".to_owned(),
        };
        Problem {
            errors,
            ..malformed(detail)
        }
    })
}

fn parse_id(id: &str) -> Result<Uuid, Problem> {
    id.parse().map_err(|_| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "Malformed id",
            format!("{id:?} is not a UUID"),
        )
    })
}

/// The request's W3C trace context, or a new one.
fn traceparent(headers: &HeaderMap) -> String {
    let given = headers.get(TRACEPARENT).map(HeaderValue::as_bytes);
    let context = given.and_then(Context::parse).unwrap_or_else(|| Context {
        trace: Uuid::new_v4().as_u128(),
        span: Uuid::new_v4().as_u64_pair().0,
        sampled: true,
    });
    context.to_string()
}

/// The span of a request, and what is logged meanwhile carries its trace. Off, it is a look at a flag.
async fn traced(
    AxumState(state): AxumState<State>,
    mut request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let spans = state.0.spans.clone();
    let given = request.headers().get(TRACEPARENT);
    let Some(begun) = spans.begin(given.map(HeaderValue::as_bytes)) else {
        return next.run(request).await;
    };
    let method = request.method().to_string();
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map(|route| route.as_str().to_owned());
    let mut attributes = vec![
        attribute("http.request.method", method.clone()),
        attribute("url.path", request.uri().path().to_owned()),
    ];
    if let Ok(context) = HeaderValue::from_bytes(&begun.context.text()) {
        request.headers_mut().insert(TRACEPARENT, context);
    }
    let trace_id = format!("{:032x}", begun.context.trace);
    // An error's level, so that no filter but "off" takes the id from the lines that it lets through.
    let logged = tracing::error_span!("request", trace_id);
    let response = next.run(request).instrument(logged).await;
    let status = response.status();
    attributes.push(attribute(
        "http.response.status_code",
        i64::from(status.as_u16()),
    ));
    let name = match route {
        Some(route) => {
            attributes.push(attribute("http.route", route.clone()));
            format!("{method} {route}")
        }
        None => method,
    };
    let failed = status.is_server_error().then(|| status.to_string());
    spans.end(&begun, SpanKind::Server, name, attributes, failed);
    response
}

async fn create(
    AxumState(state): AxumState<State>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let request: CreateOrder = parse(&body)?;
    let deadline = state.deadline();
    let store = &state.0.store;
    let mut id = Uuid::new_v4();
    // Made before the first attempt of anything, so that however often it is tried, it is one event.
    let mut event_id = store.next_event();
    let mut keyed = false;
    if let Some(key) = headers.get("idempotency-key") {
        let key = key
            .to_str()
            .ok()
            .filter(|k| !k.is_empty() && k.len() <= MAX_KEY)
            .ok_or_else(|| {
                Problem::new(
                    StatusCode::BAD_REQUEST,
                    "Malformed Idempotency-Key",
                    format!("1 to {MAX_KEY} characters would do"),
                )
            })?;
        // Checked before the key is claimed, so that a refused request does not use it up.
        request
            .clone()
            .into_order(id, 0)
            .map_err(Problem::unprocessable)?;
        let canonical = serde_json::to_vec(&request).map_err(|e| {
            Problem::new(StatusCode::BAD_REQUEST, "Malformed request", e.to_string())
        })?;
        let hash = <sha2::Sha256 as sha2::Digest>::digest(&canonical);
        let ttl = state.0.live.borrow().orders.idempotency_ttl;
        let claim = || store.claim(key, (id, event_id), &hash, ttl);
        match state.call(deadline, claim).await? {
            Claim::New => {}
            Claim::Seen { order, event } => {
                id = order;
                event_id = event.unwrap_or(event_id);
            }
            Claim::Conflict => {
                let detail = format!("{key:?} was used for a different request; use a new key");
                return Err(Problem::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "Idempotency-Key reused",
                    detail,
                ));
            }
        }
        keyed = true;
    }
    let _changing = state.turn(id, deadline).await?;
    // Whoever comes first writes the order: the request that claimed the key, or, should that one have died
    // before it wrote, one that repeats it.
    if keyed && let Some(order) = state.call(deadline, || store.get(id)).await? {
        return Ok(created(&order));
    }
    let order = request
        .into_order(id, timeuuid_us(&event_id) / 1_000)
        .map_err(Problem::unprocessable)?;
    let change = OrderChange {
        order: &order,
        event: EventType::Created,
        event_id,
        ttl: state.outbox_ttl(),
        traceparent: &traceparent(&headers),
    };
    state.write(deadline, &change).await?;
    state.0.counters.created.fetch_add(1, Relaxed);
    Ok(created(&order))
}

fn created(order: &Order) -> Response {
    let location = [(header::LOCATION, format!("/orders/{}", order.id))];
    (StatusCode::CREATED, location, Json(order)).into_response()
}

async fn read(
    AxumState(state): AxumState<State>,
    Path(id): Path<String>,
) -> Result<Json<Order>, Problem> {
    let id = parse_id(&id)?;
    let order = state
        .call(state.deadline(), || state.0.store.get(id))
        .await?;
    order.map(Json).ok_or_else(|| Problem::not_found(id))
}

async fn update(
    AxumState(state): AxumState<State>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Order>, Problem> {
    let id = parse_id(&id)?;
    let request: UpdateOrder = parse(&body)?;
    let change =
        |order: &mut Order, now_ms| request.apply(order, now_ms).map_err(Problem::unprocessable);
    let order = write_change(&state, id, EventType::Updated, &headers, change).await?;
    state.0.counters.updated.fetch_add(1, Relaxed);
    Ok(Json(order))
}

async fn cancel(
    AxumState(state): AxumState<State>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Order>, Problem> {
    let id = parse_id(&id)?;
    let change = |order: &mut Order, now_ms| {
        order.status = Status::Cancelled;
        order.version += 1;
        order.updated_at_ms = now_ms;
        Ok(())
    };
    let order = write_change(&state, id, EventType::Cancelled, &headers, change).await?;
    state.0.counters.cancelled.fetch_add(1, Relaxed);
    Ok(Json(order))
}

/// Reads, changes and writes an order, one change of it at a time.
async fn write_change(
    state: &State,
    id: Uuid,
    event: EventType,
    headers: &HeaderMap,
    change: impl FnOnce(&mut Order, i64) -> Result<(), Problem>,
) -> Result<Order, Problem> {
    let deadline = state.deadline();
    let store = &state.0.store;
    let _changing = state.turn(id, deadline).await?;
    let mut order = state
        .call(deadline, || store.get(id))
        .await?
        .ok_or_else(|| Problem::not_found(id))?;
    if order.status == Status::Cancelled {
        // Cancelling again changes nothing, so it makes no event.
        return match event {
            EventType::Cancelled => Ok(order),
            _ => Err(Problem::new(
                StatusCode::CONFLICT,
                "Order is cancelled",
                format!("order {id} takes no changes"),
            )),
        };
    }
    let event_id = store.next_event();
    change(&mut order, timeuuid_us(&event_id) / 1_000)?;
    let written = OrderChange {
        order: &order,
        event,
        event_id,
        ttl: state.outbox_ttl(),
        traceparent: &traceparent(headers),
    };
    state.write(deadline, &written).await?;
    Ok(order)
}
