//! By real sockets. On one thread, so that nothing is accepted or read between two lines that do not await.

use std::io::Write;
use std::net::SocketAddr;

use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use tokio::net::TcpStream;

use super::*;
use crate::config::Settings;
use crate::config::settings::Policies;
use crate::coordinator::listen::{Bound, listen};
use crate::coordinator::supervisor::{ChildSpec, Supervisor};

struct House {
    supervisor: Supervisor,
    limits: Limits,
    /// What lets a request to `/held` be answered.
    leave: Arc<Semaphore>,
    /// One for each that has come.
    came: Arc<Semaphore>,
}

impl House {
    fn new(limits: Limits) -> Self {
        let settings = Arc::new(Settings::for_tests(Policies::default()));
        let live = tokio::sync::watch::Sender::new(settings).subscribe();
        Self {
            supervisor: Supervisor::new(live),
            limits,
            leave: Arc::new(Semaphore::new(0)),
            came: Arc::new(Semaphore::new(0)),
        }
    }

    /// Serves in place of `before`; every answer says `name`.
    fn serve(&mut self, name: &'static str, bound: Bound, before: Option<&Arc<Listening>>) {
        if let Some(before) = before {
            before.hand_over(bound.listening());
            self.supervisor.retire(|_| true);
        }
        let (leave, came) = (self.leave.clone(), self.came.clone());
        let held = async move || {
            came.add_permits(1);
            leave.acquire().await.unwrap().forget();
            name
        };
        let app = Router::new()
            .route("/", get(async move || name))
            .route("/probe", get(async || "alive"))
            .route("/held", get(held))
            .route("/echo", post(async |body: String| body));
        let listening = bound.in_force();
        let serving = Serving {
            stage: Stage::Admin,
            app,
            probes: &["/probe"],
            limits: self.limits,
        }
        .at(&listening);
        self.supervisor
            .start(ChildSpec::new(Stage::Admin, move |scope| {
                serve(serving.clone(), listening.clone(), scope)
            }));
    }
}

fn loopback(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn asking(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")
}

/// Connects and asks before anybody could accept it: it is in the system's queue when this returns.
fn queued(to: SocketAddr, path: &str) -> TcpStream {
    let mut stream = std::net::TcpStream::connect(to).unwrap();
    stream.write_all(asking(path).as_bytes()).unwrap();
    stream.set_nonblocking(true).unwrap();
    TcpStream::from_std(stream).unwrap()
}

/// One answer: its head and its body.
async fn answer(stream: &mut TcpStream) -> (String, String) {
    let mut text = Vec::new();
    loop {
        let whole = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, body)) = whole.split_once("\r\n\r\n") {
            let length = head.split("\r\n").find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                let named = name.eq_ignore_ascii_case("content-length");
                named.then(|| value.parse::<usize>().unwrap())
            });
            if body.len() >= length.unwrap_or_default() {
                return (head.to_owned(), body.to_owned());
            }
        }
        let mut some = [0; 4096];
        let n = stream.read(&mut some).await.expect("an answer, no reset");
        assert_ne!(n, 0, "closed after {whole:?}");
        text.extend(&some[..n]);
    }
}

