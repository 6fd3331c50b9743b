//! One shard's reading: which group next, how far, and when a batch is handed on.
//!
//! All state is in the struct and all I/O in [`FuturesUnordered`], so dropping a `next()` loses nothing, and
//! dropping the reader ends all of it. Held at once, at most: one page for each read under way
//! (`source.concurrency` × `source.page_size` rows), the page being handed on, and the group that spans pages
//! ([`MAX_GROUP_ROWS`]).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use scylla::response::PagingState;
use tokio::sync::watch;

use super::clock::{self, Clock};
use super::decode::{self, LogRow};
use super::error::SourceError;
use super::generations::{self, Generation};
use super::log::{Generations, LogTable, Page, Read};
use super::pace::{Concurrency, Span};
use super::segment::{MAX_BYTES, Segment};
use super::{ScyllaSource, ShardStats, classify};
use crate::change::{Batch, GroupKey, Position, StreamId, timeuuid_us};
use crate::checkpoint::{Checkpoints, GroupCheckpoint};
use crate::config::settings::StartFrom;
use crate::source::ShardReader;

/// The rows of one stream and time stay together in a batch, so that their links hold, up to this many; a
/// larger write (a huge unlogged batch into one partition) is handed on in parts, with links inside a part.
pub(super) const MAX_GROUP_ROWS: usize = 10_000;
/// Progress without rows is handed on no more often than this for a group: each costs a checkpoint.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// The lag looks at all groups, so not at every read.
const MEASURE_INTERVAL: Duration = Duration::from_millis(50);
/// Bounds of how often the generations are looked at; half the safety interval between them. Windows never
/// pass the last look, so a new generation is never read over.
const GENERATION_POLL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A wait for other shards that is longer than this is logged.
const LONG_WAIT: Duration = Duration::from_secs(10);

type GroupId = u64;

/// The streams of one vnode or tablet, and how far they are read.
struct Group {
    key: GroupKey,
    lane: usize,
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
    /// Pages with the beginning of a (stream, time) that goes on in the next page, and the row where it begins.
    carry: Vec<(Arc<Page>, usize)>,
    span: Span,
    /// Its last window ended before the present.
    behind: bool,
    done: bool,
}

struct Window {
    from_us: i64,
    to_us: i64,
    /// The span, not the present, set its end.
    limited: bool,
    paging: PagingState,
    pages: u32,
}

/// Where a lane is with its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// To be asked: where to start. Nothing happens before this time.
    Locate(Instant),
    /// A question is under way.
    Asked,
    Reading,
    /// Everything is handed on; waits for the barrier since then, and whether that was logged.
    ReadOut(Instant, bool),
}

/// One table in this shard.
struct Lane {
    table: Arc<LogTable>,
    phase: Phase,
    generation: Generation,
    groups: Vec<GroupId>,
    unfinished: usize,
    /// The next generation and its groups, once announced.
    next: Option<(Generation, Vec<Arc<[StreamId]>>)>,
    /// The generations at the last look.
    known: Option<Generations>,
    /// Windows may not pass it: no generation starts before it that is not known.
    known_until_us: i64,
    /// A look at the generations is under way.
    looking: bool,
    look_at: Instant,
    /// Of finished generations; forgotten when this one's are reported.
    old: Vec<GroupKey>,
}

enum Event {
    Page(GroupId, PageRead),
    Located(usize, Result<Option<Located>, SourceError>),
    Looked(usize, Result<Look, SourceError>),
}

struct Located {
    start: generations::Start,
    groups: Vec<Arc<[StreamId]>>,
    known: Generations,
}

fn generation_poll(safety_interval: Duration) -> Duration {
    (safety_interval / 2).clamp(GENERATION_POLL.0, GENERATION_POLL.1)
}

struct Look {
    known: Generations,
    /// The generation after the lane's, if it is announced.
    next: Option<(Generation, Vec<Arc<[StreamId]>>)>,
}

