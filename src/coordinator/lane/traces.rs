//! What of a lane's batches is traced.

use std::sync::Arc;
use std::time::Instant;

use super::Lane;
use crate::change::{Batch, RecordBatch, Traced, TracedStep, Traces};
use crate::sink::{Delivered, SinkError};
use crate::spans::{Sent, Spans};
use crate::transform::StageReport;

/// Traces that a line of the log names; a batch may have thousands.
const NAMED: usize = 4;

impl Lane {
    /// Which changes of a batch are traced. Off, it is a look at a flag.
    pub(super) fn traces(&self, batch: &Batch) -> Traces {
        match self.spans.is_on() {
            false => Traces::default(),
            true => Traces {
                on: true,
                changes: self.spans.choose(batch),
                steps: Vec::new(),
            },
        }
    }

    /// The transforms are through with it, one after the other.
    pub(super) fn trace(
        &self,
        records: &mut RecordBatch,
        traces: Traces,
        began: Instant,
        reports: &[StageReport],
    ) {
        if !traces.on {
            return;
        }
        records.traces = traces;
        self.spans.adopt(records);
        if records.traces.changes.is_empty() {
            return;
        }
        let mut next = began;
        records.traces.steps = reports
            .iter()
            .map(|report| {
                let began = next;
                next += report.elapsed;
                TracedStep {
                    stage: report.stage.clone(),
                    began,
                    took: report.elapsed,
                    items: report.items,
                }
            })
            .collect();
    }
}

impl Traces {
    /// Has what is logged meanwhile carry the traces.
    pub(super) fn logged(&self) -> Option<tracing::span::EnteredSpan> {
        if self.changes.is_empty() {
            return None;
        }
        let named = |t: &Traced| format!("{:032x}", t.trace);
        let named: Vec<String> = self.changes.iter().take(NAMED).map(named).collect();
        // An error's level, so that no filter but "off" takes the ids from the lines that it lets through.
        Some(tracing::error_span!("batch", trace_id = named.join(",")).entered())
    }
}

/// The traced batches that the sink holds, until what they say is settled.
#[derive(Debug, Default)]
pub(super) struct Holding(Vec<Held>);

#[derive(Debug)]
struct Held {
    batch: Arc<RecordBatch>,
    handed: Instant,
    delivered: Option<(Instant, Vec<(u32, String)>)>,
}

impl Holding {
    /// Handed to the producer.
    pub(super) fn handed(&mut self, batch: &Arc<RecordBatch>) {
        if !batch.traces.changes.is_empty() {
            self.0.push(Held {
                batch: batch.clone(),
                handed: Instant::now(),
                delivered: None,
            });
        }
    }

    /// Acknowledged, or refused.
    pub(super) fn delivered(&mut self, batch: &Arc<RecordBatch>, delivered: &Delivered) {
        if let Some(held) = self.0.iter_mut().find(|h| Arc::ptr_eq(&h.batch, batch)) {
            held.delivered = Some((Instant::now(), delivered.poison.clone()));
        }
    }

    /// All that is delivered is settled.
    pub(super) fn settled(&mut self, lane: &Lane) {
        self.0.retain(|held| {
            let Some((at, refused)) = &held.delivered else {
                return true;
            };
            let sent = Sent {
                handed: held.handed,
                acknowledged: Some(*at),
                refused,
                failed: None,
            };
            lane.spans.sent(&held.batch, &sent);
            lane.counters.latencies.traced(&held.batch);
            false
        });
    }

    /// Nothing of it is settled, for this reason: it is delivered again.
    pub(super) fn failed(&mut self, spans: &Spans, why: &SinkError) {
        if self.0.is_empty() {
            return;
        }
        let why = why.to_string();
        for held in self.0.drain(..) {
            let sent = Sent {
                handed: held.handed,
                acknowledged: held.delivered.map(|(at, _)| at),
                refused: &[],
                failed: Some(&why),
            };
            spans.sent(&held.batch, &sent);
        }
    }
}
