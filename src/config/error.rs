//! What is wrong with a configuration, where, and what would do.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// Rendering stops here; the rest is counted. A binary file taken for TOML has thousands.
const SHOWN: usize = 100;

/// Why a configuration is refused. Each has a fixture in `tests/config/invalid`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// A file or folder cannot be read.
    #[error("cannot read {path}: {error}")]
    Unreadable {
        /// As it was named.
        path: String,
        /// What the system said.
        error: String,
    },
    /// A folder without a single `*.toml`.
    #[error("the folder {path} holds no *.toml")]
    EmptyFolder {
        /// As it was named.
        path: String,
    },
    /// The file is larger than any configuration.
    #[error("{path} has {size} bytes")]
    TooLarge {
        /// As it was named.
        path: String,
        /// In bytes.
        size: u64,
    },
    /// The file is not text.
    #[error("{path} is not UTF-8")]
    NotUtf8 {
        /// As it was named.
        path: String,
    },
    /// It is not TOML.
    #[error("{message}")]
    Syntax {
        /// What the parser said.
        message: String,
    },
    /// Nobody knows the key.
    #[error("unknown key `{key}`")]
    UnknownKey {
        /// Its path.
        key: String,
    },
    /// A variable of the environment that looks like a key, with the wrong separator.
    #[error("`{variable}` sets nothing")]
    MisspelledVariable {
        /// Its name.
        variable: String,
    },
    /// The environment or a flag speaks of a transform that no file has.
    #[error("there is no transform `{name}`")]
    UnknownTransform {
        /// The name.
        name: String,
    },
    /// `--set` that is not `key=value`.
    #[error("`{flag}` is not key=value")]
    MalformedFlag {
        /// What was given.
        flag: String,
    },
    /// A value of another type.
    #[error("`{key}` is {found}")]
    WrongType {
        /// Its path.
        key: String,
        /// What stands there.
        found: String,
    },
    /// A number out of range.
    #[error("`{key}` is {found}, which is out of range")]
    OutOfRange {
        /// Its path.
        key: String,
        /// What stands there.
        found: String,
    },
    /// A text that does not read as what it should be.
    #[error("`{key}` is {found}, which is malformed")]
    Malformed {
        /// Its path.
        key: String,
        /// What stands there.
        found: String,
    },
    /// None of the words that may stand here.
    #[error("`{key}` is {found}, which is none of its values")]
    UnknownChoice {
        /// Its path.
        key: String,
        /// What stands there.
        found: String,
    },
    /// A name that breaks the rule for such names.
    #[error("`{key}` is {found}, which is not legal")]
    IllegalValue {
        /// Its path.
        key: String,
        /// What stands there.
        found: String,
    },
    /// A list that must not be empty.
    #[error("`{key}` is an empty list")]
    EmptyList {
        /// Its path.
        key: String,
    },
    /// The same twice.
    #[error("`{key}` is {found}, which `{first}` is already")]
    Duplicate {
        /// Its path.
        key: String,
        /// What stands there.
        found: String,
        /// Where it stands first.
        first: String,
    },
    /// More of something than is meant to be.
    #[error("there are {count} `{key}`, and {most} is the most")]
    TooMany {
        /// Their path.
        key: String,
        /// How many there are.
        count: usize,
        /// How many may be.
        most: usize,
    },
    /// A key that must be set.
    #[error("`{key}` is missing")]
    Missing {
        /// Its path.
        key: String,
    },
    /// A secret in a file or on the command line.
    #[error("`{key}` is a secret and stands in the open")]
    OpenSecret {
        /// Its path.
        key: String,
    },
    /// A secret given twice.
    #[error("both `{key}` and `{key}_file` are set")]
    SecretTwice {
        /// The path without `_file`.
        key: String,
    },
    /// A secret's file that cannot be used.
    #[error("`{key}` names {path}, which cannot be used: {error}")]
    SecretFile {
        /// Its path.
        key: String,
        /// The file.
        path: String,
        /// What is wrong with it.
        error: String,
    },
    /// A password without a user, or the other way round.
    #[error("`{key}` is set without `{other}`")]
    Half {
        /// What is set.
        key: String,
        /// What is not.
        other: String,
    },
    /// A plugin's file that is not there.
    #[error("`{key}` names {path}, which cannot be read: {error}")]
    PluginFile {
        /// Its path.
        key: String,
        /// The file.
        path: String,
        /// What the system said.
        error: String,
    },
    /// A plugin that does not load.
    #[error("`{key}` names {path}, which is not a plugin that loads: {error}")]
    PluginRejected {
        /// Its path.
        key: String,
        /// The file.
        path: String,
        /// What the engine said.
        error: String,
    },
    /// Settings that their plugin refuses.
    #[error("`{key}`: plugin {plugin} refuses it: {error}")]
    SettingsRefused {
        /// The path of the setting, or of all of them.
        key: String,
        /// The plugin's file.
        plugin: String,
        /// What the plugin says.
        error: String,
    },
    /// Dead letters would mix with what they are about.
    #[error("dead letters would go to `{topic}`, which is also {what}")]
    DeadLetterTopic {
        /// The topic.
        topic: String,
        /// What it is besides.
        what: String,
    },
    /// Compaction by the partition key would take rows away.
    #[error(
        "compacted topics keep one record a key, and `sink.key` is the partition key: of a partition's rows one would be left"
    )]
    CompactedPartitions,
    /// A topic's name, filled in, is not legal.
    #[error("`{key}` makes the topic `{topic}`, which is not legal")]
    IllegalTopic {
        /// Its path.
        key: String,
        /// Filled in.
        topic: String,
    },
    /// Two values in the wrong order.
    #[error("`{low}` is {low_value}, above `{high}`, which is {high_value}")]
    Order {
        /// What must be the lower …
        low: String,
        /// … and is this.
        low_value: String,
        /// What must be the higher …
        high: String,
        /// … and is this.
        high_value: String,
    },
    /// A librdkafka property that would break a guarantee.
    #[error("the property `{name}` cannot be set: {why}")]
    ForbiddenProperty {
        /// The property.
        name: String,
        /// What it would break.
        why: &'static str,
    },
    /// librdkafka does not take them.
    #[error("librdkafka refuses `sink.properties`: {error}")]
    PropertiesRejected {
        /// What it said.
        error: String,
    },
    /// A dead owner would block readers for longer than it takes to replace it.
    #[error(
        "`transaction.timeout.ms` is {transaction}, not below `session.timeout.ms`, which is {session}"
    )]
    TransactionTimeout {
        /// In milliseconds.
        transaction: u64,
        /// In milliseconds.
        session: u64,
    },
    /// The admin interface would be open to the network.
    #[error("`admin.listen` is {listen}, which is open to the network, and there is no token")]
    ExposedAdmin {
        /// The address.
        listen: String,
    },
    /// A stand-in that this binary is without.
    #[error("`{key}` is \"embedded\", and this binary is built without the stand-ins")]
    NotEmbedded {
        /// Its path.
        key: String,
    },
    /// Health would watch a stage that there is not.
    #[error("`{key}` names the stage `{stage}`, which there is not")]
    UnknownStage {
        /// Its path.
        key: String,
        /// The name.
        stage: String,
    },
}

