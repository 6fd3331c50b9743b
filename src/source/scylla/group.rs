//! A stream group: how far it is read, the window that is being read, and what of a write is in the next page.
//! No I/O.

mod window;
mod write;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use scylla::response::PagingState;

use self::window::{Kind, Window};
use self::write::{MAX_WRITE, Write, WriteId, goes_on};
use super::batches::Batches;
use super::decode::{self, Torn};
use super::error::SourceError;
use super::generations;
use super::log::{Columns, Keys, Page, Read};
use super::pace::Span;
use super::past::{Known, Met, Past, Reading, spans};
use super::requests::Got;
use super::segment::Part;
use crate::change::{GroupKey, Memory, Position, Progress, StreamId, fingerprint, timeuuid_us};
use crate::checkpoint::GroupCheckpoint;

/// A group is looked back at no more often than this, unless it has to be.
const LOOK_REST: Duration = Duration::from_secs(1);

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
    /// What was handed on that late writes may appear among.
    past: Past,
    /// A look back that is read, but for what is late in it.
    look: Option<Reading>,
    /// Where late writes are.
    late: VecDeque<(i64, i64)>,
    looked_at: Option<Instant>,
    /// It was looked back at from its generation's end.
    last_look: bool,
    /// The write of which some part is handed on, but not all.
    torn: Option<(WriteId, Torn)>,
    /// Of `carry`: the write, and the bytes of it.
    held: Option<(WriteId, usize)>,
    /// Pages with the beginning of a write that goes on in the next page, and the row where it begins.
    carry: Vec<(Arc<Page>, usize)>,
    span: Span,
    /// When rows of it were last handed on, and whether some were since that was asked.
    rows_at: Option<Instant>,
    had_rows: bool,
    /// Its last window ended before the present.
    pub(super) behind: bool,
    pub(super) done: bool,
}

