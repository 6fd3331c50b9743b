//! Statements that change the schema.
//!
//! Rules and messages: ScyllaDB `cql3/statements/{create_table,alter_table,create_keyspace}_statement.cc`,
//! and for logs `cdc/log.cc`.

mod keyspace;
mod options;
mod user_type;

use std::sync::Arc;

use indexmap::IndexMap;
use uuid::Uuid;

use super::{
    ChangeKind, ChangeTarget, Engine, Outcome, SchemaChange, State,
    cdc::{self, LOG_SUFFIX, log_name},
    cell::{ColumnId, Timestamp},
    error::CqlError,
    names::{is_system, no_keyspace, resolve_type},
    schema::{ColumnKind, KeyspaceSchema, Schema, TableOptions, TableSchema},
};
use crate::{
    cql::ast::{self, AlterTableAction},
    types::CqlType,
};

use self::{
    keyspace::{alter_keyspace, check_hints, enough_nodes},
    options::{refuse_options, set_options, sets},
    user_type::{alter_type, create_type, drop_type},
};

/// The longest name of a keyspace or table (`schema::NAME_LENGTH` since 2025.4); a log's is longer.
const MAX_NAME: usize = 192;

/// What a statement did to the schema.
struct Done {
    outcome: Outcome,
    changes: Vec<SchemaChange>,
}

impl Done {
    fn nothing() -> Self {
        Self {
            outcome: Outcome::Void,
            changes: Vec::new(),
        }
    }

    fn one(change: ChangeKind, target: ChangeTarget, keyspace: &str, name: &str) -> Self {
        Self::of(vec![changed(change, target, keyspace, name)])
    }

    /// The first change is the statement's own.
    fn of(changes: Vec<SchemaChange>) -> Self {
        let outcome = changes
            .first()
            .cloned()
            .map_or(Outcome::Void, Outcome::SchemaChange);
        Self { outcome, changes }
    }
}

fn changed(change: ChangeKind, target: ChangeTarget, keyspace: &str, name: &str) -> SchemaChange {
    SchemaChange {
        change,
        target,
        keyspace: keyspace.into(),
        name: name.into(),
        args: Vec::new(),
    }
}

/// The table that a `CREATE TABLE` describes.
pub(crate) fn table_of(
    schema: &Schema,
    statement: &ast::Statement,
) -> Result<TableSchema, CqlError> {
    let ast::Statement::CreateTable(create) = statement else {
        return Err(CqlError::invalid("not a CREATE TABLE"));
    };
    let keyspace = create.table.keyspace.as_deref().ok_or_else(no_keyspace)?;
    new_table(schema, create, keyspace)
}

