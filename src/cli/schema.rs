//! `penstock schema`: the JSON Schema of pipeline.toml.

use std::io::Write;

use clap::Args;

use super::exit;

/// `penstock schema`
#[derive(Debug, Args)]
pub struct SchemaArgs {}

/// Prints it.
pub fn run(_: SchemaArgs) -> u8 {
    match std::io::stdout().write_all(crate::config::schema::pretty().as_bytes()) {
        Ok(()) => exit::OK,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => exit::OK,
        Err(error) => {
            eprintln!("error: {error}");
            exit::FAILURE
        }
    }
}
