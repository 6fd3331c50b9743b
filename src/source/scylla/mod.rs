//! ScyllaDB's change log as a source.
//!
//! A shard reads the stream groups that fall to it, each by itself: window after window of time, page after
//! page, never past now − `safety_interval`. What a module holds:
//!
//! - [`clock`], [`pace`], [`schedule`], [`generations`], [`barrier`], [`cursor`], [`past`], [`room`], [`gaps`]:
//!   decisions, without I/O;
//! - [`schema`], [`decode`], [`group`], [`segment`], [`batches`]: rows of the wire → batches;
//! - [`log`], [`requests`], [`reader`]: the reading itself;
//! - [`survey`]: what all shards have to know, [`questions`]: what is asked for it;
//! - [`link`]: the connection.
//!
//! Nothing is spawned: a shard's reads are futures that it polls itself, so they end when it is dropped.

mod again;
mod barrier;
mod batches;
mod classify;
mod clock;
mod cursor;
mod decode;
mod elsewhere;
mod error;
pub mod examine;
mod gaps;
mod generations;
mod glance;
mod group;
mod link;
mod log;
mod pace;
mod past;
pub(crate) mod place;
mod questions;
mod reader;
mod requests;
mod room;
mod rows;
mod schedule;
mod schema;
pub(crate) mod secure;
mod segment;
mod survey;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed,
};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use scylla::statement::{Consistency, Statement};
use scylla::value::CqlTimeuuid;
use uuid::Uuid;

pub use error::SourceError;

use self::barrier::Barrier;
use self::clock::{Clock, Doubt};
use self::cursor::Cursor;
use self::elsewhere::Ending;
use self::gaps::Trouble;
use self::generations::{Generation, Placing};
use self::glance::Glance;
use self::link::Link;
use self::log::LogTable;
use self::reader::Reader;
use self::room::Room;
use self::survey::Survey;
use super::{ShardReader, ShardStatus, Source, SourceStatus, TableStatus};
use crate::change::{Batch, GroupKey, Position, Progress, timeuuid_us};
use crate::checkpoint::Checkpoints;
use crate::checkpoint::log::CheckpointLog;
use crate::config::settings::{self, LiveSettings, Nodes};
use crate::policy::health::Status;
use crate::policy::stage::StagePolicies;

const LOG_SUFFIX: &str = "_scylla_cdc_log";
/// Failures are logged no more often; those between two lines are counted.
const TOLD_AGAIN: Duration = Duration::from_secs(10);
/// Changes that came late are in health for so long after the last one.
const LATE_NOTED: Duration = Duration::from_secs(60);

/// A session with the cluster, and the tables to read.
pub struct ScyllaSource {
    link: Link,
    live: LiveSettings,
    policies: StagePolicies,
    tables: Vec<Arc<LogTable>>,
    barrier: Barrier,
    /// Of all shards; asked where others may have some of them.
    others: OnceLock<Arc<CheckpointLog>>,
    survey: Survey,
    /// Of the nodes, by host id.
    clock: Mutex<Clock<Uuid>>,
    room: Room,
    glance: Glance,
    connected_us: i64,
    shards: Mutex<BTreeMap<u32, Arc<ShardStats>>>,
    /// Generations (`keyspace.table/generation`) whose groups are placed by their hash.
    hashed: Mutex<BTreeSet<String>>,
    /// Stream groups that all of them read.
    groups: AtomicUsize,
    stats: Stats,
}

#[derive(Default)]
struct Stats {
    rows: AtomicU64,
    bytes: AtomicU64,
    undecodable: AtomicU64,
    pages: AtomicU64,
    windows: AtomicU64,
    looks: AtomicU64,
    late: AtomicU64,
    /// When the last change came late, and how many have since it was told.
    late_told: Mutex<Option<(Instant, u64)>>,
    failed_reads: AtomicU64,
    last_error: Mutex<Option<(SystemTime, String)>>,
    /// When a failure was last logged.
    told: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct ShardStats {
    /// All groups are read up to here, µs since the Unix epoch; 0: not known yet.
    complete_us: AtomicI64,
    catching_up: AtomicBool,
    groups: AtomicUsize,
    rows: AtomicU64,
    concurrency: AtomicU32,
    waiting: AtomicBool,
    /// A read was refused or timed out since the last look.
    pressed: AtomicBool,
}

impl ScyllaSource {
    /// Connects to `source.nodes` and checks that every table can be read. Makes one attempt: the caller
    /// retries what [`is_retryable`](SourceError::is_retryable) says may pass.
    pub async fn connect(
        live: LiveSettings,
        policies: StagePolicies,
    ) -> Result<Arc<Self>, SourceError> {
        let nodes = {
            let settings = live.borrow();
            match &settings.source.nodes {
                Nodes::At(nodes) => nodes.clone(),
                // Port 0 was given to whoever started the node; only that one knows the address.
                Nodes::Embedded if settings.embedded.scylla_listen.port() != 0 => {
                    vec![settings.embedded.scylla_listen.to_string()]
                }
                Nodes::Embedded => return Err(SourceError::NoEmbeddedNode),
            }
        };
        Self::connect_to(&nodes, live, policies).await
    }

