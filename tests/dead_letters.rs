//! Single bad changes, end to end by the real program: kept, counted, replayed; and a stage that makes too many.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use scylla::statement::batch::{Batch, BatchType};
use scylla::value::CqlTimeuuid;
use testkit::broker::{Flow, Valve, read_all};
use testkit::plugins;
use testkit::process::{LONG, Running, Setup, World, asked, complete_and_ordered, keys};
use uuid::Uuid;

/// Two transforms: the first misbehaves where a change's column `fault` says so and forwards it where that says
/// `forward`; the second routes it.
async fn world(brokers: Option<String>, extra: &str) -> World {
    let router = plugins::plugin("outbox-router");
    let transforms = format!(
        "[[transform]]\nname = \"checks\"\nplugin = \"checks.wasm\"\nsettings = {{ topic_prefix = \"{{name}}.\" }}\n\
         [[transform]]\nname = \"router\"\nplugin = \"{}\"\nsettings = {{ topic_prefix = \"{{name}}.\" }}\n",
        router.display()
    );
    let world = World::with(Setup {
        brokers,
        columns: "id text, fault text, ",
        transforms: Some(transforms),
        extra: extra.to_owned(),
        ..Setup::default()
    })
    .await;
    install(&world, "test-faults");
    world
}

/// Puts a plugin where the pipeline looks for its first transform, as a build would.
fn install(world: &World, plugin: &str) {
    let aside = world.dir.path().join("checks.wasm.new");
    std::fs::copy(plugins::plugin(plugin), &aside).expect("copied");
    std::fs::rename(&aside, world.dir.path().join("checks.wasm")).expect("renamed");
}

/// Writes the events `from..to` of every key; `fault` says what is to become of each.
async fn write(
    world: &World,
    keys: &[Uuid],
    events: std::ops::Range<u32>,
    fault: impl Fn(usize, u32) -> &'static str,
) {
    let cql = "INSERT INTO ks.outbox (aggregate_id, event_id, aggregate_type, event_type, payload, id, fault) \
               VALUES (?, ?, 'order', 'order.created', ?, 'x', ?)";
    let insert = world.session.prepare(cql).await.expect("prepared");
    let mut batch = Batch::new(BatchType::Unlogged);
    for _ in keys {
        batch.append_statement(insert.clone());
    }
    for n in events {
        let row = |(k, key): (usize, &Uuid)| {
            let event = CqlTimeuuid::from(Uuid::now_v1(&[1, 2, 3, 4, 5, 6]));
            (*key, event, n.to_string(), fault(k, n))
        };
        let values: Vec<_> = keys.iter().enumerate().map(row).collect();
        world.session.batch(&batch, values).await.expect("written");
    }
}

/// Waits until the pipeline is through with this many changes.
async fn await_done(running: &Running, changes: usize, within: Duration) {
    running
        .await_metrics("every change is done", within, |m| {
            m.sum("penstock_changes_done_total", &[]) >= changes as f64
        })
        .await;
}

