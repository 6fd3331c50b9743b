//! {about}

use penstock_plugin::{
    About, Change, Error, Interest, Output, Setting, Settings, Table, Transform,
};

struct {Type} {
    drop: Vec<String>,
    column: String,
}

impl Transform for {Type} {
    /// What it does and which settings it takes: `penstock validate` holds pipeline.toml against it.
    fn about() -> About {
        About::new("Lets go of the changes that say one of some words in a column, and hands on all others.")
            .setting(Setting::texts("drop").doc("the words, e.g. [\"order.cancelled\"]"))
            .setting(
                Setting::text("column")
                    .default("event_type")
                    .doc("the text column; tables without it pass by"),
            )
    }

    /// Called once for each instance. An error refuses the settings: what ran before goes on.
    fn configure(settings: &Settings) -> Result<Self, Error> {
        Ok(Self {
            drop: settings.texts("drop")?,
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
            Some(word) if self.drop.iter().any(|d| d == word) => out.discard(change),
            _ => out.forward(change),
        }
        Ok(())
    }
}

penstock_plugin::export_plugin!({Type});
