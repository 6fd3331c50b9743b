//! What a key of pipeline.toml is: what it holds, its default, what a change of it does, and what it is for; and how
//! a value is checked against that. The keys themselves stand in [`super::sections`], a row each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use figment::value::{Num, Value};

use super::rules::{Rule, node, nonempty};
use super::value::{Nodes, StartFrom};
use crate::policy::rate;

/// What applying a changed value takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadClass {
    /// The next use sees it; nothing is drained or reset.
    Live,
    /// A new plugin instance is built aside and takes over at a batch boundary.
    Swap,
    /// What the table names is drained, committed and rebuilt from its checkpoint.
    Rebuild,
    /// Needs a restart.
    Refused,
}

impl std::fmt::Display for ReloadClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            ReloadClass::Live => "live",
            ReloadClass::Swap => "swap",
            ReloadClass::Rebuild => "rebuild",
            ReloadClass::Refused => "refused",
        })
    }
}

/// What a key holds.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`
    Bool,
    /// A whole number in an inclusive range.
    Int(u64, u64),
    /// A finite number in an inclusive range.
    Float(f64, f64),
    /// A duration such as `"30s"`, in an inclusive range of milliseconds.
    Duration(u64, u64),
    /// As a duration, or `"off"`, which is none at all.
    DurationOrOff(u64, u64),
    /// A size such as `"64MiB"`, in an inclusive range of bytes.
    Size(u64, u64),
    /// `"5000/s"`, `{ per_second, burst }` or `"off"`.
    Rate,
    /// `"earliest"`, `"latest"` or an RFC 3339 time.
    StartFrom,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A string that keeps a rule.
    Text(Rule),
    /// A string that may only come from the environment or a `…_file`.
    Secret,
    /// A path, relative to the folder of the file that names it.
    Path,
    /// The path of a text that is read with the configuration, likewise relative.
    File,
    /// `ip:port`
    Address,
    /// A list of `host:port`, or `"embedded"`.
    Nodes,
    /// A list of distinct strings that keep a rule.
    List(Rule),
    /// A list of some of these words, or of none.
    Words(&'static [&'static str]),
    /// Names with scalar values, handed on as strings.
    Properties,
    /// Any table, handed on as strings (JSON for what is not one).
    Table,
}

/// Where a key's value comes from when nobody sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// It must be set.
    Required,
    /// It may be absent; the documentation says what that means.
    Absent,
    /// A TOML value.
    Value(&'static str),
    /// The key of the same name under `[policies]`.
    Policies,
}

/// One key.
#[derive(Clone, Debug)]
pub struct Key {
    /// Dotted; `*` stands for a transform's name.
    pub path: String,
    /// What it holds.
    pub kind: Kind,
    /// Its default.
    pub fallback: Fallback,
    /// What a change of it does.
    pub class: ReloadClass,
    /// What it is for.
    pub doc: &'static str,
    /// A TOML value that is legal here.
    pub example: &'static str,
}

/// The longest that a duration may be, in milliseconds: a day.
pub(super) const DAY: u64 = 86_400_000;

/// How many of something: from 1 on.
pub(super) const COUNT: Kind = Kind::Int(1, u32::MAX as u64);

/// A decoded value.
#[derive(Clone, Debug, PartialEq)]
pub enum Leaf {
    /// `true` or `false`
    Bool(bool),
    /// A number or a size in bytes.
    Int(u64),
    /// A finite number.
    Float(f64),
    /// A duration.
    Duration(Duration),
    /// A rate; `None`: off.
    Rate(Option<rate::Settings>),
    /// Where to start.
    StartFrom(StartFrom),
    /// A word, a name, a path.
    Text(String),
    /// `ip:port`
    Address(SocketAddr),
    /// A list of `host:port` or `embedded`.
    Nodes(Nodes),
    /// Distinct strings.
    List(Vec<String>),
    /// Names and values.
    Map(BTreeMap<String, String>),
}

/// Why a value is refused.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// It is of another type.
    Type,
    /// It is a number out of range.
    Range,
    /// It does not read as what it should be.
    Malformed,
    /// None of the words.
    Choice,
    /// It breaks a rule, which says what would do.
    Rule(String),
    /// An empty list.
    Empty,
    /// The element of the list that is there already.
    Twice(usize),
    /// The fault is in this element or key.
    In(Step, Box<Fault>),
    /// Each of these.
    Several(Vec<Fault>),
}

