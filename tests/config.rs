//! pipeline.toml from outside: what is refused and how it is said, what is taken and what comes of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use penstock::config::{self, Checks, Inputs, Invalid, Loaded, PluginFault, Reason};

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
        plugin: &|_, _| {
            says("plugin-error").map_err(PluginFault::Rejected)?;
            says("plugin-refuses").map_err(PluginFault::Refused)
        },
        properties: &|_| says("properties-error"),
        reserved: &penstock::sink::redpanda::reserved_property,
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

fn parsed(text: &str) -> Result<Loaded, Invalid> {
    config::parse(
        Path::new("tests/config/valid/x.toml"),
        text,
        Checks::default(),
    )
}

const MINIMAL: &str =
    "[pipeline]\nname = \"orders\"\n[source]\nkeyspace = \"k\"\ntables = [\"t\"]\n";

#[test]
fn defaults_are_those_of_the_policies() {
    let loaded = parsed(MINIMAL).unwrap();
    for stage in ["source", "sink", "dead_letter", "orders"] {
        assert_eq!(
            loaded.settings.policies(stage),
            Some(&Default::default()),
            "{stage}"
        );
    }
    assert_eq!(
        loaded.settings.pipeline.delivery,
        config::settings::Delivery::ExactlyOnce
    );
}

#[test]
fn later_layers_win_and_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let plugin = at("p.wasm", "");
    let base = folder.path().join("conf");
    std::fs::create_dir(&base).unwrap();
    at(
        "conf/20.toml",
        "[sink.breaker]\nopen_for = \"2s\"\nfailure_threshold = 2\n[source]\nwindow = \"2s\"\n",
    );
    at(
        "conf/10.toml",
        &format!(
            "{MINIMAL}window = \"1s\"\n[sink.breaker]\nopen_for = \"1s\"\n[[transform]]\nname = \"out-box\"\nplugin = {plugin:?}\non_error = \"stop\"\n"
        ),
    );
    at("conf/.hidden.toml", "nonsense");
    at("conf/notes.txt", "nonsense");
    let over = at(
        "over.toml",
        "[policies.retry]\nmax = \"9s\"\n[[transform]]\nname = \"second\"\nplugin = \"p.wasm\"\n",
    );
    let env = |k: &str, v: &str| (k.into(), v.into());
    let inputs = Inputs {
        files: vec![base.clone(), over.clone()],
        environment: vec![
            env("PENSTOCK_SINK__BREAKER__FAILURE_THRESHOLD", "3"),
            env("PENSTOCK_TRANSFORM__OUT_BOX__ON_ERROR", "drop"),
            env("PENSTOCK_SOURCE__NODES", "a:1, b:2"),
            env("PENSTOCK_SOURCE__USERNAME", "1234"),
            env("PENSTOCK_SOURCE__PASSWORD", "true"),
            env("PENSTOCK_TEST_ANYTHING", "x"),
            env("PATH", "x"),
        ],
        set: vec![
            "sink.breaker.failure_threshold=4".into(),
            "transform.out-box.breaker.failure_threshold=6".into(),
            r#"sink.properties."linger.ms"=5"#.into(),
        ],
    };
    let loaded =
        config::load(&inputs, Checks::default()).unwrap_or_else(|e| panic!("{}", e.render(false)));
    let s = &loaded.settings;
    assert_eq!(s.source.window, Duration::from_secs(2));
    assert_eq!(s.sink.policies.breaker.open_for(), Duration::from_secs(2));
    assert_eq!(s.sink.policies.breaker.failure_threshold().get(), 4);
    assert_eq!(
        s.transforms[0].policies.breaker.failure_threshold().get(),
        6
    );
    assert_eq!(s.transforms[0].on_error, config::settings::OnError::Drop);
    assert_eq!(s.transforms[1].plugin, folder.path().join("p.wasm"));
    assert_eq!(
        s.source.nodes,
        config::settings::Nodes::At(vec!["a:1".into(), "b:2".into()])
    );
    assert_eq!(s.source.password.as_ref().map(|p| p.expose()), Some("true"));
    assert_eq!(s.sink.properties["linger.ms"], "5");
    let origin = |key: &str| {
        let entry = loaded.effective.iter().find(|e| e.key == key);
        entry
            .unwrap_or_else(|| panic!("{key}"))
            .origin
            .replace(&folder.path().display().to_string(), "")
    };
    assert_eq!(origin("source.window"), "/conf/20.toml:5:10");
    assert_eq!(
        origin("sink.breaker.failure_threshold"),
        "command line --set sink.breaker.failure_threshold=4"
    );
    assert_eq!(
        origin("transform.out-box.on_error"),
        "environment variable PENSTOCK_TRANSFORM__OUT_BOX__ON_ERROR"
    );
    assert_eq!(
        origin("sink.retry.max"),
        "/over.toml:2:7 (policies.retry.max)"
    );
    assert_eq!(origin("sink.retry.initial"), "default");
    // Nothing that is printed holds the password.
    let password = loaded
        .effective
        .iter()
        .find(|e| e.key == "source.password")
        .unwrap();
    assert_eq!(password.value, "***");
    assert!(format!("{s:?}").contains("password: Some(***)"));
}

