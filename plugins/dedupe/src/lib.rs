//! Lets go of events whose key was seen before, in a window of bounded memory. See docs/plugins/dedupe.md.
//!
//! A change may be handed out again: after a failed delivery the shard goes back to what is settled. What is the same change
//! again must pass, or it would be lost. So a key is remembered with the write time of the event that passed, and one of that
//! very time passes once more.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use penstock_plugin::{
    About, Change, Error, Interest, Output, Setting, Settings, Table, Transform, bail,
};
use penstock_plugin_events::{Event, Template};

/// The most keys: at some 80 bytes a key, half of the memory that a transform has by default.
const MOST: usize = 400_000;

struct Dedupe {
    key: Template,
    keys: usize,
    within_us: Option<i64>,
    missing_pass: bool,
    /// Fingerprints of keys, with the write time of the event that passed.
    seen: HashMap<[u64; 2], i64>,
    /// In the order in which they were seen first.
    order: VecDeque<[u64; 2]>,
}

impl Transform for Dedupe {
    fn about() -> About {
        About::new("Lets go of events whose key was seen before, among the last ones and within a time.")
            .setting(Setting::text("key").required().doc("what makes two events the same, e.g. `{headers.event-id}` or `{columns.event_id}`"))
            .setting(Setting::integer("keys").default("100000").doc("how many keys a shard remembers, 400000 at most"))
            .setting(Setting::text("within").doc("how far apart two events are written at most, e.g. \"10m\"; any time, if it is not set"))
            .setting(Setting::choice("missing", &["error", "pass"]).default("error").doc("an event that has no such key"))
    }

    fn configure(settings: &Settings) -> Result<Self, Error> {
        let keys = settings.parse("keys")?.unwrap_or(100_000);
        if !(1..=MOST).contains(&keys) {
            bail!("setting `keys` = {keys}: expected 1 to {MOST}");
        }
        let within = settings.get("within");
        Ok(Self {
            key: Template::parse("key", settings.required("key")?)?,
            keys,
            within_us: within.map(micros).transpose()?,
            missing_pass: settings.get("missing") == Some("pass"),
            seen: HashMap::new(),
            order: VecDeque::new(),
        })
    }

    fn interest(&mut self, _: &Table) -> Result<Interest, Error> {
        Ok(Interest::All)
    }

    fn process(&mut self, change: &Change<'_>, out: &mut Output) -> Result<(), Error> {
        let key = match self.key.fill(&Event::of(change)) {
            Ok(key) => key,
            Err(_) if self.missing_pass => {
                out.forward(change);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        match self.is_repeated(&key, change.time_us()) {
            true => out.discard(change),
            false => out.forward(change),
        }
        Ok(())
    }
}

impl Dedupe {
    fn is_repeated(&mut self, key: &str, time_us: i64) -> bool {
        let print = fingerprint(key);
        if let Some(first) = self.seen.get_mut(&print) {
            let apart = time_us.abs_diff(*first);
            let within = self
                .within_us
                .is_none_or(|within| apart <= within.unsigned_abs());
            if !within {
                *first = time_us;
            }
            return within && apart > 0;
        }
        if self.order.len() >= self.keys
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        self.order.push_back(print);
        self.seen.insert(print, time_us);
        false
    }
}

/// 128 bits: of a million keys two are alike once in 10²⁶ windows, and an event that is none would be let go of.
fn fingerprint(key: &str) -> [u64; 2] {
    [0u8, 1].map(|half| {
        let mut hasher = DefaultHasher::new();
        (half, key).hash(&mut hasher);
        hasher.finish()
    })
}

fn micros(text: &str) -> Result<i64, Error> {
    let units = [
        ("ms", 1_000),
        ("s", 1_000_000),
        ("m", 60_000_000),
        ("h", 3_600_000_000),
        ("d", 86_400_000_000),
    ];
    let read = units.into_iter().find_map(|(unit, micros)| {
        let number: i64 = text.trim().strip_suffix(unit)?.trim().parse().ok()?;
        number.checked_mul(micros).filter(|us| *us > 0)
    });
    read.ok_or_else(|| {
        Error::new(format!(
            "setting `within` = {text:?}: expected a duration such as \"30s\", \"10m\" or \"2h\""
        ))
    })
}

penstock_plugin::export_plugin!(Dedupe);

#[cfg(test)]
mod tests {
    use super::*;

    fn dedupe(settings: &[(&str, &str)]) -> Dedupe {
        let settings = settings.iter().chain(&[("key", "{key}")]);
        let settings = settings
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        Dedupe::configure(&settings).unwrap()
    }

    #[test]
    fn what_is_handed_out_again_passes_again_and_its_repeats_do_not() {
        let mut dedupe = dedupe(&[]);
        let batch = [("a", 1), ("b", 2), ("a", 3), ("c", 4), ("b", 5)];
        let mut run = || batch.map(|(key, at)| !dedupe.is_repeated(key, at));
        let first = run();
        assert_eq!(first, [true, true, false, true, false]);
        assert_eq!(run(), first, "after a rewind");
    }

    #[test]
    fn the_memory_is_bounded_and_of_each_key_one_event_passes() {
        let mut dedupe = dedupe(&[("keys", "2")]);
        let batch = [("a", 1), ("b", 2), ("c", 3), ("a", 4), ("a", 5)];
        let mut run = || batch.map(|(key, at)| !dedupe.is_repeated(key, at));
        assert_eq!(
            run(),
            [true, true, true, true, false],
            "the first was forgotten"
        );
        let again = run();
        assert!(again[0] || again[3], "{again:?}");
        assert_eq!((dedupe.seen.len(), dedupe.order.len()), (2, 2));
    }

    #[test]
    fn times_apart_are_read() {
        assert_eq!(micros("10m").unwrap(), 600_000_000);
        assert_eq!(micros("5ms").unwrap(), 5_000);
        assert!(micros("soon").is_err() && micros("-1s").is_err() && micros("0s").is_err());
    }
}
