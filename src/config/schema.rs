//! The JSON Schema of pipeline.toml, made from the table of keys.

use serde_json::{Map, Value, json};

use super::keys::{self, Fallback, Key, Kind};
use super::raw;

/// For editors: put `#:schema <path>` in the first line of pipeline.toml.
pub fn schema() -> Value {
    let mut root = table("pipeline.toml of penstock");
    for key in keys::all() {
        insert(&mut root, key);
    }
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    root["title"] = "penstock".into();
    root
}

fn table(description: &str) -> Value {
    json!({
        "type": "object",
        "description": description,
        "properties": {},
        "additionalProperties": false,
    })
}

fn insert(root: &mut Value, key: &Key) {
    let steps: Vec<&str> = key.path.split('.').collect();
    let (last, tables) = match steps.split_last() {
        Some(split) => split,
        None => return,
    };
    let mut at = root;
    let required = key.fallback == Fallback::Required;
    let mut path = Vec::new();
    for step in tables {
        path.push(*step);
        if *step == "*" {
            // An array of tables: the items are where the name would stand.
            if at.get("items").is_none() {
                *at = json!({
                    "type": "array",
                    "description": "The transforms, in the order in which changes pass them",
                    "items": table("[[transform]]"),
                    "maxItems": keys::MOST_TRANSFORMS,
                });
            }
            at = &mut at["items"];
            continue;
        }
        // What a table must have makes the table itself required, except within a list that may be empty.
        if required && path.len() == 1 && *step != "transform" {
            require(at, step);
        }
        at = &mut at["properties"][*step];
        if at.is_null() {
            *at = table(&format!("[{}]", path.join(".")));
        }
    }
    if required {
        require(at, last);
    }
    at["properties"][*last] = leaf(key);
}

fn require(table: &mut Value, key: &str) {
    let listed = table
        .as_object_mut()
        .map(|t| t.entry("required").or_insert_with(|| json!([])));
    if let Some(Value::Array(names)) = listed
        && !names.iter().any(|n| n == key)
    {
        names.push(key.into());
    }
}

fn leaf(key: &Key) -> Value {
    let mut schema = match key.kind {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Int(min, max) => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Float(min, max) => json!({ "type": "number", "minimum": min, "maximum": max }),
        Kind::Duration(..) => json!({
            "type": "string",
            "pattern": r"^\s*([0-9]+(\.[0-9]+)?\s*[a-zA-Zµ]+\s*)+$|^0$",
        }),
        Kind::DurationOrOff(..) => json!({
            "type": "string",
            "pattern": r"^\s*([0-9]+(\.[0-9]+)?\s*[a-zA-Zµ]+\s*)+$|^off$",
        }),
        Kind::Size(min, max) => json!({ "oneOf": [
            { "type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgG]i?)?[bB]?\s*$" },
            { "type": "integer", "minimum": min, "maximum": max },
        ]}),
        Kind::Rate => {
            let count = json!({ "type": "integer", "minimum": 1, "maximum": u32::MAX });
            json!({ "oneOf": [
                { "type": "string", "pattern": r"^\s*(off|[0-9]+\s*/s)\s*$" },
                {
                    "type": "object",
                    "properties": { "per_second": count, "burst": count },
                    "required": ["per_second"],
                    "additionalProperties": false,
                },
            ]})
        }
        Kind::StartFrom => json!({ "anyOf": [
            { "enum": ["earliest", "latest"] },
            { "type": "string", "format": "date-time" },
        ]}),
        Kind::Choice(words) => json!({ "type": "string", "enum": words }),
        Kind::Text(_) | Kind::Path | Kind::File => json!({ "type": "string", "minLength": 1 }),
        // In a file it is an error, wherever it would be legal: the environment.
        Kind::Secret => json!({ "not": {} }),
        Kind::Address => json!({ "type": "string", "pattern": ":[0-9]+$" }),
        Kind::Nodes => json!({ "oneOf": [
            { "const": "embedded" },
            list(r":[0-9]+$"),
        ]}),
        Kind::List(_) => list("."),
        Kind::Words(words) => json!({
            "type": "array",
            "items": { "enum": words },
            "uniqueItems": true,
        }),
        Kind::Properties => json!({
            "type": "object",
            "additionalProperties": { "type": ["string", "number", "boolean"] },
        }),
        Kind::Table => json!({ "type": "object" }),
    };
    let class = match key.class {
        keys::ReloadClass::Live => "Takes effect at the next use.",
        keys::ReloadClass::Swap => "A change swaps the plugin at a batch boundary.",
        keys::ReloadClass::Rebuild => "A change drains and rebuilds what it concerns.",
        keys::ReloadClass::Refused => "A change needs a restart.",
    };
    schema["description"] = format!("{}. {class}", key.doc).into();
    if let Some(default) = default_of(key) {
        schema["default"] = default;
    }
    if !matches!(key.kind, Kind::Secret) {
        schema["examples"] = json!([literal(key.example)]);
    }
    schema
}

fn list(pattern: &str) -> Value {
    json!({
        "type": "array",
        "items": { "type": "string", "pattern": pattern },
        "minItems": 1,
        "uniqueItems": true,
    })
}

/// What applies where nothing is set; a stage's policy has that of `[policies]`, which may be set.
fn default_of(key: &Key) -> Option<Value> {
    match key.fallback {
        Fallback::Value(text) => Some(literal(text)),
        Fallback::Required | Fallback::Absent | Fallback::Policies => None,
    }
}

fn literal(text: &str) -> Value {
    super::key::json(&raw::from_text(text, false))
}

/// A schema as it is printed; with `[[tests]]`, which are no part of the configuration.
pub fn pretty(mut schema: Value) -> String {
    schema["properties"]["tests"] = json!({
        "type": "array",
        "description": "What `penstock test` runs over the chain of transforms",
        "items": { "type": "object", "required": ["name"] },
    });
    let mut text = serde_json::to_string_pretty(&ordered(schema)).unwrap_or_default();
    text.push('\n');
    text
}

/// `$schema` and `title` first, for readers; JSON does not mind.
fn ordered(schema: Value) -> Value {
    let Value::Object(mut all) = schema else {
        return schema;
    };
    let mut out = Map::new();
    for first in ["$schema", "title", "description"] {
        if let Some(value) = all.remove(first) {
            out.insert(first.to_owned(), value);
        }
    }
    out.extend(all);
    Value::Object(out)
}
