//! Sends the spans that wait, by OTLP.
//!
//! It is one child's loop and no thread of the SDK's: its batch processor has a thread of its own, which no supervisor
//! sees and a stop would have to wait for.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::{
    RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::time::Instant;

use super::{AT_ONCE, Spans, attribute};
use crate::config::LiveSettings;
use crate::config::settings::{OtlpProtocol, Settings, Tracing};

/// How long spans wait for others to go with.
const EVERY: Duration = Duration::from_secs(1);
/// How long the collector may take to answer.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between two attempts: the first pause, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Attempts of one batch: it may be the batch that the collector does not like.
const MOST_ATTEMPTS: u32 = 5;
/// What a stop waits for a collector, at most; and the share of `shutdown.timeout` that it is not to take more of.
const AT_THE_END: (Duration, u32) = (Duration::from_secs(2), 4);

/// A batch on its way.
struct Outgoing {
    spans: Vec<SpanData>,
    attempts: u32,
    pause: Duration,
    again: Instant,
}

/// Where spans go.
struct Exporter {
    to: Tracing,
    name: String,
    client: SpanExporter,
}

impl Exporter {
    /// As the settings say; `None`: nowhere.
    fn of(settings: &Settings) -> anyhow::Result<Option<Self>> {
        let (to, name) = (settings.tracing.clone(), settings.pipeline.name.clone());
        let Some(endpoint) = &to.endpoint else {
            return Ok(None);
        };
        let headers = to.headers();
        let mut client = match to.protocol {
            OtlpProtocol::Http => {
                let endpoint = endpoint.trim_end_matches('/');
                let has_path = endpoint.splitn(4, '/').nth(3).is_some();
                let path = if has_path { "" } else { "/v1/traces" };
                SpanExporter::builder()
                    .with_http()
                    .with_endpoint(format!("{endpoint}{path}"))
                    .with_headers(headers.into_iter().collect())
                    .with_retry_policy(RetryPolicy::disabled())
                    .with_timeout(ATTEMPT)
                    .build()?
            }
            OtlpProtocol::Grpc => {
                let mut metadata = HeaderMap::new();
                for (name, value) in headers {
                    metadata.insert(name.parse::<HeaderName>()?, value.parse::<HeaderValue>()?);
                }
                SpanExporter::builder()
                    .with_tonic()
                    .with_endpoint(endpoint.clone())
                    .with_metadata(MetadataMap::from_headers(metadata))
                    .with_retry_policy(RetryPolicy::disabled())
                    .with_timeout(ATTEMPT)
                    .build()?
            }
        };
        let version = attribute("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder_empty()
            .with_service_name(name.clone())
            .with_attribute(version);
        client.set_resource(&resource.build());
        Ok(Some(Self { to, name, client }))
    }

    fn is_as(&self, settings: &Settings) -> bool {
        self.to == settings.tracing && self.name == settings.pipeline.name
    }

    async fn send(&self, spans: Vec<SpanData>, within: Duration) -> Result<(), String> {
        match tokio::time::timeout(within, self.client.export(spans)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {within:?}")),
        }
    }
}

/// Sends until it is told to drain; then what is left, for as long as that may take.
///
/// # Errors
/// The settings cannot be gone by, which validation lets nobody see.
pub async fn run(
    spans: Arc<Spans>,
    mut live: LiveSettings,
    drain: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut drain = pin!(drain);
    let mut exporter: Option<Exporter> = None;
    let mut outgoing: Option<Outgoing> = None;
    let mut away = false;
    loop {
        let settings = live.borrow_and_update().clone();
        if exporter.as_ref().is_none_or(|e| !e.is_as(&settings)) {
            exporter = Exporter::of(&settings)?;
            spans.retune(&settings.tracing);
        }
        let Some(to) = &exporter else {
            outgoing = None;
            tokio::select! {
                () = &mut drain => return Ok(()),
                changed = live.changed() => changed?,
            }
            continue;
        };
        tokio::select! {
            () = &mut drain => break,
            changed = live.changed() => {
                changed?;
                continue;
            }
            () = spans.due(outgoing.as_ref()) => {}
        }
        let mut batch = match outgoing.take().or_else(|| spans.take()) {
            Some(batch) => batch,
            None => continue,
        };
        let sent = tokio::select! {
            sent = to.send(batch.spans.clone(), ATTEMPT) => sent,
            () = &mut drain => {
                outgoing = Some(batch);
                break;
            }
        };
        let count = batch.spans.len() as u64;
        match sent {
            Ok(()) => {
                spans.counters.exported.fetch_add(count, Relaxed);
                if std::mem::take(&mut away) {
                    tracing::info!(endpoint = to.to.endpoint, "traces are taken again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut away, true) {
                    let endpoint = &to.to.endpoint;
                    tracing::warn!(
                        endpoint,
                        error,
                        "traces cannot be sent: some are kept for a while, more are let go of"
                    );
                }
                batch.attempts += 1;
                if batch.attempts == MOST_ATTEMPTS {
                    spans.counters.failed.fetch_add(count, Relaxed);
                    // The next one waits as long: the collector is as far away for it.
                    let pause = batch.pause;
                    outgoing = spans.take().map(|next| Outgoing {
                        pause,
                        again: Instant::now() + pause,
                        ..next
                    });
                } else {
                    batch.again = Instant::now() + batch.pause;
                    batch.pause = (batch.pause * 2).min(PAUSES.1);
                    outgoing = Some(batch);
                }
            }
        }
    }
    let Some(to) = exporter else {
        return Ok(());
    };
    let share = live.borrow().shutdown.timeout / AT_THE_END.1;
    let until = Instant::now() + AT_THE_END.0.min(share);
    while let Some(batch) = outgoing.take().or_else(|| spans.take()) {
        let left = until.saturating_duration_since(Instant::now());
        let count = batch.spans.len() as u64;
        if let Err(error) = to.send(batch.spans, left).await {
            let lost = count + spans.waiting.lock().len() as u64;
            tracing::warn!(lost, error, "traces could not be sent before the end");
            return Ok(());
        }
        spans.counters.exported.fetch_add(count, Relaxed);
    }
    Ok(())
}

impl Spans {
    /// Waits until something is to be sent.
    async fn due(&self, outgoing: Option<&Outgoing>) {
        if let Some(outgoing) = outgoing {
            return tokio::time::sleep_until(outgoing.again).await;
        }
        loop {
            let more = self.more.notified();
            if self.waiting.lock().len() >= AT_ONCE {
                return;
            }
            let waited = tokio::time::timeout(EVERY, more).await.is_err();
            if waited && !self.waiting.lock().is_empty() {
                return;
            }
        }
    }

    /// The next batch, if there is any.
    fn take(&self) -> Option<Outgoing> {
        let mut waiting = self.waiting.lock();
        let count = waiting.len().min(AT_ONCE);
        let spans: Vec<SpanData> = waiting.drain(..count).collect();
        (count > 0).then(|| Outgoing {
            spans,
            attempts: 0,
            pause: PAUSES.0,
            again: Instant::now(),
        })
    }
}
