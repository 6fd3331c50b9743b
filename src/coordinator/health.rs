//! Looks at every component at intervals, logs what changed at once and the whole of it less often.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::time;

use super::child::Stage;
use super::handle::Shared;
use super::pipeline::Pipeline;
use super::report::{Entry, Report};
use super::supervisor::Supervisor;
use crate::config::LiveSettings;
use crate::policy::breaker;
use crate::policy::health::{Health, Level, Observation, Seen, Standing, Status};
use crate::policy::stage::StagePolicies;

/// The components' observer.
pub struct HealthWatch {
    live: LiveSettings,
    health: Health,
    failed: Vec<(Stage, Arc<str>)>,
    /// What the start waits for.
    waits: Option<(Stage, Arc<str>)>,
    checked: Option<time::Instant>,
    reported: Instant,
    /// What the stages said at the last look, and at the last glance.
    said: Said,
    glanced: Said,
}

/// Of each stage its breaker, and how bad it says that it is.
type Said = Vec<(Arc<str>, breaker::State, Option<Level>)>;

/// Early looks, so that a process that has just started does not stay `starting` for a whole interval.
const FIRST_LOOKS: Duration = Duration::from_millis(250);

impl HealthWatch {
    /// Nothing seen yet.
    pub fn new(live: LiveSettings) -> Self {
        let now = time::Instant::now().into_std();
        Self {
            live,
            health: Health::new(now),
            failed: Vec::new(),
            waits: None,
            checked: None,
            reported: now,
            said: Said::new(),
            glanced: Said::new(),
        }
    }

    /// When to look next.
    pub(crate) fn next_check(&self, shared: &Shared) -> time::Instant {
        let interval = self.live.borrow().health.check_interval;
        let starting = matches!(self.health.system().status, Status::Starting);
        let wait = if starting {
            interval.min(FIRST_LOOKS)
        } else {
            interval
        };
        let Some(checked) = self.checked else {
            return time::Instant::now();
        };
        // Whoever looks learns what is waited for as soon as it takes its time.
        let waits = shared.policies().all();
        let told = waits.iter().filter_map(|(_, p)| p.waits().told_at());
        let told = told.filter(|at| *at > checked).min();
        told.map_or(checked + wait, |told| told.min(checked + wait))
    }

    /// Whether a look is worth while before its time: a breaker has opened or closed since the last one, or a stage says
    /// otherwise how it is, and has said so for two glances. Whoever watches health learns of an outage, and of its end,
    /// as soon as whoever reads the log.
    pub(crate) fn is_due(&mut self, shared: &Shared) -> bool {
        let now = said(shared);
        let stands = now == self.glanced;
        self.glanced = now;
        stands && self.glanced != self.said
    }

    /// Notes that a stage was given up on.
    pub fn stage_failed(&mut self, stage: &Stage, cause: &str) {
        self.failed.retain(|(s, _)| s != stage);
        self.failed.push((stage.clone(), cause.into()));
    }

    /// The start waits for what this stage needs.
    pub fn waits(&mut self, stage: Stage, reason: &str) {
        self.waits = Some((stage, reason.into()));
    }

    /// … no more.
    pub fn begun(&mut self) {
        self.waits = None;
    }

    /// A stage that was given up on was started anew.
    pub fn revived(&mut self, stage: &Stage) {
        self.failed.retain(|(failed, _)| failed != stage);
    }

    /// The pipeline was rebuilt: what had failed starts anew.
    pub fn rebuilt(&mut self) {
        self.failed.retain(|(stage, _)| !stage.is_of_pipeline());
    }

    /// Looks at everything.
    pub(crate) fn check(&mut self, supervisor: &Supervisor, shared: &Shared) -> Report {
        let looked = time::Instant::now();
        let now = looked.into_std();
        let settings = self.live.borrow().clone();
        self.checked = Some(looked);
        self.said = said(shared);
        let mut observations = observe(supervisor, shared, &self.failed, looked);
        if let Some((stage, reason)) = &self.waits {
            let name: Arc<str> = stage.to_string().into();
            let complaint = Some(Status::Unhealthy(format!("waiting: {reason}").into()));
            match observations.iter_mut().find(|(n, _)| *n == name) {
                Some((_, seen)) => seen.complaint = complaint,
                None => {
                    let seen = Observation {
                        complaint,
                        ..Observation::default()
                    };
                    observations.push((name, seen));
                }
            }
        }
        let gone: Vec<Arc<str>> = self
            .health
            .components()
            .map(|(name, _)| name.clone())
            .filter(|name| !observations.iter().any(|(n, _)| n == name))
            .collect();
        let mut changes = Vec::new();
        for name in gone {
            changes.extend(self.health.remove(&name, &settings.health, now));
        }
        // All are known before the first is judged, so that the system does not seem well half-way.
        for (name, _) in &observations {
            let change = self.health.register(name.clone(), &settings.health, now);
            changes.extend(change);
        }
        for (name, seen) in observations {
            changes.extend(self.health.check(name, &seen, &settings.health, now));
        }
        for change in changes {
            let component = change.component.as_deref().unwrap_or("system");
            match change.to {
                Status::Healthy | Status::Starting => {
                    tracing::info!(component, from = %change.from, to = %change.to, "health changed");
                }
                Status::Degraded(_) => {
                    tracing::warn!(component, from = %change.from, to = %change.to, "health changed")
                }
                Status::Unhealthy(_) => {
                    tracing::error!(component, from = %change.from, to = %change.to, "health changed")
                }
            }
        }
        if now.duration_since(self.reported) >= settings.health.report_interval {
            self.reported = now;
            let components: Vec<String> = self
                .health
                .components()
                .map(|(name, s)| format!("{name}={}", s.status))
                .collect();
            tracing::info!(system = %self.health.system().status, components = components.join(" "), "health report");
        }
        let entry = |name: &Arc<str>, standing: &Standing| Entry {
            name: name.clone(),
            status: standing.status.level(),
            reason: standing.status.reason().cloned(),
            since: epoch_seconds(standing.since, now),
            first_fault: standing.first_fault.as_ref().map(|f| f.status.to_string()),
            critical: crate::policy::health::is_critical(&settings.health, name),
        };
        Report {
            system: Some(entry(&"system".into(), self.health.system())),
            components: self
                .health
                .components()
                .map(|(name, standing)| entry(name, standing))
                .collect(),
        }
    }
}

