//! What goes on while something takes its time: all else, and other changes of the configuration.
//!
//! A change that takes a rebuild may have to wait: for a connection, for a drain, for brokers that are away. What is saved
//! meanwhile is looked at at once. What is bad is told. What only retunes is in force at once, here and in what is being made.
//! Anything else takes the place of the change that waits, which is given up; taken back, so is that.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::handle::Phase;
use super::reload::{Unapplied, refusal, tell};
use super::shutdown::Signals;
use super::supervisor::Supervisor;
use super::{Coordinator, Drained, Stopping};
use crate::config::reload::{Changed, Verdict, diff, revision};
use crate::config::{Loaded, ReloadClass, Settings};

/// A change that is being taken to what runs.
pub(super) struct UnderWay {
    /// All that is to be in force with it.
    loaded: Loaded,
    /// What the pipeline that is being made reads its settings from.
    coming: Option<watch::Sender<Arc<Settings>>>,
    /// What takes its place.
    next: Option<Loaded>,
    /// What is wrong with the newest configuration, which is another one.
    complaint: Option<String>,
}

impl UnderWay {
    pub(super) fn new(loaded: Loaded) -> Self {
        Self {
            loaded,
            coming: None,
            next: None,
            complaint: None,
        }
    }

    /// What there is to know when it is over: what was to be in force, what takes its place, and what is wrong with what was
    /// saved last.
    pub(super) fn done(self) -> (Loaded, Option<Loaded>, Option<String>) {
        (self.loaded, self.next, self.complaint)
    }
}

/// Whether all of it can be in force at once.
fn retunes(changed: &[Changed]) -> bool {
    changed.iter().all(|c| c.class == ReloadClass::Live)
}

