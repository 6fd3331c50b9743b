//! Raw → [`Settings`]: every value decoded, every rule checked, every problem collected.
//!
//! Touches no network. Reads what the configuration names: secrets and plugins.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use figment::value::Value;
use sha2::{Digest, Sha256};

use super::error::{Invalid, Place, Problem, Reason};
use super::keys::{self, Class, Fallback, Key, Kind};
use super::raw::{self, Inputs, Raw, Sources, show_path};
use super::settings::*;
use super::value::{self, Fault, Leaf, Step};
use crate::policy::{backoff, breaker, rate, restart};
use crate::sink::redpanda::reserved_property;

/// What other modules know about a plugin's file and its settings: load it, or say why not.
pub type CheckPlugin<'a> = &'a (dyn Fn(&Path, &Transform) -> Result<(), String> + Send + Sync);
/// What librdkafka says to properties; no connection is made.
pub type CheckProperties<'a> =
    &'a (dyn Fn(&BTreeMap<String, String>) -> Result<(), String> + Send + Sync);

/// The checks that need another module's knowledge.
#[derive(Clone, Copy)]
pub struct Checks<'a> {
    /// Loads a plugin.
    pub plugin: CheckPlugin<'a>,
    /// Tries librdkafka's properties.
    pub properties: CheckProperties<'a>,
    /// Whether the stand-ins are built in.
    pub embedded: bool,
}

impl Default for Checks<'_> {
    /// Plugins must exist and properties are taken as they are; the feature decides on the stand-ins.
    fn default() -> Self {
        Self {
            plugin: &|_, _| Ok(()),
            properties: &|_| Ok(()),
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
    pub class: Class,
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
    let mut check = Check {
        problems: raw.problems.clone(),
        sources: raw.sources.clone(),
        raw: &raw,
        leaves: BTreeMap::new(),
        failed: BTreeSet::new(),
        contents: BTreeMap::new(),
    };
    for (key, value) in &raw.root {
        check.walk(&mut vec![key.clone()], value);
    }
    check.missing();
    let settings = check.settings();
    check.cross(&settings, checks);
    check.report(settings)
}

/// A decoded value and where it stands.
struct Got {
    leaf: Leaf,
    place: Place,
}

struct Check<'a> {
    raw: &'a Raw,
    leaves: BTreeMap<String, Got>,
    /// Keys that are wrong already: nothing more is said about them.
    failed: BTreeSet<String>,
    /// What files that keys name contain.
    contents: BTreeMap<String, [u8; 32]>,
    problems: Vec<Problem>,
    sources: Sources,
}

