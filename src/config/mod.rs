//! pipeline.toml: layers → raw → validated, every error with its place; then diff and watch.

pub mod settings;

pub use settings::{LiveSettings, Settings};
