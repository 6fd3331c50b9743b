//! pipeline.toml changes under the real program, under load: every key by its class, and every way in which a
//! file changes. All the while numbered events are written; at the end each is there once, in order.

#[path = "reload/container.rs"]
mod container;
#[path = "reload/keys.rs"]
mod keys;
#[path = "reload/outage.rs"]
mod outage;
#[path = "reload/speed.rs"]
mod speed;
#[path = "reload/trouble.rs"]
mod trouble;
#[path = "reload/ways.rs"]
mod ways;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::process::{Running, World};
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(60);

/// Writes numbered events of some keys until it is told to stop.
struct Writer {
    keys: Vec<Uuid>,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
}

impl Writer {
    fn start(world: &Arc<World>, keys: usize, pause: Duration) -> Self {
        let keys: Vec<Uuid> = (0..keys).map(|_| Uuid::new_v4()).collect();
        let (stop, written) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
        let (world, ended, count, own) =
            (world.clone(), stop.clone(), written.clone(), keys.clone());
        let task = tokio::spawn(async move {
            while !ended.load(Relaxed) {
                world.write(&own, count.load(Relaxed), 1).await;
                count.fetch_add(1, Relaxed);
                tokio::time::sleep(pause).await;
            }
        });
        Self {
            keys,
            stop,
            written,
            task,
        }
    }

    /// Ends the writing; how many events of each key there are.
    async fn end(&mut self) -> u32 {
        self.stop.store(true, Relaxed);
        (&mut self.task).await.expect("the writer is well");
        self.written.load(Relaxed)
    }
}

/// A running Penstock and what may be asked of it.
struct Rig {
    world: Arc<World>,
    running: Running,
    http: reqwest::Client,
    token: Option<String>,
    writer: Writer,
}

/// What the series of a metric come to whose labels have this in them.
fn sum(scraped: &str, name: &str, label: &str) -> f64 {
    scraped
        .lines()
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(series, _)| {
            let (family, labels) = series.split_once('{').unwrap_or((series, ""));
            family == name && labels.contains(label)
        })
        .map(|(_, value)| value.parse::<f64>().expect("a number"))
        .sum()
}

impl Rig {
    /// Starts it with pipeline.toml as it stands, and the writer at this pace.
    async fn start(world: World, pause: Duration) -> Self {
        let running = world.start(0);
        Self::around(world, running, pause).await
    }

    async fn around(world: World, running: Running, pause: Duration) -> Self {
        running.await_line("all supervised stages started", LONG);
        let world = Arc::new(world);
        let writer = Writer::start(&world, 8, pause);
        let http = reqwest::Client::builder()
            .timeout(LONG)
            .build()
            .expect("a client");
        Self {
            world,
            running,
            http,
            token: None,
            writer,
        }
    }

    async fn ask(&self, method: reqwest::Method, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.running.admin());
        let mut request = self.http.request(method, url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await;
        let answer = answer.unwrap_or_else(|e| panic!("{path}: {e:?}\n{}", self.running.text()));
        (
            answer.status().as_u16(),
            answer.text().await.expect("a body"),
        )
    }

    async fn get(&self, path: &str) -> Value {
        let (code, text) = self.ask(reqwest::Method::GET, path).await;
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {code} {e}: {text}"))
    }

    /// The sum of a metric over its labels, or over those that contain `label`.
    async fn metric(&self, name: &str, label: &str) -> f64 {
        let (_, text) = self.ask(reqwest::Method::GET, "/metrics").await;
        sum(&text, name, label)
    }

    /// Two metrics at one time, so that what is between them can be compared.
    async fn metrics(&self, names: [&str; 2]) -> [f64; 2] {
        let (_, text) = self.ask(reqwest::Method::GET, "/metrics").await;
        names.map(|name| sum(&text, name, ""))
    }

    /// How much a metric grows in a second, looked at for this long.
    async fn rate(&self, name: &str, within: Duration) -> f64 {
        let (before, began) = (self.metric(name, "").await, Instant::now());
        tokio::time::sleep(within).await;
        (self.metric(name, "").await - before) / began.elapsed().as_secs_f64()
    }

