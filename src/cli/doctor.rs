//! `penstock doctor`: what will go wrong, before it does, and what to do about it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;

use super::output::Output;
use super::{ConfigArgs, exit, machine, validate};
use crate::config::Settings;
use crate::config::settings::Nodes;
use crate::coordinator::child::Stage;
use crate::coordinator::pipeline::PolicyRegistry;
use crate::finding::{Finding, Severity};
use crate::sink::redpanda::examine as brokers;
use crate::source::examine as database;
use crate::transform::Engine;
use crate::workbench::images;

/// `penstock doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The findings as text, or as a JSON array, empty if there is nothing to say.
    #[command(flatten)]
    pub output: Output,
}

/// Looks at everything, and prints what is not as it should be: nothing, if nothing is. The exit code is 0 without an
/// error among it, 1 with one, 64 for a configuration that is refused.
pub fn run(config: &ConfigArgs, args: DoctorArgs) -> u8 {
    // Plugins are compiled and configured, too.
    let settings = match validate::check(config, args.output.is_json()) {
        Ok(loaded) => loaded.settings,
        Err(code) => return code,
    };
    validate::not_asked(&settings);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain!("error: {error}");
            return exit::FAILURE;
        }
    };
    let mut findings: Vec<_> = machine::open_files(&settings).into_iter().collect();
    findings.extend(machine::memory(&settings));
    let (found, tables) = runtime.block_on(examine(&settings));
    findings.extend(found);
    findings.extend(images(&settings, &tables));
    findings.sort_by_key(|f| f.severity);
    if args.output.is_json() {
        say!("{:#}", serde_json::json!(findings));
    } else {
        for finding in &findings {
            say!("{finding}");
        }
    }
    match findings.iter().any(|f| f.severity == Severity::Error) {
        true => exit::FAILURE,
        false => exit::OK,
    }
}

/// What is found on both sides, and the tables that there are.
async fn examine(settings: &Arc<Settings>) -> (Vec<Finding>, Vec<database::Table>) {
    let live = tokio::sync::watch::Sender::new(settings.clone());
    let policies = PolicyRegistry::new(live.subscribe());
    let source = async {
        match &settings.source.nodes {
            Nodes::Embedded => database::Examined::default(),
            Nodes::At(nodes) => database::examine(nodes, settings).await,
        }
    };
    let sink = async {
        match &settings.sink.brokers {
            Nodes::Embedded => brokers::Examined::default(),
            Nodes::At(at) => {
                let policies = policies.stage(&Stage::Sink);
                brokers::examine(at, live.subscribe(), policies).await
            }
        }
    };
    let (source, sink) = tokio::join!(source, sink);
    let mut findings = source.findings;
    findings.extend(sink.findings);
    if let (Some(ttl), Some(until)) = (source.ttl, sink.complete_until_us) {
        findings.extend(headroom(ttl, until, settings, SystemTime::now()));
    }
    (findings, source.tables)
}

/// What a table's log has of images, against what the transforms make use of.
fn images(settings: &Arc<Settings>, tables: &[database::Table]) -> Vec<Finding> {
    let transforms = u32::try_from(settings.transforms.len()).unwrap_or(u32::MAX);
    // The sink's own rendering shows what images there are, and lacks none.
    if transforms == 0 {
        return Vec::new();
    }
    let Ok(engine) = Engine::caching(transforms.saturating_mul(2)) else {
        return Vec::new();
    };
    let tried = tables.iter().filter_map(|table| {
        // A plugin that takes no made-up change has been validated, and says nothing of images.
        let uses = engine
            .with_clock(|| images::used(&engine, settings, &table.schema))
            .ok()?;
        Some((table, uses))
    });
    tried
        .flat_map(|(table, uses)| compared(table, uses))
        .collect()
}

