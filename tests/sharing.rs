//! Several instances of one pipeline, each a process: started, stopped, killed and held up under load.
//!
//! What needs a group that misses a member who says nothing needs a real broker (`PENSTOCK_TEST_BROKERS`): the
//! stand-in's group waits for it for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message};
use serde_json::Value;
use testkit::process;
use testkit::process::{LONG, Running, Setup, World, asked, complete_and_ordered, keys};

const SHARDS: usize = 6;

async fn world() -> World {
    shared(Setup::default()).await
}

async fn shared(setup: Setup) -> World {
    let mut world = World::with(setup).await;
    world.set("pipeline.delivery", "exactly-once");
    world.set("pipeline.instances", "shared");
    // The stand-in's group waits for ever for a member that it missed: there a busy machine is to make it miss none.
    let real = std::env::var_os("PENSTOCK_TEST_BROKERS").is_some();
    let session = if real { "6s" } else { "20s" };
    world.set("pipeline.session_timeout", session);
    world.set("pipeline.shards", SHARDS);
    world
}

/// Says so, and returns `false`, where the group is a stand-in's.
fn misses_the_silent() -> bool {
    let real = std::env::var_os("PENSTOCK_TEST_BROKERS").is_some();
    if !real {
        eprintln!(
            "skipped: needs a broker whose groups miss a silent member (PENSTOCK_TEST_BROKERS)"
        );
    }
    real
}

async fn get(running: &Running, path: &str) -> (u16, Value) {
    let answer = reqwest::get(format!("http://{}{path}", running.admin())).await;
    let answer = answer.unwrap_or_else(|e| panic!("no answer: {e:?}\n{}", running.text()));
    (answer.status().as_u16(), answer.json().await.expect("JSON"))
}

async fn owned(running: &Running) -> BTreeSet<u64> {
    let (_, status) = get(running, "/status").await;
    let owned = status["membership"]["owned"].as_array().cloned();
    let owned = owned.unwrap_or_default();
    owned.iter().filter_map(Value::as_u64).collect()
}

