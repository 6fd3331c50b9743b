//! Single bad changes, or a broken stage? Pure in `now`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::change::Position;

/// More than `max` dead letters of one stage in `within`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{count} dead letters of {stage} within {}: more than dead_letter.max = {max}, so the stage is taken for broken",
    humantime::format_duration(*.within)
)]
pub struct Flooded {
    /// The stage that made them.
    pub stage: Arc<str>,
    /// How many it would be.
    pub count: usize,
    /// `dead_letter.max`.
    pub max: u32,
    /// `dead_letter.within`.
    pub within: Duration,
}

/// Remembers of which changes each stage made dead letters, and when: at most `max` a stage.
#[derive(Debug, Default)]
pub struct Flood {
    stages: BTreeMap<Arc<str>, VecDeque<(Instant, Position)>>,
}

impl Flood {
    /// Admits dead letters of these changes, made by one stage, or says that they are too many: then none of
    /// them counts as made. A change that is known counts once, however often its letter is written: a shard
    /// that goes back to its checkpoint makes the same letters again. The settings are those of the moment; a
    /// retune forgets nothing that still matters.
    pub fn admit(
        &mut self,
        stage: &Arc<str>,
        changes: &[Position],
        max: u32,
        within: Duration,
        now: Instant,
    ) -> Result<(), Flooded> {
        let times = self.stages.entry(Arc::clone(stage)).or_default();
        while times
            .front()
            .is_some_and(|(t, _)| now.saturating_duration_since(*t) >= within)
        {
            times.pop_front();
        }
        let fresh = changes
            .iter()
            .filter(|c| times.iter().all(|(_, known)| known != *c));
        let fresh: Vec<Position> = fresh.copied().collect();
        let total = times.len() + fresh.len();
        if total > max as usize {
            return Err(Flooded {
                stage: Arc::clone(stage),
                count: total,
                max,
                within,
            });
        }
        times.extend(fresh.into_iter().map(|change| (now, change)));
        Ok(())
    }

    /// Forgets what a stage has made: it was mended and starts anew.
    pub fn forget(&mut self, stage: &str) {
        self.stages.remove(stage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::StreamId;
    use proptest::prelude::*;
    use uuid::Uuid;

    const WITHIN: Duration = Duration::from_secs(60);

    /// The changes `from..from + count`.
    fn changes(from: u64, count: usize) -> Vec<Position> {
        let change = |seq| Position {
            stream: StreamId([1; 16]),
            time: Uuid::from_u128(1),
            seq,
        };
        (from as i32..).take(count).map(change).collect()
    }

    #[test]
    fn one_more_than_max_in_the_window_is_a_flood() {
        let mut flood = Flood::default();
        let (stage, start) = (Arc::from("sink"), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        for s in 0..3 {
            flood
                .admit(&stage, &changes(s, 1), 3, WITHIN, at(s))
                .unwrap();
        }
        for s in 0..3 {
            flood
                .admit(&stage, &changes(s, 1), 3, WITHIN, at(59))
                .expect("known");
        }
        let flooded = flood
            .admit(&stage, &changes(3, 1), 3, WITHIN, at(59))
            .unwrap_err();
        assert_eq!(flooded.count, 4);
        assert!(
            flooded
                .to_string()
                .contains("4 dead letters of sink within 1m")
        );
        flood
            .admit(&stage, &changes(3, 1), 3, WITHIN, at(60))
            .unwrap();
        let other = Arc::from("transform.a");
        flood
            .admit(&other, &changes(0, 3), 3, WITHIN, at(60))
            .unwrap();
        flood.forget("transform.a");
        flood
            .admit(&other, &changes(3, 3), 3, WITHIN, at(61))
            .unwrap();
    }

    proptest! {
        /// Against the plain model: all times ever admitted, counted anew each time.
        #[test]
        fn it_agrees_with_counting(steps in prop::collection::vec((0u64..30, 1usize..4), 1..60), max in 1u32..8) {
            let mut flood = Flood::default();
            let (stage, mut now) = (Arc::from("s"), Instant::now());
            let mut admitted: Vec<Instant> = Vec::new();
            let mut made = 0;
            for (pause, count) in steps {
                now += Duration::from_secs(pause);
                let recent = admitted.iter().filter(|&&t| now - t < WITHIN).count();
                let expected = recent + count <= max as usize;
                let fresh = changes(made, count);
                made += count as u64;
                prop_assert_eq!(flood.admit(&stage, &fresh, max, WITHIN, now).is_ok(), expected);
                if expected {
                    admitted.extend(std::iter::repeat_n(now, count));
                }
            }
        }
    }
}
