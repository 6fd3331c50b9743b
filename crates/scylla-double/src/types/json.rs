//! Values as JSON and back, as `INSERT … JSON`, `SELECT JSON`, `fromJson` and `toJson` have them.
//!
//! Source: ScyllaDB docs/cql/json.rst and `types/json_utils.cc`, with what differs there from Cassandra: no null
//! in a collection or a tuple, field names of user-defined types as they are, numbers beyond 64 bits by way of a
//! double unless they are given as strings.

use std::fmt::Write as _;

use num_bigint::{BigInt, Sign};
use serde_json::Value as Json;

use super::{Constant, CqlType, Value};

/// What is no value of a type, or cannot be told in JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON at all.
    #[error("{0}")]
    Syntax(String),
    /// JSON that is no value of the type.
    #[error("marshaling error: {0}")]
    Mismatch(String),
    /// A value without bytes where its type has no such value in JSON.
    #[error("Cannot create JSON string - deserialization error")]
    Empty,
}

fn mismatch(what: impl Into<String>) -> JsonError {
    JsonError::Mismatch(what.into())
}

/// Reads a JSON text.
///
/// # Errors
/// When it is none.
pub fn parse(text: &str) -> Result<Json, JsonError> {
    serde_json::from_str(text).map_err(|e| JsonError::Syntax(e.to_string()))
}

