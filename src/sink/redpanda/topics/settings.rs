//! A topic's own settings: asked for, held against what its records need, and mended where that is allowed.

use std::time::Duration;

use rdkafka::admin::{AlterConfig, ConfigResource, ConfigSource, ResourceSpecifier};

use super::{REQUEST, Refusal, Topics, options, refusal};

/// What a topic's settings are is good to know, and no more than that: asking takes no longer.
const DESCRIBE: Duration = Duration::from_secs(2);

/// How a topic of ours has to be set.
pub(in crate::sink::redpanda) struct Wanted {
    /// The property.
    pub(in crate::sink::redpanda) name: &'static str,
    /// What it is set to if it may be.
    pub(in crate::sink::redpanda) value: &'static str,
    /// What would do as well.
    pub(in crate::sink::redpanda) fits: fn(&str) -> bool,
    /// What comes of something else.
    pub(in crate::sink::redpanda) otherwise: &'static str,
}

impl Topics {
    /// The topic's settings; `None`: the brokers do not say.
    pub(in crate::sink::redpanda) async fn describe(
        &self,
        topic: &str,
        within: Duration,
    ) -> Option<ConfigResource> {
        if self.makes_by_asking() {
            return None;
        }
        let options = options(within.min(DESCRIBE));
        let asked = [ResourceSpecifier::Topic(topic)];
        match self.admin().describe_configs(asked.iter(), &options).await {
            Ok(found) => match found.into_iter().next()? {
                Ok(found) => Some(found),
                Err(code) => {
                    tracing::debug!(topic, %code, "the topic's settings cannot be looked at");
                    None
                }
            },
            Err(error) => {
                tracing::debug!(topic, %error, "the topic's settings cannot be looked at");
                None
            }
        }
    }

    /// Whether a topic of ours is set as its records need it: mends what may be mended.
    ///
    /// Asks the brokers each time.
    pub(in crate::sink::redpanda) async fn check(
        &self,
        topic: &str,
        wanted: &[Wanted],
        may_mend: bool,
    ) -> Result<(), Refusal> {
        match self.describe(topic, DESCRIBE).await {
            Some(found) => self.mend(topic, &found, wanted, may_mend).await,
            None => Ok(()),
        }
    }

    /// … as it was found.
    pub(in crate::sink::redpanda) async fn mend(
        &self,
        topic: &str,
        found: &ConfigResource,
        wanted: &[Wanted],
        may_mend: bool,
    ) -> Result<(), Refusal> {
        let is = |name: &str| found.get(name).and_then(|e| e.value.as_deref());
        let wrong: Vec<_> = wanted
            .iter()
            .filter(|wanted| is(wanted.name).is_some_and(|is| !(wanted.fits)(is)))
            .collect();
        if wrong.is_empty() {
            return Ok(());
        }
        let told: Vec<String> = wrong
            .iter()
            .map(
                |Wanted {
                     name,
                     value,
                     otherwise,
                     ..
                 }| {
                    format!(
                        "{name} is {:?}, {otherwise}: set it to {value:?}",
                        is(name).unwrap_or_default()
                    )
                },
            )
            .collect();
        let told = told.join("; ");
        if !may_mend {
            return Err(Refusal::Help(told));
        }
        // The request replaces all that is set on the topic, so what was set stays part of it.
        let mut alter = AlterConfig::new(ResourceSpecifier::Topic(topic));
        for entry in &found.entries {
            let ours = wrong.iter().any(|wanted| wanted.name == entry.name);
            if entry.source == ConfigSource::DynamicTopic
                && !ours
                && let Some(value) = &entry.value
            {
                alter = alter.set(&entry.name, value);
            }
        }
        for wanted in &wrong {
            alter = alter.set(wanted.name, wanted.value);
        }
        let altered = self
            .admin()
            .alter_configs([&alter], &options(REQUEST))
            .await;
        let code = match altered {
            Ok(results) => results
                .into_iter()
                .next()
                .and_then(|r| r.err().map(|(_, code)| code)),
            Err(error) => return Err(refusal(topic, &error)),
        };
        match code {
            None => {
                tracing::warn!(topic, was = told, "the topic's settings are mended");
                Ok(())
            }
            Some(code) => Err(Refusal::Help(format!("{told} (setting it failed: {code})"))),
        }
    }
}

pub(in crate::sink::redpanda) fn number(found: &ConfigResource, name: &str) -> Option<usize> {
    found.get(name)?.value.as_deref()?.parse().ok()
}
