//! CQL types and values: their notation, their binary form (native protocol v4, section 6) and their JSON form.
//!
//! The JSON form follows `SELECT JSON` where it can:
//!
//! | CQL | JSON |
//! |---|---|
//! | ascii, text, varchar | string |
//! | boolean | true, false |
//! | tinyint, smallint, int, bigint, counter, varint, decimal | number, all digits (a decimal past 10^300: a string) |
//! | float, double | number; `"NaN"`, `"Infinity"`, `"-Infinity"` |
//! | blob | `"0x…"` |
//! | uuid, timeuuid, inet | string |
//! | timestamp | `"2026-01-31T12:00:00.000Z"` |
//! | date, time | `"2026-01-31"`, `"12:00:00.000000000"` |
//! | duration | `"1mo2d3ns"` |
//! | list, set, tuple, vector | array |
//! | map | object; keys other than text are the text of their JSON form |
//! | udt | object |
//! | null, and the empty value of a type other than text and blob | null |

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use uuid::Uuid;

/// Types nest no deeper. ScyllaDB's own parser gives up before.
const MAX_DEPTH: usize = 32;

/// The longest varint that is written in decimal, which takes time in the square of its length.
const MAX_VARINT: usize = 1024;

/// A CQL type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum CqlType {
    Ascii,
    Bigint,
    Blob,
    Boolean,
    Counter,
    Date,
    Decimal,
    Double,
    Duration,
    Float,
    Inet,
    Int,
    Smallint,
    /// Also `varchar`.
    Text,
    Time,
    Timestamp,
    Timeuuid,
    Tinyint,
    Uuid,
    Varint,
    List(Box<CqlType>),
    Set(Box<CqlType>),
    Map(Box<CqlType>, Box<CqlType>),
    Tuple(Vec<CqlType>),
    /// Element and dimension.
    Vector(Box<CqlType>, u16),
    Udt(Box<UdtType>),
    Frozen(Box<CqlType>),
}

/// A user-defined type, written `udt<keyspace.name, field: type, …>`. Names that are not
/// `[A-Za-z_][A-Za-z0-9_]*` are put in double quotes, a double quote in them doubled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UdtType {
    /// Its keyspace.
    pub keyspace: String,
    /// Its name.
    pub name: String,
    /// Fields in order.
    pub fields: Vec<(String, CqlType)>,
}

/// The text is not a CQL type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidType {
    /// The text.
    pub text: String,
    /// The byte at which it was seen.
    pub at: usize,
    /// What was expected.
    pub what: &'static str,
}

impl fmt::Display for InvalidType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, at, what } = self;
        write!(f, "not a CQL type: {text:?}, at byte {at}: {what}")
    }
}

impl std::error::Error for InvalidType {}

const SIMPLE: [(&str, CqlType); 21] = [
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
    ("varchar", CqlType::Text),
    ("time", CqlType::Time),
    ("timestamp", CqlType::Timestamp),
    ("timeuuid", CqlType::Timeuuid),
    ("tinyint", CqlType::Tinyint),
    ("uuid", CqlType::Uuid),
    ("varint", CqlType::Varint),
];

impl std::str::FromStr for CqlType {
    type Err = InvalidType;

    fn from_str(text: &str) -> Result<Self, InvalidType> {
        let mut parser = TypeParser { text, at: 0 };
        let parsed = parser.parse(MAX_DEPTH)?;
        parser.space();
        if parser.at != text.len() {
            return Err(parser.bad("text after the type"));
        }
        Ok(parsed)
    }
}

struct TypeParser<'a> {
    text: &'a str,
    at: usize,
}

