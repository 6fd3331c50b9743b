//! `[orders]`: the order service.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::key::Fallback::{Absent, Value};
use crate::config::key::Kind;
use crate::config::key::ReloadClass::{Live, Rebuild};
use crate::config::rules;
use crate::config::section::section;
use crate::policy::Policies;

section! {
    /// `[orders]`
    pub struct Orders {
        /// Run the order service in this process
        enabled: bool = { Kind::Bool, Value("false"), Rebuild, "true" },
        /// Where its HTTP interface listens
        listen: SocketAddr = { Kind::Address, Value(r#""127.0.0.1:8080""#), Rebuild, r#""127.0.0.1:8080""# },
        /// Where the orders are; absent: the source's keyspace
        keyspace: String = { Kind::Text(rules::cql_name), Absent, Rebuild, r#""orders_ks""# },
        /// How long an outbox row is kept (whole seconds)
        outbox_ttl: Duration = { Kind::Duration(1_000, 630_720_000_000), Value(r#""1day""#), Live, r#""1day""# },
        /// How long a repeated Idempotency-Key is answered with the order that it stands for (whole seconds)
        idempotency_ttl: Duration = { Kind::Duration(1_000, 630_720_000_000), Value(r#""1day""#), Live, r#""1day""# },
        /// One request takes no longer
        request_timeout: Duration = { Kind::Duration(10, 3_600_000), Value(r#""5s""#), Live, r#""5s""# },
        /// Policies of stage `orders`
        policies: Policies = flat,
    }
}
