//! Texts with parts of an event in them.

use penstock_plugin::{Error, bail};
use serde_json::Value;

use crate::{Event, pairs, text};

/// A text with placeholders; see the crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Part { part: Part, default: Option<String> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Topic,
    Key,
    Op,
    Keyspace,
    Table,
    Time,
    TimeUs,
    Column(String),
    Before(String),
    Header(String),
    Value(Vec<String>),
}

impl Part {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "topic" => Self::Topic,
            "key" => Self::Key,
            "op" => Self::Op,
            "keyspace" => Self::Keyspace,
            "table" => Self::Table,
            "time" => Self::Time,
            "time_us" => Self::TimeUs,
            "value" => Self::Value(Vec::new()),
            _ => {
                let (of, name) = text.split_once('.').filter(|(_, name)| !name.is_empty())?;
                match of {
                    "columns" => Self::Column(name.to_owned()),
                    "before" => Self::Before(name.to_owned()),
                    "headers" => Self::Header(name.to_owned()),
                    "value" => Self::Value(name.split('.').map(str::to_owned).collect()),
                    _ => return None,
                }
            }
        })
    }

    /// `None`: the event has no such part.
    fn of(&self, event: &Event<'_, '_>) -> Result<Option<String>, Error> {
        let change = event.change;
        let table = change.table();
        let plain = |value: Option<Value>| value.filter(|v| !v.is_null()).map(|v| text(&v));
        if event.is_record() {
            return Ok(match self {
                Self::Topic => Some(change.get::<&str>("topic")?.to_owned()),
                Self::Header(name) => {
                    let headers = event.headers()?;
                    let found = headers.iter().find(|(n, _)| n == name);
                    let bytes = found.and_then(|(_, value)| *value);
                    bytes
                        .map(|b| Ok::<_, Error>(std::str::from_utf8(b)?.to_owned()))
                        .transpose()?
                }
                Self::Value(path) if path.is_empty() => {
                    let value: Option<&[u8]> = change.find("value")?;
                    value
                        .map(|b| Ok::<_, Error>(std::str::from_utf8(b)?.to_owned()))
                        .transpose()?
                }
                Self::Value(path) => {
                    let mut at = event.json()?;
                    for step in path {
                        at = match at {
                            Some(Value::Array(all)) => {
                                step.parse().ok().and_then(|i: usize| all.get(i))
                            }
                            at => at.and_then(|value| value.get(step)),
                        };
                    }
                    plain(at.cloned())
                }
                Self::Key => event.key()?,
                Self::Time => Some(event.time()?),
                Self::TimeUs => Some(change.time_us().to_string()),
                Self::Op | Self::Keyspace | Self::Table | Self::Column(_) | Self::Before(_) => None,
            });
        }
        Ok(match self {
            Self::Op => Some(change.operation().name().to_owned()),
            Self::Keyspace => Some(table.keyspace.clone()),
            Self::Table => Some(table.name.clone()),
            Self::Key => event.key()?,
            Self::Time => Some(event.time()?),
            Self::TimeUs => Some(change.time_us().to_string()),
            Self::Column(name) | Self::Before(name) => {
                let image = match self {
                    Self::Before(_) => change.preimage(),
                    _ => change.postimage(),
                };
                let column = table.columns.iter().find(|c| c.name == *name);
                match (column, image, self) {
                    (None, ..) | (_, None, Self::Before(_)) => None,
                    (Some(column), Some(image), _) => plain(crate::value(&image, column)?),
                    (Some(column), None, _) => plain(crate::value(change, column)?),
                }
            }
            Self::Topic | Self::Header(_) | Self::Value(_) => None,
        })
    }
}

impl Template {
    /// Reads the text of a setting.
    ///
    /// # Errors
    /// A placeholder that there is not, or a brace without the other one.
    pub fn parse(setting: &str, text: &str) -> Result<Self, Error> {
        let (mut pieces, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(more) = rest.strip_prefix(brace) {
                plain.push_str(brace);
                rest = more;
                continue;
            }
            let Some((inside, more)) = rest.split_once('}').filter(|_| brace == "{") else {
                bail!("setting `{setting}` = {text:?}: a brace stands alone; `{{{{` is one");
            };
            rest = more;
            let (name, default) = match inside.split_once('|') {
                Some((name, default)) => (name, Some(default.to_owned())),
                None => (inside, None),
            };
            let Some(part) = Part::parse(name.trim()) else {
                bail!(
                    "setting `{setting}` = {text:?}: there is no `{{{name}}}`: there are {{topic}}, {{key}}, {{op}}, {{keyspace}}, \
                     {{table}}, {{time}}, {{time_us}}, {{columns.…}}, {{before.…}}, {{headers.…}} and {{value.…}}"
                );
            };
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(Piece::Part { part, default });
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self(pieces))
    }

    /// The text, filled in.
    ///
    /// # Errors
    /// The event lacks a part that has no default.
    pub fn fill(&self, event: &Event<'_, '_>) -> Result<String, Error> {
        let mut filled = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Part { part, default } => match (part.of(event)?, default) {
                    (Some(text), _) => filled.push_str(&text),
                    (None, Some(default)) => filled.push_str(default),
                    (None, None) => bail!("it has no {}", part.name()),
                },
            }
        }
        Ok(filled)
    }
}

impl Part {
    fn name(&self) -> String {
        let (of, name) = match self {
            Self::Topic => return "topic".to_owned(),
            Self::Key => return "key".to_owned(),
            Self::Op => return "op".to_owned(),
            Self::Keyspace => return "keyspace".to_owned(),
            Self::Table => return "table".to_owned(),
            Self::Time => return "time".to_owned(),
            Self::TimeUs => return "time_us".to_owned(),
            Self::Column(name) => ("columns", name.clone()),
            Self::Before(name) => ("before", name.clone()),
            Self::Header(name) => ("headers", name.clone()),
            Self::Value(path) if path.is_empty() => return "value".to_owned(),
            Self::Value(path) => ("value", path.join(".")),
        };
        format!("`{of}.{name}`")
    }
}

/// A setting of type table whose texts are templates.
pub fn templates(name: &str, setting: Option<&str>) -> Result<Vec<(String, Template)>, Error> {
    pairs(name, setting)?
        .into_iter()
        .map(|(key, text)| Ok((key, Template::parse(name, &text)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_template_is_said() {
        let wrong = |text| Template::parse("key", text).unwrap_err().to_string();
        assert!(wrong("a{b").contains("a brace stands alone"));
        assert!(wrong("a}b").contains("a brace stands alone"));
        assert!(wrong("{colums.id}").contains("there is no `{colums.id}`"));
        let Template(pieces) = Template::parse("key", "{{x}}-{ key }{headers.a|none}").unwrap();
        let part = |part, default: Option<&str>| Piece::Part {
            part,
            default: default.map(str::to_owned),
        };
        assert_eq!(
            pieces,
            [
                Piece::Text("{x}-".to_owned()),
                part(Part::Key, None),
                part(Part::Header("a".to_owned()), Some("none")),
            ]
        );
    }
}
