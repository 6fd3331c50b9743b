//! Which stream generation to read, and where to start in it.
//!
//! A topology change gives the log new streams from a point in time on. Generations are read strictly in
//! order, each to its end. What is finished needs no marker of its own: a group of a generation is finished
//! when its checkpoint reaches the next generation's start, and the checkpoints of an old generation are
//! forgotten only after those of the next one exist. So the oldest generation with an unfinished checkpoint,
//! or else the newest with any, is where a process goes on.
//! <https://docs.scylladb.com/manual/stable/features/cdc/cdc-stream-generations.html>

use std::sync::Arc;

use crate::change::{GroupKey, StreamId};
use crate::checkpoint::{Checkpoints, GroupCheckpoint};

/// A generation is known by its start, in ms since the Unix epoch, as ScyllaDB's tables have it.
pub(super) type Generation = i64;

/// The µs since the Unix epoch at which it starts.
pub(super) fn start_us(generation: Generation) -> i64 {
    generation.saturating_mul(1000)
}

/// The key of a stream group. `first` names it: groups of a generation share no stream.
pub(super) fn group_key(table: &str, generation: Generation, first: &StreamId) -> GroupKey {
    GroupKey(format!("{table}/{generation}/{first}").into())
}

/// Keeps the place of a shard without a stream in this generation.
pub(super) fn vacant_key(
    table: &str,
    generation: Generation,
    shard: u32,
    placing: Placing,
) -> GroupKey {
    let key = GroupKey::vacant(&format!("{table}/{generation}"), shard);
    match placing {
        Placing::Hash => key,
        Placing::Number => key.numbered(shard),
    }
}

/// Which shard the groups of a generation fall to. All shards have to agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placing {
    /// By a hash of the key, which leaves some shards with much and some with nothing: a generation of which an earlier
    /// version has written checkpoints, which would not be found otherwise.
    Hash,
    /// By a number that the key ends with: no shard has more than its share.
    Number,
}

/// The keys of a generation's groups, in the order in which the streams are given, which is the same for everybody.
pub(super) fn group_keys(
    table: &str,
    generation: Generation,
    streams: &[Arc<[StreamId]>],
    placing: Placing,
) -> impl Iterator<Item = (GroupKey, Arc<[StreamId]>)> {
    // Many tables of few groups each are not all to begin with shard 0. In checkpoints: it must not change.
    let first_number = (twox_hash::XxHash3_64::oneshot(table.as_bytes()) & 0xffff) as u32;
    let of_streams = streams
        .iter()
        .filter_map(|streams| Some((streams.first()?, streams)));
    (first_number..)
        .zip(of_streams)
        .map(move |(number, (first, streams))| {
            let key = group_key(table, generation, first);
            let key = match placing {
                Placing::Hash => key,
                Placing::Number => key.numbered(number),
            };
            (key, streams.clone())
        })
}

/// The generation of a key of this table.
pub(super) fn generation_of(key: &GroupKey, table: &str) -> Option<Generation> {
    let rest = key.0.strip_prefix(table)?.strip_prefix('/')?;
    rest.split_once('/')?.0.parse().ok()
}

/// The first generation after this one.
pub(super) fn next(known: &[Generation], after: Generation) -> Option<Generation> {
    known.iter().copied().filter(|&g| g > after).min()
}

/// Where a shard goes on with a table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) generation: Generation,
    /// Groups of it without a checkpoint start here, in µs since the Unix epoch.
    pub(super) from_us: i64,
    /// Checkpoints of older generations, all finished: to be forgotten.
    pub(super) old: Vec<GroupKey>,
}

