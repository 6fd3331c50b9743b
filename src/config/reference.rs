//! `docs/configuration.md`: every key of pipeline.toml as a page to read, made from the table of keys.

use std::fmt::Write;

use super::keys::{self, Fallback, Key, Kind, ReloadClass};

const HEAD: &str = "\
# Every key of pipeline.toml

Made from the table that validates the file: `penstock schema --markdown` prints it, and a test keeps this page the
same. `penstock schema` prints the JSON Schema for an editor, `penstock config` what is in force and where it came from.

Layers, later wins: defaults, `pipeline.toml`, the environment, `--set`. A key's name in the environment is `PENSTOCK_`
and its path in capitals with `__` between the steps: `PENSTOCK_SINK__BREAKER__FAILURE_THRESHOLD=10`. A secret comes from
there, or from the file that its `…_file` key names, and is never printed.

What a change does while the pipeline runs:

| | |
|---|---|
| live | the next use sees it; nothing is drained or reset |
| swap | a new plugin instance is made and warmed aside, and takes over at a batch boundary |
| rebuild | what it concerns is drained, committed and made anew from its checkpoint |
| refused | said by name; it takes a restart |
";

const POLICIES: &str = "\
Takes the tables of [`[policies]`](#policies) too: ";

/// The page.
pub fn markdown() -> String {
    let mut page = HEAD.to_owned();
    let mut open = "";
    for key in keys::all() {
        let (table, name) = key.path.rsplit_once('.').unwrap_or(("", &key.path));
        // A stage's own policies are those of `[policies]` again.
        if key.fallback == Fallback::Policies {
            continue;
        }
        if table != open {
            open = table;
            write_head(&mut page, table);
        }
        write_row(&mut page, key, name);
    }
    page
}

fn write_head(page: &mut String, table: &str) {
    let shown = match table.strip_prefix("transform.*") {
        Some("") => "[[transform]]".to_owned(),
        Some(below) => format!("[transform.<name>{below}]"),
        None => format!("[{table}]"),
    };
    let _ = write!(page, "\n## `{shown}`\n\n");
    if keys::STAGES.contains(&table) {
        let at = if table == "transform.*" {
            "transform.<name>"
        } else {
            table
        };
        let _ = write!(
            page,
            "{POLICIES}`[{at}.breaker]`, `[{at}.retry]`, `{at}.rate_limit`, `[{at}.supervision]`.\n\n",
        );
    }
    page.push_str("| key | takes | default | a change | what it is for |\n|---|---|---|---|---|\n");
}

fn write_row(page: &mut String, key: &Key, name: &str) {
    let default = match key.fallback {
        Fallback::Required => "must be set".to_owned(),
        Fallback::Absent | Fallback::Policies => "none".to_owned(),
        Fallback::Value(text) => format!("`{text}`"),
    };
    let class = match key.class {
        ReloadClass::Live => "live",
        ReloadClass::Swap => "swap",
        ReloadClass::Rebuild => "rebuild",
        ReloadClass::Refused => "refused",
    };
    let takes = match key.kind {
        Kind::Secret => "a secret".to_owned(),
        kind => kind.expected(),
    };
    let row = [
        format!("`{name}`"),
        takes,
        default,
        class.to_owned(),
        key.doc.to_owned(),
    ];
    let cells = row.map(|cell| cell.replace('|', "\\|").replace('<', "&lt;"));
    let _ = writeln!(page, "| {} |", cells.join(" | "));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key that nobody can look up is a key that nobody has.
    #[test]
    fn every_key_has_a_row() {
        let page = markdown();
        for key in keys::all() {
            let (table, name) = key.path.rsplit_once('.').unwrap();
            let listed = page.contains(&format!("\n| `{name}` | "));
            assert!(
                listed || key.fallback == Fallback::Policies,
                "{table}.{name}"
            );
        }
    }
}