impl Reason {
    /// Its stable name, for `--json` and the fixtures.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "unreadable",
            Self::EmptyFolder { .. } => "empty-folder",
            Self::TooLarge { .. } => "too-large",
            Self::NotUtf8 { .. } => "not-utf8",
            Self::Syntax { .. } => "syntax",
            Self::UnknownKey { .. } => "unknown-key",
            Self::MisspelledVariable { .. } => "misspelled-variable",
            Self::UnknownTransform { .. } => "unknown-transform",
            Self::MalformedFlag { .. } => "malformed-flag",
            Self::WrongType { .. } => "wrong-type",
            Self::OutOfRange { .. } => "out-of-range",
            Self::Malformed { .. } => "malformed",
            Self::UnknownChoice { .. } => "unknown-choice",
            Self::IllegalValue { .. } => "illegal-value",
            Self::EmptyList { .. } => "empty-list",
            Self::Duplicate { .. } => "duplicate",
            Self::TooMany { .. } => "too-many",
            Self::Missing { .. } => "missing",
            Self::OpenSecret { .. } => "open-secret",
            Self::SecretTwice { .. } => "secret-twice",
            Self::SecretFile { .. } => "secret-file",
            Self::Half { .. } => "half",
            Self::PluginFile { .. } => "plugin-file",
            Self::PluginRejected { .. } => "plugin-rejected",
            Self::SettingsRefused { .. } => "settings-refused",
            Self::DeadLetterTopic { .. } => "dead-letter-topic",
            Self::CompactedPartitions => "compacted-partitions",
            Self::IllegalTopic { .. } => "illegal-topic",
            Self::Order { .. } => "order",
            Self::ForbiddenProperty { .. } => "forbidden-property",
            Self::PropertiesRejected { .. } => "properties-rejected",
            Self::TransactionTimeout { .. } => "transaction-timeout",
            Self::ExposedAdmin { .. } => "exposed-admin",
            Self::NotEmbedded { .. } => "not-embedded",
            Self::UnknownStage { .. } => "unknown-stage",
        }
    }

    /// Every [`code`](Self::code); a test holds it against the enum and the fixtures.
    pub const CODES: [&'static str; 35] = [
        "unreadable",
        "empty-folder",
        "too-large",
        "not-utf8",
        "syntax",
        "unknown-key",
        "misspelled-variable",
        "unknown-transform",
        "malformed-flag",
        "wrong-type",
        "out-of-range",
        "malformed",
        "unknown-choice",
        "illegal-value",
        "empty-list",
        "duplicate",
        "too-many",
        "missing",
        "open-secret",
        "secret-twice",
        "secret-file",
        "half",
        "plugin-file",
        "plugin-rejected",
        "settings-refused",
        "dead-letter-topic",
        "compacted-partitions",
        "illegal-topic",
        "order",
        "forbidden-property",
        "properties-rejected",
        "transaction-timeout",
        "exposed-admin",
        "not-embedded",
        "unknown-stage",
    ];
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// A span of a file.
    File(Arc<Text>, Range<usize>),
    /// A file as a whole.
    Path(PathBuf),
    /// A variable of the environment.
    Variable(String),
    /// A `--set` on the command line.
    Flag(String),
    /// The configuration as a whole.
    Nowhere,
}

