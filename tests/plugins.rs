//! Transforms on real WebAssembly: what a plugin is sent, what it makes, and what its faults cost.

// Each test file takes of the support what it needs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock::change::{Batch, RecordBatch, TableSchema};
use penstock::config::settings::{OnError, Settings, Transform};
use penstock::transform::{
    Chain, Code as _, Engine, Plugin, PluginError, Prepared, TapFilter, Taps, TransformError,
    with_source,
};
use penstock_conditions::Condition;
use penstock_plugin_encoding::{ColumnTag, Operation};
use testkit::plugins;
use testkit::tally::Tally;
use testkit::transforms::{
    BatchBuilder, Cell, engine, headers, settings, table, text, transform, values,
};
use tokio::sync::watch;

/// Keeps the sender, whose end would end the settings.
struct Rig {
    engine: Engine,
    chain: Chain,
    live: watch::Sender<Arc<Settings>>,
}

fn rig(transforms: &[(&str, Transform)]) -> Rig {
    let engine = engine();
    let prepared = transforms.iter().map(|(package, transform)| {
        let plugin = Plugin::load(&engine, plugins::plugin(package)).unwrap();
        Prepared::new(transform, plugin, &[]).unwrap()
    });
    let prepared = prepared.collect();
    let all = transforms.iter().map(|(_, t)| t.clone()).collect();
    let (live, receiver) = watch::channel(Arc::new(settings(all)));
    Rig {
        chain: Chain::new(prepared, receiver),
        engine,
        live,
    }
}

fn faulty(name: &str) -> (&'static str, Transform) {
    ("test-faults", transform(name, OnError::DeadLetter, &[]))
}

/// For tests of loops, which cost whole deadlines.
fn hasty(name: &str) -> (&'static str, Transform) {
    let (package, mut transform) = faulty(name);
    transform.limits.deadline = Duration::from_millis(100);
    (package, transform)
}

fn faults_table() -> Arc<TableSchema> {
    table(3, "t", &["id text primary", "fault text", "secret text"])
}

/// A change for each fault, ids counting from 0.
fn batch_of(faults: &[&str]) -> Batch {
    let table = faults_table();
    let mut b = BatchBuilder::new(&[&table]);
    for (i, fault) in faults.iter().enumerate() {
        let id = i.to_string();
        let cells = [
            Cell::Set(id.as_bytes()),
            Cell::Set(fault.as_bytes()),
            Cell::Set(b"secret"),
        ];
        b.insert(&table, &cells);
    }
    b.finish()
}

/// 40 changes, one of which does something.
fn with_one(at: usize, fault: &str) -> Batch {
    let mut faults = vec![""; 40];
    faults[at] = fault;
    batch_of(&faults)
}

fn ids(range: impl Iterator<Item = usize>) -> Vec<String> {
    range.map(|i| i.to_string()).collect()
}

fn outbox_table() -> Arc<TableSchema> {
    table(
        1,
        "outbox_messages",
        &[
            "aggregate_id text primary",
            "event_id timeuuid clustering",
            "aggregate_type text",
            "event_type text",
            "payload text",
            "created_at timestamp",
            "traceparent text",
        ],
    )
}

fn outbox_batch(payload: &[u8], n: usize) -> Batch {
    let table = outbox_table();
    let mut b = BatchBuilder::new(&[&table]);
    for i in 0..n {
        let id = format!("order-{i}");
        let cells = [
            Cell::Set(id.as_bytes()),
            Cell::Set(&[0x11; 16]),
            Cell::Set(b"order"),
            Cell::Set(b"created"),
            Cell::Set(payload),
            Cell::Set(&[0; 8]),
            Cell::Unchanged,
        ];
        b.insert(&table, &cells);
    }
    b.finish()
}

fn router() -> (&'static str, Transform) {
    let settings = [("topic_prefix", "events.")];
    (
        "outbox-router",
        transform("router", OnError::DeadLetter, &settings),
    )
}

