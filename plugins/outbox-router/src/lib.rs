//! Routes the rows of an outbox table: one topic per aggregate type, keyed by aggregate id, so that the events
//! of an aggregate stay in order. What Debezium's outbox router does, under the names of docs/plugins/outbox-router.md.
//!
//! Inserts are events, and what [`Settings`](settings::Updates) says of updates; what deletes or expires old rows is
//! dropped. A row that lacks a column is refused by itself.

mod settings;

use penstock_plugin::encoding::bytes::same;
use penstock_plugin::{
    About, Change, ColumnKind, CqlType, CqlValue, Error, Field, Handle, Interest, Operation,
    Output, Settings, Table, Transform, bail, warn,
};

use settings::{Additional, Columns, Null, Options, Place, Updates};

/// Kafka's limit on the length of a topic's name.
const MAX_TOPIC: usize = 249;

pub(crate) struct OutboxRouter {
    options: Options,
    /// The columns of each table version, looked up.
    routes: Vec<Route>,
    /// The topic prefix, with room for the aggregate type after it.
    topic: String,
    prefix: usize,
    /// The table and the aggregate type of which that is the topic: mostly those of the next event, too.
    routed: Option<(u32, Vec<u8>)>,
    /// The value that is being put together, where there is an envelope.
    envelope: String,
}

struct Route {
    table: u32,
    columns: Columns<Handle>,
    additional: Vec<Additional<Handle>>,
    /// The aggregate id is text, and part of the primary key, so never null: its bytes are the key.
    text_key: bool,
    /// The payload is looked at, and not only named.
    looks_at_payload: bool,
}

impl Route {
    /// All columns that are looked at; the payload, and an id whose bytes are the key, are only named.
    fn wanted(&self) -> Interest {
        let c = &self.columns;
        let id = (!self.text_key).then_some(&c.aggregate_id);
        let payload = self.looks_at_payload.then_some(&c.payload);
        let columns = [&c.aggregate_type, &c.event_id, &c.event_type, &c.trace];
        let columns = columns.into_iter().chain(id).chain(payload);
        let columns = columns.chain(&c.timestamp).chain(&c.schema_version);
        let columns = columns.chain(self.additional.iter().map(|a| &a.column));
        Interest::Columns(columns.filter_map(Handle::index).collect())
    }
}

fn is_topic_text(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

impl Transform for OutboxRouter {
    fn about() -> About {
        settings::about()
    }

    fn configure(settings: &Settings) -> Result<Self, Error> {
        let topic = settings.get("topic_prefix").unwrap_or_default().to_owned();
        if !is_topic_text(&topic) || topic.len() >= MAX_TOPIC {
            bail!(
                "setting `topic_prefix` = {topic:?}: a topic has letters, digits, '.', '_' and '-', \
                 less than {MAX_TOPIC} in all"
            );
        }
        Ok(Self {
            options: Options::read(settings)?,
            routes: Vec::new(),
            prefix: topic.len(),
            topic,
            routed: None,
            envelope: String::new(),
        })
    }

    fn interest(&mut self, table: &Table) -> Result<Interest, Error> {
        let full = format!("{}.{}", table.keyspace, table.name);
        let ours = match &self.options.tables {
            Some(names) => names.iter().any(|n| *n == table.name || *n == full),
            None => !table.is_record_table(),
        };
        if !ours {
            return Ok(Interest::Ignore);
        }
        self.options.check_payload(table)?;
        let additional = self.options.additional_in(table)?;
        let columns = self.options.columns.in_table(table);
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
            looks_at_payload: self.options.looks_at_payload(),
            columns,
            additional,
        };
        let wanted = route.wanted();
        self.routes.retain(|known| known.table != table.id);
        self.routes.push(route);
        Ok(wanted)
    }

    fn process(&mut self, change: &Change<'_>, out: &mut Output) -> Result<(), Error> {
        match (change.operation(), self.options.updates) {
            (Operation::Insert, _) | (Operation::Update, Updates::Event) => {}
            (Operation::Update, Updates::Warn) => {
                warn!("an outbox row was updated, which makes no event: see `on_update`");
                return Ok(());
            }
            (Operation::Update, Updates::Error) => {
                bail!("an outbox row was updated, and `on_update` is \"error\"")
            }
            _ => return Ok(()),
        }
        let table = change.table().id;
        let route = self.routes.iter().find(|route| route.table == table);
        let route = route.ok_or_else(|| Error::new("its table was never opened"))?;
        let Route { columns, .. } = route;
        let aggregate_type: &[u8] = change.get(&columns.aggregate_type)?;
        let routed = self.routed.as_ref();
        if routed.is_none_or(|(of, routed)| *of != table || !same(routed, aggregate_type)) {
            self.routed = None;
            let aggregate_type: &str = change.get(&columns.aggregate_type)?;
            self.topic.truncate(self.prefix);
            match &self.options.route {
                Some(rule) => rule.apply(aggregate_type, &mut self.topic)?,
                None => self.topic.push_str(aggregate_type),
            }
            if aggregate_type.is_empty() || !is_topic_text(&self.topic) {
                bail!("aggregate type {aggregate_type:?} cannot be part of a topic's name");
            }
            if self.topic.len() > MAX_TOPIC {
                bail!("topic {:?} is longer than {MAX_TOPIC} bytes", self.topic);
            }
            self.routed = Some((table, aggregate_type.as_bytes().to_vec()));
        }
        self.envelope.clear();
        let value = if route.looks_at_payload {
            match self.options.value(change, route, &mut self.envelope)? {
                Some(value) => value,
                None => return Ok(()),
            }
        } else {
            match change.operation() {
                // Of a new row it is null.
                Operation::Insert => change.column_or_null(&columns.payload)?,
                _ => change.column_ref(&columns.payload)?.into(),
            }
        };
        let event_type = change.text_ref(&columns.event_type)?;
        let event_id = change.text(&columns.event_id)?;
        let record = out.record(&self.topic);
        let record = match route.text_key {
            true => record.key(change.column_ref(&columns.aggregate_id)?),
            false => record.key(&change.text(&columns.aggregate_id)?),
        };
        let mut record = record
            .value(value)
            .header(&self.options.id_header, &event_id)
            .header("event-type", event_type);
        if let Some(trace) = change.find_text_ref(&columns.trace)? {
            record = record.header("traceparent", trace);
        }
        if let Some(header) = &self.options.timestamp_header {
            let set = columns.timestamp.as_ref().filter(|c| change.is_set(*c));
            let at = match set {
                Some(column) => change.get::<penstock_plugin::Timestamp>(column)?,
                None => change.time(),
            };
            record = record.header(header, at.0.to_string().as_str());
        }
        if let Some(version) = &columns.schema_version
            && change.is_set(version)
        {
            record = record.header("schema-version", &change.text(version)?);
        }
        for extra in route.additional.iter().filter(|a| a.place == Place::Header) {
            record = match change.is_set(&extra.column) {
                true => record.header(&extra.alias, &change.text(&extra.column)?),
                false => record.header(&extra.alias, Field::Null),
            };
        }
        Ok(())
    }
}