fn new_table(
    schema: &Schema,
    create: &ast::CreateTable,
    keyspace: &str,
) -> Result<TableSchema, CqlError> {
    let name = &create.table.name;
    check_name("Table", name)?;
    if create.compact_storage {
        return Err(CqlError::invalid(
            "COMPACT STORAGE is not supported by this in-memory stand-in for ScyllaDB",
        ));
    }
    let key = match create.primary_keys.as_slice() {
        [] => {
            return Err(CqlError::invalid(
                "No PRIMARY KEY specified (exactly one required)",
            ));
        }
        [one] => one,
        _ => {
            return Err(CqlError::invalid(
                "Multiple PRIMARY KEYs specified (exactly one required)",
            ));
        }
    };
    let mut columns: IndexMap<&str, (CqlType, bool)> = IndexMap::new();
    for column in &create.columns {
        let ty = resolve_type(schema, &column.ty, Some(keyspace))?;
        if columns
            .insert(&column.name, (ty, column.is_static))
            .is_some()
        {
            return Err(CqlError::invalid(format!(
                "Multiple definition of identifier {}",
                column.name
            )));
        }
    }
    let mut table = TableSchema {
        keyspace: keyspace.into(),
        name: name.clone(),
        id: Uuid::now_v1(&[2, 0, 0, 0, 0, 1]),
        version: Uuid::new_v4(),
        columns: Vec::new(),
        partition_key_len: 0,
        clustering_key_len: 0,
        options: TableOptions::default(),
        counter: false,
        is_log: false,
        log: None,
        next_column: 0,
        dropped: IndexMap::new(),
    };
    let parts = [
        (&key.partition, ColumnKind::PartitionKey),
        (&key.clustering, ColumnKind::Clustering),
    ];
    for (part, kind) in parts {
        for name in part {
            let Some((ty, is_static)) = columns.shift_remove(name.as_str()) else {
                return Err(CqlError::invalid(format!(
                    "Unknown definition {name} referenced in PRIMARY KEY"
                )));
            };
            if ty.is_multi_cell() {
                let what = if ty.is_collection() {
                    "collection"
                } else {
                    "user"
                };
                return Err(CqlError::invalid(format!(
                    "Invalid non-frozen {what} type for PRIMARY KEY component {name}"
                )));
            }
            if ty == CqlType::Counter {
                return Err(CqlError::invalid(format!(
                    "counter type is not supported for PRIMARY KEY part {name}"
                )));
            }
            if ty.any(&|t| *t == CqlType::Duration) {
                return Err(CqlError::invalid(format!(
                    "duration type is not supported for PRIMARY KEY part {name}"
                )));
            }
            if is_static {
                return Err(CqlError::invalid(format!(
                    "Static column {name} cannot be part of the PRIMARY KEY"
                )));
            }
            table.push_column(name, ty, kind);
        }
    }
    if columns.values().any(|(_, is_static)| *is_static) && key.clustering.is_empty() {
        return Err(CqlError::invalid(
            "Static columns are only useful (and thus allowed) if the table has at least one clustering column",
        ));
    }
    let counters = columns
        .values()
        .filter(|(ty, _)| *ty == CqlType::Counter)
        .count();
    if counters > 0 && counters < columns.len() {
        return Err(CqlError::invalid(
            "Cannot mix counter and non counter columns in the same table",
        ));
    }
    table.counter = counters > 0;
    for (name, (ty, is_static)) in columns {
        table.push_column(
            name,
            ty,
            if is_static {
                ColumnKind::Static
            } else {
                ColumnKind::Regular
            },
        );
    }
    table.arrange();
    for (i, (name, order)) in create.clustering_order.iter().enumerate() {
        let keys = table.partition_key_len;
        let Some(column) = table.columns[keys..keys + table.clustering_key_len]
            .get_mut(i)
            .filter(|c| c.name == *name)
        else {
            return Err(CqlError::invalid(format!(
                "The order of columns in the CLUSTERING ORDER directive must be the one of the clustering key (got {name})"
            )));
        };
        column.descending = *order == ast::Order::Desc;
    }
    if !create.clustering_order.is_empty()
        && create.clustering_order.len() < table.clustering_key_len
    {
        return Err(CqlError::invalid(format!(
            "Missing CLUSTERING ORDER for column {}",
            table.clustering_key()[create.clustering_order.len()].name
        )));
    }
    set_options(&mut table.options, &create.properties)?;
    if let Some(id) = table.options.values.remove("id") {
        table.id = id
            .parse()
            .map_err(|_| CqlError::config("Invalid table id"))?;
    }
    Ok(table)
}

fn check_name(what: &str, name: &str) -> Result<(), CqlError> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(CqlError::invalid(if what == "Table" {
            format!(
                "\"{name}\" is not a valid table name (must be alphanumeric character only: [0-9A-Za-z]+)"
            )
        } else {
            format!("\"{name}\" is not a valid keyspace name")
        }));
    }
    if name.len() > MAX_NAME {
        return Err(CqlError::invalid(format!(
            "{what} names shouldn't be more than {MAX_NAME} characters long (got \"{name}\")"
        )));
    }
    Ok(())
}

impl Engine {
    /// Runs a statement that changes the schema, and tells of it.
    /// `timestamp`: of the statement, where it has one.
    pub(super) fn change_schema(
        &self,
        statement: &ast::Statement,
        keyspace: Option<&str>,
        now: i64,
        timestamp: Option<Timestamp>,
    ) -> Result<Outcome, CqlError> {
        let (done, schema) = {
            let mut state = self.state.write();
            let times = Times {
                now,
                dropped: timestamp.unwrap_or(now),
            };
            let done = self.apply_ddl(&mut state, statement, keyspace, times)?;
            (done, state.schema.clone())
        };
        if !done.changes.is_empty() {
            let callbacks = self.callbacks.lock().clone();
            for callback in callbacks {
                callback(&schema, &done.changes);
            }
        }
        Ok(done.outcome)
    }

