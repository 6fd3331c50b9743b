//! `sink.properties`: what librdkafka may be told, and what would break a guarantee.

use figment::value::Value;

use super::error::{Place, Reason};
use super::mask;
use super::raw::show_path;
use super::reading::Reading;
use super::settings::Settings;
use super::validate::{Checks, ReservedProperty};

impl Reading<'_> {
    pub(super) fn properties(&mut self, settings: &Settings, checks: Checks<'_>) {
        let before = self.problems.len();
        for (name, setting) in &settings.sink.properties {
            let path = ["sink".to_owned(), "properties".to_owned(), name.clone()];
            let place = self.property_place(&path);
            if mask::is_secret(&path[2..]) {
                let help = match name.as_str() {
                    "sasl.password" => {
                        "use sink.password_file, or PENSTOCK_SINK__PASSWORD in the environment"
                    }
                    "ssl.ca.pem" => "use sink.tls.ca_file",
                    "ssl.certificate.pem" => "use sink.tls.certificate_file",
                    "ssl.key.pem" => "use sink.tls.key_file",
                    "ssl.key.password" => "use sink.tls.key_password_file",
                    _ => "give librdkafka a file instead, such as ssl.key.location",
                };
                self.problem(
                    Reason::OpenSecret {
                        key: show_path(&path),
                    },
                    place,
                    [help.to_owned()],
                );
            } else if let Some((why, help)) = forbidden(name, setting, checks.reserved) {
                self.problem(
                    Reason::ForbiddenProperty {
                        name: name.clone(),
                        why,
                    },
                    place,
                    [help.to_owned()],
                );
            }
        }
        self.transaction_timeout(settings);
        if self.problems.len() == before
            && self.ok(&["sink.properties"])
            && let Err(error) = (checks.properties)(&settings.sink.properties)
        {
            let help =
                "see https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md"
                    .to_owned();
            self.problem(
                Reason::PropertiesRejected { error },
                self.place("sink.properties"),
                [help],
            );
        }
    }

    pub(super) fn property_place(&self, path: &[String]) -> Place {
        let value = path.iter().try_fold(None, |at: Option<&Value>, step| {
            let dict = at.map_or(Some(&self.raw.root), Value::as_dict)?;
            dict.get(step).map(Some)
        });
        match value.flatten() {
            Some(value) => self.raw.key_place(value, path),
            None => self.place("sink.properties"),
        }
    }

    /// Below it a dead owner's transaction blocks `read_committed` readers for longer than the group takes
    /// to replace the owner (KIP-98).
    fn transaction_timeout(&mut self, settings: &Settings) {
        /// librdkafka's default.
        const SESSION_MS: u64 = 45_000;
        let properties = &settings.sink.properties;
        let number = |name: &str| properties.get(name).and_then(|v| v.parse::<u64>().ok());
        let session = number("session.timeout.ms").unwrap_or(SESSION_MS);
        if let Some(transaction) = number("transaction.timeout.ms").filter(|t| *t >= session) {
            let path = ["sink", "properties", "transaction.timeout.ms"].map(str::to_owned);
            let reason = Reason::TransactionTimeout {
                transaction,
                session,
            };
            let help = "lower transaction.timeout.ms; 15000 to 30000 does".to_owned();
            self.problem(reason, self.property_place(&path), [help]);
        }
    }
}

/// What stands for librdkafka's own names of how to connect.
fn secured(name: &str) -> Option<&'static str> {
    Some(match name {
        "security.protocol" => {
            "set sink.tls.enabled = true for SSL and SASL_SSL, and sink.sasl = \"SCRAM-SHA-512\" (or another mechanism) for \
             SASL_PLAINTEXT and SASL_SSL"
        }
        "sasl.mechanism" | "sasl.mechanisms" => "use sink.sasl",
        "sasl.username" => "use sink.username",
        "ssl.ca.location" => "use sink.tls.ca_file, and sink.tls.enabled = true",
        "ssl.certificate.location" => "use sink.tls.certificate_file",
        "ssl.key.location" => "use sink.tls.key_file",
        "ssl.keystore.location" => {
            "use sink.tls.certificate_file and sink.tls.key_file: `openssl pkcs12 -nodes` makes both of it"
        }
        "enable.ssl.certificate.verification" => {
            "leave it out: name the authority in sink.tls.ca_file, or set sink.tls.verify_hostname = false"
        }
        "ssl.endpoint.identification.algorithm" => "use sink.tls.verify_hostname",
        "sasl.oauthbearer.config" | "sasl.oauthbearer.method" => "use sink.token_file",
        "enable.sasl.oauthbearer.unsecure.jwt" => {
            "leave it out: sink.token_file may hold a token that nobody signed"
        }
        _ => return None,
    })
}

/// Why librdkafka's property must not be set so, and what to do instead.
fn forbidden(
    name: &str,
    setting: &str,
    reserved: ReservedProperty<'_>,
) -> Option<(&'static str, &'static str)> {
    const LEAVE: &str = "leave it out";
    Some(match name {
        name if let Some(help) = secured(name) => (
            "how the sink connects would be said in two places, and what is rotated would not be read again",
            help,
        ),
        "bootstrap.servers" | "metadata.broker.list" => (
            "the brokers would be named in two places",
            "use sink.brokers",
        ),
        "enable.idempotence" if setting != "true" => (
            "without idempotence a resend repeats or reorders records",
            LEAVE,
        ),
        "acks" | "request.required.acks" if !matches!(setting, "all" | "-1") => (
            "a record acknowledged by fewer than all in-sync replicas can be lost",
            LEAVE,
        ),
        "transactional.id" => (
            "it is made from pipeline.name and the shard, which is what fences a zombie",
            LEAVE,
        ),
        "max.in.flight" | "max.in.flight.requests.per.connection"
            if setting
                .parse::<u64>()
                .map_or(true, |n| !(1..=5).contains(&n)) =>
        {
            (
                "an idempotent producer keeps order for 1 to 5 requests in flight",
                "set it to 5 at most",
            )
        }
        "message.timeout.ms" | "delivery.timeout.ms" => (
            "librdkafka would give up on records; an outage must cost none",
            "use sink.attempt_timeout",
        ),
        "message.send.max.retries" | "retries" => (
            "librdkafka would give up on records; an outage must cost none",
            LEAVE,
        ),
        "delivery.report.only.error" | "dr_cb" | "dr_msg_cb" => {
            ("without delivery reports no checkpoint may move", LEAVE)
        }
        "partitioner" if setting == "random" => (
            "the records of one key would lose their order",
            "use one that looks at the key",
        ),
        "group.id" | "group.instance.id" => (
            "it is made from pipeline.name, and is how instances share the shards",
            LEAVE,
        ),
        "enable.auto.commit" | "enable.auto.offset.store" | "isolation.level" => (
            "checkpoints are committed by penstock, and read as committed",
            LEAVE,
        ),
        "plugin.library.paths" => ("it would load foreign code into the process", LEAVE),
        _ if name.starts_with("test.mock.") => (
            "records would go to brokers that are not there",
            "use sink.brokers = \"embedded\"",
        ),
        _ if name.ends_with("_cb")
            || matches!(name, "opaque" | "interceptors" | "default_topic_conf") =>
        {
            ("it is a pointer of the program, not a setting", LEAVE)
        }
        _ => return reserved(name).map(|why| (why, LEAVE)),
    })
}
