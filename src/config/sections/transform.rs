//! `[[transform]]`: the plugins, in the order in which changes pass them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use penstock_conditions::Condition;

use crate::config::key::Fallback::{Absent, Required, Value};
use crate::config::key::Kind;
use crate::config::key::ReloadClass::{Live, Rebuild, Swap};
use crate::config::rules;
use crate::config::section::section;
use crate::policy::Policies;
use crate::words::{Word, words};

words! {
    /// `transform.on_error`
    pub enum OnError {
        /// Keep the change with its error.
        DeadLetter = "dead-letter",
        /// Let go of it, counted.
        Drop = "drop",
        /// Fail the stage.
        Stop = "stop",
    }
}

section! {
    /// One `[[transform]]`
    pub struct Transform {
        /// Unique; names the stage transform.<name>
        name: String = { Kind::Text(rules::transform_name), Required, Rebuild, r#""outbox-router""# },
        /// The WASM plugin: a file, which is swapped too when it is rebuilt in place, or `stock:<name>` for one that Penstock comes with
        plugin: PathBuf = { Kind::Path, Required, Swap, r#""plugins/outbox_router.wasm""# },
        /// The tables whose changes, and what was made of them, it is handed; the others pass it by. All, if it is not set
        tables: Option<Vec<String>> = { Kind::List(rules::cql_name), Absent, Live, r#"["outbox_messages"]"# },
        /// The changes and records that it is handed, by an expression in CEL; the others pass it by. All, if it is not set
        when: Option<Condition> = { Kind::Text(rules::nonempty), Absent, Live, r#""op == 'insert'""# },
        /// What becomes of a change that the plugin rejects: keep it with its error, let go of it (counted as
        /// failed), or fail the stage
        on_error: OnError = { Kind::Choice(OnError::WORDS), Value(r#""dead-letter""#), Live, r#""dead-letter""# },
        /// `[transform.limits]`
        limits: Limits = table,
        /// Handed to the plugin as strings, other values in JSON form; what is legal is up to the plugin
        settings: BTreeMap<String, String> = { Kind::Table, Value("{}"), Swap, r#"{ topic_prefix = "events." }"# },
        /// Policies of stage `transform.<name>`
        policies: Policies = flat,
    }
}

section! {
    /// `[transform.limits]`: what the guest may use
    #[derive(Copy)]
    pub struct Limits {
        /// The most linear memory that the plugin may grow to
        memory: u64 = { Kind::Size(1 << 16, 4 << 30), Value(r#""64MiB""#), Live, r#""64MiB""# },
        /// The longest that the plugin may take for one batch
        deadline: Duration = { Kind::Duration(1, 60_000), Value(r#""100ms""#), Live, r#""100ms""# },
    }
}
