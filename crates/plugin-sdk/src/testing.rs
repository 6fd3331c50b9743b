//! Runs a transform natively, in a unit test.
//!
//! ```
//! # use penstock_plugin::*;
//! use penstock_plugin::testing::{Harness, Outcome};
//!
//! struct Copy;
//! impl Transform for Copy {
//!     fn configure(_: &Settings) -> Result<Self, Error> { Ok(Self) }
//!     fn process(&mut self, change: &Change<'_>, out: &mut Output) -> Result<(), Error> {
//!         out.record("copies").value(change.column_ref("name")?);
//!         Ok(())
//!     }
//! }
//!
//! let mut harness = Harness::<Copy>::new(&[]).unwrap();
//! let people = harness.table("ks.people", "id int primary, name text").unwrap();
//! let outcome = harness.run(people.insert().set("id", 1).set("name", "Ada"));
//! let Outcome::Records(records) = outcome else { panic!("{outcome:?}") };
//! assert_eq!(records[0].topic, "copies");
//! assert_eq!(records[0].value.as_deref(), Some(&b"Ada"[..]));
//! ```

use penstock_plugin_encoding::output::{Entry, FieldSpan, InvalidOutput, OutputReader, Role};
use penstock_plugin_encoding::{ColumnTag, Operation, RowMeta, Rows, RowsBuilder, shape};

use crate::table::Column;
use crate::{Error, Interest, Runtime, Settings, Table, Timestamp, Transform, Uuid};

/// A configured transform and the tables it was told of.
#[derive(Debug)]
pub struct Harness<T> {
    runtime: Runtime<T>,
    interests: Vec<Interest>,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Records were written.
    Records(Vec<TestRecord>),
    /// It was handed on.
    Forwarded,
    /// It was dropped, said or not.
    Dropped,
    /// It would be dead-lettered, with this message.
    Refused(String),
    /// It would be handed out again later: [`Error::retry`].
    Retry(String),
    /// The table was ignored: the change passes by.
    Ignored,
}

/// A record that a transform wrote, column references resolved.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct TestRecord {
    pub topic: String,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl TestRecord {
    /// The value of a header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(n, _)| n == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }
}

/// A table of a [`Harness`], from which changes are built.
#[derive(Clone, Debug)]
pub struct TestTable(Table);

/// A change being built. Columns that are not set are unchanged.
#[derive(Clone, Debug)]
pub struct TestChange {
    table: Table,
    operation: Operation,
    columns: Vec<(ColumnTag, Vec<u8>)>,
    preimage: Option<Box<TestChange>>,
    end: Option<Box<TestChange>>,
}

/// A value that a test can set.
pub trait ToCql {
    /// Its binary form.
    fn to_cql(&self) -> Vec<u8>;
}

macro_rules! to_cql {
    ($($type:ty: $value:ident => $bytes:expr;)+) => {$(
        impl ToCql for $type {
            fn to_cql(&self) -> Vec<u8> {
                let $value = self;
                $bytes
            }
        }
    )+};
}

to_cql! {
    &str: text => text.as_bytes().to_vec();
    &[u8]: bytes => bytes.to_vec();
    bool: b => vec![u8::from(*b)];
    i8: n => n.to_be_bytes().to_vec();
    i16: n => n.to_be_bytes().to_vec();
    i32: n => n.to_be_bytes().to_vec();
    i64: n => n.to_be_bytes().to_vec();
    f32: x => x.to_be_bytes().to_vec();
    f64: x => x.to_be_bytes().to_vec();
    Uuid: id => id.as_bytes().to_vec();
    Timestamp: t => t.0.to_be_bytes().to_vec();
}

impl TestTable {
    /// A change of this operation.
    pub fn change(&self, operation: Operation) -> TestChange {
        TestChange {
            columns: vec![(ColumnTag::Unchanged, Vec::new()); self.0.columns.len()],
            table: self.0.clone(),
            operation,
            preimage: None,
            end: None,
        }
    }

    /// An insert.
    pub fn insert(&self) -> TestChange {
        self.change(Operation::Insert)
    }
}

impl TestChange {
    fn column(mut self, name: &str, tag: ColumnTag, bytes: Vec<u8>) -> Self {
        let index = self.table.column(name);
        let index = index.unwrap_or_else(|| panic!("no column {name} in {:?}", self.table));
        self.columns[usize::from(index)] = (tag, bytes);
        self
    }

    /// Sets a column.
    ///
    /// # Panics
    /// If the table has no such column.
    pub fn set(self, name: &str, value: impl ToCql) -> Self {
        self.column(name, ColumnTag::Value, value.to_cql())
    }

    /// Sets a column to null.
    ///
    /// # Panics
    /// If the table has no such column.
    pub fn null(self, name: &str) -> Self {
        self.column(name, ColumnTag::Null, Vec::new())
    }

    /// The row before.
    pub fn preimage(mut self, mut image: TestChange) -> Self {
        image.operation = Operation::PreImage;
        self.preimage = Some(Box::new(image));
        self
    }

    /// The row after.
    pub fn postimage(mut self, mut image: TestChange) -> Self {
        image.operation = Operation::PostImage;
        self.end = Some(Box::new(image));
        self
    }

