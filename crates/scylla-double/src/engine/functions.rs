//! The scalar functions of CQL.
//!
//! Source: ScyllaDB docs/cql/functions, `cql3/functions/time_uuid_fcts.hh`.

use bytes::Bytes;
use uuid::Uuid;

use super::{
    cdc::images::{random_timeuuid, timeuuid},
    error::CqlError,
    json,
    storage::RingKey,
    types,
};
use crate::types::CqlType;

/// What a time is given as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimeSource {
    Timestamp,
    Timeuuid,
    Date,
}

/// A scalar function with its argument types resolved.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Function {
    Now,
    CurrentTimestamp,
    CurrentDate,
    CurrentTime,
    Uuid,
    MinTimeuuid,
    MaxTimeuuid,
    ToTimestamp(TimeSource),
    ToDate(TimeSource),
    ToUnixTimestamp(TimeSource),
    Token {
        is_log: bool,
    },
    /// Between a type and its bytes: nothing but the type changes.
    Reinterpret(CqlType),
    Cast(CqlType, CqlType),
    /// For a receiver of a type.
    FromJson(CqlType),
    /// Of a value of a type.
    ToJson(CqlType),
}

/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;
/// The day of 1970-01-01 in a `date`.
const EPOCH_DAY: i64 = 1 << 31;

impl Function {
    /// Finds a function by its name, ignoring case, and its argument types; gives it and its result.
    pub(crate) fn resolve(
        name: &str,
        args: &[Option<CqlType>],
    ) -> Result<(Self, CqlType), CqlError> {
        let lower = name.to_lowercase();
        let source = |default: TimeSource| match args.first() {
            Some(Some(CqlType::Timestamp)) => Ok(TimeSource::Timestamp),
            Some(Some(CqlType::Timeuuid)) => Ok(TimeSource::Timeuuid),
            Some(Some(CqlType::Date)) => Ok(TimeSource::Date),
            Some(None) => Ok(default),
            _ => Err(CqlError::invalid(format!(
                "Invalid call to function {lower}, none of its type signatures match"
            ))),
        };
        let arity = |n: usize| {
            if args.len() == n {
                return Ok(());
            }
            Err(CqlError::invalid(format!(
                "Invalid number of arguments in call to function {lower}: {n} required but {} provided",
                args.len()
            )))
        };
        let (function, result) = match lower.as_str() {
            "now" | "currenttimeuuid" => (Function::Now, CqlType::Timeuuid),
            "currenttimestamp" => (Function::CurrentTimestamp, CqlType::Timestamp),
            "currentdate" => (Function::CurrentDate, CqlType::Date),
            "currenttime" => (Function::CurrentTime, CqlType::Time),
            "uuid" => (Function::Uuid, CqlType::Uuid),
            "mintimeuuid" | "maxtimeuuid" => {
                arity(1)?;
                let function = if lower.starts_with("min") {
                    Function::MinTimeuuid
                } else {
                    Function::MaxTimeuuid
                };
                return Ok((function, CqlType::Timeuuid));
            }
            "totimestamp" | "dateof" | "todate" | "tounixtimestamp" | "unixtimestampof" => {
                arity(1)?;
                let source = source(TimeSource::Timeuuid)?;
                return Ok(match lower.as_str() {
                    "totimestamp" | "dateof" => (Function::ToTimestamp(source), CqlType::Timestamp),
                    "todate" => (Function::ToDate(source), CqlType::Date),
                    _ => (Function::ToUnixTimestamp(source), CqlType::Bigint),
                });
            }
            "tojson" => {
                let [ty] = args else {
                    return Err(CqlError::invalid("toJson() accepts 1 argument only"));
                };
                let ty = ty.clone().ok_or_else(|| {
                    CqlError::invalid("toJson() is only valid when its argument type is known")
                })?;
                return Ok((Function::ToJson(ty), CqlType::Text));
            }
            "fromjson" => {
                return Err(CqlError::invalid(if args.len() == 1 {
                    "fromJson() can only be called if receiver type is known"
                } else {
                    "fromJson() accepts 1 argument only"
                }));
            }
            _ => {
                let ty = if let Some(ty) = lower.strip_prefix("blobas").and_then(types::by_name) {
                    ty
                } else if lower
                    .strip_suffix("asblob")
                    .and_then(types::by_name)
                    .is_some()
                {
                    CqlType::Blob
                } else {
                    return Err(CqlError::invalid(format!("Unknown function '{lower}'")));
                };
                arity(1)?;
                return Ok((Function::Reinterpret(ty.clone()), ty));
            }
        };
        arity(0)?;
        Ok((function, result))
    }