/// Waits until these share all shards, none of them without one if there are enough, and every shard is open.
async fn settled(instances: &[&Running]) {
    let deadline = Instant::now() + LONG;
    loop {
        let (mut all, mut least, mut open) = (Vec::new(), SHARDS, 0);
        for running in instances {
            let own = owned(running).await;
            least = least.min(own.len());
            all.extend(own);
            let (_, status) = get(running, "/status").await;
            open += status["shards"].as_array().map_or(0, Vec::len);
        }
        let distinct: BTreeSet<u64> = all.iter().copied().collect();
        let fair = least >= SHARDS / instances.len();
        if all.len() == SHARDS && distinct.len() == SHARDS && open == SHARDS && fair {
            return;
        }
        let logs: Vec<String> = instances.iter().map(|r| r.text()).collect();
        assert!(
            Instant::now() < deadline,
            "not shared out within {LONG:?}: {all:?}, {open} open\n{}",
            logs.join("\n----\n")
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_come_and_go_share_the_shards_and_repeat_nothing() {
    let world = world().await;
    let keys = keys(24);
    let first = world.start(1);
    first.await_line("all supervised stages started", LONG);
    settled(&[&first]).await;
    world.write(&keys, 0, 20).await;
    // Under load: what the shards that move have in hand is settled before they do.
    let second = world.start(2);
    world.write(&keys, 20, 20).await;
    settled(&[&first, &second]).await;
    world.write(&keys, 40, 20).await;
    let third = world.start(3);
    world.write(&keys, 60, 20).await;
    settled(&[&first, &second, &third]).await;
    world.write(&keys, 80, 20).await;
    let log = first.stop_cleanly();
    assert!(log.contains("left the group"), "{log}");
    world.write(&keys, 100, 20).await;
    settled(&[&second, &third]).await;
    second.stop_cleanly();
    world.write(&keys, 120, 20).await;
    settled(&[&third]).await;
    world.await_records(24 * 140, LONG, &third);
    third.stop_cleanly();
    let repeats = complete_and_ordered(&world.seen(), &keys, 140);
    assert_eq!(repeats, 0, "shards were settled before they were handed on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_without_shards_is_a_standby_and_ready() {
    let mut world = world().await;
    world.set("pipeline.shards", 1);
    let first = world.start(1);
    first.await_line("shard taken over", LONG);
    let second = world.start(2);
    second.await_line("shards assigned to this instance", LONG);
    let (mut owners, mut standbys) = (0, 0);
    let deadline = Instant::now() + LONG;
    while (owners, standbys) != (1, 1) {
        assert!(
            Instant::now() < deadline,
            "{}{}",
            first.text(),
            second.text()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
        (owners, standbys) = (0, 0);
        for running in [&first, &second] {
            let (code, ready) = get(running, "/readyz").await;
            match (code, ready["membership"]["owned"].as_array().map(Vec::len)) {
                (200, Some(0)) => standbys += 1,
                (200, Some(1)) => owners += 1,
                // In the middle of a change.
                _ => {}
            }
        }
    }
    // The standby's stages have nothing to do, and nothing is wrong with them.
    for running in [&first, &second] {
        let well = |report: &Value| report["system"]["status"] == "healthy";
        let deadline = Instant::now() + LONG;
        loop {
            let (_, report) = get(running, "/health").await;
            if well(&report) {
                break;
            }
            assert!(Instant::now() < deadline, "{report}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let (one, other) = (first.metrics().await, second.metrics().await);
    let owned = |m: &process::Metrics| m.sum("penstock_shards_owned", &[]);
    assert_eq!(owned(&one) + owned(&other), 1.0);
    let (code, printed) = second.penstock(&["status"]);
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("shared"), "{printed}");
    // Either knows whose the shard is, and asks the other where it is not its own.
    for running in [&first, &second] {
        let deadline = Instant::now() + LONG;
        let printed = loop {
            // The claim of who took it last may be on its way, or has yet to be read.
            let (code, printed) = running.penstock(&["status", "--all", "--json"]);
            if code == Some(0) && printed.contains("owner") {
                break printed;
            }
            assert!(Instant::now() < deadline, "{printed}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let shards: Value = serde_json::from_str(&printed).expect("JSON");
        let shards = shards.as_array().expect("a list");
        assert_eq!(shards.len(), 1, "{printed}");
        let owner = shards[0]["owner"]["admin"].as_str();
        let addresses = [first.admin(), second.admin()];
        assert!(owner.is_some_and(|o| addresses.iter().any(|a| a == o)));
        for key in ["read", "lag_seconds", "per_second"] {
            assert!(shards[0][key].is_number(), "{key}: {printed}");
        }
    }
    second.stop_cleanly();
    first.stop_cleanly();
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_would_not_agree_on_the_shards_do_not_start() {
    let mut world = world().await;
    let running = world.start(1);
    settled(&[&running]).await;
    running.stop_cleanly();
    for other in [SHARDS - 1, SHARDS + 1] {
        world.set("pipeline.shards", other);
        let mut refused = world.start(2);
        let status = refused.wait(LONG);
        assert_eq!(status.code(), Some(1), "{}", refused.text());
        let reason = format!("it has {SHARDS} partitions, and pipeline.shards is {other}");
        assert!(refused.text().contains(&reason), "{}", refused.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_keeps_an_instances_shards_and_repeats_nothing() {
    let world = world().await;
    let keys = keys(24);
    let (first, second) = (world.start(1), world.start(2));
    settled(&[&first, &second]).await;
    let before = (owned(&first).await, owned(&second).await);
    world.write(&keys, 0, 20).await;
    let text = std::fs::read_to_string(world.config()).expect("pipeline.toml");
    let renamed = text.replace("name = \"outbox-router\"", "name = \"router\"");
    world.save(&renamed);
    for running in [&first, &second] {
        running.await_line("configuration applied", LONG);
    }
    world.write(&keys, 20, 20).await;
    settled(&[&first, &second]).await;
    assert_eq!(before, (owned(&first).await, owned(&second).await));
    // Other clients join anew.
    world.save(&format!(
        "{renamed}\n[sink.properties]\n\"linger.ms\" = 7\n"
    ));
    for running in [&first, &second] {
        let deadline = Instant::now() + LONG;
        while running.count("configuration applied") < 2 {
            assert!(Instant::now() < deadline, "{}", running.text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    world.write(&keys, 40, 20).await;
    settled(&[&first, &second]).await;
    world.await_records(24 * 60, LONG, &first);
    first.stop_cleanly();
    second.stop_cleanly();
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 60), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shards_of_one_that_is_killed_go_to_the_others() {
    if !misses_the_silent() {
        return;
    }
    let world = world().await;
    let keys = keys(24);
    let (mut first, second) = (world.start(1), world.start(2));
    settled(&[&first, &second]).await;
    world.write(&keys, 0, 40).await;
    first.signal("-KILL");
    first.wait(LONG);
    let killed = Instant::now();
    world.write(&keys, 40, 40).await;
    settled(&[&second]).await;
    eprintln!(
        "the other had all shards {:?} after the kill",
        killed.elapsed()
    );
    world.await_records(24 * 80, LONG, &second);
    second.stop_cleanly();
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 80), 0);
}

/// Held up for longer than its session, an instance finds its shards taken: nothing that it had under way is seen.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_held_up_for_too_long_writes_nothing_more() {
    if !misses_the_silent() {
        return;
    }
    let world = world().await;
    let keys = keys(24);
    let (first, second) = (world.start(1), world.start(2));
    settled(&[&first, &second]).await;
    world.write(&keys, 0, 40).await;
    first.signal("-STOP");
    world.write(&keys, 40, 40).await;
    settled(&[&second]).await;
    world.write(&keys, 80, 20).await;
    world.await_records(24 * 100, LONG, &second);
    first.signal("-CONT");
    // It may come back, as a member like any other.
    settled(&[&first, &second]).await;
    world.write(&keys, 100, 20).await;
    world.await_records(24 * 120, LONG, &second);
    first.stop_cleanly();
    second.stop_cleanly();
    let repeats = complete_and_ordered(&world.seen(), &keys, 120);
    eprintln!(
        "held up past its session: {} changes, 0 lost, {repeats} repeated, in order",
        24 * 120
    );
    assert_eq!(repeats, 0);
}

/// Where there is room for one process, the one that came first ends, and does not fight.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_would_be_alone_the_first_ends_with_a_code_of_its_own() {
    let mut world = World::new("").await;
    world.set("pipeline.delivery", "exactly-once");
    let keys = keys(24);
    let mut first = world.start(1);
    world.write(&keys, 0, 20).await;
    world.await_records(24 * 20, LONG, &first);
    let second = world.start(2);
    second.await_line("all supervised stages started", LONG);
    let mut written = 20;
    let deadline = Instant::now() + LONG;
    while !first.text().contains("another process runs this pipeline") {
        assert!(
            Instant::now() < deadline,
            "{}\n{}",
            first.text(),
            second.text()
        );
        world.write(&keys, written, 1).await;
        written += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let status = first.wait(LONG);
    assert_eq!(status.code(), Some(69), "{}", first.text());
    world.write(&keys, written, 10).await;
    world.await_records(24 * (written as usize + 10), LONG, &second);
    second.stop_cleanly();
    assert_eq!(complete_and_ordered(&world.seen(), &keys, written + 10), 0);
}

/// Fewer shards than before: whoever still writes one that is no more is fenced too, although nobody takes it.
#[tokio::test(flavor = "multi_thread")]
async fn shards_that_are_no_more_are_taken_from_whoever_has_them() {
    let mut world = World::new("").await;
    world.set("pipeline.delivery", "exactly-once");
    world.set("pipeline.shards", SHARDS);
    let keys = keys(24);
    let closed = "a shard of an earlier number of shards was closed";
    let mut first = world.start(1);
    world.write(&keys, 0, 20).await;
    world.await_records(24 * 20, LONG, &first);
    first.signal("-STOP");
    // What it finds to do when it goes on, in all of its shards, is done by then.
    world.write(&keys, 20, 20).await;
    world.set("pipeline.shards", 2);
    let second = world.start(2);
    world.await_records(24 * 40, LONG, &second);
    assert_eq!(second.count(closed), SHARDS - 2, "{}", second.text());
    first.signal("-CONT");
    assert_eq!(first.wait(LONG).code(), Some(69), "{}", first.text());
    second.stop_cleanly();
    let third = world.start(3);
    world.write(&keys, 40, 10).await;
    world.await_records(24 * 50, LONG, &third);
    assert_eq!(third.count(closed), 0, "that was done: {}", third.text());
    third.stop_cleanly();
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 50), 0);
}

/// A static member sends no word when it stops, so its shards are kept for it for a session.
#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_that_is_started_again_keeps_its_shards() {
    let mut world = world().await;
    world.set("pipeline.session_timeout", "40s");
    let keys = keys(24);
    let start = |round, id| {
        let id = ("PENSTOCK_PIPELINE__GROUP_INSTANCE_ID", id);
        world.start_with(round, &[id])
    };
    let (first, second) = (start(1, "one"), start(2, "two"));
    settled(&[&first, &second]).await;
    world.write(&keys, 0, 20).await;
    let before = owned(&first).await;
    let heard = |running: &Running| {
        let news = ["shards assigned", "shards go to another instance"];
        news.map(|line| running.count(line))
    };
    let noticed = heard(&second);
    first.stop_cleanly();
    world.write(&keys, 20, 20).await;
    let again = start(3, "one");
    settled(&[&again, &second]).await;
    assert_eq!(owned(&again).await, before);
    world.write(&keys, 40, 20).await;
    world.await_records(24 * 60, LONG, &again);
    assert_eq!(heard(&second), noticed, "{}", second.text());
    again.stop_cleanly();
    second.stop_cleanly();
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 60), 0);
}

/// A sink that hangs is let go of when the group's patience ends, and the next owner makes good.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_cannot_be_drained_is_handed_on_in_time() {
    let mut world = world().await;
    // That is how long it is waited for.
    world.set("pipeline.session_timeout", "6s");
    let keys = keys(24);
    let first = world.start_faulty(1, "stage::sink=1*off->return(hang)");
    settled(&[&first]).await;
    world.write(&keys, 0, 20).await;
    let second = world.start(2);
    settled(&[&first, &second]).await;
    assert!(
        first.text().contains("not drained in time"),
        "{}",
        first.text()
    );
    // What hangs in the first is the second's once the first is gone.
    drop(first);
}

/// What arrives, and when, as a reader of committed records sees it.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<BTreeMap<String, Vec<(u32, Instant)>>>,
}

impl Reader {
    fn start(world: &World) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &world.cluster.brokers)
            .set("group.id", "test-watcher")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "earliest")
            .set("topic.metadata.refresh.interval.ms", "200")
            .set("fetch.wait.max.ms", "10")
            .create()
            .expect("a consumer");
        consumer.subscribe(&[&world.topic()]).expect("subscribed");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut seen: BTreeMap<String, Vec<(u32, Instant)>> = BTreeMap::new();
            while !stopped.load(Relaxed) {
                let Some(Ok(m)) = consumer.poll(Duration::from_millis(20)) else {
                    continue;
                };
                let text = |bytes: Option<&[u8]>| {
                    String::from_utf8(bytes.unwrap_or_default().to_vec()).expect("UTF-8")
                };
                let number = text(m.payload()).parse().expect("a number");
                let of_key = seen.entry(text(m.key())).or_default();
                of_key.push((number, Instant::now()));
            }
            seen
        });
        Self { stop, thread }
    }

    fn finish(self) -> BTreeMap<String, Vec<(u32, Instant)>> {
        self.stop.store(true, Relaxed);
        self.thread.join().expect("it reads")
    }
}

/// The longest that any key had nothing arrive, from its first arrival to its last.
fn longest_gap(seen: &BTreeMap<String, Vec<(u32, Instant)>>) -> Duration {
    let gaps = seen.values().flat_map(|of_key| of_key.windows(2));
    let gaps = gaps.map(|pair| pair[1].1.duration_since(pair[0].1));
    gaps.max().unwrap_or_default()
}

/// Three instances are replaced one by one under a steady load.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_keeps_every_key_going_and_repeats_nothing() {
    let world = world().await;
    let keys = keys(24);
    let mut running: Vec<Running> = (0..3).map(|n| world.start(n)).collect();
    settled(&running.iter().collect::<Vec<_>>()).await;
    let reader = Reader::start(&world);
    let restarted = AtomicBool::new(false);
    let load = async {
        let mut written = 0;
        while !restarted.load(Relaxed) {
            world.write(&keys, written, 1).await;
            written += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        written
    };
    let restarts = async {
        for n in 3..6 {
            let old = running.remove(0);
            running.push(world.start(n));
            settled_but(&running, &old).await;
            tokio::task::block_in_place(|| old.stop_cleanly());
            settled(&running.iter().collect::<Vec<_>>()).await;
        }
        restarted.store(true, Relaxed);
    };
    let (written, ()) = tokio::join!(load, restarts);
    world.await_records(24 * written as usize, LONG, &running[0]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let seen = reader.finish();
    let gap = longest_gap(&seen);
    eprintln!("rolling restart of three: {written} changes a key, longest gap of a key {gap:?}");
    for running in running {
        running.stop_cleanly();
    }
    assert_eq!(complete_and_ordered(&world.seen(), &keys, written), 0);
    assert!(
        gap < Duration::from_secs(20),
        "a key had nothing for {gap:?}"
    );
}

/// Within this time, until all keys are seen again as soon after their write as before it; and what was usual then.
fn as_before(
    seen: &BTreeMap<String, Vec<(u32, Instant)>>,
    written: &[Instant],
    within: Range<Instant>,
) -> (Duration, Duration) {
    // What a machine that is busy with other things adds.
    const SLACK: Duration = Duration::from_millis(250);
    let lags: Vec<(Instant, Duration)> = seen
        .values()
        .flatten()
        .map(|(number, at)| (*at, at.saturating_duration_since(written[*number as usize])))
        .collect();
    let since = within.start;
    let steady = since.checked_sub(Duration::from_secs(2)).unwrap_or(since);
    let before = lags.iter().filter(|(at, _)| (steady..since).contains(at));
    let usual = before.map(|(_, lag)| *lag).max().unwrap_or_default();
    let late = lags
        .iter()
        .filter(|(at, lag)| within.contains(at) && *lag > usual + SLACK);
    let took = late.map(|(at, _)| at.duration_since(since)).max();
    (took.unwrap_or_default(), usual)
}

/// One of two instances ends, cleanly or not, under a steady load, `PENSTOCK_TEST_ROUNDS` times: how soon all keys are
/// where they would have been without it.
#[tokio::test(flavor = "multi_thread")]
async fn all_is_as_before_soon_after_a_stop_and_after_a_kill() {
    let rounds = asked("PENSTOCK_TEST_ROUNDS", 1);
    let mut ways = vec!["-TERM"];
    if misses_the_silent() {
        ways.push("-KILL");
    }
    let world = world().await;
    let keys = keys(24);
    let stays = world.start(0);
    settled(&[&stays]).await;
    let reader = Reader::start(&world);
    let over = AtomicBool::new(false);
    let load = async {
        let mut written = Vec::new();
        while !over.load(Relaxed) {
            written.push(Instant::now());
            world.write(&keys, written.len() as u32 - 1, 1).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        written
    };
    let ends = async {
        let (mut ended, mut log) = (Vec::new(), 0);
        for way in ways.iter().cycle().take(ways.len() * rounds as usize) {
            log += 1;
            let mut goes = world.start(log);
            settled(&[&stays, &goes]).await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            let at = Instant::now();
            goes.signal(way);
            let status = tokio::task::block_in_place(|| goes.wait(LONG));
            assert_eq!(status.code(), (*way == "-TERM").then_some(0));
            settled(&[&stays]).await;
            let taken = at.elapsed();
            tokio::time::sleep(Duration::from_secs(3)).await;
            ended.push((*way, at..Instant::now(), taken));
        }
        over.store(true, Relaxed);
        ended
    };
    let (written, ended) = tokio::join!(load, ends);
    world.await_records(24 * written.len(), LONG, &stays);
    let seen = reader.finish();
    stays.stop_cleanly();
    for (way, within, taken) in ended {
        let (took, usual) = as_before(&seen, &written, within);
        eprintln!(
            "{way}: all shards with the other after {taken:.2?}, all as before after {took:.2?} (a change is seen after \
             {usual:.2?} at most before it; session 6 s)"
        );
        // A session, and what a stop may take, at the very most.
        assert!(took < Duration::from_secs(20), "{way}: {took:?}");
    }
    let repeats = complete_and_ordered(&world.seen(), &keys, written.len() as u32);
    assert_eq!(repeats, 0);
}

/// The new one has its share while the old one still has its own.
async fn settled_but(running: &[Running], old: &Running) {
    let mut all: Vec<&Running> = running.iter().collect();
    all.push(old);
    settled(&all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_generation_of_vnodes_is_opened_when_the_old_one_is_done_in_every_instance() {
    generations(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_generation_of_tablets_is_opened_when_the_old_one_is_done_in_every_instance() {
    generations(true).await;
}

/// A new stream generation spreads the keys anew over shards and instances; one instance is slow with what it has of
/// the old one.
async fn generations(tablets: bool) {
    let setup = Setup {
        tablets,
        ..Setup::default()
    };
    let world = shared(setup).await;
    let keys = keys(24);
    let slow = world.start_faulty(1, "stage::sink=sleep(400)");
    slow.await_line("shards assigned to this instance", LONG);
    let quick = world.start(2);
    settled(&[&slow, &quick]).await;
    let mut written = 0;
    for _ in 0..4 {
        world.write(&keys, written, 30).await;
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
        let (engine, at) = (world.node.engine(), Some(now.as_millis() as i64 + 100));
        let begins = match tablets {
            true => engine.split_tablets("ks", "outbox", at).expect("split"),
            false => engine.new_generation(at),
        };
        let left = begins - now.as_millis() as i64;
        tokio::time::sleep(Duration::from_millis(left.max(0) as u64 + 20)).await;
        world.write(&keys, written + 30, 10).await;
        written += 40;
    }
    world.await_records(24 * written as usize, 2 * LONG, &quick);
    let repeats = complete_and_ordered(&world.seen(), &keys, written);
    assert_eq!(repeats, 0);
    for running in [&slow, &quick] {
        assert!(
            running.count("reading a stream generation") >= 15,
            "{}",
            running.text()
        );
    }
    slow.stop_cleanly();
    quick.stop_cleanly();
}

/// Row 45: whichever instance makes the topic again, each writes into it what it knows of its own shards.
#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_that_were_deleted_are_written_anew_by_every_instance() {
    let world = world().await;
    let keys = keys(24);
    let mut instances = vec![world.start(1)];
    settled(&[&instances[0]]).await;
    instances.push(world.start(2));
    settled(&[&instances[0], &instances[1]]).await;
    world.write(&keys, 0, 20).await;
    world.await_records(24 * 20, LONG, &instances[0]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let operator = testkit::broker::Operator::new(&world.cluster.brokers);
    operator
        .delete(&format!("penstock.{}.checkpoints", world.name))
        .await;
    world.write(&keys, 20, 20).await;
    let anew = "the checkpoints are written anew";
    for instance in &instances {
        instance.await_line(anew, LONG);
    }
    // By each shard; but one that is handed on meanwhile is written by another.
    let patience = Instant::now() + Duration::from_secs(20);
    while instances.iter().map(|i| i.count(anew)).sum::<usize>() < SHARDS
        && Instant::now() < patience
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.await_records(24 * 40, LONG, &instances[0]);
    settled(&[&instances[0], &instances[1]]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Both are killed: what a third one goes on from is what they wrote into the new topic.
    for instance in &mut instances {
        instance.signal("-KILL");
        instance.wait(LONG);
    }
    let mut world = world;
    world.set("pipeline.instances", "one");
    let third = world.start(3);
    world.write(&keys, 40, 10).await;
    world.await_records(24 * 50, LONG, &third);
    third.stop_cleanly();
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 50), 0);
}

/// What is done to one of the instances.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Start,
    Stop,
    Kill,
    /// For longer than a session.
    HoldUp,
}

/// Up to five instances, started, stopped, killed and held up at random moments under load: `PENSTOCK_TEST_ROUNDS` deeds, by
/// `PENSTOCK_TEST_SEED`. On a stand-in only those that its groups notice.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_done_to_instances_nothing_is_lost_or_repeated() {
    let seed = asked("PENSTOCK_TEST_SEED", rand::random::<u32>());
    let rounds = asked("PENSTOCK_TEST_ROUNDS", 6);
    eprintln!("PENSTOCK_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed.into());
    let world = world().await;
    let keys = keys(24);
    let mut log = 0;
    let mut start = || {
        log += 1;
        world.start(log)
    };
    let mut running = vec![start(), start()];
    settled(&running.iter().collect::<Vec<_>>()).await;
    let over = AtomicBool::new(false);
    let load = async {
        let mut written = 0;
        while !over.load(Relaxed) {
            world.write(&keys, written, 1).await;
            written += 1;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        written
    };
    let deeds = async {
        let real = misses_the_silent();
        let mut done: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..rounds {
            let deed = match random.random_range(0..10) {
                _ if running.is_empty() => Deed::Start,
                0..=3 if running.len() < 5 => Deed::Start,
                4..=6 if real => Deed::Kill,
                7 if real => Deed::HoldUp,
                _ => Deed::Stop,
            };
            *done.entry(format!("{deed:?}")).or_default() += 1;
            let at = random.random_range(0..running.len().max(1));
            match deed {
                Deed::Start => running.push(start()),
                Deed::Stop => {
                    let one = running.remove(at);
                    // Before it listens to signals, one ends it as any process.
                    one.await_line("admin interface listens", LONG);
                    tokio::task::block_in_place(|| one.stop_cleanly());
                }
                Deed::Kill => {
                    let mut one = running.remove(at);
                    one.signal("-KILL");
                    tokio::task::block_in_place(|| one.wait(LONG));
                }
                Deed::HoldUp => {
                    running[at].signal("-STOP");
                    tokio::time::sleep(Duration::from_secs(random.random_range(1..10))).await;
                    running[at].signal("-CONT");
                }
            }
            let pause = Duration::from_millis(random.random_range(0..3_000));
            tokio::time::sleep(pause).await;
        }
        running.push(start());
        settled(&running.iter().collect::<Vec<_>>()).await;
        over.store(true, Relaxed);
        done
    };
    let (written, done) = tokio::join!(load, deeds);
    world.await_records(24 * written as usize, 2 * LONG, &running[0]);
    let repeats = complete_and_ordered(&world.seen(), &keys, written);
    eprintln!(
        "{done:?}: {} changes, 0 lost, {repeats} repeated, in order",
        24 * written
    );
    assert_eq!(repeats, 0, "seed {seed}");
    for running in running {
        running.stop_cleanly();
    }
}
