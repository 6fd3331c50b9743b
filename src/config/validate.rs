//! Raw → [`Settings`]: every value decoded, every rule checked, every problem collected.
//!
//! Touches no network. Reads what the configuration names: secrets and plugins.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::error::Invalid;
use super::key::ReloadClass;
use super::raw::{Inputs, Raw};
use super::reading::Reading;
use super::seen::Sources;
use super::settings::{Admin, Settings, Transform};

/// What other modules know about a plugin's file and its settings: load it, or say why not.
pub type CheckPlugin<'a> = &'a (dyn Fn(&Path, &Transform) -> Result<(), PluginFault> + Send + Sync);

/// Why a plugin cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PluginFault {
    /// It does not load.
    Rejected(String),
    /// It refuses its settings, in words of its own.
    Refused(String),
    /// Its settings are not as it describes them.
    Settings(Vec<SettingFault>),
}

/// What is wrong with one of a plugin's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingFault {
    /// The setting.
    pub name: String,
    /// What is wrong with it.
    pub what: SettingTrouble,
    /// What would do.
    pub help: String,
}

/// The kinds of [`SettingFault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingTrouble {
    /// The plugin does not know it.
    Unknown,
    /// It has to be set.
    Missing,
    /// It is of another type.
    Malformed,
    /// It is none of the values that it may have.
    Choice,
}
/// What librdkafka says to properties; no connection is made.
pub type CheckProperties<'a> =
    &'a (dyn Fn(&BTreeMap<String, String>) -> Result<(), String> + Send + Sync);

/// Why a librdkafka property is not for users to set, if it is not.
pub type ReservedProperty<'a> = &'a (dyn Fn(&str) -> Option<&'static str> + Send + Sync);

/// The checks that need another module's knowledge.
#[derive(Clone, Copy)]
pub struct Checks<'a> {
    /// Loads a plugin.
    pub plugin: CheckPlugin<'a>,
    /// Tries librdkafka's properties.
    pub properties: CheckProperties<'a>,
    /// Knows the properties that the sink keeps to itself.
    pub reserved: ReservedProperty<'a>,
    /// Whether the stand-ins are built in.
    pub embedded: bool,
}

impl Default for Checks<'_> {
    /// Plugins must exist and properties are taken as they are; the feature decides on the stand-ins.
    fn default() -> Self {
        Self {
            plugin: &|_, _| Ok(()),
            properties: &|_| Ok(()),
            reserved: &|_| None,
            embedded: cfg!(feature = "embedded"),
        }
    }
}

/// A configuration that may be run.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the modules read.
    pub settings: Arc<Settings>,
    /// Every value with where it comes from.
    pub effective: Vec<Effective>,
    /// All that it was read from.
    pub sources: Sources,
    /// SHA-256, in hex, of all that counts: equal exactly if nothing that counts differs.
    pub hash: String,
    /// When it was read.
    pub at: SystemTime,
}

/// One value in force.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Effective {
    /// Its path.
    pub key: String,
    /// As TOML; `***` for a secret.
    pub value: String,
    /// Where it was set: `pipeline.toml:3:8`, `environment variable …`, `default`, …
    pub origin: String,
    /// What a change of it does.
    pub class: ReloadClass,
    /// What decides whether it changed: for a file its content too. A digest, so that no secret is kept.
    #[serde(skip)]
    pub fingerprint: [u8; 32],
}

/// Reads all layers and checks them.
///
/// # Errors
/// Everything that is wrong, at once.
pub fn load(inputs: &Inputs, checks: Checks<'_>) -> Result<Loaded, Invalid> {
    finish(Raw::read(inputs), checks)
}

/// The settings of one file's text, for tests and tools; relative paths are relative to `path`'s folder.
///
/// # Errors
/// Everything that is wrong, at once.
pub fn parse(path: &Path, text: &str, checks: Checks<'_>) -> Result<Loaded, Invalid> {
    let mut raw = Raw::read(&Inputs::default());
    raw.text(path, text);
    raw.merge();
    finish(raw, checks)
}

/// `[admin]` alone, of a configuration that may be wrong everywhere else: whoever broke the file of a running
/// pipeline has to be able to ask that pipeline about it. `None`: `[admin]` itself is wrong.
pub fn admin_alone(inputs: &Inputs) -> Option<Admin> {
    let mut raw = Raw::read(inputs);
    // What has to be there, so that the rest can be valid.
    let mut least = Raw::read(&Inputs::default());
    least.text(
        Path::new("-"),
        "[pipeline]\nname = \"-\"\n[source]\nkeyspace = \"k\"\ntables = [\"t\"]\n",
    );
    least.merge();
    let admin = raw.root.remove("admin");
    raw.root = least.root;
    raw.root
        .extend(admin.map(|admin| ("admin".to_owned(), admin)));
    raw.transforms.clear();
    raw.problems.clear();
    let loaded = finish(raw, Checks::default()).ok()?;
    Some(loaded.settings.admin.clone())
}

fn finish(mut raw: Raw, checks: Checks<'_>) -> Result<Loaded, Invalid> {
    raw.bound_transforms();
    let mut reading = Reading::new(&raw);
    for (key, value) in &raw.root {
        reading.walk(&mut vec![key.clone()], value);
    }
    reading.missing();
    reading.read_secrets();
    let settings = Settings::read(&reading, &raw.transforms);
    reading.cross(&settings, checks);
    reading.report(settings)
}
