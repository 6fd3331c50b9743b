//! Health: what the observations add up to. Pure in `now`; observed, never declared.
//!
//! A component starts as `starting` and becomes `healthy` only by what it was seen to do. [`Seen`] is how: a count
//! that the work itself moves, and whether it waits for someone else just then (a full channel downstream, an idle
//! source), as in quickwit's actors (`quickwit-common/src/progress.rs`): a task that waits is not stuck. Otherwise,
//! a count that stands still is a stall.
//!
//! Reasons hold no moving numbers (`since` has the time), so that a status changes, and is logged, only when
//! something did.

mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use status::{Level, Status};

use super::breaker::State;
use crate::words::words;

/// `[health]`
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Between looks at each component.
    pub check_interval: Duration,
    /// Between logged reports.
    pub report_interval: Duration,
    /// No progress for this long while there is work: degraded.
    pub stalled_after: Duration,
    /// Not ready for this long: liveness fails; zero: never.
    pub useless_after: Duration,
    /// Components whose being unhealthy makes the system unhealthy.
    pub critical: Vec<String>,
    /// Headroom (share of the CDC TTL left) below which health is degraded.
    pub headroom_degraded: f64,
    /// … and unhealthy.
    pub headroom_unhealthy: f64,
    /// What an open breaker makes of its component.
    pub open_breaker: OpenBreaker,
}

words! {
    /// `health.open_breaker`
    pub enum OpenBreaker {
        /// It works, but something needs a look.
        Degraded = "degraded",
        /// It does not work.
        Unhealthy = "unhealthy",
    }
}

/// One look at a lane of work: one for each task, or a task that waits hides one that hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Steps done so far.
    pub done: u64,
    /// It waits for someone else.
    pub waiting: bool,
}

/// What was seen of a component in one look. The default is nothing at all.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// Its lanes, by name (`shard 2`).
    pub lanes: Vec<(Arc<str>, Seen)>,
    /// Its breaker, with the last error.
    pub breaker: Option<(State, Option<Arc<str>>)>,
    /// Restarts within its supervision's window.
    pub restarts: u32,
    /// It was given up on: the root cause.
    pub failed: Option<Arc<str>>,
    /// The share of the CDC TTL left before the oldest unread change is lost: (TTL − lag) ÷ TTL.
    pub headroom: Option<f64>,
    /// It answered a request or a question since the last look: proof of life for what has no lanes.
    pub answered: bool,
    /// What it says is wrong with itself, e.g. a config that was rejected.
    pub complaint: Option<Status>,
}

/// The first fault of a run of trouble: later ones are often only its consequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When it was seen.
    pub at: Instant,
    /// What it was.
    pub status: Status,
}

/// A change of status, to be logged once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The component; `None`: the system.
    pub component: Option<Arc<str>>,
    /// Before.
    pub from: Status,
    /// After.
    pub to: Status,
}

/// A status with its history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Now.
    pub status: Status,
    /// Since when.
    pub since: Instant,
    /// The first fault of the latest run of trouble; stays after it is over.
    pub first_fault: Option<Fault>,
}

impl Standing {
    fn new(now: Instant) -> Self {
        Self {
            status: Status::Starting,
            since: now,
            first_fault: None,
        }
    }

    fn become_(&mut self, to: Status, now: Instant) -> Option<Status> {
        if self.status == to {
            return None;
        }
        if to.is_fault() && !self.status.is_fault() {
            let status = to.clone();
            self.first_fault = Some(Fault { at: now, status });
        }
        self.since = now;
        Some(std::mem::replace(&mut self.status, to))
    }
}

#[derive(Debug)]
struct Component {
    standing: Standing,
    /// It has been seen at work.
    lively: bool,
    /// Per lane: its steps, and when it last moved or waited.
    lanes: BTreeMap<Arc<str>, (u64, Instant)>,
}

/// The system: its components, and what they add up to.
#[derive(Debug)]
pub struct Health {
    components: BTreeMap<Arc<str>, Component>,
    system: Standing,
}

impl Health {
    /// A system of no components, starting.
    pub fn new(now: Instant) -> Self {
        Self {
            components: BTreeMap::new(),
            system: Standing::new(now),
        }
    }

    /// Adds a component, starting. One that is there already stays as it is.
    pub fn register(
        &mut self,
        name: impl Into<Arc<str>>,
        settings: &Settings,
        now: Instant,
    ) -> Option<Transition> {
        self.components
            .entry(name.into())
            .or_insert_with(|| Component {
                standing: Standing::new(now),
                lively: false,
                lanes: BTreeMap::new(),
            });
        self.aggregate(settings, now)
    }

