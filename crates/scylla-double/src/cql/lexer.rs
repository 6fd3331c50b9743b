//! Text to tokens, by the rules of ScyllaDB's lexer (`cql3/Cql.g`): at each place the longest token.

use std::borrow::Cow;

use super::ParseError;

/// What a token is; its text is in the statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A name or keyword without quotes.
    Word,
    /// A name in double quotes.
    Quoted,
    /// `'…'` or `$$…$$`.
    Text,
    Integer,
    Float,
    Duration,
    Uuid,
    /// `0x…`
    Blob,
    Symbol,
    /// Behind the last one.
    End,
}

/// A piece of the statement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Byte offsets.
    pub(super) start: usize,
    pub(super) end: usize,
}

/// All tokens, the last being [`Kind::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, ParseError> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::with_capacity(text.len() / 5 + 2);
    let mut at = 0;
    while let Some(first) = bytes.get(at) {
        let rest = &text[at..];
        if first.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        if rest.starts_with("--") || rest.starts_with("//") {
            at += rest.find(['\n', '\r']).unwrap_or(rest.len());
            continue;
        }
        if let Some(comment) = rest.strip_prefix("/*") {
            let Some(end) = comment.find("*/") else {
                return Err(ParseError::at(
                    text,
                    text.len(),
                    "mismatched character '<EOF>' expecting '*'",
                ));
            };
            at += end + 4;
            continue;
        }
        let (kind, length) =
            one(rest).map_err(|(offset, message)| ParseError::at(text, at + offset, message))?;
        tokens.push(Token {
            kind,
            start: at,
            end: at + length,
        });
        at += length;
    }
    tokens.push(Token {
        kind: Kind::End,
        start: text.len(),
        end: text.len(),
    });
    Ok(tokens)
}

/// The token at the front of a text that does not begin with space: its kind and length in bytes.
fn one(rest: &str) -> Result<(Kind, usize), (usize, String)> {
    let bytes = rest.as_bytes();
    match bytes[0] {
        b'\'' => quoted(rest, b'\'').map(|length| (Kind::Text, length)),
        b'"' => match quoted(rest, b'"')? {
            2 => Err((1, "no viable alternative at character '\"'".into())),
            length => Ok((Kind::Quoted, length)),
        },
        b'$' if rest.starts_with("$$") => match rest[2..].find("$$") {
            Some(end) => Ok((Kind::Text, end + 4)),
            None => Err((
                rest.len(),
                "mismatched character '<EOF>' expecting '$'".into(),
            )),
        },
        first => {
            // The longest wins; of equally long ones the first.
            let mut best = (Kind::Symbol, symbol(bytes));
            for (kind, length) in [
                (Kind::Uuid, uuid(bytes)),
                (Kind::Blob, blob(bytes)),
                (Kind::Duration, duration(rest)),
                (Kind::Float, float(bytes)),
                (Kind::Integer, integer(bytes)),
                (Kind::Word, word(bytes)),
            ] {
                if length > best.1 {
                    best = (kind, length);
                }
            }
            if best.1 > 0 {
                return Ok(best);
            }
            let shown = rest.chars().next().unwrap_or(first.into());
            Err((0, format!("no viable alternative at character '{shown}'")))
        }
    }
}

/// The length of what stands in quotes, in which two quotes are one.
fn quoted(rest: &str, quote: u8) -> Result<usize, (usize, String)> {
    let bytes = rest.as_bytes();
    let mut at = 1;
    loop {
        match bytes.get(at) {
            None => {
                let quote = char::from(quote);
                return Err((
                    rest.len(),
                    format!("mismatched character '<EOF>' expecting '{quote}'"),
                ));
            }
            Some(byte) if *byte == quote => {
                if bytes.get(at + 1) != Some(&quote) {
                    return Ok(at + 1);
                }
                at += 2;
            }
            Some(_) => at += 1,
        }
    }
}

