//! The faults, what they need, and how each is brought about and mended.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kafka_node::Cluster as Kafka;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use scylla_double::{Action, Fault as Injected, Operation};

use crate::load::{Follow, Load};
use testkit::broker::{Cluster, Flow, Valve};
use testkit::process::{Setup, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    MissingTopic,
    Authorization,
    Quota,
    BrokerAway,
    BrokerRestarted,
    CoordinatorMoved,
    NotEnoughReplicas,
    ScyllaAway,
    ScyllaUnavailable,
    ScyllaOverloaded,
    ScyllaAuthentication,
    TableDropped,
    CdcOff,
    DiskFull,
}

/// Where a cell takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// On the broker that others use as well.
    Shared,
    /// On a Kafka node of its own, whose users need rights and have quotas.
    Own,
    /// On three nodes of its own.
    Three,
}

impl Fault {
    pub(crate) const ALL: &'static [Self] = &[
        Self::MissingTopic,
        Self::Authorization,
        Self::Quota,
        Self::BrokerAway,
        Self::BrokerRestarted,
        Self::CoordinatorMoved,
        Self::NotEnoughReplicas,
        Self::ScyllaAway,
        Self::ScyllaUnavailable,
        Self::ScyllaOverloaded,
        Self::ScyllaAuthentication,
        Self::TableDropped,
        Self::CdcOff,
        Self::DiskFull,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MissingTopic => "missing-topic",
            Self::Authorization => "authorization",
            Self::Quota => "quota",
            Self::BrokerAway => "broker-away",
            Self::BrokerRestarted => "broker-restarted",
            Self::CoordinatorMoved => "coordinator-moved",
            Self::NotEnoughReplicas => "not-enough-replicas",
            Self::ScyllaAway => "scylla-away",
            Self::ScyllaUnavailable => "scylla-unavailable",
            Self::ScyllaOverloaded => "scylla-overloaded",
            Self::ScyllaAuthentication => "scylla-authentication",
            Self::TableDropped => "table-dropped",
            Self::CdcOff => "cdc-off",
            Self::DiskFull => "disk-full",
        }
    }

    pub(crate) fn host(self) -> Host {
        match self {
            // Others' brokers may make a topic whenever one is asked about.
            Self::MissingTopic | Self::Authorization | Self::Quota | Self::BrokerRestarted => {
                Host::Own
            }
            // A topic of one replica is never short of any: the brokers ask for no more than it has (KIP-966).
            Self::CoordinatorMoved | Self::NotEnoughReplicas => Host::Three,
            _ => Host::Shared,
        }
    }

    /// Part of the short form: what needs no three nodes, which two cores take long to start, is back within seconds,
    /// and holds. The long form shows the rest.
    pub(crate) fn is_quick(self) -> bool {
        matches!(
            self,
            Self::MissingTopic
                | Self::Authorization
                | Self::BrokerAway
                | Self::BrokerRestarted
                | Self::Quota
                | Self::ScyllaAway
                | Self::ScyllaOverloaded
                | Self::DiskFull
        )
    }

    /// What is written while it lasts is gone by definition.
    pub(crate) fn takes_the_log(self) -> bool {
        matches!(self, Self::TableDropped | Self::CdcOff)
    }
}

const ADMIN: &str = "admin";
const PASSWORD: &str = "tiger";
/// One for each cell of a node, so that what one is refused is not another's.
const USERS: usize = 24;

/// Where cells take place: the shared broker, or nodes of their own.
pub(crate) struct Hosts {
    own: Option<Own>,
}

struct Own {
    kafka: Kafka,
    /// A file with the administrator's properties, for Kafka's own tools.
    admin: PathBuf,
    users: std::sync::atomic::AtomicUsize,
    _dir: tempfile::TempDir,
}

impl Hosts {
    pub(crate) fn find() -> Self {
        Self { own: None }
    }