    /// As [`Self::connect`], with the contact points given.
    pub async fn connect_to(
        nodes: &[String],
        live: LiveSettings,
        policies: StagePolicies,
    ) -> Result<Arc<Self>, SourceError> {
        let source = live.borrow().source.clone();
        let connecting = Link::connect(nodes, &source);
        let link = policies
            .waits()
            .during("connect to ScyllaDB", connecting)
            .await?;
        let state = link.session().get_cluster_state();
        let tables: Vec<Arc<LogTable>> = source
            .tables
            .iter()
            .map(|name| {
                let table = LogTable::new(&source.keyspace, name);
                match table.find(&state) {
                    // It may be made yet, and is waited for.
                    Err(error) if error.is_final() => Err(error),
                    Err(_) | Ok(()) => Ok(Arc::new(table)),
                }
            })
            .collect::<Result<_, _>>()?;
        let mut this = Self {
            link,
            live,
            policies,
            survey: Survey::new(tables.len()),
            tables,
            barrier: Barrier::new(),
            others: OnceLock::new(),
            clock: Mutex::new(Clock::new(Instant::now())),
            room: Room::new(),
            glance: Glance::default(),
            connected_us: i64::MIN,
            shards: Mutex::default(),
            hashed: Mutex::default(),
            groups: AtomicUsize::new(0),
            stats: Stats::default(),
        };
        this.ask_clock().await?;
        this.connected_us = this.now_us();
        for table in &this.tables {
            let enabled = this.refresh_cdc_options(table).await?;
            if !enabled {
                tracing::warn!(table = %table.full, "change capture is switched off, reading what the log still has");
            }
        }
        Ok(Arc::new(this))
    }

    /// The time that no node's clock is behind of, µs since the Unix epoch.
    fn now_us(&self) -> i64 {
        // Nothing is read before the first answer.
        self.clock.lock().now_us(Instant::now()).unwrap_or(0)
    }

    /// Asks a node what time it is.
    async fn ask_clock(&self) -> Result<(), SourceError> {
        const WHAT: &str = "cannot ask what time it is";
        let mut statement = Statement::new("SELECT now() FROM system.local");
        statement.set_is_idempotent(true);
        statement.set_consistency(Consistency::One);
        statement.set_request_timeout(Some(self.live.borrow().source.read_timeout));
        let sent = Instant::now();
        let session = self.session();
        let asked = session.query_unpaged(statement, ());
        let result = self
            .policies
            .waits()
            .during("ask what time it is", asked)
            .await
            .map_err(SourceError::execute(WHAT))?;
        let received = Instant::now();
        let node = result.request_coordinator().node().host_id;
        let rows = result
            .into_rows_result()
            .map_err(|e| SourceError::answer(WHAT, e))?;
        let (time,) = rows
            .single_row::<(CqlTimeuuid,)>()
            .map_err(|e| SourceError::answer(WHAT, e))?;
        let db_us = timeuuid_us(time.as_ref());
        self.clock.lock().hear(node, db_us, sent, received);
        Ok(())
    }

    /// So many changes came late.
    fn came_late(&self, changes: u64) {
        self.stats.late.fetch_add(changes, Relaxed);
        let now = Instant::now();
        let mut told = self.stats.late_told.lock();
        match &mut *told {
            Some((at, more)) if at.elapsed() < LATE_NOTED => {
                *at = now;
                *more += changes;
            }
            told => {
                tracing::warn!(
                    changes,
                    "changes appeared in the log behind what had been read: delivered late, out of order"
                );
                *told = Some((now, changes));
            }
        }
    }

