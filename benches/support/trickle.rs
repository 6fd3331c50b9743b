//! A row now and then, and how soon a reader has it: what an idle day looks like, where a backlog says nothing.
#![allow(unreachable_pub)]

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rdkafka::Message as _;
use uuid::Uuid;

use crate::contestants::BOUND;
use crate::rig::{Broker, INSERT, PAYLOAD, Process, event_id, read, session, stand_in};

/// Rows a second.
pub const RATE: u32 = 20;
/// Of which delays are taken, once rows come through.
const ROWS: usize = 200;
/// What comes first finds clients that are yet to connect, and code that is yet to be compiled.
const WARM: Duration = Duration::from_secs(5);
/// A key as text.
const KEY: usize = 36;

/// What was seen of one contestant.
pub struct Took {
    /// Sorted.
    pub ms: Vec<f64>,
    pub lost: usize,
}

impl Took {
    /// A percentile, `part` being 0 to 1.
    pub fn part(&self, part: f64) -> f64 {
        let last = self.ms.len().saturating_sub(1) as f64;
        let at = (last * part).round() as usize;
        self.ms.get(at).copied().unwrap_or_default()
    }
}

/// Writes rows to a node of their own, each of a new partition, and reads the topic meanwhile.
pub fn run(
    broker: &Broker,
    topic: &str,
    dir: &Path,
    command: impl FnOnce(&str) -> Result<Command>,
) -> Result<Took> {
    let (_node, node) = stand_in(&["scylla", "0"])?;
    let consumer = read(broker, topic)?;
    let log = std::fs::File::create(dir.join("log"))?;
    let child = command(&node)?
        .stdout(log.try_clone()?)
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()?;
    let mut process = Process(child);
    let (written, writes) = channel();
    let over = Arc::new(AtomicBool::new(false));
    let writer = {
        let over = over.clone();
        std::thread::spawn(move || write(&node, &written, &over))
    };

    let mut waited_for: HashMap<String, Instant> = HashMap::new();
    let mut ms = Vec::new();
    let (began, mut warm) = (Instant::now(), None);
    while ms.len() < ROWS && began.elapsed() < BOUND {
        let message = consumer.poll(Duration::from_millis(5)).transpose()?;
        let now = Instant::now();
        waited_for.extend(writes.try_iter());
        let Some(message) = message else {
            if let Some(status) = process.0.try_wait()? {
                let said = std::fs::read_to_string(dir.join("log"))?;
                anyhow::bail!("it ended with {status}:\n{said}");
            }
            continue;
        };
        let key = message.key().unwrap_or_default();
        // Connect's keys are JSON with the key in it.
        let key = key
            .windows(KEY)
            .filter_map(|part| std::str::from_utf8(part).ok())
            .find(|part| waited_for.contains_key(*part));
        let Some(at) = key.and_then(|key| waited_for.remove(key)) else {
            continue;
        };
        let warm = *warm.get_or_insert(now + WARM);
        if at >= warm {
            ms.push((now - at).as_secs_f64() * 1e3);
        }
    }
    over.store(true, Ordering::Relaxed);
    writer.join().expect("the writer does not panic")?;
    ensure!(
        !ms.is_empty(),
        "no row came through:\n{}",
        std::fs::read_to_string(dir.join("log"))?
    );
    // Written before one that has come, by so much that it is not merely late.
    let old = Duration::from_secs_f64(2.0 * ms.iter().fold(0.0, |a: f64, b| a.max(*b)) / 1e3);
    let lost = waited_for.values().filter(|at| at.elapsed() > old).count();
    ms.sort_by(f64::total_cmp);
    Ok(Took { ms, lost })
}

/// Writes until it is over, and says before each row which key it has and when it was.
fn write(node: &str, written: &Sender<(String, Instant)>, over: &AtomicBool) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let session = session(node).await?;
        let insert = session.prepare(INSERT).await?;
        let payload = "x".repeat(PAYLOAD);
        let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
        while !over.load(Ordering::Relaxed) {
            tick.tick().await;
            let key = Uuid::new_v4();
            if written.send((key.to_string(), Instant::now())).is_err() {
                return Ok(());
            }
            session
                .execute_unpaged(&insert, (key, event_id(), payload.as_str()))
                .await?;
        }
        Ok(())
    })
}
