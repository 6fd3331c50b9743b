//! The node's own tables: what `system.local`, `system.peers` and `system_schema.*` tell clients.
//!
//! They are ordinary tables of the engine, kept as the schema has it. Columns and options are those of
//! ScyllaDB 2025 (`db/system_keyspace.cc`, `db/schema_tables.cc`), as far as clients read them.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bytes::{BufMut, Bytes};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::engine::{
    Column, ColumnKind, CqlError, Engine, KeyspaceSchema, Schema, TableSchema, UserType,
    timeuuid_at,
};

/// `cql_version`.
pub(crate) const CQL_VERSION: &str = "3.3.1";
/// The partitioner of every table that is not a log.
pub(crate) const PARTITIONER: &str = "org.apache.cassandra.dht.Murmur3Partitioner";
/// The partitioner of a CDC log, where the partition key starts with its token.
const LOG_PARTITIONER: &str = "com.scylladb.dht.CDCPartitioner";
/// What ScyllaDB says it is to Cassandra's clients.
const RELEASE_VERSION: &str = "3.0.8";

const LOCAL: &str = "CREATE TABLE system.local (
    key text PRIMARY KEY, bootstrapped text, broadcast_address inet, cluster_name text,
    cql_version text, data_center text, gossip_generation int, host_id uuid, listen_address inet,
    native_protocol_version text, partitioner text, rack text, release_version text,
    rpc_address inet, schema_version uuid, supported_features text, thrift_version text,
    tokens set<text>, truncated_at map<uuid, blob>)";

const OPTIONS: &str = "bloom_filter_fp_chance double, caching frozen<map<text, text>>, comment text,
    compaction frozen<map<text, text>>, compression frozen<map<text, text>>, crc_check_chance double,
    dclocal_read_repair_chance double, default_time_to_live int,
    extensions frozen<map<text, blob>>, gc_grace_seconds int, id uuid,
    max_index_interval int, memtable_flush_period_in_ms int, min_index_interval int,
    read_repair_chance double, speculative_retry text";