    /// The end of the range, this being its start.
    pub fn range_end(mut self, end: TestChange) -> Self {
        self.end = Some(Box::new(end));
        self
    }

    fn write(&self, interest: &Interest, rows: &mut RowsBuilder) -> u32 {
        let preimage = self.preimage.as_ref().map(|i| i.write(interest, rows));
        let meta = RowMeta {
            operation: self.operation,
            context: false,
            end_of_batch: true,
            table: self.table.id,
            time_us: 1_700_000_000_000_000,
            ttl: 0,
        };
        let row = rows.row(meta, self.columns.len() as u16);
        for (i, (tag, bytes)) in self.columns.iter().enumerate() {
            let sent = match interest {
                Interest::Columns(columns) => columns.contains(&(i as u16)),
                _ => true,
            };
            match sent {
                true => rows.column(*tag, &[bytes]),
                false => rows.column(ColumnTag::Unsent, &[]),
            }
        }
        if let Some(preimage) = preimage {
            rows.link_preimage(row, preimage);
        }
        if let Some(end) = &self.end {
            let end = end.write(interest, rows);
            rows.link_end(row, end);
        }
        row
    }
}

impl<T: Transform> Harness<T> {
    /// Configures the transform.
    pub fn new(settings: &[(&str, &str)]) -> Result<Self, Error> {
        let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        let settings: Settings = settings.iter().map(owned).collect();
        Ok(Self {
            runtime: Runtime::new(&settings)?,
            interests: Vec::new(),
        })
    }

    /// Opens a table: `keyspace.name` and `column type [primary|clustering|static], …`.
    ///
    /// # Errors
    /// The transform's.
    ///
    /// # Panics
    /// On a name or columns that are not so written.
    pub fn table(&mut self, name: &str, columns: &str) -> Result<TestTable, Error> {
        let (keyspace, name) = name.split_once('.').expect("keyspace.name");
        let columns = shape::columns(columns).expect("`column type`, with commas between");
        let columns = columns.into_iter().map(|column| Column {
            name: column.name.to_owned(),
            cql_type: column.cql_type,
            kind: column.kind,
        });
        let table = Table {
            id: self.interests.len() as u32,
            keyspace: keyspace.to_owned(),
            name: name.to_owned(),
            columns: columns.collect(),
        };
        self.interests.push(self.runtime.open_table(table.clone())?);
        Ok(TestTable(table))
    }

    /// Processes one change by itself.
    ///
    /// # Panics
    /// If the transform panics, or if its output is not well-formed.
    pub fn run(&mut self, change: TestChange) -> Outcome {
        let interest = &self.interests[change.table.id as usize];
        if *interest == Interest::Ignore {
            return Outcome::Ignored;
        }
        let encode = |interest: &Interest| {
            let mut rows = RowsBuilder::new();
            change.write(interest, &mut rows);
            rows.finish()
        };
        let output = self.runtime.process(encode(interest).into_bytes());
        // As the host does it: references reach columns that were not sent.
        read_outcome(
            &output.expect("a well-formed batch"),
            &encode(&Interest::All),
            &change.table,
        )
    }
}

