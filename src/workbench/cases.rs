//! Golden tests of a plugin: files of cases, each with changes in and what became of them out.
//!
//! JSON is compared as JSON, an error by the words that are expected within it, everything else byte for byte.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use penstock_conditions::exact;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::changes::{Tables, read_lines};
use super::trial::{self, Scope, TrialError};
use crate::transform::{Plugin, PluginError};

/// A file of cases, in TOML or JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// `keyspace.name` and its columns.
    #[serde(default)]
    tables: BTreeMap<String, String>,
    #[serde(default)]
    case: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default)]
    settings: Map<String, Value>,
    #[serde(default)]
    changes: Vec<Value>,
    /// A file beside this one with a change a line, as `penstock record` writes it.
    changes_from: Option<PathBuf>,
    expect: Option<Vec<Value>>,
    /// The tables of the transform, by name, as in pipeline.toml: changes of others pass it by.
    #[serde(default)]
    tables: Vec<String>,
    /// Its condition, likewise.
    when: Option<String>,
    /// The settings are refused with these words.
    refused: Option<String>,
}

/// What came of the cases of a file.
#[derive(Debug)]
pub struct Ran {
    /// Of those that were run, in order.
    pub verdicts: Vec<Verdict>,
    /// The names of those that were not asked for.
    pub left_out: Vec<String>,
}

/// What came of one case.
#[derive(Debug)]
pub struct Verdict {
    /// The case's name.
    pub name: String,
    /// What differs, to be printed; `None`: nothing does.
    pub wrong: Option<String>,
}

/// The files of cases below a folder, or the one that is named, in name order.
///
/// # Errors
/// The folder cannot be read, or holds none.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let said = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(said)? {
        let file = entry.map_err(said)?.path();
        if file
            .extension()
            .is_some_and(|ext| ext == "toml" || ext == "json")
        {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(format!(
            "{} holds no *.toml and no *.json with cases",
            path.display()
        ));
    }
    Ok(files)
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|ext| ext == "json")
}

fn parse(path: &Path) -> Result<(String, File), String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let parsed = match is_json(path) {
        true => serde_json::from_str(&exact(&text)).map_err(|e| e.to_string()),
        false => toml::from_str(&text).map_err(|e| e.to_string()),
    };
    let file: File = parsed.map_err(|e| format!("{}: {e}", path.display()))?;
    Ok((text, file))
}

/// The tables and changes of a file of cases, or of lines: something to run a plugin over.
///
/// # Errors
/// It is not well-formed.
pub fn material(path: &Path) -> Result<(Tables, Vec<Value>), String> {
    let mut tables = Tables::default();
    if path
        .extension()
        .is_some_and(|ext| ext == "toml" || ext == "json")
    {
        let (_, file) = parse(path)?;
        for (name, columns) in &file.tables {
            tables.add(name, columns)?;
        }
        let changes = file.case.into_iter().flat_map(|case| case.changes);
        return Ok((tables, changes.collect()));
    }
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let changes = read_lines(&text, &mut tables).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok((tables, changes))
}

/// Runs the cases of a file, or those with `filter` in their names; with `bless` what came of them is written into the file as
/// what is expected.
///
/// # Errors
/// The file is not well-formed, or cannot be written.
pub fn run(
    plugin: &Arc<Plugin>,
    path: &Path,
    filter: Option<&str>,
    bless: bool,
) -> Result<Ran, String> {
    let (text, file) = parse(path)?;
    let here = |e: String| format!("{}: {e}", path.display());
    let mut tables = Tables::default();
    for (name, columns) in &file.tables {
        tables.add(name, columns).map_err(here)?;
    }
    distinct(&text, &file.case).map_err(here)?;
    let mut verdicts = Vec::new();
    let mut left_out = Vec::new();
    let mut blessed = Vec::new();
    for (at, case) in file.case.iter().enumerate() {
        if filter.is_some_and(|part| !case.name.contains(part)) {
            left_out.push(case.name.clone());
            continue;
        }
        let within = |e: String| here(format!("case {:?}: {e}", case.name));
        let (mut tables, mut changes) = (tables.clone(), case.changes.clone());
        if let Some(from) = &case.changes_from {
            let from = path.parent().unwrap_or(Path::new("")).join(from);
            let lines = std::fs::read_to_string(&from)
                .map_err(|e| within(format!("{}: {e}", from.display())))?;
            changes.extend(read_lines(&lines, &mut tables).map_err(within)?);
        }
        let scope = Scope {
            tables: &case.tables,
            when: case.when.as_deref(),
        };
        let outcome = trial::chain(plugin, &case.settings, &tables, scope)
            .and_then(|mut chain| trial::run(&mut chain, &tables, &changes));
        let got = match outcome {
            Ok(outcomes) => Ok(outcomes
                .iter()
                .map(trial::Outcome::to_json)
                .collect::<Vec<_>>()),
            Err(TrialError::Plugin(PluginError::Configure { message, .. })) => Err(message),
            Err(other) => return Err(within(other.to_string())),
        };
        let wrong = differs(case, &got);
        if bless && wrong.is_some() {
            blessed.push((at, got));
        }
        verdicts.push(Verdict {
            name: case.name.clone(),
            wrong,
        });
    }
    if !blessed.is_empty() {
        let text = match is_json(path) {
            true => bless_json(&text, &blessed),
            false => bless_toml(&text, &blessed),
        };
        std::fs::write(path, text.map_err(here)?).map_err(|e| here(e.to_string()))?;
    }
    Ok(Ran { verdicts, left_out })
}

