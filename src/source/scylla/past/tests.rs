use proptest::prelude::*;

use super::*;
use crate::checkpoint::Checkpoints;

const S: i64 = 1_000_000;
const HORIZON: i64 = 30 * S;

fn group() -> GroupKey {
    GroupKey("ks.t/10/00".into())
}

/// A reader of one stream, as the source reads, and what is acknowledged of its batches.
struct Reader {
    past: Past,
    complete_us: i64,
    acked: Checkpoints,
    /// Handed on: writes, and the progress that goes with them.
    batches: VecDeque<(Vec<(u64, bool)>, Vec<Progress>)>,
    delivered: Vec<(u64, bool)>,
    horizon_us: i64,
}

/// Write, its timestamp and when it appears.
type Log = Vec<(u64, i64, i64)>;

impl Reader {
    fn new(start_us: i64) -> Self {
        Self {
            past: Past::new(group(), start_us),
            complete_us: start_us,
            acked: Checkpoints::new(),
            batches: VecDeque::new(),
            delivered: Vec::new(),
            horizon_us: HORIZON,
        }
    }

    fn take(&mut self, log: &Log, now_us: i64, reading: &Reading, only_late: bool) {
        let known = self.past.known(reading.from_us, self.complete_us);
        let mut own = Progress::new(group());
        let (mut writes, mut others) = (Vec::new(), Vec::new());
        for &(write, time, visible) in log {
            if visible > now_us || !(reading.from_us..reading.to_us).contains(&time) {
                continue;
            }
            let met = self.past.meet(write, time, self.complete_us, &known);
            if met == Met::Done || (only_late && met != Met::Late) {
                continue;
            }
            writes.push((write, met == Met::Late));
            let remembered = self.past.remember(write, time, reading);
            if remembered.noted {
                Arc::make_mut(&mut own.memory.writes).push(write);
            }
            if let Some(leaf) = remembered.leaf {
                own.memory.writes = Arc::default();
                own.memory.moved = true;
                others.push(leaf);
            }
        }
        others.push(own);
        self.batches.push_back((writes, others));
    }

    /// Together with the last batch.
    fn hand_on(&mut self, progress: Vec<Progress>) {
        match self.batches.back_mut() {
            Some((_, last)) => last.extend(progress),
            None => self.batches.push_back((Vec::new(), progress)),
        }
    }

    fn forward(&mut self, log: &Log, now_us: i64) {
        let to_us = now_us - S / 10;
        if to_us <= self.complete_us {
            return;
        }
        let (complete_us, horizon_us) = (self.complete_us, self.horizon_us);
        let reading = self.past.forward(complete_us, to_us, now_us, horizon_us);
        self.take(log, now_us, &reading, false);
        self.past.finished(&reading);
        self.complete_us = to_us;
        let mut news = self.past.news();
        news.push(Progress {
            complete_until_us: Some(to_us),
            ..Progress::new(group())
        });
        self.hand_on(news);
    }

    fn look(&mut self, log: &Log, now_us: i64, free: bool) -> bool {
        let (complete_us, horizon_us) = (self.complete_us, self.horizon_us);
        let plan = self.past.plan(now_us, horizon_us, complete_us, free);
        let Some(reading) = plan else { return false };
        let known = self.past.known(reading.from_us, reading.to_us);
        let found = log
            .iter()
            .filter(|(write, time, visible)| {
                *visible <= now_us
                    && (reading.from_us..reading.to_us).contains(time)
                    && self.past.meet(*write, *time, complete_us, &known) == Met::Late
            })
            .map(|(_, time, _)| *time)
            .collect();
        for (from, to) in spans(found) {
            self.take(log, now_us, &Reading::of_late(from, to, now_us), true);
        }
        self.past.finished(&reading);
        let news = self.past.news();
        self.hand_on(news);
        true
    }

    fn acknowledge(&mut self, batches: usize) {
        for _ in 0..batches {
            let Some((writes, progress)) = self.batches.pop_front() else {
                return;
            };
            self.delivered.extend(writes);
            for p in progress {
                match p.finished {
                    true => drop(self.acked.remove(&p.group)),
                    false => self.acked.entry(p.group.clone()).or_default().apply(&p),
                }
            }
        }
    }

