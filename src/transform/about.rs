//! What a plugin says of itself and of its settings, and whether settings are as it says.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::config::{SettingFault, SettingTrouble, nearest};

/// A plugin's description of itself (the interface `description` of the contract).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The SDK that it was built with, and that one's version.
    pub sdk: String,
    /// What it does, in a sentence; empty if it does not say.
    pub doc: String,
    /// Its settings.
    pub settings: Vec<SettingAbout>,
    /// Settings that are not listed are taken, too.
    pub others: bool,
}

/// One setting of a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingAbout {
    /// Its key.
    pub name: String,
    /// What its text is read as.
    pub kind: SettingKind,
    /// What holds where it is not set.
    pub default: Option<String>,
    /// It has to be set.
    pub required: bool,
    /// A sentence.
    pub doc: String,
    /// The only values; empty: any of its type.
    pub choices: Vec<String>,
}

/// What a setting's text is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingKind {
    /// Text.
    Text,
    /// A whole number of 64 bits.
    Integer,
    /// A number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A list of texts, or one text with commas.
    Texts,
    /// A table, in its JSON form.
    Table,
}

impl SettingKind {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Integer => "a whole number",
            Self::Number => "a number",
            Self::Boolean => "true or false",
            Self::Texts => "a list of texts",
            Self::Table => "a table",
        }
    }

    fn takes(self, text: &str) -> bool {
        let json = || serde_json::from_str::<Value>(text).ok();
        match self {
            Self::Text => true,
            Self::Integer => text.parse::<i64>().is_ok(),
            Self::Number => text.parse::<f64>().is_ok(),
            Self::Boolean => text.parse::<bool>().is_ok(),
            Self::Texts => {
                !text.trim_start().starts_with('[')
                    || json().is_some_and(|list| {
                        let mut elements = list.as_array().into_iter().flatten();
                        elements.all(Value::is_string)
                    })
            }
            Self::Table => json().is_some_and(|json| json.is_object()),
        }
    }
}

impl About {
    /// What is wrong with settings: all of it.
    pub fn faults(&self, settings: &BTreeMap<String, String>) -> Vec<SettingFault> {
        let mut faults = Vec::new();
        let known = || self.settings.iter().map(|s| s.name.as_str());
        for (name, value) in settings {
            let fault = |what, help| SettingFault {
                name: name.clone(),
                what,
                help,
            };
            match self.settings.iter().find(|s| s.name == *name) {
                None if self.others => {}
                None => {
                    let help = match nearest(name, known()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None if self.settings.is_empty() => "the plugin takes none".to_owned(),
                        None => format!(
                            "the plugin takes {}",
                            known().collect::<Vec<_>>().join(", ")
                        ),
                    };
                    faults.push(fault(SettingTrouble::Unknown, help));
                }
                Some(about) if !about.kind.takes(value) => {
                    let help = format!("expected {}{}", about.kind.name(), said(about));
                    faults.push(fault(SettingTrouble::Malformed, help));
                }
                Some(about) if !about.choices.is_empty() && !about.choices.contains(value) => {
                    let words = about.choices.join(", ");
                    let mut help = format!("expected one of {words}");
                    if let Some(near) = nearest(value, about.choices.iter().map(String::as_str)) {
                        help.push_str(&format!("; did you mean {near:?}?"));
                    }
                    faults.push(fault(SettingTrouble::Choice, help));
                }
                Some(_) => {}
            }
        }
        for about in &self.settings {
            if about.required && !settings.contains_key(&about.name) {
                faults.push(SettingFault {
                    name: about.name.clone(),
                    what: SettingTrouble::Missing,
                    help: format!("the plugin needs it: {}{}", about.kind.name(), said(about)),
                });
            }
        }
        faults
    }
}

impl SettingAbout {
    /// The setting in a JSON Schema.
    fn to_schema(&self) -> Value {
        let list = json!({ "type": "array", "items": { "type": "string" } });
        let mut schema = match self.kind {
            _ if !self.choices.is_empty() => json!({ "enum": self.choices }),
            SettingKind::Text => json!({ "type": ["string", "number", "boolean"] }),
            SettingKind::Integer => json!({ "type": "integer" }),
            SettingKind::Number => json!({ "type": "number" }),
            SettingKind::Boolean => json!({ "type": "boolean" }),
            SettingKind::Texts => json!({ "oneOf": [{ "type": "string" }, list] }),
            SettingKind::Table => json!({ "type": "object" }),
        };
        if !self.doc.is_empty() {
            schema["description"] = self.doc.as_str().into();
        }
        if let Some(default) = &self.default {
            let typed = match self.kind {
                SettingKind::Text | SettingKind::Texts => None,
                _ => serde_json::from_str(default).ok(),
            };
            schema["default"] = typed.unwrap_or_else(|| default.as_str().into());
        }
        schema
    }
}

impl About {
    /// The settings as a JSON Schema.
    pub fn to_schema(&self) -> Value {
        let settings = self.settings.iter();
        let required = settings.clone().filter(|s| s.required).map(|s| &s.name);
        json!({
            "type": "object",
            "description": self.doc,
            "required": required.collect::<Vec<_>>(),
            "additionalProperties": self.others,
            "properties": settings.map(|s| (s.name.clone(), s.to_schema())).collect::<Map<_, _>>(),
        })
    }
}

/// What the plugin says of a setting, to stand after its type.
fn said(about: &SettingAbout) -> String {
    if about.doc.is_empty() {
        String::new()
    } else {
        format!(", {}", about.doc)
    }
}
