//! `DESCRIBE`: the schema as statements that make it.
//!
//! What is listed, in which order and how it is written: ScyllaDB `cql3/statements/describe_statement.cc`,
//! `schema/schema.cc` (`get_create_statement`, `schema_properties`), `data_dictionary.cc`, `types.cc`.

use std::{collections::BTreeMap, fmt::Write as _};

use bytes::Bytes;

use super::{
    ColumnSpec, State,
    cdc::{self, log_name},
    error::CqlError,
    names::is_system,
    rows::Rows,
    schema::{Column, KeyspaceSchema, Schema, TableSchema, UserType},
    storage::RingKey,
    token, types,
};
use crate::{
    cql::ast::{Describe, Described, ElementKind, QualifiedName},
    types::{CqlType, quoted},
};

const SNITCH: &str = "org.apache.cassandra.locator.SimpleSnitch";
const PARTITIONER: &str = "org.apache.cassandra.dht.Murmur3Partitioner";

/// One element of the schema.
struct Item {
    keyspace: String,
    kind: &'static str,
    name: String,
    /// What makes it; none in a listing.
    statement: Option<String>,
}

impl Item {
    fn new(keyspace: &str, kind: &'static str, name: &str, statement: Option<String>) -> Self {
        Self {
            keyspace: keyspace.into(),
            kind,
            name: name.into(),
            statement,
        }
    }
}

fn spec(name: &str, ty: CqlType) -> ColumnSpec {
    ColumnSpec {
        keyspace: "system".into(),
        table: "describe".into(),
        name: name.into(),
        ty,
    }
}

/// The columns of the answer, as far as they can be told before it is known who asks.
pub(crate) fn columns(describe: &Describe) -> Vec<ColumnSpec> {
    let names: &[&str] = match &describe.what {
        Described::Cluster => &["cluster", "partitioner", "snitch"],
        Described::Keyspaces
        | Described::Tables
        | Described::Types
        | Described::Functions
        | Described::Aggregates => &["keyspace_name", "type", "name"],
        _ => &["keyspace_name", "type", "name", "create_statement"],
    };
    names.iter().map(|name| spec(name, CqlType::Text)).collect()
}

/// Answers a `DESCRIBE`; `session` is the connection's keyspace.
pub(crate) fn describe(
    state: &State,
    describe: &Describe,
    session: Option<&str>,
    vnodes: u32,
) -> Result<(Vec<ColumnSpec>, Rows), CqlError> {
    let mut columns = columns(describe);
    let schema = &state.schema;
    let internals = describe.internals;
    if describe.passwords && !matches!(describe.what, Described::Schema { .. }) {
        return Err(CqlError::invalid(
            "Option WITH PASSWORDS is only allowed with DESC SCHEMA",
        ));
    }
    let items = match &describe.what {
        Described::Cluster => {
            let mut row = vec![
                local(state, "cluster_name").or_else(|| Some(Bytes::from_static(b"scylla-double"))),
                Some(Bytes::from_static(PARTITIONER.as_bytes())),
                Some(Bytes::from_static(SNITCH.as_bytes())),
            ];
            let of_vnodes = |name: &&str| {
                let keyspace = schema.keyspaces.get(*name);
                !is_system(name) && keyspace.is_some_and(|k| k.tablets.is_none())
            };
            if session.filter(of_vnodes).is_some() {
                let (ty, value) = ownership(state, vnodes);
                columns.push(spec("range_ownership", ty));
                row.push(Some(value));
            }
            return Ok((columns, [row].into_iter().collect()));
        }
        Described::Schema { full } => schema
            .keyspaces
            .values()
            .filter(|k| *full || !k.internal)
            .flat_map(|k| all_of(schema, k, internals))
            .collect(),
        Described::Keyspaces => schema
            .keyspaces
            .values()
            .map(|k| Item::new(&k.name, "keyspace", &k.name, None))
            .collect(),
        Described::Keyspace { name, only } => {
            let keyspace = keyspace(schema, name.as_deref().or(session).unwrap_or_default())?;
            if *only {
                vec![keyspace_item(keyspace)]
            } else {
                all_of(schema, keyspace, internals)
            }
        }
        Described::Tables => listed(schema, session)?
            .into_iter()
            .flat_map(|k| {
                let shown = k.tables.values().filter(|t| !is_active_log(schema, t));
                shown.map(|t| Item::new(&k.name, "table", &t.name, None))
            })
            .collect(),
        Described::Types => listed(schema, session)?
            .into_iter()
            .flat_map(|k| {
                sorted_types(k)
                    .into_iter()
                    .map(|t| Item::new(&k.name, "type", &t.name, None))
            })
            .collect(),
        // There are none.
        Described::Functions | Described::Aggregates => {
            listed(schema, session)?;
            Vec::new()
        }
        Described::Element(kind, name) => {
            let keyspace_name = name.keyspace.as_deref().or(session).ok_or_else(|| {
                CqlError::invalid("No keyspace specified and no current keyspace")
            })?;
            let keyspace = keyspace(schema, keyspace_name)?;
            element(schema, keyspace, *kind, &name.name, internals)?
        }
        Described::Generic(name) => generic(schema, name, session, internals)?,
    };
    let rows = items.into_iter().map(|item| {
        let text = |text: String| Some(Bytes::from(text));
        let mut row = vec![
            text(quoted(&item.keyspace)),
            text(item.kind.to_owned()),
            text(quoted(&item.name)),
        ];
        row.extend(item.statement.map(text));
        row
    });
    Ok((columns, rows.collect()))
}

