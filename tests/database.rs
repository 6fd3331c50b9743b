//! Outages of the database, end to end by the real program and at the defaults of every policy.

use std::time::{Duration, Instant};

use scylla_double::{Action, Fault};
use testkit::broker::{Flow, Valve};
use testkit::machine::Span;
use testkit::process::{LONG, Running, World, complete_and_ordered, keys};

/// A world whose database can be cut off, all else as users get it.
async fn world(flow: Flow) -> (World, Valve) {
    let mut world = World::new("").await;
    let valve = Valve::before(world.node.addr(), flow);
    world.set("source.nodes", format!("[\"{}\"]", valve.brokers));
    (world, valve)
}

async fn health(running: &Running) -> String {
    let url = format!("http://{}/health", running.admin());
    let answer = reqwest::get(url).await.expect("an answer");
    answer.text().await.expect("text")
}

async fn await_health(running: &Running, what: &str) {
    let deadline = Instant::now() + LONG;
    loop {
        let text = health(running).await;
        if text.contains(what) {
            return;
        }
        assert!(Instant::now() < deadline, "no {what:?} in {text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_for_longer_than_open_for_is_told_of_at_once_and_found_again() {
    let (world, valve) = world(Flow::Open).await;
    let keys = keys(8);
    world.write(&keys, 0, 5).await;
    let running = world.start(1);
    world.await_records(8 * 5, LONG, &running);

    let cut = Span::of(&running);
    valve.set(Flow::Cut);
    world.write(&keys, 5, 20).await;
    running.await_line("no connection to ScyllaDB", LONG);
    running.await_line("breaker opened stage=source", LONG);
    let opened = cut.elapsed();
    let most = cut.at_most(Duration::from_secs(6));
    assert!(opened < most, "open after {opened:?}");
    await_health(&running, "no connection to ScyllaDB").await;
    running.await_line("breaker half-open stage=source", LONG);
    tokio::time::sleep(Duration::from_secs(3)).await;

    let mended = Span::of(&running);
    valve.set(Flow::Open);
    world.await_records(8 * 25, LONG, &running);
    let back = mended.elapsed();
    let most = mended.at_most(Duration::from_secs(5));
    assert!(back < most, "back after {back:?}");
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 25), 0);
    println!("open after {opened:?}, the flow back {back:?} after the database");
    running.stop_cleanly();
}

/// An outage that is shorter than the `open_for` of 30 s ends when the database is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_back_before_open_for_is_over_is_read_at_once() {
    let (world, valve) = world(Flow::Open).await;
    let keys = keys(8);
    world.write(&keys, 0, 5).await;
    let running = world.start(1);
    world.await_records(8 * 5, LONG, &running);

    valve.set(Flow::Cut);
    world.write(&keys, 5, 20).await;
    running.await_line("breaker opened stage=source", LONG);
    let mended = Span::of(&running);
    valve.set(Flow::Open);
    world.await_records(8 * 25, LONG, &running);
    let back = mended.elapsed();
    let most = mended.at_most(Duration::from_secs(10));
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 25), 0);
    println!("the flow is back {back:?} after the database");
    assert!(back < most, "back after {back:?}");
    running.stop_cleanly();
}

/// It takes every connection and every byte, and answers nothing: under load, at the defaults.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_falls_silent_is_found_out_and_the_flow_is_back_when_it_answers() {
    let (world, valve) = world(Flow::Open).await;
    let keys = keys(8);
    world.write(&keys, 0, 5).await;
    let running = world.start(1);
    world.await_records(8 * 5, LONG, &running);

    let silent = Span::of(&running);
    valve.set(Flow::Silent);
    world.write(&keys, 5, 20).await;
    running.await_line("a read failed, trying again", LONG);
    let found = silent.elapsed();
    let most = silent.at_most(Duration::from_secs(15));
    assert!(found < most, "found after {found:?}");
    running.await_line("breaker opened stage=source", LONG);
    let opened = silent.elapsed();
    await_health(&running, "breaker open").await;
    running.await_line("breaker half-open stage=source", LONG);
    tokio::time::sleep(Duration::from_secs(1)).await;

    let mended = Span::of(&running);
    valve.set(Flow::Open);
    world.await_records(8 * 25, LONG, &running);
    let back = mended.elapsed();
    let most = mended.at_most(Duration::from_secs(5));
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 25), 0);
    println!(
        "silent: found after {found:?}, open after {opened:?}, the flow back {back:?} after it answers"
    );
    assert!(back < most, "back after {back:?}");
    running.stop_cleanly();
}

