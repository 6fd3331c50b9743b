//! docs/commands.md and docs/endpoints.md: typed as they stand there, every command prints what stands there. And no command of
//! the command line, and no path of either HTTP interface, is without an example.
//!
//! `PENSTOCK_TEST_BLESS=1` puts what is printed into the pages where it differs: to be read, and shortened by `…`.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use penstock::change::Position;
use scylla::client::session_builder::SessionBuilder;
use scylla_double::{Node, Options};
use serde_json::{Deserializer, Value};
use testkit::broker::Cluster;
use testkit::process::LONG;
use uuid::Uuid;

use super::shown::{Step, is_shown, steps, without_numbers};

/// Commands that only look: what they show may be so only a moment later.
const LOOKS: &[&str] = &[
    "penstock status",
    "penstock health",
    "penstock reloads",
    "penstock breaker list",
    "penstock dead-letters list",
    "penstock checkpoint show",
    "curl -s localhost",
];

/// … and those that print the same each time, or change nothing: asked for JSON, too.
const HARMLESS: &[&str] = &[
    "penstock config",
    "penstock doctor",
    "penstock init-schema",
    "penstock plugin inspect",
    "penstock reload",
    "penstock schema",
    "penstock tap",
    "penstock test",
    "penstock validate",
    "penstock breaker reset",
    "penstock completions",
    "penstock dead-letters show",
    "penstock man",
];

/// A pipeline's folder, servers for it, and the page that is typed there.
struct Place {
    folder: tempfile::TempDir,
    admin: String,
    orders: String,
    node: Node,
    _brokers: [Cluster; 2],
    page: &'static str,
    running: Option<Running>,
    /// What was last said of these.
    order: Option<Uuid>,
    letter: Option<Position>,
    blessed: Vec<((usize, usize), Vec<String>)>,
}

/// The pipeline, and orders that keep it busy.
struct Running {
    child: Child,
    busy: Arc<AtomicBool>,
    feeding: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.busy.store(false, Ordering::Relaxed);
        self.feeding.abort();
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Whether the pages are to be renewed.
fn blesses() -> bool {
    std::env::var_os("PENSTOCK_TEST_BLESS").is_some()
}

/// An address that nobody takes meanwhile: one of this machine's that no connection starts from.
pub(crate) fn free() -> String {
    static GIVEN: AtomicU8 = AtomicU8::new(0);
    let [a, b, ..] = std::process::id().to_le_bytes();
    let given = GIVEN.fetch_add(1, Ordering::Relaxed);
    // Neither is 0: that is the network's own, and 127.0.0 what everything else is at.
    let own = format!("127.{}.{b}.{}:0", a.max(1), given + 1);
    let listener = TcpListener::bind(own).expect("a port");
    listener.local_addr().expect("it is bound").to_string()
}

impl Place {
    async fn new(page: &'static str) -> Self {
        let node = Node::start(Options::default()).await.expect("it starts");
        let brokers = [Cluster::embedded(), Cluster::embedded()];
        let folder = tempfile::tempdir().expect("a folder");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(root.join("pipeline.toml")).expect("it is there");
        for (file, brokers) in ["pipeline.toml", "there.toml"].iter().zip(&brokers) {
            let at = |address: &str| format!("[\"{address}\"] #");
            let text = text
                .replace(
                    "nodes = \"embedded\"",
                    &format!("nodes = {}", at(&node.addr().to_string())),
                )
                .replace(
                    "brokers = \"embedded\"",
                    &format!("brokers = {}", at(&brokers.brokers)),
                );
            let text = text + "\n[orders]\nenabled = true\n";
            std::fs::write(folder.path().join(file), text).expect("written");
        }
        std::os::unix::fs::symlink(root.join("plugins"), folder.path().join("plugins"))
            .expect("linked");
        Self {
            folder,
            admin: free(),
            orders: free(),
            node,
            _brokers: brokers,
            page,
            running: None,
            order: None,
            letter: None,
            blessed: Vec::new(),
        }
    }

