//! What of a table's changes cannot be read, from when to when: its log is gone, or was made anew, or nothing is
//! logged. No I/O.
//!
//! A TRUNCATE of the base table is no change to its log: ScyllaDB discards the table's own data and that of its views,
//! writes nothing to the log and takes nothing from it (`replica/database.cc`, `truncate_table_on_all_shards`). So
//! nothing is lost, but nobody downstream hears that all rows are gone. One of the log takes what was unread.
//! `system.truncated` tells of both.

use uuid::Uuid;

/// What a table's log is seen to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Which log there is.
    pub(super) log: Option<Uuid>,
    /// Whether changes are logged.
    pub(super) capturing: bool,
}

impl Seen {
    fn trouble(self) -> Option<Trouble> {
        match (self.log, self.capturing) {
            (None, _) => Some(Trouble::Gone),
            (Some(_), false) => Some(Trouble::Off),
            (Some(_), true) => None,
        }
    }
}

/// Why changes cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
    /// The table was dropped.
    #[error("the table or its change log does not exist, waiting for it")]
    Gone,
    /// Its log stays, and gets nothing new.
    #[error("change capture is switched off, waiting for it")]
    Off,
    /// It was dropped and made again between two looks.
    #[error("the change log was dropped and made anew")]
    Anew,
    /// What was unread is gone with the rest.
    #[error("the change log was truncated")]
    Emptied,
}

/// When a table and its log were last truncated, µs since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Emptied {
    pub(super) table_us: Option<i64>,
    pub(super) log_us: Option<i64>,
}

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// From now on.
    Begins(Trouble),
    /// It is over. Times in µs since the Unix epoch.
    Lost {
        why: Trouble,
        from_us: i64,
        until_us: i64,
    },
    /// All rows of the table went, which its log does not say.
    Unsaid { at_us: i64 },
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    seen: Option<(Seen, i64)>,
    now: Option<(Trouble, i64)>,
    emptied: Option<Emptied>,
    /// How many there were.
    pub(super) count: u64,
    /// How long all of them were, µs.
    pub(super) us: u64,
}

