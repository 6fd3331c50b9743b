//! One table in one shard: in which generation it is, and what comes after. No I/O.

use std::sync::Arc;
use std::time::Instant;

use super::generations::{self, Generation, Placing, Start};
use super::group::GroupId;
use super::log::LogTable;
use super::survey::{Known, Streams};
use crate::change::GroupKey;
use crate::checkpoint::Checkpoints;

/// Where a table is with its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is not known yet where to start.
    Locating,
    /// Groups are read.
    Reading,
    /// Everything is handed on; waits for the barrier.
    ReadOut {
        /// Since then.
        since: Instant,
        /// That was logged.
        told: bool,
    },
}

/// See the module.
pub(super) struct Cursor {
    pub(super) table: Arc<LogTable>,
    pub(super) phase: Phase,
    pub(super) generation: Generation,
    pub(super) groups: Vec<GroupId>,
    /// Of the generation: all groups, of all shards.
    pub(super) streams: Streams,
    /// Which shards they fall to.
    pub(super) placing: Placing,
    /// How many of them have not reached the generation's end.
    pub(super) unfinished: usize,
    /// The generation after this one, once announced.
    pub(super) next: Option<(Generation, Streams)>,
    /// Windows may not pass it: no generation starts before it that is not known.
    pub(super) known_until_us: i64,
    /// Of finished generations; forgotten when this one's are reported.
    pub(super) old: Vec<GroupKey>,
    /// There is no log to read now.
    pub(super) paused: bool,
    /// What was known at the last look, and whether that was taken into account.
    known: (Arc<Known>, bool),
}

impl Cursor {
    pub(super) fn new(table: Arc<LogTable>) -> Self {
        Self {
            table,
            phase: Phase::Locating,
            generation: Generation::MIN,
            groups: Vec::new(),
            streams: Streams::default(),
            placing: Placing::Number,
            unfinished: 0,
            next: None,
            known_until_us: i64::MIN,
            old: Vec::new(),
            paused: false,
            known: (Arc::new(Known::nothing()), false),
        }
    }

    /// Takes what is known now.
    pub(super) fn inform(&mut self, known: &Arc<Known>) {
        if !Arc::ptr_eq(&self.known.0, known) {
            self.known = (known.clone(), false);
        }
    }

    /// What is known and was not taken into account yet.
    pub(super) fn news(&mut self) -> Option<Arc<Known>> {
        let seen = std::mem::replace(&mut self.known.1, true);
        (!seen).then(|| self.known.0.clone())
    }

    /// Something is known that was not taken into account yet.
    pub(super) fn has_news(&self) -> bool {
        !self.known.1
    }

    /// Begins a generation: all that is known is to be looked at anew.
    pub(super) fn enter(&mut self, generation: Generation) {
        self.generation = generation;
        self.phase = Phase::Reading;
        self.known_until_us = i64::MIN;
        self.known.1 = false;
    }
}

/// What is to be done about a place that is looked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Here.
    At(Start, Streams),
    /// To be told once the streams of this generation are known.
    Wants(Generation),
    /// There is no generation with streams yet.
    Nowhere,
}

/// Where a shard starts with a table; see [`generations::start`].
pub(super) fn locate(
    known: &Known,
    table: &str,
    checkpoints: &Checkpoints,
    bound_us: i64,
    floor_us: i64,
) -> Place {
    let list = &known.generations;
    let Some(mut start) = generations::start(list, table, checkpoints, bound_us, floor_us) else {
        return Place::Nowhere;
    };
    // An empty generation is skipped if another follows; the last one may just not be filled in yet.
    loop {
        let next = match known.streams.get(&start.generation) {
            None => return Place::Wants(start.generation),
            Some(groups) if !groups.is_empty() => return Place::At(start, groups.clone()),
            Some(_) => generations::next(list, start.generation),
        };
        let Some(next) = next else {
            return Place::Nowhere;
        };
        start.generation = next;
        start.from_us = start.from_us.max(generations::start_us(next));
    }
}

