//! What Penstock is held against: a bare loop over the same drivers, and the obvious program.
#![allow(unreachable_pub)]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, FutureProducer, FutureRecord, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode as Code;
use scylla::client::session::Session;
use scylla::deserialize::row::ColumnIterator;
use scylla::response::{PagingState, PagingStateResponse};
use scylla::statement::prepared::PreparedStatement;
use scylla_cdc::consumer::{CDCRow, Consumer, ConsumerFactory};
use scylla_cdc::log_reader::CDCLogReaderBuilder;
use testkit::acks::Acks;
use uuid::Uuid;

use crate::rig::session;

/// No contestant is waited for longer than this.
pub const BOUND: Duration = Duration::from_secs(180);
/// Rows a page, as Penstock's default has it.
const PAGE: i32 = 1_000;

fn producer_config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "0")
        .set("partitioner", "murmur2_random");
    config
}

/// Stays, so that its memory and its time can be read.
async fn done() -> Result<()> {
    tokio::time::sleep(BOUND).await;
    Ok(())
}

pub async fn bare(node: &str, brokers: &str, topic: &str, headers: bool) -> Result<()> {
    let session = Arc::new(session(node).await?);
    let generations = session
        .query_unpaged(
            "SELECT time FROM system_distributed.cdc_generation_timestamps WHERE key = 'timestamps'",
            (),
        )
        .await?
        .into_rows_result()?;
    let (generation,) = generations.first_row::<(scylla::value::CqlTimestamp,)>()?;
    let groups = session
        .query_unpaged(
            "SELECT streams FROM system_distributed.cdc_streams_descriptions_v2 WHERE time = ?",
            (generation,),
        )
        .await?
        .into_rows_result()?;
    let mut statement = session
        .prepare(
            "SELECT * FROM ks.outbox_scylla_cdc_log WHERE \"cdc$stream_id\" IN ? AND \"cdc$time\" >= minTimeuuid(0) \
             AND \"cdc$time\" < now() BYPASS CACHE",
        )
        .await?;
    statement.set_page_size(PAGE);
    let producer: Arc<ThreadedProducer<Acks>> =
        Arc::new(producer_config(brokers).create_with_context(Acks::default())?);
    let mut tasks = tokio::task::JoinSet::new();
    for row in groups.rows::<(Vec<Vec<u8>>,)>()? {
        let (streams,) = row?;
        let (session, statement, producer) = (session.clone(), statement.clone(), producer.clone());
        let topic = topic.to_owned();
        tasks.spawn(async move {
            bare_group(session, statement, streams, producer, &topic, headers).await
        });
    }
    let mut sent = 0;
    while let Some(group) = tasks.join_next().await {
        sent += group??;
    }
    use rdkafka::producer::Producer as _;
    while producer.client().context().count() < sent {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    done().await
}

async fn bare_group(
    session: Arc<Session>,
    statement: PreparedStatement,
    streams: Vec<Vec<u8>>,
    producer: Arc<ThreadedProducer<Acks>>,
    topic: &str,
    headers: bool,
) -> Result<u64> {
    let streams = Arc::new(streams);
    let page = |paging: PagingState| {
        let (session, statement, streams) = (session.clone(), statement.clone(), streams.clone());
        tokio::spawn(async move {
            session
                .execute_single_page(&statement, (&*streams,), paging)
                .await
        })
    };
    let mut next = Some(page(PagingState::start()));
    let mut sent = 0;
    while let Some(asked) = next.take() {
        let (result, paging) = asked.await??;
        // The next page comes while this one is worked on.
        if let PagingStateResponse::HasMorePages { state } = paging {
            next = Some(page(state));
        }
        let rows = result.into_rows_result()?;
        let at = |name: &str| {
            let specs = rows.column_specs();
            specs
                .iter()
                .position(|s| s.name() == name)
                .with_context(|| format!("no column {name}"))
        };
        let (id_at, payload_at) = (at("aggregate_id")?, at("payload")?);
        for row in rows.rows::<ColumnIterator<'_, '_>>()? {
            let (mut id, mut payload) = (None, None);
            for (i, column) in row?.enumerate() {
                let slice = column?.slice.map(|s| s.as_slice());
                if i == id_at {
                    id = slice;
                } else if i == payload_at {
                    payload = slice;
                }
            }
            let mut key = [0; 36];
            let id = Uuid::from_slice(id.context("a key")?)?;
            id.hyphenated().encode_lower(&mut key);
            let mut out = headers.then(|| {
                let header = |key, value| Header {
                    key,
                    value: Some(value),
                };
                OwnedHeaders::new_with_capacity(4)
                    .insert(header("penstock-position", &[b'p'; 71][..]))
                    .insert(header("event-id", &[b'e'; 36]))
                    .insert(header("event-type", b"order.updated"))
                    .insert(header("traceparent", &[b't'; 55]))
            });
            loop {
                let mut record = BaseRecord::<[u8], [u8]>::to(topic).key(&key[..]);
                record.payload = payload;
                record.headers = out.take();
                match producer.send(record) {
                    Ok(()) => break,
                    Err((KafkaError::MessageProduction(Code::QueueFull), back)) => {
                        out = back.headers;
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    Err((error, _)) => return Err(error.into()),
                }
            }
            sent += 1;
        }
    }
    Ok(sent)
}

/// One awaited send a row.
#[derive(Clone)]
pub struct Seed {
    producer: FutureProducer,
    topic: Arc<str>,
}

#[async_trait]
impl ConsumerFactory for Seed {
    async fn new_consumer(&self) -> Box<dyn Consumer> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Consumer for Seed {
    async fn consume_cdc(&mut self, mut row: CDCRow<'_>) -> Result<()> {
        let id = row
            .take_value("aggregate_id")
            .and_then(|v| v.as_uuid())
            .context("a key")?;
        let payload = row
            .take_value("payload")
            .and_then(|v| v.into_string())
            .unwrap_or_default();
        let key = id.to_string();
        let record = FutureRecord::to(&self.topic).key(&key).payload(&payload);
        let sent = self.producer.send(record, Duration::from_secs(10)).await;
        sent.map_err(|(error, _)| error)?;
        Ok(())
    }
}

pub async fn seed(node: &str, brokers: &str, topic: &str) -> Result<()> {
    let session = Arc::new(session(node).await?);
    let seed = Seed {
        producer: producer_config(brokers).set("linger.ms", "0").create()?,
        topic: topic.into(),
    };
    let now = std::time::UNIX_EPOCH.elapsed()?;
    let (_reader, read) = CDCLogReaderBuilder::new()
        .session(session)
        .keyspace("ks")
        .table_name("outbox")
        .start_timestamp(now.saturating_sub(Duration::from_secs(3600)))
        .end_timestamp(now)
        .window_size(Duration::from_secs(3600))
        .safety_interval(Duration::from_millis(10))
        .sleep_interval(Duration::from_millis(1))
        .consumer_factory(Arc::new(seed))
        .build()
        .await?;
    read.await?;
    done().await
}
