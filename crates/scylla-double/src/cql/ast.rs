//! Statements as written: names are folded (unquoted ones to lower case), nothing is resolved.
//!
//! The shapes follow ScyllaDB's grammar (`cql3/Cql.g`) and its CQL reference.

pub use crate::types::Constant;
use crate::types::CqlType;

/// A statement with its bind markers.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The statement.
    pub statement: Statement,
    /// The bind markers in the order they are bound: `None` for `?`, the name for `:name`. A name that
    /// is used twice is one marker, as in ScyllaDB
    /// (`cql_duplicate_bind_variable_names_refer_to_same_variable`).
    pub binds: Vec<Option<String>>,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "one value a request; a box would only be in the way"
)]
pub enum Statement {
    /// `CREATE KEYSPACE`.
    CreateKeyspace(CreateKeyspace),
    /// `ALTER KEYSPACE`.
    AlterKeyspace(AlterKeyspace),
    /// `DROP KEYSPACE`.
    DropKeyspace {
        /// Its name.
        name: String,
        /// `IF EXISTS`.
        if_exists: bool,
    },
    /// `CREATE TABLE`.
    CreateTable(CreateTable),
    /// `ALTER TABLE`.
    AlterTable(AlterTable),
    /// `DROP TABLE`.
    DropTable {
        /// Its name.
        table: QualifiedName,
        /// `IF EXISTS`.
        if_exists: bool,
    },
    /// `CREATE TYPE`.
    CreateType(CreateType),
    /// `ALTER TYPE`.
    AlterType(AlterType),
    /// `DROP TYPE`.
    DropType {
        /// Its name.
        name: QualifiedName,
        /// `IF EXISTS`.
        if_exists: bool,
    },
    /// `USE`: a keyspace.
    Use(String),
    /// `TRUNCATE`.
    Truncate(QualifiedName),
    /// `INSERT`.
    Insert(Insert),
    /// `INSERT … JSON`.
    InsertJson(InsertJson),
    /// `UPDATE`.
    Update(Update),
    /// `DELETE`.
    Delete(Delete),
    /// `BEGIN … APPLY BATCH`.
    Batch(Batch),
    /// `SELECT`.
    Select(Select),
    /// `DESCRIBE`.
    Describe(Describe),
    /// CQL that this node knows but does not do.
    Unsupported {
        /// What it is, e.g. `CREATE INDEX`.
        what: String,
    },
}

/// A name with an optional keyspace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct QualifiedName {
    /// What stands before the dot.
    pub keyspace: Option<String>,
    /// The name.
    pub name: String,
}

/// A type as written. A user-defined type is only a name until [`TypeName::resolve`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TypeName {
    /// A native type.
    Native(CqlType),
    /// `list<…>`.
    List(Box<TypeName>),
    /// `set<…>`.
    Set(Box<TypeName>),
    /// `map<…, …>`.
    Map(Box<TypeName>, Box<TypeName>),
    /// `tuple<…>`.
    Tuple(Vec<TypeName>),
    /// `vector<…, n>`.
    Vector(Box<TypeName>, i64),
    /// `frozen<…>`.
    Frozen(Box<TypeName>),
    /// A user-defined type.
    User(QualifiedName),
}

/// The options after `WITH`, in the order given; ScyllaDB refuses one given twice, and so does the
/// parser.
pub type Properties = Vec<(String, PropertyValue)>;

/// The value of an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PropertyValue {
    /// A string without its quotes, or a number, boolean or word as written.
    Text(String),
    /// A map of such.
    Map(Vec<(String, String)>),
}

/// `DESCRIBE`, or `DESC`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Describe {
    /// What.
    pub what: Described,
    /// `WITH INTERNALS`: what makes the same again, identity and dropped columns included.
    pub internals: bool,
    /// `AND PASSWORDS`.
    pub passwords: bool,
}

