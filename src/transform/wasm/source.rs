//! A plugin's source within its file: that of a component which is a language's engine, and is handed the author's code as data.
//!
//! Such a file is made while a transform is being written (`penstock plugin build --watch`): the engine is compiled once, and an
//! edit replaces some kilobytes. It stands in a custom section at the end, which says nothing to anybody else.

/// The section's name.
const NAME: &str = "penstock:source";

/// A file without its source, and that source.
pub(super) fn split(file: &[u8]) -> (&[u8], Option<&str>) {
    let found = last_section(file).and_then(|at| Some((at, named(file.get(at..)?)?)));
    match found {
        Some((at, source)) => (&file[..at], Some(source)),
        None => (file, None),
    }
}

/// A component with a source for it to load.
pub fn join(component: &[u8], source: &str) -> Vec<u8> {
    let mut section = Vec::with_capacity(source.len() + 24);
    number(&mut section, NAME.len());
    section.extend(NAME.as_bytes());
    section.extend(source.as_bytes());
    let mut file = Vec::with_capacity(component.len() + section.len() + 8);
    file.extend(component);
    file.push(0);
    number(&mut file, section.len());
    file.extend(section);
    file
}

/// Where the last section begins: a number that says what it is, and its length.
fn last_section(file: &[u8]) -> Option<usize> {
    let (mut at, mut last) = (8, None);
    while at < file.len() {
        last = Some(at);
        let (length, rest) = read_number(file.get(at + 1..)?)?;
        at = (file.len() - rest.len()).checked_add(length)?;
    }
    (at == file.len()).then_some(last?)
}

/// What a custom section of our name holds.
fn named(section: &[u8]) -> Option<&str> {
    let (_, body) = read_number(section.strip_prefix(&[0])?)?;
    let (length, body) = read_number(body)?;
    let (name, source) = body.split_at_checked(length)?;
    (name == NAME.as_bytes()).then(|| std::str::from_utf8(source).ok())?
}

/// LEB128, as WebAssembly has its lengths.
fn read_number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0u32;
    for (at, byte) in bytes.iter().enumerate().take(5) {
        value |= u32::from(byte & 0x7f).checked_shl(u32::try_from(7 * at).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((usize::try_from(value).ok()?, &bytes[at + 1..]));
        }
    }
    None
}

fn number(into: &mut Vec<u8>, mut value: usize) {
    while value > 0x7f {
        into.push(0x80 | u8::try_from(value & 0x7f).expect("seven bits"));
        value >>= 7;
    }
    into.push(u8::try_from(value).expect("seven bits"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_joined_is_split() {
        let component = b"\0asm\x0d\0\x01\0\0\x05\x04name";
        for source in ["", "export const x = 'ä';", &"x".repeat(70_000)] {
            let file = join(component, source);
            assert_eq!(split(&file), (&component[..], Some(source)));
            for cut in 0..file.len() {
                assert_eq!(split(&file[..cut]), (&file[..cut], None), "cut at {cut}");
            }
        }
        assert_eq!(split(component), (&component[..], None));
        let not_text = [
            &join(component, "")[..component.len() + 1],
            b"\x11\x0fpenstock:source\xff",
        ]
        .concat();
        assert_eq!(split(&not_text), (&not_text[..], None));
    }
}
