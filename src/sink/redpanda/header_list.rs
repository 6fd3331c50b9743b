//! The headers of a record as librdkafka has them, used again.
//!
//! It allocates a list, the list's places and each header by itself, in the thread that hands the record over, and frees all of
//! it in another: six allocations for four headers, most of what a record costs. But the value of a header lies in memory that
//! stays where it is, so a list that came back with an acknowledgement can be written over with values as long as those in it:
//! of positions, ids and trace contexts all are. Nothing but the documented calls is needed for that.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;
use rdkafka::bindings;
use rdkafka::types::RDKafkaRespErr;

/// A name and a value, which may be null.
pub(super) type Pair<'a> = (&'a str, Option<&'a [u8]>);

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

    /// Takes it over from librdkafka.
    ///
    /// # Safety
    /// It is a list of headers, and nobody else's.
    pub(super) unsafe fn from_raw(list: *mut bindings::rd_kafka_headers_t) -> Option<Self> {
        NonNull::new(list).map(Self)
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
                let value = NonNull::new(value)
                    .map(|value| slice::from_raw_parts(value.as_ptr().cast_const(), bytes));
                Some((name, value))
            }
        })
    }

    fn get(&self, index: usize) -> Option<(*const c_char, *mut u8, usize)> {
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
        is_there.then_some((name, value.cast::<u8>().cast_mut(), bytes))
    }

    /// Writes these over those in it; `false`: they have other names or lengths, and what is in it now is of no use.
    fn overwrite(&mut self, pairs: &[Pair<'_>]) -> bool {
        // SAFETY: the list is there.
        if unsafe { bindings::rd_kafka_header_cnt(self.as_ptr()) } != pairs.len() {
            return false;
        }
        (0..).zip(pairs).all(|(index, (name, value))| {
            let Some((name_at, at, bytes)) = self.get(index) else {
                return false;
            };
            // SAFETY: the name ends with a NUL, and nobody writes to it.
            if unsafe { CStr::from_ptr(name_at) }.to_bytes() != name.as_bytes() {
                return false;
            }
            match value {
                Some(value) if !at.is_null() && value.len() == bytes => {
                    // SAFETY: `at` is of `bytes` bytes, in memory that librdkafka has allocated for this header alone; the list
                    // is ours, so nobody reads it meanwhile.
                    unsafe { ptr::copy_nonoverlapping(value.as_ptr(), at, bytes) };
                    true
                }
                Some(_) => false,
                None => at.is_null(),
            }
        })
    }

    /// The same for lists that can be written over with each other's, and seldom for others.
    fn shape(&self) -> u64 {
        shape(self.iter())
    }
}

impl Drop for HeaderList {
    fn drop(&mut self) {
        // SAFETY: it is ours.
        unsafe { bindings::rd_kafka_headers_destroy(self.as_ptr()) };
    }
}