impl TypeParser<'_> {
    fn bad(&self, what: &'static str) -> InvalidType {
        InvalidType {
            text: self.text.to_owned(),
            at: self.at,
            what,
        }
    }

    fn space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn take(&mut self, c: char) -> bool {
        self.space();
        let found = self.text[self.at..].starts_with(c);
        self.at += if found { c.len_utf8() } else { 0 };
        found
    }

    fn expect(&mut self, c: char, what: &'static str) -> Result<(), InvalidType> {
        if self.take(c) {
            Ok(())
        } else {
            Err(self.bad(what))
        }
    }

    fn name(&mut self) -> Result<String, InvalidType> {
        if self.take('"') {
            let mut name = String::new();
            loop {
                let rest = &self.text[self.at..];
                let end = rest
                    .find('"')
                    .ok_or_else(|| self.bad("a closing double quote"))?;
                name.push_str(&rest[..end]);
                self.at += end + 1;
                if !self.text[self.at..].starts_with('"') {
                    return Ok(name);
                }
                name.push('"');
                self.at += 1;
            }
        }
        self.space();
        let rest = &self.text[self.at..];
        let len = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        if len == 0 {
            return Err(self.bad("a name"));
        }
        self.at += len;
        Ok(rest[..len].to_owned())
    }

    fn parse(&mut self, depth: usize) -> Result<CqlType, InvalidType> {
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| self.bad("fewer types within types"))?;
        let name = self.name()?.to_ascii_lowercase();
        if let Some((_, simple)) = SIMPLE.iter().find(|(n, _)| *n == name) {
            return Ok(simple.clone());
        }
        if !["list", "set", "map", "tuple", "vector", "udt", "frozen"].contains(&name.as_str()) {
            return Err(self.bad("a known type before this"));
        }
        self.expect('<', "'<'")?;
        let parsed = match name.as_str() {
            "list" => CqlType::List(Box::new(self.parse(depth)?)),
            "set" => CqlType::Set(Box::new(self.parse(depth)?)),
            "frozen" => CqlType::Frozen(Box::new(self.parse(depth)?)),
            "map" => {
                let key = self.parse(depth)?;
                self.expect(',', "','")?;
                CqlType::Map(Box::new(key), Box::new(self.parse(depth)?))
            }
            "vector" => {
                let element = self.parse(depth)?;
                self.expect(',', "','")?;
                let dimension = self.name()?;
                let dimension = dimension
                    .parse()
                    .map_err(|_| self.bad("a dimension of at most 65,535 before this"))?;
                CqlType::Vector(Box::new(element), dimension)
            }
            "tuple" => {
                let mut elements = vec![self.parse(depth)?];
                while self.take(',') {
                    elements.push(self.parse(depth)?);
                }
                CqlType::Tuple(elements)
            }
            _ => {
                let keyspace = self.name()?;
                self.expect('.', "'.'")?;
                let name = self.name()?;
                let mut fields = Vec::new();
                while self.take(',') {
                    let field = self.name()?;
                    self.expect(':', "':'")?;
                    fields.push((field, self.parse(depth)?));
                }
                CqlType::Udt(Box::new(UdtType {
                    keyspace,
                    name,
                    fields,
                }))
            }
        };
        self.expect('>', "'>'")?;
        Ok(parsed)
    }
}

/// A name as the notation has it: quoted where it must be.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !self.0.is_empty() && self.0.chars().all(plain) {
            f.write_str(self.0)
        } else {
            write!(f, "\"{}\"", self.0.replace('"', "\"\""))
        }
    }
}

/// The notation that [`str::parse`] takes.
impl fmt::Display for CqlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(t) => write!(f, "list<{t}>"),
            Self::Set(t) => write!(f, "set<{t}>"),
            Self::Frozen(t) => write!(f, "frozen<{t}>"),
            Self::Map(k, v) => write!(f, "map<{k}, {v}>"),
            Self::Vector(t, n) => write!(f, "vector<{t}, {n}>"),
            Self::Tuple(types) => {
                f.write_str("tuple<")?;
                for (i, t) in types.iter().enumerate() {
                    write!(f, "{}{t}", if i == 0 { "" } else { ", " })?;
                }
                f.write_char('>')
            }
            Self::Udt(udt) => {
                write!(f, "udt<{}.{}", Quoted(&udt.keyspace), Quoted(&udt.name))?;
                for (name, t) in &udt.fields {
                    write!(f, ", {}: {t}", Quoted(name))?;
                }
                f.write_char('>')
            }
            simple => {
                let name = SIMPLE.iter().find(|(_, t)| t == simple).map(|(n, _)| *n);
                f.write_str(name.unwrap_or("?"))
            }
        }
    }
}

impl CqlType {
    /// The type without `frozen<…>` around it.
    #[inline]
    pub fn thawed(&self) -> &CqlType {
        let mut thawed = self;
        while let Self::Frozen(inner) = thawed {
            thawed = inner;
        }
        thawed
    }

    /// Whether the CDC log says of a column of this type which elements were added and removed.
    pub fn is_multi_cell(&self) -> bool {
        matches!(
            self,
            Self::List(_) | Self::Set(_) | Self::Map(..) | Self::Udt(_)
        )
    }

    /// The type in which the CDC log carries a column of this type: a non-frozen list becomes
    /// `map<timeuuid, V>`, everything else stays.
    pub fn log_type(&self) -> CqlType {
        match self {
            Self::List(t) => Self::Map(Box::new(Self::Timeuuid), t.clone()),
            other => other.clone(),
        }
    }

