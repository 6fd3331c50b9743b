//! How much is handed to librdkafka before its reports are waited for.
//!
//! Of an idempotent producer, librdkafka has one request of a partition under way at a time, for it holds the *messages*
//! under way against the five requests that it allows (`rd_kafka_toppar_producer_serve`, 2.12); and as long as there are
//! more of them whose `linger.ms` is over, the thread that would send them asks whether it may without a pause, a
//! processor for each shard. So there are none: batches go in rounds, and what comes while one is under way waits for its
//! reports, where waiting costs nothing.
//!
//! A round is sent as soon as it is full, and full it is early: three threads touch each record, one after the other (the
//! lane's, the broker's, that of the reports), and a few hundred kilobytes are still in the processor's cache when the
//! last of them does. With ten times as much, records with headers cost twice the time (benches/README.md).

use std::time::Duration;

use tokio::time::Instant;

use crate::sink::company;

/// Records of a full round …
const FULL: usize = 1_000;
/// … or bytes of their keys and values.
const FULL_BYTES: usize = 1 << 19;
/// Brokers whose answers take longer are far away, and kept busy by larger rounds: of so many records at most.
const FAR: Duration = Duration::from_millis(20);
const FULL_WHEN_FAR: usize = 8 * FULL;

/// The records that are under way.
#[derive(Debug)]
pub(super) struct Round {
    /// What comes within this time of its first records joins them: librdkafka's own `linger.ms`, before which none of them
    /// is sent unless it is full.
    gathering: Duration,
    began: Instant,
    records: usize,
    bytes: usize,
    /// It is closed since then: sent, whoever else comes.
    sent: Option<Instant>,
    /// Of so many records the next one is full.
    full: usize,
}

impl Round {
    /// With nothing in it.
    pub(super) fn new(now: Instant, shards: u32) -> Self {
        Self {
            gathering: company(shards),
            began: now,
            records: 0,
            bytes: 0,
            sent: None,
            full: FULL,
        }
    }

    /// Whether what comes now may join it.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.sent.is_none() && now.saturating_duration_since(self.began) < self.gathering
    }

    /// The next one begins. `waited`: just now the last reports came in, or nobody waits for them any more.
    pub(super) fn next(&mut self, now: Instant, waited: bool) {
        if waited && let Some(sent) = self.sent {
            let took = now.saturating_duration_since(sent);
            if took >= FAR {
                self.full = (self.full * 2).min(FULL_WHEN_FAR);
            } else if took < FAR / 2 {
                self.full = (self.full / 2).max(FULL);
            }
        }
        (self.began, self.records, self.bytes, self.sent) = (now, 0, 0, None);
    }

    /// So much was handed over; says whether it is full.
    pub(super) fn add(&mut self, records: usize, bytes: usize) -> bool {
        self.records += records;
        self.bytes += bytes;
        self.records >= self.full || self.bytes >= FULL_BYTES * self.full / FULL
    }

    /// It is sent; says whether it was open.
    pub(super) fn close(&mut self, now: Instant) -> bool {
        let was_open = self.sent.is_none();
        self.sent.get_or_insert(now);
        was_open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_round_is_open_until_it_is_full_or_its_time_is_over() {
        let now = Instant::now();
        let mut round = Round::new(now, 4);
        assert!(round.is_open(now) && round.is_open(now + 4 * MS) && !round.is_open(now + 5 * MS));
        assert!(!round.add(FULL - 1, 100) && round.add(1, 100));
        assert!(round.close(now) && !round.close(now + MS) && !round.is_open(now));
        round.next(now + 9 * MS, true);
        assert!(round.is_open(now + 10 * MS));
        assert!(!round.add(1, FULL_BYTES - 1) && round.add(1, 1));
    }

    #[test]
    fn rounds_grow_while_brokers_are_far_and_shrink_when_they_are_near() {
        let mut now = Instant::now();
        let mut round = Round::new(now, 4);
        let mut full = |took: Duration, waited| {
            round.close(now);
            now += took;
            round.next(now, waited);
            round.full / FULL
        };
        // What nobody waited for says nothing.
        assert_eq!(full(80 * MS, false), 1);
        assert_eq!([80, 80, 80, 80].map(|ms| full(ms * MS, true)), [2, 4, 8, 8]);
        assert_eq!(full(15 * MS, true), 8);
        assert_eq!([2, 2, 2, 2].map(|ms| full(ms * MS, true)), [4, 2, 1, 1]);
    }
}
