//! Statements after names and types have been resolved: what is executed.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    error::CqlError,
    functions::Function,
    json::Document,
    order,
    schema::TableSchema,
    types::{self, put_bytes},
};
use crate::types::{CqlType, vector};

/// A value bound to a marker of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BoundValue {
    /// `null`.
    Null,
    /// Leave the column as it is.
    Unset,
    /// A serialised value.
    Bytes(Bytes),
}

/// What an expression came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Evaluated {
    Null,
    Unset,
    Value(Bytes),
}

impl Evaluated {
    pub(crate) fn bytes(self) -> Option<Bytes> {
        match self {
            Evaluated::Value(bytes) => Some(bytes),
            Evaluated::Null | Evaluated::Unset => None,
        }
    }
}

impl From<Option<Bytes>> for Evaluated {
    fn from(value: Option<Bytes>) -> Self {
        value.map_or(Evaluated::Null, Evaluated::Value)
    }
}

/// A term with its type resolved.
#[derive(Debug, Clone)]
pub(crate) enum Expr {
    Bind(usize, CqlType),
    Const(Option<Bytes>),
    Call(Function, Vec<Expr>),
    List(Vec<Expr>),
    Set(CqlType, Vec<Expr>),
    Map(CqlType, Vec<(Expr, Expr)>),
    /// Of elements of a type.
    Vector(CqlType, Vec<Expr>),
    /// A tuple, or a user-defined type's fields in order.
    Tuple(Vec<Expr>),
    /// What an `INSERT … JSON` says of a column, by its place in the table.
    Json(Arc<Document>, usize),
}

/// What a statement is executed with.
pub(crate) struct Context<'a> {
    pub(crate) values: &'a [BoundValue],
    /// µs since the epoch.
    pub(crate) now: i64,
}

impl Context<'_> {
    /// Seconds since the epoch.
    pub(crate) fn seconds(&self) -> i64 {
        self.now.div_euclid(1_000_000)
    }
}

impl Expr {
    pub(crate) fn eval(&self, context: &Context<'_>) -> Result<Evaluated, CqlError> {
        let inner = |expr: &Expr| match expr.eval(context)? {
            Evaluated::Unset => Err(CqlError::invalid(
                "Invalid unset value inside a collection or a function call",
            )),
            other => Ok(other.bytes()),
        };
        let present = |expr: &Expr, what: &str| {
            inner(expr)?.ok_or_else(|| {
                CqlError::invalid(format!("null is not supported inside collections ({what})"))
            })
        };
        Ok(match self {
            Expr::Bind(index, ty) => match context.values.get(*index) {
                None => return Err(CqlError::invalid("Invalid amount of bind variables")),
                Some(BoundValue::Null) => Evaluated::Null,
                Some(BoundValue::Unset) => Evaluated::Unset,
                Some(BoundValue::Bytes(bytes)) => {
                    types::validate(ty, bytes)?;
                    Evaluated::Value(types::canonical(ty, bytes))
                }
            },
            Expr::Const(value) => value.clone().into(),
            Expr::Json(document, column) => document.value(*column, context)?,
            Expr::Call(function, args) => {
                let args = args.iter().map(inner).collect::<Result<Vec<_>, _>>()?;
                function.call(&args, context.now)?.into()
            }
            Expr::List(items) => {
                let items = items
                    .iter()
                    .map(|i| present(i, "list"))
                    .collect::<Result<Vec<_>, _>>()?;
                Evaluated::Value(types::collection(items.iter()))
            }
            Expr::Set(ty, items) => {
                let mut items = items
                    .iter()
                    .map(|i| present(i, "set"))
                    .collect::<Result<Vec<_>, _>>()?;
                items.sort_by_cached_key(|i| order::value(ty, i));
                items.dedup_by_key(|i| order::value(ty, i));
                Evaluated::Value(types::collection(items.iter()))
            }
            Expr::Map(ty, entries) => {
                let mut pairs = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    pairs.push((present(key, "map")?, present(value, "map")?));
                }
                // The first of equal keys wins.
                pairs.sort_by_cached_key(|(k, _)| order::value(ty, k));
                pairs.dedup_by_key(|(k, _)| order::value(ty, k));
                Evaluated::Value(types::map(pairs.iter().map(|(k, v)| (k, v))))
            }
            Expr::Vector(ty, items) => {
                let items = items
                    .iter()
                    .map(|i| present(i, "vector"))
                    .collect::<Result<Vec<_>, _>>()?;
                Evaluated::Value(vector(ty, items.iter().map(|i| &i[..])).into())
            }
            Expr::Tuple(fields) => {
                let mut out = Vec::new();
                for field in fields {
                    put_bytes(&mut out, inner(field)?.as_deref());
                }
                Evaluated::Value(out.into())
            }
        })
    }
}

