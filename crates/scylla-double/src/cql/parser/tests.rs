use proptest::prelude::*;

use super::*;
use crate::cql::ast::*;

/// What the node must understand: statements of clients, of the CDC reader, of documentation.
const STATEMENTS: &[&str] = &[
    "CREATE KEYSPACE IF NOT EXISTS ks WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1} \
     AND tablets = {'enabled': false} AND durable_writes = true;",
    "CREATE SCHEMA k WITH replication = {'class':'SimpleStrategy','replication_factor':'3'}",
    "ALTER KEYSPACE k WITH durable_writes = false",
    "DROP KEYSPACE IF EXISTS \"Mixed\"",
    "CREATE TABLE ks.t (pk int, ck text, s text STATIC, v frozen<map<text, frozen<list<int>>>>, \"Q\" set<uuid>, \
     u my_type, tt tuple<int, ks.other>, PRIMARY KEY ((pk), ck)) WITH CLUSTERING ORDER BY (ck DESC) AND \
     cdc = {'enabled': true, 'preimage': 'full', 'postimage': true, 'delta':'keys', 'ttl': '86400'} AND comment = 'it''s' \
     AND compaction = {'class': 'TimeWindowCompactionStrategy', 'compaction_window_size': 60} AND gc_grace_seconds = 0 \
     AND bloom_filter_fp_chance = 0.01 AND speculative_retry = '99.0PERCENTILE' AND COMPACT STORAGE",
    "create columnfamily t (k int primary key, c counter,)",
    "ALTER TABLE t ADD (a int, b list<text> static)",
    "ALTER TABLE t ADD a int",
    "ALTER TABLE t DROP (a, b) USING TIMESTAMP 12",
    "ALTER TABLE t ALTER a TYPE blob",
    "ALTER TABLE t RENAME a TO b AND c TO d",
    "ALTER TABLE t WITH cdc = {'enabled': false}",
    "DROP TABLE IF EXISTS ks.t;;",
    "DESC CLUSTER",
    "DESCRIBE FULL SCHEMA WITH INTERNALS AND PASSWORDS",
    "DESC ONLY KEYSPACE k;",
    "DESCRIBE KEYSPACE",
    "DESC TABLE ks.\"Mixed\" WITH INTERNALS",
    "DESC MATERIALIZED VIEW v",
    "describe types",
    "DESC types.type",
    "DESC \"Anything\"",
    "CREATE TYPE IF NOT EXISTS ks.address (street text, numbers list<int>, \"Zip\" int)",
    "ALTER TYPE address ADD country text",
    "ALTER TYPE address RENAME street TO road",
    "DROP TYPE address",
    "TRUNCATE TABLE ks.t USING TIMEOUT 10s",
    "USE \"Ks\"",
    "INSERT INTO t (a, b, c, d, e) VALUES (1, 'x', 0xCAFE, 5b6962dd-3f90-4c93-8f61-eabfa4a803e2, null) IF NOT EXISTS \
     USING TTL 10 AND TIMESTAMP -5 AND TIMEOUT 1h30m",
    "INSERT INTO t (a,b,c,d,e,f,g) VALUES ([1,2], {1,2}, {'a': 1}, {f: 1, \"G\": (1, 'x')}, {}, -NaN, 1.5e10)",
    "INSERT INTO t (a,b,c) VALUES (?, :name, now()) USING TIMESTAMP ? AND TTL :ttl",
    "INSERT INTO t (k, c, d) VALUES (1, (map<text, int>) {}, (int) ?)",
    "UPDATE t USING TTL ? AND TIMESTAMP :ts SET a = 1, c = c + 1, d = d - {'x'}, l = [1] + l, m['k'] = 'v', l[0] = ?, \
     u.f = null, n = n -3, l[SCYLLA_TIMEUUID_LIST_INDEX(?)] = ? WHERE pk = ? AND ck IN (1, 2, ?) IF a = 1 AND u.f != 2 \
     AND m['k'] IN (1, 2) AND b IN ?",
    "UPDATE t SET v = 1 WHERE pk = 1 IF EXISTS",
    "UPDATE t SET v = 1 WHERE pk = 1 IF exists = 1",
    "DELETE a, l[1], u.f, m['x'] FROM ks.t USING TIMESTAMP 12 WHERE pk = 1 AND (a, b) > (1, 2) IF EXISTS",
    "DELETE FROM t WHERE pk = 1 AND ck >= 1 AND ck < 5",
    "BEGIN UNLOGGED BATCH USING TIMESTAMP ? INSERT INTO t (a) VALUES (1); UPDATE t SET b = 1 WHERE a = 2 \
     DELETE FROM t WHERE a = ?; APPLY BATCH;",
    "BEGIN COUNTER BATCH UPDATE t SET c = c + 1 WHERE k = 1; APPLY BATCH",
    "BEGIN BATCH APPLY BATCH",
    "SELECT * FROM ks.\"t_scylla_cdc_log\" WHERE \"cdc$stream_id\" IN ? AND \"cdc$time\" >= ? AND \"cdc$time\" < \
     minTimeuuid(?) BYPASS CACHE",
    "SELECT \"cdc$operation\"FROM t",
    "SELECT a AS b, \"C\" AS \"D\", token(a, b), writetime(c), ttl(m['k']), count(*), cast(a AS text), toUnixTimestamp(now()), \
     blobAsBigint(bigintAsBlob(3)), u.f, m['k'], min(x), system.now() FROM t LIMIT 5",
    "SELECT count(1) FROM t",
    "SELECT JSON * FROM t",
    "INSERT INTO t JSON '{}' DEFAULT UNSET IF NOT EXISTS USING TTL 3",
    "BEGIN BATCH INSERT INTO t JSON ? DEFAULT NULL; APPLY BATCH",
    "SELECT json FROM t",
    "SELECT distinct FROM t",
    "SELECT DISTINCT pk, s FROM t WHERE token(pk) > ? AND token(pk) <= 100 PER PARTITION LIMIT 2 LIMIT ? ALLOW FILTERING",
    "SELECT key, value, type, ttl, count, timestamp, list, date FROM t WHERE key = 'x' ORDER BY ck DESC, b ASC",
    "SELECT a FROM t WHERE tags CONTAINS 'x' AND m CONTAINS KEY 'k' AND m['a'] = 3 AND a NOT IN (1) GROUP BY a, b",
    "SELECT a FROM t WHERE (a, b) IN ((1, 2), (3, 4)) AND (c, d) IN (?, :x) AND (e) = ? AND (f = 1) USING TIMEOUT 5ms",
    "SELECT a FROM t WHERE v IS NOT NULL AND name LIKE 'x%'",
    "-- comment\nSELECT /* another */ a // third\nFROM t -- last",
    "INSERT INTO t (a) VALUES ($$it's $1$$)",
    "SELECT release_version FROM system.local WHERE key='local'",
    "SELECT * FROM system_schema.scylla_tables",
    "SELECT * FROM system.peers_v2",
];