/// Every table that is not the engine's own (streams, generations), in order of creation.
fn ddl() -> Vec<String> {
    let mut all: Vec<String> = vec![
        LOCAL.into(),
        "CREATE TABLE system.peers (peer inet PRIMARY KEY, data_center text, host_id uuid, preferred_ip inet,
            rack text, release_version text, rpc_address inet, schema_version uuid, supported_features text,
            tokens set<text>)"
            .into(),
        "CREATE TABLE system.truncated (table_uuid uuid, shard int, position int, segment_id bigint,
            truncated_at timestamp static, PRIMARY KEY (table_uuid, shard))"
            .into(),
        "CREATE TABLE system.built_indexes (keyspace_name text, index_name text,
            PRIMARY KEY (keyspace_name, index_name))"
            .into(),
        // By a name like this one clients and tests tell ScyllaDB from Cassandra.
        "CREATE TABLE system.scylla_local (key text PRIMARY KEY, value text)".into(),
        // Two of ScyllaDB's settings that clients ask for; here they cannot be changed.
        "CREATE TABLE system.config (name text PRIMARY KEY, source text, type text, value text)".into(),
        "CREATE TABLE system.versions (key text PRIMARY KEY, build_id text, build_mode text, version text)".into(),
        "CREATE TABLE system_schema.keyspaces (keyspace_name text PRIMARY KEY, durable_writes boolean,
            replication frozen<map<text, text>>)"
            .into(),
        "CREATE TABLE system_schema.scylla_keyspaces (keyspace_name text PRIMARY KEY, consistency text,
            initial_tablets int, storage_options frozen<map<text, text>>, storage_type text)"
            .into(),
        format!(
            "CREATE TABLE system_schema.tables (keyspace_name text, table_name text, {OPTIONS},
                flags frozen<set<text>>, PRIMARY KEY (keyspace_name, table_name))"
        ),
        format!(
            "CREATE TABLE system_schema.views (keyspace_name text, view_name text, base_table_id uuid,
                base_table_name text, include_all_columns boolean, where_clause text, {OPTIONS},
                PRIMARY KEY (keyspace_name, view_name))"
        ),
        "CREATE TABLE system_schema.scylla_tables (keyspace_name text, table_name text,
            cdc frozen<map<text, text>>, committed_by_group0 boolean, in_memory boolean, partitioner text,
            per_partition_rate_limit frozen<map<text, text>>, tablets frozen<map<text, text>>, version uuid,
            PRIMARY KEY (keyspace_name, table_name))"
            .into(),
        "CREATE TABLE system_schema.dropped_columns (keyspace_name text, table_name text, column_name text,
            dropped_time timestamp, type text, PRIMARY KEY (keyspace_name, table_name, column_name))"
            .into(),
        "CREATE TABLE system_schema.triggers (keyspace_name text, table_name text, trigger_name text,
            options frozen<map<text, text>>, PRIMARY KEY (keyspace_name, table_name, trigger_name))"
            .into(),
        "CREATE TABLE system_schema.indexes (keyspace_name text, table_name text, index_name text, kind text,
            options frozen<map<text, text>>, PRIMARY KEY (keyspace_name, table_name, index_name))"
            .into(),
        "CREATE TABLE system_schema.computed_columns (keyspace_name text, table_name text, column_name text,
            computation blob, PRIMARY KEY (keyspace_name, table_name, column_name))"
            .into(),
        "CREATE TABLE system_schema.types (keyspace_name text, type_name text, field_names frozen<list<text>>,
            field_types frozen<list<text>>, PRIMARY KEY (keyspace_name, type_name))"
            .into(),
        "CREATE TABLE system_schema.functions (keyspace_name text, function_name text,
            argument_types frozen<list<text>>, argument_names frozen<list<text>>, body text,
            called_on_null_input boolean, language text, return_type text,
            PRIMARY KEY (keyspace_name, function_name, argument_types))"
            .into(),
        "CREATE TABLE system_schema.aggregates (keyspace_name text, aggregate_name text,
            argument_types frozen<list<text>>, final_func text, initcond text, return_type text,
            state_func text, state_type text, PRIMARY KEY (keyspace_name, aggregate_name, argument_types))"
            .into(),
        "CREATE TABLE system_schema.scylla_aggregates (keyspace_name text, aggregate_name text,
            argument_types frozen<list<text>>, reduce_func text, state_type text,
            PRIMARY KEY (keyspace_name, aggregate_name, argument_types))"
            .into(),
        "CREATE TABLE system_traces.sessions (session_id uuid PRIMARY KEY, client inet, command text,
            coordinator inet, duration int, parameters map<text, text>, request text, request_size int,
            response_size int, started_at timestamp, username text)"
            .into(),
        "CREATE TABLE system_traces.events (session_id uuid, event_id timeuuid, activity text,
            scylla_parent_id bigint, scylla_span_id bigint, source inet, source_elapsed int, thread text,
            PRIMARY KEY (session_id, event_id))"
            .into(),
        "CREATE TABLE system_traces.sessions_time_idx (minute timestamp, started_at timestamp, session_id uuid,
            PRIMARY KEY (minute, started_at, session_id))"
            .into(),
    ];
    for (table, key) in [
        ("columns", "table_name"),
        ("view_virtual_columns", "view_name"),
    ] {
        all.push(format!(
            "CREATE TABLE system_schema.{table} (keyspace_name text, {key} text, column_name text,
                clustering_order text, column_name_bytes blob, kind text, position int, type text,
                PRIMARY KEY (keyspace_name, {key}, column_name))"
        ));
    }
    all
}

/// What the node is, for `system.local`.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) cluster_name: String,
    pub(crate) host_id: Uuid,
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// The ends of its token ranges.
    pub(crate) tokens: Vec<i64>,
}

