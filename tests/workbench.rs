//! The workbench from outside: in an empty folder, with nothing but the program, as docs/plugins.md has it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use testkit::machine::free_port;
use testkit::plugins;

#[path = "workbench/sdk.rs"]
mod sdk;

/// A command of the docs, and what they show of its output.
struct Step {
    command: String,
    exits: i32,
    shown: Vec<String>,
}

/// The commands of the blocks of ```console; what is to be added to a file (```toml title=…) is one, too.
fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    let mut added: Option<String> = None;
    for line in text.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
            if let Some(block) = added.take() {
                steps.push(Step {
                    command: format!("{block}END_OF_BLOCK"),
                    exits: 0,
                    shown: Vec::new(),
                });
            }
            let file = line.strip_prefix("```toml title=");
            added = file.map(|file| format!("cat >> {file} <<'END_OF_BLOCK'\n\n"));
        } else if let Some(block) = &mut added {
            block.push_str(line);
            block.push('\n');
        } else if inside && let Some(command) = line.strip_prefix("$ ") {
            let (command, exits) = match command.split_once(" # exits ") {
                Some((command, code)) => (command, code.parse().expect("an exit code")),
                None => (command, 0),
            };
            steps.push(Step {
                command: command.to_owned(),
                exits,
                shown: Vec::new(),
            });
        } else if inside && !line.is_empty() {
            let step = steps.last_mut().expect("a command before its output");
            step.shown.push(line.to_owned());
        }
    }
    steps
}

fn penstock_folder() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_penstock"));
    program.parent().expect("its folder").to_owned()
}

/// One that nobody else on this machine listens on.
fn admin_port() -> u16 {
    static PORT: OnceLock<u16> = OnceLock::new();
    *PORT.get_or_init(free_port)
}

/// `sh` as a newcomer has it, with the program on the path and nothing to be fetched.
fn sh(folder: &Path, command: &str) -> Output {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(penstock_folder()).chain(std::env::split_paths(&path));
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .current_dir(folder)
        .env("PATH", std::env::join_paths(all).expect("a path"))
        // Compiled once for all runs of this test; only the author's own crate is new each time.
        .env(
            "CARGO_TARGET_DIR",
            Path::new(env!("CARGO_TARGET_TMPDIR")).join("workbench"),
        )
        .env("CARGO_NET_OFFLINE", "true")
        // Several pipelines may run on this machine.
        .env(
            "PENSTOCK_ADMIN__LISTEN",
            format!("127.0.0.1:{}", admin_port()),
        )
        .env("PENSTOCK_ORDERS__LISTEN", "127.0.0.1:0");
    for variable in ["RUSTFLAGS", "PENSTOCK_CONFIG", "FAILPOINTS"] {
        shell.env_remove(variable);
    }
    shell.output().expect("sh runs")
}

#[test]
fn every_command_of_the_docs_does_what_they_say() {
    let docs = include_str!("../docs/plugins.md");
    let empty = tempfile::tempdir().expect("a folder");
    let mut folder = empty.path().to_owned();
    let steps = steps(docs);
    assert!(steps.len() > 10, "found {} commands", steps.len());
    for step in steps {
        if let Some(to) = step.command.strip_prefix("cd ") {
            folder = folder.join(to);
            continue;
        }
        let output = sh(&folder, &step.command);
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(
            output.status.code(),
            Some(step.exits),
            "$ {}\n{said}",
            step.command
        );
        for line in &step.shown {
            assert!(
                said.contains(line.trim()),
                "$ {}\nnot said: {line}\n{said}",
                step.command
            );
        }
    }
    let schema = std::fs::read_to_string(folder.join("schema.json")).expect("the schema");
    let schema: serde_json::Value = serde_json::from_str(&schema).expect("JSON");
    let settings =
        &schema["properties"]["transform"]["items"]["allOf"][0]["then"]["properties"]["settings"];
    assert_eq!(settings["properties"]["column"]["default"], "event_type");
    assert_eq!(settings["additionalProperties"], false);
}

