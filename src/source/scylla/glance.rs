//! Whether the database answers again, asked beside an open breaker.
//!
//! Where it was the connection that failed, [`super::link`] sees when there is one again. A database that is there, and
//! answers errors (too few replicas, overload) or not at all, shows nothing of the kind. So while the breaker is open the
//! read that failed last is asked again in its cheapest form: the keys of one row of one stream, by the same
//! consistency. Answered, it says that a probe is worth its while. `open_for` is for when nobody can tell.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use scylla::response::PagingState;

use super::ScyllaSource;
use super::error::SourceError;
use super::log::{Columns, LogTable, Read};
use super::pace::Span;
use crate::change::StreamId;
use crate::policy::breaker::State;

/// Between two glances: one read of one row is nothing even for a database that has too much to do.
const PAUSE: Duration = Duration::from_secs(2);

/// The read that failed last since the breaker was closed, and of which table.
#[derive(Default)]
pub(super) struct Glance(Mutex<Option<(Arc<LogTable>, Read)>>);

impl Glance {
    /// Keeps what is to be asked again.
    pub(super) fn failed(&self, table: &Arc<LogTable>, read: &Read) {
        let mut read = read.clone();
        // The streams of a group have the same replicas, so one stands for all.
        read.streams = read.streams.iter().take(1).copied().collect();
        read.columns = Columns::Keys;
        read.paging = PagingState::start();
        *self.0.lock() = Some((Arc::clone(table), read));
    }

    /// Whether no read failed since the breaker was closed last.
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_none()
    }
}

/// A read of a stream that is well-formed, of version 1, and nobody's.
fn nobodys() -> Read {
    let mut id = [0; 16];
    id[15] = 1;
    Read {
        streams: Arc::from([StreamId(id)]),
        from_us: 0,
        to_us: 1,
        least_us: 0,
        columns: Columns::Keys,
        paging: PagingState::start(),
        span: Span::default(),
    }
}

/// How long to wait for the next glance: longer each time that it promised more than the probe after it met.
fn next_pause(pause: Duration, answered: bool, open_for: Duration) -> Duration {
    match answered {
        true => (pause * 2).min(open_for.max(PAUSE)),
        false => pause,
    }
}

impl ScyllaSource {
    /// Asks, now and then while the breaker is open, and has it look again once there is an answer.
    pub(super) async fn glance(&self) -> Result<Infallible, SourceError> {
        let mut state = self.policies.watch();
        let mut pause = PAUSE;
        loop {
            let now = *state.borrow_and_update();
            if now == State::Closed {
                pause = PAUSE;
                *self.glance.0.lock() = None;
            }
            if now != State::Open {
                // Its sender lives as long as the policies do, which `self` has.
                if state.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                continue;
            }
            tokio::time::sleep(pause).await;
            if *state.borrow() != State::Open {
                continue;
            }
            let answered = self.answers().await;
            if answered {
                tracing::debug!("the database answers a small read again");
                self.policies.look_again();
            }
            let open_for = self.policies.policies().breaker.open_for();
            pause = next_pause(pause, answered, open_for);
        }
    }

    async fn answers(&self) -> bool {
        let failed = self.glance.0.lock().clone();
        // A source that was just made has the breaker of the one before it, and has read nothing.
        let any = || Some((Arc::clone(self.tables.first()?), nobodys()));
        let Some((table, read)) = failed.or_else(any) else {
            return false;
        };
        let settings = self.live.borrow().source.clone();
        let answer = table.glance(&self.session(), &settings, read).await;
        answer
            .inspect_err(|error| {
                tracing::debug!(%error, "the database does not answer a small read either");
            })
            .is_ok()
    }
}