/// One or several values to compare with.
#[derive(Debug, Clone)]
pub(crate) enum Values {
    One(Expr),
    Many(Vec<Expr>),
    /// `IN ?`: a list of them.
    List(Expr),
}

impl Values {
    /// All values, as serialised, `None` for a null one; nothing for a list that is null itself. An
    /// unset one is an error that names `what`.
    pub(crate) fn eval(
        &self,
        context: &Context<'_>,
        what: &str,
    ) -> Result<Vec<Option<Bytes>>, CqlError> {
        let unset = || CqlError::invalid(format!("Invalid unset value for column {what}"));
        let one = |expr: &Expr| match expr.eval(context)? {
            Evaluated::Value(bytes) => Ok(Some(bytes)),
            Evaluated::Null => Ok(None),
            Evaluated::Unset => Err(unset()),
        };
        match self {
            Values::One(expr) => Ok(vec![one(expr)?]),
            Values::Many(exprs) => exprs.iter().map(one).collect(),
            Values::List(Expr::Bind(index, ty)) => match context.values.get(*index) {
                None => Err(CqlError::invalid("Invalid amount of bind variables")),
                Some(BoundValue::Null) => Ok(Vec::new()),
                Some(BoundValue::Unset) => Err(unset()),
                // Not a value to be stored, so nulls may be in it.
                Some(BoundValue::Bytes(bytes)) => types::list_with_nulls(ty, bytes),
            },
            Values::List(expr) => Ok(match one(expr)? {
                None => Vec::new(),
                Some(bytes) => types::elements(&bytes)
                    .into_iter()
                    .map(|e| Some(bytes.slice_ref(e)))
                    .collect(),
            }),
        }
    }

    /// The values of a part of the key. A null one is an error that names `what` where rows are written;
    /// where they are read it is equal to nothing.
    pub(crate) fn keys(
        &self,
        context: &Context<'_>,
        what: &str,
        reading: bool,
    ) -> Result<Vec<Bytes>, CqlError> {
        let values = self.eval(context, what)?;
        let null_list = values.is_empty() && !matches!(self, Values::Many(_));
        if !reading && (null_list || values.iter().any(Option::is_none)) {
            return Err(CqlError::invalid(format!(
                "Invalid null value in condition for column {what}"
            )));
        }
        Ok(values.into_iter().flatten().collect())
    }
}

/// How a filter or an `IF` compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
    Contains,
    ContainsKey,
    Like,
}

/// Which partitions.
#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "a few a statement; a box would only be in the way"
)]
pub(crate) enum PartitionPart {
    /// Values for each component.
    Keys(Vec<Values>),
    /// By `token(…)`: the bounds, each with whether it is inclusive.
    Tokens {
        lower: Option<(Expr, bool)>,
        upper: Option<(Expr, bool)>,
    },
    All,
}

/// Which rows; `width` clustering columns from where the part before ended. Values are serialised
/// tuples when `tuple`.
#[derive(Debug, Clone)]
pub(crate) enum ClusteringPart {
    Points {
        width: usize,
        tuple: bool,
        values: Values,
    },
    Slice {
        lower: Option<SliceBound>,
        upper: Option<SliceBound>,
    },
}

/// One end of a slice; the two may be of tuples of different widths.
#[derive(Debug, Clone)]
pub(crate) struct SliceBound {
    pub(crate) width: usize,
    pub(crate) tuple: bool,
    pub(crate) value: Expr,
    pub(crate) inclusive: bool,
}

/// The left side of a filter.
#[derive(Debug, Clone)]
pub(crate) enum Operand {
    /// By place in the table's columns.
    Column(usize),
    /// `c[key]` of a map, or `c[index]` of a list.
    Element(usize, Expr),
    /// A field of a user-defined type.
    Field(usize, usize),
    /// Several columns as a tuple.
    Tuple(Vec<usize>),
}

