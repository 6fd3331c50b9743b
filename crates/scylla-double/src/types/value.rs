//! Values: bytes to values and back, and how ScyllaDB orders them.

use std::{
    cmp::Ordering,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bytes::{BufMut, Bytes};
use num_bigint::BigInt;
use uuid::Uuid;

use super::{CqlType, quoted};

/// How deep values may be nested: a type that a statement can name is far less deep.
const MAX_DEPTH: usize = 64;

/// A value that is not null.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// No bytes, where the type itself has no such value. CQL allows it for most types.
    Empty,
    /// An `ascii`.
    Ascii(String),
    /// A `bigint`.
    Bigint(i64),
    /// A `blob`.
    Blob(Bytes),
    /// A `boolean`.
    Boolean(bool),
    /// A `counter`.
    Counter(i64),
    /// A `date`: days, 2³¹ is 1970-01-01.
    Date(u32),
    /// A `decimal`: `unscaled × 10^-scale`.
    Decimal {
        /// Digits after the point.
        scale: i32,
        /// The digits.
        unscaled: BigInt,
    },
    /// A `double`.
    Double(f64),
    /// A `duration`; all parts have the same sign, or are zero.
    Duration {
        /// Months.
        months: i32,
        /// Days.
        days: i32,
        /// Nanoseconds.
        nanoseconds: i64,
    },
    /// A `float`.
    Float(f32),
    /// An `inet`.
    Inet(IpAddr),
    /// An `int`.
    Int(i32),
    /// A `smallint`.
    Smallint(i16),
    /// A `text`.
    Text(String),
    /// A `time`: nanoseconds since midnight.
    Time(i64),
    /// A `timestamp`: milliseconds since the Unix epoch.
    Timestamp(i64),
    /// A `timeuuid`.
    Timeuuid(Uuid),
    /// A `tinyint`.
    Tinyint(i8),
    /// A `uuid`.
    Uuid(Uuid),
    /// A `varint`.
    Varint(BigInt),
    /// A `list`.
    List(Vec<Value>),
    /// A `set`, in the order of its bytes.
    Set(Vec<Value>),
    /// A `map`, in the order of its bytes.
    Map(Vec<(Value, Value)>),
    /// A `tuple`; there may be fewer values than the type has.
    Tuple(Vec<Option<Value>>),
    /// A `vector`: as many as the type says.
    Vector(Vec<Value>),
    /// A user-defined type's fields with their names; there may be fewer than the type has.
    Udt(Vec<(String, Option<Value>)>),
}

/// Bytes that are no value of a type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The length is wrong.
    #[error("expected {expected} bytes for a {ty}, got {found}")]
    Length {
        /// The type.
        ty: CqlType,
        /// What would do.
        expected: &'static str,
        /// What was there.
        found: usize,
    },
    /// The bytes mean nothing in this type.
    #[error("{what} in a {ty}")]
    Invalid {
        /// The type.
        ty: CqlType,
        /// What is wrong.
        what: &'static str,
    },
}

impl Value {
    /// Reads a value of a type.
    ///
    /// # Errors
    /// When the bytes are none of that type.
    pub fn decode(ty: &CqlType, bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(ty, bytes, 0)
    }

