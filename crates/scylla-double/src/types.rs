//! CQL types and values: their notation, their order, and their bytes (native protocol v4, section 6).
//!
//! Written from the specification and ScyllaDB's documentation, apart from what clients are made of, so
//! that a client's mistake is not shared.

mod json;
pub(crate) mod keywords;
mod literal;
mod value;

use std::fmt;

pub use json::{JsonError, parse as parse_json};
pub use literal::{Constant, ConstantError};
pub use value::{DecodeError, Value, compare};
pub(crate) use value::{vector, vector_elements};

/// A CQL type, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CqlType {
    /// Text of ASCII characters.
    Ascii,
    /// 64 bits, signed.
    Bigint,
    /// Bytes.
    Blob,
    /// True or false.
    Boolean,
    /// A counter: 64 bits, signed.
    Counter,
    /// A day: unsigned, 2³¹ is 1970-01-01.
    Date,
    /// A scale and an unscaled integer of any size.
    Decimal,
    /// IEEE 754, 64 bits.
    Double,
    /// Months, days and nanoseconds.
    Duration,
    /// IEEE 754, 32 bits.
    Float,
    /// An IPv4 or IPv6 address.
    Inet,
    /// 32 bits, signed.
    Int,
    /// 16 bits, signed.
    Smallint,
    /// UTF-8; `varchar` is the same.
    Text,
    /// Nanoseconds since midnight.
    Time,
    /// Milliseconds since the Unix epoch.
    Timestamp,
    /// A version 1 UUID, ordered by its time.
    Timeuuid,
    /// 8 bits, signed.
    Tinyint,
    /// A UUID.
    Uuid,
    /// An integer of any size.
    Varint,
    /// A list.
    List {
        /// What it holds.
        element: Box<CqlType>,
        /// Whether it is one cell.
        frozen: bool,
    },
    /// A set.
    Set {
        /// What it holds.
        element: Box<CqlType>,
        /// Whether it is one cell.
        frozen: bool,
    },
    /// A map.
    Map {
        /// Of its keys.
        key: Box<CqlType>,
        /// Of its values.
        value: Box<CqlType>,
        /// Whether it is one cell.
        frozen: bool,
    },
    /// A tuple, always one cell.
    Tuple(Vec<CqlType>),
    /// So many elements, always one cell.
    Vector {
        /// What it holds.
        element: Box<CqlType>,
        /// How many, at least one.
        dimension: usize,
    },
    /// A user-defined type.
    Udt {
        /// Its keyspace.
        keyspace: String,
        /// Its name.
        name: String,
        /// Its fields, in order.
        fields: Vec<(String, CqlType)>,
        /// Whether it is one cell.
        frozen: bool,
    },
}

/// A type that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TypeError {
    /// There is no such user-defined type, or no such type at all.
    #[error("Unknown type {keyspace}.{name}")]
    Unknown {
        /// Where it was looked for.
        keyspace: String,
        /// Its name.
        name: String,
    },
    /// A user-defined type was named with no keyspace to look in.
    #[error("Unknown type {0}")]
    NoKeyspace(String),
    /// A user-defined type of another keyspace.
    #[error(
        "Statement on keyspace {keyspace} cannot refer to a user type in keyspace {other}; user types can only be used in the keyspace they are defined in"
    )]
    OtherKeyspace {
        /// The statement's keyspace.
        keyspace: String,
        /// The type's keyspace.
        other: String,
    },
    /// A collection or user-defined type in a collection must be frozen.
    #[error("Non-frozen {what} are not allowed inside collections: {ty}")]
    NotFrozen {
        /// `collections` or `user types`.
        what: &'static str,
        /// The type as written.
        ty: String,
    },
    /// A non-frozen user-defined type with a field that is not frozen.
    #[error("Non-frozen user types or collections are not allowed inside user types: {0}")]
    NotFrozenField(String),
    /// `frozen` of what cannot be frozen.
    #[error("frozen<> is only allowed on collections, tuples, and user-defined types (got {0})")]
    CannotFreeze(String),
    /// A counter where none may be.
    #[error("Counters are not allowed inside {0}")]
    Counter(String),
    /// A vector of nothing, or of too much.
    #[error("Vectors must have a dimension {0}")]
    Dimension(String),
    /// A duration cannot be ordered.
    #[error("Durations are not allowed {what}: {ty}")]
    Duration {
        /// `inside sets` or `as map keys`.
        what: &'static str,
        /// The type as written.
        ty: String,
    },
    /// The notation is wrong.
    #[error("{0}")]
    Syntax(String),
}

/// Finds the fields of a user-defined type by keyspace and name.
pub type UserTypes<'a> = &'a dyn Fn(&str, &str) -> Option<Vec<(String, CqlType)>>;

