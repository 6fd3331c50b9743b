//! What is asked of the database beside the log itself: generations and their streams, what a table says of its
//! change log, which tables there are, when they were emptied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use scylla::response::query_result::QueryRowsResult;
use scylla::serialize::row::SerializeRow;
use scylla::statement::{Consistency, Statement};
use scylla::value::CqlTimestamp;
use uuid::Uuid;

use super::gaps::Emptied;
use super::generations::Generation;
use super::log::LogTable;
use super::survey::Streams;
use super::{LOG_SUFFIX, ScyllaSource, SourceError};
use crate::change::StreamId;

/// A server refuses to look for more partitions at once (`max-partition-key-restrictions-per-query`): a vnode of
/// a node with more cores makes several groups. <https://github.com/scylladb/scylladb/issues/15627>
const MAX_STREAMS: usize = 100;
/// Clocks of nodes may differ; a truncation that is later than this is none.
const FUTURE_US: i64 = 3_600_000_000;

/// What a table and its log are known by.
#[derive(Clone, Copy, Default)]
pub(super) struct Ids {
    pub(super) table: Option<Uuid>,
    pub(super) log: Option<Uuid>,
}

impl ScyllaSource {
    /// Runs a statement on system tables and returns all of its rows, which are few.
    pub(super) async fn query(
        &self,
        what: &'static str,
        text: &str,
        values: impl SerializeRow,
        consistency: Consistency,
    ) -> Result<QueryRowsResult, SourceError> {
        let mut statement = Statement::new(text);
        statement.set_is_idempotent(true);
        statement.set_consistency(consistency);
        statement.set_request_timeout(Some(self.live.borrow().source.read_timeout));
        let session = self.session();
        let asked = session.query_unpaged(statement, values);
        let waits = self.policies.waits();
        let result = waits
            .during(what.strip_prefix("cannot ").unwrap_or(what), asked)
            .await
            .map_err(SourceError::execute(what))?;
        result
            .into_rows_result()
            .map_err(|e| SourceError::answer(what, e))
    }

    /// The generations of a table, and the time (µs since the Unix epoch) up to which there are no others.
    pub(super) async fn generations(
        &self,
        table: &LogTable,
    ) -> Result<(i64, Arc<[Generation]>), SourceError> {
        const WHAT: &str = "cannot read the stream generations";
        let as_of_us = self.now_us();
        let rows = if table.tablets.load(Relaxed) {
            self.query(
                WHAT,
                "SELECT timestamp FROM system.cdc_timestamps WHERE keyspace_name = ? AND table_name = ?",
                (&table.keyspace, &table.name),
                Consistency::One,
            )
            .await?
        } else {
            self.query(
                WHAT,
                "SELECT time FROM system_distributed.cdc_generation_timestamps WHERE key = 'timestamps'",
                (),
                self.distributed(),
            )
            .await?
        };
        let times = rows
            .rows::<(CqlTimestamp,)>()
            .map_err(|e| SourceError::answer(WHAT, e))?;
        let list: Result<BTreeSet<i64>, _> = times.map(|r| r.map(|(t,)| t.0)).collect();
        let list = list.map_err(|e| SourceError::answer(WHAT, e))?;
        Ok((as_of_us, list.into_iter().collect()))
    }

    /// The streams of a generation, by group: a vnode's together, as far as one read may name them, each
    /// tablet's alone. Sorted.
    pub(super) async fn streams(
        &self,
        table: &LogTable,
        generation: Generation,
    ) -> Result<Streams, SourceError> {
        const WHAT: &str = "cannot read the streams of a generation";
        let stream = |bytes: &[u8]| {
            bytes.try_into().map(StreamId).map_err(|_| {
                SourceError::answer(WHAT, format!("a stream id of {} bytes", bytes.len()))
            })
        };
        let time = CqlTimestamp(generation);
        if table.tablets.load(Relaxed) {
            let rows = self
                .query(
                    WHAT,
                    "SELECT stream_id FROM system.cdc_streams WHERE keyspace_name = ? AND table_name = ? \
                     AND timestamp = ? AND stream_state = 0",
                    (&table.keyspace, &table.name, time),
                    Consistency::One,
                )
                .await?;
            let rows = rows
                .rows::<(&[u8],)>()
                .map_err(|e| SourceError::answer(WHAT, e))?;
            let groups: Result<Vec<Arc<[StreamId]>>, _> = rows
                .map(|r| {
                    let (id,) = r.map_err(|e| SourceError::answer(WHAT, e))?;
                    Ok(Arc::from([stream(id)?]))
                })
                .collect();
            let mut groups = groups?;
            groups.sort_unstable();
            return Ok(groups.into());
        }
        let rows = self
            .query(
                WHAT,
                "SELECT streams FROM system_distributed.cdc_streams_descriptions_v2 WHERE time = ?",
                (time,),
                self.distributed(),
            )
            .await?;
        let rows = rows
            .rows::<(Vec<&[u8]>,)>()
            .map_err(|e| SourceError::answer(WHAT, e))?;
        let mut groups: Vec<Arc<[StreamId]>> = Vec::new();
        for row in rows {
            let (ids,) = row.map_err(|e| SourceError::answer(WHAT, e))?;
            let mut ids = ids.into_iter().map(stream).collect::<Result<Vec<_>, _>>()?;
            ids.sort_unstable();
            groups.extend(ids.chunks(MAX_STREAMS).map(Arc::from));
        }
        // They are numbered in this order, by everybody.
        groups.sort_unstable();
        Ok(groups.into())
    }

