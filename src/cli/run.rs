//! `penstock run`: the pipeline until it is told to stop, and what the terminal shows of it.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::{ConfigArgs, exit};
use crate::config::settings::{Log, LogFormat, Nodes, Settings};
use crate::config::{Inputs, LiveSettings};
use crate::coordinator::child::Stage;
use crate::coordinator::faults::Armed;
use crate::coordinator::handle::Handle;
use crate::coordinator::pipeline::PolicyRegistry;
use crate::coordinator::reload::Reloads;
use crate::coordinator::shutdown::Signals;
use crate::coordinator::supervisor::ChildSpec;
use crate::coordinator::{Coordinator, Outcome};
use crate::sink::redpanda::RedpandaSink;
use crate::source::ScyllaSource;
use crate::transform::PluginError;

/// `penstock run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Show no progress, only the log
    #[arg(long, short)]
    pub quiet: bool,
}

/// Children that a command adds to the pipeline, once it has a handle to it.
pub type Extra = Box<dyn FnOnce(&Handle, &Terminal) -> Vec<ChildSpec>>;

/// How often the progress line is renewed on a terminal, and written where there is none.
const ON_TERMINAL: Duration = Duration::from_millis(500);
const IN_LOG: Duration = Duration::from_secs(10);

/// Runs the pipeline; the exit code says how it ended.
pub fn run(config: &ConfigArgs, args: RunArgs) -> u8 {
    let quiet = args.quiet;
    start(
        config.inputs(),
        Box::new(move |handle, terminal| {
            if quiet {
                Vec::new()
            } else {
                vec![terminal.progress(handle.clone())]
            }
        }),
    )
}

/// Loads, starts, runs and drains.
pub fn start(inputs: Inputs, extra: Extra) -> u8 {
    let reloads = match Reloads::load_first(inputs) {
        Ok(reloads) => reloads,
        Err(invalid) => {
            eprint!("{}", invalid.render(std::io::stderr().is_terminal()));
            return exit::BAD_CONFIG;
        }
    };
    let terminal = Terminal::new();
    let filter = terminal.init_logging(&reloads.settings().log);
    let _armed = Armed::from_environment();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime cannot be started: {error}");
            return exit::FAILURE;
        }
    };
    let code = runtime.block_on(async {
        match serve(reloads, extra, &terminal, filter).await {
            Ok(Outcome::Clean) => exit::OK,
            Ok(Outcome::Failed) => exit::FAILURE,
            Ok(Outcome::Fenced) => exit::FENCED,
            Ok(Outcome::Forced) => exit::FORCED,
            Err(error) => {
                terminal.line(&format!("error: {error:#}"));
                // A plugin that cannot be used is the configuration's fault, as `validate` says too.
                match error.is::<PluginError>() {
                    true => exit::BAD_CONFIG,
                    false => exit::FAILURE,
                }
            }
        }
    });
    // A child that is stuck in a blocking section must not keep the process.
    runtime.shutdown_background();
    code
}

async fn serve(
    mut reloads: Reloads,
    extra: Extra,
    terminal: &Terminal,
    filter: FilterHandle,
) -> anyhow::Result<Outcome> {
    let mut signals = Signals::new()?;
    let stand_ins = reloads.start_stand_ins().await?;
    let live = reloads.live();
    // A stop that is asked for before everything has started is obeyed too.
    let mut coordinator = tokio::select! {
        started = Coordinator::start(reloads) => started?,
        () = async { while signals.next().await != crate::coordinator::shutdown::Asked::Stop {} } => {
            return Ok(Outcome::Clean);
        }
    };
    coordinator.add(filter_child(live, filter));
    for child in extra(&coordinator.handle(), terminal) {
        coordinator.add(child);
    }
    let outcome = coordinator.run(signals).await;
    terminal.finish();
    if let Some(stand_ins) = std::rc::Rc::into_inner(stand_ins) {
        stand_ins.shutdown().await;
    }
    Ok(outcome)
}

/// For `validate --connect`: whether both sides answer and have what the settings name; all that is wrong.
pub fn connect(settings: Arc<Settings>) -> Result<(), Vec<String>> {
    let runtime = tokio::runtime::Runtime::new().map_err(|e| vec![e.to_string()])?;
    runtime.block_on(async {
        let live = tokio::sync::watch::Sender::new(settings.clone());
        let policies = PolicyRegistry::new(live.subscribe());
        let source = async {
            if settings.source.nodes == Nodes::Embedded {
                return Ok(());
            }
            let source =
                ScyllaSource::connect(live.subscribe(), policies.stage(&Stage::Source)).await;
            let absent = source.map_err(|e| vec![e.to_string()])?.absent();
            match absent.is_empty() {
                true => Ok(()),
                // One line for a keyspace, however many tables are to be in it.
                false => {
                    let mut said: Vec<_> = absent.iter().map(|(_, e)| e.to_string()).collect();
                    said.dedup();
                    Err(said)
                }
            }
        };
        let sink = async {
            if settings.sink.brokers == Nodes::Embedded {
                return Ok(());
            }
            let sink = RedpandaSink::connect(live.subscribe(), policies.stage(&Stage::Sink)).await;
            sink.map(drop).map_err(|e| vec![e.to_string()])
        };
        let (source, sink) = tokio::join!(source, sink);
        let wrong: Vec<String> = [source, sink]
            .into_iter()
            .filter_map(Result::err)
            .flatten()
            .collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    })
}

type FilterHandle = reload::Handle<EnvFilter, Registry>;

/// What is asked for, less what libraries tell of their own housekeeping.
fn filter(directives: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    EnvFilter::try_new(format!("notify=warn,scylla=warn,{directives}"))
}

