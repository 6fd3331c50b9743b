//! Penstock carries changes from ScyllaDB's change log to Redpanda through WASM transforms, without loss.

pub mod admin;
pub mod change;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod coordinator;
pub mod cql;
mod crash;
pub mod dead_letter;
pub mod embedded;
pub mod finding;
pub mod histogram;
pub mod orders;
pub mod policy;
mod progress;
mod reach;
pub mod sink;
pub mod source;
pub mod spans;
pub mod tls;
mod topic;
pub mod transform;
pub mod waits;
mod words;
pub mod workbench;
