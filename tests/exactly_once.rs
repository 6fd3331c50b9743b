//! The transactional sink: what a reader of committed records sees, and who may still write.
//!
//! On the stand-in, or on what `PENSTOCK_TEST_BROKERS` names.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock::change::GroupKey;
use penstock::checkpoint::log::CheckpointLog;
use penstock::checkpoint::topic::Owner;
use penstock::checkpoint::{Checkpoints, GroupCheckpoint, Settlement};
use penstock::config::settings::{Delivery, LiveSettings, Settings};
use penstock::policy::Class;
use penstock::policy::breaker::{self, State};
use penstock::policy::stage::StagePolicies;
use penstock::sink::redpanda::{RedpandaSink, ShardSink};
use penstock::sink::{Settle, SinkError, Standing};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use testkit::batches::{Maker, numbered, position};
use testkit::broker::{Cluster, Flow, Follower, Operator, Valve, read_all, unique};
use testkit::settings;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// One process of a pipeline.
struct Instance {
    sink: Arc<RedpandaSink>,
    policies: StagePolicies,
    _retune: watch::Sender<Arc<Settings>>,
}

impl Instance {
    async fn start(name: &str, brokers: &str) -> Self {
        Self::with(settings::settings(name, brokers, 1)).await
    }

    async fn with(mut settings: Settings) -> Self {
        settings.pipeline.delivery = Delivery::ExactlyOnce;
        settings.sink.topics.partitions = NonZeroU32::MIN;
        let (retune, live): (_, LiveSettings) = settings::live(settings);
        let policies = StagePolicies::new("sink", live.clone());
        let sink = RedpandaSink::connect(live, policies.clone()).await;
        Self {
            sink: sink.expect("a sink"),
            policies,
            _retune: retune,
        }
    }

    /// Takes the shard; says where it stands.
    async fn open(&self) -> (ShardSink, Checkpoints) {
        let (shard, found) = self.take().await;
        (shard, found.checkpoints)
    }

    /// … and whose it was.
    async fn take(&self) -> (ShardSink, Standing) {
        let mut shard = self.sink.open_shard(0).unwrap();
        let found = shard.open().await.unwrap().expect("it is atomic");
        (shard, found)
    }
}

fn progress(us: i64) -> GroupCheckpoint {
    GroupCheckpoint {
        complete_until_us: us,
        ..GroupCheckpoint::default()
    }
}

fn upto(us: i64) -> Settlement {
    let group = GroupKey("ks.t/1764000000000/00".into());
    Settlement {
        progress: [(group, progress(us))].into(),
        ..Settlement::default()
    }
}

fn texts(brokers: &str, topic: &str) -> Vec<String> {
    let seen = read_all(brokers, topic);
    seen.iter().map(|s| s.text().to_owned()).collect()
}