impl Value {
    /// A value of a type as JSON has it.
    ///
    /// # Errors
    /// When it is none of that type.
    pub fn from_json(ty: &CqlType, json: &Json) -> Result<Self, JsonError> {
        let quoted = |what: &str| match json {
            Json::String(text) => Ok(text.as_str()),
            other => Err(mismatch(format!(
                "{what} must be represented as string in JSON, instead got '{other}'"
            ))),
        };
        let constant = |constant: Constant| match Value::from_constant(&constant, ty, "JSON") {
            Ok(value) => value.ok_or_else(|| mismatch("null")),
            Err(e) => Err(mismatch(
                e.to_string().trim_start_matches("marshaling error: "),
            )),
        };
        match ty {
            CqlType::Ascii | CqlType::Text => {
                constant(Constant::Text(quoted(&format!("{ty}"))?.to_owned()))
            }
            CqlType::Blob => {
                let text = quoted("bytes_type")?;
                let digits = text
                    .strip_prefix("0x")
                    .ok_or_else(|| mismatch("Blob JSON strings must start with 0x"))?;
                hex(digits)
                    .map(|bytes| Value::Blob(bytes.into()))
                    .ok_or_else(|| mismatch(format!("invalid hex string '{digits}'")))
            }
            CqlType::Boolean => match json {
                Json::Bool(b) => Ok(Value::Boolean(*b)),
                Json::String(s) if s.trim().eq_ignore_ascii_case("true") => {
                    Ok(Value::Boolean(true))
                }
                Json::String(s) if s.trim().eq_ignore_ascii_case("false") => {
                    Ok(Value::Boolean(false))
                }
                other => Err(mismatch(format!("Invalid JSON object {other}"))),
            },
            CqlType::Tinyint
            | CqlType::Smallint
            | CqlType::Int
            | CqlType::Bigint
            | CqlType::Counter => match json {
                Json::String(text) if *ty != CqlType::Counter => {
                    constant(Constant::Integer(text.clone()))
                }
                json => integer(json, ty),
            },
            // An empty one is a value without bytes in ScyllaDB (its #7944).
            CqlType::Varint | CqlType::Decimal | CqlType::Float | CqlType::Double
                if json.as_str() == Some("") =>
            {
                Ok(Value::Empty)
            }
            CqlType::Varint => match json {
                Json::String(text) => constant(Constant::Integer(text.clone())),
                other => constant(Constant::Integer(other.to_string())),
            },
            CqlType::Decimal | CqlType::Float | CqlType::Double => match json {
                Json::String(text) => constant(Constant::Float(text.clone())),
                Json::Number(n) => constant(Constant::Float(n.to_string())),
                other => Err(mismatch(format!(
                    "{other} must be represented as numeric or string in JSON"
                ))),
            },
            CqlType::Timestamp => match json {
                Json::String(text) => constant(Constant::Text(text.clone())),
                Json::Number(_) => match integer(json, &CqlType::Bigint)? {
                    Value::Bigint(ms) => Ok(Value::Timestamp(ms)),
                    other => Ok(other),
                },
                _ => Err(mismatch(
                    "timestamp_type must be represented as string or integer",
                )),
            },
            CqlType::Date => constant(Constant::Text(quoted("simple_date_type")?.to_owned())),
            CqlType::Time => constant(Constant::Text(quoted("time_type")?.to_owned())),
            CqlType::Inet => constant(Constant::Text(quoted("inet_addr_type")?.to_owned())),
            CqlType::Duration => constant(Constant::Duration(quoted("duration_type")?.to_owned())),
            CqlType::Uuid | CqlType::Timeuuid => {
                let text = quoted(if *ty == CqlType::Uuid {
                    "uuid_type"
                } else {
                    "timeuuid_type"
                })?;
                let id = text
                    .parse()
                    .map_err(|_| mismatch(format!("invalid UUID '{text}'")))?;
                constant(Constant::Uuid(id))
            }
            CqlType::List { element, .. } => Ok(Value::List(
                array(json, "list_type")?
                    .iter()
                    .map(|item| Value::from_json(element, item))
                    .collect::<Result<_, _>>()?,
            )),
            CqlType::Set { element, .. } => Ok(Value::Set(
                array(json, "set_type")?
                    .iter()
                    .map(|item| Value::from_json(element, item))
                    .collect::<Result<_, _>>()?,
            )),
            CqlType::Map { key, value, .. } => {
                let entries = object(json, "map_type")?
                    .iter()
                    .map(|(name, of)| Ok((map_key(key, name)?, Value::from_json(value, of)?)));
                Ok(Value::Map(entries.collect::<Result<_, JsonError>>()?))
            }
            CqlType::Tuple(types) => {
                let items = array(json, "tuple_type")?;
                if items.len() > types.len() {
                    return Err(mismatch(format!(
                        "Too many values ({}) for tuple with size {}",
                        items.len(),
                        types.len()
                    )));
                }
                let fields = items
                    .iter()
                    .zip(types)
                    .map(|(item, ty)| Value::from_json(ty, item).map(Some));
                Ok(Value::Tuple(fields.collect::<Result<_, _>>()?))
            }
            CqlType::Vector { element, dimension } => {
                let items = array(json, "vector_type")?;
                if items.len() != *dimension {
                    let much = if items.len() > *dimension {
                        "many"
                    } else {
                        "few"
                    };
                    return Err(mismatch(format!(
                        "Too {much} values ({}) for vector with size {dimension}",
                        items.len()
                    )));
                }
                let items = items.iter().map(|item| Value::from_json(element, item));
                Ok(Value::Vector(items.collect::<Result<_, _>>()?))
            }
            CqlType::Udt { name, fields, .. } => {
                let given = object(json, "user_type")?;
                let known = |given: &String| fields.iter().any(|(field, _)| field == given);
                if let Some((field, _)) = given.iter().find(|(field, _)| !known(field)) {
                    return Err(mismatch(format!(
                        "Extraneous field definition for user type {name}: {field}"
                    )));
                }
                let fields = fields.iter().map(|(field, ty)| {
                    let value = match given.get(field) {
                        None | Some(Json::Null) => None,
                        Some(value) => Some(Value::from_json(ty, value)?),
                    };
                    Ok((field.clone(), value))
                });
                Ok(Value::Udt(fields.collect::<Result<_, JsonError>>()?))
            }
        }
    }

    /// The value as JSON.
    ///
    /// # Errors
    /// When it has no bytes and its type has no such value in JSON.
    pub fn to_json(&self, ty: &CqlType) -> Result<String, JsonError> {
        let mut out = String::new();
        self.put_json(ty, &mut out)?;
        Ok(out)
    }

