//! pipeline.toml: layers → raw → validated, every error with its place; then diff and watch.

mod cross;
pub mod error;
mod key;
pub mod keys;
mod layer;
mod mask;
mod plugins;
mod properties;
mod raw;
mod reading;
pub mod reference;
pub mod reload;
mod retune;
mod rules;
pub mod schema;
mod secrets;
mod section;
mod sections;
mod seen;
pub mod settings;
mod show;
pub mod stock;
mod validate;
mod value;
mod walk;
pub mod watch;

pub use error::{Invalid, Place, Problem, Reason};
pub use key::ReloadClass;
pub use raw::Inputs;
pub use seen::{LARGEST_PLUGIN, Seen, Sources};
pub use settings::{LiveSettings, Settings};
pub use validate::{
    CheckPlugin, CheckProperties, Checks, Effective, Loaded, PluginFault, ReservedProperty,
    SettingFault, SettingTrouble, admin_alone, load, parse,
};
pub use walk::nearest;
