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
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return exit::FAILURE;
        }
    };
    let mut findings: Vec<_> = machine::open_files(&settings).into_iter().collect();
    findings.extend(machine::memory(&settings));
    findings.extend(runtime.block_on(examine(&settings)));
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

async fn examine(settings: &Arc<Settings>) -> Vec<Finding> {
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
        findings.extend(headroom(ttl, until, settings));
    }
    findings
}

/// How much of the changes' time to live is left behind the last checkpoint.
fn headroom(ttl: Duration, complete_until_us: i64, settings: &Settings) -> Option<Finding> {
    let until = UNIX_EPOCH + Duration::from_micros(u64::try_from(complete_until_us).ok()?);
    let lag = SystemTime::now().duration_since(until).ok()?;
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