impl Coordinator {
    /// Waits for `work` while everything else goes on: children are restarted, health is looked at, and a stop is
    /// obeyed at once. `None`: it is for a change of the configuration whose place another one takes.
    pub(super) async fn meanwhile<T>(
        &mut self,
        signals: &mut Signals,
        work: impl Future<Output = T>,
    ) -> Result<Option<T>, Stopping> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(Some(done)),
                attended = self.attend(signals, self.under_way.is_some()) => {
                    let changed = attended?;
                    self.look_meanwhile(changed);
                }
            };
            if self.is_given_up() {
                return Ok(None);
            }
            self.see_to_shards(signals).await?;
            self.publish();
        }
    }

    /// … which is an error to whoever takes the change to what runs.
    pub(super) async fn unless_given_up<T>(
        &mut self,
        signals: &mut Signals,
        work: impl Future<Output = T>,
    ) -> Result<T, Unapplied> {
        let done = self.meanwhile(signals, work).await?;
        done.ok_or(Unapplied::GivenUp)
    }

    /// Waits until this is so, looking again after whatever happens.
    pub(super) async fn until(
        &mut self,
        drained: impl Fn(&Supervisor) -> bool,
        deadline: Instant,
        signals: &mut Signals,
    ) -> Drained {
        loop {
            if self.shared.phase() != Phase::Running {
                self.let_taken_go().await;
            }
            if drained(&self.supervisor) {
                return Drained::All;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Drained::Late;
            }
            tokio::select! {
                attended = self.attend(signals, self.under_way.is_some()) => match attended {
                    Err(Stopping::Asked) => return Drained::Stopped,
                    // A stage that is given up holds nothing any more: the rest is drained all the same.
                    Err(Stopping::Failed) => self.failed_for_good = true,
                    Err(Stopping::Fenced) => self.fenced = true,
                    Ok(changed) => self.look_meanwhile(changed),
                },
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    /// Whether another change takes the place of the one that is under way.
    pub(super) fn is_given_up(&self) -> bool {
        self.under_way.as_ref().is_some_and(|w| w.next.is_some())
    }

    /// A pipeline is being made that reads its settings from this.
    pub(super) fn coming(&mut self, settings: &watch::Sender<Arc<Settings>>) {
        if let Some(work) = &mut self.under_way {
            work.coming = Some(settings.clone());
        }
    }

    /// What the change that is under way comes to, with what was retuned since.
    pub(super) fn to_be_in_force(&self) -> Arc<Settings> {
        match &self.under_way {
            Some(work) => self.reloads.resolve(&work.loaded.settings),
            None => self.live.borrow().clone(),
        }
    }

    /// Looks at the configuration while a change of it is under way, if a source of it has changed or somebody asks for it.
    fn look_meanwhile(&mut self, changed: bool) {
        let asked = self.asked.1 || !self.asked.0.is_empty();
        if self.under_way.is_none() || !(changed || asked) {
            return;
        }
        let (why, began) = match changed {
            true => ("a source of it changed", Instant::now()),
            false => ("asked for", Instant::now()),
        };
        self.asked.1 = false;
        let askers = std::mem::take(&mut self.asked.0);
        let settled = match self.load(why, began) {
            Some(loaded) => self.compare(loaded, (why, began)),
            None => {
                self.complains();
                true
            }
        };
        match settled {
            true => {
                let revision = self.reloads.history.last();
                for done in askers {
                    // Whoever asked may have gone away meanwhile.
                    drop(done.send(revision.clone()));
                }
            }
            // They are told what becomes of what is under way, or of what takes its place.
            false => self.askers.extend(askers),
        }
        self.check_health();
    }

    /// The newest configuration cannot be had: that is said until another one comes, whatever becomes of this one.
    fn complains(&mut self) {
        let complaint = self.reloads.history.complaint();
        if let Some(work) = &mut self.under_way {
            work.complaint = complaint;
        }
    }

    /// What another configuration means for the change that is under way; whether that was all that there is to it.
    fn compare(&mut self, loaded: Loaded, (why, began): (&str, Instant)) -> bool {
        let running = diff(&self.reloads.loaded.effective, &loaded.effective);
        let Some(work) = &mut self.under_way else {
            return false;
        };
        if let Some(error) = refusal(&running) {
            let error = format!("{error:#}");
            tracing::error!(why, error, "configuration not applied");
            let took = began.elapsed();
            let failed = revision(Verdict::Failed, Some(&loaded), running, Some(error), took);
            self.reloads.history.note(failed, None);
            self.complains();
            return true;
        }
        work.complaint = None;
        self.reloads.history.complain(None);
        let differs = diff(&work.loaded.effective, &loaded.effective);
        let (differs, is_this) = match &work.next {
            Some(next) if !retunes(&differs) => (diff(&next.effective, &loaded.effective), false),
            _ => (differs, true),
        };
        if !retunes(&differs) {
            work.next = Some(loaded);
            return false;
        }
        // Of the two it is the one that is under way still, or the one that takes its place.
        match is_this {
            true => {
                work.next = None;
                if let Some(coming) = &work.coming {
                    coming.send_replace(self.reloads.resolve(&loaded.settings));
                }
                work.loaded = loaded.clone();
            }
            false => work.next = Some(loaded.clone()),
        }
        if differs.is_empty() {
            return false;
        }
        let retuned = self.reloads.loaded.retuned(&loaded, &differs);
        let settings = self.reloads.resolve(&retuned.settings);
        self.feeds.send(&settings);
        self.reloads.sender.send_replace(settings);
        tell(&differs);
        let took = began.elapsed();
        tracing::info!(
            why,
            keys = differs.len(),
            ?took,
            "configuration retuned while another change of it is under way"
        );
        let applied = revision(Verdict::Applied, Some(&loaded), differs, None, took);
        self.reloads.history.note(applied, Some(&retuned));
        self.reloads.loaded = retuned;
        if self.shared.phase() == Phase::Running {
            self.revive();
        }
        if let Some(work) = &self.under_way {
            let left = diff(&self.reloads.loaded.effective, &work.loaded.effective);
            self.reloads.history.now_takes(&left);
        }
        true
    }
}
