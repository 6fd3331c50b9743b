//! Serialised values as execution needs them: checked when they are bound, brought into one form, cast,
//! summed. What is malformed is found by [`validate`].

use bytes::Bytes;
use num_bigint::BigInt;

pub(crate) use super::layout::{
    Shape, bigint, collection, elements, int, is_set, map, map_entries, put_bytes, shape,
    timeuuid_micros, tuple_fields, udt,
};
use super::{
    error::CqlError,
    layout::{count, take},
    order::{self, decimal_digits},
};
use crate::{
    cql::ast::Constant,
    types::{CqlType, Value, vector, vector_elements},
};

/// The type of a log's column for a multi-cell column: a list becomes a map, for an element is known by
/// its timeuuid; all are frozen.
pub(crate) fn log_type(ty: &CqlType) -> CqlType {
    match ty {
        CqlType::List { element, .. } => CqlType::Map {
            key: Box::new(CqlType::Timeuuid),
            value: element.clone(),
            frozen: true,
        },
        other => other.clone().frozen(),
    }
}

/// The type of a log's column of deleted elements.
pub(crate) fn deleted_elements_type(ty: &CqlType) -> CqlType {
    let element = match ty {
        CqlType::List { .. } => CqlType::Timeuuid,
        CqlType::Set { element, .. } => (**element).clone(),
        CqlType::Map { key, .. } => (**key).clone(),
        _ => CqlType::Smallint,
    };
    CqlType::Set {
        element: Box::new(element),
        frozen: true,
    }
}

/// A native type by the name CQL gives it.
pub(crate) fn by_name(name: &str) -> Option<CqlType> {
    CqlType::native(name)
}

/// The list an `IN ?` takes.
pub(crate) fn list_of(element: &CqlType) -> CqlType {
    CqlType::List {
        element: Box::new(element.clone()),
        frozen: true,
    }
}

pub(crate) fn set_of(element: &CqlType) -> CqlType {
    CqlType::Set {
        element: Box::new(element.clone()),
        frozen: true,
    }
}

pub(crate) fn is_numeric(ty: &CqlType) -> bool {
    matches!(
        ty,
        CqlType::Tinyint
            | CqlType::Smallint
            | CqlType::Int
            | CqlType::Bigint
            | CqlType::Counter
            | CqlType::Varint
            | CqlType::Decimal
            | CqlType::Float
            | CqlType::Double
    )
}

/// Fields of a user-defined type.
pub(crate) fn udt_fields(ty: &CqlType) -> Option<&[(String, CqlType)]> {
    match ty {
        CqlType::Udt { fields, .. } => Some(fields),
        _ => None,
    }
}

/// A constant, serialised; `None` is null. `name` is what messages say it is for.
pub(crate) fn constant(
    constant: &Constant,
    ty: &CqlType,
    name: &str,
) -> Result<Option<Bytes>, CqlError> {
    let value =
        Value::from_constant(constant, ty, name).map_err(|e| CqlError::invalid(e.to_string()))?;
    Ok(value.map(|v| v.encode().into()))
}

/// The type of a constant where nothing else tells, and how it is named in a result.
pub(crate) fn natural_type(constant: &Constant) -> (CqlType, String) {
    let ty = match constant {
        Constant::Integer(text) if text.parse::<i32>().is_ok() => CqlType::Int,
        Constant::Integer(text) if text.parse::<i64>().is_ok() => CqlType::Bigint,
        Constant::Integer(_) => CqlType::Varint,
        Constant::Float(_) => CqlType::Double,
        Constant::Null | Constant::Text(_) => CqlType::Text,
        Constant::Boolean(_) => CqlType::Boolean,
        Constant::Uuid(id) if id.get_version_num() == 1 => CqlType::Timeuuid,
        Constant::Uuid(_) => CqlType::Uuid,
        Constant::Blob(_) => CqlType::Blob,
        Constant::Duration(_) => CqlType::Duration,
    };
    (ty, constant.raw_text())
}

