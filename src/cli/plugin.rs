//! `penstock plugin …`: the workbench of whoever writes transforms.

mod inspect;
mod stock;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::exit;
use super::output::{Always, Output};
use crate::change::Batch;
use crate::config;
use crate::transform::{Code, Engine, Plugin};
use crate::workbench::build::Form;
use crate::workbench::changes::{self, Tables, read_lines};
use crate::workbench::languages::Language;
use crate::workbench::trial::{self, Scope, TrialError};
use crate::workbench::{build, cases, project};

/// `penstock plugin`
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Write a new transform: a project that builds by itself
    New(NewArgs),
    /// Build a project into the .wasm that pipeline.toml names
    Build(BuildArgs),
    /// Run the golden cases of a plugin in the host that runs it for real
    Test(TestArgs),
    /// Print what a plugin imports, exports, takes for settings and wants of a table
    Inspect(InspectArgs),
    /// List the plugins that Penstock comes with: `stock:<name>` stands wherever a plugin's file does
    Stock(StockArgs),
    /// Run changes from a file through a plugin and print what became of each
    Run(RunArgs),
    /// Measure what a change costs
    Bench(BenchArgs),
}

/// `penstock plugin new`
#[derive(Debug, Args)]
#[command(
    override_usage = "penstock plugin new [OPTIONS] <NAME>\n       penstock plugin new [OPTIONS] --sdk-only <FOLDER>"
)]
pub struct NewArgs {
    /// The name of the project, its crate and its file
    #[arg(required_unless_present = "sdk_only")]
    pub name: Option<String>,
    /// The language that it is written in
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    pub lang: Language,
    /// Only write the SDK of this penstock into the project of this folder, over the one that is there
    #[arg(long, value_name = "FOLDER", conflicts_with = "name")]
    pub sdk_only: Option<PathBuf>,
    /// How it is told.
    #[command(flatten)]
    pub output: Output,
}

/// `penstock plugin build`
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// The project's folder
    #[arg(default_value = ".")]
    pub folder: PathBuf,
    /// Where to put the plugin: by default into the folder, under the project's name
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Fetch nothing
    #[arg(long)]
    pub offline: bool,
    /// Go on, and build again when a source changes: in JavaScript and Python a form for development, which an edit makes anew in a
    /// second
    #[arg(long)]
    pub watch: bool,
    /// How it is told.
    #[command(flatten)]
    pub output: Output,
}

/// What most commands are about.
#[derive(Debug, Args)]
pub struct Subject {
    /// A project's folder, which is built first, a .wasm, or `stock:<name>`
    #[arg(default_value = ".")]
    pub plugin: PathBuf,
    /// Fetch nothing when building
    #[arg(long)]
    pub offline: bool,
}

/// `penstock plugin test`
#[derive(Debug, Args)]
pub struct TestArgs {
    #[command(flatten)]
    subject: Subject,
    /// Only cases whose name has this in it
    pub filter: Option<String>,
    /// A file of cases or a folder of them; may be repeated [default: cases, beside the plugin]
    #[arg(long, value_name = "PATH")]
    pub cases: Vec<PathBuf>,
    /// Write what was seen into the files, as what is expected
    #[arg(long)]
    pub bless: bool,
    /// How it is told.
    #[command(flatten)]
    pub output: Output,
}

/// `penstock plugin inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    subject: Subject,
    /// A table to ask about, e.g. "shop.people: id int primary, name text"; may be repeated
    #[arg(long, value_name = "TABLE")]
    pub table: Vec<String>,
    /// A setting; without any, those that must be set may be missing
    #[arg(long = "setting", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// How it is printed.
    #[command(flatten)]
    pub output: Output,
}

/// `penstock plugin stock`
#[derive(Debug, Args)]
pub struct StockArgs {
    /// Also write their files into this folder, to be kept while the program is renewed
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// How it is printed.
    #[command(flatten)]
    pub output: Output,
}

/// `penstock plugin run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Changes, one a line in JSON, or a file of cases; "-" reads standard input
    pub changes: PathBuf,
    #[command(flatten)]
    subject: Subject,
    /// A setting; may be repeated
    #[arg(long = "setting", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// It is JSON in any case.
    #[command(flatten)]
    pub output: Always,
}