/// TOML where it is TOML, else text, by `--set` and by the environment; but a secret is taken as it stands.
#[test]
fn a_flag_is_toml_where_it_is_that_and_text_otherwise() {
    let listen = |value: &str| {
        let text = format!("{MINIMAL}[admin]\nlisten = \"127.0.0.1:2\"\n");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipeline.toml");
        std::fs::write(&path, text).unwrap();
        let inputs = Inputs {
            files: vec![path],
            environment: vec![
                ("PENSTOCK_SOURCE__USERNAME".into(), value.into()),
                ("PENSTOCK_SOURCE__PASSWORD".into(), value.into()),
                ("PENSTOCK_SINK__PASSWORD".into(), value.into()),
            ],
            set: vec![
                format!("sink.username={value}"),
                "sink.sasl=PLAIN".into(),
                "admin.listen=\"127.0.0.1:1\"".into(),
                "shutdown.timeout='3s'".into(),
                "source.start_from=2026-01-31T08:00:00Z".into(),
                "sink.topic = \"{table}\"".into(),
            ],
        };
        let loaded = config::load(&inputs, Checks::default());
        let s = loaded
            .unwrap_or_else(|e| panic!("{}", e.render(false)))
            .settings;
        assert_eq!(s.admin.listen, ([127, 0, 0, 1], 1).into());
        assert_eq!(s.shutdown.timeout, Duration::from_secs(3));
        assert_eq!(s.sink.topic, "{table}");
        let at = config::settings::StartFrom::At(1_769_846_400_000_000);
        assert_eq!(s.source.start_from, at);
        assert_eq!(s.source.password.as_ref().map(|p| p.expose()), Some(value));
        assert_eq!(s.sink.username, s.source.username);
        s.sink.username.clone().unwrap()
    };
    for text in [
        "1234",
        "true",
        "ann",
        "a \"b\" c",
        "\"half",
        "[1]",
        "{}",
        "12h",
        "# a",
    ] {
        assert_eq!(listen(text), text);
    }
    for text in [
        "\"ann\"",
        "'ann'",
        "  'ann' ",
        "\"\"\"ann\"\"\"",
        "\"\\u0061nn\"",
        "'ann' # it is",
    ] {
        assert_eq!(listen(text), "ann");
    }
}