impl CqlType {
    /// A native type by its CQL name, ignoring case; `varchar` is `text`.
    pub fn native(name: &str) -> Option<Self> {
        const NAMES: [(&str, CqlType); 21] = [
            ("ascii", CqlType::Ascii),
            ("bigint", CqlType::Bigint),
            ("blob", CqlType::Blob),
            ("boolean", CqlType::Boolean),
            ("counter", CqlType::Counter),
            ("date", CqlType::Date),
            ("decimal", CqlType::Decimal),
            ("double", CqlType::Double),
            ("duration", CqlType::Duration),
            ("float", CqlType::Float),
            ("inet", CqlType::Inet),
            ("int", CqlType::Int),
            ("smallint", CqlType::Smallint),
            ("text", CqlType::Text),
            ("time", CqlType::Time),
            ("timestamp", CqlType::Timestamp),
            ("timeuuid", CqlType::Timeuuid),
            ("tinyint", CqlType::Tinyint),
            ("uuid", CqlType::Uuid),
            ("varchar", CqlType::Text),
            ("varint", CqlType::Varint),
        ];
        NAMES
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, ty)| ty.clone())
    }

    /// The type as one cell: a collection or user-defined type frozen, and all within it.
    #[must_use]
    pub fn frozen(self) -> Self {
        let inner = |ty: Box<CqlType>| Box::new(ty.frozen());
        match self {
            CqlType::List { element, .. } => CqlType::List {
                element: inner(element),
                frozen: true,
            },
            CqlType::Set { element, .. } => CqlType::Set {
                element: inner(element),
                frozen: true,
            },
            CqlType::Map { key, value, .. } => CqlType::Map {
                key: inner(key),
                value: inner(value),
                frozen: true,
            },
            CqlType::Tuple(types) => {
                CqlType::Tuple(types.into_iter().map(CqlType::frozen).collect())
            }
            CqlType::Vector { element, dimension } => CqlType::Vector {
                element: inner(element),
                dimension,
            },
            CqlType::Udt {
                keyspace,
                name,
                fields,
                ..
            } => CqlType::Udt {
                keyspace,
                name,
                fields: fields
                    .into_iter()
                    .map(|(name, ty)| (name, ty.frozen()))
                    .collect(),
                frozen: true,
            },
            native => native,
        }
    }

    /// Its name as Cassandra's classes have it, e.g. `org.apache.cassandra.db.marshal.Int32Type`.
    pub fn class_name(&self) -> String {
        const PACKAGE: &str = "org.apache.cassandra.db.marshal.";
        let frozen = |class: String, frozen: bool| {
            if frozen {
                format!("{PACKAGE}FrozenType({class})")
            } else {
                class
            }
        };
        let native = match self {
            CqlType::Ascii => "AsciiType",
            CqlType::Bigint => "LongType",
            CqlType::Blob => "BytesType",
            CqlType::Boolean => "BooleanType",
            CqlType::Counter => "CounterColumnType",
            CqlType::Date => "SimpleDateType",
            CqlType::Decimal => "DecimalType",
            CqlType::Double => "DoubleType",
            CqlType::Duration => "DurationType",
            CqlType::Float => "FloatType",
            CqlType::Inet => "InetAddressType",
            CqlType::Int => "Int32Type",
            CqlType::Smallint => "ShortType",
            CqlType::Text => "UTF8Type",
            CqlType::Time => "TimeType",
            CqlType::Timestamp => "TimestampType",
            CqlType::Timeuuid => "TimeUUIDType",
            CqlType::Tinyint => "ByteType",
            CqlType::Uuid => "UUIDType",
            CqlType::Varint => "IntegerType",
            CqlType::List { element, frozen: f } => {
                return frozen(format!("{PACKAGE}ListType({})", element.class_name()), *f);
            }
            CqlType::Set { element, frozen: f } => {
                return frozen(format!("{PACKAGE}SetType({})", element.class_name()), *f);
            }
            CqlType::Map {
                key,
                value,
                frozen: f,
            } => {
                let (key, value) = (key.class_name(), value.class_name());
                return frozen(format!("{PACKAGE}MapType({key},{value})"), *f);
            }
            CqlType::Tuple(types) => {
                let types: Vec<String> = types.iter().map(CqlType::class_name).collect();
                return format!("{PACKAGE}TupleType({})", types.join(","));
            }
            CqlType::Vector { element, dimension } => {
                return format!("{PACKAGE}VectorType({}, {dimension})", element.class_name());
            }
            CqlType::Udt {
                keyspace,
                name,
                fields,
                frozen: f,
            } => {
                let hex = |text: &str| -> String {
                    text.bytes().map(|byte| format!("{byte:02x}")).collect()
                };
                let fields: String = fields
                    .iter()
                    .map(|(name, ty)| format!(",{}:{}", hex(name), ty.class_name()))
                    .collect();
                let class = format!("{PACKAGE}UserType({keyspace},{}{fields})", hex(name));
                return frozen(class, *f);
            }
        };
        format!("{PACKAGE}{native}")
    }

    /// Whether a column of it is made of several cells.
    pub fn is_multi_cell(&self) -> bool {
        matches!(
            self,
            CqlType::List { frozen: false, .. }
                | CqlType::Set { frozen: false, .. }
                | CqlType::Map { frozen: false, .. }
                | CqlType::Udt { frozen: false, .. }
        )
    }

    /// How long every value of it is, where an element of a vector needs no length of its own: as the
    /// drivers have it, so not for all types of one length (`abstract_type::value_length_if_fixed`).
    pub fn fixed_length(&self) -> Option<usize> {
        Some(match self {
            CqlType::Boolean => 1,
            CqlType::Int | CqlType::Float => 4,
            CqlType::Bigint | CqlType::Double | CqlType::Timestamp => 8,
            CqlType::Uuid | CqlType::Timeuuid => 16,
            CqlType::Vector { element, dimension } => element.fixed_length()? * dimension,
            _ => return None,
        })
    }

    /// Whether it is a list, set or map.
    pub fn is_collection(&self) -> bool {
        matches!(
            self,
            CqlType::List { .. } | CqlType::Set { .. } | CqlType::Map { .. }
        )
    }

    /// Whether it is, or holds at any depth, what `test` is true of.
    pub fn any(&self, test: &dyn Fn(&CqlType) -> bool) -> bool {
        test(self)
            || match self {
                CqlType::List { element, .. }
                | CqlType::Set { element, .. }
                | CqlType::Vector { element, .. } => element.any(test),
                CqlType::Map { key, value, .. } => key.any(test) || value.any(test),
                CqlType::Tuple(types) => types.iter().any(|ty| ty.any(test)),
                CqlType::Udt { fields, .. } => fields.iter().any(|(_, ty)| ty.any(test)),
                _ => false,
            }
    }
}

