//! A change, as a transform sees it.

use std::borrow::Cow;
use std::net::IpAddr;

use penstock_plugin_encoding::bytes::hyphenated;
use penstock_plugin_encoding::{
    ColumnRef, ColumnTag, CqlType, CqlValue, Field, Mark, Operation, Row, RowMeta, Rows,
};
use uuid::Uuid;

use crate::table::{Column, Lookup};
use crate::{Error, Table};

/// One row of a CDC log: a change, its image, or the end of its range.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    rows: &'a Rows,
    tables: &'a [Table],
    row: Row<'a>,
    table: &'a Table,
    index: u32,
}

/// What happened to the elements of a non-frozen collection or UDT.
#[derive(Clone, Debug, PartialEq)]
pub struct Elements<'a> {
    /// The old elements are gone: `added` is all there is.
    pub replaced: bool,
    /// Elements that were set; of a list a map by timeuuid.
    pub added: Option<CqlValue<'a>>,
    /// Elements, keys, a list's timeuuids or a UDT's field numbers that were removed.
    pub removed: Option<CqlValue<'a>>,
}

impl<'a> Change<'a> {
    /// `None` if there is no such row, or if its table was never opened, which the host does not do.
    pub(crate) fn new(rows: &'a Rows, tables: &'a [Table], index: u32) -> Option<Self> {
        let row = rows.get(index as usize)?;
        let id = row.table();
        Some(Self {
            rows,
            tables,
            row,
            table: tables.iter().find(|t| t.id == id)?,
            index,
        })
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn meta(&self) -> RowMeta {
        self.row.meta()
    }

    /// What was done.
    pub fn operation(&self) -> Operation {
        self.row.operation()
    }

    /// Its table.
    pub fn table(&self) -> &'a Table {
        self.table
    }

    /// The batch as it came, and the row of this change: for what reads the encoding itself.
    pub fn raw(&self) -> (&'a Rows, u32) {
        (self.rows, self.index)
    }

    /// When it was written: microseconds since the Unix epoch.
    pub fn time_us(&self) -> i64 {
        self.meta().time_us
    }

    /// When it was written, in the milliseconds of CQL timestamps.
    pub fn time(&self) -> Timestamp {
        Timestamp(self.time_us().div_euclid(1000))
    }

    /// Its time to live in seconds.
    pub fn ttl(&self) -> Option<u32> {
        Some(self.meta().ttl).filter(|ttl| *ttl > 0)
    }

    /// Whether this is the last row of its write (`cdc$end_of_batch`).
    pub fn is_end_of_batch(&self) -> bool {
        self.meta().end_of_batch
    }

    /// Whether it came late: behind what had been read already, so that later changes of its key may have gone
    /// before it.
    pub fn is_late(&self) -> bool {
        self.row.is_marked(Mark::Late)
    }

    /// Whether the log has a preimage of it that could not be sent: the write was too large to be held together.
    pub fn is_preimage_missing(&self) -> bool {
        self.row.is_marked(Mark::PreimageMissing)
    }

    /// Whether the log has a postimage of it, or an end of its range, that could not be sent: the write was too
    /// large to be held together.
    pub fn is_end_missing(&self) -> bool {
        self.row.is_marked(Mark::EndMissing)
    }

