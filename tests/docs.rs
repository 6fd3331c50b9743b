//! The documentation says what is there: its links lead somewhere, its commands are commands, and every page is in the
//! book's table of contents.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::process::{LONG, World};

#[path = "docs/shown.rs"]
mod shown;
#[path = "docs/tour.rs"]
mod tour;
#[path = "docs/pages.rs"]
mod typed;

/// All pages that people read.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![
        PathBuf::from("README.md"),
        "ARCHITECTURE.md".into(),
        "CHANGELOG.md".into(),
        "benches/README.md".into(),
    ];
    for folder in ["docs", "docs/plugins"] {
        let docs = std::fs::read_dir(folder).unwrap();
        pages.extend(docs.map(|entry| entry.unwrap().path()));
    }
    pages.retain(|page| page.extension().is_some_and(|e| e == "md") && page.is_file());
    pages.sort();
    pages
}

/// The text with and without what stands between lines of three backticks.
fn parts(text: &str) -> (Vec<&str>, Vec<&str>) {
    let mut code = false;
    let (mut blocks, mut prose) = (Vec::new(), Vec::new());
    for line in text.lines() {
        match line.trim_start().starts_with("```") {
            true => code = !code,
            false if code => blocks.push(line),
            false => prose.push(line),
        }
    }
    (blocks, prose)
}

/// What stands between `open` and `close`.
fn between<'a>(line: &'a str, open: &str, close: char) -> Vec<&'a str> {
    let ends = |rest: &'a str| rest.find(close).map(|end| &rest[..end]);
    line.split(open).skip(1).filter_map(ends).collect()
}

