//! What is shown, as texts: made of two pictures of the pipeline, one after the other. It knows no terminal.

use serde_json::Value;

use super::super::admin::{one_line, text};
use super::super::shards;

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Mood {
    Good,
    Wary,
    Bad,
}

/// A stage of the pipeline.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StageRow {
    pub(super) name: String,
    /// What goes through, a second; `None`: it is not counted.
    pub(super) rate: Option<f64>,
    /// How full the queue before it is, 0 to 1.
    pub(super) queue: Option<f64>,
    pub(super) breaker: String,
    pub(super) mood: Mood,
    pub(super) detail: String,
}

/// The last answer, and the one before it.
#[derive(Clone, Debug, Default)]
pub(in crate::cli) struct View {
    now: Value,
    before: Value,
    pub(super) reloads: Vec<Value>,
    pub(super) trouble: Option<String>,
    /// What was said lately, the newest last, where there is room for it.
    pub(in crate::cli) said: Vec<String>,
    /// How one gets out; by default by `q`.
    pub(in crate::cli) way_out: Option<&'static str>,
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

/// `1.4 s`, `3 min`, `2 h`.
pub(super) fn span(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6_000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

impl View {
    /// Takes an answer in; what was there before stays to be seen where there is none.
    pub(in crate::cli) fn take(&mut self, picture: Result<Value, String>, reloads: Vec<Value>) {
        match picture {
            Ok(picture) => {
                self.before = std::mem::replace(&mut self.now, picture);
                self.reloads = reloads;
                self.trouble = None;
            }
            Err(trouble) => self.trouble = Some(trouble),
        }
    }

    /// Whether there ever was an answer.
    pub(super) fn was_there(&self) -> bool {
        self.now.is_object()
    }

    /// Seconds between the two pictures; `None`: there is but one.
    fn between(&self) -> Option<f64> {
        let seconds = number(&self.now["at"]) - self.before["at"].as_f64()?;
        (seconds > 0.0).then_some(seconds)
    }

    /// By how much a count grew a second.
    fn grew(&self, path: &str) -> Option<f64> {
        let of = |picture: &Value| picture.pointer(path).and_then(Value::as_f64);
        let (now, before) = (of(&self.now)?, of(&self.before)?);
        Some((now - before).max(0.0) / self.between()?)
    }

    fn status(&self) -> &Value {
        &self.now["status"]
    }

    /// `orders 0.1.0 — running`
    pub(super) fn title(&self) -> String {
        let s = self.status();
        let (name, version, phase) = (&s["pipeline"], &s["version"], &s["phase"]);
        format!("{} {} — {}", text(name), text(version), text(phase))
    }

    /// The health of all, with its reason.
    pub(super) fn health(&self) -> (Mood, String) {
        let system = &self.status()["health"]["system"];
        let reason = system["reason"]
            .as_str()
            .map(|r| format!(": {}", one_line(r)));
        let said = text(&system["status"]) + &reason.unwrap_or_default();
        (mood(system), said)
    }

    /// The components that are not well: name, state, reason.
    pub(super) fn ill(&self) -> Vec<(Mood, String)> {
        let all = list(&self.status()["health"]["components"]);
        let ill = all.filter(|c| c["status"] != "healthy");
        let line = |c: &Value| {
            let reason = one_line(c["reason"].as_str().unwrap_or_default());
            let (name, status) = (text(&c["name"]), text(&c["status"]));
            (mood(c), format!("{name} {status} {reason}"))
        };
        ill.map(line).collect()
    }

    pub(super) fn components(&self) -> usize {
        list(&self.status()["health"]["components"]).count()
    }

    /// How far behind now the shard that is furthest behind reads.
    fn lag(picture: &Value) -> f64 {
        let lags = list(&picture["status"]["shards"]).map(|s| number(&s["lag_seconds"]));
        lags.fold(0.0, f64::max)
    }

    /// While a backlog is caught up with: when it will be over, at the pace of now.
    fn left(&self) -> Option<f64> {
        let (lag, before) = (Self::lag(&self.now), Self::lag(&self.before));
        let pace = (before - lag) / self.between()?;
        (self.now["source"]["catching_up"] == true && pace > 0.0).then(|| lag / pace)
    }

    /// From ScyllaDB to Redpanda, then what stands beside.
    pub(super) fn stages(&self) -> Vec<StageRow> {
        let all: Vec<&Value> = list(&self.status()["stages"]).collect();
        let place = |name: &str| match name {
            "source" => 0,
            "sink" => 2,
            "dead_letter" => 3,
            "orders" => 4,
            _ => 1,
        };
        // The order of the file is that of the children.
        let mut stages: Vec<StageRow> = all.iter().map(|s| self.stage(s)).collect();
        stages.sort_by_key(|s| place(&s.name));
        if let Some(first) = stages.iter_mut().find(|s| place(&s.name) == 1) {
            first.queue = self.now["queues"][0].as_f64();
        }
        stages
    }

    fn stage(&self, stage: &Value) -> StageRow {
        let name = text(&stage["stage"]);
        let rates = &self.now["rates"];
        let shards = || list(&self.status()["shards"]);
        let sum = |key: &str| shards().map(|s| number(&s[key])).sum::<f64>();
        let (rate, queue, mut detail) = match name.as_str() {
            "source" => {
                let left = self.left();
                let left = left.map_or_else(String::new, |s| format!(", caught up in {}", span(s)));
                let lag = format!("lag {}{left}", span(Self::lag(&self.now)));
                (rates["read"].as_f64(), None, lag)
            }
            "sink" => (
                rates["acknowledged"].as_f64(),
                self.now["queues"][1].as_f64(),
                format!("in flight {:.0}", sum("in_flight")),
            ),
            "dead_letter" => (
                self.grew("/sink/dead_letters"),
                None,
                format!("{:.0} written", sum("dead_letters")),
            ),
            "orders" => (None, None, String::new()),
            transform => {
                let work = &self.now["transforms"][transform];
                let faults = number(&work["faults"]);
                let faults = if faults > 0.0 {
                    format!("{faults:.0} faults")
                } else {
                    String::new()
                };
                let path = format!("/transforms/{}/items", transform.replace('/', "~1"));
                (self.grew(&path), None, faults)
            }
        };
        let (state, for_seconds) = (text(&stage["breaker"]), number(&stage["for_seconds"]));
        let (mood, breaker) = match (state.as_str(), stage["probe_in_seconds"].as_f64()) {
            ("closed", _) => (Mood::Good, state),
            ("open", Some(left)) => (Mood::Bad, format!("open, probe in {}", span(left))),
            _ => (Mood::Wary, format!("{state} for {}", span(for_seconds))),
        };
        if mood != Mood::Good
            && let Some(error) = stage["last_error"].as_str()
        {
            detail = format!("{} — {detail}", one_line(error));
        }
        StageRow {
            name,
            rate,
            queue,
            breaker,
            mood,
            detail,
        }
    }

    /// Each shard's figures, and whose it is.
    pub(super) fn shards(&self) -> Vec<[String; 5]> {
        let own = &self.status()["instance"];
        let row = |s: &Value| {
            let owner = &s["owner"];
            let owner = match owner["admin"].as_str() {
                _ if owner["instance"] == *own => "this instance".to_owned(),
                Some(admin) => admin.to_owned(),
                None => text(&owner["instance"]),
            };
            let figures = ["shard", "per_second", "lag_seconds", "in_flight"];
            let [shard, rate, lag, in_flight] = figures.map(|key| text(&s[key]));
            [shard, rate, lag, in_flight, owner]
        };
        shards::of(self.status()).iter().map(row).collect()
    }

    /// The newest reloads, and the one under way, the newest first.
    pub(super) fn history(&self) -> Vec<String> {
        let under_way = &self.status()["reload"];
        let now = under_way["step"].as_str().map(|step| {
            let seconds = number(&under_way["for_seconds"]);
            format!("under way for {}: {step}", span(seconds))
        });
        let past = self.reloads.iter().rev().map(|r| {
            let keys: Vec<String> = list(&r["changed"]).map(|c| text(&c["key"])).collect();
            let said = r["error"].as_str().unwrap_or_default().lines().next();
            let (at, outcome) = (text(&r["at"]), text(&r["outcome"]));
            format!(
                "{at} {outcome} {}{}",
                said.unwrap_or_default(),
                keys.join(", ")
            )
        });
        now.into_iter().chain(past).collect()
    }

    /// From write to done, in the last few seconds.
    pub(super) fn latency(&self) -> String {
        let rates = &self.now["rates"];
        let of = |key: &str| rates[key].as_f64().map_or_else(|| "-".to_owned(), span);
        format!("write to done p50 {} p99 {}", of("p50"), of("p99"))
    }

    /// All of it in one line, for where there is no terminal.
    pub(super) fn line(&self) -> String {
        if let Some(trouble) = &self.trouble {
            return trouble.clone();
        }
        let stages = self.stages();
        let rate = |name: &str| {
            let of = stages.iter().find(|s| s.name == name);
            of.and_then(|s| s.rate).unwrap_or_default()
        };
        let breakers: Vec<String> = stages
            .iter()
            .filter(|s| s.mood != Mood::Good)
            .map(|s| format!("{} {}", s.name, s.breaker))
            .collect();
        let breakers = match breakers.is_empty() {
            true => "closed".to_owned(),
            false => breakers.join(", "),
        };
        let left = self.left();
        let left = left.map_or_else(String::new, |s| format!(", caught up in {}", span(s)));
        format!(
            "{} · {} · read {:.0}/s · acknowledged {:.0}/s · lag {}{left} · breakers {breakers}",
            self.title(),
            self.health().1,
            rate("source"),
            rate("sink"),
            span(Self::lag(&self.now)),
        )
    }
}

fn mood(entry: &Value) -> Mood {
    match entry["status"].as_str() {
        Some("healthy") => Mood::Good,
        Some("unhealthy") => Mood::Bad,
        _ => Mood::Wary,
    }
}
