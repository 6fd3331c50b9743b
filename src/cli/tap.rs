//! `penstock tap` and `penstock record`: what passes a stage of a running pipeline, shown or kept.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use reqwest::Method;
use serde_json::Value;

use super::admin::Client;
use super::output::{Always, Output};
use crate::workbench::redact;

/// Which changes and records.
#[derive(Debug, Clone, Args)]
pub struct Which {
    /// source, transform.NAME or sink: what goes out of it
    pub stage: String,
    /// Only of this table
    #[arg(long)]
    pub table: Option<String>,
    /// Only this operation, e.g. row-delete
    #[arg(long)]
    pub operation: Option<String>,
    /// Only records to this topic
    #[arg(long)]
    pub topic: Option<String>,
    /// Only those with this text in them
    #[arg(long, value_name = "TEXT")]
    pub contains: Option<String>,
    /// At most so many a second: the others are counted, and no lane waits
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rate: u32,
    /// Stop after so many
    #[arg(long)]
    pub limit: Option<usize>,
    /// Stop after this long
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub time: Option<Duration>,
}

/// `penstock tap`
#[derive(Debug, Args)]
pub struct TapArgs {
    #[command(flatten)]
    which: Which,
    /// It is JSON in any case.
    #[command(flatten)]
    pub output: Always,
}

/// `penstock record`
#[derive(Debug, Args)]
pub struct RecordArgs {
    #[command(flatten)]
    which: Which,
    /// The file to write, one line of JSON a change
    #[arg(long)]
    pub out: PathBuf,
    /// Keep keys and shapes, and no other value: text becomes *, numbers 0, what has no such value null
    #[arg(long)]
    pub redact: bool,
    /// How it is told.
    #[command(flatten)]
    output: Output,
}

/// How often the pipeline is asked.
const PAUSE: Duration = Duration::from_millis(200);

/// What a look at a running pipeline came to.
#[derive(Default)]
struct Sum {
    shown: usize,
    seen: u64,
    dropped: u64,
}

/// Asks again and again, and hands on what there is: the columns of the tables that are new, then the lines.
async fn follow(
    client: &Client,
    which: &Which,
    mut take: impl FnMut(&BTreeMap<String, String>, Vec<Value>) -> anyhow::Result<()>,
) -> anyhow::Result<Sum> {
    let mut query = vec![
        ("id", uuid::Uuid::new_v4().to_string()),
        ("stage", which.stage.clone()),
        ("rate", which.rate.to_string()),
    ];
    for (name, value) in [
        ("table", &which.table),
        ("operation", &which.operation),
        ("topic", &which.topic),
        ("contains", &which.contains),
    ] {
        query.extend(value.as_ref().map(|value| (name, value.clone())));
    }
    let begin = Instant::now();
    let mut sum = Sum::default();
    let mut tables = BTreeMap::new();
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        let (code, answer) = client.call(Method::GET, "/tap", &query).await?;
        anyhow::ensure!(
            code == 200,
            "{}",
            answer["detail"]
                .as_str()
                .map_or_else(|| format!("{code}: {answer}"), str::to_owned)
        );
        let mut lines = answer["lines"].as_array().cloned().unwrap_or_default();
        if let Some(limit) = which.limit {
            lines.truncate(limit - sum.shown.min(limit));
        }
        for (name, columns) in answer["tables"].as_object().into_iter().flatten() {
            if let Some(columns) = columns.as_str() {
                tables.insert(name.clone(), columns.to_owned());
            }
        }
        sum.shown += lines.len();
        sum.seen += answer["seen"].as_u64().unwrap_or_default();
        sum.dropped += answer["dropped"].as_u64().unwrap_or_default();
        take(&tables, lines)?;
        let enough = which.limit.is_some_and(|limit| sum.shown >= limit)
            || which.time.is_some_and(|time| begin.elapsed() >= time);
        if enough {
            return Ok(sum);
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            _ = &mut interrupted => return Ok(sum),
        }
    }
}

/// Prints it as it comes.
///
/// # Errors
/// Nobody answers, or there is no such stage.
pub(super) async fn tap(client: &Client, args: &TapArgs) -> anyhow::Result<bool> {
    let sum = follow(client, &args.which, |_, lines| {
        for line in lines {
            say!("{line}");
        }
        Ok(())
    })
    .await?;
    complain!(
        "{} shown of {}, {} let go of",
        sum.shown,
        sum.seen,
        sum.dropped
    );
    Ok(true)
}

/// Writes it to a file.
///
/// # Errors
/// Nobody answers, there is no such stage, or the file cannot be written.
pub(super) async fn record(client: &Client, args: &RecordArgs) -> anyhow::Result<bool> {
    let said = || args.out.display().to_string();
    let mut file = std::fs::File::create(&args.out).with_context(said)?;
    let mut known = BTreeMap::new();
    let sum = follow(client, &args.which, |tables, lines| {
        for (name, columns) in tables {
            if known.get(name) != Some(columns) {
                let line = serde_json::json!({ "table": name, "columns": columns });
                writeln!(file, "{line}").with_context(said)?;
                known.insert(name.clone(), columns.clone());
            }
        }
        for mut line in lines {
            if args.redact {
                redact::line(&mut line, tables);
            }
            writeln!(file, "{line}").with_context(said)?;
        }
        Ok(())
    })
    .await?;
    if args.output.is_json() {
        let told = serde_json::json!({
            "wrote": sum.shown, "to": args.out, "seen": sum.seen, "let_go": sum.dropped,
        });
        say!("{told}");
        return Ok(true);
    }
    say!(
        "wrote {} to {} ({} seen, {} let go of)",
        sum.shown,
        args.out.display(),
        sum.seen,
        sum.dropped
    );
    Ok(true)
}
