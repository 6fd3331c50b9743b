//! Where a pipeline's parts come from. The coordinator knows them by their traits; which drivers and which engine are behind
//! those is said here alone, so that a test puts others in their place.

use std::sync::Arc;

use futures::future::BoxFuture;

use super::plugins::{PluginHost, Plugins};
use crate::config::{LiveSettings, Settings};
use crate::policy::stage::StagePolicies;
use crate::sink::redpanda::RedpandaSink;
use crate::sink::{Sink, SinkError};
use crate::source::{ScyllaSource, Source, SourceError};

/// Makes the parts of a pipeline, by its settings.
pub trait Parts: Send + Sync {
    /// What its transforms run in.
    ///
    /// # Errors
    /// The system gives no engine, or no thread.
    fn plugins(&self, settings: &Settings) -> anyhow::Result<Arc<dyn Plugins>>;

    /// Its source, connected. One attempt.
    fn source(
        &self,
        live: LiveSettings,
        policies: StagePolicies,
    ) -> BoxFuture<'static, Result<Arc<dyn Source>, SourceError>>;

    /// Its sink, likewise.
    fn sink(
        &self,
        live: LiveSettings,
        policies: StagePolicies,
    ) -> BoxFuture<'static, Result<Arc<dyn Sink>, SinkError>>;
}

/// ScyllaDB, Redpanda and WebAssembly.
#[derive(Clone, Copy, Debug)]
pub struct Drivers;

impl Parts for Drivers {
    fn plugins(&self, settings: &Settings) -> anyhow::Result<Arc<dyn Plugins>> {
        Ok(PluginHost::new(settings)?)
    }

    fn source(
        &self,
        live: LiveSettings,
        policies: StagePolicies,
    ) -> BoxFuture<'static, Result<Arc<dyn Source>, SourceError>> {
        Box::pin(async move {
            let source: Arc<dyn Source> = ScyllaSource::connect(live, policies).await?;
            Ok(source)
        })
    }

    fn sink(
        &self,
        live: LiveSettings,
        policies: StagePolicies,
    ) -> BoxFuture<'static, Result<Arc<dyn Sink>, SinkError>> {
        Box::pin(async move {
            let sink = RedpandaSink::connect(live, policies).await?;
            sink.find_checkpoints().await;
            let sink: Arc<dyn Sink> = sink;
            Ok(sink)
        })
    }
}
