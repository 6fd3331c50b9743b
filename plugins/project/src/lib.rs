//! Chooses, renames, casts, nests and flattens the fields of rows and of records. See docs/plugins/project.md.

mod decimal;

use penstock_plugin::{
    About, Change, Error, Field, Interest, Output, Setting, Settings, Table, Transform, bail,
};
use penstock_plugin_events::{Event, Row, Template, pairs, text};
use serde_json::{Map, Value};

use decimal::Decimal;

type Path = Vec<String>;

struct Project {
    keep: Vec<Path>,
    drop: Vec<Path>,
    rename: Vec<(Path, Path)>,
    cast: Vec<(Path, Cast)>,
    flatten: Option<String>,
    topic: Template,
    topics: Vec<String>,
    other_values_pass: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cast {
    Text,
    Integer,
    Number,
    Boolean,
    Json,
}

impl Cast {
    const WORDS: [(&str, Self); 5] = [
        ("text", Self::Text),
        ("integer", Self::Integer),
        ("number", Self::Number),
        ("boolean", Self::Boolean),
        ("json", Self::Json),
    ];

    fn word(self) -> &'static str {
        let found = Self::WORDS.iter().find(|(_, cast)| *cast == self);
        found.map_or("value", |(word, _)| word)
    }
}

impl Transform for Project {
    fn about() -> About {
        About::new("Chooses, renames, casts, nests and flattens the fields of rows and of records.")
            .setting(Setting::texts("keep").doc("the only fields that stay, e.g. [\"id\", \"customer.name\"]; all, if it is not set"))
            .setting(Setting::texts("drop").doc("fields that are taken out"))
            .setting(Setting::table("rename").doc("fields and their new places, e.g. { street = \"address.street\" }, which nests it"))
            .setting(Setting::table("cast").doc("fields and what they become: text, integer, number, boolean, json (a text that holds some)"))
            .setting(Setting::text("flatten").doc("what stands between names where objects within objects become fields of one, e.g. \"_\""))
            .setting(Setting::text("topic").default("{keyspace}.{table}").doc("where the record of a change goes; records keep their own"))
            .setting(Setting::texts("topics").doc("the records' topics; the others pass by; all if it is not set"))
            .setting(Setting::choice("not_json", &["error", "pass"]).default("error").doc("a record's value that is no JSON object"))
    }

    fn configure(settings: &Settings) -> Result<Self, Error> {
        let paths = |key: &str| -> Result<Vec<Path>, Error> {
            settings
                .texts(key)?
                .iter()
                .map(|field| path(key, field))
                .collect()
        };
        if settings.get("flatten") == Some("") {
            bail!("setting `flatten` = \"\": names would run into each other; `_` would do");
        }
        let rename = pairs("rename", settings.get("rename"))?;
        let rename = rename
            .iter()
            .map(|(from, to)| Ok((path("rename", from)?, path("rename", to)?)));
        let cast = pairs("cast", settings.get("cast"))?;
        let cast = cast.iter().map(|(field, to)| {
            let found = Cast::WORDS.iter().find(|(word, _)| word == to);
            let Some((_, cast)) = found else {
                let words = Cast::WORDS.map(|(word, _)| word).join(", ");
                bail!("setting `cast`: {field:?} = {to:?}: expected one of {words}");
            };
            Ok((path("cast", field)?, *cast))
        });
        Ok(Self {
            keep: paths("keep")?,
            drop: paths("drop")?,
            rename: rename.collect::<Result<_, Error>>()?,
            cast: cast.collect::<Result<_, Error>>()?,
            flatten: settings.get("flatten").map(str::to_owned),
            topic: Template::parse(
                "topic",
                settings.get("topic").unwrap_or("{keyspace}.{table}"),
            )?,
            topics: settings.texts("topics")?,
            other_values_pass: settings.get("not_json") == Some("pass"),
        })
    }

    fn interest(&mut self, _: &Table) -> Result<Interest, Error> {
        Ok(Interest::All)
    }

    fn process(&mut self, change: &Change<'_>, out: &mut Output) -> Result<(), Error> {
        let event = Event::of(change);
        if !event.is_record() {
            let topic = self.topic.fill(&event)?;
            let value = match event.row()? {
                Row::There(row) => Some(self.project(row)?),
                Row::Gone => None,
            };
            let record = event.put_key(out.record(&topic))?;
            record.value(value.as_deref());
            return Ok(());
        }
        let topic: &str = change.get("topic")?;
        let skipped = !self.topics.is_empty() && !self.topics.iter().any(|t| t == topic);
        if skipped || change.is_null("value") {
            out.forward(change);
            return Ok(());
        }
        let value = match event.json()? {
            Some(Value::Object(fields)) => self.project(fields.clone())?,
            _ if self.other_values_pass => {
                out.forward(change);
                return Ok(());
            }
            _ => bail!("the value is no JSON object, so it has no fields: see `not_json`"),
        };
        let mut record = event.put_key(out.record(topic))?.value(&value);
        for (name, value) in event.headers()? {
            record = match value {
                Some(bytes) => record.header(name, bytes),
                None => record.header(name, Field::Null),
            };
        }
        Ok(())
    }
}

