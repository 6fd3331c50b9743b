//! Settings for librdkafka's clients, and where their noise goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;
use tokio::sync::Notify;

use super::classify;
use super::security::InForce;
use crate::sink::{SinkError, company};

/// Messages a producer holds at most: enough for several full requests to each broker, little enough that an
/// outage costs no memory.
pub(super) const QUEUE_MESSAGES: usize = 10_000;
/// KiB that the producers of all shards hold at most, together.
const QUEUE_KBYTES: usize = 64 * 1024;
/// … but never less than this each: a full request must fit.
const LEAST_QUEUE_KBYTES: usize = 4 * 1024;

/// Properties that the sink's guarantees rest on, and why nobody may set them.
const RESERVED: &[(&str, &str)] = &[
    ("bootstrap.servers", "set by sink.brokers"),
    ("metadata.broker.list", "set by sink.brokers"),
    (
        "enable.idempotence",
        "always on: without it a resend may repeat or reorder records",
    ),
    (
        "enable.gapless.guarantee",
        "always on: records must not overtake one that failed",
    ),
    (
        "acks",
        "always all: an acknowledgement must mean that the record is kept",
    ),
    (
        "request.required.acks",
        "always all: an acknowledgement must mean that the record is kept",
    ),
    (
        "message.timeout.ms",
        "always 0: an outage must not fail records",
    ),
    (
        "delivery.timeout.ms",
        "always 0: an outage must not fail records",
    ),
    (
        "retries",
        "always unlimited: an outage must not fail records",
    ),
    (
        "message.send.max.retries",
        "always unlimited: an outage must not fail records",
    ),
    (
        "delivery.report.only.error",
        "always off: acknowledgements are what checkpoints follow",
    ),
    ("allow.auto.create.topics", "set by sink.topics.create"),
    ("transactional.id", "set by pipeline.delivery"),
    ("group.id", "set by pipeline.name"),
    ("isolation.level", "always read_committed"),
    ("enable.auto.commit", "always off"),
    ("enable.partition.eof", "always on"),
    ("test.mock.num.brokers", "use brokers = \"embedded\""),
];

/// Why a librdkafka property cannot be set under `[sink] properties`; `None` if it can.
pub fn reserved_property(name: &str) -> Option<&'static str> {
    RESERVED
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, why)| *why)
}

/// Whether librdkafka takes these properties for a producer. Connects to nothing.
///
/// # Errors
/// What it says to the first that it does not take.
pub fn check_properties(properties: &BTreeMap<String, String>) -> Result<(), SinkError> {
    producer(&base("127.0.0.1:9092", "penstock", properties)?, 1)
        .create_native_config()
        .map_err(creation)?;
    Ok(())
}

/// What every client of the pipeline starts from.
pub(super) fn base(
    brokers: &str,
    client_id: &str,
    properties: &BTreeMap<String, String>,
) -> Result<ClientConfig, SinkError> {
    if let Some((name, why)) = properties
        .keys()
        .find_map(|k| Some((k, reserved_property(k)?)))
    {
        return Err(SinkError::Property {
            name: name.clone(),
            reason: why.to_owned(),
        });
    }
    let mut config = ClientConfig::new();
    config
        .set("client.id", client_id)
        // A client that has no connection makes one no more often than every half of this (`rd_kafka_connect_any`), and to
        // begin with it makes two: the brokers that it was told of are let go of for those that they name. With the default
        // of 100 ms that is 50 ms a client, of which a start makes three one after the other.
        .set("reconnect.backoff.ms", "20")
        // A broker that is back is noticed within half a second of its return.
        .set("reconnect.backoff.max.ms", "500")
        .set("socket.keepalive.enable", "true")
        // What it would push to brokers that ask for it (KIP-714) it keeps in histograms: 80 kB for each broker of each shard.
        .set("enable.metrics.push", "false")
        .set_log_level(RDKafkaLogLevel::Info);
    for (name, value) in properties {
        config.set(name, value);
    }
    config.set("bootstrap.servers", brokers);
    Ok(config)
}

/// What bounds the bytes of a record that a producer takes.
pub(super) const LARGEST_MESSAGE: &str = "message.max.bytes";

/// … which is so many, or librdkafka's own bound where nobody sets it.
pub(super) fn largest_message(set: Option<&str>) -> usize {
    set.and_then(|n| n.parse().ok()).unwrap_or(1_000_000)
}

/// A shard's producer.
pub(super) fn producer(base: &ClientConfig, shards: u32) -> ClientConfig {
    let mut config = base.clone();
    let kbytes = (QUEUE_KBYTES / shards.max(1) as usize).max(LEAST_QUEUE_KBYTES);
    let defaults = [
        ("queue.buffering.max.messages", &*QUEUE_MESSAGES.to_string()),
        ("queue.buffering.max.kbytes", &kbytes.to_string()),
        // What nothing can join is sent at once all the same.
        ("linger.ms", &company(shards).as_millis().to_string()),
        // As Java's producers do, so that topics written by both agree on where a key lives.
        ("partitioner", "murmur2_random"),
    ];
    for (name, value) in defaults {
        if config.get(name).is_none() {
            config.set(name, value);
        }
    }
    config
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("acks", "all")
        .set("message.timeout.ms", "0");
    config
}

