//! A real Apache Kafka on loopback for tests: fetched from its Maven artifacts, run in KRaft as one node or three,
//! ended by whoever started it. Nothing of the pipeline knows it, and it knows nothing of the pipeline.
//!
//! [`Cluster::start`] leaves processes that outlive the caller (`cargo xtask kafka start`), or, by
//! [`Spec::ends_with_us`], processes that the value ends when it is dropped (tests). Each node has besides its
//! plain listener some *relays*: listeners whose advertised address nobody listens on until a test does. What
//! binds such an address and passes everything on to the listener behind it can cut or silence a client's
//! connections to a real broker; to bind it is to own it, so tests of several processes share them.
//!
//! Java and Maven are looked for on the `PATH`.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The version that is fetched.
pub const VERSION: &str = "4.1.0";

/// Kafka is up in 5 s on two idle cores; a loaded machine takes its time.
const UP_WITHIN: Duration = Duration::from_secs(120);

/// A pom of these artifacts.
const POM: &str = r#"<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>penstock</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>
    {artifacts}
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.24.3</version></dependency>
  </dependencies>
</project>
"#;

/// What it takes for a broker that also says what it does.
const BROKER: [&str; 2] = ["kafka_2.13", "kafka-tools"];
/// … and for Kafka Connect.
const CONNECT: [&str; 2] = ["connect-runtime", "connect-json"];

const LOGGING: &str = "\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{HH:mm:ss.SSS} %p %m (%c{1})%n
rootLogger.level = info
rootLogger.appenderRef.out.ref = out
";

/// Whether Java and Maven are here; if not, which is missing.
///
/// # Errors
/// Names what was not found.
pub fn available() -> Result<()> {
    for (program, flag) in [("java", "-version"), ("mvn", "-version")] {
        let found = Command::new(program)
            .arg(flag)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        ensure!(
            found.is_ok_and(|status| status.success()),
            "{program} was not found"
        );
    }
    Ok(())
}

/// The folder with Kafka's jars below `dir`; fetched by Maven where they are not there yet (10 s, 54 MB).
///
/// # Errors
/// When Maven cannot be run, or fails.
pub fn jars(dir: &Path) -> Result<PathBuf> {
    fetch(dir, "kafka", &BROKER)
}

/// The folder with Kafka Connect's jars below `dir`, fetched as those of [`jars`]; `plugin.path` is for connectors.
///
/// # Errors
/// When Maven cannot be run, or fails.
pub fn connect_jars(dir: &Path) -> Result<PathBuf> {
    fetch(dir, "connect", &CONNECT)
}

fn fetch(dir: &Path, name: &str, artifacts: &[&str]) -> Result<PathBuf> {
    let jars = dir.join(format!("{name}-{VERSION}"));
    if jars.is_dir() {
        return Ok(jars);
    }
    // Aside, then renamed: two that fetch at once do not meet, and a fetch that was cut short leaves nothing.
    let aside = dir.join(format!(".fetching-{name}-{}", std::process::id()));
    let artifacts: String = artifacts
        .iter()
        .map(|artifact| {
            format!(
                "<dependency><groupId>org.apache.kafka</groupId><artifactId>{artifact}</artifactId>\
                 <version>{VERSION}</version></dependency>"
            )
        })
        .collect();
    fs::create_dir_all(&aside)?;
    fs::write(
        aside.join("pom.xml"),
        POM.replace("{artifacts}", &artifacts),
    )?;
    let output = Command::new("mvn")
        .args(["--quiet", "--batch-mode", "dependency:copy-dependencies"])
        .arg("-DoutputDirectory=jars")
        .current_dir(&aside)
        .stdin(Stdio::null())
        .output()
        .context("mvn could not be started")?;
    if !output.status.success() {
        bail!(
            "mvn ended with {}:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout)
        );
    }
    let renamed = fs::rename(aside.join("jars"), &jars);
    fs::remove_dir_all(&aside)?;
    if !jars.is_dir() {
        renamed.context("the jars could not be put in their place")?;
    }
    Ok(jars)
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The folder with the jars, see [`jars`].
    pub jars: PathBuf,
    /// Where the cluster's state goes: a folder a node, each with its configuration, log, data and pid.
    pub dir: PathBuf,
    /// 1 or 3.
    pub nodes: u16,
    /// The first node's port, the others' follow it; `None`: free ones.
    pub port: Option<u16>,
    /// The heap of a node, as Java writes it: `512m`.
    pub heap: String,
    /// How Java runs a node.
    pub java: Java,
    /// How many relays each node has.
    pub relays: u16,
    /// More lines of `server.properties`; a later line wins over an earlier one.
    pub properties: Vec<(String, String)>,
    /// Clients have to name themselves (SASL PLAIN): user and password of each. The first one may do anything;
    /// the others what ACLs allow. Empty: nobody is asked.
    pub users: Vec<(String, String)>,
    /// Listeners by TLS besides.
    pub secure: Option<Secure>,
    /// The nodes end with the value; else they outlive the process that started them.
    pub ends_with_us: bool,
}

