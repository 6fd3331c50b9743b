//! The notations of the native protocol v4, section 3: how primitives are laid out in a body.
//!
//! Written here rather than taken from a client's crate, so that client and server do not share a
//! mistake, and so that a value is a slice of its frame and not a copy.

use bytes::{Buf, Bytes};

use super::error::ProtocolError;
use crate::engine::BoundValue;

type Result<T> = std::result::Result<T, ProtocolError>;

/// Takes primitives off a body, never past its end.
#[derive(Debug)]
pub(crate) struct Reader(Bytes);

impl Reader {
    pub(crate) fn new(body: Bytes) -> Self {
        Self(body)
    }

    fn take(&mut self, n: usize, what: &'static str) -> Result<Bytes> {
        if self.0.len() < n {
            return Err(ProtocolError::Truncated {
                what,
                wanted: n,
                left: self.0.len(),
            });
        }
        Ok(self.0.split_to(n))
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1, "byte")?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        Ok(self.take(2, "short")?.get_u16())
    }

    pub(crate) fn i32(&mut self) -> Result<i32> {
        Ok(self.take(4, "int")?.get_i32())
    }

    pub(crate) fn i64(&mut self) -> Result<i64> {
        Ok(self.take(8, "long")?.get_i64())
    }

    fn text(bytes: &[u8]) -> Result<String> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(ProtocolError::NotUtf8),
        }
    }

    pub(crate) fn string(&mut self) -> Result<String> {
        let n = self.u16()?;
        Self::text(&self.take(n.into(), "string")?)
    }

    pub(crate) fn long_string(&mut self) -> Result<String> {
        let n = self.i32()?;
        let n = usize::try_from(n).map_err(|_| ProtocolError::Negative("long string"))?;
        Self::text(&self.take(n, "long string")?)
    }

    pub(crate) fn short_bytes(&mut self) -> Result<Bytes> {
        let n = self.u16()?;
        self.take(n.into(), "short bytes")
    }

    /// `[bytes]`; a negative length is null.
    pub(crate) fn bytes(&mut self) -> Result<Option<Bytes>> {
        match usize::try_from(self.i32()?) {
            Ok(n) => self.take(n, "bytes").map(Some),
            Err(_) => Ok(None),
        }
    }

    pub(crate) fn value(&mut self) -> Result<BoundValue> {
        match self.i32()? {
            -1 => Ok(BoundValue::Null),
            -2 => Ok(BoundValue::Unset),
            n => {
                let n = usize::try_from(n).map_err(|_| ProtocolError::Negative("value"))?;
                self.take(n, "value").map(BoundValue::Bytes)
            }
        }
    }

    pub(crate) fn string_list(&mut self) -> Result<Vec<String>> {
        (0..self.u16()?).map(|_| self.string()).collect()
    }

    pub(crate) fn string_map(&mut self) -> Result<Vec<(String, String)>> {
        (0..self.u16()?)
            .map(|_| Ok((self.string()?, self.string()?)))
            .collect()
    }

    /// Reads past a `[bytes map]`: a request's custom payload, which the node has no use for.
    pub(crate) fn skip_bytes_map(&mut self) -> Result<()> {
        for _ in 0..self.u16()? {
            self.string()?;
            self.bytes()?;
        }
        Ok(())
    }
}

/// Puts primitives at the end of a body.
///
/// Lengths that do not fit are cut: names, messages and lists of the node are far below the bounds
/// (65,535 bytes and items), and values are bounded by the size of a frame.
pub(crate) trait Write {
    fn put(&mut self, bytes: &[u8]);

    fn u8(&mut self, v: u8) {
        self.put(&[v]);
    }

    fn u16(&mut self, v: u16) {
        self.put(&v.to_be_bytes());
    }

    fn i32(&mut self, v: i32) {
        self.put(&v.to_be_bytes());
    }

    fn count(&mut self, n: usize) {
        self.i32(i32::try_from(n).unwrap_or(i32::MAX));
    }

    fn short_bytes(&mut self, bytes: &[u8]) {
        let n = bytes.len().min(u16::MAX.into());
        self.u16(n as u16);
        self.put(&bytes[..n]);
    }

    fn string(&mut self, text: &str) {
        let mut n = text.len().min(u16::MAX.into());
        while !text.is_char_boundary(n) {
            n -= 1;
        }
        self.short_bytes(&text.as_bytes()[..n]);
    }

    fn string_list<S: AsRef<str>>(&mut self, items: &[S]) {
        self.u16(items.len() as u16);
        for item in items {
            self.string(item.as_ref());
        }
    }

    fn bytes(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            None => self.i32(-1),
            Some(bytes) => {
                self.count(bytes.len());
                self.put(bytes);
            }
        }
    }
}

impl Write for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}
