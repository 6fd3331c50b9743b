//! What travels through a shard: changes in, records out, and the positions that tell them apart.
//!
//! A [`Batch`] keeps its changes in one buffer, in the very encoding that plugins read
//! ([`penstock_plugin_encoding`]): a row is decoded from CQL once, never boxed, and handed to a guest by
//! copying bytes. A [`RecordBatch`] points into that buffer and into the guest's output.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use penstock_plugin_encoding::Rows;
use uuid::Uuid;

/// A CDC stream: 16 opaque bytes, the partition key of the log table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub [u8; 16]);

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a change stands: unique in the log, ordered within its stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Position {
    /// `cdc$stream_id`.
    pub stream: StreamId,
    /// `cdc$time`, a version 1 UUID.
    pub time: Uuid,
    /// `cdc$batch_seq_no`.
    pub seq: i32,
}

/// 100 ns ticks between the UUID epoch (1582-10-15) and the Unix epoch.
const UUID_EPOCH_TICKS: u64 = 0x01b2_1dd2_1381_4000;

impl Position {
    /// Where no change stands.
    pub const NOWHERE: Self = Self {
        stream: StreamId([0; 16]),
        time: Uuid::from_u128(0x1000_8000_0000_0000_0000),
        seq: 0,
    };

    /// The write timestamp: microseconds since the Unix epoch.
    pub fn timestamp_us(&self) -> i64 {
        timeuuid_us(&self.time)
    }
}

/// The time of a version 1 UUID in microseconds since the Unix epoch.
#[inline]
pub fn timeuuid_us(id: &Uuid) -> i64 {
    let ticks = match id.get_version_num() {
        // What it says of others goes by way of seconds, which takes several times as long.
        1 => {
            let (low, mid, high, _) = id.as_fields();
            u64::from(high & 0x0fff) << 48 | u64::from(mid) << 32 | u64::from(low)
        }
        _ => id
            .get_timestamp()
            .map_or(UUID_EPOCH_TICKS, |t| t.to_gregorian().0),
    };
    (ticks as i64 - UUID_EPOCH_TICKS as i64) / 10
}

/// Orders two timeuuids as ScyllaDB does: by time, then by the low eight bytes taken as signed bytes.
pub fn timeuuid_cmp(a: &Uuid, b: &Uuid) -> Ordering {
    let ticks = |u: &Uuid| u.get_timestamp().map_or(0, |t| t.to_gregorian().0);
    ticks(a).cmp(&ticks(b)).then_with(|| {
        let low = |u: &Uuid| -> [i8; 8] { std::array::from_fn(|i| u.as_bytes()[8 + i] as i8) };
        low(a).cmp(&low(b))
    })
}

impl PartialOrd for Position {
    /// `None` for positions of different streams: they have no order.
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self.stream == other.stream)
            .then(|| timeuuid_cmp(&self.time, &other.time).then(self.seq.cmp(&other.seq)))
    }
}

/// `<stream, hex>:<cdc$time, uuid>:<cdc$batch_seq_no>`, the form of the `penstock-position` header.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.stream, self.time, self.seq)
    }
}

/// The text is not `<32 hex digits>:<uuid>:<integer>`.
#[derive(Debug, thiserror::Error)]
#[error("not a position: {0:?} (expected <stream in hex>:<cdc$time>:<cdc$batch_seq_no>)")]
pub struct InvalidPosition(String);

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || InvalidPosition(s.to_owned());
        let mut parts = s.splitn(3, ':');
        let mut next = || parts.next().ok_or_else(bad);
        let mut stream = [0; 16];
        hex::decode_to_slice(next()?, &mut stream).map_err(|_| bad())?;
        let time = next()?.parse().map_err(|_| bad())?;
        let seq = next()?.parse().map_err(|_| bad())?;
        Ok(Position {
            stream: StreamId(stream),
            time,
            seq,
        })
    }
}

/// What a column is in its base table.
pub use penstock_plugin_encoding::ColumnKind;

/// A column of a base table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// As in `system_schema.columns`.
    pub name: String,
    /// In CQL notation, a UDT written out as `udt<keyspace.name, field: type, …>`.
    pub cql_type: String,
    /// Its part in the primary key.
    pub kind: ColumnKind,
}

/// One version of a base table's shape. A schema change makes a new one with a new `id`.
#[derive(Debug, PartialEq, Eq)]
pub struct TableSchema {
    /// Unique in the process; what the encoded rows carry.
    pub id: u32,
    /// The keyspace.
    pub keyspace: String,
    /// The base table, not its log.
    pub name: String,
    /// In the order in which the encoded rows carry them.
    pub columns: Vec<Column>,
}