    /// The type of `cdc$deleted_elements_c` for a column of this type: a set of elements, of keys, of a list's
    /// timeuuids, or of a UDT's field numbers. `None` where the log has no such column.
    pub fn removed_type(&self) -> Option<CqlType> {
        let of = |t: &CqlType| Some(Self::Set(Box::new(t.clone())));
        match self {
            Self::List(_) => of(&Self::Timeuuid),
            Self::Set(t) => of(t),
            Self::Map(k, _) => of(k),
            Self::Udt(_) => of(&Self::Smallint),
            _ => None,
        }
    }

    /// The length of every value of this type, if it is one.
    fn fixed_len(&self) -> Option<usize> {
        Some(match self.thawed() {
            Self::Boolean | Self::Tinyint => 1,
            Self::Smallint => 2,
            Self::Int | Self::Float | Self::Date => 4,
            Self::Bigint | Self::Counter | Self::Double | Self::Time | Self::Timestamp => 8,
            Self::Uuid | Self::Timeuuid => 16,
            _ => return None,
        })
    }

    /// Whether the elements of a vector of this type stand in it without a length each.
    pub fn is_fixed_in_vector(&self) -> bool {
        self.len_in_vector().is_some()
    }

    /// The length of every element of this type in a vector, if none is written before each. Not all that have a
    /// fixed length: Cassandra takes `tinyint`, `smallint`, `date` and `time` for variable, and the drivers do as it
    /// does (`type_size_for_vector` of the Rust driver, `serial_size` of the Python one). A vector of elements
    /// without lengths is itself without one.
    fn len_in_vector(&self) -> Option<usize> {
        match self.thawed() {
            Self::Tinyint | Self::Smallint | Self::Date | Self::Time | Self::Counter => None,
            Self::Vector(element, n) => element.len_in_vector()?.checked_mul(usize::from(*n)),
            other => other.fixed_len(),
        }
    }
}

/// A decoded value. Texts, blobs and big numbers point into the bytes that it was decoded from.
#[derive(Clone, Debug, PartialEq)]
pub enum CqlValue<'a> {
    /// No value, as an element of a tuple or UDT.
    Null,
    /// Zero bytes where the type has a length.
    Empty,
    /// `ascii`, `text`, `varchar`
    Text(&'a str),
    /// `blob`
    Blob(&'a [u8]),
    /// `boolean`
    Boolean(bool),
    /// `tinyint`, `smallint`, `int`, `bigint`, `counter`
    Int(i64),
    /// Two's complement, big-endian.
    Varint(&'a [u8]),
    /// Unscaled value in two's complement, big-endian, and the number of digits after the point.
    Decimal(&'a [u8], i32),
    /// `float`
    Float(f32),
    /// `double`
    Double(f64),
    /// Milliseconds since the Unix epoch.
    Timestamp(i64),
    /// Days since the Unix epoch.
    Date(i64),
    /// Nanoseconds since midnight.
    Time(i64),
    /// Months, days and nanoseconds.
    Duration(i32, i32, i64),
    /// `uuid`, `timeuuid`
    Uuid(Uuid),
    /// `inet`
    Inet(IpAddr),
    /// `list`, `set`, `vector`, `tuple`
    Sequence(Vec<CqlValue<'a>>),
    /// In the order of the bytes, which is that of the keys.
    Map(Vec<(CqlValue<'a>, CqlValue<'a>)>),
    /// Fields by name; those that the bytes end before are null.
    Udt(Vec<(String, CqlValue<'a>)>),
}

/// The bytes are not a value of the type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidValue {
    /// The type, in CQL notation.
    pub cql_type: String,
    /// What is wrong.
    pub what: &'static str,
}

impl fmt::Display for InvalidValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a value of type {}: {}", self.cql_type, self.what)
    }
}

impl std::error::Error for InvalidValue {}

/// Reads length-prefixed elements.
struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], &'static str> {
        let (head, rest) = self.0.split_at_checked(n).ok_or("truncated")?;
        self.0 = rest;
        Ok(head)
    }

    fn i32(&mut self) -> Result<i32, &'static str> {
        let b = self.take(4)?;
        Ok(i32::from_be_bytes(b.try_into().expect("four bytes")))
    }

    /// `[int] n` and n bytes; `None` for a negative n.
    fn value(&mut self) -> Result<Option<&'a [u8]>, &'static str> {
        match usize::try_from(self.i32()?) {
            Ok(n) => self.take(n).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// The number of elements that follow, each of at least `least` bytes.
    fn count(&mut self, least: usize) -> Result<usize, &'static str> {
        let n = usize::try_from(self.i32()?).map_err(|_| "negative number of elements")?;
        if n > self.0.len() / least {
            return Err("more elements than bytes");
        }
        Ok(n)
    }

    /// An unsigned vint: leading ones of the first byte say how many bytes follow.
    fn vint(&mut self) -> Result<u64, &'static str> {
        let first = self.take(1)?[0];
        let extra = first.leading_ones() as usize;
        let head = if extra >= 7 {
            0
        } else {
            u64::from(first) & (0xff >> (extra + 1))
        };
        let rest = self.take(extra)?;
        Ok(rest.iter().fold(head, |n, b| n << 8 | u64::from(*b)))
    }

    fn signed_vint(&mut self) -> Result<i64, &'static str> {
        let n = self.vint()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }
}

