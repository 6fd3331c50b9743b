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
/// … and to whoever watches health: where one was long enough to speak of, those that follow it within this time …
const FOLLOWS: Duration = Duration::from_secs(1);
/// … are part of it, until for so long none took half of what is spoken of.
const CALM: Duration = Duration::from_secs(3);

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
    series: Option<Series>,
}

/// Waits for the same that follow each other, of which one was long enough to speak of.
#[derive(Clone, Copy, Debug)]
struct Series {
    began: Instant,
    /// The last that took its time ended.
    slow: Instant,
    /// The last of all ended.
    ended: Instant,
}

impl Wait {
    /// Since when there is something to speak of, if there is.
    fn seen(&self, now: Instant) -> Option<Instant> {
        let first = self.since.iter().min().copied();
        let long = first.filter(|first| now.duration_since(*first) >= TOLD_AFTER);
        let goes_on = |series: &Series| {
            let follows = first.is_some() || now.duration_since(series.ended) < FOLLOWS;
            follows && (long.is_some() || now.duration_since(series.slow) < CALM)
        };
        let series = self.series.filter(goes_on).map(|series| series.began);
        series.or(long)
    }

    /// One that began then ends.
    fn ends(&mut self, since: Instant, now: Instant) {
        let seen = self.seen(now);
        if let Some(at) = self.since.iter().position(|s| *s == since) {
            self.since.swap_remove(at);
        }
        let is_slow = now.duration_since(since) >= TOLD_AFTER / 2;
        let before = self.series.filter(|_| !is_slow);
        self.series = seen.map(|began| Series {
            began,
            slow: before.map_or(now, |series| series.slow),
            ended: now,
        });
    }
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
        let seen = open
            .iter()
            .filter_map(|(what, wait)| Some((wait.seen(now)?, *what)));
        seen.min().map(|(_, what)| what)
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
        wait.ends(self.since, now);
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
        assert_eq!(waits.longest(), Some("a"), "another may follow");
        tokio::time::advance(FOLLOWS).await;
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
        tokio::time::advance(FOLLOWS).await;
        assert_eq!(waits.longest(), None);
    }

    /// How often what is seen of these waits, one after the other, changes; and whether it is seen in the end.
    async fn changes(waits: &Waits, ms: impl Iterator<Item = u64>) -> (u32, bool) {
        let over = std::cell::Cell::new(false);
        let working = async {
            for ms in ms {
                waits
                    .during("a", tokio::time::sleep(Duration::from_millis(ms)))
                    .await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            over.set(true);
        };
        let looking = async {
            let (mut seen, mut changes) = (false, 0);
            while !over.get() {
                tokio::time::sleep(Duration::from_millis(7)).await;
                let now = waits.longest().is_some();
                changes += u32::from(now != seen);
                seen = now;
            }
            (changes, seen)
        };
        tokio::join!(working, looking).1
    }

    #[tokio::test(start_paused = true)]
    async fn waits_that_follow_each_other_are_seen_as_one_and_until_they_are_short() {
        let waits = Waits::new("sink".into());
        let as_topics_are_made = (0..100).map(|n| [300, 1_100, 90, 820][n % 4]);
        assert_eq!(changes(&waits, as_topics_are_made).await, (1, true));
        let short = std::iter::repeat_n(100, 60);
        assert_eq!(
            changes(&waits, short).await,
            (2, false),
            "it is seen, then no more"
        );
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