/// A condition checked row by row.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    pub(crate) operand: Operand,
    /// The type of the operand.
    pub(crate) ty: CqlType,
    pub(crate) comparison: Comparison,
    pub(crate) values: Values,
}

/// A `WHERE` clause.
#[derive(Debug, Clone)]
pub(crate) struct Restrictions {
    /// Whether they are of a `SELECT`.
    pub(crate) reading: bool,
    pub(crate) partition: PartitionPart,
    pub(crate) clustering: Vec<ClusteringPart>,
    pub(crate) filters: Vec<Filter>,
}

impl Restrictions {
    /// How many clustering columns are set to single values.
    pub(crate) fn points(&self) -> usize {
        self.clustering
            .iter()
            .map(|part| match part {
                ClusteringPart::Points { width, .. } => *width,
                ClusteringPart::Slice { .. } => 0,
            })
            .sum()
    }
}

/// What a selected value is made of.
#[derive(Debug, Clone)]
pub(crate) enum Selector {
    Column(usize),
    Field(Box<Selector>, usize),
    Element(Box<Selector>, CqlType, Expr),
    /// Of a column, or of one of its elements.
    WriteTime(usize, Option<Part>),
    Ttl(usize, Option<Part>),
    Term(Expr),
    Call(Function, Vec<Selector>),
    Aggregate(Aggregate, Vec<Selector>, CqlType),
}

/// A part of a collection or a user-defined type that is written by itself.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    /// By the key of a map, or the element of a set.
    Key(Expr),
    /// By its place in the type.
    Field(usize),
}

/// What gathers many rows into one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aggregate {
    CountRows,
    Count,
    Min,
    Max,
    Sum,
    Avg,
}

/// A `SELECT`.
#[derive(Debug, Clone)]
pub(crate) struct SelectPlan {
    pub(crate) table: Arc<TableSchema>,
    pub(crate) columns: Vec<super::ColumnSpec>,
    pub(crate) selectors: Vec<Selector>,
    /// `JSON`: the names and types of what is selected; the result has one column.
    pub(crate) json: Option<Vec<(String, CqlType)>>,
    pub(crate) restrictions: Restrictions,
    pub(crate) distinct: bool,
    pub(crate) reversed: bool,
    /// `IN` on the partition key together with `ORDER BY`: all rows are sorted.
    pub(crate) sorted: bool,
    pub(crate) aggregated: bool,
    /// `GROUP BY`: how many columns of the primary key.
    pub(crate) group_by: usize,
    pub(crate) limit: Option<Expr>,
    pub(crate) per_partition_limit: Option<Expr>,
}

/// What is done to a column.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Set(Expr),
    /// `c = c + x`.
    Add(Expr),
    /// `c = c + x` of a number that is no counter, in a conditional statement.
    Plus(Expr),
    /// `c = c - x` likewise.
    Minus(Expr),
    /// `c = x + c` of a list.
    Prepend(Expr),
    /// `c = c - x`.
    Remove(Expr),
    /// `c[k] = v`.
    SetElement(Expr, Expr),
    /// An element of a list by its timeuuid.
    SetListElement(Expr, Expr),
    /// `c.f = v`.
    SetField(usize, Expr),
    /// `DELETE c`.
    Delete,
    /// `DELETE c[k]`.
    DeleteElement(Expr),
    /// `DELETE c.f`.
    DeleteField(usize),
}

/// When a change is made.
#[derive(Debug, Clone)]
pub(crate) enum Condition {
    None,
    NotExists,
    Exists,
    If(Vec<Filter>),
}

/// What kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModifyKind {
    Insert,
    Update,
    Delete,
}

/// An `INSERT`, `UPDATE` or `DELETE`.
#[derive(Debug, Clone)]
pub(crate) struct ModifyPlan {
    pub(crate) table: Arc<TableSchema>,
    pub(crate) kind: ModifyKind,
    pub(crate) restrictions: Restrictions,
    /// By place in the table's columns.
    pub(crate) changes: Vec<(usize, Change)>,
    pub(crate) timestamp: Option<Expr>,
    pub(crate) ttl: Option<Expr>,
    pub(crate) condition: Condition,
}
