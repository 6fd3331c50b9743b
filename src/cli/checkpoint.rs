//! `penstock checkpoint`: where the pipeline is, by hand.
//!
//! `reset` and `copy` are refused while the pipeline runs anywhere. Two things are asked: the group by which instances
//! share the shards, whether it has members; and every address that the checkpoint topic names as a shard's owner's,
//! whether that very instance answers there. Then every transactional id is taken, so that whoever could not be asked can
//! commit nothing any more. With at-least-once delivery there is no such fence: there the questions are all.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::bars::Bars;
use super::output::Output;
use super::{ConfigArgs, exit};
use crate::change::GroupKey;
use crate::checkpoint::GroupCheckpoint;
use crate::checkpoint::topic::Owner;
use crate::config::settings::{Delivery, Nodes};
use crate::config::{Inputs, Settings};
use crate::coordinator::child::Stage;
use crate::coordinator::pipeline::PolicyRegistry;
use crate::coordinator::reload::Reloads;
use crate::sink::redpanda::RedpandaSink;
use crate::sink::redpanda::by_hand::Held;

/// An instance that is asked whether it runs has this long to answer.
const ANSWERS: Duration = Duration::from_secs(5);

/// `penstock checkpoint`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print where each shard is, table by table, and whose it is
    Show(Output),
    /// Have the configured tables read from somewhere else at the next start
    Reset(Reset),
    /// Take the checkpoints to another cluster, which is to have none of these tables yet
    Copy(Copy),
}

/// `penstock checkpoint reset`
#[derive(Debug, Args)]
pub struct Reset {
    /// Where to: the beginning of the log, this moment, or an RFC 3339 time
    #[arg(long, value_name = "earliest|latest|TIME")]
    pub to: To,
    /// How it is told.
    #[command(flatten)]
    pub output: Output,
}

/// `penstock checkpoint copy`
#[derive(Debug, Args)]
pub struct Copy {
    /// A configuration file of the pipeline whose sink is the other cluster
    #[arg(long, value_name = "PATH")]
    pub to: PathBuf,
    /// Also over checkpoints that are there
    #[arg(long)]
    pub overwrite: bool,
    /// How it is told.
    #[command(flatten)]
    pub output: Output,
}

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// Its beginning.
    Earliest,
    /// Now.
    Latest,
    /// This time.
    At(Timestamp),
}

impl std::str::FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            time => match time.parse() {
                Ok(at) if at > Timestamp::now() => Err("this time is yet to come".into()),
                Ok(at) => Ok(Self::At(at)),
                Err(_) => Err(
                    "\"earliest\", \"latest\", or a time such as \"2026-01-31T08:00:00Z\" would do"
                        .into(),
                ),
            },
        }
    }
}

impl To {
    /// As a checkpoint has it: µs since the Unix epoch, 0 for the beginning.
    fn start(self) -> GroupCheckpoint {
        GroupCheckpoint {
            complete_until_us: match self {
                Self::Earliest => 0,
                Self::Latest => Timestamp::now().as_microsecond(),
                Self::At(at) => at.as_microsecond().max(1),
            },
            ..GroupCheckpoint::default()
        }
    }
}

/// Does what it says; the exit code says whether that worked.
pub fn run(config: &ConfigArgs, command: Command) -> u8 {
    let settings = match load(config.inputs()) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    let other = match &command {
        Command::Copy(copy) => {
            match load(Inputs::from_process(vec![copy.to.clone()], Vec::new())) {
                Ok(settings) => Some(settings),
                Err(code) => return code,
            }
        }
        _ => None,
    };
    Bars::new().show_long_work();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let done = runtime.block_on(async {
            match command {
                Command::Show(output) => show(settings, output).await,
                Command::Reset(reset) => self::reset(settings, &reset).await,
                Command::Copy(copy) => match other {
                    Some(other) => self::copy(settings, other, &copy).await,
                    None => bail!("no other cluster"),
                },
            }
        });
        runtime.shutdown_background();
        done
    });
    match done {
        Ok(()) => exit::OK,
        Err(error) => {
            complain!("error: {error:#}");
            exit::FAILURE
        }
    }
}

