//! The in-process stand-ins for ScyllaDB and Redpanda: for the demo, for trying things out, for tests.
//!
//! They keep everything in memory and go with the process. The pipeline speaks to them over real sockets with
//! the same clients as to the real ones; nothing else in the crate knows whether they are there.

use crate::config::Settings;
use crate::config::settings::Nodes;

/// The stand-ins that the settings ask for, running.
#[derive(Default)]
pub struct StandIns {
    #[cfg(feature = "embedded")]
    scylla: Option<scylla_double::Node>,
    #[cfg(feature = "embedded")]
    broker: Option<redpanda_double::Broker>,
}

impl StandIns {
    /// Starts what the settings call `"embedded"`, and creates the order service's tables in it.
    #[cfg(feature = "embedded")]
    pub async fn start(settings: &Settings) -> anyhow::Result<Self> {
        use anyhow::Context;

        let mut this = Self::default();
        if settings.source.nodes == Nodes::Embedded {
            let options = scylla_double::Options {
                listen: settings.embedded.scylla_listen,
                vnodes: settings.embedded.vnodes.get(),
                shards_per_vnode: settings.embedded.shards_per_vnode.get(),
                ..scylla_double::Options::default()
            };
            let listen = options.listen;
            let node = scylla_double::Node::start(options).await.with_context(|| {
                format!(
                    "the embedded ScyllaDB cannot listen on {listen}; set `embedded.scylla_listen`"
                )
            })?;
            tracing::info!(listen = %node.addr(), "embedded ScyllaDB listens (a stand-in, in memory)");
            this.scylla = Some(node);
        }
        if settings.sink.brokers == Nodes::Embedded {
            let listen = settings.embedded.redpanda_listen;
            let broker = redpanda_double::Broker::start(listen).await.with_context(|| {
                format!("the embedded Redpanda cannot listen on {listen}; set `embedded.redpanda_listen`")
            })?;
            tracing::info!(listen = %broker.addr(), "embedded Redpanda listens (a stand-in, in memory)");
            this.broker = Some(broker);
        }
        if this.scylla.is_some() {
            crate::orders::store::init_schema(&this.resolve(settings), 1).await?;
        }
        Ok(this)
    }

    /// Refuses settings that call for stand-ins: this build has none.
    #[cfg(not(feature = "embedded"))]
    pub async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let this = Self::default();
        let resolved = this.resolve(settings);
        anyhow::ensure!(
            resolved.source.nodes != Nodes::Embedded && resolved.sink.brokers != Nodes::Embedded,
            "this build has no embedded stand-ins: set `source.nodes` and `sink.brokers` to addresses"
        );
        Ok(this)
    }

    /// The settings with `"embedded"` replaced by the stand-ins' addresses.
    pub fn resolve(&self, settings: &Settings) -> Settings {
        #[allow(unused_mut)]
        let mut settings = settings.clone();
        #[cfg(feature = "embedded")]
        {
            if let (Nodes::Embedded, Some(node)) = (&settings.source.nodes, &self.scylla) {
                settings.source.nodes = Nodes::At(vec![node.addr().to_string()]);
            }
            if let (Nodes::Embedded, Some(broker)) = (&settings.sink.brokers, &self.broker) {
                settings.sink.brokers = Nodes::At(vec![broker.addr().to_string()]);
                // What is in memory has to end somewhere.
                for (name, value) in redpanda_double::bounds() {
                    let properties = &mut settings.sink.topics.properties;
                    properties
                        .entry(name.to_owned())
                        .or_insert_with(|| value.to_owned());
                }
            }
        }
        settings
    }

    /// Stops them; what they hold is gone.
    pub async fn shutdown(self) {
        #[cfg(feature = "embedded")]
        {
            if let Some(node) = self.scylla {
                node.shutdown().await;
            }
            if let Some(broker) = self.broker {
                broker.shutdown().await;
            }
        }
    }
}