/// A file's text as it may be shown: secrets are masked, byte for byte.
#[derive(Debug, PartialEq, Eq)]
pub struct Text {
    /// As it was named.
    pub path: PathBuf,
    /// Masked.
    pub shown: String,
}

impl Text {
    /// Line and column of a byte, both from 1; columns count characters.
    pub fn line_column(&self, at: usize) -> (usize, usize) {
        let mut at = at.min(self.shown.len());
        while !self.shown.is_char_boundary(at) {
            at -= 1;
        }
        let before = &self.shown[..at];
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |n| n + 1);
        (line, before[start..].chars().count() + 1)
    }
}

impl Place {
    /// Where a byte of a text stands that is the value of this place; the whole value where it is written with escapes.
    pub(super) fn within(self, at: usize) -> Self {
        let Self::File(text, span) = self else {
            return self;
        };
        let value = text.shown.get(span.clone()).unwrap_or_default();
        let long = value.starts_with("\"\"\"") || value.starts_with("'''");
        let quote = if long { 3 } else { 1 };
        if !value.starts_with(['"', '\'']) || (value.starts_with('"') && value.contains('\\')) {
            return Self::File(text, span);
        }
        // A line's end right behind the opening is not part of the text.
        let body = value.get(quote..).unwrap_or_default();
        let skipped = match (long, body.as_bytes()) {
            (true, [b'\r', b'\n', ..]) => 2,
            (true, [b'\n', ..]) => 1,
            _ => 0,
        };
        let start = (span.start + quote + skipped + at).min(span.end.saturating_sub(quote));
        let rest = text.shown.get(start..span.end).unwrap_or_default();
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let first = rest.chars().next().map_or(0, char::len_utf8);
        let len = rest.find(|c| !word(c)).unwrap_or(rest.len()).max(first);
        Self::File(text, start..start + len)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::File(text, span) => {
                let (line, column) = text.line_column(span.start);
                write!(f, "{}:{line}:{column}", text.path.display())
            }
            Place::Path(path) => write!(f, "{}", path.display()),
            Place::Variable(name) => write!(f, "environment variable {name}"),
            Place::Flag(flag) => write!(f, "command line --set {flag}"),
            Place::Nowhere => f.write_str("the configuration"),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// What.
    pub reason: Reason,
    /// Where.
    pub place: Place,
    /// What would do.
    pub help: Vec<String>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)?;
        for help in &self.help {
            write!(f, "; {help}")?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a configuration, in the order of its files.
#[derive(Clone, Debug, PartialEq)]
pub struct Invalid {
    /// Never empty.
    pub problems: Vec<Problem>,
    /// What was read, so that a watcher sees the file that is put right.
    pub sources: super::Sources,
}

impl std::error::Error for Invalid {}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.problems[..] {
            [] => f.write_str("the configuration is refused"),
            [one] => one.fmt(f),
            [first, rest @ ..] => write!(f, "{first} (and {} more)", rest.len()),
        }
    }
}

