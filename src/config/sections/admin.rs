//! `[admin]`: health, metrics and the admin interface.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::key::Fallback::{Absent, Value};
use crate::config::key::Kind;
use crate::config::key::ReloadClass::{Live, Rebuild};
use crate::config::rules;
use crate::config::section::section;
use crate::config::value::Secret;

section! {
    /// `[admin]`
    pub struct Admin {
        /// Serve health, metrics and the admin interface
        enabled: bool = { Kind::Bool, Value("true"), Rebuild, "true" },
        /// Where it listens; anything but loopback needs a token
        listen: SocketAddr = { Kind::Address, Value(r#""127.0.0.1:9180""#), Rebuild, r#""127.0.0.1:9180""# },
        /// Where others reach what it listens on, host:port, for `penstock status --all`; unset: as it listens, if that
        /// is one address. It is said when a shard is taken
        advertise: Option<String> = { Kind::Text(rules::node), Absent, Live, r#""penstock-0:9180""# },
        /// Bearer token for every path but /healthz and /readyz, by PENSTOCK_ADMIN__TOKEN only
        token: Option<Secret> = { Kind::Secret, Absent, Live, r#""…""# },
        /// A file with the token; a newline at its end is not part of it
        token_file: Option<PathBuf> = { Kind::Path, Absent, Live, r#""/run/secrets/penstock""# },
        /// Bearer token that reads /metrics and nothing else, by PENSTOCK_ADMIN__METRICS_TOKEN only
        metrics_token: Option<Secret> = { Kind::Secret, Absent, Live, r#""…""# },
        /// A file with the token for /metrics; a newline at its end is not part of it
        metrics_token_file: Option<PathBuf> = { Kind::Path, Absent, Live, r#""/run/secrets/penstock-metrics""# },
    }
}