/// One step down into a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// An element of a list.
    Index(usize),
    /// A key of a table.
    Key(String),
}

impl Kind {
    /// What would do, for messages.
    pub fn expected(&self) -> String {
        match *self {
            Kind::Bool => "true or false".into(),
            Kind::Int(min, max) => format!("a whole number from {min} to {max}"),
            Kind::Float(min, max) => format!("a number from {min} to {max}"),
            Kind::Duration(min, max) => format!(
                "a duration from {} to {}, such as \"30s\" or \"100ms\"",
                humantime::format_duration(Duration::from_millis(min)),
                humantime::format_duration(Duration::from_millis(max)),
            ),
            Kind::DurationOrOff(min, max) => {
                format!("{}, or \"off\"", Kind::Duration(min, max).expected())
            }
            Kind::Size(min, max) => format!(
                "a size from {} to {}, such as \"64MiB\"",
                show_size(min),
                show_size(max)
            ),
            Kind::Rate => {
                "a rate such as \"5000/s\", { per_second = 5000, burst = 10000 }, or \"off\"".into()
            }
            Kind::StartFrom => {
                "\"earliest\", \"latest\" or an RFC 3339 time such as \"2026-01-31T08:00:00Z\""
                    .into()
            }
            Kind::Choice(words) => one_of(words),
            Kind::Text(_) => "a string".into(),
            Kind::Secret => "a string".into(),
            Kind::Path | Kind::File => "a path".into(),
            Kind::Address => "an address such as \"127.0.0.1:9180\"".into(),
            Kind::Nodes => "a list such as [\"host:9042\"], or \"embedded\"".into(),
            Kind::List(_) => "a list of strings".into(),
            Kind::Words(words) => format!("a list of {}", one_of(words)),
            Kind::Properties => "a table of strings, numbers and booleans".into(),
            Kind::Table => "a table".into(),
        }
    }

    /// Whether a value from the environment or a flag is taken as it stands instead of as TOML.
    pub fn is_text(&self) -> bool {
        !matches!(
            self,
            Kind::Bool
                | Kind::Int(..)
                | Kind::Float(..)
                | Kind::Rate
                | Kind::Nodes
                | Kind::List(_)
                | Kind::Words(_)
                | Kind::Properties
                | Kind::Table
        )
    }

