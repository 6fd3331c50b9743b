//! Takes the values out of recorded changes and records: keys and shapes stay, so that they can be run.

use std::collections::BTreeMap;

use penstock_plugin_encoding::CqlType;
use serde_json::Value;

use super::changes::Tables;
use crate::change::{ColumnKind, TableSchema};

/// Redacts one line, a change of one of these tables or a record. What it does not understand it empties.
pub fn line(line: &mut Value, tables: &BTreeMap<String, String>) {
    if let Some(record) = line.get_mut("record") {
        for (name, part) in record.as_object_mut().into_iter().flatten() {
            match name.as_str() {
                "topic" | "key" | "key_hex" => {}
                "value_hex" => *part = "".into(),
                _ => leaves(part),
            }
        }
        return;
    }
    let table = line["table"].as_str().and_then(|name| {
        let mut known = Tables::default();
        known.add(name, tables.get(name)?).ok()?;
        known.all().first().cloned()
    });
    for part in ["columns", "preimage", "postimage"] {
        columns(line.get_mut(part), table.as_deref());
    }
    if let Some(end) = line.get_mut("range_end") {
        columns(end.get_mut("columns"), table.as_deref());
    }
}

fn columns(values: Option<&mut Value>, table: Option<&TableSchema>) {
    for (name, value) in values.and_then(Value::as_object_mut).into_iter().flatten() {
        let column = table.and_then(|t| t.columns.iter().find(|c| c.name == *name));
        let key = column.is_some_and(|c| {
            matches!(c.kind, ColumnKind::PartitionKey | ColumnKind::ClusteringKey)
        });
        if key || value.is_null() {
            continue;
        }
        *value = match column.and_then(|c| c.cql_type.parse::<CqlType>().ok()) {
            Some(t) => emptied(&t, value),
            None => Value::Null,
        };
    }
}

/// A value of the same type that says nothing.
fn emptied(t: &CqlType, value: &Value) -> Value {
    match t.thawed() {
        CqlType::Ascii | CqlType::Text => {
            let length = value.as_str().map_or(0, |text| text.chars().count());
            "*".repeat(length.min(64)).into()
        }
        CqlType::Blob => "0x".into(),
        CqlType::Boolean => false.into(),
        CqlType::Tinyint
        | CqlType::Smallint
        | CqlType::Int
        | CqlType::Bigint
        | CqlType::Counter
        | CqlType::Varint
        | CqlType::Decimal
        | CqlType::Float
        | CqlType::Double => 0.into(),
        CqlType::Uuid | CqlType::Timeuuid => uuid::Uuid::nil().to_string().into(),
        _ => Value::Null,
    }
}

/// The leaves of JSON.
fn leaves(value: &mut Value) {
    match value {
        Value::Null => {}
        Value::Bool(b) => *b = false,
        Value::Number(_) => *value = 0.into(),
        Value::String(text) => *text = "*".repeat(text.chars().count().min(64)),
        Value::Array(all) => all.iter_mut().for_each(leaves),
        Value::Object(all) => all.values_mut().for_each(leaves),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::workbench::changes;

    #[test]
    fn keys_and_shapes_stay_and_values_go() {
        let columns = "id int primary, name text, n bigint, tags set<text>, at timestamp";
        let tables = BTreeMap::from([("shop.people".to_owned(), columns.to_owned())]);
        let mut change = json!({
            "operation": "update", "table": "shop.people",
            "columns": { "id": 7, "name": "Ada", "n": 5, "tags": { "added": ["x"] }, "at": "2026-01-31T12:00:00Z" },
            "preimage": { "id": 7, "name": null },
        });
        line(&mut change, &tables);
        assert_eq!(
            change["columns"],
            json!({ "id": 7, "name": "***", "n": 0, "tags": null, "at": null })
        );
        assert_eq!(change["preimage"], json!({ "id": 7, "name": null }));
        let mut known = Tables::default();
        known.add("shop.people", columns).unwrap();
        changes::read(&known, &[change]).expect("it is a change still");
        let mut record = json!({ "record": { "topic": "t", "key": "k", "value": { "a": ["b", 1] }, "headers": { "h": "xy" } } });
        line(&mut record, &tables);
        assert_eq!(
            record["record"],
            json!({ "topic": "t", "key": "k", "value": { "a": ["*", 0] }, "headers": { "h": "**" } })
        );
    }
}
