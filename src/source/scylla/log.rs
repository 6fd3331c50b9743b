//! One table's change log: its statement, its versions, one page of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use scylla::client::session::Session;
use scylla::cluster::ClusterState;
use scylla::errors::ExecutionError;
use scylla::frame::response::result::{ColumnType, NativeType};
use scylla::response::query_result::QueryRowsResult;
use scylla::response::{PagingState, PagingStateResponse};
use scylla::statement::prepared::PreparedStatement;
use scylla::value::CqlTimeuuid;
use uuid::Uuid;

use super::LOG_SUFFIX;
use super::error::SourceError;
use super::gaps::Gaps;
use super::pace::Span;
use super::past::LOOK;
use super::rows::Rows;
use super::schema::{self, Version};
use crate::change::StreamId;
use crate::config::settings;
use crate::cql::quoted;

/// Versions kept for comparison. Pages of an older schema only come from nodes that have not heard of the
/// new one, so a few are enough.
const VERSIONS: usize = 8;

const WHAT: &str = "cannot read the log";

/// A base table and its log.
pub(super) struct LogTable {
    pub(super) keyspace: String,
    pub(super) name: String,
    /// `keyspace.name`
    pub(super) full: Arc<str>,
    /// Its streams are those of tablets, not of vnodes; as far as known.
    pub(super) tablets: AtomicBool,
    /// It was not there when it was last looked at.
    absent: AtomicBool,
    /// When it was read, and the log's TTL; `None` inside: changes do not expire.
    pub(super) ttl: Mutex<Option<(Instant, Option<Duration>)>>,
    /// What of its changes cannot be read.
    pub(super) gaps: Mutex<Gaps>,
    /// Whether it logs postimages, as far as known.
    pub(super) postimages: AtomicBool,
    /// The reads of whole rows and of keys.
    prepared: [Mutex<Option<PreparedStatement>>; 2],
    versions: Mutex<Vec<Arc<Version>>>,
    versions_seen: std::sync::atomic::AtomicUsize,
}

/// What of a row is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Columns {
    /// All of it.
    All,
    /// To which write it belongs: stream and time.
    Keys,
}

/// A page of keys: streams and times, the rows of a write once.
pub(super) struct Keys {
    pub(super) writes: Vec<(StreamId, Uuid)>,
    /// `None`: the span is read to its end.
    pub(super) next: Option<PagingState>,
}

/// A page that may be of a version that is not known yet.
pub(super) struct Fetched {
    pub(super) rows: QueryRowsResult,
    /// `None`: the rows are of a shape that the schema, as it was last read, does not explain.
    pub(super) version: Option<Arc<Version>>,
    /// `None`: the window is read to its end.
    pub(super) next: Option<PagingState>,
}

/// One page, still in the bytes that came from the wire.
pub(super) struct Page {
    pub(super) rows: QueryRowsResult,
    pub(super) version: Arc<Version>,
    /// The table logs postimages.
    pub(super) postimages: bool,
    /// `None`: the window is read to its end.
    pub(super) next: Option<PagingState>,
}

/// What to read.
#[derive(Clone)]
pub(super) struct Read {
    pub(super) streams: Arc<[StreamId]>,
    /// µs since the Unix epoch, inclusive.
    pub(super) from_us: i64,
    /// Exclusive.
    pub(super) to_us: i64,
    /// What is to be read again: a read that is cut short ends after this.
    pub(super) least_us: i64,
    pub(super) columns: Columns,
    pub(super) paging: PagingState,
    pub(super) span: Span,
}

/// The smallest timeuuid of this time, as ScyllaDB orders them: the low bytes count as signed.
pub(super) fn min_timeuuid(us: i64) -> Uuid {
    const UUID_EPOCH_TICKS: i64 = 0x01b2_1dd2_1381_4000;
    let ticks = us
        .saturating_mul(10)
        .saturating_add(UUID_EPOCH_TICKS)
        .max(0) as u64;
    Uuid::from_fields(
        ticks as u32,
        (ticks >> 32) as u16,
        ((ticks >> 48) as u16 & 0x0fff) | 0x1000,
        &[0x80; 8],
    )
}

impl LogTable {
    pub(super) fn new(keyspace: &str, name: &str) -> Self {
        Self {
            keyspace: keyspace.to_owned(),
            name: name.to_owned(),
            full: format!("{keyspace}.{name}").into(),
            tablets: AtomicBool::new(false),
            absent: AtomicBool::new(true),
            ttl: Mutex::default(),
            gaps: Mutex::default(),
            postimages: AtomicBool::new(false),
            prepared: Default::default(),
            versions: Mutex::default(),
            versions_seen: Default::default(),
        }
    }

