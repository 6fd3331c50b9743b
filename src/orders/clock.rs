//! Write timestamps and event ids that only grow.

use std::sync::atomic::{AtomicI64, AtomicU16, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::{NoContext, Timestamp, Uuid};

/// Gives every write of this process a later timestamp than the one before, whatever the clock does.
#[derive(Debug)]
pub(super) struct Clock {
    last_us: AtomicI64,
    sequence: AtomicU16,
    node: [u8; 6],
}

impl Clock {
    pub(super) fn new() -> Self {
        let random = Uuid::new_v4();
        let mut node: [u8; 6] = std::array::from_fn(|i| random.as_bytes()[i]);
        node[0] |= 1; // The multicast bit says: not a hardware address (RFC 9562, 6.10).
        Self {
            last_us: AtomicI64::new(0),
            sequence: AtomicU16::new(u16::from(random.as_bytes()[7])),
            node,
        }
    }

    /// Microseconds since the Unix epoch, greater than ever before.
    pub(super) fn next_us(&self) -> i64 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_micros() as i64);
        let later = |last: i64| Some(now.max(last + 1));
        match self.last_us.fetch_update(Relaxed, Relaxed, later) {
            Ok(last) | Err(last) => now.max(last + 1),
        }
    }

    /// The event id of a write at this timestamp.
    pub(super) fn event_id(&self, us: i64) -> Uuid {
        let (secs, nanos) = ((us / 1_000_000) as u64, (us % 1_000_000) as u32 * 1_000);
        let sequence = self.sequence.fetch_add(1, Relaxed) & 0x3fff;
        let time = Timestamp::from_unix(NoContext, secs, nanos)
            .to_gregorian()
            .0;
        Uuid::new_v1(Timestamp::from_gregorian_time(time, sequence), &self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_only_grow_and_event_ids_carry_them() {
        let clock = Clock::new();
        let stamps: Vec<i64> = (0..1_000).map(|_| clock.next_us()).collect();
        assert!(stamps.windows(2).all(|w| w[0] < w[1]));
        let id = clock.event_id(stamps[0]);
        assert_eq!(crate::change::timeuuid_us(&id), stamps[0]);
    }
}
