//! How serialised values are laid out, taken apart and put together.
//!
//! Layouts: native protocol v4, section 6. What is malformed gives less rather than fails; who binds a
//! value looks at it first.

use bytes::{BufMut, Bytes};

use crate::types::CqlType;

/// How values of a type are laid out and compared.
pub(crate) enum Shape<'a> {
    /// Big-endian two's complement of a fixed width.
    Signed,
    /// Fixed width, compared as bytes.
    Plain,
    /// Any length, compared as bytes.
    Bytes,
    Float,
    Timeuuid,
    Uuid,
    Varint,
    Decimal,
    /// A list or a set.
    List(&'a CqlType),
    Map(&'a CqlType, &'a CqlType),
    /// So many of a type.
    Vector(&'a CqlType, usize),
    Tuple(Vec<&'a CqlType>),
}

pub(crate) fn shape(ty: &CqlType) -> Shape<'_> {
    match ty {
        CqlType::Bigint
        | CqlType::Counter
        | CqlType::Int
        | CqlType::Smallint
        | CqlType::Tinyint
        | CqlType::Time
        | CqlType::Timestamp => Shape::Signed,
        CqlType::Boolean | CqlType::Date => Shape::Plain,
        CqlType::Ascii | CqlType::Text | CqlType::Blob | CqlType::Inet | CqlType::Duration => {
            Shape::Bytes
        }
        CqlType::Float | CqlType::Double => Shape::Float,
        CqlType::Timeuuid => Shape::Timeuuid,
        CqlType::Uuid => Shape::Uuid,
        CqlType::Varint => Shape::Varint,
        CqlType::Decimal => Shape::Decimal,
        CqlType::List { element, .. } | CqlType::Set { element, .. } => Shape::List(element),
        CqlType::Map { key, value, .. } => Shape::Map(key, value),
        CqlType::Vector { element, dimension } => Shape::Vector(element, *dimension),
        CqlType::Tuple(fields) => Shape::Tuple(fields.iter().collect()),
        CqlType::Udt { fields, .. } => Shape::Tuple(fields.iter().map(|(_, ty)| ty).collect()),
    }
}

pub(crate) fn is_set(ty: &CqlType) -> bool {
    matches!(ty, CqlType::Set { .. })
}

/// Takes a length-prefixed part off the front; a negative length is null.
pub(crate) fn take<'b>(bytes: &mut &'b [u8]) -> Option<Option<&'b [u8]>> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
        *bytes = rest;
        return Some(None);
    };
    let (part, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    Some(Some(part))
}

pub(crate) fn count(bytes: &mut &[u8]) -> usize {
    let Some((count, rest)) = bytes.split_first_chunk::<4>() else {
        return 0;
    };
    *bytes = rest;
    usize::try_from(i32::from_be_bytes(*count)).unwrap_or(0)
}

/// The elements of a serialised list or set.
pub(crate) fn elements(mut bytes: &[u8]) -> Vec<&[u8]> {
    let n = count(&mut bytes);
    (0..n)
        .map_while(|_| take(&mut bytes))
        .map(|part| part.unwrap_or_default())
        .collect()
}

/// The entries of a serialised map.
pub(crate) fn map_entries(mut bytes: &[u8]) -> Vec<(&[u8], &[u8])> {
    let n = count(&mut bytes);
    (0..n)
        .map_while(|_| {
            Some((
                take(&mut bytes)?.unwrap_or_default(),
                take(&mut bytes)?.unwrap_or_default(),
            ))
        })
        .collect()
}

/// The fields of a serialised tuple or user-defined type; missing ones at the end are not given.
pub(crate) fn tuple_fields(mut bytes: &[u8]) -> Vec<Option<&[u8]>> {
    let mut fields = Vec::new();
    while let Some(field) = take(&mut bytes) {
        fields.push(field);
    }
    fields
}

/// Appends a length-prefixed value, or a null.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => out.put_i32(-1),
        Some(bytes) => {
            out.put_i32(bytes.len() as i32);
            out.extend_from_slice(bytes);
        }
    }
}

/// A list or set of these elements.
pub(crate) fn collection<'b>(items: impl ExactSizeIterator<Item = &'b Bytes>) -> Bytes {
    let mut out = Vec::new();
    out.put_i32(items.len() as i32);
    for item in items {
        put_bytes(&mut out, Some(item));
    }
    out.into()
}

/// A map of these entries.
pub(crate) fn map<'b>(entries: impl ExactSizeIterator<Item = (&'b Bytes, &'b Bytes)>) -> Bytes {
    let mut out = Vec::new();
    out.put_i32(entries.len() as i32);
    for (key, value) in entries {
        put_bytes(&mut out, Some(key));
        put_bytes(&mut out, Some(value));
    }
    out.into()
}

/// A user-defined type of so many fields, from some of them by their index (a `smallint`).
pub(crate) fn udt<'b>(fields: usize, cells: impl Iterator<Item = (&'b Bytes, &'b Bytes)>) -> Bytes {
    let mut values: Vec<Option<&[u8]>> = vec![None; fields];
    for (key, value) in cells {
        let index = key
            .first_chunk::<2>()
            .map_or(usize::MAX, |b| u16::from_be_bytes(*b).into());
        if let Some(slot) = values.get_mut(index) {
            *slot = Some(value);
        }
    }
    let mut out = Vec::new();
    for value in values {
        put_bytes(&mut out, value);
    }
    out.into()
}

pub(crate) fn int(bytes: &[u8]) -> Option<i32> {
    Some(i32::from_be_bytes(bytes.try_into().ok()?))
}

pub(crate) fn bigint(bytes: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(bytes.try_into().ok()?))
}

/// The time of a version 1 UUID, µs since the Unix epoch.
pub(crate) fn timeuuid_micros(bytes: &[u8]) -> Option<i64> {
    let id = uuid::Uuid::from_slice(bytes).ok()?;
    let ticks = id.get_timestamp()?.to_gregorian().0;
    /// 100 ns steps from 1582-10-15 to 1970-01-01.
    const GREGORIAN: i64 = 0x01b2_1dd2_1381_4000;
    Some((ticks as i64 - GREGORIAN).div_euclid(10))
}