/// Row 43: accepted by the new one first, and whoever came to the old one is answered: over a connection that waits
/// in the queue, one that is being answered, and one that is kept and idle.
#[tokio::test]
async fn a_listener_that_is_replaced_cuts_no_request() {
    for replaced in [[0, 0, 0, 0], [127, 0, 0, 1]] {
        let mut house = House::new(Limits::default());
        let bound = listen((replaced, 0).into(), None).await.unwrap();
        let old = bound.listening().clone();
        let here = loopback(old.address().port());
        house.serve("old", bound, None);

        let mut kept = queued(here, "/");
        assert_eq!(answer(&mut kept).await.1, "old");
        let mut held = queued(here, "/held");
        house.came.acquire().await.unwrap().forget();

        // A wide address for a narrow one, and the other way round.
        let wanted = match replaced {
            [0, 0, 0, 0] => here,
            _ => ([0, 0, 0, 0], here.port()).into(),
        };
        let bound = listen(wanted, Some(&old)).await.unwrap();
        let mut waiting: Vec<_> = (0..20).map(|_| queued(here, "/")).collect();
        house.serve("new", bound, Some(&old));
        drop(old);
        for stream in &mut waiting {
            assert_eq!(answer(stream).await.1, "new");
        }
        house.leave.add_permits(1);
        let (head, body) = answer(&mut held).await;
        assert_eq!(body, "old");
        assert!(head.contains("connection: close"), "{head}");
        kept.write_all(asking("/").as_bytes()).await.unwrap();
        let (head, body) = answer(&mut kept).await;
        // By whoever is in force: what is no more answers nothing new.
        assert_eq!(body, "new");
        assert!(head.contains("connection: close"), "{head}");
        let mut newcomer = TcpStream::connect(here).await.unwrap();
        newcomer.write_all(asking("/").as_bytes()).await.unwrap();
        assert_eq!(answer(&mut newcomer).await.1, "new");
    }
}

/// … or kept after all: what came to the socket that was opened beside it, it answers.
#[tokio::test]
async fn a_listener_that_is_kept_after_all_answers_whoever_came_to_the_other() {
    let mut house = House::new(Limits::default());
    let bound = listen(([0, 0, 0, 0], 0).into(), None).await.unwrap();
    let old = bound.listening().clone();
    let here = loopback(old.address().port());
    house.serve("old", bound, None);
    for _ in 0..3 {
        // Once what is left of the round before is closed.
        let candidate = listen(here, Some(&old)).await.unwrap();
        let mut waiting: Vec<_> = (0..20).map(|_| queued(here, "/")).collect();
        drop(candidate);
        for stream in &mut waiting {
            assert_eq!(answer(stream).await.1, "old");
        }
    }
    let mut newcomer = TcpStream::connect(here).await.unwrap();
    newcomer.write_all(asking("/").as_bytes()).await.unwrap();
    assert_eq!(answer(&mut newcomer).await.1, "old");
}

/// Nobody keeps a drain, not even when there is nobody.
#[tokio::test]
async fn a_service_that_nobody_uses_drains_at_once() {
    let mut house = House::new(Limits::default());
    let bound = listen(loopback(0), None).await.unwrap();
    let here = bound.listening().address();
    house.serve("it", bound, None);
    answer(&mut queued(here, "/")).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    house.supervisor.drain(|_| true);
    let drained = tokio::time::timeout(Duration::from_secs(10), house.supervisor.next_event());
    drained.await.unwrap();
    assert!(house.supervisor.is_drained(|_| true));
    assert!(
        TcpStream::connect(here).await.is_err(),
        "the address is free"
    );
}

/// A process that stops answers whoever has asked.
#[tokio::test]
async fn a_stop_cuts_no_request_either() {
    let mut house = House::new(Limits::default());
    let bound = listen(loopback(0), None).await.unwrap();
    let here = bound.listening().address();
    house.serve("old", bound, None);
    let mut kept = queued(here, "/");
    answer(&mut kept).await;
    kept.write_all(asking("/").as_bytes()).await.unwrap();
    let mut waiting: Vec<_> = (0..20).map(|_| queued(here, "/")).collect();
    let mut silent = std::net::TcpStream::connect(here).unwrap();
    house.supervisor.drain(|_| true);
    for stream in waiting.iter_mut().chain([&mut kept]) {
        assert_eq!(answer(stream).await.1, "old");
    }
    // And is not kept by those who have not.
    let began = Instant::now();
    while !house.supervisor.is_drained(|_| true) {
        house.supervisor.next_event().await;
    }
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert!(silent.write(b"GET").is_ok());
}

fn narrow() -> Limits {
    Limits {
        most: 8,
        spare: 2,
        ..Limits::default()
    }
}

