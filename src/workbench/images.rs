//! Which images of a change a chain of transforms makes use of. No contract says it, so it is tried: on made-up changes of a
//! table, in the real host.

use std::mem::discriminant;
use std::sync::Arc;

use penstock_plugin_encoding::{ColumnKind, CqlType};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::changes::{self, Sheet, Tables};
use super::trial::{Outcome, outcomes};
use super::values;
use crate::change::TableSchema;
use crate::config::Settings;
use crate::transform::{Chain, Engine, Plugin, Prepared};

/// What a chain makes use of, in one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uses {
    /// What a row was before.
    pub preimages: bool,
    /// What it is after.
    pub postimages: bool,
    /// Some changes go on to the end as they were, and are rendered with the images that they have.
    pub renders: bool,
}

/// Tries it.
///
/// # Errors
/// A plugin does not load, or no change of this table can be made up.
pub fn used(
    engine: &Engine,
    settings: &Arc<Settings>,
    table: &Arc<TableSchema>,
) -> Result<Uses, String> {
    let tables = Tables::of(vec![table.clone()]);
    let whole = |n: u8| Value::Object(row(table, n, |_| true));
    let key = Value::Object(row(table, 1, |kind| {
        matches!(kind, ColumnKind::PartitionKey | ColumnKind::ClusteringKey)
    }));
    let changes = [
        json!({ "operation": "insert", "columns": whole(1) }),
        json!({ "operation": "update", "columns": whole(1) }),
        json!({ "operation": "row-delete", "columns": key }),
    ];
    let made_of = |image: Option<(&str, u8)>| {
        let given = changes.clone().map(|mut change| {
            if let Some((name, n)) = image {
                change[name] = whole(n);
            }
            change
        });
        made(engine, settings, &tables, &given)
    };
    let without = made_of(None)?;
    let uses = |image: &str| -> Result<bool, String> {
        let (one, other) = (made_of(Some((image, 1)))?, made_of(Some((image, 2)))?);
        // Another image, another outcome; or one is possible only with an image.
        Ok(one != other || kinds(&one) != kinds(&without))
    };
    let renders = |outcome: &Outcome| matches!(outcome, Outcome::Forwarded(_));
    Ok(Uses {
        preimages: uses("preimage")?,
        postimages: uses("postimage")?,
        renders: without.last().is_some_and(|last| last.iter().any(renders)),
    })
}

/// What each transform in its turn made of the changes.
fn made(
    engine: &Engine,
    settings: &Arc<Settings>,
    tables: &Tables,
    given: &[Value],
) -> Result<Vec<Vec<Outcome>>, String> {
    let mut prepared = Vec::new();
    for transform in &settings.transforms {
        let plugin = Plugin::load(engine, &transform.plugin).map_err(|e| e.to_string())?;
        let made = Prepared::new(transform, plugin, tables.all());
        prepared.push(made.map_err(|e| e.to_string())?);
    }
    let mut chain = Chain::new(prepared, watch::channel(settings.clone()).1);
    let Sheet { batch, given, rows } = changes::read(tables, given)?;
    let steps = chain.trace(batch, given, 0).map_err(|e| e.to_string())?;
    let all = steps.iter().map(|step| outcomes(step, &rows, 1, &|_| true));
    Ok(all.collect())
}

fn kinds(made: &[Vec<Outcome>]) -> Vec<Vec<std::mem::Discriminant<Outcome>>> {
    let of = |outcomes: &Vec<Outcome>| outcomes.iter().map(discriminant).collect();
    made.iter().map(of).collect()
}

/// A row of columns of these kinds, another one for each `n`; a column of a type that is not made up is left out.
fn row(table: &TableSchema, n: u8, wanted: impl Fn(ColumnKind) -> bool) -> Map<String, Value> {
    let columns = table.columns.iter().filter(|column| wanted(column.kind));
    columns
        .filter_map(|column| {
            // Keys are one row's.
            let n = match column.kind {
                ColumnKind::PartitionKey | ColumnKind::ClusteringKey => 1,
                _ => n,
            };
            let typ = column.cql_type.parse::<CqlType>().ok()?;
            let value = sample(&typ, n).filter(|value| values::encode(&typ, value).is_ok())?;
            Some((column.name.clone(), value))
        })
        .collect()
}

fn sample(typ: &CqlType, n: u8) -> Option<Value> {
    Some(match typ {
        CqlType::Ascii | CqlType::Text => format!("a{n}").into(),
        CqlType::Bigint | CqlType::Int | CqlType::Smallint | CqlType::Tinyint | CqlType::Varint => {
            n.into()
        }
        CqlType::Boolean => (n == 1).into(),
        CqlType::Double | CqlType::Float | CqlType::Decimal => n.into(),
        CqlType::Date => format!("2026-01-0{n}").into(),
        CqlType::Timestamp => format!("2026-01-0{n}T00:00:00Z").into(),
        CqlType::Time => format!("0{n}:00:00").into(),
        CqlType::Inet => format!("10.0.0.{n}").into(),
        CqlType::Uuid => format!("00000000-0000-4000-8000-00000000000{n}").into(),
        CqlType::Timeuuid => format!("0000000{n}-0000-1000-8000-000000000000").into(),
        CqlType::Frozen(inner) => sample(inner, n)?,
        _ => return None,
    })
}
