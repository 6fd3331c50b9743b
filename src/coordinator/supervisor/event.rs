//! What the supervisor tells of its children.

use std::time::Duration;

use super::super::child::{ChildId, Stage};
use crate::policy::restart::OnFailed;

/// Why a child died.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fault {
    /// It returned an error.
    #[error("{0}")]
    Failed(String),
    /// It panicked with this message.
    #[error("panicked: {0}")]
    Panicked(String),
    /// It was at one piece of work for this long.
    #[error("hung: at one piece of work for {}", humantime::format_duration(*.0))]
    Hung(Duration),
}

/// What the supervisor has to tell.
#[derive(Debug)]
pub enum Event {
    /// A child finished by itself.
    Finished {
        /// Which.
        child: ChildId,
    },
    /// A child crashed and will be started again.
    Restarting {
        /// Which.
        child: ChildId,
        /// What it died of.
        fault: Fault,
    },
    /// Another process has taken over what a child worked for. It is not started again by itself.
    Relieved {
        /// Which.
        child: ChildId,
        /// How it knows.
        cause: String,
    },
    /// A stage crashed too often and is given up.
    Failed {
        /// The stage.
        stage: Stage,
        /// The first fault of this run of crashes.
        cause: String,
        /// What is to become of the rest.
        on_failed: OnFailed,
    },
}

/// What a child is at, as `status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// At work.
    Running,
    /// … from the end of its restart's backoff on.
    Waiting,
    /// Drained.
    Finished,
    /// Given up on.
    Failed,
}

/// A child as `status` shows it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ChildStatus {
    /// Its name.
    pub name: String,
    /// Its stage's name.
    pub stage: String,
    /// What it is at.
    pub state: Standing,
    /// Restarts so far.
    pub restarts: u64,
    /// What it last died of.
    pub last_fault: Option<String>,
}