/// `penstock plugin bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    subject: Subject,
    /// Changes, one a line in JSON, or a file of cases [default: cases/changes.jsonl, beside the plugin]
    #[arg(long, value_name = "FILE")]
    pub changes: Option<PathBuf>,
    /// A setting; may be repeated
    #[arg(long = "setting", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Changes a call
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 512])]
    pub batch: Vec<usize>,
    /// How long to measure each
    #[arg(long = "for", value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    pub time: Duration,
    /// How it is printed.
    #[command(flatten)]
    pub output: Output,
}

/// Does it; the exit code says how it went.
pub fn run(command: PluginCommand) -> u8 {
    let done = match command {
        PluginCommand::New(args) => new(&args),
        PluginCommand::Build(args) => build(&args),
        PluginCommand::Test(args) => test(&args),
        PluginCommand::Inspect(args) => inspect::inspect(&args),
        PluginCommand::Stock(args) => stock::stock(&args),
        PluginCommand::Run(args) => run_changes(&args),
        PluginCommand::Bench(args) => bench(&args),
    };
    done.unwrap_or_else(|error| {
        complain!("error: {error}");
        exit::FAILURE
    })
}

/// How often `build --watch` looks at the sources.
const LOOK: Duration = Duration::from_millis(200);

type Done = Result<u8, String>;

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn new(args: &NewArgs) -> Done {
    if let Some(folder) = &args.sdk_only {
        let language = build::language_of(folder).map_err(said)?;
        project::vendor(folder, language).map_err(said)?;
        let sdk = folder.join("penstock");
        if args.output.is_json() {
            say!(
                "{}",
                json!({ "sdk": env!("CARGO_PKG_VERSION"), "wrote": [sdk] })
            );
            return Ok(exit::OK);
        }
        say!(
            "wrote the SDK of penstock {} to {}",
            env!("CARGO_PKG_VERSION"),
            sdk.display()
        );
        return Ok(exit::OK);
    }
    let name = args.name.as_deref().unwrap_or_default();
    let folder = Path::new(name);
    let last = folder
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    project::check_name(&last, args.lang)?;
    if config::stock::is_one(&last) {
        complain!(
            "note: Penstock comes with a plugin `{last}` of its own, `stock:{last}`; under another name yours is not taken for it"
        );
    }
    let created = project::create(folder, &last, args.lang).map_err(said)?;
    if args.output.is_json() {
        let wrote: Vec<_> = created
            .into_iter()
            .chain([folder.join("penstock")])
            .collect();
        let plugin = project::wasm_name(&last);
        say!(
            "{}",
            json!({ "folder": folder, "plugin": plugin, "wrote": wrote })
        );
        return Ok(exit::OK);
    }
    for written in created {
        say!("wrote {}", written.display());
    }
    say!("wrote {} (the SDK)", folder.join("penstock").display());
    say!(
        "\nnext:\n  cd {name}\n{}  penstock plugin build      # {}\n  penstock plugin test       # cases/{last}.toml",
        args.lang
            .before_building()
            .map_or_else(String::new, |first| format!("  {first}\n")),
        project::wasm_name(&last)
    );
    Ok(exit::OK)
}

fn build(args: &BuildArgs) -> Done {
    if !args.watch {
        return build_once(args, Form::Whole);
    }
    let language = build::language_of(&args.folder).map_err(said)?;
    let seen = || {
        let look = |path: PathBuf| {
            let file = std::fs::metadata(&path).ok();
            (path, file.map(|file| (file.len(), file.modified().ok())))
        };
        let sources = build::sources(&args.folder, language).into_iter();
        sources.map(look).collect::<Vec<_>>()
    };
    loop {
        // Looked at before: what is saved meanwhile is built next.
        let built = seen();
        if let Err(error) = build_once(args, Form::Development) {
            complain!("error: {error}");
        }
        while seen() == built {
            std::thread::sleep(LOOK);
        }
    }
}

/// What does not load here does not load there.
fn compiles(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let engine = Engine::caching(1).map_err(said)?;
    let plugin = Plugin::from_bytes(&engine, path.to_owned(), bytes).map_err(said)?;
    if plugin.is_for_development() {
        // Its source is read only now.
        let described = engine.with_clock(|| plugin.describe(trial::LIMITS));
        described.map_err(said)?;
    }
    Ok(())
}

