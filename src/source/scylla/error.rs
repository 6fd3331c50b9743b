//! What can go wrong with the source, in words that say what would help.

use scylla::errors::{ExecutionError, MetadataError, NewSessionError, PrepareError};

/// A failure of the ScyllaDB source. One line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// `source.nodes = "embedded"`, but nobody started the stand-in or told its address.
    #[error(
        "source.nodes is \"embedded\", but no embedded node is running; give addresses instead"
    )]
    NoEmbeddedNode,
    /// No contact point answered.
    #[error(
        "cannot reach ScyllaDB at {nodes}: {reason}; check source.nodes and that the node is up"
    )]
    Unreachable {
        /// The contact points.
        nodes: String,
        /// The driver's words.
        reason: String,
    },
    /// Wrong credentials, or none.
    #[error(
        "ScyllaDB at {nodes} refused the credentials: {reason}; check source.username and source.password"
    )]
    Refused {
        /// The contact points.
        nodes: String,
        /// The driver's words.
        reason: String,
    },
    /// No node is where reads are pinned to.
    #[error(
        "no node of ScyllaDB's is in {wanted}, there are {there}; check source.datacenter and source.rack"
    )]
    NoSuchPlace {
        /// Data centre, and rack if one is named.
        wanted: String,
        /// The data centres that there are, each with its racks.
        there: String,
    },
    /// The keyspace does not exist.
    #[error(
        "keyspace {keyspace} does not exist; check source.keyspace{}",
        folded(keyspace)
    )]
    MissingKeyspace {
        /// Its name.
        keyspace: String,
    },
    /// A table does not exist.
    #[error(
        "table {keyspace}.{table} does not exist; check source.tables{}{}", suggest(.like), folded(table)
    )]
    MissingTable {
        /// Its keyspace.
        keyspace: String,
        /// Its name.
        table: String,
        /// A table of a similar name.
        like: Option<String>,
    },
    /// The table has no change log.
    #[error(
        "table {keyspace}.{table} has no change log; enable it with: \
         ALTER TABLE {keyspace}.{table} WITH cdc = {{'enabled': true}}"
    )]
    NoCdc {
        /// Its keyspace.
        keyspace: String,
        /// Its name.
        table: String,
    },
    /// Counters are not logged.
    #[error(
        "table {keyspace}.{table} has the counter column {column}: ScyllaDB keeps no change log of counters; remove it from source.tables"
    )]
    Counters {
        /// Its keyspace.
        keyspace: String,
        /// Its name.
        table: String,
        /// One counter.
        column: String,
    },
    /// The table is itself a log.
    #[error(
        "table {keyspace}.{table} is itself a change log; name its base table {base} in source.tables"
    )]
    NestedLog {
        /// Its keyspace.
        keyspace: String,
        /// Its name.
        table: String,
        /// The table that it is the log of.
        base: String,
    },
    /// A CQL request failed.
    #[error("{what}: {source}")]
    Execute {
        /// What it was for.
        what: &'static str,
        /// The driver's error.
        source: Box<ExecutionError>,
    },
    /// A statement could not be prepared.
    #[error("{what}: {source}")]
    Prepare {
        /// What it was for.
        what: &'static str,
        /// The driver's error.
        source: Box<PrepareError>,
    },
    /// The schema could not be read.
    #[error("cannot read the schema: {0}")]
    Metadata(Box<MetadataError>),
    /// An answer that is not what the protocol or ScyllaDB's documentation says.
    #[error("{what}: unexpected answer: {reason}")]
    Answer {
        /// What it was for.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// What to say of a name with upper-case letters, which is only found if it was made so.
fn folded(name: &str) -> &'static str {
    if name.chars().any(|c| c.is_ascii_uppercase()) {
        ", where case counts: CQL makes a name that stands without double quotes lower-case"
    } else {
        ""
    }
}

fn suggest(like: &Option<String>) -> String {
    like.as_ref()
        .map_or(String::new(), |l| format!(", perhaps {l} is meant"))
}

impl SourceError {
    /// Whether only another configuration helps: what is meant can never be read.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Counters { .. } | Self::NestedLog { .. })
    }

    /// Whether trying again may help, as for the policies.
    pub fn is_retryable(&self) -> bool {
        super::classify::classify(self) == crate::policy::Class::Retryable
    }

    pub(super) fn execute(what: &'static str) -> impl FnOnce(ExecutionError) -> Self {
        move |source| Self::Execute {
            what,
            source: Box::new(source),
        }
    }

    pub(super) fn answer(what: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Answer {
            what,
            reason: reason.to_string(),
        }
    }

    pub(super) fn connect(nodes: &[String], error: NewSessionError) -> Self {
        let nodes = nodes.join(", ");
        let reason = last_cause(&error);
        // The driver wraps a failed login in several layers without a variant of its own at the top.
        let text = error.to_string().to_lowercase();
        if text.contains("authenticat") || text.contains("credentials") {
            Self::Refused { nodes, reason }
        } else {
            Self::Unreachable { nodes, reason }
        }
    }
}

/// The innermost cause: what a person can act on, on one line.
fn last_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause
        .to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}
