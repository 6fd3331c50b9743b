//! Keeps the rules of the house that no lint keeps: who may import which driver, who may spawn, and what may not
//! be left behind. It reads the sources as text, without comments and without test code.

use std::path::{Path, PathBuf};

/// A rule: none of `needles` (whole words) in files below `within`, except below `except`.
struct Rule {
    why: &'static str,
    within: &'static [&'static str],
    except: &'static [&'static str],
    needles: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule {
        why: "only src/source/scylla, and the orders' store, import scylla",
        within: &["src"],
        // mod.rs names its own submodule.
        except: &[
            "src/source/scylla",
            "src/source/mod.rs",
            "src/orders/store.rs",
        ],
        needles: &["scylla::", "use scylla"],
    },
    Rule {
        why: "only src/sink/redpanda imports rdkafka",
        within: &["src"],
        except: &["src/sink/redpanda"],
        needles: &["rdkafka::", "use rdkafka"],
    },
    Rule {
        why: "only src/transform/wasm imports wasmtime",
        within: &["src"],
        except: &["src/transform/wasm"],
        needles: &["wasmtime::", "use wasmtime"],
    },
    Rule {
        why: "policies do no I/O and have no clock but tokio's",
        within: &["src/policy"],
        except: &[],
        needles: &[
            "std::net",
            "std::fs",
            "std::process",
            "tokio::net",
            "tokio::fs",
            "tokio::process",
            "reqwest",
        ],
    },
    Rule {
        why: "the policies' state machines are pure: they are handed the time",
        within: &["src/policy"],
        except: &["src/policy/stage.rs"],
        needles: &["Instant::now", "SystemTime", "tokio", "rand::"],
    },
    Rule {
        why: "only the coordinator spawns",
        within: &["src"],
        except: &[
            "src/coordinator",
            "src/main.rs",
            // A terminal's own thread, which ends with it, or is left behind: it may take nothing for ever.
            "src/cli/terminal.rs",
            // A producer's thread for its reports, which ends with it.
            "src/sink/redpanda/polling.rs",
        ],
        needles: &[
            "tokio::spawn",
            "task::spawn",
            "thread::spawn",
            "thread::Builder",
        ],
    },
    Rule {
        why: "an async lock or a semaphore may be held by a future that nobody polls any more: ask by a child and \
              publish (see ARCHITECTURE.md), or say here why it cannot be",
        within: &["src"],
        except: &[
            // A child's receiver, for as long as the child lives: the next incarnation waits for its end.
            "src/coordinator/lane",
            "src/coordinator/dead_letters.rs",
            // One replay at a time; tried, not waited for.
            "src/coordinator/pipeline.rs",
            // Changes of one order, one after the other; each handler is polled by its connection until it ends.
            "src/orders/http.rs",
        ],
        needles: &[
            "tokio::sync::Mutex",
            "tokio::sync::RwLock",
            "tokio::sync::OnceCell",
            "Semaphore",
            ".lock().await",
            ".acquire()",
            ".acquire_owned()",
        ],
    },
    Rule {
        why: "nothing is left to be done later",
        within: &["src", "crates", "plugins", "xtask"],
        except: &[],
        needles: &["todo!", "unimplemented!", "dbg!"],
    },
    Rule {
        why: "what cannot fail says why (expect), what can is handled",
        within: &["src", "crates", "xtask"],
        except: &[],
        needles: &[".unwrap()"],
    },
];

/// The floors of `src`, from the ground up: a module knows those of the floors below its own, and nobody else.
const FLOORS: &[&[&str]] = &[
    &[
        "change",
        "cql",
        "crash",
        "finding",
        "histogram",
        "progress",
        "tls",
        "topic",
        "waits",
        "words",
    ],
    &["reach"],
    &["checkpoint", "policy"],
    &["config"],
    &["spans"],
    &["dead_letter", "source"],
    &["sink"],
    &["transform"],
    &["orders"],
    &["admin", "embedded", "workbench"],
    &["coordinator"],
    &["cli"],
];

