//! The schemas that Connect's JsonConverter puts beside a payload with `schemas.enable`.

use penstock_plugin::encoding::cql::write_json_string;
use penstock_plugin::{CqlType, Table};

use crate::is_key;

/// Connect's type of a column; what it has no type for is text, in its JSON form.
fn connect(t: &CqlType) -> &'static str {
    match t.thawed() {
        CqlType::Boolean => "boolean",
        CqlType::Tinyint => "int8",
        CqlType::Smallint => "int16",
        CqlType::Int => "int32",
        CqlType::Bigint | CqlType::Counter => "int64",
        CqlType::Float => "float",
        CqlType::Double => "double",
        _ => "string",
    }
}

/// A column's JSON form as its Connect type has it.
pub(crate) fn value(t: &CqlType, json: &str, with_schema: bool) -> String {
    let text = json.starts_with('"') || json == "null";
    match (with_schema, connect(t)) {
        // What is no finite number is a string in JSON, and Connect has no such double.
        (true, "float" | "double") if json.starts_with('"') => "null".to_owned(),
        (true, "string") if !text => {
            let mut out = String::new();
            write_json_string(json, &mut out);
            out
        }
        _ => json.to_owned(),
    }
}

fn columns(table: &Table, keys_only: bool) -> String {
    let mut fields = String::new();
    for column in table.columns.iter().filter(|c| !keys_only || is_key(c)) {
        if !fields.is_empty() {
            fields.push(',');
        }
        // A delete of a partition has no clustering key.
        fields.push_str("{\"type\":\"");
        fields.push_str(connect(&column.cql_type));
        fields.push_str("\",\"optional\":true,\"field\":");
        write_json_string(&column.name, &mut fields);
        fields.push('}');
    }
    fields
}

fn quoted(text: &str) -> String {
    let mut out = String::new();
    write_json_string(text, &mut out);
    out
}

/// The schema of a key.
pub(crate) fn key(table: &Table, topic: &str) -> String {
    format!(
        "{{\"type\":\"struct\",\"fields\":[{}],\"optional\":false,\"name\":{}}}",
        columns(table, true),
        quoted(&format!("{topic}.Key"))
    )
}

/// The schema of a value.
pub(crate) fn envelope(table: &Table, topic: &str) -> String {
    let row = |field: &str| {
        format!(
            "{{\"type\":\"struct\",\"fields\":[{}],\"optional\":true,\"name\":{},\"field\":\"{field}\"}}",
            columns(table, false),
            quoted(&format!("{topic}.Value"))
        )
    };
    let field = |name: &str, t: &str, optional: bool| {
        format!("{{\"type\":\"{t}\",\"optional\":{optional},\"field\":\"{name}\"}}")
    };
    let source = [
        field("version", "string", false),
        field("connector", "string", false),
        field("name", "string", false),
        field("ts_ms", "int64", false),
        field("ts_us", "int64", true),
        field("snapshot", "string", true),
        field("db", "string", false),
        field("table", "string", true),
        field("after", "string", true),
    ];
    format!(
        "{{\"type\":\"struct\",\"fields\":[{},{},{{\"type\":\"struct\",\"fields\":[{}],\"optional\":false,\
         \"name\":\"io.penstock.Source\",\"field\":\"source\"}},{},{}],\"optional\":false,\"name\":{},\"version\":1}}",
        row("before"),
        row("after"),
        source.join(","),
        field("op", "string", false),
        field("ts_ms", "int64", true),
        quoted(&format!("{topic}.Envelope"))
    )
}
