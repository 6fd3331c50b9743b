//! The tables whose changes a transform refuses, all of them: what is remembered of it, and told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::change::TableSchema;

/// How long a table that could not be opened is not tried again: shorter than a breaker is open, so that its probe tries.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// By the version of the table.
#[derive(Debug, Default)]
pub(super) struct Refusals(BTreeMap<u32, Refusal>);

#[derive(Debug)]
struct Refusal {
    table: String,
    why: String,
    /// It could not be asked (a trap, a missed deadline), when it was tried last: no answer, and tried again after a while. `None`:
    /// the plugin answered so.
    tried: Option<Instant>,
    /// As far as is known, its changes are still refused.
    stands: bool,
}

impl Refusals {
    /// The plugin answered that it does not take this table.
    pub(super) fn answered(&mut self, table: &TableSchema, why: &str) {
        self.insert(table, why, None);
    }

    /// No instance could open it.
    pub(super) fn failed(&mut self, table: &TableSchema, why: &str) {
        self.insert(table, why, Some(Instant::now()));
    }

    fn insert(&mut self, table: &TableSchema, why: &str, tried: Option<Instant>) {
        let refusal = Refusal {
            table: name(table),
            why: why.to_owned(),
            tried,
            stands: true,
        };
        self.0.insert(table.id, refusal);
    }

    /// It is open, so what was said of its other versions is over, unless one is met again.
    pub(super) fn opened(&mut self, table: &TableSchema) {
        if self.0.remove(&table.id).is_none() && self.0.is_empty() {
            return;
        }
        let name = name(table);
        let others = self.0.values_mut().filter(|other| other.table == name);
        others.for_each(|other| other.stands = false);
    }

    /// The transform is for other changes than before: what it refuses still will show.
    pub(super) fn reconsider(&mut self) {
        self.0.values_mut().for_each(|known| known.stands = false);
    }

    /// Why changes of a table that could not be opened a moment ago are refused, without and with its name.
    pub(super) fn failed_lately(&mut self, table: u32) -> Option<(String, String)> {
        let known = self.0.get_mut(&table)?;
        if known.tried?.elapsed() >= REFUSED_FOR {
            return None;
        }
        known.stands = true;
        Some((known.why.clone(), named(&known.table, &known.why)))
    }

    /// What is to be told of it: of a table that cannot be opened, if there is one.
    pub(super) fn told(&self) -> Option<Arc<str>> {
        let standing = self.0.values().filter(|known| known.stands);
        let worst = standing.min_by_key(|known| known.tried.is_none())?;
        let Refusal { table, why, .. } = worst;
        Some(format!("all changes of {table} are refused: {why}").into())
    }
}

fn name(table: &TableSchema) -> String {
    format!("{}.{}", table.keyspace, table.name)
}

/// A reason with the table that it is about.
fn named(table: &str, why: &str) -> String {
    format!("{table}: {why}")
}

/// As [`named`], for a table that is known.
pub(super) fn reason(table: &TableSchema, why: &str) -> String {
    named(&name(table), why)
}
