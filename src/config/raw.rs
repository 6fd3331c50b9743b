//! The layers of a configuration, merged, each value with the place it comes from.
//!
//! TOML is parsed here rather than by figment's own provider because figment keeps no spans, and because
//! a broken file must yield all of its errors. figment merges the layers and tells which one won.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use toml::de::{DeTable, DeValue};

use super::error::{Place, Problem, Reason, Text};
use super::key::Kind;
use super::keys;
use super::layer::{FileLayer, Spans};
use super::mask::{clamp, is_secret, mask};
use super::seen::{Seen, Sources, folder, read_bounded};

/// The variables that configure start so, and have `__` between the steps of a path.
pub(super) const PREFIX: &str = "PENSTOCK_";

/// What a configuration is made from, lowest layer first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// `--config`: files, or folders whose `*.toml` are taken in name order.
    pub files: Vec<PathBuf>,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
    /// `--set key=value`
    pub set: Vec<String>,
}

impl Inputs {
    /// With the environment of this process.
    pub fn from_process(files: Vec<PathBuf>, set: Vec<String>) -> Self {
        Self {
            files,
            environment: std::env::vars_os().collect(),
            set,
        }
    }
}

/// The key's or the value's span of the two.
type Which = fn(&(Range<usize>, Range<usize>)) -> &Range<usize>;

/// The merged layers.
pub(super) struct Raw {
    /// `transform` is a table by name here, so that layers merge by name.
    pub(super) root: Dict,
    /// The names of the transforms, in order of first mention.
    pub(super) transforms: Vec<String>,
    /// What is wrong so far.
    pub(super) problems: Vec<Problem>,
    /// Files and folders that were read or looked for.
    pub(super) sources: Sources,
    /// Some file is not TOML: what is missing may only not have been understood.
    pub(super) broken: bool,
    figment: Figment,
    origins: BTreeMap<String, Origin>,
}

enum Origin {
    File { text: Arc<Text>, spans: Spans },
    Other(Place),
}

struct Layer {
    id: String,
    data: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.id.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.data.clone()))
    }
}

impl Raw {
    /// Reads and merges; what cannot be read is a problem, not an end.
    pub(super) fn read(inputs: &Inputs) -> Self {
        let mut raw = Raw {
            root: Dict::new(),
            transforms: Vec::new(),
            problems: Vec::new(),
            sources: Sources::new(),
            broken: false,
            figment: Figment::new(),
            origins: BTreeMap::new(),
        };
        for path in &inputs.files {
            raw.path(path);
        }
        let mut variables: Vec<_> = inputs.environment.iter().collect();
        variables.sort();
        for (name, value) in variables {
            raw.variable(name, value);
        }
        for flag in &inputs.set {
            raw.flag(flag);
        }
        raw.merge();
        raw
    }

    /// Lets go of the transforms past the bound, so that what is checked of each is bounded too.
    pub(super) fn bound_transforms(&mut self) {
        let count = self.transforms.len();
        if count <= keys::MOST_TRANSFORMS {
            return;
        }
        let first = self.transforms.split_off(keys::MOST_TRANSFORMS);
        if let Some(Value::Dict(_, all)) = self.root.get_mut("transform") {
            all.retain(|name, _| self.transforms.contains(name));
        }
        let place = self.table_place(&["transform".to_owned(), first[0].clone()]);
        let reason = Reason::TooMany {
            key: "transform".to_owned(),
            count,
            most: keys::MOST_TRANSFORMS,
        };
        let help = "one plugin may do what several do now; or split the pipeline, each with a name of its own";
        self.help(reason, place, &[help]);
    }

    /// Brings `root` up to date with the layers.
    pub(super) fn merge(&mut self) {
        match self.figment.data() {
            Ok(mut data) => self.root = data.remove(&Profile::Default).unwrap_or_default(),
            // No provider of ours fails.
            Err(error) => self.problem(
                Reason::Syntax {
                    message: error.to_string(),
                },
                Place::Nowhere,
            ),
        }
    }