/// The table of keys and the schema know the same keys, and the schema agrees with the validator on the
/// shipped file, the valid fixtures, and what it can know of the invalid ones.
#[test]
fn the_schema_agrees_with_the_validator() {
    let schema = config::schema::schema();
    let mut in_schema = BTreeSet::new();
    collect(&schema, "", &mut in_schema);
    let in_table: BTreeSet<String> = config::keys::all().iter().map(|k| k.path.clone()).collect();
    assert_eq!(in_schema, in_table);

    let validator = jsonschema::validator_for(&schema).unwrap();
    let json = |path: &Path| -> serde_json::Value {
        let text = std::fs::read_to_string(path).unwrap();
        let table: toml::Table = toml::from_str(&text).unwrap();
        serde_json::to_value(table).unwrap()
    };
    let shipped = PathBuf::from("pipeline.toml");
    for path in fixtures("valid")
        .into_iter()
        .filter(|p| !p.ends_with("all.toml"))
        .chain([shipped])
    {
        let errors: Vec<String> = validator
            .iter_errors(&json(&path))
            .map(|e| e.to_string())
            .collect();
        assert!(errors.is_empty(), "{}: {errors:?}", path.display());
    }
    for name in [
        "unknown-key",
        "wrong-type",
        "out-of-range",
        "unknown-choice",
        "missing",
        "empty-list",
        "malformed",
        "open-secret",
    ] {
        let path = PathBuf::from(format!("tests/config/invalid/{name}.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        // JSON has no NaN and no larger integers.
        let text: String = text
            .lines()
            .filter(|l| {
                !l.contains("nan") && !l.contains("inf") && !l.contains("99999999999999999999")
            })
            .map(|l| format!("{l}\n"))
            .collect();
        let table: toml::Table = toml::from_str(&text).unwrap();
        assert!(
            !validator.is_valid(&serde_json::to_value(table).unwrap()),
            "{name}"
        );
    }
}

fn collect(schema: &serde_json::Value, path: &str, out: &mut BTreeSet<String>) {
    if let Some(items) = schema.get("items").filter(|i| i["properties"].is_object()) {
        return collect(items, &format!("{path}.*"), out);
    }
    // A table of keys is closed; a value that is a table is a leaf.
    match schema
        .get("properties")
        .filter(|_| schema["additionalProperties"] == false)
    {
        Some(serde_json::Value::Object(inner)) if schema.get("oneOf").is_none() => {
            for (key, schema) in inner {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                collect(schema, &path, out);
            }
        }
        _ => {
            assert!(schema["description"].is_string(), "{path}");
            out.insert(path.to_owned());
        }
    }
}

#[test]
fn what_is_made_from_the_keys_is_current() {
    for (path, made) in [
        (
            "schema/pipeline.schema.json",
            config::schema::pretty(config::schema::schema()),
        ),
        ("docs/configuration.md", config::reference::markdown()),
    ] {
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &made).unwrap();
        }
        let shipped = std::fs::read_to_string(path).unwrap();
        assert_eq!(shipped, made, "{path}: UPDATE_GOLDEN=1 rewrites it");
    }
}

/// The shipped file, with a plugin in place of the one that is built.
#[test]
fn the_shipped_file_is_valid() {
    let text = std::fs::read_to_string("pipeline.toml").unwrap();
    let text = text.replace("plugins/outbox_router.wasm", "../plugin.wasm");
    let loaded = parsed(&text).unwrap_or_else(|e| panic!("{}", e.render(false)));
    let s = &loaded.settings;
    assert_eq!(s.source.nodes, config::settings::Nodes::Embedded);
    assert_eq!(
        (&*s.source.keyspace, &*s.source.tables[0]),
        ("orders_ks", "outbox_messages")
    );
    assert_eq!(s.transforms[0].settings["topic_prefix"], "events.");
}

