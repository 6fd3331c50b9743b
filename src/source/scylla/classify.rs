//! Which failures pass by themselves. The only place that says so for this driver.
//!
//! The driver's enums are `#[non_exhaustive]`: a variant of a later version counts as transient, so that it
//! is retried, counted by the breaker and seen in health, rather than ending a shard.

use scylla::errors::{
    ConnectionPoolError, DbError, ExecutionError, MetadataError, PrepareError, RequestAttemptError,
};

use super::error::SourceError;
use crate::policy::Class;

/// Whether to try again.
pub(super) fn classify(error: &SourceError) -> Class {
    match error {
        SourceError::NoEmbeddedNode
        | SourceError::Counters { .. }
        | SourceError::NestedLog { .. } => Class::Fatal,
        // Each can be mended on the other side: a table made, a right given, a node started.
        SourceError::Refused { .. }
        | SourceError::MissingKeyspace { .. }
        | SourceError::NoSuchPlace { .. }
        | SourceError::MissingTable { .. }
        | SourceError::NoCdc { .. }
        | SourceError::Unreachable { .. }
        | SourceError::Answer { .. } => Class::Retryable,
        SourceError::Execute { source, .. } => execution(source),
        SourceError::Prepare { source, .. } => prepare(source),
        SourceError::Metadata(error) => metadata(error),
    }
}

/// Whether the other side, or the way to it, had too much to do: a reason to ask for less.
pub(super) fn is_pressure(error: &SourceError) -> bool {
    let SourceError::Execute { source, .. } = error else {
        return false;
    };
    match &**source {
        ExecutionError::RequestTimeout(_) => true,
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, _)) => matches!(
            error,
            DbError::Overloaded
                | DbError::ReadTimeout { .. }
                | DbError::ReadFailure { .. }
                | DbError::RateLimitReached { .. }
        ),
        ExecutionError::LastAttemptError(RequestAttemptError::UnableToAllocStreamId) => true,
        _ => false,
    }
}

/// Whether it is the connection that failed, not whoever is at its other end.
pub(super) fn is_cut(error: &SourceError) -> bool {
    let attempt = |error: &RequestAttemptError| {
        matches!(error, RequestAttemptError::BrokenConnectionError(_))
    };
    let prepare = |error: &PrepareError| match error {
        PrepareError::ConnectionPoolError(_) => true,
        PrepareError::AllAttemptsFailed { first_attempt } => attempt(first_attempt),
        _ => false,
    };
    match error {
        SourceError::Execute { source, .. } => match &**source {
            ExecutionError::EmptyPlan | ExecutionError::ConnectionPoolError(_) => true,
            ExecutionError::LastAttemptError(error) => attempt(error),
            ExecutionError::PrepareError(error) => prepare(error),
            _ => false,
        },
        SourceError::Prepare { source, .. } => prepare(source),
        SourceError::Metadata(error) => matches!(**error, MetadataError::ConnectionPoolError(_)),
        SourceError::Unreachable { .. } => true,
        _ => false,
    }
}

/// Whether the prepared statement must be made anew before the next attempt.
pub(super) fn is_stale_statement(error: &SourceError) -> bool {
    let SourceError::Execute { source, .. } = error else {
        return false;
    };
    matches!(
        &**source,
        ExecutionError::LastAttemptError(
            RequestAttemptError::RepreparedIdChanged { .. }
                | RequestAttemptError::CqlResultParseError(_)
                | RequestAttemptError::DbError(DbError::Unprepared { .. } | DbError::Invalid, _)
        )
    )
}

/// Whether the table that was asked is not there. ScyllaDB has no code of its own for it, only these words.
pub(super) fn is_gone(error: &SourceError) -> bool {
    let attempt = match error {
        SourceError::Execute { source, .. } => match &**source {
            ExecutionError::LastAttemptError(attempt) => attempt,
            ExecutionError::PrepareError(PrepareError::AllAttemptsFailed { first_attempt }) => {
                first_attempt
            }
            _ => return false,
        },
        SourceError::Prepare { source, .. } => match &**source {
            PrepareError::AllAttemptsFailed { first_attempt } => first_attempt,
            _ => return false,
        },
        _ => return false,
    };
    let gone = |text: &str| {
        let text = text.to_lowercase();
        text.contains("unconfigured table") || text.contains("does not exist")
    };
    matches!(attempt, RequestAttemptError::DbError(DbError::Invalid, text) if gone(text))
}

fn execution(error: &ExecutionError) -> Class {
    match error {
        ExecutionError::EmptyPlan
        | ExecutionError::RequestTimeout(_)
        | ExecutionError::SchemaAgreementError(_) => Class::Retryable,
        ExecutionError::BadQuery(_) | ExecutionError::UseKeyspaceError(_) => Class::Fatal,
        ExecutionError::ConnectionPoolError(e) => pool(e),
        ExecutionError::LastAttemptError(e) => attempt(e),
        ExecutionError::PrepareError(e) => prepare(e),
        ExecutionError::MetadataError(e) => metadata(e),
        _ => Class::Retryable,
    }
}

