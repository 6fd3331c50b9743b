//! What a lane's stages have done, where a number a lane is not enough: by table and by transform.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Counters;
use crate::change::{Batch, RecordBatch, TableSchema};
use crate::histogram::{Exemplar, Exemplars, Histogram, Reading, Tally};
use crate::transform::StageReport;

/// When changes were written, µs since the Unix epoch, by table.
#[derive(Debug, Default)]
pub(super) struct Writes(Vec<(Arc<TableSchema>, Vec<i64>)>);

impl Writes {
    /// Those of a batch too.
    pub(super) fn add(&mut self, batch: &Batch) {
        let first = self.0.len();
        let tables = batch.tables.iter();
        self.0
            .extend(tables.map(|table| (table.clone(), Vec::new())));
        let added = &mut self.0[first..];
        if let [(_, only)] = added {
            only.extend(batch.positions.iter().map(|p| p.timestamp_us()));
            return;
        }
        for (row, position) in batch.rows.iter().zip(&batch.positions) {
            let of = added.iter_mut().find(|(t, _)| t.id == row.table());
            if let Some((_, times)) = of {
                times.push(position.timestamp_us());
            }
        }
    }
}

/// Of one table.
#[derive(Debug, Default)]
struct Series {
    took: Histogram,
    exemplars: Exemplars,
}

/// From a change's write time to when a reader can see what became of it, by table.
#[derive(Debug, Default)]
pub struct Latencies(Mutex<BTreeMap<String, Series>>);

impl Latencies {
    /// These can be seen now. They are counted aside first.
    pub(super) fn seen(&self, writes: &Writes) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_us = now.map_or(0, |now| now.as_micros() as i64);
        for (table, times) in &writes.0 {
            let mut tally = Tally::default();
            for at_us in times {
                tally.add(now_us.saturating_sub(*at_us).max(0) as u64);
            }
            let name = format!("{}.{}", table.keyspace, table.name);
            self.0.lock().entry(name).or_default().took.add(&tally);
        }
    }

    /// The traced changes of a batch can be seen now.
    pub(super) fn traced(&self, batch: &RecordBatch) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_us = now.map_or(0, |now| now.as_micros() as i64);
        let read = &batch.source;
        let mut all = self.0.lock();
        for traced in &batch.traces.changes {
            let at = traced.source as usize;
            let (row, position) = (read.rows.get(at), read.positions.get(at));
            let table = row.and_then(|row| read.table(row.table()));
            if let Some((table, position)) = table.zip(position) {
                let name = format!("{}.{}", table.keyspace, table.name);
                let took_us = now_us.saturating_sub(position.timestamp_us()).max(0);
                all.entry(name).or_default().exemplars.note(Exemplar {
                    trace: traced.trace,
                    seconds: took_us as f64 / 1e6,
                    at: now_us as f64 / 1e6,
                });
            }
        }
    }

    /// By `keyspace.table`.
    pub fn read(&self) -> Vec<(String, Reading)> {
        let all = self.0.lock();
        all.iter()
            .map(|(t, s)| (t.clone(), s.took.read()))
            .collect()
    }

    /// Those of the traces, by `keyspace.table`.
    pub fn exemplars(&self) -> Vec<(String, Exemplars)> {
        let all = self.0.lock();
        all.iter().map(|(t, s)| (t.clone(), s.exemplars)).collect()
    }
}

/// What one transform has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Changes and records that it was handed.
    pub items: u64,
    /// Traps, missed deadlines, memory overruns and malformed outputs.
    pub faults: u64,
    /// Changes that went to the dead letters because of it.
    pub rejected: u64,
    /// Changes that `on_error = "drop"` let go of.
    pub dropped: u64,
    /// Instances that had to be made anew.
    pub renewed: u64,
    /// Lines of its plugin that were left out of the log.
    pub lines_left_out: u64,
    /// Time spent in it.
    pub elapsed: Duration,
}