impl<'a> CqlValue<'a> {
    /// A non-frozen collection as its readers have it: the log has a list by timeuuids, and one without elements does not
    /// exist.
    #[must_use]
    pub fn whole(cql_type: &CqlType, logged: Option<Self>) -> Self {
        let value = match (logged, cql_type) {
            (Some(Self::Map(cells)), CqlType::List(_)) => {
                Self::Sequence(cells.into_iter().map(|(_, value)| value).collect())
            }
            (Some(value), _) => value,
            (None, _) => Self::Null,
        };
        let nothing = match &value {
            Self::Sequence(elements) => elements.is_empty(),
            Self::Map(cells) => cells.is_empty(),
            _ => false,
        };
        if nothing { Self::Null } else { value }
    }

    /// Decodes the bytes of a value of this type.
    pub fn decode(cql_type: &CqlType, bytes: &'a [u8]) -> Result<Self, InvalidValue> {
        decode(cql_type, bytes, MAX_DEPTH)
    }

    /// Writes the JSON form; see the module.
    pub fn write_json(&self, out: &mut String) -> Result<(), InvalidValue> {
        write_json(self, out)
    }

    /// The JSON form; see the module.
    pub fn to_json(&self) -> Result<String, InvalidValue> {
        let mut out = String::new();
        self.write_json(&mut out)?;
        Ok(out)
    }
}

