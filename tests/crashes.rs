//! Kills: the real program under load ends as by `kill -9`, at random moments and at the worst ones, is started
//! again, and what a `read_committed` reader then has is compared with what was written.
//!
//! Short form of `cargo xtask proof crashes [kills] [--delivery …] [--instances n] [--seed n] [--rate n]`. A seed says
//! what is done to whom; a failure names it. `cargo xtask proof brokers [kills]` has three brokers of its own fall one after
//! the other meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use kafka_node::Cluster as Kafka;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use testkit::broker::Follower;
use testkit::process::{LONG, Running, Setup, World, asked, keys};
use uuid::Uuid;

/// Where the program ends itself, and the most times that it comes there before it does: several in a second or two
/// of the load below.
const POINTS: &[(&str, u32)] = &[
    ("crash::after-begin", 60),
    ("crash::mid-send", 1200),
    ("crash::before-commit", 6),
    ("crash::after-commit", 6),
];

/// … and where several share the shards: while one is on its way to another.
const SHARED_POINTS: &[(&str, u32)] = &[(MID_HAND_OVER, 1), ("crash::mid-take-over", 1)];
const MID_HAND_OVER: &str = "crash::mid-hand-over";
const INSTANCE_ID: &str = "PENSTOCK_PIPELINE__GROUP_INSTANCE_ID";

/// Those that instances may come to.
fn points(instances: usize) -> Vec<(&'static str, u32)> {
    let shared = match instances {
        1 => &[],
        _ => SHARED_POINTS,
    };
    POINTS.iter().chain(shared).copied().collect()
}

const KEYS: usize = 16;

/// So many that whoever has its share of them has to hand some on when one more comes.
fn shards(instances: usize) -> usize {
    match instances {
        1 => 4,
        n => n * (n + 1),
    }
}

/// Who an instance is to the group. The stand-in's waits for ever for a member that is gone, so there each place is a
/// static member: the next in it takes the part of the one that was killed.
fn static_id(place: usize) -> Option<String> {
    let real = std::env::var_os("PENSTOCK_TEST_BROKERS").is_some();
    (!real).then(|| format!("place-{place}"))
}

/// An instance that is given a point to end at and does not come there has this long.
const COMES_THERE: Duration = Duration::from_secs(8);
/// … where several share the shards, which a member that was killed keeps for a session.
const COMES_THERE_SHARED: Duration = Duration::from_secs(20);
/// How far apart stream generations are at most, ms.
const GENERATION_MS: u64 = 4_000;

#[derive(Clone, Debug)]
struct Plan {
    kills: u32,
    delivery: String,
    instances: usize,
    /// Changes a second.
    rate: u32,
    seed: u64,
    /// How often one of three brokers falls meanwhile; 0: they are one, or whatever is there.
    falls: u32,
    /// Stream generations end and begin all the while.
    generations: bool,
}

impl Plan {
    fn asked(kills: u32, delivery: &str, instances: u32) -> Self {
        let delivery = std::env::var("PENSTOCK_TEST_DELIVERY").unwrap_or_else(|_| delivery.into());
        let seed = std::env::var("PENSTOCK_SEED").ok();
        Self {
            kills: asked("PENSTOCK_TEST_KILLS", kills),
            delivery,
            instances: asked("PENSTOCK_TEST_INSTANCES", instances) as usize,
            rate: asked("PENSTOCK_TEST_RATE", 600),
            seed: seed.map_or_else(rand::random, |seed| seed.parse().expect("a seed")),
            falls: 0,
            generations: false,
        }
    }

    /// By the seed: the keyspace's streams are of tablets, not of vnodes.
    fn tablets(&self) -> bool {
        self.generations && self.seed % 2 == 1
    }

    fn exactly_once(&self) -> bool {
        self.delivery == "exactly-once"
    }
}

/// What is done to an instance.
#[derive(Clone, Copy, Debug)]
enum Blow {
    /// SIGKILL after this long.
    Kill(Duration),
    /// It ends itself at a point, the n-th time that it comes there after its next start.
    Point(usize, u32),
    /// SIGTERM after this long: a clean end.
    Stop(Duration),
    /// SIGSTOP for this long: others take over, and it comes back as if nothing had been.
    Freeze(Duration),
}

