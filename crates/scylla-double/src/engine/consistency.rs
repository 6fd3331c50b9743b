//! Consistency levels: which may be asked for by what, and whether one node can reach them.
//!
//! Rules and messages: ScyllaDB `db/consistency_level.cc`. All replicas there are is this node, so a
//! keyspace with more copies than one can reach `ONE` and no `QUORUM`.

use std::fmt;

use super::{
    error::{CqlError, ErrorDetail, UNAVAILABLE},
    schema::{KeyspaceSchema, TableSchema},
};

/// The data centre of the node, and so of the cluster.
pub(crate) const DATA_CENTRE: &str = "datacenter1";

/// A consistency level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consistency {
    Any,
    One,
    Two,
    Three,
    Quorum,
    All,
    LocalQuorum,
    EachQuorum,
    Serial,
    LocalSerial,
    LocalOne,
}

/// As the protocol numbers them.
const LEVELS: [(Consistency, &str); 11] = [
    (Consistency::Any, "ANY"),
    (Consistency::One, "ONE"),
    (Consistency::Two, "TWO"),
    (Consistency::Three, "THREE"),
    (Consistency::Quorum, "QUORUM"),
    (Consistency::All, "ALL"),
    (Consistency::LocalQuorum, "LOCAL_QUORUM"),
    (Consistency::EachQuorum, "EACH_QUORUM"),
    (Consistency::Serial, "SERIAL"),
    (Consistency::LocalSerial, "LOCAL_SERIAL"),
    (Consistency::LocalOne, "LOCAL_ONE"),
];

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(LEVELS[*self as usize].1)
    }
}

impl Consistency {
    /// By the protocol's number.
    pub(crate) fn from_protocol(number: u16) -> Result<Self, CqlError> {
        LEVELS
            .get(usize::from(number))
            .map(|(level, _)| *level)
            .ok_or_else(|| {
                CqlError::protocol(format!("Unknown code {number} for a consistency level"))
            })
    }

    /// Whether it is one of a decision, and not of copies.
    pub(crate) fn is_serial(self) -> bool {
        matches!(self, Self::Serial | Self::LocalSerial)
    }

    /// Refuses a read at this level; `one_partition`: of one partition, which it names.
    pub(crate) fn for_read(
        self,
        keyspace: &KeyspaceSchema,
        one_partition: bool,
    ) -> Result<(), CqlError> {
        if matches!(self, Self::Any | Self::EachQuorum) {
            return Err(CqlError::invalid(format!(
                "{self} ConsistencyLevel is only supported for writes"
            )));
        }
        if self.is_serial() && !one_partition {
            return Err(CqlError::invalid(
                "SERIAL/LOCAL_SERIAL consistency may only be requested for one partition at a time",
            ));
        }
        self.reachable(keyspace)
    }

    /// Refuses a write without conditions at this level.
    pub(crate) fn for_write(
        self,
        keyspace: &KeyspaceSchema,
        table: &TableSchema,
    ) -> Result<(), CqlError> {
        if table.counter && self == Self::Any {
            return Err(CqlError::invalid(format!(
                "Consistency level ANY is not yet supported for counter table {}",
                table.name
            )));
        }
        if self.is_serial() {
            return Err(CqlError::invalid(if table.counter {
                "Counter operations are inherently non-serializable"
            } else {
                "You must use conditional updates for serializable writes"
            }));
        }
        self.reachable(keyspace)
    }

    /// Refuses a conditional write that is decided on at the level `serial` and committed at this one.
    pub(crate) fn for_condition(
        self,
        serial: Self,
        keyspace: &KeyspaceSchema,
    ) -> Result<(), CqlError> {
        if self.is_serial() {
            return Err(CqlError::invalid(format!(
                "{self} is not supported as conditional update commit consistency. Use ANY if you mean \"make sure it \
                 is accepted but I don't care how many replicas commit it for non-SERIAL reads\""
            )));
        }
        if !serial.is_serial() {
            return Err(CqlError::invalid(
                "Invalid consistency for conditional update. Must be one of SERIAL or LOCAL_SERIAL",
            ));
        }
        serial.reachable(keyspace)?;
        self.reachable(keyspace)
    }

    fn reachable(self, keyspace: &KeyspaceSchema) -> Result<(), CqlError> {
        let copies = replicas(keyspace);
        let quorum = if copies == 0 { 0 } else { copies / 2 + 1 };
        let alive = copies.min(1);
        let required = match self {
            // A hint is enough, and the node that keeps it is there.
            Self::Any => 0,
            Self::One | Self::LocalOne => 1,
            Self::Two => 2,
            Self::Three => 3,
            Self::All => copies,
            Self::Quorum
            | Self::LocalQuorum
            | Self::EachQuorum
            | Self::Serial
            | Self::LocalSerial => quorum,
        };
        if copies == 0 && matches!(self, Self::LocalOne | Self::LocalQuorum) {
            return Err(unavailable(
                self,
                required,
                0,
                format!(
                    "Cannot achieve consistency level {self} in datacenter '{DATA_CENTRE}' with replication factor 0. \
                     Ensure the keyspace is replicated to this datacenter or use a non-local consistency level."
                ),
            ));
        }
        if alive >= required {
            return Ok(());
        }
        Err(unavailable(
            self,
            required,
            alive,
            format!(
                "Cannot achieve consistency level for cl {self}. Requires {required}, alive {alive}"
            ),
        ))
    }
}

fn unavailable(level: Consistency, required: u32, alive: u32, message: String) -> CqlError {
    CqlError {
        code: UNAVAILABLE,
        message,
        detail: ErrorDetail::Unavailable {
            consistency: level as u16,
            required,
            alive,
        },
    }
}

/// How many copies a keyspace wants of each row.
pub(crate) fn replicas(keyspace: &KeyspaceSchema) -> u32 {
    let factor = |name: &str| keyspace.replication.get(name).and_then(|n| n.parse().ok());
    match keyspace.replication.get("class").map(String::as_str) {
        Some(class) if class.ends_with("SimpleStrategy") => factor("replication_factor"),
        Some(class) if class.ends_with("NetworkTopologyStrategy") => {
            Some(factor(DATA_CENTRE).unwrap_or(0))
        }
        _ => None,
    }
    .unwrap_or(1)
}
