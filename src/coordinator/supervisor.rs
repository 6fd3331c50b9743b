//! Runs the children of the coordinator: starts them, catches what they die of, restarts them by policy.
//!
//! The only place in the crate that spawns tasks. A child that returns `Ok` is finished (it was told to
//! drain); one that returns an error, panics or hangs has crashed. Restarts count per stage: the shards of a
//! stage share one window, so that a stage that is broken everywhere fails as fast as one that is broken in
//! one shard.

mod event;
mod spec;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::event::{ChildStatus, Event, Fault, Standing};
pub use self::spec::{Blamed, ChildFuture, ChildScope, ChildSpec, Relieved, on_a_thread};
use super::activity::Activity;
use super::child::{ChildId, Stage};
use crate::config::LiveSettings;
use crate::policy::restart::{self, Decision, RestartWindow, Strategy};

enum State {
    Running { task: AbortHandle },
    Waiting { until: Instant },
    Finished,
    Failed,
}

struct Child {
    spec: ChildSpec,
    scope: ChildScope,
    state: State,
    restarts: u64,
    last_fault: Option<String>,
    /// Finishes what it holds, and is forgotten then; another one has taken its place.
    retired: bool,
}

/// Owns the tasks of its children.
pub struct Supervisor {
    live: LiveSettings,
    children: BTreeMap<usize, Child>,
    next: usize,
    tasks: JoinSet<anyhow::Result<()>>,
    by_task: HashMap<Id, usize>,
    /// Aborted tasks that have not ended yet; their child is not started again before they have.
    leaving: HashMap<Id, usize>,
    windows: HashMap<Stage, RestartWindow>,
    /// The restarts of children that were removed: one that is made again goes on counting.
    counted: HashMap<ChildId, u64>,
    failed: watch::Sender<BTreeSet<Stage>>,
    /// When hung children are looked for next.
    watch_at: Instant,
    events: std::collections::VecDeque<Event>,
}

/// How often hung children are looked for.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

impl Supervisor {
    /// A supervisor without children.
    pub fn new(live: LiveSettings) -> Self {
        Self {
            live,
            children: BTreeMap::new(),
            next: 0,
            tasks: JoinSet::new(),
            by_task: HashMap::new(),
            leaving: HashMap::new(),
            windows: HashMap::new(),
            counted: HashMap::new(),
            failed: watch::Sender::default(),
            watch_at: Instant::now(),
            events: std::collections::VecDeque::new(),
        }
    }

    /// Starts a child. One of a stage that was given up on waits until that is started anew.
    pub fn start(&mut self, spec: ChildSpec) {
        let key = self.next;
        self.next += 1;
        let scope = ChildScope {
            drain: CancellationToken::new(),
            activity: Arc::default(),
            failed: self.failed.subscribe(),
        };
        let failed = self.is_failed(&spec.id);
        let state = match failed {
            true => State::Failed,
            false => State::Waiting {
                until: Instant::now(),
            },
        };
        let restarts = self.counted.remove(&spec.id).unwrap_or_default();
        self.children.insert(
            key,
            Child {
                spec,
                scope,
                state,
                restarts,
                last_fault: None,
                retired: false,
            },
        );
        if !failed {
            self.launch(key);
        }
    }

    fn is_failed(&self, id: &ChildId) -> bool {
        self.failed.borrow().iter().any(|s| id.stage.serves(s))
    }

    fn is_leaving(&self, key: usize) -> bool {
        self.leaving.values().any(|&k| k == key)
    }

    fn launch(&mut self, key: usize) {
        if self.is_leaving(key) {
            return;
        }
        let Some(child) = self.children.get_mut(&key) else {
            return;
        };
        child.scope.activity = Arc::default();
        let task = self.tasks.spawn((child.spec.run)(child.scope.clone()));
        self.by_task.insert(task.id(), key);
        child.state = State::Running { task };
    }

    /// Tells these children to finish what they hold.
    pub fn drain(&self, of: impl Fn(&ChildId) -> bool) {
        for child in self.children.values().filter(|c| of(&c.spec.id)) {
            child.scope.drain.cancel();
        }
    }

