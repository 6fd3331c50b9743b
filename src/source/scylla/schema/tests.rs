use super::*;
use scylla::frame::response::result::UserDefinedType;

pub(crate) const META: [(&str, NativeType); 6] = [
    ("cdc$stream_id", NativeType::Blob),
    ("cdc$time", NativeType::Timeuuid),
    ("cdc$batch_seq_no", NativeType::Int),
    ("cdc$end_of_batch", NativeType::Boolean),
    ("cdc$operation", NativeType::TinyInt),
    ("cdc$ttl", NativeType::BigInt),
];

pub(crate) fn native(native: NativeType) -> ColumnType<'static> {
    ColumnType::Native(native)
}

pub(crate) fn collection(frozen: bool, typ: CollectionType<'static>) -> ColumnType<'static> {
    ColumnType::Collection { frozen, typ }
}

pub(crate) fn list(frozen: bool) -> ColumnType<'static> {
    collection(
        frozen,
        CollectionType::List(Box::new(native(NativeType::Int))),
    )
}

pub(crate) fn set(of: NativeType) -> ColumnType<'static> {
    collection(false, CollectionType::Set(Box::new(native(of))))
}

fn positions_of_list() -> ColumnType<'static> {
    let (key, value) = (native(NativeType::Timeuuid), native(NativeType::Int));
    collection(false, CollectionType::Map(Box::new(key), Box::new(value)))
}

pub(crate) fn wire(
    columns: Vec<(&str, ColumnType<'static>)>,
) -> Vec<(String, ColumnType<'static>)> {
    META.into_iter()
        .map(|(n, t)| (n, native(t)))
        .chain(columns)
        .map(|(n, t)| (n.to_owned(), t))
        .collect()
}

pub(crate) fn column<'a>(
    kind: ColumnKind,
    order: usize,
    typ: &'a ColumnType<'static>,
) -> BaseColumn<'a> {
    BaseColumn { kind, order, typ }
}

#[test]
fn keys_come_first_and_roles_are_found_whatever_the_wire_order() {
    let (int, ints) = (native(NativeType::Int), list(false));
    let base = Base::from([
        ("b", column(ColumnKind::PartitionKey, 0, &int)),
        ("a", column(ColumnKind::PartitionKey, 1, &int)),
        ("c", column(ColumnKind::ClusteringKey, 0, &int)),
        ("s", column(ColumnKind::Static, 0, &int)),
        ("l", column(ColumnKind::Regular, 0, &ints)),
    ]);
    let wire = wire(vec![
        ("a", int.clone()),
        ("b", int.clone()),
        ("c", int.clone()),
        ("cdc$deleted_elements_l", set(NativeType::Timeuuid)),
        ("cdc$deleted_l", native(NativeType::Boolean)),
        ("cdc$deleted_s", native(NativeType::Boolean)),
        ("l", positions_of_list()),
        ("s", int.clone()),
    ]);
    let resolved = resolve("ks", "t", Some(&base), wire).unwrap();
    assert!(resolved.agrees);
    let v = resolved.version;
    let names: Vec<_> = v.schema.columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["b", "a", "c", "s", "l"]);
    assert_eq!(v.schema.columns[4].cql_type, "list<int>");
    assert_eq!(
        (v.roles[4].value, v.roles[4].deleted, v.roles[4].elements),
        (12, Some(10), Some(9))
    );
    assert_eq!(
        (v.roles[3].value, v.roles[3].deleted, v.roles[3].elements),
        (13, Some(11), None)
    );
    assert!(v.has_clustering && v.has_static);
}

#[test]
fn a_column_called_elements_x_is_not_taken_for_removed_elements() {
    let (int, text) = (native(NativeType::Int), native(NativeType::Text));
    let base = Base::from([
        ("k", column(ColumnKind::PartitionKey, 0, &int)),
        ("x", column(ColumnKind::Regular, 0, &text)),
        ("elements_x", column(ColumnKind::Regular, 0, &text)),
    ]);
    let wire = wire(vec![
        ("k", int.clone()),
        ("x", text.clone()),
        ("elements_x", text.clone()),
        ("cdc$deleted_x", native(NativeType::Boolean)),
        ("cdc$deleted_elements_x", native(NativeType::Boolean)),
    ]);
    let resolved = resolve("ks", "t", Some(&base), wire).unwrap();
    assert!(resolved.agrees);
    let role = |name: &str| {
        let at = resolved
            .version
            .schema
            .columns
            .iter()
            .position(|c| c.name == name);
        resolved.version.roles[at.unwrap()].clone()
    };
    assert_eq!((role("x").deleted, role("x").elements), (Some(9), None));
    assert_eq!(
        (role("elements_x").deleted, role("elements_x").elements),
        (Some(10), None)
    );
}

#[test]
fn base_and_log_disagree_while_a_schema_change_spreads() {
    let (int, text) = (native(NativeType::Int), native(NativeType::Text));
    let mut base = Base::from([
        ("k", column(ColumnKind::PartitionKey, 0, &int)),
        ("v", column(ColumnKind::Regular, 0, &text)),
    ]);
    let as_of = |v: &ColumnType<'static>| wire(vec![("k", int.clone()), ("v", v.clone())]);
    let agrees = |base: &Base<'_>, wire| resolve("ks", "t", Some(base), wire).unwrap().agrees;
    assert!(agrees(&base, as_of(&text)));
    assert!(!agrees(&base, as_of(&int)), "retyped");
    base.insert("w", column(ColumnKind::Regular, 0, &int));
    assert!(
        !agrees(&base, as_of(&text)),
        "dropped from the log, or not yet added"
    );
    base.remove("w");
    base.remove("v");
    let resolved = resolve("ks", "t", Some(&base), as_of(&text)).unwrap();
    assert!(!resolved.agrees, "not yet in the base table's metadata");
    assert_eq!(resolved.version.schema.columns[1].cql_type, "text");
}

