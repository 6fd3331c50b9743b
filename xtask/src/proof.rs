//! What the pipeline promises, shown at length: tests in their long form, each printing what it measured.

use anyhow::{Context, Result, bail};

use crate::cargo::{cargo, check};
use crate::kafka;

/// Environment variables and their values.
pub(crate) type Variables = Vec<(String, String)>;

pub(crate) fn reloads(rest: &[String]) -> Result<()> {
    let reloads = rest.first().map_or("200", String::as_str);
    check(cargo().env("PENSTOCK_TEST_RELOADS", reloads).args([
        "test",
        "--release",
        "--test",
        "reload",
        "from_save_to_in_force",
        "--",
        "--nocapture",
    ]))
}

pub(crate) fn restarts(rest: &[String]) -> Result<()> {
    let rounds = rest.first().map_or("20", String::as_str);
    check(cargo().env("PENSTOCK_TEST_ROUNDS", rounds).args([
        "test",
        "--release",
        "--test",
        "end_to_end",
        "under_load",
        "--",
        "--nocapture",
    ]))
}

/// A test in its long form.
struct Proof {
    name: &'static str,
    about: &'static str,
    /// Where the tests are, and parts of the names of those that are run.
    tests: &'static [&'static str],
    filters: &'static [&'static str],
    /// The variable that makes it long, and how long where nobody says.
    variable: &'static str,
    n: &'static str,
    /// Flags of its own, and the variables that they set.
    flags: &'static [(&'static str, &'static str)],
    /// It is about a real broker: one is started where Java and Maven are, and the environment names none.
    kafka: bool,
}

/// Of any proof: on what `test` has built, where a release build is not to be waited for.
const DEBUG: &str = "--debug";

