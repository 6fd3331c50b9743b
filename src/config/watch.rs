//! Tells when a source of the configuration has other content than the one that was loaded.
//!
//! Events only say *when* to look; what counts is the content. So the ways in which a file changes (written
//! in place, renamed over by an editor, deleted and made again, swapped by a link as Kubernetes does it,
//! bind-mounted) need not be told apart, and `touch` is no change.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::raw::{Sources, digest};
use super::settings::LiveSettings;

/// While events keep coming, wait no longer than this many times the debounce.
const PATIENCE: u32 = 10;

/// Watches sources. Spawns nothing but what `notify` does for itself.
pub struct Watch {
    live: LiveSettings,
    sources: Sources,
    watched: BTreeSet<PathBuf>,
    /// `None`: the system gives no watcher (it is out of them), so the poll has to do.
    watcher: Option<RecommendedWatcher>,
    events: Arc<Notify>,
    /// An event came: when the first and when the last did.
    pending: Option<(Instant, Instant)>,
    polled: Instant,
}

impl Watch {
    /// Watches what was read; `live` gives `[reload]`.
    pub fn new(live: LiveSettings, sources: &Sources) -> Self {
        let events = Arc::new(Notify::new());
        let wake = events.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
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
                .map(|(path, seen)| (path.clone(), *seen, digest(path)))
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
            .any(|(path, seen)| digest(path) != *seen)
    }

    /// Watches each source itself (a bind-mounted file has no folder that tells), its folder (a rename), and
    /// where links lead (a file edited there).
    fn watch_folders(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let mut wanted = BTreeSet::new();
        for path in self.sources.keys() {
            wanted.insert(path.clone());
            wanted.insert(existing(path.parent().unwrap_or(Path::new(""))));
            if let Ok(real) = path.canonicalize() {
                wanted.extend(real.parent().map(Path::to_owned));
                wanted.insert(real);
            }
        }
        for gone in self.watched.difference(&wanted) {
            // It may be gone from the system too, and its watch with it.
            drop(watcher.unwatch(gone));
        }
        let mut watched = BTreeSet::new();
        for path in wanted {
            // A file's watch follows the inode, so it is set anew each time; a folder's stays.
            if self.watched.contains(&path) {
                if path.is_dir() {
                    watched.insert(path);
                    continue;
                }
                drop(watcher.unwatch(&path));
            }
            // What is not there cannot be watched; its folder is.
            if watcher.watch(&path, RecursiveMode::NonRecursive).is_ok() {
                watched.insert(path);
            }
        }
        self.watched = watched;
    }
}

/// The folder, or the nearest above it that is there; the empty path is the current one.
fn existing(folder: &Path) -> PathBuf {
    let found = folder
        .ancestors()
        .find(|f| !f.as_os_str().is_empty() && f.is_dir());
    found.map_or_else(|| PathBuf::from("."), Path::to_owned)
}