/// A column of the node's own row in `system.local`.
fn local(state: &State, column: &str) -> Option<Bytes> {
    let table = state.schema.table("system", "local")?;
    let key = RingKey::new(table, &[Bytes::from_static(b"local")]);
    let stored = state.data.get(&table.id)?.get(&key)?;
    let cell = stored
        .data
        .rows
        .values()
        .next()?
        .cell(table.column(column)?.id)?;
    match cell {
        super::cell::CellData::Atomic(cell) => cell.value.clone(),
        super::cell::CellData::Multi(_) => None,
    }
}

/// Who has which part of the ring: the end of each range, and all nodes that have a copy.
fn ownership(state: &State, vnodes: u32) -> (CqlType, Bytes) {
    let address = local(state, "rpc_address").map_or_else(String::new, |bytes| {
        if let Ok(v4) = <[u8; 4]>::try_from(&bytes[..]) {
            std::net::Ipv4Addr::from(v4).to_string()
        } else if let Ok(v6) = <[u8; 16]>::try_from(&bytes[..]) {
            std::net::Ipv6Addr::from(v6).to_string()
        } else {
            String::new()
        }
    });
    let nodes = types::collection([Bytes::from(address)].iter());
    let mut ends: Vec<Bytes> = token::range_ends(vnodes)
        .into_iter()
        .map(|end| Bytes::from(end.to_string()))
        .collect();
    ends.sort();
    let ty = CqlType::Map {
        key: Box::new(CqlType::Text),
        value: Box::new(types::list_of(&CqlType::Text)),
        frozen: true,
    };
    (ty, types::map(ends.iter().map(|end| (end, &nodes))))
}

fn keyspace<'s>(schema: &'s Schema, name: &str) -> Result<&'s KeyspaceSchema, CqlError> {
    let found = schema.keyspaces.get(name);
    found
        .map(|k| &**k)
        .ok_or_else(|| CqlError::invalid(format!("'{name}' not found in keyspaces")))
}

/// The keyspaces that a listing is of: the session's, or all.
fn listed<'s>(
    schema: &'s Schema,
    session: Option<&str>,
) -> Result<Vec<&'s KeyspaceSchema>, CqlError> {
    Ok(match session {
        Some(name) => vec![keyspace(schema, name)?],
        None => schema.keyspaces.values().map(|k| &**k).collect(),
    })
}

fn not_found(what: &str, name: &str, keyspace: &str) -> CqlError {
    CqlError::invalid(format!(
        "{what} '{name}' not found in keyspace '{keyspace}'"
    ))
}

fn element(
    schema: &Schema,
    keyspace: &KeyspaceSchema,
    kind: ElementKind,
    name: &str,
    internals: bool,
) -> Result<Vec<Item>, CqlError> {
    let missing = |what: &str| not_found(what, name, &keyspace.name);
    match kind {
        ElementKind::Table => {
            let table = keyspace.tables.get(name);
            let table = table.ok_or_else(|| missing("Table"))?;
            Ok(table_items(schema, table, internals))
        }
        ElementKind::Type => {
            let ty = keyspace.types.get(name);
            Ok(vec![type_item(ty.ok_or_else(|| missing("Type"))?)])
        }
        ElementKind::Index => Err(CqlError::invalid(format!(
            "Table for existing index '{name}' not found in '{}'",
            keyspace.name
        ))),
        ElementKind::View => Err(missing("Materialized view")),
        ElementKind::Function => Err(missing("Function")),
        ElementKind::Aggregate => Err(missing("Aggregate")),
    }
}