/// Arrows that run up: from, to, and why. One that is gone is an error.
const UPWARDS: &[(&str, &str, &str)] = &[
    (
        "admin",
        "coordinator",
        "it is the coordinator's child, and shows what the coordinator's handle tells",
    ),
    (
        "orders",
        "coordinator",
        "it is the coordinator's child: scope, listener and serving are the coordinator's",
    ),
];

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// The modules of `src` that a line names: `crate::x`, and those in `crate::{x, y::z}`.
fn named(line: &str) -> Vec<&str> {
    let word = |text: &'_ str| {
        text.find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(text.len())
    };
    let mut found = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        // `$crate` in a macro is whoever calls it.
        if line[..at].ends_with('$') {
            continue;
        }
        match rest.strip_prefix('{') {
            Some(group) => {
                let group = group.split('}').next().unwrap_or(group);
                found.extend(group.split(',').map(|part| {
                    let part = part.trim();
                    &part[..word(part)]
                }));
            }
            None => found.push(&rest[..word(rest)]),
        }
    }
    found
}

/// The arrows of one file of `src` that do not run down; `used` notes the exceptions that it needed.
fn climbs(file: &str, text: &str, used: &mut [bool]) -> Vec<String> {
    let Some(module) = file.strip_prefix("src/") else {
        return Vec::new();
    };
    let module = module.split('/').next().unwrap_or(module);
    let module = module.strip_suffix(".rs").unwrap_or(module);
    if matches!(module, "lib" | "main") {
        return Vec::new();
    }
    let Some(own) = floor(module) else {
        return vec![format!("{file}: the module `{module}` has no floor yet")];
    };
    let mut wrong = Vec::new();
    for (number, line) in code(text) {
        for other in named(line) {
            if other == module || floor(other).is_none_or(|other| other < own) {
                continue;
            }
            match UPWARDS
                .iter()
                .position(|(from, to, _)| *from == module && *to == other)
            {
                Some(exception) => used[exception] = true,
                None => wrong.push(format!(
                    "{file}:{number}: `{module}` knows `{other}`, which is not below it"
                )),
            }
        }
    }
    wrong
}

/// Public names that nothing but tests uses, and why they are there all the same.
const FOR_TESTS: &[(&str, &str)] = &[("CODES", "a test holds every code against the fixtures")];

/// The public names that a source declares: `pub fn x`, `pub struct X` and so on.
fn declared<'a>(lines: &[(usize, &'a str)]) -> Vec<(usize, &'a str)> {
    const KINDS: [&str; 6] = ["fn", "struct", "enum", "const", "type", "trait"];
    let mut found = Vec::new();
    for (number, line) in lines {
        let mut words = line.split_whitespace();
        if !words
            .next()
            .is_some_and(|w| w == "pub" || w.starts_with("pub("))
        {
            continue;
        }
        let mut words = words.skip_while(|w| matches!(*w, "async" | "const" | "unsafe" | "super)"));
        let kind = match words.next() {
            Some(kind) if KINDS.contains(&kind) => words.next(),
            // `const` was skipped with those that stand before `fn`.
            other => other.filter(|w| w.ends_with(':')),
        };
        let name = kind.map(|k| {
            let end = k.find(|c: char| !(c.is_alphanumeric() || c == '_'));
            &k[..end.unwrap_or(k.len())]
        });
        found.extend(name.filter(|n| !n.is_empty()).map(|name| (*number, name)));
    }
    found
}