/// The elements of a list that a client bound to `IN`, in which there may be nulls.
pub(crate) fn list_with_nulls(ty: &CqlType, bytes: &Bytes) -> Result<Vec<Option<Bytes>>, CqlError> {
    let Shape::List(element) = shape(ty) else {
        return Ok(Vec::new());
    };
    let short = || CqlError::invalid("marshaling error: read_collection_value: not enough bytes");
    let mut rest: &[u8] = bytes;
    (0..count(&mut rest))
        .map(|_| {
            let Some(part) = take(&mut rest).ok_or_else(short)? else {
                return Ok(None);
            };
            validate(element, part)?;
            Ok(Some(canonical(element, &bytes.slice_ref(part))))
        })
        .collect()
}

/// `value[key]`, of a map, or of a list by place.
pub(crate) fn element(ty: &CqlType, value: &Bytes, key: &Bytes) -> Option<Bytes> {
    match shape(ty) {
        Shape::Map(key_type, _) => {
            let place = order::value(key_type, key);
            let entries = map_entries(value);
            let found = entries
                .iter()
                .find(|(k, _)| order::value(key_type, k) == place)?;
            Some(value.slice_ref(found.1))
        }
        Shape::List(_) => {
            let index = usize::try_from(int(key)?).ok()?;
            elements(value).get(index).map(|e| value.slice_ref(e))
        }
        _ => None,
    }
}

/// A bound value with its sets and maps in order and without repetitions, at any depth: a client may
/// send them otherwise, and what is stored and logged is sorted (ScyllaDB `reserialize_value`).
pub(crate) fn canonical(ty: &CqlType, bytes: &Bytes) -> Bytes {
    let sorted = |t: &CqlType| matches!(t, CqlType::Set { .. } | CqlType::Map { .. });
    if bytes.is_empty() || !ty.any(&sorted) {
        return bytes.clone();
    }
    let part = |ty: &CqlType, part: &[u8]| canonical(ty, &bytes.slice_ref(part));
    match shape(ty) {
        Shape::List(element) => {
            let mut items: Vec<Bytes> = elements(bytes)
                .into_iter()
                .map(|item| part(element, item))
                .collect();
            if is_set(ty) {
                items.sort_by_cached_key(|item| order::value(element, item));
                items.dedup_by_key(|item| order::value(element, item));
            }
            collection(items.iter())
        }
        Shape::Map(key, value) => {
            let mut entries: Vec<(Bytes, Bytes)> = map_entries(bytes)
                .into_iter()
                .map(|(k, v)| (part(key, k), part(value, v)))
                .collect();
            entries.sort_by_cached_key(|(k, _)| order::value(key, k));
            entries.dedup_by_key(|(k, _)| order::value(key, k));
            map(entries.iter().map(|(k, v)| (k, v)))
        }
        Shape::Vector(element, dimension) => {
            let items = vector_elements(element, dimension, bytes).unwrap_or_default();
            let items: Vec<Bytes> = items.into_iter().map(|item| part(element, item)).collect();
            vector(element, items.iter().map(|item| &item[..])).into()
        }
        Shape::Tuple(types) => {
            let mut out = Vec::with_capacity(bytes.len());
            for (ty, field) in types.iter().zip(tuple_fields(bytes)) {
                put_bytes(&mut out, field.map(|f| part(ty, f)).as_deref());
            }
            out.into()
        }
        _ => bytes.clone(),
    }
}

