//! `[shutdown]`: how the process ends.

use std::time::Duration;

use crate::config::key::Fallback::Value;
use crate::config::key::Kind;
use crate::config::key::ReloadClass::Live;
use crate::config::section::section;

section! {
    /// `[shutdown]`
    pub struct Shutdown {
        /// Deadline of the whole drain; past it the process stops with exit code 75
        timeout: Duration = { Kind::Duration(100, 3_600_000), Value(r#""30s""#), Live, r#""30s""# },
    }
}
