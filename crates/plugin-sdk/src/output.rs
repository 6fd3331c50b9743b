//! What a transform makes of a change.

use penstock_plugin_encoding::output::{Field, Mark, OutputWriter};

use crate::Change;

/// Takes what a transform makes of the change at hand.
#[derive(Debug)]
pub struct Output {
    writer: OutputWriter,
    source: u32,
    start: Mark,
}

impl Output {
    pub(crate) fn new(mut writer: OutputWriter) -> Self {
        Self {
            start: writer.mark(),
            writer,
            source: 0,
        }
    }

    pub(crate) fn start(&mut self, source: u32) {
        self.source = source;
        self.start = self.writer.mark();
    }

    pub(crate) fn refuse(&mut self, message: &str) {
        self.writer.undo_to(self.start);
        self.writer.error(self.source, message);
    }

    pub(crate) fn retry(&mut self, message: &str) {
        self.writer.undo_to(self.start);
        self.writer.retry(self.source, message);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.writer.finish()
    }

    /// Writes a record to this topic. A change may make several.
    #[inline]
    pub fn record(&mut self, topic: &str) -> RecordOutput<'_> {
        self.writer.record(self.source, topic);
        RecordOutput(&mut self.writer)
    }

    /// Hands the change on unchanged: to the next transform, or to the default rendering.
    #[inline]
    pub fn forward(&mut self, change: &Change<'_>) {
        self.writer.forward(change.index());
    }

    /// Lets go of the change; the same as writing nothing, but said to whoever reads the transform.
    pub fn discard(&mut self, change: &Change<'_>) {
        debug_assert_eq!(self.source, change.index(), "the change at hand");
    }
}

/// A record being written. What is not set is null.
#[derive(Debug)]
pub struct RecordOutput<'o>(&'o mut OutputWriter);

impl RecordOutput<'_> {
    /// Sets its key: text, bytes, or a [`column_ref`](Change::column_ref).
    #[inline]
    pub fn key<'f>(self, key: impl Into<Field<'f>>) -> Self {
        self.0.key(key.into());
        self
    }

    /// Sets its value: text, bytes, or a [`column_ref`](Change::column_ref).
    #[inline]
    pub fn value<'f>(self, value: impl Into<Field<'f>>) -> Self {
        self.0.value(value.into());
        self
    }

    /// Adds a header.
    #[inline]
    pub fn header<'f>(self, name: &str, value: impl Into<Field<'f>>) -> Self {
        self.0.header(name, value.into());
        self
    }
}