    /// Starts what a host needs; an error says what is missing.
    pub(crate) fn start(&self, host: Host) -> Result<Self> {
        if std::env::var_os("PENSTOCK_TEST_BROKERS").is_none() {
            bail!("PENSTOCK_TEST_BROKERS names no broker, so no Kafka is started either");
        }
        kafka_node::available()?;
        let state = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../kafka");
        std::fs::create_dir_all(&state)?;
        let dir = tempfile::tempdir()?;
        let mut spec = kafka_node::Spec::one(kafka_node::jars(&state)?, dir.path().join("kafka"));
        if host == Host::Three {
            spec.nodes = 3;
        }
        spec.properties = vec![("auto.create.topics.enable".into(), "false".into())];
        let user = |name: String| (name, PASSWORD.to_owned());
        let names = (0..USERS).map(|n| format!("p{n}"));
        spec.users = std::iter::once(ADMIN.to_owned())
            .chain(names)
            .map(user)
            .collect();
        let admin = dir.path().join("admin.properties");
        let login = format!(
            "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.jaas.config=\
             org.apache.kafka.common.security.plain.PlainLoginModule required username=\"{ADMIN}\" \
             password=\"{PASSWORD}\";\n"
        );
        std::fs::write(&admin, login)?;
        Ok(Self {
            own: Some(Own {
                kafka: Kafka::start(&spec)?,
                admin,
                users: std::sync::atomic::AtomicUsize::new(0),
                _dir: dir,
            }),
        })
    }
}

impl Own {
    /// Runs one of Kafka's tools as the administrator.
    fn tool(&self, class: &str, args: &[&str]) -> Result<()> {
        let admin = self.admin.to_str().context("a path that is UTF-8")?;
        let brokers = self.kafka.brokers();
        let common = ["--bootstrap-server", &brokers, "--command-config", admin];
        // Java takes its seconds, and others go on meanwhile.
        tokio::task::block_in_place(|| self.kafka.tool(class, &[&common[..], args].concat()))?;
        Ok(())
    }

    fn acl(&self, args: &[&str]) -> Result<()> {
        self.tool("org.apache.kafka.tools.AclCommand", args)
    }

    fn quota(&self, user: &str, change: [&str; 2]) -> Result<()> {
        let of = ["--alter", "--entity-type", "users", "--entity-name", user];
        self.tool("kafka.admin.ConfigCommand", &[&of[..], &change].concat())
    }
}

fn login(user: &str) -> Vec<(String, String)> {
    [
        ("security.protocol", "sasl_plaintext"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", user),
        ("sasl.password", PASSWORD),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .to_vec()
}

/// A pipeline with a fault at hand.
pub(crate) struct Scene<'a> {
    pub(crate) world: Arc<World>,
    pub(crate) follow: Follow,
    /// Where the program logs to; `None`: where it always does.
    pub(crate) log: Option<PathBuf>,
    fault: Fault,
    own: Option<&'a Own>,
    user: String,
    broker: Option<Valve>,
    scylla: Option<Valve>,
    disk: Option<Disk>,
    /// The node that was ended.
    ended: std::sync::atomic::AtomicUsize,
}

/// A file system of its own, small enough to be filled.
struct Disk {
    dir: PathBuf,
}

impl Disk {
    fn new(dir: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
            .arg(&dir)
            .output()?;
        if !mounted.status.success() {
            bail!("this user may not mount a file system to fill");
        }
        Ok(Self { dir })
    }

    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.dir.join("filler")).expect("a file");
        // Until there is no room, to the last byte.
        for size in [4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.dir.join("filler")).expect("the filler");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        std::process::Command::new("umount")
            .arg("--lazy")
            .arg(&self.dir)
            .status()
            .ok();
    }
}

const TABLE: &str = "CREATE TABLE ks.outbox (aggregate_id uuid, event_id timeuuid, aggregate_type text, \
                     event_type text, payload text, created_at timestamp, traceparent text, \
                     PRIMARY KEY (aggregate_id, event_id)) WITH cdc = {'enabled': true}";