/// Refuses a file without a case, which would pass whatever happens, and two cases of one name.
fn distinct(text: &str, cases: &[Case]) -> Result<(), String> {
    if cases.is_empty() {
        return Err("it holds no case; one begins with [[case]]".to_owned());
    }
    for (at, case) in cases.iter().enumerate() {
        let Some(first) = cases[..at].iter().position(|c| c.name == case.name) else {
            continue;
        };
        let lines: Vec<usize> = lines_named(text, &case.name);
        let place = match lines[..] {
            [first, second, ..] => format!("lines {first} and {second}"),
            _ => format!("numbers {} and {}", first + 1, at + 1),
        };
        return Err(format!("two cases are called {:?}: {place}", case.name));
    }
    Ok(())
}

/// The lines, from 1, that say `name = "…"`, or `"name": "…"`, of this name.
fn lines_named(text: &str, name: &str) -> Vec<usize> {
    let quoted = Value::from(name).to_string();
    let literal = format!("'{name}'");
    let says_so = |line: &str| {
        let line = line.trim_start_matches([' ', '\t', '{', '"']);
        let rest = line.strip_prefix("name")?.trim_start_matches(['"', ' ']);
        let rest = rest.strip_prefix(['=', ':'])?.trim_start();
        (rest.starts_with(&quoted) || rest.starts_with(&literal)).then_some(())
    };
    let lines = text.lines().zip(1..);
    lines
        .filter_map(|(line, number)| says_so(line).map(|()| number))
        .collect()
}

type Got = Result<Vec<Value>, String>;

fn differs(case: &Case, got: &Got) -> Option<String> {
    match (got, &case.refused, &case.expect) {
        (Err(message), Some(words), _) if message.contains(words.as_str()) => None,
        (Err(message), Some(words), _) => Some(format!(
            "  - its settings are refused: {words}\n  + its settings are refused: {message}"
        )),
        (Err(message), None, _) => Some(format!("  + its settings are refused: {message}")),
        (Ok(_), Some(words), _) => Some(format!(
            "  - its settings are refused: {words}\n  + its settings are taken"
        )),
        (Ok(got), None, expected) => {
            let mut text = compare(expected.as_deref().unwrap_or(&[]), got)?;
            if case.expect.is_none() {
                text.push_str("\n  (it has no `expect` yet: --bless writes what was seen)");
            }
            Some(text)
        }
    }
}

/// Where outcomes differ from what is expected; `None`: nowhere.
pub(super) fn compare(expected: &[Value], got: &[Value]) -> Option<String> {
    let (wanted, seen) = (lines(&expecting(expected, got)), lines(got));
    (wanted != seen).then(|| diff(&wanted, &seen))
}

/// What is expected, with what it leaves open filled in from what was seen in the same place.
fn expecting(expected: &[Value], got: &[Value]) -> Vec<Value> {
    let fill = |(at, value): (usize, &Value)| {
        let mut value = value.clone();
        let Some(seen) = got.get(at) else {
            return value;
        };
        for words in ["error", "retry"] {
            if let (Some(wanted), Some(said)) = (value[words].as_str(), seen[words].as_str())
                && said.contains(wanted)
            {
                value[words] = said.into();
            }
        }
        for open in ["change", "stage"] {
            if let (Value::Object(value), Some(seen)) = (&mut value, seen.get(open))
                && !value.contains_key(open)
                && ["topic", "error", "retry"]
                    .iter()
                    .any(|what| value.contains_key(*what))
            {
                value.insert(open.to_owned(), seen.clone());
            }
        }
        // A text that is JSON is compared as JSON.
        for field in ["key", "value"] {
            if let Some(text) = value[field].as_str()
                && let Ok(json @ (Value::Object(_) | Value::Array(_))) =
                    serde_json::from_str(&exact(text))
            {
                value[field] = json;
            }
        }
        if let Value::Object(value) = &mut value {
            value.retain(|_, v| !v.is_null());
        }
        value
    };
    expected.iter().enumerate().map(fill).collect()
}

