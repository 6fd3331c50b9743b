//! One cell: a fault, a moment, and what came of it.

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::load::Load;
use crate::scene::{Fault, Hosts, Scene};
use testkit::machine::{Span, free_port};
use testkit::process::{LONG, Running};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Moment {
    BeforeStart,
    UnderLoad,
    DuringDrain,
    DuringReload,
}

impl Moment {
    pub(crate) const ALL: &'static [Self] = &[
        Self::BeforeStart,
        Self::UnderLoad,
        Self::DuringDrain,
        Self::DuringReload,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BeforeStart => "before-start",
            Self::UnderLoad => "under-load",
            Self::DuringDrain => "during-drain",
            Self::DuringReload => "during-reload",
        }
    }
}

/// Everything is back by then, at the defaults: a breaker that opened stays so for 30 s, and pauses grow to that.
const BACK_WITHIN: Duration = Duration::from_secs(75);
/// … and this soon where what was wrong is asked about now and then meanwhile, or tells by itself that it is well: all but a
/// quota, by which whole transactions were held up, a broker that starts, and its election of leaders.
const BACK_SOON: Duration = Duration::from_secs(10);

fn back_within(fault: Fault) -> Duration {
    match fault {
        Fault::Quota
        | Fault::BrokerRestarted
        | Fault::CoordinatorMoved
        | Fault::NotEnoughReplicas => BACK_WITHIN,
        _ => BACK_SOON,
    }
}

/// The drain's own deadline in these cells, and some for a busy machine.
const DRAINED_WITHIN: Duration = Duration::from_secs(20);
/// Nobody is left in the dark for longer: by then health or the log says why nothing arrives.
const SILENT_FOR: Duration = Duration::from_secs(4);
/// What the process may grow by while it waits: what may be in flight, and the driver's own queues.
const MOST_GROWN: u64 = 64 << 20;
/// The same from the start on, where it grows by what it is made of.
const MOST_AT_START: u64 = 192 << 20;

/// How long things take.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    /// The fault.
    pub(crate) lasts: Duration,
    /// An open breaker; `None`: the default.
    pub(crate) open_for: Option<&'static str>,
}

pub(crate) struct Cell {
    pub(crate) fault: Fault,
    pub(crate) moment: Moment,
    outcome: Result<String>,
    written: usize,
    lost: usize,
    repeated: usize,
    disordered: usize,
    grown: u64,
    /// What health, or else the log, said first while the fault lasted, and how long after it began.
    said: Option<(Duration, String)>,
    /// For how long nothing arrived and nothing was said.
    silent: Duration,
    /// What the machine has held up while the fault lasted.
    held_up: Duration,
    log: String,
}

impl Cell {
    pub(crate) const HEAD: &'static str = "fault                    moment         outcome                          written  lost repeated disorder  memory  said meanwhile";

    pub(crate) fn holds(&self) -> bool {
        let most = match self.moment {
            Moment::BeforeStart => MOST_AT_START,
            _ => MOST_GROWN,
        };
        self.outcome.is_ok()
            && self.lost == 0
            && self.disordered == 0
            && self.grown < most
            // Where records go on arriving, nothing waits, and nothing has to be said.
            && self.silent < SILENT_FOR + self.held_up
    }

    /// What was said first, or why nothing had to be.
    fn saying(&self) -> String {
        match &self.said {
            Some((after, said)) => format!("after {after:.1?}: {said}"),
            None if self.silent < SILENT_FOR + self.held_up => {
                format!("nothing: at most {:.1?} without a record", self.silent)
            }
            None => format!("NOTHING for {:.1?} without a record", self.silent),
        }
    }

    /// The end of the log, for a cell that does not hold.
    pub(crate) fn tale(&self) -> String {
        let lines: Vec<&str> = self.log.lines().collect();
        let from = lines.len().saturating_sub(60);
        let why = self.outcome.as_ref().err();
        let why = why.map_or_else(String::new, |why| format!("{why:#}\n"));
        why + &lines[from..].join("\n")
    }