    /// The value's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_to(&mut out);
        out
    }

    fn encode_to(&self, out: &mut Vec<u8>) {
        match self {
            Value::Empty => {}
            Value::Ascii(text) | Value::Text(text) => out.put_slice(text.as_bytes()),
            Value::Blob(bytes) => out.put_slice(bytes),
            Value::Boolean(b) => out.put_u8((*b).into()),
            Value::Bigint(n) | Value::Counter(n) | Value::Time(n) | Value::Timestamp(n) => {
                out.put_i64(*n)
            }
            Value::Date(day) => out.put_u32(*day),
            Value::Decimal { scale, unscaled } => {
                out.put_i32(*scale);
                out.put_slice(&unscaled.to_signed_bytes_be());
            }
            Value::Double(f) => out.put_f64(*f),
            Value::Duration {
                months,
                days,
                nanoseconds,
            } => {
                put_vint(out, (*months).into());
                put_vint(out, (*days).into());
                put_vint(out, *nanoseconds);
            }
            Value::Float(f) => out.put_f32(*f),
            Value::Inet(IpAddr::V4(ip)) => out.put_slice(&ip.octets()),
            Value::Inet(IpAddr::V6(ip)) => out.put_slice(&ip.octets()),
            Value::Int(n) => out.put_i32(*n),
            Value::Smallint(n) => out.put_i16(*n),
            Value::Tinyint(n) => out.put_i8(*n),
            Value::Timeuuid(id) | Value::Uuid(id) => out.put_slice(id.as_bytes()),
            Value::Varint(n) => out.put_slice(&n.to_signed_bytes_be()),
            Value::List(items) | Value::Set(items) => {
                out.put_i32(items.len() as i32);
                items.iter().for_each(|item| put_part(out, Some(item)));
            }
            Value::Map(entries) => {
                out.put_i32(entries.len() as i32);
                for (key, value) in entries {
                    put_part(out, Some(key));
                    put_part(out, Some(value));
                }
            }
            Value::Tuple(fields) => fields
                .iter()
                .for_each(|field| put_part(out, field.as_ref())),
            Value::Udt(fields) => fields
                .iter()
                .for_each(|(_, field)| put_part(out, field.as_ref())),
            Value::Vector(items) => {
                for item in items {
                    let from = out.len();
                    item.encode_to(out);
                    if !item.has_fixed_length() {
                        let bytes = out.split_off(from);
                        put_unsigned_vint(out, bytes.len() as u64);
                        out.put_slice(&bytes);
                    }
                }
            }
        }
    }

    /// Whether all values of its type are as long, see [`CqlType::fixed_length`].
    fn has_fixed_length(&self) -> bool {
        match self {
            Value::Boolean(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::Bigint(_)
            | Value::Double(_)
            | Value::Timestamp(_)
            | Value::Uuid(_)
            | Value::Timeuuid(_) => true,
            Value::Vector(items) => items.iter().all(Value::has_fixed_length),
            _ => false,
        }
    }
}

/// The elements of a serialised vector; `None` when they are not as many, or do not fill the bytes.
pub(crate) fn vector_elements<'b>(
    element: &CqlType,
    dimension: usize,
    mut bytes: &'b [u8],
) -> Option<Vec<&'b [u8]>> {
    let fixed = element.fixed_length();
    // Each takes a byte at least, so what cannot be allocates nothing.
    let mut items = Vec::with_capacity(dimension.min(bytes.len()));
    for _ in 0..dimension {
        let length = match fixed {
            Some(length) => length,
            None => usize::try_from(take_unsigned_vint(&mut bytes)?).ok()?,
        };
        let (item, rest) = bytes.split_at_checked(length)?;
        bytes = rest;
        items.push(item);
    }
    bytes.is_empty().then_some(items)
}

/// A serialised vector of serialised elements.
pub(crate) fn vector<'b>(element: &CqlType, items: impl Iterator<Item = &'b [u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        if element.fixed_length().is_none() {
            put_unsigned_vint(&mut out, item.len() as u64);
        }
        out.put_slice(item);
    }
    out
}

