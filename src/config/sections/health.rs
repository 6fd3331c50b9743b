//! `[health]`: what is looked at, how often, and what it adds up to.

use std::time::Duration;

use crate::config::key::Fallback::Value;
use crate::config::key::ReloadClass::Live;
use crate::config::key::{DAY, Kind};
use crate::config::rules;
use crate::config::section::section;
use crate::policy::health::{self, OpenBreaker};
use crate::words::Word;

section! {
    fills health::Settings {
        /// Time between looks at each component
        check_interval: Duration = { Kind::Duration(10, 3_600_000), Value(r#""10s""#), Live, r#""10s""# },
        /// Time between logged reports; a change is logged at once
        report_interval: Duration = { Kind::Duration(10, DAY), Value(r#""30s""#), Live, r#""30s""# },
        /// A component with work that makes no progress for this long is degraded
        stalled_after: Duration = { Kind::Duration(100, DAY), Value(r#""30s""#), Live, r#""30s""# },
        /// Liveness fails once the pipeline has not been ready for this long, so that it is restarted; 0s: never
        useless_after: Duration = { Kind::Duration(0, 7 * DAY), Value(r#""15min""#), Live, r#""15min""# },
        /// Stages whose being unhealthy makes the system unhealthy; a transform is transform.<name>
        critical: Vec<String> = { Kind::List(rules::stage_name), Value(r#"["source", "sink"]"#), Live, r#"["source", "sink"]"# },
        /// Share of the CDC log's TTL left below which health is degraded
        headroom_degraded: f64 = { Kind::Float(0.0, 1.0), Value("0.5"), Live, "0.5" },
        /// Share of the CDC log's TTL left below which health is unhealthy; below headroom_degraded
        headroom_unhealthy: f64 = { Kind::Float(0.0, 1.0), Value("0.2"), Live, "0.2" },
        /// What an open breaker makes of its component
        open_breaker: OpenBreaker = { Kind::Choice(OpenBreaker::WORDS), Value(r#""degraded""#), Live, r#""unhealthy""# },
    }
}
