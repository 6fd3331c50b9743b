//! A plugin's source within its file: that of a component which is a language's engine, and is handed the author's code as data.
//!
//! Such a file is made while a transform is being written (`penstock plugin build --watch`): the engine is compiled once, and an
//! edit replaces some kilobytes. It stands in a custom section at the end, which says nothing to anybody else.

use wasm_encoder::{ComponentSection as _, CustomSection};
use wasmparser::{BinaryReader, CustomSectionReader};

/// The section's name.
const NAME: &str = "penstock:source";

/// What stands before the first section: the magic number, the version, the layer.
const HEAD: usize = 8;

/// A file without its source, and that source.
pub(super) fn split(file: &[u8]) -> (&[u8], Option<&str>) {
    match last_section(file) {
        Some((at, source)) => (&file[..at], Some(source)),
        None => (file, None),
    }
}

/// A component with a source for it to load.
pub fn join(component: &[u8], source: &str) -> Vec<u8> {
    let mut file = Vec::with_capacity(component.len() + source.len() + 32);
    file.extend(component);
    let section = CustomSection {
        name: NAME.into(),
        data: source.as_bytes().into(),
    };
    section.append_to_component(&mut file);
    file
}

/// Where the last section begins and what it holds, if it is ours.
fn last_section(file: &[u8]) -> Option<(usize, &str)> {
    let mut reader = BinaryReader::new(file.get(HEAD..)?, 0);
    let mut last = None;
    while !reader.eof() {
        let at = HEAD + reader.current_position();
        let kind = reader.read_u8().ok()?;
        let length = usize::try_from(reader.read_var_u32().ok()?).ok()?;
        last = Some((at, kind, reader.read_bytes(length).ok()?));
    }
    let (at, kind, body) = last?;
    let section = CustomSectionReader::new(BinaryReader::new(body, 0)).ok()?;
    // 0 is a custom section's.
    let ours = kind == 0 && section.name() == NAME;
    ours.then(|| Some((at, std::str::from_utf8(section.data()).ok()?)))?
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
