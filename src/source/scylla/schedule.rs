//! Which group is read next, and how many at once. No I/O.
//!
//! A group that is caught up rests. One with new rows rests for `source.poll_interval`, one without for an eighth of
//! the time since its last ones, and none for longer than it takes to read all groups once at `source.idle_reads` a
//! second: so what standing still costs does not grow with the number of groups. Each of those that rest longest has
//! its own moment of that period, whenever it was read before, so that they are not all read at once.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::group::GroupId;
use super::pace::Concurrency;

/// A group is read so often while it is silent for as long again. The last rows of one that gets some every
/// `8 × poll_interval` are seen as soon as those of the busiest, and one that falls silent costs 18 reads more until
/// it has rested ten times as long.
const READS_A_SILENCE: u32 = 8;

/// How long groups rest at the least and at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rest {
    least: Duration,
    most: Duration,
}

impl Rest {
    /// For so many groups in all, of every shard of this process.
    pub(super) fn new(poll_interval: Duration, groups: usize, idle_reads: NonZeroU32) -> Self {
        let round = groups as f64 / f64::from(idle_reads.get());
        Self {
            least: poll_interval,
            most: Duration::from_secs_f64(round).max(poll_interval),
        }
    }

    /// The time that a group may have rested when it is read.
    pub(super) fn longest(self) -> Duration {
        // Up to half a period more until its moment comes.
        self.most.saturating_add(self.most / 2)
    }

    fn due(self, id: GroupId, resting: &Resting, started: Instant) -> Instant {
        let rest = (resting.silence / READS_A_SILENCE).max(self.least);
        let due = if rest < self.most || self.most <= self.least {
            resting.since + rest.min(self.most)
        } else {
            self.moment(id, resting.since, started)
        };
        match resting.no_later {
            Some(no_later) => due.min(no_later.max(resting.since + self.least)),
            None => due,
        }
    }

    /// The group's moment between half a period and one and a half after this.
    fn moment(self, id: GroupId, since: Instant, started: Instant) -> Instant {
        let period = self.most.as_nanos().max(1);
        let after = since.saturating_duration_since(started).as_nanos() + period / 2;
        // The golden ratio's fraction spreads any run of numbers evenly (Knuth, TAOCP 3, 6.4).
        let spread = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let phase = (u128::from(spread) * period) >> 32;
        let round = (after + period - 1 - phase) / period;
        let at = u64::try_from(round * period + phase).unwrap_or(u64::MAX);
        started + Duration::from_nanos(at)
    }
}

