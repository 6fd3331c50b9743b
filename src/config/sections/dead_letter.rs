//! `[dead_letter]`: where changes go that can never succeed.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::config::key::Fallback::Value;
use crate::config::key::ReloadClass::{Live, Rebuild};
use crate::config::key::{COUNT, DAY, Kind};
use crate::config::rules;
use crate::config::section::section;
use crate::policy::Policies;

section! {
    /// `[dead_letter]`
    pub struct DeadLetter {
        /// Topic of the changes that can never succeed; {pipeline} and {keyspace} are filled in
        topic: String = { Kind::Text(rules::dead_letter_template), Value(r#""{pipeline}.dead-letters""#), Rebuild, r#""orders.dead-letters""# },
        /// More dead letters than this within the time below fail the stage that made them
        max: NonZeroU32 = { COUNT, Value("1000"), Live, "1000" },
        /// The time that dead letters are counted over
        within: Duration = { Kind::Duration(1_000, DAY), Value(r#""60s""#), Live, r#""60s""# },
        /// Policies of stage `dead_letter`
        policies: Policies = flat,
    }
}
