//! The sections of pipeline.toml, one file each: a row a key, and what is made of it.

mod admin;
mod dead_letter;
mod embedded;
mod health;
mod log;
mod orders;
mod pipeline;
mod policies;
mod reload;
mod shutdown;
mod sink;
mod source;
mod tls;
mod tracing;
mod transform;

pub use admin::*;
pub use dead_letter::*;
pub use embedded::*;
pub use log::*;
pub use orders::*;
pub use pipeline::*;
pub use reload::*;
pub use shutdown::*;
pub use sink::*;
pub use source::*;
pub use tls::*;
pub use tracing::*;
pub use transform::*;
