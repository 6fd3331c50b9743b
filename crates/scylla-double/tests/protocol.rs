//! The protocol's edges, by hand: what no well-behaved client sends.

mod support;

use std::io::Cursor;

use cassandra_protocol::{
    compression::Compression,
    frame::{Envelope, FromCursor, Opcode, Version, message_error::ErrorBody},
};
use scylla_double::{Node, Options};
use support::{node, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

struct Raw(TcpStream);

impl Raw {
    async fn connect(node: &Node) -> Self {
        Self(TcpStream::connect(node.addr()).await.unwrap())
    }

    async fn send(&mut self, version: u8, flags: u8, stream: i16, opcode: u8, body: &[u8]) {
        let mut frame = vec![version, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.push(opcode);
        frame.extend_from_slice(&(body.len() as u32).to_be_bytes());
        frame.extend_from_slice(body);
        self.0.write_all(&frame).await.unwrap();
    }

    /// The next frame; `None` when the node closed.
    async fn receive(&mut self) -> Option<Envelope> {
        let mut frame = vec![0; 9];
        self.0.read_exact(&mut frame).await.ok()?;
        let length = u32::from_be_bytes(frame[5..9].try_into().unwrap()) as usize;
        frame.resize(9 + length, 0);
        self.0.read_exact(&mut frame[9..]).await.unwrap();
        Some(
            Envelope::from_buffer(&frame, Compression::Lz4)
                .unwrap()
                .envelope,
        )
    }

    async fn error(&mut self) -> (i16, i32, String) {
        let envelope = self.receive().await.expect("an answer");
        assert_eq!(envelope.opcode, Opcode::Error, "{envelope:?}");
        let e = ErrorBody::from_cursor(&mut Cursor::new(&envelope.body), Version::V4).unwrap();
        (envelope.stream_id, e.ty.to_error_code(), e.message)
    }

    async fn startup(&mut self, options: &[(&str, &str)]) {
        let mut body = (options.len() as u16).to_be_bytes().to_vec();
        for text in options.iter().flat_map(|(k, v)| [k, v]) {
            body.extend_from_slice(&(text.len() as u16).to_be_bytes());
            body.extend_from_slice(text.as_bytes());
        }
        self.send(4, 0, 1, 0x01, &body).await;
    }
}

const QUERY: u8 = 0x07;
const PROTOCOL_ERROR: i32 = 0x000A;

fn query(text: &str) -> Vec<u8> {
    let mut body = (text.len() as u32).to_be_bytes().to_vec();
    body.extend_from_slice(text.as_bytes());
    body.extend_from_slice(&[0, 1, 0]);
    body
}

#[tokio::test]
async fn other_versions_are_refused_so_that_clients_take_four() {
    let node = node().await;
    for version in [66, 65, 5, 3, 1] {
        let mut raw = Raw::connect(&node).await;
        raw.send(version, 0, 12, 0x05, &[]).await;
        let (stream, code, message) = raw.error().await;
        assert_eq!((stream, code), (12, PROTOCOL_ERROR));
        assert!(
            message.contains("unsupported protocol version"),
            "{message}"
        );
        raw.send(4, 0, 13, 0x05, &[]).await;
        assert_eq!(
            raw.receive().await.unwrap().opcode,
            Opcode::Supported,
            "the connection goes on"
        );
    }
}

#[tokio::test]
async fn nothing_runs_before_startup() {
    let node = node().await;
    let mut raw = Raw::connect(&node).await;
    raw.send(4, 0, 1, QUERY, &query("SELECT * FROM system.local"))
        .await;
    let (_, code, message) = raw.error().await;
    assert_eq!(code, PROTOCOL_ERROR);
    assert!(message.contains("QUERY"), "{message}");
    assert!(raw.receive().await.is_none(), "closed");
}

#[tokio::test]
async fn broken_requests_are_answered_and_the_next_is_served() {
    let node = node().await;
    let mut raw = Raw::connect(&node).await;
    raw.startup(&[("CQL_VERSION", "3.0.0"), ("COMPRESSION", "zstd")])
        .await;
    assert_eq!(raw.error().await.1, PROTOCOL_ERROR);
    raw.startup(&[("CQL_VERSION", "3.0.0")]).await;
    assert_eq!(raw.receive().await.unwrap().opcode, Opcode::Ready);
    let broken: [(u8, u8, Vec<u8>); 7] = [
        (0, QUERY, vec![]),
        (0, QUERY, vec![0, 0, 0, 9, b'x']),
        (0, QUERY, vec![0xff; 8]),
        (
            0,
            QUERY,
            [&[0, 0, 0, 2, 0xc3, 0x28][..], &[0, 1, 0]].concat(),
        ),
        (0, 0x42, vec![]),
        (0, 0x0D, vec![9, 0, 0]),
        (1, QUERY, query("SELECT * FROM system.local")),
    ];
    for (flags, opcode, body) in broken {
        raw.send(4, flags, 77, opcode, &body).await;
        let (stream, code, message) = raw.error().await;
        assert_eq!(
            (stream, code),
            (77, PROTOCOL_ERROR),
            "{opcode:#x} {body:?}: {message}"
        );
    }
    raw.send(4, 0, 78, QUERY, &query("SELECT key FROM system.local"))
        .await;
    let answer = raw.receive().await.unwrap();
    assert_eq!((answer.stream_id, answer.opcode), (78, Opcode::Result));
}

#[tokio::test]
async fn a_frame_beyond_the_bound_ends_the_connection() {
    let node = Node::start(Options {
        max_request_bytes: 1000,
        ..Options::default()
    })
    .await
    .unwrap();
    let mut raw = Raw::connect(&node).await;
    raw.startup(&[("COMPRESSION", "lz4")]).await;
    assert_eq!(raw.receive().await.unwrap().opcode, Opcode::Ready);
    // Inflated, far beyond the bound.
    let body = [&(1_u32 << 30).to_be_bytes()[..], &[0]].concat();
    raw.send(4, 1, 5, QUERY, &body).await;
    assert_eq!(raw.error().await.1, PROTOCOL_ERROR);
    raw.send(
        4,
        0,
        6,
        QUERY,
        &query(&format!("SELECT {}", "x".repeat(2000))),
    )
    .await;
    let (_, code, message) = raw.error().await;
    assert_eq!(code, PROTOCOL_ERROR);
    assert!(message.contains("too large"), "{message}");
    assert!(raw.receive().await.is_none(), "closed");
}

#[tokio::test]
async fn answers_under_way_are_given_when_the_node_ends() {
    use scylla_double::{Action, Fault};
    let node = node().await;
    let slow =
        Fault::new(Action::Delay(std::time::Duration::from_millis(200))).on_table("system.local");
    let slow = node.faults().inject(slow);
    let mut raw = Raw::connect(&node).await;
    raw.startup(&[]).await;
    assert_eq!(raw.receive().await.unwrap().opcode, Opcode::Ready);
    raw.send(4, 0, 9, QUERY, &query("SELECT key FROM system.local"))
        .await;
    until("the request is under way", async || {
        (node.faults().hits(slow) == Some(1)).then_some(())
    })
    .await;
    let (answer, ()) = tokio::join!(raw.receive(), node.shutdown());
    assert_eq!(answer.unwrap().stream_id, 9);
    assert!(raw.receive().await.is_none(), "closed");
}
