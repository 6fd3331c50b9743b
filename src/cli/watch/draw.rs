//! Draws a [`View`]: what is important stays where there is little room. Colours say nothing that words do not.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Row, Table};

use super::view::{Mood, StageRow, View};

/// Whether it has colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Pen {
    coloured: bool,
}

/// Cells of a queue's bar.
const BAR: usize = 8;
/// Lines of reloads.
const RELOADS: usize = 4;
/// Lines of what was said, with their frame.
const SAID: u16 = 14;

impl Pen {
    /// With colours, unless `NO_COLOR` is set to anything: <https://no-color.org>.
    pub(in crate::cli) fn of_environment() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { coloured: !plain }
    }

    fn of(self, mood: Mood) -> Style {
        let (colour, weight) = match mood {
            Mood::Good => (Color::Green, Modifier::empty()),
            Mood::Wary => (Color::Yellow, Modifier::BOLD),
            Mood::Bad => (Color::Red, Modifier::BOLD),
        };
        let style = Style::new().add_modifier(weight);
        if self.coloured {
            style.fg(colour)
        } else {
            style
        }
    }
}

/// The whole picture.
pub(in crate::cli) fn draw(frame: &mut Frame<'_>, view: &View, pen: Pen) {
    let way_out = view.way_out.unwrap_or("q quits");
    if !view.was_there() {
        let trouble = view.trouble.as_deref().unwrap_or("asking …");
        let lines = vec![Line::from(trouble), Line::from(way_out)];
        frame.render_widget(Paragraph::new(lines), frame.area());
        return;
    }
    let (stages, shards, ill) = (view.stages(), view.shards(), view.ill());
    let history: Vec<String> = view.history().into_iter().take(RELOADS).collect();
    let heights = heights(
        frame.area().height,
        [stages.len(), ill.len(), shards.len(), history.len()],
        !view.said.is_empty(),
    );
    let [
        head,
        pipeline,
        health,
        of_shards,
        of_reloads,
        of_said,
        _,
        foot,
    ] = Layout::vertical(heights.map(Constraint::Length)).areas(frame.area());

    let (mood, said) = view.health();
    let title = Line::from(vec![
        Span::raw(view.title() + "   "),
        Span::styled(said, pen.of(mood)),
    ]);
    frame.render_widget(Paragraph::new(title), head);
    draw_stages(frame, pipeline, &stages, pen);
    let ill: Vec<Line<'_>> = match ill.is_empty() {
        true => vec![Line::from(format!(
            "all {} components are well",
            view.components()
        ))],
        false => (ill.into_iter())
            .map(|(mood, text)| Line::styled(text, pen.of(mood)))
            .collect(),
    };
    frame.render_widget(Paragraph::new(ill).block(block("Health")), health);
    draw_shards(frame, of_shards, shards);
    let history: Vec<Line<'_>> = match history.is_empty() {
        true => vec![Line::from("none since the start")],
        false => history.into_iter().map(Line::from).collect(),
    };
    let history = Paragraph::new(history).block(block("Reloads"));
    frame.render_widget(history, of_reloads);
    draw_said(frame, of_said, &view.said);
    let (said, style) = match &view.trouble {
        Some(trouble) => (trouble.clone(), pen.of(Mood::Bad)),
        None => (view.latency(), Style::new()),
    };
    // The way out is to be seen in any case.
    let whole = format!("{said} — {way_out}");
    let fits = whole.chars().count() <= usize::from(foot.width);
    let foot_line = match fits {
        true => whole,
        false => format!("{way_out} — {said}"),
    };
    frame.render_widget(Paragraph::new(Line::styled(foot_line, style)), foot);
}

