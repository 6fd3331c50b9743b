//! What a configuration is read from, as it was seen: content, not times, so that `touch` is no change.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// No configuration, secret or certificate is as large; a device or a wrong file is not read into memory.
pub(super) const LARGEST: u64 = 1 << 20;
/// A plugin's file larger than this is a mistake; the JavaScript engine takes 12 MiB.
pub const LARGEST_PLUGIN: u64 = 256 << 20;

/// A SHA-256.
pub(super) type Digest32 = [u8; 32];

/// All that a configuration was read from (files, folders, plugins, secrets), with the content that was seen.
pub type Sources = BTreeMap<PathBuf, Seen>;

/// What was seen of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    digest: Digest32,
    most: u64,
}

impl Seen {
    /// A file or folder as it is now; a folder's content is the names of its files. What is missing or cannot be read is
    /// all zeros.
    pub fn of(path: &Path) -> Self {
        let mut hash = Sha256::new();
        let digest = if path.is_dir() {
            for file in folder(path).unwrap_or_default() {
                hash.update(file.as_os_str().as_encoded_bytes());
                hash.update([0]);
            }
            hash.finalize().into()
        } else {
            hash_file(path, LARGEST).unwrap_or_default()
        };
        Self {
            digest,
            most: LARGEST,
        }
    }

    /// What was read of it: of that, so that a write that comes after is seen as one.
    pub(super) fn read(path: &Path, read: &std::io::Result<Result<Vec<u8>, u64>>) -> Self {
        match read {
            Ok(Ok(bytes)) => Self {
                digest: Sha256::digest(bytes).into(),
                most: LARGEST,
            },
            _ => Self::of(path),
        }
    }

    /// The plugin of which this is the digest, or which could not be read.
    pub(super) fn plugin(digest: Option<Digest32>) -> Self {
        Self {
            digest: digest.unwrap_or_default(),
            most: LARGEST_PLUGIN,
        }
    }

    /// The SHA-256 of its content.
    pub(super) fn digest(self) -> Digest32 {
        self.digest
    }

    /// The same source as it is now.
    pub(super) fn again(self, path: &Path) -> Self {
        if self.most == LARGEST {
            return Self::of(path);
        }
        Self::plugin(hash_file(path, self.most).ok())
    }
}

/// The files of a folder, in name order. What starts with a dot is left out: `..data` and its like are how
/// Kubernetes swaps a folder, and name the same files again; editors keep their swap files so.
pub(super) fn folder(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(path)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|p| {
        let hidden = p
            .file_name()
            .is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        !hidden && p.extension().is_some_and(|e| e == "toml") && p.is_file()
    });
    files.sort();
    Ok(files)
}

/// The SHA-256 of a file of at most `most` bytes. Of a larger one only the size counts: it is refused whatever it says,
/// and to read it whole would take whoever looks seconds.
pub(super) fn hash_file(path: &Path, most: u64) -> std::io::Result<Digest32> {
    let file = open(path)?;
    let size = file.metadata()?.len();
    let mut hash = Sha256::new();
    if size > most {
        hash.update(b"larger than what is read: ");
        hash.update(size.to_le_bytes());
        return Ok(hash.finalize().into());
    }
    // It may grow meanwhile.
    let mut file = file.take(most + 1);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// The content of a file, or its size where that is too large.
pub(super) fn read_bounded(path: &Path) -> std::io::Result<Result<Vec<u8>, u64>> {
    let file = open(path)?;
    let size = file.metadata()?.len();
    if size > LARGEST {
        return Ok(Err(size));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Ok(Err(bytes.len() as u64));
    }
    Ok(Ok(bytes))
}

/// Opens a regular file: a pipe would block, and a device has no end.
fn open(path: &Path) -> std::io::Result<std::fs::File> {
    let kind = std::fs::metadata(path)?;
    if kind.is_dir() {
        return Err(std::io::ErrorKind::IsADirectory.into());
    }
    if !kind.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    std::fs::File::open(path)
}