impl<'a> Scene<'a> {
    /// Everything in place, nothing wrong yet. An error says why this cell cannot be played here.
    pub(crate) async fn new(
        fault: Fault,
        hosts: &'a Hosts,
        open_for: Option<&str>,
    ) -> Result<Self> {
        let own = hosts.own.as_ref();
        let broker = (fault == Fault::BrokerAway).then(|| Valve::start(Flow::Open));
        let brokers = match (own, &broker) {
            (Some(own), _) => own.kafka.brokers(),
            (None, Some(valve)) => valve.brokers.clone(),
            (None, None) => Cluster::start().brokers,
        };
        let mut world = World::with(Setup {
            brokers: Some(brokers.clone()),
            ..Setup::default()
        })
        .await;
        let log = (fault == Fault::DiskFull).then(|| world.dir.path().join("disk"));
        let disk = log.clone().map(Disk::new).transpose()?;
        if let Ok(delivery) = std::env::var("PENSTOCK_TEST_DELIVERY") {
            world.set("pipeline.delivery", delivery);
        }
        world.set("shutdown.timeout", "5s");
        if let Some(open_for) = open_for {
            world.set("policies.breaker.open_for", open_for);
        }
        if fault == Fault::MissingTopic {
            world.set("sink.topics.create", false);
        }
        let mut properties = Vec::new();
        let mut user = String::new();
        if let Some(own) = own {
            let n = own.users.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            user = format!("p{}", n % USERS);
            world.set("sink.sasl", "PLAIN");
            world.set("sink.username", &user);
            let file = world.dir.path().join("password");
            std::fs::write(&file, PASSWORD)?;
            world.set("sink.password_file", file.display());
            let principal = format!("User:{user}");
            let rights = [
                "--topic",
                "*",
                "--group",
                "*",
                "--transactional-id",
                "*",
                "--cluster",
            ];
            let allow = [
                "--add",
                "--force",
                "--allow-principal",
                &principal,
                "--operation",
                "All",
            ];
            own.acl(&[&allow[..], &rights[..]].concat())?;
            properties = login(ADMIN);
        }
        let scylla = matches!(fault, Fault::ScyllaAway | Fault::ScyllaAuthentication)
            .then(|| Valve::before(world.node.addr(), Flow::Open));
        if let Some(valve) = &scylla {
            world.set("source.nodes", format!("[\"{}\"]", valve.brokers));
        }
        let follow = match (&broker, own) {
            // The readers are not cut off: what they say is the proof.
            (Some(valve), _) if std::env::var_os("PENSTOCK_TEST_RELAYS").is_none() => {
                valve.brokers.clone()
            }
            (Some(_), _) => Cluster::start().brokers,
            _ => brokers,
        };
        let scene = Self {
            world: Arc::new(world),
            follow: Follow {
                brokers: follow,
                properties,
            },
            log: log.map(|dir| dir.join("log")),
            fault,
            own,
            user,
            broker,
            scylla,
            disk,
            ended: std::sync::atomic::AtomicUsize::new(0),
        };
        scene.prepare().await?;
        Ok(scene)
    }

