//! Writes changes as Debezium's JSON does: `before`, `after`, `source`, `op`, `ts_ms`; see docs/plugins/debezium-envelope.md.
//!
//! The row after a change is the postimage where the table logs one; else the preimage with the change on top, where that
//! is exact; else what is known of it. `source.after` tells which.

mod schema;

use std::fmt::Write as _;

use penstock_plugin::encoding::cql::write_json_string;
use penstock_plugin::{
    About, Change, Column, ColumnKind, ColumnTag, CqlValue, Error, Interest, Operation, Output,
    Setting, Settings, Table, Transform, bail,
};

struct DebeziumEnvelope {
    topic_prefix: String,
    name: String,
    with_schema: bool,
    tombstones: bool,
    ranges_are_errors: bool,
}

/// A column in a row that is being put together.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cell {
    /// The change or the image does not tell it.
    Unknown,
    /// Its JSON form.
    Known(String),
    /// Elements of it were added or removed.
    Parts,
}

/// A row, a cell a column.
type Row = Vec<Cell>;

/// Where the row after a change comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Postimage,
    PreimageAndDelta,
    Partial,
    Delta,
    Nothing,
}

impl After {
    fn name(self) -> &'static str {
        match self {
            Self::Postimage => "postimage",
            Self::PreimageAndDelta => "preimage+delta",
            Self::Partial => "partial",
            Self::Delta => "delta",
            Self::Nothing => "none",
        }
    }
}

impl Transform for DebeziumEnvelope {
    fn about() -> About {
        About::new("Writes changes as Debezium's JSON does: before, after, source, op, ts_ms.")
            .setting(
                Setting::text("topic_prefix")
                    .default("")
                    .doc("stands before `keyspace.table`, e.g. \"shop.\""),
            )
            .setting(
                Setting::text("name")
                    .default("penstock")
                    .doc("`source.name`, the logical name of the database"),
            )
            .setting(
                Setting::boolean("schema")
                    .default("false")
                    .doc("keys and values carry their schema, as Connect's JsonConverter has it with schemas.enable"),
            )
            .setting(
                Setting::boolean("tombstones")
                    .default("true")
                    .doc("a delete is followed by a record without a value, for compacted topics"),
            )
            .setting(
                Setting::choice("range_deletes", &["error", "drop"])
                    .default("error")
                    .doc("a delete of a range or of a partition with many rows, of which no row is known"),
            )
    }

    fn configure(settings: &Settings) -> Result<Self, Error> {
        let topic_prefix = settings.get("topic_prefix").unwrap_or_default();
        let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !topic_prefix.chars().all(good) {
            bail!(
                "setting `topic_prefix` = {topic_prefix:?}: a topic has letters, digits, '.', '_' and '-'"
            );
        }
        Ok(Self {
            topic_prefix: topic_prefix.to_owned(),
            name: settings.get("name").unwrap_or("penstock").to_owned(),
            with_schema: settings.get("schema") == Some("true"),
            tombstones: settings.get("tombstones") != Some("false"),
            ranges_are_errors: settings.get("range_deletes") != Some("drop"),
        })
    }

    fn interest(&mut self, table: &Table) -> Result<Interest, Error> {
        Ok(match table.is_record_table() {
            true => Interest::Ignore,
            false => Interest::All,
        })
    }

    fn process(&mut self, change: &Change<'_>, out: &mut Output) -> Result<(), Error> {
        let table = change.table();
        let clustered = table
            .columns
            .iter()
            .any(|c| c.kind == ColumnKind::ClusteringKey);
        let deletes = match change.operation() {
            Operation::Insert | Operation::Update => false,
            Operation::RowDelete | Operation::TtlRowDelete => true,
            Operation::PartitionDelete | Operation::TtlPartitionDelete if !clustered => true,
            other if self.ranges_are_errors => bail!(
                "{} names no row, so it has no before and no after: see `range_deletes`",
                other.name()
            ),
            _ => return Ok(()),
        };
        let before = change.preimage().map(|image| row(&image)).transpose()?;
        let (after, from) = match deletes {
            true => (None, After::Nothing),
            false => {
                let (after, from) = self.after(change, before.as_ref())?;
                (Some(after), from)
            }
        };
        // Of a row that is gone without an image at least its key is known.
        let before = match (before, deletes) {
            (None, true) => Some(row(change)?),
            (before, _) => before,
        };
        let op = match (deletes, &before, change.operation()) {
            (true, _, _) => "d",
            (false, None, Operation::Insert) => "c",
            _ => "u",
        };
        let topic = format!("{}{}.{}", self.topic_prefix, table.keyspace, table.name);
        let key = self.key(change, &topic)?;
        let value = self.value(change, &topic, before.as_ref(), after.as_ref(), op, from);
        out.record(&topic).key(key.as_str()).value(value.as_str());
        if deletes && self.tombstones {
            out.record(&topic).key(key.as_str());
        }
        Ok(())
    }
}

