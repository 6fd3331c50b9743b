//! What became of changes of the configuration, as `penstock reloads` shows it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::admin::{each, list, text};

/// One change: what became of it, or how far it is, and what it changed.
pub(super) fn print(revision: &Value) {
    if let Some(step) = revision["step"].as_str() {
        let seconds = |key: &str| revision[key].as_f64().unwrap_or_default();
        let waits_for = list(&revision["waits_for"]);
        say!(
            "under way for {:.1} s: {step} for {:.1} s{}{waits_for}",
            seconds("for_seconds"),
            seconds("step_seconds"),
            if waits_for.is_empty() {
                ""
            } else {
                ", waits for "
            },
        );
    } else {
        // Of one that changed nothing there is only that.
        let said = ["at", "outcome", "error"].map(|key| revision[key].as_str());
        let said: Vec<&str> = said.into_iter().flatten().collect();
        say!("{}", said.join(" "));
    }
    for line in lines(&revision["changed"]) {
        say!("    {line}");
    }
}

/// A line for each key; for a transform that comes or goes, which brings or takes all of its keys, one for all of them.
fn lines(changed: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let mut whole = BTreeSet::new();
    each(changed, |c| {
        if let Some((transform, _)) = comes_or_goes(c) {
            whole.insert(transform.to_owned());
        }
    });
    each(changed, |c| {
        let (class, key) = (text(&c["class"]), text(&c["key"]));
        let line = match (comes_or_goes(c), transform_of(&key)) {
            (Some((transform, comes)), _) => {
                let (what, plugin) = match comes {
                    true => ("added", &c["new"]),
                    false => ("removed", &c["old"]),
                };
                format!("{class:<8} {transform} {what}: {}", text(plugin))
            }
            (None, Some(transform)) if whole.contains(transform) => return,
            // A plugin's file is another, or a secret.
            (None, _) if c["old"] == c["new"] => {
                let what = match key.ends_with(".plugin") {
                    true => "the file is a new one",
                    false => "a new one",
                };
                format!("{class:<8} {key} = {}, {what}", text(&c["new"]))
            }
            (None, _) => format!(
                "{class:<8} {key} = {} → {}",
                text(&c["old"]),
                text(&c["new"])
            ),
        };
        lines.push(line);
    });
    lines
}

/// `transform.NAME` of a key below it.
fn transform_of(key: &str) -> Option<&str> {
    let (name, _) = key.strip_prefix("transform.")?.split_once('.')?;
    key.get(.."transform.".len() + name.len())
}

/// The transform whose plugin this key is, and whether it comes or goes: none that stays is without one.
fn comes_or_goes(changed: &Value) -> Option<(&str, bool)> {
    let transform = changed["key"].as_str()?.strip_suffix(".plugin")?;
    transform.strip_prefix("transform.")?;
    match (changed["old"].is_null(), changed["new"].is_null()) {
        (true, false) => Some((transform, true)),
        (false, true) => Some((transform, false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(key: &str, old: Option<&str>, new: Option<&str>) -> Value {
        json!({ "class": "rebuild", "key": key, "old": old, "new": new })
    }

    #[test]
    fn a_transform_that_comes_or_goes_is_one_line_and_what_looks_the_same_is_told_to_be_new() {
        let changed = json!([
            key("sink.breaker.open_for", Some("30s"), Some("20s")),
            key("transform.filter.on_error", None, Some("drop")),
            key("transform.filter.plugin", None, Some("filter.wasm")),
            key("transform.filter.settings", None, Some("{}")),
            key("transform.filter-2.limits.memory", None, Some("1MiB")),
            key("transform.router.on_error", Some("stop"), None),
            key("transform.router.plugin", Some("router.wasm"), None),
            key("transform.stays.plugin", Some("a.wasm"), Some("b.wasm")),
            key("transform.swapped.plugin", Some("c.wasm"), Some("c.wasm")),
            key("sink.password", Some("***"), Some("***")),
        ]);
        let expected = [
            "rebuild  sink.breaker.open_for = 30s → 20s",
            "rebuild  transform.filter added: filter.wasm",
            "rebuild  transform.filter-2.limits.memory = - → 1MiB",
            "rebuild  transform.router removed: router.wasm",
            "rebuild  transform.stays.plugin = a.wasm → b.wasm",
            "rebuild  transform.swapped.plugin = c.wasm, the file is a new one",
            "rebuild  sink.password = ***, a new one",
        ];
        assert_eq!(lines(&changed), expected);
    }
}