/// Long form, 100,000 changes: `cargo xtask proof poison`.
#[tokio::test(flavor = "multi_thread")]
async fn one_change_that_panics_the_plugin_is_one_dead_letter_and_replay_delivers_it() {
    let changes = asked("PENSTOCK_TEST_CHANGES", 5_000);
    let world = world(None, "").await;
    let keys = keys(50);
    let each = changes / keys.len() as u32;
    let total = keys.len() * each as usize;
    let (bad_key, bad_event) = (7, each / 2);
    let running = world.start(1);
    running.await_line("all supervised stages started", LONG);
    let began = Instant::now();
    write(&world, &keys, 0..each, |k, n| {
        if (k, n) == (bad_key, bad_event) {
            "panic"
        } else {
            "forward"
        }
    })
    .await;
    await_done(&running, total, 10 * LONG).await;
    // Done is delivered; what a reader sees is committed, a moment later.
    world.await_records(total - 1, LONG, &running);
    let took = began.elapsed();

    // All but one, in order, each once.
    let without_one = |seen: &BTreeMap<String, Vec<u32>>| {
        for (k, key) in keys.iter().enumerate() {
            let expected: Vec<u32> = (0..each)
                .filter(|n| (k, *n) != (bad_key, bad_event))
                .collect();
            assert_eq!(seen[&key.to_string()], expected, "{key}");
        }
    };
    let seen = world.seen();
    without_one(&seen);
    let records: usize = seen.values().map(Vec::len).sum();
    assert_eq!(records, total - 1);
    let topic = format!("{}.dead-letters", world.name);
    assert_eq!(read_all(&world.cluster.brokers, &topic).len(), 1);
    let metrics = running.metrics().await;
    assert_eq!(metrics.sum("penstock_dead_letters_total", &[]), 1.0);
    assert_eq!(metrics.sum("penstock_restarts_total", &[]), 0.0);

    let (code, list) = running.answer(&["dead-letters", "list"]);
    let [line] = &list.lines().collect::<Vec<_>>()[..] else {
        panic!("not one line: {list}")
    };
    assert_eq!(code, Some(0));
    assert!(line.contains("transform.checks  ks.outbox  "), "{line}");
    assert!(line.contains("asked to panic"), "{line}");
    let id = line.split_whitespace().next().expect("an id");
    let (code, shown) = running.penstock(&["dead-letters", "show", id]);
    assert_eq!(code, Some(0), "{shown}");
    assert!(
        shown.contains(&keys[bad_key].to_string().replace('-', "")),
        "{shown}"
    );
    let (code, none) = running.answer(&["dead-letters", "list", "--stage", "sink"]);
    assert_eq!((code, none.as_str()), (Some(0), ""));

    // The plugin is as it was: the letter stays, with one attempt more.
    let (code, again) = running.penstock(&["dead-letters", "replay"]);
    assert_eq!(code, Some(0), "{again}");
    assert!(
        again.starts_with(id) && again.contains("failed: "),
        "{again}"
    );
    let (_, shown) = running.answer(&["dead-letters", "show", id]);
    let attempts = |shown: &str| -> u32 {
        let list: serde_json::Value = serde_json::from_str(shown).expect("JSON");
        list[0]["attempts"].as_u64().expect("a number") as u32
    };
    assert!(attempts(&shown) > 1, "{shown}");

    install(&world, "outbox-router");
    running.await_line("configuration applied", LONG);
    let (code, replayed) = running.answer(&["dead-letters", "replay"]);
    assert_eq!(
        (code, replayed.trim()),
        (Some(0), format!("{id}  delivered").as_str())
    );
    assert_eq!(running.answer(&["dead-letters", "list"]).1, "");
    assert_eq!(running.answer(&["dead-letters", "replay"]).1, "");
    let mut seen = world.seen();
    let of_key = seen
        .get_mut(&keys[bad_key].to_string())
        .expect("the key's records");
    assert_eq!(of_key.pop(), Some(bad_event), "it comes last");
    without_one(&seen);
    running.stop_cleanly();
    println!(
        "1 of {total} changes panics the plugin: {records} records in order, each once, in {took:.1?}\n\
         dead-letters list:   {line}\ndead-letters replay: {}",
        replayed.trim()
    );
}

