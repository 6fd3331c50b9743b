//! Secrets: by the environment or by a file, never both, and never in the open.

use std::path::Path;

use super::error::{Place, Reason};
use super::key::Kind;
use super::keys;
use super::raw;
use super::reading::Reading;
use super::section::Values;
use super::seen::{Seen, read_bounded};
use super::value::{Contents, Secret};

impl Reading<'_> {
    /// Reads every secret that is set.
    pub(super) fn read_secrets(&mut self) {
        let secrets = keys::all()
            .iter()
            .filter(|key| matches!(key.kind, Kind::Secret));
        let paths: Vec<String> = secrets
            .flat_map(|key| self.concrete(key))
            .map(|(path, _)| path)
            .collect();
        for path in paths {
            if let Some(secret) = self.read_secret(&path) {
                self.secrets.insert(path, secret);
            }
        }
        let files = keys::all()
            .iter()
            .filter(|key| matches!(key.kind, Kind::File));
        let paths: Vec<String> = files
            .flat_map(|key| self.concrete(key))
            .map(|(path, _)| path)
            .collect();
        for key in paths {
            let Some(path) = self.path(&key) else {
                continue;
            };
            match self.read_text(&key, &path) {
                Ok(text) => {
                    self.files.insert(key, Contents::new(text));
                }
                Err(reason) => {
                    let help = "expected a readable PEM file".to_owned();
                    self.problem(reason, self.place(&key), [help]);
                    self.failed.insert(key);
                }
            }
        }
    }

    /// The text of the file that a key names, and that it is a source of the configuration now.
    fn read_text(&mut self, key: &str, path: &Path) -> Result<String, Reason> {
        let read = read_bounded(path);
        let seen = Seen::read(path, &read);
        self.sources.insert(path.to_owned(), seen);
        let bad = |error: String| Reason::SecretFile {
            key: key.to_owned(),
            path: path.display().to_string(),
            error,
        };
        let bytes = match read {
            Err(error) => return Err(bad(error.to_string())),
            Ok(Err(_)) => return Err(bad("it is too large for a secret".to_owned())),
            Ok(Ok(bytes)) => bytes,
        };
        self.contents.insert(key.to_owned(), seen.digest());
        match String::from_utf8(bytes) {
            Err(_) => Err(bad("it is not UTF-8".to_owned())),
            Ok(text) if text.trim_end_matches(['\r', '\n']).is_empty() => {
                Err(bad("it is empty".to_owned()))
            }
            Ok(text) => Ok(text),
        }
    }

    /// A secret by the environment or by a file, never both and never in the open.
    fn read_secret(&mut self, key: &str) -> Option<Secret> {
        let file_key = format!("{key}_file");
        let open: Option<String> = self.get(key);
        if open.is_some() {
            let place = self.place(key);
            if !matches!(place, Place::Variable(_)) {
                let variable = raw::PREFIX.to_owned() + &key.replace('.', "__").to_uppercase();
                let help = format!(
                    "set {variable} in the environment, or {file_key} to a file that holds it"
                );
                self.problem(
                    Reason::OpenSecret {
                        key: key.to_owned(),
                    },
                    place,
                    [help],
                );
                return None;
            }
        }
        let Some(path) = self.path(&file_key) else {
            return open.map(Secret::new);
        };
        if open.is_some() {
            let help = "keep one of them".to_owned();
            self.problem(
                Reason::SecretTwice {
                    key: key.to_owned(),
                },
                self.place(&file_key),
                [help],
            );
            return None;
        }
        match self.read_text(&file_key, &path) {
            Ok(text) => {
                let secret = text.trim_end_matches(['\r', '\n']);
                Some(Secret::new(secret.to_owned()))
            }
            Err(reason) => {
                let help =
                    "expected a readable file that holds the secret and nothing else".to_owned();
                self.problem(reason, self.place(&file_key), [help]);
                None
            }
        }
    }
}