/// What is described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Described {
    /// `CLUSTER`.
    Cluster,
    /// `[FULL] SCHEMA`: everything that clients made.
    Schema {
        /// And what the node made.
        full: bool,
    },
    /// `KEYSPACES`: their names.
    Keyspaces,
    /// `[ONLY] KEYSPACE [name]`.
    Keyspace {
        /// Which; the connection's when it does not say.
        name: Option<String>,
        /// Without what is in it.
        only: bool,
    },
    /// `TABLES`: their names.
    Tables,
    /// `TYPES`: their names.
    Types,
    /// `FUNCTIONS`: their names.
    Functions,
    /// `AGGREGATES`: their names.
    Aggregates,
    /// One element of a keyspace.
    Element(ElementKind, QualifiedName),
    /// A keyspace, or whatever of a keyspace has the name.
    Generic(QualifiedName),
}

/// A kind of element of a keyspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementKind {
    /// A table.
    Table,
    /// A secondary index.
    Index,
    /// A materialized view.
    View,
    /// A user-defined type.
    Type,
    /// A function.
    Function,
    /// An aggregate.
    Aggregate,
}

/// `CREATE KEYSPACE`.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateKeyspace {
    /// Its name.
    pub name: String,
    /// `IF NOT EXISTS`.
    pub if_not_exists: bool,
    /// `replication`, `durable_writes`, `tablets`, …
    pub properties: Properties,
}

/// `ALTER KEYSPACE`.
#[derive(Debug, Clone, PartialEq)]
pub struct AlterKeyspace {
    /// Its name.
    pub name: String,
    /// `IF EXISTS`.
    pub if_exists: bool,
    /// The options to change.
    pub properties: Properties,
}

/// A column of `CREATE TABLE` or `ALTER TABLE … ADD`.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnDef {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: TypeName,
    /// `STATIC`.
    pub is_static: bool,
}

/// A `PRIMARY KEY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrimaryKey {
    /// The partition key's columns; never empty.
    pub partition: Vec<String>,
    /// The clustering key's columns.
    pub clustering: Vec<String>,
}

/// `CREATE TABLE`.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateTable {
    /// Its name.
    pub table: QualifiedName,
    /// `IF NOT EXISTS`.
    pub if_not_exists: bool,
    /// Its columns in the order given, key columns too.
    pub columns: Vec<ColumnDef>,
    /// Every `PRIMARY KEY` given, beside a column or by itself: exactly one is right.
    pub primary_keys: Vec<PrimaryKey>,
    /// `CLUSTERING ORDER BY`: the columns, and whether descending.
    pub clustering_order: Vec<(String, Order)>,
    /// `COMPACT STORAGE`.
    pub compact_storage: bool,
    /// The other options, `cdc` among them.
    pub properties: Properties,
}

/// `ALTER TABLE`.
#[derive(Debug, Clone, PartialEq)]
pub struct AlterTable {
    /// Its name.
    pub table: QualifiedName,
    /// What to change.
    pub action: AlterTableAction,
}

/// What `ALTER TABLE` changes.
#[derive(Debug, Clone, PartialEq)]
pub enum AlterTableAction {
    /// `ADD`: new columns.
    Add(Vec<ColumnDef>),
    /// `ALTER c TYPE t`.
    Type {
        /// The column.
        column: String,
        /// Its new type.
        ty: TypeName,
    },
    /// `DROP`.
    Drop {
        /// The columns.
        columns: Vec<String>,
        /// `USING TIMESTAMP`, µs since the epoch.
        timestamp: Option<Term>,
    },
    /// `RENAME a TO b AND …`.
    Rename(Vec<(String, String)>),
    /// `WITH`: options.
    With(Properties),
}

/// `CREATE TYPE`.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateType {
    /// Its name.
    pub name: QualifiedName,
    /// `IF NOT EXISTS`.
    pub if_not_exists: bool,
    /// Its fields, in order; never empty.
    pub fields: Vec<(String, TypeName)>,
}

/// `ALTER TYPE`.
#[derive(Debug, Clone, PartialEq)]
pub struct AlterType {
    /// Its name.
    pub name: QualifiedName,
    /// What to change.
    pub action: AlterTypeAction,
}

/// What `ALTER TYPE` changes.
#[derive(Debug, Clone, PartialEq)]
pub enum AlterTypeAction {
    /// `ADD`: a new field at the end.
    Add(String, TypeName),
    /// `ALTER f TYPE t`.
    Type(String, TypeName),
    /// `RENAME a TO b AND …`.
    Rename(Vec<(String, String)>),
}