    /// What is not as it should be without anything having failed.
    fn complaint(&self) -> Option<Status> {
        if let Some(lost) = self.link.complaint() {
            return Some(Status::Unhealthy(lost.into()));
        }
        let troubles: Vec<String> = self.tables.iter().filter_map(|t| self.trouble(t)).collect();
        if !troubles.is_empty() {
            let all = troubles.len() == self.tables.len();
            let reason = troubles.join("; ").into();
            return Some(match all {
                true => Status::Unhealthy(reason),
                false => Status::Degraded(reason),
            });
        }
        if let Some(refusal) = self.link.refusal() {
            return Some(Status::Degraded(refusal.into()));
        }
        let now = Instant::now();
        match self.clock.lock().doubt(now) {
            Some(Doubt::Stepped(why)) => return Some(Status::Unhealthy(why.into())),
            Some(Doubt::Unheard(why)) => return Some(Status::Degraded(why.into())),
            None => {}
        }
        if let Some(left) = self.room.shrunk() {
            let left = left.as_secs_f64();
            return Some(Status::Degraded(
                format!("more changes than can be remembered: late ones are looked for {left:.0} s behind only").into(),
            ));
        }
        let told = *self.stats.late_told.lock();
        let (_, changes) = told.filter(|(at, _)| at.elapsed() < LATE_NOTED)?;
        Some(Status::Degraded(
            format!("{changes} changes came late and were delivered out of order").into(),
        ))
    }

    /// Why changes of a table cannot be read now.
    fn trouble(&self, table: &LogTable) -> Option<String> {
        let trouble = table.gaps.lock().trouble()?;
        let state = self.session().get_cluster_state();
        let text = format!("{}: {trouble}", table.full);
        Some(match table.find(&state) {
            Err(error) if trouble == Trouble::Gone => format!("{text} ({error})"),
            _ => text,
        })
    }

    /// Everything before this time (µs since the Unix epoch) is read; `None`: not known.
    fn read_until_us(&self) -> Option<i64> {
        let shards = self.shards.lock();
        let read = shards.values().map(|s| s.complete_us.load(Relaxed));
        read.filter(|us| *us > 0).min()
    }

    /// Counts a failed attempt; says so at once, and then now and then.
    fn failed(&self, error: &SourceError) {
        self.stats.failed_reads.fetch_add(1, Relaxed);
        self.link.failed(error);
        *self.stats.last_error.lock() = Some((SystemTime::now(), error.to_string()));
        let mut told = self.stats.told.lock();
        if told.is_none_or(|at| at.elapsed() >= TOLD_AGAIN) {
            *told = Some(Instant::now());
            tracing::warn!(%error, "a read failed, trying again");
        } else {
            tracing::debug!(%error, "a read failed, trying again");
        }
    }
}

impl ScyllaSource {
    /// Whether a shard may go on to the next generation.
    fn may_leave(&self, cursor: &Cursor, shard: u32, shards: u32) -> bool {
        let (Some((next, _)), Some(here)) = (
            &cursor.next,
            self.barrier.may_leave(&cursor.table.full, shard),
        ) else {
            return false;
        };
        let ending = Ending {
            table: &cursor.table.full,
            generation: cursor.generation,
            streams: &cursor.streams,
            placing: cursor.placing,
            next: *next,
        };
        let others = self.others.get();
        others.is_none_or(|log| elsewhere::is_done(log, ending, shards, &here))
    }
}

impl ScyllaSource {
    /// How the groups of a generation are placed: as an earlier version has begun to, or evenly.
    fn placing(&self, table: &str, generation: Generation, own: &Checkpoints) -> Placing {
        let generation = format!("{table}/{generation}");
        let by_hash = |key: &GroupKey| key.placed_by_hash() == Some(&generation);
        match self.hashed.lock().contains(&generation) || own.keys().any(by_hash) {
            true => Placing::Hash,
            false => Placing::Number,
        }
    }
}

impl Source for ScyllaSource {
    fn absent(&self) -> Vec<(Arc<str>, SourceError)> {
        let state = self.session().get_cluster_state();
        let absent = |t: &Arc<LogTable>| Some((t.full.clone(), t.find(&state).err()?));
        self.tables.iter().filter_map(absent).collect()
    }

    fn look_ahead(&self, within: Duration) -> BoxFuture<'_, ()> {
        Box::pin(self.survey_once(within))
    }