    /// Lets these children finish what they hold and forgets each once it has; nobody waits for it, and another
    /// child may take its place at once.
    pub fn retire(&mut self, of: impl Fn(&ChildId) -> bool) {
        let mut idle = Vec::new();
        for (&key, child) in self.children.iter_mut() {
            if !of(&child.spec.id) || child.retired {
                continue;
            }
            child.scope.drain.cancel();
            child.retired = true;
            // What it would start again with is let go of now: its listener, for one.
            child.spec.run = Box::new(|_| Box::pin(async { Ok(()) }));
            if !matches!(child.state, State::Running { .. }) {
                idle.push(key);
            }
        }
        for key in idle {
            self.children.remove(&key);
        }
    }

    /// Whether each of these children has finished or failed.
    pub fn is_drained(&self, of: impl Fn(&ChildId) -> bool) -> bool {
        self.unfinished(of).next().is_none()
    }

    /// Those of these that still run, or wait to.
    pub fn unfinished(&self, of: impl Fn(&ChildId) -> bool) -> impl Iterator<Item = &ChildId> {
        self.children
            .values()
            .filter(|c| !matches!(c.state, State::Finished | State::Failed))
            .map(|c| &c.spec.id)
            .filter(move |id| of(id))
    }

    /// The children that are at a piece of work, and for how long, longest first: who the others may be waiting for.
    pub fn at_work(&self) -> Vec<(&ChildId, Duration)> {
        let now = Instant::now();
        let running = self
            .children
            .values()
            .filter(|c| matches!(c.state, State::Running { .. }));
        let mut busy: Vec<_> = running
            .filter_map(|c| Some((&c.spec.id, c.scope.activity.busy_for(now)?)))
            .collect();
        busy.sort_by_key(|(_, since)| std::cmp::Reverse(*since));
        busy
    }

    /// Stops these children wherever they are and forgets them; a stage of which none is left has no failure to be
    /// remembered, and no crash but those that count for one that is made again.
    pub async fn remove(&mut self, of: impl Fn(&ChildId) -> bool) {
        let gone: Vec<usize> = self
            .children
            .iter()
            .filter(|(_, c)| of(&c.spec.id))
            .map(|(&k, _)| k)
            .collect();
        for key in gone {
            self.abort(key);
            if let Some(child) = self.children.remove(&key).filter(|c| c.restarts > 0) {
                *self.counted.entry(child.spec.id).or_default() += child.restarts;
            }
        }
        let children = &self.children;
        let is_served = |stage: &Stage| children.values().any(|c| c.spec.id.stage.serves(stage));
        let now = Instant::now().into_std();
        self.windows.retain(|stage, window| {
            is_served(stage) || (!window.is_failed() && window.recent(now) > 0)
        });
        self.failed.send_if_modified(|failed| {
            let before = failed.len();
            failed.retain(is_served);
            failed.len() != before
        });
        while self
            .leaving
            .values()
            .any(|k| !self.children.contains_key(k))
        {
            match self.tasks.join_next_with_id().await {
                Some(ended) => self.ended(ended),
                None => break,
            }
        }
    }

    /// Every child, in the order of a start.
    pub fn status(&self) -> Vec<ChildStatus> {
        let mut children: Vec<&Child> = self.children.values().filter(|c| !c.retired).collect();
        children.sort_by_key(|c| &c.spec.id);
        children
            .into_iter()
            .map(|c| ChildStatus {
                name: c.spec.id.to_string(),
                stage: c.spec.id.stage.to_string(),
                state: match c.state {
                    State::Running { .. } => Standing::Running,
                    State::Waiting { .. } => Standing::Waiting,
                    State::Finished => Standing::Finished,
                    State::Failed => Standing::Failed,
                },
                restarts: c.restarts,
                last_fault: c.last_fault.clone(),
            })
            .collect()
    }

    /// What these of the running children are seen to do.
    pub fn activities(
        &self,
        of: impl Fn(&ChildId) -> bool,
    ) -> impl Iterator<Item = (&ChildId, &Activity)> {
        self.children
            .values()
            .filter(move |c| of(&c.spec.id) && !c.retired)
            .filter(|c| matches!(c.state, State::Running { .. }))
            .map(|c| (&c.spec.id, &*c.scope.activity))
    }

    /// Restarts of a stage within its window.
    pub fn recent_restarts(&self, stage: &Stage, now: std::time::Instant) -> u32 {
        self.windows.get(stage).map_or(0, |w| w.recent(now))
    }

