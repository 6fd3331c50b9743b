//! From a parsed statement to a plan: names and types are resolved here, and nowhere later.

use std::sync::Arc;

use super::{
    BatchKind, ColumnSpec,
    error::CqlError,
    functions::Function,
    json::Document,
    lwt,
    names::{is_system, no_keyspace, resolve_type, table},
    plan::{
        Aggregate, Change, Comparison, Condition, Expr, Filter, ModifyKind, ModifyPlan, Operand,
        Part, PartitionPart, SelectPlan, Selector, Values,
    },
    restrict::{Purpose, Relation, restrictions, tuple_type},
    schema::{Column, ColumnKind, MultiKind, Schema, TableSchema},
    types::{self, Shape, shape},
};
use crate::{
    cql::{self, ast},
    types::CqlType,
};

/// A statement that can be executed.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "one value a statement, behind an Arc"
)]
pub(crate) enum Statement {
    Select(SelectPlan),
    Modify(ModifyPlan),
    Batch(BatchPlan),
    Use(String),
    Truncate(Arc<TableSchema>),
    Describe(ast::Describe),
    Ddl {
        statement: Box<ast::Statement>,
        /// Of a column that is dropped.
        timestamp: Option<Expr>,
    },
}

impl Statement {
    /// The one table it is of.
    pub(crate) fn table(&self) -> Option<&Arc<TableSchema>> {
        match self {
            Statement::Select(plan) => Some(&plan.table),
            Statement::Modify(plan) => Some(&plan.table),
            Statement::Truncate(table) => Some(table),
            _ => None,
        }
    }
}

/// `BEGIN … BATCH`.
#[derive(Debug)]
pub(crate) struct BatchPlan {
    pub(crate) kind: BatchKind,
    pub(crate) plans: Vec<ModifyPlan>,
    pub(crate) timestamp: Option<Expr>,
}

impl BatchPlan {
    pub(crate) fn is_conditional(&self) -> bool {
        self.plans
            .iter()
            .any(|p| !matches!(p.condition, Condition::None))
    }
}

/// A statement with what its markers stand for.
pub(crate) struct Lowered {
    pub(crate) statement: Statement,
    pub(crate) bind: Vec<ColumnSpec>,
    pub(crate) primary_key_indexes: Vec<u16>,
}

fn parse(text: &str) -> Result<ast::Parsed, CqlError> {
    cql::parse(text).map_err(|e| CqlError::syntax(e.to_string()))
}

/// The keyspace and name of the table that a `CREATE TABLE` makes.
pub(crate) fn created_table(ddl: &str) -> Result<(String, String), CqlError> {
    match parse(ddl)?.statement {
        ast::Statement::CreateTable(ast::CreateTable { table, .. }) => {
            Ok((table.keyspace.ok_or_else(no_keyspace)?, table.name))
        }
        _ => Err(CqlError::invalid(
            "an internal table is made by CREATE TABLE",
        )),
    }
}

/// Parses and resolves a statement.
pub(crate) fn statement(
    schema: &Schema,
    text: &str,
    keyspace: Option<&str>,
) -> Result<Lowered, CqlError> {
    let parsed = parse(text)?;
    let mut lowering = Lowering {
        schema,
        keyspace,
        names: &parsed.binds,
        bind: vec![None; parsed.binds.len()],
        table: None,
    };
    let statement = match parsed.statement {
        ast::Statement::Select(select) => Statement::Select(lowering.select(&select)?),
        ast::Statement::Batch(batch) => lowering.batch(&batch)?,
        ast::Statement::Use(keyspace) => {
            if !schema.keyspaces.contains_key(&keyspace) {
                return Err(CqlError::invalid(format!(
                    "Keyspace '{keyspace}' does not exist"
                )));
            }
            Statement::Use(keyspace)
        }
        ast::Statement::Truncate(name) => {
            let table = table(schema, &name, keyspace)?;
            if is_system(&table.keyspace) && !super::generations::tells_of_generations(table) {
                return Err(CqlError::unauthorized(format!(
                    "{} keyspace is not user-modifiable.",
                    table.keyspace
                )));
            }
            Statement::Truncate(table.clone())
        }
        ast::Statement::Describe(describe) => Statement::Describe(describe),
        ast::Statement::Unsupported { what } => {
            return Err(CqlError::invalid(format!(
                "{what} is not supported by this in-memory stand-in for ScyllaDB"
            )));
        }
        modification @ (ast::Statement::Insert(_)
        | ast::Statement::InsertJson(_)
        | ast::Statement::Update(_)
        | ast::Statement::Delete(_)) => Statement::Modify(lowering.modification(&modification)?),
        ddl => {
            let timestamp = lowering.drop_time(&ddl)?;
            Statement::Ddl {
                statement: Box::new(ddl),
                timestamp,
            }
        }
    };
    let bind = lowering.finish()?;
    let primary_key_indexes = match &statement {
        Statement::Select(plan) => key_markers(&plan.restrictions.partition),
        Statement::Modify(plan) => key_markers(&plan.restrictions.partition),
        _ => Vec::new(),
    };
    Ok(Lowered {
        statement,
        bind,
        primary_key_indexes,
    })
}

fn key_markers(partition: &PartitionPart) -> Vec<u16> {
    let PartitionPart::Keys(parts) = partition else {
        return Vec::new();
    };
    let markers: Option<Vec<u16>> = parts
        .iter()
        .map(|part| match part {
            Values::One(Expr::Bind(at, _)) => u16::try_from(*at).ok(),
            _ => None,
        })
        .collect();
    markers.unwrap_or_default()
}

struct Lowering<'a> {
    schema: &'a Schema,
    keyspace: Option<&'a str>,
    names: &'a [Option<String>],
    bind: Vec<Option<ColumnSpec>>,
    table: Option<Arc<TableSchema>>,
}

fn unrecognized(name: &str) -> CqlError {
    CqlError::invalid(format!("Unrecognized name {name}"))
}

/// A column that is a value.
fn is_equal(at: usize, column: &Column, value: Expr) -> Relation {
    Relation::Plain(Filter {
        operand: Operand::Column(at),
        ty: column.ty.clone(),
        comparison: Comparison::Eq,
        values: Values::One(value),
    })
}

fn unknown(name: &str) -> CqlError {
    CqlError::invalid(format!("Unknown identifier {name}"))
}

