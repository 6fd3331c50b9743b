//! One connection: a reader that takes frames off the socket, a task for each request, a writer that
//! sends answers as they come, out of order where that is how they come.

use std::{
    net::SocketAddr,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, tcp::OwnedReadHalf},
    sync::{Semaphore, broadcast, mpsc},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Shared,
    error::ProtocolError,
    frame::{self, COMPRESSED, Compression, Frame, TRACING},
    request::Request,
    response::{self, BAD_CREDENTIALS, Draft, EventType, PROTOCOL_ERROR},
    session::Session,
    trace::Tracer,
};
use crate::{
    engine::SERVER_ERROR,
    faults::{Action, Operation, Target},
};

/// Answers that wait for the socket. A client that does not read holds up its own requests only.
const WRITE_QUEUE: usize = 256;
/// What is gathered before it is written in one call, bytes.
const WRITE_GATHER: usize = 64 * 1024;
/// How long requests under way may take once the node is told to end.
const DRAIN: Duration = Duration::from_secs(1);

/// To the writer.
enum Outgoing {
    /// A whole frame.
    Frame(Vec<u8>),
    /// A part of a frame, and then the end of the connection.
    Break(Vec<u8>),
    /// Events of these types from now on.
    Register(Vec<EventType>),
}

/// What the requests of a connection share.
pub(super) struct Connection {
    shared: Arc<Shared>,
    peer: Option<SocketAddr>,
    compression: Mutex<Compression>,
    started: AtomicBool,
    session: Session,
    out: mpsc::Sender<Outgoing>,
}

/// Where one request's answer goes. Dropped without one in a panic, it answers for it, so that a
/// client does not wait for ever.
struct Reply<'a> {
    connection: &'a Connection,
    stream: i16,
    open: bool,
}

impl Reply<'_> {
    async fn send(mut self, draft: Draft) {
        self.open = false;
        let compression = *self.connection.compression.lock();
        let frame = response::seal(draft, self.stream, compression);
        self.put(Outgoing::Frame(frame)).await;
    }

    async fn send_half(mut self, draft: Draft) {
        self.open = false;
        let mut frame = response::seal(draft, self.stream, Compression::None);
        frame.truncate(frame.len().div_ceil(2));
        self.put(Outgoing::Break(frame)).await;
    }

    fn forget(mut self) {
        self.open = false;
    }

    async fn put(&self, outgoing: Outgoing) {
        if self.connection.out.send(outgoing).await.is_err() {
            tracing::trace!(
                stream = self.stream,
                "the connection ended before its answer"
            );
        }
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        if self.open && std::thread::panicking() {
            let draft = response::error(SERVER_ERROR, "the node panicked; its log says where");
            let frame = response::seal(draft, self.stream, Compression::None);
            if self
                .connection
                .out
                .try_send(Outgoing::Frame(frame))
                .is_err()
            {
                tracing::error!(
                    stream = self.stream,
                    "a request panicked and its answer cannot be sent"
                );
            }
        }
    }
}

/// Serves a connection until it ends, the node ends, or all connections are dropped.
pub(super) async fn serve(socket: TcpStream, shared: Arc<Shared>, end: CancellationToken) {
    let peer = socket.peer_addr().ok();
    if let Err(e) = socket.set_nodelay(true) {
        tracing::debug!(?peer, error = %e, "cannot set nodelay");
    }
    let mut door = shared.faults.door();
    let closings = door.borrow().closings;
    let (reader, writer) = socket.into_split();
    let (out, queue) = mpsc::channel(WRITE_QUEUE);
    let connection = Arc::new(Connection {
        peer,
        compression: Mutex::default(),
        started: AtomicBool::new(false),
        session: Session::default(),
        out,
        shared: Arc::clone(&shared),
    });
    let events = shared.events.subscribe();
    // Ends the requests under way with the connection.
    let requests = CancellationToken::new();
    let _guard = requests.clone().drop_guard();
    let work = async {
        let reading = read(reader, connection, requests.clone(), end.clone());
        tokio::join!(reading, write(writer, queue, events, requests.clone()))
    };
    tokio::select! {
        ((), result) = work => match result {
            Ok(()) => tracing::trace!(?peer, "connection closed"),
            Err(e) => tracing::debug!(?peer, error = %e, "connection broken"),
        },
        // Past the drain only a client that does not read keeps a connection open.
        () = async { end.cancelled().await; tokio::time::sleep(2 * DRAIN).await } => {
            tracing::debug!(?peer, "connection given up");
        }
        _ = door.wait_for(|door| door.closings != closings) => tracing::debug!(?peer, "connection dropped on demand"),
    }
}