    /// Whose value this is, and the place of the value at `path` (or of the nearest table above it).
    pub(super) fn place(&self, value: &Value, path: &[String]) -> Place {
        self.locate(value, path, |(_, value)| value)
    }

    /// The place of the key.
    pub(super) fn key_place(&self, value: &Value, path: &[String]) -> Place {
        self.locate(value, path, |(key, _)| key)
    }

    fn locate(&self, value: &Value, path: &[String], which: Which) -> Place {
        let origin = self
            .figment
            .get_metadata(leaf_tag(value))
            .and_then(|m| self.origins.get(m.name.as_ref()));
        match origin {
            Some(Origin::File { text, spans }) => (0..=path.len())
                .rev()
                .find_map(|n| spans.get(&path[..n]))
                .map_or(Place::Path(text.path.clone()), |spans| {
                    Place::File(text.clone(), which(spans).clone())
                }),
            Some(Origin::Other(place)) => place.clone(),
            None => Place::Nowhere,
        }
    }

    /// Where the key of a table stands first in any file, for what is missing from it; else the first file.
    pub(super) fn table_place(&self, path: &[String]) -> Place {
        let files = self.origins.values().filter_map(|origin| match origin {
            Origin::File { text, spans } => Some((text, spans)),
            Origin::Other(_) => None,
        });
        files
            .clone()
            .find_map(|(text, spans)| Some(Place::File(text.clone(), spans.get(path)?.0.clone())))
            .or_else(|| {
                files
                    .clone()
                    .next()
                    .map(|(text, _)| Place::Path(text.path.clone()))
            })
            .unwrap_or(Place::Nowhere)
    }

    fn problem(&mut self, reason: Reason, place: Place) {
        self.help(reason, place, &[]);
    }

    fn help(&mut self, reason: Reason, place: Place, help: &[&str]) {
        self.problems.push(Problem {
            reason,
            place,
            help: help.iter().map(|h| (*h).to_owned()).collect(),
        });
    }

    fn path(&mut self, path: &Path) {
        if !path.is_dir() {
            return self.file(path);
        }
        self.sources.insert(path.to_owned(), Seen::of(path));
        match folder(path) {
            Ok(files) => {
                if files.is_empty() {
                    let reason = Reason::EmptyFolder {
                        path: path.display().to_string(),
                    };
                    self.problem(reason, Place::Nowhere);
                }
                for file in files {
                    self.file(&file);
                }
            }
            Err(error) => self.unreadable(path, &error),
        }
    }

    fn unreadable(&mut self, path: &Path, error: &std::io::Error) {
        let reason = Reason::Unreadable {
            path: path.display().to_string(),
            error: error.to_string(),
        };
        self.broken = true;
        let help =
            "give the right path with --config, or write a file to start from with `penstock init`";
        self.help(reason, Place::Nowhere, &[help]);
    }

    fn file(&mut self, path: &Path) {
        let shown = path.display().to_string();
        let read = read_bounded(path);
        self.sources
            .insert(path.to_owned(), Seen::read(path, &read));
        match read {
            Ok(Ok(bytes)) => match String::from_utf8(bytes) {
                Ok(text) => self.text(path, &text),
                Err(error) => {
                    self.broken = true;
                    let at = error.utf8_error().valid_up_to();
                    let line = error.as_bytes()[..at]
                        .iter()
                        .filter(|b| **b == b'\n')
                        .count()
                        + 1;
                    let help =
                        format!("TOML is UTF-8; the first byte that is not stands in line {line}");
                    self.help(
                        Reason::NotUtf8 { path: shown },
                        Place::Path(path.to_owned()),
                        &[&help],
                    );
                }
            },
            Ok(Err(size)) => {
                self.broken = true;
                let reason = Reason::TooLarge { path: shown, size };
                self.help(
                    reason,
                    Place::Nowhere,
                    &["a configuration has 1 MiB at most"],
                );
            }
            Err(error) => self.unreadable(path, &error),
        }
    }

