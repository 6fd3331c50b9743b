//! A stream group: how far it is read, the window that is being read, and what of a write is in the next page.
//! No I/O.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use scylla::response::PagingState;

use super::batches::Batches;
use super::decode::{self, LogRow};
use super::error::SourceError;
use super::generations;
use super::log::{Page, Read};
use super::pace::Span;
use super::schema::Version;
use super::segment::MAX_BYTES;
use crate::change::{GroupKey, Position, StreamId, timeuuid_us};
use crate::checkpoint::GroupCheckpoint;

/// The rows of one stream and time stay together in a batch, so that their links hold, up to this many; a
/// larger write (a huge unlogged batch into one partition) is handed on in parts, with links inside a part.
const MAX_WRITE_ROWS: usize = 10_000;

pub(super) type GroupId = u64;

/// The streams of one vnode or tablet, and how far they are read.
pub(super) struct Group {
    pub(super) key: GroupKey,
    /// The cursor that it belongs to.
    pub(super) cursor: usize,
    streams: Arc<[StreamId]>,
    /// Up to where it is read, and past that the last position of each stream that was handed on.
    at: GroupCheckpoint,
    /// Rows may come again that `at` covers: the window was begun before.
    resumed: bool,
    /// Of `at.complete_until_us`, what was handed on as progress.
    reported_us: i64,
    /// Where its generation ends for it; `None`: not yet known.
    stop_us: Option<i64>,
    window: Option<Window>,
    /// Pages with the beginning of a write that goes on in the next page, and the row where it begins.
    carry: Vec<(Arc<Page>, usize)>,
    span: Span,
    /// Its last window ended before the present.
    pub(super) behind: bool,
    pub(super) done: bool,
}

struct Window {
    from_us: i64,
    to_us: i64,
    /// The span, not the present, set its end.
    limited: bool,
    paging: PagingState,
    pages: u32,
}

/// What a group has to do next.
pub(super) enum Next {
    Read(Read),
    /// It has reached its generation's end.
    Finished,
    /// Nothing, before time has passed or more is known.
    CaughtUp,
}

/// Whether a page ended its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absorbed {
    /// It goes on.
    Page,
    /// It did; the group may be behind.
    Window { behind: bool },
}

/// The rows of one write (one stream and time), as far as they have been seen, and their cells.
#[derive(Default)]
struct Write<'p> {
    rows: Vec<LogRow<'p>>,
    cells: Vec<Option<&'p [u8]>>,
    bytes: usize,
    /// The page and the row in it with which it began.
    begun: (usize, usize),
}

impl Group {
    /// Goes on from its checkpoint; without one it starts at `from_us`.
    pub(super) fn new(
        key: GroupKey,
        cursor: usize,
        streams: Arc<[StreamId]>,
        checkpoint: Option<&GroupCheckpoint>,
        generation: generations::Generation,
        from_us: i64,
    ) -> Self {
        let mut at = checkpoint.cloned().unwrap_or_default();
        at.complete_until_us = match checkpoint {
            Some(_) => at.complete_until_us.max(generations::start_us(generation)),
            None => from_us,
        };
        Self {
            key,
            cursor,
            streams,
            resumed: !at.streams.is_empty(),
            at,
            // Without one its place is handed on at once: that pins it, so that a restart neither starts later
            // nor takes this generation for unread.
            reported_us: checkpoint.map_or(i64::MIN, |c| c.complete_until_us),
            stop_us: None,
            window: None,
            carry: Vec::new(),
            span: Span::default(),
            behind: false,
            done: false,
        }
    }

    /// All of its changes before this time (µs since the Unix epoch) are read.
    pub(super) fn complete_until_us(&self) -> i64 {
        self.at.complete_until_us
    }

    /// Its generation ends at `end_us`. A tablet's stream that goes on is read on by its next group; into a
    /// closed one, writes may still come for a while from a node that heard late.
    pub(super) fn ends(&mut self, end_us: i64, margin: Duration, going_on: &HashSet<&StreamId>) {
        let goes_on = self.streams.iter().any(|s| going_on.contains(s));
        let drained_us = end_us.saturating_add(margin.as_micros() as i64);
        self.stop_us = Some(if goes_on { end_us } else { drained_us });
    }

    /// Its progress is wanted again, if it is only in a batch that went out before the end was known.
    pub(super) fn report_again(&mut self) {
        self.reported_us = i64::MIN;
    }

    /// Puts what is new of its progress into the batch.
    pub(super) fn report(&mut self, out: &mut Batches) {
        if self.at.complete_until_us > self.reported_us {
            self.reported_us = self.at.complete_until_us;
            out.complete(&self.key, self.reported_us);
        }
    }

