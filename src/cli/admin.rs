//! Commands that ask a running Penstock, through its admin interface.

use std::io::IsTerminal;
use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::Value;

use super::output::{Always, Output};
use super::{ConfigArgs, bars, exit, tap, watch};
use crate::config::settings::Admin;
use crate::coordinator::reload::Reloads;

/// Commands for a running pipeline
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Show the health of every component, its breaker and its shards
    Status {
        /// How it is printed
        #[command(flatten)]
        output: Output,
        /// Show the shards of every instance of the pipeline: whose they are, how far behind, how fast
        #[arg(long)]
        all: bool,
        /// Show it again and again, until `q` is pressed; not on a terminal, a line each time
        #[arg(
            long, short, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "1s", conflicts_with = "all",
            value_parser = humantime::parse_duration
        )]
        watch: Option<Duration>,
    },
    /// Exit 0 if the running pipeline is healthy (with --ready: if it is ready)
    Health {
        /// Ask whether it is ready instead
        #[arg(long)]
        ready: bool,
        /// How it is printed
        #[command(flatten)]
        output: Output,
    },
    /// Look after breakers
    #[command(subcommand)]
    Breaker(Breaker),
    /// Read the configuration's sources again now
    Reload(Output),
    /// Show what became of changes of the configuration, and how far the one under way is
    Reloads(Output),
    /// Look after dead letters
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Show the changes and records that go out of a stage of the running pipeline
    Tap(tap::TapArgs),
    /// Write the changes and records that go out of a stage to a file that `plugin run`, `plugin test` and `plugin bench` read
    Record(tap::RecordArgs),
}

/// `penstock breaker`
#[derive(Debug, Subcommand)]
pub enum Breaker {
    /// Close a stage's breaker by hand
    Reset {
        /// source, transform.NAME, sink, dead_letter or orders
        stage: String,
        /// How it is printed
        #[command(flatten)]
        output: Output,
    },
    /// Show every stage's breaker
    List(Output),
}

/// Which dead letters.
#[derive(Debug, Clone, Default, Args)]
pub struct Filter {
    /// Only those of this stage
    #[arg(long)]
    pub stage: Option<String>,
    /// Only those of this keyspace.table
    #[arg(long)]
    pub table: Option<String>,
    /// Only those whose error contains this text
    #[arg(long)]
    pub error: Option<String>,
    /// Only these ids (positions, as `list` prints them)
    #[arg(long = "id")]
    pub ids: Vec<String>,
    /// At most this many
    #[arg(long)]
    pub limit: Option<usize>,
    /// How it is printed
    #[command(flatten)]
    pub output: Output,
}

/// `penstock dead-letters`
#[derive(Debug, Subcommand)]
pub enum DeadLetters {
    /// Print dead letters, one line each
    List(Filter),
    /// Print a dead letter in full
    Show {
        /// As `list` prints it
        id: String,
        /// It is JSON in any case
        #[command(flatten)]
        output: Always,
    },
    /// Send dead letters through the pipeline again and say what became of each
    Replay(Filter),
    /// Forget dead letters: all, or those that the options name
    Purge(Filter),
}

impl Filter {
    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        let optional = [
            ("stage", &self.stage),
            ("table", &self.table),
            ("error", &self.error),
        ];
        query.extend(
            optional
                .into_iter()
                .filter_map(|(name, value)| Some((name, value.clone()?))),
        );
        if !self.ids.is_empty() {
            query.push(("ids", self.ids.join(",")));
        }
        query.extend(self.limit.map(|limit| ("limit", limit.to_string())));
        query
    }
}

/// An answer may take as long as reading all dead letters does.
const TIMEOUT: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Of `--watch`.
const SHORTEST: Duration = Duration::from_millis(100);

/// Asks, prints the answer, and says by the exit code whether it was good.
pub fn run(config: &ConfigArgs, command: AdminCommand) -> u8 {
    let inputs = config.inputs();
    let admin = match Reloads::load_first(inputs.clone()) {
        Ok(reloads) => reloads.settings().admin.clone(),
        // A bad edit changes nothing in what runs, so it must not keep anybody from asking, least of all a health
        // check.
        Err(invalid) => match crate::config::admin_alone(&inputs) {
            Some(admin) => {
                complain!("warning: {invalid}");
                admin
            }
            None => {
                complain!(
                    "{}",
                    invalid.render(std::io::stderr().is_terminal()).trim_end()
                );
                return exit::BAD_CONFIG;
            }
        },
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain!("error: {error}");
            return exit::FAILURE;
        }
    };
    let watched = match &command {
        AdminCommand::Status {
            watch: Some(interval),
            output,
            ..
        } => Some(((*interval).max(SHORTEST), output.is_json())),
        _ => None,
    };
    let done = match watched {
        Some((interval, json)) => {
            Client::new(&admin).and_then(|client| watch::run(&runtime, &client, interval, json))
        }
        None => runtime.block_on(ask(&admin, command)),
    };
    match done {
        Ok(true) => exit::OK,
        Ok(false) => exit::FAILURE,
        Err(error) => {
            complain!("error: {error:#}");
            exit::FAILURE
        }
    }
}

pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl Client {
    fn new(admin: &Admin) -> anyhow::Result<Self> {
        anyhow::ensure!(
            admin.enabled,
            "the admin interface is off: set `admin.enabled = true`"
        );
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .build()?;
        let mut address = admin.listen;
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        let token = admin.token.as_ref().map(|t| t.expose().to_owned());
        Ok(Self {
            http,
            base: format!("http://{address}"),
            token,
        })
    }

    /// One that asks another instance, with the same token.
    pub(super) fn at(&self, address: &str) -> Self {
        Self {
            http: self.http.clone(),
            base: format!("http://{address}"),
            token: self.token.clone(),
        }
    }

    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
    ) -> anyhow::Result<(u16, Value)> {
        self.call_within(method, path, query, TIMEOUT).await
    }

    /// … that has this long to answer.
    pub(super) async fn call_within(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        within: Duration,
    ) -> anyhow::Result<(u16, Value)> {
        let mut url = reqwest::Url::parse(&format!("{}{path}", self.base))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url).timeout(within);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.map_err(|error| {
            if error.is_connect() {
                anyhow::anyhow!(
                    "no Penstock answers at {}; is it running, with this `admin.listen`?",
                    self.base
                )
            } else {
                error.into()
            }
        })?;
        let status = answer.status().as_u16();
        let body = answer.text().await?;
        Ok((
            status,
            serde_json::from_str(&body).unwrap_or(Value::String(body)),
        ))
    }
}

async fn ask(admin: &Admin, command: AdminCommand) -> anyhow::Result<bool> {
    let client = Client::new(admin)?;
    let command = match command {
        AdminCommand::Tap(args) => return tap::tap(&client, &args).await,
        AdminCommand::Record(args) => return tap::record(&client, &args).await,
        command => command,
    };
    let (method, path, query, json) = match &command {
        AdminCommand::Status {
            all: true, output, ..
        } => {
            return super::shards::print_all(&client, output.is_json()).await;
        }
        AdminCommand::Status { output, .. } => (
            Method::GET,
            "/status".to_owned(),
            Vec::new(),
            output.is_json(),
        ),
        AdminCommand::Health { ready, output } => (
            Method::GET,
            if *ready { "/readyz" } else { "/health" }.to_owned(),
            Vec::new(),
            output.is_json(),
        ),
        AdminCommand::Breaker(Breaker::List(output)) => (
            Method::GET,
            "/breakers".to_owned(),
            Vec::new(),
            output.is_json(),
        ),
        AdminCommand::Breaker(Breaker::Reset { stage, output }) => (
            Method::POST,
            format!("/breakers/{stage}/reset"),
            Vec::new(),
            output.is_json(),
        ),
        AdminCommand::Reload(output) => (
            Method::POST,
            "/-/reload".to_owned(),
            Vec::new(),
            output.is_json(),
        ),
        AdminCommand::Reloads(output) => (
            Method::GET,
            "/reloads".to_owned(),
            Vec::new(),
            output.is_json(),
        ),
        AdminCommand::DeadLetters(DeadLetters::List(f)) => {
            let json = f.output.is_json();
            (Method::GET, "/dead-letters".to_owned(), f.query(), json)
        }
        AdminCommand::DeadLetters(DeadLetters::Show { id, .. }) => (
            Method::GET,
            "/dead-letters".to_owned(),
            vec![("ids", id.clone())],
            true,
        ),
        AdminCommand::DeadLetters(DeadLetters::Replay(f)) => (
            Method::POST,
            "/dead-letters/replay".to_owned(),
            f.query(),
            f.output.is_json(),
        ),
        AdminCommand::DeadLetters(DeadLetters::Purge(f)) => {
            let json = f.output.is_json();
            (Method::DELETE, "/dead-letters".to_owned(), f.query(), json)
        }
        AdminCommand::Tap(_) | AdminCommand::Record(_) => return Ok(true),
    };
    let (code, mut answer) = match &command {
        AdminCommand::DeadLetters(DeadLetters::Replay(_)) => bars::replay(&client, &query).await?,
        _ => client.call(method, &path, &query).await?,
    };
    let good = (200..300).contains(&code);
    // An unhealthy pipeline answers 503 with the same report, which is what was asked for.
    if !good && !matches!(command, AdminCommand::Health { .. }) {
        anyhow::bail!(
            "{}",
            answer["detail"]
                .as_str()
                .map_or_else(|| format!("{code}: {answer}"), str::to_owned)
        );
    }
    if let (AdminCommand::Reloads(_), Value::Array(list)) = (&command, &mut answer) {
        let (_, status) = client.call(Method::GET, "/status", &[]).await?;
        if let Value::Object(mut under_way) = status["reload"].clone() {
            under_way.insert("outcome".to_owned(), "under-way".into());
            list.push(Value::Object(under_way));
        }
    }
    if json {
        say!("{}", serde_json::to_string_pretty(&answer)?);
        return Ok(good);
    }
    match command {
        AdminCommand::Status { .. } => print_status(&answer),
        AdminCommand::Health { ready: true, .. } => match answer["reason"].as_str() {
            Some(reason) => say!("{}: {reason}", text(&answer["phase"])),
            None => say!("{}", text(&answer["phase"])),
        },
        AdminCommand::Health { ready: false, .. } => print_health(&answer),
        AdminCommand::Breaker(Breaker::List(_)) => print_stages(&answer),
        AdminCommand::Breaker(Breaker::Reset { .. }) => {
            say!(
                "{}: breaker {}",
                text(&answer["stage"]),
                text(&answer["breaker"])
            );
        }
        AdminCommand::Reload(_) => super::reloads::print(&answer),
        AdminCommand::Reloads(_) => each(&answer, super::reloads::print),
        AdminCommand::DeadLetters(DeadLetters::List(_) | DeadLetters::Show { .. }) => {
            each(&answer, |l| {
                say!(
                    "{}  {}  {}  {}  {}",
                    text(&l["id"]),
                    text(&l["time"]),
                    text(&l["stage"]),
                    text(&l["table"]),
                    one_line(&text(&l["error"]))
                );
            });
        }
        AdminCommand::DeadLetters(DeadLetters::Replay(_)) => {
            each(&answer, |l| {
                say!("{}  {}", text(&l["id"]), one_line(&text(&l["outcome"])))
            });
        }
        AdminCommand::DeadLetters(DeadLetters::Purge(_)) => {
            say!("{} purged", text(&answer["purged"]));
            if answer["skipped"].as_u64().is_some_and(|n| n > 0) {
                say!("{} skipped: no dead letters", text(&answer["skipped"]));
            }
        }
        AdminCommand::Tap(_) | AdminCommand::Record(_) => {}
    }
    Ok(good)
}