#[test]
fn what_is_missing_is_said_with_how_to_get_it() {
    let empty = tempfile::tempdir().expect("a folder");
    let said = |command: &str| {
        let output = sh(empty.path(), command);
        assert_eq!(output.status.code(), Some(1), "{command}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said("penstock plugin build").contains("`penstock plugin new <name>` writes one"));
    assert!(said("penstock plugin new Bad_Name").contains("expected lower-case letters"));
    assert!(said("penstock plugin new Bad_Name").contains("e.g. bad-name"));
    assert!(said("penstock plugin new fn").contains("a word of the languages themselves"));
    assert!(said("penstock plugin new serde").contains("a crate that the SDK is built of"));
    assert!(said("touch taken; penstock plugin new taken").contains("is there already"));
    let no_rust = "mkdir p; printf '[package]\\nname=\"p\"\\n' > p/Cargo.toml; RUSTC=/nowhere/rustc penstock plugin build p";
    assert!(said(no_rust).contains("install Rust by https://rustup.rs"));
    let no_target = "printf '#!/bin/sh\\necho /nowhere\\n' > rustc; chmod +x rustc; \
                     printf '#!/bin/sh\\nexit 1\\n' > rustup; chmod +x rustup; \
                     PATH=$PWD:$PATH RUSTC=$PWD/rustc penstock plugin build p";
    assert!(said(no_target).contains("rustup target add wasm32-unknown-unknown"));
}

/// A process that ends with its test, whatever becomes of that.
struct Ends(std::process::Child);

impl Drop for Ends {
    fn drop(&mut self) {
        // The one that it watches ends once nobody takes what it says.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What it says is no source, whatever the file is called and whoever writes it down: it would build again for what it has just
/// said.
#[test]
fn a_watched_build_that_talks_into_its_own_folder_builds_once_a_save() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("go.mod"), "module local/watched\n").unwrap();
    std::fs::write(folder.path().join("noise.txt"), "").unwrap();
    let said = folder.path().join("said.txt");
    let mut build = Command::new(env!("CARGO_BIN_EXE_penstock"))
        .args(["plugin", "build", "--watch"])
        .current_dir(folder.path())
        // Each build fails at once, and says so.
        .env("GO", "false")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let talk = build.stderr.take().unwrap();
    let _build = Ends(build);
    let _tee = Ends(
        Command::new("tee")
            .arg(&said)
            .stdin(talk)
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let builds = || {
        let said = std::fs::read_to_string(&said).unwrap_or_default();
        said.lines().filter(|l| l.starts_with("error: ")).count()
    };
    let until = |n: usize| {
        let begun = Instant::now();
        while builds() < n {
            assert!(begun.elapsed() < Duration::from_secs(60), "no build {n}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until(1);
    for n in 0..5 {
        std::fs::write(folder.path().join("noise.txt"), format!("line {n}\n")).unwrap();
        std::thread::sleep(Duration::from_millis(250));
    }
    let unasked = builds();
    std::fs::write(folder.path().join("main.go"), "package main\n").unwrap();
    until(2);
    let said = std::fs::read_to_string(&said).unwrap();
    assert_eq!(unasked, 1, "{said}");
}

/// The same transform in every language passes the same cases, and what it does to its host is contained in the same way.
/// Where a language's tools are not there, that is said.
mod languages {
    use std::time::Duration;

    use penstock::change::Batch;
    use penstock::config::settings::OnError;
    use penstock::transform::{Chain, Plugin, Prepared};
    use testkit::transforms::{BatchBuilder, Cell, engine, settings, table, transform};

    use super::*;

    #[test]
    fn rust() {
        passes(
            "rust",
            "src/lib.rs",
            include_str!("workbench/contract.rs"),
            "src/lib.rs:",
        );
    }

    #[test]
    fn go() {
        passes(
            "go",
            "main.go",
            include_str!("workbench/contract.go"),
            "main.go:",
        );
    }

    #[test]
    fn javascript() {
        passes(
            "js",
            "index.js",
            include_str!("workbench/contract.js"),
            "index.js:",
        );
    }

    #[test]
    fn python() {
        passes(
            "python",
            "app.py",
            include_str!("workbench/contract.py"),
            "app.py:",
        );
    }

    fn passes(language: &str, main: &str, source: &str, place: &str) {
        // Kept between runs, with what was fetched into it: only what has changed is built.
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("languages")
            .join(language);
        std::fs::create_dir_all(&kept).expect("a folder");
        let said = |output: Output| {
            let text = [output.stdout, output.stderr].concat();
            (
                output.status.code(),
                String::from_utf8_lossy(&text).into_owned(),
            )
        };
        let folder = kept.join("contract");
        // What a project begins with today, over the one of before.
        let anew = format!(
            "rm -rf anew && penstock plugin new anew/contract --lang {language} && cp -r anew/. . && rm -rf anew"
        );
        let (code, text) = said(sh(&kept, &anew));
        assert_eq!(code, Some(0), "{text}");
        std::fs::write(folder.join(main), source).expect("the source");
        for (name, cases) in [
            ("contract.toml", include_str!("workbench/contract.toml")),
            ("values.json", include_str!("workbench/values.json")),
        ] {
            std::fs::write(folder.join("cases").join(name), cases).expect("the cases");
        }
        let sources = said(sh(
            &folder,
            "find . -path ./target -prune -o -path ./node_modules -prune -o -path ./.venv -prune -o -type f ! -name '*.wasm' -print0 \
             | sort -z | xargs -0 cat",
        ))
        .1;
        // The unit tests of a project as it was written: no host, and no more than the language itself.
        let (unit, passed) = match language {
            "go" => ("go vet ./... && go test ./...", "ok  "),
            "js" => ("npm test", "# pass 2"),
            "python" => ("python3 -B -m unittest", "Ran 2 tests"),
            _ => ("true", ""),
        };
        let anew = format!(
            "rm -rf unit && penstock plugin new unit/my-filter --lang {language} && cd unit/my-filter && {unit}"
        );
        let (code, text) = said(sh(&kept, &anew));
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains(passed), "{text}");
        if language == "js" {
            // The engine says of a source that it cannot read neither file nor line; that takes no package.
            let (code, text) = said(sh(
                &kept,
                "cd unit/my-filter && echo 'out.forward(;' >> index.js && node penstock/build.mjs out.wasm",
            ));
            assert_eq!(code, Some(1), "{text}");
            let source =
                std::fs::read_to_string(kept.join("unit/my-filter/index.js")).expect("the source");
            let place = format!(
                "index.js:{}\nout.forward(;\n            ^",
                source.lines().count()
            );
            for line in [place.as_str(), "SyntaxError"] {
                assert!(text.contains(line), "not said: {line}\n{text}");
            }
            assert!(!text.contains("    at "), "{text}");
        }
        // What the language's own packages are is fetched where that is asked for; then nothing may be missing.
        let fetched = std::env::var_os("PENSTOCK_TEST_FETCH").is_some();
        let fetch = match language {
            "js" => "npm install --no-audit --no-fund",
            "python" => {
                "python3 -m venv .venv && .venv/bin/pip install --quiet componentize-py==0.25.1"
            }
            _ => "true",
        };
        if fetched {
            let (code, text) = said(sh(&folder, fetch));
            assert_eq!(code, Some(0), "{text}");
        }
        let stamp = folder.join("target/built-of");
        let file = folder.join("contract.wasm");
        if !file.is_file() || std::fs::read_to_string(&stamp).ok().as_ref() != Some(&sources) {
            let (code, text) = said(sh(&folder, "penstock plugin build"));
            if text.contains(" was not found: ") && !fetched {
                eprintln!("{language} is skipped: {}", text.trim());
                return;
            }
            assert_eq!(code, Some(0), "{text}");
            std::fs::create_dir_all(folder.join("target")).expect("a folder");
            std::fs::write(&stamp, &sources).expect("the stamp");
        }
        let (code, text) = said(sh(&folder, "penstock plugin test contract.wasm"));
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("12 passed"), "{text}");
        let (code, text) = said(sh(&folder, "penstock plugin inspect contract.wasm"));
        assert_eq!(code, Some(0), "{text}");
        for line in [
            "plugin   contract 0.1.0",
            "settings topic: text, default \"out\"; where to",
        ] {
            assert!(text.contains(line), "not said: {line}\n{text}");
        }

        if language == "rust" {
            // What is no plugin is not put in the place of one.
            let (code, text) = said(sh(&folder, ": > src/lib.rs && penstock plugin build"));
            assert_eq!(code, Some(1), "{text}");
            assert!(
                text.contains("is no plugin, and was not put in place"),
                "{text}"
            );
        }

        contained(language, &file, place);
        if matches!(language, "js" | "python") {
            // The form for development does and says the same, and an edit makes no more of it anew than its source.
            let (code, text) = said(sh(&folder, &AN_EDIT.replace("MAIN", main)));
            assert_eq!(code, Some(0), "{text}");
            assert_eq!(
                text.matches("the engine for development is made").count(),
                1,
                "{text}"
            );
            assert_eq!(text.matches("\nbuilt ").count(), 2, "{text}");
            let (code, text) = said(sh(&folder, "penstock plugin test development.wasm"));
            assert_eq!(code, Some(0), "{text}");
            assert!(text.contains("12 passed"), "{text}");
            let (_, text) = said(sh(&folder, "penstock plugin inspect development.wasm"));
            assert!(text.contains("form     for development"), "{text}");
            contained(language, &folder.join("development.wasm"), place);
        }
    }

    /// A first build, an edit that is wrong, which is said and changes nothing, and one that is not.
    const AN_EDIT: &str = "
        rm -f target/loader.* development.wasm watch.txt; : > watch.txt
        penstock plugin build --watch --out development.wasm >> watch.txt 2>&1 &
        pid=$!
        wait_for() { until grep -q \"$1\" watch.txt; do kill -0 $pid || exit 1; sleep 0.1; done; }
        wait_for '^built '
        cp MAIN kept; before=$(cksum development.wasm)
        echo '%%%' >> MAIN
        wait_for '^error: '
        test \"$before\" = \"$(cksum development.wasm)\" || exit 2
        sed 's/asked to panic/was asked to panic/' kept > MAIN
        until test $(grep -c '^built ' watch.txt) = 2; do kill -0 $pid || exit 3; sleep 0.1; done
        kill $pid; cp kept MAIN; echo; cat watch.txt";

    /// What else a change can have a transform do, and what its refusal then says, whatever the language; none: it is not refused.
    const DEEDS: [(&str, &[&str]); 5] = [
        // A stack has an end: the language's own, the engine's, or that of memory.
        (
            "deep",
            &["stack", "recursion", "memory", "trapped", "deadline"],
        ),
        // There is nothing that could be ended: that is a trap, or no such word.
        ("exit", &["trapped", "process", "deadline"]),
        ("long error", &["long long"]),
        (
            "records",
            &["memory", "deadline", "for one change", "output"],
        ),
        ("talk", &[]),
    ];

    /// Nothing that it does costs more than its own change, and memory no more than its limit.
    fn costs_its_change(language: &str, chain: &mut Chain, batch: &dyn Fn(&[&str]) -> Batch) {
        for (deed, says) in DEEDS {
            let begun = Instant::now();
            let made = chain
                .process(batch(&["twice", deed, "twice"]))
                .expect("it goes on");
            let (took, memory) = (begun.elapsed(), chain.memory() >> 20);
            let errors: Vec<_> = made
                .rejected
                .iter()
                .map(|r| (r.source, r.error.as_str()))
                .collect();
            let error = match errors[..] {
                [] => "",
                [(1, error)] => error,
                _ => panic!("{language}, {deed}: {errors:?}"),
            };
            assert!(error.len() < 5_000, "{language}, {deed}: {}", error.len());
            let shown: String = error.chars().take(80).collect();
            let left_out = chain.reports()[0].lines_left_out;
            println!(
                "{language}, {deed}: {shown:?} after {took:.1?}, then {memory} MiB, {left_out} lines left out"
            );
            assert_eq!(
                error.is_empty(),
                says.is_empty(),
                "{language}, {deed}: {error}"
            );
            assert!(
                says.is_empty() || says.iter().any(|words| error.contains(words)),
                "{language}, {deed}: {error}"
            );
            let records = if says.is_empty() { 5 } else { 4 };
            assert_eq!(made.records.len(), records, "{language}, {deed}");
            assert!(memory <= 192, "{language}, {deed}: {memory} MiB");
        }
    }

    /// A panic has its place; a loop and a hoard cost their own change, and no other.
    fn contained(language: &str, file: &Path, place: &str) {
        let engine = engine();
        let plugin = Plugin::load(&engine, file).expect("it loads");
        let mut transform = transform("contract", OnError::DeadLetter, &[]);
        transform.limits.deadline = Duration::from_secs(2);
        transform.limits.memory = 192 << 20;
        let prepared = Prepared::new(&transform, plugin, &[]).expect("it starts");
        let live = tokio::sync::watch::channel(std::sync::Arc::new(settings(vec![transform])));
        let mut chain = Chain::new(vec![prepared], live.1);
        let of = table(
            1,
            "t",
            &[
                "id int primary",
                "what text",
                "n bigint",
                "at timestamp",
                "key uuid",
                "flag boolean",
            ],
        );
        let batch = |all: &[&str]| {
            let mut batch = BatchBuilder::new(&[&of]);
            for what in all {
                let cells = [
                    Cell::Set(&[0, 0, 0, 1]),
                    Cell::Set(what.as_bytes()),
                    Cell::Unchanged,
                    Cell::Unchanged,
                    Cell::Unchanged,
                    Cell::Unchanged,
                ];
                batch.insert(&of, &cells);
            }
            batch.finish()
        };
        let all = [
            "twice", "panic", "loop", "forward", "memory", "lie", "twice",
        ];
        let made = chain.process(batch(&all)).expect("it goes on");
        let refused: Vec<_> = made
            .rejected
            .iter()
            .map(|r| (r.source, r.error.as_str()))
            .collect();
        let [(1, panic), (2, endless), (4, hoard), (5, lie)] = refused[..] else {
            panic!("{refused:?}")
        };
        assert!(
            panic.contains(place) && panic.contains("asked to panic"),
            "{panic}"
        );
        assert!(endless.contains("deadline of 2s exceeded"), "{endless}");
        assert!(
            hoard.contains("memory") || hoard.contains("Memory"),
            "{hoard}"
        );
        assert!(lie.contains("output") || lie.contains("lie"), "{lie}");
        assert_eq!(made.records.len(), 2 + 1 + 2);
        costs_its_change(language, &mut chain, &batch);
    }
}

#[test]
fn the_stock_plugins_pass_their_cases() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in plugins::STOCK {
        let cases = root.join("plugins").join(name).join("cases");
        let file = plugins::plugin(name);
        let command = format!(
            "penstock plugin test {} --cases {}",
            file.display(),
            cases.display()
        );
        let output = sh(root, &command);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{name}\n{said}{errors}");
        // Every setting that it describes is in its page.
        let command = format!("penstock plugin inspect {} --json", file.display());
        let described: serde_json::Value =
            serde_json::from_slice(&sh(root, &command).stdout).expect("JSON");
        let page = root.join("docs/plugins").join(format!("{name}.md"));
        let page = std::fs::read_to_string(page).expect("its page");
        let settings = described["settings"].as_array().expect("settings");
        assert!(!settings.is_empty(), "{name} describes none");
        for setting in settings {
            let row = format!("| `{}` |", setting["name"].as_str().expect("a name"));
            assert!(page.contains(&row), "docs/plugins/{name}.md: no row {row}");
        }
    }
}

/// Every word of cases and of `[[tests]]`, over stock plugins; and what is said of tests that are wrong.
#[test]
fn cases_and_tests_of_a_chain_say_what_they_see() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for (name, text) in [
        ("pipeline.toml", include_str!("workbench/chain.toml")),
        ("wrong.toml", include_str!("workbench/wrong.toml")),
        ("recorded.jsonl", include_str!("workbench/recorded.jsonl")),
        ("cases/scope.toml", include_str!("workbench/scope.toml")),
        (
            "cases/recorded.jsonl",
            include_str!("workbench/recorded.jsonl"),
        ),
    ] {
        std::fs::create_dir_all(at("cases")).expect("a folder");
        std::fs::write(at(name), text).expect("a file");
    }
    for name in ["filter", "route"] {
        let to = at(&format!("{name}.wasm"));
        std::fs::copy(plugins::plugin(name), to).expect("the plugin");
    }
    let said = |command: &str| {
        let output = sh(folder.path(), command);
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    };
    let (code, text) = said("penstock plugin test filter.wasm");
    assert_eq!((code, text.contains("3 passed")), (Some(0), true), "{text}");
    let (code, text) = said("penstock test");
    assert_eq!((code, text.contains("2 passed")), (Some(0), true), "{text}");

    let (code, text) = said("penstock test -c pipeline.toml -c wrong.toml wrong");
    assert_eq!(code, Some(1), "{text}");
    for line in [
        "FAILED  all is wrong",
        "  at dead_letter:",
        "  + change 1: ",
        "  no dead letters were expected:",
        "  no records were expected from by-status, and there are 1",
        "`topic == 'x'` does not hold for a record of change 2: ",
        "1 failed, 0 passed",
    ] {
        assert!(text.contains(line), "not said: {line}\n{text}");
    }
    // Nothing that was tested is no success.
    let (code, text) = said("penstock test nowhere");
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("no test has \"nowhere\" in its name; there are: "),
        "{text}"
    );
    std::fs::write(at("none.toml"), "").expect("a file");
    std::fs::copy(at("pipeline.toml"), at("untested.toml")).expect("a file");
    let (code, text) =
        said("sed -i '/^\\[\\[tests/,$d' untested.toml; penstock test -c untested.toml");
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("there are no [[tests]] in untested.toml; one has"),
        "{text}"
    );
    let (code, text) = said("penstock test -c pipeline.toml refused");
    assert_eq!(
        (code, text.contains("1 passed, 1 left out")),
        (Some(0), true),
        "{text}"
    );
    let (code, text) = said("penstock plugin test filter.wasm condition");
    assert_eq!(
        (code, text.contains("1 passed, 2 left out")),
        (Some(0), true),
        "{text}"
    );
    let (code, text) = said("penstock plugin test filter.wasm nowhere");
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("no case has \"nowhere\" in its name; there are: a transform's"),
        "{text}"
    );
    let table = "[tables]\n\"shop.orders\" = \"id int primary\"\n[[case]]\nname = \"a\"\nsettings = { keep = \"true\" }\n";
    for (cases, says) in [
        ("", "empty.toml: it holds no case; one begins with [[case]]"),
        (
            "[[case]]\nname = \"a\"\n[[case]]\nname = \"a\"\n",
            "two cases are called \"a\": lines 2 and 4",
        ),
        (
            &format!("{table}changes = [{{ columns = {{ id = 1 }}, late = \"yes\" }}]\n"),
            "empty.toml: case \"a\": change 1: `late` is \"yes\": expected true or false",
        ),
        (
            &format!(
                "{table}changes = [{{ columns = {{ id = 1 }} }}, {{ operation = \"row-delete\" }}]\n"
            ),
            "empty.toml: case \"a\": change 2: column `id` has no value: every change has its partition key",
        ),
    ] {
        std::fs::write(at("empty.toml"), cases).expect("a file");
        let (code, text) = said("penstock plugin test filter.wasm --cases empty.toml");
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(says), "not said: {says}\n{text}");
    }
    // What nobody can run is said by name.
    let test = |rest: &str| {
        let columns = "tables = { \"shop.orders\" = \"id int primary\" }";
        let text = format!("[[tests]]\nname = \"bad\"\n{columns}\n{rest}\n");
        std::fs::write(at("bad.toml"), text).expect("a file");
        let (code, text) = said("penstock test -c pipeline.toml -c bad.toml bad");
        assert_eq!(code, Some(1), "{text}");
        text
    };
    let change = "changes = [{ columns = { id = 1 } }]";
    for (rest, says) in [
        (String::new(), "test \"bad\": it puts in no changes"),
        (
            format!("{change}\ninput_at = \"piad\""),
            "unknown transform \"piad\"; did you mean \"paid\"?",
        ),
        (
            format!("{change}\ninput_at = \"by-status\"\nexpect.paid = []"),
            "\"paid\" stands before the input",
        ),
        (
            format!("inputs = [{{ {change}, input_at = \"paid\" }}]"),
            "unknown field `input_at`",
        ),
        (
            format!("{change}\nholds.paid = [\"topic ==\"]"),
            "holds.paid: `topic ==`",
        ),
        (
            "changes_from = \"nowhere.jsonl\"".to_owned(),
            "nowhere.jsonl: ",
        ),
    ] {
        let text = test(&rest);
        assert!(text.contains(says), "not said: {says}\n{text}");
    }
}

