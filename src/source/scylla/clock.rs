//! What time it is for the database, for a reader that must never pass it.
//!
//! Rows are ordered by the clocks of the database's nodes. A window that ends later than such a clock skips what
//! is written into it afterwards, so this machine's clock, which may step (a virtual machine that resumes, a bad
//! time server), decides nothing: the nodes are asked, and between two answers the monotonic clock goes on from
//! the earlier bound of what the answer allows. It goes on for a while only: it too can lie.
//!
//! A node's clock may step as well. Back: it is followed at once, and what is written behind what was read is late
//! (see [`super::past`]). Forward: it counts only once it has stood for a while.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A step smaller than this is drift.
const STEP_US: i64 = 500_000;
/// How much two good clocks may come apart, in millionths: five times what a quartz is allowed to.
const DRIFT_PPM: i64 = 500;
/// How long a step forward must stand before it is believed.
pub(super) const HOLD: Duration = Duration::from_secs(3);
/// How often a node is asked.
pub(super) const ASK: Duration = Duration::from_secs(1);
/// How far the monotonic clock may go on without an answer.
const REACH: Duration = Duration::from_secs(10);
/// An answer that is late by more than this is a reason for doubt.
const UNHEARD: Duration = Duration::from_secs(5);
/// A node that has not been asked for so long has left, or is not asked any more.
const FORGOTTEN: Duration = Duration::from_secs(120);

/// Why the time is not known to the second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Some clock stepped, and it is not clear yet which one is right.
    Stepped(String),
    /// Nobody answers: reading does not go on for long without.
    Unheard(String),
}

/// The earliest of the clocks of the nodes, which go by the name of `N`.
#[derive(Debug)]
pub(super) struct Clock<N> {
    nodes: HashMap<N, Node>,
    base: Instant,
    /// The last answer.
    heard: Option<Instant>,
    /// Since when the nodes are asked; `None`: they are not.
    asking: Option<Instant>,
    /// This machine's clock against its monotonic one, µs, and whether it stepped since the last answer.
    local: Option<(i64, bool)>,
}

/// What a node's clock was ahead of the monotonic one, µs: between these bounds.
#[derive(Clone, Copy, Debug)]
struct Node {
    least: i64,
    most: i64,
    heard: Instant,
    /// It says that it has stepped forward, and for how long it has said so.
    ahead: Option<(Instant, i64)>,
}

impl<N: Eq + Hash> Clock<N> {
    /// Nothing heard yet.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            nodes: HashMap::new(),
            base: now,
            heard: None,
            asking: None,
            local: None,
        }
    }

    /// The nodes are asked from here on; `None`: they are not any more. Nobody wonders why they say nothing then.
    pub(super) fn asks(&mut self, since: Option<Instant>) {
        self.asking = since;
    }

    fn ticks(&self, at: Instant) -> i64 {
        let since = at.saturating_duration_since(self.base).as_micros();
        i64::try_from(since).unwrap_or(i64::MAX)
    }

    /// A node that was asked at `sent` has answered at `received` that it is `db_us`.
    pub(super) fn hear(&mut self, node: N, db_us: i64, sent: Instant, received: Instant) {
        let fresh = Node {
            least: db_us.saturating_sub(self.ticks(received)),
            most: db_us.saturating_sub(self.ticks(sent)),
            heard: received,
            ahead: None,
        };
        self.heard = Some(received);
        if let Some((_, stepped)) = &mut self.local {
            *stepped = false;
        }
        let known = self.nodes.entry(node).or_insert(fresh);
        let apart = received.saturating_duration_since(known.heard).as_micros() as i64;
        let drift = apart.saturating_mul(DRIFT_PPM) / 1_000_000 + 1;
        let (least, most) = (known.least - drift, known.most + drift);
        known.heard = received;
        if fresh.most < least {
            if least - fresh.most > STEP_US {
                tracing::warn!(
                    step_ms = (fresh.most - least) / 1000,
                    "the database's clock stepped back"
                );
            }
            *known = fresh;
        } else if fresh.least - most > STEP_US {
            let (since, _) = *known.ahead.get_or_insert_with(|| {
                tracing::warn!(
                    step_ms = (fresh.least - most) / 1000,
                    "the database's clock stepped forward, holding back"
                );
                (received, 0)
            });
            if received.saturating_duration_since(since) >= HOLD {
                tracing::info!("the database's clock has stayed where it stepped to");
                *known = fresh;
            } else {
                known.ahead = Some((since, fresh.least - most));
                (known.least, known.most) = (least, most);
            }
        } else {
            known.ahead = None;
            // What both allow. Apart by less than a step: the fresh one.
            known.least = least.max(fresh.least);
            known.most = most.min(fresh.most);
            if known.least > known.most {
                *known = fresh;
            }
        }
        self.nodes
            .retain(|_, n| received.saturating_duration_since(n.heard) < FORGOTTEN);
    }

    /// Compares this machine's clock with its monotonic one. `true`: it has stepped since the last look, so the
    /// database is to be asked at once.
    pub(super) fn look(&mut self, wall_us: i64, now: Instant) -> bool {
        let against = wall_us.saturating_sub(self.ticks(now));
        let before = self.local.map(|(against, _)| against);
        let step_us = against - before.unwrap_or(against);
        let stepped = step_us.abs() > STEP_US;
        let pending = self.local.is_some_and(|(_, stepped)| stepped);
        self.local = Some((against, stepped || pending));
        if stepped {
            tracing::warn!(
                step_ms = step_us / 1000,
                "this machine's clock stepped; reading goes by the database's"
            );
        }
        stepped
    }

    /// The time that no node is behind of, µs since the Unix epoch; `None` before the first answer.
    pub(super) fn now_us(&self, now: Instant) -> Option<i64> {
        let least = self.nodes.values().map(|n| n.least).min()?;
        let reach = self.heard? + REACH;
        Some(least.saturating_add(self.ticks(now.min(reach))))
    }

    /// Why it is not to be trusted to the second.
    pub(super) fn doubt(&self, now: Instant) -> Option<Doubt> {
        let Some(heard) = self.heard else {
            let reason = "the database has not said yet what time it is";
            return Some(Doubt::Unheard(reason.into()));
        };
        let ahead = self.nodes.values().filter_map(|n| n.ahead).next();
        if let Some((_, step_us)) = ahead {
            return Some(Doubt::Stepped(format!(
                "the database's clock stepped forward by {:.1} s, which is not believed yet",
                step_us as f64 / 1e6
            )));
        }
        if self.local.is_some_and(|(_, stepped)| stepped) {
            let reason = "this machine's clock stepped, and the database has not been heard since";
            return Some(Doubt::Stepped(reason.into()));
        }
        let unheard = now.saturating_duration_since(self.asking?.max(heard));
        (unheard > UNHEARD).then(|| {
            Doubt::Unheard(format!(
                "the database has not said for {} s what time it is",
                unheard.as_secs()
            ))
        })
    }
}

