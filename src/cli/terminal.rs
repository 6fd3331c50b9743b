//! What `penstock run` and `demo` show on standard error: the log, and on a terminal a line or a picture that is renewed.
//!
//! A terminal may take nothing for as long as it likes: somebody pressed Ctrl-S, or a connection hangs. So it is written to by
//! a thread of its own, which nobody waits for; what finds no room is counted and let go of. Whoever opened it ([`Opened`]) ends
//! that thread, and leaves it behind where the terminal takes nothing; should it panic, that is said, and it goes on with lines
//! alone. Elsewhere whoever says something writes it, for a file or a journal is to have every line.

use std::collections::VecDeque;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

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
use super::flow::Flow;
use super::watch::{Pen, View, draw, wiped};
use crate::admin::page;
use crate::config::settings::{Log, LogFormat};
use crate::coordinator::child::Stage;
use crate::coordinator::handle::Handle;
use crate::coordinator::supervisor::{ChildSpec, panic_message};
use crate::progress::{self, HowFar};

/// How often the progress line is renewed on a terminal, and written where there is none.
const ON_TERMINAL: Duration = Duration::from_millis(500);
const IN_LOG: Duration = Duration::from_secs(10);
/// Lines that wait for a terminal: some screenfuls, and less than a MiB.
const MOST_WAITING: usize = 1_024;
/// Lines that are kept while a picture has the screen.
const MOST_KEPT: usize = 200;
/// At the end, what was said last has this long to be shown.
const LAST: Duration = Duration::from_secs(1);

/// What its thread does with a terminal.
enum Say {
    Line(Vec<u8>),
    /// The line that is renewed.
    Progress(String),
    /// How far long work is.
    Far(String, Option<HowFar>),
    /// Whatever picture waits is to be drawn.
    Draw,
    GiveBack,
    /// All that was said before is shown: it is over.
    Done,
}

/// Standard error, shared by the log and the progress line.
#[derive(Clone, Default)]
pub struct Terminal {
    /// To its thread; `None`: it is no terminal.
    writer: Option<SyncSender<Say>>,
    /// What would have been written while a picture has the screen.
    kept: Arc<Mutex<Option<VecDeque<String>>>>,
    /// The newest picture, until it is drawn.
    picture: Arc<Mutex<Option<View>>>,
    /// Lines for which there was no room.
    lost: Arc<AtomicU64>,
}

/// The terminal, and its thread if it has one, which ends with this.
pub(super) struct Opened {
    /// For everybody who says something.
    pub(super) terminal: Terminal,
    thread: Option<JoinHandle<()>>,
}

impl Opened {
    /// `interactive`: somebody looks at it.
    pub(super) fn new(interactive: bool) -> Self {
        let mut terminal = Terminal::default();
        let mut thread = None;
        if interactive {
            let (writer, said) = sync_channel(MOST_WAITING);
            let shown = terminal.clone();
            let begun = Builder::new()
                .name("terminal".into())
                .spawn(move || show_all(&shown, &said));
            // Without one whoever says something writes it.
            if let Ok(begun) = begun {
                (terminal.writer, thread) = (Some(writer), Some(begun));
            }
        }
        Self { terminal, thread }
    }
}

impl Drop for Opened {
    /// Shows what was said last, if the terminal takes it within a moment.
    fn drop(&mut self) {
        let (Some(writer), Some(thread)) = (&self.terminal.writer, self.thread.take()) else {
            return;
        };
        let until = Instant::now() + LAST;
        let mut over = writer.try_send(Say::Done).is_ok();
        while !thread.is_finished() {
            if Instant::now() > until {
                // It is in a write that the terminal does not take: the process ends without it.
                return;
            }
            std::thread::sleep(LAST / 50);
            over = over || writer.try_send(Say::Done).is_ok();
        }
        if let Err(panic) = thread.join() {
            complain!(
                "error: the terminal's thread panicked: {}",
                panic_message(&*panic)
            );
        }
    }
}

/// What its thread does. A panic costs the pictures and the bars, never a line.
fn show_all(terminal: &Terminal, said: &Receiver<Say>) {
    let mut shown = Shown::on(terminal);
    while let Err(panic) = catch_unwind(AssertUnwindSafe(|| shown.all(said))) {
        shown.give_back();
        shown = Shown::on(terminal);
        shown.plain = true;
        let why = panic_message(&*panic);
        shown
            .write(format!("error: the picture is gone, its drawing panicked: {why}\n").as_bytes());
    }
}

