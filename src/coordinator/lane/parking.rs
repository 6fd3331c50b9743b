//! Which stream groups of a lane wait for a topic while the others go on, and which try it again. Pure.
//!
//! Order is kept per partition key, and a partition key is in one group; a checkpoint, too, is a group's. So a group
//! is the least that can wait by itself: it is not read any further than what is committed of it, which costs no memory,
//! and everything else of the lane goes on. When its topic may be tried again it is read in batches of its own, each of
//! them a settlement of its own, so that another refusal undoes nobody else's work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::change::{GroupKey, RecordBatch};
use crate::source::Aside;

/// By topic, the groups that have records for it.
pub(super) type Waiting = BTreeMap<Arc<str>, BTreeSet<GroupKey>>;

/// The groups of a batch with records for these of its topics; `None`: one of its changes is of no group.
pub(super) fn groups_for(batch: &RecordBatch, topics: &[u32]) -> Option<Waiting> {
    let mut waiting = Waiting::new();
    for record in batch.records.iter().filter(|r| topics.contains(&r.topic)) {
        let group = group_of(batch, record.source)?;
        let topic = batch.topics.get(record.topic as usize)?;
        let groups = waiting.entry(topic.clone()).or_default();
        if !groups.contains(group) {
            groups.insert(group.clone());
        }
    }
    Some(waiting)
}

