//! `[reload]`: how a change of the configuration is noticed.

use std::time::Duration;

use crate::config::key::Fallback::Value;
use crate::config::key::Kind;
use crate::config::key::ReloadClass::Live;
use crate::config::section::section;

section! {
    /// `[reload]`
    pub struct Reload {
        /// Watch the configuration's files, plugins and secrets; SIGHUP and POST /-/reload work regardless
        watch: bool = { Kind::Bool, Value("true"), Live, "true" },
        /// Look this often where no event comes
        poll_interval: Duration = { Kind::Duration(100, 3_600_000), Value(r#""30s""#), Live, r#""30s""# },
        /// Quiet time after an event before loading
        debounce: Duration = { Kind::Duration(1, 60_000), Value(r#""100ms""#), Live, r#""100ms""# },
    }
}
