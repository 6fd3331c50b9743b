//! The paging state: where a page ended, opaque to clients.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{error::CqlError, storage::RingKey};

const VERSION: u8 = 1;

/// Where to go on, and what is left of the limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PagingState {
    /// The partition of the last row.
    pub(crate) partition: RingKey,
    /// The encoded clustering key of the last row; `None` when the partition is done with.
    pub(crate) row: Option<Vec<u8>>,
    /// What is left of `LIMIT`.
    pub(crate) remaining: u64,
    /// What is left of `PER PARTITION LIMIT` in that partition.
    pub(crate) partition_remaining: u64,
}

impl PagingState {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        out.put_u64(self.remaining);
        out.put_u64(self.partition_remaining);
        out.put_i64(self.partition.token);
        out.put_u32(self.partition.bytes.len() as u32);
        out.put_slice(&self.partition.bytes);
        if let Some(row) = &self.row {
            out.put_u8(1);
            out.put_slice(row);
        }
        out.freeze()
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, CqlError> {
        let bad = || CqlError::protocol("Invalid value for the paging state");
        if bytes.try_get_u8().ok() != Some(VERSION) {
            return Err(bad());
        }
        let remaining = bytes.try_get_u64().map_err(|_| bad())?;
        let partition_remaining = bytes.try_get_u64().map_err(|_| bad())?;
        let token = bytes.try_get_i64().map_err(|_| bad())?;
        let length = bytes.try_get_u32().map_err(|_| bad())? as usize;
        if bytes.len() < length {
            return Err(bad());
        }
        let key = bytes.split_to(length);
        let row = (!bytes.is_empty()).then(|| bytes[1..].to_vec());
        Ok(Self {
            partition: RingKey { token, bytes: key },
            row,
            remaining,
            partition_remaining,
        })
    }
}
