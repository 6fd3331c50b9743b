//! A new project: sources to start from, golden cases, and the SDK with all that it is built from, since none of it is
//! published. What is written travels in this program.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::languages::Language;

/// The SDK, where it stands below the project's folder `penstock`.
const SDK: &[(&str, &str)] = &[
    (
        "plugins/wit/penstock.wit",
        include_str!("../../plugins/wit/penstock.wit"),
    ),
    (
        "crates/plugin-sdk/Cargo.toml",
        include_str!("../../crates/plugin-sdk/Cargo.toml"),
    ),
    (
        "crates/plugin-sdk/src/about.rs",
        include_str!("../../crates/plugin-sdk/src/about.rs"),
    ),
    (
        "crates/plugin-sdk/src/change.rs",
        include_str!("../../crates/plugin-sdk/src/change.rs"),
    ),
    (
        "crates/plugin-sdk/src/lib.rs",
        include_str!("../../crates/plugin-sdk/src/lib.rs"),
    ),
    (
        "crates/plugin-sdk/src/log.rs",
        include_str!("../../crates/plugin-sdk/src/log.rs"),
    ),
    (
        "crates/plugin-sdk/src/output.rs",
        include_str!("../../crates/plugin-sdk/src/output.rs"),
    ),
    (
        "crates/plugin-sdk/src/settings.rs",
        include_str!("../../crates/plugin-sdk/src/settings.rs"),
    ),
    (
        "crates/plugin-sdk/src/table.rs",
        include_str!("../../crates/plugin-sdk/src/table.rs"),
    ),
    (
        "crates/plugin-sdk/src/testing.rs",
        include_str!("../../crates/plugin-sdk/src/testing.rs"),
    ),
    (
        "crates/plugin-sdk/src/value.rs",
        include_str!("../../crates/plugin-sdk/src/value.rs"),
    ),
    (
        "crates/plugin-encoding/Cargo.toml",
        include_str!("../../crates/plugin-encoding/Cargo.toml"),
    ),
    (
        "crates/plugin-encoding/src/bytes.rs",
        include_str!("../../crates/plugin-encoding/src/bytes.rs"),
    ),
    (
        "crates/plugin-encoding/src/cql.rs",
        include_str!("../../crates/plugin-encoding/src/cql.rs"),
    ),
    (
        "crates/plugin-encoding/src/lib.rs",
        include_str!("../../crates/plugin-encoding/src/lib.rs"),
    ),
    (
        "crates/plugin-encoding/src/output.rs",
        include_str!("../../crates/plugin-encoding/src/output.rs"),
    ),
    (
        "crates/plugin-encoding/src/output/reader.rs",
        include_str!("../../crates/plugin-encoding/src/output/reader.rs"),
    ),
    (
        "crates/plugin-encoding/src/rows.rs",
        include_str!("../../crates/plugin-encoding/src/rows.rs"),
    ),
    (
        "crates/plugin-encoding/src/shape.rs",
        include_str!("../../crates/plugin-encoding/src/shape.rs"),
    ),
];

/// Of it the SDK's crates inherit what they have in common.
const WORKSPACE: &str = include_str!("../../Cargo.toml");
/// The versions that are known to go together.
const LOCK: &str = include_str!("../../Cargo.lock");

const RUST: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("template/rust/Cargo.toml")),
    ("README.md", include_str!("template/rust/README.md")),
    (
        "cases/changes.jsonl",
        include_str!("template/changes.jsonl"),
    ),
    ("cases/{name}.toml", include_str!("template/cases.toml")),
    ("src/lib.rs", include_str!("template/rust/lib.rs")),
    (".gitignore", "/target\n/*.wasm\n"),
];

/// What a name may be.
pub const NAME: &str = "lower-case letters, digits and '-', a letter first, 64 at most";

/// Whether a project, a crate and a transform may be called so.
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name.chars().all(plain)
}

/// Words that a crate, a package of Go or a class cannot be called, though the letters are right.
const RESERVED: &str = "abstract alloc as async await become box break cmd const continue core crate do dyn else enum extern \
    false final fn for gen go if impl in let loop macro match mod move mut override penstock-plugin priv proc-macro pub ref \
    return self static std struct super test trait true try type typeof unsafe unsized use vendor virtual where while yield";

/// Why a project may not be called so, and what would do.
///
/// # Errors
/// A sentence.
pub fn check_name(name: &str, language: Language) -> Result<(), String> {
    if !is_name(name) {
        let plain = |c: char| match c {
            c if c.is_ascii_alphanumeric() => c.to_ascii_lowercase(),
            _ => '-',
        };
        let like: String = name.chars().map(plain).collect();
        let like = like.trim_matches('-');
        let like = match is_name(like) && check_name(like, language).is_ok() {
            true => like,
            false => "redact-email",
        };
        return Err(format!("{name:?}: expected {NAME}, e.g. {like}"));
    }
    if RESERVED.split(' ').any(|word| word == name) {
        return Err(format!(
            "{name:?} is a word of the languages themselves: take another name, e.g. {name}-events"
        ));
    }
    let crates = || of_the_sdk().map_err(|e| e.to_string());
    if language == Language::Rust && crates()?.iter().any(|p| package(p, "name") == name) {
        return Err(format!(
            "{name:?} is a crate that the SDK is built of: take another name, e.g. {name}-events"
        ));
    }
    Ok(())
}

