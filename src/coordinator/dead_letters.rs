//! The child of the stage `dead_letter`: keeps what the lanes hand it, one request after the other.
//!
//! It is a child of its own so that its crashes are its own: they count against `[dead_letter.supervision]`, and
//! no sink restarts, and no lane rewinds, for them. A lane waits for its answer meanwhile, so nothing is
//! checkpointed past a dead letter that is not kept.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

use super::child::Stage;
use super::faults;
use super::supervisor::ChildScope;
use crate::dead_letter::DeadLetter;
use crate::dead_letter::flood::Flooded;
use crate::sink::{Letters, SinkError};

/// Requests that wait. A lane makes one at a time, and waits for room as it waits for the answer.
const WAITING: usize = 16;

struct Request {
    letters: Arc<[DeadLetter]>,
    done: oneshot::Sender<Result<(), Flooded>>,
}

/// How a lane has dead letters kept. A cheap handle.
#[derive(Clone)]
pub struct Keeper(mpsc::Sender<Request>);

/// What the child takes requests from; outlives its incarnations.
pub struct Requests(Mutex<mpsc::Receiver<Request>>);

/// The two ends.
pub fn channel() -> (Keeper, Arc<Requests>) {
    let (tx, rx) = mpsc::channel(WAITING);
    (Keeper(tx), Arc::new(Requests(Mutex::new(rx))))
}

impl Keeper {
    /// Back once all are kept, whatever crashes of the stage come in between; while the stage is given up on,
    /// never. Of a shard whose sink is atomic they are only looked at: its own transaction keeps them.
    ///
    /// # Errors
    /// The stage that made them made too many; none was kept.
    pub async fn keep(&self, letters: Vec<DeadLetter>) -> Result<(), Flooded> {
        let letters: Arc<[DeadLetter]> = letters.into();
        loop {
            let (done, kept) = oneshot::channel();
            let request = Request {
                letters: letters.clone(),
                done,
            };
            if self.0.send(request).await.is_err() {
                // The pipeline is being taken down, and this lane with it.
                std::future::pending().await
            }
            // No answer: it crashed with the request in hand, so its next incarnation is asked. Written twice, a
            // letter is one all the same: its key is the change's position.
            if let Ok(kept) = kept.await {
                return kept;
            }
        }
    }
}

/// The child.
///
/// # Errors
/// A letter could not be kept although trying again is over: it is asked for again after the restart.
pub async fn run(
    requests: Arc<Requests>,
    dead_letters: Arc<dyn Letters>,
    atomic: bool,
    scope: ChildScope,
) -> anyhow::Result<()> {
    let mut requests = requests.0.lock().await;
    loop {
        let request = tokio::select! {
            biased;
            request = requests.recv() => request,
            () = scope.drain.cancelled() => return Ok(()),
            () = dead_letters.keep_closed() => continue,
        };
        let Some(Request { letters, done }) = request else {
            return Ok(());
        };
        let busy = scope.activity.busy();
        faults::point(&Stage::DeadLetter).await?;
        drop(busy);
        let kept = match atomic {
            true => dead_letters.admit(&letters).await,
            false => dead_letters.write(&letters).await,
        };
        let answer = match kept {
            Ok(()) => Ok(()),
            Err(SinkError::Flood(flood)) => Err(flood),
            Err(error) => return Err(error.into()),
        };
        scope.activity.record(letters.len() as u64);
        // A lane that was restarted meanwhile asks again.
        done.send(answer).ok();
    }
}
