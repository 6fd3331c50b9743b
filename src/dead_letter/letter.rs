//! A dead letter: what happened to a change, beside the change itself ([`super::change`]), and which of them are meant.

use std::sync::Arc;
use std::time::SystemTime;

use super::change::{Change, RebuildError};
use crate::change::{Batch, Position, RecordBatch, Rejected, Traced, Undecodable};
use crate::spans::Context;

/// Bytes of an error that a letter carries.
const LONGEST_ERROR: usize = 4 << 10;

/// A change that was given up on.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Names it.
    pub position: Position,
    /// `keyspace.table`.
    pub table: String,
    /// The name of what it does; empty for a row that could not be decoded.
    pub operation: String,
    /// The stage that gave up.
    pub stage: Arc<str>,
    /// What went wrong.
    pub error: String,
    /// How often it was tried, replays included.
    pub attempts: u32,
    /// When it failed first.
    pub first_at: SystemTime,
    /// When it failed last.
    pub last_at: SystemTime,
    /// `pipeline.name`.
    pub pipeline: String,
    /// Where its trace goes on, if it has one; not kept beyond this process.
    pub trace: Option<Context>,
    /// The original, in full.
    pub change: Change,
}

impl DeadLetter {
    /// Says in the log that it is kept.
    pub fn log(&self) {
        tracing::warn!(
            stage = &*self.stage, table = self.table, position = %self.position,
            attempts = self.attempts, error = self.error,
            trace_id = self.trace.map(|t| format!("{:032x}", t.trace)), "change dead-lettered"
        );
    }

    /// With the trace that its change has.
    #[must_use]
    pub fn traced(self, traced: Option<&Traced>) -> Self {
        let trace = traced.map(|traced| Context {
            trace: traced.trace,
            span: traced.sent,
            sampled: true,
        });
        Self { trace, ..self }
    }

    /// Of a change that a stage rejected.
    pub fn of_rejected(pipeline: &str, batch: &Batch, rejected: &Rejected) -> Option<Self> {
        let index = rejected.source as usize;
        let position = *batch.positions.get(index)?;
        let row = batch.rows.get(index)?;
        let schema = batch.table(row.table())?;
        let now = SystemTime::now();
        Some(Self {
            position,
            table: format!("{}.{}", schema.keyspace, schema.name),
            operation: row.operation().name().to_owned(),
            stage: Arc::clone(&rejected.stage),
            error: rejected.error.clone(),
            attempts: rejected.attempts,
            first_at: read_at(batch, now),
            last_at: now,
            pipeline: pipeline.to_owned(),
            trace: None,
            change: Change::of(batch, index, schema),
        })
    }

    /// Of a change of which the broker refused a record for good. `poison` is from
    /// [`Delivered`](crate::sink::Delivered).
    pub fn of_poison(pipeline: &str, batch: &RecordBatch, poison: &(u32, String)) -> Option<Self> {
        let record = batch.records.get(poison.0 as usize)?;
        let topic = batch.topics.get(record.topic as usize)?;
        let rejected = Rejected {
            source: record.source,
            stage: "sink".into(),
            error: format!("topic {topic}: {}", poison.1),
            attempts: 1,
        };
        let letter = Self::of_rejected(pipeline, &batch.source, &rejected)?;
        Some(letter.traced(batch.traces.of(record.source)))
    }

    /// Of a row that the source could not decode.
    pub fn of_undecodable(pipeline: &str, batch: &Batch, row: &Undecodable) -> Self {
        let now = SystemTime::now();
        let undecodable = serde_json::from_slice(&row.raw)
            .unwrap_or_else(|_| serde_json::Value::String(hex::encode(&row.raw)));
        Self {
            position: row.position,
            table: row.table.clone(),
            operation: String::new(),
            stage: "source".into(),
            error: row.error.clone(),
            attempts: 1,
            first_at: read_at(batch, now),
            last_at: now,
            pipeline: pipeline.to_owned(),
            trace: None,
            change: Change::undecodable(undecodable),
        }
    }

    /// This letter after a replay that failed as well.
    pub fn failed_again(&self, stage: Arc<str>, error: String) -> Self {
        Self {
            stage,
            error,
            attempts: self.attempts.saturating_add(1),
            last_at: SystemTime::now(),
            ..self.clone()
        }
    }

