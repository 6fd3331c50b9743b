//! Numbers of JSON with all their digits.

use std::borrow::Cow;

/// A JSON text, in which numbers that would lose digits when they are read are texts: none is to be taken for another one that is
/// close to it.
pub fn exact(text: &str) -> Cow<'_, str> {
    let (mut out, mut done, mut at) = (String::new(), 0, 0);
    let bytes = text.as_bytes();
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => {
                at += 1;
                while let Some(&inside) = bytes.get(at) {
                    at += if inside == b'\\' { 2 } else { 1 };
                    if inside == b'"' {
                        break;
                    }
                }
            }
            b'-' | b'0'..=b'9' => {
                let begun = at;
                let part = |b: &u8| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                at += bytes[at..].iter().take_while(|b| part(b)).count();
                let number = &text[begun..at];
                if !is_kept(number) {
                    out.push_str(&text[done..begun]);
                    out.push('"');
                    out.push_str(number);
                    out.push('"');
                    done = at;
                }
            }
            _ => at += 1,
        }
    }
    match done {
        0 => text.into(),
        _ => (out + &text[done..]).into(),
    }
}

/// Whether a number keeps its digits when it is read; what is none is left to the parser.
fn is_kept(number: &str) -> bool {
    if number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok() {
        return true;
    }
    match number.parse::<f64>() {
        Ok(read) if read.is_finite() => digits(number) == digits(&format!("{read:e}")),
        Ok(_) => false,
        Err(_) => true,
    }
}

/// The digits of a number without zeros at either end, and the power of ten of the first: the same for every way to write it.
fn digits(number: &str) -> (String, i64) {
    let (mantissa, power) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let mantissa = mantissa.trim_start_matches('-');
    let whole = mantissa.split('.').next().unwrap_or_default().len();
    let all: String = mantissa.chars().filter(|c| *c != '.').collect();
    let first = all.find(|c| c != '0').unwrap_or(all.len());
    let kept = all.trim_matches('0').to_owned();
    if kept.is_empty() {
        return (kept, 0);
    }
    let place = whole as i64 - first as i64;
    (kept, place.saturating_add(power.parse().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_shown_with_all_its_digits() {
        for (written, shown) in [
            (r#"{"n":1,"x":12.50,"t":"1.0000000000000000000001"}"#, None),
            ("[0.0,-0,1e3,1E-7,-12.5e+2,18446744073709551615,0.1]", None),
            (r#"{"a\"9":"\\","n":[true,null]}"#, None),
            (
                "[12.50000000000000000000001, 123456789012345678901234567890]",
                Some(r#"["12.50000000000000000000001", "123456789012345678901234567890"]"#),
            ),
            (r#"{"n":-1e999}"#, Some(r#"{"n":"-1e999"}"#)),
            (
                "[18446744073709551617]",
                Some(r#"["18446744073709551617"]"#),
            ),
        ] {
            assert_eq!(exact(written), shown.unwrap_or(written));
        }
    }
}
