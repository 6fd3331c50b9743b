//! Languages beside Rust: what a project of each is written from, and how its `.wasm` is made.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::build::{BuildError, Form, missing, program, sources};
use super::{component, development};

/// A language that there is an SDK for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Language {
    /// The quickest, and the smallest plugins
    Rust,
    /// Go 1.24 or newer, and nothing else
    Go,
    /// By componentize-js
    #[value(name = "js")]
    JavaScript,
    /// By componentize-py
    Python,
}

/// A folder of its own: many systems keep pip out of theirs.
const PIP: &str = "python3 -m venv .venv && .venv/bin/pip install componentize-py==0.25.1";

type Files = &'static [(&'static str, &'static str)];

const GO: Files = &[
    ("main.go", include_str!("template/go/main.go")),
    ("main_test.go", include_str!("template/go/main_test.go")),
    ("go.mod", "module plugins.local/{name}\n\ngo 1.24\n"),
];
const GO_SDK: Files = &[
    (
        "penstock.go",
        include_str!("template/go/penstock/penstock.go"),
    ),
    ("rows.go", include_str!("template/go/penstock/rows.go")),
    ("cql.go", include_str!("template/go/penstock/cql.go")),
    (
        "harness.go",
        include_str!("template/go/penstock/harness.go"),
    ),
    ("json.go", include_str!("template/go/penstock/json.go")),
    ("output.go", include_str!("template/go/penstock/output.go")),
    ("bytes.go", include_str!("template/go/penstock/bytes.go")),
    ("abi.go", include_str!("template/go/penstock/abi.go")),
];
const JS: Files = &[
    ("index.js", include_str!("template/js/index.js")),
    ("index.test.js", include_str!("template/js/index.test.js")),
    ("package.json", include_str!("template/js/package.json")),
];
const JS_SDK: Files = &[
    ("index.js", include_str!("template/js/penstock/index.js")),
    ("cql.js", include_str!("template/js/penstock/cql.js")),
    (
        "testing.js",
        include_str!("template/js/penstock/testing.js"),
    ),
    (
        "native.mjs",
        include_str!("template/js/penstock/native.mjs"),
    ),
    ("build.mjs", include_str!("template/js/penstock/build.mjs")),
    (
        "bundle.mjs",
        include_str!("template/js/penstock/bundle.mjs"),
    ),
    ("loader.js", include_str!("template/js/penstock/loader.js")),
];
const PYTHON: Files = &[
    ("app.py", include_str!("template/python/app.py")),
    ("test_app.py", include_str!("template/python/test_app.py")),
    (
        "pyproject.toml",
        include_str!("template/python/pyproject.toml"),
    ),
];
const PYTHON_SDK: Files = &[
    (
        "__init__.py",
        include_str!("template/python/penstock/__init__.py"),
    ),
    ("cql.py", include_str!("template/python/penstock/cql.py")),
    (
        "testing.py",
        include_str!("template/python/penstock/testing.py"),
    ),
    (
        "_native.py",
        include_str!("template/python/penstock/_native.py"),
    ),
    (
        "loader.py",
        include_str!("template/python/penstock/loader.py"),
    ),
];

const WIT: (&str, &str) = (
    "penstock.wit",
    include_str!("../../plugins/wit/penstock.wit"),
);

impl Language {
    const ALL: [Self; 4] = [Self::Rust, Self::Go, Self::JavaScript, Self::Python];