fn load(inputs: Inputs) -> Result<Arc<Settings>, u8> {
    match Reloads::load_first(inputs) {
        Ok(reloads) => Ok(reloads.settings()),
        Err(invalid) => {
            complain!(
                "{}",
                invalid.render(std::io::stderr().is_terminal()).trim_end()
            );
            Err(exit::BAD_CONFIG)
        }
    }
}

/// The pipeline's side that has the checkpoints, and what keeps its settings.
struct Brokers {
    sink: Arc<RedpandaSink>,
    settings: Arc<Settings>,
    _live: watch::Sender<Arc<Settings>>,
}

impl Brokers {
    async fn connect(settings: Arc<Settings>) -> anyhow::Result<Self> {
        ensure!(
            settings.sink.brokers != Nodes::Embedded,
            "`sink.brokers` is \"embedded\": that broker is there only while the pipeline runs; give its address, as \
             `penstock status` names it: --set 'sink.brokers=[\"127.0.0.1:PORT\"]'"
        );
        let live = watch::Sender::new(settings.clone());
        let policies = PolicyRegistry::new(live.subscribe());
        let sink = RedpandaSink::connect(live.subscribe(), policies.stage(&Stage::Sink)).await?;
        Ok(Self {
            sink,
            settings,
            _live: live,
        })
    }

    fn tables(&self) -> Vec<String> {
        let source = &self.settings.source;
        let full = |table: &String| format!("{}.{table}", source.keyspace);
        source.tables.iter().map(full).collect()
    }

    /// What is there of the configured tables.
    fn of_tables<'a>(
        &self,
        held: &'a BTreeMap<i32, Held>,
    ) -> impl Iterator<Item = (i32, &'a GroupKey, &'a GroupCheckpoint)> {
        let prefixes: Vec<String> = self.tables().iter().map(|t| format!("{t}/")).collect();
        held.iter().flat_map(move |(partition, held)| {
            let prefixes = prefixes.clone();
            let ours = move |key: &GroupKey| prefixes.iter().any(|p| key.0.starts_with(p.as_str()));
            let all = held.checkpoints.iter();
            all.filter(move |(key, _)| ours(key))
                .map(|(key, at)| (*partition, key, at))
        })
    }

    /// Fails if anybody runs the pipeline, as far as that can be asked.
    async fn ensure_nobody_runs(&self) -> anyhow::Result<()> {
        let name = &self.settings.pipeline.name;
        let members = self.sink.members().await?;
        ensure!(
            members == 0,
            "the pipeline {name} runs: its group has {members} member{}; stop them first",
            if members == 1 { "" } else { "s" }
        );
        let held = self.sink.read_all_checkpoints().await?;
        let owners: BTreeSet<(String, uuid::Uuid)> = held
            .into_values()
            .filter_map(|held| held.owner)
            .filter_map(|owner| Some((owner.admin?, owner.instance)))
            .collect();
        for (at, instance) in owners {
            if let Some(who) = self.answers(&at, instance).await? {
                bail!("the pipeline {name} runs: {who} at {at}; stop it first");
            }
        }
        if self.settings.pipeline.delivery == Delivery::AtLeastOnce {
            complain!(
                "warning: with delivery = \"at-least-once\" an instance that has no admin interface, or cannot be reached \
                 from here, is not noticed: be sure that none runs"
            );
        }
        Ok(())
    }

    /// Whether this instance answers there; what does, if it may be.
    async fn answers(&self, at: &str, instance: uuid::Uuid) -> anyhow::Result<Option<String>> {
        let http = reqwest::Client::builder().timeout(ANSWERS).build()?;
        let mut request = http.get(format!("http://{at}/status"));
        if let Some(token) = &self.settings.admin.token {
            request = request.bearer_auth(token.expose());
        }
        let answer = match request.send().await {
            Ok(answer) => answer,
            // It listens, and is held up.
            Err(error) if error.is_timeout() && !error.is_connect() => {
                return Ok(Some("something that listens and does not answer".into()));
            }
            Err(_) => return Ok(None),
        };
        if matches!(answer.status().as_u16(), 401 | 403) {
            return Ok(Some(
                "an instance that wants another `admin.token` than this file's".into(),
            ));
        }
        let status: serde_json::Value = answer.json().await.unwrap_or_default();
        let same = status["instance"].as_str() == Some(&*instance.to_string());
        Ok(same.then(|| format!("instance {instance} answers")))
    }
}