impl Blow {
    fn draw(random: &mut StdRng, points: &[(&str, u32)]) -> Self {
        let ms = |random: &mut StdRng, most| Duration::from_millis(random.random_range(0..most));
        match random.random_range(0..10) {
            0..4 => Self::Kill(ms(random, 2000)),
            4..8 => {
                let point = random.random_range(0..points.len());
                Self::Point(point, random.random_range(0..points[point].1))
            }
            8 => Self::Stop(ms(random, 1500)),
            _ => Self::Freeze(ms(random, 3000)),
        }
    }
}

/// Three brokers, each of which in turn ends as by a power cut and comes back, whatever it coordinates or leads.
struct Trio {
    kafka: Arc<Kafka>,
    _dir: tempfile::TempDir,
    falls: Option<std::thread::JoinHandle<()>>,
}

impl Trio {
    fn start() -> Self {
        let state = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("../kafka");
        std::fs::create_dir_all(&state).expect("a folder");
        let dir = tempfile::tempdir().expect("a folder");
        let jars = kafka_node::jars(&state).expect("Kafka's jars");
        let spec = kafka_node::Spec {
            nodes: 3,
            ..kafka_node::Spec::one(jars, dir.path().join("kafka"))
        };
        Self {
            kafka: Arc::new(Kafka::start(&spec).expect("three brokers")),
            _dir: dir,
            falls: None,
        }
    }

    fn begin_to_fall(&mut self, times: u32, seed: u64) {
        let kafka = self.kafka.clone();
        let mut random = StdRng::seed_from_u64(seed ^ 1);
        self.falls = Some(std::thread::spawn(move || {
            for fall in 0..times {
                let node = fall as usize % kafka.size();
                std::thread::sleep(Duration::from_millis(random.random_range(500..4000)));
                kafka.end(node, "-KILL").expect("it ends");
                std::thread::sleep(Duration::from_millis(random.random_range(0..8000)));
                kafka.restart(node).expect("it comes back");
            }
        }));
    }

    fn still_falls(&self) -> bool {
        self.falls
            .as_ref()
            .is_some_and(|falls| !falls.is_finished())
    }
}

/// Writes numbered events of each key at a steady pace until it is told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    fn start(world: &Arc<World>, keys: &[Uuid], rate: u32) -> Self {
        let (stop, written) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
        let (world, ended, count, keys) =
            (world.clone(), stop.clone(), written.clone(), keys.to_vec());
        let pace = Duration::from_secs(1) * keys.len() as u32 / rate;
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(pace);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while !ended.load(Relaxed) {
                tick.tick().await;
                world.write(&keys, count.load(Relaxed), 1).await;
                count.fetch_add(1, Relaxed);
            }
        });
        Self {
            stop,
            written,
            task,
        }
    }

    async fn end(self) -> u32 {
        self.stop.store(true, Relaxed);
        self.task.await.expect("the writer is well");
        self.written.load(Relaxed)
    }
}

/// Has stream generations end and begin until it is told to stop; says how many began.
struct Generations {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u32>,
}

impl Generations {
    fn start(world: &Arc<World>, plan: &Plan) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let (world, ended, tablets) = (world.clone(), stop.clone(), plan.tablets());
        let mut random = StdRng::seed_from_u64(plan.seed ^ 2);
        let task = tokio::spawn(async move {
            let mut begun = 0;
            while !ended.load(Relaxed) {
                let pause = random.random_range(GENERATION_MS / 4..GENERATION_MS);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                begun += 1;
                if tablets {
                    let count = if begun % 2 == 1 { 16 } else { 8 };
                    let cql = format!(
                        "ALTER TABLE ks.outbox WITH tablets = {{'min_tablet_count': {count}}}"
                    );
                    world.session.query_unpaged(cql, ()).await.expect("resized");
                } else {
                    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
                    let soon = now.as_millis() as i64 + 100;
                    world.node.engine().new_generation(Some(soon));
                }
            }
            begun
        });
        Self { stop, task }
    }

    async fn end(self) -> u32 {
        self.stop.store(true, Relaxed);
        self.task.await.expect("the cluster is well")
    }
}