impl Check<'_> {
    fn problem(&mut self, reason: Reason, place: Place, help: impl IntoIterator<Item = String>) {
        let problem = Problem {
            reason,
            place,
            help: help.into_iter().collect(),
        };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    // ---- the walk: types, ranges, words, unknown keys ----

    fn walk(&mut self, path: &mut Vec<String>, value: &Value) {
        let pattern = keys::pattern(path);
        if let Some(key) = keys::get(&pattern) {
            return match key.kind.decode(value) {
                Ok(leaf) => {
                    let place = self.raw.place(value, path);
                    self.leaves.insert(path.join("."), Got { leaf, place });
                }
                Err(fault) => {
                    self.failed.insert(path.join("."));
                    self.fault(&key.kind, path, value, fault);
                }
            };
        }
        if !is_section(&pattern) {
            return self.unknown(path, value);
        }
        match value.as_dict() {
            Some(dict) => {
                for (key, value) in dict {
                    path.push(key.clone());
                    self.walk(path, value);
                    path.pop();
                }
            }
            None => {
                let reason = Reason::WrongType {
                    key: show_path(path),
                    found: found(path, value),
                };
                self.failed.insert(path.join("."));
                self.problem(
                    reason,
                    self.raw.place(value, path),
                    ["a table is expected".to_owned()],
                );
            }
        }
    }

    fn fault(&mut self, kind: &Kind, path: &[String], value: &Value, fault: Fault) {
        let (key, place) = (show_path(path), self.raw.place(value, path));
        let found = found(path, value);
        let expected = format!("expected {}", kind.expected());
        let (reason, help) = match fault {
            Fault::In(step, fault) => {
                let (step, inner) = match &step {
                    Step::Index(i) => (format!("[{i}]"), value.as_array().and_then(|a| a.get(*i))),
                    Step::Key(k) => (k.clone(), value.as_dict().and_then(|d| d.get(k))),
                };
                let path: Vec<String> = path.iter().cloned().chain([step]).collect();
                return self.fault(kind, &path, inner.unwrap_or(value), *fault);
            }
            Fault::Type => (Reason::WrongType { key, found }, expected),
            Fault::Range => (Reason::OutOfRange { key, found }, expected),
            Fault::Malformed => (Reason::Malformed { key, found }, expected),
            Fault::Rule(rule) => (
                Reason::IllegalValue { key, found },
                format!("expected {rule}"),
            ),
            Fault::Empty => (Reason::EmptyList { key }, "name at least one".to_owned()),
            Fault::Twice(first) => {
                let list = show_path(&path[..path.len() - 1]);
                let first = format!("{list}[{first}]");
                (
                    Reason::Duplicate { key, found, first },
                    "name it once".to_owned(),
                )
            }
            Fault::Choice => {
                let Kind::Choice(words) = kind else {
                    return;
                };
                let nearest = nearest(value.as_str().unwrap_or_default(), words.iter().copied());
                let help = match nearest {
                    Some(word) => format!("{expected}; did you mean {word:?}?"),
                    None => expected,
                };
                (Reason::UnknownChoice { key, found }, help)
            }
        };
        self.problem(reason, place, [help]);
    }

    fn unknown(&mut self, path: &[String], value: &Value) {
        let key = show_path(path);
        let place = self.raw.key_place(value, path);
        let parent = keys::pattern(path)
            .rsplit_once('.')
            .map_or(String::new(), |(p, _)| format!("{p}."));
        let siblings: BTreeSet<&str> = keys::all()
            .iter()
            .filter_map(|k| k.path.strip_prefix(&parent))
            .map(|rest| rest.split('.').next().unwrap_or(rest))
            .filter(|step| *step != "*")
            .collect();
        let last = path.last().map_or("", String::as_str);
        let help = if let Some(near) = nearest(last, siblings.iter().copied()) {
            format!("did you mean `{near}`?")
        } else if let Some(other) = keys::all()
            .iter()
            .find(|k| k.path.rsplit('.').next() == Some(last) && !k.path.starts_with("policies."))
        {
            format!(
                "there is `{}`",
                other.path.replace("transform.*", "transform.<name>")
            )
        } else {
            let siblings: Vec<&str> = siblings.into_iter().collect();
            format!("known here: {}", siblings.join(", "))
        };
        self.problem(Reason::UnknownKey { key }, place, [help]);
    }

    fn missing(&mut self) {
        if self.raw.broken {
            return;
        }
        let mut absent = Vec::new();
        for key in keys::all()
            .iter()
            .filter(|k| k.fallback == Fallback::Required)
        {
            for (path, table) in self.concrete(key) {
                let above = self
                    .failed
                    .iter()
                    .any(|f| path == *f || path.starts_with(&format!("{f}.")));
                if !self.leaves.contains_key(&path) && !above {
                    absent.push((key, path, table));
                }
            }
        }
        for (key, path, table) in absent {
            let last = key.path.rsplit('.').next().unwrap_or_default();
            let help = format!(
                "expected {}, e.g. {last} = {}",
                key.kind.expected(),
                key.example
            );
            self.problem(
                Reason::Missing {
                    key: path.replace(".[", "["),
                },
                self.raw.table_place(&table),
                [help],
            );
        }
    }

    /// The paths that a key has, one a transform for `*`, each with the path of its table.
    fn concrete(&self, key: &Key) -> Vec<(String, Vec<String>)> {
        let steps: Vec<String> = key.path.split('.').map(str::to_owned).collect();
        let of = |steps: Vec<String>| {
            let table = steps[..steps.len() - 1].to_vec();
            (steps.join("."), table)
        };
        if steps.get(1).map(String::as_str) != Some("*") {
            return vec![of(steps)];
        }
        self.raw
            .transforms
            .iter()
            .map(|name| {
                let mut steps = steps.clone();
                steps[1].clone_from(name);
                of(steps)
            })
            .collect()
    }

    // ---- reading decoded values, with defaults ----

    /// The value in force: set, or the default. What is required and not there reads as the example, so
    /// that the other checks can go on; a problem has been reported.
    fn leaf(&self, path: &str) -> Option<Leaf> {
        if let Some(got) = self.leaves.get(path) {
            return Some(got.leaf.clone());
        }
        let key = key_of(path)?;
        match key.fallback {
            Fallback::Absent => None,
            Fallback::Required => Some(builtin(&key.kind, key.example)),
            Fallback::Value(default) => Some(builtin(&key.kind, default)),
            Fallback::Policies => self.leaf(&policies_path(key)),
        }
    }

    fn text_maybe(&self, path: &str) -> Option<String> {
        match self.leaf(path)? {
            Leaf::Text(text) => Some(text),
            other => unreachable!("{path} is no text: {other:?}"),
        }
    }

    fn text(&self, path: &str) -> String {
        self.text_maybe(path).unwrap_or_default()
    }

    fn int(&self, path: &str) -> u64 {
        match self.leaf(path) {
            Some(Leaf::Int(n)) => n,
            other => unreachable!("{path} is no number: {other:?}"),
        }
    }

    fn count(&self, path: &str) -> NonZeroU32 {
        // The key's range is within 1..=u32::MAX; a test looks at each.
        let n = u32::try_from(self.int(path)).unwrap_or(u32::MAX);
        NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN)
    }

    fn float(&self, path: &str) -> f64 {
        match self.leaf(path) {
            Some(Leaf::Float(n)) => n,
            other => unreachable!("{path} is no number: {other:?}"),
        }
    }

    fn duration(&self, path: &str) -> Duration {
        match self.leaf(path) {
            Some(Leaf::Duration(d)) => d,
            other => unreachable!("{path} is no duration: {other:?}"),
        }
    }

    fn bool(&self, path: &str) -> bool {
        matches!(self.leaf(path), Some(Leaf::Bool(true)))
    }

    fn address(&self, path: &str) -> SocketAddr {
        match self.leaf(path) {
            Some(Leaf::Address(a)) => a,
            other => unreachable!("{path} is no address: {other:?}"),
        }
    }

    fn nodes(&self, path: &str) -> Nodes {
        match self.leaf(path) {
            Some(Leaf::Nodes(n)) => n,
            other => unreachable!("{path} names no nodes: {other:?}"),
        }
    }

    fn list(&self, path: &str) -> Vec<String> {
        match self.leaf(path) {
            Some(Leaf::List(l)) => l,
            other => unreachable!("{path} is no list: {other:?}"),
        }
    }

    fn map(&self, path: &str) -> BTreeMap<String, String> {
        match self.leaf(path) {
            Some(Leaf::Map(m)) => m,
            other => unreachable!("{path} is no table: {other:?}"),
        }
    }

    fn place(&self, path: &str) -> Place {
        self.leaves
            .get(path)
            .map_or(Place::Nowhere, |got| got.place.clone())
    }

    /// A path is relative to the file that it stands in.
    fn path(&self, key: &str) -> Option<PathBuf> {
        let text = self.text_maybe(key)?;
        Some(match self.place(key) {
            Place::File(file, _) => file.path.parent().unwrap_or(Path::new("")).join(text),
            _ => PathBuf::from(text),
        })
    }

    // ---- building ----

    fn settings(&mut self) -> Settings {
        let pipeline = self.text("pipeline.name");
        let keyspace = self.text("source.keyspace");
        let source_password = self.secret("source.password");
        let sink_password = self.secret("sink.password");
        let token = self.secret("admin.token");
        let metrics_token = self.secret("admin.metrics_token");
        let names = self.raw.transforms.clone();
        Settings {
            pipeline: Pipeline {
                delivery: match self.text("pipeline.delivery").as_str() {
                    "exactly-once" => Delivery::ExactlyOnce,
                    _ => Delivery::AtLeastOnce,
                },
                shards: self.count("pipeline.shards"),
                instances: match self.text("pipeline.instances").as_str() {
                    "shared" => Instances::Shared,
                    _ => Instances::One,
                },
                session_timeout: self.duration("pipeline.session_timeout"),
                max_in_flight: self.count("pipeline.max_in_flight"),
                batch_size: self.count("pipeline.batch_size"),
                name: pipeline.clone(),
            },
            source: Source {
                nodes: self.nodes("source.nodes"),
                tables: self.list("source.tables"),
                start_from: match self.leaf("source.start_from") {
                    Some(Leaf::StartFrom(from)) => from,
                    _ => StartFrom::Earliest,
                },
                poll_interval: self.duration("source.poll_interval"),
                window: self.duration("source.window"),
                safety_interval: self.duration("source.safety_interval"),
                read_timeout: self.duration("source.read_timeout"),
                page_size: self.count("source.page_size"),
                concurrency: self.count("source.concurrency"),
                consistency: match self.text("source.consistency").as_str() {
                    "one" => Consistency::One,
                    "two" => Consistency::Two,
                    "three" => Consistency::Three,
                    "local-quorum" => Consistency::LocalQuorum,
                    "local-one" => Consistency::LocalOne,
                    "all" => Consistency::All,
                    _ => Consistency::Quorum,
                },
                username: self.text_maybe("source.username"),
                password: source_password,
                policies: self.policies("source"),
                keyspace: keyspace.clone(),
            },
            transforms: names.iter().map(|name| self.transform(name)).collect(),
            sink: Sink {
                brokers: self.nodes("sink.brokers"),
                properties: self.map("sink.properties"),
                username: self.text_maybe("sink.username"),
                password: sink_password,
                attempt_timeout: self.duration("sink.attempt_timeout"),
                topic: self.text("sink.topic"),
                topics: Topics {
                    create: self.bool("sink.topics.create"),
                    partitions: self.count("sink.topics.partitions"),
                    replication_factor: self
                        .leaf("sink.topics.replication_factor")
                        .map(|_| self.count("sink.topics.replication_factor")),
                    properties: self.map("sink.topics.properties"),
                },
                checkpoint_interval: self.duration("sink.checkpoint_interval"),
                commit_interval: self.duration("sink.commit_interval"),
                policies: self.policies("sink"),
            },
            dead_letter: DeadLetter {
                topic: value::fill(&self.text("dead_letter.topic"), &pipeline, &keyspace, ""),
                max: self.count("dead_letter.max"),
                within: self.duration("dead_letter.within"),
                policies: self.policies("dead_letter"),
            },
            orders: Orders {
                enabled: self.bool("orders.enabled"),
                listen: self.address("orders.listen"),
                keyspace: self.text_maybe("orders.keyspace").unwrap_or(keyspace),
                outbox_ttl: self.duration("orders.outbox_ttl"),
                request_timeout: self.duration("orders.request_timeout"),
                policies: self.policies("orders"),
            },
            admin: Admin {
                enabled: self.bool("admin.enabled"),
                listen: self.address("admin.listen"),
                token,
                metrics_token,
            },
            health: Health {
                check_interval: self.duration("health.check_interval"),
                report_interval: self.duration("health.report_interval"),
                stalled_after: self.duration("health.stalled_after"),
                critical: self.list("health.critical"),
                headroom_degraded: self.float("health.headroom_degraded"),
                headroom_unhealthy: self.float("health.headroom_unhealthy"),
                open_breaker: match self.text("health.open_breaker").as_str() {
                    "unhealthy" => OpenBreaker::Unhealthy,
                    _ => OpenBreaker::Degraded,
                },
            },
            shutdown: Shutdown {
                timeout: self.duration("shutdown.timeout"),
            },
            log: Log {
                filter: self.text("log.filter"),
                format: match self.text("log.format").as_str() {
                    "json" => LogFormat::Json,
                    _ => LogFormat::Text,
                },
            },
            reload: Reload {
                watch: self.bool("reload.watch"),
                poll_interval: self.duration("reload.poll_interval"),
                debounce: self.duration("reload.debounce"),
            },
            embedded: Embedded {
                scylla_listen: self.address("embedded.scylla_listen"),
                redpanda_listen: self.address("embedded.redpanda_listen"),
                vnodes: self.count("embedded.vnodes"),
                shards_per_vnode: self.count("embedded.shards_per_vnode"),
            },
        }
    }

    fn transform(&self, name: &str) -> Transform {
        let at = |key: &str| stage_of(name) + "." + key;
        Transform {
            name: name.to_owned(),
            plugin: self.path(&at("plugin")).unwrap_or_default(),
            on_error: match self.text(&at("on_error")).as_str() {
                "drop" => OnError::Drop,
                "stop" => OnError::Stop,
                _ => OnError::DeadLetter,
            },
            limits: Limits {
                memory: self.int(&at("limits.memory")),
                deadline: self.duration(&at("limits.deadline")),
            },
            settings: self.map(&at("settings")),
            policies: self.policies(&stage_of(name)),
        }
    }

    fn policies(&self, stage: &str) -> Policies {
        let at = |key: &str| format!("{stage}.{key}");
        // What a constructor refuses has been reported by then: the table's ranges and `orders`, below, say
        // the same with a place. The default only lets the other checks go on.
        Policies {
            breaker: breaker::Settings::new(
                self.count(&at("breaker.failure_threshold")),
                self.duration(&at("breaker.open_for")),
                self.count(&at("breaker.success_threshold")),
            )
            .unwrap_or_default(),
            retry: backoff::Settings::new(
                self.duration(&at("retry.initial")),
                self.duration(&at("retry.max")),
                self.float(&at("retry.multiplier")),
                u32::try_from(self.int(&at("retry.max_attempts")))
                    .ok()
                    .and_then(NonZeroU32::new),
            )
            .unwrap_or_default(),
            rate_limit: match self.leaf(&at("rate_limit")) {
                Some(Leaf::Rate(rate)) => rate,
                _ => None,
            },
            supervision: restart::Settings::new(
                match self.text(&at("supervision.strategy")).as_str() {
                    "one_for_all" => restart::Strategy::OneForAll,
                    "rest_for_one" => restart::Strategy::RestForOne,
                    _ => restart::Strategy::OneForOne,
                },
                u32::try_from(self.int(&at("supervision.max_restarts"))).unwrap_or(u32::MAX),
                self.duration(&at("supervision.within")),
                self.duration(&at("supervision.backoff")),
                match self.text(&at("supervision.on_failed")).as_str() {
                    "shutdown" => restart::OnFailed::Shutdown,
                    _ => restart::OnFailed::Isolate,
                },
            )
            .unwrap_or_default(),
        }
    }

    /// A secret by the environment or by a file, never both and never in the open.
    fn secret(&mut self, key: &str) -> Option<Secret> {
        let file_key = format!("{key}_file");
        let open = self.text_maybe(key);
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

    // ---- checks across keys ----

    fn ok(&self, keys: &[&str]) -> bool {
        !keys.iter().any(|k| self.failed.contains(*k))
    }

    fn cross(&mut self, settings: &Settings, checks: Checks<'_>) {
        if !checks.embedded {
            for (key, nodes) in [
                ("source.nodes", &settings.source.nodes),
                ("sink.brokers", &settings.sink.brokers),
            ] {
                if *nodes == Nodes::Embedded && self.ok(&[key]) {
                    let reason = Reason::NotEmbedded {
                        key: key.to_owned(),
                    };
                    let help =
                        "name the real ones, or build with the feature `embedded`".to_owned();
                    self.problem(reason, self.place(key), [help]);
                }
            }
        }
        self.topics(settings);
        self.orders();
        self.credentials(settings);
        self.properties(settings, checks);
        self.addresses(settings);
        self.stages(settings);
        self.plugins(settings, checks);
    }

    fn topics(&mut self, settings: &Settings) {
        let used = [
            "sink.topic",
            "dead_letter.topic",
            "pipeline.name",
            "source.keyspace",
            "source.tables",
        ];
        if !self.ok(&used) || self.raw.broken {
            return;
        }
        let Settings {
            pipeline,
            source,
            sink,
            dead_letter,
            ..
        } = settings;
        if value::topic_name(&dead_letter.topic).is_err() {
            self.illegal_topic("dead_letter.topic", dead_letter.topic.clone());
        }
        let mut taken = vec![(
            format!("penstock.{}.checkpoints", pipeline.name),
            "the topic of the checkpoints".to_owned(),
        )];
        for table in &source.tables {
            let topic = value::fill(&sink.topic, &pipeline.name, &source.keyspace, table);
            if value::topic_name(&topic).is_err() {
                self.illegal_topic("sink.topic", topic.clone());
            }
            taken.push((topic, format!("`sink.topic` for the table {table}")));
        }
        if let Some((topic, what)) = taken
            .into_iter()
            .find(|(topic, _)| *topic == dead_letter.topic)
        {
            let place = match self.place("dead_letter.topic") {
                Place::Nowhere => self.place("sink.topic"),
                place => place,
            };
            let help =
                "give dead letters a topic of their own, such as \"{pipeline}.dead-letters\""
                    .to_owned();
            self.problem(Reason::DeadLetterTopic { topic, what }, place, [help]);
        }
    }

    fn illegal_topic(&mut self, key: &str, topic: String) {
        let help = "expected 1 to 249 ASCII letters, digits, '.', '_' and '-'".to_owned();
        let key = key.to_owned();
        self.problem(
            Reason::IllegalTopic {
                topic,
                key: key.clone(),
            },
            self.place(&key),
            [help],
        );
    }

    fn orders(&mut self) {
        let float = |c: &Self, key: &str| c.float(key).to_string();
        let duration =
            |c: &Self, key: &str| humantime::format_duration(c.duration(key)).to_string();
        if self.float("health.headroom_unhealthy") > self.float("health.headroom_degraded") {
            self.order(
                "health.headroom_unhealthy",
                "health.headroom_degraded",
                float,
            );
        }
        let stages = keys::STAGES
            .iter()
            .filter(|s| !s.ends_with('*'))
            .map(|s| (*s).to_owned());
        let transforms = self.raw.transforms.iter().map(|n| stage_of(n));
        let all: Vec<String> = ["policies".to_owned()]
            .into_iter()
            .chain(stages)
            .chain(transforms)
            .collect();
        for stage in all {
            let (initial, max) = (
                format!("{stage}.retry.initial"),
                format!("{stage}.retry.max"),
            );
            let set = stage == "policies"
                || self.leaves.contains_key(&initial)
                || self.leaves.contains_key(&max);
            if set && self.duration(&initial) > self.duration(&max) {
                self.order(&initial, &max, duration);
            }
        }
    }

    fn order(&mut self, low: &str, high: &str, show: fn(&Self, &str) -> String) {
        if !self.ok(&[low, high]) {
            return;
        }
        let place = match self.place(low) {
            Place::Nowhere => self.place(high),
            place => place,
        };
        let reason = Reason::Order {
            low: low.to_owned(),
            low_value: show(self, low),
            high: high.to_owned(),
            high_value: show(self, high),
        };
        self.problem(
            reason,
            place,
            ["lower the one or raise the other".to_owned()],
        );
    }

    fn credentials(&mut self, settings: &Settings) {
        let both = [
            (
                "source",
                &settings.source.username,
                &settings.source.password,
            ),
            ("sink", &settings.sink.username, &settings.sink.password),
        ];
        for (section, username, password) in both {
            let user = format!("{section}.username");
            let word = format!("{section}.password");
            let file = format!("{word}_file");
            // A password that was refused is not a password that is missing.
            let set = [&word, &file]
                .into_iter()
                .find(|k| self.leaves.contains_key(*k) || self.failed.contains(*k));
            if !self.ok(&[&user]) {
                continue;
            }
            if username.is_some() && password.is_none() && set.is_none() {
                let variable = raw::PREFIX.to_owned() + &word.replace('.', "__").to_uppercase();
                let help = format!("set {variable} in the environment, or {file}");
                let place = self.place(&user);
                self.problem(
                    Reason::Half {
                        key: user,
                        other: word,
                    },
                    place,
                    [help],
                );
            } else if let (None, Some(key)) = (username, set) {
                let key = key.clone();
                let place = self.place(&key);
                self.problem(
                    Reason::Half {
                        key,
                        other: user.clone(),
                    },
                    place,
                    [format!("set {user}")],
                );
            }
        }
    }

    fn properties(&mut self, settings: &Settings, checks: Checks<'_>) {
        let before = self.problems.len();
        for (name, setting) in &settings.sink.properties {
            let path = ["sink".to_owned(), "properties".to_owned(), name.clone()];
            let place = self.property_place(&path);
            if raw::is_secret(&path[2..]) {
                let help = match name.as_str() {
                    "sasl.password" => {
                        "use sink.password_file, or PENSTOCK_SINK__PASSWORD in the environment"
                    }
                    _ => "give librdkafka a file instead, such as ssl.key.location",
                };
                self.problem(
                    Reason::OpenSecret {
                        key: show_path(&path),
                    },
                    place,
                    [help.to_owned()],
                );
            } else if let Some((why, help)) = forbidden(name, setting) {
                self.problem(
                    Reason::ForbiddenProperty {
                        name: name.clone(),
                        why,
                    },
                    place,
                    [help.to_owned()],
                );
            }
        }
        self.transaction_timeout(settings);
        if self.problems.len() == before
            && self.ok(&["sink.properties"])
            && let Err(error) = (checks.properties)(&settings.sink.properties)
        {
            let help =
                "see https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md"
                    .to_owned();
            self.problem(
                Reason::PropertiesRejected { error },
                self.place("sink.properties"),
                [help],
            );
        }
    }

    fn property_place(&self, path: &[String]) -> Place {
        let value = path.iter().try_fold(None, |at: Option<&Value>, step| {
            let dict = at.map_or(Some(&self.raw.root), Value::as_dict)?;
            dict.get(step).map(Some)
        });
        match value.flatten() {
            Some(value) => self.raw.key_place(value, path),
            None => self.place("sink.properties"),
        }
    }

    /// Below it a dead owner's transaction blocks `read_committed` readers for longer than the group takes
    /// to replace the owner (KIP-98).
    fn transaction_timeout(&mut self, settings: &Settings) {
        /// librdkafka's default.
        const SESSION_MS: u64 = 45_000;
        let properties = &settings.sink.properties;
        let number = |name: &str| properties.get(name).and_then(|v| v.parse::<u64>().ok());
        let session = number("session.timeout.ms").unwrap_or(SESSION_MS);
        if let Some(transaction) = number("transaction.timeout.ms").filter(|t| *t >= session) {
            let path = ["sink", "properties", "transaction.timeout.ms"].map(str::to_owned);
            let reason = Reason::TransactionTimeout {
                transaction,
                session,
            };
            let help = "lower transaction.timeout.ms; 15000 to 30000 does".to_owned();
            self.problem(reason, self.property_place(&path), [help]);
        }
    }

    fn addresses(&mut self, settings: &Settings) {
        let Settings { admin, orders, .. } = settings;
        let token = ["admin.token", "admin.token_file"];
        let tokenless = !token
            .iter()
            .any(|k| self.leaves.contains_key(*k) || self.failed.contains(*k));
        if admin.enabled && !admin.listen.ip().is_loopback() && tokenless {
            let reason = Reason::ExposedAdmin {
                listen: admin.listen.to_string(),
            };
            let help =
                "listen on 127.0.0.1, or set admin.token_file or PENSTOCK_ADMIN__TOKEN".to_owned();
            self.problem(reason, self.place("admin.listen"), [help]);
        }
        let same = admin.listen == orders.listen && admin.listen.port() != 0;
        if admin.enabled && orders.enabled && same {
            let reason = Reason::Duplicate {
                key: "orders.listen".to_owned(),
                found: orders.listen.to_string(),
                first: "admin.listen".to_owned(),
            };
            let help = "give each a port of its own".to_owned();
            let place = match self.place("orders.listen") {
                Place::Nowhere => self.place("admin.listen"),
                place => place,
            };
            self.problem(reason, place, [help]);
        }
    }

    fn stages(&mut self, settings: &Settings) {
        if self.raw.broken || !self.ok(&["health.critical"]) {
            return;
        }
        for stage in &settings.health.critical {
            if settings.policies(stage).is_some() {
                continue;
            }
            let transforms = settings
                .transforms
                .iter()
                .map(|t| format!("transform.{}", t.name));
            let fixed = keys::STAGES
                .iter()
                .filter(|s| !s.ends_with('*'))
                .map(|s| (*s).to_owned());
            let known: Vec<String> = fixed.chain(transforms).collect();
            let names: Vec<&str> = known.iter().map(String::as_str).collect();
            let help = format!("expected {}", value::one_of(&names));
            let reason = Reason::UnknownStage {
                key: "health.critical".to_owned(),
                stage: stage.clone(),
            };
            self.problem(reason, self.place("health.critical"), [help]);
        }
    }

    fn plugins(&mut self, settings: &Settings, checks: Checks<'_>) {
        for transform in &settings.transforms {
            let stage = stage_of(&transform.name);
            let key = format!("{stage}.plugin");
            if !self.leaves.contains_key(&key) {
                continue;
            }
            let path = transform.plugin.display().to_string();
            let hash = raw::hash_file(&transform.plugin);
            let seen = hash.as_ref().copied().unwrap_or_default();
            self.sources.insert(transform.plugin.clone(), seen);
            match hash {
                Err(error) => {
                    let reason = Reason::PluginFile {
                        key: key.clone(),
                        path,
                        error: error.to_string(),
                    };
                    let help = "a relative path starts at the folder of the file that it stands in"
                        .to_owned();
                    self.problem(reason, self.place(&key), [help]);
                }
                Ok(hash) => {
                    self.contents.insert(key.clone(), hash);
                    let sound = !self.failed.iter().any(|f| f.starts_with(&stage));
                    if sound && let Err(error) = (checks.plugin)(&transform.plugin, transform) {
                        let reason = Reason::PluginRejected {
                            key: key.clone(),
                            path,
                            error,
                        };
                        let help = "expected a WebAssembly component, or a core module with the WIT embedded, that takes these settings".to_owned();
                        self.problem(reason, self.place(&key), [help]);
                    }
                }
            }
        }
    }

    // ---- the result ----

    fn report(self, settings: Settings) -> Result<Loaded, Invalid> {
        if !self.problems.is_empty() {
            return Err(Invalid {
                problems: in_order(self.problems, self.raw.broken),
                sources: self.sources,
            });
        }
        let mut effective: Vec<Effective> = keys::all()
            .iter()
            .flat_map(|key| {
                self.concrete(key)
                    .into_iter()
                    .map(move |(path, _)| (key, path))
            })
            .filter_map(|(key, path)| self.effective(key, path))
            .collect();
        // The order of the transforms counts and is in no single value.
        let order = toml::Value::from(self.raw.transforms.clone()).to_string();
        effective.push(Effective {
            key: keys::TRANSFORMS.to_owned(),
            origin: self.raw.table_place(&["transform".to_owned()]).to_string(),
            class: Class::Rebuild,
            fingerprint: Sha256::digest(order.as_bytes()).into(),
            value: order,
        });
        let mut hash = Sha256::new();
        for entry in &effective {
            hash.update(entry.key.as_bytes());
            hash.update([0]);
            hash.update(entry.fingerprint);
        }
        Ok(Loaded {
            settings: Arc::new(settings),
            effective,
            sources: self.sources,
            hash: hex::encode(hash.finalize()),
            at: SystemTime::now(),
        })
    }

    fn effective(&self, key: &Key, path: String) -> Option<Effective> {
        let leaf = self.leaf(&path)?;
        let shown = show_leaf(&key.kind, &leaf);
        let mut fingerprint = Sha256::new();
        fingerprint.update(shown.as_bytes());
        if let Some(content) = self.contents.get(&path) {
            fingerprint.update(content);
        }
        let value = match &leaf {
            _ if matches!(key.kind, Kind::Secret) => "***".to_owned(),
            // A plugin's settings are free: what is called a secret is treated as one.
            Leaf::Map(map) => {
                let masked = map.iter().map(|(k, v)| {
                    let secret = raw::is_secret(std::slice::from_ref(k));
                    (k.clone(), if secret { "***".to_owned() } else { v.clone() })
                });
                show_leaf(&key.kind, &Leaf::Map(masked.collect()))
            }
            _ => shown,
        };
        Some(Effective {
            origin: self.origin(key, &path),
            class: key.class,
            key: path,
            value,
            fingerprint: fingerprint.finalize().into(),
        })
    }

    fn origin(&self, key: &Key, path: &str) -> String {
        match (self.leaves.get(path), key.fallback) {
            (Some(got), _) => got.place.to_string(),
            (None, Fallback::Policies) => {
                let policies = policies_path(key);
                match self.leaves.get(&policies) {
                    Some(got) => format!("{} ({policies})", got.place),
                    None => "default".to_owned(),
                }
            }
            (None, _) => "default".to_owned(),
        }
    }
}

