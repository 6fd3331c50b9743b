//! The `settings` of a `[[transform]]`.

use std::str::FromStr;

use crate::Error;

/// The settings by key. Values that are not strings in the file come in their JSON form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(Vec<(String, String)>);

impl FromIterator<(String, String)> for Settings {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(settings: I) -> Self {
        Self(settings.into_iter().collect())
    }
}

impl Settings {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(k, _)| k == key)?;
        Some(value)
    }

    /// The value of a key, which must be there.
    pub fn required(&self, key: &str) -> Result<&str, Error> {
        self.get(key)
            .ok_or_else(|| Error::new(format!("setting `{key}` is missing")))
    }

    /// The parsed value of a key.
    pub fn parse<T: FromStr>(&self, key: &str) -> Result<Option<T>, Error>
    where
        T::Err: std::fmt::Display,
    {
        self.get(key)
            .map(|value| {
                value
                    .parse()
                    .map_err(|e| Error::new(format!("setting `{key}` = {value:?}: {e}")))
            })
            .transpose()
    }

    /// Refuses every key but these, so that a misspelt one is seen.
    pub fn only(&self, known: &[&str]) -> Result<(), Error> {
        match self
            .0
            .iter()
            .find(|(key, _)| !known.contains(&key.as_str()))
        {
            Some((key, _)) => Err(Error::new(format!(
                "unknown setting `{key}`; there are: {}",
                known.join(", ")
            ))),
            None => Ok(()),
        }
    }
}
