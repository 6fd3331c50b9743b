//! scylla-double

pub mod cql;
pub mod types;
