//! `when` of a transform: which changes and records it is handed. Evaluated here, for the others must cost no call of a guest.

use std::panic::{AssertUnwindSafe, catch_unwind};

use penstock_conditions::{Change, Condition, Record, Table};

use super::draft::{Draft, Item};

/// Table versions whose columns are remembered; as many as a chain remembers.
const MAX_TABLES: usize = 256;

/// A transform's condition, and the tables that it has met.
#[derive(Debug)]
pub(super) struct When {
    condition: Condition,
    tables: Vec<(u32, Table)>,
}

impl When {
    pub(super) fn new(condition: Condition) -> Self {
        Self {
            condition,
            tables: Vec::new(),
        }
    }

    /// Whether it is this condition's.
    pub(super) fn is(&self, condition: Option<&Condition>) -> bool {
        condition == Some(&self.condition)
    }

    /// Whether the transform is for this item. Of a record its own names are known, and those of the change that it was
    /// made of.
    ///
    /// # Errors
    /// It cannot be told.
    pub(super) fn holds(&mut self, draft: &Draft, item: &Item) -> Result<bool, String> {
        let batch = &draft.batch;
        let row = item.source();
        let of = batch.source.rows.get(row as usize);
        let table = of.map(|of| self.table(draft, of.table())).transpose()?;
        let change = table.map(|at| Change {
            table: &self.tables[at].1,
            rows: &batch.source.rows,
            row,
        });
        let record = match item {
            Item::Change(_) => None,
            Item::Record(record) => {
                let headers = record.headers.start as usize..record.headers.end as usize;
                let headers = batch.headers.get(headers).unwrap_or_default();
                let header = |(name, value): &(_, _)| {
                    let name = std::str::from_utf8(batch.bytes(*name)?).ok()?;
                    Some((name, batch.bytes(*value)))
                };
                let topic = batch.topics.get(record.topic as usize);
                Some(Record {
                    topic: topic.map_or("", |topic| topic),
                    key: batch.bytes(record.key),
                    value: batch.bytes(record.value),
                    headers: headers.iter().filter_map(header).collect(),
                })
            }
        };
        // No guest is around it: a panic would be a crash over one change.
        let judged = catch_unwind(AssertUnwindSafe(|| {
            self.condition.holds(change, record.as_ref())
        }));
        judged
            .unwrap_or_else(|_| Err("the expression panicked".to_owned()))
            .map_err(|e| format!("when: {e}"))
    }

    /// Where the table stands among those that were met.
    fn table(&mut self, draft: &Draft, id: u32) -> Result<usize, String> {
        let known = self.tables.iter().position(|(known, _)| *known == id);
        if let Some(at) = known {
            return Ok(at);
        }
        let table = draft.batch.source.table(id);
        let table = table.ok_or_else(|| format!("table version {id} is not in the batch"))?;
        let columns = table.columns.iter().map(|column| {
            let cql_type = column.cql_type.parse();
            cql_type
                .map(|cql_type| (column.name.clone(), cql_type))
                .map_err(|e| format!("column `{}`: {e}", column.name))
        });
        let columns = columns.collect::<Result<Vec<_>, String>>()?;
        let table = self.condition.table(&table.keyspace, &table.name, columns);
        if self.tables.len() == MAX_TABLES {
            self.tables.remove(0);
        }
        self.tables.push((id, table));
        Ok(self.tables.len() - 1)
    }
}
