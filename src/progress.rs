//! How far long work is: how much of it, at what rate, and how long it will take still. Said now and then, not at each step,
//! and of short work not at all: in the log, or to whoever shows it ([`show_by`]).

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How often it is said in the log, and how often where somebody looks on.
const EVERY: Duration = Duration::from_secs(2);
const LOOKED_AT: Duration = Duration::from_millis(200);

/// Shows how far the work of a name is; `None`: it is over.
type Show = Box<dyn Fn(&str, Option<&HowFar>) + Send + Sync>;

static SHOW: OnceLock<Shown> = OnceLock::new();

/// Whoever shows it, and how often that is renewed.
struct Shown {
    by: Show,
    every: Duration,
}

/// Has long work shown by this instead of by the log, for as long as the process runs; `looked_at`: somebody sees it
/// change, so that it is renewed more often. Whoever came first stays.
pub(crate) fn show_by(
    looked_at: bool,
    show: impl Fn(&str, Option<&HowFar>) + Send + Sync + 'static,
) {
    SHOW.get_or_init(|| Shown {
        by: Box::new(show),
        every: if looked_at { LOOKED_AT } else { EVERY },
    });
}

/// Work that goes on.
#[derive(Debug)]
pub(crate) struct Progress {
    what: String,
    began: Instant,
    told: Instant,
    done: u64,
    of: Option<u64>,
    shown: bool,
}

/// How far it is. As text: `120 of 400, 60/s, 5s left`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct HowFar {
    /// What is done.
    pub(crate) done: u64,
    /// Of how much; `None`: nobody knows.
    pub(crate) of: Option<u64>,
    /// How much a second, since it began.
    pub(crate) per_second: f64,
}

impl Progress {
    /// Work of this name that begins now.
    pub(crate) fn begin(what: impl Into<String>, now: Instant) -> Self {
        Self {
            what: what.into(),
            began: now,
            told: now,
            done: 0,
            of: None,
            shown: false,
        }
    }

    /// One more is done. Now and then it is told how far that is, which is returned; of how much, is asked for then, and once.
    pub(crate) fn step(
        &mut self,
        of: impl FnOnce() -> Option<u64>,
        now: Instant,
    ) -> Option<HowFar> {
        self.reach(self.done + 1, of, now)
    }

    /// So much is done, as [`Self::step`] has it.
    pub(crate) fn reach(
        &mut self,
        done: u64,
        of: impl FnOnce() -> Option<u64>,
        now: Instant,
    ) -> Option<HowFar> {
        self.done = done;
        let show = SHOW.get();
        let every = show.map_or(EVERY, |shown| shown.every);
        if now.duration_since(self.told) < every {
            return None;
        }
        self.told = now;
        self.of = self.of.or_else(of);
        let far = self.how_far(now);
        match show {
            Some(shown) => {
                (shown.by)(&self.what, Some(&far));
                self.shown = true;
            }
            None => tracing::info!(work = self.what, progress = %far, "long work goes on"),
        }
        Some(far)
    }

    /// How far it is.
    pub(crate) fn how_far(&self, now: Instant) -> HowFar {
        let seconds = now.duration_since(self.began).as_secs_f64().max(1e-3);
        HowFar {
            done: self.done,
            of: self.of,
            per_second: self.done as f64 / seconds,
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(shown) = SHOW.get().filter(|_| self.shown) {
            (shown.by)(&self.what, None);
        }
    }
}

impl HowFar {
    /// How long it will take still, at this rate; `None`: nobody knows, or it is over.
    pub(crate) fn left(&self) -> Option<Duration> {
        let rest = self.of?.checked_sub(self.done).filter(|rest| *rest > 0)?;
        let seconds = rest as f64 / self.per_second;
        Duration::try_from_secs_f64(seconds.ceil()).ok()
    }
}

impl fmt::Display for HowFar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.done)?;
        if let Some(of) = self.of {
            write!(f, " of {of}")?;
        }
        write!(f, ", {:.0}/s", self.per_second)?;
        match self.left() {
            Some(left) => write!(f, ", {} left", humantime::format_duration(left)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_work_is_told_of_now_and_then_with_its_rate_and_the_time_that_is_left() {
        let began = Instant::now();
        let mut progress = Progress::begin("counting", began);
        let mut asked = 0;
        let told: Vec<String> = (1..=400)
            .filter_map(|n| {
                let of = || {
                    asked += 1;
                    Some(1_000)
                };
                let far = progress.step(of, began + Duration::from_millis(n * 10))?;
                Some(far.to_string())
            })
            .collect();
        assert_eq!(
            told,
            ["200 of 1000, 100/s, 8s left", "400 of 1000, 100/s, 6s left"]
        );
        assert_eq!(asked, 1, "of how much, is asked for once");
        let far = |of| HowFar {
            done: 400,
            of,
            per_second: 100.0,
        };
        assert_eq!(far(None).to_string(), "400, 100/s");
        // More than was said, and the end: nothing is left.
        for of in [100, 400] {
            assert_eq!(far(Some(of)).left(), None);
        }
        let nothing = HowFar {
            done: 0,
            of: Some(5),
            per_second: 0.0,
        };
        assert_eq!(nothing.left(), None, "at no rate it takes for ever");
    }
}
