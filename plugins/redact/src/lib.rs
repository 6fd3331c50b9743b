//! Drops, masks or hashes fields of records whose values are JSON; see docs/plugins/redact.md.
//!
//! It stands after the transform that makes records. What it cannot look into it does not let through: a change that nobody
//! has made a record of, and a value that is no JSON object, are refused.

use penstock_plugin::{
    About, Change, Error, Interest, Output, Setting, Settings, Table, Transform, bail,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

struct Redact {
    rules: Vec<(Vec<String>, Rule)>,
    mask: String,
    /// The key of the hash.
    secret: Vec<u8>,
    topics: Vec<String>,
    other_values_pass: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Drop,
    Mask,
    Hash,
}

impl Transform for Redact {
    fn about() -> About {
        About::new("Drops, masks or hashes fields of records whose values are JSON.")
            .setting(Setting::texts("drop").doc("fields that are taken out, e.g. [\"customer.email\"]; `*` is every element or field"))
            .setting(Setting::texts("mask").doc("fields that become the mask"))
            .setting(Setting::texts("hash").doc("fields that become HMAC-SHA-256 of their JSON form, in hex: equal values stay equal"))
            .setting(Setting::text("hash_key").doc("the key of `hash`, 16 characters at least"))
            .setting(Setting::text("mask_with").default("***").doc("the mask"))
            .setting(Setting::texts("topics").doc("the records' topics; the others pass by; all if it is not set"))
            .setting(Setting::choice("not_json", &["error", "pass"]).default("error").doc("a value that is no JSON object"))
    }

    fn configure(settings: &Settings) -> Result<Self, Error> {
        let mut rules = Vec::new();
        for (key, rule) in [
            ("drop", Rule::Drop),
            ("mask", Rule::Mask),
            ("hash", Rule::Hash),
        ] {
            for field in settings.texts(key)? {
                let path: Vec<String> = field.split('.').map(str::to_owned).collect();
                if path.iter().any(String::is_empty) {
                    bail!("setting `{key}`: {field:?}: expected names with dots between them");
                }
                rules.push((path, rule));
            }
        }
        let secret = settings.get("hash_key").unwrap_or_default().as_bytes();
        if rules.iter().any(|(_, rule)| *rule == Rule::Hash) && secret.len() < 16 {
            bail!(
                "setting `hash_key`: `hash` needs a key of 16 characters at least: short values are guessed otherwise"
            );
        }
        Ok(Self {
            rules,
            mask: settings.get("mask_with").unwrap_or("***").to_owned(),
            secret: secret.to_vec(),
            topics: settings.texts("topics")?,
            other_values_pass: settings.get("not_json") == Some("pass"),
        })
    }

    fn interest(&mut self, _: &Table) -> Result<Interest, Error> {
        Ok(Interest::All)
    }

    fn process(&mut self, change: &Change<'_>, out: &mut Output) -> Result<(), Error> {
        if !change.table().is_record_table() {
            bail!(
                "no record was made of the change yet, so its fields cannot be redacted: put `redact` after the transform that makes records"
            );
        }
        let topic: &str = change.get("topic")?;
        let skipped = !self.topics.is_empty() && !self.topics.iter().any(|t| t == topic);
        if skipped || change.is_null("value") {
            out.forward(change);
            return Ok(());
        }
        let parsed = serde_json::from_slice::<Value>(change.get("value")?);
        let mut value = match parsed {
            Ok(value @ Value::Object(_)) => value,
            // An array passes where that is asked for, but not what a rule of `*` finds in it.
            Ok(value @ Value::Array(_)) if self.other_values_pass => value,
            _ if self.other_values_pass => {
                out.forward(change);
                return Ok(());
            }
            _ => bail!(
                "the value is no JSON object, so its fields cannot be redacted: see `not_json`"
            ),
        };
        for (path, rule) in &self.rules {
            self.apply(&mut value, path, *rule);
        }
        let mut record = out.record(topic).value(value.to_string().as_str());
        if !change.is_null("key") {
            record = record.key(change.column_ref("key")?);
        }
        if let Some(penstock_plugin::CqlValue::Map(headers)) = change.find("headers")? {
            for (name, value) in &headers {
                if let penstock_plugin::CqlValue::Text(name) = name {
                    record = match value {
                        penstock_plugin::CqlValue::Blob(bytes) => record.header(name, *bytes),
                        _ => record.header(name, penstock_plugin::Field::Null),
                    };
                }
            }
        }
        Ok(())
    }
}

impl Redact {
    fn apply(&self, value: &mut Value, path: &[String], rule: Rule) {
        let Some((step, rest)) = path.split_first() else {
            return;
        };
        match value {
            Value::Object(fields) => {
                let names: Vec<String> = match step.as_str() {
                    "*" => fields.keys().cloned().collect(),
                    name => vec![name.to_owned()],
                };
                for name in names {
                    if !rest.is_empty() {
                        if let Some(inner) = fields.get_mut(&name) {
                            self.apply(inner, rest, rule);
                        }
                    } else if rule == Rule::Drop {
                        fields.remove(&name);
                    } else if let Some(field) = fields.get_mut(&name) {
                        self.redact(field, rule);
                    }
                }
            }
            Value::Array(elements) if step == "*" => {
                if rest.is_empty() && rule == Rule::Drop {
                    elements.clear();
                }
                for element in elements {
                    match rest.is_empty() {
                        true => self.redact(element, rule),
                        false => self.apply(element, rest, rule),
                    }
                }
            }
            _ => {}
        }
    }

    /// Null says nothing, so it stays.
    fn redact(&self, value: &mut Value, rule: Rule) {
        match (rule, &*value) {
            (_, Value::Null) | (Rule::Drop, _) => {}
            (Rule::Mask, _) => *value = self.mask.as_str().into(),
            (Rule::Hash, Value::String(text)) => {
                *value = hmac(&self.secret, text.as_bytes()).into()
            }
            (Rule::Hash, other) => *value = hmac(&self.secret, other.to_string().as_bytes()).into(),
        }
    }
}

/// HMAC-SHA-256 (RFC 2104), in hex.
fn hmac(secret: &[u8], message: &[u8]) -> String {
    const BLOCK: usize = 64;
    let mut key = [0u8; BLOCK];
    if secret.len() > BLOCK {
        key[..32].copy_from_slice(&Sha256::digest(secret));
    } else {
        key[..secret.len()].copy_from_slice(secret);
    }
    let inner = Sha256::new()
        .chain_update(key.map(|b| b ^ 0x36))
        .chain_update(message)
        .finalize();
    let outer = Sha256::new()
        .chain_update(key.map(|b| b ^ 0x5c))
        .chain_update(inner)
        .finalize();
    hex::encode(outer)
}

penstock_plugin::export_plugin!(Redact);

#[cfg(test)]
mod tests {
    use super::hmac;

    #[test]
    fn the_hash_is_that_of_rfc_4231() {
        // Its test case 2, and case 6 with a key longer than a block.
        assert_eq!(
            hmac(b"Jefe", b"what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hmac(
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First"
            ),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }
}