impl Invalid {
    /// All problems with their source snippets, for a terminal.
    pub fn render(&self, styled: bool) -> String {
        let renderer = if styled {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let mut out = String::new();
        for problem in self.problems.iter().take(SHOWN) {
            let title = printable(&problem.reason.to_string());
            let mut group = Level::ERROR
                .primary_title(title)
                .id(problem.reason.code())
                .element_of(&problem.place);
            for help in &problem.help {
                group = group.element(Level::HELP.message(printable(help)));
            }
            out.push_str(&renderer.render(&[group]));
            out.push_str("\n\n");
        }
        if let Some(more) = self.problems.len().checked_sub(SHOWN).filter(|n| *n > 0) {
            out.push_str(&format!("… and {more} more\n\n"));
        }
        let n = self.problems.len();
        out.push_str(&format!("{n} error{}\n", if n == 1 { "" } else { "s" }));
        out
    }

    /// The same for a program: an array of `{ code, message, help, file, line, column, variable, flag }`.
    pub fn to_json(&self) -> serde_json::Value {
        let problems = self.problems.iter().map(|p| {
            let mut object = serde_json::json!({
                "code": p.reason.code(),
                "message": p.reason.to_string(),
                "help": p.help,
            });
            match &p.place {
                Place::File(text, span) => {
                    let (line, column) = text.line_column(span.start);
                    object["file"] = text.path.to_string_lossy().into();
                    object["line"] = line.into();
                    object["column"] = column.into();
                }
                Place::Path(path) => object["file"] = path.to_string_lossy().into(),
                Place::Variable(name) => object["variable"] = name.as_str().into(),
                Place::Flag(flag) => object["flag"] = flag.as_str().into(),
                Place::Nowhere => {}
            }
            object
        });
        problems.collect()
    }
}

trait ElementOf<'a> {
    fn element_of(self, place: &'a Place) -> annotate_snippets::Group<'a>;
}

impl<'a> ElementOf<'a> for annotate_snippets::Title<'a> {
    /// The snippet of a place in a file; a line that names any other.
    fn element_of(self, place: &'a Place) -> annotate_snippets::Group<'a> {
        match place {
            Place::File(text, span) => self.element(
                Snippet::source(text.shown.as_str())
                    .path(text.path.to_string_lossy())
                    .annotation(AnnotationKind::Primary.span(span.clone())),
            ),
            Place::Nowhere => annotate_snippets::Group::with_title(self),
            other => {
                self.element(Level::NOTE.message(format!("in {}", printable(&other.to_string()))))
            }
        }
    }
}

/// Control characters escaped: a message must not move a terminal's cursor.
fn printable(text: &str) -> String {
    if text.chars().any(char::is_control) {
        text.chars()
            .flat_map(|c| match c {
                c if c.is_control() => c.escape_default().collect::<Vec<_>>(),
                c => vec![c],
            })
            .collect()
    } else {
        text.to_owned()
    }
}
