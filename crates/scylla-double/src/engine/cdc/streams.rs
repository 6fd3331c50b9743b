//! Stream identifiers, and which stream a write belongs to.
//!
//! Sources: ScyllaDB `cdc/generation.cc` (layout of an id, making of a generation), `cdc/metadata.cc`
//! (choice of the stream, refusal of writes too far from now), docs/dev/cdc.md.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use rand::RngExt;

use super::super::{
    cell::Timestamp,
    error::CqlError,
    token::{first_token_for_shard, range_ends, shard_of},
};

/// How far a write's timestamp may be ahead of the clock, and how far behind it a write may still go
/// to the generation before the current one; µs (`get_generation_leeway`).
pub(crate) const LEEWAY_US: i64 = 5_000_000;

/// A stream identifier: the token, big-endian, then a word of version (bits 0–3), vnode index
/// (bits 4–25) and random bits (26–63).
pub(crate) fn stream_id(token: i64, index: usize) -> Bytes {
    let low = 1 | ((index as u64 & 0x3f_ffff) << 4) | (rand::rng().random::<u64>() << 26);
    let mut id = Vec::with_capacity(16);
    id.extend_from_slice(&token.to_be_bytes());
    id.extend_from_slice(&low.to_be_bytes());
    id.into()
}

/// The token in a stream identifier, which is also its token as the log's partition key.
pub(crate) fn stream_token(id: &[u8]) -> i64 {
    id.first_chunk::<8>()
        .map_or(i64::MAX, |head| i64::from_be_bytes(*head))
}

/// The streams of one vnode.
#[derive(Debug, Clone)]
pub(crate) struct VnodeStreams {
    /// The last token of the vnode.
    pub(crate) range_end: i64,
    /// One for each shard.
    pub(crate) streams: Vec<Bytes>,
}

/// The sets of streams over time.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// Of keyspaces with vnodes: by the time from which they are used, ms; vnodes ascending.
    vnodes: BTreeMap<i64, Vec<VnodeStreams>>,
    /// Which of them a client began, by writing to the tables that tell of them.
    clients: BTreeSet<i64>,
    /// Of tables in keyspaces with tablets: by keyspace and base table, then as above; ascending.
    tablets: HashMap<(String, String), BTreeMap<i64, Vec<Bytes>>>,
}

/// What changed from one set of a table's streams to the next.
pub(crate) struct StreamDiff {
    pub(crate) closed: Vec<Bytes>,
    pub(crate) opened: Vec<Bytes>,
}

impl Streams {
    /// Makes a generation of vnode streams used from `at_ms`.
    pub(crate) fn add_generation(
        &mut self,
        at_ms: i64,
        vnodes: u32,
        shards: u32,
    ) -> &[VnodeStreams] {
        let ends = range_ends(vnodes);
        let generation = ends.iter().enumerate().map(|(index, &range_end)| {
            let start = ends[(index + ends.len() - 1) % ends.len()];
            let streams = (0..shards.max(1))
                .map(|shard| {
                    stream_id(
                        first_token_for_shard(start, range_end, shard, shards.max(1)),
                        index,
                    )
                })
                .collect();
            VnodeStreams { range_end, streams }
        });
        self.vnodes
            .entry(at_ms)
            .insert_entry(generation.collect())
            .into_mut()
    }

    /// The time of the newest generation, ms.
    pub(crate) fn newest_generation(&self) -> Option<i64> {
        self.vnodes.last_key_value().map(|(at, _)| *at)
    }

    /// Takes up generations that a client told of: newer than what there is, and each with the streams of
    /// all vnodes. `told` are the times of all that are told of; one that a client began and that is not
    /// told of any more is withdrawn.
    pub(crate) fn follow(
        &mut self,
        told: &BTreeSet<i64>,
        streams: impl Fn(i64) -> Vec<VnodeStreams>,
    ) {
        let vnodes = &mut self.vnodes;
        self.clients.retain(|at| {
            let kept = told.contains(at);
            if !kept {
                vnodes.remove(at);
            }
            kept
        });
        for at in told {
            if self.newest_generation().is_some_and(|newest| *at <= newest) {
                continue;
            }
            let mut generation = streams(*at);
            if generation.is_empty() || generation.iter().any(|v| v.streams.is_empty()) {
                continue;
            }
            generation.sort_by_key(|v| v.range_end);
            for vnode in &mut generation {
                by_shard(&mut vnode.streams);
            }
            self.vnodes.insert(*at, generation);
            self.clients.insert(*at);
        }
    }