/// More dead letters than `max` in the window are no single bad changes: the stage that makes them fails.
async fn flood(on_failed: &str) {
    let world = world(
        None,
        &format!(
            "[dead_letter]\nmax = 5\nwithin = \"60s\"\n[policies.supervision]\non_failed = \"{on_failed}\"\n\
             [health]\ncheck_interval = \"100ms\"\ncritical = [\"transform.checks\"]\n"
        ),
    )
    .await;
    let keys = keys(16);
    write(&world, &keys, 0..20, |_, _| "forward").await;
    let mut running = world.start(1);
    await_done(&running, keys.len() * 20, LONG).await;
    // Every change from here on is refused.
    write(&world, &keys, 20..40, |_, _| "error").await;
    running.await_line("stage failed stage=\"transform.checks\"", LONG);
    let asked = Instant::now();
    if on_failed == "shutdown" {
        assert_eq!(running.wait(LONG).code(), Some(1), "{}", running.text());
    } else {
        running
            .await_metrics("the stage is unhealthy", LONG, |m| {
                m.sum("penstock_health", &["component=\"transform.checks\""]) == 2.0
            })
            .await;
        let metrics = running.metrics().await;
        let letters = metrics.sum("penstock_dead_letters_total", &[]);
        assert!(letters <= 5.0, "{letters}");
        let (code, health) = running.penstock(&["health"]);
        assert_eq!(code, Some(1), "{health}");
        assert!(health.contains("more than dead_letter.max = 5"), "{health}");
        running.signal("-TERM");
        // Below the deadline of 30 s: nobody waits for a stage that was given up on.
        let code = running.wait(Duration::from_secs(20)).code();
        assert_eq!(code, Some(75), "{}", running.text());
    }
    let ended = asked.elapsed();
    println!(
        "a flood of dead letters, {on_failed}: ended {ended:.1?} later\n{}",
        running
            .text()
            .lines()
            .find(|l| l.contains("stage failed"))
            .unwrap_or_default()
    );
    // Mended, everything that was not kept as a dead letter is delivered.
    install(&world, "outbox-router");
    let letters = read_all_letters(&world);
    let second = world.start(2);
    world.await_records(keys.len() * 40 - letters, LONG, &second);
    let (code, said) = second.penstock(&["dead-letters", "replay"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("delivered").count(), letters, "{said}");
    world.await_records(keys.len() * 40, LONG, &second);
    second.stop_cleanly();
    for (key, numbers) in world.seen() {
        let distinct: std::collections::BTreeSet<_> = numbers.into_iter().collect();
        assert!(distinct.into_iter().eq(0..40), "{key}");
    }
}

/// A stage that was given up on needs no restart of the process: a plugin that is mended starts it anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_flooded_stage_goes_on_once_its_plugin_is_mended() {
    let extra = "[dead_letter]\nmax = 5\n[health]\ncheck_interval = \"100ms\"\n";
    let world = world(None, extra).await;
    let keys = keys(16);
    let running = world.start(1);
    write(&world, &keys, 0..20, |_, _| "forward").await;
    write(&world, &keys, 20..40, |_, _| "error").await;
    running.await_line("stage failed stage=\"transform.checks\"", LONG);
    install(&world, "outbox-router");
    running.await_line("failed stage started anew stage=transform.checks", LONG);
    let letters = read_all_letters(&world);
    world.await_records(keys.len() * 40 - letters, LONG, &running);
    let (code, said) = running.penstock(&["dead-letters", "replay"]);
    assert_eq!(code, Some(0), "{said}");
    world.await_records(keys.len() * 40, LONG, &running);
    running
        .await_metrics("the system is healthy", LONG, |m| {
            m.sum("penstock_health", &["component=\"system\""]) == 0.0
        })
        .await;
    running.stop_cleanly();
}

/// `on_error = "stop"`: the crash is that transform's, though all of a shard's share a child, and so is the policy.
#[tokio::test(flavor = "multi_thread")]
async fn a_transform_that_stops_answers_for_it_by_its_own_policy() {
    let transforms = format!(
        "[[transform]]\nname = \"first\"\nplugin = \"{}\"\nsettings = {{ tables = \"other\" }}\n\
         [[transform]]\nname = \"second\"\nplugin = \"{}\"\non_error = \"stop\"\n\
         supervision = {{ max_restarts = 1, backoff = \"10ms\", on_failed = \"shutdown\" }}\n",
        plugins::plugin("outbox-router").display(),
        plugins::plugin("test-faults").display()
    );
    let world = World::with(Setup {
        columns: "id text, fault text, ",
        transforms: Some(transforms),
        ..Setup::default()
    })
    .await;
    let keys = keys(4);
    write(&world, &keys, 0..10, |k, n| {
        if (k, n) == (1, 5) { "error" } else { "" }
    })
    .await;
    let mut running = world.start(1);
    assert_eq!(running.wait(LONG).code(), Some(1), "{}", running.text());
    let text = running.text();
    assert_eq!(text.matches("child crashed").count(), 1, "{text}");
    assert!(
        text.contains("stage failed: too many restarts stage=transform.second"),
        "{text}"
    );
}

