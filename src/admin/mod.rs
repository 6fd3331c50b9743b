//! The admin interface: a page (`/`), what is so (`/healthz`, `/readyz`, `/health`, `/status`, `/config`, `/reloads`,
//! `/metrics`), and what one may ask for (`POST /-/reload`, `/breakers/{stage}/reset`, dead letters).
//!
//! It listens on loopback unless a token is set. With a token every path but `/healthz` and `/readyz` wants
//! `Authorization: Bearer <token>`, or the cookie of a browser that gave it ([`page::session`]); `/metrics` also takes
//! one of its own, which opens nothing else. Without one, only this machine is answered, and no page of a stranger ([`guard`]). docs/probes.md has the table.

pub mod metrics;
pub mod page;
pub mod status;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use serde_json::json;

use crate::change::{InvalidPosition, Position};
use crate::config::LiveSettings;
use crate::config::settings::Secret;
use crate::coordinator::child::Stage;
use crate::coordinator::connection::{Limits, problem};
use crate::coordinator::guard;
use crate::coordinator::handle::Handle;
use crate::coordinator::listen::{Bound, Listening, listen};
use crate::coordinator::pipeline::Pipeline;
use crate::coordinator::serve::{Serving, serve};
use crate::coordinator::supervisor::{ChildScope, ChildSpec};
use crate::dead_letter::{DeadLetter, Filter, Foreign};
use crate::policy::health::{Level, Status};
use crate::transform::TapFilter;

use self::page::session::{self, Sessions};

/// The interface, bound, not yet serving.
pub struct Server {
    handle: Handle,
    live: LiveSettings,
    bound: Bound,
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "[admin] cannot listen on {address}: {error}; set `admin.listen` to a free address, or `admin.enabled = false`"
)]
pub struct ListenError {
    address: SocketAddr,
    error: std::io::Error,
}

impl Server {
    /// Listens on `wanted`, also beside the listener of the interface that this one replaces.
    ///
    /// # Errors
    /// When somebody else listens there.
    pub async fn bind(
        handle: Handle,
        live: LiveSettings,
        wanted: SocketAddr,
        replaces: Option<&Arc<Listening>>,
    ) -> Result<Self, ListenError> {
        let bound = listen(wanted, replaces)
            .await
            .map_err(|error| ListenError {
                address: wanted,
                error,
            })?;
        Ok(Self {
            handle,
            live,
            bound,
        })
    }

    /// Its socket.
    pub fn listening(&self) -> Arc<Listening> {
        self.bound.listening().clone()
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.bound.listening().address()
    }

    /// The child that serves. It answers while everything else drains, and is stopped last.
    pub fn into_child(self) -> ChildSpec {
        let listening = self.bound.in_force();
        let serving = Serving {
            stage: Stage::Admin,
            app: router(
                self.handle,
                self.live,
                listening.address().ip().is_loopback(),
            ),
            probes: &PROBES,
            limits: Limits::default(),
        }
        .at(&listening);
        // The socket outlives a restart, so that no connection that waits is lost.
        ChildSpec::new(Stage::Admin, move |scope: ChildScope| {
            serve(serving.clone(), listening.clone(), scope)
        })
    }
}

/// What is answered to anybody, and however busy everything is.
const PROBES: [&str; 2] = ["/healthz", "/readyz"];
/// What a token of its own reads.
const METRICS: &str = "/metrics";

fn router(handle: Handle, live: LiveSettings, here_only: bool) -> Router {
    let access = Access {
        live,
        here_only,
        sessions: Sessions::new(),
    };
    let login = access.clone();
    let audience = page::Audience::default();
    let guarded = Router::new()
        .route("/health", get(health))
        .route("/status", get(status))
        .route("/config", get(config))
        .route("/reloads", get(reloads))
        .route(
            METRICS,
            get(async |State(h): State<Handle>, headers: HeaderMap| metrics_response(&h, &headers)),
        )
        .route("/breakers", get(breakers))
        .route("/breakers/{stage}/reset", post(reset_breaker))
        .route(
            "/dead-letters",
            get(dead_letters).delete(purge_dead_letters),
        )
        .route(
            "/dead-letters/replay",
            post(replay_dead_letters).get(replay_under_way),
        )
        .route("/tap", get(tap))
        .route("/-/reload", post(reload))
        .route("/", get(async || page::PAGE))
        .route("/trend", get(page::trend))
        .route("/picture", get(page::picture))
        .route(
            "/events",
            get(move |handle| page::events(handle, audience.clone())),
        )
        .route_layer(middleware::from_fn_with_state(access, authorize));
    Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/page.css", get(async || page::STYLE))
        .route("/page.js", get(async || page::SCRIPT))
        .route("/icon.svg", get(async || page::ICON))
        .route("/login", post(async move |form| log_in(&login, form).await))
        .route("/logout", post(log_out))
        .merge(guarded)
        .fallback(async || {
            problem(
                StatusCode::NOT_FOUND,
                "no such path; see /, /status, /health, /metrics, /config",
            )
        })
        .with_state(handle)
}

