//! Languages beside Rust: what a project of each is written from, and how its `.wasm` is made.

use std::path::Path;
use std::process::{Command, Stdio};

use super::build::{BuildError, missing, program};
use super::component;

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

type Files = &'static [(&'static str, &'static str)];

const GO: Files = &[
    ("main.go", include_str!("template/go/main.go")),
    ("go.mod", "module {name}\n\ngo 1.24\n"),
];
const GO_SDK: Files = &[
    (
        "penstock.go",
        include_str!("template/go/penstock/penstock.go"),
    ),
    ("rows.go", include_str!("template/go/penstock/rows.go")),
    ("output.go", include_str!("template/go/penstock/output.go")),
    ("bytes.go", include_str!("template/go/penstock/bytes.go")),
    ("abi.go", include_str!("template/go/penstock/abi.go")),
];
const JS: Files = &[
    ("index.js", include_str!("template/js/index.js")),
    ("package.json", include_str!("template/js/package.json")),
];
const JS_SDK: Files = &[
    ("index.js", include_str!("template/js/penstock/index.js")),
    ("build.mjs", include_str!("template/js/penstock/build.mjs")),
];
const PYTHON: Files = &[
    ("app.py", include_str!("template/python/app.py")),
    (
        "pyproject.toml",
        include_str!("template/python/pyproject.toml"),
    ),
];
const PYTHON_SDK: Files = &[(
    "__init__.py",
    include_str!("template/python/penstock/__init__.py"),
)];

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
            Self::Python => Some("pip install componentize-py==0.25.1"),
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
    match language {
        Language::Rust => {}
        Language::Go => go(&folder, &made, offline)?,
        Language::JavaScript => js(&folder, &made)?,
        Language::Python => python(&folder, &made)?,
    }
    let mut bytes = std::fs::read(&made).map_err(|e| file(&made, e))?;
    if language == Language::Go {
        let component = component::of_core_module(&bytes);
        bytes = component.map_err(|e| BuildError::Failed {
            program: format!("making a component ({e})"),
        })?;
    }
    Ok((bytes, super::project::wasm_name(&name)))
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

fn js(folder: &Path, made: &Path) -> Result<(), BuildError> {
    let tool = "node_modules/@bytecodealliance/componentize-js";
    let mut command = Command::new(program("NODE", "node"));
    command
        .current_dir(folder)
        .arg("penstock/build.mjs")
        .arg(made);
    // Node looks into the folders above, too.
    if !folder.ancestors().any(|above| above.join(tool).is_dir()) {
        return Err(BuildError::Missing {
            program: "componentize-js".to_owned(),
            advice: "`npm install` in the project's folder fetches it",
        });
    }
    run(
        command,
        "componentize-js",
        "install Node.js 20 or newer from https://nodejs.org",
    )
}

fn python(folder: &Path, made: &Path) -> Result<(), BuildError> {
    let own = folder.join(".venv/bin/componentize-py");
    let tool = match own.is_file() {
        true => own.into_os_string(),
        false => program("COMPONENTIZE_PY", "componentize-py"),
    };
    let mut command = Command::new(tool);
    command
        .current_dir(folder)
        .args(["-d", "penstock/penstock.wit", "-w", "whole", "componentize"])
        .args(["--stub-wasi", "-o"])
        .arg(made)
        .arg("app");
    run(
        command,
        "componentize-py",
        "`pip install componentize-py==0.25.1`, or install it into the project's .venv",
    )
}
