//! Conditional statements: whether they apply, and what they answer.
//!
//! ScyllaDB answers with the row as it was, whether or not the statement applied (docs/cql/dml,
//! `cql3/statements/cas_request.cc`): all columns for `IF [NOT] EXISTS`, else those of the conditions;
//! a batch adds the primary key, and has one row for each statement.

use bytes::Bytes;

use super::{
    ColumnSpec,
    cell::{Partition, Row},
    error::CqlError,
    filter, order,
    plan::{Condition, Context, ModifyPlan, Operand},
    rows::Rows,
    schema::{ColumnKind, TableSchema},
    select::{Partitions, key_ranges, partitions},
    storage::{RingKey, RowView, TableData},
};
use crate::types::CqlType;

/// One conditional statement, or one in a batch that is.
pub(crate) struct Statement<'a> {
    pub(crate) plan: &'a ModifyPlan,
    pub(crate) context: &'a Context<'a>,
}

/// The places of the columns that a statement's answer tells.
fn answer_columns(plan: &ModifyPlan) -> Vec<usize> {
    match &plan.condition {
        Condition::None => Vec::new(),
        Condition::Exists | Condition::NotExists => (0..plan.table.columns.len()).collect(),
        Condition::If(filters) => {
            let mut columns: Vec<usize> = filters
                .iter()
                .flat_map(|f| match &f.operand {
                    Operand::Column(at) | Operand::Element(at, _) | Operand::Field(at, _) => {
                        vec![*at]
                    }
                    Operand::Tuple(all) => all.clone(),
                })
                .collect();
            columns.sort_unstable();
            columns.dedup();
            columns
        }
    }
}

/// The columns of the answer of one conditional statement, or of a batch of them.
pub(crate) fn columns(plans: &[&ModifyPlan], batch: bool) -> (Vec<usize>, Vec<ColumnSpec>) {
    let Some(table) = plans.first().map(|p| &p.table) else {
        return (Vec::new(), Vec::new());
    };
    let mut told: Vec<usize> = plans.iter().flat_map(|p| answer_columns(p)).collect();
    if batch {
        told.extend(0..table.partition_key_len + table.clustering_key_len);
    }
    told.sort_unstable();
    told.dedup();
    let mut specs = vec![ColumnSpec::new(table, "[applied]", CqlType::Boolean)];
    specs.extend(
        told.iter()
            .map(|at| ColumnSpec::of(table, &table.columns[*at])),
    );
    (told, specs)
}

/// Whether a statement concerns the static row alone.
fn only_static(plan: &ModifyPlan) -> bool {
    plan.table.has_clustering() && plan.restrictions.clustering.is_empty()
}

/// Checks all conditions and makes the answer; all statements are of one partition.
pub(crate) fn check(
    statements: &[Statement<'_>],
    data: &TableData,
    batch: bool,
) -> Result<(bool, Rows), CqlError> {
    let plans: Vec<&ModifyPlan> = statements.iter().map(|s| s.plan).collect();
    let (told, _) = columns(&plans, batch);
    let mut applied = true;
    let mut found = Vec::with_capacity(statements.len());
    for statement in statements {
        let (_, components, row) = target(statement.plan, statement.context, data)?;
        let stored = row.as_ref().map(|(partition, _)| *partition);
        let view = old_row(
            statement,
            &components,
            stored,
            row.as_ref().and_then(|(_, at)| at.as_deref()),
        );
        applied = applied && holds(statement, view.as_ref())?;
        let cells: Option<Vec<Option<Bytes>>> = view.map(|v| {
            told.iter()
                .map(|at| v.value(&v.table.columns[*at]))
                .collect()
        });
        found.push(cells);
    }
    let rows = found.into_iter().map(|cells| {
        let mut row = vec![Some(Bytes::from_static(if applied { &[1] } else { &[0] }))];
        row.extend(cells.unwrap_or_else(|| vec![None; told.len()]));
        row
    });
    Ok((applied, rows.collect()))
}

/// The partition of a conditional statement.
pub(crate) fn partition(
    plan: &ModifyPlan,
    context: &Context<'_>,
) -> Result<(RingKey, Vec<Bytes>), CqlError> {
    let verb = match plan.kind {
        super::plan::ModifyKind::Delete => "deletions",
        _ => "updates",
    };
    match partitions(&plan.table, &plan.restrictions, context)? {
        Partitions::Keys(mut keys) if keys.len() == 1 => Ok(keys.remove(0)),
        _ => Err(CqlError::invalid(format!(
            "IN on the partition key is not supported with conditional {verb}"
        ))),
    }
}

type Target<'a> = (
    RingKey,
    Vec<Bytes>,
    Option<(&'a Partition, Option<Vec<u8>>)>,
);

fn target<'a>(
    plan: &ModifyPlan,
    context: &Context<'_>,
    data: &'a TableData,
) -> Result<Target<'a>, CqlError> {
    let (key, components) = partition(plan, context)?;
    let ranges = key_ranges(&plan.table, &plan.restrictions, context)?;
    let row = match ranges.as_slice() {
        [one] if one.full => Some(order::key(plan.table.clustering_key(), &one.start.prefix)),
        _ if only_static(plan) => None,
        [_] => {
            return Err(CqlError::invalid(
                "DELETE statements must restrict all PRIMARY KEY columns with equality relations in order to use IF \
                 conditions",
            ));
        }
        _ => {
            return Err(CqlError::invalid(
                "IN on the clustering key columns is not supported with conditional updates",
            ));
        }
    };
    let stored = data.get(&key).map(|s| (&s.data, row));
    Ok((key, components, stored))
}