    fn put_json(&self, ty: &CqlType, out: &mut String) -> Result<(), JsonError> {
        match (self, ty) {
            (
                Value::Empty,
                CqlType::Float
                | CqlType::Double
                | CqlType::Decimal
                | CqlType::Varint
                | CqlType::Duration,
            ) => {
                return Err(JsonError::Empty);
            }
            (
                Value::Empty,
                CqlType::Tinyint
                | CqlType::Smallint
                | CqlType::Int
                | CqlType::Bigint
                | CqlType::Counter,
            ) => {
                return Err(mismatch(format!(
                    "Size mismatch for type {ty}: got 0 bytes"
                )));
            }
            (Value::Empty, _) => out.push_str("\"\""),
            (Value::Ascii(text) | Value::Text(text), _) => quote(text, out),
            (
                Value::Boolean(_)
                | Value::Int(_)
                | Value::Smallint(_)
                | Value::Tinyint(_)
                | Value::Bigint(_)
                | Value::Counter(_)
                | Value::Varint(_),
                _,
            ) => {
                out.push_str(&self.to_string());
            }
            (Value::Double(f), _) => out.push_str(&float(*f, &format!("{f:e}"), 16)),
            (Value::Float(f), _) => out.push_str(&float((*f).into(), &format!("{f:e}"), 7)),
            (Value::Decimal { scale, unscaled }, _) => out.push_str(&decimal(*scale, unscaled)),
            (Value::Blob(_) | Value::Uuid(_) | Value::Timeuuid(_), _) => {
                quote(&self.to_string(), out)
            }
            (Value::Inet(ip), _) => quote(&ip.to_string(), out),
            (Value::Timestamp(_), _) => quote(&self.in_words().replacen('T', " ", 1), out),
            (Value::Date(_) | Value::Time(_), _) => quote(&self.in_words(), out),
            (
                Value::Duration {
                    months,
                    days,
                    nanoseconds,
                },
                _,
            ) => {
                quote(&duration(*months, *days, *nanoseconds), out);
            }
            (Value::List(items), CqlType::List { element, .. })
            | (Value::Set(items), CqlType::Set { element, .. })
            | (Value::Vector(items), CqlType::Vector { element, .. }) => {
                listed(out, items.iter().map(|item| Some((item, &**element))))?;
            }
            (Value::Tuple(fields), CqlType::Tuple(types)) => {
                listed(
                    out,
                    fields
                        .iter()
                        .zip(types)
                        .map(|(field, ty)| field.as_ref().map(|f| (f, ty))),
                )?;
            }
            (Value::Map(entries), CqlType::Map { key, value, .. }) => {
                out.push('{');
                for (i, (k, v)) in entries.iter().enumerate() {
                    out.push_str(if i > 0 { ", " } else { "" });
                    let name = k.to_json(key)?;
                    // A key is a string. ScyllaDB does not escape what it puts between the quotes (its #8087).
                    if name.starts_with('"') {
                        out.push_str(&name);
                    } else {
                        out.push_str(&format!("\"{name}\""));
                    }
                    out.push_str(": ");
                    v.put_json(value, out)?;
                }
                out.push('}');
            }
            (Value::Udt(values), CqlType::Udt { fields, .. }) => {
                out.push('{');
                for (i, ((name, value), (_, ty))) in values.iter().zip(fields).enumerate() {
                    out.push_str(if i > 0 { ", " } else { "" });
                    quote(name, out);
                    out.push_str(": ");
                    match value {
                        Some(value) => value.put_json(ty, out)?,
                        None => out.push_str("null"),
                    }
                }
                out.push('}');
            }
            // A value of another type: the caller decoded it by this one, so there is none.
            (_, ty) => return Err(mismatch(format!("a value that is no {ty}"))),
        }
        Ok(())
    }
}