/// Two more listeners on each node: one by TLS that takes clients with a certificate only, and one by TLS where clients
/// log in, by SCRAM, PLAIN or an unsigned token.
#[derive(Clone, Debug)]
pub struct Secure {
    /// A PEM file with the node's key and certificate.
    pub identity: PathBuf,
    /// A PEM file with the authorities of the clients' certificates.
    pub authorities: PathBuf,
    /// Who logs in, and with which password.
    pub users: Vec<(String, String)>,
}

/// How Java runs a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Java {
    /// Up soon and small, for tests: code is compiled once and quickly, and one thread collects garbage.
    #[default]
    Small,
    /// As Kafka's own `kafka-run-class.sh` has it: what runs often is compiled again, for a multiple of the speed. It takes a
    /// hundred thousand records to be warm.
    Served,
}

impl Java {
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Small => &["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"],
            Self::Served => &[
                "-server",
                "-XX:+UseG1GC",
                "-XX:MaxGCPauseMillis=20",
                "-XX:InitiatingHeapOccupancyPercent=35",
                "-XX:+ExplicitGCInvokesConcurrent",
            ],
        }
    }
}

impl Spec {
    fn java_options(&self) -> Vec<String> {
        let heap = format!("-Xmx{}", self.heap);
        let more = self
            .java
            .options()
            .iter()
            .map(|option| (*option).to_owned());
        std::iter::once(heap).chain(more).collect()
    }

    /// One node on a free port that ends with the value.
    pub fn one(jars: PathBuf, dir: PathBuf) -> Self {
        Self {
            jars,
            dir,
            nodes: 1,
            port: None,
            heap: "512m".into(),
            java: Java::Small,
            relays: 0,
            properties: Vec::new(),
            users: Vec::new(),
            secure: None,
            ends_with_us: true,
        }
    }
}

/// A running cluster, or one that ran.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    jars: PathBuf,
    java: Vec<String>,
    nodes: Vec<Node>,
    ends_with_us: bool,
}

#[derive(Debug)]
struct Node {
    dir: PathBuf,
    port: u16,
    /// Of the listeners of [`Secure`]: by certificate, and by login.
    secure: Option<[u16; 2]>,
}

/// Ports that were free a moment ago: held together, so that no two are the same.
fn free_ports(n: usize) -> Result<Vec<u16>> {
    let held: Vec<TcpListener> = (0..n)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<_, _>>()?;
    let ports = held.iter().map(|l| l.local_addr().map(|a| a.port()));
    Ok(ports.collect::<Result<_, _>>()?)
}

