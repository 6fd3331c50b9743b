//! Looks at what passes a stage of a running pipeline.
//!
//! A tap never makes a lane wait. While there is none, a batch costs one look at a number; while there is one, what it may
//! show a second is bounded, what nobody fetches is let go of, and both are counted. One that nobody asks for any more ends.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::draft::{Draft, Item};
use super::render::Renderer;
use super::trace;
use crate::change::{ColumnKind, TableSchema};

/// Whoever has not asked for this long has gone.
const IDLE: Duration = Duration::from_secs(10);
/// Taps at a time: each costs the lanes what it shows.
const MOST_TAPS: usize = 8;
/// Lines and bytes that wait to be fetched.
const MOST_LINES: usize = 10_000;
const MOST_BYTES: usize = 8 << 20;
/// The most that is looked at a second for one that is shown, where most do not match.
const LOOKED_AT: u32 = 20;

/// What a tap is to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapFilter {
    /// `source`, `transform.<name>` or `sink`: what goes out of it.
    pub stage: String,
    /// Only of this table (`name` or `keyspace.name`).
    pub table: Option<String>,
    /// Only this operation.
    pub operation: Option<String>,
    /// Only records to this topic.
    pub topic: Option<String>,
    /// Only lines with this text in them.
    pub contains: Option<String>,
    /// At most so many a second.
    pub rate: u32,
}

/// What a tap has to show since it was last asked.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Taken {
    /// Changes and records, in JSON; a record is within `{"record": …}`.
    pub lines: Vec<serde_json::Value>,
    /// The columns of the tables of the changes, as `name type [primary|clustering|static], …`.
    pub tables: BTreeMap<String, String>,
    /// What matched, shown or not.
    pub seen: u64,
    /// What matched and was not shown: more a second than asked for, or not fetched in time.
    pub dropped: u64,
}

/// There are as many taps as may be.
#[derive(Debug, thiserror::Error)]
#[error("there are {MOST_TAPS} taps already; one ends {}s after it was last asked", IDLE.as_secs())]
pub struct TooManyTaps;

#[derive(Debug)]
struct Tap {
    id: String,
    filter: TapFilter,
    asked: Instant,
    /// The second that is counted, and what was shown and looked at in it.
    second: Instant,
    shown: u32,
    looked_at: u32,
    lines: VecDeque<String>,
    bytes: usize,
    tables: BTreeMap<String, String>,
    seen: u64,
    dropped: u64,
}

/// The taps of a pipeline.
#[derive(Debug, Default)]
pub struct Taps {
    open: AtomicUsize,
    taps: Mutex<Vec<Tap>>,
}

impl Taps {
    /// What a tap has to show; one that there is not yet is opened.
    ///
    /// # Errors
    /// There are too many.
    pub fn take(&self, id: &str, filter: &TapFilter, now: Instant) -> Result<Taken, TooManyTaps> {
        let mut taps = self.taps.lock();
        taps.retain(|tap| now.saturating_duration_since(tap.asked) < IDLE);
        let at = taps
            .iter()
            .position(|tap| tap.id == id && tap.filter == *filter);
        let taken = match at {
            Some(at) => {
                let tap = &mut taps[at];
                tap.asked = now;
                tap.bytes = 0;
                let lines = std::mem::take(&mut tap.lines);
                Ok(Taken {
                    lines: lines
                        .iter()
                        .filter_map(|line| serde_json::from_str(line).ok())
                        .collect(),
                    tables: std::mem::take(&mut tap.tables),
                    seen: std::mem::take(&mut tap.seen),
                    dropped: std::mem::take(&mut tap.dropped),
                })
            }
            None if taps.len() >= MOST_TAPS => Err(TooManyTaps),
            None => {
                taps.push(Tap {
                    id: id.to_owned(),
                    filter: filter.clone(),
                    asked: now,
                    second: now,
                    shown: 0,
                    looked_at: 0,
                    lines: VecDeque::new(),
                    bytes: 0,
                    tables: BTreeMap::new(),
                    seen: 0,
                    dropped: 0,
                });
                Ok(Taken::default())
            }
        };
        self.open.store(taps.len(), Relaxed);
        taken
    }

    /// Whether anybody looks.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Relaxed) > 0
    }

    /// Shows what goes out of a stage to whoever looks there.
    pub(super) fn show(&self, stage: &str, draft: &Draft, items: &[Item], renderer: &mut Renderer) {
        // Another lane may be showing something: nobody waits for that.
        let Some(mut taps) = self.taps.try_lock() else {
            return;
        };
        let now = Instant::now();
        taps.retain(|tap| now.saturating_duration_since(tap.asked) < IDLE);
        self.open.store(taps.len(), Relaxed);
        for tap in taps.iter_mut().filter(|tap| tap.filter.stage == stage) {
            for item in items {
                tap.look(draft, item, now, renderer);
            }
        }
    }
}

impl Tap {
    fn look(&mut self, draft: &Draft, item: &Item, now: Instant, renderer: &mut Renderer) {
        let batch = &draft.batch.source;
        let row = batch.rows.get(item.source() as usize);
        let table = row.as_ref().and_then(|row| batch.table(row.table()));
        let filter = &self.filter;
        let named = |table: &Arc<TableSchema>, name: &str| {
            table.name == name || name.split_once('.') == Some((&table.keyspace, &table.name))
        };
        let topic = match item {
            Item::Record(record) => draft.batch.topics.get(record.topic as usize),
            Item::Change(_) => None,
        };
        let matches = filter
            .table
            .as_ref()
            .is_none_or(|name| table.is_some_and(|t| named(t, name)))
            && filter
                .operation
                .as_ref()
                .is_none_or(|op| row.as_ref().is_some_and(|row| row.operation().name() == op))
            && filter
                .topic
                .as_ref()
                .is_none_or(|name| topic.is_some_and(|t| **t == **name));
        if !matches {
            return;
        }
        if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
            (self.second, self.shown, self.looked_at) = (now, 0, 0);
        }
        let looked_at = filter.rate.saturating_mul(LOOKED_AT);
        if self.shown >= filter.rate || self.looked_at >= looked_at {
            self.seen += 1;
            self.dropped += 1;
            return;
        }
        self.looked_at += 1;
        let line = match item {
            Item::Change(row) => renderer.line(batch, *row),
            Item::Record(record) => Ok(
                serde_json::json!({ "record": trace::plain_of(draft, record).to_json() })
                    .to_string(),
            ),
        };
        // One that cannot be written is the sink's to refuse.
        let Ok(line) = line else { return };
        if filter
            .contains
            .as_ref()
            .is_some_and(|text| !line.contains(text.as_str()))
        {
            return;
        }
        self.seen += 1;
        self.shown += 1;
        if let (Item::Change(_), Some(table)) = (item, table) {
            let name = format!("{}.{}", table.keyspace, table.name);
            self.tables.entry(name).or_insert_with(|| columns(table));
        }
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > MOST_LINES || self.bytes > MOST_BYTES {
            let gone = self.lines.pop_front();
            self.bytes -= gone.map_or(0, |line| line.len());
            self.dropped += 1;
        }
    }
}

/// `name type [primary|clustering|static], …`
fn columns(table: &TableSchema) -> String {
    let column = |column: &crate::change::Column| {
        let kind = match column.kind {
            ColumnKind::PartitionKey => " primary",
            ColumnKind::ClusteringKey => " clustering",
            ColumnKind::Static => " static",
            ColumnKind::Regular => "",
        };
        format!("{} {}{kind}", column.name, column.cql_type)
    };
    let columns: Vec<String> = table.columns.iter().map(column).collect();
    columns.join(", ")
}
