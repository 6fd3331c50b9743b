//! `[source]`: what is read, and how.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::key::Fallback::{Absent, Required, Value};
use crate::config::key::ReloadClass::{Live, Rebuild};
use crate::config::key::{DAY, Kind};
use crate::config::rules;
use crate::config::section::section;
use crate::config::value::{Nodes, Secret, StartFrom};

use super::tls::Tls;
use crate::policy::Policies;
use crate::words::{Word, words};

words! {
    /// `source.type`
    pub enum SourceType {
        /// The change logs of ScyllaDB's tables.
        ScyllaCdc = "scylla-cdc",
    }
}

words! {
    /// CQL consistency of log reads.
    #[allow(missing_docs)]
    pub enum Consistency {
        One = "one",
        Two = "two",
        Three = "three",
        Quorum = "quorum",
        LocalQuorum = "local-quorum",
        LocalOne = "local-one",
        All = "all",
    }
}

section! {
    /// `[source]`, `type = "scylla-cdc"`
    pub struct Source {
        /// What is read
        kind as "type": SourceType = { Kind::Choice(SourceType::WORDS), Value(r#""scylla-cdc""#), Rebuild, r#""scylla-cdc""# },
        /// ScyllaDB's contact points, or "embedded" for the in-process stand-in
        nodes: Nodes = { Kind::Nodes, Value(r#""embedded""#), Rebuild, r#"["scylla:9042"]"# },
        /// The keyspace of the tables
        keyspace: String = { Kind::Text(rules::cql_name), Required, Rebuild, r#""orders_ks""# },
        /// The base tables to read; each needs CDC enabled
        tables: Vec<String> = { Kind::List(rules::cql_name), Required, Rebuild, r#"["outbox_messages"]"# },
        /// Where to start where there is no checkpoint: "earliest", "latest" or an RFC 3339 time
        start_from: StartFrom = { Kind::StartFrom, Value(r#""earliest""#), Live, r#""earliest""# },
        /// Pause between reads of a stream group that is caught up and gets rows; while behind there is none
        poll_interval: Duration = { Kind::Duration(1, 3_600_000), Value(r#""100ms""#), Live, r#""100ms""# },
        /// Reads a second, of the whole process, that stream groups without new rows may cost; with more groups each is asked less often
        idle_reads: NonZeroU32 = { Kind::Int(1, 1_000_000), Value("250"), Live, "250" },
        /// The span of log time that one read covers; up to 64 times as much while behind, less under pressure
        window: Duration = { Kind::Duration(10, DAY), Value(r#""10s""#), Live, r#""10s""# },
        /// How far behind now a window may end: covers writes that arrive late and clocks that differ
        safety_interval: Duration = { Kind::Duration(0, 3_600_000), Value(r#""1s""#), Live, r#""1s""# },
        /// How far behind now a write may appear in the log and still be delivered, marked late; "off": what appears behind the reading is lost
        late_horizon: Duration = { Kind::DurationOrOff(1_000, 600_000), Value(r#""30s""#), Live, r#""30s""# },
        /// A CQL read that takes longer counts as failed
        read_timeout: Duration = { Kind::Duration(10, 3_600_000), Value(r#""10s""#), Live, r#""10s""# },
        /// Rows a page of a log read
        page_size: NonZeroU32 = { Kind::Int(1, 100_000), Value("1000"), Live, "1000" },
        /// Stream groups that one shard reads at once, at most
        concurrency: NonZeroU32 = { Kind::Int(1, 4096), Value("16"), Live, "16" },
        /// Consistency of the log reads; with that of the writes it must exceed the replication factor
        consistency: Consistency = { Kind::Choice(Consistency::WORDS), Value(r#""quorum""#), Live, r#""local-quorum""# },
        /// The data centre whose nodes are asked, as ScyllaDB calls it, and no other's: one that lags would show a log
        /// with holes; absent: any node may be asked, which is right where there is one data centre
        datacenter: Option<String> = { Kind::Text(rules::nonempty), Absent, Rebuild, r#""dc1""# },
        /// The rack of it that is asked first; the others are asked where its nodes are away
        rack: Option<String> = { Kind::Text(rules::nonempty), Absent, Rebuild, r#""r1""# },
        /// Logs in to ScyllaDB; absent: no authentication
        username: Option<String> = { Kind::Text(rules::nonempty), Absent, Rebuild, r#""penstock""# },
        /// The password, by PENSTOCK_SOURCE__PASSWORD only
        password: Option<Secret> = { Kind::Secret, Absent, Live, r#""…""# },
        /// A file with the password; a newline at its end is not part of it
        password_file: Option<PathBuf> = { Kind::Path, Absent, Live, r#""/run/secrets/scylla""# },
        /// `[source.tls]`
        tls: Tls = table,
        /// Policies of stage `source`
        policies: Policies = flat,
    }
}
