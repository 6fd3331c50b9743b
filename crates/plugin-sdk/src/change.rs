//! A change, as a transform sees it.

use penstock_plugin_encoding::{
    ColumnRef, ColumnTag, CqlType, CqlValue, Field, Mark, Operation, Row, RowMeta, Rows,
};

use crate::table::{Column, Lookup};
use crate::value::{FromCql, Text, Timestamp};
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
        Self::of_row(rows, tables, rows.get(index as usize)?, index)
    }

    /// Of the row at this index.
    #[inline]
    pub(crate) fn of_row(
        rows: &'a Rows,
        tables: &'a [Table],
        row: Row<'a>,
        index: u32,
    ) -> Option<Self> {
        let id = row.table();
        Some(Self {
            rows,
            tables,
            row,
            table: tables.iter().find(|t| t.id == id)?,
            index,
        })
    }

    #[inline]
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn meta(&self) -> RowMeta {
        self.row.meta()
    }

    /// What was done.
    #[inline]
    pub fn operation(&self) -> Operation {
        self.row.operation()
    }

    /// Its table.
    #[inline]
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

    #[cold]
    fn fail(&self, name: &str, what: impl std::fmt::Display) -> Error {
        let Table {
            keyspace,
            name: table,
            ..
        } = self.table;
        Error::new(format!("column `{name}` of {keyspace}.{table} {what}"))
    }

    // What reads a column is inlined, and what says why it cannot be read is not: a call with so much to hand over and to
    // give back takes a guest several times as long as what it is for.
    #[inline(always)]
    fn column(&self, name: impl Lookup) -> Result<(&'a Column, ColumnTag, &'a [u8]), Error> {
        let index = name.index(self.table);
        match index.and_then(|index| self.cell(index)) {
            Some(cell) => Ok(cell),
            None => Err(self.no_cell(index, name.name())),
        }
    }

    /// A column that was sent.
    #[inline(always)]
    fn cell(&self, index: u16) -> Option<(&'a Column, ColumnTag, &'a [u8])> {
        let (tag, bytes) = self.row.column(usize::from(index))?;
        let column = self.table.columns.get(usize::from(index))?;
        (tag != ColumnTag::Unsent).then_some((column, tag, bytes))
    }

    /// Why there is none.
    #[cold]
    #[inline(never)]
    fn no_cell(&self, index: Option<u16>, name: &str) -> Error {
        let Some(index) = index else {
            return self.fail(name, "does not exist");
        };
        let index = usize::from(index);
        match self.table.columns.get(index).zip(self.row.column(index)) {
            Some((_, (ColumnTag::Unsent, _))) => {
                self.fail(name, "was not declared in the transform's interest")
            }
            _ => self.fail(name, "is not in this row"),
        }
    }

    /// Why a column has no value.
    #[cold]
    #[inline(never)]
    fn no_value(&self, tag: ColumnTag, name: &str) -> Error {
        match tag {
            ColumnTag::Null => self.fail(name, "is null"),
            ColumnTag::Merged | ColumnTag::Removed => {
                self.fail(name, "lost elements: use `elements`")
            }
            _ => self.fail(name, "is not set"),
        }
    }

    /// The value of a column, which must have one.
    ///
    /// # Errors
    /// The column does not exist, was not declared, has no value in this change, or is of another type.
    #[inline]
    pub fn get<T: FromCql<'a>>(&self, name: impl Lookup) -> Result<T, Error> {
        let (column, tag, bytes) = self.column(name)?;
        match tag {
            ColumnTag::Value | ColumnTag::Replaced => self.decode(column, bytes),
            _ => Err(self.no_value(tag, name.name())),
        }
    }

    /// The value of a column; `None` if the table has no such column, or if it is null or not set.
    ///
    /// # Errors
    /// The column was not declared, or is of another type.
    #[inline]
    pub fn find<T: FromCql<'a>>(&self, name: impl Lookup) -> Result<Option<T>, Error> {
        let Some(index) = name.index(self.table) else {
            return Ok(None);
        };
        let Some((column, tag, bytes)) = self.cell(index) else {
            return Err(self.no_cell(Some(index), name.name()));
        };
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
    #[inline(always)]
    pub fn text_ref(&self, name: impl Lookup) -> Result<ColumnRef, Error> {
        let index = name.index(self.table);
        match self.text_column(index) {
            Some(column) => Ok(column),
            None => Err(self.no_text(index, name.name())),
        }
    }

    /// … `None` if the table has no such column, or if it is null or not set: as [`find`](Self::find) of a `&str`.
    ///
    /// # Errors
    /// The column was not declared, or is not text.
    #[inline(always)]
    pub fn find_text_ref(&self, name: impl Lookup) -> Result<Option<ColumnRef>, Error> {
        let index = name.index(self.table);
        match self.text_column(index) {
            None if self.lacks_text(index) => Ok(None),
            None => Err(self.no_text(index, name.name())),
            column => Ok(column),
        }
    }

    /// A column of text that has a value.
    #[inline(always)]
    fn text_column(&self, index: Option<u16>) -> Option<ColumnRef> {
        let column = self.table.columns.get(usize::from(index?))?;
        let is_text = matches!(column.cql_type.thawed(), CqlType::Text | CqlType::Ascii);
        let is_set = matches!(
            self.tag(index),
            Some(ColumnTag::Value | ColumnTag::Replaced)
        );
        (is_text && is_set).then_some(ColumnRef {
            row: self.index,
            column: index?,
        })
    }

    /// Whether there is no such column, or it has no value.
    #[inline(never)]
    fn lacks_text(&self, index: Option<u16>) -> bool {
        let unset = |tag| {
            !matches!(
                tag,
                ColumnTag::Unsent | ColumnTag::Value | ColumnTag::Replaced
            )
        };
        index.is_none() || self.tag(index).is_some_and(unset)
    }

    /// Why a column is no text that has a value.
    #[cold]
    #[inline(never)]
    fn no_text(&self, index: Option<u16>, name: &str) -> Error {
        match index.and_then(|index| self.cell(index)) {
            None => self.no_cell(index, name),
            Some((column, ColumnTag::Value | ColumnTag::Replaced, _)) => {
                let cql_type = column.cql_type.thawed();
                self.fail(name, format_args!("({cql_type}): is not text"))
            }
            Some((_, tag, _)) => self.no_value(tag, name),
        }
    }

    #[inline]
    fn decode<T: FromCql<'a>>(&self, column: &'a Column, bytes: &'a [u8]) -> Result<T, Error> {
        T::from_cql(&column.cql_type, bytes)
            .map_err(|e| self.fail(&column.name, format_args!("({}): {e}", column.cql_type)))
    }

    /// The text form of a value of any type: text as it is, everything else as in JSON, without quotes.
    #[inline(always)]
    pub fn text(&self, name: impl Lookup) -> Result<Text<'a>, Error> {
        let (column, tag, bytes) = self.column(name)?;
        let plain = matches!(tag, ColumnTag::Value | ColumnTag::Replaced);
        match (column.cql_type.thawed(), <&[u8; 16]>::try_from(bytes)) {
            (CqlType::Uuid | CqlType::Timeuuid, Ok(id)) if plain => Ok(Text::uuid(id)),
            _ => self.other_text(name),
        }
    }

    #[inline(never)]
    fn other_text(&self, name: impl Lookup) -> Result<Text<'a>, Error> {
        let (column, ..) = self.column(name)?;
        if matches!(column.cql_type.thawed(), CqlType::Text | CqlType::Ascii) {
            return Ok(Text::plain(self.get::<&str>(name)?));
        }
        let json = self.json(name)?;
        Ok(Text::plain(json.trim_matches('"').to_owned()))
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
    #[inline(always)]
    pub fn column_ref(&self, name: impl Lookup) -> Result<ColumnRef, Error> {
        let column = name.index(self.table);
        match (column, self.tag(column)) {
            (
                Some(column),
                Some(ColumnTag::Unsent | ColumnTag::Null | ColumnTag::Value | ColumnTag::Replaced),
            ) => Ok(ColumnRef {
                row: self.index,
                column,
            }),
            _ => Err(self.no_ref(column, name.name())),
        }
    }

    #[inline(always)]
    fn tag(&self, column: Option<u16>) -> Option<ColumnTag> {
        self.row.tag(usize::from(column?))
    }

    /// Why a column cannot be named.
    #[cold]
    #[inline(never)]
    fn no_ref(&self, column: Option<u16>, name: &str) -> Error {
        match (column, self.tag(column)) {
            (None, _) => self.fail(name, "does not exist"),
            (_, None) => self.fail(name, "is not in this row"),
            (_, Some(tag)) => self.no_value(tag, name),
        }
    }

    /// As [`column_ref`](Self::column_ref), but the field is null, too, where the change does not set the column: what an
    /// INSERT does not name is null in a row that was not there before.
    ///
    /// # Errors
    /// The column does not exist, or lost elements.
    #[inline(always)]
    pub fn column_or_null(&self, name: impl Lookup) -> Result<Field<'static>, Error> {
        let column = name.index(self.table);
        match (column, self.tag(column)) {
            (_, Some(ColumnTag::Unchanged)) => Ok(Field::Null),
            (
                Some(column),
                Some(ColumnTag::Unsent | ColumnTag::Null | ColumnTag::Value | ColumnTag::Replaced),
            ) => Ok(Field::ColumnOrNull(ColumnRef {
                row: self.index,
                column,
            })),
            _ => Err(self.no_ref(column, name.name())),
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