    fn apply_ddl(
        &self,
        state: &mut State,
        statement: &ast::Statement,
        session: Option<&str>,
        times: Times,
    ) -> Result<Done, CqlError> {
        let named = |name: &ast::QualifiedName| -> Result<String, CqlError> {
            let keyspace = name
                .keyspace
                .as_deref()
                .or(session)
                .ok_or_else(no_keyspace)?;
            writable(keyspace)?;
            Ok(keyspace.to_owned())
        };
        match statement {
            ast::Statement::CreateKeyspace(create) => self.create_keyspace(state, create),
            ast::Statement::AlterKeyspace(alter) => alter_keyspace(state, alter),
            ast::Statement::DropKeyspace { name, if_exists } => {
                self.drop_keyspace(state, name, *if_exists)
            }
            ast::Statement::CreateTable(create) => {
                self.create_table(state, create, &named(&create.table)?, times.now)
            }
            ast::Statement::AlterTable(alter) => {
                self.alter_table(state, alter, &named(&alter.table)?, times)
            }
            ast::Statement::DropTable { table, if_exists } => {
                self.drop_table(state, &named(table)?, &table.name, *if_exists)
            }
            ast::Statement::CreateType(create) => create_type(state, create, &named(&create.name)?),
            ast::Statement::AlterType(alter) => alter_type(state, alter, &named(&alter.name)?),
            ast::Statement::DropType { name, if_exists } => {
                drop_type(state, &named(name)?, &name.name, *if_exists)
            }
            _ => Err(CqlError::invalid(
                "this statement does not change the schema",
            )),
        }
    }

    fn forget(&self, state: &mut State, table: &TableSchema) {
        state.data.remove(&table.id);
        if table.is_log
            && let Some(base) = table.name.strip_suffix(LOG_SUFFIX)
        {
            self.drop_tablet_streams(state, &table.keyspace, base);
        }
    }

    fn create_table(
        &self,
        state: &mut State,
        create: &ast::CreateTable,
        keyspace: &str,
        now: i64,
    ) -> Result<Done, CqlError> {
        let name = &create.table.name;
        let found = keyspace_of(&state.schema, keyspace)?;
        if found.tables.contains_key(name) {
            return if create.if_not_exists {
                Ok(Done::nothing())
            } else {
                Err(CqlError::table_exists(keyspace, name))
            };
        }
        let table = new_table(&state.schema, create, keyspace)?;
        self.settle(state, table, None, ChangeKind::Created, now)
    }

    /// Puts a new or changed table in its place, and its log with it.
    fn settle(
        &self,
        state: &mut State,
        mut table: TableSchema,
        old: Option<&TableSchema>,
        change: ChangeKind,
        now: i64,
    ) -> Result<Done, CqlError> {
        let (keyspace, name) = (table.keyspace.clone(), table.name.clone());
        let mut changes = vec![changed(change, ChangeTarget::Table, &keyspace, &name)];
        let log_table = log_name(&name);
        let existing = state.schema.table(&keyspace, &log_table).cloned();
        table.log = None;
        let mut log = None;
        if table.cdc_enabled() {
            refuse_log(&state.schema, &table, old, existing.as_deref())?;
            let made = cdc::log_schema(&table, existing.as_deref().filter(|l| l.is_log), now)?;
            table.log = cdc::layout(&table, &made).map(Arc::new);
            let kind = if existing.is_some() {
                ChangeKind::Updated
            } else {
                ChangeKind::Created
            };
            changes.push(changed(kind, ChangeTarget::Table, &keyspace, &log_table));
            log = Some(made);
        }
        let holder = keyspace_of(&state.schema, &keyspace)?;
        let hints = table.options.maps.get("tablets");
        let hints_changed = hints != old.and_then(|o| o.options.maps.get("tablets"));
        if let Some(hints) = hints.filter(|_| hints_changed) {
            check_hints(holder, hints)?;
        }
        if old.is_none() {
            enough_nodes(holder)?;
        }
        let tablets = holder
            .tablets
            .map(|_| self.wanted_tablets(holder, &table.options));
        if let Some(holder) = state.schema.keyspaces.get_mut(&keyspace) {
            let holder = Arc::make_mut(holder);
            holder.tables.insert(name.clone(), Arc::new(table));
            if let Some(log) = log {
                holder.tables.insert(log_table, Arc::new(log));
                if let Some(tablets) = tablets {
                    if existing.is_none() {
                        self.create_tablet_streams(state, &keyspace, &name, tablets, now);
                    } else if hints_changed {
                        self.resize_tablets(state, &keyspace, &name, tablets, now);
                    }
                }
            }
        }
        Ok(Done::of(changes))
    }