impl DebeziumEnvelope {
    fn after(&self, change: &Change<'_>, before: Option<&Row>) -> Result<(Row, After), Error> {
        if let Some(image) = change.postimage() {
            return Ok((row(&image)?, After::Postimage));
        }
        let delta = row(change)?;
        let Some(before) = before else {
            return Ok((delta, After::Delta));
        };
        let over = |(old, new): (&Cell, &Cell)| match new {
            Cell::Unknown => old.clone(),
            new => new.clone(),
        };
        let after: Row = before.iter().zip(&delta).map(over).collect();
        // With the preimages that hold only what the change touches, the rest of the row is not known.
        let exact = after.iter().all(|cell| matches!(cell, Cell::Known(_)));
        let from = if exact {
            After::PreimageAndDelta
        } else {
            After::Partial
        };
        Ok((after, from))
    }

    fn key(&self, change: &Change<'_>, topic: &str) -> Result<String, Error> {
        let table = change.table();
        let mut key = String::from("{");
        for column in table.columns.iter().filter(|c| is_key(c)) {
            if key.len() > 1 {
                key.push(',');
            }
            write_json_string(&column.name, &mut key);
            key.push(':');
            match cell(change, column)? {
                Cell::Known(json) => {
                    key.push_str(&schema::value(&column.cql_type, &json, self.with_schema))
                }
                Cell::Unknown | Cell::Parts => key.push_str("null"),
            }
        }
        key.push('}');
        Ok(match self.with_schema {
            true => format!(
                "{{\"schema\":{},\"payload\":{key}}}",
                schema::key(table, topic)
            ),
            false => key,
        })
    }

    fn value(
        &self,
        change: &Change<'_>,
        topic: &str,
        before: Option<&Row>,
        after: Option<&Row>,
        op: &str,
        from: After,
    ) -> String {
        let table = change.table();
        let mut value = String::from("{\"before\":");
        self.write_row(table, before, &mut value);
        value.push_str(",\"after\":");
        self.write_row(table, after, &mut value);
        let (ms, us) = (change.time().0, change.time_us());
        value.push_str(",\"source\":{\"version\":\"");
        value.push_str(env!("CARGO_PKG_VERSION"));
        value.push_str("\",\"connector\":\"penstock\",\"name\":");
        write_json_string(&self.name, &mut value);
        put(
            &mut value,
            format_args!(",\"ts_ms\":{ms},\"ts_us\":{us},\"snapshot\":\"false\",\"db\":"),
        );
        write_json_string(&table.keyspace, &mut value);
        value.push_str(",\"table\":");
        write_json_string(&table.name, &mut value);
        put(
            &mut value,
            format_args!(
                ",\"after\":\"{}\"}},\"op\":\"{op}\",\"ts_ms\":{ms}}}",
                from.name()
            ),
        );
        match self.with_schema {
            true => format!(
                "{{\"schema\":{},\"payload\":{value}}}",
                schema::envelope(table, topic)
            ),
            false => value,
        }
    }

    fn write_row(&self, table: &Table, row: Option<&Row>, out: &mut String) {
        let Some(row) = row else {
            return out.push_str("null");
        };
        out.push('{');
        let mut first = true;
        for (column, cell) in table.columns.iter().zip(row) {
            let Cell::Known(json) = cell else { continue };
            if !std::mem::take(&mut first) {
                out.push(',');
            }
            write_json_string(&column.name, out);
            out.push(':');
            out.push_str(&schema::value(&column.cql_type, json, self.with_schema));
        }
        out.push('}');
    }
}

fn put(out: &mut String, args: std::fmt::Arguments<'_>) {
    // A string takes all text.
    if out.write_fmt(args).is_err() {
        out.clear();
    }
}

fn is_key(column: &Column) -> bool {
    matches!(
        column.kind,
        ColumnKind::PartitionKey | ColumnKind::ClusteringKey
    )
}

fn row(change: &Change<'_>) -> Result<Row, Error> {
    let columns = change.table().columns.iter();
    columns.map(|column| cell(change, column)).collect()
}

fn cell(change: &Change<'_>, column: &Column) -> Result<Cell, Error> {
    let image = matches!(
        change.operation(),
        Operation::PreImage | Operation::PostImage
    );
    let many = column.cql_type.is_multi_cell();
    Ok(match change.state(&column.name)? {
        ColumnTag::Unsent | ColumnTag::Unchanged => Cell::Unknown,
        ColumnTag::Null => Cell::Known("null".to_owned()),
        ColumnTag::Value if many && !image => Cell::Parts,
        ColumnTag::Removed | ColumnTag::Merged => Cell::Parts,
        ColumnTag::Value | ColumnTag::Replaced if many => {
            let elements = change.elements(&column.name)?;
            let added = elements.and_then(|e| e.added);
            Cell::Known(CqlValue::whole(&column.cql_type, added).to_json()?)
        }
        ColumnTag::Value | ColumnTag::Replaced => Cell::Known(change.json(&column.name)?),
    })
}

penstock_plugin::export_plugin!(DebeziumEnvelope);