/// Refuses a value that is not one of its type, as ScyllaDB does when it is bound.
pub(crate) fn validate(ty: &CqlType, bytes: &[u8]) -> Result<(), CqlError> {
    let expect = |sizes: &[usize]| {
        if bytes.is_empty() || sizes.contains(&bytes.len()) {
            return Ok(());
        }
        Err(CqlError::invalid(format!(
            "Exception while binding column: marshaling error: Validation failed - got {} bytes for a {ty}",
            bytes.len()
        )))
    };
    match ty {
        CqlType::Tinyint | CqlType::Boolean => expect(&[1]),
        CqlType::Smallint => expect(&[2]),
        CqlType::Int | CqlType::Float | CqlType::Date => expect(&[4]),
        CqlType::Bigint
        | CqlType::Counter
        | CqlType::Double
        | CqlType::Timestamp
        | CqlType::Time => expect(&[8]),
        CqlType::Uuid => expect(&[16]),
        CqlType::Timeuuid => {
            expect(&[16])?;
            match bytes.get(6) {
                Some(byte) if byte >> 4 != 1 => Err(CqlError::invalid(
                    "marshaling error: Unsupported UUID version for timeuuid",
                )),
                _ => Ok(()),
            }
        }
        CqlType::Inet => expect(&[4, 16]),
        CqlType::Ascii if !bytes.is_ascii() => Err(CqlError::invalid(
            "marshaling error: Validation failed - non-ASCII character in an ASCII string",
        )),
        CqlType::Text if std::str::from_utf8(bytes).is_err() => Err(CqlError::invalid(
            "marshaling error: Validation failed - non-UTF8 character in a UTF8 string",
        )),
        CqlType::Decimal if !bytes.is_empty() && bytes.len() < 5 => expect(&[5]),
        _ => match shape(ty) {
            Shape::List(element) => parts(bytes, 1, &[element]),
            Shape::Map(key, value) => parts(bytes, 2, &[key, value]),
            Shape::Vector(element, dimension) => {
                let items = vector_elements(element, dimension, bytes).ok_or_else(|| {
                    CqlError::invalid(format!(
                        "marshaling error: Validation failed - got {} bytes for a {ty}",
                        bytes.len()
                    ))
                })?;
                items
                    .into_iter()
                    .try_for_each(|item| validate(element, item))
            }
            Shape::Tuple(types) => {
                let fields = tuple_fields(bytes);
                if fields.len() > types.len() {
                    return Err(CqlError::invalid(format!(
                        "marshaling error: Value of type {ty} contained too many fields (expected {}, got {})",
                        types.len(),
                        fields.len()
                    )));
                }
                fields
                    .iter()
                    .zip(types)
                    .filter_map(|(f, ty)| Some((*f)?).map(|f| validate(ty, f)))
                    .collect()
            }
            _ => Ok(()),
        },
    }
}

fn parts(mut bytes: &[u8], width: usize, types: &[&CqlType]) -> Result<(), CqlError> {
    if bytes.is_empty() {
        return Ok(());
    }
    let short = || CqlError::invalid("marshaling error: read_collection_value: not enough bytes");
    if bytes.len() < 4 {
        return Err(short());
    }
    for i in 0..count(&mut bytes) * width {
        let part = take(&mut bytes).ok_or_else(short)?;
        let part =
            part.ok_or_else(|| CqlError::invalid("null is not supported inside collections"))?;
        validate(types[i % width], part)?;
    }
    Ok(())
}

/// `CAST(value AS type)`, between numbers and to text; times to their neighbours.
pub(crate) fn cast(from: &CqlType, to: &CqlType, bytes: &Bytes) -> Result<Bytes, CqlError> {
    if from == to {
        return Ok(bytes.clone());
    }
    let bad = || CqlError::invalid(format!("Cannot cast {from} to {to}"));
    let own = |b: &[u8]| Ok(Bytes::copy_from_slice(b));
    if matches!(to, CqlType::Text | CqlType::Ascii) {
        return own(display(from, bytes).ok_or_else(bad)?.as_bytes());
    }
    let number = number(from, bytes).ok_or_else(bad)?;
    match (to, number) {
        (CqlType::Tinyint, n) => own(&(n.whole() as i8).to_be_bytes()),
        (CqlType::Smallint, n) => own(&(n.whole() as i16).to_be_bytes()),
        (CqlType::Int, n) => own(&(n.whole() as i32).to_be_bytes()),
        (CqlType::Bigint, n) => own(&(n.whole() as i64).to_be_bytes()),
        (CqlType::Varint, n) => Ok(varint(n.whole())),
        (CqlType::Float, n) => own(&(n.float() as f32).to_be_bytes()),
        (CqlType::Double, n) => own(&n.float().to_be_bytes()),
        _ => Err(bad()),
    }
}