/// The streams read together, of one table: what a checkpoint belongs to.
///
/// `keyspace.table/generation/first-stream@number`: stable over restarts and over a change of `shards`. The number
/// says which shard the group belongs to; without one, as keys of earlier versions are, a hash of the key does.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GroupKey(pub Arc<str>);

/// Between a group's key and the number of a leaf of its memory. No table's name has it.
const LEAF: char = '#';
/// Between a group's key and its number among those of its generation. No table's name has it.
const NUMBER: char = '@';
/// Begins the last part of the key that keeps the place of a shard without a group.
const VACANT: &str = "shard-";
/// The last part of the key that says where to begin.
const START: &str = "@start";

impl GroupKey {
    /// Keeps the place of a shard without a group of its own in a generation (`keyspace.table/generation`), so
    /// that it too goes on there after a restart. It has a checkpoint, and nothing to read.
    pub fn vacant(generation: &str, shard: u32) -> Self {
        Self(format!("{generation}/{VACANT}{shard}").into())
    }

    /// Not of a group: says where a table without checkpoints is read from, instead of `source.start_from`.
    pub fn start(table: &str) -> Self {
        Self(format!("{table}/{START}").into())
    }

    /// Whether it is [`Self::start`].
    pub fn is_start(&self) -> bool {
        self.0
            .rsplit_once('/')
            .is_some_and(|(_, last)| last == START)
    }

    /// The key of a leaf of this group's memory: fingerprints of writes that were handed on, under a key of
    /// their own so that they are written once ([`Memory`]).
    pub fn leaf(&self, number: u64) -> Self {
        Self(format!("{}{LEAF}{number}", self.0).into())
    }

    /// The group and the number, of a leaf's key; `None` for a group's own.
    pub fn leaf_of(&self) -> Option<(&str, u64)> {
        let (group, number) = self.0.rsplit_once(LEAF)?;
        Some((group, number.parse().ok()?))
    }

    /// The key of a group that has this number among those of its generation: the shard is `number % shards`, so that
    /// groups that are numbered one after the other are spread evenly over any number of shards.
    pub fn numbered(&self, number: u32) -> Self {
        Self(format!("{}{NUMBER}{number}", self.0).into())
    }

    /// The generation (`keyspace.table/generation`) of a key without a number: of one whose groups are placed by
    /// their hash. `None` for one with a number, and for what is no group's key.
    pub fn placed_by_hash(&self) -> Option<&str> {
        let group = self.leaf_of().map_or(&*self.0, |(group, _)| group);
        let (generation, last) = group.rsplit_once('/')?;
        (!last.contains(NUMBER) && generation.contains('/')).then_some(generation)
    }

    /// The slot out of `shards` that this group belongs to, the same in every process.
    pub fn shard(&self, shards: u32) -> u32 {
        use sha2::Digest;
        let group = self.leaf_of().map_or(&*self.0, |(group, _)| group);
        let number = group
            .rsplit_once(NUMBER)
            .and_then(|(_, n)| n.parse::<u32>().ok());
        if let Some(number) = number {
            return number % shards;
        }
        let vacant = group.rsplit_once('/').and_then(|(_, last)| {
            let shard: u32 = last.strip_prefix(VACANT)?.parse().ok()?;
            Some(shard % shards)
        });
        if let Some(shard) = vacant {
            return shard;
        }
        let digest = sha2::Sha256::digest(group.as_bytes());
        let head: [u8; 8] = std::array::from_fn(|i| digest[i]);
        (u64::from_be_bytes(head) % u64::from(shards)) as u32
    }
}

/// How far a batch brings one stream group once all of the batch is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The stream group.
    pub group: GroupKey,
    /// All changes written before this time (µs since the Unix epoch, exclusive) are in this batch or
    /// an earlier one. `None`: the window is not finished.
    pub complete_until_us: Option<i64>,
    /// The last position of each stream that the batch touches.
    pub streams: Vec<Position>,
    /// Streams of which a write is in the batch that came late, and moves no position.
    pub late: Vec<StreamId>,
    /// The group's stream are closed and read to their end: its checkpoint may be forgotten. Of a leaf: none of
    /// its writes can be met again.
    pub finished: bool,
    /// What is to be remembered of the writes in the batch.
    pub memory: Memory,
}

impl Progress {
    /// None yet.
    pub fn new(group: GroupKey) -> Self {
        Self {
            group,
            complete_until_us: None,
            streams: Vec::new(),
            late: Vec::new(),
            finished: false,
            memory: Memory::default(),
        }
    }
}

/// What a batch adds to what is remembered of a group: which writes were handed on that a look back could meet
/// again. Written once they are many, as a leaf ([`GroupKey::leaf`]); the last few are in the group's own
/// checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Everything that was written at or after this time, µs since the Unix epoch, and handed on is remembered.
    pub since_us: Option<i64>,
    /// What the group's own checkpoint held until here is in a leaf now, or need not be remembered any more.
    pub moved: bool,
    /// [`fingerprint`]s of the writes that come after that.
    pub writes: Arc<Vec<u64>>,
}

