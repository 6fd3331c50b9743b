//! `penstock schema`: the JSON Schema of pipeline.toml, or every key as a page to read.

use std::io::Write;

use clap::Args;

use super::exit;

/// `penstock schema`
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// Print every key as a Markdown page instead
    #[arg(long)]
    markdown: bool,
}

/// Prints it.
pub fn run(args: SchemaArgs) -> u8 {
    let text = if args.markdown {
        crate::config::reference::markdown()
    } else {
        crate::config::schema::pretty()
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => exit::OK,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => exit::OK,
        Err(error) => {
            eprintln!("error: {error}");
            exit::FAILURE
        }
    }
}