/// Reads one shard of a [`ScyllaSource`].
pub struct ScyllaShardReader {
    source: Arc<ScyllaSource>,
    stats: Arc<ShardStats>,
    shard: u32,
    shards: u32,
    epoch: u64,
    checkpoints: Checkpoints,
    lanes: Vec<Lane>,
    groups: HashMap<GroupId, Group>,
    next_id: GroupId,
    /// Groups with something to read.
    runnable: VecDeque<GroupId>,
    /// Groups that are caught up, and since when.
    idle: VecDeque<(Instant, GroupId)>,
    reads: usize,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
    concurrency: Concurrency,
    clock: Clock,
    filling: Segment,
    /// What is to go out although it has no rows.
    urgent: bool,
    sealed: VecDeque<Batch>,
    reported_at: Instant,
    measured_at: Instant,
    /// Groups that are behind.
    behind: usize,
    barrier: watch::Receiver<()>,
    live: crate::config::LiveSettings,
}

impl ScyllaShardReader {
    pub(super) fn new(
        source: Arc<ScyllaSource>,
        stats: Arc<ShardStats>,
        shard: u32,
        shards: u32,
        epoch: u64,
        checkpoints: Checkpoints,
    ) -> Self {
        let now = Instant::now();
        let lanes = source
            .tables
            .iter()
            .map(|table| Lane {
                table: table.clone(),
                phase: Phase::Locate(now),
                generation: Generation::MIN,
                groups: Vec::new(),
                unfinished: 0,
                next: None,
                known: None,
                known_until_us: i64::MIN,
                looking: false,
                look_at: now,
                old: Vec::new(),
            })
            .collect();
        Self {
            barrier: source.barrier.subscribe(),
            live: source.live.clone(),
            source,
            stats,
            shard,
            shards,
            epoch,
            checkpoints,
            lanes,
            groups: HashMap::new(),
            next_id: 0,
            runnable: VecDeque::new(),
            idle: VecDeque::new(),
            reads: 0,
            events: FuturesUnordered::new(),
            concurrency: Concurrency::new(),
            clock: Clock::new(clock::wall_us(), now),
            filling: Segment::new(),
            urgent: false,
            sealed: VecDeque::new(),
            reported_at: now,
            measured_at: now,
            behind: 0,
        }
    }

    /// Waits for the next batch; see [`ShardReader::next`].
    pub async fn next(&mut self) -> Result<Batch, SourceError> {
        loop {
            // Also when a batch is ready, so that the next pages come while it is worked on.
            let wake = self.schedule();
            if let Some(batch) = self.sealed.pop_front() {
                return Ok(self.handed_on(batch));
            }
            let mut had_event = false;
            while self.sealed.is_empty()
                && let Some(event) = self.events.next().now_or_never().flatten()
            {
                had_event = true;
                self.on_event(event)?;
            }
            if had_event && self.sealed.is_empty() && !self.filling.has_changes() && !self.urgent {
                continue;
            }
            let due = self.urgent || self.reported_at.elapsed() >= PROGRESS_INTERVAL;
            if due {
                self.report();
            }
            if due || self.filling.has_changes() {
                self.seal();
            }
            if !self.sealed.is_empty() {
                continue;
            }
            // Whatever wakes it, the loop looks at everything anew.
            tokio::select! {
                Some(event) = self.events.next(), if !self.events.is_empty() => self.on_event(event)?,
                () = tokio::time::sleep_until(wake.into()) => {}
                _ = self.live.changed() => {}
                _ = self.barrier.changed() => {}
            }
        }
    }

    fn handed_on(&mut self, batch: Batch) -> Batch {
        let (rows, bad) = (batch.rows.len() as u64, batch.undecodable.len() as u64);
        let stats = &self.source.stats;
        stats.rows.fetch_add(rows, Relaxed);
        stats
            .bytes
            .fetch_add(batch.rows.as_bytes().len() as u64, Relaxed);
        stats.undecodable.fetch_add(bad, Relaxed);
        self.stats.rows.fetch_add(rows, Relaxed);
        batch
    }

    /// Starts whatever may be started now. Returns when to look again at the latest.
    fn schedule(&mut self) -> Instant {
        let settings = self.live.borrow_and_update().clone();
        let source = &settings.source;
        let now = Instant::now();
        let hold = source.safety_interval + Duration::from_secs(1);
        let safe_us = self.clock.now_us(clock::wall_us(), now, hold)
            - i64::try_from(source.safety_interval.as_micros()).unwrap_or(i64::MAX);
        let mut wake = self.reported_at + PROGRESS_INTERVAL;
        if wake <= now {
            wake = now + PROGRESS_INTERVAL;
        }

        for lane in 0..self.lanes.len() {
            wake = wake.min(self.advance_lane(lane, source, now));
        }
        while let Some(&(since, id)) = self.idle.front() {
            let due = since + source.poll_interval;
            if due > now {
                wake = wake.min(due);
                break;
            }
            self.idle.pop_front();
            self.runnable.push_back(id);
        }
        if self.stats.pressed.swap(false, Relaxed) {
            self.concurrency.pressed();
        }
        let allowed = self.concurrency.allowed(source.concurrency.get());
        while self.reads < allowed
            && let Some(id) = self.runnable.pop_front()
        {
            self.advance_group(id, source.window, safe_us, now);
        }
        self.stats.concurrency.store(allowed as u32, Relaxed);
        self.measure(now);
        wake
    }

