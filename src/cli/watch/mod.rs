//! `penstock status --watch`: the running pipeline at a glance, until it is told to stop.
//!
//! On a terminal a picture that is drawn again every interval; elsewhere a line, or with `-o json` the picture itself. What
//! it shows is what the page shows, asked for at the same place.

mod draw;
mod view;

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{Clear, ClearType};
use reqwest::Method;
use serde_json::Value;
use tokio::runtime::Runtime;

pub(super) use draw::{Pen, draw};
pub(super) use view::View;

use super::admin::Client;

/// The longest that a key waits for an answer that does not come.
const PATIENCE: Duration = Duration::from_secs(2);

/// Shows the pipeline every `interval`; `false`: it could not be asked even once.
///
/// # Errors
/// The terminal does not take what is drawn.
pub(super) fn run(
    runtime: &Runtime,
    client: &Client,
    interval: Duration,
    json: bool,
) -> anyhow::Result<bool> {
    let mut view = View::default();
    if json || !std::io::stdout().is_terminal() {
        loop {
            let began = Instant::now();
            let answer = runtime.block_on(ask(client));
            match (&answer, json) {
                (Ok(picture), true) => say!("{picture}"),
                (Err(error), true) => say!("{}", serde_json::json!({ "error": error })),
                _ => {
                    view.take(answer, Vec::new());
                    say!("{}", view.line());
                }
            }
            std::thread::sleep(interval.saturating_sub(began.elapsed()));
        }
    }
    let mut terminal = ratatui::try_init()?;
    let shown = wiped(std::io::stdout()).and_then(|()| {
        show(&mut terminal, &mut view, interval, || {
            let picture = runtime.block_on(ask(client));
            let reloads = match &picture {
                Ok(_) => runtime.block_on(reloads(client)),
                Err(_) => Vec::new(),
            };
            (picture, reloads)
        })
    });
    ratatui::try_restore()?;
    shown.map(|()| view.was_there())
}

/// Not every terminal has another screen to draw on, and what is there already would be between. (The terminal's own
/// clearing asks where the cursor is, and fails where nobody answers.)
///
/// # Errors
/// The terminal does not take it.
pub(super) fn wiped(mut terminal: impl std::io::Write) -> anyhow::Result<()> {
    Ok(execute!(terminal, Clear(ClearType::All))?)
}

/// Draws what `look` sees until somebody has enough.
fn show(
    terminal: &mut DefaultTerminal,
    view: &mut View,
    interval: Duration,
    mut look: impl FnMut() -> (Result<Value, String>, Vec<Value>),
) -> anyhow::Result<()> {
    let pen = Pen::of_environment();
    loop {
        let next = Instant::now() + interval;
        let (picture, reloads) = look();
        view.take(picture, reloads);
        terminal.draw(|frame| draw(frame, view, pen))?;
        while let Some(left) = next.checked_duration_since(Instant::now()) {
            if !event::poll(left)? {
                break;
            }
            match event::read()? {
                Event::Key(key) if is_the_end(key) => return Ok(()),
                // The next picture has the new size; this one too.
                Event::Resize(..) => {
                    terminal.draw(|frame| draw(frame, view, pen))?;
                }
                _ => {}
            }
        }
    }
}

/// `q`, Escape, or Ctrl-C, which a terminal in raw mode hands over as a key.
pub(super) fn is_the_end(key: KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind != KeyEventKind::Release
        && match key.code {
            KeyCode::Char('c') => control,
            KeyCode::Char('q') | KeyCode::Esc => true,
            _ => false,
        }
}

async fn ask(client: &Client) -> Result<Value, String> {
    let asked = client.call(Method::GET, "/picture", &[]);
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok((200, picture))) => Ok(picture),
        Ok(Ok((code, answer))) => Err(match answer["detail"].as_str() {
            Some(detail) => detail.to_owned(),
            None => format!("it answers {code}"),
        }),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

/// The history, the newest last; none where it cannot be had.
async fn reloads(client: &Client) -> Vec<Value> {
    let asked = client.call(Method::GET, "/reloads", &[]);
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok((200, Value::Array(list)))) => list,
        _ => Vec::new(),
    }
}