    /// Decodes a value, or says what is wrong with it.
    pub fn decode(&self, value: &Value) -> Result<Leaf, Fault> {
        let text = || value.as_str().ok_or(Fault::Type);
        match *self {
            Kind::Bool => value.to_bool().map(Leaf::Bool).ok_or(Fault::Type),
            Kind::Int(min, max) => {
                let n = whole(value)?;
                if n < i128::from(min) || n > i128::from(max) {
                    return Err(Fault::Range);
                }
                u64::try_from(n).map(Leaf::Int).map_err(|_| Fault::Range)
            }
            Kind::Float(min, max) => {
                let n = value.to_num().and_then(float).ok_or(Fault::Type)?;
                if n.is_finite() && n >= min && n <= max {
                    Ok(Leaf::Float(n))
                } else {
                    Err(Fault::Range)
                }
            }
            Kind::Duration(min, max) => {
                let d = humantime::parse_duration(text()?.trim()).map_err(|_| Fault::Malformed)?;
                if d < Duration::from_millis(min) || d > Duration::from_millis(max) {
                    return Err(Fault::Range);
                }
                Ok(Leaf::Duration(d))
            }
            Kind::DurationOrOff(min, max) => match text()?.trim() {
                "off" => Ok(Leaf::Duration(Duration::ZERO)),
                _ => Kind::Duration(min, max).decode(value),
            },
            Kind::Size(min, max) => {
                let n = match value.as_str() {
                    Some(text) => i128::from(parse_size(text).ok_or(Fault::Malformed)?),
                    None => whole(value)?,
                };
                if n < i128::from(min) || n > i128::from(max) {
                    return Err(Fault::Range);
                }
                u64::try_from(n).map(Leaf::Int).map_err(|_| Fault::Range)
            }
            Kind::Rate => decode_rate(value).map(Leaf::Rate),
            Kind::StartFrom => Ok(Leaf::StartFrom(match text()? {
                "earliest" => StartFrom::Earliest,
                "latest" => StartFrom::Latest,
                time => StartFrom::At(
                    time.parse::<jiff::Timestamp>()
                        .map_err(|_| Fault::Malformed)?
                        .as_microsecond(),
                ),
            })),
            Kind::Choice(words) => {
                let word = text()?;
                if words.contains(&word) {
                    Ok(Leaf::Text(word.to_owned()))
                } else {
                    Err(Fault::Choice)
                }
            }
            Kind::Text(rule) => {
                let text = text()?;
                rule(text).map_err(Fault::Rule)?;
                Ok(Leaf::Text(text.to_owned()))
            }
            Kind::Secret => {
                let text = text()?;
                nonempty(text).map_err(Fault::Rule)?;
                Ok(Leaf::Text(text.to_owned()))
            }
            Kind::Path | Kind::File => {
                let text = text()?;
                nonempty(text).map_err(Fault::Rule)?;
                if text.contains('\0') {
                    return Err(Fault::Rule("a path holds no NUL".into()));
                }
                Ok(Leaf::Text(text.to_owned()))
            }
            Kind::Address => text()?
                .parse()
                .map(Leaf::Address)
                .map_err(|_| Fault::Malformed),
            Kind::Nodes => match value.as_str() {
                Some("embedded") => Ok(Leaf::Nodes(Nodes::Embedded)),
                Some(_) => Err(Fault::Malformed),
                None => list(value, &|text| node(text).map_err(Fault::Rule))
                    .map(|l| Leaf::Nodes(Nodes::At(l))),
            },
            Kind::List(rule) => {
                list(value, &|text| rule(text).map_err(Fault::Rule)).map(Leaf::List)
            }
            Kind::Words(words) => {
                let known = |text: &str| match words.contains(&text) {
                    true => Ok(()),
                    false => Err(Fault::Choice),
                };
                match list(value, &known) {
                    Err(Fault::Empty) => Ok(Leaf::List(Vec::new())),
                    words => words.map(Leaf::List),
                }
            }
            Kind::Properties => {
                let mut out = BTreeMap::new();
                for (key, value) in value.as_dict().ok_or(Fault::Type)? {
                    let text = scalar(value)
                        .ok_or_else(|| Fault::In(Step::Key(key.clone()), Fault::Type.into()))?;
                    out.insert(key.clone(), text);
                }
                Ok(Leaf::Map(out))
            }
            Kind::Table => {
                let dict = value.as_dict().ok_or(Fault::Type)?;
                Ok(Leaf::Map(
                    dict.iter()
                        .map(|(key, value)| {
                            let text = match value {
                                Value::String(_, s) => s.clone(),
                                other => json(other).to_string(),
                            };
                            (key.clone(), text)
                        })
                        .collect(),
                ))
            }
        }
    }
}

fn whole(value: &Value) -> Result<i128, Fault> {
    let num = value.to_num().ok_or(Fault::Type)?;
    match num {
        Num::F64(_) | Num::F32(_) => Err(Fault::Type),
        other => other
            .to_i128()
            .or_else(|| other.to_u128().and_then(|n| i128::try_from(n).ok()))
            .ok_or(Fault::Range),
    }
}

fn float(num: Num) -> Option<f64> {
    num.to_f64()
        .or_else(|| num.to_i128().map(|n| n as f64))
        .or_else(|| num.to_u128().map(|n| n as f64))
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(_, s) => Some(s.clone()),
        Value::Bool(_, b) => Some(b.to_string()),
        Value::Num(_, n) => Some(number(n)),
        _ => None,
    }
}

fn number(num: &Num) -> String {
    match num {
        Num::F64(_) | Num::F32(_) => num.to_f64().unwrap_or(f64::NAN).to_string(),
        other => other
            .to_i128()
            .map(|n| n.to_string())
            .unwrap_or_else(|| other.to_u128().unwrap_or_default().to_string()),
    }
}