    pub(crate) async fn run(fault: Fault, moment: Moment, hosts: &Hosts, times: Times) -> Self {
        let mut cell = Self {
            fault,
            moment,
            outcome: Ok(String::new()),
            written: 0,
            lost: 0,
            repeated: 0,
            disordered: 0,
            grown: 0,
            said: None,
            silent: Duration::ZERO,
            held_up: Duration::ZERO,
            log: String::new(),
        };
        match Scene::new(fault, hosts, times.open_for).await {
            Err(missing) => {
                cell.outcome = Ok(format!("left out: {missing:#}"));
            }
            Ok(scene) => {
                let mut load = Load::new(&scene.world, &scene.follow);
                let mut act = Act {
                    scene: &scene,
                    running: None,
                    round: 0,
                    port: free_port(),
                    lasts: times.lasts,
                    said: None,
                    silent: Duration::ZERO,
                    held_up: Duration::ZERO,
                    grown: 0,
                };
                cell.outcome = act.play(moment, &mut load).await;
                load.end().await;
                cell.written = load.written();
                let (arrived, repeated) = load.arrived();
                cell.lost = cell.written - arrived;
                cell.repeated = repeated;
                cell.disordered = load.disordered();
                cell.grown = act.grown;
                cell.said = act.said.take();
                cell.silent = act.silent;
                cell.held_up = act.held_up;
                cell.log = act.running.as_ref().map(Running::text).unwrap_or_default();
            }
        }
        cell
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut outcome = match &self.outcome {
            Ok(outcome) => outcome.clone(),
            Err(error) => format!("FAILS: {error:#}"),
        };
        if self.outcome.is_ok() && !self.holds() {
            outcome = format!("FAILS: {outcome}");
        }
        let short = |text: &str, n| -> String {
            text.lines().next().unwrap_or("").chars().take(n).collect()
        };
        write!(
            f,
            "{:<24} {:<14} {:<32} {:>7} {:>5} {:>8} {:>8} {:>4} MiB  {}",
            self.fault.name(),
            self.moment.name(),
            short(&outcome, 120),
            self.written,
            self.lost,
            self.repeated,
            self.disordered,
            self.grown >> 20,
            short(&self.saying(), 110),
        )
    }
}

/// Resident memory in bytes; `None`: the process has just ended.
fn resident(running: &Running) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.id())).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

/// The first line of a log that warns; what is said of the configuration is said without any fault.
fn warning(log: &str) -> Option<String> {
    log.lines()
        .filter(|line| !line.contains("safety_interval is short"))
        .find_map(|line| {
            let at = line.find(" WARN ").or_else(|| line.find(" ERROR "))?;
            Some(format!("log:{}", &line[at..]))
        })
}

/// When a fault began, and how much of the log was there by then.
#[derive(Clone, Copy)]
struct Fallen {
    at: Instant,
    told: usize,
}

/// For how long nothing has arrived.
struct Stands {
    since: Fallen,
    arrived: usize,
    last: Instant,
}

impl Stands {
    fn new(load: &Load, since: Fallen) -> Self {
        Self {
            since,
            arrived: load.arrived().0,
            last: since.at,
        }
    }

    fn look(&mut self, load: &Load) -> Duration {
        let arrived = load.arrived().0;
        let nothing_waits = arrived >= load.written();
        if arrived > self.arrived || nothing_waits {
            (self.arrived, self.last) = (arrived, Instant::now());
        }
        self.last.elapsed()
    }
}

/// What a cell does.
struct Act<'a> {
    scene: &'a Scene<'a>,
    running: Option<Running>,
    round: u32,
    port: u16,
    lasts: Duration,
    said: Option<(Duration, String)>,
    silent: Duration,
    held_up: Duration,
    grown: u64,
}