    /// Makes the first set of streams of a table with `count` tablets.
    pub(crate) fn add_table(
        &mut self,
        keyspace: &str,
        table: &str,
        at_ms: i64,
        count: u32,
    ) -> &[Bytes] {
        let set: Vec<Bytes> = range_ends(count)
            .into_iter()
            .map(|end| stream_id(end, 0))
            .collect();
        let sets = self
            .tablets
            .entry((keyspace.into(), table.into()))
            .or_default();
        sets.entry(at_ms).insert_entry(set).into_mut()
    }

    /// Forgets a dropped table.
    pub(crate) fn remove_table(&mut self, keyspace: &str, table: &str) {
        self.tablets
            .remove(&(keyspace.to_owned(), table.to_owned()));
    }

    /// How many tablets a table has, or will have when its newest set of streams begins.
    pub(crate) fn tablets(&self, keyspace: &str, table: &str) -> Option<u32> {
        let sets = self.tablets.get(&(keyspace.to_owned(), table.to_owned()))?;
        let (_, newest) = sets.last_key_value()?;
        u32::try_from(newest.len()).ok()
    }

    /// Gives a table another number of tablets from `at_ms`, or from just after its newest set if that is
    /// later. All streams change, for each ends in random bits, like in ScyllaDB
    /// (`generate_tablet_resize_update`).
    pub(crate) fn resize_table(
        &mut self,
        keyspace: &str,
        table: &str,
        count: u32,
        at_ms: i64,
    ) -> Option<(i64, Vec<Bytes>, StreamDiff)> {
        let sets = self
            .tablets
            .get_mut(&(keyspace.to_owned(), table.to_owned()))?;
        let (newest, closed) = sets.last_key_value().map(|(at, set)| (*at, set.clone()))?;
        let at_ms = at_ms.max(newest + 1);
        let opened: Vec<Bytes> = range_ends(count)
            .into_iter()
            .map(|end| stream_id(end, 0))
            .collect();
        sets.insert(at_ms, opened.clone());
        Some((at_ms, opened.clone(), StreamDiff { closed, opened }))
    }

    /// The stream of a write to a table in a keyspace with vnodes; times in µs.
    pub(crate) fn vnode_stream(
        &self,
        at: Timestamp,
        now: Timestamp,
        token: i64,
    ) -> Result<Bytes, CqlError> {
        refuse_future(at, now)?;
        let used_at = |time: i64| self.vnodes.range(..=time.div_euclid(1_000)).next_back();
        if at <= now - LEEWAY_US {
            let settled = used_at(now - LEEWAY_US).map(|(ms, _)| *ms);
            let refused = match settled {
                None => true,
                Some(ms) => {
                    let superseded = self
                        .vnodes
                        .range(ms + 1..)
                        .next()
                        .is_some_and(|(next, _)| *next <= now.div_euclid(1_000));
                    at < ms * 1_000 || superseded
                }
            };
            if refused {
                return Err(CqlError::invalid(format!(
                    "cdc: attempted to get a stream \"from the past\" ({at}; current server time: {now}). With CDC you \
                     cannot send writes with timestamps too far into the past, because that would break consistency \
                     properties.\nWe *do* allow sending writes into the near past, but our ability to do that is \
                     limited. Are you using client-side timestamps? Make sure your clocks are well-synchronized with \
                     the database's clocks."
                )));
            }
        }
        let (_, vnodes) = used_at(at).ok_or_else(|| {
            CqlError::server(format!(
                "cdc::metadata::get_stream: could not find any CDC stream for timestamp {at}. Are we in the middle of \
                 a cluster upgrade?"
            ))
        })?;
        let index = vnodes.partition_point(|v| v.range_end < token) % vnodes.len();
        let streams = &vnodes[index].streams;
        Ok(streams[shard_of(token, streams.len() as u32) as usize].clone())
    }

