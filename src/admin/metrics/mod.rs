//! `GET /metrics`: what is observed, in Prometheus' text format or as OpenMetrics.
//!
//! Nothing is counted here. Each scrape reads the counters that the parts keep for themselves, so a metric
//! cannot say something that the pipeline does not do. What there is stands in [`table()`], a row a metric, of which
//! docs/metrics.md is made and which dashboard and alerts are held against. Names follow Prometheus' conventions: base
//! units, the unit in the name, `_total` for what only grows.

mod table;

use std::fmt::Write;
use std::sync::Arc;

use tokio::time::Instant;

pub use table::table;

use crate::coordinator::handle::Handle;
use crate::coordinator::lane::Lane;
use crate::coordinator::pipeline::Pipeline;
use crate::coordinator::report::Report;
use crate::coordinator::supervisor::ChildStatus;
use crate::histogram::Exemplar;
use crate::policy::stage::StageSnapshot;
use crate::sink::flight::Snapshot;
use crate::source::SourceStatus;

/// What a metric's value may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It goes up and down.
    Gauge,
    /// It only grows; its name ends in `_total`.
    Counter,
    /// Counts by upper bounds, their sum and their number.
    Histogram,
}

impl Kind {
    /// As `# TYPE` has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// What a metric is measured in; its name says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A number, a state or a count of what the name says.
    None,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// 0 to 1.
    Ratio,
}

impl Unit {
    /// As names end.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
            Self::Ratio => "ratio",
        }
    }
}

/// One metric.
pub struct Metric {
    /// As it is served, with its unit and, of a counter, `_total`.
    pub name: &'static str,
    /// What its value may do.
    pub kind: Kind,
    /// What it is measured in.
    pub unit: Unit,
    /// The labels of each of its samples. Their values are bounded: by the configuration, or by an enum.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
    /// Reads it; a metric without samples is left out of the answer.
    read: fn(&Scrape<'_>, &mut Samples<'_>),
}

impl Metric {
    /// The family's name in OpenMetrics: a counter's is without its `_total`.
    fn family(&self) -> &'static str {
        match self.kind {
            Kind::Counter => self.name.strip_suffix("_total").unwrap_or(self.name),
            Kind::Gauge | Kind::Histogram => self.name,
        }
    }
}

/// What all metrics of one answer are read from: each part is asked once.
struct Scrape<'a> {
    handle: &'a Handle,
    now: Instant,
    health: Report,
    children: Vec<ChildStatus>,
    stages: Vec<StageSnapshot>,
    pipeline: Option<Carries>,
}

/// What there is only while a pipeline is there.
struct Carries {
    pipeline: Arc<Pipeline>,
    lanes: Vec<Arc<Lane>>,
    source: SourceStatus,
    sink: Snapshot,
}

impl<'a> Scrape<'a> {
    fn of(handle: &'a Handle) -> Self {
        Self {
            handle,
            now: Instant::now(),
            health: handle.health().borrow().clone(),
            children: handle.children(),
            stages: handle.policies().iter().map(|p| p.snapshot()).collect(),
            pipeline: handle.pipeline().map(|pipeline| Carries {
                lanes: pipeline.lanes(),
                source: pipeline.source_status(),
                sink: pipeline.sink_counts(),
                pipeline,
            }),
        }
    }
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format, version 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The one that a request's `Accept` wants.
    pub fn wanted(accept: &str) -> Self {
        match accept.contains("application/openmetrics-text") {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Takes a metric's samples and writes them.
struct Samples<'a> {
    metric: &'static Metric,
    format: Format,
    text: &'a mut String,
    begun: bool,
}

impl Samples<'_> {
    fn head(&mut self) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let metric = self.metric;
        let (help, kind, unit) = (metric.help, metric.kind.word(), metric.unit.word());
        let name = match self.format {
            Format::Text => metric.name,
            Format::OpenMetrics => metric.family(),
        };
        // Writing to a String cannot fail.
        writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
        if self.format == Format::OpenMetrics && !unit.is_empty() {
            writeln!(self.text, "# UNIT {name} {unit}").ok();
        }
    }

    /// One sample, with a value for each of the metric's labels.
    fn of(&mut self, labels: &[&str], value: f64) {
        self.sample("", labels, None, value, None);
    }

    /// The only sample of a metric without labels.
    fn one(&mut self, value: f64) {
        self.of(&[], value);
    }

    /// A histogram of these bounds, with one count a bucket and one for what is beyond; and an exemplar a bucket, where
    /// there is one.
    fn histogram(
        &mut self,
        labels: &[&str],
        bounds: &[f64],
        (counts, sum): (&[u64], f64),
        exemplars: &[Option<Exemplar>],
    ) {
        let mut below = 0;
        let exemplar = |bucket: usize| exemplars.get(bucket).copied().flatten();
        for (bucket, (bound, count)) in bounds.iter().zip(counts).enumerate() {
            below += count;
            let le = match self.format {
                Format::Text => bound.to_string(),
                // Its canonical numbers have a point.
                Format::OpenMetrics => format!("{bound:?}"),
            };
            self.sample("_bucket", labels, Some(&le), below as f64, exemplar(bucket));
        }
        let all: u64 = counts.iter().sum();
        let beyond = exemplar(bounds.len());
        self.sample("_bucket", labels, Some("+Inf"), all as f64, beyond);
        self.sample("_sum", labels, None, sum, None);
        self.sample("_count", labels, None, all as f64, None);
    }