    /// What is not acknowledged is lost with the process.
    fn restart(&mut self) {
        self.batches.clear();
        let key = group();
        // As it comes back from its record.
        let record = crate::checkpoint::topic::encode(&self.acked[&key]);
        let (_, at) =
            crate::checkpoint::topic::decode(Some(key.0.as_bytes()), Some(&record)).unwrap();
        let at = at.unwrap();
        let leaves = crate::checkpoint::leaves(&self.acked, &key);
        self.past = Past::restore(key.clone(), &at, leaves);
        self.complete_us = at.complete_until_us;
    }
}

fn once(log: &Log, delivered: &[(u64, bool)]) -> Result<(), TestCaseError> {
    let mut seen: Vec<u64> = delivered.iter().map(|(w, _)| *w).collect();
    seen.sort_unstable();
    let mut all: Vec<u64> = log.iter().map(|(w, ..)| *w).collect();
    all.sort_unstable();
    prop_assert_eq!(seen, all);
    Ok(())
}

#[test]
fn a_late_write_is_delivered_once_and_marked() {
    let mut reader = Reader::new(100 * S);
    let log = vec![
        (1, 101 * S, 101 * S),
        (2, 102 * S, 102 * S),
        (3, 101 * S + 1, 106 * S),
    ];
    for s in 101..170 {
        reader.forward(&log, s * S);
        reader.look(&log, s * S, true);
    }
    reader.acknowledge(usize::MAX);
    assert_eq!(reader.delivered, [(1, false), (2, false), (3, true)]);
    assert_eq!(reader.past.len(), 0, "what is over is forgotten");
    let left: Vec<_> = reader.acked.keys().collect();
    assert_eq!(left, [&group()], "and its leaves with it");
}

#[test]
fn while_nothing_is_remembered_late_writes_cost_no_look() {
    let mut reader = Reader::new(100 * S);
    let log = vec![(1, 120 * S, 140 * S)];
    for s in 101..141 {
        reader.forward(&log, s * S);
        assert_eq!(s == 140, reader.look(&log, s * S, true));
    }
    reader.acknowledge(usize::MAX);
    assert_eq!(reader.delivered, [(1, true)]);
}

#[test]
fn a_backlog_is_not_remembered() {
    let mut reader = Reader::new(100 * S);
    let log: Log = (0..5_000).map(|i| (i, 100 * S + i as i64, 0)).collect();
    reader.forward(&log, 400 * S);
    assert_eq!(reader.past.len(), 0);
    assert!(!reader.look(&log, 401 * S, true));
}

#[test]
fn switched_off_it_remembers_nothing_and_looks_at_nothing() {
    let mut reader = Reader::new(100 * S);
    let log: Log = (0..3_000).map(|i| (i, 100 * S + i as i64, 0)).collect();
    reader.forward(&log, 101 * S);
    assert_eq!(reader.past.len(), 3_000);
    reader.horizon_us = 0;
    assert!(!reader.look(&log, 102 * S, true));
    reader.past.let_go(reader.complete_us);
    assert_eq!(reader.past.len(), 0);
    let news = reader.past.news();
    reader.hand_on(news);
    reader.acknowledge(usize::MAX);
    assert!(reader.acked.keys().all(|k| k.leaf_of().is_none()));
    assert!(reader.acked[&group()].writes.is_empty());
    reader.forward(&log, 103 * S);
    assert_eq!(reader.past.len(), 0);
    // And on again: what was handed on meanwhile is not taken for late.
    reader.horizon_us = HORIZON;
    for s in 104..150 {
        reader.forward(&log, s * S);
        reader.look(&log, s * S, true);
    }
    reader.acknowledge(usize::MAX);
    assert_eq!(reader.delivered.len(), 3_000);
}

#[test]
fn the_first_version_of_a_checkpoint_makes_nothing_late() {
    let at = GroupCheckpoint {
        complete_until_us: 100 * S,
        ..GroupCheckpoint::default()
    };
    let past = Past::restore(group(), &at, []);
    let known = past.known(0, 100 * S);
    assert_eq!(past.meet(1, 99 * S, 100 * S, &known), Met::Done);
}

