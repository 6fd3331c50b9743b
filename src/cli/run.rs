//! `penstock run`: the pipeline until it is told to stop, and what the terminal shows of it.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::bars::Bars;
use super::output::Output;
use super::watch::{Pen, View, draw, wiped};
use super::{ConfigArgs, exit, machine};
use crate::admin::page;
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
use crate::progress;
use crate::sink::redpanda::RedpandaSink;
use crate::source::{ScyllaSource, Source};
use crate::transform::PluginError;

/// `penstock run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Show no progress, only the log
    #[arg(long, short)]
    pub quiet: bool,
    /// With JSON the log has an object a line, whatever `log.format` says, and no progress is drawn.
    #[command(flatten)]
    pub output: Output,
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
        args.output,
        Box::new(move |handle, terminal| {
            if quiet {
                Vec::new()
            } else {
                vec![terminal.progress(handle.clone())]
            }
        }),
    )
}

/// Loads, starts, runs and drains; for a program (`output`) all that is said is JSON.
pub fn start(mut inputs: Inputs, output: Output, extra: Extra) -> u8 {
    let json = output.is_json();
    if json {
        inputs.set.push("log.format=json".to_owned());
    }
    let reloads = match Reloads::load_first(inputs) {
        Ok(reloads) => reloads,
        Err(invalid) if json => {
            say!("{:#}", invalid.to_json());
            return exit::BAD_CONFIG;
        }
        Err(invalid) => {
            eprint!("{}", invalid.render(std::io::stderr().is_terminal()));
            return exit::BAD_CONFIG;
        }
    };
    let terminal = Terminal::new(!json && std::io::stderr().is_terminal());
    terminal.show_long_work();
    let filter = terminal.init_logging(&reloads.settings().log);
    if let Some(finding) = machine::open_files(&reloads.settings()) {
        tracing::warn!(help = finding.help, "{}: {}", finding.about, finding.found);
    }
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
                match json {
                    true => tracing::error!(error = %format!("{error:#}"), "it ends"),
                    false => terminal.line(&format!("error: {error:#}")),
                }
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
    // notify warns of each removal of a file that it watches by its folder as well. Its errors come as events.
    EnvFilter::try_new(format!("notify=error,scylla=warn,{directives}"))
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
    /// What would have been written while a picture has the screen.
    kept: Arc<Mutex<Option<VecDeque<String>>>>,
}

/// Lines that are kept while a picture has the screen.
const MOST_KEPT: usize = 200;

/// Has the screen for a picture, and gives it back however that ends: with what was said meanwhile.
struct Screen {
    terminal: Terminal,
    picture: ratatui::Terminal<CrosstermBackend<std::io::Stderr>>,
}

impl Screen {
    fn take(terminal: &Terminal) -> anyhow::Result<Self> {
        let picture = ratatui::Terminal::new(CrosstermBackend::new(std::io::stderr()))?;
        *terminal.kept.lock() = Some(VecDeque::new());
        let screen = Self {
            terminal: terminal.clone(),
            picture,
        };
        // No raw mode: Ctrl-C stays the signal that drains.
        execute!(std::io::stderr(), EnterAlternateScreen, Hide)?;
        wiped(std::io::stderr())?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        execute!(std::io::stderr(), Show, LeaveAlternateScreen).ok();
        for line in self.terminal.kept.lock().take().into_iter().flatten() {
            eprintln!("{line}");
        }
    }
}

impl Terminal {
    /// `interactive`: somebody looks at it.
    fn new(interactive: bool) -> Self {
        Self {
            bars: MultiProgress::new(),
            interactive,
            kept: Arc::default(),
        }
    }

    /// What takes long has a bar on a terminal, unless a picture has the screen.
    fn show_long_work(&self) {
        if !self.interactive {
            return;
        }
        let (bars, kept) = (Bars::among(self.bars.clone(), true), self.kept.clone());
        progress::show_by(move |what, far| {
            if kept.lock().is_none() || far.is_none() {
                bars.show(what, far);
            }
        });
    }

    /// Writes a line above the progress line, or below the picture.
    pub fn line(&self, text: &str) {
        if self.keep(text) {
            return;
        }
        self.bars.suspend(|| eprintln!("{text}"));
    }