    /// Whether only an abridgement of the change was kept.
    pub fn is_abridged(&self) -> bool {
        self.change.is_abridged()
    }

    /// The letter with its change in full, out of the write that was read from the log again; `None`: that is not the
    /// change that was abridged.
    pub fn restored(&self, write: &Batch) -> Option<Self> {
        let index = write.positions.iter().position(|p| *p == self.position)?;
        let schema = write.table(write.rows.get(index)?.table())?;
        let change = Change::of(write, index, schema);
        self.change.is_abridged_from(&change).then(|| Self {
            change,
            ..self.clone()
        })
    }

    /// The error, cut to what a header may well hold.
    pub fn short_error(&self) -> &str {
        &self.error[..self.error.floor_char_boundary(LONGEST_ERROR)]
    }

    /// Whether both are changes of one version of one table, and so may share its id.
    pub fn has_table_of(&self, other: &Self) -> bool {
        self.change.has_table_of(&other.change)
    }

    /// The change as a batch of its own, with the very bytes that the source read. `schema` becomes the id of
    /// its table version.
    pub fn rebuild(&self, shard: u32, epoch: u64, schema: u32) -> Result<Batch, RebuildError> {
        self.change.rebuild(shard, epoch, schema)
    }
}

/// When the source had the batch, as a time of day.
fn read_at(batch: &Batch, now: SystemTime) -> SystemTime {
    now.checked_sub(batch.read_at.elapsed()).unwrap_or(now)
}

/// Which dead letters; what is not set matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// These alone, if there are any.
    pub positions: Vec<Position>,
    /// Exactly this stage.
    pub stage: Option<String>,
    /// `keyspace.table`, or the table's name.
    pub table: Option<String>,
    /// Contained in the error, whatever the case.
    pub error: Option<String>,
    /// Failed last at this time or later.
    pub since: Option<SystemTime>,
    /// Failed last before this time.
    pub until: Option<SystemTime>,
    /// No more than this many, the oldest first.
    pub limit: Option<usize>,
}

