//! Some values of one configuration among those of another: what may be put in force while the rest has to wait.

use std::sync::Arc;

use super::reload::Changed;
use super::{Effective, Loaded, Settings};

impl Loaded {
    /// It, with the values that a newer one has of the keys that changed there, all of them live.
    pub fn retuned(&self, newer: &Self, changed: &[Changed]) -> Self {
        let takes = |key: &str| changed.iter().any(|c| c.key == key);
        let mut settings = Settings::clone(&self.settings);
        settings.retune(&newer.settings, &takes);
        let taken = |key: &str| newer.effective.iter().find(|e| e.key == key).cloned();
        let mut effective: Vec<Effective> = self
            .effective
            .iter()
            .filter_map(|e| match takes(&e.key) {
                true => taken(&e.key),
                false => Some(e.clone()),
            })
            .collect();
        let is_new = |e: &&Effective| {
            takes(&e.key) && !self.effective.iter().any(|before| before.key == e.key)
        };
        effective.extend(newer.effective.iter().filter(is_new).cloned());
        Self {
            settings: Arc::new(settings),
            effective,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::reload::diff;
    use super::super::{Checks, ReloadClass, keys, parse};
    use super::*;

    const BASE: &str = "pipeline.name = \"p\"\nsource.keyspace = \"k\"\nsource.tables = [\"t\"]\nsource.nodes = [\"s:9042\"]\n\
                        sink.brokers = [\"b:9092\"]\n";

    fn loaded(folder: &Path, more: &str) -> Option<Loaded> {
        let transform = "\n[[transform]]\nname = \"one\"\nplugin = \"one.wasm\"\n";
        let (transform, more) = match more.strip_prefix("transform.*.") {
            Some(more) => (format!("{transform}{more}\n"), ""),
            None => (transform.to_owned(), more),
        };
        let text = format!("{BASE}{more}\n{transform}");
        parse(&folder.join("p.toml"), &text, Checks::default()).ok()
    }

    /// Key by key: what is taken from a newer configuration is what that one has, and nothing else is.
    #[test]
    fn each_live_key_is_taken_by_itself() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("one.wasm"), "").expect("written");
        let loaded = |more: &str| loaded(folder.path(), more);
        let base = loaded("").expect("it is right");
        let other = "sink.breaker.open_for = \"7s\"\npipeline.shards = 7";
        let other = loaded(other).expect("it is right");
        let mut taken = 0;
        for key in keys::all().iter().filter(|k| k.class == ReloadClass::Live) {
            // Of these the first that it takes and that is another one. Some keys take others beside them, or a file.
            let values = [key.example, "7", "2.5", "\"17s\"", "true", "false"];
            let mut newer = values.iter().filter_map(|value| {
                let newer = loaded(&format!("{} = {value}", key.path))?;
                let changed = diff(&base.effective, &newer.effective);
                let lives = changed.iter().all(|c| c.class == ReloadClass::Live);
                (lives && !changed.is_empty()).then_some((newer, changed))
            });
            let Some((newer, changed)) = newer.next() else {
                continue;
            };
            taken += 1;
            let retuned = base.retuned(&newer, &changed);
            assert_eq!(retuned.settings, newer.settings, "{}", key.path);
            assert_eq!(diff(&retuned.effective, &newer.effective), []);
            // … of one that differs otherwise, too.
            let retuned = other.retuned(&newer, &changed);
            assert_eq!(retuned.settings.pipeline.shards.get(), 7, "{}", key.path);
            let left = diff(&other.effective, &retuned.effective);
            assert!(left.iter().all(|c| changed.iter().any(|n| n.key == c.key)));
            assert_eq!(base.retuned(&newer, &[]).settings, base.settings);
        }
        assert!(taken > 50, "{taken} keys");
    }
}
