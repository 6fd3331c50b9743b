//! CQL as text: what the source and the order service share of it. Imports no driver.

/// An identifier in double quotes, so that its case, its characters and its being a keyword do not matter: ScyllaDB
/// folds what stands without them to lower case. <https://docs.scylladb.com/manual/stable/cql/definitions.html>
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_what_it_is() {
        assert_eq!(quoted("OrdersKS"), r#""OrdersKS""#);
        assert_eq!(quoted("select"), r#""select""#);
        assert_eq!(quoted(r#"a "b""#), r#""a ""b""""#);
    }
}
