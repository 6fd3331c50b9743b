//! From the relations of a `WHERE` to the partitions, the rows and what is left to filter.
//!
//! Messages follow ScyllaDB `cql3/restrictions/statement_restrictions.cc`.

use super::{
    error::CqlError,
    plan::{
        ClusteringPart, Comparison, Expr, Filter, Operand, PartitionPart, Restrictions, SliceBound,
        Values,
    },
    schema::{Column, ColumnKind, TableSchema},
};
use crate::types::CqlType;

/// One relation, with its names and types resolved.
#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "a few a statement; a box would only be in the way"
)]
pub(crate) enum Relation {
    Plain(Filter),
    /// `token(partition key) op term`.
    Token(Comparison, Expr),
}

/// What the relations are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Select { allow_filtering: bool },
    Modify,
}

const FILTERING: &str = "Cannot execute this query as it might involve data filtering and thus may have unpredictable \
                         performance. If you want to execute this query despite the performance unpredictability, use \
                         ALLOW FILTERING";

/// Sorts the relations of a `WHERE` by what they restrict.
pub(crate) fn restrictions(
    table: &TableSchema,
    relations: Vec<Relation>,
    purpose: Purpose,
) -> Result<Restrictions, CqlError> {
    let mut filters = Vec::new();
    let (mut lower, mut upper, mut by_token) = (None, None, false);
    for relation in relations {
        match relation {
            Relation::Plain(filter) => filters.push(filter),
            Relation::Token(comparison, term) => {
                by_token = true;
                if purpose == Purpose::Modify {
                    return Err(CqlError::invalid(
                        "The token function cannot be used in WHERE clauses for UPDATE and DELETE statements",
                    ));
                }
                match comparison {
                    Comparison::Eq => {
                        (lower, upper) = (Some((term.clone(), true)), Some((term, true)))
                    }
                    Comparison::Gt | Comparison::Ge => {
                        lower = Some((term, comparison == Comparison::Ge))
                    }
                    Comparison::Lt | Comparison::Le => {
                        upper = Some((term, comparison == Comparison::Le))
                    }
                    _ => {
                        return Err(CqlError::invalid(
                            "IN cannot be used with the token function",
                        ));
                    }
                }
            }
        }
    }
    refuse_conflicts(table, &filters)?;
    let clustering = clustering(table, &mut filters);
    let partition = if by_token {
        PartitionPart::Tokens { lower, upper }
    } else {
        partition(table, &mut filters, purpose)?
    };
    if purpose == Purpose::Modify {
        refuse_rest(table, &filters)?;
    } else if purpose
        == (Purpose::Select {
            allow_filtering: false,
        })
    {
        let ranged = !matches!(partition, PartitionPart::Keys(_));
        if !filters.is_empty() || (ranged && !clustering.is_empty()) {
            return Err(explain(table, &filters, &partition));
        }
    }
    // Without a partition the clustering ranges hold in each partition just the same.
    Ok(Restrictions {
        reading: purpose != Purpose::Modify,
        partition,
        clustering,
        filters,
    })
}

/// The column a filter is about, when it is about one as a whole.
fn single(filter: &Filter) -> Option<usize> {
    match filter.operand {
        Operand::Column(at) => Some(at),
        _ => None,
    }
}

fn refuse_conflicts(table: &TableSchema, filters: &[Filter]) -> Result<(), CqlError> {
    for (i, filter) in filters.iter().enumerate() {
        let Some(at) = single(filter) else { continue };
        let column = &table.columns[at];
        if column.kind > ColumnKind::Clustering {
            continue;
        }
        let equal = |f: &Filter| matches!(f.comparison, Comparison::Eq | Comparison::In);
        for other in filters[i + 1..].iter().filter(|f| single(f) == Some(at)) {
            if equal(filter) || equal(other) {
                let what =
                    if filter.comparison == Comparison::In || other.comparison == Comparison::In {
                        "IN"
                    } else {
                        "Equal"
                    };
                return Err(CqlError::invalid(format!(
                    "{} cannot be restricted by more than one relation if it includes an {what}",
                    column.name
                )));
            }
            let side = |f: &Filter| matches!(f.comparison, Comparison::Gt | Comparison::Ge);
            if side(filter) == side(other) {
                return Err(CqlError::invalid(format!(
                    "More than one restriction was found for the {} bound on {}",
                    if side(filter) { "start" } else { "end" },
                    column.name
                )));
            }
        }
    }
    Ok(())
}

