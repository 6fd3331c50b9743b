//! A real Apache Kafka to test on: started and stopped by hand, or for one run of the suites.
//!
//! Its state lies in `target/kafka`; `crates/kafka-node` knows how it is run. Processes that this did not start are
//! never ended.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use kafka_node::{Cluster, Spec, VERSION, available, jars};

use crate::cargo::{cargo, check, target_dir};
use crate::help;
use crate::proof::Variables;

pub(crate) const ABOUT: &str = "\
a real Apache Kafka on loopback (needs Java and Maven), its state in target/kafka
start: [--nodes 1|3] [--port first] [--heap 512m] [--name name] [property=value …]
stop, status: [--name name]";

/// How many connections tests may cut or silence at once.
const RELAYS: u16 = 8;

/// Those of them that CI has the time for.
const SHORT: &[&str] = &["sink", "exactly_once", "end_to_end", "crashes"];

/// The test files that speak to a broker.
const SUITES: &[&str] = &[
    "sink",
    "exactly_once",
    "end_to_end",
    "crashes",
    "matrix",
    "dead_letters",
    "faults",
    "orders",
    "reload",
    "supervision",
    "sharing",
    "checkpoints",
    "topics",
];

struct Asked {
    nodes: u16,
    port: Option<u16>,
    heap: String,
    name: String,
    properties: Vec<(String, String)>,
}

impl Asked {
    fn read(rest: &[String]) -> Result<Self> {
        let mut asked = Self {
            nodes: 1,
            port: None,
            heap: "512m".into(),
            name: "main".into(),
            properties: Vec::new(),
        };
        let mut rest = rest.iter();
        while let Some(word) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{word} of what?"));
            match word.as_str() {
                "--nodes" => asked.nodes = value()?.parse().context("--nodes 1 or 3")?,
                "--port" => asked.port = Some(value()?.parse().context("--port of a number")?),
                "--heap" => asked.heap.clone_from(value()?),
                "--name" => asked.name.clone_from(value()?),
                other => match other.split_once('=') {
                    Some((key, value)) => asked.properties.push((key.into(), value.into())),
                    None => bail!("{other:?} means nothing here\n\n{}", help()),
                },
            }
        }
        Ok(asked)
    }

    fn dir(&self) -> Result<PathBuf> {
        Ok(state()?.join(&self.name))
    }

    fn spec(&self) -> Result<Spec> {
        available()?;
        Ok(Spec {
            nodes: self.nodes,
            port: self.port,
            heap: self.heap.clone(),
            relays: RELAYS,
            properties: self.properties.clone(),
            ends_with_us: false,
            ..Spec::one(jars(&state()?)?, self.dir()?)
        })
    }
}

fn state() -> Result<PathBuf> {
    Ok(target_dir()?.join("kafka"))
}

pub(crate) fn kafka(rest: &[String]) -> Result<()> {
    let Some((verb, rest)) = rest.split_first() else {
        bail!("start, stop or status?\n\n{}", help());
    };
    let asked = Asked::read(rest)?;
    match verb.as_str() {
        "start" => {
            let cluster = Cluster::start(&asked.spec()?)?;
            tell(&cluster)
        }
        "stop" => {
            let ended = match Cluster::find(&asked.dir()?)? {
                Some(cluster) => cluster.stop()?,
                None => 0,
            };
            println!("{ended} ended");
            Ok(())
        }
        "status" => {
            let Some(cluster) = Cluster::find(&asked.dir()?)? else {
                bail!("none was started");
            };
            for n in 0..cluster.size() {
                let log = cluster.log(n);
                match cluster.pid(n) {
                    Some(pid) => println!("node {}: pid {pid}, log {}", n + 1, log.display()),
                    None => println!("node {}: ended, log {}", n + 1, log.display()),
                }
            }
            tell(&cluster)
        }
        other => bail!("{other}: start, stop or status?\n\n{}", help()),
    }
}

/// What tests are told by, in the form that a shell takes.
fn tell(cluster: &Cluster) -> Result<()> {
    println!("PENSTOCK_TEST_BROKERS={}", cluster.brokers());
    println!("PENSTOCK_TEST_RELAYS={}", cluster.relays()?);
    Ok(())
}

/// `test --kafka`: on the brokers that the environment names, else on one that is started for it.
pub(crate) fn test(rest: &[String]) -> Result<()> {
    with_broker(|broker| {
        let mut suites = cargo();
        // The same packages as for all tests, so that cargo builds nothing of them anew.
        suites.args(["test", "--workspace", "--no-fail-fast"]);
        let short = rest.first().is_some_and(|first| first == "--short");
        let (suites_asked, rest) = match rest.split_first() {
            Some((_, rest)) if short => (SHORT, rest),
            _ => (SUITES, rest),
        };
        suites.args(suites_asked.iter().flat_map(|suite| ["--test", suite]));
        suites.args(rest);
        if short && rest.is_empty() {
            // Minutes of members that are missed; `proof generations` is its long form.
            suites.args(["--", "--skip", "kills_while_generations"]);
        }
        check(suites.envs(broker.iter().cloned()))?;
        if short {
            // Of this suite, what the stand-in cannot judge.
            let mut followed = cargo();
            followed.args([
                "test",
                "--workspace",
                "--test",
                "sharing",
                "a_new_generation",
            ]);
            check(followed.args(rest).envs(broker.iter().cloned()))?;
        }
        Ok(())
    })
}

/// Whether there is a broker to test on, or what it takes to start one.
pub(crate) fn at_hand() -> Result<()> {
    if std::env::var_os("PENSTOCK_TEST_BROKERS").is_some() {
        return Ok(());
    }
    available()
}

/// Does something with the brokers that the environment names, else with one that lives for as long as it takes:
/// what is done is handed the variables that name it.
pub(crate) fn with_broker(run: impl FnOnce(&Variables) -> Result<()>) -> Result<()> {
    if let Ok(brokers) = std::env::var("PENSTOCK_TEST_BROKERS") {
        println!("on {brokers}");
        return run(&Vec::new());
    }
    let asked = Asked {
        name: format!("test-{}", std::process::id()),
        ..Asked::read(&[])?
    };
    let cluster = Cluster::start(&Spec {
        ends_with_us: true,
        ..asked.spec()?
    })?;
    println!("on Apache Kafka {VERSION}, {}", cluster.brokers());
    let done = run(&vec![
        ("PENSTOCK_TEST_BROKERS".to_owned(), cluster.brokers()),
        ("PENSTOCK_TEST_RELAYS".to_owned(), cluster.relays()?),
    ]);
    cluster.stop()?;
    if done.is_ok() {
        // What it wrote matters only after a failure.
        std::fs::remove_dir_all(asked.dir()?)?;
    }
    done
}