    async fn prepare(&self) -> Result<()> {
        let name = &self.world.name;
        match self.fault {
            Fault::MissingTopic => {
                for (topic, properties) in [
                    (
                        format!("penstock.{name}.checkpoints"),
                        &[("cleanup.policy", "compact")][..],
                    ),
                    (format!("{name}.dead-letters"), &[]),
                    (format!("{name}.{}", Load::TYPES[0]), &[]),
                ] {
                    self.create(&topic, 2, properties).await?;
                }
            }
            Fault::NotEnoughReplicas => {
                let all = [("min.insync.replicas", "3")];
                self.create(&self.world.topic(), 12, &all).await?;
            }
            _ => {}
        }
        Ok(())
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.follow.brokers);
        for (key, value) in &self.follow.properties {
            config.set(key, value);
        }
        config
    }

    async fn create(
        &self,
        topic: &str,
        partitions: i32,
        properties: &[(&str, &str)],
    ) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.client().create()?;
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
        for (key, value) in properties {
            new = new.set(key, value);
        }
        for made in admin.create_topics([&new], &AdminOptions::new()).await? {
            made.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
        }
        Ok(())
    }

    async fn cql(&self, statement: &str) {
        let done = self.world.session.query_unpaged(statement, ()).await;
        done.expect("a statement");
    }

    /// Reads of the log are answered so; the writer's statements are not touched.
    fn answer(&self, action: Action) {
        let fault = Injected::new(action).on_table("outbox_scylla_cdc_log");
        self.world.node.faults().inject(fault);
    }

    /// The node that has most to say in transactions, else in groups.
    fn coordinator(&self) -> Result<usize> {
        let consumer: BaseConsumer = self.client().create()?;
        let all = consumer.fetch_metadata(None, Duration::from_secs(10))?;
        for topic in ["__transaction_state", "__consumer_offsets"] {
            let Some(topic) = all.topics().iter().find(|t| t.name() == topic) else {
                continue;
            };
            let mut leads = [0; 4];
            for partition in topic.partitions() {
                leads[partition.leader().clamp(0, 3) as usize] += 1;
            }
            let most = (1..4).max_by_key(|id| leads[*id]).unwrap_or(1);
            return Ok(most - 1);
        }
        Ok(0)
    }

    pub(crate) fn fault(&self) -> Fault {
        self.fault
    }

    /// Brings the fault about.
    pub(crate) async fn fail(&self, load: &Load) -> Result<()> {
        let own = || self.own.context("a node of its own");
        match self.fault {
            Fault::MissingTopic => load.switch_topics(),
            Fault::Authorization => {
                let principal = format!("User:{}", self.user);
                let deny = ["--add", "--force", "--deny-principal", &principal];
                own()?.acl(&[&deny[..], &["--operation", "Write", "--topic", "*"]].concat())?;
            }
            Fault::Quota => {
                own()?.quota(&self.user, ["--add-config", "producer_byte_rate=2000"])?
            }
            Fault::BrokerAway => self.valve(&self.broker).set(Flow::Cut),
            Fault::BrokerRestarted => {
                let kafka = &own()?.kafka;
                tokio::task::block_in_place(|| kafka.end(0, "-KILL"))?;
            }
            Fault::CoordinatorMoved => {
                let node = self.coordinator()?;
                self.ended.store(node, std::sync::atomic::Ordering::Relaxed);
                let kafka = &own()?.kafka;
                tokio::task::block_in_place(|| kafka.end(node, "-TERM"))?;
            }
            Fault::NotEnoughReplicas => {
                // Not the one that has most to say in transactions: that is another row.
                let node = (self.coordinator()? + 1) % 3;
                self.ended.store(node, std::sync::atomic::Ordering::Relaxed);
                let kafka = &own()?.kafka;
                tokio::task::block_in_place(|| kafka.end(node, "-TERM"))?;
            }
            Fault::ScyllaAway => self.valve(&self.scylla).set(Flow::Cut),
            Fault::ScyllaUnavailable => self.answer(Action::Unavailable),
            Fault::ScyllaOverloaded => self.answer(Action::Overloaded),
            Fault::ScyllaAuthentication => {
                let refused = Action::Error {
                    code: 0x0100,
                    message: "Username and/or password are incorrect".into(),
                };
                let fault = Injected::new(refused).on(Operation::Control);
                self.world.node.faults().inject(fault);
                let valve = self.valve(&self.scylla);
                valve.set(Flow::Cut);
                valve.set(Flow::Open);
            }
            Fault::TableDropped => self.cql("DROP TABLE ks.outbox").await,
            Fault::CdcOff => {
                self.cql("ALTER TABLE ks.outbox WITH cdc = {'enabled': false}")
                    .await;
            }
            Fault::DiskFull => self.disk.as_ref().context("a disk")?.fill(),
        }
        Ok(())
    }

    /// Ends the fault.
    pub(crate) async fn mend(&self) -> Result<()> {
        let own = || self.own.context("a node of its own");
        match self.fault {
            Fault::MissingTopic => {
                let topic = format!("{}.{}", self.world.name, Load::TYPES[1]);
                self.create(&topic, 2, &[]).await?;
            }
            Fault::Authorization => {
                let principal = format!("User:{}", self.user);
                let deny = ["--remove", "--force", "--deny-principal", &principal];
                own()?.acl(&[&deny[..], &["--operation", "Write", "--topic", "*"]].concat())?;
            }
            Fault::Quota => own()?.quota(&self.user, ["--delete-config", "producer_byte_rate"])?,
            Fault::BrokerAway => self.valve(&self.broker).set(Flow::Open),
            Fault::BrokerRestarted => {
                let kafka = &own()?.kafka;
                tokio::task::block_in_place(|| kafka.restart(0))?;
            }
            Fault::CoordinatorMoved | Fault::NotEnoughReplicas => {
                let node = self.ended.load(std::sync::atomic::Ordering::Relaxed);
                let kafka = &own()?.kafka;
                tokio::task::block_in_place(|| kafka.restart(node))?;
            }
            Fault::ScyllaAway => self.valve(&self.scylla).set(Flow::Open),
            Fault::ScyllaUnavailable | Fault::ScyllaOverloaded | Fault::ScyllaAuthentication => {
                self.world.node.faults().clear_all();
            }
            Fault::TableDropped => self.cql(TABLE).await,
            Fault::CdcOff => {
                self.cql("ALTER TABLE ks.outbox WITH cdc = {'enabled': true}")
                    .await;
            }
            Fault::DiskFull => self.disk.as_ref().context("a disk")?.empty(),
        }
        Ok(())
    }

    fn valve<'v>(&self, valve: &'v Option<Valve>) -> &'v Valve {
        valve.as_ref().expect("this fault has a valve")
    }
}