/// A length and that many bytes; −1 is null.
fn put_part(out: &mut Vec<u8>, value: Option<&Value>) {
    let Some(value) = value else {
        return out.put_i32(-1);
    };
    let at = out.len();
    out.put_i32(0);
    value.encode_to(out);
    let length = (out.len() - at - 4) as i32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// A zig-zag encoded integer, its length in the leading ones of the first byte (protocol v4, 3: `[vint]`
/// as `duration` has it).
fn put_vint(out: &mut Vec<u8>, n: i64) {
    put_unsigned_vint(out, ((n << 1) ^ (n >> 63)) as u64);
}

fn put_unsigned_vint(out: &mut Vec<u8>, n: u64) {
    let bits = 64 - (n | 1).leading_zeros() as usize;
    // Each byte after the first takes one bit of the first; nine bytes hold all 64.
    let extra = (bits - 1) / 7;
    if extra >= 8 {
        out.put_u8(0xff);
        return out.put_u64(n);
    }
    let bytes = n.to_be_bytes();
    let mark = !(0xff_u8 >> extra);
    let tail = &bytes[7 - extra..];
    out.put_u8(tail[0] | mark);
    out.put_slice(&tail[1..]);
}

fn take_vint(bytes: &mut &[u8]) -> Option<i64> {
    let zigzag = take_unsigned_vint(bytes)?;
    Some((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
}

fn take_unsigned_vint(bytes: &mut &[u8]) -> Option<u64> {
    let (first, rest) = bytes.split_first()?;
    let extra = first.leading_ones() as usize;
    let (tail, rest) = rest.split_at_checked(extra)?;
    let start = if extra >= 7 {
        0
    } else {
        u64::from(first & (0xff >> (extra + 1)))
    };
    *bytes = rest;
    Some(tail.iter().fold(start, |n, byte| n << 8 | u64::from(*byte)))
}

/// Takes a length-prefixed part off the front; `Some(None)` is null.
fn take_part<'b>(bytes: &mut &'b [u8]) -> Option<Option<&'b [u8]>> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
        *bytes = rest;
        return Some(None);
    };
    let (part, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    Some(Some(part))
}

fn decode(ty: &CqlType, bytes: &[u8], depth: usize) -> Result<Value, DecodeError> {
    let invalid = |what| DecodeError::Invalid {
        ty: ty.clone(),
        what,
    };
    if depth > MAX_DEPTH {
        return Err(invalid("too deep a value"));
    }
    macro_rules! fixed {
        ($make:expr, $expected:literal) => {
            match bytes.try_into() {
                Ok(array) => Ok($make(array)),
                Err(_) if bytes.is_empty() => Ok(Value::Empty),
                Err(_) => Err(DecodeError::Length {
                    ty: ty.clone(),
                    expected: $expected,
                    found: bytes.len(),
                }),
            }
        };
    }
    let text = || String::from_utf8(bytes.to_vec()).map_err(|_| invalid("a byte that is no UTF-8"));
    match ty {
        CqlType::Ascii if !bytes.is_ascii() => Err(invalid("a byte that is no ASCII")),
        CqlType::Ascii => Ok(Value::Ascii(text()?)),
        CqlType::Text => Ok(Value::Text(text()?)),
        CqlType::Blob => Ok(Value::Blob(Bytes::copy_from_slice(bytes))),
        CqlType::Boolean => fixed!(|[b]: [u8; 1]| Value::Boolean(b != 0), "1"),
        CqlType::Tinyint => fixed!(|b| Value::Tinyint(i8::from_be_bytes(b)), "1"),
        CqlType::Smallint => fixed!(|b| Value::Smallint(i16::from_be_bytes(b)), "2"),
        CqlType::Int => fixed!(|b| Value::Int(i32::from_be_bytes(b)), "4"),
        CqlType::Date => fixed!(|b| Value::Date(u32::from_be_bytes(b)), "4"),
        CqlType::Float => fixed!(|b| Value::Float(f32::from_be_bytes(b)), "4"),
        CqlType::Bigint => fixed!(|b| Value::Bigint(i64::from_be_bytes(b)), "8"),
        CqlType::Counter => fixed!(|b| Value::Counter(i64::from_be_bytes(b)), "8"),
        CqlType::Double => fixed!(|b| Value::Double(f64::from_be_bytes(b)), "8"),
        CqlType::Timestamp => fixed!(|b| Value::Timestamp(i64::from_be_bytes(b)), "8"),
        CqlType::Uuid => fixed!(|b| Value::Uuid(Uuid::from_bytes(b)), "16"),
        CqlType::Time => match fixed!(|b| Value::Time(i64::from_be_bytes(b)), "8")? {
            Value::Time(ns) if !(0..86_400_000_000_000).contains(&ns) => {
                Err(invalid("a time outside of a day"))
            }
            time => Ok(time),
        },
        CqlType::Timeuuid => match fixed!(|b| Value::Timeuuid(Uuid::from_bytes(b)), "16")? {
            Value::Timeuuid(id) if id.get_version_num() != 1 => {
                Err(invalid("a UUID that is not of version 1"))
            }
            id => Ok(id),
        },
        CqlType::Inet => match bytes.len() {
            0 => Ok(Value::Empty),
            4 => fixed!(
                |b: [u8; 4]| Value::Inet(Ipv4Addr::from(b).into()),
                "4 or 16"
            ),
            _ => fixed!(
                |b: [u8; 16]| Value::Inet(Ipv6Addr::from(b).into()),
                "4 or 16"
            ),
        },
        CqlType::Varint if bytes.is_empty() => Ok(Value::Empty),
        CqlType::Varint => Ok(Value::Varint(BigInt::from_signed_bytes_be(bytes))),
        CqlType::Decimal => match bytes.split_first_chunk::<4>() {
            Some((scale, unscaled)) if !unscaled.is_empty() => Ok(Value::Decimal {
                scale: i32::from_be_bytes(*scale),
                unscaled: BigInt::from_signed_bytes_be(unscaled),
            }),
            _ if bytes.is_empty() => Ok(Value::Empty),
            _ => Err(DecodeError::Length {
                ty: ty.clone(),
                expected: "at least 5",
                found: bytes.len(),
            }),
        },
        CqlType::Duration if bytes.is_empty() => Ok(Value::Empty),
        CqlType::Duration => {
            let mut rest = bytes;
            let mut part = || take_vint(&mut rest).ok_or_else(|| invalid("too few bytes"));
            let (months, days, nanoseconds) = (part()?, part()?, part()?);
            if !rest.is_empty() {
                return Err(invalid("too many bytes"));
            }
            let narrow =
                |n: i64| i32::try_from(n).map_err(|_| invalid("months or days beyond 32 bits"));
            let (months, days) = (narrow(months)?, narrow(days)?);
            let signs = [months.signum(), days.signum(), nanoseconds.signum() as i32];
            if signs.contains(&1) && signs.contains(&-1) {
                return Err(invalid("parts of different signs"));
            }
            Ok(Value::Duration {
                months,
                days,
                nanoseconds,
            })
        }
        CqlType::List { element, .. } => Ok(Value::List(parts(ty, bytes, 1, &[element], depth)?)),
        CqlType::Set { element, .. } => Ok(Value::Set(parts(ty, bytes, 1, &[element], depth)?)),
        CqlType::Map { key, value, .. } => {
            let mut parts = parts(ty, bytes, 2, &[key, value], depth)?.into_iter();
            let mut entries = Vec::with_capacity(parts.len() / 2);
            while let (Some(key), Some(value)) = (parts.next(), parts.next()) {
                entries.push((key, value));
            }
            Ok(Value::Map(entries))
        }
        CqlType::Vector { element, dimension } => {
            let items = vector_elements(element, *dimension, bytes)
                .ok_or_else(|| invalid("too few or too many bytes"))?;
            let items = items
                .into_iter()
                .map(|item| match decode(element, item, depth + 1)? {
                    Value::Empty if element.fixed_length().is_some() => {
                        Err(invalid("an empty element"))
                    }
                    item => Ok(item),
                });
            Ok(Value::Vector(items.collect::<Result<_, _>>()?))
        }
        CqlType::Tuple(types) => {
            let mut rest = bytes;
            Ok(Value::Tuple(fields(ty, &mut rest, types.iter(), depth)?))
        }
        CqlType::Udt { fields: named, .. } => {
            let mut rest = bytes;
            let values = fields(ty, &mut rest, named.iter().map(|(_, ty)| ty), depth)?;
            Ok(Value::Udt(
                named
                    .iter()
                    .map(|(name, _)| name.clone())
                    .zip(values)
                    .collect(),
            ))
        }
    }
}

/// The parts of a collection, `width` an element.
fn parts(
    ty: &CqlType,
    mut bytes: &[u8],
    width: usize,
    types: &[&CqlType],
    depth: usize,
) -> Result<Vec<Value>, DecodeError> {
    let invalid = |what| DecodeError::Invalid {
        ty: ty.clone(),
        what,
    };
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let short = || invalid("too few bytes");
    let (count, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
    bytes = rest;
    let count =
        usize::try_from(i32::from_be_bytes(*count)).map_err(|_| invalid("a negative count"))?;
    // Each part has a length of four bytes, so a count that the bytes cannot hold allocates nothing.
    if count.saturating_mul(4 * width) > bytes.len() {
        return Err(short());
    }
    let mut values = Vec::with_capacity(count * width);
    for i in 0..count * width {
        let part = take_part(&mut bytes)
            .ok_or_else(short)?
            .ok_or_else(|| invalid("a null"))?;
        values.push(decode(types[i % width], part, depth + 1)?);
    }
    if bytes.is_empty() {
        Ok(values)
    } else {
        Err(invalid("too many bytes"))
    }
}

fn fields<'t>(
    ty: &CqlType,
    bytes: &mut &[u8],
    types: impl Iterator<Item = &'t CqlType>,
    depth: usize,
) -> Result<Vec<Option<Value>>, DecodeError> {
    let mut values = Vec::new();
    for field in types {
        if bytes.is_empty() {
            break;
        }
        let part = take_part(bytes).ok_or(DecodeError::Invalid {
            ty: ty.clone(),
            what: "too few bytes",
        })?;
        values.push(
            part.map(|part| decode(field, part, depth + 1))
                .transpose()?,
        );
    }
    if bytes.is_empty() {
        Ok(values)
    } else {
        Err(DecodeError::Invalid {
            ty: ty.clone(),
            what: "too many fields",
        })
    }
}

/// Compares two serialised values of a type as ScyllaDB does; what is malformed is compared by bytes.
pub fn compare(ty: &CqlType, a: &[u8], b: &[u8]) -> Ordering {
    match (Value::decode(ty, a), Value::decode(ty, b)) {
        (Ok(a), Ok(b)) => a.compare(&b),
        _ => a.cmp(b),
    }
}

impl Value {
    /// Orders two values of one type as ScyllaDB does: an empty one first, a `timeuuid` by its time and
    /// then by signed bytes, a `uuid` by its version first, NaN last, collections part by part.
    pub fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Value::Empty, Value::Empty) => Ordering::Equal,
            (Value::Empty, _) => Ordering::Less,
            (_, Value::Empty) => Ordering::Greater,
            (Value::Boolean(a), Value::Boolean(b)) => a.cmp(b),
            (
                Value::Bigint(a) | Value::Counter(a) | Value::Time(a) | Value::Timestamp(a),
                Value::Bigint(b) | Value::Counter(b) | Value::Time(b) | Value::Timestamp(b),
            ) => a.cmp(b),
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::Smallint(a), Value::Smallint(b)) => a.cmp(b),
            (Value::Tinyint(a), Value::Tinyint(b)) => a.cmp(b),
            (Value::Varint(a), Value::Varint(b)) => a.cmp(b),
            (
                Value::Decimal { scale, unscaled },
                Value::Decimal {
                    scale: other_scale,
                    unscaled: other,
                },
            ) => compare_decimals((*scale, unscaled), (*other_scale, other)),
            (Value::Float(a), Value::Float(b)) => compare_floats((*a).into(), (*b).into()),
            (Value::Double(a), Value::Double(b)) => compare_floats(*a, *b),
            (Value::Timeuuid(a), Value::Timeuuid(b)) => compare_timeuuids(*a, *b),
            (Value::Uuid(a), Value::Uuid(b)) => {
                let version = |id: &Uuid| id.get_version_num();
                version(a).cmp(&version(b)).then_with(|| {
                    if version(a) == 1 {
                        time_of(*a)
                            .cmp(&time_of(*b))
                            .then_with(|| a.as_bytes()[8..].cmp(&b.as_bytes()[8..]))
                    } else {
                        a.as_bytes().cmp(b.as_bytes())
                    }
                })
            }
            (Value::List(a), Value::List(b))
            | (Value::Set(a), Value::Set(b))
            | (Value::Vector(a), Value::Vector(b)) => {
                compare_all(a.iter(), b.iter(), Value::compare)
            }
            (Value::Map(a), Value::Map(b)) => {
                compare_all(a.iter(), b.iter(), |(k, v), (other_key, other)| {
                    k.compare(other_key).then_with(|| v.compare(other))
                })
            }
            (Value::Tuple(a), Value::Tuple(b)) => compare_all(a.iter(), b.iter(), compare_nullable),
            (Value::Udt(a), Value::Udt(b)) => {
                compare_all(a.iter(), b.iter(), |(_, a), (_, b)| compare_nullable(a, b))
            }
            // Text, bytes, addresses, days and durations: as bytes. Two types never meet here.
            _ => self.encode().cmp(&other.encode()),
        }
    }
}

