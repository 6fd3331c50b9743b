//! The plugins that transforms name: their files, and whether they take their settings.

use std::path::Path;

use figment::value::Value;
use sha2::{Digest, Sha256};

use super::error::{Place, Reason};
use super::raw;
use super::reading::{Reading, stage_of};
use super::seen::{self, Digest32, Seen};
use super::settings::*;
use super::stock;
use super::validate::{Checks, PluginFault, SettingFault, SettingTrouble};
use super::walk::found;

impl Reading<'_> {
    pub(super) fn plugins(&mut self, settings: &Settings, checks: Checks<'_>) {
        for transform in &settings.transforms {
            let stage = stage_of(&transform.name);
            let key = format!("{stage}.plugin");
            if !self.leaves.contains_key(&key) {
                continue;
            }
            let path = transform.plugin.display().to_string();
            match self.plugin_digest(&transform.plugin) {
                Err((error, helps)) => {
                    let key = key.clone();
                    let place = self.place(&key);
                    self.problem(Reason::PluginFile { key, path, error }, place, helps);
                }
                Ok(hash) => {
                    self.contents.insert(key.clone(), hash);
                    let sound = !self.failed.iter().any(|f| f.starts_with(&stage));
                    if !sound {
                        continue;
                    }
                    match (checks.plugin)(&transform.plugin, transform) {
                        Ok(()) => {}
                        Err(PluginFault::Rejected(error)) => {
                            let reason = Reason::PluginRejected {
                                key: key.clone(),
                                path,
                                error,
                            };
                            let help = "expected a WebAssembly component, or a core module with the WIT embedded".to_owned();
                            self.problem(reason, self.place(&key), [help]);
                        }
                        Err(PluginFault::Refused(error)) => {
                            self.refused_settings(transform, path, error);
                        }
                        Err(PluginFault::Settings(faults)) => {
                            for fault in faults {
                                self.plugin_setting(transform, fault);
                            }
                        }
                    }
                }
            }
        }
    }

    /// The SHA-256 of a plugin's code; or why there is none, and what would do.
    fn plugin_digest(&mut self, path: &Path) -> Result<Digest32, (String, Vec<String>)> {
        if let Some(name) = stock::name(path) {
            // No file: nothing of it can change while this program runs.
            let bytes = stock::bytes(name).map_err(|absent| (absent.why, vec![absent.help]))?;
            return Ok(Sha256::digest(bytes).into());
        }
        let hash = seen::hash_file(path, seen::LARGEST_PLUGIN);
        let seen = Seen::plugin(hash.as_ref().ok().copied());
        self.sources.insert(path.to_owned(), seen);
        hash.map_err(|error| {
            let help = "a relative path starts at the folder of the file that it stands in";
            let mut helps = vec![help.to_owned()];
            if error.kind() == std::io::ErrorKind::NotFound {
                helps.push(stock::meant(path));
            }
            (error.to_string(), helps)
        })
    }

    /// A setting that is not as its plugin describes it.
    fn plugin_setting(&mut self, transform: &Transform, fault: SettingFault) {
        let (path, value) = self.setting(transform, &fault.name);
        let key = raw::show_path(&path);
        let found = match value {
            Some(value) => found(&path, value),
            None => transform
                .settings
                .get(&fault.name)
                .map_or_else(String::new, |text| format!("{text:?}")),
        };
        let place = match (value, fault.what) {
            (None, _) => self.settings_place(transform),
            (Some(value), SettingTrouble::Unknown) => self.raw.key_place(value, &path),
            (Some(value), _) => self.raw.place(value, &path),
        };
        let reason = match fault.what {
            SettingTrouble::Unknown => Reason::UnknownKey { key },
            SettingTrouble::Missing => Reason::Missing { key },
            SettingTrouble::Malformed => Reason::Malformed { key, found },
            SettingTrouble::Choice => Reason::UnknownChoice { key, found },
        };
        self.problem(reason, place, [fault.help]);
    }
    /// Settings that `configure` refuses in its own words: at the first that these name between backticks, else where the
    /// settings are.
    fn refused_settings(&mut self, transform: &Transform, plugin: String, error: String) {
        let named = error.split('`').skip(1).step_by(2);
        let named = named.map(|name| self.setting(transform, name));
        let found = named
            .filter_map(|(path, value)| Some((path, value?)))
            .next();
        let (key, place) = match found {
            Some((path, value)) => (raw::show_path(&path), self.raw.place(value, &path)),
            None => {
                let stage = ["transform", &transform.name, "settings"];
                let key = raw::show_path(&stage.map(str::to_owned));
                (key, self.settings_place(transform))
            }
        };
        let help = format!("`penstock plugin inspect {plugin}` prints what it takes");
        self.problem(
            Reason::SettingsRefused { key, plugin, error },
            place,
            [help],
        );
    }

    /// The path of a transform's setting, and its value if it is set.
    fn setting(&self, transform: &Transform, name: &str) -> (Vec<String>, Option<&Value>) {
        let path = ["transform", &transform.name, "settings", name];
        let path: Vec<String> = path.map(str::to_owned).to_vec();
        let value = path.iter().try_fold(None, |at: Option<&Value>, step| {
            let dict = at.map_or(Some(&self.raw.root), Value::as_dict)?;
            dict.get(step).map(Some)
        });
        (path, value.flatten())
    }

    /// Where a transform's settings are; its plugin, if it has none.
    fn settings_place(&self, transform: &Transform) -> Place {
        match self.place(&format!("{}.settings", stage_of(&transform.name))) {
            Place::Nowhere => self.place(&format!("{}.plugin", stage_of(&transform.name))),
            place => place,
        }
    }
}