#[test]
fn a_look_takes_about_a_page_and_the_next_goes_on_there() {
    let mut reader = Reader::new(100 * S);
    let log: Log = (0..100_000)
        .map(|i| (i, 100 * S + i as i64 * 100, 0))
        .collect();
    for s in 101..112 {
        reader.forward(&log, s * S);
    }
    let (complete_us, mut from_us) = (reader.complete_us, 100 * S);
    let mut looks = 0;
    while from_us < complete_us {
        let look = reader.past.plan(111 * S, HORIZON, complete_us, true);
        let look = look.unwrap();
        assert_eq!(look.from_us, from_us);
        assert!(look.to_us - look.from_us <= 23_000 * 100 || look.to_us == complete_us);
        from_us = look.to_us;
        looks += 1;
    }
    assert!((5..=6).contains(&looks), "{looks}");
    let plan = |past: &mut Past, s| past.plan(s * S, HORIZON, complete_us, false);
    assert_eq!(plan(&mut reader.past, 111), None);
    let due = plan(&mut reader.past, 136).map(|look| look.from_us);
    assert_eq!(due, Some(100 * S), "before it can be forgotten");
}

#[test]
fn many_late_writes_are_read_in_few_spans() {
    assert!(spans(vec![]).is_empty());
    assert_eq!(spans(vec![5, 5, 90_000, 7]), [(5, 8), (90_000, 90_001)]);
    let many = spans((0..10_000).map(|i| i * 20_000).collect());
    assert!(many.len() <= SPANS && !many.is_empty());
    let covered = |t: i64| many.iter().any(|(from, to)| (*from..*to).contains(&t));
    assert!((0..10_000).all(|i| covered(i * 20_000)));
}

/// Writes this often, in µs, for 20 s: the bytes of the group's own record and of the leaves, and the leaves,
/// each second.
fn cost(every_us: i64) -> (usize, usize, usize) {
    let mut reader = Reader::new(100 * S);
    let log: Log = (0..20 * S / every_us)
        .map(|i| (i as u64 * 7_919, 100 * S + i * every_us, 0))
        .collect();
    let (mut own, mut leaves, mut records) = (0, 0, 0);
    for s in 101..121 {
        for tenth in 0..10 {
            reader.forward(&log, s * S + tenth * S / 10);
        }
        let before: Vec<GroupKey> = reader.acked.keys().cloned().collect();
        reader.acknowledge(usize::MAX);
        for (key, checkpoint) in &reader.acked {
            let bytes = crate::checkpoint::topic::encode(checkpoint).len();
            if key.leaf_of().is_none() {
                own += bytes;
            } else if !before.contains(key) {
                leaves += bytes;
                records += 1;
            }
        }
    }
    (own / 20, leaves / 20, records / 20)
}

#[test]
fn checkpoints_stay_small() {
    for (every_us, most_own, most_bytes_a_write) in
        [(10_000, 1_500, 30), (1_000, 11_500, 24), (100, 11_500, 13)]
    {
        let (own, leaves, records) = cost(every_us);
        let a_second = (S / every_us) as usize;
        eprintln!(
            "{a_second} writes/s: a checkpoint of {own} bytes, {records} leaves/s of {leaves} bytes together"
        );
        assert!(own <= most_own, "{own}");
        assert!(own + leaves <= most_bytes_a_write * a_second);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whenever writes come, whatever is acknowledged when the process ends: each is delivered once.
    #[test]
    fn no_write_is_lost_or_repeated(
        steps in prop::collection::vec(
            (0u8..10, 1i64..2_000, prop_oneof![Just(0i64), 0..2_000i64, 0..29_000i64], 1usize..200),
            1..300,
        ),
    ) {
        let mut reader = Reader::new(100 * S);
        let (mut now, mut log, mut next) = (130 * S, Log::new(), 0u64);
        // A first checkpoint, as the reader hands one on when it starts.
        reader.forward(&log, now);
        reader.acknowledge(usize::MAX);
        for (what, wait_ms, late_ms, many) in steps {
            match what {
                0..4 => for i in 0..many {
                    let time = now - late_ms * 1_000 - i as i64;
                    log.push((next.wrapping_mul(0x9e37_79b9_7f4a_7c15), time, now));
                    next += 1;
                },
                4..6 => reader.forward(&log, now),
                6 => drop(reader.look(&log, now, true)),
                7 => drop(reader.look(&log, now, false)),
                8 => reader.acknowledge(many),
                _ => reader.restart(),
            }
            now += wait_ms * 1_000;
        }
        for _ in 0..90 {
            now += S;
            reader.forward(&log, now);
            reader.look(&log, now, true);
        }
        reader.acknowledge(usize::MAX);
        once(&log, &reader.delivered)?;
        prop_assert_eq!(reader.past.len(), 0);
        prop_assert_eq!(reader.acked.len(), 1);
    }
}
