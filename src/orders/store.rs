//! Orders in ScyllaDB. With `source/scylla`, the only module that knows the driver.

use std::sync::Arc;
use std::time::Duration;

use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::errors::{DbError, MaybeFirstRowError, RequestAttemptError};
use scylla::errors::{ExecutionError, IntoRowsResultError, NewSessionError, PrepareError};
use scylla::policies::retry::FallthroughRetryPolicy;
use scylla::statement::Consistency;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::value::{CqlTimestamp, CqlTimeuuid};
use uuid::Uuid;

use super::clock::Clock;
use super::model::{Event, EventType, Order, Status};
use crate::change::timeuuid_us;
use crate::config::Settings;
use crate::config::settings::Nodes;
use crate::cql::quoted;
use crate::policy::Class;
use crate::reach;
use crate::source::scylla::place::{self, NoSuchPlace};
use crate::source::scylla::secure::Credentials;

/// The schema as it is created, with `{keyspace}`, `{replication_factor}` and `{outbox_ttl}` to fill in.
const SCHEMA: &str = include_str!("../../deploy/schema/orders.cql");

/// The key of what a probe writes. No request has it: a header holds no control character.
const PROBE_KEY: &str = "\nprobe";

/// How long a first connection may take before the nodes count as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A read or write of orders failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No node answers as it should.
    #[error(
        "cannot connect to ScyllaDB for the orders: {reason}; check source.nodes, source.tls and that it runs"
    )]
    Unreachable {
        /// What each one met.
        reason: String,
    },
    /// Requests are pinned to where no node is.
    #[error(
        "no node of ScyllaDB's is in {wanted} for the orders, there are {there}; check source.datacenter and source.rack"
    )]
    NoSuchPlace {
        /// Data centre, and rack if one is named.
        wanted: String,
        /// The data centres that there are, each with its racks.
        there: String,
    },
    /// No session is to be had.
    #[error(
        "cannot connect to ScyllaDB at {nodes}: {error}; check `source.nodes` and that it runs"
    )]
    Connect {
        /// The contact points.
        nodes: String,
        /// What the driver said.
        error: Box<NewSessionError>,
    },
    /// The orders' tables are not there, or differ from what this version needs.
    #[error(
        "the order tables in keyspace {keyspace} cannot be used: {error}; `penstock init-schema` creates them, and adds what \
         those of an older version lack"
    )]
    Schema {
        /// `orders.keyspace`
        keyspace: String,
        /// What ScyllaDB said.
        error: Box<PrepareError>,
    },
    /// A statement failed.
    #[error("ScyllaDB: {0}")]
    Execution(#[from] Box<ExecutionError>),
    /// A row is not what the schema says.
    #[error("a row of {table} cannot be read: {error}")]
    Row {
        /// Which table.
        table: &'static str,
        /// What is wrong.
        error: String,
    },
}

impl From<ExecutionError> for StoreError {
    fn from(error: ExecutionError) -> Self {
        Self::Execution(Box::new(error))
    }
}

impl StoreError {
    /// Whether trying again may help.
    pub fn class(&self) -> Class {
        match self {
            Self::Connect { .. } | Self::Unreachable { .. } | Self::NoSuchPlace { .. } => {
                Class::Retryable
            }
            Self::Schema { .. } => Class::Fatal,
            Self::Row { .. } => Class::Poison,
            Self::Execution(error) => match error.as_ref() {
                ExecutionError::LastAttemptError(RequestAttemptError::DbError(
                    DbError::SyntaxError
                    | DbError::Invalid
                    | DbError::AlreadyExists { .. }
                    | DbError::Unauthorized
                    | DbError::AuthenticationError
                    | DbError::ConfigError,
                    _,
                )) => Class::Fatal,
                ExecutionError::BadQuery(_) => Class::Poison,
                _ => Class::Retryable,
            },
        }
    }
}

/// The statements that create the order service's schema, in order.
pub fn schema_statements(settings: &Settings, replication_factor: u32) -> Vec<String> {
    let text = SCHEMA
        .replace("{keyspace}", &quoted(&settings.orders.keyspace))
        .replace("{replication_factor}", &replication_factor.to_string())
        .replace(
            "{outbox_ttl}",
            &settings.orders.outbox_ttl.as_secs().to_string(),
        )
        .replace(
            "{idempotency_ttl}",
            &settings.orders.idempotency_ttl.as_secs().to_string(),
        );
    let uncommented = text
        .lines()
        .filter(|l| !l.trim_start().starts_with("--"))
        .collect::<Vec<_>>()
        .join("\n");
    uncommented
        .split(';')
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .map(str::to_owned)
        .collect()
}