impl Cluster {
    /// Writes configurations, formats the storage, starts all nodes and waits until each serves.
    ///
    /// # Errors
    /// When a cluster runs from this folder already, a port is taken, or a node does not come up; its log is
    /// named.
    pub fn start(spec: &Spec) -> Result<Self> {
        ensure!(
            spec.nodes == 1 || spec.nodes == 3,
            "one node or three, not {}",
            spec.nodes
        );
        if let Some(running) = Self::find(&spec.dir)?
            && (0..running.nodes.len()).any(|n| running.runs(n))
        {
            bail!(
                "a cluster runs from {} already: {}",
                spec.dir.display(),
                running.brokers()
            );
        }
        if spec.dir.exists() {
            fs::remove_dir_all(&spec.dir)?;
        }
        fs::create_dir_all(&spec.dir)?;
        let nodes = usize::from(spec.nodes);
        // For each node: a listener, a controller, and two for each relay: what is behind it and what is told.
        let secure = if spec.secure.is_some() { 2 } else { 0 };
        let each = 2 + 2 * usize::from(spec.relays) + secure;
        let mut ports = free_ports(nodes * each)?;
        let mut take = || ports.pop().context("a port for each");
        let mut plain = Vec::new();
        let mut controllers = Vec::new();
        for n in 0..spec.nodes {
            let free = take()?;
            plain.push(spec.port.map_or(free, |first| first + n));
            controllers.push(take()?);
        }
        let voters: Vec<String> = (1..)
            .zip(&controllers)
            .map(|(id, port)| format!("{id}@127.0.0.1:{port}"))
            .collect();
        let id = storage_tool(&spec.jars, &["random-uuid"])?;
        let id = id.trim();
        let mut relays: Vec<Vec<String>> = vec![Vec::new(); usize::from(spec.relays)];
        let mut made = Vec::new();
        let open = match spec.users.is_empty() {
            true => "PLAINTEXT",
            false => "SASL_PLAINTEXT",
        };
        for n in 0..nodes {
            let dir = spec.dir.join(format!("node-{}", n + 1));
            fs::create_dir_all(&dir)?;
            let mut listeners = vec![
                ("PLAIN".to_owned(), plain[n], Some(plain[n]), open),
                ("CONTROLLER".to_owned(), controllers[n], None, "PLAINTEXT"),
            ];
            let mut secure = None;
            if spec.secure.is_some() {
                let [certified, login] = [take()?, take()?];
                secure = Some([certified, login]);
                listeners.push(("CERTIFIED".to_owned(), certified, Some(certified), "SSL"));
                listeners.push(("LOGIN".to_owned(), login, Some(login), "SASL_SSL"));
            }
            // Brokers among themselves need not name themselves: they would have to in every test's ACLs.
            for (r, relay) in relays.iter_mut().enumerate() {
                let (back, front) = (take()?, take()?);
                let name = format!("RELAY{r}");
                listeners.push((name, back, Some(front), open));
                relay.push(format!("{front}/{back}"));
            }
            fs::write(dir.join("log4j2.properties"), LOGGING)?;
            let text = properties(n + 1, &dir, &listeners, &voters, spec);
            fs::write(dir.join("server.properties"), text)?;
            let config = dir.join("server.properties");
            let config = config.to_str().context("a path that is UTF-8")?;
            let scram: Vec<String> = spec
                .secure
                .iter()
                .flat_map(|secure| &secure.users)
                .flat_map(|(name, password)| {
                    ["256", "512"]
                        .map(|bits| format!("SCRAM-SHA-{bits}=[name={name},password={password}]"))
                })
                .collect();
            let scram = scram.iter().flat_map(|user| ["--add-scram", user]);
            let format = ["format", "-t", id, "-c", config].into_iter().chain(scram);
            storage_tool(&spec.jars, &format.collect::<Vec<_>>())?;
            made.push(Node {
                dir,
                port: plain[n],
                secure,
            });
        }
        let relays: Vec<String> = relays.iter().map(|nodes| nodes.join("+")).collect();
        fs::write(spec.dir.join("relays"), relays.join(","))?;
        fs::write(spec.dir.join("java"), spec.java_options().join("\n"))?;
        let jars = spec.jars.to_str().context("a path that is UTF-8")?;
        fs::write(spec.dir.join("jars"), jars)?;
        let plain: Vec<String> = plain.iter().map(u16::to_string).collect();
        // Last: a folder that has it is a cluster.
        fs::write(spec.dir.join("ports"), plain.join(","))?;
        let cluster = Self {
            dir: spec.dir.clone(),
            jars: spec.jars.clone(),
            java: spec.java_options(),
            nodes: made,
            ends_with_us: spec.ends_with_us,
        };
        for n in 0..nodes {
            cluster.launch(n)?;
        }
        for n in 0..nodes {
            cluster.await_up(n)?;
        }
        Ok(cluster)
    }

