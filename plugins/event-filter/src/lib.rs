//! Lets go of the events whose type is named, and hands on all others. The smallest useful transform:
//! `cargo xtask new-plugin <name>` starts yours from it.
//!
//! | setting | default | |
//! |---|---|---|
//! | `drop` | none | comma-separated event types, e.g. `order.cancelled,order.updated` |
//! | `column` | `event_type` | the text column that names the type; tables without it pass by |
//!
//! In pipeline.toml it stands before the transform that routes, since it looks at changes, not at records.

use penstock_plugin::{Change, Error, Interest, Output, Settings, Table, Transform};

struct EventFilter {
    drop: Vec<String>,
    column: String,
}

impl Transform for EventFilter {
    /// Called once for each instance, with `settings` of pipeline.toml. An error refuses them: what ran before
    /// goes on.
    fn configure(settings: &Settings) -> Result<Self, Error> {
        settings.only(&["drop", "column"])?;
        let types = settings.get("drop").unwrap_or_default().split(',');
        Ok(Self {
            drop: types
                .map(|t| t.trim().to_owned())
                .filter(|t| !t.is_empty())
                .collect(),
            column: settings.get("column").unwrap_or("event_type").to_owned(),
        })
    }

    /// Called for each version of a table. The fewer columns are wanted, the less is copied.
    fn interest(&mut self, table: &Table) -> Result<Interest, Error> {
        Ok(match table.column(&self.column) {
            Some(column) => Interest::Columns(vec![column]),
            None => Interest::Ignore,
        })
    }

    /// Called for each change. An error sends this change, and no other, to the dead letters.
    fn process(&mut self, change: &Change<'_>, out: &mut Output) -> Result<(), Error> {
        match change.find::<&str>(&self.column)? {
            Some(event_type) if self.drop.iter().any(|d| d == event_type) => out.discard(change),
            _ => out.forward(change),
        }
        Ok(())
    }
}

penstock_plugin::export_plugin!(EventFilter);

#[cfg(test)]
mod tests {
    use penstock_plugin::testing::{Harness, Outcome};

    use super::*;

    #[test]
    fn named_types_are_let_go_of_and_others_handed_on() {
        let mut harness =
            Harness::<EventFilter>::new(&[("drop", "order.cancelled, order.updated")]).unwrap();
        let outbox = harness
            .table("ks.outbox", "id int primary, event_type text")
            .unwrap();
        let event = |t: &str| outbox.insert().set("id", 1).set("event_type", t);
        assert_eq!(harness.run(event("order.cancelled")), Outcome::Dropped);
        assert_eq!(harness.run(event("order.updated")), Outcome::Dropped);
        assert_eq!(harness.run(event("order.created")), Outcome::Forwarded);
        assert_eq!(
            harness.run(outbox.insert().set("id", 1).null("event_type")),
            Outcome::Forwarded
        );
    }

    #[test]
    fn tables_without_the_column_pass_by() {
        let mut harness = Harness::<EventFilter>::new(&[("drop", "x")]).unwrap();
        let people = harness.table("ks.people", "id int primary").unwrap();
        assert_eq!(harness.run(people.insert().set("id", 1)), Outcome::Ignored);
    }
}