/// Stands for a write (one stream and time: its rows were written together) in what is remembered of it. The
/// XXH3 hash (64 bits, seed 0) of stream and time: it is in checkpoints, so it must not change.
pub fn fingerprint(stream: &StreamId, time: &Uuid) -> u64 {
    let mut key = [0; 32];
    key[..16].copy_from_slice(&stream.0);
    key[16..].copy_from_slice(time.as_bytes());
    twox_hash::XxHash3_64::oneshot(&key)
}

/// A row that could not be decoded: goes to the dead letters, with what is known of it.
#[derive(Clone, Debug)]
pub struct Undecodable {
    /// Where it stands in the log.
    pub position: Position,
    /// `keyspace.table`.
    pub table: String,
    /// What is wrong with it.
    pub error: String,
    /// The raw row, as JSON of column name → hex of its bytes.
    pub raw: Bytes,
}

/// Consecutive changes of one shard, handed on together. May be empty and carry progress only.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The slot it belongs to.
    pub shard: u32,
    /// Counts the rewinds of the shard; batches of an earlier epoch are let go of.
    pub epoch: u64,
    /// The changes in the plugins' encoding, with all columns.
    pub rows: Rows,
    /// The position of each row.
    pub positions: Vec<Position>,
    /// Every table version that the rows refer to.
    pub tables: Vec<Arc<TableSchema>>,
    /// Rows that could not be decoded, in the log's order.
    pub undecodable: Vec<Undecodable>,
    /// What may be checkpointed once everything above is done.
    pub progress: Vec<Progress>,
    /// When the source had it: for the stages' latencies.
    pub read_at: std::time::Instant,
}

impl Batch {
    /// The table version that a row's `table` field names.
    pub fn table(&self, id: u32) -> Option<&Arc<TableSchema>> {
        self.tables.iter().find(|t| t.id == id)
    }
}

/// Bytes of a record: in the guest's output or in the batch that it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slice {
    /// A null key, or a tombstone value.
    Null,
    /// In [`RecordBatch::output`].
    Output {
        /// First byte.
        start: u32,
        /// One past the last byte.
        end: u32,
    },
    /// In the buffer of [`RecordBatch::source`]'s rows.
    Source {
        /// First byte.
        start: u32,
        /// One past the last byte.
        end: u32,
    },
}

impl Slice {
    /// Its bytes.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::Null => 0,
            Self::Output { start, end } | Self::Source { start, end } => {
                end.saturating_sub(start) as usize
            }
        }
    }
}

/// What goes to Redpanda.
#[derive(Clone, Debug)]
pub struct Record {
    /// Index of the change in the source batch.
    pub source: u32,
    /// Index into [`RecordBatch::topics`].
    pub topic: u32,
    /// The key.
    pub key: Slice,
    /// The value.
    pub value: Slice,
    /// The headers that the transform set: a range of [`RecordBatch::headers`].
    pub headers: std::ops::Range<u32>,
}

/// A change that a stage gave up on, on its way to the dead letters.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// Index of the change in the source batch.
    pub source: u32,
    /// The stage's name, e.g. `transform.outbox-router`.
    pub stage: Arc<str>,
    /// What went wrong.
    pub error: String,
    /// How often it was tried.
    pub attempts: u32,
}

/// What the transforms made of a batch.
#[derive(Debug)]
pub struct RecordBatch {
    /// The changes that the records came from.
    pub source: Batch,
    /// The bytes that the guests wrote.
    pub output: Vec<u8>,
    /// The topics that the records name.
    pub topics: Vec<Arc<str>>,
    /// Header name and value.
    pub headers: Vec<(Slice, Slice)>,
    /// In the order in which they are to be produced.
    pub records: Vec<Record>,
    /// Changes that go to the dead letters instead.
    pub rejected: Vec<Rejected>,
    /// Changes that the transforms dropped on purpose or by `on_error = "drop"`.
    pub dropped: u32,
    /// Which of its changes are traced.
    pub traces: Traces,
}

/// A change that is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traced {
    /// Index of the change in the source batch.
    pub source: u32,
    /// The trace.
    pub trace: u128,
    /// The span that it is a child of, wherever that was; `None`: the trace begins with it.
    pub parent: Option<u64>,
    /// The change's own span: from its write until it is done.
    pub span: u64,
    /// The span of its records' way to the brokers, which whoever reads them goes on from.
    pub sent: u64,
}

/// What a stage took for a batch of which something is traced.
#[derive(Clone, Debug)]
pub struct TracedStep {
    /// `transform.<name>`
    pub stage: Arc<str>,
    /// When it began.
    pub began: std::time::Instant,
    /// How long it took.
    pub took: std::time::Duration,
    /// Changes and records that it was handed.
    pub items: u32,
}