    /// Waits for the next event, restarting children meanwhile. Cancel-safe.
    pub async fn next_event(&mut self) -> Event {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            // One whose old task has not ended yet is started when it has, whatever the time.
            let wake = self.children.iter().filter_map(|(key, c)| match c.state {
                State::Waiting { until } if !self.is_leaving(*key) => Some(until),
                _ => None,
            });
            // A time, not a span: whoever calls this drops it for every other event, and starts anew.
            let wake = wake.min().map_or(self.watch_at, |at| at.min(self.watch_at));
            tokio::select! {
                biased;
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
                () = tokio::time::sleep_until(wake) => {
                    self.restart_due();
                    if self.watch_at <= Instant::now() {
                        self.watch_at = Instant::now() + WATCH_INTERVAL;
                        self.abort_hung();
                    }
                }
            }
        }
    }

    /// Ends a child where it stands and starts it again.
    #[cfg(test)]
    pub(super) fn restart(&mut self, id: &ChildId) {
        let found = self.children.iter().find(|(_, c)| c.spec.id == *id);
        if let Some(key) = found.map(|(&key, _)| key) {
            self.wait(key, Instant::now(), true);
        }
    }

    fn restart_due(&mut self) {
        let now = Instant::now();
        let due: Vec<usize> = self
            .children
            .iter()
            .filter(|(_, c)| matches!(c.state, State::Waiting { until } if until <= now))
            .map(|(&k, _)| k)
            .collect();
        for key in due {
            self.launch(key);
        }
    }

    fn abort_hung(&mut self) {
        let limit = self.live.borrow().health.stalled_after;
        let now = Instant::now();
        let hung: Vec<(usize, Duration)> = self
            .children
            .iter()
            .filter(|(_, c)| matches!(c.state, State::Running { .. }) && !c.retired)
            .filter_map(|(&k, c)| {
                c.scope
                    .activity
                    .busy_for(now)
                    .filter(|d| *d > limit)
                    .map(|d| (k, d))
            })
            .collect();
        for (key, stalled) in hung {
            self.abort(key);
            self.crashed(key, Fault::Hung(stalled), None);
        }
    }

    fn ended(&mut self, ended: Result<(Id, anyhow::Result<()>), JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        if self.leaving.remove(&id).is_some() {
            return;
        }
        let Some(key) = self.by_task.remove(&id) else {
            return;
        };
        let Some(child) = self.children.get_mut(&key) else {
            return;
        };
        if child.retired {
            if !matches!(ended, Ok((_, Ok(())))) {
                tracing::warn!(
                    child = %child.spec.id,
                    "a child that was replaced did not end well"
                );
            }
            self.children.remove(&key);
            return;
        }
        match ended {
            Ok((_, Ok(()))) => {
                child.state = State::Finished;
                self.events.push_back(Event::Finished {
                    child: child.spec.id.clone(),
                });
            }
            Ok((_, Err(error))) if error.is::<Relieved>() => {
                let cause = error.to_string();
                child.state = State::Failed;
                child.last_fault = Some(cause.clone());
                self.events.push_back(Event::Relieved {
                    child: child.spec.id.clone(),
                    cause,
                });
            }
            Ok((_, Err(error))) => {
                let blamed = error.downcast_ref::<Blamed>().map(|b| b.stage.clone());
                self.crashed(key, Fault::Failed(format!("{error:#}")), blamed);
            }
            Err(error) => {
                let fault = match error.try_into_panic() {
                    Ok(payload) => Fault::Panicked(panic_message(payload.as_ref())),
                    Err(error) => Fault::Failed(error.to_string()),
                };
                self.crashed(key, fault, None);
            }
        }
    }

    fn crashed(&mut self, key: usize, fault: Fault, blamed: Option<Stage>) {
        let now = Instant::now();
        let Some(child) = self.children.get_mut(&key) else {
            return;
        };
        child.last_fault = Some(fault.to_string());
        let id = child.spec.id.clone();
        let stage = blamed.unwrap_or_else(|| id.stage.clone());
        let policy = self.policy(&stage).unwrap_or_default();
        let window = self
            .windows
            .entry(stage.clone())
            .or_insert_with(|| RestartWindow::new(policy));
        window.retune(policy);
        match window.on_crash(now.into_std(), fault.to_string()) {
            Decision::Restart { after } => {
                tracing::warn!(child = %id, stage = %stage, %fault, restart_in = ?after, "child crashed");
                for k in self.restarted_with(key, policy.strategy()) {
                    self.wait(k, now + after, k == key);
                }
                self.events
                    .push_back(Event::Restarting { child: id, fault });
            }
            Decision::Failed => {
                let cause = window
                    .first_fault()
                    .map_or_else(|| fault.to_string(), |f| f.error.to_string());
                tracing::error!(stage = %stage, %fault, root_cause = cause, "stage failed: too many restarts");
                self.give_up(&stage, |id| id.stage.serves(&stage), cause);
            }
        }
    }

    /// A stage of pipeline.toml has one.
    fn policy(&self, stage: &Stage) -> Option<restart::Settings> {
        let settings = self.live.borrow();
        settings.policies(&stage.to_string()).map(|p| p.supervision)
    }

    /// Which children a crash of this one restarts. Those that belong to no stage of pipeline.toml (the admin
    /// interface, the log's filter) have no part in what the stages do to one another.
    fn restarted_with(&self, crashed: usize, strategy: Strategy) -> Vec<usize> {
        let Some(first) = self.children.get(&crashed).map(|c| &c.spec.id) else {
            return Vec::new();
        };
        let affected = |child: &Child| {
            !child.retired
                && self.policy(&child.spec.id.stage).is_some()
                && match strategy {
                    Strategy::OneForOne => false,
                    Strategy::OneForAll => true,
                    // Upstream of it, and in shards behind it: whenever each of them was opened.
                    Strategy::RestForOne => child.spec.id > *first,
                }
        };
        self.children
            .iter()
            .filter(|(key, child)| **key == crashed || affected(child))
            .map(|(key, _)| *key)
            .collect()
    }

    /// Gives up a stage at once, whatever its restarts, and with it these children: trying again would not help.
    pub fn fail(&mut self, stage: &Stage, of: impl Fn(&ChildId) -> bool, cause: &str) {
        // Every shard that meets the cause says so.
        if self.failed.borrow().contains(stage) {
            return;
        }
        tracing::error!(stage = stage.to_string(), cause, "stage failed");
        self.give_up(stage, of, cause.to_owned());
    }

    /// Starts these of the children that were given up on anew, with no crash remembered; says which stages are
    /// failed no more.
    pub fn revive(&mut self, of: impl Fn(&ChildId) -> bool) -> Vec<Stage> {
        let until = Instant::now();
        for child in self.children.values_mut() {
            if matches!(child.state, State::Failed) && !child.retired && of(&child.spec.id) {
                child.state = State::Waiting { until };
            }
        }
        let still = |stage: &Stage| {
            let mut failed = self.children.values().filter(|c| !c.retired);
            failed.any(|c| matches!(c.state, State::Failed) && c.spec.id.stage.serves(stage))
        };
        let all = self.failed.borrow().clone();
        let (failed, revived): (BTreeSet<Stage>, BTreeSet<Stage>) =
            all.into_iter().partition(still);
        for stage in &revived {
            self.windows.remove(stage);
        }
        self.failed.send_replace(failed);
        revived.into_iter().collect()
    }

    fn give_up(&mut self, stage: &Stage, of: impl Fn(&ChildId) -> bool, cause: String) {
        let on_failed = self.policy(stage).unwrap_or_default().on_failed();
        let members: Vec<usize> = self
            .children
            .iter()
            .filter(|(_, c)| of(&c.spec.id))
            .map(|(&k, _)| k)
            .collect();
        for key in members {
            self.abort(key);
            if let Some(child) = self.children.get_mut(&key) {
                child.state = State::Failed;
            }
        }
        self.failed
            .send_if_modified(|failed| failed.insert(stage.clone()));
        self.events.push_back(Event::Failed {
            stage: stage.clone(),
            cause,
            on_failed,
        });
    }

    /// Aborts a child's task, if it runs; whoever calls gives the child its next state.
    fn abort(&mut self, key: usize) {
        if let Some(Child {
            state: State::Running { task },
            ..
        }) = self.children.get(&key)
        {
            task.abort();
            if self.by_task.remove(&task.id()).is_some() {
                self.leaving.insert(task.id(), key);
            }
        }
    }

    fn wait(&mut self, key: usize, until: Instant, crashed: bool) {
        self.abort(key);
        let Some(child) = self.children.get_mut(&key) else {
            return;
        };
        match &child.state {
            State::Running { .. } => {}
            State::Finished | State::Failed => return,
            State::Waiting { .. } if !crashed => return,
            State::Waiting { .. } => {}
        }
        child.restarts += 1;
        child.state = State::Waiting { until };
    }
}

/// The text of a panic, as the panic hook would print it.
pub fn panic_message(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
