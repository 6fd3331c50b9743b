use std::{
    cmp::Ordering,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use num_bigint::BigInt;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::cql::{
    ast::{Constant, Statement, Term},
    parse,
};

const NATIVE: [CqlType; 20] = [
    CqlType::Ascii,
    CqlType::Bigint,
    CqlType::Blob,
    CqlType::Boolean,
    CqlType::Counter,
    CqlType::Date,
    CqlType::Decimal,
    CqlType::Double,
    CqlType::Duration,
    CqlType::Float,
    CqlType::Inet,
    CqlType::Int,
    CqlType::Smallint,
    CqlType::Text,
    CqlType::Time,
    CqlType::Timestamp,
    CqlType::Timeuuid,
    CqlType::Tinyint,
    CqlType::Uuid,
    CqlType::Varint,
];

/// Types that may stand anywhere, so all frozen.
fn frozen_type() -> impl Strategy<Value = CqlType> {
    let native = prop::sample::select(&NATIVE[..]).prop_filter("cannot be held or ordered", |ty| {
        !matches!(ty, CqlType::Counter | CqlType::Duration)
    });
    native.prop_recursive(3, 12, 3, |inner| {
        let boxed = inner.clone().prop_map(Box::new);
        prop_oneof![
            boxed.clone().prop_map(|element| CqlType::List {
                element,
                frozen: true
            }),
            boxed.clone().prop_map(|element| CqlType::Set {
                element,
                frozen: true
            }),
            (boxed.clone(), boxed).prop_map(|(key, value)| CqlType::Map {
                key,
                value,
                frozen: true
            }),
            prop::collection::vec(inner.clone(), 1..4).prop_map(CqlType::Tuple),
            (inner.clone().prop_map(Box::new), 1..4_usize)
                .prop_map(|(element, dimension)| CqlType::Vector { element, dimension }),
            (
                "[a-zA-Z][a-z \"_0-9]{0,6}",
                prop::collection::vec(inner, 1..4)
            )
                .prop_map(|(name, types)| CqlType::Udt {
                    keyspace: "ks".into(),
                    name,
                    fields: types
                        .into_iter()
                        .enumerate()
                        .map(|(i, ty)| (format!("F {i}"), ty))
                        .collect(),
                    frozen: true,
                }),
        ]
    })
}

/// Types of columns.
fn column_type() -> impl Strategy<Value = CqlType> {
    (frozen_type(), any::<bool>()).prop_map(|(ty, frozen)| match ty {
        CqlType::List { element, .. } => CqlType::List { element, frozen },
        CqlType::Set { element, .. } => CqlType::Set { element, frozen },
        CqlType::Map { key, value, .. } => CqlType::Map { key, value, frozen },
        CqlType::Udt {
            keyspace,
            name,
            fields,
            ..
        } => CqlType::Udt {
            keyspace,
            name,
            fields,
            frozen,
        },
        other => other,
    })
}

fn number() -> impl Strategy<Value = BigInt> {
    prop::collection::vec(any::<u8>(), 1..20).prop_map(|bytes| BigInt::from_signed_bytes_be(&bytes))
}

fn value_of(ty: &CqlType) -> BoxedStrategy<Value> {
    match ty {
        CqlType::Ascii => "[ -~]{0,8}".prop_map(Value::Ascii).boxed(),
        CqlType::Text => any::<String>().prop_map(Value::Text).boxed(),
        CqlType::Blob => any::<Vec<u8>>().prop_map(|b| Value::Blob(b.into())).boxed(),
        CqlType::Boolean => any::<bool>().prop_map(Value::Boolean).boxed(),
        CqlType::Tinyint => any::<i8>().prop_map(Value::Tinyint).boxed(),
        CqlType::Smallint => any::<i16>().prop_map(Value::Smallint).boxed(),
        CqlType::Int => any::<i32>().prop_map(Value::Int).boxed(),
        CqlType::Bigint => any::<i64>().prop_map(Value::Bigint).boxed(),
        CqlType::Counter => any::<i64>().prop_map(Value::Counter).boxed(),
        CqlType::Date => any::<u32>().prop_map(Value::Date).boxed(),
        CqlType::Time => (0..86_400_000_000_000_i64).prop_map(Value::Time).boxed(),
        CqlType::Timestamp => any::<i64>().prop_map(Value::Timestamp).boxed(),
        CqlType::Float => any::<f32>().prop_map(Value::Float).boxed(),
        CqlType::Double => any::<f64>().prop_map(Value::Double).boxed(),
        CqlType::Varint => number().prop_map(Value::Varint).boxed(),
        CqlType::Decimal => (any::<i16>(), number())
            .prop_map(|(s, unscaled)| Value::Decimal {
                scale: s.into(),
                unscaled,
            })
            .boxed(),
        CqlType::Duration => (0..=i32::MAX, 0..=i32::MAX, 0..=i64::MAX, any::<bool>())
            .prop_map(|(months, days, nanoseconds, negative)| {
                let sign = if negative { -1 } else { 1 };
                Value::Duration {
                    months: months * sign,
                    days: days * sign,
                    nanoseconds: nanoseconds * i64::from(sign),
                }
            })
            .boxed(),
        CqlType::Inet => prop_oneof![
            any::<[u8; 4]>().prop_map(|b| Value::Inet(IpAddr::V4(Ipv4Addr::from(b)))),
            any::<[u8; 16]>().prop_map(|b| Value::Inet(IpAddr::V6(Ipv6Addr::from(b)))),
        ]
        .boxed(),
        CqlType::Uuid => any::<[u8; 16]>()
            .prop_map(|b| Value::Uuid(Uuid::from_bytes(b)))
            .boxed(),
        CqlType::Timeuuid => any::<[u8; 16]>()
            .prop_map(|mut b| {
                b[6] = b[6] & 0x0f | 0x10;
                Value::Timeuuid(Uuid::from_bytes(b))
            })
            .boxed(),
        CqlType::List { element, .. } => prop::collection::vec(value_of(element), 0..4)
            .prop_map(Value::List)
            .boxed(),
        CqlType::Set { element, .. } => prop::collection::vec(value_of(element), 0..4)
            .prop_map(Value::Set)
            .boxed(),
        CqlType::Vector { element, dimension } => {
            prop::collection::vec(value_of(element), *dimension)
                .prop_map(Value::Vector)
                .boxed()
        }
        CqlType::Map { key, value, .. } => {
            prop::collection::vec((value_of(key), value_of(value)), 0..4)
                .prop_map(Value::Map)
                .boxed()
        }
        CqlType::Tuple(types) => {
            let fields: Vec<_> = types
                .iter()
                .map(|ty| prop::option::of(value_of(ty)))
                .collect();
            fields.prop_map(Value::Tuple).boxed()
        }
        CqlType::Udt { fields, .. } => {
            let names: Vec<String> = fields.iter().map(|(name, _)| name.clone()).collect();
            let fields: Vec<_> = fields
                .iter()
                .map(|(_, ty)| prop::option::of(value_of(ty)))
                .collect();
            fields
                .prop_map(move |values| Value::Udt(names.iter().cloned().zip(values).collect()))
                .boxed()
        }
    }
}

fn typed_values(n: usize) -> impl Strategy<Value = (CqlType, Vec<Value>)> {
    frozen_type().prop_flat_map(move |ty| {
        let values = prop::collection::vec(value_of(&ty), n);
        (Just(ty), values)
    })
}

/// The user-defined types within a type.
fn known_types(ty: &CqlType, into: &mut Vec<(String, Vec<(String, CqlType)>)>) {
    match ty {
        CqlType::List { element, .. }
        | CqlType::Set { element, .. }
        | CqlType::Vector { element, .. } => known_types(element, into),
        CqlType::Map { key, value, .. } => [key, value]
            .into_iter()
            .for_each(|ty| known_types(ty, into)),
        CqlType::Tuple(types) => types.iter().for_each(|ty| known_types(ty, into)),
        CqlType::Udt { name, fields, .. } => {
            into.push((name.clone(), fields.clone()));
            fields.iter().for_each(|(_, ty)| known_types(ty, into));
        }
        _ => {}
    }
}

/// A literal read back as a value; composite ones as their type says.
fn read(term: &Term, ty: &CqlType) -> Option<Value> {
    let all = |terms: &[Term], ty: &CqlType| {
        terms
            .iter()
            .map(|t| read(t, ty).expect("no null within"))
            .collect()
    };
    match (term, ty) {
        (Term::Constant(constant), ty) => Value::from_constant(constant, ty, "x").unwrap(),
        (Term::List(items), CqlType::List { element, .. }) => {
            Some(Value::List(all(items, element)))
        }
        (Term::List(items), CqlType::Vector { element, .. }) => {
            Some(Value::Vector(all(items, element)))
        }
        (Term::Set(items), CqlType::Set { element, .. }) => Some(Value::Set(all(items, element))),
        (Term::Set(items), CqlType::Map { .. }) if items.is_empty() => Some(Value::Map(vec![])),
        (Term::Map(entries), CqlType::Map { key, value, .. }) => Some(Value::Map(
            entries
                .iter()
                .map(|(k, v)| (read(k, key).unwrap(), read(v, value).unwrap()))
                .collect(),
        )),
        (Term::Tuple(items), CqlType::Tuple(types)) => Some(Value::Tuple(
            items
                .iter()
                .zip(types)
                .map(|(item, ty)| read(item, ty))
                .collect(),
        )),
        (Term::Udt(items), CqlType::Udt { fields, .. }) => Some(Value::Udt(
            items
                .iter()
                .zip(fields)
                .map(|((name, item), (_, ty))| (name.clone(), read(item, ty)))
                .collect(),
        )),
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn types_are_printed_and_parsed(ty in column_type()) {
        let mut known = Vec::new();
        known_types(&ty, &mut known);
        // Two user-defined types of one name cannot be told apart, as they could not be made.
        prop_assume!(known.iter().all(|(name, fields)| known.iter().all(|(n, f)| n != name || f == fields)));
        let find = |keyspace: &str, name: &str| {
            assert_eq!(keyspace, "ks");
            known.iter().find(|(known, _)| known == name).map(|(_, fields)| fields.clone())
        };
        prop_assert_eq!(CqlType::parse(&ty.to_string(), "ks", &find).unwrap(), ty);
    }

    #[test]
    fn values_are_encoded_and_decoded((ty, values) in typed_values(1)) {
        let bytes = values[0].encode();
        let decoded = Value::decode(&ty, &bytes).unwrap();
        prop_assert_eq!(decoded.encode(), bytes);
        prop_assert_eq!(decoded.compare(&values[0]), Ordering::Equal);
    }

    #[test]
    fn durations_are_encoded_and_decoded(value in value_of(&CqlType::Duration)) {
        prop_assert_eq!(Value::decode(&CqlType::Duration, &value.encode()).unwrap(), value);
    }

    #[test]
    fn values_are_written_and_read((ty, values) in typed_values(1)) {
        let text = format!("INSERT INTO t (x) VALUES ({})", values[0]);
        let Statement::Insert(insert) = parse(&text).unwrap().statement else { panic!("no insert") };
        let found = read(&insert.values[0], &ty).unwrap();
        prop_assert_eq!(found.compare(&values[0]), Ordering::Equal, "{}", text);
    }

    #[test]
    fn order_is_total((ty, values) in typed_values(3)) {
        let [a, b, c] = &values[..] else { panic!("three values") };
        prop_assert_eq!(a.compare(a), Ordering::Equal);
        prop_assert_eq!(a.compare(b), b.compare(a).reverse());
        if a.compare(b) == b.compare(c) {
            prop_assert_eq!(a.compare(c), a.compare(b));
        }
        prop_assert_eq!(compare(&ty, &a.encode(), &b.encode()), a.compare(b));
    }

    /// The engine keeps keys by an encoding of its own; both must agree on what comes first.
    #[test]
    fn order_is_the_engines((ty, values) in typed_values(2)) {
        let [a, b] = [values[0].encode(), values[1].encode()];
        let key = |bytes: &[u8]| crate::engine::order::value(&ty, bytes);
        prop_assert_eq!(key(&a).cmp(&key(&b)), compare(&ty, &a, &b), "{} {} {}", ty, values[0], values[1]);
    }

    #[test]
    fn no_bytes_panic(ty in frozen_type(), a in any::<Vec<u8>>(), b in any::<Vec<u8>>()) {
        if let Ok(value) = Value::decode(&ty, &a) {
            drop(value.to_string());
        }
        prop_assert_eq!(compare(&ty, &a, &b), compare(&ty, &b, &a).reverse());
    }

    #[test]
    fn no_constant_panics(text in "[-+0-9a-zA-Z:.µ /PT]{0,30}", which in 0..20usize) {
        for constant in [
            Constant::Text(text.clone()),
            Constant::Integer(text.clone()),
            Constant::Float(text.clone()),
            Constant::Duration(text),
        ] {
            if let Ok(Some(value)) = Value::from_constant(&constant, &NATIVE[which], "x") {
                prop_assert!(Value::decode(&NATIVE[which], &value.encode()).is_ok());
            }
        }
    }
}

fn no_types(_: &str, _: &str) -> Option<Vec<(String, CqlType)>> {
    None
}

fn ty(text: &str) -> Result<CqlType, TypeError> {
    CqlType::parse(text, "ks", &no_types)
}

#[test]
fn frozen_is_printed_where_scylladb_prints_it() {
    for (given, printed) in [
        ("VARCHAR", "text"),
        ("map<text, int>", "map<text, int>"),
        (
            "frozen<map<text,list<int>>>",
            "frozen<map<text, frozen<list<int>>>>",
        ),
        (
            "tuple<int, list<text>>",
            "frozen<tuple<int, frozen<list<text>>>>",
        ),
        ("list<frozen<tuple<int>>>", "list<frozen<tuple<int>>>"),
        ("list<tuple<int>>", "list<frozen<tuple<int>>>"),
    ] {
        assert_eq!(ty(given).unwrap().to_string(), printed);
    }
}

#[test]
fn types_that_cannot_be_are_refused() {
    for (text, message) in [
        (
            "list<list<int>>",
            "Non-frozen collections are not allowed inside collections: list<list<int>>",
        ),
        (
            "frozen<int>",
            "frozen<> is only allowed on collections, tuples, and user-defined types (got int)",
        ),
        (
            "set<duration>",
            "Durations are not allowed inside sets: set<duration>",
        ),
        (
            "map<duration, int>",
            "Durations are not allowed as map keys: map<duration, int>",
        ),
        (
            "list<counter>",
            "Counters are not allowed inside collections: list<counter>",
        ),
        ("address", "Unknown type ks.address"),
        (
            "other.address",
            "Statement on keyspace ks cannot refer to a user type in keyspace other; user types can only be used in \
             the keyspace they are defined in",
        ),
        (
            "list<int",
            "line 1:8 mismatched input '<EOF>' expecting '>'",
        ),
    ] {
        assert_eq!(ty(text).unwrap_err().to_string(), message);
    }
}

/// Bytes worked out by hand from the specification, so that both directions cannot be wrong together.
#[test]
fn bytes_are_those_of_the_specification() {
    let hex = |value: Value| {
        value
            .encode()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>()
    };
    assert_eq!(hex(Value::Int(-2)), "fffffffe");
    assert_eq!(hex(Value::Varint(128.into())), "0080");
    assert_eq!(hex(Value::Varint((-129).into())), "ff7f");
    assert_eq!(hex(Value::Varint(0.into())), "00");
    assert_eq!(
        hex(Value::Decimal {
            scale: 2,
            unscaled: (-1).into()
        }),
        "00000002ff"
    );
    assert_eq!(hex(Value::Date(1 << 31)), "80000000");
    // Zig-zag: 1 → 2, 2 → 4, 3 → 6; one byte each.
    assert_eq!(
        hex(Value::Duration {
            months: 1,
            days: 2,
            nanoseconds: 3
        }),
        "020406"
    );
    // −65 → 129 = 0x81, which takes two bytes: 10xxxxxx xxxxxxxx.
    assert_eq!(
        hex(Value::Duration {
            months: 0,
            days: 0,
            nanoseconds: -65
        }),
        "00008081"
    );
    assert_eq!(
        hex(Value::Duration {
            months: 0,
            days: 0,
            nanoseconds: i64::MIN
        }),
        "0000ffffffffffffffffff"
    );
    assert_eq!(
        hex(Value::List(vec![Value::Tinyint(1)])),
        "000000010000000101"
    );
    assert_eq!(
        hex(Value::Tuple(vec![None, Some(Value::Boolean(true))])),
        "ffffffff0000000101"
    );
}

#[test]
fn constants_become_values_of_their_type() {
    let text = |s: &str| Constant::Text(s.into());
    let integer = |s: &str| Constant::Integer(s.into());
    let value = |constant: &Constant, ty: CqlType| {
        Value::from_constant(constant, &ty, "x").unwrap().unwrap()
    };
    for (written, ms) in [
        ("2011-02-03", 1_296_691_200_000),
        ("2011-02-03 04:05+0000", 1_296_705_900_000),
        ("2011-02-03T04:05:00.123Z", 1_296_705_900_123),
        ("2011-02-03 04:05:00-02:30", 1_296_705_900_000 + 9_000_000),
        ("1969-12-31T23:59:59.999", -1),
        ("-5", -5),
    ] {
        assert_eq!(
            value(&text(written), CqlType::Timestamp),
            Value::Timestamp(ms),
            "{written}"
        );
    }
    assert_eq!(
        value(&text("1970-01-02"), CqlType::Date),
        Value::Date((1 << 31) + 1)
    );
    assert_eq!(
        value(&integer("2147483648"), CqlType::Date),
        Value::Date(1 << 31)
    );
    assert_eq!(
        value(&text("08:12:54.123456789"), CqlType::Time),
        Value::Time(29_574_123_456_789)
    );
    assert_eq!(
        value(&Constant::Float("-1.50e3".into()), CqlType::Decimal),
        Value::Decimal {
            scale: -1,
            unscaled: (-150).into()
        }
    );
    for (written, months, days, nanoseconds) in [
        ("1y2mo3w4d5h6m7s8ms9us10ns", 14, 25, 18_367_008_009_010),
        ("-1d", 0, -1, 0),
        ("P1Y2M3DT4H5M6S", 14, 3, 14_706_000_000_000),
        ("P2W", 0, 14, 0),
        ("P0001-02-03T04:05:06", 14, 3, 14_706_000_000_000),
    ] {
        let duration = Value::Duration {
            months,
            days,
            nanoseconds,
        };
        assert_eq!(
            value(&Constant::Duration(written.into()), CqlType::Duration),
            duration,
            "{written}"
        );
    }
}

#[test]
fn constants_of_the_wrong_kind_are_refused_as_scylladb_does() {
    let error = |constant, ty| {
        Value::from_constant(&constant, &ty, "v")
            .unwrap_err()
            .to_string()
    };
    let text = |s: &str| Constant::Text(s.into());
    let integer = |s: &str| Constant::Integer(s.into());
    assert_eq!(
        error(text("a"), CqlType::Int),
        "Invalid STRING constant (a) for \"v\" of type int"
    );
    assert_eq!(
        error(integer("1"), CqlType::Text),
        "Invalid INTEGER constant (1) for \"v\" of type text"
    );
    assert_eq!(
        error(
            text("a"),
            CqlType::List {
                element: Box::new(CqlType::Int),
                frozen: true
            }
        ),
        "Invalid STRING constant (a) for \"v\" of type frozen<list<int>>"
    );
    assert_eq!(
        error(Constant::Null, CqlType::Counter),
        "Invalid null value for counter increment/decrement"
    );
    assert!(error(integer("300"), CqlType::Tinyint).starts_with("marshaling error: "));
    assert!(error(text("2011-02-30"), CqlType::Timestamp).starts_with("marshaling error: "));
    assert!(error(text("25:00:00"), CqlType::Time).starts_with("marshaling error: "));
    assert!(
        error(Constant::Uuid(Uuid::nil()), CqlType::Timeuuid).starts_with("marshaling error: ")
    );
}

#[test]
fn order_is_scylladbs() {
    let least_first = |values: &[Value]| {
        for pair in values.windows(2) {
            assert_eq!(
                pair[0].compare(&pair[1]),
                Ordering::Less,
                "{} {}",
                pair[0],
                pair[1]
            );
        }
    };
    let id = |text: &str| Uuid::parse_str(text).unwrap();
    // By time (the high bits stand in the middle), then by signed bytes: 0x80 is before 0x00 and 0x7f.
    least_first(&[
        Value::Timeuuid(id("ffffffff-0000-1000-7f7f-7f7f7f7f7f7f")),
        Value::Timeuuid(id("00000000-0001-1000-8080-808080808080")),
        Value::Timeuuid(id("00000000-0001-1000-0080-808080808080")),
        Value::Timeuuid(id("00000000-0001-1000-7f7f-7f7f7f7f7f7f")),
        Value::Timeuuid(id("00000000-0000-1001-8080-808080808080")),
    ]);
    let decimal = |scale, unscaled: i64| Value::Decimal {
        scale,
        unscaled: unscaled.into(),
    };
    least_first(&[
        decimal(0, -10),
        decimal(1, -99),
        decimal(9, 0),
        decimal(400, 1),
        decimal(2, 99),
        decimal(-300, 1),
    ]);
    assert_eq!(decimal(1, 10).compare(&decimal(3, 1000)), Ordering::Equal);
    let doubles = [
        f64::NEG_INFINITY,
        -1.0,
        -0.0,
        0.0,
        1.0,
        f64::INFINITY,
        f64::NAN,
    ];
    least_first(&doubles.map(Value::Double));
    least_first(&[
        Value::Empty,
        Value::Int(i32::MIN),
        Value::Int(-1),
        Value::Int(0),
    ]);
    let list = |items: &[i32]| Value::List(items.iter().map(|n| Value::Int(*n)).collect());
    least_first(&[list(&[]), list(&[-1, 5]), list(&[1]), list(&[1, 0])]);
}

#[test]
fn years_before_the_first_are_read_as_they_are_written() {
    for (text, days) in [("-0001-12-31", -719_529), ("-009977-10-31", -4_363_249)] {
        let constant = Constant::Text(text.into());
        let day = Value::from_constant(&constant, &CqlType::Date, "d").unwrap();
        let Some(Value::Date(day)) = day else {
            panic!("{day:?}")
        };
        assert_eq!(i64::from(day) - (1 << 31), days, "{text}");
    }
}

#[test]
fn elements_of_a_vector_have_a_length_unless_their_type_has_one() {
    let vector = |of: &str, items: Vec<Value>| {
        let ty = ty(&format!("vector<{of}, {}>", items.len())).unwrap();
        let value = Value::Vector(items);
        let bytes = value.encode();
        assert_eq!(Value::decode(&ty, &bytes).unwrap(), value);
        bytes
    };
    let ints = vec![Value::Int(1), Value::Int(2)];
    assert_eq!(vector("int", ints.clone()), [0, 0, 0, 1, 0, 0, 0, 2]);
    let smallints = vec![Value::Smallint(1), Value::Smallint(2)];
    assert_eq!(vector("smallint", smallints), [2, 0, 1, 2, 0, 2]);
    let texts = vec![
        Value::Text("a".into()),
        Value::Text(String::new()),
        Value::Text("x".repeat(200)),
    ];
    let bytes = vector("text", texts);
    assert_eq!(bytes[..5], [1, b'a', 0, 0x80, 200]);
    let nested = vec![Value::Vector(ints.clone()), Value::Vector(ints)];
    assert_eq!(vector("vector<int, 2>", nested).len(), 16);
    for (text, message) in [
        (
            "vector<int, 0>",
            "Vectors must have a dimension greater than 0",
        ),
        (
            "vector<int, -1>",
            "Vectors must have a dimension greater than 0",
        ),
        (
            "vector<int, 16001>",
            "Vectors must have a dimension less than or equal to 16000",
        ),
    ] {
        assert_eq!(ty(text).unwrap_err().to_string(), message);
    }
    assert_eq!(
        ty("vector<set<int>, 2>").unwrap().to_string(),
        "vector<frozen<set<int>>, 2>"
    );
}

#[test]
fn dates_times_and_durations_that_scylladb_does_not_read_are_refused() {
    let read = |constant: Constant, ty: CqlType| Value::from_constant(&constant, &ty, "x");
    let time = |text: &str| {
        read(Constant::Text(text.into()), CqlType::Timestamp)
            .ok()
            .flatten()
    };
    for zone in ["", "Z", "z", " UTC", "gmt", "  Z ", "+0000"] {
        assert_eq!(
            time(&format!("2011-02-03{zone}")),
            Some(Value::Timestamp(1_296_691_200_000)),
            "{zone}"
        );
    }
    assert_eq!(
        time("2011-02-03 04:05:12.3456+0000"),
        None,
        "no more than milliseconds"
    );
    for (text, message) in [
        (
            "2m3m",
            "Invalid duration. The minutes are specified multiple times",
        ),
        (
            "12s3m",
            "Invalid duration. The seconds should be after minutes",
        ),
        (
            "1y3m4d",
            "Invalid duration. The minutes should be after days",
        ),
    ] {
        let e = read(Constant::Duration(text.into()), CqlType::Duration).unwrap_err();
        assert_eq!(e.to_string(), format!("marshaling error: {message}"));
    }
    assert!(
        read(
            Constant::Duration("1y2mo3w4d5h6m7s8ms9µs10ns".into()),
            CqlType::Duration
        )
        .is_ok()
    );
    let e = read(Constant::Integer("-123".into()), CqlType::Date).unwrap_err();
    assert!(e.to_string().contains("unsigned int"), "{e}");
}