/// The file that a project of this name is built into.
pub fn wasm_name(name: &str) -> String {
    format!("{}.wasm", name.replace('-', "_"))
}

/// What a project has in every language but Rust, whose own are in its list.
const COMMON: &[(&str, &str)] = &[
    ("README.md", include_str!("template/README.md")),
    (
        "cases/changes.jsonl",
        include_str!("template/changes.jsonl"),
    ),
    ("cases/{name}.toml", include_str!("template/cases.toml")),
    (
        ".gitignore",
        "/target\n/node_modules\n/.venv\n/*.wasm\n__pycache__\n",
    ),
];

/// Writes a new project into a folder, which must not be there. Returns the files that are the author's.
///
/// # Errors
/// What cannot be written.
pub fn create(folder: &Path, name: &str, language: Language) -> Result<Vec<PathBuf>, Error> {
    let empty = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    if folder.exists() && !empty {
        let message = format!(
            "{} is there already: take another name, or an empty folder",
            folder.display()
        );
        return Err(Error::new(ErrorKind::AlreadyExists, message));
    }
    let about =
        "Lets go of the changes that say one of some words in a column, and hands on all others";
    let mut written = Vec::new();
    let (files, common) = match language {
        Language::Rust => (RUST, &[][..]),
        other => (other.files(), COMMON),
    };
    let tests = match language {
        Language::Python => "python3 -m unittest            # test_app.py, without a host\n",
        Language::Go => "go test ./...                  # main_test.go, without a host\n",
        Language::JavaScript => "npm test                       # index.test.js, without a host\n",
        Language::Rust => "",
    };
    let before = language
        .before_building()
        .map_or_else(String::new, |first| format!("{first}\n"));
    let main = files.first().map_or("", |(path, _)| *path);
    for (path, text) in files.iter().chain(common) {
        let path = folder.join(path.replace("{name}", name));
        let text = text
            .replace("{name}", name)
            .replace("{about}", about)
            .replace("{file}", &wasm_name(name))
            .replace("{main}", main)
            .replace("{before}", &before)
            .replace("{tests}", tests)
            .replace("{Type}", &type_name(name));
        write(&path, &text)?;
        written.push(path);
    }
    if language == Language::Rust {
        write(&folder.join("Cargo.lock"), &lock(name)?)?;
    }
    vendor(folder, language)?;
    Ok(written)
}

/// Writes the SDK into a project, over the one that is there.
///
/// # Errors
/// What cannot be written.
pub fn vendor(folder: &Path, language: Language) -> Result<(), Error> {
    let sdk = folder.join("penstock");
    if language != Language::Rust {
        for (path, text) in language.sdk() {
            write(
                &sdk.join(path),
                &text.replace("{version}", env!("CARGO_PKG_VERSION")),
            )?;
        }
        return Ok(());
    }
    for (path, text) in SDK {
        write(&sdk.join(path), text)?;
    }
    write(&sdk.join("Cargo.toml"), &workspace()?)?;
    let readme = format!(
        "The SDK of penstock {}, in source. `penstock plugin new --sdk-only .` in the folder above renews it.\n",
        env!("CARGO_PKG_VERSION")
    );
    write(&sdk.join("README.md"), &readme)
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    let said = |e: Error| Error::new(e.kind(), format!("{}: {e}", path.display()));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(said)?;
    }
    fs::write(path, text).map_err(said)
}

/// `my-filter` → `MyFilter`, and `filter` → `FilterTransform`: words alone are names of the SDK and of the languages.
fn type_name(name: &str) -> String {
    let capital = |word: &str| {
        let mut chars = word.chars();
        let first = chars.next().map(|c| c.to_ascii_uppercase());
        first.into_iter().chain(chars).collect::<String>()
    };
    let mut of: String = name.split('-').map(capital).collect();
    if !name.contains('-') {
        of.push_str("Transform");
    }
    of
}

fn parsed(text: &str) -> Result<Table, Error> {
    text.parse::<Table>().map_err(Error::other)
}

