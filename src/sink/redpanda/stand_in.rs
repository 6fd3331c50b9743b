//! librdkafka's mock cluster, for [`crate::embedded::broker`].

use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

/// The mock cluster refused.
#[derive(Debug, thiserror::Error)]
#[error("the embedded Redpanda: {0}")]
pub struct StandInError(String);

impl From<KafkaError> for StandInError {
    fn from(error: KafkaError) -> Self {
        Self(error.to_string())
    }
}

/// The only broker of the cluster.
const BROKER: i32 = 1;

/// A mock cluster of one broker.
pub struct StandIn(MockCluster<'static, DefaultProducerContext>);

impl StandIn {
    /// Starts it.
    pub fn start() -> Result<Self, StandInError> {
        Ok(Self(MockCluster::new(BROKER)?))
    }

    /// `host:port`
    pub fn bootstrap(&self) -> String {
        self.0.bootstrap_servers()
    }

    /// Closes its connections and its port.
    pub fn down(&self) -> Result<(), StandInError> {
        Ok(self.0.broker_down(BROKER)?)
    }

    /// Opens its port again.
    pub fn up(&self) -> Result<(), StandInError> {
        Ok(self.0.broker_up(BROKER)?)
    }

    /// Delays its answers.
    pub fn slow(&self, by: Duration) -> Result<(), StandInError> {
        Ok(self.0.broker_round_trip_time(BROKER, by)?)
    }
}
