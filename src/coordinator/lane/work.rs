//! What a lane's stages have done, where a number a lane is not enough: by table and by transform.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::change::Batch;
use crate::histogram::{Histogram, Reading, Tally};
use crate::transform::StageReport;

/// From a change's write time to its acknowledgement, by table.
#[derive(Debug, Default)]
pub struct Latencies(Mutex<BTreeMap<String, Arc<Histogram>>>);

impl Latencies {
    /// The changes of a batch are done now. Once a batch; the changes are counted aside first.
    pub(super) fn done(&self, batch: &Batch) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_us = now.map_or(0, |now| now.as_micros() as i64);
        let took = |at_us: i64| now_us.saturating_sub(at_us).max(0) as u64;
        let mut tallies = vec![Tally::default(); batch.tables.len()];
        if let [only] = tallies.as_mut_slice() {
            for position in &batch.positions {
                only.add(took(position.timestamp_us()));
            }
        } else {
            for (row, position) in batch.rows.iter().zip(&batch.positions) {
                let of = batch.tables.iter().position(|t| t.id == row.table());
                if let Some(tally) = of.and_then(|i| tallies.get_mut(i)) {
                    tally.add(took(position.timestamp_us()));
                }
            }
        }
        let mut all = self.0.lock();
        for (table, tally) in batch.tables.iter().zip(&tallies) {
            let name = format!("{}.{}", table.keyspace, table.name);
            all.entry(name).or_default().add(tally);
        }
    }

    /// By `keyspace.table`.
    pub fn read(&self) -> Vec<(String, Reading)> {
        let all = self.0.lock();
        all.iter().map(|(t, h)| (t.clone(), h.read())).collect()
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
        self.elapsed += other.elapsed;
    }
}

/// What each transform of a lane has done, by its stage's name.
#[derive(Debug, Default)]
pub struct Works(Mutex<BTreeMap<Arc<str>, Work>>);

impl Works {
    /// A batch went through; so a transform reports on it.
    pub(super) fn note(&self, report: &StageReport) {
        let work = Work {
            items: report.items.into(),
            faults: report.faults.len() as u64,
            rejected: report.rejected.into(),
            dropped: report.dropped_on_error.into(),
            renewed: report.renewed.into(),
            elapsed: report.elapsed,
        };
        *self.0.lock().entry(report.stage.clone()).or_default() += &work;
    }

    /// By the stage's name.
    pub fn read(&self) -> BTreeMap<Arc<str>, Work> {
        self.0.lock().clone()
    }
}
