//! What is not as it should be, for whoever asks before it matters: the doctor's words.

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The pipeline does not work so, or may lose something.
    Error,
    /// It works, and one more thing that goes wrong will be told the hard way.
    Warning,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Its stable name.
    pub code: &'static str,
    /// What it is about: an address, a topic, a table, a key.
    pub about: String,
    /// What was found.
    pub found: String,
    /// What to do.
    pub help: String,
}

impl Finding {
    /// The pipeline does not work so.
    pub fn error(
        code: &'static str,
        about: impl Into<String>,
        found: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Error,
            code,
            about: about.into(),
            found: found.into(),
            help: help.into(),
        }
    }

    /// It works so, for now.
    pub fn warning(
        code: &'static str,
        about: impl Into<String>,
        found: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(code, about, found, help)
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(
            f,
            "{severity}[{}] {}: {}\n  = help: {}",
            self.code, self.about, self.found, self.help
        )
    }
}
