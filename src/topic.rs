//! What may be a topic's name: one rule for what a file says, what a transform makes, and what is sent.

/// Kafka's limit on the length of a topic's name.
pub(crate) const LONGEST: usize = 249;

/// The rule in words.
pub(crate) const RULE: &str = "1 to 249 ASCII letters, digits, '.', '_' and '-'";

/// Whether Kafka takes the name: the [`RULE`], and neither `.` nor `..`
/// (`org.apache.kafka.common.internals.Topic`).
pub(crate) fn is_name(name: &str) -> bool {
    (1..=LONGEST).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// What brokers write themselves (`org.apache.kafka.common.internals.Topic`; `__audit_log` is Redpanda's). Those of groups and of
/// transactions take a client's record for one of theirs, where they take it at all.
const OF_BROKERS: [&str; 5] = [
    "__consumer_offsets",
    "__transaction_state",
    "__share_group_state",
    "__cluster_metadata",
    "__audit_log",
];

/// Whether brokers keep their own records there.
pub(crate) fn is_of_brokers(name: &str) -> bool {
    OF_BROKERS.contains(&name)
}

/// The topic in which a pipeline keeps its checkpoints.
pub(crate) fn of_checkpoints(pipeline: &str) -> String {
    format!("penstock.{pipeline}.checkpoints")
}

/// Whether some pipeline keeps its checkpoints there: what else is written there is taken for one.
pub(crate) fn is_of_checkpoints(name: &str) -> bool {
    let pipeline = name.strip_prefix("penstock.");
    pipeline.is_some_and(|rest| rest.ends_with(".checkpoints"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_kafka_takes() {
        for good in ["a", "A-b_c.9", "...", &"x".repeat(LONGEST)] {
            assert!(is_name(good), "{good}");
        }
        assert!(is_of_checkpoints(&of_checkpoints("orders.eu")));
        assert!(!is_of_checkpoints("penstock.checkpoints.orders"));
        assert!(is_of_brokers("__consumer_offsets") && !is_of_brokers("__heartbeats"));
        for bad in ["", ".", "..", "a b", "ä", "a/b", &"x".repeat(LONGEST + 1)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