    /// Asks about generations, or goes on to the next one. Returns when to look again.
    fn advance_lane(
        &mut self,
        index: usize,
        source: &crate::config::settings::Source,
        now: Instant,
    ) -> Instant {
        let poll = generation_poll(source.safety_interval);
        if let Phase::ReadOut(since, logged) = self.lanes[index].phase {
            let lane = &mut self.lanes[index];
            let may_leave = self.source.barrier.may_leave(&lane.table.full, self.shard);
            if may_leave && let Some((generation, groups)) = lane.next.take() {
                lane.old.extend(
                    lane.groups
                        .drain(..)
                        .filter_map(|id| self.groups.remove(&id))
                        .map(|g| g.key),
                );
                self.stats.waiting.store(false, Relaxed);
                self.open(index, generation, generations::start_us(generation), groups);
            } else if !logged && now.duration_since(since) > LONG_WAIT {
                lane.phase = Phase::ReadOut(since, true);
                tracing::info!(
                    shard = self.shard,
                    table = %lane.table.full,
                    generation = lane.generation,
                    "waiting for the other shards to finish a stream generation"
                );
            }
        }
        let lane = &mut self.lanes[index];
        let (core, table) = (self.source.clone(), lane.table.clone());
        match lane.phase {
            Phase::Locate(at) if at <= now => {
                lane.phase = Phase::Asked;
                let checkpoints = self.checkpoints.clone();
                let start_from = source.start_from;
                let located = async move { locate(&core, &table, &checkpoints, start_from).await };
                self.events
                    .push(located.map(move |r| Event::Located(index, r)).boxed());
                now + LONG_WAIT
            }
            Phase::Locate(at) => at,
            Phase::Asked => now + LONG_WAIT,
            Phase::Reading | Phase::ReadOut(..) => {
                if lane.looking || lane.next.is_some() {
                    now + LONG_WAIT
                } else if lane.look_at <= now {
                    lane.looking = true;
                    let after = lane.generation;
                    let look = async move { look(&core, &table, after, poll / 2).await };
                    self.events
                        .push(look.map(move |r| Event::Looked(index, r)).boxed());
                    now + LONG_WAIT
                } else {
                    lane.look_at
                }
            }
        }
    }

