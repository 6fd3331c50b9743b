//! What the sink waits for, and why: told in one line when it begins and when it ends, and in health meanwhile.
//!
//! What comes from outside heals: a topic that is missing, a right that is refused, a quota, brokers that are away.
//! So it is a wait, and a wait has a reason from its first second. Trouble with one topic stops that topic's records
//! alone as far as order allows: the stream groups that have records for it, not the others, and no breaker, because
//! the brokers answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::policy::health::Status;

/// The pause after the first refusal; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest: what is mended is noticed within it.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Topics that are named in health; the others are counted.
const NAMED: usize = 3;

/// What is in trouble.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// All brokers.
    Brokers,
    /// They answer, and acknowledge nothing.
    Acknowledgements,
    /// What was rotated is not taken.
    Login,
    /// One topic is not there, or not as it has to be.
    Topic(Arc<str>),
    /// Its records are refused.
    Writing(Arc<str>),
}

impl Cause {
    fn topic(&self) -> Option<&Arc<str>> {
        match self {
            Self::Brokers | Self::Acknowledgements | Self::Login => None,
            Self::Topic(topic) | Self::Writing(topic) => Some(topic),
        }
    }
}

/// Who can end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Help {
    /// It may pass by itself.
    None,
    /// Someone has to do something, here or at the brokers.
    Needed,
}

#[derive(Debug)]
struct Trouble {
    reason: Arc<str>,
    help: Help,
    refusals: u32,
    again_at: Instant,
}

/// All that the sink waits for now. A cheap handle.
#[derive(Clone, Debug, Default)]
pub struct Troubles(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    any: AtomicBool,
    all: Mutex<BTreeMap<Cause, Trouble>>,
    refusals: AtomicU64,
}

impl Troubles {
    /// Notes a refusal, or whatever else makes the sink wait. A new one, and another reason, are logged at once.
    pub fn raise(&self, cause: Cause, help: Help, reason: impl Into<Arc<str>>) {
        let reason = reason.into();
        let mut all = self.0.all.lock();
        self.0.refusals.fetch_add(1, Relaxed);
        let refusals = match all.get(&cause) {
            Some(known) if known.reason == reason && known.help == help => known.refusals + 1,
            known => {
                match cause.topic() {
                    None if cause == Cause::Login => {
                        tracing::warn!(reason = &*reason, "the new credentials are not in force");
                    }
                    None => tracing::warn!(reason = &*reason, "waiting for the brokers"),
                    Some(topic) => {
                        tracing::warn!(topic = &**topic, reason = &*reason, "waiting for a topic");
                    }
                }
                known.map_or(1, |k| k.refusals + 1)
            }
        };
        let pause = FIRST_PAUSE * 2_u32.saturating_pow((refusals - 1).min(8));
        let trouble = Trouble {
            reason,
            help,
            refusals,
            again_at: Instant::now() + pause.min(LONGEST_PAUSE),
        };
        all.insert(cause, trouble);
        self.0.any.store(true, Relaxed);
    }

    /// It is over.
    pub fn clear(&self, cause: &Cause) {
        let mut all = self.0.all.lock();
        if all.remove(cause).is_none() {
            return;
        }
        self.0.any.store(!all.is_empty(), Relaxed);
        drop(all);
        match cause {
            Cause::Brokers => tracing::info!("the brokers answer again"),
            Cause::Acknowledgements => tracing::info!("the brokers acknowledge again"),
            Cause::Login => tracing::info!("the brokers take the credentials"),
            Cause::Topic(topic) => tracing::info!(topic = &**topic, "the topic is there"),
            Cause::Writing(topic) => {
                tracing::info!(topic = &**topic, "the topic takes records again")
            }
        }
    }

    /// Whether there is any: a load.
    pub fn are_any(&self) -> bool {
        self.0.any.load(Relaxed)
    }

