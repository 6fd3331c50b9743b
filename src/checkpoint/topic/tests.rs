use super::*;

fn finish(fold: Fold, shard: u32, own: i32) -> Loaded {
    let mut all = fold.finish(&BTreeMap::from([(shard, own)]));
    all.remove(&shard).unwrap()
}

fn group(n: u32) -> GroupKey {
    GroupKey(format!("ks.t/1764000000000/{n:032x}").into())
}

fn at(ms: u64, seq: i32) -> (Uuid, i32) {
    let time =
        uuid::Timestamp::from_unix(uuid::NoContext, ms / 1000, (ms % 1000) as u32 * 1_000_000);
    (Uuid::new_v1(time, &[1; 6]), seq)
}

fn checkpoint(until_ms: i64, streams: &[(u8, (Uuid, i32))]) -> GroupCheckpoint {
    GroupCheckpoint {
        complete_until_us: until_ms * 1000,
        streams: streams
            .iter()
            .map(|(s, at)| (StreamId([*s; 16]), *at))
            .collect(),
        ..GroupCheckpoint::default()
    }
}

#[test]
fn a_checkpoint_survives_its_record() {
    let mut c = checkpoint(5_000, &[(1, at(6_000, 3)), (2, at(7_000, 0))]);
    c.remembered_since_us = Some(4_000_000);
    c.writes = vec![u64::MAX, 0, 7].into();
    let key = group(1);
    let (k, back) = decode(Some(key.0.as_bytes()), Some(&encode(&c))).unwrap();
    assert_eq!((k, back), (key.clone(), Some(c)));
    assert_eq!(decode(Some(key.0.as_bytes()), None).unwrap(), (key, None));
}

