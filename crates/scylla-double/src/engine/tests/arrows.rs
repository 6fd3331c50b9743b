//! Arrows between files run down only: what must not be named where, or two files need each other again.

#[test]
fn files_do_not_need_each_other_in_circles() {
    let files: [(&str, &str, &[&str]); 8] = [
        ("types.rs", include_str!("../../types.rs"), &["crate::cql"]),
        (
            "types/literal.rs",
            include_str!("../../types/literal.rs"),
            &["crate::cql"],
        ),
        (
            "types/value.rs",
            include_str!("../../types/value.rs"),
            &["crate::cql"],
        ),
        (
            "engine/schema.rs",
            include_str!("../schema.rs"),
            &["cdc::", "order::", "super::types"],
        ),
        (
            "engine/layout.rs",
            include_str!("../layout.rs"),
            &["order::", "schema::", "super::types"],
        ),
        (
            "engine/order.rs",
            include_str!("../order.rs"),
            &["super::types", "cdc::"],
        ),
        ("engine/lower.rs", include_str!("../lower.rs"), &["ddl::"]),
        (
            "server/execute.rs",
            include_str!("../../server/execute.rs"),
            &["connection::"],
        ),
    ];
    for (file, text, forbidden) in files {
        for (number, line) in text.lines().enumerate() {
            let code = !line.trim_start().starts_with("//");
            let found = forbidden.iter().find(|name| code && line.contains(*name));
            assert!(found.is_none(), "{file}:{}: {line}", number + 1);
        }
    }
}
