//! How something is, in one of four levels, and why. It does not know how that is found out.

use std::fmt;
use std::sync::Arc;

/// How a component or the system is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nothing seen of it yet.
    Starting,
    /// Seen at work, and nothing wrong.
    Healthy,
    /// It works, but something needs a look.
    Degraded(Arc<str>),
    /// It does not work.
    Unhealthy(Arc<str>),
}

/// A [`Status`] without its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing seen of it yet.
    Starting,
    /// Seen at work, and nothing wrong.
    Healthy,
    /// It works, but something needs a look.
    Degraded,
    /// It does not work.
    Unhealthy,
}

impl Level {
    /// `starting`, `healthy`, `degraded`, `unhealthy`.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Starting => "starting",
            Level::Healthy => "healthy",
            Level::Degraded => "degraded",
            Level::Unhealthy => "unhealthy",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Status {
    /// Without its reason.
    pub fn level(&self) -> Level {
        match self {
            Status::Starting => Level::Starting,
            Status::Healthy => Level::Healthy,
            Status::Degraded(_) => Level::Degraded,
            Status::Unhealthy(_) => Level::Unhealthy,
        }
    }

    /// `starting`, `healthy`, `degraded`, `unhealthy`.
    pub fn as_str(&self) -> &'static str {
        self.level().as_str()
    }

    /// Why it is degraded or unhealthy.
    pub fn reason(&self) -> Option<&Arc<str>> {
        match self {
            Status::Starting | Status::Healthy => None,
            Status::Degraded(reason) | Status::Unhealthy(reason) => Some(reason),
        }
    }

    /// Of two, the worse has the higher number.
    pub(super) fn severity(&self) -> u8 {
        match self {
            Status::Healthy => 0,
            Status::Starting => 1,
            Status::Degraded(_) => 2,
            Status::Unhealthy(_) => 3,
        }
    }

    pub(super) fn is_fault(&self) -> bool {
        self.reason().is_some()
    }
}

/// `degraded(breaker half-open)`
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        match self.reason() {
            Some(reason) => write!(f, "({reason})"),
            None => Ok(()),
        }
    }
}