fn decode<'a>(t: &CqlType, bytes: &'a [u8], depth: usize) -> Result<CqlValue<'a>, InvalidValue> {
    let bad = |what| InvalidValue {
        cql_type: t.to_string(),
        what,
    };
    let depth = depth.checked_sub(1).ok_or_else(|| bad("nested too deep"))?;
    let element = |t: &CqlType, bytes: Option<&'a [u8]>| match bytes {
        Some(bytes) => decode(t, bytes, depth),
        None => Ok(CqlValue::Null),
    };
    let mut rest = Elements(bytes);
    if t.fixed_len().is_some_and(|len| bytes.len() != len) && !bytes.is_empty() {
        return Err(bad("wrong length"));
    }
    let uint = || bytes.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
    Ok(match t {
        CqlType::Frozen(inner) => return decode(inner, bytes, depth),
        CqlType::Ascii | CqlType::Text => {
            CqlValue::Text(std::str::from_utf8(bytes).map_err(|_| bad("not UTF-8"))?)
        }
        CqlType::Blob => CqlValue::Blob(bytes),
        // A tuple or UDT of no bytes is one whose every field is null.
        t if bytes.is_empty() && !matches!(t, CqlType::Tuple(_) | CqlType::Udt(_)) => {
            CqlValue::Empty
        }
        CqlType::List(inner) | CqlType::Set(inner) => {
            let n = rest.count(4).map_err(bad)?;
            let mut elements = Vec::with_capacity(n);
            for _ in 0..n {
                elements.push(element(inner, rest.value().map_err(bad)?)?);
            }
            done(&rest).map_err(bad)?;
            CqlValue::Sequence(elements)
        }
        CqlType::Map(key, value) => {
            let n = rest.count(8).map_err(bad)?;
            let mut entries = Vec::with_capacity(n);
            for _ in 0..n {
                let k = element(key, rest.value().map_err(bad)?)?;
                entries.push((k, element(value, rest.value().map_err(bad)?)?));
            }
            done(&rest).map_err(bad)?;
            CqlValue::Map(entries)
        }
        CqlType::Vector(inner, n) => {
            let mut elements = Vec::new();
            for _ in 0..*n {
                let len = match inner.len_in_vector() {
                    Some(len) => len,
                    None => {
                        usize::try_from(rest.vint().map_err(bad)?).map_err(|_| bad("truncated"))?
                    }
                };
                elements.push(decode(inner, rest.take(len).map_err(bad)?, depth)?);
            }
            done(&rest).map_err(bad)?;
            CqlValue::Sequence(elements)
        }
        CqlType::Tuple(types) => {
            let mut elements = Vec::with_capacity(types.len());
            for inner in types {
                // What was written before the type grew ends early.
                let bytes = if rest.0.is_empty() {
                    None
                } else {
                    rest.value().map_err(bad)?
                };
                elements.push(element(inner, bytes)?);
            }
            done(&rest).map_err(bad)?;
            CqlValue::Sequence(elements)
        }
        CqlType::Udt(udt) => {
            let mut fields = Vec::with_capacity(udt.fields.len());
            for (name, inner) in &udt.fields {
                let bytes = if rest.0.is_empty() {
                    None
                } else {
                    rest.value().map_err(bad)?
                };
                fields.push((name.clone(), element(inner, bytes)?));
            }
            // Fields that this version of the type does not know yet are left alone.
            CqlValue::Udt(fields)
        }
        CqlType::Boolean => CqlValue::Boolean(bytes[0] != 0),
        CqlType::Tinyint => CqlValue::Int(i64::from(bytes[0] as i8)),
        CqlType::Smallint => CqlValue::Int(i64::from(uint() as i16)),
        CqlType::Int => CqlValue::Int(i64::from(uint() as i32)),
        CqlType::Bigint | CqlType::Counter => CqlValue::Int(uint() as i64),
        CqlType::Float => CqlValue::Float(f32::from_bits(uint() as u32)),
        CqlType::Double => CqlValue::Double(f64::from_bits(uint())),
        CqlType::Timestamp => CqlValue::Timestamp(uint() as i64),
        CqlType::Date => CqlValue::Date(uint() as i64 - (1 << 31)),
        CqlType::Time => {
            let nanos = uint() as i64;
            if !(0..86_400_000_000_000).contains(&nanos) {
                return Err(bad("not within a day"));
            }
            CqlValue::Time(nanos)
        }
        CqlType::Uuid | CqlType::Timeuuid => CqlValue::Uuid(Uuid::from_bytes(
            bytes.try_into().map_err(|_| bad("wrong length"))?,
        )),
        CqlType::Inet => CqlValue::Inet(match bytes.len() {
            4 => Ipv4Addr::from_bits(uint() as u32).into(),
            16 => {
                let octets: [u8; 16] = bytes.try_into().map_err(|_| bad("wrong length"))?;
                Ipv6Addr::from(octets).into()
            }
            _ => return Err(bad("neither 4 nor 16 bytes")),
        }),
        CqlType::Varint => CqlValue::Varint(bytes),
        CqlType::Decimal => {
            let scale = rest.i32().map_err(bad)?;
            CqlValue::Decimal(rest.0, scale)
        }
        CqlType::Duration => {
            let mut part = || rest.signed_vint().map_err(bad);
            let (months, days, nanos) = (part()?, part()?, part()?);
            done(&rest).map_err(bad)?;
            let small = |n: i64| i32::try_from(n).map_err(|_| bad("months or days out of range"));
            CqlValue::Duration(small(months)?, small(days)?, nanos)
        }
    })
}