#[test]
fn production_uses_what_it_declares() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    let texts: Vec<(PathBuf, String)> = files
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("a source is text");
            (path, text)
        })
        .collect();
    let lines: Vec<(&PathBuf, Vec<(usize, &str)>)> = texts
        .iter()
        .map(|(path, text)| (path, code(text)))
        .collect();
    let mut seen = std::collections::HashMap::<&str, usize>::new();
    for (_, line) in lines.iter().flat_map(|(_, lines)| lines) {
        for word in line.split(|c: char| !(c.is_alphanumeric() || c == '_')) {
            *seen.entry(word).or_default() += 1;
        }
    }
    let mut used = vec![false; FOR_TESTS.len()];
    let mut wrong = Vec::new();
    for (path, lines) in &lines {
        for (number, name) in declared(lines) {
            if seen[name] > 1 {
                continue;
            }
            match FOR_TESTS.iter().position(|(known, _)| *known == name) {
                Some(exception) => used[exception] = true,
                None => wrong.push(format!(
                    "{}:{number}: only tests use `{name}`: take it out, or let production use it",
                    path.strip_prefix(root)
                        .expect("it is below the root")
                        .display()
                )),
            }
        }
    }
    for ((name, _), used) in FOR_TESTS.iter().zip(used) {
        if !used {
            wrong.push(format!("nothing needs the exception for `{name}`"));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    assert_eq!(
        declared(&[
            (1, "    pub async fn ask(&self)"),
            (2, "pub const MOST: u32 = 1;"),
            (3, "pub(super) struct A {"),
            (4, "fn b()")
        ]),
        [(1, "ask"), (2, "MOST"), (3, "A")]
    );
}

/// Exceptions: file, a part of the line, and why it is right there. One that no line needs any more is an error.
const ALLOWED: &[(&str, &str, &str)] = &[(
    "src/policy/breaker.rs",
    "const { NonZeroU32::new(",
    "a literal, checked while compiling",
)];

/// The lines that count, with their numbers: no comments, no item under `#[cfg(test)]`.
fn code(text: &str) -> Vec<(usize, &str)> {
    let mut lines = text.lines().enumerate().map(|(n, line)| (n + 1, line));
    let mut kept = Vec::new();
    while let Some((number, line)) = lines.next() {
        if line.trim_start() == "#[cfg(test)]" {
            // To the end of the item: rustfmt puts its last line at the attribute's own indentation.
            let indent = line.len() - line.trim_start().len();
            for (_, line) in lines.by_ref() {
                let own = line.len() - line.trim_start().len() == indent;
                if own && (line.ends_with('}') || line.ends_with(';')) {
                    break;
                }
            }
        } else if !line.trim_start().starts_with("//") {
            kept.push((number, line));
        }
    }
    kept
}

/// Whether `needle` stands in `line` and is not the end of a longer name (`my_scylla::`).
fn stands_in(line: &str, needle: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(needle).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + needle.len()..].chars().next();
        let bounded = |edge: Option<char>, own: Option<char>| {
            !(own.is_some_and(word) && edge.is_some_and(word))
        };
        bounded(before, needle.chars().next()) && bounded(after, needle.chars().next_back())
    })
}

fn below(file: &str, folders: &[&str]) -> bool {
    folders.iter().any(|folder| {
        file == *folder
            || file
                .strip_prefix(folder)
                .is_some_and(|r| r.starts_with('/'))
    })
}

/// What is wrong with one file; `used` notes the exceptions that it needed.
fn check(file: &str, text: &str, used: &mut [bool]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, line) in code(text) {
        for rule in RULES {
            if !below(file, rule.within) || below(file, rule.except) {
                continue;
            }
            for needle in rule.needles {
                if !stands_in(line, needle) {
                    continue;
                }
                let allowed =
                    |(at, part, _): &(&str, &str, &str)| *at == file && line.contains(part);
                match ALLOWED.iter().position(allowed) {
                    Some(exception) => used[exception] = true,
                    None => wrong.push(format!("{file}:{number}: `{needle}`: {}", rule.why)),
                }
            }
        }
    }
    wrong
}

/// Every Rust source below `folder` that is not test code.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("its entries too").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !matches!(name.as_ref(), "target" | "tests" | "benches" | "examples") {
                sources(&path, found);
            }
        } else if name.ends_with(".rs") && name != "tests.rs" {
            found.push(path);
        }
    }
}

/// A file that is longer holds two ideas, or its tests, which may lie beside it.
const LONGEST: usize = 600;

#[test]
fn no_file_of_the_program_is_too_long() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    let long: Vec<String> = files
        .iter()
        .filter_map(|path| {
            let text = std::fs::read_to_string(path).expect("a source is text");
            let lines = text.lines().count();
            (lines > LONGEST).then(|| format!("{}: {lines} lines", path.display()))
        })
        .collect();
    assert!(long.is_empty(), "longer than {LONGEST} lines: {long:#?}");
}

