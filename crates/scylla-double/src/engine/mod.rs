//! The storage and execution part of the stand-in: one node, in memory.
//!
//! [`Engine::prepare`] resolves a statement against the schema; [`Engine::execute`] runs it. Reads
//! share a lock, writes and schema changes take it alone, so every statement and batch is atomic and
//! isolated. Nothing here waits, does I/O or knows the wire protocol.

mod cdc;
mod cell;
mod consistency;
mod ddl;
mod describe;
mod error;
mod filter;
mod functions;
mod generations;
mod json;
mod layout;
mod lower;
mod lwt;
mod names;
pub(crate) mod order;
mod paging;
mod plan;
mod restrict;
mod rows;
mod schema;
mod select;
mod storage;
#[cfg(test)]
mod tests;
mod token;
mod types;
mod write;

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

pub use self::{
    cdc::{LOG_SUFFIX, Operation, log_name},
    error::{
        ALREADY_EXISTS, CONFIG_ERROR, CqlError, ErrorDetail, FUNCTION_FAILURE, INVALID,
        PROTOCOL_ERROR, SERVER_ERROR, SYNTAX_ERROR, UNAUTHORIZED, UNAVAILABLE,
    },
    plan::BoundValue,
    rows::Rows,
    schema::{
        CdcOptions, Column, ColumnKind, DroppedColumn, Images, KeyspaceSchema, MultiKind, Schema,
        TableOptions, TableSchema, UserType,
    },
    token::murmur3,
};
use self::{
    cdc::{images, streams::Streams},
    cell::Timestamp,
    consistency::Consistency,
    lower::Statement,
    paging::PagingState,
    plan::{Condition, Context, ModifyPlan},
    select::Page,
    storage::{RingKey, TableData},
    write::{ListSequence, Mutation},
};
use crate::types::CqlType;

/// How an engine is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Vnodes of the node, and so stream groups of each generation.
    pub vnodes: u32,
    /// Shards of the node, and so streams of each vnode.
    pub shards_per_vnode: u32,
    /// Whether a keyspace that is made without a `tablets` clause uses tablets, as in ScyllaDB since
    /// 2025 (`tablets_mode_for_new_keyspaces`).
    pub tablets_by_default: bool,
    /// Tablets a table starts with in a keyspace with tablets, unless it or its keyspace says.
    pub initial_tablets: u32,
    /// How long before the start the first generation began. ScyllaDB refuses writes from before its
    /// first generation.
    pub first_generation_age: Duration,
    /// How far ahead a new generation begins unless told otherwise. ScyllaDB takes twice its ring
    /// delay and five seconds more.
    pub generation_delay: Duration,
    /// How much a page reads before it ends, however many rows were asked for, bytes; rows that are
    /// filtered out count (`query_page_size_in_bytes`).
    pub page_bytes: usize,
    /// The most that a batch of several partitions may write, bytes in memory
    /// (`batch_size_fail_threshold_in_kb`).
    pub max_batch_bytes: usize,
    /// The timestamps of all writes and the expiry of all TTLs come from here; µs since the epoch.
    pub clock: fn() -> i64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            vnodes: 16,
            shards_per_vnode: 2,
            tablets_by_default: true,
            initial_tablets: 4,
            first_generation_age: Duration::from_secs(10),
            generation_delay: Duration::from_secs(2),
            page_bytes: 1 << 20,
            max_batch_bytes: 1 << 20,
            clock: system_clock,
        }
    }
}

/// The system's clock, µs since the epoch.
pub fn system_clock() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_micros() as i64)
}

/// A column of a result, or what a bind marker stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnSpec {
    /// Keyspace of the table.
    pub keyspace: String,
    /// The table.
    pub table: String,
    /// The column, the expression as ScyllaDB names it, or the marker's name.
    pub name: String,
    /// Its type.
    pub ty: CqlType,
}