#[test]
fn a_transform_of_some_tables_is_handed_no_others() {
    let (package, mut of_others) = router();
    of_others.tables = Some(vec!["people".to_owned()]);
    let mut rig = rig(&[(package, of_others)]);
    let topics = |rig: &mut Rig| {
        let made = rig.chain.process(outbox_batch(b"payload", 2)).unwrap();
        assert_eq!(made.records.len(), 2);
        made.topics
            .iter()
            .map(|t| t.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        topics(&mut rig),
        ["test.ks.outbox_messages"],
        "they pass by"
    );
    // In force at the next batch, as anything that is live.
    let (_, mut of_this) = router();
    of_this.tables = Some(vec!["outbox_messages".to_owned()]);
    rig.live.send(Arc::new(settings(vec![of_this]))).unwrap();
    assert_eq!(topics(&mut rig), ["events.order"]);
}

/// Of changes and of records, without a call of the plugin for those that it is not for.
#[test]
fn a_transform_with_a_condition_is_handed_what_it_holds_for() {
    let when = |(package, mut transform): (&'static str, Transform), text: &str| {
        transform.when = Some(Condition::compile(text).unwrap());
        (package, transform)
    };
    let drops = transform("drops", OnError::DeadLetter, &[("keep", "false")]);
    let mut rig = rig(&[
        when(
            router(),
            "columns.aggregate_id != 'order-1' && op == 'insert'",
        ),
        when(
            ("filter", drops.clone()),
            "columns.aggregate_id == 'order-2' && topic.startsWith('events.')",
        ),
    ]);
    let made = rig.chain.process(outbox_batch(b"payload", 3)).unwrap();
    let topics: Vec<&str> = made
        .records
        .iter()
        .map(|r| &*made.topics[r.topic as usize])
        .collect();
    // The change that passed the first by has no topic: of that one the second cannot be told whether it holds.
    assert_eq!(topics, ["events.order", "test.ks.outbox_messages"]);
    assert_eq!((made.dropped, made.rejected.len()), (1, 0));
    assert_eq!(rig.chain.reports()[0].faults.len(), 0);

    // In force at the next batch. What cannot be told is the change's own trouble.
    let (_, router) = when(
        router(),
        "columns.traceparent == 'x' || columns.aggregate_id == 'order-0'",
    );
    rig.live
        .send(Arc::new(settings(vec![router, drops])))
        .unwrap();
    let made = rig.chain.process(outbox_batch(b"payload", 2)).unwrap();
    assert_eq!(made.rejected.len(), 1);
    let rejected = &made.rejected[0];
    assert_eq!((rejected.source, &*rejected.stage), (1, "transform.router"));
    assert!(
        rejected.error.starts_with("when: `columns.traceparent"),
        "{}",
        rejected.error
    );
    assert!(
        rejected.error.ends_with("No such key: traceparent"),
        "{}",
        rejected.error
    );
}

#[test]
fn a_tap_shows_what_it_may_and_counts_the_rest() {
    let mut rig = rig(&[router()]);
    let taps = Arc::new(Taps::default());
    rig.chain = rig.chain.with_taps(taps.clone());
    let filter = |stage: &str| TapFilter {
        stage: stage.to_owned(),
        table: None,
        operation: None,
        topic: None,
        contains: None,
        rate: 10,
    };
    let now = Instant::now();
    for stage in ["source", "transform.router", "sink"] {
        taps.take(stage, &filter(stage), now).unwrap();
    }
    rig.chain.process(outbox_batch(b"payload", 1000)).unwrap();
    let taken = taps.take("source", &filter("source"), now).unwrap();
    assert_eq!(
        (taken.lines.len(), taken.seen, taken.dropped),
        (10, 1000, 990)
    );
    assert_eq!(taken.lines[0]["operation"], "insert");
    assert!(taken.tables["ks.outbox_messages"].starts_with("aggregate_id text primary, "));
    for stage in ["transform.router", "sink"] {
        let taken = taps.take(stage, &filter(stage), now).unwrap();
        assert_eq!(taken.lines[0]["record"]["topic"], "events.order", "{stage}");
    }
    // What nobody asks for any more ends; and there is a bound.
    let later = now + Duration::from_secs(11);
    for n in 0..8 {
        taps.take(&n.to_string(), &filter("sink"), later).unwrap();
    }
    assert!(taps.take("x", &filter("sink"), later).is_err());
}

#[test]
fn the_outbox_router_routes_and_points_at_the_payload() {
    let mut rig = rig(&[router()]);
    let made = rig.chain.process(outbox_batch(b"{\"n\":1}", 3)).unwrap();
    assert_eq!(made.records.len(), 3);
    assert_eq!(
        &*made.topics[made.records[2].topic as usize],
        "events.order"
    );
    assert_eq!(text(&made, made.records[2].key), "order-2");
    assert_eq!(values(&made), ["{\"n\":1}"; 3]);
    let in_source = |slice| matches!(slice, penstock::change::Slice::Source { .. });
    assert!(
        in_source(made.records[0].value),
        "the payload is not copied"
    );
    let expected = [
        ("event-id", "11111111-1111-1111-1111-111111111111"),
        ("event-type", "created"),
    ];
    assert_eq!(
        headers(&made, 2),
        expected.map(|(n, v)| (n.to_owned(), v.to_owned()))
    );
    assert_eq!((made.rejected.len(), made.dropped), (0, 0));
}

#[test]
fn a_missing_payload_is_null_in_a_new_row_and_refuses_its_update_only() {
    let (package, mut router) = router();
    let event = ("on_update".to_owned(), "event".to_owned());
    router.settings.extend([event]);
    let mut rig = rig(&[(package, router)]);
    let table = outbox_table();
    let mut b = BatchBuilder::new(&[&table]);
    let (insert, update) = (Operation::Insert, Operation::Update);
    for (operation, payload) in [
        (insert, Cell::Set(b"a")),
        (insert, Cell::Unchanged),
        (insert, Cell::Null),
        (update, Cell::Unchanged),
        (update, Cell::Set(b"b")),
    ] {
        let cells = [
            Cell::Set(b"id"),
            Cell::Set(&[0x11; 16]),
            Cell::Set(b"order"),
            Cell::Set(b"created"),
            payload,
            Cell::Unchanged,
            Cell::Unchanged,
        ];
        b.write += 1;
        b.row(&table, operation, &cells);
    }
    let made = rig.chain.process(b.finish()).unwrap();
    assert_eq!(values(&made), ["a", "<null>", "<null>", "b"]);
    assert_eq!(made.rejected.len(), 1);
    assert_eq!(made.rejected[0].source, 3);
    assert_eq!(
        made.rejected[0].error,
        "column `payload` of ks.outbox_messages has no value"
    );
    assert!(
        rig.chain.reports()[0].faults.is_empty(),
        "poison is no fault"
    );
}

/// Every kind of fault costs its own change and no other, at either end and in the middle.
#[test]
fn a_fault_costs_only_its_own_change() {
    let mut patient = rig(&[faulty("faults")]);
    let mut hasty = rig(&[hasty("faults")]);
    for (fault, said) in [
        ("panic", "asked to panic"),
        ("trap", "trapped: "),
        ("loop", "deadline of 100ms exceeded"),
        ("memory", "memory limit of 8388608 bytes exceeded"),
        ("stack", "trapped: "),
        ("batch-error", "asked to fail the batch"),
        ("garbage", "invalid output: "),
        ("lying-count", "invalid output: "),
        ("lying-source", "invalid output: "),
        ("lying-row", "invalid output: "),
        ("lying-column", "invalid output: "),
        ("backwards", "invalid output: "),
        ("bad-topic", "is not a topic's name"),
        ("error", "asked to refuse"),
    ] {
        let rig = if fault == "loop" {
            &mut hasty
        } else {
            &mut patient
        };
        // A single row cannot go backwards.
        for at in if fault == "backwards" {
            vec![]
        } else {
            vec![0, 17, 39]
        } {
            let made = rig.chain.process(with_one(at, fault)).unwrap();
            let others = ids((0..40).filter(|i| *i != at));
            assert_eq!(values(&made), others, "{fault} at {at}");
            assert_eq!(made.rejected.len(), 1, "{fault} at {at}");
            let rejected = &made.rejected[0];
            assert_eq!(rejected.source as usize, at);
            assert_eq!(&*rejected.stage, "transform.faults");
            assert!(rejected.error.contains(said), "{fault}: {}", rejected.error);
            assert_eq!(made.dropped, 0);
            let report = &rig.chain.reports()[0];
            let answers = ["batch-error", "bad-topic", "error"];
            let faults = usize::from(!answers.contains(&fault));
            assert_eq!(report.faults.len(), faults, "{fault}: {:?}", report.faults);
            assert_eq!(report.rejected, 1);
        }
    }
}

/// "Not yet": what is before the change is done, what is after it waits, nothing is seen twice, and nobody is refused
/// unless that is asked for.
#[test]
fn a_change_that_is_put_off_holds_up_those_behind_it() {
    let (package, mut elsewhere) = faulty("elsewhere");
    elsewhere.tables = Some(vec!["other".to_owned()]);
    let mut rig = rig(&[(package, elsewhere), faulty("first")]);
    let mut faults = vec![""; 40];
    (faults[0], faults[16], faults[17], faults[39]) = ("trap", "forward", "not-yet", "error");
    let put_off = |made: Result<RecordBatch, TransformError>, tries| match made.unwrap_err() {
        TransformError::NotYet {
            stage,
            place,
            error,
            tries: seen,
        } => {
            assert_eq!(&*stage, "transform.first");
            assert!(place < 2);
            assert_eq!((error.as_str(), seen), ("asked to wait", tries));
        }
        other => panic!("{other}"),
    };
    put_off(rig.chain.process(batch_of(&faults)), 1);
    let report = &rig.chain.reports()[1];
    assert_eq!(report.items, 17);
    assert_eq!(
        report.faults.last().unwrap(),
        "asked to be tried again: asked to wait"
    );
    for tries in 2..5 {
        put_off(rig.chain.go_on(false, &|| {}).unwrap(), tries);
        let report = &rig.chain.reports()[0];
        assert_eq!(
            (report.items, report.faults.len(), report.rejected),
            (0, 1, 0)
        );
    }
    // Another version takes over between two tries, as at any other boundary.
    let mut next = faulty("first").1;
    next.settings = [("version".to_owned(), "2".to_owned())].into();
    let plugin = rig.chain.plugin("first").unwrap().clone();
    let prepared = Prepared::new(&next, plugin, rig.chain.tables()).unwrap();
    rig.chain.swap(prepared).unwrap();
    let made = rig.chain.go_on(false, &|| {}).unwrap().unwrap();
    let refused: Vec<_> = made.rejected.iter().map(|r| r.source).collect();
    assert_eq!(refused, [0, 39]);
    let version = |n: usize| {
        let headers = headers(&made, n).into_iter();
        headers
            .clone()
            .find(|(name, _)| name == "version")
            .map(|h| h.1)
    };
    let mut versions: Vec<_> = (0..made.records.len()).filter_map(version).collect();
    assert_eq!(made.records.len(), 38, "each once");
    versions.dedup_by(|a, b| a == b);
    assert_eq!(versions, ["1", "2"]);
    assert!(rig.chain.go_on(false, &|| {}).is_none(), "it is done");

    // Given up on, it is refused, and those behind it are not.
    let mut rig = self::rig(&[faulty("first")]);
    let batch = || batch_of(&["", "not-yet", "", "not-yet", ""]);
    put_off(rig.chain.process(batch()), 1);
    put_off(rig.chain.go_on(false, &|| {}).unwrap(), 2);
    put_off(rig.chain.go_on(true, &|| {}).unwrap(), 1);
    let made = rig.chain.go_on(true, &|| {}).unwrap().unwrap();
    assert_eq!(values(&made), ["0", "2", "4"]);
    let refused: Vec<_> = made
        .rejected
        .iter()
        .map(|r| (r.source, r.error.as_str(), r.attempts))
        .collect();
    assert_eq!(refused, [(1, "asked to wait", 2), (3, "asked to wait", 1)]);

    // Tried for ever it takes no room for ever; and a lie about it is one.
    put_off(rig.chain.process(batch_of(&["not-yet"])), 1);
    for tries in 2..100 {
        put_off(rig.chain.go_on(false, &|| {}).unwrap(), tries);
    }
    let made = rig.chain.go_on(true, &|| {}).unwrap().unwrap();
    assert!(made.output.is_empty());
    let made = rig
        .chain
        .process(batch_of(&["forward-after-retry"]))
        .unwrap();
    let said = &made.rejected[0].error;
    assert!(
        said.contains("an entry after a retry, which is the last"),
        "{said}"
    );
}

#[test]
fn a_panic_says_where_it_was() {
    let mut rig = rig(&[faulty("faults")]);
    let made = rig.chain.process(batch_of(&["panic"])).unwrap();
    let error = &made.rejected[0].error;
    assert!(error.contains("plugins/test-faults/src/lib.rs:"), "{error}");
}

#[test]
fn a_fault_of_the_whole_that_is_nobodys_rejects_nobody() {
    // Rows that go backwards only do so in company.
    let mut rig = rig(&[faulty("faults")]);
    let made = rig.chain.process(with_one(5, "backwards")).unwrap();
    assert!(made.rejected.is_empty(), "{:?}", made.rejected);
    assert_eq!(made.records.len(), 40 + 1, "it is forwarded, once or twice");
    assert_eq!(rig.chain.reports()[0].faults.len(), 1);
}

#[test]
fn several_bad_changes_are_each_found() {
    let mut rig = rig(&[faulty("faults")]);
    let mut faults = vec![""; 64];
    for at in [0, 1, 2, 20, 33, 34, 63] {
        faults[at] = if at % 2 == 0 { "trap" } else { "error" };
    }
    let made = rig.chain.process(batch_of(&faults)).unwrap();
    let bad: Vec<_> = made.rejected.iter().map(|r| r.source).collect();
    assert_eq!(bad, [0, 1, 2, 20, 33, 34, 63]);
    assert_eq!(
        values(&made),
        ids((0..64).filter(|i| faults[*i].is_empty()))
    );
    assert_eq!(
        rig.chain.reports()[0].faults.len(),
        4,
        "one each, not one a try"
    );
}

/// A loop costs whole deadlines, so that is what is counted: each makes a new instance.
#[test]
fn a_loop_costs_few_deadlines() {
    let mut rig = rig(&[hasty("faults")]);
    let mut faults = vec![""; 512];
    faults[511] = "loop";
    let made = rig.chain.process(batch_of(&faults)).unwrap();
    assert_eq!((made.records.len(), made.rejected.len()), (511, 1));
    let attempts = made.rejected[0].attempts;
    assert!(attempts <= 12, "log2(512) + 3, not {attempts}");
    let report = &rig.chain.reports()[0];
    assert_eq!(
        report.renewed + 1,
        attempts,
        "the last one is made when it is needed"
    );

    // Alone, it is tried twice: a deadline is of the wall clock.
    let made = rig.chain.process(batch_of(&["loop"])).unwrap();
    assert_eq!(made.rejected[0].attempts, 2);
}

/// A guest that leaks until its limit, handed one change a call and many: a fault that a fresh instance does not
/// repeat is not the change's.
#[test]
fn what_an_instance_has_left_behind_is_no_fault_of_a_change() {
    let mut rig = rig(&[faulty("faults")]);
    let mut faults = 0;
    for n in 0..20 {
        let made = rig.chain.process(batch_of(&["leak"])).unwrap();
        assert!(made.rejected.is_empty(), "change {n}: {:?}", made.rejected);
        assert_eq!(values(&made), ["0"]);
        faults += rig.chain.reports()[0].faults.len();
    }
    assert!(
        (2..=4).contains(&faults),
        "each time that it is full counts: {faults}"
    );
    let made = rig.chain.process(batch_of(&["leak"; 40])).unwrap();
    assert!(made.rejected.is_empty(), "{:?}", made.rejected);
    assert_eq!(values(&made), ids(0..40));

    // Whatever it is that an instance has had enough of.
    let made = rig.chain.process(batch_of(&["tired"; 9])).unwrap();
    assert!(made.rejected.is_empty(), "{:?}", made.rejected);
    assert_eq!(values(&made), ids(0..9));
    // And what is the change's own is found among it.
    let mixed = ["leak", "tired", "trap", "tired", "leak", "memory", "tired"];
    let made = rig.chain.process(batch_of(&mixed)).unwrap();
    let bad: Vec<_> = made.rejected.iter().map(|r| r.source).collect();
    assert_eq!(bad, [2, 5]);
    assert_eq!(values(&made), ["0", "1", "3", "4", "6"]);
}

/// What a guest says is kept for each change that it concerns, and goes into its dead letter: in bounds.
#[test]
fn what_a_guest_says_is_cut() {
    let mut rig = rig(&[faulty("faults")]);
    let long = table(7, "long", &["id text primary", "fault text"]);
    for batch in [
        batch_of(&["long-error"; 64]),
        batch_of(&["long-batch-error"; 64]),
        {
            let mut b = BatchBuilder::new(&[&long]);
            for _ in 0..64 {
                b.insert(&long, &[Cell::Set(b"x"), Cell::Null]);
            }
            b.finish()
        },
    ] {
        let made = rig.chain.process(batch).unwrap();
        assert_eq!(made.rejected.len(), 64);
        for rejected in &made.rejected {
            assert!(rejected.error.starts_with("long long"));
            assert!(
                rejected.error.capacity() < 5_000,
                "{}",
                rejected.error.len()
            );
        }
    }
}

/// A batch of nothing but loops takes a deadline each; in between it shows that it goes on.
#[test]
fn a_long_search_for_bad_changes_shows_that_it_goes_on() {
    let mut rig = rig(&[hasty("faults")]);
    let (longest, last) = (
        std::cell::Cell::new(Duration::ZERO),
        std::cell::Cell::new(Instant::now()),
    );
    let pulse = || {
        longest.set(longest.get().max(last.replace(Instant::now()).elapsed()));
    };
    let began = Instant::now();
    let made = rig
        .chain
        .process_watched(batch_of(&["loop"; 16]), &pulse)
        .unwrap();
    assert_eq!(made.rejected.len(), 16);
    assert!(began.elapsed() > Duration::from_millis(1_600));
    assert!(longest.get() < began.elapsed() / 4, "{longest:?}");
}

/// Memory that threads share is outside of the limit, and a wait on it outside of the deadline.
#[test]
fn shared_memory_is_refused() {
    let module = b"\0asm\x01\0\0\0\x05\x04\x01\x03\x01\x01";
    let loaded = Plugin::from_bytes(&engine(), "shared.wasm".into(), module);
    let error = loaded.unwrap_err().to_string();
    assert!(error.contains("threads"), "{error}");
}

#[test]
fn one_file_is_compiled_once() {
    let engine = engine();
    let file = plugins::plugin("test-faults");
    let mut compiled = Vec::new();
    let mut load = || Plugin::load_once(&engine, &file, &mut compiled).unwrap();
    let (one, other) = (load(), load());
    assert!(Arc::ptr_eq(&one, &other));
    assert_eq!(compiled.len(), 1);
}

#[test]
fn a_plugin_that_loops_on_everything_costs_about_a_deadline_each() {
    let mut rig = rig(&[hasty("faults")]);
    let made = rig.chain.process(batch_of(&["loop"; 32])).unwrap();
    assert_eq!((made.records.len(), made.rejected.len()), (0, 32));
    let report = &rig.chain.reports()[0];
    assert_eq!(report.faults.len(), 32);
    assert!(report.renewed <= 5 + 2 + 31, "{report:?}");
}

#[test]
fn on_error_says_what_becomes_of_a_bad_change() {
    let mut drops = transform("faults", OnError::Drop, &[]);
    let mut rig = rig(&[("test-faults", drops.clone())]);
    let made = rig.chain.process(with_one(3, "trap")).unwrap();
    assert_eq!((made.rejected.len(), made.dropped), (0, 1));
    assert_eq!(made.records.len(), 39);
    assert_eq!(rig.chain.reports()[0].dropped_on_error, 1);
    assert_eq!(rig.chain.reports()[0].faults.len(), 1);

    // It is live: the next batch sees it.
    drops.on_error = OnError::Stop;
    rig.live.send(Arc::new(settings(vec![drops]))).unwrap();
    let error = rig.chain.process(with_one(3, "error")).unwrap_err();
    let TransformError::Stopped {
        position, error, ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(position.unwrap().seq, 3);
    assert_eq!(error, "asked to refuse");
}

#[test]
fn limits_are_live() {
    let (package, mut limited) = hasty("faults");
    let mut rig = rig(&[(package, limited.clone())]);
    let slow = |rig: &mut Rig| {
        let started = Instant::now();
        let made = rig.chain.process(batch_of(&["loop"])).unwrap();
        (made.rejected[0].error.clone(), started.elapsed())
    };
    assert_eq!(slow(&mut rig).0, "deadline of 100ms exceeded");
    limited.limits.deadline = Duration::from_millis(400);
    limited.limits.memory = 4 << 20;
    rig.live.send(Arc::new(settings(vec![limited]))).unwrap();
    let (error, took) = slow(&mut rig);
    assert_eq!(error, "deadline of 400ms exceeded");
    assert!(took >= Duration::from_millis(390), "{took:?}");
    let made = rig.chain.process(batch_of(&["memory"])).unwrap();
    assert_eq!(
        made.rejected[0].error,
        "memory limit of 4194304 bytes exceeded"
    );
}

#[test]
fn the_store_is_kept_until_a_fault() {
    let mut rig = rig(&[faulty("faults")]);
    let changes = |made: &RecordBatch| headers(made, made.records.len() - 1)[1].1.clone();
    assert_eq!(
        changes(&rig.chain.process(batch_of(&["", ""])).unwrap()),
        "2"
    );
    assert_eq!(
        changes(&rig.chain.process(batch_of(&["", ""])).unwrap()),
        "4"
    );
    rig.chain.process(batch_of(&["trap"])).unwrap();
    assert_eq!(
        changes(&rig.chain.process(batch_of(&["", ""])).unwrap()),
        "2"
    );
}

#[test]
fn what_a_plugin_forwards_drops_and_ignores_is_accounted_for() {
    let mut rig = rig(&[faulty("faults")]);
    let faults = faults_table();
    let ignored = table(4, "ignored", &["key int primary"]);
    let mut b = BatchBuilder::new(&[&faults, &ignored]);
    let mut add = |id: &str, fault: &str| {
        let cells = [
            Cell::Set(id.as_bytes()),
            Cell::Set(fault.as_bytes()),
            Cell::Unchanged,
        ];
        b.insert(&faults, &cells);
    };
    add("a", "twice");
    add("b", "drop");
    add("c", "forward");
    b.insert(&ignored, &[Cell::Set(&7i32.to_be_bytes())]);
    let made = rig.chain.process(b.finish()).unwrap();
    let topics: Vec<_> = made
        .records
        .iter()
        .map(|r| &*made.topics[r.topic as usize])
        .collect();
    assert_eq!(topics, ["ok", "ok", "test.ks.t", "test.ks.ignored"]);
    assert_eq!(made.dropped, 1);
    assert_eq!(text(&made, made.records[3].key), "{\"key\":7}");
    let value: serde_json::Value =
        serde_json::from_str(&text(&made, made.records[3].value)).unwrap();
    assert_eq!(value["table"], "ks.ignored");
    assert_eq!(value["operation"], "insert");
    assert_eq!(value["columns"]["key"], 7);
}

#[test]
fn tables_that_a_plugin_refuses_have_their_changes_refused() {
    let mut rig = rig(&[faulty("faults")]);
    let odd = table(5, "odd", &["id text primary"]);
    let wild = table(6, "wild", &["id text primary", "fault text"]);
    let good = faults_table();
    let mut b = BatchBuilder::new(&[&odd, &wild, &good]);
    b.insert(&odd, &[Cell::Set(b"x")]);
    b.insert(&wild, &[Cell::Set(b"x"), Cell::Null]);
    b.insert(&good, &[Cell::Set(b"y"), Cell::Unchanged, Cell::Unchanged]);
    let made = rig.chain.process(b.finish()).unwrap();
    assert_eq!(values(&made), ["y"]);
    assert_eq!(made.rejected[0].error, "no column fault in odd");
    let report = &rig.chain.reports()[0];
    assert!(report.faults.is_empty(), "answers are no failures");
    let told = report.refuses.as_deref();
    assert_eq!(
        told,
        Some("all changes of ks.odd are refused: no column fault in odd")
    );
    let error = &made.rejected[1].error;
    assert!(
        error.contains("asked for column 999 of ks.wild, which has 2 columns"),
        "{error}"
    );
}

#[test]
fn a_table_whose_opening_traps_costs_its_own_changes_only() {
    let mut rig = rig(&[faulty("faults")]);
    let (good, other, bad) = (
        table(1, "good", &["id text primary", "fault text"]),
        table(2, "other", &["id text primary", "fault text"]),
        table(3, "trap", &["id text primary", "fault text"]),
    );
    for round in 0..2 {
        let mut b = BatchBuilder::new(&[&good, &other, &bad]);
        for (table, id) in [(&good, "0"), (&bad, "1"), (&other, "2"), (&good, "3")] {
            b.insert(table, &[Cell::Set(id.as_bytes()), Cell::Null]);
        }
        let made = rig.chain.process(b.finish()).unwrap();
        assert_eq!(values(&made), ["0", "2", "3"]);
        assert_eq!(made.rejected.len(), 1);
        let error = &made.rejected[0].error;
        assert!(error.contains("asked to panic in open-table"), "{error}");
        let report = &rig.chain.reports()[0];
        assert_eq!(
            report.faults.len(),
            if round == 0 { 2 } else { 1 },
            "it is not opened again and again, and counts for the breaker in each batch"
        );
        let fault = &report.faults[0];
        assert!(fault.starts_with("ks.trap: open-table: "), "{fault}");
    }
    let told = |rig: &Rig| rig.chain.reports()[0].refuses.clone();
    rig.chain.process(BatchBuilder::new(&[]).finish()).unwrap();
    let stands = told(&rig).expect("it stands without changes of the table");
    let whose = "all changes of ks.trap are refused: open-table: ";
    assert!(stands.starts_with(whose), "{stands}");
    // Now the transform is for other tables.
    let (_, mut other) = faulty("faults");
    other.tables = Some(vec!["good".to_owned()]);
    rig.live.send(Arc::new(settings(vec![other]))).unwrap();
    rig.chain.process(BatchBuilder::new(&[]).finish()).unwrap();
    assert_eq!(told(&rig), None);
}

#[test]
fn images_go_with_their_change_and_are_nobodys_own() {
    let mut rig = rig(&[faulty("faults")]);
    let t = faults_table();
    let mut b = BatchBuilder::new(&[&t]);
    for (id, fault) in [("0", "trap"), ("1", "forward"), ("2", "")] {
        b.write += 1;
        let cells = |fault: &'static str| {
            let fault = Cell::Set(fault.as_bytes());
            [Cell::Set(id.as_bytes()), fault, Cell::Unchanged]
        };
        let pre = b.row(&t, Operation::PreImage, &cells("trap"));
        let row = b.row(&t, Operation::Update, &cells(fault));
        let post = b.row(&t, Operation::PostImage, &cells("loop"));
        b.links().link_preimage(row, pre);
        b.links().link_end(row, post);
    }
    let made = rig.chain.process(b.finish()).unwrap();
    assert_eq!(made.rejected.len(), 1);
    assert_eq!(
        made.rejected[0].source, 1,
        "the row of the change, not of its image"
    );
    assert_eq!(made.records.len(), 2);
    assert_eq!(text(&made, made.records[1].value), "2");
    assert_eq!(made.dropped, 0, "images are not changes");
    let value: serde_json::Value =
        serde_json::from_str(&text(&made, made.records[0].value)).unwrap();
    assert_eq!(
        value["columns"],
        serde_json::json!({"id": "1", "fault": "forward"})
    );
    assert_eq!(value["preimage"]["fault"], "trap");
    assert_eq!(value["postimage"]["fault"], "loop");
}

/// The second of two transforms sees the first one's records; `outbox-router` reads them by setting.
#[test]
fn a_second_transform_sees_the_records_of_the_first() {
    let again = transform(
        "again",
        OnError::DeadLetter,
        &[
            ("topic_prefix", "again."),
            ("tables", "penstock.record"),
            ("aggregate_type_column", "topic"),
            ("aggregate_id_column", "key"),
            ("event_id_column", "key"),
            ("event_type_column", "topic"),
            ("payload_column", "value"),
        ],
    );
    let mut rig = rig(&[faulty("first"), ("outbox-router", again)]);
    let made = rig
        .chain
        .process(batch_of(&["", "forward", "error", "twice", ""]))
        .unwrap();
    let topics: Vec<_> = made
        .records
        .iter()
        .map(|r| &*made.topics[r.topic as usize])
        .collect();
    // "twice" writes records without a key, which the second transform refuses: the whole change is.
    assert_eq!(topics, ["again.ok", "test.ks.t", "again.ok"]);
    assert_eq!(text(&made, made.records[0].value), "0");
    assert_eq!(text(&made, made.records[2].value), "4");
    assert_eq!(
        text(&made, made.records[0].key),
        "0x6b6579",
        "a blob's text form"
    );
    let rejected: Vec<_> = made
        .rejected
        .iter()
        .map(|r| (r.source, &*r.stage))
        .collect();
    assert_eq!(rejected, [(2, "transform.first"), (3, "transform.again")]);
    assert_eq!(made.dropped, 0);
    assert_eq!(rig.chain.reports().len(), 2);
}

#[test]
fn without_a_transform_every_change_is_rendered() {
    let mut rig = rig(&[]);
    let t = table(
        9,
        "all",
        &[
            "p text primary",
            "c int clustering",
            "tags set<text>",
            "items list<int>",
            "note text",
            "gone text",
        ],
    );
    let set = |items: &[&[u8]]| {
        let mut bytes = (items.len() as i32).to_be_bytes().to_vec();
        for item in items {
            bytes.extend((item.len() as i32).to_be_bytes());
            bytes.extend_from_slice(item);
        }
        bytes
    };
    let list = [
        1i32.to_be_bytes().to_vec(),
        set(&[&[0x11; 16], &5i32.to_be_bytes()])[4..].to_vec(),
    ];
    let (tags, list) = (set(&[b"new"]), list.concat());
    let merged = [
        &(tags.len() as u32).to_le_bytes()[..],
        &tags,
        &set(&[b"old"]),
    ]
    .concat();
    let mut b = BatchBuilder::new(&[&t]);
    b.insert(
        &t,
        &[
            Cell::Set(b"part"),
            Cell::Set(&3i32.to_be_bytes()),
            Cell::Tagged(ColumnTag::Merged, &merged),
            Cell::Tagged(ColumnTag::Replaced, &list),
            Cell::Null,
            Cell::Unchanged,
        ],
    );
    b.insert(
        &t,
        &[
            Cell::Set(b"part"),
            Cell::Set(b"not four bytes"),
            Cell::Unchanged,
            Cell::Unchanged,
            Cell::Unchanged,
            Cell::Unchanged,
        ],
    );
    let made = rig.chain.process(b.finish()).unwrap();
    assert_eq!(text(&made, made.records[0].key), "{\"p\":\"part\"}");
    let value: serde_json::Value =
        serde_json::from_str(&text(&made, made.records[0].value)).unwrap();
    let expected = serde_json::json!({
        "operation": "insert",
        "time": "2026-01-31T12:00:00.000001Z",
        "table": "ks.all",
        "columns": {
            "p": "part", "c": 3, "tags": {"added": ["new"], "removed": ["old"]},
            "items": [5], "note": null
        }
    });
    assert_eq!(value, expected);
    assert_eq!(made.rejected.len(), 1);
    assert_eq!(
        made.rejected[0].error,
        "column c: not a value of type int: wrong length"
    );
}

/// Row 53: by the partition key, compaction leaves one row of a partition, and a delete says something for ever.
#[test]
fn the_key_is_the_rows_where_that_is_asked_for_and_its_delete_a_tombstone() {
    use penstock::config::settings::RecordKey;
    let t = table(
        9,
        "t",
        &["p int primary", "c int clustering", "s int static", "v int"],
    );
    let flat = table(10, "flat", &["p int primary", "v int"]);
    let n = 5i32.to_be_bytes();
    let is = || Cell::Set(&n);
    let batch = || {
        let mut b = BatchBuilder::new(&[&t, &flat]);
        b.row(&t, Operation::Insert, &[is(), is(), Cell::Unchanged, is()]);
        b.row(
            &t,
            Operation::Update,
            &[is(), Cell::Null, is(), Cell::Unchanged],
        );
        b.row(
            &t,
            Operation::RowDelete,
            &[is(), is(), Cell::Null, Cell::Null],
        );
        b.row(
            &t,
            Operation::PartitionDelete,
            &[is(), Cell::Null, Cell::Null, Cell::Null],
        );
        let bounds = [
            Operation::RangeDeleteStartInclusive,
            Operation::RangeDeleteEndInclusive,
        ];
        let [from, to] = bounds.map(|op| b.row(&t, op, &[is(), is(), Cell::Null, Cell::Null]));
        b.links().link_end(from, to);
        b.row(&flat, Operation::PartitionDelete, &[is(), Cell::Null]);
        b.finish()
    };
    let mut rig = rig(&[]);
    let mut made = |key, tombstones| {
        rig.live.send_modify(|settings| {
            let settings = Arc::make_mut(settings);
            (settings.sink.key, settings.sink.tombstones) = (key, tombstones);
        });
        let made = rig.chain.process(batch()).unwrap();
        assert!(made.rejected.is_empty(), "{:?}", made.rejected);
        let keys: Vec<String> = made.records.iter().map(|r| text(&made, r.key)).collect();
        let gone: Vec<bool> = values(&made).iter().map(|v| v == "<null>").collect();
        (keys, gone)
    };
    let (partition, row) = (r#"{"p":5}"#, r#"{"p":5,"c":5}"#);
    let (keys, gone) = made(RecordKey::Partition, false);
    assert_eq!(keys, [partition; 6]);
    assert_eq!(gone, [false; 6]);
    // Static columns, a partition and a range are no row's: with a bound as its key, a range would replace one.
    let (keys, gone) = made(RecordKey::Primary, true);
    assert_eq!(keys, [row, partition, row, partition, partition, partition]);
    assert_eq!(gone, [false, false, true, true, false, true]);
    // By the partition key, only a partition's end is the end of all that its key stands for.
    assert_eq!(
        made(RecordKey::Partition, true).1,
        [false, false, false, true, false, true]
    );
}

#[test]
fn a_swap_takes_over_between_batches_and_a_bad_one_changes_nothing() {
    let (package, mut next) = faulty("faults");
    let mut rig = rig(&[(package, next.clone())]);
    let version = |rig: &mut Rig| {
        let made = rig.chain.process(batch_of(&[""])).unwrap();
        headers(&made, 0)[0].1.clone()
    };
    assert_eq!(version(&mut rig), "1");

    next.settings
        .insert("refuse".to_owned(), "no such colour".to_owned());
    let plugin = rig.chain.plugin("faults").unwrap().clone();
    let error = Prepared::new(&next, plugin.clone(), rig.chain.tables()).unwrap_err();
    assert!(
        matches!(&error, PluginError::Configure { message, .. } if message == "no such colour")
    );
    assert_eq!(version(&mut rig), "1");

    next.settings = [("version".to_owned(), "2".to_owned())].into();
    let prepared = Prepared::new(&next, plugin.clone(), rig.chain.tables()).unwrap();
    assert_eq!(version(&mut rig), "1", "made aside");
    rig.chain.swap(prepared).unwrap();
    assert_eq!(version(&mut rig), "2");
    rig.chain.process(batch_of(&["trap"])).unwrap();
    assert_eq!(
        version(&mut rig),
        "2",
        "a new instance has the new settings"
    );

    next.name = "other".to_owned();
    let stranger = Prepared::new(&next, plugin, &[]).unwrap();
    assert!(rig.chain.swap(stranger).is_err());
}

fn asked(variable: &str, otherwise: usize) -> usize {
    let asked = std::env::var(variable).ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

/// Times by the clock and at work, in milliseconds: how many, of each the median and the longest.
fn shown(times: &mut [(Duration, Duration)]) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let mut told = format!("{:>7}", times.len());
    for of in [
        |t: &(Duration, Duration)| t.0,
        |t: &(Duration, Duration)| t.1,
    ] {
        times.sort_unstable_by_key(of);
        let (median, longest) = (&times[times.len() / 2], &times[times.len() - 1]);
        told += &format!(" {:>11.3} {:>9.3}", ms(of(median)), ms(of(longest)));
    }
    told
}

/// A chain that is never idle, and versions of its plugin that are made aside by another thread, as fast as they are taken
/// over. Long form, 200 swaps: `cargo xtask proof swaps`.
#[test]
fn swaps_under_load_lose_and_repeat_nothing_and_leave_no_gap() {
    let swaps = asked("PENSTOCK_TEST_SWAPS", 20);
    let (_, first) = faulty("faults");
    let mut rig = rig(&[("test-faults", first.clone())]);
    let plugin = rig.chain.plugin("faults").unwrap().clone();
    let table = faults_table();
    let tables = [table.clone()];
    let (made, ready) = std::sync::mpsc::sync_channel(1);
    let maker = std::thread::spawn(move || {
        for version in 2..swaps + 2 {
            let mut next = first.clone();
            next.settings = [("version".to_owned(), version.to_string())].into();
            let prepared = Prepared::new(&next, plugin.clone(), &tables).unwrap();
            made.send(prepared).unwrap();
        }
    });
    let (mut gaps, mut others) = (Vec::new(), Vec::new());
    let (mut next, mut version) = (0usize, 1usize);
    let mut taken = 0;
    // Batches before each swap, so that the instance before is warm and the load goes on.
    const BETWEEN: usize = 5;
    let mut since = BETWEEN;
    while taken < swaps || since < BETWEEN {
        let mut batch = BatchBuilder::new(&[&table]);
        for id in next..next + 64 {
            let id = id.to_string();
            let cells = [
                Cell::Set(id.as_bytes()),
                Cell::Set(b""),
                Cell::Set(b"secret"),
            ];
            batch.insert(&table, &cells);
        }
        let batch = batch.finish();
        // What a lane does at a batch boundary.
        let (at_work, started) = (worked(), Instant::now());
        let prepared = (since >= BETWEEN).then(|| ready.try_recv().ok()).flatten();
        let swapped = prepared.is_some();
        if let Some(prepared) = prepared {
            rig.chain.swap(prepared).unwrap();
            (taken, since, version) = (taken + 1, 0, version + 1);
        }
        let made = rig.chain.process(batch).unwrap();
        // From the last record of the one before to those of this one, but for the making of the batch.
        let took = (started.elapsed(), worked().saturating_sub(at_work));
        since += 1;
        match swapped {
            true => gaps.push(took),
            false => others.push(took),
        }
        assert_eq!(values(&made), ids(next..next + 64), "lost or repeated");
        assert!(made.rejected.is_empty());
        for record in 0..made.records.len() {
            let by = &headers(&made, record)[0].1;
            assert_eq!(*by, version.to_string(), "by exactly one of the two");
        }
        next += 64;
    }
    maker.join().unwrap();
    println!("\nbatches of 64         n   median ms    max ms   at work ms   max ms");
    println!("across a swap   {}", shown(&mut gaps));
    println!("others          {}", shown(&mut others));
    println!(
        "{next} changes, {swaps} swaps: none lost, none repeated, each by the old or the new\n"
    );
    // In order of the time at work, which is what a swap costs, whatever else the machine does.
    let median = gaps[gaps.len() / 2].1;
    assert!(median < Duration::from_millis(10), "{gaps:?}");
}

/// How long this thread has been at work: what else the machine does is no part of it.
fn worked() -> Duration {
    // The kernel counts up to the last look at who is to run: this is one.
    std::thread::yield_now();
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let ns = stat.split(' ').next().and_then(|ns| ns.parse().ok());
    Duration::from_nanos(ns.expect("nanoseconds"))
}

/// What a chain does with nobody looking, and another one with a tap at every stage, in turns. Long form:
/// `cargo xtask proof taps`.
#[test]
fn a_tap_does_not_slow_a_chain_that_is_never_idle() {
    let rounds = asked("PENSTOCK_TEST_ROUNDS", 5);
    let filter = |stage: &str| TapFilter {
        stage: stage.to_owned(),
        table: None,
        operation: None,
        topic: None,
        contains: None,
        rate: 10,
    };
    let payload = [b'x'; 200];
    let mut sides = [false, true].map(|tapped| {
        let taps = Arc::new(Taps::default());
        let mut rig = rig(&[router()]);
        rig.chain = rig.chain.with_taps(taps.clone());
        (tapped, taps, rig, 0f64)
    });
    for _ in 0..rounds {
        for (tapped, taps, rig, best) in &mut sides {
            let (mut work, mut changes) = (Duration::ZERO, 0u32);
            while work < Duration::from_millis(100) {
                let batch = outbox_batch(&payload, 512);
                if *tapped {
                    for stage in ["source", "transform.router", "sink"] {
                        taps.take(stage, &filter(stage), Instant::now()).unwrap();
                    }
                }
                let before = worked();
                changes += rig.chain.process(batch).unwrap().records.len() as u32;
                work += worked().saturating_sub(before);
            }
            *best = best.max(f64::from(changes) / work.as_secs_f64());
        }
    }
    let [(.., without), (.., with)] = sides;
    println!(
        "\nbest of {rounds}, changes a second of one processor: {without:.0} with nobody looking, {with:.0} with three taps, \
         {:+.1} %\n",
        (with / without - 1.0) * 100.0
    );
    assert!(with > without * 0.5, "{with:.0} of {without:.0}");
}

#[test]
fn a_plugin_that_fails_on_start_is_refused_with_its_reason() {
    let rig = rig(&[]);
    let plugin = Plugin::load(&rig.engine, plugins::plugin("test-faults")).unwrap();
    let refused = |key: &str, value: &str| {
        let mut transform = hasty("faults").1;
        transform.settings.insert(key.to_owned(), value.to_owned());
        Prepared::new(&transform, plugin.clone(), &[])
            .unwrap_err()
            .to_string()
    };
    let panics = refused("refuse", "panic");
    assert!(
        panics.contains("failed to start: trapped: ") && panics.contains("in configure"),
        "{panics}"
    );
    // Longer than a batch may take: a busy machine holds up more than the guest.
    assert!(refused("refuse", "loop").contains("deadline of 2s exceeded"));
    let newer = refused("encoding", "7");
    assert!(
        newer.contains("speaks encoding 7, this penstock 1 to 2: it is of a newer SDK"),
        "{newer}"
    );
    // What an older SDK has built.
    let mut first = hasty("faults").1;
    first.settings.insert("encoding".into(), "1".into());
    Prepared::new(&first, plugin.clone(), &[]).expect("an instance");
    let older = refused("encoding", "0");
    assert!(
        older.contains(
            "speaks encoding 0, this penstock 1 to 2: it is of an SDK that is not read any more"
        ),
        "{older}"
    );

    let mut small = transform("faults", OnError::DeadLetter, &[]);
    small.limits.memory = 64 << 10;
    let error = Prepared::new(&small, plugin, &[]).unwrap_err().to_string();
    assert!(
        error.contains("memory limit of 65536 bytes exceeded"),
        "{error}"
    );
}

/// The form of a plugin for development: code that is compiled once, and a source in its file.
#[test]
fn a_source_in_the_file_is_loaded_into_each_instance_and_compiles_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let engine = Engine::new(Some(cache.path()), 4).unwrap();
    let code = std::fs::read(plugins::plugin("test-faults")).unwrap();
    let of = |source: &str| {
        let file = with_source(&code, source);
        Plugin::from_bytes(&engine, "faults.wasm".into(), &file).unwrap()
    };
    let live = watch::channel(Arc::new(settings(vec![])));
    engine.with_clock(|| {
        let mut digests = Vec::new();
        for source in ["one", "two"] {
            let plugin = of(source);
            assert!(plugin.is_for_development());
            digests.push(*plugin.digest());
            let prepared = Prepared::new(&faulty("faults").1, plugin, &[]).unwrap();
            let mut chain = Chain::new(vec![prepared], live.1.clone());
            // The instance after a fault has it, too.
            let made = chain.process(batch_of(&["ok", "panic", "ok"])).unwrap();
            assert_eq!((made.records.len(), made.rejected.len()), (2, 1));
            for record in 0..2 {
                let version = ("version".to_owned(), source.to_owned());
                assert!(headers(&made, record).contains(&version));
            }
        }
        // A swap tells them apart, the cache of compiled code does not.
        assert_ne!(digests[0], digests[1]);
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 1);

        let refused = |source: &str| {
            let made = Prepared::new(&hasty("faults").1, of(source), &[]);
            made.unwrap_err().to_string()
        };
        assert_eq!(
            refused("refuse"),
            "plugin faults.wasm failed to start: asked to refuse the source"
        );
        assert!(refused("loop").contains("deadline of 2s exceeded"));
    });
    // What takes no source is no such plugin.
    let filter = std::fs::read(plugins::plugin("filter")).unwrap();
    let file = with_source(&filter, "const x = 1;");
    let plugin = Plugin::from_bytes(&engine, "filter.wasm".into(), &file).unwrap();
    let made = Prepared::new(&faulty("faults").1, plugin, &[]).unwrap_err();
    assert!(made.to_string().contains("development"), "{made}");
}