/// In the order of files and lines. Where a file is not TOML, what else is said about the same line is
/// noise: the parser guessed how to go on.
fn in_order(mut problems: Vec<Problem>, broken: bool) -> Vec<Problem> {
    let line = |p: &Problem| match &p.place {
        Place::File(text, span) => Some((text.path.clone(), text.line_column(span.start).0)),
        _ => None,
    };
    if broken {
        let lines: Vec<_> = problems
            .iter()
            .filter(|p| matches!(p.reason, Reason::Syntax { .. }))
            .filter_map(line)
            .collect();
        problems.retain(|p| {
            matches!(p.reason, Reason::Syntax { .. }) || line(p).is_none_or(|l| !lines.contains(&l))
        });
    }
    problems.sort_by_cached_key(|p| match &p.place {
        Place::Nowhere => (0, PathBuf::new(), 0),
        Place::Path(path) => (1, path.clone(), 0),
        Place::File(text, span) => (1, text.path.clone(), span.start + 1),
        Place::Variable(name) => (2, name.into(), 0),
        Place::Flag(flag) => (3, flag.into(), 0),
    });
    problems
}

/// Why librdkafka's property must not be set so, and what to do instead.
fn forbidden(name: &str, setting: &str) -> Option<(&'static str, &'static str)> {
    const LEAVE: &str = "leave it out";
    Some(match name {
        "bootstrap.servers" | "metadata.broker.list" => (
            "the brokers would be named in two places",
            "use sink.brokers",
        ),
        "sasl.username" => (
            "the credentials would stand in two places",
            "use sink.username",
        ),
        "enable.idempotence" if setting != "true" => (
            "without idempotence a resend repeats or reorders records",
            LEAVE,
        ),
        "acks" | "request.required.acks" if !matches!(setting, "all" | "-1") => (
            "a record acknowledged by fewer than all in-sync replicas can be lost",
            LEAVE,
        ),
        "transactional.id" => (
            "it is made from pipeline.name and the shard, which is what fences a zombie",
            LEAVE,
        ),
        "max.in.flight" | "max.in.flight.requests.per.connection"
            if setting
                .parse::<u64>()
                .map_or(true, |n| !(1..=5).contains(&n)) =>
        {
            (
                "an idempotent producer keeps order for 1 to 5 requests in flight",
                "set it to 5 at most",
            )
        }
        "message.timeout.ms" | "delivery.timeout.ms" => (
            "librdkafka would give up on records; an outage must cost none",
            "use sink.attempt_timeout",
        ),
        "message.send.max.retries" | "retries" => (
            "librdkafka would give up on records; an outage must cost none",
            LEAVE,
        ),
        "delivery.report.only.error" | "dr_cb" | "dr_msg_cb" => {
            ("without delivery reports no checkpoint may move", LEAVE)
        }
        "partitioner" if setting == "random" => (
            "the records of one key would lose their order",
            "use one that looks at the key",
        ),
        "group.id" | "group.instance.id" => (
            "it is made from pipeline.name, and is how instances share the shards",
            LEAVE,
        ),
        "enable.auto.commit" | "enable.auto.offset.store" | "isolation.level" => (
            "checkpoints are committed by penstock, and read as committed",
            LEAVE,
        ),
        "plugin.library.paths" => ("it would load foreign code into the process", LEAVE),
        _ if name.starts_with("test.mock.") => (
            "records would go to brokers that are not there",
            "use sink.brokers = \"embedded\"",
        ),
        _ if name.ends_with("_cb")
            || matches!(name, "opaque" | "interceptors" | "default_topic_conf") =>
        {
            ("it is a pointer of the program, not a setting", LEAVE)
        }
        _ => return reserved_property(name).map(|why| (why, LEAVE)),
    })
}

