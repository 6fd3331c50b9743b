//! `penstock validate`: everything that is wrong with the configuration.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use parking_lot::Mutex;

use super::output::Output;
use super::{ConfigArgs, exit};
use crate::config::settings::{Nodes, Transform};
use crate::config::{self, Checks, Loaded, PluginFault, Settings};
use crate::sink::redpanda::{check_properties, reserved_property};
use crate::transform::{Engine, Plugin, PluginError, Prepared};

/// `penstock validate`
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// What is wrong as text, or as a JSON array, empty if nothing is.
    #[command(flatten)]
    pub output: Output,
    /// Also connect: the nodes, the tables with CDC enabled, the brokers
    #[arg(long)]
    pub connect: bool,
}

/// Checks, and with `--connect` has `connect` look at what the settings name.
pub fn run(
    config: &ConfigArgs,
    args: ValidateArgs,
    connect: impl FnOnce(Arc<Settings>) -> Result<(), Vec<String>>,
) -> u8 {
    let loaded = match check(config, args.output.is_json()) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    if args.connect {
        not_asked(&loaded.settings);
    }
    if args.connect
        && let Err(wrong) = connect(loaded.settings.clone())
    {
        if args.output.is_json() {
            let said =
                |message: &String| serde_json::json!({ "code": "connect", "message": message });
            println!(
                "{:#}",
                wrong.iter().map(said).collect::<serde_json::Value>()
            );
        } else {
            wrong.iter().for_each(|error| complain!("error: {error}"));
        }
        return exit::FAILURE;
    }
    good(&loaded, args.output.is_json());
    exit::OK
}

/// Says which sides are there only within a running pipeline, so that what they have was not looked at.
pub(super) fn not_asked(settings: &Settings) {
    let sides = [
        ("source.nodes", &settings.source.nodes),
        ("sink.brokers", &settings.sink.brokers),
    ];
    for (key, nodes) in sides {
        if *nodes == Nodes::Embedded {
            complain!(
                "note: `{key}` is \"embedded\", and was not asked: it is there only inside the process that runs; \
                 with the address that `penstock status` names it is: --set '{key}=[\"127.0.0.1:PORT\"]'"
            );
        }
    }
}

/// Loads the configuration with all checks and prints what is wrong; the exit code, if anything is.
///
/// Plugins are compiled, configured and warmed, as they will be on start.
pub fn check(config: &ConfigArgs, json: bool) -> Result<Loaded, u8> {
    let engine = Engine::caching(1).map_err(|error| {
        complain!("error: {error}");
        exit::FAILURE
    })?;
    // A plugin that never returns from `configure` meets its deadline by this clock.
    let loaded = engine.with_clock(|| {
        let compiled = Mutex::new(Vec::new());
        let checks = Checks {
            plugin: &|path, transform| check_plugin(&engine, path, transform, &mut compiled.lock()),
            properties: &|properties| check_properties(properties).map_err(|e| e.to_string()),
            reserved: &reserved_property,
            ..Checks::default()
        };
        config::load(&config.inputs(), checks)
    });
    loaded.map_err(|invalid| {
        if json {
            say!("{:#}", invalid.to_json());
        } else {
            complain!(
                "{}",
                invalid.render(std::io::stderr().is_terminal()).trim_end()
            );
        }
        exit::BAD_CONFIG
    })
}

/// Compiles a plugin unless that was done before, configures and warms an instance, and lets go of that.
///
/// # Errors
/// Why it cannot be used.
pub fn check_plugin(
    engine: &Engine,
    path: &Path,
    transform: &Transform,
    compiled: &mut Vec<Arc<Plugin>>,
) -> Result<(), PluginFault> {
    let rejected = |e: PluginError| PluginFault::Rejected(e.to_string());
    let plugin = Plugin::load_once(engine, path, compiled).map_err(rejected)?;
    if let Some(about) = plugin.describe(transform.limits).map_err(rejected)? {
        let faults = about.faults(&transform.settings);
        if !faults.is_empty() {
            return Err(PluginFault::Settings(faults));
        }
    }
    match Prepared::new(transform, plugin, &[]) {
        Ok(_) => Ok(()),
        Err(PluginError::Configure { message, .. }) => Err(PluginFault::Refused(message)),
        Err(error) => Err(rejected(error)),
    }
}

/// Says that the configuration is good, once all is checked.
fn good(loaded: &Loaded, json: bool) {
    if json {
        say!("[]");
        return;
    }
    let settings = &loaded.settings;
    say!(
        "the configuration is good: pipeline {}, {} table{}, {} transform{}, {} shard{}",
        settings.pipeline.name,
        settings.source.tables.len(),
        plural(settings.source.tables.len()),
        settings.transforms.len(),
        plural(settings.transforms.len()),
        settings.pipeline.shards,
        plural(settings.pipeline.shards.get() as usize),
    );
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}