impl Terminal {
    /// Writes a line above the progress line, or below the picture.
    pub fn line(&self, text: &str) {
        if self.keep(text) {
            return;
        }
        match &self.writer {
            Some(_) => self.say(Say::Line(format!("{text}\n").into_bytes())),
            None => complain!("{text}"),
        }
    }

    fn say(&self, what: Say) {
        let Some(writer) = &self.writer else { return };
        match writer.try_send(what) {
            Err(TrySendError::Full(Say::Line(_))) => {
                self.lost.fetch_add(1, Relaxed);
            }
            // Its thread is over.
            Err(TrySendError::Disconnected(Say::Line(line))) => {
                std::io::stderr().write_all(&line).ok();
            }
            _ => {}
        }
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

    /// What takes long has a bar on a terminal, unless a picture has the screen.
    pub(super) fn show_long_work(&self) {
        if self.writer.is_some() {
            let terminal = self.clone();
            progress::show_by(true, move |what, far| {
                terminal.say(Say::Far(what.to_owned(), far.copied()));
            });
        }
    }

    pub(super) fn init_logging(&self, log: &Log) -> FilterHandle {
        let filter = filter(&log.filter).unwrap_or_else(|_| EnvFilter::new("info"));
        let (filter, handle) = reload::Layer::new(filter);
        let format = tracing_subscriber::fmt::layer()
            .with_writer(self.clone())
            .with_target(false);
        let format = match log.format {
            LogFormat::Json => format.json().boxed(),
            LogFormat::Text => format.with_ansi(self.writer.is_some()).boxed(),
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
        if self.writer.is_none() {
            return self.progress(handle);
        }
        let terminal = self.clone();
        ChildSpec::new(Stage::Progress, move |scope| {
            let (terminal, handle) = (terminal.clone(), handle.clone());
            async move {
                let taken = Taken::from(terminal);
                let mut view = View::default();
                view.way_out = Some("Ctrl-C stops");
                loop {
                    view.take(Ok(page::shown(&handle)), page::reloads(&handle));
                    taken.draw(&mut view);
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
                let renewed = terminal.writer.is_some();
                let mut before = Flow::of(&handle);
                loop {
                    tokio::select! {
                        () = tokio::time::sleep(if renewed { ON_TERMINAL } else { IN_LOG }) => {}
                        () = scope.drain.cancelled() => return Ok(()),
                    }
                    let now = Flow::of(&handle);
                    match renewed {
                        true => terminal.say(Say::Progress(now.since(&before))),
                        false => now.log(&before),
                    }
                    before = now;
                }
            }
        })
    }
}

/// Has the screen for a picture, and gives it back however that ends: with what was said meanwhile.
struct Taken(Terminal);

impl Taken {
    fn from(terminal: Terminal) -> Self {
        *terminal.kept.lock() = Some(VecDeque::new());
        Self(terminal)
    }

    fn draw(&self, view: &mut View) {
        let kept = self.0.kept.lock();
        view.said.clear();
        view.said.extend(kept.iter().flatten().cloned());
        drop(kept);
        // One that was not drawn yet is old news.
        let before = self.0.picture.lock().replace(view.clone());
        if before.is_none() {
            self.0.say(Say::Draw);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.say(Say::GiveBack);
    }
}

/// A terminal's own thread.
struct Shown {
    bars: MultiProgress,
    long_work: Bars,
    line: Option<ProgressBar>,
    screen: Option<ratatui::Terminal<CrosstermBackend<std::io::Stderr>>>,
    pen: Pen,
    kept: Arc<Mutex<Option<VecDeque<String>>>>,
    picture: Arc<Mutex<Option<View>>>,
    lost: Arc<AtomicU64>,
    /// Only lines are shown.
    plain: bool,
}

impl Shown {
    fn on(terminal: &Terminal) -> Self {
        let bars = MultiProgress::new();
        Self {
            long_work: Bars::among(bars.clone(), true),
            bars,
            line: None,
            screen: None,
            pen: Pen::of_environment(),
            kept: terminal.kept.clone(),
            picture: terminal.picture.clone(),
            lost: terminal.lost.clone(),
            plain: false,
        }
    }

    fn all(&mut self, said: &Receiver<Say>) {
        while let Ok(what) = said.recv() {
            let lost = self.lost.swap(0, Relaxed);
            if lost > 0 {
                self.write(
                    format!("… {lost} lines are not here: the terminal took none\n").as_bytes(),
                );
            }
            match what {
                Say::Line(line) => self.write(&line),
                Say::Draw | Say::Far(..) | Say::Progress(_) if self.plain => {}
                Say::Progress(line) => self.renew(line),
                Say::Far(..) if self.screen.is_some() => {}
                Say::Far(what, far) => self.long_work.show(&what, far.as_ref()),
                Say::Draw => {
                    // Where nothing can be drawn, nothing is: the log is what matters.
                    if self.draw().is_err() {
                        self.give_back();
                    }
                }
                Say::GiveBack => self.give_back(),
                Say::Done => {
                    self.give_back();
                    self.bars.clear().ok();
                    return;
                }
            }
        }
    }

    fn write(&self, line: &[u8]) {
        self.bars.suspend(|| std::io::stderr().write_all(line)).ok();
    }

    fn renew(&mut self, message: String) {
        let bars = &self.bars;
        let line = self.line.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{spinner} {msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
            bars.add(ProgressBar::new_spinner().with_style(style))
        });
        line.set_message(message);
        line.tick();
    }

    fn draw(&mut self) -> anyhow::Result<()> {
        let Some(view) = self.picture.lock().take() else {
            return Ok(());
        };
        if self.screen.is_none() {
            let screen = ratatui::Terminal::new(CrosstermBackend::new(std::io::stderr()))?;
            self.screen = Some(screen);
            // No raw mode: Ctrl-C stays the signal that drains.
            execute!(std::io::stderr(), EnterAlternateScreen, Hide)?;
            wiped(std::io::stderr())?;
            fail::fail_point!("terminal");
        }
        if let Some(screen) = &mut self.screen {
            let pen = self.pen;
            screen.draw(|frame| draw(frame, &view, pen))?;
        }
        Ok(())
    }

    fn give_back(&mut self) {
        self.picture.lock().take();
        if self.screen.take().is_some() {
            execute!(std::io::stderr(), Show, LeaveAlternateScreen).ok();
        }
        let kept = self.kept.lock().take();
        for line in kept.into_iter().flatten() {
            complain!("{line}");
        }
    }
}

pub(super) type FilterHandle = reload::Handle<EnvFilter, Registry>;

/// What is asked for, less what libraries tell of their own housekeeping.
pub(super) fn filter(
    directives: &str,
) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    // notify warns of each removal of a file that it watches by its folder as well. Its errors come as events.
    EnvFilter::try_new(format!("notify=error,scylla=warn,{directives}"))
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
        if self.0.keep(&String::from_utf8_lossy(buf)) {
            return Ok(buf.len());
        }
        match self.0.writer {
            Some(_) => self.0.say(Say::Line(buf.to_vec())),
            None => std::io::stderr().write_all(buf)?,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_a_picture_has_the_screen_lines_are_kept_plain_and_bounded() {
        let terminal = Terminal::default();
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

    #[test]
    fn what_finds_no_room_is_counted_and_nobody_waits() {
        let (writer, said) = sync_channel(2);
        let terminal = Terminal {
            writer: Some(writer),
            ..Terminal::default()
        };
        for n in 0..5 {
            terminal.line(&format!("line {n}"));
        }
        assert_eq!(terminal.lost.load(Relaxed), 3);
        assert!(matches!(said.recv(), Ok(Say::Line(line)) if line == b"line 0\n"));
    }

    #[test]
    fn a_terminal_that_takes_nothing_is_left_behind_and_one_that_does_shows_the_last() {
        let (writer, said) = sync_channel(1);
        let (go, held) = sync_channel::<()>(0);
        let thread = std::thread::spawn(move || {
            held.recv().ok();
            while let Ok(what) = said.recv() {
                if matches!(what, Say::Done) {
                    return;
                }
            }
        });
        let terminal = Terminal {
            writer: Some(writer),
            ..Terminal::default()
        };
        terminal.line("it has no room for more");
        let opened = Opened {
            terminal: terminal.clone(),
            thread: Some(thread),
        };
        let began = Instant::now();
        drop(opened);
        assert!(began.elapsed() >= LAST, "it was waited for");
        // It takes something again: the thread ends with its last sender, or when it is told to.
        drop((go, terminal));
    }
}
