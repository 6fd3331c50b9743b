//! What changed between two configurations, and what became of each change.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use super::{Effective, Loaded, ReloadClass};

/// Revisions that are remembered.
const HISTORY: usize = 100;

/// Of a step that is over sooner nobody speaks: most are made beside what runs, and hold nothing up.
const LONG_STEP: Duration = Duration::from_secs(2);

/// A key whose value differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// Dotted.
    pub key: String,
    /// Before; `null`: it was not set and had no default.
    pub old: Option<String>,
    /// After.
    pub new: Option<String>,
    /// What applying it takes.
    pub class: ReloadClass,
}

/// The key of the plugin of the transform that a key belongs to.
fn plugin_of(key: &str) -> Option<String> {
    let (name, _) = key.strip_prefix("transform.")?.split_once('.')?;
    Some(format!("transform.{name}.plugin"))
}

/// Every key that differs, in order. A secret's value shows as `***` on both sides.
pub fn diff(old: &[Effective], new: &[Effective]) -> Vec<Changed> {
    let by_key = |list: &'_ [Effective]| -> BTreeMap<String, Effective> {
        list.iter().map(|e| (e.key.clone(), e.clone())).collect()
    };
    let (old, new) = (by_key(old), by_key(new));
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    keys.into_iter()
        .filter_map(|key| {
            let (before, after) = (old.get(key), new.get(key));
            if before.map(|e| e.fingerprint) == after.map(|e| e.fingerprint) {
                return None;
            }
            let class = match (before, after) {
                (Some(before), Some(_)) => before.class,
                // A transform that comes or goes brings its keys along; one that stays may set or unset one.
                (Some(one), None) | (None, Some(one))
                    if key.starts_with("transform.")
                        && !plugin_of(key)
                            .is_some_and(|p| old.contains_key(&p) && new.contains_key(&p)) =>
                {
                    one.class.max(ReloadClass::Rebuild)
                }
                (Some(one), None) | (None, Some(one)) => one.class,
                (None, None) => return None,
            };
            Some(Changed {
                key: key.clone(),
                old: before.map(|e| e.value.clone()),
                new: after.map(|e| e.value.clone()),
                class,
            })
        })
        .collect()
}

/// What became of a look at the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// In force.
    Applied,
    /// Nothing that counts differs.
    Unchanged,
    /// Not valid, a plugin of it cannot be used, or not with its settings; what ran goes on.
    Rejected,
    /// Valid, but it could not be put in force; what ran goes on.
    Failed,
    /// Another one took its place before it was in force.
    Superseded,
}

impl Verdict {
    /// As metrics and logs name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Superseded => "superseded",
        }
    }
}

/// A look at the configuration that found a difference, or an error.
#[derive(Clone, Debug, Serialize)]
pub struct Revision {
    /// RFC 3339.
    pub at: String,
    /// SHA-256 of all that it was read from, as far as it could be read.
    pub hash: Option<String>,
    /// What became of it.
    pub outcome: Verdict,
    /// The most that a changed key takes.
    pub class: Option<ReloadClass>,
    /// Key by key.
    pub changed: Vec<Changed>,
    /// The first error, in one line.
    pub error: Option<String>,
    /// From the first look to in force, in milliseconds.
    pub took_ms: f64,
}

impl Revision {
    /// Whether it is, or was, in force.
    pub fn is_applied(&self) -> bool {
        self.outcome == Verdict::Applied
    }
}

/// A change that is being taken to what runs.
#[derive(Clone, Debug, Serialize)]
pub struct UnderWay {
    /// How long it has been under way, in seconds.
    pub for_seconds: f64,
    /// What is being done.
    pub step: &'static str,
    /// … and for how long, in seconds.
    pub step_seconds: f64,
    /// Who has to finish first, by the names of children.
    pub waits_for: Vec<String>,
    /// The most that a changed key takes.
    pub class: Option<ReloadClass>,
    /// Key by key.
    pub changed: Vec<Changed>,
}

struct Work {
    began: Instant,
    step: (&'static str, Instant),
    waits_for: Vec<String>,
    changed: Vec<Changed>,
}

#[derive(Default)]
struct Inner {
    under_way: Option<Work>,
    revisions: VecDeque<Revision>,
    counts: BTreeMap<Verdict, u64>,
    complaint: Option<String>,
    hash: String,
    effective: Vec<Effective>,
}

impl Inner {
    fn in_force(&mut self, loaded: &Loaded) {
        self.hash.clone_from(&loaded.hash);
        self.effective.clone_from(&loaded.effective);
    }
}

/// What became of the configurations so far; a cheap handle.
#[derive(Clone, Default)]
pub struct ReloadHistory(Arc<Mutex<Inner>>);

impl ReloadHistory {
    /// With the configuration that the process started with.
    pub fn new(first: &Loaded) -> Self {
        let this = Self::default();
        this.0.lock().in_force(first);
        this
    }