impl Lowering<'_> {
    fn finish(self) -> Result<Vec<ColumnSpec>, CqlError> {
        let untyped = || CqlError::invalid("Cannot infer the type of a bind marker");
        self.bind
            .into_iter()
            .map(|spec| spec.ok_or_else(untyped))
            .collect()
    }

    /// The time of `ALTER TABLE … DROP … USING TIMESTAMP`, which can be prepared before there is a table.
    fn drop_time(&mut self, statement: &ast::Statement) -> Result<Option<Expr>, CqlError> {
        let ast::Statement::AlterTable(ast::AlterTable {
            table: name,
            action:
                ast::AlterTableAction::Drop {
                    timestamp: Some(timestamp),
                    ..
                },
        }) = statement
        else {
            return Ok(None);
        };
        self.table = table(self.schema, name, self.keyspace).ok().cloned();
        self.term(timestamp, &CqlType::Bigint, "[timestamp]")
            .map(Some)
    }

    fn resolve_table(&mut self, name: &ast::QualifiedName) -> Result<Arc<TableSchema>, CqlError> {
        let table = table(self.schema, name, self.keyspace)?.clone();
        self.table = Some(table.clone());
        Ok(table)
    }

    /// The user-defined types of a type's name are those of the table's keyspace.
    fn resolve_type(&self, name: &ast::TypeName) -> Result<CqlType, CqlError> {
        let keyspace = self
            .table
            .as_ref()
            .map(|t| t.keyspace.as_str())
            .or(self.keyspace);
        resolve_type(self.schema, name, keyspace)
    }

    fn marker(&mut self, at: usize, ty: &CqlType, name: &str) -> Expr {
        let name = self
            .names
            .get(at)
            .cloned()
            .flatten()
            .unwrap_or_else(|| name.to_owned());
        let (keyspace, table) = match &self.table {
            Some(table) => (table.keyspace.clone(), table.name.clone()),
            None => Default::default(),
        };
        if let Some(slot) = self.bind.get_mut(at) {
            slot.get_or_insert(ColumnSpec {
                keyspace,
                table,
                name,
                ty: ty.clone(),
            });
        }
        Expr::Bind(at, ty.clone())
    }

    /// A term for a receiver of a known type, named for markers and messages.
    fn term(&mut self, term: &ast::Term, ty: &CqlType, name: &str) -> Result<Expr, CqlError> {
        let mismatch = |what: &str| {
            CqlError::invalid(format!("Invalid {what} literal for {name} of type {ty}"))
        };
        Ok(match term {
            ast::Term::Bind(at) => self.marker(*at, ty, name),
            ast::Term::Constant(constant) => Expr::Const(types::constant(constant, ty, name)?),
            ast::Term::List(items) => match shape(ty) {
                Shape::List(element) if !types::is_set(ty) => {
                    let name = format!("value({name})");
                    Expr::List(
                        items
                            .iter()
                            .map(|i| self.term(i, element, &name))
                            .collect::<Result<_, _>>()?,
                    )
                }
                Shape::Vector(element, dimension) => {
                    if items.len() != dimension {
                        return Err(CqlError::invalid(format!(
                            "Invalid vector literal for {name}: type {ty} expects {dimension} elements but got {}",
                            items.len()
                        )));
                    }
                    let name = format!("value({name})");
                    let items = items.iter().map(|i| self.term(i, element, &name));
                    Expr::Vector(element.clone(), items.collect::<Result<_, _>>()?)
                }
                _ => return Err(mismatch("list")),
            },
            ast::Term::Set(items) => match shape(ty) {
                Shape::List(element) if types::is_set(ty) => {
                    let name = format!("value({name})");
                    let items = items
                        .iter()
                        .map(|i| self.term(i, element, &name))
                        .collect::<Result<_, _>>()?;
                    Expr::Set(element.clone(), items)
                }
                Shape::Map(key, _) if items.is_empty() => Expr::Map(key.clone(), Vec::new()),
                _ => return Err(mismatch("set")),
            },
            ast::Term::Map(entries) => match shape(ty) {
                Shape::Map(key, value) => {
                    let (key_name, value_name) = (format!("key({name})"), format!("value({name})"));
                    let mut lowered = Vec::with_capacity(entries.len());
                    for (k, v) in entries {
                        lowered.push((
                            self.term(k, key, &key_name)?,
                            self.term(v, value, &value_name)?,
                        ));
                    }
                    Expr::Map(key.clone(), lowered)
                }
                _ => return Err(mismatch("map")),
            },
            ast::Term::Udt(entries) => {
                let fields = types::udt_fields(ty).ok_or_else(|| mismatch("user type"))?;
                if let Some((unknown, _)) = entries
                    .iter()
                    .find(|(f, _)| !fields.iter().any(|(n, _)| n == f))
                {
                    return Err(CqlError::invalid(format!(
                        "Unknown field '{unknown}' in value of user defined type {ty}"
                    )));
                }
                let mut values = Vec::with_capacity(fields.len());
                for (field, field_type) in fields {
                    values.push(match entries.iter().find(|(f, _)| f == field) {
                        Some((_, value)) => {
                            self.term(value, field_type, &format!("{name}.{field}"))?
                        }
                        None => Expr::Const(None),
                    });
                }
                Expr::Tuple(values)
            }
            ast::Term::Tuple(items) => match shape(ty) {
                Shape::Tuple(field_types) if items.len() <= field_types.len() => {
                    let mut values = Vec::with_capacity(items.len());
                    for (i, (item, field_type)) in items.iter().zip(field_types).enumerate() {
                        values.push(self.term(item, field_type, &format!("{name}[{i}]"))?);
                    }
                    Expr::Tuple(values)
                }
                // One value in parentheses.
                _ if items.len() == 1 => self.term(&items[0], ty, name)?,
                _ => return Err(mismatch("tuple")),
            },
            // Its type is that of what it is for.
            ast::Term::Call(function, args)
                if function.name.eq_ignore_ascii_case("fromjson") && args.len() == 1 =>
            {
                let text = self.term(&args[0], &CqlType::Text, "arg0(fromjson)")?;
                Expr::Call(Function::FromJson(ty.clone()), vec![text])
            }
            ast::Term::Call(function, args) => {
                let (expr, result) = self.call(&function.name, args)?;
                assignable(&result, ty, name)?;
                expr
            }
            ast::Term::Hint(hint, inner) => {
                let hinted = self.resolve_type(hint)?;
                assignable(&hinted, ty, name)?;
                self.term(inner, &hinted, name)?
            }
        })
    }

    fn call(&mut self, function: &str, args: &[ast::Term]) -> Result<(Expr, CqlType), CqlError> {
        let lower = function.to_lowercase();
        if lower == "token" {
            let table = self
                .table
                .clone()
                .ok_or_else(|| CqlError::invalid("token() without a table"))?;
            let columns = table.partition_key();
            if columns.len() != args.len() {
                return Err(CqlError::invalid(format!(
                    "Invalid number of arguments in call to function token: {} required but {} provided",
                    columns.len(),
                    args.len()
                )));
            }
            let args = args
                .iter()
                .zip(columns)
                .map(|(a, c)| self.term(a, &c.ty, &c.name))
                .collect::<Result<_, _>>()?;
            return Ok((
                Expr::Call(
                    Function::Token {
                        is_log: table.is_log,
                    },
                    args,
                ),
                CqlType::Bigint,
            ));
        }
        if lower == "tojson" {
            return Err(CqlError::invalid("toJson() is only valid in SELECT clause"));
        }
        if lower == "fromjson" {
            // Without a receiver that tells the type.
            let known: Vec<Option<CqlType>> = args.iter().map(|_| None).collect();
            return Function::resolve(&lower, &known)
                .map(|(function, ty)| (Expr::Call(function, Vec::new()), ty));
        }
        let hint = Function::argument_hint(&lower);
        let mut lowered = Vec::with_capacity(args.len());
        let mut arg_types = Vec::with_capacity(args.len());
        for (i, arg) in args.iter().enumerate() {
            let name = format!("arg{i}({lower})");
            let (expr, ty) = match arg {
                ast::Term::Call(inner, args) => {
                    let (expr, ty) = self.call(&inner.name, args)?;
                    (expr, Some(ty))
                }
                ast::Term::Hint(ty, _) => {
                    let ty = self.resolve_type(ty)?;
                    (self.term(arg, &ty, &name)?, Some(ty))
                }
                ast::Term::Constant(ast::Constant::Uuid(_)) if hint == Some(CqlType::Timeuuid) => (
                    self.term(arg, &CqlType::Timeuuid, &name)?,
                    Some(CqlType::Timeuuid),
                ),
                _ => match &hint {
                    Some(ty) => (self.term(arg, ty, &name)?, None),
                    None => return Err(CqlError::invalid(format!("Unknown function '{lower}'"))),
                },
            };
            lowered.push(expr);
            arg_types.push(ty);
        }
        let (function, result) = Function::resolve(&lower, &arg_types)?;
        Ok((Expr::Call(function, lowered), result))
    }

    // Relations.

    fn relation(
        &mut self,
        table: &TableSchema,
        relation: &ast::Relation,
        what: Clause,
    ) -> Result<Relation, CqlError> {
        let column_at = |name: &str| table.index_of(name).ok_or_else(|| unrecognized(name));
        let comparison = match relation.operator {
            ast::Operator::Eq => Comparison::Eq,
            ast::Operator::Ne => Comparison::Ne,
            ast::Operator::Lt => Comparison::Lt,
            ast::Operator::Le => Comparison::Le,
            ast::Operator::Gt => Comparison::Gt,
            ast::Operator::Ge => Comparison::Ge,
            ast::Operator::In => Comparison::In,
            ast::Operator::NotIn => Comparison::NotIn,
            ast::Operator::Contains => Comparison::Contains,
            ast::Operator::ContainsKey => Comparison::ContainsKey,
            ast::Operator::Like => Comparison::Like,
            ast::Operator::IsNot => {
                return Err(CqlError::invalid(
                    "IS NOT NULL is only supported in materialized views",
                ));
            }
        };
        if what == Clause::Where && comparison == Comparison::Ne {
            return Err(CqlError::invalid("Unsupported \"!=\" relation"));
        }
        let (operand, ty, name) = match &relation.left {
            ast::RelationLeft::Token(columns) => {
                let expected: Vec<&str> = table
                    .partition_key()
                    .iter()
                    .map(|c| c.name.as_str())
                    .collect();
                for column in columns {
                    column_at(column)?;
                }
                if *columns != expected {
                    return Err(CqlError::invalid(
                        "The token() function must be applied to all partition key components or none of them",
                    ));
                }
                let ast::RelationRight::One(term) = &relation.right else {
                    return Err(CqlError::invalid(
                        "IN cannot be used with the token function",
                    ));
                };
                return Ok(Relation::Token(
                    comparison,
                    self.term(term, &CqlType::Bigint, "partition key token")?,
                ));
            }
            ast::RelationLeft::Column(name) => {
                let at = column_at(name)?;
                (
                    Operand::Column(at),
                    table.columns[at].ty.clone(),
                    name.clone(),
                )
            }
            ast::RelationLeft::Tuple(names) => {
                let columns = names
                    .iter()
                    .map(|n| column_at(n))
                    .collect::<Result<Vec<_>, _>>()?;
                if let Some(at) = columns
                    .iter()
                    .find(|at| table.columns[**at].kind != ColumnKind::Clustering)
                {
                    return Err(CqlError::invalid(format!(
                        "Multi-column relations can only be applied to clustering columns: {}",
                        table.columns[*at].name
                    )));
                }
                let ty = tuple_type(table, &columns);
                (
                    Operand::Tuple(columns),
                    ty,
                    format!("({})", names.join(", ")),
                )
            }
            ast::RelationLeft::Element(name, key) => {
                let at = column_at(name)?;
                let column = &table.columns[at];
                let (key, ty) = match shape(&column.ty) {
                    Shape::Map(key_type, value) => (
                        self.term(key, key_type, &format!("key({name})"))?,
                        value.clone(),
                    ),
                    Shape::List(element) if !types::is_set(&column.ty) => (
                        self.term(key, &CqlType::Int, &format!("idx({name})"))?,
                        element.clone(),
                    ),
                    _ => {
                        return Err(CqlError::invalid(format!(
                            "Column {name} is not a map/list, cannot be subscripted"
                        )));
                    }
                };
                (Operand::Element(at, key), ty, format!("value({name})"))
            }
            ast::RelationLeft::Field(name, field) => {
                let at = column_at(name)?;
                let (index, ty) = field_of(&table.columns[at], field)?;
                (Operand::Field(at, index), ty, format!("{name}.{field}"))
            }
        };
        let value_type = match (comparison, shape(&ty)) {
            (Comparison::Contains, Shape::List(element)) => element.clone(),
            (Comparison::Contains, Shape::Map(_, value)) => value.clone(),
            (Comparison::ContainsKey, Shape::Map(key, _)) => key.clone(),
            (Comparison::Contains | Comparison::ContainsKey, _) => {
                return Err(CqlError::invalid(format!(
                    "Cannot use CONTAINS on non-collection column \"{name}\""
                )));
            }
            _ => ty.clone(),
        };
        let values = match &relation.right {
            ast::RelationRight::NotNull => {
                return Err(CqlError::invalid(
                    "IS NOT NULL is only supported in materialized views",
                ));
            }
            ast::RelationRight::Many(terms) => {
                let name = format!("in({name})");
                Values::Many(
                    terms
                        .iter()
                        .map(|t| self.term(t, &value_type, &name))
                        .collect::<Result<_, _>>()?,
                )
            }
            ast::RelationRight::One(term)
                if matches!(comparison, Comparison::In | Comparison::NotIn) =>
            {
                let list = types::list_of(&value_type);
                Values::List(self.term(term, &list, &format!("in({name})"))?)
            }
            ast::RelationRight::One(term) => Values::One(self.term(term, &value_type, &name)?),
        };
        Ok(Relation::Plain(Filter {
            operand,
            ty,
            comparison,
            values,
        }))
    }

    fn relations(
        &mut self,
        table: &TableSchema,
        all: &[ast::Relation],
    ) -> Result<Vec<Relation>, CqlError> {
        all.iter()
            .map(|r| self.relation(table, r, Clause::Where))
            .collect()
    }

    fn condition(
        &mut self,
        table: &TableSchema,
        condition: &ast::Condition,
    ) -> Result<Condition, CqlError> {
        Ok(match condition {
            ast::Condition::None => Condition::None,
            ast::Condition::Exists => Condition::Exists,
            ast::Condition::If(all) => {
                let mut filters = Vec::with_capacity(all.len());
                for relation in all {
                    if let Relation::Plain(filter) = self.relation(table, relation, Clause::If)? {
                        filters.push(filter);
                    }
                }
                Condition::If(filters)
            }
        })
    }

    fn using(&mut self, using: &ast::Using) -> Result<(Option<Expr>, Option<Expr>), CqlError> {
        let timestamp = using
            .timestamp
            .as_ref()
            .map(|t| self.term(t, &CqlType::Bigint, "[timestamp]"))
            .transpose()?;
        let ttl = using
            .ttl
            .as_ref()
            .map(|t| self.term(t, &CqlType::Int, "[ttl]"))
            .transpose()?;
        if let Some(timeout) = &using.timeout {
            self.term(timeout, &CqlType::Duration, "[timeout]")?;
        }
        Ok((timestamp, ttl))
    }

    // Modifications.

    fn batch(&mut self, batch: &ast::Batch) -> Result<Statement, CqlError> {
        if batch.using.ttl.is_some() {
            return Err(CqlError::invalid(
                "Global TTL on the BATCH statement is not supported.",
            ));
        }
        let (timestamp, _) = self.using(&batch.using)?;
        let plans = batch
            .statements
            .iter()
            .map(|s| self.modification(s))
            .collect::<Result<Vec<_>, _>>()?;
        let kind = match batch.kind {
            ast::BatchKind::Logged => BatchKind::Logged,
            ast::BatchKind::Unlogged => BatchKind::Unlogged,
            ast::BatchKind::Counter => BatchKind::Counter,
        };
        Ok(Statement::Batch(BatchPlan {
            kind,
            plans,
            timestamp,
        }))
    }

    fn modification(&mut self, statement: &ast::Statement) -> Result<ModifyPlan, CqlError> {
        let plan = match statement {
            ast::Statement::Insert(insert) => self.insert(insert)?,
            ast::Statement::InsertJson(insert) => self.insert_json(insert)?,
            ast::Statement::Update(update) => self.update(update)?,
            ast::Statement::Delete(delete) => self.delete(delete)?,
            _ => {
                return Err(CqlError::invalid(
                    "Only UPDATE, INSERT and DELETE statements are allowed in a batch",
                ));
            }
        };
        lwt::validate(&plan)?;
        let computes = |c: &Change| matches!(c, Change::Plus(_) | Change::Minus(_));
        if matches!(plan.condition, Condition::None)
            && plan.changes.iter().any(|(_, c)| computes(c))
        {
            return Err(CqlError::invalid(
                "SET with a column expression (e.g. col = col + 1) requires an LWT condition (e.g., IF col != NULL or IF \
                 EXISTS) to ensure atomic read-before-write",
            ));
        }
        if plan.table.counter && plan.timestamp.is_some() {
            return Err(CqlError::invalid(
                "Cannot provide custom timestamp for counter updates",
            ));
        }
        if plan.table.counter && plan.ttl.is_some() {
            return Err(CqlError::invalid(
                "Cannot provide custom TTL for counter updates",
            ));
        }
        require_rows(&plan)?;
        Ok(plan)
    }

    fn insert(&mut self, insert: &ast::Insert) -> Result<ModifyPlan, CqlError> {
        let table = self.resolve_table(&insert.table)?;
        if insert.columns.len() != insert.values.len() {
            return Err(CqlError::invalid("Unmatched column names/values"));
        }
        if table.counter {
            return Err(CqlError::invalid(
                "INSERT statements are not allowed on counter tables, use UPDATE instead",
            ));
        }
        let mut relations = Vec::new();
        let mut changes: Vec<(usize, Change)> = Vec::new();
        for (i, (name, value)) in insert.columns.iter().zip(&insert.values).enumerate() {
            let at = table.index_of(name).ok_or_else(|| unknown(name))?;
            if insert.columns[..i].contains(name) {
                return Err(CqlError::invalid(format!(
                    "Multiple definitions found for column {name}"
                )));
            }
            let column = &table.columns[at];
            let expr = self.term(value, &column.ty, name)?;
            match column.kind {
                ColumnKind::PartitionKey | ColumnKind::Clustering => {
                    relations.push(is_equal(at, column, expr));
                }
                ColumnKind::Static | ColumnKind::Regular => changes.push((at, Change::Set(expr))),
            }
        }
        let how = (&insert.using, insert.if_not_exists);
        self.inserted(table, relations, changes, how)
    }

    fn insert_json(&mut self, insert: &ast::InsertJson) -> Result<ModifyPlan, CqlError> {
        let table = self.resolve_table(&insert.table)?;
        let document = Arc::new(Document {
            text: self.term(&insert.document, &CqlType::Text, "[json]")?,
            table: table.clone(),
            default_unset: insert.default_unset,
        });
        let mut relations = Vec::new();
        let mut changes = Vec::new();
        for (at, column) in table.columns.iter().enumerate() {
            if column.ty == CqlType::Counter {
                return Err(CqlError::invalid(format!(
                    "Cannot set the value of counter column {} in JSON",
                    column.name
                )));
            }
            let expr = Expr::Json(Arc::clone(&document), at);
            match column.kind {
                ColumnKind::PartitionKey | ColumnKind::Clustering => {
                    relations.push(is_equal(at, column, expr));
                }
                // Read and not written, as ScyllaDB does (`execute_operations_for_key`).
                ColumnKind::Static => {}
                ColumnKind::Regular => changes.push((at, Change::Set(expr))),
            }
        }
        let how = (&insert.using, insert.if_not_exists);
        self.inserted(table, relations, changes, how)
    }

    /// The plan of an insert: into the row that these relations name, by `USING …` and `IF NOT EXISTS`.
    fn inserted(
        &mut self,
        table: Arc<TableSchema>,
        relations: Vec<Relation>,
        changes: Vec<(usize, Change)>,
        (using, if_not_exists): (&ast::Using, bool),
    ) -> Result<ModifyPlan, CqlError> {
        let (timestamp, ttl) = self.using(using)?;
        let condition = if if_not_exists {
            Condition::NotExists
        } else {
            Condition::None
        };
        let restrictions = restrictions(&table, relations, Purpose::Modify)?;
        Ok(ModifyPlan {
            table,
            kind: ModifyKind::Insert,
            restrictions,
            changes,
            timestamp,
            ttl,
            condition,
        })
    }

    fn update(&mut self, update: &ast::Update) -> Result<ModifyPlan, CqlError> {
        let table = self.resolve_table(&update.table)?;
        let (timestamp, ttl) = self.using(&update.using)?;
        let mut changes = Vec::with_capacity(update.assignments.len());
        for assignment in &update.assignments {
            let at = table
                .index_of(&assignment.column)
                .ok_or_else(|| unknown(&assignment.column))?;
            let column = &table.columns[at];
            if column.kind <= ColumnKind::Clustering {
                return Err(CqlError::invalid(format!(
                    "PRIMARY KEY part {} found in SET part",
                    column.name
                )));
            }
            changes.push((at, self.assignment(column, &assignment.operation)?));
        }
        let relations = self.relations(&table, &update.restrictions)?;
        let condition = self.condition(&table, &update.condition)?;
        let restrictions = restrictions(&table, relations, Purpose::Modify)?;
        Ok(ModifyPlan {
            table,
            kind: ModifyKind::Update,
            restrictions,
            changes,
            timestamp,
            ttl,
            condition,
        })
    }

    fn assignment(
        &mut self,
        column: &Column,
        operation: &ast::AssignmentOperation,
    ) -> Result<Change, CqlError> {
        let name = &column.name;
        let counter = column.ty == CqlType::Counter;
        let refused = |what: &str| {
            let reason = if column.ty.is_collection() {
                "frozen collection"
            } else {
                "non counter"
            };
            CqlError::invalid(format!(
                "Invalid operation ({name} = {what}) for {reason} column {name}"
            ))
        };
        let multi = column.multi.filter(|m| !matches!(m, MultiKind::Udt { .. }));
        Ok(match operation {
            ast::AssignmentOperation::Set(_) if counter => {
                return Err(CqlError::invalid(format!(
                    "Cannot set the value of counter column {name} (counters can only be incremented/decremented, not \
                     set)"
                )));
            }
            ast::AssignmentOperation::Set(term) => Change::Set(self.term(term, &column.ty, name)?),
            ast::AssignmentOperation::Add(term) if counter => {
                Change::Add(self.term(term, &CqlType::Bigint, name)?)
            }
            ast::AssignmentOperation::Subtract(term) if counter => {
                Change::Remove(self.term(term, &CqlType::Bigint, name)?)
            }
            ast::AssignmentOperation::Add(term)
                if column.multi.is_none() && types::is_numeric(&column.ty) =>
            {
                Change::Plus(self.term(term, &column.ty, name)?)
            }
            ast::AssignmentOperation::Subtract(term)
                if column.multi.is_none() && types::is_numeric(&column.ty) =>
            {
                Change::Minus(self.term(term, &column.ty, name)?)
            }
            ast::AssignmentOperation::Add(term) => {
                multi.ok_or_else(|| refused(&format!("{name} + ?")))?;
                Change::Add(self.term(term, &column.ty, name)?)
            }
            ast::AssignmentOperation::Prepend(term) => {
                let kind = multi.ok_or_else(|| refused(&format!("? + {name}")))?;
                let term = self.term(term, &column.ty, name)?;
                if kind == MultiKind::List {
                    Change::Prepend(term)
                } else {
                    Change::Add(term)
                }
            }
            ast::AssignmentOperation::Subtract(term) => {
                multi.ok_or_else(|| refused(&format!("{name} - ?")))?;
                let keys = match shape(&column.ty) {
                    Shape::Map(key, _) => types::set_of(key),
                    _ => column.ty.clone(),
                };
                Change::Remove(self.term(term, &keys, name)?)
            }
            ast::AssignmentOperation::SetElement { key, value } => match (multi, shape(&column.ty))
            {
                (Some(MultiKind::Map), Shape::Map(key_type, value_type)) => Change::SetElement(
                    self.term(key, key_type, &format!("key({name})"))?,
                    self.term(value, value_type, &format!("value({name})"))?,
                ),
                (Some(MultiKind::List), Shape::List(element)) => Change::SetElement(
                    self.term(key, &CqlType::Int, &format!("idx({name})"))?,
                    self.term(value, element, &format!("value({name})"))?,
                ),
                _ => return Err(refused(&format!("{name}[?] = ?"))),
            },
            ast::AssignmentOperation::SetListElement { key, value } => {
                match (multi, shape(&column.ty)) {
                    (Some(MultiKind::List), Shape::List(element)) => Change::SetListElement(
                        // `lists::uuid_index_spec_of`: any uuid, for clients that take it from a log as one.
                        self.term(key, &CqlType::Uuid, &format!("key({name})"))?,
                        self.term(value, element, &format!("value({name})"))?,
                    ),
                    _ => {
                        return Err(refused(&format!(
                            "{name}[SCYLLA_TIMEUUID_LIST_INDEX(?)] = ?"
                        )));
                    }
                }
            }
            ast::AssignmentOperation::SetField { field, value } => {
                let (index, ty) = field_of(column, field)?;
                if column.multi.is_none() {
                    return Err(CqlError::invalid(format!(
                        "Invalid operation ({name}.{field} = ?) for frozen UDT column {name}"
                    )));
                }
                Change::SetField(index, self.term(value, &ty, &format!("{name}.{field}"))?)
            }
        })
    }

    fn delete(&mut self, delete: &ast::Delete) -> Result<ModifyPlan, CqlError> {
        let table = self.resolve_table(&delete.table)?;
        let mut changes = Vec::with_capacity(delete.selection.len());
        for deletion in &delete.selection {
            let name = match deletion {
                ast::Deletion::Column(column)
                | ast::Deletion::Element { column, .. }
                | ast::Deletion::Field { column, .. } => column,
            };
            let at = table.index_of(name).ok_or_else(|| unknown(name))?;
            let column = &table.columns[at];
            if column.kind <= ColumnKind::Clustering {
                return Err(CqlError::invalid(format!(
                    "Invalid identifier {name} for deletion (should not be a PRIMARY KEY part)"
                )));
            }
            let change = match deletion {
                ast::Deletion::Column(_) => Change::Delete,
                ast::Deletion::Element { key, .. } => {
                    let ty = match (column.multi, shape(&column.ty)) {
                        (Some(MultiKind::Map), Shape::Map(key, _)) => key.clone(),
                        (Some(MultiKind::Set), Shape::List(element)) => element.clone(),
                        (Some(MultiKind::List), _) => CqlType::Int,
                        _ => {
                            return Err(CqlError::invalid(format!(
                                "Invalid deletion operation for non collection column {name}"
                            )));
                        }
                    };
                    Change::DeleteElement(self.term(key, &ty, &format!("key({name})"))?)
                }
                ast::Deletion::Field { field, .. } => {
                    let (index, _) = field_of(column, field)?;
                    if column.multi.is_none() {
                        return Err(CqlError::invalid(format!(
                            "Frozen UDT column {name} does not support field deletions"
                        )));
                    }
                    Change::DeleteField(index)
                }
            };
            changes.push((at, change));
        }
        let (timestamp, ttl) = self.using(&delete.using)?;
        let relations = self.relations(&table, &delete.restrictions)?;
        let condition = self.condition(&table, &delete.condition)?;
        let restrictions = restrictions(&table, relations, Purpose::Modify)?;
        Ok(ModifyPlan {
            table,
            kind: ModifyKind::Delete,
            restrictions,
            changes,
            timestamp,
            ttl,
            condition,
        })
    }

    // SELECT.

    fn select(&mut self, select: &ast::Select) -> Result<SelectPlan, CqlError> {
        let table = self.resolve_table(&select.table)?;
        let (mut selectors, mut columns) = (Vec::new(), Vec::new());
        match &select.selection {
            None => {
                for (at, column) in table.columns.iter().enumerate() {
                    selectors.push(Selector::Column(at));
                    columns.push(ColumnSpec::of(&table, column));
                }
            }
            Some(items) => {
                for item in items {
                    let (selector, ty, name) = self.selector(&table, &item.selector)?;
                    selectors.push(selector);
                    columns.push(ColumnSpec::new(
                        &table,
                        item.alias.clone().unwrap_or(name),
                        ty,
                    ));
                }
            }
        }
        let relations = self.relations(&table, &select.restrictions)?;
        let purpose = Purpose::Select {
            allow_filtering: select.allow_filtering,
        };
        let restrictions = restrictions(&table, relations, purpose)?;
        let kinds = |wanted: fn(ColumnKind) -> bool, of: &Selector| match of {
            Selector::Column(at) => wanted(table.columns[*at].kind),
            _ => false,
        };
        let only_static = select.selection.is_some()
            && selectors
                .iter()
                .any(|s| kinds(|k| k == ColumnKind::Static, s))
            && selectors.iter().all(|s| {
                kinds(
                    |k| matches!(k, ColumnKind::Static | ColumnKind::PartitionKey),
                    s,
                )
            });
        if only_static && !restrictions.clustering.is_empty() {
            return Err(CqlError::invalid(
                "Cannot restrict clustering columns when selecting only static columns",
            ));
        }
        if select.distinct {
            refuse_distinct(&table, &selectors)?;
        }
        let reversed = self.reversed(&table, &select.order_by, &restrictions.partition)?;
        let many = match &restrictions.partition {
            PartitionPart::Keys(parts) => parts.iter().any(|p| !matches!(p, Values::One(_))),
            _ => false,
        };
        let group_by = group_by(&table, &select.group_by)?;
        let aggregated = group_by > 0
            || selectors
                .iter()
                .any(|s| matches!(s, Selector::Aggregate(..)));
        let limit = |this: &mut Self, term: &Option<ast::Term>, name| {
            term.as_ref()
                .map(|t| this.term(t, &CqlType::Int, name))
                .transpose()
        };
        let per_partition_limit =
            limit(self, &select.per_partition_limit, "[per_partition_limit]")?;
        let limit = limit(self, &select.limit, "[limit]")?;
        if let Some(timeout) = &select.timeout {
            self.term(timeout, &CqlType::Duration, "[timeout]")?;
        }
        let json = select.json.then(|| {
            let only = ColumnSpec::new(&table, "[json]", CqlType::Text);
            let selected = std::mem::replace(&mut columns, vec![only]);
            selected.into_iter().map(|c| (c.name, c.ty)).collect()
        });
        Ok(SelectPlan {
            table,
            columns,
            selectors,
            json,
            restrictions,
            distinct: select.distinct,
            reversed: reversed.unwrap_or(false),
            sorted: reversed.is_some() && many,
            aggregated,
            group_by,
            limit,
            per_partition_limit,
        })
    }

    /// Whether rows are read backwards; `None` without `ORDER BY`.
    fn reversed(
        &self,
        table: &TableSchema,
        order: &[(String, ast::Order)],
        partition: &PartitionPart,
    ) -> Result<Option<bool>, CqlError> {
        if order.is_empty() {
            return Ok(None);
        }
        if !matches!(partition, PartitionPart::Keys(_)) {
            return Err(CqlError::invalid(
                "ORDER BY is only supported when the partition key is restricted by an EQ or an IN.",
            ));
        }
        let mut reversed = None;
        for (i, (name, order)) in order.iter().enumerate() {
            let column = table.column(name).ok_or_else(|| unrecognized(name))?;
            if table
                .clustering_key()
                .get(i)
                .is_none_or(|c| c.name != *name)
            {
                return Err(CqlError::invalid(
                    if column.kind == ColumnKind::Clustering {
                        "Order by currently only supports the ordering of columns following their declared order in the \
                     PRIMARY KEY"
                        .to_owned()
                    } else {
                        format!(
                            "Order by is currently only supported on the clustered columns of the PRIMARY KEY, got {name}"
                        )
                    },
                ));
            }
            let against = (*order == ast::Order::Desc) != column.descending;
            if reversed.is_some_and(|r| r != against) {
                return Err(CqlError::invalid("Unsupported order by relation"));
            }
            reversed = Some(against);
        }
        Ok(reversed)
    }

    /// A selector with its type and the name of its column.
    fn selector(
        &mut self,
        table: &TableSchema,
        selector: &ast::Selector,
    ) -> Result<(Selector, CqlType, String), CqlError> {
        Ok(match selector {
            ast::Selector::Column(name) => {
                let at = table.index_of(name).ok_or_else(|| unrecognized(name))?;
                (
                    Selector::Column(at),
                    table.columns[at].ty.clone(),
                    name.clone(),
                )
            }
            ast::Selector::Field(inner, field) => {
                let (inner, ty, name) = self.selector(table, inner)?;
                let (index, field_type) = field_in(&ty, field)
                    .ok_or_else(|| CqlError::invalid(format!("{ty} has no field {field}")))?;
                (
                    Selector::Field(Box::new(inner), index),
                    field_type,
                    format!("{name}.{field}"),
                )
            }
            ast::Selector::Element(inner, key) => {
                let (inner, ty, name) = self.selector(table, inner)?;
                let (key, value) = match shape(&ty) {
                    Shape::Map(key_type, value) => (
                        self.term(key, key_type, &format!("key({name})"))?,
                        value.clone(),
                    ),
                    Shape::List(element) if !types::is_set(&ty) => (
                        self.term(key, &CqlType::Int, &format!("idx({name})"))?,
                        element.clone(),
                    ),
                    _ => return Err(CqlError::invalid(format!("{name} cannot be subscripted"))),
                };
                (
                    Selector::Element(Box::new(inner), ty.clone(), key),
                    value,
                    format!("{name}[]"),
                )
            }
            ast::Selector::WriteTime(inner) | ast::Selector::Ttl(inner) => {
                let is_ttl = matches!(selector, ast::Selector::Ttl(_));
                let what = if is_ttl { "ttl" } else { "writetime" };
                let of_column = |name: &str| {
                    let at = table.index_of(name).ok_or_else(|| unrecognized(name))?;
                    if table.columns[at].kind <= ColumnKind::Clustering {
                        return Err(CqlError::invalid(format!(
                            "Cannot use selection function {what} on PRIMARY KEY part {name}"
                        )));
                    }
                    Ok(at)
                };
                let not_by_part = |name: &str| {
                    CqlError::invalid(format!(
                        "Cannot use selection function {what} on part of column {name} because it is not written part by \
                         part"
                    ))
                };
                let (at, part, shown) = match &**inner {
                    ast::Selector::Field(of, field) => {
                        let ast::Selector::Column(name) = &**of else {
                            return Err(CqlError::invalid(format!(
                                "{what} takes a column, or an element or field of one"
                            )));
                        };
                        let at = of_column(name)?;
                        let column = &table.columns[at];
                        let (index, _) = field_of(column, field)?;
                        if column.multi.is_none() {
                            return Err(not_by_part(name));
                        }
                        (at, Some(Part::Field(index)), format!("{name}.{field}"))
                    }
                    ast::Selector::Element(of, key) => {
                        let ast::Selector::Column(name) = &**of else {
                            return Err(CqlError::invalid(format!(
                                "{what} takes a column, or an element or field of one"
                            )));
                        };
                        let at = of_column(name)?;
                        let column = &table.columns[at];
                        let key_type = match (column.multi, shape(&column.ty)) {
                            (Some(MultiKind::Map), Shape::Map(key, _)) => key,
                            (Some(MultiKind::Set), Shape::List(element)) => element,
                            _ => {
                                return Err(CqlError::invalid(format!(
                                    "Column {name} is not a map/set, cannot use selection function {what} on an element"
                                )));
                            }
                        };
                        let key = self.term(key, key_type, &format!("key({name})"))?;
                        (at, Some(Part::Key(key)), format!("{name}[]"))
                    }
                    ast::Selector::Column(name) => {
                        let at = of_column(name)?;
                        if table.columns[at].multi.is_some() {
                            return Err(CqlError::invalid(format!(
                                "Cannot use selection function {what} on collections"
                            )));
                        }
                        (at, None, name.clone())
                    }
                    _ => {
                        return Err(CqlError::invalid(format!(
                            "{what} takes a column, or an element or field of one"
                        )));
                    }
                };
                let (selector, ty) = if is_ttl {
                    (Selector::Ttl(at, part), CqlType::Int)
                } else {
                    (Selector::WriteTime(at, part), CqlType::Bigint)
                };
                (selector, ty, format!("{what}({shown})"))
            }
            ast::Selector::CountRows => (
                Selector::Aggregate(Aggregate::CountRows, Vec::new(), CqlType::Bigint),
                CqlType::Bigint,
                "count".into(),
            ),
            ast::Selector::Cast(inner, to) => {
                let (inner, from, name) = self.selector(table, inner)?;
                let name = format!("cast({name} as {to})");
                (
                    Selector::Call(Function::Cast(from, to.clone()), vec![inner]),
                    to.clone(),
                    name,
                )
            }
            ast::Selector::Term(term) => {
                let (ty, name) = match term {
                    ast::Term::Constant(constant) => types::natural_type(constant),
                    ast::Term::Hint(ty, _) => (self.resolve_type(ty)?, "(term)".into()),
                    _ => {
                        return Err(CqlError::invalid(
                            "Cannot infer the type of a selected term",
                        ));
                    }
                };
                (Selector::Term(self.term(term, &ty, &name)?), ty, name)
            }
            ast::Selector::Call(function, args) => {
                self.selected_call(table, &function.name, args)?
            }
        })
    }

    fn selected_call(
        &mut self,
        table: &TableSchema,
        function: &str,
        args: &[ast::Selector],
    ) -> Result<(Selector, CqlType, String), CqlError> {
        let lower = function.to_lowercase();
        let mut inner = Vec::with_capacity(args.len());
        let mut arg_types = Vec::with_capacity(args.len());
        let mut names = Vec::with_capacity(args.len());
        for arg in args {
            let (selector, ty, name) = match (arg, Function::argument_hint(&lower)) {
                (ast::Selector::Term(term), Some(hint)) => (
                    Selector::Term(self.term(term, &hint, &lower)?),
                    hint,
                    "?".into(),
                ),
                _ => self.selector(table, arg)?,
            };
            inner.push(selector);
            arg_types.push(ty);
            names.push(name);
        }
        let name = format!("system.{lower}({})", names.join(", "));
        let aggregate = match lower.as_str() {
            "count" => Some(Aggregate::Count),
            "min" => Some(Aggregate::Min),
            "max" => Some(Aggregate::Max),
            "sum" => Some(Aggregate::Sum),
            "avg" => Some(Aggregate::Avg),
            _ => None,
        };
        if let Some(aggregate) = aggregate {
            let [ty] = arg_types.as_slice() else {
                return Err(CqlError::invalid(format!(
                    "Invalid number of arguments in call to function {lower}"
                )));
            };
            if matches!(aggregate, Aggregate::Sum | Aggregate::Avg) && !types::is_numeric(ty) {
                return Err(CqlError::invalid(format!(
                    "Invalid call to function {lower}, none of its type signatures match"
                )));
            }
            let result = if aggregate == Aggregate::Count {
                CqlType::Bigint
            } else {
                ty.clone()
            };
            return Ok((
                Selector::Aggregate(aggregate, inner, ty.clone()),
                result,
                name,
            ));
        }
        if lower == "token" {
            let is_key = |i: usize, s: &Selector| matches!(s, Selector::Column(at) if *at == i);
            if inner.len() != table.partition_key_len
                || !inner.iter().enumerate().all(|(i, s)| is_key(i, s))
            {
                return Err(CqlError::invalid(
                    "token() must be given the partition key's columns",
                ));
            }
            return Ok((
                Selector::Call(
                    Function::Token {
                        is_log: table.is_log,
                    },
                    inner,
                ),
                CqlType::Bigint,
                name,
            ));
        }
        let known: Vec<Option<CqlType>> = arg_types.into_iter().map(Some).collect();
        let (function, result) = Function::resolve(&lower, &known)?;
        Ok((Selector::Call(function, inner), result, name))
    }
}

