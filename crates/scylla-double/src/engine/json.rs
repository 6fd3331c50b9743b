//! `INSERT … JSON`, `SELECT JSON`, `fromJson` and `toJson`.
//!
//! Source: ScyllaDB `cql3/statements/update_statement.cc` (`insert_prepared_json_statement`),
//! `cql3/functions/{as_json_function.hh,functions.cc}`.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value as Json;

use super::{
    error::CqlError,
    plan::{Context, Evaluated, Expr},
    schema::{ColumnKind, TableSchema},
    types,
};
use crate::types::{CqlType, JsonError, Value, parse_json};

/// The document of an `INSERT … JSON`.
#[derive(Debug)]
pub(crate) struct Document {
    /// Its text.
    pub(crate) text: Expr,
    pub(crate) table: Arc<TableSchema>,
    /// Whether a column that it does not name is left as it is, rather than made null.
    pub(crate) default_unset: bool,
}

impl Document {
    /// What it says of a column of the table.
    pub(crate) fn value(
        &self,
        column: usize,
        context: &Context<'_>,
    ) -> Result<Evaluated, CqlError> {
        let named = self.read(context)?;
        let column = &self.table.columns[column];
        let given = named.into_iter().find(|(name, _)| *name == column.name);
        match given {
            Some((_, json)) if !json.is_null() => {
                let value = Value::from_json(&column.ty, &json);
                Ok(Evaluated::Value(
                    serialised(&column.ty, value).map_err(|e| CqlError::invalid(e.to_string()))?,
                ))
            }
            _ if column.kind <= ColumnKind::Clustering => Err(CqlError::invalid(format!(
                "Missing mandatory PRIMARY KEY part {}",
                column.name
            ))),
            Some(_) => Ok(Evaluated::Null),
            None if self.default_unset => Ok(Evaluated::Unset),
            None => Ok(Evaluated::Null),
        }
    }

    /// Its values by the names of columns: in quotes as they are, others in lower case.
    fn read(&self, context: &Context<'_>) -> Result<Vec<(String, Json)>, CqlError> {
        let null = || CqlError::invalid("Got null for INSERT JSON values");
        let text = self.text.eval(context)?.bytes().ok_or_else(null)?;
        let text = std::str::from_utf8(&text)
            .map_err(|e| CqlError::invalid(format!("INSERT JSON values are not text: {e}")))?;
        let object = match parse_json(text)
            .map_err(|e| CqlError::invalid(format!("Could not decode JSON string as a map: {e}")))?
        {
            Json::Object(object) => object,
            Json::Null => return Err(null()),
            other => {
                return Err(CqlError::invalid(format!(
                    "Could not decode JSON string as a map: it is {other}"
                )));
            }
        };
        let unquoted = |name: &str| {
            let inner = name.strip_prefix('"').and_then(|n| n.strip_suffix('"'));
            inner.map_or_else(|| name.to_ascii_lowercase(), str::to_owned)
        };
        let named: Vec<(String, Json)> = object
            .into_iter()
            .map(|(name, json)| (unquoted(&name), json))
            .collect();
        match named.iter().find(|(n, _)| self.table.index_of(n).is_none()) {
            Some((unknown, _)) => Err(CqlError::invalid(format!(
                "JSON values map contains unrecognized column: {unknown}"
            ))),
            None => Ok(named),
        }
    }
}

fn serialised(ty: &CqlType, value: Result<Value, JsonError>) -> Result<Bytes, JsonError> {
    // Sets and maps in order, whatever the order in JSON.
    Ok(types::canonical(ty, &value?.encode().into()))
}

/// `fromJson(text)`, for a receiver of a type.
pub(crate) fn from_json(ty: &CqlType, text: Option<&Bytes>) -> Result<Option<Bytes>, CqlError> {
    let failed = |e: JsonError| {
        let what = match &e {
            JsonError::Syntax(what) => format!("Failed parsing fromJson parameter: {what}"),
            e => format!("Failed execution of function system.fromjson: {e}"),
        };
        CqlError::function_failure("system", "fromjson", &CqlType::Text, what)
    };
    let Some(text) = text else { return Ok(None) };
    let text = String::from_utf8_lossy(text);
    match parse_json(&text).map_err(failed)? {
        Json::Null => Ok(None),
        json => serialised(ty, Value::from_json(ty, &json))
            .map(Some)
            .map_err(failed),
    }
}

/// `toJson(value)`.
pub(crate) fn to_json(ty: &CqlType, value: Option<&Bytes>) -> Result<Option<Bytes>, CqlError> {
    told(ty, value).map(|text| Some(text.into())).map_err(|e| {
        let what = format!("Failed execution of function system.tojson: {e}");
        CqlError::function_failure("system", "tojson", ty, what)
    })
}

fn told(ty: &CqlType, value: Option<&Bytes>) -> Result<String, JsonError> {
    let Some(bytes) = value else {
        return Ok("null".into());
    };
    Value::decode(ty, bytes)
        .map_err(|e| JsonError::Mismatch(e.to_string()))?
        .to_json(ty)
}

/// The row of a `SELECT JSON`: one object, with the names and values of what was selected.
pub(crate) fn row(
    fields: &[(String, CqlType)],
    values: &[Option<Bytes>],
) -> Result<Vec<Option<Bytes>>, CqlError> {
    let mut out = String::from("{");
    for (i, ((name, ty), value)) in fields.iter().zip(values).enumerate() {
        out.push_str(if i > 0 { ", " } else { "" });
        // A name that is not all in lower case is in quotes of CQL's within those of JSON.
        let quotes = if name.bytes().any(|b| b.is_ascii_uppercase()) {
            "\\\""
        } else {
            ""
        };
        out.push_str(&format!("\"{quotes}{name}{quotes}\": "));
        out.push_str(&told(ty, value.as_ref()).map_err(|e| CqlError::invalid(e.to_string()))?);
    }
    out.push('}');
    Ok(vec![Some(out.into())])
}