    /// Adds a layer of TOML; public to the module for the built-in files and the tests.
    pub(super) fn text(&mut self, path: &Path, text: &str) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut layer = FileLayer::default();
        let mut data = layer.table(table.get_ref(), &mut Vec::new());
        layer.transforms(&mut data);
        // `penstock test` reads them; no running pipeline does.
        if matches!(data.get("tests"), Some(Value::Array(..))) {
            data.remove("tests");
        }
        let shown = Arc::new(Text {
            path: path.to_owned(),
            shown: mask(text, &layer.secrets),
        });
        for error in &errors {
            self.broken = true;
            let span = error.span().unwrap_or(0..0);
            let message = error.message().to_owned();
            // The parser takes anything that it does not know for text, whatever the key takes.
            let help: &[&str] = match message.starts_with("string values must be quoted") {
                true => &[
                    "a key has one value: text in quotes, or a number, true, false, [a list], { a table }",
                ],
                false => &[],
            };
            let place = Place::File(shown.clone(), clamp(span, text));
            self.help(Reason::Syntax { message }, place, help);
        }
        if layer.not_array {
            let span = layer.spans.get(&["transform".to_owned()][..]);
            let reason = Reason::WrongType {
                key: "transform".to_owned(),
                found: "not a list of tables".to_owned(),
            };
            let place = Place::File(shown.clone(), span.map_or(0..0, |(key, _)| key.clone()));
            self.help(
                reason,
                place,
                &["write [[transform]], with two brackets, for each"],
            );
        }
        for (mut path, first, name) in layer.twice {
            path.push("name".to_owned());
            let span = layer.spans.get(&path).map_or(0..0, |(_, v)| v.clone());
            let reason = Reason::Duplicate {
                key: show_path(&path),
                found: format!("{name:?}"),
                first: format!("transform[{first}].name"),
            };
            let help = "each transform has a name of its own";
            self.help(reason, Place::File(shown.clone(), span), &[help]);
        }
        for name in layer.names {
            if !self.transforms.contains(&name) {
                self.transforms.push(name);
            }
        }
        let spans = layer.spans;
        self.add(data, Origin::File { text: shown, spans });
    }

    fn add(&mut self, data: Dict, origin: Origin) {
        // Sorted as added: `table_place` looks at them in this order.
        let id = format!("{:04}", self.origins.len());
        self.origins.insert(id.clone(), origin);
        self.figment = std::mem::take(&mut self.figment).merge(Layer { id, data });
    }

    fn variable(&mut self, name: &OsString, value: &OsString) {
        let Some(name) = name.to_str() else { return };
        let Some(rest) = name
            .strip_prefix(PREFIX)
            .filter(|r| !r.starts_with("TEST_"))
        else {
            return;
        };
        let place = Place::Variable(name.to_owned());
        if !rest.contains("__") {
            // Other things start with the prefix too (Kubernetes makes some up); only what can have been
            // meant as a key is an error.
            let squashed = rest.to_ascii_lowercase();
            if let Some(key) = keys::all()
                .iter()
                .find(|k| k.path.replace('.', "_") == squashed)
            {
                let help = format!(
                    "write {PREFIX}{}",
                    key.path.replace('.', "__").to_uppercase()
                );
                let variable = name.to_owned();
                self.help(Reason::MisspelledVariable { variable }, place, &[&help]);
            }
            return;
        }
        let path: Vec<String> = rest.split("__").map(str::to_ascii_lowercase).collect();
        let Some(path) = self.resolve(path, &place) else {
            return;
        };
        let Some(value) = value.to_str() else {
            let path = name.to_owned();
            return self.problem(Reason::NotUtf8 { path }, place);
        };
        self.single(&path, value, place);
    }

    fn flag(&mut self, flag: &str) {
        let parsed = flag.split_once('=').and_then(|(key, value)| {
            let table = format!("{} = 0", key.trim());
            let path = key_path(DeTable::parse(&table).ok()?.get_ref())?;
            Some((path, value))
        });
        match parsed {
            // The value may be a secret that does not belong here.
            Some((path, value)) => {
                let key = flag.split_once('=').map_or(flag, |(key, _)| key);
                let place = Place::Flag(format!("{key}=…"));
                if let Some(path) = self.resolve(path, &place) {
                    let shown = if is_secret(&path) { "***" } else { value };
                    self.single(&path, value, Place::Flag(format!("{key}={shown}")));
                }
            }
            None => {
                let key = flag.split('=').next().unwrap_or_default();
                let reason = Reason::MalformedFlag {
                    flag: key.to_owned(),
                };
                let help = "write --set sink.breaker.failure_threshold=10";
                self.help(reason, Place::Flag(key.to_owned()), &[help]);
            }
        }
    }

    /// A transform is meant by its name, whatever the case and whether with `-` or `_`: a variable has
    /// neither lower case nor `-`.
    fn resolve(&mut self, mut path: Vec<String>, place: &Place) -> Option<Vec<String>> {
        if path.len() < 2 || path[0] != "transform" {
            return Some(path);
        }
        let plain = |name: &str| name.to_ascii_lowercase().replace('-', "_");
        let wanted = plain(&path[1]);
        if let Some(name) = self.transforms.iter().find(|n| plain(n) == wanted) {
            path[1] = name.clone();
            return Some(path);
        }
        let names: Vec<&str> = self.transforms.iter().map(String::as_str).collect();
        let help = match names[..] {
            [] => "there is none".to_owned(),
            _ => format!(
                "there is {}",
                super::key::one_of(&names).replace(" or ", " and ")
            ),
        };
        let name = path[1].clone();
        self.help(Reason::UnknownTransform { name }, place.clone(), &[&help]);
        None
    }

    fn single(&mut self, path: &[String], value: &str, place: Place) {
        let kind = keys::get(&keys::pattern(path)).map(|key| key.kind);
        let value = match kind {
            // A secret may well begin and end with a quote.
            Some(Kind::Secret) => Value::from(value),
            Some(kind) => {
                let list = matches!(kind, Kind::Nodes | Kind::List(_) | Kind::Words(_));
                let toml = from_text(value, list);
                // A name may look like a number, and a time is one of TOML's own.
                if kind.is_text() && !matches!(toml, Value::String(..)) {
                    Value::from(value)
                } else {
                    toml
                }
            }
            None => from_text(value, false),
        };
        let data = path.iter().rev().fold(value, |inner, step| {
            Value::from(Dict::from_iter([(step.clone(), inner)]))
        });
        if let Some(data) = data.into_dict() {
            self.add(data, Origin::Other(place));
        }
    }
}