type Cells = Vec<(&'static str, Option<Bytes>)>;

/// A row of a table of `system_schema`.
struct Row {
    table: &'static str,
    key: Cells,
    cells: Cells,
}

/// Keeps the tables.
pub(crate) struct SystemTables {
    identity: Identity,
    known: Mutex<Schema>,
}

impl SystemTables {
    /// Makes the tables and fills them.
    ///
    /// # Errors
    /// What the engine answers to a definition or a row; a defect of this crate.
    pub(crate) fn create(engine: &Engine, identity: Identity) -> Result<Self, CqlError> {
        for statement in ddl() {
            engine.create_internal_table(&statement)?;
        }
        engine.put_internal(
            "system",
            "versions",
            &[
                ("key", text("local")),
                (
                    "version",
                    text(concat!("scylla-double ", env!("CARGO_PKG_VERSION"))),
                ),
                ("build_mode", text("test double")),
            ],
        )?;
        for (name, ty, value) in [
            ("restrict_future_timestamp", "bool", "true"),
            ("batch_size_fail_threshold_in_kb", "integer", "1024"),
        ] {
            let row = [
                ("name", text(name)),
                ("source", text("default")),
                ("type", text(ty)),
                ("value", text(value)),
            ];
            engine.put_internal("system", "config", &row)?;
        }
        let tables = Self {
            identity,
            known: Mutex::default(),
        };
        tables.refresh(engine)?;
        Ok(tables)
    }

    /// Brings the tables to the schema as it is now, under a new schema version.
    ///
    /// # Errors
    /// What the engine answers to a row; a defect of this crate.
    pub(crate) fn refresh(&self, engine: &Engine) -> Result<(), CqlError> {
        // Under the lock from here on: of two changes at a time the later reader sees both.
        let mut known = self.known.lock();
        let schema = engine.schema();
        let names: BTreeSet<&String> = known
            .keyspaces
            .keys()
            .chain(schema.keyspaces.keys())
            .collect();
        for name in names {
            let (old, new) = (known.keyspaces.get(name), schema.keyspaces.get(name));
            if let (Some(old), Some(new)) = (old, new)
                && Arc::ptr_eq(old, new)
            {
                continue;
            }
            replace(
                engine,
                old.map(|k| keyspace_rows(k)),
                new.map(|k| keyspace_rows(k)),
            )?;
            replace_parts(
                engine,
                old.map(|k| &k.types),
                new.map(|k| &k.types),
                type_rows,
            )?;
            replace_parts(
                engine,
                old.map(|k| &k.tables),
                new.map(|k| &k.tables),
                table_rows,
            )?;
        }
        engine.put_internal("system", "local", &self.local())?;
        *known = Schema::clone(&schema);
        Ok(())
    }

    fn local(&self) -> Cells {
        let Identity {
            cluster_name,
            host_id,
            address,
            tokens,
        } = &self.identity;
        let tokens: BTreeSet<String> = tokens.iter().map(i64::to_string).collect();
        vec![
            ("key", text("local")),
            ("bootstrapped", text("COMPLETED")),
            ("broadcast_address", inet(address.ip())),
            ("cluster_name", text(cluster_name)),
            ("cql_version", text(CQL_VERSION)),
            ("data_center", text("datacenter1")),
            ("gossip_generation", int(1)),
            ("host_id", uuid(*host_id)),
            ("listen_address", inet(address.ip())),
            ("native_protocol_version", text("4")),
            ("partitioner", text(PARTITIONER)),
            ("rack", text("rack1")),
            ("release_version", text(RELEASE_VERSION)),
            ("rpc_address", inet(address.ip())),
            ("schema_version", uuid(Uuid::new_v4())),
            ("supported_features", text("CDC,CDC_GENERATIONS_V2,TABLETS")),
            ("thrift_version", text("20.1.0")),
            ("tokens", list(tokens.iter())),
        ]
    }
}

/// Replaces parts of a keyspace that are not the same any more.
fn replace_parts<T>(
    engine: &Engine,
    old: Option<&BTreeMap<String, Arc<T>>>,
    new: Option<&BTreeMap<String, Arc<T>>>,
    rows: impl Fn(&T) -> Vec<Row>,
) -> Result<(), CqlError> {
    let names: BTreeSet<&String> = old
        .into_iter()
        .chain(new)
        .flat_map(BTreeMap::keys)
        .collect();
    for name in names {
        let (old, new) = (old.and_then(|m| m.get(name)), new.and_then(|m| m.get(name)));
        if let (Some(old), Some(new)) = (old, new)
            && Arc::ptr_eq(old, new)
        {
            continue;
        }
        replace(engine, old.map(|t| rows(t)), new.map(|t| rows(t)))?;
    }
    Ok(())
}

fn replace(engine: &Engine, old: Option<Vec<Row>>, new: Option<Vec<Row>>) -> Result<(), CqlError> {
    let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
    let kept: HashSet<(&str, &Cells)> = new.iter().map(|r| (r.table, &r.key)).collect();
    for row in old.iter().filter(|r| !kept.contains(&(r.table, &r.key))) {
        engine.remove_internal("system_schema", row.table, &row.key)?;
    }
    for row in new {
        let cells: Cells = row.key.into_iter().chain(row.cells).collect();
        engine.put_internal("system_schema", row.table, &cells)?;
    }
    Ok(())
}

fn keyspace_rows(keyspace: &KeyspaceSchema) -> Vec<Row> {
    let key = vec![("keyspace_name", text(&keyspace.name))];
    let mut rows = vec![Row {
        table: "keyspaces",
        key: key.clone(),
        cells: vec![
            ("durable_writes", boolean(keyspace.durable_writes)),
            (
                "replication",
                map(keyspace
                    .replication
                    .iter()
                    .map(|(k, v)| (k.as_str(), v.as_bytes()))),
            ),
        ],
    }];
    if let Some(tablets) = keyspace.tablets {
        // Written only for what differs from a keyspace of Cassandra's, as ScyllaDB does.
        rows.push(Row {
            table: "scylla_keyspaces",
            key,
            cells: vec![(
                "initial_tablets",
                int(i32::try_from(tablets).unwrap_or(i32::MAX)),
            )],
        });
    }
    rows
}

fn type_rows(ty: &UserType) -> Vec<Row> {
    vec![Row {
        table: "types",
        key: vec![
            ("keyspace_name", text(&ty.keyspace)),
            ("type_name", text(&ty.name)),
        ],
        cells: vec![
            ("field_names", list(ty.fields.iter().map(|(name, _)| name))),
            (
                "field_types",
                list(ty.fields.iter().map(|(_, ty)| ty.to_string())),
            ),
        ],
    }]
}

fn table_rows(table: &TableSchema) -> Vec<Row> {
    let key = vec![
        ("keyspace_name", text(&table.keyspace)),
        ("table_name", text(&table.name)),
    ];
    let options = &table.options;
    let named = |name: &str| {
        let pairs = options.maps.get(name).into_iter().flatten();
        map(pairs.map(|(k, v)| (k.as_str(), v.as_bytes())))
    };
    let value = |name: &str, default: &str| {
        options
            .values
            .get(name)
            .cloned()
            .unwrap_or_else(|| default.to_owned())
    };
    let number = |name: &str, default: f64| double(value(name, "").parse().unwrap_or(default));
    let whole = |name: &str, default: i32| int(value(name, "").parse().unwrap_or(default));
    let mut flags = vec![if table.counter { "counter" } else { "compound" }];
    if table.counter {
        flags.push("compound");
    }
    flags.sort_unstable();
    let cdc = options.cdc.as_ref().map(|cdc| cdc.to_map());
    let mut rows = vec![Row {
        table: "tables",
        key: key.clone(),
        cells: vec![
            (
                "bloom_filter_fp_chance",
                number("bloom_filter_fp_chance", 0.01),
            ),
            ("caching", named("caching")),
            ("comment", text(&options.comment)),
            ("compaction", named("compaction")),
            ("compression", named("compression")),
            ("crc_check_chance", number("crc_check_chance", 1.0)),
            (
                "dclocal_read_repair_chance",
                number("dclocal_read_repair_chance", 0.0),
            ),
            ("default_time_to_live", int(options.default_ttl)),
            (
                "extensions",
                map(cdc.iter().map(|cdc| ("cdc", extension(cdc)))),
            ),
            ("flags", list(flags.iter())),
            ("gc_grace_seconds", int(options.gc_grace_seconds)),
            ("id", uuid(table.id)),
            ("max_index_interval", whole("max_index_interval", 2048)),
            (
                "memtable_flush_period_in_ms",
                whole("memtable_flush_period_in_ms", 0),
            ),
            ("min_index_interval", whole("min_index_interval", 128)),
            ("read_repair_chance", number("read_repair_chance", 0.0)),
            (
                "speculative_retry",
                text(value("speculative_retry", "99.0PERCENTILE")),
            ),
        ],
    }];
    let mut own = vec![("version", uuid(table.version))];
    if let Some(cdc) = &cdc {
        own.push((
            "cdc",
            map(cdc.iter().map(|(k, v)| (k.as_str(), v.as_bytes()))),
        ));
    }
    if let Some(hints) = options.maps.get("tablets") {
        own.push((
            "tablets",
            map(hints.iter().map(|(k, v)| (k.as_str(), v.as_bytes()))),
        ));
    }
    if table.is_log {
        own.push(("partitioner", text(LOG_PARTITIONER)));
    }
    rows.push(Row {
        table: "scylla_tables",
        key: key.clone(),
        cells: own,
    });
    rows.extend(table.columns.iter().map(|column| column_row(&key, column)));
    rows.extend(table.dropped.iter().map(|(name, dropped)| {
        Row {
            table: "dropped_columns",
            key: key
                .iter()
                .cloned()
                .chain([("column_name", text(name))])
                .collect(),
            cells: vec![
                ("dropped_time", timestamp(dropped.at.div_euclid(1_000))),
                ("type", text(dropped.ty.to_string())),
            ],
        }
    }));
    rows
}

fn column_row(table: &Cells, column: &Column) -> Row {
    let order = match (column.kind, column.descending) {
        (ColumnKind::Clustering, false) => "asc",
        (ColumnKind::Clustering, true) => "desc",
        _ => "none",
    };
    Row {
        table: "columns",
        key: table
            .iter()
            .cloned()
            .chain([("column_name", text(&column.name))])
            .collect(),
        cells: vec![
            ("clustering_order", text(order)),
            ("column_name_bytes", text(&column.name)),
            ("kind", text(column.kind.as_str())),
            ("position", int(column.position)),
            ("type", text(column.ty.to_string())),
        ],
    }
}

/// `tables.extensions['cdc']`: the options as ScyllaDB's own serializer has a map of strings, with
/// little-endian lengths (`cdc_extension::serialize`).
fn extension(options: &BTreeMap<String, String>) -> Vec<u8> {
    let mut out = Vec::new();
    let length = |n: usize| (n as u32).to_le_bytes();
    out.extend_from_slice(&length(options.len()));
    for part in options.iter().flat_map(|(k, v)| [k, v]) {
        out.extend_from_slice(&length(part.len()));
        out.extend_from_slice(part.as_bytes());
    }
    out
}

pub(crate) fn text(value: impl AsRef<str>) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(value.as_ref().as_bytes()))
}

