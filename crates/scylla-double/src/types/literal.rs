//! Constants of a statement as values of a type, and values in words.
//!
//! Which constant may be for which type, and the errors' wording: ScyllaDB `cql3/expr/prepare_expr.cc`.

use std::{fmt::Write as _, str::FromStr};

use bytes::Bytes;
use jiff::{
    Timestamp,
    civil::{Date, DateTime},
    tz::Offset,
};
use num_bigint::BigInt;
use uuid::Uuid;

use super::{CqlType, Value};

/// The longest integer that is read, digits: reading one takes time with the square of its length.
const MAX_DIGITS: usize = 1 << 16;

const SECOND_NS: i128 = 1_000_000_000;
const DAY_NS: i64 = 86_400_000_000_000;
/// 1970-01-01 as a `date`.
const EPOCH_DAY: i64 = 1 << 31;

/// A constant, as written: what it means depends on the type it is for, see
/// [`Value::from_constant`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Constant {
    /// `null`.
    Null,
    /// `true`, `false`.
    Boolean(bool),
    /// Digits with an optional sign.
    Integer(String),
    /// With a point or an exponent; also `NaN`, `Infinity`, `-NaN`, `-Infinity`.
    Float(String),
    /// Without its quotes.
    Text(String),
    /// A UUID of any version.
    Uuid(Uuid),
    /// `0x…`.
    Blob(Vec<u8>),
    /// A duration as written, e.g. `1h30m` or `P1DT2H`.
    Duration(String),
}

/// A constant that cannot be a value of a type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstantError {
    /// A constant of another kind.
    #[error("Invalid {kind} constant ({text}) for \"{receiver}\" of type {ty}")]
    Kind {
        /// What the constant is, e.g. `STRING`.
        kind: &'static str,
        /// The constant as written.
        text: String,
        /// What it is for: a column, or a part of one.
        receiver: String,
        /// The type of that.
        ty: Box<CqlType>,
    },
    /// A counter cannot be null.
    #[error("Invalid null value for counter increment/decrement")]
    NullCounter,
    /// The right kind, but no value of the type.
    #[error("marshaling error: {0}")]
    Malformed(String),
}

impl Constant {
    /// What the constant is, as ScyllaDB's errors call it.
    pub fn kind(&self) -> &'static str {
        match self {
            Constant::Null => "NULL",
            Constant::Boolean(_) => "BOOLEAN",
            Constant::Integer(_) => "INTEGER",
            Constant::Float(_) => "FLOAT",
            Constant::Text(_) => "STRING",
            Constant::Uuid(_) => "UUID",
            Constant::Blob(_) => "HEX",
            Constant::Duration(_) => "DURATION",
        }
    }

    /// The constant as written, without quotes.
    pub fn raw_text(&self) -> String {
        match self {
            Constant::Null => "null".into(),
            Constant::Boolean(b) => b.to_string(),
            Constant::Integer(s)
            | Constant::Float(s)
            | Constant::Text(s)
            | Constant::Duration(s) => s.clone(),
            Constant::Uuid(id) => id.to_string(),
            Constant::Blob(bytes) => bytes.iter().fold("0x".to_owned(), |mut out, b| {
                // Writing to a string does not fail.
                write!(out, "{b:02x}").unwrap_or_default();
                out
            }),
        }
    }
}