/// What comes after a generation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ahead {
    /// Up to here (µs since the Unix epoch) nothing else has begun.
    pub(super) clear_until_us: i64,
    /// The next generation, if it is announced.
    pub(super) next: Option<(Generation, Streams)>,
    /// To be told once the streams of this generation are known.
    pub(super) wants: Option<Generation>,
}

/// Looks for the generation after this one; empty ones are skipped.
pub(super) fn look(known: &Known, after: Generation) -> Ahead {
    let mut ahead = Ahead {
        clear_until_us: known.as_of_us,
        next: None,
        wants: None,
    };
    let mut candidate = after;
    while let Some(next) = generations::next(&known.generations, candidate) {
        match known.streams.get(&next) {
            Some(groups) if !groups.is_empty() => {
                ahead.next = Some((next, groups.clone()));
                break;
            }
            streams => {
                ahead.clear_until_us = ahead.clear_until_us.min(generations::start_us(next));
                if streams.is_none() {
                    ahead.wants = Some(next);
                    break;
                }
            }
        }
        candidate = next;
    }
    ahead
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::StreamId;

    fn known(generations: &[Generation], filled: &[(Generation, usize)]) -> Known {
        let group = |n: usize| Arc::from([StreamId([n as u8; 16])]);
        Known {
            generations: generations.into(),
            as_of_us: 100_000,
            has_log: true,
            streams: filled
                .iter()
                .map(|&(g, groups)| (g, (0..groups).map(group).collect()))
                .collect(),
        }
    }

    fn at(known: &Known, bound_us: i64) -> Result<(Generation, i64, usize), Option<Generation>> {
        match locate(known, "ks.t", &Checkpoints::new(), bound_us, i64::MIN) {
            Place::At(start, streams) => Ok((start.generation, start.from_us, streams.len())),
            Place::Wants(generation) => Err(Some(generation)),
            Place::Nowhere => Err(None),
        }
    }

    #[test]
    fn a_place_is_known_once_its_streams_are() {
        assert_eq!(at(&Known::nothing(), 0), Err(None));
        assert_eq!(at(&known(&[10, 20], &[]), 15_000), Err(Some(10)));
        assert_eq!(
            at(&known(&[10, 20], &[(10, 3)]), 15_000),
            Ok((10, 15_000, 3))
        );
    }

    #[test]
    fn an_empty_generation_is_skipped_unless_it_is_the_last() {
        let two = [10, 20];
        assert_eq!(at(&known(&two, &[(10, 0)]), 15_000), Err(Some(20)));
        assert_eq!(
            at(&known(&two, &[(10, 0), (20, 2)]), 15_000),
            Ok((20, 20_000, 2))
        );
        assert_eq!(at(&known(&two, &[(10, 0), (20, 0)]), 15_000), Err(None));
    }

    #[test]
    fn nothing_is_read_past_a_generation_whose_streams_are_not_known() {
        let clear = |k: Known| {
            let ahead = look(&k, 10);
            (
                ahead.clear_until_us,
                ahead.next.map(|(g, _)| g),
                ahead.wants,
            )
        };
        assert_eq!(clear(known(&[10], &[])), (100_000, None, None));
        assert_eq!(clear(known(&[10, 20], &[])), (20_000, None, Some(20)));
        assert_eq!(clear(known(&[10, 20], &[(20, 0)])), (20_000, None, None));
        assert_eq!(
            clear(known(&[10, 20, 30], &[(20, 0)])),
            (20_000, None, Some(30))
        );
        assert_eq!(
            clear(known(&[10, 20], &[(20, 1)])),
            (100_000, Some(20), None)
        );
    }

    #[test]
    fn what_is_known_is_news_once_and_again_in_a_new_generation() {
        let table = Arc::new(LogTable::new("ks", "t"));
        let mut cursor = Cursor::new(table);
        assert!(cursor.news().is_some() && cursor.news().is_none());
        let more = Arc::new(known(&[10], &[]));
        cursor.inform(&more);
        assert!(cursor.news().is_some() && cursor.news().is_none());
        cursor.inform(&more);
        assert!(cursor.news().is_none());
        cursor.enter(10);
        assert!(cursor.news().is_some());
    }
}
