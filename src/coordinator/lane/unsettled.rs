//! What a lane has handed to its sink, or had delivered, and not settled: how much that is, and when it is enough.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::change::{Position, RecordBatch};
use crate::config::settings::Settings;
use crate::sink::company;

/// Bytes of a transaction; more would only make a longer one to repeat.
const OPEN_BYTES: usize = 32 << 20;

/// A commit takes tens of milliseconds, in which its shard stands still. So one that is behind commits less often: its
/// transactions are kept open for this part of the time that it is behind, by which no change is seen much later …
const PART: u32 = 10;
/// … and no longer than this, for an abort repeats them …
const LONGEST: Duration = Duration::from_secs(1);
/// … with so many times `max_in_flight` changes in them: what is delivered takes no room any more.
const LARGER: usize = 10;
/// … from this commit of a sink on: the first is of what its first batch brought, the second after `commit_interval`.
const GROWN: u32 = 2;
/// By so much more than `safety_interval` a shard is behind that keeps up, for its groups are read in turns.
const KEEPS_UP: Duration = Duration::from_secs(2);

/// How much a transaction holds at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// It is open for so long.
    pub(super) open_for: Duration,
    pub(super) changes: usize,
}

impl Bounds {
    /// … of a shard that hands over changes of this age, and has committed so often since its sink began.
    pub(super) fn of(settings: &Settings, age: Duration, commits: u32) -> Self {
        let (open_for, changes) = (
            settings.sink.commit_interval,
            settings.pipeline.max_in_flight.get() as usize,
        );
        if commits == 0 {
            // Whoever reads what is committed sees at once that there is something, and how far a start got.
            let open_for = Duration::ZERO;
            return Self { open_for, changes };
        }
        let behind = age.saturating_sub(settings.source.safety_interval + KEEPS_UP);
        if behind.is_zero() || commits < GROWN {
            return Self { open_for, changes };
        }
        Self {
            open_for: open_for.max((behind / PART).min(LONGEST)),
            changes: changes.saturating_mul(LARGER),
        }
    }
}

/// How long what was handed over waits for company when nothing more is on its way: no time at all, but of a backlog, of
/// which more is to come in a moment. To have it sent wakes threads, and each shard's few records would be sent by
/// themselves; the client sends them by itself after half of this.
pub(super) fn patience(settings: &Settings, age: Duration) -> Duration {
    match age > settings.source.safety_interval + KEEPS_UP {
        true => company(settings.pipeline.shards.get()) * 2,
        false => Duration::ZERO,
    }
}

/// What of an atomic sink is handed over and not settled.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Open {
    /// Since when there is something.
    pub(super) since: Option<Instant>,
    pub(super) changes: usize,
    /// Of the records' keys and values.
    bytes: usize,
    /// How old the newest change of the last batch was.
    pub(super) age: Duration,
}

impl Open {
    /// A batch is handed over. One that carries nothing opens no transaction.
    pub(super) fn add(&mut self, batch: &RecordBatch, carries: bool) {
        if carries {
            self.since.get_or_insert_with(Instant::now);
        }
        if self.since.is_none() {
            return;
        }
        self.changes += batch.source.positions.len();
        self.bytes += batch.output.len() + batch.source.rows.as_bytes().len();
        self.age = age_now(&batch.source.positions);
    }

    /// Whether it holds this many changes, or as many bytes as it may.
    pub(super) fn is_full(&self, changes: usize) -> bool {
        self.changes >= changes || self.bytes >= OPEN_BYTES
    }
}

/// How old the newest of these is now.
pub(super) fn age_now(positions: &[Position]) -> Duration {
    age(positions, SystemTime::now())
}

/// How old the newest of these is; zero, if none says when it was made.
fn age(positions: &[Position], now: SystemTime) -> Duration {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let made = positions.iter().map(Position::timestamp_us).max();
    match made.and_then(|us| u64::try_from(us).ok()) {
        None | Some(0) => Duration::ZERO,
        Some(us) => now.saturating_sub(Duration::from_micros(us)),
    }
}

/// Delivering at least once, a backlog is checkpointed by the time of its changes too, at most so often in a
/// `checkpoint_interval`.
const CATCHING_UP: u32 = 20;

/// What is delivered at least once and not checkpointed.
///
/// A shard that catches up delivers many seconds of changes in one: by the clock alone a crash would repeat all of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unsaved {
    /// The oldest and the newest of its changes, µs since the Unix epoch.
    span: Option<(i64, i64)>,
}

