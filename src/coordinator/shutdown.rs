//! The order in which a pipeline is stopped, and signals.

use std::fmt;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::child::{ChildId, Stage};

/// A step of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// No order is taken any more.
    Orders,
    /// Nothing is read any more.
    Reading,
    /// What was read is made records of.
    Transforms,
    /// What was made is delivered, and its checkpoints written.
    Commit,
    /// Other instances are told that the shards are theirs.
    Leave,
    /// What was traced of all that is sent.
    Traces,
}

impl Step {
    /// All, in their order: upstream first. They share one deadline.
    pub const ALL: [Self; 6] = [
        Self::Orders,
        Self::Reading,
        Self::Transforms,
        Self::Commit,
        Self::Leave,
        Self::Traces,
    ];

    /// Those that a shard takes.
    pub const OF_SHARD: [Self; 3] = [Self::Reading, Self::Transforms, Self::Commit];

    /// Whether this child is drained in it.
    pub fn takes(self, id: &ChildId) -> bool {
        match self {
            Self::Orders => id.stage.serves(&Stage::Orders),
            Self::Reading => matches!(
                id.stage,
                Stage::Source | Stage::Opening | Stage::Checkpoints
            ),
            Self::Transforms => id.stage.transforms(),
            Self::Commit => id.stage == Stage::Sink,
            Self::Leave => id.stage == Stage::Membership,
            Self::Traces => id.stage == Stage::Tracing,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Orders => "stop taking orders",
            Self::Reading => "stop reading",
            Self::Transforms => "drain transforms",
            Self::Commit => "flush and commit",
            Self::Leave => "leave the group",
            Self::Traces => "send the traces",
        })
    }
}

/// The signals that the process listens to.
pub struct Signals(Option<Handlers>);

struct Handlers {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    /// When a stop was asked for last.
    stop: Option<Instant>,
}

/// Signals that come so close together are one stop: whoever sends one to a process and then to its group, as GNU `timeout`
/// does, means no haste.
const ONE_STOP: Duration = Duration::from_millis(200);

/// Whether a signal is a stop of its own, after that one.
fn is_another(before: Option<Instant>, now: Instant) -> bool {
    before.is_none_or(|at| now.duration_since(at) >= ONE_STOP)
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
        Ok(Self(Some(Handlers {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            stop: None,
        })))
    }

    /// It listens to none: somebody else's process, whose they are.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Waits for the next one. Cancel-safe.
    pub async fn next(&mut self) -> Asked {
        let Some(handlers) = &mut self.0 else {
            return std::future::pending().await;
        };
        loop {
            tokio::select! {
                _ = handlers.interrupt.recv() => {}
                _ = handlers.terminate.recv() => {}
                _ = handlers.hangup.recv() => return Asked::Reload,
            }
            let now = Instant::now();
            if is_another(handlers.stop, now) {
                handlers.stop = Some(now);
                return Asked::Stop;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_come_together_are_one_stop() {
        let now = Instant::now();
        assert!(is_another(None, now));
        assert!(!is_another(Some(now), now + ONE_STOP / 2));
        assert!(is_another(Some(now), now + ONE_STOP));
    }
}