/// The tag of a value, or of the first leaf below it: figment keeps whole layers apart, not tables.
fn leaf_tag(value: &Value) -> figment::value::Tag {
    match value {
        Value::Dict(tag, dict) => dict.values().next().map_or(*tag, leaf_tag),
        other => other.tag(),
    }
}

/// A value from the environment or a flag: TOML where it is that, else a string; a list may also be
/// written with commas.
pub(super) fn from_text(text: &str, list: bool) -> Value {
    let document = format!("v = {text}");
    if let Ok(table) = DeTable::parse(&document)
        && table.get_ref().len() == 1
        && let Some(value) = table.get_ref().get("v")
    {
        return FileLayer::default().value(value.get_ref(), value.span(), &mut Vec::new());
    }
    if list && text != "embedded" {
        return Value::from(text.split(',').map(str::trim).collect::<Vec<_>>());
    }
    Value::from(text)
}

/// The path of a document that holds one key.
fn key_path(table: &DeTable<'_>) -> Option<Vec<String>> {
    let mut entries = table.iter();
    let (Some((key, value)), None) = (entries.next(), entries.next()) else {
        return None;
    };
    let mut path = vec![key.get_ref().to_string()];
    if let DeValue::Table(inner) = value.get_ref() {
        path.extend(key_path(inner)?);
    }
    Some(path)
}

/// A path as users write it.
pub(super) fn show_path(path: &[String]) -> String {
    let mut out = String::new();
    for step in path {
        let numbered = step.starts_with('[') && step.ends_with(']');
        if !out.is_empty() && !numbered {
            out.push('.');
        }
        let bare = numbered
            || !step.is_empty()
                && step
                    .chars()
                    .all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '*'));
        if bare {
            out.push_str(step);
        } else {
            out.push_str(&format!("{step:?}"));
        }
    }
    out
}