fn compare_nullable(a: &Option<Value>, b: &Option<Value>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => a.compare(b),
        _ => a.is_some().cmp(&b.is_some()),
    }
}

fn compare_all<'v, T: 'v>(
    mut a: impl Iterator<Item = &'v T>,
    mut b: impl Iterator<Item = &'v T>,
    compare: impl Fn(&T, &T) -> Ordering,
) -> Ordering {
    loop {
        match (a.next(), b.next()) {
            (Some(a), Some(b)) => match compare(a, b) {
                Ordering::Equal => {}
                different => return different,
            },
            (a, b) => return a.is_some().cmp(&b.is_some()),
        }
    }
}

/// NaN is equal to itself and greater than all others; −0 is less than 0 (as Java's `Double.compare`,
/// which ScyllaDB follows).
fn compare_floats(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => a.total_cmp(&b),
        (a, b) => a.cmp(&b),
    }
}

/// By value: 1.0 and 1.00 are equal.
fn compare_decimals((scale, a): (i32, &BigInt), (other_scale, b): (i32, &BigInt)) -> Ordering {
    let sign = a.sign().cmp(&b.sign());
    if sign != Ordering::Equal || a.sign() == num_bigint::Sign::NoSign {
        return sign;
    }
    let digits = |n: &BigInt| n.magnitude().to_string();
    let (x, y) = (digits(a), digits(b));
    // The place of the first digit tells most apart, and keeps a huge scale from making huge numbers.
    let (high, other_high) = (
        x.len() as i64 - i64::from(scale),
        y.len() as i64 - i64::from(other_scale),
    );
    let magnitude = high
        .cmp(&other_high)
        .then_with(|| x.trim_end_matches('0').cmp(y.trim_end_matches('0')));
    if a.sign() == num_bigint::Sign::Minus {
        magnitude.reverse()
    } else {
        magnitude
    }
}

