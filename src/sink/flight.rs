//! What of a shard is under way to the broker: one counter a batch, no future a record.
//!
//! A [`Window`] belongs to one producer. Each record carries a [`Tag`]; its delivery report comes back with
//! the tag and counts down its batch. The first failure breaks the window: every batch in it fails at once,
//! because the shard is going to be rewound and all of them are produced again. A producer that replaces the
//! broken one gets a new window, so a late report cannot reach the wrong batch.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

pub use super::counters::{Counters, LATENCY_BUCKETS, Snapshot};
use super::{Delivered, SinkError, Ticket};
use crate::change::{Position, RecordBatch};
use crate::policy::stage::Permit;

const _: () = assert!(
    usize::BITS == 64,
    "a tag fills the pointer that librdkafka hands back"
);

/// Names a record in a window: 32 bits of its batch's number, 32 bits of its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(u64);

impl Tag {
    /// The record `index` of a batch.
    pub fn new(batch: BatchId, index: u32) -> Self {
        Self(batch.0 << 32 | u64::from(index))
    }

    /// As librdkafka carries it.
    pub fn to_usize(self) -> usize {
        self.0 as usize
    }

    /// As librdkafka hands it back.
    pub fn from_usize(raw: usize) -> Self {
        Self(raw as u64)
    }
}

/// Counts the batches of a window from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchId(u64);

/// What became of a record.
#[derive(Clone, Debug)]
pub enum Report {
    /// The broker has it.
    Acked,
    /// The broker, or librdkafka for it, will never take this one.
    Poison(String),
    /// The content of this record or of one sent with it was refused; `too_large`: for its size.
    Suspect {
        /// What the broker said.
        reason: String,
        /// …
        too_large: bool,
    },
    /// It was given up on.
    Failed(SinkError),
}

/// The batch that has been waiting longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oldest {
    /// The window's number, unique in the process.
    pub window: u64,
    /// Which it is in its window.
    pub batch: BatchId,
    /// When it was submitted.
    pub submitted: Instant,
}

#[derive(Debug)]
struct InFlight {
    submitted: Instant,
    /// Reports still to come, and one for the submission itself.
    remaining: u32,
    source: Option<Arc<RecordBatch>>,
    poison: Vec<(u32, String)>,
    suspects: Vec<u32>,
    done: Option<oneshot::Sender<Result<Delivered, SinkError>>>,
    permit: Option<Permit>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the first batch in `batches`.
    first: u64,
    batches: VecDeque<InFlight>,
    /// Records handed over and not reported on.
    messages: usize,
    /// A waiter wants to know when there are no more than this many.
    wake_at: Option<usize>,
    /// This record is out alone, so a refusal is about it.
    alone: Option<(BatchId, u32)>,
    broken: Option<SinkError>,
}

/// The batches of one producer that are not acknowledged.
#[derive(Debug)]
pub struct Window {
    state: Mutex<State>,
    /// Unique in the process.
    number: u64,
    room: Notify,
    counters: Arc<Counters>,
    acks: AtomicU64,
}

/// Ends a submission: the batch cannot complete before, and fails if it is dropped.
#[derive(Debug)]
pub struct Submission<'a> {
    window: &'a Window,
    /// The batch's number.
    pub id: BatchId,
    sealed: bool,
}

impl Submission<'_> {
    /// So many records are about to be handed over: call it before the producer may report on it.
    pub fn expect(&self, records: u32) {
        let mut state = self.window.state.lock();
        state.messages += records as usize;
        if let Some(batch) = state.batch(self.id.0) {
            batch.remaining += records;
        }
    }

    /// Takes back what [`Self::expect`] announced and the producer did not take.
    pub fn unexpect(&self, records: u32) {
        let mut state = self.window.state.lock();
        state.messages -= records as usize;
        if let Some(batch) = state.batch(self.id.0) {
            batch.remaining -= records;
        }
    }

    /// Every record of the batch is handed over.
    pub fn seal(mut self) {
        self.sealed = true;
        let state = self.window.state.lock();
        self.window.count_down(state, self.id);
    }
}

impl Drop for Submission<'_> {
    /// A batch that was cut short cannot be completed: records of it are under way and others are not.
    fn drop(&mut self) {
        if !self.sealed {
            self.window.fail(SinkError::Reset);
        }
    }
}

