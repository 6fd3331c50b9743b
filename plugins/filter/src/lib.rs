//! Hands on the changes and records for which an expression in CEL is true; see docs/plugins/filter.md.
//!
//! The expression runs within the guest, so that its memory and time are bounded whatever it says.

use std::collections::HashMap;

use cel::{Context, Program, Value};
use penstock_plugin::{
    About, Change, Column, ColumnTag, CqlType, CqlValue, Error, Interest, Output, Setting,
    Settings, Table, Transform, bail,
};

/// A longer expression is a program.
const LONGEST: usize = 4096;

struct Filter {
    program: Program,
    /// The functions of the language: they take long to set up, so it is done once.
    base: Context<'static, 'static>,
    text: String,
    /// An expression that fails: `None` is an error, else what it counts as.
    failing: Option<bool>,
}

impl Transform for Filter {
    fn about() -> About {
        About::new("Hands on the changes and records for which an expression in CEL is true.")
            .setting(
                Setting::text("keep")
                    .required()
                    .doc("the expression, e.g. `op != 'update' || columns.status == 'paid'`"),
            )
            .setting(
                Setting::choice("on_failure", &["error", "keep", "drop"])
                    .default("error")
                    .doc("an expression that fails, e.g. over a column that is not set"),
            )
    }

    fn configure(settings: &Settings) -> Result<Self, Error> {
        let text = settings.required("keep")?;
        if text.len() > LONGEST {
            bail!(
                "setting `keep` has {} bytes: {LONGEST} is the most",
                text.len()
            );
        }
        Ok(Self {
            program: Program::compile(text)
                .map_err(|e| Error::new(format!("setting `keep` = {text:?}: {e}")))?,
            base: Context::default(),
            text: text.to_owned(),
            failing: match settings.get("on_failure") {
                Some("keep") => Some(true),
                Some("drop") => Some(false),
                _ => None,
            },
        })
    }

    fn interest(&mut self, _: &Table) -> Result<Interest, Error> {
        Ok(Interest::All)
    }

    fn process(&mut self, change: &Change<'_>, out: &mut Output) -> Result<(), Error> {
        let kept = match self.evaluate(change) {
            Ok(kept) => kept,
            Err(error) => match self.failing {
                Some(kept) => kept,
                None => return Err(error),
            },
        };
        match kept {
            true => out.forward(change),
            false => out.discard(change),
        }
        Ok(())
    }
}

impl Filter {
    fn evaluate(&self, change: &Change<'_>) -> Result<bool, Error> {
        let mut context = self.base.new_inner_scope();
        if change.table().is_record_table() {
            let key: Option<&[u8]> = change.find("key")?;
            context.add_variable_from_value("topic", change.get::<&str>("topic")?);
            context.add_variable_from_value("key", key.map_or(Value::Null, text));
            let value: Option<&[u8]> = change.find("value")?;
            let parsed = value.map(serde_json::from_slice::<serde_json::Value>);
            context.add_variable_from_value(
                "value",
                match (parsed, value) {
                    (Some(Ok(json)), _) => from_json(&json),
                    (_, Some(bytes)) => text(bytes),
                    (_, None) => Value::Null,
                },
            );
            let mut headers = HashMap::new();
            if let Some(CqlValue::Map(all)) = change.find("headers")? {
                for (name, value) in all {
                    if let (CqlValue::Text(name), CqlValue::Blob(bytes)) = (name, value) {
                        headers.insert(name.to_owned(), text(bytes));
                    }
                }
            }
            context.add_variable_from_value("headers", headers);
        } else {
            let table = change.table();
            context.add_variable_from_value("op", change.operation().name());
            context.add_variable_from_value("keyspace", table.keyspace.as_str());
            context.add_variable_from_value("table", table.name.as_str());
            context.add_variable_from_value("time_us", change.time_us());
            context.add_variable_from_value("ttl", i64::from(change.ttl().unwrap_or(0)));
            context.add_variable_from_value("columns", columns(change)?);
            let none = || Value::from(HashMap::<String, Value>::new());
            let before = change.preimage().map(|image| columns(&image));
            context.add_variable_from_value("before", before.transpose()?.unwrap_or_else(none));
            let after = change.postimage().map(|image| columns(&image));
            context.add_variable_from_value("after", after.transpose()?.unwrap_or_else(none));
        }
        match self.program.execute(&context) {
            Ok(Value::Bool(kept)) => Ok(kept),
            Ok(other) => bail!("`{}` is no true or false, but {other:?}", self.text),
            Err(error) => bail!("`{}`: {error}", self.text),
        }
    }
}

/// Text as it is, other bytes as bytes.
fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => bytes.to_vec().into(),
    }
}

/// The columns that a change or an image tells, by name.
fn columns(change: &Change<'_>) -> Result<Value, Error> {
    let mut told = HashMap::new();
    for column in &change.table().columns {
        if let Some(value) = value(change, column)? {
            told.insert(column.name.clone(), value);
        }
    }
    Ok(told.into())
}

/// A column's value; `None` where nothing is said of it. Of elements those that were added.
fn value(change: &Change<'_>, column: &Column) -> Result<Option<Value>, Error> {
    Ok(match change.state(&column.name)? {
        ColumnTag::Unsent | ColumnTag::Unchanged | ColumnTag::Removed => None,
        ColumnTag::Null => Some(Value::Null),
        _ if column.cql_type.is_multi_cell() => {
            let elements = change.elements(&column.name)?;
            let added = match (elements.and_then(|e| e.added), &column.cql_type) {
                (Some(CqlValue::Map(cells)), CqlType::List(_)) => {
                    CqlValue::Sequence(cells.into_iter().map(|(_, value)| value).collect())
                }
                (Some(value), _) => value,
                (None, _) => CqlValue::Null,
            };
            Some(from_json(&serde_json::from_str(&added.to_json()?)?))
        }
        _ => Some(from_json(&serde_json::from_str(
            &change.json(&column.name)?,
        )?)),
    })
}

/// Whole numbers are `int`, so that they compare with what is written in an expression.
fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(b) => Value::Bool(*b),
        serde_json::Value::Number(n) => match n.as_i64() {
            Some(n) => Value::Int(n),
            None => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => text.as_str().into(),
        serde_json::Value::Array(all) => {
            Value::List(std::sync::Arc::new(all.iter().map(from_json).collect()))
        }
        serde_json::Value::Object(all) => {
            let entries = all
                .iter()
                .map(|(name, value)| (name.clone(), from_json(value)));
            Value::from(entries.collect::<HashMap<String, Value>>())
        }
    }
}

penstock_plugin::export_plugin!(Filter);
