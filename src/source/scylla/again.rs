//! Reads one write again, from a log that may still have it: for a change of which not all was kept.

use std::sync::atomic::Ordering::Relaxed;

use scylla::response::PagingState;

use super::ScyllaSource;
use super::decode::{self, LogRow};
use super::error::SourceError;
use super::log::{Columns, Fetched, Page, Read};
use super::pace::Span;
use super::segment::{Part, Segment};
use crate::change::{Batch, GroupKey, Position};

impl ScyllaSource {
    /// All rows of the write that a position is of, as one batch with its links; `None`: the log has none of them any
    /// more, or the table is not among those that are read.
    pub(super) async fn read_write(
        &self,
        table: &str,
        position: Position,
    ) -> Result<Option<Batch>, SourceError> {
        let Some(log) = self.tables.iter().find(|t| *t.full == *table) else {
            return Ok(None);
        };
        let at_us = position.timestamp_us();
        let mut read = Read {
            streams: [position.stream].into(),
            from_us: at_us,
            to_us: at_us.saturating_add(1),
            least_us: at_us,
            columns: Columns::All,
            paging: PagingState::start(),
            span: Span::default(),
        };
        let mut pages = Vec::new();
        loop {
            let source = self.live.borrow().source.clone();
            let session = self.session();
            let attempt = || log.read(&session, &source, read.clone());
            let Fetched {
                rows,
                version,
                next,
            } = self
                .policies
                .run(attempt, super::classify::classify)
                .await?;
            let version = match version {
                Some(version) => version,
                None => log.version_at_last(&session, &rows)?,
            };
            pages.push(Page {
                rows,
                version,
                postimages: log.postimages.load(Relaxed),
                next: None,
            });
            match next {
                Some(paging) => read.paging = paging,
                None => break,
            }
        }
        let (mut cells, mut rows) = (Vec::new(), Vec::new());
        for page in &pages {
            let mut read = page.rows_from(0)?;
            loop {
                let start = cells.len();
                if !read.next(&mut cells)? {
                    break;
                }
                match decode::head(&page.version, &cells[start..]) {
                    Ok(head) if head.position.time == position.time => rows.push(LogRow {
                        version: &page.version,
                        head,
                        start,
                    }),
                    // Another write of the same microsecond.
                    _ => cells.truncate(start),
                }
            }
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let mut segment = Segment::new();
        let part = Part {
            rows: &rows,
            cells: &cells,
            torn: None,
            late: false,
        };
        segment.push(&GroupKey(table.into()), part);
        let mut batch = segment.seal(0, 0);
        // It is of no group that anybody reads.
        batch.progress.clear();
        Ok(Some(batch))
    }
}
