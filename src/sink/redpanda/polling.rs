//! A producer and the thread that fetches what it has to tell, which sleeps until there is something.
//!
//! The bindings' own (`ThreadedProducer`, 0.39) waits in whole milliseconds for what is left of 100, and asks without a pause
//! for the rest of the last: a hundredth of a processor for each producer, idle or not.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::native::Events;
use super::raw::{Answered, Raw};
use crate::sink::SinkError;

/// The thread looks this often although it was not woken.
const LOOK: Duration = Duration::from_millis(250);

/// A producer and its thread, which ends with the last of these.
pub(super) struct Polled<C: Answered>(Arc<Running<C>>);

struct Running<C: Answered> {
    producer: Arc<Raw<C>>,
    /// Wake the thread. Gone before it is.
    events: Option<Events>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<C: Answered> Polled<C> {
    pub(super) fn new(producer: Raw<C>) -> Result<Self, SinkError> {
        let producer = Arc::new(producer);
        let is_over = Arc::<AtomicBool>::default();
        let thread = thread::Builder::new()
            .name("reports".into())
            .spawn({
                let (producer, is_over) = (Arc::clone(&producer), Arc::clone(&is_over));
                move || {
                    let events = Events::of(producer.client());
                    while !is_over.load(Relaxed) {
                        producer.poll();
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

impl<C: Answered> Clone for Polled<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C: Answered> Deref for Polled<C> {
    type Target = Raw<C>;

    fn deref(&self) -> &Self::Target {
        &self.0.producer
    }
}

impl<C: Answered> Drop for Running<C> {
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
