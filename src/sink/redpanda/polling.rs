//! A producer whose reports are fetched by a thread that sleeps until there are some.
//!
//! The bindings' own (`ThreadedProducer`, 0.39) waits in whole milliseconds for what is left of 100, and asks without a pause
//! for the rest of the last: a hundredth of a processor for each producer, idle or not.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};

use super::native::Events;
use crate::sink::SinkError;

/// The thread looks this often although it was not woken.
const LOOK: Duration = Duration::from_millis(250);

/// A producer and its thread, which ends with the last of these.
pub(super) struct Polled<C: ProducerContext + 'static>(Arc<Running<C>>);

struct Running<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    /// Wake the thread. Gone before it is.
    events: Option<Events>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<C: ProducerContext + 'static> Polled<C> {
    pub(super) fn new(producer: BaseProducer<C>) -> Result<Self, SinkError> {
        let producer = Arc::new(producer);
        let is_over = Arc::<AtomicBool>::default();
        let thread = thread::Builder::new()
            .name("reports".into())
            .spawn({
                let (producer, is_over) = (Arc::clone(&producer), Arc::clone(&is_over));
                move || {
                    let events = Events::of(producer.client());
                    while !is_over.load(Relaxed) {
                        // One event, in which there are many reports.
                        producer.poll(Duration::ZERO);
                        if events.is_empty() {
                            thread::park_timeout(LOOK);
                        }
                    }
                }
            })
            .map_err(|error| SinkError::Client(format!("no thread for its reports: {error}")))?;
        let mut events = Events::of(producer.client());
        events.wake(thread.thread());
        Ok(Self(Arc::new(Running {
            producer,
            events: Some(events),
            is_over,
            thread: Some(thread),
        })))
    }
}

impl<C: ProducerContext + 'static> Clone for Polled<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C: ProducerContext + 'static> Deref for Polled<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &Self::Target {
        &self.0.producer
    }
}

impl<C: ProducerContext + 'static> Drop for Running<C> {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        self.events = None;
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the thread for a producer's reports panicked");
            }
        }
    }
}
