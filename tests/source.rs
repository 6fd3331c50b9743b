//! The source against a ScyllaDB: what is read, from where, and what trouble does to it.

#[path = "source/blocked.rs"]
mod blocked;
#[path = "source/differential.rs"]
mod differential;
#[path = "source/gaps.rs"]
mod gaps;
#[path = "source/idle.rs"]
mod idle;
#[path = "source/late.rs"]
mod late;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use penstock::change::GroupKey;
use penstock::checkpoint::Checkpoints;
use penstock::config::settings::{Nodes, StartFrom};
use penstock::source::{Source, SourceError};
use penstock_plugin_encoding::{ColumnTag, Mark, Operation};
use scylla_double::{Action, Fault};
use testkit::scylla::{Change, Db, Key, Rig, apply, changes, key, now_ms, positions};
use testkit::settings;

const TABLE: &str = "(k int, c int, v int, PRIMARY KEY (k, c)) WITH cdc = {'enabled': true}";

/// Since 2025.4 a name has 192 characters at most.
const LONGEST_NAME: usize = 192;

async fn write(db: &Db, table: &str, keys: std::ops::Range<i32>) {
    for k in keys {
        db.run(&format!(
            "INSERT INTO {table} (k, c, v) VALUES ({}, {k}, {k})",
            k % 11
        ))
        .await;
    }
}

/// Each key's values must come in the order in which they were written.
fn assert_key_order(changes: &[Change]) {
    let mut last = std::collections::HashMap::new();
    for change in changes {
        let (k, c) = (change.int("k"), change.int("c"));
        let before = last.insert((change.table.clone(), k), c);
        assert!(
            before.is_none_or(|b| b < c),
            "key {k:?}: {before:?} then {c:?}"
        );
    }
}

fn exactly(seen: &[Key], log: &BTreeSet<Key>, when: &str) {
    let set: BTreeSet<_> = seen.iter().copied().collect();
    let repeats = seen.len() - set.len();
    let (lost, invented) = (log.difference(&set).count(), set.difference(log).count());
    assert_eq!(
        (repeats, lost, invented),
        (0, 0, 0),
        "repeated, lost, invented: {when}"
    );
}

async fn two_tables(tablets: bool) {
    let db = Db::start(tablets).await;
    for table in ["a", "b"] {
        db.run(&format!("CREATE TABLE {table} {TABLE}")).await;
    }
    write(&db, "a", 0..60).await;
    write(&db, "b", 0..40).await;
    let rig = Rig::connect(db.settings(&["a", "b"], 3)).await.unwrap();
    let batches = rig.read(1, &Checkpoints::new(), 100).await;
    let log = db
        .log("a")
        .await
        .into_iter()
        .chain(db.log("b").await)
        .collect();
    exactly(&positions(&batches), &log, "at once");
    assert_key_order(&changes(&batches));
    assert!(
        batches
            .iter()
            .all(|b| b.positions.len() <= 5 && b.epoch == 1)
    );

    let status = rig.source.status();
    assert_eq!((status.rows, status.undecodable), (100, 0));
    assert_eq!(status.shards.len(), 3);
    assert_eq!(status.tables.len(), 2);
    for table in &status.tables {
        assert_eq!(table.cdc_ttl, Some(Duration::from_secs(86_400)));
        assert_eq!((table.tablets, table.schema_versions), (tablets, 1));
        assert!(table.generation_ms.is_some());
    }
    assert!(
        status
            .shards
            .iter()
            .all(|s| s.lag < Duration::from_secs(10)),
        "{status:?}"
    );
    assert!(status.retention_headroom().unwrap() > 0.99);
}

/// Names as odd as ScyllaDB allows, and as long: words of CQL, upper case, anything at all for a column.
#[tokio::test]
async fn odd_names() {
    let mut db = Db::start(false).await;
    db.keyspace = format!("Keyspace_{}", uuid::Uuid::new_v4().simple());
    db.run(&format!(
        "CREATE KEYSPACE \"{}\" WITH replication = {{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}} \
         AND tablets = {{'enabled': false}}",
        db.keyspace
    ))
    .await;
    let long = "T".repeat(LONGEST_NAME);
    for table in ["Select", "token", &long] {
        let full = format!("\"{}\".\"{table}\"", db.keyspace);
        let column = "c".repeat(LONGEST_NAME);
        db.run(&format!(
            "CREATE TABLE {full} (\"Key\" int, \"from\" int, \"a \"\"b\"\" c\" int, \"é;--\" int, {column} int, \
             PRIMARY KEY (\"Key\", \"from\")) WITH cdc = {{'enabled': true}}"
        ))
        .await;
        db.run(&format!(
            "INSERT INTO {full} (\"Key\", \"from\", \"a \"\"b\"\" c\", \"é;--\", {column}) VALUES (1, 2, 3, 4, 5)"
        ))
        .await;
        let settings = db.settings(&[table], 1);
        let rig = Rig::connect(settings).await.unwrap();
        let changes = changes(&rig.read(1, &Checkpoints::new(), 1).await);
        assert_eq!(changes.len(), 1);
        let names = ["Key", "from", "a \"b\" c", "é;--", &column];
        let values = names.map(|name| changes[0].int(name));
        assert_eq!(values, [1, 2, 3, 4, 5].map(Some), "{table}");
    }
}