/// A heading's anchor, as GitHub and mdBook make it.
fn anchor(heading: &str) -> String {
    let kept = |c: char| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
        _ => None,
    };
    heading
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(kept)
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let folder = page.parent().unwrap();
        for link in parts(&text)
            .1
            .iter()
            .flat_map(|line| between(line, "](", ')'))
        {
            if link.starts_with("http") {
                continue;
            }
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                page.clone()
            } else {
                folder.join(file)
            };
            if !target.exists() {
                wrong.push(format!("{}: {link}", page.display()));
                continue;
            }
            if !fragment.is_empty() {
                let there = std::fs::read_to_string(&target).unwrap();
                let headings: BTreeSet<String> = parts(&there)
                    .1
                    .iter()
                    .filter_map(|line| line.strip_prefix('#'))
                    .map(|rest| anchor(rest.trim_start_matches('#')))
                    .collect();
                if !headings.contains(fragment) {
                    wrong.push(format!("{}: {link}: no such heading", page.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// `penstock …` in a block of code, or between backticks in a sentence.
#[test]
fn commands_are_commands() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in pages() {
        // What was said at the time.
        if page == Path::new("CHANGELOG.md") {
            continue;
        }
        let text = std::fs::read_to_string(&page).unwrap();
        let (blocks, prose) = parts(&text);
        let typed = blocks
            .iter()
            .map(|line| line.trim_start().trim_start_matches("$ "));
        let quoted = prose
            .iter()
            .flat_map(|line| line.split('`').skip(1).step_by(2));
        for line in typed.chain(quoted) {
            let Some(rest) = line.strip_prefix("penstock ") else {
                continue;
            };
            seen += 1;
            if let Err(error) = is_a_command(rest) {
                wrong.push(format!("{}: penstock {rest}: {error}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > 10, "only {seen} commands were found");
}

/// Whether these words, up to a comment or another command, are what the command line takes: alternatives (`a | b`),
/// placeholders (`<stage>`), options (`[--dry-run]`) and dots are allowed for.
fn is_a_command(line: &str) -> Result<(), String> {
    let end = line.find(['#', ';', '>']).filter(|_| !line.contains('<'));
    let line = end.map_or(line, |end| &line[..end]);
    let mut at = penstock::cli::command();
    at.build();
    let mut before: Option<clap::Command> = None;
    let mut alternative = false;
    for word in line.split_whitespace() {
        let word = word.trim_matches(['[', ']', ',', '.']);
        if word.is_empty() || word == "…" {
            continue;
        }
        if word == "|" {
            // A pipe into another program, or another subcommand of the same.
            alternative = true;
            continue;
        }
        if word.starts_with('-') {
            let name = word.split('=').next().unwrap_or(word);
            let known = at.get_arguments().any(|arg| {
                arg.get_long()
                    .is_some_and(|long| name == format!("--{long}"))
                    || arg
                        .get_short()
                        .is_some_and(|short| name == format!("-{short}"))
            });
            if !known {
                return Err(format!("no option {name}"));
            }
            continue;
        }
        if alternative {
            alternative = false;
            match before.take() {
                Some(parent) if parent.get_name() != "penstock" => at = parent,
                _ => return Ok(()),
            }
        }
        match at.find_subcommand(word).cloned() {
            Some(next) => before = Some(std::mem::replace(&mut at, next)),
            None if at.has_subcommands() => return Err(format!("no subcommand {word}")),
            None => {}
        }
    }
    Ok(())
}

/// All that mdBook needs of it, but mdBook itself: it leaves out a page that its contents lack, and makes an empty one of
/// one that they name and that is not there (`links_lead_somewhere` sees that).
#[test]
fn every_page_is_in_the_table_of_contents() {
    let contents = std::fs::read_to_string("docs/SUMMARY.md").unwrap();
    let listed: BTreeSet<&str> = contents
        .lines()
        .flat_map(|line| between(line, "](", ')'))
        .collect();
    for page in pages() {
        let Ok(name) = page.strip_prefix("docs") else {
            continue;
        };
        let name = name.to_str().unwrap();
        assert!(
            name == "SUMMARY.md" || listed.contains(name),
            "docs/SUMMARY.md lacks {name}"
        );
    }
}

/// What of the commands only looks, and so can be run against any pipeline that is well.
const LOOKS: &[&str] = &[
    "status",
    "health",
    "reloads",
    "config",
    "validate",
    "schema",
    "completions",
    "doctor",
    "breaker list",
    "dead-letters list",
    "checkpoint show",
    "man",
];

/// Those of them that pages show in a block of code are run as they stand there, by a shell, against a pipeline that is
/// well. (docs/plugins.md is run as a whole, by tests/workbench.rs; docs/commands.md and docs/endpoints.md by tests/docs/pages.rs.)
#[tokio::test(flavor = "multi_thread")]
async fn commands_that_only_look_run_as_they_stand() {
    let world = World::new("").await;
    let running = world.start(1);
    running.await_line("all supervised stages started", LONG);
    let folder = testkit::penstock();
    let folder = folder.parent().expect("a folder");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut ran = BTreeSet::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let typed_elsewhere = ["CHANGELOG.md", "plugins.md", "commands.md", "endpoints.md"];
        if typed_elsewhere.iter().any(|other| page.ends_with(other)) {
            continue;
        }
        for line in parts(&text).0 {
            let line = line.trim_start().trim_start_matches("$ ");
            let Some(rest) = line.strip_prefix("penstock ") else {
                continue;
            };
            let looks = LOOKS.iter().any(|command| rest.starts_with(command));
            let endless = rest.contains("--watch") || rest.contains(['<', '>', '…', '|']);
            if !looks || endless || rest.contains("--config") || !ran.insert(rest.to_owned()) {
                continue;
            }
            let output = Command::new("sh")
                .args(["-c", line])
                .env("PATH", format!("{}:{path}", folder.display()))
                .env("PENSTOCK_CONFIG", world.config())
                .env("PENSTOCK_ADMIN__LISTEN", running.admin())
                .output()
                .expect("a shell");
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            assert!(
                output.status.success(),
                "{}: {line}\n{said}",
                page.display()
            );
        }
    }
    println!("run: {ran:#?}");
    assert!(ran.len() >= 5, "{ran:?}");
    running.stop_cleanly();
}

/// The book builds, where mdBook is.
#[test]
fn the_book_builds() {
    let here = Command::new("mdbook").arg("--version").output();
    if !here.is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: no mdbook here");
        return;
    }
    let book = tempfile::tempdir().unwrap();
    let built = Command::new("mdbook")
        .args(["build", "docs", "--dest-dir"])
        .arg(book.path())
        .output()
        .expect("it ran a moment ago");
    let said = [built.stdout, built.stderr].concat();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&said));
    assert!(book.path().join("tracing.html").is_file());
}

#[test]
fn what_is_no_command_is_found() {
    for right in [
        "status",
        "dead-letters list | show | replay | purge",
        "breaker reset <stage>",
        "init-schema [--dry-run]",
        "status | head",
    ] {
        assert_eq!(is_a_command(right), Ok(()), "{right}");
    }
    for wrong in [
        "state",
        "breaker open sink",
        "status --frequently",
        "dead-letters list | burn",
    ] {
        assert!(is_a_command(wrong).is_err(), "{wrong}");
    }
}
