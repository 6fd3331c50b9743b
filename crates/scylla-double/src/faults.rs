//! Faults on demand: slow and failing answers, silence, broken connections, a node that takes no
//! connections.
//!
//! A fault is kept until it has hit as often as asked, or is cleared. The first that matches, in the
//! order of injection, decides; a statement is run before it is answered wrongly only where the
//! fault says so (see [`Action`]).

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::watch;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// `SELECT`.
    Select,
    /// `INSERT`.
    Insert,
    /// `UPDATE`.
    Update,
    /// `DELETE` and `TRUNCATE`.
    Delete,
    /// A batch, whether a `BATCH` message or a `BEGIN BATCH` statement; its table is that of its first
    /// statement.
    Batch,
    /// `CREATE`, `ALTER`, `DROP`, `USE`: no table.
    Schema,
    /// A `PREPARE` message, whatever the statement.
    Prepare,
    /// `OPTIONS`, `STARTUP` and `REGISTER`: the handshake and the keep-alive. No table.
    Control,
}

/// What happens instead of, or before, the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// The statement is run and answered after this time.
    Delay(Duration),
    /// 0x1001, not run.
    Overloaded,
    /// 0x1000: one replica needed, none alive; not run.
    Unavailable,
    /// 0x1200: no replica answered; not run.
    ReadTimeout,
    /// 0x1300: one replica failed; not run.
    ReadFailure,
    /// 0x1100 of a simple write; **run**, as a write that times out may well have been.
    WriteTimeout,
    /// 0x1500 of a simple write; not run.
    WriteFailure,
    /// 0x0000 with this message; not run.
    ServerError(String),
    /// Any error code with an empty detail and a message; not run.
    Error {
        /// The native protocol's code.
        code: u32,
        /// What the client shows.
        message: String,
    },
    /// The statement is run, half of its answer is sent, and the connection is closed.
    BreakConnection,
    /// Run, and never answered; the connection stays.
    Silence,
}

/// What to do to which requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    table: Option<(Option<String>, String)>,
    operations: Vec<Operation>,
    times: Option<u64>,
    action: Action,
}

impl Fault {
    /// `action` for every statement on a table of a user's: no `PREPARE`, no handshake, and none of
    /// the tables of the node's own keyspaces (`system`, `system_…`), so that clients stay connected.
    /// Until cleared.
    pub fn new(action: Action) -> Self {
        Self {
            table: None,
            operations: Vec::new(),
            times: None,
            action,
        }
    }

    /// Only on this table: `name`, or `keyspace.name`, which may be one of the node's own.
    pub fn on_table(mut self, table: &str) -> Self {
        self.table = Some(match table.split_once('.') {
            Some((keyspace, name)) => (Some(keyspace.to_owned()), name.to_owned()),
            None => (None, table.to_owned()),
        });
        self
    }

    /// Only for this operation; called again, also for that one.
    pub fn on(mut self, operation: Operation) -> Self {
        self.operations.push(operation);
        self
    }

    /// Only for so many requests.
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    fn matches(&self, what: &Target<'_>) -> bool {
        let operation = if self.operations.is_empty() {
            !matches!(what.operation, Operation::Prepare | Operation::Control)
        } else {
            self.operations.contains(&what.operation)
        };
        operation
            && match (&self.table, what.table) {
                (None, None) => true,
                (None, Some((keyspace, _))) => !is_system(keyspace),
                (Some(_), None) => false,
                (Some((keyspace, name)), Some(table)) => {
                    name == table.1 && keyspace.as_deref().is_none_or(|k| k == table.0)
                }
            }
    }
}

/// Whether a keyspace is one of the node's own.
pub(crate) fn is_system(keyspace: &str) -> bool {
    keyspace == "system" || keyspace.starts_with("system_")
}

/// A request as a fault sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) operation: Operation,
    /// Keyspace and name.
    pub(crate) table: Option<(&'a str, &'a str)>,
}

/// Names an injected fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FaultId(u64);

impl fmt::Display for FaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fault {}", self.0)
    }
}

#[derive(Debug)]
struct Injected {
    id: FaultId,
    fault: Fault,
    hits: u64,
}

impl Injected {
    fn spent(&self) -> bool {
        self.fault.times.is_some_and(|n| self.hits >= n)
    }
}

/// How connections are taken and treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Door {
    /// Whether new connections are served.
    pub(crate) open: bool,
    /// Rises when those there are must close.
    pub(crate) closings: u64,
}