    /// The type an argument is taken as when it does not tell itself (a literal or a marker).
    pub(crate) fn argument_hint(name: &str) -> Option<CqlType> {
        let lower = name.to_lowercase();
        match lower.as_str() {
            "mintimeuuid" | "maxtimeuuid" => Some(CqlType::Timestamp),
            "totimestamp" | "dateof" | "todate" | "tounixtimestamp" | "unixtimestampof" => {
                Some(CqlType::Timeuuid)
            }
            _ if lower.starts_with("blobas") => Some(CqlType::Blob),
            _ => lower.strip_suffix("asblob").and_then(types::by_name),
        }
    }

    /// Calls it; `now` in µs since the epoch.
    pub(crate) fn call(&self, args: &[Option<Bytes>], now: i64) -> Result<Option<Bytes>, CqlError> {
        let uuid = |id: Uuid| Some(Bytes::copy_from_slice(id.as_bytes()));
        let long = |value: i64| Some(Bytes::copy_from_slice(&value.to_be_bytes()));
        let date = |ms: i64| {
            let day = (ms.div_euclid(DAY_MS) + EPOCH_DAY) as u32;
            Some(Bytes::copy_from_slice(&day.to_be_bytes()))
        };
        let now_ms = now.div_euclid(1_000);
        match self {
            Function::Now => return Ok(uuid(random_timeuuid(now))),
            Function::CurrentTimestamp => return Ok(long(now_ms)),
            Function::CurrentDate => return Ok(date(now_ms)),
            Function::CurrentTime => return Ok(long(now.rem_euclid(DAY_MS * 1_000) * 1_000)),
            Function::Uuid => return Ok(uuid(Uuid::new_v4())),
            // A null is a value of theirs.
            Function::FromJson(ty) => {
                return json::from_json(ty, args.first().and_then(Option::as_ref));
            }
            Function::ToJson(ty) => {
                return json::to_json(ty, args.first().and_then(Option::as_ref));
            }
            Function::Token { is_log } => {
                let Some(components) = args.iter().cloned().collect::<Option<Vec<Bytes>>>() else {
                    return Ok(None);
                };
                return Ok(long(RingKey::of(*is_log, &components).token));
            }
            _ => {}
        }
        let Some(Some(arg)) = args.first() else {
            return Ok(None);
        };
        let time = |source: TimeSource| -> Result<i64, CqlError> {
            match source {
                TimeSource::Timestamp => types::bigint(arg),
                TimeSource::Timeuuid => types::timeuuid_micros(arg).map(|us| us.div_euclid(1_000)),
                TimeSource::Date => arg
                    .first_chunk::<4>()
                    .map(|b| (i64::from(u32::from_be_bytes(*b)) - EPOCH_DAY) * DAY_MS),
            }
            .ok_or_else(|| CqlError::invalid("Invalid value of a time"))
        };
        Ok(match self {
            // The least and the greatest low bytes, compared as signed bytes.
            Function::MinTimeuuid => uuid(timeuuid(
                ticks(time(TimeSource::Timestamp)?)?,
                0x8080_8080_8080_8080,
            )),
            Function::MaxTimeuuid => uuid(timeuuid(
                ticks(time(TimeSource::Timestamp)?)? + 9_999,
                0x7f7f_7f7f_7f7f_7f7f,
            )),
            Function::ToTimestamp(source) | Function::ToUnixTimestamp(source) => {
                long(time(*source)?)
            }
            Function::ToDate(source) => date(time(*source)?),
            Function::Reinterpret(ty) => {
                types::validate(ty, arg)?;
                Some(arg.clone())
            }
            Function::Cast(from, to) => Some(types::cast(from, to, arg)?),
            _ => None,
        })
    }
}

/// 100 ns steps of a time in ms.
fn ticks(ms: i64) -> Result<i64, CqlError> {
    /// What keeps 60-bit UUID times apart: a little over three thousand years.
    const LIMIT: i64 = 100_000_000_000_000;
    if !(-LIMIT..=LIMIT).contains(&ms) {
        return Err(CqlError::invalid(format!(
            "Timestamp is out of range for a timeuuid: {ms}"
        )));
    }
    Ok(ms * 10_000)
}