#[test]
fn what_is_not_a_checkpoint_is_told_apart() {
    let bad = |key: Option<&[u8]>, value: &str| {
        decode(key, Some(value.as_bytes())).unwrap_err().to_string()
    };
    assert!(bad(None, "{}").contains("key"));
    assert!(bad(Some(b"g"), "{").contains("EOF"));
    assert!(bad(Some(b"g"), r#"{"v":3,"other":1}"#).contains("upgrade"));
    assert!(
        bad(
            Some(b"g"),
            r#"{"v":2,"complete_until_us":0,"writes":"AAAA"}"#
        )
        .contains("writes")
    );
    assert!(
        bad(Some(b"g"), r#"{"v":1,"complete_until_us":0,"streams":{"zz":["8e3d2f00-e86c-11f0-9d3d-0242ac120002",0]}}"#)
            .contains("zz")
    );
}

#[test]
fn a_record_of_the_first_version_is_read() {
    let value = br#"{"v":1,"complete_until_us":5000,"streams":{"07070707070707070707070707070707":["8e3d2f00-e86c-11f0-9d3d-0242ac120002",3]}}"#;
    let (_, read) = decode(Some(b"g"), Some(value)).unwrap();
    let read = read.unwrap();
    assert_eq!((read.complete_until_us, read.streams.len()), (5000, 1));
    assert_eq!(
        (read.remembered_since_us, read.writes),
        (None, Arc::default())
    );
}

#[test]
fn a_changed_number_of_shards_loses_no_group() {
    // Written by four shards, each to its own partition …
    let groups: Vec<_> = (0..100).map(group).collect();
    let records: Vec<_> = groups
        .iter()
        .enumerate()
        .map(|(i, g)| (g.shard(4) as i32, g, encode(&checkpoint(i as i64 + 1, &[]))))
        .collect();
    // … and read by six, then by three.
    for shards in [6, 3] {
        let mut seen = Checkpoints::new();
        for shard in 0..shards {
            let mut fold = Fold::new([shard], shards);
            for (partition, key, value) in &records {
                fold.record(*partition, Some(key.0.as_bytes()), Some(value))
                    .unwrap();
            }
            let loaded = finish(fold, shard, shard as i32);
            for (partition, group) in &loaded.strays {
                assert_eq!(group.shard(4) as i32, *partition);
                assert_ne!(*partition, shard as i32);
            }
            seen.extend(loaded.checkpoints);
        }
        assert_eq!(seen.keys().cloned().collect::<Vec<_>>(), {
            let mut all = groups.clone();
            all.sort();
            all
        });
    }
}

#[test]
fn the_last_record_of_a_partition_counts_and_the_furthest_of_several() {
    let key = group(1);
    let (shard, k) = (key.shard(1), Some(key.0.as_bytes()));
    let mut fold = Fold::new([shard], 1);
    let old = checkpoint(1_000, &[(1, at(9_000, 0)), (2, at(1_500, 0))]);
    let new = checkpoint(2_000, &[(1, at(8_000, 0)), (3, at(2_500, 1))]);
    fold.record(0, k, Some(&encode(&checkpoint(9_999, &[]))))
        .unwrap();
    fold.record(0, k, Some(&encode(&new))).unwrap();
    fold.record(5, k, Some(&encode(&old))).unwrap();
    let loaded = finish(fold, 0, 0);
    assert_eq!(
        loaded.checkpoints[&key],
        checkpoint(2_000, &[(1, at(9_000, 0)), (3, at(2_500, 1))])
    );
    assert_eq!(loaded.strays, [(5, key)]);
}

/// Row 15: anybody may write into a topic. What is no checkpoint is skipped; what a later version wrote is not.
#[test]
fn what_is_none_of_ours_is_skipped_and_told() {
    let key = group(1);
    let k = Some(key.0.as_bytes());
    let good = checkpoint(1_000, &[]);
    let mut fold = Fold::new([0], 1);
    fold.record(0, k, Some(&encode(&good))).unwrap();
    assert_eq!(fold.foreign(), None);
    let other: [(Option<&[u8]>, &[u8]); 4] = [
        (None, b"x"),
        (Some(b"x"), b"x"),
        (Some(b"x"), br#"{"v":9}"#),
        (k, b"not JSON"),
    ];
    for (key, value) in other {
        fold.record(0, key, Some(value)).unwrap();
    }
    let told = fold.foreign().map(|(n, first)| (n, first.to_owned()));
    assert_eq!(told, Some((4, "its key is not a stream group".to_owned())));
    let later = fold.record(0, k, Some(br#"{"v":9}"#)).unwrap_err();
    assert!(later.to_string().contains("upgrade"), "{later}");
    assert_eq!(finish(fold, 0, 0).checkpoints[&key], good);
}

#[test]
fn every_shard_is_told_where_to_start_and_a_later_one_too() {
    let key = GroupKey::start("ks.t");
    assert!(key.is_start() && !group(1).is_start());
    for (shard, shards) in [(0, 2), (1, 2), (2, 3)] {
        let mut fold = Fold::new([shard], shards);
        for partition in 0..2 {
            let value = encode(&checkpoint(i64::from(partition) + 7, &[]));
            let k = Some(key.0.as_bytes());
            fold.record(partition, k, Some(&value)).unwrap();
        }
        let loaded = finish(fold, shard, shard as i32);
        let own = if shard == 1 { 8 } else { 7 };
        assert_eq!(loaded.checkpoints[&key], checkpoint(own, &[]));
        assert_eq!(loaded.strays, []);
    }
}

#[test]
fn several_shards_are_told_together_what_each_would_be_alone() {
    let start = GroupKey::start("ks.t");
    let keys: Vec<GroupKey> = (0..40).map(group).chain([start]).collect();
    let shards = 5;
    let read = |fold: &mut Fold| {
        for (n, key) in (0_i64..).zip(&keys) {
            for partition in [0, 3] {
                let value = encode(&checkpoint(n + i64::from(partition), &[]));
                let k = Some(key.0.as_bytes());
                fold.record(partition, k, Some(&value)).unwrap();
            }
        }
    };
    let mut together = Fold::new([0, 2, 4], shards);
    read(&mut together);
    let own = BTreeMap::from([(0, 0), (2, 2), (4, 0)]);
    let together = together.finish(&own);
    assert_eq!(together.len(), 3);
    for (shard, loaded) in together {
        let mut alone = Fold::new([shard], shards);
        read(&mut alone);
        assert!(loaded.checkpoints.len() > 1, "{loaded:?}");
        assert_eq!(loaded, finish(alone, shard, own[&shard]));
    }
}

#[test]
fn an_owner_is_read_back_as_this_build_and_earlier_ones_wrote_it() {
    let instance = Uuid::new_v4();
    let admin = Some("10.0.0.7:9180".to_owned());
    for owner in [
        Owner { instance, admin },
        Owner {
            instance,
            admin: None,
        },
    ] {
        assert_eq!(Owner::decode(Some(&owner.encode())), Some(owner));
    }
    let bare = Owner::decode(Some(instance.to_string().as_bytes()));
    assert_eq!(
        bare,
        Some(Owner {
            instance,
            admin: None
        })
    );
    assert_eq!(Owner::decode(Some(b"?")), None);
    assert_eq!(Owner::decode(None), None);
}

#[test]
fn a_tombstone_forgets() {
    let key = group(1);
    let mut fold = Fold::new([0], 1);
    let k = Some(key.0.as_bytes());
    fold.record(0, k, Some(&encode(&checkpoint(1, &[]))))
        .unwrap();
    fold.record(0, k, None).unwrap();
    let loaded = finish(fold, 0, 0);
    assert!(loaded.checkpoints.is_empty() && loaded.strays.is_empty());
    // How its generation is placed is not forgotten with it.
    let generation = key.placed_by_hash().map(str::to_owned);
    assert_eq!(loaded.hashed, BTreeSet::from_iter(generation));
}