/// The faults of a node. Shared: what one holder injects is there for all.
#[derive(Debug)]
pub struct Faults {
    injected: Mutex<Vec<Injected>>,
    next: AtomicU64,
    door: watch::Sender<Door>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            injected: Mutex::default(),
            next: AtomicU64::new(1),
            door: watch::Sender::new(Door {
                open: true,
                closings: 0,
            }),
        }
    }
}

impl Faults {
    /// Adds a fault, after those there are.
    pub fn inject(&self, fault: Fault) -> FaultId {
        let id = FaultId(self.next.fetch_add(1, Ordering::Relaxed));
        self.injected.lock().push(Injected { id, fault, hits: 0 });
        id
    }

    /// Ends a fault; answers under a delay are not hastened.
    pub fn clear(&self, id: FaultId) {
        self.injected.lock().retain(|i| i.id != id);
    }

    /// Ends them all, and takes connections again.
    pub fn clear_all(&self) {
        self.injected.lock().clear();
        self.resume_accepting();
    }

    /// How many requests a fault has hit; `None` once it is cleared. One that is spent is kept, so
    /// that a test can ask.
    pub fn hits(&self, id: FaultId) -> Option<u64> {
        self.injected
            .lock()
            .iter()
            .find(|i| i.id == id)
            .map(|i| i.hits)
    }

    /// Lets new connections wait, unserved, as a node does that hangs at start-up; those that are
    /// there go on.
    pub fn pause_accepting(&self) {
        self.door.send_modify(|door| door.open = false);
    }

    /// Serves new connections again, also those that waited.
    pub fn resume_accepting(&self) {
        self.door.send_modify(|door| door.open = true);
    }

    /// Closes every connection at once, whatever is under way.
    pub fn drop_connections(&self) {
        self.door.send_modify(|door| door.closings += 1);
    }

    pub(crate) fn door(&self) -> watch::Receiver<Door> {
        self.door.subscribe()
    }

    /// What happens to a request, counted as a hit.
    pub(crate) fn hit(&self, target: &Target<'_>) -> Option<Action> {
        let mut injected = self.injected.lock();
        let found = injected
            .iter_mut()
            .find(|i| !i.spent() && i.fault.matches(target))?;
        found.hits += 1;
        tracing::debug!(fault = %found.id, action = ?found.fault.action, operation = ?target.operation, table = ?target.table, "fault hit");
        Some(found.fault.action.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(keyspace: &'static str, table: &'static str) -> Target<'static> {
        Target {
            operation: Operation::Select,
            table: Some((keyspace, table)),
        }
    }

    #[test]
    fn the_first_that_matches_decides_until_it_is_spent() {
        let faults = Faults::default();
        let first = faults.inject(
            Fault::new(Action::Overloaded)
                .on_table("t")
                .on(Operation::Select)
                .times(2),
        );
        let second = faults.inject(Fault::new(Action::Silence).on_table("ks.t"));
        let actions = || faults.hit(&select("ks", "t"));
        assert_eq!(actions(), Some(Action::Overloaded));
        assert_eq!(faults.hit(&select("ks", "other")), None);
        assert_eq!(faults.hit(&select("other", "t")), Some(Action::Overloaded));
        assert_eq!(actions(), Some(Action::Silence));
        assert_eq!(
            faults.hit(&select("other", "t")),
            None,
            "spent, and the second names a keyspace"
        );
        assert_eq!(
            (faults.hits(first), faults.hits(second)),
            (Some(2), Some(1))
        );
        faults.clear(second);
        assert_eq!((actions(), faults.hits(second)), (None, None));
    }

    #[test]
    fn without_a_table_the_nodes_own_are_spared() {
        let faults = Faults::default();
        faults.inject(Fault::new(Action::ReadTimeout));
        assert_eq!(faults.hit(&select("system_schema", "tables")), None);
        assert_eq!(
            faults.hit(&Target {
                operation: Operation::Prepare,
                table: Some(("ks", "t"))
            }),
            None
        );
        assert_eq!(
            faults.hit(&Target {
                operation: Operation::Control,
                table: None
            }),
            None
        );
        assert_eq!(
            faults.hit(&Target {
                operation: Operation::Schema,
                table: None
            }),
            Some(Action::ReadTimeout)
        );
        faults.clear_all();
        faults.inject(
            Fault::new(Action::ReadTimeout)
                .on_table("system_distributed.cdc_streams_descriptions_v2"),
        );
        assert_eq!(
            faults.hit(&select("system_distributed", "cdc_streams_descriptions_v2")),
            Some(Action::ReadTimeout)
        );
    }
}
