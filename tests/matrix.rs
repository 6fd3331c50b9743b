//! The fault matrix: every fault that comes from outside, at every moment, by the real program under load. Each cell
//! heals by itself or ends with the documented exit code, loses nothing, says why it waits, and keeps its memory.
//!
//! Long form: `cargo xtask proof matrix [seconds] [--faults a,b] [--moments a,b] [--delivery …]`, where the seconds are
//! how long a fault lasts. What needs a real Kafka (rights, quotas, restarts, in-sync replicas) is left out, and said
//! to be, where Java and Maven are not there or `PENSTOCK_TEST_BROKERS` names no broker.

#[path = "matrix/cell.rs"]
mod cell;
#[path = "matrix/load.rs"]
mod load;
#[path = "matrix/scene.rs"]
mod scene;

use std::time::Duration;

use cell::{Cell, Moment, Times};
use scene::{Fault, Host, Hosts};

/// What is asked for: everything, in the long form.
struct Asked {
    faults: Vec<Fault>,
    moments: Vec<Moment>,
    times: Times,
}

/// The words of a variable that name some of these; `None`: the variable is not set.
fn named<T: Copy>(variable: &str, all: &[T], name: impl Fn(T) -> &'static str) -> Option<Vec<T>> {
    let words = std::env::var(variable).ok()?;
    if words == "all" {
        return Some(all.to_vec());
    }
    let one = |word: &str| {
        let found = all.iter().copied().find(|t| name(*t) == word);
        found.unwrap_or_else(|| {
            let all: Vec<&str> = all.iter().map(|t| name(*t)).collect();
            panic!("{variable}: {word:?} is none of {all:?}")
        })
    };
    Some(words.split(',').map(one).collect())
}

impl Asked {
    fn from_environment() -> Self {
        let seconds = std::env::var("PENSTOCK_TEST_FAULT_SECONDS").ok();
        let long = seconds.is_some();
        let seconds = seconds.map_or(2, |n| n.parse().expect("seconds"));
        let faults = named("PENSTOCK_TEST_FAULTS", Fault::ALL, Fault::name);
        let moments = named("PENSTOCK_TEST_MOMENTS", Moment::ALL, Moment::name);
        let short = || Fault::ALL.iter().copied().filter(|f| f.is_quick());
        Self {
            faults: faults.unwrap_or_else(|| match long {
                true => Fault::ALL.to_vec(),
                false => short().collect(),
            }),
            moments: moments.unwrap_or_else(|| match long {
                true => Moment::ALL.to_vec(),
                false => vec![Moment::UnderLoad],
            }),
            times: Times {
                lasts: Duration::from_secs(seconds),
                open_for: (!long).then_some("2s"),
            },
        }
    }

    fn cells(&self, host: Host) -> Vec<(Fault, Moment)> {
        let of_host = self.faults.iter().filter(|fault| fault.host() == host);
        of_host
            .flat_map(|fault| self.moments.iter().map(|moment| (*fault, *moment)))
            .collect()
    }
}

async fn row(cells: Vec<(Fault, Moment)>, host: &Hosts, times: Times) -> Vec<Cell> {
    let mut done = Vec::new();
    for (fault, moment) in cells {
        let cell = Cell::run(fault, moment, host, times).await;
        println!("{cell}");
        done.push(cell);
    }
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn every_fault_heals_at_every_moment() {
    let asked = Asked::from_environment();
    let hosts = Hosts::find();
    println!("{}", Cell::HEAD);
    // Cells of one host of their own come one after the other; what shares a broker, in two rows at once.
    let shared = asked.cells(Host::Shared);
    let (left, right): (Vec<_>, Vec<_>) = shared
        .into_iter()
        .enumerate()
        .partition(|(n, _)| n % 2 == 0);
    let strip = |cells: Vec<(usize, _)>| cells.into_iter().map(|(_, cell)| cell).collect();
    let alone = async {
        let mut done = Vec::new();
        for host in [Host::Own, Host::Three] {
            let cells = asked.cells(host);
            if cells.is_empty() {
                continue;
            }
            match hosts.start(host) {
                Ok(own) => done.extend(row(cells, &own, asked.times).await),
                Err(missing) => {
                    for (fault, moment) in cells {
                        println!(
                            "{:<24} {:<14} left out: {missing:#}",
                            fault.name(),
                            moment.name()
                        );
                    }
                }
            }
        }
        done
    };
    let (mut done, more, own) = tokio::join!(
        row(strip(left), &hosts, asked.times),
        row(strip(right), &hosts, asked.times),
        alone
    );
    done.extend(more);
    done.extend(own);
    done.sort_by_key(|cell| (cell.fault, cell.moment));
    println!("\n{}", Cell::HEAD);
    for cell in &done {
        println!("{cell}");
    }
    let bad: Vec<&Cell> = done.iter().filter(|cell| !cell.holds()).collect();
    for cell in &bad {
        println!("\n{cell}\n{}", cell.tale());
    }
    assert!(
        bad.is_empty(),
        "{} of {} cells do not hold",
        bad.len(),
        done.len()
    );
}