/// Outcomes as lines that people read.
fn lines(outcomes: &[Value]) -> Vec<String> {
    let mut lines = Vec::new();
    for outcome in outcomes {
        let Value::Object(parts) = outcome else {
            lines.push(outcome.to_string());
            continue;
        };
        let number = parts
            .get("change")
            .map_or_else(|| "?".to_owned(), Value::to_string);
        let said = |what: &str| Some(format!("{what}: {}", parts.get(what)?.as_str()?));
        let head = match (parts.get("topic"), said("error").or_else(|| said("retry"))) {
            (Some(topic), _) => format!("change {number}: record to {topic}"),
            (None, Some(error)) => match said("stage") {
                Some(stage) => format!("change {number}: {stage}: {error}"),
                None => format!("change {number}: {error}"),
            },
            _ => match parts.iter().next() {
                Some((what, number)) if parts.len() == 1 => format!("change {number}: {what}"),
                _ => outcome.to_string(),
            },
        };
        lines.push(head);
        if parts.contains_key("topic") {
            for (name, value) in parts {
                match (name.as_str(), value) {
                    ("change" | "topic", _) => {}
                    ("headers", Value::Object(headers)) => {
                        for (name, value) in headers {
                            lines.push(format!("    header {name} = {value}"));
                        }
                    }
                    (name, value) => lines.push(format!("    {name} = {value}")),
                }
            }
        }
    }
    lines
}