/// The workspace of the SDK's crates: what they inherit.
fn workspace() -> Result<String, Error> {
    let mut all = parsed(WORKSPACE)?;
    let mut kept = Table::new();
    if let Some(Value::Table(workspace)) = all.remove("workspace") {
        kept.extend(workspace);
    }
    for gone in ["exclude", "default-members"] {
        kept.remove(gone);
    }
    kept.insert("members".to_owned(), vec!["crates/*"].into());
    let mut out = Table::new();
    out.insert("workspace".to_owned(), Value::Table(kept));
    toml::to_string(&out).map_err(Error::other)
}

fn package<'a>(package: &'a Value, key: &str) -> &'a str {
    package.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// What only tests of the SDK's crates use is not for a project.
const TESTS_ONLY: [&str; 2] = ["proptest", "serde_json"];

/// Of our lock file what the SDK is built from.
fn of_the_sdk() -> Result<Vec<Value>, Error> {
    let packages = match parsed(LOCK)?.remove("package") {
        Some(Value::Array(packages)) => packages,
        _ => Vec::new(),
    };
    // A dependency is named `name`, or `name version` where there are several.
    let found = |named: &str| {
        let mut words = named.split(' ');
        let (name, version) = (words.next().unwrap_or_default(), words.next());
        packages.iter().position(|p| {
            package(p, "name") == name && version.is_none_or(|v| package(p, "version") == v)
        })
    };
    let mut wanted = vec!["penstock-plugin".to_owned()];
    let mut kept = BTreeSet::new();
    while let Some(named) = wanted.pop() {
        let Some(at) = found(&named) else { continue };
        if kept.insert(at) {
            let own = package(&packages[at], "name").starts_with("penstock-");
            let dependencies = packages[at].get("dependencies").and_then(Value::as_array);
            for dependency in dependencies.into_iter().flatten().filter_map(Value::as_str) {
                if !(own && TESTS_ONLY.contains(&dependency)) {
                    wanted.push(dependency.to_owned());
                }
            }
        }
    }
    Ok(kept.into_iter().map(|at| packages[at].clone()).collect())
}

/// The lock file of a project: versions are those that were tried.
fn lock(name: &str) -> Result<String, Error> {
    let mut list = of_the_sdk()?;
    for one in &mut list {
        let own = package(one, "name").starts_with("penstock-");
        if let Some(Value::Array(dependencies)) = one.get_mut("dependencies")
            && own
        {
            dependencies.retain(|d| !d.as_str().is_some_and(|d| TESTS_ONLY.contains(&d)));
        }
    }
    let mut project = Table::new();
    project.insert("name".to_owned(), name.into());
    project.insert("version".to_owned(), "0.1.0".into());
    project.insert("dependencies".to_owned(), vec!["penstock-plugin"].into());
    list.push(Value::Table(project));
    list.sort_by(|a, b| {
        let key = |p| (package(p, "name"), package(p, "version"));
        key(a).cmp(&key(b))
    });
    let mut all = parsed(LOCK)?;
    all.insert("package".to_owned(), Value::Array(list));
    toml::to_string(&all).map_err(Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_sdk_travels() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut left = vec![
            root.join("crates/plugin-sdk/src"),
            root.join("crates/plugin-encoding/src"),
        ];
        while let Some(path) = left.pop() {
            if path.is_dir() {
                left.extend(fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
                continue;
            }
            let path = path.strip_prefix(root).unwrap();
            assert!(
                SDK.iter().any(|(p, _)| Path::new(p) == path),
                "{} is missing in SDK",
                path.display()
            );
        }
    }

    #[test]
    fn the_lock_holds_what_the_sdk_needs_and_no_more() {
        let text = lock("my-filter").unwrap();
        for name in ["my-filter", "penstock-plugin", "wit-bindgen", "uuid"] {
            assert!(text.contains(&format!("name = \"{name}\"")), "{name}");
        }
        for name in ["tokio", "scylla", "proptest"] {
            assert!(!text.contains(&format!("name = \"{name}\"")), "{name}");
        }
    }

    #[test]
    fn names_are_those_of_crates_and_transforms() {
        assert!(is_name("my-filter2"));
        for bad in ["", "My", "1a", "a_b", "a-", "../x", "ä"] {
            assert!(!is_name(bad), "{bad}");
        }
        for word in RESERVED.split(' ') {
            assert!(is_name(word), "{word}");
            assert!(check_name(word, Language::Go).is_err(), "{word}");
        }
        assert!(check_name("uuid", Language::Rust).is_err());
        assert_eq!(check_name("uuid", Language::Python), Ok(()));
        let said = check_name("My_Filter", Language::Rust).unwrap_err();
        assert!(said.ends_with("e.g. my-filter"), "{said}");
        let said = check_name("_fn_", Language::Rust).unwrap_err();
        assert!(said.ends_with("e.g. redact-email"), "{said}");
        assert_eq!(type_name("my-filter"), "MyFilter");
        assert_eq!(type_name("change"), "ChangeTransform");
        assert_eq!(wasm_name("my-filter"), "my_filter.wasm");
    }
}
