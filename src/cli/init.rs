//! `penstock init`: a commented configuration to start from.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use clap::Args;

use super::exit;
use super::output::Output;

/// The shipped configuration.
const SHIPPED: &str = include_str!("../../pipeline.toml");
/// The transform's plugin where there is no repository.
const PLUGIN: &str = "plugin = \"stock:outbox-router\"          # it is in the program; or a .wasm, relative to this file";

/// `penstock init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The file to write; one that is there is kept
    #[arg(default_value = "pipeline.toml")]
    pub path: PathBuf,
    /// Write over a file that is there
    #[arg(long)]
    pub force: bool,
    /// How it is told.
    #[command(flatten)]
    pub output: Output,
}

/// Writes it.
pub fn run(args: InitArgs) -> u8 {
    let mut options = std::fs::File::options();
    options.write(true);
    if args.force {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    let path = args.path.display();
    let written = options
        .open(&args.path)
        .and_then(|mut file| file.write_all(template().as_bytes()));
    match written {
        Ok(()) if args.output.is_json() => {
            say!("{}", serde_json::json!({ "wrote": args.path }));
            exit::OK
        }
        Ok(()) => {
            say!(
                "wrote {path}: edit it, check it with `penstock validate`, start with `penstock run`"
            );
            exit::OK
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            complain!("error: {path} is there already; --force writes over it");
            exit::FAILURE
        }
        Err(error) => {
            complain!("error: cannot write {path}: {error}");
            exit::FAILURE
        }
    }
}

/// The shipped file without what it finds only in its repository, the schema and the plugin's file; the transform, with the
/// plugin that is in the program, stays as a comment.
pub fn template() -> String {
    let mut out = String::new();
    let mut in_transform = false;
    for line in SHIPPED.lines().filter(|l| !l.starts_with("#:schema")) {
        in_transform = !line.is_empty() && (in_transform || line == "[[transform]]");
        if in_transform {
            out.push_str("# ");
        }
        out.push_str(match line.starts_with("plugin = ") {
            true => PLUGIN,
            false => line,
        });
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Checks, parse};

    #[test]
    fn what_it_writes_validates_and_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let args = |force| InitArgs {
            path: folder.path().join("pipeline.toml"),
            force,
            output: Output::default(),
        };
        assert_eq!(run(args(false)), exit::OK);
        let path = folder.path().join("pipeline.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let loaded = parse(&path, &text, Checks::default())
            .unwrap_or_else(|e| panic!("{}", e.render(false)));
        assert!(loaded.settings.transforms.is_empty());
        assert!(text.contains("# [[transform]]"));
        // What is a comment is good, too.
        let (before, rest) = text.split_once("# [[transform]]").unwrap();
        let (transform, after) = rest.split_once("\n\n").unwrap();
        let transform = transform.replace("\n# ", "\n");
        let text = format!("{before}[[transform]]{transform}\n\n{after}");
        let loaded = parse(&path, &text, Checks::default())
            .unwrap_or_else(|e| panic!("{}", e.render(false)));
        assert_eq!(loaded.settings.transforms.len(), 1);
        let text = std::fs::read_to_string(&path).unwrap();

        std::fs::write(&path, "mine").unwrap();
        assert_eq!(run(args(false)), exit::FAILURE);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        assert_eq!(run(args(true)), exit::OK);
        assert_eq!(std::fs::read_to_string(Path::new(&path)).unwrap(), text);
    }
}
