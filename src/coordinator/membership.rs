//! What there is to see of this instance's part in the group that shares the shards out. Knows nothing of who takes part.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

use crate::policy::health::Status;
use crate::sink::redpanda::membership::Standing;

/// What there is to see of this instance's part in the group.
#[derive(Debug, Default)]
pub struct Membership {
    pub(super) standing: watch::Sender<Standing>,
    /// Why shards that are ours are not open yet.
    pub(super) waiting: Mutex<BTreeMap<u32, String>>,
}

/// … as `status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Share {
    /// Whether this instance has its share of the shards, which may be none.
    pub joined: bool,
    /// The shards that are its own.
    pub owned: BTreeSet<u32>,
    /// What is in the way, if something is.
    pub trouble: Option<String>,
    /// It waits for its share for long enough to speak of.
    #[serde(skip)]
    waits_for_long: bool,
}

/// Of what takes longer there is a word. A group's first member waits for others for 3 s by default
/// (`group.initial.rebalance.delay.ms`).
const LONG_WAIT: Duration = Duration::from_millis(900);

impl Share {
    /// What health says of it.
    pub(super) fn complaint(&self) -> Option<Status> {
        let joining = || "waiting for the group's share of the shards".into();
        let trouble = self.trouble.as_deref().map(Into::into);
        let complaint = trouble.or_else(|| self.waits_for_long.then(joining));
        complaint.map(Status::Degraded)
    }
}

impl Membership {
    /// Says in the log when the group takes its time to give this instance its share.
    pub(super) async fn tell_of_waiting(&self) -> Infallible {
        let mut standing = self.standing.subscribe();
        loop {
            let waits = standing.wait_for(|s| !s.joined).await.is_ok();
            let joined = async { standing.wait_for(|s| s.joined).await.is_ok() };
            match tokio::time::timeout(LONG_WAIT, joined).await {
                Err(_) if waits => {
                    tracing::warn!("waiting for the group's share of the shards");
                    standing.wait_for(|s| s.joined).await.ok();
                }
                // Its sender lives as long as `self`.
                _ => {}
            }
        }
    }

    /// What it looks like now.
    pub fn share(&self) -> Share {
        let Standing {
            joined,
            since,
            owned,
            trouble,
        } = self.standing.borrow().clone();
        let waiting = self.waiting.lock();
        let first = waiting.iter().next();
        let waiting = first.map(|(shard, why)| format!("shard {shard} is not open yet: {why}"));
        Share {
            joined,
            owned,
            trouble: trouble.or(waiting),
            waits_for_long: !joined && since.elapsed() >= LONG_WAIT,
        }
    }
}
