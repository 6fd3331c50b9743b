//! The node's own tables, and among them those that tell clients of CDC streams.
//!
//! Schemas: ScyllaDB `db/system_distributed_keyspace.cc` (vnodes), `db/virtual_tables.cc` (tablets).

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use uuid::Uuid;

use super::{
    Engine, InternalRow, State,
    cdc::streams::{StreamDiff, VnodeStreams},
    cell::{AtomicCell, CellData, Element, Marker, Partition, Row, Ttl},
    error::CqlError,
    lower::{self, Statement},
    order,
    schema::{ColumnKind, KeyspaceSchema, MultiKind, TableSchema},
    storage::RingKey,
    types,
};

const DISTRIBUTED: &str = "system_distributed";
const SYSTEM: &str = "system";
/// When each generation of vnode streams begins.
const TIMESTAMPS: &str = "cdc_generation_timestamps";
/// The streams of each.
const DESCRIPTIONS: &str = "cdc_streams_descriptions_v2";

const TABLES: [&str; 4] = [
    "CREATE TABLE system_distributed.cdc_streams_descriptions_v2 (
        time timestamp, range_end bigint, streams frozen<set<blob>>, PRIMARY KEY (time, range_end))",
    "CREATE TABLE system_distributed.cdc_generation_timestamps (
        key text, time timestamp, expired timestamp, PRIMARY KEY (key, time)
    ) WITH CLUSTERING ORDER BY (time DESC)",
    "CREATE TABLE system.cdc_timestamps (
        keyspace_name text, table_name text, \"timestamp\" timestamp,
        PRIMARY KEY ((keyspace_name, table_name), \"timestamp\")
    ) WITH CLUSTERING ORDER BY (\"timestamp\" DESC)",
    "CREATE TABLE system.cdc_streams (
        keyspace_name text, table_name text, \"timestamp\" timestamp, stream_state tinyint, stream_id blob,
        PRIMARY KEY ((keyspace_name, table_name), \"timestamp\", stream_state, stream_id))",
];

/// The state of a stream in `system.cdc_streams`.
#[derive(Clone, Copy)]
enum StreamState {
    Current = 0,
    Closed = 1,
    Opened = 2,
}

fn text(value: &str) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(value.as_bytes()))
}

fn long(value: i64) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(&value.to_be_bytes()))
}

impl Engine {
    /// Makes the tables of generations and the first one.
    pub(super) fn start_generations(&self) {
        for ddl in TABLES {
            if let Err(error) = self.create_internal_table(ddl) {
                // Our own text: it parses or a test fails.
                tracing::error!(%error, "internal table cannot be made");
            }
        }
        let age = self.options.first_generation_age.as_millis() as i64;
        self.add_generation(self.now().div_euclid(1_000) - age);
    }

    fn add_generation(&self, at_ms: i64) {
        let mut state = self.state.write();
        let state = &mut *state;
        let vnodes: Vec<VnodeStreams> = state
            .streams
            .add_generation(at_ms, self.options.vnodes, self.options.shards_per_vnode)
            .to_vec();
        for vnode in vnodes {
            let mut streams = vnode.streams;
            // Bytes of one length: as a set has them.
            streams.sort();
            let row = [
                ("time", long(at_ms)),
                ("range_end", long(vnode.range_end)),
                ("streams", Some(types::collection(streams.iter()))),
            ];
            self.put_own(state, DISTRIBUTED, DESCRIPTIONS, &row);
        }
        // Last, for it tells that the descriptions are complete.
        let row = [("key", text("timestamps")), ("time", long(at_ms))];
        self.put_own(state, DISTRIBUTED, TIMESTAMPS, &row);
    }

    fn put_own(&self, state: &mut State, keyspace: &str, table: &str, row: InternalRow<'_>) {
        if let Err(error) = put(state, keyspace, table, row, self.now()) {
            tracing::error!(%error, table, "internal row cannot be written");
        }
    }

    /// Begins a new generation of vnode streams at a time in ms since the epoch, or after the
    /// configured delay; never before or at the newest one. Gives the time it begins.
    pub fn new_generation(&self, at_ms: Option<i64>) -> i64 {
        let delay = self.options.generation_delay.as_millis() as i64;
        let wanted = at_ms.unwrap_or_else(|| self.now().div_euclid(1_000) + delay);
        let newest = self.state.read().streams.newest_generation();
        let at_ms = newest.map_or(wanted, |newest| wanted.max(newest + 1));
        self.add_generation(at_ms);
        at_ms
    }