/// Lines of the head, the pipeline, health, shards, reloads, the log, of nothing, and of the foot. What is important has
/// its lines first, and a block that could not say anything has none.
fn heights(all: u16, counts: [usize; 4], said: bool) -> [u16; 8] {
    /// A frame and a line in it.
    const LEAST: u16 = 3;
    let framed = |lines: usize| u16::try_from(lines).unwrap_or(u16::MAX).saturating_add(2);
    let [stages, ill, shards, history] = counts;
    let mut left = all.saturating_sub(2);
    let take = |left: &mut u16, wanted: u16, least: u16| {
        let given = wanted.min(*left);
        let given = if given < least { 0 } else { given };
        *left -= given;
        given
    };
    let pipeline = take(&mut left, framed(stages + 1), LEAST + 1);
    let health = take(&mut left, framed(ill.max(1)), LEAST);
    let log = take(&mut left, if said { SAID } else { 0 }, LEAST);
    let reloads = framed(history.max(1));
    // Shards before reloads, but not so many that there is no room for those.
    let kept = if left >= LEAST + 1 + reloads {
        reloads
    } else {
        0
    };
    let mut for_shards = left - kept;
    let of_shards = take(&mut for_shards, framed(shards + 1), LEAST + 1);
    left -= of_shards;
    let reloads = take(&mut left, reloads, LEAST);
    // What is left over goes to the log, or is nothing's.
    let (log, blank) = if log > 0 {
        (log + left, 0)
    } else {
        (log, left)
    };
    let foot = all.saturating_sub(1).min(1);
    [
        all.min(1),
        pipeline,
        health,
        of_shards,
        reloads,
        log,
        blank,
        foot,
    ]
}

fn block(title: &str) -> Block<'_> {
    Block::new().borders(Borders::ALL).title(title)
}

fn draw_stages(frame: &mut Frame<'_>, area: Rect, stages: &[StageRow], pen: Pen) {
    // As wide as what is in them, so that there is room for what is told of each stage; where that is too much, the queue
    // goes first, and then the ends of the names.
    const NARROW: u16 = 64;
    let longest = |of: fn(&StageRow) -> &str, most: usize, least: usize| {
        let longest = stages.iter().map(|s| of(s).chars().count()).max();
        u16::try_from(longest.unwrap_or_default().clamp(least, most)).unwrap_or(u16::MAX)
    };
    let (rate_width, queue_width) = match area.width < NARROW {
        true => (8, 0),
        false => (11, u16::try_from(BAR).unwrap_or(u16::MAX) + 5),
    };
    let breaker = longest(|s| &s.breaker, 22, "breaker".len());
    let name = longest(|s| &s.name, 28, "stage".len());
    let others = 2 + rate_width + 1 + queue_width + 1 + breaker + 1;
    let name = name.min(area.width.saturating_sub(others).max(8));
    let rows = stages.iter().map(|stage| {
        let rate = stage.rate.map_or_else(String::new, |r| {
            format!("{:>1$}", format!("{r:.0}/s"), usize::from(rate_width))
        });
        let queue = stage.queue.map_or_else(String::new, bar);
        let mut cells = vec![Line::from(stage.name.as_str()), Line::from(rate)];
        cells.extend((queue_width > 0).then(|| Line::from(queue)));
        cells.push(Line::styled(stage.breaker.as_str(), pen.of(stage.mood)));
        cells.push(Line::from(stage.detail.as_str()));
        Row::new(cells)
    });
    let mut widths = vec![Constraint::Length(name), Constraint::Length(rate_width)];
    let rate = format!("{:>1$}", "rate", usize::from(rate_width));
    let mut head = vec!["stage", &rate];
    if queue_width > 0 {
        widths.push(Constraint::Length(queue_width));
        head.push("queue");
    }
    widths.extend([Constraint::Length(breaker), Constraint::Fill(1)]);
    head.extend(["breaker", ""]);
    let table = Table::new(rows, widths)
        .header(Row::new(head))
        .block(block("Pipeline"));
    frame.render_widget(table, area);
}

/// `████     50%`
fn bar(fill: f64) -> String {
    let full = (fill.clamp(0.0, 1.0) * BAR as f64).round() as usize;
    let (full, empty) = ("█".repeat(full), "·".repeat(BAR - full));
    format!("{full}{empty}{:>4.0}%", fill * 100.0)
}

/// The newest lines that fit.
fn draw_said(frame: &mut Frame<'_>, area: Rect, said: &[String]) {
    let room = usize::from(area.height.saturating_sub(2));
    let newest = said.iter().skip(said.len().saturating_sub(room));
    let lines: Vec<Line<'_>> = newest.map(|line| Line::from(line.as_str())).collect();
    frame.render_widget(Paragraph::new(lines).block(block("Log")), area);
}

