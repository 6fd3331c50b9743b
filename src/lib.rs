//! Penstock carries changes from ScyllaDB's change log to Redpanda through WASM transforms, without loss.

pub mod change;
pub mod checkpoint;
pub mod config;
pub mod dead_letter;
pub mod policy;
pub mod sink;
pub mod source;
pub mod transform;