/// The row that the conditions are about, if there is one.
fn old_row<'a>(
    statement: &'a Statement<'_>,
    components: &'a [Bytes],
    stored: Option<&'a Partition>,
    at: Option<&[u8]>,
) -> Option<RowView<'a>> {
    let (plan, stored) = (statement.plan, stored?);
    let now = statement.context.seconds();
    let has_static = |row: &Row| row.cells.iter().any(|(_, c)| c.is_live(now));
    let row = at
        .and_then(|at| stored.rows.get(at))
        .filter(|r| r.is_live(now));
    let exists = matches!(plan.condition, Condition::Exists | Condition::NotExists);
    let there = row.is_some()
        || has_static(&stored.static_row) && (only_static(plan) || !exists)
        || only_static(plan) && !exists && stored.rows.values().any(|r| r.is_live(now));
    let view = RowView {
        table: &plan.table,
        key: components,
        statics: Some(&stored.static_row),
        row,
        now,
    };
    there.then_some(view)
}

fn holds(statement: &Statement<'_>, view: Option<&RowView<'_>>) -> Result<bool, CqlError> {
    let table: &TableSchema = &statement.plan.table;
    match &statement.plan.condition {
        Condition::None => Ok(true),
        Condition::NotExists => Ok(view.is_none()),
        Condition::Exists => Ok(view.is_some()),
        Condition::If(filters) => {
            // A row that is not there has nulls everywhere.
            let nothing = RowView {
                table,
                key: &[],
                statics: None,
                row: None,
                now: statement.context.seconds(),
            };
            for filter in filter::prepare_conditions(filters, table, statement.context)? {
                if !filter.accepts(view.unwrap_or(&nothing))? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
    }
}

/// Refuses what a conditional statement may not have.
pub(crate) fn validate(plan: &ModifyPlan) -> Result<(), CqlError> {
    if matches!(plan.condition, Condition::None) {
        return Ok(());
    }
    if plan.table.counter {
        return Err(CqlError::invalid(
            "Conditional updates are not supported on counter tables",
        ));
    }
    if plan.timestamp.is_some() {
        return Err(CqlError::invalid(
            "Cannot provide custom timestamp for conditional updates",
        ));
    }
    if let Condition::If(filters) = &plan.condition {
        for filter in filters {
            if let Operand::Column(at) = &filter.operand {
                let column = &plan.table.columns[*at];
                if matches!(
                    column.kind,
                    ColumnKind::PartitionKey | ColumnKind::Clustering
                ) {
                    return Err(CqlError::invalid(format!(
                        "PRIMARY KEY column '{}' cannot have IF conditions",
                        column.name
                    )));
                }
            }
        }
    }
    Ok(())
}