#[test]
fn files_that_are_no_plugins_are_refused_with_what_they_are() {
    let engine = engine();
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = Plugin::load(&engine, &path).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        error
    };
    let missing = Plugin::load(&engine, dir.path().join("missing.wasm")).unwrap_err();
    assert!(matches!(missing, PluginError::Read { .. }), "{missing}");
    let directory = Plugin::load(&engine, dir.path()).unwrap_err();
    assert!(matches!(directory, PluginError::Read { .. }), "{directory}");

    assert!(matches!(refused("empty", b""), PluginError::NotWasm { .. }));
    assert!(matches!(
        refused("text", b"#!/bin/sh\n"),
        PluginError::NotWasm { .. }
    ));
    let real = std::fs::read(plugins::plugin("test-faults")).unwrap();
    let cut = refused("cut", &real[..real.len() / 2]);
    assert!(
        matches!(cut, PluginError::World { .. } | PluginError::NotWasm { .. }),
        "{cut}"
    );
    let empty_module = refused("module", b"\0asm\x01\0\0\0");
    assert!(
        matches!(empty_module, PluginError::World { .. }),
        "{empty_module}"
    );
    let empty_component = refused("component", b"\0asm\x0d\0\x01\0");
    assert!(
        empty_component.to_string().contains("it exports nothing"),
        "{empty_component}"
    );

    // Of another version of the contract.
    let encoder = wit_component::ComponentEncoder::default();
    let component = encoder.module(&real).unwrap().encode().unwrap();
    let mut other = component.clone();
    for at in 0..other.len() - 6 {
        if &other[at..at + 6] == b"@0.1.0" {
            other[at + 3] = b'9';
        }
    }
    let other = refused("other", &other).to_string();
    for part in [
        "of another version of the contract, penstock:plugin/transform@0.9.0",
        "`penstock plugin new --sdk-only .` in its project",
    ] {
        assert!(other.contains(part), "{other}");
    }

    // Of this one, with other functions.
    let path = dir.path().join("functions");
    std::fs::write(&path, of_other_functions()).unwrap();
    let plugin = Plugin::load(&engine, &path).unwrap();
    let settings = faulty("other").1;
    let said = Prepared::new(&settings, plugin, &[])
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("a function of it takes or gives something else"),
        "{said}"
    );
    assert!(!said.contains("trapped"), "{said}");
}