impl ColumnSpec {
    fn new(table: &TableSchema, name: impl Into<String>, ty: CqlType) -> Self {
        Self {
            keyspace: table.keyspace.clone(),
            table: table.name.clone(),
            name: name.into(),
            ty,
        }
    }

    fn of(table: &TableSchema, column: &Column) -> Self {
        Self::new(table, column.name.clone(), column.ty.clone())
    }
}

/// A statement resolved against the schema.
#[derive(Debug, Clone)]
pub struct Prepared(Arc<PreparedInner>);

#[derive(Debug)]
struct PreparedInner {
    text: String,
    keyspace: Option<String>,
    statement: Statement,
    bind: Vec<ColumnSpec>,
    primary_key_indexes: Vec<u16>,
    columns: Vec<ColumnSpec>,
    conditional: bool,
}

impl Prepared {
    /// The text it was made of.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// What its bind markers stand for, in order.
    pub fn bind_variables(&self) -> &[ColumnSpec] {
        &self.0.bind
    }

    /// For each component of the partition key the marker that gives it; empty unless markers give
    /// them all.
    pub fn primary_key_indexes(&self) -> &[u16] {
        &self.0.primary_key_indexes
    }

    /// The columns of its result; empty when it has none.
    pub fn result_columns(&self) -> &[ColumnSpec] {
        &self.0.columns
    }

    /// Whether it has an `IF`.
    pub fn is_conditional(&self) -> bool {
        self.0.conditional
    }

    /// Whether it only reads.
    pub fn is_read(&self) -> bool {
        matches!(
            self.0.statement,
            Statement::Select(_) | Statement::Describe(_)
        )
    }

    /// Whether it can be part of a batch.
    pub fn is_modification(&self) -> bool {
        matches!(self.0.statement, Statement::Modify(_))
    }

    /// The keyspace and table it reads or writes.
    pub fn table(&self) -> Option<(&str, &str)> {
        let table = self.0.statement.table()?;
        Some((&table.keyspace, &table.name))
    }
}

/// What a statement is run with.
#[derive(Debug, Clone)]
pub struct Params {
    /// The values of the bind markers, in order, or in the order of `names`.
    pub values: Vec<BoundValue>,
    /// The names of the values, where a client gives names.
    pub names: Vec<String>,
    /// The connection's keyspace.
    pub keyspace: Option<String>,
    /// The timestamp the protocol carries, µs since the epoch.
    pub default_timestamp: Option<i64>,
    /// Consistency as the protocol numbers it; `ONE` (1) by default.
    pub consistency: u16,
    /// Serial consistency, likewise; `SERIAL` (8) when it is not given.
    pub serial_consistency: Option<u16>,
    /// The most rows of a page.
    pub page_size: Option<i32>,
    /// Where the page before ended.
    pub paging_state: Option<Bytes>,
    /// The time of the statement instead of the clock's, µs since the epoch.
    pub now: Option<i64>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            names: Vec::new(),
            keyspace: None,
            default_timestamp: None,
            consistency: Consistency::One as u16,
            serial_consistency: None,
            page_size: None,
            paging_state: None,
            now: None,
        }
    }
}

/// What a statement came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Nothing to tell.
    Void,
    /// Rows.
    Rows {
        /// The columns of the rows.
        columns: Vec<ColumnSpec>,
        /// Their serialised values.
        rows: Rows,
        /// Set when there are more rows.
        paging_state: Option<Bytes>,
    },
    /// `USE`.
    SetKeyspace(String),
    /// A schema change, as the protocol tells of it.
    SchemaChange(SchemaChange),
}

/// A change of the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaChange {
    /// `CREATED`, `UPDATED` or `DROPPED`.
    pub change: ChangeKind,
    /// What was changed.
    pub target: ChangeTarget,
    /// Its keyspace.
    pub keyspace: String,
    /// The table or type; empty for a keyspace.
    pub name: String,
    /// Argument types of a function; always empty here.
    pub args: Vec<String>,
}