/// What access to everything but the probes depends on.
#[derive(Clone)]
struct Access {
    live: LiveSettings,
    /// It listens on loopback.
    here_only: bool,
    sessions: Sessions,
}

async fn authorize(State(access): State<Access>, request: Request, next: Next) -> Response {
    let admin = access.live.borrow().admin.clone();
    let of_page = admin.token.clone();
    let of_metrics = admin
        .metrics_token
        .filter(|_| request.uri().path() == METRICS);
    let tokens: Vec<Secret> = admin.token.into_iter().chain(of_metrics).collect();
    if tokens.is_empty() {
        if let Some(foreign) = access
            .here_only
            .then(|| guard::check(&request).err())
            .flatten()
        {
            let status = match foreign {
                guard::Foreign::Host(_) => StatusCode::MISDIRECTED_REQUEST,
                guard::Foreign::Origin(_) => StatusCode::FORBIDDEN,
            };
            return problem(status, foreign.to_string());
        }
        return next.run(request).await;
    }
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "))
        .unwrap_or_default();
    let browses = |token| {
        let sessions = &access.sessions;
        sessions.opens(request.method(), request.headers(), token)
    };
    if tokens.iter().any(|token| is(given, token)) || of_page.as_ref().is_some_and(browses) {
        return next.run(request).await;
    }
    if request.uri().path() == "/" {
        return (StatusCode::UNAUTHORIZED, page::LOGIN.saying("")).into_response();
    }
    let mut refused = problem(
        StatusCode::UNAUTHORIZED,
        "wants `Authorization: Bearer <token>`: the admin token, or for /metrics the one for scrapes",
    );
    refused
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    refused
}

/// Whether this is the token. Digests are compared, so that the time it takes says nothing about it.
fn is(given: &str, token: &Secret) -> bool {
    use sha2::{Digest, Sha256};
    Sha256::digest(given) == Sha256::digest(token.expose())
}

/// What the login form sends.
#[derive(serde::Deserialize)]
struct Given {
    token: String,
}

/// How long a wrong token takes: guessing is slow, and a typing error no nuisance.
const WRONG_TOKEN: Duration = Duration::from_millis(500);

async fn log_in(access: &Access, Form(given): Form<Given>) -> Response {
    let token = access.live.borrow().admin.token.clone();
    let home = [(header::LOCATION, HeaderValue::from_static("/"))];
    match token {
        None => (StatusCode::SEE_OTHER, home).into_response(),
        Some(token) if is(given.token.trim(), &token) => {
            let cookie = [(header::SET_COOKIE, access.sessions.cookie(&token))];
            (StatusCode::SEE_OTHER, home, cookie).into_response()
        }
        Some(_) => {
            tokio::time::sleep(WRONG_TOKEN).await;
            let page = page::LOGIN.saying("That is not the token.");
            (StatusCode::UNAUTHORIZED, page).into_response()
        }
    }
}

async fn log_out() -> Response {
    let home = [(header::LOCATION, HeaderValue::from_static("/"))];
    let cookie = [(header::SET_COOKIE, session::forgotten())];
    (StatusCode::SEE_OTHER, home, cookie).into_response()
}

