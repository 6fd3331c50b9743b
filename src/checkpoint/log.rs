//! The checkpoint log: what the checkpoint topic says of every shard, whoever has it, followed as it is written.
//!
//! It is for those who must know that something is done *everywhere*. What it says was committed, and only ever grows:
//! to hear of it late is to wait longer, never to be wrong.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::topic::{InvalidCheckpoint, OWNER_KEY, Owner, decode};
use crate::change::GroupKey;

/// See the module.
#[derive(Debug)]
pub struct CheckpointLog {
    /// Group → partition → up to when it is complete, µs since the Unix epoch. A group stands in two partitions only while
    /// its checkpoint is moved.
    groups: Mutex<BTreeMap<GroupKey, BTreeMap<i32, i64>>>,
    /// By partition.
    owners: Mutex<BTreeMap<i32, Owner>>,
    news: watch::Sender<()>,
}

impl CheckpointLog {
    /// Nothing read yet; `news` is told when that changes.
    pub fn new(news: watch::Sender<()>) -> Self {
        Self {
            groups: Mutex::default(),
            owners: Mutex::default(),
            news,
        }
    }

    /// The next record of a partition, in the partition's order.
    ///
    /// # Errors
    /// It is none of ours.
    pub fn record(
        &self,
        partition: i32,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<(), InvalidCheckpoint> {
        if key == Some(OWNER_KEY.as_bytes()) {
            let mut owners = self.owners.lock();
            match Owner::decode(value) {
                Some(owner) => owners.insert(partition, owner),
                None => owners.remove(&partition),
            };
            return Ok(());
        }
        let (group, checkpoint) = match decode(key, value) {
            Ok(found) => found,
            // Whoever loads the checkpoints tells of them.
            Err(error) if error.is_foreign(key) => return Ok(()),
            Err(error) => return Err(error),
        };
        if group.leaf_of().is_some() || group.is_start() {
            return Ok(());
        }
        let mut groups = self.groups.lock();
        let places = groups.entry(group.clone()).or_default();
        match checkpoint {
            Some(checkpoint) => places.insert(partition, checkpoint.complete_until_us),
            None => places.remove(&partition),
        };
        if places.is_empty() {
            groups.remove(&group);
        }
        Ok(())
    }

    /// Tells whoever waits that there is more.
    pub fn tell(&self) {
        self.news.send_replace(());
    }

    /// Who took each shard last, by its partition.
    pub fn owners(&self) -> BTreeMap<i32, Owner> {
        self.owners.lock().clone()
    }

    /// Up to when a group is complete.
    pub fn complete_until_us(&self, group: &GroupKey) -> Option<i64> {
        self.groups.lock().get(group)?.values().max().copied()
    }

    /// The groups whose keys begin so.
    pub fn groups(&self, prefix: &str) -> Vec<GroupKey> {
        let groups = self.groups.lock();
        let from = groups.range(GroupKey(prefix.into())..);
        from.map(|(group, _)| group)
            .take_while(|group| group.0.starts_with(prefix))
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::GroupCheckpoint;
    use crate::checkpoint::topic::encode;

    #[test]
    fn it_knows_what_was_written_last_wherever_it_stands() {
        let log = CheckpointLog::new(watch::Sender::new(()));
        let key = |name: &str| GroupKey(name.into());
        let until = |us| {
            encode(&GroupCheckpoint {
                complete_until_us: us,
                ..GroupCheckpoint::default()
            })
        };
        let record = |partition, name: &str, us: Option<i64>| {
            let value = us.map(until);
            log.record(partition, Some(name.as_bytes()), value.as_deref())
                .unwrap();
        };
        record(0, "ks.t/10/00", Some(5));
        record(0, "ks.t/10/00", Some(7));
        // On its way from one partition to another.
        record(1, "ks.t/10/00", Some(7));
        record(0, "ks.t/10/00", None);
        record(0, "ks.t2/10/00", Some(9));
        record(0, OWNER_KEY, None);
        assert_eq!(log.complete_until_us(&key("ks.t/10/00")), Some(7));
        assert_eq!(log.groups("ks.t/"), [key("ks.t/10/00")]);
        record(1, "ks.t/10/00", None);
        assert_eq!(log.complete_until_us(&key("ks.t/10/00")), None);
        assert!(
            log.record(0, Some(b"ks.t/10/01"), Some(b"?")).is_ok(),
            "somebody else's, and skipped"
        );
    }
}