/// `ASC` or `DESC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Ascending, the default.
    Asc,
    /// Descending.
    Desc,
}

/// What follows `USING`. A term is an integer or a bind marker; the timeout a duration or a marker.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Using {
    /// µs since the epoch.
    pub timestamp: Option<Term>,
    /// Seconds.
    pub ttl: Option<Term>,
    /// A duration. This node has no timeouts to change; it is checked and not used.
    pub timeout: Option<Term>,
}

/// `INSERT`.
#[derive(Debug, Clone, PartialEq)]
pub struct Insert {
    /// The table.
    pub table: QualifiedName,
    /// The columns. Their number and that of the values may differ, which is for the engine to refuse
    /// (`Unmatched column names/values`).
    pub columns: Vec<String>,
    /// Their values.
    pub values: Vec<Term>,
    /// `IF NOT EXISTS`.
    pub if_not_exists: bool,
    /// `USING`.
    pub using: Using,
}

/// `INSERT … JSON`.
#[derive(Debug, Clone, PartialEq)]
pub struct InsertJson {
    /// The table.
    pub table: QualifiedName,
    /// The document: a string or a bind marker.
    pub document: Term,
    /// `DEFAULT UNSET`, rather than `DEFAULT NULL`: what becomes of columns that it does not name.
    pub default_unset: bool,
    /// `IF NOT EXISTS`.
    pub if_not_exists: bool,
    /// `USING`.
    pub using: Using,
}

/// `UPDATE`.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// The table.
    pub table: QualifiedName,
    /// `USING`.
    pub using: Using,
    /// `SET`: never empty.
    pub assignments: Vec<Assignment>,
    /// `WHERE`: never empty.
    pub restrictions: Vec<Relation>,
    /// `IF`.
    pub condition: Condition,
}

/// `DELETE`.
#[derive(Debug, Clone, PartialEq)]
pub struct Delete {
    /// The table.
    pub table: QualifiedName,
    /// What to delete; empty: rows.
    pub selection: Vec<Deletion>,
    /// `USING`; never a TTL.
    pub using: Using,
    /// `WHERE`: never empty.
    pub restrictions: Vec<Relation>,
    /// `IF`.
    pub condition: Condition,
}

/// An assignment of `UPDATE … SET`.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// The column.
    pub column: String,
    /// What is done to it.
    pub operation: AssignmentOperation,
}

/// What is done to a column.
#[derive(Debug, Clone, PartialEq)]
pub enum AssignmentOperation {
    /// `c = v`.
    Set(Term),
    /// `c = c + v`: a collection or a counter.
    Add(Term),
    /// `c = v + c`, of a list.
    Prepend(Term),
    /// `c = c - v`.
    Subtract(Term),
    /// `c[k] = v`.
    SetElement {
        /// A key of a map, an index of a list.
        key: Term,
        /// The value; null deletes.
        value: Term,
    },
    /// `c[SCYLLA_TIMEUUID_LIST_INDEX(k)] = v`: a list's element by its timeuuid, which is how a CDC
    /// log is replayed.
    SetListElement {
        /// A timeuuid.
        key: Term,
        /// The value; null deletes.
        value: Term,
    },
    /// `c.f = v`.
    SetField {
        /// The field of the user-defined type.
        field: String,
        /// The value; null deletes.
        value: Term,
    },
}

/// What a `DELETE` names.
#[derive(Debug, Clone, PartialEq)]
pub enum Deletion {
    /// A column.
    Column(String),
    /// `c[k]`.
    Element {
        /// The column.
        column: String,
        /// Key of a map, value of a set, index of a list.
        key: Term,
    },
    /// `c.f`.
    Field {
        /// The column.
        column: String,
        /// The field.
        field: String,
    },
}

/// When a change is made.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// Always.
    None,
    /// `IF EXISTS`.
    Exists,
    /// `IF … AND …`: never empty.
    If(Vec<Relation>),
}

/// A batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Which kind.
    pub kind: BatchKind,
    /// `USING`; a TTL is for the engine to refuse.
    pub using: Using,
    /// The statements, each `INSERT`, `UPDATE` or `DELETE`.
    pub statements: Vec<Statement>,
}

