//! Routes the rows of an outbox table: one topic per aggregate type, keyed by aggregate id, so that the events
//! of an aggregate stay in order.
//!
//! | setting | default | |
//! |---|---|---|
//! | `topic_prefix` | `""` | topic = prefix + aggregate type |
//! | `tables` | all | comma-separated `table` or `keyspace.table`; the others pass by |
//! | `aggregate_type_column` | `aggregate_type` | text; what the topic is named by |
//! | `aggregate_id_column` | `aggregate_id` | any type; its text form is the key |
//! | `event_id_column` | `event_id` | any type; header `event-id` |
//! | `event_type_column` | `event_type` | text; header `event-type` |
//! | `payload_column` | `payload` | text or blob; the value, byte for byte; null is a tombstone |
//! | `trace_column` | `traceparent` | text, optional; header `traceparent` |
//!
//! Only inserts are events: what deletes or expires old rows is dropped. A row that lacks a column is refused
//! by itself.

use penstock_plugin::{
    Change, ColumnKind, CqlType, Error, Handle, Interest, Operation, Output, Settings, Table,
    Transform, bail,
};

/// Kafka's limit on the length of a topic's name.
const MAX_TOPIC: usize = 249;

struct OutboxRouter {
    tables: Option<Vec<String>>,
    columns: Columns<String>,
    /// The columns of each table version, looked up.
    routes: Vec<Route>,
    /// The topic prefix, with room for the aggregate type after it.
    topic: String,
    prefix: usize,
}

struct Route {
    table: u32,
    columns: Columns<Handle>,
    /// The aggregate id is text, and part of the primary key, so never null: its bytes are the key.
    text_key: bool,
}

struct Columns<T> {
    aggregate_type: T,
    aggregate_id: T,
    event_id: T,
    event_type: T,
    payload: T,
    trace: T,
}

impl Columns<String> {
    fn in_table(&self, table: &Table) -> Columns<Handle> {
        Columns {
            aggregate_type: table.handle(&self.aggregate_type),
            aggregate_id: table.handle(&self.aggregate_id),
            event_id: table.handle(&self.event_id),
            event_type: table.handle(&self.event_type),
            payload: table.handle(&self.payload),
            trace: table.handle(&self.trace),
        }
    }
}

impl Route {
    /// All columns that are looked at; the payload, and an id whose bytes are the key, are only named.
    fn wanted(&self) -> Interest {
        let c = &self.columns;
        let id = (!self.text_key).then_some(&c.aggregate_id);
        let columns = [&c.aggregate_type, &c.event_id, &c.event_type, &c.trace];
        let columns = columns.into_iter().chain(id);
        Interest::Columns(columns.filter_map(Handle::index).collect())
    }
}

