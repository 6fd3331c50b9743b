//! The bytes between Penstock and its plugins, read and written by the host and by the SDK alike.
//!
//! - [`rows`]: the input of `process`, a batch of changes with O(1) access to every column.
//! - [`output`]: the output of `process`.
//! - [`bytes`]: copying and comparing short texts.
//! - [`cql`]: CQL types and values, and their JSON form.
//! - [`shape`]: the columns of a table, as people write them.
//!
//! Everything here is bounds-checked: neither side trusts the other's lengths.

pub mod bytes;
pub mod cql;
pub mod output;
pub mod rows;
pub mod shape;

pub use cql::{CqlType, CqlValue};
pub use output::{ColumnRef, Field, OutputReader, OutputWriter};
pub use rows::{
    ColumnKind, ColumnTag, Mark, Operation, Projection, Row, RowMeta, Rows, RowsBuilder,
};

/// The version of the encoding that this crate writes, as a plugin says it in `info.encoding` of the contract.
///
/// | version | what came with it |
/// |---|---|
/// | 1 | what [`rows`] and [`output`] say, but for the next line |
/// | 2 | fields of kind 3 in an [`output`]: a column, or null where the change does not set it |
///
/// A new version only adds. So a host reads what [`OLDEST_VERSION`] and all after it write, up to its own, and refuses a
/// plugin of another one when it loads it, by its words: what it does not know would be a lie in each batch.
pub const ENCODING_VERSION: u16 = 2;

/// The oldest version that is still read.
pub const OLDEST_VERSION: u16 = 1;

/// The pseudo-table in which a transform sees the records of the transform before it.
pub mod record_table {
    /// Its keyspace.
    pub const KEYSPACE: &str = "penstock";
    /// Its name.
    pub const NAME: &str = "record";
    /// The id that its rows carry.
    pub const ID: u32 = u32::MAX;
    /// Its columns and their types, in order. Rows of it are inserts.
    pub const COLUMNS: [(&str, &str); 4] = [
        ("topic", "text"),
        ("key", "blob"),
        ("value", "blob"),
        ("headers", "frozen<map<text, blob>>"),
    ];
}
