//! Takes a listening address over from a service that is being replaced, while that one still serves, so that no
//! connection is cut: whoever had connected, to the old socket or to the new one, is answered by the service that
//! goes on.
//!
//! Linux resets what waits in the queue of a listening socket when it is closed. So no socket is simply closed: the
//! service that goes on adopts it, lets nobody else in, and accepts who is in already.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::time::Sleep;

/// Connections that may wait to be accepted; what tokio's own `bind` takes.
const BACKLOG: u32 = 1024;

/// How long a socket that lets nobody in any more is kept after the last connection that came of it: who had begun
/// to connect needs one round trip to have done so. From this machine there is none.
const FAR: Duration = Duration::from_millis(500);
const NEAR: Duration = Duration::from_millis(20);

/// A socket that listens, shared by the service that accepts from it and by whoever may replace that service.
#[derive(Debug)]
pub struct Listening {
    /// `None`: given away, or closed.
    listener: Mutex<Option<Arc<TcpListener>>>,
    address: SocketAddr,
    /// Sockets whose connections this service is to finish.
    adopted: Mutex<Vec<Arc<TcpListener>>>,
    adoption: Notify,
    /// The last of them; what it listened on is taken for as long as it is there.
    finishing: Mutex<Weak<TcpListener>>,
    /// What answers here.
    app: OnceLock<Router>,
    /// The service that has taken its place, sees to whoever waits, and answers what comes over the connections of old.
    next: OnceLock<Arc<Listening>>,
}

impl Listening {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether another service has taken the place of the one that accepts from it.
    pub fn is_replaced(&self) -> bool {
        self.next.get().is_some()
    }

    /// From here on `next` serves in its place, and finishes what waits here.
    pub fn hand_over(&self, next: &Arc<Listening>) {
        // At most once: what was handed over is not in force any more.
        self.next.get_or_init(|| next.clone());
        next.adopt(self);
    }

    /// What answers here, for as long as nobody has taken its place.
    pub(super) fn answers(&self, app: Router) {
        self.app.get_or_init(|| app);
    }

    /// What answers a request that comes now: whoever is in force, so that no connection that was kept goes on asking
    /// what is no more. `None`: it has not begun to.
    pub(super) fn app(&self) -> Option<Router> {
        let next = self.next.get().and_then(|next| next.app());
        next.or_else(|| self.app.get().cloned())
    }

    fn adopt(&self, other: &Listening) {
        // Two handles of one socket have one queue, from which this service accepts anyway.
        if let Some(listener) = other.release()
            && other.address != self.address
        {
            *self.finishing.lock() = Arc::downgrade(&listener);
            self.adopted.lock().push(listener);
            self.adoption.notify_one();
        }
    }

    /// The socket is closed once nobody accepts from it any more.
    pub(super) fn release(&self) -> Option<Arc<TcpListener>> {
        self.listener.lock().take()
    }

    /// Waits for a socket whose connections are to be finished here. Cancel-safe.
    pub(super) async fn adopted(&self) -> Door {
        loop {
            if let Some(listener) = self.adopted.lock().pop() {
                let mut door = Door::open(listener);
                door.close(true);
                return door;
            }
            self.adoption.notified().await;
        }
    }

    /// `None`: the socket was given away, or closed.
    pub(super) fn door(&self) -> Option<Door> {
        self.listener.lock().clone().map(Door::open)
    }
}

/// A socket that listens for a service that is not in force yet. If it never is, the service beside which it was
/// opened finishes what has come in here.
#[derive(Debug)]
pub struct Bound {
    listening: Arc<Listening>,
    beside: Option<Arc<Listening>>,
}

impl Bound {
    /// The socket.
    pub fn listening(&self) -> &Arc<Listening> {
        &self.listening
    }

    /// The service is in force.
    pub fn in_force(mut self) -> Arc<Listening> {
        self.beside = None;
        self.listening.clone()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some(beside) = self.beside.take() {
            beside.adopt(&self.listening);
        }
    }
}