fn draw_shards(frame: &mut Frame<'_>, area: Rect, shards: Vec<[String; 5]>) {
    let room = usize::from(area.height.saturating_sub(3));
    let hidden = shards.len().saturating_sub(room);
    let title = match hidden {
        0 => "Shards".to_owned(),
        more => format!("Shards ({more} more, by `penstock status`)"),
    };
    let right = |text: String, width: usize| format!("{text:>width$}");
    let rows = shards
        .into_iter()
        .map(|[shard, rate, lag, in_flight, owner]| {
            let figures = [right(rate, 10), right(lag, 8), right(in_flight, 10)];
            Row::new([vec![shard], figures.to_vec(), vec![owner]].concat())
        });
    let widths = [
        Constraint::Length(6),
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Fill(1),
    ];
    let head = Row::new(["shard", "     per s", "   lag s", " in flight", "owner"]);
    let table = Table::new(rows, widths).header(head).block(block(&title));
    frame.render_widget(table, area);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
    use serde_json::{Value, json};

    use super::super::is_the_end;
    use super::*;

    fn picture(at: f64, items: u64, lag: f64) -> Value {
        let stage = |name: &str| json!({ "stage": name, "breaker": "closed", "for_seconds": 3.0 });
        let sink = json!({
            "stage": "sink", "breaker": "open", "for_seconds": 18.0, "probe_in_seconds": 12.0,
            "last_error": "nobody answers",
        });
        let entry = |name: &str, status: &str, reason: Option<&str>| json!({ "name": name, "status": status, "reason": reason });
        json!({
            "at": at,
            "queues": [0.5, 1.0],
            "rates": { "read": 120.0, "acknowledged": 0.0, "p50": 1.25, "p99": null },
            "transforms": { "transform.router": { "items": items, "faults": 0 } },
            "sink": { "dead_letters": 2 },
            "source": { "catching_up": true },
            "status": {
                "pipeline": "orders", "version": "0.1.0", "phase": "running", "instance": "i-1",
                "stages": [sink, stage("orders"), stage("transform.router"), stage("source"), stage("dead_letter")],
                "health": {
                    "system": entry("system", "degraded", Some("sink: its breaker is open")),
                    "components": [
                        entry("source", "healthy", None), entry("sink", "degraded", Some("its breaker is open")),
                    ],
                },
                "shards": [
                    { "shard": 0, "per_second": 60.0, "lag_seconds": lag, "in_flight": 7, "dead_letters": 2 },
                ],
                "owners": [
                    { "shard": 0, "instance": "i-1" },
                    { "shard": 1, "instance": "i-2", "admin": "10.0.0.2:9180" },
                ],
                "reload": null,
            },
        })
    }

    fn view() -> View {
        let mut view = View::default();
        view.take(Ok(picture(10.0, 1_000, 30.0)), Vec::new());
        let reload = json!({ "at": "2026-01-31T08:00:00Z", "outcome": "applied", "changed": [{ "key": "sink.headers" }] });
        view.take(Ok(picture(12.0, 1_500, 20.0)), vec![reload]);
        view
    }

    fn screen(view: &View, width: u16, height: u16, coloured: bool) -> (Vec<String>, bool) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        let pen = Pen { coloured };
        terminal
            .draw(|frame| draw(frame, view, pen))
            .expect("drawn");
        let buffer = terminal.backend().buffer();
        let cells: Vec<_> = buffer.content().chunks(usize::from(width)).collect();
        let lines = cells.iter().map(|line| {
            let line: String = line.iter().map(|cell| cell.symbol()).collect();
            line.trim_end().to_owned()
        });
        let has_colours = buffer.content().iter().any(|cell| cell.fg != Color::Reset);
        (lines.collect(), has_colours)
    }

    #[test]
    fn the_picture_says_at_a_glance_how_things_are() {
        let (lines, coloured) = screen(&view(), 110, 24, true);
        println!("{}", lines.join("\n"));
        assert!(coloured);
        let has = |parts: &[&str]| {
            let found = lines
                .iter()
                .any(|l| parts.iter().all(|part| l.contains(part)));
            assert!(found, "{parts:?} in\n{}", lines.join("\n"));
        };
        has(&[
            "orders 0.1.0 — running",
            "degraded: sink: its breaker is open",
        ]);
        has(&[
            "source",
            "120/s",
            "closed",
            "lag 20.0 s, caught up in 4.0 s",
        ]);
        has(&["transform.router", "250/s", "████····  50%"]);
        has(&[
            "sink",
            "████████ 100%",
            "open, probe in 12.0 s",
            "nobody answers — in flight 7",
        ]);
        has(&["sink degraded its breaker is open"]);
        has(&["0", "60", "20", "7", "this instance"]);
        has(&["1", "10.0.0.2:9180"]);
        has(&["2026-01-31T08:00:00Z applied sink.headers"]);
        has(&["write to done p50 1.2 s p99 -", "q quits"]);
        // In the order of the way, whatever that of the answer.
        let at = |name: &str| {
            lines
                .iter()
                .position(|l| l.starts_with(&format!("│{name}")))
        };
        let order = [
            "source",
            "transform.router",
            "sink",
            "dead_letter",
            "orders",
        ]
        .map(at);
        assert!(order.is_sorted() && order[0].is_some(), "{order:?}");
    }

    #[test]
    fn what_was_said_lately_is_at_the_bottom() {
        let mut demo = view();
        demo.said = (0..40).map(|n| format!("line {n}")).collect();
        demo.way_out = Some("Ctrl-C stops");
        let (lines, _) = screen(&demo, 110, 40, false);
        let all = lines.join("\n");
        assert!(all.contains("line 39") && !all.contains("line 20"), "{all}");
        assert!(lines[39].contains("Ctrl-C stops"), "{all}");
    }

    #[test]
    fn what_is_important_stays_where_there_is_little_room() {
        let mut demo = view();
        demo.said = (0..40).map(|n| format!("line {n}")).collect();
        for (width, height) in [(80, 24), (40, 12)] {
            for view in [&view(), &demo] {
                let all = screen(view, width, height, false).0;
                let text = all.join("\n");
                for stage in ["source", "sink", "dead_let", "orders"] {
                    assert!(text.contains(stage), "no {stage} in\n{text}");
                }
                assert!(text.contains("open, probe in 12.0"), "{text}");
                assert!(all.last().is_some_and(|l| l.contains("q quits")), "{text}");
            }
        }
        let text = screen(&view(), 80, 24, false).0.join("\n");
        assert!(
            text.contains("lag 20.0 s") && text.contains("Shards"),
            "{text}"
        );
        assert!(text.contains("Reloads"), "{text}");
        let text = screen(&demo, 80, 24, false).0.join("\n");
        assert!(text.contains("line 39"), "{text}");
        // All lines are somebody's, whatever there is to show.
        for all in 0..60 {
            for said in [false, true] {
                let lines = heights(all, [5, 2, 4, 0], said);
                assert_eq!(lines.iter().sum::<u16>(), all, "{lines:?}");
            }
        }
    }

    #[test]
    fn without_colours_and_in_little_room_it_says_the_same() {
        let (lines, coloured) = screen(&view(), 80, 16, false);
        assert!(!coloured);
        let all = lines.join("\n");
        assert!(
            all.contains("open, probe in 12.0 s") && all.contains("degraded"),
            "{all}"
        );
        // However small: it is drawn, and nothing panics.
        for (width, height) in [(1, 1), (10, 3), (300, 90)] {
            screen(&view(), width, height, true);
        }
    }

    #[test]
    fn one_that_cannot_be_asked_keeps_what_was_seen_and_says_so() {
        let mut away = View::default();
        away.take(Err("no Penstock answers".to_owned()), Vec::new());
        assert!(screen(&away, 60, 5, true).0[0].contains("no Penstock answers"));
        assert_eq!(away.line(), "no Penstock answers");
        let mut gone = view();
        gone.take(Err("no answer within 2s".to_owned()), Vec::new());
        let all = screen(&gone, 110, 24, true).0.join("\n");
        assert!(all.contains("no answer within 2s — q quits") && all.contains("transform.router"));
    }

    #[test]
    fn where_there_is_no_terminal_it_is_a_line() {
        assert_eq!(
            view().line(),
            "orders 0.1.0 — running · degraded: sink: its breaker is open · read 120/s · acknowledged 0/s · lag 20.0 s, \
             caught up in 4.0 s · breakers sink open, probe in 12.0 s"
        );
    }

    #[test]
    fn these_keys_end_it() {
        let key = |code, modifiers| is_the_end(KeyEvent::new(code, modifiers));
        assert!(key(KeyCode::Char('q'), KeyModifiers::NONE));
        assert!(key(KeyCode::Esc, KeyModifiers::NONE));
        assert!(key(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(!key(KeyCode::Char('c'), KeyModifiers::NONE));
    }
}
