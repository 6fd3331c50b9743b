//! How a command prints its answer.

use clap::{Args, ValueEnum};

/// For whom an answer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Output {
    /// As text or as JSON
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// The same as --output json
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

impl Output {
    /// Whether it is for a program.
    pub fn is_json(self) -> bool {
        self.json || self.output == Format::Json
    }
}