fn generic(
    schema: &Schema,
    name: &QualifiedName,
    session: Option<&str>,
    internals: bool,
) -> Result<Vec<Item>, CqlError> {
    let unknown = || CqlError::invalid(format!("'{}' not found in keyspaces", name.name));
    if name.keyspace.is_none()
        && let Some(keyspace) = schema.keyspaces.get(&name.name)
    {
        return Ok(all_of(schema, keyspace, internals));
    }
    let keyspace_name = name.keyspace.as_deref().or(session).ok_or_else(unknown)?;
    let keyspace = schema.keyspaces.get(keyspace_name).ok_or_else(unknown)?;
    if let Some(table) = keyspace.tables.get(&name.name) {
        return Ok(table_items(schema, table, internals));
    }
    if let Some(ty) = keyspace.types.get(&name.name) {
        return Ok(vec![type_item(ty)]);
    }
    Err(CqlError::invalid(format!(
        "'{}' not found in keyspace '{keyspace_name}'",
        name.name
    )))
}

/// A keyspace and everything in it, each after what it needs.
fn all_of(schema: &Schema, keyspace: &KeyspaceSchema, internals: bool) -> Vec<Item> {
    let mut items = vec![keyspace_item(keyspace)];
    items.extend(sorted_types(keyspace).into_iter().map(type_item));
    for table in keyspace.tables.values() {
        if !is_active_log(schema, table) {
            items.extend(table_items(schema, table, internals));
        }
    }
    items
}

fn is_active_log(schema: &Schema, table: &TableSchema) -> bool {
    cdc::base_of(schema, table).is_some_and(TableSchema::cdc_enabled)
}

/// A table, and for one with CDC what its log's options are: the log itself is made with it.
fn table_items(schema: &Schema, table: &TableSchema, internals: bool) -> Vec<Item> {
    let mut statement = create_table(table, internals);
    if is_active_log(schema, table) {
        statement = format!(
            "/* Do NOT execute this statement! It's only for informational purposes.\n   A CDC log table is created \
             automatically when creating the base with CDC\n   enabled option or creating the vector index on the base \
             table's vector column.\n\n{statement}\n*/"
        );
    }
    let item = |table: &TableSchema, statement| {
        Item::new(&table.keyspace, "table", &table.name, Some(statement))
    };
    let mut items = vec![item(table, statement)];
    if table.cdc_enabled()
        && let Some(log) = schema.table(&table.keyspace, &log_name(&table.name))
    {
        let name = full_name(&log.keyspace, &log.name);
        let statement = format!("ALTER TABLE {name} WITH {};\n", properties(log));
        items.push(item(log, statement));
    }
    items
}

fn full_name(keyspace: &str, name: &str) -> String {
    format!("{}.{}", quoted(keyspace), quoted(name))
}

fn keyspace_item(keyspace: &KeyspaceSchema) -> Item {
    let mut statement = format!(
        "CREATE KEYSPACE {} WITH replication = {{",
        quoted(&keyspace.name)
    );
    put_map(&mut statement, keyspace.replication.iter());
    let _ = write!(
        statement,
        "}} AND durable_writes = {}",
        keyspace.durable_writes
    );
    statement.push_str(&match keyspace.tablets {
        None => " AND tablets = {'enabled': false};".to_owned(),
        Some(0) => " AND tablets = {'enabled': true};".to_owned(),
        Some(initial) => format!(" AND tablets = {{'enabled': true, 'initial': {initial}}};"),
    });
    Item::new(&keyspace.name, "keyspace", &keyspace.name, Some(statement))
}

fn type_item(ty: &UserType) -> Item {
    let fields = ty
        .fields
        .iter()
        .map(|(name, ty)| format!("    {} {ty}", quoted(name)));
    let fields: Vec<String> = fields.collect();
    let statement = format!(
        "CREATE TYPE {} (\n{}\n);",
        full_name(&ty.keyspace, &ty.name),
        fields.join(",\n")
    );
    Item::new(&ty.keyspace, "type", &ty.name, Some(statement))
}

/// User-defined types, each after those that it is made of.
fn sorted_types(keyspace: &KeyspaceSchema) -> Vec<&UserType> {
    fn add<'k>(keyspace: &'k KeyspaceSchema, ty: &'k UserType, sorted: &mut Vec<&'k UserType>) {
        if sorted.iter().any(|t| t.name == ty.name) {
            return;
        }
        // A type is made of older ones only, so that this ends.
        for (_, field) in &ty.fields {
            for other in keyspace
                .types
                .values()
                .filter(|other| other.name != ty.name)
            {
                let is_part =
                    |t: &CqlType| matches!(t, CqlType::Udt { name, .. } if *name == other.name);
                if field.any(&is_part) {
                    add(keyspace, other, sorted);
                }
            }
        }
        sorted.push(ty);
    }
    let mut sorted = Vec::with_capacity(keyspace.types.len());
    for ty in keyspace.types.values() {
        add(keyspace, ty, &mut sorted);
    }
    sorted
}

fn column(column: &Column) -> String {
    let is_static = if column.kind == super::ColumnKind::Static {
        " STATIC"
    } else {
        ""
    };
    format!("{} {}{is_static}", quoted(&column.name), column.ty)
}