    fn alter_table(
        &self,
        state: &mut State,
        alter: &ast::AlterTable,
        keyspace: &str,
        times: Times,
    ) -> Result<Done, CqlError> {
        let name = &alter.table.name;
        let holder = keyspace_of(&state.schema, keyspace)?;
        let old = holder
            .tables
            .get(name)
            .ok_or_else(|| CqlError::unconfigured_table(name))?
            .clone();
        let mut table = (*old).clone();
        if old.is_log
            && let Some(refused) =
                refused_of_log(&alter.action, base_is_logged(&state.schema, &old))
        {
            return Err(CqlError::invalid(refused));
        }
        match &alter.action {
            AlterTableAction::Add(columns) => {
                for column in columns {
                    let ty = resolve_type(&state.schema, &column.ty, Some(keyspace))?;
                    add_column(&mut table, &column.name, ty, column.is_static)?;
                }
            }
            AlterTableAction::Type { column, ty } => {
                let ty = resolve_type(&state.schema, ty, Some(keyspace))?;
                retype(&mut table, column, ty)?;
            }
            AlterTableAction::Drop { columns, .. } => {
                for column in columns {
                    drop_column(&mut table, column, times.dropped)?;
                }
            }
            AlterTableAction::Rename(pairs) => {
                for (from, to) in pairs {
                    rename_column(&mut table, from, to)?;
                }
            }
            AlterTableAction::With(properties) => {
                refuse_options(&old, properties)?;
                set_options(&mut table.options, properties)?;
                if table.options.cdc.is_none() && sets(properties, "cdc") {
                    return Err(CqlError::invalid(
                        "Altering CDC options requires specifying \"enabled\" flag",
                    ));
                }
                if table.options.cdc != old.options.cdc && old.is_log {
                    return Err(nested(&old));
                }
            }
        }
        table.arrange();
        let back = match &alter.action {
            AlterTableAction::Add(columns) => columns.as_slice(),
            _ => &[],
        };
        let forgotten: Vec<(ColumnId, Timestamp)> = back
            .iter()
            .filter_map(|c| {
                let dropped = table.dropped.get(&c.name)?;
                Some((table.column(&c.name)?.id, dropped.at))
            })
            .collect();
        let id = table.id;
        let done = self.settle(state, table, Some(&old), ChangeKind::Updated, times.now)?;
        if let Some(data) = state.data.get_mut(&id) {
            data.forget(&forgotten);
        }
        Ok(done)
    }

    fn drop_table(
        &self,
        state: &mut State,
        keyspace: &str,
        name: &str,
        if_exists: bool,
    ) -> Result<Done, CqlError> {
        let missing = || {
            CqlError::invalid(format!(
                "Cannot drop non existing table '{name}' in keyspace '{keyspace}'."
            ))
        };
        let Some(table) = state.schema.table(keyspace, name).cloned() else {
            return if if_exists {
                Ok(Done::nothing())
            } else {
                Err(missing())
            };
        };
        if table.is_log && base_is_logged(&state.schema, &table) {
            // ScyllaDB says itself that another code would be better.
            return Err(CqlError::unauthorized(format!(
                "Cannot DROP cdc log table {name}"
            )));
        }
        let log = state
            .schema
            .table(keyspace, &log_name(name))
            .filter(|l| l.is_log)
            .cloned();
        let mut changes = Vec::new();
        for table in std::iter::once(table).chain(log) {
            if let Some(holder) = state.schema.keyspaces.get_mut(keyspace) {
                Arc::make_mut(holder).tables.remove(&table.name);
            }
            self.forget(state, &table);
            changes.push(changed(
                ChangeKind::Dropped,
                ChangeTarget::Table,
                keyspace,
                &table.name,
            ));
        }
        Ok(Done::of(changes))
    }
}