    /// A change is about to be taken to what runs.
    pub fn begin(&self, changed: &[Changed]) {
        let now = Instant::now();
        self.0.lock().under_way = Some(Work {
            began: now,
            step: ("making what is new", now),
            waits_for: Vec::new(),
            changed: changed.to_vec(),
        });
    }

    /// The change that is under way has come this far.
    pub fn step(&self, what: &'static str) {
        if let Some(work) = &mut self.0.lock().under_way {
            work.step = (what, Instant::now());
            work.waits_for.clear();
        }
    }

    /// … and waits for these.
    pub fn waits_for(&self, whom: impl Iterator<Item = String>) {
        if let Some(work) = &mut self.0.lock().under_way {
            work.waits_for = whom.collect();
        }
    }

    /// The change that is under way is in force by now, or will not be.
    pub fn end(&self) {
        self.0.lock().under_way = None;
    }

    /// … is this one by now: what is retuned meanwhile is in force already.
    pub fn now_takes(&self, changed: &[Changed]) {
        if let Some(work) = &mut self.0.lock().under_way {
            work.changed = changed.to_vec();
        }
    }

    /// What the change that is under way waits for, if it has for long enough to speak of.
    pub fn waits(&self) -> Option<String> {
        let inner = self.0.lock();
        let work = inner.under_way.as_ref()?;
        let (step, since) = work.step;
        let whom = match &work.waits_for[..] {
            [] => String::new(),
            whom => format!(", waiting for {}", whom.join(", ")),
        };
        (since.elapsed() >= LONG_STEP).then(|| format!("a change is under way: {step}{whom}"))
    }

    /// The change that is under way, if one is.
    pub fn under_way(&self) -> Option<UnderWay> {
        let inner = self.0.lock();
        let work = inner.under_way.as_ref()?;
        let seconds = |since: Instant| (since.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        Some(UnderWay {
            for_seconds: seconds(work.began),
            step: work.step.0,
            step_seconds: seconds(work.step.1),
            waits_for: work.waits_for.clone(),
            class: work.changed.iter().map(|c| c.class).max(),
            changed: work.changed.clone(),
        })
    }

    /// The newest last.
    pub fn list(&self) -> Vec<Revision> {
        self.0.lock().revisions.iter().cloned().collect()
    }

    /// The newest.
    pub fn last(&self) -> Option<Revision> {
        self.0.lock().revisions.back().cloned()
    }

    /// How often each verdict came.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let inner = self.0.lock();
        let all = [
            Verdict::Applied,
            Verdict::Unchanged,
            Verdict::Rejected,
            Verdict::Failed,
            Verdict::Superseded,
        ];
        all.into_iter()
            .map(|v| (v.name(), inner.counts.get(&v).copied().unwrap_or_default()))
            .collect()
    }

    /// Why the newest configuration is not in force; `None` if it is.
    pub fn complaint(&self) -> Option<String> {
        self.0.lock().complaint.clone()
    }

    /// The newest configuration is not in force, for this reason; `None`: it is, or will be.
    pub fn complain(&self, why: Option<String>) {
        self.0.lock().complaint = why;
    }

    /// The values in force, with where each came from.
    pub fn effective(&self) -> Vec<Effective> {
        self.0.lock().effective.clone()
    }

    /// SHA-256 of all that the configuration in force was read from.
    pub fn hash(&self) -> String {
        self.0.lock().hash.clone()
    }

    /// No value differs from what is in force, though a comment may; a complaint about a version in between is
    /// over.
    pub fn unchanged(&self, loaded: &Loaded) {
        let mut inner = self.0.lock();
        *inner.counts.entry(Verdict::Unchanged).or_default() += 1;
        inner.complaint = None;
        inner.in_force(loaded);
    }

    /// Notes what became of a difference. `now_in_force`: what was loaded, if it was applied.
    pub fn note(&self, revision: Revision, now_in_force: Option<&Loaded>) {
        let mut inner = self.0.lock();
        *inner.counts.entry(revision.outcome).or_default() += 1;
        inner.complaint = revision.error.clone();
        if let Some(loaded) = now_in_force {
            inner.in_force(loaded);
        }
        if inner.revisions.len() == HISTORY {
            inner.revisions.pop_front();
        }
        inner.revisions.push_back(revision);
    }
}

/// A revision that is being made.
pub fn revision(
    outcome: Verdict,
    loaded: Option<&Loaded>,
    changed: Vec<Changed>,
    error: Option<String>,
    took: Duration,
) -> Revision {
    let at = jiff::Timestamp::try_from(SystemTime::now())
        .map_or_else(|_| String::new(), |t| t.to_string());
    Revision {
        at,
        hash: loaded.map(|l| l.hash.clone()),
        outcome,
        class: changed.iter().map(|c| c.class).max(),
        changed,
        error,
        took_ms: (took.as_secs_f64() * 1e6).round() / 1e3,
    }
}
