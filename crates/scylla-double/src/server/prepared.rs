//! The statements prepared, by id, for all connections.

use indexmap::IndexMap;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::engine::{CqlError, Engine, Prepared};

/// A hash of the keyspace in use and the text, as ScyllaDB's is: the same statement has the same id
/// whoever prepares it, also after the schema changed.
pub(crate) type StatementId = [u8; 16];

/// Bounded: the statement prepared first makes room for one more, and its client is told
/// `UNPREPARED` when it comes back.
pub(crate) struct PreparedStatements {
    by_id: Mutex<IndexMap<StatementId, Prepared>>,
    limit: usize,
}

impl PreparedStatements {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            by_id: Mutex::default(),
            limit,
        }
    }

    /// A statement that fits the schema; another is forgotten, so that its client is told to prepare it
    /// again and learns the columns there are now.
    pub(crate) fn current(&self, engine: &Engine, id: &[u8]) -> Option<Prepared> {
        let prepared = self.by_id.lock().get(id).cloned()?;
        if engine.is_current(&prepared) {
            return Some(prepared);
        }
        let mut by_id = self.by_id.lock();
        if by_id.get(id).is_some_and(|now| !engine.is_current(now)) {
            by_id.shift_remove(id);
        }
        None
    }

    /// Prepares, or finds what is prepared already.
    pub(crate) fn prepare(
        &self,
        engine: &Engine,
        text: &str,
        keyspace: Option<&str>,
    ) -> Result<(StatementId, Prepared), CqlError> {
        let name = format!("{}\0{text}", keyspace.unwrap_or_default());
        let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).into_bytes();
        if let Some(known) = self.current(engine, &id) {
            return Ok((id, known));
        }
        let prepared = engine.prepare(text, keyspace)?;
        let mut by_id = self.by_id.lock();
        if by_id.len() >= self.limit {
            by_id.shift_remove_index(0);
        }
        by_id.insert(id, prepared.clone());
        Ok((id, prepared))
    }
}
