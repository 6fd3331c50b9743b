//! Brokers for tests.
//!
//! [`Cluster::start`] is the one that keeps everything, hides aborted records and fences zombies
//! (`redpanda-double`, which users get as `"embedded"`), or what `PENSTOCK_TEST_BROKERS` names: a real Redpanda or Kafka. [`Faulty`] is librdkafka's
//! own mock, for what no real broker does on command. [`Valve`] is the first behind a connection that can be cut
//! or silenced.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// How long a broker may take to answer, on a machine that is busy with other things.
const WITHIN: Duration = Duration::from_secs(60);

/// A broker that keeps what it is given.
pub struct Cluster {
    pub brokers: String,
}

impl Cluster {
    pub fn start() -> Self {
        match std::env::var("PENSTOCK_TEST_BROKERS") {
            Ok(brokers) => Self { brokers },
            Err(_) => Self::embedded(),
        }
    }

    /// One of its own in this process, with nothing in it.
    pub fn embedded() -> Self {
        Self {
            brokers: stand_in(None).to_string(),
        }
    }
}

/// Topics as an operator would make, change and delete them.
pub struct Operator(AdminClient<DefaultClientContext>);

impl Operator {
    pub fn new(brokers: &str) -> Self {
        let admin = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("allow.auto.create.topics", "false")
            .create();
        Self(admin.expect("an admin client"))
    }

    fn options() -> AdminOptions {
        let within = Some(WITHIN);
        AdminOptions::new()
            .request_timeout(within)
            .operation_timeout(within)
    }

    pub async fn create(&self, topic: &str, partitions: i32, properties: &[(&str, &str)]) {
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        for (name, value) in properties {
            new = new.set(name, value);
        }
        let made = self.0.create_topics([&new], &Self::options()).await;
        made.expect("an answer")[0].as_ref().expect("created");
        // A real broker learns a moment later of what its controller has made.
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.partitions(topic) == 0 {
            assert!(Instant::now() < deadline, "{topic} was made and is nowhere");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn delete(&self, topic: &str) {
        let gone = self.0.delete_topics(&[topic], &Self::options()).await;
        gone.expect("an answer")[0].as_ref().expect("deleted");
    }

    /// Sets all that is set on a topic.
    pub async fn alter(&self, topic: &str, properties: &[(&str, &str)]) {
        let mut alter = AlterConfig::new(ResourceSpecifier::Topic(topic));
        for (name, value) in properties {
            alter = alter.set(name, value);
        }
        let altered = self.0.alter_configs([&alter], &Self::options()).await;
        altered.expect("an answer")[0].as_ref().expect("altered");
    }

    /// A property of a topic.
    pub async fn property(&self, topic: &str, name: &str) -> Option<String> {
        let asked = [ResourceSpecifier::Topic(topic)];
        let found = self.0.describe_configs(&asked, &Self::options()).await;
        let found = found.expect("an answer").remove(0).expect("described");
        found.get(name)?.value.clone()
    }

    pub fn partitions(&self, topic: &str) -> usize {
        let all = self.0.inner().fetch_metadata(None, WITHIN);
        let all = all.expect("metadata");
        let found = all.topics().iter().find(|t| t.name() == topic);
        found.map_or(0, |t| t.partitions().len())
    }
}

/// Writes a record as anybody may.
pub fn write(brokers: &str, topic: &str, key: &str, value: &str) {
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()
        .expect("a producer");
    let record = BaseRecord::to(topic).key(key).payload(value);
    producer.send(record).expect("taken");
    producer.flush(WITHIN).expect("written");
}

/// Whether there is such a topic; makes none.
pub fn has_topic(brokers: &str, topic: &str) -> bool {
    Operator::new(brokers).partitions(topic) > 0
}

/// A name that no other test, nor an earlier run against the same brokers, uses.
pub fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let since = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
    format!("{name}-{:x}-{}-{n}", since.as_micros(), std::process::id())
}

/// A mock with faults on command; one broker, id 1.
pub struct Faulty {
    pub mock: MockCluster<'static, DefaultProducerContext>,
    pub brokers: String,
}

impl Faulty {
    pub fn start() -> Self {
        let mock = MockCluster::new(1).expect("a mock cluster");
        let brokers = mock.bootstrap_servers();
        Self { mock, brokers }
    }

