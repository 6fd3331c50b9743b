//! W3C trace contexts, <https://www.w3.org/TR/trace-context/#traceparent-header>.

use std::fmt;

/// Bytes of a `traceparent` of version 00.
const LENGTH: usize = 55;

/// Where a trace is: what a `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace; never zero.
    pub trace: u128,
    /// The span that whatever comes next is a child of; never zero.
    pub span: u64,
    /// Whether whoever made it records it.
    pub sampled: bool,
}

impl Context {
    /// Reads a `traceparent`; `None` for what the standard tells to ignore. Of a later version it takes what version 00
    /// has, as the standard asks.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (head, rest) = text.split_at_checked(LENGTH)?;
        let dashes = [2, 35, 52].into_iter().all(|at| head[at] == b'-');
        let number = |text: &[u8]| {
            let lower = text.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            let text = std::str::from_utf8(text).ok().filter(|_| lower)?;
            u128::from_str_radix(text, 16).ok()
        };
        let version = number(&head[..2])?;
        let more = version > 0 && rest.first().is_none_or(|&b| b == b'-');
        if !dashes || version == 0xff || !(rest.is_empty() || more) {
            return None;
        }
        let context = Self {
            trace: number(&head[3..35])?,
            span: u64::try_from(number(&head[36..52])?).ok()?,
            sampled: number(&head[53..])? & 1 == 1,
        };
        (context.trace != 0 && context.span != 0).then_some(context)
    }

    /// As a `traceparent` of version 00, without an allocation.
    pub fn text(&self) -> [u8; LENGTH] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let mut hex = |value: u128, mut at: usize, digits: usize| {
            at += digits;
            for i in 0..digits {
                text[at - 1 - i] = b"0123456789abcdef"[(value >> (4 * i)) as usize & 15];
            }
        };
        hex(self.trace, 3, 32);
        hex(self.span.into(), 36, 16);
        hex(self.sampled.into(), 53, 2);
        text
    }
}

/// As [`Context::text`].
impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text();
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_read_as_it_is_written_and_nothing_else_is() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = Context::parse(text.as_bytes()).expect("it is one");
        assert!(context.sampled);
        assert_eq!(context.to_string(), text);
        let unsampled = Context {
            sampled: false,
            ..context
        };
        assert!(unsampled.to_string().ends_with("b7-00"));
        let later = text.replacen("00", "01", 1);
        for read in [later.clone(), format!("{later}-more")] {
            assert_eq!(Context::parse(read.as_bytes()), Some(context), "{read}");
        }
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Context::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
