//! Whether shards that are open in other instances have finished a stream generation.
//!
//! What [`barrier`](super::barrier) is within a process: a key's later change may be in another shard of the next
//! generation, and that in another process. What is committed of a shard stands in the checkpoint topic. A shard has
//! finished a generation when each of its groups there is complete up to the next one's start, or when it has
//! checkpoints of a later one: it opens that only after this.

use std::collections::{BTreeMap, BTreeSet};

use super::generations::{Generation, Placing, generation_of, group_keys, start_us, vacant_key};
use super::survey::Streams;
use crate::change::GroupKey;
use crate::checkpoint::log::CheckpointLog;

/// A generation of a table, and what comes after it.
#[derive(Clone, Copy)]
pub(super) struct Ending<'a> {
    pub(super) table: &'a str,
    pub(super) generation: Generation,
    /// All groups of it, of all shards.
    pub(super) streams: &'a Streams,
    pub(super) placing: Placing,
    pub(super) next: Generation,
}

/// Whether all of `shards` have finished it, but for those that are open `here`, of which nothing is said.
pub(super) fn is_done(
    log: &CheckpointLog,
    ending: Ending<'_>,
    shards: u32,
    here: &BTreeSet<u32>,
) -> bool {
    let Ending {
        table,
        generation,
        streams,
        placing,
        next,
    } = ending;
    let others = (0..shards).filter(|shard| !here.contains(shard));
    let mut expected: BTreeMap<u32, Vec<GroupKey>> = others.map(|s| (s, Vec::new())).collect();
    if expected.is_empty() {
        return true;
    }
    for (key, _) in group_keys(table, generation, streams, placing) {
        if let Some(groups) = expected.get_mut(&key.shard(shards)) {
            groups.push(key);
        }
    }
    let written = log.groups(&format!("{table}/"));
    let beyond = |key: &&GroupKey| generation_of(key, table).is_some_and(|g| g > generation);
    let beyond: BTreeSet<u32> = written
        .iter()
        .filter(beyond)
        .map(|key| key.shard(shards))
        .collect();
    expected.into_iter().all(|(shard, mut groups)| {
        if groups.is_empty() {
            groups.push(vacant_key(table, generation, shard, placing));
        }
        let complete = |group: &GroupKey| {
            log.complete_until_us(group)
                .is_some_and(|until| until >= start_us(next))
        };
        beyond.contains(&shard) || groups.iter().all(complete)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;
    use crate::change::StreamId;
    use crate::checkpoint::GroupCheckpoint;
    use crate::checkpoint::topic::encode;

    const TABLE: &str = "ks.t";

    fn write(log: &CheckpointLog, key: &GroupKey, until_us: Option<i64>) {
        let value = until_us.map(|complete_until_us| {
            encode(&GroupCheckpoint {
                complete_until_us,
                ..GroupCheckpoint::default()
            })
        });
        log.record(0, Some(key.0.as_bytes()), value.as_deref())
            .unwrap();
    }

    #[test]
    fn a_generation_is_done_elsewhere_once_that_is_committed() {
        for placing in [Placing::Number, Placing::Hash] {
            done_elsewhere(placing);
        }
    }

    fn done_elsewhere(placing: Placing) {
        let log = CheckpointLog::new(watch::Sender::new(()));
        let streams: Streams = (0..12_u8).map(|n| Arc::from([StreamId([n; 16])])).collect();
        let keys =
            |generation| group_keys(TABLE, generation, &streams, placing).map(|(key, _)| key);
        let keys_of_next: Vec<GroupKey> = keys(20).collect();
        let keys: Vec<GroupKey> = keys(10).collect();
        let shards = 4;
        let here = BTreeSet::from([0]);
        let others: Vec<&GroupKey> = keys.iter().filter(|k| k.shard(shards) != 0).collect();
        let ending = Ending {
            table: TABLE,
            generation: 10,
            streams: &streams,
            placing,
            next: 20,
        };
        let done = || is_done(&log, ending, shards, &here);
        assert!(!done(), "nothing is known of them");
        for key in &others {
            write(&log, key, Some(start_us(20)));
        }
        // A shard without a group has a place of its own.
        for shard in 1..shards {
            if others.iter().all(|k| k.shard(shards) != shard) {
                assert!(!done());
                write(
                    &log,
                    &vacant_key(TABLE, 10, shard, placing),
                    Some(start_us(20)),
                );
            }
        }
        assert!(done());
        write(&log, others[0], Some(start_us(20) - 1));
        assert!(!done(), "its last change is not committed");
        // Gone on: what it has of the next generation says so, and the old checkpoints are forgotten.
        let shard = others[0].shard(shards);
        let next_vacant = vacant_key(TABLE, 20, shard, placing);
        let ahead = keys_of_next
            .into_iter()
            .find(|key| key.shard(shards) == shard);
        let ahead = ahead.unwrap_or(next_vacant);
        write(&log, &ahead, Some(start_us(20)));
        for key in others.iter().filter(|k| k.shard(shards) == shard) {
            write(&log, key, None);
        }
        assert!(done());
        assert!(is_done(&log, ending, 1, &here), "all are here");
    }
}
