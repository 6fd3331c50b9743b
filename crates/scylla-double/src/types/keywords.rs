//! The words of CQL that cannot be names.

/// Sorted. From `cql3/Cql.g`: all keywords without those of `unreserved_keyword`, and the two booleans.
const RESERVED: [&str; 65] = [
    "add",
    "allow",
    "alter",
    "and",
    "ann",
    "apply",
    "asc",
    "authorize",
    "batch",
    "begin",
    "by",
    "cast",
    "columnfamily",
    "concurrency",
    "create",
    "default",
    "delete",
    "drop",
    "entries",
    "false",
    "from",
    "full",
    "grant",
    "if",
    "in",
    "index",
    "infinity",
    "insert",
    "into",
    "is",
    "keyspace",
    "limit",
    "materialized",
    "modify",
    "nan",
    "norecursive",
    "not",
    "null",
    "of",
    "on",
    "or",
    "order",
    "primary",
    "rename",
    "replace",
    "revoke",
    "schema",
    "scylla_clustering_bound",
    "scylla_counter_shard_list",
    "scylla_timeuuid_list_index",
    "select",
    "set",
    "table",
    "to",
    "token",
    "true",
    "truncate",
    "unlogged",
    "unset",
    "update",
    "use",
    "using",
    "view",
    "where",
    "with",
];

/// Whether a name in lower case needs quotes for being a word of the language.
pub fn is_reserved(name: &str) -> bool {
    RESERVED.binary_search(&name).is_ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_are_sorted_for_the_search() {
        assert!(super::RESERVED.is_sorted());
    }
}
