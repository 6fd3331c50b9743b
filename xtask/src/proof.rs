//! What the pipeline promises, shown at length: tests in their long form, each printing what it measured.

use anyhow::{Result, bail};

use crate::cargo::{cargo, check};

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
    /// The test's file, and a part of the names of those that are run.
    test: &'static str,
    filter: &'static str,
    /// The variable that makes it long, and how long where nobody says.
    variable: &'static str,
    n: &'static str,
}

const PROOFS: &[Proof] = &[
    Proof {
        name: "outage",
        about: "seconds that the broker is cut off, silent, or answers errors",
        test: "faults",
        filter: "a_broker_that",
        variable: "PENSTOCK_TEST_OUTAGE_SECONDS",
        n: "30",
    },
    Proof {
        name: "faults",
        about: "each stage panics, fails and hangs, alone and too often",
        test: "supervision",
        filter: "_",
        variable: "PENSTOCK_TEST_ROUNDS",
        n: "4",
    },
    Proof {
        name: "poison",
        about: "changes, one of which panics the plugin; then its replay",
        test: "dead_letters",
        filter: "one_change",
        variable: "PENSTOCK_TEST_CHANGES",
        n: "100000",
    },
    Proof {
        name: "terms",
        about: "times SIGTERM under load",
        test: "supervision",
        filter: "stops_under_load",
        variable: "PENSTOCK_TEST_ROUNDS",
        n: "20",
    },
    Proof {
        name: "orders",
        about: "orders from 50 connections",
        test: "orders",
        filter: "every_order",
        variable: "PENSTOCK_TEST_ORDERS",
        n: "10000",
    },
    Proof {
        name: "policies",
        about: "cases for each property of the policies",
        test: "policies",
        filter: "",
        variable: "PROPTEST_CASES",
        n: "100000",
    },
];

/// The lines of the help: name, how many where nobody says, and of what.
pub(crate) fn help() -> String {
    let line = |p: &Proof| {
        format!(
            "      {:<20} {}\n",
            format!("{} [{}]", p.name, p.n),
            p.about
        )
    };
    PROOFS.iter().map(line).collect()
}

pub(crate) fn proof(rest: &[String]) -> Result<()> {
    let asked = rest.first().map(String::as_str);
    if let Some(name) = asked
        && PROOFS.iter().all(|proof| proof.name != name)
    {
        bail!("no proof `{name}`\n\n{}", help());
    }
    for proof in PROOFS.iter().filter(|p| asked.is_none_or(|a| a == p.name)) {
        let n = rest.get(1).map_or(proof.n, String::as_str);
        println!("proof {}: {}={n}", proof.name, proof.variable);
        check(
            cargo()
                .env(proof.variable, n)
                // A panic is part of some of them; where it came from is known.
                .env("RUST_BACKTRACE", "0")
                .args(["test", "--release", "--test", proof.test, proof.filter])
                .args(["--", "--nocapture"]),
        )?;
    }
    Ok(())
}