impl Window {
    /// An empty window.
    pub fn new(counters: Arc<Counters>) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        Self {
            state: Mutex::default(),
            number: NUMBERS.fetch_add(1, Relaxed),
            room: Notify::new(),
            counters,
            acks: AtomicU64::new(0),
        }
    }

    /// Registers a batch. Fails with the window's first failure once it is broken.
    pub fn open(
        &self,
        source: Option<Arc<RecordBatch>>,
        permit: Option<Permit>,
    ) -> Result<(Submission<'_>, Ticket), SinkError> {
        let (done, ticket) = Ticket::new();
        let mut state = self.state.lock();
        if let Some(broken) = &state.broken {
            return Err(broken.clone());
        }
        let id = BatchId(state.first + state.batches.len() as u64);
        state.batches.push_back(InFlight {
            submitted: Instant::now(),
            remaining: 1,
            source,
            poison: Vec::new(),
            suspects: Vec::new(),
            done: Some(done),
            permit,
        });
        let submission = Submission {
            window: self,
            id,
            sealed: false,
        };
        Ok((submission, ticket))
    }

    /// A delivery report.
    pub fn report(&self, tag: Tag, report: Report) {
        let mut state = self.state.lock();
        match state.messages.checked_sub(1) {
            Some(left) => state.messages = left,
            // Counting on would let a batch end before its records are there.
            None => return tracing::error!(?tag, "a record was reported on twice"),
        }
        if state.wake_at.is_some_and(|at| state.messages <= at) {
            state.wake_at = None;
            self.room.notify_waiters();
        }
        let id = state.number(tag);
        let alone = state.alone.is_some();
        let Some(batch) = state.batch(id) else { return };
        let index = tag.0 as u32;
        let failure = match report {
            Report::Acked => {
                self.counters.acked();
                None
            }
            Report::Poison(reason) => {
                self.counters.refused();
                batch.poison.push((index, reason));
                None
            }
            Report::Suspect { reason, .. } if alone => {
                self.counters.refused();
                batch.poison.push((index, reason));
                None
            }
            Report::Suspect { reason, too_large } => {
                batch.suspects.push(index);
                Some(SinkError::Suspect {
                    records: 1,
                    too_large,
                    reason,
                })
            }
            Report::Failed(error) => Some(error),
        };
        match failure {
            None => self.count_down(state, BatchId(id)),
            Some(error) => {
                drop(state);
                self.fail(error);
            }
        }
    }

    /// Counts one record, or the submission, of a batch as done.
    fn count_down(&self, mut state: MutexGuard<'_, State>, id: BatchId) {
        if state.broken.is_some() {
            return;
        }
        let Some(batch) = state.batch(id.0) else {
            return;
        };
        match batch.remaining.checked_sub(1) {
            Some(left) => batch.remaining = left,
            None => return tracing::error!(?id, "more was reported on than was sent"),
        }
        if batch.remaining > 0 {
            return;
        }
        let done = batch.done.take();
        let permit = batch.permit.take();
        let source = batch.source.take();
        let mut poison = std::mem::take(&mut batch.poison);
        let took = Instant::now().saturating_duration_since(batch.submitted);
        while state.batches.front().is_some_and(|b| b.remaining == 0) {
            state.batches.pop_front();
            state.first += 1;
        }
        self.acks.fetch_add(1, Relaxed);
        drop(state);
        self.counters.completed(took);
        // A refusal is an answer: the broker is well.
        if let Some(permit) = permit {
            permit.success();
        }
        poison.sort_unstable_by_key(|p| p.0);
        if let Some(done) = done {
            // Nobody waits: the lane let go of the ticket, which changes nothing about the delivery.
            done.send(Ok(Delivered { poison })).ok();
        }
        drop(source);
    }

    /// Fails every batch in the window, for the first failure only.
    pub fn fail(&self, error: SinkError) {
        let mut state = self.state.lock();
        if state.broken.is_some() {
            return;
        }
        state.broken = Some(error.clone());
        let mut permits = Vec::new();
        let mut waiting = Vec::new();
        for batch in &mut state.batches {
            permits.extend(batch.permit.take());
            waiting.extend(batch.done.take());
        }
        drop(state);
        self.room.notify_waiters();
        let counts = matches!(&error, SinkError::Delivery { .. });
        if counts {
            self.counters.broken();
        }
        // One incident is one failure however many batches it takes along; the other permits go back unused.
        // Suspicion is an answer of the broker, a reset is ours: neither counts against it.
        if counts && let Some(permit) = permits.pop() {
            permit.failure(&error);
        }
        for done in waiting {
            done.send(Err(error.clone())).ok();
        }
    }

    /// The topics of what is under way, or was when it failed.
    pub fn topics(&self) -> BTreeSet<String> {
        let state = self.state.lock();
        let batches = state.batches.iter().filter_map(|b| b.source.as_ref());
        let topics = batches.flat_map(|b| &b.topics);
        topics.map(|topic| topic.to_string()).collect()
    }

    /// The positions of the records refused together.
    pub fn suspects(&self) -> Vec<Position> {
        let state = self.state.lock();
        let mut positions = Vec::new();
        for batch in &state.batches {
            let Some(source) = &batch.source else {
                continue;
            };
            positions.extend(batch.suspects.iter().filter_map(|&i| {
                let record = source.records.get(i as usize)?;
                source.source.positions.get(record.source as usize).copied()
            }));
        }
        positions
    }

    /// The records that were refused, by their index in the batch; of a window with one batch.
    pub fn refused(&self) -> Vec<u32> {
        let state = self.state.lock();
        let all = state.batches.iter().flat_map(|b| &b.suspects);
        all.copied().collect()
    }

    /// If the record that is out alone was refused: its change and the reason.
    pub fn condemned(&self) -> Option<(Position, String)> {
        let mut state = self.state.lock();
        let (id, index) = state.alone?;
        let batch = state.batch(id.0)?;
        let (_, reason) = batch.poison.iter().find(|(i, _)| *i == index)?;
        let source = batch.source.as_ref()?;
        let record = source.records.get(index as usize)?;
        let position = source.source.positions.get(record.source as usize)?;
        Some((*position, reason.clone()))
    }

    /// Takes batches again: the same producer goes on, and everything that was under way has been reported on or let
    /// go of. Reports that come in late belong to no batch.
    pub fn reopen(&self) {
        let mut state = self.state.lock();
        state.first += state.batches.len() as u64;
        state.batches.clear();
        state.alone = None;
        state.broken = None;
    }

    /// Why the window takes no more batches.
    pub fn broken(&self) -> Option<SinkError> {
        self.state.lock().broken.clone()
    }

    /// The batch that has been waiting longest; `None` once broken, because nobody waits any more.
    pub fn oldest(&self) -> Option<Oldest> {
        let state = self.state.lock();
        if state.broken.is_some() {
            return None;
        }
        state.batches.front().map(|b| Oldest {
            window: self.number,
            batch: BatchId(state.first),
            submitted: b.submitted,
        })
    }

    /// Takes the permit out of a batch that is still waiting.
    pub fn take_permit(&self, id: BatchId) -> Option<Permit> {
        self.state.lock().batch(id.0)?.permit.take()
    }

    /// Batches completed so far.
    pub fn acks(&self) -> u64 {
        self.acks.load(Relaxed)
    }

    /// Records handed over and not reported on.
    pub fn messages(&self) -> usize {
        self.state.lock().messages
    }

    /// What the next reports are about: one record that is sent alone, or many.
    pub fn set_alone(&self, alone: Option<(BatchId, u32)>) {
        self.state.lock().alone = alone;
    }

    /// Waits until no more than `most` records are under way, or the window breaks.
    pub async fn room(&self, most: usize) -> Result<(), SinkError> {
        loop {
            let notified = self.room.notified();
            {
                let mut state = self.state.lock();
                if let Some(broken) = &state.broken {
                    return Err(broken.clone());
                }
                if state.messages <= most {
                    return Ok(());
                }
                state.wake_at = Some(most);
            }
            notified.await;
        }
    }
}

