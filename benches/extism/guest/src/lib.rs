//! The outbox router as an Extism plugin: the same source, called with the same bytes; and what an author would write
//! whom nobody gave an encoding: JSON in, JSON out.

#[path = "../../../../plugins/outbox-router/src/lib.rs"]
mod router;

use std::borrow::Cow;
use std::cell::RefCell;

use extism_pdk::{Error, FnResult, plugin_fn};
use penstock_plugin::{Column, ColumnKind, CqlType, Runtime, Settings, Table};
use router::OutboxRouter;
use serde::{Deserialize, Serialize};

const PREFIX: &str = "events.";

thread_local! {
    static ROUTER: RefCell<Option<Runtime<OutboxRouter>>> = const { RefCell::new(None) };
}

/// The router as the host of Penstock configures it, its table opened.
fn router() -> Result<Runtime<OutboxRouter>, penstock_plugin::Error> {
    use ColumnKind::{ClusteringKey, PartitionKey, Regular};
    let prefix = ("topic_prefix".to_owned(), PREFIX.to_owned());
    let settings: Settings = [prefix].into_iter().collect();
    let mut router = Runtime::new(&settings)?;
    let columns = [
        ("aggregate_id", CqlType::Text, PartitionKey),
        ("event_id", CqlType::Timeuuid, ClusteringKey),
        ("aggregate_type", CqlType::Text, Regular),
        ("event_type", CqlType::Text, Regular),
        ("payload", CqlType::Text, Regular),
        ("created_at", CqlType::Timestamp, Regular),
        ("traceparent", CqlType::Text, Regular),
        ("tenant", CqlType::Text, Regular),
        ("version", CqlType::Int, Regular),
        ("attempt", CqlType::Int, Regular),
        ("source", CqlType::Text, Regular),
        ("extra", CqlType::Blob, Regular),
    ];
    let columns = columns.map(|(name, cql_type, kind)| Column {
        name: name.into(),
        cql_type,
        kind,
    });
    router.open_table(Table {
        id: 1,
        keyspace: "ks".into(),
        name: "outbox_messages".into(),
        columns: columns.into(),
    })?;
    Ok(router)
}

/// A batch of Penstock's encoding, and its output.
#[plugin_fn]
pub fn same_bytes(batch: Vec<u8>) -> FnResult<Vec<u8>> {
    let made = ROUTER.with_borrow_mut(|made| {
        let router = match made {
            Some(router) => router,
            None => made.insert(router()?),
        };
        router.process(batch)
    });
    Ok(made.map_err(|e| Error::msg(e.to_string()))?)
}

/// What a call costs in which nothing is done.
#[plugin_fn]
pub fn nothing(batch: Vec<u8>) -> FnResult<Vec<u8>> {
    std::hint::black_box(&batch);
    Ok(Vec::new())
}

/// The columns that the router looks at.
#[derive(Deserialize)]
struct Change<'a> {
    #[serde(borrow)]
    aggregate_id: Cow<'a, str>,
    #[serde(borrow)]
    event_id: Cow<'a, str>,
    #[serde(borrow)]
    aggregate_type: Cow<'a, str>,
    #[serde(borrow)]
    event_type: Cow<'a, str>,
    #[serde(borrow)]
    payload: Cow<'a, str>,
    #[serde(borrow)]
    traceparent: Cow<'a, str>,
}

#[derive(Serialize)]
struct Record<'a> {
    topic: String,
    key: &'a str,
    value: &'a str,
    headers: [(&'a str, &'a str); 3],
}

/// An array of changes as JSON objects, an array of records.
#[plugin_fn]
pub fn json(batch: Vec<u8>) -> FnResult<Vec<u8>> {
    let changes: Vec<Change<'_>> = serde_json::from_slice(&batch)?;
    let records: Vec<Record<'_>> = changes
        .iter()
        .map(|change| Record {
            topic: format!("{PREFIX}{}", change.aggregate_type),
            key: &change.aggregate_id,
            value: &change.payload,
            headers: [
                ("event-id", &change.event_id),
                ("event-type", &change.event_type),
                ("traceparent", &change.traceparent),
            ],
        })
        .collect();
    Ok(serde_json::to_vec(&records)?)
}