async fn alive(State(handle): State<Handle>) -> Response {
    match handle.alive() {
        Ok(()) => "ok\n".into_response(),
        Err(why) => problem(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

async fn ready(State(handle): State<Handle>) -> Response {
    let ready = handle.ready();
    let code = match ready {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut body = json!({ "phase": handle.phase() });
    if let Err(why) = ready {
        body["reason"] = why.into();
    }
    if let Some(share) = handle.share() {
        body["membership"] = json!(share);
    }
    (code, Json(body)).into_response()
}

async fn health(State(handle): State<Handle>) -> Response {
    let report = handle.health().borrow().clone();
    let unhealthy = report
        .system
        .as_ref()
        .is_none_or(|s| s.status == Level::Unhealthy);
    // Who hangs looks at nothing: what it last reported is no news.
    let code = match unhealthy || handle.hung().is_some() {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => StatusCode::OK,
    };
    (code, Json(report)).into_response()
}

async fn status(State(handle): State<Handle>) -> Json<status::Status> {
    Json(status::Status::of(&handle))
}

fn metrics_response(handle: &Handle, headers: &HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    let format = metrics::Format::wanted(accept.unwrap_or_default());
    let kind = [(header::CONTENT_TYPE, format.media_type())];
    (kind, metrics::render(handle, format)).into_response()
}

/// The settings in force, and why the newest configuration is not, if it is not.
async fn config(State(handle): State<Handle>) -> Response {
    let reloads = handle.reloads();
    Json(json!({
        "complaint": reloads.complaint(),
        "hash": reloads.hash(),
        "settings": reloads.effective(),
    }))
    .into_response()
}

async fn reloads(State(handle): State<Handle>) -> Response {
    Json(page::reloads(&handle)).into_response()
}

async fn reload(State(handle): State<Handle>) -> Response {
    match handle.reload().await {
        Ok(Some(revision)) => {
            let code = if revision.is_applied() {
                StatusCode::OK
            } else {
                StatusCode::UNPROCESSABLE_ENTITY
            };
            (code, Json(revision)).into_response()
        }
        Ok(None) => Json(json!({ "outcome": "unchanged" })).into_response(),
        Err(stopped) => problem(StatusCode::SERVICE_UNAVAILABLE, stopped.to_string()),
    }
}

async fn breakers(State(handle): State<Handle>) -> Json<Vec<status::Stage>> {
    Json(status::stages(&handle))
}

async fn reset_breaker(State(handle): State<Handle>, Path(stage): Path<String>) -> Response {
    match handle.stage(&stage) {
        Some(policies) => {
            policies.reset_breaker();
            Json(status::Stage::of(&policies.snapshot())).into_response()
        }
        None => {
            let names: Vec<String> = handle
                .policies()
                .iter()
                .map(|p| p.stage().to_owned())
                .collect();
            problem(
                StatusCode::NOT_FOUND,
                format!("no stage {stage:?}; there are {}", names.join(", ")),
            )
        }
    }
}

/// What a tap is to show, and whose it is.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct TapQuery {
    /// Whoever asks again with it goes on where it was.
    id: String,
    stage: String,
    table: Option<String>,
    operation: Option<String>,
    topic: Option<String>,
    contains: Option<String>,
    rate: Option<u32>,
}

/// The most that a tap shows a second: beyond it the lanes would feel it.
const MOST_A_SECOND: u32 = 1_000;

/// What has passed a stage since the same tap was last asked; asked the first time, it is opened.
async fn tap(State(handle): State<Handle>, Query(query): Query<TapQuery>) -> Response {
    let Some(pipeline) = handle.pipeline() else {
        return problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "the pipeline is being built; try again in a moment",
        );
    };
    let transforms = pipeline.settings().transforms.clone();
    let transforms = transforms.iter().map(|t| format!("transform.{}", t.name));
    let stages: Vec<String> = ["source".to_owned()]
        .into_iter()
        .chain(transforms)
        .chain(["sink".to_owned()])
        .collect();
    if !stages.contains(&query.stage) {
        let message = format!(
            "no stage {:?}; there are {}",
            query.stage,
            stages.join(", ")
        );
        return problem(StatusCode::NOT_FOUND, message);
    }
    let filter = TapFilter {
        stage: query.stage,
        table: query.table,
        operation: query.operation,
        topic: query.topic,
        contains: query.contains,
        rate: query.rate.unwrap_or(10).clamp(1, MOST_A_SECOND),
    };
    match pipeline
        .transforms
        .taps()
        .take(&query.id, &filter, std::time::Instant::now())
    {
        Ok(taken) => Json(taken).into_response(),
        Err(error) => problem(StatusCode::TOO_MANY_REQUESTS, error.to_string()),
    }
}

/// Which dead letters a request means.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct LetterQuery {
    stage: Option<String>,
    table: Option<String>,
    error: Option<String>,
    /// Positions, separated by commas.
    ids: Option<String>,
    limit: Option<usize>,
}

impl TryFrom<LetterQuery> for Filter {
    type Error = InvalidPosition;

    fn try_from(query: LetterQuery) -> Result<Self, InvalidPosition> {
        let ids = query.ids.unwrap_or_default();
        let positions: Result<Vec<Position>, _> = ids
            .split(',')
            .filter(|id| !id.is_empty())
            .map(str::parse)
            .collect();
        let (stage, table, error, limit) = (query.stage, query.table, query.error, query.limit);
        Ok(Filter {
            positions: positions?,
            stage,
            table,
            error,
            limit,
            ..Filter::default()
        })
    }
}

/// Does something with the dead letters that a request means, or says why not.
async fn with_letters<T: serde::Serialize>(
    handle: &Handle,
    query: LetterQuery,
    act: impl AsyncFnOnce(&Pipeline, Filter) -> anyhow::Result<T>,
) -> Response {
    let filter = match Filter::try_from(query) {
        Ok(filter) => filter,
        Err(error) => return problem(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let Some(pipeline) = handle.pipeline() else {
        return problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "the pipeline is being built; try again in a moment",
        );
    };
    match act(&pipeline, filter).await {
        Ok(done) => Json(done).into_response(),
        Err(error) => {
            // What the sink waits for is why, where it waits.
            let why = pipeline.sink.complaint();
            let why = why.as_ref().and_then(Status::reason);
            let why = why.map_or_else(String::new, |why| format!("; {why}"));
            problem(StatusCode::BAD_GATEWAY, format!("{error:#}{why}"))
        }
    }
}

async fn dead_letters(State(handle): State<Handle>, Query(query): Query<LetterQuery>) -> Response {
    with_letters(&handle, query, async |pipeline, filter| {
        let listed = pipeline.dead_letters.read(&filter).await?;
        let foreign = |f: &Foreign| {
            let error = format!("skipped, for it is no dead letter: {}", f.reason);
            json!({ "id": f.place, "error": error })
        };
        let letters = listed.letters.iter().map(letter_json);
        Ok(letters
            .chain(listed.foreign.iter().map(foreign))
            .collect::<Vec<_>>())
    })
    .await
}

fn letter_json(letter: &DeadLetter) -> serde_json::Value {
    let time = |at| jiff::Timestamp::try_from(at).map_or_else(|_| String::new(), |t| t.to_string());
    json!({
        "id": letter.position.to_string(),
        "time": time(letter.last_at),
        "first_time": time(letter.first_at),
        "stage": letter.stage,
        "table": letter.table,
        "operation": letter.operation,
        "error": letter.error,
        "attempts": letter.attempts,
        "change": serde_json::from_slice::<serde_json::Value>(&letter.change.to_json()).unwrap_or_default(),
    })
}

async fn purge_dead_letters(
    State(handle): State<Handle>,
    Query(query): Query<LetterQuery>,
) -> Response {
    with_letters(&handle, query, async |pipeline, filter| {
        let (purged, skipped) = pipeline.dead_letters.purge(&filter).await?;
        Ok(json!({ "purged": purged, "skipped": skipped }))
    })
    .await
}

/// How far the replay under way is, if there is one.
async fn replay_under_way(State(handle): State<Handle>) -> Response {
    let far = handle.pipeline().and_then(|p| p.replay_under_way());
    let Some(far) = far else {
        return Json(json!({ "under_way": false })).into_response();
    };
    let left = far.left().map(|left| left.as_secs());
    Json(json!({
        "under_way": true, "done": far.done, "of": far.of, "per_second": far.per_second, "left_seconds": left,
    }))
    .into_response()
}

async fn replay_dead_letters(
    State(handle): State<Handle>,
    Query(query): Query<LetterQuery>,
) -> Response {
    with_letters(&handle, query, async |pipeline, filter| {
        pipeline.replay(&filter).await
    })
    .await
}
