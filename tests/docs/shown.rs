//! What a page shows of a command's output, and whether it is what was printed.

/// A command of a page.
pub(crate) struct Step {
    pub(crate) command: String,
    /// The exit code that it is to have, said by `# exits 1` behind it.
    pub(crate) exits: i32,
    /// What it is said to print.
    pub(crate) shown: Vec<String>,
    /// Where that stands: its first line, counted from 0, and the one behind its last.
    pub(crate) lines: (usize, usize),
}

/// The commands of a page's blocks of code.
pub(crate) fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    // What follows a block's end is nobody's output.
    let mut taking = false;
    let (mut code, mut continues) = (false, false);
    for (at, line) in page.lines().enumerate() {
        if line.starts_with("```") {
            code = !code;
            (continues, taking) = (false, false);
        } else if !code {
        } else if let Some(command) = line.strip_prefix("$ ") {
            let (command, exits) = match command.split_once(" # exits ") {
                Some((command, code)) => (command, code.parse().expect("an exit code")),
                None => (command, 0),
            };
            steps.push(Step {
                command: command.to_owned(),
                exits,
                shown: Vec::new(),
                lines: (at + 1, at + 1),
            });
            (continues, taking) = (is_open(command), true);
        } else if let Some(step) = steps.last_mut().filter(|_| taking) {
            if continues {
                step.command.push('\n');
                step.command.push_str(line);
                continues = is_open(&step.command);
                step.lines = (at + 1, at + 1);
            } else {
                step.shown.push(line.to_owned());
                step.lines.1 = at + 1;
            }
        }
    }
    steps
}

/// Whether a quotation goes on in the next line.
fn is_open(command: &str) -> bool {
    let odd = |quote: char| command.matches(quote).count() % 2 == 1;
    odd('\'') || odd('"')
}

/// A line with each of its words as `place` has it.
fn with_places(line: &str, place: impl Fn(&str) -> Option<&'static str>) -> String {
    let of_a_word = |c: char| c.is_alphanumeric() || matches!(c, '-' | ':' | '.' | '_');
    let mut out = String::new();
    let mut rest = line.trim_end();
    while let Some(start) = rest.find(of_a_word) {
        out.push_str(&rest[..start]);
        let end = rest[start..]
            .find(|c| !of_a_word(c))
            .map_or(rest.len(), |n| start + n);
        let word = &rest[start..end];
        // A full stop or a colon beside it is no part of it.
        let core = word.trim_matches(['.', ':']);
        match place(core) {
            Some(place) => out.push_str(&word.replacen(core, place, 1)),
            None => out.push_str(word),
        }
        rest = &rest[end..];
    }
    out + rest
}

fn name(word: &str) -> Option<&'static str> {
    if word.parse::<jiff::Timestamp>().is_ok() {
        Some("<time>")
    } else if word.parse::<std::net::SocketAddr>().is_ok() {
        Some("<address>")
    } else if word.parse::<uuid::Uuid>().is_ok() {
        Some("<id>")
    } else if word.parse::<penstock::change::Position>().is_ok() {
        Some("<position>")
    } else {
        None
    }
}

/// What differs from run to run is a placeholder: times, addresses, ids.
pub(crate) fn without_chance(line: &str) -> String {
    with_places(line, name)
}

/// … and numbers, with or without a unit behind; and so are the widths of columns.
pub(crate) fn without_numbers(line: &str) -> String {
    let units = [
        "ns", "µs", "us", "ms", "s", "m", "h", "B", "kB", "MB", "KiB", "MiB",
    ];
    let number = |word: &str| {
        let bare = word.trim_end_matches(|c: char| c.is_alphabetic());
        let unit = &word[bare.len()..];
        let is_one = !bare.is_empty() && bare.parse::<f64>().is_ok();
        (is_one && (unit.is_empty() || units.contains(&unit))).then_some("<n>")
    };
    let line = line.replace("localhost:", "127.0.0.1:");
    let placed = with_places(&line, |word| name(word).or_else(|| number(word)));
    let words: Vec<&str> = placed.split_whitespace().collect();
    words.join(" ")
}

/// Whether a line is what was shown; `…` stands for anything.
fn is_line(shown: &str, real: &str) -> bool {
    let Some((first, others)) = shown.split_once('…') else {
        return shown == real;
    };
    let (middle, last) = others.rsplit_once('…').unwrap_or(("", others));
    let Some(mut rest) = real.strip_prefix(first) else {
        return false;
    };
    for part in middle.split('…') {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Whether lines are those that were shown; a line of `…` stands for any, and so does the end of what was shown. Both
/// have placeholders for what differs.
pub(crate) fn is_shown(shown: &[String], real: &[String]) -> bool {
    match shown.split_first() {
        None => true,
        Some((line, rest)) if line.trim() == "…" => {
            (0..=real.len()).any(|skipped| is_shown(rest, &real[skipped..]))
        }
        Some((line, rest)) => real
            .split_first()
            .is_some_and(|(first, others)| is_line(line, first) && is_shown(rest, others)),
    }
}

#[test]
fn what_was_shown_is_found_again_and_nothing_else() {
    let real = [
        "orders 0.1.0 at 127.0.0.1:99 since 2026-11-24T05:14:28Z",
        "a line",
        "{\"id\":\"65dbcd72-e456-469d-a9f2-60882d0b14c9\",\"n\":1}",
    ];
    let is_by = |places: fn(&str) -> String, shown: &[&str]| {
        let all = |lines: &[&str]| lines.iter().map(|l| places(l)).collect::<Vec<_>>();
        is_shown(&all(shown), &all(&real))
    };
    let is = |shown: &[&str]| is_by(without_chance, shown);
    assert!(is(&[
        "orders 0.1.0 at 10.0.0.1:4 since 2025-01-01T00:00:00.5Z",
        "a line"
    ]));
    let other = "{\"id\":\"5b6962dd-3f90-4c93-8f61-eabfa4a803e2\",\"n\":2}";
    let open = "{\"id\":\"5b6962dd-3f90-4c93-8f61-eabfa4a803e2\",…}";
    assert!(is(&["orders … since …", "…", open]));
    assert!(is_line("[{…},…]", "[{\"a\":1},{\"b\":2}]"));
    assert!(!is_line("[{…}", "[{\"a\":1}]"));
    assert!(!is(&["orders … since …", "…", other]));
    assert!(is_by(
        without_numbers,
        &["orders   0.1.0 at … since …", "…", other]
    ));
    assert!(!is(&["orders 0.1.1 …"]));
    assert!(!is(&["orders …", "another line"]));
    assert!(!is(&["a line"]));
}

#[test]
fn a_step_is_a_command_with_its_lines() {
    let page =
        "text\n```console\n$ a 'b\nc' # no\nsaid\n\nmore\n$ d # exits 3\n```\n```\nnobody's\n```\n";
    let steps = steps(page);
    assert_eq!(steps.len(), 2);
    assert_eq!(steps[0].command, "a 'b\nc' # no");
    assert_eq!(steps[0].shown, ["said", "", "more"]);
    assert_eq!(steps[0].lines, (4, 7));
    assert_eq!((&*steps[1].command, steps[1].exits), ("d", 3));
    assert!(steps[1].shown.is_empty());
}
