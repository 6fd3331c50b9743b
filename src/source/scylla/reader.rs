//! One shard's reading: the loop that brings together where each table is ([`Cursor`]), what each group has to
//! do ([`Group`]), whose turn it is ([`Schedule`]), the reads under way ([`Requests`]) and what goes out
//! ([`Batches`]).
//!
//! All state is in the struct and all I/O in [`Requests`], so dropping a `next()` loses nothing, and dropping
//! the reader ends all of it. Held at once, at most: one page for each read under way (`source.concurrency` ×
//! `source.page_size` rows), the page being handed on, and the write that spans pages.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::sync::watch;

use super::batches::Batches;
use super::cursor::{self, Cursor, Phase, Place};
use super::error::SourceError;
use super::generations::{self, Generation, Start};
use super::group::{Absorbed, Group, GroupId, Next, Turn};
use super::pace::Looks;
use super::requests::{Got, PageRead, Requests};
use super::schedule::{Rest, Schedule};
use super::survey::{Known, Streams};
use super::{ScyllaSource, ShardStats, classify};
use crate::change::{Batch, GroupKey};
use crate::checkpoint::{self, Checkpoints};
use crate::config::LiveSettings;
use crate::config::settings::{Settings, StartFrom};
use crate::source::{Aside, ShardReader};

/// Progress without rows is handed on no more often than this for a group: each costs a checkpoint.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// The lag looks at all groups, so not at every read.
const MEASURE_INTERVAL: Duration = Duration::from_millis(50);
/// A wait for other shards that is longer than this is logged.
const LONG_WAIT: Duration = Duration::from_secs(1);

/// Reads one shard of a [`ScyllaSource`].
pub(super) struct Reader {
    source: Arc<ScyllaSource>,
    stats: Arc<ShardStats>,
    shard: u32,
    shards: u32,
    checkpoints: Checkpoints,
    /// By table, in the order of `source.tables`.
    cursors: Vec<Cursor>,
    groups: HashMap<GroupId, Group>,
    next_id: GroupId,
    schedule: Schedule,
    requests: Requests,
    batches: Batches,
    looks: Looks,
    /// Writes that its groups remember.
    remembered: usize,
    reported_at: Instant,
    measured_at: Instant,
    known: watch::Receiver<Vec<Arc<Known>>>,
    barrier: watch::Receiver<()>,
    live: LiveSettings,
    aside: watch::Receiver<Arc<Aside>>,
    /// … as it was when the reads were looked at last.
    heeded: Arc<Aside>,
}

impl Reader {
    pub(super) fn new(
        source: Arc<ScyllaSource>,
        stats: Arc<ShardStats>,
        shard: u32,
        shards: u32,
        epoch: u64,
        checkpoints: Checkpoints,
    ) -> Self {
        let now = Instant::now();
        Self {
            known: source.survey.subscribe(),
            barrier: source.barrier.subscribe(),
            live: source.live.clone(),
            aside: watch::Sender::default().subscribe(),
            heeded: Arc::default(),
            cursors: source.tables.iter().cloned().map(Cursor::new).collect(),
            source,
            stats,
            shard,
            shards,
            checkpoints,
            groups: HashMap::new(),
            next_id: 0,
            schedule: Schedule::new(now),
            requests: Requests::default(),
            batches: Batches::new(shard, epoch),
            looks: Looks::default(),
            remembered: 0,
            reported_at: now,
            measured_at: now,
        }
    }

