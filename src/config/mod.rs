//! pipeline.toml: layers → raw → validated, every error with its place; then diff and watch.

pub mod error;
pub mod keys;
mod raw;
pub mod reload;
pub mod schema;
pub mod settings;
mod validate;
pub mod value;
pub mod watch;

pub use error::{Invalid, Place, Problem, Reason};
pub use keys::Class;
pub use raw::{Digest32, Inputs, Sources};
pub use settings::{LiveSettings, Settings};
pub use validate::{
    CheckPlugin, CheckProperties, Checks, Effective, Loaded, admin_alone, load, parse,
};
