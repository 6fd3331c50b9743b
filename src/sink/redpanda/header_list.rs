//! The headers of a record as librdkafka has them.
//!
//! It allocates a list, the list's places and each header by itself. Lists that came back with an acknowledgement and were
//! written over instead took more: each is cold, and lies elsewhere than the one before (benches/README.md).
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::ptr::{self, NonNull};
use std::slice;

use rdkafka::bindings;
use rdkafka::types::RDKafkaRespErr;

/// A name, as UTF-8, and a value, which may be null.
pub(super) type Pair<'a> = (&'a [u8], Option<&'a [u8]>);

/// Headers that are ours: in no message.
#[derive(Debug)]
pub(super) struct HeaderList(NonNull<bindings::rd_kafka_headers_t>);

// SAFETY: a list belongs to no thread; it is changed only by whoever has it mutably.
unsafe impl Send for HeaderList {}

impl HeaderList {
    /// Of these, in this order.
    pub(super) fn of(pairs: &[Pair<'_>]) -> Self {
        // SAFETY: it takes any number, and names and values with their lengths, which it copies.
        unsafe {
            let list = bindings::rd_kafka_headers_new(pairs.len());
            for (name, value) in pairs {
                let (at, bytes) = match value {
                    Some(value) => (value.as_ptr().cast::<c_void>(), value.len()),
                    None => (ptr::null(), 0),
                };
                let name_at = name.as_ptr().cast::<c_char>();
                // It fails only for lists that may not be written to.
                bindings::rd_kafka_header_add(
                    list,
                    name_at,
                    name.len().cast_signed(),
                    at,
                    bytes.cast_signed(),
                );
            }
            Self(NonNull::new(list).expect("librdkafka ends the process without memory"))
        }
    }

    /// For librdkafka to look at, or to take over.
    pub(super) fn as_ptr(&self) -> *mut bindings::rd_kafka_headers_t {
        self.0.as_ptr()
    }

    /// All of them, in order. A name ends at its first NUL.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        (0..).map_while(|index| {
            let (name, value, bytes) = self.get(index)?;
            // SAFETY: both lie in a header that stays as it is for as long as the list is borrowed; the name ends with a NUL.
            unsafe {
                let name = CStr::from_ptr(name).to_bytes();
                let value = (!value.is_null()).then(|| slice::from_raw_parts(value, bytes));
                Some((name, value))
            }
        })
    }

    fn get(&self, index: usize) -> Option<(*const c_char, *const u8, usize)> {
        let (mut name, mut value, mut bytes) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the list is there, and so is what it writes to.
        let code = unsafe {
            bindings::rd_kafka_header_get_all(
                self.as_ptr(),
                index,
                &raw mut name,
                &raw mut value,
                &raw mut bytes,
            )
        };
        let is_there = code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
        is_there.then_some((name, value.cast::<u8>(), bytes))
    }
}

impl Drop for HeaderList {
    fn drop(&mut self) {
        // SAFETY: it is ours.
        unsafe { bindings::rd_kafka_headers_destroy(self.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_holds_what_it_was_made_of() {
        let pairs: [Pair<'_>; 3] = [(b"a", Some(b"one")), (b"b", None), (b"c", Some(b""))];
        let list = HeaderList::of(&pairs);
        assert!(list.iter().eq(pairs));
        assert_eq!(HeaderList::of(&[]).iter().count(), 0);
    }
}