    async fn next_batch(&mut self) -> Result<Batch, SourceError> {
        loop {
            // Also when a batch is ready, so that the next pages come while it is worked on.
            let wake = self.start_reads();
            if let Some(batch) = self.batches.pop() {
                self.count(&batch);
                return Ok(batch);
            }
            let mut had_page = false;
            while !self.batches.is_ready()
                && let Some(read) = self.requests.take()
            {
                had_page = true;
                self.on_page(read)?;
            }
            if had_page
                && !self.batches.is_ready()
                && !self.batches.has_changes()
                && !self.batches.is_urgent()
            {
                continue;
            }
            let due = self.batches.is_urgent() || self.reported_at.elapsed() >= PROGRESS_INTERVAL;
            if due {
                self.report();
            }
            if due || self.batches.has_changes() {
                self.batches.seal();
            }
            if self.batches.is_ready() {
                continue;
            }
            // Whatever wakes it, the loop looks at everything anew.
            tokio::select! {
                read = self.requests.next() => self.on_page(read)?,
                () = tokio::time::sleep_until(wake.into()) => {}
                _ = self.live.changed() => {}
                _ = self.known.changed() => {}
                _ = self.barrier.changed() => {}
                // Without a sender there is nothing to heed.
                Ok(()) = self.aside.changed() => {}
            }
        }
    }

    fn count(&self, batch: &Batch) {
        let (rows, bad) = (batch.rows.len() as u64, batch.undecodable.len() as u64);
        let stats = &self.source.stats;
        stats.rows.fetch_add(rows, Relaxed);
        stats
            .bytes
            .fetch_add(batch.rows.as_bytes().len() as u64, Relaxed);
        stats.undecodable.fetch_add(bad, Relaxed);
        self.stats.rows.fetch_add(rows, Relaxed);
    }

    /// Starts whatever may be started now. Returns when to look again at the latest.
    fn start_reads(&mut self) -> Instant {
        let settings = self.live.borrow_and_update().clone();
        let source = &settings.source;
        let now = Instant::now();
        let us = |d: Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
        let now_us = self.source.now_us();
        let mut turn = Turn {
            at: now,
            now_us,
            safe_us: now_us.saturating_sub(us(source.safety_interval)),
            known_until_us: i64::MIN,
            window: source.window,
            horizon_us: us(self.source.room.horizon(source.late_horizon, now)),
            may_look: false,
            rest_us: 0,
        };
        let aside = self.aside.borrow_and_update().clone();
        if aside != self.heeded {
            self.heeded = aside;
            self.schedule.wake_all();
        }
        let most = self.heeded.most.unwrap_or(usize::MAX);
        self.batches.size = (settings.batch_size().get() as usize).min(most);
        let mut wake = self.reported_at + PROGRESS_INTERVAL;
        if wake <= now {
            wake = now + PROGRESS_INTERVAL;
        }

        for (cursor, known) in self
            .cursors
            .iter_mut()
            .zip(&*self.known.borrow_and_update())
        {
            cursor.inform(known);
        }
        for index in 0..self.cursors.len() {
            wake = wake.min(self.advance(index, &settings, now));
        }
        let groups = self.source.groups.load(Relaxed);
        let rest = Rest::new(source.poll_interval, groups, source.idle_reads);
        turn.rest_us = us(rest.longest());
        if let Some(due) = self.schedule.wake_due(rest, now) {
            wake = wake.min(due);
        }
        if self.stats.pressed.swap(false, Relaxed) {
            self.schedule.pressed();
        }
        let allowed = self.schedule.allowed(source.concurrency.get());
        while self.requests.len() < allowed
            && let Some(id) = self.schedule.pop()
        {
            turn.may_look = self.looks.may();
            self.start_read(id, &mut turn);
        }
        self.stats.concurrency.store(allowed as u32, Relaxed);
        self.measure(now);
        wake
    }

    /// Brings a cursor to what is known by now, or on to the next generation. Returns when to look again.
    fn advance(&mut self, index: usize, settings: &Settings, now: Instant) -> Instant {
        self.leave(index, now);
        let cursor = &mut self.cursors[index];
        if let Some(known) = cursor.news() {
            if std::mem::replace(&mut cursor.paused, !known.has_log) && known.has_log {
                cursor.table.forget_statement();
                self.schedule.wake_all();
            }
            match cursor.phase {
                // Where the streams of a table that is not there would be is not known either.
                Phase::Locating if !known.has_log => {}
                Phase::Locating => self.locate(index, &known, settings.source.start_from),
                Phase::Reading | Phase::ReadOut { .. } => self.look_ahead(index, &known, settings),
            }
        }
        match self.cursors[index].phase {
            // It has just been found: what comes after it is to be looked for.
            Phase::Reading if self.cursors[index].has_news() => now,
            _ => now + LONG_WAIT,
        }
    }

