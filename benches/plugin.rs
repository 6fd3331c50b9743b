//! What a transform costs: nanoseconds a change, with `outbox-router` and with `event-filter`, which lets go of all,
//! beside a native function that makes what the router makes.
//!
//! `cargo xtask bench plugin [folder]`; with a folder, of the plugins that lie there (built by another SDK, say). Changes have 12 columns and 366 bytes. Each line has the median, the best and the most of
//! 7 rounds, of this thread's time on a processor where the system tells it (Linux), so that what else the machine does
//! does not count. A batch is a copy of one that is at hand, as is one that has just been read; what the copies take is
//! measured by themselves and taken off.
//!
//! The parts are medians of batches, by the clock: *encode* puts together what the guest is sent, *decode* checks and
//! takes what it gave. Of the call between, what a call of one change takes more than one change more of a larger batch
//! is the *call* (in, out, the guest's allocations), the rest is the *guest*. What is left is the chain around it.

#[allow(dead_code)]
#[path = "support/machine.rs"]
mod machine;

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock::change::{Batch, Record, RecordBatch, Slice, TableSchema, Traces};
use penstock::config::settings::OnError;
use penstock::transform::{Chain, Engine, Plugin, Prepared, Spent};
use testkit::plugins;
use testkit::transforms::{BatchBuilder, Cell, engine, settings, table, transform};

/// Of a round: enough that the system's account of a thread's time, which is kept in milliseconds, can tell.
const CHANGES: usize = 512 * 1024;
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

/// Nanoseconds a change.
struct Took {
    /// Of each round, sorted.
    rounds: Vec<f64>,
    spent: Spent,
}

/// Rounds of batches of this size through `work`, less what the batches take.
fn rounds(
    size: usize,
    rounds: usize,
    changes: usize,
    mut work: impl FnMut(Batch) -> usize,
) -> Vec<f64> {
    let start = Instant::now();
    let batch = batch(&outbox(), size);
    let batches = (changes / size).max(1);
    let measure = |work: &mut dyn FnMut(Batch) -> usize| {
        let started = now(start);
        let made: usize = (0..batches).map(|_| work(black_box(batch.clone()))).sum();
        black_box(made);
        (now(start) - started) as f64 / (batches * size) as f64
    };
    let mut took: Vec<f64> = (0..rounds)
        .map(|_| {
            let copies = measure(&mut |batch| batch.rows.len());
            measure(&mut work) - copies
        })
        .collect();
    took.sort_by(f64::total_cmp);
    took
}

/// Batches of this size through one plugin.
fn plugin(engine: &Engine, case: &Case, size: usize, n: usize, changes: usize) -> Took {
    let transform = transform(case.package, OnError::DeadLetter, case.settings);
    let file = match std::env::args().skip(1).find(|a| !a.starts_with('-')) {
        Some(folder) => {
            let name = case.package.replace('-', "_");
            PathBuf::from(folder).join(name).with_extension("wasm")
        }
        None => plugins::plugin(case.package),
    };
    let plugin = Plugin::load(engine, file).expect("the plugin");
    let prepared = Prepared::new(&transform, plugin, &[]).expect("an instance");
    let live = tokio::sync::watch::channel(Arc::new(self::settings(vec![transform])));
    let mut chain = Chain::new(vec![prepared], live.1);
    let mut parts: [Vec<Duration>; 3] = Default::default();
    let rounds = rounds(size, n, changes, |batch| {
        let made = chain.process(batch).expect("processed");
        assert_eq!(made.records.len(), if case.makes { size } else { 0 });
        let spent = chain.reports()[0].spent;
        let all = [spent.encode, spent.call, spent.decode];
        parts.iter_mut().zip(all).for_each(|(p, took)| p.push(took));
        made.records.len()
    });
    let [encode, call, decode] = parts.map(|mut part| {
        part.sort_unstable();
        part[part.len() / 2]
    });
    Took {
        rounds,
        spent: Spent {
            encode,
            call,
            decode,
        },
    }
}

