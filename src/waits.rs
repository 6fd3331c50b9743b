//! What is waited for outside of this process: in the log and to be seen by whoever looks, before a second has passed.
//!
//! Whoever asks others and may be kept waiting does so by [`Waits::during`]. How long it waits is its own business.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What is answered sooner is nothing to speak of.
const TOLD_AFTER: Duration = Duration::from_millis(800);
/// The same is said again no sooner: tries that follow each other are one wait to whoever reads the log.
const TOLD_AGAIN: Duration = Duration::from_secs(10);

/// The waits of a stage.
#[derive(Debug)]
pub struct Waits {
    stage: Arc<str>,
    /// By what is waited for.
    open: Mutex<BTreeMap<&'static str, Wait>>,
}

#[derive(Debug, Default)]
struct Wait {
    /// When each of those who wait for it began.
    since: Vec<Instant>,
    told: Option<Instant>,
}

impl Waits {
    /// Nothing is waited for.
    pub fn new(stage: Arc<str>) -> Self {
        Self {
            stage,
            open: Mutex::default(),
        }
    }

    /// Drives what waits for `what` ("read the checkpoints") to its end, and says so if that takes its time.
    ///
    /// As cancel-safe as `work`: dropped, it waits no more.
    pub async fn during<T>(&self, what: &'static str, work: impl Future<Output = T>) -> T {
        let since = Instant::now();
        self.open.lock().entry(what).or_default().since.push(since);
        let waiting = Waiting {
            waits: self,
            what,
            since,
        };
        let mut work = pin!(work);
        let mut untold = Some(TOLD_AFTER);
        while let Some(pause) = untold {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(pause) => untold = waiting.tell(),
            }
        }
        work.await
    }

    /// When there will be something to speak of, or was.
    pub fn told_at(&self) -> Option<Instant> {
        let open = self.open.lock();
        let since = open.values().flat_map(|wait| &wait.since);
        Some(*since.min()? + TOLD_AFTER)
    }

    /// What has been waited for longest, if that is long enough to speak of.
    pub fn longest(&self) -> Option<&'static str> {
        let now = Instant::now();
        let open = self.open.lock();
        let first = |wait: &Wait| wait.since.iter().min().copied();
        let late = open
            .iter()
            .filter_map(|(what, wait)| Some((first(wait)?, *what)))
            .filter(|(since, _)| now.duration_since(*since) >= TOLD_AFTER);
        late.min().map(|(_, what)| what)
    }
}

/// Somebody who waits.
struct Waiting<'a> {
    waits: &'a Waits,
    what: &'static str,
    since: Instant,
}

impl Waiting<'_> {
    /// Says so; if that was said of another a moment ago, returns when to try again.
    fn tell(&self) -> Option<Duration> {
        let now = Instant::now();
        let mut open = self.waits.open.lock();
        let wait = open.entry(self.what).or_default();
        let since = wait.told.map(|at| now.duration_since(at));
        if let Some(since) = since.filter(|since| *since < TOLD_AGAIN) {
            return Some(TOLD_AGAIN.saturating_sub(since));
        }
        wait.told = Some(now);
        let stage = &*self.waits.stage;
        tracing::warn!(stage, what = self.what, "waiting for an answer");
        None
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut open = self.waits.open.lock();
        let wait = open.entry(self.what).or_default();
        if let Some(at) = wait.since.iter().position(|since| *since == self.since) {
            wait.since.swap_remove(at);
        }
        let took = now.duration_since(self.since);
        if took >= TOLD_AFTER && wait.since.is_empty() {
            let stage = &*self.waits.stage;
            tracing::info!(stage, what = self.what, ?took, "waits no more");
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_takes_its_time_is_seen_until_it_is_done_or_given_up() {
        let waits = Waits::new("sink".into());
        let mut slow = Box::pin(waits.during("a", std::future::pending::<()>()));
        assert!((&mut slow).now_or_never().is_none());
        assert_eq!(waits.longest(), None, "nothing to speak of");
        tokio::time::advance(TOLD_AFTER).await;
        // Polled or not, it is seen.
        assert_eq!(waits.longest(), Some("a"));
        let sleep = tokio::time::sleep(TOLD_AFTER * 2);
        let quicker = waits.during("b", sleep);
        let seen = async {
            tokio::time::sleep(TOLD_AFTER * 3 / 2).await;
            assert_eq!(waits.longest(), Some("a"), "the longest");
        };
        tokio::join!(quicker, seen);
        assert!((&mut slow).now_or_never().is_none());
        drop(slow);
        assert_eq!(waits.longest(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn several_wait_for_the_same() {
        let waits = Waits::new("sink".into());
        let wait = |seconds| waits.during("a", tokio::time::sleep(Duration::from_secs(seconds)));
        let seen = async {
            for _ in 0..2 {
                tokio::time::sleep(Duration::from_secs(2)).await;
                assert_eq!(waits.longest(), Some("a"));
            }
        };
        tokio::join!(wait(3), wait(5), seen);
        assert_eq!(waits.longest(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_right_after_one_that_was_told_is_told_later_and_once() {
        let waits = Waits::new("sink".into());
        let told = || waits.open.lock()["a"].told;
        waits.during("a", tokio::time::sleep(TOLD_AFTER * 2)).await;
        let first = told().expect("told");
        let again = waits.during("a", tokio::time::sleep(TOLD_AGAIN * 3));
        tokio::time::timeout(TOLD_AGAIN * 2, again)
            .await
            .expect_err("it goes on");
        assert_eq!(told(), Some(first + TOLD_AGAIN));
    }
}