fn compared(table: &database::Table, uses: images::Uses) -> Vec<Finding> {
    let about = format!("{}.{}", table.schema.keyspace, table.schema.name);
    let both = [
        ("preimage", table.preimages, uses.preimages),
        ("postimage", table.postimages, uses.postimages),
    ];
    let finding = |(image, has, used): (&str, bool, bool)| {
        let alter = |to: bool| {
            format!("ALTER TABLE {about} WITH cdc = {{'enabled': true, '{image}': {to}}}")
        };
        match (has, used) {
            (false, true) => Some(Finding::warning(
                "images",
                &about,
                match uses.renders {
                    true => format!(
                        "what is written of a change would have its {image} too, and its log has none"
                    ),
                    false => format!(
                        "the transforms make something else of a change with a {image}, and its log has none"
                    ),
                },
                format!("{}, with the other options that it has", alter(true)),
            )),
            (true, false) if !uses.renders => Some(Finding::warning(
                "images",
                &about,
                format!(
                    "its log has a {image} of each change, and the transforms make use of none: ScyllaDB reads before each write for nothing"
                ),
                format!(
                    "{}, with the other options that it has, unless others read its log",
                    alter(false)
                ),
            )),
            _ => None,
        }
    };
    both.into_iter().filter_map(finding).collect()
}

/// How much of the changes' time to live is left behind the last checkpoint.
fn headroom(
    ttl: Duration,
    complete_until_us: i64,
    settings: &Settings,
    now: SystemTime,
) -> Option<Finding> {
    let until = UNIX_EPOCH + Duration::from_micros(u64::try_from(complete_until_us).ok()?);
    let lag = now.duration_since(until).ok()?;
    let left = 1.0 - lag.as_secs_f64() / ttl.as_secs_f64();
    let whole = |span: Duration| humantime::format_duration(Duration::from_secs(span.as_secs()));
    let found = format!(
        "it has delivered up to {} ago, and changes are gone after {}",
        whole(lag),
        whole(ttl)
    );
    let about = format!("pipeline {}", settings.pipeline.name);
    if left <= 0.0 {
        Some(Finding::error(
            "headroom",
            about,
            found,
            "changes in between are lost to it: raise the ttl of cdc, and fill in what is missing from the tables",
        ))
    } else if left < settings.health.headroom_degraded {
        Some(Finding::warning(
            "headroom",
            about,
            found,
            "start it, or see what holds it up (penstock health); raise the ttl of cdc meanwhile",
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Checks, parse};

    fn settings() -> Arc<Settings> {
        let text = crate::cli::init::template();
        let loaded = parse(
            std::path::Path::new("pipeline.toml"),
            &text,
            Checks::default(),
        );
        loaded
            .unwrap_or_else(|e| panic!("{}", e.render(false)))
            .settings
    }

    #[test]
    fn headroom_is_what_the_last_checkpoint_leaves_of_the_ttl() {
        let settings = settings();
        let day = Duration::from_secs(86_400);
        let of = |lag_hours: u64| {
            let now = UNIX_EPOCH + 2 * day;
            let until = i64::try_from((48 - lag_hours) * 3_600_000_000).expect("it fits");
            headroom(day, until, &settings, now).map(|f| (f.severity, f.found))
        };
        assert_eq!(of(11), None, "more than half is left");
        let told = |hours: &str| {
            format!("it has delivered up to {hours} ago, and changes are gone after 1day")
        };
        assert_eq!(of(13), Some((Severity::Warning, told("13h"))));
        assert_eq!(of(25), Some((Severity::Error, told("1day 1h"))));
    }

    #[test]
    fn images_that_are_wanted_and_missing_or_there_for_nothing_are_told() {
        let table = |preimages, postimages| database::Table {
            schema: Arc::new(crate::change::TableSchema {
                id: 1,
                keyspace: "ks".to_owned(),
                name: "t".to_owned(),
                columns: Vec::new(),
            }),
            preimages,
            postimages,
        };
        let uses = |preimages, postimages, renders| images::Uses {
            preimages,
            postimages,
            renders,
        };
        let told = |table: &database::Table, uses| -> Vec<String> {
            compared(table, uses).into_iter().map(|f| f.help).collect()
        };
        assert!(told(&table(false, false), uses(false, false, false)).is_empty());
        assert!(told(&table(true, true), uses(true, true, false)).is_empty());
        assert!(
            told(&table(true, true), uses(false, false, true)).is_empty(),
            "they are rendered"
        );
        let wanted = told(&table(false, false), uses(true, false, true));
        assert_eq!(wanted.len(), 1);
        assert!(wanted[0].contains("'preimage': true"), "{wanted:?}");
        let idle = told(&table(true, true), uses(true, false, false));
        assert_eq!(idle.len(), 1);
        assert!(idle[0].contains("'postimage': false"), "{idle:?}");
    }
}
