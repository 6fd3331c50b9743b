//! The README's tour, as far as `penstock` and `curl` go: typed as it stands there, against the demo that it speaks of, what
//! is printed is what stands there. (docs/plugins.md is held to what it prints by tests/workbench.rs.)

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testkit::process::LONG;

use super::shown::{Step, is_shown, steps, without_chance};
use super::typed::free;

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
    fn shows(&self, step: &Step) {
        let command = &step.command;
        let shown: Vec<String> = step.shown.iter().map(|l| without_chance(l)).collect();
        let until = Instant::now() + LONG;
        loop {
            let said = self.says(command);
            if is_shown(&shown, &said) {
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
    let tour = steps(&page);
    let ours = ["penstock ", "curl ", "cqlsh "];
    let mut steps = tour
        .iter()
        .filter(|step| ours.iter().any(|own| step.command.starts_with(own)));
    let mut next = |begins: &str| {
        let step = steps.next().expect("a step");
        assert!(
            step.command.starts_with(begins),
            "{begins} is to come, not {}",
            step.command
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
    let cql = next("cqlsh ")
        .command
        .split('"')
        .nth(1)
        .expect("a statement");
    session.query_unpaged(cql, ()).await.expect(cql);
    demo.edit(
        "tables = [\"outbox_messages\"]",
        "tables = [\"outbox_messages\", \"books\"]",
    );
    demo.shows(next("penstock reloads"));
    let statements = next("cqlsh ")
        .shown
        .iter()
        .filter_map(|line| line.strip_prefix("cqlsh> "));
    for cql in statements.filter(|cql| cql.ends_with(';')) {
        session.query_unpaged(cql, ()).await.expect(cql);
    }
}