/// A plugin that says "not yet": waited for with a reason, counted by its breaker, and no letter until its tries have an end.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_put_off_is_no_letter_until_its_tries_have_an_end() {
    let world = world(
        None,
        "[health]\ncheck_interval = \"100ms\"\n\
         [policies.retry]\ninitial = \"5ms\"\nmax = \"20ms\"\nmax_attempts = 0\n\
         [policies.breaker]\nfailure_threshold = 1000000\nopen_for = \"100ms\"\n",
    )
    .await;
    let keys = keys(4);
    let running = world.start(1);
    write(&world, &keys, 0..20, |k, n| {
        if (k, n) == (2, 10) {
            "not-yet"
        } else {
            "forward"
        }
    })
    .await;
    running.await_line("a transform puts a change off, it is tried again", LONG);
    running.await_line("degraded(waiting: asked to wait)", LONG);
    let edit = |from: &str, to: &str| {
        let text = std::fs::read_to_string(world.config()).expect("pipeline.toml");
        assert!(text.contains(from), "{from}: {text}");
        world.save(&text.replace(from, to));
    };
    edit("failure_threshold = 1000000", "failure_threshold = 3");
    running.await_line("breaker opened stage=transform.checks", LONG);
    assert_eq!(read_all_letters(&world), 0);
    edit("max_attempts = 0", "max_attempts = 2");
    await_done(&running, 4 * 20, LONG).await;
    assert_eq!(read_all_letters(&world), 1);
    let (code, list) = running.penstock(&["dead-letters", "list"]);
    assert_eq!(code, Some(0));
    assert!(list.contains("asked to wait"), "{list}");
    let metrics = running.metrics().await;
    assert_eq!(metrics.sum("penstock_restarts_total", &[]), 0.0);
    world.await_records(4 * 20 - 1, LONG, &running);
    let whole = [keys[0], keys[1], keys[3]];
    assert_eq!(complete_and_ordered(&world.seen(), &whole, 20), 0);
    assert_eq!(world.seen()[&keys[2].to_string()].len(), 19);
    running.stop_cleanly();
}

/// … with its rate and the time that is left, on standard error: the outcomes alone are the answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_says_how_far_it_is() {
    let world = world(None, "").await;
    let running = world.start(1);
    running.await_line("all supervised stages started", LONG);
    let keys = keys(10);
    write(&world, &keys, 0..15, |_, _| "error").await;
    await_done(&running, 150, LONG).await;
    let (code, said) = running.penstock(&["dead-letters", "replay"]);
    assert_eq!(code, Some(0), "{said}");
    let (told, outcomes): (Vec<&str>, Vec<&str>) = said
        .lines()
        .partition(|line| line.starts_with("replaying dead letters: "));
    assert_eq!(outcomes.len(), 150, "{said}");
    let is_whole = |line: &&str| {
        line.contains(" of 150, ") && line.contains("/s, ") && line.ends_with(" left")
    };
    assert!(told.iter().any(is_whole), "{told:?}");
    let under_way = format!("http://{}/dead-letters/replay", running.admin());
    let under_way = reqwest::get(under_way).await.expect("an answer");
    assert_eq!(
        under_way.text().await.expect("text"),
        r#"{"under_way":false}"#
    );
    running.stop_cleanly();
}