/// Listens on `wanted`, also where that overlaps with `beside`, which is about to be replaced: so a service can
/// be made aside, whole, before the one that it replaces is touched.
///
/// # Errors
/// What the system says, when somebody else listens there, for one.
pub async fn listen(wanted: SocketAddr, beside: Option<&Arc<Listening>>) -> io::Result<Bound> {
    let listener = match beside {
        Some(beside) => listen_beside(wanted, beside).await?,
        None => TcpListener::bind(wanted).await?,
    };
    Ok(Bound {
        listening: Arc::new(Listening {
            address: listener.local_addr()?,
            listener: Mutex::new(Some(Arc::new(listener))),
            adopted: Mutex::default(),
            adoption: Notify::new(),
            finishing: Mutex::default(),
            app: OnceLock::new(),
            next: OnceLock::new(),
        }),
        beside: beside.cloned(),
    })
}

async fn listen_beside(wanted: SocketAddr, beside: &Listening) -> io::Result<TcpListener> {
    let until = tokio::time::Instant::now() + 2 * FAR;
    loop {
        match bind_beside(wanted, beside).await {
            // There and back again in half a second: what was there before is about to be closed.
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && beside.finishing.lock().strong_count() > 0
                    && tokio::time::Instant::now() < until =>
            {
                tokio::time::sleep(NEAR).await;
            }
            bound => return bound,
        }
    }
}

async fn bind_beside(wanted: SocketAddr, beside: &Listening) -> io::Result<TcpListener> {
    let taken = beside.address;
    let Some(beside) = beside.listener.lock().clone() else {
        return TcpListener::bind(wanted).await;
    };
    if taken == wanted {
        // The same socket: whoever is waiting to be accepted is not lost.
        return TcpListener::from_std(SockRef::from(&*beside).try_clone()?.into());
    }
    if taken.port() != wanted.port() {
        return TcpListener::bind(wanted).await;
    }
    // 127.0.0.1:9180 → 0.0.0.0:9180: the system lets both be, for as long as both say that they share.
    let socket = if wanted.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    let (old, new) = (SockRef::from(&*beside), SockRef::from(&socket));
    old.set_reuse_port(true)?;
    new.set_reuse_port(true)?;
    // `listen` looks for conflicts once more. After it nobody else is to come in.
    let listening = socket.bind(wanted).and_then(|()| socket.listen(BACKLOG));
    old.set_reuse_port(false)?;
    let listening = listening?;
    SockRef::from(&listening).set_reuse_port(false)?;
    Ok(listening)
}

/// A socket as one service accepts from it.
pub(super) struct Door {
    listener: Arc<TcpListener>,
    /// Nobody else comes in; once nobody has come for this long, it is shut.
    closing: Option<(Duration, std::pin::Pin<Box<Sleep>>)>,
}

impl Door {
    fn open(listener: Arc<TcpListener>) -> Self {
        Self {
            listener,
            closing: None,
        }
    }

    /// Lets nobody else in: only who has begun to connect is accepted. `patient`: also who has not done so in full.
    pub(super) fn close(&mut self, patient: bool) {
        let_nobody_in(&self.listener);
        let near = self
            .listener
            .local_addr()
            .is_ok_and(|at| at.ip().is_loopback());
        let patience = match (patient, near) {
            (false, _) => Duration::ZERO,
            (true, true) => NEAR,
            (true, false) => FAR,
        };
        self.closing = Some((patience, Box::pin(tokio::time::sleep(patience))));
    }

    /// The next connection; `None`: it is shut.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<TcpStream>>> {
        if let Poll::Ready(accepted) = self.listener.poll_accept(cx) {
            if let Some((patience, shut)) = &mut self.closing {
                shut.as_mut().reset(tokio::time::Instant::now() + *patience);
            }
            return Poll::Ready(Some(accepted.map(|(stream, _)| stream)));
        }
        match &mut self.closing {
            Some((_, shut)) => shut.as_mut().poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    }
}

