//! What a call of Extism costs: nanoseconds a change, for the router on 12 columns that `cargo xtask bench plugin` has.
//!
//! `cargo xtask bench extism`, which runs that one first. *same bytes* is the call alone, of a batch that is put together:
//! beside *call* and *guest* there. *json* goes from columns to records: written, called, read. Medians, best and most of 7
//! rounds, of this thread's time on a processor where the system tells it (Linux).

#[allow(dead_code)]
#[path = "../../../support/machine.rs"]
mod machine;

use std::hint::black_box;
use std::time::Instant;

use extism::{Function, Manifest, Plugin, UserData, ValType, Wasm};
use penstock_plugin_encoding::{ColumnTag, Operation, RowMeta, RowsBuilder};
use serde::{Deserialize, Serialize};

const LOCK: &str = include_str!("../../Cargo.lock");
const CHANGES: usize = 256 * 1024;
const ROUNDS: usize = 7;

const PAYLOAD: &str = match std::str::from_utf8(&[b'x'; 150]) {
    Ok(text) => text,
    Err(_) => "",
};
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Those that the router declares, of Penstock's encoding; the others are not sent.
const DECLARED: [usize; 4] = [1, 2, 3, 6];

fn bytes(changes: usize) -> Vec<u8> {
    let mut rows = RowsBuilder::with_capacity(changes, changes * 400);
    for _ in 0..changes {
        let meta = RowMeta {
            operation: Operation::Insert,
            context: false,
            end_of_batch: true,
            table: 1,
            time_us: 1_700_000_000_000_000,
            ttl: 0,
        };
        rows.row(meta, 12);
        for column in 0..12 {
            let cell: &[u8] = match column {
                1 => &[0x11; 16],
                2 => b"order",
                3 => b"OrderUpdated",
                _ => TRACE.as_bytes(),
            };
            match DECLARED.contains(&column) {
                true => rows.column(ColumnTag::Value, &[cell]),
                false => rows.column(ColumnTag::Unsent, &[]),
            }
        }
    }
    rows.finish().into_bytes()
}

#[derive(Clone, Serialize)]
struct Change {
    aggregate_id: String,
    event_id: &'static str,
    aggregate_type: &'static str,
    event_type: &'static str,
    payload: &'static str,
    created_at: i64,
    traceparent: &'static str,
    tenant: &'static str,
    version: i32,
    attempt: i32,
    source: &'static str,
    extra: &'static str,
}

#[derive(Deserialize)]
struct Record {
    topic: String,
    key: String,
    value: String,
    headers: Vec<(String, String)>,
}

fn changes(changes: usize) -> Vec<Change> {
    let change = |n| Change {
        aggregate_id: format!("{n:036}"),
        event_id: "11111111-1111-1111-1111-111111111111",
        aggregate_type: "order",
        event_type: "OrderUpdated",
        payload: PAYLOAD,
        created_at: 1_700_000_000_000,
        traceparent: TRACE,
        tenant: "tenant-0001",
        version: 0,
        attempt: 0,
        source: "order-service",
        // 52 bytes.
        extra: "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBw==",
    };
    (0..changes).map(change).collect()
}

/// Nanoseconds that this thread has run: of the processor on Linux, of the wall clock elsewhere.
fn now(start: Instant) -> u128 {
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|stat| stat.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| start.elapsed().as_nanos())
}

fn version(name: &str) -> &'static str {
    let entry = LOCK
        .split("[[package]]")
        .find(|e| e.contains(&format!("name = \"{name}\"\n")));
    let line = entry.and_then(|e| e.lines().find_map(|l| l.strip_prefix("version = ")));
    line.unwrap_or("unknown").trim_matches('"')
}

fn line(name: &str, size: usize, mut work: impl FnMut()) {
    let start = Instant::now();
    let calls = (CHANGES / size).min(1 << 16);
    let mut took: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let began = now(start);
            (0..calls).for_each(|_| work());
            (now(start) - began) as f64 / (calls * size) as f64
        })
        .collect();
    took.sort_by(f64::total_cmp);
    let (median, best, most) = (took[ROUNDS / 2], took[0], took[ROUNDS - 1]);
    println!("| {name} | {size} | {median:.0} | {best:.0} | {most:.0} |");
}

fn main() -> Result<(), extism::Error> {
    machine::print();
    println!(
        "extism {}, its wasmtime {}\n",
        version("extism"),
        version("wasmtime")
    );
    let file = std::env::args().nth(1).expect("the plugin's file");
    // What the SDK imports; nothing is logged here.
    let log = Function::new(
        "log",
        [ValType::I32, ValType::I32, ValType::I32],
        [],
        UserData::new(()),
        |_, _, _, _: UserData<()>| Ok(()),
    );
    let log = log.with_namespace("penstock:plugin/host@0.1.0");
    let mut plugin = Plugin::new(Manifest::new([Wasm::data(std::fs::read(file)?)]), [log], true)?;
    println!("| Extism | batch | median | best | most |");
    println!("|---|---|---|---|---|");
    for name in ["nothing", "same_bytes"] {
        for size in [1, 64, 512] {
            let batch = bytes(size);
            let made: Vec<u8> = plugin.call(name, &batch[..])?;
            assert!(
                name == "nothing" || made.len() > 64 * size,
                "it makes records"
            );
            line(&name.replace('_', " "), size, || {
                let made = plugin.call::<&[u8], Vec<u8>>(name, black_box(&batch));
                black_box(made.expect("processed"));
            });
        }
    }
    for size in [1, 64, 512] {
        let batch = changes(size);
        line("json", size, || {
            let sent = serde_json::to_vec(black_box(&batch)).expect("JSON");
            let made: &[u8] = plugin.call("json", &sent[..]).expect("processed");
            let records: Vec<Record> = serde_json::from_slice(made).expect("records");
            let whole =
                |r: &Record| r.topic.len() + r.key.len() + r.value.len() + r.headers.len() > 4;
            assert!(records.len() == size && records.iter().all(whole));
        });
    }
    Ok(())
}
