//! `penstock schema`: the JSON Schema of pipeline.toml, or every key as a page to read.

use clap::Args;

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
    super::manual::print(text.as_bytes())
}