impl Act<'_> {
    async fn play(&mut self, moment: Moment, load: &mut Load) -> Result<String> {
        match moment {
            Moment::BeforeStart => self.before_start(load).await,
            Moment::UnderLoad => self.under_load(load).await,
            Moment::DuringDrain => self.during_drain(load).await,
            Moment::DuringReload => self.during_reload(load).await,
        }
    }

    fn start(&mut self) {
        let world = &self.scene.world;
        let mut command = Command::new(env!("CARGO_BIN_EXE_penstock"));
        command
            .args(["run", "--quiet", "--config"])
            .arg(world.config())
            .args(world.flags())
            .arg(format!("--set=admin.listen=127.0.0.1:{}", self.port));
        let log = self.scene.log.clone();
        let log = log.unwrap_or_else(|| world.dir.path().join(format!("log-{}", self.round)));
        self.round += 1;
        self.running = Some(Running::spawn(
            &world.config(),
            &log,
            world.flags(),
            command,
        ));
    }

    fn running(&mut self) -> &mut Running {
        self.running.as_mut().expect("it was started")
    }

    fn alive(&mut self) -> Result<()> {
        if let Some(status) = self.running().ended() {
            let last = self.running().text();
            let last = last.lines().last().unwrap_or_default().to_owned();
            bail!("ended by itself with {status}: {last}");
        }
        Ok(())
    }

    /// The fault lasts: nothing ends, memory stays, and somebody says why nothing goes on.
    async fn hold(&mut self, load: &Load, since: Fallen) -> Result<()> {
        let (begun, span) = (Instant::now(), Span::of(self.running()));
        let before = resident(self.running()).unwrap_or_default();
        let mut stands = Stands::new(load, since);
        while begun.elapsed() < self.lasts {
            self.alive()?;
            let now = resident(self.running()).unwrap_or_default();
            self.grown = self.grown.max(now.saturating_sub(before));
            self.listen(load, &mut stands).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.held_up = span.held_up();
        Ok(())
    }

    /// Looks for a reason in health and in the log, and for how long there was none and nothing arrived.
    async fn listen(&mut self, load: &Load, stands: &mut Stands) {
        if self.said.is_some() {
            return;
        }
        let health = self.complaint().await;
        let reason = health.or_else(|| {
            let text = self.running().text();
            let since = text.get(stands.since.told.min(text.len())..);
            warning(since.unwrap_or_default())
        });
        match reason {
            Some(reason) => self.said = Some((stands.since.at.elapsed(), reason)),
            None => self.silent = self.silent.max(stands.look(load)),
        }
    }

    /// What health says is wrong.
    async fn complaint(&self) -> Option<String> {
        let url = format!("http://127.0.0.1:{}/health", self.port);
        let answer = reqwest::get(url).await.ok()?;
        let health: serde_json::Value = serde_json::from_str(&answer.text().await.ok()?).ok()?;
        health["components"]
            .as_array()?
            .iter()
            .find_map(|component| {
                let status = component["status"].as_str()?;
                let wrong = status == "degraded" || status == "unhealthy";
                wrong.then(|| {
                    format!(
                        "{} {status}: {}",
                        component["name"].as_str().unwrap_or_default(),
                        component["reason"].as_str().unwrap_or_default()
                    )
                })
            })
    }

    async fn flows(&mut self, load: &mut Load) -> Result<()> {
        self.start();
        load.start(&self.scene.world);
        ensure!(
            load.arrive(Some(80), LONG).await,
            "nothing arrived before the fault"
        );
        Ok(())
    }

    async fn fail(&mut self, load: &mut Load) -> Result<Fallen> {
        if self.scene.fault().takes_the_log() {
            load.pause().await;
            ensure!(
                load.all_arrived(LONG).await,
                "not all arrived before the fault"
            );
        }
        let told = self.running.as_ref().map_or(0, |r| r.text().len());
        self.scene.fail(load).await?;
        let at = Instant::now();
        Ok(Fallen { at, told })
    }

    async fn mend(&mut self, load: &Load) -> Result<Instant> {
        self.scene.mend().await?;
        load.resume();
        Ok(Instant::now())
    }

    /// Until everything has arrived; how long that took.
    async fn back(&mut self, load: &mut Load, since: Instant) -> Result<Duration> {
        let (within, span) = (back_within(self.scene.fault()), Span::of(self.running()));
        let deadline = |span: &Span| since + span.at_most(within);
        let (at, mut first) = (load.arrived().0, None);
        while first.is_none() {
            ensure!(
                Instant::now() < deadline(&span),
                "nothing goes on {within:?} after its end"
            );
            self.alive()?;
            if load.arrived().0 > at {
                first = Some(since.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        load.end().await;
        while !load.all_arrived(Duration::from_millis(100)).await {
            self.alive()?;
            ensure!(
                Instant::now() < deadline(&span) + LONG,
                "{} of {} arrived {:.0?} after its end",
                load.arrived().0,
                load.written(),
                since.elapsed()
            );
        }
        Ok(first.unwrap_or_default())
    }

    /// Asks it to stop; its exit code. `heard`: what it says meanwhile counts.
    async fn stop(&mut self, mut heard: Option<(&Load, Stands)>) -> Result<i32> {
        let asked = Instant::now();
        self.running().signal("-TERM");
        loop {
            if let Some((load, stands)) = &mut heard {
                self.listen(load, stands).await;
            }
            if let Some(status) = self.running().ended() {
                let code = status.code();
                return code.ok_or_else(|| anyhow::anyhow!("killed: {status}"));
            }
            ensure!(
                asked.elapsed() < DRAINED_WITHIN,
                "no end {DRAINED_WITHIN:?} after SIGTERM"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stop_well(&mut self) -> Result<()> {
        let code = self.stop(None).await?;
        ensure!(code == 0, "the last stop ended with {code}");
        Ok(())
    }

    async fn before_start(&mut self, load: &mut Load) -> Result<String> {
        self.fail(load).await?;
        self.start();
        load.start(&self.scene.world);
        let at = Instant::now();
        self.hold(load, Fallen { at, told: 0 }).await?;
        let mended = self.mend(load).await?;
        let back = self.back(load, mended).await?;
        self.stop_well().await?;
        Ok(format!("went on after {back:.1?}"))
    }

    async fn under_load(&mut self, load: &mut Load) -> Result<String> {
        self.flows(load).await?;
        let since = self.fail(load).await?;
        self.hold(load, since).await?;
        let mended = self.mend(load).await?;
        let back = self.back(load, mended).await?;
        self.stop_well().await?;
        Ok(format!("went on after {back:.1?}"))
    }

    async fn during_drain(&mut self, load: &mut Load) -> Result<String> {
        self.flows(load).await?;
        let since = self.fail(load).await?;
        // What arrives while the writer ends is no silence.
        let stands = Stands::new(load, since);
        tokio::time::sleep(Duration::from_millis(300)).await;
        load.end().await;
        let code = self.stop(Some((load, stands))).await?;
        ensure!(code == 0 || code == 75, "the drain ended with {code}");
        let mended = self.mend(load).await?;
        self.start();
        load.start(&self.scene.world);
        self.back(load, mended).await?;
        self.stop_well().await?;
        Ok(format!("exit {code}, made good"))
    }

    async fn during_reload(&mut self, load: &mut Load) -> Result<String> {
        self.flows(load).await?;
        let since = self.fail(load).await?;
        let world = &self.scene.world;
        let text = std::fs::read_to_string(world.config())?;
        // One key that needs a rebuild, whatever it says.
        world.save(&text.replace("[pipeline]", "[pipeline]\nsession_timeout = \"11s\""));
        self.hold(load, since).await?;
        let mended = self.mend(load).await?;
        let back = self.back(load, mended).await?;
        let deadline = Instant::now() + LONG;
        while !self.in_force().await {
            self.alive()?;
            ensure!(
                Instant::now() < deadline,
                "the reload is not in force {LONG:?} after its end"
            );
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        self.stop_well().await?;
        Ok(format!("went on after {back:.1?}, in force"))
    }

    /// Asks for the reload again; whether the edited file is what runs.
    async fn in_force(&self) -> bool {
        let at = |path: &str| format!("http://127.0.0.1:{}{path}", self.port);
        let client = reqwest::Client::new();
        // Whatever it answers: what is in force is what counts.
        client.post(at("/-/reload")).send().await.ok();
        let Ok(answer) = client.get(at("/config")).send().await else {
            return false;
        };
        let text = answer.text().await.unwrap_or_default();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        config["complaint"].is_null() && text.contains("11s")
    }
}