/// A group that rests.
#[derive(Clone, Copy, Debug)]
struct Resting {
    since: Instant,
    /// How long it has had no new rows.
    silence: Duration,
    /// There is something to read of it then.
    no_later: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Schedule {
    /// Groups with something to read.
    runnable: VecDeque<GroupId>,
    /// Groups that are caught up, by when they are due.
    idle: BTreeMap<(Instant, GroupId), Resting>,
    rest: Rest,
    started: Instant,
    concurrency: Concurrency,
    /// Groups that are behind.
    behind: usize,
}

impl Schedule {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            runnable: VecDeque::new(),
            idle: BTreeMap::new(),
            rest: Rest {
                least: Duration::ZERO,
                most: Duration::ZERO,
            },
            started: now,
            concurrency: Concurrency::new(),
            behind: 0,
        }
    }

    /// In its turn.
    pub(super) fn push(&mut self, id: GroupId) {
        self.runnable.push_back(id);
    }

    /// Before all others.
    pub(super) fn push_first(&mut self, id: GroupId) {
        self.runnable.push_front(id);
    }

    /// There is nothing to read of it before time has passed; it has had no new rows for so long.
    pub(super) fn rest(
        &mut self,
        id: GroupId,
        now: Instant,
        silence: Duration,
        no_later: Option<Instant>,
    ) {
        let resting = Resting {
            since: now,
            silence,
            no_later,
        };
        let due = self.rest.due(id, &resting, self.started);
        self.idle.insert((due, id), resting);
    }

    /// It could not be read, or need not be asked: looked at again at the next poll.
    pub(super) fn wait(&mut self, id: GroupId, now: Instant) {
        self.rest(id, now, Duration::ZERO, None);
    }

    /// All that rest may have something to read.
    pub(super) fn wake_all(&mut self) {
        let all = std::mem::take(&mut self.idle);
        self.runnable.extend(all.into_keys().map(|(_, id)| id));
    }

    /// Wakes those that have rested for long enough; says when the next one has.
    pub(super) fn wake_due(&mut self, rest: Rest, now: Instant) -> Option<Instant> {
        if self.rest != rest {
            self.rest = rest;
            let anew = |((_, id), resting)| ((rest.due(id, &resting, self.started), id), resting);
            self.idle = std::mem::take(&mut self.idle)
                .into_iter()
                .map(anew)
                .collect();
        }
        while let Some(first) = self.idle.first_entry() {
            let (due, id) = *first.key();
            if due > now {
                return Some(due);
            }
            first.remove();
            self.runnable.push_back(id);
        }
        None
    }

    /// Takes the next one out.
    pub(super) fn pop(&mut self) -> Option<GroupId> {
        self.runnable.pop_front()
    }

    /// How many reads may be under way at once; at most `max` (`source.concurrency`).
    pub(super) fn allowed(&self, max: u32) -> usize {
        self.concurrency.allowed(max)
    }

    /// A read came back.
    pub(super) fn succeeded(&mut self, max: u32) {
        self.concurrency.succeeded(max);
    }

    /// The database has too much to do.
    pub(super) fn pressed(&mut self) {
        self.concurrency.pressed();
    }

    /// A group fell behind the present, or has caught up with it.
    pub(super) fn set_behind(&mut self, before: bool, now: bool) {
        self.behind = self.behind + usize::from(now) - usize::from(before);
    }

    /// Some group is behind.
    pub(super) fn is_behind(&self) -> bool {
        self.behind > 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn rest(poll_ms: u64, groups: usize, idle_reads: u32) -> Rest {
        Rest::new(ms(poll_ms), groups, idle_reads.try_into().unwrap())
    }

    /// Runs groups that get rows when `rows` says so, each read at its time, and gives the times of each one's reads.
    fn run(
        groups: u64,
        rest: Rest,
        seconds: u64,
        rows: impl Fn(GroupId, Duration, Duration) -> bool,
    ) -> Vec<Vec<Duration>> {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        let mut reads = vec![vec![Duration::ZERO]; groups as usize];
        let mut rows_at = vec![None; groups as usize];
        for id in 0..groups {
            schedule.rest(id, start, LONG, None);
        }
        let mut now = start;
        loop {
            if let Some(due) = schedule.wake_due(rest, now) {
                now = due;
            }
            if now >= start + Duration::from_secs(seconds) {
                return reads;
            }
            schedule.wake_due(rest, now);
            while let Some(id) = schedule.pop() {
                let (of, at) = (&mut reads[id as usize], now - start);
                if rows(id, of[of.len() - 1], at) {
                    rows_at[id as usize] = Some(now);
                }
                of.push(at);
                let silence = rows_at[id as usize].map_or(LONG, |rows| now - rows);
                schedule.rest(id, now, silence, None);
            }
        }
    }

    #[test]
    fn who_rests_is_woken_in_turn_and_not_before_its_time() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let poll = rest(100, 2, 1000);
        let mut schedule = Schedule::new(start);
        schedule.wake_due(poll, start);
        schedule.rest(1, at(0), LONG, None);
        schedule.rest(2, at(30), LONG, None);
        assert_eq!(schedule.wake_due(poll, at(99)), Some(at(100)));
        assert_eq!(schedule.pop(), None);
        assert_eq!(schedule.wake_due(poll, at(100)), Some(at(130)));
        schedule.push_first(3);
        assert_eq!((schedule.pop(), schedule.pop()), (Some(3), Some(1)));
        let sooner = rest(20, 2, 1000);
        assert_eq!(schedule.wake_due(sooner, at(101)), None, "a retune counts");
        assert_eq!(schedule.pop(), Some(2));
    }

    #[test]
    fn all_are_woken_when_something_else_than_time_was_missing() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        schedule.push(1);
        schedule.rest(2, now, LONG, None);
        schedule.wake_all();
        assert_eq!(
            (schedule.pop(), schedule.pop(), schedule.pop()),
            (Some(1), Some(2), None)
        );
    }

    #[test]
    fn idle_reads_do_not_grow_with_the_groups() {
        for groups in [16, 64, 256, 1024, 10_000] {
            let rest = rest(100, groups, 250);
            let reads = run(groups as u64, rest, 120, |_, _, _| false);
            let a_second = |s: u64| {
                let within = ms(s * 1000)..ms((s + 1) * 1000);
                reads
                    .iter()
                    .flatten()
                    .filter(|at| within.contains(at))
                    .count()
            };
            // At 100 ms each of 16 is read 10 times a second, and that is all.
            let budget = (groups * 10).min(250);
            for second in 80..119 {
                let n = a_second(second);
                assert!(
                    n.abs_diff(budget) <= budget / 20 + 2,
                    "{groups} groups: {n} reads in second {second}"
                );
            }
            let rests = reads
                .iter()
                .flat_map(|of| of.windows(2).map(|w| w[1] - w[0]));
            assert!(rests.max() <= Some(rest.longest()));
        }
    }

    #[test]
    fn an_active_group_is_read_at_every_poll_beside_a_thousand_idle_ones() {
        let rest = rest(100, 1024, 250);
        // Group 7 gets a row every second from the 20th on, group 8 in every poll.
        let reads = run(1024, rest, 60, |id, last, at| match id {
            7 => at.as_secs() >= 20 && at.as_secs() > last.as_secs(),
            8 => at.as_secs() >= 20,
            _ => false,
        });
        let of = |id: usize| {
            let of = reads[id].windows(2).filter(|w| w[0].as_secs() >= 25);
            of.map(|w| w[1] - w[0]).max().unwrap()
        };
        // The time a change waits beyond `safety_interval`: 1.2 × (1 s + 100 ms) leaves 320 ms.
        assert!(of(7) <= ms(130), "{:?}", of(7));
        assert_eq!(of(8), ms(100));
        let first = reads[8].iter().find(|at| at.as_secs() >= 20).unwrap();
        assert!(*first <= ms(20_000) + rest.longest(), "{first:?}");
    }

    #[test]
    fn a_group_that_falls_silent_is_read_less_and_less() {
        let rest = rest(100, 1024, 250);
        let reads = run(1024, rest, 100, |id, _, at| id == 3 && at <= ms(10_000));
        let after = |from: u64, to: u64| {
            let within = ms(from * 1000)..ms(to * 1000);
            reads[3].iter().filter(|at| within.contains(at)).count()
        };
        assert!((9..=11).contains(&after(8, 9)), "{}", after(8, 9));
        assert!(after(10, 50) <= 45, "{}", after(10, 50));
        assert!(after(50, 100) <= 14, "{}", after(50, 100));
    }

    #[test]
    fn what_is_known_to_come_is_not_slept_over() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        let rest = rest(100, 10_000, 1);
        schedule.wake_due(rest, start);
        schedule.rest(1, start, LONG, Some(start + ms(700)));
        schedule.rest(2, start, LONG, Some(start));
        assert_eq!(schedule.wake_due(rest, start), Some(start + ms(100)));
        assert_eq!(
            schedule.wake_due(rest, start + ms(100)),
            Some(start + ms(700))
        );
    }

    proptest! {
        #[test]
        fn a_moment_is_half_to_one_and_a_half_periods_away(
            id: u64, since_ms in 0u64..10_000_000, groups in 1usize..100_000, reads in 1u32..10_000,
        ) {
            let (start, rest) = (Instant::now(), rest(1, groups, reads));
            let since = start + ms(since_ms);
            let resting = Resting { since, silence: Duration::MAX, no_later: None };
            let rested = rest.due(id, &resting, start) - since;
            prop_assert!(rested >= rest.least && rested <= rest.longest());
            prop_assert!(rested >= rest.most / 2);
        }
    }
}