/// It is there and answers each read with this error, which says nothing of when it will not any more.
async fn answers_errors(action: Action, rebuilt: bool) {
    let world = World::new("").await;
    let keys = keys(8);
    world.write(&keys, 0, 5).await;
    let running = world.start(1);
    world.await_records(8 * 5, LONG, &running);

    let said = format!("{action:?}");
    let failed = Instant::now();
    let fault = Fault::new(action).on_table("outbox_scylla_cdc_log");
    world.node.faults().inject(fault);
    world.write(&keys, 5, 20).await;
    running.await_line("a read failed, trying again", LONG);
    let told = failed.elapsed();
    // Each of them finds other reads to do, and what is asked beside the log is answered.
    running.await_line("breaker opened stage=source", LONG / 2);
    let opened = failed.elapsed();
    await_health(&running, "breaker open").await;
    // It looks in vain meanwhile.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let during = running.metrics().await;
    assert_eq!(during.stage("penstock_breaker_state", "source"), 2.0);
    if rebuilt {
        // Another source, which has the breaker of this one and has read nothing.
        let text = std::fs::read_to_string(world.config()).expect("the file");
        world.save(&text.replace("[pipeline]", "[pipeline]\nsession_timeout = \"11s\""));
        running.await_line("configuration applied", LONG);
    }

    let mended = Span::of(&running);
    world.node.faults().clear_all();
    world.await_records(8 * 25, LONG, &running);
    let back = mended.elapsed();
    let most = mended.at_most(Duration::from_secs(8));
    assert_eq!(complete_and_ordered(&world.seen(), &keys, 25), 0);
    println!(
        "{said}: told after {told:.1?}, open after {opened:.1?}, the flow back {back:.1?} after its end"
    );
    // `open_for` is 30 s; it looks every 2 s.
    assert!(back < most, "back after {back:?}");
    running.stop_cleanly();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_answers_that_it_is_unavailable_is_read_again_soon() {
    answers_errors(Action::Unavailable, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_answers_that_it_is_overloaded_is_read_again_soon() {
    answers_errors(Action::Overloaded, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_answer_at_the_start_is_waited_for() {
    let (world, valve) = world(Flow::Silent).await;
    let reason = format!(
        "cannot reach ScyllaDB at {0}: {0}: takes connections and does not answer",
        valve.brokers
    );
    let keys = keys(2);
    world.write(&keys, 0, 3).await;
    let began = Instant::now();
    let running = world.start(1);
    running.await_line(&reason, LONG);
    let told = began.elapsed();
    assert!(told < LONG / 3, "told after {told:?}");
    await_health(&running, &reason).await;

    let began = Instant::now();
    let (code, text) = running.penstock(&["validate", "--connect"]);
    let validated = began.elapsed();
    assert!(
        text.contains(&reason) && code != Some(0),
        "{code:?}: {text}"
    );
    assert!(validated < LONG / 3, "told after {validated:?}");
    println!("run says so after {told:?}, validate after {validated:?}");

    valve.set(Flow::Open);
    world.await_records(2 * 3, LONG, &running);
    running.stop_cleanly();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_is_obeyed_while_the_start_waits() {
    let (world, _valve) = world(Flow::Cut).await;
    let mut running = world.start(1);
    running.await_line("waiting for what the pipeline needs", LONG);
    running.signal("-TERM");
    assert_eq!(running.wait(LONG / 2).code(), Some(0));
}
