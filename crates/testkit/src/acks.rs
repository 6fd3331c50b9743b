//! Counts acknowledgements, as cheaply as a bare loop can.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rdkafka::ClientContext;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;

/// How many records were acknowledged.
#[derive(Default)]
pub struct Acks(AtomicU64);

impl Acks {
    pub fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl ClientContext for Acks {}

impl ProducerContext for Acks {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        assert!(result.is_ok());
        self.0.fetch_add(1, Relaxed);
    }
}