/// Takes a changed `log.filter` to the running subscriber.
fn filter_child(live: LiveSettings, filter: FilterHandle) -> ChildSpec {
    ChildSpec::new(Stage::Log, move |scope| {
        let (mut live, filter) = (live.clone(), filter.clone());
        async move {
            let mut current = live.borrow_and_update().log.filter.clone();
            loop {
                tokio::select! {
                    changed = live.changed() => changed?,
                    () = scope.drain.cancelled() => return Ok(()),
                }
                let wanted = live.borrow_and_update().log.filter.clone();
                if wanted != current {
                    // Validation has parsed it before.
                    filter.reload(self::filter(&wanted)?)?;
                    current = wanted;
                }
            }
        }
    })
}

/// Standard error, shared by the log and the progress line.
#[derive(Clone)]
pub struct Terminal {
    bars: MultiProgress,
    interactive: bool,
}

impl Terminal {
    fn new() -> Self {
        Self {
            bars: MultiProgress::new(),
            interactive: std::io::stderr().is_terminal(),
        }
    }

    /// Writes a line above the progress line.
    pub fn line(&self, text: &str) {
        self.bars.suspend(|| eprintln!("{text}"));
    }

    fn finish(&self) {
        self.bars.clear().ok();
    }

    fn init_logging(&self, log: &Log) -> FilterHandle {
        let filter = filter(&log.filter).unwrap_or_else(|_| EnvFilter::new("info"));
        let (filter, handle) = reload::Layer::new(filter);
        let format = tracing_subscriber::fmt::layer()
            .with_writer(self.clone())
            .with_target(false);
        let format = match log.format {
            LogFormat::Json => format.json().boxed(),
            LogFormat::Text => format.with_ansi(self.interactive).boxed(),
        };
        // A second start in one process (a test) keeps the first subscriber.
        tracing_subscriber::registry()
            .with(filter)
            .with(format)
            .try_init()
            .ok();
        handle
    }

    /// A child that shows what flows: one line, renewed, on a terminal; a line in the log now and then elsewhere.
    pub fn progress(&self, handle: Handle) -> ChildSpec {
        let terminal = self.clone();
        ChildSpec::new(Stage::Progress, move |scope| {
            let (terminal, handle) = (terminal.clone(), handle.clone());
            async move {
                let bar = terminal.interactive.then(|| {
                    let style = ProgressStyle::with_template("{spinner} {msg}")
                        .unwrap_or_else(|_| ProgressStyle::default_spinner());
                    terminal
                        .bars
                        .add(ProgressBar::new_spinner().with_style(style))
                });
                let mut before = Flow::of(&handle);
                loop {
                    tokio::select! {
                        () = tokio::time::sleep(if bar.is_some() { ON_TERMINAL } else { IN_LOG }) => {}
                        () = scope.drain.cancelled() => return Ok(()),
                    }
                    let now = Flow::of(&handle);
                    match &bar {
                        Some(bar) => {
                            bar.set_message(now.since(&before));
                            bar.tick();
                        }
                        None => now.log(&before),
                    }
                    before = now;
                }
            }
        })
    }
}

impl<'a> MakeWriter<'a> for Terminal {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

/// One write of the log.
pub struct Line<'a>(&'a Terminal);

impl Write for Line<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.bars.suspend(|| std::io::stderr().write_all(buf))?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// The sums of all lanes at one moment.
struct Flow {
    at: Instant,
    read: u64,
    acknowledged: u64,
    in_flight: usize,
    dead_letters: u64,
    lag: Duration,
    breakers: String,
}

impl Flow {
    fn of(handle: &Handle) -> Self {
        let pipeline = handle.pipeline();
        let lanes = || pipeline.iter().flat_map(|p| p.lanes());
        let status = pipeline
            .as_ref()
            .map(|p| p.source.status())
            .unwrap_or_default();
        let open: Vec<String> = crate::admin::status::stages(handle)
            .iter()
            .filter(|s| s.breaker != "closed")
            .map(|s| format!("{} {}", s.stage, s.breaker))
            .collect();
        Self {
            at: Instant::now(),
            read: lanes().map(|l| l.counters.read.load(Relaxed)).sum(),
            acknowledged: lanes().map(|l| l.counters.acknowledged.load(Relaxed)).sum(),
            in_flight: lanes().map(|l| l.in_flight().changes).sum(),
            dead_letters: lanes().map(|l| l.counters.dead_letters.load(Relaxed)).sum(),
            lag: status
                .shards
                .iter()
                .map(|s| s.lag)
                .max()
                .unwrap_or_default(),
            breakers: if open.is_empty() {
                "closed".to_owned()
            } else {
                open.join(", ")
            },
        }
    }

    fn rate(&self, before: &Self) -> (f64, f64) {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(1e-3);
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        (
            rate(self.read, before.read),
            rate(self.acknowledged, before.acknowledged),
        )
    }

    fn since(&self, before: &Self) -> String {
        let (read, acknowledged) = self.rate(before);
        format!(
            "read {} ({read:.0}/s) → acknowledged {} ({acknowledged:.0}/s) · in flight {} · lag {:.1} s · breakers {} · dead letters {}",
            self.read,
            self.acknowledged,
            self.in_flight,
            self.lag.as_secs_f64(),
            self.breakers,
            self.dead_letters,
        )
    }

    fn log(&self, before: &Self) {
        let (read, acknowledged) = self.rate(before);
        tracing::info!(
            read = self.read,
            read_per_second = read.round(),
            acknowledged = self.acknowledged,
            acknowledged_per_second = acknowledged.round(),
            in_flight = self.in_flight,
            lag_seconds = (self.lag.as_secs_f64() * 10.0).round() / 10.0,
            breakers = self.breakers,
            dead_letters = self.dead_letters,
            "progress"
        );
    }
}