fn done(rest: &Elements<'_>) -> Result<(), &'static str> {
    if rest.0.is_empty() {
        Ok(())
    } else {
        Err("bytes after the last element")
    }
}

/// Writes a JSON string.
pub fn write_json_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => push(out, format_args!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn push(out: &mut String, args: fmt::Arguments<'_>) {
    out.write_fmt(args).expect("a string takes all text");
}

fn write_json(value: &CqlValue<'_>, out: &mut String) -> Result<(), InvalidValue> {
    match value {
        CqlValue::Null | CqlValue::Empty => out.push_str("null"),
        CqlValue::Text(text) => write_json_string(text, out),
        CqlValue::Blob(bytes) => {
            out.push_str("\"0x");
            for b in *bytes {
                push(out, format_args!("{b:02x}"));
            }
            out.push('"');
        }
        CqlValue::Boolean(b) => push(out, format_args!("{b}")),
        CqlValue::Int(n) => push(out, format_args!("{n}")),
        CqlValue::Varint(bytes) => out.push_str(&varint_digits(bytes, "varint")?),
        CqlValue::Decimal(bytes, scale) => write_decimal(bytes, *scale, out)?,
        CqlValue::Float(x) if x.is_finite() => push(out, format_args!("{x:?}")),
        CqlValue::Double(x) if x.is_finite() => push(out, format_args!("{x:?}")),
        CqlValue::Float(x) => write_not_finite(f64::from(*x), out),
        CqlValue::Double(x) => write_not_finite(*x, out),
        CqlValue::Timestamp(ms) => {
            let (day, of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
            out.push('"');
            write_date(day, out);
            let (s, ms) = (of_day / 1000, of_day % 1000);
            let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
            push(out, format_args!("T{h:02}:{m:02}:{s:02}.{ms:03}Z\""));
        }
        CqlValue::Date(days) => {
            out.push('"');
            write_date(*days, out);
            out.push('"');
        }
        CqlValue::Time(nanos) => {
            let (s, nanos) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
            let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
            push(out, format_args!("\"{h:02}:{m:02}:{s:02}.{nanos:09}\""));
        }
        CqlValue::Duration(months, days, nanos) => {
            let negative = *months < 0 || *days < 0 || *nanos < 0;
            let (mo, d, ns) = (
                months.unsigned_abs(),
                days.unsigned_abs(),
                nanos.unsigned_abs(),
            );
            let sign = if negative { "-" } else { "" };
            push(out, format_args!("\"{sign}{mo}mo{d}d{ns}ns\""));
        }
        CqlValue::Uuid(id) => push(out, format_args!("\"{id}\"")),
        CqlValue::Inet(ip) => push(out, format_args!("\"{ip}\"")),
        CqlValue::Sequence(elements) => {
            out.push('[');
            for (i, element) in elements.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_json(element, out)?;
            }
            out.push(']');
        }
        CqlValue::Map(entries) => {
            out.push('{');
            for (i, (key, value)) in entries.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_json_key(key, out)?;
                out.push(':');
                write_json(value, out)?;
            }
            out.push('}');
        }
        CqlValue::Udt(fields) => {
            out.push('{');
            for (i, (name, value)) in fields.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_json_string(name, out);
                out.push(':');
                write_json(value, out)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

/// An object's keys are strings: of anything else, the text of its JSON form is the key.
fn write_json_key(key: &CqlValue<'_>, out: &mut String) -> Result<(), InvalidValue> {
    let start = out.len();
    write_json(key, out)?;
    if !out[start..].starts_with('"') {
        let text = out.split_off(start);
        write_json_string(&text, out);
    }
    Ok(())
}

fn write_not_finite(x: f64, out: &mut String) {
    out.push_str(match x {
        x if x.is_nan() => "\"NaN\"",
        x if x > 0.0 => "\"Infinity\"",
        _ => "\"-Infinity\"",
    });
}

/// Days since the Unix epoch as a date of the proleptic Gregorian calendar.
/// <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>
fn write_date(days: i64, out: &mut String) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    let sign = match year {
        0..=9999 => "",
        y if y < 0 => "-",
        _ => "+",
    };
    let year = year.unsigned_abs();
    push(out, format_args!("{sign}{year:04}-{month:02}-{day:02}"));
}

/// The decimal digits of a big-endian two's complement number.
fn varint_digits(bytes: &[u8], cql_type: &str) -> Result<String, InvalidValue> {
    let bad = |what| InvalidValue {
        cql_type: cql_type.to_owned(),
        what,
    };
    if bytes.is_empty() {
        return Err(bad("no bytes"));
    }
    if bytes.len() > MAX_VARINT {
        return Err(bad("more than 1024 bytes"));
    }
    let negative = bytes[0] & 0x80 != 0;
    // Base 10⁹ limbs, the least first; of a negative number first |n| − 1, which is its complement.
    let mut limbs: Vec<u64> = vec![0];
    for &b in bytes {
        let mut carry = u64::from(if negative { !b } else { b });
        for limb in &mut limbs {
            let n = *limb * 256 + carry;
            *limb = n % 1_000_000_000;
            carry = n / 1_000_000_000;
        }
        if carry > 0 {
            limbs.push(carry);
        }
    }
    if negative {
        let mut carry = 1;
        for limb in &mut limbs {
            let n = *limb + carry;
            *limb = n % 1_000_000_000;
            carry = n / 1_000_000_000;
        }
        if carry > 0 {
            limbs.push(carry);
        }
    }
    let mut text = String::from(if negative { "-" } else { "" });
    let mut limbs = limbs.iter().rev().skip_while(|l| **l == 0);
    push(
        &mut text,
        format_args!("{}", limbs.next().copied().unwrap_or(0)),
    );
    for limb in limbs {
        push(&mut text, format_args!("{limb:09}"));
    }
    Ok(text)
}

/// More digits before the point than this overflow the number type of most JSON readers (a double).
const MOST_DIGITS: i64 = 300;

/// A scale within a few digits is written out, a greater one as an exponent; what no double holds is a string.
fn write_decimal(bytes: &[u8], scale: i32, out: &mut String) -> Result<(), InvalidValue> {
    let digits = varint_digits(bytes, "decimal")?;
    match usize::try_from(scale) {
        Ok(0) => out.push_str(&digits),
        Ok(scale) if scale <= 64 => {
            let (sign, digits) = match digits.strip_prefix('-') {
                Some(rest) => ("-", rest),
                None => ("", digits.as_str()),
            };
            let digits = format!("{digits:0>width$}", width = scale + 1);
            let (whole, part) = digits.split_at(digits.len() - scale);
            push(out, format_args!("{sign}{whole}.{part}"));
        }
        _ if digits.len() as i64 - i64::from(scale) > MOST_DIGITS => {
            push(out, format_args!("\"{digits}e{}\"", -i64::from(scale)));
        }
        _ => push(out, format_args!("{digits}e{}", -i64::from(scale))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(cql_type: &str, bytes: &[u8]) -> String {
        let t: CqlType = cql_type.parse().unwrap();
        let value = CqlValue::decode(&t, bytes).unwrap();
        value.to_json().unwrap()
    }

    fn with_len(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as i32).to_be_bytes()[..], bytes].concat()
    }

    #[test]
    fn types_survive_their_notation() {
        for text in [
            "int",
            "frozen<list<text>>",
            "map<uuid, frozen<set<inet>>>",
            "tuple<int, text, duration>",
            "vector<float, 3>",
            "udt<ks.address, street: text, \"Odd \"\"name\": frozen<udt<\"K s\".geo, lat: double>>>",
        ] {
            let t: CqlType = text.parse().unwrap();
            assert_eq!(t.to_string(), text);
        }
        let spaced: CqlType = " Map < varchar ,int > ".parse().unwrap();
        assert_eq!(spaced.to_string(), "map<text, int>");
    }

    #[test]
    fn what_is_no_type_is_refused() {
        for text in [
            "",
            "integer",
            "list",
            "list<int",
            "list<int>>",
            "map<int>",
            "tuple<>",
            "udt<a>",
            "udt<a.b, c>",
            "vector<float, x>",
            "udt<a.\"b, c: int>",
        ] {
            assert!(text.parse::<CqlType>().is_err(), "{text}");
        }
        let deep = format!("{}int{}", "list<".repeat(40), ">".repeat(40));
        assert!(deep.parse::<CqlType>().is_err());
    }

    #[test]
    fn scalars_have_their_json_form() {
        assert_eq!(json("text", "a\"\n\u{1}é".as_bytes()), r#""a\"\n\u0001é""#);
        assert_eq!(json("blob", &[0, 255]), r#""0x00ff""#);
        assert_eq!(json("boolean", &[1]), "true");
        assert_eq!(json("tinyint", &[0xff]), "-1");
        assert_eq!(json("smallint", &[0x80, 0]), "-32768");
        assert_eq!(
            json("bigint", &i64::MIN.to_be_bytes()),
            i64::MIN.to_string()
        );
        assert_eq!(json("double", &1e300f64.to_be_bytes()), "1e300");
        assert_eq!(json("float", &f32::NAN.to_be_bytes()), "\"NaN\"");
        assert_eq!(json("int", &[]), "null");
        assert_eq!(json("inet", &[127, 0, 0, 1]), "\"127.0.0.1\"");
        assert_eq!(json("inet", &[0; 16]), "\"::\"");
        assert_eq!(
            json("timestamp", &(-1i64).to_be_bytes()),
            "\"1969-12-31T23:59:59.999Z\""
        );
        assert_eq!(
            json("timestamp", &1_769_860_800_123i64.to_be_bytes()),
            "\"2026-01-31T12:00:00.123Z\""
        );
        assert_eq!(json("date", &(1u32 << 31).to_be_bytes()), "\"1970-01-01\"");
        assert_eq!(json("date", &0u32.to_be_bytes()), "\"-5877641-06-23\"");
        assert_eq!(
            json("time", &3_661_000_000_001i64.to_be_bytes()),
            "\"01:01:01.000000001\""
        );
        assert_eq!(json("duration", &[2, 4, 6]), "\"1mo2d3ns\"");
        assert_eq!(json("varint", &[0]), "0");
        assert_eq!(json("varint", &[0x80]), "-128");
        assert_eq!(json("varint", &[0xff]), "-1");
        let big = (i128::MAX - 7).to_be_bytes();
        assert_eq!(json("varint", &big), (i128::MAX - 7).to_string());
        assert_eq!(
            json("varint", &i128::MIN.to_be_bytes()),
            i128::MIN.to_string()
        );
        assert_eq!(json("decimal", &[0, 0, 0, 2, 0x80]), "-1.28");
        assert_eq!(json("decimal", &[0, 0, 0, 3, 5]), "0.005");
        assert_eq!(json("decimal", &[0xff, 0xff, 0xff, 0xfe, 5]), "5e2");
    }

    #[test]
    fn collections_have_their_json_form() {
        let two = [2i32.to_be_bytes().to_vec(), with_len(b"a"), with_len(b"b")].concat();
        assert_eq!(json("frozen<list<text>>", &two), r#"["a","b"]"#);
        let map = [
            1i32.to_be_bytes().to_vec(),
            with_len(&7i32.to_be_bytes()),
            with_len(b"x"),
        ]
        .concat();
        assert_eq!(json("map<int, text>", &map), r#"{"7":"x"}"#);
        let tuple = [with_len(&[1]), (-1i32).to_be_bytes().to_vec()].concat();
        assert_eq!(
            json("tuple<boolean, text, int>", &tuple),
            "[true,null,null]"
        );
        assert_eq!(
            json("udt<k.u, a: text, b: int>", &with_len(b"v")),
            r#"{"a":"v","b":null}"#
        );
        let vector = [1f32.to_be_bytes(), 2.5f32.to_be_bytes()].concat();
        assert_eq!(json("vector<float, 2>", &vector), "[1.0,2.5]");
        assert_eq!(json("vector<text, 2>", b"\x01a\x02bc"), r#"["a","bc"]"#);
        assert_eq!(json("vector<smallint, 2>", &[2, 0, 1, 2, 0, 2]), "[1,2]");
        assert_eq!(
            json(
                "vector<frozen<vector<float, 2>>, 2>",
                &[vector.clone(), vector].concat()
            ),
            "[[1.0,2.5],[1.0,2.5]]"
        );
        let tiny = [2, 1, 7, 2, 1, 8];
        assert_eq!(json("vector<vector<tinyint, 1>, 2>", &tiny), "[[7],[8]]");
    }

    #[test]
    fn lying_lengths_are_refused() {
        for (t, bytes) in [
            ("list<int>", &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0][..]),
            ("list<int>", &[0xff; 4]),
            ("text", &[0xff]),
            ("int", &[1, 2, 3]),
            ("map<int, int>", &[0, 0, 0, 1, 0, 0, 0, 0]),
            ("vector<int, 65535>", &[0; 8]),
            ("duration", &[0xff]),
            ("decimal", &[0, 0]),
            ("time", &[0xff; 8]),
            ("inet", &[1, 2, 3, 4, 5]),
        ] {
            let t: CqlType = t.parse().unwrap();
            assert!(CqlValue::decode(&t, bytes).is_err(), "{t} {bytes:?}");
        }
    }

    #[test]
    fn the_log_carries_a_list_by_timeuuid() {
        let list: CqlType = "list<int>".parse().unwrap();
        assert_eq!(list.log_type().to_string(), "map<timeuuid, int>");
        assert_eq!(list.removed_type().unwrap().to_string(), "set<timeuuid>");
        let frozen: CqlType = "frozen<list<int>>".parse().unwrap();
        assert_eq!(frozen.log_type(), frozen);
        assert_eq!(frozen.removed_type(), None);
    }

    fn any_type() -> impl Strategy<Value = CqlType> {
        let leaf = prop::sample::select(SIMPLE.to_vec()).prop_map(|(_, t)| t);
        leaf.prop_recursive(4, 16, 4, |inner| {
            let boxed = inner.clone().prop_map(Box::new);
            prop_oneof![
                boxed.clone().prop_map(CqlType::List),
                boxed.clone().prop_map(CqlType::Set),
                boxed.clone().prop_map(CqlType::Frozen),
                (boxed.clone(), boxed.clone()).prop_map(|(k, v)| CqlType::Map(k, v)),
                (boxed, any::<u16>()).prop_map(|(t, n)| CqlType::Vector(t, n)),
                prop::collection::vec(inner.clone(), 1..4).prop_map(CqlType::Tuple),
                (".{0,4}", prop::collection::vec((".{0,4}", inner), 0..3)).prop_map(
                    |(name, fields)| CqlType::Udt(Box::new(UdtType {
                        keyspace: "ks".to_owned(),
                        name,
                        fields,
                    }))
                ),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_type_survives_its_notation(t in any_type()) {
            prop_assert_eq!(t.to_string().parse::<CqlType>(), Ok(t));
        }

        #[test]
        fn random_text_never_panics_the_type_parser(text in "[a-z<>,.: \"é]{0,40}") {
            let _ = text.parse::<CqlType>();
        }

        #[test]
        fn random_bytes_never_panic_and_all_json_is_json(
            t in any_type(),
            bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..64),
        ) {
            if let Ok(value) = CqlValue::decode(&t, &bytes)
                && let Ok(json) = value.to_json()
            {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{}", json);
            }
        }

        #[test]
        fn a_varint_is_written_like_an_integer(n in any::<i128>()) {
            prop_assert_eq!(json("varint", &n.to_be_bytes()), n.to_string());
        }
    }
}
