//! What a transform says of itself and of its settings.

use crate::describing::exports::penstock::plugin::description as contract;
use crate::{Error, Settings};

/// What a transform does and which settings it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    doc: String,
    settings: Vec<Setting>,
    others: bool,
}

impl Default for About {
    /// Nothing is said: every setting is handed on as it is.
    fn default() -> Self {
        Self {
            doc: String::new(),
            settings: Vec::new(),
            others: true,
        }
    }
}

impl About {
    /// With what it does, in a sentence, and no settings yet: any that is not described is refused.
    pub fn new(doc: &str) -> Self {
        Self {
            doc: doc.to_owned(),
            settings: Vec::new(),
            others: false,
        }
    }

    /// Describes one more setting.
    #[must_use]
    pub fn setting(mut self, setting: Setting) -> Self {
        self.settings.push(setting);
        self
    }

    /// Settings that are not described are taken, too.
    #[must_use]
    pub fn and_others(mut self) -> Self {
        self.others = true;
        self
    }

    /// Refuses settings that are not as described.
    pub(crate) fn check(&self, settings: &Settings) -> Result<(), Error> {
        if !self.others {
            let known: Vec<&str> = self.settings.iter().map(|s| s.name.as_str()).collect();
            settings.only(&known)?;
        }
        for about in &self.settings {
            match settings.get(&about.name) {
                None if about.required => {
                    settings.required(&about.name)?;
                }
                None => {}
                Some(value) => about.check(value)?,
            }
        }
        Ok(())
    }
}

/// What the text of a setting is to be read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Integer,
    Number,
    Boolean,
    Texts,
    Table,
}

/// One setting: its name, its type, and what there is to say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    name: String,
    kind: Kind,
    default: Option<String>,
    required: bool,
    doc: String,
    choices: Vec<String>,
}

impl Setting {
    fn new(name: &str, kind: Kind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            default: None,
            required: false,
            doc: String::new(),
            choices: Vec::new(),
        }
    }

    /// A text.
    pub fn text(name: &str) -> Self {
        Self::new(name, Kind::Text)
    }

    /// A whole number of 64 bits.
    pub fn integer(name: &str) -> Self {
        Self::new(name, Kind::Integer)
    }

    /// A number.
    pub fn number(name: &str) -> Self {
        Self::new(name, Kind::Number)
    }

    /// `true` or `false`.
    pub fn boolean(name: &str) -> Self {
        Self::new(name, Kind::Boolean)
    }

    /// A list of texts; [`Settings::texts`] reads it.
    pub fn texts(name: &str) -> Self {
        Self::new(name, Kind::Texts)
    }

    /// A table, which comes in its JSON form.
    pub fn table(name: &str) -> Self {
        Self::new(name, Kind::Table)
    }

    /// One of these words.
    pub fn choice(name: &str, words: &[&str]) -> Self {
        Self {
            choices: words.iter().map(|w| (*w).to_owned()).collect(),
            ..Self::new(name, Kind::Text)
        }
    }

    /// What holds where it is not set. It is only said: [`Transform::configure`](crate::Transform::configure) sees
    /// what is in the file.
    #[must_use]
    pub fn default(mut self, value: &str) -> Self {
        self.default = Some(value.to_owned());
        self
    }

    /// It has to be set.
    #[must_use]
    pub fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// What it does, in a sentence.
    #[must_use]
    pub fn doc(mut self, doc: &str) -> Self {
        doc.clone_into(&mut self.doc);
        self
    }

    fn check(&self, value: &str) -> Result<(), Error> {
        let fail = |expected: &str| {
            let name = &self.name;
            Err(Error::new(format!(
                "setting `{name}` = {value:?}: expected {expected}"
            )))
        };
        if !self.choices.is_empty() && self.choices.iter().all(|word| word != value) {
            return fail(&format!("one of {}", self.choices.join(", ")));
        }
        match self.kind {
            Kind::Integer if value.parse::<i64>().is_err() => fail("a whole number"),
            Kind::Number if value.parse::<f64>().is_err() => fail("a number"),
            Kind::Boolean if value.parse::<bool>().is_err() => fail("true or false"),
            Kind::Texts if value.parse::<f64>().is_ok() || value.parse::<bool>().is_ok() => {
                fail(&format!("a list of texts, such as [\"{value}\"]"))
            }
            Kind::Texts if value.trim_start().starts_with('{') => fail("a list of texts"),
            Kind::Table if !value.trim_start().starts_with('{') => fail("a table"),
            _ => Ok(()),
        }
    }
}

impl From<About> for contract::About {
    fn from(about: About) -> Self {
        let setting = |s: Setting| contract::SettingAbout {
            name: s.name,
            kind: match s.kind {
                Kind::Text => contract::SettingType::Text,
                Kind::Integer => contract::SettingType::Integer,
                Kind::Number => contract::SettingType::Number,
                Kind::Boolean => contract::SettingType::Boolean,
                Kind::Texts => contract::SettingType::Texts,
                Kind::Table => contract::SettingType::Table,
            },
            default: s.default,
            required: s.required,
            doc: s.doc,
            choices: s.choices,
        };
        Self {
            sdk: concat!("rust ", env!("CARGO_PKG_VERSION")).to_owned(),
            doc: about.doc,
            settings: about.settings.into_iter().map(setting).collect(),
            others: about.others,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_held_against_their_description() {
        let about = About::new("Does things.")
            .setting(Setting::text("topic").required().doc("where to"))
            .setting(Setting::integer("most").default("5"))
            .setting(Setting::choice("mode", &["soft", "hard"]))
            .setting(Setting::texts("tables"));
        let check = |settings: &[(&str, &str)]| {
            let settings = settings
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            about
                .check(&settings.collect())
                .map_err(|e| e.message().to_owned())
        };
        assert_eq!(check(&[("topic", "t"), ("most", "7")]), Ok(()));
        assert_eq!(check(&[]).unwrap_err(), "setting `topic` is missing");
        assert_eq!(
            check(&[("topic", "t"), ("most", "x")]).unwrap_err(),
            "setting `most` = \"x\": expected a whole number"
        );
        assert_eq!(
            check(&[("topic", "t"), ("mode", "mild")]).unwrap_err(),
            "setting `mode` = \"mild\": expected one of soft, hard"
        );
        for taken in ["", "5a", "5,6", "[\"5\"]"] {
            assert_eq!(check(&[("topic", "t"), ("tables", taken)]), Ok(()));
        }
        for value in ["5", "1.5", "true"] {
            assert_eq!(
                check(&[("topic", "t"), ("tables", value)]).unwrap_err(),
                format!(
                    "setting `tables` = {value:?}: expected a list of texts, such as [\"{value}\"]"
                )
            );
        }
        assert!(check(&[("topic", "t"), ("tables", "{\"a\":1}")]).is_err());
        assert!(
            check(&[("topic", "t"), ("tobic", "x")])
                .unwrap_err()
                .starts_with("unknown setting `tobic`")
        );
    }
}