/// Reads until the client ends, breaks the protocol beyond repair, or `end`; then waits for what is
/// under way.
async fn read(
    mut socket: OwnedReadHalf,
    connection: Arc<Connection>,
    requests: CancellationToken,
    end: CancellationToken,
) {
    let limits = &connection.shared.limits;
    let in_flight = Arc::new(Semaphore::new(limits.in_flight_per_connection));
    let tasks = TaskTracker::new();
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    let mut ended_by_node = false;
    'reading: loop {
        loop {
            let frame = match frame::take(&mut buffer, limits.request_bytes) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(e) => {
                    // The bytes that follow cannot be told apart any more.
                    reply(&connection, 0)
                        .send(response::error(PROTOCOL_ERROR, &e.to_string()))
                        .await;
                    break 'reading;
                }
            };
            // Bounded: a client with too many requests under way is not read from.
            let permit = tokio::select! {
                permit = Arc::clone(&in_flight).acquire_owned() => permit,
                () = requests.cancelled() => break 'reading,
            };
            let Ok(permit) = permit else { break 'reading };
            match connection.accept(frame).await {
                Accepted::Done => {}
                Accepted::Close => break 'reading,
                Accepted::Run(stream, request, tracer) => {
                    let connection = Arc::clone(&connection);
                    tasks.spawn(requests.clone().run_until_cancelled_owned(async move {
                        connection.run(stream, request, tracer).await;
                        drop(permit);
                    }));
                }
            }
        }
        tokio::select! {
            read = socket.read_buf(&mut buffer) => match read {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) => {
                    tracing::debug!(error = %e, "cannot read from a client");
                    break;
                }
            },
            () = requests.cancelled() => break,
            () = end.cancelled() => {
                ended_by_node = true;
                break;
            }
        }
    }
    tasks.close();
    // A client that closed its half may still read; one that waits for ever is not waited for.
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::debug!(
            requests = tasks.len(),
            ended_by_node,
            "requests under way are given up"
        );
        requests.cancel();
    }
}

/// Sends frames, gathered, and events once registered for, until the last holder of the queue is gone.
async fn write(
    mut socket: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Outgoing>,
    mut events: broadcast::Receiver<(EventType, Arc<[u8]>)>,
    requests: CancellationToken,
) -> std::io::Result<()> {
    let mut registered: Vec<EventType> = Vec::new();
    let mut gathered: Vec<u8> = Vec::new();
    let result = async {
        loop {
            tokio::select! {
                next = queue.recv() => {
                    let Some(mut next) = next else { break };
                    gathered.clear();
                    loop {
                        match next {
                            Outgoing::Frame(frame) if gathered.is_empty() && frame.len() >= WRITE_GATHER => {
                                socket.write_all(&frame).await?;
                            }
                            Outgoing::Frame(frame) => gathered.extend_from_slice(&frame),
                            Outgoing::Break(part) => {
                                gathered.extend_from_slice(&part);
                                socket.write_all(&gathered).await?;
                                return Ok(());
                            }
                            Outgoing::Register(types) => registered = types,
                        }
                        if gathered.len() >= WRITE_GATHER {
                            break;
                        }
                        match queue.try_recv() {
                            Ok(more) => next = more,
                            Err(_) => break,
                        }
                    }
                    socket.write_all(&gathered).await?;
                }
                event = events.recv() => match event {
                    Ok((kind, frame)) if registered.contains(&kind) => socket.write_all(&frame).await?,
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(missed)) if !registered.is_empty() => {
                        // The client would go on with an old schema: closed, it connects and reads anew.
                        tracing::warn!(missed, "a client is too slow for its events, closing its connection");
                        return Ok(());
                    }
                    // Behind, but with nothing to miss; the sender is the node's and outlives this.
                    Err(_) => {}
                }
            }
        }
        Ok(())
    }
    .await;
    requests.cancel();
    let closed = socket.shutdown().await;
    result.and(closed)
}

enum Accepted {
    /// Answered.
    Done,
    /// Answered, and nothing that follows can be understood.
    Close,
    /// To be run beside the others.
    Run(i16, Request, Tracer),
}

fn reply(connection: &Connection, stream: i16) -> Reply<'_> {
    Reply {
        connection,
        stream,
        open: true,
    }
}

