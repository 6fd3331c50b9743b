//! `[policies]`, and the four tables that every stage takes from it.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::config::key::Fallback::{self, Value};
use crate::config::key::ReloadClass::Live;
use crate::config::key::{COUNT, DAY, Key, Kind};
use crate::config::section::{Section, Values, section};
use crate::policy::restart::{OnFailed, Strategy};
use crate::policy::{Policies, backoff, breaker, rate, restart};
use crate::words::Word;

section! {
    /// `[policies]` as it stands there.
    struct Rows {
        /// `[<stage>.breaker]`
        breaker: Breaker = table,
        /// `[<stage>.retry]`
        retry: Retry = table,
        /// Records a second: "5000/s", { per_second = 5000, burst = 10000 } or "off"; burst is per_second where not
        /// given
        rate_limit: Option<rate::Settings> = { Kind::Rate, Value(r#""off""#), Live, r#""5000/s""# },
        /// `[<stage>.supervision]`
        supervision: Supervision = table,
    }
}

section! {
    /// `[<stage>.breaker]`
    struct Breaker {
        /// Consecutive failures that open the breaker
        failure_threshold: NonZeroU32 = { COUNT, Value("5"), Live, "5" },
        /// How long it stays open before one probe is let through; in the source and the sink only for 2 s where the other
        /// side was away and is seen to be there again
        open_for: Duration = { Kind::Duration(1, DAY), Value(r#""30s""#), Live, r#""30s""# },
        /// Successes in a row that close it
        success_threshold: NonZeroU32 = { COUNT, Value("3"), Live, "3" },
    }
}

section! {
    /// `[<stage>.retry]`
    struct Retry {
        /// The first pause, before full jitter
        initial: Duration = { Kind::Duration(1, 3_600_000), Value(r#""100ms""#), Live, r#""100ms""# },
        /// The longest pause; not below initial
        max: Duration = { Kind::Duration(1, DAY), Value(r#""30s""#), Live, r#""30s""# },
        /// Growth of the pause from try to try
        multiplier: f64 = { Kind::Float(1.0, 100.0), Value("2.0"), Live, "2.0" },
        /// Tries before giving up; 0: for ever
        max_attempts: Option<NonZeroU32> = { Kind::Int(0, u32::MAX as u64), Value("0"), Live, "0" },
    }
}

section! {
    /// `[<stage>.supervision]`
    struct Supervision {
        /// Which stages restart when this one crashes
        strategy: Strategy = { Kind::Choice(Strategy::WORDS), Value(r#""one_for_one""#), Live, r#""one_for_one""# },
        /// More restarts than this within the time below fail the stage
        max_restarts: u32 = { Kind::Int(0, restart::MOST_RESTARTS as u64), Value("5"), Live, "5" },
        /// The time that restarts are counted over
        within: Duration = { Kind::Duration(1, DAY), Value(r#""60s""#), Live, r#""60s""# },
        /// Pause before the first restart; doubles with each further one
        backoff: Duration = { Kind::Duration(0, 3_600_000), Value(r#""100ms""#), Live, r#""100ms""# },
        /// What a failed stage does to the rest
        on_failed: OnFailed = { Kind::Choice(OnFailed::WORDS), Value(r#""isolate""#), Live, r#""isolate""# },
    }
}

impl Section for Policies {
    /// A stage's fall back to those of `[policies]`.
    fn keys(at: &str, into: &mut Vec<Key>) {
        let first = into.len();
        Rows::keys(at, into);
        if at != "policies" {
            for key in &mut into[first..] {
                key.fallback = Fallback::Policies;
            }
        }
    }

    fn read(from: &dyn Values, at: &str) -> Self {
        let Rows {
            breaker,
            retry,
            rate_limit,
            supervision,
        } = Rows::read(from, at);
        // What a constructor refuses has been reported by then: the rows' ranges and the checks across keys say
        // the same with a place. The default only lets the other checks go on.
        Self {
            breaker: breaker::Settings::new(
                breaker.failure_threshold,
                breaker.open_for,
                breaker.success_threshold,
            )
            .unwrap_or_default(),
            retry: backoff::Settings::new(
                retry.initial,
                retry.max,
                retry.multiplier,
                retry.max_attempts,
            )
            .unwrap_or_default(),
            rate_limit,
            supervision: restart::Settings::new(
                supervision.strategy,
                supervision.max_restarts,
                supervision.within,
                supervision.backoff,
                supervision.on_failed,
            )
            .unwrap_or_default(),
        }
    }

    /// Where two that are right are wrong together, the newer counts.
    fn retune(&mut self, at: &str, new: &Self, takes: &dyn Fn(&str) -> bool) {
        let taken = |key: &str| takes(&format!("{at}.{key}"));
        let (old, newer) = (self.breaker, new.breaker);
        let of = |key: &str| if taken(key) { newer } else { old };
        self.breaker = breaker::Settings::new(
            of("breaker.failure_threshold").failure_threshold(),
            of("breaker.open_for").open_for(),
            of("breaker.success_threshold").success_threshold(),
        )
        .unwrap_or(newer);
        let (old, newer) = (self.retry, new.retry);
        let of = |key: &str| if taken(key) { newer } else { old };
        self.retry = backoff::Settings::new(
            of("retry.initial").initial(),
            of("retry.max").max(),
            of("retry.multiplier").multiplier(),
            of("retry.max_attempts").max_attempts(),
        )
        .unwrap_or(newer);
        if taken("rate_limit") {
            self.rate_limit = new.rate_limit;
        }
        let (old, newer) = (self.supervision, new.supervision);
        let of = |key: &str| if taken(key) { newer } else { old };
        self.supervision = restart::Settings::new(
            of("supervision.strategy").strategy(),
            of("supervision.max_restarts").max_restarts(),
            of("supervision.within").within(),
            of("supervision.backoff").backoff(),
            of("supervision.on_failed").on_failed(),
        )
        .unwrap_or(newer);
    }
}
