//! What cannot be put in force changes nothing, whatever part of it is at fault; and a stop is obeyed meanwhile.

use std::time::Duration;

use serde_json::Value;

use super::{LONG, Rig, World, set, value};
use testkit::broker::Cluster;
use testkit::machine::free_port;

const PAUSE: Duration = Duration::from_millis(20);

struct Edit {
    rig: Rig,
    base: toml::Table,
}

impl Edit {
    async fn start(extra: &str) -> Self {
        let world = World::new(extra).await;
        let text = std::fs::read_to_string(world.config()).expect("pipeline.toml");
        let mut base: toml::Table = toml::from_str(&text).expect("TOML");
        set(
            &mut base,
            "admin.listen",
            value(&format!("\"127.0.0.1:{}\"", free_port())),
        );
        world.save(&base.to_string());
        let rig = Rig::start(world, PAUSE).await;
        Self { rig, base }
    }

    /// The base with these values, and a retuned breaker that must not be in force by half.
    fn with(&self, changes: &[(&str, &str)]) -> String {
        let mut table = self.base.clone();
        set(&mut table, "sink.breaker.failure_threshold", value("77"));
        for (path, new) in changes {
            set(&mut table, path, value(new));
        }
        table.to_string()
    }

    async fn threshold(&self) -> Value {
        let status = self.rig.get("/status").await;
        let stages = status["stages"].as_array().cloned().unwrap_or_default();
        let sink = stages.iter().find(|s| s["stage"] == "sink");
        sink.map(|s| s["failure_threshold"].clone())
            .unwrap_or_default()
    }

    /// It cannot be put in force …
    async fn fails(&self, changes: &[(&str, &str)], says: &str) {
        self.comes_to("failed", changes, says).await;
    }

    /// It is not valid, though only a plugin can say so …
    async fn is_rejected(&self, changes: &[(&str, &str)], says: &str) {
        self.comes_to("rejected", changes, says).await;
    }

    async fn verdicts(&self) -> [f64; 2] {
        let (_, text) = self.rig.ask(reqwest::Method::GET, "/metrics").await;
        ["rejected", "failed"].map(|v| super::sum(&text, "penstock_config_reloads_total", v))
    }