pub(crate) fn int(value: i32) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(&value.to_be_bytes()))
}

/// ms since the epoch.
pub(crate) fn timestamp(value: i64) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(&value.to_be_bytes()))
}

fn double(value: f64) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(&value.to_be_bytes()))
}

fn boolean(value: bool) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(&[value.into()]))
}

/// A `timeuuid` of a time, µs since the epoch.
pub(crate) fn timeuuid(at: i64) -> Option<Bytes> {
    uuid(timeuuid_at(at))
}

pub(crate) fn uuid(value: Uuid) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(value.as_bytes()))
}

pub(crate) fn inet(value: IpAddr) -> Option<Bytes> {
    Some(match value {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    })
}

/// A list, or a set whose elements come in order.
fn list(items: impl ExactSizeIterator<Item = impl AsRef<str>>) -> Option<Bytes> {
    let mut out = Vec::new();
    out.put_i32(items.len() as i32);
    for item in items {
        put_element(&mut out, item.as_ref().as_bytes());
    }
    Some(out.into())
}

/// A map, sorted by key as the protocol's readers may expect.
pub(crate) fn map(
    pairs: impl Iterator<Item = (impl AsRef<str>, impl AsRef<[u8]>)>,
) -> Option<Bytes> {
    let mut pairs: Vec<_> = pairs.collect();
    pairs.sort_by(|a, b| a.0.as_ref().cmp(b.0.as_ref()));
    let mut out = Vec::new();
    out.put_i32(pairs.len() as i32);
    for (key, value) in pairs {
        put_element(&mut out, key.as_ref().as_bytes());
        put_element(&mut out, value.as_ref());
    }
    Some(out.into())
}

fn put_element(out: &mut Vec<u8>, element: &[u8]) {
    out.put_i32(element.len() as i32);
    out.extend_from_slice(element);
}