#[test]
fn a_table_without_the_log_columns_is_refused() {
    let wire = wire(vec![])
        .into_iter()
        .filter(|(n, _)| n != "cdc$operation")
        .collect();
    assert!(resolve("ks", "t", None, wire).is_err());
}

#[test]
fn types_are_written_in_cql_notation() {
    let udt = ColumnType::UserDefinedType {
        frozen: true,
        definition: Arc::new(UserDefinedType {
            name: "address".into(),
            keyspace: "ks".into(),
            field_types: vec![
                ("street".into(), native(NativeType::Text)),
                ("post codes".into(), list(true)),
            ],
        }),
    };
    let text = "frozen<udt<ks.address, street: text, \"post codes\": frozen<list<int>>>>";
    assert_eq!(type_text(&udt), text);
    let tuple = ColumnType::Tuple(vec![native(NativeType::Inet), udt]);
    assert_eq!(type_text(&tuple), format!("tuple<inet, {text}>"));
    for typ in [
        &tuple,
        &list(false),
        &positions_of_list(),
        &set(NativeType::Duration),
    ] {
        let text = type_text(typ);
        let parsed = text.parse::<penstock_plugin_encoding::CqlType>();
        assert_eq!(parsed.unwrap().to_string(), text, "plugins read it");
    }
}

/// What the driver writes of vectors is what plugins and renderings read.
#[test]
fn vectors_are_decoded_as_the_driver_encodes_them() {
    use scylla::serialize::value::SerializeValue;
    use scylla::serialize::writers::CellWriter;
    use scylla::value::{CqlDate, CqlTime, CqlValue as Sent};

    let vector = |of: ColumnType<'static>, dimensions| ColumnType::Vector {
        typ: Box::new(of),
        dimensions,
    };
    let both = |a: Sent, b: Sent| Sent::Vector(vec![a, b]);
    let floats = || both(Sent::Float(1.5), Sent::Float(-2.0));
    let (one, two) = (CqlDate(1 << 31), CqlDate((1 << 31) + 1));
    let uuid = uuid::Uuid::from_u128(1);
    let ints = || Sent::List(vec![Sent::Int(7)]);
    let cases = [
        (
            NativeType::SmallInt,
            both(Sent::SmallInt(1), Sent::SmallInt(-2)),
            "[1,-2]",
        ),
        (
            NativeType::TinyInt,
            both(Sent::TinyInt(1), Sent::TinyInt(-2)),
            "[1,-2]",
        ),
        (
            NativeType::Date,
            both(Sent::Date(one), Sent::Date(two)),
            r#"["1970-01-01","1970-01-02"]"#,
        ),
        (
            NativeType::Time,
            both(Sent::Time(CqlTime(0)), Sent::Time(CqlTime(1))),
            r#"["00:00:00.000000000","00:00:00.000000001"]"#,
        ),
        (NativeType::Int, both(Sent::Int(1), Sent::Int(2)), "[1,2]"),
        (
            NativeType::BigInt,
            both(Sent::BigInt(1), Sent::BigInt(2)),
            "[1,2]",
        ),
        (
            NativeType::Boolean,
            both(Sent::Boolean(true), Sent::Boolean(false)),
            "[true,false]",
        ),
        (
            NativeType::Text,
            both(Sent::Text("a".into()), Sent::Text(String::new())),
            r#"["a",""]"#,
        ),
        (
            NativeType::Inet,
            both(
                Sent::Inet([127, 0, 0, 1].into()),
                Sent::Inet([0; 16].into()),
            ),
            r#"["127.0.0.1","::"]"#,
        ),
        (
            NativeType::Uuid,
            both(Sent::Uuid(uuid), Sent::Uuid(uuid)),
            r#"["00000000-0000-0000-0000-000000000001","00000000-0000-0000-0000-000000000001"]"#,
        ),
    ]
    .map(|(of, sent, json)| (vector(native(of), 2), sent, json));
    let nested = [
        (
            vector(vector(native(NativeType::Float), 2), 2),
            both(floats(), floats()),
            "[[1.5,-2.0],[1.5,-2.0]]",
        ),
        (
            vector(vector(native(NativeType::SmallInt), 1), 2),
            both(
                Sent::Vector(vec![Sent::SmallInt(3)]),
                Sent::Vector(vec![Sent::SmallInt(4)]),
            ),
            "[[3],[4]]",
        ),
        (vector(list(true), 2), both(ints(), ints()), "[[7],[7]]"),
    ];
    for (typ, sent, json) in cases.into_iter().chain(nested) {
        let mut bytes = Vec::new();
        sent.serialize(&typ, CellWriter::new(&mut bytes)).unwrap();
        let text = type_text(&typ);
        let parsed: penstock_plugin_encoding::CqlType = text.parse().unwrap();
        let value = penstock_plugin_encoding::CqlValue::decode(&parsed, &bytes[4..]);
        assert_eq!(
            value.and_then(|v| v.to_json()).as_deref(),
            Ok(json),
            "{text}"
        );
    }
}