fn names(columns: &[Column]) -> String {
    let names: Vec<String> = columns.iter().map(|c| quoted(&c.name)).collect();
    names.join(", ")
}

fn create_table(table: &TableSchema, internals: bool) -> String {
    let name = full_name(&table.keyspace, &table.name);
    // The order in which they were dropped last comes first, as ScyllaDB's map has it.
    let dropped = || table.dropped.iter().rev();
    let mut out = format!("CREATE TABLE {name} (");
    for c in &table.columns {
        // One that was dropped and added again is told as dropped and added again.
        if !internals || !table.dropped.contains_key(&c.name) {
            let _ = write!(out, "\n    {},", column(c));
        }
    }
    if internals {
        for (name, column) in dropped() {
            let _ = write!(out, "\n    {} {},", quoted(name), column.ty);
        }
    }
    let partition = names(table.partition_key());
    let partition = if table.partition_key_len > 1 {
        format!("({partition})")
    } else {
        partition
    };
    let _ = write!(out, "\n    PRIMARY KEY ({partition}");
    if table.has_clustering() {
        let _ = write!(out, ", {}", names(table.clustering_key()));
    }
    out.push_str(")\n) WITH ");
    if internals {
        let _ = write!(out, "ID = {}\nAND ", table.id);
    }
    if table.has_clustering() {
        let order: Vec<String> = table
            .clustering_key()
            .iter()
            .map(|c| {
                format!(
                    "{} {}",
                    quoted(&c.name),
                    if c.descending { "DESC" } else { "ASC" }
                )
            })
            .collect();
        let _ = write!(out, "CLUSTERING ORDER BY ({})\n    AND ", order.join(", "));
    }
    let _ = writeln!(out, "{};", properties(table));
    if internals {
        for (dropped_name, dropped) in dropped() {
            let quoted_name = quoted(dropped_name);
            let _ = write!(
                out,
                "\nALTER TABLE {name} DROP {quoted_name} USING TIMESTAMP {};",
                dropped.at
            );
            if let Some(back) = table.column(dropped_name) {
                let _ = write!(out, "\nALTER TABLE {name} ADD {};", column(back));
            }
        }
    }
    out
}

fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

fn put_map<'a>(out: &mut String, pairs: impl Iterator<Item = (&'a String, &'a String)>) {
    for (i, (name, value)) in pairs.enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let _ = write!(out, "{comma}{}: {}", text(name), text(value));
    }
}

fn map(pairs: &BTreeMap<String, String>) -> String {
    let mut out = "{".to_owned();
    // The class, without its package, is what the rest is about.
    let class = pairs.iter().filter(|(name, _)| *name == "class");
    let rest = pairs.iter().filter(|(name, _)| *name != "class");
    put_map(&mut out, class.chain(rest));
    out.push('}');
    out
}

fn properties(table: &TableSchema) -> String {
    let options = &table.options;
    let empty = BTreeMap::new();
    let named = |name: &str| map(options.maps.get(name).unwrap_or(&empty));
    let value = |name: &str, default: &str| {
        let given = options.values.get(name);
        given.cloned().unwrap_or_else(|| default.to_owned())
    };
    let float = |name: &str, default: f64| {
        let given = options.values.get(name).and_then(|v| v.parse().ok());
        given.unwrap_or(default).to_string()
    };
    let mut all = vec![
        format!(
            "bloom_filter_fp_chance = {}",
            float("bloom_filter_fp_chance", 0.01)
        ),
        format!("caching = {}", named("caching")),
        format!("comment = {}", text(&options.comment)),
        format!("compaction = {}", named("compaction")),
        format!("compression = {}", named("compression")),
        format!("crc_check_chance = {}", float("crc_check_chance", 1.0)),
        format!("default_time_to_live = {}", options.default_ttl),
        format!("gc_grace_seconds = {}", options.gc_grace_seconds),
        format!(
            "max_index_interval = {}",
            value("max_index_interval", "2048")
        ),
        format!(
            "memtable_flush_period_in_ms = {}",
            value("memtable_flush_period_in_ms", "0")
        ),
        format!(
            "min_index_interval = {}",
            value("min_index_interval", "128")
        ),
        format!(
            "speculative_retry = {}",
            text(&value("speculative_retry", "99.0PERCENTILE"))
        ),
    ];
    if let Some(hints) = options
        .maps
        .get("tablets")
        .filter(|hints| !hints.is_empty())
    {
        all.push(format!("tablets = {}", map(hints)));
    }
    if let Some(cdc) = &options.cdc {
        all.push(format!("cdc = {}", map(&cdc.to_map())));
    }
    for extension in ["per_partition_rate_limit", "tombstone_gc"] {
        if let Some(pairs) = options.maps.get(extension) {
            all.push(format!("{extension} = {}", map(pairs)));
        }
    }
    all.join("\n    AND ")
}
