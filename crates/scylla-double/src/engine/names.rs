//! What names mean in a schema.

use std::sync::Arc;

use super::{
    error::CqlError,
    schema::{Schema, TableSchema},
};
use crate::{
    cql::ast::{QualifiedName, TypeName},
    types::CqlType,
};

/// Whether a keyspace is the node's own.
pub(crate) fn is_system(keyspace: &str) -> bool {
    keyspace == "system" || keyspace.starts_with("system_")
}

pub(crate) fn no_keyspace() -> CqlError {
    CqlError::invalid(
        "No keyspace has been specified. USE a keyspace, or explicitly specify keyspace.tablename",
    )
}

/// The table a name means.
pub(crate) fn table<'s>(
    schema: &'s Schema,
    name: &QualifiedName,
    keyspace: Option<&str>,
) -> Result<&'s Arc<TableSchema>, CqlError> {
    let keyspace = name
        .keyspace
        .as_deref()
        .or(keyspace)
        .ok_or_else(no_keyspace)?;
    let found = schema.keyspaces.get(keyspace);
    let found =
        found.ok_or_else(|| CqlError::invalid(format!("Keyspace {keyspace} does not exist")))?;
    found
        .tables
        .get(&name.name)
        .ok_or_else(|| CqlError::unconfigured_table(&name.name))
}

/// A type by its name; the user-defined types of one keyspace know only each other.
pub(crate) fn resolve_type(
    schema: &Schema,
    name: &TypeName,
    keyspace: Option<&str>,
) -> Result<CqlType, CqlError> {
    let find = |keyspace: &str, name: &str| {
        schema
            .keyspaces
            .get(keyspace)
            .and_then(|k| k.types.get(name))
            .map(|t| t.fields.clone())
    };
    name.resolve(keyspace, &find)
        .map_err(|e| CqlError::invalid(e.to_string()))
}