fn build_once(args: &BuildArgs, form: Form) -> Done {
    let started = Instant::now();
    let (out, offline) = (args.out.as_deref(), args.offline);
    let built = build::build(&args.folder, out, offline, form, compiles).map_err(said)?;
    let size = std::fs::metadata(&built.path).map_err(said)?.len();
    if args.output.is_json() {
        let seconds = started.elapsed().as_secs_f64();
        let told = json!({
            "plugin": built.path, "changed": built.changed, "bytes": size, "seconds": seconds,
        });
        say!("{told}");
        return Ok(exit::OK);
    }
    say!(
        "{} {} ({}, {:.1} s)",
        if built.changed { "built" } else { "unchanged:" },
        built.path.display(),
        ByteSize(size),
        started.elapsed().as_secs_f64()
    );
    Ok(exit::OK)
}

impl Subject {
    /// The plugin's file, built if it is a project; and the folder that its cases are in.
    fn file(&self) -> Result<(PathBuf, PathBuf), String> {
        let (path, beside) = if self.plugin.is_dir() {
            let built = build::build(&self.plugin, None, self.offline, Form::Whole, compiles);
            let built = built.map_err(said)?;
            (built.path, self.plugin.as_path())
        } else {
            let folder = self.plugin.parent().unwrap_or(Path::new(""));
            (self.plugin.clone(), folder)
        };
        Ok((path, beside.join("cases")))
    }

    fn open<T>(
        &self,
        work: impl FnOnce(&Arc<Plugin>, &Path) -> Result<T, String>,
    ) -> Result<T, String> {
        let (file, cases) = self.file()?;
        // Two, so that one can be made before the last is gone.
        let engine = Engine::caching(2).map_err(said)?;
        engine.with_clock(|| {
            let plugin = trial::load(&engine, &file).map_err(said)?;
            work(&plugin, &cases)
        })
    }
}

fn settings(given: &[String]) -> Result<Map<String, Value>, String> {
    given
        .iter()
        .map(|setting| match setting.split_once('=') {
            Some((key, value)) => Ok((key.trim().to_owned(), value.into())),
            None => Err(format!("--setting {setting:?}: expected KEY=VALUE")),
        })
        .collect()
}

fn test(args: &TestArgs) -> Done {
    args.subject.open(|plugin, beside| {
        let mut files = Vec::new();
        for path in &args.cases {
            files.extend(cases::files(path)?);
        }
        if args.cases.is_empty() {
            files = cases::files(beside)?;
        }
        let (mut good, mut bad) = (0, 0);
        let json = args.output.is_json();
        let mut told = Vec::new();
        let mut others = Vec::new();
        for file in &files {
            let ran = cases::run(plugin, file, args.filter.as_deref(), args.bless)?;
            others.extend(ran.left_out);
            for verdict in ran.verdicts {
                if json {
                    told.push(
                        json!({ "name": verdict.name, "file": file, "wrong": verdict.wrong }),
                    );
                }
                match verdict.wrong {
                    None if json => good += 1,
                    Some(_) if json => bad += 1,
                    None => {
                        good += 1;
                        say!("ok      {}", verdict.name);
                    }
                    Some(_) if args.bless => {
                        good += 1;
                        say!("blessed {}", verdict.name);
                    }
                    Some(wrong) => {
                        bad += 1;
                        say!("FAILED  {} ({})\n{wrong}", verdict.name, file.display());
                    }
                }
            }
        }
        if good + bad == 0
            && let Some(part) = &args.filter
        {
            // What runs nothing has shown nothing: a name that is misspelt is no case that passes.
            return Err(format!(
                "no case has {part:?} in its name; there are: {}",
                others.join(", ")
            ));
        }
        if json {
            say!("{:#}", Value::Array(told));
            return Ok(if bad == 0 || args.bless {
                exit::OK
            } else {
                exit::FAILURE
            });
        }
        let left_out = left_out(others.len());
        if bad == 0 {
            say!("{good} passed{left_out}");
            Ok(exit::OK)
        } else {
            say!("{bad} failed, {good} passed{left_out} (- expected, + seen; --bless takes what was seen)");
            Ok(exit::FAILURE)
        }
    })
}

/// How many were not asked for, to stand behind how many were run.
pub(super) fn left_out(others: usize) -> String {
    match others {
        0 => String::new(),
        others => format!(", {others} left out"),
    }
}