impl std::ops::AddAssign<&Work> for Work {
    fn add_assign(&mut self, other: &Work) {
        self.items += other.items;
        self.faults += other.faults;
        self.rejected += other.rejected;
        self.dropped += other.dropped;
        self.renewed += other.renewed;
        self.lines_left_out += other.lines_left_out;
        self.elapsed += other.elapsed;
    }
}

/// What each transform of a lane has done, and what it waits for, by its stage's name.
#[derive(Debug, Default)]
pub struct Works {
    done: Mutex<BTreeMap<Arc<str>, Work>>,
    /// It said "not yet" to a change, with these words. At most one a lane.
    waits: Mutex<Option<(Arc<str>, Arc<str>)>>,
    /// The tables whose changes they refuse, all of them, and why: one a transform.
    refuses: Mutex<BTreeMap<Arc<str>, Arc<str>>>,
}

/// A transform of a lane waits for as long as this is kept.
#[must_use]
pub(super) struct Waits<'a>(&'a Works);

impl Waits<'_> {
    /// This one, because it said so.
    pub(super) fn say(&self, stage: &Arc<str>, why: &str) {
        *self.0.waits.lock() = Some((stage.clone(), why.into()));
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        *self.0.waits.lock() = None;
    }
}

/// As long as this is kept, transforms are at work in a lane, and what they refuse is told.
#[must_use]
pub(super) struct Telling<'a>(&'a Works);

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        self.0.refuses.lock().clear();
    }
}

impl Works {
    /// Transforms are at work from now on.
    pub(super) fn telling(&self) -> Telling<'_> {
        Telling(self)
    }

    /// A batch went through; so a transform reports on it.
    pub(super) fn note(&self, report: &StageReport) {
        let work = Work {
            items: report.items.into(),
            faults: report.faults.len() as u64,
            rejected: report.rejected.into(),
            dropped: report.dropped_on_error.into(),
            renewed: report.renewed.into(),
            lines_left_out: report.lines_left_out,
            elapsed: report.elapsed,
        };
        *self.done.lock().entry(report.stage.clone()).or_default() += &work;
        let mut refuses = self.refuses.lock();
        match &report.refuses {
            Some(why) => refuses.insert(report.stage.clone(), why.clone()),
            None => refuses.remove(&report.stage),
        };
    }

    /// By the stage's name.
    pub fn read(&self) -> BTreeMap<Arc<str>, Work> {
        self.done.lock().clone()
    }

    /// A transform is about to be waited for.
    pub(super) fn waits(&self) -> Waits<'_> {
        Waits(self)
    }

    /// The table whose changes this transform refuses, and why.
    pub fn refusing(&self, stage: &str) -> Option<Arc<str>> {
        self.refuses.lock().get(stage).cloned()
    }

    /// What this transform waits for.
    pub fn waiting(&self, stage: &str) -> Option<Arc<str>> {
        let waits = self.waits.lock();
        waits
            .as_ref()
            .filter(|(of, _)| **of == *stage)
            .map(|(_, why)| why.clone())
    }
}

/// What is delivered and not committed: none of it is done, and an abort undoes it.
#[derive(Debug, Default)]
pub(super) struct Undone {
    changes: u64,
    newest_us: u64,
    /// Of an atomic sink, which shows nothing before: bounded as its settlement is.
    writes: Writes,
    letters: u64,
}

impl Undone {
    /// A batch of which so many changes have letters is delivered too.
    pub(super) fn add(&mut self, batch: &Batch, letters: u64, atomic: bool) {
        self.changes += batch.positions.len() as u64;
        let newest = batch.positions.iter().map(|p| p.timestamp_us()).max();
        let newest = newest.map_or(0, |us| us.max(0) as u64);
        self.newest_us = self.newest_us.max(newest);
        if atomic {
            self.letters += letters;
            self.writes.add(batch);
        }
    }

    /// It is committed.
    pub(super) fn count(self, counters: &Counters) {
        counters.done.fetch_add(self.changes, Relaxed);
        counters.dead_letters.fetch_add(self.letters, Relaxed);
        counters.newest_done_us.fetch_max(self.newest_us, Relaxed);
        counters.rate.lock().add(self.changes, Instant::now());
        counters.latencies.seen(&self.writes);
    }
}