async fn connect(settings: &Settings) -> Result<Session, StoreError> {
    let unreachable = |reason: String| StoreError::Unreachable { reason };
    let nodes = match &settings.source.nodes {
        Nodes::At(nodes) => nodes.clone(),
        Nodes::Embedded => Vec::new(),
    };
    let credentials = Credentials::of(&settings.source);
    // The driver says the same in several lines of its log, and less plainly.
    let answering = reach::cql(&nodes, credentials.trust.as_ref())
        .await
        .map_err(unreachable)?;
    // Where the source reads, orders are written: a change is read as soon as it is there.
    let profile =
        ExecutionProfile::builder().load_balancing_policy(place::policy(&settings.source));
    let builder = SessionBuilder::new()
        .known_nodes(&answering)
        .connection_timeout(CONNECT_TIMEOUT)
        .default_execution_profile_handle(
            profile
                .build()
                .into_handle_with_label("penstock-orders".into()),
        );
    let builder = credentials.apply(builder, &nodes).map_err(unreachable)?;
    let session = builder.build().await.map_err(|error| StoreError::Connect {
        nodes: nodes.join(", "),
        error: Box::new(error),
    })?;
    place::look(&session, &settings.source)
        .map_err(|NoSuchPlace { wanted, there }| StoreError::NoSuchPlace { wanted, there })?;
    Ok(session)
}

/// Columns that tables of an older version lack: table, column, type. With them `init-schema` mends such tables.
pub const ADDED_COLUMNS: [(&str, &str, &str); 1] = [("order_requests", "event_id", "timeuuid")];

/// Creates what is missing of the schema; running it again changes nothing.
pub async fn init_schema(settings: &Settings, replication_factor: u32) -> Result<(), StoreError> {
    let session = connect(settings).await?;
    for statement in schema_statements(settings, replication_factor) {
        session.query_unpaged(statement, ()).await?;
    }
    let keyspace = &settings.orders.keyspace;
    for (table, column, kind) in ADDED_COLUMNS {
        let there = session
            .query_unpaged(
                "SELECT column_name FROM system_schema.columns WHERE keyspace_name = ? AND table_name = ? AND column_name = ?",
                (keyspace, table, column),
            )
            .await?
            .into_rows_result()
            .is_ok_and(|rows| rows.rows_num() > 0);
        if !there {
            let ks = quoted(keyspace);
            session
                .query_unpaged(format!("ALTER TABLE {ks}.{table} ADD {column} {kind}"), ())
                .await?;
            tracing::info!(table, column, "column added to a table of an older version");
        }
    }
    session
        .await_schema_agreement()
        .await
        .map_err(ExecutionError::from)?;
    Ok(())
}

/// What became of a request with an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The key is new and now stands for this order.
    New,
    /// The same request was seen before.
    Seen {
        /// It stands for this order …
        order: Uuid,
        /// … made by this event; `None`: claimed by a version that did not keep it.
        event: Option<Uuid>,
    },
    /// The key was used for another request.
    Conflict,
}

type Row = (
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<i64>,
    Option<i32>,
    Option<CqlTimestamp>,
    Option<CqlTimestamp>,
);

/// The prepared statements.
pub struct Store {
    session: Session,
    clock: Clock,
    select: PreparedStatement,
    claim: PreparedStatement,
    written: PreparedStatement,
    /// Writes for no longer than a second, to find out whether it could.
    probe: PreparedStatement,
    write: Batch,
}

/// A change of an order. Its event id is made once, and says when it happened: written twice, it is one event.
#[derive(Clone, Copy, Debug)]
pub struct OrderChange<'a> {
    /// As it is after it.
    pub order: &'a Order,
    /// What happened.
    pub event: EventType,
    /// Of [`Store::next_event`].
    pub event_id: Uuid,
    /// How long the event is kept, in whole seconds, whatever the table's own default is.
    pub ttl: Duration,
    /// W3C trace context.
    pub traceparent: &'a str,
}

