//! Source to `.wasm`, whatever the language; says what is missing and how to get it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::languages::{self, Language};

const TARGET: &str = "wasm32-unknown-unknown";

/// Why a project cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// There is no such folder.
    #[error("{path}: there is no such folder", path = .0.display())]
    NoFolder(PathBuf),
    /// The folder holds no project.
    #[error(
        "{path} holds no plugin: that is a Cargo.toml, a go.mod, a package.json or a pyproject.toml; \
         `penstock plugin new <name>` writes one",
        path = .0.display()
    )]
    NoProject(PathBuf),
    /// A program is not there.
    #[error("{program} was not found: {advice}")]
    Missing {
        /// Its name.
        program: String,
        /// How to get it.
        advice: &'static str,
    },
    /// The toolchain cannot build for WebAssembly, and could not be taught to.
    #[error("the target {TARGET} is not installed: {advice}")]
    Target {
        /// How to get it.
        advice: String,
    },
    /// The compiler has said why.
    #[error("{program} failed")]
    Failed {
        /// The program.
        program: String,
    },
    /// It was built, and is no plugin that would run.
    #[error("what was built is no plugin, and was not put in place: {0}")]
    NoPlugin(String),
    /// It was built, and is no plugin's library.
    #[error("cargo built no .wasm: the crate needs `[lib] crate-type = [\"cdylib\"]`")]
    NoLibrary,
    /// A file cannot be written or read.
    #[error("{path}: {reason}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
}

/// What is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// What goes into production.
    Whole,
    /// What an edit replaces in a second, in languages where the whole takes long; where it does not, the whole.
    Development,
}

/// What came of a build.
#[derive(Debug)]
pub struct Built {
    /// The plugin.
    pub path: PathBuf,
    /// It differs from what was there before.
    pub changed: bool,
}

/// The language of the project in a folder.
///
/// # Errors
/// There is no such folder, or no project in it.
pub fn language_of(folder: &Path) -> Result<Language, BuildError> {
    if !folder.is_dir() {
        return Err(BuildError::NoFolder(folder.to_owned()));
    }
    Language::of(folder).ok_or_else(|| BuildError::NoProject(folder.to_owned()))
}

/// Builds the project of a folder and puts the plugin at `out`, or into the folder under the project's name. A plugin that
/// came out the same is not written again, so that no running pipeline swaps it; another one is first put before `check`, which
/// compiles it: so a pipeline finds it compiled, and nothing that does not load.
///
/// # Errors
/// See [`BuildError`].
pub fn build(
    folder: &Path,
    out: Option<&Path>,
    offline: bool,
    form: Form,
    check: impl FnOnce(&Path, &[u8]) -> Result<(), String>,
) -> Result<Built, BuildError> {
    let language = language_of(folder)?;
    let file = |path: &Path, e: std::io::Error| BuildError::File {
        path: path.to_owned(),
        reason: e.to_string(),
    };
    let (bytes, name) = match language {
        Language::Rust => {
            ensure_target(folder)?;
            let made = cargo(folder, offline)?;
            let bytes = fs::read(&made).map_err(|e| file(&made, e))?;
            let name = made.file_name().unwrap_or_default();
            (bytes, name.to_string_lossy().into_owned())
        }
        other => languages::build(other, folder, offline, form)?,
    };
    let to = out.map_or_else(|| folder.join(name), Path::to_owned);
    let changed = fs::read(&to).ok().as_ref() != Some(&bytes);
    if changed {
        check(&to, &bytes).map_err(BuildError::NoPlugin)?;
        // Whole or not at all: a pipeline may be watching it.
        let aside = to.with_extension("wasm.new");
        fs::write(&aside, &bytes).map_err(|e| file(&aside, e))?;
        fs::rename(&aside, &to).map_err(|e| file(&to, e))?;
    }
    Ok(Built { path: to, changed })
}

/// The files that a build depends on, in order: of a project's language, and what these name, such as a file that is included.
/// Nothing hidden, nothing that tools keep, no cases, and nothing else that lies there: who watches a build and a pipeline
/// writes down there what they say.
pub fn sources(folder: &Path, language: Language) -> Vec<PathBuf> {
    let all = files(folder);
    let (mut sources, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|path| language.reads(path));
    let texts: Vec<Vec<u8>> = sources
        .iter()
        .map(|path| fs::read(path).unwrap_or_default())
        .collect();
    let mut names: BTreeMap<OsString, bool> = BTreeMap::new();
    let mut named = |part: &OsStr| {
        *names.entry(part.to_owned()).or_insert_with(|| {
            let part = part.as_encoded_bytes();
            texts.iter().any(|text| names_file(text, part))
        })
    };
    sources.extend(others.into_iter().filter(|path| {
        let below = path.strip_prefix(folder).unwrap_or(path);
        // A whole folder may be included.
        below.iter().any(&mut named)
    }));
    sources.sort();
    sources
}

/// Whether a text has this name, by itself.
fn names_file(text: &[u8], name: &[u8]) -> bool {
    let part = |byte: Option<&u8>| {
        byte.is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    };
    let mut windows = text.windows(name.len().max(1)).enumerate();
    windows.any(|(at, window)| {
        window == name
            && !part(at.checked_sub(1).and_then(|at| text.get(at)))
            && !part(text.get(at + name.len()))
    })
}