/// Where a relation stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clause {
    Where,
    If,
}

fn field_in(ty: &CqlType, field: &str) -> Option<(usize, CqlType)> {
    let fields = types::udt_fields(ty)?;
    let at = fields.iter().position(|(n, _)| n == field)?;
    Some((at, fields[at].1.clone()))
}

fn field_of(column: &Column, field: &str) -> Result<(usize, CqlType), CqlError> {
    if types::udt_fields(&column.ty).is_none() {
        return Err(CqlError::invalid(format!(
            "Invalid operation on field {field} of column {}: it is not of a user type",
            column.name
        )));
    }
    field_in(&column.ty, field).ok_or_else(|| {
        CqlError::invalid(format!(
            "UDT column {} does not have a field named {field}",
            column.name
        ))
    })
}

fn assignable(from: &CqlType, to: &CqlType, name: &str) -> Result<(), CqlError> {
    let compatible = from == to
        || matches!(
            (from, to),
            (_, CqlType::Blob)
                | (CqlType::Timeuuid, CqlType::Uuid)
                | (CqlType::Ascii, CqlType::Text)
                | (CqlType::Timestamp | CqlType::Time, CqlType::Bigint)
                | (CqlType::Bigint, CqlType::Counter)
        )
        || to.clone().frozen() == from.clone().frozen();
    if compatible {
        return Ok(());
    }
    Err(CqlError::invalid(format!(
        "Type error: cannot assign result of type {from} to {name} of type {to}"
    )))
}