#[tokio::test]
async fn two_tables_of_vnodes() {
    two_tables(false).await;
}

#[tokio::test]
async fn two_tables_of_tablets() {
    two_tables(true).await;
}

#[tokio::test]
async fn a_checkpoint_after_any_batch_resumes_without_loss_or_repeat() {
    let db = Db::start(false).await;
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    write(&db, "t", 0..30).await;
    // Several rows of one stream and time, larger than a batch and than a page.
    let inserts: Vec<_> = (100..112)
        .map(|c| format!("INSERT INTO t (k, c, v) VALUES (3, {c}, 0)"))
        .collect();
    db.run(&format!(
        "BEGIN UNLOGGED BATCH {}; APPLY BATCH",
        inserts.join("; ")
    ))
    .await;
    write(&db, "t", 200..210).await;
    let log = db.log("t").await;
    let mut settings = db.settings(&["t"], 1);
    // Few streams at a time, so that many batches end within a window.
    settings.source.concurrency = 2.try_into().unwrap();
    let rig = Rig::connect(settings).await.unwrap();
    let whole = rig.read(0, &Checkpoints::new(), log.len()).await;
    exactly(&positions(&whole), &log, "at once");
    let large = whole.iter().map(|b| b.positions.len()).max().unwrap();
    assert!(large >= 12, "a write is not torn apart: {large}");
    let with_rows = whole.iter().rposition(|b| !b.positions.is_empty()).unwrap();
    for cut in 0..=with_rows {
        let mut checkpoints = Checkpoints::new();
        apply(&mut checkpoints, &whole[..cut]);
        let done = positions(&whole[..cut]);
        let rest = rig
            .read(1 + cut as u64, &checkpoints, log.len() - done.len())
            .await;
        let mut all = done;
        all.extend(positions(&rest));
        exactly(&all, &log, &format!("cut after batch {cut}"));
    }
}

async fn blobs(db: &Db, images: &str) {
    db.run(&format!(
        "CREATE TABLE t (k int, c int, v blob, PRIMARY KEY (k, c)) WITH cdc = {{'enabled': true{images}}}"
    ))
    .await;
}

/// Sets `v` of row (1, c) to so many bytes.
async fn put(db: &Db, c: i32, bytes: usize) {
    let statement = "INSERT INTO t (k, c, v) VALUES (1, ?, ?)";
    let written = db.session.query_unpaged(statement, (c, vec![7u8; bytes]));
    written.await.unwrap();
}

#[tokio::test]
async fn a_write_of_many_rows_and_bytes_stays_together() {
    let db = Db::start(false).await;
    blobs(&db, "").await;
    let batch = |rows: std::ops::Range<i32>, blob: &str| {
        let inserts: Vec<_> = rows
            .map(|c| format!("INSERT INTO t (k, c, v) VALUES (1, {c}, 0x{blob})"))
            .collect();
        format!("BEGIN UNLOGGED BATCH {}; APPLY BATCH", inserts.join("; "))
    };
    db.run(&batch(0..10_050, "00")).await;
    db.run(&batch(20_000..20_006, &"ab".repeat(1 << 20))).await;
    let log = db.log("t").await;
    assert_eq!(log.len(), 10_056);
    let mut settings = db.settings(&["t"], 1);
    settings.source.page_size = 1000.try_into().unwrap();
    let rig = Rig::connect(settings).await.unwrap();
    let batches = rig.read(0, &Checkpoints::new(), log.len()).await;
    exactly(&positions(&batches), &log, "at once");
    let sizes = batches.iter().map(|b| b.positions.len());
    let sizes: Vec<_> = sizes.filter(|n| *n > 0).collect();
    assert_eq!(sizes, [10_050, 6]);
}

#[tokio::test]
async fn images_of_megabytes_stay_with_their_change() {
    let db = Db::start(false).await;
    blobs(&db, ", 'preimage': true, 'postimage': true").await;
    put(&db, 0, 3_000_000).await;
    put(&db, 0, 5_000_000).await;
    let rig = Rig::connect(db.settings(&["t"], 1)).await.unwrap();
    let changes = changes(&rig.read(0, &Checkpoints::new(), 5).await);
    let of = |c: &Change| (c.operation, c.preimage, c.end);
    let all: Vec<_> = changes.iter().map(of).collect();
    let expected = [
        (Operation::Insert, None, Some(1)),
        (Operation::PostImage, None, None),
        (Operation::PreImage, None, None),
        (Operation::Insert, Some(0), Some(2)),
        (Operation::PostImage, None, None),
    ];
    assert_eq!(all, expected);
}