impl Unsaved {
    pub(super) fn delivered(&mut self, positions: &[Position]) {
        for at in positions.iter().map(Position::timestamp_us) {
            let (oldest, newest) = self.span.get_or_insert((at, at));
            (*oldest, *newest) = (at.min(*oldest), at.max(*newest));
        }
    }

    /// When it is to be checkpointed that was last at this time.
    pub(super) fn due(&self, last: Option<Instant>, interval: Duration) -> Instant {
        let Some(last) = last else {
            // The first after a start: what was repeated by one crash is not by the next.
            return Instant::now();
        };
        let us = self
            .span
            .map_or(0, |(oldest, newest)| newest.saturating_sub(oldest));
        let reached = Duration::from_micros(us.unsigned_abs()) >= interval;
        last + if reached {
            interval / CATCHING_UP
        } else {
            interval
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::{NoContext, Timestamp, Uuid};

    use super::*;
    use crate::change::StreamId;
    use crate::config::settings::Policies;

    #[test]
    fn a_shard_that_is_behind_commits_less_often() {
        let mut settings = Settings::for_tests(Policies::default());
        let (max, seconds) = (
            settings.pipeline.max_in_flight.get() as usize,
            Duration::from_secs_f64,
        );
        settings.source.safety_interval = seconds(1.0);
        settings.sink.commit_interval = seconds(0.1);
        let of = |settings: &Settings, age| {
            let bounds = Bounds::of(settings, seconds(age), GROWN);
            (bounds.open_for.as_secs_f64(), bounds.changes / max)
        };
        let found = [0.0, 1.2, 3.0, 3.5, 8.0, 3_600.0].map(|age| of(&settings, age));
        let wanted = [
            (0.1, 1),
            (0.1, 1),
            (0.1, 1),
            (0.1, 10),
            (0.5, 10),
            (1.0, 10),
        ];
        assert_eq!(found, wanted);
        // Who wants longer ones has them; who reads further behind is no later for it.
        settings.sink.commit_interval = seconds(5.0);
        assert_eq!(of(&settings, 3_600.0), (5.0, 10));
        settings.sink.commit_interval = seconds(0.01);
        settings.source.safety_interval = seconds(30.0);
        assert_eq!(of(&settings, 31.0), (0.01, 1));
    }

    #[test]
    fn only_a_backlog_waits_for_company_and_the_longer_the_more_shards_there_are() {
        let mut settings = Settings::for_tests(Policies::default());
        settings.source.safety_interval = Duration::from_secs(1);
        let mut patience = |shards: u32, age| {
            settings.pipeline.shards = shards.try_into().expect("not zero");
            let patience = patience(&settings, Duration::from_secs_f64(age));
            u64::try_from(patience.as_millis()).expect("short")
        };
        assert_eq!([0.0, 1.1, 3.0].map(|age| patience(256, age)), [0; 3]);
        let shards = [1, 4, 16, 64, 256, 1_000];
        assert_eq!(
            shards.map(|n| patience(n, 60.0)),
            [10, 10, 10, 40, 160, 160]
        );
    }

    #[test]
    fn the_first_transactions_of_a_backlog_are_short() {
        let mut settings = Settings::for_tests(Policies::default());
        settings.sink.commit_interval = Duration::from_millis(100);
        let open_for = |age, commits| {
            let bounds = Bounds::of(&settings, Duration::from_secs(age), commits);
            bounds.open_for.as_millis()
        };
        assert_eq!(
            [0, 1, 2, 9].map(|n| open_for(3_600, n)),
            [0, 100, 1_000, 1_000]
        );
        assert_eq!([0, 1, 2, 9].map(|n| open_for(0, n)), [0, 100, 100, 100]);
    }

    #[test]
    fn the_newest_change_says_how_far_behind_a_batch_is() {
        let at = |s: u64| Position {
            stream: StreamId([0; 16]),
            time: Uuid::new_v1(Timestamp::from_unix(NoContext, s, 0), &[0; 6]),
            seq: 0,
        };
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        assert_eq!(
            age(&[at(900), at(960), at(20)], now),
            Duration::from_secs(40)
        );
        assert_eq!(age(&[at(1_002)], now), Duration::ZERO, "another clock");
        let none = Position {
            time: Uuid::nil(),
            ..at(0)
        };
        assert_eq!(age(&[none], now), Duration::ZERO);
        assert_eq!(age(&[], now), Duration::ZERO);
    }
}
