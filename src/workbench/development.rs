//! The form for development of transforms in JavaScript and Python: an engine with the SDK, made once, and the transform's source in
//! its file as data, where an edit is made and compiled anew as a whole otherwise.
//!
//! What the source imports beside the project's own modules has to be in the engine: JavaScript's bundle brings it along, Python's
//! loader is made anew when an import changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::build::{BuildError, sources};
use super::languages::{self, Language};
use crate::transform;

/// The file of a project in this form.
pub(super) fn build(language: Language, folder: &Path) -> Result<Vec<u8>, BuildError> {
    let (of_sdk, own): (Vec<PathBuf>, Vec<PathBuf>) = sources(folder, language)
        .into_iter()
        .partition(|path| path.starts_with(folder.join("penstock")));
    let mark = match language {
        Language::Python => "loader.py",
        _ => "loader.js",
    };
    if !folder.join("penstock").join(mark).is_file() {
        return Err(BuildError::File {
            path: folder.join("penstock").join(mark),
            reason:
                "is not there: `penstock plugin new --sdk-only .` in the project's folder writes it"
                    .to_owned(),
        });
    }
    let loader = folder.join("target/loader.wasm");
    let state = languages::state(language, folder, &of_sdk);
    let (engine, source) = match language {
        Language::Python => {
            let (files, imports) = python(folder, &own)?;
            let engine = languages::once(&loader, &format!("{state} {imports}"), || {
                note();
                languages::python(folder, &loader, "whole-of-source", "penstock.loader")
            })?;
            (engine, files)
        }
        _ => {
            // First, since it says what is wrong with the source.
            let bundle = folder.join("target/bundle.json");
            languages::js(
                folder,
                &["penstock/bundle.mjs".as_ref(), bundle.as_os_str()],
            )?;
            let engine = languages::once(&loader, &state, || {
                note();
                let script = [
                    "penstock/build.mjs".as_ref(),
                    loader.as_os_str(),
                    "loader".as_ref(),
                ];
                languages::js(folder, &script)
            })?;
            (engine, read(&bundle)?)
        }
    };
    Ok(transform::with_source(&engine, &source))
}

fn note() {
    eprintln!(
        "the engine for development is made, which takes a while: edits after this take a second"
    );
}

fn read(path: &Path) -> Result<String, BuildError> {
    std::fs::read_to_string(path).map_err(|e| BuildError::File {
        path: path.to_owned(),
        reason: e.to_string(),
    })
}

/// The project's modules by file, in JSON, and all lines of theirs that import something.
fn python(folder: &Path, own: &[PathBuf]) -> Result<(String, String), BuildError> {
    let (mut files, mut imported) = (BTreeMap::new(), Vec::new());
    for path in own
        .iter()
        .filter(|path| path.extension().is_some_and(|ext| ext == "py"))
    {
        let file = path.strip_prefix(folder).unwrap_or(path);
        let parts = file.iter().map(|part| part.to_string_lossy());
        let file = parts.collect::<Vec<_>>().join("/");
        if !file.starts_with("test_") {
            let text = read(path)?;
            imported.extend(imports(&text));
            files.insert(file, text);
        }
    }
    let modules: Vec<PathBuf> = files.keys().map(PathBuf::from).collect();
    languages::python_reads(folder, &modules)?;
    imported.sort();
    imported.dedup();
    Ok((serde_json::json!(files).to_string(), imported.join("; ")))
}

/// The statements of a module that import something, each in a line; a text that looks like one is no harm.
fn imports(text: &str) -> Vec<String> {
    let (mut found, mut open) = (Vec::new(), None::<String>);
    for line in text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
    {
        let statement = match open.take() {
            Some(begun) => format!("{begun} {line}"),
            None if line.starts_with("import ") || line.starts_with("from ") => line.to_owned(),
            None => continue,
        };
        let unfinished = statement.contains('(') && !statement.contains(')');
        if unfinished || statement.ends_with('\\') {
            open = Some(statement);
        } else {
            found.push(statement);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_is_told_from_what_is_none() {
        let text = "import json, re  # two\nfrom a.b import (\n    c,\n    d,\n)\nx = 1\n\
                    def f():\n    import late\n    from importer import g\nimportant = 2\nimport a, \\\n    b\n";
        let found = imports(text);
        let expected = [
            "import json, re",
            "from a.b import ( c, d, )",
            "import late",
            "from importer import g",
            "import a, \\ b",
        ];
        assert_eq!(found, expected);
    }
}