#[tokio::test]
async fn a_change_says_that_its_image_is_missing_where_a_write_is_too_large() {
    let db = Db::start(false).await;
    blobs(&db, ", 'preimage': true, 'postimage': true").await;
    put(&db, 0, 17 << 20).await;
    put(&db, 0, 17 << 20).await;
    put(&db, 1, 10).await;
    let rig = Rig::connect(db.settings(&["t"], 1)).await.unwrap();
    let batches = rig.read(0, &Checkpoints::new(), 7).await;
    let rows = batches.iter().flat_map(|b| b.rows.iter());
    let changes = rows.filter(|row| row.is_change());
    let seen: Vec<_> = changes
        .map(|row| {
            let missing = row.is_marked(Mark::EndMissing);
            (row.preimage().is_some(), row.end().is_some(), missing)
        })
        .collect();
    let expected = [
        // What crosses the bound is still with the rest.
        (false, true, false),
        (true, false, true),
        (false, true, false),
    ];
    assert_eq!(seen, expected);
    // Between two parts of one write, too, it goes on exactly.
    let log = db.log("t").await;
    for cut in 1..batches.len() {
        let mut checkpoints = Checkpoints::new();
        apply(&mut checkpoints, &batches[..cut]);
        let mut all = positions(&batches[..cut]);
        let rest = rig.read(1, &checkpoints, log.len() - all.len()).await;
        all.extend(positions(&rest));
        exactly(&all, &log, "cut within a write");
    }
}

