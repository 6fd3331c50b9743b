//! What an author of transforms works with, from an empty folder with nothing but this program: a project that builds by
//! itself, its build, golden tests in the real host, and what can be seen of a plugin.
//!
//! - [`project`]: a new project, with the SDK and the contract in it.
//! - [`build`]: source to `.wasm`, one command whatever the language; [`languages`] has those beside Rust, and [`component`]
//!   makes a component of what Go builds; [`development`] is the form that an edit replaces in a second.
//! - [`values`], [`changes`]: changes from the JSON form of the docs.
//! - [`redact`]: recorded changes without their values.
//! - [`trial`]: a plugin at work outside of a pipeline.
//! - [`cases`]: golden tests: changes in, what became of them out.
//! - [`chain`]: the same over a whole chain, from pipeline.toml.
//! - [`images`]: which images of a change a chain makes use of, for the doctor.

pub mod build;
pub mod cases;
pub mod chain;
pub mod changes;
pub mod component;
mod development;
pub mod images;
pub mod languages;
pub mod project;
pub mod redact;
pub mod trial;
pub mod values;
