//! Asks, from a thread of its own, whether the coordinator and the runtime still answer. Whoever hangs cannot say so,
//! and the admin interface, which lives on that runtime, would go on saying that all is well.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::LiveSettings;

/// How often it asks. A part of a second would do nothing for a limit of tens of them.
const ASKS: Duration = Duration::from_secs(1);

/// When somebody last answered.
#[derive(Debug)]
struct Pulse {
    name: &'static str,
    base: Instant,
    /// Milliseconds after `base`; 0: has not begun to answer.
    at: AtomicU64,
}

impl Pulse {
    fn beat(&self) {
        let now = self.base.elapsed().as_millis() as u64;
        self.at.store(now.max(1), Relaxed);
    }

    /// How long ago that was; `None`: it has not begun to answer.
    fn silent_for(&self) -> Option<Duration> {
        let at = self.at.load(Relaxed);
        (at > 0).then(|| {
            self.base
                .elapsed()
                .saturating_sub(Duration::from_millis(at))
        })
    }
}

/// Whether the process answers itself; a cheap handle.
#[derive(Clone, Debug)]
pub struct Vitals {
    coordinator: Arc<Pulse>,
    runtime: Arc<Pulse>,
    live: LiveSettings,
}

impl Vitals {
    /// Nobody has been asked yet.
    pub fn new(live: LiveSettings) -> Self {
        let pulse = |name| {
            let base = Instant::now();
            let at = AtomicU64::new(0);
            Arc::new(Pulse { name, base, at })
        };
        Self {
            coordinator: pulse("the coordinator"),
            runtime: pulse("the runtime"),
            live,
        }
    }

    /// Who has not answered for longer than `health.stalled_after`, in words.
    pub fn hung(&self) -> Option<String> {
        let limit = self.live.borrow().health.stalled_after;
        // It may have been asked just before it was done with something else.
        let limit = limit + 2 * ASKS;
        let silent = |pulse: &Pulse| pulse.silent_for().unwrap_or_default();
        let (coordinator, runtime) = (silent(&self.coordinator), silent(&self.runtime));
        if coordinator.max(runtime) <= limit {
            return None;
        }
        // Without the runtime the coordinator cannot answer either.
        let (name, silent) = match runtime > 3 * ASKS {
            true => (self.runtime.name, runtime),
            false => (self.coordinator.name, coordinator),
        };
        Some(format!(
            "{name} has not answered for {} s",
            silent.as_secs()
        ))
    }
}

/// The thread, and the coordinator's end of it.
pub struct Watchdog {
    vitals: Vitals,
    asked: watch::Receiver<()>,
    /// Dropped first, which ends the thread.
    leash: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts asking the runtime that this is called on; the coordinator once it answers for the first time.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(vitals: Vitals) -> std::io::Result<Self> {
        let (ask, asked) = watch::channel(());
        let (leash, held) = channel();
        let runtime = tokio::runtime::Handle::current();
        let watched = vitals.clone();
        let thread = std::thread::Builder::new()
            .name("penstock-watchdog".to_owned())
            .spawn(move || watch(&watched, &runtime, &ask, &held))?;
        Ok(Self {
            vitals,
            asked,
            leash: Some(leash),
            thread: Some(thread),
        })
    }

    /// Waits until it is asked. Cancel-safe.
    pub async fn asked(&mut self) {
        if self.asked.changed().await.is_err() {
            // The thread has ended, which only happens when this is dropped.
            std::future::pending().await
        }
    }

    /// The coordinator is there.
    pub fn answer(&self) {
        self.vitals.coordinator.beat();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.leash = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the watchdog panicked");
        }
    }
}

fn watch(
    vitals: &Vitals,
    runtime: &tokio::runtime::Handle,
    ask: &watch::Sender<()>,
    held: &Receiver<()>,
) {
    let mut question: Option<tokio::task::JoinHandle<()>> = None;
    let mut complaint: Option<Instant> = None;
    vitals.runtime.beat();
    while held.recv_timeout(ASKS) == Err(RecvTimeoutError::Timeout) {
        ask.send_replace(());
        // One at a time: a runtime that hangs is not given ever more to do.
        if question
            .as_ref()
            .is_none_or(tokio::task::JoinHandle::is_finished)
        {
            let pulse = vitals.runtime.clone();
            question = Some(runtime.spawn(async move { pulse.beat() }));
        }
        match (vitals.hung(), complaint) {
            (Some(who), None) => {
                tracing::error!(who, "the process hangs, liveness fails");
                complaint = Some(Instant::now());
            }
            (None, Some(since)) => {
                tracing::warn!(after = ?since.elapsed(), "the process answers again");
                complaint = None;
            }
            _ => {}
        }
    }
    if let Some(question) = question {
        question.abort();
    }
}