/// The lines of both, those that only one has marked: `-` expected, `+` seen.
fn diff(wanted: &[String], seen: &[String]) -> String {
    // The length of the longest common part of what follows.
    let mut common = vec![vec![0u32; seen.len() + 1]; wanted.len() + 1];
    for i in (0..wanted.len()).rev() {
        for j in (0..seen.len()).rev() {
            common[i][j] = if wanted[i] == seen[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, Vec::new());
    while i < wanted.len() || j < seen.len() {
        if i < wanted.len() && j < seen.len() && wanted[i] == seen[j] {
            out.push(format!("    {}", wanted[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < wanted.len() && (j == seen.len() || common[i + 1][j] >= common[i][j + 1]) {
            out.push(format!("  - {}", wanted[i]));
            i += 1;
        } else {
            out.push(format!("  + {}", seen[j]));
            j += 1;
        }
    }
    out.join("\n")
}

fn bless_json(text: &str, blessed: &[(usize, Got)]) -> Result<String, String> {
    let mut file: Value = serde_json::from_str(&exact(text)).map_err(|e| e.to_string())?;
    for (at, got) in blessed {
        let case = &mut file["case"][*at];
        let (set, gone) = match got {
            Ok(outcomes) => (("expect", json!(outcomes)), "refused"),
            Err(message) => (("refused", json!(message)), "expect"),
        };
        case[set.0] = set.1;
        if let Value::Object(case) = case {
            case.remove(gone);
        }
    }
    let mut text = serde_json::to_string_pretty(&file).map_err(|e| e.to_string())?;
    text.push('\n');
    Ok(text)
}

fn bless_toml(text: &str, blessed: &[(usize, Got)]) -> Result<String, String> {
    let mut file: toml_edit::DocumentMut = text
        .parse()
        .map_err(|e: toml_edit::TomlError| e.to_string())?;
    let cases = file["case"]
        .as_array_of_tables_mut()
        .ok_or("cases are written as [[case]]")?;
    for (at, got) in blessed {
        let Some(case) = cases.get_mut(*at) else {
            continue;
        };
        match got {
            Ok(outcomes) => {
                let mut list = toml_edit::Array::new();
                for outcome in outcomes {
                    let mut value = in_toml(outcome);
                    value.decor_mut().set_prefix("\n    ");
                    list.push_formatted(value);
                }
                list.set_trailing_comma(true);
                list.set_trailing("\n");
                case.insert("expect", toml_edit::value(list));
                case.remove("refused");
            }
            Err(message) => {
                case.insert("refused", toml_edit::value(message.as_str()));
                case.remove("expect");
            }
        }
    }
    Ok(file.to_string())
}

/// TOML has no null: what holds one is written as the text of its JSON.
fn in_toml(value: &Value) -> toml_edit::Value {
    fn has_null(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Array(all) => all.iter().any(has_null),
            Value::Object(all) => all.values().any(has_null),
            _ => false,
        }
    }
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => (*b).into(),
        Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(n), _) => n.into(),
            (None, Some(x)) => x.into(),
            (None, None) => n.to_string().into(),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(all) => all.iter().map(in_toml).collect::<toml_edit::Array>().into(),
        Value::Object(all) => {
            let mut table = toml_edit::InlineTable::new();
            for (name, value) in all {
                let whole = matches!(name.as_str(), "key" | "value") && has_null(value);
                let value = if whole {
                    value.to_string().into()
                } else {
                    in_toml(value)
                };
                table.insert(name, value);
            }
            table.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(expect: Value) -> Case {
        serde_json::from_value(json!({ "name": "c", "expect": expect })).unwrap()
    }

    #[test]
    fn a_difference_is_shown_line_by_line() {
        let got = Ok(vec![
            json!({ "change": 1, "topic": "a", "key": "k", "value": { "n": 1 } }),
            json!({ "dropped": 2 }),
        ]);
        let same =
            case(json!([{ "topic": "a", "key": "k", "value": "{ \"n\": 1 }" }, { "dropped": 2 }]));
        assert_eq!(differs(&same, &got), None);
        let other =
            case(json!([{ "topic": "a", "key": "x", "value": { "n": 1 } }, { "forwarded": 2 }]));
        let expected = "    change 1: record to \"a\"\n  -     key = \"x\"\n  +     key = \"k\"\n    \
                            value = {\"n\":1}\n  - change 2: forwarded\n  + change 2: dropped";
        assert_eq!(
            differs(&other, &got)
                .unwrap()
                .replace("        value", "    value"),
            expected.replace("        value", "    value")
        );
    }

    #[test]
    fn numbers_are_compared_by_all_their_digits() {
        let made = |value: &str| {
            let record = crate::transform::Plain {
                topic: "t".to_owned(),
                value: Some(value.as_bytes().to_vec()),
                ..Default::default()
            };
            Ok(vec![record.to_json()])
        };
        let long = r#"{"n":12345678901234567890123,"x":12.50}"#;
        for (expected, same) in [
            (json!({ "n": "12345678901234567890123", "x": 12.5 }), true),
            (json!(long), true),
            (json!(r#"{"n":12345678901234567890124,"x":12.5}"#), false),
            (
                json!(r#"{"n":12345678901234567890123,"x":12.50000000000000000001}"#),
                false,
            ),
            (
                json!({ "n": 12_345_678_901_234_567_890_123.0, "x": 12.5 }),
                false,
            ),
        ] {
            let case = case(json!([{ "topic": "t", "value": expected }]));
            assert_eq!(differs(&case, &made(long)).is_none(), same, "{expected}");
        }
    }

    #[test]
    fn an_error_is_expected_by_some_of_its_words() {
        let got = Ok(vec![json!({ "change": 1, "error": "column `x` is null" })]);
        assert_eq!(differs(&case(json!([{ "error": "is null" }])), &got), None);
        assert!(differs(&case(json!([{ "error": "is set" }])), &got).is_some());
    }

    #[test]
    fn cases_are_there_and_have_names_of_their_own() {
        let distinct = |text: &str| {
            let file: File = match text.starts_with('{') {
                true => serde_json::from_str(text).unwrap(),
                false => toml::from_str(text).unwrap(),
            };
            super::distinct(text, &file.case)
        };
        assert!(distinct("").unwrap_err().contains("it holds no case"));
        let text = "[[case]]\nname = \"a\"\n[[case]]\nname = \"b\"\n";
        assert_eq!(distinct(text), Ok(()));
        let text = format!("{text}\n[[case]]\nname = 'a'\n");
        let said = |place: &str| Err(format!("two cases are called \"a\": {place}"));
        assert_eq!(distinct(&text), said("lines 2 and 7"));
        let text = "{\"case\": [\n{\"name\": \"a\"},\n{ \"name\": \"a\" }]}";
        assert_eq!(distinct(text), said("lines 2 and 3"));
        assert_eq!(distinct(&text.replace('\n', "")), said("numbers 1 and 2"));
    }

    #[test]
    fn what_is_blessed_keeps_the_rest_of_the_file() {
        let text = "# mine\n[[case]]\nname = \"c\" # here\nchanges = []\nrefused = \"x\"\n";
        let got = Ok(vec![
            json!({ "change": 1, "topic": "t", "value": { "a": null } }),
        ]);
        let text = bless_toml(text, &[(0, got)]).unwrap();
        assert!(
            text.starts_with("# mine\n[[case]]\nname = \"c\" # here\n"),
            "{text}"
        );
        assert!(!text.contains("refused"), "{text}");
        let file: File = toml::from_str(&text).unwrap();
        let expected = json!([{ "change": 1, "topic": "t", "value": "{\"a\":null}" }]);
        assert_eq!(json!(file.case[0].expect), expected);
    }
}
