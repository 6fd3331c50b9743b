//! The project's own commands, run as `cargo xtask <command>`: what a shell script would do, anywhere.

mod cargo;
mod kafka;
mod plugins;
mod proof;
mod run;
mod suite;

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::{Result, anyhow};

/// A command: what is typed, what it does, and how.
struct Task {
    name: &'static str,
    /// What may follow the name.
    usage: &'static str,
    about: &'static str,
    /// Plugins are built before it.
    plugins: bool,
    run: fn(&[String]) -> Result<()>,
}

/// One that needs no plugins unless [`Task::plugins`] says so.
const fn task(
    name: &'static str,
    usage: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result<()>,
) -> Task {
    Task {
        name,
        usage,
        about,
        plugins: false,
        run,
    }
}

impl Task {
    const fn with_plugins(mut self) -> Self {
        self.plugins = true;
        self
    }
}

#[rustfmt::skip]
const TASKS: &[Task] = &[
    task("demo", "[options]", "build everything, then run the pipeline on the embedded stand-ins and feed it orders", run::demo).with_plugins(),
    task("run", "[options]", "build everything, then `penstock run`", run::run).with_plugins(),
    task("test", "[options]", "build everything, then run every test (options go to `cargo test`)", run::test).with_plugins(),
    task("test --kafka", "[--short] [options]", "every suite that speaks to a broker, on a real Apache Kafka (needs Java and Maven)", kafka::test).with_plugins(),
    task("plugins", "", "build the plugins into plugins/*.wasm", |_| plugins::build()),
    task("new-plugin", "<name>", "start a transform of your own in plugins/<name>", plugins::start),
    task("clippy", "", "lint everything, each plugin for what it is built for", |_| plugins::clippy()),
    task("bench", "[name]", "the benchmarks, each a printed table", run::bench).with_plugins(),
    task("kafka", "start|stop|status", kafka::ABOUT, kafka::kafka),
    task("book", "", "docs/ as a book, in target/book; installs mdBook where it is not", run::book),
    task("reloads", "[n]", "n reloads under load: from save to in force, and the dip in throughput, as a table (200)", proof::reloads).with_plugins(),
    task("restarts", "[rounds]", "stop and kill a loaded pipeline many times and count what arrived (long form)", proof::restarts).with_plugins(),
    task("proof", "[name] [n]", "what the pipeline promises, shown at length; each prints what it measured:", proof::proof).with_plugins(),
];

/// What `cargo xtask help` prints.
pub(crate) fn help() -> String {
    let mut text = String::from("cargo xtask <command>\n\n");
    let width = 24;
    for task in TASKS {
        let typed = format!("{} {}", task.name, task.usage);
        let about = task.about.replace('\n', &format!("\n{:1$}", "", width + 3));
        writeln!(text, "  {:<width$} {about}", typed.trim_end()).expect("a text takes everything");
    }
    text + &proof::help()
}

/// The task that these arguments ask for, and the arguments that are its own. Longer names come first.
fn find(args: &[String]) -> Option<(&'static Task, &[String])> {
    let asked = |task: &&Task| {
        let words = task.name.split(' ');
        words.clone().count() <= args.len() && words.zip(args).all(|(word, arg)| word == arg)
    };
    let words = |task: &&Task| task.name.split(' ').count();
    let task = TASKS.iter().filter(asked).max_by_key(words)?;
    Some((task, &args[words(&task)..]))
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match (args.first().map(String::as_str), find(&args)) {
        (None, _) => {
            eprint!("{}", help());
            return ExitCode::from(2);
        }
        (Some("help" | "--help" | "-h"), _) => {
            print!("{}", help());
            Ok(())
        }
        (Some(other), None) => Err(anyhow!("no command `{other}`\n\n{}", help())),
        (_, Some((task, rest))) => {
            let ready = if task.plugins {
                plugins::build()
            } else {
                Ok(())
            };
            ready.and_then(|()| (task.run)(rest))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(typed: &str) -> Option<(&'static str, usize)> {
        let args: Vec<String> = typed.split(' ').map(str::to_owned).collect();
        find(&args).map(|(task, rest)| (task.name, rest.len()))
    }

    #[test]
    fn the_longest_name_that_was_typed_is_meant() {
        assert_eq!(found("test --kafka"), Some(("test --kafka", 0)));
        assert_eq!(found("test --kafka a b"), Some(("test --kafka", 2)));
        assert_eq!(found("test --lib"), Some(("test", 1)));
        assert_eq!(found("tests"), None);
    }

    #[test]
    fn every_task_is_in_the_help() {
        let help = help();
        for task in TASKS {
            assert!(help.contains(task.about.lines().next().expect("a line")));
        }
    }
}
