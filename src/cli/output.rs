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

/// The one format of [`Always`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Only {
    /// For programs.
    #[default]
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

/// Of a command whose answer is JSON already: it takes the same options, so that a program may always give them.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Always {
    /// As JSON, which it is in any case
    #[arg(
        long,
        short,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        hide_default_value = true
    )]
    pub output: Only,
    /// The same as --output json
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
}

impl Output {
    /// Whether it is for a program.
    pub fn is_json(self) -> bool {
        self.json || self.output == Format::Json
    }
}

#[cfg(test)]
mod tests {
    use clap::Command;

    /// The commands that do something, each with its words.
    fn leaves(words: &str, command: &Command, found: &mut Vec<(String, Command)>) {
        if !command.has_subcommands() {
            found.push((words.to_owned(), command.clone()));
        }
        for sub in command.get_subcommands().filter(|s| s.get_name() != "help") {
            leaves(&format!("{words} {}", sub.get_name()), sub, found);
        }
    }

    #[test]
    fn every_command_answers_programs_too() {
        let mut root = crate::cli::command();
        root.build();
        let mut all = Vec::new();
        leaves("penstock", &root, &mut all);
        assert!(all.len() > 25, "only {} commands", all.len());
        for (words, command) in all {
            let output = command.get_arguments().find(|a| a.get_id() == "output");
            let output = output.unwrap_or_else(|| panic!("{words} has no --output"));
            assert_eq!(output.get_short(), Some('o'), "{words}");
            let formats = output.get_possible_values();
            let takes = |format: &str| formats.iter().any(|f| f.get_name() == format);
            assert!(takes("json"), "{words}");
            let json = command
                .get_arguments()
                .any(|a| a.get_long() == Some("json"));
            assert!(json, "{words} has no --json");
        }
    }
}