/// A shard's table, as it is printed.
#[derive(Debug, Serialize)]
struct Place {
    shard: i32,
    table: String,
    /// `None`: there is no checkpoint, only where it begins.
    generation: Option<String>,
    groups: usize,
    /// Everything before is done, in every group of it.
    complete_until: Option<String>,
    starts_from: Option<String>,
    owner: Option<Owner>,
}

fn time(us: i64) -> String {
    Timestamp::from_microsecond(us).map_or_else(|_| us.to_string(), |at| at.to_string())
}

fn places(held: &BTreeMap<i32, Held>) -> Vec<Place> {
    let mut places = Vec::new();
    for (shard, held) in held {
        let mut found: BTreeMap<(String, Option<String>), (usize, i64)> = BTreeMap::new();
        let mut starts: BTreeMap<String, String> = BTreeMap::new();
        for (key, at) in held
            .checkpoints
            .iter()
            .filter(|(k, _)| k.leaf_of().is_none())
        {
            let mut parts = key
                .0
                .rsplitn(if key.is_start() { 2 } else { 3 }, '/')
                .skip(1);
            let generation = match key.is_start() {
                true => None,
                false => parts.next().map(str::to_owned),
            };
            let table = parts.next().unwrap_or(&key.0).to_owned();
            if key.is_start() {
                let from = match at.complete_until_us {
                    0 => "earliest".to_owned(),
                    us => time(us),
                };
                starts.insert(table, from);
                continue;
            }
            let (groups, until) = found.entry((table, generation)).or_insert((0, i64::MAX));
            *groups += 1;
            *until = at.complete_until_us.min(*until);
        }
        let owner = held.owner.clone().filter(|owner| *owner != Owner::NOBODY);
        for table in starts.keys() {
            if found.keys().all(|(other, _)| other != table) {
                places.push(Place {
                    shard: *shard,
                    table: table.clone(),
                    generation: None,
                    groups: 0,
                    complete_until: None,
                    starts_from: starts.get(table).cloned(),
                    owner: owner.clone(),
                });
            }
        }
        places.extend(
            found
                .into_iter()
                .map(|((table, generation), (groups, until))| Place {
                    shard: *shard,
                    starts_from: starts.get(&table).cloned(),
                    table,
                    generation,
                    groups,
                    complete_until: Some(time(until)),
                    owner: owner.clone(),
                }),
        );
    }
    places
}

async fn show(settings: Arc<Settings>, output: Output) -> anyhow::Result<()> {
    let brokers = Brokers::connect(settings).await?;
    let places = places(&brokers.sink.read_all_checkpoints().await?);
    if output.is_json() {
        say!("{}", serde_json::to_string_pretty(&places)?);
        return Ok(());
    }
    if places.is_empty() {
        say!("no checkpoints: it starts by `source.start_from`");
        return Ok(());
    }
    say!(
        "{:<6} {:<32} {:<16} {:>6}  {:<42} owner",
        "shard",
        "table",
        "generation",
        "groups",
        "complete until"
    );
    for place in &places {
        let until = match (&place.complete_until, &place.starts_from) {
            (Some(until), _) => until.clone(),
            (None, Some(from)) => format!("starts from {from}"),
            (None, None) => "-".to_owned(),
        };
        let owner = place.owner.as_ref();
        say!(
            "{:<6} {:<32} {:<16} {:>6}  {:<42} {}",
            place.shard,
            place.table,
            place.generation.as_deref().unwrap_or("-"),
            place.groups,
            until,
            owner.map_or_else(|| "-".to_owned(), describe)
        );
    }
    Ok(())
}

/// An owner as a person reads it.
pub(super) fn describe(owner: &Owner) -> String {
    match &owner.admin {
        Some(at) => format!("{at} ({})", owner.instance),
        None => owner.instance.to_string(),
    }
}

/// What `reset` and `copy` did.
#[derive(Debug, Serialize)]
struct Done {
    tables: Vec<String>,
    /// Groups whose checkpoints are gone, or were copied.
    groups: usize,
    shards: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    starts_from: Option<String>,
}

