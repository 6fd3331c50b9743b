//! The values of columns, as a transform reads them.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::IpAddr;

use penstock_plugin_encoding::{CqlType, CqlValue, Field};
use uuid::Uuid;

use crate::Error;

/// The text form of a value: a `str`, which takes no memory of its own for text, and in a record none for UUIDs.
#[derive(Clone, Debug)]
pub struct Text<'a>(TextForm<'a>);

#[derive(Clone, Debug)]
enum TextForm<'a> {
    Plain(Cow<'a, str>),
    /// With its text, once somebody has looked at it.
    Uuid(&'a [u8; 16], OnceCell<Box<str>>),
}

impl<'a> Text<'a> {
    pub(crate) fn plain(text: impl Into<Cow<'a, str>>) -> Self {
        Self(TextForm::Plain(text.into()))
    }

    #[inline]
    pub(crate) fn uuid(id: &'a [u8; 16]) -> Self {
        Self(TextForm::Uuid(id, OnceCell::new()))
    }
}

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            TextForm::Plain(text) => text,
            TextForm::Uuid(id, text) => {
                text.get_or_init(|| Uuid::from_bytes(**id).to_string().into())
            }
        }
    }
}

impl<'a> From<&'a Text<'_>> for Field<'a> {
    #[inline]
    fn from(text: &'a Text<'_>) -> Self {
        match &text.0 {
            TextForm::Plain(text) => text.as_bytes().into(),
            TextForm::Uuid(id, _) => Field::Uuid(id),
        }
    }
}

impl std::fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self)
    }
}

/// Milliseconds since the Unix epoch, as CQL's `timestamp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// A type that a column can be read as.
pub trait FromCql<'a>: Sized {
    /// Reads the bytes of a value of this type.
    fn from_cql(cql_type: &CqlType, bytes: &'a [u8]) -> Result<Self, Error>;
}

/// The bytes as they are, whatever the type.
impl<'a> FromCql<'a> for &'a [u8] {
    #[inline]
    fn from_cql(_: &CqlType, bytes: &'a [u8]) -> Result<Self, Error> {
        Ok(bytes)
    }
}

impl<'a> FromCql<'a> for CqlValue<'a> {
    fn from_cql(cql_type: &CqlType, bytes: &'a [u8]) -> Result<Self, Error> {
        Ok(match cql_type {
            CqlType::List(_) => CqlValue::decode(&cql_type.log_type(), bytes)?,
            _ => CqlValue::decode(cql_type, bytes)?,
        })
    }
}

impl<'a> FromCql<'a> for &'a str {
    fn from_cql(cql_type: &CqlType, bytes: &'a [u8]) -> Result<Self, Error> {
        match cql_type.thawed() {
            CqlType::Text | CqlType::Ascii => Ok(std::str::from_utf8(bytes)?),
            _ => Err(Error::new("is not text")),
        }
    }
}

impl<'a> FromCql<'a> for Cow<'a, str> {
    fn from_cql(cql_type: &CqlType, bytes: &'a [u8]) -> Result<Self, Error> {
        <&str>::from_cql(cql_type, bytes).map(Cow::Borrowed)
    }
}

impl FromCql<'_> for String {
    fn from_cql(cql_type: &CqlType, bytes: &[u8]) -> Result<Self, Error> {
        <&str>::from_cql(cql_type, bytes).map(str::to_owned)
    }
}

macro_rules! scalar {
    ($($type:ty, $what:literal: $($value:pat => $read:expr),+;)+) => {$(
        impl FromCql<'_> for $type {
            fn from_cql(cql_type: &CqlType, bytes: &[u8]) -> Result<Self, Error> {
                match CqlValue::decode(cql_type, bytes)? {
                    $($value => $read,)+
                    _ => Err(Error::new(concat!("is not ", $what))),
                }
            }
        }
    )+};
}

scalar! {
    bool, "a boolean": CqlValue::Boolean(b) => Ok(b);
    i8, "an integer": CqlValue::Int(n) => Ok(n.try_into()?);
    i16, "an integer": CqlValue::Int(n) => Ok(n.try_into()?);
    i32, "an integer": CqlValue::Int(n) => Ok(n.try_into()?);
    i64, "an integer": CqlValue::Int(n) => Ok(n);
    f32, "a float": CqlValue::Float(x) => Ok(x);
    f64, "a float": CqlValue::Double(x) => Ok(x), CqlValue::Float(x) => Ok(x.into());
    Uuid, "a uuid": CqlValue::Uuid(id) => Ok(id);
    IpAddr, "an address": CqlValue::Inet(ip) => Ok(ip);
    Timestamp, "a timestamp": CqlValue::Timestamp(ms) => Ok(Timestamp(ms));
}