impl Store {
    /// Connects and prepares.
    pub async fn connect(settings: &Settings) -> Result<Self, StoreError> {
        let session = connect(settings).await?;
        let keyspace = &settings.orders.keyspace;
        let ks = quoted(keyspace);
        let prepare = async |cql: String| {
            let mut statement = session
                .prepare(cql)
                .await
                .map_err(|error| StoreError::Schema {
                    keyspace: keyspace.clone(),
                    error: Box::new(error),
                })?;
            statement.set_consistency(Consistency::LocalQuorum);
            // Every write carries its own timestamp, so a repeated one changes nothing.
            statement.set_is_idempotent(true);
            Ok::<_, StoreError>(statement)
        };
        let select = prepare(format!(
            "SELECT customer_id, status, items, currency, total_minor, version, created_at, updated_at FROM {ks}.orders WHERE id = ?"
        ))
        .await?;
        let claim = prepare(format!(
            "INSERT INTO {ks}.order_requests (idempotency_key, order_id, event_id, request_hash, created_at) VALUES (?, ?, ?, ?, ?) IF NOT EXISTS USING TTL ?"
        ))
        .await?;
        let written = prepare(format!(
            "SELECT event_id FROM {ks}.outbox_messages WHERE aggregate_id = ? AND event_id = ?"
        ))
        .await?;
        let probe = prepare(format!(
            "INSERT INTO {ks}.order_requests (idempotency_key, created_at) VALUES (?, ?) USING TTL 1"
        ))
        .await?;
        let order = prepare(format!(
            "INSERT INTO {ks}.orders (id, customer_id, status, items, currency, total_minor, version, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        ))
        .await?;
        let event = prepare(format!(
            "INSERT INTO {ks}.outbox_messages (aggregate_id, event_id, aggregate_type, event_type, payload, created_at, traceparent) VALUES (?, ?, 'order', ?, ?, ?, ?) USING TTL ?"
        ))
        .await?;
        let mut write = Batch::new(BatchType::Logged);
        write.append_statement(order);
        write.append_statement(event);
        write.set_consistency(Consistency::LocalQuorum);
        write.set_is_idempotent(true);
        // Whether one that timed out was applied is looked up before it is sent again, which the driver would not do.
        write.set_retry_policy(Some(Arc::new(FallthroughRetryPolicy::new())));
        Ok(Self {
            session,
            clock: Clock::new(),
            select,
            claim,
            written,
            probe,
            write,
        })
    }

    /// The id of the next change's event, of a later time than any before.
    pub fn next_event(&self) -> Uuid {
        self.clock.event_id(self.clock.next_us())
    }

    /// Claims an idempotency key for an order and its event, for this long (whole seconds).
    pub async fn claim(
        &self,
        key: &str,
        (order, event): (Uuid, Uuid),
        hash: &[u8],
        ttl: Duration,
    ) -> Result<Claim, StoreError> {
        let at = CqlTimestamp(timeuuid_us(&event) / 1_000);
        let event = CqlTimeuuid::from(event);
        let result = self
            .session
            .execute_unpaged(&self.claim, (key, order, event, hash, at, seconds(ttl)))
            .await?;
        let rows = result
            .into_rows_result()
            .map_err(|e: IntoRowsResultError| row_error("order_requests", &e))?;
        // `[applied]`, then the row that was there: ScyllaDB sends its columns in either case.
        let specs = rows.column_specs();
        let index = |name: &str| specs.iter().position(|c| c.name() == name);
        let (order_at, hash_at) = (index("order_id"), index("request_hash"));
        let event_at = index("event_id");
        let row = rows
            .maybe_first_row::<scylla::value::Row>()
            .map_err(|e: MaybeFirstRowError| row_error("order_requests", &e))?
            .ok_or_else(|| row_error("order_requests", &"no answer to IF NOT EXISTS"))?;
        let column =
            |at: Option<usize>| at.and_then(|i| row.columns.get(i)).and_then(Option::as_ref);
        if column(Some(0)).and_then(|v| v.as_boolean()) == Some(true) {
            return Ok(Claim::New);
        }
        let seen = column(order_at).and_then(|v| v.as_uuid());
        let same = column(hash_at)
            .and_then(|v| v.as_blob())
            .is_some_and(|h| h.as_slice() == hash);
        match seen {
            Some(order) if same => Ok(Claim::Seen {
                order,
                event: column(event_at)
                    .and_then(|v| v.as_timeuuid())
                    .map(Uuid::from),
            }),
            Some(_) => Ok(Claim::Conflict),
            None => Err(row_error(
                "order_requests",
                &"a refused claim names no order",
            )),
        }
    }

    /// The order of this id.
    pub async fn get(&self, id: Uuid) -> Result<Option<Order>, StoreError> {
        let result = self.session.execute_unpaged(&self.select, (id,)).await?;
        let rows = result
            .into_rows_result()
            .map_err(|e| row_error("orders", &e))?;
        let row = rows
            .maybe_first_row::<Row>()
            .map_err(|e| row_error("orders", &e))?;
        row.map(|row| order(id, row)).transpose()
    }

    /// Whether an event was written: what a write that timed out does not say.
    pub async fn is_written(&self, change: &OrderChange<'_>) -> Result<bool, StoreError> {
        let values = (change.order.id, CqlTimeuuid::from(change.event_id));
        let result = self.session.execute_unpaged(&self.written, values).await?;
        let rows = result
            .into_rows_result()
            .map_err(|e| row_error("outbox_messages", &e))?;
        Ok(rows.rows_num() > 0)
    }

    /// Writes what nobody reads, as an order is written.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let mut batch = self.write.clone();
        batch.statements.clear();
        batch.append_statement(self.probe.clone());
        let at_us = self.clock.next_us();
        batch.set_timestamp(Some(at_us));
        let row = (PROBE_KEY, CqlTimestamp(at_us / 1_000));
        self.session.batch(&batch, (row,)).await?;
        Ok(())
    }

    /// Writes an order and the event of its change in one logged batch. The write's time is now, not the event's: one
    /// that is tried again much later would otherwise appear in the change log behind who reads it.
    pub async fn write(&self, change: &OrderChange<'_>) -> Result<(), StoreError> {
        let OrderChange {
            order,
            event,
            event_id,
            ttl,
            traceparent,
        } = *change;
        let occurred_at_ms = timeuuid_us(&event_id) / 1_000;
        let json = |value: serde_json::Result<String>| value.map_err(|e| row_error("orders", &e));
        let items = json(serde_json::to_string(&order.items))?;
        let payload = json(serde_json::to_string(&Event {
            event_id,
            event_type: event.name(),
            occurred_at_ms,
            order,
        }))?;
        let row = (
            order.id,
            order.customer_id.as_str(),
            status_name(order.status),
            items,
            order.currency.as_str(),
            order.total_minor,
            order.version,
            CqlTimestamp(order.created_at_ms),
            CqlTimestamp(order.updated_at_ms),
        );
        let outbox = (
            order.id,
            CqlTimeuuid::from(event_id),
            event.name(),
            payload,
            CqlTimestamp(occurred_at_ms),
            traceparent,
            seconds(ttl),
        );
        let mut batch = self.write.clone();
        batch.set_timestamp(Some(self.clock.next_us()));
        self.session.batch(&batch, (row, outbox)).await?;
        Ok(())
    }
}

/// As CQL has a TTL.
fn seconds(ttl: Duration) -> i32 {
    i32::try_from(ttl.as_secs()).unwrap_or(i32::MAX)
}

fn status_name(status: Status) -> &'static str {
    match status {
        Status::Placed => "placed",
        Status::Confirmed => "confirmed",
        Status::Shipped => "shipped",
        Status::Delivered => "delivered",
        Status::Cancelled => "cancelled",
    }
}

fn row_error(table: &'static str, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Row {
        table,
        error: error.to_string(),
    }
}

fn order(id: Uuid, row: Row) -> Result<Order, StoreError> {
    let (customer_id, status, items, currency, total_minor, version, created_at, updated_at) = row;
    let missing = |column: &str| row_error("orders", &format!("{column} is null"));
    let json = |e: serde_json::Error| row_error("orders", &e);
    let status = serde_json::Value::String(status.ok_or_else(|| missing("status"))?);
    Ok(Order {
        id,
        customer_id: customer_id.ok_or_else(|| missing("customer_id"))?,
        status: serde_json::from_value(status).map_err(json)?,
        items: serde_json::from_str(&items.ok_or_else(|| missing("items"))?).map_err(json)?,
        currency: currency.ok_or_else(|| missing("currency"))?,
        total_minor: total_minor.ok_or_else(|| missing("total_minor"))?,
        version: version.ok_or_else(|| missing("version"))?,
        created_at_ms: created_at.ok_or_else(|| missing("created_at"))?.0,
        updated_at_ms: updated_at.ok_or_else(|| missing("updated_at"))?.0,
    })
}