impl Done {
    fn print(&self, output: Output, text: &str) -> anyhow::Result<()> {
        match output.is_json() {
            true => say!("{}", serde_json::to_string_pretty(self)?),
            false => say!("{text}"),
        }
        Ok(())
    }
}

async fn reset(settings: Arc<Settings>, asked: &Reset) -> anyhow::Result<()> {
    let brokers = Brokers::connect(settings).await?;
    brokers.ensure_nobody_runs().await?;
    let mut taken = brokers.sink.take_all().await?;
    // Only now nobody can add to them.
    let held = brokers.sink.read_all_checkpoints().await?;
    let (start, tables) = (asked.to.start(), brokers.tables());
    let mut records = Vec::new();
    let mut groups = 0;
    for (partition, key, _) in brokers.of_tables(&held).filter(|(_, k, _)| !k.is_start()) {
        records.push((partition, key.0.to_string(), None));
        groups += usize::from(key.leaf_of().is_none());
    }
    for table in &tables {
        let key = GroupKey::start(table);
        records.extend(brokers.sink.records_of(&key, Some(&start)).await?);
    }
    taken.write(records).await.context("nothing was changed")?;
    taken.release().await;
    let from = match start.complete_until_us {
        0 => "earliest".to_owned(),
        us => time(us),
    };
    let text = format!(
        "{} will be read from {from}; the checkpoints of {groups} groups are gone",
        tables.join(", ")
    );
    let done = Done {
        tables,
        groups,
        shards: held.len(),
        starts_from: Some(from),
    };
    done.print(asked.output, &text)
}

async fn copy(from: Arc<Settings>, to: Arc<Settings>, asked: &Copy) -> anyhow::Result<()> {
    ensure!(
        from.sink.brokers != to.sink.brokers,
        "{} names the same sink.brokers (does the environment set them for both?)",
        asked.to.display()
    );
    let (from, to) = (Brokers::connect(from).await?, Brokers::connect(to).await?);
    ensure!(
        from.tables() == to.tables(),
        "{} reads other tables: {} here, {} there",
        asked.to.display(),
        from.tables().join(", "),
        to.tables().join(", ")
    );
    from.ensure_nobody_runs().await?;
    to.ensure_nobody_runs().await?;
    let there = to.sink.read_all_checkpoints().await?;
    let known = to.of_tables(&there).count();
    ensure!(
        known == 0 || asked.overwrite,
        "the other cluster has {known} checkpoints of these tables; --overwrite puts these in their place"
    );
    let taken = from.sink.take_all().await?;
    let mut taken_there = to.sink.take_all().await?;
    let (here, there) = (
        from.sink.read_all_checkpoints().await?,
        to.sink.read_all_checkpoints().await?,
    );
    let mut records = BTreeMap::new();
    for (partition, key, _) in to.of_tables(&there) {
        records.insert((partition, key.0.to_string()), None);
    }
    let mut groups = 0;
    for (_, key, at) in from.of_tables(&here) {
        for (partition, key, value) in to.sink.records_of(key, Some(at)).await? {
            records.insert((partition, key), value);
        }
        groups += usize::from(key.leaf_of().is_none() && !key.is_start());
    }
    ensure!(groups > 0, "there is no checkpoint of these tables to copy");
    let records = records.into_iter();
    let records = records.map(|((partition, key), value)| (partition, key, value));
    taken_there
        .write(records.collect())
        .await
        .context("nothing was changed")?;
    taken.release().await;
    taken_there.release().await;
    let done = Done {
        tables: to.tables(),
        groups,
        shards: here.len(),
        starts_from: None,
    };
    done.print(
        asked.output,
        &format!("the checkpoints of {groups} groups are on the other cluster"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_to_reset_to_is_a_word_or_a_time_that_has_been() {
        assert_eq!("earliest".parse(), Ok(To::Earliest));
        assert_eq!("latest".parse(), Ok(To::Latest));
        let at = "2026-01-31T08:00:00Z".parse::<To>().map(To::start);
        assert_eq!(at.map(|at| at.complete_until_us), Ok(1_769_846_400_000_000));
        let wrong = |text: &str| text.parse::<To>().unwrap_err();
        assert!(wrong("yesterday").contains("would do"));
        assert!(wrong("9000-01-01T00:00:00Z").contains("yet to come"));
    }
}
