//! The engine by its behaviour: statements in, rows out.

mod arrows;
mod cdc;
mod cql;
mod json;
mod replay;
mod schema;

use bytes::Bytes;

use super::{BoundValue, ColumnSpec, CqlError, Engine, Options, Outcome, Params};
use crate::types::{CqlType, Value};

/// The time at which tests stand still, µs: 2023-11-14 22:13:20 UTC.
const NOW: i64 = 1_700_000_000_000_000;

fn engine() -> Engine {
    Engine::new(Options {
        vnodes: 4,
        clock: || NOW,
        ..Options::default()
    })
}

/// An engine with keyspace `k` of vnodes.
fn with_keyspace() -> Engine {
    let engine = engine();
    run(
        &engine,
        "CREATE KEYSPACE k WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1} \
         AND tablets = {'enabled': false}",
    );
    engine
}

fn params() -> Params {
    Params {
        keyspace: Some("k".into()),
        ..Params::default()
    }
}

fn try_run(engine: &Engine, statement: &str) -> Result<Outcome, CqlError> {
    engine.query(statement, &params())
}

fn run(engine: &Engine, statement: &str) -> Outcome {
    try_run(engine, statement).unwrap_or_else(|e| panic!("{statement}: {e}"))
}

fn run_at(engine: &Engine, statement: &str, now: i64) -> Outcome {
    let params = Params {
        now: Some(now),
        ..params()
    };
    engine
        .query(statement, &params)
        .unwrap_or_else(|e| panic!("{statement}: {e}"))
}

fn refusal(engine: &Engine, statement: &str) -> String {
    match try_run(engine, statement) {
        Ok(outcome) => panic!("{statement}: not refused but {outcome:?}"),
        Err(e) => e.message,
    }
}

fn shown(ty: &CqlType, value: Option<&Bytes>) -> String {
    match value {
        None => "null".into(),
        Some(bytes) => Value::decode(ty, bytes)
            .unwrap_or_else(|e| panic!("{ty}: {e}"))
            .to_string(),
    }
}

fn parts(outcome: Outcome) -> (Vec<ColumnSpec>, Vec<Vec<Option<Bytes>>>) {
    match outcome {
        Outcome::Rows { columns, rows, .. } => (columns, rows.iter().collect()),
        other => panic!("no rows: {other:?}"),
    }
}

/// The rows of an answer, values as CQL literals, separated by commas.
fn table(outcome: Outcome) -> Vec<String> {
    let (columns, rows) = parts(outcome);
    rows.iter()
        .map(|row| {
            columns
                .iter()
                .zip(row)
                .map(|(c, v)| shown(&c.ty, v.as_ref()))
                .collect::<Vec<_>>()
                .join(", ")
        })
        .collect()
}

fn select(engine: &Engine, statement: &str) -> Vec<String> {
    table(run(engine, statement))
}

fn int(value: i32) -> BoundValue {
    BoundValue::Bytes(Bytes::copy_from_slice(&value.to_be_bytes()))
}