    /// … and is refused with these words, everything goes on as before, and the complaint ends with the next good one.
    async fn comes_to(&self, outcome: &str, changes: &[(&str, &str)], says: &str) {
        let pipelines = self.rig.running.count("shards opened");
        let [rejected, failed] = self.verdicts().await;
        let revision = self.rig.save(&self.with(changes)).await;
        assert_eq!(revision["outcome"], outcome, "{revision}");
        let error = revision["error"].as_str().unwrap_or_default();
        assert!(error.contains(says), "{error}");
        let counted = match outcome {
            "rejected" => [rejected + 1.0, failed],
            _ => [rejected, failed + 1.0],
        };
        assert_eq!(self.verdicts().await, counted, "{revision}");
        assert_eq!(self.threshold().await, 5, "half of it is in force");
        let config = self.rig.get("/config").await;
        assert_eq!(config["complaint"], error);
        let done = self.rig.metric("penstock_changes_done_total", "").await;
        self.rig
            .until("the pipeline goes on", async || {
                let now = self.rig.metric("penstock_changes_done_total", "").await;
                (now > done + 50.0).then_some(())
            })
            .await;
        assert_eq!(self.rig.get("/status").await["phase"], "running");
        assert_eq!(pipelines, self.rig.running.count("shards opened"));
        self.rig.world.save(&self.base.to_string());
        self.rig.no_complaint().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_put_in_force_changes_nothing() {
    let edit = Edit::start("").await;
    let world = edit.rig.world.clone();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = format!("\"{}\"", holder.local_addr().expect("an address"));
    edit.fails(&[("admin.listen", &taken)], "cannot listen")
        .await;
    edit.fails(
        &[("orders.enabled", "true"), ("orders.listen", &taken)],
        "cannot listen",
    )
    .await;
    // No keyspace for the orders: it listens, and cannot prepare.
    let free = format!("\"127.0.0.1:{}\"", free_port());
    edit.fails(
        &[("orders.enabled", "true"), ("orders.listen", &free)],
        "orders",
    )
    .await;
    // Nobody there: the old pipeline is not even drained.
    edit.fails(&[("sink.brokers", &format!("[{free}]"))], "refused")
        .await;
    edit.fails(&[("source.tables", r#"["outbox", "nowhere"]"#)], "nowhere")
        .await;
    // A plugin that never returns from `configure` meets its deadline: the clock runs.
    let faults = testkit::plugins::plugin("test-faults");
    let faults = format!("{:?}", faults.display().to_string());
    let looping = [
        ("transform.outbox-router.plugin", faults.as_str()),
        ("transform.outbox-router.settings", r#"{ refuse = "loop" }"#),
    ];
    edit.is_rejected(&looping, "deadline").await;
    // Nor one that is none, or that does not take its settings, whether it would be swapped or all be rebuilt.
    let broken = world.dir.path().join("broken.wasm");
    std::fs::write(&broken, "no plugin").expect("written");
    let broken = format!("{:?}", broken.display().to_string());
    let broken = ("transform.outbox-router.plugin", broken.as_str());
    let settings = ("transform.outbox-router.settings", r#"{ nonsense = "1" }"#);
    let rebuilt = ("pipeline.shards", "3");
    edit.is_rejected(&[broken], "is not WebAssembly").await;
    edit.is_rejected(&[broken, rebuilt], "is not WebAssembly")
        .await;
    edit.is_rejected(&[settings], "nonsense").await;
    edit.is_rejected(&[settings, rebuilt], "nonsense").await;

    // A wider address on the same port is taken over from the narrow one.
    let port = edit
        .rig
        .running
        .admin()
        .rsplit(':')
        .next()
        .unwrap_or_default()
        .to_owned();
    std::fs::write(world.dir.path().join("token"), "tiger").expect("written");
    let token = format!("{:?}", world.dir.path().join("token"));
    let wide = format!("\"0.0.0.0:{port}\"");
    let listens = edit.rig.running.count("admin interface listens");
    world.save(&edit.with(&[("admin.listen", &wide), ("admin.token_file", &token)]));
    let Edit { mut rig, base } = edit;
    rig.until("the wide address", async || {
        (rig.running.count("admin interface listens") > listens).then_some(())
    })
    .await;
    rig.token = Some("tiger".into());
    let config = rig.get("/config").await;
    assert!(config["complaint"].is_null(), "{config}");
    drop(base);
    let topic = world.topic();
    drop(world);
    let total = rig.finish(&[topic]).await;
    println!("refused six ways, nothing changed; {total} events, none lost or repeated");
}

/// The new pipeline connects, the old one is drained, and then the new one cannot begin: another cluster has no
/// checkpoint topic, and may not make one. What ran goes on from where it was, without asking anybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_fails_half_way_goes_back_to_what_ran() {
    let edit = Edit::start("[sink.topics]\ncreate = true\n").await;
    // Whatever the rest is tested on: one that has nothing of ours.
    let other = Cluster::embedded();
    let brokers = format!("[\"{}\"]", other.brokers);
    for _ in 0..2 {
        edit.fails(
            &[
                ("sink.brokers", &brokers),
                ("sink.new_cluster", "\"start-over\""),
                ("sink.topics.create", "false"),
            ],
            "does not exist",
        )
        .await;
    }
    assert_eq!(edit.rig.running.count("going back to what ran"), 2);
    // And a rebuild that works still does.
    let shards = edit.rig.save(&edit.with(&[("pipeline.shards", "9")])).await;
    assert_eq!(shards["outcome"], "applied", "{shards}");
    assert_eq!(edit.threshold().await, 77);
    let status = edit.rig.get("/status").await;
    assert_eq!(status["shards"].as_array().map(Vec::len), Some(9));
    let failed: Vec<&Value> = status["children"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|c| c["state"] != "running")
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
    let topic = edit.rig.world.topic();
    let total = edit.rig.finish(&[topic]).await;
    println!("went back twice, then 2 → 9 shards; {total} events, none lost or repeated");
}

/// While what runs is drained for a reload, `penstock reloads` says so, for how long, and who has to finish.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_for_a_reload_shows_what_is_going_on() {
    let extra = "[health]\nstalled_after = \"60s\"\n[shutdown]\ntimeout = \"5s\"\n";
    let world = World::new(extra).await;
    let text = std::fs::read_to_string(world.config()).expect("pipeline.toml");
    let mut base: toml::Table = toml::from_str(&text).expect("TOML");
    // The first batch hangs in the sink, which holds the drain until its deadline.
    let running = world.start_faulty(0, "stage::sink=1*return(hang)");
    let rig = Rig::around(world, running, PAUSE).await;
    let (_, none) = rig.running.penstock(&["reloads"]);
    assert!(!none.contains("under way"), "{none}");
    set(&mut base, "pipeline.shards", value("3"));
    rig.world.save(&base.to_string());
    let said = rig
        .until("a drain under way", async || {
            let (code, said) = rig.running.penstock(&["reloads"]);
            assert_eq!(code, Some(0), "{said}");
            said.contains("draining what runs").then_some(said)
        })
        .await;
    for part in [
        "under way for ",
        ", waits for ",
        "sink/",
        "pipeline.shards = 2 → 3",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let (_, json) = rig.running.penstock(&["reloads", "--json"]);
    assert!(json.contains("\"under-way\""), "{json}");
    let applied = rig
        .until("it is applied", async || {
            let (_, said) = rig.running.penstock(&["reloads"]);
            said.contains(" applied").then_some(said)
        })
        .await;
    assert!(!applied.contains("under way"), "{applied}");
    let topic = rig.world.topic();
    rig.finish(&[topic]).await;
    println!("{said}");
}

/// A node that takes connections and says nothing keeps a rebuild waiting: all else goes on, and a stop is obeyed.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_obeyed_in_a_rebuild() {
    let edit = Edit::start("").await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let nodes = format!("[\"{}\"]", silent.local_addr().expect("an address"));
    edit.rig.world.save(&edit.with(&[("source.nodes", &nodes)]));
    // The rebuild has begun when it connects; nobody answers it, then or later.
    let waiting = tokio::task::spawn_blocking(move || silent.accept().map(|c| (c, silent)))
        .await
        .expect("it waits")
        .expect("a connection");
    let done = edit.rig.metric("penstock_changes_done_total", "").await;
    edit.rig
        .until("the pipeline goes on", async || {
            let now = edit.rig.metric("penstock_changes_done_total", "").await;
            (now > done + 50.0).then_some(())
        })
        .await;
    let Edit { mut rig, .. } = edit;
    rig.writer.end().await;
    rig.running.signal("-TERM");
    assert_eq!(
        rig.running.wait(LONG).code(),
        Some(0),
        "{}",
        rig.running.text()
    );
    rig.running
        .await_line("stopping, so the configuration is not applied", LONG);
    drop(waiting);
}

/// What a shard without changes was to take up waits there; another edit replaces it, and there is room for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_is_swapped_again_and_again_under_a_pipeline_that_idles() {
    let world = World::new("").await;
    let text = std::fs::read_to_string(world.config()).expect("pipeline.toml");
    let mut base: toml::Table = toml::from_str(&text).expect("TOML");
    let mut rig = Rig::start(world, PAUSE).await;
    let done = async |rig: &Rig, n: f64| {
        rig.until("changes are delivered", async || {
            let done = rig.metric("penstock_changes_done_total", "").await;
            (done >= n).then_some(())
        })
        .await;
    };
    done(&rig, 1.0).await;
    let written = rig.writer.end().await as usize * rig.writer.keys.len();
    done(&rig, written as f64).await;
    for n in 0..6 {
        let settings = format!("{{ topic_prefix = \"{}.{n}.\" }}", rig.world.name);
        set(
            &mut base,
            "transform.outbox-router.settings",
            value(&settings),
        );
        // Every third one makes everything anew beside what waits.
        if n % 3 == 2 {
            set(&mut base, "pipeline.shards", value(&(3 + n).to_string()));
        }
        let revision = rig.save(&base.to_string()).await;
        assert_eq!(revision["outcome"], "applied", "{n}: {revision}");
    }
    rig.running.signal("-TERM");
    let code = rig.running.wait(LONG).code();
    assert_eq!(code, Some(0), "{}", rig.running.text());
}