    /// The stream of a write to a table in a keyspace with tablets; times in µs.
    pub(crate) fn tablet_stream(
        &self,
        keyspace: &str,
        table: &str,
        at: Timestamp,
        now: Timestamp,
        token: i64,
    ) -> Result<Bytes, CqlError> {
        refuse_future(at, now)?;
        let sets = self.tablets.get(&(keyspace.to_owned(), table.to_owned())).ok_or_else(|| {
            CqlError::server(format!(
                "cdc::metadata::get_stream: could not find stream metadata for table {keyspace}.{table}."
            ))
        })?;
        let (_, set) = sets.range(..=at.div_euclid(1_000)).next_back().ok_or_else(|| {
            CqlError::server(format!(
                "cdc::metadata::get_stream: could not find any CDC streams for table {keyspace}.{table} for timestamp {at}."
            ))
        })?;
        let index = set.partition_point(|id| stream_token(id) < token);
        set.get(index)
            .cloned()
            .ok_or_else(|| CqlError::server(format!("get_stream: no stream for token {token}.")))
    }
}

/// Brings the streams of a vnode, which are told of as a set, into the order of the shards: each was made
/// of a token of its own shard. Streams that were made otherwise stay as they are.
fn by_shard(streams: &mut [Bytes]) {
    let count = streams.len() as u32;
    let shard = |id: &Bytes| shard_of(stream_token(id), count);
    let shards: BTreeSet<u32> = streams.iter().map(shard).collect();
    if shards.len() == streams.len() {
        streams.sort_by_key(shard);
    }
}

fn refuse_future(at: Timestamp, now: Timestamp) -> Result<(), CqlError> {
    if at <= now + LEEWAY_US {
        return Ok(());
    }
    Err(CqlError::invalid(format!(
        "cdc: attempted to get a stream \"from the future\" ({at}; current server time: {now}). With CDC you cannot send \
         writes with timestamps arbitrarily into the future, because we don't know what streams will be used at that \
         time.\nWe *do* allow sending writes into the near future, but our ability to do that is limited. If you really \
         must use your own timestamps, then make sure your clocks are well-synchronized  with the database's clocks."
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifier_has_token_version_and_index() {
        let id = stream_id(-7, 3);
        assert_eq!(stream_token(&id), -7);
        let low = u64::from_be_bytes(id[8..].try_into().unwrap());
        assert_eq!((low & 0xf, (low >> 4) & 0x3f_ffff), (1, 3));
    }

    #[test]
    fn writes_go_to_the_generation_of_their_time() {
        let mut streams = Streams::default();
        streams.add_generation(1_000, 2, 2);
        streams.add_generation(20_000, 2, 2);
        let first = streams.vnode_stream(15_000_000, 16_000_000, 5).unwrap();
        let second = streams.vnode_stream(20_000_000, 20_000_000, 5).unwrap();
        assert_ne!(first, second);
        // Shortly after the switch a late write still goes to the old one, later it is refused.
        assert_eq!(
            streams.vnode_stream(19_999_999, 22_000_000, 5).unwrap(),
            first
        );
        assert!(
            streams
                .vnode_stream(16_000_000, 22_000_000, 5)
                .unwrap_err()
                .message
                .contains("from the past")
        );
        assert!(
            streams
                .vnode_stream(27_000_001, 22_000_000, 5)
                .unwrap_err()
                .message
                .contains("from the future")
        );
        assert!(
            streams
                .vnode_stream(999_000, 3_000_000, 5)
                .unwrap_err()
                .message
                .contains("could not find")
        );
    }

    #[test]
    fn tablets_split_in_two() {
        let mut streams = Streams::default();
        streams.add_table("k", "t", 0, 2);
        let before = streams.tablet_stream("k", "t", 1_000, 1_000, -5).unwrap();
        assert_eq!(stream_token(&before), -1);
        let (at, set, diff) = streams.resize_table("k", "t", 4, 10).unwrap();
        assert_eq!(
            (at, set.len(), diff.closed.len(), diff.opened.len()),
            (10, 4, 2, 4)
        );
        assert_eq!(
            streams.tablet_stream("k", "t", 9_999, 10_000, -5).unwrap(),
            before
        );
        assert_ne!(
            streams.tablet_stream("k", "t", 10_000, 10_000, -5).unwrap(),
            before
        );
    }
}