impl Value {
    /// A constant as a value of a type; `None` for null. `receiver` is what errors say it is for.
    ///
    /// # Errors
    /// When the constant is of the wrong kind, or is no value of the type.
    pub fn from_constant(
        constant: &Constant,
        ty: &CqlType,
        receiver: &str,
    ) -> Result<Option<Self>, ConstantError> {
        let malformed = |what: String| ConstantError::Malformed(what);
        let number =
            |text: &str| ConstantError::Malformed(format!("Invalid number format '{text}'"));
        macro_rules! float {
            ($text:expr, $make:expr) => {
                match $text.to_ascii_lowercase().as_str() {
                    "nan" | "-nan" => Ok($make("NaN".parse().map_err(|_| number($text))?)),
                    text => text.parse().map($make).map_err(|_| number($text)),
                }
            };
        }
        let value = match (constant, ty) {
            (Constant::Null, CqlType::Counter) => Err(ConstantError::NullCounter),
            (Constant::Null, _) => return Ok(None),
            (Constant::Text(s), CqlType::Text) => Ok(Value::Text(s.clone())),
            (Constant::Text(s), CqlType::Ascii) if s.is_ascii() => Ok(Value::Ascii(s.clone())),
            (Constant::Text(_), CqlType::Ascii) => Err(malformed(
                "Validation failed - non-ASCII character in an ASCII string".into(),
            )),
            (
                Constant::Text(s),
                CqlType::Inet | CqlType::Timestamp | CqlType::Date | CqlType::Time,
            ) if s.is_empty() => Ok(Value::Empty),
            (Constant::Text(s), CqlType::Inet) => s
                .parse()
                .map(Value::Inet)
                .map_err(|_| malformed(format!("Failed to parse inet_addr from '{s}'"))),
            (Constant::Text(s), CqlType::Timestamp) => timestamp(s)
                .map(Value::Timestamp)
                .ok_or_else(|| malformed(timestamp_fault(s))),
            (Constant::Integer(s), CqlType::Timestamp) => s
                .parse()
                .map(Value::Timestamp)
                .map_err(|_| malformed(format!("unable to parse date '{s}'"))),
            (Constant::Text(s) | Constant::Integer(s), CqlType::Date) => {
                date(s).map(Value::Date).ok_or_else(|| {
                    malformed(if integer(s).is_some() {
                        format!("Failed to parse integer '{s}' as unsigned int")
                    } else {
                        format!("Unable to parse date from '{s}'")
                    })
                })
            }
            (Constant::Text(s), CqlType::Time) => time(s)
                .map(Value::Time)
                .ok_or_else(|| malformed(format!("Failed to parse time from '{s}'"))),
            (Constant::Integer(s), CqlType::Tinyint) => {
                s.parse().map(Value::Tinyint).map_err(|_| number(s))
            }
            (Constant::Integer(s), CqlType::Smallint) => {
                s.parse().map(Value::Smallint).map_err(|_| number(s))
            }
            (Constant::Integer(s), CqlType::Int) => {
                s.parse().map(Value::Int).map_err(|_| number(s))
            }
            (Constant::Integer(s), CqlType::Bigint) => {
                s.parse().map(Value::Bigint).map_err(|_| number(s))
            }
            (Constant::Integer(s), CqlType::Counter) => {
                s.parse().map(Value::Counter).map_err(|_| number(s))
            }
            (Constant::Integer(s), CqlType::Varint) => {
                integer(s).map(Value::Varint).ok_or_else(|| number(s))
            }
            (Constant::Integer(s) | Constant::Float(s), CqlType::Decimal) => {
                decimal(s).ok_or_else(|| malformed(format!("Invalid BigDecimal '{s}'")))
            }
            (Constant::Integer(s) | Constant::Float(s), CqlType::Float) => float!(s, Value::Float),
            (Constant::Integer(s) | Constant::Float(s), CqlType::Double) => {
                float!(s, Value::Double)
            }
            (Constant::Uuid(id), CqlType::Uuid) => Ok(Value::Uuid(*id)),
            (Constant::Uuid(id), CqlType::Timeuuid) if id.get_version_num() == 1 => {
                Ok(Value::Timeuuid(*id))
            }
            (Constant::Uuid(id), CqlType::Timeuuid) => Err(malformed(format!(
                "Unsupported UUID version ({})",
                id.get_version_num()
            ))),
            (Constant::Boolean(b), CqlType::Boolean) => Ok(Value::Boolean(*b)),
            (Constant::Blob(bytes), CqlType::Blob) => {
                Ok(Value::Blob(Bytes::copy_from_slice(bytes)))
            }
            (Constant::Duration(s), CqlType::Duration) => {
                duration(s).ok_or_else(|| malformed(duration_fault(s)))
            }
            (constant, ty) => Err(ConstantError::Kind {
                kind: constant.kind(),
                text: constant.raw_text(),
                receiver: receiver.into(),
                ty: Box::new(ty.clone()),
            }),
        };
        value.map(Some)
    }

