//! Checkpoints as records of the compacted topic `penstock.<pipeline>.checkpoints`.
//!
//! The topic has one partition a shard. A record's key is the group's key
//! (`keyspace.table/generation/first-stream`), its value JSON:
//!
//! ```json
//! {"v": 2, "complete_until_us": 1764000000000000, "streams": {"<stream in hex>": ["<cdc$time>", 0]},
//!  "remembered_since_us": 1763999970000000, "writes": "<base64>"}
//! ```
//!
//! `writes` are fingerprints of writes that are done, 8 bytes each, little-endian: those of the last moment. Older
//! ones, as long as a late write could be mistaken for them, stand in *leaves*: records of the same form under the
//! group's key with `#<number>`, which are written once and then forgotten.
//!
//! `v` is the version of the format; a higher one is refused rather than misread, a lower one is read: version 1
//! had neither `remembered_since_us` nor `writes`. A null value is a tombstone:
//! the group is finished and forgotten. Within a partition a later record replaces an earlier one.
//!
//! `keyspace.table/@start` in the place of a group's key says, in `complete_until_us`, where the table is read from if it
//! has no checkpoints (0: from its log's beginning), instead of `source.start_from`: what `penstock checkpoint reset`
//! writes, for every shard. `@owner` says who has the shard.
//!
//! **When `shards` changes**, a group belongs to another shard, and its checkpoint is still in the partition of
//! the old one. So a shard reads all partitions and keeps the groups that hash to it; of a group found in
//! several it takes what is furthest along in each stream, because a checkpoint only ever tells of work that
//! is done. What it found elsewhere it writes to its own partition first and then clears where it was
//! ([`Loaded::strays`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Checkpoints, GroupCheckpoint};
use crate::change::{GroupKey, Position, StreamId, timeuuid_cmp};

/// The version that this build writes, and the highest that it reads.
pub const VERSION: u32 = 2;

/// The key of the record that says who writes a partition: no stream group has it.
pub const OWNER_KEY: &str = "@owner";

/// Who has a shard: what the record under [`OWNER_KEY`] says, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The process, or, of a process that has rebuilt its pipeline, what it is since then.
    pub instance: Uuid,
    /// Where its admin interface answers, `host:port`, if it has one and says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<String>,
}

impl Owner {
    /// Of a shard that there is no more.
    pub const NOBODY: Self = Self {
        instance: Uuid::nil(),
        admin: None,
    };

    /// The record's value.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("two texts are JSON")
    }

    /// … read back; `None`: it says nothing that this build understands. A bare id is what earlier ones wrote.
    pub fn decode(value: Option<&[u8]>) -> Option<Self> {
        let text = std::str::from_utf8(value?).ok()?;
        let bare = || {
            let instance = text.parse().ok()?;
            let admin = None;
            Some(Self { instance, admin })
        };
        serde_json::from_str(text).ok().or_else(bare)
    }
}

/// `penstock.<pipeline>.checkpoints`
pub fn topic_name(pipeline: &str) -> String {
    crate::topic::of_checkpoints(pipeline)
}

/// The bytes are not a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum InvalidCheckpoint {
    /// The record has no key, or one that is not UTF-8.
    #[error("its key is not a stream group")]
    Key,
    /// Not the JSON that this module documents.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Written by a later Penstock.
    #[error("it has version {0}, this build reads up to {VERSION}: upgrade penstock")]
    Version(u32),
    /// A stream id that is not 32 hex digits, or its time not a UUID.
    #[error("the position of stream {0:?} cannot be read")]
    Stream(String),
    /// Not the base64 of numbers of 8 bytes.
    #[error("its writes cannot be read")]
    Writes,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    v: u32,
    complete_until_us: i64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    streams: BTreeMap<String, (String, i32)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    remembered_since_us: Option<i64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    writes: String,
}

#[derive(Deserialize)]
struct WireVersion {
    v: u32,
}

/// The value of a group's record.
pub fn encode(checkpoint: &GroupCheckpoint) -> Vec<u8> {
    let wire = Wire {
        v: VERSION,
        complete_until_us: checkpoint.complete_until_us,
        streams: checkpoint
            .streams
            .iter()
            .map(|(stream, (time, seq))| (stream.to_string(), (time.to_string(), *seq)))
            .collect(),
        remembered_since_us: checkpoint.remembered_since_us,
        writes: BASE64.encode(
            checkpoint
                .writes
                .iter()
                .flat_map(|w| w.to_le_bytes())
                .collect::<Vec<u8>>(),
        ),
    };
    serde_json::to_vec(&wire).expect("a map with string keys is JSON")
}

