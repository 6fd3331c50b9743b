//! A ScyllaDB for tests of the source: the in-process stand-in, or what `PENSTOCK_TEST_SCYLLA` names
//! (host:port). Each test has a keyspace of its own.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use penstock::change::{Batch, Position, StreamId};
use penstock::checkpoint::Checkpoints;
use penstock::config::settings::{Nodes, Settings, StartFrom};
use penstock::policy::stage::StagePolicies;
use penstock::source::{ScyllaSource, Source, SourceError};
use penstock_plugin_encoding::{ColumnTag, Operation};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::value::CqlTimeuuid;
use scylla_double::{Node, Options};
use tokio::sync::watch;

/// A node, a keyspace and a session.
pub struct Db {
    /// `None`: a real one.
    pub node: Option<Node>,
    pub address: String,
    pub session: Arc<Session>,
    pub keyspace: String,
}

impl Db {
    pub async fn start(tablets: bool) -> Self {
        Self::with(tablets, Options::default()).await
    }

    /// With another stand-in than the default one.
    pub async fn with(tablets: bool, options: Options) -> Self {
        let (node, address) = match std::env::var("PENSTOCK_TEST_SCYLLA") {
            Ok(address) => (None, address),
            Err(_) => {
                let node = Node::start(options).await.expect("a free port");
                let address = node.addr().to_string();
                (Some(node), address)
            }
        };
        let session = SessionBuilder::new()
            .known_node(&address)
            .schema_agreement_interval(Duration::from_millis(5))
            .build()
            .await
            .expect("the driver connects");
        let keyspace = format!("ks_{}", uuid::Uuid::new_v4().simple());
        let db = Self {
            node,
            address,
            session: Arc::new(session),
            keyspace,
        };
        db.run(&format!(
            "CREATE KEYSPACE {} WITH replication = {{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}} \
             AND tablets = {{'enabled': {tablets}}}",
            db.keyspace
        ))
        .await;
        db.session
            .use_keyspace(&db.keyspace, true)
            .await
            .expect("the keyspace is there");
        db
    }

    /// The stand-in; `None`, and a word about it, with a real node, which takes no faults on command.
    pub fn stand_in(&self) -> Option<&Node> {
        if self.node.is_none() {
            eprintln!("skipped: needs the stand-in");
        }
        self.node.as_ref()
    }

    pub async fn run(&self, statement: &str) {
        if let Err(e) = self.session.query_unpaged(statement, ()).await {
            panic!("{statement}: {e}");
        }
    }

    /// Everything in the log of a table, in each stream's order.
    pub async fn log(&self, table: &str) -> BTreeSet<Key> {
        let text = format!(
            "SELECT \"cdc$stream_id\", \"cdc$time\", \"cdc$batch_seq_no\" FROM {table}_scylla_cdc_log"
        );
        let rows = self.session.query_unpaged(text, ()).await.expect("the log");
        let rows = rows.into_rows_result().expect("rows");
        rows.rows::<(Vec<u8>, CqlTimeuuid, i32)>()
            .expect("a log")
            .map(|row| {
                let (stream, time, seq) = row.expect("a row");
                key(&Position {
                    stream: StreamId(stream.try_into().expect("16 bytes")),
                    time: *time.as_ref(),
                    seq,
                })
            })
            .collect()
    }

    /// Settings for reading these tables quickly and with little at a time.
    pub fn settings(&self, tables: &[&str], shards: u32) -> Settings {
        let mut s = crate::settings::settings("test", "127.0.0.1:1", shards);
        let n = |n| NonZeroU32::new(n).expect("not zero");
        s.source.nodes = Nodes::At(vec![self.address.clone()]);
        s.source.keyspace = self.keyspace.clone();
        s.source.tables = tables.iter().map(|t| (*t).to_owned()).collect();
        s.source.start_from = StartFrom::Earliest;
        s.source.poll_interval = Duration::from_millis(20);
        s.source.safety_interval = Duration::from_millis(100);
        s.source.window = Duration::from_secs(5);
        s.source.page_size = n(7);
        s.pipeline.batch_size = n(5);
        s
    }
}

/// Stream, time and number, in an order that sets can use.
pub type Key = (StreamId, uuid::Uuid, i32);

pub fn key(position: &Position) -> Key {
    (position.stream, position.time, position.seq)
}

/// A source with its settings.
pub struct Rig {
    pub source: Arc<ScyllaSource>,
    pub retune: watch::Sender<Arc<Settings>>,
    pub policies: StagePolicies,
    pub shards: u32,
    /// Every shard is handed all checkpoints, as after a change of their number.
    pub all: bool,
    /// Asks for the shards, as a child of the coordinator does.
    _survey: tokio::task::JoinSet<Result<std::convert::Infallible, SourceError>>,
}

impl Rig {
    pub async fn connect(settings: Settings) -> Result<Self, SourceError> {
        let shards = settings.pipeline.shards.get();
        let (retune, live) = crate::settings::live(settings);
        let policies = StagePolicies::new("source", live.clone());
        let source = ScyllaSource::connect(live, policies.clone()).await?;
        let mut survey = tokio::task::JoinSet::new();
        survey.spawn(source.clone().survey());
        Ok(Self {
            source,
            retune,
            policies,
            shards,
            all: false,
            _survey: survey,
        })
    }

