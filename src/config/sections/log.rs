//! `[log]`: what is logged, and how it looks.

use crate::config::key::Fallback::Value;
use crate::config::key::Kind;
use crate::config::key::ReloadClass::{Live, Refused};
use crate::config::rules;
use crate::config::section::section;
use crate::words::{Word, words};

words! {
    /// `log.format`
    #[allow(missing_docs)]
    pub enum LogFormat {
        Text = "text",
        Json = "json",
    }
}

section! {
    /// `[log]`
    pub struct Log {
        /// Filter directives, as in RUST_LOG
        filter: String = { Kind::Text(rules::log_filter), Value(r#""info""#), Live, r#""info,penstock::source=debug""# },
        /// How log lines look
        format: LogFormat = { Kind::Choice(LogFormat::WORDS), Value(r#""text""#), Refused, r#""json""# },
    }
}