    /// The cluster whose state is in this folder, running or not.
    ///
    /// # Errors
    /// When the folder has something else.
    pub fn find(dir: &Path) -> Result<Option<Self>> {
        let Ok(ports) = fs::read_to_string(dir.join("ports")) else {
            return Ok(None);
        };
        let node = |(n, port): (usize, &str)| -> Result<Node> {
            Ok(Node {
                dir: dir.join(format!("node-{}", n + 1)),
                port: port.parse().context("a port")?,
                secure: None,
            })
        };
        Ok(Some(Self {
            dir: dir.to_owned(),
            jars: fs::read_to_string(dir.join("jars"))?.into(),
            java: fs::read_to_string(dir.join("java"))?
                .lines()
                .map(str::to_owned)
                .collect(),
            nodes: ports
                .split(',')
                .enumerate()
                .map(node)
                .collect::<Result<_>>()?,
            ends_with_us: false,
        }))
    }

    /// What goes into `sink.brokers`, joined by commas.
    pub fn brokers(&self) -> String {
        let all: Vec<String> = self
            .nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.port))
            .collect();
        all.join(",")
    }

    /// Where clients come by TLS, with a certificate and to log in; of a cluster that this value started with them.
    pub fn secure(&self) -> Option<(String, String)> {
        let ports: Option<Vec<[u16; 2]>> = self.nodes.iter().map(|node| node.secure).collect();
        let ports = ports?;
        let all = |which: usize| {
            let all: Vec<String> = ports
                .iter()
                .map(|ports| format!("localhost:{}", ports[which]))
                .collect();
            all.join(",")
        };
        Some((all(0), all(1)))
    }

    /// The relays, joined by commas: each `front/back`, ports of one node, and those of more nodes joined by `+`.
    /// A client that is given `front` as its broker is told of no other address.
    ///
    /// # Errors
    /// When the folder is gone.
    pub fn relays(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.join("relays"))?)
    }

    /// Runs one of Kafka's tools by its class, see [`tool`].
    ///
    /// # Errors
    /// When it fails: with what it said.
    pub fn tool(&self, class: &str, args: &[&str]) -> Result<String> {
        tool(&self.jars, class, args)
    }

    /// How many nodes there are.
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// Where a node (from 0) writes what it does.
    pub fn log(&self, n: usize) -> PathBuf {
        self.nodes[n].dir.join("log")
    }

    /// The process of a node, if it runs: its pid and, against a pid that is another's by now, its command line.
    pub fn pid(&self, n: usize) -> Option<u32> {
        let dir = &self.nodes[n].dir;
        let pid: u32 = fs::read_to_string(dir.join("pid")).ok()?.parse().ok()?;
        let output = Command::new("ps")
            .args(["-o", "stat=,args=", "-p", &pid.to_string()])
            .output()
            .ok()?;
        let line = String::from_utf8_lossy(&output.stdout);
        let config = dir.join("server.properties");
        // A zombie has ended; it only waits for its parent.
        let ours = line.contains(config.to_str()?) && !line.trim_start().starts_with('Z');
        ours.then_some(pid)
    }

    /// Whether a node's process is there.
    pub fn runs(&self, n: usize) -> bool {
        self.pid(n).is_some()
    }

    /// Starts a node (from 0) that was ended, with what it has stored, and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&self, n: usize) -> Result<()> {
        self.launch(n)?;
        self.await_up(n)
    }

    /// Ends a node: by SIGTERM in good order, by SIGKILL at once; returns when it is gone.
    ///
    /// # Errors
    /// When it does not go away.
    pub fn end(&self, n: usize, signal: &str) -> Result<()> {
        self.signal(n, signal)?;
        let (begun, mut insisted) = (Instant::now(), false);
        while self.runs(n) {
            // A controlled shutdown waits for other nodes, which may be gone as well.
            if begun.elapsed() > Duration::from_secs(10) && !insisted {
                self.signal(n, "-KILL")?;
                insisted = true;
            }
            ensure!(
                begun.elapsed() < UP_WITHIN,
                "node {} does not end; see {}",
                n + 1,
                self.log(n).display()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Sends a node a signal (`-STOP`, `-CONT`, …); nothing happens where it does not run.
    ///
    /// # Errors
    /// When `kill` cannot be run.
    pub fn signal(&self, n: usize, signal: &str) -> Result<()> {
        if let Some(pid) = self.pid(n) {
            // It may have ended meanwhile.
            Command::new("kill")
                .args([signal, &pid.to_string()])
                .stderr(Stdio::null())
                .status()
                .context("kill could not be run")?;
        }
        Ok(())
    }

    /// Ends every node that runs; what they stored stays. How many did.
    ///
    /// # Errors
    /// When one does not go away.
    pub fn stop(&self) -> Result<usize> {
        let running: Vec<usize> = (0..self.nodes.len()).filter(|n| self.runs(*n)).collect();
        for &n in &running {
            self.signal(n, "-TERM")?;
        }
        for &n in &running {
            self.end(n, "-TERM")?;
        }
        Ok(running.len())
    }

    fn launch(&self, n: usize) -> Result<()> {
        let node = &self.nodes[n];
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(n))?;
        let mut java = Command::new("java");
        java.args(&self.java)
            .arg(format!(
                "-Dlog4j2.configurationFile={}",
                node.dir.join("log4j2.properties").display()
            ))
            .arg("-cp")
            .arg(self.jars.join("*"))
            .arg("kafka.Kafka")
            .arg(node.dir.join("server.properties"))
            .current_dir(&node.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        #[cfg(unix)]
        if !self.ends_with_us {
            use std::os::unix::process::CommandExt;
            // A terminal's Ctrl-C is not for it: it outlives the command that started it.
            java.process_group(0);
        }
        let mut child = java.spawn().context("java could not be started")?;
        fs::write(node.dir.join("pid"), child.id().to_string())?;
        // Somebody has to wait for it, or it stays a zombie for as long as we live.
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// Waits until a node serves: until it says that it started, since it was last launched.
    fn await_up(&self, n: usize) -> Result<()> {
        let node = &self.nodes[n];
        let begun = Instant::now();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, node.port));
        loop {
            let text = fs::read_to_string(self.log(n)).unwrap_or_default();
            let since = text.rfind("KafkaConfig values:").unwrap_or(0);
            if text[since..].contains("Kafka Server started") && TcpStream::connect(address).is_ok()
            {
                return Ok(());
            }
            ensure!(
                self.runs(n),
                "node {} ended while it started; see {}",
                n + 1,
                self.log(n).display()
            );
            ensure!(
                begun.elapsed() < UP_WITHIN,
                "node {} is not up after {UP_WITHIN:?}; see {}",
                n + 1,
                self.log(n).display()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.ends_with_us {
            for n in 0..self.nodes.len() {
                // Nobody needs what it stored; there is nobody to tell of a failure.
                self.end(n, "-KILL").ok();
            }
        }
    }
}

/// A listener: its name, port, the port that clients are told, and what is spoken there.
type Listener = (String, u16, Option<u16>, &'static str);

fn properties(
    id: usize,
    dir: &Path,
    listeners: &[Listener],
    voters: &[String],
    spec: &Spec,
) -> String {
    let join = |parts: Vec<String>| parts.join(",");
    let all = listeners.iter();
    // Nodes speak to each other on a listener of their own kind when clients have to name themselves.
    let told = |(name, _, told, spoken): &Listener| {
        // A certificate is for a name.
        let host = if spoken.ends_with("SSL") {
            "localhost"
        } else {
            "127.0.0.1"
        };
        told.map(|told| format!("{name}://{host}:{told}"))
    };
    let protocol = |(name, _, _, spoken): &Listener| format!("{name}:{spoken}");
    let copies = spec.nodes.to_string();
    let in_sync = if spec.nodes == 1 { "1" } else { "2" };
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut line = |key: &str, value: &str| lines.push((key.to_owned(), value.to_owned()));
    line("process.roles", "broker,controller");
    line("node.id", &id.to_string());
    line("controller.quorum.voters", &voters.join(","));
    line("controller.listener.names", "CONTROLLER");
    line("inter.broker.listener.name", "PLAIN");
    line(
        "listeners",
        &join(
            all.clone()
                .map(|(name, port, ..)| format!("{name}://127.0.0.1:{port}"))
                .collect(),
        ),
    );
    line(
        "advertised.listeners",
        &join(all.clone().filter_map(told).collect()),
    );
    line(
        "listener.security.protocol.map",
        &join(all.clone().map(protocol).collect()),
    );
    line("log.dirs", &dir.join("data").display().to_string());
    for topic in [
        "offsets.topic",
        "transaction.state.log",
        "share.coordinator.state.topic",
    ] {
        line(&format!("{topic}.replication.factor"), &copies);
    }
    line("transaction.state.log.min.isr", in_sync);
    line("share.coordinator.state.topic.min.isr", in_sync);
    line("default.replication.factor", &copies);
    // The default waits 3 s for a group's first members; a test of that sets it.
    line("group.initial.rebalance.delay.ms", "0");
    line("min.insync.replicas", in_sync);
    // Few of them: a node is up sooner, and tests have few groups and transactions.
    line("offsets.topic.num.partitions", "4");
    line("transaction.state.log.num.partitions", "4");
    line("num.network.threads", "2");
    line("num.io.threads", "4");
    line("log.cleaner.dedupe.buffer.size", "16777216");
    if let Some((first, _)) = spec.users.first() {
        let users: Vec<String> = spec
            .users
            .iter()
            .map(|(user, password)| format!("user_{user}=\"{password}\""))
            .collect();
        let (user, password) = &spec.users[0];
        for (name, ..) in all.filter(|(.., spoken)| *spoken == "SASL_PLAINTEXT") {
            line(
                &format!(
                    "listener.name.{}.plain.sasl.jaas.config",
                    name.to_lowercase()
                ),
                &format!(
                    "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"{user}\" \
                     password=\"{password}\" {};",
                    users.join(" ")
                ),
            );
            line(
                &format!(
                    "listener.name.{}.sasl.enabled.mechanisms",
                    name.to_lowercase()
                ),
                "PLAIN",
            );
        }
        line("sasl.mechanism.inter.broker.protocol", "PLAIN");
        line("sasl.enabled.mechanisms", "PLAIN");
        line(
            "authorizer.class.name",
            "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        );
        line("super.users", &format!("User:{first};User:ANONYMOUS"));
    }
    if let Some(secure) = &spec.secure {
        lines.extend(secure_lines(secure));
    }
    for (key, value) in &spec.properties {
        lines.retain(|(k, _)| k != key);
        lines.push((key.clone(), value.clone()));
    }
    lines
        .iter()
        .map(|(key, value)| format!("{key}={value}\n"))
        .collect()
}

fn secure_lines(secure: &Secure) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    let mut line = |key: String, value: String| lines.push((key, value));
    for (listener, wants) in [("certified", "required"), ("login", "none")] {
        let of = |key: &str| format!("listener.name.{listener}.ssl.{key}");
        line(of("keystore.type"), "PEM".into());
        line(
            of("keystore.location"),
            secure.identity.display().to_string(),
        );
        line(of("truststore.type"), "PEM".into());
        line(
            of("truststore.location"),
            secure.authorities.display().to_string(),
        );
        line(of("client.auth"), wants.into());
    }
    let of = |key: &str| format!("listener.name.login.{key}");
    let module = "org.apache.kafka.common.security";
    line(
        of("sasl.enabled.mechanisms"),
        "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN,OAUTHBEARER".into(),
    );
    for bits in ["256", "512"] {
        let login = format!("{module}.scram.ScramLoginModule required;");
        line(of(&format!("scram-sha-{bits}.sasl.jaas.config")), login);
    }
    let users: Vec<String> = secure
        .users
        .iter()
        .map(|(name, password)| format!("user_{name}=\"{password}\""))
        .collect();
    let plain = format!(
        "{module}.plain.PlainLoginModule required {};",
        users.join(" ")
    );
    line(of("plain.sasl.jaas.config"), plain);
    let bearer = format!(
        "{module}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"node\";"
    );
    line(of("oauthbearer.sasl.jaas.config"), bearer);
    lines
}

/// Runs one of Kafka's tools by its class; what it prints.
///
/// # Errors
/// When it fails: with what it said.
pub fn tool(jars: &Path, class: &str, args: &[&str]) -> Result<String> {
    let output = Command::new("java")
        .args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
        .arg("-cp")
        .arg(jars.join("*"))
        .arg(class)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("java could not be started")?;
    if !output.status.success() {
        bail!(
            "Kafka's {class} ended with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn storage_tool(jars: &Path, args: &[&str]) -> Result<String> {
    tool(jars, "kafka.tools.StorageTool", args)
}