fn listed<'v>(
    out: &mut String,
    items: impl Iterator<Item = Option<(&'v Value, &'v CqlType)>>,
) -> Result<(), JsonError> {
    out.push('[');
    for (i, item) in items.enumerate() {
        out.push_str(if i > 0 { ", " } else { "" });
        match item {
            Some((item, ty)) => item.put_json(ty, out)?,
            None => out.push_str("null"),
        }
    }
    out.push(']');
    Ok(())
}

fn array<'j>(json: &'j Json, what: &str) -> Result<&'j Vec<Json>, JsonError> {
    json.as_array()
        .ok_or_else(|| mismatch(format!("{what} must be represented as JSON Array")))
}

fn object<'j>(json: &'j Json, what: &str) -> Result<&'j serde_json::Map<String, Json>, JsonError> {
    json.as_object()
        .ok_or_else(|| mismatch(format!("{what} must be represented as JSON Object")))
}

/// A map's key: as a string, or, of a type that is none, JSON in a string.
fn map_key(ty: &CqlType, name: &str) -> Result<Value, JsonError> {
    let nested = matches!(
        ty,
        CqlType::List { .. }
            | CqlType::Set { .. }
            | CqlType::Map { .. }
            | CqlType::Tuple(_)
            | CqlType::Vector { .. }
            | CqlType::Udt { .. }
    );
    if !nested {
        return Value::from_json(ty, &Json::String(name.to_owned()));
    }
    match parse(name) {
        Ok(key) => Value::from_json(ty, &key),
        Err(e) => Err(mismatch(format!("Failed parsing map_key {name}: {e}"))),
    }
}

/// A JSON number as an integer of a type; `1e6` and `12.0` are, `12.34` is not.
fn integer(json: &Json, ty: &CqlType) -> Result<Value, JsonError> {
    let out_of_range = || mismatch(format!("Value {json} out of range"));
    let n = match json {
        Json::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(n), ..) => n,
            (None, Some(_), _) => return Err(out_of_range()),
            // 2⁶³ itself is the first that does not fit.
            (None, None, Some(f)) if f.fract() == 0.0 => {
                if (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&f) {
                    f as i64
                } else {
                    return Err(out_of_range());
                }
            }
            _ => {
                return Err(mismatch(format!(
                    "Incorrect JSON floating-point value for int64 type: {json} (it should not contain fractional part)"
                )));
            }
        },
        other => {
            return Err(mismatch(format!(
                "Incorrect JSON value for int64 type: {other}"
            )));
        }
    };
    let narrow = match ty {
        CqlType::Tinyint => i8::try_from(n).map(Value::Tinyint),
        CqlType::Smallint => i16::try_from(n).map(Value::Smallint),
        CqlType::Int => i32::try_from(n).map(Value::Int),
        CqlType::Counter => Ok(Value::Counter(n)),
        _ => Ok(Value::Bigint(n)),
    };
    narrow.map_err(|_| out_of_range())
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return None;
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok())
        .collect()
}