    /// The file that a project of it has.
    fn mark(self) -> &'static str {
        match self {
            Self::Rust => "Cargo.toml",
            Self::Go => "go.mod",
            Self::JavaScript => "package.json",
            Self::Python => "pyproject.toml",
        }
    }

    /// Whether its tools read the file, by its name: the SDK's description of the contract, too.
    pub(super) fn reads(self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (ends, names): (&[&str], &[&str]) = match self {
            Self::Rust => (
                &["rs"],
                &[
                    "Cargo.toml",
                    "Cargo.lock",
                    "rust-toolchain.toml",
                    "rust-toolchain",
                ],
            ),
            Self::Go => (&["go", "s"], &["go.mod", "go.sum", "go.work"]),
            Self::JavaScript => (
                &["js", "mjs", "cjs", "ts", "mts", "jsx", "tsx", "json"],
                &[],
            ),
            Self::Python => (
                &["py", "pyi"],
                &["pyproject.toml", "setup.cfg", "requirements.txt"],
            ),
        };
        let end = path.extension().unwrap_or_default().to_string_lossy();
        end == "wit" || ends.contains(&&*end) || names.contains(&&*name)
    }

    /// The language of a project.
    pub fn of(folder: &Path) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|language| folder.join(language.mark()).is_file())
    }

    /// What an author begins with; Rust's are elsewhere.
    pub(super) fn files(self) -> Files {
        match self {
            Self::Rust => &[],
            Self::Go => GO,
            Self::JavaScript => JS,
            Self::Python => PYTHON,
        }
    }

    /// The SDK, below the project's folder `penstock`.
    pub(super) fn sdk(self) -> Vec<(&'static str, &'static str)> {
        let files = match self {
            Self::Rust => return Vec::new(),
            Self::Go => GO_SDK,
            Self::JavaScript => JS_SDK,
            Self::Python => PYTHON_SDK,
        };
        files.iter().copied().chain([WIT]).collect()
    }

    /// What is to be done before the first build.
    pub fn before_building(self) -> Option<&'static str> {
        match self {
            Self::Rust | Self::Go => None,
            Self::JavaScript => Some("npm install"),
            Self::Python => Some(PIP),
        }
    }

    /// The name of a project, as its mark has it.
    fn name(self, folder: &Path) -> Option<String> {
        let text = std::fs::read_to_string(folder.join(self.mark())).ok()?;
        match self {
            Self::Go => {
                let module = text.lines().find_map(|line| line.strip_prefix("module "))?;
                module.trim().rsplit('/').next().map(str::to_owned)
            }
            Self::JavaScript => {
                let package: serde_json::Value = serde_json::from_str(&text).ok()?;
                Some(package["name"].as_str()?.to_owned())
            }
            Self::Rust | Self::Python => {
                let project = text.parse::<toml::Table>().ok()?;
                Some(project.get("project")?.get("name")?.as_str()?.to_owned())
            }
        }
    }
}

/// Builds a project of a language that is not Rust: the component, and the file that it is to be called.
pub(super) fn build(
    language: Language,
    folder: &Path,
    offline: bool,
    form: Form,
) -> Result<(Vec<u8>, String), BuildError> {
    let name = language.name(folder).ok_or_else(|| BuildError::Failed {
        program: format!("reading the project's name in {}", language.mark()),
    })?;
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let aside = folder.join("target");
    let file = |path: &Path, e: std::io::Error| BuildError::File {
        path: path.to_owned(),
        reason: e.to_string(),
    };
    std::fs::create_dir_all(&aside).map_err(|e| file(&aside, e))?;
    let made = aside.join("made.wasm");
    let bytes = match language {
        Language::JavaScript | Language::Python if form == Form::Development => {
            development::build(language, &folder)?
        }
        Language::JavaScript | Language::Python => {
            let all = sources(&folder, language);
            once(&made, &state(language, &folder, &all), || {
                whole(language, &folder, &made)
            })?
        }
        // They look by themselves at what has changed.
        Language::Rust | Language::Go => {
            go(&folder, &made, offline)?;
            let module = std::fs::read(&made).map_err(|e| file(&made, e))?;
            component::of_core_module(&module).map_err(|e| BuildError::Failed {
                program: format!("making a component ({e})"),
            })?
        }
    };
    Ok((bytes, super::project::wasm_name(&name)))
}

/// A file that takes long to make: what was made of the same state is taken.
pub(super) fn once(
    made: &Path,
    state: &str,
    make: impl FnOnce() -> Result<(), BuildError>,
) -> Result<Vec<u8>, BuildError> {
    let file = |path: &Path, e: std::io::Error| BuildError::File {
        path: path.to_owned(),
        reason: e.to_string(),
    };
    let stamp = made.with_extension("of");
    let fresh = made.is_file() && std::fs::read_to_string(&stamp).is_ok_and(|of| of == state);
    if !fresh {
        std::fs::remove_file(&stamp).ok();
        make()?;
        std::fs::write(&stamp, state).map_err(|e| file(&stamp, e))?;
    }
    std::fs::read(made).map_err(|e| file(made, e))
}

fn whole(language: Language, folder: &Path, made: &Path) -> Result<(), BuildError> {
    eprintln!("the component is made: this takes a while");
    match language {
        Language::Python => python(folder, made, "whole", "app"),
        _ => js(folder, &["penstock/build.mjs".as_ref(), made.as_os_str()]),
    }
}