/// What is done now, and how far it may go.
pub(super) struct Turn {
    pub(super) at: Instant,
    /// The database's clock.
    pub(super) now_us: i64,
    /// Windows end before it.
    pub(super) safe_us: i64,
    /// There is no other generation before it.
    pub(super) known_until_us: i64,
    /// `source.window`
    pub(super) window: Duration,
    /// `source.late_horizon`, or what of it there is memory for; 0: off.
    pub(super) horizon_us: i64,
    /// There is room for a look back that is not urgent.
    pub(super) may_look: bool,
    /// What a group without new rows may have slept over: one read takes it in.
    pub(super) rest_us: i64,
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

impl Group {
    /// Goes on from its checkpoint and the leaves beside it; without one it starts at `from_us`.
    pub(super) fn new<'a>(
        key: GroupKey,
        cursor: usize,
        streams: Arc<[StreamId]>,
        checkpoint: Option<&GroupCheckpoint>,
        leaves: impl Iterator<Item = (u64, &'a GroupCheckpoint)>,
        generation: generations::Generation,
        from_us: i64,
    ) -> Self {
        let mut at = checkpoint.cloned().unwrap_or_default();
        at.complete_until_us = match checkpoint {
            Some(_) => at.complete_until_us.max(generations::start_us(generation)),
            None => from_us,
        };
        let past = match checkpoint {
            Some(_) => Past::restore(key.clone(), &at, leaves),
            None => Past::new(key.clone(), from_us),
        };
        Self {
            past,
            look: None,
            late: VecDeque::new(),
            looked_at: None,
            last_look: false,
            torn: None,
            held: None,
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
            rows_at: None,
            had_rows: false,
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
        self.tell(out);
    }

    /// Hands on what is new of its memory: before anything else is remembered.
    fn tell(&mut self, out: &mut Batches) {
        for progress in self.past.news() {
            out.add(progress);
        }
    }

    /// Writes that it remembers.
    pub(super) fn remembered(&self) -> usize {
        self.past.len()
    }

    /// Its keys in the checkpoints.
    pub(super) fn into_keys(self) -> impl Iterator<Item = GroupKey> {
        std::iter::once(self.key).chain(self.past.into_leaves())
    }

    /// What to do next; begins a window if none is being read.
    pub(super) fn next(&mut self, turn: &Turn, out: &mut Batches) -> Next {
        if self.window.is_none()
            && let Some(nothing) = self.begin(turn, out)
        {
            return nothing;
        }
        match &self.window {
            Some(window) => Next::Read(Read {
                streams: self.streams.clone(),
                from_us: window.reading.from_us,
                to_us: window.reading.to_us,
                least_us: match window.kind {
                    Kind::Forward => self.at.complete_until_us,
                    Kind::Look(_) | Kind::Late => window.reading.from_us,
                },
                columns: match window.kind {
                    Kind::Look(_) => Columns::Keys,
                    Kind::Forward | Kind::Late => Columns::All,
                },
                paging: window.paging.clone(),
                span: self.span,
            }),
            None => Next::CaughtUp,
        }
    }

    /// Begins a window: of what is late, to look back, or forward up to what is safe and known.
    fn begin(&mut self, turn: &Turn, out: &mut Batches) -> Option<Next> {
        let complete_us = self.at.complete_until_us;
        if let Some((from_us, to_us)) = self.late.pop_front() {
            let reading = Reading::of_late(from_us, to_us, turn.now_us);
            self.window = Some(Window::new(reading, Kind::Late, false));
            return None;
        }
        if let Some(look) = self.look.take() {
            self.past.finished(&look);
        }
        if turn.horizon_us == 0 {
            self.past.let_go(complete_us);
        }
        self.tell(out);
        let stop = self.stop_us.is_some_and(|stop| complete_us >= stop);
        let last = stop && !std::mem::replace(&mut self.last_look, true);
        let rested = |at: Instant| turn.at.saturating_duration_since(at) >= LOOK_REST;
        let free = last || (turn.may_look && self.looked_at.is_none_or(rested));
        let look = self
            .past
            .plan(turn.now_us, turn.horizon_us, complete_us, free);
        if let Some(reading) = look.filter(|_| last || !stop) {
            self.looked_at = Some(turn.at);
            self.window = Some(Window::new(reading, Kind::Look(Vec::new()), false));
            return None;
        }
        if stop {
            return Some(Next::Finished);
        }
        let limit = self
            .stop_us
            .unwrap_or(turn.known_until_us)
            .min(turn.safe_us);
        if limit <= complete_us {
            return Some(Next::CaughtUp);
        }
        if self.streams.is_empty() {
            self.at.complete_until_us = limit;
            return self.begin(turn, out);
        }
        let mut span_us = self.span.us(turn.window);
        if !self.span.is_pressed() {
            span_us = span_us.max(turn.rest_us);
        }
        let to_us = complete_us.saturating_add(span_us).min(limit);
        let reading = self
            .past
            .forward(complete_us, to_us, turn.now_us, turn.horizon_us);
        self.window = Some(Window::new(reading, Kind::Forward, to_us < limit));
        None
    }

    /// How long it has had no new rows.
    pub(super) fn silence(&mut self, now: Instant) -> Duration {
        if std::mem::take(&mut self.had_rows) {
            self.rows_at = Some(now);
        }
        let since = self.rows_at;
        since.map_or(Duration::MAX, |at| now.saturating_duration_since(at))
    }

    /// When its generation ends for it, µs since the Unix epoch, if that is known.
    pub(super) fn ends_us(&self) -> Option<i64> {
        self.stop_us
    }

    /// Whether what it reads next is a look back.
    pub(super) fn is_looking(&self) -> bool {
        let kind = self.window.as_ref().map(|w| &w.kind);
        matches!(kind, Some(Kind::Look(_)))
    }

    /// The database had too much to do, so often; the window that was read in the end ended here.
    pub(super) fn pressed(&mut self, times: u8, to_us: i64) {
        for _ in 0..times {
            self.span.pressed();
        }
        if let Some(window) = &mut self.window
            && to_us < window.reading.to_us
        {
            (window.reading.to_us, window.limited) = (to_us, true);
        }
    }

    /// Reads the window again from its beginning; what was handed on of it is skipped.
    pub(super) fn rewind(&mut self) {
        self.carry.clear();
        self.held = None;
        self.resumed = true;
        if let Some(window) = &mut self.window {
            window.paging = PagingState::start();
            window.pages = 0;
            if let Kind::Look(found) = &mut window.kind {
                found.clear();
            }
        }
    }

    /// Takes in what was read.
    pub(super) fn absorb(&mut self, got: Got, out: &mut Batches) -> Result<Absorbed, SourceError> {
        match got {
            Got::Rows(page) => self.absorb_rows(*page, out),
            Got::Keys(keys) => Ok(self.absorb_keys(keys)),
        }
    }

    /// Looks for writes that were not handed on.
    fn absorb_keys(&mut self, keys: Keys) -> Absorbed {
        let complete_us = self.at.complete_until_us;
        let Some(window) = &mut self.window else {
            return Absorbed::Page;
        };
        let Kind::Look(found) = &mut window.kind else {
            return Absorbed::Page;
        };
        let known = self
            .past
            .known(window.reading.from_us, window.reading.to_us);
        for (stream, time) in &keys.writes {
            let (write, at_us) = (fingerprint(stream, time), timeuuid_us(time));
            if self.past.meet(write, at_us, complete_us, &known) == Met::Late {
                found.push(at_us);
            }
        }
        match keys.next {
            Some(paging) => window.paging = paging,
            None => {
                self.late = spans(std::mem::take(found));
                self.look = Some(window.reading);
                self.window = None;
            }
        }
        Absorbed::Page
    }

    /// Takes a page's rows into batches. On an error the rows before it are taken, and known to be.
    fn absorb_rows(&mut self, page: Page, out: &mut Batches) -> Result<Absorbed, SourceError> {
        let next = page.next.clone();
        if let Some(window) = &mut self.window {
            window.empty &= page.rows.rows_num() == 0;
        }
        if let (Some(paging), Some((write, bytes))) = (&next, &mut self.held)
            && let Some(more) = goes_on(&page, *write)?
            && *bytes + more < MAX_WRITE
        {
            *bytes += more;
            self.carry.push((Arc::new(page), 0));
            self.turn_page(paging.clone());
            return Ok(Absorbed::Page);
        }
        self.held = None;
        let mut pages = std::mem::take(&mut self.carry);
        pages.push((Arc::new(page), 0));
        let mut last = self.take_writes(&pages, out)?;
        match next {
            Some(paging) => {
                let begun = (!last.rows.is_empty()).then_some(last.begun);
                self.held = last.id().map(|id| (id, last.bytes));
                drop(last);
                self.carry_on(pages, begun);
                self.turn_page(paging);
                Ok(Absorbed::Page)
            }
            None => {
                let all = last.cells.len();
                self.hand_on(&mut last, all, true, out);
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
        let known = self.known();
        for (p, (page, skip)) in pages.iter().enumerate() {
            let version = &*page.version;
            let mut rows = page.rows_from(*skip)?;
            for nth in 0.. {
                let start = write.cells.len();
                if !rows.next(&mut write.cells)? {
                    break;
                }
                let head = match decode::head(version, &write.cells[start..]) {
                    Ok(head) => head,
                    Err((position, error)) => {
                        let cells = &write.cells[start..];
                        // What has been passed was handed on then.
                        if position.timestamp_us() >= self.at.complete_until_us {
                            out.unreadable(decode::unreadable(version, position, cells, error));
                            self.had_rows = true;
                        }
                        write.cells.truncate(start);
                        continue;
                    }
                };
                let met = self.meet(&head.position, known.as_ref());
                if met == Met::Done {
                    write.cells.truncate(start);
                    continue;
                }
                if write.is_another(&head.position) {
                    self.hand_on(&mut write, start, true, out);
                }
                write.push(version, head, (p, skip + nth));
                write.late = met == Met::Late;
                write.postimages = page.postimages;
                if head.end_of_batch || write.is_large() {
                    let all = write.cells.len();
                    self.hand_on(&mut write, all, head.end_of_batch, out);
                }
            }
        }
        Ok(write)
    }

    /// What was handed on of what the window reads again.
    fn known(&self) -> Option<Known> {
        let reading = &self.window.as_ref()?.reading;
        let complete_us = self.at.complete_until_us;
        (reading.from_us < complete_us).then(|| {
            self.past
                .known(reading.from_us, reading.to_us.min(complete_us))
        })
    }

    fn meet(&self, position: &Position, known: Option<&Known>) -> Met {
        if let Some(known) = known {
            let write = fingerprint(&position.stream, &position.time);
            let (at_us, complete_us) = (position.timestamp_us(), self.at.complete_until_us);
            let met = self.past.meet(write, at_us, complete_us, known);
            if met != Met::Ahead {
                return met;
            }
        }
        match self.resumed && self.at.covers(position) {
            true => Met::Done,
            false => Met::Ahead,
        }
    }

    /// What of the pages is needed again with the next one: from the beginning of the write that goes on.
    fn carry_on(&mut self, mut pages: Vec<(Arc<Page>, usize)>, begun: Option<(usize, usize)>) {
        if let Some((first, skip)) = begun {
            self.carry = pages.drain(first..).collect();
            if let Some((_, first_skip)) = self.carry.first_mut() {
                *first_skip = skip;
            }
        }
    }

    /// The window goes on with the next page.
    fn turn_page(&mut self, paging: PagingState) {
        if let Some(window) = &mut self.window {
            window.paging = paging;
            window.pages += 1;
        }
    }

    fn finish_window(&mut self, out: &mut Batches) -> Absorbed {
        let Some(window) = self.window.take() else {
            return Absorbed::Page;
        };
        let to_us = window.reading.to_us;
        if let Kind::Late = window.kind {
            if to_us < window.wanted_us {
                self.late.push_front((to_us, window.wanted_us));
            }
            return Absorbed::Page;
        }
        self.past.finished(&window.reading);
        self.tell(out);
        self.span
            .finished(window.pages + 1, window.empty, window.limited);
        self.at.complete_until_us = to_us;
        // Positions of a checkpoint may be past this window: the earlier one was longer.
        self.at
            .streams
            .retain(|_, (time, _)| timeuuid_us(time) >= to_us);
        self.resumed = !self.at.streams.is_empty();
        if out.touches(&self.key) {
            out.complete(&self.key, to_us);
            self.reported_us = to_us;
        }
        Absorbed::Window {
            behind: window.limited,
        }
    }

    /// Puts a write, or a part of it, into the batch, or into the next one if it would grow too large; `cells` are
    /// those of it.
    fn hand_on(&mut self, write: &mut Write<'_>, cells: usize, whole: bool, out: &mut Batches) {
        let Some(id) = write.id() else { return };
        // Not between a range's start and its end.
        let kept = (!whole).then(|| write.open_range()).flatten();
        let (rows, cells) = kept.unwrap_or((write.rows.len(), cells));
        if self.torn.as_ref().is_some_and(|(torn, _)| *torn != id) {
            self.torn = None;
        }
        if !whole && self.torn.is_none() {
            tracing::warn!(
                group = &*self.key.0,
                "a write is larger than {} MiB and is handed on in parts",
                MAX_WRITE >> 20
            );
            let torn = Torn::new(write.postimages);
            self.torn = Some((id, torn));
        }
        let last = write.rows[rows - 1].head.position;
        self.had_rows = true;
        out.push(
            &self.key,
            Part {
                rows: &write.rows[..rows],
                cells: &write.cells[..cells],
                torn: self.torn.as_mut().map(|(_, torn)| torn),
                late: write.late,
            },
        );
        if !write.late {
            self.at.streams.insert(last.stream, (last.time, last.seq));
        }
        // A late one has no position that tells how much of it is done: it is done when all of it is.
        if (!write.late || whole)
            && let Some(window) = &self.window
        {
            let fingerprint = fingerprint(&id.0, &id.1);
            let remembered = self
                .past
                .remember(fingerprint, last.timestamp_us(), &window.reading);
            if remembered.noted {
                out.remember(&self.key, fingerprint);
            }
            if let Some(leaf) = remembered.leaf {
                out.add(leaf);
                out.add(Progress {
                    memory: Memory {
                        moved: true,
                        ..Memory::default()
                    },
                    ..Progress::new(self.key.clone())
                });
            }
        }
        if whole {
            self.torn = None;
        }
        self.report(out);
        write.rows.drain(..rows);
        write.cells.drain(..cells);
        for row in &mut write.rows {
            row.start -= cells;
        }
        (write.begun, write.bytes) = (write.last, 0);
    }
}

#[cfg(test)]
mod tests;
