//! Which group is read next, and how many at once. No I/O.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::group::GroupId;
use super::pace::Concurrency;

/// See the module.
#[derive(Debug)]
pub(super) struct Schedule {
    /// Groups with something to read.
    runnable: VecDeque<GroupId>,
    /// Groups that are caught up, and since when.
    idle: VecDeque<(Instant, GroupId)>,
    concurrency: Concurrency,
    /// Groups that are behind.
    behind: usize,
}

impl Schedule {
    pub(super) fn new() -> Self {
        Self {
            runnable: VecDeque::new(),
            idle: VecDeque::new(),
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

    /// There is nothing to read of it before time has passed.
    pub(super) fn rest(&mut self, id: GroupId, now: Instant) {
        self.idle.push_back((now, id));
    }

    /// All that rest may have something to read.
    pub(super) fn wake_all(&mut self) {
        self.runnable.extend(self.idle.drain(..).map(|(_, id)| id));
    }

    /// Wakes those that have rested for so long; says when the next one has.
    pub(super) fn wake_due(&mut self, rest: Duration, now: Instant) -> Option<Instant> {
        while let Some(&(since, id)) = self.idle.front() {
            let due = since + rest;
            if due > now {
                return Some(due);
            }
            self.idle.pop_front();
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
    use super::*;

    #[test]
    fn who_rests_is_woken_in_turn_and_not_before_its_time() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let rest = Duration::from_millis(100);
        let mut schedule = Schedule::new();
        schedule.rest(1, at(0));
        schedule.rest(2, at(30));
        assert_eq!(schedule.wake_due(rest, at(99)), Some(at(100)));
        assert_eq!(schedule.pop(), None);
        assert_eq!(schedule.wake_due(rest, at(100)), Some(at(130)));
        schedule.push_first(3);
        assert_eq!((schedule.pop(), schedule.pop()), (Some(3), Some(1)));
        let sooner = Duration::from_millis(20);
        assert_eq!(schedule.wake_due(sooner, at(101)), None, "a retune counts");
        assert_eq!(schedule.pop(), Some(2));
    }

    #[test]
    fn all_are_woken_when_something_else_than_time_was_missing() {
        let mut schedule = Schedule::new();
        let now = Instant::now();
        schedule.push(1);
        schedule.rest(2, now);
        schedule.wake_all();
        assert_eq!(
            (schedule.pop(), schedule.pop(), schedule.pop()),
            (Some(1), Some(2), None)
        );
    }
}