impl fmt::Display for CqlType {
    /// As `system_schema` writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let native = match self {
            CqlType::Ascii => "ascii",
            CqlType::Bigint => "bigint",
            CqlType::Blob => "blob",
            CqlType::Boolean => "boolean",
            CqlType::Counter => "counter",
            CqlType::Date => "date",
            CqlType::Decimal => "decimal",
            CqlType::Double => "double",
            CqlType::Duration => "duration",
            CqlType::Float => "float",
            CqlType::Inet => "inet",
            CqlType::Int => "int",
            CqlType::Smallint => "smallint",
            CqlType::Text => "text",
            CqlType::Time => "time",
            CqlType::Timestamp => "timestamp",
            CqlType::Timeuuid => "timeuuid",
            CqlType::Tinyint => "tinyint",
            CqlType::Uuid => "uuid",
            CqlType::Varint => "varint",
            CqlType::List {
                element,
                frozen: false,
            } => return write!(f, "list<{element}>"),
            CqlType::Set {
                element,
                frozen: false,
            } => return write!(f, "set<{element}>"),
            CqlType::Map {
                key,
                value,
                frozen: false,
            } => return write!(f, "map<{key}, {value}>"),
            CqlType::Udt {
                name,
                frozen: false,
                ..
            } => return f.write_str(&quoted(name)),
            CqlType::List { element, .. } => return write!(f, "frozen<list<{element}>>"),
            CqlType::Set { element, .. } => return write!(f, "frozen<set<{element}>>"),
            CqlType::Map { key, value, .. } => return write!(f, "frozen<map<{key}, {value}>>"),
            CqlType::Udt { name, .. } => return write!(f, "frozen<{}>", quoted(name)),
            CqlType::Tuple(types) => {
                f.write_str("frozen<tuple<")?;
                for (i, ty) in types.iter().enumerate() {
                    write!(f, "{}{ty}", if i == 0 { "" } else { ", " })?;
                }
                return f.write_str(">>");
            }
            CqlType::Vector { element, dimension } => {
                return write!(f, "vector<{element}, {dimension}>");
            }
        };
        f.write_str(native)
    }
}

/// A name as CQL needs it: in quotes unless it is lower case, and no reserved word.
pub fn quoted(name: &str) -> String {
    let mut chars = name.chars();
    let plain = chars.next().is_some_and(|c| c.is_ascii_lowercase())
        && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !keywords::is_reserved(name);
    if plain {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

#[cfg(test)]
mod tests;