    /// A date, time, duration or number as text, without quotes.
    pub(super) fn in_words(&self) -> String {
        match self {
            Value::Date(day) => {
                let days = i64::from(*day) - EPOCH_DAY;
                match days
                    .checked_mul(86_400)
                    .and_then(|s| Timestamp::from_second(s).ok())
                {
                    Some(at) => Offset::UTC.to_datetime(at).date().to_string(),
                    // Beyond the years that have four digits the number itself is a literal as good.
                    None => day.to_string(),
                }
            }
            Value::Time(ns) => {
                let (seconds, part) = (ns / 1_000_000_000, ns % 1_000_000_000);
                format!(
                    "{:02}:{:02}:{:02}.{part:09}",
                    seconds / 3600,
                    seconds / 60 % 60,
                    seconds % 60
                )
            }
            Value::Timestamp(ms) => match Timestamp::from_millisecond(*ms) {
                Ok(at) => format!("{at:.3}"),
                Err(_) => ms.to_string(),
            },
            Value::Duration {
                months,
                days,
                nanoseconds,
            } => {
                let sign = if *months < 0 || *days < 0 || *nanoseconds < 0 {
                    "-"
                } else {
                    ""
                };
                let parts = [
                    (u64::from(months.unsigned_abs()), "mo"),
                    (u64::from(days.unsigned_abs()), "d"),
                    (nanoseconds.unsigned_abs(), "ns"),
                ];
                let text: String = parts
                    .iter()
                    .filter(|(n, _)| *n > 0)
                    .map(|(n, unit)| format!("{n}{unit}"))
                    .collect();
                if text.is_empty() {
                    "0ns".into()
                } else {
                    format!("{sign}{text}")
                }
            }
            Value::Decimal { scale, unscaled } => format!("{unscaled}E{}", -i64::from(*scale)),
            Value::Double(f) => float_text(*f, format!("{f:?}")),
            Value::Float(f) => float_text((*f).into(), format!("{f:?}")),
            other => other.to_string(),
        }
    }
}

fn float_text(f: f64, text: String) -> String {
    match f {
        _ if f.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        _ => text,
    }
}

fn integer(text: &str) -> Option<BigInt> {
    if text.len() > MAX_DIGITS {
        None
    } else {
        BigInt::from_str(text).ok()
    }
}

/// `[sign]digits[.digits][e[sign]digits]`
fn decimal(text: &str) -> Option<Value> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let unscaled = integer(&format!("{whole}{fraction}"))?;
    let scale = i32::try_from(i64::try_from(fraction.len()).ok()?.checked_sub(exponent)?).ok()?;
    Some(Value::Decimal { scale, unscaled })
}

