//! The README's tour, as far as `penstock` and `curl` go: typed as it stands there, against the demo that it speaks of, what
//! is printed is what stands there. (docs/plugins.md is held to what it prints by tests/workbench.rs.)

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testkit::process::LONG;

/// What differs from run to run is a placeholder: times, addresses, ids.
fn without_chance(line: &str) -> String {
    let of_a_word = |c: char| c.is_alphanumeric() || matches!(c, '-' | ':' | '.' | '_');
    let mut out = String::new();
    let mut rest = line.trim_end();
    while let Some(start) = rest.find(of_a_word) {
        out.push_str(&rest[..start]);
        let end = rest[start..]
            .find(|c| !of_a_word(c))
            .map_or(rest.len(), |n| start + n);
        let word = &rest[start..end];
        out.push_str(if word.parse::<jiff::Timestamp>().is_ok() {
            "<time>"
        } else if word.parse::<std::net::SocketAddr>().is_ok() {
            "<address>"
        } else if word.parse::<uuid::Uuid>().is_ok() {
            "<id>"
        } else {
            word
        });
        rest = &rest[end..];
    }
    out + rest
}

/// Whether a line is what was shown; `…` stands for anything.
fn is_line(shown: &str, real: &str) -> bool {
    let mut parts = shown.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = real.strip_prefix(first) else {
        return false;
    };
    let mut open = false;
    for part in parts {
        open = true;
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty() || open && shown.ends_with('…')
}

/// Whether lines are those that were shown; a line of `…` stands for any, and so does the end of what was shown.
fn is_shown(shown: &[&str], real: &[String]) -> bool {
    match shown.split_first() {
        None => true,
        Some((line, rest)) if line.trim() == "…" => {
            (0..=real.len()).any(|skipped| is_shown(rest, &real[skipped..]))
        }
        Some((line, rest)) => real.split_first().is_some_and(|(first, others)| {
            is_line(&without_chance(line), first) && is_shown(rest, others)
        }),
    }
}

/// The commands of a page's blocks of code, each with what it is said to print.
fn typed(page: &str) -> Vec<(String, Vec<&str>)> {
    let mut all: Vec<(String, Vec<&str>)> = Vec::new();
    let (mut code, mut continues) = (false, false);
    for line in page.lines() {
        if line.starts_with("```") {
            code = !code;
            continues = false;
            // What comes in the next block is nobody's output.
            all.push((String::new(), Vec::new()));
        } else if !code {
        } else if let Some(command) = line.strip_prefix("$ ") {
            all.push((command.to_owned(), Vec::new()));
            continues = is_open(command);
        } else if let Some((command, output)) = all.last_mut() {
            if continues {
                command.push('\n');
                command.push_str(line);
                continues = is_open(command);
            } else {
                output.push(line);
            }
        }
    }
    all.retain(|(command, _)| !command.is_empty());
    all
}

/// Whether a quotation goes on in the next line.
fn is_open(command: &str) -> bool {
    let odd = |quote: char| command.matches(quote).count() % 2 == 1;
    odd('\'') || odd('"')
}

/// A demo in a folder of its own.
struct Demo {
    folder: tempfile::TempDir,
    admin: String,
    orders: String,
    child: Child,
}

impl Demo {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        std::fs::copy(
            root.join("pipeline.toml"),
            folder.path().join("pipeline.toml"),
        )
        .expect("copied");
        std::os::unix::fs::symlink(root.join("plugins"), folder.path().join("plugins"))
            .expect("linked");
        let free = || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("it is bound").to_string()
        };
        let (admin, orders) = (free(), free());
        let log = File::create(folder.path().join("demo.log")).expect("a file");
        let child = Command::new(testkit::penstock())
            .args(["demo", "--rate", "0.1"])
            .current_dir(folder.path())
            .env("PENSTOCK_ADMIN__LISTEN", &admin)
            .env("PENSTOCK_ORDERS__LISTEN", &orders)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("penstock starts");
        let demo = Self {
            folder,
            admin,
            orders,
            child,
        };
        let log = demo.folder.path().join("demo.log");
        let until = Instant::now() + LONG;
        while !std::fs::read_to_string(&log).is_ok_and(|l| l.contains("first record")) {
            assert!(Instant::now() < until, "{}", demo.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        demo
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("demo.log")).unwrap_or_default()
    }

    /// What a command prints, by a shell, in the demo's folder.
    fn says(&self, command: &str) -> Vec<String> {
        let program = testkit::penstock();
        let bin = program.parent().expect("a folder").display().to_string();
        let path = std::env::var("PATH").unwrap_or_default();
        // The tour's ports are the defaults.
        let command = command.replace("localhost:8080", &self.orders);
        let output = Command::new("sh")
            .args(["-c", &command])
            .current_dir(self.folder.path())
            .env("PATH", format!("{bin}:{path}"))
            .env("PENSTOCK_ADMIN__LISTEN", &self.admin)
            .env("PENSTOCK_ORDERS__LISTEN", &self.orders)
            .output()
            .expect("a shell");
        [output.stdout, output.stderr]
            .iter()
            .flat_map(|said| {
                let said = String::from_utf8_lossy(said).into_owned();
                said.lines().map(without_chance).collect::<Vec<_>>()
            })
            .collect()
    }

    fn edit(&self, from: &str, to: &str) {
        let file = self.folder.path().join("pipeline.toml");
        let text = std::fs::read_to_string(&file).expect("it is there");
        let at = text
            .find("[sink.breaker]")
            .filter(|_| !from.starts_with("tables"));
        let (before, after) = text.split_at(at.unwrap_or_default());
        assert!(after.contains(from), "no {from} in\n{after}");
        let text = before.to_owned() + &after.replacen(from, to, 1);
        std::fs::write(&file, text).expect("written");
    }

    /// What is shown, at the latest in a while: a save is in force a moment after it.
    fn shows(&self, (command, shown): &(String, Vec<&str>)) {
        let until = Instant::now() + LONG;
        loop {
            let said = self.says(command);
            if is_shown(shown, &said) {
                return;
            }
            assert!(
                Instant::now() < until,
                "$ {command}\n{}\n\nis not\n\n{}",
                said.join("\n"),
                shown.join("\n")
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tour_prints_what_it_says() {
    let page = std::fs::read_to_string("README.md").expect("it is there");
    let tour = typed(&page);
    let ours = ["penstock ", "curl ", "cqlsh "];
    let mut steps = tour
        .iter()
        .filter(|(command, _)| ours.iter().any(|own| command.starts_with(own)));
    let mut next = |begins: &str| {
        let step = steps.next().expect("a step");
        assert!(
            step.0.starts_with(begins),
            "{begins} is to come, not {}",
            step.0
        );
        step
    };
    let demo = Demo::start();
    demo.shows(next("penstock status"));
    demo.edit("failure_threshold = 5", "failure_threshold = 8");
    demo.shows(next("penstock reloads"));
    demo.edit("failure_threshold = 8", "failure_treshold = 8");
    demo.shows(next("penstock validate"));
    demo.edit("failure_treshold = 8", "failure_threshold = 8");
    let curl = next("curl ");
    if Command::new("curl").arg("--version").output().is_ok() {
        demo.shows(curl);
    } else {
        eprintln!("SKIPPED: no curl here");
    }
    // What cqlsh is given, by the driver that is here.
    let log = demo.log();
    let address = log.lines().find_map(|line| {
        let (_, address) = line.split_once("embedded ScyllaDB listens")?;
        Some(address.split_once("listen=")?.1.trim().to_owned())
    });
    let session = scylla::client::session_builder::SessionBuilder::new()
        .known_node(address.expect("an address"))
        .build()
        .await
        .expect("it answers");
    let (made, _) = next("cqlsh ");
    let cql = made.split('"').nth(1).expect("a statement");
    session.query_unpaged(cql, ()).await.expect(cql);
    demo.edit(
        "tables = [\"outbox_messages\"]",
        "tables = [\"outbox_messages\", \"books\"]",
    );
    demo.shows(next("penstock reloads"));
    let (_, said) = next("cqlsh ");
    let statements = said.iter().filter_map(|line| line.strip_prefix("cqlsh> "));
    for cql in statements.filter(|cql| cql.ends_with(';')) {
        session.query_unpaged(cql, ()).await.expect(cql);
    }
}

#[test]
fn what_was_shown_is_found_again_and_nothing_else() {
    let real = [
        "orders 0.1.0 at 127.0.0.1:99 since 2026-11-24T05:14:28Z",
        "a line",
        "{\"id\":\"65dbcd72-e456-469d-a9f2-60882d0b14c9\",\"n\":1}",
    ]
    .map(without_chance);
    let is = |shown: &[&str]| is_shown(shown, &real);
    assert!(is(&[
        "orders 0.1.0 at 10.0.0.1:4 since 2025-01-01T00:00:00.5Z",
        "a line"
    ]));
    assert!(is(&[
        "orders … since …",
        "…",
        "{\"id\":\"5b6962dd-3f90-4c93-8f61-eabfa4a803e2\",…}"
    ]));
    assert!(!is(&["orders 0.1.1 …"]));
    assert!(!is(&["orders …", "another line"]));
    assert!(!is(&["a line"]));
}