impl Filter {
    /// Whether a letter is meant, whatever the limit.
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        // A name may have dots of its own.
        let table = |t: &String| {
            let rest = letter.table.strip_suffix(t.as_str());
            rest.is_some_and(|keyspace| keyspace.is_empty() || keyspace.ends_with('.'))
        };
        (self.positions.is_empty() || self.positions.contains(&letter.position))
            && self.stage.as_ref().is_none_or(|s| *letter.stage == **s)
            && self.table.as_ref().is_none_or(table)
            && self
                .error
                .as_ref()
                .is_none_or(|e| letter.error.to_lowercase().contains(&e.to_lowercase()))
            && self.since.is_none_or(|t| letter.last_at >= t)
            && self.until.is_none_or(|t| letter.last_at < t)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Column, StreamId, TableSchema};
    use penstock_plugin_encoding::{ColumnKind, ColumnTag, Mark, Operation, RowMeta, RowsBuilder};
    use std::time::{Duration, Instant};
    use uuid::Uuid;

    fn position(seq: i32) -> Position {
        Position {
            stream: StreamId([7; 16]),
            time: Uuid::parse_str("8e3d2f00-e86c-11f0-9d3d-0242ac120002").unwrap(),
            seq,
        }
    }

    /// Unrelated row, preimage, update with every tag, postimage, unrelated row.
    fn batch() -> Batch {
        let column = |name: &str, cql_type: &str, kind| Column {
            name: name.into(),
            cql_type: cql_type.into(),
            kind,
        };
        let columns = vec![
            column("id", "int", ColumnKind::PartitionKey),
            column("name", "text", ColumnKind::Regular),
            column("tags", "set<text>", ColumnKind::Regular),
            column("more", "set<text>", ColumnKind::Static),
            column("note", "text", ColumnKind::Regular),
            column("odd", "not a type", ColumnKind::Regular),
        ];
        let meta = |operation, context| RowMeta {
            operation,
            context,
            end_of_batch: !context,
            table: 3,
            time_us: -17,
            ttl: u32::from(context) * 60,
        };
        let mut b = RowsBuilder::new();
        let other = |b: &mut RowsBuilder| {
            b.row(meta(Operation::Insert, false), 1);
            b.column(ColumnTag::Value, &[&9i32.to_be_bytes()]);
        };
        other(&mut b);
        let pre = b.row(meta(Operation::PreImage, true), 6);
        for _ in 0..6 {
            b.column(ColumnTag::Null, &[]);
        }
        let update = b.row(meta(Operation::Update, false), 6);
        b.column(ColumnTag::Value, &[&5i32.to_be_bytes()]);
        b.column(ColumnTag::Value, &["zwölf".as_bytes()]);
        b.column(
            ColumnTag::Removed,
            &[&1i32.to_be_bytes(), &1i32.to_be_bytes(), b"x"],
        );
        b.merged(b"added", b"removed");
        b.column(ColumnTag::Unchanged, &[]);
        b.column(ColumnTag::Value, &[&[0, 255, 0]]);
        let post = b.row(meta(Operation::PostImage, true), 1);
        b.column(ColumnTag::Value, &[&5i32.to_be_bytes()]);
        other(&mut b);
        b.link_preimage(update, pre);
        b.link_end(update, post);
        b.mark(update, Mark::Late);
        Batch {
            shard: 2,
            epoch: 1,
            rows: b.finish(),
            positions: (0..5).map(position).collect(),
            tables: vec![Arc::new(TableSchema {
                id: 3,
                keyspace: "shop".into(),
                name: "orders".into(),
                columns,
            })],
            undecodable: Vec::new(),
            progress: Vec::new(),
            read_at: Instant::now(),
        }
    }

    fn letter(batch: &Batch, source: u32) -> DeadLetter {
        let rejected = Rejected {
            source,
            stage: "transform.router".into(),
            error: "No such Thing".into(),
            attempts: 2,
        };
        DeadLetter::of_rejected("p", batch, &rejected).unwrap()
    }

    #[test]
    fn a_change_comes_back_byte_for_byte_with_what_it_links_to() {
        let before = batch();
        let mut letter = letter(&before, 2);
        letter.change = Change::from_json(&letter.change.to_json()).unwrap();
        let after = letter.rebuild(0, 9, 3).unwrap();
        assert_eq!(after.rows.len(), 3);
        assert_eq!(after.positions, (1..4).map(position).collect::<Vec<_>>());
        assert_eq!(after.tables, before.tables);
        for (now, then) in (0..3).zip(1..4) {
            let (a, b) = (after.rows.get(now).unwrap(), before.rows.get(then).unwrap());
            assert_eq!(a.meta(), b.meta());
            assert_eq!(a.columns(), b.columns());
            for c in 0..b.columns() {
                assert_eq!(a.column(c), b.column(c), "row {then} column {c}");
            }
        }
        let update = after.rows.get(1).unwrap();
        assert_eq!((update.preimage(), update.end()), (Some(0), Some(2)));
    }

    #[test]
    fn the_json_is_for_people_too() {
        let json: serde_json::Value =
            serde_json::from_slice(&letter(&batch(), 2).change.to_json()).unwrap();
        assert_eq!(json["row"], 1);
        assert_eq!(json["table"]["columns"][0]["kind"], "partition-key");
        let columns = &json["rows"][1]["columns"];
        assert_eq!(columns[0]["value"], 5);
        assert_eq!(columns[1]["value"], "zwölf");
        assert_eq!(columns[1]["hex"], hex::encode("zwölf"));
        assert_eq!(columns[2]["value"], serde_json::json!(["x"]));
        assert_eq!(
            columns[4],
            serde_json::json!({"name": "note", "tag": "unchanged"})
        );
        assert_eq!(columns[5]["value"], serde_json::Value::Null);
    }

    #[test]
    fn what_was_never_decoded_is_kept_and_not_replayed() {
        let raw = Undecodable {
            position: position(4),
            table: "shop.orders".into(),
            error: "three bytes for an int".into(),
            raw: bytes::Bytes::from_static(br#"{"id":"000000"}"#),
        };
        let letter = DeadLetter::of_undecodable("p", &batch(), &raw);
        let back = Change::from_json(&letter.change.to_json()).unwrap();
        assert_eq!(back, letter.change);
        assert!(
            String::from_utf8(letter.change.to_json())
                .unwrap()
                .contains("000000")
        );
        assert!(matches!(
            letter.rebuild(0, 0, 0),
            Err(RebuildError::Undecodable)
        ));
    }

    /// Row 3: a letter always fits.
    #[test]
    fn what_does_not_fit_is_abridged_and_known_again() {
        let before = batch();
        let full = letter(&before, 2);
        let whole = full.change.to_json();
        assert_eq!(full.change.to_json_within(whole.len()), whole);
        // Without what is there for people alone it is still all there.
        let bare = full.change.to_json_within(whole.len() - 1);
        let kept = DeadLetter {
            change: Change::from_json(&bare).unwrap(),
            ..full.clone()
        };
        assert!(!kept.is_abridged() && kept.rebuild(0, 0, 3).is_ok());

        let json = full.change.to_json_within(bare.len() - 1);
        assert!(json.len() < bare.len(), "{} and {}", json.len(), bare.len());
        let abridged = DeadLetter {
            change: Change::from_json(&json).unwrap(),
            ..full.clone()
        };
        assert!(matches!(
            abridged.rebuild(0, 0, 0),
            Err(RebuildError::Abridged)
        ));
        let shown: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(shown["abridged"]["keys"][0]["hex"], "00000005");
        let sizes = shown["abridged"]["sizes"].as_array().unwrap();
        assert!(
            sizes
                .iter()
                .any(|s| s["column"] == "name" && s["bytes"] == 6),
            "{shown}"
        );
        let again = abridged.restored(&before).expect("it is the same change");
        assert_eq!(again.change, full.change);
        // The log has something else at this position: not that.
        let mut other = DeadLetter {
            position: position(0),
            ..abridged
        };
        assert_eq!(other.restored(&before), None);
        other.position = position(9);
        assert_eq!(other.restored(&before), None);
        // And however little there is room for, something is kept.
        assert!(full.change.to_json_within(10).len() < json.len());
    }

    #[test]
    fn damage_is_an_error_and_not_another_change() {
        let letter = letter(&batch(), 2);
        let json = String::from_utf8(letter.change.to_json()).unwrap();
        for (from, to) in [
            (r#""operation":"update""#, r#""operation":"upset""#),
            (r#""preimage":0"#, r#""preimage":7"#),
            (r#""hex":"00000005""#, r#""hex":"0000000""#),
            ("8e3d2f00", "8e3d2f0"),
        ] {
            assert!(json.contains(from), "{from} in {json}");
            let damaged = DeadLetter {
                change: Change::from_json(json.replacen(from, to, 1).as_bytes()).unwrap(),
                ..letter.clone()
            };
            let rebuilt = damaged.rebuild(0, 0, 0);
            assert!(matches!(rebuilt, Err(RebuildError::Damaged(_))), "{to}");
        }
        assert!(
            Change::from_json(json.replace(r#""v":1"#, r#""v":3"#).as_bytes())
                .unwrap_err()
                .contains("upgrade")
        );
    }

    #[test]
    fn filters_combine() {
        let letter = letter(&batch(), 2);
        let matches = |f: Filter| f.matches(&letter);
        assert!(matches(Filter::default()));
        let table = |t: &str| Filter {
            table: Some(t.into()),
            ..Filter::default()
        };
        assert!(matches(table("orders")) && matches(table("shop.orders")));
        assert!(!matches(table("order")));
        let error = Some("no such".to_owned());
        assert!(matches(Filter {
            error: error.clone(),
            stage: Some("transform.router".into()),
            ..Filter::default()
        }));
        assert!(!matches(Filter {
            error,
            since: Some(letter.last_at + Duration::from_secs(1)),
            ..Filter::default()
        }));
        assert!(!matches(Filter {
            positions: vec![position(1)],
            ..Filter::default()
        }));
    }

    #[test]
    fn a_replay_that_fails_keeps_the_first_time() {
        let letter = letter(&batch(), 2);
        let again = letter.failed_again("sink".into(), "too large".into());
        assert_eq!((again.attempts, again.first_at), (3, letter.first_at));
        assert_eq!((&*again.stage, &*again.error), ("sink", "too large"));
        assert!(again.last_at >= letter.last_at);
    }
}
