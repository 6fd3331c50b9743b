//! Conditions over changes and records, in [CEL](https://cel.dev): `when` of a transform, which the host evaluates, and
//! the stock plugin `filter`, which does within a guest. Both know the same names and give values the same types.
//!
//! An expression is looked at once: which names and which columns it speaks of, so that a change has nothing else of it
//! turned into values. Its length, its depth and its loops are bounded, since the host runs it without a guest's limits.

mod exact;
mod syntax;
mod values;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use cel::{Context, Env, Program, Value};
use penstock_plugin_encoding::{CqlType, Rows};

pub use exact::exact;
pub use syntax::Malformed;
use syntax::{Fields, Needs};

/// The longest expression, in bytes: a longer one is a program.
pub const LONGEST: usize = 4096;

/// `all`, `exists`, `exists_one`, `map` and `filter` within each other: the work is the size of a collection to this power.
pub const DEEPEST_LOOP: usize = 2;

/// Operators and brackets within each other: parser and interpreter take a stack for each. What stands beside each other, between
/// `&&`, `||` and commas, does not count together.
pub const DEEPEST: usize = 32;

/// What can be said of a change.
pub const OF_CHANGES: [&str; 8] = [
    "op", "keyspace", "table", "time_us", "ttl", "columns", "before", "after",
];

/// What can be said of a record.
pub const OF_RECORDS: [&str; 4] = ["topic", "key", "value", "headers"];

/// An expression that is true or false of a change or a record.
#[derive(Clone)]
pub struct Condition(Arc<Compiled>);

struct Compiled {
    text: String,
    program: Program,
    needs: Needs,
    env: Arc<Env>,
}

const _: () = {
    const fn is_shared<T: Send + Sync>() {}
    is_shared::<Condition>();
};

impl PartialEq for Condition {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Condition").field(&self.0.text).finish()
    }
}

/// A table, and which of its columns a condition asks for.
#[derive(Clone, Debug)]
pub struct Table {
    keyspace: String,
    name: String,
    columns: Vec<(String, CqlType)>,
    /// By index: of the change, of its preimage, of its postimage.
    wanted: [Vec<usize>; 3],
}

/// A change, by its row.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// Its table, described by [`Condition::table`].
    pub table: &'a Table,
    /// The batch.
    pub rows: &'a Rows,
    /// Its row.
    pub row: u32,
}

/// A record.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Where it goes.
    pub topic: &'a str,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: Option<&'a [u8]>,
    /// Names and values.
    pub headers: Vec<(&'a str, Option<&'a [u8]>)>,
}

impl Condition {
    /// Reads an expression.
    ///
    /// # Errors
    /// It is too long, no CEL, or speaks of names and functions that there are not.
    pub fn compile(text: &str) -> Result<Self, Malformed> {
        let env = Arc::new(Env::stdlib());
        let (program, needs) = syntax::compile(text, &env)?;
        Ok(Self(Arc::new(Compiled {
            text: text.to_owned(),
            program,
            needs,
            env,
        })))
    }

    /// The expression.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// Finds the columns that the expression asks for.
    pub fn table(
        &self,
        keyspace: &str,
        name: &str,
        columns: impl IntoIterator<Item = (String, CqlType)>,
    ) -> Table {
        let columns: Vec<_> = columns.into_iter().collect();
        let needs = &self.0.needs;
        let of = |fields: &Fields| {
            let wanted = |(_, (name, _)): &(usize, &(String, CqlType))| fields.has(name);
            let found = columns.iter().enumerate().filter(wanted);
            found.map(|(index, _)| index).collect()
        };
        Table {
            wanted: [of(&needs.columns), of(&needs.before), of(&needs.after)],
            keyspace: keyspace.to_owned(),
            name: name.to_owned(),
            columns,
        }
    }

    /// Whether the condition holds: of a change, of a record, or of a record and the change that it was made of.
    ///
    /// # Errors
    /// It cannot be told: the expression asks for what is not there, say, or is neither true nor false.
    pub fn holds(
        &self,
        change: Option<Change<'_>>,
        record: Option<&Record<'_>>,
    ) -> Result<bool, String> {
        let Compiled {
            text,
            program,
            needs,
            env,
        } = &*self.0;
        let mut context = Context::with_env(env.clone());
        if let Some(change) = change {
            change.add_to(&mut context, needs)?;
        }
        if let Some(record) = record {
            record.add_to(&mut context, needs);
        }
        match program.execute(&context) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(other) => Err(format!("`{text}` is no true or false, but {other:?}")),
            Err(error) => Err(format!("`{text}`: {error}")),
        }
    }
}

impl Change<'_> {
    fn add_to(&self, context: &mut Context<'_, '_>, needs: &Needs) -> Result<(), String> {
        let Self { table, rows, row } = *self;
        let row = rows.get(row as usize).ok_or("no such row")?;
        let mut add = |name: &str, value: &dyn Fn() -> Value| {
            if needs.names.contains(name) {
                context.add_variable_from_value(name, value());
            }
        };
        let meta = row.meta();
        add("op", &|| row.operation().name().into());
        add("keyspace", &|| table.keyspace.as_str().into());
        add("table", &|| table.name.as_str().into());
        add("time_us", &|| meta.time_us.into());
        add("ttl", &|| i64::from(meta.ttl).into());
        let images = [
            ("columns", Some(row)),
            (
                "before",
                row.preimage().and_then(|at| rows.get(at as usize)),
            ),
            ("after", row.end().and_then(|at| rows.get(at as usize))),
        ];
        for ((name, image), wanted) in images.into_iter().zip(&table.wanted) {
            if !needs.names.contains(name) {
                continue;
            }
            // What ends a range is no image.
            let image = image.filter(|image| {
                name != "after"
                    || image.operation() == penstock_plugin_encoding::Operation::PostImage
            });
            let mut told = HashMap::new();
            for (index, image) in wanted.iter().filter_map(|index| Some((*index, image?))) {
                let (column, cql_type) = &table.columns[index];
                let Some((tag, bytes)) = image.column(index) else {
                    continue;
                };
                let value = values::column(tag, cql_type, bytes)
                    .map_err(|e| format!("column `{column}`: {e}"))?;
                if let Some(value) = value {
                    told.insert(column.clone(), value);
                }
            }
            context.add_variable_from_value(name, told);
        }
        Ok(())
    }
}

impl Record<'_> {
    fn add_to(&self, context: &mut Context<'_, '_>, needs: &Needs) {
        let mut add = |name: &str, value: &dyn Fn() -> Value| {
            if needs.names.contains(name) {
                context.add_variable_from_value(name, value());
            }
        };
        let text = |bytes: Option<&[u8]>| bytes.map_or(Value::Null, values::text);
        add("topic", &|| self.topic.into());
        add("key", &|| text(self.key));
        add("value", &|| {
            let json = self.value.and_then(|value| {
                let text = exact(std::str::from_utf8(value).ok()?);
                serde_json::from_str::<serde_json::Value>(&text).ok()
            });
            match json {
                Some(json) => values::from_json(&json),
                _ => text(self.value),
            }
        });
        add("headers", &|| {
            let headers = self
                .headers
                .iter()
                .filter(|(name, _)| needs.headers.has(name));
            let entries = headers.map(|(name, value)| ((*name).to_owned(), text(*value)));
            Value::from(entries.collect::<HashMap<String, Value>>())
        });
    }
}

#[cfg(test)]
mod tests;