/// The sum or the difference of two numbers of one type; what does not fit it is an error.
pub(crate) fn calculate(ty: &CqlType, a: &[u8], b: &[u8], minus: bool) -> Result<Bytes, CqlError> {
    let read = |bytes: &[u8]| {
        Value::decode(ty, bytes).map_err(|e| CqlError::invalid(format!("marshaling error: {e}")))
    };
    let overflow = || CqlError::invalid(format!("Arithmetic overflow of a {ty}"));
    macro_rules! whole {
        ($make:path, $a:expr, $b:expr) => {
            $make(
                if minus {
                    $a.checked_sub($b)
                } else {
                    $a.checked_add($b)
                }
                .ok_or_else(overflow)?,
            )
        };
    }
    let value = match (read(a)?, read(b)?) {
        (Value::Tinyint(a), Value::Tinyint(b)) => whole!(Value::Tinyint, a, b),
        (Value::Smallint(a), Value::Smallint(b)) => whole!(Value::Smallint, a, b),
        (Value::Int(a), Value::Int(b)) => whole!(Value::Int, a, b),
        (Value::Bigint(a), Value::Bigint(b)) => whole!(Value::Bigint, a, b),
        (Value::Float(a), Value::Float(b)) => Value::Float(if minus { a - b } else { a + b }),
        (Value::Double(a), Value::Double(b)) => Value::Double(if minus { a - b } else { a + b }),
        (Value::Varint(a), Value::Varint(b)) => Value::Varint(if minus { a - b } else { a + b }),
        (
            Value::Decimal { scale, unscaled },
            Value::Decimal {
                scale: other_scale,
                unscaled: other,
            },
        ) => {
            /// More digits than anybody writes; aligning more would take the memory for them.
            const MAX_SHIFT: u32 = 10_000;
            let common = scale.max(other_scale);
            let aligned = |n: BigInt, scale: i32| {
                let shift = common.abs_diff(scale);
                (shift <= MAX_SHIFT).then(|| n * BigInt::from(10).pow(shift))
            };
            let (a, b) = (aligned(unscaled, scale), aligned(other, other_scale));
            let (a, b) = a.zip(b).ok_or_else(overflow)?;
            Value::Decimal {
                scale: common,
                unscaled: if minus { a - b } else { a + b },
            }
        }
        // One of them is empty, which is no number.
        _ => {
            return Err(CqlError::invalid(format!(
                "Cannot calculate with an empty {ty}"
            )));
        }
    };
    Ok(value.encode().into())
}

#[derive(Clone, Copy)]
enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    fn whole(self) -> i128 {
        match self {
            Number::Whole(n) => n,
            Number::Float(f) => f as i128,
        }
    }

    fn float(self) -> f64 {
        match self {
            Number::Whole(n) => n as f64,
            Number::Float(f) => f,
        }
    }
}

