//! A table's columns as tests and recordings write them: `id uuid primary, at timeuuid clustering, payload text`.

use crate::{ColumnKind, CqlType};

/// A column as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type, as it is written …
    pub cql_text: &'a str,
    /// … and as it is read.
    pub cql_type: CqlType,
    /// What part it has.
    pub kind: ColumnKind,
}

/// Reads `column type [primary|clustering|static], …`.
///
/// # Errors
/// What is not so written.
pub fn columns(text: &str) -> Result<Vec<Column<'_>>, String> {
    split(text).into_iter().map(column).collect()
}

fn column(text: &str) -> Result<Column<'_>, String> {
    let Some((name, rest)) = text.split_once(char::is_whitespace) else {
        return Err(format!("{text:?}: expected `name type`"));
    };
    let kinds = [
        (" primary", ColumnKind::PartitionKey),
        (" clustering", ColumnKind::ClusteringKey),
        (" static", ColumnKind::Static),
    ];
    let found = kinds
        .into_iter()
        .find_map(|(suffix, kind)| Some((rest.strip_suffix(suffix)?, kind)));
    let (cql_text, kind) = found.unwrap_or((rest, ColumnKind::Regular));
    let cql_text = cql_text.trim();
    Ok(Column {
        name,
        cql_text,
        cql_type: cql_text
            .parse()
            .map_err(|e| format!("column {name}: {e}"))?,
        kind,
    })
}

/// Splits at commas that are not within `<…>`.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_read_as_they_are_written() {
        let read = columns(
            "id uuid primary, at  timeuuid clustering, m map<text, frozen<set<int>>>, s text static,",
        );
        let read = read.unwrap();
        let read: Vec<_> = read
            .iter()
            .map(|c| (c.name, c.cql_text, c.cql_type.to_string(), c.kind))
            .collect();
        let map = "map<text, frozen<set<int>>>";
        let column = |name, text: &'static str, kind| (name, text, text.to_owned(), kind);
        assert_eq!(
            read,
            [
                column("id", "uuid", ColumnKind::PartitionKey),
                column("at", "timeuuid", ColumnKind::ClusteringKey),
                column("m", map, ColumnKind::Regular),
                column("s", "text", ColumnKind::Static),
            ]
        );
        assert_eq!(columns("id").unwrap_err(), "\"id\": expected `name type`");
        assert!(columns("id wrong<").unwrap_err().starts_with("column id: "));
    }
}