/// The stage of a transform, as it is called among the decoded values.
fn stage_of(name: &str) -> String {
    format!("transform.{name}")
}

fn is_section(pattern: &str) -> bool {
    let prefix = format!("{pattern}.");
    keys::all().iter().any(|k| k.path.starts_with(&prefix))
}

/// The key under `[policies]` that a stage's policy falls back to.
fn policies_path(key: &Key) -> String {
    let stage = keys::STAGES
        .iter()
        .find_map(|stage| key.path.strip_prefix(stage)?.strip_prefix('.'));
    format!("policies.{}", stage.unwrap_or(&key.path))
}

fn key_of(path: &str) -> Option<&'static Key> {
    if let Some(rest) = path.strip_prefix("transform.") {
        // The longest pattern that ends the path.
        return keys::all()
            .iter()
            .filter_map(|k| Some((k, k.path.strip_prefix("transform.*")?)))
            .filter(|(_, tail)| rest.ends_with(tail))
            .max_by_key(|(_, tail)| tail.len())
            .map(|(k, _)| k);
    }
    keys::get(path)
}

/// A default or an example of the table; a test decodes each.
pub(super) fn builtin(kind: &Kind, text: &str) -> Leaf {
    let value = raw::from_text(text, false);
    kind.decode(&value)
        .unwrap_or_else(|fault| unreachable!("{text} in the table of keys: {fault:?}"))
}