fn read_outcome(output: &[u8], rows: &Rows, table: &Table) -> Outcome {
    let bytes = |span: std::ops::Range<u32>| &output[span.start as usize..span.end as usize];
    let text = |span| String::from_utf8_lossy(bytes(span)).into_owned();
    let no_value = std::cell::Cell::new(None);
    let field = |field| match field {
        FieldSpan::Null => None,
        FieldSpan::Bytes(span) => Some(bytes(span).to_vec()),
        FieldSpan::Column(at) | FieldSpan::ColumnOrNull(at) => {
            let row = rows.get(at.row as usize).expect("a row of the input");
            let (tag, bytes) = row.column(at.column.into()).expect("a column of the row");
            match tag {
                ColumnTag::Value | ColumnTag::Replaced => Some(bytes.to_vec()),
                ColumnTag::Null => None,
                ColumnTag::Unchanged if matches!(field, FieldSpan::ColumnOrNull(_)) => None,
                _ => {
                    no_value.set(Some(at.column));
                    None
                }
            }
        }
    };
    let mut reader = OutputReader::new(output).expect("a well-formed output");
    let (mut topics, mut records) = (Vec::new(), Vec::<TestRecord>::new());
    let mut outcome = Outcome::Dropped;
    while let Some(entry) = reader.next_entry().expect("a well-formed output") {
        match entry {
            Entry::Topic(name) => topics.push(text(name)),
            Entry::Record { topic, .. } => {
                let mut record = TestRecord {
                    topic: topics[usize::from(topic)].clone(),
                    ..TestRecord::default()
                };
                let parts = reader.parts(|role, span| {
                    match role {
                        Role::Key => record.key = field(span),
                        Role::Value => record.value = field(span),
                        Role::Header(name) => record.headers.push((text(name), field(span))),
                    }
                    Ok::<_, InvalidOutput>(())
                });
                parts.expect("a well-formed output");
                records.push(record);
            }
            Entry::Forward(_) => outcome = Outcome::Forwarded,
            Entry::Drop(_) => outcome = Outcome::Dropped,
            Entry::Error(_, message) => return Outcome::Refused(text(message)),
            Entry::Retry(_, message) => return Outcome::Retry(text(message)),
        }
    }
    if let Some(column) = no_value.get() {
        let (keyspace, name) = (&table.keyspace, &table.name);
        let column = &table.columns[usize::from(column)].name;
        Outcome::Refused(format!(
            "column `{column}` of {keyspace}.{name} has no value"
        ))
    } else if records.is_empty() {
        outcome
    } else {
        Outcome::Records(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Change, Output};

    /// Says what it sees.
    struct Probe;

    impl Transform for Probe {
        fn configure(settings: &Settings) -> Result<Self, Error> {
            settings.only(&["colour"])?;
            settings.parse::<u8>("colour")?;
            Ok(Self)
        }

        fn interest(&mut self, table: &Table) -> Result<Interest, Error> {
            match table.name.as_str() {
                "ignored" => Ok(Interest::Ignore),
                _ => Ok(table.columns_of(["id", "n", "tags", "nothing"])),
            }
        }

        fn process(&mut self, change: &Change<'_>, out: &mut Output) -> Result<(), Error> {
            match change.operation() {
                Operation::RowDelete => out.forward(change),
                Operation::PartitionDelete => {
                    out.forward(change);
                    return Err(Error::new("not yet").retry());
                }
                Operation::Update => {
                    let before = change.preimage().ok_or(Error::new("no preimage"))?;
                    let after = change.postimage().ok_or(Error::new("no postimage"))?;
                    let (before, after): (i32, i32) = (before.get("n")?, after.get("n")?);
                    out.record("diff").value(&format!("{before} {after}"));
                }
                Operation::RangeDeleteStartInclusive => {
                    let end = change.range_end().ok_or(Error::new("no end"))?;
                    out.record("range").value(end.column_ref("n")?);
                }
                Operation::Insert => {
                    out.record("undone by an error");
                    let id: Uuid = change.get("id")?;
                    assert_eq!(*change.text("id")?, *id.to_string());
                    out.record("seen")
                        .key(id.as_bytes())
                        .value(change.find::<&str>("gone")?);
                    change.get::<&str>("n")?;
                }
                _ => {}
            }
            Ok(())
        }
    }

    const COLUMNS: &str = "id uuid primary, n int, tags set<text>, secret text";

    #[test]
    fn a_transform_reaches_images_and_ranges() {
        let mut harness = Harness::<Probe>::new(&[]).unwrap();
        let t = harness.table("ks.t", COLUMNS).unwrap();
        let update = t
            .change(Operation::Update)
            .preimage(t.insert().set("n", 1))
            .postimage(t.insert().set("n", 2));
        let Outcome::Records(records) = harness.run(update) else {
            panic!("no records")
        };
        assert_eq!(records.len(), 1, "images are not processed themselves");
        assert_eq!(records[0].value.as_deref(), Some(&b"1 2"[..]));
        let range = t
            .change(Operation::RangeDeleteStartInclusive)
            .range_end(t.change(Operation::RangeDeleteEndExclusive).set("n", 9));
        let Outcome::Records(records) = harness.run(range) else {
            panic!("no records")
        };
        assert_eq!(records[0].value.as_deref(), Some(&9i32.to_be_bytes()[..]));
    }

    #[test]
    fn an_error_takes_back_what_was_written() {
        let mut harness = Harness::<Probe>::new(&[]).unwrap();
        let t = harness.table("ks.t", COLUMNS).unwrap();
        let outcome = harness.run(t.insert().set("id", Uuid::from_u128(7)).set("n", 1));
        let expected = "column `n` of ks.t (int): is not text";
        assert_eq!(outcome, Outcome::Refused(expected.to_owned()));
        let outcome = harness.run(t.insert().null("id"));
        assert_eq!(
            outcome,
            Outcome::Refused("column `id` of ks.t is null".to_owned())
        );
        assert_eq!(
            harness.run(t.change(Operation::RowDelete)),
            Outcome::Forwarded
        );
        assert_eq!(
            harness.run(t.change(Operation::PartitionDelete)),
            Outcome::Retry("not yet".to_owned())
        );
        assert_eq!(
            harness.run(t.change(Operation::RangeDeleteEndInclusive)),
            Outcome::Dropped
        );
    }

    #[test]
    fn interest_and_settings_are_heard() {
        let mut harness = Harness::<Probe>::new(&[("colour", "7")]).unwrap();
        let ignored = harness.table("ks.ignored", COLUMNS).unwrap();
        assert_eq!(harness.run(ignored.insert()), Outcome::Ignored);
        let refused = |settings: &[(&str, &str)]| match Harness::<Probe>::new(settings) {
            Err(e) => e.to_string(),
            Ok(_) => panic!("taken: {settings:?}"),
        };
        assert_eq!(
            refused(&[("color", "7")]),
            "unknown setting `color`; there are: colour"
        );
        assert!(refused(&[("colour", "x")]).starts_with("setting `colour` = \"x\": "));
    }
}