    /// What to do next; begins a window if none is being read, up to `safe_us` and to where the generations
    /// are known.
    pub(super) fn next(&mut self, safe_us: i64, known_until_us: i64, window: Duration) -> Next {
        if self.window.is_none() {
            let from_us = self.at.complete_until_us;
            if self.stop_us.is_some_and(|stop| from_us >= stop) {
                return Next::Finished;
            }
            let limit = self.stop_us.unwrap_or(known_until_us).min(safe_us);
            if limit <= from_us {
                return Next::CaughtUp;
            }
            if self.streams.is_empty() {
                self.at.complete_until_us = limit;
                return self.next(safe_us, known_until_us, window);
            }
            let to_us = from_us.saturating_add(self.span.us(window)).min(limit);
            self.window = Some(Window {
                from_us,
                to_us,
                limited: to_us < limit,
                paging: PagingState::start(),
                pages: 0,
            });
        }
        match &self.window {
            Some(window) => Next::Read(Read {
                streams: self.streams.clone(),
                from_us: window.from_us,
                to_us: window.to_us,
                paging: window.paging.clone(),
                span: self.span,
            }),
            None => Next::CaughtUp,
        }
    }

    /// The database had too much to do, so often; the window that was read in the end ended here.
    pub(super) fn pressed(&mut self, times: u8, to_us: i64) {
        for _ in 0..times {
            self.span.pressed();
        }
        if let Some(window) = &mut self.window
            && to_us < window.to_us
        {
            (window.to_us, window.limited) = (to_us, true);
        }
    }

    /// Reads the window again from its beginning; what was handed on of it is skipped.
    pub(super) fn rewind(&mut self) {
        self.carry.clear();
        self.resumed = true;
        if let Some(window) = &mut self.window {
            window.paging = PagingState::start();
            window.pages = 0;
        }
    }

    /// Takes a page's rows into batches. On an error the rows before it are taken, and known to be.
    pub(super) fn absorb(
        &mut self,
        page: Page,
        out: &mut Batches,
    ) -> Result<Absorbed, SourceError> {
        let next = page.next.clone();
        let mut pages = std::mem::take(&mut self.carry);
        pages.push((Arc::new(page), 0));
        let mut last = self.take_writes(&pages, out)?;
        match next {
            Some(paging) => {
                let begun = (!last.rows.is_empty()).then_some(last.begun);
                drop(last);
                self.carry_on(pages, begun, paging);
                Ok(Absorbed::Page)
            }
            None => {
                let all = last.cells.len();
                self.hand_on(&mut last, all, out);
                Ok(self.finish_window(out))
            }
        }
    }

    /// Hands on every write that is seen to be whole; gives back the last one, which may go on.
    fn take_writes<'p>(
        &mut self,
        pages: &'p [(Arc<Page>, usize)],
        out: &mut Batches,
    ) -> Result<Write<'p>, SourceError> {
        let mut write = Write::default();
        for (p, (page, skip)) in pages.iter().enumerate() {
            let version = &*page.version;
            for (nth, columns) in page.rows_from(*skip)?.enumerate() {
                let start = write.cells.len();
                for column in columns? {
                    let column = column
                        .map_err(|e| SourceError::answer("cannot decode a row of the log", e))?;
                    write.cells.push(column.slice.map(|s| s.as_slice()));
                }
                let head = match decode::head(version, &write.cells[start..]) {
                    Ok(head) => head,
                    Err((position, error)) => {
                        let cells = &write.cells[start..];
                        out.unreadable(decode::unreadable(version, position, cells, error));
                        write.cells.truncate(start);
                        continue;
                    }
                };
                if self.resumed && self.at.covers(&head.position) {
                    write.cells.truncate(start);
                    continue;
                }
                if write.is_another(&head.position) {
                    self.hand_on(&mut write, start, out);
                }
                write.push(version, head, (p, skip + nth));
                if head.end_of_batch || write.is_large() {
                    let all = write.cells.len();
                    self.hand_on(&mut write, all, out);
                }
            }
        }
        Ok(write)
    }

    /// The window goes on with the next page, and with it the write that began at `begun`.
    fn carry_on(
        &mut self,
        mut pages: Vec<(Arc<Page>, usize)>,
        begun: Option<(usize, usize)>,
        paging: PagingState,
    ) {
        if let Some((first, skip)) = begun {
            self.carry = pages.drain(first..).collect();
            if let Some((_, first_skip)) = self.carry.first_mut() {
                *first_skip = skip;
            }
        }
        if let Some(window) = &mut self.window {
            window.paging = paging;
            window.pages += 1;
        }
    }

    fn finish_window(&mut self, out: &mut Batches) -> Absorbed {
        let Some(window) = self.window.take() else {
            return Absorbed::Page;
        };
        self.span.finished(window.pages + 1, window.limited);
        self.at.complete_until_us = window.to_us;
        // Positions of a checkpoint may be past this window: the earlier one was longer.
        self.at
            .streams
            .retain(|_, (time, _)| timeuuid_us(time) >= window.to_us);
        self.resumed = !self.at.streams.is_empty();
        if out.touches(&self.key) {
            out.complete(&self.key, window.to_us);
            self.reported_us = window.to_us;
        }
        Absorbed::Window {
            behind: window.limited,
        }
    }

    /// Puts a write into the batch, or into the next one if it would grow too large; `cells` are those of it.
    fn hand_on(&mut self, write: &mut Write<'_>, cells: usize, out: &mut Batches) {
        if let Some(last) = write.rows.last() {
            let position = last.head.position;
            out.push(&self.key, &write.rows, &write.cells[..cells]);
            self.at
                .streams
                .insert(position.stream, (position.time, position.seq));
            self.report(out);
        }
        write.rows.clear();
        write.cells.drain(..cells);
        write.bytes = 0;
    }
}

