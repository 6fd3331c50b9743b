//! pipeline.toml from outside: what is refused and how it is said, what is taken and what comes of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use penstock::config::{self, Checks, Inputs, Invalid, Loaded, Reason};

/// The directives of a fixture: comments at its head.
fn directives<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let prefix = format!("# {name}: ");
    text.lines()
        .take_while(|l| l.starts_with('#'))
        .filter_map(|l| l.strip_prefix(&prefix))
        .collect()
}

fn load(path: &Path) -> Result<Loaded, Invalid> {
    let text = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    let large = tempfile::NamedTempFile::new().unwrap();
    let files = match directives(&text, "config")[..] {
        _ if !directives(&text, "generate").is_empty() => {
            std::fs::write(&large, "#".repeat((1 << 20) + 1)).unwrap();
            vec![large.path().to_owned()]
        }
        [] => vec![path.to_owned()],
        ref named => named.iter().map(PathBuf::from).collect(),
    };
    let inputs = Inputs {
        files,
        environment: directives(&text, "env")
            .iter()
            .map(|e| e.split_once('=').unwrap())
            .map(|(k, v)| (k.into(), v.into()))
            .collect(),
        set: directives(&text, "set")
            .iter()
            .map(|s| (*s).to_owned())
            .collect(),
    };
    let says = |name: &str| match directives(&text, name)[..] {
        [] => Ok(()),
        [first, ..] => Err(first.to_owned()),
    };
    let checks = Checks {
        plugin: &|_, _| says("plugin-error"),
        properties: &|_| says("properties-error"),
        embedded: directives(&text, "without").is_empty(),
    };
    config::load(&inputs, checks).map_err(|mut invalid| {
        for problem in &mut invalid.problems {
            if let Reason::TooLarge { path, .. } = &mut problem.reason {
                "large.toml".clone_into(path);
            }
        }
        invalid
    })
}

fn fixtures(folder: &str) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(Path::new("tests/config").join(folder))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "toml"))
        .collect();
    all.sort();
    assert!(!all.is_empty());
    all
}

/// Each rejection reads as its `.err` says; `UPDATE_GOLDEN=1` writes them.
#[test]
fn every_rejection_has_its_message() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for path in fixtures("invalid") {
        let invalid = match load(&path) {
            Ok(_) => panic!("{} was taken", path.display()),
            Err(invalid) => invalid,
        };
        let said = invalid.render(false);
        for secret in ["hunter2", "hunter3"] {
            assert!(
                !said.contains(secret),
                "{} shows a secret:\n{said}",
                path.display()
            );
            assert!(!format!("{invalid:?} {invalid} {}", invalid.to_json()).contains(secret));
        }
        assert!(
            !said.chars().any(|c| c.is_control() && c != '\n'),
            "{}",
            path.display()
        );
        let golden = path.with_extension("err");
        if update {
            std::fs::write(&golden, &said).unwrap();
        } else if std::fs::read_to_string(&golden).unwrap_or_default() != said {
            wrong.push(format!("{}:\n{said}", golden.display()));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\n(UPDATE_GOLDEN=1 rewrites them)",
        wrong.join("\n")
    );
}

#[test]
fn every_reason_has_a_fixture() {
    let mut seen = BTreeSet::new();
    for path in fixtures("invalid") {
        for problem in load(&path).expect_err("it is invalid").problems {
            seen.insert(problem.reason.code());
        }
    }
    let all: BTreeSet<&str> = Reason::CODES.into_iter().collect();
    assert_eq!(seen, all);
}

#[test]
fn legal_files_are_taken() {
    for path in fixtures("valid") {
        if let Err(invalid) = load(&path) {
            panic!("{}:\n{}", path.display(), invalid.render(false));
        }
    }
    let loaded = load(Path::new("tests/config/valid/all.toml")).unwrap();
    let s = &loaded.settings;
    assert_eq!(s.pipeline.shards.get(), 16);
    assert_eq!(s.source.window, Duration::from_secs(90));
    assert_eq!(
        s.source.password.as_ref().map(|p| p.expose()),
        Some("tiger")
    );
    assert_eq!(
        s.transforms[0].plugin,
        Path::new("tests/config/valid/../plugin.wasm")
    );
    assert_eq!(s.transforms[0].limits.memory, 1 << 20);
    assert_eq!(
        s.transforms[0].settings["list"],
        r#"[1,"two",{"three":3.5}]"#
    );
    // [policies] gives the default, each stage overrides key by key.
    let threshold = |stage: &str| s.policies(stage).unwrap().breaker.failure_threshold().get();
    assert_eq!(threshold("transform.first"), 7);
    assert_eq!(threshold("transform.second"), 9);
    assert_eq!(threshold("sink"), 9);
    assert_eq!(s.sink.policies.breaker.open_for(), Duration::from_secs(5));
    assert_eq!(
        s.source.policies.breaker.open_for(),
        Duration::from_secs(30)
    );
    assert_eq!(s.dead_letter.topic, "orders-2.orders_ks.dead");
}