    /// Looks for it in the schema, and notes how it lays out its streams.
    ///
    /// # Errors
    /// It is not there, or has no log, or cannot have one.
    pub(super) fn find(&self, state: &ClusterState) -> Result<(), SourceError> {
        let (keyspace, table) = (self.keyspace.clone(), self.name.clone());
        if let Some(base) = table.strip_suffix(LOG_SUFFIX) {
            let base = base.to_owned();
            return Err(SourceError::NestedLog {
                keyspace,
                table,
                base,
            });
        }
        let Some(found) = state.get_keyspace(&keyspace) else {
            return Err(SourceError::MissingKeyspace { keyspace });
        };
        let Some(base) = found.tables.get(&table) else {
            let like = found
                .tables
                .keys()
                .filter(|name| !name.ends_with(LOG_SUFFIX))
                .map(|name| (strsim::damerau_levenshtein(name, &table), name))
                .filter(|(distance, _)| *distance <= 3)
                .min()
                .map(|(_, name)| name.clone());
            return Err(SourceError::MissingTable {
                keyspace,
                table,
                like,
            });
        };
        let counter = base
            .columns
            .iter()
            .find(|(_, c)| c.typ == ColumnType::Native(NativeType::Counter));
        if let Some((column, _)) = counter {
            let column = column.clone();
            return Err(SourceError::Counters {
                keyspace,
                table,
                column,
            });
        }
        if !found.tables.contains_key(&format!("{table}{LOG_SUFFIX}")) {
            return Err(SourceError::NoCdc { keyspace, table });
        }
        self.tablets.store(found.tablet_based, Relaxed);
        self.absent.store(false, Relaxed);
        Ok(())
    }

    /// Takes in whether there is a log. Whether the schema has to be read anew before the log can be: it was made.
    pub(super) fn has_appeared(&self, has_log: bool) -> bool {
        if !has_log {
            self.absent.store(true, Relaxed);
        }
        has_log && self.absent.load(Relaxed)
    }

    /// The TTL of its changes, as far as known.
    pub(super) fn known_ttl(&self) -> Option<Duration> {
        self.ttl.lock().and_then(|(_, ttl)| ttl)
    }

    /// How often changes of it could not be read, and for how many µs in all.
    pub(super) fn gaps(&self) -> (u64, u64) {
        let gaps = self.gaps.lock();
        (gaps.count, gaps.us)
    }

    pub(super) fn versions_seen(&self) -> usize {
        self.versions_seen.load(Relaxed)
    }

    /// The next attempt prepares the statement anew.
    pub(super) fn forget_statement(&self) {
        for statement in &self.prepared {
            *statement.lock() = None;
        }
    }

    async fn statement(
        &self,
        session: &Session,
        columns: Columns,
    ) -> Result<PreparedStatement, SourceError> {
        let prepared = &self.prepared[columns as usize];
        if let Some(statement) = prepared.lock().clone() {
            return Ok(statement);
        }
        let columns = match columns {
            Columns::All => "*",
            Columns::Keys => "\"cdc$stream_id\", \"cdc$time\"",
        };
        let log = format!(
            "{}.{}",
            quoted(&self.keyspace),
            quoted(&format!("{}{LOG_SUFFIX}", self.name))
        );
        let text = format!(
            "SELECT {columns} FROM {log} WHERE \"cdc$stream_id\" IN ? \
             AND \"cdc$time\" >= ? AND \"cdc$time\" < ? BYPASS CACHE"
        );
        let mut statement = session
            .prepare(text)
            .await
            .map_err(|source| SourceError::Prepare {
                what: "cannot prepare the log read",
                source: Box::new(source),
            })?;
        statement.set_is_idempotent(true);
        *prepared.lock() = Some(statement.clone());
        Ok(statement)
    }

    /// Reads one page of rows: one attempt.
    pub(super) async fn read(
        &self,
        session: &Session,
        source: &settings::Source,
        read: Read,
    ) -> Result<Fetched, SourceError> {
        let page_size = read.span.page_size(source.page_size.get());
        let (rows, next) = self.page(session, source, read, page_size).await?;
        let version = self.version(session, &rows, false)?;
        Ok(Fetched {
            rows,
            version,
            next,
        })
    }

    /// Reads one page of keys: one attempt.
    pub(super) async fn read_keys(
        &self,
        session: &Session,
        source: &settings::Source,
        read: Read,
    ) -> Result<Keys, SourceError> {
        let page_size = read.span.page_size(LOOK as u32);
        let (rows, next) = self.page(session, source, read, page_size).await?;
        let keys = rows
            .rows::<(&[u8], CqlTimeuuid)>()
            .map_err(|e| SourceError::answer(WHAT, e))?;
        let mut writes: Vec<(StreamId, Uuid)> = Vec::new();
        for key in keys {
            let (stream, time) = key.map_err(|e| SourceError::answer(WHAT, e))?;
            let stream = stream.try_into().map_err(|_| {
                SourceError::answer(WHAT, format!("a stream id of {} bytes", stream.len()))
            })?;
            let write = (StreamId(stream), *time.as_ref());
            if writes.last() != Some(&write) {
                writes.push(write);
            }
        }
        Ok(Keys { writes, next })
    }