    /// Whether a picture has the screen, which then shows these lines.
    fn keep(&self, text: &str) -> bool {
        let mut kept = self.kept.lock();
        let Some(kept) = kept.as_mut() else {
            return false;
        };
        kept.extend(text.lines().map(without_colours));
        while kept.len() > MOST_KEPT {
            kept.pop_front();
        }
        true
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

    /// A child that shows the pipeline at a glance, and what is said meanwhile below it; not on a terminal, as
    /// [`Self::progress`].
    pub fn picture(&self, handle: Handle) -> ChildSpec {
        if !self.interactive {
            return self.progress(handle);
        }
        let terminal = self.clone();
        ChildSpec::new(Stage::Progress, move |scope| {
            let (terminal, handle) = (terminal.clone(), handle.clone());
            async move {
                let (mut screen, pen) = (Screen::take(&terminal)?, Pen::of_environment());
                let mut view = View::default();
                view.way_out = Some("Ctrl-C stops");
                loop {
                    view.take(Ok(page::shown(&handle)), page::reloads(&handle));
                    view.said.clear();
                    view.said
                        .extend(terminal.kept.lock().iter().flatten().cloned());
                    screen.picture.draw(|frame| draw(frame, &view, pen))?;
                    tokio::select! {
                        () = tokio::time::sleep(ON_TERMINAL) => {}
                        () = scope.drain.cancelled() => return Ok(()),
                    }
                }
            }
        })
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
        if !self.0.keep(&String::from_utf8_lossy(buf)) {
            self.0.bars.suspend(|| std::io::stderr().write_all(buf))?;
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Without the sequences that colour it: `ESC [ … m`.
fn without_colours(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |plain, part| {
        plain + part.split_once('m').map_or(part, |(_, rest)| rest)
    })
}

/// The sums of all lanes at one moment.
struct Flow {
    at: Instant,
    read: u64,
    acknowledged: u64,
    in_flight: usize,
    dead_letters: u64,
    lag: Duration,
    catching_up: bool,
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
            catching_up: status.shards.iter().any(|s| s.catching_up),
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

    /// While a backlog is caught up with: when it will be over, at the pace of now.
    fn left(&self, before: &Self) -> Option<String> {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(1e-3);
        let pace = (before.lag.as_secs_f64() - self.lag.as_secs_f64()) / seconds;
        let left = self.lag.as_secs_f64() / pace;
        let left = Duration::try_from_secs_f64(left.ceil()).ok()?;
        (self.catching_up && pace > 0.0).then(|| humantime::format_duration(left).to_string())
    }

    fn since(&self, before: &Self) -> String {
        let (read, acknowledged) = self.rate(before);
        let left = self.left(before);
        let left = left.map_or_else(String::new, |left| format!(", caught up in {left}"));
        format!(
            "read {} ({read:.0}/s) → acknowledged {} ({acknowledged:.0}/s) · in flight {} · lag {:.1} s{left} · breakers {} · dead letters {}",
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
            caught_up_in = self.left(before),
            breakers = self.breakers,
            dead_letters = self.dead_letters,
            "progress"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_a_picture_has_the_screen_lines_are_kept_plain_and_bounded() {
        let terminal = Terminal::new(false);
        assert!(!terminal.keep("nobody has it"));
        *terminal.kept.lock() = Some(VecDeque::new());
        terminal.line("\u{1b}[32m INFO\u{1b}[0m started \u{1b}[3mshards\u{1b}[0m=2");
        for n in 0..MOST_KEPT - 1 {
            // As the log does: a line in one piece.
            let line = format!("line {n}\n");
            terminal
                .make_writer()
                .write_all(line.as_bytes())
                .expect("kept");
        }
        let mut kept = terminal.kept.lock().clone().expect("kept");
        assert_eq!(kept.len(), MOST_KEPT);
        assert_eq!(kept.pop_front().as_deref(), Some(" INFO started shards=2"));
        terminal.line("one more");
        assert_eq!(
            terminal.kept.lock().as_ref().map(VecDeque::len),
            Some(MOST_KEPT)
        );
    }
}