/// The kinds of batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchKind {
    /// All or nothing; the default.
    Logged,
    /// No such promise.
    Unlogged,
    /// Of counter updates.
    Counter,
}

/// `SELECT`.
#[derive(Debug, Clone, PartialEq)]
pub struct Select {
    /// The table.
    pub table: QualifiedName,
    /// `DISTINCT`.
    pub distinct: bool,
    /// `JSON`.
    pub json: bool,
    /// What is selected; `None` is `*`.
    pub selection: Option<Vec<SelectItem>>,
    /// `WHERE`.
    pub restrictions: Vec<Relation>,
    /// `GROUP BY`: columns.
    pub group_by: Vec<String>,
    /// `ORDER BY`.
    pub order_by: Vec<(String, Order)>,
    /// `PER PARTITION LIMIT`: an integer or a marker.
    pub per_partition_limit: Option<Term>,
    /// `LIMIT`: an integer or a marker.
    pub limit: Option<Term>,
    /// `ALLOW FILTERING`.
    pub allow_filtering: bool,
    /// `BYPASS CACHE`.
    pub bypass_cache: bool,
    /// `USING TIMEOUT`: a duration or a marker.
    pub timeout: Option<Term>,
}

/// One selected value.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectItem {
    /// What.
    pub selector: Selector,
    /// `AS`.
    pub alias: Option<String>,
}

/// What is selected.
#[derive(Debug, Clone, PartialEq)]
pub enum Selector {
    /// A column.
    Column(String),
    /// `s.f`, of a user-defined type.
    Field(Box<Selector>, String),
    /// `s[k]`, of a map, set or list.
    Element(Box<Selector>, Term),
    /// `writetime(c)`, or of an element `c[k]` or field `c.f`.
    WriteTime(Box<Selector>),
    /// `ttl(c)`, or of an element `c[k]` or field `c.f`.
    Ttl(Box<Selector>),
    /// `count(*)`. `count(1)` is a call.
    CountRows,
    /// A function or an aggregate of columns and constants, also `token(a, b)`.
    Call(QualifiedName, Vec<Selector>),
    /// `cast(s AS t)`.
    Cast(Box<Selector>, CqlType),
    /// A constant, a marker or a type hint.
    Term(Term),
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Term {
    /// A bind marker, by its place in [`Parsed::binds`].
    Bind(usize),
    /// A constant.
    Constant(Constant),
    /// `[…]`.
    List(Vec<Term>),
    /// `{…}`; an empty one may mean a map.
    Set(Vec<Term>),
    /// `{k: v, …}`.
    Map(Vec<(Term, Term)>),
    /// `{field: value, …}`, of a user-defined type.
    Udt(Vec<(String, Term)>),
    /// `(…)`.
    Tuple(Vec<Term>),
    /// `f(…)`.
    Call(QualifiedName, Vec<Term>),
    /// `(type) value`.
    Hint(TypeName, Box<Term>),
}

/// A comparison of `WHERE` or `IF`.
#[derive(Debug, Clone, PartialEq)]
pub struct Relation {
    /// What is compared.
    pub left: RelationLeft,
    /// How.
    pub operator: Operator,
    /// With what.
    pub right: RelationRight,
}

/// What is compared.
#[derive(Debug, Clone, PartialEq)]
pub enum RelationLeft {
    /// A column.
    Column(String),
    /// `c[k]`.
    Element(String, Term),
    /// `c.f`, only in `IF`.
    Field(String, String),
    /// `(a, b)`.
    Tuple(Vec<String>),
    /// `token(a, b)`.
    Token(Vec<String>),
}

/// What it is compared with.
#[derive(Debug, Clone, PartialEq)]
pub enum RelationRight {
    /// One value. With `IN` it is a list of them: a bind marker (`c IN ?`).
    One(Term),
    /// `IN (…)`; may be empty.
    Many(Vec<Term>),
    /// `IS NOT NULL`.
    NotNull,
}

/// How a relation compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `=`
    Eq,
    /// `!=`
    Ne,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
    /// `IN`
    In,
    /// `NOT IN`
    NotIn,
    /// `CONTAINS`
    Contains,
    /// `CONTAINS KEY`
    ContainsKey,
    /// `LIKE`
    Like,
    /// `IS NOT`, always with `NULL`.
    IsNot,
}