    /// Reads the key of one row, if there is one: one attempt, which says only whether reads are answered.
    pub(super) async fn glance(
        &self,
        session: &Session,
        source: &settings::Source,
        read: Read,
    ) -> Result<(), SourceError> {
        self.page(session, source, read, 1).await.map(drop)
    }

    async fn page(
        &self,
        session: &Session,
        source: &settings::Source,
        read: Read,
        page_size: i32,
    ) -> Result<(QueryRowsResult, Option<PagingState>), SourceError> {
        let attempt = async {
            let mut statement = self.statement(session, read.columns).await?;
            statement.set_request_timeout(Some(source.read_timeout));
            statement.set_page_size(page_size);
            statement.set_consistency(super::consistency(source.consistency));
            let streams: Vec<&[u8]> = read.streams.iter().map(|s| &s.0[..]).collect();
            let from = CqlTimeuuid::from(min_timeuuid(read.from_us));
            let to = CqlTimeuuid::from(min_timeuuid(read.to_us));
            let (result, paging) = session
                .execute_single_page(&statement, (streams, from, to), read.paging)
                .await
                .map_err(SourceError::execute(WHAT))?;
            let rows = result
                .into_rows_result()
                .map_err(|e| SourceError::answer(WHAT, e))?;
            let next = match paging {
                PagingStateResponse::HasMorePages { state } => Some(state),
                PagingStateResponse::NoMorePages => None,
            };
            Ok((rows, next))
        };
        // The statement's own timeout does not cover preparing it.
        match tokio::time::timeout(source.read_timeout.saturating_mul(2), attempt).await {
            Ok(done) => done,
            Err(_) => Err(SourceError::execute(WHAT)(ExecutionError::RequestTimeout(
                source.read_timeout,
            ))),
        }
    }

    /// The version that rows are of, by a schema that was read after them.
    pub(super) fn version_at_last(
        &self,
        session: &Session,
        rows: &QueryRowsResult,
    ) -> Result<Arc<Version>, SourceError> {
        let version = self.version(session, rows, true)?;
        version.ok_or_else(|| SourceError::answer(WHAT, "rows of no known shape"))
    }

    /// The version that rows are of, by the schema as the driver knows it. `None`, unless they are `to_be_taken`
    /// as they are: the schema does not explain them.
    fn version(
        &self,
        session: &Session,
        rows: &QueryRowsResult,
        to_be_taken: bool,
    ) -> Result<Option<Arc<Version>>, SourceError> {
        let specs = || {
            let specs = rows.column_specs().as_slice().iter();
            specs.map(|s| (s.name(), s.typ()))
        };
        // Held for all of it, so that two readers who meet a new version make one of it.
        let mut versions = self.versions.lock();
        if let Some(known) = versions.iter().rev().find(|v| v.fits(specs())) {
            return Ok(Some(known.clone()));
        }
        let wire: Vec<(String, ColumnType<'static>)> = specs()
            .map(|(name, typ)| (name.to_owned(), typ.clone().into_owned()))
            .collect();
        let state = session.get_cluster_state();
        let base = state
            .get_keyspace(&self.keyspace)
            .and_then(|k| k.tables.get(&self.name))
            .map(schema::base);
        let resolved = schema::resolve(&self.keyspace, &self.name, base.as_ref(), wire)
            .map_err(|e| SourceError::answer(WHAT, e))?;
        if !resolved.agrees && !to_be_taken {
            return Ok(None);
        }
        let version = Arc::new(resolved.version);
        tracing::info!(
            table = %self.full,
            schema = version.schema.id,
            columns = version.schema.columns.len(),
            "new version of a table's schema"
        );
        versions.push(version.clone());
        if versions.len() > VERSIONS {
            versions.remove(0);
        }
        self.versions_seen.fetch_add(1, Relaxed);
        Ok(Some(version))
    }
}

impl Page {
    /// Its rows from this index on.
    pub(super) fn rows_from(&self, skip: usize) -> Result<Rows<'_>, SourceError> {
        Rows::of(&self.rows)?.skip(skip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{timeuuid_cmp, timeuuid_us};

    #[test]
    fn the_smallest_timeuuid_sorts_before_all_of_its_time() {
        let us = 1_767_225_600_123_456;
        let min = min_timeuuid(us);
        assert_eq!(timeuuid_us(&min), us);
        let mut bytes = *min.as_bytes();
        for low in [
            [0x80, 0x80, 0, 0, 0, 0, 0, 1],
            [0x9f, 0xff, 1, 2, 3, 4, 5, 6],
            [0xbf; 8],
        ] {
            bytes[8..].copy_from_slice(&low);
            assert!(timeuuid_cmp(&min, &Uuid::from_bytes(bytes)).is_lt());
        }
        assert!(timeuuid_cmp(&min_timeuuid(us - 1), &min).is_lt());
        assert_eq!(
            timeuuid_us(&min_timeuuid(i64::MIN)),
            -12_219_292_800_000_000
        );
    }
}
