//! Copying, comparing and writing short texts, where that is done for each change.
//!
//! A copy whose length is known only as it runs is a call into the host there (`memory.copy`), and `==` goes byte by byte.
//! So short ones are made of two pieces that overlap, of a length that the compiler knows.

/// Copies `from` to where there is room for just as much.
///
/// # Panics
/// If the lengths differ.
#[inline]
pub fn copy(to: &mut [u8], from: &[u8]) {
    if !cfg!(target_arch = "wasm32") {
        return to.copy_from_slice(from);
    }
    assert_eq!(to.len(), from.len(), "room for just as much");
    in_pieces(to, from);
}

#[inline]
fn in_pieces(to: &mut [u8], from: &[u8]) {
    #[inline]
    fn ends<const N: usize>(to: &mut [u8], from: &[u8]) {
        if let (Some(a), Some(b)) = (to.first_chunk_mut::<N>(), from.first_chunk()) {
            *a = *b;
        }
        if let (Some(a), Some(b)) = (to.last_chunk_mut::<N>(), from.last_chunk()) {
            *a = *b;
        }
    }
    match from.len() {
        0 => {}
        1 => ends::<1>(to, from),
        2..=3 => ends::<2>(to, from),
        4..=7 => ends::<4>(to, from),
        8..=15 => ends::<8>(to, from),
        16..=31 => ends::<16>(to, from),
        32..=63 => ends::<32>(to, from),
        64..=128 => ends::<64>(to, from),
        _ => to.copy_from_slice(from),
    }
}

/// Whether two texts are the same.
#[inline]
pub fn same(a: &[u8], b: &[u8]) -> bool {
    match cfg!(target_arch = "wasm32") {
        true => a.len() == b.len() && same_in_pieces(a, b),
        false => a == b,
    }
}

/// … of the same length.
#[inline]
fn same_in_pieces(a: &[u8], b: &[u8]) -> bool {
    #[inline]
    fn differ<const N: usize>(a: &[u8], b: &[u8]) -> bool {
        a.first_chunk::<N>() != b.first_chunk::<N>() || a.last_chunk::<N>() != b.last_chunk::<N>()
    }
    match a.len() {
        0..=3 => a.iter().zip(b).all(|(a, b)| a == b),
        4..=7 => !differ::<4>(a, b),
        8..=16 => !differ::<8>(a, b),
        _ => !differ::<8>(a, b) && a == b,
    }
}

/// The text of a UUID, in lower case. That of the crate `uuid` goes digit by digit.
#[inline]
pub fn hyphenated(id: &[u8; 16]) -> [u8; 36] {
    let [a, b, c, d] = digits(id).map(u64::from_le_bytes);
    // In whole words: what is written in pieces and then read across them waits until it is in memory.
    let [low, mid] = [0x2d00_0000_002d, 0x2d00_0000_002d_0000];
    let words = [
        a,
        low | b << 8 & 0x00ff_ffff_ff00 | b >> 32 << 48,
        mid | b >> 48 | c << 32 >> 8,
        c >> 32 | d << 32,
    ];
    let mut text = [0; 36];
    let (head, tail) = text.split_at_mut(32);
    let (head, _) = head.as_chunks_mut::<8>();
    head.copy_from_slice(&words.map(u64::to_le_bytes));
    tail.copy_from_slice(&((d >> 32) as u32).to_le_bytes());
    text
}

/// Sixteen bytes in hexadecimal digits, in lower case.
#[inline]
pub fn hex(bytes: &[u8; 16]) -> [u8; 32] {
    let mut text = [0; 32];
    let (parts, _) = text.as_chunks_mut::<8>();
    parts.copy_from_slice(&digits(bytes));
    text
}

#[inline]
fn digits(bytes: &[u8; 16]) -> [[u8; 8]; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|word| digits_of(u32::from_le_bytes(words[word])).to_le_bytes())
}

/// The hexadecimal digits of four bytes, all at once: the first byte is the lowest, of eight digits as of four bytes.
#[inline]
fn digits_of(bytes: u32) -> u64 {
    let spread = u64::from(bytes);
    let spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
    let spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
    // The higher digit stands first.
    let digits = (spread >> 4 & 0x000f_000f_000f_000f) | (spread & 0x000f_000f_000f_000f) << 8;
    let letters = (digits + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
    digits + 0x3030_3030_3030_3030 + letters * u64::from(b'a' - b'0' - 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn digits_are_those_that_others_write() {
        for byte in 0..=255u8 {
            let id = std::array::from_fn(|i| {
                byte.wrapping_mul(17)
                    .wrapping_add((i as u8).wrapping_mul(31))
            });
            let (text, plain) = (hyphenated(&id), hex(&id));
            let expected = Uuid::from_bytes(id);
            assert_eq!(std::str::from_utf8(&text).unwrap(), expected.to_string());
            let expected = expected.simple().to_string();
            assert_eq!(std::str::from_utf8(&plain).unwrap(), expected);
        }
    }

    #[test]
    fn pieces_are_the_whole() {
        let from: Vec<u8> = (1..=200).collect();
        for len in 0..=from.len() {
            let from = &from[..len];
            let mut to = vec![0; len];
            in_pieces(&mut to, from);
            assert_eq!(to, from);
            assert!(same_in_pieces(&to, from));
            for at in 0..len {
                to[at] ^= 1;
                assert!(!same_in_pieces(&to, from), "{len} bytes, at {at}");
                to[at] ^= 1;
            }
        }
    }
}