    /// Splits every tablet of a table in a keyspace with tablets in two, as ScyllaDB does when a table
    /// grows: all streams of its log are closed and twice as many opened, at a time in ms since the
    /// epoch or after the configured delay. Gives that time; `None` when the table has no such log.
    pub fn split_tablets(&self, keyspace: &str, table: &str, at_ms: Option<i64>) -> Option<i64> {
        let delay = self.options.generation_delay.as_millis() as i64;
        let wanted = at_ms.unwrap_or_else(|| self.now().div_euclid(1_000) + delay);
        let mut state = self.state.write();
        let count = state.streams.tablets(keyspace, table)?.checked_mul(2)?;
        self.resize_once(&mut state, keyspace, table, count, wanted)
    }

    fn resize_once(
        &self,
        state: &mut State,
        keyspace: &str,
        table: &str,
        count: u32,
        at_ms: i64,
    ) -> Option<i64> {
        let (at_ms, current, diff) = state.streams.resize_table(keyspace, table, count, at_ms)?;
        self.tell_tablet_streams(state, keyspace, table, at_ms, &current, &diff);
        Some(at_ms)
    }

    /// Brings the tablets of a table to a number, a power of two, by splitting all in two, or merging them
    /// two by two, as often as it takes; each time a set of streams ends and another begins, the configured
    /// delay after the one before.
    pub(super) fn resize_tablets(
        &self,
        state: &mut State,
        keyspace: &str,
        table: &str,
        wanted: u32,
        now: i64,
    ) {
        let delay = self.options.generation_delay.as_millis() as i64;
        let mut at_ms = now.div_euclid(1_000);
        while let Some(count) = state.streams.tablets(keyspace, table)
            && count != wanted
        {
            let next = if count < wanted {
                count.saturating_mul(2)
            } else {
                count / 2
            };
            at_ms += delay;
            if self
                .resize_once(state, keyspace, table, next, at_ms)
                .is_none()
            {
                break;
            }
        }
    }

    fn tell_tablet_streams(
        &self,
        state: &mut State,
        keyspace: &str,
        table: &str,
        at_ms: i64,
        current: &[Bytes],
        diff: &StreamDiff,
    ) {
        let sets = [
            (StreamState::Current, current),
            (StreamState::Closed, &diff.closed[..]),
            (StreamState::Opened, &diff.opened[..]),
        ];
        let key = [
            ("keyspace_name", text(keyspace)),
            ("table_name", text(table)),
            ("timestamp", long(at_ms)),
        ];
        for (stream_state, streams) in sets {
            for stream in streams {
                let mut row = key.to_vec();
                row.push((
                    "stream_state",
                    Some(Bytes::copy_from_slice(&[stream_state as u8])),
                ));
                row.push(("stream_id", Some(stream.clone())));
                self.put_own(state, SYSTEM, "cdc_streams", &row);
            }
        }
        self.put_own(state, SYSTEM, "cdc_timestamps", &key);
    }

    /// Makes the streams of a log that was just created in a keyspace with tablets.
    pub(super) fn create_tablet_streams(
        &self,
        state: &mut State,
        keyspace: &str,
        table: &str,
        tablets: u32,
        now: i64,
    ) {
        // From a leeway ago, so that writes of clients whose clock is a little behind find a stream.
        let at_ms = (now - super::cdc::streams::LEEWAY_US).div_euclid(1_000);
        let current = state
            .streams
            .add_table(keyspace, table, at_ms, tablets)
            .to_vec();
        let none = StreamDiff {
            closed: Vec::new(),
            opened: Vec::new(),
        };
        self.tell_tablet_streams(state, keyspace, table, at_ms, &current, &none);
    }

    /// Forgets the streams of a log that was dropped.
    pub(super) fn drop_tablet_streams(&self, state: &mut State, keyspace: &str, table: &str) {
        state.streams.remove_table(keyspace, table);
        for own in ["cdc_streams", "cdc_timestamps"] {
            let key = [
                ("keyspace_name", text(keyspace)),
                ("table_name", text(table)),
            ];
            if let Err(error) = remove(state, SYSTEM, own, &key) {
                tracing::error!(%error, table = own, "internal rows cannot be removed");
            }
        }
    }

