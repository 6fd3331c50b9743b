//! CQL and JSON as values of CEL. A value has the type of its JSON form: whole numbers are `int`, so that they compare with
//! what is written in an expression; timestamps and UUIDs are strings. So is a number that would lose digits as one of 64 bits:
//! none is to be taken for another one that is close to it, and one that is compared with a number is refused.

use std::collections::HashMap;
use std::sync::Arc;

use cel::Value;
use penstock_plugin_encoding::{ColumnTag, CqlType, CqlValue};

use crate::exact;

/// Text as it is, other bytes as bytes.
pub(crate) fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => bytes.to_vec().into(),
    }
}

/// What a row says of a column; `None` where it says nothing. Of elements those that were added.
pub(crate) fn column(
    tag: ColumnTag,
    cql_type: &CqlType,
    bytes: &[u8],
) -> Result<Option<Value>, String> {
    let said = |e: penstock_plugin_encoding::cql::InvalidValue| e.to_string();
    let added = match tag {
        ColumnTag::Unsent | ColumnTag::Unchanged | ColumnTag::Removed => return Ok(None),
        ColumnTag::Null => return Ok(Some(Value::Null)),
        ColumnTag::Value | ColumnTag::Replaced => bytes,
        ColumnTag::Merged => {
            let (len, rest) = bytes.split_first_chunk::<4>().ok_or("truncated")?;
            let len = u32::from_le_bytes(*len) as usize;
            rest.get(..len).ok_or("truncated")?
        }
    };
    if !cql_type.is_multi_cell() {
        let value = CqlValue::decode(cql_type, added).map_err(said)?;
        return cql(value).map(Some);
    }
    let value = CqlValue::decode(&cql_type.log_type(), added).map_err(said)?;
    cql(match (value, cql_type) {
        (CqlValue::Map(cells), CqlType::List(_)) => {
            CqlValue::Sequence(cells.into_iter().map(|(_, value)| value).collect())
        }
        (value, _) => value,
    })
    .map(Some)
}

fn cql(value: CqlValue<'_>) -> Result<Value, String> {
    Ok(match value {
        CqlValue::Null => Value::Null,
        CqlValue::Text(text) => text.into(),
        CqlValue::Boolean(b) => b.into(),
        CqlValue::Int(n) => n.into(),
        other => {
            let json = other.to_json().map_err(|e| e.to_string())?;
            from_json(&serde_json::from_str(&exact(&json)).map_err(|e| e.to_string())?)
        }
    })
}

/// As it is in JSON.
pub(crate) fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(b) => Value::Bool(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::Int(n),
            (None, Some(n)) => Value::UInt(n),
            (None, None) => Value::Float(n.to_string().parse().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => text.as_str().into(),
        serde_json::Value::Array(all) => Value::List(Arc::new(all.iter().map(from_json).collect())),
        serde_json::Value::Object(all) => {
            let entries = all
                .iter()
                .map(|(name, value)| (name.clone(), from_json(value)));
            Value::from(entries.collect::<HashMap<String, Value>>())
        }
    }
}