fn refuse_distinct(table: &TableSchema, selectors: &[Selector]) -> Result<(), CqlError> {
    for selector in selectors {
        if let Selector::Column(at) = selector
            && super::select::is_of_row(table.columns[*at].kind)
        {
            return Err(CqlError::invalid(format!(
                "SELECT DISTINCT queries must only request partition key columns and/or static columns (not {})",
                table.columns[*at].name
            )));
        }
    }
    Ok(())
}

fn group_by(table: &TableSchema, names: &[String]) -> Result<usize, CqlError> {
    for (i, name) in names.iter().enumerate() {
        let at = table.index_of(name).ok_or_else(|| unrecognized(name))?;
        if at != i || at >= table.partition_key_len + table.clustering_key_len {
            return Err(CqlError::invalid(format!(
                "Group by is currently only supported on the columns of the PRIMARY KEY, got {name}"
            )));
        }
    }
    Ok(names.len())
}

/// Refuses a modification that does not say which rows it is of.
fn require_rows(plan: &ModifyPlan) -> Result<(), CqlError> {
    let table = &plan.table;
    let points = plan.restrictions.points();
    let statics_only = plan
        .changes
        .iter()
        .all(|(at, _)| table.columns[*at].kind == ColumnKind::Static);
    let clustered = !plan.restrictions.clustering.is_empty();
    let of_row = |filter: &Filter| match &filter.operand {
        Operand::Column(at) | Operand::Element(at, _) | Operand::Field(at, _) => {
            table.columns[*at].kind != ColumnKind::Static
        }
        Operand::Tuple(_) => true,
    };
    let regular_condition =
        matches!(&plan.condition, Condition::If(filters) if filters.iter().any(of_row));
    if plan.kind != ModifyKind::Insert
        && statics_only
        && clustered
        && !plan.changes.is_empty()
        && !regular_condition
    {
        let verb = if plan.kind == ModifyKind::Update {
            "UPDATE"
        } else {
            "DELETE"
        };
        return Err(CqlError::invalid(format!(
            "Invalid restrictions on clustering columns since the {verb} statement modifies only static columns"
        )));
    }
    if points == table.clustering_key_len {
        return Ok(());
    }
    let missing = &table.clustering_key()[points.min(table.clustering_key_len - 1)].name;
    match plan.kind {
        ModifyKind::Delete
            if plan.changes.is_empty() && matches!(plan.condition, Condition::None) =>
        {
            Ok(())
        }
        ModifyKind::Delete if plan.changes.is_empty() => Err(CqlError::invalid(
            "DELETE statements must restrict all PRIMARY KEY columns with equality relations in order to delete non \
             static columns",
        )),
        ModifyKind::Insert
            if plan.restrictions.clustering.is_empty()
                && statics_only
                && !plan.changes.is_empty() =>
        {
            Ok(())
        }
        ModifyKind::Delete
            if plan.restrictions.clustering.is_empty() && statics_only && regular_condition =>
        {
            Err(CqlError::invalid(
                "DELETE statements must restrict all PRIMARY KEY columns with equality relations in order to use IF \
                 condition on non static columns",
            ))
        }
        ModifyKind::Update | ModifyKind::Delete
            if plan.restrictions.clustering.is_empty() && statics_only && !regular_condition =>
        {
            Ok(())
        }
        ModifyKind::Delete => {
            let changed = plan
                .changes
                .iter()
                .map(|(at, _)| &table.columns[*at])
                .find(|c| c.kind == ColumnKind::Regular);
            let changed = changed.map_or("", |c| c.name.as_str());
            Err(CqlError::invalid(format!(
                "Primary key column '{missing}' must be specified in order to modify column '{changed}'"
            )))
        }
        _ => Err(CqlError::invalid(format!(
            "Missing mandatory PRIMARY KEY part {missing}"
        ))),
    }
}
