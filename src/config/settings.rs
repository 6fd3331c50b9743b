//! The validated settings: what every other module reads.
//!
//! Only [`crate::config`] makes them, from a raw file; whoever holds one may rely on it.

use std::num::NonZeroU32;
use std::sync::Arc;

use tokio::sync::watch;

use super::key::Key;
use super::rules;
use super::section::{Section, Values};
pub use super::sections::*;
pub use super::value::{Contents, Nodes, Secret, StartFrom};
pub use crate::policy::Policies;
pub use crate::policy::health::{OpenBreaker, Settings as Health};
use crate::policy::stage::Tuned;

/// The settings in force, read where they are used; hold no guard across an await.
pub type LiveSettings = watch::Receiver<Arc<Settings>>;

/// All of pipeline.toml.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `[pipeline]`
    pub pipeline: Pipeline,
    /// `[source]`
    pub source: Source,
    /// `[[transform]]`, in order.
    pub transforms: Vec<Transform>,
    /// `[sink]`
    pub sink: Sink,
    /// `[dead_letter]`
    pub dead_letter: DeadLetter,
    /// `[orders]`
    pub orders: Orders,
    /// `[admin]`
    pub admin: Admin,
    /// `[health]`
    pub health: Health,
    /// `[shutdown]`
    pub shutdown: Shutdown,
    /// `[log]`
    pub log: Log,
    /// `[tracing]`
    pub tracing: Tracing,
    /// `[reload]`
    pub reload: Reload,
    /// `[embedded]`
    pub embedded: Embedded,
}

impl Settings {
    /// The topic of what no transform routed, of this table.
    pub fn default_topic(&self, table: &str) -> String {
        let (pipeline, keyspace) = (&self.pipeline.name, &self.source.keyspace);
        rules::fill(&self.sink.topic, pipeline, keyspace, table)
    }

    /// Every key, in the order in which they are documented.
    pub(super) fn keys() -> Vec<Key> {
        let mut keys = Vec::new();
        Policies::keys("policies", &mut keys);
        Pipeline::keys("pipeline", &mut keys);
        Source::keys("source", &mut keys);
        Transform::keys("transform.*", &mut keys);
        Sink::keys("sink", &mut keys);
        DeadLetter::keys("dead_letter", &mut keys);
        Orders::keys("orders", &mut keys);
        Admin::keys("admin", &mut keys);
        Health::keys("health", &mut keys);
        Shutdown::keys("shutdown", &mut keys);
        Log::keys("log", &mut keys);
        Tracing::keys("tracing", &mut keys);
        Reload::keys("reload", &mut keys);
        Embedded::keys("embedded", &mut keys);
        keys
    }

    /// Reads the sections, with the transforms of these names.
    pub(super) fn read(from: &dyn Values, transforms: &[String]) -> Self {
        let transform = |name: &String| Transform {
            name: name.clone(),
            ..Transform::read(from, &format!("transform.{name}"))
        };
        let mut settings = Self {
            pipeline: Pipeline::read(from, "pipeline"),
            source: Source::read(from, "source"),
            transforms: transforms.iter().map(transform).collect(),
            sink: Sink::read(from, "sink"),
            dead_letter: DeadLetter::read(from, "dead_letter"),
            orders: Orders::read(from, "orders"),
            admin: Admin::read(from, "admin"),
            health: Health::read(from, "health"),
            shutdown: Shutdown::read(from, "shutdown"),
            log: Log::read(from, "log"),
            tracing: Tracing::read(from, "tracing"),
            reload: Reload::read(from, "reload"),
            embedded: Embedded::read(from, "embedded"),
        };
        let Self {
            pipeline,
            source,
            dead_letter,
            orders,
            ..
        } = &mut settings;
        dead_letter.topic = rules::fill(&dead_letter.topic, &pipeline.name, &source.keyspace, "");
        if orders.keyspace.is_empty() {
            orders.keyspace.clone_from(&source.keyspace);
        }
        settings
    }

    /// Takes the values of those keys from another one that `takes` names, by their paths; of the transforms, of those that
    /// both have.
    pub(super) fn retune(&mut self, new: &Self, takes: &dyn Fn(&str) -> bool) {
        self.pipeline.retune("pipeline", &new.pipeline, takes);
        self.source.retune("source", &new.source, takes);
        for transform in &mut self.transforms {
            let newer = new.transforms.iter().find(|t| t.name == transform.name);
            if let Some(newer) = newer {
                let at = format!("transform.{}", transform.name);
                transform.retune(&at, newer, takes);
            }
        }
        self.sink.retune("sink", &new.sink, takes);
        self.dead_letter
            .retune("dead_letter", &new.dead_letter, takes);
        self.orders.retune("orders", &new.orders, takes);
        self.admin.retune("admin", &new.admin, takes);
        self.health.retune("health", &new.health, takes);
        self.shutdown.retune("shutdown", &new.shutdown, takes);
        self.log.retune("log", &new.log, takes);
        self.tracing.retune("tracing", &new.tracing, takes);
        self.reload.retune("reload", &new.reload, takes);
        self.embedded.retune("embedded", &new.embedded, takes);
    }

    /// The policies of a stage by its name: `source`, `transform.<name>`, `sink`, `dead_letter`, `orders`.
    pub fn policies(&self, stage: &str) -> Option<&Policies> {
        match stage {
            "source" => Some(&self.source.policies),
            "sink" => Some(&self.sink.policies),
            "dead_letter" => Some(&self.dead_letter.policies),
            "orders" => Some(&self.orders.policies),
            other => {
                let name = other.strip_prefix("transform.")?;
                self.transforms
                    .iter()
                    .find(|t| t.name == name)
                    .map(|t| &t.policies)
            }
        }
    }

    /// The most changes to hand on together: `pipeline.batch_size`, and no more than the rate limits on the way
    /// to the sink let through at once, so that what they bound does not come in bursts all the same.
    pub fn batch_size(&self) -> NonZeroU32 {
        let transforms = self.transforms.iter().map(|t| &t.policies);
        [&self.source.policies, &self.sink.policies]
            .into_iter()
            .chain(transforms)
            .filter_map(|policies| Some(policies.rate_limit?.at_once()))
            .fold(self.pipeline.batch_size, NonZeroU32::min)
    }
}

impl Tuned for Settings {
    fn policies(&self, stage: &str) -> Option<&Policies> {
        Settings::policies(self, stage)
    }
}

#[cfg(test)]
impl Settings {
    /// Settings for tests that need some: stand-ins on both ends, no transform, `policies` for every stage.
    pub(crate) fn for_tests(policies: Policies) -> Self {
        let text = "[pipeline]\nname = \"test\"\ndelivery = \"at-least-once\"\nshards = 1\nmax_in_flight = 1024\nbatch_size = 64\n\
                    [source]\nkeyspace = \"orders_ks\"\ntables = [\"outbox_messages\"]\n";
        let checks = super::Checks {
            embedded: true,
            ..super::Checks::default()
        };
        let loaded = super::parse(std::path::Path::new("test.toml"), text, checks);
        let mut settings = Self::clone(&loaded.expect("it is right").settings);
        settings.admin.listen.set_port(0);
        settings.orders.listen.set_port(0);
        settings.source.policies = policies.clone();
        settings.sink.policies = policies.clone();
        settings.dead_letter.policies = policies.clone();
        settings.orders.policies = policies;
        settings
    }
}
