//! The bytes between Penstock and its plugins, read and written by the host and by the SDK alike.
//!
//! - [`rows`]: the input of `process`, a batch of changes with O(1) access to every column.
//! - `output`: the output of `process`.
//! - `cql`: CQL types and values, and their JSON form.
//!
//! Everything here is bounds-checked: neither side trusts the other's lengths.

pub mod rows;

pub use rows::{ColumnKind, ColumnTag, Operation, Row, RowMeta, Rows, RowsBuilder};

/// The version of the encoding, as `info.encoding` of the contract names it.
pub const ENCODING_VERSION: u16 = 1;