    /// Takes a component out: it was removed from the pipeline.
    pub fn remove(&mut self, name: &str, settings: &Settings, now: Instant) -> Option<Transition> {
        self.components.remove(name);
        self.aggregate(settings, now)
    }

    /// Takes in a look at a component, which is registered if it is new. Returns what changed: the component,
    /// the system, both or neither.
    pub fn check(
        &mut self,
        name: impl Into<Arc<str>>,
        seen: &Observation,
        settings: &Settings,
        now: Instant,
    ) -> Vec<Transition> {
        let name = name.into();
        let mut changes: Vec<Transition> = Vec::new();
        changes.extend(self.register(name.clone(), settings, now));
        if let Some(component) = self.components.get_mut(&name) {
            let to = component.judge(seen, settings, now);
            if let Some(from) = component.standing.become_(to.clone(), now) {
                changes.push(Transition {
                    component: Some(name),
                    from,
                    to,
                });
            }
        }
        changes.extend(self.aggregate(settings, now));
        changes
    }

    /// The system's standing.
    pub fn system(&self) -> &Standing {
        &self.system
    }

    /// The components' standings, by name.
    pub fn components(&self) -> impl Iterator<Item = (&Arc<str>, &Standing)> {
        self.components.iter().map(|(name, c)| (name, &c.standing))
    }

    fn aggregate(&mut self, settings: &Settings, now: Instant) -> Option<Transition> {
        let mut worst = match self.components.is_empty() {
            true => Status::Starting,
            false => Status::Healthy,
        };
        for (name, component) in &self.components {
            let status = match &component.standing.status {
                Status::Unhealthy(reason) if is_critical(settings, name) => {
                    Status::Unhealthy(format!("{name}: {reason}").into())
                }
                Status::Unhealthy(reason) | Status::Degraded(reason) => {
                    Status::Degraded(format!("{name}: {reason}").into())
                }
                other => other.clone(),
            };
            if status.severity() > worst.severity() {
                worst = status;
            }
        }
        let from = self.system.become_(worst.clone(), now)?;
        Some(Transition {
            component: None,
            from,
            to: worst,
        })
    }
}

