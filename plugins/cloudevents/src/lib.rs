//! Writes events as CloudEvents 1.0, binary or structured, as the binding to Kafka has it
//! (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md>). See
//! docs/plugins/cloudevents.md.

use penstock_plugin::{
    About, Change, Error, Field, Interest, Output, Setting, Settings, Table, Transform, bail,
};
use penstock_plugin_events::{Event, Row, Template, templates};
use serde_json::{Map, Value};

struct CloudEvents {
    structured: bool,
    id: Template,
    source: Template,
    kind: Template,
    subject: Template,
    topic: Template,
    /// The source differs from event to event, so it is looked at in each.
    source_varies: bool,
    extensions: Vec<(String, Template)>,
    content_type: String,
    /// Of changes, where the settings say nothing.
    of_changes: (Option<Template>, Option<Template>),
}

/// What a record that the outbox router made has.
const RECORD_ID: &str = "{headers.event-id}";
const RECORD_TYPE: &str = "{headers.event-type|record}";
/// What tells a change from all others, but for two that one write made of one row (with and without a TTL).
const CHANGE_ID: &str = "{keyspace}.{table}:{key}:{time_us}:{op}";
const CHANGE_TYPE: &str = "{keyspace}.{table}.{op}";

impl Transform for CloudEvents {
    fn about() -> About {
        About::new("Writes events as CloudEvents 1.0, binary or structured.")
            .setting(Setting::choice("mode", &["binary", "structured"]).default("binary").doc("attributes in headers and the value as it is, or all of it in one JSON object"))
            .setting(Setting::text("id").doc("`{headers.event-id}` of a record and table, key, time and operation of a change, if it is not set"))
            .setting(Setting::text("source").default("/penstock").doc("where events come from, a URI reference"))
            .setting(Setting::text("type").doc("`{headers.event-type|record}` of a record and `{keyspace}.{table}.{op}` of a change, if it is not set"))
            .setting(Setting::text("subject").default("{key|}").doc("left out where it comes out empty"))
            .setting(Setting::text("topic").default("{keyspace}.{table}").doc("where the record of a change goes; records keep their own"))
            .setting(Setting::table("extensions").doc("more attributes, e.g. { traceparent = \"{headers.traceparent|}\" }; one that comes out empty is left out"))
            .setting(Setting::text("data_content_type").default("application/json").doc("what the value is"))
    }

    fn configure(settings: &Settings) -> Result<Self, Error> {
        let template = |name: &str, default: &str| {
            Template::parse(name, settings.get(name).unwrap_or(default))
        };
        let of_changes = |name: &str, default: &str| match settings.get(name) {
            Some(_) => Ok(None),
            None => Template::parse(name, default).map(Some),
        };
        let extensions = templates("extensions", settings.get("extensions"))?;
        for (name, _) in &extensions {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            if name.is_empty() || name.len() > 20 || !name.chars().all(plain) {
                bail!(
                    "setting `extensions`: {name:?}: an attribute has up to 20 lower-case letters and digits"
                );
            }
            if [
                "id",
                "source",
                "type",
                "subject",
                "time",
                "specversion",
                "data",
                "datacontenttype",
            ]
            .contains(&name.as_str())
            {
                bail!("setting `extensions`: {name:?} is an attribute of its own");
            }
        }
        let source = settings.get("source").unwrap_or("/penstock");
        let source_varies = source.contains('{');
        if !source_varies && !is_uri_reference(source) {
            bail!("setting `source` = {source:?}: {NO_URI}");
        }
        Ok(Self {
            source_varies,
            structured: settings.get("mode") == Some("structured"),
            id: template("id", RECORD_ID)?,
            source: template("source", "/penstock")?,
            kind: template("type", RECORD_TYPE)?,
            subject: template("subject", "{key|}")?,
            topic: template("topic", "{keyspace}.{table}")?,
            extensions,
            content_type: settings
                .get("data_content_type")
                .unwrap_or("application/json")
                .to_owned(),
            of_changes: (
                of_changes("id", CHANGE_ID)?,
                of_changes("type", CHANGE_TYPE)?,
            ),
        })
    }

    fn interest(&mut self, _: &Table) -> Result<Interest, Error> {
        Ok(Interest::All)
    }

