//! How much may be remembered of what was handed on, in all shards together.
//!
//! 8 bytes a write and 30 s of 250,000 writes/s are 60 MB. What is more than there is room for shortens the time for
//! which late writes are looked for, which is said; it grows again when there is room.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// 64 MiB.
const MOST: usize = 8 << 20;
/// How often the horizon is set anew.
const PAUSE: Duration = Duration::from_secs(1);
/// Below this it is of no use.
const LEAST: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Room {
    writes: AtomicUsize,
    /// What the horizon is cut to, and when that was looked at.
    cut: Mutex<(Option<Duration>, Option<Instant>)>,
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            writes: AtomicUsize::new(0),
            cut: Mutex::new((None, None)),
        }
    }

    /// A shard remembers so many now, and remembered so many before.
    pub(super) fn count(&self, before: usize, now: usize) {
        self.writes.fetch_add(now, Relaxed);
        self.writes.fetch_sub(before, Relaxed);
    }

    /// How far back to look, at most `wanted`.
    pub(super) fn horizon(&self, wanted: Duration, now: Instant) -> Duration {
        let (cut, looked) = &mut *self.cut.lock();
        if looked.is_none_or(|at| now.saturating_duration_since(at) >= PAUSE) {
            *looked = Some(now);
            let writes = self.writes.load(Relaxed);
            let at = cut.unwrap_or(wanted).min(wanted);
            if writes > MOST {
                let next = (at * 3 / 4).max(LEAST);
                if cut.is_none() {
                    tracing::warn!(
                        ?next,
                        "more changes than can be remembered, looking less far back for late ones"
                    );
                }
                *cut = Some(next);
            } else if cut.is_some() && writes < MOST / 2 {
                let next = at * 5 / 4;
                *cut = (next < wanted).then_some(next);
                if cut.is_none() {
                    tracing::info!("looking as far back for late changes as is set");
                }
            }
        }
        cut.map_or(wanted, |cut| cut.min(wanted))
    }

    /// How far back is looked, if that is less than is set.
    pub(super) fn shrunk(&self) -> Option<Duration> {
        self.cut.lock().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shrinks_while_there_is_too_much_and_grows_back() {
        let (room, start) = (Room::new(), Instant::now());
        let wanted = Duration::from_secs(30);
        let mut second = 0;
        let mut horizon = |room: &Room| {
            second += 1;
            room.horizon(wanted, start + second * PAUSE)
        };
        room.count(0, MOST);
        assert_eq!(horizon(&room), wanted);
        room.count(0, 1);
        assert_eq!(horizon(&room), wanted * 3 / 4);
        assert_eq!(room.shrunk(), Some(wanted * 3 / 4));
        for _ in 0..50 {
            horizon(&room);
        }
        assert_eq!(horizon(&room), LEAST);
        room.count(MOST + 1, MOST * 3 / 4);
        assert_eq!(horizon(&room), LEAST, "neither too much nor little");
        room.count(MOST * 3 / 4, 10);
        for _ in 0..20 {
            horizon(&room);
        }
        assert_eq!((horizon(&room), room.shrunk()), (wanted, None));
    }
}
