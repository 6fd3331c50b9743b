//! `penstock schema`: the JSON Schema of pipeline.toml, or every key as a page to read.

use clap::Args;
use serde_json::{Value, json};

use super::output::Always;
use super::{ConfigArgs, exit, validate};
use crate::config::schema;
use crate::transform::{Engine, Plugin};

/// `penstock schema`
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// Print every key as a Markdown page instead
    #[arg(long, conflicts_with_all = ["output", "json"])]
    markdown: bool,
    /// With the settings of the plugins that the configuration names, as they describe them
    #[arg(long, conflicts_with = "markdown")]
    plugins: bool,
    /// It is JSON in any case.
    #[command(flatten)]
    pub output: Always,
}

/// Prints it.
pub fn run(config: &ConfigArgs, args: SchemaArgs) -> u8 {
    if args.markdown {
        return super::manual::print(crate::config::reference::markdown().as_bytes());
    }
    let mut schema = schema::schema();
    if args.plugins
        && let Err(code) = describe(config, &mut schema)
    {
        return code;
    }
    super::manual::print(schema::pretty(schema).as_bytes())
}

/// Adds what each transform's plugin says of its settings.
fn describe(config: &ConfigArgs, schema: &mut Value) -> Result<(), u8> {
    let loaded = validate::check(config, false)?;
    let failed = |error: String| {
        complain!("error: {error}");
        exit::FAILURE
    };
    let engine = Engine::caching(1).map_err(|e| failed(e.to_string()))?;
    let mut described = Vec::new();
    for transform in &loaded.settings.transforms {
        let about = engine
            .with_clock(|| Plugin::load(&engine, &transform.plugin)?.describe(transform.limits));
        if let Some(about) = about.map_err(|e| failed(e.to_string()))? {
            described.push(json!({
                "if": { "properties": { "name": { "const": transform.name } } },
                "then": { "properties": { "settings": about.to_schema() } },
            }));
        }
    }
    schema["properties"]["transform"]["items"]["allOf"] = described.into();
    Ok(())
}
