//! Tokens: Cassandra's Murmur3 variant, the ring of vnodes, and the shard of a token.

/// The token of a serialised partition key.
///
/// This is MurmurHash3 x64-128 as Cassandra has it, whose tail bytes are sign-extended; ScyllaDB
/// follows it (docs/architecture/ringarchitecture; `utils/murmur_hash.cc`). `i64::MIN` is mapped to
/// `i64::MAX`, for the minimum stands for "before all keys".
pub fn murmur3(key: &[u8]) -> i64 {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let mix1 = |k: u64| k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    let mix2 = |k: u64| k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    let finish = |mut k: u64| {
        k ^= k >> 33;
        k = k.wrapping_mul(0xff51_afd7_ed55_8ccd);
        k ^= k >> 33;
        k = k.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        k ^ (k >> 33)
    };
    let (mut h1, mut h2) = (0u64, 0u64);
    let mut blocks = key.chunks_exact(16);
    for block in &mut blocks {
        let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().unwrap_or_default());
        h1 = (h1 ^ mix1(word(0)))
            .rotate_left(27)
            .wrapping_add(h2)
            .wrapping_mul(5)
            .wrapping_add(0x52dc_e729);
        h2 = (h2 ^ mix2(word(8)))
            .rotate_left(31)
            .wrapping_add(h1)
            .wrapping_mul(5)
            .wrapping_add(0x3849_5ab5);
    }
    let (mut k1, mut k2) = (0u64, 0u64);
    for (i, byte) in blocks.remainder().iter().enumerate() {
        let extended = *byte as i8 as i64 as u64;
        if i < 8 {
            k1 ^= extended << (8 * i);
        } else {
            k2 ^= extended << (8 * (i - 8));
        }
    }
    h2 ^= mix2(k2);
    h1 ^= mix1(k1);
    h1 ^= key.len() as u64;
    h2 ^= key.len() as u64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    h1 = finish(h1);
    h2 = finish(h2);
    match h1.wrapping_add(h2) as i64 {
        i64::MIN => i64::MAX,
        token => token,
    }
}

/// How many of a token's most significant bits ScyllaDB ignores when it chooses a shard
/// (`murmur3_partitioner_ignore_msb_bits`, default 12).
pub(super) const IGNORE_MSB: u32 = 12;

fn unbias(token: i64) -> u64 {
    (token as u64).wrapping_add(1 << 63)
}

fn bias(n: u64) -> i64 {
    n.wrapping_sub(1 << 63) as i64
}

fn zero_based_shard(n: u64, shards: u32) -> u32 {
    ((u128::from(n << IGNORE_MSB) * u128::from(shards)) >> 64) as u32
}

/// The shard of `token` among `shards` ("biased token round robin", `dht/token.cc`).
pub(super) fn shard_of(token: i64, shards: u32) -> u32 {
    zero_based_shard(unbias(token), shards)
}

/// The first token after `token` that belongs to `shard`, or `i64::MAX` when the ring ends first.
fn next_token_for_shard(token: i64, shard: u32, shards: u32) -> i64 {
    let n = unbias(token);
    let mut left = (n >> (64 - IGNORE_MSB)) + 1 - u64::from(shard > zero_based_shard(n, shards));
    if left >= 1 << IGNORE_MSB {
        return i64::MAX;
    }
    left <<= 64 - IGNORE_MSB;
    let mut start = if shards == 1 {
        0
    } else {
        (((u128::from(shard)) << 64) / u128::from(shards)) as u64 >> IGNORE_MSB
    };
    while shards > 1 && zero_based_shard(start, shards) != shard {
        start += 1;
    }
    bias(left | start)
}

/// The first token of `shard` in the range `(start, end]`, which wraps when `start >= end`; a range
/// without such a token gives its end (`find_first_token_for_shard` of `dht/token.cc`).
pub(super) fn first_token_for_shard(start: i64, end: i64, shard: u32, shards: u32) -> i64 {
    let within = |start: i64, end: i64| {
        let first = start.wrapping_add(1);
        let token = if shard_of(first, shards) == shard {
            first
        } else {
            next_token_for_shard(first, shard, shards)
        };
        token.min(end)
    };
    if start < end {
        return within(start, end);
    }
    if start != i64::MAX {
        let token = within(start, i64::MAX);
        if token != i64::MAX {
            return token;
        }
    }
    within(i64::MIN, end)
}

/// The last tokens of `count` equal ranges of the ring, ascending. Vnodes are placed so (a real node
/// draws them at random, which no reader may depend on), and so are tablets.
pub(super) fn range_ends(count: u32) -> Vec<i64> {
    let count = count.max(1);
    (1..=u128::from(count))
        .map(|i| {
            let end = (i << 64) / u128::from(count);
            ((end as i128 - 1) - (1i128 << 63)) as i64
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_equal_those_of_the_official_driver() {
        use scylla::routing::partitioner::{Murmur3Partitioner, Partitioner};
        for length in 0..64u8 {
            let key: Vec<u8> = (0..length)
                .map(|i| i.wrapping_mul(37).wrapping_add(0x80))
                .collect();
            assert_eq!(
                murmur3(&key),
                Murmur3Partitioner.hash_one(&key).value(),
                "length {length}"
            );
        }
    }

    #[test]
    fn every_shard_has_its_first_token_inside_the_range() {
        let ends = range_ends(16);
        assert_eq!(*ends.last().unwrap(), i64::MAX);
        for shards in [1, 2, 3, 7] {
            for (i, end) in ends.iter().enumerate() {
                let start = if i == 0 { i64::MAX } else { ends[i - 1] };
                for shard in 0..shards {
                    let token = first_token_for_shard(start, *end, shard, shards);
                    assert_eq!(shard_of(token, shards), shard);
                    assert!(token <= *end && (i == 0 || token > start));
                }
            }
        }
    }
}
