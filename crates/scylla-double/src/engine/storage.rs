//! What is stored of a table: its partitions in the order of the ring.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    cdc::streams::stream_token,
    cell::{CellData, Collection, ColumnId, Partition, Row, Timestamp},
    schema::{Column, ColumnKind, MultiKind, TableSchema},
    token::murmur3,
    types,
};

/// A partition's place on the ring: its token, then its serialised key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RingKey {
    pub(crate) token: i64,
    pub(crate) bytes: Bytes,
}

impl RingKey {
    pub(crate) fn new(table: &TableSchema, components: &[Bytes]) -> Self {
        Self::of(table.is_log, components)
    }

    pub(crate) fn of(is_log: bool, components: &[Bytes]) -> Self {
        let bytes = match components {
            [one] => one.clone(),
            many => {
                let mut out = BytesMut::new();
                for component in many {
                    out.put_u16(component.len() as u16);
                    out.put_slice(component);
                    out.put_u8(0);
                }
                out.freeze()
            }
        };
        // ScyllaDB's `cdc_partitioner`: a stream identifier begins with its token.
        let token = if is_log {
            stream_token(&bytes)
        } else {
            murmur3(&bytes)
        };
        Self { token, bytes }
    }
}

/// A partition and its key's components.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub(crate) key: Vec<Bytes>,
    pub(crate) data: Partition,
}

/// The data of a table.
#[derive(Debug, Default)]
pub(crate) struct TableData {
    pub(crate) partitions: BTreeMap<RingKey, Stored>,
}

impl TableData {
    pub(crate) fn get(&self, key: &RingKey) -> Option<&Stored> {
        self.partitions.get(key)
    }

    pub(crate) fn apply(&mut self, key: RingKey, components: &[Bytes], mutation: Partition) {
        let stored = self.partitions.entry(key).or_insert_with(|| Stored {
            key: components.to_vec(),
            data: Partition::default(),
        });
        stored.data.apply(mutation);
    }

    /// Removes what was written to some columns up to a time each: they were dropped then.
    pub(crate) fn forget(&mut self, columns: &[(ColumnId, Timestamp)]) {
        for (column, up_to) in columns {
            for stored in self.partitions.values_mut() {
                stored.data.static_row.forget(*column, *up_to);
                for row in stored.data.rows.values_mut() {
                    row.forget(*column, *up_to);
                }
            }
        }
    }

    /// Adds rows to a log's partition. They are new by their key's random bytes, so there is nothing
    /// to merge; rows that have expired are removed from the front, for a log is only ever appended to.
    pub(crate) fn append(
        &mut self,
        key: RingKey,
        components: &[Bytes],
        mutation: Partition,
        now: i64,
    ) {
        let stored = self.partitions.entry(key).or_insert_with(|| Stored {
            key: components.to_vec(),
            data: Partition::default(),
        });
        while let Some(first) = stored.data.rows.first_entry() {
            if first.get().is_live(now) {
                break;
            }
            first.remove();
        }
        stored.data.rows.extend(mutation.rows);
    }
}

/// A row as a reader sees it: its key, its partition's static row, and its cells.
#[derive(Clone, Copy)]
pub(crate) struct RowView<'a> {
    pub(crate) table: &'a TableSchema,
    pub(crate) key: &'a [Bytes],
    pub(crate) statics: Option<&'a Row>,
    /// `None`: the partition has only a static row.
    pub(crate) row: Option<&'a Row>,
    /// Seconds since the epoch.
    pub(crate) now: i64,
}

impl RowView<'_> {
    /// About how much it takes to read it, bytes.
    pub(crate) fn size(&self) -> usize {
        self.key.iter().map(Bytes::len).sum::<usize>() + self.row.map_or(0, Row::size)
    }

    /// The cell of a static or regular column, dead ones too.
    pub(crate) fn cell(&self, column: &Column) -> Option<&CellData> {
        match column.kind {
            ColumnKind::Static => self.statics?.cell(column.id),
            ColumnKind::Regular => self.row?.cell(column.id),
            ColumnKind::PartitionKey | ColumnKind::Clustering => None,
        }
    }

    /// Appends the serialised value of a column, with its length before it.
    pub(crate) fn put(&self, column: &Column, out: &mut Vec<u8>) {
        let key = |key: &[Bytes], out: &mut Vec<u8>| {
            let component = key.get(column.position as usize);
            types::put_bytes(out, component.map(|bytes| &bytes[..]));
        };
        match column.kind {
            ColumnKind::PartitionKey => key(self.key, out),
            ColumnKind::Clustering => key(self.row.map_or(&[], |row| &row.key), out),
            ColumnKind::Static | ColumnKind::Regular => match self.cell(column) {
                Some(CellData::Atomic(cell)) => {
                    types::put_bytes(out, cell.get(self.now).map(|bytes| &bytes[..]));
                }
                Some(CellData::Multi(_)) => types::put_bytes(out, self.value(column).as_deref()),
                None => types::put_bytes(out, None),
            },
        }
    }

    /// The serialised value of a column.
    pub(crate) fn value(&self, column: &Column) -> Option<Bytes> {
        match column.kind {
            ColumnKind::PartitionKey => self.key.get(column.position as usize).cloned(),
            ColumnKind::Clustering => self.row?.key.get(column.position as usize).cloned(),
            ColumnKind::Static | ColumnKind::Regular => match self.cell(column)? {
                CellData::Atomic(cell) => cell.get(self.now).cloned(),
                CellData::Multi(collection) => serialise(collection, column.multi?, self.now),
            },
        }
    }
}

/// A collection as CQL has it; an empty one is null.
pub(crate) fn serialise(collection: &Collection, kind: MultiKind, now: i64) -> Option<Bytes> {
    let live: Vec<(&Bytes, &Bytes)> = collection.live(now).collect();
    if live.is_empty() {
        return None;
    }
    Some(match kind {
        MultiKind::Set => types::collection(live.iter().map(|(k, _)| *k)),
        MultiKind::List => types::collection(live.iter().map(|(_, v)| *v)),
        MultiKind::Map => types::map(live.iter().map(|(k, v)| (*k, *v))),
        MultiKind::Udt { fields } => types::udt(fields, live.iter().map(|(k, v)| (*k, *v))),
    })
}
