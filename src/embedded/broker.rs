//! The stand-in for Redpanda.
//!
//! It is librdkafka's own mock cluster, which is in the binary anyway: one broker on loopback, in memory, that
//! Kafka clients speak to over a socket. It was chosen over `noida-db` 0.2.3 (feature `kafka`), the other
//! in-process broker that real clients can use; both were tried with the Debian `kcat` 1.7 and with rdkafka
//! 0.39 in release builds, on 2 busy cores:
//!
//! | | mock cluster | `noida-db` |
//! |---|---|---|
//! | cost in the build | none: part of librdkafka | 2.5 min of CPU more, with its dependencies |
//! | kcat: produce, consume, list, headers, none/lz4/zstd/snappy/gzip | yes | yes |
//! | rdkafka, idempotent, 400 B with a header | 108k/s | 73k/s |
//! | an idle consumer at the end | waits (long poll) | is answered at once: 20 % of a core each |
//! | reading a topic of 128 MB | what is kept fits | no: a fetch returns all there is, past the client's 100 MB |
//! | memory after 4 M records (1.7 GB) with bounded topics | bounded: 5 MiB a partition | 730 MiB |
//! | keeps | the newest 5 MiB a partition | everything, or by `retention.bytes` |
//! | compaction, CreateTopics, DeleteRecords, topic settings | no: topics come by use, with 4 partitions | yes |
//! | consumer groups | a first member; one that joins again may wait for the session to time out | yes |
//! | transactions | no abort filtering, no fencing | aborted records hidden, zombies fenced |
//!
//! (Rates are with one header a record; the cores had other work, so they compare and do not measure.)
//!
//! A process that people leave running must be bounded and idle when nothing happens, and the first build is
//! what a newcomer waits for: hence the mock here, and `noida-db` in the tests, which need a broker that keeps
//! everything. Exactly-once on the stand-in needs another one; nothing outside of this file would notice.
//!
//! What was kept is gone with the process; records beyond 5 MiB a partition are gone before. So is a
//! checkpoint of a group that has not moved for that long, which the pipeline only reads when it starts: with
//! the stand-in, that is together with an empty log.

use std::time::Duration;

pub use crate::sink::redpanda::StandInError as BrokerError;

use crate::config::settings::Embedded;
use crate::sink::redpanda::StandIn;

/// A broker in this process, on a free port of loopback.
pub struct Broker {
    inner: StandIn,
    bootstrap: String,
}

impl Broker {
    /// Starts it; it takes connections at once.
    pub async fn start(_settings: &Embedded) -> Result<Self, BrokerError> {
        let inner = StandIn::start()?;
        let bootstrap = inner.bootstrap();
        Ok(Self { inner, bootstrap })
    }

    /// `host:port`
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Closes every connection and takes no more, as if the broker were gone; records stay.
    pub fn down(&self) -> Result<(), BrokerError> {
        self.inner.down()
    }

    /// Comes back from [`Self::down`].
    pub fn up(&self) -> Result<(), BrokerError> {
        self.inner.up()
    }

    /// Answers every request this much later.
    pub fn slow(&self, by: Duration) -> Result<(), BrokerError> {
        self.inner.slow(by)
    }

    /// Stops it; all that it holds is gone.
    pub fn shutdown(self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_listens_goes_away_and_comes_back() {
        let settings = Embedded {
            scylla_listen: ([127, 0, 0, 1], 0).into(),
            vnodes: std::num::NonZeroU32::MIN,
            shards_per_vnode: std::num::NonZeroU32::MIN,
        };
        let broker = Broker::start(&settings).await.unwrap();
        let address = broker.bootstrap().to_owned();
        let listens = || std::net::TcpStream::connect(&address).is_ok();
        // The mock's own thread acts on a command shortly after it is given.
        let becomes = async |wanted: bool| {
            for _ in 0..500 {
                if listens() == wanted {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            false
        };
        assert!(becomes(true).await);
        broker.down().unwrap();
        assert!(becomes(false).await);
        broker.up().unwrap();
        assert!(becomes(true).await);
        broker.shutdown();
        assert!(becomes(false).await);
    }
}