#[test]
fn the_rules_of_the_house_hold() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "crates", "plugins", "xtask"] {
        sources(&root.join(folder), &mut files);
    }
    assert!(files.len() > 20, "found only {} sources", files.len());
    let mut used = vec![false; ALLOWED.len()];
    let mut up = vec![false; UPWARDS.len()];
    let mut wrong = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).expect("a source is text");
        let file = path.strip_prefix(root).expect("it is below the root");
        wrong.extend(check(&file.to_string_lossy(), &text, &mut used));
        wrong.extend(climbs(&file.to_string_lossy(), &text, &mut up));
    }
    for ((file, part, _), used) in ALLOWED.iter().zip(used) {
        if !used {
            wrong.push(format!("{file}: nothing needs the exception for `{part}`"));
        }
    }
    for ((from, to, _), used) in UPWARDS.iter().zip(up) {
        if !used {
            wrong.push(format!("nothing needs the arrow from {from} up to {to}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_floors_are_drawn_as_they_are_kept() {
    let page = std::fs::read_to_string("ARCHITECTURE.md").unwrap();
    let (_, drawn) = page.split_once("```\ncli\n").expect("a drawing");
    let (drawn, _) = drawn.split_once("```").expect("its end");
    let drawn: Vec<Vec<&str>> = ["cli"]
        .into_iter()
        .chain(drawn.lines())
        .map(|line| line.split_whitespace().collect())
        .collect();
    let kept: Vec<&[&str]> = FLOORS.iter().rev().copied().collect();
    assert_eq!(drawn, kept);
}

#[test]
fn the_floors_find_what_climbs() {
    let found = |file: &str, text: &str| climbs(file, text, &mut vec![false; UPWARDS.len()]).len();
    assert_eq!(
        found("src/policy/rate.rs", "use crate::config::Settings;"),
        1
    );
    assert_eq!(found("src/config/keys.rs", "use crate::policy::rate;"), 0);
    assert_eq!(
        found("src/config/mod.rs", "use crate::sink::redpanda::x;"),
        1
    );
    assert_eq!(
        found("src/sink/mod.rs", "use crate::{change, transform::Chain};"),
        1
    );
    assert_eq!(found("src/sink/mod.rs", "use crate::{change, config};"), 0);
    assert_eq!(found("src/sink/mod.rs", "// crate::transform"), 0);
    assert_eq!(
        found("src/words.rs", "impl $crate::words::Word for $name {"),
        0
    );
    assert_eq!(found("src/attic.rs", ""), 1);
    assert_eq!(found("src/main.rs", "crate::cli::run()"), 0);
}

#[test]
fn the_rules_find_what_breaks_them() {
    let found = |file: &str, text: &str| check(file, text, &mut vec![false; ALLOWED.len()]).len();
    assert_eq!(found("src/sink/mod.rs", "use scylla::client::Session;"), 2);
    assert_eq!(found("src/source/scylla/mod.rs", "use scylla::Session;"), 0);
    assert_eq!(
        found("src/source/scylla2.rs", "a = scylla::Session::new()"),
        1
    );
    assert_eq!(
        found("src/embedded/mod.rs", "use scylla_double::Server;"),
        0
    );
    assert_eq!(found("src/checkpoint/mod.rs", "rdkafka::Offset::End"), 1);
    assert_eq!(found("src/transform/chain.rs", "x: wasmtime::Engine"), 1);
    assert_eq!(found("src/policy/rate.rs", "let now = Instant::now();"), 1);
    assert_eq!(found("src/sink/mod.rs", "    tokio::spawn(async {});"), 1);
    assert_eq!(found("src/coordinator/mod.rs", "tokio::spawn(x)"), 0);
    let lock = "a: tokio::sync::Mutex<u8>,\nlet a = a.lock().await;";
    assert_eq!(found("src/source/scylla/log.rs", lock), 2);
    assert_eq!(found("src/coordinator/lane", lock), 0);
    assert_eq!(
        found("src/source/mod.rs", "let _turn = turns.acquire().await;"),
        1
    );
    assert_eq!(found("crates/x/src/lib.rs", "todo!()"), 1);
    assert_eq!(found("src/lib.rs", "x.unwrap()"), 1);
    assert_eq!(found("src/lib.rs", "// x.unwrap()"), 0);
    assert_eq!(found("src/lib.rs", "x.unwrap_or_default()"), 0);
    let module = "#[cfg(test)]\nmod tests {\n    fn f() {\n        x.unwrap();\n    }\n}\n";
    assert_eq!(found("src/lib.rs", module), 0);
    assert_eq!(found("src/lib.rs", &format!("{module}x.unwrap()")), 1);
    let outside = "#[cfg(test)]\nmod tests;\nx.unwrap()";
    assert_eq!(found("src/lib.rs", outside), 1);
    let inner = "impl A {\n    #[cfg(test)]\n    fn a() {\n        x.unwrap();\n    }\n    fn b() {\n        x.unwrap();\n    }\n}";
    assert_eq!(found("src/lib.rs", inner), 1);
}

/// Offline, `cargo deny` asks for the crates of every platform, and a machine that has never built this has those of its
/// own alone.
#[test]
fn crates_of_every_platform_are_fetched_before_they_are_judged() {
    let script = std::fs::read_to_string(".ci/run").unwrap();
    let line = |what: &str| script.lines().position(|line| line.starts_with(what));
    let (fetched, judged) = (line("cargo fetch --locked"), line("cargo deny --offline"));
    assert!(fetched.is_some() && fetched < judged, "{script}");
}