    fn checkpoint_log(&self) -> Option<Arc<CheckpointLog>> {
        let log = || Arc::new(CheckpointLog::new(self.barrier.bell()));
        Some(self.others.get_or_init(log).clone())
    }

    fn placed_by_hash(&self, generations: &BTreeSet<String>) {
        self.hashed.lock().extend(generations.iter().cloned());
    }

    fn survey(self: Arc<Self>) -> BoxFuture<'static, Result<Infallible, SourceError>> {
        Box::pin(async move { self.keep_surveying().await })
    }

    fn open_shard(
        self: Arc<Self>,
        shard: u32,
        shards: u32,
        epoch: u64,
        checkpoints: Checkpoints,
    ) -> Box<dyn ShardReader> {
        self.barrier
            .open(shard, self.tables.iter().map(|t| &t.full));
        let stats = Arc::new(ShardStats::default());
        {
            let mut shards = self.shards.lock();
            // Until it is measured anew, the lag is what it was.
            if let Some(before) = shards.get(&shard) {
                let complete_us = before.complete_us.load(Relaxed);
                stats.complete_us.store(complete_us, Relaxed);
            }
            shards.insert(shard, stats.clone());
        }
        Box::new(Reader::new(self, stats, shard, shards, epoch, checkpoints))
    }

    fn acknowledged(&self, shard: u32, progress: &[Progress]) {
        self.barrier.acknowledged(shard, progress);
    }

    fn release_shard(&self, shard: u32) {
        self.barrier.release(shard);
        self.shards.lock().remove(&shard);
    }

    fn read_again<'a>(
        &'a self,
        table: &'a str,
        position: Position,
    ) -> BoxFuture<'a, Result<Option<Batch>, SourceError>> {
        Box::pin(self.read_write(table, position))
    }

    fn status(&self) -> SourceStatus {
        let now_us = self.now_us();
        let shards = self.shards.lock();
        SourceStatus {
            rows: self.stats.rows.load(Relaxed),
            bytes: self.stats.bytes.load(Relaxed),
            undecodable: self.stats.undecodable.load(Relaxed),
            pages: self.stats.pages.load(Relaxed),
            windows: self.stats.windows.load(Relaxed),
            looks: self.stats.looks.load(Relaxed),
            late: self.stats.late.load(Relaxed),
            complaint: self.complaint(),
            failed_reads: self.stats.failed_reads.load(Relaxed),
            last_error: self.stats.last_error.lock().clone(),
            shards: shards
                .iter()
                .map(|(&shard, s)| {
                    let lag_us = match s.complete_us.load(Relaxed) {
                        0 => 0,
                        complete => now_us - complete,
                    };
                    ShardStatus {
                        shard,
                        lag: Duration::from_micros(lag_us.max(0) as u64),
                        catching_up: s.catching_up.load(Relaxed),
                        groups: s.groups.load(Relaxed),
                        rows: s.rows.load(Relaxed),
                        concurrency: s.concurrency.load(Relaxed),
                        waiting_for_generation: s.waiting.load(Relaxed),
                    }
                })
                .collect(),
            tables: self
                .tables
                .iter()
                .enumerate()
                .map(|(index, t)| {
                    let (gaps, gaps_us) = t.gaps();
                    TableStatus {
                        table: t.full.to_string(),
                        cdc_ttl: t.known_ttl(),
                        tablets: t.tablets.load(Relaxed),
                        generation_ms: self.barrier.oldest(&t.full),
                        generations: self.survey.of(index).map_or(0, |k| k.generations.len()),
                        schema_versions: t.versions_seen(),
                        gaps,
                        gaps_for: Duration::from_micros(gaps_us),
                    }
                })
                .collect(),
        }
    }
}

impl std::fmt::Debug for ScyllaSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScyllaSource")
            .field(
                "tables",
                &self.tables.iter().map(|t| &t.full).collect::<Vec<_>>(),
            )
            .finish_non_exhaustive()
    }
}

fn consistency(of: settings::Consistency) -> Consistency {
    match of {
        settings::Consistency::One => Consistency::One,
        settings::Consistency::Two => Consistency::Two,
        settings::Consistency::Three => Consistency::Three,
        settings::Consistency::Quorum => Consistency::Quorum,
        settings::Consistency::LocalQuorum => Consistency::LocalQuorum,
        settings::Consistency::LocalOne => Consistency::LocalOne,
        settings::Consistency::All => Consistency::All,
    }
}