async fn deliver(shard: &mut dyn Settle, topic: &str, from: u32, to: u32) {
    let batch = numbered(topic, from, to, 1);
    let look = shard.look(batch.clone(), true).await.unwrap();
    assert!(look.waits.is_empty(), "{look:?}");
    let leave = shard.leave(batch.clone()).await.unwrap();
    let ticket = shard.hand(batch, look.fits, leave).await.unwrap();
    ticket.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_and_checkpoint_are_seen_together_or_not_at_all() {
    let cluster = Cluster::start();
    let (name, topic) = (unique("together"), unique("together"));
    let one = Instance::start(&name, &cluster.brokers).await;
    let (mut shard, found) = one.open().await;
    assert_eq!(found, Checkpoints::new());

    deliver(&mut shard, &topic, 0, 5).await;
    assert_eq!(texts(&cluster.brokers, &topic), [""; 0], "not settled");
    shard.settle(&[], &upto(5)).await.unwrap();
    assert_eq!(texts(&cluster.brokers, &topic), ["0", "1", "2", "3", "4"]);

    // Let go of: as if it had never been sent.
    deliver(&mut shard, &topic, 5, 8).await;
    assert_eq!(
        shard.reset().await.unwrap(),
        None,
        "it is known where it stands"
    );
    deliver(&mut shard, &topic, 5, 7).await;
    shard.settle(&[], &upto(7)).await.unwrap();
    assert_eq!(texts(&cluster.brokers, &topic).len(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_owner_left_open_is_aborted_by_the_next() {
    let cluster = Cluster::start();
    let (name, topic) = (unique("dead"), unique("dead"));
    {
        let one = Instance::start(&name, &cluster.brokers).await;
        let (mut shard, _) = one.open().await;
        deliver(&mut shard, &topic, 0, 2).await;
        shard.settle(&[], &upto(2)).await.unwrap();
        deliver(&mut shard, &topic, 2, 9).await;
    }
    let two = Instance::start(&name, &cluster.brokers).await;
    let (mut shard, found) = two.open().await;
    assert_eq!(found, upto(2).progress);
    deliver(&mut shard, &topic, 2, 4).await;
    shard.settle(&[], &upto(4)).await.unwrap();
    assert_eq!(texts(&cluster.brokers, &topic), ["0", "1", "2", "3"]);
}

/// Producers are made and connected while somebody else has the shard; it is read once, after that one is fenced.
#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_is_prepared_fences_nobody_before_the_shard_is_opened() {
    let cluster = Cluster::start();
    let (name, topic) = (unique("prepared"), unique("prepared"));
    let one = Instance::start(&name, &cluster.brokers).await;
    let (mut old, _) = one.open().await;
    deliver(&mut old, &topic, 0, 2).await;
    old.settle(&[], &upto(2)).await.unwrap();

    let two = Instance::start(&name, &cluster.brokers).await;
    let prepared = two.sink.prepare([0, 1]).await.unwrap();
    deliver(&mut old, &topic, 2, 4).await;
    old.settle(&[], &upto(4)).await.expect("nobody is fenced");
    deliver(&mut old, &topic, 4, 9).await;

    let opened = two.sink.open_shards(&[0], prepared).await.unwrap();
    let [opened] = <[_; 1]>::try_from(opened).ok().expect("of two, one");
    assert_eq!((opened.shard, opened.checkpoints), (0, upto(4).progress));
    let lost = old.settle(&[], &upto(9)).await.unwrap_err();
    assert!(!matches!(lost, SinkError::Topic { .. }), "{lost}");

    let mut new = opened.producer.expect("it is the shard's");
    assert_eq!(new.open().await.unwrap(), None, "it was read already");
    deliver(&mut *new, &topic, 4, 6).await;
    new.settle(&[], &upto(6)).await.unwrap();
    let wanted: Vec<String> = (0..6).map(|n| n.to_string()).collect();
    assert_eq!(texts(&cluster.brokers, &topic), wanted);
    // Whoever takes it again has to read.
    let (_, found) = two.open().await;
    assert_eq!(found, upto(6).progress);
}

/// The checkpoints are read while somebody else writes them. Whatever is done to them until the shard is opened counts.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_after_the_checkpoints_were_read_aside_counts() {
    let cluster = Cluster::start();
    let (name, topic) = (unique("aside"), unique("aside"));
    let one = Instance::start(&name, &cluster.brokers).await;
    let (mut old, _) = one.open().await;
    deliver(&mut old, &topic, 0, 2).await;
    old.settle(&[], &upto(2)).await.unwrap();

    // By whoever has the shard; by another one, which takes it meanwhile; by nobody.
    let two = Instance::start(&name, &cluster.brokers).await;
    let prepared = two.sink.prepare_beside(vec![0]).await.unwrap();
    old.settle(&[], &upto(4)).await.expect("nobody is fenced");
    let opened = two.sink.open_shards(&[0], prepared).await.unwrap();
    assert_eq!(opened[0].checkpoints, upto(4).progress);

    let prepared = two.sink.prepare_beside(vec![0]).await.unwrap();
    let (mut other, found) = one.open().await;
    assert_eq!(found, upto(4).progress);
    other.settle(&[], &upto(6)).await.unwrap();
    let opened = two.sink.open_shards(&[0], prepared).await.unwrap();
    assert_eq!(opened[0].checkpoints, upto(6).progress);
    other.settle(&[], &upto(8)).await.expect_err("fenced");

    let prepared = two.sink.prepare_beside(vec![0]).await.unwrap();
    let mut opened = two.sink.open_shards(&[0], prepared).await.unwrap();
    assert_eq!(opened[0].checkpoints, upto(6).progress);
    let mut new = opened[0].producer.take().expect("it is the shard's");
    assert_eq!(new.open().await.unwrap(), None, "it was read already");
    // What is forgotten meanwhile is not remembered from before.
    let prepared = two.sink.prepare_beside(vec![0]).await.unwrap();
    let forgotten = Settlement {
        forgotten: upto(6).progress.into_keys().collect(),
        ..Settlement::default()
    };
    new.settle(&[], &forgotten).await.unwrap();
    let opened = two.sink.open_shards(&[0], prepared).await.unwrap();
    assert_eq!(opened[0].checkpoints, Checkpoints::new());
}

/// Nothing that was read of a topic is said of the one that takes its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_topic_that_is_made_again_meanwhile_is_read_anew() {
    let cluster = Cluster::start();
    let (name, topic) = (unique("anew"), unique("anew"));
    let one = Instance::start(&name, &cluster.brokers).await;
    let (mut old, _) = one.open().await;
    deliver(&mut old, &topic, 0, 2).await;
    for us in [1, 2] {
        old.settle(&[], &upto(us)).await.unwrap();
    }
    Settle::close(&mut old).await;
    let two = Instance::start(&name, &cluster.brokers).await;
    let prepared = two.sink.prepare_beside(vec![0]).await.unwrap();
    let operator = Operator::new(&cluster.brokers);
    operator
        .delete(&format!("penstock.{name}.checkpoints"))
        .await;
    let three = Instance::start(&name, &cluster.brokers).await;
    let opened = three.sink.load(&[0]).await.unwrap();
    assert_eq!(opened, [(0, Checkpoints::new())]);
    let opened = two.sink.open_shards(&[0], prepared).await.unwrap();
    assert_eq!(opened[0].checkpoints, Checkpoints::new());
}

/// From three shards to two: what stood with the third is moved, and whoever has it writes no more, although nobody opens it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_prepared_beside_more_shards_takes_all_of_them() {
    let cluster = Cluster::start();
    let name = unique("fewer");
    let of = |shards: u32| Instance::with(settings::settings(&name, &cluster.brokers, shards));
    let three = of(3).await;
    let mut olds = Vec::new();
    for number in 0..3 {
        let mut old = three.sink.open_shard(number).unwrap();
        old.open().await.unwrap();
        // Each has a group that is placed elsewhere among two.
        let group = (0_u32..)
            .map(|n| GroupKey(format!("ks.t/1/{n:02}").into()).numbered(n))
            .find(|group| group.shard(3) == number && group.shard(2) != number)
            .expect("one of many");
        let mut settlement = Settlement::default();
        settlement.progress.insert(group, progress(7));
        old.settle(&[], &settlement).await.unwrap();
        olds.push((old, settlement));
    }
    let two = of(2).await;
    let prepared = two.sink.prepare_beside(vec![0, 1]).await.unwrap();
    for (old, settlement) in &mut olds {
        for at in settlement.progress.values_mut() {
            *at = progress(9);
        }
        old.settle(&[], settlement)
            .await
            .expect("nobody is fenced yet");
    }
    let opened = two.sink.open_shards(&[0, 1], prepared).await.unwrap();
    let mut found = Checkpoints::new();
    for opened in opened {
        let placed = opened.checkpoints.keys().map(|group| group.shard(2));
        assert!(placed.into_iter().all(|shard| shard == opened.shard));
        assert!(opened.producer.is_some(), "it is the shard's");
        found.extend(opened.checkpoints);
    }
    let all: Checkpoints = olds
        .iter()
        .flat_map(|(_, settlement)| settlement.progress.clone())
        .collect();
    assert_eq!(found, all);
    for (old, settlement) in &mut olds {
        old.settle(&[], settlement).await.expect_err("fenced");
    }
    // They stand in their own partitions now, and nobody has the third shard.
    let held = two.sink.read_all_checkpoints().await.unwrap();
    for number in [0, 1] {
        let here = &held[&i32::try_from(number).unwrap()].checkpoints;
        assert!(!here.is_empty() && here.keys().all(|group| group.shard(2) == number));
    }
    assert_eq!(held[&2].checkpoints, Checkpoints::new());
    assert_eq!(held[&2].owner, Some(Owner::NOBODY));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_the_shard_can_write_nothing_and_is_told() {
    let cluster = Cluster::start();
    let (name, topic) = (unique("fenced"), unique("fenced"));
    let one = Instance::start(&name, &cluster.brokers).await;
    let (mut old, _) = one.open().await;
    deliver(&mut old, &topic, 0, 2).await;
    old.settle(&[], &upto(2)).await.unwrap();

    let two = Instance::start(&name, &cluster.brokers).await;
    let (mut new, found) = two.open().await;
    assert_eq!(found, upto(2).progress);
    new.settle(&[], &Settlement::default()).await.unwrap();

    let written = async {
        let ticket = old.submit(numbered(&topic, 2, 5, 1)).await?;
        ticket.await?;
        old.settle(&[], &upto(5)).await
    };
    written.await.expect_err("fenced");
    let error = old.reset().await.expect_err("it is another's");
    assert!(matches!(error, SinkError::Fenced { .. }), "{error}");

    deliver(&mut new, &topic, 2, 3).await;
    new.settle(&[], &upto(3)).await.unwrap();
    assert_eq!(texts(&cluster.brokers, &topic), ["0", "1", "2"]);
}

/// Both who reads the records and who asks how far other instances are: from its place on, behind what was aborted.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_a_shard_is_told_whether_another_had_it() {
    let cluster = Cluster::start();
    let name = unique("whose");
    let one = Instance::start(&name, &cluster.brokers).await;
    let two = Instance::start(&name, &cluster.brokers).await;
    let mut told = Vec::new();
    for instance in [&one, &one, &two, &one, &one] {
        let (_, found) = instance.take().await;
        told.push(found.is_ours);
    }
    assert_eq!(told, [false, true, false, false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_sees_what_is_committed_after_something_was_aborted() {
    let cluster = Cluster::start();
    let (name, topic) = (unique("followed"), unique("followed"));
    let one = Instance::start(&name, &cluster.brokers).await;
    let log = Arc::new(CheckpointLog::new(watch::Sender::new(())));
    let stop = CancellationToken::new();
    let (mut shard, _) = one.open().await;
    let following = {
        let (sink, log, stop) = (one.sink.clone(), log.clone(), stop.clone());
        std::thread::spawn(move || sink.follow_checkpoints(&log, &stop))
    };
    let reader = Follower::start(&cluster.brokers, &topic);
    let (group, _) = upto(0).progress.pop_first().expect("one");
    for to in [2, 4, 6, 8] {
        // Sent in two batches, and taken back.
        for n in [to - 2, to - 1] {
            deliver(&mut shard, &topic, n, n + 1).await;
        }
        shard.reset().await.unwrap();
        deliver(&mut shard, &topic, to - 2, to).await;
        shard.settle(&[], &upto(to.into())).await.unwrap();
        let followed = || reader.numbers().into_values().next().unwrap_or_default();
        let known = || log.complete_until_us(&group);
        let deadline = Instant::now() + Duration::from_secs(20);
        while followed().len() < to as usize || known() != Some(to.into()) {
            let (followed, known) = (followed(), known());
            assert!(
                Instant::now() < deadline,
                "{followed:?} and {known:?} followed of {to}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(followed(), (0..to).collect::<Vec<_>>());
        // An owner that dies between its checkpoints and its commit: the next one aborts them.
        drop(shard);
        leave_open(&cluster.brokers, &name);
        (shard, _) = one.open().await;
    }
    stop.cancel();
    following.join().expect("it followed").expect("no error");
}

/// Writes into the checkpoint topic as the owner of shard 0, and is gone before it commits.
fn leave_open(brokers: &str, pipeline: &str) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("transactional.id", format!("{pipeline}-0"))
        .create()
        .expect("a producer");
    let within = Duration::from_secs(10);
    producer.init_transactions(within).expect("taken over");
    producer.begin_transaction().expect("begun");
    let checkpoints = format!("penstock.{pipeline}.checkpoints");
    for n in 0..2 {
        let key = format!("ks.t/1/{n}");
        let record = BaseRecord::to(&checkpoints).partition(0).key(&key);
        producer.send(record.payload("?")).expect("taken");
        producer.flush(within).expect("written");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_broker_refuses_costs_its_transaction_and_then_only_itself() {
    let cluster = Cluster::start();
    let (name, topic) = (unique("refused"), unique("refused"));
    let mut settings = settings::settings(&name, &cluster.brokers, 1);
    let limit = ("max.message.bytes".to_owned(), "3000".to_owned());
    settings.sink.topics.properties.extend([limit]);
    let one = Instance::with(settings).await;
    let (mut shard, _) = one.open().await;
    let small = |maker: Maker, n| maker.record(position(1, n), &topic, "k", b"small", &[]);
    let maker = (0..5).fold(Maker::default(), small);
    let maker = maker.record(position(1, 5), &topic, "k", &[b'x'; 4000], &[]);
    let batch = (6..10).fold(maker, small).batch();
    let mut aborted = 0;
    let delivered = loop {
        let error = match shard.submit(batch.clone()).await {
            Ok(ticket) => match ticket.await {
                Ok(delivered) => break delivered,
                Err(error) => error,
            },
            Err(error) => error,
        };
        assert_eq!(error.class(), Class::Retryable, "{error:?}");
        aborted += 1;
        assert!(aborted < 20);
        shard.reset().await.unwrap();
    };
    let refused: Vec<u32> = delivered.poison.iter().map(|p| p.0).collect();
    assert_eq!(refused, [5]);
    shard.settle(&[], &upto(10)).await.unwrap();
    assert_eq!(texts(&cluster.brokers, &topic), ["small"; 9]);
}

/// librdkafka asks for its coordinator a second time only after half a second: that is no outage, however short an attempt
/// is to be.
#[tokio::test(flavor = "multi_thread")]
async fn taking_a_shard_may_take_longer_than_an_attempt() {
    let valve = Valve::start(Flow::Open);
    let mut settings = settings::settings(&unique("patient"), &valve.brokers, 1);
    settings.sink.attempt_timeout = Duration::from_millis(100);
    let one = NonZeroU32::MIN;
    settings.sink.policies.breaker =
        breaker::Settings::new(one, Duration::from_secs(30), one).expect("legal");
    let one = Instance::with(settings).await;
    drop(one.open().await);
    valve.set(Flow::Silent);
    let mut shard = one.sink.open_shard(0).unwrap();
    let answered = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        valve.set(Flow::Open);
    };
    let (opened, ()) = tokio::join!(shard.open(), answered);
    opened.expect("it was slow, not away");
    assert_eq!(one.policies.snapshot().breaker, State::Closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_takes_milliseconds() {
    let cluster = Cluster::start();
    let (name, topic) = (unique("quick"), unique("quick"));
    let one = Instance::start(&name, &cluster.brokers).await;
    let (mut shard, _) = one.open().await;
    let mut took = Vec::new();
    for n in 0..20 {
        let began = Instant::now();
        deliver(&mut shard, &topic, n, n + 1).await;
        shard.settle(&[], &upto(i64::from(n) + 1)).await.unwrap();
        took.push(began.elapsed());
    }
    took.sort();
    println!(
        "a settlement of one record: quick ones {:?}, median {:?}, worst {:?}",
        took[4], took[10], took[19]
    );
    // A commit that waits for rdkafka's polling takes 100 ms each time, a busy machine now and then.
    assert!(took[4] < Duration::from_millis(90), "{took:?}");
}

/// What the settlement will say is sent beside the records, if nothing is to join them: then only the commit itself is
/// waited for. What turns out otherwise is said in the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_that_was_foreseen_sends_nothing_more() {
    const PRODUCE: u16 = 0;
    let valve = Valve::start(Flow::Open);
    let (name, topic) = (unique("foreseen"), unique("foreseen"));
    let one = Instance::start(&name, &valve.brokers).await;
    let (mut shard, _) = one.open().await;
    let acked = |shard: &ShardSink| shard.snapshot().acked;
    for (from, foreseen, settled) in [(0, 5, 5), (5, 10, 10), (10, 12, 15)] {
        let before = acked(&shard);
        let batch = numbered(&topic, from, from + 5, 1);
        let look = shard.look(batch.clone(), true).await.unwrap();
        let leave = shard.leave(batch.clone()).await.unwrap();
        let ticket = shard.hand(batch, look.fits, leave).await.unwrap();
        shard.foresee(&upto(foreseen));
        shard.hasten();
        ticket.await.unwrap();
        let began = Instant::now();
        while acked(&shard) < before + 6 {
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "no checkpoint was sent"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let as_foreseen = foreseen == settled;
        valve.stall(as_foreseen.then_some(PRODUCE));
        let settlement = upto(settled);
        let settling = shard.settle(&[], &settlement);
        let within = Duration::from_secs(20);
        tokio::time::timeout(within, settling)
            .await
            .expect("an answer")
            .unwrap();
        valve.stall(None);
    }
    let two = Instance::start(&name, &valve.brokers).await;
    assert_eq!(two.open().await.1, upto(15).progress);
    assert_eq!(texts(&valve.brokers, &topic).len(), 15);
}