impl State {
    fn batch(&mut self, number: u64) -> Option<&mut InFlight> {
        let index = number.checked_sub(self.first)?;
        self.batches.get_mut(usize::try_from(index).ok()?)
    }

    /// The full number of a batch of which the tag has the lower half: less than 2³² are in flight.
    fn number(&self, tag: Tag) -> u64 {
        let low = (tag.0 >> 32) as u32;
        self.first + u64::from(low.wrapping_sub(self.first as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn window() -> Window {
        Window::new(Arc::default())
    }

    fn submit(window: &Window, records: u32) -> (BatchId, Ticket) {
        let (submission, ticket) = window.open(None, None).unwrap();
        let id = submission.id;
        submission.expect(records);
        submission.seal();
        (id, ticket)
    }

    fn too_large() -> Report {
        Report::Suspect {
            reason: "too large".into(),
            too_large: true,
        }
    }

    fn down() -> SinkError {
        SinkError::Delivery {
            topic: "t".into(),
            reason: "gone".into(),
            class: crate::policy::Class::Retryable,
        }
    }

    #[test]
    fn a_batch_is_delivered_when_its_last_record_is() {
        let w = window();
        let (a, mut ta) = submit(&w, 2);
        let (b, mut tb) = submit(&w, 1);
        w.report(Tag::new(b, 0), Report::Acked);
        assert_eq!(
            (&mut tb).now_or_never().unwrap().unwrap(),
            Delivered::default()
        );
        assert_eq!(
            w.oldest().unwrap().batch,
            a,
            "a later batch does not hide an earlier one"
        );
        w.report(Tag::new(a, 1), Report::Poison("too large".into()));
        assert!((&mut ta).now_or_never().is_none());
        w.report(Tag::new(a, 0), Report::Acked);
        let delivered = ta.now_or_never().unwrap().unwrap();
        assert_eq!(delivered.poison, [(1, "too large".to_owned())]);
        assert_eq!((w.oldest(), w.messages(), w.acks()), (None, 0, 2));
    }

    #[test]
    fn reports_during_the_submission_do_not_complete_the_batch() {
        let w = window();
        let (submission, mut ticket) = w.open(None, None).unwrap();
        submission.expect(1);
        w.report(Tag::new(submission.id, 0), Report::Acked);
        assert!((&mut ticket).now_or_never().is_none());
        submission.seal();
        assert!(ticket.now_or_never().unwrap().is_ok());
    }

    #[test]
    fn the_first_failure_fails_all_and_refuses_more() {
        let w = window();
        let (_, ta) = submit(&w, 1);
        let (b, tb) = submit(&w, 2);
        w.report(Tag::new(b, 1), Report::Failed(down()));
        for ticket in [ta, tb] {
            assert!(matches!(
                ticket.now_or_never(),
                Some(Err(SinkError::Delivery { .. }))
            ));
        }
        assert!(matches!(
            w.open(None, None),
            Err(SinkError::Delivery { .. })
        ));
        assert_eq!(w.oldest(), None);
        w.report(Tag::new(b, 0), Report::Acked);
    }

    #[test]
    fn a_submission_cut_short_fails_the_window() {
        let w = window();
        let (submission, ticket) = w.open(None, None).unwrap();
        submission.expect(1);
        drop(submission);
        assert!(matches!(ticket.now_or_never(), Some(Err(SinkError::Reset))));
    }

    #[test]
    fn only_a_record_sent_alone_is_condemned() {
        let w = window();
        let (a, ticket) = submit(&w, 1);
        w.set_alone(Some((a, 0)));
        w.report(Tag::new(a, 0), too_large());
        assert_eq!(ticket.now_or_never().unwrap().unwrap().poison.len(), 1);
        w.set_alone(None);
        let (b, ticket) = submit(&w, 2);
        w.report(Tag::new(b, 0), too_large());
        assert!(matches!(
            ticket.now_or_never(),
            Some(Err(SinkError::Suspect { .. }))
        ));
    }

    #[tokio::test]
    async fn room_comes_with_the_reports() {
        let w = window();
        let (a, _ticket) = submit(&w, 3);
        let mut room = Box::pin(w.room(1));
        assert!((&mut room).now_or_never().is_none());
        w.report(Tag::new(a, 0), Report::Acked);
        assert!((&mut room).now_or_never().is_none());
        w.report(Tag::new(a, 1), Report::Acked);
        room.await.unwrap();
    }

    #[test]
    fn numbers_survive_the_wrap_of_the_tag() {
        let w = window();
        w.state.lock().first = u64::from(u32::MAX);
        let (a, ta) = submit(&w, 1);
        let (b, tb) = submit(&w, 1);
        assert_eq!(b.0, 1 << 32);
        w.report(Tag::new(b, 0), Report::Acked);
        w.report(Tag::new(a, 0), Report::Acked);
        assert!(ta.now_or_never().unwrap().is_ok() && tb.now_or_never().unwrap().is_ok());
    }
}