/// The 60-bit time of a version 1 UUID.
fn time_of(id: Uuid) -> u64 {
    let (low, middle, high, _) = id.as_fields();
    u64::from(high & 0x0fff) << 48 | u64::from(middle) << 32 | u64::from(low)
}

/// By time, then by the low bytes as signed bytes (ScyllaDB `timeuuid_tri_compare`).
fn compare_timeuuids(a: Uuid, b: Uuid) -> Ordering {
    let low = |id: &Uuid| id.as_u64_pair().1 ^ 0x8080_8080_8080_8080;
    time_of(a)
        .cmp(&time_of(b))
        .then_with(|| low(&a).cmp(&low(&b)))
}

impl fmt::Display for Value {
    /// As a CQL literal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text =
            |f: &mut fmt::Formatter<'_>, text: &str| write!(f, "'{}'", text.replace('\'', "''"));
        match self {
            Value::Empty => f.write_str("''"),
            Value::Ascii(s) | Value::Text(s) => text(f, s),
            Value::Bigint(n) | Value::Counter(n) => write!(f, "{n}"),
            Value::Blob(bytes) => {
                f.write_str("0x")?;
                bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
            Value::Boolean(b) => write!(f, "{b}"),
            Value::Date(_) | Value::Time(_) | Value::Timestamp(_) => {
                write!(f, "'{}'", self.in_words())
            }
            Value::Duration { .. } | Value::Decimal { .. } | Value::Double(_) | Value::Float(_) => {
                f.write_str(&self.in_words())
            }
            Value::Inet(ip) => write!(f, "'{ip}'"),
            Value::Int(n) => write!(f, "{n}"),
            Value::Smallint(n) => write!(f, "{n}"),
            Value::Tinyint(n) => write!(f, "{n}"),
            Value::Timeuuid(id) | Value::Uuid(id) => write!(f, "{id}"),
            Value::Varint(n) => write!(f, "{n}"),
            Value::List(items) | Value::Vector(items) => {
                joined(f, '[', items, ']', |f, v| write!(f, "{v}"))
            }
            Value::Set(items) => joined(f, '{', items, '}', |f, v| write!(f, "{v}")),
            Value::Map(entries) => joined(f, '{', entries, '}', |f, (k, v)| write!(f, "{k}: {v}")),
            Value::Tuple(fields) => joined(f, '(', fields, ')', nullable),
            Value::Udt(fields) => joined(f, '{', fields, '}', |f, (name, field)| {
                write!(f, "{}: ", quoted(name))?;
                nullable(f, field)
            }),
        }
    }
}

fn nullable(f: &mut fmt::Formatter<'_>, value: &Option<Value>) -> fmt::Result {
    match value {
        Some(value) => write!(f, "{value}"),
        None => f.write_str("null"),
    }
}

fn joined<T>(
    f: &mut fmt::Formatter<'_>,
    open: char,
    items: &[T],
    close: char,
    put: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    write!(f, "{open}")?;
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            f.write_str(", ")?;
        }
        put(f, item)?;
    }
    write!(f, "{close}")
}