/// A plugin whose functions have the contract's names, and take and give nothing.
fn of_other_functions() -> Vec<u8> {
    use wasm_encoder::{
        CodeSection, ExportKind, ExportSection, Function, FunctionSection, Module, TypeSection,
    };
    let (mut types, mut functions) = (TypeSection::new(), FunctionSection::new());
    let (mut exports, mut code) = (ExportSection::new(), CodeSection::new());
    types.ty().function([], []);
    for (name, number) in ["configure", "open-table", "process"].into_iter().zip(0..) {
        functions.function(0);
        let name = format!("penstock:plugin/transform@0.1.0#{name}");
        exports.export(&name, ExportKind::Func, number);
        let mut body = Function::new([]);
        body.instructions().end();
        code.function(&body);
    }
    let mut module = Module::new();
    module
        .section(&types)
        .section(&functions)
        .section(&exports)
        .section(&code);
    let mut module = module.finish();
    let wit = "package penstock:plugin@0.1.0;\ninterface transform { configure: func(); open-table: func(); process: func(); }\n\
               world plugin { export transform; }\n";
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_str("other.wit", wit).unwrap();
    let world = resolve.select_world(&[package], Some("plugin")).unwrap();
    let encoding = wit_component::StringEncoding::UTF8;
    wit_component::embed_component_metadata(&mut module, &resolve, world, encoding).unwrap();
    module
}

