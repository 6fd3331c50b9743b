//! What must never be shown: by what a key is called, and in a text by span or, where it is no TOML, by line.

use std::ops::Range;

/// Whether what stands here must never be shown. Typos count: `passwrod = "…"` holds the password all the same.
pub(super) fn is_secret(path: &[String]) -> bool {
    path.iter().any(|step| secret_word(step))
}

fn secret_word(step: &str) -> bool {
    let step = step.to_ascii_lowercase();
    if step.ends_with("_file") || step.ends_with(".location") {
        return false;
    }
    step.split(['.', '_', '-']).any(|word| {
        ["passwd", "pem"].contains(&word)
            || [("password", 2), ("token", 1), ("secret", 1)]
                .iter()
                .any(|(w, near)| strsim::damerau_levenshtein(w, word) <= *near)
    })
}

/// The text with secrets replaced by as many bytes of `*`, by span and, where TOML could not be parsed, by
/// line.
pub(super) fn mask(text: &str, spans: &[Range<usize>]) -> String {
    let mut spans: Vec<Range<usize>> = spans.iter().map(|s| clamp(s.clone(), text)).collect();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        for (at, key) in keys_of(line) {
            if secret_word(key) {
                let at = at + (line[at..].len() - line[at..].trim_start().len());
                spans.push(start + at..start + line.trim_end().len().max(at));
            }
        }
        start += line.len();
    }
    let mut bytes = text.as_bytes().to_vec();
    for span in spans {
        for byte in &mut bytes[span] {
            if !matches!(byte, b'\n' | b'\r') {
                *byte = b'*';
            }
        }
    }
    // Spans lie on character boundaries, so this never replaces.
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The words before each `=` of a line, with the place after the `=`.
fn keys_of(line: &str) -> impl Iterator<Item = (usize, &str)> {
    line.match_indices('=').map(|(at, _)| {
        let key = line[..at].trim_end().trim_end_matches(['"', '\'']);
        let start = key
            .rfind(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '.')))
            .map_or(0, |n| n + key[n..].chars().next().map_or(0, char::len_utf8));
        (at + 1, &key[start..])
    })
}

pub(super) fn clamp(span: Range<usize>, text: &str) -> Range<usize> {
    let fit = |mut n: usize| {
        n = n.min(text.len());
        while !text.is_char_boundary(n) {
            n -= 1;
        }
        n
    };
    let start = fit(span.start);
    start..fit(span.end).max(start)
}
