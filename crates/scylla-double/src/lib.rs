//! scylla-double

pub mod cql;
pub mod engine;
pub mod types;