fn found(path: &[String], value: &Value) -> String {
    if raw::is_secret(path) {
        "***".to_owned()
    } else {
        value::show(value)
    }
}

/// The nearest word, if it is near enough to have been meant.
fn nearest<'w>(word: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let word = word.to_ascii_lowercase();
    if word.len() > 64 {
        return None;
    }
    words
        .map(|w| (strsim::damerau_levenshtein(&word, w), w))
        .filter(|(distance, w)| *distance <= w.len().max(word.len()) / 3)
        .min()
        .map(|(_, w)| w)
}

/// As it would stand in the file.
fn show_leaf(kind: &Kind, leaf: &Leaf) -> String {
    let quoted = |s: &str| toml::Value::from(s).to_string();
    match leaf {
        Leaf::Bool(b) => b.to_string(),
        Leaf::Int(n) if matches!(kind, Kind::Size(..)) => quoted(&value::show_size(*n)),
        Leaf::Int(n) => n.to_string(),
        Leaf::Float(n) => toml::Value::from(*n).to_string(),
        Leaf::Duration(d) => quoted(&humantime::format_duration(*d).to_string()),
        Leaf::Rate(None) => quoted("off"),
        Leaf::Rate(Some(rate::Settings { per_second, burst })) if per_second == burst => {
            quoted(&format!("{per_second}/s"))
        }
        Leaf::Rate(Some(rate::Settings { per_second, burst })) => {
            format!("{{ per_second = {per_second}, burst = {burst} }}")
        }
        Leaf::StartFrom(StartFrom::Earliest) => quoted("earliest"),
        Leaf::StartFrom(StartFrom::Latest) => quoted("latest"),
        Leaf::StartFrom(StartFrom::At(us)) => quoted(
            &jiff::Timestamp::from_microsecond(*us)
                .map_or_else(|_| us.to_string(), |t| t.to_string()),
        ),
        Leaf::Text(text) => quoted(text),
        Leaf::Address(address) => quoted(&address.to_string()),
        Leaf::Nodes(Nodes::Embedded) => quoted("embedded"),
        Leaf::Nodes(Nodes::At(list)) | Leaf::List(list) => {
            toml::Value::from(list.clone()).to_string()
        }
        Leaf::Map(map) if map.is_empty() => "{}".to_owned(),
        Leaf::Map(map) => {
            let entries = map
                .iter()
                .map(|(k, v)| format!("{} = {}", quoted_key(k), quoted(v)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
    }
}

fn quoted_key(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !key.is_empty() && key.chars().all(bare) {
        key.to_owned()
    } else {
        toml::Value::from(key).to_string()
    }
}