    /// The row before the change, where the table logs preimages.
    pub fn preimage(&self) -> Option<Change<'a>> {
        Change::new(self.rows, self.tables, self.row.preimage()?)
    }

    /// The row after the change, where the table logs postimages.
    pub fn postimage(&self) -> Option<Change<'a>> {
        let end = Change::new(self.rows, self.tables, self.row.end()?)?;
        (end.operation() == Operation::PostImage).then_some(end)
    }

    /// The end of a range delete, this being its start.
    pub fn range_end(&self) -> Option<Change<'a>> {
        let end = Change::new(self.rows, self.tables, self.row.end()?)?;
        (end.operation() != Operation::PostImage).then_some(end)
    }

    fn fail(&self, name: &str, what: impl std::fmt::Display) -> Error {
        let Table {
            keyspace,
            name: table,
            ..
        } = self.table;
        Error::new(format!("column `{name}` of {keyspace}.{table} {what}"))
    }

    fn column(&self, name: impl Lookup) -> Result<(&'a Column, ColumnTag, &'a [u8]), Error> {
        let fail = |what: &str| self.fail(name.name(), what);
        let index = name.index(self.table);
        let index = index.ok_or_else(|| fail("does not exist"))?;
        self.column_at(index, name)
    }

    fn column_at(
        &self,
        index: u16,
        name: impl Lookup,
    ) -> Result<(&'a Column, ColumnTag, &'a [u8]), Error> {
        let fail = |what: &str| self.fail(name.name(), what);
        let index = usize::from(index);
        let column = self.table.columns.get(index).zip(self.row.column(index));
        match column.ok_or_else(|| fail("is not in this row"))? {
            (_, (ColumnTag::Unsent, _)) => {
                Err(fail("was not declared in the transform's interest"))
            }
            (column, (tag, bytes)) => Ok((column, tag, bytes)),
        }
    }

    /// The value of a column, which must have one.
    ///
    /// # Errors
    /// The column does not exist, was not declared, has no value in this change, or is of another type.
    pub fn get<T: FromCql<'a>>(&self, name: impl Lookup) -> Result<T, Error> {
        let (column, tag, bytes) = self.column(name)?;
        match tag {
            ColumnTag::Value | ColumnTag::Replaced => self.decode(column, bytes),
            ColumnTag::Null => Err(self.fail(name.name(), "is null")),
            ColumnTag::Merged | ColumnTag::Removed => {
                Err(self.fail(name.name(), "lost elements: use `elements`"))
            }
            ColumnTag::Unchanged | ColumnTag::Unsent => Err(self.fail(name.name(), "is not set")),
        }
    }

    /// The value of a column; `None` if the table has no such column, or if it is null or not set.
    ///
    /// # Errors
    /// The column was not declared, or is of another type.
    pub fn find<T: FromCql<'a>>(&self, name: impl Lookup) -> Result<Option<T>, Error> {
        let Some(index) = name.index(self.table) else {
            return Ok(None);
        };
        let (column, tag, bytes) = self.column_at(index, name)?;
        match tag {
            ColumnTag::Value | ColumnTag::Replaced => self.decode(column, bytes).map(Some),
            _ => Ok(None),
        }
    }

    /// Names the bytes of a text column, which must have a value: as [`get`](Self::get) of a `&str`, but nothing is read
    /// or copied.
    ///
    /// # Errors
    /// Those of `get`.
    pub fn text_ref(&self, name: impl Lookup) -> Result<ColumnRef, Error> {
        match self.find_text_ref(name)? {
            Some(column) => Ok(column),
            // This says why it has none.
            None => self
                .get::<&str>(name)
                .and_then(|_| Err(self.fail(name.name(), "is not set"))),
        }
    }

    /// … `None` if the table has no such column, or if it is null or not set: as [`find`](Self::find) of a `&str`.
    ///
    /// # Errors
    /// The column was not declared, or is not text.
    pub fn find_text_ref(&self, name: impl Lookup) -> Result<Option<ColumnRef>, Error> {
        let Some(index) = name.index(self.table) else {
            return Ok(None);
        };
        let (column, tag, _) = self.column_at(index, name)?;
        match (tag, column.cql_type.thawed()) {
            (ColumnTag::Value | ColumnTag::Replaced, CqlType::Text | CqlType::Ascii) => {
                Ok(Some(ColumnRef {
                    row: self.index,
                    column: index,
                }))
            }
            (ColumnTag::Value | ColumnTag::Replaced, other) => {
                Err(self.fail(name.name(), format_args!("({other}): is not text")))
            }
            _ => Ok(None),
        }
    }

    fn decode<T: FromCql<'a>>(&self, column: &'a Column, bytes: &'a [u8]) -> Result<T, Error> {
        T::from_cql(&column.cql_type, bytes)
            .map_err(|e| self.fail(&column.name, format_args!("({}): {e}", column.cql_type)))
    }

    /// The text form of a value of any type: text as it is, everything else as in JSON, without quotes.
    pub fn text(&self, name: impl Lookup) -> Result<Text<'a>, Error> {
        let (column, tag, bytes) = self.column(name)?;
        let plain = matches!(tag, ColumnTag::Value | ColumnTag::Replaced);
        match (column.cql_type.thawed(), <&[u8; 16]>::try_from(bytes)) {
            (CqlType::Uuid | CqlType::Timeuuid, Ok(id)) if plain => {
                Ok(Text(TextForm::Uuid(hyphenated(id))))
            }
            (CqlType::Text | CqlType::Ascii, _) => {
                Ok(Text(TextForm::Plain(Cow::Borrowed(self.get(name)?))))
            }
            _ => {
                let json = self.json(name)?;
                let text = json.trim_matches('"').to_owned();
                Ok(Text(TextForm::Plain(Cow::Owned(text))))
            }
        }
    }

    /// The JSON form of a value of any type; see [`mod@penstock_plugin_encoding::cql`]. Of a non-frozen collection or UDT it is
    /// that of the JSON of a change: a plain value where it was overwritten or stands in an image, else an object of what was
    /// `added` and `removed`.
    pub fn json(&self, name: impl Lookup) -> Result<String, Error> {
        let (column, tag, _) = self.column(name)?;
        let unset = matches!(
            tag,
            ColumnTag::Unchanged | ColumnTag::Unsent | ColumnTag::Null
        );
        if unset || !column.cql_type.is_multi_cell() {
            return Ok(self.get::<CqlValue<'a>>(name)?.to_json()?);
        }
        let Some(Elements {
            replaced,
            added,
            removed,
        }) = self.elements(name)?
        else {
            return Ok("null".to_owned());
        };
        let image = matches!(self.operation(), Operation::PreImage | Operation::PostImage);
        if replaced || image {
            return match (added, &column.cql_type) {
                (Some(value), _) if is_nothing(&value) => Ok("null".to_owned()),
                // In the order of their timeuuids, which is the list's.
                (Some(CqlValue::Map(cells)), CqlType::List(_)) => {
                    let elements = cells.into_iter().map(|(_, value)| value).collect();
                    Ok(CqlValue::Sequence(elements).to_json()?)
                }
                (value, _) => Ok(value.unwrap_or(CqlValue::Null).to_json()?),
            };
        }
        let mut said = String::new();
        for (part, value) in [("added", added), ("removed", removed)] {
            if let Some(value) = value {
                said.push(if said.is_empty() { '{' } else { ',' });
                said.push_str(&format!("\"{part}\":{}", value.to_json()?));
            }
        }
        said.push('}');
        Ok(said)
    }

    /// What happened to the elements of a non-frozen collection or UDT; `None` if nothing did.
    pub fn elements(&self, name: impl Lookup) -> Result<Option<Elements<'a>>, Error> {
        let (column, tag, bytes) = self.column(name)?;
        let added = |bytes| CqlValue::decode(&column.cql_type.log_type(), bytes).map(Some);
        let removed = |bytes| match column.cql_type.removed_type() {
            Some(t) => Ok(CqlValue::decode(&t, bytes).map(Some)?),
            None => Err(self.fail(name.name(), "is not a non-frozen collection or UDT")),
        };
        let none = || Elements {
            replaced: false,
            added: None,
            removed: None,
        };
        Ok(Some(match tag {
            ColumnTag::Unchanged | ColumnTag::Unsent => return Ok(None),
            ColumnTag::Null => Elements {
                replaced: true,
                ..none()
            },
            ColumnTag::Value => Elements {
                added: added(bytes)?,
                ..none()
            },
            ColumnTag::Replaced => Elements {
                replaced: true,
                added: added(bytes)?,
                removed: None,
            },
            ColumnTag::Removed => Elements {
                removed: removed(bytes)?,
                ..none()
            },
            ColumnTag::Merged => {
                let (len, rest) = bytes
                    .split_first_chunk::<4>()
                    .ok_or_else(|| self.fail(name.name(), "is truncated"))?;
                let (head, tail) = rest
                    .split_at_checked(u32::from_le_bytes(*len) as usize)
                    .ok_or_else(|| self.fail(name.name(), "is truncated"))?;
                Elements {
                    replaced: false,
                    added: added(head)?,
                    removed: removed(tail)?,
                }
            }
        }))
    }

    /// What the change says of a column.
    pub fn state(&self, name: impl Lookup) -> Result<ColumnTag, Error> {
        self.column(name).map(|(_, tag, _)| tag)
    }

    /// Whether the column has a value in this change.
    pub fn is_set(&self, name: impl Lookup) -> bool {
        matches!(
            self.state(name),
            Ok(ColumnTag::Value | ColumnTag::Replaced | ColumnTag::Merged)
        )
    }

    /// Whether the column was set to null.
    pub fn is_null(&self, name: impl Lookup) -> bool {
        matches!(self.state(name), Ok(ColumnTag::Null))
    }

    /// Names a column's bytes for a record, so that they are not copied: a null column is a null field.
    ///
    /// The column need not be declared: one that is only named so is never sent at all. If it turns out to have
    /// no value, the host refuses the change.
    ///
    /// # Errors
    /// The column does not exist, or this change did not set it.
    pub fn column_ref(&self, name: impl Lookup) -> Result<ColumnRef, Error> {
        let column = name.index(self.table);
        let column = column.ok_or_else(|| self.fail(name.name(), "does not exist"))?;
        match self.row.column(usize::from(column)) {
            Some((ColumnTag::Unchanged, _)) => Err(self.fail(name.name(), "is not set")),
            Some((ColumnTag::Merged | ColumnTag::Removed, _)) => {
                Err(self.fail(name.name(), "lost elements: use `elements`"))
            }
            Some(_) => Ok(ColumnRef {
                row: self.index,
                column,
            }),
            None => Err(self.fail(name.name(), "is not in this row")),
        }
    }

    /// As [`column_ref`](Self::column_ref), but the field is null, too, where the change does not set the column: what an
    /// INSERT does not name is null in a row that was not there before.
    ///
    /// # Errors
    /// The column does not exist, or lost elements.
    pub fn column_or_null(&self, name: impl Lookup) -> Result<Field<'static>, Error> {
        let at = name.index(self.table).map(usize::from);
        match at.and_then(|at| self.row.column(at)) {
            Some((ColumnTag::Unchanged, _)) => Ok(Field::Null),
            _ => self.column_ref(name).map(Field::ColumnOrNull),
        }
    }
}

