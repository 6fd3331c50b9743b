//! The values of pipeline.toml that TOML has no type for: addresses of nodes, places to start, secrets.

/// A list of addresses, or the in-process stand-in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// `"embedded"`
    Embedded,
    /// `["host:port", …]`
    At(Vec<String>),
}

/// `source.start_from`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFrom {
    /// The oldest change that the log still has.
    Earliest,
    /// Changes from the start of the process on.
    Latest,
    /// Microseconds since the Unix epoch.
    At(i64),
}

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The value, for the driver that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// What a file holds that a key names, as it was read with the configuration. Never printed: it may be a key.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents(std::sync::Arc<str>);

impl Contents {
    /// Wraps it.
    pub fn new(text: String) -> Self {
        Self(text.into())
    }

    /// The text, for whoever needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
