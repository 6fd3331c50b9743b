//! What a transform costs: nanoseconds a change, with `outbox-router` and with `event-filter`, which lets go of all,
//! beside a native function that makes what the router makes.
//!
//! `cargo xtask bench plugin [folder]`; with a folder, of the plugins that lie there (built by another SDK, say). Changes have 12 columns and 366 bytes. Each line has the median, the best and the most of
//! 9 rounds, in which all lines take turns, of this thread's time on a processor where the system tells it (Linux), so that what
//! else the machine does does not count, and what its neighbours do hits all alike; *× native* is of each round. A batch is a copy of one that is at hand, as is one that has just been read; what the copies take is
//! measured by themselves and taken off.
//!
//! The parts are medians of batches, by the clock: *encode* puts together what the guest is sent, *decode* checks and
//! takes what it gave. Of the call between, what a call of one change takes more than one change more of a larger batch
//! is the *call* (in, out, the guest's allocations), the rest is the *guest*. What is left is the chain around it.
//! The allocator is the program's.

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

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Of a round: enough that the system's account of a thread's time, which is kept in milliseconds, can tell.
const CHANGES: usize = 512 * 1024;
const ROUNDS: usize = 9;

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

/// What so many changes take, in nanoseconds of this thread a change, in batches that are copies of this one; less what the copies
/// take.
fn measure(batch: &Batch, changes: usize, mut work: impl FnMut(Batch) -> usize) -> f64 {
    let start = Instant::now();
    let size = batch.rows.len();
    let batches = (changes / size).max(1);
    let run = |work: &mut dyn FnMut(Batch) -> usize| {
        let started = now(start);
        let made: usize = (0..batches).map(|_| work(black_box(batch.clone()))).sum();
        black_box(made);
        (now(start) - started) as f64 / (batches * size) as f64
    };
    let copies = run(&mut |batch| batch.rows.len());
    run(&mut work) - copies
}

/// What makes records of batches of one size.
struct Contestant {
    name: &'static str,
    batch: Batch,
    /// `None`: the native function.
    plugin: Option<(Chain, bool)>,
    /// Nanoseconds a change, of each round.
    rounds: Vec<f64>,
    parts: [Vec<Duration>; 3],
}

impl Contestant {
    fn new(name: &'static str, size: usize, plugin: Option<(Chain, bool)>) -> Self {
        Self {
            name,
            batch: batch(&outbox(), size),
            plugin,
            rounds: Vec::new(),
            parts: Default::default(),
        }
    }

    /// Runs one round.
    fn run(&mut self, changes: usize) {
        let Some((chain, makes)) = &mut self.plugin else {
            let native = |batch| black_box(native(batch)).records.len();
            return self.rounds.push(measure(&self.batch, changes, native));
        };
        let parts = &mut self.parts;
        self.rounds.push(measure(&self.batch, changes, |batch| {
            let size = batch.rows.len();
            let made = chain.process(batch).expect("processed");
            assert_eq!(made.records.len(), if *makes { size } else { 0 });
            let spent = chain.reports()[0].spent;
            let all = [spent.encode, spent.call, spent.decode];
            parts.iter_mut().zip(all).for_each(|(p, took)| p.push(took));
            made.records.len()
        }));
    }

    /// Medians of all batches.
    fn spent(&self) -> Spent {
        let [encode, call, decode] = self.parts.clone().map(|mut part| {
            part.sort_unstable();
            part[part.len() / 2]
        });
        Spent {
            encode,
            call,
            decode,
        }
    }
}

fn chain(engine: &Engine, case: &Case) -> Chain {
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
    Chain::new(vec![prepared], live.1)
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
    println!("12 columns, {bytes} bytes a change; ns a change of {n} rounds, in turns\n");
    println!(
        "| | batch | median | best | most | × native | encode | call | guest | decode | around |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    const SIZES: [usize; 3] = [1, 64, 512];
    let cases = [
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
    ];
    let mut all: Vec<_> = SIZES
        .map(|size| Contestant::new("native", size, None))
        .into();
    for case in &cases {
        all.extend(SIZES.map(|size| {
            let plugin = (chain(&engine, case), case.makes);
            Contestant::new(case.package, size, Some(plugin))
        }));
    }
    for _ in 0..n {
        all.iter_mut().for_each(|one| one.run(changes));
    }
    let native: Vec<Vec<f64>> = all[..SIZES.len()]
        .iter()
        .map(|one| one.rounds.clone())
        .collect();
    for own in all.chunks(SIZES.len()) {
        for (nth, (one, native)) in own.iter().zip(&native).enumerate() {
            let (median, best, most) = machine::spread(one.rounds.clone());
            // Of each round, so that what the machine did meanwhile cancels out.
            let ratios = one.rounds.iter().zip(native).map(|(a, b)| a / b);
            let (ratio, ..) = machine::spread(ratios.collect());
            let parts = match one.plugin {
                None => " | | | |".to_owned(),
                Some(_) => parts(own, nth, median),
            };
            let (name, size) = (one.name, SIZES[nth]);
            println!(
                "| {name} | {size} | {median:.0} | {best:.0} | {most:.0} | {ratio:.1} | {parts} |"
            );
        }
    }
}

/// The columns of parts of this one of a plugin's three sizes, whose median is this.
fn parts(own: &[Contestant], nth: usize, median: f64) -> String {
    let call = |one: &Contestant| one.spent().call.as_nanos() as f64;
    let size = |one: &Contestant| one.batch.rows.len() as f64;
    let (least, most) = (&own[0], &own[own.len() - 1]);
    let guest = (call(most) - call(least)) / (size(most) - size(least));
    let one = &own[nth];
    let each = |part: Duration| part.as_nanos() as f64 / size(one);
    let spent = one.spent();
    let (encode, decode) = (each(spent.encode), each(spent.decode));
    let call = each(spent.call) - guest;
    let around = median - encode - call - guest - decode;
    format!("{encode:.0} | {call:.0} | {guest:.0} | {decode:.0} | {around:.0}")
}