/// What may be of a build.
fn files(folder: &Path) -> Vec<PathBuf> {
    const KEPT: [&str; 5] = ["target", "node_modules", "venv", "__pycache__", "cases"];
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        // What cannot be read is for the tools to say.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if name.starts_with('.') || KEPT.contains(&&*name) {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(_) if ![".wasm", ".wasm.new"].iter().any(|end| name.ends_with(end)) => {
                    files.push(path);
                }
                _ => {}
            }
        }
    }
    files
}

/// A program, or another one that the environment names.
pub(super) fn program(variable: &str, name: &str) -> OsString {
    std::env::var_os(variable).unwrap_or_else(|| name.into())
}

const RUSTUP: &str = "install Rust by https://rustup.rs";

/// A program that cannot be run.
pub(super) fn missing(
    program: &OsString,
    error: &std::io::Error,
    advice: &'static str,
) -> BuildError {
    let program = program.to_string_lossy().into_owned();
    match error.kind() {
        ErrorKind::NotFound => BuildError::Missing { program, advice },
        _ => BuildError::Failed {
            program: format!("{program} ({error})"),
        },
    }
}

/// Installs the target where rustup manages the toolchain.
fn ensure_target(folder: &Path) -> Result<(), BuildError> {
    let rustc = program("RUSTC", "rustc");
    let output = Command::new(&rustc)
        .current_dir(folder)
        .args(["--print", "target-libdir", "--target", TARGET])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| missing(&rustc, &e, RUSTUP))?;
    let libdir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if output.status.success() && libdir.is_dir() {
        return Ok(());
    }
    eprintln!("the target {TARGET} is not installed: rustup target add {TARGET}");
    let installed = Command::new("rustup")
        .current_dir(folder)
        .args(["target", "add", TARGET])
        .status();
    match installed {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(BuildError::Target {
            advice: format!("`rustup target add {TARGET}` failed; is there a network?"),
        }),
        Err(_) => Err(BuildError::Target {
            advice: format!(
                "this toolchain is not rustup's; take its package for {TARGET} (Debian: \
                 libstd-rust-dev-wasm32), or {RUSTUP}"
            ),
        }),
    }
}

/// Runs cargo; returns the library that it made.
fn cargo(folder: &Path, offline: bool) -> Result<PathBuf, BuildError> {
    let cargo = program("CARGO", "cargo");
    let mut command = Command::new(&cargo);
    command.current_dir(folder).args([
        "build",
        "--release",
        "--target",
        TARGET,
        "--message-format",
        "json-render-diagnostics",
    ]);
    if offline {
        command.arg("--offline");
    }
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| missing(&cargo, &e, RUSTUP))?;
    if !output.status.success() {
        return Err(BuildError::Failed {
            program: "cargo build".to_owned(),
        });
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut made = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let files = message["filenames"].as_array()?.clone();
        files
            .iter()
            .filter_map(Value::as_str)
            .find(|file| file.ends_with(".wasm"))
            .map(PathBuf::from)
    });
    made.next_back().ok_or(BuildError::NoLibrary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_is_told_from_one_without_a_project() {
        let folder = tempfile::tempdir().expect("a folder");
        let said = |folder: &Path| match language_of(folder) {
            Ok(language) => format!("{language:?}"),
            Err(error) => error.to_string(),
        };
        let absent = said(&folder.path().join("my-filter"));
        assert!(
            absent.ends_with("/my-filter: there is no such folder"),
            "{absent}"
        );
        let empty = said(folder.path());
        assert!(empty.contains(" holds no plugin: "), "{empty}");
        fs::write(folder.path().join("Cargo.toml"), "").expect("written");
        assert_eq!(said(folder.path()), "Rust");
    }

    /// In every language, and whatever else is written there meanwhile.
    #[test]
    fn a_build_depends_on_what_it_reads_and_on_nothing_else() {
        for (language, source, reads, mark) in [
            (
                Language::Rust,
                "src/lib.rs",
                "include_str!(\"../data/words.txt\")",
                "Cargo.toml",
            ),
            (Language::Go, "main.go", "//go:embed data/*", "go.mod"),
            (
                Language::JavaScript,
                "index.js",
                "import words from \"./data/words.txt\";",
                "package.json",
            ),
            (
                Language::Python,
                "app.py",
                "open('data/words.txt')",
                "pyproject.toml",
            ),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let write = |name: &str, text: &str| {
                let path = folder.path().join(name);
                fs::create_dir_all(path.parent().expect("a folder")).expect("made");
                fs::write(path, text).expect("written");
            };
            let kept = [source, mark, "data/words.txt", "penstock/penstock.wit"];
            for name in [
                "build.log",
                "out.txt",
                "words.txt.bak",
                "notes",
                "my.wasm",
                "target/made.of",
                ".git/index",
                "cases/x.toml",
                "records.jsonl",
            ]
            .iter()
            .chain(&kept)
            {
                write(name, "");
            }
            write(source, reads);
            let mut seen = sources(folder.path(), language);
            for path in &mut seen {
                *path = path
                    .strip_prefix(folder.path())
                    .expect("below")
                    .to_path_buf();
            }
            let mut kept = kept.map(PathBuf::from);
            kept.sort();
            assert_eq!(seen, kept, "{language:?}");
        }
    }
}
