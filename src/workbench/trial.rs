//! Plugins at work outside of a pipeline: the real files in the real host, and what became of each change.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::changes::{self, Sheet, Tables};
use crate::config::settings::{Limits, Transform};
use crate::config::{self, Checks, Settings};
use crate::transform::{Chain, Code, Engine, Passed, Plain, Plugin, PluginError, Prepared, Step};

/// What became of a change, by its number from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A record was made of it.
    Record(usize, Plain),
    /// It goes on as it was.
    Forwarded(usize),
    /// Nothing was made of it.
    Dropped(usize),
    /// It was refused, with these words.
    Error(usize, String),
    /// It would be handed out again later, for this reason.
    Retry(usize, String),
}

/// Why a plugin cannot be tried.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The plugin does not load, or refuses its settings.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// Settings that no configuration takes.
    #[error("{0}")]
    Settings(String),
    /// The changes are not well-formed.
    #[error("{0}")]
    Changes(String),
    /// It failed in a way that no single change is to blame for.
    #[error(transparent)]
    Transform(#[from] crate::transform::TransformError),
}

/// What a plugin may use that is only looked at: as much memory as one has by default.
pub const LIMITS: Limits = Limits {
    memory: 64 << 20,
    deadline: Duration::from_secs(5),
};

/// What a transform of pipeline.toml is handed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope<'a> {
    /// Its `tables`, by name; none: all.
    pub tables: &'a [String],
    /// Its `when`.
    pub when: Option<&'a str>,
}

/// The settings of one transform with these settings of its own; limits are a configuration's, but for the deadline, which
/// is of the wall clock, and an author's machine may be busy.
///
/// # Errors
/// What a configuration would refuse.
pub fn transform(
    plugin: &Path,
    own: &Map<String, Value>,
    scope: Scope<'_>,
) -> Result<(Transform, Arc<Settings>), TrialError> {
    let path = match config::stock::name(plugin) {
        Some(_) => plugin.to_owned(),
        None => std::path::absolute(plugin).unwrap_or_else(|_| plugin.to_owned()),
    };
    let mut file = json!({
        "pipeline": { "name": "trial" },
        "source": { "type": "scylla-cdc", "nodes": ["127.0.0.1:9042"], "keyspace": "ks", "tables": ["t"] },
        "sink": { "type": "redpanda", "brokers": ["127.0.0.1:9092"] },
        "transform": [{
            "name": "plugin",
            "plugin": path.to_string_lossy(),
            "limits": { "deadline": "5s" },
            "settings": own,
        }],
    });
    if !scope.tables.is_empty() {
        file["source"]["tables"] = scope.tables.into();
        file["transform"][0]["tables"] = scope.tables.into();
    }
    if let Some(when) = scope.when {
        file["transform"][0]["when"] = when.into();
    }
    let text = toml::to_string(&file).map_err(|e| TrialError::Settings(e.to_string()))?;
    let loaded = config::parse(Path::new("settings"), &text, Checks::default());
    let settings = loaded
        .map_err(|invalid| TrialError::Settings(invalid.to_string()))?
        .settings;
    match settings.transforms.first() {
        Some(transform) => Ok((transform.clone(), settings.clone())),
        None => Err(TrialError::Settings("no transform".to_owned())),
    }
}

/// A chain of one plugin, configured and warmed.
///
/// # Errors
/// The plugin does not load, or refuses the settings.
pub fn chain(
    plugin: &Arc<Plugin>,
    own: &Map<String, Value>,
    tables: &Tables,
    scope: Scope<'_>,
) -> Result<Chain, TrialError> {
    let (transform, settings) = transform(plugin.path(), own, scope)?;
    let prepared = Prepared::new(&transform, plugin.clone(), tables.all())?;
    Ok(Chain::new(vec![prepared], watch::channel(settings).1))
}

/// Loads a plugin.
///
/// # Errors
/// It is none.
pub fn load(engine: &Engine, path: &Path) -> Result<Arc<Plugin>, TrialError> {
    Ok(Plugin::load(engine, path)?)
}

/// Runs changes, in one batch, through a plugin: what became of each, in order.
///
/// # Errors
/// See [`TrialError`].
pub fn run(
    chain: &mut Chain,
    tables: &Tables,
    given: &[Value],
) -> Result<Vec<Outcome>, TrialError> {
    let sheet = changes::read(tables, given).map_err(TrialError::Changes)?;
    let Sheet { batch, given, rows } = sheet;
    let steps = chain.trace(batch, given, 0)?;
    Ok(steps
        .first()
        .map(|step| outcomes(step, &rows, 1, &|_| true))
        .unwrap_or_default())
}

/// What a stage made of the items that stand at these rows, of those that reached it; the first is number `from`.
pub fn outcomes(
    step: &Step,
    rows: &[u32],
    from: usize,
    reached: &dyn Fn(u32) -> bool,
) -> Vec<Outcome> {
    let mut all = Vec::new();
    for (row, number) in rows.iter().zip(from..).filter(|(row, _)| reached(**row)) {
        let before = all.len();
        for passed in &step.passed {
            match passed {
                Passed::Change(of) if of == row => all.push(Outcome::Forwarded(number)),
                Passed::Record(of, plain) if of == row => {
                    all.push(Outcome::Record(number, plain.clone()));
                }
                _ => {}
            }
        }
        for rejected in step.rejected.iter().filter(|r| r.source == *row) {
            all.push(Outcome::Error(number, rejected.error.clone()));
        }
        for (_, said) in step.not_yet.iter().filter(|(of, _)| of == row) {
            all.push(Outcome::Retry(number, said.clone()));
        }
        if all.len() == before {
            all.push(Outcome::Dropped(number));
        }
    }
    all
}

impl Outcome {
    /// The form that tests have: `{"change": 1, "topic": …, "key": …, "value": …, "headers": {…}}`, `{"forwarded": 1}`,
    /// `{"dropped": 1}`, `{"change": 1, "error": …}`, `{"change": 1, "retry": …}`.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Forwarded(number) => json!({ "forwarded": number }),
            Self::Dropped(number) => json!({ "dropped": number }),
            Self::Error(number, error) => json!({ "change": number, "error": error }),
            Self::Retry(number, said) => json!({ "change": number, "retry": said }),
            Self::Record(number, plain) => {
                let mut record = plain.to_json();
                record["change"] = (*number).into();
                record
            }
        }
    }
}
