//! Tells when a source of the configuration has other content than the one that was loaded.
//!
//! Events only say *when* to look; what counts is the content. So the ways in which a file changes (written
//! in place, renamed over by an editor, deleted and made again, swapped by a link as Kubernetes does it,
//! bind-mounted) need not be told apart, and `touch` is no change.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::seen::Sources;
use super::settings::LiveSettings;

/// While events keep coming, wait no longer than this many times the debounce.
const PATIENCE: u32 = 10;
/// A file that somebody wrote to and has not closed is half of something, which may be valid: it is looked at once nothing
/// has been written for so long. Far more than a writer pauses, and the close may be one that we never hear of.
const UNFINISHED: Duration = Duration::from_secs(2);
/// … and, should somebody write on and on, so long after the first event.
const NEVER_FINISHED: Duration = Duration::from_secs(10);
/// As the system has it (`path_resolution(7)`): more are a circle.
const MAX_LINKS: usize = 40;

/// Watches sources. Spawns nothing but what `notify` does for itself.
pub struct Watch {
    live: LiveSettings,
    sources: Sources,
    watched: BTreeSet<PathBuf>,
    /// `None`: the system gives no watcher (it is out of them), so the poll has to do.
    watcher: Option<RecommendedWatcher>,
    events: Arc<Notify>,
    writing: Arc<Mutex<Writing>>,
    /// An event came: when the first and when the last did.
    pending: Option<(Instant, Instant)>,
    polled: Instant,
}

/// Who writes to a source at the moment, by the system's word, where it gives one.
#[derive(Default)]
struct Writing {
    /// The sources, by the names that events have.
    sources: BTreeSet<PathBuf>,
    /// Those of them that were written to and not closed since.
    open: BTreeSet<PathBuf>,
}

impl Writing {
    fn hear(&mut self, event: &notify::Event) {
        for path in &event.paths {
            match event.kind {
                EventKind::Modify(ModifyKind::Data(_)) if self.sources.contains(path) => {
                    self.open.insert(path.clone());
                }
                // Whoever writes to what has another name now writes to no source.
                EventKind::Access(AccessKind::Close(AccessMode::Write))
                | EventKind::Modify(ModifyKind::Name(_))
                | EventKind::Remove(_) => {
                    self.open.remove(path);
                }
                _ => {}
            }
        }
    }
}

