//! How soon the first record is there: of a pipeline that starts for the first time, of one that is started again, and of
//! one whose plugins are yet to be compiled.
#![allow(unreachable_pub)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rdkafka::consumer::BaseConsumer;

use crate::contestants::BOUND;
use crate::machine::spread;
use crate::rig::{
    Broker, INSERT, KEYS, PAYLOAD, Process, SAFE, block_on, penstock, pipeline, read, session,
    stand_in, write,
};

/// Rows that wait for a pipeline which starts for the first time.
const FIRST: u64 = 10_000;
/// … and for one that is started again.
const AGAIN: u64 = 1_000;

/// A start, and until when it is measured.
struct Start<'a> {
    broker: &'a Broker,
    node: &'a str,
    dir: &'a Path,
    name: String,
    delivery: &'a str,
}

impl Start<'_> {
    /// Seconds from the start of the process until a reader of committed records has the first; ends the process once it
    /// has so many.
    fn run(&self, consumer: &BaseConsumer, rows: u64, cache: Option<&Path>) -> Result<f64> {
        let config = pipeline(
            self.node,
            &self.broker.address,
            &self.name,
            self.delivery,
            "",
        );
        let mut command = penstock(self.dir, &config)?;
        if let Some(cache) = cache {
            command.env("XDG_CACHE_HOME", cache);
        }
        let log = std::fs::File::create(self.dir.join("log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        let began = Instant::now();
        let mut process = Process(command.stdin(Stdio::null()).spawn()?);
        let (mut first, mut have) = (None, 0);
        while have < rows {
            if consumer
                .poll(Duration::from_millis(5))
                .transpose()?
                .is_some()
            {
                first.get_or_insert_with(|| began.elapsed());
                have += 1;
                continue;
            }
            let said = || std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            ensure!(began.elapsed() < BOUND, "{have} of {rows}:\n{}", said());
            if let Some(status) = process.0.try_wait()? {
                anyhow::bail!("it ended with {status}:\n{}", said());
            }
        }
        let pid = process.0.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status()?;
        process.0.wait()?;
        Ok(first.unwrap_or_default().as_secs_f64())
    }
}

/// Measures and prints.
pub fn table(broker: &Broker, dir: &Path, rounds: usize) -> Result<()> {
    let (_node, node) = stand_in(&["scylla", &FIRST.to_string()])?;
    println!(
        "\nUntil a reader of committed records has the first of {FIRST} rows, or of {AGAIN} new ones, s: medians (least to most)\n"
    );
    println!(
        "| | started for the first time | … with plugins yet to be compiled | started again |"
    );
    println!("|---|---|---|---|");
    let mut rows = FIRST;
    for delivery in ["at-least-once", "exactly-once"] {
        let (mut first, mut cold, mut again) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            let start = |name: &str| Start {
                broker,
                node: &node,
                dir,
                name: format!("start{round}-{delivery}-{name}"),
                delivery,
            };
            let one = start("cold");
            let consumer = read(broker, &format!("{}.order", one.name))?;
            let cache = tempfile::tempdir()?;
            cold.push(one.run(&consumer, rows, Some(cache.path()))?);
            let one = start("warm");
            let consumer = read(broker, &format!("{}.order", one.name))?;
            first.push(one.run(&consumer, rows, None)?);
            block_on(async {
                let session = std::sync::Arc::new(session(&node).await?);
                let insert = session.prepare(INSERT).await?;
                let place = |i| (&insert, i % KEYS);
                write(&session, AGAIN, 16, PAYLOAD, place, |_| None).await
            })?;
            rows += AGAIN;
            std::thread::sleep(SAFE);
            again.push(one.run(&consumer, AGAIN, None)?);
        }
        let told = |seconds| {
            let (median, least, most) = spread(seconds);
            format!("{median:.2} ({least:.2} to {most:.2})")
        };
        println!(
            "| penstock, {delivery} | {} | {} | {} |",
            told(first),
            told(cold),
            told(again)
        );
    }
    Ok(())
}
