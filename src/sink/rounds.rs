//! When all brokers are asked whether they are there, and what their answers say.
//!
//! The age of the oldest unacknowledged batch ([`super::watch`]) covers every stall, and takes its time: an outage is
//! known long before. librdkafka tells of a connection that it lost once, and of refused ones once in 30 s, so its
//! complaints are hints, not counts. What counts is a *round*: one attempt at every broker. It fails if all of them
//! refuse or cut the connection, or if none answers in time, and each failed round is a failure for the breaker.
//!
//! - A hint, or a batch that is late, begins a round at once; else there is one now and then, for what nobody writes
//!   to: an idle pipeline, a topic that was deleted.
//! - A round that failed is followed by the next after [`AGAIN`]: at the default threshold of 5 failures a breaker is
//!   open 2.5 s after the first refusal, and about 10 s into a silence.
//!
//! [`Rounds`] decides, pure in `now`; the sink's guard asks and acts.

use std::time::Duration;

use tokio::time::Instant;

/// Between two rounds when nothing is amiss: what the brokers are asked is one topic's metadata.
pub const IDLE: Duration = Duration::from_secs(5);
/// After a round that was answered while a batch is late: what is wrong is not the connection.
pub const LATE: Duration = Duration::from_secs(2);
/// After one that was refused, which takes no time.
pub const AGAIN: Duration = Duration::from_millis(500);
/// After one that met silence, which takes its time; and while the breaker is not closed: there is nothing to count any
/// more, and whoever is back is noticed soon.
pub const RETURN: Duration = Duration::from_millis(250);
/// Hints come by the connection and by the try.
const HINTED: Duration = Duration::from_millis(100);
/// A batch that waits for longer is late. Acknowledgements take milliseconds, elections of leaders a second.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// The longest that brokers may take to answer a round.
const ANSWER: Duration = Duration::from_secs(2);

/// What a round met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Met {
    /// A broker answered.
    Answer,
    /// Every broker refused the connection or cut it at once.
    Refusal(String),
    /// None answered in time.
    Silence(String),
}

/// What the guard sees at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// The moment.
    pub now: Instant,
    /// How long the oldest batch has been waiting.
    pub oldest: Option<Duration>,
    /// `sink.attempt_timeout`: a round is not more patient than that.
    pub timeout: Duration,
    /// Whether the breaker is closed.
    pub closed: bool,
}

/// What follows from a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Rest,
    /// It failed. `first`: the one before did not.
    Fail {
        /// What it met.
        reason: String,
        /// To be told of at once.
        first: bool,
    },
    /// It was answered, and the one before failed.
    Back,
}

/// Counts out the rounds.
#[derive(Debug, Default)]
pub struct Rounds {
    ended: Option<Instant>,
    hinted: bool,
    failing: bool,
    silent: bool,
}

impl Rounds {
    /// Goes on after others, whose last one failed or did not.
    pub fn after(failing: bool) -> Self {
        Self {
            failing,
            ..Self::default()
        }
    }

    /// librdkafka complained about a connection.
    pub fn hint(&mut self) {
        self.hinted = true;
    }

    /// Whether to ask now. Not while a round is under way.
    pub fn is_due(&self, sight: Sight) -> bool {
        let Some(ended) = self.ended else { return true };
        let pause = if self.failing && (!sight.closed || self.silent) {
            RETURN.min(sight.timeout)
        } else if self.failing {
            AGAIN.min(sight.timeout)
        } else if self.hinted {
            HINTED
        } else if self.is_late(sight) || !sight.closed {
            LATE.min(sight.timeout)
        } else {
            IDLE
        };
        sight.now.saturating_duration_since(ended) >= pause
    }

    /// Whether a batch has been waiting for so long that its topics are looked at, too.
    pub fn is_late(&self, sight: Sight) -> bool {
        sight
            .oldest
            .is_some_and(|age| age >= PATIENCE.min(sight.timeout))
    }

    /// How long a round may take to be answered.
    pub fn patience(timeout: Duration) -> Duration {
        ANSWER.min(timeout)
    }

    /// A round begins: hints from now on are about the next.
    pub fn begin(&mut self) {
        self.hinted = false;
    }