/// The instances, each in its place; an empty place is one that is down.
struct Crew {
    world: Arc<World>,
    places: Vec<Option<Running>>,
    starts: u32,
    kills: u32,
    stops: u32,
    freezes: u32,
    points: Vec<(&'static str, u32)>,
    /// How often each of them was met.
    met: Vec<u32>,
}

impl Crew {
    fn start(&mut self, place: usize, faults: &str) {
        let id = static_id(place).filter(|_| self.places.len() > 1);
        let id = id.as_deref().map(|id| (INSTANCE_ID, id));
        let environment: Vec<_> = id.into_iter().chain([("FAILPOINTS", faults)]).collect();
        let running = self.world.start_with(self.starts, &environment);
        self.starts += 1;
        self.places[place] = Some(running);
    }

    /// What is in a place has its part of the shards, unless it takes too long or ends.
    async fn has_joined(&mut self, place: usize) {
        let begun = Instant::now();
        let running = self.at(place);
        while running.count("shard taken over") == 0
            && running.ended().is_none()
            && begun.elapsed() < COMES_THERE_SHARED
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Goes again: it is no static member, so the group knows of it at once.
    async fn leaves(&mut self, mut visitor: Running) {
        visitor.signal("-TERM");
        tokio::task::block_in_place(|| visitor.wait(LONG));
        self.stops += 1;
    }

    /// The instance in a place; started if it is down.
    fn at(&mut self, place: usize) -> &mut Running {
        if self.places[place].is_none() {
            self.start(place, "");
        }
        self.places[place].as_mut().expect("it was just started")
    }

    /// Ends what is in a place as a power cut would.
    fn kill(&mut self, place: usize) {
        if let Some(mut running) = self.places[place].take() {
            running.signal("-KILL");
            running.wait(LONG);
            self.kills += 1;
        }
    }

    /// Nobody may have ended but by our hand.
    fn all_well(&mut self) {
        for running in self.places.iter_mut().flatten() {
            if let Some(status) = running.ended() {
                panic!("ended by itself with {status}:\n{}", running.text());
            }
        }
    }

    async fn strike(&mut self, place: usize, blow: Blow) {
        match blow {
            Blow::Kill(after) => {
                self.at(place);
                tokio::time::sleep(after).await;
                self.all_well();
                self.kill(place);
            }
            Blow::Point(point, times) => {
                // Points are set when a process starts.
                self.kill(place);
                let name = self.points[point].0;
                self.start(place, &format!("{name}={times}*off->return"));
                let visitor = match name {
                    // One more comes, so that this one has to hand some on.
                    MID_HAND_OVER => {
                        self.has_joined(place).await;
                        self.starts += 1;
                        Some(self.world.start(self.starts - 1))
                    }
                    _ => None,
                };
                let begun = Instant::now();
                let within = match self.places.len() {
                    1 => COMES_THERE,
                    _ => COMES_THERE_SHARED,
                };
                let running = self.places[place].as_mut().expect("it was just started");
                while running.ended().is_none() && begun.elapsed() < within {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                match running.ended() {
                    Some(status) => {
                        assert_eq!(status.code(), None, "{name}: {status}\n{}", running.text());
                        self.met[point] += 1;
                        self.kills += 1;
                        self.places[place] = None;
                    }
                    // Another has the shards, or has done the work.
                    None => self.kill(place),
                }
                if let Some(visitor) = visitor {
                    // Who was killed had part of its shards: the group waits for its return, or for its session's end.
                    self.at(place);
                    self.leaves(visitor).await;
                }
            }
            Blow::Stop(after) => {
                self.at(place);
                tokio::time::sleep(after).await;
                let mut running = self.places[place].take().expect("it runs");
                running.signal("-TERM");
                match running.wait(LONG).code() {
                    // Before the handler is there a stop is a kill.
                    None => self.kills += 1,
                    code => {
                        assert_eq!(code, Some(0), "{}", running.text());
                        self.stops += 1;
                    }
                }
            }
            Blow::Freeze(time) => {
                let running = self.at(place);
                running.signal("-STOP");
                tokio::time::sleep(time).await;
                running.signal("-CONT");
                self.freezes += 1;
            }
        }
    }
}

async fn crashes(plan: Plan) {
    println!("{plan:?}");
    let mut trio = (plan.falls > 0).then(Trio::start);
    let mut world = World::with(Setup {
        brokers: trio.as_ref().map(|trio| trio.kafka.brokers()),
        extra: "[health]\ncheck_interval = \"200ms\"\n".into(),
        tablets: plan.tablets(),
        ..Setup::default()
    })
    .await;
    world.set("pipeline.delivery", &plan.delivery);
    world.set("pipeline.shards", shards(plan.instances));
    if plan.instances > 1 {
        world.set("pipeline.instances", "shared");
        world.set("pipeline.session_timeout", "6s");
    }
    if trio.is_some() {
        world.set("sink.topics.replication_factor", 3);
    }
    let world = Arc::new(world);
    let keys = keys(KEYS);
    let follower = Follower::start(&world.cluster.brokers, &world.topic());
    let load = Load::start(&world, &keys, plan.rate);
    let generations = plan.generations.then(|| Generations::start(&world, &plan));
    let mut random = StdRng::seed_from_u64(plan.seed);
    let mut crew = Crew {
        world: world.clone(),
        places: (0..plan.instances).map(|_| None).collect(),
        starts: 0,
        kills: 0,
        stops: 0,
        freezes: 0,
        met: vec![0; points(plan.instances).len()],
        points: points(plan.instances),
    };
    let (begun, mut blows) = (Instant::now(), 0);
    if let Some(trio) = &mut trio {
        trio.begin_to_fall(plan.falls, plan.seed);
    }
    while crew.kills < plan.kills || trio.as_ref().is_some_and(Trio::still_falls) {
        let place = random.random_range(0..plan.instances);
        // Some of the others may be down; at least one is not, unless it is the one.
        for other in 0..plan.instances {
            if other != place && random.random_bool(0.7) {
                crew.at(other);
            }
        }
        // First those of a rebalance, each: they are met by luck else.
        let blow = match blows < crew.points.len() - POINTS.len() {
            true => Blow::Point(POINTS.len() + blows, 0),
            false => Blow::draw(&mut random, &crew.points),
        };
        blows += 1;
        crew.strike(place, blow).await;
        let pause = Duration::from_millis(random.random_range(0..300));
        tokio::time::sleep(pause).await;
    }
    let took = begun.elapsed();
    let generations = match generations {
        Some(generations) => generations.end().await,
        None => 0,
    };
    let written = load.end().await;
    for place in 0..plan.instances {
        crew.at(place);
    }
    let all = KEYS * written as usize;
    let deadline = Instant::now() + LONG + took / 2;
    while distinct(&follower.numbers()) < all && Instant::now() < deadline {
        crew.all_well();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let last = crew.places.iter().flatten().next().expect("one runs");
    let letters = last.metrics().await.sum("penstock_dead_letters_total", &[]);
    let logs: Vec<String> = crew.places.iter().flatten().map(Running::text).collect();
    let logs = logs.join("\n--- another instance ---\n");
    for running in crew.places.drain(..).flatten() {
        running.stop_cleanly();
    }
    // One who reads it all afterwards, and one who was there all along, see the same.
    let tale = world.seen();
    let settles = Instant::now() + LONG;
    while follower.numbers() != tale {
        let count = |tale: &BTreeMap<String, Vec<u32>>| tale.values().map(Vec::len).sum::<usize>();
        assert!(
            Instant::now() < settles,
            "PENSTOCK_SEED={}: two readers disagree: {} records followed, {} read afterwards",
            plan.seed,
            count(&follower.numbers()),
            count(&tale)
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let found = Found::new(&tale, &keys, written);
    let met: Vec<String> = crew
        .points
        .iter()
        .zip(&crew.met)
        .map(|((name, _), times)| format!("{name} {times}"))
        .collect();
    println!(
        "{}, {} instances, seed {}: {} kills ({}), {} stops, {} freezes, {} falls of a \
         broker, {generations} generations{} in {took:.1?}; {all} changes written, {} lost, \
         {} repeated ({:.0} a kill), {} out of order, {letters} dead letters",
        plan.delivery,
        plan.instances,
        plan.seed,
        crew.kills,
        met.join(", "),
        crew.stops,
        crew.freezes,
        plan.falls,
        if plan.tablets() { " of tablets" } else { "" },
        found.lost.len(),
        found.repeated,
        found.repeated as f64 / f64::from(crew.kills.max(1)),
        found.disordered.len(),
    );
    let seed = plan.seed;
    let met = &crew.met[POINTS.len()..];
    assert!(
        !met.contains(&0),
        "PENSTOCK_SEED={seed}: a point of a rebalance was not met: {met:?}"
    );
    assert!(
        found.lost.is_empty() && found.disordered.is_empty(),
        "PENSTOCK_SEED={seed}: lost {:?}, out of order {:?}\n{logs}",
        found.lost,
        found.disordered
    );
    assert_eq!(
        letters, 0.0,
        "PENSTOCK_SEED={seed}: an outage makes no letters"
    );
    if plan.exactly_once() {
        assert_eq!(found.repeated, 0, "PENSTOCK_SEED={seed}\n{logs}");
    } else {
        // What came since the last checkpoint of a second ago, and half as much again for a machine that is busy with
        // other things.
        let most = crew.kills * plan.rate * 3 / 2;
        assert!(
            found.repeated < most as usize,
            "PENSTOCK_SEED={seed}: {} repeated, {most} would be many\n{logs}",
            found.repeated
        );
    }
}

/// Numbers of each key, in the order in which they stand in their partition.
type Numbers = BTreeMap<String, Vec<u32>>;

fn distinct(numbers: &Numbers) -> usize {
    let of_key = |numbers: &Vec<u32>| {
        let mut numbers = numbers.clone();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.len()
    };
    numbers.values().map(of_key).sum()
}

/// What a reader's tale differs in from what was written.
struct Found {
    lost: Vec<(Uuid, u32)>,
    /// What came for the first time after something newer of its key.
    disordered: Vec<(Uuid, u32)>,
    repeated: usize,
}

impl Found {
    fn new(tale: &Numbers, keys: &[Uuid], written: u32) -> Self {
        let mut found = Self {
            lost: Vec::new(),
            disordered: Vec::new(),
            repeated: 0,
        };
        let nothing = Vec::new();
        for key in keys {
            let numbers = tale.get(&key.to_string()).unwrap_or(&nothing);
            let mut seen = vec![false; written as usize];
            let mut newest = None;
            for &number in numbers {
                if std::mem::replace(&mut seen[number as usize], true) {
                    found.repeated += 1;
                    continue;
                }
                if newest.is_some_and(|newest| number < newest) {
                    found.disordered.push((*key, number));
                }
                newest = newest.max(Some(number));
            }
            let lost = (0..written).filter(|n| !seen[*n as usize]);
            found.lost.extend(lost.map(|n| (*key, n)));
        }
        found
    }
}

#[test]
fn what_a_tale_differs_in_is_found() {
    let key = Uuid::new_v4();
    let tale = |numbers: &[u32]| Numbers::from([(key.to_string(), numbers.to_vec())]);
    let found = Found::new(&tale(&[0, 1, 1, 3, 2, 0, 3]), &[key], 5);
    assert_eq!(found.lost, [(key, 4)]);
    assert_eq!(found.disordered, [(key, 2)]);
    assert_eq!(found.repeated, 3);
    assert_eq!(distinct(&tale(&[0, 1, 1, 3])), 3);
    assert_eq!(Found::new(&Numbers::new(), &[key], 2).lost.len(), 2);
}

/// The real broker is the judge; the embedded one shows that the suite is well.
fn kills(on_a_real_one: u32) -> u32 {
    match std::env::var_os("PENSTOCK_TEST_BROKERS") {
        Some(_) => on_a_real_one,
        None => 3,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing_and_repeat_nothing() {
    crashes(Plan::asked(kills(20), "exactly-once", 1)).await;
}

/// Two instances, and generations of streams that end and begin: what one shard has of a key goes to another, of another
/// process as likely as not, while processes are killed and shards handed on.
#[tokio::test(flavor = "multi_thread")]
async fn kills_while_generations_change_lose_and_repeat_nothing() {
    crashes(Plan {
        generations: true,
        ..Plan::asked(kills(20), "exactly-once", 2)
    })
    .await;
}

/// What is repeated is bounded.
#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing_at_least_once() {
    crashes(Plan {
        delivery: "at-least-once".into(),
        ..Plan::asked(kills(8), "", 1)
    })
    .await;
}

/// Three brokers, of which one is down now and then, `min.insync.replicas = 2`, and kills of the program beside.
#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_fall_one_after_the_other_lose_and_repeat_nothing() {
    let falls = asked("PENSTOCK_TEST_BROKER_KILLS", 0);
    if falls == 0 {
        eprintln!("skipped: PENSTOCK_TEST_BROKER_KILLS says how often one of three brokers falls");
        return;
    }
    crashes(Plan {
        falls,
        ..Plan::asked(falls, "exactly-once", 1)
    })
    .await;
}