impl Options {
    /// The record's value, where the payload has to be looked at for it; `None`: no record.
    fn value<'a>(
        &self,
        change: &Change<'_>,
        route: &Route,
        envelope: &'a mut String,
    ) -> Result<Option<Field<'a>>, Error> {
        let payload = &route.columns.payload;
        let empty = match change.state(payload)? {
            penstock_plugin::ColumnTag::Value => match change.get::<CqlValue<'_>>(payload)? {
                CqlValue::Text(text) => text.is_empty(),
                CqlValue::Blob(bytes) => bytes.is_empty(),
                _ => false,
            },
            penstock_plugin::ColumnTag::Unchanged if change.operation() != Operation::Insert => {
                bail!(
                    "column `{}` is not written by this UPDATE, which so does not say what it holds",
                    payload_name(self)
                )
            }
            _ => match self.null {
                Null::Tombstone => return Ok(Some(Field::Null)),
                Null::Ignore => return Ok(None),
                Null::Error => bail!(
                    "column `{}` is null, and `null_payload` is \"error\"",
                    payload_name(self)
                ),
            },
        };
        if empty && self.empty_is_tombstone {
            return Ok(Some(Field::Null));
        }
        let wrapped = route
            .additional
            .iter()
            .filter(|a| a.place == Place::Envelope);
        if wrapped.clone().next().is_none() {
            return Ok(Some(change.column_ref(payload)?.into()));
        }
        envelope.push_str("{\"payload\":");
        let text = match change.get::<CqlValue<'_>>(payload)? {
            CqlValue::Text(text) => Some(text),
            _ => None,
        };
        let is_json = |text: &&str| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
        match text.filter(|text| self.expand_json && is_json(text)) {
            Some(json) => envelope.push_str(json),
            None => envelope.push_str(&change.json(payload)?),
        }
        for extra in wrapped {
            envelope.push(',');
            penstock_plugin::encoding::cql::write_json_string(&extra.alias, envelope);
            envelope.push(':');
            match change.is_set(&extra.column) {
                true => envelope.push_str(&change.json(&extra.column)?),
                false => envelope.push_str("null"),
            }
        }
        envelope.push('}');
        Ok(Some((&**envelope).into()))
    }
}

fn payload_name(options: &Options) -> &str {
    &options.columns.payload
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
        assert!(refused("route_pattern", "(").contains("`route_pattern`"));
        assert!(refused("tables", "5").contains("expected a list of texts"));
        assert!(refused("additional", "tenant:body").contains("header or envelope"));
        assert!(refused("additional", "a:partition").contains("no transform chooses partitions"));
        assert!(refused("on_update", "fatal").contains("expected one of"));
    }
}
