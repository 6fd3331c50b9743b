//! Batches in, outputs out. Every index and length of a guest is checked in [`decode`]; nothing else reads its bytes.

mod decode;

use std::borrow::Cow;

use penstock_plugin_encoding::{
    ColumnTag, Operation, Projection, RowMeta, RowsBuilder, record_table,
};

pub(crate) use self::decode::Sent;
use crate::change::{Record, RecordBatch};
use crate::transform::draft::{Draft, Item};
use crate::transform::guest::Interest;

/// Where a row that was sent comes from.
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// An item; something is to be made of it.
    Item(u32),
    /// A row of the source batch that others refer to: an image, or the end of a range.
    Linked(u32),
}

/// An encoded batch, and where its rows come from.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    bytes: Cow<'a, [u8]>,
    origins: Vec<Origin>,
}

impl<'a> Input<'a> {
    /// All rows of the source batch as they are; `items` are all its changes.
    pub(crate) fn whole(batch: &'a RecordBatch, items: &[Item]) -> Self {
        let mut origins: Vec<_> = (0..batch.source.rows.len() as u32)
            .map(Origin::Linked)
            .collect();
        for (item, index) in items.iter().zip(0..) {
            origins[item.source() as usize] = Origin::Item(index);
        }
        Self {
            bytes: Cow::Borrowed(batch.source.rows.as_bytes()),
            origins,
        }
    }

    /// The columns of interest of the items that `chunk` names, with the rows that they are linked to.
    pub(crate) fn of_chunk<'i>(
        draft: &Draft,
        items: &[Item],
        chunk: &[u32],
        interest: impl Fn(u32) -> Option<&'i Interest>,
    ) -> Self {
        let source = &draft.batch.source.rows;
        let mask = |table| match interest(table) {
            Some(Interest::Columns(columns)) => Some(&**columns),
            _ => None,
        };
        // Rows of a batch are alike: what the whole takes is a good guess.
        let size = source.as_bytes().len() / source.len().max(1) * chunk.len();
        let mut rows = RowsBuilder::with_capacity(chunk.len(), size + 64);
        let mut origins = Vec::with_capacity(chunk.len());
        for &index in chunk {
            match &items[index as usize] {
                Item::Change(change) => {
                    let Some(row) = source.get(*change as usize) else {
                        continue;
                    };
                    let mask = mask(row.table());
                    let linked =
                        |link: Option<u32>, rows: &mut RowsBuilder, origins: &mut Vec<_>| {
                            let link = link.filter(|link| link != change)?;
                            let copied = rows.copy_row(&source.get(link as usize)?, mask);
                            origins.push(Origin::Linked(link));
                            Some(copied)
                        };
                    let preimage = linked(row.preimage(), &mut rows, &mut origins);
                    let copied = rows.copy_row(&row, mask);
                    origins.push(Origin::Item(index));
                    let end = linked(row.end(), &mut rows, &mut origins);
                    if let Some(preimage) = preimage {
                        rows.link_preimage(copied, preimage);
                    }
                    if let Some(end) = end {
                        rows.link_end(copied, end);
                    }
                }
                Item::Record(record) => {
                    record_row(draft, record, mask(record_table::ID), &mut rows);
                    origins.push(Origin::Item(index));
                }
            }
        }
        Self {
            bytes: Cow::Owned(rows.finish().into_bytes()),
            origins,
        }
    }

    /// What the guest is sent.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Lets go of the bytes, which borrow the batch, and keeps what decoding needs.
    pub(crate) fn sent(self) -> Sent {
        Sent(self.origins)
    }
}

/// Writes a record as a row of the pseudo-table.
fn record_row(draft: &Draft, record: &Record, mask: Option<&Projection>, rows: &mut RowsBuilder) {
    let batch = &draft.batch;
    let source = batch.source.rows.get(record.source as usize);
    let meta = RowMeta {
        operation: Operation::Insert,
        context: false,
        end_of_batch: true,
        table: record_table::ID,
        time_us: source.map_or(0, |row| row.meta().time_us),
        ttl: 0,
    };
    rows.row(meta, record_table::COLUMNS.len() as u16);
    let headers;
    let columns = [
        batch
            .topics
            .get(record.topic as usize)
            .map(|t| t.as_bytes()),
        batch.bytes(record.key),
        batch.bytes(record.value),
        {
            headers = draft.encode_headers(record);
            Some(&headers[..])
        },
    ];
    for (index, bytes) in columns.into_iter().enumerate() {
        let sent = mask.is_none_or(|mask| mask.has(index));
        match bytes {
            _ if !sent => rows.column(ColumnTag::Unsent, &[]),
            Some(bytes) => rows.column(ColumnTag::Value, &[bytes]),
            None => rows.column(ColumnTag::Null, &[]),
        }
    }
}

#[cfg(test)]
mod tests;
