//! `penstock completions` and `penstock man`: what a shell and `man` know of the command line, made from it.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;
use serde_json::json;

use super::output::Output;
use super::{command, exit};

/// `penstock completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Whose they are
    shell: Shell,
    /// As the shell reads it, or as a text in JSON.
    #[command(flatten)]
    output: Output,
}

/// `penstock man`
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write one page a command into this folder, instead of the first page to standard output
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// As `man` reads it, or as a text in JSON.
    #[command(flatten)]
    output: Output,
}

/// Prints a shell's completions.
pub fn completions(args: &CompletionsArgs) -> u8 {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "penstock", &mut text);
    if args.output.is_json() {
        let script = String::from_utf8_lossy(&text);
        say!(
            "{}",
            json!({ "shell": args.shell.to_string(), "script": script })
        );
        return exit::OK;
    }
    print(&text)
}

/// Prints the man page, or writes all of them.
pub fn man(args: &ManArgs) -> u8 {
    let written = match &args.out {
        Some(folder) => std::fs::create_dir_all(folder)
            .and_then(|()| clap_mangen::generate_to(command(), folder))
            .map_err(|error| format!("{}: {error}", folder.display())),
        None => {
            let mut page = Vec::new();
            let made = clap_mangen::Man::new(command()).render(&mut page);
            return match made {
                Ok(()) if args.output.is_json() => {
                    say!("{}", json!({ "page": String::from_utf8_lossy(&page) }));
                    exit::OK
                }
                Ok(()) => print(&page),
                Err(error) => failed(&error.to_string()),
            };
        }
    };
    match written {
        Ok(()) => {
            if args.output.is_json() {
                say!("{}", json!({ "wrote": args.out }));
            }
            exit::OK
        }
        Err(error) => failed(&error),
    }
}

/// To standard output.
pub(super) fn print(text: &[u8]) -> u8 {
    match std::io::stdout().write_all(text) {
        Ok(()) => exit::OK,
        // Who reads only the first lines is served.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => exit::OK,
        Err(error) => failed(&error.to_string()),
    }
}

fn failed(error: &str) -> u8 {
    complain!("error: {error}");
    exit::FAILURE
}
