//! Hands on the changes and records for which an expression in CEL is true; see docs/plugins/filter.md.
//!
//! The expression runs within the guest, so that its memory and time are bounded whatever it says.

use std::collections::BTreeMap;

use penstock_conditions::{Condition, Record, Table as Known};
use penstock_plugin::{
    About, Change, CqlValue, Error, Interest, Output, Setting, Settings, Table, Transform,
};

struct Filter {
    keep: Condition,
    /// An expression that fails: `None` is an error, else what it counts as.
    failing: Option<bool>,
    /// By the id of their version.
    tables: BTreeMap<u32, Known>,
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
        let wrong = |e: penstock_conditions::Malformed| {
            let before = text.get(..e.at).unwrap_or(text);
            Error::new(format!(
                "setting `keep` = {text:?}: column {}: {}",
                before.chars().count() + 1,
                e.what
            ))
        };
        Ok(Self {
            keep: Condition::compile(text).map_err(wrong)?,
            failing: match settings.get("on_failure") {
                Some("keep") => Some(true),
                Some("drop") => Some(false),
                _ => None,
            },
            tables: BTreeMap::new(),
        })
    }

    fn interest(&mut self, table: &Table) -> Result<Interest, Error> {
        let columns = table.columns.iter();
        let columns = columns.map(|c| (c.name.clone(), c.cql_type.clone()));
        let known = self.keep.table(&table.keyspace, &table.name, columns);
        self.tables.insert(table.id, known);
        Ok(Interest::All)
    }

    fn process(&mut self, change: &Change<'_>, out: &mut Output) -> Result<(), Error> {
        let kept = match (self.holds(change), self.failing) {
            (Ok(kept), _) | (Err(_), Some(kept)) => kept,
            (Err(error), None) => return Err(error),
        };
        match kept {
            true => out.forward(change),
            false => out.discard(change),
        }
        Ok(())
    }
}

impl Filter {
    fn holds(&self, change: &Change<'_>) -> Result<bool, Error> {
        if change.table().is_record_table() {
            let headers = match change.find("headers")? {
                Some(CqlValue::Map(all)) => all,
                _ => Vec::new(),
            };
            let header = |(name, value)| match (name, value) {
                (CqlValue::Text(name), CqlValue::Blob(bytes)) => Some((name, Some(bytes))),
                (CqlValue::Text(name), _) => Some((name, None)),
                _ => None,
            };
            let record = Record {
                topic: change.get("topic")?,
                key: change.find("key")?,
                value: change.find("value")?,
                headers: headers.into_iter().filter_map(header).collect(),
            };
            return self.keep.holds(None, Some(&record)).map_err(Error::new);
        }
        let (rows, row) = change.raw();
        let table = self.tables.get(&change.table().id);
        let of = table.map(|table| penstock_conditions::Change { table, rows, row });
        self.keep.holds(of, None).map_err(Error::new)
    }
}

penstock_plugin::export_plugin!(Filter);