/// Each key, changed alone, is one difference of its class.
#[test]
fn each_key_differs_alone_and_by_its_class() {
    use config::keys::{self, Kind};
    let transform = "[[transform]]\nname = \"one\"\nplugin = \"../plugin.wasm\"\n";
    let old = parsed(&format!("{MINIMAL}{transform}")).unwrap();
    let mut tried = 0;
    for key in keys::all() {
        // Secrets by variable and by file, and what has but one value, are below or cannot change.
        if matches!(key.kind, Kind::Secret | Kind::Choice([_]))
            || key.path.ends_with("_file")
            || key.path.ends_with("username")
            // It takes more than itself.
            || key.path == "sink.sasl"
            || key.path == "source.rack"
        {
            continue;
        }
        let other = match key.kind {
            Kind::Bool => (!old_bool(&old, &key.path)).to_string(),
            Kind::Choice(words) => {
                let now = &old
                    .effective
                    .iter()
                    .find(|e| e.key == key.path.replace('*', "one"))
                    .unwrap()
                    .value;
                // Not built yet is no value to change to.
                let Some(word) = words
                    .iter()
                    .find(|w| **w != "exactly-once" && format!("{w:?}") != *now)
                else {
                    continue;
                };
                format!("{word:?}")
            }
            Kind::Int(..) => "7".into(),
            Kind::Float(0.0, 1.0) => "0.3".into(),
            Kind::Float(..) => "3.5".into(),
            Kind::Duration(..) | Kind::DurationOrOff(..) => "\"7s\"".into(),
            Kind::Size(..) => "\"7MiB\"".into(),
            Kind::Rate => "{ per_second = 7, burst = 8 }".into(),
            Kind::StartFrom => "\"2026-01-31T08:00:00Z\"".into(),
            Kind::Text(_) => match key.path.as_str() {
                "transform.*.name" => continue,
                "log.filter" => "\"debug\"".into(),
                "transform.*.when" => "\"ttl == 7\"".into(),
                "admin.advertise" => "\"other:7\"".into(),
                "tracing.endpoint" => key.example.into(),
                _ => "\"other\"".into(),
            },
            Kind::Path | Kind::File => "\"../../../tests/config/plugin.wasm\"".into(),
            Kind::Address => "\"127.0.0.1:7\"".into(),
            Kind::Nodes => "[\"other:7\"]".into(),
            Kind::List(_) if key.path.starts_with("health") => "[\"sink\"]".into(),
            // Of those that are read.
            Kind::List(_) if key.path == "transform.*.tables" => "[\"t\"]".into(),
            Kind::List(_) => "[\"other\"]".into(),
            Kind::Words(_) => "[]".into(),
            Kind::Properties => "{ \"linger.ms\" = 7 }".into(),
            Kind::Table => "{ a = 7 }".into(),
            Kind::Secret => continue,
        };
        let mut table: toml::Table = toml::from_str(&format!("{MINIMAL}{transform}")).unwrap();
        let value: toml::Table = toml::from_str(&format!("v = {other}")).unwrap();
        let mut at = &mut table;
        let steps: Vec<&str> = key.path.split('.').collect();
        for step in &steps[..steps.len() - 1] {
            if *step == "*" {
                continue;
            }
            let entry = at
                .entry(*step)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            at = match entry {
                toml::Value::Array(list) => list[0].as_table_mut().unwrap(),
                table => table.as_table_mut().unwrap(),
            };
        }
        at.insert(steps[steps.len() - 1].to_owned(), value["v"].clone());
        let new = parsed(&table.to_string())
            .unwrap_or_else(|e| panic!("{}: {}", key.path, e.render(false)));
        let changed = config::reload::diff(&old.effective, &new.effective);
        let expected = match key.path.strip_prefix("policies.") {
            // Each stage that inherits it, and the default itself.
            Some(policy) => keys::STAGES
                .iter()
                .map(|s| format!("{}.{policy}", s.replace('*', "one")))
                .chain([key.path.clone()])
                .collect(),
            None => BTreeSet::from([key.path.replace('*', "one")]),
        };
        let keys: BTreeSet<String> = changed.iter().map(|c| c.key.clone()).collect();
        assert_eq!(keys, expected);
        assert!(
            changed
                .iter()
                .all(|c| c.class == key.class && c.old != c.new),
            "{changed:?}"
        );
        assert_ne!(old.hash, new.hash, "{}", key.path);
        tried += 1;
    }
    assert!(tried > 100, "{tried}");
    // Reordered transforms are a difference, too.
    let two = format!("{MINIMAL}{transform}{}", transform.replace("one", "two"));
    let swapped = format!("{MINIMAL}{}{transform}", transform.replace("one", "two"));
    let (a, b) = (parsed(&two).unwrap(), parsed(&swapped).unwrap());
    let changed = config::reload::diff(&a.effective, &b.effective);
    assert_eq!(
        (changed.len(), changed[0].class, &*changed[0].key),
        (1, config::ReloadClass::Rebuild, "transform")
    );
}

fn old_bool(old: &Loaded, key: &str) -> bool {
    old.effective
        .iter()
        .any(|e| e.key == key && e.value == "true")
}