    fn sample(
        &mut self,
        suffix: &str,
        labels: &[&str],
        le: Option<&str>,
        value: f64,
        exemplar: Option<Exemplar>,
    ) {
        self.head();
        debug_assert_eq!(labels.len(), self.metric.labels.len());
        write!(self.text, "{}{suffix}", self.metric.name).ok();
        let names = self.metric.labels.iter().copied();
        let all = names.zip(labels.iter().copied());
        let mut separator = '{';
        for (label, text) in all.chain(le.map(|le| ("le", le))) {
            let text = text
                .replace('\\', r"\\")
                .replace('"', "\\\"")
                .replace('\n', r"\n");
            write!(self.text, "{separator}{label}=\"{text}\"").ok();
            separator = ',';
        }
        if separator == ',' {
            self.text.push('}');
        }
        write!(self.text, " {value}").ok();
        // Prometheus' own format has none.
        if let Some(exemplar) = exemplar.filter(|_| self.format == Format::OpenMetrics) {
            let Exemplar { trace, seconds, at } = exemplar;
            write!(
                self.text,
                " # {{trace_id=\"{trace:032x}\"}} {seconds} {at:.3}"
            )
            .ok();
        }
        self.text.push('\n');
    }
}

/// Everything that there is to see, as one scrape.
pub fn render(handle: &Handle, format: Format) -> String {
    let scrape = Scrape::of(handle);
    let mut text = String::with_capacity(32 * 1024);
    for metric in table() {
        let mut samples = Samples {
            metric,
            format,
            text: &mut text,
            begun: false,
        };
        (metric.read)(&scrape, &mut samples);
    }
    if format == Format::OpenMetrics {
        text.push_str("# EOF\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// docs/metrics.md is made of the table; `UPDATE_GOLDEN=1` renews it.
    #[test]
    fn the_page_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let page = std::fs::read_to_string(path).expect("the page");
        let head = "|---|---|---|---|---|\n";
        let (before, _) = page.split_once(head).expect("the page has a table");
        let rows = table().map(|m| {
            let (kind, unit, labels) = (m.kind.word(), m.unit.word(), m.labels.join(", "));
            format!(
                "| `{}` | {kind} | {unit} | {labels} | {} |\n",
                m.name, m.help
            )
        });
        let wanted = format!("{before}{head}{}", rows.collect::<String>());
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &wanted).expect("written");
        } else {
            assert_eq!(page, wanted, "UPDATE_GOLDEN=1 renews docs/metrics.md");
        }
    }

    #[test]
    fn names_say_kind_and_unit_and_each_is_there_once() {
        let mut names = std::collections::BTreeSet::new();
        for m in table() {
            let base = m.name.strip_suffix("_total");
            assert_eq!(base.is_some(), m.kind == Kind::Counter, "{}", m.name);
            let unit = m.unit.word();
            let said = base.unwrap_or(m.name).rsplit('_').next() == Some(unit);
            assert_eq!(said, m.unit != Unit::None, "{}: {unit:?}", m.name);
            assert!(names.insert(m.name), "{} twice", m.name);
            assert!(m.help.ends_with('.'), "{}: {}", m.name, m.help);
        }
    }

    #[test]
    fn a_histogram_is_cumulative_and_ends_with_everything() {
        let metric = table().find(|m| m.name == "penstock_change_latency_seconds");
        let told = " # {trace_id=\"000000000000000000000000000000ab\"} 0.75 1700000000.500";
        for (format, bound, told) in [(Format::Text, "1", ""), (Format::OpenMetrics, "1.0", told)] {
            let mut text = String::new();
            let mut samples = Samples {
                metric: metric.expect("it is there"),
                format,
                text: &mut text,
                begun: false,
            };
            let exemplar = Exemplar {
                trace: 0xab,
                seconds: 0.75,
                at: 1_700_000_000.5,
            };
            samples.histogram(
                &["ks.a\"b"],
                &[0.5, 1.0],
                (&[2, 3, 4], 7.5),
                &[None, Some(exemplar), None],
            );
            let line = |rest: &str| format!("penstock_change_latency_seconds{rest}\n");
            let table = r#"table="ks.a\"b""#;
            for part in [
                line(&format!("_bucket{{{table},le=\"0.5\"}} 2")),
                line(&format!("_bucket{{{table},le=\"{bound}\"}} 5{told}")),
                line(&format!("_bucket{{{table},le=\"+Inf\"}} 9")),
                line(&format!("_sum{{{table}}} 7.5")),
                line(&format!("_count{{{table}}} 9")),
            ] {
                assert!(text.contains(&part), "{part} in {text}");
            }
            let unit = text.contains("# UNIT penstock_change_latency_seconds seconds\n");
            assert_eq!(unit, format == Format::OpenMetrics);
        }
    }

    #[test]
    fn openmetrics_names_a_counter_without_its_ending() {
        let metric = table().find(|m| m.name == "penstock_retries_total");
        let mut text = String::new();
        let mut samples = Samples {
            metric: metric.expect("it is there"),
            format: Format::OpenMetrics,
            text: &mut text,
            begun: false,
        };
        samples.of(&["sink"], 3.0);
        assert_eq!(
            text,
            "# HELP penstock_retries Tries after the first.\n# TYPE penstock_retries counter\n\
             penstock_retries_total{stage=\"sink\"} 3\n"
        );
    }
}