    fn process(&mut self, change: &Change<'_>, out: &mut Output) -> Result<(), Error> {
        let event = Event::of(change);
        let record = event.is_record();
        let own = |of_records: &Template, of_changes: &Option<Template>| match of_changes {
            Some(template) if !record => template.fill(&event),
            _ => of_records.fill(&event),
        };
        let mut attributes = vec![
            ("specversion", "1.0".to_owned()),
            ("id", own(&self.id, &self.of_changes.0)?),
            ("source", self.source.fill(&event)?),
            ("type", own(&self.kind, &self.of_changes.1)?),
            ("time", event.time()?),
            ("subject", self.subject.fill(&event)?),
        ];
        for (name, template) in &self.extensions {
            attributes.push((name, template.fill(&event)?));
        }
        for (name, value) in &attributes[..4] {
            if value.is_empty() {
                bail!("the attribute `{name}` is empty, and an event has to have it");
            }
        }
        if self.source_varies
            && let Some((_, source)) = attributes.iter().find(|(name, _)| *name == "source")
            && !is_uri_reference(source)
        {
            bail!("the attribute `source` is {source:?}: {NO_URI}");
        }
        attributes.retain(|(_, value)| !value.is_empty());
        let topic = match record {
            true => change.get::<&str>("topic")?.to_owned(),
            false => self.topic.fill(&event)?,
        };
        let written = event.put_key(out.record(&topic))?;
        let mut written = if self.structured && record && change.find::<&[u8]>("value")?.is_none() {
            // A compacted topic forgets a key by a record without a value, and by no event that says so.
            written
        } else if self.structured {
            let value = self.structured(&event, change, attributes)?;
            let kind = "application/cloudevents+json; charset=UTF-8";
            written.value(&value).header("content-type", kind)
        } else {
            let mut written = event
                .put_value(written)?
                .header("content-type", &self.content_type);
            for (name, value) in &attributes {
                written = written.header(&format!("ce_{name}"), value);
            }
            written
        };
        if record {
            for (name, value) in event.headers()? {
                if name.starts_with("ce_") || name == "content-type" {
                    continue;
                }
                written = match value {
                    Some(bytes) => written.header(name, bytes),
                    None => written.header(name, Field::Null),
                };
            }
        }
        Ok(())
    }
}

impl CloudEvents {
    fn structured(
        &self,
        event: &Event<'_, '_>,
        change: &Change<'_>,
        attributes: Vec<(&str, String)>,
    ) -> Result<String, Error> {
        let mut all = Map::new();
        for (name, value) in attributes {
            all.insert(name.to_owned(), value.into());
        }
        let mut data = |name: &str, value: Value| {
            all.insert(
                "datacontenttype".to_owned(),
                self.content_type.as_str().into(),
            );
            all.insert(name.to_owned(), value);
        };
        let is_json = self.content_type.contains("json");
        if !event.is_record() {
            if let Row::There(row) = event.row()? {
                data("data", Value::Object(row));
            }
        } else if let Some(bytes) = change.find::<&[u8]>("value")? {
            match (
                event.json()?.filter(|_| is_json),
                std::str::from_utf8(bytes),
            ) {
                (Some(json), _) => data("data", json.clone()),
                (None, _) if is_json => {
                    bail!("the value is no JSON, and `data_content_type` says that it is")
                }
                (None, Ok(text)) => data("data", text.into()),
                (None, Err(_)) => data("data_base64", base64(bytes).into()),
            }
        }
        Ok(Value::Object(all).to_string())
    }
}

const NO_URI: &str = "no URI reference (RFC 3986): `/shop/orders` is one, `https://example.com/shop` another; what is no letter of theirs \
                      is written %20";

/// Whether a text is a URI reference by its letters, its percent signs and its scheme (RFC 3986, 4.1).
fn is_uri_reference(text: &str) -> bool {
    let bytes = text.as_bytes();
    let letters = bytes.iter().enumerate().all(|(at, &b)| match b {
        b'%' => {
            let digits = bytes.get(at + 1..at + 3);
            digits.is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit))
        }
        // Around an address of IPv6 alone.
        b'[' | b']' => text.contains("//["),
        b => b.is_ascii_alphanumeric() || b"-._~:/?#@!$&'()*+,;=".contains(&b),
    });
    let scheme = text.split_once(':').map(|(scheme, _)| scheme);
    let scheme = scheme.filter(|scheme| !scheme.contains(['/', '?', '#']));
    let good = |scheme: &str| {
        let part = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(part)
    };
    letters && scheme.is_none_or(good) && text.matches('#').count() <= 1
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let all = [0, 1, 2].map(|i| u32::from(three.get(i).copied().unwrap_or(0)));
        let bits = all[0] << 16 | all[1] << 8 | all[2];
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize] as char;
            out.push(if i > three.len() { '=' } else { letter });
        }
    }
    out
}

penstock_plugin::export_plugin!(CloudEvents);

#[cfg(test)]
mod tests {
    #[test]
    fn a_source_is_a_uri_reference() {
        for good in [
            "/penstock",
            "",
            "shop",
            "a/b:c",
            "urn:shop:1",
            "https://example.com/a?b=c#d",
            "//[::1]/x",
            "mailto:a@b",
            "a%20b",
        ] {
            assert!(super::is_uri_reference(good), "{good}");
        }
        for bad in [
            "a b", "1:x", ":x", "a%2", "a%zz", "ä", "a#b#c", "{x}", "a\"b", "[x]", "a\\b",
        ] {
            assert!(!super::is_uri_reference(bad), "{bad}");
        }
    }

    #[test]
    fn bytes_are_written_as_rfc_4648_has_them() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, coded) in vectors {
            assert_eq!(super::base64(plain.as_bytes()), coded);
        }
    }
}