/// In quotes. What ScyllaDB does not escape is not escaped here.
pub(crate) fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => {
                // Writing to a string does not fail.
                write!(out, "\\u{:04X}", u32::from(c)).unwrap_or_default();
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// The shortest digits that mean the number, with an exponent below −4 or from `exponent_from` on, as the library
/// that ScyllaDB formats with has it; what JSON has no number for is null. `scientific` is the number as `d.ddde±x`.
fn float(f: f64, scientific: &str, exponent_from: i32) -> String {
    if !f.is_finite() {
        return "null".into();
    }
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..exponent_from).contains(&exponent) {
        let (sign, mantissa) = match mantissa.strip_prefix('-') {
            Some(mantissa) => ("-", mantissa),
            None => ("", mantissa),
        };
        let digits = mantissa.replace('.', "");
        return match usize::try_from(exponent) {
            Err(_) => format!(
                "{sign}0.{}{digits}",
                "0".repeat(exponent.unsigned_abs() as usize - 1)
            ),
            Ok(whole) if digits.len() <= whole + 1 => {
                format!("{sign}{digits}{}", "0".repeat(whole + 1 - digits.len()))
            }
            Ok(whole) => {
                let (whole, fraction) = digits.split_at(whole + 1);
                format!("{sign}{whole}.{fraction}")
            }
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

/// All digits, without zeros at the end (`big_decimal::to_string`), unless that would be as many as nobody reads
/// (its #8002): then with an exponent.
fn decimal(scale: i32, unscaled: &BigInt) -> String {
    /// Digits, zeros included.
    const MOST: u32 = 10_000;
    if unscaled.sign() == Sign::NoSign {
        return "0".into();
    }
    let sign = if unscaled.sign() == Sign::Minus {
        "-"
    } else {
        ""
    };
    let mut digits = unscaled.magnitude().to_string();
    if scale.unsigned_abs() > MOST {
        return format!("{sign}{digits}E{}", -i64::from(scale));
    }
    let places = scale.unsigned_abs() as usize;
    if scale <= 0 {
        digits.push_str(&"0".repeat(places));
    } else {
        if digits.len() <= places {
            digits.insert_str(0, &"0".repeat(places + 1 - digits.len()));
        }
        digits.insert(digits.len() - places, '.');
        let kept = digits.trim_end_matches('0').trim_end_matches('.').len();
        digits.truncate(kept);
    }
    format!("{sign}{digits}")
}

/// `1y1mo2d10h5m`, and so on down to ns.
fn duration(months: i32, days: i32, nanoseconds: i64) -> String {
    const UNITS: [(u64, &str); 6] = [
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
        (1, "ns"),
    ];
    let mut out = String::new();
    if months < 0 || days < 0 || nanoseconds < 0 {
        out.push('-');
    }
    let mut put = |n: u64, unit: &str| {
        if n > 0 {
            out.push_str(&format!("{n}{unit}"));
        }
    };
    let months = u64::from(months.unsigned_abs());
    put(months / 12, "y");
    put(months % 12, "mo");
    put(days.unsigned_abs().into(), "d");
    let mut rest = nanoseconds.unsigned_abs();
    for (size, unit) in UNITS {
        put(rest / size, unit);
        rest %= size;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(element: CqlType) -> CqlType {
        CqlType::List {
            element: Box::new(element),
            frozen: true,
        }
    }

    fn map(key: CqlType, value: CqlType) -> CqlType {
        CqlType::Map {
            key: Box::new(key),
            value: Box::new(value),
            frozen: true,
        }
    }

    fn there(ty: &CqlType, json: &str) -> Result<String, JsonError> {
        Value::from_json(ty, &parse(json)?)?.to_json(ty)
    }

    #[test]
    fn values_come_back_in_scylladbs_notation() {
        let pair = CqlType::Tuple(vec![CqlType::Int, CqlType::Text]);
        let spot = CqlType::Udt {
            keyspace: "k".into(),
            name: "spot".into(),
            fields: vec![("a".into(), CqlType::Int), ("B".into(), CqlType::Text)],
            frozen: true,
        };
        let vector = CqlType::Vector {
            element: Box::new(CqlType::Float),
            dimension: 2,
        };
        for (ty, given, told) in [
            (CqlType::Int, "1e6", "1000000"),
            (CqlType::Int, "\"-7\"", "-7"),
            (
                CqlType::Bigint,
                "9223372036854775807",
                "9223372036854775807",
            ),
            (
                CqlType::Varint,
                "\"123456789012345678901234567890\"",
                "123456789012345678901234567890",
            ),
            (CqlType::Decimal, "\"-1.50e2\"", "-150"),
            (CqlType::Decimal, "0.0625", "0.0625"),
            (CqlType::Decimal, "\"1E20000\"", "1E20000"),
            (CqlType::Double, "123123.123123", "123123.123123"),
            (CqlType::Double, "17.0", "17"),
            (CqlType::Double, "-0.00012", "-0.00012"),
            (CqlType::Double, "1e-5", "1e-05"),
            (CqlType::Double, "1e15", "1000000000000000"),
            (CqlType::Double, "1.5e20", "1.5e+20"),
            (CqlType::Double, "\"NaN\"", "null"),
            (CqlType::Float, "123.123", "123.123"),
            (CqlType::Boolean, "\" fALSe \"", "false"),
            (
                CqlType::Text,
                "\"a\\\"\\\\\\n\\u0001ż\"",
                "\"a\\\"\\\\\\n\\u0001ż\"",
            ),
            (CqlType::Blob, "\"0x00ff\"", "\"0x00ff\""),
            (CqlType::Blob, "\"0x\"", "\"0x\""),
            (CqlType::Date, "\"1987-03-23\"", "\"1987-03-23\""),
            (
                CqlType::Time,
                "\"07:35:07.000111222\"",
                "\"07:35:07.000111222\"",
            ),
            (
                CqlType::Timestamp,
                "\"2014-01-01T12:15:45+0000\"",
                "\"2014-01-01 12:15:45.000Z\"",
            ),
            (
                CqlType::Timestamp,
                "1388578545123",
                "\"2014-01-01 12:15:45.123Z\"",
            ),
            (CqlType::Inet, "\"2001:db8::1\"", "\"2001:db8::1\""),
            (
                CqlType::Timeuuid,
                "\"6bddc89a-5644-11e4-97fc-56847afe9799\"",
                "\"6bddc89a-5644-11e4-97fc-56847afe9799\"",
            ),
            (CqlType::Duration, "\"P1Y1M2DT10H5M\"", "\"1y1mo2d10h5m\""),
            (CqlType::Duration, "\"-12us\"", "\"-12us\""),
            (list(CqlType::Int), "[3,1]", "[3, 1]"),
            (
                map(CqlType::Int, CqlType::Boolean),
                "{\"1\": false}",
                "{\"1\": false}",
            ),
            (
                map(list(CqlType::Int), CqlType::Int),
                "{\"[1,2]\": 3}",
                "{\"[1, 2]\": 3}",
            ),
            (pair.clone(), "[1]", "[1]"),
            (
                spot.clone(),
                "{\"B\":null,\"a\":1}",
                "{\"a\": 1, \"B\": null}",
            ),
            (vector.clone(), "[1, 2.5]", "[1, 2.5]"),
        ] {
            assert_eq!(there(&ty, given).as_deref(), Ok(told), "{given} as {ty}");
        }
    }

    #[test]
    fn what_is_no_value_of_the_type_is_refused() {
        let pair = CqlType::Tuple(vec![CqlType::Int, CqlType::Text]);
        for (ty, given) in [
            (CqlType::Int, "2147483648"),
            (CqlType::Int, "1.2"),
            (CqlType::Int, "\"\""),
            (CqlType::Int, "\"dog\""),
            (CqlType::Int, "dog"),
            (CqlType::Bigint, "9223372036854775808"),
            (CqlType::Bigint, "1e19"),
            (CqlType::Ascii, "3"),
            (CqlType::Ascii, "\"ż\""),
            (CqlType::Blob, "\"123\""),
            (CqlType::Blob, "\"0x123\""),
            (CqlType::Boolean, "1"),
            (CqlType::Double, "true"),
            (
                CqlType::Timeuuid,
                "\"5b6962dd-3f90-4c93-8f61-eabfa4a803e2\"",
            ),
            (CqlType::Timestamp, "\"2014-01-01 12:15:45.0000000Z\""),
            (list(CqlType::Int), "[null]"),
            (list(CqlType::Int), "{}"),
            (map(CqlType::Int, CqlType::Int), "{17: 3}"),
            (pair.clone(), "[1, \"a\", 2]"),
            (pair, "[null, \"a\"]"),
        ] {
            assert!(there(&ty, given).is_err(), "{given} as {ty}");
        }
    }
}