/// This machine's clock, µs since the Unix epoch. Only to be compared with itself.
pub(super) fn wall_us() -> i64 {
    let us = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_micros() as i64);
    fail::fail_point!("clock::wall", |ahead_ms: Option<String>| {
        let ahead_ms: i64 = ahead_ms.and_then(|ms| ms.parse().ok()).unwrap_or(0);
        us + ahead_ms * 1000
    });
    us
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Rig {
        clock: Clock<u8>,
        start: Instant,
    }

    impl Rig {
        fn new() -> Self {
            let start = Instant::now();
            let mut clock = Clock::new(start);
            clock.asks(Some(start));
            Self { clock, start }
        }

        fn at(&self, ms: i64) -> Instant {
            self.start + Duration::from_millis(ms as u64)
        }

        /// Node `n`, ahead of the monotonic clock by so much, is asked at `ms` and answers `rtt_ms` later, having
        /// looked at its clock after `seen_ms`.
        fn ask(&mut self, n: u8, ahead_ms: i64, ms: i64, seen_ms: i64, rtt_ms: i64) {
            let db_us = (ms + seen_ms + ahead_ms) * 1000;
            let (sent, received) = (self.at(ms), self.at(ms + rtt_ms));
            self.clock.hear(n, db_us, sent, received);
        }

        fn doubt(&self, ms: i64) -> String {
            match self.clock.doubt(self.at(ms)) {
                Some(Doubt::Stepped(why) | Doubt::Unheard(why)) => why,
                None => String::new(),
            }
        }

        fn now_ms(&self, ms: i64) -> i64 {
            self.clock.now_us(self.at(ms)).unwrap().div_euclid(1000)
        }
    }

    #[test]
    fn who_is_not_asked_need_not_answer() {
        let mut rig = Rig::new();
        rig.ask(1, 0, 0, 0, 0);
        assert!(rig.doubt(6_000).contains("6 s"));
        rig.clock.asks(None);
        assert_eq!(rig.doubt(60_000), "");
        rig.clock.asks(Some(rig.at(60_000)));
        assert_eq!(rig.doubt(64_000), "");
        assert!(rig.doubt(66_000).contains("6 s"));
    }

    #[test]
    fn nothing_is_known_before_the_first_answer() {
        let rig = Rig::new();
        assert_eq!(rig.clock.now_us(rig.start), None);
        assert!(rig.clock.doubt(rig.start).is_some());
    }

    #[test]
    fn it_goes_on_from_an_answer_and_never_past_the_node() {
        let mut rig = Rig::new();
        rig.ask(1, 5_000, 100, 0, 40);
        assert_eq!(rig.now_ms(140), 5_100, "as old as the answer may be");
        rig.ask(1, 5_000, 1_100, 39, 40);
        let now = rig.now_ms(1_140);
        assert!(
            (6_138..=6_139).contains(&now),
            "the better answer counts: {now}"
        );
        rig.ask(1, 5_000, 2_100, 0, 900);
        let now = rig.now_ms(3_000);
        assert!(
            (7_996..=8_000).contains(&now),
            "a slow answer takes nothing back: {now}"
        );
        assert!(rig.clock.doubt(rig.at(3_000)).is_none());
    }

    #[test]
    fn of_several_nodes_the_earliest_counts() {
        let mut rig = Rig::new();
        rig.ask(1, 5_000, 100, 0, 0);
        rig.ask(2, 3_000, 100, 0, 0);
        assert_eq!(rig.now_ms(200), 3_200);
        // The second has left.
        for s in 0..130 {
            rig.ask(1, 5_000, 1_000 * s, 0, 0);
        }
        assert!(rig.now_ms(130_000) > 134_900);
    }

    #[test]
    fn a_step_of_this_machine_changes_nothing_and_is_told_once() {
        let mut rig = Rig::new();
        rig.ask(1, 0, 0, 0, 0);
        assert!(!rig.clock.look(1_000_000, rig.at(1_000)));
        assert!(!rig.clock.look(1_600_000, rig.at(1_600)));
        assert!(rig.clock.look(21_700_000, rig.at(1_700)), "20 s forward");
        assert_eq!(rig.now_ms(1_700), 1_700);
        assert!(rig.doubt(1_700).contains("this machine"));
        assert!(!rig.clock.look(21_800_000, rig.at(1_800)), "said once");
        rig.ask(1, 0, 1_800, 0, 1);
        assert_eq!(rig.clock.doubt(rig.at(1_900)), None);
        assert!(rig.clock.look(2_000_000, rig.at(2_000)), "and back");
        assert_eq!(rig.now_ms(2_000), 1_999);
    }

    #[test]
    fn a_step_forward_of_the_database_counts_once_it_has_stood() {
        let mut rig = Rig::new();
        rig.ask(1, 0, 0, 0, 0);
        rig.ask(1, 20_000, 1_000, 0, 0);
        let held = |now| (990..=1_000).contains(&(now - 1_000));
        assert!(held(rig.now_ms(2_000)), "{}", rig.now_ms(2_000));
        assert!(rig.doubt(2_000).contains("20.0 s"));
        rig.ask(1, 0, 2_000, 0, 0);
        assert_eq!(
            rig.clock.doubt(rig.at(2_000)),
            None,
            "taken back, never believed"
        );
        for s in 3..6 {
            rig.ask(1, 20_000, s * 1_000, 0, 0);
            assert!(rig.now_ms(s * 1_000) <= s * 1_000);
        }
        rig.ask(1, 20_000, 6_000, 0, 0);
        assert_eq!(rig.now_ms(6_000), 26_000);
        assert_eq!(rig.clock.doubt(rig.at(6_000)), None);
    }

    #[test]
    fn a_step_back_of_the_database_is_followed_at_once() {
        let mut rig = Rig::new();
        rig.ask(1, 20_000, 0, 0, 0);
        rig.ask(1, 0, 1_000, 0, 0);
        assert_eq!(rig.now_ms(1_000), 1_000);
    }

    #[test]
    fn without_answers_it_stands_still_and_says_so() {
        let mut rig = Rig::new();
        rig.ask(1, 0, 0, 0, 0);
        assert_eq!(rig.now_ms(9_000), 9_000);
        assert!(rig.doubt(6_000).contains("6 s"));
        assert_eq!(
            rig.now_ms(60_000),
            10_000,
            "whatever the monotonic clock does"
        );
    }

    proptest! {
        /// Whatever the answers take, a steady node is never passed, and the best answer bounds what is lost.
        #[test]
        fn a_steady_node_is_never_passed(
            ahead_ms in -1_000_000i64..1_000_000,
            answers in prop::collection::vec((0i64..400, 0i64..400), 1..50),
        ) {
            let mut rig = Rig::new();
            let (mut ms, mut best) = (0, i64::MAX);
            for (seen, more) in answers {
                rig.ask(1, ahead_ms, ms, seen, seen + more);
                ms += 1_000;
                best = best.min(more);
                let now = rig.now_ms(ms);
                prop_assert!(now <= ms + ahead_ms);
                prop_assert!(now >= ms + ahead_ms - best - 30, "{now} at {ms}, {best}");
            }
        }
    }
}