/// A record's key and value read back; `None`: a tombstone.
pub fn decode(
    key: Option<&[u8]>,
    value: Option<&[u8]>,
) -> Result<(GroupKey, Option<GroupCheckpoint>), InvalidCheckpoint> {
    let key = key
        .and_then(|k| std::str::from_utf8(k).ok())
        .filter(|k| !k.is_empty())
        .ok_or(InvalidCheckpoint::Key)?;
    let group = GroupKey(key.into());
    let Some(value) = value else {
        return Ok((group, None));
    };
    let version = serde_json::from_slice::<WireVersion>(value)?.v;
    if version > VERSION {
        return Err(InvalidCheckpoint::Version(version));
    }
    let wire: Wire = serde_json::from_slice(value)?;
    let mut streams = BTreeMap::new();
    for (text, (time, seq)) in wire.streams {
        let mut stream = [0; 16];
        let time = time.parse();
        match (hex::decode_to_slice(&text, &mut stream), time) {
            (Ok(()), Ok(time)) => streams.insert(StreamId(stream), (time, seq)),
            _ => return Err(InvalidCheckpoint::Stream(text)),
        };
    }
    let checkpoint = GroupCheckpoint {
        complete_until_us: wire.complete_until_us,
        streams,
        remembered_since_us: wire.remembered_since_us,
        writes: decode_writes(&wire.writes)
            .ok_or(InvalidCheckpoint::Writes)?
            .into(),
    };
    Ok((group, Some(checkpoint)))
}

fn decode_writes(text: &str) -> Option<Vec<u64>> {
    let bytes = BASE64.decode(text).ok()?;
    let (writes, rest) = bytes.as_chunks::<8>();
    rest.is_empty()
        .then(|| writes.iter().map(|w| u64::from_le_bytes(*w)).collect())
}

/// What a shard found in the topic.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The checkpoints of the shard's groups.
    pub checkpoints: Checkpoints,
    /// Where checkpoints of this shard stand that belong into another partition.
    pub strays: Vec<(i32, GroupKey)>,
    /// The generations that have keys, of whichever shard, that are placed by their hash.
    pub hashed: BTreeSet<String>,
}

/// Folds the records of all partitions into the checkpoints of some shards.
#[derive(Debug)]
pub struct Fold {
    wanted: BTreeSet<u32>,
    shards: u32,
    found: BTreeMap<GroupKey, BTreeMap<i32, GroupCheckpoint>>,
    owners: BTreeMap<i32, Owner>,
    hashed: BTreeSet<String>,
    /// Records that are no checkpoints: how many, and what is wrong with the first.
    foreign: (u64, Option<String>),
}

impl InvalidCheckpoint {
    /// Whether somebody else wrote the record, under this key: it is skipped. A checkpoint of a later version is a place
    /// that would be lost, so whoever wrote it has to read it.
    pub fn is_foreign(&self, key: Option<&[u8]>) -> bool {
        !(matches!(self, Self::Version(_)) && names_a_group(key))
    }
}

/// Whether a key has the form of a group's: `keyspace.table/generation/first-stream`.
fn names_a_group(key: Option<&[u8]>) -> bool {
    key.is_some_and(|key| key.iter().filter(|b| **b == b'/').count() == 2)
}

impl Fold {
    /// Nothing read yet, for these of so many shards.
    pub fn new(wanted: impl IntoIterator<Item = u32>, shards: u32) -> Self {
        Self {
            wanted: wanted.into_iter().collect(),
            shards,
            found: BTreeMap::new(),
            owners: BTreeMap::new(),
            hashed: BTreeSet::new(),
            foreign: (0, None),
        }
    }

    /// Records that were skipped because they are no checkpoints: how many, and what is wrong with the first.
    pub fn foreign(&self) -> Option<(u64, &str)> {
        let (count, first) = &self.foreign;
        first.as_deref().map(|first| (*count, first))
    }

