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

    /// The texts of a key: a list of the file, or one text with commas. Empty where it is not set.
    ///
    /// # Errors
    /// A list that holds something else than texts.
    pub fn texts(&self, key: &str) -> Result<Vec<String>, Error> {
        let value = self.get(key).unwrap_or_default().trim();
        match value.strip_prefix('[').and_then(|v| v.strip_suffix(']')) {
            Some(list) => json_texts(list).ok_or_else(|| {
                Error::new(format!("setting `{key}` = {value:?}: expected texts only"))
            }),
            None => Ok(value
                .split(',')
                .map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty())
                .collect()),
        }
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

/// The strings of a JSON array, of which the brackets are gone.
fn json_texts(list: &str) -> Option<Vec<String>> {
    let (mut texts, mut rest) = (Vec::new(), list.trim());
    while !rest.is_empty() {
        let mut text = String::new();
        let mut chars = rest.strip_prefix('"')?.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => match chars.next()?.1 {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    'u' => {
                        let digits: String = chars.by_ref().take(4).map(|(_, c)| c).collect();
                        text.push(char::from_u32(u32::from_str_radix(&digits, 16).ok()?)?);
                    }
                    c => text.push(c),
                },
                (_, c) => text.push(c),
            }
        };
        texts.push(text);
        rest = rest[end + 2..].trim_start();
        rest = match rest.strip_prefix(',') {
            Some(more) => more.trim_start(),
            None if rest.is_empty() => rest,
            None => return None,
        };
    }
    Some(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_a_list_or_have_commas() {
        let texts = |value: &str| {
            let settings: Settings = [("t".to_owned(), value.to_owned())].into_iter().collect();
            settings.texts("t").ok()
        };
        let owned =
            |texts: &[&str]| Some(texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        assert_eq!(texts("a, b,"), owned(&["a", "b"]));
        assert_eq!(texts(""), owned(&[]));
        assert_eq!(texts("[]"), owned(&[]));
        assert_eq!(texts(r#"["a,b","c\"d"]"#), owned(&["a,b", "c\"d"]));
        assert_eq!(texts("[1]"), None);
    }
}