pub(super) fn each(list: &Value, print: impl FnMut(&Value)) {
    list.as_array().into_iter().flatten().for_each(print);
}

/// An error of a plugin may have several: what it stands in is a list with a line each.
pub(super) fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" | ")
}

/// A value as a person reads it.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => "-".to_owned(),
        Value::Number(n) => n
            .as_f64()
            .filter(|f| f.fract() != 0.0)
            .map_or_else(|| n.to_string(), |f| format!("{f:.1}")),
        other => other.to_string(),
    }
}

/// A list in one line.
pub(super) fn list(values: &Value) -> String {
    let values = values.as_array().into_iter().flatten();
    values.map(text).collect::<Vec<_>>().join(", ")
}

fn print_health(report: &Value) {
    let line = |e: &Value| {
        let (name, status) = (text(&e["name"]), text(&e["status"]));
        row(&format!(
            "{name:<28} {status:<10} {}",
            one_line(e["reason"].as_str().unwrap_or(""))
        ));
    };
    line(&report["system"]);
    each(&report["components"], line);
}

fn print_stages(stages: &Value) {
    say!(
        "{:<28} {:<10} {:>9} {:>8} {:>8}  last error",
        "stage",
        "breaker",
        "failures",
        "opened",
        "refused"
    );
    each(stages, |s| {
        row(&format!(
            "{:<28} {:<10} {:>5} / {:<3} {:>6} {:>8}  {}",
            text(&s["stage"]),
            text(&s["breaker"]),
            text(&s["failures"]),
            text(&s["failure_threshold"]),
            text(&s["opened"]),
            text(&s["refused"]),
            one_line(s["last_error"].as_str().unwrap_or(""))
        ));
    });
}

/// A line of a table, whose last column may be empty.
fn row(line: &str) {
    say!("{}", line.trim_end());
}

fn print_status(status: &Value) {
    say!(
        "{} {} — {}",
        text(&status["pipeline"]),
        text(&status["version"]),
        text(&status["phase"])
    );
    say!("ScyllaDB at {}", list(&status["nodes"]));
    say!("Redpanda at {}", list(&status["brokers"]));
    let share = &status["membership"];
    if share.is_object() {
        say!("{}", describe_share(share));
    }
    say!("");
    print_health(&status["health"]);
    say!("");
    print_stages(&status["stages"]);
    say!("");
    super::shards::print(&super::shards::of(status));
}

/// What of the shards this instance has, where several share them.
fn describe_share(share: &Value) -> String {
    let trouble = match share["trouble"].as_str() {
        Some(trouble) => format!(" ({trouble})"),
        None => String::new(),
    };
    let owned = share["owned"].as_array().map_or(0, Vec::len);
    match (share["joined"].as_bool(), owned) {
        (Some(true), 0) => format!("shared: this instance has no shard, and stands by{trouble}"),
        (Some(true), _) => format!(
            "shared: this instance has the shards {}{trouble}",
            list(&share["owned"])
        ),
        _ => format!("shared: this instance has yet to join the group{trouble}"),
    }
}