fn decode_rate(value: &Value) -> Result<Option<rate::Settings>, Fault> {
    let count = |n: u64| {
        u32::try_from(n)
            .ok()
            .and_then(NonZeroU32::new)
            .ok_or(Fault::Range)
    };
    if let Some(text) = value.as_str() {
        let text = text.trim();
        if text == "off" {
            return Ok(None);
        }
        let n = text.strip_suffix("/s").ok_or(Fault::Malformed)?;
        let per_second = count(n.trim().parse().map_err(|_| Fault::Malformed)?)?;
        return Ok(Some(rate::Settings {
            per_second,
            burst: per_second,
        }));
    }
    let dict = value.as_dict().ok_or(Fault::Type)?;
    let field = |name: &str| {
        let at = |fault| Fault::In(Step::Key(name.to_owned()), Box::new(fault));
        dict.get(name)
            .map(|v| {
                let n = whole(v).map_err(at)?;
                count(u64::try_from(n).map_err(|_| at(Fault::Range))?).map_err(at)
            })
            .transpose()
    };
    let (per_second, burst) = (field("per_second")?, field("burst")?);
    if let Some(other) = dict.keys().find(|k| *k != "per_second" && *k != "burst") {
        let fault = Fault::Rule("only per_second and burst stand here".into());
        return Err(Fault::In(Step::Key(other.clone()), fault.into()));
    }
    let per_second = per_second.ok_or(Fault::Malformed)?;
    Ok(Some(rate::Settings {
        per_second,
        burst: burst.unwrap_or(per_second),
    }))
}

fn list(value: &Value, legal: &dyn Fn(&str) -> Result<(), Fault>) -> Result<Vec<String>, Fault> {
    let array = value.as_array().ok_or(Fault::Type)?;
    if array.is_empty() {
        return Err(Fault::Empty);
    }
    let mut faults = Vec::new();
    let mut out: Vec<String> = Vec::with_capacity(array.len());
    for (i, element) in array.iter().enumerate() {
        let legal = element.as_str().ok_or(Fault::Type).and_then(|text| {
            legal(text)?;
            // Whether it is there already: faults before it are in nobody's way.
            let first = array[..i].iter().position(|e| e.as_str() == Some(text));
            first.map_or(Ok(text), |first| Err(Fault::Twice(first)))
        });
        match legal {
            Ok(text) => out.push(text.to_owned()),
            Err(fault) => faults.push(Fault::In(Step::Index(i), Box::new(fault))),
        }
    }
    match faults.len() {
        0 => Ok(out),
        1 => Err(faults.remove(0)),
        _ => Err(Fault::Several(faults)),
    }
}

/// Bytes of `"64MiB"`, `"1.5 GiB"`, `"1000kB"`, `"4096"`.
fn parse_size(text: &str) -> Option<u64> {
    // Not all that the crate takes: a size is a number and, perhaps, a unit.
    text.trim()
        .parse::<bytesize::ByteSize>()
        .ok()
        .map(|s| s.as_u64())
}

/// A value as JSON; what JSON has no number for becomes null.
pub(super) fn json(value: &Value) -> serde_json::Value {
    use serde_json::Value as J;
    match value {
        Value::String(_, s) => J::String(s.clone()),
        Value::Char(_, c) => J::String(c.to_string()),
        Value::Bool(_, b) => J::Bool(*b),
        Value::Num(_, n) => whole(value)
            .ok()
            .and_then(|n| i64::try_from(n).ok())
            .map(J::from)
            .or_else(|| n.to_f64().map(J::from))
            .unwrap_or(J::Null),
        Value::Empty(..) => J::Null,
        Value::Dict(_, d) => J::Object(d.iter().map(|(k, v)| (k.clone(), json(v))).collect()),
        Value::Array(_, a) => J::Array(a.iter().map(json).collect()),
    }
}

/// A value as it would stand in the file, cut to what fits a message.
pub(super) fn show(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = match value {
        Value::String(_, s) => format!("{s:?}"),
        Value::Char(_, c) => format!("{c:?}"),
        Value::Num(_, n) => number(n),
        Value::Bool(_, b) => b.to_string(),
        Value::Dict(..) => "a table".into(),
        Value::Array(_, a) if a.is_empty() => "an empty list".into(),
        Value::Array(..) => "a list".into(),
        Value::Empty(..) => "nothing".into(),
    };
    if text.chars().count() <= LONGEST {
        text
    } else {
        text.chars().take(LONGEST).chain(['…']).collect()
    }
}

/// A size in the largest binary unit that divides it.
pub(super) fn show_size(bytes: u64) -> String {
    [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift)
        .map_or_else(
            || format!("{bytes}B"),
            |(shift, unit)| format!("{}{unit}", bytes >> shift),
        )
}

/// `"a", "b" or "c"`
pub(super) fn one_of(words: &[&str]) -> String {
    match words {
        [] => "nothing".into(),
        [one] => format!("{one:?}"),
        [rest @ .., last] => {
            let rest: Vec<String> = rest.iter().map(|w| format!("{w:?}")).collect();
            format!("{} or {last:?}", rest.join(", "))
        }
    }
}
