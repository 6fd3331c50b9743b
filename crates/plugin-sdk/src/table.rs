//! Tables, as a transform is told of them.

use penstock_plugin_encoding::bytes::same;
use penstock_plugin_encoding::{ColumnKind, CqlType};

use crate::Error;
use crate::bindings::exports::penstock::plugin::transform as contract;
use crate::bindings::penstock::plugin::types::ColumnKind as ContractKind;

/// One version of a table's shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What the rows carry.
    pub id: u32,
    /// Its keyspace.
    pub keyspace: String,
    /// Its name; the base table's, not the log's.
    pub name: String,
    /// In the order in which rows carry them.
    pub columns: Vec<Column>,
}

/// A column of a [`Table`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type in the base table.
    pub cql_type: CqlType,
    /// Its part in the primary key.
    pub kind: ColumnKind,
}

/// A column looked up once, in [`Transform::interest`](crate::Transform::interest), instead of by name at every
/// change. It belongs to the table version that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle {
    name: String,
    index: Option<u16>,
}

impl Handle {
    /// The index; `None` if the table has no such column.
    pub fn index(&self) -> Option<u16> {
        self.index
    }
}

/// What names a column of a change: its name, or a [`Handle`].
pub trait Lookup: Copy {
    /// The index in this table.
    fn index(self, table: &Table) -> Option<u16>;
    /// The name, for errors.
    fn name(&self) -> &str;
}

impl Lookup for &str {
    fn index(self, table: &Table) -> Option<u16> {
        table.column(self)
    }

    fn name(&self) -> &str {
        self
    }
}

impl Lookup for &String {
    fn index(self, table: &Table) -> Option<u16> {
        table.column(self)
    }

    fn name(&self) -> &str {
        self
    }
}

impl Lookup for &Handle {
    fn index(self, _: &Table) -> Option<u16> {
        self.index
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl Table {
    /// A handle of a column, whether it exists or not.
    pub fn handle(&self, name: &str) -> Handle {
        Handle {
            name: name.to_owned(),
            index: self.column(name),
        }
    }

    /// The index of a column.
    pub fn column(&self, name: &str) -> Option<u16> {
        self.columns
            .iter()
            .position(|c| same(c.name.as_bytes(), name.as_bytes()))
            .map(|i| i as u16)
    }

    /// Interest in these columns, all of which must exist.
    pub fn columns(&self, names: &[&str]) -> Result<Interest, Error> {
        let index = |name: &&str| {
            self.column(name).ok_or_else(|| {
                let (ks, table) = (&self.keyspace, &self.name);
                Error::new(format!("table {ks}.{table} has no column `{name}`"))
            })
        };
        names
            .iter()
            .map(index)
            .collect::<Result<_, _>>()
            .map(Interest::Columns)
    }

    /// Interest in those of these columns that exist.
    pub fn columns_of<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Interest {
        Interest::Columns(names.into_iter().filter_map(|n| self.column(n)).collect())
    }

    /// Whether this is the records of the transform before this one ([`crate::record_table`]).
    pub fn is_record_table(&self) -> bool {
        self.id == penstock_plugin_encoding::record_table::ID
    }
}

/// What of a table a transform wants to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Nothing: the table's changes pass this transform by, unchanged.
    Ignore,
    /// Every column.
    All,
    /// These columns, by index.
    Columns(Vec<u16>),
}

impl From<Interest> for contract::Interest {
    fn from(interest: Interest) -> Self {
        match interest {
            Interest::Ignore => Self::Ignore,
            Interest::All => Self::All,
            Interest::Columns(columns) => Self::Columns(columns),
        }
    }
}

impl TryFrom<contract::Table> for Table {
    type Error = Error;

    fn try_from(table: contract::Table) -> Result<Self, Error> {
        let column = |c: crate::bindings::penstock::plugin::types::Column| {
            Ok(Column {
                cql_type: c.cql_type.parse()?,
                name: c.name,
                kind: match c.kind {
                    ContractKind::PartitionKey => ColumnKind::PartitionKey,
                    ContractKind::ClusteringKey => ColumnKind::ClusteringKey,
                    ContractKind::StaticColumn => ColumnKind::Static,
                    ContractKind::Regular => ColumnKind::Regular,
                },
            })
        };
        let columns = table.columns.into_iter().map(column);
        Ok(Self {
            id: table.id,
            keyspace: table.keyspace,
            name: table.name,
            columns: columns.collect::<Result<_, Error>>()?,
        })
    }
}
