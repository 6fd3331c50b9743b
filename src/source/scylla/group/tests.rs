use super::*;
use crate::change::StreamId;

const WINDOW: Duration = Duration::from_micros(1000);

fn group(streams: u8, checkpoint: Option<i64>) -> Group {
    let streams: Vec<StreamId> = (0..streams).map(|s| StreamId([s; 16])).collect();
    let checkpoint = checkpoint.map(|complete_until_us| GroupCheckpoint {
        complete_until_us,
        ..GroupCheckpoint::default()
    });
    let key = GroupKey("ks.t/10/00".into());
    let (streams, at) = (streams.into(), checkpoint.as_ref());
    Group::new(key, 0, streams, at, std::iter::empty(), 10, 10_500)
}

fn go_on(group: &mut Group, safe_us: i64, known_until_us: i64) -> Next {
    let turn = Turn {
        at: Instant::now(),
        now_us: safe_us,
        safe_us,
        known_until_us,
        window: WINDOW,
        horizon_us: 0,
        may_look: true,
        rest_us: 0,
    };
    group.next(&turn, &mut Batches::new(0, 0))
}

fn window(group: &mut Group, safe_us: i64, known_until_us: i64) -> Option<(i64, i64)> {
    match go_on(group, safe_us, known_until_us) {
        Next::Read(read) => Some((read.from_us, read.to_us)),
        Next::CaughtUp => None,
        Next::Finished => panic!("finished"),
    }
}

#[test]
fn it_starts_where_its_checkpoint_is_or_where_it_is_told() {
    assert_eq!(
        window(&mut group(1, None), 99_000, 99_000),
        Some((10_500, 11_500))
    );
    assert_eq!(
        window(&mut group(1, Some(20_000)), 99_000, 99_000),
        Some((20_000, 21_000))
    );
    assert_eq!(
        window(&mut group(1, Some(3)), 99_000, 99_000),
        Some((10_000, 11_000)),
        "not before its generation"
    );
}

#[test]
fn a_window_passes_neither_what_is_safe_nor_what_is_known() {
    assert_eq!(
        window(&mut group(1, None), 10_700, 99_000),
        Some((10_500, 10_700))
    );
    assert_eq!(
        window(&mut group(1, None), 99_000, 10_600),
        Some((10_500, 10_600))
    );
    assert_eq!(window(&mut group(1, None), 99_000, i64::MIN), None);
}

#[test]
fn a_window_that_is_being_read_stays_what_it_is() {
    let mut group = group(1, None);
    let first = window(&mut group, 10_700, 99_000);
    assert_eq!(window(&mut group, 99_000, 99_000), first);
    group.pressed(1, 10_600);
    assert_eq!(window(&mut group, 99_000, 99_000), Some((10_500, 10_600)));
}

#[test]
fn streams_that_go_on_are_left_at_the_switch_and_others_drained_past_it() {
    let margin = Duration::from_micros(300);
    let (stays, other) = (StreamId([0; 16]), StreamId([9; 16]));
    for (next, drained_us) in [(stays, 20_000), (other, 20_300)] {
        let mut group = group(1, Some(20_000));
        group.ends(20_000, margin, &HashSet::from([&next]));
        match go_on(&mut group, 99_000, i64::MIN) {
            Next::Read(read) => assert_eq!(read.to_us, drained_us),
            Next::Finished => assert_eq!(drained_us, 20_000),
            Next::CaughtUp => panic!("it need not know more"),
        }
    }
}

#[test]
fn without_streams_it_passes_the_time_and_reads_nothing() {
    let mut group = group(0, None);
    assert!(matches!(go_on(&mut group, 12_000, 99_000), Next::CaughtUp));
    assert_eq!(group.complete_until_us(), 12_000);
    group.ends(13_000, Duration::ZERO, &HashSet::new());
    assert!(matches!(
        go_on(&mut group, 99_000, i64::MIN),
        Next::Finished
    ));
}
