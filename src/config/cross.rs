//! Checks across keys, and those that need what other modules know.

use std::time::Duration;

use penstock_conditions::Condition;

use super::error::{Place, Reason};
use super::key::Leaf;
use super::reading::{Reading, stage_of};
use super::section::Values;
use super::settings::*;
use super::validate::Checks;
use super::walk::nearest;
use super::{key, keys, raw, rules};
use crate::tls::Part;
use crate::topic;

impl Reading<'_> {
    pub(super) fn cross(&mut self, settings: &Settings, checks: Checks<'_>) {
        if !checks.embedded {
            for (key, nodes) in [
                ("source.nodes", &settings.source.nodes),
                ("sink.brokers", &settings.sink.brokers),
            ] {
                if *nodes == Nodes::Embedded && self.ok(&[key]) {
                    let reason = Reason::NotEmbedded {
                        key: key.to_owned(),
                    };
                    let help =
                        "name the real ones, or build with the feature `embedded`".to_owned();
                    self.problem(reason, self.place(key), [help]);
                }
            }
        }
        self.topics(settings);
        self.compaction(settings);
        self.orders();
        self.credentials(settings);
        self.logins(settings);
        self.tls("source", &settings.source.tls);
        self.tls("sink", &settings.sink.tls);
        self.properties(settings, checks);
        self.addresses(settings);
        self.location(settings);
        self.collector(settings);
        self.stages(settings);
        self.tables_of_transforms(settings);
        self.conditions(settings);
        self.plugins(settings, checks);
    }

    fn topics(&mut self, settings: &Settings) {
        let used = [
            "sink.topic",
            "dead_letter.topic",
            "pipeline.name",
            "source.keyspace",
            "source.tables",
        ];
        if !self.ok(&used) || self.raw.broken {
            return;
        }
        let Settings {
            pipeline,
            source,
            sink,
            dead_letter,
            ..
        } = settings;
        if rules::topic_name(&dead_letter.topic).is_err() {
            self.illegal_topic("dead_letter.topic", dead_letter.topic.clone());
        }
        let mut taken = vec![(
            crate::topic::of_checkpoints(&pipeline.name),
            "the topic of the checkpoints".to_owned(),
        )];
        for table in &source.tables {
            let topic = rules::fill(&sink.topic, &pipeline.name, &source.keyspace, table);
            if rules::topic_name(&topic).is_err() {
                self.illegal_topic("sink.topic", topic.clone());
            }
            taken.push((topic, format!("`sink.topic` for the table {table}")));
        }
        if let Some((topic, what)) = taken
            .into_iter()
            .find(|(topic, _)| *topic == dead_letter.topic)
        {
            let place = match self.place("dead_letter.topic") {
                Place::Nowhere => self.place("sink.topic"),
                place => place,
            };
            let help =
                "give dead letters a topic of their own, such as \"{pipeline}.dead-letters\""
                    .to_owned();
            self.problem(Reason::DeadLetterTopic { topic, what }, place, [help]);
        }
    }

    /// Compaction keeps one record a key: of a partition with many rows, one row. With transforms the keys are
    /// theirs, and what they leave is warned of when the settings are put in force.
    fn compaction(&mut self, settings: &Settings) {
        if settings.sink.loses_rows() && settings.transforms.is_empty() && self.ok(&["sink.key"]) {
            let path = ["sink", "topics", "properties", "cleanup.policy"].map(str::to_owned);
            let place = self.property_place(&path);
            let help = "write sink.key = \"primary-key\", or leave out cleanup.policy".to_owned();
            self.problem(Reason::CompactedPartitions, place, [help]);
        }
    }

    fn illegal_topic(&mut self, key: &str, topic: String) {
        let help = format!("expected {}", topic::RULE);
        let key = key.to_owned();
        self.problem(
            Reason::IllegalTopic {
                topic,
                key: key.clone(),
            },
            self.place(&key),
            [help],
        );
    }

    fn orders(&mut self) {
        let float = |c: &Self, key: &str| c.get::<f64>(key).to_string();
        let duration =
            |c: &Self, key: &str| humantime::format_duration(c.get::<Duration>(key)).to_string();
        if self.get::<f64>("health.headroom_unhealthy")
            > self.get::<f64>("health.headroom_degraded")
        {
            self.order(
                "health.headroom_unhealthy",
                "health.headroom_degraded",
                float,
            );
        }
        let stages = keys::STAGES
            .iter()
            .filter(|s| !s.ends_with('*'))
            .map(|s| (*s).to_owned());
        let transforms = self.raw.transforms.iter().map(|n| stage_of(n));
        let all: Vec<String> = ["policies".to_owned()]
            .into_iter()
            .chain(stages)
            .chain(transforms)
            .collect();
        for stage in all {
            let (initial, max) = (
                format!("{stage}.retry.initial"),
                format!("{stage}.retry.max"),
            );
            let set = stage == "policies"
                || self.leaves.contains_key(&initial)
                || self.leaves.contains_key(&max);
            if set && self.get::<Duration>(&initial) > self.get::<Duration>(&max) {
                self.order(&initial, &max, duration);
            }
        }
    }

    fn order(&mut self, low: &str, high: &str, show: fn(&Self, &str) -> String) {
        if !self.ok(&[low, high]) {
            return;
        }
        let place = match self.place(low) {
            Place::Nowhere => self.place(high),
            place => place,
        };
        let reason = Reason::Order {
            low: low.to_owned(),
            low_value: show(self, low),
            high: high.to_owned(),
            high_value: show(self, high),
        };
        self.problem(
            reason,
            place,
            ["lower the one or raise the other".to_owned()],
        );
    }

    fn credentials(&mut self, settings: &Settings) {
        let both = [
            (
                "source",
                &settings.source.username,
                &settings.source.password,
            ),
            ("sink", &settings.sink.username, &settings.sink.password),
        ];
        for (section, username, password) in both {
            let user = format!("{section}.username");
            let word = format!("{section}.password");
            let file = format!("{word}_file");
            // A password that was refused is not a password that is missing.
            let set = [&word, &file]
                .into_iter()
                .find(|k| self.leaves.contains_key(*k) || self.failed.contains(*k));
            if !self.ok(&[&user]) {
                continue;
            }
            if username.is_some() && password.is_none() && set.is_none() {
                let variable = raw::PREFIX.to_owned() + &word.replace('.', "__").to_uppercase();
                let help = format!("set {variable} in the environment, or {file}");
                let place = self.place(&user);
                self.problem(
                    Reason::Half {
                        key: user,
                        other: word,
                    },
                    place,
                    [help],
                );
            } else if let (None, Some(key)) = (username, set) {
                let key = key.clone();
                let place = self.place(&key);
                self.problem(
                    Reason::Half {
                        key,
                        other: user.clone(),
                    },
                    place,
                    [format!("set {user}")],
                );
            }
        }
    }

    /// `sink.sasl` and what it takes.
    fn logins(&mut self, settings: &Settings) {
        let sink = &settings.sink;
        if !self.ok(&["sink.sasl", "sink.username"]) {
            return;
        }
        let token = ["sink.token", "sink.token_file"]
            .into_iter()
            .find(|k| self.leaves.contains_key(*k) || self.failed.contains(*k));
        let bearer = sink.sasl == Some(SaslMechanism::OauthBearer);
        let mut half = |key: &str, other: &str, help: &str| {
            let reason = Reason::Half {
                key: key.to_owned(),
                other: other.to_owned(),
            };
            self.problem(reason, self.place(key), [help.to_owned()]);
        };
        match sink.sasl {
            Some(_) if bearer && token.is_none() => half(
                "sink.sasl",
                "sink.token",
                "set sink.token_file, or PENSTOCK_SINK__TOKEN in the environment",
            ),
            Some(_) if !bearer && sink.username.is_none() => {
                half("sink.sasl", "sink.username", "set sink.username")
            }
            None if sink.username.is_some() => half(
                "sink.username",
                "sink.sasl",
                "set sink.sasl = \"SCRAM-SHA-512\", or the mechanism that the brokers offer",
            ),
            _ => {}
        }
        if !bearer && let Some(key) = token {
            half(
                key,
                "sink.sasl",
                "set sink.sasl = \"OAUTHBEARER\", or leave it out",
            );
        }
    }

    /// Whether what TLS is to be spoken with fits together.
    fn tls(&mut self, stage: &str, tls: &Tls) {
        let key = |name: &str| format!("{stage}.tls.{name}");
        let files = ["ca_file", "certificate_file", "key_file"].map(key);
        let password = ["key_password", "key_password_file"].map(key);
        let all: Vec<&String> = files.iter().chain(&password).collect();
        if !self.ok(&all.iter().map(|k| k.as_str()).collect::<Vec<_>>()) {
            return;
        }
        let first = all.iter().find(|k| self.leaves.contains_key(**k));
        let mut half = |key: &str, other: &str| {
            let reason = Reason::Half {
                key: key.to_owned(),
                other: other.to_owned(),
            };
            let help = match other.strip_suffix(".enabled") {
                Some(_) => format!("set {other} = true"),
                None => format!("set {other}"),
            };
            self.problem(reason, self.place(key), [help]);
        };
        let [_, certificate, secret] = &files;
        if !tls.enabled {
            if let Some(first) = first {
                half(first, &key("enabled"));
            }
            return;
        }
        match (&tls.certificate_file, &tls.key_file) {
            (Some(_), None) => return half(certificate, secret),
            (None, Some(_)) => return half(secret, certificate),
            _ => {}
        }
        let Some(unsound) = tls.trust().and_then(|trust| trust.check().err()) else {
            return;
        };
        let [authorities, ..] = &files;
        let at = match unsound.part {
            Part::Authorities => authorities,
            Part::Certificate => certificate,
            Part::Key => secret,
        };
        let path = Values::path(self, at);
        let reason = Reason::SecretFile {
            key: at.clone(),
            path: path.map_or_else(String::new, |p| p.display().to_string()),
            error: unsound.reason,
        };
        let help = match unsound.part {
            Part::Authorities => "expected the authority's certificate, as PEM",
            Part::Certificate => "expected a certificate that is valid now, as PEM",
            Part::Key => {
                "expected the certificate's private key, as PEM, with key_password_file where it is encrypted"
            }
        };
        self.problem(reason, self.place(at), [help.to_owned()]);
    }

    /// The headers for the collector of traces; they are never shown.
    fn collector(&mut self, settings: &Settings) {
        let Some(secret) = &settings.tracing.secret_headers else {
            return;
        };
        let Some(number) = rules::header_pairs(secret.expose()).find_map(Result::err) else {
            return;
        };
        let keys = ["tracing.secret_headers", "tracing.secret_headers_file"];
        let key = keys.into_iter().find(|k| self.leaves.contains_key(*k));
        let key = key.unwrap_or(keys[0]);
        let reason = Reason::Malformed {
            key: key.to_owned(),
            found: format!("a list whose header {number} is not name=value"),
        };
        let help = "expected name=value, separated by commas or lines".to_owned();
        self.problem(reason, self.place(key), [help]);
    }

    /// A rack is a data centre's.
    fn location(&mut self, settings: &Settings) {
        if settings.source.rack.is_some()
            && settings.source.datacenter.is_none()
            && self.ok(&["source.datacenter"])
        {
            let reason = Reason::Half {
                key: "source.rack".to_owned(),
                other: "source.datacenter".to_owned(),
            };
            let help = "set source.datacenter".to_owned();
            self.problem(reason, self.place("source.rack"), [help]);
        }
    }

    fn addresses(&mut self, settings: &Settings) {
        let Settings { admin, orders, .. } = settings;
        let token = ["admin.token", "admin.token_file"];
        let tokenless = !token
            .iter()
            .any(|k| self.leaves.contains_key(*k) || self.failed.contains(*k));
        if admin.enabled && !admin.listen.ip().is_loopback() && tokenless {
            let reason = Reason::ExposedAdmin {
                listen: admin.listen.to_string(),
            };
            let help =
                "listen on 127.0.0.1, or set admin.token_file or PENSTOCK_ADMIN__TOKEN".to_owned();
            self.problem(reason, self.place("admin.listen"), [help]);
        }
        let same = admin.listen == orders.listen && admin.listen.port() != 0;
        if admin.enabled && orders.enabled && same {
            let reason = Reason::Duplicate {
                key: "orders.listen".to_owned(),
                found: orders.listen.to_string(),
                first: "admin.listen".to_owned(),
            };
            let help = "give each a port of its own".to_owned();
            let place = match self.place("orders.listen") {
                Place::Nowhere => self.place("admin.listen"),
                place => place,
            };
            self.problem(reason, place, [help]);
        }
    }

    fn stages(&mut self, settings: &Settings) {
        if self.raw.broken || !self.ok(&["health.critical"]) {
            return;
        }
        for stage in &settings.health.critical {
            if settings.policies(stage).is_some() {
                continue;
            }
            let transforms = settings
                .transforms
                .iter()
                .map(|t| format!("transform.{}", t.name));
            let fixed = keys::STAGES
                .iter()
                .filter(|s| !s.ends_with('*'))
                .map(|s| (*s).to_owned());
            let known: Vec<String> = fixed.chain(transforms).collect();
            let names: Vec<&str> = known.iter().map(String::as_str).collect();
            let help = format!("expected {}", key::one_of(&names));
            let reason = Reason::UnknownStage {
                key: "health.critical".to_owned(),
                stage: stage.clone(),
            };
            self.problem(reason, self.place("health.critical"), [help]);
        }
    }

    /// A transform of a table that nobody reads would wait for ever, mostly for a typing error.
    fn tables_of_transforms(&mut self, settings: &Settings) {
        if self.raw.broken || !self.ok(&["source.tables"]) {
            return;
        }
        for transform in &settings.transforms {
            let key = format!("{}.tables", stage_of(&transform.name));
            let read = &settings.source.tables;
            for table in transform
                .tables
                .iter()
                .flatten()
                .filter(|t| !read.contains(t))
            {
                let names = read.iter().map(String::as_str);
                let help = match nearest(table, names.clone()) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => format!(
                        "`source.tables` has {}",
                        key::one_of(&names.collect::<Vec<_>>())
                    ),
                };
                let reason = Reason::UnknownChoice {
                    key: key.clone(),
                    found: format!("{table:?}"),
                };
                self.problem(reason, self.place(&key), [help]);
            }
        }
    }

    fn conditions(&mut self, settings: &Settings) {
        for transform in &settings.transforms {
            let key = format!("{}.when", stage_of(&transform.name));
            let Some(Leaf::Text(text)) = self.leaves.get(&key).map(|got| got.leaf.clone()) else {
                continue;
            };
            if let Err(error) = Condition::compile(&text) {
                let place = self.place(&key).within(error.at);
                let found = format!("{text:?}");
                self.problem(Reason::Malformed { key, found }, place, [error.what]);
            }
        }
    }
}