/// Why a log's columns are not changed by hand; a log stays one when its base table's CDC is off
/// (`cql3/statements/alter_table_statement.cc`).
fn refused_of_log(action: &AlterTableAction, active: bool) -> Option<&'static str> {
    match (action, active) {
        (AlterTableAction::With(_), _) => None,
        (AlterTableAction::Rename(_), true) => Some("Cannot rename a column of a CDC log table."),
        (AlterTableAction::Rename(_), false) => Some(
            "You cannot rename a column of a CDC log table. Although the base table has deactivated CDC, this table \
             will continue being a CDC log table until it is dropped.",
        ),
        (_, true) => Some(
            "You cannot modify the set of columns of a CDC log table directly. Modify the base table instead.",
        ),
        (_, false) => Some(
            "You cannot modify the set of columns of a CDC log table directly. Although the base table has \
             deactivated CDC, this table will continue being a CDC log table until it is dropped. If you want to \
             modify the columns in it, you can only do that by reenabling CDC on the base table, which will reattach \
             this log table. Then you will be able to modify the columns in the base table, and that will have \
             effect on the log table too. Modifying the columns of a CDC log table directly is never allowed.",
        ),
    }
}

fn writable(keyspace: &str) -> Result<(), CqlError> {
    if is_system(keyspace) {
        return Err(CqlError::unauthorized(format!(
            "{keyspace} keyspace is not user-modifiable."
        )));
    }
    Ok(())
}

fn keyspace_of<'s>(schema: &'s Schema, name: &str) -> Result<&'s Arc<KeyspaceSchema>, CqlError> {
    schema
        .keyspaces
        .get(name)
        .ok_or_else(|| CqlError::invalid(format!("Keyspace '{name}' does not exist")))
}

fn base_is_logged(schema: &Schema, log: &TableSchema) -> bool {
    cdc::base_of(schema, log).is_some_and(TableSchema::cdc_enabled)
}

fn nested(table: &TableSchema) -> CqlError {
    CqlError::invalid(format!(
        "Cannot create a CDC log for a table {}.{}, because creating nested CDC logs is not allowed",
        table.keyspace, table.name
    ))
}

fn refuse_log(
    schema: &Schema,
    table: &TableSchema,
    old: Option<&TableSchema>,
    existing: Option<&TableSchema>,
) -> Result<(), CqlError> {
    let (keyspace, name) = (&table.keyspace, &table.name);
    if table.is_log || (table.name.ends_with(LOG_SUFFIX) && base_is_logged(schema, table)) {
        return Err(nested(table));
    }
    if table.counter {
        return Err(CqlError::invalid(format!(
            "Cannot create CDC log for table {keyspace}.{name}. Counter support not implemented"
        )));
    }
    // A log of before, from when CDC was switched off, is taken up again.
    if existing.is_some_and(|l| !l.is_log || old.is_none()) {
        return Err(CqlError::invalid(format!(
            "Cannot create CDC log table for table {keyspace}.{name} because a table of name {keyspace}.{} already exists",
            log_name(name)
        )));
    }
    if let Some(column) = table.columns.iter().find(|c| c.name.starts_with("cdc$")) {
        return Err(CqlError::invalid(format!(
            "Cannot create CDC log for table {keyspace}.{name}: column name {} is reserved",
            column.name
        )));
    }
    Ok(())
}

/// The times that matter to a change of the schema, µs since the epoch.
#[derive(Clone, Copy)]
struct Times {
    now: Timestamp,
    /// What is written up to here to a column that is dropped is gone.
    dropped: Timestamp,
}