    /// Makes a table of the node's own from a `CREATE TABLE`, and its keyspace if it is not there.
    /// Clients can read it but not write to it.
    pub fn create_internal_table(&self, ddl: &str) -> Result<(), CqlError> {
        let mut state = self.state.write();
        let state = &mut *state;
        let named = lower::created_table(ddl)?;
        let keyspace = state
            .schema
            .keyspaces
            .entry(named.0.clone())
            .or_insert_with(|| {
                let class = if named.0 == DISTRIBUTED {
                    "org.apache.cassandra.locator.EverywhereStrategy"
                } else {
                    "org.apache.cassandra.locator.LocalStrategy"
                };
                Arc::new(KeyspaceSchema {
                    name: named.0.clone(),
                    replication: [("class".to_owned(), class.to_owned())]
                        .into_iter()
                        .collect(),
                    durable_writes: true,
                    tablets: None,
                    internal: true,
                    tables: Default::default(),
                    types: Default::default(),
                })
            });
        if keyspace.tables.contains_key(&named.1) {
            return Ok(());
        }
        let lowered = lower::statement(&state.schema, ddl, None)?;
        let Statement::Ddl { statement, .. } = lowered.statement else {
            return Err(CqlError::invalid(
                "an internal table is made by CREATE TABLE",
            ));
        };
        let mut table = super::ddl::table_of(&state.schema, &statement)?;
        // Stable, as ScyllaDB derives it from the name.
        table.id = Uuid::new_v5(
            &Uuid::NAMESPACE_OID,
            format!("{}.{}", named.0, named.1).as_bytes(),
        );
        if let Some(keyspace) = state.schema.keyspaces.get_mut(&named.0) {
            Arc::make_mut(keyspace)
                .tables
                .insert(named.1, Arc::new(table));
        }
        Ok(())
    }

    /// Writes a row of an internal table, replacing the one with the same key: columns that are not
    /// named become null.
    pub fn put_internal(
        &self,
        keyspace: &str,
        table: &str,
        row: InternalRow<'_>,
    ) -> Result<(), CqlError> {
        let now = self.now();
        put(&mut self.state.write(), keyspace, table, row, now)
    }

    /// Notes when a table was truncated, where there are the node's own tables.
    pub(super) fn note_truncation(&self, table: &TableSchema, now: i64) -> Result<(), CqlError> {
        let mut state = self.state.write();
        if state.schema.table("system", "truncated").is_none() {
            return Ok(());
        }
        let bytes = |value: &[u8]| Some(bytes::Bytes::copy_from_slice(value));
        let row = [
            ("table_uuid", bytes(table.id.as_bytes())),
            ("shard", bytes(&0_i32.to_be_bytes())),
            ("position", bytes(&0_i32.to_be_bytes())),
            ("segment_id", bytes(&0_i64.to_be_bytes())),
            ("truncated_at", bytes(&now.div_euclid(1_000).to_be_bytes())),
        ];
        put(&mut state, "system", "truncated", &row, now)
    }

    /// Removes rows of an internal table: the row with a full key, or all of a partition, or with an
    /// empty key all there are.
    pub fn remove_internal(
        &self,
        keyspace: &str,
        table: &str,
        key: InternalRow<'_>,
    ) -> Result<(), CqlError> {
        remove(&mut self.state.write(), keyspace, table, key)
    }
}

/// Whether a table tells of the generations of vnode streams. Clients with the rights of a superuser, as
/// all are here, write to these (`client_state::check_internal_table_permissions` forbids less).
pub(super) fn tells_of_generations(table: &TableSchema) -> bool {
    table.keyspace == DISTRIBUTED && [TIMESTAMPS, DESCRIPTIONS].contains(&table.name.as_str())
}

impl State {
    /// Takes up the generations that clients have written of, see [`Streams::follow`].
    ///
    /// [`Streams::follow`]: super::cdc::streams::Streams::follow
    pub(super) fn follow_generations(&mut self, now: i64) {
        let now = now.div_euclid(1_000_000);
        let rows = |table: &str, key: &Bytes| {
            let schema = self.schema.table(DISTRIBUTED, table)?;
            let ring = RingKey::new(schema, std::slice::from_ref(key));
            let stored = self.data.get(&schema.id)?.get(&ring)?;
            Some(stored.data.rows.values().filter(move |r| r.is_live(now)))
        };
        let told = text("timestamps").and_then(|key| rows(TIMESTAMPS, &key));
        let told: BTreeSet<i64> = told
            .into_iter()
            .flatten()
            .filter_map(|row| types::bigint(row.key.first()?))
            .collect();
        let column = self
            .schema
            .table(DISTRIBUTED, DESCRIPTIONS)
            .and_then(|t| t.column("streams"))
            .map(|c| c.id);
        let vnodes = |at: i64| -> Vec<VnodeStreams> {
            let rows = long(at).and_then(|at| rows(DESCRIPTIONS, &at));
            rows.into_iter()
                .flatten()
                .filter_map(|row| {
                    let range_end = types::bigint(row.key.first()?)?;
                    let streams = match row.cell(column?)? {
                        CellData::Atomic(cell) => cell.get(now)?.clone(),
                        CellData::Multi(_) => return None,
                    };
                    let ids = types::elements(&streams).into_iter();
                    let streams = ids.map(|id| streams.slice_ref(id)).collect();
                    Some(VnodeStreams { range_end, streams })
                })
                .collect()
        };
        let found: Vec<(i64, Vec<VnodeStreams>)> =
            told.iter().map(|at| (*at, vnodes(*at))).collect();
        self.streams.follow(&told, |at| {
            let generation = found.iter().find(|(time, _)| *time == at);
            generation.map(|(_, v)| v.clone()).unwrap_or_default()
        });
    }
}

