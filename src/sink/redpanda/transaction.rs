//! The transaction calls of a shard's producer. librdkafka blocks in them, so each runs off the runtime's threads.
//!
//! An unlimited timeout means to librdkafka *what is left of the transaction's own* (`rdkafka.h`: any other may leave
//! it and the coordinator with different views), so a call that nobody waits for any more ends with the transaction.
//! Whoever is tired of waiting destroys the producer and makes another: `init_transactions` then fences whatever was
//! still on its way, and the checkpoint topic says whether a commit happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::polling::Polled;
use super::producer::{Producer, Reports};
use super::raw::Objection;
use super::{classify, native};
use crate::policy::Class;
use crate::sink::SinkError;

/// librdkafka's threads have seen by then that there is haste. Not for longer: while a request of a partition is under way,
/// they look without a pause for what is to be sent in haste.
const HASTE: Duration = Duration::from_millis(20);
const HASTEN_AGAIN: Duration = Duration::from_millis(250);

/// Has a producer connect to a broker that the cluster names, so that it has its id, or finds its coordinator, at once.
///
/// Each answer about topics makes librdkafka look for them (`rd_kafka_idemp_pid_fsm`); otherwise it does so every 500 ms.
/// But the first answer comes from a broker that was configured, of whom it lets go by that very answer
/// (`rd_kafka_metadata_decommission_unavailable_brokers`), and to those that are named in it nobody is connected yet: it
/// finds no broker, and begins the 500 ms anew. The second answer comes from one that stays.
fn connect(
    producer: &Polled<Reports>,
    topic: &str,
    within: Duration,
    is_connected: &AtomicBool,
) -> Result<(), KafkaError> {
    let until = Instant::now() + within;
    if !is_connected.load(Relaxed) {
        producer.client().fetch_metadata(Some(topic), within)?;
    }
    let rest = until.saturating_duration_since(Instant::now());
    producer.client().fetch_metadata(Some(topic), rest)?;
    is_connected.store(true, Relaxed);
    Ok(())
}

fn failed(shard: u32, what: &'static str, objection: Objection) -> SinkError {
    let Objection {
        error,
        text: reason,
    } = objection;
    if classify::refused(&error) {
        return SinkError::Forbidden {
            shard,
            what,
            reason,
        };
    }
    SinkError::Transaction {
        shard,
        what,
        reason,
        // A state that does not fit is this producer's, which is given up anyway.
        class: match classify::class(&error) {
            Class::Poison => Class::Retryable,
            class => class,
        },
    }
}

impl Producer {
    /// Takes the shard's transactional id: fences whoever had it, and aborts what that left open. Connects first.
    pub(super) async fn take_over(
        &self,
        shard: u32,
        topic: &str,
        within: Duration,
    ) -> Result<(), SinkError> {
        let topic = topic.to_owned();
        let is_connected = Arc::clone(&self.is_connected);
        self.call(shard, "taken over", move |producer| {
            connect(producer, &topic, within, &is_connected)?;
            producer.init_transactions(within)
        })
        .await
    }

    /// Asks where the topic is, by which the producer connects to a broker that the cluster names.
    pub(super) async fn find(&self, topic: String, within: Duration) -> Result<(), SinkError> {
        let producer = self.client()?.clone();
        let is_connected = Arc::clone(&self.is_connected);
        let found =
            super::blocking(move || connect(&producer, &topic, within, &is_connected)).await;
        match found {
            Some(found) => found.map_err(|e| SinkError::Client(e.to_string())),
            None => Err(SinkError::Reset),
        }
    }

    /// Has what was handed over sent at once, without `linger.ms`: nothing is coming that could join it.
    pub(super) fn hasten(&self) -> BoxFuture<'static, ()> {
        match self.client().cloned() {
            Ok(producer) => super::blocking(move || native::hasten(producer.client(), HASTE))
                .map(|_| ())
                .boxed(),
            Err(_) => futures::future::ready(()).boxed(),
        }
    }

    /// Waits for records that nothing can join: has them sent at once, and again for as long as they are not reported on,
    /// for the threads that are to send them may miss that on a busy machine.
    pub(super) async fn in_haste<T>(&self, reported: impl Future<Output = T>) -> T {
        let mut reported = std::pin::pin!(reported);
        loop {
            let reported = tokio::time::timeout(HASTEN_AGAIN, &mut reported);
            if let (Ok(reported), ()) = tokio::join!(reported, self.hasten()) {
                return reported;
            }
        }
    }

    /// Begins a transaction; asks nobody.
    pub(super) fn begin(&self, shard: u32) -> Result<(), SinkError> {
        self.client()?
            .begin_transaction()
            .map_err(|objection| failed(shard, "begun", objection))
    }

    /// Why the transaction that is begun can only be aborted; asks nobody. To begin another is refused with that.
    pub(super) fn broken_by(&self) -> Option<KafkaError> {
        // Its words have a time in them, and are others each time.
        match self.client().ok()?.begin_transaction().err()?.error {
            KafkaError::Global(code) => Some(KafkaError::MessageProduction(code)),
            error => Some(error),
        }
    }

    /// Commits what was sent and reported on since [`Self::begin`].
    pub(super) async fn commit(&self, shard: u32) -> Result<(), SinkError> {
        self.call(shard, "committed", |producer| producer.commit_transaction())
            .await
            .inspect(|()| self.traffic().counters().committed())
    }

    /// Aborts what was sent since [`Self::begin`], and takes back what is still queued.
    pub(super) async fn abort(&self, shard: u32) -> Result<(), SinkError> {
        self.call(shard, "aborted", |producer| producer.abort_transaction())
            .await
            .inspect(|()| self.traffic().counters().aborted())
    }

    /// Whether another producer has taken the transactional id, or the broker has ended the transaction itself.
    pub(super) fn is_fenced(&self) -> bool {
        let fatal = self.client().ok().and_then(|p| p.client().fatal_error());
        fatal.is_some_and(|(code, _)| {
            matches!(
                code,
                Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch
            )
        })
    }

    async fn call(
        &self,
        shard: u32,
        what: &'static str,
        call: impl FnOnce(&Polled<Reports>) -> Result<(), Objection> + Send + 'static,
    ) -> Result<(), SinkError> {
        let producer = self.client()?.clone();
        match super::blocking(move || call(&producer)).await {
            Some(done) => done.map_err(|objection| failed(shard, what, objection)),
            None => Err(SinkError::Reset),
        }
    }
}
