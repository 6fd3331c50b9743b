//! What each error of librdkafka means. Nothing else in the crate looks at its codes.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::policy::Class;

/// What an error says of the record it came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The content is refused: of this record, or of one in the same request.
    Content,
    /// The record may be as good as any.
    Other(Class),
}

/// Classifies a delivery report, or a refusal to enqueue. Brokers refuse whole requests, so a content error
/// condemns a record only if it was sent alone.
pub(super) fn delivery(error: &KafkaError) -> Refusal {
    match class(error) {
        Class::Poison => Refusal::Content,
        other => Refusal::Other(other),
    }
}

/// Classifies any error of the driver.
pub(super) fn class(error: &KafkaError) -> Class {
    if let Some(code) = code(error) {
        return class_of(code);
    }
    match error {
        KafkaError::Canceled | KafkaError::NoMessageReceived | KafkaError::PartitionEOF(_) => {
            Class::Retryable
        }
        // A topic name or header with a zero byte: it came with the record.
        KafkaError::Nul(_) => Class::Poison,
        KafkaError::AdminOpCreation(_)
        | KafkaError::ClientConfig(..)
        | KafkaError::ClientCreation(_)
        | KafkaError::PauseResume(_)
        | KafkaError::Seek(_)
        | KafkaError::Subscription(_) => Class::Fatal,
        // The driver's enum is open: an error that this version does not know may pass.
        _ => Class::Retryable,
    }
}

/// The code that an error comes with.
fn code(error: &KafkaError) -> Option<Code> {
    match error {
        KafkaError::AdminOp(code)
        | KafkaError::ConsumerCommit(code)
        | KafkaError::ConsumerQueueClose(code)
        | KafkaError::Flush(code)
        | KafkaError::Global(code)
        | KafkaError::GroupListFetch(code)
        | KafkaError::MessageConsumption(code)
        | KafkaError::MessageConsumptionFatal(code)
        | KafkaError::MessageProduction(code)
        | KafkaError::MetadataFetch(code)
        | KafkaError::OffsetFetch(code)
        | KafkaError::Rebalance(code)
        | KafkaError::SetPartitionOffset(code)
        | KafkaError::StoreOffset(code)
        | KafkaError::MockCluster(code) => Some(*code),
        KafkaError::Transaction(error) => Some(error.code()),
        _ => None,
    }
}

/// Whether the brokers answered, and will answer so until someone helps: no outage, and nobody's content.
pub(super) fn refused(error: &KafkaError) -> bool {
    code(error).is_some_and(is_refused)
}

fn is_refused(code: Code) -> bool {
    matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::DelegationTokenAuthorizationFailed
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::IllegalSASLState
            | Code::SecurityDisabled
            | Code::DelegationTokenAuthDisabled
            | Code::DelegationTokenNotFound
            | Code::DelegationTokenOwnerMismatch
            | Code::DelegationTokenRequestNotAllowed
            | Code::DelegationTokenExpired
            | Code::InvalidPrincipalType
            | Code::UnacceptableCredential
            | Code::PrincipalDeserializationFailure
            | Code::UnsupportedVersion
            | Code::UnsupportedForMessageFormat
            | Code::InvalidConfig
            | Code::InvalidRequiredAcks
            | Code::InvalidPartitions
            | Code::InvalidReplicationFactor
            | Code::InvalidReplicaAssignment
            | Code::InvalidRequest
            | Code::InvalidTransactionTimeout
            | Code::InvalidSessionTimeout
            | Code::InvalidGroupId
            | Code::InvalidCommitOffsetSize
            | Code::OffsetMetadataTooLarge
            | Code::InconsistentGroupProtocol
            | Code::UnsupportedAssignor
            | Code::GroupMaxSizeReached
            | Code::PolicyViolation
            | Code::TopicDeletionDisabled
            | Code::InconsistentVoterSet
            | Code::InvalidUpdateVersion
            | Code::FeatureUpdateFailed
            | Code::TelemetryTooLarge
            | Code::UnknownSubscriptionId
            | Code::DuplicateResource
            | Code::ResourceNotFound
            | Code::ThrottlingQuotaExceeded
    )
}

/// Whether librdkafka let go of a record by itself: nobody refused it.
pub(super) fn is_purged(error: &KafkaError) -> bool {
    matches!(code(error), Some(Code::PurgeQueue | Code::PurgeInflight))
}

/// Whether it is the size of a record, or of a batch of them, that is refused.
pub(super) fn is_size(error: &KafkaError) -> bool {
    matches!(
        code(error),
        Some(Code::MessageSizeTooLarge | Code::MessageBatchTooLarge)
    )
}

/// Whether the error is about a connection: a hint that the brokers may be away.
pub(super) fn is_connection(error: &KafkaError) -> bool {
    matches!(
        code(error),
        Some(
            Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::Resolve
                | Code::Authentication
                | Code::SSL
        )
    )
}

/// Whether a connection was refused for what this side showed, or for what it was shown: until a file is changed here
/// or someone helps there.
pub(super) fn is_refused_connection(error: &KafkaError) -> bool {
    matches!(code(error), Some(Code::Authentication | Code::SSL))
}

