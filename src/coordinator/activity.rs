//! What a child is seen to do: how much it has done, and for how long it has been at one piece of work.
//!
//! Waiting (for rows, for room, for an acknowledgement, for a breaker) is not work: a child that waits is idle,
//! however long. A child that has been *busy* with one piece for too long is hung.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Shared by a child and whoever watches it.
#[derive(Debug, Default)]
pub struct Activity {
    done: AtomicU64,
    pieces: Mutex<(u64, BTreeMap<u64, Instant>)>,
}

impl Activity {
    /// Counts finished work.
    pub fn record(&self, n: u64) {
        self.done.fetch_add(n, Relaxed);
    }

    /// Work finished since the start of the child.
    pub fn done(&self) -> u64 {
        self.done.load(Relaxed)
    }

    /// Begins a piece of work that ends when the guard is dropped.
    pub fn busy(self: &Arc<Self>) -> Busy {
        let mut pieces = self.pieces.lock();
        pieces.0 += 1;
        let id = pieces.0;
        pieces.1.insert(id, Instant::now());
        Busy {
            activity: self.clone(),
            id,
        }
    }

    /// How long the oldest unfinished piece has taken by `now`.
    pub fn busy_for(&self, now: Instant) -> Option<Duration> {
        self.pieces
            .lock()
            .1
            .values()
            .min()
            .map(|since| now.saturating_duration_since(*since))
    }
}

/// A piece of work under way.
#[derive(Debug)]
pub struct Busy {
    activity: Arc<Activity>,
    id: u64,
}

impl Busy {
    /// One step of it is done, and the next begins: it is not hung.
    pub fn goes_on(&self) {
        self.activity
            .pieces
            .lock()
            .1
            .insert(self.id, Instant::now());
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.activity.pieces.lock().1.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_oldest_unfinished_piece_counts() {
        let activity = Arc::new(Activity::default());
        assert_eq!(activity.busy_for(Instant::now()), None);
        let first = activity.busy();
        let started = Instant::now();
        let second = activity.busy();
        drop(first);
        assert!(
            activity
                .busy_for(started + Duration::from_secs(9))
                .is_some_and(|d| d <= Duration::from_secs(9))
        );
        let before = Instant::now();
        second.goes_on();
        assert_eq!(activity.busy_for(before), Some(Duration::ZERO));
        drop(second);
        assert_eq!(activity.busy_for(Instant::now()), None);
    }
}
