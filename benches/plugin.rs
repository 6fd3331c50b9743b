//! What a transform costs: nanoseconds a change, with `outbox-router` as the plugin.
//!
//! `cargo bench --bench plugin`. Changes have 12 columns and 366 bytes. Each line has the median and the best of 15 rounds;
//! batches are built outside the measured time, which is this thread's time on a processor where the system tells
//! it (Linux), so that what else the machine does does not count.

use std::sync::Arc;
use std::time::Instant;

use penstock::change::{Batch, TableSchema};
use penstock::config::settings::OnError;
use penstock::transform::{Chain, Plugin, Prepared};
use testkit::plugins;
use testkit::transforms::{BatchBuilder, Cell, engine, settings, table, transform};

const CHANGES: usize = 16 * 1024;
const ROUNDS: usize = 15;

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

fn main() {
    let start = Instant::now();
    // `cargo test` runs benches too, with this argument, to see that they work.
    let once = std::env::args().any(|a| a == "--test");
    let table = outbox();
    let engine = engine();
    let bytes = batch(&table, 1).rows.get(0).map_or(0, |row| {
        (0..row.columns())
            .filter_map(|c| row.column(c))
            .map(|(_, b)| b.len())
            .sum::<usize>()
    });
    println!("outbox-router, 12 columns, {bytes} bytes a change");
    println!("{:>6}  {:>12}  {:>12}", "batch", "median ns", "best ns");
    for size in [1, 64, 512] {
        let router = transform(
            "router",
            OnError::DeadLetter,
            &[("topic_prefix", "events.")],
        );
        let plugin = Plugin::load(&engine, plugins::plugin("outbox-router")).expect("the plugin");
        let prepared = Prepared::new(&router, plugin, &[]).expect("an instance");
        let live = tokio::sync::watch::channel(Arc::new(settings(vec![router])));
        let mut chain = Chain::new(vec![prepared], live.1);
        let mut rounds: Vec<f64> = (0..if once { 1 } else { ROUNDS })
            .map(|_| {
                let batches: Vec<_> = (0..CHANGES / size).map(|_| batch(&table, size)).collect();
                let started = now(start);
                let made = batches.into_iter().map(|batch| {
                    let made = chain.process(batch).expect("processed");
                    made.records.len()
                });
                let records: usize = made.sum();
                let took = now(start) - started;
                assert_eq!(records, CHANGES / size * size);
                took as f64 / records as f64
            })
            .collect();
        rounds.sort_by(f64::total_cmp);
        let median = rounds[rounds.len() / 2];
        println!("{size:>6}  {median:>12.0}  {:>12.0}", rounds[0]);
    }
}