    pub fn down(&self) {
        self.mock.broker_down(1).expect("down");
    }

    pub fn up(&self) {
        self.mock.broker_up(1).expect("up");
    }
}

/// What a [`Valve`] lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Flow {
    /// Everything.
    Open,
    /// Connections are closed, new ones at once.
    Cut,
    /// Connections stay and nothing goes through them: no answer, no error.
    Silent,
}

/// A broker that keeps what it is given, behind a connection that can be cut or silenced: a relay of the real
/// brokers where `PENSTOCK_TEST_RELAYS` names some (`cargo xtask kafka` prints them), else one of its own.
pub struct Valve {
    pub brokers: String,
    state: Arc<ValveState>,
    fronts: Vec<SocketAddr>,
}

struct ValveState {
    flow: Mutex<Held>,
    changed: Condvar,
    ended: AtomicBool,
    /// Kafka's protocol goes through it.
    is_kafka: bool,
}

/// What a valve does, and the connections through it.
struct Held {
    flow: Flow,
    /// Kafka's number of the requests that wait in it, and all that is sent behind them.
    stalled: Option<u16>,
    streams: Vec<TcpStream>,
}

impl Held {
    fn keeps(&self, request: Option<u16>) -> bool {
        self.flow == Flow::Silent
            || self.flow == Flow::Open && request.is_some() && request == self.stalled
    }
}

impl Valve {
    pub fn start(flow: Flow) -> Self {
        Self::with(
            (flow, true),
            match std::env::var("PENSTOCK_TEST_RELAYS") {
                Ok(relays) => claim(&relays),
                Err(_) => vec![embedded()],
            },
        )
    }

    /// In front of a server of any kind whose clients do not ask it for its address.
    pub fn before(server: SocketAddr, flow: Flow) -> Self {
        let front = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        Self::with((flow, false), vec![(front, server)])
    }

    fn with((flow, is_kafka): (Flow, bool), doors: Vec<(TcpListener, SocketAddr)>) -> Self {
        let state = Arc::new(ValveState {
            is_kafka,
            flow: Mutex::new(Held {
                flow,
                stalled: None,
                streams: Vec::new(),
            }),
            changed: Condvar::new(),
            ended: AtomicBool::new(false),
        });
        let mut fronts = Vec::new();
        for (front, back) in doors {
            fronts.push(front.local_addr().expect("an address"));
            let shared = state.clone();
            std::thread::spawn(move || {
                for stream in front.incoming().flatten() {
                    if shared.ended.load(Ordering::Relaxed) {
                        return;
                    }
                    shared.connect(stream, back);
                }
            });
        }
        let all: Vec<String> = fronts.iter().map(SocketAddr::to_string).collect();
        Self {
            brokers: all.join(","),
            state,
            fronts,
        }
    }

    pub fn set(&self, flow: Flow) {
        let mut state = self.state.flow.lock().expect("not poisoned");
        state.flow = flow;
        if flow == Flow::Cut {
            for stream in state.streams.drain(..) {
                // It may be gone already.
                stream.shutdown(Shutdown::Both).ok();
            }
        }
        self.state.changed.notify_all();
    }

    /// Has requests of this kind wait (Kafka's number of it, `ApiKeys`), until another is named or none: as with a broker
    /// that has yet to answer, what is sent behind one of them on its connection waits with it.
    pub fn stall(&self, request: Option<u16>) {
        self.state.flow.lock().expect("not poisoned").stalled = request;
        self.state.changed.notify_all();
    }
}

impl Drop for Valve {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        self.set(Flow::Cut);
        for front in &self.fronts {
            // Wakes the thread that accepts: it leaves the port to the next.
            TcpStream::connect(front).ok();
        }
    }
}

/// A broker of its own behind a port of its own: what it says its address is, is the valve's, so that clients
/// connect to nothing else.
pub(crate) fn embedded() -> (TcpListener, SocketAddr) {
    let front = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
    let address = front.local_addr().expect("an address");
    (front, stand_in(Some(address)))
}

