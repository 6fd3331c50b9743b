//! Takes a listening address over from a service that is being replaced, while that one still serves.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be accepted; what tokio's own `bind` takes.
const BACKLOG: u32 = 1024;

/// Listens on `wanted`, also where that overlaps with `beside`, which is about to be closed: so a service can
/// be made aside, whole, before the one that it replaces is touched.
///
/// # Errors
/// What the system says, when somebody else listens there, for one.
pub async fn listen(
    wanted: SocketAddr,
    beside: Option<&Arc<TcpListener>>,
) -> io::Result<TcpListener> {
    let Some(beside) = beside else {
        return TcpListener::bind(wanted).await;
    };
    let taken = beside.local_addr()?;
    if taken == wanted {
        // The same socket: whoever is waiting to be accepted is not lost.
        return TcpListener::from_std(SockRef::from(beside.as_ref()).try_clone()?.into());
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
    let (old, new) = (SockRef::from(beside.as_ref()), SockRef::from(&socket));
    old.set_reuse_port(true)?;
    new.set_reuse_port(true)?;
    // `listen` looks for conflicts once more. After it nobody else is to come in.
    let listening = socket.bind(wanted).and_then(|()| socket.listen(BACKLOG));
    old.set_reuse_port(false)?;
    let listening = listening?;
    SockRef::from(&listening).set_reuse_port(false)?;
    Ok(listening)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ip: [u8; 4], port: u16) -> SocketAddr {
        (ip, port).into()
    }

    #[tokio::test]
    async fn it_listens_beside_what_it_replaces_and_beside_nothing_else() {
        let old = Arc::new(listen(at([127, 0, 0, 1], 0), None).await.unwrap());
        let port = old.local_addr().unwrap().port();
        // A stranger does not get in, neither at the address nor at one that covers it.
        assert!(listen(at([127, 0, 0, 1], port), None).await.is_err());
        assert!(listen(at([0, 0, 0, 0], port), None).await.is_err());
        let wide = listen(at([0, 0, 0, 0], port), Some(&old)).await.unwrap();
        assert_eq!(wide.local_addr().unwrap(), at([0, 0, 0, 0], port));
        assert!(listen(at([127, 0, 0, 1], port), None).await.is_err());
        drop(wide);
        let same = listen(at([127, 0, 0, 1], port), Some(&old)).await.unwrap();
        drop(old);
        // Still open: it is the same socket.
        let connected = tokio::net::TcpStream::connect(at([127, 0, 0, 1], port));
        let (connected, accepted) = tokio::join!(connected, same.accept());
        assert!(connected.is_ok() && accepted.is_ok());
        // And another port is simply bound.
        let other = listen(at([127, 0, 0, 1], 0), Some(&Arc::new(same)))
            .await
            .unwrap();
        assert_ne!(other.local_addr().unwrap().port(), port);
    }
}