fn is_topic_text(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

impl Transform for OutboxRouter {
    fn configure(settings: &Settings) -> Result<Self, Error> {
        settings.only(&[
            "topic_prefix",
            "tables",
            "aggregate_type_column",
            "aggregate_id_column",
            "event_id_column",
            "event_type_column",
            "payload_column",
            "trace_column",
        ])?;
        let topic = settings.get("topic_prefix").unwrap_or_default().to_owned();
        if !is_topic_text(&topic) || topic.len() >= MAX_TOPIC {
            bail!(
                "setting `topic_prefix` = {topic:?}: a topic has letters, digits, '.', '_' and '-', \
                 less than {MAX_TOPIC} in all"
            );
        }
        let tables = settings.get("tables").map(|tables| {
            let names = tables.split(',').map(|name| name.trim().to_owned());
            names.collect::<Vec<_>>()
        });
        if tables.iter().flatten().any(String::is_empty) {
            bail!("setting `tables` has an empty name; leave it out to route every table");
        }
        let column = |key: &str, default: &str| match settings.get(key) {
            Some("") => Err(Error::new(format!("setting `{key}` is empty"))),
            name => Ok(name.unwrap_or(default).to_owned()),
        };
        Ok(Self {
            tables,
            columns: Columns {
                aggregate_type: column("aggregate_type_column", "aggregate_type")?,
                aggregate_id: column("aggregate_id_column", "aggregate_id")?,
                event_id: column("event_id_column", "event_id")?,
                event_type: column("event_type_column", "event_type")?,
                payload: column("payload_column", "payload")?,
                trace: column("trace_column", "traceparent")?,
            },
            routes: Vec::new(),
            prefix: topic.len(),
            topic,
        })
    }

    fn interest(&mut self, table: &Table) -> Result<Interest, Error> {
        let full = format!("{}.{}", table.keyspace, table.name);
        let ours = match &self.tables {
            Some(names) => names.iter().any(|n| *n == table.name || *n == full),
            None => !table.is_record_table(),
        };
        if !ours {
            return Ok(Interest::Ignore);
        }
        let columns = self.columns.in_table(table);
        let id = columns.aggregate_id.index();
        let id = id.map(|index| &table.columns[usize::from(index)]);
        let route = Route {
            table: table.id,
            text_key: id.is_some_and(|id| {
                let key = matches!(
                    id.kind,
                    ColumnKind::PartitionKey | ColumnKind::ClusteringKey
                );
                key && matches!(id.cql_type, CqlType::Text | CqlType::Ascii)
            }),
            columns,
        };
        let wanted = route.wanted();
        self.routes.retain(|known| known.table != table.id);
        self.routes.push(route);
        Ok(wanted)
    }

    fn process(&mut self, change: &Change<'_>, out: &mut Output) -> Result<(), Error> {
        if change.operation() != Operation::Insert {
            return Ok(());
        }
        let table = change.table().id;
        let route = self.routes.iter().find(|route| route.table == table);
        let Route {
            columns, text_key, ..
        } = route.ok_or(Error::new("its table was never opened"))?;
        let aggregate_type: &str = change.get(&columns.aggregate_type)?;
        if aggregate_type.is_empty() || !is_topic_text(aggregate_type) {
            bail!("aggregate type {aggregate_type:?} cannot be part of a topic's name");
        }
        self.topic.truncate(self.prefix);
        self.topic.push_str(aggregate_type);
        if self.topic.len() > MAX_TOPIC {
            bail!("topic {:?} is longer than {MAX_TOPIC} bytes", self.topic);
        }
        let payload = change.column_ref(&columns.payload)?;
        let event_type: &str = change.get(&columns.event_type)?;
        let event_id = change.text(&columns.event_id)?;
        let record = out.record(&self.topic);
        let record = match text_key {
            true => record.key(change.column_ref(&columns.aggregate_id)?),
            false => record.key(&*change.text(&columns.aggregate_id)?),
        };
        let record = record
            .value(payload)
            .header("event-id", &*event_id)
            .header("event-type", event_type);
        if let Some(trace) = change.find::<&str>(&columns.trace)? {
            record.header("traceparent", trace);
        }
        Ok(())
    }
}

penstock_plugin::export_plugin!(OutboxRouter);

#[cfg(test)]
mod tests {
    use penstock_plugin::Uuid;
    use penstock_plugin::testing::{Harness, Outcome, TestRecord, TestTable};

    use super::*;

    const COLUMNS: &str = "aggregate_id text primary, event_id timeuuid clustering, \
        aggregate_type text, event_type text, payload text, created_at timestamp, traceparent text";

    fn router(settings: &[(&str, &str)]) -> (Harness<OutboxRouter>, TestTable) {
        let mut harness = Harness::new(settings).unwrap();
        let table = harness.table("orders_ks.outbox_messages", COLUMNS).unwrap();
        (harness, table)
    }

    fn event_id() -> Uuid {
        Uuid::parse_str("8e3d2f00-e86c-11f0-9d3d-0242ac120002").unwrap()
    }

    fn one(outcome: Outcome) -> TestRecord {
        match outcome {
            Outcome::Records(mut records) if records.len() == 1 => records.remove(0),
            other => panic!("not one record: {other:?}"),
        }
    }

    #[test]
    fn an_insert_becomes_an_event() {
        let (mut harness, table) = router(&[("topic_prefix", "events.")]);
        let row = table
            .insert()
            .set("aggregate_id", "order-1")
            .set("event_id", event_id())
            .set("aggregate_type", "Order")
            .set("event_type", "OrderCreated")
            .set("payload", "{\"a\": 1}");
        let record = one(harness.run(row.clone()));
        assert_eq!(record.topic, "events.Order");
        assert_eq!(record.key.as_deref(), Some(&b"order-1"[..]));
        assert_eq!(record.value.as_deref(), Some(&b"{\"a\": 1}"[..]));
        let id = event_id().to_string();
        assert_eq!(record.header("event-id"), Some(id.as_str()));
        assert_eq!(record.header("event-type"), Some("OrderCreated"));
        assert_eq!(record.header("traceparent"), None);

        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let traced = row.clone().set("traceparent", trace).null("payload");
        let record = one(harness.run(traced));
        assert_eq!(record.header("traceparent"), Some(trace));
        assert_eq!(record.value, None, "a null payload is a tombstone");
    }

    #[test]
    fn a_row_that_lacks_something_is_refused_by_itself() {
        let (mut harness, table) = router(&[]);
        let refused = |outcome| match outcome {
            Outcome::Refused(message) => message,
            other => panic!("not refused: {other:?}"),
        };
        let row = table
            .insert()
            .set("aggregate_id", "order-1")
            .set("event_id", event_id())
            .set("event_type", "OrderCreated")
            .set("payload", "{}");
        let message = refused(harness.run(row.clone()));
        assert!(
            message.contains("`aggregate_type`") && message.contains("not set"),
            "{message}"
        );
        let message = refused(harness.run(row.clone().set("aggregate_type", "a b")));
        assert!(message.contains("\"a b\""), "{message}");
        let long = "x".repeat(250);
        let message = refused(harness.run(row.set("aggregate_type", long.as_str())));
        assert!(message.contains("longer than 249"), "{message}");

        let loose = COLUMNS.replace("aggregate_id text primary", "aggregate_id text");
        let loose = harness.table("orders_ks.loose", &loose).unwrap();
        let row = loose
            .insert()
            .null("aggregate_id")
            .set("event_id", event_id())
            .set("aggregate_type", "Order")
            .set("event_type", "OrderCreated")
            .set("payload", "{}");
        let message = refused(harness.run(row));
        assert!(message.contains("is null"), "an event has a key: {message}");

        let other = harness.table("orders_ks.people", "id int primary").unwrap();
        let message = refused(harness.run(other.insert().set("id", 1)));
        assert!(message.contains("does not exist"), "{message}");
    }

    #[test]
    fn only_inserts_are_events_and_other_tables_pass_by() {
        let (mut harness, table) = router(&[("tables", "other, orders_ks.outbox_messages")]);
        let delete = table.change(Operation::RowDelete).set("aggregate_id", "a");
        assert_eq!(harness.run(delete), Outcome::Dropped);
        let people = harness.table("orders_ks.people", "id int primary").unwrap();
        assert_eq!(harness.run(people.insert()), Outcome::Ignored);
    }

    #[test]
    fn an_aggregate_id_of_any_type_is_a_key() {
        let columns = COLUMNS.replace("aggregate_id text", "order_id uuid");
        let mut harness =
            Harness::<OutboxRouter>::new(&[("aggregate_id_column", "order_id")]).unwrap();
        let table = harness.table("ks.outbox", &columns).unwrap();
        let row = table
            .insert()
            .set("order_id", Uuid::from_u128(7))
            .set("event_id", event_id())
            .set("aggregate_type", "Order")
            .set("event_type", "t")
            .set("payload", "{}");
        let key = one(harness.run(row)).key.unwrap();
        assert_eq!(key, Uuid::from_u128(7).to_string().as_bytes());
    }

    #[test]
    fn settings_are_refused_with_what_is_wrong() {
        let refused = |key, value| match Harness::<OutboxRouter>::new(&[(key, value)]) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("taken: {key} = {value:?}"),
        };
        assert!(refused("topic_prefix", "a b").contains("`topic_prefix` = \"a b\""));
        assert!(refused("prefix", "a").contains("unknown setting `prefix`"));
        assert!(refused("payload_column", "").contains("`payload_column` is empty"));
        assert!(refused("tables", "a,,b").contains("empty name"));
    }
}