    /// `system_distributed` is replicated threefold: a majority has heard of every generation.
    pub(super) fn distributed(&self) -> Consistency {
        match self.session().get_cluster_state().get_nodes_info().len() {
            0 | 1 => Consistency::One,
            _ => Consistency::Quorum,
        }
    }

    /// Reads the log's TTL. Returns whether change capture is switched on.
    pub(super) async fn refresh_cdc_options(&self, table: &LogTable) -> Result<bool, SourceError> {
        const WHAT: &str = "cannot read the table's cdc options";
        let rows = self
            .query(
                WHAT,
                CDC_OPTIONS,
                (&table.keyspace, &table.name),
                Consistency::One,
            )
            .await?;
        let options = CdcOptions::read(WHAT, &rows)?;
        *table.ttl.lock() = Some((Instant::now(), options.ttl));
        table.postimages.store(options.postimages, Relaxed);
        Ok(options.enabled)
    }

    /// Which table it is, and which log it has.
    pub(super) async fn ids(&self, table: &LogTable) -> Result<Ids, SourceError> {
        const WHAT: &str = "cannot look for the change log";
        let log = format!("{}{LOG_SUFFIX}", table.name);
        let rows = self
            .query(
                WHAT,
                "SELECT table_name, id FROM system_schema.tables WHERE keyspace_name = ? AND table_name IN (?, ?)",
                (&table.keyspace, &table.name, &log),
                Consistency::One,
            )
            .await?;
        let mut ids = Ids::default();
        let rows = rows
            .rows::<(&str, Uuid)>()
            .map_err(|e| SourceError::answer(WHAT, e))?;
        for row in rows {
            let (name, id) = row.map_err(|e| SourceError::answer(WHAT, e))?;
            match name == log {
                true => ids.log = Some(id),
                false => ids.table = Some(id),
            }
        }
        Ok(ids)
    }

    /// When they were last truncated, as far as the node that is asked knows.
    pub(super) async fn emptied(&self, ids: Ids) -> Result<Emptied, SourceError> {
        const WHAT: &str = "cannot ask when a table was truncated";
        let both: Vec<Uuid> = ids.table.into_iter().chain(ids.log).collect();
        let rows = self
            .query(
                WHAT,
                "SELECT table_uuid, truncated_at FROM system.truncated WHERE table_uuid IN ?",
                (both,),
                Consistency::One,
            )
            .await?;
        let mut emptied = Emptied::default();
        let rows = rows
            .rows::<(Uuid, Option<CqlTimestamp>)>()
            .map_err(|e| SourceError::answer(WHAT, e))?;
        for row in rows {
            let (id, at) = row.map_err(|e| SourceError::answer(WHAT, e))?;
            let at_us = at.map(|CqlTimestamp(ms)| ms.saturating_mul(1000));
            match ids.log == Some(id) {
                true => emptied.log_us = at_us,
                false => emptied.table_us = at_us,
            }
        }
        // One that is dropped is truncated in the year 9999.
        let past = |at: &i64| *at <= self.now_us().saturating_add(FUTURE_US);
        emptied.log_us = emptied.log_us.filter(past);
        emptied.table_us = emptied.table_us.filter(past);
        Ok(emptied)
    }
}

pub(super) const CDC_OPTIONS: &str =
    "SELECT cdc FROM system_schema.scylla_tables WHERE keyspace_name = ? AND table_name = ?";

/// What a table says of its change log.
pub(super) struct CdcOptions {
    pub(super) enabled: bool,
    /// `None`: changes do not expire.
    pub(super) ttl: Option<Duration>,
    pub(super) preimages: bool,
    pub(super) postimages: bool,
}

impl CdcOptions {
    /// Of the answer to [`CDC_OPTIONS`].
    pub(super) fn read(what: &'static str, rows: &QueryRowsResult) -> Result<Self, SourceError> {
        let options = rows
            .maybe_first_row::<(Option<BTreeMap<String, String>>,)>()
            .map_err(|e| SourceError::answer(what, e))?
            .and_then(|(options,)| options)
            .unwrap_or_default();
        let seconds = options
            .get("ttl")
            .and_then(|t| t.parse().ok())
            // ScyllaDB's default, 24 hours.
            .unwrap_or(86_400);
        let is_on = |name: &str, absent| {
            let option = options.get(name);
            option.map_or(absent, |o| !o.eq_ignore_ascii_case("false"))
        };
        Ok(Self {
            enabled: is_on("enabled", true),
            ttl: (seconds > 0).then(|| Duration::from_secs(seconds)),
            // Of the columns that a write touches, or `full`.
            preimages: is_on("preimage", false),
            postimages: is_on("postimage", false),
        })
    }
}
