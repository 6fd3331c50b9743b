//! What a connection keeps from one statement to the next.

use parking_lot::Mutex;

/// The state that statements see and change.
#[derive(Default)]
pub(super) struct Session {
    /// Of the last `USE`.
    pub(super) keyspace: Mutex<Option<String>>,
    /// Who logged in; nobody where nobody is asked.
    pub(super) user: Mutex<Option<String>>,
}