    /// Opens every shard and reads for as long as the tasks run. What is read is acknowledged at once.
    pub fn follow(
        &self,
        epoch: u64,
        checkpoints: &Checkpoints,
    ) -> (tokio::task::JoinSet<()>, tokio::sync::mpsc::Receiver<Batch>) {
        let (tx, rx) = tokio::sync::mpsc::channel::<Batch>(1);
        let mut tasks = tokio::task::JoinSet::new();
        for shard in 0..self.shards {
            let own = checkpoints
                .iter()
                .filter(|(k, _)| self.all || k.shard(self.shards) == shard)
                .map(|(k, c)| (k.clone(), c.clone()))
                .collect();
            let mut reader = self
                .source
                .clone()
                .open_shard(shard, self.shards, epoch, own);
            let (source, tx) = (self.source.clone(), tx.clone());
            tasks.spawn(async move {
                loop {
                    let batch = reader.next().await.expect("a batch");
                    let progress = batch.progress.clone();
                    // Kept first: what an acknowledgement lets another shard read comes after it.
                    if tx.send(batch).await.is_err() {
                        return;
                    }
                    source.acknowledged(shard, &progress);
                }
            });
        }
        (tasks, rx)
    }

    /// Opens every shard, reads until so many changes have come, goes on a little to see repeats, and gives
    /// everything in the order of arrival. What is read is acknowledged at once.
    pub async fn read(&self, epoch: u64, checkpoints: &Checkpoints, changes: usize) -> Vec<Batch> {
        let (mut tasks, mut rx) = self.follow(epoch, checkpoints);
        let mut batches = Vec::new();
        let mut seen = 0;
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut linger = None;
        loop {
            if seen >= changes && linger.is_none() {
                linger = Some(Instant::now() + Duration::from_millis(400));
            }
            let until = linger.unwrap_or(deadline);
            match tokio::time::timeout_at(until.into(), rx.recv()).await {
                Ok(Some(batch)) => {
                    seen += batch.positions.len() + batch.undecodable.len();
                    batches.push(batch);
                }
                Ok(None) => panic!("a reader ended: {:?}", tasks.join_next().await),
                Err(_) if linger.is_some() => break,
                Err(_) => panic!(
                    "{seen} of {changes} changes within 60 s; {:?}",
                    self.source.status()
                ),
            }
        }
        tasks.shutdown().await;
        batches
    }
}

/// Moves checkpoints on by what batches say.
pub fn apply<'a>(checkpoints: &mut Checkpoints, batches: impl IntoIterator<Item = &'a Batch>) {
    for progress in batches.into_iter().flat_map(|b| &b.progress) {
        if progress.finished {
            checkpoints.remove(&progress.group);
        } else {
            checkpoints
                .entry(progress.group.clone())
                .or_default()
                .apply(progress);
        }
    }
}

/// The positions of batches, in their order.
pub fn positions(batches: &[Batch]) -> Vec<Key> {
    batches.iter().flat_map(|b| &b.positions).map(key).collect()
}

/// A change, taken out of its batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub key: Key,
    pub table: String,
    pub operation: Operation,
    pub end_of_batch: bool,
    pub ttl: u32,
    /// `cdc$batch_seq_no` of what it is linked to.
    pub preimage: Option<i32>,
    pub end: Option<i32>,
    pub columns: Vec<(String, ColumnTag, Vec<u8>)>,
}

impl Change {
    pub fn column(&self, name: &str) -> (ColumnTag, &[u8]) {
        let (_, tag, bytes) = self
            .columns
            .iter()
            .find(|(n, ..)| n == name)
            .expect("a column");
        (*tag, bytes)
    }

    pub fn int(&self, name: &str) -> Option<i32> {
        match self.column(name) {
            (ColumnTag::Value, bytes) => {
                Some(i32::from_be_bytes(bytes.try_into().expect("an int")))
            }
            _ => None,
        }
    }
}

pub fn changes(batches: &[Batch]) -> Vec<Change> {
    let mut changes = Vec::new();
    for batch in batches {
        for (row, position) in batch.rows.iter().zip(&batch.positions) {
            let table = batch.table(row.table()).expect("its table is in the batch");
            let seq = |index: u32| {
                let to = &batch.positions[index as usize];
                assert_eq!((to.stream, to.time), (position.stream, position.time));
                to.seq
            };
            let column = |(i, c): (usize, &penstock::change::Column)| {
                let (tag, bytes) = row.column(i).expect("a column");
                (c.name.clone(), tag, bytes.to_vec())
            };
            changes.push(Change {
                key: key(position),
                table: format!("{}.{}", table.keyspace, table.name),
                operation: row.operation(),
                end_of_batch: row.meta().end_of_batch,
                ttl: row.meta().ttl,
                preimage: row.preimage().map(seq),
                end: row.end().map(seq),
                columns: table.columns.iter().enumerate().map(column).collect(),
            });
        }
    }
    changes
}

pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_millis() as i64
}
