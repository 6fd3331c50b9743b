//! Conditions on a row: of `ALLOW FILTERING`, and of `IF`.

use bytes::Bytes;

use super::{
    error::CqlError,
    order,
    plan::{Comparison, Context, Evaluated, Filter, Operand},
    schema::TableSchema,
    storage::RowView,
    types::{self, Shape, shape},
};
use crate::types::CqlType;

/// A condition whose right side has been worked out.
pub(crate) struct Ready<'a> {
    filter: &'a Filter,
    /// Each with its place among values of its type; `None` is null.
    values: Vec<Option<(Vec<u8>, Bytes)>>,
    key: Option<Bytes>,
    /// An `IF` may compare with null; in a `WHERE` nothing compares with null, not even null.
    nulls: bool,
}

/// Prepares the filters of a `WHERE`.
pub(crate) fn prepare<'a>(
    filters: &'a [Filter],
    table: &TableSchema,
    context: &Context<'_>,
) -> Result<Vec<Ready<'a>>, CqlError> {
    filters
        .iter()
        .map(|f| ready(f, table, context, false))
        .collect()
}

/// Prepares the conditions of an `IF`.
pub(crate) fn prepare_conditions<'a>(
    filters: &'a [Filter],
    table: &TableSchema,
    context: &Context<'_>,
) -> Result<Vec<Ready<'a>>, CqlError> {
    filters
        .iter()
        .map(|f| ready(f, table, context, true))
        .collect()
}

/// The type of what is compared with.
fn value_type(filter: &Filter) -> &CqlType {
    match (filter.comparison, shape(&filter.ty)) {
        (Comparison::Contains, Shape::List(element)) => element,
        (Comparison::Contains, Shape::Map(_, value)) => value,
        (Comparison::ContainsKey, Shape::Map(key, _)) => key,
        _ => &filter.ty,
    }
}

fn ready<'a>(
    filter: &'a Filter,
    table: &TableSchema,
    context: &Context<'_>,
    nulls: bool,
) -> Result<Ready<'a>, CqlError> {
    let name = match &filter.operand {
        Operand::Column(at) | Operand::Element(at, _) | Operand::Field(at, _) => {
            table.columns[*at].name.as_str()
        }
        Operand::Tuple(columns) => columns
            .first()
            .map_or("", |at| table.columns[*at].name.as_str()),
    };
    let ty = value_type(filter);
    let placed = |bytes: Bytes| (order::value(ty, &bytes), bytes);
    let values = filter.values.eval(context, name)?;
    let values = values.into_iter().map(|v| v.map(placed)).collect();
    let key = match &filter.operand {
        Operand::Element(_, key) => match key.eval(context)? {
            Evaluated::Unset => {
                return Err(CqlError::invalid(format!(
                    "Invalid unset value for column {name}"
                )));
            }
            key => key.bytes(),
        },
        _ => None,
    };
    Ok(Ready {
        filter,
        values,
        key,
        nulls,
    })
}

impl Ready<'_> {
    /// Whether the condition holds for a row.
    pub(crate) fn accepts(&self, view: &RowView<'_>) -> Result<bool, CqlError> {
        let columns = &view.table.columns;
        let value = match &self.filter.operand {
            Operand::Column(at) => view.value(&columns[*at]),
            Operand::Element(at, _) => match (view.value(&columns[*at]), &self.key) {
                (Some(value), Some(key)) => types::element(&columns[*at].ty, &value, key),
                _ => None,
            },
            Operand::Field(at, index) => view.value(&columns[*at]).and_then(|value| {
                types::tuple_fields(&value)
                    .get(*index)
                    .copied()
                    .flatten()
                    .map(|f| value.slice_ref(f))
            }),
            Operand::Tuple(all) => {
                let mut out = Vec::new();
                for at in all {
                    types::put_bytes(&mut out, view.value(&columns[*at]).as_deref());
                }
                Some(out.into())
            }
        };
        self.holds(value.as_ref())
    }

    fn holds(&self, value: Option<&Bytes>) -> Result<bool, CqlError> {
        let ty = &self.filter.ty;
        let first = self.values.first().and_then(Option::as_ref);
        let Some(value) = value else {
            // Null: equal to null, and to nothing else.
            return Ok(self.nulls
                && match self.filter.comparison {
                    Comparison::Eq | Comparison::In => self.values.iter().any(Option::is_none),
                    Comparison::Ne | Comparison::NotIn => self.values.iter().all(Option::is_some),
                    _ => false,
                });
        };
        let equal_to =
            |place: &[u8], bytes: &[u8]| order::value(value_type(self.filter), bytes) == place;
        let compare = || first.map(|(place, _)| order::value(ty, value).as_slice().cmp(place));
        let known = self.nulls || first.is_some();
        Ok(match self.filter.comparison {
            Comparison::Ne if !known => false,
            Comparison::Eq => compare().is_some_and(|o| o.is_eq()),
            Comparison::Ne => compare().is_none_or(|o| o.is_ne()),
            Comparison::Lt => compare().is_some_and(|o| o.is_lt()),
            Comparison::Le => compare().is_some_and(|o| o.is_le()),
            Comparison::Gt => compare().is_some_and(|o| o.is_gt()),
            Comparison::Ge => compare().is_some_and(|o| o.is_ge()),
            Comparison::In | Comparison::NotIn => {
                let place = order::value(ty, value);
                let found = self.values.iter().flatten().any(|(p, _)| *p == place);
                if !found && !self.nulls && self.values.iter().any(Option::is_none) {
                    return Ok(false);
                }
                found == (self.filter.comparison == Comparison::In)
            }
            Comparison::Contains => {
                let Some((place, _)) = first else {
                    return Ok(false);
                };
                match shape(ty) {
                    Shape::Map(..) => types::map_entries(value)
                        .iter()
                        .any(|(_, v)| equal_to(place, v)),
                    _ => types::elements(value).iter().any(|e| equal_to(place, e)),
                }
            }
            Comparison::ContainsKey => {
                let Some((place, _)) = first else {
                    return Ok(false);
                };
                types::map_entries(value)
                    .iter()
                    .any(|(k, _)| equal_to(place, k))
            }
            Comparison::Like => first.is_some_and(|(_, pattern)| like(value, pattern)),
        })
    }
}

/// `%` stands for any bytes, `_` for one character; `\` takes the next byte as it is.
fn like(text: &[u8], pattern: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'%', rest @ ..] => (0..=text.len()).any(|skip| like(&text[skip..], rest)),
        [b'_', rest @ ..] => {
            let Some(first) = text.first() else {
                return false;
            };
            let width = match first {
                0xf0.. => 4,
                0xe0.. => 3,
                0xc0.. => 2,
                _ => 1,
            };
            text.get(width..).is_some_and(|text| like(text, rest))
        }
        [b'\\', c, rest @ ..] | [c, rest @ ..] => text
            .split_first()
            .is_some_and(|(t, text)| t == c && like(text, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::like;

    #[test]
    fn like_patterns() {
        for (text, pattern, holds) in [
            ("abc", "a%", true),
            ("abc", "%c", true),
            ("abc", "_b_", true),
            ("äbc", "_b_", true),
            ("abc", "b%", false),
            ("a%c", "a\\%c", true),
            ("abc", "a\\%c", false),
            ("", "%", true),
        ] {
            assert_eq!(
                like(text.as_bytes(), pattern.as_bytes()),
                holds,
                "{text} LIKE {pattern}"
            );
        }
    }
}
