//! What a guest may use of memory and tables. Time is [`super::engine`]'s.

use wasmtime::{Result, bail};

/// Elements of all tables, functions mostly; the JavaScript engine needs some 10,000.
pub(super) const MAX_TABLE_ELEMENTS: usize = 100_000;

/// Refuses growth past the limit by a trap, since few guests survive a failed allocation in order.
#[derive(Debug)]
pub(super) struct Limiter {
    /// Bytes of all linear memories; read at each growth, so that it can be retuned.
    pub(super) memory: u64,
    /// Of these, what is in use; memories never shrink.
    pub(super) used: u64,
    /// Growth was refused since the store was made.
    pub(super) overrun: bool,
}

impl Limiter {
    pub(super) fn new(memory: u64) -> Self {
        Self {
            memory,
            used: 0,
            overrun: false,
        }
    }
}

impl wasmtime::ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> Result<bool> {
        let used = self.used + desired.saturating_sub(current) as u64;
        if used > self.memory {
            self.overrun = true;
            bail!("memory limit of {} bytes exceeded", self.memory);
        }
        self.used = used;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> Result<bool> {
        if desired > MAX_TABLE_ELEMENTS {
            bail!("table limit of {MAX_TABLE_ELEMENTS} elements exceeded");
        }
        Ok(true)
    }
}