    /// Waits until `look` sees what it wants, which it describes.
    async fn until<T>(&self, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + LONG;
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            assert!(
                Instant::now() < deadline,
                "not seen within {LONG:?}: {what}\n{}",
                self.running.text()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the configuration that is in force has no complaint against what is in the file.
    async fn no_complaint(&self) {
        self.until("no complaint", async || {
            let config = self.get("/config").await;
            config["complaint"].is_null().then_some(())
        })
        .await;
    }

    /// When the newest revision was made; empty: there is none yet.
    async fn newest(&self) -> String {
        let list = self.get("/reloads").await;
        let newest = list
            .as_array()
            .and_then(|l| l.last()?["at"].as_str().map(str::to_owned));
        newest.unwrap_or_default()
    }

    /// Waits for the revision after `before`.
    async fn next(&self, before: &str) -> Value {
        self.until("another revision", async || {
            let list = self.get("/reloads").await;
            let newest = list.as_array().and_then(|l| l.last()).cloned()?;
            (newest["at"].as_str() != Some(before)).then_some(newest)
        })
        .await
    }

    /// Saves, and waits for what becomes of it.
    async fn save(&self, text: &str) -> Value {
        let before = self.newest().await;
        self.world.save(text);
        self.next(&before).await
    }

    /// Stops writing and the program; then every event must be there once and in order, over these topics.
    async fn finish(mut self, topics: &[String]) -> u64 {
        let written = self.writer.end().await;
        let all = self.writer.keys.len() * written as usize;
        // Only the writer's: what a test wrote besides would end the wait before the last of these are there.
        let own: Vec<String> = self.writer.keys.iter().map(Uuid::to_string).collect();
        let deadline = Instant::now() + LONG;
        let seen: Vec<BTreeMap<String, Vec<u32>>> = loop {
            let seen: Vec<_> = topics.iter().map(|t| self.world.seen_in(t)).collect();
            let numbers = |topic: &BTreeMap<String, Vec<u32>>| -> usize {
                own.iter()
                    .filter_map(|key| topic.get(key))
                    .map(Vec::len)
                    .sum()
            };
            let have: usize = seen.iter().map(numbers).sum();
            if have >= all {
                break seen;
            }
            let missing = |key: &String| -> Vec<u32> {
                let here = |n: &u32| {
                    seen.iter()
                        .any(|topic| topic.get(key).is_some_and(|all| all.contains(n)))
                };
                (0..written).filter(|n| !here(n)).collect()
            };
            assert!(
                Instant::now() < deadline,
                "{have} of {all} records; of each key, what is missing: {:?}\n{}",
                own.iter().map(missing).collect::<Vec<_>>(),
                self.running.text()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        self.running.signal("-TERM");
        let code = self.running.wait(LONG).code();
        assert_eq!(code, Some(0), "{}", self.running.text());
        for key in &own {
            let mut numbers = Vec::new();
            for topic in &seen {
                let here = topic.get(key).cloned().unwrap_or_default();
                assert!(here.is_sorted(), "{key}: out of order: {here:?}");
                numbers.extend(here);
            }
            numbers.sort_unstable();
            let wanted: Vec<u32> = (0..written).collect();
            assert!(
                numbers == wanted,
                "{key}: lost or repeated: {} of {written}",
                numbers.len()
            );
        }
        all as u64
    }
}

/// A value of pipeline.toml at a dotted path; `transform.NAME.` is the transform of that name.
fn set(table: &mut toml::Table, path: &str, value: toml::Value) {
    let steps: Vec<&str> = path.split('.').collect();
    let (last, tables) = steps.split_last().expect("a path");
    let mut at = table;
    let mut tables = tables.iter();
    while let Some(step) = tables.next() {
        let entry = at
            .entry(*step)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = match entry {
            toml::Value::Array(list) => {
                let name = tables.next().expect("a transform's name");
                list.iter_mut()
                    .filter_map(toml::Value::as_table_mut)
                    .find(|t| t["name"].as_str() == Some(name))
                    .expect("the transform")
            }
            other => other.as_table_mut().expect("a table"),
        };
    }
    at.insert((*last).to_owned(), value);
}

/// A value as it stands in TOML.
fn value(text: &str) -> toml::Value {
    let table: toml::Table = toml::from_str(&format!("v = {text}")).expect("a value");
    table["v"].clone()
}
