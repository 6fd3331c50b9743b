//! When silence is a failure.
//!
//! librdkafka resends by itself and says nothing while a broker is away; its log and its statistics are too
//! noisy or too coarse to steer by. The signal that covers every stall is the age of the oldest
//! unacknowledged batch: an attempt is a batch, and each `attempt_timeout` that the oldest one has been
//! waiting is a failed attempt. So a broker that falls silent opens the breaker after exactly
//! `failure_threshold × attempt_timeout`.
//!
//! While the breaker is not closed the oldest batch that is still out is the probe, because librdkafka is
//! sending it anyway; only when none is out a new one is let through.
//!
//! [`Watch`] decides, pure in `now`; the sink's guard looks and acts.

use std::time::Duration;

use tokio::time::Instant;

use super::flight::Oldest;

/// What the guard sees at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// The moment.
    pub now: Instant,
    /// The batch that has been waiting longest, of all shards.
    pub oldest: Option<Oldest>,
    /// Batches completed so far, of all shards.
    pub acks: u64,
    /// `sink.attempt_timeout`.
    pub timeout: Duration,
    /// Since when the breaker is half-open.
    pub half_open: Option<Instant>,
}

/// What the guard is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Rest,
    /// The oldest batch failed an attempt, having waited this long altogether.
    Strike(Oldest, Duration),
    /// Ask the breaker for a permit for what is out; report one with [`Watch::probing`].
    Probe,
    /// So many batches came through since the probe began.
    ProbePassed(u64),
    /// None came through in time.
    ProbeFailed,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    batch: Oldest,
    began: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    began: Instant,
    acks: u64,
}

/// Counts out the attempts of the oldest batch.
#[derive(Debug, Default)]
pub struct Watch {
    attempt: Option<Attempt>,
    probe: Option<Probe>,
}

impl Watch {
    /// Looks once. Late looks make fewer strikes, never more: one a look.
    pub fn look(&mut self, sight: Sight) -> Act {
        let Sight { now, timeout, .. } = sight;
        if let Some(probe) = self.probe {
            let act = if sight.acks > probe.acks {
                Act::ProbePassed(sight.acks - probe.acks)
            } else if sight.oldest.is_none() {
                // What was out was let go of: neither passed nor failed, so the permit goes back with the next.
                Act::Rest
            } else if now.saturating_duration_since(probe.began) >= timeout {
                Act::ProbeFailed
            } else {
                return Act::Rest;
            };
            self.probe = None;
            self.attempt = sight.oldest.map(|batch| Attempt { batch, began: now });
            return act;
        }
        let Some(batch) = sight.oldest else {
            self.attempt = None;
            return Act::Rest;
        };
        let attempt = match self.attempt {
            Some(attempt) if attempt.batch == batch => attempt,
            _ => {
                // It has become the oldest because another one was acknowledged. Attempts that it had timed
                // out by then are not held against a broker that has just answered.
                let age = now.saturating_duration_since(batch.submitted);
                let attempts = (age.as_nanos() / timeout.as_nanos().max(1)) as u32;
                let began = batch.submitted + timeout * attempts;
                let fresh = Attempt { batch, began };
                *self.attempt.insert(fresh)
            }
        };
        if now.saturating_duration_since(attempt.began) >= timeout {
            let began = now;
            self.attempt = Some(Attempt { batch, began });
            let age = now.saturating_duration_since(batch.submitted);
            return Act::Strike(batch, age);
        }
        match sight.half_open {
            // One submitted since then was let through as the probe itself.
            Some(since) if batch.submitted < since => Act::Probe,
            _ => Act::Rest,
        }
    }

    /// The breaker gave its permit for what is out.
    pub fn probing(&mut self, now: Instant, acks: u64) {
        self.probe = Some(Probe { began: now, acks });
    }

    /// The probe was decided otherwise.
    pub fn decided(&mut self) {
        self.probe = None;
    }

    /// Whether a permit is held.
    pub fn is_probing(&self) -> bool {
        self.probe.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::flight::{Counters, Window};

    const TIMEOUT: Duration = Duration::from_secs(10);

    struct Bench {
        window: Window,
        start: Instant,
        watch: Watch,
    }

    impl Bench {
        fn new() -> Self {
            let window = Window::new(std::sync::Arc::<Counters>::default());
            let start = Instant::now();
            let watch = Watch::default();
            Self {
                window,
                start,
                watch,
            }
        }

        fn submit(&self) -> crate::sink::flight::BatchId {
            let (submission, ticket) = self.window.open(None, None).unwrap();
            let id = submission.id;
            submission.expect(1);
            submission.seal();
            drop(ticket);
            id
        }

        fn ack(&self, id: crate::sink::flight::BatchId) {
            use crate::sink::flight::{Report, Tag};
            self.window.report(Tag::new(id, 0), Report::Acked);
        }

        fn look(&mut self, seconds: u64, closed: bool) -> Act {
            let now = self.start + Duration::from_secs(seconds);
            self.watch.look(Sight {
                now,
                oldest: self.window.oldest(),
                acks: self.window.acks(),
                timeout: TIMEOUT,
                half_open: (!closed).then_some(now),
            })
        }

        fn strikes(&mut self, from: u64, to: u64) -> Vec<u64> {
            (from..=to)
                .filter(|&s| matches!(self.look(s, true), Act::Strike(..)))
                .collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_one_failure_each_timeout() {
        let mut b = Bench::new();
        assert_eq!(b.strikes(0, 30), [0; 0], "nothing is out");
        let mut b = Bench::new();
        b.submit();
        b.submit();
        assert_eq!(b.strikes(0, 55), [10, 20, 30, 40, 50]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_acknowledgement_gives_the_next_batch_its_own_time() {
        let mut b = Bench::new();
        let first = b.submit();
        tokio::time::advance(Duration::from_secs(5)).await;
        b.submit();
        assert_eq!(b.strikes(5, 12), [10]);
        b.ack(first);
        assert_eq!(b.strikes(12, 36), [15, 25, 35]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_comes_late_counts_once() {
        let mut b = Bench::new();
        b.submit();
        assert!(matches!(b.look(1, true), Act::Rest));
        assert!(matches!(b.look(45, true), Act::Strike(_, age) if age.as_secs() == 45));
        assert_eq!(b.strikes(46, 60), [55]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_out_is_the_probe() {
        let mut b = Bench::new();
        let oldest = b.submit();
        let next = b.submit();
        assert_eq!(b.look(1, false), Act::Probe);
        b.watch
            .probing(b.start + Duration::from_secs(1), b.window.acks());
        assert_eq!(b.look(10, false), Act::Rest);
        assert_eq!(b.look(11, false), Act::ProbeFailed);
        assert_eq!(b.look(12, false), Act::Probe);
        b.watch
            .probing(b.start + Duration::from_secs(12), b.window.acks());
        b.ack(oldest);
        assert_eq!(b.look(13, false), Act::ProbePassed(1));
        assert_eq!(
            b.look(14, false),
            Act::Probe,
            "the next batch out probes again"
        );
        b.ack(next);
        assert_eq!(
            b.look(15, false),
            Act::Rest,
            "nothing is out: a new batch is let through"
        );
    }
}