    /// The next record of a partition, in the partition's order.
    pub fn record(
        &mut self,
        partition: i32,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<(), InvalidCheckpoint> {
        if key == Some(OWNER_KEY.as_bytes()) {
            match Owner::decode(value) {
                Some(owner) => self.owners.insert(partition, owner),
                None => self.owners.remove(&partition),
            };
            return Ok(());
        }
        let (group, checkpoint) = match decode(key, value) {
            Ok(found) => found,
            Err(error) if !error.is_foreign(key) => return Err(error),
            Err(error) => {
                self.foreign.0 += 1;
                self.foreign.1.get_or_insert_with(|| error.to_string());
                return Ok(());
            }
        };
        if let Some(generation) = group.placed_by_hash()
            && !self.hashed.contains(generation)
        {
            self.hashed.insert(generation.to_owned());
        }
        if !group.is_start() && !self.wanted.contains(&group.shard(self.shards)) {
            return Ok(());
        }
        let places = self.found.entry(group).or_default();
        match checkpoint {
            Some(checkpoint) => places.insert(partition, checkpoint),
            None => places.remove(&partition),
        };
        Ok(())
    }

    /// Who wrote a partition last.
    pub fn owner(&self, partition: i32) -> Option<Owner> {
        self.owners.get(&partition).cloned()
    }

    /// Whether some of them stand in another partition than their shard's; `own`: the partition of each.
    pub fn has_strays(&self, own: &BTreeMap<u32, i32>) -> bool {
        self.found.iter().any(|(group, places)| {
            let own = own.get(&group.shard(self.shards));
            !group.is_start() && own.is_some_and(|own| places.keys().any(|place| place != own))
        })
    }

    /// What they come to, by shard; `own`: the partition of each.
    pub fn finish(self, own: &BTreeMap<u32, i32>) -> BTreeMap<u32, Loaded> {
        let nothing = || Loaded {
            hashed: self.hashed.clone(),
            ..Loaded::default()
        };
        let mut all: BTreeMap<u32, (i32, Loaded)> = own
            .iter()
            .map(|(shard, own)| (*shard, (*own, nothing())))
            .collect();
        for (group, places) in self.found {
            if group.is_start() {
                for (own, loaded) in all.values_mut() {
                    // Each shard has its own. One that was added since has another's.
                    let found = places.get(own).or_else(|| places.values().next());
                    let found = found.map(|at| (group.clone(), at.clone()));
                    loaded.checkpoints.extend(found);
                }
            } else if let Some((own, loaded)) = all.get_mut(&group.shard(self.shards)) {
                loaded.join(group, places, *own);
            }
        }
        let loaded = all.into_iter();
        loaded.map(|(shard, (_, loaded))| (shard, loaded)).collect()
    }
}

impl Loaded {
    /// Takes in what is said of a group, by partition.
    fn join(&mut self, group: GroupKey, places: BTreeMap<i32, GroupCheckpoint>, own: i32) {
        let mut joined: Option<GroupCheckpoint> = None;
        for (partition, checkpoint) in places {
            if partition != own {
                self.strays.push((partition, group.clone()));
            }
            joined = Some(match joined {
                None => checkpoint,
                Some(other) => furthest(other, checkpoint),
            });
        }
        if let Some(checkpoint) = joined {
            self.checkpoints.insert(group, checkpoint);
        }
    }
}

/// What is done according to one of two checkpoints of a group.
fn furthest(mut a: GroupCheckpoint, b: GroupCheckpoint) -> GroupCheckpoint {
    // The memory of either holds what was done since its own beginning: together, since the later one.
    a.remembered_since_us = match (a.remembered_since_us, b.remembered_since_us) {
        (Some(a), Some(b)) => Some(a.max(b)),
        _ => None,
    };
    let writes = Arc::make_mut(&mut a.writes);
    writes.extend_from_slice(&b.writes);
    writes.sort_unstable();
    writes.dedup();
    a.complete_until_us = a.complete_until_us.max(b.complete_until_us);
    for (stream, at) in b.streams {
        let ahead = a
            .streams
            .get(&stream)
            .is_none_or(|have| timeuuid_cmp(&at.0, &have.0).then(at.1.cmp(&have.1)).is_gt());
        if ahead {
            a.streams.insert(stream, at);
        }
    }
    let until = a.complete_until_us;
    a.streams.retain(|stream, (time, seq)| {
        let position = Position {
            stream: *stream,
            time: *time,
            seq: *seq,
        };
        position.timestamp_us() >= until
    });
    a
}

#[cfg(test)]
mod tests;
