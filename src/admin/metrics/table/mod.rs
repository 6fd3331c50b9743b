//! The metrics, a row each, by what they are of. To add one is to add a row, and to renew docs/metrics.md by
//! `UPDATE_GOLDEN=1`.

mod ends;
mod lanes;
mod process;

use super::{Kind, Metric, Samples, Scrape, Unit};

/// Every metric, in the order in which they are served.
pub fn table() -> impl Iterator<Item = &'static Metric> {
    [process::ROWS, lanes::ROWS, ends::ROWS]
        .into_iter()
        .flatten()
}

type Read = fn(&Scrape<'_>, &mut Samples<'_>);

const NONE: &[&str] = &[];
const STAGE: &[&str] = &["stage"];
const SHARD: &[&str] = &["shard"];
const OF_TABLE: &[&str] = &["table"];
const TRANSFORM: &[&str] = &["transform"];
const OUTCOME: &[&str] = &["outcome"];

const fn metric(
    kind: Kind,
    name: &'static str,
    unit: Unit,
    labels: &'static [&'static str],
    help: &'static str,
    read: Read,
) -> Metric {
    Metric {
        name,
        kind,
        unit,
        labels,
        help,
        read,
    }
}

const fn gauge(
    name: &'static str,
    unit: Unit,
    labels: &'static [&'static str],
    help: &'static str,
    read: Read,
) -> Metric {
    metric(Kind::Gauge, name, unit, labels, help, read)
}

const fn counter(
    name: &'static str,
    unit: Unit,
    labels: &'static [&'static str],
    help: &'static str,
    read: Read,
) -> Metric {
    metric(Kind::Counter, name, unit, labels, help, read)
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}