impl Gaps {
    /// Why changes cannot be read now.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.now.map(|(trouble, _)| trouble)
    }

    /// Takes in a look of this time; everything before `read_until_us` has been read.
    pub(super) fn see(&mut self, seen: Seen, read_until_us: i64, now_us: i64) -> Option<News> {
        let before = self.seen.replace((seen, now_us));
        let (trouble, was) = (seen.trouble(), self.now);
        match (trouble, was) {
            (Some(trouble), None) => {
                let from_us = match (trouble, before) {
                    (_, None) => now_us,
                    // What is logged can still be read.
                    (Trouble::Off, Some((_, at_us))) => at_us,
                    _ => read_until_us.min(now_us),
                };
                self.now = Some((trouble, from_us));
                Some(News::Begins(trouble))
            }
            (Some(trouble), Some((old, from_us))) if trouble != old => {
                // What was unread is gone with the log.
                let from_us = match trouble {
                    Trouble::Gone => from_us.min(read_until_us),
                    _ => from_us,
                };
                self.now = Some((trouble, from_us));
                Some(News::Begins(trouble))
            }
            (Some(_), Some(_)) => None,
            (None, Some((why, from_us))) => {
                self.now = None;
                Some(self.lost(why, from_us, now_us))
            }
            (None, None) => {
                let (old, _) = before?;
                (old.log != seen.log)
                    .then(|| self.lost(Trouble::Anew, read_until_us.min(now_us), now_us))
            }
        }
    }

    /// Takes in a look at when both were truncated. One node may know of it and another, that was not there then, not.
    pub(super) fn see_emptied(&mut self, seen: Emptied, read_until_us: i64) -> Vec<News> {
        // Of what was before the first look it is not known what was read.
        let Some(before) = self.emptied else {
            self.emptied = Some(seen);
            return Vec::new();
        };
        self.emptied = Some(Emptied {
            table_us: before.table_us.max(seen.table_us),
            log_us: before.log_us.max(seen.log_us),
        });
        let mut news = Vec::new();
        if let Some(at_us) = seen.table_us.filter(|_| seen.table_us > before.table_us) {
            self.count += 1;
            news.push(News::Unsaid { at_us });
        }
        if let Some(at_us) = seen.log_us.filter(|_| seen.log_us > before.log_us) {
            let from_us = read_until_us.min(at_us);
            news.push(self.lost(Trouble::Emptied, from_us, at_us));
        }
        news
    }

    fn lost(&mut self, why: Trouble, from_us: i64, until_us: i64) -> News {
        self.count += 1;
        self.us += until_us.saturating_sub(from_us).unsigned_abs();
        News::Lost {
            why,
            from_us,
            until_us,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(log: u8, capturing: bool) -> Seen {
        Seen {
            log: (log > 0).then(|| Uuid::from_bytes([log; 16])),
            capturing,
        }
    }

    fn lost(why: Trouble, from_us: i64, until_us: i64) -> Option<News> {
        Some(News::Lost {
            why,
            from_us,
            until_us,
        })
    }

    #[test]
    fn a_log_that_is_dropped_takes_what_was_unread_with_it() {
        let mut gaps = Gaps::default();
        assert_eq!(gaps.see(seen(1, true), 50, 100), None);
        assert_eq!(
            gaps.see(seen(0, true), 60, 110),
            Some(News::Begins(Trouble::Gone))
        );
        assert_eq!(gaps.see(seen(0, true), 60, 120), None);
        assert_eq!(
            gaps.see(seen(2, true), 60, 130),
            lost(Trouble::Gone, 60, 130)
        );
        assert_eq!((gaps.trouble(), gaps.count, gaps.us), (None, 1, 70));
        assert_eq!(
            gaps.see(seen(3, true), 135, 140),
            lost(Trouble::Anew, 135, 140)
        );
    }

    #[test]
    fn what_is_written_while_nothing_is_logged_is_not_there_to_be_read() {
        let mut gaps = Gaps::default();
        assert_eq!(gaps.see(seen(1, true), 50, 100), None);
        assert_eq!(
            gaps.see(seen(1, false), 60, 110),
            Some(News::Begins(Trouble::Off))
        );
        assert_eq!(
            gaps.see(seen(1, true), 90, 150),
            lost(Trouble::Off, 100, 150)
        );
    }

    #[test]
    fn a_truncated_log_loses_what_was_unread_and_a_truncated_table_nothing() {
        let mut gaps = Gaps::default();
        let at = |table_us, log_us| Emptied { table_us, log_us };
        assert_eq!(gaps.see_emptied(at(Some(5), None), 0), []);
        assert_eq!(gaps.see_emptied(at(None, None), 10), [], "another node");
        assert_eq!(
            gaps.see_emptied(at(Some(20), None), 12),
            [News::Unsaid { at_us: 20 }]
        );
        assert_eq!(
            gaps.see_emptied(at(Some(20), Some(30)), 26),
            Vec::from_iter(lost(Trouble::Emptied, 26, 30))
        );
        assert_eq!(gaps.see_emptied(at(Some(5), Some(30)), 40), []);
        assert_eq!((gaps.count, gaps.us), (2, 4));
    }

    #[test]
    fn what_is_wrong_from_the_first_look_on_is_told() {
        let mut gaps = Gaps::default();
        assert_eq!(
            gaps.see(seen(1, false), 0, 100),
            Some(News::Begins(Trouble::Off))
        );
        assert_eq!(
            gaps.see(seen(0, true), 80, 110),
            Some(News::Begins(Trouble::Gone))
        );
        assert_eq!(
            gaps.see(seen(2, true), 80, 120),
            lost(Trouble::Gone, 80, 120)
        );
    }
}