fn epoch_seconds(at: Instant, now: Instant) -> f64 {
    let wall = SystemTime::now() - now.saturating_duration_since(at);
    wall.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |d| (d.as_secs_f64() * 1e3).round() / 1e3)
}

fn said(shared: &Shared) -> Said {
    let of = |(stage, policies): (Stage, StagePolicies)| {
        let complaint = complaint(&stage, &policies, shared).map(|c| c.level());
        let breaker = policies.snapshot().breaker;
        (policies.stage().into(), breaker, complaint)
    };
    let mut said: Said = shared.policies().all().into_iter().map(of).collect();
    let of_config = config_complaint(shared).map(|c| c.level());
    said.push(("config".into(), breaker::State::Closed, of_config));
    if let Some(share) = shared.membership().map(|m| m.share()) {
        let complaint = share.complaint().map(|c| c.level());
        said.push(("membership".into(), breaker::State::Closed, complaint));
    }
    said
}

/// What is wrong with the newest configuration, and what a change of it that is under way waits for.
fn config_complaint(shared: &Shared) -> Option<Status> {
    let reloads = shared.reloads();
    let said: Vec<String> = [reloads.complaint(), reloads.waits()]
        .into_iter()
        .flatten()
        .collect();
    (!said.is_empty()).then(|| Status::Degraded(said.join("; ").into()))
}

fn complaint(stage: &Stage, policies: &StagePolicies, shared: &Shared) -> Option<Status> {
    let own = shared
        .pipeline()
        .and_then(|pipeline| complaint_of(stage, &pipeline));
    own.or_else(|| {
        let what = policies.waits().longest()?;
        Some(Status::Degraded(format!("waiting to {what}").into()))
    })
}

fn complaint_of(stage: &Stage, pipeline: &Pipeline) -> Option<Status> {
    match stage {
        Stage::Sink => pipeline.sink.complaint(),
        Stage::Source => pipeline.source.status().complaint,
        Stage::Transform(_) => {
            let stage = stage.to_string();
            let waits = pipeline.transform_waits(&stage);
            let waits = waits.map(|why| format!("waiting: {why}").into());
            let reason = waits.or_else(|| pipeline.transform_refuses(&stage))?;
            Some(Status::Degraded(reason))
        }
        _ => None,
    }
}

/// What is to be seen of each component right now.
fn observe(
    supervisor: &Supervisor,
    shared: &Shared,
    failed: &[(Stage, Arc<str>)],
    now: time::Instant,
) -> Vec<(Arc<str>, Observation)> {
    let mut all: Vec<(Arc<str>, Observation)> = Vec::new();
    for (stage, policies) in shared.policies().all() {
        let snapshot = policies.snapshot();
        let lanes: Vec<(Arc<str>, Seen)> = supervisor
            .activities(|id| id.stage == stage)
            .map(|(id, activity)| {
                let seen = Seen {
                    done: activity.done(),
                    waiting: activity.busy_for(now).is_none(),
                };
                (id.to_string().into(), seen)
            })
            .collect();
        let source = (stage == Stage::Source)
            .then(|| shared.pipeline().map(|p| p.source.status()))
            .flatten();
        let observation = Observation {
            // What has no child of its own (the dead letters, a transform behind the first) is known by its breaker.
            answered: lanes.is_empty() && shared.pipeline().is_some(),
            lanes,
            breaker: Some((snapshot.breaker, snapshot.last_error)),
            restarts: supervisor.recent_restarts(&stage, now.into_std()),
            failed: failed
                .iter()
                .find(|(s, _)| *s == stage)
                .map(|(_, cause)| cause.clone()),
            headroom: source.as_ref().and_then(|s| s.retention_headroom()),
            complaint: complaint(&stage, &policies, shared),
        };
        all.push((snapshot.stage, observation));
    }
    if let Some(share) = shared.membership().map(|m| m.share()) {
        let given_up = |s: &Stage| matches!(s, Stage::Membership | Stage::Opening);
        let failed = failed.iter().find(|(stage, _)| given_up(stage));
        let observation = Observation {
            answered: share.joined,
            failed: failed.map(|(_, cause)| cause.clone()),
            complaint: share.complaint(),
            restarts: supervisor.recent_restarts(&Stage::Membership, now.into_std()),
            ..Observation::default()
        };
        all.push(("membership".into(), observation));
    }
    all.push((
        "config".into(),
        Observation {
            answered: true,
            complaint: config_complaint(shared),
            ..Observation::default()
        },
    ));
    all
}