/// `transform` in `health.critical` stands for every `transform.<name>`.
pub fn is_critical(settings: &Settings, component: &str) -> bool {
    settings.critical.iter().any(|critical| {
        component
            .strip_prefix(critical.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

impl Component {
    fn judge(&mut self, seen: &Observation, settings: &Settings, now: Instant) -> Status {
        let stalled = self.stalled(&seen.lanes, settings, now);
        let at_work = |(_, lane): &(Arc<str>, Seen)| lane.done > 0 || lane.waiting;
        let lanes_live = !seen.lanes.is_empty() && seen.lanes.iter().all(at_work);
        self.lively |= lanes_live || seen.answered || seen.headroom.is_some();
        let start = if self.lively {
            Status::Healthy
        } else {
            Status::Starting
        };
        // In the order in which they explain one another: of equally bad findings, the first is told.
        [
            seen.failed
                .as_ref()
                .map(|cause| Status::Unhealthy(format!("failed: {cause}").into())),
            seen.headroom.and_then(|left| headroom(left, settings)),
            seen.breaker
                .as_ref()
                .and_then(|(state, error)| breaker(*state, error.as_deref(), settings)),
            seen.complaint.clone(),
            stalled.map(|lane| Status::Degraded(format!("{lane} makes no progress").into())),
            (seen.restarts > 0).then(|| Status::Degraded("restarted lately".into())),
        ]
        .into_iter()
        .flatten()
        .fold(start, |worst, finding| {
            if finding.severity() > worst.severity() {
                finding
            } else {
                worst
            }
        })
    }

    /// The lane that has stood still for the longest, if that is `stalled_after` or longer.
    fn stalled(
        &mut self,
        lanes: &[(Arc<str>, Seen)],
        settings: &Settings,
        now: Instant,
    ) -> Option<Arc<str>> {
        self.lanes
            .retain(|name, _| lanes.iter().any(|(seen, _)| seen == name));
        for (name, seen) in lanes {
            let moved = self.lanes.entry(name.clone()).or_insert((seen.done, now));
            if seen.waiting || moved.0 != seen.done {
                *moved = (seen.done, now);
            }
        }
        let (lane, (_, moved)) = self.lanes.iter().min_by_key(|(_, (_, moved))| *moved)?;
        let still = now.saturating_duration_since(*moved);
        (still >= settings.stalled_after).then(|| lane.clone())
    }
}

/// Written so that NaN, which is no headroom that anyone measured, is the worst of all.
fn headroom(left: f64, settings: &Settings) -> Option<Status> {
    let below = |threshold: f64| {
        let percent = threshold * 100.0;
        Arc::from(format!("retention headroom below {percent:.0}%"))
    };
    if left >= settings.headroom_degraded {
        None
    } else if left >= settings.headroom_unhealthy {
        Some(Status::Degraded(below(settings.headroom_degraded)))
    } else {
        Some(Status::Unhealthy(below(settings.headroom_unhealthy)))
    }
}

fn breaker(state: State, error: Option<&str>, settings: &Settings) -> Option<Status> {
    match state {
        State::Closed => None,
        State::HalfOpen => Some(Status::Degraded("breaker half-open".into())),
        State::Open => {
            let reason = match error {
                Some(error) => Arc::from(format!("breaker open: {error}")),
                None => Arc::from("breaker open"),
            };
            Some(match settings.open_breaker {
                OpenBreaker::Degraded => Status::Degraded(reason),
                OpenBreaker::Unhealthy => Status::Unhealthy(reason),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;

    fn settings() -> Settings {
        Settings {
            check_interval: Duration::from_secs(10),
            report_interval: Duration::from_secs(30),
            stalled_after: Duration::from_secs(60),
            useless_after: Duration::ZERO,
            critical: vec!["source".into(), "sink".into(), "transform".into()],
            headroom_degraded: 0.5,
            headroom_unhealthy: 0.2,
            open_breaker: OpenBreaker::Unhealthy,
        }
    }

    fn answered() -> Observation {
        Observation {
            answered: true,
            ..Observation::default()
        }
    }

    /// A task's work.
    #[derive(Default)]
    struct Progress {
        done: Cell<u64>,
        waits: Cell<bool>,
    }

    impl Progress {
        fn record(&self) {
            self.done.set(self.done.get() + 1);
        }

        fn observe(&self) -> Seen {
            Seen {
                done: self.done.get(),
                waiting: self.waits.get(),
            }
        }
    }

    fn lane(progress: &Progress) -> Observation {
        Observation {
            lanes: vec![("shard 0".into(), progress.observe())],
            ..Observation::default()
        }
    }

    fn open() -> Observation {
        Observation {
            breaker: Some((State::Open, Some("broker down".into()))),
            ..answered()
        }
    }

    fn status(health: &Health, name: &str) -> String {
        let mut components = health.components();
        let (_, standing) = components.find(|(n, _)| n.as_ref() == name).unwrap();
        standing.status.to_string()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn nothing_is_healthy_until_it_is_seen_at_work() {
        let (t, s) = (Instant::now(), settings());
        let mut health = Health::new(t);
        assert_eq!(health.system().status, Status::Starting);
        health.register("sink", &s, t);
        health.check("source", &answered(), &s, t);
        assert_eq!(status(&health, "source"), "healthy");
        assert_eq!(status(&health, "sink"), "starting");
        assert_eq!(health.system().status, Status::Starting);

        let progress = Progress::default();
        health.check("sink", &lane(&progress), &s, t);
        assert_eq!(status(&health, "sink"), "starting");
        progress.record();
        let changes = health.check("sink", &lane(&progress), &s, t);
        assert_eq!(status(&health, "sink"), "healthy");
        assert_eq!(health.system().status, Status::Healthy);
        assert_eq!(changes.len(), 2, "{changes:?}");
        assert_eq!(health.check("sink", &lane(&progress), &s, t), []);
    }

    #[test]
    fn a_lane_that_stands_still_is_a_stall_unless_it_waits() {
        let (t, s) = (Instant::now(), settings());
        let mut health = Health::new(t);
        let progress = Progress::default();
        progress.record();
        health.check("sink", &lane(&progress), &s, t);
        health.check("sink", &lane(&progress), &s, t + 59 * SECOND);
        assert_eq!(status(&health, "sink"), "healthy");
        health.check("sink", &lane(&progress), &s, t + 60 * SECOND);
        assert_eq!(
            status(&health, "sink"),
            "degraded(shard 0 makes no progress)"
        );

        progress.waits.set(true);
        health.check("sink", &lane(&progress), &s, t + 70 * SECOND);
        health.check("sink", &lane(&progress), &s, t + 7000 * SECOND);
        assert_eq!(status(&health, "sink"), "healthy");
        progress.waits.set(false);
        progress.record();
        // The end of a wait is progress: the clock of the stall starts here.
        health.check("sink", &lane(&progress), &s, t + 7059 * SECOND);
        health.check("sink", &lane(&progress), &s, t + 7118 * SECOND);
        assert_eq!(status(&health, "sink"), "healthy");
        health.check("sink", &lane(&progress), &s, t + 7119 * SECOND);
        assert_eq!(
            status(&health, "sink"),
            "degraded(shard 0 makes no progress)"
        );
    }

    #[test]
    fn a_waiting_lane_does_not_hide_a_stuck_one() {
        let (t, s) = (Instant::now(), settings());
        let mut health = Health::new(t);
        let (waits, stuck) = (Progress::default(), Progress::default());
        stuck.record();
        waits.waits.set(true);
        let both = Observation {
            lanes: vec![
                ("shard 0".into(), waits.observe()),
                ("shard 1".into(), stuck.observe()),
            ],
            ..Observation::default()
        };
        health.check("sink", &both, &s, t);
        health.check("sink", &both, &s, t + 60 * SECOND);
        assert_eq!(
            status(&health, "sink"),
            "degraded(shard 1 makes no progress)"
        );
    }

    #[test]
    fn headroom_degrades_at_half_and_is_unhealthy_at_a_fifth() {
        let (t, s) = (Instant::now(), settings());
        let of = |left: f64| {
            let mut health = Health::new(t);
            let seen = Observation {
                headroom: Some(left),
                ..Observation::default()
            };
            health.check("source", &seen, &s, t);
            health.system().status.to_string()
        };
        assert_eq!(of(0.5), "healthy");
        assert_eq!(of(0.499), "degraded(source: retention headroom below 50%)");
        assert_eq!(of(0.2), "degraded(source: retention headroom below 50%)");
        assert_eq!(of(0.199), "unhealthy(source: retention headroom below 20%)");
        assert_eq!(of(-3.0), "unhealthy(source: retention headroom below 20%)");
        assert_eq!(
            of(f64::NAN),
            "unhealthy(source: retention headroom below 20%)"
        );
    }

    #[test]
    fn an_open_breaker_is_what_the_settings_say() {
        let (t, mut s) = (Instant::now(), settings());
        let mut health = Health::new(t);
        health.check("sink", &open(), &s, t);
        assert_eq!(
            status(&health, "sink"),
            "unhealthy(breaker open: broker down)"
        );
        s.open_breaker = OpenBreaker::Degraded;
        health.check("sink", &open(), &s, t);
        assert_eq!(
            status(&health, "sink"),
            "degraded(breaker open: broker down)"
        );
    }

    #[test]
    fn only_a_critical_component_makes_the_system_unhealthy() {
        let (t, mut s) = (Instant::now(), settings());
        let mut health = Health::new(t);
        health.check("source", &answered(), &s, t);
        health.check("orders", &open(), &s, t);
        assert_eq!(
            health.system().status.to_string(),
            "degraded(orders: breaker open: broker down)"
        );
        health.check("transform.router", &open(), &s, t);
        assert_eq!(
            health.system().status.to_string(),
            "unhealthy(transform.router: breaker open: broker down)"
        );
        // Which components are critical may change while running.
        s.critical = vec!["trans".into()];
        health.check("source", &answered(), &s, t);
        assert_eq!(health.system().status.as_str(), "degraded");
        health.remove("transform.router", &s, t);
        health.check("orders", &answered(), &s, t);
        assert_eq!(health.system().status, Status::Healthy);
    }

    #[test]
    fn the_first_fault_of_a_run_of_trouble_is_kept() {
        let (t, s) = (Instant::now(), settings());
        let mut health = Health::new(t);
        health.check("sink", &answered(), &s, t);
        health.check("sink", &open(), &s, t + SECOND);
        let failed = Observation {
            failed: Some("panicked: boom".into()),
            ..answered()
        };
        health.check("sink", &failed, &s, t + 2 * SECOND);
        let standing = health.system().clone();
        assert_eq!(
            standing.status.to_string(),
            "unhealthy(sink: failed: panicked: boom)"
        );
        assert_eq!(standing.since, t + 2 * SECOND);
        let first = standing.first_fault.unwrap();
        assert_eq!(first.at, t + SECOND);
        assert_eq!(
            first.status.to_string(),
            "unhealthy(sink: breaker open: broker down)"
        );

        health.check("sink", &answered(), &s, t + 3 * SECOND);
        assert_eq!(health.system().status, Status::Healthy);
        assert_eq!(
            health.system().first_fault.as_ref().map(|f| f.at),
            Some(t + SECOND)
        );
        let restarted = Observation {
            restarts: 1,
            ..answered()
        };
        health.check("sink", &restarted, &s, t + 4 * SECOND);
        let first = health.system().first_fault.clone().unwrap();
        assert_eq!(first.at, t + 4 * SECOND);
        assert_eq!(first.status.to_string(), "degraded(sink: restarted lately)");
    }
}