    /// Starts the group's next read, or puts it where it belongs.
    fn advance_group(&mut self, id: GroupId, window: Duration, safe_us: i64, now: Instant) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let lane = &self.lanes[group.lane];
        if group.window.is_none() {
            let from_us = group.at.complete_until_us;
            if group.stop_us.is_some_and(|stop| from_us >= stop) {
                self.finish_group(id);
                return;
            }
            let limit = group.stop_us.unwrap_or(lane.known_until_us).min(safe_us);
            if limit <= from_us {
                self.idle.push_back((now, id));
                return;
            }
            if group.streams.is_empty() {
                group.at.complete_until_us = limit;
                self.runnable.push_front(id);
                return;
            }
            let to_us = from_us.saturating_add(group.span.us(window)).min(limit);
            group.window = Some(Window {
                from_us,
                to_us,
                limited: to_us < limit,
                paging: PagingState::start(),
                pages: 0,
            });
        }
        let Some(window) = &group.window else { return };
        let read = Read {
            streams: group.streams.clone(),
            from_us: window.from_us,
            to_us: window.to_us,
            paging: window.paging.clone(),
            span: group.span,
        };
        self.reads += 1;
        let (source, table, stats) = (self.source.clone(), lane.table.clone(), self.stats.clone());
        let page = async move { Event::Page(id, read_page(&source, &table, &stats, read).await) };
        self.events.push(page.boxed());
    }

    fn on_event(&mut self, event: Event) -> Result<(), SourceError> {
        match event {
            Event::Page(id, read) => {
                self.reads -= 1;
                self.on_page(id, read)
            }
            Event::Located(lane, result) => {
                let retry = Phase::Locate(Instant::now() + GENERATION_POLL.1);
                self.lanes[lane].phase = retry;
                match result? {
                    Some(Located {
                        start,
                        groups,
                        known,
                    }) => {
                        self.lanes[lane].old = start.old;
                        self.lanes[lane].known = Some(known);
                        self.open(lane, start.generation, start.from_us, groups);
                    }
                    None => tracing::debug!(
                        table = %self.lanes[lane].table.full,
                        "no stream generation yet"
                    ),
                }
                Ok(())
            }
            Event::Looked(index, result) => {
                let poll = generation_poll(self.live.borrow().source.safety_interval);
                let lane = &mut self.lanes[index];
                lane.looking = false;
                lane.look_at = Instant::now() + poll;
                let look = result?;
                let first = lane.known_until_us == i64::MIN;
                lane.known_until_us = lane.known_until_us.max(look.known.as_of_us);
                lane.known = Some(look.known);
                if first || look.next.is_some() {
                    // They were idle for want of this, not of time.
                    self.runnable.extend(self.idle.drain(..).map(|(_, id)| id));
                }
                if let Some(next) = look.next {
                    self.announce(index, next);
                }
                Ok(())
            }
        }
    }

    /// The next generation is known: the groups of this one get their end.
    fn announce(&mut self, index: usize, next: (Generation, Vec<Arc<[StreamId]>>)) {
        let lane = &mut self.lanes[index];
        let end_us = generations::start_us(next.0);
        let margin = self.live.borrow().source.safety_interval;
        let going_on: HashSet<&StreamId> = next.1.iter().flat_map(|g| g.iter()).collect();
        tracing::info!(
            shard = self.shard,
            table = %lane.table.full,
            generation = lane.generation,
            next = next.0,
            "a stream generation ends"
        );
        for id in &lane.groups {
            let Some(group) = self.groups.get_mut(id) else {
                continue;
            };
            // Writes may still come into closed streams from a node that heard late. A tablet's stream that
            // goes on is read on by its next group.
            let goes_on = group.streams.iter().any(|s| going_on.contains(s));
            let drained_us = end_us.saturating_add(margin.as_micros() as i64);
            group.stop_us = Some(if goes_on { end_us } else { drained_us });
        }
        lane.next = Some(next);
    }

    /// Begins a generation: the groups of it that fall to this shard.
    fn open(
        &mut self,
        index: usize,
        generation: Generation,
        from_us: i64,
        groups: Vec<Arc<[StreamId]>>,
    ) {
        let lane = &mut self.lanes[index];
        let table = lane.table.full.clone();
        lane.generation = generation;
        lane.phase = Phase::Reading;
        lane.look_at = Instant::now();
        lane.known_until_us = match &lane.known {
            Some(k) if generations::next(&k.list, generation).is_none() => k.as_of_us,
            _ => i64::MIN,
        };
        let mut own: Vec<(GroupKey, Arc<[StreamId]>)> = groups
            .into_iter()
            .filter_map(|streams| {
                let key = generations::group_key(&table, generation, streams.first()?);
                (key.shard(self.shards) == self.shard).then_some((key, streams))
            })
            .collect();
        if own.is_empty() {
            let key = generations::vacant_key(&table, generation, self.shard);
            own.push((key, Arc::default()));
        }
        tracing::info!(
            shard = self.shard,
            %table,
            generation,
            groups = own.len(),
            "reading a stream generation"
        );
        lane.unfinished = own.len();
        self.source.barrier.enter(&table, self.shard, generation);
        for (key, streams) in own {
            let checkpoint = self.checkpoints.get(&key);
            // Pins the place, so that a restart neither starts later nor takes this generation for unread.
            let reported_us = checkpoint.map_or(i64::MIN, |c| c.complete_until_us);
            let mut at = checkpoint.cloned().unwrap_or_default();
            at.complete_until_us = if checkpoint.is_some() {
                at.complete_until_us.max(generations::start_us(generation))
            } else {
                from_us
            };
            let id = self.next_id;
            self.next_id += 1;
            self.groups.insert(
                id,
                Group {
                    key,
                    lane: index,
                    streams,
                    resumed: !at.streams.is_empty(),
                    at,
                    reported_us,
                    stop_us: None,
                    window: None,
                    carry: Vec::new(),
                    span: Span::default(),
                    behind: false,
                    done: false,
                },
            );
            self.lanes[index].groups.push(id);
            self.runnable.push_back(id);
        }
        self.report();
        for key in std::mem::take(&mut self.lanes[index].old) {
            self.checkpoints.remove(&key);
            self.filling.finished(&key);
        }
        self.urgent = true;
        self.stats.groups.store(self.groups.len(), Relaxed);
    }

    /// The group has reached its generation's end.
    fn finish_group(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id).filter(|g| !g.done) else {
            return;
        };
        group.done = true;
        let index = group.lane;
        let lane = &mut self.lanes[index];
        lane.unfinished -= 1;
        if lane.unfinished > 0 {
            return;
        }
        lane.phase = Phase::ReadOut(Instant::now(), false);
        let outstanding = lane
            .groups
            .iter()
            .filter_map(|id| self.groups.get(id))
            .filter(|g| {
                let acknowledged = self.checkpoints.get(&g.key);
                acknowledged.is_none_or(|c| c.complete_until_us < g.at.complete_until_us)
            })
            .map(|g| (g.key.clone(), g.at.complete_until_us))
            .collect();
        let table = lane.table.full.clone();
        // Wanted again if it is only in a batch that went out before the end was known.
        for id in &self.lanes[index].groups {
            if let Some(group) = self.groups.get_mut(id) {
                group.reported_us = i64::MIN;
            }
        }
        self.report();
        self.urgent = true;
        self.stats.waiting.store(true, Relaxed);
        self.source
            .barrier
            .read_out(&table, self.shard, outstanding);
    }

    fn on_page(&mut self, id: GroupId, read: PageRead) -> Result<(), SourceError> {
        let Some(mut group) = self.groups.remove(&id) else {
            return Ok(());
        };
        for _ in 0..read.pressure {
            group.span.pressed();
        }
        if let Some(window) = &mut group.window
            && read.to_us < window.to_us
        {
            (window.to_us, window.limited) = (read.to_us, true);
        }
        let outcome = read.result.and_then(|page| self.absorb(&mut group, page));
        match &outcome {
            Ok(()) => {
                self.source.stats.pages.fetch_add(1, Relaxed);
                let max = self.live.borrow().source.concurrency.get();
                self.concurrency.succeeded(max);
                match (&group.window, group.behind) {
                    // The rest of a window first: what is held of it goes out.
                    (Some(_), _) => self.runnable.push_front(id),
                    (None, true) => self.runnable.push_back(id),
                    (None, false) => self.idle.push_back((Instant::now(), id)),
                }
            }
            Err(_) => {
                group.rewind();
                self.runnable.push_back(id);
            }
        }
        self.groups.insert(id, group);
        outcome
    }

    /// Takes a page's rows into batches. On an error the rows before it are taken, and known to be.
    fn absorb(&mut self, group: &mut Group, page: Page) -> Result<(), SourceError> {
        let batch_size = self.live.borrow().batch_size().get() as usize;
        let next = page.next.clone();
        let mut pages = std::mem::take(&mut group.carry);
        pages.push((Arc::new(page), 0));
        let mut cells: Vec<Option<&[u8]>> = Vec::new();
        let mut rows: Vec<LogRow<'_>> = Vec::new();
        let mut bytes = 0;
        let mut begun = (0, 0);
        for (p, (page, skip)) in pages.iter().enumerate() {
            let version = &*page.version;
            for (nth, columns) in page.rows_from(*skip)?.enumerate() {
                let mut start = cells.len();
                for column in columns? {
                    let column = column
                        .map_err(|e| SourceError::answer("cannot decode a row of the log", e))?;
                    cells.push(column.slice.map(|s| s.as_slice()));
                }
                let head = match decode::head(version, &cells[start..]) {
                    Ok(head) => head,
                    Err((position, error)) => {
                        let bad = decode::unreadable(version, position, &cells[start..], error);
                        self.filling.push_unreadable(bad);
                        cells.truncate(start);
                        continue;
                    }
                };
                if group.resumed && group.at.covers(&head.position) {
                    cells.truncate(start);
                    continue;
                }
                let same =
                    |a: &Position| a.stream == head.position.stream && a.time == head.position.time;
                if rows
                    .first()
                    .is_some_and(|first| !same(&first.head.position))
                {
                    self.take(group, &mut rows, &cells[..start], batch_size);
                    cells.drain(..start);
                    (start, bytes) = (0, 0);
                }
                if rows.is_empty() {
                    begun = (p, skip + nth);
                }
                rows.push(LogRow {
                    version,
                    head,
                    start,
                });
                bytes += cells[start..]
                    .iter()
                    .flatten()
                    .map(|c| c.len())
                    .sum::<usize>();
                if head.end_of_batch || rows.len() >= MAX_GROUP_ROWS || bytes >= MAX_BYTES {
                    self.take(group, &mut rows, &cells, batch_size);
                    cells.clear();
                    bytes = 0;
                }
            }
        }
        match next {
            Some(paging) => {
                if !rows.is_empty() {
                    let (first, skip) = begun;
                    group.carry = pages.drain(first..).collect();
                    if let Some((_, first_skip)) = group.carry.first_mut() {
                        *first_skip = skip;
                    }
                }
                if let Some(window) = &mut group.window {
                    window.paging = paging;
                    window.pages += 1;
                }
            }
            None => {
                self.take(group, &mut rows, &cells, batch_size);
                if let Some(window) = group.window.take() {
                    self.source.stats.windows.fetch_add(1, Relaxed);
                    group.span.finished(window.pages + 1, window.limited);
                    group.at.complete_until_us = window.to_us;
                    // Positions of a checkpoint may be past this window: the earlier one was longer.
                    group
                        .at
                        .streams
                        .retain(|_, (time, _)| timeuuid_us(time) >= window.to_us);
                    group.resumed = !group.at.streams.is_empty();
                    self.set_behind(group, window.limited);
                    if self.filling.touches(&group.key) {
                        self.filling.complete(&group.key, window.to_us);
                        group.reported_us = window.to_us;
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts the rows of one stream and time into the batch, or into the next one if it would grow too large.
    fn take(
        &mut self,
        group: &mut Group,
        rows: &mut Vec<LogRow<'_>>,
        cells: &[Option<&[u8]>],
        batch_size: usize,
    ) {
        let Some(last) = rows.last() else { return };
        let position = last.head.position;
        if self.filling.has_changes()
            && (self.filling.changes() + rows.len() > batch_size
                || self.filling.is_full(batch_size))
        {
            self.seal();
        }
        self.filling.push(&group.key, rows, cells);
        group
            .at
            .streams
            .insert(position.stream, (position.time, position.seq));
        if group.at.complete_until_us > group.reported_us {
            group.reported_us = group.at.complete_until_us;
            self.filling.complete(&group.key, group.reported_us);
        }
        rows.clear();
    }

    fn set_behind(&mut self, group: &mut Group, behind: bool) {
        self.behind = self.behind + usize::from(behind) - usize::from(group.behind);
        group.behind = behind;
        self.stats.catching_up.store(self.behind > 0, Relaxed);
    }

    /// Puts what is new of every group's progress into the batch.
    fn report(&mut self) {
        self.reported_at = Instant::now();
        for group in self.groups.values_mut() {
            let complete = group.at.complete_until_us;
            if complete > group.reported_us {
                group.reported_us = complete;
                self.filling.complete(&group.key, complete);
            }
        }
    }

    /// Brings the lag that others see up to date.
    fn measure(&mut self, now: Instant) {
        if now.duration_since(self.measured_at) < MEASURE_INTERVAL {
            return;
        }
        self.measured_at = now;
        let complete = self.groups.values().map(|g| g.at.complete_until_us);
        if let Some(oldest) = complete.min() {
            self.stats.complete_us.store(oldest, Relaxed);
        }
    }

    /// The batch is full enough, or nothing more is there for it now.
    fn seal(&mut self) {
        self.urgent = false;
        if self.filling.is_empty() {
            return;
        }
        let full = std::mem::replace(&mut self.filling, Segment::new());
        self.sealed.push_back(full.seal(self.shard, self.epoch));
    }
}

impl ShardReader for ScyllaShardReader {
    fn next(&mut self) -> BoxFuture<'_, Result<Batch, SourceError>> {
        Box::pin(ScyllaShardReader::next(self))
    }
}

impl Group {
    /// Reads the window again from its beginning; what was handed on of it is skipped.
    fn rewind(&mut self) {
        self.carry.clear();
        self.resumed = true;
        if let Some(window) = &mut self.window {
            window.paging = PagingState::start();
            window.pages = 0;
        }
    }
}

/// One page, whatever it took.
struct PageRead {
    result: Result<Page, SourceError>,
    /// The end of the window that was read in the end: a first page that met pressure asks for less.
    to_us: i64,
    /// How often the database had too much to do.
    pressure: u8,
}

async fn read_page(
    source: &ScyllaSource,
    table: &LogTable,
    stats: &ShardStats,
    read: Read,
) -> PageRead {
    let pressure = AtomicU8::new(0);
    let to_us = AtomicI64::new(read.to_us);
    let attempt = || {
        let settings = source.live.borrow().clone();
        let mut read = read.clone();
        for _ in 0..pressure.load(Relaxed) {
            read.span.pressed();
        }
        if pressure.load(Relaxed) > 0 && read.paging == PagingState::start() {
            let least = read
                .from_us
                .saturating_add(read.span.us(settings.source.window));
            read.to_us = read.to_us.min(least);
            to_us.store(read.to_us, Relaxed);
        }
        let pressure = &pressure;
        async move {
            let result = table.read(&source.session, &settings.source, read).await;
            result.inspect_err(|error| {
                source.failed(error);
                tracing::debug!(table = %table.full, %error, "log read failed");
                if classify::is_pressure(error) {
                    pressure.store(pressure.load(Relaxed).saturating_add(1), Relaxed);
                    stats.pressed.store(true, Relaxed);
                }
                if classify::is_stale_statement(error) {
                    table.forget_statement();
                }
            })
        }
    };
    let result = source.policies.run(attempt, classify::classify).await;
    PageRead {
        result,
        to_us: to_us.load(Relaxed),
        pressure: pressure.load(Relaxed),
    }
}

/// Where to start with a table, the groups of that generation, and what comes after it.
async fn locate(
    source: &ScyllaSource,
    table: &LogTable,
    checkpoints: &Checkpoints,
    start_from: StartFrom,
) -> Result<Option<Located>, SourceError> {
    let known = known(source, table, Duration::ZERO).await?;
    let (bound_us, floor_us) = match start_from {
        StartFrom::Earliest => {
            let kept = table.known_ttl().map_or(i64::MAX, |ttl| {
                i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX)
            });
            let oldest = clock::wall_us().saturating_sub(kept);
            (oldest, oldest)
        }
        StartFrom::Latest => (source.connected_us, i64::MIN),
        StartFrom::At(us) => (us, us),
    };
    let from = |known: &Generations| {
        generations::start(&known.list, &table.full, checkpoints, bound_us, floor_us)
    };
    let Some(mut start) = from(&known) else {
        return Ok(None);
    };
    // An empty generation is skipped if another follows; the last one may just not be filled in yet.
    loop {
        let groups = streams(source, table, start.generation).await?;
        if !groups.is_empty() {
            return Ok(Some(Located {
                start,
                groups,
                known,
            }));
        }
        let Some(next) = generations::next(&known.list, start.generation) else {
            return Ok(None);
        };
        start.generation = next;
        start.from_us = start.from_us.max(generations::start_us(next));
    }
}

/// Looks for the generation after this one.
async fn look(
    source: &ScyllaSource,
    table: &LogTable,
    after: Generation,
    max_age: Duration,
) -> Result<Look, SourceError> {
    let mut known = known(source, table, max_age).await?;
    let mut candidate = after;
    while let Some(next) = generations::next(&known.list, candidate) {
        let groups = streams(source, table, next).await?;
        if !groups.is_empty() {
            return Ok(Look {
                known,
                next: Some((next, groups)),
            });
        }
        known.as_of_us = known.as_of_us.min(generations::start_us(next));
        candidate = next;
    }
    Ok(Look { known, next: None })
}

async fn known(
    source: &ScyllaSource,
    table: &LogTable,
    max_age: Duration,
) -> Result<Generations, SourceError> {
    let ask = || async {
        source
            .generations(table, max_age)
            .await
            .inspect_err(|e| source.failed(e))
    };
    source.policies.run(ask, classify::classify).await
}

async fn streams(
    source: &ScyllaSource,
    table: &LogTable,
    generation: Generation,
) -> Result<Vec<Arc<[StreamId]>>, SourceError> {
    let ask = || async {
        source
            .streams(table, generation)
            .await
            .inspect_err(|e| source.failed(e))
    };
    source.policies.run(ask, classify::classify).await
}