fn add_column(
    table: &mut TableSchema,
    name: &str,
    ty: CqlType,
    is_static: bool,
) -> Result<(), CqlError> {
    if let Some(column) = table.column(name) {
        let what = if column.kind == ColumnKind::PartitionKey {
            "a PRIMARY KEY part"
        } else {
            "an existing column"
        };
        return Err(CqlError::invalid(format!(
            "Invalid column name {name} because it conflicts with {what}"
        )));
    }
    if is_static && !table.has_clustering() {
        return Err(CqlError::invalid(
            "Static columns are only useful (and thus allowed) if the table has at least one clustering column",
        ));
    }
    if (ty == CqlType::Counter) != table.counter && (table.counter || ty == CqlType::Counter) {
        return Err(CqlError::config(format!(
            "Cannot add a {} column ({name}) in a {} column family",
            if table.counter {
                "non counter"
            } else {
                "counter"
            },
            if table.counter {
                "counter"
            } else {
                "non counter"
            }
        )));
    }
    let dropped = table.dropped.get(name);
    if dropped.is_some() && table.counter {
        return Err(CqlError::invalid(format!(
            "Cannot re-add previously dropped counter column {name}"
        )));
    }
    // What is still stored of a collection could not be read as one of another type.
    let elements = |ty: &CqlType| ty.is_multi_cell() && ty.is_collection();
    if dropped.is_some_and(|d| elements(&ty) && elements(&d.ty) && d.ty != ty) {
        return Err(CqlError::invalid(format!(
            "Cannot add a collection with the name {name} because a collection with the same name and a different type \
             has already been used in the past"
        )));
    }
    let kind = if is_static {
        ColumnKind::Static
    } else {
        ColumnKind::Regular
    };
    // What was written after the time of the drop is seen again.
    let known = dropped
        .filter(|d| d.ty == ty && d.kind == kind)
        .map(|d| d.id);
    table.push_column(name, ty, kind);
    if let (Some(id), Some(column)) = (known, table.columns.last_mut()) {
        column.id = id;
    }
    Ok(())
}

fn retype(table: &mut TableSchema, name: &str, ty: CqlType) -> Result<(), CqlError> {
    let Some(at) = table.index_of(name) else {
        return Err(CqlError::invalid(format!(
            "Column {name} was not found in table {}",
            table.name
        )));
    };
    let column = &mut table.columns[at];
    // Only to a type that has the same bytes, and for a key also the same order.
    let widens = matches!(
        (&column.ty, &ty),
        (CqlType::Ascii, CqlType::Text)
            | (CqlType::Timeuuid, CqlType::Uuid)
            | (CqlType::Timestamp, CqlType::Bigint)
            | (
                CqlType::Tinyint | CqlType::Smallint | CqlType::Int | CqlType::Bigint,
                CqlType::Varint
            )
    ) || (column.kind == ColumnKind::Regular
        && ty == CqlType::Blob
        && !column.ty.is_multi_cell());
    if column.ty != ty
        && (!widens || (column.kind == ColumnKind::Clustering && ty != CqlType::Text))
    {
        return Err(CqlError::config(format!(
            "Cannot change {name} from type {} to type {ty}: types are incompatible.",
            column.ty
        )));
    }
    column.ty = ty;
    Ok(())
}

fn drop_column(table: &mut TableSchema, name: &str, time: Timestamp) -> Result<(), CqlError> {
    let Some(at) = table.index_of(name) else {
        return Err(CqlError::invalid(format!(
            "Column {name} was not found in table {}",
            table.name
        )));
    };
    if table.columns[at].kind <= ColumnKind::Clustering {
        return Err(CqlError::invalid(format!(
            "Cannot drop PRIMARY KEY part {name}"
        )));
    }
    table.drop_column(at, time);
    Ok(())
}

fn rename_column(table: &mut TableSchema, from: &str, to: &str) -> Result<(), CqlError> {
    let Some(at) = table.index_of(from) else {
        return Err(CqlError::invalid(format!(
            "Cannot rename unknown column {from} in table {}",
            table.name
        )));
    };
    if table.columns[at].kind > ColumnKind::Clustering {
        return Err(CqlError::invalid(format!(
            "Cannot rename non PRIMARY KEY part {from}"
        )));
    }
    if table.column(to).is_some() {
        return Err(CqlError::invalid(format!(
            "Cannot rename column {from} to {to} in table {}; another column of that name already exists",
            table.name
        )));
    }
    table.columns[at].name = to.into();
    Ok(())
}