fn path(key: &str, field: &str) -> Result<Path, Error> {
    let path: Path = field.split('.').map(str::to_owned).collect();
    if path.iter().any(String::is_empty) {
        bail!("setting `{key}`: {field:?}: expected names with dots between them");
    }
    Ok(path)
}

impl Project {
    fn project(&self, mut fields: Map<String, Value>) -> Result<String, Error> {
        if !self.keep.is_empty() {
            let mut kept = Map::new();
            for path in &self.keep {
                if let Some(value) = take(&mut fields, path) {
                    put(&mut kept, path, value)?;
                }
            }
            fields = kept;
        }
        for path in &self.drop {
            take(&mut fields, path);
        }
        // All are taken before the first is put, so that two may change places.
        let moved: Vec<_> = self
            .rename
            .iter()
            .filter_map(|(from, to)| Some((to, take(&mut fields, from)?)))
            .collect();
        for (to, value) in moved {
            put(&mut fields, to, value)?;
        }
        for (path, to) in &self.cast {
            if let Some(value) = find(&mut fields, path) {
                let new = cast(value, *to).ok_or_else(|| {
                    Error::new(format!(
                        "field `{}` is {value}, which is no {}",
                        path.join("."),
                        to.word()
                    ))
                })?;
                *value = new;
            }
        }
        if let Some(between) = &self.flatten {
            let mut flat = Map::new();
            flatten(fields, "", between, &mut flat)?;
            fields = flat;
        }
        Ok(Value::Object(fields).to_string())
    }
}

fn take(fields: &mut Map<String, Value>, path: &[String]) -> Option<Value> {
    match path {
        [] => None,
        [last] => fields.remove(last),
        [first, rest @ ..] => take(fields.get_mut(first)?.as_object_mut()?, rest),
    }
}

fn find<'f>(fields: &'f mut Map<String, Value>, path: &[String]) -> Option<&'f mut Value> {
    match path {
        [] => None,
        [last] => fields.get_mut(last),
        [first, rest @ ..] => find(fields.get_mut(first)?.as_object_mut()?, rest),
    }
}

fn put(fields: &mut Map<String, Value>, path: &[String], value: Value) -> Result<(), Error> {
    let (first, rest) = match path {
        [] => return Ok(()),
        [last] => {
            if fields.insert(last.clone(), value).is_some() {
                bail!("there is a field `{last}` already");
            }
            return Ok(());
        }
        [first, rest @ ..] => (first, rest),
    };
    let inner = fields
        .entry(first.clone())
        .or_insert_with(|| Value::Object(Map::new()));
    match inner {
        Value::Object(inner) => put(inner, rest, value),
        _ => bail!("field `{first}` is no object, so nothing can be put into it"),
    }
}

/// Null says nothing, so it stays. `None`: the value is nothing of the kind.
fn cast(value: &Value, to: Cast) -> Option<Value> {
    if value.is_null() {
        return Some(Value::Null);
    }
    let number = || match value {
        Value::Bool(b) => Decimal::parse(if *b { "1" } else { "0" }),
        Value::String(_) | Value::Number(_) => Decimal::parse(text(value).trim()),
        _ => None,
    };
    Some(match to {
        Cast::Text => text(value).into(),
        Cast::Json => match value {
            Value::String(text) => serde_json::from_str(text).ok()?,
            other => other.clone(),
        },
        Cast::Boolean => match value {
            Value::Bool(b) => (*b).into(),
            Value::String(text) => text.trim().parse::<bool>().ok()?.into(),
            _ => (!number()?.is_zero()).into(),
        },
        Cast::Integer => serde_json::from_str(&number()?.integer()?).ok()?,
        Cast::Number => serde_json::from_str(&number()?.number()).ok()?,
    })
}

fn flatten(
    fields: Map<String, Value>,
    before: &str,
    between: &str,
    flat: &mut Map<String, Value>,
) -> Result<(), Error> {
    for (name, value) in fields {
        let name = format!("{before}{name}");
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                flatten(inner, &format!("{name}{between}"), between, flat)?;
            }
            value => {
                if flat.insert(name.clone(), value).is_some() {
                    bail!("two fields are called `{name}` when flat");
                }
            }
        }
    }
    Ok(())
}

penstock_plugin::export_plugin!(Project);