fn number(ty: &CqlType, bytes: &[u8]) -> Option<Number> {
    Some(match ty {
        CqlType::Tinyint => Number::Whole((*bytes.first()? as i8).into()),
        CqlType::Smallint => Number::Whole(i16::from_be_bytes(bytes.try_into().ok()?).into()),
        CqlType::Int => Number::Whole(int(bytes)?.into()),
        CqlType::Bigint | CqlType::Counter => Number::Whole(bigint(bytes)?.into()),
        CqlType::Float => Number::Float(f32::from_be_bytes(bytes.try_into().ok()?).into()),
        CqlType::Double => Number::Float(f64::from_be_bytes(bytes.try_into().ok()?)),
        CqlType::Varint if bytes.len() <= 16 => {
            let filler = if bytes.first()? & 0x80 == 0 { 0 } else { 0xff };
            let mut wide = [filler; 16];
            wide[16 - bytes.len()..].copy_from_slice(bytes);
            Number::Whole(i128::from_be_bytes(wide))
        }
        CqlType::Decimal => {
            let (scale, unscaled) = bytes.split_first_chunk::<4>()?;
            let Number::Whole(unscaled) = number(&CqlType::Varint, unscaled)? else {
                return None;
            };
            Number::Float(unscaled as f64 / 10f64.powi(i32::from_be_bytes(*scale)))
        }
        _ => return None,
    })
}

fn varint(n: i128) -> Bytes {
    let all = n.to_be_bytes();
    let mut at = 0;
    while at < 15
        && (all[at] == 0 && all[at + 1] & 0x80 == 0 || all[at] == 0xff && all[at + 1] & 0x80 != 0)
    {
        at += 1;
    }
    Bytes::copy_from_slice(&all[at..])
}

fn display(ty: &CqlType, bytes: &[u8]) -> Option<String> {
    Some(match ty {
        CqlType::Ascii | CqlType::Text => String::from_utf8(bytes.to_vec()).ok()?,
        CqlType::Boolean => (*bytes.first()? != 0).to_string(),
        CqlType::Uuid | CqlType::Timeuuid => uuid::Uuid::from_slice(bytes).ok()?.to_string(),
        CqlType::Varint => {
            let (negative, digits) = decimal_digits(bytes);
            let digits: String = digits.iter().map(|d| char::from(b'0' + d)).collect();
            format!(
                "{}{}",
                if negative { "-" } else { "" },
                if digits.is_empty() { "0" } else { &digits }
            )
        }
        _ => match number(ty, bytes)? {
            Number::Whole(n) => n.to_string(),
            Number::Float(f) => f.to_string(),
        },
    })
}

/// A sum in the making, in the type of what is summed, as `sum` and `avg` give it.
pub(crate) struct Sum {
    ty: CqlType,
    total: Number,
}

impl Sum {
    pub(crate) fn zero(ty: &CqlType) -> Self {
        let total = if matches!(ty, CqlType::Float | CqlType::Double) {
            Number::Float(0.0)
        } else {
            Number::Whole(0)
        };
        Self {
            ty: ty.clone(),
            total,
        }
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<(), CqlError> {
        let ty = &self.ty;
        let next = number(ty, bytes)
            .ok_or_else(|| CqlError::invalid(format!("Cannot sum values of type {ty}")))?;
        self.total = match (self.total, next) {
            (Number::Whole(a), Number::Whole(b)) => Number::Whole(a.wrapping_add(b)),
            (a, b) => Number::Float(a.float() + b.float()),
        };
        Ok(())
    }

    pub(crate) fn total(&self) -> Bytes {
        self.serialise(self.total)
    }

    pub(crate) fn average(&self, count: i64) -> Bytes {
        if count == 0 {
            return self.serialise(Number::Whole(0));
        }
        self.serialise(match self.total {
            Number::Whole(n) => Number::Whole(n / i128::from(count)),
            Number::Float(f) => Number::Float(f / count as f64),
        })
    }

    fn serialise(&self, number: Number) -> Bytes {
        let own = Bytes::copy_from_slice;
        match self.ty {
            CqlType::Tinyint => own(&(number.whole() as i8).to_be_bytes()),
            CqlType::Smallint => own(&(number.whole() as i16).to_be_bytes()),
            CqlType::Int => own(&(number.whole() as i32).to_be_bytes()),
            CqlType::Float => own(&(number.float() as f32).to_be_bytes()),
            CqlType::Double => own(&number.float().to_be_bytes()),
            CqlType::Varint => varint(number.whole()),
            _ => own(&(number.whole() as i64).to_be_bytes()),
        }
    }
}
