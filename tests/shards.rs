//! Shards and their children, one by one: opened, drained and released while the others run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use penstock::config::settings::{Nodes, Policies, Settings};
use penstock::coordinator::child::{ChildId, Stage};
use penstock::coordinator::parts::Drivers;
use penstock::coordinator::pipeline::{Pipeline, PolicyRegistry};
use penstock::coordinator::plugins::PluginHost;
use penstock::coordinator::supervisor::{ChildSpec, Event, Standing, Supervisor};
use penstock::policy::restart::{self, OnFailed, Strategy};
use testkit::broker::{Cluster, read_all, unique};
use testkit::scylla::Db;
use testkit::settings;
use tokio::sync::{Semaphore, mpsc, watch};

const LONG: Duration = Duration::from_secs(60);

/// Lets the supervisor do its work until this holds.
async fn until(
    supervisor: &mut Supervisor,
    what: &str,
    mut holds: impl FnMut(&Supervisor) -> bool,
) {
    let holding = async {
        while !holds(supervisor) {
            let moment = tokio::time::sleep(Duration::from_millis(10));
            tokio::select! {
                event = supervisor.next_event() => eprintln!("{event:?}"),
                () = moment => {}
            }
        }
    };
    if tokio::time::timeout(LONG, holding).await.is_err() {
        panic!("not within {LONG:?}: {what}; {:?}", supervisor.status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_is_drained_released_and_opened_again_while_the_other_runs() {
    let options = scylla_double::Options {
        // Enough for every shard to have keys.
        vnodes: 16,
        ..scylla_double::Options::default()
    };
    let db = Db::with(false, options).await;
    let (cluster, topic) = (Cluster::start(), unique("shards"));
    db.run("CREATE TABLE t (pk int, n int, PRIMARY KEY (pk, n)) WITH cdc = {'enabled': true}")
        .await;
    let mut settings = db.settings(&["t"], 2);
    settings.pipeline.name = unique("p");
    settings.sink.brokers = Nodes::At(vec![cluster.brokers.clone()]);
    settings.sink.topic = topic.clone();
    let (_retune, live) = settings::live(settings.clone());
    let policies = PolicyRegistry::new(live.clone());
    let plugins = PluginHost::new(&settings).expect("an engine");
    let pipeline = Pipeline::connect(
        live.clone(),
        policies,
        (Arc::new(Drivers), plugins),
        Arc::default(),
        vec![0, 1],
        None,
    )
    .await
    .expect("both sides answer");
    let mut supervisor = Supervisor::new(live);
    let (failed, _failures) = mpsc::channel(1);
    let all = pipeline.numbers();
    pipeline.open(all, None).await.expect("opened");
    for child in pipeline.children(&failed) {
        supervisor.start(child);
    }

    const KEYS: usize = 32;
    let write = async |n: usize| {
        for key in 0..KEYS {
            db.run(&format!("INSERT INTO t (pk, n) VALUES ({key}, {n})"))
                .await;
        }
    };
    let lanes = pipeline.lanes();
    let done = |shard: usize| lanes[shard].counters.done.load(Relaxed) as usize;
    write(0).await;
    until(&mut supervisor, "the first round", |_| {
        done(0) + done(1) == KEYS
    })
    .await;
    let (first, second) = (done(0), done(1));
    assert!(first > 0 && second > 0, "both shards have keys");

    let shard = pipeline.shards()[0].clone();
    until(&mut supervisor, "its drain", |s| shard.drain(s)).await;
    supervisor.remove(|id| shard.owns(id)).await;
    pipeline.release(shard.number);
    let left = pipeline.shards();
    assert_eq!(left.iter().map(|s| s.number).collect::<Vec<_>>(), [1]);

    write(1).await;
    until(&mut supervisor, "the other's second round", |_| {
        done(1) == 2 * second
    })
    .await;
    assert_eq!(done(0), first, "nobody reads a shard that was released");
    assert_eq!(read_all(&cluster.brokers, &topic).len(), KEYS + second);

    pipeline.open([0], None).await.expect("opened again");
    for child in pipeline.shards()[0].children(&pipeline, &failed) {
        supervisor.start(child);
    }
    // It goes on counting where it was.
    until(&mut supervisor, "its second round", |_| {
        done(0) == 2 * first
    })
    .await;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for record in read_all(&cluster.brokers, &topic) {
        let position = record.header("penstock-position").expect("a position");
        *seen.entry(position.to_owned()).or_default() += 1;
    }
    assert_eq!(seen.len(), 2 * KEYS);
    let repeated = seen.values().filter(|&&n| n > 1).count();
    assert_eq!(repeated, 0, "it went on from its checkpoint");
    supervisor.remove(|_| true).await;
}

fn supervisor(strategy: Strategy) -> (watch::Sender<Arc<Settings>>, Supervisor) {
    let mut all = settings::settings("test", "127.0.0.1:1", 4);
    let second = Duration::from_secs(1);
    let policies = Policies {
        supervision: restart::Settings::new(strategy, 2, 60 * second, second, OnFailed::Isolate)
            .expect("settings"),
        ..Policies::default()
    };
    all.source.policies = policies.clone();
    all.sink.policies = policies.clone();
    all.dead_letter.policies = policies;
    let (retune, live) = settings::live(all);
    (retune, Supervisor::new(live))
}

fn sink(shard: u32) -> ChildId {
    ChildId::of_shard(Stage::Sink, shard)
}

/// Ends when it is told to drain.
fn waits(id: impl Into<ChildId>) -> ChildSpec {
    ChildSpec::new(id, |scope| async move {
        scope.drain.cancelled().await;
        Ok(())
    })
}

/// Crashes once each time that it is told to.
fn crashes(id: ChildId, told: &Arc<Semaphore>) -> ChildSpec {
    let told = told.clone();
    ChildSpec::new(id, move |_| {
        let told = told.clone();
        async move {
            told.acquire().await?.forget();
            anyhow::bail!("told to")
        }
    })
}

fn standing(supervisor: &Supervisor) -> Vec<(String, Standing, u64)> {
    let status = supervisor.status().into_iter();
    status.map(|c| (c.name, c.state, c.restarts)).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_of_one_shards_children_is_asked_of_no_others() {
    let (_retune, mut supervisor) = supervisor(Strategy::OneForOne);
    for shard in [0, 1] {
        supervisor.start(waits(sink(shard)));
        supervisor.start(waits(ChildId::of_shard(Stage::Source, shard)));
    }
    let first = |id: &ChildId| id.shard == Some(0);
    supervisor.drain(|id| first(id) && id.stage == Stage::Source);
    until(&mut supervisor, "one child's drain", |s| {
        s.is_drained(|id| first(id) && id.stage == Stage::Source)
    })
    .await;
    assert_eq!(supervisor.unfinished(first).collect::<Vec<_>>(), [&sink(0)]);
    supervisor.remove(first).await;
    let running = |name: &str| (name.to_owned(), Standing::Running, 0);
    assert_eq!(
        standing(&supervisor),
        [running("sink/1"), running("source/1")]
    );
}

#[tokio::test(start_paused = true)]
async fn rest_for_one_follows_the_way_of_a_change_whenever_a_shard_was_opened() {
    let (_retune, mut supervisor) = supervisor(Strategy::RestForOne);
    let told = Arc::new(Semaphore::new(0));
    // Shard 1 was here before shard 0, the dead letters came last.
    supervisor.start(waits(ChildId::of_shard(Stage::Source, 1)));
    supervisor.start(crashes(sink(1), &told));
    supervisor.start(waits(sink(0)));
    supervisor.start(waits(ChildId::of_shard(Stage::Source, 0)));
    supervisor.start(waits(Stage::DeadLetter));
    told.add_permits(1);
    until(&mut supervisor, "the restart", |s| {
        standing(s)
            .iter()
            .all(|(_, at, _)| *at == Standing::Running)
            && standing(s).iter().any(|(_, _, restarts)| *restarts > 0)
    })
    .await;
    let restarts: Vec<(String, u64)> = standing(&supervisor)
        .into_iter()
        .map(|(name, _, restarts)| (name, restarts))
        .collect();
    let expected = [
        ("dead_letter", 0),
        ("sink/0", 0),
        ("sink/1", 1),
        ("source/0", 1),
        ("source/1", 1),
    ];
    let expected = expected.map(|(name, restarts)| (name.to_owned(), restarts));
    assert_eq!(restarts, expected);
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_opened_while_its_stage_is_given_up_on_waits_for_it() {
    let (_retune, mut supervisor) = supervisor(Strategy::OneForOne);
    supervisor.start(waits(sink(0)));
    supervisor.fail(&Stage::Sink, |id| id.stage == Stage::Sink, "broken");
    let event = supervisor.next_event().await;
    assert!(
        matches!(
            event,
            Event::Failed {
                stage: Stage::Sink,
                ..
            }
        ),
        "{event:?}"
    );
    supervisor.start(waits(sink(1)));
    let at = |standing_of: &Supervisor| {
        standing(standing_of)
            .into_iter()
            .map(|c| c.1)
            .collect::<Vec<_>>()
    };
    assert_eq!(at(&supervisor), [Standing::Failed, Standing::Failed]);
    // One that is released takes nothing of what is known of the stage with it.
    supervisor.remove(|id| *id == sink(0)).await;
    supervisor.start(waits(sink(2)));
    assert_eq!(at(&supervisor), [Standing::Failed, Standing::Failed]);

    let mended = supervisor.revive(|id| *id == sink(1));
    assert_eq!(mended, [], "another shard's is still given up on");
    assert_eq!(supervisor.revive(|_| true), [Stage::Sink]);
    until(&mut supervisor, "both run", |s| {
        at(s) == [Standing::Running, Standing::Running]
    })
    .await;
    supervisor.start(waits(sink(3)));
    assert_eq!(at(&supervisor)[2], Standing::Running);
}

#[tokio::test(start_paused = true)]
async fn crashes_are_remembered_whoever_of_the_stage_is_left() {
    let (_retune, mut supervisor) = supervisor(Strategy::OneForOne);
    let told = Arc::new(Semaphore::new(0));
    supervisor.start(crashes(sink(0), &told));
    supervisor.start(waits(sink(1)));
    told.add_permits(1);
    until(&mut supervisor, "a crash", |s| s.status()[0].restarts == 1).await;
    let recent =
        |s: &Supervisor| s.recent_restarts(&Stage::Sink, tokio::time::Instant::now().into_std());
    supervisor.remove(|id| *id == sink(0)).await;
    assert_eq!(recent(&supervisor), 1);
    supervisor.remove(|id| id.stage == Stage::Sink).await;
    assert_eq!(recent(&supervisor), 1, "for a stage that is made anew");
    tokio::time::advance(Duration::from_hours(1)).await;
    assert_eq!(recent(&supervisor), 0);
}
