//! Long work as whoever waits for it sees it, on standard error: a bar on a terminal, a line now and then elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use reqwest::Method;
use serde_json::Value;

use super::admin::Client;
use crate::progress::{self, HowFar};

/// How often a line is written.
const EVERY: Duration = Duration::from_secs(2);
/// How often a running pipeline is asked how far it is, and how long it may take to say so.
const LOOK: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(2);
/// A replay of which nothing more comes is given up after this long; it may take any time as long as something does.
const STALLED: Duration = Duration::from_secs(120);
/// … but an HTTP client wants a bound.
const DAY: Duration = Duration::from_secs(86_400);

/// What is shown, by name.
pub(super) struct Bars {
    all: MultiProgress,
    on_terminal: bool,
    shown: Mutex<BTreeMap<String, Shown>>,
}

enum Shown {
    Bar(ProgressBar),
    /// When a line was written.
    Line(Instant),
}

impl Bars {
    /// Of a command that shows nothing else.
    pub(super) fn new() -> Self {
        Self::among(MultiProgress::new(), std::io::stderr().is_terminal())
    }

    /// Has long work shown here, for as long as the process runs.
    pub(super) fn show_long_work(self) {
        progress::show_by(self.on_terminal, move |what, far| self.show(what, far));
    }

    /// Beside what is shown already.
    pub(super) fn among(all: MultiProgress, on_terminal: bool) -> Self {
        Self {
            all,
            on_terminal,
            shown: Mutex::default(),
        }
    }

    /// How far the work of this name is; `None`: it is over.
    pub(super) fn show(&self, what: &str, far: Option<&HowFar>) {
        let mut shown = self.shown.lock();
        let Some(far) = far else {
            if let Some(Shown::Bar(bar)) = shown.remove(what) {
                bar.finish_and_clear();
                self.all.remove(&bar);
            }
            return;
        };
        match shown.get_mut(what) {
            Some(Shown::Bar(bar)) => renew(bar, far),
            Some(Shown::Line(at)) if at.elapsed() < EVERY => {}
            Some(Shown::Line(at)) => {
                *at = Instant::now();
                complain!("{what}: {far}");
            }
            None if self.on_terminal => {
                let bar = self.all.add(ProgressBar::no_length());
                bar.set_prefix(what.to_owned());
                renew(&bar, far);
                shown.insert(what.to_owned(), Shown::Bar(bar));
            }
            None => {
                complain!("{what}: {far}");
                shown.insert(what.to_owned(), Shown::Line(Instant::now()));
            }
        }
    }
}

fn renew(bar: &ProgressBar, far: &HowFar) {
    let template = match far.of {
        Some(_) => "{prefix} [{bar:24}] {msg}",
        None => "{prefix} {spinner} {msg}",
    };
    let style = ProgressStyle::with_template(template);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    if let Some(of) = far.of {
        bar.set_length(of);
    }
    bar.set_position(far.done);
    bar.set_message(far.to_string());
    bar.tick();
}

/// How far a running pipeline's replay is, as it says; `None`: there is none.
fn how_far(answer: &Value) -> Option<HowFar> {
    Some(HowFar {
        done: answer["done"].as_u64()?,
        of: answer["of"].as_u64(),
        per_second: answer["per_second"].as_f64()?,
    })
}

/// Has dead letters replayed, and shows how far that is.
///
/// # Errors
/// Nobody answers, or nothing comes of it for [`STALLED`].
pub(super) async fn replay(
    client: &Client,
    query: &[(&str, String)],
) -> anyhow::Result<(u16, Value)> {
    const PATH: &str = "/dead-letters/replay";
    const WHAT: &str = "replaying dead letters";
    let asked = client.call_within(Method::POST, PATH, query, DAY);
    tokio::pin!(asked);
    let bars = Bars::new();
    let began = Instant::now();
    let (mut before, mut since) = (None, began);
    loop {
        tokio::select! {
            answer = &mut asked => {
                bars.show(WHAT, None);
                return answer;
            }
            () = tokio::time::sleep(LOOK) => {}
        }
        let looked = client.call_within(Method::GET, PATH, &[], PATIENCE).await;
        let far = looked.ok().and_then(|(_, answer)| how_far(&answer));
        // At first nobody knows of how many they are, nor at what rate.
        let far = far.filter(|far| far.done > 0 || began.elapsed() > EVERY);
        if let Some(far) = far.filter(|far| before != Some(far.done)) {
            bars.show(WHAT, Some(&far));
            (before, since) = (Some(far.done), Instant::now());
        }
        anyhow::ensure!(
            since.elapsed() < STALLED,
            "nothing came of the replay for {STALLED:?}, so it is given up: what it has delivered is gone from the dead letters"
        );
    }
}
