//! How far long work is: how much of it, at what rate, and how long it will take still. Said now and then, not at each step,
//! and of short work not at all.

use std::fmt;
use std::time::{Duration, Instant};

/// How often it is said.
const EVERY: Duration = Duration::from_secs(2);

/// Work that goes on.
#[derive(Debug)]
pub(crate) struct Progress {
    began: Instant,
    told: Instant,
    done: u64,
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
    /// Work that begins now.
    pub(crate) fn begin(now: Instant) -> Self {
        Self {
            began: now,
            told: now,
            done: 0,
        }
    }

    /// One more is done. Whether it is time to say so.
    pub(crate) fn step(&mut self, now: Instant) -> bool {
        self.done += 1;
        let due = now.duration_since(self.told) >= EVERY;
        if due {
            self.told = now;
        }
        due
    }

    /// How far it is.
    pub(crate) fn how_far(&self, of: Option<u64>, now: Instant) -> HowFar {
        let seconds = now.duration_since(self.began).as_secs_f64().max(1e-3);
        HowFar {
            done: self.done,
            of,
            per_second: self.done as f64 / seconds,
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
        let mut progress = Progress::begin(began);
        let told: Vec<String> = (1..=400)
            .filter_map(|n| {
                let now = began + Duration::from_millis(n * 10);
                progress
                    .step(now)
                    .then(|| progress.how_far(Some(1_000), now).to_string())
            })
            .collect();
        assert_eq!(
            told,
            ["200 of 1000, 100/s, 8s left", "400 of 1000, 100/s, 6s left"]
        );
        let now = began + Duration::from_secs(4);
        assert_eq!(progress.how_far(None, now).to_string(), "400, 100/s");
        // More than was said, and the end: nothing is left.
        for of in [100, 400] {
            assert_eq!(progress.how_far(Some(of), now).left(), None);
        }
        let nothing = Progress::begin(began).how_far(Some(5), now);
        assert_eq!(nothing.left(), None, "at no rate it takes for ever");
    }
}