/// What is read besides the text counts: a plugin rebuilt in place, a secret rotated. The secret shows nowhere.
#[test]
fn files_that_are_named_count_by_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.toml");
    let text = format!(
        "{MINIMAL}username = \"u\"\npassword_file = \"secret\"\n[[transform]]\nname = \"one\"\nplugin = \"p.wasm\"\n"
    );
    std::fs::write(&path, text).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let load = || {
        let inputs = Inputs {
            files: vec![path.clone()],
            ..Inputs::default()
        };
        config::load(&inputs, Checks::default()).unwrap()
    };
    write("secret", "tiger\n");
    write("p.wasm", "1");
    let first = load();
    let same = load();
    assert_eq!(first.hash, same.hash);
    assert_eq!(first.sources.len(), 3);
    write("p.wasm", "2");
    let second = load();
    let changed = config::reload::diff(&first.effective, &second.effective);
    assert_eq!(
        (changed.len(), changed[0].class, &*changed[0].key),
        (1, config::ReloadClass::Swap, "transform.one.plugin")
    );
    write("secret", "lion");
    let third = load();
    let changed = config::reload::diff(&second.effective, &third.effective);
    assert_eq!(
        (changed.len(), &*changed[0].key),
        (1, "source.password_file")
    );
    assert!(!format!("{third:?}{changed:?}").contains("lion"));
}

/// No input makes it panic: the short, seeded form of `fuzz/fuzz_targets/config.rs`. `PENSTOCK_TEST_FUZZ` sets
/// how many inputs.
#[test]
fn no_input_makes_it_panic() {
    use rand::{RngExt, SeedableRng};
    let runs: u64 = std::env::var("PENSTOCK_TEST_FUZZ")
        .ok()
        .map_or(3_000, |n| n.parse().unwrap());
    let seed: u64 = std::env::var("PENSTOCK_TEST_SEED")
        .ok()
        .map_or(4, |n| n.parse().unwrap());
    let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
    let mut corpus: Vec<Vec<u8>> = fixtures("invalid")
        .into_iter()
        .chain(fixtures("valid"))
        .map(|p| std::fs::read(p).unwrap())
        .collect();
    corpus.push(std::fs::read("pipeline.toml").unwrap());
    let words: Vec<String> = config::keys::all()
        .iter()
        .flat_map(|k| [k.path.clone(), k.example.to_owned()])
        .collect();
    let mut taken = 0;
    for run in 0..runs {
        let mut bytes = corpus[rng.random_range(0..corpus.len())].clone();
        for _ in 0..rng.random_range(1..8) {
            let at = rng.random_range(0..=bytes.len());
            let end = (at + rng.random_range(0..40)).min(bytes.len());
            match rng.random_range(0..5) {
                0 => drop(bytes.drain(at..end)),
                1 => bytes.insert(at, rng.random()),
                2 => {
                    let word = words[rng.random_range(0..words.len())].clone();
                    drop(bytes.splice(at..at, word.into_bytes()));
                }
                3 => {
                    let other = &corpus[rng.random_range(0..corpus.len())];
                    let from = rng.random_range(0..=other.len());
                    let to = (from + rng.random_range(0..80)).min(other.len());
                    let piece = other[from..to].to_vec();
                    drop(bytes.splice(at..end, piece));
                }
                _ => {
                    let token: &[u8] = [
                        &b"["[..],
                        b"]",
                        b"=",
                        b"\"",
                        b"'''",
                        b"\n",
                        b"{",
                        b"[[transform]]\n",
                        b"nan",
                        b"\xff",
                        b"#",
                    ][rng.random_range(0..11)];
                    drop(bytes.splice(at..at, token.iter().copied()));
                }
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        match parsed(&text) {
            Ok(_) => taken += 1,
            Err(invalid) => {
                assert!(!invalid.problems.is_empty(), "seed {seed} run {run}");
                assert!(!invalid.render(false).is_empty());
                assert!(invalid.to_json().is_array());
            }
        }
    }
    // Neither all noise nor all valid: the mutations reach both sides.
    assert!(taken > 0 && taken < runs, "{taken} of {runs}");
}
