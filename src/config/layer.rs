//! One TOML file as a layer: its values for figment, and where each stands in the text. It judges nothing.

use std::collections::BTreeMap;
use std::ops::Range;

use figment::value::{Dict, Value};
use toml::de::{DeTable, DeValue};

use super::mask::is_secret;

/// The spans of each key and of its value, by path.
pub(super) type Spans = BTreeMap<Vec<String>, (Range<usize>, Range<usize>)>;

/// What converting one file collects.
#[derive(Default)]
pub(super) struct FileLayer {
    pub(super) spans: Spans,
    pub(super) secrets: Vec<Range<usize>>,
    pub(super) names: Vec<String>,
    /// Path of the later one, index of the earlier one, the name.
    pub(super) twice: Vec<(Vec<String>, usize, String)>,
    /// There is a `transform` that is no array.
    pub(super) not_array: bool,
}

impl FileLayer {
    pub(super) fn table(&mut self, table: &DeTable<'_>, path: &mut Vec<String>) -> Dict {
        table
            .iter()
            .map(|(key, value)| {
                path.push(key.get_ref().to_string());
                self.spans.insert(path.clone(), (key.span(), value.span()));
                let converted = self.value(value.get_ref(), value.span(), path);
                path.pop();
                (key.get_ref().to_string(), converted)
            })
            .collect()
    }

    pub(super) fn value(
        &mut self,
        value: &DeValue<'_>,
        span: Range<usize>,
        path: &mut Vec<String>,
    ) -> Value {
        if is_secret(path) {
            self.secrets.push(span);
        }
        match value {
            DeValue::String(s) => Value::from(s.as_ref()),
            DeValue::Integer(i) => {
                let (text, radix) = (i.as_str(), i.radix());
                match i64::from_str_radix(text, radix) {
                    Ok(n) => Value::from(n),
                    Err(_) => i128::from_str_radix(text, radix)
                        .map_or_else(|_| Value::from(f64::INFINITY), Value::from),
                }
            }
            DeValue::Float(f) => Value::from(f.as_str().parse::<f64>().unwrap_or(f64::NAN)),
            DeValue::Boolean(b) => Value::from(*b),
            // Only a time is legal somewhere, and there as a string too.
            DeValue::Datetime(d) => Value::from(d.to_string()),
            DeValue::Array(array) => {
                let elements = array.iter().enumerate().map(|(i, element)| {
                    path.push(format!("[{i}]"));
                    self.spans
                        .insert(path.clone(), (element.span(), element.span()));
                    let converted = self.value(element.get_ref(), element.span(), path);
                    path.pop();
                    converted
                });
                Value::from(elements.collect::<Vec<_>>())
            }
            DeValue::Table(table) => Value::from(self.table(table, path)),
        }
    }

    /// Turns the array of `[[transform]]` into a table by name. One without a legal name, or with one
    /// that is taken, is kept under its number, to be checked like the others.
    pub(super) fn transforms(&mut self, data: &mut Dict) {
        let Some(Value::Array(_, entries)) = data.get_mut("transform") else {
            self.not_array = data.remove("transform").is_some();
            return;
        };
        let mut by_name = Dict::new();
        let mut first: BTreeMap<String, usize> = BTreeMap::new();
        for (i, entry) in std::mem::take(entries).into_iter().enumerate() {
            let name = entry
                .as_dict()
                .and_then(|d| d.get("name"))
                .and_then(|n| n.as_str())
                .map(str::to_owned);
            let numbered = format!("[{i}]");
            let id = match name {
                Some(name) => match first.get(&name) {
                    Some(earlier) => {
                        let path = vec!["transform".to_owned(), numbered.clone()];
                        self.twice.push((path, *earlier, name));
                        numbered
                    }
                    None => {
                        first.insert(name.clone(), i);
                        name
                    }
                },
                None => numbered,
            };
            self.rename(i, &id);
            self.names.push(id.clone());
            by_name.insert(id, entry);
        }
        data.insert("transform".to_owned(), Value::from(by_name));
    }

    fn rename(&mut self, index: usize, id: &str) {
        let old = vec!["transform".to_owned(), format!("[{index}]")];
        let moved: Vec<_> = self
            .spans
            .range(old.clone()..)
            .take_while(|(path, _)| path.starts_with(&old))
            .map(|(path, spans)| (path.clone(), spans.clone()))
            .collect();
        for (path, spans) in moved {
            let mut renamed = path.clone();
            renamed[1] = id.to_owned();
            self.spans.remove(&path);
            self.spans.insert(renamed, spans);
        }
    }
}
