//! The order in which a pipeline is stopped, and signals.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The steps of a drain, upstream first. All share one deadline.
pub const STEPS: [(&str, &[&str]); 4] = [
    ("stop taking orders", &["orders"]),
    ("stop reading", &["source"]),
    ("drain transforms", &["transform"]),
    ("flush and commit", &["sink"]),
];

/// Whether a child's stage belongs to a step: `transform` stands for `transform.<name>` too.
pub fn belongs(stage: &str, step: &[&str]) -> bool {
    step.iter().any(|s| {
        stage == *s
            || stage
                .strip_prefix(s)
                .is_some_and(|rest| rest.starts_with('.'))
    })
}

/// The signals that the process listens to.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// SIGINT or SIGTERM.
    Stop,
    /// SIGHUP.
    Reload,
}

impl Signals {
    /// Installs the handlers.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one. Cancel-safe.
    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }
}