fn partition(
    table: &TableSchema,
    filters: &mut Vec<Filter>,
    purpose: Purpose,
) -> Result<PartitionPart, CqlError> {
    let is_key = |f: &Filter, at: usize| {
        single(f) == Some(at) && matches!(f.comparison, Comparison::Eq | Comparison::In)
    };
    let complete = (0..table.partition_key_len).all(|at| filters.iter().any(|f| is_key(f, at)));
    if complete {
        let mut parts = Vec::with_capacity(table.partition_key_len);
        for at in 0..table.partition_key_len {
            if let Some(found) = filters.iter().position(|f| is_key(f, at)) {
                parts.push(filters.remove(found).values);
            }
        }
        return Ok(PartitionPart::Keys(parts));
    }
    if purpose == Purpose::Modify {
        for (at, column) in table.partition_key().iter().enumerate() {
            let named = filters.iter().any(|f| single(f) == Some(at));
            if named && !filters.iter().any(|f| is_key(f, at)) {
                return Err(CqlError::invalid(format!(
                    "Only EQ and IN relation are supported on the partition key (unless you use the token() function) \
                     for {}",
                    column.name
                )));
            }
            if !named
                && filters
                    .iter()
                    .any(|f| single(f).is_some_and(|c| c < table.partition_key_len))
            {
                return Err(CqlError::invalid(FILTERING));
            }
            if !named {
                return Err(CqlError::invalid(format!(
                    "Missing mandatory PRIMARY KEY part {}",
                    column.name
                )));
            }
        }
    }
    Ok(PartitionPart::All)
}

/// Takes the relations that make ranges of rows: points on a prefix of the clustering key, then at most
/// one slice.
fn clustering(table: &TableSchema, filters: &mut Vec<Filter>) -> Vec<ClusteringPart> {
    let first = table.partition_key_len;
    let end = first + table.clustering_key_len;
    let mut parts = Vec::new();
    let mut at = first;
    while at < end {
        let begins = |f: &Filter, wanted: &[Comparison]| match &f.operand {
            Operand::Column(c) if *c == at && wanted.contains(&f.comparison) => Some((1, false)),
            Operand::Tuple(all) if wanted.contains(&f.comparison) && consecutive(all, at) => {
                Some((all.len(), true))
            }
            _ => None,
        };
        let equal = [Comparison::Eq, Comparison::In];
        if let Some((found, (width, tuple))) = filters
            .iter()
            .enumerate()
            .find_map(|(i, f)| Some((i, begins(f, &equal)?)))
        {
            parts.push(ClusteringPart::Points {
                width,
                tuple,
                values: filters.remove(found).values,
            });
            at += width;
            continue;
        }
        let (mut lower, mut upper) = (None, None);
        let mut kind = None;
        for wanted in [
            [Comparison::Gt, Comparison::Ge],
            [Comparison::Lt, Comparison::Le],
        ] {
            let Some((found, (width, tuple))) = filters
                .iter()
                .enumerate()
                .find_map(|(i, f)| Some((i, begins(f, &wanted)?)))
            else {
                continue;
            };
            // A tuple slice is one range only where all its columns sort the same way.
            let mixed = table.columns[at..at + width]
                .iter()
                .any(|c| c.descending != table.columns[at].descending);
            if mixed || *kind.get_or_insert(tuple) != tuple {
                continue;
            }
            let filter = filters.remove(found);
            let inclusive = matches!(filter.comparison, Comparison::Ge | Comparison::Le);
            if let Values::One(value) = filter.values {
                let bound = Some(SliceBound {
                    width,
                    tuple,
                    value,
                    inclusive,
                });
                if wanted[0] == Comparison::Gt {
                    lower = bound;
                } else {
                    upper = bound;
                }
            }
        }
        if lower.is_some() || upper.is_some() {
            parts.push(ClusteringPart::Slice { lower, upper });
        }
        break;
    }
    parts
}

fn consecutive(columns: &[usize], from: usize) -> bool {
    !columns.is_empty() && columns.iter().enumerate().all(|(i, at)| *at == from + i)
}

fn refuse_rest(table: &TableSchema, filters: &[Filter]) -> Result<(), CqlError> {
    let Some(filter) = filters.first() else {
        return Ok(());
    };
    let at = match &filter.operand {
        Operand::Column(at) | Operand::Element(at, _) | Operand::Field(at, _) => *at,
        Operand::Tuple(all) => all.first().copied().unwrap_or_default(),
    };
    let column = &table.columns[at];
    if column.kind == ColumnKind::Clustering {
        return Err(skipped(table, column));
    }
    Err(CqlError::invalid(format!(
        "Invalid where clause contains non PRIMARY KEY columns: {}",
        column.name
    )))
}

fn skipped(table: &TableSchema, column: &Column) -> CqlError {
    let before = &table.clustering_key()[(column.position - 1).max(0) as usize];
    CqlError::invalid(format!(
        "PRIMARY KEY column \"{}\" cannot be restricted as preceding column \"{}\" is not restricted",
        column.name, before.name
    ))
}

fn explain(table: &TableSchema, filters: &[Filter], partition: &PartitionPart) -> CqlError {
    let clustering = filters
        .iter()
        .filter_map(single)
        .map(|at| &table.columns[at])
        .find(|c| c.kind == ColumnKind::Clustering);
    match (clustering, partition) {
        (Some(column), PartitionPart::Keys(_)) if column.position > 0 => skipped(table, column),
        _ => CqlError::invalid(FILTERING),
    }
}

/// The tuple type of several columns, for relations on them together.
pub(crate) fn tuple_type(table: &TableSchema, columns: &[usize]) -> CqlType {
    CqlType::Tuple(
        columns
            .iter()
            .map(|at| table.columns[*at].ty.clone())
            .collect(),
    )
}
