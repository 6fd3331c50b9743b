//! User-defined types: making, changing and dropping them, and what is made of them.

use std::sync::Arc;

use super::{Done, keyspace_of};
use crate::{
    cql::ast::{self, AlterTypeAction, TypeName},
    engine::{
        ChangeKind, ChangeTarget, State,
        error::CqlError,
        names::resolve_type,
        schema::{Schema, UserType, multi_kind},
    },
    types::CqlType,
};

pub(super) fn create_type(
    state: &mut State,
    create: &ast::CreateType,
    keyspace: &str,
) -> Result<Done, CqlError> {
    let name = &create.name.name;
    if keyspace_of(&state.schema, keyspace)?
        .types
        .contains_key(name)
    {
        return if create.if_not_exists {
            Ok(Done::nothing())
        } else {
            Err(CqlError::invalid(format!(
                "A user type of name {keyspace}.{name} already exists"
            )))
        };
    }
    let mut fields: Vec<(String, CqlType)> = Vec::with_capacity(create.fields.len());
    for (field, ty) in &create.fields {
        if fields.iter().any(|(f, _)| f == field) {
            return Err(CqlError::invalid(format!(
                "Cannot have several fields with the same name {field} in a type"
            )));
        }
        fields.push((field.clone(), field_type(&state.schema, ty, keyspace)?));
    }
    if let Some(holder) = state.schema.keyspaces.get_mut(keyspace) {
        let ty = UserType {
            keyspace: keyspace.into(),
            name: name.clone(),
            fields,
        };
        Arc::make_mut(holder)
            .types
            .insert(name.clone(), Arc::new(ty));
    }
    Ok(Done::one(
        ChangeKind::Created,
        ChangeTarget::Type,
        keyspace,
        name,
    ))
}

fn field_type(schema: &Schema, name: &TypeName, keyspace: &str) -> Result<CqlType, CqlError> {
    let ty = resolve_type(schema, name, Some(keyspace))?;
    if ty == CqlType::Counter {
        return Err(CqlError::invalid("A user type cannot contain counters"));
    }
    Ok(ty)
}

pub(super) fn alter_type(
    state: &mut State,
    alter: &ast::AlterType,
    keyspace: &str,
) -> Result<Done, CqlError> {
    let name = &alter.name.name;
    let Some(old) = keyspace_of(&state.schema, keyspace)?.types.get(name) else {
        return Err(CqlError::invalid(format!(
            "No user type named {keyspace}.{name} exists."
        )));
    };
    let mut ty = (**old).clone();
    match &alter.action {
        AlterTypeAction::Add(field, new) => {
            if ty.fields.iter().any(|(f, _)| f == field) {
                return Err(CqlError::invalid(format!(
                    "Cannot add new field {field} to type {keyspace}.{name}: a field of the same name already exists"
                )));
            }
            ty.fields
                .push((field.clone(), field_type(&state.schema, new, keyspace)?));
        }
        AlterTypeAction::Rename(pairs) => {
            for (from, to) in pairs {
                if ty.fields.iter().any(|(f, _)| f == to) {
                    return Err(CqlError::invalid(format!(
                        "Duplicate field name {to} in type {name}"
                    )));
                }
                let field = ty.fields.iter_mut().find(|(f, _)| f == from);
                field
                    .ok_or_else(|| {
                        CqlError::invalid(format!("Unknown field {from} in type {name}"))
                    })?
                    .0 = to.clone();
            }
        }
        AlterTypeAction::Type(..) => {
            return Err(CqlError::invalid(
                "Altering the type of a field is not supported",
            ));
        }
    }
    replace_type(state, ty);
    Ok(Done::one(
        ChangeKind::Updated,
        ChangeTarget::Type,
        keyspace,
        name,
    ))
}

