//! The plugins that Penstock comes with: in the program itself, and named `stock:<name>` wherever a plugin's file is.

use std::path::Path;

use super::walk::nearest;

/// What stands before the name of one where else a path does.
const PREFIX: &str = "stock:";

/// Their names, and what each does.
const ALL: [(&str, &str); 8] = [
    ("cloudevents", "events as CloudEvents, binary or structured"),
    (
        "debezium-envelope",
        "changes as Debezium's JSON: before, after, source, op",
    ),
    ("dedupe", "lets go of events whose key was seen before"),
    (
        "filter",
        "by an expression over columns, operation and images, or over records",
    ),
    (
        "outbox-router",
        "an outbox table's rows as events, as Debezium's router does",
    ),
    (
        "project",
        "chooses, renames, casts, nests and flattens fields",
    ),
    ("redact", "drops, masks or hashes fields of records"),
    ("route", "topic, key and headers by templates"),
];

/// Those that were built before the program was.
const BUILT_IN: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/stock.rs"));

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Stock {
    /// Its name.
    pub name: &'static str,
    /// What it does, in some words.
    pub about: &'static str,
    /// Its code; `None`: it was not there when this program was built.
    pub bytes: Option<&'static [u8]>,
}

/// All of them, by name.
pub fn all() -> impl Iterator<Item = Stock> {
    ALL.into_iter().map(|(name, about)| Stock {
        name,
        about,
        bytes: BUILT_IN
            .iter()
            .find(|(built, _)| *built == name)
            .map(|(_, bytes)| *bytes),
    })
}

/// Whether one is called so.
pub fn is_one(name: &str) -> bool {
    ALL.iter().any(|(stock, _)| *stock == name)
}

/// The name of the one that a plugin's path stands for; `None`: it is a path.
pub fn name(path: &Path) -> Option<&str> {
    path.to_str()?.strip_prefix(PREFIX)
}

/// The code of the one of this name.
///
/// # Errors
/// There is none, or not in this program; and what would do.
pub fn bytes(name: &str) -> Result<&'static [u8], Absent> {
    match all().find(|stock| stock.name == name) {
        None => Err(Absent {
            why: format!("Penstock comes with no plugin {name:?}"),
            help: match nearest(name, ALL.iter().map(|(name, _)| *name)) {
                Some(near) => format!("did you mean `{PREFIX}{near}`?"),
                None => format!("there are: {}", names()),
            },
        }),
        Some(stock) => stock.bytes.ok_or_else(|| Absent {
            why: "this program was built without it".to_owned(),
            help: "`cargo xtask plugins` before `cargo build` puts it in".to_owned(),
        }),
    }
}

fn names() -> String {
    ALL.map(|(name, _)| name).join(", ")
}

/// Why there is no code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// What was found.
    pub why: String,
    /// What would do.
    pub help: String,
}

/// What may be meant by a path that leads nowhere: `filter`, `plugins/filter.wasm`.
pub fn meant(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    match nearest(&stem.replace('_', "-"), ALL.iter().map(|(name, _)| *name)) {
        Some(near) => format!("did you mean `{PREFIX}{near}`, which needs no file?"),
        None => {
            "the plugins that Penstock comes with need no file: `penstock plugin stock` lists them"
                .to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stock_plugins_are_those_that_have_a_page() {
        let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/plugins");
        let mut named: Vec<_> = std::fs::read_dir(pages)
            .unwrap()
            .map(|page| page.unwrap().path().file_stem().unwrap().to_owned())
            .filter(|name| name != "languages" && name != "sdk")
            .collect();
        named.sort();
        assert_eq!(named, ALL.map(|(name, _)| name));
        // A name that build.rs does not know would never be in.
        assert!(BUILT_IN.iter().all(|(name, _)| is_one(name)));
        let build = include_str!("../../build.rs");
        assert!(
            ALL.iter()
                .all(|(name, _)| build.contains(&format!("{name:?}")))
        );
    }

    #[test]
    fn names_stand_where_paths_do() {
        assert_eq!(name(Path::new("stock:filter")), Some("filter"));
        assert_eq!(name(Path::new("./stock:filter")), None);
        assert_eq!(
            bytes("filtr").unwrap_err().help,
            "did you mean `stock:filter`?"
        );
        assert!(
            bytes("nothing-like-it")
                .unwrap_err()
                .help
                .starts_with("there are: cloudevents, ")
        );
        for path in ["filter", "plugins/filter.wasm", "outbox_router.wasm"] {
            assert!(
                meant(Path::new(path)).starts_with("did you mean `stock:"),
                "{path}"
            );
        }
        assert!(meant(Path::new("mine.wasm")).contains("penstock plugin stock"));
    }
}