fn prepare(error: &PrepareError) -> Class {
    match error {
        PrepareError::ConnectionPoolError(e) => pool(e),
        PrepareError::AllAttemptsFailed { first_attempt } => attempt(first_attempt),
        // Nodes disagree while a schema change spreads.
        PrepareError::PreparedStatementIdsMismatch => Class::Retryable,
        _ => Class::Retryable,
    }
}

fn pool(error: &ConnectionPoolError) -> Class {
    match error {
        ConnectionPoolError::Broken { .. } | ConnectionPoolError::Initializing => Class::Retryable,
        ConnectionPoolError::NodeDisabledByHostFilter => Class::Fatal,
        _ => Class::Retryable,
    }
}

fn metadata(error: &MetadataError) -> Class {
    match error {
        // Each of these is seen while nodes restart or a schema change spreads.
        MetadataError::ConnectionPoolError(_)
        | MetadataError::FetchError(_)
        | MetadataError::Peers(_)
        | MetadataError::Keyspaces(_)
        | MetadataError::Udts(_)
        | MetadataError::Tables(_)
        | MetadataError::ClientRoutes(_) => Class::Retryable,
        _ => Class::Retryable,
    }
}

fn attempt(error: &RequestAttemptError) -> Class {
    match error {
        RequestAttemptError::UnableToAllocStreamId
        | RequestAttemptError::BrokenConnectionError(_)
        // A frame cut or damaged on its way; the next connection brings a whole one.
        | RequestAttemptError::BodyExtensionsParseError(_)
        | RequestAttemptError::CqlResultParseError(_)
        | RequestAttemptError::CqlErrorParseError(_)
        | RequestAttemptError::UnexpectedResponse(_)
        | RequestAttemptError::RepreparedIdChanged { .. }
        | RequestAttemptError::RepreparedIdMissingInBatch
        | RequestAttemptError::NonfinishedPagingState => Class::Retryable,
        RequestAttemptError::SerializationError(_)
        | RequestAttemptError::CqlRequestSerialization(_) => Class::Fatal,
        RequestAttemptError::DbError(e, _) => database(e),
        _ => Class::Retryable,
    }
}

fn database(error: &DbError) -> Class {
    match error {
        DbError::Unavailable { .. }
        | DbError::Overloaded
        | DbError::IsBootstrapping
        | DbError::TruncateError
        | DbError::ReadTimeout { .. }
        | DbError::WriteTimeout { .. }
        | DbError::ReadFailure { .. }
        | DbError::WriteFailure { .. }
        | DbError::Unprepared { .. }
        | DbError::ServerError
        | DbError::ProtocolError
        | DbError::RateLimitReached { .. }
        // A right, or a login, that may be given later.
        | DbError::AuthenticationError
        | DbError::Unauthorized
        | DbError::Other(_) => Class::Retryable,
        // What we send is fixed text: these mean that the table is gone, or is another one.
        DbError::SyntaxError
        | DbError::Invalid
        | DbError::AlreadyExists { .. }
        | DbError::FunctionFailure { .. }
        | DbError::ConfigError => Class::Fatal,
        _ => Class::Retryable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scylla::statement::Consistency;
    use std::time::Duration;

    fn read(error: ExecutionError) -> SourceError {
        SourceError::execute("log read")(error)
    }

    fn db(error: DbError) -> SourceError {
        read(ExecutionError::LastAttemptError(
            RequestAttemptError::DbError(error, "words".into()),
        ))
    }

    #[test]
    fn what_an_outage_brings_is_retried() {
        let consistency = Consistency::Quorum;
        for error in [
            db(DbError::ServerError),
            db(DbError::Overloaded),
            db(DbError::Unavailable {
                consistency,
                required: 2,
                alive: 1,
            }),
            db(DbError::ReadTimeout {
                consistency,
                received: 1,
                required: 2,
                data_present: false,
            }),
            db(DbError::ReadFailure {
                consistency,
                received: 1,
                required: 2,
                numfailures: 1,
                data_present: false,
            }),
            read(ExecutionError::EmptyPlan),
            read(ExecutionError::RequestTimeout(Duration::from_secs(1))),
            read(ExecutionError::ConnectionPoolError(
                ConnectionPoolError::Initializing,
            )),
        ] {
            assert_eq!(classify(&error), Class::Retryable, "{error}");
        }
    }

    #[test]
    fn a_lost_table_is_fatal_and_a_lost_right_is_not() {
        for error in [db(DbError::Unauthorized), db(DbError::AuthenticationError)] {
            assert_eq!(classify(&error), Class::Retryable, "{error}");
        }
        for error in [db(DbError::Invalid), db(DbError::SyntaxError)] {
            assert_eq!(classify(&error), Class::Fatal, "{error}");
        }
    }

    #[test]
    fn only_overload_and_timeouts_ask_for_smaller_reads() {
        assert!(is_pressure(&db(DbError::Overloaded)));
        assert!(is_pressure(&read(ExecutionError::RequestTimeout(
            Duration::ZERO
        ))));
        assert!(!is_pressure(&db(DbError::ServerError)));
        assert!(!is_pressure(&read(ExecutionError::EmptyPlan)));
    }
}