/// Classifies a code of the protocol or of librdkafka. Meanings: `rdkafka.h` of librdkafka 2.12 and
/// <https://kafka.apache.org/protocol#protocol_error_codes>.
pub(super) fn class_of(code: Code) -> Class {
    match code {
        // The content of a record, or of another in its request.
        Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidMessage
        | Code::InvalidMessageSize
        | Code::InvalidRecord
        | Code::InvalidDifferentRecord
        | Code::InvalidTimestamp
        | Code::InvalidTopic
        | Code::BadMessage
        | Code::KeySerialization
        | Code::ValueSerialization => Class::Poison,

        // An answer of the brokers: rights, quotas, policies, settings of theirs. Someone has to help, and it heals
        // when they do.
        code if is_refused(code) => Class::Retryable,

        // A login or a certificate that is refused: it may be rotated, there or here.
        Code::Authentication | Code::SSL => Class::Retryable,

        // What is wrong in this process or its configuration.
        Code::UnsupportedFeature
        | Code::UnsupportedCompressionType
        | Code::BadCompression
        | Code::InvalidArgument
        | Code::NotImplemented
        | Code::NotConfigured
        | Code::UnknownProtocol
        | Code::InvalidType
        | Code::CriticalSystemResource
        | Code::FileSystem
        | Code::ReadOnly
        | Code::Inconsistent
        | Code::Underflow
        | Code::NoEnt => Class::Fatal,

        // The producer is finished, the shard is not: a new producer takes over from the checkpoint.
        Code::Fatal
        | Code::GaplessGuarantee
        | Code::Fenced
        | Code::ProducerFenced
        | Code::InvalidProducerEpoch
        | Code::InvalidProducerIdMapping
        | Code::UnknownProducerId
        | Code::OutOfOrderSequenceNumber
        | Code::DuplicateSequenceNumber
        | Code::TransactionCoordinatorFenced
        | Code::InvalidTransactionalState
        | Code::ConcurrentTransactions
        | Code::State
        | Code::PurgeQueue
        | Code::PurgeInflight
        | Code::AssignmentLost => Class::Retryable,

        // Brokers and networks come back; topics appear; leaders are elected; queues drain.
        Code::BrokerDestroy
        | Code::DestroyBroker
        | Code::Fail
        | Code::BrokerTransportFailure
        | Code::Resolve
        | Code::MessageTimedOut
        | Code::PartitionEOF
        | Code::UnknownPartition
        | Code::UnknownTopic
        | Code::AllBrokersDown
        | Code::OperationTimedOut
        | Code::QueueFull
        | Code::ISRInsufficient
        | Code::NodeUpdate
        | Code::WaitingForCoordinator
        | Code::UnknownGroup
        | Code::InProgress
        | Code::PreviousInProgress
        | Code::ExistingSubscription
        | Code::AssignPartitions
        | Code::RevokePartitions
        | Code::Conflict
        | Code::NoOffset
        | Code::Outdated
        | Code::TimedOutQueue
        | Code::WaitCache
        | Code::Interrupted
        | Code::KeyDeserialization
        | Code::ValueDeserialization
        | Code::Partial
        | Code::Retry
        | Code::PollExceeded
        | Code::UnknownBroker
        | Code::Application
        | Code::Noop
        | Code::AutoOffsetReset
        | Code::LogTruncation
        | Code::Unknown
        | Code::NoError
        | Code::OffsetOutOfRange
        | Code::UnknownTopicOrPartition
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::RequestTimedOut
        | Code::BrokerNotAvailable
        | Code::ReplicaNotAvailable
        | Code::StaleControllerEpoch
        | Code::NetworkException
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::NotCoordinator
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::IllegalGeneration
        | Code::UnknownMemberId
        | Code::RebalanceInProgress
        | Code::TopicAlreadyExists
        | Code::NotController
        | Code::OperationNotAttempted
        | Code::KafkaStorageError
        | Code::LogDirNotFound
        | Code::ReassignmentInProgress
        | Code::NonEmptyGroup
        | Code::GroupIdNotFound
        | Code::FetchSessionIdNotFound
        | Code::InvalidFetchSessionEpoch
        | Code::ListenerNotFound
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::StaleBrokerEpoch
        | Code::OffsetNotAvailable
        | Code::MemberIdRequired
        | Code::PreferredLeaderNotAvailable
        | Code::FencedInstanceId
        | Code::EligibleLeadersNotAvailable
        | Code::ElectionNotNeeded
        | Code::NoReassignmentInProgress
        | Code::GroupSubscribedToTopic
        | Code::UnstableOffsetCommit
        | Code::UnknownTopicId
        | Code::FencedMemberEpoch
        | Code::UnreleasedInstanceId
        | Code::StaleMemberEpoch
        | Code::RebootstrapRequired
        | Code::Begin
        | Code::End
        | Code::EndAll => Class::Retryable,

        // The driver's enum is open: a code that this version does not know may pass.
        _ => Class::Retryable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_content_is_poison_and_an_outage_is_not() {
        let produce = |code| delivery(&KafkaError::MessageProduction(code));
        assert_eq!(produce(Code::MessageSizeTooLarge), Refusal::Content);
        assert_eq!(produce(Code::InvalidRecord), Refusal::Content);
        for outage in [
            Code::AllBrokersDown,
            Code::MessageTimedOut,
            Code::NotLeaderForPartition,
            Code::NotEnoughReplicas,
            Code::KafkaStorageError,
            Code::QueueFull,
            Code::Fatal,
        ] {
            assert_eq!(
                produce(outage),
                Refusal::Other(Class::Retryable),
                "{outage:?}"
            );
        }
        assert_eq!(
            produce(Code::TopicAuthorizationFailed),
            Refusal::Other(Class::Retryable)
        );
        assert!(refused(&KafkaError::MessageProduction(
            Code::TopicAuthorizationFailed
        )));
        assert!(!refused(&KafkaError::MessageProduction(
            Code::NotEnoughReplicas
        )));
    }
}
