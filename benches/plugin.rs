//! What a transform costs: nanoseconds a change, with `outbox-router` and with `event-filter`, which lets go of all.
//!
//! `cargo xtask bench plugin`. Changes have 12 columns and 366 bytes. Each line has the median, the best and the most of 7 rounds;
//! batches are built outside the measured time, which is this thread's time on a processor where the system tells
//! it (Linux), so that what else the machine does does not count.

#[allow(dead_code)]
#[path = "support/machine.rs"]
mod machine;

use std::sync::Arc;
use std::time::Instant;

use penstock::change::{Batch, TableSchema};
use penstock::config::settings::OnError;
use penstock::transform::{Chain, Engine, Plugin, Prepared};
use testkit::plugins;
use testkit::transforms::{BatchBuilder, Cell, engine, settings, table, transform};

/// Of a round: enough that the system's account of a thread's time, which is kept in milliseconds, can tell.
const CHANGES: usize = 64 * 1024;
const ROUNDS: usize = 7;

fn outbox() -> Arc<TableSchema> {
    table(
        1,
        "outbox_messages",
        &[
            "aggregate_id text primary",
            "event_id timeuuid clustering",
            "aggregate_type text",
            "event_type text",
            "payload text",
            "created_at timestamp",
            "traceparent text",
            "tenant text",
            "version int",
            "attempt int",
            "source text",
            "extra blob",
        ],
    )
}

fn batch(table: &Arc<TableSchema>, changes: usize) -> Batch {
    let payload = [b'x'; 150];
    let mut b = BatchBuilder::new(&[table]);
    for i in 0..changes {
        let id = format!("{i:036}");
        let cells = [
            Cell::Set(id.as_bytes()),
            Cell::Set(&[0x11; 16]),
            Cell::Set(b"order"),
            Cell::Set(b"OrderUpdated"),
            Cell::Set(&payload),
            Cell::Set(&[0; 8]),
            Cell::Set(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            Cell::Set(b"tenant-0001"),
            Cell::Set(&[0; 4]),
            Cell::Set(&[0; 4]),
            Cell::Set(b"order-service"),
            Cell::Set(&[7; 52]),
        ];
        b.insert(table, &cells);
    }
    b.finish()
}

/// Nanoseconds that this thread has run: of the processor on Linux, of the wall clock elsewhere.
fn now(start: Instant) -> u64 {
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|stat| stat.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| start.elapsed().as_nanos() as u64)
}

/// Nanoseconds a change of each round, sorted: batches of this size through one plugin.
fn measure(
    engine: &Engine,
    package: &str,
    settings: &[(&str, &str)],
    size: usize,
    rounds: usize,
    makes: bool,
) -> Vec<f64> {
    let start = Instant::now();
    let table = outbox();
    let transform = transform(package, OnError::DeadLetter, settings);
    let plugin = Plugin::load(engine, plugins::plugin(package)).expect("the plugin");
    let prepared = Prepared::new(&transform, plugin, &[]).expect("an instance");
    let live = tokio::sync::watch::channel(Arc::new(self::settings(vec![transform])));
    let mut chain = Chain::new(vec![prepared], live.1);
    let changes = CHANGES / size * size;
    let mut rounds: Vec<f64> = (0..rounds)
        .map(|_| {
            let batches: Vec<_> = (0..changes / size).map(|_| batch(&table, size)).collect();
            let started = now(start);
            let made = batches.into_iter().map(|batch| {
                let made = chain.process(batch).expect("processed");
                made.records.len()
            });
            let records: usize = made.sum();
            let took = now(start) - started;
            assert_eq!(records, if makes { changes } else { 0 });
            took as f64 / changes as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds
}

fn main() {
    machine::print();
    // `cargo test` runs benches too, with this argument, to see that they work.
    let once = std::env::args().any(|a| a == "--test");
    let rounds = if once { 1 } else { ROUNDS };
    let table = outbox();
    let engine = engine();
    let bytes = batch(&table, 1).rows.get(0).map_or(0, |row| {
        (0..row.columns())
            .filter_map(|c| row.column(c))
            .map(|(_, b)| b.len())
            .sum::<usize>()
    });
    println!("12 columns, {bytes} bytes a change; ns a change of {rounds} rounds\n");
    println!("| plugin | batch | median | best | most |");
    println!("|---|---|---|---|---|");
    let router: &[_] = &[("topic_prefix", "events.")];
    let filter: &[_] = &[("drop", "OrderUpdated")];
    for (package, settings, size, makes) in [
        ("outbox-router", router, 1, true),
        ("outbox-router", router, 64, true),
        ("outbox-router", router, 512, true),
        ("event-filter", filter, 1, false),
        ("event-filter", filter, 64, false),
        ("event-filter", filter, 512, false),
    ] {
        let took = measure(&engine, package, settings, size, rounds, makes);
        let median = took[took.len() / 2];
        let (best, most) = (took[0], took[took.len() - 1]);
        println!("| {package} | {size} | {median:.0} | {best:.0} | {most:.0} |");
    }
}