/// What is traced of a batch.
#[derive(Clone, Debug, Default)]
pub struct Traces {
    /// Whether changes are traced at all.
    pub on: bool,
    /// Those that are, in the order of the batch.
    pub changes: Vec<Traced>,
    /// The stages between source and sink; none unless a change is traced.
    pub steps: Vec<TracedStep>,
}

impl Traces {
    /// A change's trace.
    pub fn of(&self, source: u32) -> Option<&Traced> {
        let at = self.changes.binary_search_by_key(&source, |t| t.source);
        self.changes.get(at.ok()?)
    }
}

impl RecordBatch {
    /// The bytes that a slice stands for; `None` for null.
    pub fn bytes(&self, slice: Slice) -> Option<&[u8]> {
        match slice {
            Slice::Null => None,
            Slice::Output { start, end } => self.output.get(start as usize..end as usize),
            Slice::Source { start, end } => self
                .source
                .rows
                .as_bytes()
                .get(start as usize..end as usize),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_an_id_is_the_one_that_its_clock_said() {
        for ticks in [
            0,
            1,
            UUID_EPOCH_TICKS - 1,
            UUID_EPOCH_TICKS,
            0x01f1_2345_6789_abcd,
            0x0fff_ffff_ffff_ffff,
        ] {
            let time = uuid::Timestamp::from_gregorian_time(ticks, 7);
            let id = Uuid::new_v1(time, &[1; 6]);
            let us = (ticks as i64 - UUID_EPOCH_TICKS as i64) / 10;
            assert_eq!(timeuuid_us(&id), us, "{ticks:x}");
        }
        assert_eq!(timeuuid_us(&Uuid::nil()), 0);
    }

    #[test]
    fn a_position_survives_its_text_form() {
        let position = Position {
            stream: StreamId([7; 16]),
            time: Uuid::parse_str("8e3d2f00-e86c-11f0-9d3d-0242ac120002").unwrap(),
            seq: 3,
        };
        assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        assert!("07:x:1".parse::<Position>().is_err());
    }

    #[test]
    fn a_key_says_which_shard_it_belongs_to() {
        let group = GroupKey("ks.t/17/00ff".into());
        let leaf = group.leaf(7);
        assert_eq!(leaf.leaf_of(), Some(("ks.t/17/00ff", 7)));
        assert_eq!(group.leaf_of(), None);
        for shards in 1..9 {
            assert_eq!(leaf.shard(shards), group.shard(shards));
            for shard in 0..shards {
                let vacant = GroupKey::vacant("ks.t/17", shard);
                assert_eq!(vacant.shard(shards), shard, "its own place is its own");
                assert!(vacant.shard(1) == 0);
            }
        }
    }

    #[test]
    fn a_number_says_which_shard_and_the_hash_where_there_is_none() {
        let hashed = GroupKey("ks.t/17/00ff".into());
        let numbered = hashed.numbered(9);
        assert_eq!(&*numbered.0, "ks.t/17/00ff@9");
        assert_eq!((numbered.shard(4), numbered.leaf(3).shard(4)), (1, 1));
        assert_eq!(numbered.leaf(3).leaf_of(), Some(("ks.t/17/00ff@9", 3)));
        for key in [&hashed, &hashed.leaf(3), &GroupKey::vacant("ks.t/17", 2)] {
            assert_eq!(key.placed_by_hash(), Some("ks.t/17"), "{key:?}");
        }
        let vacant = GroupKey::vacant("ks.t/17", 2).numbered(2);
        for key in [&numbered, &numbered.leaf(3), &vacant] {
            assert_eq!(key.placed_by_hash(), None, "{key:?}");
        }
        assert_eq!(GroupKey("@owner".into()).placed_by_hash(), None);
    }

    #[test]
    fn a_fingerprint_does_not_change() {
        let time = Uuid::parse_str("8e3d2f00-e86c-11f0-9d3d-0242ac120002").unwrap();
        let one = fingerprint(&StreamId([7; 16]), &time);
        assert_eq!(one, 13_266_404_514_479_708_304, "checkpoints hold it");
        assert_ne!(one, fingerprint(&StreamId([8; 16]), &time));
    }

    #[test]
    fn timeuuids_order_by_time_then_by_signed_low_bytes() {
        let id = |s: &str| Uuid::parse_str(s).unwrap();
        let early = id("00000000-0000-1000-8080-808080808080");
        let late = id("00000001-0000-1000-8080-808080808080");
        let late_high = id("00000001-0000-1000-8080-80808080807f");
        assert_eq!(timeuuid_cmp(&early, &late), Ordering::Less);
        assert_eq!(timeuuid_cmp(&late, &late_high), Ordering::Less);
    }
}