fn symbol(bytes: &[u8]) -> usize {
    match bytes {
        [b'<' | b'>' | b'!', b'=', ..] => 2,
        [
            b'<' | b'>' | b'=' | b'+' | b'-' | b'*' | b'(' | b')' | b'[' | b']' | b'{' | b'}'
            | b',' | b'.' | b';' | b':' | b'?',
            ..,
        ] => 1,
        _ => 0,
    }
}

fn word(bytes: &[u8]) -> usize {
    if bytes[0].is_ascii_alphabetic() {
        bytes
            .iter()
            .take_while(|b| b.is_ascii_alphanumeric() || **b == b'_')
            .count()
    } else {
        0
    }
}

fn digits(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_digit()).count()
}

fn integer(bytes: &[u8]) -> usize {
    let sign = usize::from(bytes[0] == b'-');
    match digits(&bytes[sign..]) {
        0 => 0,
        n => sign + n,
    }
}

fn float(bytes: &[u8]) -> usize {
    let whole = integer(bytes);
    if whole == 0 {
        return 0;
    }
    let mut at = whole;
    if bytes.get(at) == Some(&b'.') {
        at += 1 + digits(&bytes[at + 1..]);
    }
    if let Some(b'e' | b'E') = bytes.get(at) {
        let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        let exponent = digits(bytes.get(at + 1 + sign..).unwrap_or_default());
        if exponent > 0 {
            at += 1 + sign + exponent;
        }
    }
    if at > whole { at } else { 0 }
}

fn blob(bytes: &[u8]) -> usize {
    match bytes {
        [b'0', b'x' | b'X', rest @ ..] => {
            2 + rest.iter().take_while(|b| b.is_ascii_hexdigit()).count()
        }
        _ => 0,
    }
}

fn uuid(bytes: &[u8]) -> usize {
    const LENGTH: usize = 36;
    let Some(bytes) = bytes.get(..LENGTH) else {
        return 0;
    };
    let fits = |(i, b): (usize, &u8)| match i {
        8 | 13 | 18 | 23 => *b == b'-',
        _ => b.is_ascii_hexdigit(),
    };
    if bytes.iter().enumerate().all(fits) {
        LENGTH
    } else {
        0
    }
}

fn duration(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let sign = usize::from(bytes[0] == b'-');
    let length = match bytes.get(sign) {
        Some(b'P') => iso_duration(&bytes[sign + 1..]).map_or(0, |n| n + 1),
        Some(b'0'..=b'9') => word_duration(&rest[sign..]),
        _ => 0,
    };
    if length == 0 { 0 } else { sign + length }
}

/// `1h30m`: numbers, each with a unit.
fn word_duration(rest: &str) -> usize {
    /// Longer ones first, so that `mo` is not `m`.
    const UNITS: [&str; 11] = ["mo", "ms", "us", "µs", "ns", "y", "w", "d", "h", "m", "s"];
    let mut at = 0;
    loop {
        let number = digits(&rest.as_bytes()[at..]);
        let tail = &rest[at + number..];
        let unit = UNITS.iter().find(|unit| {
            tail.get(..unit.len())
                .is_some_and(|t| t.eq_ignore_ascii_case(unit))
        });
        match unit {
            Some(unit) if number > 0 => at += number + unit.len(),
            _ => return at,
        }
    }
}

/// What follows the `P`; `None` when nothing says that it is a duration and not a name.
fn iso_duration(bytes: &[u8]) -> Option<usize> {
    let alternative = |(i, b): (usize, &u8)| match i {
        4 | 7 => *b == b'-',
        10 => *b == b'T',
        13 | 16 => *b == b':',
        _ => b.is_ascii_digit(),
    };
    if bytes.len() >= 19 && bytes[..19].iter().enumerate().all(alternative) {
        return Some(19);
    }
    let mut at = 0;
    let part = |unit: u8, at: &mut usize| {
        let number = digits(&bytes[*at..]);
        if number > 0 && bytes.get(*at + number) == Some(&unit) {
            *at += number + 1;
        }
    };
    part(b'W', &mut at);
    if at > 0 {
        return Some(at);
    }
    [b'Y', b'M', b'D']
        .into_iter()
        .for_each(|unit| part(unit, &mut at));
    if bytes.get(at) == Some(&b'T') {
        let mut clock = at + 1;
        [b'H', b'M', b'S']
            .into_iter()
            .for_each(|unit| part(unit, &mut clock));
        if clock > at + 1 {
            at = clock;
        }
    }
    (at > 0).then_some(at)
}