/// The next connection of any of these; the doors that are shut are taken out. `None`: all are. Cancel-safe.
pub(super) async fn accept(doors: &mut Vec<Door>) -> Option<io::Result<TcpStream>> {
    std::future::poll_fn(|cx| {
        let mut accepted = Poll::Pending;
        doors.retain_mut(|door| {
            if accepted.is_ready() {
                return true;
            }
            match door.poll(cx) {
                Poll::Ready(Some(connection)) => accepted = Poll::Ready(Some(connection)),
                Poll::Ready(None) => return false,
                Poll::Pending => {}
            }
            true
        });
        match doors.is_empty() {
            true => Poll::Ready(None),
            false => accepted,
        }
    })
    .await
}

/// Drops what asks to connect (SYN without ACK) before the system answers it, so that whoever asks does so again, of
/// the socket that is there then; who is connecting already does so undisturbed. Without it, whoever came between
/// the last look at the queue and the close would be reset.
#[cfg(target_os = "linux")]
fn let_nobody_in(listener: &TcpListener) {
    use socket2::SockFilter;
    // Classic BPF; the packet begins with the TCP header, whose 14th byte holds the flags.
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const SYN: u32 = 0x02;
    const SYN_OR_ACK: u32 = 0x12;
    let drop_syn = [
        SockFilter::new(LOAD_BYTE, 0, 0, 13),
        SockFilter::new(AND, 0, 0, SYN_OR_ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    if let Err(error) = SockRef::from(listener).attach_filter(&drop_syn) {
        tracing::debug!(%error, "a listener that is replaced cannot turn newcomers away");
    }
}

#[cfg(not(target_os = "linux"))]
fn let_nobody_in(_: &TcpListener) {}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ip: [u8; 4], port: u16) -> SocketAddr {
        (ip, port).into()
    }

    async fn serving(wanted: SocketAddr, beside: Option<&Arc<Listening>>) -> Arc<Listening> {
        listen(wanted, beside).await.unwrap().in_force()
    }

    #[tokio::test]
    async fn it_listens_beside_what_it_replaces_and_beside_nothing_else() {
        let old = serving(at([127, 0, 0, 1], 0), None).await;
        let port = old.address().port();
        // A stranger does not get in, neither at the address nor at one that covers it.
        assert!(listen(at([127, 0, 0, 1], port), None).await.is_err());
        assert!(listen(at([0, 0, 0, 0], port), None).await.is_err());
        let wide = listen(at([0, 0, 0, 0], port), Some(&old)).await.unwrap();
        assert_eq!(wide.listening().address(), at([0, 0, 0, 0], port));
        assert!(listen(at([127, 0, 0, 1], port), None).await.is_err());
        drop(wide);
        drop(old.adopted().await);
        let same = serving(at([127, 0, 0, 1], port), Some(&old)).await;
        drop(old);
        // Still open: it is the same socket.
        let connected = TcpStream::connect(at([127, 0, 0, 1], port));
        let mut doors = vec![same.door().unwrap()];
        let (connected, accepted) = tokio::join!(connected, accept(&mut doors));
        assert!(connected.is_ok() && accepted.is_some_and(|a| a.is_ok()));
        // And another port is simply bound.
        let other = serving(at([127, 0, 0, 1], 0), Some(&same)).await;
        assert_ne!(other.address().port(), port);
    }

    /// Who asks for a connection while the door is being closed gets it from the socket that is there afterwards.
    #[tokio::test]
    async fn a_door_that_closes_lets_out_who_is_in_and_turns_newcomers_to_the_next() {
        let old = serving(at([127, 0, 0, 1], 0), None).await;
        let here = old.address();
        let early = TcpStream::connect(here).await.unwrap();
        let wide = serving(at([0, 0, 0, 0], here.port()), Some(&old)).await;
        old.hand_over(&wide);
        drop(old);
        let closing = wide.adopted().await;
        // Asked for while the old socket, which is nearer, is still there: asked for again after a second.
        let late = tokio::spawn(TcpStream::connect(here));
        let mut doors = vec![closing, wide.door().unwrap()];
        for _ in 0..2 {
            accept(&mut doors).await.unwrap().unwrap();
        }
        assert_eq!(doors.len(), 1, "the old one is shut");
        late.await.unwrap().unwrap();
        drop(early);
    }
}
