//! The JSON of a request, read with everything that is wrong with it and where.
//!
//! By hand, because what serde derives takes a list for an object, stops at the first fault, and tells of it in the
//! names of Rust's types.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

use super::model::{FieldError, error};

/// A JSON value that keeps what stands in an object twice.
#[derive(Debug)]
pub(super) enum Body {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number.
    Number(Number),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Self>),
    /// An object's members, as they stand.
    Object(Vec<(String, Self)>),
}

impl fmt::Display for Body {
    /// What is found, in few words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("true or false"),
            Self::Number(number) => number.fmt(f),
            Self::Text(_) => f.write_str("text"),
            Self::List(_) => f.write_str("a list"),
            Self::Object(_) => f.write_str("an object"),
        }
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Body;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Body, E> {
        Ok(Body::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Body, E> {
        Ok(Body::Bool)
    }

    fn visit_i64<E>(self, number: i64) -> Result<Body, E> {
        Ok(Body::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Body, E> {
        Ok(Body::Number(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Body, E> {
        let number = Number::from_f64(number).ok_or_else(|| E::custom("a number too large"))?;
        Ok(Body::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Body, E> {
        Ok(Body::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Body, E> {
        Ok(Body::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Body, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = from.next_element()? {
            list.push(element);
        }
        Ok(Body::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Body, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = from.next_entry()? {
            members.push(member);
        }
        Ok(Body::Object(members))
    }
}

/// An object that is being read, and where it stands.
pub(super) struct Object<'a> {
    at: &'a str,
    members: &'a [(String, Body)],
}

impl<'a> Object<'a> {
    /// One that has none but these members, each once; `None`: it is no object.
    pub(super) fn read(
        json: &'a Body,
        at: &'a str,
        known: &[&str],
        errors: &mut Vec<FieldError>,
    ) -> Option<Self> {
        let Body::Object(members) = json else {
            let known = known.join(", ");
            error(
                errors,
                at,
                format!("is {json}; an object with {known} would do"),
            );
            return None;
        };
        for (i, (name, _)) in members.iter().enumerate() {
            let here = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
            if !known.contains(&name.as_str()) {
                let known = known.join(", ");
                error(errors, here, format!("is not known here; there is {known}"));
            } else if members[..i].iter().any(|(earlier, _)| earlier == name) {
                error(errors, here, "stands there twice");
            }
        }
        Some(Self { at, members })
    }

    /// Where a member stands.
    pub(super) fn place(&self, name: &str) -> String {
        format!("{}/{name}", self.at)
    }

    /// A member that may be left out; `null` is as good as that.
    pub(super) fn get(&self, name: &str) -> Option<&'a Body> {
        let (_, found) = self.members.iter().find(|(n, _)| n == name)?;
        Some(found).filter(|found| !matches!(found, Body::Null))
    }

    /// A member that has to be there and be what `take` takes, which `what` says.
    pub(super) fn require<T>(
        &self,
        name: &str,
        what: &str,
        errors: &mut Vec<FieldError>,
        take: impl FnOnce(&'a Body) -> Option<T>,
    ) -> Option<T> {
        let found = self.members.iter().find(|(n, _)| n == name);
        let Some((_, found)) = found else {
            error(
                errors,
                self.place(name),
                format!("is missing; {what} would do"),
            );
            return None;
        };
        let taken = take(found);
        if taken.is_none() {
            error(
                errors,
                self.place(name),
                format!("is {found}; {what} would do"),
            );
        }
        taken
    }

    /// Text that has to be there.
    pub(super) fn text(&self, name: &str, errors: &mut Vec<FieldError>) -> Option<String> {
        self.require(name, "text", errors, |json| match json {
            Body::Text(text) => Some(text.clone()),
            _ => None,
        })
    }

    /// A number that has to be there, of those that `take` takes.
    pub(super) fn number<T>(
        &self,
        name: &str,
        what: &str,
        errors: &mut Vec<FieldError>,
        take: impl FnOnce(&Number) -> Option<T>,
    ) -> Option<T> {
        self.require(name, what, errors, |json| match json {
            Body::Number(number) => take(number),
            _ => None,
        })
    }
}