/// Puts a changed type in its place, in all types and tables that use it.
fn replace_type(state: &mut State, changed: UserType) {
    let Some(holder) = state.schema.keyspaces.get_mut(&changed.keyspace) else {
        return;
    };
    let holder = Arc::make_mut(holder);
    let swap = |ty: &CqlType| with_type(ty, &changed);
    for ty in holder.types.values_mut() {
        let fields: Vec<_> = ty
            .fields
            .iter()
            .map(|(n, t)| (n.clone(), swap(t)))
            .collect();
        if fields != ty.fields {
            Arc::make_mut(ty).fields = fields;
        }
    }
    for table in holder.tables.values_mut() {
        if table.columns.iter().any(|c| swap(&c.ty) != c.ty) {
            let table = Arc::make_mut(table);
            for column in &mut table.columns {
                column.ty = swap(&column.ty);
                column.multi = column.multi.and_then(|_| multi_kind(&column.ty));
            }
            table.arrange();
        }
    }
    holder.types.insert(changed.name.clone(), Arc::new(changed));
}

/// A type in which a user-defined type is replaced wherever it is used.
fn with_type(ty: &CqlType, changed: &UserType) -> CqlType {
    let inner = |ty: &CqlType| Box::new(with_type(ty, changed));
    match ty {
        CqlType::List { element, frozen } => CqlType::List {
            element: inner(element),
            frozen: *frozen,
        },
        CqlType::Set { element, frozen } => CqlType::Set {
            element: inner(element),
            frozen: *frozen,
        },
        CqlType::Map { key, value, frozen } => CqlType::Map {
            key: inner(key),
            value: inner(value),
            frozen: *frozen,
        },
        CqlType::Vector { element, dimension } => CqlType::Vector {
            element: inner(element),
            dimension: *dimension,
        },
        CqlType::Tuple(types) => {
            CqlType::Tuple(types.iter().map(|t| with_type(t, changed)).collect())
        }
        CqlType::Udt {
            keyspace,
            name,
            fields,
            frozen,
        } => {
            let same = *name == changed.name && *keyspace == changed.keyspace;
            let fields = if same {
                changed.fields.clone()
            } else {
                fields
                    .iter()
                    .map(|(n, t)| (n.clone(), with_type(t, changed)))
                    .collect()
            };
            let ty = CqlType::Udt {
                keyspace: keyspace.clone(),
                name: name.clone(),
                fields,
                frozen: *frozen,
            };
            if *frozen { ty.frozen() } else { ty }
        }
        native => native.clone(),
    }
}

pub(super) fn drop_type(
    state: &mut State,
    keyspace: &str,
    name: &str,
    if_exists: bool,
) -> Result<Done, CqlError> {
    let holder = keyspace_of(&state.schema, keyspace)?;
    if !holder.types.contains_key(name) {
        return if if_exists {
            Ok(Done::nothing())
        } else {
            Err(CqlError::invalid(format!(
                "No user type named {keyspace}.{name} exists."
            )))
        };
    }
    let uses = |ty: &CqlType| ty.any(&|t| matches!(t, CqlType::Udt { name: n, .. } if n == name));
    if let Some(other) = holder
        .types
        .values()
        .find(|t| t.fields.iter().any(|(_, ty)| uses(ty)))
    {
        return Err(CqlError::invalid(format!(
            "Cannot drop user type {keyspace}.{name} as it is still used by user type {}",
            other.name
        )));
    }
    if let Some(table) = holder
        .tables
        .values()
        .find(|t| t.columns.iter().any(|c| uses(&c.ty)))
    {
        return Err(CqlError::invalid(format!(
            "Cannot drop user type {keyspace}.{name} as it is still used by table {keyspace}.{}",
            table.name
        )));
    }
    if let Some(holder) = state.schema.keyspaces.get_mut(keyspace) {
        Arc::make_mut(holder).types.remove(name);
    }
    Ok(Done::one(
        ChangeKind::Dropped,
        ChangeTarget::Type,
        keyspace,
        name,
    ))
}