/// Starts a broker that clients find at `front`, or where it listens. Its thread ends with the test's process.
fn stand_in(front: Option<SocketAddr>) -> SocketAddr {
    let (tell, told) = std::sync::mpsc::channel();
    let serve = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let broker = redpanda_double::Broker::behind(any, front).await;
            let broker = broker.expect("a port on loopback");
            tell.send(broker.addr()).expect("who asked waits");
            std::future::pending::<()>().await;
        });
    };
    std::thread::Builder::new()
        .name("stand-in".into())
        .spawn(serve)
        .expect("a thread");
    told.recv().expect("it listens")
}

/// Takes a relay that nobody else has: who binds its front owns it.
fn claim(relays: &str) -> Vec<(TcpListener, SocketAddr)> {
    let door = |ports: &str| {
        let (front, back) = ports.split_once('/').expect("front/back");
        let [front, back] = [front, back].map(|port| port.parse().expect("a port"));
        let front = TcpListener::bind(("127.0.0.1", front)).ok()?;
        Some((front, SocketAddr::from(([127, 0, 0, 1], back))))
    };
    let deadline = Instant::now() + Duration::from_secs(120);
    while Instant::now() < deadline {
        for relay in relays.split(',') {
            // One door a node; what was bound of a relay that is another's in part is let go of.
            if let Some(doors) = relay.split('+').map(door).collect() {
                return doors;
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("every relay of {relays} is in use");
}

impl ValveState {
    fn connect(self: &Arc<Self>, client: TcpStream, broker: SocketAddr) {
        let mut state = self.flow.lock().expect("not poisoned");
        if state.flow == Flow::Cut {
            return;
        }
        // A real broker may be down just now: then the client is cut off.
        let Ok(server) = TcpStream::connect(broker) else {
            return;
        };
        for (from, to, asks) in [(&client, &server, true), (&server, &client, false)] {
            from.set_nodelay(true).ok();
            let (from, to) = (
                from.try_clone().expect("a handle"),
                to.try_clone().expect("a handle"),
            );
            let shared = self.clone();
            let framed = asks && self.is_kafka;
            std::thread::spawn(move || shared.pump(from, to, framed));
        }
        state.streams.extend([client, server]);
    }

    /// `framed`: request by request.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, framed: bool) {
        let mut bytes = vec![0; 16 << 10];
        loop {
            let (n, request) = match framed {
                true => match request(&mut from, &mut bytes) {
                    Ok(kind) => (bytes.len(), Some(kind)),
                    Err(_) => (0, None),
                },
                false => (from.read(&mut bytes).unwrap_or(0), None),
            };
            let kept = |held: &mut Held| held.keeps(request);
            let held = self.flow.lock().expect("not poisoned");
            drop(self.changed.wait_while(held, kept).expect("not poisoned"));
            if n == 0 || to.write_all(&bytes[..n]).is_err() {
                from.shutdown(Shutdown::Both).ok();
                to.shutdown(Shutdown::Both).ok();
                return;
            }
        }
    }
}

/// Reads one request of Kafka's protocol, all of it, and says which it is.
fn request(from: &mut TcpStream, into: &mut Vec<u8>) -> std::io::Result<u16> {
    let mut size = [0; 4];
    from.read_exact(&mut size)?;
    into.clear();
    into.extend(size);
    let size = u64::from(u32::from_be_bytes(size));
    from.take(size).read_to_end(into)?;
    match into.get(4..6) {
        Some(kind) if into.len() as u64 == size + 4 => Ok(u16::from_be_bytes([kind[0], kind[1]])),
        _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A record as a consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub partition: i32,
    pub offset: i64,
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(n, _)| n == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }

    pub fn key_text(&self) -> &str {
        std::str::from_utf8(self.key.as_deref().unwrap_or_default()).expect("UTF-8 key")
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(self.value.as_deref().unwrap_or_default()).expect("UTF-8 value")
    }
}

/// Reads a topic from start to end, as committed: per partition in order.
pub fn read_all(brokers: &str, topic: &str) -> Vec<Seen> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "test-reader")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("fetch.wait.max.ms", "10")
        .create()
        .expect("a consumer");
    let metadata = consumer
        .fetch_metadata(Some(topic), WITHIN)
        .expect("metadata");
    let partitions = metadata.topics()[0].partitions().len();
    let mut assignment = TopicPartitionList::new();
    for p in 0..partitions {
        assignment
            .add_partition_offset(topic, p as i32, Offset::Beginning)
            .expect("an offset");
    }
    consumer.assign(&assignment).expect("an assignment");
    let mut seen = Vec::new();
    let mut open = partitions;
    let mut moved = Instant::now();
    while open > 0 {
        let still = moved.elapsed();
        assert!(still < WITHIN, "{topic} goes on no further for {still:?}");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(m)) => {
                moved = Instant::now();
                seen.push(Seen {
                    partition: m.partition(),
                    offset: m.offset(),
                    timestamp: m.timestamp().to_millis(),
                    key: m.key().map(<[u8]>::to_vec),
                    value: m.payload().map(<[u8]>::to_vec),
                    headers: m.headers().map_or_else(Vec::new, |h| {
                        h.iter()
                            .map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec)))
                            .collect()
                    }),
                });
            }
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(e)) => eprintln!("reading {topic}: {e}"),
            None => {}
        }
    }
    seen
}

