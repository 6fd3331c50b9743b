//! What this crate adds to the broker behind it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use redpanda_double::{Broker, PAUSE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Sends a request, version 0 where not said, and gives the answer after its correlation id.
async fn ask(connection: &mut TcpStream, key: i16, version: i16, id: i32, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 4];
    frame.extend(key.to_be_bytes());
    frame.extend(version.to_be_bytes());
    frame.extend(id.to_be_bytes());
    frame.extend((-1i16).to_be_bytes());
    frame.extend(body);
    let len = frame.len() as u32 - 4;
    frame[..4].copy_from_slice(&len.to_be_bytes());
    connection.write_all(&frame).await.unwrap();
    let len = connection.read_u32().await.unwrap();
    let mut answer = vec![0; len as usize];
    connection.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[..4], id.to_be_bytes());
    answer.split_off(4)
}

/// A fetch, version 4, of partition 0 of a topic that has nothing.
fn fetch() -> Vec<u8> {
    let mut body = Vec::new();
    body.extend((-1i32).to_be_bytes()); // replica
    body.extend(500i32.to_be_bytes()); // longest wait
    body.extend(1i32.to_be_bytes()); // least bytes
    body.extend(1_000_000i32.to_be_bytes()); // most bytes
    body.push(0); // isolation
    body.extend(1i32.to_be_bytes()); // one topic
    body.extend(1i16.to_be_bytes());
    body.push(b't');
    body.extend(1i32.to_be_bytes()); // one partition
    body.extend(0i32.to_be_bytes());
    body.extend(0i64.to_be_bytes());
    body.extend(1_000_000i32.to_be_bytes());
    body
}

#[tokio::test]
async fn only_a_fetch_that_finds_nothing_waits() {
    let broker = Broker::start(ANY).await.unwrap();
    let mut connection = TcpStream::connect(broker.addr()).await.unwrap();
    let began = Instant::now();
    for id in 0..5 {
        ask(&mut connection, 1, 4, id, &fetch()).await;
    }
    let fetches = began.elapsed();
    assert!(fetches >= PAUSE * 5, "{fetches:?}");
    // Each would wait; a busy machine holds up some.
    let mut others = Vec::new();
    for id in 5..25 {
        let began = Instant::now();
        ask(&mut connection, 18, 0, id, &[]).await;
        others.push(began.elapsed());
    }
    assert!(others.iter().any(|took| *took < PAUSE), "{others:?}");
    broker.shutdown().await;
}

#[tokio::test]
async fn it_tells_clients_its_own_port_and_frees_it_at_the_end() {
    let broker = Broker::start(ANY).await.unwrap();
    let addr = broker.addr();
    let mut connection = TcpStream::connect(addr).await.unwrap();
    // Metadata, version 1, of all topics: brokers come first.
    let answer = ask(&mut connection, 3, 1, 7, &(-1i32).to_be_bytes()).await;
    let port = i32::from(addr.port()).to_be_bytes();
    assert!(answer.windows(4).any(|w| w == port), "{answer:?}");
    assert!(Broker::start(addr).await.is_err(), "the port is taken");
    broker.shutdown().await;
    let mut end = [0];
    let closed = tokio::time::timeout(Duration::from_secs(5), connection.read(&mut end)).await;
    assert_eq!(closed.expect("within 5 s").unwrap_or(0), 0);
    Broker::start(addr)
        .await
        .expect("the port is free")
        .shutdown()
        .await;
}