fn read_all_letters(world: &World) -> usize {
    let topic = format!("{}.dead-letters", world.name);
    let letters = read_all(&world.cluster.brokers, &topic);
    let keys: std::collections::BTreeSet<_> = letters.into_iter().map(|l| l.key).collect();
    keys.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_dead_letters_fails_the_stage() {
    tokio::join!(flood("isolate"), flood("shutdown"));
}

/// The stage `dead_letter` has crashes, and a policy, of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_over_a_dead_letter_restarts_nothing_else() {
    let world = world(
        None,
        // A busy machine takes a second for a moment's work, and that is no hang.
        "[health]\ncheck_interval = \"100ms\"\nstalled_after = \"4s\"\n\
         [policies.supervision]\nbackoff = \"20ms\"\n",
    )
    .await;
    let keys = keys(8);
    let faults = "1*panic(a bug)->1*return(a full disk)->1*return(hang)->off";
    let running = world.start_faulty(1, &format!("stage::dead_letter={faults}"));
    write(&world, &keys, 0..50, |k, n| {
        if (k, n) == (3, 25) {
            "error"
        } else {
            "forward"
        }
    })
    .await;
    await_done(&running, 8 * 50, LONG).await;
    let metrics = running.metrics().await;
    assert_eq!(metrics.stage("penstock_restarts_total", "dead_letter"), 3.0);
    assert_eq!(
        metrics.sum("penstock_restarts_total", &[]),
        3.0,
        "nobody else's"
    );
    assert_eq!(metrics.sum("penstock_rewinds_total", &[]), 0.0);
    let (_, list) = running.answer(&["dead-letters", "list"]);
    assert_eq!(list.lines().count(), 1, "{list}");
    running.stop_cleanly();
    assert_eq!(
        world.records().len(),
        8 * 50 - 1,
        "no other is lost or repeated"
    );
}

/// Given up on, the stage holds back its lane, not the other; what it has not kept is not passed.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_dead_letter_stage_loses_no_letter() {
    let mut world = world(
        None,
        "[health]\ncheck_interval = \"100ms\"\n[policies.supervision]\nbackoff = \"10ms\"\nmax_restarts = 1\n",
    )
    .await;
    // The queue before the sink, which waits for its letter, is full when the drain is asked for.
    world.set("pipeline.batch_size", 5);
    let keys = keys(8);
    let mut running = world.start_faulty(1, "stage::dead_letter=panic(a bug)");
    let fault = |k, n| {
        if (k, n) == (3, 25) {
            "error"
        } else {
            "forward"
        }
    };
    write(&world, &keys, 0..50, fault).await;
    running.await_line("stage failed: too many restarts", LONG);
    running.signal("-TERM");
    let code = running.wait(Duration::from_secs(20)).code();
    assert_eq!(code, Some(75), "{}", running.text());
    let second = world.start(2);
    world.await_records(8 * 50 - 1, LONG, &second);
    second
        .await_metrics("the letter is kept", LONG, |m| {
            m.sum("penstock_dead_letters_total", &[]) == 1.0
        })
        .await;
    second.stop_cleanly();
}

/// An outage that catches a dead letter on its way makes no other, and does not count it twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_waits_for_the_end_of_an_outage() {
    let valve = Valve::start(Flow::Open);
    let mut world = world(
        Some(valve.brokers.clone()),
        "[policies.retry]\nmax = \"300ms\"\n[policies.breaker]\nopen_for = \"500ms\"\n[dead_letter]\nmax = 1\n",
    )
    .await;
    world.set("sink.attempt_timeout", "200ms");
    let keys = keys(8);
    write(&world, &keys, 0..10, |_, _| "forward").await;
    let running = world.start(1);
    await_done(&running, 80, LONG).await;
    valve.set(Flow::Silent);
    let fault = |k, n| {
        if (k, n) == (3, 15) {
            "error"
        } else {
            "forward"
        }
    };
    write(&world, &keys, 10..30, fault).await;
    running
        .await_metrics("the breaker opens", LONG, |m| {
            m.stage("penstock_breaker_opened_total", "sink") >= 1.0
        })
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let during = running.metrics().await;
    assert_eq!(during.sum("penstock_dead_letters_total", &[]), 0.0);
    valve.set(Flow::Open);
    await_done(&running, 8 * 30, LONG).await;
    world.await_records(8 * 30 - 1, LONG, &running);
    let (_, list) = running.answer(&["dead-letters", "list"]);
    assert_eq!(list.lines().count(), 1, "{list}");
    running.stop_cleanly();
    assert_eq!(world.records().len(), 8 * 30 - 1);
    let mut seen = world.seen();
    let bad = keys[3];
    let numbers = seen.remove(&bad.to_string()).expect("its records");
    assert!(numbers.into_iter().eq((0..30).filter(|n| *n != 15)));
    let others: Vec<Uuid> = keys.into_iter().filter(|k| *k != bad).collect();
    assert_eq!(complete_and_ordered(&seen, &others, 30), 0);
}