impl Connection {
    /// Decodes a frame; answers by itself what belongs to the connection and needs an order.
    async fn accept(&self, frame: Frame) -> Accepted {
        let stream = frame.stream;
        let request = match self.decode(&frame) {
            Ok(request) => request,
            Err(e) => {
                tracing::debug!(opcode = frame.opcode, error = %e, "bad request");
                reply(self, stream)
                    .send(response::error(PROTOCOL_ERROR, &e.to_string()))
                    .await;
                return Accepted::Done;
            }
        };
        if let Request::Options
        | Request::Startup(_)
        | Request::Register(_)
        | Request::AuthResponse(_) = request
        {
            let reply = reply(self, stream);
            // Not delayed here, where it would hold up what follows.
            match self.shared.faults.hit(&Target {
                operation: Operation::Control,
                table: None,
            }) {
                None => {
                    let draft = self.control(request).await;
                    reply.send(draft).await;
                }
                Some(Action::Silence) => reply.forget(),
                Some(Action::BreakConnection) => {
                    let draft = self.control(request).await;
                    reply.send_half(draft).await;
                    return Accepted::Close;
                }
                Some(Action::Delay(by)) => {
                    tokio::time::sleep(by).await;
                    let draft = self.control(request).await;
                    reply.send(draft).await;
                }
                Some(action) => {
                    reply
                        .send(super::execute::failure(&action, 1, "control"))
                        .await
                }
            }
            return Accepted::Done;
        }
        if !self.started.load(Ordering::Relaxed) {
            let e = ProtocolError::NotStarted(request.name());
            reply(self, stream)
                .send(response::error(PROTOCOL_ERROR, &e.to_string()))
                .await;
            return Accepted::Close;
        }
        let tracer = match self.peer.filter(|_| frame.flags & TRACING != 0) {
            Some(peer) => {
                let user = self.session.user.lock();
                Tracer::begin(&self.shared.engine, peer, user.as_deref(), frame.body.len())
            }
            None => Tracer::off(),
        };
        Accepted::Run(stream, request, tracer)
    }

    fn decode(&self, frame: &Frame) -> Result<Request, ProtocolError> {
        if frame.version != frame::VERSION {
            return Err(ProtocolError::Version(frame.version));
        }
        let body = if frame.flags & COMPRESSED == 0 {
            frame.body.clone()
        } else {
            let compression = *self.compression.lock();
            frame::inflate(&frame.body, compression, self.shared.limits.request_bytes)?
        };
        Request::read(frame, body)
    }

    async fn control(&self, request: Request) -> Draft {
        match request {
            Request::Startup(options) => self.startup(&options),
            Request::AuthResponse(token) => self.log_in(token.as_deref().unwrap_or_default()),
            Request::Register(_) if !self.started.load(Ordering::Relaxed) => {
                let e = ProtocolError::NotStarted("REGISTER");
                response::error(PROTOCOL_ERROR, &e.to_string())
            }
            Request::Register(names) => {
                // Unknown types are events that this node never has.
                let types = names
                    .iter()
                    .filter_map(|name| EventType::from_name(name))
                    .collect();
                if self.out.send(Outgoing::Register(types)).await.is_err() {
                    tracing::trace!("the connection ended while it registered");
                }
                response::ready()
            }
            _ => response::supported(&self.shared.supported),
        }
    }

    fn startup(&self, options: &[(String, String)]) -> Draft {
        let option = |name: &str| {
            options
                .iter()
                .find(|(k, _)| k.eq_ignore_ascii_case(name))
                .map(|(_, v)| v.as_str())
        };
        let wanted = option("COMPRESSION").unwrap_or_default();
        let Some(compression) = Compression::from_name(wanted) else {
            return response::error(
                PROTOCOL_ERROR,
                &format!("Unknown compression algorithm: {wanted}"),
            );
        };
        *self.compression.lock() = compression;
        if self.shared.asks_for_login() {
            return response::authenticate();
        }
        self.started.store(true, Ordering::Relaxed);
        // Answered in plain, for READY has no body.
        response::ready()
    }

    /// SASL PLAIN: an identity that is left empty, a name and a password, with NULs between them.
    fn log_in(&self, token: &[u8]) -> Draft {
        let mut parts = token.split(|byte| *byte == 0).skip(1);
        let (name, password) = (parts.next(), parts.next());
        if !self
            .shared
            .knows(name.unwrap_or_default(), password.unwrap_or_default())
        {
            return response::error(BAD_CREDENTIALS, "Username and/or password are incorrect");
        }
        let name = String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
        *self.session.user.lock() = Some(name);
        self.started.store(true, Ordering::Relaxed);
        response::auth_success()
    }

    async fn run(&self, stream: i16, request: Request, mut tracer: Tracer) {
        let reply = reply(self, stream);
        match self.shared.run(&self.session, request, &mut tracer).await {
            ControlFlow::Continue(draft) => {
                let traces = &self.shared.traces;
                let draft = match traces.end(&self.shared.engine, tracer, draft.len()) {
                    Some(id) => frame::trace(draft, id.as_bytes()),
                    None => draft,
                };
                reply.send(draft).await;
            }
            ControlFlow::Break(Some(draft)) => reply.send_half(draft).await,
            ControlFlow::Break(None) => reply.forget(),
        }
    }
}