/// What a quoted name or a string says.
pub(super) fn unquoted(text: &str) -> Cow<'_, str> {
    if let Some(inner) = text.strip_prefix("$$") {
        return inner.strip_suffix("$$").unwrap_or(inner).into();
    }
    let inner = text
        .get(1..text.len().saturating_sub(1))
        .unwrap_or_default();
    let (quote, double) = if text.starts_with('"') {
        ("\"", "\"\"")
    } else {
        ("'", "''")
    };
    if inner.contains(double) {
        inner.replace(double, quote).into()
    } else {
        inner.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<(Kind, &str)> {
        let tokens = tokens(text).unwrap();
        tokens[..tokens.len() - 1]
            .iter()
            .map(|t| (t.kind, &text[t.start..t.end]))
            .collect()
    }

    #[test]
    fn longest_token_wins() {
        use Kind::*;
        assert_eq!(
            kinds("\"cdc$operation\"FROM"),
            [(Quoted, "\"cdc$operation\""), (Word, "FROM")]
        );
        assert_eq!(
            kinds("c-1 c - 1"),
            [
                (Word, "c"),
                (Integer, "-1"),
                (Word, "c"),
                (Symbol, "-"),
                (Integer, "1")
            ]
        );
        assert_eq!(
            kinds("1.5e-3 1. 1e5 1e -2.5"),
            [
                (Float, "1.5e-3"),
                (Float, "1."),
                (Float, "1e5"),
                (Integer, "1"),
                (Word, "e"),
                (Float, "-2.5"),
            ]
        );
        assert_eq!(
            kinds("1h30m -2mo PT1H P P1Y2M P2W 5µs P0001-02-03T04:05:06 Pets"),
            [
                (Duration, "1h30m"),
                (Duration, "-2mo"),
                (Duration, "PT1H"),
                (Word, "P"),
                (Duration, "P1Y2M"),
                (Duration, "P2W"),
                (Duration, "5µs"),
                (Duration, "P0001-02-03T04:05:06"),
                (Word, "Pets"),
            ]
        );
        let id = "abcdef01-1234-11ee-8000-0123456789ab";
        assert_eq!(kinds(id), [(Uuid, id)]);
        assert_eq!(
            kinds("0xCAfe 0x 123"),
            [(Blob, "0xCAfe"), (Blob, "0x"), (Integer, "123")]
        );
        assert_eq!(
            kinds("a<=:b--c\n// d\r/* e\n */!=?"),
            [
                (Word, "a"),
                (Symbol, "<="),
                (Symbol, ":"),
                (Word, "b"),
                (Symbol, "!="),
                (Symbol, "?"),
            ]
        );
        assert_eq!(
            kinds("'it''s' $$it's $1$$"),
            [(Text, "'it''s'"), (Text, "$$it's $1$$")]
        );
    }

    #[test]
    fn what_is_quoted_is_read() {
        assert_eq!(unquoted("'it''s'"), "it's");
        assert_eq!(unquoted("\"a\"\"b\""), "a\"b");
        assert_eq!(unquoted("$$it's$$"), "it's");
        assert_eq!(unquoted("''"), "");
    }

    #[test]
    fn errors_tell_the_place() {
        let error = |text| tokens(text).unwrap_err().to_string();
        assert_eq!(
            error("SELECT\n é # x"),
            "line 2:1 no viable alternative at character 'é'"
        );
        assert_eq!(
            error("'abc"),
            "line 1:4 mismatched character '<EOF>' expecting '''"
        );
        assert_eq!(
            error("a /* b"),
            "line 1:6 mismatched character '<EOF>' expecting '*'"
        );
    }
}