/// What the router makes of an event, without a guest, a check or a setting.
fn native(batch: Batch) -> RecordBatch {
    let topic: Arc<str> = "events.order".into();
    let mut made = RecordBatch {
        output: Vec::with_capacity(64 * batch.rows.len()),
        topics: vec![topic],
        headers: Vec::with_capacity(3 * batch.rows.len()),
        records: Vec::with_capacity(batch.rows.len()),
        rejected: Vec::new(),
        dropped: 0,
        traces: Traces::default(),
        source: batch,
    };
    let keep = |output: &mut Vec<u8>, bytes: &[u8]| {
        let start = output.len() as u32;
        output.extend_from_slice(bytes);
        let end = output.len() as u32;
        Slice::Output { start, end }
    };
    let names =
        ["event-id", "event-type", "traceparent"].map(|n| keep(&mut made.output, n.as_bytes()));
    for (row, source) in made.source.rows.iter().zip(0..) {
        let column = |index| match row.column_span(index) {
            Some((_, span)) => Slice::Source {
                start: span.start,
                end: span.end,
            },
            None => Slice::Null,
        };
        let Some((_, aggregate_type)) = row.column(2).filter(|(_, t)| *t == b"order") else {
            continue;
        };
        black_box(aggregate_type);
        let id = row.column(1).and_then(|(_, id)| id.try_into().ok());
        let mut text = [0; 36];
        uuid::Uuid::from_bytes(id.unwrap_or_default())
            .hyphenated()
            .encode_lower(&mut text);
        let id = keep(&mut made.output, &text);
        let first = made.headers.len() as u32;
        made.headers
            .extend([(names[0], id), (names[1], column(3)), (names[2], column(6))]);
        made.records.push(Record {
            source,
            topic: 0,
            key: column(0),
            value: column(4),
            headers: first..first + 3,
        });
    }
    made
}

struct Case {
    package: &'static str,
    settings: &'static [(&'static str, &'static str)],
    makes: bool,
}

fn main() {
    machine::print();
    // `cargo test` runs benches too, with this argument, to see that they work.
    let once = std::env::args().any(|a| a == "--test");
    let (n, changes) = if once { (1, 2048) } else { (ROUNDS, CHANGES) };
    let engine = engine();
    let bytes = batch(&outbox(), 1).rows.get(0).map_or(0, |row| {
        (0..row.columns())
            .filter_map(|c| row.column(c))
            .map(|(_, b)| b.len())
            .sum::<usize>()
    });
    println!("12 columns, {bytes} bytes a change; ns a change of {n} rounds\n");
    println!("| | batch | median | best | most | encode | call | guest | decode | around |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let line = |name: &str, size: usize, took: &[f64], parts: &str| {
        let median = took[took.len() / 2];
        let (best, most) = (took[0], took[took.len() - 1]);
        println!("| {name} | {size} | {median:.0} | {best:.0} | {most:.0} | {parts} |");
    };
    let sizes = [1, 64, 512];
    for size in sizes {
        let took = rounds(size, n, changes, |batch| {
            black_box(native(batch)).records.len()
        });
        line("native", size, &took, "| | | |");
    }
    for case in [
        Case {
            package: "outbox-router",
            settings: &[("topic_prefix", "events.")],
            makes: true,
        },
        Case {
            package: "event-filter",
            settings: &[("drop", "OrderUpdated")],
            makes: false,
        },
    ] {
        let took = sizes.map(|size| plugin(&engine, &case, size, n, changes));
        let call = |i: usize| took[i].spent.call.as_nanos() as f64;
        let guest = (call(2) - call(0)) / (sizes[2] - sizes[0]) as f64;
        for (size, took) in sizes.into_iter().zip(&took) {
            let each = |part: Duration| part.as_nanos() as f64 / size as f64;
            let (encode, decode) = (each(took.spent.encode), each(took.spent.decode));
            let call = each(took.spent.call) - guest;
            let around = took.rounds[took.rounds.len() / 2] - encode - call - guest - decode;
            let parts = format!("{encode:.0} | {call:.0} | {guest:.0} | {decode:.0} | {around:.0}");
            line(case.package, size, &took.rounds, &parts);
        }
    }
}