/// Bytes that are nobody's: junk, junk behind the head of a module or of a component, and sections whose frames are right.
fn junk(random: &mut impl FnMut() -> u64) -> Vec<u8> {
    let heads: [&[u8]; 3] = [b"", b"\0asm\x01\0\0\0", b"\0asm\x0d\0\x01\0"];
    let mut bytes = heads[random() as usize % 3].to_vec();
    let framed = random().is_multiple_of(2);
    for _ in 0..random() % 6 {
        let size = random() % 40;
        if framed {
            bytes.extend([(random() % 14) as u8, size as u8]);
        }
        bytes.extend((0..size).map(|_| random() as u8));
    }
    bytes
}

/// In the long form (`cargo xtask proof fuzz`) 10⁷ files, one in 500 of which is a plugin with some bytes changed.
#[test]
fn a_file_at_random_is_a_plugin_or_refused() {
    let files = asked("PENSTOCK_TEST_FUZZ", 10_000);
    let engine = engine();
    let module = std::fs::read(plugins::plugin("test-faults")).unwrap();
    let encoder = wit_component::ComponentEncoder::default();
    let component = encoder.module(&module).unwrap().encode().unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        // <https://www.jstatsoft.org/article/view/v008i14>
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let live = watch::channel(Arc::new(settings(vec![])));
    let mut tally = Tally::of("files");
    for file in 0..files {
        let bytes = match file % 1000 {
            0 | 500 => {
                let whole = if file % 1000 == 0 {
                    &module
                } else {
                    &component
                };
                let mut bytes = whole.clone();
                // The first is as it was.
                for _ in 0..(file % 5000).min(1 + random() as usize % 4) {
                    let at = random() as usize % bytes.len();
                    bytes[at] = random() as u8;
                }
                bytes
            }
            _ => junk(&mut random),
        };
        let plugin = Plugin::from_bytes(&engine, "fuzz.wasm".into(), &bytes);
        let prepared = plugin.and_then(|plugin| Prepared::new(&faulty("faults").1, plugin, &[]));
        let ended = match prepared {
            Err(refused) => refused.to_string(),
            // Whatever it has become, the host goes on.
            Ok(prepared) => match Chain::new(vec![prepared], live.1.clone())
                .process(batch_of(&["", "forward", "panic"]))
            {
                Ok(made) if made.rejected.len() == 1 => "runs as it did before".to_owned(),
                Ok(_) => "runs in another way".to_owned(),
                Err(error) => format!("runs, and fails: {error}"),
            },
        };
        tally.count(ended.trim_start_matches("plugin fuzz.wasm "));
    }
    println!("{tally}");
    assert!(tally.ended("runs as it did before") > 0, "none ran");
}

