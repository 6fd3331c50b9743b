//! What the name of a type stands for.

use std::fmt;

use super::ast::TypeName;
use crate::types::{CqlType, TypeError, UserTypes, quoted};

/// The most elements of a vector (`cql3_type::MAX_VECTOR_DIMENSION`).
const MAX_DIMENSION: usize = 16_000;

impl CqlType {
    /// Reads a type as `system_schema` has it, e.g. `frozen<map<text, int>>`; user-defined types are
    /// looked for in `keyspace`.
    ///
    /// # Errors
    /// When the notation is wrong, the type cannot be, or a user-defined type is not known.
    pub fn parse(text: &str, keyspace: &str, user_types: UserTypes<'_>) -> Result<Self, TypeError> {
        let name = super::parse_type(text).map_err(|e| TypeError::Syntax(e.to_string()))?;
        name.resolve(Some(keyspace), user_types)
    }
}

impl TypeName {
    /// Finds what the names stand for and checks that the type can be.
    ///
    /// # Errors
    /// See [`TypeError`].
    pub fn resolve(
        &self,
        keyspace: Option<&str>,
        user_types: UserTypes<'_>,
    ) -> Result<CqlType, TypeError> {
        self.resolve_in(keyspace, user_types, false)
    }

    fn resolve_in(
        &self,
        keyspace: Option<&str>,
        user_types: UserTypes<'_>,
        in_frozen: bool,
    ) -> Result<CqlType, TypeError> {
        // A part of a collection: all parts of a frozen one are frozen, those of another must be.
        let part = |name: &TypeName| {
            let ty = name.resolve_in(keyspace, user_types, in_frozen)?;
            if ty == CqlType::Counter {
                return Err(TypeError::Counter(format!("collections: {self}")));
            }
            match &ty {
                _ if !ty.is_multi_cell() => Ok(ty),
                CqlType::Udt { .. } => Err(TypeError::NotFrozen {
                    what: "user types",
                    ty: self.to_string(),
                }),
                _ => Err(TypeError::NotFrozen {
                    what: "collections",
                    ty: self.to_string(),
                }),
            }
        };
        let no_duration = |ty: &CqlType, what| {
            if ty.any(&|t| *t == CqlType::Duration) {
                return Err(TypeError::Duration {
                    what,
                    ty: self.to_string(),
                });
            }
            Ok(())
        };
        Ok(match self {
            TypeName::Native(ty) => ty.clone(),
            TypeName::List(element) => CqlType::List {
                element: Box::new(part(element)?),
                frozen: in_frozen,
            },
            TypeName::Set(element) => {
                let element = part(element)?;
                no_duration(&element, "inside sets")?;
                CqlType::Set {
                    element: Box::new(element),
                    frozen: in_frozen,
                }
            }
            TypeName::Map(key, value) => {
                let (key, value) = (part(key)?, part(value)?);
                no_duration(&key, "as map keys")?;
                CqlType::Map {
                    key: Box::new(key),
                    value: Box::new(value),
                    frozen: in_frozen,
                }
            }
            // A tuple is frozen whether it says so or not.
            TypeName::Tuple(types) => CqlType::Tuple(
                types
                    .iter()
                    .map(|name| match name.resolve_in(keyspace, user_types, true)? {
                        CqlType::Counter => Err(TypeError::Counter("tuples".into())),
                        ty => Ok(ty),
                    })
                    .collect::<Result<_, _>>()?,
            ),
            // So is a vector, and all in it.
            TypeName::Vector(element, dimension) => {
                let element = element.resolve_in(keyspace, user_types, true)?;
                if element == CqlType::Counter {
                    return Err(TypeError::Counter(format!("collections: {self}")));
                }
                let dimension = usize::try_from(*dimension).unwrap_or(0);
                if dimension == 0 {
                    return Err(TypeError::Dimension("greater than 0".into()));
                }
                if dimension > MAX_DIMENSION {
                    return Err(TypeError::Dimension(format!(
                        "less than or equal to {MAX_DIMENSION}"
                    )));
                }
                CqlType::Vector {
                    element: Box::new(element.frozen()),
                    dimension,
                }
            }
            TypeName::Frozen(inner) => {
                if matches!(**inner, TypeName::Native(_)) {
                    return Err(TypeError::CannotFreeze(inner.to_string()));
                }
                inner.resolve_in(keyspace, user_types, true)?.frozen()
            }
            TypeName::User(name) => {
                let keyspace = match (&name.keyspace, keyspace) {
                    (Some(other), Some(keyspace)) if other != keyspace => {
                        return Err(TypeError::OtherKeyspace {
                            keyspace: keyspace.into(),
                            other: other.clone(),
                        });
                    }
                    (Some(keyspace), _) => keyspace,
                    (None, Some(keyspace)) => keyspace,
                    (None, None) => return Err(TypeError::NoKeyspace(name.name.clone())),
                };
                let Some(fields) = user_types(keyspace, &name.name) else {
                    return Err(TypeError::Unknown {
                        keyspace: keyspace.into(),
                        name: name.name.clone(),
                    });
                };
                let ty = CqlType::Udt {
                    keyspace: keyspace.into(),
                    name: name.name.clone(),
                    fields,
                    frozen: in_frozen,
                };
                if in_frozen { ty.frozen() } else { ty }
            }
        })
    }
}

impl fmt::Display for TypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TypeName::Native(ty) => write!(f, "{ty}"),
            TypeName::List(element) => write!(f, "list<{element}>"),
            TypeName::Set(element) => write!(f, "set<{element}>"),
            TypeName::Map(key, value) => write!(f, "map<{key}, {value}>"),
            TypeName::Frozen(inner) => write!(f, "frozen<{inner}>"),
            TypeName::Vector(element, dimension) => write!(f, "vector<{element}, {dimension}>"),
            TypeName::User(name) => {
                if let Some(keyspace) = &name.keyspace {
                    write!(f, "{}.", quoted(keyspace))?;
                }
                f.write_str(&quoted(&name.name))
            }
            TypeName::Tuple(types) => {
                f.write_str("tuple<")?;
                for (i, ty) in types.iter().enumerate() {
                    write!(f, "{}{ty}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str(">")
            }
        }
    }
}