/// How a schema element changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new.
    Created,
    /// It is another.
    Updated,
    /// It is gone.
    Dropped,
}

impl ChangeKind {
    /// As the protocol spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            ChangeKind::Created => "CREATED",
            ChangeKind::Updated => "UPDATED",
            ChangeKind::Dropped => "DROPPED",
        }
    }
}

/// What of the schema changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeTarget {
    /// A keyspace.
    Keyspace,
    /// A table.
    Table,
    /// A user-defined type.
    Type,
}

impl ChangeTarget {
    /// As the protocol spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            ChangeTarget::Keyspace => "KEYSPACE",
            ChangeTarget::Table => "TABLE",
            ChangeTarget::Type => "TYPE",
        }
    }
}

/// The kinds of batch, as the protocol numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchKind {
    /// All or nothing.
    Logged,
    /// No such promise.
    Unlogged,
    /// Of counter updates.
    Counter,
}

/// A row of an internal table: column names with serialised values.
pub type InternalRow<'a> = &'a [(&'a str, Option<Bytes>)];

type SchemaCallback = Arc<dyn Fn(&Schema, &[SchemaChange]) + Send + Sync>;

/// A timeuuid of a time, µs since the epoch, unlike all others.
pub(crate) fn timeuuid_at(at: i64) -> Uuid {
    images::random_timeuuid(at)
}

/// A consistency level's name by the protocol's number, or the number.
pub(crate) fn consistency_name(number: u16) -> String {
    Consistency::from_protocol(number).map_or_else(|_| number.to_string(), |c| c.to_string())
}

/// The engine. Cheap to share behind an [`Arc`].
pub struct Engine {
    options: Options,
    state: RwLock<State>,
    callbacks: Mutex<Vec<SchemaCallback>>,
    last_timestamp: AtomicI64,
}

/// All that is stored.
#[derive(Default)]
struct State {
    schema: Schema,
    /// By the table's identity.
    data: HashMap<Uuid, TableData>,
    streams: Streams,
    nothing: TableData,
}

impl State {
    fn table(&self, table: &TableSchema) -> &TableData {
        self.data.get(&table.id).unwrap_or(&self.nothing)
    }

    fn keyspace(&self, table: &TableSchema) -> Result<&KeyspaceSchema, CqlError> {
        let found = self.schema.keyspaces.get(&table.keyspace);
        found
            .map(|k| &**k)
            .ok_or_else(|| CqlError::invalid(format!("Keyspace {} does not exist", table.keyspace)))
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine with the tables of CDC generations and a first generation, and nothing else.
    pub fn new(options: Options) -> Self {
        let engine = Self {
            options,
            state: RwLock::default(),
            callbacks: Mutex::default(),
            last_timestamp: AtomicI64::new(0),
        };
        engine.start_generations();
        engine
    }

    /// How it was set up.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The tokens of the node's vnodes, ascending.
    pub fn tokens(&self) -> Vec<i64> {
        token::range_ends(self.options.vnodes)
    }

    /// The schema as it is now.
    pub fn schema(&self) -> Schema {
        self.state.read().schema.clone()
    }

    /// Has `callback` called after each schema change, before the statement's answer, with no lock
    /// held. Internal tables are not told of.
    pub fn on_schema_change(
        &self,
        callback: impl Fn(&Schema, &[SchemaChange]) + Send + Sync + 'static,
    ) {
        self.callbacks.lock().push(Arc::new(callback));
    }

    fn now(&self) -> i64 {
        (self.options.clock)()
    }

    /// A write timestamp greater than all before.
    fn next_timestamp(&self, now: i64) -> Timestamp {
        let previous = self.last_timestamp.fetch_max(now, Ordering::Relaxed);
        if previous < now {
            now
        } else {
            self.last_timestamp.fetch_add(1, Ordering::Relaxed) + 1
        }
    }

    /// Resolves a statement; `keyspace` is the connection's.
    pub fn prepare(&self, text: &str, keyspace: Option<&str>) -> Result<Prepared, CqlError> {
        let state = self.state.read();
        self.resolve(&state.schema, text, keyspace)
    }

    fn resolve(
        &self,
        schema: &Schema,
        text: &str,
        keyspace: Option<&str>,
    ) -> Result<Prepared, CqlError> {
        let lowered = lower::statement(schema, text, keyspace)?;
        let columns = match &lowered.statement {
            Statement::Select(plan) => plan.columns.clone(),
            Statement::Describe(what) => describe::columns(what),
            Statement::Modify(plan) if !matches!(plan.condition, Condition::None) => {
                lwt::columns(&[plan], false).1
            }
            Statement::Batch(batch) if batch.is_conditional() => {
                let plans: Vec<&ModifyPlan> = batch.plans.iter().collect();
                lwt::columns(&plans, true).1
            }
            _ => Vec::new(),
        };
        let conditional = match &lowered.statement {
            Statement::Modify(plan) => !matches!(plan.condition, Condition::None),
            Statement::Batch(batch) => batch.is_conditional(),
            _ => false,
        };
        Ok(Prepared(Arc::new(PreparedInner {
            text: text.to_owned(),
            keyspace: keyspace.map(str::to_owned),
            statement: lowered.statement,
            bind: lowered.bind,
            primary_key_indexes: lowered.primary_key_indexes,
            columns,
            conditional,
        })))
    }

    /// Whether a prepared statement still fits the schema. One that does not is resolved anew when it
    /// is executed, but its markers and columns may then be others than the client was told.
    pub fn is_current(&self, prepared: &Prepared) -> bool {
        is_current(&self.state.read().schema, prepared)
    }

    /// Prepares and executes in one go.
    pub fn query(&self, text: &str, params: &Params) -> Result<Outcome, CqlError> {
        let prepared = self.prepare(text, params.keyspace.as_deref())?;
        self.execute(&prepared, params)
    }

    /// Executes a statement.
    pub fn execute(&self, prepared: &Prepared, params: &Params) -> Result<Outcome, CqlError> {
        let now = params.now.unwrap_or_else(|| self.now());
        let prepared = &self.refreshed(prepared)?;
        let values = arrange(prepared, &params.values, &params.names)?;
        let context = Context {
            values: &values,
            now,
        };
        match &prepared.0.statement {
            Statement::Select(plan) => {
                let size = params
                    .page_size
                    .and_then(|s| usize::try_from(s).ok())
                    .filter(|s| *s > 0);
                let page = Page {
                    size,
                    bytes: self.options.page_bytes,
                    state: params
                        .paging_state
                        .clone()
                        .map(PagingState::decode)
                        .transpose()?,
                };
                let state = self.state.read();
                let level = Consistency::from_protocol(params.consistency)?;
                let alone = level.is_serial() && select::names_one_partition(plan, &context)?;
                level.for_read(state.keyspace(&plan.table)?, alone)?;
                let (mut rows, paging_state) =
                    select::select(plan, state.table(&plan.table), &context, &page)?;
                if let Some(fields) = &plan.json {
                    rows = rows
                        .iter()
                        .map(|row| json::row(fields, &row))
                        .collect::<Result<_, _>>()?;
                }
                Ok(Outcome::Rows {
                    columns: plan.columns.clone(),
                    rows,
                    paging_state,
                })
            }
            Statement::Modify(plan) => self.modify(&[(plan, context)], BatchScope::of(params)?),
            Statement::Batch(batch) => {
                let own = match &batch.timestamp {
                    Some(expr) => write::timestamp_value(expr, &context)?,
                    None => None,
                };
                let statements: Vec<_> = batch
                    .plans
                    .iter()
                    .map(|plan| {
                        (
                            plan,
                            Context {
                                values: &values,
                                now,
                            },
                        )
                    })
                    .collect();
                check_batch(batch.kind, &statements, batch.timestamp.is_some())?;
                self.modify(
                    &statements,
                    BatchScope {
                        own,
                        batch: true,
                        ..BatchScope::of(params)?
                    },
                )
            }
            Statement::Describe(what) => {
                let state = self.state.read();
                let session = params.keyspace.as_deref();
                let (columns, rows) =
                    describe::describe(&state, what, session, self.options.vnodes)?;
                Ok(Outcome::Rows {
                    columns,
                    rows,
                    paging_state: None,
                })
            }
            Statement::Use(keyspace) => Ok(Outcome::SetKeyspace(keyspace.clone())),
            Statement::Truncate(table) => {
                let mut state = self.state.write();
                if let Some(data) = state.data.get_mut(&table.id) {
                    data.partitions.clear();
                }
                if generations::tells_of_generations(table) {
                    state.follow_generations(now);
                }
                drop(state);
                self.note_truncation(table, now)?;
                Ok(Outcome::Void)
            }
            Statement::Ddl {
                statement,
                timestamp,
            } => {
                let timestamp = match timestamp {
                    Some(expr) => write::timestamp_value(expr, &context)?,
                    None => None,
                };
                let keyspace = prepared.0.keyspace.as_deref();
                self.change_schema(statement, keyspace, now, timestamp)
            }
        }
    }

    /// Executes a batch of the protocol; each statement with its own values.
    pub fn execute_batch(
        &self,
        kind: BatchKind,
        statements: &[(Prepared, Vec<BoundValue>)],
        params: &Params,
    ) -> Result<Outcome, CqlError> {
        let now = params.now.unwrap_or_else(|| self.now());
        let mut fresh = Vec::with_capacity(statements.len());
        for (prepared, values) in statements {
            let prepared = self.refreshed(prepared)?;
            let values = arrange(&prepared, values, &[])?;
            fresh.push((prepared, values));
        }
        let mut plans = Vec::with_capacity(fresh.len());
        for (prepared, values) in &fresh {
            let Statement::Modify(plan) = &prepared.0.statement else {
                return Err(CqlError::invalid(
                    "Invalid statement in batch: only UPDATE, INSERT and DELETE statements are allowed.",
                ));
            };
            plans.push((plan, Context { values, now }));
        }
        check_batch(kind, &plans, false)?;
        self.modify(
            &plans,
            BatchScope {
                batch: true,
                ..BatchScope::of(params)?
            },
        )
    }

    fn refreshed(&self, prepared: &Prepared) -> Result<Prepared, CqlError> {
        let state = self.state.read();
        if is_current(&state.schema, prepared) {
            return Ok(prepared.clone());
        }
        self.resolve(
            &state.schema,
            &prepared.0.text,
            prepared.0.keyspace.as_deref(),
        )
    }

    /// Runs modifications as one.
    fn modify(
        &self,
        statements: &[(&ModifyPlan, Context<'_>)],
        scope: BatchScope,
    ) -> Result<Outcome, CqlError> {
        let Some((first, context)) = statements.first() else {
            return Ok(Outcome::Void);
        };
        for (plan, _) in statements {
            refuse_internal(plan)?;
        }
        let conditional = statements
            .iter()
            .any(|(p, _)| !matches!(p.condition, Condition::None));
        let mut state = self.state.write();
        // The clock is read once nothing can come between it and the write: a write is never seen later than a
        // moment that its time has long passed, however busy the machine.
        let now = scope.now.unwrap_or_else(|| self.now());
        // The schema may have changed since the statements were resolved, before this lock was had.
        if statements
            .iter()
            .any(|(p, _)| !same_table(&state.schema, &p.table))
        {
            return Err(CqlError::server(
                "the schema changed while the statement was executed",
            ));
        }
        for (plan, _) in statements {
            let keyspace = state.keyspace(&plan.table)?;
            if conditional {
                scope.consistency.for_condition(scope.serial, keyspace)?;
            } else {
                scope.consistency.for_write(keyspace, &plan.table)?;
            }
        }
        let mut answer = Outcome::Void;
        let timestamp = if conditional {
            let (key, _) = lwt::partition(first, context)?;
            for (plan, context) in &statements[1..] {
                if plan.table.id != first.table.id {
                    return Err(CqlError::invalid(
                        "BATCH with conditions cannot span multiple tables",
                    ));
                }
                if lwt::partition(plan, context)?.0 != key {
                    return Err(CqlError::invalid(
                        "BATCH with conditions cannot span multiple partitions",
                    ));
                }
            }
            let checked: Vec<_> = statements
                .iter()
                .map(|(plan, context)| lwt::Statement { plan, context })
                .collect();
            let (applied, rows) = lwt::check(&checked, state.table(&first.table), scope.batch)?;
            let plans: Vec<&ModifyPlan> = statements.iter().map(|(p, _)| *p).collect();
            answer = Outcome::Rows {
                columns: lwt::columns(&plans, scope.batch).1,
                rows,
                paging_state: None,
            };
            if !applied {
                return Ok(answer);
            }
            self.next_timestamp(now)
        } else {
            match scope.own.or(scope.default) {
                Some(given) => given,
                None => self.next_timestamp(now),
            }
        };
        let mut sequence = ListSequence::default();
        let mut mutations: Vec<Mutation> = Vec::with_capacity(statements.len());
        let mut places: HashMap<(Uuid, RingKey), usize> = HashMap::new();
        for (plan, context) in statements {
            let at = write::own_timestamp(plan, context)?.unwrap_or(timestamp);
            let made =
                write::mutations(plan, state.table(&plan.table), context, at, &mut sequence)?;
            if plan.table.counter {
                // Each increment adds to the one before, also within a batch; counters have no log.
                state.write(made, now)?;
                continue;
            }
            for mutation in made {
                match places.entry((mutation.table.id, mutation.key.clone())) {
                    Entry::Occupied(place) => mutations[*place.get()].data.merge(mutation.data),
                    Entry::Vacant(place) => {
                        place.insert(mutations.len());
                        mutations.push(mutation);
                    }
                }
            }
        }
        if scope.batch && !conditional && mutations.len() > 1 {
            let size: usize = mutations.iter().map(|m| m.data.size()).sum();
            if size > self.options.max_batch_bytes {
                return Err(CqlError::invalid("Batch too large"));
            }
        }
        let generations = mutations
            .iter()
            .any(|m| generations::tells_of_generations(&m.table));
        state.write(mutations, now)?;
        if generations {
            state.follow_generations(now);
        }
        Ok(answer)
    }
}

/// How the timestamps of a batch's statements come about.
struct BatchScope {
    /// Instead of the clock's, µs since the epoch.
    now: Option<i64>,
    /// From the protocol.
    default: Option<Timestamp>,
    /// Of the batch itself.
    own: Option<Timestamp>,
    batch: bool,
    consistency: Consistency,
    serial: Consistency,
}

impl BatchScope {
    fn of(params: &Params) -> Result<Self, CqlError> {
        let serial = params.serial_consistency;
        Ok(Self {
            now: params.now,
            default: params.default_timestamp,
            own: None,
            batch: false,
            consistency: Consistency::from_protocol(params.consistency)?,
            serial: serial.map_or(Ok(Consistency::Serial), Consistency::from_protocol)?,
        })
    }
}

impl State {
    /// Applies mutations together with what they add to logs; all or nothing.
    fn write(&mut self, mutations: Vec<Mutation>, now: i64) -> Result<(), CqlError> {
        let mut logs = Vec::new();
        for mutation in &mutations {
            let table = &mutation.table;
            let Some(layout) = table.log.as_ref().filter(|_| table.cdc_enabled()) else {
                continue;
            };
            let Some(log) = self.schema.table(&table.keyspace, &log_name(&table.name)) else {
                continue;
            };
            let tablets = self
                .schema
                .keyspaces
                .get(&table.keyspace)
                .is_some_and(|k| k.tablets.is_some());
            let stored = self.table(table).get(&mutation.key).map(|s| &s.data);
            let source = images::Source {
                base: table,
                layout,
                key: &mutation.components,
                stored,
                now,
            };
            let token = mutation.key.token;
            let rows = images::log_rows(&source, &mutation.data, |at| {
                if tablets {
                    self.streams
                        .tablet_stream(&table.keyspace, &table.name, at, now, token)
                } else {
                    self.streams.vnode_stream(at, now, token)
                }
            })?;
            logs.extend(rows.into_iter().map(|rows| (log.clone(), rows)));
        }
        for mutation in mutations {
            let data = self.data.entry(mutation.table.id).or_default();
            data.apply(mutation.key, &mutation.components, mutation.data);
        }
        for (log, rows) in logs {
            let components = [rows.stream];
            let key = RingKey::new(&log, &components);
            self.data.entry(log.id).or_default().append(
                key,
                &components,
                rows.rows,
                now.div_euclid(1_000_000),
            );
        }
        Ok(())
    }
}

fn same_table(schema: &Schema, table: &TableSchema) -> bool {
    schema
        .table(&table.keyspace, &table.name)
        .is_some_and(|t| t.version == table.version)
}

fn is_current(schema: &Schema, prepared: &Prepared) -> bool {
    match &prepared.0.statement {
        Statement::Batch(batch) => batch.plans.iter().all(|p| same_table(schema, &p.table)),
        statement => statement.table().is_none_or(|t| same_table(schema, t)),
    }
}

fn refuse_internal(plan: &ModifyPlan) -> Result<(), CqlError> {
    if names::is_system(&plan.table.keyspace) && !generations::tells_of_generations(&plan.table) {
        return Err(CqlError::unauthorized(format!(
            "{} keyspace is not user-modifiable.",
            plan.table.keyspace
        )));
    }
    Ok(())
}

fn check_batch(
    kind: BatchKind,
    statements: &[(&ModifyPlan, Context<'_>)],
    timestamped: bool,
) -> Result<(), CqlError> {
    let counters = statements.iter().filter(|(p, _)| p.table.counter).count();
    let conditional = statements
        .iter()
        .any(|(p, _)| !matches!(p.condition, Condition::None));
    let refused = if timestamped && conditional {
        "Cannot provide custom timestamp for conditional BATCH"
    } else if timestamped && counters > 0 {
        "Cannot provide custom timestamp for a BATCH containing counters"
    } else if timestamped && statements.iter().any(|(p, _)| p.timestamp.is_some()) {
        "Timestamp must be set either on BATCH or individual statements"
    } else if kind == BatchKind::Counter && counters < statements.len() {
        "Cannot include non-counter statement in a counter batch"
    } else if kind == BatchKind::Logged && counters > 0 {
        "Cannot include a counter statement in a logged batch"
    } else if counters > 0 && counters < statements.len() {
        "Counter and non-counter mutations cannot exist in the same batch"
    } else {
        return Ok(());
    };
    Err(CqlError::invalid(refused))
}

/// Brings values into the order of the markers.
fn arrange(
    prepared: &Prepared,
    values: &[BoundValue],
    names: &[String],
) -> Result<Vec<BoundValue>, CqlError> {
    let bind = &prepared.0.bind;
    if names.is_empty() {
        if values.len() != bind.len() {
            return Err(CqlError::invalid(format!(
                "Invalid amount of bind variables: expected {}, received {}",
                bind.len(),
                values.len()
            )));
        }
        return Ok(values.to_vec());
    }
    bind.iter()
        .map(|spec| {
            let at = names.iter().position(|n| *n == spec.name);
            at.and_then(|at| values.get(at)).cloned().ok_or_else(|| {
                CqlError::invalid(format!("Missing value for bind variable {}", spec.name))
            })
        })
        .collect()
}