fn shape<'a>(pairs: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> u64 {
    pairs.fold(0, |all, (name, value)| {
        let value = value.map_or(0, |value| value.len() as u64 + 1);
        let one = (name.len() as u64) << 32 ^ value;
        (all.rotate_left(23) ^ one).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

/// Lists that a producer keeps at most, on their way back and to be used again: of a round that is under way and of
/// the next.
const KEPT: usize = 2_000;
/// Shapes that are kept apart: what a transform sets is mostly as long as before.
const SHAPES: usize = 8;
/// … of each so many.
const OF_A_SHAPE: usize = KEPT / SHAPES;
/// Lists of other shapes that are looked at for one record.
const TRIES: usize = 4;

/// The lists of one producer that are in no message.
#[derive(Debug, Default)]
pub(super) struct Spares {
    /// What came back, in the order in which it came.
    back: Mutex<Vec<HeaderList>>,
    kept: Mutex<Kept>,
    /// A name has a NUL in it, and cannot be told from a shorter one.
    is_off: AtomicBool,
}

/// … that are in the hands of whoever makes a batch's headers.
#[derive(Debug, Default)]
pub(super) struct Kept {
    came: Vec<HeaderList>,
    shapes: Vec<(u64, Vec<HeaderList>)>,
}

impl Spares {
    /// Takes one back, if there is room for one more.
    pub(super) fn give(&self, list: impl FnOnce() -> Option<HeaderList>) {
        if self.is_off.load(Relaxed) {
            return;
        }
        let mut back = self.back.lock();
        if back.len() < KEPT
            && let Some(list) = list()
        {
            back.push(list);
        }
    }

    /// For a batch, whose end gives them back.
    pub(super) fn take(&self) -> Kept {
        std::mem::take(&mut *self.kept.lock())
    }

    /// Gives them back.
    pub(super) fn put(&self, kept: Kept) {
        *self.kept.lock() = kept;
    }

    /// Headers of a record.
    pub(super) fn list(&self, kept: &mut Kept, pairs: &[Pair<'_>]) -> HeaderList {
        if let Some(list) = self.written_over(kept, pairs) {
            return list;
        }
        if pairs.iter().any(|(name, _)| name.contains('\0')) {
            self.is_off.store(true, Relaxed);
        }
        HeaderList::of(pairs)
    }

    fn written_over(&self, kept: &mut Kept, pairs: &[Pair<'_>]) -> Option<HeaderList> {
        if self.is_off.load(Relaxed) {
            *kept = Kept::default();
            return None;
        }
        if !kept.shapes.is_empty() {
            let wanted = shape(pairs.iter().map(|(name, value)| (name.as_bytes(), *value)));
            if let Some((_, lists)) = kept.shapes.iter_mut().find(|(s, _)| *s == wanted)
                && let Some(mut list) = lists.pop()
                && list.overwrite(pairs)
            {
                return Some(list);
            }
        }
        for _ in 0..TRIES {
            if kept.came.is_empty() {
                std::mem::swap(&mut kept.came, &mut *self.back.lock());
            }
            let mut list = kept.came.pop()?;
            if list.overwrite(pairs) {
                return Some(list);
            }
            let of = list.shape();
            let is_full = kept.shapes.len() >= SHAPES;
            match kept.shapes.iter_mut().find(|(s, _)| *s == of) {
                Some((_, lists)) if lists.len() < OF_A_SHAPE => lists.push(list),
                None if !is_full => kept.shapes.push((of, vec![list])),
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: &HeaderList) -> Vec<(String, Option<String>)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let all = list.iter();
        all.map(|(name, value)| (text(name), value.map(text)))
            .collect()
    }

    fn list(spares: &Spares, pairs: &[Pair<'_>]) -> (HeaderList, bool) {
        let mut kept = spares.take();
        let over = spares.written_over(&mut kept, pairs);
        let is_used_again = over.is_some();
        let list = over.unwrap_or_else(|| spares.list(&mut kept, pairs));
        spares.put(kept);
        (list, is_used_again)
    }

    fn check(spares: &Spares, pairs: &[Pair<'_>]) -> bool {
        let (list, is_used_again) = list(spares, pairs);
        let expected: Vec<_> = pairs
            .iter()
            .map(|(name, value)| {
                let value = value.map(|v| String::from_utf8(v.to_vec()).unwrap());
                ((*name).to_owned(), value)
            })
            .collect();
        assert_eq!(of(&list), expected);
        spares.give(|| Some(list));
        is_used_again
    }

    #[test]
    fn a_list_is_used_again_for_values_as_long_as_those_in_it() {
        let spares = Spares::default();
        assert!(!check(&spares, &[("a", Some(b"one")), ("b", None)]));
        assert!(check(&spares, &[("a", Some(b"two")), ("b", None)]));
        let others: [&[Pair<'_>]; 5] = [
            &[("a", Some(b"four")), ("b", None)],
            &[("a", Some(b"two")), ("c", None)],
            &[("a", Some(b"two")), ("b", Some(b""))],
            &[("a", Some(b"two"))],
            &[("a", Some(b"two")), ("b", None), ("c", None)],
        ];
        for other in others {
            assert!(!check(&spares, other), "{other:?}");
        }
        // Each of them was kept for its like.
        for other in others {
            assert!(check(&spares, other), "{other:?}");
        }
        assert!(check(&spares, &[("a", Some(b"six")), ("b", None)]));
    }

    #[test]
    fn a_producer_keeps_so_many_and_no_more() {
        let spares = Spares::default();
        let value = [7_u8; 64];
        for bytes in 0..64 {
            for _ in 0..100 {
                spares.give(|| Some(HeaderList::of(&[("a", Some(&value[..bytes]))])));
            }
        }
        assert_eq!(spares.back.lock().len(), KEPT);
        for _ in 0..2 * KEPT {
            drop(list(&spares, &[("b", None)]));
        }
        let kept = spares.take();
        let shapes: usize = kept.shapes.iter().map(|(_, lists)| lists.len()).sum();
        assert!(kept.shapes.len() == SHAPES && shapes <= KEPT, "{shapes}");
        assert!(kept.came.is_empty() && spares.back.lock().is_empty());
    }

    #[test]
    fn a_name_with_a_nul_is_taken_for_no_other() {
        let spares = Spares::default();
        assert!(!check(&spares, &[("ab", Some(b"1"))]));
        let (odd, _) = list(&spares, &[("ab\0c", Some(b"1"))]);
        spares.give(|| Some(odd));
        assert!(!check(&spares, &[("ab", Some(b"2"))]));
    }
}
