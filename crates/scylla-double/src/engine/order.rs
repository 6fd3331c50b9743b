//! Order-preserving encodings: of two values of a CQL type, the lesser has the lesser bytes.
//!
//! Clustering keys, collection keys and comparisons all go through this, so that maps can be ordered
//! by plain bytes. Each component of a key begins with a marker (1: empty, 2: present; inverted with
//! the rest where the order is descending), hence never with 0x00 or 0xFF: a key's prefix sorts before
//! all keys that begin with it, and the prefix followed by 0xFF after them.

use bytes::Bytes;

use super::{
    cell::Bound,
    layout::{Shape, elements, map_entries, shape, tuple_fields},
    schema::Column,
};
use crate::types::{CqlType, vector_elements};

const EMPTY: u8 = 1;
const PRESENT: u8 = 2;

/// The encoding of the components of a key, in the order of its columns.
pub(crate) fn key(columns: &[Column], components: &[Bytes]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 * components.len());
    for (column, component) in columns.iter().zip(components) {
        let from = out.len();
        put(&column.ty, component, &mut out);
        if column.descending {
            out[from..].iter_mut().for_each(|b| *b = !*b);
        }
    }
    out
}

/// The place just before or just after all keys with a prefix.
pub(crate) fn bound(columns: &[Column], prefix: Vec<Bytes>, after: bool) -> Bound {
    let mut position = key(columns, &prefix);
    if after {
        position.push(0xff);
    }
    Bound {
        position,
        prefix,
        after,
    }
}

/// The encoding of one serialised value.
pub(crate) fn value(ty: &CqlType, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 4);
    put(ty, bytes, &mut out);
    out
}

/// As [`put`] does for a `timeuuid`.
pub(crate) fn put_timeuuid(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(PRESENT);
    timeuuid(bytes, out);
}

/// As [`put`] does for an `int`.
pub(crate) fn put_int(value: i32, out: &mut Vec<u8>) {
    out.push(PRESENT);
    signed(&value.to_be_bytes(), out);
}

/// Appends the encoding of one serialised value.
pub(crate) fn put(ty: &CqlType, bytes: &[u8], out: &mut Vec<u8>) {
    if bytes.is_empty() {
        out.push(EMPTY);
        return;
    }
    out.push(PRESENT);
    match shape(ty) {
        Shape::Signed => signed(bytes, out),
        Shape::Plain => out.extend_from_slice(bytes),
        Shape::Bytes => escaped(bytes, out),
        Shape::Float => {
            if bytes[0] & 0x80 == 0 {
                signed(bytes, out);
            } else {
                out.extend(bytes.iter().map(|b| !b));
            }
        }
        Shape::Timeuuid => timeuuid(bytes, out),
        Shape::Uuid => {
            let version = bytes.get(6).map_or(0, |b| b >> 4);
            out.push(version);
            if version == 1 {
                out.extend_from_slice(&uuid_time(bytes));
            }
            out.extend_from_slice(bytes);
        }
        Shape::Varint => varint(bytes, out),
        Shape::Decimal => decimal(bytes, out),
        Shape::List(element) => {
            for item in elements(bytes) {
                out.push(PRESENT);
                put(element, item, out);
            }
            out.push(0);
        }
        Shape::Vector(element, dimension) => {
            for item in vector_elements(element, dimension, bytes).unwrap_or_default() {
                put(element, item, out);
            }
        }
        Shape::Map(key, value) => {
            for (k, v) in map_entries(bytes) {
                out.push(PRESENT);
                put(key, k, out);
                put(value, v, out);
            }
            out.push(0);
        }
        Shape::Tuple(types) => {
            for (ty, field) in types.iter().zip(tuple_fields(bytes)) {
                match field {
                    None => out.push(EMPTY),
                    Some(field) => {
                        out.push(PRESENT);
                        put(ty, field, out);
                    }
                }
            }
            out.push(0);
        }
    }
}

fn signed(bytes: &[u8], out: &mut Vec<u8>) {
    let from = out.len();
    out.extend_from_slice(bytes);
    out[from] ^= 0x80;
}

/// Ends with 0x00 0x00; a zero byte within becomes 0x00 0xFF.
fn escaped(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xff);
        }
    }
    out.extend_from_slice(&[0, 0]);
}

/// The 60-bit time of a version 1 UUID, most significant byte first.
fn uuid_time(bytes: &[u8]) -> [u8; 8] {
    let byte = |i: usize| bytes.get(i).copied().unwrap_or(0);
    [
        byte(6) & 0x0f,
        byte(7),
        byte(4),
        byte(5),
        byte(0),
        byte(1),
        byte(2),
        byte(3),
    ]
}

/// By time, then by the low bytes *as signed bytes* (ScyllaDB `timeuuid_tri_compare`).
fn timeuuid(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&uuid_time(bytes));
    out.extend(bytes.iter().skip(8).map(|b| b ^ 0x80));
}

fn varint(bytes: &[u8], out: &mut Vec<u8>) {
    let negative = bytes[0] & 0x80 != 0;
    let filler = if negative { 0xff } else { 0 };
    let mut bytes = bytes;
    while bytes.len() > 1 && bytes[0] == filler && (bytes[1] & 0x80 != 0) == negative {
        bytes = &bytes[1..];
    }
    let length = bytes.len() as u32;
    out.push(u8::from(!negative));
    out.extend_from_slice(&if negative { !length } else { length }.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Sign, exponent of `0.d₁d₂…`, digits without zeros at either end.
fn decimal(bytes: &[u8], out: &mut Vec<u8>) {
    let Some((scale, unscaled)) = bytes.split_first_chunk::<4>() else {
        return escaped(bytes, out);
    };
    let scale = i64::from(i32::from_be_bytes(*scale));
    let (negative, digits) = decimal_digits(unscaled);
    if digits.is_empty() {
        out.push(1);
        return;
    }
    let exponent = digits.len() as i64 - scale;
    let kept = digits
        .iter()
        .rposition(|d| *d != 0)
        .map_or(0, |last| last + 1);
    out.push(if negative { 0 } else { 2 });
    let from = out.len();
    signed(&exponent.to_be_bytes(), out);
    out.extend(digits[..kept].iter().map(|d| d + 1));
    out.push(0);
    if negative {
        out[from..].iter_mut().for_each(|b| *b = !*b);
    }
}

/// The decimal digits, most significant first and without leading zeros, of a big-endian two's
/// complement number.
pub(crate) fn decimal_digits(bytes: &[u8]) -> (bool, Vec<u8>) {
    let negative = bytes.first().is_some_and(|b| b & 0x80 != 0);
    let mut magnitude = bytes.to_vec();
    if negative {
        let mut carry = true;
        for byte in magnitude.iter_mut().rev() {
            let (sum, over) = (!*byte).overflowing_add(u8::from(carry));
            (*byte, carry) = (sum, over);
        }
    }
    let mut digits = Vec::new();
    let mut start = 0;
    while start < magnitude.len() {
        let mut rest = 0u16;
        for byte in &mut magnitude[start..] {
            let part = rest << 8 | u16::from(*byte);
            *byte = (part / 10) as u8;
            rest = part % 10;
        }
        digits.push(rest as u8);
        while start < magnitude.len() && magnitude[start] == 0 {
            start += 1;
        }
    }
    while digits.last() == Some(&0) {
        digits.pop();
    }
    digits.reverse();
    (negative, digits)
}