    /// Looks for the generation to read and the place in it.
    fn locate(&mut self, index: usize, known: &Known, start_from: StartFrom) {
        let cursor = &mut self.cursors[index];
        let table = &cursor.table;
        // What was said by hand since counts for more.
        let said = self.checkpoints.get(&GroupKey::start(&table.full));
        let start_from = match said.map(|said| said.complete_until_us) {
            None => start_from,
            Some(0) => StartFrom::Earliest,
            Some(us) => StartFrom::At(us),
        };
        let (bound_us, floor_us) = match start_from {
            StartFrom::Earliest => {
                let kept = table.known_ttl().map_or(i64::MAX, |ttl| {
                    i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX)
                });
                let oldest = self.source.now_us().saturating_sub(kept);
                (oldest, oldest)
            }
            StartFrom::Latest => (self.source.connected_us, i64::MIN),
            StartFrom::At(us) => (us, us),
        };
        match cursor::locate(known, &table.full, &self.checkpoints, bound_us, floor_us) {
            Place::At(
                Start {
                    generation,
                    from_us,
                    old,
                },
                streams,
            ) => {
                cursor.old = old;
                self.open(index, generation, from_us, &streams);
            }
            Place::Wants(generation) => self.source.survey.want(index, generation),
            Place::Nowhere => tracing::debug!(table = %table.full, "no stream generation yet"),
        }
    }

    /// Looks how far windows may go, and whether the generation has an end.
    fn look_ahead(&mut self, index: usize, known: &Known, settings: &Settings) {
        let cursor = &mut self.cursors[index];
        if cursor.next.is_some() {
            return;
        }
        let ahead = cursor::look(known, cursor.generation);
        let first = cursor.known_until_us == i64::MIN;
        cursor.known_until_us = cursor.known_until_us.max(ahead.clear_until_us);
        if first || ahead.next.is_some() {
            // They rested for want of this, not of time.
            self.schedule.wake_all();
        }
        if let Some(wanted) = ahead.wants {
            self.source.survey.want(index, wanted);
        }
        if let Some(next) = ahead.next {
            self.announce(index, next, settings.source.safety_interval);
        }
    }

    /// The next generation is known: the groups of this one get their end.
    fn announce(&mut self, index: usize, next: (Generation, Streams), margin: Duration) {
        let cursor = &mut self.cursors[index];
        tracing::info!(
            shard = self.shard,
            table = %cursor.table.full,
            generation = cursor.generation,
            next = next.0,
            "a stream generation ends"
        );
        let end_us = generations::start_us(next.0);
        let going_on: HashSet<_> = next.1.iter().flat_map(|g| g.iter()).collect();
        for id in &cursor.groups {
            if let Some(group) = self.groups.get_mut(id) {
                group.ends(end_us, margin, &going_on);
            }
        }
        cursor.next = Some(next);
    }

    /// Begins a generation: the groups of it that fall to this shard.
    fn open(&mut self, index: usize, generation: Generation, from_us: i64, streams: &Streams) {
        let cursor = &mut self.cursors[index];
        let table = cursor.table.full.clone();
        cursor.enter(generation);
        let placing = self.source.placing(&table, generation, &self.checkpoints);
        let mut own: Vec<(GroupKey, _)> =
            generations::group_keys(&table, generation, streams, placing)
                .filter(|(key, _)| key.shard(self.shards) == self.shard)
                .collect();
        if own.is_empty() {
            let key = generations::vacant_key(&table, generation, self.shard, placing);
            own.push((key, Arc::default()));
        }
        tracing::info!(
            shard = self.shard,
            %table,
            generation,
            groups = own.len(),
            "reading a stream generation"
        );
        cursor.unfinished = own.len();
        cursor.streams = streams.clone();
        cursor.placing = placing;
        self.source.barrier.enter(&table, self.shard, generation);
        for (key, streams) in own {
            let checkpoint = self.checkpoints.get(&key);
            let leaves = checkpoint::leaves(&self.checkpoints, &key);
            let group = Group::new(
                key.clone(),
                index,
                streams,
                checkpoint,
                leaves,
                generation,
                from_us,
            );
            let id = self.next_id;
            self.next_id += 1;
            self.groups.insert(id, group);
            cursor.groups.push(id);
            self.schedule.push(id);
        }
        let old = std::mem::take(&mut cursor.old);
        self.report();
        for key in old {
            self.checkpoints.remove(&key);
            self.batches.finished(&key);
        }
        self.batches.hurry();
        let groups = self.groups.len();
        let before = self.stats.groups.swap(groups, Relaxed);
        let all = &self.source.groups;
        all.fetch_add(groups, Relaxed);
        all.fetch_sub(before, Relaxed);
    }

    /// Goes on to the next generation if this one is done everywhere.
    fn leave(&mut self, index: usize, now: Instant) {
        let cursor = &mut self.cursors[index];
        let Phase::ReadOut { since, told } = cursor.phase else {
            return;
        };
        let may_leave = self.source.may_leave(cursor, self.shard, self.shards);
        if may_leave && let Some((generation, streams)) = cursor.next.take() {
            let left = cursor.groups.drain(..);
            let left = left.filter_map(|id| self.groups.remove(&id));
            cursor.old.extend(left.flat_map(Group::into_keys));
            self.stats.waiting.store(false, Relaxed);
            self.open(
                index,
                generation,
                generations::start_us(generation),
                &streams,
            );
        } else if !told && now.duration_since(since) > LONG_WAIT {
            cursor.phase = Phase::ReadOut { since, told: true };
            tracing::info!(
                shard = self.shard,
                table = %cursor.table.full,
                generation = cursor.generation,
                "waiting for the other shards to finish a stream generation"
            );
        }
    }

    /// Starts the group's next read, or puts it where it belongs.
    fn start_read(&mut self, id: GroupId, turn: &mut Turn) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let cursor = &self.cursors[group.cursor];
        if cursor.paused || self.heeded.parked.contains(&group.key) {
            self.schedule.wait(id, turn.at);
            return;
        }
        turn.known_until_us = cursor.known_until_us;
        match group.next(turn, &mut self.batches) {
            Next::Read(read) => {
                if group.is_looking() {
                    self.looks.looked();
                }
                let (source, stats) = (self.source.clone(), self.stats.clone());
                self.requests
                    .start(id, source, cursor.table.clone(), stats, read);
            }
            Next::CaughtUp => self.schedule.wait(id, turn.at),
            Next::Finished => self.finish_group(id),
        }
    }

    /// The group has reached its generation's end.
    fn finish_group(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id).filter(|g| !g.done) else {
            return;
        };
        group.done = true;
        let cursor = &mut self.cursors[group.cursor];
        cursor.unfinished -= 1;
        if cursor.unfinished > 0 {
            return;
        }
        cursor.phase = Phase::ReadOut {
            since: Instant::now(),
            told: false,
        };
        let mut outstanding = HashMap::new();
        for id in &cursor.groups {
            let Some(group) = self.groups.get_mut(id) else {
                continue;
            };
            let until_us = group.complete_until_us();
            let acknowledged = self.checkpoints.get(&group.key);
            if acknowledged.is_none_or(|c| c.complete_until_us < until_us) {
                outstanding.insert(group.key.clone(), until_us);
            }
            group.report_again();
        }
        let table = cursor.table.full.clone();
        self.report();
        self.batches.hurry();
        self.stats.waiting.store(true, Relaxed);
        self.source
            .barrier
            .read_out(&table, self.shard, outstanding);
    }

    fn on_page(&mut self, read: PageRead) -> Result<(), SourceError> {
        let Some(group) = self.groups.get_mut(&read.group) else {
            return Ok(());
        };
        let id = read.group;
        group.pressed(read.pressure, read.to_us);
        let keys = matches!(read.result, Ok(Got::Keys(_)));
        let apart = self.heeded.apart.contains(&group.key);
        if apart {
            self.batches.seal();
        }
        let absorbed = read
            .result
            .and_then(|got| group.absorb(got, &mut self.batches));
        if apart {
            self.batches.seal();
        }
        let late = self.batches.take_late();
        if late > 0 {
            self.source.came_late(late);
        }
        match absorbed {
            Ok(absorbed) => {
                if keys {
                    self.source.stats.looks.fetch_add(1, Relaxed);
                } else {
                    self.source.stats.pages.fetch_add(1, Relaxed);
                    self.looks.read();
                }
                let max = self.live.borrow().source.concurrency.get();
                self.schedule.succeeded(max);
                match absorbed {
                    // The rest of a window first: what is held of it goes out.
                    Absorbed::Page => self.schedule.push_first(id),
                    Absorbed::Window { behind } => {
                        self.source.stats.windows.fetch_add(1, Relaxed);
                        let before = std::mem::replace(&mut group.behind, behind);
                        self.schedule.set_behind(before, behind);
                        self.stats
                            .catching_up
                            .store(self.schedule.is_behind(), Relaxed);
                        match behind {
                            true => self.schedule.push(id),
                            false => self.rest(id),
                        }
                    }
                }
                Ok(())
            }
            // The other tables go on; this one waits for its log.
            Err(error) if classify::is_gone(&error) => {
                group.rewind();
                self.source.survey.look_now(group.cursor);
                self.schedule.wait(id, Instant::now());
                Ok(())
            }
            Err(error) => {
                group.rewind();
                self.schedule.push(id);
                Err(error)
            }
        }
    }

    /// The group is caught up.
    fn rest(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let now = Instant::now();
        // The others wait for it at its generation's end.
        let ends = group.ends_us().map(|end_us| {
            let left_us = end_us.saturating_sub(self.source.now_us()).max(0);
            now + Duration::from_micros(left_us.unsigned_abs())
                + self.live.borrow().source.safety_interval
        });
        self.schedule.rest(id, now, group.silence(now), ends);
    }

    /// Puts what is new of every group's progress into the batch.
    fn report(&mut self) {
        self.reported_at = Instant::now();
        let mut remembered = 0;
        for group in self.groups.values_mut() {
            group.report(&mut self.batches);
            remembered += group.remembered();
        }
        self.source.room.count(self.remembered, remembered);
        self.remembered = remembered;
    }

    /// Brings the lag that others see up to date.
    fn measure(&mut self, now: Instant) {
        if now.duration_since(self.measured_at) < MEASURE_INTERVAL {
            return;
        }
        self.measured_at = now;
        let complete = self.groups.values().map(Group::complete_until_us);
        if let Some(oldest) = complete.min() {
            self.stats.complete_us.store(oldest, Relaxed);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.source.room.count(self.remembered, 0);
        let groups = self.stats.groups.load(Relaxed);
        self.source.groups.fetch_sub(groups, Relaxed);
    }
}

impl ShardReader for Reader {
    fn next(&mut self) -> BoxFuture<'_, Result<Batch, SourceError>> {
        Box::pin(self.next_batch())
    }

    fn heed(&mut self, aside: watch::Receiver<Arc<Aside>>) {
        self.aside = aside;
    }

    fn drive(&mut self) -> BoxFuture<'_, Infallible> {
        Box::pin(self.requests.drive())
    }
}
