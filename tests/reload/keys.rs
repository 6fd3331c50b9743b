//! Every key of `src/config/sections`, changed and changed back while the pipeline runs.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use penstock::config::ReloadClass;
use penstock::config::keys::{self, Fallback, Key};
use scylla_double::{Action, Fault};
use serde_json::Value;
use uuid::Uuid;

use super::{Rig, World, set, value};
use testkit::machine::free_port;

/// What is looked for once a key has changed.
#[derive(Clone, Copy, Debug)]
enum See {
    /// The stage says so itself in `/status`: a JSON pointer into the stage, and the value there.
    Stage(&'static str, &'static str),
    /// What `effect` below looks for.
    Effect,
    /// It is refused by name, and nothing else changes.
    Refused,
    /// The pipeline is rebuilt, and goes on; there is no more to see of it.
    Rebuilt,
    /// It is in force; why no more can be seen of it here.
    InForce(&'static str),
    /// The other side does not take it: it is not applied, with these words, and nothing changes.
    Fails(&'static str),
    /// No file can change it in a running process: why, and what validation says to an attempt.
    Never(&'static str, &'static str),
}
use See::{Effect, Fails, InForce, Never, Rebuilt, Refused, Stage};

/// Key, the value that it changes to (`{…}` is filled in), what is looked for.
#[rustfmt::skip]
const ROWS: &[(&str, &str, See)] = &[
    // The order service first, while its breaker is closed.
    ("orders.outbox_ttl", r#""2h""#, Effect),
    ("orders.idempotency_ttl", r#""2h""#, InForce("tests/orders.rs waits for the end of a shorter one")),
    ("orders.request_timeout", r#""300ms""#, Effect),
    ("orders.listen", r#""127.0.0.1:{free}""#, Effect),
    ("orders.keyspace", r#""shop2""#, Effect),
    ("orders.enabled", "false", Effect),

    ("pipeline.name", r#""other""#, Refused),
    ("pipeline.delivery", r#""exactly-once""#, Rebuilt),

    ("pipeline.shards", "3", Effect),
    ("pipeline.instances", r#""shared""#, Refused),
    ("pipeline.session_timeout", r#""12s""#, Rebuilt),
    ("pipeline.group_instance_id", r#""penstock-0""#, Rebuilt),
    ("pipeline.max_in_flight", "9999", InForce("the broker answers faster than it can be reached")),
    ("pipeline.batch_size", "1", Effect),
    ("source.type", r#""other""#, Never("it has one value", "unknown-choice")),
    ("source.nodes", r#"["localhost:{scylla_port}"]"#, Rebuilt),
    ("source.keyspace", r#""ks2""#, Effect),
    ("source.tables", r#"["outbox", "plain", "third"]"#, Effect),
    ("source.start_from", r#""2026-01-31T08:00:00Z""#, InForce("every group has a checkpoint")),
    ("source.poll_interval", r#""1s""#, Effect),
    ("source.idle_reads", "251", InForce("tests/source/idle.rs counts the reads of many groups")),
    ("source.window", r#""9s""#, InForce("nothing lags far enough for it to matter")),
    ("source.safety_interval", r#""800ms""#, Effect),
    ("source.late_horizon", r#""off""#, InForce("tests/source/late.rs reads with it and without")),
    ("source.read_timeout", r#""300ms""#, Effect),
    ("source.page_size", "1", Effect),
    ("source.concurrency", "3", InForce("the shards have fewer groups than that to read")),
    ("source.consistency", r#""one""#, InForce("the stand-in answers alike")),
    ("source.datacenter", r#""datacenter1""#, Rebuilt),
    ("source.rack", r#""rack1""#, Never("it is of no data centre", "half")),
    ("source.username", r#""penstock""#, Rebuilt),
    ("source.password", r#""hunter2""#, Never("a process's environment does not change", "open-secret")),
    ("source.password_file", r#""{dir}/secret2""#, InForce("tests/secure.rs rotates one under load")),
    ("source.tls.enabled", "true", Fails("is it a port without TLS?")),
    ("source.tls.ca_file", r#""{dir}/secret""#, Never("TLS is not enabled", "half")),
    ("source.tls.certificate_file", r#""{dir}/secret""#, Never("TLS is not enabled", "half")),
    ("source.tls.key_file", r#""{dir}/secret""#, Never("TLS is not enabled", "half")),
    ("source.tls.key_password", r#""hunter2""#, Never("a process's environment does not change", "open-secret")),
    ("source.tls.key_password_file", r#""{dir}/secret""#, Never("TLS is not enabled", "half")),
    ("source.tls.verify_hostname", "false", InForce("tests/secure.rs connects with it and without")),
    ("transform.*.name", r#""router""#, Effect),
    ("transform.*.plugin", r#""{dir}/other.wasm""#, Effect),
    ("transform.*.tables", r#"["outbox"]"#, InForce("tests/plugins.rs looks at what a transform of some tables sees")),
    ("transform.*.when", r#""op != 'row-delete'""#, InForce("tests/plugins.rs looks at what a transform with a condition sees")),
    ("transform.*.on_error", r#""drop""#, Effect),
    ("transform.*.limits.memory", r#""128MiB""#, InForce("tests/plugins.rs runs plugins into it")),
    ("transform.*.limits.deadline", r#""9s""#, InForce("tests/plugins.rs runs plugins into it")),
    ("transform.*.settings", r#"{ topic_prefix = "{name}.b.", tables = "outbox" }"#, Effect),
    ("sink.type", r#""other""#, Never("it has one value", "unknown-choice")),
    ("sink.brokers", r#"["localhost:{broker_port}"]"#, Rebuilt),
    ("sink.new_cluster", r#""carry""#, InForce("tests/topics.rs takes a pipeline to other brokers")),
    ("sink.properties", r#"{ "linger.ms" = 7 }"#, Rebuilt),
    ("sink.sasl", r#""PLAIN""#, Never("nobody is named", "half")),
    ("sink.username", r#""penstock""#, Never("it does not log in", "half")),
    ("sink.password", r#""hunter2""#, Never("a process's environment does not change", "open-secret")),
    ("sink.password_file", r#""{dir}/secret2""#, Never("it does not log in", "half")),
    ("sink.token", r#""hunter2""#, Never("a process's environment does not change", "open-secret")),
    ("sink.token_file", r#""{dir}/secret2""#, Never("it does not log in", "half")),
    ("sink.tls.enabled", "true", Fails("is it a port without TLS?")),
    ("sink.tls.ca_file", r#""{dir}/secret""#, Never("TLS is not enabled", "half")),
    ("sink.tls.certificate_file", r#""{dir}/secret""#, Never("TLS is not enabled", "half")),
    ("sink.tls.key_file", r#""{dir}/secret""#, Never("TLS is not enabled", "half")),
    ("sink.tls.key_password", r#""hunter2""#, Never("a process's environment does not change", "open-secret")),
    ("sink.tls.key_password_file", r#""{dir}/secret""#, Never("TLS is not enabled", "half")),
    ("sink.tls.verify_hostname", "false", InForce("tests/secure.rs connects with it and without")),
    ("sink.attempt_timeout", r#""9s""#, InForce("the broker is never silent that long")),
    ("sink.topic", r#""{name}.alt.{table}""#, Effect),
    ("sink.key", r#""primary-key""#, InForce("tests/sink.rs tells the two apart")),
    ("sink.tombstones", "true", Effect),
    ("sink.timestamp", r#""send""#, InForce("tests/sink.rs tells the two apart")),
    ("sink.headers", r#"["operation"]"#, Effect),
    ("sink.topics.create", "false", InForce("a topic that is missing would fail the sink, which is no retune")),
    ("sink.topics.partitions", "3", Effect),
    ("sink.topics.replication_factor", "1", Effect),
    ("sink.topics.properties", r#"{ "retention.ms" = 86400000 }"#, Effect),
    ("sink.checkpoint_interval", r#""50ms""#, Effect),
    ("sink.commit_interval", r#""50ms""#, InForce("the quiet between the rows commits at once")),
    ("dead_letter.topic", r#""{name}.other-letters""#, Effect),
    ("dead_letter.max", "999", InForce("a flood fails the stage, which is no retune")),
    ("dead_letter.within", r#""59s""#, InForce("a flood fails the stage, which is no retune")),
    ("admin.enabled", "false", Effect),
    ("admin.listen", r#""127.0.0.1:{free}""#, Effect),
    ("admin.advertise", r#""penstock-0:9180""#, InForce("no shard is taken; tests/sharing.rs asks there")),
    ("admin.token", r#""hunter2""#, Never("a process's environment does not change", "open-secret")),
    ("admin.token_file", r#""{dir}/secret""#, Effect),
    ("admin.metrics_token", r#""hunter2""#, Never("a process's environment does not change", "open-secret")),
    ("admin.metrics_token_file", r#""{dir}/secret""#, Effect),
    ("health.check_interval", r#""20ms""#, Effect),
    ("health.report_interval", r#""50ms""#, Effect),
    ("health.stalled_after", r#""29s""#, InForce("nothing stalls")),
    ("health.useless_after", r#""14min""#, InForce("it is of use all the while; tests/admin.rs looks at it")),
    ("health.critical", r#"["sink"]"#, Effect),
    ("health.headroom_degraded", "1.0", Effect),
    ("health.headroom_unhealthy", "0.99999999", Effect),
    ("health.open_breaker", r#""unhealthy""#, Effect),
    ("shutdown.timeout", r#""29s""#, InForce("nothing shuts down; tests/end_to_end.rs does")),
    ("log.filter", r#""warn""#, Effect),
    ("log.format", r#""json""#, Refused),
    ("tracing.endpoint", r#""http://127.0.0.1:{free}""#, InForce("tests/traces.rs has collectors")),
    ("tracing.protocol", r#""grpc""#, InForce("tests/traces.rs has collectors")),
    ("tracing.sampling", "0.5", InForce("tests/traces.rs has collectors")),
    ("tracing.column", r#""trace_context""#, InForce("tests/traces.rs has collectors")),
    ("tracing.token", r#""hunter2""#, Never("a process's environment does not change", "open-secret")),
    ("tracing.token_file", r#""{dir}/secret""#, InForce("tests/traces.rs has collectors")),
    ("tracing.secret_headers", r#""hunter2""#, Never("a process's environment does not change", "open-secret")),
    ("tracing.secret_headers_file", r#""{dir}/secret""#, Never("it holds no header", "malformed")),
    ("reload.watch", "false", Effect),
    ("reload.poll_interval", r#""29s""#, InForce("events come; tests/config_watch.rs does without")),
    ("reload.debounce", r#""400ms""#, Effect),
    ("embedded.scylla_listen", r#""127.0.0.1:1""#, Refused),
    ("embedded.redpanda_listen", r#""127.0.0.1:1""#, Refused),
    ("embedded.vnodes", "5", Refused),
    ("embedded.shards_per_vnode", "3", Refused),
];

/// The policy keys: of `[policies]`, and of each stage.
#[rustfmt::skip]
const POLICIES: &[(&str, &str, See)] = &[
    ("breaker.failure_threshold", "9", Stage("/failure_threshold", "9")),
    ("breaker.open_for", r#""45s""#, Stage("/open_for_seconds", "45.0")),
    ("breaker.success_threshold", "4", Stage("/success_threshold", "4")),
    ("retry.initial", r#""150ms""#, Stage("/retry/initial_seconds", "0.15")),
    ("retry.max", r#""20s""#, Stage("/retry/max_seconds", "20.0")),
    ("retry.multiplier", "3.0", Stage("/retry/multiplier", "3.0")),
    ("retry.max_attempts", "7", Stage("/retry/max_attempts", "7")),
    ("rate_limit", "{ per_second = 100, burst = 50 }", Stage("/rate_limit/per_second", "100")),
    ("supervision.strategy", r#""one_for_all""#, Stage("/supervision/strategy", r#""one_for_all""#)),
    ("supervision.max_restarts", "7", Stage("/supervision/max_restarts", "7")),
    ("supervision.within", r#""50s""#, Stage("/supervision/within_seconds", "50.0")),
    ("supervision.backoff", r#""200ms""#, Stage("/supervision/backoff_seconds", "0.2")),
    ("supervision.on_failed", r#""shutdown""#, Stage("/supervision/on_failed", r#""shutdown""#)),
];

/// In force before and after a row, so that its effect shows.
const CONTEXT: &[(&str, &str, &str)] = &[
    (
        "health.check_interval",
        "health.report_interval",
        r#""10ms""#,
    ),
    (
        "health.headroom_unhealthy",
        "health.headroom_degraded",
        "1.0",
    ),
];

const TRANSFORM: &str = "outbox-router";
/// Rows that are written at once to see what a page or a batch takes.
const BURST: usize = 60;
/// Tried last: by then its breaker has been open through all the others.
const LAST: &str = "orders.breaker.open_for";

fn written(key: &str) -> Option<(&'static str, See)> {
    if let Some((_, new, see)) = ROWS.iter().find(|(k, ..)| *k == key) {
        return Some((new, *see));
    }
    let stages = keys::STAGES.iter().chain([&"policies"]);
    let policy = stages
        .filter_map(|stage| key.strip_prefix(stage)?.strip_prefix('.'))
        .next()?;
    let found = POLICIES.iter().find(|(k, ..)| *k == policy);
    found.map(|(_, new, see)| (*new, *see))
}

/// A live key needs no row: its example, where that is another than the default, is put in force.
fn row(key: &str) -> Option<(&'static str, See)> {
    let of_example = || {
        let key = keys::get(key).filter(|k| k.class == ReloadClass::Live)?;
        let other = key.fallback != Fallback::Value(key.example);
        other.then_some((key.example, InForce("nothing more is looked for")))
    };
    written(key).or_else(of_example)
}

#[test]
fn every_key_has_its_row_and_every_row_its_key() {
    let missing: Vec<&str> = keys::all()
        .iter()
        .map(|k| k.path.as_str())
        .filter(|k| row(k).is_none())
        .collect();
    assert!(missing.is_empty(), "no row: {missing:?}");
    for (key, ..) in ROWS {
        assert!(keys::get(key).is_some(), "{key} is no key");
    }
    for (policy, ..) in POLICIES {
        assert!(
            keys::get(&format!("policies.{policy}")).is_some(),
            "{policy}"
        );
    }
}

/// What must not fall, and must not be lost, when a live value changes.
#[derive(Debug)]
struct Counts {
    read: Vec<f64>,
    restarts: f64,
    opened: Vec<(String, f64, f64)>,
    orders_breaker: (String, f64),
    pipelines: usize,
    swaps: usize,
    rewinds: f64,
}

struct Table {
    rig: Rig,
    base: toml::Table,
    report: Vec<[String; 5]>,
    free: u16,
}

impl Table {
    fn fill(&self, text: &str) -> String {
        let port = |address: &str| address.rsplit(':').next().unwrap_or_default().to_owned();
        let world = &self.rig.world;
        text.replace("{free}", &self.free.to_string())
            .replace("{scylla_port}", &world.node.addr().port().to_string())
            .replace("{broker_port}", &port(&world.cluster.brokers))
            .replace("{dir}", &world.dir.path().display().to_string())
            .replace("{name}", &world.name)
    }

    async fn counts(&self) -> Counts {
        let status = self.rig.get("/status").await;
        let list = |key: &str| status[key].as_array().cloned().unwrap_or_default();
        let number = |v: &Value| v.as_f64().unwrap_or_default();
        let stages = list("stages");
        let orders = stages.iter().find(|s| s["stage"] == "orders");
        Counts {
            read: list("shards").iter().map(|s| number(&s["read"])).collect(),
            restarts: list("children")
                .iter()
                .map(|c| number(&c["restarts"]))
                .sum(),
            opened: stages
                .iter()
                .map(|s| {
                    let stage = s["stage"].as_str().unwrap_or_default().to_owned();
                    (stage, number(&s["opened"]), number(&s["retries"]))
                })
                .collect(),
            orders_breaker: orders.map_or((String::new(), 0.0), |o| {
                (o["breaker"].to_string(), number(&o["failures"]))
            }),
            pipelines: self.rig.running.count("shards opened"),
            swaps: self.rig.running.count("transform swapped"),
            rewinds: list("shards").iter().map(|s| number(&s["rewinds"])).sum(),
        }
    }

    /// Applies a file and checks what its class promises. `None`: whoever asks cannot be answered any more.
    async fn apply(&mut self, text: &str, key: &Key, concrete: &str) -> Value {
        let before = self.counts().await;
        let revision = self.rig.save(text).await;
        let outcome = revision["outcome"].as_str().unwrap_or_default().to_owned();
        let wanted = match key.class {
            ReloadClass::Refused => "failed",
            _ => "applied",
        };
        assert_eq!(outcome, wanted, "{concrete}: {revision}");
        let changed = revision["changed"].as_array().cloned().unwrap_or_default();
        let own = changed.iter().find(|c| c["key"] == concrete);
        let renamed = key.path == "transform.*.name";
        if let Some(own) = own {
            assert_eq!(own["class"], key.class.to_string(), "{concrete}");
        } else {
            assert!(renamed, "{concrete} is not among {changed:?}");
        }
        let after = self.counts().await;
        assert_eq!(
            before.rewinds.min(after.rewinds),
            after.rewinds,
            "{concrete}: rewound"
        );
        for (stage, opened, retries) in &before.opened {
            // A stage that is gone (a renamed transform) has no counts.
            if let Some((_, o, r)) = after.opened.iter().find(|(s, ..)| s == stage) {
                assert!(
                    o >= opened && r >= retries,
                    "{concrete}: counts of {stage} fell"
                );
            }
        }
        if key.path != "orders.breaker.open_for" && !key.path.starts_with("orders.")
            || key.path.matches('.').count() > 1
        {
            assert_eq!(before.orders_breaker, after.orders_breaker, "{concrete}");
        }
        match key.class {
            ReloadClass::Rebuild
                if key.path.starts_with("orders.") || key.path.starts_with("admin.") =>
            {
                assert_eq!(before.pipelines, after.pipelines, "{concrete}: rebuilt");
            }
            ReloadClass::Rebuild => {
                assert_eq!(
                    before.pipelines + 1,
                    after.pipelines,
                    "{concrete}: not rebuilt"
                );
                let kept = before.read.iter().zip(&after.read).all(|(b, a)| b <= a);
                assert!(kept, "{concrete}: lane counters fell: {before:?} {after:?}");
            }
            ReloadClass::Live | ReloadClass::Swap | ReloadClass::Refused => {
                assert_eq!(before.pipelines, after.pipelines, "{concrete}: rebuilt");
                assert_eq!(before.restarts, after.restarts, "{concrete}: restarted");
                let kept = before.read.iter().zip(&after.read).all(|(b, a)| b <= a);
                assert!(kept, "{concrete}: lane counters fell: {before:?} {after:?}");
                let swaps = match key.class {
                    ReloadClass::Swap => before.swaps + 2,
                    _ => before.swaps,
                };
                self.rig
                    .until("each shard's next batch", async || {
                        (self.rig.running.count("transform swapped") >= swaps).then_some(())
                    })
                    .await;
                let swapped = self.rig.running.count("transform swapped");
                assert_eq!(swapped, swaps, "{concrete}: swapped");
            }
        }
        revision
    }

    async fn try_row(&mut self, key: &'static Key) {
        let (new, see) = row(&key.path).expect("checked before");
        let (new, new_name) = (self.fill(new), key.path == "transform.*.name");
        let concrete = key.path.replace('*', TRANSFORM);
        let mut base = self.base.clone();
        let context = CONTEXT.iter().find(|(k, ..)| *k == key.path);
        if let Some((_, with, context)) = context {
            set(&mut base, with, value(context));
            self.rig.save(&base.to_string()).await;
        }
        let mut table = base.clone();
        set(&mut table, &concrete, value(&new));
        let (mut old_text, mut took, mut seen) = ("-".to_owned(), "-".to_owned(), String::new());
        if let Never(why, code) = see {
            let revision = self.rig.save(&table.to_string()).await;
            assert_eq!(revision["outcome"], "rejected", "{concrete}: {revision}");
            let problem = self.problems(&table.to_string());
            assert!(problem.contains(code), "{concrete}: {problem}");
            let complaint = self.rig.get("/config").await["complaint"].to_string();
            assert!(!complaint.contains("hunter2"), "{complaint}");
            seen = format!("rejected ({code}): {why}");
        } else if let Fails(words) = see {
            let before = self.counts().await;
            let revision = self.rig.save(&table.to_string()).await;
            assert_eq!(revision["outcome"], "failed", "{concrete}: {revision}");
            let error = revision["error"].as_str().unwrap_or_default();
            assert!(error.contains(words), "{concrete}: {error}");
            let after = self.counts().await;
            assert_eq!(before.pipelines, after.pipelines, "{concrete}: rebuilt");
            seen = format!("not applied: {words}");
        } else {
            let prior = self.before(&key.path).await;
            let revision = self.apply(&table.to_string(), key, &concrete).await;
            took = format!("{:.1} ms", revision["took_ms"].as_f64().unwrap_or_default());
            let own = revision["changed"]
                .as_array()
                .and_then(|c| c.iter().find(|c| c["key"] == concrete).cloned());
            if let Some(own) = own {
                old_text = own["old"].as_str().unwrap_or("-").to_owned();
            }
            seen.push_str(&match see {
                Refused => {
                    let error = revision["error"].as_str().unwrap_or_default();
                    let named = format!("{concrete} cannot change while running");
                    assert!(error.contains(&named), "{error}");
                    assert_eq!(self.in_force(&concrete).await, old_text);
                    "refused by name, nothing changed".to_owned()
                }
                Stage(pointer, wanted) => self.stages(&key.path, pointer, wanted).await,
                Effect => self.effect(&key.path, &prior).await,
                Rebuilt => "drained, rebuilt, goes on from the checkpoint".to_owned(),
                InForce(why) => {
                    assert_ne!(self.in_force(&concrete).await, old_text);
                    format!("in force ({why})")
                }
                Never(..) | Fails(_) => unreachable!("is above"),
            });
        }
        self.restore(key, &concrete, see, new_name).await;
        self.report.push([
            concrete,
            key.class.to_string(),
            format!("{old_text} → {new}"),
            took,
            seen,
        ]);
    }

    /// Back to the base, by the same way.
    async fn restore(&mut self, key: &Key, concrete: &str, see: See, renamed: bool) {
        let text = self.base.to_string();
        match (key.path.as_str(), see) {
            (_, Never(..) | Fails(_) | Refused) => {
                // What is in the file is what is in force: the complaint is over.
                self.rig.world.save(&text);
                self.rig.no_complaint().await;
            }
            ("reload.watch", _) => {
                let before = self.rig.newest().await;
                self.rig.world.save(&text);
                let (code, _) = self.rig.ask(reqwest::Method::POST, "/-/reload").await;
                assert_eq!(code, 200);
                self.rig.next(&before).await;
            }
            ("admin.enabled", _) => {
                let listens = self.rig.running.count("admin interface listens");
                self.rig.world.save(&text);
                self.rig
                    .until("the admin interface again", async || {
                        (self.rig.running.count("admin interface listens") > listens).then_some(())
                    })
                    .await;
            }
            ("admin.listen", _) => {
                let applied = self.rig.running.count("configuration applied");
                self.rig.world.save(&text);
                self.rig
                    .until("the old address", async || {
                        (self.rig.running.count("configuration applied") > applied).then_some(())
                    })
                    .await;
            }
            ("admin.token_file" | "admin.metrics_token_file", _) => {
                self.rig.save(&text).await;
                self.rig.token = None;
            }
            _ if renamed || CONTEXT.iter().any(|(k, ..)| *k == key.path) => {
                self.rig.save(&text).await;
            }
            _ => {
                self.apply(&text, key, concrete).await;
            }
        }
    }

    fn problems(&self, text: &str) -> String {
        let path = self.rig.world.dir.path().join("tried.toml");
        std::fs::write(&path, text).expect("written");
        let output = Command::new(env!("CARGO_BIN_EXE_penstock"))
            .args(["validate", "--json", "--config"])
            .arg(path)
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(64));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    async fn in_force(&self, key: &str) -> String {
        let config = self.rig.get("/config").await;
        let settings = config["settings"].as_array().cloned().unwrap_or_default();
        let own = settings.iter().find(|s| s["key"] == key);
        own.and_then(|s| s["value"].as_str())
            .unwrap_or("-")
            .to_owned()
    }

    /// The stages that take the value say that they have it.
    async fn stages(&self, key: &str, pointer: &str, wanted: &str) -> String {
        let wanted: Value = serde_json::from_str(wanted).expect("JSON");
        let status = self.rig.get("/status").await;
        let own = key.replace('*', TRANSFORM);
        let mut said = 0;
        for stage in status["stages"].as_array().into_iter().flatten() {
            let name = stage["stage"].as_str().unwrap_or_default();
            let overrides = name == "orders" && key == "policies.breaker.open_for";
            let concerned = key.starts_with("policies.") || own.starts_with(&format!("{name}."));
            if concerned && !overrides {
                assert_eq!(stage.pointer(pointer), Some(&wanted), "{key} at {name}");
                said += 1;
            }
        }
        assert!(said > 0, "{key}: no stage");
        let busy = [
            "source.rate_limit",
            "transform.*.rate_limit",
            "sink.rate_limit",
        ];
        if busy.contains(&key) {
            let label = format!("stage=\"{}\"", own.trim_end_matches(".rate_limit"));
            let before = self.rig.metric("penstock_throttled_total", &label).await;
            self.rig
                .until("it is throttled", async || {
                    let now = self.rig.metric("penstock_throttled_total", &label).await;
                    (now > before).then_some(())
                })
                .await;
            return "the stage is throttled".into();
        }
        format!("{said} stage(s) have it, breakers and counts as before")
    }

    async fn order(&self, port: u16) -> Result<(u16, Value), reqwest::Error> {
        let body = r#"{"customer_id":"c","currency":"EUR","items":[{"sku":"bolt","quantity":1,"unit_price_minor":5}]}"#;
        let url = format!("http://127.0.0.1:{port}/orders");
        let answer = self.rig.http.post(url).body(body).send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    }

    fn orders_port(&self) -> u16 {
        let listen = self.base["orders"]["listen"].as_str().unwrap_or_default();
        listen
            .rsplit(':')
            .next()
            .unwrap_or_default()
            .parse()
            .expect("a port")
    }

    async fn ttl(&self, keyspace: &str, order: &Value) -> i32 {
        let id: Uuid = order["id"]
            .as_str()
            .expect("an id")
            .parse()
            .expect("a UUID");
        let cql =
            format!("SELECT TTL(payload) FROM {keyspace}.outbox_messages WHERE aggregate_id = ?");
        let rows = self
            .rig
            .world
            .session
            .query_unpaged(cql, (id,))
            .await
            .expect("rows");
        let rows = rows.into_rows_result().expect("rows");
        rows.single_row::<(Option<i32>,)>()
            .expect("one")
            .0
            .unwrap_or_default()
    }

    async fn plain(&self, table: &str) -> String {
        let id = Uuid::new_v4();
        let cql = format!("INSERT INTO {table} (id, v) VALUES (?, 1)");
        self.rig
            .world
            .session
            .query_unpaged(cql, (id,))
            .await
            .expect("written");
        id.to_string()
    }

    /// Waits until a topic has a record that contains this.
    async fn arrives(&self, topic: &str, text: &str) {
        self.rig
            .until(&format!("{text} in {topic}"), async || {
                let records = testkit::broker::read_all(&self.rig.world.cluster.brokers, topic);
                records
                    .iter()
                    .any(|r| {
                        [&r.key, &r.value]
                            .into_iter()
                            .flatten()
                            .any(|b| String::from_utf8_lossy(b).contains(text))
                    })
                    .then_some(())
            })
            .await;
    }

    async fn poison(&self) {
        self.rig
            .world
            .write_one(Uuid::new_v4(), "no such topic!", "poison")
            .await;
    }

    /// How the world looks before the change, for those that compare.
    async fn before(&self, key: &str) -> f64 {
        let moment = Duration::from_millis(500);
        match key {
            "orders.outbox_ttl" => {
                let (code, order) = self.order(self.orders_port()).await.expect("an answer");
                assert_eq!(code, 201, "{order}");
                f64::from(self.ttl("shop", &order).await)
            }
            "pipeline.batch_size" => {
                let what = "a batch of several records";
                self.rig
                    .until(what, async || {
                        Some(self.records_a_batch().await).filter(|mean| *mean > 2.0)
                    })
                    .await
            }
            "source.poll_interval" => self.rig.rate("penstock_source_windows_total", moment).await,
            "source.page_size" => self.further_pages().await,
            "sink.checkpoint_interval" => {
                self.rig
                    .rate("penstock_checkpoints_total", moment * 3)
                    .await
            }
            "health.check_interval" => self.looks(moment).await,
            _ => 0.0,
        }
    }

    /// Looks at health in this time.
    async fn looks(&self, within: Duration) -> f64 {
        let before = self.rig.running.count("health report");
        tokio::time::sleep(within).await;
        (self.rig.running.count("health report") - before) as f64
    }

    /// Pages beyond the first of a window, while a write of many rows is read. A sum, not a mean: how many windows
    /// there are meanwhile, most of them empty, is the machine's business.
    async fn further_pages(&self) -> f64 {
        let at = || {
            let names = [
                "penstock_source_pages_total",
                "penstock_source_windows_total",
            ];
            self.rig.metrics(names)
        };
        let [pages, windows] = at().await;
        self.rig.world.write(&[Uuid::new_v4(); BURST], 0, 1).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        let now = at().await;
        (now[0] - pages) - (now[1] - windows)
    }

    /// … while many writes come at once.
    async fn records_a_batch(&self) -> f64 {
        let at = || {
            let names = [
                "penstock_sink_records_total",
                "penstock_sink_ack_latency_seconds_count",
            ];
            self.rig.metrics(names)
        };
        let [records, batches] = at().await;
        let burst = BURST as u32;
        self.rig.world.write(&[Uuid::new_v4()], 0, burst).await;
        let what = "the burst to be acknowledged";
        self.rig
            .until(what, async || {
                let now = at().await;
                let records = now[0] - records;
                (records >= f64::from(burst)).then(|| records / (now[1] - batches).max(1.0))
            })
            .await
    }

    async fn health_of(&self, component: &str) -> Value {
        let report = self.rig.get("/health").await;
        let list = report["components"].as_array().cloned().unwrap_or_default();
        list.into_iter()
            .find(|c| c["name"] == component)
            .unwrap_or_default()
    }

    async fn becomes(&self, component: &str, status: &str) -> String {
        self.rig
            .until(&format!("{component} {status}"), async || {
                (self.health_of(component).await["status"] == status).then_some(())
            })
            .await;
        format!("/health: {component} {status}")
    }

    /// Looks for what the change of a key does, and panics if it does not come.
    async fn effect(&mut self, key: &str, prior: &f64) -> String {
        let rig = &self.rig;
        let (node, name) = (&rig.world.node, rig.world.name.clone());
        let port = self.orders_port();
        match key {
            "orders.outbox_ttl" => {
                let (code, order) = self.order(port).await.expect("an answer");
                assert_eq!(code, 201, "{order}");
                let ttl = self.ttl("shop", &order).await;
                assert!(
                    *prior > 80_000.0 && (7_000..=7_200).contains(&ttl),
                    "{prior} {ttl}"
                );
                format!("an outbox row is kept {ttl} s, before {prior} s")
            }
            "orders.request_timeout" => {
                let slow = Fault::new(Action::Delay(Duration::from_secs(2)))
                    .on_table("shop.orders")
                    .times(1);
                let fault = node.faults().inject(slow);
                let (code, problem) = self.order(port).await.expect("an answer");
                node.faults().clear(fault);
                assert_eq!(code, 504, "{problem}");
                "a request that takes 2 s is answered 504".into()
            }
            "orders.listen" => {
                let (code, _) = self.order(self.free).await.expect("an answer");
                assert_eq!(code, 201);
                // A connection that is kept is answered once more; nobody new is.
                let old = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
                assert!(old.is_err(), "the old address is closed");
                "orders are taken at the new address, no more at the old".into()
            }
            "orders.keyspace" => {
                let (code, order) = self.order(port).await.expect("an answer");
                assert_eq!(code, 201, "{order}");
                assert!(self.ttl("shop2", &order).await > 0);
                "an order goes to the new keyspace".into()
            }
            "orders.enabled" => {
                rig.until("no more orders", async || {
                    self.order(port).await.is_err().then_some(())
                })
                .await;
                "nobody listens any more".into()
            }
            "pipeline.shards" => {
                let status = rig.get("/status").await;
                assert_eq!(status["shards"].as_array().map(Vec::len), Some(3));
                "3 lanes, checkpoints moved".into()
            }
            "pipeline.batch_size" => {
                // Records are counted one by one, a batch when the last of them is; and what was on its way in larger
                // batches is counted first.
                let mut now = f64::INFINITY;
                for _ in 0..5 {
                    now = now.min(self.records_a_batch().await);
                }
                assert!(now < 1.2, "{prior} {now}");
                format!("{now:.1} records a batch, before {prior:.1}")
            }
            "source.keyspace" => {
                let id = self.plain("ks2.plain").await;
                self.arrives(&format!("{name}.ks2.plain"), &id).await;
                "a row of the other keyspace arrives".into()
            }
            "source.tables" => {
                let id = self.plain("ks.third").await;
                self.arrives(&format!("{name}.ks.third"), &id).await;
                "a row of the new table arrives".into()
            }
            "source.poll_interval" => {
                let within = Duration::from_secs(2);
                let now = rig
                    .until("fewer windows than before", async || {
                        let now = rig.rate("penstock_source_windows_total", within).await;
                        (now < prior / 2.0).then_some(now)
                    })
                    .await;
                format!("{now:.0} windows a second, before {prior:.0}")
            }
            "source.safety_interval" => {
                rig.until("a lag of 0.7 s", async || {
                    let status = rig.get("/status").await;
                    let lag = status["shards"][0]["lag_seconds"].as_f64()?;
                    (lag > 0.7).then_some(())
                })
                .await;
                "reads end 0.8 s before now".into()
            }
            "source.read_timeout" => {
                let before = rig.metric("penstock_source_failed_reads_total", "").await;
                let slow = Fault::new(Action::Delay(Duration::from_secs(1)))
                    .on_table("ks.outbox_scylla_cdc_log")
                    .times(1);
                let fault = node.faults().inject(slow);
                rig.until("a failed read", async || {
                    let now = rig.metric("penstock_source_failed_reads_total", "").await;
                    (now > before).then_some(())
                })
                .await;
                node.faults().clear(fault);
                "a read that takes 1 s fails, and is tried again".into()
            }
            "source.page_size" => {
                let half = BURST as f64 / 2.0;
                let now = rig
                    .until("more pages for a write", async || {
                        let now = self.further_pages().await;
                        (now > prior + half).then_some(now)
                    })
                    .await;
                format!("a write of {BURST} rows takes {now:.0} pages more, before {prior:.0}")
            }
            "transform.*.name" => {
                let status = rig.get("/status").await;
                assert!(status["stages"].to_string().contains("transform.router"));
                "the stage is called transform.router".into()
            }
            "transform.*.plugin" => {
                rig.until("a swap", async || {
                    (rig.running.count("transform swapped") >= 2).then_some(())
                })
                .await;
                "both shards took it over at a batch boundary".into()
            }
            "transform.*.settings" => {
                let topic = format!("{name}.b.order");
                let known = rig
                    .writer
                    .written
                    .load(std::sync::atomic::Ordering::Relaxed)
                    + 5;
                self.arrives(&topic, &known.to_string()).await;
                "records go to the topic of the new prefix".into()
            }
            "transform.*.on_error" => {
                let before = rig.metric("penstock_dead_letters_total", "").await;
                self.poison().await;
                let done = rig.metric("penstock_changes_done_total", "").await;
                rig.until("more changes done", async || {
                    (rig.metric("penstock_changes_done_total", "").await > done + 200.0)
                        .then_some(())
                })
                .await;
                assert_eq!(before, rig.metric("penstock_dead_letters_total", "").await);
                "a rejected change is dropped".into()
            }
            "sink.topic" => {
                let id = self.plain("ks.plain").await;
                self.arrives(&format!("{name}.alt.plain"), &id).await;
                "a change that nobody routed goes to the new topic".into()
            }
            "sink.tombstones" | "sink.headers" => {
                let id = self.plain("ks.plain").await;
                let delete = format!("DELETE FROM ks.plain WHERE id = {id}");
                let session = &rig.world.session;
                session.query_unpaged(delete, ()).await.expect("deleted");
                let topic = format!("{name}.ks.plain");
                let own = |r: &testkit::broker::Seen| r.key_text().contains(&id);
                let deleted = rig
                    .until("the delete", async || {
                        let all = testkit::broker::read_all(&rig.world.cluster.brokers, &topic);
                        all.into_iter().filter(own).nth(1)
                    })
                    .await;
                if key == "sink.tombstones" {
                    assert_eq!(deleted.value, None);
                    "a delete is a record without a value".into()
                } else {
                    let names = deleted.headers.iter().map(|(name, _)| name.as_str());
                    assert!(names.eq(["penstock-operation"]), "{deleted:?}");
                    "records carry what was chosen".into()
                }
            }
            "sink.topics.partitions"
            | "sink.topics.replication_factor"
            | "sink.topics.properties" => {
                let kind = key.rsplit('.').next().unwrap_or_default().replace('_', "-");
                rig.world.write_one(Uuid::new_v4(), &kind, "new").await;
                let topic = format!("{name}.{kind}");
                self.arrives(&topic, "new").await;
                let line = format!("topic created topic=\"{topic}\" partitions=");
                let text = rig.running.text();
                let at = text.find(&line).map(|at| &text[at + line.len()..]);
                let partitions = at
                    .and_then(|t| t.split_whitespace().next())
                    .unwrap_or_default();
                assert_eq!(
                    partitions == "3",
                    key.ends_with("partitions"),
                    "{partitions}"
                );
                format!("a new topic is made with it ({partitions} partitions)")
            }
            "sink.checkpoint_interval" => {
                let within = Duration::from_millis(1500);
                let now = rig
                    .until("more checkpoints than before", async || {
                        let now = rig.rate("penstock_checkpoints_total", within).await;
                        (now > prior * 2.0).then_some(now)
                    })
                    .await;
                format!("{now:.0} checkpoints a second, before {prior:.0}")
            }
            "dead_letter.topic" => {
                self.poison().await;
                self.arrives(&format!("{name}.other-letters"), "poison")
                    .await;
                "a rejected change goes to the new topic".into()
            }
            "admin.enabled" | "admin.listen" => unreachable!("is seen by `try_admin`"),
            "admin.token_file" | "admin.metrics_token_file" => {
                unreachable!("is seen by `try_admin`")
            }
            "health.check_interval" => {
                let now = rig
                    .until("more looks than before", async || {
                        let now = self.looks(Duration::from_millis(500)).await;
                        (now > prior * 2.0).then_some(now)
                    })
                    .await;
                format!("{now} looks in half a second, before {prior}")
            }
            "health.report_interval" => {
                let before = rig.running.count("health report");
                rig.until("reports", async || {
                    (rig.running.count("health report") > before + 3).then_some(())
                })
                .await;
                "reports come at once, before every 30 s".into()
            }
            "health.critical" => {
                rig.until("source is not critical", async || {
                    (self.health_of("source").await["critical"] == false).then_some(())
                })
                .await;
                "/health: source is not critical".into()
            }
            "health.headroom_degraded" => self.becomes("source", "degraded").await,
            "health.headroom_unhealthy" => self.becomes("source", "unhealthy").await,
            "health.open_breaker" => self.becomes("orders", "unhealthy").await,
            "log.filter" => {
                let mut other = self.base.clone();
                set(&mut other, "log.filter", value(r#""warn""#));
                set(&mut other, "shutdown.timeout", value(r#""28s""#));
                let before = rig.running.count("INFO setting changed");
                rig.save(&other.to_string()).await;
                assert_eq!(before, rig.running.count("INFO setting changed"));
                assert!(before > 0);
                "the next change is not logged at info".into()
            }
            "reload.watch" => {
                let before = rig.newest().await;
                let mut other = self.base.clone();
                set(&mut other, "reload.watch", value("false"));
                set(&mut other, "shutdown.timeout", value(r#""28s""#));
                rig.world.save(&other.to_string());
                tokio::time::sleep(Duration::from_millis(300)).await;
                assert_eq!(before, rig.newest().await, "nobody looks");
                let (code, text) = rig.ask(reqwest::Method::POST, "/-/reload").await;
                assert_eq!(code, 200, "{text}");
                "a save is not seen, POST /-/reload is obeyed".into()
            }
            "reload.debounce" => {
                let mut other = self.base.clone();
                set(&mut other, "reload.debounce", value(r#""400ms""#));
                set(&mut other, "shutdown.timeout", value(r#""28s""#));
                let began = Instant::now();
                rig.save(&other.to_string()).await;
                let took = began.elapsed();
                assert!(took >= Duration::from_millis(400), "{took:?}");
                format!("the next save waits {} ms", took.as_millis())
            }
            other => panic!("no effect is known of {other}"),
        }
    }

    /// The admin interface's own keys: what asks is what changes.
    async fn try_admin(&mut self, key: &'static Key) {
        let (new, _) = row(&key.path).expect("checked before");
        let new = self.fill(new);
        let mut table = self.base.clone();
        set(&mut table, &key.path, value(&new));
        let old = self.rig.running.admin();
        let seen = match key.path.as_str() {
            "admin.token_file" | "admin.metrics_token_file" => {
                let path = match key.path.as_str() {
                    "admin.token_file" => "/status",
                    _ => "/metrics",
                };
                let applied = self.rig.running.count("configuration applied");
                self.rig.world.save(&table.to_string());
                self.rig
                    .until("it is applied", async || {
                        (self.rig.running.count("configuration applied") > applied).then_some(())
                    })
                    .await;
                let (code, _) = self.rig.ask(reqwest::Method::GET, path).await;
                assert_eq!(code, 401);
                self.rig.token = Some("tiger".into());
                let (code, _) = self.rig.ask(reqwest::Method::GET, path).await;
                assert_eq!(code, 200);
                "without the token 401, with it 200"
            }
            _ => {
                self.rig.world.save(&table.to_string());
                self.rig
                    .until("the old address is closed", async || {
                        tokio::net::TcpStream::connect(&old)
                            .await
                            .is_err()
                            .then_some(())
                    })
                    .await;
                if key.path == "admin.listen" {
                    assert_ne!(self.rig.running.admin(), old);
                    self.rig.get("/status").await;
                    "it answers at the new address, no more at the old"
                } else {
                    "nobody listens any more"
                }
            }
        };
        self.restore(key, &key.path, Effect, false).await;
        let change = format!("→ {new}");
        self.report.push([
            key.path.clone(),
            key.class.to_string(),
            change,
            "-".into(),
            seen.into(),
        ]);
    }
}

fn init_schema(config: &Path, keyspace: &str) {
    let status = Command::new(env!("CARGO_BIN_EXE_penstock"))
        .args([
            "init-schema",
            "--set",
            &format!("orders.keyspace={keyspace}"),
            "--config",
        ])
        .arg(config)
        .output()
        .expect("it runs");
    assert!(
        status.status.success(),
        "{}",
        String::from_utf8_lossy(&status.stderr)
    );
}

/// A copy of a plugin that is another file: with a section of no meaning at its end.
fn another(plugin: &Path, to: &Path) {
    let mut bytes = std::fs::read(plugin).expect("the plugin");
    // Section 0 (custom), 6 bytes: a name of 4, and one byte.
    bytes.extend_from_slice(&[0, 6, 4, b't', b'e', b's', b't', 1]);
    std::fs::write(to, bytes).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_takes_effect_by_its_class_under_load() {
    let orders = free_port();
    let world = World::new(&format!(
        "[orders]\nenabled = true\nlisten = \"127.0.0.1:{orders}\"\nkeyspace = \"shop\"\n\
         [orders.breaker]\nopen_for = \"1h\"\n[reload]\ndebounce = \"10ms\"\n[health]\ncheck_interval = \"200ms\"\n"
    ))
    .await;
    for cql in [
        "CREATE KEYSPACE ks2 WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1} \
         AND tablets = {'enabled': false}",
        "CREATE TABLE ks.plain (id uuid PRIMARY KEY, v int) WITH cdc = {'enabled': true}",
        "CREATE TABLE ks.third (id uuid PRIMARY KEY, v int) WITH cdc = {'enabled': true}",
        "CREATE TABLE ks2.plain (id uuid PRIMARY KEY, v int) WITH cdc = {'enabled': true}",
        "CREATE TABLE ks2.outbox (id uuid PRIMARY KEY, v int) WITH cdc = {'enabled': true}",
    ] {
        world.session.query_unpaged(cql, ()).await.expect(cql);
    }
    let text = std::fs::read_to_string(world.config()).expect("pipeline.toml");
    let mut base: toml::Table = toml::from_str(&text).expect("TOML");
    let prefix = format!(
        "{{ topic_prefix = \"{}.\", tables = \"outbox\" }}",
        world.name
    );
    set(
        &mut base,
        "transform.outbox-router.settings",
        value(&prefix),
    );
    set(&mut base, "source.tables", value(r#"["outbox", "plain"]"#));
    // What its checkpoint_interval does can be seen of this one.
    set(&mut base, "pipeline.delivery", value(r#""at-least-once""#));
    for (name, secret) in [("secret", "tiger\n"), ("secret2", "lion\n")] {
        let path = world.dir.path().join(name);
        std::fs::write(&path, secret).expect("written");
    }
    // The stand-in does not ask who it is.
    let secret = format!("{:?}", world.dir.path().join("secret"));
    set(&mut base, "source.username", value("\"first\""));
    set(&mut base, "source.password_file", value(&secret));
    // So that it can go back to where it was.
    set(
        &mut base,
        "admin.listen",
        value(&format!("\"127.0.0.1:{}\"", free_port())),
    );
    world.save(&base.to_string());
    init_schema(&world.config(), "shop");
    init_schema(&world.config(), "shop2");
    another(
        &testkit::plugins::plugin("outbox-router"),
        &world.dir.path().join("other.wasm"),
    );
    let topics = [
        format!("{}.order", world.name),
        format!("{}.b.order", world.name),
    ];

    let rig = Rig::start(world, Duration::from_millis(40)).await;
    let mut table = Table {
        rig,
        base,
        report: Vec::new(),
        free: free_port(),
    };
    // Something to lose: reads that failed and were tried again, and dead letters.
    let faults = table.rig.world.node.faults().clone();
    faults.inject(
        Fault::new(Action::ReadTimeout)
            .on_table("ks.outbox_scylla_cdc_log")
            .times(2),
    );
    table.poison().await;

    let all = keys::all().iter();
    let first = |k: &&Key| {
        k.path.starts_with("orders.")
            && k.path.matches('.').count() == 1
            && k.path != "orders.rate_limit"
    };
    for key in all.clone().filter(first) {
        table.try_row(key).await;
    }
    // From here on the order service's breaker is open, and stays so through every other change.
    let broken =
        faults.inject(Fault::new(Action::ServerError("asked to".into())).on_table("shop.orders"));
    table
        .rig
        .until("an open breaker", async || {
            let (code, _) = table.order(table.orders_port()).await.expect("an answer");
            assert!(code >= 500, "{code}");
            (table.counts().await.orders_breaker.0 == "\"open\"").then_some(())
        })
        .await;
    for key in all.clone().filter(|k| !first(k) && k.path != LAST) {
        match key.path.as_str() {
            "admin.enabled" | "admin.listen" | "admin.token_file" | "admin.metrics_token_file" => {
                table.try_admin(key).await;
            }
            _ => table.try_row(key).await,
        }
    }
    // It has waited for some of its hour: with a second to wait it is half-open at once, its counts kept.
    faults.clear(broken);
    let (state, failures) = table.counts().await.orders_breaker;
    assert_eq!((state.as_str(), failures >= 5.0), ("\"open\"", true));
    let mut retuned = table.base.clone();
    set(&mut retuned, LAST, value(r#""1s""#));
    let revision = table.rig.save(&retuned.to_string()).await;
    let (state, _) = table.counts().await.orders_breaker;
    // Before anybody looks, a busy machine's own probes may have closed it.
    assert_ne!(state, "\"open\"", "{revision}");
    for _ in 0..3 {
        let (code, order) = table.order(table.orders_port()).await.expect("an answer");
        assert_eq!(code, 201, "{order}");
    }
    assert_eq!(table.counts().await.orders_breaker.0, "\"closed\"");
    let took = format!("{:.1} ms", revision["took_ms"].as_f64().unwrap_or_default());
    let seen = "half-open at once, then closed by 3 orders";
    table.report.push([
        LAST.into(),
        "live".into(),
        "1h → 1s".into(),
        took,
        seen.into(),
    ]);

    let rejected = table
        .rig
        .metric("penstock_config_reloads_total", "rejected")
        .await;
    assert!(rejected >= 5.0, "{rejected}");
    let report = std::mem::take(&mut table.report);
    assert_eq!(report.len(), keys::all().len(), "a key was not tried");
    let total = table.rig.finish(&topics).await;
    println!(
        "\n{:<44} {:<8} {:<52} {:>9}  effect seen",
        "key", "class", "old → new", "took"
    );
    for [key, class, change, took, seen] in &report {
        let change: String = change.chars().take(52).collect();
        println!("{key:<44} {class:<8} {change:<52} {took:>9}  {seen}");
    }
    println!(
        "{} keys, {total} events written meanwhile: none lost, none repeated, order per key kept\n",
        report.len()
    );
}