/// What a dead owner's open transaction may keep readers of committed records waiting for at most, and how long an
/// outage may be that is not answered by an abort: below the group's session timeout.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes a shard's producer a transactional one. In a transaction a record that is given up on is aborted with it, and
/// made again, so it may be given up on: before the transaction itself is, and a request before the record is.
pub(super) fn transactional(mut config: ClientConfig, id: &str) -> ClientConfig {
    let ms = TRANSACTION_TIMEOUT.as_millis();
    config
        .set("transactional.id", id)
        .set("transaction.timeout.ms", ms.to_string())
        .set("message.timeout.ms", (ms - 1_000).to_string())
        .set("socket.timeout.ms", (ms - 2_000).to_string())
        .set("enable.gapless.guarantee", "false");
    config
}

/// A consumer that reads partitions from their start to their end and belongs to no group.
pub(super) fn reader(base: &ClientConfig, group: &str) -> ClientConfig {
    let mut config = base.clone();
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        .set("allow.auto.create.topics", "false")
        .set("isolation.level", "read_committed")
        // The default of 500 ms is how long an empty partition would otherwise keep a reader waiting.
        .set("fetch.wait.max.ms", "50");
    config
}

/// Turns a failure to make a client into one about the property that caused it.
pub(super) fn creation(error: KafkaError) -> SinkError {
    match error {
        KafkaError::ClientConfig(_, reason, name, _) => SinkError::Property { name, reason },
        other => SinkError::Client(other.to_string()),
    }
}

/// Sends librdkafka's log to `tracing` at debug, and remembers the last error for messages. What it says of connections
/// is a hint for [`crate::sink::rounds`]; no policy listens.
#[derive(Clone, Debug, Default)]
pub(super) struct Quiet {
    last: Arc<Mutex<Option<String>>>,
    /// Rung when a connection is lost or refused.
    hint: Option<Arc<Notify>>,
    /// Where a token comes from.
    security: InForce,
}

impl Quiet {
    /// What the client complained about last.
    pub(super) fn last_error(&self) -> Option<String> {
        self.last.lock().clone()
    }

    /// For a client that connects with this.
    pub(super) fn of(security: &InForce) -> Self {
        Self {
            security: security.clone(),
            ..Self::default()
        }
    }

    /// One that rings this when it complains about a connection.
    pub(super) fn hinting(security: &InForce, hint: Arc<Notify>) -> Self {
        Self {
            hint: Some(hint),
            ..Self::of(security)
        }
    }

    /// The token for the next connection.
    pub(super) fn token(&self) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.security.get().token()
    }

    pub(super) fn note(&self, error: &KafkaError, reason: &str) {
        tracing::debug!(target: "penstock::librdkafka", %error, reason, "client error");
        *self.last.lock() = Some(reason.to_owned());
        if let Some(hint) = &self.hint
            && classify::is_connection(error)
        {
            hint.notify_one();
        }
    }
}

pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    tracing::debug!(target: "penstock::librdkafka", ?level, facility, message, "client log");
}

impl ClientContext for Quiet {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(
        &self,
        _: Option<&str>,
    ) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.token()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.note(&error, reason);
    }
}

impl ConsumerContext for Quiet {}

/// Of producers that only ask.
impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_that_a_guarantee_rests_on_is_refused_by_name() {
        let properties = BTreeMap::from([("acks".to_owned(), "1".to_owned())]);
        let error = base("b:9092", "c", &properties).unwrap_err().to_string();
        assert!(
            error.starts_with("sink.properties: acks: always all"),
            "{error}"
        );
    }

    #[test]
    fn the_queue_is_shared_out_among_the_shards() {
        let base = base("b:9092", "c", &BTreeMap::new()).unwrap();
        let kbytes = |shards| {
            let config = producer(&base, shards);
            config.get("queue.buffering.max.kbytes").unwrap().to_owned()
        };
        assert_eq!(
            [kbytes(1), kbytes(4), kbytes(1000)],
            ["65536", "16384", "4096"]
        );
    }

    #[test]
    fn a_property_may_tune_what_no_guarantee_rests_on() {
        let properties = BTreeMap::from([("partitioner".to_owned(), "random".to_owned())]);
        let config = producer(&base("b:9092", "c", &properties).unwrap(), 1);
        assert_eq!(config.get("partitioner"), Some("random"));
        assert_eq!(config.get("message.timeout.ms"), Some("0"));
    }
}
