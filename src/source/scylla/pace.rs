//! How much to ask for at once: more while behind, less when the database has trouble.
//!
//! Additive increase, multiplicative decrease, as in TCP's congestion avoidance (RFC 5681): a day's backlog
//! neither storms the cluster nor crawls.

use std::time::Duration;

/// The span of a window, as a power of two around the configured one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    level: i8,
}

/// 64 windows: with the default of 10 s a day takes 135 reads a group. Pages bound what a read returns.
const MAX_LEVEL: i8 = 6;
/// Where nothing is found, 1,024 windows: a silent day takes 14 reads a group. What has rows is read in shorter ones, for one
/// that fails is read again from its beginning.
const MAX_EMPTY: i8 = 10;
/// A 64th: below it a timeout is not the span's fault.
const MIN_LEVEL: i8 = -6;
/// A window that takes more pages than this is long enough.
const PAGES_ENOUGH: u32 = 4;

impl Span {
    /// The longest span that the next read may cover, in µs, at least one.
    pub(crate) fn us(self, window: Duration) -> i64 {
        let us = i64::try_from(window.as_micros()).unwrap_or(i64::MAX / 128);
        let us = if self.level >= 0 {
            us.saturating_mul(1 << self.level)
        } else {
            us >> -self.level
        };
        us.max(1)
    }

    /// Rows a page: smaller too while the database has trouble.
    pub(crate) fn page_size(self, configured: u32) -> i32 {
        let rows = configured >> (-self.level).clamp(0, 6);
        rows.clamp(configured.min(16), i32::MAX as u32) as i32
    }

    /// A window was read to its end in so many pages, `empty` or not. `limited`: more was there to read than the span allowed.
    pub(crate) fn finished(&mut self, pages: u32, empty: bool, limited: bool) {
        if empty && limited && self.level >= 0 {
            self.level = (self.level + 2).min(MAX_EMPTY);
            return;
        }
        self.level = self.level.min(MAX_LEVEL);
        if self.level < 0 || (limited && pages <= 1) {
            self.level = (self.level + 1).min(MAX_LEVEL);
        } else if pages > PAGES_ENOUGH && self.level > 0 {
            self.level -= 1;
        }
        // Caught up: the next backlog may look different.
        if !limited && self.level > 0 {
            self.level -= 1;
        }
    }

    /// It is shorter than configured, because the database has trouble.
    pub(crate) fn is_pressed(self) -> bool {
        self.level < 0
    }

    /// A read timed out or was refused for overload.
    pub(crate) fn pressed(&mut self) {
        self.level = (self.level.min(1) - 1).max(MIN_LEVEL);
    }
}

/// How many reads may be under way at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Concurrency {
    allowed: f64,
}

impl Concurrency {
    pub(crate) fn new() -> Self {
        Self { allowed: 2.0 }
    }

    /// The limit now, at least one and at most `max` (`source.concurrency`).
    pub(crate) fn allowed(&self, max: u32) -> usize {
        (self.allowed as usize).clamp(1, max as usize)
    }

    /// A read came back: one more for each round of reads.
    pub(crate) fn succeeded(&mut self, max: u32) {
        self.allowed = (self.allowed + 1.0 / self.allowed).min(f64::from(max).max(1.0));
    }

    /// The database asked for less.
    pub(crate) fn pressed(&mut self) {
        self.allowed = (self.allowed / 2.0).max(1.0);
    }
}

/// What looking back may cost: a share of the reads. What is due is looked at all the same, and owed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Looks {
    /// In reads.
    credit: i32,
}

/// One look for so many reads.
const READS_A_LOOK: i32 = 10;
/// Looks saved up, or owed, at most.
const MAX_LOOKS: i32 = 8;

impl Looks {
    /// There is room for a look.
    pub(crate) fn may(self) -> bool {
        self.credit >= READS_A_LOOK
    }

    /// A page of rows was read.
    pub(crate) fn read(&mut self) {
        self.credit = (self.credit + 1).min(MAX_LOOKS * READS_A_LOOK);
    }

    /// A page of keys is read.
    pub(crate) fn looked(&mut self) {
        self.credit = (self.credit - READS_A_LOOK).max(-MAX_LOOKS * READS_A_LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: Duration = Duration::from_secs(10);

    #[test]
    fn behind_and_light_the_span_grows_to_its_bound() {
        let mut span = Span::default();
        for _ in 0..20 {
            span.finished(1, false, true);
        }
        assert_eq!(span.us(WINDOW), 640_000_000);
        span.finished(PAGES_ENOUGH + 1, false, true);
        assert_eq!(span.us(WINDOW), 320_000_000);
    }

    #[test]
    fn a_silent_day_takes_few_reads_and_the_first_rows_make_them_shorter() {
        let (mut span, mut read_us, mut reads) = (Span::default(), 0, 0);
        while read_us < 86_400_000_000 {
            read_us += span.us(WINDOW);
            reads += 1;
            span.finished(1, true, true);
        }
        assert_eq!(reads, 14);
        span.finished(2, false, true);
        assert_eq!(span.us(WINDOW), 640_000_000);
        span.finished(1, true, false);
        assert_eq!(span.us(WINDOW), 320_000_000, "caught up");
    }

    #[test]
    fn trouble_takes_the_span_below_the_configured_window_at_once() {
        let mut span = Span { level: MAX_LEVEL };
        span.pressed();
        assert_eq!(span.us(WINDOW), 10_000_000);
        span.pressed();
        assert_eq!(span.us(WINDOW), 5_000_000);
        assert_eq!(span.page_size(1000), 500);
        span.finished(9, false, true);
        assert_eq!((span.us(WINDOW), span.page_size(1000)), (10_000_000, 1000));
    }

    #[test]
    fn concurrency_grows_by_one_a_round_and_halves_on_trouble() {
        let mut c = Concurrency::new();
        for _ in 0..1000 {
            c.succeeded(16);
        }
        assert_eq!(c.allowed(16), 16);
        assert_eq!(c.allowed(4), 4, "a retune is felt at once");
        c.pressed();
        assert_eq!(c.allowed(16), 8);
    }

    #[test]
    fn a_tenth_of_the_reads_may_be_looks() {
        let mut looks = Looks::default();
        let mut done = 0;
        for _ in 0..1000 {
            looks.read();
            if looks.may() {
                looks.looked();
                done += 1;
            }
        }
        assert_eq!(done, 100);
        for _ in 0..3 {
            looks.looked();
        }
        (0..30).for_each(|_| looks.read());
        assert!(!looks.may(), "what was due is owed");
    }

    proptest! {
        #[test]
        fn limits_hold_whatever_happens(
            events in prop::collection::vec((0u8..3, 0u32..10, any::<bool>()), 0..300),
            window_ms in 1u64..3_600_000,
            page in 1u32..100_000,
            max in 1u32..1000,
        ) {
            let window = Duration::from_millis(window_ms);
            let (mut span, mut c) = (Span::default(), Concurrency::new());
            for (kind, pages, limited) in events {
                match kind {
                    0 => { span.finished(pages, pages == 0, limited); c.succeeded(max); }
                    1 => { span.pressed(); c.pressed(); }
                    _ => span.finished(pages, limited, !limited),
                }
                let us = span.us(window);
                prop_assert!(us >= 1 && us <= window.as_micros() as i64 * 1024);
                prop_assert!(span.page_size(page) >= 1 && span.page_size(page) as u32 <= page);
                prop_assert!((1..=max as usize).contains(&c.allowed(max)));
            }
        }
    }
}
