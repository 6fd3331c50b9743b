//! Secrets: by the environment or by a file, never both, and never in the open.

use sha2::{Digest, Sha256};

use super::error::{Place, Reason};
use super::key::Kind;
use super::keys;
use super::raw;
use super::reading::Reading;
use super::section::Values;
use super::value::Secret;

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
        let read = raw::read_bounded(&path);
        let seen = match &read {
            Ok(Ok(bytes)) => Sha256::digest(bytes).into(),
            _ => raw::digest(&path),
        };
        self.sources.insert(path.clone(), seen);
        let bad = |error: String| Reason::SecretFile {
            key: file_key.clone(),
            path: path.display().to_string(),
            error,
        };
        let reason = match read {
            Err(error) => bad(error.to_string()),
            Ok(Err(_)) => bad("it is too large for a secret".to_owned()),
            Ok(Ok(bytes)) => {
                self.contents.insert(file_key.clone(), seen);
                match String::from_utf8(bytes) {
                    Err(_) => bad("it is not UTF-8".to_owned()),
                    Ok(text) => match text.trim_end_matches(['\r', '\n']) {
                        "" => bad("it is empty".to_owned()),
                        secret => return Some(Secret::new(secret.to_owned())),
                    },
                }
            }
        };
        let help = "expected a readable file that holds the secret and nothing else".to_owned();
        self.problem(reason, self.place(&file_key), [help]);
        None
    }
}
