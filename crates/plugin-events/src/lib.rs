//! What the stock plugins share: a change or a record as an event, whose parts have names, and templates over them.
//!
//! Of a change: `{op}`, `{keyspace}`, `{table}`, `{columns.<name>}` (of the row after it where there is a postimage, else of the
//! change itself), `{before.<name>}`. Of a record: `{topic}`, `{headers.<name>}`, `{value.<field>.<field>}`. Of both: `{key}`,
//! `{time}`, `{time_us}`. `{<name>|<text>}` has the text where there is no such part; `{{` and `}}` are braces.

mod template;

use std::cell::OnceCell;

use penstock_plugin::{
    Change, Column, ColumnKind, ColumnTag, CqlValue, Error, Operation, RecordOutput, bail,
};
use serde_json::{Map, Value};

pub use template::{Template, templates};

/// A change or a record.
#[derive(Debug)]
pub struct Event<'e, 'a> {
    change: &'e Change<'a>,
    json: OnceCell<Option<Value>>,
}

/// The row that an event of a change tells.
#[derive(Debug)]
pub enum Row {
    /// It is there, with these columns.
    There(Map<String, Value>),
    /// It is gone.
    Gone,
}

impl<'e, 'a> Event<'e, 'a> {
    /// The event of a change.
    pub fn of(change: &'e Change<'a>) -> Self {
        Self {
            change,
            json: OnceCell::new(),
        }
    }

    /// Whether a transform before this one made a record of it.
    pub fn is_record(&self) -> bool {
        self.change.table().is_record_table()
    }

    /// The value of a record, where it is JSON.
    pub fn json(&self) -> Result<Option<&Value>, Error> {
        if let Some(known) = self.json.get() {
            return Ok(known.as_ref());
        }
        let value: Option<&[u8]> = self.change.find("value")?;
        let json = value.and_then(|value| serde_json::from_slice(value).ok());
        Ok(self.json.get_or_init(|| json).as_ref())
    }

    /// The headers of a record.
    pub fn headers(&self) -> Result<Vec<(&'a str, Option<&'a [u8]>)>, Error> {
        let Some(CqlValue::Map(all)) = self.change.find("headers")? else {
            return Ok(Vec::new());
        };
        let header = |(name, value)| match (name, value) {
            (CqlValue::Text(name), CqlValue::Blob(bytes)) => Some((name, Some(bytes))),
            (CqlValue::Text(name), _) => Some((name, None)),
            _ => None,
        };
        Ok(all.into_iter().filter_map(header).collect())
    }

    /// The row that a change left behind.
    ///
    /// # Errors
    /// The change is of a range, or of a partition with many rows: it names no row.
    pub fn row(&self) -> Result<Row, Error> {
        let table = self.change.table();
        let clustered = table
            .columns
            .iter()
            .any(|c| c.kind == ColumnKind::ClusteringKey);
        match self.change.operation() {
            Operation::Insert | Operation::Update => {
                let image = self.change.postimage();
                columns(image.as_ref().unwrap_or(self.change)).map(Row::There)
            }
            Operation::RowDelete | Operation::TtlRowDelete => Ok(Row::Gone),
            Operation::PartitionDelete | Operation::TtlPartitionDelete if !clustered => {
                Ok(Row::Gone)
            }
            other => bail!("{} names no row", other.name()),
        }
    }

    /// The key: of a record as it is, of a change its primary key's columns as a JSON object.
    pub fn key(&self) -> Result<Option<String>, Error> {
        if self.is_record() {
            let key: Option<&[u8]> = self.change.find("key")?;
            return key
                .map(|key| Ok(std::str::from_utf8(key)?.to_owned()))
                .transpose();
        }
        let mut key = Map::new();
        let columns = self.change.table().columns.iter().filter(|c| is_key(c));
        for column in columns {
            let value = value(self.change, column)?.unwrap_or(Value::Null);
            key.insert(column.name.clone(), value);
        }
        Ok(Some(Value::Object(key).to_string()))
    }

    /// When it was written, as in JSON.
    pub fn time(&self) -> Result<String, Error> {
        let json = CqlValue::Timestamp(self.change.time().0).to_json()?;
        Ok(json.trim_matches('"').to_owned())
    }

    /// Sets the key that the event has.
    pub fn put_key<'o>(&self, record: RecordOutput<'o>) -> Result<RecordOutput<'o>, Error> {
        if !self.is_record() {
            let key = self.key()?;
            return Ok(record.key(key.as_ref()));
        }
        Ok(match self.change.is_null("key") {
            true => record,
            false => record.key(self.change.column_ref("key")?),
        })
    }

    /// Sets the value that the event has: a record's own, the row of a change as JSON, or null for a row that is gone.
    pub fn put_value<'o>(&self, record: RecordOutput<'o>) -> Result<RecordOutput<'o>, Error> {
        if self.is_record() {
            return Ok(match self.change.is_null("value") {
                true => record,
                false => record.value(self.change.column_ref("value")?),
            });
        }
        Ok(match self.row()? {
            Row::There(row) => record.value(&Value::Object(row).to_string()),
            Row::Gone => record,
        })
    }
}

fn is_key(column: &Column) -> bool {
    matches!(
        column.kind,
        ColumnKind::PartitionKey | ColumnKind::ClusteringKey
    )
}

/// The columns that a change or an image tells.
pub fn columns(change: &Change<'_>) -> Result<Map<String, Value>, Error> {
    let mut row = Map::new();
    for column in &change.table().columns {
        if let Some(value) = value(change, column)? {
            row.insert(column.name.clone(), value);
        }
    }
    Ok(row)
}

/// What a change says of a column, as JSON; `None`: nothing. Of elements that were added and removed an object of both, as in
/// the JSON of a change.
pub fn value(change: &Change<'_>, column: &Column) -> Result<Option<Value>, Error> {
    let image = matches!(
        change.operation(),
        Operation::PreImage | Operation::PostImage
    );
    let many = column.cql_type.is_multi_cell();
    let tag = change.state(&column.name)?;
    Ok(match tag {
        ColumnTag::Unsent | ColumnTag::Unchanged => None,
        ColumnTag::Null => Some(Value::Null),
        _ if many => {
            let elements = change.elements(&column.name)?;
            let (added, removed) = elements.map_or((None, None), |e| (e.added, e.removed));
            if image || tag == ColumnTag::Replaced {
                let whole = CqlValue::whole(&column.cql_type, added);
                return Ok(Some(serde_json::from_str(&whole.to_json()?)?));
            }
            let mut parts = Map::new();
            for (name, part) in [("added", added), ("removed", removed)] {
                if let Some(part) = part {
                    parts.insert(name.to_owned(), serde_json::from_str(&part.to_json()?)?);
                }
            }
            Some(Value::Object(parts))
        }
        _ => Some(serde_json::from_str(&change.json(&column.name)?)?),
    })
}

/// A JSON value as text: a string as it is.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A setting of type table: names and texts, in the order of the names.
pub fn pairs(name: &str, setting: Option<&str>) -> Result<Vec<(String, String)>, Error> {
    let Some(setting) = setting else {
        return Ok(Vec::new());
    };
    let wrong = || Error::new(format!("setting `{name}`: expected a table of texts"));
    let table: Map<String, Value> = serde_json::from_str(setting).map_err(|_| wrong())?;
    let pair = |(name, value)| match value {
        Value::String(text) => Ok((name, text)),
        _ => Err(wrong()),
    };
    table.into_iter().map(pair).collect()
}