impl Watch {
    /// Watches what was read; `live` gives `[reload]`.
    pub fn new(live: LiveSettings, sources: &Sources) -> Self {
        let events = Arc::new(Notify::new());
        let wake = events.clone();
        let writing = Arc::new(Mutex::new(Writing::default()));
        let heard = writing.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            match &event {
                Ok(event) => heard.lock().hear(event),
                // What was missed may have been a close.
                Err(_) => heard.lock().open.clear(),
            }
            // Reading a file is an event too, and we do that ourselves. An error (an overflow) means look.
            let looks = match event.map(|e| e.kind) {
                Ok(EventKind::Access(AccessKind::Close(AccessMode::Write))) | Err(_) => true,
                Ok(EventKind::Access(_)) => false,
                Ok(_) => true,
            };
            if looks {
                wake.notify_one();
            }
        });
        let watcher = match watcher {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(%error, "no file events, polling for changes of the configuration");
                None
            }
        };
        let mut watch = Self {
            live,
            sources: Sources::new(),
            watched: BTreeSet::new(),
            watcher,
            events,
            writing,
            pending: None,
            polled: Instant::now(),
        };
        watch.set_sources(sources);
        watch
    }

    /// Watches what was read last, good or not, and compares with the content that was read then.
    pub fn set_sources(&mut self, sources: &Sources) {
        self.sources.clone_from(sources);
        self.watch_folders();
        // What changed between the read and now came without an event.
        if self.differs() {
            self.touch();
        }
    }

    /// Waits until a source has other content. Cancel-safe.
    pub async fn next(&mut self) {
        loop {
            let (watching, poll, debounce) = {
                let live = self.live.borrow();
                (
                    live.reload.watch,
                    live.reload.poll_interval,
                    live.reload.debounce,
                )
            };
            let look_at = match self.pending {
                // Inotify alone tells of the end of a write.
                Some((first, last)) if watching && !self.writing.lock().open.is_empty() => {
                    (last + UNFINISHED).min(first + NEVER_FINISHED)
                }
                Some((first, last)) if watching => {
                    (last + debounce).min(first + debounce * PATIENCE)
                }
                _ => self.polled + poll,
            };
            tokio::select! {
                biased;
                changed = self.live.changed() => {
                    // Another interval, perhaps. Without a sender nothing changes any more.
                    if changed.is_err() {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    continue;
                }
                () = self.events.notified(), if watching => {
                    self.touch();
                    continue;
                }
                () = tokio::time::sleep_until(look_at) => {}
            }
            self.pending = None;
            self.polled = Instant::now();
            if !watching {
                continue;
            }
            // An editor's rename leaves the watch on the old file; a new folder has none.
            self.watch_folders();
            let changed: Vec<_> = self
                .sources
                .iter()
                .map(|(path, seen)| (path.clone(), *seen, seen.again(path)))
                .filter(|(_, seen, now)| seen != now)
                .collect();
            if !changed.is_empty() {
                for (path, _, now) in changed {
                    // Reported once, should the caller not load.
                    self.sources.insert(path, now);
                }
                return;
            }
        }
    }

    fn touch(&mut self) {
        let now = Instant::now();
        self.pending = Some((self.pending.map_or(now, |(first, _)| first), now));
    }

    fn differs(&self) -> bool {
        self.sources
            .iter()
            .any(|(path, seen)| seen.again(path) != *seen)
    }

    /// Watches each source itself (a bind-mounted file has no folder that tells), its folder (a rename), and
    /// where links lead (a file edited there).
    fn watch_folders(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        // A watch follows what has the name now, which may be another folder by the same name by the next look: so each
        // is set anew. Whoever looks compares contents after it, so nothing is missed between.
        for path in &self.watched {
            // It may be gone from the system too, and its watch with it.
            drop(watcher.unwatch(path));
        }
        self.watched = self.sources.keys().flat_map(|p| places(p)).collect();
        self.watched
            .retain(|path| watcher.watch(path, RecursiveMode::NonRecursive).is_ok());
        let mut writing = self.writing.lock();
        writing.sources.clone_from(&self.watched);
        writing.open.retain(|path| self.watched.contains(path));
    }
}

/// What to watch so that nothing can change which content a path has without an event: the folder of each of its
/// parts that is a link, the last part's folder, and what it leads to.
///
/// All of it without links and from the root, because the system has one watch for each folder, whatever it is
/// called: to end one under one name would end it under the others.
fn places(path: &Path) -> BTreeSet<PathBuf> {
    let mut places = BTreeSet::new();
    let Ok(path) = std::path::absolute(path) else {
        return places;
    };
    let mut at = PathBuf::new();
    // The next part stands last.
    let mut parts: Vec<_> = path.components().rev().map(own).collect();
    let mut links = 0;
    while let Some(part) = parts.pop() {
        if part == ".." {
            at.pop();
        }
        if part == "." || part == ".." {
            continue;
        }
        let next = at.join(&part);
        let link = std::fs::read_link(&next).ok();
        if link.is_some() || parts.is_empty() || !next.exists() {
            places.insert(at.clone());
        }
        match link {
            // What is not there cannot be watched, only waited for.
            None if !next.exists() => break,
            None => at = next,
            Some(_) if links == MAX_LINKS => break,
            Some(to) => {
                links += 1;
                if to.is_absolute() {
                    at = PathBuf::new();
                }
                parts.extend(to.components().rev().map(own));
            }
        }
        if parts.is_empty() {
            places.insert(at.clone());
        }
    }
    places
}

fn own(part: Component<'_>) -> OsString {
    part.as_os_str().to_owned()
}
