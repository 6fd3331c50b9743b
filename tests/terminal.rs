//! On a terminal: what draws on it starts, follows its size, ends by a key or Ctrl-C, and gives it back as it was; and a terminal that
//! has no size, or that nobody reads, holds nobody up.

use std::io::{Read, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use penstock::checkpoint::{GroupCheckpoint, topic::encode};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use testkit::broker::{Cluster, Operator};
use testkit::process::{LONG, Running, Setup, World, keys};

/// Takes the other screen and the cursor, and gives both back.
const TAKEN: &str = "\u{1b}[?1049h";
const GIVEN_BACK: &str = "\u{1b}[?1049l";
const CURSOR: &str = "\u{1b}[?25h";

/// A terminal as `script` makes one, what was written to it, and the program that has it.
struct Terminal {
    /// Of what the shell in it writes down: which terminal it is, its settings before and after, the program's number.
    notes: tempfile::TempDir,
    keys: ChildStdin,
    written: Arc<Mutex<Vec<u8>>>,
    script: Child,
}

impl Terminal {
    /// Runs `penstock` with this terminal, of so many columns and rows, as its own.
    fn run(args: &[&str], (columns, rows): (u16, u16), set: impl FnOnce(&mut Command)) -> Self {
        let notes = tempfile::tempdir().expect("a folder");
        let shell = format!(
            // Ctrl-C is for the program: the shell beside it goes on, and tells how that ended.
            "cd {}; trap : INT; stty rows {rows} cols {columns}; tty > tty; stty -g > before; \
             sh -c 'echo $$ > pid; exec \"$0\" \"$@\"' {} {}; code=$?; stty -g > after; exit $code",
            notes.path().display(),
            testkit::penstock().display(),
            args.join(" "),
        );
        let mut command = Command::new("script");
        command
            .args([
                "--quiet",
                "--flush",
                "--return",
                "--command",
                &shell,
                "/dev/null",
            ])
            .env("TERM", "xterm-256color")
            .env("SHELL", "/bin/sh")
            .env_remove("NO_COLOR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        set(&mut command);
        let mut script = command.spawn().expect("script is there");
        let written = Arc::default();
        let terminal = Self {
            notes,
            keys: script.stdin.take().expect("a pipe"),
            written: Arc::clone(&written),
            script,
        };
        let mut terminal = terminal;
        let mut screen = terminal.script.stdout.take().expect("a pipe");
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            loop {
                match screen.read(&mut some) {
                    Ok(n) if n > 0 => written.lock().extend_from_slice(&some[..n]),
                    _ => return,
                }
            }
        });
        terminal
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.written.lock()).into_owned()
    }

    /// Waits until this was written `times` times.
    fn shows(&mut self, what: &str, times: usize) {
        let until = Instant::now() + LONG;
        loop {
            let is_all = self.is_read();
            if self.text().matches(what).count() >= times {
                return;
            }
            assert!(
                Instant::now() < until && !is_all,
                "no {what:?} ({times}): {:?}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Nothing more will be written: the thread that read it has ended.
    fn is_read(&self) -> bool {
        Arc::strong_count(&self.written) == 1
    }

    fn press(&mut self, key: &[u8]) {
        self.keys.write_all(key).expect("typed");
    }

    fn note(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.notes.path().join(name));
        text.expect(name).trim().to_owned()
    }

    /// Makes it as large as this.
    fn resize(&self, columns: u16, rows: u16) {
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let done = Command::new("stty")
            .args(["-F", &self.note("tty"), "rows", &rows, "cols", &columns])
            .status();
        assert!(done.expect("stty is there").success());
    }

    fn ends(&mut self) -> ExitStatus {
        let until = Instant::now() + LONG;
        loop {
            if self.is_read()
                && let Some(status) = self.script.try_wait().expect("wait")
            {
                return status;
            }
            assert!(Instant::now() < until, "it goes on: {:?}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// It ended well, and the terminal is what it was.
    fn is_given_back(&mut self) {
        let status = self.ends();
        assert_eq!(status.code(), Some(0), "{:?}", self.text());
        assert_eq!(self.note("after"), self.note("before"), "its settings");
        let until = Instant::now() + LONG;
        while !self.text().contains(GIVEN_BACK) || !self.text().contains(CURSOR) {
            assert!(Instant::now() < until, "not given back: {:?}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The terminal takes nothing more.
    fn stop_reading(&self) {
        self.signal("-STOP", &self.script.id().to_string());
    }

    fn signal(&self, signal: &str, process: &str) {
        let sent = Command::new("kill").args([signal, process]).status();
        assert!(sent.expect("kill").success());
    }

    /// Whether one of the program's threads waits for the terminal to take what it writes to standard error.
    fn writes_in_vain(&self) -> bool {
        let tasks = std::fs::read_dir(self.process().join("task")).expect("it runs");
        tasks.flatten().any(|task| {
            let call = std::fs::read_to_string(task.path().join("syscall"));
            let waits = std::fs::read_to_string(task.path().join("wchan"));
            // `write`, to standard error.
            call.is_ok_and(|call| call.starts_with("1 0x2 ") || call.starts_with("64 0x2 "))
                || waits.is_ok_and(|waits| waits.contains("n_tty_write"))
        })
    }

    fn process(&self) -> PathBuf {
        PathBuf::from("/proc").join(self.note("pid"))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.script.try_wait().is_ok_and(|ended| ended.is_none()) {
            // The program first: it has the terminal, not this process, for a parent.
            let pid = std::fs::read_to_string(self.notes.path().join("pid"));
            let pid = pid.unwrap_or_default();
            for (signal, process) in [
                ("-KILL", pid.trim()),
                ("-CONT", &self.script.id().to_string()),
            ] {
                Command::new("kill").args([signal, process]).status().ok();
            }
            self.script.kill().ok();
        }
        self.script.wait().ok();
    }
}

async fn running() -> (World, Running) {
    let world = World::new("").await;
    let running = world.start(1);
    running.await_line("all supervised stages started", LONG);
    world.write(&keys(2), 0, 3).await;
    (world, running)
}

fn watch(world: &World, running: &Running, size: (u16, u16)) -> Terminal {
    let args = ["status", "--watch", "200ms"];
    Terminal::run(&args, size, |command| {
        command
            .env("PENSTOCK_CONFIG", world.config())
            .env("PENSTOCK_ADMIN__LISTEN", running.admin());
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_watched_ends_by_a_key_and_gives_the_terminal_back() {
    let (world, running) = running().await;
    for key in [&b"q"[..], b"\x1b", b"\x03"] {
        let mut terminal = watch(&world, &running, (80, 24));
        terminal.shows(TAKEN, 1);
        terminal.shows(&world.name, 1);
        terminal.shows("healthy", 1);
        assert!(!terminal.text().contains(GIVEN_BACK));
        terminal.press(key);
        terminal.is_given_back();
    }
    // It follows the terminal's size; and where there is none, there is nothing to see, and still an end.
    let mut terminal = watch(&world, &running, (0, 0));
    terminal.shows(TAKEN, 1);
    terminal.resize(80, 24);
    terminal.shows("healthy", 1);
    terminal.resize(120, 40);
    terminal.shows("healthy", 2);
    terminal.resize(0, 0);
    std::thread::sleep(Duration::from_millis(400));
    terminal.press(b"q");
    terminal.is_given_back();
    running.stop_cleanly();
}

fn demo(world: &World, args: &[&str]) -> Terminal {
    demo_with(world, args, "")
}

/// … with these fault points.
fn demo_with(world: &World, args: &[&str], faults: &str) -> Terminal {
    Terminal::run(args, (80, 24), |command| {
        command
            .env("FAILPOINTS", faults)
            .env("PENSTOCK_CONFIG", world.config())
            .env("PENSTOCK_ADMIN__LISTEN", "127.0.0.1:0")
            .env("PENSTOCK_ORDERS__LISTEN", "127.0.0.1:0")
            .env("PENSTOCK_SHUTDOWN__TIMEOUT", "10s");
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_shows_its_picture_and_ctrl_c_drains_it() {
    let world = World::with_orders("").await;
    let mut terminal = demo(&world, &["demo", "--rate", "20"]);
    terminal.shows(TAKEN, 1);
    terminal.shows("Ctrl-C", 1);
    terminal.shows("healthy", 1);
    terminal.press(b"\x03");
    terminal.is_given_back();
    // What was said meanwhile is there afterwards.
    let text = terminal.text();
    let (_, after) = text.rsplit_once(GIVEN_BACK).expect("given back");
    assert!(after.contains("stop taking orders"), "{after}");
}

/// Somebody pressed Ctrl-S, or looks at something else: what the terminal does not take is not waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_nobody_reads_holds_nobody_up() {
    let world = World::with_orders("").await;
    for command in [
        &["demo", "--rate", "50"][..],
        &["run", "--set=log.filter=trace"],
    ] {
        let mut terminal = demo(&world, command);
        terminal.shows("all supervised stages started", 1);
        // It reads no more, and what is written has no room soon.
        terminal.stop_reading();
        let until = Instant::now() + LONG;
        for columns in [200, 201].into_iter().cycle() {
            if terminal.writes_in_vain() {
                break;
            }
            assert!(
                Instant::now() < until,
                "{command:?} never met a full terminal"
            );
            // A picture of another size is drawn anew.
            terminal.resize(columns, 60);
            std::thread::sleep(Duration::from_millis(200));
        }
        terminal.signal("-INT", &terminal.note("pid"));
        let until = Instant::now() + LONG / 2;
        while terminal.process().join("exe").exists() {
            assert!(Instant::now() < until, "{command:?} waits for its terminal");
            std::thread::sleep(Duration::from_millis(20));
        }
        terminal.signal("-CONT", &terminal.script.id().to_string());
        let status = terminal.ends();
        assert_eq!(status.code(), Some(0), "{command:?}\n{}", terminal.text());
    }
}

/// Nobody else draws it; what is said has to be seen all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_picture_that_panics_is_gone_and_what_is_said_goes_on() {
    let world = World::with_orders("").await;
    let mut terminal = demo_with(&world, &["demo", "--rate", "20"], "terminal=panic(a bug)");
    terminal.shows("the picture is gone, its drawing panicked: a bug", 1);
    // It was given back, and nothing takes it again.
    terminal.shows(GIVEN_BACK, 1);
    terminal.press(b"\x03");
    terminal.is_given_back();
    let text = terminal.text();
    assert_eq!(text.matches(TAKEN).count(), 1, "{text}");
    let (_, after) = text.rsplit_once(GIVEN_BACK).expect("given back");
    assert!(after.contains("stop taking orders"), "{after}");
}

/// Checkpoints enough to take a while, of a table that is gone.
fn checkpoint_often(brokers: &str, topic: &str, records: Range<u32>) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("queue.buffering.max.messages", "2000000")
        .create()
        .expect("a producer");
    let value = encode(&GroupCheckpoint::default());
    for n in records {
        let key = format!("ks.gone/0/a@{n}");
        let record = BaseRecord::to(topic).partition(0).key(&key).payload(&value);
        producer.send(record).expect("there is room");
    }
    producer.flush(LONG).expect("all are written");
}

/// How far long work is, with its rate and the time that is left: on a terminal a bar, for what a start and a command load and for
/// what a command writes.
#[tokio::test(flavor = "multi_thread")]
async fn long_work_has_a_bar_that_says_how_far_it_is_and_how_long_it_will_take() {
    let world = World::with(Setup {
        transforms: Some(String::new()),
        ..Setup::default()
    })
    .await;
    let topic = format!("penstock.{}.checkpoints", world.name);
    let compact = [("cleanup.policy", "compact")];
    Operator::new(&world.cluster.brokers)
        .create(&topic, 2, &compact)
        .await;
    let text = std::fs::read_to_string(world.config()).expect("pipeline.toml");
    let here = world.cluster.brokers.replace(',', "\", \"");
    let file = |name: &str, text: &str| {
        let path = world.dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    // Only their names count: nobody asks ScyllaDB.
    let gone = text.replace("tables = [\"outbox\"]", "tables = [\"gone\"]");
    let from = file("here.toml", &gone);
    // As much as it says on the way.
    let said = |terminal: &Terminal, what: &str| {
        let text = terminal.text();
        let all = text.split(['\r', '\n']).filter(|line| line.contains(what));
        let far = all.filter(|l| l.contains(" of ") && l.contains("/s, ") && l.contains(" left"));
        far.max().map(str::to_owned)
    };
    let (reading, mut there) = (format!("reading {topic} ["), 0);
    // What is done within a moment has no bar, and machines differ in how much that is.
    for many in [80_000, 240_000, 480_000] {
        checkpoint_often(&world.cluster.brokers, &topic, there..many);
        there = many;
        let other = Cluster::embedded();
        let to = file("there.toml", &gone.replace(&here, &other.brokers));
        let copy = ["checkpoint", "copy", "--config", &from, "--to", &to];
        let mut copy = Terminal::run(&copy, (120, 24), |_| {});
        assert_eq!(copy.ends().code(), Some(0), "{}", copy.text());
        let done = format!("the checkpoints of {many} groups are on the other cluster");
        copy.shows(&done, 1);

        let mut run = demo(&world, &["run"]);
        run.shows("all supervised stages started", 1);
        let bars = [
            said(&copy, &reading),
            said(&copy, "writing checkpoints ["),
            said(&run, &reading),
        ];
        run.press(b"\x03");
        assert_eq!(run.ends().code(), Some(0), "{}", run.text());
        println!("{many}: {bars:#?}");
        if bars.iter().all(Option::is_some) {
            return;
        }
    }
    panic!("no bar, however much there was to do");
}