/// A non-frozen collection without elements, or UDT without fields, does not exist: it reads as null.
fn is_nothing(value: &CqlValue<'_>) -> bool {
    match value {
        CqlValue::Sequence(elements) => elements.is_empty(),
        CqlValue::Map(cells) => cells.is_empty(),
        CqlValue::Udt(fields) => fields.iter().all(|(_, value)| *value == CqlValue::Null),
        _ => false,
    }
}

/// The text form of a value: a `str`, which takes no memory of its own for text and for UUIDs.
#[derive(Clone, Debug)]
pub struct Text<'a>(TextForm<'a>);

#[derive(Clone, Debug)]
enum TextForm<'a> {
    Plain(Cow<'a, str>),
    Uuid([u8; 36]),
}

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            TextForm::Plain(text) => text,
            TextForm::Uuid(text) => std::str::from_utf8(text).unwrap_or_default(),
        }
    }
}

impl<'a> From<&'a Text<'_>> for Field<'a> {
    fn from(text: &'a Text<'_>) -> Self {
        match &text.0 {
            TextForm::Plain(text) => text.as_bytes().into(),
            TextForm::Uuid(text) => text.into(),
        }
    }
}

impl std::fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self)
    }
}

/// Milliseconds since the Unix epoch, as CQL's `timestamp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// A type that a column can be read as.
pub trait FromCql<'a>: Sized {
    /// Reads the bytes of a value of this type.
    fn from_cql(cql_type: &CqlType, bytes: &'a [u8]) -> Result<Self, Error>;
}