    /// A round has ended.
    pub fn end(&mut self, now: Instant, met: Met) -> Act {
        self.ended = Some(now);
        let before = self.failing;
        self.failing = met != Met::Answer;
        self.silent = matches!(met, Met::Silence(_));
        match met {
            Met::Answer if before => Act::Back,
            Met::Answer => Act::Rest,
            Met::Refusal(reason) | Met::Silence(reason) => Act::Fail {
                reason,
                first: !before,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    #[test]
    fn who_goes_on_in_an_outage_says_that_it_is_over() {
        let first = |failing| Rounds::after(failing).end(Instant::now(), Met::Answer);
        assert_eq!((first(true), first(false)), (Act::Back, Act::Rest));
    }

    struct Bench {
        rounds: Rounds,
        start: Instant,
        /// Since when a batch waits.
        waits: Option<Duration>,
        took: Duration,
        met: Met,
    }

    impl Bench {
        fn new(met: Met, took: Duration) -> Self {
            let mut rounds = Rounds::default();
            let start = Instant::now();
            rounds.end(start, Met::Answer);
            Self {
                rounds,
                start,
                waits: None,
                took,
                met,
            }
        }

        /// Looks every 50 ms: when the first five failures were known.
        fn failures(&mut self) -> Vec<Duration> {
            let mut failures = Vec::new();
            let mut at = Duration::ZERO;
            while failures.len() < 5 && at < Duration::from_secs(60) {
                let sight = Sight {
                    now: self.start + at,
                    oldest: self.waits.and_then(|since| at.checked_sub(since)),
                    timeout: TIMEOUT,
                    closed: true,
                };
                if self.rounds.is_due(sight) {
                    self.rounds.begin();
                    at += self.took;
                    let act = self.rounds.end(self.start + at, self.met.clone());
                    if let Act::Fail { first, .. } = act {
                        assert_eq!(first, failures.is_empty());
                        failures.push(at);
                    }
                }
                at += Duration::from_millis(50);
            }
            failures
        }
    }

    fn refusal() -> Met {
        Met::Refusal("refused".into())
    }

    #[test]
    fn five_refusals_are_known_within_five_seconds_of_the_first_hint() {
        let mut bench = Bench::new(refusal(), Duration::from_millis(300));
        bench.rounds.hint();
        let failures = bench.failures();
        assert!(failures[0] < Duration::from_millis(500), "{failures:?}");
        assert!(failures[4] < Duration::from_millis(4_000), "{failures:?}");
    }

    #[test]
    fn five_silences_are_known_within_fifteen_seconds_without_any_hint() {
        let silence = Met::Silence("no answer".into());
        let mut bench = Bench::new(
            silence,
            Rounds::patience(TIMEOUT) + Duration::from_millis(300),
        );
        bench.waits = Some(Duration::ZERO);
        let failures = bench.failures();
        assert!(failures[4] < Duration::from_millis(14_800), "{failures:?}");
    }

    #[test]
    fn an_idle_pipeline_asks_seldom_and_a_late_batch_more_often() {
        let asked = |waits| {
            let mut bench = Bench::new(Met::Answer, Duration::ZERO);
            bench.waits = waits;
            let mut asked = 0;
            for second in 0..60 {
                let sight = Sight {
                    now: bench.start + Duration::from_secs(second),
                    oldest: waits.map(|_: Duration| Duration::from_secs(second)),
                    timeout: TIMEOUT,
                    closed: true,
                };
                if bench.rounds.is_due(sight) {
                    bench.rounds.end(sight.now, Met::Answer);
                    asked += 1;
                }
            }
            asked
        };
        assert_eq!((asked(None), asked(Some(Duration::ZERO))), (11, 29));
    }

    #[test]
    fn the_end_of_an_outage_is_told_once() {
        let mut rounds = Rounds::default();
        let now = Instant::now();
        assert!(matches!(
            rounds.end(now, refusal()),
            Act::Fail { first: true, .. }
        ));
        assert!(matches!(
            rounds.end(now, refusal()),
            Act::Fail { first: false, .. }
        ));
        assert_eq!(rounds.end(now, Met::Answer), Act::Back);
        assert_eq!(rounds.end(now, Met::Answer), Act::Rest);
        assert!(matches!(
            rounds.end(now, refusal()),
            Act::Fail { first: true, .. }
        ));
    }
}
