//! `penstock config`: the settings in force, and where each came from.

use std::io::Write;

use clap::Args;

use super::output::Output;
use super::{ConfigArgs, exit, validate};
use crate::config::{Effective, keys};

/// `penstock config`
#[derive(Debug, Args)]
pub struct ConfigCommandArgs {
    /// As text, or as an array of `{ key, value, origin, class }`.
    #[command(flatten)]
    pub output: Output,
}

/// Prints them; secrets as `***`.
pub fn run(config: &ConfigArgs, args: ConfigCommandArgs) -> u8 {
    let loaded = match validate::check(config, args.output.is_json()) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let text = if args.output.is_json() {
        match serde_json::to_string_pretty(&loaded.effective) {
            Ok(text) => text + "\n",
            Err(error) => {
                complain!("error: {error}");
                return exit::FAILURE;
            }
        }
    } else {
        table(&loaded.effective)
    };
    // A pager that was closed early is no failure of ours.
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => exit::OK,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => exit::OK,
        Err(error) => {
            complain!("error: {error}");
            exit::FAILURE
        }
    }
}

/// `key = value  # origin`, in columns.
pub fn table(effective: &[Effective]) -> String {
    /// A longer setting pushes only its own origin aside.
    const WIDEST: usize = 72;
    let lines: Vec<(String, &str)> = effective
        .iter()
        // The order of the transforms shows by itself.
        .filter(|e| e.key != keys::TRANSFORMS)
        .map(|e| (format!("{} = {}", e.key, e.value), e.origin.as_str()))
        .collect();
    let width = lines
        .iter()
        .map(|(line, _)| line.chars().count())
        .filter(|n| *n <= WIDEST)
        .max()
        .unwrap_or(0);
    lines
        .iter()
        .map(|(line, origin)| format!("{line:width$}  # {origin}\n"))
        .collect()
}