/// The bytes as they are, whatever the type.
impl<'a> FromCql<'a> for &'a [u8] {
    fn from_cql(_: &CqlType, bytes: &'a [u8]) -> Result<Self, Error> {
        Ok(bytes)
    }
}

impl<'a> FromCql<'a> for CqlValue<'a> {
    fn from_cql(cql_type: &CqlType, bytes: &'a [u8]) -> Result<Self, Error> {
        Ok(match cql_type {
            CqlType::List(_) => CqlValue::decode(&cql_type.log_type(), bytes)?,
            _ => CqlValue::decode(cql_type, bytes)?,
        })
    }
}

impl<'a> FromCql<'a> for &'a str {
    fn from_cql(cql_type: &CqlType, bytes: &'a [u8]) -> Result<Self, Error> {
        match cql_type.thawed() {
            CqlType::Text | CqlType::Ascii => Ok(std::str::from_utf8(bytes)?),
            _ => Err(Error::new("is not text")),
        }
    }
}

impl<'a> FromCql<'a> for Cow<'a, str> {
    fn from_cql(cql_type: &CqlType, bytes: &'a [u8]) -> Result<Self, Error> {
        <&str>::from_cql(cql_type, bytes).map(Cow::Borrowed)
    }
}

impl FromCql<'_> for String {
    fn from_cql(cql_type: &CqlType, bytes: &[u8]) -> Result<Self, Error> {
        <&str>::from_cql(cql_type, bytes).map(str::to_owned)
    }
}

macro_rules! scalar {
    ($($type:ty, $what:literal: $($value:pat => $read:expr),+;)+) => {$(
        impl FromCql<'_> for $type {
            fn from_cql(cql_type: &CqlType, bytes: &[u8]) -> Result<Self, Error> {
                match CqlValue::decode(cql_type, bytes)? {
                    $($value => $read,)+
                    _ => Err(Error::new(concat!("is not ", $what))),
                }
            }
        }
    )+};
}

scalar! {
    bool, "a boolean": CqlValue::Boolean(b) => Ok(b);
    i8, "an integer": CqlValue::Int(n) => Ok(n.try_into()?);
    i16, "an integer": CqlValue::Int(n) => Ok(n.try_into()?);
    i32, "an integer": CqlValue::Int(n) => Ok(n.try_into()?);
    i64, "an integer": CqlValue::Int(n) => Ok(n);
    f32, "a float": CqlValue::Float(x) => Ok(x);
    f64, "a float": CqlValue::Double(x) => Ok(x), CqlValue::Float(x) => Ok(x.into());
    Uuid, "a uuid": CqlValue::Uuid(id) => Ok(id);
    IpAddr, "an address": CqlValue::Inet(ip) => Ok(ip);
    Timestamp, "a timestamp": CqlValue::Timestamp(ms) => Ok(Timestamp(ms));
}