fn error(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

fn select(text: &str) -> Select {
    match parse(text).unwrap().statement {
        Statement::Select(select) => select,
        other => panic!("{other:?}"),
    }
}

fn constant(text: &str) -> Term {
    Term::Constant(Constant::Integer(text.into()))
}

#[test]
fn statements_parse() {
    for text in STATEMENTS {
        let parsed = parse(text).unwrap_or_else(|e| panic!("{text}\n{e}"));
        assert!(
            !matches!(parsed.statement, Statement::Unsupported { .. }),
            "{text}"
        );
    }
}

#[test]
fn markers_are_counted_in_order_and_names_once() {
    let parsed =
        parse("UPDATE t USING TTL ? SET a = :x, b = ? WHERE c = :Y AND d = :x AND e = :\"Y\"")
            .unwrap();
    let name = |s: &str| Some(s.to_owned());
    assert_eq!(parsed.binds, [None, name("x"), None, name("y"), name("Y")]);
    let Statement::Update(update) = parsed.statement else {
        panic!("no update")
    };
    assert_eq!(update.using.ttl, Some(Term::Bind(0)));
    assert_eq!(
        update.assignments[0].operation,
        AssignmentOperation::Set(Term::Bind(1))
    );
    assert_eq!(
        update.restrictions[1].right,
        RelationRight::One(Term::Bind(1))
    );
}

#[test]
fn names_fold_unless_quoted() {
    let select = select("SELECT FoO, \"FoO\" AS Bar FROM Ks.\"T\"");
    assert_eq!(
        select.table,
        QualifiedName {
            keyspace: Some("ks".into()),
            name: "T".into()
        }
    );
    let item = |name: &str, alias: Option<&str>| SelectItem {
        selector: Selector::Column(name.into()),
        alias: alias.map(Into::into),
    };
    assert_eq!(
        select.selection,
        Some(vec![item("foo", None), item("FoO", Some("bar"))])
    );
}

#[test]
fn assignments_tell_their_operations() {
    let text = "UPDATE t SET a = a + 1, b = b - 1, c = c -1, d = [1] + d, e = f(1), g[1] = 2, h.i = 3, j = {} WHERE k = 1";
    let Statement::Update(update) = parse(text).unwrap().statement else {
        panic!("no update")
    };
    let operations: Vec<_> = update
        .assignments
        .into_iter()
        .map(|a| a.operation)
        .collect();
    use AssignmentOperation::*;
    assert_eq!(
        operations,
        [
            Add(constant("1")),
            Subtract(constant("1")),
            Add(constant("-1")),
            Prepend(Term::List(vec![constant("1")])),
            Set(Term::Call(
                QualifiedName {
                    keyspace: None,
                    name: "f".into()
                },
                vec![constant("1")]
            )),
            SetElement {
                key: constant("1"),
                value: constant("2")
            },
            SetField {
                field: "i".into(),
                value: constant("3")
            },
            Set(Term::Set(vec![])),
        ]
    );
}

#[test]
fn braces_are_sets_maps_or_types() {
    let value = |text: &str| {
        let text = format!("INSERT INTO t (a) VALUES ({text})");
        let Statement::Insert(mut insert) = parse(&text).unwrap().statement else {
            panic!("no insert")
        };
        insert.values.remove(0)
    };
    assert_eq!(value("{}"), Term::Set(vec![]));
    assert_eq!(value("{1}"), Term::Set(vec![constant("1")]));
    assert_eq!(
        value("{1: ?}"),
        Term::Map(vec![(constant("1"), Term::Bind(0))])
    );
    assert_eq!(
        value("{a: :b}"),
        Term::Udt(vec![("a".into(), Term::Bind(0))])
    );
    assert_eq!(
        value("{:a::b}"),
        Term::Map(vec![(Term::Bind(0), Term::Bind(1))])
    );
    assert_eq!(
        value("(1, 2)"),
        Term::Tuple(vec![constant("1"), constant("2")])
    );
    let hint = TypeName::Native(CqlType::Bigint);
    assert_eq!(
        value("(bigint) 1"),
        Term::Hint(hint, Box::new(constant("1")))
    );
}

#[test]
fn options_are_kept_as_text() {
    let text = "CREATE TABLE t (a int PRIMARY KEY) WITH cdc = {'enabled': true, 'ttl': 5} AND speculative_retry = ALWAYS \
                AND comment = 'X' AND bloom_filter_fp_chance = 0.010";
    let Statement::CreateTable(create) = parse(text).unwrap().statement else {
        panic!("no table")
    };
    let text = |s: &str| PropertyValue::Text(s.into());
    let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    assert_eq!(
        create.properties,
        [
            (
                "cdc".into(),
                PropertyValue::Map(vec![pair("enabled", "true"), pair("ttl", "5")])
            ),
            ("speculative_retry".into(), text("always")),
            ("comment".into(), text("X")),
            ("bloom_filter_fp_chance".into(), text("0.010")),
        ]
    );
    assert_eq!(
        create.primary_keys,
        [PrimaryKey {
            partition: vec!["a".into()],
            clustering: vec![]
        }]
    );
}

#[test]
fn what_is_not_done_is_told_by_name() {
    for (text, what) in [
        ("CREATE INDEX ON t (a)", "CREATE INDEX"),
        ("CREATE CUSTOM INDEX i ON t (a) USING 'x'", "CREATE INDEX"),
        (
            "CREATE MATERIALIZED VIEW v AS SELECT * FROM t WHERE a IS NOT NULL PRIMARY KEY (a)",
            "CREATE MATERIALIZED VIEW",
        ),
        (
            "CREATE OR REPLACE FUNCTION f() RETURNS NULL ON NULL INPUT",
            "CREATE FUNCTION",
        ),
        ("create role r with password = 'x'", "CREATE ROLE"),
        ("DROP SERVICE LEVEL x", "DROP SERVICE LEVEL"),
        ("GRANT ALL ON t TO r", "GRANT"),
        ("LIST ROLES", "LIST"),
    ] {
        assert_eq!(
            parse(text).unwrap().statement,
            Statement::Unsupported { what: what.into() },
            "{text}"
        );
    }
}

#[test]
fn errors_read_as_scylladbs() {
    for (text, message) in [
        ("", "line 1:0 no viable alternative at input '<EOF>'"),
        ("FOO BAR", "line 1:0 no viable alternative at input 'FOO'"),
        (
            "DESC FULL t",
            "line 1:10 no viable alternative at input 't'",
        ),
        (
            "SELECT FROM t",
            "line 1:7 no viable alternative at input 'FROM'",
        ),
        (
            "SELECT a t",
            "line 1:9 mismatched input 't' expecting K_FROM",
        ),
        (
            "SELECT * FROM t\nWHERE a == 1",
            "line 2:9 no viable alternative at input '='",
        ),
        ("SELECT * FROM t x", "line 1:16 missing EOF at 'x'"),
        (
            "SELECT * FROM t; SELECT * FROM u",
            "line 1:17 missing EOF at 'SELECT'",
        ),
        (
            "INSERT INTO t (a VALUES (1)",
            "line 1:17 mismatched input 'VALUES' expecting ')'",
        ),
        (
            "INSERT INTO t (a) VALUES (b)",
            "line 1:27 no viable alternative at input ')'",
        ),
        (
            "UPDATE t SET a = b + 1 WHERE c = 1",
            "line 1:19 Only expressions of the form X = X +<value> are supported.",
        ),
        (
            "CREATE TABLE t (a int) WITH x = 1 AND x = 2",
            "line 1:38 Multiple definition for property 'x'",
        ),
        (
            "CREATE TYPE date (a int)",
            "line 1:12 Invalid (reserved) user type name date",
        ),
        (
            "CREATE TABLE table (a int)",
            "line 1:13 no viable alternative at input 'table'",
        ),
        (
            "SELECT * FROM t WHERE a = 0xABC",
            "line 1:26 marshaling error: invalid hex string: odd number of digits",
        ),
        (
            "SELECT 'é' FROM ?",
            "line 1:16 Bind variables cannot be used for names",
        ),
        (
            "DELETE FROM t USING TTL 1 WHERE a = 1",
            "line 1:20 no viable alternative at input 'TTL'",
        ),
        (
            "DELETE FROM t",
            "line 1:13 mismatched input '<EOF>' expecting K_WHERE",
        ),
        (
            "BEGIN BATCH SELECT * FROM t APPLY BATCH",
            "line 1:12 no viable alternative at input 'SELECT'",
        ),
    ] {
        assert_eq!(error(text), message, "{text}");
    }
}

#[test]
fn nesting_is_bounded() {
    for (open, close) in [
        ("[", "]"),
        ("(", ")"),
        ("{", "}"),
        ("f(", ")"),
        ("(int)", ""),
    ] {
        let text = |n: usize| {
            format!(
                "INSERT INTO t (a) VALUES ({}1{})",
                open.repeat(n),
                close.repeat(n)
            )
        };
        assert!(parse(&text(MAX_NESTING - 1)).is_ok(), "{open}");
        assert!(error(&text(100_000)).contains("nested"), "{open}");
    }
    let ty = format!("{}int{}", "list<".repeat(100_000), ">".repeat(100_000));
    assert!(parse_type(&ty).unwrap_err().to_string().contains("nested"));
    assert!(
        error(&format!(
            "SELECT * FROM t WHERE {}a = 1",
            "(".repeat(100_000)
        ))
        .contains("nested")
    );
    assert!(error(&format!("SELECT {}a FROM t", "f(".repeat(100_000))).contains("nested"));
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(parse(&text));
        drop(parse(&String::from_utf8_lossy(&bytes)));
        drop(parse_type(&text));
    }

    /// Statements with pieces cut out, swapped and put in.
    #[test]
    fn no_mutated_statement_panics(
        which in 0..STATEMENTS.len(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..12usize, "[ -~µé\n]{0,6}"), 1..6),
        prefix in "(SELECT|INSERT INTO|UPDATE|BEGIN BATCH|CREATE TABLE|ALTER TABLE) ?",
    ) {
        let mut chars: Vec<char> = STATEMENTS[which].chars().collect();
        for (place, cut, insert) in edits {
            let at = place.index(chars.len() + 1);
            let end = (at + cut).min(chars.len());
            chars.splice(at..end, insert.chars());
        }
        let text: String = chars.into_iter().collect();
        match parse(&text) {
            Ok(parsed) => prop_assert!(parsed.binds.len() <= text.len()),
            Err(error) => prop_assert!(error.line >= 1 && error.to_string().starts_with("line ")),
        }
        drop(parse(&format!("{prefix}{text}")));
    }

    /// The tokens of statements in another order.
    #[test]
    fn no_shuffled_statement_panics(words in Just(STATEMENTS.join(" ")).prop_flat_map(|all| {
        let words: Vec<String> = all.split(' ').map(str::to_owned).collect();
        prop::sample::subsequence(words, 1..40).prop_shuffle()
    })) {
        drop(parse(&words.join(" ")));
    }
}