    /// By a shell, in the folder.
    fn shell(&self, command: &str) -> Command {
        let program = testkit::penstock();
        let bin = program.parent().expect("a folder").display().to_string();
        let path = std::env::var("PATH").unwrap_or_default();
        // The pages' ports are the defaults; their ids are others'.
        let mut command = command
            .replace("localhost:8080", &self.orders)
            .replace("localhost:9180", &self.admin);
        let words: Vec<String> = command
            .split(|c: char| c.is_whitespace() || c == '/')
            .map(str::to_owned)
            .collect();
        for word in &words {
            let ours = match (word.parse::<Position>(), word.parse::<Uuid>()) {
                (Ok(_), _) => self.letter.map(|p| p.to_string()),
                (_, Ok(id)) if id.get_version_num() == 4 && id.as_u128() >> 64 > 0xffff => {
                    self.order.map(|id| id.to_string())
                }
                _ => None,
            };
            if let Some(ours) = ours {
                command = command.replace(word, &ours);
            }
        }
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &command])
            .current_dir(self.folder.path())
            .env("PATH", format!("{bin}:{path}"))
            .env("PENSTOCK_ADMIN__LISTEN", &self.admin)
            .env("PENSTOCK_ORDERS__LISTEN", &self.orders)
            .stdin(Stdio::null());
        shell
    }

    fn log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.folder.path().join("run.log"));
        lines(&log.unwrap_or_default())
    }

    /// What is logged of a stop. A shard that had nothing to do says at its next batch only that it took over a plugin that the
    /// page changed long before: it may be before, amid or never.
    fn log_of_the_stop(&self) -> Vec<String> {
        let log = self.log().into_iter();
        log.skip_while(|line| !line.contains(" stopping "))
            .filter(|line| !line.contains("transform swapped"))
            .collect()
    }

    async fn start(&mut self) {
        let log = File::create(self.folder.path().join("run.log")).expect("a file");
        // The shell becomes it, so that it can be stopped.
        let child = self
            .shell("exec penstock run")
            .stdout(log.try_clone().expect("a handle"))
            .stderr(log)
            .spawn()
            .expect("it starts");
        let (busy, orders) = (Arc::new(AtomicBool::new(true)), self.orders.clone());
        let goes_on = busy.clone();
        let feeding = tokio::spawn(async move {
            let order = r#"{"customer_id":"c-2","currency":"EUR","items":[{"sku":"nut","quantity":1,"unit_price_minor":5}]}"#;
            let http = reqwest::Client::new();
            while goes_on.load(Ordering::Relaxed) {
                let order = http.post(format!("http://{orders}/orders")).body(order);
                order.send().await.ok();
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        self.running = Some(Running {
            child,
            busy,
            feeding,
        });
        self.until("all supervised stages started");
    }

    fn until(&self, line: &str) {
        let until = Instant::now() + LONG;
        while !self.log().iter().any(|l| l.contains(line)) {
            assert!(
                Instant::now() < until,
                "no {line:?}:\n{}",
                self.log().join("\n")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `^C`.
    fn stop(&mut self) {
        let mut running = self.running.take().expect("it runs");
        running.busy.store(false, Ordering::Relaxed);
        let id = running.child.id().to_string();
        let sent = Command::new("kill").args(["-INT", &id]).status();
        assert!(sent.expect("kill").success());
        let ended = running.child.wait().expect("it was started here");
        assert_eq!(ended.code(), Some(0), "{}", self.log().join("\n"));
    }

    /// One that cannot be routed, and another that can.
    async fn poison(&self) {
        let node = SessionBuilder::new().known_node_addr(self.node.addr());
        let session = node.build().await.expect("a session");
        let cql = "INSERT INTO orders_ks.outbox_messages (aggregate_id, event_id, event_type, payload) \
                   VALUES (uuid(), now(), 'order.refunded', '{}')";
        session.query_unpaged(cql, ()).await.expect(cql);
        let until = Instant::now() + LONG;
        let listed = || self.shell("penstock dead-letters list").output();
        while listed().expect("a shell").stdout.is_empty() {
            assert!(Instant::now() < until, "{}", self.log().join("\n"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn remember(&mut self, step: &Step, output: &Output) {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut words = said.split(|c: char| c.is_whitespace() || c == '"');
        if step.command.contains("dead-letters") {
            let letter = words.find_map(|word| word.parse().ok());
            self.letter = letter.or(self.letter);
        } else if step.command.contains("POST localhost:8080") {
            self.order = words.find_map(|word| word.parse().ok()).or(self.order);
        }
    }

    /// Takes what is printed for what is to be shown, where the pages are to be renewed; `false`: they are not.
    fn bless(&mut self, lines: (usize, usize), said: &[String]) -> bool {
        if blesses() {
            self.blessed.push((lines, said.to_vec()));
        }
        blesses()
    }

    fn compare(&mut self, step: &Step, shown: &[String], lines: (usize, usize), said: &[String]) {
        let placed = |lines: &[String]| -> Vec<String> {
            lines.iter().map(|l| without_numbers(l)).collect()
        };
        if !is_shown(&placed(shown), &placed(said)) && !self.bless(lines, said) {
            panic!(
                "{}: $ {}\n{}\n\nis not\n\n{}",
                self.page,
                step.command,
                said.join("\n"),
                shown.join("\n")
            );
        }
    }

    async fn run(&mut self, step: &Step) {
        let looks = LOOKS.iter().any(|look| step.command.starts_with(look));
        let until = Instant::now()
            + if looks {
                LONG / if blesses() { 30 } else { 4 }
            } else {
                Duration::ZERO
            };
        loop {
            let output = self.shell(&step.command).output().expect("a shell");
            let mut said = lines(&String::from_utf8_lossy(&output.stdout));
            let complained = lines(&String::from_utf8_lossy(&output.stderr));
            said.extend(complained.into_iter().filter(|line| !is_long_work(line)));
            self.remember(step, &output);
            let placed = |lines: &[String]| -> Vec<String> {
                lines.iter().map(|l| without_numbers(l)).collect()
            };
            let is_so = is_shown(&placed(&step.shown), &placed(&said))
                && (!step.shown.is_empty() || said.is_empty());
            let code = output.status.code();
            if is_so && code == Some(step.exits) {
                break;
            }
            if Instant::now() < until {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
            let (command, exits) = (&step.command, step.exits);
            assert_eq!(code, Some(exits), "$ {command}\n{}", said.join("\n"));
            if self.bless(step.lines, &said) {
                break;
            }
            panic!(
                "{}: $ {command}\n{}\n\nis not\n\n{}",
                self.page,
                said.join("\n"),
                step.shown.join("\n")
            );
        }
        self.ask_for_json(step);
    }

    /// What a command prints for programs is JSON.
    fn ask_for_json(&self, step: &Step) {
        let command = &step.command;
        let harmless = LOOKS.iter().chain(HARMLESS);
        let asked = harmless.clone().any(|c| command.starts_with(c));
        let has_own = ["|", "-o ", "--markdown", "--watch", "curl"];
        if !asked || has_own.iter().any(|own| command.contains(own)) {
            return;
        }
        let output = self.shell(&format!("{command} -o json")).output();
        let output = output.expect("a shell");
        let values: Result<Vec<Value>, _> = Deserializer::from_slice(&output.stdout)
            .into_iter()
            .collect();
        let failed = String::from_utf8_lossy(&output.stderr);
        match values {
            Ok(values) if !values.is_empty() || step.exits != 0 => {}
            other => panic!("$ {command} -o json\n{other:?}\n{failed}"),
        }
    }

    /// Types the page from its first line to its last.
    async fn type_all(mut self) {
        let page = std::fs::read_to_string(self.page).expect("it is there");
        let mut stopping = None;
        for step in &steps(&page) {
            let command = &step.command;
            if command.contains("dead-letters") && self.letter.is_none() {
                self.poison().await;
            }
            if command == "penstock run" {
                let at = step.shown.iter().position(|line| line == "^C");
                let at = at.expect("`penstock run` shows a ^C");
                self.start().await;
                let (first, log) = (step.lines.0, self.log());
                self.compare(step, &step.shown[..at], (first, first + at), &log);
                stopping = Some((step, at));
                continue;
            }
            if command.starts_with("penstock checkpoint copy")
                && let Some((run, at)) = stopping.take()
            {
                self.stop();
                let lines = (run.lines.0 + at + 1, run.lines.1);
                let log = self.log_of_the_stop();
                self.compare(run, &run.shown[at + 1..], lines, &log);
            }
            self.run(step).await;
        }
        // The last first, so that the others stay where they are.
        let mut page = lines(&page);
        self.blessed.sort();
        for ((from, to), said) in self.blessed.iter().rev() {
            page.splice(from..to, said.clone());
        }
        if !self.blessed.is_empty() {
            std::fs::write(self.page, page.join("\n") + "\n").expect("written");
            panic!("{} was renewed: read it", self.page);
        }
    }
}

/// Whether it says how far long work is: what is short is not told of, and what is short depends on the machine.
fn is_long_work(line: &str) -> bool {
    let works = ["reading ", "writing ", "replaying "];
    works.iter().any(|work| line.starts_with(work)) && line.contains("/s")
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_prints_what_the_docs_show() {
    Place::new("docs/commands.md").await.type_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_endpoint_answers_what_the_docs_show() {
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("SKIPPED: no curl here");
        return;
    }
    let mut place = Place::new("docs/endpoints.md").await;
    let made = place.shell("penstock init-schema").output();
    assert!(made.expect("a shell").status.success());
    place.start().await;
    place.type_all().await;
}

/// All that pages show with its output and a test holds them to it.
fn held() -> Vec<Step> {
    let pages = ["docs/commands.md", "docs/endpoints.md", "docs/plugins.md"];
    let page = |page: &&str| steps(&std::fs::read_to_string(page).expect("it is there"));
    pages.iter().flat_map(page).collect()
}

#[test]
fn no_command_is_without_its_output() {
    fn leaves(words: &str, command: &clap::Command, found: &mut Vec<String>) {
        if !command.has_subcommands() {
            found.push(words.to_owned());
        }
        for sub in command.get_subcommands() {
            leaves(&format!("{words} {}", sub.get_name()), sub, found);
        }
    }
    let mut all = Vec::new();
    leaves("penstock", &penstock::cli::command(), &mut all);
    assert!(all.len() > 25, "{all:?}");
    let held = held();
    all.retain(|words| {
        let types = |step: &&Step| {
            let rest = step.command.strip_prefix(words.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        !held.iter().filter(types).any(|step| !step.shown.is_empty())
    });
    assert!(all.is_empty(), "no output in docs/ of {all:?}");
}

/// The paths of a router's source, each with its methods.
fn routes(source: &str) -> Vec<(String, String)> {
    let mut routes = Vec::new();
    for route in source.split(".route(").skip(1) {
        let ends = [".route", ".merge", ".fallback", ".layer"];
        let end = ends.iter().filter_map(|end| route.find(end)).min();
        let route = &route[..end.unwrap_or(route.len())];
        let path = match route.trim_start().strip_prefix("METRICS") {
            Some(_) => "/metrics",
            None => route.split('"').nth(1).expect("a path"),
        };
        for (method, call) in [
            ("GET", "get("),
            ("POST", "post("),
            ("PATCH", "patch("),
            ("DELETE", "delete("),
        ] {
            let is_call =
                |at: usize| !route[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if route.match_indices(call).any(|(at, _)| is_call(at)) {
                routes.push((method.to_owned(), path.to_owned()));
            }
        }
    }
    routes
}

/// The method and the path that a `curl` asks for.
fn asked(command: &str) -> Option<(String, String)> {
    let (before, rest) = command.split_once("localhost:")?;
    let path = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    let path = path.split(['?', '\'', ' ', '\n']).next()?;
    let data = command.contains(" -d ");
    let said = command
        .split_once("-X ")
        .and_then(|(_, m)| m.split(' ').next());
    let method = said.unwrap_or(if data { "POST" } else { "GET" });
    before
        .contains("curl")
        .then(|| (method.to_owned(), path.to_owned()))
}

#[test]
fn no_endpoint_is_without_its_answer() {
    let held = held();
    let examples: Vec<(String, String)> = held
        .iter()
        .filter(|step| !step.shown.is_empty())
        .filter_map(|step| asked(&step.command))
        .collect();
    let is = |pattern: &str, path: &str| {
        let (pattern, path): (Vec<_>, Vec<_>) =
            (pattern.split('/').collect(), path.split('/').collect());
        let same = |(p, w): (&&str, &&str)| p == w || p.starts_with('{');
        pattern.len() == path.len() && pattern.iter().zip(&path).all(same)
    };
    let (mut missing, mut seen) = (Vec::new(), 0);
    for source in ["src/admin/mod.rs", "src/orders/http.rs"] {
        let source = std::fs::read_to_string(source).expect("it is there");
        for (method, pattern) in routes(&source) {
            seen += 1;
            let shown = |(m, path): &(String, String)| *m == method && is(&pattern, path);
            if !examples.iter().any(shown) {
                missing.push(format!("{method} {pattern}"));
            }
        }
    }
    assert!(seen > 20, "only {seen} paths were found");
    assert!(
        missing.is_empty(),
        "no answer in docs/endpoints.md of {missing:?}"
    );
}