const PROOFS: &[Proof] = &[
    Proof {
        name: "crashes",
        about: "kills -9 at random moments and at the worst ones, read back as committed",
        tests: &["--test", "crashes"],
        filters: &["kills_lose_nothing_and_repeat"],
        variable: "PENSTOCK_TEST_KILLS",
        n: "300",
        flags: &[
            ("--delivery", "PENSTOCK_TEST_DELIVERY"),
            ("--instances", "PENSTOCK_TEST_INSTANCES"),
            ("--rate", "PENSTOCK_TEST_RATE"),
            ("--seed", "PENSTOCK_SEED"),
        ],
        kafka: true,
    },
    Proof {
        name: "generations",
        about: "kills -9 of several instances while stream generations end and begin: of tablets by an odd seed, of vnodes by an even one",
        tests: &["--test", "crashes"],
        filters: &["kills_while_generations"],
        variable: "PENSTOCK_TEST_KILLS",
        n: "100",
        flags: &[
            ("--instances", "PENSTOCK_TEST_INSTANCES"),
            ("--rate", "PENSTOCK_TEST_RATE"),
            ("--seed", "PENSTOCK_SEED"),
        ],
        kafka: true,
    },
    Proof {
        name: "brokers",
        about: "falls of three brokers in turn under load, the program killed beside",
        tests: &["--test", "crashes"],
        filters: &["brokers_that_fall"],
        variable: "PENSTOCK_TEST_BROKER_KILLS",
        n: "12",
        flags: &[
            ("--kills", "PENSTOCK_TEST_KILLS"),
            ("--instances", "PENSTOCK_TEST_INSTANCES"),
            ("--rate", "PENSTOCK_TEST_RATE"),
            ("--seed", "PENSTOCK_SEED"),
        ],
        kafka: false,
    },
    Proof {
        name: "sharing",
        about: "deeds to up to five instances at random: started, stopped, killed, held up past their session",
        tests: &["--test", "sharing"],
        filters: &["whatever_is_done"],
        variable: "PENSTOCK_TEST_ROUNDS",
        n: "60",
        flags: &[("--seed", "PENSTOCK_TEST_SEED")],
        kafka: true,
    },
    Proof {
        name: "moves",
        about: "stops and kills of one of two: how soon all is as before; SIGSTOP past the session; a rolling restart of three",
        tests: &["--test", "sharing"],
        filters: &[
            "all_is_as_before",
            "held_up_for_too_long",
            "rolling_restart",
        ],
        variable: "PENSTOCK_TEST_ROUNDS",
        n: "5",
        flags: &[],
        kafka: true,
    },
    Proof {
        name: "simulator",
        about: "seeds of whole pipelines in made-up time, both ways; then the bugs planted in them, each with its seed",
        tests: &["--lib"],
        filters: &["lane::simulator"],
        variable: "PENSTOCK_TEST_SEEDS",
        n: "100000",
        flags: &[
            ("--first", "PENSTOCK_TEST_FIRST_SEED"),
            ("--seed", "PENSTOCK_SEED"),
        ],
        kafka: false,
    },
    Proof {
        name: "matrix",
        about: "seconds of every fault that comes from outside, at every moment: a table",
        tests: &["--test", "matrix"],
        filters: &["every_fault"],
        variable: "PENSTOCK_TEST_FAULT_SECONDS",
        n: "6",
        flags: &[
            ("--faults", "PENSTOCK_TEST_FAULTS"),
            ("--moments", "PENSTOCK_TEST_MOMENTS"),
            ("--delivery", "PENSTOCK_TEST_DELIVERY"),
        ],
        kafka: true,
    },
    Proof {
        name: "outage",
        about: "seconds that the broker is cut off, silent, or answers errors",
        tests: &["--test", "faults"],
        filters: &["a_broker_that"],
        variable: "PENSTOCK_TEST_OUTAGE_SECONDS",
        n: "30",
        flags: &[],
        kafka: false,
    },
    Proof {
        name: "faults",
        about: "each stage panics, fails and hangs, alone and too often",
        tests: &["--test", "supervision"],
        filters: &["_"],
        variable: "PENSTOCK_TEST_ROUNDS",
        n: "4",
        flags: &[],
        kafka: false,
    },
    Proof {
        name: "swaps",
        about: "swaps of a transform that is never idle: the gap that each leaves",
        tests: &["--test", "plugins"],
        filters: &["swaps_under_load"],
        variable: "PENSTOCK_TEST_SWAPS",
        n: "200",
        flags: &[],
        kafka: false,
    },
    Proof {
        name: "taps",
        about: "quarters of a second at full load, with nobody looking and with three taps",
        tests: &["--test", "plugins"],
        filters: &["a_tap_does_not_slow"],
        variable: "PENSTOCK_TEST_ROUNDS",
        n: "40",
        flags: &[],
        kafka: false,
    },
    Proof {
        name: "fuzz",
        about: "answers of guests, and files that are to be plugins, made at random",
        tests: &["--lib", "--test", "plugins"],
        filters: &["at_random"],
        variable: "PENSTOCK_TEST_FUZZ",
        n: "10000000",
        flags: &[],
        kafka: false,
    },
    Proof {
        name: "languages",
        about: "1: the contract of plugins in every language, with what npm and pip are to fetch for it",
        tests: &["--test", "workbench"],
        filters: &["languages::"],
        variable: "PENSTOCK_TEST_FETCH",
        n: "1",
        flags: &[],
        kafka: false,
    },
    Proof {
        name: "poison",
        about: "changes, one of which panics the plugin; then its replay",
        tests: &["--test", "dead_letters"],
        filters: &["one_change"],
        variable: "PENSTOCK_TEST_CHANGES",
        n: "100000",
        flags: &[],
        kafka: false,
    },
    Proof {
        name: "terms",
        about: "times SIGTERM under load",
        tests: &["--test", "supervision"],
        filters: &["stops_under_load"],
        variable: "PENSTOCK_TEST_ROUNDS",
        n: "20",
        flags: &[],
        kafka: false,
    },
    Proof {
        name: "watched",
        about: "rounds of a backlog, alone and with page, status --watch and tap open: changes a second",
        tests: &["--test", "admin"],
        filters: &["watched_from_all_sides"],
        variable: "PENSTOCK_TEST_ROUNDS",
        n: "7",
        flags: &[],
        kafka: false,
    },
    Proof {
        name: "orders",
        about: "orders from 50 connections",
        tests: &["--test", "orders"],
        filters: &["every_order"],
        variable: "PENSTOCK_TEST_ORDERS",
        n: "10000",
        flags: &[],
        kafka: false,
    },
    Proof {
        name: "policies",
        about: "cases for each property of the policies",
        tests: &["--test", "policies"],
        filters: &[""],
        variable: "PROPTEST_CASES",
        n: "100000",
        flags: &[],
        kafka: false,
    },
];