impl<'p> Write<'p> {
    /// Whether a row with this position begins another one.
    fn is_another(&self, position: &Position) -> bool {
        self.rows.first().is_some_and(|first| {
            let first = &first.head.position;
            (first.stream, first.time) != (position.stream, position.time)
        })
    }

    /// Adds the row whose cells were added last.
    fn push(&mut self, version: &'p Version, head: decode::Head, place: (usize, usize)) {
        if self.rows.is_empty() {
            self.begun = place;
        }
        let start = self.cells.len() - version.wire.len();
        let cells = self.cells[start..].iter().flatten();
        self.bytes += cells.map(|c| c.len()).sum::<usize>();
        self.rows.push(LogRow {
            version,
            head,
            start,
        });
    }

    /// It is handed on in parts.
    fn is_large(&self) -> bool {
        self.rows.len() >= MAX_WRITE_ROWS || self.bytes >= MAX_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::StreamId;

    const WINDOW: Duration = Duration::from_micros(1000);

    fn group(streams: u8, checkpoint: Option<i64>) -> Group {
        let streams: Vec<StreamId> = (0..streams).map(|s| StreamId([s; 16])).collect();
        let checkpoint = checkpoint.map(|complete_until_us| GroupCheckpoint {
            complete_until_us,
            ..GroupCheckpoint::default()
        });
        let key = GroupKey("ks.t/10/00".into());
        Group::new(key, 0, streams.into(), checkpoint.as_ref(), 10, 10_500)
    }

    fn window(group: &mut Group, safe_us: i64, known_until_us: i64) -> Option<(i64, i64)> {
        match group.next(safe_us, known_until_us, WINDOW) {
            Next::Read(read) => Some((read.from_us, read.to_us)),
            Next::CaughtUp => None,
            Next::Finished => panic!("finished"),
        }
    }

    #[test]
    fn it_starts_where_its_checkpoint_is_or_where_it_is_told() {
        assert_eq!(
            window(&mut group(1, None), 99_000, 99_000),
            Some((10_500, 11_500))
        );
        assert_eq!(
            window(&mut group(1, Some(20_000)), 99_000, 99_000),
            Some((20_000, 21_000))
        );
        assert_eq!(
            window(&mut group(1, Some(3)), 99_000, 99_000),
            Some((10_000, 11_000)),
            "not before its generation"
        );
    }

    #[test]
    fn a_window_passes_neither_what_is_safe_nor_what_is_known() {
        assert_eq!(
            window(&mut group(1, None), 10_700, 99_000),
            Some((10_500, 10_700))
        );
        assert_eq!(
            window(&mut group(1, None), 99_000, 10_600),
            Some((10_500, 10_600))
        );
        assert_eq!(window(&mut group(1, None), 99_000, i64::MIN), None);
    }

    #[test]
    fn a_window_that_is_being_read_stays_what_it_is() {
        let mut group = group(1, None);
        let first = window(&mut group, 10_700, 99_000);
        assert_eq!(window(&mut group, 99_000, 99_000), first);
        group.pressed(1, 10_600);
        assert_eq!(window(&mut group, 99_000, 99_000), Some((10_500, 10_600)));
    }

    #[test]
    fn streams_that_go_on_are_left_at_the_switch_and_others_drained_past_it() {
        let margin = Duration::from_micros(300);
        let (stays, other) = (StreamId([0; 16]), StreamId([9; 16]));
        for (next, drained_us) in [(stays, 20_000), (other, 20_300)] {
            let mut group = group(1, Some(20_000));
            group.ends(20_000, margin, &HashSet::from([&next]));
            match group.next(99_000, i64::MIN, WINDOW) {
                Next::Read(read) => assert_eq!(read.to_us, drained_us),
                Next::Finished => assert_eq!(drained_us, 20_000),
                Next::CaughtUp => panic!("it need not know more"),
            }
        }
    }

    #[test]
    fn without_streams_it_passes_the_time_and_reads_nothing() {
        let mut group = group(0, None);
        assert!(matches!(group.next(12_000, 99_000, WINDOW), Next::CaughtUp));
        assert_eq!(group.complete_until_us(), 12_000);
        group.ends(13_000, Duration::ZERO, &HashSet::new());
        assert!(matches!(
            group.next(99_000, i64::MIN, WINDOW),
            Next::Finished
        ));
    }
}
