//! The command line: one file a subcommand, and the exit codes.

/// Like `println!`, but a reader that has gone (`penstock status | head`) is no reason to panic: there is nobody
/// left to tell anything.
macro_rules! say {
    ($($arg:tt)*) => { $crate::cli::print_line(format_args!($($arg)*)) };
}

/// As `eprintln!`, which panics where standard error takes nothing (a full disk): the exit code is to be the command's own.
macro_rules! complain {
    ($($arg:tt)*) => { $crate::cli::print_error(format_args!($($arg)*)) };
}

pub mod admin;
mod bars;
pub mod checkpoint;
pub mod config;
pub mod demo;
pub mod doctor;
mod flow;
pub mod init;
pub mod init_schema;
mod machine;
pub mod manual;
pub mod output;
pub mod plugin;
mod reloads;
pub mod run;
pub mod schema;
mod shards;
pub mod tap;
pub mod terminal;
pub mod test;
pub mod validate;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::Inputs;

/// The exit codes that scripts may rely on (2, a bad command line, is clap's own).
pub mod exit {
    /// A clean drain, or a command that did what it was asked.
    pub const OK: u8 = 0;
    /// It failed, or a stage did.
    pub const FAILURE: u8 = 1;
    /// Another process runs the pipeline, which is to be run by one (`EX_UNAVAILABLE`): starting this one again would be
    /// to fight for it.
    pub const FENCED: u8 = 69;
    /// The configuration was refused (`EX_USAGE` of sysexits.h).
    pub const BAD_CONFIG: u8 = 64;
    /// Stopped before everything was drained (`EX_TEMPFAIL`): a restart makes good.
    pub const FORCED: u8 = 75;
}

fn print_line(line: std::fmt::Arguments<'_>) {
    use std::io::Write;
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        if error.kind() != std::io::ErrorKind::BrokenPipe {
            complain!("error: {error}");
        }
        std::process::exit(exit::FAILURE.into());
    }
}

fn print_error(line: std::fmt::Arguments<'_>) {
    use std::io::Write;
    // Nobody is left who could be told.
    writeln!(std::io::stderr(), "{line}").ok();
}

/// Carries changes from ScyllaDB to Redpanda through WASM transforms, without loss.
#[derive(Debug, Parser)]
#[command(name = "penstock", version, about)]
struct Cli {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(subcommand)]
    command: Command,
}

/// Where the configuration comes from.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// A configuration file, or a folder of them (its *.toml in name order); may be repeated, later wins
    #[arg(
        long,
        short,
        global = true,
        env = "PENSTOCK_CONFIG",
        value_name = "PATH",
        default_value = "pipeline.toml"
    )]
    pub config: Vec<PathBuf>,
    /// Overrides one setting, e.g. --set sink.breaker.failure_threshold=10
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl ConfigArgs {
    /// What the configuration is made from, with this process's environment.
    pub fn inputs(&self) -> Inputs {
        Inputs::from_process(self.config.clone(), self.set.clone())
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the pipeline until it is told to stop
    Run(run::RunArgs),
    /// Run the pipeline, feed it orders and show what arrives
    Demo(demo::DemoArgs),
    /// Check the configuration and print everything that is wrong with it
    Validate(validate::ValidateArgs),
    /// Run the tests that pipeline.toml has over its chain of transforms
    Test(test::TestArgs),
    /// Look for what will go wrong, on both sides and here, and say what to do; silent where nothing will
    Doctor(doctor::DoctorArgs),
    /// Print the settings in force and where each came from
    Config(config::ConfigCommandArgs),
    /// Print the JSON Schema of pipeline.toml
    Schema(schema::SchemaArgs),
    /// Write a commented pipeline.toml to start from
    Init(init::InitArgs),
    /// Show, set or copy where the pipeline is; but for `show` it must not run
    #[command(subcommand)]
    Checkpoint(checkpoint::Command),
    /// Write, build, test and look at transforms
    #[command(subcommand)]
    Plugin(plugin::PluginCommand),
    /// Create the order service's keyspace and tables
    InitSchema(init_schema::InitSchemaArgs),
    #[command(flatten)]
    Admin(admin::AdminCommand),
    /// Print a shell's completions
    Completions(manual::CompletionsArgs),
    /// Print the man page, or write one for each command
    Man(manual::ManArgs),
}

/// The command line as such: what the completions, the man pages and the tests of the documentation are made from.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let code = match cli.command {
        Command::Run(args) => run::run(&cli.config, args),
        Command::Demo(args) => demo::run(&cli.config, args),
        Command::Validate(args) => validate::run(&cli.config, args, run::connect),
        Command::Test(args) => test::run(&cli.config, &args),
        Command::Doctor(args) => doctor::run(&cli.config, args),
        Command::Config(args) => config::run(&cli.config, args),
        Command::Schema(args) => schema::run(&cli.config, args),
        Command::Init(args) => init::run(args),
        Command::Checkpoint(command) => checkpoint::run(&cli.config, command),
        Command::Plugin(command) => plugin::run(command),
        Command::InitSchema(args) => init_schema::run(&cli.config, args),
        Command::Admin(command) => admin::run(&cli.config, command),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    };
    ExitCode::from(code)
}