/// Chooses where to start. `bound_us` counts where the table has no checkpoint: changes before it are not
/// wanted, or no longer in the log. `floor_us` counts always: it is the part of `bound_us` that does not depend
/// on when the process was started. `None`: there is no generation yet.
pub(super) fn start(
    known: &[Generation],
    table: &str,
    checkpoints: &Checkpoints,
    bound_us: i64,
    floor_us: i64,
) -> Option<Start> {
    let own: Vec<(Generation, &GroupKey, &GroupCheckpoint)> = checkpoints
        .iter()
        .filter_map(|(key, c)| Some((generation_of(key, table)?, key, c)))
        .collect();
    let unfinished = own
        .iter()
        // Leaves follow their group.
        .filter(|(_, key, _)| key.leaf_of().is_none())
        .filter(|(g, _, c)| next(known, *g).is_none_or(|n| c.complete_until_us < start_us(n)))
        .map(|(g, ..)| *g)
        .min();
    let resumed = unfinished.or_else(|| own.iter().map(|(g, ..)| *g).max());
    let generation = match resumed {
        Some(g) if known.contains(&g) => g,
        // ScyllaDB forgets generations whose changes have all expired.
        Some(g) => next(known, g)?,
        None => {
            let before = known
                .iter()
                .copied()
                .filter(|&g| start_us(g) <= bound_us)
                .max();
            before.or_else(|| known.iter().copied().min())?
        }
    };
    let from_us = match resumed {
        // A group without a checkpoint beside others that have one was cut off in its first commit, or comes
        // from a shard that another number of shards has dissolved: rather again than never.
        Some(_) => floor_us,
        None => bound_us,
    };
    Some(Start {
        generation,
        from_us: from_us.max(start_us(generation)),
        old: own
            .iter()
            .filter(|(g, ..)| *g < generation)
            .map(|(_, key, _)| (*key).clone())
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_shard_has_more_than_its_share_of_the_groups(
            groups in 0usize..600, of_group in 1usize..4, shards in 1u32..300, table: u16,
        ) {
            let id = |n: usize, s: usize| {
                let mut id = [0; 16];
                id[..8].copy_from_slice(&(n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
                id[15] = s as u8;
                StreamId(id)
            };
            let streams: Vec<Arc<[StreamId]>> =
                (0..groups).map(|n| (0..of_group).map(|s| id(n, s)).collect()).collect();
            let table = format!("ks.t{table}");
            let mut of_shard = vec![0; shards as usize];
            let mut seen = std::collections::BTreeSet::new();
            for (key, _) in group_keys(&table, 10, &streams, Placing::Number) {
                of_shard[key.shard(shards) as usize] += 1;
                prop_assert_eq!(generation_of(&key, &table), Some(10));
                prop_assert!(seen.insert(key));
            }
            prop_assert_eq!(of_shard.iter().sum::<usize>(), groups);
            prop_assert!(of_shard.iter().all(|n| *n <= groups.div_ceil(shards as usize)));
            for shard in 0..shards {
                let vacant = vacant_key(&table, 10, shard, Placing::Number);
                prop_assert_eq!(vacant.shard(shards), shard);
            }
        }
    }

    /// Every number of groups to 300, every number of shards to 64, and every number of instances to 4, which are assigned
    /// runs of shards whose lengths differ by one at most, as the consumer group does it. With `--nocapture` a table.
    #[test]
    fn the_spread_is_even_for_every_number_of_groups_shards_and_instances() {
        const GROUPS: usize = 300;
        println!(
            "| shards | groups | of the fullest shard, ceil(groups / shards) | of the emptiest | instances: 1, 2, 3, 4 |"
        );
        println!("|---|---|---|---|---|");
        // Tables begin at different shards, and so do generations of different streams: none of it matters.
        for (table, generation, of_group) in [("ks.t", 10, 2), ("ks.outbox", 1_700_000, 1)] {
            let streams: Vec<Arc<[StreamId]>> = (0..GROUPS as u64)
                .map(|n| {
                    let of = (0..of_group).map(|s| {
                        let mut id = [s; 16];
                        id[..8]
                            .copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
                        StreamId(id)
                    });
                    of.collect()
                })
                .collect();
            // The keys of fewer groups are the first of these: a number is counted up for each.
            let keys: Vec<GroupKey> = group_keys(table, generation, &streams, Placing::Number)
                .map(|(key, _)| key)
                .collect();
            let fewer = group_keys(table, generation, &streams[..7], Placing::Number);
            assert!(fewer.map(|(key, _)| key).eq(keys[..7].iter().cloned()));
            for shards in 1..=64_usize {
                let mut of_shard = vec![0; shards];
                for (key, groups) in keys.iter().zip(1..) {
                    of_shard[key.shard(shards as u32) as usize] += 1;
                    let (most, least) = (of_shard.iter().max(), of_shard.iter().min());
                    let (most, least) = (*most.expect("a shard"), *least.expect("a shard"));
                    assert!(
                        most == groups_of(groups, shards),
                        "{groups} on {shards}: {of_shard:?}"
                    );
                    assert_eq!(least, groups / shards, "{groups} on {shards}: {of_shard:?}");
                    let mut fullest = Vec::new();
                    for instances in 1..=shards.min(4) {
                        let instance =
                            |n: usize| n * shards / instances..(n + 1) * shards / instances;
                        let of =
                            (0..instances).map(|n| of_shard[instance(n)].iter().sum::<usize>());
                        let of = of.max().expect("an instance");
                        let bound = shards.div_ceil(instances) * most;
                        assert!(
                            of <= bound,
                            "{groups} on {shards}, {instances} instances: {of}"
                        );
                        fullest.push(of.to_string());
                    }
                    let shown =
                        [4, 10, 37, 256, 300].contains(&groups) && [1, 4, 16, 64].contains(&shards);
                    if shown && table == "ks.t" {
                        println!(
                            "| {shards} | {groups} | {most} | {least} | {} |",
                            fullest.join(", ")
                        );
                    }
                }
            }
        }

        fn groups_of(groups: usize, shards: usize) -> usize {
            groups.div_ceil(shards)
        }
    }

    const TABLE: &str = "ks.t";

    fn checkpoints(of: &[(Generation, u8, i64)]) -> Checkpoints {
        of.iter()
            .map(|&(g, stream, complete_until_us)| {
                let checkpoint = GroupCheckpoint {
                    complete_until_us,
                    ..Default::default()
                };
                (group_key(TABLE, g, &StreamId([stream; 16])), checkpoint)
            })
            .collect()
    }

    fn at(
        known: &[Generation],
        of: &[(Generation, u8, i64)],
        bound_us: i64,
    ) -> Option<(i64, i64, usize)> {
        start(known, TABLE, &checkpoints(of), bound_us, 0)
            .map(|s| (s.generation, s.from_us, s.old.len()))
    }

    #[test]
    fn without_checkpoints_the_bound_chooses_the_generation() {
        let known = [10, 20, 30];
        assert_eq!(at(&known, &[], i64::MIN), Some((10, 10_000, 0)));
        assert_eq!(at(&known, &[], 20_000), Some((20, 20_000, 0)));
        assert_eq!(at(&known, &[], 25_500), Some((20, 25_500, 0)));
        assert_eq!(at(&known, &[], 99_000), Some((30, 99_000, 0)));
        assert_eq!(at(&[], &[], 0), None);
    }

    #[test]
    fn the_oldest_generation_with_an_unfinished_group_goes_first() {
        let known = [10, 20, 30];
        let of = [
            (10, 1, 20_000),
            (20, 2, 29_999),
            (20, 3, 30_000),
            (30, 4, 31_000),
        ];
        assert_eq!(at(&known, &of, 0), Some((20, 20_000, 1)));
    }

    #[test]
    fn after_a_finished_generation_it_stays_there_until_the_next_has_checkpoints() {
        let known = [10, 20];
        assert_eq!(
            at(&known, &[(10, 1, 20_500), (10, 2, 20_000)], 0),
            Some((10, 10_000, 0))
        );
        assert_eq!(
            at(&known, &[(10, 1, 20_500), (20, 2, 20_000)], 0),
            Some((20, 20_000, 1))
        );
    }

    #[test]
    fn a_forgotten_generation_is_followed_by_the_next_known_one() {
        assert_eq!(at(&[30, 40], &[(10, 1, 12_000)], 0), Some((30, 30_000, 1)));
        assert_eq!(at(&[5], &[(10, 1, 12_000)], 0), None);
    }

    #[test]
    fn a_group_without_a_checkpoint_is_not_started_where_its_neighbours_are() {
        let of = checkpoints(&[(20, 1, 26_000)]);
        let from = |bound, floor| start(&[10, 20], TABLE, &of, bound, floor).unwrap().from_us;
        assert_eq!(
            from(90_000, i64::MIN),
            20_000,
            "the present is not where it was left"
        );
        assert_eq!(from(24_000, 24_000), 24_000, "a given time is");
    }

    #[test]
    fn a_shard_without_a_group_and_what_is_remembered_of_groups() {
        let vacant = vacant_key(TABLE, 10, 3, Placing::Number);
        let at = |complete_until_us| GroupCheckpoint {
            complete_until_us,
            ..Default::default()
        };
        let of = Checkpoints::from([(vacant.clone(), at(12_000))]);
        let go_on = start(&[10, 20], TABLE, &of, 90_000, i64::MIN).unwrap();
        assert_eq!(
            (go_on.generation, go_on.from_us),
            (10, 10_000),
            "the generation that began meanwhile is not skipped"
        );
        let group = group_key(TABLE, 10, &StreamId([1; 16]));
        let leaf = group.leaf(4);
        let of = Checkpoints::from([(group, at(20_000)), (leaf.clone(), at(11_000))]);
        let go_on = start(&[10, 20], TABLE, &of, 0, 0).unwrap();
        assert_eq!(go_on.generation, 10, "nothing of the next one yet");
        let mut of = of;
        of.insert(group_key(TABLE, 20, &StreamId([2; 16])), at(21_000));
        let go_on = start(&[10, 20], TABLE, &of, 0, 0).unwrap();
        assert_eq!(go_on.generation, 20, "a leaf is not unfinished");
        assert!(go_on.old.contains(&leaf), "it goes with its group");
    }

    #[test]
    fn another_table_is_no_business_of_ours() {
        let mut of = checkpoints(&[(10, 1, 12_000)]);
        let foreign = GroupKey("ks.t2/20/00".into());
        of.insert(foreign, GroupCheckpoint::default());
        assert_eq!(start(&[10, 20], TABLE, &of, 0, 0).unwrap().generation, 10);
    }
}
