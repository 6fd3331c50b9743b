//! From the start of the process until a reader of committed records has the first one.

use std::time::{Duration, Instant};

use testkit::broker::Follower;
use testkit::process::{LONG, World, keys};

/// Starts that are measured, after one that makes the topics and compiles the plugins.
const STARTS: u32 = 5;
/// librdkafka asks for a producer's id, and for a transaction's coordinator, again only after half a second. The best of
/// the starts has met no such pause: in a debug build, on a busy machine, it takes less than two of them.
const BOUND: Duration = Duration::from_millis(1_000);

/// `PENSTOCK_TEST_TIMELINE`: print what the fastest start logs, at debug.
async fn starts(delivery: &str) -> Vec<Duration> {
    let timeline = std::env::var_os("PENSTOCK_TEST_TIMELINE").is_some();
    let mut world = World::new("").await;
    world.set("pipeline.delivery", delivery);
    world.set("source.safety_interval", "10ms");
    if timeline {
        world.set(
            "log.filter",
            "debug,h2=info,hyper=info,scylla=info,tokio=info",
        );
    }
    let keys = keys(8);
    let follower = Follower::start(&world.cluster.brokers, &world.topic());
    let (mut written, mut took) = (0, Vec::new());
    for round in 0..=STARTS {
        let before = follower.arrivals().len();
        world.write(&keys, written, 10).await;
        written += 10;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let began = Instant::now();
        let mut running = world.start(round);
        let all = keys.len() * written as usize;
        let first = loop {
            let arrivals = follower.arrivals();
            if arrivals.len() >= all {
                break arrivals[before];
            }
            assert!(began.elapsed() < LONG, "{}", running.text());
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        running.signal("-TERM");
        assert_eq!(running.wait(LONG).code(), Some(0), "{}", running.text());
        let first = first.duration_since(began);
        if timeline {
            println!(
                "--- {delivery}, start {round}: {first:?}\n{}",
                running.text()
            );
        }
        if round > 0 {
            took.push(first);
        }
    }
    for (key, numbers) in follower.numbers() {
        assert!(numbers.iter().copied().eq(0..written), "{key}: {numbers:?}");
    }
    took.sort_unstable();
    println!("{delivery}: first record after {took:?}");
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_record_waits_for_no_pause_of_the_client() {
    for delivery in ["exactly-once", "at-least-once"] {
        let took = starts(delivery).await;
        assert!(took[0] < BOUND, "{delivery}: {took:?}");
    }
}
