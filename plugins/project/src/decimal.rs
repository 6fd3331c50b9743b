//! Numbers by their digits: none is lost on the way, as it would be in a float.

/// A number as it is written, in JSON or nearly so.
#[derive(Debug)]
pub(crate) struct Decimal {
    minus: bool,
    whole: String,
    fraction: String,
    power: i64,
}

/// The most digits that a power of ten adds to an integer: `1e999999999` is nothing to write out.
const MOST_ZEROS: usize = 1_000;

impl Decimal {
    /// `None`: it is no number.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (minus, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (mantissa, power) = match text.split_once(['e', 'E']) {
            Some((mantissa, power)) => (mantissa, power.parse().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let some = !(whole.is_empty() && fraction.is_empty());
        (some && digits(whole) && digits(fraction)).then(|| Self {
            minus,
            whole: whole.to_owned(),
            fraction: fraction.to_owned(),
            power,
        })
    }

    pub(crate) fn is_zero(&self) -> bool {
        [&self.whole, &self.fraction]
            .iter()
            .all(|part| part.bytes().all(|b| b == b'0'))
    }

    /// As JSON has numbers, with all its digits.
    pub(crate) fn number(&self) -> String {
        let mut out = self.signed(&self.whole);
        if !self.fraction.is_empty() {
            out.push('.');
            out.push_str(&self.fraction);
        }
        if self.power != 0 {
            out.push_str(&format!("e{}", self.power));
        }
        out
    }

    /// All digits of a whole number; `None`: it has a fraction, or is too long to be written out.
    pub(crate) fn integer(&self) -> Option<String> {
        if self.is_zero() {
            return Some("0".to_owned());
        }
        let all = format!("{}{}", self.whole, self.fraction);
        let significant = all.trim_end_matches('0').len();
        let point = i64::try_from(self.whole.len())
            .ok()?
            .checked_add(self.power)?;
        let point = usize::try_from(point).ok()?;
        let zeros = point.saturating_sub(all.len());
        if point < significant || zeros > MOST_ZEROS {
            return None;
        }
        let digits = &all[..point.min(all.len())];
        Some(self.signed(&format!("{digits}{}", "0".repeat(zeros))))
    }

    fn signed(&self, whole: &str) -> String {
        let digits = match whole.trim_start_matches('0') {
            "" => "0",
            digits => digits,
        };
        format!("{}{digits}", if self.minus { "-" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::Decimal;

    #[test]
    fn a_number_keeps_its_digits_and_an_integer_has_no_fraction() {
        for (text, number, integer) in [
            ("7", "7", Some("7")),
            ("+007", "7", Some("7")),
            ("-0", "-0", Some("0")),
            (".5", "0.5", None),
            ("1.", "1", Some("1")),
            ("1.50", "1.50", None),
            ("-1.00", "-1.00", Some("-1")),
            ("1.25e2", "1.25e2", Some("125")),
            ("1.25E+1", "1.25e1", None),
            ("1200e-2", "1200e-2", Some("12")),
            ("1e-400", "1e-400", None),
            ("2e3", "2e3", Some("2000")),
            ("1e999999999", "1e999999999", None),
            (
                "12345678901234567890123.000",
                "12345678901234567890123.000",
                Some("12345678901234567890123"),
            ),
        ] {
            let read = Decimal::parse(text).unwrap();
            assert_eq!(read.number(), number, "{text}");
            assert_eq!(read.integer().as_deref(), integer, "{text}");
        }
        for text in [
            "", "-", ".", "e5", "1e", "many", "0x1", "1 2", "NaN", "--1", "1e5.5",
        ] {
            assert!(Decimal::parse(text).is_none(), "{text}");
        }
        assert!(Decimal::parse("-0.00e7").unwrap().is_zero());
        assert!(!Decimal::parse("1e-400").unwrap().is_zero());
    }
}