/// A number of ms, `now`, or `yyyy-mm-dd[(T| )hh:mm[:ss[.f…]]][ ][Z|±hh[[:]mm]]`; UTC unless told.
fn timestamp(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(ms) = text.parse() {
        return Some(ms);
    }
    if text.eq_ignore_ascii_case("now") {
        return Some(Timestamp::now().as_millisecond());
    }
    let (day, rest) = text.split_at_checked(10)?;
    let day = civil_date(day)?;
    let rest = rest.strip_prefix(['T', 't', ' ']).unwrap_or(rest);
    let (clock, zone) = match rest.find(['Z', 'z', '+', '-', 'U', 'u', 'G', 'g']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let clock = clock.trim();
    // Milliseconds, and no more.
    if clock
        .split_once('.')
        .is_some_and(|(_, fraction)| fraction.len() > 3)
    {
        return None;
    }
    let ns = if clock.is_empty() {
        0
    } else {
        clock_ns(clock)?
    };
    // Seconds and smaller: 23:59:60 is not a time.
    let at = DateTime::from_parts(day, jiff::civil::Time::midnight());
    let utc = Offset::UTC.to_timestamp(at).ok()?.as_nanosecond() + i128::from(ns);
    let ns = utc - i128::from(offset_seconds(zone)?) * SECOND_NS;
    i64::try_from(ns.div_euclid(1_000_000)).ok()
}

/// Why a text is no timestamp.
fn timestamp_fault(text: &str) -> String {
    let digits = text.split_once('.').map_or(0, |(_, fraction)| {
        fraction.bytes().take_while(u8::is_ascii_digit).count()
    });
    if digits > 3 {
        return format!("Milliseconds length exceeds expected ({digits})");
    }
    format!("Unable to parse timestamp from '{text}'")
}

fn offset_seconds(zone: &str) -> Option<i64> {
    let zone = zone.trim();
    let digits = match zone {
        "" => return Some(0),
        name if ["Z", "UTC", "GMT"]
            .iter()
            .any(|z| z.eq_ignore_ascii_case(name)) =>
        {
            return Some(0);
        }
        _ => zone.get(1..)?.replace(':', ""),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: i64 = digits.parse().ok()?;
    let (hours, minutes) = match digits.len() {
        2 => (number, 0),
        4 => (number / 100, number % 100),
        _ => return None,
    };
    let seconds = hours * 3600 + minutes * 60;
    (hours < 24 && minutes < 60).then_some(if zone.starts_with('-') {
        -seconds
    } else {
        seconds
    })
}

fn civil_date(text: &str) -> Option<Date> {
    // A minus before the year is not between parts.
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let mut parts = text.splitn(3, '-').map(|part| part.parse::<i16>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    Date::new(
        sign * year,
        i8::try_from(month).ok()?,
        i8::try_from(day).ok()?,
    )
    .ok()
}

/// A number of days, 2³¹ being the epoch, or `yyyy-mm-dd`.
fn date(text: &str) -> Option<u32> {
    if let Ok(day) = text.parse() {
        return Some(day);
    }
    let midnight = DateTime::from_parts(civil_date(text)?, jiff::civil::Time::midnight());
    let days = Offset::UTC
        .to_timestamp(midnight)
        .ok()?
        .as_second()
        .div_euclid(86_400);
    u32::try_from(days + EPOCH_DAY).ok()
}

/// A number of nanoseconds, or `hh:mm:ss[.f…]`.
fn time(text: &str) -> Option<i64> {
    if let Ok(ns) = text.parse() {
        return (0..DAY_NS).contains(&ns).then_some(ns);
    }
    if text.matches(':').count() == 2 {
        clock_ns(text)
    } else {
        None
    }
}

/// `hh:mm[:ss[.f…]]`, up to nine digits of a second, as nanoseconds.
fn clock_ns(text: &str) -> Option<i64> {
    let number = |text: &str, max: usize, below: i64| {
        let plain = (1..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<i64>().ok().filter(|n| plain && *n < below)
    };
    let mut parts = text.splitn(3, ':');
    let hours = number(parts.next()?, 2, 24)?;
    let minutes = number(parts.next()?, 2, 60)?;
    let (seconds, fraction) = match parts.next() {
        None => (0, 0),
        Some(rest) => {
            let (seconds, fraction) = rest.split_once('.').unwrap_or((rest, "0"));
            let scale = 10_i64.pow(9_u32.checked_sub(u32::try_from(fraction.len()).ok()?)?);
            (
                number(seconds, 2, 60)?,
                number(fraction, 9, i64::MAX)? * scale,
            )
        }
    };
    Some(((hours * 60 + minutes) * 60 + seconds) * 1_000_000_000 + fraction)
}

/// `1y2mo3w4d5h6m7s8ms9us10ns`, ISO 8601 `P1Y2M3DT4H5M6S` or `P5W`, or `P0001-02-03T04:05:06`; all with
/// an optional minus in front (ScyllaDB docs/cql/types, Working with durations).
fn duration(text: &str) -> Option<Value> {
    let (sign, body) = match text.strip_prefix('-') {
        Some(body) => (-1, body),
        None => (1, text),
    };
    let mut total = Parts::default();
    match body.strip_prefix(['P', 'p']) {
        None => total.units(body, Notation::Words)?,
        Some(iso) if iso.contains('-') => {
            let (day, clock) = iso.split_once(['T', 't'])?;
            let mut numbers = day
                .splitn(3, '-')
                .chain(clock.splitn(3, ':'))
                .map(|n| n.parse::<u64>().ok());
            for unit in ["y", "mo", "d", "h", "m", "s"] {
                total.add(numbers.next()??, unit)?;
            }
            if numbers.next().is_some() {
                return None;
            }
        }
        Some(iso) => match iso.split_once(['T', 't']) {
            Some((day, clock)) => {
                total.units(day, Notation::IsoDay)?;
                total.units(clock, Notation::IsoClock)?;
            }
            None => total.units(iso, Notation::IsoDay)?,
        },
    }
    Some(Value::Duration {
        months: i32::try_from(total.months).ok()? * sign,
        days: i32::try_from(total.days).ok()? * sign,
        nanoseconds: i64::try_from(total.nanoseconds).ok()? * i64::from(sign),
    })
}

/// The units of a duration, the greatest first, and what messages call them.
const UNITS: [(&[&str], &str); 10] = [
    (&["y"], "years"),
    (&["mo"], "months"),
    (&["w"], "weeks"),
    (&["d"], "days"),
    (&["h"], "hours"),
    (&["m"], "minutes"),
    (&["s"], "seconds"),
    (&["ms"], "milliseconds"),
    (&["us", "µs"], "microseconds"),
    (&["ns"], "nanoseconds"),
];

fn unit_place(unit: &str) -> Option<usize> {
    UNITS.iter().position(|(names, _)| names.contains(&unit))
}

/// What is wrong with a duration in words, as ScyllaDB says it.
fn duration_fault(text: &str) -> String {
    let lower = text.to_lowercase();
    let units = lower.split(|c: char| c.is_ascii_digit() || c == '-');
    let places: Vec<usize> = units.filter_map(unit_place).collect();
    for pair in places.windows(2) {
        let [(_, first), (_, second)] = [UNITS[pair[0]], UNITS[pair[1]]];
        if pair[0] == pair[1] {
            return format!("Invalid duration. The {first} are specified multiple times");
        }
        if pair[0] > pair[1] {
            return format!("Invalid duration. The {first} should be after {second}");
        }
    }
    format!("Unable to convert '{text}' to a duration")
}

#[derive(Default)]
struct Parts {
    months: u64,
    days: u64,
    nanoseconds: u64,
}

#[derive(Clone, Copy)]
enum Notation {
    Words,
    IsoDay,
    IsoClock,
}

impl Parts {
    fn units(&mut self, text: &str, notation: Notation) -> Option<()> {
        let (mut rest, mut last) = (text, None);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit())?;
            let (number, tail) = rest.split_at(digits);
            let end = tail
                .find(|c: char| c.is_ascii_digit())
                .unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            let unit = unit.to_lowercase();
            let unit = match (notation, unit.as_str()) {
                (Notation::Words, unit) => unit,
                (Notation::IsoDay, "m") => "mo",
                (Notation::IsoDay, "y" | "w" | "d") | (Notation::IsoClock, "h" | "m" | "s") => {
                    unit.as_str()
                }
                _ => return None,
            };
            // Each unit once, the greater before the lesser.
            let place = unit_place(unit)?;
            if last.replace(place).is_some_and(|last| last >= place) {
                return None;
            }
            self.add(number.parse().ok()?, unit)?;
            rest = tail;
        }
        Some(())
    }

    fn add(&mut self, n: u64, unit: &str) -> Option<()> {
        let (total, factor) = match unit {
            "y" => (&mut self.months, 12),
            "mo" => (&mut self.months, 1),
            "w" => (&mut self.days, 7),
            "d" => (&mut self.days, 1),
            "h" => (&mut self.nanoseconds, 3_600_000_000_000),
            "m" => (&mut self.nanoseconds, 60_000_000_000),
            "s" => (&mut self.nanoseconds, 1_000_000_000),
            "ms" => (&mut self.nanoseconds, 1_000_000),
            "us" | "µs" => (&mut self.nanoseconds, 1_000),
            "ns" => (&mut self.nanoseconds, 1),
            _ => return None,
        };
        *total = total.checked_add(n.checked_mul(factor)?)?;
        Some(())
    }
}