fn group_of(batch: &RecordBatch, change: u32) -> Option<&GroupKey> {
    let source = &batch.source;
    let stream = source.positions.get(change as usize)?.stream;
    // Tables of a keyspace that is not laid out by tablets have the same streams.
    let row = source.rows.get(change as usize);
    let table = row.and_then(|row| source.table(row.table()));
    let prefix = table.map(|t| format!("{}.{}/", t.keyspace, t.name));
    let mut all = source.progress.iter();
    let of = all.find(|p| {
        let has = p.streams.iter().any(|last| last.stream == stream) || p.late.contains(&stream);
        has && prefix
            .as_ref()
            .is_none_or(|prefix| p.group.0.starts_with(&**prefix))
    })?;
    Some(&of.group)
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Parking {
    waiting: Waiting,
    trying: Waiting,
}

impl Parking {
    /// These wait.
    pub(super) fn park(&mut self, waiting: Waiting) {
        for (topic, mut groups) in waiting {
            groups.extend(self.trying.remove(&topic).unwrap_or_default());
            self.waiting.entry(topic).or_default().extend(groups);
        }
    }

    /// A topic refused again: whoever tried it waits on.
    pub(super) fn refused(&mut self, topic: &str) -> bool {
        match self.trying.remove_entry(topic) {
            Some((topic, groups)) => {
                self.park([(topic, groups)].into());
                true
            }
            None => false,
        }
    }

    /// A topic may be tried again.
    pub(super) fn try_again(&mut self, topic: &str) {
        if let Some((topic, groups)) = self.waiting.remove_entry(topic) {
            self.trying.entry(topic).or_default().extend(groups);
        }
    }

    /// A topic is as it should be.
    pub(super) fn over(&mut self, topic: &str) -> bool {
        let waited = self.waiting.remove(topic).is_some();
        self.trying.remove(topic).is_some() || waited
    }

    /// The topics that are waited for.
    pub(super) fn topics(&self) -> Vec<Arc<str>> {
        self.waiting.keys().cloned().collect()
    }

    /// Whether all records of a batch are of groups that try a topic again, so that a refusal concerns nobody else.
    pub(super) fn is_apart(&self, batch: &RecordBatch) -> bool {
        let tries = |change| {
            let group = group_of(batch, change);
            group.is_some_and(|g| self.trying.values().any(|groups| groups.contains(g)))
        };
        !self.trying.is_empty() && batch.records.iter().all(|r| tries(r.source))
    }

    /// What the source has to know of it.
    pub(super) fn aside(&self) -> Aside {
        let parked: BTreeSet<GroupKey> = self.waiting.values().flatten().cloned().collect();
        let apart = self.trying.values().flatten();
        Aside {
            apart: apart.filter(|g| !parked.contains(*g)).cloned().collect(),
            parked,
            most: None,
        }
    }
}

/// A transaction that is open for longer than half of what one may take (30 s) is too large for what the brokers let
/// through.
const TOO_LONG: Duration = Duration::from_secs(15);
/// One that took less than this may be followed by one of twice its size, and is still done in time.
const QUICK: Duration = Duration::from_secs(8);

/// How many changes a transaction holds at most: fewer after one that did not get done in its time, as under a quota,
/// because the next of its size would not either.
#[derive(Debug, Default)]
pub(super) struct Appetite {
    most: Option<usize>,
}

impl Appetite {
    /// One of so many changes failed after this time. Returns the new bound if there is one.
    pub(super) fn failed(&mut self, changes: usize, after: Duration) -> Option<usize> {
        if after < TOO_LONG || changes == 0 {
            return None;
        }
        let most = (changes / 4).max(1);
        self.most = Some(self.most.map_or(most, |known| known.min(most)));
        self.most
    }

    /// One of so many was committed after this time; `max`: where there is no bound any more.
    pub(super) fn committed(&mut self, changes: usize, after: Duration, max: usize) -> bool {
        let Some(most) = self.most else { return false };
        if after >= QUICK || changes * 2 < most {
            return false;
        }
        self.most = Some(most * 2).filter(|most| *most < max);
        true
    }

    /// The bound, if there is one.
    pub(super) fn most(&self) -> Option<usize> {
        self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(names: &[&str]) -> BTreeSet<GroupKey> {
        names.iter().map(|name| GroupKey((*name).into())).collect()
    }

    fn waiting(topic: &str, names: &[&str]) -> Waiting {
        [(topic.into(), groups(names))].into()
    }

    #[test]
    fn a_group_waits_for_as_long_as_any_topic_of_its_records_does() {
        let mut parking = Parking::default();
        parking.park(waiting("a", &["1", "2"]));
        parking.park(waiting("b", &["2"]));
        assert_eq!(parking.aside().parked, groups(&["1", "2"]));
        parking.try_again("a");
        let aside = parking.aside();
        assert_eq!(
            (aside.parked, aside.apart),
            (groups(&["2"]), groups(&["1"]))
        );
        assert!(parking.refused("a"));
        assert_eq!(parking.aside().parked, groups(&["1", "2"]));
        assert!(parking.over("b") && !parking.over("c"));
        assert_eq!(parking.topics(), ["a".into()]);
        assert!(parking.over("a"));
        assert_eq!(parking.aside(), Aside::default());
    }

    #[test]
    fn a_transaction_that_takes_too_long_is_followed_by_smaller_ones_until_they_are_quick() {
        let mut appetite = Appetite::default();
        let seconds = Duration::from_secs;
        assert_eq!(
            appetite.failed(1000, seconds(2)),
            None,
            "that was no matter of size"
        );
        assert_eq!(appetite.failed(1000, seconds(29)), Some(250));
        assert_eq!(appetite.failed(250, seconds(29)), Some(62));
        assert!(
            !appetite.committed(62, seconds(10), 1000),
            "twice that might be too long"
        );
        assert!(
            !appetite.committed(3, seconds(1), 1000),
            "that says nothing of larger ones"
        );
        assert_eq!(appetite.most(), Some(62));
        for most in [124, 248, 496, 992] {
            assert!(appetite.committed(most / 2, seconds(1), 1000));
            assert_eq!(appetite.most(), Some(most));
        }
        assert!(appetite.committed(992, seconds(1), 1000));
        assert_eq!(appetite.most(), None);
        assert_eq!(
            appetite.failed(1, seconds(29)),
            Some(1),
            "never less than one"
        );
    }
}