    /// A record of this topic was acknowledged. Costs a load where there is no trouble.
    pub fn accepted(&self, topic: &str) {
        if self.0.any.load(Relaxed) {
            self.clear(&Cause::Writing(topic.into()));
        }
    }

    /// Whether there is such trouble.
    pub fn has(&self, cause: &Cause) -> bool {
        self.again_at(cause).is_some()
    }

    /// When it may be tried again; `None`: there is no such trouble.
    pub fn again_at(&self, cause: &Cause) -> Option<Instant> {
        if !self.0.any.load(Relaxed) {
            return None;
        }
        self.0.all.lock().get(cause).map(|t| t.again_at)
    }

    /// … and someone has to help.
    pub fn help_at(&self, cause: &Cause) -> Option<Instant> {
        if !self.0.any.load(Relaxed) {
            return None;
        }
        let all = self.0.all.lock();
        let trouble = all.get(cause).filter(|t| t.help == Help::Needed);
        trouble.map(|t| t.again_at)
    }

    /// Refusals noted since the start.
    pub fn refusals(&self) -> u64 {
        self.0.refusals.load(Relaxed)
    }

    /// What health is to say: unhealthy if someone has to help, because what waits for it does not move.
    pub fn complaint(&self) -> Option<Status> {
        let all = self.0.all.lock();
        let worst = |help| all.iter().filter(move |(_, t)| t.help == help);
        let told = match worst(Help::Needed).next() {
            Some(_) => Help::Needed,
            None => Help::None,
        };
        let reasons: Vec<String> = worst(told)
            .take(NAMED)
            .map(|(cause, trouble)| match cause.topic() {
                None if *cause == Cause::Login => trouble.reason.to_string(),
                None => format!("waiting for the brokers: {}", trouble.reason),
                Some(topic) => format!("waiting for topic {topic}: {}", trouble.reason),
            })
            .collect();
        let more = worst(told).count() - reasons.len();
        let more = match more {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let reason = format!("{}{more}", reasons.join("; ")).into();
        match told {
            _ if reasons.is_empty() => None,
            Help::None => Some(Status::Degraded(reason)),
            Help::Needed => Some(Status::Unhealthy(reason)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> Cause {
        Cause::Writing(name.into())
    }

    #[tokio::test(start_paused = true)]
    async fn what_needs_help_is_unhealthy_and_named_first() {
        let troubles = Troubles::default();
        assert_eq!(troubles.complaint(), None);
        troubles.raise(Cause::Brokers, Help::None, "refused");
        let said = troubles.complaint().unwrap().to_string();
        assert_eq!(said, "degraded(waiting for the brokers: refused)");
        for name in ["a", "b", "c", "d"] {
            troubles.raise(topic(name), Help::Needed, "missing");
        }
        let said = troubles.complaint().unwrap().to_string();
        assert!(
            said.starts_with("unhealthy(waiting for topic a: missing; "),
            "{said}"
        );
        assert!(said.ends_with("; and 1 more)"), "{said}");
        assert!(troubles.help_at(&topic("b")).is_some());
        assert!(troubles.help_at(&Cause::Brokers).is_none());
        for name in ["a", "b", "c", "d"] {
            troubles.accepted(name);
        }
        troubles.clear(&Cause::Brokers);
        assert_eq!(troubles.complaint(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_is_tried_again_at_growing_pauses_until_it_takes_a_record() {
        let troubles = Troubles::default();
        let mut pauses = Vec::new();
        for _ in 0..6 {
            troubles.raise(topic("t"), Help::Needed, "no right");
            let pause = troubles.again_at(&topic("t")).unwrap() - Instant::now();
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses, [500, 1000, 2000, 2000, 2000, 2000]);
        assert_eq!(troubles.again_at(&topic("u")), None);
        troubles.accepted("t");
        assert_eq!(
            (troubles.again_at(&topic("t")), troubles.refusals()),
            (None, 6)
        );
    }
}