/// The stock plugins are in the program: with nothing else each loads, is described, tested, measured and runs.
#[test]
fn stock_plugins_need_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = |command: &str| {
        let output = sh(folder.path(), command);
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    };
    let (code, text) = said("penstock plugin stock");
    assert_eq!(code, Some(0), "{text}");
    assert!(
        !text.contains("cargo xtask plugins"),
        "before this program was built they were not: {text}"
    );
    for name in plugins::STOCK {
        assert!(text.contains(&format!("stock:{name} ")), "{text}");
        let (code, text) = said(&format!("penstock plugin inspect stock:{name}"));
        assert_eq!(
            (code, text.contains("settings ")),
            (Some(0), true),
            "{name}: {text}"
        );
    }
    let (code, text) = said(
        "penstock plugin stock --out files && ls files | wc -l && penstock plugin inspect files/filter.wasm",
    );
    assert_eq!((code, text.contains("\n8\n")), (Some(0), true), "{text}");

    let file =
        |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("a file");
    file(
        "cases.toml",
        "[tables]\n\"shop.orders\" = \"id int primary\"\n[[case]]\nname = \"a\"\nsettings = { keep = \"columns.id > 1\" }\n\
         changes = [{ columns = { id = 1 } }, { columns = { id = 2 } }]\nexpect = [{ dropped = 1 }, { forwarded = 2 }]\n",
    );
    for (command, says) in [
        (
            "penstock plugin test stock:filter --cases cases.toml",
            "1 passed",
        ),
        (
            "penstock plugin run cases.toml stock:filter --setting keep=columns.id>1",
            "{\"forwarded\":2}",
        ),
        (
            "penstock plugin bench stock:filter --changes cases.toml --setting keep=true --for 10ms",
            "of memory at most",
        ),
    ] {
        let (code, text) = said(&command.replace("keep=columns.id>1", "'keep=columns.id>1'"));
        assert_eq!(
            (code, text.contains(says)),
            (Some(0), true),
            "{command}: {text}"
        );
    }
    let (code, text) = said("penstock plugin inspect filter");
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("did you mean `stock:filter`, which needs no file?"),
        "{text}"
    );

    let pipeline = |settings: &str| {
        let chain = include_str!("workbench/chain.toml");
        let (head, _) = chain.split_once("[[transform]]").expect("transforms");
        file(
            "pipeline.toml",
            &format!(
                "{head}[[transform]]\nname = \"paid\"\nplugin = \"stock:filter\"\nsettings = {settings}\n"
            ),
        );
        said("penstock validate")
    };
    let (code, text) = pipeline("{ keep = \"op == 'insert'\" }");
    assert_eq!(code, Some(0), "{text}");
    let (_, text) = said("penstock schema --plugins");
    assert!(text.contains("\"on_failure\""), "{text}");
    // What the plugin refuses is shown where it is set.
    let (code, text) = pipeline("{ on_failure = \"drop\", keep = \"nothing == 1\" }");
    assert_eq!(code, Some(64), "{text}");
    for line in [
        "error[settings-refused]: `transform.paid.settings.keep`: plugin stock:filter refuses it: setting `keep`",
        "settings = { on_failure = \"drop\", keep = \"nothing == 1\" }",
        "                                      ^^^^^^^^^^^^^^",
        "`penstock plugin inspect stock:filter` prints what it takes",
    ] {
        assert!(text.contains(line), "not said: {line}\n{text}");
    }

    // And the pipeline that `penstock init` has in comments.
    // At a port of its own: the docs' commands run beside it, and ask the demo at theirs.
    let (code, text) = said(&format!(
        "export PENSTOCK_ADMIN__LISTEN=127.0.0.1:{}; \
         rm pipeline.toml; penstock init && sed -i '/^# \\[\\[transform/,/^$/s/^# //' pipeline.toml && \
         penstock demo --for 3s && penstock config | grep stock:",
        free_port()
    ));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("first record "), "{text}");
    assert!(text.contains("\nevents.order"), "{text}");
}

#[test]
fn a_plugin_that_describes_nothing_goes_on_working() {
    let file = plugins::plugin("test-faults");
    let output = sh(
        Path::new(env!("CARGO_MANIFEST_DIR")),
        &format!(
            "penstock plugin inspect {} --setting version=7",
            file.display()
        ),
    );
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("plugin   test-faults 0.1.0"), "{said}");
    assert!(said.contains("settings not described"), "{said}");
}