/// Tables and changes of a file; of standard input for "-".
fn material(path: &Path) -> Result<(Tables, Vec<Value>), String> {
    if path != Path::new("-") {
        return cases::material(path);
    }
    let text = std::io::read_to_string(std::io::stdin()).map_err(said)?;
    let mut tables = Tables::default();
    let changes = read_lines(&text, &mut tables)?;
    Ok((tables, changes))
}

fn run_changes(args: &RunArgs) -> Done {
    let (tables, given) = material(&args.changes)?;
    args.subject.open(|plugin, _| {
        let own = settings(&args.settings)?;
        let mut chain = trial::chain(plugin, &own, &tables, Scope::default()).map_err(said)?;
        let outcomes = trial::run(&mut chain, &tables, &given).map_err(said)?;
        for outcome in &outcomes {
            say!("{}", outcome.to_json());
        }
        let failed = outcomes
            .iter()
            .any(|o| matches!(o, trial::Outcome::Error(..)));
        Ok(if failed { exit::FAILURE } else { exit::OK })
    })
}

fn bench(args: &BenchArgs) -> Done {
    args.subject.open(|plugin, beside| {
        let file = args.changes.clone().unwrap_or_else(|| beside.join("changes.jsonl"));
        if args.changes.is_none() && !file.exists() {
            return Err(format!(
                "there are no changes to measure with: {} is not there; --changes names a file of them, one a line, which \
                 `penstock record` writes",
                file.display()
            ));
        }
        let (tables, given) = cases::material(&file)?;
        if given.is_empty() {
            return Err(format!("{} holds no changes", file.display()));
        }
        let own = settings(&args.settings)?;
        let start = Instant::now();
        let mut chain = trial::chain(plugin, &own, &tables, Scope::default()).map_err(said)?;
        let start = start.elapsed();
        let first = chain.memory();
        let mut most = first;
        let bytes = plugin.size();
        let json = args.output.is_json();
        let mut told = Vec::new();
        if !json {
            say!(
                "{}: {}, {} different changes; an instance starts in {start:.1?} with {} of memory",
                plugin.path().display(), ByteSize(bytes), given.len(), ByteSize(first)
            );
        }
        for size in &args.batch {
            let size = (*size).clamp(1, 100_000);
            let changes: Vec<Value> = given.iter().cycle().take(size).cloned().collect();
            let sheet = changes::read(&tables, &changes).map_err(|e| said(TrialError::Changes(e)))?;
            let of = |batch: &Batch| Batch {
                shard: batch.shard,
                epoch: batch.epoch,
                rows: batch.rows.clone(),
                positions: batch.positions.clone(),
                tables: batch.tables.clone(),
                undecodable: Vec::new(),
                progress: Vec::new(),
                read_at: batch.read_at,
            };
            let bytes = sheet.batch.rows.as_bytes().len() / size;
            let (mut spent, mut calls, mut rejected) = (Duration::ZERO, Vec::new(), 0);
            while spent < args.time || calls.len() < 3 {
                let batch = of(&sheet.batch);
                let begin = Instant::now();
                let made = chain.process(batch).map_err(said)?;
                let took = begin.elapsed();
                rejected = made.rejected.len();
                most = most.max(chain.memory());
                spent += took;
                calls.push(took);
            }
            calls.sort_unstable();
            let median = calls[calls.len() / 2].as_nanos() as u64 / size as u64;
            let best = calls[0].as_nanos() as u64 / size as u64;
            if json {
                told.push(json!({
                    "batch": size, "median_ns": median, "best_ns": best, "bytes": bytes, "rejected": rejected,
                }));
                continue;
            }
            let note = if rejected > 0 { format!(" ({rejected} of {size} rejected)") } else { String::new() };
            say!(
                "batch {size:>6}: {median:>7} ns a change (best {best}), {:>9.0} changes/s, {bytes} bytes each{note}",
                1e9 / median.max(1) as f64
            );
        }
        if json {
            let start = start.as_secs_f64();
            let plugin = plugin.path();
            say!("{:#}", json!({
                "plugin": plugin, "bytes": bytes, "start_seconds": start, "memory_bytes": first, "most_memory_bytes": most,
                "batches": told,
            }));
        } else {
            say!("{} of memory at most", ByteSize(most));
        }
        Ok(exit::OK)
    })
}