/// Key components of some columns, as far as the row has them.
fn components(columns: &[super::Column], row: InternalRow<'_>) -> Vec<Bytes> {
    columns
        .iter()
        .map_while(|c| {
            row.iter()
                .find(|(name, _)| *name == c.name)
                .and_then(|(_, value)| value.clone())
        })
        .collect()
}

fn put(
    state: &mut State,
    keyspace: &str,
    table: &str,
    row: InternalRow<'_>,
    now: i64,
) -> Result<(), CqlError> {
    let schema = state
        .schema
        .table(keyspace, table)
        .ok_or_else(|| CqlError::unconfigured_table(table))?
        .clone();
    let key = components(schema.partition_key(), row);
    let clustering = components(schema.clustering_key(), row);
    if key.len() < schema.partition_key_len || clustering.len() < schema.clustering_key_len {
        return Err(CqlError::invalid(format!(
            "the key of a row of {keyspace}.{table} is not complete"
        )));
    }
    let position = order::key(schema.clustering_key(), &clustering);
    let mut new = Row::new(clustering);
    let mut statics = Row::default();
    new.marker = Some(Marker {
        timestamp: now,
        ttl: Ttl::default(),
    });
    for (name, value) in row {
        let column = schema
            .column(name)
            .ok_or_else(|| CqlError::invalid(format!("Unknown identifier {name}")))?;
        let (target, Some(value)) = (
            if column.kind == ColumnKind::Static {
                &mut statics
            } else {
                &mut new
            },
            value,
        ) else {
            continue;
        };
        if matches!(
            column.kind,
            ColumnKind::PartitionKey | ColumnKind::Clustering
        ) {
            continue;
        }
        let cell = |value: Bytes| AtomicCell::live(now, value, Ttl::default());
        match column.multi {
            None => target.set(column.id, CellData::Atomic(cell(value.clone()))),
            Some(kind) => {
                let collection = target.collection_mut(column.id);
                let elements: Vec<(Bytes, Bytes)> = match kind {
                    MultiKind::Map => types::map_entries(value)
                        .into_iter()
                        .map(|(k, v)| (value.slice_ref(k), value.slice_ref(v)))
                        .collect(),
                    MultiKind::Set => types::elements(value)
                        .into_iter()
                        .map(|e| (value.slice_ref(e), Bytes::new()))
                        .collect(),
                    MultiKind::List | MultiKind::Udt { .. } => {
                        return Err(CqlError::invalid(
                            "internal tables have frozen lists and types only",
                        ));
                    }
                };
                for (key, value) in elements {
                    collection.cells.insert(
                        super::write::element_position(column, &key),
                        Element {
                            key,
                            cell: cell(value),
                        },
                    );
                }
            }
        }
    }
    let data = state.data.entry(schema.id).or_default();
    let ring = RingKey::new(&schema, &key);
    let stored = data
        .partitions
        .entry(ring)
        .or_insert_with(|| super::storage::Stored {
            key,
            data: Partition::default(),
        });
    stored.data.rows.insert(position, new);
    if !statics.is_blank() {
        stored.data.static_row = statics;
    }
    Ok(())
}

fn remove(
    state: &mut State,
    keyspace: &str,
    table: &str,
    key: InternalRow<'_>,
) -> Result<(), CqlError> {
    let schema = state
        .schema
        .table(keyspace, table)
        .ok_or_else(|| CqlError::unconfigured_table(table))?
        .clone();
    let Some(data) = state.data.get_mut(&schema.id) else {
        return Ok(());
    };
    let partition = components(schema.partition_key(), key);
    if partition.is_empty() {
        data.partitions.clear();
        return Ok(());
    }
    if partition.len() < schema.partition_key_len {
        return Err(CqlError::invalid(format!(
            "the partition key of {keyspace}.{table} is not complete"
        )));
    }
    let ring = RingKey::new(&schema, &partition);
    let clustering = components(schema.clustering_key(), key);
    if clustering.is_empty() {
        data.partitions.remove(&ring);
    } else if let Some(stored) = data.partitions.get_mut(&ring) {
        let from = order::bound(schema.clustering_key(), clustering.clone(), false).position;
        let to = order::bound(schema.clustering_key(), clustering, true).position;
        stored.data.rows.retain(|at, _| *at < from || *at >= to);
        if stored.data.rows.is_empty() {
            data.partitions.remove(&ring);
        }
    }
    Ok(())
}