async fn generations(tablets: bool) {
    let db = Db::start(tablets).await;
    let Some(node) = db.stand_in() else { return };
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    let rig = Rig::connect(db.settings(&["t"], 3)).await.unwrap();
    let mut starts = Vec::new();
    for generation in 0..3 {
        write(&db, "t", generation * 100..generation * 100 + 30).await;
        let at = Some(now_ms() + 150);
        let at = match tablets {
            true => node.engine().split_tablets(&db.keyspace, "t", at).unwrap(),
            false => node.engine().new_generation(at),
        };
        starts.push(at);
        while now_ms() <= at {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    write(&db, "t", 300..330).await;
    let log = db.log("t").await;
    let batches = rig.read(0, &Checkpoints::new(), log.len()).await;
    exactly(&positions(&batches), &log, "at once");
    assert_key_order(&changes(&batches));
    // All of an old generation comes before any of a newer one.
    let generation = |b: &penstock::change::Batch| {
        let us = b.positions.first()?.timestamp_us();
        Some(starts.iter().filter(|&&s| us >= s * 1000).count())
    };
    let order: Vec<_> = batches.iter().filter_map(generation).collect();
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(order.last(), Some(&3));

    let mut checkpoints = Checkpoints::new();
    apply(&mut checkpoints, &batches);
    let newest = format!("/{}/", starts[2]);
    assert!(
        checkpoints.keys().all(|k| k.0.contains(&newest)),
        "old ones are forgotten: {checkpoints:?}"
    );
    // At every boundary, also between the generations, a new process goes on exactly there.
    for cut in (0..batches.len()).step_by(7) {
        let mut checkpoints = Checkpoints::new();
        apply(&mut checkpoints, &batches[..cut]);
        let done = positions(&batches[..cut]);
        // The keys of groups do not depend on the number of shards.
        let shards = 2 + (cut as u32 / 7) % 2;
        let mut rig = Rig::connect(db.settings(&["t"], shards)).await.unwrap();
        rig.all = shards != 3;
        let rest = rig.read(1, &checkpoints, log.len() - done.len()).await;
        let mut all = done;
        all.extend(positions(&rest));
        exactly(&all, &log, &format!("cut after batch {cut}"));
    }
}

#[tokio::test]
async fn generations_of_vnodes_are_read_in_order() {
    generations(false).await;
}

#[tokio::test]
async fn generations_of_tablets_are_read_in_order() {
    generations(true).await;
}

/// Checkpoints of an earlier version name no numbers: their generation goes on where its groups are, in every shard, and
/// the next one is spread evenly. Nothing is lost or repeated on the way.
#[tokio::test]
async fn a_generation_that_an_earlier_version_began_is_gone_on_with_and_the_next_is_spread_evenly()
{
    let options = scylla_double::Options {
        vnodes: 10,
        ..scylla_double::Options::default()
    };
    let db = Db::with(false, options).await;
    let Some(node) = db.stand_in() else { return };
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    write(&db, "t", 0..60).await;
    let settings = db.settings(&["t"], 4);
    let rig = Rig::connect(settings.clone()).await.unwrap();
    let first = rig.read(0, &Checkpoints::new(), 60).await;
    let mut numbered = Checkpoints::new();
    apply(&mut numbered, &first);
    let share = |checkpoints: &Checkpoints, generation: &str| {
        let mut of_shard = [0; 4];
        for key in checkpoints.keys() {
            let group = key.leaf_of().is_none() && !key.0.contains("shard-");
            if group && key.0.contains(generation) {
                of_shard[key.shard(4) as usize] += 1;
            }
        }
        of_shard.sort_unstable();
        of_shard
    };
    assert_eq!(share(&numbered, "/"), [2, 2, 3, 3]);
    drop(rig);

    // As the earlier version would have written it.
    let hashed = numbered.into_iter().map(|(key, checkpoint)| {
        let old = match key.leaf_of() {
            Some((group, leaf)) => {
                penstock::change::GroupKey(without_number(group).into()).leaf(leaf)
            }
            None => penstock::change::GroupKey(without_number(&key.0).into()),
        };
        (old, checkpoint)
    });
    let hashed: Checkpoints = hashed.collect();
    let generations: BTreeSet<String> = hashed
        .keys()
        .filter_map(|key| Some(key.placed_by_hash()?.to_owned()))
        .collect();
    write(&db, "t", 60..100).await;
    let at = node.engine().new_generation(Some(now_ms() + 50));
    while now_ms() <= at {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    write(&db, "t", 100..140).await;
    let log = db.log("t").await;
    let rig = Rig::connect(settings).await.unwrap();
    rig.source.placed_by_hash(&generations);
    let rest = rig.read(1, &hashed, 80).await;
    let mut all = positions(&first);
    all.extend(positions(&rest));
    exactly(&all, &log, "over the change of version");
    let mut checkpoints = hashed;
    apply(&mut checkpoints, &rest);
    assert_eq!(share(&checkpoints, &format!("/{at}/")), [2, 2, 3, 3]);
    assert!(checkpoints.keys().all(|key| key.placed_by_hash().is_none()));
}

/// What each shard has of each generation, as it was read from a node, and of each instance when two share the shards.
/// With `--nocapture` a table.
async fn spread(tablets: bool, groups: u32, shards: u32) {
    const SHARING: usize = 2;
    // A table has a power of two of tablets.
    let groups = match tablets {
        true => groups.next_power_of_two(),
        false => groups,
    };
    let options = scylla_double::Options {
        vnodes: groups,
        initial_tablets: groups,
        ..scylla_double::Options::default()
    };
    let db = Db::with(tablets, options).await;
    let Some(node) = db.stand_in() else { return };
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    let mut starts = Vec::new();
    for generation in 0..2 {
        write(&db, "t", generation * 100..generation * 100 + 22).await;
        let at = Some(now_ms() + 50);
        let at = match tablets {
            true => node.engine().split_tablets(&db.keyspace, "t", at).unwrap(),
            false => node.engine().new_generation(at),
        };
        starts.push(at);
        while now_ms() <= at {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    write(&db, "t", 200..222).await;
    let log = db.log("t").await;
    let rig = Rig::connect(db.settings(&["t"], shards)).await.unwrap();
    let (mut tasks, mut batches) = rig.follow(0, &Checkpoints::new());
    let mut seen = Vec::new();
    // Groups that had changes and those that had none: of the last generation all, so of those before it too.
    let mut keys = BTreeSet::new();
    let last = format!("/{}/", starts[1]);
    let of_last = (groups << if tablets { starts.len() } else { 0 }) as usize;
    let all = async {
        while seen.len() < log.len()
            || keys
                .iter()
                .filter(|key: &&GroupKey| key.0.contains(&last))
                .count()
                < of_last
        {
            let batch = batches.recv().await.expect("a batch");
            seen.extend(batch.positions.iter().map(key));
            let read = batch.progress.iter().map(|p| p.group.clone());
            keys.extend(read.filter(|key| key.leaf_of().is_none() && !key.0.contains("shard-")));
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all)
        .await
        .expect("all is read");
    tasks.shutdown().await;
    exactly(&seen, &log, "at once");
    let generation = |key: &GroupKey| {
        let ms = key.0.split('/').nth(1).and_then(|ms| ms.parse().ok());
        starts.iter().filter(|start| ms >= Some(**start)).count()
    };
    let kind = if tablets { "tablets" } else { "vnodes" };
    for nth in 0..=starts.len() {
        let groups = (groups << if tablets { nth } else { 0 }) as usize;
        let mut of_shard = vec![0; shards as usize];
        for key in keys.iter().filter(|key| generation(key) == nth) {
            of_shard[key.shard(shards) as usize] += 1;
        }
        assert_eq!(
            of_shard.iter().sum::<usize>(),
            groups,
            "{kind}: {of_shard:?}"
        );
        let (most, least) = (
            of_shard.iter().max().unwrap(),
            of_shard.iter().min().unwrap(),
        );
        let bound = groups.div_ceil(shards as usize);
        assert!(*most <= bound, "{kind}, {groups} groups: {of_shard:?}");
        let run = of_shard.len().div_ceil(SHARING);
        let instances: Vec<usize> = of_shard.chunks(run).map(|of| of.iter().sum()).collect();
        assert!(
            instances.iter().all(|of| *of <= run * bound),
            "{instances:?}"
        );
        println!(
            "| {kind} | {} | {groups} | {shards} | {least} to {most} | {bound} | {instances:?} |",
            nth + 1
        );
    }
}

#[tokio::test]
async fn no_shard_has_more_than_its_share_in_any_generation() {
    println!(
        "| | generation | groups | shards | of a shard | ceil(groups / shards) | of two instances |"
    );
    println!("|---|---|---|---|---|---|---|");
    for tablets in [false, true] {
        for (groups, shards) in [(4, 4), (10, 3), (10, 4), (37, 16)] {
            spread(tablets, groups, shards).await;
        }
    }
}

fn without_number(key: &str) -> &str {
    key.rsplit_once('@').map_or(key, |(key, _)| key)
}

/// The places that shards have which find no changes, once they are as wanted.
async fn places(rig: &Rig, what: &str, holds: impl Fn(&Checkpoints) -> bool) -> Checkpoints {
    let (mut tasks, mut batches) = rig.follow(0, &Checkpoints::new());
    let mut places = Checkpoints::new();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds(&places) {
        let batch = tokio::time::timeout_at(deadline, batches.recv()).await;
        let batch = batch.unwrap_or_else(|_| panic!("{what}: {places:?}"));
        let batch = batch.expect("it goes on");
        assert!(batch.positions.is_empty());
        apply(&mut places, [&batch]);
    }
    tasks.shutdown().await;
    places
}

/// `start_from = "latest"`, more shards than groups, and a generation that begins while nobody reads.
#[tokio::test]
async fn a_shard_that_has_nothing_to_read_keeps_its_place() {
    let db = Db::start(false).await;
    let Some(node) = db.stand_in() else { return };
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    let mut settings = db.settings(&["t"], 16);
    settings.source.start_from = StartFrom::Latest;
    let rig = Rig::connect(settings.clone()).await.unwrap();
    let all_have = |places: &Checkpoints| {
        let own = |shard| places.keys().any(|k| k.shard(16) == shard);
        (0..16).all(own)
    };
    let what = "each shard finds a place of its own";
    let checkpoints = places(&rig, what, all_have).await;
    drop(rig);

    let at = node.engine().new_generation(Some(now_ms() + 50));
    while now_ms() <= at {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    write(&db, "t", 0..60).await;
    let log = db.log("t").await;
    let rig = Rig::connect(settings).await.unwrap();
    let batches = rig.read(1, &checkpoints, log.len()).await;
    exactly(
        &positions(&batches),
        &log,
        "after a generation that began while down",
    );
}

#[tokio::test]
async fn a_generation_is_not_opened_before_the_old_one_is_acknowledged_everywhere() {
    let db = Db::start(false).await;
    let Some(node) = db.stand_in() else { return };
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    write(&db, "t", 0..5).await;
    let at = node.engine().new_generation(Some(now_ms() + 50));
    tokio::time::sleep(Duration::from_millis(100)).await;
    write(&db, "t", 10..15).await;
    let rig = Rig::connect(db.settings(&["t"], 1)).await.unwrap();
    let mut reader = rig.source.clone().open_shard(0, 1, 0, Checkpoints::new());
    let mut held = Vec::new();
    let newest = format!("/{at}/");
    let is_new =
        |b: &penstock::change::Batch| b.progress.iter().any(|p| p.group.0.contains(&newest));
    // All of the old one, and nothing after it.
    loop {
        let all = positions(&held).len() == 5;
        let patience = Duration::from_millis(if all { 1_500 } else { 20_000 });
        let Ok(batch) = tokio::time::timeout(patience, reader.next()).await else {
            break;
        };
        let batch = batch.unwrap();
        assert!(!is_new(&batch), "the old generation is not acknowledged");
        held.push(batch);
    }
    assert_eq!(positions(&held).len(), 5);
    assert!(rig.source.status().shards[0].waiting_for_generation);
    for batch in &held {
        rig.source.acknowledged(0, &batch.progress);
    }
    let next = tokio::time::timeout(Duration::from_secs(20), reader.next()).await;
    assert!(is_new(&next.expect("it goes on").unwrap()));
}

#[tokio::test]
async fn trouble_of_every_kind_passes_without_loss_or_repeat() {
    let db = Db::start(false).await;
    let Some(node) = db.stand_in() else { return };
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    write(&db, "t", 0..120).await;
    let log = db.log("t").await;
    let mut settings = db.settings(&["t"], 2);
    settings.source.read_timeout = Duration::from_millis(300);
    let retry = &mut settings.source.policies.retry;
    *retry = penstock::policy::backoff::Settings::new(
        Duration::from_millis(1),
        Duration::from_millis(20),
        2.0,
        None,
    )
    .unwrap();
    let rig = Rig::connect(settings).await.unwrap();
    let faults = node.faults();
    for action in [
        Action::Overloaded,
        Action::ReadTimeout,
        Action::ReadFailure,
        Action::Unavailable,
        Action::ServerError("of a bad disk".into()),
        Action::BreakConnection,
        Action::Silence,
    ] {
        faults.inject(Fault::new(action).on_table("t_scylla_cdc_log").times(2));
    }
    for own in ["cdc_generation_timestamps", "cdc_streams_descriptions_v2"] {
        let table = format!("system_distributed.{own}");
        faults.inject(
            Fault::new(Action::ServerError("x".into()))
                .on_table(&table)
                .times(2),
        );
    }
    // So many failures in a row open the breaker; its 30 s are not of interest here.
    let policies = rig.policies.clone();
    let resetting = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            policies.reset_breaker();
        }
    });
    let batches = rig.read(0, &Checkpoints::new(), log.len()).await;
    resetting.abort();
    exactly(&positions(&batches), &log, "at once");
    assert_key_order(&changes(&batches));
    let status = rig.source.status();
    assert!(status.failed_reads >= 18, "{status:?}");
    assert!(status.last_error.is_some());
}

#[tokio::test]
async fn a_dropped_call_loses_nothing() {
    let db = Db::start(false).await;
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    write(&db, "t", 0..80).await;
    let log = db.log("t").await;
    let rig = Rig::connect(db.settings(&["t"], 1)).await.unwrap();
    let mut reader = rig.source.clone().open_shard(0, 1, 0, Checkpoints::new());
    let mut batches = Vec::new();
    let mut micros = 1;
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while positions(&batches).len() < log.len() {
        assert!(std::time::Instant::now() < deadline);
        // Polled once, or for a moment that is another each time.
        micros = micros * 7 % 3001;
        let wait = Duration::from_micros(micros);
        if let Ok(batch) = tokio::time::timeout(wait, reader.next()).await {
            batches.push(batch.unwrap());
        }
    }
    exactly(&positions(&batches), &log, "at once");
}

#[tokio::test]
async fn a_schema_change_is_followed_without_a_restart() {
    let db = Db::start(false).await;
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    let rig = Rig::connect(db.settings(&["t"], 1)).await.unwrap();
    let mut reader = rig.source.clone().open_shard(0, 1, 0, Checkpoints::new());
    let mut next_change = async || loop {
        let batch = tokio::time::timeout(Duration::from_secs(20), reader.next()).await;
        let batch = batch.expect("a batch in time").expect("a batch");
        if !batch.positions.is_empty() {
            let tables = batch.tables.clone();
            return (changes(&[batch]), tables);
        }
    };
    db.run("INSERT INTO t (k, c, v) VALUES (1, 1, 1)").await;
    let (first, v1) = next_change().await;
    assert_eq!(first[0].int("v"), Some(1));

    db.run("ALTER TABLE t ADD tags set<text>").await;
    db.run("UPDATE t SET tags = tags - {'x'}, v = 2 WHERE k = 1 AND c = 1")
        .await;
    let (second, v2) = next_change().await;
    assert_eq!(second[0].column("tags").0, ColumnTag::Removed);
    assert_ne!(v1[0].id, v2[0].id);
    let tags = v2[0].columns.iter().find(|c| c.name == "tags").unwrap();
    assert_eq!(tags.cql_type, "set<text>");

    db.run("ALTER TABLE t DROP tags").await;
    db.run("INSERT INTO t (k, c, v) VALUES (1, 2, 3)").await;
    let (third, v3) = next_change().await;
    assert_eq!(third[0].int("v"), Some(3));
    assert!(v3[0].columns.iter().all(|c| c.name != "tags"));
    assert_eq!(v3[0].columns, v1[0].columns);
}

#[tokio::test]
async fn an_operation_that_nobody_knows_is_kept_as_undecodable() {
    let db = Db::start(false).await;
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    write(&db, "t", 0..3).await;
    let (stream, ..) = *db.log("t").await.first().unwrap();
    db.run(&format!(
        "INSERT INTO t_scylla_cdc_log (\"cdc$stream_id\", \"cdc$time\", \"cdc$batch_seq_no\", \"cdc$operation\", \
         \"cdc$end_of_batch\", k, c) VALUES (0x{stream}, now(), 0, 42, true, 7, 8)"
    ))
    .await;
    let rig = Rig::connect(db.settings(&["t"], 1)).await.unwrap();
    let batches = rig.read(0, &Checkpoints::new(), 4).await;
    let bad: Vec<_> = batches.iter().flat_map(|b| &b.undecodable).collect();
    assert_eq!((bad.len(), positions(&batches).len()), (1, 3));
    assert_eq!(bad[0].error, "unknown cdc$operation 42");
    let raw: serde_json::Value = serde_json::from_slice(&bad[0].raw).unwrap();
    assert_eq!(raw["c"], "00000008");
    let mut all: BTreeSet<_> = positions(&batches).into_iter().collect();
    all.insert(key(&bad[0].position));
    assert_eq!(all, db.log("t").await);
    // Its dead letter acknowledged, it is not read again.
    let mut checkpoints = Checkpoints::new();
    apply(&mut checkpoints, &batches);
    let again = rig.read(1, &checkpoints, 0).await;
    assert!(
        again
            .iter()
            .all(|b| b.positions.is_empty() && b.undecodable.is_empty())
    );
}

#[tokio::test]
async fn where_to_start_is_as_asked_until_there_is_a_checkpoint() {
    let db = Db::start(false).await;
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    write(&db, "t", 0..5).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let middle = now_ms() * 1000;
    tokio::time::sleep(Duration::from_millis(20)).await;
    write(&db, "t", 5..9).await;
    let mut settings = db.settings(&["t"], 1);
    settings.source.start_from = StartFrom::At(middle);
    let rig = Rig::connect(settings.clone()).await.unwrap();
    let from_middle = rig.read(0, &Checkpoints::new(), 4).await;
    assert_eq!(positions(&from_middle).len(), 4);

    tokio::time::sleep(Duration::from_millis(20)).await;
    settings.source.start_from = StartFrom::Latest;
    let rig = Rig::connect(settings.clone()).await.unwrap();
    let checkpoints = places(&rig, "the place is pinned at once", |p| !p.is_empty()).await;
    write(&db, "t", 9..12).await;
    // Another process, later: what came while none was running is read.
    let rig = Rig::connect(settings).await.unwrap();
    let since = rig.read(0, &checkpoints, 3).await;
    assert_eq!(positions(&since).len(), 3);
}

#[tokio::test]
async fn the_limits_are_read_live_and_a_large_backlog_is_read_in_large_steps() {
    let db = Db::start(false).await;
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    write(&db, "t", 0..50).await;
    let mut settings = db.settings(&["t"], 1);
    // A window of 1 ms over the ten seconds of the first generation: 10,000 reads a group without growth.
    settings.source.window = Duration::from_millis(1);
    let rig = Rig::connect(settings.clone()).await.unwrap();
    let batches = rig.read(0, &Checkpoints::new(), 50).await;
    assert_eq!(positions(&batches).len(), 50);
    let windows = rig.source.status().windows;
    settings.pipeline.batch_size = 1000.try_into().unwrap();
    settings.source.page_size = 1000.try_into().unwrap();
    settings.source.window = Duration::from_secs(60);
    rig.retune.send_replace(Arc::new(settings));
    let batches = rig.read(1, &Checkpoints::new(), 50).await;
    assert!(
        batches.iter().any(|b| b.positions.len() > 5),
        "the batch size is live"
    );
    if db.node.is_some() {
        assert!(windows < 4000, "{windows}");
    }
}

#[tokio::test]
async fn progress_without_rows_is_seldom() {
    let db = Db::start(false).await;
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    let rig = Rig::connect(db.settings(&["t"], 1)).await.unwrap();
    let mut reader = rig.source.clone().open_shard(0, 1, 0, Checkpoints::new());
    let mut came = Vec::new();
    while came.len() < 4 {
        let batch = tokio::time::timeout(Duration::from_secs(20), reader.next()).await;
        let batch = batch.expect("the first, then one a second").unwrap();
        assert!(batch.positions.is_empty() && !batch.progress.is_empty());
        came.push(std::time::Instant::now());
    }
    let took = came[3] - came[0];
    assert!(took > Duration::from_millis(1_900), "{took:?}");
}

#[tokio::test]
async fn preimages_ranges_and_statics_are_linked() {
    let db = Db::start(false).await;
    db.run(
        "CREATE TABLE t (k int, c int, s int static, v int, PRIMARY KEY (k, c)) \
         WITH cdc = {'enabled': true, 'preimage': 'full', 'postimage': true}",
    )
    .await;
    db.run("INSERT INTO t (k, c, v) VALUES (1, 1, 10)").await;
    db.run("INSERT INTO t (k, c, v) VALUES (1, 2, 20)").await;
    db.run("BEGIN UNLOGGED BATCH UPDATE t SET v = 11 WHERE k = 1 AND c = 1; UPDATE t SET v = 21 WHERE k = 1 AND c = 2; APPLY BATCH").await;
    db.run("UPDATE t SET s = 5 WHERE k = 1").await;
    db.run("DELETE FROM t WHERE k = 1 AND c > 0 AND c <= 2")
        .await;
    let mut settings = db.settings(&["t"], 1);
    settings.pipeline.batch_size = 100.try_into().unwrap();
    let log = db.log("t").await.len();
    let rig = Rig::connect(settings).await.unwrap();
    let changes = changes(&rig.read(0, &Checkpoints::new(), log).await);
    let updates: Vec<_> = changes
        .iter()
        .filter(|c| c.operation == Operation::Update && c.column("v").0 == ColumnTag::Value)
        .collect();
    assert_eq!(updates.len(), 2);
    for update in updates {
        let (k, v) = (update.int("c").unwrap(), update.int("v").unwrap());
        let linked = |seq: Option<i32>| {
            let (stream, time, _) = update.key;
            let found = changes
                .iter()
                .find(|c| c.key == (stream, time, seq.expect("a link")));
            found.expect("what the link names")
        };
        let (pre, post) = (linked(update.preimage), linked(update.end));
        assert_eq!(
            (pre.operation, pre.int("c"), pre.int("v")),
            (Operation::PreImage, Some(k), Some(k * 10))
        );
        assert_eq!(
            (post.operation, post.int("c"), post.int("v")),
            (Operation::PostImage, Some(k), Some(v))
        );
    }
    let start = changes
        .iter()
        .find(|c| c.operation == Operation::RangeDeleteStartExclusive)
        .unwrap();
    let end = changes
        .iter()
        .find(|c| c.operation == Operation::RangeDeleteEndInclusive)
        .unwrap();
    assert_eq!(start.end, Some(end.key.2));
    let statics: Vec<_> = changes
        .iter()
        .filter(|c| c.operation == Operation::Update && c.column("s").0 == ColumnTag::Value)
        .collect();
    assert_eq!(statics.len(), 1);
    assert_eq!(statics[0].column("c").0, ColumnTag::Null);
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_in_one_clear_line() {
    let db = Db::start(false).await;
    db.run(&format!("CREATE TABLE orders {TABLE}")).await;
    db.run("CREATE TABLE plain (k int PRIMARY KEY, v int)")
        .await;
    db.run("CREATE TABLE hits (k int PRIMARY KEY, n counter)")
        .await;
    let refusal = async |tables: &[&str]| {
        let error = Rig::connect(db.settings(tables, 1))
            .await
            .err()
            .expect("a refusal");
        assert!(!error.is_retryable());
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    };
    // What may be there later is told of, and waited for.
    let absent = async |tables: &[&str]| {
        let rig = Rig::connect(db.settings(tables, 1)).await.unwrap();
        let absent = rig.source.absent();
        assert_eq!(absent.len(), 1);
        let text = absent[0].1.to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    };
    let ks = &db.keyspace;
    let text = absent(&["orders", "plain"]).await;
    assert!(
        text.contains(&format!(
            "ALTER TABLE {ks}.plain WITH cdc = {{'enabled': true}}"
        )),
        "{text}"
    );
    let text = absent(&["order"]).await;
    assert!(
        text.contains("does not exist") && text.contains("perhaps orders"),
        "{text}"
    );
    let text = refusal(&["hits"]).await;
    assert!(text.contains("counter column n"), "{text}");
    let text = refusal(&["orders_scylla_cdc_log"]).await;
    assert!(text.contains("base table orders"), "{text}");
    let mut settings = db.settings(&["orders"], 1);
    settings.source.keyspace = "nowhere".into();
    let rig = Rig::connect(settings).await.unwrap();
    let absent = rig.source.absent();
    assert!(
        matches!(absent[0].1, SourceError::MissingKeyspace { .. }),
        "{absent:?}"
    );
}

#[tokio::test]
async fn unreachable_nodes_are_said_to_be() {
    let nobody = "127.0.0.1:1";
    let mut settings = settings::settings("p", "127.0.0.1:1", 1);
    settings.source.nodes = Nodes::At(vec![nobody.to_owned()]);
    let error = Rig::connect(settings.clone()).await.err().unwrap();
    assert!(error.is_retryable());
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("cannot reach ScyllaDB at {nobody}: ")),
        "{text}"
    );
    assert!(!text.contains('\n'));
    settings.source.nodes = Nodes::Embedded;
    let error = Rig::connect(settings).await.err().unwrap();
    assert!(matches!(error, SourceError::NoEmbeddedNode));
}

#[tokio::test]
async fn a_vnode_with_more_streams_than_one_read_may_name_is_read() {
    let options = scylla_double::Options {
        vnodes: 1,
        shards_per_vnode: 250,
        ..scylla_double::Options::default()
    };
    let db = Db::with(false, options).await;
    db.run(&format!("CREATE TABLE t {TABLE}")).await;
    for k in 0..200 {
        db.run(&format!("INSERT INTO t (k, c, v) VALUES ({k}, 0, 0)"))
            .await;
    }
    let log = db.log("t").await;
    let rig = Rig::connect(db.settings(&["t"], 2)).await.unwrap();
    let batches = rig.read(0, &Checkpoints::new(), log.len()).await;
    exactly(&positions(&batches), &log, "at once");
}
