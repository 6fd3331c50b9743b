//! `penstock test`: the `[[tests]]` of pipeline.toml.

use clap::Args;

use super::output::Output;
use super::{ConfigArgs, exit, validate};
use crate::transform::Engine;
use crate::workbench::chain;

/// `penstock test`
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only tests whose name has this in it
    pub filter: Option<String>,
    /// How it is told.
    #[command(flatten)]
    pub output: Output,
}

/// Runs them over the chain of transforms that the configuration names, each plugin in the host that runs it for real.
pub fn run(config: &ConfigArgs, args: &TestArgs) -> u8 {
    let loaded = match validate::check(config, args.output.is_json()) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let done = tests(config, args, &loaded.settings);
    done.unwrap_or_else(|error| {
        complain!("error: {error}");
        exit::FAILURE
    })
}

fn tests(
    config: &ConfigArgs,
    args: &TestArgs,
    settings: &std::sync::Arc<crate::config::Settings>,
) -> Result<u8, String> {
    let transforms = u32::try_from(settings.transforms.len()).unwrap_or(u32::MAX);
    let engine = Engine::caching(transforms.saturating_mul(2).max(1)).map_err(|e| e.to_string())?;
    let all = chain::tests(&config.config)?;
    let (mut good, mut bad) = (0, 0);
    let json = args.output.is_json();
    let mut told = Vec::new();
    if all.is_empty() {
        // What runs nothing has shown nothing.
        let files: Vec<_> = config
            .config
            .iter()
            .map(|f| f.display().to_string())
            .collect();
        return Err(format!(
            "there are no [[tests]] in {}; one has a name, `tables`, `changes` and what is expected of which transform \
             (docs/plugins.md, \"A whole chain\"), and may stand in a file of its own: -c pipeline.toml -c tests.toml",
            files.join(", ")
        ));
    }
    let mut left_out = 0;
    for test in &all {
        if args
            .filter
            .as_ref()
            .is_some_and(|part| !test.name().contains(part.as_str()))
        {
            left_out += 1;
            continue;
        }
        let verdict = engine.with_clock(|| chain::run(&engine, settings, test))?;
        if json {
            told.push(serde_json::json!({ "name": verdict.name, "wrong": verdict.wrong }));
        }
        match verdict.wrong {
            None if json => good += 1,
            Some(_) if json => bad += 1,
            None => {
                good += 1;
                say!("ok      {}", verdict.name);
            }
            Some(wrong) => {
                bad += 1;
                say!("FAILED  {}\n{wrong}", verdict.name);
            }
        }
    }
    if good + bad == 0
        && let Some(part) = &args.filter
    {
        let names: Vec<_> = all.iter().map(chain::Test::name).collect();
        return Err(format!(
            "no test has {part:?} in its name; there are: {}",
            names.join(", ")
        ));
    }
    if json {
        say!("{:#}", serde_json::Value::Array(told));
        return Ok(if bad == 0 { exit::OK } else { exit::FAILURE });
    }
    let left_out = super::plugin::left_out(left_out);
    if bad == 0 {
        say!("{good} passed{left_out}");
        Ok(exit::OK)
    } else {
        say!("{bad} failed, {good} passed{left_out} (- expected, + seen)");
        Ok(exit::FAILURE)
    }
}
