//! An in-process stand-in for one Redpanda node: a **test double**, in memory, that Kafka's clients speak to
//! over a socket. What was written is gone with the [`Broker`].
//!
//! The broker itself is `noida-db` (feature `kafka`): groups, transactions (aborted records are hidden, zombies
//! fenced), retention, compaction, the admin API. This crate stands before it, because of four things that it
//! does not do:
//! - it answers a fetch that finds nothing at once, and clients then ask again at once: one idle consumer kept
//!   0.8 of a core busy between the two. Here a short answer to a fetch waits for [`PAUSE`];
//! - to who follows a partition it shows nothing more of a producer that once aborted a transaction there. Here answers
//!   list those aborted transactions only that are not over yet (`aborted.rs`);
//! - its groups wedge members that join again at once, and refuse the commit of one that gives its partitions back
//!   (`groups.rs`);
//! - it cannot be stopped, nor told where clients find it.
//!
//! It was chosen over librdkafka's mock cluster, which is in the binary anyway, by what clients can do with it
//! (November 2026, newest releases from their registries):
//!
//! | | mock of librdkafka 2.12 – 2.16 | `noida-db` 0.2.3 |
//! |---|---|---|
//! | kcat 1.7.1: list, produce, consume, group | yes | yes |
//! | a group that is joined again (kcat, confluent-kafka 2.16, kafkajs 2.2) | waits 30 s for the session to end | at once |
//! | kafka-python 3.0 | no: it cannot read the refusal of ApiVersions 4 | yes |
//! | aiokafka 0.14, kafkajs 2.2: consume | yes, first member | yes |
//! | admin: create, describe, list groups | times out | yes |
//! | aborted transactions | are shown | are hidden; zombies are fenced |
//! | its port | any | chosen |
//! | cost in the build | none | about 2.5 min of CPU |
//!
//! What it and Apache Kafka disagree on, and so what only a real broker can judge (`PENSTOCK_TEST_BROKERS`,
//! `cargo xtask test --kafka`):
//!
//! | | Apache Kafka 4.1 | `noida-db` 0.2.3, as it stands here |
//! |---|---|---|
//! | a member of a group that says nothing more (killed, stopped) | is out after its session | is waited for for ever |
//! | incremental rebalances (`cooperative-sticky`) | yes | wedge; Penstock knows it by its cluster id and takes `range` |
//! | the first join of an empty group | waits for `group.initial.rebalance.delay.ms` | at once |
//! | a transaction that times out | is aborted, its producer fenced | stays open |
//! | replicas, `min.insync.replicas`, elections, a broker that falls | yes | one broker |
//! | rights (ACLs), quotas | hold | are not asked |
//! | TLS, SASL | yes | no |
//! | names that collide (`a.b`, `a_b`), names that are none | refused | taken |
//! | the first records of a partition that is new to a producer (KAFKA-15591) | may be refused behind one that is acknowledged | are not |
//! | what is written | on disk | in memory |
//!
//! A fetch returns all that there is, whatever the client asked for at most, and librdkafka takes no answer
//! beyond 100 MB: topics that may grow need `retention.bytes` and `segment.bytes`, see [`bounds`].

mod aborted;
mod groups;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use noida::kafka::{connection::handle_connection, engine::Engine};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use aborted::{Aborted, Asked};
use groups::{Groups, Wait, Waiting};

/// How long a short answer to a fetch is held back: what a record that comes alone is late by at most.
pub const PAUSE: Duration = Duration::from_millis(20);
/// As long as connections cannot be taken, it is said this often.
const TOLD_AGAIN: Duration = Duration::from_secs(10);
/// An answer below this has no or few records; one without any has about 60 bytes a partition.
const SHORT: u32 = 4 << 10;
/// Kafka's own bound on a request (`socket.request.max.bytes`); more is no Kafka client.
const MAX_REQUEST: u32 = 100 << 20;
/// Kafka's numbers of requests.
const FETCH: [u8; 2] = 1_i16.to_be_bytes();
const DELETE_TOPICS: [u8; 2] = 20_i16.to_be_bytes();
const OFFSET_COMMIT: [u8; 2] = 8_i16.to_be_bytes();
const JOIN_GROUP: [u8; 2] = 11_i16.to_be_bytes();
const SYNC_GROUP: [u8; 2] = 14_i16.to_be_bytes();
/// The key, version and correlation id with which every request starts.
const REQUEST_HEAD: usize = 8;
/// The correlation id with which every answer starts.
const ANSWER_HEAD: usize = 4;