/// The lines of the help: name, how many where nobody says, and of what.
pub(crate) fn help() -> String {
    let line = |p: &Proof| {
        let typed = format!("{} [{}]", p.name, p.n);
        let mut line = format!("      {typed:<20} {}\n", p.about);
        if !p.flags.is_empty() {
            let flags: Vec<&str> = p.flags.iter().map(|(flag, _)| *flag).collect();
            line += &format!("{:27}and {}\n", "", flags.join(", "));
        }
        line
    };
    let mut lines: String = PROOFS.iter().map(line).collect();
    lines += &format!("      {DEBUG:<20} of any: on what `test` has built\n");
    lines
}

pub(crate) fn proof(rest: &[String]) -> Result<()> {
    let asked = rest.first().map(String::as_str);
    if let Some(name) = asked
        && PROOFS.iter().all(|proof| proof.name != name)
    {
        bail!("no proof `{name}`\n\n{}", help());
    }
    for proof in PROOFS.iter().filter(|p| asked.is_none_or(|a| a == p.name)) {
        let rest = rest.get(1..).unwrap_or_default();
        let (debug, rest): (Vec<_>, Vec<_>) = rest.iter().partition(|word| *word == DEBUG);
        let build: &[&str] = match debug.is_empty() {
            true => &["--release"],
            // The packages of `test`, so that cargo builds nothing of them anew.
            false => &["--workspace"],
        };
        let variables = proof.variables(&rest)?;
        println!("proof {}: {variables:?}", proof.name);
        let run = |broker: &Variables| {
            check(
                cargo()
                    .envs(variables.iter().cloned())
                    .envs(broker.iter().cloned())
                    // A panic is part of some of them; where it came from is known.
                    .env("RUST_BACKTRACE", "0")
                    .arg("test")
                    .args(build)
                    .args(proof.tests)
                    .args(["--", "--nocapture"])
                    // Several are understood by the tests' own program alone.
                    .args(proof.filters)
                    // They take times, and share the broker.
                    .args(proof.kafka.then_some("--test-threads=1")),
            )
        };
        if !proof.kafka {
            run(&Vec::new())?;
        } else if let Err(missing) = kafka::at_hand() {
            println!("on the embedded broker, no real one: {missing}");
            run(&Vec::new())?;
        } else {
            kafka::with_broker(run)?;
        }
    }
    Ok(())
}

impl Proof {
    /// What its arguments set.
    fn variables(&self, rest: &[&String]) -> Result<Variables> {
        let mut variables = vec![(self.variable.to_owned(), self.n.to_owned())];
        let mut rest = rest.iter();
        while let Some(word) = rest.next() {
            if let Some((_, variable)) = self.flags.iter().find(|(flag, _)| flag == word) {
                let value = rest.next().with_context(|| format!("{word} of what?"))?;
                variables.push(((*variable).to_owned(), (*value).clone()));
            } else if word.starts_with("--") {
                bail!("{word} means nothing to {}\n\n{}", self.name, help());
            } else {
                variables[0].1.clone_from(*word);
            }
        }
        Ok(variables)
    }
}