#[test]
fn a_component_is_taken_as_well_as_a_core_module() {
    let engine = engine();
    let module = std::fs::read(plugins::plugin("test-faults")).unwrap();
    let encoder = wit_component::ComponentEncoder::default();
    let component = encoder.module(&module).unwrap().encode().unwrap();
    let plugin = Plugin::from_bytes(&engine, "component.wasm".into(), &component).unwrap();
    let prepared = Prepared::new(&faulty("faults").1, plugin, &[]).unwrap();
    let live = watch::channel(Arc::new(settings(vec![])));
    let made = Chain::new(vec![prepared], live.1).process(batch_of(&["", "trap", ""]));
    assert_eq!(values(&made.unwrap()), ["0", "2"]);
}

#[test]
fn a_wasip2_component_runs_though_there_is_no_wasi() {
    let Some(path) = plugins::wasip2_plugin("outbox-router") else {
        eprintln!("skipped: the target wasm32-wasip2 is not installed");
        return;
    };
    let engine = engine();
    let plugin = Plugin::load(&engine, path).unwrap();
    let prepared = Prepared::new(&router().1, plugin, &[]).unwrap();
    let live = watch::channel(Arc::new(settings(vec![])));
    let made = Chain::new(vec![prepared], live.1).process(outbox_batch(b"payload", 2));
    assert_eq!(values(&made.unwrap()), ["payload"; 2]);
}

#[test]
fn compiled_code_is_cached_and_a_spoilt_cache_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("code");
    let engine = Engine::new(Some(&cache), 4).unwrap();
    let load = || {
        let plugin = Plugin::load(&engine, plugins::plugin("test-faults")).unwrap();
        Prepared::new(&faulty("faults").1, plugin, &[]).unwrap();
    };
    load();
    let files: Vec<_> = std::fs::read_dir(&cache)
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let written = std::fs::metadata(&files[0]).unwrap().modified().unwrap();
    load();
    let again = std::fs::metadata(&files[0]).unwrap().modified().unwrap();
    assert_eq!(written, again, "the second load takes what is there");

    let good = std::fs::read(&files[0]).unwrap();
    let mut spoilt = good.clone();
    spoilt[good.len() / 2] ^= 0xff;
    std::fs::write(&files[0], &spoilt).unwrap();
    load();
    assert_eq!(
        std::fs::read(&files[0]).unwrap(),
        good,
        "it is compiled and written anew"
    );
}
