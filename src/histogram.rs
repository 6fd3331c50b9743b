//! Counts how long things took, by buckets, and reads quantiles out of the counts. It knows nobody else.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of the buckets in microseconds; what took longer than the last is counted beyond them. Close where a
/// pipeline at its defaults is, which reads a second behind the database's clock.
pub const BOUNDS_US: [u64; 16] = [
    10_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    1_250_000,
    1_500_000,
    2_000_000,
    3_000_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    1_800_000_000,
];

const BUCKETS: usize = BOUNDS_US.len() + 1;

/// One that was counted, and whose trace tells more of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    /// Its trace.
    pub trace: u128,
    /// What it took, in seconds.
    pub seconds: f64,
    /// When it was counted, in seconds since the Unix epoch.
    pub at: f64,
}

/// The newest exemplar of each bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Exemplars([Option<Exemplar>; BUCKETS]);

impl Exemplars {
    /// Keeps it, if it is the newest of its bucket.
    pub fn note(&mut self, exemplar: Exemplar) {
        let us = (exemplar.seconds * 1e6) as u64;
        let slot = &mut self.0[BOUNDS_US.partition_point(|&bound| bound < us)];
        if slot.is_none_or(|known| known.at <= exemplar.at) {
            *slot = Some(exemplar);
        }
    }

    /// One a bucket, where there is one.
    pub fn by_bucket(&self) -> &[Option<Exemplar>] {
        &self.0
    }
}

impl std::ops::AddAssign<&Exemplars> for Exemplars {
    fn add_assign(&mut self, other: &Exemplars) {
        other.0.iter().flatten().for_each(|&e| self.note(e));
    }
}

/// What is counted at once, before others may see it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    counts: [u32; BUCKETS],
    sum_us: u64,
}

impl Tally {
    /// Counts one that took so many microseconds.
    #[inline]
    pub fn add(&mut self, took_us: u64) {
        self.counts[BOUNDS_US.partition_point(|&bound| bound < took_us)] += 1;
        self.sum_us += took_us;
    }
}

/// What was counted so far; several may add to it.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Adds what was counted aside.
    pub fn add(&self, tally: &Tally) {
        for (sum, &count) in self.counts.iter().zip(&tally.counts) {
            if count > 0 {
                sum.fetch_add(u64::from(count), Relaxed);
            }
        }
        self.sum_us.fetch_add(tally.sum_us, Relaxed);
    }

    /// As it is now.
    pub fn read(&self) -> Reading {
        Reading {
            counts: std::array::from_fn(|i| self.counts[i].load(Relaxed)),
            sum_us: self.sum_us.load(Relaxed),
        }
    }
}

/// A histogram at one moment, or between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    counts: [u64; BUCKETS],
    sum_us: u64,
}

impl Reading {
    /// One count a bucket, and one for what is beyond the last bound. Not cumulative.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The sum of all, in seconds.
    pub fn sum(&self) -> f64 {
        self.sum_us as f64 / 1e6
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What came after an earlier reading.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            counts: std::array::from_fn(|i| self.counts[i].saturating_sub(earlier.counts[i])),
            sum_us: self.sum_us.saturating_sub(earlier.sum_us),
        }
    }

    /// The value that a share `q` (0 to 1) of all do not pass, in seconds, as if those of a bucket lay evenly in it;
    /// `None` when there are none. Beyond the last bound it is that bound.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let all = self.count();
        if all == 0 {
            return None;
        }
        let wanted = q.clamp(0.0, 1.0) * all as f64;
        let mut below = 0.0;
        for (i, &count) in self.counts.iter().enumerate() {
            let count = count as f64;
            if count > 0.0 && below + count >= wanted {
                let from = i.checked_sub(1).map_or(0, |i| BOUNDS_US[i]) as f64;
                let to = BOUNDS_US.get(i).map_or(from, |&b| b as f64);
                return Some((from + (to - from) * (wanted - below) / count) / 1e6);
            }
            below += count;
        }
        BOUNDS_US.last().map(|&b| b as f64 / 1e6)
    }
}

impl std::ops::AddAssign<&Reading> for Reading {
    fn add_assign(&mut self, other: &Reading) {
        for (a, b) in self.counts.iter_mut().zip(other.counts) {
            *a += b;
        }
        self.sum_us += other.sum_us;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_where_the_counts_are() {
        let (histogram, mut tally) = (Histogram::default(), Tally::default());
        assert_eq!(histogram.read().quantile(0.5), None);
        for _ in 0..99 {
            tally.add(1_100_000);
        }
        tally.add(40_000_000);
        histogram.add(&tally);
        let seen = histogram.read();
        assert_eq!(seen.count(), 100);
        let median = seen.quantile(0.5).expect("some");
        assert!((1.0..1.25).contains(&median), "{median}");
        assert!(seen.quantile(1.0).expect("some") > 30.0);
        assert!((seen.sum() - 148.9).abs() < 1e-6);
        let before = seen;
        histogram.add(&tally);
        assert_eq!(histogram.read().since(&before), before);
    }

    #[test]
    fn what_is_beyond_every_bound_is_counted_and_told_as_the_last() {
        let (histogram, mut tally) = (Histogram::default(), Tally::default());
        tally.add(u64::MAX / 2);
        histogram.add(&tally);
        assert_eq!(histogram.read().quantile(0.99), Some(1800.0));
    }
}
