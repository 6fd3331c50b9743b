//! What becomes of many cases: how many end in what, and how fast they go.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// Outcomes that are told apart; those that come after are counted together.
const KINDS: usize = 60;

/// A long form says so often how far it is.
const SAID: Duration = Duration::from_secs(60);

/// Counts outcomes by what they say, in which numbers, names and places do not count.
#[derive(Debug)]
pub struct Tally {
    what: &'static str,
    begun: Instant,
    said: Instant,
    cases: u64,
    outcomes: BTreeMap<String, u64>,
}

impl Tally {
    /// Of nothing yet; `what` is counted.
    pub fn of(what: &'static str) -> Self {
        let now = Instant::now();
        Self {
            what,
            begun: now,
            said: now,
            cases: 0,
            outcomes: BTreeMap::new(),
        }
    }

    /// One more that ended so.
    pub fn count(&mut self, outcome: &str) {
        self.cases += 1;
        let mut kind = kind(outcome);
        if self.outcomes.len() >= KINDS && !self.outcomes.contains_key(&kind) {
            "anything else".clone_into(&mut kind);
        }
        *self.outcomes.entry(kind).or_default() += 1;
        // The clock is not asked each time.
        if self.cases.is_multiple_of(1024) && self.said.elapsed() > SAID {
            self.said = Instant::now();
            println!("{} {}, {:.0} a second", self.cases, self.what, self.rate());
        }
    }

    /// How many ended so.
    pub fn ended(&self, outcome: &str) -> u64 {
        self.outcomes.get(&kind(outcome)).copied().unwrap_or(0)
    }

    fn rate(&self) -> f64 {
        let cases = u32::try_from(self.cases).unwrap_or(u32::MAX);
        f64::from(cases) / self.begun.elapsed().as_secs_f64()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cases, what, rate) = (self.cases, self.what, self.rate());
        let took = self.begun.elapsed().as_secs_f64();
        writeln!(f, "{cases} {what} in {took:.1} s, {rate:.0} a second:")?;
        let mut kinds: Vec<_> = self.outcomes.iter().collect();
        kinds.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        kinds
            .into_iter()
            .try_for_each(|(kind, n)| writeln!(f, "{n:>10}  {kind}"))
    }
}

/// A text without its numbers and what it quotes, and no longer than a line.
fn kind(text: &str) -> String {
    let (mut kind, mut quoted) = (String::new(), false);
    for c in text.chars().take(160) {
        match c {
            '`' => {
                kind += if quoted { "" } else { "`…`" };
                quoted = !quoted;
            }
            _ if quoted => {}
            // Offsets are in hexadecimals.
            '0'..='9' | 'a'..='f' | 'x' if kind.ends_with('#') => {}
            '0'..='9' => kind.push('#'),
            '\n' => break,
            c => kind.push(c),
        }
    }
    kind.chars().take(110).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_that_differ_in_numbers_and_names_are_one() {
        let mut tally = Tally::of("cases");
        for outcome in ["at 0x12: `a` of 3", "at 0xfe7: `some b` of 44", "fine"] {
            tally.count(outcome);
        }
        assert_eq!(tally.ended("at 1: `c` of 1"), 2);
        let said = tally.to_string();
        assert!(said.starts_with("3 cases in "), "{said}");
        assert!(said.contains("\n         2  at #: `…` of #\n"), "{said}");
    }
}