/// Numbered events by key, in the order in which they stand in their partition, and when each came.
type Arrived = BTreeMap<String, Vec<(u32, Instant)>>;

/// Reads a topic of numbered events as committed, from its start on and for as long as it lives.
pub struct Follower {
    arrived: Arc<Mutex<Arrived>>,
    ended: Arc<AtomicBool>,
}

impl Follower {
    pub fn start(brokers: &str, topic: &str) -> Self {
        Self::with(brokers, topic, &[])
    }

    /// … as a client with these properties.
    pub fn with(brokers: &str, topic: &str, properties: &[(String, String)]) -> Self {
        let arrived = Arc::<Mutex<Arrived>>::default();
        let ended = Arc::<AtomicBool>::default();
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("group.id", "test-reader")
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "10");
        for (key, value) in properties {
            config.set(key, value);
        }
        let (topic, into, end) = (topic.to_owned(), arrived.clone(), ended.clone());
        std::thread::spawn(move || follow(&config, &topic, &into, &end));
        Self { arrived, ended }
    }

    /// The numbers of each key so far, in the order in which they stand in their partition.
    pub fn numbers(&self) -> BTreeMap<String, Vec<u32>> {
        let arrived = self.arrived.lock().expect("not poisoned");
        let numbers = |all: &Vec<(u32, Instant)>| all.iter().map(|(n, _)| *n).collect();
        let of_keys = arrived.iter();
        of_keys.map(|(k, all)| (k.clone(), numbers(all))).collect()
    }

    /// When each event came so far, whatever its key; sorted.
    pub fn arrivals(&self) -> Vec<Instant> {
        let arrived = self.arrived.lock().expect("not poisoned");
        let mut times: Vec<Instant> = arrived.values().flatten().map(|(_, at)| *at).collect();
        times.sort_unstable();
        times
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn follow(config: &ClientConfig, topic: &str, into: &Mutex<Arrived>, ended: &AtomicBool) {
    let consumer: BaseConsumer = config.create().expect("a consumer");
    let partitions = loop {
        if ended.load(Ordering::Relaxed) {
            return;
        }
        // Asked about all topics: a question about one makes it on some brokers.
        let all = consumer.fetch_metadata(None, Duration::from_secs(5)).ok();
        let found = all.and_then(|all| {
            let found = all.topics().iter().find(|t| t.name() == topic)?;
            Some(found.partitions().len()).filter(|n| *n > 0)
        });
        if let Some(partitions) = found {
            break partitions;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut assignment = TopicPartitionList::new();
    for p in 0..partitions {
        assignment
            .add_partition_offset(topic, p as i32, Offset::Beginning)
            .expect("an offset");
    }
    consumer.assign(&assignment).expect("an assignment");
    while !ended.load(Ordering::Relaxed) {
        // A broker that is away is part of some tests: an error is a wait.
        if let Some(Ok(m)) = consumer.poll(Duration::from_millis(50)) {
            let key = String::from_utf8_lossy(m.key().unwrap_or_default()).into_owned();
            let text = String::from_utf8_lossy(m.payload().unwrap_or_default());
            let number = text.parse().expect("a numbered payload");
            let mut into = into.lock().expect("not poisoned");
            into.entry(key).or_default().push((number, Instant::now()));
        }
    }
}