/// A digest of what is built of: these files, and which packages and tools are there.
pub(super) fn state(language: Language, folder: &Path, files: &[PathBuf]) -> String {
    let mut all = Sha256::new();
    for path in files {
        let bytes = std::fs::read(path).unwrap_or_default();
        all.update(path.as_os_str().as_encoded_bytes());
        all.update((bytes.len() as u64).to_le_bytes());
        all.update(&bytes);
    }
    match language {
        Language::Rust | Language::Go => {}
        Language::JavaScript => {
            for above in folder.ancestors() {
                let installed = above.join("node_modules/.package-lock.json");
                all.update(std::fs::read(installed).unwrap_or_default());
            }
        }
        Language::Python => {
            let libraries = python_tool(folder)
                .ancestors()
                .nth(2)
                .map(|root| root.join("lib"));
            let names = |folder: &Path| {
                let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
                let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
                paths.sort();
                paths
            };
            // The folders of packages are named with their versions.
            for python in libraries.iter().flat_map(|lib| names(lib)) {
                for package in names(&python.join("site-packages")) {
                    all.update(package.as_os_str().as_encoded_bytes());
                }
            }
        }
    }
    hex::encode(all.finalize())
}

fn run(mut command: Command, name: &str, advice: &'static str) -> Result<(), BuildError> {
    let program = command.get_program().to_owned();
    // What it says is for whoever builds; what we say of it stands alone on standard output.
    let done = command.stdout(Stdio::null()).stderr(Stdio::inherit());
    match done.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(BuildError::Failed {
            program: name.to_owned(),
        }),
        Err(error) => Err(missing(&program, &error, advice)),
    }
}

fn go(folder: &Path, made: &Path, offline: bool) -> Result<(), BuildError> {
    let mut command = Command::new(program("GO", "go"));
    command
        .current_dir(folder)
        .args([
            "build",
            "-trimpath",
            "-buildmode=c-shared",
            "-ldflags=-s -w",
            "-o",
        ])
        .arg(made)
        .arg(".")
        .env("GOOS", "wasip1")
        .env("GOARCH", "wasm");
    if offline {
        command.env("GOPROXY", "off").env("GOTOOLCHAIN", "local");
    }
    run(
        command,
        "go build",
        "install Go 1.24 or newer from https://go.dev/dl",
    )
}

/// Runs a script of the SDK's.
pub(super) fn js(folder: &Path, script: &[&OsStr]) -> Result<(), BuildError> {
    let tool = "node_modules/@bytecodealliance/componentize-js";
    let mut command = Command::new(program("NODE", "node"));
    command.current_dir(folder).args(script);
    // Node looks into the folders above, too.
    if !folder.ancestors().any(|above| above.join(tool).is_dir()) {
        return Err(BuildError::Missing {
            program: "componentize-js".to_owned(),
            advice: "`npm install` in the project's folder fetches it",
        });
    }
    run(
        command,
        &script
            .first()
            .map(|script| script.to_string_lossy())
            .unwrap_or_default(),
        "install Node.js 20 or newer from https://nodejs.org",
    )
}

/// The project's own, or the one on the path.
fn python_tool(folder: &Path) -> PathBuf {
    let own = folder.join(".venv/bin/componentize-py");
    if own.is_file() {
        return own;
    }
    let named = PathBuf::from(program("COMPONENTIZE_PY", "componentize-py"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(&named))
        .find(|file| file.is_file());
    found.unwrap_or(named)
}

/// Has the interpreter read modules, which says what no component could: there, a wrong line is looked up in files that there
/// are not.
pub(super) fn python_reads(folder: &Path, modules: &[PathBuf]) -> Result<(), BuildError> {
    const READ: &str = "import sys\nfor file in sys.argv[1:]:\n  try: compile(open(file, 'rb').read(), file, 'exec')\n  \
                        except SyntaxError as e: sys.exit(f'{file}:{e.lineno}: {e.msg}: {(e.text or \"\").strip()}')";
    let own = python_tool(folder).with_file_name("python3");
    let python = match own.is_file() {
        true => own,
        false => PathBuf::from("python3"),
    };
    let mut command = Command::new(python);
    command.current_dir(folder).args(["-c", READ]).args(modules);
    run(
        command,
        "reading the source",
        "install Python 3.10 or newer from https://python.org",
    )
}

/// Makes a component of a world, of a module.
pub(super) fn python(
    folder: &Path,
    made: &Path,
    world: &str,
    module: &str,
) -> Result<(), BuildError> {
    let mut command = Command::new(python_tool(folder));
    command
        .current_dir(folder)
        .args(["-d", "penstock/penstock.wit", "-w", world, "componentize"])
        .args(["--stub-wasi", "-o"])
        .arg(made)
        .arg(module);
    run(
        command,
        "componentize-py",
        "`python3 -m venv .venv && .venv/bin/pip install componentize-py==0.25.1` in the project's folder fetches it",
    )
}