/// Row 24.
#[tokio::test]
async fn whoever_idles_makes_room() {
    let mut house = House::new(narrow());
    let bound = listen(loopback(0), None).await.unwrap();
    let here = bound.listening().address();
    house.serve("it", bound, None);
    let mut kept = queued(here, "/");
    answer(&mut kept).await;
    let mut idle: Vec<std::net::TcpStream> = Vec::new();
    for n in 0..40 {
        let mut stream = std::net::TcpStream::connect(here).unwrap();
        if n % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\nx-slow").unwrap();
        }
        idle.push(stream);
        assert_eq!(answer(&mut queued(here, "/probe")).await.1, "alive");
    }
    // A client that keeps its connection is let go of after those that never asked for anything.
    kept.write_all(asking("/").as_bytes()).await.unwrap();
    assert_eq!(answer(&mut kept).await.1, "it");
}

#[tokio::test]
async fn probes_are_answered_while_every_connection_is_at_work() {
    let mut house = House::new(narrow());
    let bound = listen(loopback(0), None).await.unwrap();
    let here = bound.listening().address();
    house.serve("it", bound, None);
    let mut held: Vec<_> = (0..8).map(|_| queued(here, "/held")).collect();
    house.came.acquire_many(8).await.unwrap().forget();
    for _ in 0..10 {
        assert_eq!(answer(&mut queued(here, "/probe")).await.1, "alive");
    }
    let (head, _) = answer(&mut queued(here, "/")).await;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert!(head.contains("retry-after: 1"), "{head}");
    house.leave.add_permits(8);
    for stream in &mut held {
        assert_eq!(answer(stream).await.1, "it");
    }
    assert_eq!(answer(&mut queued(here, "/")).await.1, "it");
}

/// At the deadlines that users get; the clock jumps to the next of them whenever everybody waits.
#[tokio::test(start_paused = true)]
async fn slow_requests_are_told_so() {
    let mut house = House::new(Limits::default());
    let bound = listen(loopback(0), None).await.unwrap();
    let here = bound.listening().address();
    house.serve("it", bound, None);
    for part in [
        "GET / HTTP/1.1\r\nhost: loc",
        "POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nfour",
    ] {
        let mut slow = TcpStream::connect(here).await.unwrap();
        slow.write_all(part.as_bytes()).await.unwrap();
        let began = Instant::now();
        let (head, _) = answer(&mut slow).await;
        assert!(head.starts_with("HTTP/1.1 408"), "{head}");
        assert!(
            began.elapsed() < Duration::from_secs(11),
            "{:?}",
            began.elapsed()
        );
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "{rest:?}");
    }
    let long = format!(
        "POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
        Limits::default().most_body + 1
    );
    let mut stream = TcpStream::connect(here).await.unwrap();
    stream.write_all(long.as_bytes()).await.unwrap();
    let (head, _) = answer(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 413"), "{head}");
    let whole = "POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\nfour";
    let mut stream = TcpStream::connect(here).await.unwrap();
    stream.write_all(whole.as_bytes()).await.unwrap();
    assert_eq!(answer(&mut stream).await.1, "four");
}

#[tokio::test]
async fn what_the_router_refuses_is_a_problem_too() {
    let mut house = House::new(Limits::default());
    let bound = listen(loopback(0), None).await.unwrap();
    let here = bound.listening().address();
    house.serve("it", bound, None);
    for (asked, status, detail) in [
        (
            "GET /echo HTTP/1.1\r\nhost: localhost\r\n\r\n",
            "405",
            "Allow",
        ),
        (
            "POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\n",
            "400",
            "UTF-8",
        ),
    ] {
        let mut stream = TcpStream::connect(here).await.unwrap();
        stream.write_all(asked.as_bytes()).await.unwrap();
        if status == "400" {
            stream.write_all(b"\xff").await.unwrap();
        }
        let (head, body) = answer(&mut stream).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
        assert!(head.contains("application/problem+json"), "{head}");
        let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert!(
            problem["detail"].as_str().unwrap().contains(detail),
            "{body}"
        );
        assert_eq!(head.contains("allow: POST"), status == "405", "{head}");
    }
}