/// Topic properties that keep a topic of 12 partitions small enough to be fetched at once.
pub fn bounds() -> [(&'static str, &'static str); 2] {
    [("retention.bytes", "4194304"), ("segment.bytes", "1048576")]
}

/// A running broker. Dropped, it closes its port and its connections.
#[derive(Debug)]
pub struct Broker {
    addr: SocketAddr,
    tasks: TaskTracker,
    end: CancellationToken,
}

impl Broker {
    /// Starts to listen; port 0 takes a free one. The tasks that serve run on the current tokio runtime and are
    /// the broker's; each connection has a thread besides, which ends with it.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start(listen: SocketAddr) -> io::Result<Self> {
        Self::behind(listen, None).await
    }

    /// … that tells clients to connect to `front`: a relay of its own, say.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn behind(listen: SocketAddr, front: Option<SocketAddr>) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let inner = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let addr = listener.local_addr()?;
        let mut told = front.unwrap_or(addr);
        if told.ip().is_unspecified() {
            told.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        let engine = Engine::new(told.ip().to_string(), i32::from(told.port()));
        engine.spawn_log_cleaner();
        let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(accept(listener, inner, engine, tasks.clone(), end.clone()));
        tasks.close();
        Ok(Self { addr, tasks, end })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Closes the port and every connection; returns when all tasks have ended.
    pub async fn shutdown(self) {
        self.end.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

async fn accept(
    listener: TcpListener,
    inner: TcpListener,
    engine: Engine,
    tasks: TaskTracker,
    end: CancellationToken,
) {
    let mends = Arc::new(Mends {
        engine: engine.clone(),
        aborted: Aborted::new(engine.clone()),
        groups: Arc::default(),
    });
    let mut told: Option<tokio::time::Instant> = None;
    loop {
        let client = tokio::select! {
            () = end.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let opened = match client {
            Ok((client, _)) => connect(&inner, &engine)
                .await
                .map(|server| (client, server)),
            Err(e) => Err(e),
        };
        match opened {
            Ok((client, server)) => {
                let (end, mends) = (end.clone(), mends.clone());
                tasks.spawn(async move {
                    tokio::select! {
                        () = end.cancelled() => {}
                        ended = relay(client, server, &mends) => {
                            if let Err(error) = ended {
                                tracing::debug!(%error, "connection ended");
                            }
                        }
                    }
                });
            }
            Err(error) => {
                if told.is_none_or(|at| at.elapsed() > TOLD_AGAIN) {
                    told = Some(tokio::time::Instant::now());
                    tracing::warn!(%error, "connection not taken");
                }
                // Out of file descriptors, most likely: others have to end first.
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Opens a connection to the engine, which serves it on a thread of its own.
async fn connect(inner: &TcpListener, engine: &Engine) -> io::Result<TcpStream> {
    let address = inner.local_addr()?;
    let (ours, accepted) = tokio::join!(TcpStream::connect(address), inner.accept());
    let (ours, (theirs, peer)) = (ours?, accepted?);
    if ours.local_addr()? != peer {
        return Err(io::Error::other("somebody else connected to the inside"));
    }
    let theirs = theirs.into_std()?;
    theirs.set_nonblocking(false)?;
    let engine = engine.clone();
    std::thread::Builder::new()
        .name("redpanda-double".into())
        .spawn(move || handle_connection(theirs, engine))?;
    Ok(ours)
}

/// What all connections share.
struct Mends {
    engine: Engine,
    aborted: Aborted,
    groups: Arc<Groups>,
}

/// What the answer to a request needs.
#[derive(Debug)]
enum Needs {
    /// It is a fetch's; `Some` if it was asked for committed records.
    Fetch(Option<Asked>),
    /// It says that topics are gone.
    Forget,
    /// Others of its group wait until it has come.
    Heard { _until_answered: Waiting },
}

/// By the correlation ids of what is under way on one connection.
type Pending = Mutex<HashMap<[u8; ANSWER_HEAD], Needs>>;

async fn relay(client: TcpStream, server: TcpStream, mends: &Mends) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let pending = Pending::default();
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    // Whichever side closes first ends both.
    tokio::select! {
        ended = requests(client_in, server_out, &pending, mends) => ended,
        ended = answers(server_in, client_out, &pending, &mends.aborted) => ended,
    }
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    pending: &Pending,
    mends: &Mends,
) -> io::Result<()> {
    while let Some(len) = length(&mut from).await? {
        if !(REQUEST_HEAD as u32..=MAX_REQUEST).contains(&len) {
            return Err(io::Error::other("not a request"));
        }
        let mut head = [0; REQUEST_HEAD];
        from.read_exact(&mut head).await?;
        let (kind, id) = ([head[0], head[1]], [head[4], head[5], head[6], head[7]]);
        if [FETCH, OFFSET_COMMIT, JOIN_GROUP, SYNC_GROUP].contains(&kind) {
            let mut frame = whole(&mut from, len, &head).await?;
            let needs = match kind {
                FETCH => Some(Needs::Fetch(Aborted::asked(frame.clone())?)),
                JOIN_GROUP => Some(Needs::Heard {
                    _until_answered: mends
                        .groups
                        .turn(&mends.engine, Wait::Join, frame.clone())
                        .await?,
                }),
                SYNC_GROUP => Some(Needs::Heard {
                    _until_answered: mends
                        .groups
                        .turn(&mends.engine, Wait::Sync, frame.clone())
                        .await?,
                }),
                _ => {
                    frame = groups::commit(&mends.engine, frame)?;
                    None
                }
            };
            if let Some(needs) = needs {
                pending.lock().insert(id, needs);
            }
            send(&mut to, &frame).await?;
            continue;
        }
        if kind == DELETE_TOPICS {
            pending.lock().insert(id, Needs::Forget);
        }
        to.write_all(&[&len.to_be_bytes()[..], &head].concat())
            .await?;
        copy(&mut from, &mut to, len as usize - REQUEST_HEAD).await?;
    }
    Ok(())
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    pending: &Pending,
    aborted: &Aborted,
) -> io::Result<()> {
    while let Some(len) = length(&mut from).await? {
        if len < ANSWER_HEAD as u32 {
            return Err(io::Error::other("not an answer"));
        }
        let mut head = [0; ANSWER_HEAD];
        from.read_exact(&mut head).await?;
        let needs = pending.lock().remove(&head);
        match needs {
            Some(Needs::Fetch(_)) if len < SHORT => tokio::time::sleep(PAUSE).await,
            Some(Needs::Forget) => aborted.forget(),
            Some(Needs::Fetch(_) | Needs::Heard { .. }) | None => {}
        }
        if let Some(Needs::Fetch(Some(asked))) = needs {
            let frame = whole(&mut from, len, &head).await?;
            send(&mut to, &aborted.mended(frame, &asked)?).await?;
            continue;
        }
        to.write_all(&[len.to_be_bytes(), head].concat()).await?;
        copy(&mut from, &mut to, len as usize - ANSWER_HEAD).await?;
    }
    Ok(())
}

/// A frame of which the first bytes have been read, without its length.
async fn whole(from: &mut OwnedReadHalf, len: u32, head: &[u8]) -> io::Result<Bytes> {
    let mut frame = Vec::from(head);
    let rest = u64::from(len) - head.len() as u64;
    // It grows as it comes: a length is not believed before.
    if from.take(rest).read_to_end(&mut frame).await? < rest as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(frame.into())
}

async fn send(to: &mut OwnedWriteHalf, frame: &[u8]) -> io::Result<()> {
    to.write_all(&(frame.len() as u32).to_be_bytes()).await?;
    to.write_all(frame).await
}

/// The length of the next frame; `None` where the other side has closed.
async fn length(from: &mut OwnedReadHalf) -> io::Result<Option<u32>> {
    match from.read_u32().await {
        Ok(len) => Ok(Some(len)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

async fn copy(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, len: usize) -> io::Result<()> {
    let mut rest = from.take(len as u64);
    if tokio::io::copy(&mut rest, to).await? < len as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
