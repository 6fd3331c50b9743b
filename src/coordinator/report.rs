//! What the look at every component comes to. Knows nothing of who looks, or at what.

use std::sync::Arc;

use crate::policy::health::Level;

/// The standing of the system and of each component.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Report {
    /// What the components add up to; `None` before the first look.
    pub system: Option<Entry>,
    /// By name.
    pub components: Vec<Entry>,
}

/// One component, or the system.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Entry {
    /// `system`, or a stage's name.
    pub name: Arc<str>,
    /// How it is.
    pub status: Level,
    /// Why, unless it is well.
    pub reason: Option<Arc<str>>,
    /// Since when, as seconds since the Unix epoch.
    pub since: f64,
    /// What the latest run of trouble began with.
    pub first_fault: Option<String>,
    /// Whether it makes the system unhealthy.
    pub critical: bool,
}
